"""Places in memory: rows of values, whole and partial vectors of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import inlined
from nbbn._compiler.memory import outer_stride, row_stride


class Rows(NamedTuple):
    """Rows of an array: value ``k`` of row ``r`` stands at ``at + r * stride + k``, in values."""

    values: Any
    at: int
    stride: int


# In a NamedTuple a constant is a type of its own, for which numba compiles anew; these have the type of others.
ZERO: Any = np.intp(0)
ONE: Any = np.intp(1)


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
