"""What ``vectors``, ``memory`` and ``weights`` do, in plain Python: arrays of 16 lanes.

For ``NUMBA_DISABLE_JIT``: each function takes the place of the intrinsic of its name, where it is described. Twins of
one line stand beside their intrinsics. What calls them ignores NumPy's warnings.
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
        return vector.astype(np.float16).view(np.uint16)
    if dtype == np.int16:
        bits = vector.view(np.uint32)
        upper = bits >> np.uint32(16)
        rounded = (bits + (upper & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)
        return np.where(np.isnan(vector), upper | np.uint32(0x40), rounded).astype(np.uint16).view(np.int16)
    return vector


def note_infinite(noted: Any, largest: Any) -> None:
    if noted is not None and np.isinf(largest).any():
        noted[0] = 1


def _stored(array: NDArray[Any], index: int, count: int) -> NDArray[Any]:
    vector, n = np.zeros(LANES, array.dtype), min(count, LANES)
    vector[:n] = _memory(array, index, n)
    return vector


def load(array: Any, index: int, count: int = LANES) -> Any:
    return None if array is None else _decode(_stored(array, index, count))


def _rows(like: Any, table: NDArray[Any], first: int) -> NDArray[Any]:
    """As many rows of a table as ``like`` says: a number, a tuple, or the class of a NamedTuple."""
    number = like if isinstance(like, int) else len(getattr(like, "_fields", like))
    return table.reshape(len(table), -1)[first : first + number]


def _filled(like: Any, vectors: Any) -> Any:
    return like(*vectors) if isinstance(like, type) else tuple(vectors)


def load_rows(like: Any, table: Any, first: int, index: int, count: int) -> Any:
    return None if table is None else _filled(like, (load(row, index, count) for row in _rows(like, table, first)))


def load_every(like: Any, table: NDArray[Any], first: int, index: int, stride: int, count: int) -> Any:
    return _filled(like, (load(row[::stride], 0, count) for row in _rows(like, table, first)[:, index:]))


def splat_rows(like: Any, table: Any, first: int, index: int) -> Any:
    return None if table is None else _filled(like, (np.full(LANES, row[index]) for row in _rows(like, table, first)))


def store_rows(table: NDArray[Any], first: int, index: int, count: int, vectors: Any) -> None:
    for row, vector in zip(_rows(vectors, table, first), vectors, strict=True):
        store_first(row, index, min(count, LANES), vector)


def at(rows: Any, row: int, k: int, count: int) -> Any:
    return load(rows.values, rows.at + row * rows.stride + k, count)


def at_any(rows: Any, row: int, k: int, count: int) -> Any:
    if rows.values is None or rows.values.size:
        return at(rows, row, k, count)
    return np.zeros(LANES, working_dtype(rows.values))


def keep(rows: Any, row: int, k: int, count: int, value: NDArray[Any]) -> None:
    if rows.values is not None:
        store_first(rows.values, rows.at + row * rows.stride + k, min(count, LANES), value)


def store_first(array: NDArray[Any], index: int, count: int, value: NDArray[Any]) -> None:
    _memory(array, index, count)[:] = _encode(array.dtype, value[:count])


def constant(vector: NDArray[Any], number: float, of_float64: float | None = None) -> NDArray[Any]:
    is_other = of_float64 is not None and vector.dtype == np.float64
    return np.full(LANES, of_float64 if is_other else number, vector.dtype)


def power_of_two(exponent: NDArray[Any]) -> Any:
    bits: Any = np.uint32 if exponent.dtype == np.float32 else np.uint64
    return (exponent.view(bits) << bits(np.finfo(exponent.dtype).nmant)).view(exponent.dtype)


def exponential_series(vector: NDArray[Any]) -> NDArray[Any]:
    found, *rest = (np.full(LANES, number, vector.dtype) for number in SERIES[vector.dtype.name])
    for number in rest:
        found = fma(found, vector, number)
    return found


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


def total(vector: NDArray[Any]) -> Any:
    while vector.size > 1:
        half = vector.size // 2
        vector = vector[:half] + vector[half:]
    return vector[0]


def weight_at(rows: Any, row: int, k: int, count: int) -> Any:
    if rows.values is None:
        return None
    if len(rows) == 2:  # `RowWeights`
        return np.full(LANES, rows.values[rows.at + row])
    return _stored(rows.values, rows.at + row * rows.stride + k, count)
