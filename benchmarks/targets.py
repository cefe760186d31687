"""How far nbbn is from what the memory allows: the targets, and where they are missed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.harness.cases import Case
from benchmarks.harness.implementations import BASELINE, LIMITS
from benchmarks.harness.race import Result
from benchmarks.harness.shapes import Shape
from benchmarks.runs import Run, header, median, row, threads_text
from nbbn.cli._bench_table import format_ratio, format_seconds

# Below, a call costs as much as the memory: small calls have lines of their own.
LIMIT_BYTES = 64 << 10
SMALL: tuple[Shape, ...] = ((1, 64), (32, 256), (128, 256))
SMALL_PEERS = ("numpy", "torch", "onnxruntime")
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
    return {"inference": 2, "moments": 1, "training": 2, "backward": 3}[case.operation]


def _fits(case: Case, run: Run) -> bool:
    return _arrays(case) * _bytes(case) <= run.cache


def _slab_fits(case: Case, run: Run) -> bool:
    """Tell whether what is read of one channel fits the cache."""
    inputs = 2 if case.operation == "backward" else 1
    return inputs * _bytes(case) // case.channels <= run.cache


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


def fresh_over_out(run: Run) -> Values:
    """Return the time of inference with a new result over that with ``out=``."""
    found = []
    for result in run.results:
        case = result.case
        if case.operation != "inference" or case.variant != "fresh" or _bytes(case) < LIMIT_BYTES:
            continue
        kept = run.result(replace(case, variant="out"))
        times = [median(r, BASELINE) for r in (result, kept)]
        if times[0] is not None and times[1] is not None:
            found.append((case, times[0] / times[1]))
    return found


def over_bare_kernel(run: Run) -> Values:
    """Return the microseconds that a small inference call takes beyond the kernel's."""
    found = []
    for result in _small(run):
        times = [median(result, name) for name in (BASELINE, "bare-kernel")]
        if times[0] is not None and times[1] is not None:
            found.append((result.case, 1e6 * (times[0] - times[1])))
    return found


def small_ratios(run: Run) -> Values:
    """Return the time of the quickest of three libraries over nbbn's, for small calls."""
    return _least(_small(run), SMALL_PEERS)


def all_ratios(run: Run) -> Values:
    """Return the time of the quickest library over nbbn's, for every case."""
    return _least(run.results, run.peers)


def _small(run: Run) -> list[Result]:
    return [
        r
        for r in run.results
        if r.case.shape in SMALL and r.case.variant == "out" and r.case.operation == "inference"
    ]


def _least(results: Iterable[Result], peers: Sequence[str]) -> Values:
    found = []
    for result in results:
        ratios = [ratio for peer in peers if (ratio := result.ratio(peer)) is not None]
        if ratios:
            found.append((result.case, min(ratios)))
    return found


def _images(case: Case) -> bool:
    return _is_float32(case) and not case.is_matrix


def targets() -> list[Target]:
    """Return the lines of the table."""
    out = ("out", "inplace")
    lines = [
        Target(
            "inference, `out=` or in place, 64 KB and up",
            "1.15 x copy-affine",
            1.15,
            limit_ratios("inference", out, lambda c, _: _is_float32(c)),
        ),
        Target(
            "inference with a new result, 64 KB and up",
            "1.2 x the time with `out=`",
            1.2,
            fresh_over_out,
        ),
        Target(
            "`batch_moments`, 64 KB and up",
            "1.15 x read",
            1.15,
            limit_ratios("moments", ("fresh",), lambda c, _: _is_float32(c)),
        ),
        Target(
            "training, channels first, in the cache",
            "1.1 x two-trip",
            1.1,
            limit_ratios("training", out, lambda c, run: _images(c) and _fits(c, run)),
        ),
        Target(
            "training, channels first, larger than the cache, a channel fits it",
            "0.9 x two-trip",
            0.9,
            limit_ratios(
                "training",
                out,
                lambda c, run: _images(c) and not _fits(c, run) and _slab_fits(c, run),
            ),
        ),
        Target(
            "training, channels last and (N, C), 64 KB and up",
            "1.2 x two-trip",
            1.2,
            limit_ratios("training", out, lambda c, _: _is_float32(c) and c.is_matrix),
        ),
        Target(
            "backward, in the cache, 64 KB and up",
            "1.2 x two-trip",
            1.2,
            limit_ratios("backward", out, lambda c, run: _is_float32(c) and _fits(c, run)),
        ),
        Target(
            "backward, larger than the cache",
            "1.0 x two-trip",
            1.0,
            limit_ratios("backward", out, lambda c, run: _is_float32(c) and not _fits(c, run)),
        ),
        Target(
            "a small call, (1, 64) to (128, 256), `out=`: beyond the bare kernel",
            "2 us",
            2.0,
            over_bare_kernel,
            unit="us",
        ),
        Target(
            "the same: the quickest of NumPy, torch and onnxruntime, over nbbn",
            "more than 1",
            1.0,
            small_ratios,
            above=True,
        ),
    ]
    chosen = {
        "float64": lambda case: case.dtype == "float64",
        "float32 with float64 parameters": lambda case: case.dtype != case.params,
    }
    bounds = {"inference": 1.15, "moments": 1.15, "training": 1.2, "backward": 1.2}
    for name, chooses in chosen.items():
        for operation, bound in bounds.items():
            if operation == "moments" and name != "float64":
                continue  # has no parameters
            lines.append(
                Target(
                    f"{name}: {operation}",
                    f"{bound:g} x {LIMITS[operation]}",
                    bound,
                    limit_ratios(
                        operation, ("fresh",) if operation == "moments" else out, _only(chooses)
                    ),
                )
            )
    lines.append(
        Target(
            "every case recorded: the quickest library, over nbbn",
            "1 or more",
            math.nextafter(1.0, 0.0),
            all_ratios,
            above=True,
        )
    )
    return lines


def _only(chooses: Callable[[Case], bool]) -> Callable[[Case, Run], bool]:
    return lambda case, _: chooses(case)


def target_table(run: Run) -> list[str]:
    """Return the table of targets, a column for each thread count."""
    counts = sorted({result.case.threads for result in run.results})
    columns = [f"{threads_text([n])}: worst (median)" for n in counts]
    lines = header("", "to reach", *columns, "holds")
    for target in targets():
        values = target.values(run)
        cells = [
            _worst_and_median(target, [v for v in values if v[0].threads == n]) for n in counts
        ]
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


def missed_lines(run: Run) -> list[str]:
    """Return a line for each target that does not hold everywhere, with its worst cases."""
    lines = []
    for target in targets()[:-1]:  # the last one has a section of its own
        missed = target.misses(target.values(run))
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
    cpu = {(r["operation"], r["case"]): r["cpu"] for r in startup["rows"] if r["cache"] == "cold"}
    for name in (_SMALL, _LARGE):
        both = zip(cpu["training forward", name], cpu["backward", name], strict=True)
        cpu["training forward and backward", name] = [sum(times) for times in both]
    unit = statistics.median(cpu["numba's loop", _SMALL])
    lines = header("", "to reach", "median", "holds")
    for (operation, name), bound in _COMPILING.items():
        ratio = statistics.median(cpu[operation, name]) / unit
        holds = "**yes**" if ratio <= bound else "no"
        lines.append(row(f"{operation}, {name}", f"{bound:g}", f"{ratio:.2f}", holds))
    return [*lines, "", f"Numba's loop takes {unit:.2f} CPU seconds."]
