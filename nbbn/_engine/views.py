"""From arrays and their channel axis to the stacks of matrices that kernels take.

The axes other than the channel's may stand in any order, as neither statistics nor elementwise steps ask for one:
they are taken as they lie in memory. So Fortran order, NHWC memory behind an NCHW shape, and slices of samples,
channels and time steps are read in place. What does not fit is copied, here and nowhere else.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbn._checks import Array, overlap
from nbbn._compiler import announce
from nbbn._engine.memory import empty_like

Strides = tuple[int, ...]

# Below this many contiguous values a channel's run is only a partial vector: read as columns.
# Measured, time as runs / as columns, N = 32, C = 512, inference and training: 4 values 1.5 and 3.8,
# 9 values 1.5 and 1.9, 16 values 0.6 and 1.2, 25 values 0.5 and 1.05, 49 values 0.5 and 0.9.
SMALL_INNER = 16

_BITS = {np.dtype(np.float16): np.uint16}  # what kernels see of it; see `nbbn._compiler.formats`


@dataclass(frozen=True, slots=True, eq=False)  # there is one of each: see `_strided`
class View:
    """How arrays of one shape are read."""

    runs: bool  # (outer, C, inner), a channel a run of values; else (outer, rows, C * inner)
    shape: tuple[int, int, int]
    order: tuple[int, ...] | None  # the axes as they lie in memory; None: as they stand
    size: int  # values in all
    channels: int
    inner: int  # values of a channel side by side
    joined: bool  # whether no array has gaps

    def of(self, array: Array) -> Array:
        """Return a stack of what is in ``array``: the same memory."""
        if array.itemsize == 2:  # float16, or bfloat16: not a type of numpy's own
            array = array.view(_BITS.get(array.dtype, np.int16))
        if self.order is not None:
            array = array.transpose(self.order)
        return array.reshape(self.shape)


def view_of(index: int, weighted: bool, *arrays: Array) -> View | None:
    """Return how arrays of one shape can be read together, or None.

    The first one decides the order of the axes; ``index`` is the channel axis, and there are values.
    ``weighted``, the values of a row share their weight unless they are of one channel.
    """
    for array in arrays:
        flags = array.flags
        if not (flags.c_contiguous and flags.aligned):
            break
    else:
        return contiguous_view(arrays[0].shape, index, weighted)
    if not all(array.flags.aligned for array in arrays):
        return None
    strides = tuple((array.strides, array.itemsize) for array in arrays)
    return _strided(arrays[0].shape, index, weighted, strides)


@functools.lru_cache(maxsize=1024)
def contiguous_view(shape: tuple[int, ...], index: int, weighted: bool) -> View | None:
    """Return how contiguous arrays of one shape are read, or None; there are values."""
    strides = np.empty(shape, np.uint8).strides
    return _strided(shape, index, weighted, ((strides, 1),))


@functools.lru_cache(maxsize=1024)
def _strided(
    shape: tuple[int, ...], index: int, weighted: bool, arrays: tuple[tuple[Strides, int], ...]
) -> View | None:
    strides = []
    for of_bytes, itemsize in arrays:
        if any(stride % itemsize for stride in of_bytes):
            return None
        strides.append(tuple(stride // itemsize for stride in of_bytes))
    if not all(_goes_forward(shape, one) for one in strides):
        return None
    lead, channels = strides[0], shape[index]
    others = [axis for axis, size in enumerate(shape) if size > 1 and axis != index]
    others.sort(key=lambda axis: -lead[axis])
    if channels == 1:
        before, after = others, list[int]()
        while before and _are_joined([before[-1], *after], shape, strides):
            after.insert(0, before.pop())
    else:
        before = [axis for axis in others if lead[axis] > lead[index]]
        after = [axis for axis in others if lead[axis] <= lead[index]]
    if not _are_joined(after, shape, strides):
        return None
    inner = _size(after, shape)
    columns = channels > 1 and inner < SMALL_INNER and not (weighted and inner > 1)
    columns = columns and all(one[index] == inner for one in strides)
    rows: list[int] = []
    if columns:
        while before and _step_as_one([before[-1], *rows], shape, strides):
            rows.insert(0, before.pop())
    elif inner == 1 and len(others) + (channels > 1) > 0:
        return None  # gaps between all values: each would be a run of its own
    if not _step_as_one(before, shape, strides):
        return None
    single = [axis for axis, size in enumerate(shape) if size == 1 and axis != index]
    order: tuple[int, ...] | None = (*single, *before, *rows, index, *after)
    if order == tuple(range(len(shape))):
        order = None
    matrix = (_size(rows, shape), channels * inner) if columns else (channels, inner)
    stack = _size(before, shape), *matrix
    memory = [axis for axis in order or range(len(shape)) if shape[axis] > 1]
    joined = _are_joined(memory, shape, strides)
    return View(not columns, stack, order, math.prod(stack), channels, inner, joined)


def _size(axes: list[int], shape: tuple[int, ...]) -> int:
    return math.prod(shape[axis] for axis in axes)


def _step_as_one(axes: list[int], shape: tuple[int, ...], strides: list[Strides]) -> bool:
    """Whether neighbouring axes, outermost first, are as one axis in all arrays."""
    pairs = list(itertools.pairwise(axes))
    return all(one[a] == one[b] * shape[b] for one in strides for a, b in pairs)


def _are_joined(axes: list[int], shape: tuple[int, ...], strides: list[Strides]) -> bool:
    """Whether neighbouring axes are one run of values in all arrays."""
    ends = not axes or all(one[axes[-1]] == 1 for one in strides)
    return ends and _step_as_one(axes, shape, strides)


def _goes_forward(shape: tuple[int, ...], strides: Strides) -> bool:
    """Whether no stride goes backward, and no value is visited twice."""
    reach = 1
    for stride, size in sorted((t, n) for t, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reach:
            return False
        reach = stride * size
    return True


def same_memory(a: Array, b: Array) -> bool:
    """Whether the arrays are the same values at the same places."""
    if a is b:
        return True
    if a.strides != b.strides or a.itemsize != b.itemsize or not overlap(a, b):
        return False
    # 5 us, so last
    found: bool = a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    return found


def apart(out: Array, a: Array) -> bool:
    """Whether writing to ``out`` leaves ``a`` readable: no overlap, or value over value."""
    return out is a or not overlap(out, a) or same_memory(out, a)


def read_in_place(index: int, weighted: bool, x: Array, *others: Array) -> tuple[View, tuple[Array, ...]]:
    """Return a view of arrays that are only read, and these; copies where they do not fit."""
    view = view_of(index, weighted, x, *others)
    if view is None:
        if view_of(index, weighted, x) is None:
            announce.note("x of %s is copied: its strides are %s; see nbbn.explain", x.shape, x.strides)
            x = x.copy(order="K")
        others = tuple(a if view_of(index, weighted, x, a) is not None else _copy_like(x, a) for a in others)
        view = view_of(index, weighted, x, *others)
    if view is None:  # each fits x, but not all of them together
        others = tuple(_copy_like(x, a) for a in others)
        view = view_of(index, weighted, x, *others)
    assert view is not None, f"no view of {x.shape} with strides {x.strides}"
    return view, (x, *others)


Written = tuple[View, Array, tuple[Array, ...]]  # a view of arrays, what is written, what is read


def write_in_place(
    index: int, weighted: bool, out: Array | None, dtype: np.dtype[Any] | None, read: tuple[Array, ...]
) -> Written:
    """Return a view of x and others and what is written: ``out`` if that can be, else a new array of ``dtype``."""
    found = _with_target(index, weighted, out, dtype, read)
    if found is None:
        _, read = read_in_place(index, weighted, *read)
        found = _with_target(index, weighted, out, dtype, read)
    if found is None and out is not None:
        announce.note("out of %s is written by way of a copy: it is laid out otherwise", out.shape)
        found = _with_target(index, weighted, None, dtype, read)
    assert found is not None
    return found


def _with_target(
    index: int, weighted: bool, out: Array | None, dtype: np.dtype[Any] | None, read: tuple[Array, ...]
) -> Written | None:
    if out is not None and not all(apart(out, a) for a in read):
        return None
    target = empty_like(read[0], dtype) if out is None else out
    view = view_of(index, weighted, read[0], target, *read[1:])
    return None if view is None else (view, target, read)


def _copy_like(source: Array, array: Array) -> Array:
    """Return a copy of ``array`` in the memory order of ``source``."""
    announce.note("an array of %s is copied: it lies otherwise than x", array.shape)
    copy = empty_like(source, array.dtype)
    copy[...] = array
    return copy
