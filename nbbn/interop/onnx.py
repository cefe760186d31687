"""ONNX models: their BatchNormalization nodes."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections import ChainMap
from collections.abc import Iterator
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, overload

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._files import paths
from nbbn.interop import _layers
from nbbn.interop import _onnx_activations as onnx_activations
from nbbn.layer.batch_norm import BatchNorm

# the inputs after X: ONNX's name -> the layer's attribute
_INPUTS = {"scale": "gamma", "B": "beta", "mean": "running_mean", "var": "running_var"}
_MOST_BYTES = 1 << 31  # protobuf has no larger messages
# Exporters keep equal vectors once, as those of a network that was not trained; ResNet-152 has 2.4 MB of
# them. Without a limit a file of 150 KB took 600 MB.
_MOST_SHARED = 16 << 20
_KIND = "an ONNX model"
_EPSILON, _MOMENTUM = float(np.float32(1e-5)), float(np.float32(0.9))  # as a file would hold them

# ONNX's type -> the dtype of its raw bytes, and the field where they are numbers (of 16 bits: the bits)
_FLOAT, _BFLOAT16 = 1, 16
_TYPES = {
    _FLOAT: ("<f4", "float_data"),
    10: ("<f2", "int32_data"),
    11: ("<f8", "double_data"),
    _BFLOAT16: ("<u2", "int32_data"),
}

Scope = ChainMap[str, Any]  # what a name means: an initializer, else the node that computes it; None for an input
Found = tuple[Any, Scope, onnx_activations.Readers]  # a node, and the graph around it


@overload
def from_onnx(path_or_model: Any, *, name: None = None, activations: bool = False) -> dict[str, BatchNorm]: ...


@overload
def from_onnx(path_or_model: Any, *, name: str, activations: bool = False) -> BatchNorm: ...


def from_onnx(
    path_or_model: Any, *, name: str | None = None, activations: bool = False
) -> dict[str, BatchNorm] | BatchNorm:
    """Return the BatchNormalization nodes of an ONNX model.

    ONNX's momentum is the weight of the old statistics, nbbn's of the new ones: 0.9 becomes 0.1 (to the last bit of the
    float32 that the file holds; the same for epsilon). The variance enters the running one without a correction
    (``running_correction=0``). float16 and bfloat16 widen to float32. Needs onnx.

    Parameters
    ----------
    path_or_model : str, path-like or onnx.ModelProto
        The file, in ONNX's binary format, or the model.
    name : str, optional
        Which node to return, whatever is wrong with others; by default all.
    activations : bool, default False
        Whether the activation that alone reads a node's output becomes that of the layer: Relu, Clip from 0 to 6,
        LeakyRelu, HardSwish, Mish, PRelu with a constant slope a channel or one for all, Swish, and Sigmoid with the
        Mul that makes it one. ``bn.activation`` tells. What else follows is left to you, as is what follows an output
        of the graph.

    Returns
    -------
    dict of str to BatchNorm, or BatchNorm
        New layers in inference mode, by the name of the node, in the order of the file. A node goes by its first output
        where it has no name or an earlier one has the same, and with "#2" and so on behind it where that is taken, too.

    Raises
    ------
    ImportError, OSError
        Where onnx is not installed, and where the file can't be read.
    TypeError
        Where ``path_or_model`` is neither a file's name nor a model.
    ValueError
        Where it is not an ONNX model (as no pipe or device is), where there is no node of that name, and where nodes
        share more than 16 MiB of parameters: each layer has its own. Also where a node's parameters are not constants
        of the model (initializers or Constant nodes, directly or through Identity); the message names node and input.

    Notes
    -----
    Nodes in the branches and bodies of If, Loop and Scan are included, those in a model's local functions are not, as
    their parameters come from the caller. Of external data, only regular files in the folder of the model's file are
    read: no absolute path, no "..", no link that leads elsewhere. For a model that you pass, load them first.
    ``spatial=0`` (opset 8 and before) with one value a channel is read per channel, as runtimes compute it
    for an input of two dimensions; with parameters of other shapes it's refused.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> from onnx import helper, numpy_helper
    >>> node = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], name="bn1")
    >>> graph = helper.make_graph([node], "network", [], [], initializer=[
    ...     numpy_helper.from_array(np.ones(3, np.float32), name) for name in "sbmv"])
    >>> layers = nbbn.interop.from_onnx(helper.make_model(graph))
    >>> layers["bn1"].gamma, layers["bn1"].training
    (array([1., 1., 1.], dtype=float32), False)
    """
    fuse = _checks.flag("activations", activations)
    onnx = _layers.required("onnx")
    with contextlib.ExitStack() as stack:
        if isinstance(path_or_model, onnx.ModelProto):
            model, tensors = path_or_model, _Tensors(None)
        elif isinstance(path_or_model, str | os.PathLike):
            path = Path(path_or_model)
            file = stack.enter_context(paths.opened(f"path_or_model: expected {_KIND}", path))
            stack.enter_context(_layers.reading("path_or_model", _KIND, path))
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"the file has more than {_MOST_BYTES} bytes")
            model, tensors = onnx.ModelProto.FromString(file.read(size)), _Tensors(path.parent)
        else:
            kind = type(path_or_model).__name__
            raise TypeError(f"path_or_model: expected a file's name or an onnx.ModelProto, got {kind}")
        nodes = _named(model, fuse)
        layers = {key: _layer(key, found, tensors) for key, found in nodes.items() if name in (None, key)}
    if name is None:
        return layers
    if name not in layers:
        raise ValueError(f"name: expected one of {_layers.shown(nodes)}, got {name!r}")
    return layers[name]


def _named(model: Any, fuse: bool) -> dict[str, Found]:
    """Return the nodes of the model by name; one that has neither a name nor an output goes by ""."""
    if not model.HasField("graph"):
        raise ValueError("model: expected a graph, got none")
    named: dict[str, Found] = {}
    numbers: dict[str, Iterator[int]] = {}
    for found in _walk(model.graph, ChainMap(), fuse):
        node = found[0]
        name = node.name if node.name and node.name not in named else next(iter(node.output), "")
        if name and name in named:  # the branches of an If may share theirs
            name = next(f"{name}#{k}" for k in numbers.setdefault(name, count(2)) if f"{name}#{k}" not in named)
        named.setdefault(name, found)
    return named


def _walk(graph: Any, outer: Scope, fuse: bool) -> Iterator[Found]:
    """Yield the nodes of the graph and of the graphs within; readers only to ``fuse`` activations."""
    names: dict[str, Any] = dict.fromkeys(value.name for value in graph.input)
    names |= {tensor.name: tensor for tensor in graph.initializer}
    scope = outer.new_child(names)
    readers = onnx_activations.readers_of(graph) if fuse else {}
    for node in graph.node:  # sorted, so what an Identity reads is known
        meaning = scope.get(node.input[0], node) if node.op_type == "Identity" and node.input else node
        for output in filter(None, node.output):
            names.setdefault(output, meaning)
        if node.op_type == "BatchNormalization" and node.domain in onnx_activations.DOMAINS:
            yield node, scope, readers
        for inner in onnx_activations.graphs_in(node):
            yield from _walk(inner, scope, fuse)


def _layer(name: str, found: Found, tensors: _Tensors) -> BatchNorm:
    node, scope, readers = found
    try:
        if not name:
            raise ValueError("expected a name or an output, got none")
        if len(node.input) != len(_INPUTS) + 1:
            raise ValueError(f"expected 5 inputs, got {len(node.input)}")
        # Before opset 9: a mean and a variance for each place of an image, if the parameters are so large.
        places = ", spatial=0" if any(a.name == "spatial" and a.i == 0 for a in node.attribute) else ""
        values = {}
        for (kind, attribute), given in zip(_INPUTS.items(), node.input[1:], strict=True):
            label = f"input {kind} ({given!r}{places})"
            values[attribute] = label, tensors.read(label, given, scope, vector=True)
        fused = onnx_activations.following(
            node, readers, lambda given: tensors.read(given, given, scope), values["gamma"][1].size
        )
        if "slope" in fused:
            values["slope"] = "slope", fused.pop("slope")
        return _layers.make_layer(
            values,
            eps=onnx_activations.number(node, "epsilon", _EPSILON),
            momentum=_layers.complement(onnx_activations.number(node, "momentum", _MOMENTUM)),
            running_correction=0,
            **fused,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"node {node.name or next(iter(node.output), '')!r}: {error}") from error


class _Tensors:
    """Reads the tensors of a model, and counts the bytes; sizes are compared before memory is taken."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._shared = folder, 0
        self._places: set[Any] = set()

    def read(self, label: str, name: str, scope: Scope, vector: bool = False) -> Array:
        """Return the values of the constant that a name means."""
        tensor = _constant(label, name, scope)
        shape = tuple(tensor.dims)
        if vector and (len(shape) != 1 or shape[0] < 1):
            raise ValueError(f"{label}: expected shape (C,), one value a channel, got {shape}")
        if tensor.data_type not in _TYPES:
            accepted = "bfloat16, float16, float32, float64"
            raise ValueError(f"{label}: expected {accepted}, got ONNX's type {tensor.data_type}")
        if min(shape, default=0) < 0:  # before it is counted
            raise ValueError(f"{label}: expected no size below 0, got shape {shape}")
        dtype = np.dtype(_TYPES[tensor.data_type][0])
        number = math.prod(shape)
        size = number * dtype.itemsize
        if tensor.data_location == 1:
            data = self._external(label, tensor, size)
        else:
            self._take(id(scope[name]), size, size)
            data = tensor.raw_data if tensor.HasField("raw_data") else _packed(label, tensor, number)
        if len(data) != size:
            raise ValueError(f"{label}: expected {size} bytes for shape {shape}, got {len(data)}")
        values = np.frombuffer(data, dtype).reshape(shape)
        return _layers.from_bfloat16(values) if tensor.data_type == _BFLOAT16 else values

    def _take(self, place: Any, size: int, taken: int) -> None:
        """Count bytes of a place that has ``size`` of them; what is taken again takes more memory."""
        if place not in self._places:
            self._places.add(place)
            self._shared -= size
        self._shared += taken
        if self._shared > _MOST_SHARED:
            raise ValueError(
                f"expected at most {_MOST_SHARED} bytes of parameters that nodes share, got more (name= takes one node)"
            )

    def _external(self, label: str, tensor: Any, length: int) -> bytes:
        """Return the bytes that a file beside the model holds for the tensor."""
        if self._folder is None:
            wanted, got = "the values in the model", "external data, which is read only beside a model's file"
            raise ValueError(f"{label}: expected {wanted}, got {got}")
        given = {"location": "", "offset": "0", "length": str(length)}
        given |= {entry.key: entry.value for entry in tensor.external_data}
        path = _beside(label, given["location"], self._folder)
        for key in ("offset", "length"):
            if not re.fullmatch("[0-9]{1,20}", given[key]):
                raise ValueError(f"{label}: expected {key} to be a number of bytes, got {given[key][:40]!r}")
        if int(given["length"]) != length:
            raise ValueError(f"{label}: expected {length} bytes of external data, got length {int(given['length'])}")
        with path.open("rb") as file:
            size, offset = os.fstat(file.fileno()).st_size, int(given["offset"])
            if offset + length > size:
                wanted = f"{length} bytes from byte {offset} of {given['location']!r}"
                raise ValueError(f"{label}: expected {wanted}, which has {size}")
            self._take(path, size, length)
            file.seek(offset)
            return file.read(length)


