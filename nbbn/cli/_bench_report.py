"""What ``nbbn bench`` shows: tables of what to expect of this machine, within 100 columns, and a drawing."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import nbbn
from nbbn._bench.problem import format_shape, format_threads
from nbbn._bench.race import BASELINE, Result
from nbbn.cli._files import new_figure

WIDTH = 100
NOISY_RATIO = 1.5  # rounds of the same call that differ by more were disturbed

_EXPLANATION = (
    f"{BASELINE}: time of a call, median. of limit: that time over that of loops that only move "
    "as much memory; 1.00 is as fast as this machine can. The other columns: how many times "
    f"{BASELINE}'s time the library takes; < marks where it is the faster one."
)

# Readable in black and white: each library has its grey and its hatch, and its name at its bar.
_STYLES: dict[str, dict[str, Any]] = {
    "nbbn": {"facecolor": "black"},
    "numpy": {"facecolor": "0.85"},
    "torch": {"facecolor": "0.55"},
    "onnxruntime": {"facecolor": "white", "hatch": "////"},
    "jax": {"facecolor": "white", "hatch": "||||"},
    "openvino": {"facecolor": "white", "hatch": "xxxx"},
    "sklearn": {"facecolor": "white", "hatch": "----"},
}
LIBRARIES = (*_STYLES,)
"""In the order of tables; all others are yardsticks. Two of them are in runs of ``benchmarks/`` only."""

# In units of a bar's height, and inches.
_GAP = 0.9
_HEAD = 1.5
_BAR_INCHES = 0.155
_PANEL_INCHES = 0.55
_WIDTH_INCHES = 11.0

Bars = dict[str, dict[str, float]]  # what a race is labelled by -> library -> its ratio to the limit

_TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def format_ratio(ratio: float | None) -> str:
    """Return a ratio with three digits, ``-`` for None."""
    return "-" if ratio is None else f"{ratio:.{2 if ratio < 9.995 else 1 if ratio < 99.95 else 0}f}"


def format_seconds(seconds: float) -> str:
    """Return a duration with three digits and its unit."""
    unit, scale = ("s", 1.0) if seconds >= 1.0 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    value = seconds / scale
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{digits}f} {unit}"


def overview_lines(results: Sequence[Result], versions: dict[str, str]) -> list[str]:
    """Return a table for each operation and thread count, and what it says."""
    config = nbbn.config()
    libraries = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()) if name != "limit")
    machine = f"{config['cpu']}, {config['simd_bits']} bits; Python {config['python']}, {libraries}"
    lines = [*_wrap(machine), ""]
    for title, group in groupby(results, lambda r: f"{r.case.operation}, {format_threads(r.case.threads)}"):
        lines += [title, *_table(list(group)), ""]
    return [*lines, *_wrap(_EXPLANATION), "", *_behind(results), *_noise(results), *_troubles(results)]


def timed_peers(results: Iterable[Result]) -> list[str]:
    """Return the libraries that were timed at least once, in the order of `LIBRARIES`."""
    found = {name for result in results for name in result.timed}
    return [name for name in LIBRARIES if name in found and name != BASELINE]


def behind(result: Result) -> dict[str, float]:
    """Return the libraries that took less time than nbbn, the fastest first, and their ratios."""
    ratios = {name: ratio for name in LIBRARIES if (ratio := result.ratio(name)) is not None and ratio < 1}
    return dict(sorted(ratios.items(), key=lambda pair: pair[1]))


def _table(group: Sequence[Result]) -> list[str]:
    columns = timed_peers(group)
    rows = [["shape", BASELINE, "of limit", *(f"{peer}  " for peer in columns)]]
    for result in group:
        timed = result.timed.get(BASELINE)
        time = format_seconds(timed.median) if timed else "failed"
        faster = behind(result)
        # A space where there is no mark, so that the digits stay in line.
        marked = [format_ratio(result.ratio(peer)) + (" <" if peer in faster else "  ") for peer in columns]
        rows.append([format_shape(result.case.shape), time, format_ratio(result.ratio_to_limit(BASELINE)), *marked])
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]).rstrip() for row in rows]


def _behind(results: Sequence[Result]) -> list[str]:
    compared = sum(result.ratio(peer) is not None for result in results for peer in timed_peers([result]))
    if not compared:
        return [f"nothing to compare {BASELINE} with"]
    found = {result.case.label: faster for result in results if (faster := behind(result))}
    if not found:
        return [f"{BASELINE} is the fastest in all {compared} comparisons."]
    lines = [f"{BASELINE} is not the fastest in {sum(map(len, found.values()))} of {compared} comparisons:"]
    for label, faster in found.items():
        ratios = ", ".join(f"{name} {format_ratio(ratio)}" for name, ratio in faster.items())
        lines += _wrap(f"{label}: {ratios}", "  ")
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
            elif outcome.cause.endswith("not installed"):
                found.append(f"{name} left out: {outcome.cause}")
    return [line for text in dict.fromkeys(found) for line in _wrap(text)]


def _wrap(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=2 * indent, break_on_hyphens=False)


def make_figure(results: Sequence[Result]) -> Any:
    """Return a figure of times as multiples of the yardstick's: a panel for each operation, two in a row.

    It is a ValueError if no race timed both nbbn and the yardstick.
    """
    threads = {result.case.threads for result in results}
    panels: dict[str, Bars] = {}
    for result in results:
        ratios = {name: ratio for name in LIBRARIES if (ratio := result.ratio_to_limit(name)) is not None}
        if BASELINE in ratios:
            count = f"\n{format_threads(result.case.threads)}" if len(threads) > 1 else ""
            panels.setdefault(result.case.operation, {})[format_shape(result.case.shape) + count] = ratios
    if not panels:
        raise ValueError(f"nothing to draw: no race timed {BASELINE} and its limit")
    heights = [sum(_rows(*bars) + _GAP for bars in races.items()) for races in panels.values()]
    heights = [max(heights[i : i + 2]) for i in range(0, len(heights), 2)]  # of rows
    inches = [_BAR_INCHES * (height + _HEAD) + _PANEL_INCHES for height in heights]
    figure = new_figure(_WIDTH_INCHES, sum(inches) + 0.3)
    grid = figure.add_gridspec(len(heights), min(2, len(panels)), height_ratios=inches)
    for number, (operation, races) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(number, 2)])
        axes.set_title(f"{operation}: times the limit", fontsize=10, loc="left")
        axes.set_ylim(heights[number // 2] - _GAP / 2, -_HEAD)
        _draw(axes, races)
    return figure


def _rows(label: str, ratios: Mapping[str, float]) -> int:
    """Return the height of the bars of a race: at least that of the label's lines."""
    return max(len(ratios), 1 + label.count("\n"))


