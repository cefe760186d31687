"""What layer, functions and data sets share: checked arrays in, a running kernel, results out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._checks import Array
from nbbn._compiler.jit import Step
from nbbn._engine import parts, threads
from nbbn._engine.masks import Weights
from nbbn._engine.memory import empty_like
from nbbn._engine.plan import make_plan
from nbbn._engine.views import Reading, View, read_in_place
from nbbn._kernels import gaps, statistics
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_layers as layers
from nbbn._kernels import steps_of_runs as runs
from nbbn._kernels import table as rows
from nbbn._kernels.activations import LEARNED, TABLE

Table = NDArray[np.float64]

_KINDS = {name: (0.0,) * number for number, name in enumerate(TABLE)}
_NAMES = tuple(name for name in TABLE if name is not None)

_FLOAT32, _FLOAT64 = np.dtype(np.float32), np.dtype(np.float64)
# What kernels see of a dtype: of half types, their bits. That of bfloat16 is no type of numpy's own.
_SEEN_AS: dict[Any, Any] = {_FLOAT32: np.float32, _FLOAT64: np.float64, np.dtype(np.uint8): np.uint8}
_SEEN_AS[np.dtype(np.float16)] = np.uint16


class Epilogue(NamedTuple):
    """What follows the affine map: ``y = activation(affine(x) + residual)``."""

    kind: tuple[float, ...] = ()  # its length says which activation
    slope: Any = None  # below 0, a number or one a channel; None where the table of the channels has it
    residual: Array | None = None
    has_residual: bool = False  # whether there was one, though backward needs it no more

    @property
    def read(self) -> tuple[Array, ...]:
        return () if self.residual is None else (self.residual,)

    def again(self) -> Epilogue:
        """Return what backward needs: a residual only where an activation follows."""
        if self.residual is None:
            return self
        return self._replace(residual=self.residual if self.kind else None, has_residual=True)


NOTHING = Epilogue()


def epilogue(activation: str | None, slope: Any = None, residual: Array | None = None) -> Epilogue:
    return Epilogue(_KINDS[activation], slope, residual)


def slope(activation: str | None, value: Any, channels: int) -> Any:
    """Return a slope below 0: a number; of prelu, where no layer learns it, perhaps one a channel."""
    if activation == "prelu" and np.ndim(value):
        return _checks.per_channel("negative_slope", value, channels)
    return _checks.real("negative_slope", value)


class Fused(NamedTuple):
    """An activation on the way back, where there was one."""

    kind: tuple[float, ...] = ()
    form: Array | None = None  # coefficients of the forward
    residual: Array | None = None


PLAIN = Fused()


def activation(value: Any) -> _checks.Activation | None:
    found: Any = None if value is None else _checks.choice("activation", value, _NAMES)
    return found  # type: ignore[no-any-return]


def computed_dtype(x: Array) -> np.dtype[Any]:
    """Return what values of ``x`` are computed with."""
    return _FLOAT64 if x.dtype == _FLOAT64 else _FLOAT32


def variant_of(
    x: Array, activation: int = 0, residual: bool = False, weights: Array | None = None, noted: bool = False
) -> tuple[Any, ...]:
    """Return what `Variant` says, faster."""
    of_weights = None if weights is None else weights.dtype.type
    seen_as = _SEEN_AS.get(x.dtype, np.int16)
    return seen_as, False, activation, residual, of_weights, np.float32, noted


def run(step: Step, wanted: tuple[Any, ...], parallel: bool, *arguments: Any) -> None:
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
    form = np.empty((rows.FORM_ROWS, table.shape[1]), dtype)
    mean, is_pair = table[rows.MEAN], len(table) > rows.MEAN_LOW
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        root = np.sqrt(np.add(table[rows.VAR], eps, dtype=np.float64))
        scale = table[rows.GAMMA] / root
        center = (mean + table[rows.MEAN_LOW] if is_pair else mean).astype(dtype)
        rest = mean - center
        if is_pair:
            rest += table[rows.MEAN_LOW]
        if not math.isfinite(np.add.reduce(scale) + np.add.reduce(rest)):
            scale[root == 0.0] = 0.0
            rest[~np.isfinite(rest)] = 0.0  # of an infinite mean, or NaN
        form[rows.CENTER], form[rows.SCALE], form[rows.FORM_SLOPE] = center, scale, table[rows.SLOPE]
        form[rows.SHIFT] = table[rows.BETA] - rest * form[rows.SCALE]
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


def write(
    view: View,
    x: Array,
    y: Array,
    form: Array,
    after: Epilogue = NOTHING,
    residual: Array | None = None,
    noted: Array | None = None,
) -> None:
    """Run the elementwise step on arrays that have this view.

    ``noted[0]`` becomes 1 if x has an infinite value.
    """
    read = (x,) if residual is None else (x, residual)
    plan = make_plan(view, read, y)
    kind, of, width = after.kind, view.of, parts.width_of_rows(view, plan.streaming)
    wanted = variant_of(x, len(kind), residual is not None, noted=noted is not None)
    added = None if residual is None else of(residual)
    arguments = of(x), of(y), added, parts.spread(form, view, width), kind, plan.streaming, noted
    if view.runs:
        run(runs.infer_runs, wanted, plan.parallel, *arguments)
    else:
        run(columns.infer_columns, wanted, plan.parallel, *arguments, parts.blocks_to_write(view.shape, width))


def given_table(mean: Array, var: Array, gamma: Array | None, beta: Array | None, slope: Any = 0.0) -> Table:
    """Return a table of statistics that were given, for `coefficients`."""
    table = np.empty((rows.LAYER_ROWS, mean.size))
    table[rows.MEAN], table[rows.VAR] = mean, var
    table[rows.GAMMA] = 1.0 if gamma is None else gamma
    table[rows.BETA] = 0.0 if beta is None else beta
    table[rows.SLOPE] = slope
    return table


def over_std(value: Any, var: Array, eps: float) -> Table:
    """Return ``value / sqrt(var + eps)``, and 0 where ``var + eps`` is 0: as kernels do."""
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        root = np.sqrt(var.astype(np.float64, copy=False) + eps)
        found: Table = value / root
        if not root.all():
            found[root == 0.0] = 0.0
        return found


def new_table(channels: int, parameters: Array | None = None, slope: Any = None) -> Table:
    """Return a table for statistics, with gamma, beta and slope of a layer's own table in it, or this ``slope``."""
    table = np.empty((rows.STATISTICS_ROWS, channels))
    if parameters is None:
        table[rows.GAMMA], table[rows.BETA : rows.SLOPE + 1] = 1.0, 0.0
    else:
        table[rows.GAMMA : rows.SLOPE + 1] = parameters[rows.GAMMA : rows.SLOPE + 1]
    if slope is not None:
        table[rows.SLOPE] = slope
    return table


