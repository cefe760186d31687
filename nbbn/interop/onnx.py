"""ONNX models: their BatchNormalization nodes."""

from __future__ import annotations

import contextlib
import os
from collections import ChainMap
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple, overload

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._files import paths
from nbbn.interop import _layers
from nbbn.interop import _onnx_activations as onnx_activations
from nbbn.layer.batch_norm import BatchNorm

_OPERATOR = "BatchNormalization"
_DOMAINS = ("", "ai.onnx")
# the inputs after X: ONNX's name -> the layer's attribute
_INPUTS = {"scale": "gamma", "B": "beta", "mean": "running_mean", "var": "running_var"}
_MOST_BYTES = 1 << 31  # protobuf has no larger messages
# Exporters keep equal vectors once, as those of a network that was not trained; ResNet-152 has 2.4 MB of
# them. Without a limit a file of 150 KB took 600 MB.
_MOST_SHARED = 16 << 20
_KIND = "an ONNX model"
_EPSILON, _MOMENTUM = float(np.float32(1e-5)), float(np.float32(0.9))  # as a file would hold them


class _Type(NamedTuple):
    """How the values of a tensor are kept."""

    field: str  # where they are numbers
    dtype: str  # of the raw bytes
    name: str


_TYPES = {
    1: _Type("float_data", "<f4", "float32"),
    10: _Type("int32_data", "<f2", "float16"),
    11: _Type("double_data", "<f8", "float64"),
    16: _Type("int32_data", "<u2", "bfloat16"),
}


@overload
def from_onnx(path_or_model: Any, *, name: None = None, activations: bool = False) -> dict[str, BatchNorm]: ...


@overload
def from_onnx(path_or_model: Any, *, name: str, activations: bool = False) -> BatchNorm: ...


def from_onnx(
    path_or_model: Any, *, name: str | None = None, activations: bool = False
) -> dict[str, BatchNorm] | BatchNorm:
    """Return the BatchNormalization nodes of an ONNX model.

    ONNX's momentum is the weight of the old statistics, nbbn's of the new ones: 0.9 becomes 0.1
    (to the last bit of the float32 that the file holds; the same for epsilon). The variance enters
    the running one without a correction (``running_correction=0``). float16 and bfloat16 widen
    to float32. Needs onnx.

    Parameters
    ----------
    path_or_model : str, path-like or onnx.ModelProto
        The file, in ONNX's binary format, or the model.
    name : str, optional
        Which node to return, whatever is wrong with others; by default all.
    activations : bool, default False
        Whether the activation that alone reads a node's output becomes that of the layer: Relu, Clip from 0 to 6,
        LeakyRelu, HardSwish, Mish, PRelu with a constant slope a channel or one for all, Swish, and Sigmoid with the
        Mul that makes it one. ``bn.activation`` tells. What else follows is left to you.

    Returns
    -------
    dict of str to BatchNorm, or BatchNorm
        New layers in inference mode, by the name of the node, in the order of the file. A node goes by
        its first output where it has no name or an earlier one has the same, and with "#2" and so on
        behind it where that is taken, too.

    Raises
    ------
    ImportError
        Where onnx is not installed.
    OSError
        Where the file can't be read.
    TypeError
        Where ``path_or_model`` is neither a file's name nor a model.
    ValueError
        Where it is not an ONNX model, there is no node of that name, or a node's parameters are not
        constants of the model (initializers or Constant nodes, directly or through Identity); the
        message names node and input. Also where ``path_or_model`` is a pipe or a device, and where nodes
        share more than 16 MiB of parameters: each layer has its own.

    Notes
    -----
    Nodes in the branches and bodies of If, Loop and Scan are included, those in a model's local
    functions are not, as their parameters come from the caller. Of external data, only regular files in
    the folder of the model's file are read: no absolute path, no "..", no link that leads
    elsewhere. A model that is passed as an object has no folder: load its external data first.
    An output of the graph is read by whoever runs it, so nothing follows it alone.
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
    reading: Any = contextlib.nullcontext
    if isinstance(path_or_model, onnx.ModelProto):
        model, source = path_or_model, _Source(None)
    elif isinstance(path_or_model, str | os.PathLike):
        path = Path(path_or_model)
        source = _Source(path.parent)
        reading = partial(_layers.reading, "path_or_model", _KIND, path)
        with paths.opened(f"path_or_model: expected {_KIND}", path) as file, reading():
            size = os.fstat(file.fileno()).st_size
            if size > _MOST_BYTES:
                raise ValueError(f"the file has more than {_MOST_BYTES} bytes")
            model = onnx.ModelProto.FromString(file.read(size))
    else:
        raise TypeError(
            f"path_or_model: expected a file's name or an onnx.ModelProto, got {type(path_or_model).__name__}"
        )
    with reading():
        nodes = _named(model)
    if name is not None and name not in nodes:
        raise ValueError(f"name: expected one of {_layers.shown(nodes)}, got {name!r}")
    source.fuses = fuse
    with reading():
        if name is not None:
            return _layer(name, *nodes[name], source)
        return {key: _layer(key, *found, source) for key, found in nodes.items()}


class _Source:
    """Where the tensors of a model are, and what was taken of them."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.fuses = False  # whether activations are taken, too
        self._readers: dict[int, onnx_activations.Readers] = {}
        self._places: set[Any] = set()
        self._shared = 0

    def readers(self, graph: Any) -> onnx_activations.Readers:
        """Return the nodes that read each value of a graph."""
        if id(graph) not in self._readers:
            self._readers[id(graph)] = onnx_activations.readers_of(graph)
        return self._readers[id(graph)]

    def take(self, place: Any, size: int, taken: int) -> None:
        """Count bytes of a place that has ``size`` of them; what is taken again takes more memory."""
        if place not in self._places:
            self._places.add(place)
            self._shared -= size
        self._shared += taken
        if self._shared > _MOST_SHARED:
            raise ValueError(
                f"expected at most {_MOST_SHARED} bytes of parameters that nodes share, got more (name= takes one node)"
            )


