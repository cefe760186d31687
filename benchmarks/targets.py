"""How far nbbn is from what the memory allows: the targets, and where they are missed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.cases import STEP, Case
from benchmarks.harness.implementations import AUTOGRAD, BASELINE, FROZEN, LIMITS, UNADORNED
from benchmarks.harness.race import Result
from benchmarks.harness.shapes import Shape
from benchmarks.runs import Run, header, median, row, threads_text
from nbbn.cli._bench_report import format_ratio, format_seconds

# Below, a call costs as much as the memory: small calls have lines of their own.
LIMIT_BYTES = 64 << 10
SMALL: tuple[Shape, ...] = ((1, 64), (32, 64), (128, 64), (128, 256))
FEW: tuple[Shape, ...] = ((8, 100_000), (1, 2048, 7, 7), (8, 2048, 7, 7), (32, 512, 7, 7))
BATCHES: tuple[Shape, ...] = ((128, 64), (128, 256), (4096, 128))
TWO_THREADS = "on two threads: how far from the limit, by the fastest rounds"
_SMALL_CASE = Case("inference", SMALL[0], 1)
WORST = 6  # cases shown of those that miss a target

# What a target is about: pairs of a case and its value.
Values = list[tuple[Case, float]]


@dataclass(frozen=True)
class Target:
    """A line of the table: ``values`` has to be at most ``bound``, or more than it if ``above``."""

    name: str
    reach: str
    bound: float
    values: Callable[[Run], Values]
    above: bool = False
    unit: str = ""

    def misses(self, values: Values) -> Values:
        """Return the values that miss the target, the worst first."""
        missed = [(c, v) for c, v in values if (v <= self.bound if self.above else v > self.bound)]
        return sorted(missed, key=lambda pair: pair[1], reverse=not self.above)

    def worst(self, values: Values) -> float:
        """Return the value farthest on the wrong side."""
        return (min if self.above else max)(value for _, value in values)

    def show(self, value: float) -> str:
        """Return a value with its unit."""
        return f"{value:.2f} {self.unit}" if self.unit else format_ratio(value)


def _bytes(case: Case) -> int:
    return math.prod(case.shape) * case.itemsize


def _arrays(case: Case) -> int:
    """Return how many arrays of the size of x the operation reads and writes."""
    return {"inference": 2, "moments": 1, "training": 2, "backward": 3}[case.base]


def _fits(case: Case, run: Run) -> bool:
    return _arrays(case) * _bytes(case) <= run.cache


def _is_float32(case: Case) -> bool:
    return case.dtype == case.params == "float32"


def limit_ratios(
    operation: str, variants: Sequence[str], chosen: Callable[[Case, Run], bool]
) -> Callable[[Run], Values]:
    """Return what finds nbbn's time over the yardstick's, for cases of 64 KB and up."""

    def values(run: Run) -> Values:
        found = [
            (r.case, r.ratio_to_limit(BASELINE))
            for r in run.results
            if r.case.operation == operation
            and r.case.variant in variants
            and _bytes(r.case) >= LIMIT_BYTES
            and chosen(r.case, run)
        ]
        return [(case, ratio) for case, ratio in found if ratio is not None]

    return values


def over(name: str, other: str, operation: str, variant: str) -> Callable[[Run], Values]:
    """Return what finds the time of one implementation over another's, for small calls."""

    def values(run: Run) -> Values:
        found = [(r.case, r.ratio(name, to=other)) for r in _small(run, operation, variant)]
        return [(case, ratio) for case, ratio in found if ratio is not None]

    return values


def beyond_kernel(run: Run) -> Values:
    """Return the microseconds that a small call of a frozen layer takes beyond the kernel's."""
    found = []
    for result in _small(run, "inference", "out"):
        times = [median(result, name) for name in (FROZEN, "bare-kernel")]
        if times[0] is not None and times[1] is not None:
            found.append((result.case, 1e6 * (times[0] - times[1])))
    return found


