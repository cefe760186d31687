"""The README's table, from a recorded run: ``python -m benchmarks.table`` rewrites it.

``python -m benchmarks.performance FILE`` keeps a new run in ``benchmarks/recorded.json``, and writes the
table, too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.report import condensed
from benchmarks.harness.shapes import FEATURES, RESNET50_IMAGES

ROOT = Path(__file__).resolve().parent.parent
RECORDED = ROOT / "benchmarks" / "recorded.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- speed: written by benchmarks/table.py -->", "<!-- speed: end -->"
LEAD, LEAD_END = "<!-- lead: written by benchmarks/table.py -->", "<!-- lead: end -->"
OPERATIONS = ("inference", "training", "backward")
IMPLEMENTATIONS = ("nbbn", "torch", "numpy")
VERSIONS = (*IMPLEMENTATIONS, "numba")
BATCH = 32
IMAGES = {(BATCH, *image) for image in RESNET50_IMAGES}
TABLES = set(FEATURES)


def ratios(results: Sequence[dict[str, Any]], operation: str, threads: int, peer: str, images: bool) -> list[float]:
    """Return peer / nbbn for every shape of images, or every (N, C)."""
    shapes = IMAGES if images else TABLES
    chosen = {
        (tuple(r["shape"]), r["implementation"]): r["median"]
        for r in results
        if (r["operation"], r["threads"]) == (operation, threads) and tuple(r["shape"]) in shapes
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


def plain_results(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of what the table is about: float32, new results, in the usual layout."""
    usual = {
        "dtype": "float32",
        "params": "float32",
        "layout": "channels-first",
        "variant": "fresh",
    }
    return [
        r
        for r in record["results"]
        if "median" in r
        and r["operation"] in OPERATIONS
        and r["implementation"] in IMPLEMENTATIONS
        and all(r.get(name, value) == value for name, value in usual.items())
    ]


def table(record: dict[str, Any]) -> str:
    """Return the table and what it was measured with, as Markdown."""
    results = plain_results(record)
    machine, versions = record["machine"], record["versions"]
    largest = max(machine["caches"], key=lambda cache: int(cache["size"].rstrip("K")))
    shapes = {tuple(r["shape"]) for r in results}
    tables = ", ".join(str(shape) for shape in sorted(shapes & TABLES))
    lines = [
        "How many times faster nbbn is: the time of the other library divided by nbbn's, as the geometric mean and "
        "the range over all shapes. **Above 1, nbbn is faster.**",
        "",
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
    lines += [
        "",
        f"Images: {len(shapes & IMAGES)} shapes of ResNet-50 at batch {BATCH}. (N, C): {tables}. float32, new "
        "results on both sides, medians of interleaved rounds, each library in a process of its own. "
        f"{machine['cpu']}, {machine['cores']} cores, "
        f"{int(largest['size'].rstrip('K')) // 1024} MB of L{largest['level']}; "
        + ", ".join(f"{name} {v}" for name, v in versions.items() if name in VERSIONS)
        + f"; {record['date'][:10]}.",
    ]
    return "\n".join(lines)


def lead(record: dict[str, Any]) -> str:
    """Return what the README says first: on one thread, images, as geometric means."""
    results = plain_results(record)

    def mean(operation: str, peer: str) -> str:
        found = ratios(results, operation, 1, peer, True)
        return f"{math.exp(sum(map(math.log, found)) / len(found)):.1f}" if found else "-"

    training, inference = ([mean(o, peer) for peer in ("torch", "numpy")] for o in OPERATIONS[1::-1])
    return (
        f"on images and one thread, training is {training[0]} times as fast as in PyTorch and {training[1]} times as "
        f"fast as in NumPy. Inference is {inference[0]} and {inference[1]} times as fast."
    )


def with_table(text: str, record: dict[str, Any]) -> str:
    """Return the README's text with what is made of ``record`` between the markers."""
    text = between_markers(text, LEAD, lead(record), LEAD_END, newline="")
    return between_markers(text, BEGIN, table(record), END)


def between_markers(text: str, begin: str, block: str, end: str, newline: str = "\n") -> str:
    """Return ``text`` with ``block`` between the two markers."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}{newline}{block}{newline}{end}{after}"


def keep(file: Path | None, recorded: Path = RECORDED) -> dict[str, Any]:
    """Return the run in ``recorded``, after replacing it by that in ``file``, if given."""
    if file is not None:
        record = condensed(json.loads(file.read_text("utf-8")))
        # A line an entry: what git shows of a new run can be read.
        head = json.dumps(record | {"results": []}, indent=1).removesuffix("[]\n}")
        entries = ",\n".join(f"  {json.dumps(entry)}" for entry in record["results"])
        recorded.write_text(f"{head}[\n{entries}\n ]\n}}\n", "utf-8")
    kept: dict[str, Any] = json.loads(recorded.read_text("utf-8"))
    return kept


def rewrite(
    page: Path,
    markers: tuple[str, str],
    block: Callable[[dict[str, Any]], str],
    recorded: Path,
    file: Path | None,
) -> None:
    """Put what ``block`` makes of the run that `keep` returns between the markers of ``page``."""
    made = block(keep(file, recorded))
    text = between_markers(page.read_text("utf-8"), markers[0], made, markers[1])
    page.write_text(text, "utf-8")


def write_readme(record: dict[str, Any]) -> None:
    """Put the table of ``record`` into README.md."""
    README.write_text(with_table(README.read_text("utf-8"), record), "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the table from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    write_readme(keep(parser.parse_args(arguments).file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
