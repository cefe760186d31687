"""Moments: the one place for the formulas of mean, variance and their merging.

The data is cut into parts, by its shape only. Of a part of ``n`` values, ``s = sum(x - k)`` and
``q = sum((x - k)**2)`` are taken in float64 in one loop, with ``k`` 0 for float32 data; then
``mean = k + s/n`` and ``m2 = q - s**2/n``. The subtraction loses a factor of ``1 + ((mean - k) / std)**2``.
float32 data has 29 bits to spare in float64 sums and gives away 10 of them; float64 data has none, so ``k`` is
near the data, and a factor of 2 is all that is given away. Where more would be lost the part, still in
cache, is summed again about its mean.

The mean of a part is carried as a pair (reference, deviation): near a mean of 1e6 standard deviations the pair
keeps the digits that a single float64 loses.

Sources: Welford, Technometrics 4 (1962) 419; Chan, Golub, LeVeque, The American Statistician 37
(1983) 242 (shifted data, condition number, merging).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.vectors import (
    LANES,
    has_spare_digits,
    keep_first,
    widen,
)
from nbbn._kernels.memory import at
from nbbn._kernels.table import (
    DEVIATION,
    INV_STD,
    M2,
    MEAN,
    MEAN_LOW,
    REFERENCE,
    SQUARES,
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
    return 1024.0 if has_spare_digits(x) else 2.0


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

    ``mean = base + sum(n_i (mean_i - base)) / n`` and ``m2 = sum(m2_i + n_i (mean_i - mean)**2)``, ``base`` the
    reference of the first part of the greatest weight.
    """
    lead, number = 0, numbers.shape[0]
    total = 0.0
    for part in range(number):
        if numbers[part, 0] > numbers[lead, 0]:
            lead = part
        total += numbers[part, 0] * (numbers[part, 1] // channels)
    repeat = channels * inner
    for c in range(first, stop):
        base = parts[REFERENCE, lead, c * inner]
        deviation = plain = m2 = 0.0
        for part in range(number):
            n = numbers[part, 0]
            if n > 0.0:
                for start in range(c * inner, int(numbers[part, 1]), repeat):
                    for j in range(start, start + inner):
                        k, d = parts[REFERENCE, part, j], parts[DEVIATION, part, j]
                        deviation += n * ((k - base) + d)
                        plain += k + d
        deviation /= total
        for part in range(number):
            n = numbers[part, 0]
            if n > 0.0:
                for start in range(c * inner, int(numbers[part, 1]), repeat):
                    for j in range(start, start + inner):
                        k, d = parts[REFERENCE, part, j], parts[DEVIATION, part, j]
                        apart = ((k - base) + d) - deviation
                        m2 += parts[SQUARES, part, j] + n * apart * apart
        mean = base + deviation
        low = (base - mean) + deviation
        if not math.isfinite(deviation):
            mean, low = plain, 0.0  # between infinities there is no difference, but there is a mean
        table[MEAN, c], table[MEAN_LOW, c] = mean, low
        table[M2, c] = 0.0 if m2 < 0.0 else m2


@helper
def write_variances(table: Any, first: int, stop: int, freedom: float, eps: float) -> None:
    """Write ``var = m2 / freedom`` and ``inv_std = 1 / sqrt(var + eps)``, 0 where that divides by 0."""
    for c in range(first, stop):
        var = table[M2, c] / freedom
        std = np.sqrt(var + eps)
        table[VAR, c] = var
        table[INV_STD, c] = 1.0 / std if std != 0.0 else 0.0


@helper
def add_parts(
    parts: Any, widths: Any, first: int, stop: int, channels: int, inner: int, sums: Any
) -> None:
    """Write the sums of some channels, those of their columns in all parts: see `merge_parts`."""
    for row in range(sums.shape[0]):
        for c in range(first, stop):
            found = 0.0
            for part in range(widths.size):
                for start in range(c * inner, widths[part], channels * inner):
                    for j in range(start, start + inner):
                        found += parts[row, part, j]
            sums[row, c] = found
