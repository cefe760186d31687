"""Numbers per channel, made ready for the elementwise loops: in float64, rounded once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbbn._compiler.jit import helper
from nbbn._compiler.vectors import LANES
from nbbn._kernels.memory import aligned, load_upto, store_upto
from nbbn._kernels.table import (
    BETA,
    GAMMA,
    INV_STD,
    MEAN,
    MEAN_LOW,
    SUM_GRAD,
    SUM_PRODUCT,
    VAR,
)


@helper
def inference_form(table: Any, first: int, stop: int, eps: float, form: Any) -> None:
    """Write ``center, scale, shift`` of some channels to their columns of ``form``.

    ``center`` is the mean and ``scale = gamma / sqrt(var + eps)`` (0 where that divides by 0), both rounded to
    the dtype of ``form``; ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    has_low = table.shape[0] > MEAN_LOW
    for c in range(first, stop):
        mean, low = float(table[MEAN, c]), 0.0
        if has_low:
            low = table[MEAN_LOW, c]
        std = np.sqrt(float(table[VAR, c]) + eps)
        scale = float(table[GAMMA, c]) / std if std != 0.0 else 0.0
        form[0, c] = mean + low
        form[1, c] = scale
        rest = (mean - float(form[0, c])) + low
        if not math.isfinite(rest):  # of an infinite mean, or NaN
            rest = 0.0
        form[2, c] = float(table[BETA, c]) - rest * float(form[1, c])


@helper
def gradient_form(
    table: Any, sums: Any, first: int, stop: int, count: float, freedom: float, form: Any
) -> None:
    """Write the six coefficients of `backward` of some channels to their columns of ``form``.

    With ``g = sum(grad_y)`` and ``h = sum(grad_y * (x - mean))``, ``n = count`` and
    ``freedom = n - correction``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    for c in range(first, stop):
        mean, inv_std = table[MEAN, c], table[INV_STD, c]
        grad_mean = sums[SUM_GRAD, c] / count
        scale = table[GAMMA, c] * inv_std
        form[0, c] = grad_mean
        form[1, c] = scale
        form[2, c] = mean
        form[3, c] = inv_std
        form[4, c] = -scale * ((inv_std * sums[SUM_PRODUCT, c]) / freedom)
        of_grad = (grad_mean - float(form[0, c])) * float(form[1, c])
        of_x = (mean - float(form[2, c])) * inv_std * float(form[4, c])
        form[5, c] = -(of_grad + of_x)


@helper
def parameter_gradients(table: Any, sums: Any, first: int, stop: int, gradients: Any) -> None:
    """Write the gradients with respect to gamma and beta of some channels."""
    for c in range(first, stop):
        gradients[0, c] = sums[SUM_PRODUCT, c] * table[INV_STD, c]
        gradients[1, c] = sums[SUM_GRAD, c]


@helper
def spread(form: Any, inner: int, width: int, like: Any) -> Any:
    """Return numbers per channel as numbers per column: ``width`` of them, column ``j`` of ``j // inner % C``."""
    rows, channels = form.shape
    found = aligned(rows, width, like)
    stride, repeat = found.shape[1], channels * inner
    for row in range(rows):
        if inner == 1:
            for j in range(0, channels, LANES):
                n = channels - j
                store_upto(found, row * stride + j, n, load_upto(form, row * channels + j, n))
        else:
            for j in range(repeat):
                found[row, j] = form[row, j // inner]
        for j in range(repeat, width):
            found[row, j] = found[row, j - repeat]
    return found
