"""``nbbn moments``: count, mean and variance of a file larger than memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nbbn.cli import _arrays
from nbbn.moments import Moments

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_WIDTH = 24  # of the longest float64 that repr writes


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "moments",
        help="print count, mean and variance of each channel of an .npy file",
        description=(
            "Print a line for each channel of a file that may be larger than memory: its number, how "
            "many values it has, their mean and their variance (the population's), with all digits."
        ),
        allow_abbrev=False,
    )
    _arrays.add_input(parser)
    parser.add_argument(
        "--save-stats",
        type=Path,
        metavar="S.npz",
        help="write them to a file instead, which nbbn normalize --stats takes",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the table, or save the statistics."""
    with _arrays.reading(arguments.input, arguments.axis) as source:
        _arrays.check_statistics_file(arguments.save_stats, arguments.input)
        found = _arrays.moments(source, arguments.axis, "statistics")
    if arguments.save_stats is None:
        _print(found)
    else:
        _arrays.save_statistics(arguments.save_stats, found)


def _print(found: Moments) -> None:
    """Print a table whose columns line up, of which other programs can split the lines."""
    count = f"{found.count:.0f}"
    first = max(len("channel"), len(str(found.mean.size - 1)))
    second = max(len("count"), len(count))
    print(f"{'channel':>{first}} {'count':>{second}} {'mean':>{_WIDTH}} {'var':>{_WIDTH}}")
    pairs = zip(found.mean, found.var(), strict=True)
    for channel, (mean, var) in enumerate(pairs):
        numbers = f"{float(mean)!r:>{_WIDTH}} {float(var)!r:>{_WIDTH}}"
        print(f"{channel:>{first}} {count:>{second}} {numbers}")
