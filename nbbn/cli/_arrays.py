"""What the commands on .npy files share: their arguments, their input, their errors."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from nbbn._files import npy
from nbbn.cli._errors import CommandError
from nbbn.cli._files import cannot_write, check_file
from nbbn.cli._progress import Progress
from nbbn.moments import Moments
from nbbn.standardizer import _stream

_INPUT = "IN.npy"


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare the input and its channel axis."""
    parser.add_argument(
        "input",
        type=Path,
        metavar=_INPUT,
        help=f"array of {_stream.ACCEPTED}, of any shape, in C or Fortran order; may be larger than memory",
    )
    parser.add_argument(
        "--axis",
        type=int,
        default=-1,
        metavar="A",
        help="the channel axis: statistics are taken over all others (default -1, the last)",
    )


@contextlib.contextmanager
def reading(path: Path, axis: int) -> Iterator[npy.NpyFile]:
    """Open the input, and check its type and axis; what goes wrong later is a CommandError, too."""
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(npy.opened(path, _INPUT))
            _stream.check_dtype(source)
            _stream.view(source.header, axis)
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror or error}") from None
        except (TypeError, ValueError) as error:
            text = str(error)
            raise CommandError(f"--{text}" if text.startswith("axis:") else text) from error
        try:
            yield source
        except npy.NpyError as error:
            raise CommandError(str(error)) from error
        except MemoryError as error:
            raise CommandError(
                f"{path}: not enough memory for its channels or for threads ({error})"
            ) from error


def channels(source: npy.NpyFile, axis: int) -> int:
    """Return the number of channels."""
    return _stream.view(source.header, axis)[1]


def moments(source: npy.NpyFile, axis: int, label: str) -> Moments:
    """Return the moments of the input, with a progress bar."""
    header = source.header
    if not header.size:
        raise CommandError(f"{source.path}: expected at least one value, got shape {header.shape}")
    with Progress(header.nbytes, label, in_bytes=True) as progress:
        return _stream.moments(source, axis, progress.advance)


def check_statistics_file(path: Path | None, *others: Path) -> None:
    """Make sure, before the work is done, that statistics can be saved."""
    if path is None:
        return
    check_file(path, "--save-stats")  # now links lead somewhere
    check_apart(path, "--save-stats", *others)


def check_apart(path: Path, option: str, *others: Path) -> None:
    """Make sure that a file to write is none of others; of links none leads in a ring."""
    for other in others:
        if path.resolve() == other.resolve():
            raise CommandError(f"{option}: expected a file of its own, got {path}")


def save_statistics(path: Path, found: Moments) -> None:
    """Write an .npz file, whole or not at all."""
    try:
        _stream.save(path, found)
    except OSError as error:
        raise cannot_write(path, "--save-stats", error) from None
