"""How numbers are stored and computed with: half types and bytes as float32, in registers.

numba has no arrays of float16 or bfloat16 on a CPU. They come as arrays of their bits: uint16 for
float16, int16 for bfloat16. A vector of them is converted as it is loaded and rounded (to nearest,
ties to even) as it is stored. Where the processor has no instructions for it, that is integer arithmetic
but for one addition, with the same bits.

Sources: IEEE 754-2019, 3.4 (binary16); the trick for its subnormal numbers, an addition that makes the
processor round at the right bit, is F. Giesen's (https://gist.github.com/rygorous/2156668).
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding as llvm
from llvmlite import ir
from numba import config, types

_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_FLOAT = ir.FloatType()

FLOAT16, BFLOAT16, BYTE = types.uint16, types.int16, types.uint8

# LLVM's types of values in memory.
STORED: dict[types.Type, Any] = {
    types.float32: _FLOAT,
    types.float64: ir.DoubleType(),
    FLOAT16: _I16,
    BFLOAT16: _I16,
    BYTE: ir.IntType(8),
}


def cpu_features() -> set[str]:
    """Return the features of the processor that kernels are compiled for, by LLVM's names."""
    if config.CPU_NAME or config.CPU_FEATURES is not None:
        return {name[1:] for name in (config.CPU_FEATURES or "").split(",") if name[:1] == "+"}
    return {name for name, has in llvm.get_host_cpu_features().items() if has}


def computed(dtype: types.Type) -> types.Type:
    """Return the type that values of ``dtype`` are computed with."""
    return types.float64 if dtype == types.float64 else types.float32


def suffix(dtype: types.Type) -> str:
    """Return what LLVM's names of functions on such values end with."""
    return f"{'f' if isinstance(dtype, types.Float) else 'i'}{dtype.bitwidth}"


def decode(builder: Any, dtype: types.Type, vector: Any) -> Any:
    """Return what was loaded as `computed`; exact."""
    if dtype == FLOAT16:
        return _from_float16(builder, vector)
    if dtype == BFLOAT16:
        wide = builder.zext(vector, _ints(vector))
        return builder.bitcast(builder.shl(wide, _all(wide, 16)), _floats(vector))
    if dtype == BYTE:
        return builder.uitofp(vector, _floats(vector))
    return vector


def encode(builder: Any, dtype: types.Type, vector: Any) -> Any:
    """Return ``vector``, of `computed`, as it is stored: rounded once."""
    if dtype == FLOAT16:
        return _to_float16(builder, vector)
    if dtype == BFLOAT16:
        return _to_bfloat16(builder, vector)
    if dtype == BYTE:
        raise TypeError("bytes are only read")
    return vector


def _ints(like: Any) -> Any:
    return ir.VectorType(_I32, like.type.count)


def _floats(like: Any) -> Any:
    return ir.VectorType(_FLOAT, like.type.count)


def _halves(like: Any) -> Any:
    return ir.VectorType(ir.HalfType(), like.type.count)


def _all(like: Any, value: int) -> Any:
    return ir.Constant(_ints(like), [value] * like.type.count)


