"""What ``vectors``, ``memory`` and ``weights`` do, in plain Python: arrays of 16 lanes.

For ``NUMBA_DISABLE_JIT``: each function takes the place of the intrinsic of its name, where it is described.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

LANES = 16

# Of exp up to log(2) / 2, from the highest power down: those of Taylor but for what makes the largest relative error
# least (Remez), 2**-28 for float32 and 2**-57 for float64. See docs/mathematics_activations.md.
SERIES = {
    "float32": (
        0.0013814540176801306, 0.008368745108942591, 0.041668390783547914, 0.1666652039904253,
        0.4999999343212929, 1.0, 1.0,
    ),
    "float64": (
        2.5000018833187374e-08, 2.76303062502936e-07, 2.7557586803895326e-06,
        2.480149294963387e-05, 0.00019841269505773776, 0.0013888888943759965,
        0.008333333333494976, 0.041666666666529725, 0.1666666666666641, 0.5000000000000011,
        1.0, 1.0,
    ),
}  # fmt: skip


def _memory(array: NDArray[Any], index: int, count: int) -> NDArray[Any]:
    """``count`` values of ``array`` from ``index`` on, counted in memory from the first one."""
    if array.ndim == 1:
        return array[index : index + count]
    return np.lib.stride_tricks.as_strided(array, (index + count,), (array.itemsize,))[index:]


smaller, larger = min, max


def has(value: Any) -> bool:
    return value is not None


def has_values(array: Any) -> bool:
    return array is not None and array.size > 0


def plus(vector: Any, other: Any) -> Any:
    return vector if other is None else vector + other


def outer_stride(stack: Any) -> int:
    return 0 if stack is None else int(stack.strides[0]) // int(stack.itemsize)


def row_stride(stack: Any) -> int:
    return 0 if stack is None else int(stack.strides[1]) // int(stack.itemsize)


def has_spare_digits(array: NDArray[Any]) -> bool:
    return bool(array.dtype != np.float64)


def working_dtype(array: NDArray[Any]) -> Any:
    return np.float64 if array.dtype == np.float64 else np.float32


def _decode(stored: NDArray[Any]) -> NDArray[Any]:
    """What `nbbn._compiler.formats` does: arrays of bits as float32."""
    if stored.dtype == np.uint16:
        return stored.view(np.float16).astype(np.float32)
    if stored.dtype == np.int16:
        return (stored.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(working_dtype(stored))


def _encode(dtype: np.dtype[Any], vector: NDArray[Any]) -> NDArray[Any]:
    if dtype == np.uint16:
        with np.errstate(all="ignore"):
            return vector.astype(np.float16).view(np.uint16)
    if dtype == np.int16:
        bits = vector.view(np.uint32)
        upper = bits >> np.uint32(16)
        rounded = (bits + (upper & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)
        found = np.where(np.isnan(vector), upper | np.uint32(0x40), rounded)
        return found.astype(np.uint16).view(np.int16)
    return vector


def load(array: Any, index: int) -> Any:
    return load_upto(array, index, LANES)


def lanes(number: int) -> Any:
    return np.empty(number * LANES)


def room_for_largest(noted: Any, array: Any) -> Any:
    return None if noted is None else np.zeros(LANES, working_dtype(array))


def note_largest(largest: Any, x: NDArray[Any]) -> None:
    if largest is not None:
        np.fmax(largest, np.abs(x), out=largest)


def note_infinite(noted: Any, largest: Any) -> None:
    if noted is not None and np.isinf(largest).any():
        noted[0] = 1


def load_upto(array: Any, index: int, count: int) -> Any:
    if array is None:
        return None
    vector, n = np.zeros(LANES, working_dtype(array)), min(count, LANES)
    vector[:n] = _decode(_memory(array, index, n))
    return vector


def load_every(array: Any, index: int, stride: int, count: int) -> Any:
    vector, n = np.zeros(LANES), min(count, LANES)
    vector[:n] = array.reshape(-1)[index : index + (n - 1) * stride + 1 : stride]
    return vector


def at(rows: Any, row: int, k: int, count: int) -> Any:
    return load_upto(rows.values, rows.at + row * rows.stride + k, count)


def at_any(rows: Any, row: int, k: int, count: int) -> Any:
    if rows.values is None or rows.values.size:
        return at(rows, row, k, count)
    return np.zeros(LANES, working_dtype(rows.values))


def keep(rows: Any, row: int, k: int, count: int, value: NDArray[Any]) -> None:
    if rows.values is not None:
        store_upto(rows.values, rows.at + row * rows.stride + k, count, value)


def prefetch(array: NDArray[Any], index: int) -> None:
    """Nothing to ask for."""


def store_first(array: NDArray[Any], index: int, count: int, value: NDArray[Any]) -> None:
    _memory(array, index, count)[:] = _encode(array.dtype, value[:count])


def store_upto(array: NDArray[Any], index: int, count: int, value: NDArray[Any]) -> None:
    store_first(array, index, min(count, LANES), value)


def put(array: NDArray[Any], index: int, value: NDArray[Any], streaming: int) -> None:
    store_first(array, index, LANES, value)


def to_line(array: NDArray[Any], index: int) -> int:
    return 0


def fence() -> None:
    """Nothing to wait for."""


def splat(scalar: Any) -> NDArray[Any]:
    return np.full(LANES, scalar, np.asarray(scalar).dtype)


def constant(vector: NDArray[Any], number: float) -> NDArray[Any]:
    return np.full(LANES, number, vector.dtype)


def constant_of(vector: NDArray[Any], of_float32: float, of_float64: float) -> NDArray[Any]:
    return constant(vector, of_float32 if vector.dtype == np.float32 else of_float64)


def power_of_two(exponent: NDArray[Any]) -> NDArray[Any]:
    bits: Any = np.uint32 if exponent.dtype == np.float32 else np.uint64
    shifted = exponent.view(bits) << bits(np.finfo(exponent.dtype).nmant)
    found: NDArray[Any] = shifted.view(exponent.dtype)
    return found


def exponential_series(vector: NDArray[Any]) -> NDArray[Any]:
    first, *rest = SERIES[vector.dtype.name]
    found = constant(vector, first)
    for number in rest:
        found = fma(found, vector, constant(vector, number))
    return found


def widen(vector: NDArray[Any]) -> NDArray[np.float64]:
    return vector.astype(np.float64)


def narrow(array: NDArray[Any], vector: NDArray[np.float64]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        found: NDArray[Any] = vector.astype(working_dtype(array))
        return found


def square_root(vector: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(all="ignore"):
        root: NDArray[Any] = np.sqrt(vector)
        return root


def not_below(vector: NDArray[Any], limit: NDArray[Any]) -> NDArray[Any]:
    return np.where(vector < limit, limit, vector)


def not_above(vector: NDArray[Any], limit: NDArray[Any]) -> NDArray[Any]:
    return np.where(vector > limit, limit, vector)


def where_below(test: NDArray[Any], limit: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.where(test < limit, a, b)


def where_at_most(test: NDArray[Any], limit: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.where(test <= limit, a, b)


def fma(a: Any, b: Any, c: Any) -> Any:
    if a.dtype == np.float64:
        found = np.array([_fma(*lanes) for lanes in zip(*np.atleast_1d(a, b, c), strict=True)])
        return found.reshape(a.shape)[()]
    with np.errstate(all="ignore"):
        product, other = np.multiply(a, b, dtype=np.float64), np.asarray(c, np.float64)  # exact
        sum_ = product + other
        part = sum_ - product
        error = (product - (sum_ - part)) + (other - part)
        # Where it is inexact, with an odd last bit: what is rounded again is then rounded as if it were once.
        inexact = np.isfinite(error) & (error != 0.0) & (sum_.view(np.int64) & 1 == 0)
        odd = np.nextafter(sum_, np.copysign(np.inf, error))
        return np.where(inexact, odd, sum_).astype(np.float32)[()]


def _fma(a: Any, b: Any, c: Any) -> Any:
    with np.errstate(all="ignore"):
        plain = a * b + c
    if not np.isfinite(plain) or not np.isfinite(a) or not np.isfinite(b):
        return plain
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    return float(exact) if exact else plain


def keep_first(vector: NDArray[Any], count: int) -> NDArray[Any]:
    return np.where(np.arange(LANES) < count, vector, 0).astype(vector.dtype)


def first_of(count: int, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.arange(LANES) < count, a, b)


def where_finite(test: NDArray[Any], a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isfinite(test), a, b)


def any_greater(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return bool(np.any(a > b))


def total(vector: NDArray[Any]) -> Any:
    value = vector
    while value.size > 1:
        half = value.size // 2
        value = value[:half] + value[half:]
    return value[0]


def weight_at(rows: Any, row: int, k: int, count: int) -> Any:
    if rows.values is None:
        return None
    vector, n = np.zeros(LANES, rows.values.dtype), min(count, LANES)
    index = rows.at + row * rows.stride + k
    vector[:n] = rows.values[index : index + n]
    return vector


def weight_of_row(rows: Any, row: int) -> Any:
    if rows.values is None:
        return None
    return np.full(LANES, rows.values[rows.at + row * rows.stride])


def where_counted(weight: Any, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    return a if weight is None else np.where(weight != 0, a, b)


def all_count(weight: Any) -> bool:
    return weight is None or bool(np.all(weight != 0))


def plus_weight(n: NDArray[Any], weight: Any, vector: NDArray[Any]) -> NDArray[Any]:
    return n + np.where(np.isnan(vector), 0, 1 if weight is None else weight)


def number_of(weight: Any, n: NDArray[Any]) -> NDArray[Any]:
    return widen(n)


def times_weight(weight: Any, vector: NDArray[Any]) -> NDArray[Any]:
    return vector if weight is None or weight.dtype == np.uint8 else weight * vector
