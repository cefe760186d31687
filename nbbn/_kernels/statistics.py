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

import math
from typing import Any, NamedTuple

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import at, load_upto, store_upto
from nbbn._compiler.vectors import (
    LANES,
    has_spare_digits,
    keep_first,
    not_below,
    splat,
    square_root,
    where_at_most,
    where_finite,
    widen,
)
from nbbn._compiler.weights import weight_at, weight_of_row
from nbbn._kernels.table import INV_STD, M2, MEAN, MEAN_LOW, REFERENCE, SQUARES, SUM, VAR
from nbbn._kernels.weights import harmless, weighted


class Samples(NamedTuple):
    """What `deviations` reads."""

    x: Any
    weights: Any


@inlined
def deviations(read: Samples, row: int, k: int, count: int, about: Any) -> tuple[Any, Any]:
    """Return ``w * (x - about)`` and ``x - about`` of a run, to be summed."""
    d = widen(at(read.x, row, k, count)) - about
    if count < LANES:
        d = keep_first(d, count)
    return weighted(d, weight_at(read.weights, row, k, count))


@inlined
def deviations_of_row(read: Samples, row: int, k: int, count: int, about: Any) -> tuple[Any, Any]:
    """`deviations` where the values of a row, of different channels, share their weight."""
    d = widen(at(read.x, row, k, count)) - about
    return weighted(d, weight_of_row(read.weights, row))


@inlined
def products(read: Any, row: int, k: int, count: int, about: Any) -> tuple[Any, Any]:
    """Return ``grad_y`` and ``x - about`` of a run, to be summed."""
    d = widen(at(read.x, row, k, count)) - about
    g = widen(at(read.grad_y, row, k, count))
    return harmless(g, d, weight_at(read.mask, row, k, count))


@inlined
def products_of_row(read: Any, row: int, k: int, count: int, about: Any) -> tuple[Any, Any]:
    """`products` where the values of a row, of different channels, share their place in a mask."""
    d = widen(at(read.x, row, k, count)) - about
    g = widen(at(read.grad_y, row, k, count))
    return harmless(g, d, weight_of_row(read.mask, row))


@inlined
def worst_condition(x: Any) -> float:
    """Return the factor that the subtraction may lose before there is a second look."""
    return 8.0 if has_spare_digits(x) else 2.0


@inlined
def moments_from_sums(n: Any, s: Any, q: Any) -> tuple[Any, Any]:
    """Return ``mean - k`` and ``m2`` from the sums about ``k``, of scalars or of vectors."""
    deviation = s / n
    return deviation, q - s * deviation


