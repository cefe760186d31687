"""Results as a table for people, and as JSON for programs."""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks.implementations import BASELINE
from benchmarks.machine import describe_machine
from benchmarks.race import Outcome, Race, Result
from benchmarks.shapes import format_shape

JSON_FORMAT = 1

# Rounds of the same call that differ by more were disturbed.
NOISY_RATIO = 1.5

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits and its unit."""
    unit, scale = next((pair for pair in _UNITS if seconds >= pair[1]), _UNITS[-1])
    value = seconds / scale
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


def summary_lines(results: Sequence[Result], versions: dict[str, str]) -> list[str]:
    """Return the table of medians and ratios, the means, and where nbbn is not ahead."""
    if not results:
        return ["no race was run"]
    names = list(dict.fromkeys(name for result in results for name in result.outcomes))
    peers = [name for name in names if name != BASELINE]
    header = ["operation", "shape", "threads", "storage", *names]
    header += [f"{peer}/{BASELINE}" for peer in peers]
    rows = [[*_case_cells(r), *_time_cells(r, names), *_ratio_cells(r, peers)] for r in results]
    if not any(result.case.storage for result in results):
        for row in (header, *rows):
            del row[3]
    lines = ["versions: " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items()))]
    lines += [f"medians of seconds per call; a ratio above 1 means that {BASELINE} is faster", ""]
    lines += [*_align(header, rows), "", *_means(results, peers), *_not_ahead(results, peers)]
    return [*lines, *_noise(results), *_troubles(results)]


def as_json(results: Iterable[Result], race: Race) -> dict[str, Any]:
    """Return everything that was measured, where and with what."""
    return {
        "format": JSON_FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "versions": dict(sorted(race.versions.items())),
        "settings": {"rounds": race.rounds, "seconds": race.seconds, "baseline": BASELINE},
        "results": [
            result.case.to_dict() | {"implementation": name} | _outcome_fields(outcome)
            for result in results
            for name, outcome in result.outcomes.items()
        ],
    }


def _outcome_fields(outcome: Outcome) -> dict[str, Any]:
    if outcome.status != "timed":
        # The last line: a whole traceback would carry this machine's paths.
        return {"status": outcome.status, "reason": outcome.reason.splitlines()[-1]}
    return {
        "status": outcome.status,
        "median": outcome.median,
        "minimum": outcome.minimum,
        "loops": outcome.loops,
        "rounds": len(outcome.durations),
        "durations": outcome.durations,
    }


def _case_cells(result: Result) -> list[str]:
    case = result.case
    return [case.operation, format_shape(case.shape), str(case.threads), case.storage]


def _time_cells(result: Result, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        outcome = result.outcomes.get(name, Outcome("skipped"))
        timed = outcome.status == "timed"
        cells.append(format_seconds(outcome.median) if timed else outcome.status)
    return cells


def _ratio_cells(result: Result, peers: Sequence[str]) -> list[str]:
    ratios = [result.ratio(peer) for peer in peers]
    return ["-" if r is None else f"{r:.2f}" + ("" if r > 1 else " <") for r in ratios]


def _align(header: list[str], rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    ruled = [header, ["-" * width for width in widths], *rows]
    # Names to the left, numbers to the right.
    return [
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in ruled
    ]


def _means(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    lines = []
    for operation in dict.fromkeys(result.case.operation for result in results):
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
    timed = [o for r in results for o in r.outcomes.values() if o.status == "timed"]
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
            if outcome.status != "timed":
                reasons.setdefault((name, outcome.status, outcome.reason), result.case.label)
    lines = []
    for (name, status, reason), label in reasons.items():
        place = f" ({label})" if status == "failed" else ""
        lines.append(f"{name} {status}{place}: {reason}")
    return lines