def _named(model: Any) -> dict[str, tuple[Any, ChainMap[str, Any], Any]]:
    """Return the nodes of the model by name, what names mean to each, and its graph.

    A node that has neither a name nor an output goes by "".
    """
    if not model.HasField("graph"):
        raise ValueError("model: expected a graph, got none")
    found: dict[str, tuple[Any, ChainMap[str, Any], Any]] = {}
    numbers: dict[str, Iterator[int]] = {}
    for node, scope, graph in _walk(model.graph, ChainMap()):
        first = node.output[0] if node.output else ""
        name = first if not node.name or node.name in found else node.name
        if name and name in found:  # the branches of an If may share theirs
            more = numbers.setdefault(name, count(2))
            name = next(f"{name}#{k}" for k in more if f"{name}#{k}" not in found)
        found.setdefault(name, (node, scope, graph))
    return found


def _walk(graph: Any, outer: ChainMap[str, Any]) -> Iterator[tuple[Any, ChainMap[str, Any], Any]]:
    """Yield the nodes of the graph and the graphs within, what names mean to each, and its graph.

    A name means an initializer, the node that computes it or, for an input, None.
    """
    names: dict[str, Any] = {value.name: None for value in graph.input}
    names |= {output: node for node in graph.node for output in node.output if output}
    names |= {tensor.name: tensor for tensor in graph.initializer}
    scope = outer.new_child(names)
    for node in graph.node:
        if node.op_type == _OPERATOR and node.domain in _DOMAINS:
            yield node, scope, graph
        for inner in onnx_activations.graphs_in(node):
            yield from _walk(inner, scope)


def _layer(name: str, node: Any, scope: ChainMap[str, Any], graph: Any, source: _Source) -> BatchNorm:
    try:
        if not name:
            raise ValueError("expected a name or an output, got none")
        return _checked(node, scope, graph, source)
    except (TypeError, ValueError) as error:
        raise ValueError(f"node {node.name or next(iter(node.output), '')!r}: {error}") from error


def _checked(node: Any, scope: ChainMap[str, Any], graph: Any, source: _Source) -> BatchNorm:
    given = {attribute.name: attribute for attribute in node.attribute}
    if len(node.input) != len(_INPUTS) + 1:
        raise ValueError(f"expected 5 inputs, got {len(node.input)}")
    # Before opset 9: a mean and a variance for each place of an image, if the parameters are so large.
    places = ", spatial=0" if "spatial" in given and given["spatial"].i == 0 else ""
    values = {
        attribute: _parameter(f"input {kind} ({name!r}{places})", name, scope, source)
        for (kind, attribute), name in zip(_INPUTS.items(), node.input[1:], strict=True)
    }
    fused: dict[str, Any] = {}
    if source.fuses:
        channels = np.size(values["gamma"][1])
        numbers = partial(_numbers, scope, source)
        fused = onnx_activations.following(node, source.readers(graph), numbers, channels)
        if "slope" in fused:
            values["slope"] = "slope", fused.pop("slope")
    old = given["momentum"].f if "momentum" in given else _MOMENTUM
    return _layers.make_layer(
        values,
        eps=given["epsilon"].f if "epsilon" in given else _EPSILON,
        momentum=_layers.complement(old),
        running_correction=0,
        **fused,
    )


def _numbers(scope: ChainMap[str, Any], source: _Source, name: str) -> tuple[tuple[int, ...], Array]:
    """Return the shape and the values, in a row, of a constant; a ValueError where it is none."""
    found = _meaning(name, name, scope)
    given = getattr(found, "attribute", ())
    tensor = next((a.t for a in given if a.name == "value"), found)
    if not hasattr(tensor, "dims"):
        raise ValueError(f"{name}: expected a constant")
    flat, shape = type(tensor)(), tuple(tensor.dims)
    flat.CopyFrom(tensor)
    flat.dims[:] = [int(np.prod(shape))]
    return shape, _values(name, flat, id(found), source)


