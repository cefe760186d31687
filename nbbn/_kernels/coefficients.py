"""Numbers per channel, made ready for the elementwise loops: in float64, rounded once; sixteen channels at a time."""

from __future__ import annotations

from typing import Any

from nbbn._compiler.jit import helper
from nbbn._compiler.memory import load_upto, store_upto
from nbbn._compiler.vectors import (
    LANES,
    narrow,
    splat,
    square_root,
    where_at_most,
    where_finite,
    widen,
)
from nbbn._kernels.table import (
    BETA,
    CENTER,
    GAMMA,
    INV_STD,
    MEAN,
    MEAN_LOW,
    OF_BETA,
    OF_GAMMA,
    SCALE,
    SHIFT,
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
    width, zero = table.shape[1], splat(0.0)
    for c in range(first, stop, LANES):
        n = stop - c
        mean, low = load_upto(table, MEAN * width + c, n), zero
        if table.shape[0] > MEAN_LOW:
            low = load_upto(table, MEAN_LOW * width + c, n)
        std = square_root(load_upto(table, VAR * width + c, n) + splat(eps))
        gamma, beta = load_upto(table, GAMMA * width + c, n), load_upto(table, BETA * width + c, n)
        center = narrow(form, mean + low)
        scale = narrow(form, where_at_most(std, zero, zero, gamma / std))
        rest = (mean - widen(center)) + low
        rest = where_finite(rest, rest, zero)  # not of an infinite mean, or NaN
        store_upto(form, CENTER * width + c, n, center)
        store_upto(form, SCALE * width + c, n, scale)
        store_upto(form, SHIFT * width + c, n, narrow(form, beta - rest * widen(scale)))


@helper
def gradient_form(
    table: Any, sums: Any, first: int, stop: int, count: float, freedom: float, form: Any
) -> None:
    """Write the six coefficients of `backward` of some channels, and the gradients of gamma and beta, to ``form``.

    With ``g = sum(grad_y)`` and ``h = sum(grad_y * (x - mean))``, ``n = count`` and
    ``freedom = n - correction``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    width = table.shape[1]
    for c in range(first, stop, LANES):
        n = stop - c
        mean = load_upto(table, MEAN * width + c, n)
        inv_std = load_upto(table, INV_STD * width + c, n)
        g = load_upto(sums, SUM_GRAD * width + c, n)
        of_gamma = load_upto(sums, SUM_PRODUCT * width + c, n) * inv_std
        grad_mean = g / splat(count)
        scale = load_upto(table, GAMMA * width + c, n) * inv_std
        slope = splat(-1.0) * scale * (of_gamma / splat(freedom))
        of_grad = (grad_mean - widen(narrow(form, grad_mean))) * widen(narrow(form, scale))
        of_x = (mean - widen(narrow(form, mean))) * inv_std * widen(narrow(form, slope))
        rest = splat(-1.0) * (of_grad + of_x)
        store_upto(form, c, n, narrow(form, grad_mean))
        store_upto(form, width + c, n, narrow(form, scale))
        store_upto(form, 2 * width + c, n, narrow(form, mean))
        store_upto(form, 3 * width + c, n, narrow(form, inv_std))
        store_upto(form, 4 * width + c, n, narrow(form, slope))
        store_upto(form, 5 * width + c, n, narrow(form, rest))
        store_upto(form, OF_GAMMA * width + c, n, narrow(form, of_gamma))
        store_upto(form, OF_BETA * width + c, n, narrow(form, g))
