"""The drawing of ``nbbn demo``: learning curves, readable in colour and in black and white."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Without pyplot: no window system is looked for, and no state is left behind.
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nbbn.cli._experiment import GOAL, LEARNING_RATES, Outcome, Setting

# Blue and vermilion of Okabe and Ito's palette, which colour-blind readers can tell apart; in black
# and white the line (solid or dashed) and the marker (full or hollow) say the same.
_LOOKS: dict[str, dict[str, Any]] = {
    "with": {"color": "#0072B2", "linestyle": "-"},
    "without": {"color": "#D55E00", "linestyle": "--", "markerfacecolor": "white"},
}
_MARKERS = "os^Dv"


def make_figure(outcomes: Mapping[Setting, Outcome]) -> Figure:
    """Return the figure: usual initial weights on the left, scaled ones on the right."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    left.set_title("usual initial weights")
    right.set_title("first layer's initial weights x 100")
    left.set_ylabel("test accuracy (%)")
    for axes, scaled in ((left, False), (right, True)):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, 102)
        axes.set_yticks((0, 20, 40, 60, 80, 100 * GOAL, 100))
        axes.grid(color="0.9")
        axes.axhline(100 * GOAL, color="0.5", linestyle=":", linewidth=1)
        for name in _LOOKS:
            for number, learning_rate in enumerate(LEARNING_RATES):
                outcome = outcomes[Setting(learning_rate, name == "with", scaled)]
                _draw_curve(axes, outcome, name, number, f"learning rate {learning_rate:g}")
    # Below the axes, where it covers no curve.
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_curve(axes: Axes, outcome: Outcome, name: str, number: int, rate: str) -> None:
    percent = [100 * accuracy for accuracy in outcome.accuracies]
    axes.plot(
        percent,
        marker=_MARKERS[number % len(_MARKERS)],
        # Markers of curves that lie on each other should not.
        markevery=(number, len(LEARNING_RATES)),
        markersize=6,
        linewidth=1.5,
        label=f"{name} batch normalization, {rate}",
        **_LOOKS[name],
    )
    if outcome.diverged:
        end = len(percent) - 1, percent[-1]
        axes.plot(*end, marker="x", color="black", markersize=10)
        axes.annotate(f"diverged: {name}, {rate}", end, xytext=(8, 8 + 14 * number), textcoords="offset points")
