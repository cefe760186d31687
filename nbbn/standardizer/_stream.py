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
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._engine import steps, threads
from nbbn._files import state as state_files
from nbbn._files.npy import Header, NpyFile, NpyOutput
from nbbn.moments import Moments, batch_moments
from nbbn.standardizer._dataset import apply_form, divided_by, forward_table, is_wide

Array = NDArray[Any]
Vector = NDArray[np.float64]
Advance = Callable[[int], None]

ACCEPTED = "float32, float64, float16 or uint8"

# Of a block, at most. Measured, both passes, seconds: (4194304, 64) float32 with 2**18, 2**20 and 2**22
# values 0.63, 0.48 and 0.47; (64, 4194304), along the last axis, with 2**18 and 2**20 values 4.4 and 2.5.
VALUES = 1 << 20
# Values of a channel in a block, where there are as many: they share the cost of merging.
_PER_CHANNEL = 64
_MOST_THREADS = 8  # each has buffers; more than these wait for the memory anyway


@dataclass(frozen=True, slots=True)
class Block:
    """Some values of some neighbouring channels, in runs that lie in the file ``step`` values apart."""

    first: int
    runs: int
    step: int
    channel: int  # the first
    shape: tuple[int, int, int]  # (outer, channel, inner)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Statistics:
    """What normalization needs, float64, per channel: the mean is ``mean + mean_low``."""

    mean: Vector
    mean_low: Vector
    var: Vector

    @classmethod
    def of(cls, found: Moments) -> Statistics:
        """Return the population's, whose moments these are."""
        return cls(found.mean, found._mean_low, found.var())

    def table(self) -> Array:
        """Return the table of the statistics; where the variance is 0, the scale is 1."""
        return forward_table(self.mean, self.mean_low, divided_by(self.var))


def check_dtype(source: NpyFile) -> None:
    """Raise TypeError for values that cannot be read."""
    _checks.array(source.path, np.empty(0, source.header.dtype), ACCEPTED)


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
        shape = (
            min(count, outer - first),
            min(group, channels - channel),
            min(part, inner - place),
        )
        together = shape[0] == 1 or shape[1] == channels
        begin = (first * channels + channel) * inner + place
        yield Block(begin, 1 if together else shape[0], row, channel, shape)


def _largest(sizes: tuple[int, int, int]) -> int:
    """Return how many values the largest block has: the first."""
    return next(blocks(*sizes)).size


class _Buffers(threading.local):
    """Memory of one thread for the values of a block, and for what is made of them."""

    def __init__(self, size: int, *dtypes: np.dtype[Any]) -> None:
        self.arrays = [np.empty(size, dtype) for dtype in dtypes]

    def take(self, block: Block) -> list[Array]:
        """Return them in the shape of ``block``."""
        shape = block.shape[:2] if block.shape[2] == 1 else block.shape
        return [array[: block.size].reshape(shape) for array in self.arrays]


def _read(source: NpyFile, block: Block, values: Array) -> None:
    for number, run in enumerate(values.reshape(block.runs, -1)):
        source.read(block.first + number * block.step, run)


def _write(target: NpyOutput, block: Block, values: Array) -> None:
    for number, run in enumerate(values.reshape(block.runs, -1)):
        target.write(block.first + number * block.step, run)
    if block.runs == 1:
        target.finish(block.first, block.size)


def _for_each(
    source: NpyFile,
    sizes: tuple[int, int, int],
    work: Callable[[Block], Any],
    use: Callable[[Block, Any], None],
) -> None:
    """Call ``work`` for all blocks in several threads, and ``use`` with its results in order."""

    def alone(block: Block) -> Any:
        with threads.num_threads(1):
            return work(block)

    number = min(threads.get_num_threads(), _MOST_THREADS)
    waiting: deque[tuple[Block, Future[Any]]] = deque()
    with ThreadPoolExecutor(number) as pool:
        try:
            for block in blocks(*sizes):
                if block.runs == 1:
                    source.announce(block.first, block.size)
                waiting.append((block, _submitted(pool, alone, block)))
                if len(waiting) > 2 * number:
                    done, result = waiting.popleft()
                    use(done, result.result())
            while waiting:
                done, result = waiting.popleft()
                use(done, result.result())
        finally:  # also after Ctrl-C: nobody may write when this returns
            for _, result in waiting:
                result.cancel()


