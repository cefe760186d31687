"""What layer, functions and data sets share: checked arrays in, a running kernel, results out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._engine.known import known_of
from nbbn._engine.masks import Weights
from nbbn._engine.memory import empty_like, on_lines
from nbbn._engine.views import read_in_place, write_in_place
from nbbn._engine.ways import NOTHING as NOTHING
from nbbn._engine.ways import Epilogue as Epilogue
from nbbn._engine.ways import Table, Way, way_of
from nbbn._engine.ways import computed_dtype as computed_dtype
from nbbn._engine.ways import new_sums as new_sums
from nbbn._kernels import steps_of_layers as layers
from nbbn._kernels import table as rows
from nbbn._kernels.activations import TABLE

_KINDS = {name: (0.0,) * number for number, name in enumerate(TABLE)}
_NAMES = tuple(name for name in TABLE if name is not None)


def epilogue(activation: str | None, slope: Any = None, residual: Array | None = None) -> Epilogue:
    return Epilogue(_KINDS[activation], slope, residual)


def slope(activation: str | None, value: Any, channels: int) -> Any:
    """Return a slope below 0: a number; of prelu, where no layer learns it, perhaps one a channel."""
    if activation == "prelu" and np.ndim(value):
        return _checks.per_channel("negative_slope", value, channels)
    return _checks.real("negative_slope", value)


def activation(value: Any) -> _checks.Activation | None:
    found: Any = None if value is None else _checks.choice("activation", value, _NAMES)
    return found  # type: ignore[no-any-return]


def coefficients(table: Table, eps: float, dtype: np.dtype[Any]) -> Array:
    """Return center, scale and shift of each channel in ``dtype``, from a table of statistics.

    The formulas, and the bits, of `nbbn._kernels.coefficients.write_coefficients`, without anything to compile.
    """
    form = on_lines((rows.FORM_ROWS, table.shape[1]), dtype)
    mean, is_pair = table[rows.MEAN], len(table) > rows.MEAN_LOW
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        scale = _over_std(table[rows.GAMMA], table[rows.VAR], eps)
        center = (mean + table[rows.MEAN_LOW] if is_pair else mean).astype(dtype)
        rest = mean - center
        if is_pair:
            rest += table[rows.MEAN_LOW]
        if not math.isfinite(np.add.reduce(rest)):
            rest[~np.isfinite(rest)] = 0.0  # of an infinite mean, or NaN
        form[rows.CENTER], form[rows.SCALE], form[rows.FORM_SLOPE] = center, scale, table[rows.SLOPE]
        form[rows.SHIFT] = table[rows.BETA] - rest * form[rows.SCALE]
    return form


def narrowed(form: Array, mean: Array, low: Array) -> Array:
    """Return as float32 what `coefficients` makes of finite means and a beta of 0: ``form`` is that as float64."""
    found = form.astype(np.float32)
    rest = (mean - found[rows.CENTER]) + low
    np.subtract(0.0, rest * found[rows.SCALE], out=found[rows.SHIFT], casting="same_kind")
    return found


class Call(NamedTuple):
    """One call, or a part of one: what was given, checked."""

    x: Array
    axis: int
    out: Array | None = None
    after: Epilogue = NOTHING
    weights: Weights | None = None

    def total(self) -> float:
        """Return how many values a channel enter the statistics."""
        return self.x.size / self.x.shape[self.axis] if self.weights is None else self.weights.total

    def checked_total(self, correction: float, running_correction: float) -> float:
        """Return `total`, which is enough for variances with these corrections."""
        total = self.total()
        _checks.enough_values(total, correction, running_correction, "x" if self.weights is None else "mask")
        return total


# How steps run on stacks: of x, of what is written (of x, where nothing is), of what else is read, and of weights.
# The last one is what is written, as an array.
_Stacks = tuple[Way, Array, Array, list[Array], Array | None, Array]


def _stacks(
    call: Call, read: tuple[Array, ...] = (), dtype: np.dtype[Any] | None = None, writes: bool = True
) -> _Stacks:
    x, index, out, _, weights = call
    if weights is None and (dtype is None or dtype == x.dtype):
        known = known_of(x, index, read)
        if known is not None:
            target, stack = known.target(x, out, read) if writes else x, known.stack
            if target is not None:
                others = list(map(stack, read)) if read else []
                return known.way, stack(x), stack(target), others, None, target
    if writes:
        view, target, (x, *others) = write_in_place(index, weights is not None, out, dtype, (x, *read))
    else:
        view, (x, *others) = read_in_place(index, weights is not None, x, *read)
        target = x
    stacks = [view.of(array) for array in (x, target, *others)]
    flat = None if weights is None else weights.in_order(x, index)
    return way_of(view, stacks[0].dtype), stacks[0], stacks[1], stacks[2:], flat, target


def _result(call: Call, target: Array) -> Array:
    """Return ``out`` with what was written, or the new array."""
    out = call.out
    if out is None or target is out:
        return target
    out[...] = target
    return out


def infer(call: Call, form: Array, dtype: np.dtype[Any] | None = None, noted: Array | None = None) -> Array:
    """Return ``activation((x - center) * scale + shift + residual)``, in ``out`` or a new array of ``dtype``.

    ``noted[0]`` becomes 1 if x has an infinite value.
    """
    if call.x.size == 0:
        return np.empty_like(call.x, dtype) if call.out is None else call.out
    if call.weights is not None:
        call = call._replace(weights=None)
    way, x, y, residual, _, target = _stacks(call, call.after.read, dtype)
    way.write(x, y, form, call.after.kind, residual[0] if residual else None, noted)
    return _result(call, target)


def new_table(
    channels: int, gamma: Any = None, beta: Any = None, slope: Any = 0.0, number: int = rows.STATISTICS_ROWS
) -> Table:
    """Return a table for statistics, of so many rows, with gamma, beta and the slope of an activation in it."""
    table = np.empty((number, channels))
    table[rows.GAMMA] = 1.0 if gamma is None else gamma
    table[rows.BETA] = 0.0 if beta is None else beta
    table[rows.SLOPE] = slope
    return table


def given_table(mean: Array, var: Array, gamma: Any = None, beta: Any = None, slope: Any = 0.0) -> Table:
    """Return a table of statistics that were given, for `coefficients`."""
    table = new_table(mean.size, gamma, beta, slope, rows.LAYER_ROWS)
    table[rows.MEAN], table[rows.VAR] = mean, var
    return table


def over_std(value: Any, var: Array, eps: float) -> Table:
    """Return ``value / sqrt(var + eps)``, and 0 where ``var + eps`` is 0: as kernels do."""
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        return _over_std(value, var, eps)


def _over_std(value: Any, var: Array, eps: float) -> Table:
    root = np.sqrt(np.add(var, eps, dtype=np.float64))
    found: Table = value / root
    if not math.isfinite(np.add.reduce(found)):
        found[root == 0.0] = 0.0
    return found


def moments(
    call: Call, table: Table, correction: float = 0.0, eps: float = 0.0, earlier: Table | None = None
) -> tuple[float, Array]:
    """Write the statistics of ``x`` to ``table``; return the count, which is not 0, and coefficients made of them.

    ``earlier`` values count, too: their reference, sum of deviations, m2 and number, (4, C), of several columns with
    the same number each.
    """
    count, known = call.total(), known_of(call.x, call.axis) if call.weights is None else None
    if earlier is not None:
        count += float(earlier[rows.COUNT, 0])
    batch = table, count - correction, eps
    if known is not None:  # as `_stacks`, 0.6 us sooner
        return count, known.way.look(known.stack(call.x), batch, None, earlier)
    way, x, _, _, weights, _ = _stacks(call, writes=False)
    return count, way.look(x, batch, weights, earlier)


def moments_with_gaps(call: Call, table: Table) -> Array:
    """Write count, mean, what its rounding leaves, and m2 of ``x``, which is not empty; return coefficients.

    NaN is a value that is missing.
    """
    way, x, _, _, weights, _ = _stacks(call, writes=False)
    return way.look_with_gaps(x, table, weights)


def train(call: Call, table: Table, freedom: float, eps: float) -> Array:
    """Normalize with the statistics of ``x``, which is not empty, and write these to ``table``; return y.

    ``table`` holds gamma and beta; a variance is over ``freedom`` values.
    """
    way, x, y, residual, weights, target = _stacks(call, call.after.read)
    way.train(x, y, (table, freedom, eps), call.after.kind, weights, *residual)
    return _result(call, target)


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


def sum_gradients(
    grad_y: Array, call: Call, table: Table, sums: Table, freedom: float = 1.0, kept: Array | None = None
) -> Array:
    """Write ``sum(g)`` and ``sum(g * (x - mean))`` of each channel to ``sums``, and that of a learned slope.

    ``g`` is what reaches the activation's argument of ``grad_y``; write it to ``kept``, too. Return the coefficients
    of the other half, of the values of ``x`` alone.
    """
    after, call = call.after, call._replace(out=kept)
    way, x, y, (grad, *residual), weights, target = _stacks(call, (grad_y, *after.read), writes=kept is not None)
    if residual:
        after = after._replace(residual=residual[0])
    of = table, sums, call.total(), freedom
    form = way.add_up(grad, x, of, after, weights, None if kept is None else y)
    _result(call, target)
    return form


def write_gradient(grad_y: Array, call: Call, form: Array) -> Array:
    """Return grad_x, in ``out`` or a new array, with the coefficients of `gradient_coefficients`."""
    way, x, grad_x, (grad,), weights, target = _stacks(call, (grad_y,))
    way.write_back(grad, x, grad_x, form, call.after, weights)
    return _result(call, target)


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
    parameters: Any  # arrays: of gamma and beta, and a learned slope
    residual: Array | None = None  # where an activation followed


def differentiate(
    grad_y: Array, call: Call, table: Table, correction: float, dtype: np.dtype[Any], training: bool = True
) -> Gradients:
    """Return the gradients of a forward, that of x in ``out`` or a new array, those of parameters in ``dtype``.

    In ``training`` through the statistics in ``table``; else these were given, and
    ``grad_x = g * gamma * inv_std``, where ``g`` is what reaches the activation's argument.
    """
    x, out, after = call.x, call.out, call.after
    sums, of_residual = new_sums(table.shape[1], after), None
    if after.residual is not None:
        of_residual = empty_like(x)
    if x.size == 0:
        nothing = np.empty_like(x) if out is None else out
        return Gradients(nothing, parameter_gradients(table, sums, dtype), of_residual)
    count = call.total()
    if training and of_residual is None:
        way, source, grad_x, (grad,), weights, target = _stacks(call, (grad_y,))
        of = table, sums, count, count - correction
        rounded = way.differentiate(grad, source, grad_x, of, after, weights)
        found = rounded if rounded.dtype == dtype else parameter_gradients(table, sums, dtype)
        return Gradients(_result(call, target), found)
    kept = of_residual
    if after.kind and kept is None:  # grad_x holds g, until it is multiplied in place
        kept = out = empty_like(x) if out is None else out
    form = sum_gradients(grad_y, call, table, sums, count - correction if training else 1.0, kept)
    grad, parameters = grad_y if kept is None else kept, parameter_gradients(table, sums, dtype)
    if training:
        return Gradients(write_gradient(grad, call._replace(after=NOTHING), form), parameters, of_residual)
    scale = np.zeros((rows.FORM_ROWS, table.shape[1]), computed_dtype(x))
    with np.errstate(all="ignore"):  # as compiled code: infinite or NaN, no warning
        scale[rows.SCALE] = table[rows.GAMMA] * table[rows.INV_STD]
    return Gradients(infer(Call(grad, call.axis, out), scale), parameters, of_residual)


def parameter_gradients(table: Table, sums: Table, dtype: np.dtype[Any]) -> list[Array]:
    """Return the gradients of gamma and beta, and of a learned slope, from the sums of each channel."""
    with np.errstate(all="ignore"):
        products = sums[rows.SUM_PRODUCT] * table[rows.INV_STD]
        return [a.astype(dtype) for a in (products, sums[rows.SUM_GRAD], *sums[rows.SUM_SLOPE :])]
