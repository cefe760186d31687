"""The tables of Standardizer in docs/benchmarks.md: ``python -m benchmarks.standardizer [FILE]``.

Record with ``python -m benchmarks.compare --set standardizer --json FILE``. With ``FILE`` its medians and minima are
kept in ``benchmarks/standardizer.json`` first. Every number between the markers is computed here.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import fused
from benchmarks.table import ROOT, rewrite

RECORDED = ROOT / "benchmarks" / "standardizer.json"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = (
    "<!-- standardizer: written by benchmarks/standardizer.py -->",
    "<!-- standardizer: end -->",
)


def block(record: dict[str, Any]) -> str:
    """Return what stands between the markers."""
    return fused.block(record, "Results are new arrays.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the tables from the recorded run, or from a new one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.standardizer", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", nargs="?", type=Path, help="what benchmarks.compare --json wrote")
    rewrite(PAGE, (BEGIN, END), block, RECORDED, parser.parse_args(arguments).file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
