"""From (array, channel axis) to the two canonical views that the kernels know.

*channels first*: (outer, C, inner) with contiguous inner values; *channels last*: a matrix of rows
whose contiguous columns belong to channels. The axes other than the channel axis may stand in any
order, as statistics and elementwise steps do not ask for it: so Fortran order, NHWC memory behind
an NCHW shape, and crops of larger arrays are all read in place. `describe` returns None where
that can't be done (negative or zero strides, gaps within a run of values); then a copy is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Below this many contiguous values a channel's run is only a partial vector: read as columns.
# Measured, time as runs / as columns, N = 32, C = 512, inference and training: 4 values 1.5 and 3.8,
# 9 values 1.5 and 1.9, 16 values 0.6 and 1.2, 25 values 0.5 and 1.05, 49 values 0.5 and 0.9.
SMALL_INNER = 16

_FULL_WIDTH = 128  # columns: eight vectors; narrower matrices are folded up to it
_LANES = 16

_TooHardError = getattr(np, "exceptions", np).TooHardError  # in np itself before 1.25
_WORK = 10_000  # candidates that numpy may look at before an overlap is taken for granted

Strides = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """How one or several arrays of one shape are read.

    ``strides`` holds, for each array, (outer, channel) strides for channels first, (row,) for
    channels last; in values, not bytes.
    """

    channels_first: bool
    channels: int
    count: int  # values per channel
    inner: int
    outer: int  # channels first: runs per channel; channels last: rows
    repeats: int  # channels last: rows of the matrix folded into one
    tail: int  # channels last: columns of the last, partial row
    strides: tuple[Strides, ...]

    @property
    def view(self) -> tuple[int, ...]:
        """The sizes, in the order in which the kernels of this layout take them."""
        if self.channels_first:
            return self.outer, self.channels, self.inner
        return self.outer, self.channels, self.inner, self.repeats, self.tail


def unfolded(layout: Layout) -> Layout:
    """Return ``layout`` such that the values of a run or row, and they alone, share their place in a mask."""
    if layout.channels_first:
        return layout
    channels, inner, repeats = layout.channels, layout.inner, layout.repeats
    rows = layout.outer * repeats + layout.tail // (channels * inner)
    strides = [row // repeats for (row,) in layout.strides]
    if inner == 1:
        pairs: tuple[Strides, ...] = tuple((row,) for row in strides)
    else:
        pairs = tuple((row, inner) for row in strides)
    return Layout(inner > 1, channels, layout.count, inner, rows, 1, 0, pairs)


def describe(shape: tuple[int, ...], axis: int, itemsize: int, *strides: Strides) -> Layout | None:
    """Return the layout of arrays of ``shape`` with these ``strides`` (bytes), or None.

    The first array decides the order of the axes. ``axis`` is not negative; no size is zero.
    """
    channels = shape[axis]
    if any(not _is_plain(shape, array, itemsize) for array in strides):
        return None
    lead = strides[0]
    others = [i for i, size in enumerate(shape) if size > 1 and i != axis]
    others.sort(key=lambda i: -lead[i])
    if channels == 1:
        groups = _merge(others, shape, strides)
        if len(groups) > 2:
            return None
        before, after = groups[:-1], groups[-1:]
    else:
        before = _merge([i for i in others if lead[i] > lead[axis]], shape, strides)
        after = _merge([i for i in others if lead[i] <= lead[axis]], shape, strides)
        if len(before) > 1 or len(after) > 1:
            return None
    outer, outer_strides = before[0] if before else (1, (0,) * len(strides))
    inner, inner_strides = after[0] if after else (1, (itemsize,) * len(strides))
    if any(stride != itemsize for stride in inner_strides):
        return None
    outer_items = tuple(stride // itemsize for stride in outer_strides)
    channel_items = tuple(array[axis] // itemsize if channels > 1 else 0 for array in strides)
    count = outer * inner
    if channels > 1 and inner < SMALL_INNER and all(c == inner for c in channel_items):
        return _columns(channels, count, outer, inner, outer_items)
    if channels > 1 and inner == 1:
        return None  # channels with gaps between them: one value a run
    pairs = tuple(zip(outer_items, channel_items, strict=True))
    return Layout(True, channels, count, inner, outer, 1, 0, pairs)


def _is_plain(shape: tuple[int, ...], strides: Strides, itemsize: int) -> bool:
    """Whether the strides go forward, over whole items, and visit no item twice."""
    reach = itemsize
    for stride, size in sorted((t, n) for t, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reach or stride % itemsize:
            return False
        reach = stride * size
    return True


def overlap(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Whether the arrays share memory; interleaved ones (channels of one buffer) do not."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return bool(np.shares_memory(a, b, max_work=_WORK))  # type: ignore[arg-type]
    except _TooHardError:
        return True


def overlaps_itself(array: NDArray[Any]) -> bool:
    """Whether two values of ``array`` may share memory (certain for any array but exotic ones)."""
    forward = tuple(abs(stride) for stride in array.strides)
    reach = array.itemsize
    steps = zip(forward, array.shape, strict=True)
    for stride, size in sorted((t, n) for t, n in steps if n > 1):
        if stride < reach:
            return True
        reach = stride * (size - 1) + reach
    return False


def _merge(
    axes: list[int], shape: tuple[int, ...], strides: tuple[Strides, ...]
) -> list[tuple[int, Strides]]:
    """Join neighbouring axes (outermost first) that step like one; return (size, strides)."""
    groups: list[tuple[int, Strides]] = []
    for i in axes:
        own = tuple(array[i] for array in strides)
        if groups:
            size, outer = groups[-1]
            if all(o == s * shape[i] for o, s in zip(outer, own, strict=True)):
                groups[-1] = (size * shape[i], own)
                continue
        groups.append((shape[i], own))
    return groups


def _columns(channels: int, count: int, rows: int, inner: int, row_items: Strides) -> Layout:
    width = channels * inner
    repeats, tail = 1, 0
    if width < _FULL_WIDTH and all(stride == width for stride in row_items):
        whole_vectors = _LANES // math.gcd(width, _LANES)
        wanted = whole_vectors * -(-_FULL_WIDTH // (width * whole_vectors))
        if rows >= wanted:
            repeats = wanted
            rows, left = divmod(rows, repeats)
            tail = left * width
            row_items = tuple(stride * repeats for stride in row_items)
    pairs = tuple((stride,) for stride in row_items)
    return Layout(False, channels, count, inner, rows, repeats, tail, pairs)


def flat(array: NDArray[Any]) -> NDArray[Any]:
    """Return a contiguous 1-d view from the first to the last value in memory, gaps included."""
    if array.flags.c_contiguous:
        return array.reshape(-1)
    if array.flags.f_contiguous:
        return array.T.reshape(-1)
    span = 1 + sum(
        (size - 1) * (stride // array.itemsize)
        for size, stride in zip(array.shape, array.strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(array, (span,), (array.itemsize,))