def batches_over_libraries(run: Run) -> Values:
    """Return the time of the quickest library over nbbn's, in moments and training of (N, C)."""
    wanted = [r for r in run.results if r.case.shape in BATCHES and r.case.operation in ("moments", "training")]
    return _least(wanted, run.peers, "median")


def two_threads_over_one(run: Run) -> Values:
    """Return how many times as far from the limit two threads are, by the fastest rounds."""
    found = []
    for result in run.results:
        alone = run.result(replace(result.case, threads=1))
        if result.case.threads == 2 and alone is not None and _bytes(result.case) >= LIMIT_BYTES:
            ratios = [each.ratio_to_limit(BASELINE, "minimum") for each in (result, alone)]
            if ratios[0] is not None and ratios[1] is not None:
                found.append((result.case, ratios[0] / ratios[1]))
    return found


def fastest_rounds(run: Run) -> Values:
    """Return the time of the quickest library over nbbn's by the fastest rounds, for every case."""
    return _least(run.results, run.peers, "minimum")


def _small(run: Run, operation: str, variant: str) -> list[Result]:
    cases = [replace(_SMALL_CASE, operation=operation, variant=variant, shape=s) for s in SMALL]
    found = [run.result(replace(case, threads=n)) for case in cases for n in (1, 2)]
    return [result for result in found if result is not None]


def _least(results: Iterable[Result], peers: Sequence[str], statistic: str) -> Values:
    found = []
    for result in results:
        ratios = [ratio for peer in peers if (ratio := result.ratio(peer, statistic)) is not None]
        if ratios:
            found.append((result.case, min(ratios)))
    return found


def _limit(name: str, operation: str, bound: float, chosen: Callable[[Case, Run], bool]) -> Target:
    """Return the line of an operation beside its yardstick, written into arrays that are kept."""
    variants = ("fresh",) if operation == "moments" else ("out", "inplace")
    values = limit_ratios(operation, variants, chosen)
    return Target(name, f"{bound:g} x {LIMITS[operation]}", bound, values)


def _plain(rows: bool | None, fits: bool, few: bool | None = None) -> Callable[[Case, Run], bool]:
    """Return what chooses cases of float32: channels last and (N, C) or not, in the cache or not."""

    def chosen(case: Case, run: Run) -> bool:
        wanted = (rows, case.is_matrix), (few, case.shape in FEW), (fits, _fits(case, run))
        return _is_float32(case) and all(want in (None, has) for want, has in wanted)

    return chosen


def targets() -> list[Target]:
    """Return the lines of the table."""
    first, last = "channels first", "channels last and (N, C)"
    lines = [
        _limit(f"moments in the cache, {first}", "moments", 1.7, _plain(False, True)),
        _limit(f"moments in the cache, {last}", "moments", 1.8, _plain(True, True)),
        _limit(f"training in the cache, {first}", "training", 1.5, _plain(False, True, False)),
        _limit(f"training in the cache, {last}", "training", 1.6, _plain(True, True, False)),
        _limit(f"training past the cache, {last}", "training", 1.2, _plain(True, False)),
        _limit(
            "training, few values a channel",
            "training",
            2.5,
            lambda case, _: _is_float32(case) and case.shape in FEW,
        ),
        _limit("backward in the cache", "backward", 1.5, _plain(None, True)),
        _limit(f"backward past the cache, {last}", "backward", 1.2, _plain(True, False)),
        _limit("inference with `out=`, in the cache", "inference", 1.2, _plain(None, True)),
        _limit("inference with `out=`, past the cache", "inference", 1.1, _plain(None, False)),
        Target("a frozen layer, small, `out=`", "0.6 x NumPy", 0.6, over(FROZEN, "numpy", "inference", "out")),
        Target("... beyond the bare kernel", "0.7 us", 0.7, beyond_kernel, unit="us"),
        Target("... a new result", "0.65 x NumPy", 0.65, over(FROZEN, "numpy", "inference", "fresh")),
        Target("a layer in inference mode, small", "1 x NumPy", 1.0, over(BASELINE, "numpy", "inference", "out")),
        Target("training, small", "0.25 x PyTorch", 0.25, over(BASELINE, AUTOGRAD, "training", "fresh")),
        Target("training and backward, small", "0.12 x PyTorch", 0.12, over(BASELINE, AUTOGRAD, STEP, "fresh")),
        Target(
            "moments and training of (128, 64) to (4096, 128): the quickest library, over nbbn",
            "1.3",
            1.3,
            batches_over_libraries,
            above=True,
        ),
    ]  # fmt: skip
    lines.append(Target(TWO_THREADS, "1.2 x that on one", 1.2, two_threads_over_one))
    chosen = {
        "float64": lambda case: case.dtype == "float64",
        "float32 with float64 parameters": lambda case: case.dtype != case.params,
    }
    bounds = {"inference": 1.15, "moments": 1.15, "training": 1.2, "backward": 1.2}
    lines += [
        _limit(f"{name}: {operation}", operation, bound, _only(chooses))
        for name, chooses in chosen.items()
        for operation, bound in bounds.items()
        if operation != "moments" or name == "float64"  # they have no parameters
    ]
    lines.append(
        Target(
            "every case recorded: the quickest library, over nbbn, by the fastest rounds",
            "0.95",
            0.95,
            fastest_rounds,
            above=True,
        )
    )
    return lines


