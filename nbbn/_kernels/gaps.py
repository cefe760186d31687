"""Moments of data with gaps: NaN is a value that is missing, so every column has a count of its own.

The formulas are those of `nbbn._kernels.statistics`. A missing value adds nothing to count, sum and m2: it is taken
for the reference, a selection in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbbn._compiler.jit import Blocks, IfWeights, Int, OutForm, OutTable, Parts, Stack, helper, inlined, step
from nbbn._compiler.memory import ONE, ZERO, Rows, at, column_of, load_rows, store_rows
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    constant,
    first_of,
    fma,
    has_spare_digits,
    narrow,
    smaller,
    splat,
    square_root,
    total,
    where_at_most,
    where_finite,
    widen,
)
from nbbn._compiler.weights import number_of, plus_weight, times_weight, weight_at, where_counted
from nbbn._kernels.coefficients import write_coefficients
from nbbn._kernels.columns import Block, block_at, layout_of, look_from_near, samples_in
from nbbn._kernels.loops import GROUP, sum_run, sum_strip
from nbbn._kernels.statistics import PIECE, Layout, Samples, mean_of, merged, worst_condition
from nbbn._kernels.table import COUNTS, GAMMA, MEAN, MEAN_LOW, REFERENCE


@inlined
def add_present(read: Samples, row: int, k: int, count: int, about: Any, sums: Any) -> Any:
    """Return count, ``sum(w * d)`` and ``sum(w * d * d)`` with those of a place, ``d = x - about``.

    ``about`` is of the type that is computed with.
    """
    value, weight = at(read.x, row, k, count), weight_at(read.weights, row, k, count)
    if count < LANES:
        value = first_of(count, value, constant(value, np.nan))
    if has_spare_digits(value):
        d = widen(where_at_most(value, value, value, about)) - widen(about)
    else:  # fewer registers
        d = where_at_most(value, value, widen(value) - widen(about), splat(0.0))
    d = where_counted(weight, d, splat(0.0))
    a = times_weight(weight, d)
    return plus_weight(sums[0], weight, value), sums[1] + a, fma(a, d, sums[2])


@inlined
def near(x: Any, n: Any, s: Any) -> Any:
    """Return a mean as the values are computed with, to take deviations from."""
    found = mean_of(n, s)
    return narrow(x, where_finite(found, found, splat(0.0)))


@inlined
def no_sums(x: Any, weight: Any) -> Any:
    """Return zeros for the sums of `add_present`."""
    zero, count = splat(0.0), narrow(x, splat(0.0))
    return plus_weight(count, weight, constant(count, np.nan)), zero, zero


@inlined
def sum_present(add: Any, read: Samples, rows: Any, k: int, count: int, about: Any, sums: Any) -> Any:
    """Return ``sum(w * d)``, ``sum(w * d * d)`` and counts with those of some rows; ``add`` is `add_present`."""
    x, weight = read.x.values, weight_at(read.weights, ZERO, ZERO, LANES)
    n, s, q = sum_strip(add, read, rows, k, count, narrow(x, about), no_sums(x, weight))
    return sums[0] + s, sums[1] + q, sums[2] + number_of(weight, n)


@helper
def look_at_tile(samples: Samples, parts: Any, block: Block, ahead: int) -> None:
    """Take the moments of one tile of one part, as `nbbn._kernels.columns.look_at_tile`."""
    x, zero = samples.x, splat(0.0)
    read, none = samples_in(samples, parts, block), (zero, zero, zero)
    for k in range(0, block.columns, LANES):
        about, count = narrow(x, zero), block.columns - k
        if not has_spare_digits(x):
            some = ZERO, smaller(block.rows, GROUP)
            s, _, n = sum_present(add_present, read, some, k, count, zero, none)
            about = near(x, n, s)
        place = block.part * parts.shape[2] + block.first + k
        store_rows(parts, REFERENCE, place, count, (widen(about), zero, zero, zero))
    look_from_near(sum_present, add_present, none, x, read, parts, block, ahead)


@inlined
def moments_of_run(read: Samples, length: int, about: Any) -> tuple[Any, Any, Any]:
    """Return count, sum of deviations and m2, as vectors."""
    weight = weight_at(read.weights, ZERO, ZERO, length)
    n, s, q = sum_run(add_present, read, ZERO, length, about, no_sums(read.x.values, weight))
    count, sum_ = splat(total(number_of(weight, n))), splat(total(s))
    return count, sum_, splat(total(q)) - sum_ * mean_of(count, sum_)


@helper
def look_at_run(read: Samples, length: int, parts: Any, place: int) -> None:
    x = read.x.values
    about = narrow(x, splat(0.0))
    if not has_spare_digits(x):
        n, s, _ = moments_of_run(read, smaller(length, LANES), about)
        about = near(x, n, s)
    n, s, m2 = moments_of_run(read, length, about)
    d = mean_of(n, s)
    if any_greater(n * d * d, splat(worst_condition(x) - 1.0) * m2):
        about = narrow(x, widen(about) + d)
        _, s, m2 = moments_of_run(read, length, about)
    store_rows(parts, REFERENCE, place, ONE, (widen(about), s, m2, n))


@helper
def finish(parts: Any, layout: Layout, table: Any, form: Any) -> None:
    """Merge the parts; write what is found out to ``table``, and coefficients to ``form``."""
    for c in range(0, table.shape[1], LANES):
        left = table.shape[1] - c
        n, mean, low, m2 = merged(parts, layout, c, left)
        store_rows(table, COUNTS, c, left, (n,))
        store_rows(table, MEAN, c, left, (mean,))
        store_rows(table, MEAN_LOW, c, left, (low, m2))
        write_coefficients(form, c, left, mean, low, square_root(m2 / n), load_rows(3, table, GAMMA, c, left))


@step
def gaps_of_columns(
    x: Stack, weights: IfWeights, parts: Parts, table: OutTable, form: OutForm, ahead: Int, blocks: Blocks
) -> None:
    """Write count, mean, what its rounding leaves, and m2 of each channel to ``table``, which holds gamma and beta.

    As `nbbn._kernels.steps_of_columns.moments_of_columns`; ``parts``, (4, number of parts, width), is written over.
    """
    for task in prange(x.shape[0] * len(blocks)):
        look_at_tile(Samples(x, weights), parts, block_at(blocks, np.intp(task)), ahead)
    finish(parts, layout_of(x, parts, table.shape[1]), table, form)


@step
def gaps_of_runs(x: Stack, weights: IfWeights, parts: Parts, table: OutTable, form: OutForm, ahead: Int) -> None:
    """`gaps_of_columns` of channels that are runs: ``parts``, (4, outer * segments of a run, C)."""
    channels, inner = x.shape[1], x.shape[2]
    segments = (inner + PIECE - 1) // PIECE
    for task in prange(parts.shape[1] * channels):
        part, c = np.intp(task // channels), np.intp(task % channels)
        o, first = part // segments, part % segments * PIECE
        read = Samples(column_of(x, o, c, first), Rows(weights, o * inner + first, ZERO))
        look_at_run(read, smaller(PIECE, inner - first), parts, part * channels + c)
    finish(parts, Layout(parts.shape[1], ONE, ONE), table, form)