def _draw(axes: Any, races: Bars) -> None:
    every = [ratio for ratios in races.values() for ratio in ratios.values()]
    least, most = min(0.5, 0.8 * min(every)), max(2.0, max(every))
    axes.set_xscale("log")
    # The longest bar leaves room for its name.
    axes.set_xlim(least, most * (most / least) ** 0.45)
    write = partial(axes.annotate, textcoords="offset points", fontsize=7)
    places, y = [], 0.0
    for label, ratios in races.items():
        rows = _rows(label, ratios)
        places.append(y + (rows - 1) / 2)
        for i, (name, ratio) in enumerate(ratios.items()):
            place = y + i + (rows - len(ratios)) / 2
            axes.barh(place, ratio - least, 0.82, least, edgecolor="black", linewidth=0.6, **_STYLES[name])
            weight = "bold" if name == BASELINE else "normal"
            # Behind the limit line where the bar ends before it.
            end = max(ratio, 1.0), place
            write(f"{name} {format_ratio(ratio)}", end, xytext=(4, 0), va="center", fontweight=weight)
        y += rows + _GAP
    # White beneath the dashes: a line that is seen on black bars, too.
    axes.axvline(1.0, color="white", linewidth=1.8, zorder=3)
    axes.axvline(1.0, color="black", linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
    write("limit", (1.0, -_HEAD), xytext=(3, 0), va="top")
    axes.set_yticks(places, list(races), fontsize=8)
    axes.tick_params(axis="y", length=0)
    ticks = [tick for tick in _TICKS if least <= tick <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right", "left"]].set_visible(False)
