"""Gradients for the columns of a matrix; see `nbbn.kernels.channels_last` for how the arrays are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbbn._jit import Float, In, Int, Out, OutTable64, Table64, helper, inlined, kernel
from nbbn._simd import (
    LANES,
    fence,
    fma,
    load,
    load_first,
    store,
    store_first,
    stream,
    to_line,
    widen,
)
from nbbn.kernels.channels_last import GROUP, TILE, rows_of_piece, spread
from nbbn.kernels.epilogue import input_gradient, input_gradient_form
from nbbn.kernels.table import GRAD_MEAN, SUM_GRAD, SUM_GRAD_DEVIATION
from nbbn.kernels.vectors import load_upto, store_upto

_GRADIENT_GROUP = 4  # three arrays: more rows than this have more addresses than registers


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
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of the columns, in float64."""
    for j in range(first, stop):
        sums[at + j] = products[at + j] = 0.0
    for group in range(0, rows, GROUP):
        depth = min(GROUP, rows - group)
        for j in range(first, stop, LANES):
            n = stop - j
            k = load_upto(mean, j, n)
            s, h = load_upto(sums, at + j, n), load_upto(products, at + j, n)
            for row in range(group, group + depth):
                g = widen(load_upto(grad_y, g_start + row * g_stride + j, n))
                s = s + g
                h = fma(g, widen(load_upto(x, x_start + row * x_stride + j, n)) - k, h)
            store_upto(sums, at + j, n, s)
            store_upto(products, at + j, n, h)


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
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``table``.

    Reads both arrays once. Parallel over pieces of rows and tiles of columns, added in order.
    """
    means = np.empty((1, channels * inner * repeats))
    for channel in range(channels):
        means[0, channel * inner] = table[GRAD_MEAN, channel]
    spread(means, repeats, channels, inner)
    mean = means[0]
    width = channels * inner * repeats
    depth = rows_of_piece(width)
    pieces = (rows + depth - 1) // depth
    tiles = (width + TILE - 1) // TILE
    sums = np.zeros((pieces + 1) * width)
    products = np.zeros((pieces + 1) * width)
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
            piece * width,
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
            pieces * width,
        )
    for channel in range(channels):
        table[SUM_GRAD, channel] = table[SUM_GRAD_DEVIATION, channel] = 0.0
    for at in range(0, (pieces + 1) * width, channels * inner):
        for channel in range(channels):
            for j in range(at + channel * inner, at + (channel + 1) * inner):
                table[SUM_GRAD, channel] += sums[j]
                table[SUM_GRAD_DEVIATION, channel] += products[j]


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
) -> None:
    """Write ``grad_x`` for some rows and the columns ``first`` to ``stop``."""
    grad_center, scale, center = form[0], form[1], form[2]
    inv_std, slope, rest = form[3], form[4], form[5]
    step = 1 if streaming else _GRADIENT_GROUP
    for group in range(0, rows, step):
        depth = min(step, rows - group)
        g_row, x_row = g_start + group * g_stride, x_start + group * x_stride
        out_row = out_start + group * out_stride
        j = first
        n = min(to_line(grad_x, out_row + j), stop - j) if streaming else 0
        if n > 0:
            value = input_gradient_at(form, j, n, grad_y, g_row, x, x_row)
            store_first(grad_x, out_row + j, n, value)
            j += n
        while j + LANES <= stop:
            a, b, c = load(grad_center, j), load(scale, j), load(center, j)
            d, e, f = load(inv_std, j), load(slope, j), load(rest, j)
            g_at, x_at, out_at = g_row + j, x_row + j, out_row + j
            if streaming:
                result = input_gradient(load(grad_y, g_at), load(x, x_at), a, b, c, d, e, f)
                stream(grad_x, out_at, result)
                j += LANES
                continue
            for _ in range(depth):
                result = input_gradient(load(grad_y, g_at), load(x, x_at), a, b, c, d, e, f)
                store(grad_x, out_at, result)
                g_at += g_stride
                x_at += x_stride
                out_at += out_stride
            j += LANES
        if j < stop:
            n = stop - j
            for row in range(depth):
                g_at, x_at = g_row + row * g_stride, x_row + row * x_stride
                value = input_gradient_at(form, j, n, grad_y, g_at, x, x_at)
                store_first(grad_x, out_row + row * out_stride + j, n, value)
    if streaming:
        fence()


@inlined
def input_gradient_at(
    form: Any, j: int, n: int, grad_y: Any, g_row: int, x: Any, x_row: int
) -> Any:
    """Return ``grad_x`` at ``n`` columns of one row, from ``j`` on."""
    a, b = load_first(form[0], j, n), load_first(form[1], j, n)
    c, d = load_first(form[2], j, n), load_first(form[3], j, n)
    e, f = load_first(form[4], j, n), load_first(form[5], j, n)
    g, value = load_first(grad_y, g_row + j, n), load_first(x, x_row + j, n)
    return input_gradient(g, value, a, b, c, d, e, f)


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
) -> None:
    """Write ``grad_x`` from the sums in ``table``.

    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over pieces
    of rows and tiles of columns.
    """
    width = channels * inner * repeats
    form = np.empty((6, width), x.dtype)
    for channel in range(channels):
        input_gradient_form(table, channel, count, freedom, form, channel * inner)
    spread(form, repeats, channels, inner)
    depth = rows_of_piece(min(width, TILE))
    pieces = (rows + depth - 1) // depth
    tiles = (width + TILE - 1) // TILE
    for task in prange(pieces * tiles):
        row, first = task // tiles * depth, task % tiles * TILE
        input_gradient_block(
            grad_y,
            row * g_row_stride,
            g_row_stride,
            x,
            row * row_stride,
            row_stride,
            grad_x,
            row * out_row_stride,
            out_row_stride,
            min(depth, rows - row),
            first,
            min(first + TILE, width),
            form,
            streaming,
        )
    if tail > 0:
        input_gradient_block(
            grad_y,
            rows * g_row_stride,
            0,
            x,
            rows * row_stride,
            0,
            grad_x,
            rows * out_row_stride,
            0,
            1,
            0,
            tail,
            form,
            0,
        )