def moments(
    x: Array, index: int, table: Table, weights: Weights | None = None, correction: float = 0.0, eps: float = 0.0
) -> tuple[float, Array]:
    """Write the statistics of ``x`` to ``table``; return the count, which is not 0, and coefficients as of `look`."""
    view, (source,) = read_in_place(index, weights is not None, x)
    count = view.size / view.channels if weights is None else weights.total
    of_weights = None if weights is None else weights.in_order(source, index)
    return count, look(view, source, table, count - correction, eps, of_weights)


def look(view: View, x: Array, table: Table, freedom: float, eps: float, weights: Array | None = None) -> Array:
    """Write the statistics of x, which has this view, to ``table``; return the coefficients."""
    plan, stack = make_plan(view, (x,)), view.of(x)
    width, numbers = parts.cut_for_sums(view, weights, stack)
    form = np.empty((rows.FORM_ROWS, view.channels), computed_dtype(x))
    written = np.empty((3, numbers.size, width))
    arguments = stack, weights, numbers, written, table, form, freedom, eps
    wanted = variant_of(x, weights=weights)
    if view.runs:
        run(runs.moments_of_runs, wanted, plan.parallel, *arguments, plan.group)
    else:
        blocks = parts.blocks_to_sum(view.shape, width)
        run(columns.moments_of_columns, wanted, plan.parallel, *arguments, plan.ahead, blocks)
    return form


