"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``.

``y = fma(x - center, scale, shift)`` where ``center`` is the mean rounded to the dtype of ``x`` and
``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same fma
is used in vectors and in partial vectors: one value has one result, wherever it stands.
"""

from __future__ import annotations

from typing import Any

from nbbn._jit import helper, inlined
from nbbn._simd import LANES, fma, narrow, splat, square_root, where_finite, widen
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
from nbbn.kernels.vectors import load_upto, store_upto


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
def inference_form(table: Any, first: int, stop: int, eps: float, form: Any) -> None:
    """Write ``center, scale, shift`` of some channels to their columns of ``form``.

    ``center`` is the mean and ``scale = gamma / sqrt(var + eps)``, both rounded to the dtype of
    ``form``; ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    means, lows, variances = table[MEAN], table[MEAN_LOW], table[VAR]
    gammas, betas = table[GAMMA], table[BETA]
    centers, scales, shifts = form[0], form[1], form[2]
    for c in range(first, stop, LANES):
        n = stop - c
        mean, low = widen(load_upto(means, c, n)), widen(load_upto(lows, c, n))
        variance = widen(load_upto(variances, c, n))
        center = narrow(centers, mean + low)
        std = square_root(variance + splat(eps))
        scale = narrow(scales, widen(load_upto(gammas, c, n)) / std)
        rest = (mean - widen(center)) + low
        rest = where_finite(rest, rest, splat(0.0))  # none of an infinite mean, or NaN
        shift = widen(load_upto(betas, c, n)) - rest * widen(scale)
        store_upto(centers, c, n, center)
        store_upto(scales, c, n, scale)
        store_upto(shifts, c, n, narrow(shifts, shift))


@helper
def input_gradient_form(
    table: Any, first: int, stop: int, count: float, freedom: float, form: Any
) -> None:
    """Write the six coefficients of `input_gradient` of some channels to their columns of ``form``.

    With ``g = sum(grad_y)`` and ``h = sum(grad_y * (x - mean))``, ``n = count`` and
    ``freedom = n - correction``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    means, inverses, gammas = table[GRAD_MEAN], table[GRAD_INV_STD], table[GRAD_GAMMA]
    sums, products = table[SUM_GRAD], table[SUM_GRAD_DEVIATION]
    grad_centers, scales, centers = form[0], form[1], form[2]
    factors, slopes, rests = form[3], form[4], form[5]
    for c in range(first, stop, LANES):
        n = stop - c
        mean, inv_std = load_upto(means, c, n), load_upto(inverses, c, n)
        grad_mean = load_upto(sums, c, n) / splat(count)
        scale = load_upto(gammas, c, n) * inv_std
        slope = (splat(0.0) - scale) * ((inv_std * load_upto(products, c, n)) / splat(freedom))
        grad_center, center = narrow(form, grad_mean), narrow(form, mean)
        rounded_scale, rounded_slope = narrow(form, scale), narrow(form, slope)
        of_grad = (grad_mean - widen(grad_center)) * widen(rounded_scale)
        of_x = (mean - widen(center)) * inv_std * widen(rounded_slope)
        store_upto(grad_centers, c, n, grad_center)
        store_upto(scales, c, n, rounded_scale)
        store_upto(centers, c, n, center)
        store_upto(factors, c, n, narrow(form, inv_std))
        store_upto(slopes, c, n, rounded_slope)
        store_upto(rests, c, n, narrow(form, splat(0.0) - (of_grad + of_x)))
