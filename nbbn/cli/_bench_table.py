"""The tables of ``nbbn bench``: what to expect of this machine, within 100 columns."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

import nbbn
from nbbn._bench.problem import format_shape, format_threads
from nbbn._bench.race import BASELINE, Result

WIDTH = 100

LIBRARIES = (BASELINE, "numpy", "torch", "onnxruntime", "jax", "openvino", "sklearn")
"""In the order of tables; all others are yardsticks. Two of them are in runs of ``benchmarks/`` only."""

# Rounds of the same call that differ by more were disturbed.
NOISY_RATIO = 1.5

_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))

_EXPLANATION = (
    f"{BASELINE}: time of a call, median. of limit: that time over that of loops that only move "
    "as much memory; 1.00 is as fast as this machine can. The other columns: how many times "
    f"{BASELINE}'s time the library takes; < marks where it is the faster one."
)


def format_ratio(ratio: float | None) -> str:
    """Return a ratio with three digits, ``-`` for None."""
    if ratio is None:
        return "-"
    return f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits and its unit."""
    unit, scale = next((pair for pair in _UNITS if seconds >= pair[1]), _UNITS[-1])
    value = seconds / scale
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


def describe_versions(versions: dict[str, str]) -> str:
    # OpenVINO's goes on with the build, after a hyphen.
    short = {name: version.partition("-")[0] for name, version in sorted(versions.items())}
    return ", ".join(f"{name} {version}" for name, version in short.items())


def overview_lines(results: Sequence[Result], versions: dict[str, str]) -> list[str]:
    """Return a table for each operation, thread count and storage, and what it says."""
    peers = timed_peers(results)
    config = nbbn.config()
    libraries = describe_versions({name: version for name, version in versions.items() if name != "limit"})
    machine = f"{config['cpu']}, {config['simd_bits']} bits; Python {config['python']}, {libraries}"
    groups: dict[str, list[Result]] = {}
    for result in results:
        case = result.case
        title = ", ".join(filter(None, (case.operation, format_threads(case.threads), case.storage)))
        groups.setdefault(title, []).append(result)
    lines = [*_wrap(machine), ""]
    for title, group in groups.items():
        lines += [title, *_table(group, peers), ""]
    lines += [*_wrap(_EXPLANATION), ""]
    return [*lines, *_behind(results, peers), *_noise(results), *_troubles(results)]


def timed_peers(results: Iterable[Result]) -> list[str]:
    """Return the libraries that were timed at least once, in the order of `LIBRARIES`."""
    found = {name for result in results for name in result.timed}
    return [name for name in LIBRARIES if name in found and name != BASELINE]


def behind(result: Result, peers: Iterable[str]) -> list[tuple[str, float]]:
    """Return the libraries that took less time than nbbn, the fastest first, and their ratios."""
    ratios = ((peer, result.ratio(peer)) for peer in peers)
    slower = [(peer, ratio) for peer, ratio in ratios if ratio is not None and ratio < 1]
    return sorted(slower, key=lambda pair: pair[1])


def _table(group: Sequence[Result], peers: Sequence[str]) -> list[str]:
    columns = [peer for peer in peers if any(peer in result.timed for result in group)]
    rows = [["shape", BASELINE, "of limit", *(f"{peer}  " for peer in columns)]]
    for result in group:
        timed = result.timed.get(BASELINE)
        time = format_seconds(timed.median) if timed else "failed"
        limit = format_ratio(result.ratio_to_limit(BASELINE))
        ratios = [result.ratio(peer) for peer in columns]
        # A space where there is no mark, so that the digits stay in line.
        marked = [format_ratio(r) + (" <" if r is not None and r < 1 else "  ") for r in ratios]
        rows.append([format_shape(result.case.shape), time, limit, *marked])
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows]


def _behind(results: Sequence[Result], peers: Sequence[str]) -> list[str]:
    compared = sum(r.ratio(peer) is not None for r in results for peer in peers)
    if not compared:
        return [f"nothing to compare {BASELINE} with"]
    slower = [(r, flags) for r in results if (flags := behind(r, peers))]
    count = sum(len(flags) for _, flags in slower)
    if not count:
        return [f"{BASELINE} is the fastest in all {compared} comparisons."]
    lines = [f"{BASELINE} is not the fastest in {count} of {compared} comparisons:"]
    for result, flags in slower:
        found = ", ".join(f"{peer} {format_ratio(ratio)}" for peer, ratio in flags)
        lines += _wrap(f"{result.case.label}: {found}", "  ")
    return lines


def _noise(results: Sequence[Result]) -> list[str]:
    timed = [outcome for result in results for outcome in result.timed.values()]
    noisy = sum(o.median > NOISY_RATIO * o.minimum for o in timed)
    # On a quiet machine one in a hundred was seen.
    if 20 * noisy <= len(timed):
        return []
    return _wrap(
        f"{noisy} of {len(timed)} medians are over {NOISY_RATIO} times the minimum: something else "
        "was running, so measure again before you rely on them."
    )


def _troubles(results: Sequence[Result]) -> list[str]:
    """Return what failed, and which libraries are not there."""
    found = []
    for result in results:
        for name, outcome in result.outcomes.items():
            if outcome.status == "failed":
                found.append(f"{name} failed ({result.case.label}): {outcome.cause}")
            elif outcome.status == "skipped" and outcome.cause.endswith("not installed"):
                found.append(f"{name} left out: {outcome.cause}")
    return [line for text in dict.fromkeys(found) for line in _wrap(text)]


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=2 * indent, break_on_hyphens=False)
