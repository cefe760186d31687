"""Which activation alone follows a node of an ONNX graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = Callable[[str], tuple[tuple[int, ...], NDArray[Any]]]  # a name -> shape and values of a constant

Readers = dict[str, list[Any]]

_PLAIN = {"Relu": "relu", "HardSwish": "hard_swish", "Mish": "mish"}


def following(node: Any, readers: Readers, numbers: Numbers, channels: int) -> dict[str, Any]:
    """Return the options, and perhaps the slopes, of a layer with the activation that follows; or nothing."""
    output = node.output[0]
    found = readers.get(output, [])
    try:
        if len(found) == 2:
            return _silu(output, found, readers)
        if len(found) == 1 and found[0] is not None and found[0].input[0] == output:
            return _options(found[0], numbers, channels)
    except ValueError:  # not a constant, or not of numbers
        pass
    return {}


def readers_of(graph: Any, inside: bool = False) -> Readers:
    """Return the nodes that read each value, one for each time; None for who is no node of this graph."""
    found: Readers = {output.name: [None] for output in graph.output}
    for node in graph.node:
        for name in node.input:
            found.setdefault(name, []).append(None if inside else node)
        for inner in graphs_in(node):
            for name, nodes in readers_of(inner, True).items():
                found.setdefault(name, []).extend(nodes)
    return found


def graphs_in(node: Any) -> Iterator[Any]:
    """Yield the branches and bodies of a node."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _options(node: Any, numbers: Numbers, channels: int) -> dict[str, Any]:
    if node.domain not in ("", "ai.onnx"):
        return {}
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in _PLAIN:
        return {"activation": _PLAIN[node.op_type]}
    if node.op_type == "LeakyRelu":
        slope = given["alpha"].f if "alpha" in given else 0.01
        return {"activation": "leaky_relu", "negative_slope": slope}
    if node.op_type == "Swish" and ("alpha" not in given or given["alpha"].f == 1.0):
        return {"activation": "silu"}
    if node.op_type == "Clip":
        ends = [given[name].f for name in ("min", "max") if name in given]
        ends += [float(numbers(name)[1][0]) for name in node.input[1:] if name]
        return {"activation": "relu6"} if ends == [0.0, 6.0] else {}
    if node.op_type == "PRelu":
        shape, slope = numbers(node.input[1])
        lead = [n for k, n in enumerate(shape) if any(m != 1 for m in shape[: k + 1])]
        if slope.size == 1 or (lead[:1] == [channels] and slope.size == channels):
            return {"activation": "prelu", "slope": np.resize(slope, channels)}
    return {}


def _silu(output: str, found: list[Any], readers: Readers) -> dict[str, Any]:
    """Return silu where the two readers are Sigmoid, and Mul of both."""
    kinds = {reader.op_type: reader for reader in found if reader is not None}
    if kinds.keys() != {"Sigmoid", "Mul"}:
        return {}
    part = kinds["Sigmoid"].output[0]
    alone = readers.get(part) == [kinds["Mul"]]
    return {"activation": "silu"} if alone and {*kinds["Mul"].input} == {output, part} else {}
