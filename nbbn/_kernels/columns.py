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
    at,
    fence,
    load_upto,
    note_infinite,
    outer_stride,
    prefetch,
    room_for_largest,
    row_stride,
    store_upto,
)
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    has,
    has_spare_digits,
    has_values,
    larger,
    smaller,
    splat,
    where_below,
    where_finite,
    widen,
)
from nbbn._kernels.activations import LEARNED
from nbbn._kernels.elementwise import (
    About,
    Backward,
    Forward,
    Fused,
    GradientTarget,
    Target,
    add_products_of_row,
    backward_of_row,
    coefficients_at,
    forward,
    gradient_coefficients_at,
)
from nbbn._kernels.loops import GROUP, sum_strip, write_rows, write_strips
from nbbn._kernels.memory import ONE, ZERO, Rows, one_row
from nbbn._kernels.statistics import Layout, Samples, add_deviations_of_row, moments_from_sums, worst_condition

TILE = 512  # columns: their float64 sums (8 KB) stay in L1
WIDE_TILE = 1024  # columns of the elementwise steps: three float32 coefficients each, 12 KB
SHALLOW = 2048  # values of rows side by side
SMALL = 1 << 20  # bytes that a core's own cache holds
LONG_ROW = 512  # columns that short rows are joined to, where they are written past the cache
FULL_ROW = 128  # ... and where they are summed, or are not whole vectors
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


