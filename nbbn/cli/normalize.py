"""``nbbn normalize``: standardize a file larger than memory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nbbn._files import npy
from nbbn._files import state as state_files
from nbbn.cli import _arrays
from nbbn.cli._files import CommandError, cannot_write, check_file, check_room, is_table, load_tables, tell
from nbbn.cli._progress import Progress
from nbbn.standardizer import _stream
from nbbn.standardizer._features import FeatureMoments

_OUTPUT = "OUT"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "normalize",
        help="standardize a file that may be larger than memory",
        description=(
            "Give each channel of an array, or each numeric column of a table, mean 0 and variance 1. Two passes "
            "over the file compute (x - mean) / std, where std is the population's, or 1 where that is 0. Missing "
            "values (NaN, empty cells) stay missing. Other columns of a table stay as they are. An array keeps "
            "its shape, order and type (uint8 becomes float32, other integers float64). The new file gets its "
            "name once it is complete."
        ),
        epilog="example: nbbn normalize train.csv train-normalized.csv --save-stats train.npz",
    )
    _arrays.add_input(parser)
    parser.add_argument(
        "output", type=Path, metavar=_OUTPUT, help="the file to make or replace, in the format of its suffix; may be IN"
    )
    statistics = parser.add_mutually_exclusive_group()
    statistics.add_argument("--save-stats", type=Path, metavar="S.npz", help="also write the statistics to a file")
    statistics.add_argument(
        "--stats",
        type=Path,
        metavar="S.npz",
        help=(
            "use the statistics that --save-stats wrote for another file, or any .npz file with mean and var: one pass"
        ),
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the normalized file."""
    path, axis = arguments.output, arguments.axis
    from_table, to_table = is_table(arguments.input, "IN"), is_table(path, _OUTPUT)
    if from_table:
        load_tables(arguments.input, "IN").normalize(arguments, to_table)
        return
    tables = load_tables(path, _OUTPUT) if to_table else None
    with _arrays.reading(arguments, to_table) as source:
        if tables:
            tables.check_array(arguments, source.header)
        check_file(path, _OUTPUT)
        _arrays.check_statistics_file(arguments.save_stats, arguments.input, path)
        header = _stream.normalized(source.header)
        check_room(path, _OUTPUT, header.nbytes)
        given: FeatureMoments | None = None
        names: Sequence[str] = ()
        if arguments.stats is not None:
            given, names = _given(arguments.stats, source, axis)
            _arrays.check_apart(path, _OUTPUT, arguments.stats)
        try:
            with state_files.replacing(path) as file:
                with (
                    tables.rows_of(arguments, file, names) if tables else _arrays.values_of(path, file, source.key)
                ) as own:
                    target = npy.NpyOutput(own, header)
                    found = _write(source, axis, given, target, arguments.save_stats is not None)
                if found is not None and arguments.save_stats is not None:
                    _arrays.save_statistics(arguments.save_stats, found)
        except OSError as error:
            raise cannot_write(path, _OUTPUT, error) from None
    shape = " x ".join(map(str, header.shape))
    tell(f"{path}: {shape} {header.dtype.name}, {header.nbytes / 1e6:.3g} MB")


def _write(
    source: npy.NpyFile, axis: int, given: FeatureMoments | None, target: npy.NpyOutput, needed: bool
) -> FeatureMoments | None:
    """Write the output; return the moments of the input, where there are no statistics given."""
    found: FeatureMoments | None = None
    if given is None and (source.header.size or needed):
        found = _arrays.moments(source, axis, "1/2 statistics")
        given = found
    if given is not None and source.header.size:
        label = "1/1 normalizing" if found is None else "2/2 normalizing"
        with Progress(source.header.nbytes, label, in_bytes=True) as progress:
            _stream.normalize(source, axis, given, target, progress.advance)
    return found


def _given(path: Path, source: npy.NpyFile, axis: int) -> tuple[FeatureMoments, tuple[str, ...]]:
    """Return the statistics in a file, which must be of as many channels as the input has, and their names."""
    statistics, names = _arrays.load_statistics(path)
    _, expected, _ = _stream.view(source.header, axis)
    if statistics.mean.size != expected:
        raise CommandError(
            f"--stats: expected {expected} channels, as along axis {axis} of {source.path}, "
            f"got {statistics.mean.size} in {path}"
        )
    return statistics, names
