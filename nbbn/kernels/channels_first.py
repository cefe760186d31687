"""Kernels for (outer, C, inner): each channel of each sample is a run of contiguous values.

Arrays are flat; value ``i`` of row ``o`` of channel ``c`` stands at
``o * outer_stride + c * channel_stride + i``, strides in values. A channel is cut into pieces of at
most `PIECE` values (`pieces_of_channel`), by its shape only; pieces are summed one by one and merged
in order, so no result depends on the number of threads.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import prange

from nbbn._jit import (
    Activation,
    Float,
    IfGradient,
    IfResidual,
    IfWeights,
    In,
    Int,
    Out,
    OutTable64,
    Table,
    helper,
    kernel,
)
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
    value_at,
    widen,
    working_dtype,
)
from nbbn.kernels.epilogue import affine, finish, finish_first, inference_form
from nbbn.kernels.table import M2, MEAN, MEAN_LOW
from nbbn.kernels.vectors import put
from nbbn.kernels.welford import (
    PIECE,
    finish_moments,
    finite_or,
    first_heavy,
    is_ill_conditioned,
    merge_weights,
    moments_from_sums,
    weigh,
    weighed,
    weight_of,
    worst_condition,
)

_RUN = 1 << 10  # values of neighbouring rows
_SLAB = 1 << 16  # values of a group: in float32, x and y fill half of a core's 1 MB
_GROUPS = 16  # at least


@helper
def pieces_of_channel(outer: int, inner: int) -> int:
    """Return the number of pieces of a channel."""
    if inner >= PIECE:
        return outer * ((inner + PIECE - 1) // PIECE)
    rows = PIECE // inner
    return (outer + rows - 1) // rows


@helper
def piece_of_channel(piece: int, outer: int, inner: int) -> tuple[int, int, int, int]:
    """Return first row, number of rows, first value in the row, number of values a row."""
    if inner >= PIECE:
        segments = (inner + PIECE - 1) // PIECE
        first = (piece % segments) * PIECE
        return piece // segments, 1, first, min(PIECE, inner - first)
    rows = PIECE // inner
    row = piece * rows
    return row, min(rows, outer - row), 0, inner


@helper
def sums_about(
    x: Any,
    start: int,
    rows: int,
    row_stride: int,
    length: int,
    ahead: int,
    k: float,
    weights: Any,
    at: int,
) -> tuple[float, float]:
    """Return ``sum(w * (x - k))`` and ``sum(w * (x - k)**2)`` over some rows, in float64.

    The weights stand without gaps from ``at`` on; without them w is 1. What stands ``ahead`` of each
    value, the next channel of the same sample, is asked for.
    """
    shift = splat(k)
    s0 = s1 = q0 = q1 = splat(0.0)
    for row in range(rows):
        i = start + row * row_stride
        j = at + row * length
        stop = i + length
        while i + 2 * LANES <= stop:
            prefetch(x, i + ahead)
            prefetch(x, i + ahead + LANES)
            d0, w0 = weighed(widen(load(x, i)) - shift, weight_of(weights, j, LANES))
            d1, w1 = weighed(
                widen(load(x, i + LANES)) - shift, weight_of(weights, j + LANES, LANES)
            )
            s0 = s0 + w0
            s1 = s1 + w1
            q0 = fma(w0, d0, q0)
            q1 = fma(w1, d1, q1)
            i += 2 * LANES
            j += 2 * LANES
        if i + LANES <= stop:
            prefetch(x, i + ahead)
            d0, w0 = weighed(widen(load(x, i)) - shift, weight_of(weights, j, LANES))
            s0 = s0 + w0
            q0 = fma(w0, d0, q0)
            i += LANES
            j += LANES
        if i < stop:
            prefetch(x, i + ahead)
            d1 = keep_first(widen(load_first(x, i, stop - i)) - shift, stop - i)
            d1, w1 = weighed(d1, weight_of(weights, j, stop - i))
            s1 = s1 + w1
            q1 = fma(w1, d1, q1)
    return total(s0 + s1), total(q0 + q1)


@helper
def weigh_pieces(weights: Any, outer: int, inner: int) -> Any:
    """Return the sum of the weights of each piece, and which of its values is `first_heavy`."""
    if weights is None:
        return np.empty((0, 2))
    pieces = pieces_of_channel(outer, inner)
    found = np.empty((pieces, 2))
    for piece in range(pieces):
        row, rows, first, length = piece_of_channel(piece, outer, inner)
        start = row * inner + first
        stop = start + rows * length
        weight = weigh(weights, start, stop)
        lead = first_heavy(weights, start, stop, weight)
        found[piece, 0], found[piece, 1] = weight, float(lead - start)
    return found


@helper
def weight_of_piece(weights: Any, piece_weights: Any, piece: int, outer: int, inner: int) -> float:
    """Return the number of values of a piece, or the sum of their weights."""
    if weights is None:
        _, rows, _, length = piece_of_channel(piece, outer, inner)
        return float(rows * length)
    return float(piece_weights[piece, 0])


@helper
def piece_moments(
    x: Any,
    at: int,
    piece: int,
    outer: int,
    inner: int,
    row_stride: int,
    ahead: int,
    weights: Any,
    piece_weights: Any,
) -> tuple[float, float, float]:
    """Return a reference ``k``, ``mean - k`` and ``m2`` of one piece of the channel that begins at ``at``."""
    row, rows, first, length = piece_of_channel(piece, outer, inner)
    start, w = at + row * row_stride + first, row * inner + first
    n = weight_of_piece(weights, piece_weights, piece, outer, inner)
    lead = start
    if weights is not None:
        if n == 0.0:
            return 0.0, 0.0, 0.0
        skipped = int(piece_weights[piece, 1])
        lead = start + skipped // length * row_stride + skipped % length
    k = finite_or(value_at(x, lead), 0.0)
    s, q = sums_about(x, start, rows, row_stride, length, ahead, k, weights, w)
    deviation, m2 = moments_from_sums(1.0 / n, s, q)
    if is_ill_conditioned(n, deviation, m2, worst_condition(x)):
        nearer = k + deviation
        s, q = sums_about(x, start, rows, row_stride, length, 0, nearer, weights, w)
        deviation, m2 = moments_from_sums(1.0 / n, s, q)
        k = nearer  # and not the outlier that k was: the deviation keeps its digits
    return k, deviation, m2


@helper
def merge_pieces(
    partial: Any, at: int, pieces: int, outer: int, inner: int, weights: Any, piece_weights: Any
) -> tuple[float, float, float]:
    """Return reference, ``mean - reference`` and ``m2`` of a channel from those of its pieces."""
    lead = 0
    if weights is not None:  # the first of the greatest weight: its reference counts
        for piece in range(pieces):
            if piece_weights[piece, 0] > piece_weights[lead, 0]:
                lead = piece
    reference, mean, m2 = partial[at + lead, 0], partial[at + lead, 1], partial[at + lead, 2]
    count = weight_of_piece(weights, piece_weights, lead, outer, inner)
    for piece in range(pieces):
        more = weight_of_piece(weights, piece_weights, piece, outer, inner)
        if piece == lead or more == 0.0:
            continue
        share, weight = merge_weights(count, more)
        piece_mean = (partial[at + piece, 0] - reference) + partial[at + piece, 1]
        delta = piece_mean - mean
        # Between infinities there is no difference, but there is a mean.
        mean = mean + delta * share if math.isfinite(delta) else mean + piece_mean
        m2 += partial[at + piece, 2] + delta * delta * weight
        count += more
    return reference, mean, m2


@kernel
def collect_moments_channels_first(
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    freedom: Float,
    eps: Float,
    table: OutTable64,
    weights: IfWeights,
) -> None:
    """Write the statistics of each channel to ``table``; ``freedom`` is ``n - correction``.

    With ``weights``, (outer, inner) without gaps, n is their sum. Reads x once. Parallel over the pieces
    of all channels.
    """
    pieces = pieces_of_channel(outer, inner)
    piece_weights = weigh_pieces(weights, outer, inner)
    partial = np.empty((channels * pieces, 3))
    for task in prange(channels * pieces):
        at, piece = task // pieces * channel_stride, task % pieces
        moments = piece_moments(
            x, at, piece, outer, inner, outer_stride, channel_stride, weights, piece_weights
        )
        partial[task, 0], partial[task, 1], partial[task, 2] = moments
    references, deviations, sums = table[MEAN], table[MEAN_LOW], table[M2]
    for channel in range(channels):
        references[channel], deviations[channel], sums[channel] = merge_pieces(
            partial, channel * pieces, pieces, outer, inner, weights, piece_weights
        )
    finish_moments(table, 0, channels, freedom, eps)


@helper
def segments_and_rows(inner: int) -> tuple[int, int]:
    """Return into how many segments a row is cut, and how many rows make a task of the others."""
    return (inner + PIECE - 1) // PIECE, max(1, PIECE // inner)


@helper
def joins(channels: int, inner: int, outer_stride: int, channel_stride: int) -> bool:
    """Whether the rows of an array follow each other without gaps."""
    return channel_stride == inner and outer_stride == channels * inner


@helper
def normalize_rows(
    x: Any,
    x_start: int,
    x_stride: int,
    y: Any,
    y_start: int,
    y_stride: int,
    rows: int,
    length: int,
    center: Any,
    scale: Any,
    shift: Any,
    streaming: int,
    residual: Any,
    r_start: int,
    r_stride: int,
    activation: Any,
    slope: float,
    grad: Any,
    g_start: int,
    g_stride: int,
) -> None:
    """Write ``y``, `finish` of ``affine(x)``, for some rows of one channel."""
    a, b, c = splat(center), splat(scale), splat(shift)
    for row in range(rows):
        i = x_start + row * x_stride
        j = y_start + row * y_stride
        r = r_start + row * r_stride
        g = g_start + row * g_stride
        stop = i + length
        n = min(to_line(y, j), length) if streaming else 0
        if n > 0:
            value = affine(load_first(x, i, n), a, b, c)
            value = finish_first(y, n, value, residual, r, activation, slope, grad, g)
            store_first(y, j, n, value)
            i += n
            j += n
            r += n
            g += n
        while i + LANES <= stop:
            value = affine(load(x, i), a, b, c)
            value = finish(y, value, residual, r, activation, slope, grad, g)
            put(y, j, value, streaming)
            i += LANES
            j += LANES
            r += LANES
            g += LANES
        if i < stop:
            n = stop - i
            value = affine(load_first(x, i, n), a, b, c)
            value = finish_first(y, n, value, residual, r, activation, slope, grad, g)
            store_first(y, j, n, value)


@helper
def normalize_joined_rows(
    x: Any,
    i: int,
    y: Any,
    j: int,
    rows: int,
    channel: int,
    channels: int,
    length: int,
    form: Any,
    streaming: int,
    residual: Any,
    r: int,
    activation: Any,
    slope: float,
    grad: Any,
    g: int,
) -> None:
    """Write ``y``, `finish` of ``affine(x)``, for rows without gaps between them.

    The first one belongs to ``channel``.

    A vector that spans two rows is computed with the coefficients of both. So there are no partial
    vectors between rows: of 49 or 196 values, they would be every fourth or every thirteenth.
    """
    a, b, c = splat(form[0, channel]), splat(form[1, channel]), splat(form[2, channel])
    left = length  # values left of the current row
    stop = i + rows * length
    n = min(to_line(y, j), length) if streaming else 0
    if n > 0:
        edge = affine(load_first(x, i, n), a, b, c)
        edge = finish_first(y, n, edge, residual, r, activation, slope, grad, g)
        store_first(y, j, n, edge)
        i += n
        j += n
        r += n
        g += n
        left -= n
    while i + LANES <= stop:
        while left >= LANES and i + LANES <= stop:
            whole = affine(load(x, i), a, b, c)
            whole = finish(y, whole, residual, r, activation, slope, grad, g)
            put(y, j, whole, streaming)
            i += LANES
            j += LANES
            r += LANES
            g += LANES
            left -= LANES
        if i + LANES <= stop:
            value = load(x, i)
            before = affine(value, a, b, c)
            channel = channel + 1 if channel + 1 < channels else 0
            a, b, c = splat(form[0, channel]), splat(form[1, channel]), splat(form[2, channel])
            both = first_of(left, before, affine(value, a, b, c))
            both = finish(y, both, residual, r, activation, slope, grad, g)
            put(y, j, both, streaming)
            i += LANES
            j += LANES
            r += LANES
            g += LANES
            left += length - LANES
    if i < stop:
        n = stop - i
        edge = affine(load_first(x, i, n), a, b, c)
        edge = finish_first(y, n, edge, residual, r, activation, slope, grad, g)
        store_first(y, j, n, edge)
    if streaming:
        fence()


@kernel
def normalize_channels_first(
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    table: Table,
    eps: Float,
    y: Out,
    y_outer_stride: Int,
    y_channel_stride: Int,
    streaming: Int,
    residual: IfResidual,
    r_outer_stride: Int,
    r_channel_stride: Int,
    activation: Activation,
    slope: Float,
    grad: IfGradient,
    g_outer_stride: Int,
    g_channel_stride: Int,
) -> None:
    """Write ``y = activation((x - mean) / sqrt(var + eps) * gamma + beta + residual)``.

    Or, with ``grad``, what reaches the activation's argument of the gradient with respect to y.
    Reads the inputs once, writes y once; y may be any of them. Parallel over the rows, long ones cut
    in segments.
    """
    form = np.empty((3, channels), working_dtype(x))
    inference_form(table, 0, channels, eps, form)
    joined = inner >= LANES and joins(channels, inner, outer_stride, channel_stride)
    joined = joined and joins(channels, inner, y_outer_stride, y_channel_stride)
    if residual is not None:
        joined = joined and joins(channels, inner, r_outer_stride, r_channel_stride)
    if grad is not None:
        joined = joined and joins(channels, inner, g_outer_stride, g_channel_stride)
    segments, depth = segments_and_rows(inner)
    tasks = (outer * channels + depth - 1) // depth * segments
    for task in prange(tasks):
        row, first = task // segments * depth, task % segments * PIECE
        rows = min(depth, outer * channels - row)
        if joined and rows > 1:
            i, c = row * inner, row % channels
            normalize_joined_rows(
                x,
                i,
                y,
                i,
                rows,
                c,
                channels,
                inner,
                form,
                streaming,
                residual,
                i,
                activation,
                slope,
                grad,
                i,
            )
            continue
        o, c = row // channels, row % channels
        for _ in range(rows):
            normalize_rows(
                x,
                o * outer_stride + c * channel_stride + first,
                0,
                y,
                o * y_outer_stride + c * y_channel_stride + first,
                0,
                1,
                min(PIECE, inner - first),
                form[0, c],
                form[1, c],
                form[2, c],
                streaming,
                residual,
                o * r_outer_stride + c * r_channel_stride + first,
                0,
                activation,
                slope,
                grad,
                o * g_outer_stride + c * g_channel_stride + first,
                0,
            )
            c += 1
            if c == channels:
                o, c = o + 1, 0
        if streaming:
            fence()  # once a task: it waits for all that was streamed, some 80 ns


@helper
def channels_of_group(outer: int, channels: int, inner: int) -> int:
    """Return how many neighbouring channels are worked on together.

    So many that their rows make a run of a page, if all of them then fit a core's own cache, and
    there are groups enough to share out.
    """
    wanted = min(_RUN // inner, _SLAB // (outer * inner), channels // _GROUPS)
    return max(1, wanted)


@helper
def channel_moments(
    x: Any,
    outer: int,
    inner: int,
    outer_stride: int,
    channel_stride: int,
    channel: int,
    weights: Any,
    piece_weights: Any,
) -> Any:
    """Return reference, ``mean - reference`` and ``m2`` of a channel."""
    at, pieces = channel * channel_stride, pieces_of_channel(outer, inner)
    view = outer, inner, outer_stride, channel_stride
    if pieces == 1:
        return piece_moments(x, at, 0, *view, weights, piece_weights)
    partial = np.empty((pieces, 3))
    for piece in range(pieces):
        moments = piece_moments(x, at, piece, *view, weights, piece_weights)
        partial[piece, 0], partial[piece, 1], partial[piece, 2] = moments
    return merge_pieces(partial, 0, pieces, outer, inner, weights, piece_weights)


@kernel
def train_channels_first(
    x: In,
    outer: Int,
    channels: Int,
    inner: Int,
    outer_stride: Int,
    channel_stride: Int,
    freedom: Float,
    eps: Float,
    table: OutTable64,
    y: Out,
    y_outer_stride: Int,
    y_channel_stride: Int,
    streaming: Int,
    residual: IfResidual,
    r_outer_stride: Int,
    r_channel_stride: Int,
    activation: Activation,
    slope: Float,
    weights: IfWeights,
) -> None:
    """Write the statistics of each channel to ``table``, which holds gamma and beta, and ``y``.

    A channel (of small images, a group of neighbours) is normalized as soon as its moments are
    known: where its values fit the cache, x is read from memory once and y written once. y may be x.
    Parallel over the groups.
    """
    piece_weights = weigh_pieces(weights, outer, inner)
    form = np.empty((3, channels), working_dtype(x))
    group = channels_of_group(outer, channels, inner)
    together = group > 1 and inner >= LANES
    together = together and channel_stride == inner and y_channel_stride == inner
    if residual is not None:
        together = together and r_channel_stride == inner
    for task in prange((channels + group - 1) // group):
        first, stop = task * group, min(task * group + group, channels)
        for channel in range(first, stop):
            moments = channel_moments(
                x, outer, inner, outer_stride, channel_stride, channel, weights, piece_weights
            )
            table[MEAN, channel], table[MEAN_LOW, channel], table[M2, channel] = moments
        finish_moments(table, first, stop, freedom, eps)
        inference_form(table, first, stop, eps, form)
        if together:
            for o in range(outer):
                normalize_joined_rows(
                    x,
                    o * outer_stride + first * inner,
                    y,
                    o * y_outer_stride + first * inner,
                    stop - first,
                    first,
                    channels,
                    inner,
                    form,
                    streaming,
                    residual,
                    o * r_outer_stride + first * inner,
                    activation,
                    slope,
                    None,
                    0,
                )
            continue
        for channel in range(first, stop):
            normalize_rows(
                x,
                channel * channel_stride,
                outer_stride,
                y,
                channel * y_channel_stride,
                y_outer_stride,
                outer,
                inner,
                form[0, channel],
                form[1, channel],
                form[2, channel],
                streaming,
                residual,
                channel * r_channel_stride,
                r_outer_stride,
                activation,
                slope,
                None,
                0,
                0,
            )
            if streaming:
                fence()
