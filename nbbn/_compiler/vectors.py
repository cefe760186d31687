"""Explicit vectors for the kernels: sixteen lanes, the same on every machine.

LLVM splits a sixteen-lane vector into what the processor has (one or two AVX-512 registers, four of
AVX2, four of NEON), so the order of every addition, and with it every bit of a result, does not
depend on the vectorizer or on the width of the registers.

``load``, ``load_upto``, ``at``, ``value_at``, ``store_first``, ``store_upto`` and ``put`` address memory by element,
counted from the first one of an array, and check no bounds: kernels do their own arithmetic on indices. They
convert from and to what is computed with (`nbbn._compiler.formats`). All other names are arithmetic on vectors
(``fma`` also on scalars). What kernels call most stands here and not there, as to compile a function takes numba
some 0.05 s, and an intrinsic next to nothing. Under ``NUMBA_DISABLE_JIT`` the twins in ``interpreted`` stand in.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from nbbn._compiler import formats

LANES = 16
_LINE = 64  # bytes of a cache line

_LLVM_SCALAR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_SUFFIX = {types.float32: "f32", types.float64: "f64"}
_INT32 = ir.IntType(32)


def _intrinsic(function: Any) -> Any:
    """Numba's ``intrinsic``, seen by a type checker as a plain function of its later arguments."""
    return intrinsic(function)


def cpu_name() -> str:
    """Return the processor that kernels are compiled for, by LLVM's name."""
    return str(config.CPU_NAME or llvm.get_host_cpu_name())


def simd_bits() -> int:
    """Return the width of the vector registers that kernels are compiled for."""
    features = formats.cpu_features()
    if "avx512f" in features:
        return 512
    return 256 if "avx2" in features else 128


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of sixteen values of ``dtype``."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype} x {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_LLVM_SCALAR[fe_type.dtype], LANES))


FLOAT32X16 = Vector(types.float32)
FLOAT64X16 = Vector(types.float64)
_VECTOR = {types.float32: FLOAT32X16, types.float64: FLOAT64X16}


def _vector_of(array: Any) -> Vector:
    """The type of sixteen values of ``array`` in registers."""
    return _VECTOR[formats.computed(array.dtype)]


class _Arithmetic(ConcreteTemplate):  # type: ignore[misc]
    cases = [signature(v, v, v) for v in (FLOAT32X16, FLOAT64X16)]


def _register_operator(function: Any, instruction: str) -> None:
    infer_global(function)(type(f"_{instruction}", (_Arithmetic,), {"key": function}))
    for vector in (FLOAT32X16, FLOAT64X16):
        lower_builtin(function, vector, vector)(_lowering(instruction))


def _lowering(instruction: str) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)

    return lower


_register_operator(operator.add, "fadd")
_register_operator(operator.sub, "fsub")
_register_operator(operator.mul, "fmul")
_register_operator(operator.truediv, "fdiv")


def _llvm_vector(dtype: types.Type) -> ir.VectorType:
    return ir.VectorType(_LLVM_SCALAR[dtype], LANES)


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """Address of element ``index`` of a 1-d array, as a pointer to a vector."""
    data = context.make_array(array_type)(context, builder, value=array).data
    element = builder.gep(data, [index])
    return builder.bitcast(element, _stored_vector(array_type.dtype).as_pointer())


def _stored_vector(dtype: types.Type) -> ir.VectorType:
    return ir.VectorType(formats.stored(dtype), LANES)


def _itemsize(dtype: types.Type) -> int:
    return int(dtype.bitwidth) // 8


