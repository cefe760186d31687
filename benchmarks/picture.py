"""The README's picture of the speed-ups: ``python -m benchmarks.picture`` draws the recorded run, light and dark."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.table import OPERATIONS, ROOT, keep, plain_results, ratios

FILES = {theme: ROOT / "docs" / "images" / f"speed-{theme}.svg" for theme in ("light", "dark")}
_TEXT = {"light": "#1f2328", "dark": "#e6edf3"}
_PEERS = {
    "torch": "#d55e00",
    "numpy": "#0072b2",
}  # Okabe and Ito's colours, which most eyes tell apart
_LABELS = {"torch": "PyTorch", "numpy": "NumPy"}


def mean_ratio(results: list[dict[str, Any]], operation: str, peer: str, images: bool) -> float:
    """Return the geometric mean of peer / nbbn on one thread."""
    found = ratios(results, operation, 1, peer, images)
    return math.exp(sum(map(math.log, found)) / len(found))


def draw(record: dict[str, Any], theme: str, path: Path) -> None:
    """Write the bars: how many times faster nbbn is than each peer, operation by operation."""
    results, colour = plain_results(record), _TEXT[theme]
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, images, title in (
        (left, True, "images (N, C, H, W)"),
        (right, False, "tables (N, C)"),
    ):
        for shift, (peer, paint) in zip((-0.2, 0.2), _PEERS.items(), strict=True):
            places = [place + shift for place in range(len(OPERATIONS))]
            values = [mean_ratio(results, operation, peer, images) for operation in OPERATIONS]
            bars = axes.barh(places, values, 0.36, color=paint, label=_LABELS[peer])
            axes.bar_label(bars, fmt=" %.1f x", color=colour, fontsize=9)
        axes.set_yticks(range(len(OPERATIONS)), OPERATIONS, color=colour)
        axes.axvline(1.0, color=colour, linewidth=0.8, linestyle=":")
        axes.set_title(title, color=colour, fontsize=10)
        axes.tick_params(colors=colour, length=0)
        axes.spines[:].set_visible(False)
    left.invert_yaxis()
    left.margins(x=0.18)
    right.legend(loc="lower right", frameon=False, labelcolor=colour, fontsize=9)
    figure.supxlabel("times faster than (one thread, float32)", color=colour, fontsize=9)
    with mpl.rc_context({"svg.hashsalt": "nbbn", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> None:
    """Draw both."""
    record = keep(None)
    for theme, path in FILES.items():
        draw(record, theme, path)


if __name__ == "__main__":
    main()
