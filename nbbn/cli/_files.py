"""Files of commands: errors of one line; what is written is checked before the work, and there once it is whole."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from nbbn._files import npy, paths
from nbbn._files import state as state_files
from nbbn.standardizer import _stream
from nbbn.standardizer._features import FeatureMoments

INSTALL = 'pip install ".[demo]" in a checkout of nbbn'
ARRAYS, TABLES, FIGURES = (".npy", ".npz"), (".csv", ".tsv", ".parquet"), (".png", ".svg", ".pdf")

Statistics = tuple[FeatureMoments, Sequence[str]]  # moments, and the names of their features, if they have some


class CommandError(Exception):
    """Bad usage or bad input: one line for standard error, exit status 2."""


def suffix_of(path: Path, name: str, accepted: Sequence[str]) -> str:
    """Return the suffix of a file, one of those accepted; ``name`` is what it was given by, here and below."""
    suffix = path.suffix.lower()
    if suffix not in accepted:
        raise CommandError(f"{name}: the suffix must be one of {', '.join(accepted)}, got {path.name!r}")
    return suffix


def is_table(path: Path, name: str) -> bool:
    """Return whether a file is a table and no array."""
    return suffix_of(path, name, (*ARRAYS, *TABLES)) in TABLES


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Make a CommandError of what is wrong with an input; other errors are mistakes in the code."""
    try:
        with _told(f"cannot read {path}"):
            yield
    except MemoryError as error:
        raise CommandError(f"{path}: not enough memory for its channels or for threads ({error})") from error
    except (TypeError, ValueError) as error:
        text = str(error)
        if text.startswith("X: "):  # what Standardizer calls it, with advice for who has an array
            text = f"{path}: {text[3:].partition(' (')[0]}"
        elif text.startswith("axis: "):
            text = f"--{text}"
        elif not text.startswith((f"{path}: ", "IN: ", "--key: ")):
            raise
        raise CommandError(text) from error


def check_file(path: Path | None, name: str, *others: Path | None, size: int = 0) -> None:
    """Make sure that a file can be made in the folder, has room there, and is none of others; of None, nothing."""
    if path is None:
        return
    with _told(f"{name}: cannot write {path}"):
        try:
            paths.check_regular(f"{name}: expected a file", path)
        except ValueError as error:
            raise CommandError(str(error)) from None
        except IsADirectoryError:
            raise CommandError(f"{name}: {path} is a folder, expected a file") from None
        with contextlib.suppress(CommandError), state_files.replacing(path):
            raise CommandError  # a file can be made, and is not
        free = shutil.disk_usage(path.resolve().parent).free
    if free < size:
        raise CommandError(f"{name}: {path} needs {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")
    for other in others:
        if other is not None and path.resolve() == other.resolve():
            raise CommandError(f"{name}: expected a file of its own, got {path}")


@contextlib.contextmanager
def writing(path: Path, name: str) -> Iterator[BinaryIO]:
    """Open a file that is made, or replaced, once it is whole."""
    with _told(f"{name}: cannot write {path}"), state_files.replacing(path) as file:
        yield file


@contextlib.contextmanager
def _told(failed: str) -> Iterator[None]:
    """Make a CommandError of what the system says."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"{failed}: {error.strerror or error}") from None


@contextlib.contextmanager
def values_of(path: Path, file: BinaryIO, key: str = "arr_0") -> Iterator[BinaryIO]:
    """Give a file to write to: this one, or for .npz another, of an .npy file that is packed into it."""
    if path.suffix.lower() != ".npz":
        yield file
    else:
        with tempfile.TemporaryFile() as own:
            yield own
            npy.pack(file, key, own)


def load_statistics(path: Path) -> Statistics:
    try:
        with _told(f"--stats: cannot read {path}"):
            return _stream.load(path)
    except ValueError as error:
        raise CommandError(str(error).replace("path:", "--stats:", 1)) from error


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write an .npz file, whole or not at all."""
    with _told(f"--save-stats: cannot write {path}"):
        _stream.save(path, *statistics)


def new_figure(width: float, height: float) -> Any:
    """Return a matplotlib figure of this size in inches."""
    # Without pyplot: no window system is looked for, and no state is left behind.
    return imported("matplotlib.figure", "matplotlib").Figure(figsize=(width, height), layout="constrained")


def check_figure(path: Path | None) -> None:
    """Make sure, before the work is done, that there can be a drawing, if one is wanted, and that it can be written."""
    if path is not None:
        imported("matplotlib.figure", "matplotlib")
        suffix_of(path, "--plot", FIGURES)
        check_file(path, "--plot")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure, in the format that the suffix names."""
    with writing(path, "--plot") as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)


def imported(module: str, package: str) -> Any:
    """Return a module of a package; where it is not there, say what is to be installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        reason = str(error).partition("\n")[0]
        raise CommandError(f"{package} is needed ({reason}); {INSTALL}") from None
