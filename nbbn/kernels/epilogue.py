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
from nbbn.kernels.table import (
    BETA,
    GAMMA,
    GRAD_GAMMA,
    GRAD_INV_STD,
    GRAD_MEAN,
    MEAN,
    MEAN_LOW,
    SUM_GRAD,
    SUM_GRAD_DEVIATION,
    VAR,
)


@inlined
def affine(x: Any, center: Any, scale: Any, shift: Any) -> Any:
    """Return ``(x - center) * scale + shift``, rounded twice."""
    return fma(x - center, scale, shift)


@inlined
def input_gradient(
    grad_y: Any,
    x: Any,
    grad_center: Any,
    scale: Any,
    center: Any,
    inv_std: Any,
    slope: Any,
    rest: Any,
) -> Any:
    """Return ``(grad_y - grad_center) * scale + (x - center) * inv_std * slope + rest``.

    ``x - center`` meets ``inv_std`` first: their product is of the order of 1, where
    ``inv_std * slope`` alone may leave the range of float32.
    """
    return fma(grad_y - grad_center, scale, fma((x - center) * inv_std, slope, rest))


@helper
def inference_form(table: Any, channel: int, eps: float, form: Any, column: int) -> None:
    """Write ``center, scale, shift`` of one channel to a column of ``form``.

    ``center`` is the mean and ``scale = gamma / sqrt(var + eps)``, both rounded to the dtype of
    ``form``; ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    mean, low = float(table[MEAN, channel]), float(table[MEAN_LOW, channel])
    form[0, column] = mean + low
    form[1, column] = float(table[GAMMA, channel]) / math.sqrt(float(table[VAR, channel]) + eps)
    rest = (mean - float(form[0, column])) + low
    if not math.isfinite(rest):  # an infinite mean, or NaN: there is no rest
        rest = 0.0
    form[2, column] = float(table[BETA, channel]) - rest * float(form[1, column])


@helper
def input_gradient_form(
    table: Any, channel: int, count: float, freedom: float, form: Any, column: int
) -> None:
    """Write the six coefficients of `input_gradient` of one channel to a column of ``form``.

    With ``g = sum(grad_y)`` and ``h = sum(grad_y * (x - mean))``, ``n = count`` and
    ``freedom = n - correction``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    mean, inv_std = table[GRAD_MEAN, channel], table[GRAD_INV_STD, channel]
    grad_mean = table[SUM_GRAD, channel] / count
    scale = table[GRAD_GAMMA, channel] * inv_std
    form[0, column] = grad_mean
    form[1, column] = scale
    form[2, column] = mean
    form[3, column] = inv_std
    form[4, column] = -scale * ((inv_std * table[SUM_GRAD_DEVIATION, channel]) / freedom)
    of_grad = (grad_mean - float(form[0, column])) * float(form[1, column])
    of_x = (mean - float(form[2, column])) * inv_std * float(form[4, column])
    form[5, column] = -(of_grad + of_x)
