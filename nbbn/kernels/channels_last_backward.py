"""Gradients for the columns of a matrix; see `nbbn.kernels.channels_last` for how the arrays are read."""

from __future__ import annotations

from typing import Any

from numba import prange

from nbbn._jit import Float, IfWeights, In, Int, Out, OutTable64, Table64, helper, inlined, kernel
from nbbn._simd import (
    LANES,
    fence,
    fma,
    load,
    load_first,
    store,
    store_first,
    to_line,
    value_at,
    widen,
)
from nbbn.kernels.channels_last import (
    GROUP,
    LONG_ROW,
    SMALL,
    TILE,
    WIDE_TILE,
    prefetch_row,
    rows_of_piece,
    spread,
    spread_row,
)
from nbbn.kernels.epilogue import harmless, input_gradient, input_gradient_form
from nbbn.kernels.table import GRAD_MEAN, SUM_GRAD, SUM_GRAD_DEVIATION
from nbbn.kernels.vectors import (
    aligned,
    aligned_rows,
    load_upto,
    put,
    store_upto,
    whole_vectors,
)
from nbbn.kernels.welford import weight_of_row


@inlined
def strip_gradient_sums(
    grad_y: Any,
    j: int,
    g_stride: int,
    x: Any,
    i: int,
    x_stride: int,
    rows: int,
    lanes: int,
    k: Any,
    s: Any,
    h: Any,
    mask: Any,
    at: int,
) -> Any:
    """Return ``s + sum(grad_y)`` and ``h + sum(grad_y * (x - k))`` of up to sixteen columns.

    The mask of the rows stands from ``at`` on.
    """
    if lanes >= LANES:
        for row in range(rows):
            w = weight_of_row(mask, at + row)
            g, d = harmless(widen(load(grad_y, j)), widen(load(x, i)) - k, w)
            s = s + g
            h = fma(g, d, h)
            i += x_stride
            j += g_stride
    else:
        for row in range(rows):
            w = weight_of_row(mask, at + row)
            d = widen(load_first(x, i, lanes)) - k
            g, d = harmless(widen(load_first(grad_y, j, lanes)), d, w)
            s = s + g
            h = fma(g, d, h)
            i += x_stride
            j += g_stride
    return s, h


@helper
def all_rows_count(mask: Any, row: int, rows: int) -> bool:
    """Whether the mask lets all of these rows in."""
    if mask is not None:
        for k in range(row, row + rows):
            if value_at(mask, k) == 0.0:
                return False
    return True