@helper
def merge_parts(
    parts: Any, numbers: Any, first: int, stop: int, row: int, left: int, table: Any
) -> None:
    """Write `MEAN`, `MEAN_LOW` and `M2` of some channels, sixteen at a time.

    ``parts`` is (3, number, width); a column of part ``i`` has ``numbers[i]`` values, or that weight. Rows of ``row``
    columns may be joined to ``width``; if ``left``, the last part has so many columns, of one value each.

    ``mean = base + sum(n_i (k_i - base) + s_i) / n`` and ``m2 = sum(m2_i + n_i (mean_i - mean)**2)``, ``base`` the
    reference of the first part of the greatest weight.
    """
    width, channels = parts.shape[2], table.shape[1]
    lead, whole, number = 0, 0.0, parts.shape[1] - (1 if left else 0)
    for part in range(number):
        if numbers[part] > numbers[lead]:
            lead = part
        whole += numbers[part]
    if width == channels:
        for c in range(first, stop, LANES):
            base, s, m2 = merged(parts, numbers, number, c, stop - c, lead, whole)
            deviation = s / splat(whole)
            mean = base + deviation
            low = where_finite(deviation, (base - mean) + deviation, splat(0.0))
            store_upto(table, MEAN * width + c, stop - c, mean)
            store_upto(table, MEAN_LOW * width + c, stop - c, low)
            store_upto(table, M2 * width + c, stop - c, not_below(m2, splat(0.0)))
        return
    size = parts.shape[1] * width
    for k in range(0, width, LANES):
        base, s, m2 = merged(parts, numbers, number, k, width - k, lead, whole)
        store_upto(parts, REFERENCE * size + k, width - k, base)
        store_upto(parts, SUM * size + k, width - k, s)
        store_upto(parts, SQUARES * size + k, width - k, m2)
    for c in range(first, stop):
        merge_columns_of(c, parts, whole, row // channels, left, table)


@helper
def merged(
    parts: Any, numbers: Any, number: int, k: int, count: int, lead: int, whole: float
) -> tuple[Any, Any, Any]:
    """Return reference, sum and m2 of up to sixteen columns, of all parts but a partial one."""
    width, size = parts.shape[2], parts.shape[1] * parts.shape[2]
    base = load_upto(parts, lead * width + k, count)
    total = m2 = splat(0.0)
    for part in range(number):
        n = numbers[part]
        if n > 0.0:
            about = load_upto(parts, part * width + k, count)
            s = load_upto(parts, SUM * size + part * width + k, count)
            total = total + (splat(n) * (about - base) + s)
    deviation = total / splat(whole)
    for part in range(number):
        n = numbers[part]
        if n > 0.0:
            about = load_upto(parts, part * width + k, count)
            s = load_upto(parts, SUM * size + part * width + k, count)
            apart = ((about - base) + s / splat(n)) - deviation
            squares = load_upto(parts, SQUARES * size + part * width + k, count)
            m2 = m2 + (squares + splat(n) * apart * apart)
    return base, total, m2


@helper
def merge_columns_of(c: int, parts: Any, whole: float, inner: int, left: int, table: Any) -> None:
    """Merge the columns of one channel: those of part 0, of ``whole`` values, and of a last, partial part.

    Column ``j`` is of channel ``j // inner % C``.
    """
    channels, width = table.shape[1], parts.shape[2]
    last, repeat = parts.shape[1] - 1, channels * inner
    number = whole * (width // channels) + left // channels
    base, total, m2 = parts[REFERENCE, 0, c * inner], 0.0, 0.0
    for part in range(2):
        row, n, stop = (last, 1.0, left) if part else (0, whole, width)
        for start in range(c * inner, stop, repeat):
            for j in range(start, start + inner):
                total += n * (parts[REFERENCE, row, j] - base) + parts[SUM, row, j]
    deviation = total / number
    for part in range(2):
        row, n, stop = (last, 1.0, left) if part else (0, whole, width)
        for start in range(c * inner, stop, repeat):
            for j in range(start, start + inner):
                about, s = parts[REFERENCE, row, j], parts[SUM, row, j]
                apart = ((about - base) + s / n) - deviation
                m2 += parts[SQUARES, row, j] + n * apart * apart
    mean = base + deviation
    table[MEAN, c] = mean
    table[MEAN_LOW, c] = (base - mean) + deviation if math.isfinite(deviation) else 0.0
    table[M2, c] = 0.0 if m2 < 0.0 else m2


@helper
def write_variances(table: Any, first: int, stop: int, freedom: float, eps: float) -> None:
    """Write ``var = m2 / freedom`` and ``inv_std = 1 / sqrt(var + eps)``, 0 where that divides by 0."""
    width, zero = table.shape[1], splat(0.0)
    for c in range(first, stop, LANES):
        count = stop - c
        var = load_upto(table, M2 * width + c, count) / splat(freedom)
        std = square_root(var + splat(eps))
        inv_std = where_at_most(std, zero, zero, splat(1.0) / std)
        store_upto(table, VAR * width + c, count, var)
        store_upto(table, INV_STD * width + c, count, inv_std)


@helper
def add_parts(parts: Any, first: int, stop: int, row: int, left: int, sums: Any) -> None:
    """Write the sums of some channels, those of their columns in all parts: see `merge_parts`."""
    number, width, channels = parts.shape[1], parts.shape[2], sums.shape[1]
    for which in range(sums.shape[0]):
        if width == channels:
            for c in range(first, stop, LANES):
                vector = splat(0.0)
                for part in range(number):
                    index = (which * number + part) * width + c
                    vector = vector + load_upto(parts, index, stop - c)
                store_upto(sums, which * width + c, stop - c, vector)
        else:
            inner = row // channels
            for c in range(first, stop):
                found = 0.0
                for part in range(number):
                    columns = left if left and part == number - 1 else width
                    for start in range(c * inner, columns, row):
                        for j in range(start, start + inner):
                            found += parts[which, part, j]
                sums[which, c] = found
