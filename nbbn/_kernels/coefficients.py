"""What is found out about channels, made ready for the elementwise loops: in float64, rounded once.

Sixteen channels at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import helper
from nbbn._compiler.memory import ZERO, load_rows, store_rows
from nbbn._compiler.vectors import LANES, narrow, splat, square_root, where_at_most, where_finite, widen
from nbbn._kernels.statistics import Layout, added, merged
from nbbn._kernels.table import CENTER, GAMMA, MEAN, MEAN_LOW, OF_SLOPE, SUM_GRAD, SUM_PRODUCT, SUM_SLOPE


@helper
def write_coefficients(form: Any, c: int, n: int, mean: Any, low: Any, std: Any, affine: Any) -> None:
    """Write ``center, scale, shift, slope`` of up to sixteen channels to their columns of ``form``.

    ``affine`` is gamma, beta and the slope of the activation. ``center`` is the mean, ``mean + low``, and
    ``scale = gamma / std`` (0 where that divides by 0), both rounded to the dtype of ``form``;
    ``shift = beta - (mean - center) * scale`` makes up for the rounding of ``center``.
    """
    zero = splat(0.0)
    gamma, beta, slope = affine
    center = narrow(form, mean + low)
    scale = narrow(form, where_at_most(std, zero, zero, gamma / std))
    rest = (mean - widen(center)) + low
    rest = where_finite(rest, rest, zero)  # not of an infinite mean, or NaN
    shift = narrow(form, beta - rest * widen(scale))
    store_rows(form, CENTER, c, n, (center, scale, shift, narrow(form, slope)))


@helper
def finish_moments(
    parts: Any, layout: Layout, first: int, stop: int, table: Any, form: Any, freedom: float, eps: float
) -> None:
    """Merge the parts of some channels; write their statistics to ``table`` and coefficients to ``form``.

    ``var = m2 / freedom`` and ``inv_std = 1 / sqrt(var + eps)``, 0 where that divides by 0.
    """
    zero = splat(0.0)
    for c in range(first, stop, LANES):
        n = stop - c
        _, mean, low, m2 = merged(parts, layout, c, n)
        var = m2 / splat(freedom)
        std = square_root(var + splat(eps))
        inv_std = where_at_most(std, zero, zero, splat(1.0) / std)
        store_rows(table, MEAN, c, n, (mean, var))
        store_rows(table, MEAN_LOW, c, n, (low, m2, inv_std))
        affine = load_rows(3, table, GAMMA, c, n)
        write_coefficients(form, c, n, mean, low, std, affine)


class Counts(NamedTuple):
    """How many values a channel has: in all, and less the correction."""

    number: float
    freedom: float


@helper
def finish_sums(
    parts: Any, layout: Layout, first: int, stop: int, table: Any, sums: Any, form: Any, counts: Counts
) -> None:
    """Add the parts of some channels; write their ``sums``, and the coefficients of `backward` to ``form``.

    And there the gradients of gamma, beta and a learned slope. With ``g = sum(grad_y)`` and
    ``h = sum(grad_y * (x - mean))``:
    ``grad_x = gamma * inv_std * (grad_y - g/n - (x - mean) * inv_std * (inv_std * h / freedom))``.
    Both means are rounded to the dtype of ``form``, and ``rest`` holds what that leaves.
    """
    for c in range(first, stop, LANES):
        n = stop - c
        g, h = added(parts, SUM_GRAD, layout, c, n), added(parts, SUM_PRODUCT, layout, c, n)
        store_rows(sums, SUM_GRAD, c, n, (g, h))
        mean, _, gamma = load_rows(3, table, MEAN, c, n)
        low, _, inv_std = load_rows(3, table, MEAN_LOW, c, n)
        of_gamma = h * inv_std
        grad_mean = g / splat(counts.number)
        scale = gamma * inv_std
        slope = splat(-1.0) * scale * (of_gamma / splat(counts.freedom))
        of_grad = (grad_mean - widen(narrow(form, grad_mean))) * widen(narrow(form, scale))
        center = mean + low
        of_x = ((mean - widen(narrow(form, center))) + low) * inv_std * widen(narrow(form, slope))
        rest = splat(-1.0) * (of_grad + of_x)
        store_rows(form, ZERO, c, n, (grad_mean, scale, center, inv_std, slope, rest, of_gamma, g))  # to OF_BETA
        if parts.shape[0] > SUM_SLOPE:
            of_slope = added(parts, SUM_SLOPE, layout, c, n)
            store_rows(sums, SUM_SLOPE, c, n, (of_slope,))
            store_rows(form, OF_SLOPE, c, n, (of_slope,))
