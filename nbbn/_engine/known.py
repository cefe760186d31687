"""Arrays like one that was met before: what was checked and found of that one, kept for the next.

A layer of a server or of a training loop gets arrays of the same few shapes. For small ones, checks and decisions
take longer than the arithmetic: frozen (32, 64) 8.4 us, this way 3.7. The steps are the same, and so are the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn._engine import plan, steps
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Epilogue
from nbbn._engine.views import View, view_of
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_runs as runs

Array = NDArray[Any]

_MOST = 64  # shapes that a layer remembers
_DTYPES = {np.dtype(np.float32): np.float32, np.dtype(np.float64): np.float64}


class Known:
    """How contiguous float arrays of one shape are run: small ones without any further question."""

    __slots__ = (
        "_dtype",
        "_gradient",
        "_infer",
        "_key",
        "_moments",
        "_rest",
        "_stack",
        "_sums",
        "_view",
    )

    def __init__(self, view: View, dtype: Any) -> None:
        self._stack, self._dtype, self._view = view.shape, dtype, view
        self._key = dtype, False, 0, False, False, None, np.float32
        self._rest = plan.group_of(view) if view.runs else 0
        if view.runs:
            self._infer, self._moments = runs.infer_runs, runs.moments_of_runs
            self._sums, self._gradient = runs.gradient_sums_of_runs, runs.gradient_of_runs
        else:
            self._infer, self._moments = columns.infer_columns, columns.moments_of_columns
            self._sums, self._gradient = (
                columns.gradient_sums_of_columns,
                columns.gradient_of_columns,
            )

    def target(self, x: Array, out: Any) -> Array | None:
        """Return where to write, a new array or ``out``; None where that takes a closer look."""
        if out is None:
            return empty_like(x)
        return (
            out if out is x or (self.is_like(x, out) and not np.may_share_memory(x, out)) else None
        )

    @staticmethod
    def is_like(x: Array, other: Any, written: bool = True) -> bool:
        """Whether another array is plain, and lies in memory as ``x`` does."""
        if type(other) is not np.ndarray or other.strides != x.strides or other.shape != x.shape:
            return False
        flags = other.flags
        return other.dtype == x.dtype and flags.aligned and (not written or flags.writeable)

    def infer(self, x: Array, y: Array, form: Array, after: Epilogue) -> None:
        """Write y; see `nbbn._engine.steps.infer`."""
        if self._view.size >= plan.PARALLEL_FROM:
            steps.write(self._view, x, y, form, after)
            return
        kind, stack = after.kind, self._stack
        wanted = self._dtype, False, len(kind), False, False, None, np.float32
        step = self._infer.variant(wanted)
        step(x.reshape(stack), y.reshape(stack), None, None, form, kind, after.slope, 0)

    def train(
        self, x: Array, y: Array, table: Array, freedom: float, eps: float, after: Epilogue
    ) -> None:
        """Write the statistics of x to ``table``, which holds gamma and beta, and y."""
        if self._view.size >= plan.PARALLEL_FROM:
            steps.look_and_write(self._view, x, y, table, freedom, eps, after)
            return
        form = np.empty((3, table.shape[1]), self._dtype)
        step = self._moments.variant(self._key)
        step(x.reshape(self._stack), None, table, form, freedom, eps, self._rest)
        self.infer(x, y, form, after)

    def differentiate(
        self, grad_y: Array, x: Array, grad_x: Array, table: Array, count: float, freedom: float
    ) -> Array:
        """Write grad_x; return the gradients with respect to gamma and beta."""
        channels, stack = table.shape[1], self._stack
        sums, gradients = np.empty((2, channels)), np.empty((2, channels), self._dtype)
        if self._view.size >= plan.PARALLEL_FROM:
            options = table, sums, count, freedom
            steps.add_up_and_write_back(self._view, grad_y, x, grad_x, *options)
            return np.stack(steps.parameter_gradients(table, sums, gradients.dtype))
        form = np.empty((6, channels), self._dtype)
        grad, values = grad_y.reshape(stack), x.reshape(stack)
        step = self._sums.variant(self._key)
        step(grad, values, None, table, sums, form, gradients, count, freedom, self._rest)
        step = self._gradient.variant(self._key)
        step(grad, values, grad_x.reshape(stack), None, form, 0)
        return gradients


class Memory(dict[Any, Known]):
    """What a layer knows, by shape, strides and dtype."""

    def of(self, x: Any) -> Known | None:
        """Return what is known of an array like ``x``."""
        if type(x) is not np.ndarray or not x.flags.aligned:
            return None
        return self.get((x.shape, x.strides, x.dtype))

    def learn(self, x: Any, index: int) -> None:
        """Note ``x``, whose checks were passed, if it is of the kind that is worth it."""
        if type(x) is not np.ndarray or not x.size:
            return
        if not x.flags.c_contiguous or x.dtype not in _DTYPES:
            return
        view = view_of(index, False, x)
        if view is not None and view.order is None:
            if len(self) >= _MOST:
                self.clear()
            self[x.shape, x.strides, x.dtype] = Known(view, _DTYPES[x.dtype])
