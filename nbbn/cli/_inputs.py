"""What the commands on files share: the arguments of their input, and how it is opened."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbbn.cli import _arrays
from nbbn.cli._files import TABLES, CommandError, explained, is_table


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare the input, and how it is read."""
    parser.add_argument(
        "input",
        type=Path,
        metavar="IN",
        help="array (.npy, .npz) or table (.csv, .tsv, .parquet); may be larger than memory",
    )
    parser.add_argument(
        "--axis",
        type=int,
        default=-1,
        metavar="A",
        help="channel axis of an array; statistics are taken over all others (default -1, the last)",
    )
    parser.add_argument("--key", metavar="K", help="name of the array, if an .npz file holds several")
    parser.add_argument(
        "--columns",
        metavar="A,B",
        help="columns of a table to use (default: those whose cells are all numbers or missing)",
    )
    parser.add_argument(
        "--delimiter", metavar="D", help="separator of the cells of a text file (default: comma, and tab for .tsv)"
    )


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Any]:
    """Open the input, an array or a table, to make the output of it; what is wrong with it is a CommandError."""
    path: Path = arguments.input
    output: Any = getattr(arguments, "output", None)
    from_table = is_table(path, "IN")
    to_table = output is not None and is_table(output, "OUT")
    _check_options(arguments, from_table, to_table)
    tables: Any = _load_tables(path, "IN") if from_table else _load_tables(output, "OUT") if to_table else None
    with explained(path), tables.opened(arguments) if from_table else _arrays.opened(arguments, tables) as source:
        yield source


def _check_options(arguments: argparse.Namespace, from_table: bool, to_table: bool) -> None:
    """Make sure that the options are those of such files."""
    path, delimiter = arguments.input, arguments.delimiter
    for name, fits in (("columns", from_table), ("delimiter", from_table or to_table)):
        if getattr(arguments, name) is not None and not fits:
            raise CommandError(f"--{name}: expected a table ({', '.join(TABLES)}), got {path}")
    if arguments.key is not None and path.suffix.lower() != ".npz":
        raise CommandError(f"--key: expected an .npz file, got {path}")
    if (from_table or to_table) and arguments.axis not in (-1, 1):
        raise CommandError(f"--axis: expected -1 for a table, whose columns are the features, got {arguments.axis}")
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii()):
        raise CommandError(f"--delimiter: expected one character that is no quote, got {delimiter!r}")


def _load_tables(path: Path, name: str) -> Any:
    """Return the module for tables, which needs pyarrow."""
    try:
        from nbbn.cli import _tables
    except ImportError as error:
        text = f'{name}: {path.suffix} needs pyarrow: pip install ".[tables]" in a checkout of nbbn ({error})'
        raise CommandError(text) from error
    return _tables
