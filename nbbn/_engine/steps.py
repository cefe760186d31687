"""What layer, functions and data sets share: checked arrays in, a running kernel, results out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn._compiler.jit import Step
from nbbn._engine import parts, threads
from nbbn._engine.masks import Weights
from nbbn._engine.plan import make_plan
from nbbn._engine.views import Reading, View, read_in_place
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_layers as layers
from nbbn._kernels import steps_of_runs as runs
from nbbn._kernels import table as rows
from nbbn._kernels.elementwise import HARD_SWISH, LEAKY_RELU, NONE, RELU, RELU6

Array = NDArray[Any]
Table = NDArray[np.float64]

ACTIVATIONS = {
    None: NONE,
    "relu": RELU,
    "relu6": RELU6,
    "leaky_relu": LEAKY_RELU,
    "hard_swish": HARD_SWISH,
}

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
# What kernels see of a dtype: of half types, their bits. That of bfloat16 is no type of numpy's own.
_SEEN_AS: dict[Any, Any] = {
    _FLOAT32: np.float32,
    _FLOAT64: np.float64,
    np.dtype(np.uint8): np.uint8,
}
_SEEN_AS[np.dtype(np.float16)] = np.uint16


class Epilogue(NamedTuple):
    """What follows the affine map: ``y = activation(affine(x) + residual)``."""

    kind: tuple[float, ...] = ()  # its length says which activation
    slope: float = 0.0  # of leaky relu, below 0
    residual: Array | None = None
    has_residual: bool = False  # whether there was one, though backward needs it no more

    @property
    def read(self) -> tuple[Array, ...]:
        """The arrays that are read besides x."""
        return () if self.residual is None else (self.residual,)

    def again(self) -> Epilogue:
        """Return what backward needs: a residual only where an activation follows."""
        if self.residual is None:
            return self
        return self._replace(residual=self.residual if self.kind else None, has_residual=True)


NOTHING = Epilogue()


def epilogue(activation: str | None, slope: float, residual: Array | None = None) -> Epilogue:
    """Return what follows the affine map."""
    return Epilogue((0.0,) * ACTIVATIONS[activation], slope, residual)


def computed_dtype(x: Array) -> np.dtype[Any]:
    """Return what values of ``x`` are computed with."""
    return _FLOAT64 if x.dtype == _FLOAT64 else _FLOAT32


def variant_of(
    x: Array,
    activation: int = 0,
    residual: bool = False,
    gradient: bool = False,
    weights: Array | None = None,
) -> tuple[Any, ...]:
    """Return what `Variant` says, faster."""
    of_weights = None if weights is None else weights.dtype.type
    seen_as = _SEEN_AS.get(x.dtype, np.int16)
    return seen_as, False, activation, residual, gradient, of_weights, np.float32


def _run(step: Step, wanted: tuple[Any, ...], parallel: bool, *arguments: Any) -> None:
    """Run the parallel twin where that pays and may be started now, else the serial one."""
    claim = threads.enter_region() if parallel else None
    if claim is None:
        step.variant(wanted)(*arguments)
        return
    try:
        step.variant((wanted[0], True, *wanted[2:]))(*arguments)
    finally:
        threads.leave_region(claim)


def coefficients(table: Table, eps: float, dtype: np.dtype[Any]) -> Array:
    """Return center, scale and shift of each channel in ``dtype``, from a table of statistics.

    The formulas, and the bits, of `nbbn._kernels.coefficients.write_coefficients`, without anything to compile.
    """
    mean, form = table[rows.MEAN], np.empty((3, table.shape[1]), dtype)
    center, scale, shift = form
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        scale[:] = over_std(table[rows.GAMMA], table[rows.VAR], eps)
        if len(table) > rows.MEAN_LOW:
            low = table[rows.MEAN_LOW]
            center[:] = mean + low
            rest = (mean - center) + low
        else:
            center[:] = mean
            rest = mean - center
        if not np.isfinite(rest).all():  # of an infinite mean, or NaN
            rest[~np.isfinite(rest)] = 0.0
        shift[:] = table[rows.BETA] - rest * scale
    return form


def infer(
    x: Array,
    index: int,
    form: Array,
    out: Array | None = None,
    after: Epilogue = NOTHING,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """Return ``activation((x - center) * scale + shift + residual)``, in ``out`` or a new array."""
    if x.size == 0:
        return np.empty_like(x, dtype) if out is None else out
    reading = Reading(index, x, after.read, out, dtype)
    write(reading.view, reading.source, reading.target, form, after, *reading.read)
    return reading.result()


def before_activation(
    grad_y: Array, x: Array, index: int, form: Array, after: Epilogue, out: Array | None = None
) -> Array:
    """Return the gradient with respect to the activation's argument, in ``out`` or a new array."""
    if x.size == 0:
        return np.empty_like(x) if out is None else out
    reading = Reading(index, x, (*after.read, grad_y), out)
    residual = None if after.residual is None else reading.read[0]
    view, source, target = reading.view, reading.source, reading.target
    write(view, source, target, form, after, residual, reading.read[-1])
    return reading.result()


