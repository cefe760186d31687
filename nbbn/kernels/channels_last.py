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
    inlined,
    kernel,
)
from nbbn._simd import (
    LANES,
    fence,
    fma,
    load,
    load_first,
    prefetch,
    splat,
    store,
    store_first,
    to_line,
    value_at,
    where_finite,
    widen,
)
from nbbn._simd_weights import numbers_only, row_list
from nbbn.kernels.epilogue import affine, finish, finish_first, inference_form
from nbbn.kernels.table import M2, MEAN, MEAN_LOW
from nbbn.kernels.vectors import (
    aligned,
    aligned_rows,
    load_upto,
    put,
    store_upto,
    whole_vectors,
)
from nbbn.kernels.welford import (
    better_reference,
    finish_moments,
    first_heavy,
    merge_weights,
    moments_from_sums,
    weigh,
    weighed,
    weight_of_row,
    worst_condition,
)

TILE = 512  # columns: their float64 sums (8 KB) stay in L1
WIDE_TILE = 1024  # columns of the elementwise steps: three float32 coefficients each, 24 KB
GROUP = (
    8  # rows summed side by side; with 1, 2, 4: moments of (128, 256) in 1.8, 1.3, 1.1 of the time
)
SMALL = 1 << 20  # bytes that a core's own cache holds
LONG_ROW = 512  # columns that short rows are joined to, where there are no gaps between them
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
def row_of(weights: Any, counted: Any, entry: int) -> int:
    """Return the row that the list of those that count has there; without weights, ``entry`` itself."""
    if weights is None:
        return entry
    return int(counted[entry])


@helper
def counted_rows(weights: Any, row: int, rows: int) -> Any:
    """Return a list of the rows of a piece that have a weight (None: all have), and their number."""
    listed = row_list(weights, rows)
    if weights is None:
        return listed, rows
    number = 0
    for k in range(rows):
        listed[number] = k
        number += value_at(weights, row + k) != 0.0
    return listed, number


@inlined
def strip_sums(
    x: Any,
    start: int,
    rows: int,
    row_stride: int,
    lanes: int,
    k: Any,
    s: Any,
    q: Any,
    weights: Any,
    at: int,
    counted: Any,
    first: int,
) -> Any:
    """Return ``s + sum(w * (x - k))`` and ``q + sum(w * (x - k)**2)`` of up to sixteen columns.

    ``start`` is that of a piece. Its rows are those that ``counted`` lists from ``first`` on, and their
    weights w, those of the piece, stand from ``at`` on; without weights, those from ``first`` on, and w is 1.
    """
    numbers = numbers_only(weights)  # what a mask lets in has weight 1
    if lanes >= LANES:
        for entry in range(first, first + rows):
            row = row_of(weights, counted, entry)
            d = widen(load(x, start + row * row_stride)) - k
            d, w = weighed(d, weight_of_row(numbers, at + row))
            s = s + w
            q = fma(w, d, q)
    else:
        for entry in range(first, first + rows):
            row = row_of(weights, counted, entry)
            d = widen(load_first(x, start + row * row_stride, lanes)) - k
            d, w = weighed(d, weight_of_row(numbers, at + row))
            s = s + w
            q = fma(w, d, q)
    return s, q


@inlined
def prefetch_row(x: Any, index: int, column: int) -> int:
    """Ask for `GROUP` cache lines from ``index`` on; return the column behind them.

    The next rows are asked for one after the other: a stream that the processor then reads ahead
    of, while rows side by side are none.
    """
    for line in range(GROUP):
        prefetch(x, index + line * LANES)
    return column + GROUP * LANES


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
    weights: Any,
    row: int,
    weight: float,
) -> None:
    """Write reference, ``mean - reference`` and m2 of the columns ``first`` to ``stop``.

    ``start`` is where the piece's first row stands in x, ``at`` where its results go; ``row`` where its
    weights begin, and ``weight`` their sum (or the number of rows).
    """
    zero = splat(0.0)
    counted, number = counted_rows(weights, row, rows)
    lead = start
    if weights is not None:
        lead += (first_heavy(weights, row, row + rows, weight) - row) * row_stride
    for j in range(first, stop):
        deviation[at + j] = m2[at + j] = 0.0
    for group in range(0, number, GROUP):
        depth = min(GROUP, number - group)
        coming, column = start + (group + GROUP) * row_stride, first
        if weights is not None:
            coming = start + counted[min(group + GROUP, number - 1)] * row_stride
        for j in range(first, stop, LANES):
            column = prefetch_row(x, coming + column, column)
            if column >= stop:
                coming, column = coming + row_stride, first
            n = stop - j
            k = reference_of(x, lead + j, n)
            s, q = load_upto(deviation, at + j, n), load_upto(m2, at + j, n)
            chosen = weights, row, counted, group
            s, q = strip_sums(x, start + j, depth, row_stride, n, k, s, q, *chosen)
            store_upto(deviation, at + j, n, s)
            store_upto(m2, at + j, n, q)
    share, limit = splat(1.0 / weight), worst_condition(x)
    for j in range(first, stop, LANES):
        n = stop - j
        k = reference_of(x, lead + j, n)
        s, q = load_upto(deviation, at + j, n), load_upto(m2, at + j, n)
        mean, squares = moments_from_sums(share, s, q)
        again, k = better_reference(weight, k, mean, squares, limit)
        if again:
            chosen = weights, row, counted, 0
            s, q = strip_sums(x, start + j, number, row_stride, n, k, zero, zero, *chosen)
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


