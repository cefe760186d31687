"""Files larger than memory: their moments, and their normalization, a block of values at a time.

A block is read into a buffer that stays in the cache, and used again. Several threads work on blocks of
their own, each serially; results are merged in the order of the blocks, which follow from the shape
alone: so they have the same bits for every number of threads.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._files import state as state_files
from nbbn._files.npy import Header, NpyFile, NpyOutput
from nbbn.standardizer._blocks import Advance, each
from nbbn.standardizer._dataset import Fitted, apply_form
from nbbn.standardizer._features import FeatureMoments, moments_of, result_dtype

# Of a block, at most. Measured, both passes, seconds: (4194304, 64) float32 with 2**18, 2**20 and 2**22
# values 0.63, 0.48 and 0.47; (64, 4194304), along the last axis, with 2**18 and 2**20 values 4.4 and 2.5.
VALUES = 1 << 20
# Values of a channel in a block, where there are as many: they share the cost of merging.
_PER_CHANNEL = 64
_MEMBERS = "count", "mean", "mean_low", "m2", "m2_low"  # of a file, besides var


class Block(NamedTuple):
    """Some values of some neighbouring channels, in runs that lie in the file ``step`` values apart."""

    first: int
    runs: int
    step: int
    channel: int  # the first
    shape: tuple[int, int, int]  # (outer, channel, inner)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def move(self, values: Array, move: Callable[[int, Array], None]) -> None:
        """Read the block's values, or write them: call ``move`` with each run and where it begins in the file."""
        for number, run in enumerate(values.reshape(self.runs, -1)):
            move(self.first + number * self.step, run)


def view(header: Header, axis: int) -> tuple[int, int, int]:
    """Return the sizes (outer, channel, inner) in the order of the values in the file."""
    index = _checks.axis(axis, len(header.shape))
    shape = header.shape
    if header.fortran_order:
        shape, index = shape[::-1], len(shape) - 1 - index
    return math.prod(shape[:index]), shape[index], math.prod(shape[index + 1 :])


def blocks(outer: int, channels: int, inner: int) -> Iterator[Block]:
    """Cut (outer, channel, inner) into blocks; nothing but the sizes decides how."""
    row = channels * inner
    count = min(outer, -(-_PER_CHANNEL // inner))
    if row * count <= VALUES:  # whole rows
        count, group, part = VALUES // row, channels, inner
    elif inner <= VALUES:  # some channels of several rows
        group, part = max(1, VALUES // (inner * count)), inner
    else:
        count, group, part = 1, 1, VALUES
    for first, channel, place in itertools.product(
        range(0, outer, count), range(0, channels, group), range(0, inner, part)
    ):
        shape = (min(count, outer - first), min(group, channels - channel), min(part, inner - place))
        together = shape[0] == 1 or shape[1] == channels
        begin = (first * channels + channel) * inner + place
        yield Block(begin, 1 if together else shape[0], row, channel, shape)


def _each_block(
    source: NpyFile, axis: int, advance: Advance, work: Callable[..., Any], *made: np.dtype[Any]
) -> Iterator[tuple[Block, Any]]:
    """Yield each block of a file, with what ``work`` returns for it, its values, and room for what is ``made``."""
    sizes, dtype = view(source.header, axis), source.header.dtype
    largest, memory = next(blocks(*sizes)).size, threading.local()  # the first one

    def announced() -> Iterator[Block]:
        for block in blocks(*sizes):
            if block.runs == 1:
                source.advise(block.first, block.size, "WILLNEED")
            yield block

    def do(block: Block) -> Any:
        if not hasattr(memory, "buffers"):  # of this thread
            memory.buffers = [np.empty(largest, kind) for kind in (dtype, *made)]
        shape = block.shape[:2] if block.shape[2] == 1 else block.shape
        values, *room = (buffer[: block.size].reshape(shape) for buffer in memory.buffers)
        block.move(values, source.read)
        return work(block, values, *room)

    for block, result in each(announced(), do):
        yield block, result
        advance(block.size * dtype.itemsize)
    source.check_unchanged()


def moments(source: NpyFile, axis: int, advance: Advance) -> FeatureMoments:
    """Return the moments of a file, which is not empty; ``advance`` gets numbers of bytes."""
    found: dict[int, list[FeatureMoments]] = {}  # by first channel
    for block, one in _each_block(source, axis, advance, lambda block, values: moments_of(values, 1)):
        found.setdefault(block.channel, []).append(one)
    return FeatureMoments.joined([FeatureMoments.together(found[channel]) for channel in sorted(found)])


def save(path: str | os.PathLike[str], found: FeatureMoments, names: Sequence[str] = ()) -> None:
    """Write moments to an .npz file, and the names of the features if they have some; `load` returns them."""
    counts = found.counts
    arrays: dict[str, Any] = dict(zip(_MEMBERS, found, strict=True))
    arrays |= {"count": counts[0] if (counts == counts[0]).all() else counts, "var": found.variances()}
    if names:
        arrays["names"] = np.array(list(names), np.str_)
    state_files.save_arrays(path, arrays)


def load(path: str | os.PathLike[str]) -> tuple[FeatureMoments, tuple[str, ...]]:
    """Read what `save` wrote, or a file of others that has mean and var; else a ValueError."""
    with state_files.opened(path, "--save-stats") as file:
        members = file.vectors(("mean", "var"), _MEMBERS, "names")
        names = tuple(members.pop("names", np.array([], np.str_)).tolist())
        size, count = members["mean"].size, members.setdefault("count", np.array(1.0))
        if count.ndim == 0:
            members["count"] = np.full(size, count)
        vectors = {name: np.array(member, np.float64) for name, member in members.items()}
        for name, vector in vectors.items():
            if vector.shape != (size,) or not size:
                raise ValueError(f"{name}: expected shape (C,), that of mean, got {vector.shape}")
        if not (vectors["count"] >= 0.0).all() or not vectors["count"].any():
            raise ValueError(f"count: expected a number > 0, got {count}")
        if (vectors["var"] < 0).any():
            raise ValueError("var: expected no values below 0")
        if names and len(names) != size:
            raise ValueError(f"names: expected {size}, one a feature, got {len(names)}")
    if "m2" not in vectors:  # then the count says nothing that is needed
        vectors |= {"count": np.ones(size), "m2": vectors["var"]}
    return FeatureMoments.of(tuple(vectors.get(name, np.zeros(size)) for name in _MEMBERS)), names


def normalized(header: Header) -> Header:
    """Return the header of what is made of a file."""
    return header._replace(dtype=result_dtype(header.dtype))


def normalize(source: NpyFile, axis: int, found: FeatureMoments, target: NpyOutput, advance: Advance) -> None:
    """Write the normalized values of a file, which is not empty; ``advance`` as in `moments`."""
    dtype = target.header.dtype
    form = Fitted(found).form(False, dtype)

    def work(block: Block, values: Array, result: Array) -> None:
        apply_form(values, 1, form[:, block.channel : block.channel + block.shape[1]], dtype, result)
        block.move(result, target.write)
        if block.runs == 1:
            # Now the system begins to write them to the disk: less is left for the end. Until then they are kept.
            target.advise(block.first, block.size, "DONTNEED")

    for _ in _each_block(source, axis, advance, work, dtype):
        pass  # it is written
