"""``nbbn normalize``: standardize a file larger than memory."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nbbn.cli._files import check_file, save_statistics, writing
from nbbn.cli._inputs import add_input, opened

HELP = "standardize a file that may be larger than memory"
EXAMPLE = "nbbn normalize train.csv train-normalized.csv --save-stats train.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add_input(parser)
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="the file to make or replace, in the format of its suffix; may be IN"
    )
    add = parser.add_mutually_exclusive_group().add_argument
    add("--save-stats", type=Path, metavar="S.npz", help="also write the statistics to a file")
    add("--stats", type=Path, metavar="S.npz",
        help="use the statistics that --save-stats wrote for another file, "
             "or any .npz file with mean and var: one pass")  # fmt: skip


def run(arguments: argparse.Namespace) -> None:
    """Give each channel of an array, or each numeric column of a table, mean 0 and variance 1.

    Two passes over the file compute (x - mean) / std, where std is the population's, or 1 where that is 0. Missing
    values (NaN, empty cells) stay missing. Other columns of a table stay as they are. An array keeps its shape, order
    and type (uint8 becomes float32, other integers float64). The new file gets its name once it is complete.
    """
    path, given, saved = arguments.output, arguments.stats, arguments.save_stats
    with opened(arguments) as source:
        check_file(path, "OUT", given, size=source.size)
        check_file(saved, "--save-stats", arguments.input, path)
        statistics = source.fitting(given) if given is not None else None
        with writing(path, "OUT") as file:
            statistics, written = source.normalize(file, statistics)
            if saved is not None:
                save_statistics(saved, statistics)
    if sys.stderr is not None and sys.stderr.isatty():
        print(f"{path}: {written}", file=sys.stderr)