def write(
    view: View,
    x: Array,
    y: Array,
    form: Array,
    after: Epilogue = NOTHING,
    residual: Array | None = None,
    grad: Array | None = None,
) -> None:
    """Run the elementwise step on arrays that have this view."""
    read = [array for array in (x, residual, grad) if array is not None]
    plan = make_plan(view, read, y)
    kind, of = after.kind, view.of
    _run(
        runs.infer_runs if view.runs else columns.infer_columns,
        variant_of(x, len(kind), residual is not None, grad is not None),
        plan.parallel,
        of(x),
        of(y),
        None if residual is None else of(residual),
        None if grad is None else of(grad),
        parts.spread(form, view, parts.width_of_rows(view, plan.streaming)),
        kind,
        after.slope,
        plan.streaming,
    )


def given_table(mean: Array, var: Array, gamma: Array | None, beta: Array | None) -> Table:
    """Return a table of statistics that were given, for `coefficients`."""
    table = np.empty((rows.LAYER_ROWS, mean.size))
    table[rows.MEAN], table[rows.VAR] = mean, var
    table[rows.GAMMA] = 1.0 if gamma is None else gamma
    table[rows.BETA] = 0.0 if beta is None else beta
    return table


def over_std(value: Any, var: Array, eps: float) -> Table:
    """Return ``value / sqrt(var + eps)``, and 0 where ``var + eps`` is 0: as kernels do."""
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        root = np.sqrt(var.astype(np.float64, copy=False) + eps)
        found: Table = value / root
        if not root.all():
            found[root == 0.0] = 0.0
        return found


def new_table(channels: int, parameters: Array | None = None) -> Table:
    """Return a table for statistics, with gamma and beta of a layer's own table in it."""
    table = np.empty((rows.STATISTICS_ROWS, channels))
    if parameters is None:
        table[rows.GAMMA], table[rows.BETA] = 1.0, 0.0
    else:
        table[rows.GAMMA : rows.BETA + 1] = parameters[rows.GAMMA : rows.BETA + 1]
    return table


def moments(
    x: Array,
    index: int,
    table: Table,
    weights: Weights | None = None,
    correction: float = 0.0,
    eps: float = 0.0,
) -> float:
    """Write the statistics of ``x`` to ``table``; return the count, which is not 0."""
    view, (source,) = read_in_place(index, weights is not None, x)
    count = view.size / view.channels if weights is None else weights.total
    of_weights = None if weights is None else weights.in_order(source, index)
    look(view, source, table, count - correction, eps, of_weights)
    return count


def look(
    view: View,
    x: Array,
    table: Table,
    freedom: float,
    eps: float,
    weights: Array | None = None,
) -> Array:
    """Write the statistics of x, which has this view, to ``table``; return the coefficients."""
    plan, stack = make_plan(view, (x,)), view.of(x)
    width, numbers = parts.cut_for_sums(view, weights, stack)
    form = np.empty((3, view.channels), computed_dtype(x))
    written = np.empty((3, numbers.size, width))
    arguments = stack, weights, numbers, written, table, form, freedom, eps
    if view.runs:
        step, last = runs.moments_of_runs, plan.group
    else:
        step, last = columns.moments_of_columns, plan.ahead
    _run(step, variant_of(x, weights=weights), plan.parallel, *arguments, last)
    return form


