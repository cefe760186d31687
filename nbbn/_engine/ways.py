"""How the compiled steps are run on stacks of one view: each one is called here, and nowhere else.

For small arrays there is nothing to decide: what they need is made once and kept, as a decision would take longer than
their arithmetic.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn._checks import Array, overlap
from nbbn._compiler.jit import Step, Variant
from nbbn._engine import plan as plans
from nbbn._engine import threads
from nbbn._engine.memory import on_lines
from nbbn._engine.parts import Cut, channels_of, cut, cut_for_sums, rows_to_write
from nbbn._engine.views import View
from nbbn._kernels import gaps, statistics
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_runs as runs
from nbbn._kernels.activations import KEPT, LEARNED
from nbbn._kernels.columns import WIDE_TILE
from nbbn._kernels.table import FORM_ROWS, GRADIENT_ROWS, MEAN, OF_GAMMA

Table = NDArray[np.float64]
Kind = tuple[float, ...]  # of an activation: its length says which
IfThere = Array | None
Batch = tuple[Table, float, float]  # statistics, to be written beside gamma and beta; degrees of freedom, and eps
Sums = tuple[Table, Table, float, float]  # statistics; sums, to be written; values a channel, degrees of freedom

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
_LINES_FROM = 1 << 16  # values, from which it counts where coefficients lie


class Epilogue(NamedTuple):
    """What follows the affine map: ``y = activation(affine(x) + residual)``."""

    kind: Kind = ()
    slope: Any = None  # below 0, a number or one a channel; None where the table of the channels has it
    residual: IfThere = None
    passes_on: bool = False  # whether a backward hands grad_y on to a residual, which it needs no more
    form: IfThere = None  # for backward, where there is an activation: the coefficients of the forward

    @property
    def read(self) -> tuple[Array, ...]:
        return () if self.residual is None else (self.residual,)

    def again(self) -> Epilogue:
        """Return what backward needs: a residual only where an activation follows."""
        return self if self.residual is None or self.kind else self._replace(residual=None, passes_on=True)


NOTHING = Epilogue()


def computed_dtype(x: Array) -> np.dtype[Any]:
    """Return what values of ``x`` are computed with."""
    return _FLOAT64 if x.dtype == _FLOAT64 else _FLOAT32


def new_sums(channels: int, after: Epilogue = NOTHING) -> Table:
    """Return a table for the sums of a backward."""
    return np.zeros((3 if len(after.kind) == LEARNED else 2, channels))


class Calls(dict[tuple[Any, ...], Callable[..., None]]):
    """What runs a step on x of one dtype: by whether in parallel, and by the fields of `Variant` that are named."""

    def __init__(self, step: Step, dtype: np.dtype[Any], *fields: str) -> None:
        self.step, self._dtype, self._fields = step, dtype.type, fields

    def __missing__(self, key: tuple[Any, ...]) -> Callable[..., None]:
        serial = Variant(self._dtype, **dict(zip(self._fields, key[1:], strict=True)))
        call = self.step.variant(serial) if not key[0] else functools.partial(_run_parallel, self.step, serial)
        self[key] = call
        return call


def _run_parallel(step: Step, serial: Variant, *arguments: Any) -> None:
    """Run the parallel twin where it may be started now, else the serial one."""
    claim = threads.enter_region()
    if claim is None:
        step.variant(serial)(*arguments)
        return
    try:
        step.variant(serial._replace(parallel=True))(*arguments)
    finally:
        threads.leave_region(claim)


@functools.cache
def _calls(of_runs: bool, dtype: np.dtype[Any]) -> tuple[Calls, ...]:
    """Return the calls of `Way`, in its order."""

    def calls(of: Step, otherwise: Step, *fields: str) -> Calls:
        return Calls(of if of_runs else otherwise, dtype, *fields)

    return (
        calls(runs.infer_runs, columns.infer_columns, "activation", "residual", "noted"),
        calls(runs.moments_of_runs, columns.moments_of_columns, "weights"),
        calls(gaps.gaps_of_runs, gaps.gaps_of_columns, "weights"),
        Calls(runs.train_channels, dtype, "activation", "residual", "weights"),
        calls(runs.gradient_sums_of_runs, columns.gradient_sums_of_columns, "activation", "weights"),
        calls(runs.gradient_of_runs, columns.gradient_of_columns, "activation", "weights"),
        Calls(runs.differentiate_channels, dtype, "activation", "weights"),
    )


class Way:
    """How the steps are run on stacks of one view, x of one dtype."""

    def __init__(self, view: View, dtype: np.dtype[Any]) -> None:
        self.view, self._channels = view, view.channels
        self._computed = _FLOAT64 if dtype == _FLOAT64 else _FLOAT32
        self._small = plans.make_plan(view, ()) if view.size < plans.PARALLEL_FROM else None
        self._write, self._look, self._look_with_gaps, self._train, *backward = _calls(view.runs, dtype)
        self._add_up, self._write_back, self._differentiate = backward
        # What makes arrays of coefficients, which loops read beside their values.
        self._empty: Callable[..., Array] = np.empty if view.size < _LINES_FROM else on_lines
        self._cut: Cut | None = None  # made when it is asked for, where the view alone says how stacks are cut
        self._widened: tuple[Any, int, Any] = (None, 0, None)  # see `_per_column`

    def _cut_of(self, weights: IfThere, *stacks: Array) -> Cut:
        found = cut_for_sums(self.view, weights, *stacks)  # of runs the stacks say nothing: none are needed
        if weights is None and (self.view.runs or self.view.joined):
            self._cut = found
        return found

    def _per_column(self, form: Array, width: int) -> Array:
        """Return coefficients per channel as such per column. The last ones are kept, if few: nobody changes them."""
        last = self._widened
        if last[0] is not form or last[1] != width:
            last = form, width, self._spread(form, width)
            if width <= WIDE_TILE:
                self._widened = last
        found: Array = last[2]
        return found

    def _spread(self, numbers: Array, width: int) -> Array:
        found: Array = self._empty((len(numbers), width), numbers.dtype)
        return numbers.take(channels_of(self._channels, self.view.inner, width), axis=1, out=found, mode="clip")

    def write(
        self, x: Array, y: Array, form: Array, kind: Kind = (), residual: IfThere = None, noted: IfThere = None
    ) -> None:
        """Run the elementwise step; ``noted[0]`` becomes 1 if x has an infinite value."""
        plan = self._small or plans.make_plan(self.view, (x,) if residual is None else (x, residual), y)
        width, blocks = rows_to_write(self.view, self._computed.itemsize, plan.streaming)
        if width != self._channels:
            form = self._per_column(form, width)
        call = self._write[plan.parallel, len(kind), residual is not None, noted is not None]
        call(x, y, residual, form, kind, plan.streaming, noted, *blocks)

    def look(self, x: Array, batch: Batch, weights: IfThere = None, earlier: IfThere = None) -> Array:
        """Write the statistics of x; return the coefficients. ``earlier`` is one more part, of columns not joined."""
        plan = self._small or plans.make_plan(self.view, (x,))
        found = self._cut if self._cut and weights is None else self._cut_of(weights, x)
        width, sizes, blocks, numbers = found if earlier is None else cut(self.view, False)
        form: Array = self._empty((FORM_ROWS, self._channels), self._computed)
        written = np.empty((4, sizes.size + (earlier is not None), width))
        if earlier is not None:
            written[:, -1] = earlier
        table, freedom, eps = batch
        call = self._look[plan.parallel, None if weights is None else weights.dtype.type]
        if self.view.runs:
            call(x, weights, numbers, written, table, form, freedom, eps, plan.group)
        else:
            call(x, weights, numbers, written, table, form, freedom, eps, plan.ahead, blocks)
        return form

    def look_with_gaps(self, x: Array, table: Table, weights: IfThere = None) -> Array:
        """Write count, mean, what its rounding leaves, and m2; return the coefficients: NaN is a missing value."""
        plan, (outer, _, inner) = self._small or plans.make_plan(self.view, (x,)), self.view.shape
        width, sizes, blocks, _ = self._cut if self._cut and weights is None else self._cut_of(weights, x)
        number = outer * -(-inner // statistics.PIECE) if self.view.runs else sizes.size
        written, form = np.empty((4, number, width)), self._empty((FORM_ROWS, self._channels), self._computed)
        call = self._look_with_gaps[plan.parallel, None if weights is None else weights.dtype.type]
        call(x, weights, written, table, form, plan.ahead, *(() if blocks is None else (blocks,)))
        return form

    def train(
        self, x: Array, y: Array, batch: Batch, kind: Kind = (), weights: IfThere = None, residual: IfThere = None
    ) -> Array:
        """Run `look` and `write`, or one step that does both channel by channel; return the coefficients."""
        plan = self._small or plans.make_plan(self.view, (x,) if residual is None else (x, residual), y, 2)
        if not plan.by_channel:
            form = self.look(x, batch, weights)
            self.write(x, y, form, kind, residual)
            return form
        width, sizes, _, numbers = self._cut_of(weights)
        form = np.empty((FORM_ROWS, width), self._computed)
        written = np.empty((4, sizes.size, width))
        table, freedom, eps = batch
        of_weights = None if weights is None else weights.dtype.type
        call = self._train[plan.parallel, len(kind), residual is not None, of_weights]
        call(x, y, residual, weights, numbers, written, table, form, kind, freedom, eps, plan.streaming)
        return form

    def add_up(
        self, grad_y: Array, x: Array, of: Sums, after: Epilogue, mask: IfThere = None, kept: IfThere = None
    ) -> Array:
        """Run the step of `nbbn._engine.steps.sum_gradients`; return the coefficients of `write_back`."""
        plan = self._small or plans.make_plan(self.view, (x, grad_y))
        width, sizes, blocks, _ = self._cut if self._cut and mask is None else self._cut_of(mask, grad_y, x)
        form: Array = self._empty((GRADIENT_ROWS, self._channels), self._computed)
        kind, residual, of_y = after.kind, after.residual, after.form
        table, sums, count, freedom = of
        written, means = np.zeros((len(sums), sizes.size, width)), table
        if width != self._channels:
            means = self._spread(table[: MEAN + 1], width)
            of_y = None if of_y is None else self._per_column(of_y, width)
        if of_y is not None:
            nothing = np.empty((0, 0, 0), x.dtype)
            residual = nothing if residual is None else residual
            kept = nothing if kept is None else kept
        call = self._add_up[plan.parallel, len(kind), None if mask is None else mask.dtype.type]
        if self.view.runs:
            call(grad_y, x, mask, residual, kept, of_y, kind, written, table, sums, form, count, freedom, plan.group)
        else:
            ahead = plan.ahead, blocks
            call(grad_y, x, mask, residual, kept, of_y, kind, means, written, table, sums, form, count, freedom, *ahead)
        return form

    def write_back(
        self, grad_y: Array, x: Array, grad_x: Array, form: Array, after: Epilogue, mask: IfThere = None
    ) -> None:
        """Run the step that writes grad_x."""
        plan = self._small or plans.make_plan(self.view, (x, grad_y), grad_x, 1, mask is None)
        kind, of_y = after.kind, after.form
        width, blocks = rows_to_write(self.view, self._computed.itemsize, plan.streaming, mask is None)
        if width != self._channels:
            form = self._spread(form[:OF_GAMMA], width)
            of_y = None if of_y is None else self._per_column(of_y, width)
        call = self._write_back[plan.parallel, len(kind), None if mask is None else mask.dtype.type]
        call(grad_y, x, grad_x, mask, form, of_y, kind, plan.streaming, *blocks)

    def differentiate(
        self, grad_y: Array, x: Array, grad_x: Array, of: Sums, after: Epilogue, mask: IfThere = None
    ) -> Array:
        """Run `add_up` and `write_back`, or one step that does both channel by channel.

        Return the gradients with respect to gamma, beta and a learned slope.
        """
        plan = self._small or plans.make_plan(self.view, (x, grad_y), grad_x, 2)
        table, sums, count, freedom = of
        # In grad_x itself: so not where that is still to be read, nor of half types, which it would be rounded to.
        keeps = self.view.runs and len(after.kind) in KEPT and x.dtype == self._computed
        if keeps and not (overlap(grad_x, x) or overlap(grad_x, grad_y)):
            form = self.add_up(grad_y, x, of, after, mask, grad_x)
            self.write_back(grad_x, x, grad_x, form, NOTHING, mask)
        elif not plan.by_channel:
            form = self.add_up(grad_y, x, of, after, mask)
            self.write_back(grad_y, x, grad_x, form, after, mask)
        else:
            width, sizes, _, _ = self._cut_of(mask)
            form = np.empty((GRADIENT_ROWS, width), self._computed)
            results = np.zeros((len(sums), sizes.size, width)), table, sums, form, count, freedom
            call = self._differentiate[plan.parallel, len(after.kind), None if mask is None else mask.dtype.type]
            call(grad_y, x, grad_x, mask, after.form, after.kind, *results, plan.streaming)
        return form[OF_GAMMA : OF_GAMMA + len(sums)]


@functools.lru_cache(maxsize=1024)
def way_of(view: View, dtype: np.dtype[Any]) -> Way:
    """Return the way of stacks of this view, x of this dtype."""
    return Way(view, dtype)
