"""Results as a table for people, and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from benchmarks.harness.cases import Case
from benchmarks.harness.implementations import BASELINE, IMPLEMENTATIONS, LIMITS
from benchmarks.harness.machine import describe_machine
from benchmarks.harness.race import Kept, Outcome, Race, Result
from benchmarks.harness.shapes import format_shape
from nbbn.cli._bench_report import NOISY_RATIO, format_seconds

JSON_FORMAT = 1


def summary_lines(results: Sequence[Result], versions: dict[str, str]) -> list[str]:
    """Return the tables of medians and ratios, the means, and where nbbn is not ahead."""
    if not results:
        return ["no race was run"]
    peers = _peers(results)
    lines = ["versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())), ""]
    for operation in _operations(results):
        lines += _tables([r for r in results if r.case.operation == operation])
    lines += [*_means(results, peers), *_not_ahead(results, peers)]
    return [*lines, *_noise(results), *_troubles(results)]


def as_json(results: Iterable[Result], race: Race) -> dict[str, Any]:
    """Return everything that was measured, where and with what."""
    return {
        "format": JSON_FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": dict(sorted(race.versions.items())),
        "settings": {
            "rounds": race.rounds,
            "seconds": race.seconds,
            "baseline": BASELINE,
            "limits": LIMITS,
        },
        "results": [
            result.case.to_dict() | {"implementation": name} | _outcome_fields(outcome)
            for result in results
            for name, outcome in result.outcomes.items()
        ],
    }


def from_json(record: dict[str, Any]) -> list[Result]:
    """Return the results in ``record``, which `as_json` or `condensed` made."""
    names = [f.name for f in fields(Case)]
    results: dict[Case, Result] = {}
    for entry in record["results"]:
        case = Case.from_dict({name: entry[name] for name in names if name in entry})
        result = results.setdefault(case, Result(case, {}))
        durations = entry.get("durations", [])
        common = (
            entry.get("status", "timed"),
            entry.get("reason", ""),
            entry.get("loops", 1),
            durations,
            entry.get("note", ""),
        )
        is_condensed = "median" in entry and not durations
        result.outcomes[entry["implementation"]] = (
            Kept(*common, entry["median"], entry["minimum"]) if is_condensed else Outcome(*common)
        )
    return list(results.values())


def condensed(record: dict[str, Any]) -> dict[str, Any]:
    """Return ``record`` without each round's duration, and without what was skipped."""
    usual = {f.name: f.default for f in fields(Case)}
    entries = []
    for result in from_json(record):
        case = result.case.to_dict()
        if result.case.params == result.case.computed:
            del case["params"]
        case = {name: value for name, value in case.items() if value != usual[name]}
        for name, outcome in result.outcomes.items():
            entry = case | {"implementation": name}
            if outcome.status == "timed":
                entries.append(entry | {"median": outcome.median, "minimum": outcome.minimum})
            elif outcome.status == "failed":
                entries.append(entry | {"status": "failed", "reason": outcome.reason})
            if outcome.note:
                entries[-1]["note"] = outcome.note
    return record | {"results": entries}


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    if outcome.status != "timed":
        return {"status": outcome.status, "reason": outcome.cause}
    found = {
        "status": outcome.status,
        "median": outcome.median,
        "minimum": outcome.minimum,
        "loops": outcome.loops,
        "rounds": len(outcome.durations),
        "durations": outcome.durations,
    }
    return found | ({"note": outcome.note} if outcome.note else {})


def _operations(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.case.operation for result in results))


def _timed(results: Sequence[Result]) -> list[str]:
    """Return the implementations that were timed at least once."""
    names = dict.fromkeys(name for result in results for name in result.outcomes)
    return [n for n in names if any(n in r.timed for r in results)]


def _is_yardstick(name: str) -> bool:
    return name in IMPLEMENTATIONS and IMPLEMENTATIONS[name].is_yardstick


def _peers(results: Sequence[Result]) -> list[str]:
    return [n for n in _timed(results) if n != BASELINE and not _is_yardstick(n)]