@helper
def weigh_pieces_of_rows(weights: Any, rows: int, depth: int, like: Any) -> Any:
    """Return the sum of the weights of each piece of rows, or their number."""
    pieces = (rows + depth - 1) // depth
    found = aligned(pieces, like)
    for piece in range(pieces):
        row, more = piece * depth, min(depth, rows - piece * depth)
        found[piece] = float(more)
        if weights is not None:
            found[piece] = weigh(weights, row, row + more)
    return found


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
    weights: IfWeights,
) -> None:
    """Write the statistics of each channel to ``table``; ``freedom`` is ``n - correction``.

    With ``weights``, one a row (then no row holds several), n is their sum. Reads x once. Parallel over
    pieces of rows and tiles of columns.
    """
    width = channels * inner * repeats
    depth = rows_of_piece(width)
    pieces = (rows + depth - 1) // depth
    piece_weights = weigh_pieces_of_rows(weights, rows, depth, table)
    tiles = (width + TILE - 1) // TILE
    stride = whole_vectors(width)
    bases = aligned((pieces + 1) * stride, table)
    means = aligned((pieces + 1) * stride, table)
    squares = aligned((pieces + 1) * stride, table)
    for task in prange(pieces * tiles):
        piece, first = task // tiles, task % tiles * TILE
        row = piece * depth
        if piece_weights[piece] > 0.0:
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
                piece * stride,
                weights,
                row,
                piece_weights[piece],
            )
    lead = 0  # the first of the greatest weight: its reference counts
    for piece in range(pieces):
        if piece_weights[piece] > piece_weights[lead]:
            lead = piece
    into, count = lead * stride, piece_weights[lead]
    for piece in range(pieces):
        more = piece_weights[piece]
        if piece != lead and more > 0.0:
            merge_columns(bases, means, squares, into, piece * stride, count, more, width)
            count += more
    if tail > 0:
        at, last = pieces * stride, rows * row_stride
        piece_of_columns(x, last, 1, row_stride, 0, tail, bases, means, squares, at, None, 0, 1.0)
        merge_columns(bases, means, squares, into, at, count, 1.0, tail)
    references, deviations, sums = table[MEAN], table[MEAN_LOW], table[M2]
    if width > channels:
        for channel in range(channels):
            references[channel], deviations[channel], sums[channel] = channel_of_columns(
                bases, means, squares, channel, channels, inner, width, rows, tail
            )
    else:
        for c in range(channels):  # slices: numba would compile the texts of their errors, 3 s
            references[c], deviations[c] = bases[into + c], means[into + c]
            sums[c] = squares[into + c]
    finish_moments(table, 0, channels, freedom, eps)


@helper
def spread_row(values: Any, repeats: int, channels: int, inner: int) -> None:
    """Copy what stands in the first columns, one a channel, to all columns of each channel."""
    width = channels * inner
    if inner > 1:
        # Backwards, so that what is read has not been written to.
        for channel in range(channels - 1, -1, -1):
            value = values[channel]
            for j in range(channel * inner, (channel + 1) * inner):
                values[j] = value
    for j in range(width, repeats * width):
        values[j] = values[j - width]


@helper
def spread(form: Any, repeats: int, channels: int, inner: int) -> None:
    """`spread_row` of each row."""
    for row in range(form.shape[0]):
        spread_row(form[row], repeats, channels, inner)


@inlined
def normalize_row(
    x: Any,
    i: int,
    y: Any,
    k: int,
    columns: int,
    center: Any,
    scale: Any,
    shift: Any,
    j: int,
    streaming: int,
    residual: Any,
    r: int,
    activation: Any,
    slope: float,
    grad: Any,
    g: int,
) -> None:
    """Write ``y``, `finish` of ``affine(x)``, for so many columns.

    They begin at i, k, r and g, those of the coefficients at j.
    """
    stop = j + columns
    n = min(to_line(y, k), columns) if streaming else 0
    if n > 0:
        a, b, c = load_first(center, j, n), load_first(scale, j, n), load_first(shift, j, n)
        value = affine(load_first(x, i, n), a, b, c)
        value = finish_first(y, n, value, residual, r, activation, slope, grad, g)
        store_first(y, k, n, value)
        i += n
        j += n
        k += n
        r += n
        g += n
    while j + LANES <= stop:
        a, b, c = load(center, j), load(scale, j), load(shift, j)
        value = affine(load(x, i), a, b, c)
        value = finish(y, value, residual, r, activation, slope, grad, g)
        put(y, k, value, streaming)
        i += LANES
        j += LANES
        k += LANES
        r += LANES
        g += LANES
    if j < stop:
        n = stop - j
        a, b, c = load_first(center, j, n), load_first(scale, j, n), load_first(shift, j, n)
        value = affine(load_first(x, i, n), a, b, c)
        value = finish_first(y, n, value, residual, r, activation, slope, grad, g)
        store_first(y, k, n, value)


