"""Gradients for (outer, C, inner); see `nbbn.kernels.channels_first` for how the arrays are read."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbbn._jit import Float, IfWeights, In, Int, Out, OutTable64, Table64, helper, kernel
from nbbn._simd import (
    LANES,
    fence,
    first_of,
    fma,
    keep_first,
    load,
    load_first,
    prefetch,
    splat,
    store_first,
    to_line,
    total,
    widen,
    working_dtype,
)
from nbbn.kernels.channels_first import (
    channels_of_group,
    piece_of_channel,
    pieces_of_channel,
    segments_and_rows,
)
from nbbn.kernels.epilogue import harmless, input_gradient, input_gradient_form, of_counted
from nbbn.kernels.table import GRAD_MEAN, SUM_GRAD, SUM_GRAD_DEVIATION
from nbbn.kernels.vectors import put
from nbbn.kernels.welford import PIECE, weight_of


@helper
def gradient_sums(
    grad_y: Any,
    g_start: int,
    g_stride: int,
    x: Any,
    x_start: int,
    x_stride: int,
    rows: int,
    length: int,
    g_ahead: int,
    ahead: int,
    mean: float,
    mask: Any,
    at: int,
) -> tuple[float, float]:
    """Return ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` over some rows, in float64.

    The mask stands without gaps from ``at`` on. What stands ``g_ahead`` and ``ahead`` of each value, the
    next channel, is asked for.
    """
    shift = splat(mean)
    s = h = splat(0.0)
    for row in range(rows):
        i = x_start + row * x_stride
        j = g_start + row * g_stride
        m = at + row * length
        stop = i + length
        while i + LANES <= stop:
            prefetch(grad_y, j + g_ahead)
            prefetch(x, i + ahead)
            d = widen(load(x, i)) - shift
            g, d = harmless(widen(load(grad_y, j)), d, weight_of(mask, m, LANES))
            s = s + g
            h = fma(g, d, h)
            i += LANES
            j += LANES
            m += LANES
        if i < stop:
            n = stop - i
            prefetch(grad_y, j + g_ahead)
            prefetch(x, i + ahead)
            d = keep_first(widen(load_first(x, i, n)) - shift, n)
            g, d = harmless(widen(load_first(grad_y, j, n)), d, weight_of(mask, m, n))
            s = s + g
            h = fma(g, d, h)
    return total(s), total(h)


@kernel
def backward_reduce_channels_first(
    grad_y: In,
    g_outer_stride: Int,
    g_channel_stride: Int,
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    table: OutTable64,
    mask: IfWeights,
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``table``.

    Where ``mask`` is 0, (outer, inner) without gaps, x may be NaN. Reads both arrays once. Parallel over
    the pieces of all channels, added in order.
    """
    pieces = pieces_of_channel(outer, inner)
    partial = np.empty((channels * pieces, 2))
    for task in prange(channels * pieces):
        channel = task // pieces
        row, rows, first, length = piece_of_channel(task % pieces, outer, inner)
        partial[task, 0], partial[task, 1] = gradient_sums(
            grad_y,
            row * g_outer_stride + channel * g_channel_stride + first,
            g_outer_stride,
            x,
            row * outer_stride + channel * channel_stride + first,
            outer_stride,
            rows,
            length,
            g_channel_stride,
            channel_stride,
            table[GRAD_MEAN, channel],
            mask,
            row * inner + first,
        )
    for channel in range(channels):
        s = h = 0.0
        for task in range(channel * pieces, (channel + 1) * pieces):
            s += partial[task, 0]
            h += partial[task, 1]
        table[SUM_GRAD, channel], table[SUM_GRAD_DEVIATION, channel] = s, h


@helper
def input_gradient_rows(
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
    length: int,
    form: Any,
    column: int,
    streaming: int,
    mask: Any,
    at: int,
) -> None:
    """Write ``grad_x`` for some rows of one channel; their mask stands without gaps from ``at`` on."""
    a, b, c = splat(form[0, column]), splat(form[1, column]), splat(form[2, column])
    d, e, f = splat(form[3, column]), splat(form[4, column]), splat(form[5, column])
    for row in range(rows):
        i = x_start + row * x_stride
        j = g_start + row * g_stride
        k = out_start + row * out_stride
        m = at + row * length
        stop = i + length
        n = min(to_line(grad_x, k), length) if streaming else 0
        if n > 0:
            g = load_first(grad_y, j, n)
            value = input_gradient(g, load_first(x, i, n), a, b, c, d, e, f)
            store_first(grad_x, k, n, of_counted(weight_of(mask, m, n), value, g, b))
            i += n
            j += n
            k += n
            m += n
        while i + LANES <= stop:
            g = load(grad_y, j)
            value = input_gradient(g, load(x, i), a, b, c, d, e, f)
            value = of_counted(weight_of(mask, m, LANES), value, g, b)
            put(grad_x, k, value, streaming)
            i += LANES
            j += LANES
            k += LANES
            m += LANES
        if i < stop:
            n = stop - i
            g = load_first(grad_y, j, n)
            value = input_gradient(g, load_first(x, i, n), a, b, c, d, e, f)
            store_first(grad_x, k, n, of_counted(weight_of(mask, m, n), value, g, b))


@kernel
def backward_input_channels_first(
    grad_y: In,
    g_outer_stride: Int,
    g_channel_stride: Int,
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    count: Float,
    freedom: Float,
    table: Table64,
    grad_x: Out,
    out_outer_stride: Int,
    out_channel_stride: Int,
    streaming: Int,
    mask: IfWeights,
) -> None:
    """Write ``grad_x`` from the sums in ``table``; where ``mask`` is 0, ``grad_y * gamma * inv_std``.

    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over rows.
    """
    form = np.empty((6, channels), working_dtype(x))
    input_gradient_form(table, 0, channels, count, freedom, form)
    segments, depth = segments_and_rows(inner)
    tasks = (outer * channels + depth - 1) // depth * segments
    for task in prange(tasks):
        row, first = task // segments * depth, task % segments * PIECE
        o, c = row // channels, row % channels
        for _ in range(min(depth, outer * channels - row)):
            input_gradient_rows(
                grad_y,
                o * g_outer_stride + c * g_channel_stride + first,
                0,
                x,
                o * outer_stride + c * channel_stride + first,
                0,
                grad_x,
                o * out_outer_stride + c * out_channel_stride + first,
                0,
                1,
                min(PIECE, inner - first),
                form,
                c,
                streaming,
                mask,
                o * inner + first,
            )
            c += 1
            if c == channels:
                o, c = o + 1, 0
        if streaming:
            fence()  # once a task: it waits for all that was streamed, some 80 ns


@helper
def input_gradient_joined_rows(
    grad_y: Any,
    j: int,
    x: Any,
    i: int,
    grad_x: Any,
    k: int,
    rows: int,
    channel: int,
    length: int,
    form: Any,
    streaming: int,
) -> None:
    """Write ``grad_x`` for rows without gaps between them, one a channel, from ``channel`` on.

    A vector that spans two rows is computed with the coefficients of both.
    """
    a, b, c = splat(form[0, channel]), splat(form[1, channel]), splat(form[2, channel])
    d, e, f = splat(form[3, channel]), splat(form[4, channel]), splat(form[5, channel])
    left = length  # values left of the current row
    stop = i + rows * length
    n = min(to_line(grad_x, k), length) if streaming else 0
    if n > 0:
        g, value = load_first(grad_y, j, n), load_first(x, i, n)
        store_first(grad_x, k, n, input_gradient(g, value, a, b, c, d, e, f))
        i += n
        j += n
        k += n
        left -= n
    while i + LANES <= stop:
        while left >= LANES and i + LANES <= stop:
            g, value = load(grad_y, j), load(x, i)
            put(grad_x, k, input_gradient(g, value, a, b, c, d, e, f), streaming)
            i += LANES
            j += LANES
            k += LANES
            left -= LANES
        if i + LANES <= stop:
            g, value = load(grad_y, j), load(x, i)
            before = input_gradient(g, value, a, b, c, d, e, f)
            channel += 1
            a, b, c = splat(form[0, channel]), splat(form[1, channel]), splat(form[2, channel])
            d, e, f = splat(form[3, channel]), splat(form[4, channel]), splat(form[5, channel])
            after = input_gradient(g, value, a, b, c, d, e, f)
            put(grad_x, k, first_of(left, before, after), streaming)
            i += LANES
            j += LANES
            k += LANES
            left += length - LANES
    if i < stop:
        n = stop - i
        g, value = load_first(grad_y, j, n), load_first(x, i, n)
        store_first(grad_x, k, n, input_gradient(g, value, a, b, c, d, e, f))


@helper
def sums_of_channel(
    grad_y: Any,
    g_outer_stride: int,
    g_channel_stride: int,
    x: Any,
    outer: int,
    inner: int,
    outer_stride: int,
    channel_stride: int,
    channel: int,
    table: Any,
    mask: Any,
) -> None:
    """Write the two sums of a channel to ``table``."""
    s = h = 0.0
    for piece in range(pieces_of_channel(outer, inner)):
        row, rows, first, length = piece_of_channel(piece, outer, inner)
        piece_s, piece_h = gradient_sums(
            grad_y,
            channel * g_channel_stride + row * g_outer_stride + first,
            g_outer_stride,
            x,
            channel * channel_stride + row * outer_stride + first,
            outer_stride,
            rows,
            length,
            g_channel_stride,
            channel_stride,
            table[GRAD_MEAN, channel],
            mask,
            row * inner + first,
        )
        s += piece_s
        h += piece_h
    table[SUM_GRAD, channel], table[SUM_GRAD_DEVIATION, channel] = s, h


@kernel
def backward_channels_first(
    grad_y: In,
    g_outer_stride: Int,
    g_channel_stride: Int,
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    count: Float,
    freedom: Float,
    table: OutTable64,
    grad_x: Out,
    out_outer_stride: Int,
    out_channel_stride: Int,
    streaming: Int,
    mask: IfWeights,
) -> None:
    """Write the sums and ``grad_x``, one channel (of small images, one group) after the other.

    Where the two arrays' values of a channel fit the cache, each is read from memory once.
    grad_x may be either of them. Parallel over the groups.
    """
    form = np.empty((6, channels), working_dtype(x))
    group = channels_of_group(outer, channels, inner)
    joined = group > 1 and inner >= LANES and channel_stride == inner
    joined = joined and g_channel_stride == inner and out_channel_stride == inner
    if mask is not None:
        joined = False
    for task in prange((channels + group - 1) // group):
        first, stop = task * group, min(task * group + group, channels)
        for channel in range(first, stop):
            sums_of_channel(
                grad_y,
                g_outer_stride,
                g_channel_stride,
                x,
                outer,
                inner,
                outer_stride,
                channel_stride,
                channel,
                table,
                mask,
            )
        input_gradient_form(table, first, stop, count, freedom, form)
        if joined:
            for o in range(outer):
                input_gradient_joined_rows(
                    grad_y,
                    o * g_outer_stride + first * inner,
                    x,
                    o * outer_stride + first * inner,
                    grad_x,
                    o * out_outer_stride + first * inner,
                    stop - first,
                    first,
                    inner,
                    form,
                    streaming,
                )
        else:
            for channel in range(first, stop):
                input_gradient_rows(
                    grad_y,
                    channel * g_channel_stride,
                    g_outer_stride,
                    x,
                    channel * channel_stride,
                    outer_stride,
                    grad_x,
                    channel * out_channel_stride,
                    out_outer_stride,
                    outer,
                    inner,
                    form,
                    channel,
                    streaming,
                    mask,
                    0,
                )
        if streaming:
            fence()
