"""What the commands on files share: their arguments; the input and the errors of those on arrays."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from nbbn import _checks
from nbbn._files import npy
from nbbn._files.paths import FileError
from nbbn.cli._files import TABLES, CommandError, cannot_write, check_file
from nbbn.cli._progress import Progress
from nbbn.standardizer import _stream
from nbbn.standardizer._features import FeatureMoments

_INPUT = "IN"


def add_input(parser: argparse.ArgumentParser) -> None:
    """Declare the input and its channel axis."""
    parser.add_argument(
        "input",
        type=Path,
        metavar=_INPUT,
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
def reading(arguments: argparse.Namespace, to_table: bool = False) -> Iterator[npy.NpyFile]:
    """Open the input, and check its type and axis; what goes wrong later is a CommandError, too."""
    path, axis, key = arguments.input, arguments.axis, arguments.key
    if arguments.columns is not None or (arguments.delimiter is not None and not to_table):
        option = "--delimiter" if arguments.columns is None else "--columns"
        raise CommandError(f"{option}: expected a table ({', '.join(TABLES)}), got {path}")
    is_npz = path.suffix.lower() == ".npz"
    if key is not None and not is_npz:
        raise CommandError(f"--key: expected an .npz file, got {path}")
    with contextlib.ExitStack() as stack:
        try:
            opened = npy.opened_member(path, _INPUT, key) if is_npz else npy.opened(path, _INPUT)
            source = stack.enter_context(opened)
            _checks.numbers(str(path), np.empty(0, source.header.dtype))
            _stream.view(source.header, axis)
        except OSError as error:
            raise CommandError(f"cannot read {path}: {error.strerror or error}") from None
        except (TypeError, ValueError) as error:
            text = str(error)
            raise CommandError(f"--{text}" if text.startswith("axis:") else text) from error
        try:
            yield source
        except FileError as error:
            raise CommandError(str(error)) from error
        except ValueError as error:
            if not str(error).startswith("X: "):
                raise
            raise CommandError(f"{path}: {str(error)[3:].partition(' (')[0]}") from error
        except MemoryError as error:
            raise CommandError(f"{path}: not enough memory for its channels or for threads ({error})") from error


def moments(source: npy.NpyFile, axis: int, label: str) -> FeatureMoments:
    """Return the moments of the input, with a progress bar."""
    header = source.header
    if not header.size:
        raise CommandError(f"{source.path}: expected at least one value, got shape {header.shape}")
    with Progress(header.nbytes, label, in_bytes=True) as progress:
        return _stream.moments(source, axis, progress.advance)


@contextlib.contextmanager
def values_of(path: Path, file: BinaryIO, key: str = "arr_0") -> Iterator[BinaryIO]:
    """Give a file for what an .npy file holds: this one, or one that is packed into it afterwards."""
    if path.suffix.lower() == ".npy":
        yield file
    else:
        with tempfile.TemporaryFile() as own:
            yield own
            npy.pack(file, key, own)


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


def load_statistics(path: Path) -> tuple[FeatureMoments, tuple[str, ...]]:
    """Return statistics that were saved, and the names of their features if they have some."""
    try:
        return _stream.load(path)
    except OSError as error:
        raise CommandError(f"--stats: cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise CommandError(str(error).replace("path:", "--stats:", 1)) from error


def save_statistics(path: Path, found: FeatureMoments, names: Sequence[str] = ()) -> None:
    """Write an .npz file, whole or not at all."""
    try:
        _stream.save(path, found, names)
    except OSError as error:
        raise cannot_write(path, "--save-stats", error) from None