def _submitted(pool: ThreadPoolExecutor, work: Callable[[Block], Any], block: Block) -> Future[Any]:
    try:
        return pool.submit(work, block)
    except RuntimeError as error:  # no memory for the stack of a thread, or a limit on threads
        raise MemoryError(str(error)) from error


def moments(source: NpyFile, axis: int, advance: Advance) -> Moments:
    """Return the moments of a file, which is not empty; ``advance`` gets numbers of bytes."""
    sizes = view(source.header, axis)
    dtype = source.header.dtype
    buffers = _Buffers(_largest(sizes), dtype)
    found: dict[int, Moments] = {}  # by first channel

    def work(block: Block) -> Moments:
        (values,) = buffers.take(block)
        _read(source, block, values)
        return batch_moments(values, axis=1)

    def use(block: Block, result: Moments) -> None:
        before = found.get(block.channel)
        found[block.channel] = result if before is None else before.merge(result)
        advance(block.size * dtype.itemsize)

    _for_each(source, sizes, work, use)
    source.check_unchanged()
    return _joined([found[channel] for channel in sorted(found)])


def _joined(groups: list[Moments]) -> Moments:
    """Return the moments of all channels of those of groups of them."""
    if len(groups) == 1:
        return groups[0]
    names = ("mean", "_mean_low", "m2", "_m2_low")
    vectors = [np.concatenate([getattr(group, name) for group in groups]) for name in names]
    return Moments._restore(groups[0].count, *vectors)


def save(path: str | os.PathLike[str], found: Moments) -> None:
    """Write moments, of at least one value, to an .npz file; `load` returns their statistics."""
    arrays = {
        "count": np.array(found.count),
        "mean": found.mean,
        "mean_low": found._mean_low,
        "m2": found.m2,
        "m2_low": found._m2_low,
        "var": found.var(),
    }
    state_files.save_arrays(path, arrays)


def load(path: str | os.PathLike[str]) -> Statistics:
    """Read what `save` wrote, or a file of others that has mean and var; else a ValueError."""
    optional = "count", "mean_low", "m2", "m2_low"
    with state_files.opened(path, "--save-stats") as file:
        members = file.vectors(("mean", "var"), optional)
        size = members["mean"].size
        count = members.pop("count", np.array(1.0))
        if count.shape != () or not count > 0:
            raise ValueError(f"count: expected a number > 0, got {count}")
        vectors = {name: np.array(member, np.float64) for name, member in members.items()}
        for name, vector in vectors.items():
            if vector.shape != (size,) or not size:
                raise ValueError(f"{name}: expected shape (C,), that of mean, got {vector.shape}")
        if (vectors["var"] < 0).any():
            raise ValueError("var: expected no values below 0")
    return Statistics(vectors["mean"], vectors.get("mean_low", np.zeros(size)), vectors["var"])


def output(source: NpyFile, file: BinaryIO) -> NpyOutput:
    """Make the .npy file of what `normalize` writes, as long as it will be, of an open file."""
    return NpyOutput(file, normalized(source.header))


def normalized(header: Header) -> Header:
    """Return the header of what is made of a file."""
    kind = _checks.result_dtype(np.float32 if header.dtype == np.uint8 else None, header.dtype)
    return Header(header.shape, header.fortran_order, kind)


def normalize(
    source: NpyFile, axis: int, statistics: Statistics, target: NpyOutput, advance: Advance
) -> None:
    """Write the normalized values of a file, which is not empty; ``advance`` as in `moments`."""
    sizes = view(source.header, axis)
    dtype, result_dtype = source.header.dtype, normalized(source.header).dtype
    wide = is_wide(statistics.mean, divided_by(statistics.var))
    computed = np.dtype(np.float64) if wide or result_dtype == np.float64 else np.dtype(np.float32)
    form = steps.coefficients(statistics.table(), 0.0, computed)
    buffers = _Buffers(_largest(sizes), dtype, result_dtype)

    def work(block: Block) -> None:
        values, result = buffers.take(block)
        _read(source, block, values)
        last = block.channel + block.shape[1]
        own = form if block.shape[1] == sizes[1] else form[:, block.channel : last].copy()
        apply_form(values, 1, own, result_dtype, result)
        _write(target, block, result)

    _for_each(source, sizes, work, lambda block, _: advance(block.size * dtype.itemsize))
    source.check_unchanged()
