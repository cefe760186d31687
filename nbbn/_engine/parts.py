"""How arrays are cut into parts for sums, and rows joined to wider ones: by the shape, as the bits depend on it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn._checks import Array
from nbbn._engine.views import View
from nbbn._kernels import columns, runs

Rows = tuple[int, tuple[Array, ...]]  # how a stack is written: values of a row, and its blocks (of runs, none)


class Cut(NamedTuple):
    """How a stack is cut for sums."""

    width: int  # values of a row as it is read; of runs, channels
    sizes: Array  # how many values, of runs, or rows each part has
    blocks: Array | None  # of each matrix of a stack of columns
    numbers: NDArray[np.float64] | None  # the weight of each part, where there are weights


def cut_for_sums(view: View, weights: Array | None, *stacks: Array) -> Cut:
    """Return how stacks of this view are cut; ``weights`` are those of their values."""
    if weights is None:
        # Rows that follow each other without gaps may be read as wider ones.
        return cut(view, all(len(a) == 1 and a.strides[1] == a.shape[2] * a.itemsize for a in stacks))
    found = cut(view, False)
    # Weights stand without gaps, one a value of a run or one a row: those of a part follow those of the one before.
    starts = (np.cumsum(found.sizes) - found.sizes).astype(np.intp)
    with np.errstate(all="ignore"):
        return found._replace(numbers=np.add.reduceat(weights, starts, dtype=np.float64))


@functools.lru_cache(maxsize=1024)
def cut(view: View, joined: bool) -> Cut:
    """Return how stacks of this view are cut, whose rows may be read as wider ones where they are ``joined``."""
    outer, rows, row = view.shape
    if view.runs:
        return Cut(view.channels, runs.numbers_of_parts(outer, row), None, None)
    width = columns.width_to_sum(outer, rows, row) if joined else row
    blocks = columns.blocks_of(rows, row, width, columns.TILE)
    return Cut(width, np.tile(blocks[blocks[:, 3] == 0, 2], outer), blocks, None)  # of tiles, the first of each part


@functools.lru_cache(maxsize=1024)
def rows_to_write(view: View, itemsize: int, streaming: int, joins: bool = True) -> Rows:
    """Return how stacks of this view are written, computed with numbers of ``itemsize`` bytes."""
    if view.runs:
        return view.channels, ()
    _, rows, row = view.shape
    width = columns.width_to_write(rows, row, itemsize, streaming) if joins and view.joined else row
    return width, (columns.blocks_of(rows, row, width, columns.WIDE_TILE),)


@functools.lru_cache(maxsize=16)
def channels_of(channels: int, inner: int, width: int) -> NDArray[np.intp]:
    """Return the channel of each column of rows of this width."""
    return np.arange(width) // inner % channels
