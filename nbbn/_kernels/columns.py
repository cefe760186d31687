"""Where channels lie side by side: arrays of (outer, rows, C * inner), one channel ``inner`` columns.

Rows are cut into parts and columns into tiles, by the shape only; parts are merged in a fixed order, so no
result depends on the number of threads. Narrow rows without gaps between them are read as wider ones, several
to a row, to fill the vectors (``width`` values then); what is left over is a last row of its own, and column ``j``
belongs to channel ``j // inner % C``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import (
    ONE,
    ZERO,
    Rows,
    at,
    fence,
    load,
    load_rows,
    note_infinite,
    prefetch,
    room_for_largest,
    rows_of,
    store_rows,
)
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    has,
    has_spare_digits,
    has_values,
    larger,
    narrow,
    smaller,
    splat,
    where_below,
    where_finite,
    widen,
)
from nbbn._compiler.weights import RowWeights
from nbbn._kernels.elementwise import About, Coefficients, Given, Target, add_products, form_at, no_sums
from nbbn._kernels.loops import GROUP, sum_strip, write_rows
from nbbn._kernels.statistics import Layout, Samples, add_deviations, mean_of, worst_condition
from nbbn._kernels.table import REFERENCE, SUM, SUM_GRAD

TILE = 512  # columns: their float64 sums (8 KB) stay in L1
WIDE_TILE = 1024  # columns of the elementwise steps: three float32 coefficients each, 12 KB
SHALLOW = 2048  # values of rows side by side
LINE = 64  # bytes of the cache
FULL_ROW = 128  # columns that short rows are joined to where they are summed
LONG_ROW = 1920  # bytes that they are joined to where they are written
LONGEST_ROW = 1 << 12  # ... past the cache: each end of a row may cost a line, rows one by one up to 1.4 times as long
MANY = 1 << 16  # values from which it pays to join rows of some lines, too: they need coefficients a column
PART = 1 << 16  # values of a part
PART_ROWS = 64  # at least: what is kept for a part then is little beside the part


# --- what Python decides before a step runs; `nbbn.nopython` compiles it ---


def width_to_sum(outer: int, rows: int, row: int) -> int:
    """Return how many values are summed as one row: of short ones so many that they are whole vectors."""
    fold = 1
    if outer == 1 and row < FULL_ROW and row % LANES != 0:
        while row * fold % LANES != 0:
            fold *= 2
        fold *= (FULL_ROW + row * fold - 1) // (row * fold)
        if rows < fold * GROUP:
            fold = 1
    return row * fold


def width_to_write(rows: int, row: int, itemsize: int, streaming: int) -> int:
    """Return how many values, computed with ``itemsize`` bytes, are written as one row.

    Short ones are joined where that saves partial vectors, lines, or a loop a vector.
    """
    joined = (LONGEST_ROW if streaming else LONG_ROW) // itemsize
    saves = streaming or row % LANES != 0 or (row * itemsize <= 4 * LINE and rows * row >= MANY)
    return row * min(joined // row, rows) if row < joined and saves else row


def blocks_of(rows: int, row: int, width: int, tile: int) -> Any:
    """Return the blocks that a matrix is cut into, what `block_at` reads of each: parts of the rows, tiles of columns.

    Last comes what folding left over, which there is only where there is one matrix.
    """
    fold, depth = width // row, max(PART_ROWS, PART // width)
    whole, tiles = rows // fold, (width + tile - 1) // tile
    number, left = (whole + depth - 1) // depth * tiles, rows % fold
    found = np.empty((number + (1 if left else 0), 5), np.int64)
    for block in range(number):
        part, first = block // tiles, block % tiles * tile
        found[block, 0], found[block, 1], found[block, 2] = part, part * depth, min(depth, whole - part * depth)
        found[block, 3], found[block, 4] = first, min(tile, width - first)
    if left:
        found[number, 0], found[number, 1], found[number, 2] = number // tiles, whole, 1
        found[number, 3], found[number, 4] = 0, left * row
    return found


# --- what is compiled ---


class Block(NamedTuple):
    """Some rows of one matrix, and some of its columns."""

    part: int  # of the rows of all matrices
    outer: int
    row: int
    rows: int
    first: int
    columns: int


@inlined
def block_at(blocks: Any, task: int) -> Block:
    """Return the block of a task: one matrix after the other, each cut in the same way."""
    number = len(blocks)
    outer, b = task // number, task % number
    part = outer * (blocks[number - 1, 0] + 1) + blocks[b, 0]
    return Block(part, outer, blocks[b, 1], blocks[b, 2], blocks[b, 3], blocks[b, 4])


@inlined
def layout_of(x: Any, parts: Any, channels: int) -> Layout:
    """Return where the sums of a channel stand in the parts."""
    fold = parts.shape[2] // x.shape[2]
    rest = x.shape[1] % fold  # rows of the last part, which folding left over
    number = (parts.shape[1] - 1) * fold + rest if rest else parts.shape[1] * fold
    return Layout(number, fold, x.shape[2] // channels)


@inlined
def are_whole(parts: Any, table: Any) -> bool:
    """Whether there is one part, a column a channel: then a tile has all that its channels need, still in the cache."""
    return parts.shape[1] == 1 and parts.shape[2] == table.shape[1]


@inlined
def ask_for(rows: Rows, columns: int, coming: Any, places: int) -> Any:
    """Ask for the cache lines of so many vectors, from a row and a column on; return the row and column behind them.

    The next rows are asked for one after the other: a stream that the processor then reads ahead of, while rows side by
    side are none. Rows of a line or two are such a stream by themselves: its beginning is enough.
    """
    row, column = coming
    line = LINE // rows.values.itemsize
    if columns <= 2 * line:
        for k in range(GROUP):
            prefetch(rows.values, rows.at + row * rows.stride + column + k * line)
        return row + 1, ZERO
    left = larger(ONE, places * LANES // line)
    while left > 0:
        number = smaller(left, (columns - column + line - 1) // line)
        index = rows.at + row * rows.stride + column
        for k in range(number):
            prefetch(rows.values, index + k * line)
        left, column = left - number, column + number * line
        if column >= columns:
            row, column = row + 1, ZERO
    return row, column


@inlined
def near_row(read: Samples, k: int, count: int, rows: int) -> Any:
    """Return what the first look takes deviations from: see `nbbn._kernels.statistics`."""
    about = splat(0.0)
    if not has_spare_digits(read.x.values) and not has(read.weights.values):
        number = smaller(rows, GROUP)
        for row in range(number):
            about = about + widen(at(read.x, row, k, count))
        about = about / splat(float(number))
        about = where_finite(about, about, splat(0.0))
    return about


@inlined
def samples_in(samples: Samples, parts: Any, block: Block) -> Samples:
    """Return the rows of a block, from its first column on; weights are one a row."""
    x, fold = samples.x, parts.shape[2] // samples.x.shape[2]
    weights = RowWeights(samples.weights, block.outer * x.shape[1] + block.row)
    return Samples(rows_of(x, block.outer, block.row * fold, block.first, fold), weights)


@inlined
def look_from_near(
    sum_rows: Any, add: Any, none: Any, like: Any, read: Samples, parts: Any, block: Block, ahead: int
) -> None:
    """Write reference, sum of deviations, m2 and count of columns; ``ahead``, ask for rows ahead of time.

    The references are there, and what ``sum_rows`` adds to as `sum_strip` does, as many numbers as ``none`` has zeros.
    It takes deviations from numbers such as ``like`` is computed with.
    """
    x, rows, columns = read.x.values, block.rows, block.columns
    first, depth = block.part * parts.shape[2] + block.first, larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        some, coming = (row, smaller(row + depth, rows)), (row + depth, ZERO)
        for k in range(0, columns, LANES):
            if ahead:
                coming = ask_for(read.x, columns, coming, depth)
            count, about = columns - k, splat(0.0)
            if not has_spare_digits(x):
                about = load(parts, first + k, count)
            sums = load_rows(none, parts, SUM, first + k, count)
            store_rows(parts, SUM, first + k, count, sum_rows(add, read, some, k, count, about, sums))
    limit = splat(worst_condition(x) - 1.0)
    for k in range(0, columns, LANES):
        count = columns - k
        about, s, q, n = load_rows(4, parts, REFERENCE, first + k, count)
        d = mean_of(n, s)
        m2 = q - s * d
        bound, loss = limit * m2, n * d * d
        if any_greater(loss, bound):
            nearer = widen(narrow(like, about + d))
            found = sum_rows(add, read, (ZERO, rows), k, count, nearer, none)
            # Of each channel by itself: its neighbours must not change its bits.
            about = where_below(bound, loss, nearer, about)
            s = where_below(bound, loss, found[0], s)
            m2 = where_below(bound, loss, found[1] - found[0] * mean_of(n, found[0]), m2)
        store_rows(parts, REFERENCE, first + k, count, (about, s, m2, n))


@helper
def look_at_tile(samples: Samples, numbers: Any, parts: Any, block: Block, ahead: int) -> None:
    """Write reference, sum of deviations, m2 and count of the columns of a block: see `look_from_near`."""
    n = float(block.rows) if numbers is None else numbers[block.part]
    read, zero = samples_in(samples, parts, block), splat(0.0)
    for k in range(0, block.columns, LANES):
        about, place = near_row(read, k, block.columns - k, block.rows), block.part * parts.shape[2] + block.first + k
        store_rows(parts, REFERENCE, place, block.columns - k, (about, zero, zero, splat(n)))
    if n > 0.0:
        look_from_near(sum_strip, add_deviations, (zero, zero), parts, read, parts, block, ahead)


@inlined
def rows_in(given: Given, largest: Any, block: Block, fold: int, first: int) -> Given:
    """Return the rows of a block from column ``first`` on; a mask has one number a row."""
    outer, row = block.outer, block.row * fold
    return Given(
        rows_of(given.grad_y, outer, row, first, fold),
        rows_of(given.x, outer, row, first, fold),
        RowWeights(given.mask, outer * given.x.shape[1] + block.row),
        rows_of(given.residual, outer, row, first, fold),
        rows_of(given.kept, outer, row, first, fold),
        given.kind,
        largest,
    )


@helper
def add_up_tile(given: Given, means: Any, of_y: Any, parts: Any, block: Block, ahead: int) -> None:
    """Write the sums of the columns of a block, with ``means`` and the coefficients of the forward, one a column.

    ``ahead``, ask for rows ahead of time.
    """
    fold, none = parts.shape[2] // given.x.shape[2], Rows(None, ZERO, ZERO)
    more, keeps = rows_in(given, None, block, fold, block.first), has_values(given.kept)
    read = Given(more.grad_y, more.x, more.mask, none, none, given.kind, None)
    first = block.part * parts.shape[2] + block.first
    rows, columns = block.rows, block.columns
    depth = larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        stop = smaller(row + depth, rows)
        coming = row + depth, ZERO
        for k in range(0, columns, LANES):
            if ahead:
                ask_for(read.grad_y, columns, coming, depth)
                coming = ask_for(read.x, columns, coming, depth)
            count, place = columns - k, block.first + k
            about = About(load(means, place, count), load_rows(Coefficients, of_y, ZERO, place, count))
            sums = load_rows(no_sums(given.kind), parts, SUM_GRAD, first + k, count)
            if keeps:
                sums = sum_strip(add_products, more, (row, stop), k, count, about, sums)
            else:
                sums = sum_strip(add_products, read, (row, stop), k, count, about, sums)
            store_rows(parts, SUM_GRAD, first + k, count, sums)


@inlined
def write_tile(operation: Any, given: Given, to: Target, block: Block, fold: int) -> None:
    """Write a tile of columns of some rows."""
    largest = room_for_largest(given.noted, given.x)
    read = rows_in(given, largest, block, fold, ZERO)
    y = rows_of(to.values, block.outer, block.row * fold, ZERO, fold)
    columns = block.first, block.first + block.columns
    write_rows(operation, form_at, y, read, block.rows, columns, to.form, to.streaming)
    if to.streaming:
        fence()
    note_infinite(given.noted, largest)
