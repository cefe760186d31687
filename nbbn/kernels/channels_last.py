"""Kernels over the columns of a matrix: channels last, (N, C), and images of few pixels.

Arrays are flat; column ``j`` of row ``i`` stands at ``i * row_stride + j``. Several columns may
belong to one channel: column ``j`` belongs to channel ``j // inner % channels``. So (N, C, 3, 3) is
a matrix of ``9 * C`` columns, and a narrow contiguous matrix is read as a wider one, several rows
to a row, to fill the vectors; what then is left over is a last row of ``tail`` columns.

Rows are cut into pieces and columns into tiles, by the shape only; pieces are merged in order, so no
result depends on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import prange

from nbbn._jit import (
    Float,
    In,
    Int,
    Out,
    OutTable64,
    Table,
    helper,
    inlined,
    kernel,
)
from nbbn._simd import (
    LANES,
    fence,
    fma,
    load,
    load_first,
    splat,
    store_first,
    to_line,
    where_finite,
    widen,
)
from nbbn.kernels.epilogue import affine, inference_form
from nbbn.kernels.vectors import load_upto, put, store_upto
from nbbn.kernels.welford import (
    any_ill_conditioned,
    merge_weights,
    moments_from_sums,
    worst_condition,
    write_moments,
    write_variances,
)

TILE = 512  # columns: their float64 sums (8 KB) stay in L1
_WIDE_TILE = 2048  # columns of the elementwise steps: three float32 coefficients each, 24 KB
GROUP = 8  # rows read side by side; with 16 or 32, moments of 1,024 columns took 1.4 to 1.6 times as long
_PIECE_VALUES = 1 << 16
_PIECE_ROWS = 64  # at least: what is kept for a piece then is little beside the piece


@helper
def rows_of_piece(width: int) -> int:
    """Return how many rows make a piece."""
    return max(_PIECE_ROWS, _PIECE_VALUES // width)


@inlined
def reference_of(x: Any, index: int, count: int) -> Any:
    """Return the values of a row that deviations are taken from, as float64."""
    row = widen(load_upto(x, index, count))
    return where_finite(row, row, splat(0.0))


@inlined
def strip_sums(
    x: Any, start: int, rows: int, row_stride: int, lanes: int, k: Any, s: Any, q: Any
) -> Any:
    """Return ``s + sum(x - k)`` and ``q + sum((x - k)**2)`` of up to sixteen columns."""
    i = start
    if lanes >= LANES:
        for _ in range(rows):
            d = widen(load(x, i)) - k
            s = s + d
            q = fma(d, d, q)
            i += row_stride
    else:
        for _ in range(rows):
            d = widen(load_first(x, i, lanes)) - k
            s = s + d
            q = fma(d, d, q)
            i += row_stride
    return s, q


@helper
def piece_of_columns(
    x: Any,
    start: int,
    rows: int,
    row_stride: int,
    first: int,
    stop: int,
    reference: Any,
    deviation: Any,
    m2: Any,
    at: int,
) -> None:
    """Write reference, ``mean - reference`` and m2 of the columns ``first`` to ``stop``.

    ``start`` is where the piece's first row stands in x, ``at`` where its results go.
    """
    zero = splat(0.0)
    for j in range(first, stop):
        deviation[at + j] = m2[at + j] = 0.0
    for group in range(0, rows, GROUP):
        depth = min(GROUP, rows - group)
        for j in range(first, stop, LANES):
            n = stop - j
            k = reference_of(x, start + j, n)
            s, q = load_upto(deviation, at + j, n), load_upto(m2, at + j, n)
            s, q = strip_sums(x, start + group * row_stride + j, depth, row_stride, n, k, s, q)
            store_upto(deviation, at + j, n, s)
            store_upto(m2, at + j, n, q)
    count = float(rows)
    share, limit = splat(1.0 / count), worst_condition(x)
    for j in range(first, stop, LANES):
        n = stop - j
        k = reference_of(x, start + j, n)
        s, q = load_upto(deviation, at + j, n), load_upto(m2, at + j, n)
        mean, squares = moments_from_sums(share, s, q)
        if any_ill_conditioned(count, mean, squares, limit):
            k = where_finite(k + mean, k + mean, k)  # where it is not, the sums stay as they are
            s, q = strip_sums(x, start + j, rows, row_stride, n, k, zero, zero)
            mean, squares = moments_from_sums(share, s, q)
        store_upto(reference, at + j, n, k)
        store_upto(deviation, at + j, n, mean)
        store_upto(m2, at + j, n, squares)


@helper
def merge_columns(
    reference: Any,
    deviation: Any,
    m2: Any,
    into: int,
    other: int,
    count: float,
    rows: float,
    width: int,
) -> None:
    """Merge the piece at ``other`` (``rows`` values a column) into the one at ``into``."""
    share, weight = merge_weights(count, rows)
    shares, weights = splat(share), splat(weight)
    for j in range(0, width, LANES):
        n = width - j
        mean = load_upto(deviation, into + j, n)
        apart = load_upto(reference, other + j, n) - load_upto(reference, into + j, n)
        other_mean = apart + load_upto(deviation, other + j, n)
        delta = other_mean - mean
        merged = where_finite(delta, fma(delta, shares, mean), mean + other_mean)
        both = load_upto(m2, into + j, n) + load_upto(m2, other + j, n)
        store_upto(deviation, into + j, n, merged)
        store_upto(m2, into + j, n, fma(delta * delta, weights, both))


@helper
def channel_of_columns(
    reference: Any,
    deviation: Any,
    m2: Any,
    channel: int,
    channels: int,
    inner: int,
    width: int,
    rows: int,
    tail: int,
) -> tuple[float, float, float]:
    """Return reference, ``mean - reference`` and ``m2`` of a channel from those of its columns."""
    base = reference[channel * inner]
    count = weighted = 0.0
    for first in range(channel * inner, width, channels * inner):
        for j in range(first, first + inner):
            deviation[j] += reference[j] - base
            values = float(rows + 1 if j < tail else rows)
            weighted += values * deviation[j]
            count += values
    mean = weighted / count
    total = 0.0
    for first in range(channel * inner, width, channels * inner):
        for j in range(first, first + inner):
            delta = deviation[j] - mean
            values = float(rows + 1 if j < tail else rows)
            total += m2[j] + values * delta * delta
    return base, mean, total


@kernel
def collect_moments_channels_last(
    x: In,
    rows: Int,
    channels: Int,
    inner: Int,
    repeats: Int,
    tail: Int,
    row_stride: Int,
    freedom: Float,
    eps: Float,
    table: OutTable64,
) -> None:
    """Write the statistics of each channel to ``table``; ``freedom`` is ``n - correction``.

    Reads x once. Parallel over pieces of rows and tiles of columns.
    """
    width = channels * inner * repeats
    depth = rows_of_piece(width)
    pieces = (rows + depth - 1) // depth
    tiles = (width + TILE - 1) // TILE
    bases = np.empty((pieces + 1) * width)
    means = np.empty((pieces + 1) * width)
    squares = np.empty((pieces + 1) * width)
    for task in prange(pieces * tiles):
        piece, first = task // tiles, task % tiles * TILE
        row = piece * depth
        piece_of_columns(
            x,
            row * row_stride,
            min(depth, rows - row),
            row_stride,
            first,
            min(first + TILE, width),
            bases,
            means,
            squares,
            piece * width,
        )
    for piece in range(1, pieces):
        row = piece * depth
        count, more = float(row), float(min(depth, rows - row))
        merge_columns(bases, means, squares, 0, piece * width, count, more, width)
    if tail > 0:
        at = pieces * width
        piece_of_columns(x, rows * row_stride, 1, row_stride, 0, tail, bases, means, squares, at)
        merge_columns(bases, means, squares, 0, at, float(rows), 1.0, tail)
    for channel in range(channels):
        if width == channels:
            moments = bases[channel], means[channel], squares[channel]
        else:
            moments = channel_of_columns(
                bases, means, squares, channel, channels, inner, width, rows, tail
            )
        write_moments(table, channel, moments[0], moments[1], max(moments[2], 0.0))
    write_variances(table, 0, channels, freedom, eps)


@helper
def spread(form: Any, repeats: int, channels: int, inner: int) -> None:
    """Copy each channel's coefficients from its first column to all of its columns."""
    width = channels * inner
    for row in range(form.shape[0]):
        for channel in range(channels):
            for i in range(1, inner):
                form[row, channel * inner + i] = form[row, channel * inner]
        for repeat in range(1, repeats):
            for column in range(width):
                form[row, repeat * width + column] = form[row, column]


