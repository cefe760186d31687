"""What a fused step does after the affine map: a residual is added, an activation applied."""

from __future__ import annotations

from dataclasses import dataclass
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

    activation: int  # as in `nbbn.kernels.epilogue`
    slope: float  # of leaky relu, below 0
    residual: Array | None


def tag(activation: str | None) -> tuple[float, ...]:
    """Return what tells kernels the activation: its length."""
    return (0.0,) * (0 if activation is None else ACTIVATIONS[activation])


def make(activation: str | None, slope: float, residual: Array | None) -> Epilogue | None:
    """Return the epilogue; None where there is nothing to do."""
    if activation is None and residual is None:
        return None
    code = epilogue.NONE if activation is None else ACTIVATIONS[activation]
    return Epilogue(code, slope, residual)
