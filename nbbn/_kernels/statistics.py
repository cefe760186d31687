"""Moments: the one place for the formulas of mean, variance and their merging.

The data is cut into parts, by its shape only. Of a part of ``n`` values, ``s = sum(x - k)`` and
``q = sum((x - k)**2)`` are taken in float64 in one loop, with ``k`` 0 for float32 data; then
``mean = k + s/n`` and ``m2 = q - s**2/n``. The subtraction loses a factor of ``1 + ((mean - k) / std)**2``.
float32 data has 29 bits to spare in float64 sums and gives away 3 of them; float64 data has none, so ``k`` is
near the data, and a factor of 2 is all that is given away. Where more would be lost the part, still in
cache, is summed again about its mean.

The mean of a part is carried as ``k`` and ``s``: near a mean of 1e6 standard deviations the pair keeps the digits
that a single float64 loses; and sums that are exact stay so.

Sources: Welford, Technometrics 4 (1962) 419; Chan, Golub, LeVeque, The American Statistician 37
(1983) 242 (shifted data, condition number, merging).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import at, load_every
from nbbn._compiler.vectors import LANES, fma, has_spare_digits, keep_first, splat, where_below, where_finite, widen
from nbbn._compiler.weights import times_weight, weight_at, where_counted
from nbbn._kernels.table import REFERENCE

PIECE = 1 << 14  # values: 64 KB of float32, so that a second look finds the part in cache


class Samples(NamedTuple):
    """What `add_deviations` reads: arrays or, in an operation, rows of them."""

    x: Any
    weights: Any


@inlined
def weighted(deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return weight times deviation, and the deviation; 0 where it has no weight (NaN, too)."""
    counted = where_counted(weight, deviation, splat(0.0))
    return times_weight(weight, counted), counted


@inlined
def add_deviations(read: Samples, row: int, k: int, count: int, about: Any, sums: Any) -> Any:
    """Return ``sum(w * d)`` and ``sum(w * d * d)`` with those of a place, ``d = x - about``."""
    d = widen(at(read.x, row, k, count)) - about
    if count < LANES:
        d = keep_first(d, count)
    a, d = weighted(d, weight_at(read.weights, row, k, count))
    return sums[0] + a, fma(a, d, sums[1])


@inlined
def worst_condition(x: Any) -> float:
    """Return the factor that the subtraction may lose before there is a second look."""
    return 8.0 if has_spare_digits(x) else 2.0


@inlined
def mean_of(n: Any, s: Any) -> Any:
    """Return ``s / n``, of vectors; 0 where there is no value."""
    zero = splat(0.0)
    return where_below(zero, n, s / n, zero)


class Layout(NamedTuple):
    """Where the sums of a channel stand in a table of parts, (number of sums, number of parts, width).

    A part is one row of columns or, of narrow data, several: then its last rows may be missing. Column ``j`` of a row
    is of channel ``j // inner``.
    """

    number: int  # of rows
    fold: int  # rows of a part
    inner: int  # columns of a channel in a row


@helper
def merged(parts: Any, layout: Layout, c: int, count: int) -> tuple[Any, Any, Any, Any]:
    """Return how many values up to sixteen channels from ``c`` on have, the mean, what its rounding leaves, and m2.

    ``mean = base + sum(n_i (k_i - base) + s_i) / n`` and ``m2 = sum(m2_i + n_i (mean_i - mean)**2)``, ``base`` the
    reference of the first part of the most values.
    """
    number, fold, inner = layout
    row, first, zero = parts.shape[2] // fold, c * inner, splat(0.0)
    base = most = whole = sum_ = m2 = zero
    for r in range(number):
        for j in range(r * row + first, r * row + first + inner):
            about, _, _, n = load_every(4, parts, REFERENCE, j, inner, count)
            base, whole = where_below(most, n, about, base), whole + n
            most = where_below(most, n, n, most)
    for r in range(number):
        for j in range(r * row + first, r * row + first + inner):
            about, s, _, n = load_every(4, parts, REFERENCE, j, inner, count)
            sum_ = sum_ + (n * (about - base) + s)
    deviation = mean_of(whole, sum_)
    for r in range(number):
        for j in range(r * row + first, r * row + first + inner):
            about, s, squares, n = load_every(4, parts, REFERENCE, j, inner, count)
            apart = ((about - base) + mean_of(n, s)) - deviation
            m2 = m2 + (squares + n * apart * apart)
    mean = base + deviation
    low = where_finite(deviation, (base - mean) + deviation, zero)
    return whole, mean, low, where_below(m2, zero, zero, m2)


@helper
def added(parts: Any, which: int, layout: Layout, c: int, count: int) -> Any:
    """Return the sums ``which`` of up to sixteen channels from ``c`` on."""
    number, fold, inner = layout
    row, found = parts.shape[2] // fold, splat(0.0)
    for r in range(number):
        for j in range(r * row + c * inner, r * row + (c + 1) * inner):
            (more,) = load_every(1, parts, which, j, inner, count)
            found = found + more
    return found
