"""Which activation alone follows a node of an ONNX graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nbbn._checks import Array

Numbers = Callable[[str], Array]  # a name -> the values of a constant
Readers = dict[str, list[Any]]

DOMAINS = ("", "ai.onnx")
_PLAIN = {"Relu": "relu", "HardSwish": "hard_swish", "Mish": "mish"}


def following(node: Any, readers: Readers, numbers: Numbers, channels: int) -> dict[str, Any]:
    """Return the options, and perhaps the slopes, of a layer with the activation that follows; or nothing."""
    output = next(iter(node.output), None)
    found = readers.get(output, []) if output else []
    if any(reader is None or reader.domain not in DOMAINS for reader in found):
        return {}
    kinds = {reader.op_type: reader for reader in found}
    if kinds.keys() == {"Sigmoid", "Mul"} and len(found) == 2:
        part, product = kinds["Sigmoid"].output[0], kinds["Mul"]
        return {"activation": "silu"} if readers.get(part) == [product] and {*product.input} == {output, part} else {}
    if len(found) == 1 and found[0].input[0] == output:
        with contextlib.suppress(ValueError):  # not a constant, or not of numbers
            return _options(found[0], numbers, channels)
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


def number(node: Any, name: str, default: float) -> float:
    return next((attribute.f for attribute in node.attribute if attribute.name == name), default)


def _options(node: Any, numbers: Numbers, channels: int) -> dict[str, Any]:
    kind = node.op_type
    if kind in _PLAIN:
        return {"activation": _PLAIN[kind]}
    if kind == "LeakyRelu":
        return {"activation": "leaky_relu", "negative_slope": number(node, "alpha", 0.01)}
    if kind == "Swish" and number(node, "alpha", 1.0) == 1.0:
        return {"activation": "silu"}
    if kind == "Clip":
        ends = [attribute.f for name in ("min", "max") for attribute in node.attribute if attribute.name == name]
        ends += [numbers(name).item() for name in node.input[1:] if name]
        return {"activation": "relu6"} if ends == [0.0, 6.0] else {}
    if kind == "PRelu":
        slope = numbers(node.input[1])
        # A vector is one a channel of an x of two dimensions; of an image, it would be as long as that is wide.
        if slope.size == 1 or max(slope.shape) == slope.size == channels:
            return {"activation": "prelu", "slope": np.resize(slope, channels)}
    return {}
