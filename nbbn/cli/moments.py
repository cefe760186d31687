"""``nbbn moments``: count, mean and variance of a file larger than memory."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from nbbn.cli._files import Statistics, check_file, save_statistics
from nbbn.cli._inputs import add_input, opened

HELP = "print count, mean and variance of each channel or column of a file"
EXAMPLE = "nbbn moments people.csv --json"

_WIDTH = 24  # of the longest float64 that repr writes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_input(parser)
    add = parser.add_argument
    add("--save-stats", type=Path, metavar="S.npz",
        help="write the statistics to a file instead, for nbbn normalize --stats")  # fmt: skip
    add("--json", action="store_true", help="print JSON: a list with an object for each channel")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each channel of an array, or each numeric column of a table.

    Each has a number or name, the count of the values, their mean and their population variance, with all digits.
    Missing values (NaN, empty cells) are left out. The file may be larger than memory.
    """
    saved = arguments.save_stats
    with opened(arguments) as source:
        check_file(saved, "--save-stats", arguments.input)
        found = source.moments("statistics")
    if saved is not None:
        save_statistics(saved, found)
    elif arguments.json:
        print(json.dumps(_rows(found), indent=1))
    else:
        _print(_rows(found), "column" if found[1] else "channel")


def _rows(found: Statistics) -> list[dict[str, Any]]:
    """Return a dictionary a channel; what is not known is None."""
    features, names = found
    columns = features.counts.tolist(), features.means().tolist(), features.variances().tolist()
    return [
        {"channel": channel, "count": int(count), "mean": mean if count else None, "var": var if count else None}
        for channel, count, mean, var in zip(names or range(len(columns[0])), *columns, strict=True)
    ]


def _print(rows: list[dict[str, Any]], label: str) -> None:
    """Print a table whose columns line up, of which other programs can split the lines."""
    lines = [[label, "count", "mean", "var"]]
    lines += [["nan" if value is None else str(value) for value in row.values()] for row in rows]
    widths = [max(len(line[k]) for line in lines) for k in (0, 1)] + [_WIDTH, _WIDTH]
    for line in lines:
        print(" ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
