"""Moments of data with gaps: NaN is a value that is missing, so every column has a count of its own.

The formulas are those of `nbbn._kernels.statistics`. A missing value adds nothing to count, sum and m2: a selection
in registers, so that data from memory takes the same time with gaps and without. Python merges the parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn._compiler.jit import IfWeights, Parts, Stack, helper, inlined, step
from nbbn._compiler.memory import at, load_upto, store_upto
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    fma,
    keep_first,
    larger,
    smaller,
    splat,
    total,
    where_at_most,
    where_below,
    where_finite,
    widen,
)
from nbbn._compiler.weights import times_weight, weight_at, weight_of_row, where_counted
from nbbn._kernels.columns import SHALLOW, TILE, Block, block_of, rows_in, tasks_of
from nbbn._kernels.loops import GROUP
from nbbn._kernels.memory import ONE, ZERO, Rows, rows_of
from nbbn._kernels.statistics import PIECE, Samples, moments_from_sums
from nbbn._kernels.table import COUNT, REFERENCE, SQUARES, SUM


@inlined
def present(value: Any, weight: Any, about: Any) -> tuple[Any, Any, Any]:
    """Return ``w``, ``w * (x - about)`` and ``x - about``; 0 of what is missing, or has no weight."""
    zero, most = splat(0.0), splat(np.inf)
    one = where_counted(weight, where_at_most(value, most, splat(1.0), zero), zero)
    d = where_counted(weight, where_at_most(value, most, value - about, zero), zero)
    return times_weight(weight, one), times_weight(weight, d), d


@inlined
def mean_of(n: Any, s: Any) -> Any:
    """Return ``s / n``; 0 where there is no value, or an infinite one."""
    found = where_below(splat(0.0), n, s / n, splat(0.0))
    return where_finite(found, found, splat(0.0))


@inlined
def sum_strip_with_gaps(
    read: Samples, rows: Any, k: int, count: int, about: Any, sums: Any
) -> tuple[Any, Any, Any]:
    """Add count, sum and squares of up to sixteen columns to ``sums``; ``rows`` as of `sum_strip`."""
    n, s, q = sums
    if count >= LANES:
        for row in range(rows[0], rows[1]):
            value, weight = widen(at(read.x, row, k, LANES)), weight_of_row(read.weights, row)
            one, a, d = present(value, weight, about)
            n = n + one
            s = s + a
            q = fma(a, d, q)
    else:
        for row in range(rows[0], rows[1]):
            value, weight = widen(at(read.x, row, k, count)), weight_of_row(read.weights, row)
            one, a, d = present(value, weight, about)
            n = n + one
            s = s + a
            q = fma(a, d, q)
    return n, s, q


@helper
def sum_tile_with_gaps(read: Samples, block: Block, parts: Any, part: int) -> None:
    """Write reference, sum of deviations, m2 and count of the columns of a block."""
    number, width = parts.shape[1], parts.shape[2]
    zero, rows, columns = splat(0.0), block.rows, block.stop - block.first
    reference, sum_ = part * width + block.first, (SUM * number + part) * width + block.first
    square = (SQUARES * number + part) * width + block.first
    counts = (COUNT * number + part) * width + block.first
    nothing = zero, zero, zero
    for k in range(0, columns, LANES):
        count = columns - k
        first = (0, smaller(rows, GROUP))
        n, s, _ = sum_strip_with_gaps(read, first, k, count, zero, nothing)
        store_upto(parts, reference + k, count, mean_of(n, s))
        store_upto(parts, sum_ + k, count, zero)
        store_upto(parts, square + k, count, zero)
        store_upto(parts, counts + k, count, zero)
    depth = larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        stop = smaller(row + depth, rows)
        for k in range(0, columns, LANES):
            count = columns - k
            about = load_upto(parts, reference + k, count)
            sums = (
                load_upto(parts, counts + k, count),
                load_upto(parts, sum_ + k, count),
                load_upto(parts, square + k, count),
            )
            n, s, q = sum_strip_with_gaps(read, (row, stop), k, count, about, sums)
            store_upto(parts, counts + k, count, n)
            store_upto(parts, sum_ + k, count, s)
            store_upto(parts, square + k, count, q)
    for k in range(0, columns, LANES):
        count = columns - k
        about, n = load_upto(parts, reference + k, count), load_upto(parts, counts + k, count)
        s, q = load_upto(parts, sum_ + k, count), load_upto(parts, square + k, count)
        d = mean_of(n, s)
        m2 = q - s * d
        loss = n * d * d
        if any_greater(loss, m2):  # a digit and more is lost: look again, about the mean
            nearer = about + d
            _, again, q = sum_strip_with_gaps(read, (0, rows), k, count, nearer, nothing)
            squares = q - again * mean_of(n, again)
            about = where_below(m2, loss, nearer, about)
            s = where_below(m2, loss, again, s)
            m2 = where_below(m2, loss, squares, m2)
            store_upto(parts, reference + k, count, about)
            store_upto(parts, sum_ + k, count, s)
        store_upto(parts, square + k, count, m2)


@inlined
def sum_run_with_gaps(read: Samples, length: int, about: float) -> tuple[float, float, float]:
    """Return count, sum and squares of a run."""
    n = s = q = splat(0.0)
    near = splat(about)
    k = 0
    while k + LANES <= length:
        value, weight = widen(at(read.x, ZERO, k, LANES)), weight_at(read.weights, ZERO, k, LANES)
        one, a, d = present(value, weight, near)
        n = n + one
        s = s + a
        q = fma(a, d, q)
        k += LANES
    if k < length:
        left = length - k
        value, weight = widen(at(read.x, ZERO, k, left)), weight_at(read.weights, ZERO, k, left)
        one, a, d = present(value, weight, near)
        n = n + keep_first(one, left)
        s = s + keep_first(a, left)
        q = fma(keep_first(a, left), d, q)
    return total(n), total(s), total(q)


@helper
def look_at_run(read: Samples, length: int, parts: Any, part: int, channel: int) -> None:
    """Write reference, sum of deviations, m2 and count of a run."""
    n, s, _ = sum_run_with_gaps(read, smaller(length, LANES), 0.0)
    about = s / n if n > 0.0 and np.isfinite(s) else 0.0
    n, s, q = sum_run_with_gaps(read, length, about)
    m2 = 0.0
    if n > 0.0:
        d, m2 = moments_from_sums(n, s, q)
        if n * d * d > m2:
            about = about + d
            n, s, q = sum_run_with_gaps(read, length, about)
            _, m2 = moments_from_sums(n, s, q)
    parts[REFERENCE, part, channel] = about
    parts[SUM, part, channel] = s
    parts[SQUARES, part, channel] = m2
    parts[COUNT, part, channel] = n


@step
def gaps_of_columns(x: Stack, weights: IfWeights, parts: Parts) -> None:
    """Write reference, sum, m2 and count of each column to each of its ``parts``, (4, number, width).

    As `nbbn._kernels.steps_of_columns.moments_of_columns`, in one thread. Reads x once.
    """
    width = parts.shape[2]
    tiles, fold = (width + TILE - 1) // TILE, width // x.shape[2]
    for task in range(tasks_of(x, width, TILE)):
        block = block_of(x, width, TILE, task)
        own = Rows(weights, block.outer * x.shape[1] + block.row, ONE)
        sum_tile_with_gaps(Samples(rows_in(x, block, fold), own), block, parts, task // tiles)


@step
def gaps_of_runs(x: Stack, weights: IfWeights, parts: Parts) -> None:
    """Write reference, sum, m2 and count of each segment of a run to ``parts``, (4, outer * segments, C).

    As `nbbn._kernels.steps_of_runs.moments_of_runs`, in one thread. Reads x once.
    """
    outer, channels, inner = x.shape
    segments = (inner + PIECE - 1) // PIECE
    for part in range(outer * segments):
        o, first = part // segments, part % segments * PIECE
        for c in range(channels):
            own = Rows(weights, o * inner + first, ZERO)
            read = Samples(rows_of(x, o, c, first), own)
            look_at_run(read, smaller(PIECE, inner - first), parts, part, c)