@helper
def gradient_sums_of_columns(
    grad_y: Any,
    g_start: int,
    g_stride: int,
    x: Any,
    x_start: int,
    x_stride: int,
    rows: int,
    first: int,
    stop: int,
    mean: Any,
    sums: Any,
    products: Any,
    at: int,
    mask: Any,
    row: int,
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of the columns, in float64.

    The mask of the rows stands from ``row`` on.
    """
    for j in range(first, stop):
        sums[at + j] = products[at + j] = 0.0
    for group in range(0, rows, GROUP):
        depth = min(GROUP, rows - group)
        g_row, x_row = g_start + group * g_stride, x_start + group * x_stride
        g_coming, x_coming = g_row + GROUP * g_stride, x_row + GROUP * x_stride
        column = first
        whole = all_rows_count(mask, row + group, depth)
        for j in range(first, stop, LANES):
            prefetch_row(grad_y, g_coming + column, column)
            column = prefetch_row(x, x_coming + column, column)
            if column >= stop:
                g_coming, x_coming, column = g_coming + g_stride, x_coming + x_stride, first
            n = stop - j
            k = load_upto(mean, j, n)
            s, h = load_upto(sums, at + j, n), load_upto(products, at + j, n)
            j_row, i_row = g_row + j, x_row + j
            if whole:  # with `scaled_row`: 0.75 of the time for padded (64, 512, 512)
                s, h = strip_gradient_sums(
                    grad_y, j_row, g_stride, x, i_row, x_stride, depth, n, k, s, h, None, 0
                )
            else:
                m = row + group
                s, h = strip_gradient_sums(
                    grad_y, j_row, g_stride, x, i_row, x_stride, depth, n, k, s, h, mask, m
                )
            store_upto(sums, at + j, n, s)
            store_upto(products, at + j, n, h)


@helper
def add_columns(total: Any, values: Any, at: int, columns: int, channels: int, inner: int) -> None:
    """Add the values of so many columns, from ``at`` on, to the totals of their channels."""
    for first in range(at, at + columns, channels * inner):
        if inner == 1:
            for c in range(0, channels, LANES):
                n = channels - c
                both = load_upto(total, c, n) + load_upto(values, first + c, n)
                store_upto(total, c, n, both)
        else:
            for channel in range(channels):
                for j in range(first + channel * inner, first + (channel + 1) * inner):
                    total[channel] += values[j]


@kernel
def backward_reduce_channels_last(
    grad_y: In,
    g_row_stride: Int,
    x: In,
    rows: Int,
    channels: Int,
    inner: Int,
    repeats: Int,
    tail: Int,
    row_stride: Int,
    table: OutTable64,
    mask: IfWeights,
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``table``.

    Where ``mask`` is 0, one number a row (then no row holds several), x may be NaN. Reads both arrays
    once. Parallel over pieces of rows and tiles of columns, added in order.
    """
    width = channels * inner * repeats
    mean = aligned(width, table)
    for channel in range(channels):
        mean[channel] = table[GRAD_MEAN, channel]
    spread_row(mean, repeats, channels, inner)
    depth = rows_of_piece(width)
    pieces = (rows + depth - 1) // depth
    tiles = (width + TILE - 1) // TILE
    stride = whole_vectors(width)
    sums = aligned((pieces + 1) * stride, table)
    products = aligned((pieces + 1) * stride, table)
    for task in prange(pieces * tiles):
        piece, first = task // tiles, task % tiles * TILE
        row = piece * depth
        gradient_sums_of_columns(
            grad_y,
            row * g_row_stride,
            g_row_stride,
            x,
            row * row_stride,
            row_stride,
            min(depth, rows - row),
            first,
            min(first + TILE, width),
            mean,
            sums,
            products,
            piece * stride,
            mask,
            row,
        )
    if tail > 0:
        gradient_sums_of_columns(
            grad_y,
            rows * g_row_stride,
            0,
            x,
            rows * row_stride,
            0,
            1,
            0,
            tail,
            mean,
            sums,
            products,
            pieces * stride,
            None,
            0,
        )
    all_sums, all_products = table[SUM_GRAD], table[SUM_GRAD_DEVIATION]
    for channel in range(channels):
        all_sums[channel] = all_products[channel] = 0.0
    for piece in range(pieces + 1):
        columns = width if piece < pieces else tail
        add_columns(all_sums, sums, piece * stride, columns, channels, inner)
        add_columns(all_products, products, piece * stride, columns, channels, inner)


@helper
def scaled_row(
    grad_y: Any,
    j: int,
    grad_x: Any,
    k: int,
    columns: int,
    scale: Any,
    column: int,
    streaming: int,
) -> None:
    """Write ``grad_x = grad_y * scale`` for a row that a mask keeps out: x is not read."""
    stop = column + columns
    n = min(to_line(grad_x, k), columns) if streaming else 0
    if n > 0:
        store_first(grad_x, k, n, load_first(grad_y, j, n) * load_first(scale, column, n))
        j += n
        k += n
        column += n
    while column + LANES <= stop:
        put(grad_x, k, load(grad_y, j) * load(scale, column), streaming)
        j += LANES
        k += LANES
        column += LANES
    if column < stop:
        n = stop - column
        store_first(grad_x, k, n, load_first(grad_y, j, n) * load_first(scale, column, n))


@inlined
def input_gradient_row(
    grad_y: Any,
    j: int,
    x: Any,
    i: int,
    grad_x: Any,
    k: int,
    columns: int,
    form: Any,
    column: int,
    streaming: int,
) -> None:
    """Write ``grad_x`` for so many columns from j, i, k and (of the coefficients) ``column`` on."""
    grad_center, scale, center = form[0], form[1], form[2]
    inv_std, slope, rest = form[3], form[4], form[5]
    stop = column + columns
    n = min(to_line(grad_x, k), columns) if streaming else 0
    if n > 0:
        store_first(grad_x, k, n, input_gradient_at(form, column, n, grad_y, j, x, i))
        i += n
        j += n
        k += n
        column += n
    while column + LANES <= stop:
        a, b, c = load(grad_center, column), load(scale, column), load(center, column)
        d, e, f = load(inv_std, column), load(slope, column), load(rest, column)
        put(grad_x, k, input_gradient(load(grad_y, j), load(x, i), a, b, c, d, e, f), streaming)
        i += LANES
        j += LANES
        k += LANES
        column += LANES
    if column < stop:
        n = stop - column
        store_first(grad_x, k, n, input_gradient_at(form, column, n, grad_y, j, x, i))


@inlined
def input_gradient_at(form: Any, column: int, n: int, grad_y: Any, j: int, x: Any, i: int) -> Any:
    """Return ``grad_x`` at ``n`` columns of one row, from j, i and ``column`` on."""
    a, b = load_first(form[0], column, n), load_first(form[1], column, n)
    c, d = load_first(form[2], column, n), load_first(form[3], column, n)
    e, f = load_first(form[4], column, n), load_first(form[5], column, n)
    return input_gradient(load_first(grad_y, j, n), load_first(x, i, n), a, b, c, d, e, f)


@inlined
def input_gradient_two_rows(
    grad_y: Any,
    j: int,
    g_stride: int,
    x: Any,
    i: int,
    x_stride: int,
    grad_x: Any,
    k: int,
    out_stride: int,
    columns: int,
    form: Any,
    column: int,
) -> None:
    """`input_gradient_row` of two rows, which share the loads of their coefficients."""
    grad_center, scale, center = form[0], form[1], form[2]
    inv_std, slope, rest = form[3], form[4], form[5]
    stop = column + columns
    while column + LANES <= stop:
        a, b, c = load(grad_center, column), load(scale, column), load(center, column)
        d, e, f = load(inv_std, column), load(slope, column), load(rest, column)
        g, value = load(grad_y, j), load(x, i)
        store(grad_x, k, input_gradient(g, value, a, b, c, d, e, f))
        g, value = load(grad_y, j + g_stride), load(x, i + x_stride)
        store(grad_x, k + out_stride, input_gradient(g, value, a, b, c, d, e, f))
        i += LANES
        j += LANES
        k += LANES
        column += LANES
    if column < stop:
        n = stop - column
        upper = input_gradient_at(form, column, n, grad_y, j, x, i)
        lower = input_gradient_at(form, column, n, grad_y, j + g_stride, x, i + x_stride)
        store_first(grad_x, k, n, upper)
        store_first(grad_x, k + out_stride, n, lower)


@helper
def input_gradient_block(
    grad_y: Any,
    g_start: int,
    g_stride: int,
    x: Any,
    x_start: int,
    x_stride: int,
    grad_x: Any,
    out_start: int,
    out_stride: int,
    rows: int,
    first: int,
    stop: int,
    form: Any,
    streaming: int,
    mask: Any,
    at: int,
) -> None:
    """Write ``grad_x`` for some rows, whose mask stands from ``at`` on, and the columns ``first`` to ``stop``.

    Rows side by side or one after the other: see `nbbn.kernels.channels_last.normalize_block`.
    """
    j, i, k = g_start + first, x_start + first, out_start + first
    width = stop - first
    row = 0
    if mask is None:
        in_cache = x.size * x.itemsize <= SMALL
        while in_cache and row + 2 <= rows:
            input_gradient_two_rows(
                grad_y, j, g_stride, x, i, x_stride, grad_x, k, out_stride, width, form, first
            )
            j += 2 * g_stride
            i += 2 * x_stride
            k += 2 * out_stride
            row += 2
    while row < rows:
        counts = True
        if mask is not None:
            counts = value_at(mask, at + row) != 0.0
        if counts:
            input_gradient_row(grad_y, j, x, i, grad_x, k, width, form, first, streaming)
        else:
            scaled_row(grad_y, j, grad_x, k, width, form[1], first, streaming)
        j += g_stride
        i += x_stride
        k += out_stride
        row += 1
    if streaming:
        fence()


@kernel
def backward_input_channels_last(
    grad_y: In,
    g_row_stride: Int,
    x: In,
    rows: Int,
    channels: Int,
    inner: Int,
    repeats: Int,
    tail: Int,
    row_stride: Int,
    count: Float,
    freedom: Float,
    table: Table64,
    grad_x: Out,
    out_row_stride: Int,
    streaming: Int,
    mask: IfWeights,
) -> None:
    """Write ``grad_x`` from the sums in ``table``; where ``mask`` is 0, ``grad_y * gamma * inv_std``.

    The mask has one number a row; then no row holds several.
    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over pieces
    of rows and tiles of columns.
    """
    width = channels * inner * repeats
    fold = 1
    joined = row_stride == width and g_row_stride == width and out_row_stride == width
    if mask is None and joined:
        fold = min(max(1, LONG_ROW // width), rows)
    repeats, columns = repeats * fold, width * fold
    depth, left = rows // fold, rows % fold * width + tail
    g_stride, stride, out_stride = g_row_stride * fold, row_stride * fold, out_row_stride * fold
    form = aligned_rows(6, columns, x)
    input_gradient_form(table, 0, channels, count, freedom, form)
    spread(form, repeats, channels, inner)
    share = rows_of_piece(min(columns, WIDE_TILE))
    pieces = (depth + share - 1) // share
    tiles = (columns + WIDE_TILE - 1) // WIDE_TILE
    for task in prange(pieces * tiles):
        row, first = task // tiles * share, task % tiles * WIDE_TILE
        input_gradient_block(
            grad_y,
            row * g_stride,
            g_stride,
            x,
            row * stride,
            stride,
            grad_x,
            row * out_stride,
            out_stride,
            min(share, depth - row),
            first,
            min(first + WIDE_TILE, columns),
            form,
            streaming,
            mask,
            row,
        )
    if left > 0:
        input_gradient_block(
            grad_y,
            depth * g_stride,
            0,
            x,
            depth * stride,
            0,
            grad_x,
            depth * out_stride,
            0,
            1,
            0,
            left,
            form,
            0,
            None,
            0,
        )
