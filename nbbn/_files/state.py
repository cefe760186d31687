"""State of a layer in dictionaries and files: strict, atomic, and without pickle."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn._files import paths
from nbbn._files.npy import read_header

Array = NDArray[Any]

_COUNTER = "num_batches_tracked"
OPTIONS = "options"
_MOST_OPTIONS = 1 << 16  # bytes
FEW_FEATURES = 1 << 20


def checked_state(
    state: Mapping[str, Any], arrays: Collection[str], channels: int, dtype: np.dtype[Any]
) -> tuple[dict[str, Array], int]:
    """Return these arrays of ``state``, of so many channels and this dtype, and its counter; it has no others."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state: expected a mapping, got {type(state).__name__}")
    names = sorted([*arrays, _COUNTER])
    if sorted(map(str, state)) != names:
        torch = any(str(name).rpartition(".")[2] in ("weight", "running_mean") for name in state)
        advice = " (nbbn.interop.from_torch makes layers of PyTorch's)" if torch else ""
        raise ValueError(f"state: expected the names {names}, got {sorted(map(str, state))}{advice}")
    found = {}
    for name in arrays:
        if isinstance(state[name], np.ma.MaskedArray):
            raise TypeError(f"{name}: expected a plain array, got a masked array")
        array = np.array(state[name])  # a copy: it may be another array of the same layer
        if array.dtype != dtype:
            raise ValueError(f"{name}: expected dtype {dtype.name}, got {array.dtype.name}")
        if array.shape != (channels,):
            raise ValueError(f"{name}: expected shape {(channels,)}, got {array.shape}")
        found[name] = array
    return found, counter(state[_COUNTER])


def counter(value: Any) -> int:
    """Return ``value``, one integer of any numeric type and shape, as a number of batches.

    Programs that cast a whole checkpoint make it float16, others give all entries a dimension.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{_COUNTER}: expected an integer, got a masked array")
    array = np.asarray(value)
    if array.size != 1:
        raise TypeError(f"{_COUNTER}: expected one integer, got shape {array.shape}")
    found = array.reshape(-1)[0]
    kind = array.dtype.kind
    is_float = kind == "f" or (kind == "V" and array.dtype.name == "bfloat16")
    if not (kind in "iu" or (is_float and float(found).is_integer())):
        raise TypeError(f"{_COUNTER}: expected an integer, got {value!r}")
    number = int(found)
    if not 0 <= number <= np.iinfo(np.int64).max:
        raise ValueError(f"{_COUNTER}: expected an integer from 0 to 2**63 - 1, got {number}")
    return number


def save_arrays(path: str | os.PathLike[str], arrays: dict[str, Any]) -> None:
    """Write an .npz file of these arrays, whole or not at all."""
    with replacing(path) as file:
        np.savez(file, **arrays)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a file beside ``path`` for writing and rename it to ``path`` once it is on the disk."""
    old = paths.check_regular("path: expected a regular file or a new name", path)
    target = Path(os.path.realpath(path))  # a link stays one; Path.resolve raises RuntimeError for links in a ring
    temporary = target.with_name(f".nbbn-{secrets.token_hex(8)}.tmp")

    def create(name: str, flags: int) -> int:
        # Whom the mode of the old file keeps out, the new one's does, while it is written too.
        permissions = 0o666 if old is None else old & 0o777 | 0o600
        return os.open(name, flags, permissions)  # less the process's umask

    try:  # from before the file is there: a signal handler may raise as soon as it is
        with open(temporary, "xb", opener=create) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is none yet
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = os.fspath(path)  # the one that was asked for
        raise
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class StateFile:
    """An open .npz file; every size is checked against the file's own before memory is taken."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive, self._size = archive, size

    def options(self) -> dict[str, Any]:
        found = json.loads(str(self._read(OPTIONS, "U")))
        if not isinstance(found, dict):
            raise ValueError(f"{OPTIONS}: expected a JSON object, got {type(found).__name__}")
        # The layer takes num_features values a vector: a member must claim to hold them, and the file
        # be as large. A layer may have none to hold, so up to a million, a few MB, are believed.
        features = found.get("num_features") or 0  # None: not built when it was saved
        claimed = max((member.file_size for member in self._archive.infolist()), default=0)
        itemsize = 8 if found.get("dtype") == "float64" else 4
        most = max(min(claimed, self._size) // itemsize, FEW_FEATURES)
        if not isinstance(features, int) or features > most:
            raise ValueError(f"num_features: expected what the file can hold, got {features!r}")
        return found

    def state(self, arrays: Collection[str]) -> dict[str, Any]:
        """Return these arrays and the counter, for `checked_state`."""
        found = self.vectors((*arrays, _COUNTER), (), OPTIONS)
        del found[OPTIONS]
        number = found[_COUNTER]
        if number.dtype.kind not in "iu" or number.shape:  # `counter` takes more
            raise ValueError(f"{_COUNTER}: got dtype {number.dtype} and shape {number.shape}")
        return found

    def vectors(self, required: tuple[str, ...], optional: tuple[str, ...], text: str) -> dict[str, Array]:
        """Return the members, vectors of numbers, or scalars, and one of ``text``, and nothing else."""
        names = sorted(member.filename.removesuffix(".npy") for member in self._archive.infolist())
        others = (*optional, text)
        if len({*names}) < len(names) or not {*required} <= {*names} <= {*required, *others}:
            raise ValueError(
                f"expected the arrays {' and '.join(required)}, and no others than {', '.join(others)}, "
                f"got {', '.join(names)}"
            )
        return {name: self._read(name, "U" if name == text else "fiu") for name in names}

    def _read(self, name: str, kinds: str) -> Array:
        """Return a vector or a scalar of one of these kinds of dtypes, of at most 8 bytes but for text."""
        info = self._archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ValueError(f"{name}: expected an uncompressed member")
        if name == OPTIONS and info.file_size > _MOST_OPTIONS:
            raise ValueError(f"{name}: expected at most {_MOST_OPTIONS} bytes")
        with self._archive.open(info) as member:
            header = read_header(name, member)
            shape, fortran_order, dtype = header
            right = dtype.kind in kinds and dtype.isnative and (dtype.kind == "U" or dtype.itemsize <= 8)
            if fortran_order or not right or len(shape) > 1:
                raise ValueError(f"{name}: got dtype {dtype} and shape {shape}")
            payload = member.read()
        if len(payload) != header.nbytes:
            raise ValueError(f"{name}: expected as many bytes as its header says")
        return np.frombuffer(payload, dtype).reshape(shape)


@contextlib.contextmanager
def opened(path: str | os.PathLike[str], writer: str = "save") -> Iterator[StateFile]:
    """Open a file that ``writer`` wrote; whatever is wrong with its contents is a ValueError."""
    expected = f"path: expected an .npz file that {writer} wrote"
    with paths.opened(expected, path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                yield StateFile(archive, os.fstat(file.fileno()).st_size)
        except Exception as error:
            raise ValueError(f"{expected}, got {path!s} ({type(error).__name__}: {error})") from error
