"""Whole steps in one thread, for `nbbn.nopython`: made of the loops of the two layouts.

Arrays are flat and contiguous, (outer, C, inner). Little work is done without a scratch array or a
copy of the coefficients: where one is called for each sample, that would take longer than the loop.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nbbn._jit import helper
from nbbn._simd import LANES, narrow, not_below, splat, widen
from nbbn.kernels.channels_first import (
    channel_moments,
    normalize_joined_rows,
    normalize_rows,
    piece_moments,
)
from nbbn.kernels.channels_last import (
    GROUP,
    LONG_ROW,
    TILE,
    WIDE_TILE,
    channel_of_columns,
    merge_columns,
    normalize_block,
    piece_of_columns,
    reference_of,
    rows_of_piece,
    spread,
    strip_sums,
)
from nbbn.kernels.epilogue import affine, store_form
from nbbn.kernels.vectors import aligned, aligned_rows, load_upto, store_upto, whole_vectors
from nbbn.kernels.welford import PIECE, moments_from_sums

FEW_ROWS = 8  # not worth a scratch array
_FULL_WIDTH = 128  # columns: eight vectors


@helper
def write_form(center: Any, scale: Any, shift: Any, form: Any) -> None:
    """Write the coefficients, in the dtype of ``form``."""
    for c in range(0, center.size, LANES):
        n = center.size - c
        mean, factor = widen(load_upto(center, c, n)), widen(load_upto(scale, c, n))
        store_form(form, c, n, mean, splat(0.0), factor, widen(load_upto(shift, c, n)))


@helper
def normalize_runs(
    x: Any, outer: int, channels: int, inner: int, center: Any, scale: Any, shift: Any, y: Any
) -> None:
    """Write y, one channel of one row after the other."""
    form = np.empty((3, channels), x.dtype)
    write_form(center, scale, shift, form)
    if inner >= LANES:
        normalize_joined_rows(
            x, 0, y, 0, outer * channels, 0, channels, inner, form, 0, None, 0, (), 0.0, None, 0
        )
        return
    for row in range(outer * channels):
        i, c = row * inner, row % channels
        a, b, d = form[0, c], form[1, c], form[2, c]
        normalize_rows(x, i, 0, y, i, 0, 1, inner, a, b, d, 0, None, 0, 0, (), 0.0, None, 0, 0)


@helper
def normalize_few_rows(
    x: Any, rows: int, columns: int, center: Any, scale: Any, shift: Any, y: Any
) -> None:
    """Write y from coefficients in its own dtype, one a column."""
    for j in range(0, columns, LANES):
        n = columns - j
        a = narrow(y, widen(load_upto(center, j, n)))
        b = narrow(y, widen(load_upto(scale, j, n)))
        c = narrow(y, widen(load_upto(shift, j, n)))
        for row in range(rows):
            i = row * columns + j
            store_upto(y, i, n, affine(load_upto(x, i, n), a, b, c))


@helper
def normalize_columns(
    x: Any, outer: int, channels: int, inner: int, center: Any, scale: Any, shift: Any, y: Any
) -> None:
    """Write y where the channels lie side by side; narrow rows are joined to long ones."""
    width = channels * inner
    fold = min(max(1, LONG_ROW // width), max(1, outer // FEW_ROWS))
    columns, depth, left = width * fold, outer // fold, outer % fold * width
    form = aligned_rows(3, columns, x)
    write_form(center, scale, shift, form)
    spread(form, fold, channels, inner)
    share = rows_of_piece(min(columns, WIDE_TILE))
    for row in range(0, depth, share):
        rows, at = min(share, depth - row), row * columns
        for first in range(0, columns, WIDE_TILE):
            stop = min(first + WIDE_TILE, columns)
            rest = form, 0, None, 0, 0, (), 0.0, None, 0, 0
            normalize_block(x, at, columns, y, at, columns, rows, first, stop, *rest)
    if left > 0:
        at = depth * columns
        last = form, 0, None, 0, 0, (), 0.0, None, 0, 0
        normalize_block(x, at, 0, y, at, 0, 1, 0, left, *last)


@helper
def rows_joined(rows: int, width: int) -> int:
    """Return how many narrow rows make one of whole vectors, to be summed."""
    if width >= _FULL_WIDTH or width % LANES == 0:
        return 1
    vectors = LANES // math.gcd(width, LANES)
    joined = vectors * ((_FULL_WIDTH + width * vectors - 1) // (width * vectors))
    return joined if rows >= joined * GROUP else 1


@helper
def moments_of_few_rows(x: Any, rows: int, columns: int, mean: Any, m2: Any) -> None:
    """Write the moments of each column: sums about its first value lose at most a factor ``rows``."""
    zero, share = splat(0.0), splat(1.0 / float(rows))
    for j in range(0, columns, LANES):
        n = columns - j
        k = reference_of(x, j, n)
        s, q = strip_sums(x, j, rows, columns, n, k, zero, zero, None, 0, None, 0)
        deviation, squares = moments_from_sums(share, s, q)
        store_upto(mean, j, n, k + deviation)
        store_upto(m2, j, n, not_below(squares, zero))


@helper
def moments_of_runs(x: Any, outer: int, channels: int, inner: int, mean: Any, m2: Any) -> None:
    """Write the moments of each channel, some runs of values."""
    row = channels * inner
    for c in range(channels):
        if outer * inner <= PIECE:
            k, deviation, squares = piece_moments(
                x, c * inner, 0, outer, inner, row, inner, None, None
            )
        else:
            k, deviation, squares = channel_moments(x, outer, inner, row, inner, c, None, None)
        mean[c] = k + deviation
        m2[c] = 0.0 if squares < 0.0 else squares


@helper
def moments_of_columns(x: Any, rows: int, channels: int, inner: int, mean: Any, m2: Any) -> None:
    """Write the moments of each channel, one or several columns."""
    joined = rows_joined(rows, channels * inner)
    width = channels * inner * joined
    tail = rows % joined * channels * inner
    rows //= joined
    depth = rows_of_piece(width)
    spare = whole_vectors(width)
    bases, means, squares = (
        aligned(2 * spare, mean),
        aligned(2 * spare, mean),
        aligned(2 * spare, mean),
    )
    for row in range(0, rows, depth):
        at, more = (spare if row else 0), min(depth, rows - row)
        for first in range(0, width, TILE):
            stop = min(first + TILE, width)
            start = row * width
            results = bases, means, squares, at
            piece_of_columns(x, start, more, width, first, stop, *results, None, 0, float(more))
        if row:
            merge_columns(bases, means, squares, 0, at, float(row), float(more), width)
    if tail > 0:
        results = bases, means, squares, spare
        piece_of_columns(x, rows * width, 1, width, 0, tail, *results, None, 0, 1.0)
        merge_columns(bases, means, squares, 0, spare, float(rows), 1.0, tail)
    for c in range(channels):
        if width > channels:
            k, deviation, total = channel_of_columns(
                bases, means, squares, c, channels, inner, width, rows, tail
            )
        else:
            k, deviation, total = bases[c], means[c], squares[c]
        mean[c] = k + deviation
        m2[c] = 0.0 if total < 0.0 else total
