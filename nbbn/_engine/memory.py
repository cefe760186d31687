"""Memory for large results, used again: a page fault costs more than a kernel.

Inference with a fresh result of 103 MB took 15.3 ms on one thread, 6.5 ms with the memory of an earlier one. So a large
result is a view of a *lease*, an array of a type of its own: numpy keeps that as the base of the result and of all
views of it. When the last of them is gone, the lease's finalizer gives its memory to the next result of that size. What
waits to be used is bounded by ``NBBN_POOL_BYTES`` (256 MB; 0: no pool).
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
from collections import deque
from typing import Any

import numpy as np

from nbbn._checks import Array

_SMALLEST = 1 << 20  # bytes: what is smaller, malloc uses again by itself
_PAGE = 4096
_FLOAT64 = np.dtype(np.float64)
_LINE, _FEW_LINES = 64, 1024  # bytes
_HUGE = 4 << 20  # bytes: from here on huge pages pay, as numpy found for its own arrays
_DEFAULT_LIMIT = 256 << 20


class _Lease(np.ndarray):
    """Memory on loan: what is left of it when nobody looks at it any more goes back."""

    __slots__ = ()

    def __del__(self, _mapped: type[mmap.mmap] = mmap.mmap) -> None:
        memory: Any = self.base
        pool = _pool  # None where the interpreter is on its way out
        if pool is not None and isinstance(memory, _mapped):
            pool.give_back(memory)


class Pool:
    """Buffers waiting to be used again, at most ``limit`` bytes of them."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # What a deque does is atomic, so no lock is needed. A finalizer or a signal handler may run in the
        # middle of anything, in `take` of the same thread too, and a handler may raise there.
        self._waiting: deque[mmap.mmap] = deque()

    def take(self, nbytes: int) -> Array:
        """Return an array of ``nbytes`` bytes that begins at a page."""
        size = -(-nbytes // _PAGE) * _PAGE
        buffer = self._find(size) or self._fresh(size)
        lease = _Lease((nbytes,), np.uint8, buffer=buffer)
        return lease.view(np.ndarray)

    def _find(self, size: int) -> mmap.mmap | None:
        # Others may search, too: whoever has a buffer in hand, the next one does not see it.
        for _ in range(len(self._waiting)):
            try:
                buffer = self._waiting.pop()
            except IndexError:
                return None
            if len(buffer) == size:
                return buffer
            self._waiting.appendleft(buffer)
        return None

    def _fresh(self, size: int) -> mmap.mmap:
        try:
            return _map(size)
        except OSError:
            self._waiting.clear()  # what waits may be what is missing
        try:
            return _map(size)
        except OSError as error:
            raise MemoryError(f"no memory for a result of {size} bytes: {error.strerror}") from error

    def give_back(self, buffer: mmap.mmap) -> None:
        """Keep ``buffer`` for later; let go of others beyond the limit."""
        self._waiting.append(buffer)
        while self.waiting() > self.limit:
            try:
                self._waiting.popleft()
            except IndexError:
                return

    def waiting(self) -> int:
        """Return how many bytes wait to be used again."""
        try:
            return sum(len(buffer) for buffer in tuple(self._waiting))
        except RuntimeError:  # it changed meanwhile: who changed it looks as well
            return 0


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_ANONYMOUS"):
        return mmap.mmap(-1, size)
    # Private: a forked process must not write into its parent's results.
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _limit() -> int:
    try:
        return max(0, int(os.environ.get("NBBN_POOL_BYTES", _DEFAULT_LIMIT)))
    except ValueError:
        return _DEFAULT_LIMIT


_pool = Pool(_limit())


def pool_limit() -> int:
    return _pool.limit


def is_pooled(nbytes: int) -> bool:
    """Whether a result of ``nbytes`` bytes gets memory from the pool."""
    return _SMALLEST <= nbytes <= _pool.limit


def empty_like(like: Array, dtype: np.dtype[Any] | None = None) -> Array:
    """Return an array of the shape, dtype and memory order of ``like``, large ones from the pool."""
    kind = like.dtype if dtype is None else dtype
    nbytes = like.size * kind.itemsize
    if not is_pooled(nbytes) or kind.hasobject:
        return np.empty_like(like, dtype)
    order = sorted(range(like.ndim), key=lambda axis: -abs(like.strides[axis]))
    dense = _pool.take(nbytes).view(kind).reshape([like.shape[axis] for axis in order])
    return dense.transpose(np.argsort(order))


def on_lines(shape: tuple[int, ...], dtype: np.dtype[Any] = _FLOAT64) -> Array:
    """Return an empty array that begins at a line of the cache, unless it is small: where malloc's does not is chance.

    Inference of (4096, 128), which reads coefficients beside each value, took 1.2 times as long when those began 16
    bytes further on: half of such vectors span two lines. To make such an array takes 2 us.
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= _FEW_LINES:
        return np.empty(shape, dtype)
    memory = np.empty(size + _LINE, np.uint8)
    start = -memory.__array_interface__["data"][0] % _LINE
    return memory[start : start + size].view(dtype).reshape(shape)