def train(
    x: Array,
    index: int,
    table: Table,
    eps: float,
    correction: float,
    out: Array | None = None,
    after: Epilogue = NOTHING,
    weights: Weights | None = None,
) -> Array:
    """Normalize with the statistics of ``x``, which is not empty, and write these to ``table``; return y.

    ``table`` holds gamma and beta.
    """
    reading = Reading(index, x, after.read, out, None, weights is not None)
    view, source = reading.view, reading.source
    count = view.size / view.channels if weights is None else weights.total
    of_weights = None if weights is None else weights.in_order(source, index)
    options = table, count - correction, eps, after, of_weights
    look_and_write(view, source, reading.target, *options, *reading.read)
    return reading.result()


def look_and_write(
    view: View,
    x: Array,
    y: Array,
    table: Table,
    freedom: float,
    eps: float,
    after: Epilogue = NOTHING,
    weights: Array | None = None,
    residual: Array | None = None,
) -> None:
    """Run both steps of a training forward, `look` and `write`, or one that does both channel by channel."""
    read = (x,) if residual is None else (x, residual)
    plan = make_plan(view, read, y, 2)
    if not plan.by_channel:
        form = look(view, x, table, freedom, eps, weights)
        write(view, x, y, form, after, residual)
        return
    kind, of = after.kind, view.of
    added = None if residual is None else of(residual)
    width, numbers = parts.cut_for_sums(view, weights)
    written, form = np.empty((3, numbers.size, width)), np.empty((3, width), computed_dtype(x))
    what = of(x), of(y), added, weights, numbers, written, table, form
    wanted = variant_of(x, len(kind), residual is not None, False, weights)
    options = kind, after.slope, freedom, eps, plan.streaming
    _run(runs.train_channels, wanted, plan.parallel, *what, *options)


def completed(given: Table, eps: float) -> Table:
    """Return a table of statistics that were given, with what a backward needs besides."""
    table = np.zeros((rows.STATISTICS_ROWS, given.shape[1]))
    table[: rows.LAYER_ROWS] = given
    table[rows.INV_STD] = over_std(1.0, given[rows.VAR], eps)
    return table


def move_averages(
    parameters: Array, table: Table, divisor: float, momentum: float, counter: Array
) -> None:
    """Update running mean and variance, rows of ``parameters``, in place, and count the batch."""
    wanted = np.float64, False, 0, False, False, None, parameters.dtype.type
    layers.move_averages.variant(wanted)(parameters, table, divisor, momentum, counter)


