"""The commands on CSV and Parquet files."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nbbn._files import npy
from nbbn._files import state as state_files
from nbbn.cli import _arrays
from nbbn.cli._files import ARRAYS, TABLES, CommandError, cannot_write, check_file, tell
from nbbn.cli._progress import Progress
from nbbn.standardizer import _tables
from nbbn.standardizer._features import FeatureMoments


@contextlib.contextmanager
def reading(arguments: argparse.Namespace) -> Iterator[Any]:
    """Open the input; what goes wrong later is a CommandError, too."""
    path, delimiter = arguments.input, _delimiter(arguments, arguments.input)
    _check_axis(arguments)
    if arguments.key is not None:
        raise CommandError(f"--key: expected an .npz file, got {path}")
    try:
        with _tables.opened(path, "IN", path.suffix.lower(), delimiter) as table:
            yield table
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        text = str(error)
        if text.startswith("X: "):
            text = f"{path}: {text[3:].partition(' (')[0]}"
        elif not text.startswith((f"{path}: ", "IN: ")):
            raise
        raise CommandError(text) from error


def _check_axis(arguments: argparse.Namespace) -> None:
    if arguments.axis not in (-1, 1):
        raise CommandError(f"--axis: expected -1 for a table, whose columns are the features, got {arguments.axis}")


def moments(arguments: argparse.Namespace) -> tuple[FeatureMoments, Sequence[str]]:
    """Return the moments of the numeric columns of the input, and their names."""
    with reading(arguments) as table:
        _arrays.check_statistics_file(arguments.save_stats, arguments.input)
        return _moments(table, _wanted(arguments, table), "statistics")


def normalize(arguments: argparse.Namespace, to_table: bool) -> None:
    """Write the table with its numeric columns standardized, as a table or as an array."""
    path = arguments.output
    with reading(arguments) as table:
        wanted = _wanted(arguments, table)
        if not to_table:
            _check_numeric(path, table, table.candidates() if wanted is None else wanted)
        check_file(path, "OUT")
        _arrays.check_statistics_file(arguments.save_stats, arguments.input, path)
        if arguments.stats is None:
            found, names = _moments(table, wanted, "1/2 statistics")
            label = "2/2 normalizing"
        else:
            _arrays.check_apart(path, "OUT", arguments.stats)
            found, names = _given(arguments.stats, table, wanted)
            label = "1/1 normalizing"
        if not to_table:
            _check_numeric(path, table, names)
        schema, rows = _tables.result_schema(table, names), 0
        try:
            with state_files.replacing(path) as file:
                with (
                    contextlib.nullcontext(file) if to_table else _arrays.values_of(path, file) as own,
                    contextlib.closing(_output(arguments, own, schema)) as output,
                    Progress(table.size, label, in_bytes=True) as progress,
                ):
                    rows = _tables.normalize(table, found, names, output, progress.advance)
                if arguments.save_stats is not None:
                    _arrays.save_statistics(arguments.save_stats, found, names)
        except OSError as error:
            raise cannot_write(path, "OUT", error) from None
        tell(f"{path}: {rows} rows, standardized: {_listed(names)}")


def _check_numeric(path: Path, table: Any, names: Sequence[str]) -> None:
    """Make sure that an array can hold the result: no column but those that are standardized."""
    for name in table.names:
        if name not in names:
            raise CommandError(
                f"OUT: expected a table ({', '.join(TABLES)}), as column {name!r} of {table.path} is not standardized "
                f"and an array holds no other, got {path.name!r}"
            )


def check_array(arguments: argparse.Namespace, header: npy.Header) -> None:
    """Make sure that the array that is read can become a table."""
    path = arguments.output
    if len(header.shape) != 2 or not header.shape[1]:
        raise CommandError(
            f"OUT: expected two dimensions, and a column at least, for a table, got shape {header.shape} "
            f"in {arguments.input}"
        )
    _check_axis(arguments)
    _delimiter(arguments, path)


@contextlib.contextmanager
def rows_of(arguments: argparse.Namespace, file: BinaryIO, names: Sequence[str]) -> Iterator[BinaryIO]:
    """Give a file for what an .npy file holds, whose rows become those of the table to write afterwards."""
    with tempfile.TemporaryFile() as own:
        yield own
        own.seek(0)
        array = npy.NpyFile(arguments.output, own)
        schema = _tables.schema_of(array, names)
        with (
            contextlib.closing(_output(arguments, file, schema)) as output,
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


def _moments(table: Any, wanted: Sequence[str] | None, label: str) -> tuple[FeatureMoments, Sequence[str]]:
    with Progress(table.size, label, in_bytes=True) as progress:
        return _tables.moments(table, wanted, progress.advance)


def _wanted(arguments: argparse.Namespace, table: Any) -> list[str] | None:
    """Return the columns that were asked for."""
    if arguments.columns is None:
        return None
    names: list[str] = arguments.columns.split(",")
    for name in names:
        if name not in table.names:
            raise CommandError(f"--columns: expected some of {_listed(table.names)}, got {name!r}")
    if len(set(names)) < len(names):
        raise CommandError(f"--columns: expected each name once, got {arguments.columns!r}")
    return names


def _given(path: Path, table: Any, wanted: list[str] | None) -> tuple[FeatureMoments, Sequence[str]]:
    """Return the statistics in a file, and which columns they are of."""
    found, names = _arrays.load_statistics(path)
    if not names:
        names = tuple(table.candidates() if wanted is None else wanted)
    if wanted is not None and set(wanted) != set(names):
        raise CommandError(f"--columns: expected those of {path}, {_listed(names)}, got {_listed(wanted)}")
    for name in names:
        if name not in table.names:
            raise CommandError(f"--stats: expected the columns of {path} in {table.path}, which has no {name!r}")
    if len(names) != found.mean.size:
        raise CommandError(
            f"--stats: expected statistics of {len(names)} columns, {_listed(names)}, got {found.mean.size} in {path}"
        )
    return found, names


def _listed(names: Sequence[str], most: int = 9) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown}, ... ({len(names)} in all)"


def _delimiter(arguments: argparse.Namespace, path: Path) -> str:
    """Return what stands between cells."""
    given: str | None = arguments.delimiter
    if given is None:
        return "\t" if path.suffix.lower() == ".tsv" else ","
    if len(given) != 1 or given in '"\r\n' or not given.isascii():
        raise CommandError(f"--delimiter: expected one character that is no quote, got {given!r}")
    return given