def _only(chooses: Callable[[Case], bool]) -> Callable[[Case, Run], bool]:
    return lambda case, _: chooses(case)


def masked_over_plain(run: Run) -> Values:
    """Return the time with a mask over that without, past the cache."""
    wanted = [r for r in run.results if r.case.operation in ("moments+mask", "training+mask")]
    found = [(r.case, r.ratio(BASELINE, to=UNADORNED)) for r in wanted if not _fits(r.case, run)]
    return [(case, ratio) for case, ratio in found if ratio is not None]


def narrow_over_float32(*dtypes: str) -> Callable[[Run], Values]:
    """Return what finds the time of inference of narrow types over that of as many float32, past the cache."""

    def values(run: Run) -> Values:
        found = []
        for result in run.results:
            wide = replace(result.case, dtype="float32")
            if result.case.operation == "inference" and result.case.dtype in dtypes and not _fits(wide, run):
                times = median(result, BASELINE), median(run.result(wide), BASELINE)
                if times[0] is not None and times[1] is not None:
                    found.append((result.case, times[0] / times[1]))
        return found

    return values


def targets_of_sets() -> dict[str, list[Target]]:
    """Return the lines of the table that are recorded in other sets, by the name of the set."""
    halves, photos = narrow_over_float32("bfloat16", "float16"), narrow_over_float32("uint8")
    return {
        "statistics": [
            Target("moments and training with a mask, past the cache", "1.25 x without", 1.25, masked_over_plain)
        ],
        "fused": [
            Target("bfloat16 and float16: inference past the cache", "0.6 x float32", 0.6, halves),
            Target("uint8 to float32: inference past the cache", "0.7 x float32", 0.7, photos),
        ],
    }


Sets = dict[str, Run]


def _lines(run: Run, sets: Sets) -> list[tuple[Target, Values]]:
    """Return all targets, with the values of each; the last one is that of every case."""
    others = [(target, sets[name]) for name, lines in targets_of_sets().items() for target in lines if name in sets]
    *own, last = targets()
    every = [*((target, run) for target in own), *others, (last, run)]
    return [(target, target.values(of)) for target, of in every]


def target_table(run: Run, sets: Sets) -> list[str]:
    """Return the table of targets, a column for each thread count; ``sets`` are other recorded runs."""
    counts = sorted({result.case.threads for result in run.results})
    columns = [f"{threads_text([n])}: worst (median)" for n in counts]
    lines = header("", "to reach", *columns, "holds")
    for target, values in _lines(run, sets):
        cells = [_worst_and_median(target, [v for v in values if v[0].threads == n]) for n in counts]
        lines.append(row(target.name, target.reach, *cells, _holds(target, values)))
    return lines


