"""What layer, functions and data sets share: checked arrays in, a running kernel, results out."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._engine.masks import Weights
from nbbn._engine.memory import empty_like
from nbbn._engine.views import read_in_place, write_in_place
from nbbn._engine.ways import PLAIN as PLAIN
from nbbn._engine.ways import Fused as Fused
from nbbn._engine.ways import Table, way_of
from nbbn._engine.ways import computed_dtype as computed_dtype
from nbbn._engine.ways import new_sums as new_sums
from nbbn._kernels import steps_of_layers as layers
from nbbn._kernels import table as rows
from nbbn._kernels.activations import TABLE

_KINDS = {name: (0.0,) * number for number, name in enumerate(TABLE)}
_NAMES = tuple(name for name in TABLE if name is not None)


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


def activation(value: Any) -> _checks.Activation | None:
    found: Any = None if value is None else _checks.choice("activation", value, _NAMES)
    return found  # type: ignore[no-any-return]


def coefficients(table: Table, eps: float, dtype: np.dtype[Any]) -> Array:
    """Return center, scale and shift of each channel in ``dtype``, from a table of statistics.

    The formulas, and the bits, of `nbbn._kernels.coefficients.write_coefficients`, without anything to compile.
    """
    form = np.empty((rows.FORM_ROWS, table.shape[1]), dtype)
    mean, is_pair = table[rows.MEAN], len(table) > rows.MEAN_LOW
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        scale = over_std(table[rows.GAMMA], table[rows.VAR], eps)
        center = (mean + table[rows.MEAN_LOW] if is_pair else mean).astype(dtype)
        rest = mean - center
        if is_pair:
            rest += table[rows.MEAN_LOW]
        if not math.isfinite(np.add.reduce(rest)):
            rest[~np.isfinite(rest)] = 0.0  # of an infinite mean, or NaN
        form[rows.CENTER], form[rows.SCALE], form[rows.FORM_SLOPE] = center, scale, table[rows.SLOPE]
        form[rows.SHIFT] = table[rows.BETA] - rest * form[rows.SCALE]
    return form


class Reading:
    """The stacks of a call: what is read and, if it ``writes``, what is written; and the way steps run on them."""

    __slots__ = ("count", "out", "read", "target", "way", "weights", "x", "y")

    def __init__(
        self,
        index: int,
        x: Array,
        read: tuple[Array, ...] = (),
        weights: Weights | None = None,
        out: Array | None = None,
        dtype: np.dtype[Any] | None = None,
        writes: bool = True,
    ) -> None:
        weighted = weights is not None
        if writes:
            view, target, (source, *others) = write_in_place(index, weighted, out, dtype, (x, *read))
        else:
            view, (source, *others) = read_in_place(index, weighted, x, *read)
            target = source
        self.out, self.target = out, target
        self.x = view.of(source)
        self.y = view.of(target) if writes else self.x
        self.read = list(map(view.of, others))
        self.way = way_of(view, self.x.dtype)
        self.weights = None if weights is None else weights.in_order(source, index)
        self.count = view.size / view.channels if weights is None else weights.total  # values a channel

    def result(self) -> Array:
        """Return ``out`` with what was written, or the new array."""
        if self.out is None or self.target is self.out:
            return self.target
        self.out[...] = self.target
        return self.out


def infer(
    x: Array,
    index: int,
    form: Array,
    out: Array | None = None,
    after: Epilogue = NOTHING,
    dtype: np.dtype[Any] | None = None,
    noted: Array | None = None,
) -> Array:
    """Return ``activation((x - center) * scale + shift + residual)``, in ``out`` or a new array.

    ``noted[0]`` becomes 1 if x has an infinite value.
    """
    if x.size == 0:
        return np.empty_like(x, dtype) if out is None else out
    given = Reading(index, x, after.read, None, out, dtype)
    residual = given.read[0] if given.read else None
    given.way.write(given.x, given.y, form, after.kind, residual, noted)
    return given.result()


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
        root = np.sqrt(np.add(var, eps, dtype=np.float64))
        found: Table = value / root
        if not math.isfinite(np.add.reduce(found)):
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
    """Write the statistics of ``x`` to ``table``; return the count, which is not 0, and coefficients made of them."""
    given = Reading(index, x, (), weights, writes=False)
    return given.count, given.way.look(given.x, (table, given.count - correction, eps), given.weights)


def moments_with_gaps(x: Array, index: int, weights: Weights | None) -> Table:
    """Return count, mean, what its rounding leaves, and m2 of the channels, (4, C): NaN is a value that is missing.

    ``x`` is not empty.
    """
    given = Reading(index, x, (), weights, writes=False)
    return given.way.look_with_gaps(given.x, given.weights)


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
    given = Reading(index, x, after.read, weights, out)
    batch = table, given.count - correction, eps
    given.way.train(given.x, given.y, batch, after.kind, given.weights, *given.read)
    return given.result()


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
    given = Reading(index, x, read, mask, kept, writes=kept is not None)
    grad, *residual = given.read
    fused = fused._replace(residual=residual[0] if residual else None, kept=None if kept is None else given.y)
    form = given.way.add_up(grad, given.x, (table, sums, given.count, freedom), fused, given.weights)
    given.result()
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
    given = Reading(index, x, (grad_y,), mask, out)
    given.way.write_back(given.read[0], given.x, given.y, form, fused, given.weights)
    return given.result()


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
        given = Reading(index, x, (grad_y,), mask, out)
        of = table, sums, given.count, given.count - correction
        given.way.differentiate(given.read[0], given.x, given.y, of, fused, given.weights)
        return Gradients(given.result(), sums)
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


def parameter_gradients(table: Table, sums: Table, dtype: np.dtype[Any]) -> list[Array]:
    """Return the gradients of gamma and beta, and of a learned slope, from the sums of each channel."""
    with np.errstate(all="ignore"):
        products = sums[rows.SUM_PRODUCT] * table[rows.INV_STD]
        return [a.astype(dtype) for a in (products, sums[rows.SUM_GRAD], *sums[rows.SUM_SLOPE :])]
