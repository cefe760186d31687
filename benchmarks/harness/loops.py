"""More loops as those of `nbbn._bench.yardsticks`: a copy of bits, and two passes over a piece in cache."""

from __future__ import annotations

from typing import Any

from nbbn._bench.yardsticks import STRIDE, affine, fill_piece, read, sum_piece, write
from nbbn._compiler.jit import IfResidual, Int, OutStack, Stack, Variant, inlined, prange, step
from nbbn._compiler.memory import load
from nbbn._compiler.vectors import smaller

__all__ = ["STRIDE", "Variant", "copy", "read", "read_then_write", "write"]


@inlined
def _same(x: Any, second: Any, i: int, scale: Any, shift: Any) -> Any:
    return load(x, i)


@step
def copy(x: Stack, y: OutStack, streaming: Int) -> None:
    """Write ``y = x``, bit by bit: the limit of inference of half types, seen as float32."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start = piece * STRIDE
        fill_piece(_same, x, None, y, start, smaller(start + STRIDE, x.size), 0.0, streaming)


@step
def read_then_write(x: Stack, second: IfResidual, y: OutStack, streaming: Int) -> None:
    """`read` and `write` each piece while it is in cache, its sum in place of 0.25."""
    for piece in prange((x.size + STRIDE - 1) // STRIDE):
        start = piece * STRIDE
        stop = smaller(start + STRIDE, x.size)
        shift = sum_piece(x, second, start, stop)
        fill_piece(affine, x, second, y, start, stop, shift, streaming)
