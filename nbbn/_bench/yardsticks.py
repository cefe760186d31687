"""What memory allows: loops that read and write and compute next to nothing, to compare with.

Arrays are stacks of one row, (1, 1, n). A loop reads one or two of them (``second`` may be None; `Variant` calls
it residual); a piece is at most `STRIDE` values. Where ``streaming``, the target begins at a multiple of 64
bytes. The last few values, fewer than sixteen, are left out.
"""

from __future__ import annotations

from typing import Any

from nbbn._compiler.jit import IfResidual, Int, OutStack, Stack, helper, inlined, prange, step
from nbbn._compiler.jit import Variant as Variant
from nbbn._compiler.memory import fence, load, put
from nbbn._compiler.vectors import LANES, fma, narrow, plus, smaller, splat, total, widen

STRIDE = 1 << 14  # values of a piece: three float32 arrays of 64 KB stay in a core's cache


@helper
def sum_piece(x: Any, second: Any, start: int, stop: int) -> Any:
    """Return the sum of a piece, from more accumulators than an addition has cycles of latency."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(x.dtype.type(0.0))
    i = start
    while i + 8 * LANES <= stop:
        s0 = plus(s0 + load(x, i), load(second, i))
        s1 = plus(s1 + load(x, i + LANES), load(second, i + LANES))
        s2 = plus(s2 + load(x, i + 2 * LANES), load(second, i + 2 * LANES))
        s3 = plus(s3 + load(x, i + 3 * LANES), load(second, i + 3 * LANES))
        s4 = plus(s4 + load(x, i + 4 * LANES), load(second, i + 4 * LANES))
        s5 = plus(s5 + load(x, i + 5 * LANES), load(second, i + 5 * LANES))
        s6 = plus(s6 + load(x, i + 6 * LANES), load(second, i + 6 * LANES))
        s7 = plus(s7 + load(x, i + 7 * LANES), load(second, i + 7 * LANES))
        i += 8 * LANES
    while i + LANES <= stop:
        s0 = plus(s0 + load(x, i), load(second, i))
        i += LANES
    return total(((s0 + s1) + (s2 + s3)) + ((s4 + s5) + (s6 + s7)))


@inlined
def affine(x: Any, second: Any, i: int, scale: Any, shift: Any) -> Any:
    """Return sixteen values of what is written."""
    return fma(load(x, i), scale, plus(shift, load(second, i)))


@helper
def fill_piece(value: Any, x: Any, second: Any, y: Any, start: int, stop: int, shift: Any, streaming: int) -> None:
    """Write a piece of y: ``value`` of each place."""
    a, b = narrow(y, splat(0.75)), narrow(y, widen(splat(shift)))
    i = start
    while i + 4 * LANES <= stop:
        put(y, i, value(x, second, i, a, b), streaming)
        put(y, i + LANES, value(x, second, i + LANES, a, b), streaming)
        put(y, i + 2 * LANES, value(x, second, i + 2 * LANES, a, b), streaming)
        put(y, i + 3 * LANES, value(x, second, i + 3 * LANES, a, b), streaming)
        i += 4 * LANES
    while i + LANES <= stop:
        put(y, i, value(x, second, i, a, b), streaming)
        i += LANES
    if streaming:
        fence()


@step
def write(x: Stack, second: IfResidual, y: OutStack, streaming: Int) -> None:
    """Write ``y = 0.75 x + second + 0.25``: the limit of inference; of bytes, float32 is written."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start = piece * STRIDE
        fill_piece(affine, x, second, y, start, smaller(start + STRIDE, x.size), 0.25, streaming)


@step
def read(x: Stack, second: IfResidual, sums: OutStack) -> None:
    """Sum each piece: the limit of moments."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start = piece * STRIDE
        sums[0, 0, piece] = sum_piece(x, second, start, smaller(start + STRIDE, x.size))
