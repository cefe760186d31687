"""Sixteen weights in registers: of numbers (float64), or of a mask (bytes: what is not 0 counts).

A mask is not converted: what compares the bytes with 0 gives the processor's mask registers directly. As
float64, masked moments of values in cache took 1.6 to 2.3 of the time of plain ones. Which of the two it is
is known when a kernel is compiled; and so is whether there are weights at all (numba does not remove a
``return None`` behind a test of an argument that is an array).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

from nbbn._compiler.memory import _pointer, load_vector_upto, place_in
from nbbn._compiler.vectors import FLOAT64X16, LANES, Emitting, _splat, intrinsic


class Bytes(types.Type):  # type: ignore[misc]
    """The numba type of sixteen bytes of a mask."""

    def __init__(self) -> None:
        super().__init__(name=f"Bytes(x {LANES})")


@register_model(Bytes)
class _BytesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Bytes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(ir.IntType(8), LANES))


BYTESX16 = Bytes()


def _vector_of(weights: Any) -> types.Type:
    if weights == types.none:
        return types.none
    return BYTESX16 if weights.dtype == types.uint8 else FLOAT64X16


def _counts(to: Emitting, weight: Any) -> Any:
    """The lanes whose weight is not 0."""
    compare = to.builder.fcmp_ordered if to.kinds[0] == FLOAT64X16 else to.builder.icmp_unsigned
    return compare("!=", weight, ir.Constant(weight.type, [0] * LANES))


@intrinsic(lambda rows, row, k, count: _vector_of(rows.types[0]))
def weight_at(to: Emitting, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """The weights of up to sixteen values of a row, zeros behind them; None of rows of None, here and below."""
    return load_vector_upto(to, to.kinds[0].types[0], *place_in(to, rows, row, k), count)


@intrinsic(lambda rows, row: _vector_of(rows.types[0]))
def weight_of_row(to: Emitting, rows: Any, row: Any) -> Any:
    """A vector with one weight in every lane: what the values of a row have in common."""
    weights = to.kinds[0].types[0]
    pointer = _pointer(to, weights, *place_in(to, rows, row, row.type(0)))
    scalar = to.context.get_value_type(_vector_of(weights)).element
    return _splat(to.builder, to.builder.load(to.builder.bitcast(pointer, scalar.as_pointer())))


@intrinsic(lambda weight, a, b: a)
def where_counted(to: Emitting, weight: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes whose weight is not 0, ``b`` in the others; ``a`` without weights."""
    return a if to.kinds[0] == types.none else to.builder.select(_counts(to, weight), a, b)


@intrinsic(types.boolean)
def all_count(to: Emitting, weight: Any) -> Any:
    """Whether no lane has weight 0; true without weights."""
    if to.kinds[0] == types.none:
        return ir.IntType(1)(1)
    bits = to.builder.bitcast(_counts(to, weight), ir.IntType(LANES))
    return to.builder.icmp_unsigned("==", bits, bits.type(-1))


@intrinsic(lambda weight, vector: vector)
def times_weight(to: Emitting, weight: Any, vector: Any) -> Any:
    """``vector`` times the weights; of a float64 vector that is 0 where they are. A mask, or None: 1."""
    return vector if to.kinds[0] in (BYTESX16, types.none) else to.builder.fmul(weight, vector)


@intrinsic(lambda n, weight, vector: vector if weight == types.none else FLOAT64X16)
def plus_weight(to: Emitting, n: Any, weight: Any, vector: Any) -> Any:
    """``n``, and the weights of the lanes that are not NaN; without any, integers in its bits: see `number_of`."""
    there = to.builder.fcmp_ordered("ord", vector, vector)
    if to.kinds[1] == types.none:
        bits = _integers(to.kinds[2])
        found = to.builder.sub(to.builder.bitcast(n, bits), to.builder.sext(there, bits))
        return to.builder.bitcast(found, n.type)
    if to.kinds[0] != FLOAT64X16:
        n = to.builder.fpext(n, weight.type)
    return to.builder.fadd(n, to.builder.select(there, weight, ir.Constant(weight.type, [0.0] * LANES)))


@intrinsic(FLOAT64X16)
def number_of(to: Emitting, weight: Any, n: Any) -> Any:
    """What `plus_weight` counted, as numbers."""
    if to.kinds[0] != types.none:
        return n
    wide = to.context.get_value_type(FLOAT64X16)
    return to.builder.sitofp(to.builder.bitcast(n, _integers(to.kinds[1])), wide)


def _integers(vector: Any) -> Any:
    return ir.VectorType(ir.IntType(int(vector.dtype.bitwidth)), LANES)