def sum_gradients(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table,
    sums: Table,
    mask: Weights | None = None,
    freedom: float = 1.0,
) -> Array:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``sums``.

    Return the coefficients of the other half, of the values of ``x`` alone.
    """
    view, (source, grad) = read_in_place(index, mask is not None, x, grad_y)
    of_mask = None if mask is None else mask.in_order(source, index)
    count = view.size / view.channels if mask is None else mask.total
    return add_up(view, grad, source, table, sums, count, freedom, of_mask)


def add_up(
    view: View,
    grad_y: Array,
    x: Array,
    table: Table,
    sums: Table,
    count: float,
    freedom: float,
    mask: Array | None = None,
) -> Array:
    """`sum_gradients` of arrays that have this view; return the coefficients of `write_back`."""
    plan, grad, source = make_plan(view, (x, grad_y)), view.of(grad_y), view.of(x)
    width, numbers = parts.cut_for_sums(view, mask, grad, source)
    form = np.empty((rows.GRADIENT_ROWS, view.channels), computed_dtype(x))
    written, wanted = np.empty((2, numbers.size, width)), variant_of(x, weights=mask)
    results = written, table, sums, form, count, freedom
    if view.runs:
        step = runs.gradient_sums_of_runs
        _run(step, wanted, plan.parallel, grad, source, mask, *results, plan.group)
    else:
        step = columns.gradient_sums_of_columns
        means = parts.spread(table[: rows.MEAN + 1], view, width)
        _run(step, wanted, plan.parallel, grad, source, mask, means, *results, plan.ahead)
    return form


def write_gradient(
    grad_y: Array,
    x: Array,
    index: int,
    form: Array,
    out: Array | None = None,
    mask: Weights | None = None,
) -> Array:
    """Return grad_x, in ``out`` or a new array, with the coefficients of `gradient_coefficients`."""
    reading = Reading(index, x, (grad_y,), out, None, mask is not None)
    of_mask = None if mask is None else mask.in_order(reading.source, index)
    write_back(reading.view, reading.read[0], reading.source, reading.target, form, of_mask)
    return reading.result()


def write_back(
    view: View, grad_y: Array, x: Array, grad_x: Array, form: Array, mask: Array | None = None
) -> None:
    """Run the step that writes grad_x on arrays that have this view."""
    joins = mask is None
    plan, of = make_plan(view, (x, grad_y), grad_x, 1, joins), view.of
    step = runs.gradient_of_runs if view.runs else columns.gradient_of_columns
    form = parts.spread(form, view, parts.width_of_rows(view, plan.streaming, joins))
    arguments = of(grad_y), of(x), of(grad_x), mask, form, plan.streaming
    _run(step, variant_of(x, weights=mask), plan.parallel, *arguments)


def gradient_coefficients(
    table: Table, sums: Table, count: float, correction: float, dtype: np.dtype[Any]
) -> Array:
    """Return what `write_gradient` takes, from the sums of ``count`` values a channel.

    The formulas, and the bits, of `nbbn._kernels.coefficients.finish_sums`.
    """
    mean, inv_std = table[rows.MEAN], table[rows.INV_STD]
    form = np.empty((6, table.shape[1]), dtype)
    with np.errstate(all="ignore"):
        grad_mean = sums[rows.SUM_GRAD] / count
        scale = table[rows.GAMMA] * inv_std
        slope = -scale * ((inv_std * sums[rows.SUM_PRODUCT]) / (count - correction))
        form[:5] = grad_mean, scale, mean, inv_std, slope
        of_grad = (grad_mean - form[0]) * form[1]
        form[5] = -(of_grad + (mean - form[2]) * inv_std * form[4])
    return form


def differentiate(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table,
    correction: float,
    training: bool = True,
    out: Array | None = None,
    mask: Weights | None = None,
) -> tuple[Array, Table]:
    """Return grad_x, and the two sums a channel.

    In ``training`` through the statistics in ``table``; else these were given, and
    ``grad_x = grad_y * gamma * inv_std``.
    """
    sums = np.zeros((2, table.shape[1]))
    if x.size == 0:
        return (np.empty_like(x) if out is None else out), sums
    if not training:
        sum_gradients(grad_y, x, index, table, sums, mask)
        form = np.zeros((3, table.shape[1]), computed_dtype(x))
        with np.errstate(all="ignore"):  # as compiled code: infinite or NaN, no warning
            form[rows.SCALE] = table[rows.GAMMA] * table[rows.INV_STD]
        return infer(grad_y, index, form, out), sums
    reading = Reading(index, x, (grad_y,), out, None, mask is not None)
    view, source, grad = reading.view, reading.source, reading.read[0]
    count = view.size / view.channels if mask is None else mask.total
    of_mask = None if mask is None else mask.in_order(source, index)
    options = table, sums, count, count - correction, of_mask
    add_up_and_write_back(view, grad, source, reading.target, *options)
    return reading.result(), sums


def add_up_and_write_back(
    view: View,
    grad_y: Array,
    x: Array,
    grad_x: Array,
    table: Table,
    sums: Table,
    count: float,
    freedom: float,
    mask: Array | None = None,
) -> Array:
    """Run both steps of a backward, `add_up` and `write_back`, or one that does both channel by channel.

    Return the gradients with respect to gamma and beta.
    """
    plan = make_plan(view, (x, grad_y), grad_x, 2)
    if not plan.by_channel:
        form = add_up(view, grad_y, x, table, sums, count, freedom, mask)
        write_back(view, grad_y, x, grad_x, form, mask)
        return form[rows.OF_GAMMA :]
    of = view.of
    width, numbers = parts.cut_for_sums(view, mask)
    written, form = (
        np.empty((2, numbers.size, width)),
        np.empty((rows.GRADIENT_ROWS, width), computed_dtype(x)),
    )
    what = of(grad_y), of(x), of(grad_x), mask, written, table, sums, form
    options = count, freedom, plan.streaming
    _run(runs.differentiate_channels, variant_of(x, weights=mask), plan.parallel, *what, *options)
    return form[rows.OF_GAMMA :]


def parameter_gradients(table: Table, sums: Table, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return grad_gamma and grad_beta from the two sums a channel."""
    with np.errstate(all="ignore"):
        products = sums[rows.SUM_PRODUCT] * table[rows.INV_STD]
        return products.astype(dtype), sums[rows.SUM_GRAD].astype(dtype)