def moments_with_gaps(x: Array, index: int, weights: Weights | None) -> Array:
    """Return count, mean, what its rounding leaves, and m2 of the channels, (4, C): NaN is a value that is missing.

    ``x`` is not empty.
    """
    view, (source,) = read_in_place(index, weights is not None, x)
    plan, stack = make_plan(view, (source,)), view.of(source)
    of_weights = None if weights is None else weights.in_order(source, index)
    blocks: tuple[Array, ...] = ()
    if view.runs:
        outer, width, inner = view.shape
        step, number = gaps.gaps_of_runs, outer * -(-inner // statistics.PIECE)
    else:
        width, numbers = parts.cut_for_sums(view, of_weights, stack)
        step, number, blocks = gaps.gaps_of_columns, numbers.size, (parts.blocks_to_sum(view.shape, width),)
    written, table = np.empty((4, number, width)), np.empty((4, view.channels))
    wanted = variant_of(x, weights=of_weights)
    run(step, wanted, plan.parallel, stack, of_weights, written, table, plan.ahead, *blocks)
    return table


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
    written = np.empty((3, numbers.size, width))
    form = np.empty((rows.FORM_ROWS, width), computed_dtype(x))
    what = of(x), of(y), added, weights, numbers, written, table, form
    wanted = variant_of(x, len(kind), residual is not None, weights)
    options = kind, freedom, eps, plan.streaming
    run(runs.train_channels, wanted, plan.parallel, *what, *options)


def completed(given: Table, eps: float) -> Table:
    """Return a table of statistics that were given, with what a backward needs besides."""
    table = np.zeros((rows.STATISTICS_ROWS, given.shape[1]))
    table[: rows.LAYER_ROWS] = given
    table[rows.INV_STD] = over_std(1.0, given[rows.VAR], eps)
    return table


def move_averages(parameters: Array, table: Table, divisor: float, momentum: float, counter: Array) -> None:
    """Update running mean and variance, rows of ``parameters``, in place, and count the batch."""
    wanted = np.float64, False, 0, False, None, parameters.dtype.type, False
    layers.move_averages.variant(wanted)(parameters, table, divisor, momentum, counter)


def new_sums(channels: int, fused: Fused = PLAIN) -> Table:
    """Return a table for the sums of a backward."""
    return np.zeros((3 if len(fused.kind) == LEARNED else 2, channels))


def sum_gradients(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table,
    sums: Table,
    mask: Weights | None = None,
    freedom: float = 1.0,
    fused: Fused = PLAIN,
    kept: Array | None = None,
) -> Array:
    """Write ``sum(g)`` and ``sum(g * (x - mean))`` of each channel to ``sums``, and that of a learned slope.

    ``g`` is what reaches the activation's argument of ``grad_y``; write it to ``kept``, too. Return the coefficients
    of the other half, of the values of ``x`` alone.
    """
    read = (grad_y,) if fused.residual is None else (grad_y, fused.residual)
    reading = None if kept is None else Reading(index, x, read, kept, None, mask is not None)
    if reading is None:
        view, (source, *arrays) = read_in_place(index, mask is not None, x, *read)
    else:
        view, source, arrays = reading.view, reading.source, [*reading.read]
    of_mask = None if mask is None else mask.in_order(source, index)
    count = view.size / view.channels if mask is None else mask.total
    fused = fused._replace(residual=arrays[1] if arrays[1:] else None)
    target = None if reading is None else reading.target
    given = table, sums, count, freedom, of_mask, fused, target
    form = add_up(view, arrays[0], source, *given)
    if reading is not None:
        reading.result()
    return form


def add_up(
    view: View,
    grad_y: Array,
    x: Array,
    table: Table,
    sums: Table,
    count: float,
    freedom: float,
    mask: Array | None = None,
    fused: Fused = PLAIN,
    kept: Array | None = None,
) -> Array:
    """`sum_gradients` of arrays that have this view; return the coefficients of `write_back`."""
    plan, grad, source = make_plan(view, (x, grad_y)), view.of(grad_y), view.of(x)
    width, numbers = parts.cut_for_sums(view, mask, grad, source)
    form = np.empty((rows.GRADIENT_ROWS, view.channels), computed_dtype(x))
    written = np.zeros((len(sums), numbers.size, width))
    kind, of_y = fused.kind, fused.form
    added = to_keep = None
    if of_y is not None:
        added = source[:0] if fused.residual is None else view.of(fused.residual)
        to_keep = np.empty((0, 0, 0), source.dtype) if kept is None else view.of(kept)
        of_y = parts.spread(of_y, view, width)
    what = grad, source, mask, added, to_keep, of_y, kind
    wanted = variant_of(x, len(kind), False, mask)
    results = written, table, sums, form, count, freedom
    if view.runs:
        step = runs.gradient_sums_of_runs
        run(step, wanted, plan.parallel, *what, *results, plan.group)
    else:
        step, means = columns.gradient_sums_of_columns, parts.spread(table[: rows.MEAN + 1], view, width)
        run(step, wanted, plan.parallel, *what, means, *results, parts.blocks_to_sum(view.shape, width))
    return form


def write_gradient(
    grad_y: Array,
    x: Array,
    index: int,
    form: Array,
    out: Array | None = None,
    mask: Weights | None = None,
    fused: Fused = PLAIN,
) -> Array:
    """Return grad_x, in ``out`` or a new array, with the coefficients of `gradient_coefficients`."""
    reading = Reading(index, x, (grad_y,), out, None, mask is not None)
    of_mask = None if mask is None else mask.in_order(reading.source, index)
    write_back(reading.view, reading.read[0], reading.source, reading.target, form, of_mask, fused)
    return reading.result()


def write_back(
    view: View, grad_y: Array, x: Array, grad_x: Array, form: Array, mask: Array | None = None, fused: Fused = PLAIN
) -> None:
    """Run the step that writes grad_x on arrays that have this view."""
    joins = mask is None
    plan, of, kind = make_plan(view, (x, grad_y), grad_x, 1, joins), view.of, fused.kind
    width, of_y = parts.width_of_rows(view, plan.streaming, joins), fused.form
    form = parts.spread(form, view, width)
    if of_y is not None:
        of_y = parts.spread(of_y, view, width)
    arguments = of(grad_y), of(x), of(grad_x), mask, form, of_y, kind, plan.streaming
    wanted = variant_of(x, len(kind), False, mask)
    if view.runs:
        run(runs.gradient_of_runs, wanted, plan.parallel, *arguments)
    else:
        run(columns.gradient_of_columns, wanted, plan.parallel, *arguments, parts.blocks_to_write(view.shape, width))


def gradient_coefficients(table: Table, sums: Table, count: float, correction: float, dtype: np.dtype[Any]) -> Array:
    """Return what `write_gradient` takes, from the sums of ``count`` values a channel.

    The formulas, and the bits, of `nbbn._kernels.coefficients.finish_sums`.
    """
    mean, low, inv_std = table[rows.MEAN], table[rows.MEAN_LOW], table[rows.INV_STD]
    form = np.empty((6, table.shape[1]), dtype)
    with np.errstate(all="ignore"):
        grad_mean = sums[rows.SUM_GRAD] / count
        scale = table[rows.GAMMA] * inv_std
        slope = -scale * ((inv_std * sums[rows.SUM_PRODUCT]) / (count - correction))
        form[:5] = grad_mean, scale, mean + low, inv_std, slope
        of_grad = (grad_mean - form[0]) * form[1]
        form[5] = -(of_grad + ((mean - form[2]) + low) * inv_std * form[4])
    return form


class Gradients(NamedTuple):
    """What a backward finds."""

    x: Array
    sums: Table  # two a channel, and that of a learned slope
    residual: Array | None = None  # where an activation followed


def differentiate(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table,
    correction: float,
    training: bool = True,
    out: Array | None = None,
    mask: Weights | None = None,
    fused: Fused = PLAIN,
) -> Gradients:
    """Return the gradients of a forward, that of x in ``out`` or a new array.

    In ``training`` through the statistics in ``table``; else these were given, and
    ``grad_x = g * gamma * inv_std``, where ``g`` is what reaches the activation's argument.
    """
    sums, of_residual = new_sums(table.shape[1], fused), None
    if fused.residual is not None:
        of_residual = empty_like(x)
    if x.size == 0:
        return Gradients(np.empty_like(x) if out is None else out, sums, of_residual)
    if training and of_residual is None:
        reading = Reading(index, x, (grad_y,), out, None, mask is not None)
        view, source, grad = reading.view, reading.source, reading.read[0]
        count = view.size / view.channels if mask is None else mask.total
        of_mask = None if mask is None else mask.in_order(source, index)
        options = table, sums, count, count - correction, of_mask, fused
        add_up_and_write_back(view, grad, source, reading.target, *options)
        return Gradients(reading.result(), sums)
    kept = of_residual
    if fused.kind and kept is None:  # grad_x holds g, until it is multiplied in place
        kept = out = empty_like(x) if out is None else out
    count = x.size / table.shape[1] if mask is None else mask.total
    form = sum_gradients(grad_y, x, index, table, sums, mask, count - correction if training else 1.0, fused, kept)
    grad = grad_y if kept is None else kept
    if training:
        return Gradients(write_gradient(grad, x, index, form, out, mask), sums, of_residual)
    scale = np.zeros((rows.FORM_ROWS, table.shape[1]), computed_dtype(x))
    with np.errstate(all="ignore"):  # as compiled code: infinite or NaN, no warning
        scale[rows.SCALE] = table[rows.GAMMA] * table[rows.INV_STD]
    return Gradients(infer(grad, index, scale, out), sums, of_residual)


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
    fused: Fused = PLAIN,
) -> Array:
    """Run both steps of a backward, `add_up` and `write_back`, or one that does both channel by channel.

    Return the gradients with respect to gamma, beta and a learned slope.
    """
    plan, kind = make_plan(view, (x, grad_y), grad_x, 2), fused.kind
    if not plan.by_channel:
        form = add_up(view, grad_y, x, table, sums, count, freedom, mask, fused)
        write_back(view, grad_y, x, grad_x, form, mask, fused)
        return form[rows.OF_GAMMA : rows.OF_GAMMA + len(sums)]
    of = view.of
    width, numbers = parts.cut_for_sums(view, mask)
    written = np.empty((len(sums), numbers.size, width))
    form = np.empty((rows.GRADIENT_ROWS, width), computed_dtype(x))
    what = of(grad_y), of(x), of(grad_x), mask, fused.form, kind, written, table, sums, form
    options, wanted = (count, freedom, plan.streaming), variant_of(x, len(kind), False, mask)
    run(runs.differentiate_channels, wanted, plan.parallel, *what, *options)
    return form[rows.OF_GAMMA : rows.OF_GAMMA + len(sums)]


def parameter_gradients(table: Table, sums: Table, dtype: np.dtype[Any]) -> list[Array]:
    """Return the gradients of gamma and beta, and of a learned slope, from the sums of each channel."""
    with np.errstate(all="ignore"):
        products = sums[rows.SUM_PRODUCT] * table[rows.INV_STD]
        return [a.astype(dtype) for a in (products, sums[rows.SUM_GRAD], *sums[rows.SUM_SLOPE :])]
