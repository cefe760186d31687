"""``nbbn moments``: count, mean and variance of a file larger than memory."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nbbn.cli import _arrays
from nbbn.cli._files import is_table, load_tables
from nbbn.standardizer._features import FeatureMoments

_WIDTH = 24  # of the longest float64 that repr writes


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "moments",
        help="print count, mean and variance of each channel or column of a file",
        description=(
            "Print a line for each channel of an array, or each numeric column of a table: its number or name, "
            "the count of its values, their mean and their population variance, with all digits. Missing values "
            "(NaN, empty cells) are left out. The file may be larger than memory."
        ),
        epilog="example: nbbn moments people.csv --json",
    )
    _arrays.add_input(parser)
    parser.add_argument(
        "--save-stats",
        type=Path,
        metavar="S.npz",
        help="write the statistics to a file instead, for nbbn normalize --stats",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list with an object for each channel")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table, or save the statistics."""
    names: Sequence[str] = ()
    if is_table(arguments.input, "IN"):
        found, names = load_tables(arguments.input, "IN").moments(arguments)
    else:
        with _arrays.reading(arguments) as source:
            _arrays.check_statistics_file(arguments.save_stats, arguments.input)
            found = _arrays.moments(source, arguments.axis, "statistics")
    if arguments.save_stats is not None:
        _arrays.save_statistics(arguments.save_stats, found, names)
    elif arguments.json:
        print(json.dumps(_rows(found, names), indent=1))
    else:
        _print(found, names)


def _rows(found: FeatureMoments, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return a dictionary a channel; what is not known is None."""
    columns = found.counts.tolist(), found.means().tolist(), found.variances().tolist()
    return [
        {
            "channel": names[number] if names else number,
            "count": int(count),
            "mean": mean if count else None,
            "var": var if count else None,
        }
        for number, (count, mean, var) in enumerate(zip(*columns, strict=True))
    ]


def _print(found: FeatureMoments, names: Sequence[str]) -> None:
    """Print a table whose columns line up, of which other programs can split the lines."""
    rows = _rows(found, names)
    label = "column" if names else "channel"
    first = max(len(label), *(len(str(row["channel"])) for row in rows))
    second = max(len("count"), *(len(str(row["count"])) for row in rows))
    print(f"{label:>{first}} {'count':>{second}} {'mean':>{_WIDTH}} {'var':>{_WIDTH}}")
    for row in rows:
        mean, var = ("nan" if row[name] is None else repr(row[name]) for name in ("mean", "var"))
        count = f"{row['count']:>{second}}"
        print(f"{row['channel']:>{first}} {count} {mean:>{_WIDTH}} {var:>{_WIDTH}}")
