"""Places in memory: rows of values, whole and partial vectors of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.vectors import (
    LANES,
    load,
    load_first,
    outer_stride,
    row_stride,
    store,
    store_first,
    stream,
    to_line,
    working_dtype,
)


class Rows(NamedTuple):
    """Rows of an array: value ``k`` of row ``r`` stands at ``at + r * stride + k``, in values."""

    values: Any
    at: int
    stride: int


# In a NamedTuple a constant is a type of its own, for which numba compiles anew; these have the type of others.
ZERO: Any = np.intp(0)
ONE: Any = np.intp(1)


@inlined
def smaller(a: int, b: int) -> int:
    """Return the smaller of two integers; numba's ``min`` compiles to more."""
    return a if a < b else b


@inlined
def larger(a: int, b: int) -> int:
    """Return the larger of two integers."""
    return a if a > b else b


@inlined
def rows_of(array: Any, outer: int, row: int, first: int) -> Rows:
    """Return the rows of matrix ``outer`` from ``row`` on, from their value ``first`` on.

    The values of rows that are not there are None.
    """
    stride = row_stride(array)
    return Rows(array, outer * outer_stride(array) + row * stride + first, stride)


@inlined
def column_of(array: Any, outer: int, row: int, first: int) -> Rows:
    """Return row ``row`` of each matrix from ``outer`` on, from its value ``first`` on."""
    stride = outer_stride(array)
    return Rows(array, outer * stride + row * row_stride(array) + first, stride)


@inlined
def one_row(array: Any, index: int) -> Rows:
    """Return what stands from ``index`` on as one row."""
    return Rows(array, index, ZERO)


@inlined
def load_upto(values: Any, index: int, count: int) -> Any:
    """Return sixteen values from ``index`` on, or the first ``count`` of them and zeros."""
    if count >= LANES:
        return load(values, index)
    return load_first(values, index, count)


@inlined
def store_upto(values: Any, index: int, count: int, vector: Any) -> None:
    """Write sixteen lanes to ``index`` on, or the first ``count`` of them."""
    if count >= LANES:
        store(values, index, vector)
    else:
        store_first(values, index, count, vector)


@inlined
def at(rows: Rows, row: int, k: int, count: int) -> Any:
    """Return values ``k`` to ``k + count`` of a row, at most sixteen."""
    return load_upto(rows.values, rows.at + row * rows.stride + k, count)


@inlined
def put(values: Any, index: int, vector: Any, streaming: int) -> None:
    """Write sixteen lanes to ``index`` on, past the cache if ``streaming``."""
    if streaming:
        stream(values, index, vector)
    else:
        store(values, index, vector)


@helper
def aligned(rows: int, columns: int, like: Any) -> Any:
    """Return an empty array of what ``like`` is computed with, whose rows begin at multiples of 64 bytes.

    A vector that spans two cache lines costs two loads.
    """
    stride = (columns + LANES - 1) // LANES * LANES
    memory = np.empty(rows * stride + LANES, working_dtype(like))
    first = to_line(memory, 0)
    return memory[first : first + rows * stride].reshape((rows, stride))


@helper
def scratch(rows: int, columns: int) -> Any:
    """Return an empty table of float64."""
    return np.empty((rows, columns))
