"""Arrays like one that was met before: what was checked and found of that one, kept for the next.

In a server or a training loop, a layer or a function gets arrays of the same few shapes. For small ones, checks and
decisions take longer than the arithmetic: frozen (32, 64) 8.4 us, this way 3.7. The steps are the same, and so are the
bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn._engine import parts, plan, steps
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Epilogue, Fused
from nbbn._engine.views import View, view_of
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_runs as runs
from nbbn._kernels import table as rows

Array = NDArray[Any]

_MOST = 256  # shapes that a layer remembers, and functions of each channel axis
_DTYPES = {np.dtype(np.float32): np.float32, np.dtype(np.float64): np.float64}


class Known:
    """How contiguous float arrays of one shape are run: small ones without any further question."""

    def __init__(self, x: Array, view: View) -> None:
        self._like = x.shape, x.strides, x.dtype
        self._stack, self._view = view.shape, view
        self._is_matrix = view.shape == (1, *x.shape)
        self._is_small = view.size < plan.PARALLEL_FROM
        self._group = plan.group_of(view) if view.runs else 0
        self._sum_width, self._numbers = parts.cut_for_sums(view, None, x.reshape(view.shape))
        self._width = parts.width_of_rows(view, 0)
        # The last arguments of steps of runs and of columns, but for the one that writes gradients.
        self._to_sum: tuple[Any, ...] = (self._group,)
        self._to_write: tuple[Any, ...] = ()
        if not view.runs:
            self._to_sum = (0, parts.blocks_to_sum(view.shape, self._sum_width))
            self._to_write = (parts.blocks_to_write(view.shape, self._width),)
        self._steps = _OF_RUNS if view.runs else _OF_COLUMNS
        self._calls: dict[Any, Callable[..., Any]] = {}
        self._spread: tuple[Any, Any] = (None, None)  # coefficients that nobody changes, and the same a column

    def _call(self, which: int, activation: int = 0, noted: bool = False) -> Callable[..., Any]:
        """Return one of the compiled steps, for small arrays."""
        key = which, activation, noted
        found = self._calls.get(key)
        if found is None:
            wanted = _DTYPES[self._like[2]], False, activation, False, None, np.float32, noted
            found = self._calls[key] = self._steps[which].variant(wanted)
        return found

    def _stack_of(self, array: Array) -> Array:
        """Return the stack that kernels read; of a matrix without `reshape`, which takes 0.15 us more."""
        return array[None] if self._is_matrix else array.reshape(self._stack)

    def target(self, x: Array, out: Any, *read: Array) -> Array | None:
        """Return where to write, a new array or ``out``, while x and others are read; None to take a closer look."""
        if out is None:
            return np.empty(self._like[0], self._like[2]) if self._is_small else empty_like(x)
        usable = x.flags.writeable if out is x else self.is_like(out) and not _overlap(out, x)
        if not usable or (read and any(_overlap(out, array) for array in read)):
            return None
        found: Array = out
        return found

    def is_like(self, other: Any, written: bool = True) -> bool:
        """Whether another array is plain, and lies in memory as the one that was met."""
        if type(other) is not np.ndarray:
            return False
        shape, strides, dtype = self._like
        if other.strides != strides or other.shape != shape or other.dtype != dtype:
            return False
        flags = other.flags
        return flags.aligned and (not written or flags.writeable)

    def infer(self, x: Array, y: Array, form: Array, after: Epilogue, noted: Array | None = None) -> None:
        """Write y; see `nbbn._engine.steps.write`."""
        if not self._is_small:
            steps.write(self._view, x, y, form, after, noted=noted)
            return
        kind = after.kind
        if self._width != form.shape[1]:
            last = self._spread
            if last[0] is not form:
                last = self._spread = form, parts.spread(form, self._view, self._width)
            form = last[1]
        call = self._call(_WRITE, len(kind), noted is not None)
        call(self._stack_of(x), self._stack_of(y), None, form, kind, 0, noted, *self._to_write)

    def train(self, x: Array, y: Array, table: Array, freedom: float, eps: float, after: Epilogue) -> Array | None:
        """Write the statistics of x to ``table``, which holds gamma and beta, and y; return the coefficients.

        None where these take a closer look.
        """
        if not self._is_small:
            steps.look_and_write(self._view, x, y, table, freedom, eps, after)
            return None
        kind, values = after.kind, self._stack_of(x)
        form = wide = self._look(values, table, freedom, eps)
        if self._width != table.shape[1]:
            wide = parts.spread(form, self._view, self._width)
        target = values if y is x else self._stack_of(y)
        self._call(_WRITE, len(kind))(values, target, None, wide, kind, 0, None, *self._to_write)
        return form

    def look(self, x: Array, table: Array, count: float) -> Array:
        """Write the statistics of x, which has ``count`` values a channel, to ``table``; return the coefficients."""
        if self._is_small:
            return self._look(self._stack_of(x), table, count, 0.0)
        return steps.look(self._view, x, table, count, 0.0)

    def _look(self, values: Array, table: Array, freedom: float, eps: float) -> Array:
        form = np.empty((rows.FORM_ROWS, table.shape[1]), values.dtype)
        written = np.empty((3, self._numbers.size, self._sum_width))
        self._call(_LOOK)(values, None, self._numbers, written, table, form, freedom, eps, *self._to_sum)
        return form

    def differentiate(
        self, grad_y: Array, x: Array, grad_x: Array, table: Array, count: float, freedom: float, fused: Fused
    ) -> Array:
        """Write grad_x; return the gradients with respect to gamma, beta and a learned slope."""
        channels, kind, of_y = table.shape[1], fused.kind, fused.form
        sums = steps.new_sums(channels, fused)
        if not self._is_small:
            options = table, sums, count, freedom, None, fused
            return steps.add_up_and_write_back(self._view, grad_y, x, grad_x, *options)
        form = np.empty((rows.GRADIENT_ROWS, channels), x.dtype)
        grad, values = self._stack_of(grad_y), self._stack_of(x)
        written = np.zeros((len(sums), self._numbers.size, self._sum_width))
        results = written, table, sums, form, count, freedom
        nothing, means, wide, spread = None, table, of_y, form
        if of_y is not None:
            nothing = np.empty((0, 0, 0), x.dtype)
        if self._sum_width != channels:
            means = parts.spread(table[: rows.MEAN + 1], self._view, self._sum_width)
            wide = None if of_y is None else parts.spread(of_y, self._view, self._sum_width)
        what = grad, values, None, nothing, nothing, wide, kind
        add_up = self._call(_ADD_UP, len(kind))
        if self._view.runs:
            add_up(*what, *results, self._group)
        else:
            add_up(*what, means, *results, self._to_sum[1])
        if self._width != channels:
            spread = parts.spread(form, self._view, self._width)
        if self._width != self._sum_width:
            wide = None if of_y is None else parts.spread(of_y, self._view, self._width)
        target = grad if grad_x is grad_y else self._stack_of(grad_x)
        write = self._call(_WRITE_BACK, len(kind))
        write(grad, values, target, None, spread, wide, kind, 0, *self._to_write)
        return form[rows.OF_GAMMA : rows.OF_GAMMA + len(sums)]


def _overlap(out: Array, array: Array) -> bool:
    """Whether writing to ``out`` may change what is still to be read of another array than itself."""
    # Two arrays that own their memory are apart: 0.05 us to see, where a look at addresses takes 0.3.
    both_own = out.flags.owndata and array.flags.owndata
    return out is not array and not both_own and np.may_share_memory(out, array)


# The steps, in the same order where channels are runs and where they lie side by side.
_WRITE, _LOOK, _ADD_UP, _WRITE_BACK = range(4)
_OF_RUNS = (runs.infer_runs, runs.moments_of_runs, runs.gradient_sums_of_runs, runs.gradient_of_runs)
_OF_COLUMNS = (
    columns.infer_columns,
    columns.moments_of_columns,
    columns.gradient_sums_of_columns,
    columns.gradient_of_columns,
)


class Memory(dict[Any, Known | None]):
    """What a layer or a function knows, by shape, strides and dtype; None of an array that was met once."""

    def of(self, x: Any) -> Known | None:
        """Return what is known of an array like ``x``."""
        if type(x) is not np.ndarray or not x.flags.aligned:
            return None
        return self.get((x.shape, x.strides, x.dtype))

    def learn(self, x: Any, index: int) -> Known | None:
        """Note ``x``, whose checks were passed, if it is of the kind that is worth it; return what is known then."""
        if type(x) is not np.ndarray or not x.size:
            return None
        if not x.flags.c_contiguous or x.dtype not in _DTYPES:
            return None
        view = view_of(index, False, x)
        if view is None or view.order is not None:
            return None
        if len(self) >= _MOST:
            self.clear()
        found = self[x.shape, x.strides, x.dtype] = Known(x, view)
        return found

    def is_new(self, x: Array) -> bool:
        """Whether no array like ``x`` was met; then note that one was."""
        key = x.shape, x.strides, x.dtype
        if key in self:
            return False
        if len(self) >= _MOST:
            self.clear()
        self[key] = None
        return True


_of_functions: dict[int, Memory] = {}  # by channel axis


def met(x: Array, index: int) -> Known | None:
    """Return what functions know of an array like ``x``, whose checks were passed.

    From its second call on: lengths that are always new ones would cost more to learn than to look at.
    """
    memory = _of_functions.setdefault(index, Memory())
    found = memory.of(x)
    return memory.learn(x, index) if found is None and not memory.is_new(x) else found


def met_with_target(
    x: Array, index: int, out: Array | None, as_usual: bool, *read: Array
) -> tuple[Known | None, Array]:
    """Return what functions know of such arrays, and where to write; None, and anything, where that is not enough."""
    known = met(x, index) if as_usual else None
    if known is None or not all(known.is_like(array, False) for array in read):
        return None, x
    y = known.target(x, out, *read)
    return (None, x) if y is None else (known, y)
