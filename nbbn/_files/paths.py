"""Files by name: which are read, and which are replaced."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class FileError(ValueError):
    """What is wrong with a file, or became so while it was read."""


class Source:
    """A file that is open for reading, and is not to be written to meanwhile."""

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO) -> None:
        self.path, self._file = str(path), file
        self._state = self._look()
        self.size = self._state[0]

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise FileError where the file was written to since it was opened."""
        if self._look() != self._state:
            raise FileError(f"{self.path}: it was changed while it was read")


def check_regular(expected: str, path: str | os.PathLike[str]) -> int | None:
    """Return the permissions of a regular file, None where nothing is there.

    Anything else is an error. To open a pipe may wait for ever, a device may have no end, and a file
    that takes the place of one breaks those who use it.
    """
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{expected}, got {path!s}, {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}")
    return stat.S_IMODE(mode)


def opened(expected: str, path: str | os.PathLike[str], buffering: int = -1) -> BinaryIO:
    """Open a regular file to read from; ``expected`` begins the message about any other."""
    check_regular(expected, path)
    return Path(path).open("rb", buffering)
