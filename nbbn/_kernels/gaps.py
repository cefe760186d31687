"""Moments of data with gaps: NaN is a value that is missing, so every column has a count of its own.

The formulas are those of `nbbn._kernels.statistics`. A missing value adds nothing to count, sum and m2: it is taken
for the reference, a selection in registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbbn._compiler.jit import Blocks, IfWeights, Int, OutTable, Parts, Stack, helper, inlined, step
from nbbn._compiler.memory import ONE, ZERO, Rows, at, column_of, load_every, load_rows, rows_of, store_rows
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    constant,
    first_of,
    fma,
    has_spare_digits,
    larger,
    narrow,
    not_below,
    smaller,
    splat,
    total,
    where_at_most,
    where_below,
    where_finite,
    widen,
)
from nbbn._compiler.weights import RowWeights, number_of, plus_weight, times_weight, weight_at, where_counted
from nbbn._kernels.columns import SHALLOW, Block, ask_for, block_at, layout_of
from nbbn._kernels.loops import GROUP, sum_run, sum_strip
from nbbn._kernels.statistics import PIECE, Layout, Samples, worst_condition
from nbbn._kernels.table import REFERENCE, SUM


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
def mean_of(n: Any, s: Any) -> Any:
    """Return ``s / n``, 0 where there is no value."""
    zero = splat(0.0)
    return where_below(zero, n, s / n, zero)


@inlined
def near(x: Any, n: Any, s: Any) -> Any:
    """Return a mean as the values are computed with, to take deviations from."""
    found = mean_of(n, s)
    return narrow(x, where_finite(found, found, splat(0.0)))


@helper
def look_at_tile(samples: Samples, parts: Any, block: Block, ahead: int) -> None:
    """Take the moments of one tile of one part, as `nbbn._kernels.columns.look_at_tile`."""
    (x, weights), zero = samples, splat(0.0)
    of_rows = RowWeights(weights, block.outer * x.shape[1] + block.row)
    fold, rows = parts.shape[2] // x.shape[2], block.rows
    read = Samples(rows_of(x, block.outer, block.row * fold, block.first, fold), of_rows)
    first, columns = block.part * parts.shape[2] + block.first, block.columns
    near_zero = constant(at(read.x, ZERO, ZERO, columns), 0.0)
    weight, nothing = weight_at(of_rows, ZERO, ZERO, LANES), constant(near_zero, np.nan)
    none = plus_weight(near_zero, weight, nothing), zero, zero
    for k in range(0, columns, LANES):
        about = near_zero
        if not has_spare_digits(x):
            some = ZERO, smaller(rows, GROUP)
            n, s, _ = sum_strip(add_present, read, some, k, columns - k, about, none)
            about = near(x, number_of(weight, n), s)
        store_rows(parts, REFERENCE, first + k, columns - k, (widen(about), zero, zero, zero))
    depth = larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        some, coming, column = (row, smaller(row + depth, rows)), row + depth, ZERO
        for k in range(0, columns, LANES):
            if ahead:
                column = ask_for(read.x, coming, column)
                if column >= columns:
                    coming, column = coming + 1, ZERO
            count, place = columns - k, first + k
            about, s, q, n = load_rows(4, parts, REFERENCE, place, count)
            center = near_zero if has_spare_digits(x) else narrow(x, about)
            found = sum_strip(add_present, read, some, k, count, center, none)
            n = n + number_of(weight, found[0])
            store_rows(parts, SUM, place, count, (s + found[1], q + found[2], n))
    limit = splat(worst_condition(x) - 1.0)
    for k in range(0, columns, LANES):
        count, place = columns - k, first + k
        about, s, q, n = load_rows(4, parts, REFERENCE, place, count)
        d = mean_of(n, s)
        m2 = q - s * d
        loss, bound = n * d * d, limit * m2
        if any_greater(loss, bound):  # of each channel by itself
            nearer = narrow(x, about + d)
            _, again, q = sum_strip(add_present, read, (ZERO, rows), k, count, nearer, none)
            about = where_below(bound, loss, widen(nearer), about)
            s = where_below(bound, loss, again, s)
            m2 = where_below(bound, loss, q - again * mean_of(n, again), m2)
        store_rows(parts, REFERENCE, place, count, (about, s, m2, n))


@helper
def look_at_run(read: Samples, length: int, parts: Any, place: int) -> None:
    x, zero = read.x.values, splat(0.0)
    about = constant(at(read.x, ZERO, ZERO, length), 0.0)
    weight = weight_at(read.weights, ZERO, ZERO, length)
    none = plus_weight(about, weight, constant(about, np.nan)), zero, zero
    if not has_spare_digits(x):
        n, s, _ = sum_run(add_present, read, ZERO, smaller(length, LANES), about, none)
        about = near(x, splat(total(number_of(weight, n))), splat(total(s)))
    n, s, q = sum_run(add_present, read, ZERO, length, about, none)
    count, sum_ = splat(total(number_of(weight, n))), splat(total(s))
    d = mean_of(count, sum_)
    m2 = splat(total(q)) - sum_ * d
    if any_greater(count * d * d, splat(worst_condition(x) - 1.0) * m2):
        about = narrow(x, widen(about) + d)
        _, s, q = sum_run(add_present, read, ZERO, length, about, none)
        sum_ = splat(total(s))
        m2 = splat(total(q)) - sum_ * mean_of(count, sum_)
    store_rows(parts, REFERENCE, place, ONE, (widen(about), sum_, m2, count))


@helper
def finish(parts: Any, layout: Layout, table: Any) -> None:
    """Merge the parts, with the formula of `nbbn._kernels.statistics.merged`; write what is found out to ``table``."""
    number, fold, inner = layout
    row, width, zero = parts.shape[2] // fold, table.shape[1], splat(0.0)
    for c in range(0, width, LANES):
        left, base, most, whole, sum_, m2 = width - c, zero, zero, zero, zero, zero
        for i in range(number * inner):
            about, _, _, n = load_every(4, parts, REFERENCE, i // inner * row + c * inner + i % inner, inner, left)
            base, whole = where_below(most, n, about, base), whole + n
            most = not_below(n, most)
        for i in range(number * inner):
            about, s, _, n = load_every(4, parts, REFERENCE, i // inner * row + c * inner + i % inner, inner, left)
            sum_ = sum_ + (n * (about - base) + s)
        deviation = mean_of(whole, sum_)
        for i in range(number * inner):
            about, s, q, n = load_every(4, parts, REFERENCE, i // inner * row + c * inner + i % inner, inner, left)
            apart = ((about - base) + mean_of(n, s)) - deviation
            m2 = m2 + (q + n * apart * apart)
        mean = base + deviation
        low = where_finite(deviation, (base - mean) + deviation, zero)
        store_rows(table, ZERO, c, left, (whole, mean, low, not_below(m2, zero)))


@step
def gaps_of_columns(x: Stack, weights: IfWeights, parts: Parts, table: OutTable, ahead: Int, blocks: Blocks) -> None:
    """Write count, mean, what its rounding leaves, and m2 of each channel to ``table``.

    As `nbbn._kernels.steps_of_columns.moments_of_columns`; ``parts``, (4, number of parts, width), is written over.
    """
    for task in prange(x.shape[0] * len(blocks)):
        look_at_tile(Samples(x, weights), parts, block_at(blocks, np.intp(task)), ahead)
    finish(parts, layout_of(x, parts, table.shape[1]), table)


@step
def gaps_of_runs(x: Stack, weights: IfWeights, parts: Parts, table: OutTable, ahead: Int) -> None:
    """`gaps_of_columns` of channels that are runs: ``parts``, (4, outer * segments of a run, C)."""
    channels, inner = x.shape[1], x.shape[2]
    segments = (inner + PIECE - 1) // PIECE
    for task in prange(parts.shape[1] * channels):
        part, c = np.intp(task // channels), np.intp(task % channels)
        o, first = part // segments, part % segments * PIECE
        read = Samples(column_of(x, o, c, first), Rows(weights, o * inner + first, ZERO))
        look_at_run(read, smaller(PIECE, inner - first), parts, part * channels + c)
    finish(parts, Layout(parts.shape[1], ONE, ONE), table)
