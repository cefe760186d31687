"""docs/performance.md and its picture, from a recorded run: ``python -m benchmarks.performance [FILE]``.

Record with ``python -m benchmarks.compare --record --json FILE`` and, for the first calls of a
process, ``python -m benchmarks.startup --json benchmarks/startup.json``. With ``FILE`` its medians and
minima are kept in ``benchmarks/recorded.json`` first. Every number of the page is computed here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.cases import ALL_OPERATIONS, STATISTICS, Case
from benchmarks.harness.implementations import BASELINE, LIMITS, UNADORNED
from benchmarks.harness.machine import describe_run
from benchmarks.harness.race import Result
from benchmarks.harness.report import from_json
from benchmarks.harness.shapes import Shape, format_shape
from benchmarks.table import ROOT, keep, write_readme
from nbbn.cli._bench_table import NOISY_RATIO, behind, format_ratio, format_seconds, timed_peers

STARTUP = ROOT / "benchmarks" / "startup.json"
PAGE = ROOT / "docs" / "performance.md"
PICTURE = ROOT / "docs" / "images" / "performance.svg"

# Below, a call costs as much as the memory: small calls have lines of their own.
LIMIT_BYTES = 64 << 10
SMALL: tuple[Shape, ...] = ((1, 64), (32, 256), (128, 256))
_WHY = """Why, as far as it is known: sums are taken in float64. A core widens and adds float32 values at 39 GB/s
where it reads its own cache at 110 (in a loop of the same form; 80 with all sums in float32), so whatever is small
enough to be read fast waits for arithmetic: above, that is moments, training and backward in the cache. Where a
channel has few values (batch 1, 7x7 images, 100,000 channels), each costs some 35 ns of its own, and inference works
out the coefficients of all channels in every call. Calls take some 3 us, against NumPy's 0.8 us an operation. Ratios
on two threads that the fastest rounds do not confirm (last column of the next table) are likely rounds in which the
machine gave a core to somebody else."""

WORST = 6  # cases shown of those that miss a target
SMALL_PEERS = ("numpy", "torch", "onnxruntime")
PICTURE_SHAPES: tuple[Shape, ...] = (
    (32, 64, 56, 56),
    (32, 1024, 14, 14),
    (8, 2048, 7, 7),
    (65536, 256),
)

# What a target is about: pairs of a case and its value.
Values = list[tuple[Case, float]]


@dataclass(frozen=True)
class Run:
    """A recorded run: all results, the libraries in it, the largest cache in bytes."""

    results: list[Result]
    peers: list[str]
    cache: int

    def result(self, case: Case) -> Result | None:
        """Return the race of ``case``, if there was one."""
        return next((r for r in self.results if r.case == case), None)


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


def run_of(record: dict[str, Any]) -> Run:
    """Return what ``record`` holds."""
    results = from_json(record)
    kib = [int(cache["size"].rstrip("K")) for cache in record["machine"]["caches"]]
    return Run(results, timed_peers(results), max(kib, default=0) << 10)


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
        times = [_median(r, BASELINE) for r in (result, kept)]
        if times[0] is not None and times[1] is not None:
            found.append((case, times[0] / times[1]))
    return found


def over_bare_kernel(run: Run) -> Values:
    """Return the microseconds that a small inference call takes beyond the kernel's."""
    found = []
    for result in _small(run):
        times = [_median(result, name) for name in (BASELINE, "bare-kernel")]
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


def _median(result: Result | None, name: str) -> float | None:
    outcome = result.outcomes.get(name) if result is not None else None
    return outcome.median if outcome is not None and outcome.status == "timed" else None


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
    columns = [f"{_threads([n])}: worst (median)" for n in counts]
    lines = _header("", "to reach", *columns, "holds")
    for target in targets():
        values = target.values(run)
        cells = [
            _worst_and_median(target, [v for v in values if v[0].threads == n]) for n in counts
        ]
        lines.append(_row(target.name, target.reach, *cells, _holds(target, values)))
    return lines


def _holds(target: Target, values: Values) -> str:
    if not values:
        return "-"
    good = len(values) - len(target.misses(values))
    return f"**yes**, in {good}" if good == len(values) else f"in {good} of {len(values)}"


def _worst_and_median(target: Target, values: Values) -> str:
    if not values:
        return "-"
    median = statistics.median(value for _, value in values)
    return f"{target.show(target.worst(values))} ({target.show(median)})"


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


