"""Arrays in .npy files: strict headers, and values read and written at any place.

Not by memory maps. Mapping a file takes as much of the address space, which a process may have little of (``ulimit
-v``); where a file shrinks meanwhile, a map ends the process; and a page fault costs more than copying the page.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nbbn._files import paths

Array = NDArray[Any]

_HEADER = re.compile(
    r"\{ *'descr' *: *'(?P<dtype>[<>|=][a-zA-Z][0-9]{0,7})' *, *"
    r"'fortran_order' *: *(?P<order>False|True) *, *"
    r"'shape' *: *\((?P<shape>|[0-9]{1,15},|[0-9]{1,15}(?:, *[0-9]{1,15}){1,63},?)\) *,? *\} *\n?"
)
_MEMBER = 1 << 20  # bytes of a member that are copied at once
_MOST_HEADER = 10_000  # bytes; numpy's own limit for a header it trusts


class Header(NamedTuple):
    """What an .npy file says of itself."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


def read_header(name: str, file: Any) -> Header:
    """Read the header of an .npy file; only a plain form, that `numpy.save` writes, is taken.

    NumPy's own reader evaluates the text, with warnings for some, and takes more than is needed here:
    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    version = npy.read_magic(file)
    field = {(1, 0): "<H", (2, 0): "<I"}.get(version)
    if field is None:
        raise ValueError(f"{name}: expected .npy version 1 or 2, got {version}")
    (length,) = struct.unpack(field, file.read(struct.calcsize(field)))
    if length > _MOST_HEADER:
        raise ValueError(f"{name}: expected a header of at most {_MOST_HEADER} bytes")
    text = file.read(length).decode("ascii")
    found = _HEADER.fullmatch(text)
    if found is None:
        raise ValueError(f"{name}: expected an .npy header, got {text[:80]!r}")
    shape = tuple(int(size) for size in found["shape"].split(",") if size)
    return Header(shape, found["order"] == "True", np.dtype(found["dtype"]))


class _Values:
    """The values of an open .npy file, for several threads at once."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file, self.header, self._start = file, header, file.tell()
        self._seeking = threading.Lock()

    def _move(self, first: int, values: Array, at_place: str, where_it_is: str) -> bool:
        """Read or write contiguous ``values``, from number ``first`` on; return whether the file has them all.

        By the function of ``os`` where the system has it, else by the method of the file, after a seek.
        """
        of_bytes: Any = values.reshape(-1).view(np.uint8)
        memory, place, done = memoryview(of_bytes), self._start + first * values.itemsize, 1
        while memory and done:  # the system may do a part at a time
            if hasattr(os, at_place):
                done = getattr(os, at_place)(self._file.fileno(), [memory], place)
            else:
                with self._seeking:
                    self._file.seek(place)
                    done = getattr(self._file, where_it_is)(memory)
                    self._file.flush()
            memory, place = memory[done:], place + done
        return not memory

    def advise(self, first: int, count: int, advice: str) -> None:
        """Tell the system what becomes of these values: see `os.posix_fadvise`."""
        if hasattr(os, "posix_fadvise"):
            size = self.header.dtype.itemsize
            place, length = self._start + first * size, count * size
            with contextlib.suppress(OSError):  # not every file system can
                os.posix_fadvise(self._file.fileno(), place, length, getattr(os, f"POSIX_FADV_{advice}"))


class NpyFile(_Values, paths.Source):
    """An .npy file that is open for reading."""

    def __init__(self, path: str | os.PathLike[str], file: BinaryIO, key: str = "arr_0") -> None:
        paths.Source.__init__(self, path, file)
        self.key = key  # of it in an .npz file
        try:
            header = read_header("header", file)
        except Exception as error:
            raise paths.FileError(f"{path}: expected an .npy file ({error})") from error
        if header.dtype.hasobject:
            raise paths.FileError(f"{path}: expected numbers, got Python objects")
        _Values.__init__(self, file, header)
        expected = self._start + header.nbytes
        if self.size != expected:
            raise paths.FileError(
                f"{path}: expected a file of {expected} bytes for shape {header.shape}, got {self.size}"
            )

    def read(self, first: int, values: Array) -> None:
        """Fill contiguous ``values`` with those of the file from number ``first`` on."""
        try:
            whole = self._move(first, values, "preadv", "readinto")
        except OSError as error:
            raise paths.FileError(f"{self.path}: cannot be read: {error.strerror}") from error
        if not whole:
            raise paths.FileError(f"{self.path}: it became shorter while it was read")


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], name: str = "path") -> Iterator[NpyFile]:
    """Open an .npy file; whatever is wrong with its header or its size is a FileError."""
    with paths.opened(f"{name}: expected an .npy file", path, buffering=0) as file:
        yield NpyFile(path, file)


@contextlib.contextmanager
def opened_member(path: str | os.PathLike[str], name: str, key: str | None) -> Iterator[NpyFile]:
    """Open one array of an .npz file, by its key where there are several; else as `opened`."""
    # A member may be compressed, and is read at any place: so a file is made of it.
    with paths.opened(f"{name}: expected an .npz file", path) as file, tempfile.TemporaryFile() as whole:
        try:
            with zipfile.ZipFile(file) as archive:
                keys = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
                wanted = keys[0] if key is None and len(keys) == 1 else key
                if wanted in keys:
                    with archive.open(f"{wanted}.npy") as member:
                        shutil.copyfileobj(member, whole, _MEMBER)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
            raise paths.FileError(f"{path}: expected an .npz file ({error})") from error
        if wanted not in keys:
            listed = ", ".join(keys[:9]) or "no array"
            raise paths.FileError(f"--key: expected one of the arrays in {path} ({listed}), got {key}")
        whole.seek(0)
        yield NpyFile(path, whole, str(wanted))


def pack(file: BinaryIO, key: str, values: BinaryIO) -> None:
    """Write an .npz file of one array, which is an .npy file."""
    values.seek(0)
    with zipfile.ZipFile(file, "w") as archive, archive.open(f"{key}.npy", "w", force_zip64=True) as member:
        shutil.copyfileobj(values, member, _MEMBER)


def write_header(file: BinaryIO, header: Header) -> None:
    """Write what an .npy file begins with: of two dimensions 128 bytes, however many rows there are."""
    fields = {"descr": npy.dtype_to_descr(header.dtype), "fortran_order": header.fortran_order, "shape": header.shape}
    npy.write_array_header_1_0(file, fields)


class NpyOutput(_Values):
    """An .npy file that is being written."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        write_header(file, header)
        file.flush()
        super().__init__(file, header)
        # A limit on the size of files is met here, not after an hour.
        file.truncate(self._start + header.nbytes)

    def write(self, first: int, values: Array) -> None:
        """Write contiguous ``values`` from number ``first`` on."""
        self._move(first, values, "pwritev", "write")
