"""The drawing of races: times as multiples of the yardstick's, beside the limit line at 1.

Readable in black and white: each library has its grey and its hatch, and its name at its bar.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

# Without pyplot: no window system is looked for, and no state is left behind.
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbbn._bench.problem import format_shape, format_threads
from nbbn._bench.race import BASELINE, Result
from nbbn.cli._bench_table import LIBRARIES, format_ratio

_STYLES: dict[str, dict[str, Any]] = {
    "nbbn": {"facecolor": "black"},
    "numpy": {"facecolor": "0.85"},
    "torch": {"facecolor": "0.55"},
    "onnxruntime": {"facecolor": "white", "hatch": "////"},
    "jax": {"facecolor": "white", "hatch": "||||"},
    "openvino": {"facecolor": "white", "hatch": "xxxx"},
    "sklearn": {"facecolor": "white", "hatch": "----"},
}

# In units of a bar's height, and inches.
_GAP = 0.9
_HEAD = 1.5
_BAR_INCHES = 0.155
_PANEL_INCHES = 0.55
_WIDTH_INCHES = 11.0

_TICKS = (0.25, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class _Group(NamedTuple):
    """The bars of one race."""

    label: str
    bars: list[tuple[str, float]]

    @property
    def rows(self) -> int:
        # A label of several lines needs a group of their height.
        return max(len(self.bars), 1 + self.label.count("\n"))


def make_figure(results: Sequence[Result]) -> Figure:
    """Return the figure: a panel for each operation, two in a row.

    Raises
    ------
    ValueError
        If no race timed both nbbn and the yardstick of its operation.
    """
    panels = _panels(results)
    if not panels:
        raise ValueError(f"nothing to draw: no race timed {BASELINE} and its limit")
    pairs = [panels[i : i + 2] for i in range(0, len(panels), 2)]
    heights = [max(sum(group.rows + _GAP for group in groups) for _, groups in pair) for pair in pairs]
    inches = [_BAR_INCHES * (height + _HEAD) + _PANEL_INCHES for height in heights]
    figure = Figure(figsize=(_WIDTH_INCHES, sum(inches) + 0.3), layout="constrained")
    grid = figure.add_gridspec(len(pairs), 2, height_ratios=inches)
    for row, pair in enumerate(pairs):
        for column, (operation, groups) in enumerate(pair):
            axes = figure.add_subplot(grid[row, column if len(panels) > 1 else slice(None)])
            axes.set_title(f"{operation}: times the limit", fontsize=10, loc="left")
            axes.set_ylim(heights[row] - _GAP / 2, -_HEAD)
            _draw(axes, groups)
    return figure


def _panels(results: Sequence[Result]) -> list[tuple[str, list[_Group]]]:
    """Return for each operation its groups."""
    threads = {result.case.threads for result in results}
    panels: dict[str, list[_Group]] = {}
    for result in results:
        case, ratios = result.case, {name: result.ratio_to_limit(name) for name in LIBRARIES}
        bars = [(name, ratio) for name, ratio in ratios.items() if ratio is not None]
        if ratios[BASELINE] is not None:
            count = format_threads(case.threads) if len(threads) > 1 else ""
            label = "\n".join(filter(None, (format_shape(case.shape), count, case.storage.replace(" ", "\n"))))
            panels.setdefault(case.operation, []).append(_Group(label, bars))
    return list(panels.items())


def _draw(axes: Axes, groups: Sequence[_Group]) -> None:
    ratios = [ratio for group in groups for _, ratio in group.bars]
    least, most = min(0.5, 0.8 * min(ratios)), max(2.0, max(ratios))
    axes.set_xscale("log")
    # The longest bar leaves room for its name.
    axes.set_xlim(least, most * (most / least) ** 0.45)
    places, y = [], 0.0
    for group in groups:
        places.append(y + (group.rows - 1) / 2)
        for i, (name, ratio) in enumerate(group.bars):
            _draw_bar(axes, y + i + (group.rows - len(group.bars)) / 2, name, ratio, least)
        y += group.rows + _GAP
    # White beneath the dashes: a line that is seen on black bars, too.
    axes.axvline(1.0, color="white", linewidth=1.8, zorder=3)
    axes.axvline(1.0, color="black", linewidth=1.2, linestyle=(0, (4, 2)), zorder=3)
    axes.annotate("limit", (1.0, -_HEAD), xytext=(3, 0), textcoords="offset points", fontsize=7, va="top")
    axes.set_yticks(places, [group.label for group in groups], fontsize=8)
    axes.tick_params(axis="y", length=0)
    ticks = [tick for tick in _TICKS if least <= tick <= most]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_bar(axes: Axes, y: float, name: str, ratio: float, left: float) -> None:
    axes.barh(y, ratio - left, left=left, height=0.82, edgecolor="black", linewidth=0.6, **_STYLES[name])
    axes.annotate(
        f"{name} {format_ratio(ratio)}",
        # Behind the limit line where the bar ends before it.
        (max(ratio, 1.0), y),
        xytext=(4, 0),
        textcoords="offset points",
        fontsize=7,
        va="center",
        fontweight="bold" if name == BASELINE else "normal",
    )