def _splat(builder: Any, scalar: Any) -> Any:
    vector_type = ir.VectorType(scalar.type, LANES)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT32(0))
    zeros = ir.Constant(ir.VectorType(_INT32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def _first_lanes(builder: Any, count: Any) -> Any:
    """The mask of the lanes below ``count``."""
    lanes = ir.Constant(ir.VectorType(_INT32, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lanes, _splat(builder, builder.trunc(count, _INT32)))


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def load_vector(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = None
) -> Any:
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


def _nothing(*arguments: types.Type) -> Any:
    """What an intrinsic returns that makes None of None."""
    return types.none(*arguments), lambda context, builder, sig, args: context.get_dummy_value()


@_intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Sixteen values of ``array`` from ``index`` on; None of None."""
    if array == types.none:
        return _nothing(array, types.intp)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = load_vector(context, builder, array, *args)
        return formats.decode(builder, array.dtype, found)

    return _vector_of(array)(array, types.intp), codegen


def load_vector_upto(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any
) -> Any:
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
def value_at(typingctx: Any, array: Any, index: Any) -> Any:
    """The value at ``index``, as float64."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, sig.args[0], *args)
        pointer = builder.bitcast(pointer, formats.stored(array.dtype).as_pointer())
        stored = builder.load(pointer, align=_itemsize(array.dtype))
        found = formats.decode(builder, array.dtype, _splat(builder, stored))
        first = builder.extract_element(found, _INT32(0))
        if first.type == ir.DoubleType():
            return first
        return builder.fpext(first, ir.DoubleType())

    return types.float64(array, types.intp), codegen


@_intrinsic
def working_dtype(typingctx: Any, array: Any) -> Any:
    """The dtype that values of ``array`` are computed with, for ``np.empty``."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return context.get_dummy_value()

    return types.DType(formats.computed(array.dtype))(array), codegen


def _least(compared: str) -> Any:
    """What an intrinsic returns that chooses one of two integers."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(compared, *args), *args)

    return types.intp(types.intp, types.intp), codegen


@_intrinsic
def smaller(typingctx: Any, a: Any, b: Any) -> Any:
    """The smaller of two integers; numba's ``min`` compiles to more."""
    return _least("<")


@_intrinsic
def larger(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger of two integers."""
    return _least(">")


@_intrinsic
def has(typingctx: Any, value: Any) -> Any:
    """Whether there is a ``value``, and not None: a constant of the compiled variant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(value != types.none))

    return types.boolean(value), codegen


@_intrinsic
def or_else(typingctx: Any, value: Any, other: Any) -> Any:
    """``value``, or ``other`` where it is None."""
    found = other if value == types.none else value

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[1] if value == types.none else args[0]

    return found(value, other), codegen


@_intrinsic
def plus(typingctx: Any, vector: Any, other: Any) -> Any:
    """``vector + other``; ``vector`` where the other is None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0] if other == types.none else builder.fadd(*args)

    return vector(vector, other), codegen


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
def has_spare_digits(typingctx: Any, array: Any) -> Any:
    """Whether float64 holds values of ``array`` with digits to spare: a constant of the compiled variant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(array.dtype != types.float64))

    return types.boolean(array), codegen


@_intrinsic
def prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Ask for the cache line of element ``index``, which may lie behind the end of the array."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.bitcast(
            _pointer(context, builder, sig.args[0], *args), ir.IntType(8).as_pointer()
        )
        arguments = [pointer.type, _INT32, _INT32, _INT32]
        function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), arguments)
        builder.call(
            function, [pointer, _INT32(0), _INT32(2), _INT32(1)]
        )  # read, second level, data
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


def _store(context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any) -> None:
    pointer = _pointer(context, builder, array_type, array, index)
    builder.store(value, pointer, align=_itemsize(array_type.dtype))


def _store_first(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any, value: Any
) -> None:
    pointer, dtype = _pointer(context, builder, array_type, array, index), array_type.dtype
    mask, vector = _first_lanes(builder, count), _stored_vector(dtype)
    name = f"llvm.masked.store.v{LANES}{formats.suffix(dtype)}.p0"
    arguments = [vector, pointer.type, _INT32, mask.type]
    function = _declare(builder, name, ir.VoidType(), arguments)
    builder.call(function, [value, pointer, _INT32(_itemsize(dtype)), mask])


def _stream(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, value: Any
) -> None:
    pointer = _pointer(context, builder, array_type, array, index)
    written = builder.store(value, pointer, align=_streamed_at_once(array_type.dtype))
    written.set_metadata("nontemporal", builder.module.add_metadata([_INT32(1)]))