def width_to_write(rows: int, row: int, streaming: int) -> int:
    """Return how many values are written as one row: short ones joined where that saves partial vectors or lines."""
    if row < LONG_ROW and (streaming or row % LANES != 0):
        return row * min(LONG_ROW // row, rows)
    return row


def numbers_of_parts(outer: int, rows: int, row: int, width: int) -> Any:
    """Return how many values a column of each part has."""
    fold, depth = width // row, max(PART_ROWS, PART // width)
    whole = rows // fold
    parts = (whole + depth - 1) // depth
    left = 1 if rows % fold else 0
    found = np.empty(outer * parts + left)
    for part in range(outer * parts):
        found[part] = min(depth, whole - part % parts * depth)
    if left:
        found[outer * parts] = 1.0
    return found


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
def rows_in(array: Any, block: Block, fold: int, first: int) -> Rows:
    """Return the rows of a block, from a column on."""
    stride = row_stride(array) * fold
    return Rows(array, block.outer * outer_stride(array) + block.row * stride + first, stride)


class Learned(NamedTuple):
    """What is found out about the data."""

    weights: Any
    numbers: Any
    parts: Any
    ahead: int  # whether rows are asked for ahead of time


class Sums(NamedTuple):
    """What the sums of a backward are made with."""

    mask: Any
    means: Any  # one a column
    parts: Any


@inlined
def ask_for(rows: Rows, row: int, k: int) -> int:
    """Ask for `GROUP` cache lines of a row from ``k`` on; return the column behind them.

    The next rows are asked for one after the other: a stream that the processor then reads ahead
    of, while rows side by side are none.
    """
    index = rows.at + row * rows.stride + k
    for line in range(GROUP):
        prefetch(rows.values, index + line * LANES)
    return k + GROUP * LANES


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


@helper
def sum_tile(read: Samples, block: Block, n: float, parts: Any, ahead: int) -> None:
    """Write reference, sum of deviations and m2 of the columns of a block."""
    if n == 0.0:
        return
    number, width, part = parts.shape[1], parts.shape[2], block.part
    reference, sum_ = part * width + block.first, (number + part) * width + block.first
    square = (2 * number + part) * width + block.first
    zero, rows, columns = splat(0.0), block.rows, block.columns
    for k in range(0, columns, LANES):
        count = columns - k
        store_upto(parts, reference + k, count, near_row(read, k, count, rows))
        store_upto(parts, sum_ + k, count, zero)
        store_upto(parts, square + k, count, zero)
    depth = larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        stop = smaller(row + depth, rows)
        coming, column = row + depth, ZERO
        for k in range(0, columns, LANES):
            if ahead:
                column = ask_for(read.x, coming, column)
                if column >= columns:
                    coming, column = coming + 1, ZERO
            count = columns - k
            about = zero
            if not has_spare_digits(read.x.values):
                about = load_upto(parts, reference + k, count)
            sums = load_upto(parts, sum_ + k, count), load_upto(parts, square + k, count)
            s, q = sum_strip(add_deviations_of_row, read, (row, stop), k, count, about, sums)
            store_upto(parts, sum_ + k, count, s)
            store_upto(parts, square + k, count, q)
    values, limit = splat(n), splat(worst_condition(read.x.values) - 1.0)
    for k in range(0, columns, LANES):
        count = columns - k
        about = load_upto(parts, reference + k, count)
        s, q = load_upto(parts, sum_ + k, count), load_upto(parts, square + k, count)
        d, m2 = moments_from_sums(values, s, q)
        bound, loss = limit * m2, values * d * d
        if any_greater(loss, bound):
            nearer = about + d
            again, q = sum_strip(add_deviations_of_row, read, (0, rows), k, count, nearer, (zero, zero))
            _, squares = moments_from_sums(values, again, q)
            # Of each channel by itself: its neighbours must not change its bits.
            about = where_below(bound, loss, nearer, about)
            s = where_below(bound, loss, again, s)
            m2 = where_below(bound, loss, squares, m2)
            store_upto(parts, reference + k, count, about)
            store_upto(parts, sum_ + k, count, s)
        store_upto(parts, square + k, count, m2)


@helper
def look_at_tile(x: Any, learned: Learned, block: Block) -> None:
    """Take the moments of one tile of one part."""
    fold = learned.parts.shape[2] // x.shape[2]
    weights = Rows(learned.weights, block.outer * x.shape[1] + block.row, ONE)
    read, n = Samples(rows_in(x, block, fold, block.first), weights), learned.numbers[block.part]
    sum_tile(read, block, n, learned.parts, learned.ahead)


@inlined
def sums_at(parts: Any, index: int, count: int, kind: Any) -> Any:
    """Return the sums of a backward of up to sixteen columns, the first of which stand at ``index``."""
    size = parts.shape[1] * parts.shape[2]
    s, h = load_upto(parts, index, count), load_upto(parts, index + size, count)
    if len(kind) == LEARNED:
        return s, h, load_upto(parts, index + 2 * size, count)
    return s, h


@inlined
def keep_sums(sums: Any, parts: Any, index: int, count: int) -> None:
    """Write what `sums_at` returns."""
    size = parts.shape[1] * parts.shape[2]
    store_upto(parts, index, count, sums[0])
    store_upto(parts, index + size, count, sums[1])
    if len(sums) == 3:
        store_upto(parts, index + 2 * size, count, sums[2])


@helper
def add_up_tile(grad_y: Any, x: Any, to: Sums, fused: Fused, block: Block) -> None:
    """Write the sums of the columns of one tile of one part."""
    parts, width = to.parts, to.parts.shape[2]
    fold = width // x.shape[2]
    mask, none = Rows(to.mask, block.outer * x.shape[1] + block.row, ONE), one_row(None, ZERO)
    grads, values = rows_in(grad_y, block, fold, block.first), rows_in(x, block, fold, block.first)
    residual, kept = rows_in(fused.residual, block, fold, block.first), rows_in(fused.kept, block, fold, block.first)
    read = Backward(grads, values, mask, none, none, fused.kind)
    more, keeps = Backward(grads, values, mask, residual, kept, fused.kind), has_values(fused.kept)
    first = block.part * width + block.first
    rows, columns = block.rows, block.columns
    depth = larger(GROUP, SHALLOW // columns)
    for row in range(0, rows, depth):
        stop = smaller(row + depth, rows)
        coming, column = row + depth, ZERO
        for k in range(0, columns, LANES):
            ask_for(grads, coming, column)
            column = ask_for(values, coming, column)
            if column >= columns:
                coming, column = coming + 1, ZERO
            count, place = columns - k, block.first + k
            of_y = coefficients_at(fused.form, place, count)
            about = About(load_upto(to.means, place, count), of_y)
            sums = sums_at(parts, first + k, count, fused.kind)
            if keeps:
                sums = sum_strip(add_products_of_row, more, (row, stop), k, count, about, sums)
            else:
                sums = sum_strip(add_products_of_row, read, (row, stop), k, count, about, sums)
            keep_sums(sums, parts, first + k, count)


@inlined
def is_in_cache(x: Any) -> bool:
    """Whether rows are best written in strips, which share their coefficients.

    0.7 of the time for 512 rows of 256; but the processor reads less far ahead: 1.7 for 65,536 rows.
    """
    return x.size * x.itemsize <= SMALL


@helper
def normalize_tile(x: Any, to: Target, block: Block) -> None:
    """Write y in a tile of columns of some rows."""
    fold = to.form.shape[1] // x.shape[2]
    largest = room_for_largest(to.noted, x)
    read = Forward(rows_in(x, block, fold, ZERO), rows_in(to.residual, block, fold, ZERO), to.kind, largest)
    y, columns = rows_in(to.y, block, fold, ZERO), (block.first, block.first + block.columns)
    if is_in_cache(x) and not to.streaming:
        write_strips(forward, coefficients_at, y, read, block.rows, columns, to.form)
    else:
        write_rows(forward, coefficients_at, y, read, block.rows, columns, to.form, to.streaming)
    if to.streaming:
        fence()
    note_infinite(to.noted, largest)


@helper
def differentiate_tile(grad_y: Any, x: Any, to: GradientTarget, block: Block) -> None:
    """Write grad_x in a tile, as `normalize_tile`."""
    fold = to.forms.grad_x.shape[1] // x.shape[2]
    mask = Rows(to.mask, block.outer * x.shape[1] + block.row, ONE)
    grads, values, none = rows_in(grad_y, block, fold, ZERO), rows_in(x, block, fold, ZERO), one_row(None, ZERO)
    read = Backward(grads, values, mask, none, none, to.kind)
    y, columns = rows_in(to.grad_x, block, fold, ZERO), (block.first, block.first + block.columns)
    pick = gradient_coefficients_at
    if is_in_cache(x) and not to.streaming:
        write_strips(backward_of_row, pick, y, read, block.rows, columns, to.forms)
    else:
        write_rows(backward_of_row, pick, y, read, block.rows, columns, to.forms, to.streaming)
    if to.streaming:
        fence()
