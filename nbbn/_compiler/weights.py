"""Sixteen weights in registers: of numbers (float64), or of a mask (bytes: what is not 0 counts).

A mask is not converted: what compares the bytes with 0 gives the processor's mask registers directly. As
float64, masked moments of values in cache took 1.6 to 2.3 of the time of plain ones. Which of the two it is
is known when a kernel is compiled; and so is whether there are weights at all (numba does not remove a
``return None`` behind a test of an argument that is an array).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types

from nbbn._compiler.memory import _pointer, load_vector_upto, place_in
from nbbn._compiler.vectors import FLOAT64X16, LANES, Emitting, Vector, _splat, intrinsic


class RowWeights(NamedTuple):
    """Weights of rows whose values, of different channels, share one: that of row ``r`` stands at ``at + r``."""

    values: Any  # or None: there is none
    at: int


BYTESX16 = Vector(types.uint8)


def _vector_of(rows: Any, row: Any, k: Any, count: Any) -> types.Type:
    weights = rows.types[0]
    if weights == types.none:
        return types.none
    return BYTESX16 if weights.dtype == types.uint8 else FLOAT64X16


def _counts(to: Emitting, weight: Any) -> Any:
    """The lanes whose weight is not 0."""
    compare = to.builder.fcmp_ordered if to.kinds[0] == FLOAT64X16 else to.builder.icmp_unsigned
    return compare("!=", weight, ir.Constant(weight.type, [0] * LANES))


@intrinsic(_vector_of)
def weight_at(to: Emitting, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """The weights of up to sixteen values of `Rows` or `RowWeights`; None of rows of None, here and below."""
    weights, builder = to.kinds[0].types[0], to.builder
    if to.kinds[0].instance_class is not RowWeights:
        return load_vector_upto(to, weights, *place_in(to, rows, row, k), count)
    index = builder.add(builder.extract_value(rows, 1), row)
    pointer = _pointer(to, weights, builder.extract_value(rows, 0), index)
    scalar = to.context.get_value_type(to.result).element
    return _splat(builder, builder.load(builder.bitcast(pointer, scalar.as_pointer())))


@intrinsic(lambda weight, a, b: a, lambda weight, a, b: a if weight is None else np.where(weight != 0, a, b))
def where_counted(to: Emitting, weight: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes whose weight is not 0, ``b`` in the others; ``a`` without weights."""
    return a if to.kinds[0] == types.none else to.builder.select(_counts(to, weight), a, b)


@intrinsic(types.boolean, lambda weight: weight is None or bool(np.all(weight != 0)))
def all_count(to: Emitting, weight: Any) -> Any:
    """Whether no lane has weight 0; true without weights."""
    if to.kinds[0] == types.none:
        return ir.IntType(1)(1)
    bits = to.builder.bitcast(_counts(to, weight), ir.IntType(LANES))
    return to.builder.icmp_unsigned("==", bits, bits.type(-1))


@intrinsic(
    lambda weight, vector: vector,
    lambda weight, vector: vector if weight is None or weight.dtype == np.uint8 else weight * vector,
)
def times_weight(to: Emitting, weight: Any, vector: Any) -> Any:
    """``vector`` times the weights; of a float64 vector that is 0 where they are. A mask, or None: 1."""
    return vector if to.kinds[0] in (BYTESX16, types.none) else to.builder.fmul(weight, vector)


@intrinsic(
    lambda n, weight, vector: vector if weight == types.none else FLOAT64X16,
    lambda n, weight, vector: n + np.where(np.isnan(vector), 0, 1 if weight is None else weight),
)
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


@intrinsic(FLOAT64X16, lambda weight, n: n.astype(np.float64))
def number_of(to: Emitting, weight: Any, n: Any) -> Any:
    """What `plus_weight` counted, as numbers."""
    if to.kinds[0] != types.none:
        return n
    wide = to.context.get_value_type(FLOAT64X16)
    return to.builder.sitofp(to.builder.bitcast(n, _integers(to.kinds[1])), wide)


def _integers(vector: Any) -> Any:
    return ir.VectorType(ir.IntType(int(vector.dtype.bitwidth)), LANES)
