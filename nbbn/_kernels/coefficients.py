"""What is found out about channels, made ready for the elementwise loops: in float64, rounded once.

Sixteen channels at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import helper
from nbbn._compiler.memory import load_upto, store_upto
from nbbn._compiler.vectors import LANES, narrow, splat, square_root, where_at_most, where_finite, widen
from nbbn._kernels.statistics import Layout, added, merged
from nbbn._kernels.table import (
    BETA,
    CENTER,
    FORM_SLOPE,
    GAMMA,
    INV_STD,
    M2,
    MEAN,
    MEAN_LOW,
    OF_BETA,
    OF_GAMMA,
    OF_SLOPE,
    SCALE,
    SHIFT,
    SLOPE,
    SUM_GRAD,
    SUM_PRODUCT,
    SUM_SLOPE,
    VAR,
)


@helper
def write_coefficients(form: Any, c: int, n: int, mean: Any, low: Any, std: Any, affine: Any) -> None:
    """Write ``center, scale, shift, slope`` of up to sixteen channels to their columns of ``form``.

    ``affine`` is gamma, beta and the slope of the activation. ``center`` is the mean, ``mean + low``, and
    ``scale = gamma / std`` (0 where that divides by 0), both rounded to the dtype of ``form``;
    ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    width, zero = form.shape[1], splat(0.0)
    gamma, beta, slope = affine
    center = narrow(form, mean + low)
    scale = narrow(form, where_at_most(std, zero, zero, gamma / std))
    rest = (mean - widen(center)) + low
    rest = where_finite(rest, rest, zero)  # not of an infinite mean, or NaN
    store_upto(form, CENTER * width + c, n, center)
    store_upto(form, SCALE * width + c, n, scale)
    store_upto(form, SHIFT * width + c, n, narrow(form, beta - rest * widen(scale)))
    store_upto(form, FORM_SLOPE * width + c, n, narrow(form, slope))


class Channels(NamedTuple):
    first: Any
    stop: Any


@helper
def finish_moments(
    parts: Any, numbers: Any, layout: Layout, channels: Channels, table: Any, form: Any, freedom: float, eps: float
) -> None:
    """Merge the parts of some channels; write their statistics to ``table`` and coefficients to ``form``.

    ``var = m2 / freedom`` and ``inv_std = 1 / sqrt(var + eps)``, 0 where that divides by 0.
    """
    width, zero = table.shape[1], splat(0.0)
    for c in range(channels.first, channels.stop, LANES):
        n = channels.stop - c
        mean, low, m2 = merged(parts, numbers, layout, c, n)
        var = m2 / splat(freedom)
        std = square_root(var + splat(eps))
        store_upto(table, MEAN * width + c, n, mean)
        store_upto(table, MEAN_LOW * width + c, n, low)
        store_upto(table, M2 * width + c, n, m2)
        store_upto(table, VAR * width + c, n, var)
        store_upto(table, INV_STD * width + c, n, where_at_most(std, zero, zero, splat(1.0) / std))
        gamma, beta = load_upto(table, GAMMA * width + c, n), load_upto(table, BETA * width + c, n)
        affine = gamma, beta, load_upto(table, SLOPE * width + c, n)
        write_coefficients(form, c, n, mean, low, std, affine)


class Counts(NamedTuple):
    """How many values a channel has: in all, and less the correction."""

    number: float
    freedom: float


@helper
def finish_sums(
    parts: Any, layout: Layout, channels: Channels, table: Any, sums: Any, form: Any, counts: Counts
) -> None:
    """Add the parts of some channels; write their ``sums``, and the coefficients of `backward` to ``form``.

    And there the gradients of gamma, beta and a learned slope. With ``g = sum(grad_y)`` and
    ``h = sum(grad_y * (x - mean))``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    width = table.shape[1]
    for c in range(channels.first, channels.stop, LANES):
        n = channels.stop - c
        g, h = added(parts, SUM_GRAD, layout, c, n), added(parts, SUM_PRODUCT, layout, c, n)
        store_upto(sums, SUM_GRAD * width + c, n, g)
        store_upto(sums, SUM_PRODUCT * width + c, n, h)
        mean, low = load_upto(table, MEAN * width + c, n), load_upto(table, MEAN_LOW * width + c, n)
        inv_std = load_upto(table, INV_STD * width + c, n)
        of_gamma = h * inv_std
        grad_mean = g / splat(counts.number)
        scale = load_upto(table, GAMMA * width + c, n) * inv_std
        slope = splat(-1.0) * scale * (of_gamma / splat(counts.freedom))
        of_grad = (grad_mean - widen(narrow(form, grad_mean))) * widen(narrow(form, scale))
        center = narrow(form, mean + low)
        of_x = ((mean - widen(center)) + low) * inv_std * widen(narrow(form, slope))
        rest = splat(-1.0) * (of_grad + of_x)
        store_upto(form, c, n, narrow(form, grad_mean))
        store_upto(form, width + c, n, narrow(form, scale))
        store_upto(form, 2 * width + c, n, center)
        store_upto(form, 3 * width + c, n, narrow(form, inv_std))
        store_upto(form, 4 * width + c, n, narrow(form, slope))
        store_upto(form, 5 * width + c, n, narrow(form, rest))
        store_upto(form, OF_GAMMA * width + c, n, narrow(form, of_gamma))
        store_upto(form, OF_BETA * width + c, n, narrow(form, g))
        if parts.shape[0] > SUM_SLOPE:
            of_slope = added(parts, SUM_SLOPE, layout, c, n)
            store_upto(sums, SUM_SLOPE * width + c, n, of_slope)
            store_upto(form, OF_SLOPE * width + c, n, narrow(form, of_slope))
