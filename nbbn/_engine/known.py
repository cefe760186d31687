"""Arrays like one that was met before: what was checked and found of that one, kept for the next.

In a server or a training loop, a layer or a function gets arrays of the same few shapes. For small ones, checks take
longer than the arithmetic: frozen (32, 64) 8.4 us, this way 3.7. The steps are the same, and so are the bits.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from typing import Any

import numpy as np
from numpy import ndarray

from nbbn._checks import Array, overlap
from nbbn._engine import plan
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Epilogue
from nbbn._engine.views import View, view_of
from nbbn._engine.ways import Fused, new_sums, way_of

_MOST = 256  # shapes that a layer remembers, and functions of each channel axis
_DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


class Known:
    """How contiguous float arrays of one shape are run."""

    def __init__(self, x: Array, view: View) -> None:
        self._like = x.shape, x.strides, x.dtype
        self._is_small = view.size < plan.PARALLEL_FROM
        self._way = way_of(view, x.dtype)
        # What returns the stack of an array: of a matrix without `reshape`, which takes 0.15 us more.
        is_matrix = view.shape == (1, *x.shape)
        self._stack: Any = operator.itemgetter(None) if is_matrix else lambda array: array.reshape(view.shape)

    def target(self, x: Array, out: Any, *read: Array) -> Array | None:
        """Return where to write, a new array or ``out``, while x and others are read; None to take a closer look."""
        if out is None:
            return np.empty(self._like[0], self._like[2]) if self._is_small else empty_like(x)
        usable = x.flags.writeable if out is x else self.is_like(out) and not overlap(out, x)
        if not usable or (read and any(out is not array and overlap(out, array) for array in read)):
            return None
        found: Array = out
        return found

    def is_like(self, other: Any, written: bool = True) -> bool:
        """Whether another array is plain, and lies in memory as the one that was met."""
        if type(other) is not ndarray or (other.shape, other.strides, other.dtype) != self._like:
            return False
        flags = other.flags
        return flags.aligned and (not written or flags.writeable)

    def infer(self, x: Array, y: Array, form: Array, after: Epilogue, noted: Array | None = None) -> None:
        """Write y."""
        stack = self._stack
        self._way.write(stack(x), stack(y), form, after.kind, None, noted)

    def train(self, x: Array, y: Array, table: Array, freedom: float, eps: float, after: Epilogue) -> Array:
        """Write the statistics of x to ``table``, which holds gamma and beta, and y; return the coefficients."""
        stack = self._stack
        return self._way.train(stack(x), stack(y), (table, freedom, eps), after.kind)

    def look(self, x: Array, table: Array, count: float) -> Array:
        """Write the statistics of x, which has ``count`` values a channel, to ``table``; return the coefficients."""
        return self._way.look(self._stack(x), (table, count, 0.0))

    def differentiate(
        self, grad_y: Array, x: Array, grad_x: Array, table: Array, count: float, freedom: float, fused: Fused
    ) -> Array:
        """Write grad_x; return the gradients with respect to gamma, beta and a learned slope."""
        stack, of = self._stack, (table, new_sums(table.shape[1], fused), count, freedom)
        return self._way.differentiate(stack(grad_y), stack(x), stack(grad_x), of, fused)


class Memory(dict[Any, Known | None]):
    """What a layer or a function knows, by shape, strides and dtype; None of an array that was met once."""

    def of(self, x: Any) -> Known | None:
        """Return what is known of an array like ``x``."""
        if type(x) is not ndarray or not x.flags.aligned:
            return None
        return self.get((x.shape, x.strides, x.dtype))

    def learn(self, x: Any, index: int) -> Known | None:
        """Note ``x``, whose checks were passed, if it is of the kind that is worth it; return what is known then."""
        if type(x) is not ndarray or not x.size or not x.flags.c_contiguous or x.dtype not in _DTYPES:
            return None
        view = view_of(index, False, x)
        return None if view is None or view.order is not None else self._note(x, Known(x, view))

    def is_new(self, x: Array) -> bool:
        """Whether no array like ``x`` was met; then note that one was."""
        if (x.shape, x.strides, x.dtype) in self:
            return False
        self._note(x, None)
        return True

    def _note(self, x: Array, known: Known | None) -> Known | None:
        if len(self) >= _MOST:
            self.clear()
        self[x.shape, x.strides, x.dtype] = known
        return known


_of_functions: defaultdict[int, Memory] = defaultdict(Memory)  # by channel axis


def met(x: Array, index: int) -> Known | None:
    """Return what functions know of an array like ``x``, whose checks were passed.

    From its second call on: lengths that are always new ones would cost more to learn than to look at.
    """
    memory = _of_functions[index]
    found = memory.of(x)
    return memory.learn(x, index) if found is None and not memory.is_new(x) else found


def met_with_target(
    x: Array, index: int, out: Array | None, as_usual: bool, *read: Array
) -> tuple[Known | None, Array]:
    """Return what functions know of such arrays, and where to write; None, and anything, where that is not enough."""
    known = met(x, index) if as_usual else None
    if known is None or False in [known.is_like(array, False) for array in read]:
        return None, x
    y = known.target(x, out, *read)
    return (None, x) if y is None else (known, y)
