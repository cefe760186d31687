"""The tables of fused steps in docs/benchmarks.md, from a recorded run: ``python -m benchmarks.fused [FILE]``.

Record with ``python -m benchmarks.compare --set fused --json FILE``. With ``FILE`` its medians and minima are
kept in ``benchmarks/fused.json`` first. Every number between the markers is computed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.performance import failures, noise, not_fastest, peer_tables, run_of
from benchmarks.table import ROOT, rewrite
from nbbn._bench.overview import describe_run

RECORDED = ROOT / "benchmarks" / "fused.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- fused: written by benchmarks/fused.py -->", "<!-- fused: end -->"

_READ = """
How many times nbbn's time each library takes, on {threads}: 2 means that nbbn is twice as fast; **bold** that the
library is faster. "Of the limit" is nbbn's time over the yardstick's. {results}
"""


def block(record: dict[str, Any], results: str = "All write into arrays that are kept.") -> str:
    """Return what stands between the markers; ``results`` says where libraries write to."""
    run = run_of(record)
    counts = sorted({result.case.threads for result in run.results})
    threads = " / ".join(map(str, counts)) + (" thread" if counts == [1] else " threads")
    settings = record["settings"]
    sections = [
        f"{describe_run(record['machine'], record['versions'])}. {record['date'][:10]}; "
        f"{len(run.results)} races of at most {settings['rounds']} rounds, each ended after five rounds "
        f"and {settings['seconds']} seconds. {noise(run)}",
        _READ.format(threads=threads, results=results),
        "\n".join(peer_tables(run)),
        "### Where nbbn is not the fastest",
        "\n".join(not_fastest(run) + failures(run)),
    ]
    return "\n\n".join(section.strip() for section in sections)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fused", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    rewrite(PAGE, (BEGIN, END), block, RECORDED, parser.parse_args(arguments).file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