def startup_table(startup: dict[str, Any]) -> list[str]:
    """Return the first calls of a process beside their targets."""
    rows = {(r["operation"], r["case"], r["cache"]): r["seconds"] for r in startup["rows"]}
    medians = {key: statistics.median(seconds) for key, seconds in rows.items()}
    imports = [medians["import", name, ""] for name in (BASELINE, "numba")]
    found = [("`import nbbn` beyond `import numba`", imports[0] - imports[1], 0.05)]
    bounds = {"warm": 0.3, "cold": 3.0}
    for (operation, name, cache), seconds in medians.items():
        if cache:
            bound = bounds[cache] if operation == "inference" else None
            found.append((f"first call: {operation}, {name}, cache {cache}", seconds, bound))
    lines = _header("", "to reach", "median", "holds")
    for name, seconds, bound in found:
        reach = "-" if bound is None else format_seconds(bound)
        holds = "-" if bound is None else "**yes**" if seconds <= bound else "no"
        lines.append(_row(name, reach, f"{1e3 * seconds:.0f} ms", holds))
    return lines


def peer_tables(run: Run) -> list[str]:
    """Return, for each operation and storage, a table of shapes and libraries."""
    groups: dict[tuple[str, str], dict[Shape, dict[int, Result]]] = {}
    for result in sorted(run.results, key=lambda r: ALL_OPERATIONS.index(r.case.operation)):
        case = result.case
        shapes = groups.setdefault((case.operation, case.storage), {})
        shapes.setdefault(case.shape, {})[case.threads] = result
    lines = []
    for (operation, storage), shapes in groups.items():
        found = timed_peers(r for races in shapes.values() for r in races.values())
        lines += [f"### {_title(operation, storage)}", ""]
        references = {"of the limit": LIMITS[operation]}
        if operation in STATISTICS:
            references["of plain"] = UNADORNED
        lines += _header("shape", "nbbn takes", *references, *found)
        for shape, races in shapes.items():
            ordered = [races[count] for count in sorted(races)]
            times = " / ".join(_time(result) for result in ordered)
            cells = [
                " / ".join(format_ratio(r.ratio_to(BASELINE, name)) for r in ordered)
                for name in references.values()
            ]
            cells += [_ratios([r.ratio(peer) for r in ordered]) for peer in found]
            lines.append(_row(format_shape(shape), times, *cells))
        lines.append("")
    return lines[:-1]


def _title(operation: str, storage: str) -> str:
    return f"{operation.capitalize()}, {storage}" if storage else operation.capitalize()


def _time(result: Result) -> str:
    median = _median(result, BASELINE)
    return "-" if median is None else format_seconds(median)


def _ratios(ratios: Sequence[float | None]) -> str:
    if all(ratio is None for ratio in ratios):
        return "-"
    shown = [format_ratio(ratio) for ratio in ratios]
    return " / ".join(
        f"**{text}**" if ratio is not None and ratio < 1 else text
        for ratio, text in zip(ratios, shown, strict=True)
    )


def not_fastest(run: Run) -> list[str]:
    """Return a table of every comparison that nbbn loses."""
    compared = sum(r.ratio(peer) is not None for r in run.results for peer in run.peers)
    found = [(ratio, peer, r) for r in run.results for peer, ratio in behind(r, run.peers)]
    if not found:
        return [f"Nowhere: nbbn is the fastest in all {compared} comparisons."]
    found.sort(key=lambda each: each[0])
    lines = [
        f"In {len(found)} of {compared} comparisons a library took less time:",
        "",
        *_header("case", "library", "its time / nbbn's", "by the fastest rounds"),
    ]
    for ratio, peer, result in found:
        minimum = format_ratio(result.ratio(peer, "minimum"))
        lines.append(_row(result.case.label, peer, f"{ratio:.3f}", minimum))
    return lines


def failures(run: Run) -> list[str]:
    """Return what returned a wrong result or none."""
    found = [
        f"- {name}, {result.case.label}: {outcome.reason}"
        for result in run.results
        for name, outcome in result.outcomes.items()
        if outcome.status == "failed"
    ]
    return ["", "Not timed, since the check beforehand failed:", "", *found] if found else []


def noise(run: Run) -> str:
    """Return how many medians were disturbed."""
    timed = [o for r in run.results for o in r.outcomes.values() if o.status == "timed"]
    noisy = sum(o.median > NOISY_RATIO * o.minimum for o in timed)
    return f"{noisy} of {len(timed)} medians are over {NOISY_RATIO} times their minimum."


