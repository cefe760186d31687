"""Where channels lie side by side: arrays of (outer, rows, C * inner), one channel ``inner`` columns.

Rows are cut into parts and columns into tiles, by the shape only; parts are merged in a fixed order, so no
result depends on the number of threads. Narrow rows without gaps between them are read as wider ones, several
to a row, to fill the vectors; what then is left over is a last row of its own, and column ``j`` belongs to
channel ``j // inner % C``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.vectors import (
    LANES,
    any_greater,
    fence,
    has,
    has_spare_digits,
    outer_stride,
    prefetch,
    row_stride,
    splat,
    where_below,
    where_finite,
    widen,
)
from nbbn._kernels.elementwise import (
    Activation,
    Backward,
    Forward,
    backward_of_row,
    coefficients_at,
    forward,
    gradient_coefficients_at,
)
from nbbn._kernels.loops import GROUP, sum_strip, write_rows, write_strips
from nbbn._kernels.memory import (
    ONE,
    ZERO,
    Rows,
    at,
    larger,
    load_upto,
    smaller,
    store_upto,
)
from nbbn._kernels.statistics import (
    Samples,
    deviations_of_row,
    moments_from_sums,
    products_of_row,
    worst_condition,
)
from nbbn._kernels.weights import sum_of_weights

TILE = 512  # columns: their float64 sums (8 KB) stay in L1
WIDE_TILE = 1024  # columns of the elementwise steps: three float32 coefficients each, 12 KB
SHALLOW = 2048  # values of rows side by side: past the cache, and in moments
DEEP = (
    1 << 15
)  # ... in the sums of a backward: 0.6 of the time for (1024, 1024), 2.5 for (65536, 256)
SMALL = 1 << 20  # bytes that a core's own cache holds
LONG_ROW = 512  # columns that short rows are joined to, where they are written past the cache
FULL_ROW = 128  # ... and where they are not whole vectors
PART = 1 << 16  # values of a part
PART_ROWS = 64  # at least: what is kept for a part then is little beside the part


class Matrix(NamedTuple):
    """How the columns of a stack are read."""

    fold: int  # rows that are read as one
    rows: int  # of each matrix, then
    width: int
    left: int  # columns of the last, partial row


@inlined
def has_gaps(array: Any, like: Any) -> bool:
    """Whether rows of a stack of the shape of ``like`` have gaps between them; None has none."""
    return has(array) and (like.shape[0] > 1 or row_stride(array) != like.shape[2])


@inlined
def folded(rows: int, row: int, fold: int) -> Matrix:
    """Return the matrix of ``rows`` rows, ``fold`` of them read as one."""
    return Matrix(fold, rows // fold, row * fold, rows % fold * row)


@helper
def fold_to_sum(x: Any, gaps: bool) -> int:
    """Return how many rows are summed as one: so many that they are whole vectors."""
    rows, row = x.shape[1], x.shape[2]
    fold = ONE
    if not gaps and row < FULL_ROW and row % LANES != 0:
        while row * fold % LANES != 0:
            fold *= 2
        fold *= (FULL_ROW + row * fold - 1) // (row * fold)
        if rows < fold * GROUP:
            fold = ONE
    return fold


@inlined
def rows_of_part(width: int) -> int:
    """Return how many rows make a part."""
    return larger(PART_ROWS, PART // width)


@inlined
def tiles_of(width: int, tile: int) -> int:
    """Return into how many tiles so many columns are cut."""
    return (width + tile - 1) // tile


@inlined
def parts_of(x: Any, matrix: Matrix) -> int:
    """Return into how many parts the rows are cut, but for what is left over."""
    depth = rows_of_part(matrix.width)
    return x.shape[0] * ((matrix.rows + depth - 1) // depth)


class Block(NamedTuple):
    """Some rows of one matrix, and some of its columns."""

    outer: int
    row: int
    rows: int
    first: int
    stop: int


@inlined
def block_of(part: int, tile: int, columns: int, depth: int, matrix: Matrix) -> Block:
    """Return the rows of a part, ``depth`` of them, and the columns of a tile."""
    parts = (matrix.rows + depth - 1) // depth
    row = part % parts * depth
    rows, first = smaller(depth, matrix.rows - row), tile * columns
    return Block(part // parts, row, rows, first, smaller(first + columns, matrix.width))


@inlined
def rows_in(array: Any, block: Block, fold: int) -> Rows:
    """Return the rows of a block, from its first column on."""
    stride = row_stride(array) * fold
    return Rows(array, block.outer * outer_stride(array) + block.row * stride + block.first, stride)


@inlined
def weights_in(weights: Any, block: Block, rows: int) -> Rows:
    """Return the weights of the rows of a block."""
    return Rows(weights, block.outer * rows + block.row, ONE)


@helper
def numbers_of_parts(weights: Any, x: Any, matrix: Matrix) -> Any:
    """Return the number of values of the columns of each part, or their weight, and how many columns there are."""
    parts = parts_of(x, matrix)
    found = np.empty((parts + (1 if matrix.left else 0), 2))
    for part in range(parts):
        block = block_of(part, ZERO, matrix.width, rows_of_part(matrix.width), matrix)
        start = block.outer * matrix.rows + block.row
        found[part, 0] = sum_of_weights(weights, start, block.rows)
        found[part, 1] = matrix.width
    if matrix.left:
        found[parts, 0], found[parts, 1] = 1.0, matrix.left
    return found


@helper
def widths_of_parts(x: Any, matrix: Matrix) -> Any:
    """Return how many columns there are in each part."""
    parts = parts_of(x, matrix)
    found = np.empty(parts + (1 if matrix.left else 0), np.intp)
    for part in range(parts):
        found[part] = matrix.width
    if matrix.left:
        found[parts] = matrix.left
    return found


class Learned(NamedTuple):
    """What is found out about the data."""

    weights: Any
    numbers: Any
    parts: Any
    fold: int
    ahead: int  # whether rows are asked for ahead of time


class Sums(NamedTuple):
    """What the sums of a backward are made with."""

    mask: Any
    means: Any  # one a column
    parts: Any
    fold: int
    ahead: int


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
def sum_tile(read: Samples, block: Block, n: float, parts: Any, part: int, ahead: int) -> None:
    """Write reference, sum of deviations and m2 of the columns of a block."""
    if n == 0.0:
        return
    number, width = parts.shape[1], parts.shape[2]
    reference, sum_ = part * width + block.first, (number + part) * width + block.first
    square = (2 * number + part) * width + block.first
    zero, rows, columns = splat(0.0), block.rows, block.stop - block.first
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
            s, q = sum_strip(deviations_of_row, read, (row, stop), k, count, about, sums)
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
            again, q = sum_strip(deviations_of_row, read, (0, rows), k, count, nearer, (zero, zero))
            _, squares = moments_from_sums(values, again, q)
            # Of each channel by itself: its neighbours must not change its bits.
            about = where_below(bound, loss, nearer, about)
            s = where_below(bound, loss, again, s)
            m2 = where_below(bound, loss, squares, m2)
            store_upto(parts, reference + k, count, about)
            store_upto(parts, sum_ + k, count, s)
        store_upto(parts, square + k, count, m2)


@helper
def look_at_tile(x: Any, learned: Learned, task: int) -> None:
    """Take the moments of one tile of one part."""
    matrix = folded(x.shape[1], x.shape[2], learned.fold)
    tiles = tiles_of(matrix.width, TILE)
    depth = rows_of_part(matrix.width)
    block = block_of(task // tiles, task % tiles, TILE, depth, matrix)
    read = Samples(rows_in(x, block, matrix.fold), weights_in(learned.weights, block, matrix.rows))
    part = task // tiles
    sum_tile(read, block, learned.numbers[part, 0], learned.parts, part, learned.ahead)


@helper
def look_at_rest(x: Any, learned: Learned) -> None:
    """Take the moments of what folding left over: one row."""
    matrix = folded(x.shape[1], x.shape[2], learned.fold)
    if matrix.left:
        part = learned.numbers.shape[0] - 1
        block = Block(ZERO, matrix.rows, ONE, ZERO, matrix.left)
        read = Samples(rows_in(x, block, matrix.fold), Rows(learned.weights, ZERO, ZERO))
        sum_tile(read, block, 1.0, learned.parts, part, ZERO)


@helper
def add_up_block(read: Backward, block: Block, to: Sums, part: int) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of the columns of a block."""
    parts, ahead, means = to.parts, to.ahead, to.means
    number, width = parts.shape[1], parts.shape[2]
    first, second = part * width + block.first, (number + part) * width + block.first
    zero, rows, columns = splat(0.0), block.rows, block.stop - block.first
    for k in range(0, columns, LANES):
        store_upto(parts, first + k, columns - k, zero)
        store_upto(parts, second + k, columns - k, zero)
    depth = larger(GROUP, (SHALLOW if ahead else DEEP) // columns)
    for row in range(0, rows, depth):
        stop = smaller(row + depth, rows)
        coming, column = row + depth, ZERO
        for k in range(0, columns, LANES):
            if ahead:
                ask_for(read.grad_y, coming, column)
                column = ask_for(read.x, coming, column)
                if column >= columns:
                    coming, column = coming + 1, ZERO
            count = columns - k
            sums = load_upto(parts, first + k, count), load_upto(parts, second + k, count)
            about = load_upto(means, block.first + k, count)
            s, h = sum_strip(products_of_row, read, (row, stop), k, count, about, sums)
            store_upto(parts, first + k, count, s)
            store_upto(parts, second + k, count, h)


class Target(NamedTuple):
    """What is written, and with what."""

    y: Any
    residual: Any
    grad: Any
    form: Any  # coefficients, one a column
    kind: Any
    slope: float
    streaming: int


class GradientTarget(NamedTuple):
    """What a backward writes, and with what."""

    grad_x: Any
    mask: Any
    form: Any
    streaming: int


@helper
def add_up_tile(grad_y: Any, x: Any, to: Sums, task: int) -> None:
    """Take the two sums of one tile of one part."""
    matrix = folded(x.shape[1], x.shape[2], to.fold)
    tiles = tiles_of(matrix.width, TILE)
    depth = rows_of_part(matrix.width)
    block = block_of(task // tiles, task % tiles, TILE, depth, matrix)
    of_mask = weights_in(to.mask, block, matrix.rows)
    read = Backward(rows_in(grad_y, block, to.fold), rows_in(x, block, to.fold), of_mask)
    add_up_block(read, block, to, task // tiles)


@helper
def add_up_rest(grad_y: Any, x: Any, to: Sums) -> None:
    """Take the two sums of what folding left over: one row."""
    matrix = folded(x.shape[1], x.shape[2], to.fold)
    if matrix.left:
        block = Block(ZERO, matrix.rows, ONE, ZERO, matrix.left)
        of_mask = Rows(to.mask, ZERO, ZERO)
        read = Backward(rows_in(grad_y, block, to.fold), rows_in(x, block, to.fold), of_mask)
        add_up_block(read, block, to, to.parts.shape[1] - 1)


@inlined
def matrix_to_write(x: Any, gaps: bool, streaming: int) -> Matrix:
    """Return how rows are written: short ones joined where that saves partial vectors and lines."""
    rows, row = x.shape[1], x.shape[2]
    fold = ONE
    if not gaps and row < LONG_ROW and (streaming or row % LANES != 0):
        fold = smaller(LONG_ROW // row, rows)
    return folded(rows, row, fold)


@inlined
def is_in_cache(x: Any) -> bool:
    """Whether rows are best written in strips, which share their coefficients.

    0.7 of the time for 512 rows of 256; but the processor reads less far ahead: 1.7 for 65,536 rows.
    """
    return x.size * x.itemsize <= SMALL


class Tile(NamedTuple):
    """The coefficients of some columns."""

    form: Any
    first: int


@inlined
def coefficients_in(tile: Tile, k: int, count: int) -> Any:
    """Return the coefficients of columns ``k`` to ``k + count`` of a tile."""
    return coefficients_at(tile.form, tile.first + k, count)


@inlined
def gradient_coefficients_in(tile: Tile, k: int, count: int) -> Any:
    """Return the coefficients of columns ``k`` to ``k + count`` of a tile."""
    return gradient_coefficients_at(tile.form, tile.first + k, count)


@helper
def normalize_block(x: Any, to: Target, block: Block, fold: int) -> None:
    """Write y in a block."""
    read = Forward(
        rows_in(x, block, fold),
        rows_in(to.residual, block, fold),
        rows_in(to.grad, block, fold),
        Activation(to.kind, to.slope),
    )
    y, columns, tile = (
        rows_in(to.y, block, fold),
        block.stop - block.first,
        Tile(to.form, block.first),
    )
    if is_in_cache(x) and not to.streaming:
        write_strips(forward, coefficients_in, y, read, block.rows, columns, tile)
    else:
        write_rows(forward, coefficients_in, y, read, block.rows, columns, tile, to.streaming)
    if to.streaming:
        fence()


@helper
def normalize_tile(x: Any, to: Target, fold: int, task: int) -> None:
    """Write y in a task: a tile of columns of some rows, or the last row, of what folding left over."""
    matrix = folded(x.shape[1], x.shape[2], fold)
    block = written_block(matrix, task, x.shape[0])
    normalize_block(x, to, block, fold)


@inlined
def written_tasks(matrix: Matrix, outer: int) -> int:
    """Return how many tasks there are in writing."""
    depth = rows_of_part(smaller(matrix.width, WIDE_TILE))
    tasks = outer * ((matrix.rows + depth - 1) // depth) * tiles_of(matrix.width, WIDE_TILE)
    return tasks + (1 if matrix.left else 0)


@inlined
def written_block(matrix: Matrix, task: int, outer: int) -> Block:
    """Return what a task writes."""
    if matrix.left and task + 1 == written_tasks(matrix, outer):
        return Block(ZERO, matrix.rows, ONE, ZERO, matrix.left)
    tiles = tiles_of(matrix.width, WIDE_TILE)
    depth = rows_of_part(smaller(matrix.width, WIDE_TILE))
    return block_of(task // tiles, task % tiles, WIDE_TILE, depth, matrix)


@helper
def differentiate_tile(grad_y: Any, x: Any, to: GradientTarget, fold: int, task: int) -> None:
    """Write grad_x in a task, as `normalize_tile`."""
    matrix = folded(x.shape[1], x.shape[2], fold)
    block = written_block(matrix, task, x.shape[0])
    of_mask = weights_in(to.mask, block, matrix.rows)
    read = Backward(rows_in(grad_y, block, fold), rows_in(x, block, fold), of_mask)
    y, columns = rows_in(to.grad_x, block, fold), block.stop - block.first
    tile = Tile(to.form, block.first)
    if is_in_cache(x) and not to.streaming:
        write_strips(backward_of_row, gradient_coefficients_in, y, read, block.rows, columns, tile)
    else:
        write_rows(
            backward_of_row,
            gradient_coefficients_in,
            y,
            read,
            block.rows,
            columns,
            tile,
            to.streaming,
        )
    if to.streaming:
        fence()
