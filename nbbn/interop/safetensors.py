"""Safetensors files: layers of nbbn, and of PyTorch networks."""

from __future__ import annotations

import json
import math
import os
from typing import Any, BinaryIO

import numpy as np

from nbbn._checks import Array
from nbbn._files import paths
from nbbn._files import state as state_files
from nbbn.interop import _layers
from nbbn.layer.batch_norm import BatchNorm

_OPTIONS = "nbbn.BatchNorm"
_INTEGERS = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)}
_DTYPES = {"F16": "<f2", "BF16": "<u2", "F32": "<f4", "F64": "<f8", **_INTEGERS}  # integers for the counter alone


def save_safetensors(bn: BatchNorm, path: str | os.PathLike[str]) -> None:
    """Write configuration, parameters and running statistics to a safetensors file, for `load_safetensors`.

    The arrays have the names of ``bn.state_dict()``; the configuration is in the file's metadata. Needs safetensors.

    Parameters
    ----------
    bn : BatchNorm
        The layer.
    path : str or path-like
        The file's name, used as it is; the file is replaced as by `nbbn.BatchNorm.save`.

    Raises
    ------
    ImportError, TypeError
        Where safetensors is not installed, and where ``bn`` is not a BatchNorm.
    OSError, ValueError
        As `nbbn.BatchNorm.save`.

    Examples
    --------
    >>> import nbbn, os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "bn.safetensors")
    ...     nbbn.interop.save_safetensors(nbbn.BatchNorm(3, axis=-1, momentum=None), path)
    ...     nbbn.interop.load_safetensors(path)
    BatchNorm(3, axis=-1, momentum=None, training)
    """
    state = _layers.instance(bn).state_dict()
    arrays = {**state, _layers.COUNTER: np.array(state[_layers.COUNTER], np.int64)}
    options = {**bn._options(), "training": bn.training}
    data = _layers.required("safetensors.numpy").save(arrays, metadata={_OPTIONS: json.dumps(options)})
    with state_files.replacing(path) as file:
        file.write(data)


def load_safetensors(
    path: str | os.PathLike[str], *, prefix: str = "", eps: float = 1e-5, momentum: float | None = 0.1
) -> Any:
    """Return the layer, or the layers, of a safetensors file.

    The file may be one that `save_safetensors` wrote, or one with the arrays of a PyTorch network (``weight, bias,
    running_mean, running_var, num_batches_tracked``) or of nbbn's (``gamma, beta, ...``). Only the arrays of such
    layers are read, and sizes are checked before memory is taken. Needs safetensors.

    Parameters
    ----------
    path : str or path-like
        The file's name.
    prefix, eps, momentum
        As of `from_torch` for a state dict: a file of arrays does not hold eps and momentum either.

    Returns
    -------
    BatchNorm, or dict of str to BatchNorm
        A new layer; the layers of a network by their prefixes, where none is given. One that
        `save_safetensors` wrote has its configuration and mode back, others are in inference mode.

    Raises
    ------
    ImportError, OSError
        Where safetensors is not installed, and where the file can't be read.
    ValueError
        Where it is not such a file, or has not the arrays of one layer under the prefix.

    Examples
    --------
    >>> import numpy as np, nbbn, os, tempfile, safetensors.numpy
    >>> arrays = {"bn1.running_mean": np.zeros(3), "bn1.running_var": np.ones(3)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "network.safetensors")
    ...     safetensors.numpy.save_file(arrays, path)
    ...     nbbn.interop.load_safetensors(path, prefix="bn1")
    BatchNorm(3, scale=False, center=False, dtype='float64', inference)
    """
    library = _layers.required("safetensors")
    kind = "a safetensors file with this layer"
    with paths.opened(f"path: expected {kind}", path) as file, _layers.reading("path", kind, path):
        with library.safe_open(path, framework="np"):
            pass  # it has checked the header: offsets, shapes, nothing twice, nothing left over
        found = _File(file)
        if not prefix and _OPTIONS in found.metadata:
            return _load_own(found)
        tables = _layers.TORCH_NAMES, _layers.NBBN_NAMES
        return _layers.from_arrays(found.entries, prefix, tables, found.read, eps=eps, momentum=momentum)


class _File:
    """An open file; the values are read here, as the library's NumPy side knows no bfloat16."""

    def __init__(self, file: BinaryIO) -> None:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if length > size:
            raise ValueError("the header is longer than the file")
        self.entries: dict[str, Any] = json.loads(file.read(length))
        self.metadata = self.entries.pop("__metadata__", None) or {}
        self._file, self._start, self._size = file, 8 + length, size

    def read(self, name: str) -> Array:
        """Return an array; bfloat16 widened to float32."""
        entry = self.entries[name]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(f"{name}: expected one of the types {[*_DTYPES]}, got {entry['dtype']}")
        dtype = _DTYPES[entry["dtype"]]
        begin, end = entry["data_offsets"]
        length = math.prod(entry["shape"]) * np.dtype(dtype).itemsize
        if length != end - begin or self._start + end > self._size:
            raise ValueError(f"{name}: expected {length} bytes within the file, got {end - begin}")
        self._file.seek(self._start + begin)
        values = np.frombuffer(self._file.read(length), dtype).reshape(entry["shape"])
        return _layers.from_bfloat16(values) if entry["dtype"] == "BF16" else values


def _load_own(file: _File) -> BatchNorm:
    options = json.loads(file.metadata[_OPTIONS])
    training = options.pop("training")
    shapes = [entry["shape"] for name, entry in file.entries.items() if name != _layers.COUNTER]
    features = options["num_features"]  # the layer takes memory for that many; None: not built
    if any(shape != [features] for shape in shapes) or (not shapes and (features or 0) > state_files.FEW_FEATURES):
        raise ValueError(f"num_features: expected that of the arrays, {shapes}, got {features!r}")
    bn = BatchNorm(**options).train(training)
    state = {name: file.read(name) for name in file.entries}
    for name in state.keys() - {_layers.COUNTER}:
        if file.entries[name]["dtype"] in ("F16", "BF16"):  # cast by another program
            state[name] = state[name].astype(bn.dtype)
    bn.load_state_dict(state)
    return bn
