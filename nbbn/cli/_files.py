"""The error of bad input; and files that commands write: checked before the work is done, there once they are whole."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nbbn._files import paths
from nbbn._files import state as state_files

INSTALL = 'pip install ".[demo]" in a checkout of nbbn'
_FORMATS = ("png", "svg", "pdf")
ARRAYS, TABLES = (".npy", ".npz"), (".csv", ".tsv", ".parquet")


class CommandError(Exception):
    """Bad usage or bad input: one line for standard error, exit status 2."""


def check_figure(path: Path) -> None:
    """Make sure, before the work is done, that there can be a drawing, and that it can be written."""
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise missing("matplotlib", error) from None
    if _format(path) not in _FORMATS:
        suffixes = ", ".join("." + name for name in _FORMATS)
        raise CommandError(f"--plot: the suffix must be one of {suffixes}, got {path.name!r}")
    check_file(path, "--plot")


def missing(package: str, error: ImportError) -> CommandError:
    """Return the error that says what is to be installed."""
    reason = str(error).partition("\n")[0]
    return CommandError(f"{package} is needed ({reason}); {INSTALL}")


def is_table(path: Path, name: str) -> bool:
    """Return whether a file is a table and no array, by its suffix; ``name`` is what it was given by."""
    suffix = path.suffix.lower()
    if suffix not in (*ARRAYS, *TABLES):
        suffixes = ", ".join((*ARRAYS, *TABLES))
        raise CommandError(f"{name}: the suffix must be one of {suffixes}, got {path.name!r}")
    return suffix in TABLES


def load_tables(path: Path, name: str) -> Any:
    """Return the module for tables, which needs pyarrow."""
    try:
        from nbbn.cli import _tables
    except ImportError as error:
        text = f'{name}: {path.suffix} needs pyarrow: pip install ".[tables]" in a checkout of nbbn ({error})'
        raise CommandError(text) from error
    return _tables


def check_file(path: Path, option: str) -> None:
    """Make sure that a file can be made in the folder; ``option`` is what it was given by."""
    try:
        paths.check_regular(f"{option}: expected a file", path)
        temporary = state_files.beside(path)
        try:  # an interrupt leaves no file, and nothing that is not closed
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
            temporary.unlink()
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except ValueError as error:
        raise CommandError(str(error)) from None
    except IsADirectoryError:
        raise CommandError(f"{option}: {path} is a folder, expected a file") from None
    except OSError as error:
        raise cannot_write(path, option, error) from None


def check_room(path: Path, option: str, size: int) -> None:
    """Make sure that a file system has room, before hours are spent on filling it."""
    free = shutil.disk_usage(path.resolve().parent).free
    if free < size:
        raise CommandError(f"{option}: {path} needs {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure, in the format that the suffix names."""
    _write(path, "--plot", lambda file: figure.savefig(file, format=_format(path), dpi=150))


def write_text(path: Path, text: str, option: str) -> None:
    _write(path, option, lambda file: file.write(text.encode()))


def _write(path: Path, option: str, fill: Callable[[BinaryIO], Any]) -> None:
    """Make the file, or replace it, once it is whole."""
    try:
        with state_files.replacing(path) as file:
            fill(file)
    except OSError as error:
        raise cannot_write(path, option, error) from None


def tell(line: str) -> None:
    """Print a line for who sits at a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        print(line, file=sys.stderr)


def _format(path: Path) -> str:
    return path.suffix.removeprefix(".").lower()


def cannot_write(path: Path, option: str, error: OSError) -> CommandError:
    """Return the error that says that a file cannot be written, and why."""
    return CommandError(f"{option}: cannot write {path}: {error.strerror or error}")
