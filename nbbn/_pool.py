"""Memory for large results, used again: a page fault costs more than a kernel.

Inference with a fresh result of 103 MB took 15.3 ms on one thread, 6.5 ms with the memory of an
earlier one. So a large result is a view of a *lease*, an array of a type of its own: numpy keeps
that as the base of the result and of all views of it. When the last of them is gone, the lease's
finalizer gives its memory to the next result of that size. What waits to be used is bounded by
``NBBN_POOL_BYTES`` (256 MB; 0: no pool).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_SMALLEST = 1 << 20  # bytes: what is smaller, malloc uses again by itself
_PAGE = 4096
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
        # Appending to a deque is atomic: a finalizer may run in the middle of anything, in `take`
        # of the same thread too, and must not wait for a lock.
        self._waiting: deque[mmap.mmap] = deque()
        self._lock = threading.Lock()

    def take(self, nbytes: int) -> Array:
        """Return an array of ``nbytes`` bytes that begins at a page."""
        size = -(-nbytes // _PAGE) * _PAGE
        buffer = self._find(size) or _map(size)
        lease = _Lease((nbytes,), np.uint8, buffer=buffer)
        return lease.view(np.ndarray)

    def _find(self, size: int) -> mmap.mmap | None:
        # Not a wait: a signal handler may call nbbn in the middle of this loop.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            for _ in range(len(self._waiting)):
                try:
                    buffer = self._waiting.pop()
                except IndexError:
                    return None
                if len(buffer) == size:
                    return buffer
                self._waiting.appendleft(buffer)
            return None
        finally:
            self._lock.release()

    def give_back(self, buffer: mmap.mmap) -> None:
        """Keep ``buffer`` for later; let go of the oldest beyond the limit."""
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

    def renew_lock(self) -> None:
        """Forget who held the lock."""
        self._lock = threading.Lock()


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

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.renew_lock)


def pool_limit() -> int:
    """Return how many bytes may wait to be used again."""
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
