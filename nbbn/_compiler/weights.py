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
from nbbn._compiler.vectors import FLOAT64X16, LANES, _intrinsic, _splat

_I1 = ir.IntType(1)


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


def _counts(builder: Any, weight: Any) -> Any:
    """The lanes whose weight is not 0."""
    zeros = ir.Constant(weight.type, [0] * LANES)
    if weight.type.element == ir.DoubleType():
        return builder.fcmp_ordered("!=", weight, zeros)
    return builder.icmp_unsigned("!=", weight, zeros)


@_intrinsic
def weight_at(typingctx: Any, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """The weights of up to sixteen values of a row, zeros behind them; None of rows of None, here and below."""
    weights = rows.types[0]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if weights == types.none:
            return context.get_dummy_value()
        array, index = place_in(builder, *args[:3])
        return load_vector_upto(context, builder, weights, array, index, args[3])

    return _vector_of(weights)(rows, types.intp, types.intp, types.intp), codegen


@_intrinsic
def weight_of_row(typingctx: Any, rows: Any, row: Any) -> Any:
    """A vector with one weight in every lane: what the values of a row have in common."""
    weights = rows.types[0]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if weights == types.none:
            return context.get_dummy_value()
        array, index = place_in(builder, args[0], args[1], args[1].type(0))
        pointer = _pointer(context, builder, weights, array, index)
        scalar = context.get_value_type(_vector_of(weights)).element
        return _splat(builder, builder.load(builder.bitcast(pointer, scalar.as_pointer())))

    return _vector_of(weights)(rows, types.intp), codegen


@_intrinsic
def where_counted(typingctx: Any, weight: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes whose weight is not 0, ``b`` in the others; ``a`` without weights."""
    if weight == types.none:
        return a(weight, a, a), lambda context, builder, sig, args: args[1]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_counts(builder, args[0]), args[1], args[2])

    return a(weight, a, a), codegen


@_intrinsic
def all_count(typingctx: Any, weight: Any) -> Any:
    """Whether no lane has weight 0; true without weights."""
    if weight == types.none:
        return types.boolean(weight), lambda context, builder, sig, args: ir.Constant(_I1, 1)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(_counts(builder, args[0]), ir.IntType(LANES))
        return builder.icmp_unsigned("==", bits, ir.Constant(bits.type, -1))

    return types.boolean(weight), codegen


@_intrinsic
def times_weight(typingctx: Any, weight: Any, vector: Any) -> Any:
    """``vector`` times the weights; of a float64 vector that is 0 where they are. A mask, or None: 1."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[1] if weight in (BYTESX16, types.none) else builder.fmul(*args)

    return vector(weight, vector), codegen


@_intrinsic
def plus_weight(typingctx: Any, n: Any, weight: Any, vector: Any) -> Any:
    """``n``, and the weights of the lanes that are not NaN; without any, integers in its bits: see `number_of`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        n, weights, value = args
        there = builder.fcmp_ordered("ord", value, value)
        if weight == types.none:
            bits = _integers(vector)
            found = builder.sub(builder.bitcast(n, bits), builder.sext(there, bits))
            return builder.bitcast(found, n.type)
        wide = context.get_value_type(FLOAT64X16)
        n = n if n.type == wide else builder.fpext(n, wide)
        zeros = ir.Constant(wide, [0.0] * LANES)
        return builder.fadd(n, builder.select(there, weights, zeros))

    return (vector if weight == types.none else FLOAT64X16)(n, weight, vector), codegen


@_intrinsic
def number_of(typingctx: Any, weight: Any, n: Any) -> Any:
    """What `plus_weight` counted, as numbers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if weight != types.none:
            return args[1]
        wide = context.get_value_type(FLOAT64X16)
        return builder.sitofp(builder.bitcast(args[1], _integers(n)), wide)

    return FLOAT64X16(weight, n), codegen


def _integers(vector: Any) -> Any:
    return ir.VectorType(ir.IntType(int(vector.dtype.bitwidth)), LANES)