@helper
def normalize_block(
    x: Any,
    x_start: int,
    x_stride: int,
    y: Any,
    y_start: int,
    y_stride: int,
    rows: int,
    first: int,
    stop: int,
    form: Any,
    streaming: int,
) -> None:
    """Write ``y = affine(x)`` for some rows and the columns ``first`` to ``stop``."""
    center, scale, shift = form[0], form[1], form[2]
    step = 1 if streaming else GROUP  # rows differ in where their cache lines begin
    for group in range(0, rows, step):
        depth = min(step, rows - group)
        x_row, y_row = x_start + group * x_stride, y_start + group * y_stride
        j = first
        n = min(to_line(y, y_row + j), stop - j) if streaming else 0
        if n > 0:
            a, b, c = load_first(center, j, n), load_first(scale, j, n), load_first(shift, j, n)
            store_first(y, y_row + j, n, affine(load_first(x, x_row + j, n), a, b, c))
            j += n
        while j + LANES <= stop:
            a, b, c = load(center, j), load(scale, j), load(shift, j)
            i, k = x_row + j, y_row + j
            for _ in range(depth):
                put(y, k, affine(load(x, i), a, b, c), streaming)
                i += x_stride
                k += y_stride
            j += LANES
        if j < stop:
            n = stop - j
            a, b, c = load_first(center, j, n), load_first(scale, j, n), load_first(shift, j, n)
            i, k = x_row + j, y_row + j
            for _ in range(depth):
                store_first(y, k, n, affine(load_first(x, i, n), a, b, c))
                i += x_stride
                k += y_stride
    if streaming:
        fence()