def _from_float16(builder: Any, half: Any) -> Any:
    if "f16c" in cpu_features():  # without, LLVM calls a function that is not there
        return builder.fpext(builder.bitcast(half, _halves(half)), _floats(half))
    bits = builder.zext(half, _ints(half))
    sign = builder.shl(builder.and_(bits, _all(bits, 0x8000)), _all(bits, 16))
    # Exponent and fraction in the places of float32; the exponent's bias is 127, not 15.
    shifted = builder.shl(builder.and_(bits, _all(bits, 0x7FFF)), _all(bits, 13))
    normal = builder.add(shifted, _all(bits, (127 - 15) << 23))
    special = builder.or_(shifted, _all(bits, 0x7F800000))  # infinite, or NaN, which becomes quiet
    fraction = builder.icmp_unsigned(">", shifted, _all(bits, 0x7C00 << 13))
    quiet = builder.select(fraction, _all(bits, 0x00400000), _all(bits, 0))
    special = builder.or_(special, quiet)
    # Below 2**-14: one bit too many in the exponent, taken off by a subtraction, which is exact.
    unit = builder.add(normal, _all(bits, 1 << 23))
    least = builder.bitcast(_all(bits, 113 << 23), _floats(half))
    small = builder.fsub(builder.bitcast(unit, _floats(half)), least)
    is_small = builder.icmp_unsigned("<", shifted, _all(bits, 0x0400 << 13))
    is_special = builder.icmp_unsigned(">=", shifted, _all(bits, 0x7C00 << 13))
    found = builder.select(is_small, builder.bitcast(small, _ints(half)), normal)
    found = builder.select(is_special, special, found)
    return builder.bitcast(builder.or_(found, sign), _floats(half))


def _to_float16(builder: Any, vector: Any) -> Any:
    if "f16c" in cpu_features():
        rounded = builder.fptrunc(vector, _halves(vector))
        return builder.bitcast(rounded, ir.VectorType(_I16, vector.type.count))
    bits = builder.bitcast(vector, _ints(vector))
    sign = builder.lshr(builder.and_(bits, _all(bits, 0x80000000)), _all(bits, 16))
    size = builder.and_(bits, _all(bits, 0x7FFFFFFF))
    # Normal numbers: half a unit less one bit is added, and one more where the last bit kept is odd.
    odd = builder.and_(builder.lshr(size, _all(bits, 13)), _all(bits, 1))
    rounded = builder.add(size, builder.add(odd, _all(bits, 0xFFF)))
    rounded = builder.sub(rounded, _all(bits, (127 - 15) << 23))
    normal = builder.lshr(rounded, _all(bits, 13))
    # Below 2**-14: added to 0.5, whose last bit is the unit of the subnormal numbers.
    half = builder.bitcast(_all(bits, 0x3F000000), _floats(vector))
    moved = builder.fadd(builder.bitcast(size, _floats(vector)), half)
    small = builder.sub(builder.bitcast(moved, _ints(vector)), _all(bits, 0x3F000000))
    payload = builder.and_(builder.lshr(size, _all(bits, 13)), _all(bits, 0x01FF))
    nan = builder.or_(payload, _all(bits, 0x7E00))
    is_nan = builder.icmp_unsigned(">", size, _all(bits, 0x7F800000))
    special = builder.select(is_nan, nan, _all(bits, 0x7C00))
    is_small = builder.icmp_unsigned("<", size, _all(bits, (127 - 14) << 23))
    is_large = builder.icmp_unsigned(">=", size, _all(bits, (127 + 16) << 23))
    found = builder.select(is_small, small, normal)
    found = builder.select(is_large, special, found)
    found = builder.or_(found, sign)
    return builder.trunc(found, ir.VectorType(_I16, vector.type.count))


def _to_bfloat16(builder: Any, vector: Any) -> Any:
    bits = builder.bitcast(vector, _ints(vector))
    upper = builder.lshr(bits, _all(bits, 16))
    odd = builder.and_(upper, _all(bits, 1))
    rounded = builder.add(bits, builder.add(odd, _all(bits, 0x7FFF)))
    is_nan = builder.fcmp_unordered("uno", vector, vector)
    found = builder.select(is_nan, builder.or_(bits, _all(bits, 0x400000)), rounded)
    # The upper halves, by a shuffle: what is truncated, LLVM joins with a store past the cache into
    # one that is not; (32, 1024, 14, 14) then took 13 times as long as in float16.
    count = vector.type.count
    halves = builder.bitcast(found, ir.VectorType(_I16, 2 * count))
    which = ir.Constant(_ints(vector), [2 * lane + 1 for lane in range(count)])
    return builder.shuffle_vector(halves, halves, which)