def _parameter(label: str, name: str, scope: ChainMap[str, Any], source: _Source) -> tuple[str, Array]:
    """Return the label and the values of an input."""
    found = _meaning(label, name, scope)
    if found is None:
        raise ValueError(f"{label}: expected a constant, got an input of the graph")
    if not hasattr(found, "op_type"):
        return label, _values(label, found, id(found), source)
    if found.op_type != "Constant":
        raise ValueError(f"{label}: expected a constant, got the output of {found.op_type}")
    return label, _constant(label, found, source)


def _meaning(label: str, name: str, scope: ChainMap[str, Any]) -> Any:
    """Return what a name means, as in `_walk`, but for Identity what its input means.

    The names on the way mean the same from then on: else many nodes behind a long chain would take
    the time of their product.
    """
    passed: list[tuple[dict[str, Any], str]] = []
    seen, maps = set(), scope.maps
    while True:
        level = next((k for k, names in enumerate(maps) if name in names), None)
        if level is None:
            raise ValueError(f"{label}: expected a constant, got a name that nothing has")
        maps = maps[level:]
        found = maps[0][name]
        through = getattr(found, "op_type", "") == "Identity" and found.input
        if not through or id(found) in seen:
            break
        seen.add(id(found))
        passed.append((maps[0], name))  # type: ignore[arg-type]
        name = found.input[0]
    for names, each in passed:
        names[each] = found
    return found


def _constant(label: str, node: Any, source: _Source) -> Array:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.HasField("t"):
            return _values(label, attribute.t, id(node), source)
        if attribute.name == "value_floats":
            size = 4 * len(attribute.floats)
            source.take(id(node), size, size)
            return np.array(attribute.floats, np.float32)
    kinds = [attribute.name for attribute in node.attribute]
    raise ValueError(f"{label}: expected a Constant with value or value_floats, got {kinds}")


def _values(label: str, tensor: Any, place: int, source: _Source) -> Array:
    """Return a tensor as an array; sizes are compared before memory is taken."""
    kind = _TYPES.get(tensor.data_type)
    if kind is None:
        accepted = ", ".join(sorted(each.name for each in _TYPES.values()))
        raise ValueError(f"{label}: expected {accepted}, got ONNX's type {tensor.data_type}")
    shape = tuple(tensor.dims)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"{label}: expected shape (C,), one value a channel, got {shape}")
    dtype = np.dtype(kind.dtype)
    size = shape[0] * dtype.itemsize
    if tensor.data_location == 1:
        data = _external(label, tensor, size, source)
    else:
        source.take(place, size, size)
        if not tensor.HasField("raw_data"):
            return _typed(label, kind, getattr(tensor, kind.field), shape[0])
        data = tensor.raw_data
    if len(data) != size:
        raise ValueError(f"{label}: expected {size} bytes for shape {shape}, got {len(data)}")
    values = np.frombuffer(data, dtype)
    return _layers.from_bfloat16(values) if kind.name == "bfloat16" else values


def _typed(label: str, kind: _Type, numbers: Any, count: int) -> Array:
    if len(numbers) != count:
        raise ValueError(f"{label}: expected {count} values in {kind.field}, got {len(numbers)}")
    if kind.field != "int32_data":
        return np.array(numbers, kind.dtype)
    bits = np.array(numbers, np.int64)  # 16 bits each
    if bits.min() < 0 or bits.max() > np.iinfo(np.uint16).max:
        raise ValueError(f"{label}: expected 16 bits a value in {kind.field}, got more")
    half = bits.astype(np.uint16)
    return _layers.from_bfloat16(half) if kind.name == "bfloat16" else half.view(np.float16)


def _external(label: str, tensor: Any, length: int, source: _Source) -> bytes:
    """Return the bytes that a file beside the model holds for the tensor."""
    if source.folder is None:
        raise ValueError(
            f"{label}: expected the values in the model, got external data, which is read only beside a model's file"
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    path = _beside(label, location, source.folder)
    offset = _size(label, "offset", entries.get("offset", "0"))
    given = _size(label, "length", entries.get("length", str(length)))
    if given != length:
        raise ValueError(f"{label}: expected {length} bytes of external data, got length {given}")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if offset + length > size:
            raise ValueError(f"{label}: expected {length} bytes from byte {offset} of {location!r}, which has {size}")
        source.take(path, size, length)
        file.seek(offset)
        return file.read(length)


def _beside(label: str, location: str, folder: Path) -> Path:
    """Return the file at ``location`` if it is one of the folder."""
    root = folder.resolve()
    paths = (PurePosixPath(location), PureWindowsPath(location))
    leaves = any(path.anchor or ".." in path.parts for path in paths)
    found = root if leaves or "\0" in location else (root / location).resolve()
    if not location or not found.is_relative_to(root) or not found.is_file():
        raise ValueError(f"{label}: expected external data in a file of the model's folder, got {location!r}")
    return found


def _size(label: str, name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise ValueError(f"{label}: expected {name} to be a number of bytes, got {text[:40]!r}")
    return int(text)
