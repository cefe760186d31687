"""Explicit vectors for the kernels: sixteen lanes, the same on every machine.

LLVM splits a sixteen-lane vector into what the processor has (one or two AVX-512 registers, four of
AVX2, four of NEON), so the order of every addition, and with it every bit of a result, does not
depend on the vectorizer or on the width of the registers.

All names are arithmetic on vectors (``fma`` also on scalars) and tests of types; `nbbn._compiler.memory` loads and
stores them. Under ``NUMBA_DISABLE_JIT`` their twins stand in, on arrays of sixteen values.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import numpy as np
from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic as numba_intrinsic
from numba.extending import lower_builtin, models, register_model

from nbbn._compiler import formats, interpreted

LANES = 16

_BIT, _INT32 = ir.IntType(1), ir.IntType(32)


class Emitting(NamedTuple):
    """Where an intrinsic's instructions go, the numba types of its arguments, and that of its value."""

    context: Any
    builder: Any
    kinds: tuple[Any, ...]
    result: Any


def intrinsic(result: Any = None, twin: Any = None) -> Callable[[Any], Any]:
    """Numba's intrinsic, given by a function that emits its instructions: ``emit(to, *values)``, `Emitting` first.

    ``result`` is the type of its value, or makes that of the types of the arguments; without it there is no value.
    Where the type is None's, nothing is emitted. ``twin`` does the same in plain Python; without it, the function of
    that name in `interpreted`.
    """

    def decorate(emit: Any) -> Any:
        in_python = twin or getattr(interpreted, emit.__name__)
        if config.DISABLE_JIT:
            return in_python

        number = len(inspect.signature(emit).parameters) - 1

        @functools.wraps(emit)
        def typed(typingctx: Any, *kinds: Any) -> Any:
            kinds += (types.none,) * (number - len(kinds))  # numba gives what is left out its default, None
            found = result(*kinds) if isinstance(result, FunctionType) else result
            if result is not None and found is None:  # another overload: numba asks again, with constants
                return None

            def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                value = None if found == types.none else emit(Emitting(context, builder, kinds, found), *args)
                return context.get_dummy_value() if value is None else value

            # A constant stays one: numba finds what is emitted by the types of arguments, not by that of the result.
            taken = (kind if kind not in types.integer_domain else types.intp for kind in kinds)
            return (types.void if found is None else found)(*taken), codegen

        made = numba_intrinsic(typed)
        made.twin = in_python  # for tests
        return made

    return decorate


def _of_last(*kinds: Any) -> Any:
    """The type of the last argument that is no integer."""
    return [kind for kind in kinds if not isinstance(kind, types.Integer)][-1]


def processor() -> dict[str, Any]:
    """Return the processor that kernels are compiled for, by LLVM's name, and the width of its vector registers."""
    features = formats.cpu_features()
    bits = 512 if "avx512f" in features else 256 if "avx2" in features else 128
    return {"cpu": str(config.CPU_NAME or llvm.get_host_cpu_name()), "simd_bits": bits}


def _stored_vector(dtype: types.Type) -> ir.VectorType:
    return ir.VectorType(formats.STORED[dtype], LANES)


class Vector(types.Type):  # type: ignore[misc]
    """The numba type of sixteen values of ``dtype``."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype} x {LANES})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, _stored_vector(fe_type.dtype))


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


def _lowering(instruction: str) -> Any:
    return lambda context, builder, sig, args: getattr(builder, instruction)(*args)


for _operator, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    infer_global(_operator)(type(f"_{_name}", (_Arithmetic,), {"key": _operator}))
    for _vector in (FLOAT32X16, FLOAT64X16):
        lower_builtin(_operator, _vector, _vector)(_lowering(_name))


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


def _any(to: Emitting, lanes: Any) -> Any:
    """Whether one of the lanes, bits, is set."""
    bits = to.builder.bitcast(lanes, ir.IntType(LANES))
    return to.builder.icmp_unsigned("!=", bits, bits.type(0))


@intrinsic(lambda array: types.DType(formats.computed(array.dtype)))
def working_dtype(to: Emitting, array: Any) -> Any:
    """The dtype that values of ``array`` are computed with, for ``np.empty``."""


@intrinsic(types.intp, min)
def smaller(to: Emitting, a: Any, b: Any) -> Any:
    """The smaller of two integers; numba's ``min`` compiles to more."""
    return to.builder.select(to.builder.icmp_signed("<", a, b), a, b)


