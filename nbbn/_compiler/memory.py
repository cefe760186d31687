"""Vectors in memory: sixteen values loaded, stored, streamed past the cache, asked for ahead of time.

All of it addresses memory by element, counted from the first one of an array, and checks no bounds: kernels do their
own arithmetic on indices. Loads and stores convert from and to what is computed with (`nbbn._compiler.formats`). What
kernels call most stands here and not there: to compile a function takes numba some 0.05 s, an intrinsic next to
nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbbn._compiler import formats, interpreted
from nbbn._compiler.vectors import (
    _INT32,
    LANES,
    Emitting,
    _any,
    _call,
    _declare,
    _first_lanes,
    _rounded,
    _splat,
    _stored_vector,
    _vector_of,
    intrinsic,
)

_LINE = 64  # bytes of a cache line


class Rows(NamedTuple):
    """Rows of an array: value ``k`` of row ``r`` stands at ``at + r * stride + k``, in values."""

    values: Any  # or None: there is none
    at: int
    stride: int


# In a NamedTuple a constant is a type of its own, for which numba compiles anew; these have the type of others.
ZERO: Any = np.intp(0)
ONE: Any = np.intp(1)


def _size(dtype: types.Type) -> int:
    return int(dtype.bitwidth) // 8


def _made(to: Emitting, kind: Any, array: Any) -> Any:
    """An array as numba holds it: its data, strides and number of items."""
    return to.context.make_array(kind)(to.context, to.builder, value=array)


def _pointer(to: Emitting, kind: Any, array: Any, index: Any) -> Any:
    """Address of element ``index`` of an array, or of `lanes`, as a pointer to a vector."""
    data = array if isinstance(kind, types.CPointer) else _made(to, kind, array).data
    return to.builder.bitcast(to.builder.gep(data, [index]), _stored_vector(kind.dtype).as_pointer())


def _address(to: Emitting, kind: Any, array: Any, index: Any) -> Any:
    return to.builder.ptrtoint(_pointer(to, kind, array, index), index.type)


def place_in(to: Emitting, rows: Any, row: Any, k: Any) -> tuple[Any, Any]:
    """The array of `Rows`, and the index of value ``k`` of a row."""
    array, first, stride = (to.builder.extract_value(rows, part) for part in range(3))
    return array, to.builder.add(to.builder.add(first, to.builder.mul(row, stride)), k)


# --- what is loaded ---


@intrinsic(
    lambda number: types.CPointer(types.float64) if isinstance(number, types.IntegerLiteral) else None,
    lambda number: np.empty((number, LANES)),
)
def lanes(to: Emitting, number: Any) -> Any:
    """Room for a constant ``number`` of float64 vectors, as long as the function runs; of no certain content."""
    size = to.kinds[0].literal_value * LANES
    return cgutils.alloca_once(to.builder, ir.DoubleType(), size=ir.Constant(_INT32, size))


def _load(to: Emitting, kind: Any, array: Any, index: Any, count: Any = None) -> Any:
    """Sixteen values as they are stored, or the first ``count`` of them and zeros."""
    pointer, dtype = _pointer(to, kind, array, index), kind.dtype
    if count is None:
        return to.builder.load(pointer, align=_size(dtype))
    mask, vector = _first_lanes(to.builder, count), _stored_vector(dtype)
    name = f"llvm.masked.load.v{LANES}{formats.suffix(dtype)}.p0"
    function = _declare(to.builder, name, vector, [pointer.type, _INT32, mask.type, vector])
    zeros = ir.Constant(vector, [0] * LANES)
    return to.builder.call(function, [pointer, _INT32(_size(dtype)), mask, zeros])


def load_vector_upto(to: Emitting, kind: Any, array: Any, index: Any, count: Any) -> Any:
    """Sixteen values as they are stored, or the first ``count`` of them and zeros if that is less."""
    whole = to.builder.icmp_signed(">=", count, count.type(LANES))
    return _either(to, whole, lambda: _load(to, kind, array, index), lambda: _load(to, kind, array, index, count))


def _either(to: Emitting, test: Any, yes: Callable[[], Any], no: Callable[[], Any]) -> Any:
    """Do one of two things, where the test asks for it; return what it makes, if anything."""
    made = []
    with to.builder.if_else(test) as branches:
        for branch, make in zip(branches, (yes, no), strict=True):
            with branch:
                made.append((make(), to.builder.basic_block))
    if made[0][0] is None:
        return None
    found = to.builder.phi(made[0][0].type)
    for value, block in made:
        found.add_incoming(value, block)
    return found


@intrinsic(lambda array, index, count: types.none if array == types.none else _vector_of(array))
def load(to: Emitting, array: Any, index: Any, count: Any = None) -> Any:
    """Sixteen values of ``array`` from ``index`` on, or the first ``count`` of them and zeros; None of None."""
    kind, _, upto = to.kinds
    found = _load(to, kind, array, index) if upto == types.none else load_vector_upto(to, kind, array, index, count)
    return formats.decode(to.builder, kind.dtype, found)


def _places(to: Emitting, kind: Any, table: Any, first: Any, index: Any, number: int) -> list[Any]:
    """Where value ``index`` of some rows of a table stands; of `lanes`, a row is a vector."""
    builder, apart = to.builder, index.type(LANES if isinstance(kind, types.CPointer) else 1)
    if isinstance(kind, types.Array):
        for size in cgutils.unpack_tuple(builder, _made(to, kind, table).shape)[1:]:
            apart = builder.mul(apart, size)
    rows = (builder.add(first, index.type(row)) for row in range(number))
    return [builder.add(builder.mul(row, apart), index) for row in rows]


def _filled(like: Any, table: Any) -> types.Type:
    """The type of as many vectors as ``like`` says: see `load_rows`."""
    if table == types.none:
        return types.none
    if isinstance(like, types.Integer):
        return types.UniTuple(_vector_of(table), like.literal_value) if isinstance(like, types.IntegerLiteral) else None
    named = like.instance_class if isinstance(like, types.NamedTupleClass) else None
    number = len(named._fields) if named else len(like)
    return types.BaseTuple.from_types((_vector_of(table),) * number, named)


def _fill(to: Emitting, table: Any, first: Any, index: Any, load: Callable[[Any], Any]) -> Any:
    """What `_filled` is the type of, each vector loaded from its place."""
    places = _places(to, to.kinds[1], table, first, index, len(to.result))
    return to.context.make_tuple(to.builder, to.result, [load(place) for place in places])


@intrinsic(lambda like, table, first, index, count: _filled(like, table))
def load_rows(to: Emitting, like: Any, table: Any, first: Any, index: Any, count: Any) -> Any:
    """Up to sixteen values, from ``index`` on, of some rows of a table, the first of which is ``first``.

    They become a tuple: of a constant number of vectors, or like another tuple, or of the class of a NamedTuple. None
    of None.
    """
    kind = to.kinds[1]
    return _fill(to, table, first, index, lambda place: load_vector_upto(to, kind, table, place, count))


@intrinsic(lambda like, table, first, index, stride, count: _filled(like, table))
def load_every(to: Emitting, like: Any, table: Any, first: Any, index: Any, stride: Any, count: Any) -> Any:
    """`load_rows` of numbers (float64) that stand ``stride`` apart in their row."""
    close, kind = to.builder.icmp_signed("==", stride, stride.type(1)), to.kinds[1]

    def load(place: Any) -> Any:
        side_by_side = functools.partial(load_vector_upto, to, kind, table, place, count)
        return _either(to, close, side_by_side, lambda: _gather(to, kind, table, place, stride, count))

    return _fill(to, table, first, index, load)


@intrinsic(lambda like, table, first, index: _filled(like, table))
def splat_rows(to: Emitting, like: Any, table: Any, first: Any, index: Any) -> Any:
    """`load_rows` of one value a row, which is in every lane."""
    builder, data = to.builder, _made(to, to.kinds[1], table).data
    return _fill(to, table, first, index, lambda place: _splat(builder, builder.load(builder.gep(data, [place]))))


def _gather(to: Emitting, kind: Any, array: Any, index: Any, stride: Any, count: Any) -> Any:
    """The values of a load from places that stand apart."""
    builder, data = to.builder, _made(to, kind, array).data
    vector, number = _stored_vector(kind.dtype), index.type
    lanes = ir.Constant(ir.VectorType(number, LANES), list(range(LANES)))
    size = _splat(builder, number(_size(kind.dtype)))
    places = builder.add(_splat(builder, index), builder.mul(lanes, _splat(builder, stride)))
    first = _splat(builder, builder.ptrtoint(data, number))
    addresses = builder.add(first, builder.mul(places, size))
    pointers = builder.inttoptr(addresses, ir.VectorType(data.type, LANES))
    mask, name = _first_lanes(builder, count), f"llvm.masked.gather.v{LANES}f64.v{LANES}p0"
    function = _declare(builder, name, vector, [pointers.type, _INT32, mask.type, vector])
    return builder.call(function, [pointers, _INT32(8), mask, ir.Constant(vector, [0] * LANES)])


def _of_rows(rows: Any, row: Any, k: Any, count: Any) -> Any:
    return types.none if rows.types[0] == types.none else _vector_of(rows.types[0])


@intrinsic(_of_rows)
def at(to: Emitting, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """Values ``k`` to ``k + count`` of a row of `Rows`, at most sixteen, and zeros; None of rows of None."""
    kind = to.kinds[0].types[0]
    found = load_vector_upto(to, kind, *place_in(to, rows, row, k), count)
    return formats.decode(to.builder, kind.dtype, found)


@intrinsic(_of_rows)
def at_any(to: Emitting, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """`at`, and zeros of an array without values."""
    kind, builder = to.kinds[0].types[0], to.builder
    array, index = place_in(to, rows, row, k)
    size, zeros = _made(to, kind, array).nitems, ir.Constant(_stored_vector(kind.dtype), [0] * LANES)
    some = builder.icmp_signed("!=", size, size.type(0))
    found = _either(to, some, lambda: load_vector_upto(to, kind, array, index, count), lambda: zeros)
    return formats.decode(builder, kind.dtype, found)


def _stride(to: Emitting, array: Any, axis: int) -> Any:
    kind, number = to.kinds[0], to.context.get_value_type(types.intp)
    if kind == types.none:
        return number(0)
    return to.builder.sdiv(to.builder.extract_value(_made(to, kind, array).strides, axis), number(_size(kind.dtype)))


@intrinsic(types.intp, lambda stack: 0 if stack is None else stack.strides[0] // stack.itemsize)
def outer_stride(to: Emitting, stack: Any) -> Any:
    """How many values apart the matrices of a stack are; 0 of None."""
    return _stride(to, stack, 0)


@intrinsic(types.intp, lambda stack: 0 if stack is None else stack.strides[1] // stack.itemsize)
def row_stride(to: Emitting, stack: Any) -> Any:
    """How many values apart the rows of a stack are; 0 of None."""
    return _stride(to, stack, 1)


def _of_array(array: Any, *place: Any) -> types.Type:
    return types.NamedTuple((array, types.intp, types.intp), Rows)


def _rows(to: Emitting, array: Any, outer: Any, row: Any, first: Any, stride: Any) -> Any:
    builder = to.builder
    before = builder.add(builder.mul(outer, _stride(to, array, 0)), builder.mul(row, _stride(to, array, 1)))
    return to.context.make_tuple(builder, to.result, (array, builder.add(before, first), stride))


def _index(array: Any, outer: int, row: int, first: int) -> Any:
    return outer * outer_stride(array) + row * row_stride(array) + first


@intrinsic(
    _of_array,
    lambda array, outer, row, first, each: Rows(array, _index(array, outer, row, first), row_stride(array) * each),
)
def rows_of(to: Emitting, array: Any, outer: Any, row: Any, first: Any, each: Any) -> Any:
    """Every ``each``-th row of matrix ``outer`` from ``row`` on, from its value ``first`` on.

    The values of rows that are not there are None, here and below.
    """
    return _rows(to, array, outer, row, first, to.builder.mul(_stride(to, array, 1), each))


@intrinsic(
    _of_array, lambda array, outer, row, first: Rows(array, _index(array, outer, row, first), outer_stride(array))
)
def column_of(to: Emitting, array: Any, outer: Any, row: Any, first: Any) -> Any:
    """Row ``row`` of each matrix from ``outer`` on, from its value ``first`` on."""
    return _rows(to, array, outer, row, first, _stride(to, array, 0))


@intrinsic(None, lambda array, index: None)
def prefetch(to: Emitting, array: Any, index: Any) -> None:
    """Ask for the cache line of element ``index``, which may lie behind the end of the array."""
    pointer = to.builder.bitcast(_pointer(to, to.kinds[0], array, index), ir.IntType(8).as_pointer())
    arguments = [pointer.type, _INT32, _INT32, _INT32]
    function = _declare(to.builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
    to.builder.call(function, [pointer, _INT32(0), _INT32(2), _INT32(1)])  # read, second level, data


# --- what is stored ---


def _store(to: Emitting, kind: Any, array: Any, index: Any, value: Any, count: Any = None) -> None:
    """Write sixteen values as they are stored, or the first ``count`` of them."""
    pointer, dtype = _pointer(to, kind, array, index), kind.dtype
    if count is None:
        to.builder.store(value, pointer, align=_size(dtype))
        return
    mask, vector = _first_lanes(to.builder, count), _stored_vector(dtype)
    name = f"llvm.masked.store.v{LANES}{formats.suffix(dtype)}.p0"
    function = _declare(to.builder, name, ir.VoidType(), [vector, pointer.type, _INT32, mask.type])
    to.builder.call(function, [value, pointer, _INT32(_size(dtype)), mask])


def _stream(to: Emitting, kind: Any, array: Any, index: Any, value: Any) -> None:
    written = to.builder.store(value, _pointer(to, kind, array, index), align=_streamed_at_once(kind.dtype))
    written.set_metadata("nontemporal", to.builder.module.add_metadata([_INT32(1)]))


def _streamed_at_once(dtype: types.Type) -> int:
    """Bytes of a streaming store, which must stand at a multiple of them."""
    return min(_LINE, LANES * _size(dtype))


def _store_upto(to: Emitting, kind: Any, array: Any, index: Any, count: Any, value: Any) -> None:
    given = to, kind, array, index, formats.encode(to.builder, kind.dtype, value)
    whole = to.builder.icmp_signed(">=", count, count.type(LANES))
    _either(to, whole, lambda: _store(*given), lambda: _store(*given, count))


@intrinsic()
def store_first(to: Emitting, array: Any, index: Any, count: Any, value: Any) -> None:
    """Write the first ``count`` (at most sixteen) lanes of ``value``; touch nothing behind them."""
    _store(to, to.kinds[0], array, index, formats.encode(to.builder, to.kinds[0].dtype, value), count)


@intrinsic()
def store_rows(to: Emitting, table: Any, first: Any, index: Any, count: Any, vectors: Any) -> None:
    """Write up to sixteen values to ``index`` on, of some rows of a table: of each vector, rounded, those of a row."""
    kind, values = to.kinds[0], cgutils.unpack_tuple(to.builder, vectors)
    for value, place in zip(values, _places(to, kind, table, first, index, len(values)), strict=True):
        _store_upto(to, kind, table, place, count, _rounded(to, value, kind.dtype))


@intrinsic(None, lambda array, index, value, streaming: interpreted.store_first(array, index, LANES, value))
def put(to: Emitting, array: Any, index: Any, value: Any, streaming: Any) -> None:
    """Write the sixteen lanes of ``value`` to ``array`` from ``index`` on, past the cache if ``streaming``.

    Then element ``index`` must stand where `to_line` leads: at a multiple of 64 bytes, or of the vector's own
    size if that is less.
    """
    given = to, to.kinds[0], array, index, formats.encode(to.builder, to.kinds[0].dtype, value)
    past = to.builder.icmp_signed("!=", streaming, streaming.type(0))
    _either(to, past, lambda: _stream(*given), lambda: _store(*given))


@intrinsic()
def keep(to: Emitting, rows: Any, row: Any, k: Any, count: Any, value: Any) -> None:
    """Write the first ``count`` lanes to value ``k`` of a row on; nothing to rows of None."""
    kind = to.kinds[0].types[0]
    if kind != types.none:
        _store_upto(to, kind, *place_in(to, rows, row, k), count, value)


@intrinsic(types.intp, lambda array, index: 0)
def to_line(to: Emitting, array: Any, index: Any) -> Any:
    """How many elements stand between element ``index`` and where `put` may stream."""
    dtype, number = to.kinds[0].dtype, index.type
    address = _address(to, to.kinds[0], array, index)
    rest = to.builder.and_(to.builder.neg(address), number(_streamed_at_once(dtype) - 1))
    return to.builder.udiv(rest, number(_size(dtype)))


@intrinsic(None, lambda: None)
def fence(to: Emitting) -> None:
    """Make what was streamed visible to other threads; after the last `put` of a task that streams."""
    if to.builder.module.triple.startswith(("x86_64", "i686")):
        # x86 orders ordinary stores by itself, but not these.
        to.builder.call(_declare(to.builder, "llvm.x86.sse.sfence", ir.VoidType(), []), [])
    else:
        to.builder.fence("seq_cst")


# --- whether values are infinite, noted where they are read; nothing where nobody asks ---


def _room(noted: Any, array: Any) -> Any:
    return types.none if noted == types.none else types.CPointer(_vector_of(array).dtype)


@intrinsic(_room, lambda noted, array: None if noted is None else np.zeros(LANES, interpreted.working_dtype(array)))
def room_for_largest(to: Emitting, noted: Any, array: Any) -> Any:
    """Room for the largest sizes of values of ``array``, as long as the function runs; None without ``noted``."""
    zeros = ir.Constant(to.context.get_value_type(_vector_of(to.kinds[1])), [0.0] * LANES)
    room = cgutils.alloca_once(to.builder, zeros.type)
    to.builder.store(zeros, room)
    return to.builder.bitcast(room, zeros.type.element.as_pointer())


@intrinsic(None, lambda largest, x: None if largest is None else np.fmax(largest, np.abs(x), out=largest))
def note_largest(to: Emitting, largest: Any, x: Any) -> None:
    """Keep the sizes of ``x`` that are greater than those there, NaN none; nothing without room."""
    if to.kinds[0] == types.none:
        return
    room, size = to.builder.bitcast(largest, x.type.as_pointer()), _call(to.builder, "fabs", x)
    known = to.builder.load(room)
    is_greater = to.builder.fcmp_ordered(">", size, known)
    to.builder.store(to.builder.select(is_greater, size, known), room)


@intrinsic()
def note_infinite(to: Emitting, noted: Any, largest: Any) -> None:
    """Write 1 to ``noted`` if one of the sizes is infinite; nothing to None."""
    if to.kinds[0] == types.none:
        return
    vector = ir.VectorType(largest.type.pointee, LANES)
    sizes = to.builder.load(to.builder.bitcast(largest, vector.as_pointer()))
    found = to.builder.fcmp_ordered("==", sizes, ir.Constant(vector, [float("inf")] * LANES))
    with to.builder.if_then(_any(to, found), likely=False):
        data = _made(to, to.kinds[0], noted).data
        to.builder.store(data.type.pointee(1), data)