def _header(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def _threads(counts: Sequence[int], between: str = "") -> str:
    return f"{between.join(map(str, counts))} thread{'s' if list(counts) != [1] else ''}"


def page(record: dict[str, Any], startup: dict[str, Any] | None) -> str:
    """Return the text of docs/performance.md."""
    run = run_of(record)
    counts = sorted({result.case.threads for result in run.results})
    settings, machine = record["settings"], record["machine"]
    memory = f" {machine['memory_gib']} GB of memory." if machine["memory_gib"] else ""
    sections = [
        _INTRODUCTION,
        "## Measured on",
        f"{describe_run(machine, record['versions'])}.{memory}",
        f"{record['date'][:10]}; {_threads(counts, ' and ')}; {len(run.results)} races "
        f"of at most {settings['rounds']} rounds, each ended after five rounds and {settings['seconds']} seconds. "
        f"{noise(run)}",
        "## The targets",
        _TARGETS.format(cache=run.cache >> 20),
        "\n".join(target_table(run)),
        "### Where a target is missed",
        "\n".join(missed_lines(run)),
        _WHY,
    ]
    if startup is not None:
        sections += ["### A new process", _STARTUP, "\n".join(startup_table(startup))]
    sections += [
        "## Where nbbn is not the fastest",
        "\n".join(not_fastest(run) + failures(run)),
        "## The picture",
        _PICTURE.format(threads=_threads(counts[-1:])),
        "## Beside other libraries",
        _PEERS.format(threads=_threads(counts, " / ")),
        "\n".join(peer_tables(run)),
        "## Measure it again",
        _REPEAT,
    ]
    return "\n\n".join(section.strip() for section in sections) + "\n"


_INTRODUCTION = """
<!-- Written by benchmarks/performance.py from benchmarks/recorded.json: edit those. -->

# Performance

How fast nbbn was on one machine, as fractions of what its memory allows and beside other libraries. Yours
differs: `nbbn bench --quick` measures it in 1 to 3 minutes. [Benchmarks](benchmarks.md) says what is timed, and
how the yardsticks `copy-affine`, `read`, `two-trip` and `bare-kernel` are made.
"""

_TARGETS = """
Each number is nbbn's time over the yardstick's in the same race, medians, with the worst case and the median over all
cases; float32 unless said. "In the cache" means that all arrays of the call together fit the largest cache, {cache} MB.
Training and backward write into arrays that are kept, as the yardstick does. "Holds" says in how many of the cases, and
`-` is what was not recorded.
"""

_STARTUP = """
Seconds in a process that has just started, medians over fresh processes. "Cold" means that nothing was compiled before.
"""

_PICTURE = """
![Times of nbbn and other libraries as multiples of the limit, four shapes an operation](images/performance.svg)

Plain calls with new results, {threads}. The axis is logarithmic, and the dashed line is the yardstick. Less
than 1 is possible in training and backward, whose yardstick reads everything twice from memory.
"""

_PEERS = """
How many times nbbn's time each library takes, on {threads}: 2 means that nbbn is twice as fast; **bold** that
the library is faster. "Of the limit" is nbbn's time over the yardstick's.
"""

_REPEAT = """
```console
pip install ".[all]" --group bench
python -m benchmarks.compare --record --json FILE
python -m benchmarks.startup --json benchmarks/startup.json
python -m benchmarks.performance FILE
```

The last command keeps the medians in `benchmarks/recorded.json`, and writes this page, its picture and the table of the
README. Leave the machine alone meanwhile. Trust ratios within one run, not times of two.
"""


def draw(record: dict[str, Any], path: Path) -> None:
    """Write the picture: the larger thread count, plain calls, a few shapes."""
    # Only where it is drawn: the test of the page does without matplotlib.
    import matplotlib

    from nbbn.cli._bench_plot import make_figure

    results = run_of(record).results
    threads = max(result.case.threads for result in results)
    chosen = [
        result
        for result in results
        if result.case.threads == threads
        and result.case.shape in PICTURE_SHAPES
        and not result.case.storage
    ]
    path.parent.mkdir(exist_ok=True)
    # The same file for the same numbers; text as text takes a sixth of the bytes of its outlines.
    with matplotlib.rc_context({"svg.hashsalt": "nbbn", "svg.fonttype": "none"}):
        make_figure(chosen).savefig(path, metadata={"Date": None})


def read_startup() -> dict[str, Any] | None:
    """Return the recorded first calls, if there are any."""
    return json.loads(STARTUP.read_text("utf-8")) if STARTUP.is_file() else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite page, picture and the README's table from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.performance", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    parser.add_argument("--page", type=Path, default=PAGE, help="where to write the page")
    options = parser.parse_args(arguments)
    record = keep(options.file)
    picture = options.page.parent / "images" / PICTURE.name
    try:
        draw(record, picture)
    except ValueError as error:  # a run without the shapes of the picture or without yardsticks
        parser.error(f"{error} (record with benchmarks.compare --record)")
    if options.page == PAGE:
        write_readme(record)
    options.page.write_text(page(record, read_startup()), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
