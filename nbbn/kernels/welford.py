"""Moments: the one place for the formulas of mean, variance and their merging.

A channel is cut into pieces (by its shape only). In a piece of ``n`` values, with ``k`` its first
value, ``s = sum(x - k)`` and ``q = sum((x - k)**2)`` are taken in float64 in one loop. Then
``mean = k + s/n`` and ``m2 = q - s**2/n``. As ``k`` is one of the values,
``m2 >= (k - mean)**2 * n/(n - 1)``, so the subtraction loses at most a factor ``n``; where it would
lose more than `worst_condition` the piece, still in cache, is summed again about its mean. With weights,
``k`` is the first value of half the average weight or more, and the factor at most ``2 * n``.

A mean is carried as a pair (reference, deviation): the reference is a value of the data, the
deviation a float64. Near a mean of 1e6 standard deviations the pair keeps the digits that
a single float64 loses.

Sources: Welford, Technometrics 4 (1962) 419; Chan, Golub, LeVeque, The American Statistician 37
(1983) 242 (shifted data, condition number, merging).
"""

from __future__ import annotations

import math
from typing import Any

from nbbn._jit import helper, inlined
from nbbn._simd import (
    LANES,
    any_greater,
    not_below,
    splat,
    square_root,
    total,
    value_at,
    where_at_most,
    where_below,
    where_finite,
    widen,
)
from nbbn._simd_weights import (
    load_weights,
    load_weights_first,
    splat_weight,
    times_weight,
    where_counted,
)
from nbbn.kernels.table import INV_STD, M2, MEAN, MEAN_LOW, VAR
from nbbn.kernels.vectors import load_upto, store_upto

PIECE = 1 << 14  # values: 64 KB of float32, so that a second look finds the piece in cache


@inlined
def worst_condition(x: Any) -> float:
    """Return the loss of digits that needs no second look.

    float32 data has 29 bits to spare in float64 sums and gives away 10 of them; half types have more. float64 data has
    none: a factor 2 is what a two-pass algorithm's own rounding may cost as well.
    """
    if x.itemsize == 8:
        return 2.0
    return 1024.0


@inlined
def moments_from_sums(share: Any, s: Any, q: Any) -> tuple[Any, Any]:
    """Return ``mean - k`` and ``m2`` from the sums about ``k``; ``share`` is ``1 / n``.

    Of scalars or of vectors.
    """
    deviation = s * share
    return deviation, q - s * deviation


@inlined
def is_ill_conditioned(n: float, deviation: float, m2: float, limit: float) -> bool:
    """Whether ``m2`` lost a factor of more than ``limit`` as ``k`` is far from the mean."""
    return n * deviation * deviation > (limit - 1.0) * m2


@inlined
def better_reference(n: float, k: Any, deviation: Any, m2: Any, limit: float) -> tuple[bool, Any]:
    """Return whether any lane `is_ill_conditioned`, and ``k``, in those lanes the mean (if it is finite).

    The other lanes keep their reference, and so, summed again, their bits: no channel's depend on another's.
    """
    lost, kept = splat(n) * deviation * deviation, splat(limit - 1.0) * m2
    mean = where_finite(k + deviation, k + deviation, k)
    return any_greater(lost, kept), where_below(kept, lost, mean, k)


@inlined
def over_std(value: Any, var: Any, eps: float) -> Any:
    """Return ``value / sqrt(var + eps)``, and 0 where ``var + eps`` is 0."""
    zero, square = splat(0.0), var + splat(eps)
    found = value / square_root(square)
    return where_below(square, zero, found, where_at_most(square, zero, zero, found))


@helper
def merge_weights(count_a: float, count_b: float) -> tuple[float, float]:
    """Return ``n_b/n`` and ``n_a*n_b/n``, the two factors of Chan's formula.

    With ``delta = mean_b - mean_a``: ``mean = mean_a + delta * n_b/n`` and
    ``m2 = m2_a + m2_b + delta**2 * n_a*n_b/n``.
    """
    share = count_b / (count_a + count_b)
    return share, count_a * share


@inlined
def weight_of(weights: Any, at: int, count: int) -> Any:
    """Return the weights of up to sixteen values; None without weights."""
    if count >= LANES:
        return load_weights(weights, at)
    return load_weights_first(weights, at, count)


@inlined
def weight_of_row(weights: Any, row: int) -> Any:
    """Return the weight that the values of a row have in common; None without weights."""
    return splat_weight(weights, row)


@inlined
def weighed(deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return the deviation, 0 where it has no weight (NaN, too), and weight times deviation."""
    if weight is None:
        return deviation, deviation
    counted = where_counted(weight, deviation, splat(0.0))
    return counted, times_weight(weight, counted)


@helper
def weigh(weights: Any, start: int, stop: int) -> float:
    """Return the sum of some weights."""
    found = splat(0.0)
    for i in range(start, stop, LANES):
        found = found + widen(load_upto(weights, i, stop - i))
    weight: float = total(found)
    return weight


@helper
def first_heavy(weights: Any, start: int, stop: int, weight: float) -> int:
    """Return the index of the first weight that is half the average or more; ``weight`` is their sum.

    A value that deviations are taken from has to count: with a weight of 1e-300, it may be far from all that do.
    """
    least = 0.5 * weight / float(stop - start)
    for i in range(start, stop):
        if value_at(weights, i) >= least:
            return i
    return start


@inlined
def finite_or(value: float, otherwise: float) -> float:
    """Return ``value`` if it is finite, else ``otherwise``."""
    if math.isfinite(value):
        return value
    return otherwise


@inlined
def write_moments_upto(
    table: Any, first: int, count: int, reference: Any, deviation: Any, m2: Any
) -> None:
    """Write the moments of up to sixteen channels to ``table``.

    A mean, ``reference + deviation``, is split into a float64 and what its rounding leaves.
    """
    zero = splat(0.0)
    mean = reference + deviation
    low = (reference - mean) + deviation
    store_upto(table[MEAN], first, count, mean)
    store_upto(table[MEAN_LOW], first, count, where_finite(low, low, zero))
    store_upto(table[M2], first, count, not_below(m2, zero))


@helper
def finish_moments(table: Any, first: int, stop: int, freedom: float, eps: float) -> None:
    """Write the statistics of some channels to ``table``.

    The rows `MEAN`, `MEAN_LOW` and `M2` come with reference, ``mean - reference`` and m2.
    """
    references, deviations, squares = table[MEAN], table[MEAN_LOW], table[M2]
    for c in range(first, stop, LANES):
        n = stop - c
        reference, deviation = load_upto(references, c, n), load_upto(deviations, c, n)
        write_moments_upto(table, c, n, reference, deviation, load_upto(squares, c, n))
    write_variances(table, first, stop, freedom, eps)


@helper
def write_variances(table: Any, first: int, stop: int, freedom: float, eps: float) -> None:
    """Write ``var = m2 / freedom`` and ``inv_std = 1 / sqrt(var + eps)`` of some channels."""
    squares, variances, inverses = table[M2], table[VAR], table[INV_STD]
    for c in range(first, stop, LANES):
        n = stop - c
        var = load_upto(squares, c, n) / splat(freedom)
        store_upto(variances, c, n, var)
        store_upto(inverses, c, n, over_std(splat(1.0), var, eps))
