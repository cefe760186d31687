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
from nbbn._kernels.memory import at, load_upto, store_upto
from nbbn._kernels.table import (
    INV_STD,
    M2,
    MEAN,
    MEAN_LOW,
    REFERENCE,
    SQUARES,
    SUM,
    VAR,
)
from nbbn._kernels.weights import harmless, weight_at, weight_of_row, weighted


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
    parts: Any, numbers: Any, first: int, stop: int, channels: int, inner: int, table: Any
) -> None:
    """Write `MEAN`, `MEAN_LOW` and `M2` of some channels.

    ``parts`` is (3, number, width); column ``j`` of a part is of channel ``j // inner % channels``. A row
    of ``numbers`` is how many values (or what weight) each column of a part has, and how many columns are there:
    with less than all of them, the last part.

    ``mean = base + sum(n_i (k_i - base) + s_i) / n`` and ``m2 = sum(m2_i + n_i (mean_i - mean)**2)``, ``base`` the
    reference of the first part of the greatest weight.
    """
    lead, number, width = 0, numbers.shape[0], parts.shape[2]
    total = 0.0
    for part in range(number):
        if numbers[part, 0] > numbers[lead, 0]:
            lead = part
        total += numbers[part, 0] * (numbers[part, 1] // channels)
    if width == channels:
        for c in range(first, stop, LANES):
            merge_columns(parts, numbers, c, stop - c, lead, total, table)
        return
    repeat = channels * inner
    for c in range(first, stop):
        base = parts[REFERENCE, lead, c * inner]
        deviation = plain = m2 = 0.0
        for part in range(number):
            n = numbers[part, 0]
            if n > 0.0:
                for start in range(c * inner, int(numbers[part, 1]), repeat):
                    for j in range(start, start + inner):
                        k, s = parts[REFERENCE, part, j], parts[SUM, part, j]
                        deviation += n * (k - base) + s
                        plain += k + s
        deviation /= total
        for part in range(number):
            n = numbers[part, 0]
            if n > 0.0:
                for start in range(c * inner, int(numbers[part, 1]), repeat):
                    for j in range(start, start + inner):
                        k, s = parts[REFERENCE, part, j], parts[SUM, part, j]
                        apart = ((k - base) + s / n) - deviation
                        m2 += parts[SQUARES, part, j] + n * apart * apart
        mean = base + deviation
        low = (base - mean) + deviation
        if not math.isfinite(deviation):
            mean, low = plain, 0.0  # between infinities there is no difference, but there is a mean
        table[MEAN, c], table[MEAN_LOW, c] = mean, low
        table[M2, c] = 0.0 if m2 < 0.0 else m2


@helper
def merge_columns(
    parts: Any, numbers: Any, c: int, count: int, lead: int, total: float, table: Any
) -> None:
    """`merge_parts` of up to sixteen channels from ``c`` on, where a column is a channel."""
    number, width, zero = parts.shape[1], parts.shape[2], splat(0.0)
    base = load_upto(parts, lead * width + c, count)
    deviation = plain = m2 = zero
    for part in range(number):
        n = numbers[part, 0]
        if n > 0.0:
            at = part * width + c
            k, s = load_upto(parts, at, count), load_upto(parts, at + number * width, count)
            deviation = deviation + (splat(n) * (k - base) + s)
            plain = plain + (k + s)
    deviation = deviation / splat(total)
    for part in range(number):
        n = numbers[part, 0]
        if n > 0.0:
            at = part * width + c
            k, s = load_upto(parts, at, count), load_upto(parts, at + number * width, count)
            apart = ((k - base) + s / splat(n)) - deviation
            squares = load_upto(parts, at + 2 * number * width, count)
            m2 = m2 + (squares + splat(n) * apart * apart)
    mean = base + deviation
    low = (base - mean) + deviation
    store_upto(table, MEAN * width + c, count, where_finite(deviation, mean, plain))
    store_upto(table, MEAN_LOW * width + c, count, where_finite(deviation, low, zero))
    store_upto(table, M2 * width + c, count, not_below(m2, zero))


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
def add_parts(
    parts: Any, widths: Any, first: int, stop: int, channels: int, inner: int, sums: Any
) -> None:
    """Write the sums of some channels, those of their columns in all parts: see `merge_parts`."""
    number, width = parts.shape[1], parts.shape[2]
    for row in range(sums.shape[0]):
        if width == channels:
            for c in range(first, stop, LANES):
                vector = splat(0.0)
                for part in range(number):
                    vector = vector + load_upto(parts, (row * number + part) * width + c, stop - c)
                store_upto(sums, row * width + c, stop - c, vector)
        else:
            for c in range(first, stop):
                found = 0.0
                for part in range(number):
                    for start in range(c * inner, widths[part], channels * inner):
                        for j in range(start, start + inner):
                            found += parts[row, part, j]
                sums[row, c] = found