@intrinsic(types.intp, max)
def larger(to: Emitting, a: Any, b: Any) -> Any:
    """The larger of two integers."""
    return to.builder.select(to.builder.icmp_signed(">", a, b), a, b)


@intrinsic(types.boolean, lambda value: value is not None)
def has(to: Emitting, value: Any) -> Any:
    """Whether there is a ``value``, and not None: a constant of the compiled variant."""
    return _BIT(to.kinds[0] != types.none)


@intrinsic(types.boolean, lambda array: array is not None and array.size > 0)
def has_values(to: Emitting, array: Any) -> Any:
    """Whether an array is not empty; None is."""
    if to.kinds[0] == types.none:
        return _BIT(False)
    size = to.context.make_array(to.kinds[0])(to.context, to.builder, value=array).nitems
    return to.builder.icmp_signed("!=", size, size.type(0))


@intrinsic(lambda vector, other: vector, lambda vector, other: vector if other is None else vector + other)
def plus(to: Emitting, vector: Any, other: Any) -> Any:
    """``vector + other``; ``vector`` where the other is None."""
    return vector if to.kinds[1] == types.none else to.builder.fadd(vector, other)


@intrinsic(types.boolean, lambda array: array.dtype != np.float64)
def has_spare_digits(to: Emitting, array: Any) -> Any:
    """Whether float64 holds values of ``array`` with digits to spare: a constant of the compiled variant."""
    return _BIT(to.kinds[0].dtype != types.float64)


@intrinsic(lambda scalar: _VECTOR[scalar], lambda scalar: np.full(LANES, scalar, np.asarray(scalar).dtype))
def splat(to: Emitting, scalar: Any) -> Any:
    """A vector with ``scalar`` in every lane."""
    return _splat(to.builder, scalar)


@intrinsic(lambda vector, number, of_float64: vector)
def constant(to: Emitting, vector: Any, number: Any, of_float64: Any = None) -> Any:
    """A vector of the dtype of another one, with ``number`` in every lane; of float64 the other, if there is one."""
    if to.kinds[0] == FLOAT32X16:
        return _splat(to.builder, to.builder.fptrunc(number, ir.FloatType()))
    return _splat(to.builder, number if to.kinds[2] == types.none else of_float64)


@intrinsic(_of_last)
def power_of_two(to: Emitting, exponent: Any) -> Any:
    """The powers of 2 with the last bits of ``exponent``: 0 makes 0, and as many ones as there are make infinity."""
    size, digits = (32, 23) if to.kinds[0] == FLOAT32X16 else (64, 52)
    integers = ir.VectorType(ir.IntType(size), LANES)
    bits = to.builder.bitcast(exponent, integers)
    shifted = to.builder.shl(bits, ir.Constant(integers, [digits] * LANES))
    return to.builder.bitcast(shifted, exponent.type)


@intrinsic(_of_last)
def exponential_series(to: Emitting, vector: Any) -> Any:
    """The polynomial `SERIES`, next to exp for lanes up to log(2) / 2 in size."""
    numbers = interpreted.SERIES[str(to.kinds[0].dtype)]
    found, *rest = (ir.Constant(vector.type, [number] * LANES) for number in numbers)
    for number in rest:
        found = _call(to.builder, "fma", found, vector, number)
    return found


@intrinsic(FLOAT64X16, lambda vector: vector.astype(np.float64))
def widen(to: Emitting, vector: Any) -> Any:
    """The lanes as float64 (exact)."""
    return vector if to.kinds[0] == FLOAT64X16 else to.builder.fpext(vector, _stored_vector(types.float64))


def _rounded(to: Emitting, vector: Any, dtype: types.Type) -> Any:
    """The lanes rounded to what values of ``dtype`` are computed with."""
    wanted = _stored_vector(formats.computed(dtype))
    return vector if vector.type == wanted else to.builder.fptrunc(vector, wanted)


