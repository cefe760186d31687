"""What the commands on files share: the arguments of their input, and how it is opened; and arrays, .npy and .npz."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nbbn import _checks
from nbbn._files import npy
from nbbn.cli._files import TABLES, CommandError, Statistics, explained, is_table, load_statistics, values_of
from nbbn.cli._progress import Progress
from nbbn.standardizer import _stream


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare the input, and how it is read."""
    add = parser.add_argument
    add("input", type=Path, metavar="IN",
        help="array (.npy, .npz) or table (.csv, .tsv, .parquet); may be larger than memory")  # fmt: skip
    add("--axis", type=int, default=-1, metavar="A",
        help="channel axis of an array; statistics are taken over all others (default -1, the last)")  # fmt: skip
    add("--key", metavar="K", help="name of the array, if an .npz file holds several")
    add("--columns", metavar="A,B",
        help="columns of a table to use (default: those whose cells are all numbers or missing)")  # fmt: skip
    add("--delimiter", metavar="D", help="separator of the cells of a text file (default: comma, and tab for .tsv)")


@contextlib.contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[Any]:
    """Open the input, an array or a table, to make the output of it; what is wrong with it is a CommandError."""
    path: Path = arguments.input
    output: Any = getattr(arguments, "output", None)
    from_table = is_table(path, "IN")
    to_table = output is not None and is_table(output, "OUT")
    _check_options(arguments, from_table, to_table)
    tables: Any = _load_tables(path, "IN") if from_table else _load_tables(output, "OUT") if to_table else None
    if from_table:
        opening = tables.opened(arguments)
    elif path.suffix.lower() == ".npz":
        opening = npy.opened_member(path, "IN", arguments.key)
    else:
        opening = npy.opened(path, "IN")
    with explained(path), opening as source:
        yield tables.TableInput(arguments, source) if from_table else ArrayInput(arguments, source, tables)


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


class ArrayInput:
    """An array that is normalized, or has moments; ``tables`` is the module for them, where the output is one."""

    def __init__(self, arguments: argparse.Namespace, source: npy.NpyFile, tables: Any) -> None:
        self.arguments, self.axis, self.source, self.tables = arguments, arguments.axis, source, tables
        header = source.header
        _checks.numbers(source.path, np.empty(0, header.dtype))
        _, self.channels, _ = _stream.view(header, self.axis)
        if tables is not None and (len(header.shape) != 2 or not header.shape[1]):
            raise CommandError(
                f"OUT: expected two dimensions, and a column at least, for a table, got shape {header.shape} "
                f"in {source.path}"
            )
        self.result = _stream.normalized(header)
        self.size = self.result.nbytes  # of what is written

    def moments(self, label: str) -> Statistics:
        """Return the moments of the channels, with a progress bar."""
        header = self.source.header
        if not header.size:
            raise CommandError(f"{self.source.path}: expected at least one value, got shape {header.shape}")
        with Progress(header.nbytes, label, in_bytes=True) as progress:
            return _stream.moments(self.source, self.axis, progress.advance), ()

    def fitting(self, path: Path) -> Statistics:
        """Return the statistics in a file, which must be of as many channels."""
        statistics, names = load_statistics(path)
        if statistics.mean.size != self.channels:
            raise CommandError(
                f"--stats: expected {self.channels} channels, as along axis {self.axis} of {self.source.path}, "
                f"got {statistics.mean.size} in {path}"
            )
        return statistics, names

    def normalize(self, file: BinaryIO, given: Statistics | None) -> tuple[Statistics | None, str]:
        """Write the array, normalized; return the statistics, where there are values, and what was written."""
        arguments, header, result = self.arguments, self.source.header, self.result
        label = "1/1 normalizing" if given else "2/2 normalizing"
        if self.tables is None:
            values = values_of(arguments.output, file, self.source.key)
        else:
            values = self.tables.rows_of(arguments, file, given[1] if given else ())
        with values as own:
            target = npy.NpyOutput(own, result)  # a limit on the size of files is met here, before the work
            if given is None and (header.size or arguments.save_stats is not None):
                given = self.moments("1/2 statistics")
            if given is not None and header.size:
                with Progress(header.nbytes, label, in_bytes=True) as progress:
                    _stream.normalize(self.source, self.axis, given[0], target, progress.advance)
        return given, f"{' x '.join(map(str, result.shape))} {result.dtype.name}, {result.nbytes / 1e6:.3g} MB"