def _constant(label: str, name: str, scope: Scope) -> Any:
    """Return the tensor that a name means."""
    found, wanted = scope.get(name), "a constant"
    if hasattr(found, "dims"):
        return found
    if found is None:
        got = "an input of the graph" if name in scope else "a name that nothing has"
    elif found.op_type == "Constant":
        for each in found.attribute:
            if each.name == "value" and each.HasField("t"):
                return each.t
            if each.name == "value_floats":
                made = _layers.required("onnx").TensorProto
                return made(data_type=_FLOAT, dims=[len(each.floats)], float_data=each.floats)
        wanted, got = "a Constant with value or value_floats", str([each.name for each in found.attribute])
    else:
        got = f"the output of {found.op_type}"
    raise ValueError(f"{label}: expected {wanted}, got {got}")


def _packed(label: str, tensor: Any, count: int) -> bytes:
    """Return the bytes of a tensor that is kept as numbers."""
    dtype, field = _TYPES[tensor.data_type]
    numbers = getattr(tensor, field)
    if len(numbers) != count:
        raise ValueError(f"{label}: expected {count} values in {field}, got {len(numbers)}")
    if field == "int32_data":
        dtype = "<u2"
        if not 0 <= min(numbers) <= max(numbers) < 1 << 16:
            raise ValueError(f"{label}: expected 16 bits a value in {field}, got more")
    return np.array(numbers, dtype).tobytes()


def _beside(label: str, location: str, folder: Path) -> Path:
    """Return the file at ``location`` if it is one of the folder."""
    root = folder.resolve()
    leaves = any(path.anchor or ".." in path.parts for path in (PurePosixPath(location), PureWindowsPath(location)))
    found = root if leaves or "\0" in location else (root / location).resolve()
    if not location or not found.is_relative_to(root) or not found.is_file():
        raise ValueError(f"{label}: expected external data in a file of the model's folder, got {location!r}")
    return found
