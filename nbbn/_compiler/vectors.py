"""Explicit vectors for the kernels: sixteen lanes, the same on every machine.

LLVM splits a sixteen-lane vector into what the processor has (one or two AVX-512 registers, four of
AVX2, four of NEON), so the order of every addition, and with it every bit of a result, does not
depend on the vectorizer or on the width of the registers.

All names are arithmetic on vectors (``fma`` also on scalars) and tests of types; `nbbn._compiler.memory` loads and
stores them. Under ``NUMBA_DISABLE_JIT`` the twins in ``interpreted`` stand in.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, ClassVar

from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from nbbn._compiler import formats, interpreted

LANES = 16

_LLVM_SCALAR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
_INT32 = ir.IntType(32)


def _intrinsic(function: Any) -> Any:
    """Numba's ``intrinsic``, seen by a type checker as a plain function of its later arguments.

    Under ``NUMBA_DISABLE_JIT`` it is the twin of that name in `interpreted`.
    """
    return getattr(interpreted, function.__name__) if config.DISABLE_JIT else intrinsic(function)


def _lanewise(emit: Any) -> Any:
    """An intrinsic of vectors (or scalars, and integers), given by what it emits: a value of the kind of the last."""

    def typed(typingctx: Any, *kinds: Any) -> Any:
        kinds = tuple(types.intp if isinstance(kind, types.Integer) else kind for kind in kinds)
        last = [kind for kind in kinds if kind != types.intp][-1]
        return last(*kinds), lambda context, builder, sig, args: emit(builder, *args)

    return _intrinsic(functools.wraps(emit)(typed))


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


class _Arithmetic(AbstractTemplate):  # type: ignore[misc]
    """The types of an operator; of this target, numba asks for it before the thirty of its own."""

    metadata: ClassVar = {"target": "cpu"}

    def generic(self, args: Any, kws: Any) -> Any:
        first = args[0]
        return signature(first, *args) if isinstance(first, Vector) and args[1:] == (first,) else None


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


def _stored_vector(dtype: types.Type) -> ir.VectorType:
    return ir.VectorType(formats.stored(dtype), LANES)


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


def _call(builder: Any, name: str, *values: Any) -> Any:
    """What LLVM's function of this name makes of values of one kind, scalars or vectors."""
    kind = values[0].type
    lanes, scalar = (f"v{LANES}", kind.element) if isinstance(kind, ir.VectorType) else ("", kind)
    suffix = "f64" if scalar == ir.DoubleType() else "f32"
    return builder.call(_declare(builder, f"llvm.{name}.{lanes}{suffix}", kind, [kind] * len(values)), values)


def _nothing(*arguments: types.Type) -> Any:
    """What an intrinsic returns that makes None of None."""
    return types.none(*arguments), lambda context, builder, sig, args: context.get_dummy_value()


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
def has_values(typingctx: Any, array: Any) -> Any:
    """Whether an array is not empty; None is."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if array == types.none:
            return ir.Constant(ir.IntType(1), 0)
        size = context.make_array(array)(context, builder, value=args[0]).nitems
        return builder.icmp_signed("!=", size, size.type(0))

    return types.boolean(array), codegen


@_intrinsic
def plus(typingctx: Any, vector: Any, other: Any) -> Any:
    """``vector + other``; ``vector`` where the other is None."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return args[0] if other == types.none else builder.fadd(*args)

    return vector(vector, other), codegen


@_intrinsic
def has_spare_digits(typingctx: Any, array: Any) -> Any:
    """Whether float64 holds values of ``array`` with digits to spare: a constant of the compiled variant."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(array.dtype != types.float64))

    return types.boolean(array), codegen


@_intrinsic
def splat(typingctx: Any, scalar: Any) -> Any:
    """A vector with ``scalar`` in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return _VECTOR[scalar](scalar), codegen


@_intrinsic
def constant(typingctx: Any, vector: Any, number: Any) -> Any:
    """A vector of the dtype of another one, with ``number`` in every lane."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, _as_scalar(builder, vector, args[1]))

    return vector(vector, types.float64), codegen


@_intrinsic
def constant_of(typingctx: Any, vector: Any, of_float32: Any, of_float64: Any) -> Any:
    """`constant` with a number that depends on the dtype."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        number = args[1] if vector.dtype == types.float32 else args[2]
        return _splat(builder, _as_scalar(builder, vector, number))

    return vector(vector, types.float64, types.float64), codegen


def _as_scalar(builder: Any, vector: Vector, number: Any) -> Any:
    """A float64 rounded to the dtype of a vector."""
    if vector.dtype == types.float64:
        return number
    return builder.fptrunc(number, _LLVM_SCALAR[vector.dtype])


@_lanewise
def power_of_two(builder: Any, exponent: Any) -> Any:
    """The powers of 2 with the last bits of ``exponent``: 0 makes 0, and as many ones as there are make infinity."""
    size, digits = (64, 52) if exponent.type.element == ir.DoubleType() else (32, 23)
    integers = ir.VectorType(ir.IntType(size), LANES)
    shifted = builder.shl(builder.bitcast(exponent, integers), ir.Constant(integers, [digits] * LANES))
    return builder.bitcast(shifted, exponent.type)


@_lanewise
def exponential_series(builder: Any, vector: Any) -> Any:
    """The polynomial `SERIES`, next to exp for lanes up to log(2) / 2 in size."""
    numbers = interpreted.SERIES["float64" if vector.type.element == ir.DoubleType() else "float32"]
    found, *rest = (ir.Constant(vector.type, [number] * LANES) for number in numbers)
    for number in rest:
        found = _call(builder, "fma", found, vector, number)
    return found


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


@_lanewise
def square_root(builder: Any, vector: Any) -> Any:
    """The square roots of the lanes."""
    return _call(builder, "sqrt", vector)


@_lanewise
def not_below(builder: Any, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are greater; NaN stays."""
    return builder.select(builder.fcmp_ordered("<", vector, limit), limit, vector)


@_lanewise
def not_above(builder: Any, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are less; NaN stays."""
    return builder.select(builder.fcmp_ordered(">", vector, limit), limit, vector)


@_lanewise
def where_below(builder: Any, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test < limit``, ``b`` in the others, NaN among them."""
    return builder.select(builder.fcmp_ordered("<", test, limit), a, b)


@_lanewise
def where_at_most(builder: Any, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test <= limit``, ``b`` in the others, NaN among them."""
    return builder.select(builder.fcmp_ordered("<=", test, limit), a, b)


@_lanewise
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` with one rounding, of scalars or of vectors."""
    return _call(builder, "fma", a, b, c)


@_lanewise
def keep_first(builder: Any, vector: Any, count: Any) -> Any:
    """The first ``count`` lanes, zeros behind them."""
    return builder.select(_first_lanes(builder, count), vector, ir.Constant(vector.type, [0.0] * LANES))


@_lanewise
def first_of(builder: Any, count: Any, a: Any, b: Any) -> Any:
    """The first ``count`` lanes of ``a``, those of ``b`` behind them."""
    return builder.select(_first_lanes(builder, count), a, b)


@_lanewise
def where_finite(builder: Any, test: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test`` is finite, ``b`` in the others."""
    difference = builder.fsub(test, test)  # 0 for a finite value, NaN for the others
    is_finite = builder.fcmp_ordered("==", difference, ir.Constant(test.type, [0.0] * LANES))
    return builder.select(is_finite, a, b)


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