def _streamed_at_once(dtype: types.Type) -> int:
    """Bytes of a streaming store, which must stand at a multiple of them."""
    return min(_LINE, LANES * _itemsize(dtype))


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
        value = formats.encode(builder, array.dtype, args[3])
        whole = builder.icmp_signed(">=", args[2], args[2].type(LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                _store(context, builder, sig.args[0], args[0], args[1], value)
            with otherwise:
                _store_first(context, builder, sig.args[0], args[0], args[1], args[2], value)
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


@_intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """A vector with ``scalar`` in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return _VECTOR[scalar](scalar), codegen


@_intrinsic
def widen(typingctx: Any, vector: Any) -> Any:
    """The lanes as float64 (exact)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if vector.dtype == types.float64:
            return args[0]
        return builder.fpext(args[0], _llvm_vector(types.float64))

    return FLOAT64X16(vector), codegen


@_intrinsic
def narrow(typingctx: Any, array: Any, vector: Any) -> Any:
    """The lanes of a float64 vector, rounded to what ``array`` is computed with."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if array.dtype == types.float64:
            return args[1]
        return builder.fptrunc(args[1], _llvm_vector(types.float32))

    return _vector_of(array)(array, FLOAT64X16), codegen


@_intrinsic
def square_root(typingctx: Any, vector: Any) -> Any:
    """The square roots of the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        name = f"llvm.sqrt.v{LANES}{_SUFFIX[vector.dtype]}"
        return builder.call(_declare(builder, name, kind, [kind]), args)

    return vector(vector), codegen


@_intrinsic
def not_below(typingctx: Any, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are greater; NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        below = builder.fcmp_ordered("<", *args)
        return builder.select(below, args[1], args[0])

    return vector(vector, vector), codegen


@_intrinsic
def not_above(typingctx: Any, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are less; NaN stays."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        above = builder.fcmp_ordered(">", *args)
        return builder.select(above, args[1], args[0])

    return vector(vector, vector), codegen


@_intrinsic
def where_below(typingctx: Any, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test < limit``, ``b`` in the others, NaN among them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        test, limit, a, b = args
        return builder.select(builder.fcmp_ordered("<", test, limit), a, b)

    return a(test, test, a, a), codegen


@_intrinsic
def where_at_most(typingctx: Any, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test <= limit``, ``b`` in the others, NaN among them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        test, limit, a, b = args
        return builder.select(builder.fcmp_ordered("<=", test, limit), a, b)

    return a(test, test, a, a), codegen


@_intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` with one rounding, of scalars or of vectors."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        if isinstance(a, Vector):
            name = f"llvm.fma.v{LANES}{_SUFFIX[a.dtype]}"
        else:
            name = f"llvm.fma.{_SUFFIX[a]}"
        return builder.call(_declare(builder, name, kind, [kind] * 3), args)

    return a(a, a, a), codegen


@_intrinsic
def keep_first(typingctx: Any, vector: Any, count: Any) -> Any:
    """The first ``count`` lanes, zeros behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zeros = ir.Constant(args[0].type, [0.0] * LANES)
        return builder.select(_first_lanes(builder, args[1]), args[0], zeros)

    return vector(vector, types.intp), codegen


@_intrinsic
def first_of(typingctx: Any, count: Any, a: Any, b: Any) -> Any:
    """The first ``count`` lanes of ``a``, those of ``b`` behind them."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_first_lanes(builder, args[0]), args[1], args[2])

    return a(types.intp, a, a), codegen


@_intrinsic
def where_finite(typingctx: Any, test: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test`` is finite, ``b`` in the others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        test, a, b = args
        zeros = ir.Constant(test.type, [0.0] * LANES)
        difference = builder.fsub(test, test)  # 0 for a finite value, NaN for the others
        return builder.select(builder.fcmp_ordered("==", difference, zeros), a, b)

    return a(test, a, a), codegen


@_intrinsic
def any_greater(typingctx: Any, a: Any, b: Any) -> Any:
    """Whether ``a > b`` in any lane (false where either is NaN)."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        greater = builder.fcmp_ordered(">", *args)
        bits = builder.bitcast(greater, ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, bits.type(0))

    return types.boolean(a, a), codegen


@_intrinsic
def total(typingctx: Any, vector: Any) -> Any:
    """The sum of the lanes, halves first: a fixed order."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = args[0]
        half = LANES // 2
        while half:
            lanes = [(i + half) % LANES for i in range(LANES)]
            shuffle = ir.Constant(ir.VectorType(_INT32, LANES), lanes)
            value = builder.fadd(value, builder.shuffle_vector(value, value, shuffle))
            half //= 2
        return builder.extract_element(value, _INT32(0))

    return vector.dtype(vector), codegen


if config.DISABLE_JIT:
    from nbbn._compiler.interpreted import (  # noqa: F401
        any_greater,
        at,
        fence,
        first_of,
        fma,
        has,
        has_spare_digits,
        keep_first,
        larger,
        load,
        load_upto,
        narrow,
        not_above,
        not_below,
        or_else,
        outer_stride,
        plus,
        prefetch,
        put,
        row_stride,
        smaller,
        splat,
        square_root,
        store_first,
        store_upto,
        to_line,
        total,
        value_at,
        where_at_most,
        where_below,
        where_finite,
        widen,
        working_dtype,
    )