@kernel
def normalize_channels_last(
    x: In,
    rows: Int,
    channels: Int,
    inner: Int,
    repeats: Int,
    tail: Int,
    row_stride: Int,
    table: Table,
    eps: Float,
    y: Out,
    y_row_stride: Int,
    streaming: Int,
) -> None:
    """Write ``y = (x - mean) / sqrt(var + eps) * gamma + beta``.

    Reads x once, writes y once; y may be x. Parallel over pieces of rows and tiles of columns.
    """
    width = channels * inner * repeats
    form = np.empty((3, width), x.dtype)
    for channel in range(channels):
        inference_form(table, channel, eps, form, channel * inner)
    spread(form, repeats, channels, inner)
    depth = rows_of_piece(min(width, _WIDE_TILE))
    pieces = (rows + depth - 1) // depth
    tiles = (width + _WIDE_TILE - 1) // _WIDE_TILE
    for task in prange(pieces * tiles):
        row, first = task // tiles * depth, task % tiles * _WIDE_TILE
        normalize_block(
            x,
            row * row_stride,
            row_stride,
            y,
            row * y_row_stride,
            y_row_stride,
            min(depth, rows - row),
            first,
            min(first + _WIDE_TILE, width),
            form,
            streaming,
        )
    if tail > 0:
        start, y_start = rows * row_stride, rows * y_row_stride
        normalize_block(x, start, 0, y, y_start, 0, 1, 0, tail, form, 0)
