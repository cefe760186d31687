"""The commands on CSV and Parquet files."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nbbn._files import npy
from nbbn.cli._files import ARRAYS, TABLES, CommandError, Statistics, explained, load_statistics, values_of
from nbbn.cli._progress import Progress
from nbbn.standardizer import _tables


def opened(arguments: argparse.Namespace) -> Any:
    """Open the input, for a `TableInput`."""
    path = arguments.input
    return _tables.opened(path, "IN", path.suffix.lower(), _delimiter(arguments, path))


class TableInput:
    """A table whose numeric columns are standardized, or have moments."""

    size = 0  # of what is written: not known

    def __init__(self, arguments: argparse.Namespace, table: Any) -> None:
        self.arguments, self.table = arguments, table
        self.wanted = _wanted(arguments.columns, table.names)
        self.candidates = table.candidates() if self.wanted is None else self.wanted
        self._check_output(self.candidates)

    def _check_output(self, names: Sequence[str]) -> None:
        """Make sure that an array can hold the result: no column but those that are standardized."""
        path = getattr(self.arguments, "output", None)
        others = [name for name in self.table.names if name not in names]
        if others and path is not None and path.suffix.lower() in ARRAYS:
            raise CommandError(
                f"OUT: expected a table ({', '.join(TABLES)}), as column {others[0]!r} of {self.table.path} is not "
                f"standardized and an array holds no other, got {path.name!r}"
            )

    def moments(self, label: str) -> Statistics:
        """Return the moments of the numeric columns, and their names, with a progress bar."""
        # Explained here, too: normalize takes what cannot be read for an output that cannot be written.
        with explained(self.arguments.input), Progress(self.table.size, label, in_bytes=True) as progress:
            return _tables.moments(self.table, self.wanted, progress.advance)

    def fitting(self, path: Path) -> Statistics:
        """Return the statistics in a file, and which columns they are of."""
        found, names = load_statistics(path)
        names, wanted = names or self.candidates, self.wanted
        if wanted is not None and set(wanted) != set(names):
            raise CommandError(f"--columns: expected those of {path}, {_listed(names)}, got {_listed(wanted)}")
        for name in names:
            if name not in self.table.names:
                raise CommandError(
                    f"--stats: expected the columns of {path} in {self.table.path}, which has no {name!r}"
                )
        if len(names) != found.mean.size:
            raise CommandError(
                f"--stats: expected statistics of {len(names)} columns, {_listed(names)}, "
                f"got {found.mean.size} in {path}"
            )
        return found, names

    def normalize(self, file: BinaryIO, given: Statistics | None) -> tuple[Statistics, str]:
        """Write the table with its numeric columns standardized; return the statistics, and what was written."""
        found, names = given or self.moments("1/2 statistics")
        self._check_output(names)
        with (
            values_of(self.arguments.output, file) as own,
            contextlib.closing(_output(self.arguments, own, _tables.result_schema(self.table, names))) as output,
            Progress(self.table.size, "1/1 normalizing" if given else "2/2 normalizing", in_bytes=True) as progress,
        ):
            rows = _tables.normalize(self.table, found, names, output, progress.advance)
        return (found, names), f"{rows} rows, standardized: {_listed(names)}"


@contextlib.contextmanager
def rows_of(arguments: argparse.Namespace, file: BinaryIO, names: Sequence[str]) -> Iterator[BinaryIO]:
    """Give a file for what an .npy file holds, whose rows become those of the table to write afterwards."""
    with tempfile.TemporaryFile() as own:
        yield own
        own.seek(0)
        array = npy.NpyFile(arguments.output, own)
        with (
            contextlib.closing(_output(arguments, file, _tables.schema_of(array, names))) as output,
            Progress(array.header.nbytes, "writing", in_bytes=True) as progress,
        ):
            _tables.write_array(array, output, progress.advance)


def _output(arguments: argparse.Namespace, file: Any, schema: Any) -> Any:
    path = arguments.output
    try:
        if path.suffix.lower() in ARRAYS:
            return _tables.ArrayOutput(file, schema)
        if path.suffix.lower() == ".parquet":
            return _tables.ParquetOutput(file, schema)
        return _tables.CsvOutput(file, schema, _delimiter(arguments, path))
    except (TypeError, NotImplementedError, ValueError) as error:
        line = " ".join(str(error).split())
        raise CommandError(f"OUT: {path} cannot hold a column of {arguments.input} ({line})") from error


def _wanted(given: str | None, known: Sequence[str]) -> list[str] | None:
    if given is None:
        return None
    names = given.split(",")
    for name in names:
        if name not in known:
            raise CommandError(f"--columns: expected some of {_listed(known)}, got {name!r}")
    if len(set(names)) < len(names):
        raise CommandError(f"--columns: expected each name once, got {given!r}")
    return names


def _listed(names: Sequence[str], most: int = 9) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _delimiter(arguments: argparse.Namespace, path: Path) -> str:
    """Return what stands between cells."""
    return arguments.delimiter or ("\t" if path.suffix.lower() == ".tsv" else ",")
