"""The elementwise steps: the one place for the formulas that write ``y`` and ``grad_x``.

``y = activation(affine(x) + residual)``. Without a residual it is None and numba compiles nothing of
it. The activation is a tuple of as many numbers as `RELU` and the others say, so that its length is a
constant of the compiled variant: decided within the loop, relu took seven times as long in cache.

``y = fma(x - center, scale, shift)`` where ``center`` is the mean rounded to the dtype of ``x`` and
``shift`` holds the rest: ``x - center`` is exact next to the mean, so nothing cancels. The same fma
is used in vectors and in partial vectors: one value has one result, wherever it stands.
"""

from __future__ import annotations

from typing import Any

from nbbn._jit import helper, inlined
from nbbn._simd import (
    LANES,
    fma,
    load,
    load_first,
    narrow,
    not_above,
    not_below,
    splat,
    where_at_most,
    where_below,
    where_finite,
    widen,
)
from nbbn._simd_weights import all_count, where_counted
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
from nbbn.kernels.welford import over_std

NONE = 0
RELU = 1
RELU6 = 2
LEAKY_RELU = 3
HARD_SWISH = 4


@inlined
def activated(y: Any, value: Any, activation: Any, slope: float) -> Any:
    """Return the activation of a vector; ``y`` tells the dtype. NaN stays NaN.

    relu: ``max(v, 0)``; relu6: ``min(max(v, 0), 6)``; leaky relu: ``v`` or, below 0, ``v * slope``;
    hard swish: ``v * min(max(v + 3, 0), 6) / 6``, which is v itself from 3 on.
    """
    zero, six = narrow(y, splat(0.0)), narrow(y, splat(6.0))
    kind = len(activation)
    if kind == RELU:
        return not_below(value, zero)
    if kind == RELU6:
        return not_above(not_below(value, zero), six)
    if kind == LEAKY_RELU:
        return where_below(value, zero, value * narrow(y, splat(slope)), value)
    if kind == HARD_SWISH:
        part = not_above(not_below(value + narrow(y, splat(3.0)), zero), six)
        return value * (part * narrow(y, splat(1.0 / 6.0)))
    return value


@inlined
def activation_gradient(y: Any, value: Any, grad: Any, activation: Any, slope: float) -> Any:
    """Return ``grad`` times the derivative of `activated` at ``value``.

    Where there is none: that of the left at 0, and 0 at 6 (relu6) and at -3 (hard swish). At NaN as in
    PyTorch: ``grad`` goes through relu, times the slope through leaky relu, and not through relu6.
    """
    zero, six = narrow(y, splat(0.0)), narrow(y, splat(6.0))
    kind = len(activation)
    if kind == RELU:
        return where_at_most(value, zero, zero, grad)
    if kind == RELU6:
        return where_below(value, six, where_below(zero, value, grad, zero), zero)
    if kind == LEAKY_RELU:
        return where_below(zero, value, grad, grad * narrow(y, splat(slope)))
    if kind == HARD_SWISH:
        three = narrow(y, splat(3.0))
        inner = grad * fma(value, narrow(y, splat(1.0 / 3.0)), narrow(y, splat(0.5)))
        inner = where_below(value, three, inner, grad)
        return where_at_most(value, zero - three, zero, inner)
    return grad


@inlined
def finish(
    y: Any,
    value: Any,
    residual: Any,
    r: int,
    activation: Any,
    slope: float,
    grad: Any,
    g: int,
) -> Any:
    """Return what is written to ``y`` for the sixteen values ``affine(x)``.

    With ``grad`` that is the gradient with respect to ``affine(x) + residual``.
    """
    if residual is not None:
        value = value + load(residual, r)
    if grad is not None:
        return activation_gradient(y, value, load(grad, g), activation, slope)
    return activated(y, value, activation, slope)


@inlined
def finish_first(
    y: Any,
    count: int,
    value: Any,
    residual: Any,
    r: int,
    activation: Any,
    slope: float,
    grad: Any,
    g: int,
) -> Any:
    """`finish` of the first ``count`` values."""
    if residual is not None:
        value = value + load_first(residual, r, count)
    if grad is not None:
        return activation_gradient(y, value, load_first(grad, g, count), activation, slope)
    return activated(y, value, activation, slope)


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


@inlined
def harmless(grad_y: Any, deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return both, or zeros where a masked value is not finite: its output is no one's result."""
    if weight is None:
        return grad_y, deviation
    zero = splat(0.0)
    if not all_count(weight):
        grad_y = where_counted(weight, grad_y, where_finite(deviation, grad_y, zero))
        deviation = where_counted(weight, deviation, where_finite(deviation, deviation, zero))
    return grad_y, deviation


@inlined
def of_counted(weight: Any, through_statistics: Any, grad_y: Any, scale: Any) -> Any:
    """Return the gradient of values that entered the statistics; of masked ones ``grad_y * scale``."""
    if weight is None:
        return through_statistics
    return where_counted(weight, through_statistics, grad_y * scale)


@inlined
def store_form(form: Any, c: int, count: int, mean: Any, low: Any, scale: Any, shift: Any) -> None:
    """Write center, scale and shift of up to sixteen channels, in the dtype of ``form``.

    Of ``mean + low``, center is what is rounded to that dtype; the shift makes up for the rest.
    """
    centers, scales, shifts = form[0], form[1], form[2]
    center, factor = narrow(form, mean + low), narrow(form, scale)
    rest = (mean - widen(center)) + low
    rest = where_finite(rest, rest, splat(0.0))  # none of an infinite mean, or NaN
    store_upto(centers, c, count, center)
    store_upto(scales, c, count, factor)
    store_upto(shifts, c, count, narrow(form, shift - rest * widen(factor)))


@helper
def inference_form(table: Any, first: int, stop: int, eps: float, form: Any) -> None:
    """Write ``center, scale, shift`` of some channels to their columns of ``form``.

    ``center`` is the mean and ``scale = gamma / sqrt(var + eps)``, 0 where the root is, both rounded to
    the dtype of ``form``; ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    means, lows, variances = table[MEAN], table[MEAN_LOW], table[VAR]
    gammas, betas = table[GAMMA], table[BETA]
    for c in range(first, stop, LANES):
        n = stop - c
        mean, low = widen(load_upto(means, c, n)), widen(load_upto(lows, c, n))
        var, gamma = widen(load_upto(variances, c, n)), widen(load_upto(gammas, c, n))
        scale = over_std(gamma, var, eps)
        store_form(form, c, n, mean, low, scale, widen(load_upto(betas, c, n)))


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
