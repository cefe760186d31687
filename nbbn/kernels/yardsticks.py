"""What memory allows: loops that read and write and compute next to nothing, to compare with.

Arrays are flat and contiguous; a piece is at most `STRIDE` values. Where ``streaming``, the target
begins at a multiple of 64 bytes. The last few values, fewer than sixteen, are left out.
"""

from __future__ import annotations

from typing import Any

from numba import prange

from nbbn._jit import In, Int, Out, helper, kernel
from nbbn._simd import LANES, fence, fma, load, narrow, splat, total, widen
from nbbn.kernels.vectors import put

STRIDE = 1 << 14  # values of a piece: three float32 arrays of 64 KB stay in a core's cache


@helper
def _read_piece(x: Any, start: int, stop: int) -> Any:
    """Return the sum, from more accumulators than an addition has cycles of latency."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(x.dtype.type(0.0))
    i = start
    while i + 8 * LANES <= stop:
        s0 = s0 + load(x, i)
        s1 = s1 + load(x, i + LANES)
        s2 = s2 + load(x, i + 2 * LANES)
        s3 = s3 + load(x, i + 3 * LANES)
        s4 = s4 + load(x, i + 4 * LANES)
        s5 = s5 + load(x, i + 5 * LANES)
        s6 = s6 + load(x, i + 6 * LANES)
        s7 = s7 + load(x, i + 7 * LANES)
        i += 8 * LANES
    while i + LANES <= stop:
        s0 = s0 + load(x, i)
        i += LANES
    return total(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))


@helper
def _read_two_pieces(a: Any, b: Any, start: int, stop: int) -> Any:
    """Return the sum of both."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(a.dtype.type(0.0))
    i = start
    while i + 4 * LANES <= stop:
        s0 = s0 + load(a, i)
        s1 = s1 + load(b, i)
        s2 = s2 + load(a, i + LANES)
        s3 = s3 + load(b, i + LANES)
        s4 = s4 + load(a, i + 2 * LANES)
        s5 = s5 + load(b, i + 2 * LANES)
        s6 = s6 + load(a, i + 3 * LANES)
        s7 = s7 + load(b, i + 3 * LANES)
        i += 4 * LANES
    while i + LANES <= stop:
        s0 = s0 + load(a, i)
        s1 = s1 + load(b, i)
        i += LANES
    return total(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))


@helper
def _affine_piece(x: Any, y: Any, start: int, stop: int, shift: Any, streaming: int) -> None:
    """Write ``y = 0.75 * x + shift``."""
    a, b = narrow(y, splat(0.75)), narrow(y, widen(splat(shift)))
    i = start
    while i + 4 * LANES <= stop:
        put(y, i, fma(load(x, i), a, b), streaming)
        put(y, i + LANES, fma(load(x, i + LANES), a, b), streaming)
        put(y, i + 2 * LANES, fma(load(x, i + 2 * LANES), a, b), streaming)
        put(y, i + 3 * LANES, fma(load(x, i + 3 * LANES), a, b), streaming)
        i += 4 * LANES
    while i + LANES <= stop:
        put(y, i, fma(load(x, i), a, b), streaming)
        i += LANES
    if streaming:
        fence()


@helper
def _combine_piece(
    a: Any, b: Any, y: Any, start: int, stop: int, shift: Any, streaming: int
) -> None:
    """Write ``y = 0.75 * a + b + shift``."""
    c, d = narrow(y, splat(0.75)), narrow(y, widen(splat(shift)))
    i = start
    while i + 2 * LANES <= stop:
        put(y, i, fma(load(a, i), c, load(b, i) + d), streaming)
        put(y, i + LANES, fma(load(a, i + LANES), c, load(b, i + LANES) + d), streaming)
        i += 2 * LANES
    while i + LANES <= stop:
        put(y, i, fma(load(a, i), c, load(b, i) + d), streaming)
        i += LANES
    if streaming:
        fence()


@helper
def _copy_piece(x: Any, y: Any, start: int, stop: int, streaming: int) -> None:
    """Write ``y = x``."""
    i = start
    while i + 4 * LANES <= stop:
        put(y, i, load(x, i), streaming)
        put(y, i + LANES, load(x, i + LANES), streaming)
        put(y, i + 2 * LANES, load(x, i + 2 * LANES), streaming)
        put(y, i + 3 * LANES, load(x, i + 3 * LANES), streaming)
        i += 4 * LANES
    while i + LANES <= stop:
        put(y, i, load(x, i), streaming)
        i += LANES
    if streaming:
        fence()


@kernel
def copy(x: In, y: Out, streaming: Int) -> None:
    """Read x, write y, bit by bit: the limit of inference of half types, seen as float32."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        _copy_piece(x, y, piece * STRIDE, min(piece * STRIDE + STRIDE, x.size), streaming)


@kernel
def copy_affine(x: In, y: Out, streaming: Int) -> None:
    """Read x, write y: the limit of inference; of bytes, float32 is written."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start, stop = piece * STRIDE, min(piece * STRIDE + STRIDE, x.size)
        _affine_piece(x, y, start, stop, 0.25, streaming)


@kernel
def read(x: In, sums: Out) -> None:
    """Read x: the limit of moments. ``sums`` has a value for each piece."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        sums[piece] = _read_piece(x, piece * STRIDE, min(piece * STRIDE + STRIDE, x.size))


@kernel
def read_two(a: In, b: In, sums: Out) -> None:
    """Read two arrays: the first trip of backward."""
    for piece in prange((a.size + STRIDE - 1) // STRIDE):
        sums[piece] = _read_two_pieces(a, b, piece * STRIDE, min(piece * STRIDE + STRIDE, a.size))


@kernel
def combine(a: In, b: In, y: Out, streaming: Int) -> None:
    """Read two arrays, write one: the second trip of backward, and the limit with a residual."""
    for piece in prange((a.size + STRIDE - 1) // STRIDE):
        start, stop = piece * STRIDE, min(piece * STRIDE + STRIDE, a.size)
        _combine_piece(a, b, y, start, stop, 0.25, streaming)


@kernel
def read_then_affine(x: In, y: Out, streaming: Int) -> None:
    """Both trips of training over each piece while it is in cache."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start, stop = piece * STRIDE, min(piece * STRIDE + STRIDE, x.size)
        _affine_piece(x, y, start, stop, _read_piece(x, start, stop), streaming)


@kernel
def read_two_then_combine(a: In, b: In, y: Out, streaming: Int) -> None:
    """Both trips of backward over each piece while it is in cache."""
    for piece in prange((a.size + STRIDE - 1) // STRIDE):
        start, stop = piece * STRIDE, min(piece * STRIDE + STRIDE, a.size)
        _combine_piece(a, b, y, start, stop, _read_two_pieces(a, b, start, stop), streaming)