def _holds(target: Target, values: Values) -> str:
    if not values:
        return "-"
    good = len(values) - len(target.misses(values))
    return f"**yes**, in {good}" if good == len(values) else f"in {good} of {len(values)}"


def _worst_and_median(target: Target, values: Values) -> str:
    if not values:
        return "-"
    middle = statistics.median(value for _, value in values)
    return f"{target.show(target.worst(values))} ({target.show(middle)})"


def missed_lines(run: Run, sets: Sets) -> list[str]:
    """Return a line for each target that does not hold everywhere, with its worst cases."""
    lines = []
    for target, values in _lines(run, sets)[:-1]:  # the last one has a section of its own
        missed = target.misses(values)
        if missed:
            worst = missed[:WORST]
            cases = "; ".join(f"{_place(case)} {target.show(value)}" for case, value in worst)
            more = f"; and {len(missed) - WORST} more" if len(missed) > WORST else ""
            lines.append(f"- {target.name} (to reach: {target.reach}): {cases}{more}")
    return lines or ["None."]


def _place(case: Case) -> str:
    return case.label.removeprefix(f"{case.operation} ")


# Of the first calls with an empty cache: their CPU seconds, over those of numba's own first parallel loop.
_SMALL, _LARGE = "(32, 64)", "(32, 64, 56, 56)"
_COMPILING = {
    ("frozen inference", _SMALL): 1.2,
    ("frozen inference", _LARGE): 2.0,
    ("inference", _SMALL): 1.6,
    ("inference", _LARGE): 2.0,
    ("training forward", _SMALL): 3.0,
    ("training forward", _LARGE): 3.0,
    ("training forward and backward", _SMALL): 5.0,
    ("training forward and backward", _LARGE): 5.0,
    ("fit_transform, float64", "(1000, 4)"): 3.0,
}


def startup_table(startup: dict[str, Any]) -> list[str]:
    """Return the first calls of a process beside their targets."""
    rows = {(r["operation"], r["case"], r["cache"]): r["seconds"] for r in startup["rows"]}
    medians = {key: statistics.median(seconds) for key, seconds in rows.items()}
    imports = [medians["import", name, ""] for name in (BASELINE, "numba")]
    found = [("`import nbbn` beyond `import numba`", imports[0] - imports[1], 0.05)]
    for (operation, name, cache), seconds in medians.items():
        if cache == "warm":
            bound = 0.3 if operation == "inference" else None
            found.append((f"first call: {operation}, {name}", seconds, bound))
    lines = header("", "to reach", "median", "holds")
    for name, seconds, bound in found:
        reach = "-" if bound is None else format_seconds(bound)
        holds = "-" if bound is None else "**yes**" if seconds <= bound else "no"
        lines.append(row(name, reach, f"{1e3 * seconds:.0f} ms", holds))
    return lines


def compiling_table(startup: dict[str, Any]) -> list[str]:
    """Return what first calls compile with an empty cache, beside the targets."""
    cold = [r for r in startup["rows"] if r["cache"] == "cold"]
    ratios = {(r["operation"], r["case"]): [c / u for c, u in zip(r["cpu"], r["loop_cpu"], strict=True)] for r in cold}
    for name in (_SMALL, _LARGE):
        both = zip(ratios["training forward", name], ratios["backward", name], strict=True)
        ratios["training forward and backward", name] = [sum(pair) for pair in both]
    lines = header("", "to reach", "median", "least", "holds")
    for (operation, name), bound in _COMPILING.items():
        found = ratios[operation, name]
        ratio = statistics.median(found)
        holds = "**yes**" if ratio <= bound else "no"
        lines.append(row(f"{operation}, {name}", f"{bound:g}", f"{ratio:.2f}", f"{min(found):.2f}", holds))
    unit = statistics.median(u for r in cold for u in r["loop_cpu"])
    return [*lines, "", f"Numba's loop takes {unit:.2f} CPU seconds; it was compiled before each first call."]
