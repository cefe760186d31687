"""What a fused step does after the affine map: a residual is added, an activation applied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from nbbn.kernels import epilogue

Array = NDArray[Any]

ACTIVATIONS = {
    "relu": epilogue.RELU,
    "relu6": epilogue.RELU6,
    "leaky_relu": epilogue.LEAKY_RELU,
    "hard_swish": epilogue.HARD_SWISH,
}


@dataclass(frozen=True, slots=True)
class Epilogue:
    """``y = activation(affine(x) + residual)``."""

    tag: tuple[float, ...]  # as `tag` returns it
    slope: float  # of leaky relu, below 0
    residual: Array | None


def tag(activation: str | None) -> tuple[float, ...]:
    """Return what tells kernels the activation: its length."""
    return (0.0,) * (0 if activation is None else ACTIVATIONS[activation])


def make(activation: str | None, slope: float, residual: Array | None) -> Epilogue | None:
    """Return the epilogue; None where there is nothing to do."""
    if activation is None and residual is None:
        return None
    return Epilogue(tag(activation), slope, residual)


def for_backward(after: Epilogue | None) -> Epilogue | None:
    """Return what backward needs of it: a residual only where an activation follows."""
    return after if after is None or after.tag else replace(after, residual=None)
