"""``nbbn normalize``: standardize a file larger than memory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from nbbn._files import npy
from nbbn._files import state as state_files
from nbbn.cli import _arrays
from nbbn.cli._errors import CommandError
from nbbn.cli._files import cannot_write, check_file, check_room
from nbbn.cli._progress import Progress
from nbbn.moments import Moments
from nbbn.standardizer import _stream

if TYPE_CHECKING:
    from argparse import _SubParsersAction

_OUTPUT = "OUT.npy"


def add_parser(commands: _SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and its arguments."""
    parser = commands.add_parser(
        "normalize",
        help="standardize an .npy file that may be larger than memory",
        description=(
            "Give each channel mean 0 and variance 1, in two passes over the file: (x - mean) / std, "
            "where std is the population's, or 1 where that is 0. The new file has the shape, the "
            "order and the type of the old one (float32 for uint8), and gets its name once it is whole."
        ),
        allow_abbrev=False,
    )
    _arrays.add_input(parser)
    parser.add_argument(
        "output", type=Path, metavar=_OUTPUT, help="the file to make or replace; may be IN.npy"
    )
    statistics = parser.add_mutually_exclusive_group()
    statistics.add_argument(
        "--save-stats", type=Path, metavar="S.npz", help="also write the statistics to a file"
    )
    statistics.add_argument(
        "--stats",
        type=Path,
        metavar="S.npz",
        help=(
            "use the statistics of another data set, which --save-stats wrote, or any .npz file with "
            "mean and var: one pass"
        ),
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Write the normalized file."""
    path, axis = arguments.output, arguments.axis
    with _arrays.reading(arguments.input, axis) as source:
        check_file(path, _OUTPUT)
        _arrays.check_statistics_file(arguments.save_stats, arguments.input, path)
        check_room(path, _OUTPUT, _stream.normalized(source.header).nbytes)
        given = None
        if arguments.stats is not None:
            given = _given(arguments.stats, source, axis)
            _arrays.check_apart(path, _OUTPUT, arguments.stats)
        try:
            with state_files.replacing(path) as file:
                target = _stream.output(source, file)
                found = _write(source, axis, given, target, arguments.save_stats is not None)
                if found is not None and arguments.save_stats is not None:
                    _arrays.save_statistics(arguments.save_stats, found)
        except OSError as error:
            raise cannot_write(path, _OUTPUT, error) from None


def _write(
    source: npy.NpyFile,
    axis: int,
    given: _stream.Statistics | None,
    target: npy.NpyOutput,
    needed: bool,
) -> Moments | None:
    """Write the output; return the moments of the input, where there are no statistics given."""
    found: Moments | None = None
    if given is None and (source.header.size or needed):
        found = _arrays.moments(source, axis, "1/2 statistics")
        given = _stream.Statistics.of(found)
    if given is not None and source.header.size:
        label = "1/1 normalizing" if found is None else "2/2 normalizing"
        with Progress(source.header.nbytes, label, in_bytes=True) as progress:
            _stream.normalize(source, axis, given, target, progress.advance)
    return found


def _given(path: Path, source: npy.NpyFile, axis: int) -> _stream.Statistics:
    """Return the statistics in a file, which must be of as many channels as the input has."""
    try:
        statistics = _stream.load(path)
    except OSError as error:
        raise CommandError(f"--stats: cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(str(error).replace("path:", "--stats:", 1)) from error
    expected = _arrays.channels(source, axis)
    if statistics.mean.size != expected:
        raise CommandError(
            f"--stats: expected {expected} channels, as along axis {axis} of {source.path}, "
            f"got {statistics.mean.size} in {path}"
        )
    return statistics
