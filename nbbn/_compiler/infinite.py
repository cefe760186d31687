"""Whether values are infinite, noted where they are read; nothing where nobody asks.

Under ``NUMBA_DISABLE_JIT`` the twins in ``interpreted`` stand in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from nbbn._compiler import formats
from nbbn._compiler.vectors import LANES, _declare, _intrinsic, _nothing, _vector_of


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
        room, vector = builder.bitcast(args[0], args[1].type.as_pointer()), args[1].type
        name = f"llvm.fabs.v{LANES}{formats.suffix(x.dtype)}"
        size = builder.call(_declare(builder, name, vector, [vector]), [args[1]])
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
