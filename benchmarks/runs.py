"""A recorded run, and its tables in Markdown: what the pages of docs/ are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.cases import ALL_OPERATIONS, STATISTICS, Case
from benchmarks.harness.implementations import BASELINE, LIMITS, UNADORNED
from benchmarks.harness.race import Result
from benchmarks.harness.report import from_json
from benchmarks.harness.shapes import Shape, format_shape
from nbbn.cli._bench_report import NOISY_RATIO, behind, format_ratio, format_seconds, timed_peers

_STORAGES = {"out": "with `out=`", "inplace": "in place"}


@dataclass(frozen=True)
class Run:
    """A recorded run: all results, the libraries in it, the largest cache in bytes."""

    results: list[Result]
    peers: list[str]
    cache: int

    def result(self, case: Case) -> Result | None:
        """Return the race of ``case``, if there was one."""
        return next((r for r in self.results if r.case == case), None)


def run_of(record: dict[str, Any]) -> Run:
    """Return what ``record`` holds."""
    results = from_json(record)
    kib = [int(cache["size"].rstrip("K")) for cache in record["machine"]["caches"]]
    return Run(results, timed_peers(results), max(kib, default=0) << 10)


def median(result: Result | None, name: str) -> float | None:
    """Return the median time of an implementation, if it was timed."""
    outcome = result.timed.get(name) if result is not None else None
    return outcome.median if outcome is not None else None


def peer_tables(results: Iterable[Result], *, limit: bool = True, level: str = "##") -> list[str]:
    """Return, for each operation and storage, a table of shapes and libraries."""
    groups: dict[tuple[str, str], dict[Shape, dict[int, Result]]] = {}
    for result in sorted(results, key=lambda r: ALL_OPERATIONS.index(r.case.operation)):
        case = result.case
        shapes = groups.setdefault((case.operation, case.storage), {})
        shapes.setdefault(case.shape, {})[case.threads] = result
    lines = []
    for (operation, storage), shapes in groups.items():
        found = timed_peers(r for races in shapes.values() for r in races.values())
        lines += [f"{level} {title(operation, storage)}", ""]
        references = {"of the limit": LIMITS[operation]} if limit else {}
        if operation in STATISTICS:
            references["of plain"] = UNADORNED
        lines += header("shape", "nbbn takes", *references, *found)
        for shape, races in shapes.items():
            ordered = [races[count] for count in sorted(races)]
            times = " / ".join(_time(result) for result in ordered)
            cells = [
                " / ".join(format_ratio(r.ratio(BASELINE, to=name)) for r in ordered) for name in references.values()
            ]
            cells += [_ratios([r.ratio(peer) for r in ordered]) for peer in found]
            lines.append(row(format_shape(shape), times, *cells))
        lines.append("")
    return lines[:-1]


def title(operation: str, storage: str) -> str:
    """Return a heading: what is done, and how the arrays are stored."""
    words = [_STORAGES.get(word, word) for word in storage.split(" ")] if storage else []
    named = f"`{operation}`" if "_" in operation else operation.replace("+", " + ").capitalize()
    return ", ".join([named, " ".join(words).replace(" with `", ", with `")] if words else [named])


def _time(result: Result) -> str:
    found = median(result, BASELINE)
    return "-" if found is None else format_seconds(found)


def _ratios(ratios: Sequence[float | None]) -> str:
    if all(ratio is None for ratio in ratios):
        return "-"
    shown = [format_ratio(ratio) for ratio in ratios]
    return " / ".join(
        f"**{text}**" if ratio is not None and ratio < 1 else text for ratio, text in zip(ratios, shown, strict=True)
    )


def not_fastest(run: Run) -> list[str]:
    """Return a table of every case in which a library is faster than nbbn."""
    compared = sum(r.ratio(peer) is not None for r in run.results for peer in run.peers)
    found = [(faster, r) for r in run.results if (faster := behind(r))]
    if not found:
        return [f"Nowhere: nbbn is the fastest in all {compared} comparisons."]
    found.sort(key=lambda each: min(each[0].values()))
    count = sum(len(faster) for faster, _ in found)
    lines = [
        f"In {count} of {compared} comparisons a library took less time. The number is its time over nbbn's, and in "
        "parentheses the same by the fastest rounds: where that is above 1, the machine was disturbed.",
        "",
        *header("case", "faster libraries"),
    ]
    for faster, result in found:
        ratios = ((peer, ratio, result.ratio(peer, "minimum")) for peer, ratio in faster.items())
        cells = (f"{peer} {ratio:.2f} ({format_ratio(least)})" for peer, ratio, least in ratios)
        lines.append(row(result.case.label, ", ".join(cells)))
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
    timed = [o for r in run.results for o in r.timed.values()]
    noisy = sum(o.median > NOISY_RATIO * o.minimum for o in timed)
    return f"{noisy} of {len(timed)} medians are over {NOISY_RATIO} times their minimum."


def header(*cells: str) -> list[str]:
    """Return the first two lines of a table."""
    return [row(*cells), row(*["---"] * len(cells))]


def row(*cells: str) -> str:
    """Return a line of a table."""
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def threads_text(counts: Sequence[int], between: str = "") -> str:
    """Return thread counts as text."""
    return f"{between.join(map(str, counts))} thread{'s' if list(counts) != [1] else ''}"
