"""What memory allows: nothing to be ahead of."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from nbbn._bench.base import Implementation, Prepared
from nbbn._bench.problem import Array, Problem
from nbbn._bench.timer import fastest


class Limit(Implementation):
    """Loops that move as much memory as the operation has to, and compute next to nothing.

    Inference reads x and a residual once and writes y. Training and backward read all twice. Of plain and streaming
    stores, serial and parallel, the fastest is taken.
    """

    name = "limit"
    module = "nbbn"

    def load(self, threads: int) -> None:
        """Import the loops; numba takes its threads from the environment."""
        super().load(threads)
        self.library.set_num_threads(threads)  # raises where numba has fewer
        self.loops = importlib.import_module("nbbn._bench.yardsticks")

    def versions(self) -> dict[str, str]:
        """Return none: that of nbbn is told."""
        return {}

    def prepare(self, problem: Problem) -> Prepared:
        """Return the fastest way to move the memory."""
        base, loops = problem.case.base, self.loops
        x, y = stack(problem.x), stack(problem.x)
        second = stack(problem.second) if base == "backward" or problem.case.has_residual else None
        sums = np.empty((1, 1, -(-x.size // loops.STRIDE)), x.dtype)

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            wanted = loops.Variant(x.dtype.type, parallel, residual=second is not None)
            read = partial(loops.read.variant(wanted), x, second, sums)
            write = partial(loops.write.variant(wanted), x, second, y, streaming)
            calls = {"moments": read, "inference": write}
            return calls.get(base, lambda: (read(), write()))

        calls = ways(make, problem.case.threads)
        name = fastest(calls)
        return Prepared(calls[name], note=name)

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Nothing: it has no result."""


def ways(
    make: Callable[[bool, int], Callable[[], Any]], threads: int
) -> dict[str, Callable[[], Any]]:
    """Return what ``make`` returns of (whether parallel, whether past the cache), by name."""
    return {
        f"{('plain', 'streaming')[streaming]} stores, {('serial', 'parallel')[parallel]}": make(
            parallel, streaming
        )
        for parallel in (False, True)[:threads]
        for streaming in (0, 1)
    }


def aligned(size: int, dtype: Any) -> Array:
    """Return an empty stack of one row that begins at a multiple of 64 bytes."""
    nbytes = size * np.dtype(dtype).itemsize
    buffer = np.empty(nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    array: Array = buffer[start : start + nbytes].view(dtype).reshape(1, 1, size)
    return array


def stack(x: Array) -> Array:
    """Return a copy of the values of x, as `aligned` does."""
    copy = aligned(x.size, x.dtype)
    copy[...] = x.ravel()
    return copy