def _tables(results: Sequence[Result]) -> list[str]:
    """Return the tables of one operation: times, peers / nbbn, all / the limit."""
    operation, names, peers = results[0].case.operation, _timed(results), _peers(results)
    limit = LIMITS[operation]
    times = [[_time_cell(r, name) for name in names] for r in results]
    lines = [f"{operation}: medians of seconds per call", *_table(results, names, times)]
    if peers and BASELINE in names:
        ratios = [[_ratio_cell(r.ratio(peer), "<") for peer in peers] for r in results]
        lines += [f"{operation}: times {BASELINE}'s; above 1, {BASELINE} is faster"]
        lines += _table(results, [f"{peer}/{BASELINE}" for peer in peers], ratios)
    if limit in names:
        measured = [name for name in (BASELINE, *peers) if name in names]
        cells = [[*(_ratio_cell(r.ratio_to_limit(n)) for n in measured), _note(r, limit)] for r in results]
        lines += [f"{operation}: times the limit, {limit}"]
        lines += _table(results, [*(f"{name}/limit" for name in measured), "limit by"], cells)
    return lines


def _table(results: Sequence[Result], columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    header = ["shape", "threads", "storage", *columns]
    rows = [[*_case_cells(r), *row] for r, row in zip(results, cells, strict=True)]
    if not any(result.case.storage for result in results):
        for line in (header, *rows):
            del line[2]
    return [*_align(header, rows), ""]


def _case_cells(result: Result) -> list[str]:
    case = result.case
    return [format_shape(case.shape), str(case.threads), case.storage]


def _time_cell(result: Result, name: str) -> str:
    outcome = result.outcomes.get(name, Outcome("skipped"))
    return format_seconds(outcome.median) if outcome.status == "timed" else outcome.status


def _ratio_cell(ratio: float | None, flag: str = "") -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2f}" + (f" {flag}" if flag and ratio <= 1 else "")


def _note(result: Result, name: str) -> str:
    outcome = result.outcomes.get(name)
    return (outcome.note if outcome else "") or "-"


def _align(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    ruled = [header, ["-" * width for width in widths], *rows]
    # The shape to the left, the rest to the right.
    return [
        "  ".join(
            cell.ljust(width) if i < 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in ruled
    ]


def _means(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    lines = []
    for operation in _operations(results):
        means = []
        for peer in peers:
            chosen = (r.ratio(peer) for r in results if r.case.operation == operation)
            logs = [math.log(ratio) for ratio in chosen if ratio is not None]
            if logs:
                means.append(f"{peer}/{BASELINE} {math.exp(sum(logs) / len(logs)):.2f}")
        if means:
            lines.append(f"geometric mean of {operation}: " + ", ".join(means))
    return lines


def _not_ahead(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    """Return the cases with a ratio of medians of at most 1; the minima tell noise from truth."""
    compared, slower, behind = 0, 0, []
    for result in results:
        flags = []
        for peer in peers:
            median, minimum = result.ratio(peer), result.ratio(peer, "minimum")
            if median is None or minimum is None:
                continue
            compared += 1
            if median <= 1:
                flags.append(f"{peer}/{BASELINE} {median:.2f} (minima {minimum:.2f})")
        if flags:
            behind.append(f"  < {result.case.label}: {', '.join(flags)}")
        slower += len(flags)
    if not compared:
        return [f"nothing to compare {BASELINE} with"]
    if not behind:
        return [f"{BASELINE} is ahead in all {compared} comparisons"]
    return [f"{BASELINE} is not ahead in {slower} of {compared} comparisons:", *behind]


def _noise(results: Sequence[Result]) -> list[str]:
    timed = [o for r in results for o in r.timed.values()]
    noisy = [o for o in timed if o.median > NOISY_RATIO * o.minimum]
    if not noisy:
        return []
    count = f"{len(noisy)} of {len(timed)} medians are over {NOISY_RATIO} times the minimum"
    return [f"{count}: something else was running, or rounds were few"]


def _troubles(results: Sequence[Result]) -> list[str]:
    """Return each reason for a missing number once, failures with the first case they hit."""
    reasons: dict[tuple[str, str, str], str] = {}
    for result in results:
        for name, outcome in result.outcomes.items():
            # A yardstick is for its own operations.
            if outcome.status == "failed" or (outcome.status == "skipped" and not _is_yardstick(name)):
                reasons.setdefault((name, outcome.status, outcome.reason), result.case.label)
    lines = []
    for (name, status, reason), label in reasons.items():
        place = f" ({label})" if status == "failed" else ""
        lines.append(f"{name} {status}{place}: {reason}")
    return lines
