"""The tables of docs/benchmarks_NAME.md, from a recorded run: ``python -m benchmarks.pages NAME [FILE]``.

Record with ``python -m benchmarks.compare --set NAME --json FILE``. With ``FILE`` its medians and minima are kept in
``benchmarks/NAME.json`` first. Every number between the markers is computed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness.machine import describe_run
from benchmarks.runs import failures, noise, not_fastest, peer_tables, run_of, threads_text
from benchmarks.table import ROOT, rewrite

FOLDER = ROOT / "benchmarks"
DOCS = ROOT / "docs"

_READ = """
How many times nbbn's time each library takes, on {threads}: 2 means that nbbn is twice as fast; **bold** that the
library is faster. "Of the limit" is nbbn's time over the yardstick's. {notes}
"""

NOTES = {
    "fused": "All write into arrays that are kept.",
    "standardizer": "Results are new arrays.",
    "statistics": """Results are new arrays. "Of plain" is nbbn's time over its own without mask or weights, in
the same rounds; for `calibrate` over training, for `from_batches` over `batch_moments` of the whole table.""",
}
"""What there is to know about the tables of each set, besides how they are read."""


def page(name: str) -> Path:
    """Return the page of the set ``name``."""
    return DOCS / f"benchmarks_{name}.md"


def markers(name: str) -> tuple[str, str]:
    """Return what stands before and after the tables of the set ``name``."""
    return f"<!-- {name}: written by benchmarks/pages.py -->", f"<!-- {name}: end -->"


def block(name: str, record: dict[str, Any]) -> str:
    """Return what stands between the markers of the set ``name``."""
    run = run_of(record)
    counts = sorted({result.case.threads for result in run.results})
    settings = record["settings"]
    sections = [
        f"{describe_run(record['machine'], record['versions'])}. {record['date'][:10]}; "
        f"{len(run.results)} races of at most {settings['rounds']} rounds, each ended after five rounds "
        f"and {settings['seconds']} seconds. {noise(run)}",
        _READ.format(threads=threads_text(counts, " / "), notes=NOTES[name]),
        "\n".join(peer_tables(run.results)),
        "## Where nbbn is not the fastest",
        "\n".join(not_fastest(run) + failures(run)),
    ]
    return "\n\n".join(section.strip() for section in sections)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", choices=tuple(NOTES), help="the set")
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    options = parser.parse_args(arguments)
    name = options.name
    rewrite(page(name), markers(name), partial(block, name), FOLDER / f"{name}.json", options.file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