@intrinsic(
    lambda array, vector: _vector_of(array), lambda array, vector: vector.astype(interpreted.working_dtype(array))
)
def narrow(to: Emitting, array: Any, vector: Any) -> Any:
    """The lanes of a float64 vector, rounded to what ``array`` is computed with."""
    return _rounded(to, vector, to.kinds[0].dtype)


@intrinsic(_of_last, np.sqrt)
def square_root(to: Emitting, vector: Any) -> Any:
    """The square roots of the lanes."""
    return _call(to.builder, "sqrt", vector)


@intrinsic(_of_last, lambda vector, limit: np.where(vector < limit, limit, vector))
def not_below(to: Emitting, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are greater; NaN stays."""
    return to.builder.select(to.builder.fcmp_ordered("<", vector, limit), limit, vector)


@intrinsic(_of_last, lambda vector, limit: np.where(vector > limit, limit, vector))
def not_above(to: Emitting, vector: Any, limit: Any) -> Any:
    """The lanes of ``vector``, those of ``limit`` where they are less; NaN stays."""
    return to.builder.select(to.builder.fcmp_ordered(">", vector, limit), limit, vector)


@intrinsic(_of_last, lambda test, limit, a, b: np.where(test < limit, a, b))
def where_below(to: Emitting, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test < limit``, ``b`` in the others, NaN among them."""
    return to.builder.select(to.builder.fcmp_ordered("<", test, limit), a, b)


@intrinsic(_of_last, lambda test, limit, a, b: np.where(test <= limit, a, b))
def where_at_most(to: Emitting, test: Any, limit: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test <= limit``, ``b`` in the others, NaN among them."""
    return to.builder.select(to.builder.fcmp_ordered("<=", test, limit), a, b)


@intrinsic(_of_last)
def fma(to: Emitting, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c`` with one rounding, of scalars or of vectors."""
    return _call(to.builder, "fma", a, b, c)


@intrinsic(_of_last, lambda vector, count: np.where(np.arange(LANES) < count, vector, vector.dtype.type(0)))
def keep_first(to: Emitting, vector: Any, count: Any) -> Any:
    """The first ``count`` lanes, zeros behind them."""
    return to.builder.select(_first_lanes(to.builder, count), vector, ir.Constant(vector.type, [0.0] * LANES))


@intrinsic(_of_last, lambda count, a, b: np.where(np.arange(LANES) < count, a, b))
def first_of(to: Emitting, count: Any, a: Any, b: Any) -> Any:
    """The first ``count`` lanes of ``a``, those of ``b`` behind them."""
    return to.builder.select(_first_lanes(to.builder, count), a, b)


@intrinsic(_of_last, lambda test, a, b: np.where(np.isfinite(test), a, b))
def where_finite(to: Emitting, test: Any, a: Any, b: Any) -> Any:
    """``a`` in the lanes where ``test`` is finite, ``b`` in the others."""
    difference = to.builder.fsub(test, test)  # 0 for a finite value, NaN for the others
    zeros = ir.Constant(test.type, [0.0] * LANES)
    return to.builder.select(to.builder.fcmp_ordered("==", difference, zeros), a, b)


@intrinsic(types.boolean, lambda a, b: bool(np.any(a > b)))
def any_greater(to: Emitting, a: Any, b: Any) -> Any:
    """Whether ``a > b`` in any lane (false where either is NaN)."""
    return _any(to, to.builder.fcmp_ordered(">", a, b))


@intrinsic(lambda vector: vector.dtype)
def total(to: Emitting, vector: Any) -> Any:
    """The sum of the lanes, halves first: a fixed order."""
    half = LANES // 2
    while half:
        lanes = [(i + half) % LANES for i in range(LANES)]
        shuffle = ir.Constant(ir.VectorType(_INT32, LANES), lanes)
        vector = to.builder.fadd(vector, to.builder.shuffle_vector(vector, vector, shuffle))
        half //= 2
    return to.builder.extract_element(vector, _INT32(0))
