"""The README's table, from a recorded run: ``python -m benchmarks.table`` rewrites it.

Record with ``python -m benchmarks.compare --json FILE``, then ``python -m benchmarks.table FILE``
keeps what the table needs in ``benchmarks/recorded.json`` and puts the table into README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "benchmarks" / "recorded.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- speed: written by benchmarks/table.py -->", "<!-- speed: end -->"
OPERATIONS = ("inference", "training", "backward")
KEPT = ("operation", "shape", "threads", "implementation", "median")


def condensed(record: dict[str, Any]) -> dict[str, Any]:
    """Return what the table needs of a record."""
    results = [r for r in record["results"] if r["status"] == "timed"]
    return {
        **{name: record[name] for name in ("date", "machine", "versions", "settings")},
        "results": [{name: r[name] for name in KEPT} for r in results],
    }


def ratios(
    results: Sequence[dict[str, Any]], operation: str, threads: int, peer: str, images: bool
) -> list[float]:
    """Return peer / nbbn for every shape of images, or every (N, C)."""
    chosen = {
        (tuple(r["shape"]), r["implementation"]): r["median"]
        for r in results
        if (r["operation"], r["threads"]) == (operation, threads)
        and (len(r["shape"]) == 4) == images
    }
    return [
        chosen[shape, peer] / time
        for (shape, implementation), time in chosen.items()
        if implementation == "nbbn" and (shape, peer) in chosen
    ]


def cell(values: Sequence[float]) -> str:
    """Return the geometric mean and the range."""
    if not values:
        return "-"
    mean = math.exp(sum(map(math.log, values)) / len(values))
    return f"**{mean:.1f}** ({min(values):.2g} to {max(values):.2g})"


def table(record: dict[str, Any]) -> str:
    """Return the table and what it was measured with, as Markdown."""
    results = record["results"]
    lines = [
        "| | threads | torch, images | torch, (N, C) | NumPy, images | NumPy, (N, C) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for operation in OPERATIONS:
        for threads in sorted({r["threads"] for r in results}):
            cells = [
                cell(ratios(results, operation, threads, peer, images))
                for peer in ("torch", "numpy")
                for images in (True, False)
            ]
            lines.append(f"| {operation} | {threads} | {' | '.join(cells)} |")
    machine, versions = record["machine"], record["versions"]
    largest = max(record["machine"]["caches"], key=lambda cache: int(cache["size"].rstrip("K")))
    shapes = {tuple(r["shape"]) for r in results}
    images = sum(len(shape) == 4 for shape in shapes)
    tables = ", ".join(str(shape) for shape in sorted(shapes) if len(shape) == 2)
    lines += [
        "",
        f"Time of the peer divided by nbbn's, geometric mean and range: {images} shapes of ResNet-50 at "
        f"batch 32, and {tables}; float32, new result arrays on both sides, medians of interleaved "
        f"rounds, each library in a process of its own. {machine['cpu']}, {machine['cores']} cores, "
        f"{int(largest['size'].rstrip('K')) // 1024} MB of L{largest['level']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f"; {record['date'][:10]}.",
    ]
    return "\n".join(lines)


def with_table(text: str, record: dict[str, Any]) -> str:
    """Return the README's text with the table of ``record`` between the markers."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the table from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    file = parser.parse_args(arguments).file
    if file is not None:
        record = condensed(json.loads(file.read_text("utf-8")))
        RECORDED.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    record = json.loads(RECORDED.read_text("utf-8"))
    README.write_text(with_table(README.read_text("utf-8"), record), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
