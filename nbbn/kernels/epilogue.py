"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``.

``y = fma(x - center, scale, shift)`` where ``center`` is the mean rounded to the dtype of ``x`` and
``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same fma
is used in vectors and in partial vectors: one value has one result, wherever it stands.
"""

from __future__ import annotations

import math
from typing import Any

from nbbn._jit import helper, inlined
from nbbn._simd import fma


@inlined
def affine(x: Any, center: Any, scale: Any, shift: Any) -> Any:
    """Return ``(x - center) * scale + shift``, rounded twice."""
    return fma(x - center, scale, shift)


@inlined
def input_gradient(
    grad_y: Any, x: Any, grad_center: Any, scale: Any, center: Any, slope: Any, shift: Any
) -> Any:
    """Return ``(grad_y - grad_center) * scale + (x - center) * slope + shift``."""
    return fma(grad_y - grad_center, scale, fma(x - center, slope, shift))


@helper
def inference_form(
    index: int,
    reference: float,
    deviation: float,
    var: float,
    eps: float,
    gamma: float,
    beta: float,
    center: Any,
    scale: Any,
    shift: Any,
) -> None:
    """Write ``center, scale, shift`` of one channel whose mean is ``reference + deviation``.

    ``center`` is the mean and ``scale = gamma / sqrt(var + eps)``, both rounded to the arrays'
    dtype; ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    center[index] = reference + deviation
    scale[index] = gamma / math.sqrt(var + eps)
    rest = (reference - float(center[index])) + deviation
    if not math.isfinite(rest):  # an infinite mean, or NaN: there is no rest
        rest = 0.0
    shift[index] = beta - rest * float(scale[index])


@helper
def input_gradient_form(
    index: int,
    count: float,
    freedom: float,
    mean: float,
    inv_std: float,
    gamma: float,
    sum_grad: float,
    sum_grad_deviation: float,
    grad_center: Any,
    scale: Any,
    center: Any,
    slope: Any,
    shift: Any,
) -> None:
    """Write the coefficients of `input_gradient` of one channel.

    With ``g = sum(grad_y)`` and ``h = sum(grad_y * (x - mean))``, ``n = count`` and
    ``freedom = n - correction``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std**2 * h / freedom)``.
    Both means are rounded to the arrays' dtype, and ``shift`` holds what that leaves.
    """
    grad_mean = sum_grad / count
    grad_center[index] = grad_mean
    center[index] = mean
    scale[index] = gamma * inv_std
    slope[index] = -(gamma * inv_std) * (inv_std * inv_std) * (sum_grad_deviation / freedom)
    grad_rest = grad_mean - float(grad_center[index])
    rest = mean - float(center[index])
    shift[index] = -(grad_rest * float(scale[index]) + rest * float(slope[index]))
