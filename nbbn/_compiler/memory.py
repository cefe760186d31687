"""Vectors in memory: sixteen values loaded, stored, streamed past the cache, asked for ahead of time.

All of it addresses memory by element, counted from the first one of an array, and checks no bounds: kernels do their
own arithmetic on indices. Loads and stores convert from and to what is computed with (`nbbn._compiler.formats`). What
kernels call most stands here and not there: to compile a function takes numba some 0.05 s, an intrinsic next to
nothing. Under ``NUMBA_DISABLE_JIT`` the twins in ``interpreted`` stand in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbbn._compiler import formats
from nbbn._compiler.vectors import (
    _INT32,
    LANES,
    _call,
    _declare,
    _first_lanes,
    _intrinsic,
    _nothing,
    _splat,
    _stored_vector,
    _vector_of,
)

_LINE = 64  # bytes of a cache line


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of element ``index`` of an array, or of `lanes`, as a pointer to a vector."""
    if isinstance(array_type, types.CPointer):
        data = array
    else:
        data = context.make_array(array_type)(context, builder, value=array).data
    element = builder.gep(data, [index])
    return builder.bitcast(element, _stored_vector(array_type.dtype).as_pointer())


def _itemsize(dtype: types.Type) -> int:
    return int(dtype.bitwidth) // 8


@_intrinsic
def lanes(typingctx: Any, number: Any) -> Any:
    """Room for a constant ``number`` of float64 vectors, as long as the function runs; of no certain content."""
    if not isinstance(number, types.IntegerLiteral):
        return None
    size = number.literal_value * LANES

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return cgutils.alloca_once(builder, ir.DoubleType(), size=ir.Constant(_INT32, size))

    return types.CPointer(types.float64)(number), codegen


def load_vector(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = None) -> Any:
    """Sixteen values as they are stored, or the first ``count`` of them and zeros."""
    pointer = _pointer(context, builder, array_type, array, index)
    dtype = array_type.dtype
    if count is None:
        return builder.load(pointer, align=_itemsize(dtype))
    mask, vector = _first_lanes(builder, count), _stored_vector(dtype)
    name = f"llvm.masked.load.v{LANES}{formats.suffix(dtype)}.p0"
    function = _declare(builder, name, vector, [pointer.type, _INT32, mask.type, vector])
    zeros = ir.Constant(vector, [0] * LANES)
    return builder.call(function, [pointer, _INT32(_itemsize(dtype)), mask, zeros])


@_intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Sixteen values of ``array`` from ``index`` on; None of None."""
    if array == types.none:
        return _nothing(array, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = load_vector(context, builder, array, *args)
        return formats.decode(builder, array.dtype, found)

    return _vector_of(array)(array, types.intp), codegen


def load_vector_upto(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any) -> Any:
    """Sixteen values as they are stored, or the first ``count`` of them and zeros if that is less."""
    whole = builder.icmp_signed(">=", count, count.type(LANES))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            full = load_vector(context, builder, array_type, array, index)
            of_full = builder.basic_block
        with otherwise:
            part = load_vector(context, builder, array_type, array, index, count)
            of_part = builder.basic_block
    found = builder.phi(full.type)
    found.add_incoming(full, of_full)
    found.add_incoming(part, of_part)
    return found


@_intrinsic
def load_upto(typingctx: Any, array: Any, index: Any, count: Any) -> Any:
    """Sixteen values from ``index`` on, or the first ``count`` of them and zeros; None of None."""
    if array == types.none:
        return _nothing(array, types.intp, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = load_vector_upto(context, builder, array, *args)
        return formats.decode(builder, array.dtype, found)

    return _vector_of(array)(array, types.intp, types.intp), codegen


@_intrinsic
def load_every(typingctx: Any, array: Any, index: Any, stride: Any, count: Any) -> Any:
    """`load_upto` of numbers (float64) that stand ``stride`` apart."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values, index, stride, count = args
        close = builder.icmp_signed("==", stride, stride.type(1))
        with builder.if_else(close) as (then, otherwise):
            with then:
                side_by_side = load_vector_upto(context, builder, array, values, index, count)
                of_side_by_side = builder.basic_block
            with otherwise:
                apart = _gather(context, builder, array, values, index, stride, count)
                of_apart = builder.basic_block
        found = builder.phi(apart.type)
        found.add_incoming(side_by_side, of_side_by_side)
        found.add_incoming(apart, of_apart)
        return found

    return _vector_of(array)(array, types.intp, types.intp, types.intp), codegen