@inlined
def normalize_two_rows(
    x: Any,
    i: int,
    x_stride: int,
    y: Any,
    k: int,
    y_stride: int,
    columns: int,
    center: Any,
    scale: Any,
    shift: Any,
    j: int,
) -> None:
    """`normalize_row` of two rows, which share the loads of their coefficients."""
    stop = j + columns
    while j + 2 * LANES <= stop:
        a, b, c = load(center, j), load(scale, j), load(shift, j)
        upper, lower = load(x, i), load(x, i + x_stride)
        store(y, k, affine(upper, a, b, c))
        store(y, k + y_stride, affine(lower, a, b, c))
        a, b, c = load(center, j + LANES), load(scale, j + LANES), load(shift, j + LANES)
        upper, lower = load(x, i + LANES), load(x, i + x_stride + LANES)
        store(y, k + LANES, affine(upper, a, b, c))
        store(y, k + y_stride + LANES, affine(lower, a, b, c))
        i += 2 * LANES
        j += 2 * LANES
        k += 2 * LANES
    while j < stop:
        n = stop - j
        a, b, c = load_upto(center, j, n), load_upto(scale, j, n), load_upto(shift, j, n)
        upper, lower = load_upto(x, i, n), load_upto(x, i + x_stride, n)
        store_upto(y, k, n, affine(upper, a, b, c))
        store_upto(y, k + y_stride, n, affine(lower, a, b, c))
        i += LANES
        j += LANES
        k += LANES


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
    residual: Any,
    r_start: int,
    r_stride: int,
    activation: Any,
    slope: float,
    grad: Any,
    g_start: int,
    g_stride: int,
) -> None:
    """Write ``y``, `finish` of ``affine(x)``, for some rows and the columns ``first`` to ``stop``.

    Two rows side by side share the loads of the coefficients, 0.7 of the time for 512 rows of 256;
    but the processor reads less far ahead: 1.7 of the time for 65,536 rows.
    """
    center, scale, shift = form[0], form[1], form[2]
    width = stop - first
    i, k, r, g = x_start + first, y_start + first, r_start + first, g_start + first
    row = 0
    if residual is None and grad is None:
        in_cache = x.size * x.itemsize <= SMALL and len(activation) == 0
        while in_cache and row + 2 <= rows:
            normalize_two_rows(x, i, x_stride, y, k, y_stride, width, center, scale, shift, first)
            i += 2 * x_stride
            k += 2 * y_stride
            row += 2
    while row < rows:
        normalize_row(
            x,
            i,
            y,
            k,
            width,
            center,
            scale,
            shift,
            first,
            streaming,
            residual,
            r,
            activation,
            slope,
            grad,
            g,
        )
        i += x_stride
        k += y_stride
        r += r_stride
        g += g_stride
        row += 1
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
    residual: IfResidual,
    r_row_stride: Int,
    activation: Activation,
    slope: Float,
    grad: IfGradient,
    g_row_stride: Int,
) -> None:
    """Write ``y = activation((x - mean) / sqrt(var + eps) * gamma + beta + residual)``.

    Or, with ``grad``, what reaches the activation's argument of the gradient with respect to y.
    Reads the inputs once, writes y once; y may be any of them. Parallel over pieces of rows and tiles
    of columns.
    """
    width = channels * inner * repeats
    fold = 1
    joined = row_stride == width and y_row_stride == width
    if residual is not None:
        joined = joined and r_row_stride == width
    if grad is not None:
        joined = joined and g_row_stride == width
    if joined:
        fold = min(max(1, LONG_ROW // width), rows)
    repeats, columns = repeats * fold, width * fold
    depth, stride, y_stride = rows // fold, row_stride * fold, y_row_stride * fold
    r_stride, g_stride = r_row_stride * fold, g_row_stride * fold
    left = rows % fold * width + tail
    form = aligned_rows(3, columns, x)
    inference_form(table, 0, channels, eps, form)
    spread(form, repeats, channels, inner)
    share = rows_of_piece(min(columns, WIDE_TILE))
    pieces = (depth + share - 1) // share
    tiles = (columns + WIDE_TILE - 1) // WIDE_TILE
    for task in prange(pieces * tiles):
        row, first = task // tiles * share, task % tiles * WIDE_TILE
        normalize_block(
            x,
            row * stride,
            stride,
            y,
            row * y_stride,
            y_stride,
            min(share, depth - row),
            first,
            min(first + WIDE_TILE, columns),
            form,
            streaming,
            residual,
            row * r_stride,
            r_stride,
            activation,
            slope,
            grad,
            row * g_stride,
            g_stride,
        )
    if left > 0:
        normalize_block(
            x,
            depth * stride,
            0,
            y,
            depth * y_stride,
            0,
            1,
            0,
            left,
            form,
            0,
            residual,
            depth * r_stride,
            0,
            activation,
            slope,
            grad,
            depth * g_stride,
            0,
        )
