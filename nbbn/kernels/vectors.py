"""Whole and partial vectors behind one name, for loops over a length that is no multiple of 16."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn._jit import helper, inlined
from nbbn._simd import LANES, load, load_first, store, store_first, stream, to_line, working_dtype


@inlined
def load_upto(array: Any, index: int, count: int) -> Any:
    """Return sixteen values from ``index`` on, or the first ``count`` of them and zeros."""
    if count >= LANES:
        return load(array, index)
    return load_first(array, index, count)


@inlined
def store_upto(array: Any, index: int, count: int, value: Any) -> None:
    """Write sixteen lanes to ``index`` on, or the first ``count`` of them."""
    if count >= LANES:
        store(array, index, value)
    else:
        store_first(array, index, count, value)


@inlined
def put(array: Any, index: int, value: Any, streaming: int) -> None:
    """Write sixteen lanes to ``index`` on, past the cache if ``streaming``."""
    if streaming:
        stream(array, index, value)
    else:
        store(array, index, value)


@inlined
def whole_vectors(count: int) -> int:
    """Return the next multiple of sixteen."""
    return (count + LANES - 1) // LANES * LANES


@helper
def aligned(size: int, like: Any) -> Any:
    """Return an empty array of what ``like`` is computed with, which begins at a multiple of 64 bytes.

    A vector that spans two cache lines costs two loads.
    """
    memory = np.empty(size + LANES, working_dtype(like))
    first = to_line(memory, 0)
    return memory[first : first + size]


@helper
def aligned_rows(rows: int, columns: int, like: Any) -> Any:
    """Return such an array of two dimensions, each row of which does."""
    stride = whole_vectors(columns)
    return aligned(rows * stride, like).reshape((rows, stride))