def _gather(context: Any, builder: Any, array_type: Any, array: Any, index: Any, stride: Any, count: Any) -> Any:
    """The values of a load from places that stand apart."""
    data = context.make_array(array_type)(context, builder, value=array).data
    vector, number = _stored_vector(array_type.dtype), index.type
    lanes = ir.Constant(ir.VectorType(number, LANES), list(range(LANES)))
    size = _splat(builder, number(_itemsize(array_type.dtype)))
    places = builder.add(_splat(builder, index), builder.mul(lanes, _splat(builder, stride)))
    first = _splat(builder, builder.ptrtoint(data, number))
    addresses = builder.add(first, builder.mul(places, size))
    pointers = builder.inttoptr(addresses, ir.VectorType(data.type, LANES))
    mask, name = _first_lanes(builder, count), f"llvm.masked.gather.v{LANES}f64.v{LANES}p0"
    function = _declare(builder, name, vector, [pointers.type, _INT32, mask.type, vector])
    return builder.call(function, [pointers, _INT32(8), mask, ir.Constant(vector, [0] * LANES)])


def place_in(builder: Any, rows: Any, row: Any, k: Any) -> tuple[Any, Any]:
    """The array of `nbbn._kernels.memory.Rows`, and the index of value ``k`` of a row."""
    array, first, stride = (builder.extract_value(rows, part) for part in range(3))
    return array, builder.add(builder.add(first, builder.mul(row, stride)), k)


@_intrinsic
def at(typingctx: Any, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """Values ``k`` to ``k + count`` of a row, at most sixteen, and zeros; None of rows of None.

    ``rows`` are `nbbn._kernels.memory.Rows`.
    """
    array_type = rows.types[0]
    places = types.intp, types.intp, types.intp
    if array_type == types.none:
        return _nothing(rows, *places)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, index = place_in(builder, *args[:3])
        found = load_vector_upto(context, builder, array_type, array, index, args[3])
        return formats.decode(builder, array_type.dtype, found)

    return _vector_of(array_type)(rows, *places), codegen


@_intrinsic
def at_any(typingctx: Any, rows: Any, row: Any, k: Any, count: Any) -> Any:
    """`at`, and zeros of an array without values."""
    array_type = rows.types[0]
    places = types.intp, types.intp, types.intp
    if array_type == types.none:
        return _nothing(rows, *places)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array, index = place_in(builder, *args[:3])
        size = context.make_array(array_type)(context, builder, value=array).nitems
        before, zeros = builder.basic_block, ir.Constant(_stored_vector(array_type.dtype), [0] * LANES)
        with builder.if_then(builder.icmp_signed("!=", size, size.type(0))):
            values = load_vector_upto(context, builder, array_type, array, index, args[3])
            of_values = builder.basic_block
        found = builder.phi(values.type)
        found.add_incoming(zeros, before)
        found.add_incoming(values, of_values)
        return formats.decode(builder, array_type.dtype, found)

    return _vector_of(array_type)(rows, *places), codegen


def _stride_of(array: Any, axis: int) -> Any:
    """What an intrinsic returns that tells how far apart neighbours along an axis are; 0 of None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = context.get_value_type(types.intp)
        if array == types.none:
            return number(0)
        strides = context.make_array(array)(context, builder, value=args[0]).strides
        return builder.sdiv(builder.extract_value(strides, axis), number(_itemsize(array.dtype)))

    return types.intp(array), codegen


@_intrinsic
def outer_stride(typingctx: Any, stack: Any) -> Any:
    """How many values apart the matrices of a stack are; 0 of None."""
    return _stride_of(stack, 0)


@_intrinsic
def row_stride(typingctx: Any, stack: Any) -> Any:
    """How many values apart the rows of a stack are; 0 of None."""
    return _stride_of(stack, 1)


@_intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element ``index``, which may lie behind the end of the array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(_pointer(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer())
        arguments = [pointer.type, _INT32, _INT32, _INT32]
        function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
        builder.call(function, [pointer, _INT32(0), _INT32(2), _INT32(1)])  # read, second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _store(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    pointer = _pointer(context, builder, array_type, array, index)
    builder.store(value, pointer, align=_itemsize(array_type.dtype))


def _store_first(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any, value: Any) -> None:
    pointer, dtype = _pointer(context, builder, array_type, array, index), array_type.dtype
    mask, vector = _first_lanes(builder, count), _stored_vector(dtype)
    name = f"llvm.masked.store.v{LANES}{formats.suffix(dtype)}.p0"
    arguments = [vector, pointer.type, _INT32, mask.type]
    function = _declare(builder, name, ir.VoidType(), arguments)
    builder.call(function, [value, pointer, _INT32(_itemsize(dtype)), mask])


def _stream(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    pointer = _pointer(context, builder, array_type, array, index)
    written = builder.store(value, pointer, align=_streamed_at_once(array_type.dtype))
    written.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))


def _streamed_at_once(dtype: types.Type) -> int:
    """Bytes of a streaming store, which must stand at a multiple of them."""
    return min(_LINE, LANES * _itemsize(dtype))


def _store_upto(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any, value: Any) -> None:
    value = formats.encode(builder, array_type.dtype, value)
    whole = builder.icmp_signed(">=", count, count.type(LANES))
    with builder.if_else(whole) as (then, otherwise):
        with then:
            _store(context, builder, array_type, array, index, value)
        with otherwise:
            _store_first(context, builder, array_type, array, index, count, value)


@_intrinsic
def store_first(typingctx: Any, array: Any, index: Any, count: Any, value: Any) -> Any:
    """Write the first ``count`` (at most sixteen) lanes of ``value``; touch nothing behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = formats.encode(builder, array.dtype, args[3])
        _store_first(context, builder, sig.args[0], args[0], args[1], args[2], value)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _vector_of(array)), codegen


