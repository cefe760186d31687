"""Steps on plain arrays as one call: of small arrays, looking costs more than computing.

Arrays come as they are, and what Python would compare one by one (shapes, strides, overlaps) is
compared here. What is not plain (C-contiguous, of one shape, apart from each other or the very same
memory) is `REFUSED` before anything is written; the general way then does it, or says what is wrong.
The work itself is that of the kernels, with their bits. Arrays of other than two dimensions come as
one row.

``outer, channels, inner, repeats, tail`` is how a contiguous array of this shape is read (see
`nbbn._layout.Layout`). Of ``serial`` and ``parallel`` one is None, and so is ``runs`` or
``repeats, tail``: numba does not compile what follows a test for an argument that is None. The four
ways are spelled out in each step, as LLVM would optimize a helper for them once more: with it, the
first inference of (32, 256) without a cache took 4.4 s instead of 3.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn._jit import (
    Activation,
    Float,
    IfColumns,
    IfParallel,
    IfPlainResidual,
    IfRuns,
    IfSerial,
    In,
    Int,
    OutTable,
    OutTable64,
    PlainIn,
    PlainOut,
    Table,
    Table64,
    body,
    helper,
    kernel,
    parallel_body,
    plain_kernel,
)
from nbbn._simd import flat, words
from nbbn.kernels.channels_first import (
    collect_moments_channels_first,
    normalize_channels_first,
    train_channels_first,
)
from nbbn.kernels.channels_first_backward import backward_channels_first
from nbbn.kernels.channels_last import collect_moments_channels_last, normalize_channels_last
from nbbn.kernels.channels_last_backward import (
    backward_input_channels_last,
    backward_reduce_channels_last,
)
from nbbn.kernels.table import (
    BETA,
    GAMMA,
    GRAD_GAMMA,
    GRAD_INV_STD,
    GRAD_MEAN,
    GRADIENT_ROWS,
    INV_STD,
    MEAN,
    SUM_GRAD,
    SUM_GRAD_DEVIATION,
)

REFUSED = -1
OVERWRITTEN = -2

_normalize_runs = body(normalize_channels_first)
_normalize_runs_parallel = parallel_body(normalize_channels_first)
_normalize_columns = body(normalize_channels_last)
_normalize_columns_parallel = parallel_body(normalize_channels_last)
_moments_of_runs = body(collect_moments_channels_first)
_moments_of_runs_parallel = parallel_body(collect_moments_channels_first)
_moments_of_columns = body(collect_moments_channels_last)
_moments_of_columns_parallel = parallel_body(collect_moments_channels_last)
_train_runs = body(train_channels_first)
_train_runs_parallel = parallel_body(train_channels_first)
_backward_runs = body(backward_channels_first)
_backward_runs_parallel = parallel_body(backward_channels_first)
_sums_of_columns = body(backward_reduce_channels_last)
_sums_of_columns_parallel = parallel_body(backward_reduce_channels_last)
_gradient_of_columns = body(backward_input_channels_last)
_gradient_of_columns_parallel = parallel_body(backward_input_channels_last)


@helper
def is_contiguous(x: Any) -> bool:
    """Whether the values stand in C order without gaps, each at a multiple of its size."""
    if x.ctypes.data % x.itemsize:
        return False
    step = x.itemsize
    for axis in range(x.ndim - 1, -1, -1):
        if x.shape[axis] != 1 and x.strides[axis] != step:
            return False
        step *= x.shape[axis]
    return True


@helper
def mixed(bits: Any, place: Any) -> Any:
    """Return a number that differs for any other ``bits`` at this place. All have 32 bits."""
    bits = np.uint32(bits ^ np.uint32(place * np.uint32(0x9E3779B1)))
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x7FEB352D))
    bits = np.uint32((bits ^ (bits >> np.uint32(15))) * np.uint32(0x846CA68B))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@helper
def mixed_value(bits: Any, i: int, itemsize: int) -> Any:
    """Return `mixed` of the one or two words of a value."""
    if itemsize == 4:
        return mixed(bits[i], np.uint32(i))
    low = mixed(bits[2 * i], np.uint32(2 * i))
    return np.uint32(low + mixed(bits[2 * i + 1], np.uint32(2 * i + 1)))


@helper
def checksum(x: Any, step: int) -> Any:
    """Return a number that any other float32 value in flat ``x`` would change.

    Several changes at once, or a float64 value, go unnoticed once in 2**32 times. With ``step``
    above 1, it is of every ``step``-th value and the last one only. The steps that mix the bits are
    those of a well-known hash (C. Wellons, "hash-prospector").
    """
    bits = words(x)
    total = np.uint32(0)
    if step == 1:
        for i in range(bits.size):  # a loop that LLVM can vectorize
            total = np.uint32(total + mixed(bits[i], np.uint32(i)))
        return np.int64(total)
    for i in range(0, x.size, step):
        total = np.uint32(total + mixed_value(bits, i, x.itemsize))
    if (x.size - 1) % step:
        total = np.uint32(total + mixed_value(bits, x.size - 1, x.itemsize))
    return np.int64(total)


@kernel
def check_overwritten(x: In, step: Int) -> Int:
    """`checksum`, for Python."""
    token: int = checksum(x, step)
    return token


@helper
def are_plain(x: Any, y: Any) -> bool:
    """Whether y has the shape of x, both are contiguous, and apart or the very same memory."""
    if not (x.shape == y.shape and is_contiguous(x) and is_contiguous(y)):
        return False
    distance = abs(np.int64(x.ctypes.data) - np.int64(y.ctypes.data))  # addresses are unsigned
    apart: bool = distance == 0 or distance >= x.size * x.itemsize
    return apart


@plain_kernel
def infer(
    x: PlainIn,
    y: PlainOut,
    table: Table,
    eps: Float,
    streaming: Int,
    step: Int,
    residual: IfPlainResidual,
    activation: Activation,
    slope: Float,
    serial: IfSerial,
    parallel: IfParallel,
    runs: IfRuns,
    outer: Int,
    channels: Int,
    inner: Int,
    repeats: IfColumns,
    tail: IfColumns,
) -> Int:
    """Write y with the statistics in ``table``; return the checksum of x, `OVERWRITTEN` in place.

    ``y = activation(normalized x + residual)``, as in `nbbn.kernels.epilogue`.
    """
    if not are_plain(x, y):
        return REFUSED
    if residual is not None:  # noqa: SIM102 - alone, it is what numba removes
        if not are_plain(residual, y):
            return REFUSED
    added = flat(residual)
    source, target = flat(x), flat(y)
    token = checksum(source, step) if x.ctypes.data != y.ctypes.data else OVERWRITTEN
    row = channels * inner
    if runs is not None:
        view = outer, channels, inner, row, inner
        out = target, row, inner, streaming, added, row, inner, activation, slope, None, 0, 0
        if serial is not None:
            _normalize_runs(source, *view, table, eps, *out)
        if parallel is not None:
            _normalize_runs_parallel(source, *view, table, eps, *out)
    if repeats is not None:
        columns = outer, channels, inner, repeats, tail, row * repeats
        to = target, row * repeats, streaming, added, row * repeats, activation, slope, None, 0
        if serial is not None:
            _normalize_columns(source, *columns, table, eps, *to)
        if parallel is not None:
            _normalize_columns_parallel(source, *columns, table, eps, *to)
    return token


@plain_kernel
def train(
    x: PlainIn,
    y: PlainOut,
    params: Table,
    table: OutTable64,
    freedom: Float,
    eps: Float,
    streaming: Int,
    step: Int,
    serial: IfSerial,
    parallel: IfParallel,
    runs: IfRuns,
    outer: Int,
    channels: Int,
    inner: Int,
    repeats: IfColumns,
    tail: IfColumns,
) -> Int:
    """Write y, and the statistics of x; ``params`` holds gamma and beta. Return as `infer`."""
    if not are_plain(x, y):
        return REFUSED
    source, target = flat(x), flat(y)
    token = checksum(source, step) if x.ctypes.data != y.ctypes.data else OVERWRITTEN
    for c in range(channels):
        table[GAMMA, c], table[BETA, c] = params[GAMMA, c], params[BETA, c]
    row = channels * inner
    if runs is not None:
        view = outer, channels, inner, row, inner
        out = target, row, inner, streaming, None, 0, 0, (), 0.0, None
        if serial is not None:
            _train_runs(source, *view, freedom, eps, table, *out)
        if parallel is not None:
            _train_runs_parallel(source, *view, freedom, eps, table, *out)
    if repeats is not None:
        columns = outer, channels, inner, repeats, tail, row * repeats
        to = target, row * repeats, streaming, None, 0, (), 0.0, None, 0
        if serial is not None:
            _moments_of_columns(source, *columns, freedom, eps, table, None)
            _normalize_columns(source, *columns, table, eps, *to)
        if parallel is not None:
            _moments_of_columns_parallel(source, *columns, freedom, eps, table, None)
            _normalize_columns_parallel(source, *columns, table, eps, *to)
    return token


@plain_kernel
def collect_moments(
    x: PlainIn,
    table: OutTable64,
    freedom: Float,
    serial: IfSerial,
    parallel: IfParallel,
    runs: IfRuns,
    outer: Int,
    channels: Int,
    inner: Int,
    repeats: IfColumns,
    tail: IfColumns,
) -> Int:
    """Write the statistics of x; return 0, or `REFUSED`."""
    if not is_contiguous(x):
        return REFUSED
    source, row = flat(x), channels * inner
    if runs is not None:
        view = outer, channels, inner, row, inner
        if serial is not None:
            _moments_of_runs(source, *view, freedom, 0.0, table, None)
        if parallel is not None:
            _moments_of_runs_parallel(source, *view, freedom, 0.0, table, None)
    if repeats is not None:
        columns = outer, channels, inner, repeats, tail, row * repeats
        if serial is not None:
            _moments_of_columns(source, *columns, freedom, 0.0, table, None)
        if parallel is not None:
            _moments_of_columns_parallel(source, *columns, freedom, 0.0, table, None)
    return 0


@plain_kernel
def differentiate(
    grad_y: PlainIn,
    x: PlainIn,
    grad_x: PlainOut,
    gradients: OutTable,
    table: Table64,
    freedom: Float,
    token: Int,
    streaming: Int,
    step: Int,
    serial: IfSerial,
    parallel: IfParallel,
    runs: IfRuns,
    outer: Int,
    channels: Int,
    inner: Int,
    repeats: IfColumns,
    tail: IfColumns,
) -> Int:
    """Write grad_x, and grad_gamma and grad_beta to ``gradients``; ``table`` is as `train` left it.

    Return 0, `REFUSED`, or `OVERWRITTEN` where x has not the checksum ``token`` (negative: any).
    """
    if not (are_plain(x, grad_x) and are_plain(grad_y, grad_x)):
        return REFUSED
    grad, source, target = flat(grad_y), flat(x), flat(grad_x)
    if token >= 0 and checksum(source, step) != token:
        return OVERWRITTEN
    sums = np.empty((GRADIENT_ROWS, channels))
    for c in range(channels):
        sums[GRAD_MEAN, c], sums[GRAD_INV_STD, c] = table[MEAN, c], table[INV_STD, c]
        sums[GRAD_GAMMA, c] = table[GAMMA, c]
    count, row = float(x.size // channels), channels * inner
    if runs is not None:
        view = outer, channels, inner, row, inner, count, freedom
        out = target, row, inner, streaming, None
        if serial is not None:
            _backward_runs(grad, row, inner, source, *view, sums, *out)
        if parallel is not None:
            _backward_runs_parallel(grad, row, inner, source, *view, sums, *out)
    if repeats is not None:
        row *= repeats
        columns = outer, channels, inner, repeats, tail, row
        to = target, row, streaming, None
        if serial is not None:
            _sums_of_columns(grad, row, source, *columns, sums, None)
            _gradient_of_columns(grad, row, source, *columns, count, freedom, sums, *to)
        if parallel is not None:
            _sums_of_columns_parallel(grad, row, source, *columns, sums, None)
            _gradient_of_columns_parallel(grad, row, source, *columns, count, freedom, sums, *to)
    for c in range(channels):
        gradients[0, c] = sums[SUM_GRAD_DEVIATION, c] * sums[GRAD_INV_STD, c]
        gradients[1, c] = sums[SUM_GRAD, c]
    return 0