@_intrinsic
def store_upto(typingctx: Any, array: Any, index: Any, count: Any, value: Any) -> Any:
    """Write sixteen lanes to ``index`` on, or the first ``count`` of them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store_upto(context, builder, sig.args[0], *args)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, _vector_of(array)), codegen


@_intrinsic
def put(typingctx: Any, array: Any, index: Any, value: Any, streaming: Any) -> Any:
    """Write the sixteen lanes of ``value`` to ``array`` from ``index`` on, past the cache if ``streaming``.

    Then element ``index`` must stand where `to_line` leads: at a multiple of 64 bytes, or of the vector's own
    size if that is less.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = formats.encode(builder, array.dtype, args[2])
        past = builder.icmp_signed("!=", args[3], args[3].type(0))
        with builder.if_else(past) as (then, otherwise):
            with then:
                _stream(context, builder, sig.args[0], args[0], args[1], value)
            with otherwise:
                _store(context, builder, sig.args[0], args[0], args[1], value)
        return context.get_dummy_value()

    return types.void(array, types.intp, _vector_of(array), types.intp), codegen


@_intrinsic
def keep(typingctx: Any, rows: Any, row: Any, k: Any, count: Any, value: Any) -> Any:
    """Write the first ``count`` lanes to value ``k`` of a row on; nothing to rows of None."""
    array_type = rows.types[0]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if array_type != types.none:
            array, index = place_in(builder, *args[:3])
            _store_upto(context, builder, array_type, array, index, args[3], args[4])
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, types.intp, value), codegen


@_intrinsic
def to_line(typingctx: Any, array: Any, index: Any) -> Any:
    """How many elements stand between element ``index`` and where `put` may stream."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        number = args[1].type
        address = builder.ptrtoint(pointer, number)
        unit = _streamed_at_once(array.dtype)
        rest = builder.and_(builder.neg(address), number(unit - 1))
        return builder.udiv(rest, number(_itemsize(array.dtype)))

    return types.intp(array, types.intp), codegen


@_intrinsic
def fence(typingctx: Any) -> Any:
    """Make what was streamed visible to other threads; after the last `put` of a task that streams."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if builder.module.triple.startswith(("x86_64", "i686")):
            # x86 orders ordinary stores by itself, but not these.
            builder.call(_declare(builder, "llvm.x86.sse.sfence", ir.VoidType(), []), [])
        else:
            builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


# --- whether values are infinite, noted where they are read; nothing where nobody asks ---


@_intrinsic
def room_for_largest(typingctx: Any, noted: Any, array: Any) -> Any:
    """Room for the largest sizes of values of ``array``, as long as the function runs; None without ``noted``."""
    if noted == types.none:
        return _nothing(noted, array)
    vector = _vector_of(array)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zeros = ir.Constant(context.get_value_type(vector), [0.0] * LANES)
        room = cgutils.alloca_once(builder, zeros.type)
        builder.store(zeros, room)
        return builder.bitcast(room, zeros.type.element.as_pointer())

    return types.CPointer(vector.dtype)(noted, array), codegen


@_intrinsic
def note_largest(typingctx: Any, largest: Any, x: Any) -> Any:
    """Keep the sizes of ``x`` that are greater than those there, NaN none; nothing without room."""
    if largest == types.none:
        return _nothing(largest, x)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        room, size = builder.bitcast(args[0], args[1].type.as_pointer()), _call(builder, "fabs", args[1])
        known = builder.load(room)
        is_greater = builder.fcmp_ordered(">", size, known)
        builder.store(builder.select(is_greater, size, known), room)
        return context.get_dummy_value()

    return types.void(largest, x), codegen


@_intrinsic
def note_infinite(typingctx: Any, noted: Any, largest: Any) -> Any:
    """Write 1 to ``noted`` if one of the sizes is infinite; nothing to None."""
    if noted == types.none:
        return _nothing(noted, largest)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = ir.VectorType(args[1].type.pointee, LANES)
        sizes = builder.load(builder.bitcast(args[1], vector.as_pointer()))
        infinite = ir.Constant(vector, [float("inf")] * LANES)
        found = builder.fcmp_ordered("==", sizes, infinite)
        bits = builder.bitcast(found, ir.IntType(LANES))
        with builder.if_then(builder.icmp_unsigned("!=", bits, bits.type(0)), likely=False):
            data = context.make_array(noted)(context, builder, value=args[0]).data
            builder.store(data.type.pointee(1), data)
        return context.get_dummy_value()

    return types.void(noted, largest), codegen
