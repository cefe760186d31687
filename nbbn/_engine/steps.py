"""What layer, functions and data sets share: checked arrays in, a running kernel, results out."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn._compiler.jit import Step, Variant
from nbbn._engine import threads
from nbbn._engine.masks import Weights
from nbbn._engine.plan import Plan, make_plan
from nbbn._engine.views import Reading, View, read_in_place, same_memory
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
_KERNEL_DTYPES = {np.dtype(np.float16): np.uint16, np.dtype(np.uint8): np.uint8}


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


def kernel_dtype(dtype: np.dtype[Any]) -> Any:
    """Return the type that kernels see: of half types, that of their bits."""
    if dtype.itemsize == 2:
        return np.uint16 if dtype == np.float16 else np.int16
    return dtype.type


def _run(step: Step, wanted: Variant, parallel: bool, *arguments: Any) -> None:
    """Run the parallel twin where that pays and may be started now, else the serial one."""
    claim = threads.enter_region() if parallel else None
    if claim is None:
        step.variant(wanted)(*arguments)
        return
    try:
        step.variant(wanted._replace(parallel=True))(*arguments)
    finally:
        threads.leave_region(claim)


def coefficients(table: Array, eps: float, dtype: np.dtype[Any]) -> Array:
    """Return center, scale and shift of each channel in ``dtype``, from a table of statistics."""
    form = np.empty((3, table.shape[1]), dtype)
    wanted = Variant(dtype.type)
    layers.inference_coefficients.variant(wanted)(table, eps, form)
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
    _write(reading, form, after, None)
    return reading.result()


def before_activation(
    grad_y: Array, x: Array, index: int, form: Array, after: Epilogue, out: Array | None = None
) -> Array:
    """Return the gradient with respect to the activation's argument, in ``out`` or a new array."""
    if x.size == 0:
        return np.empty_like(x) if out is None else out
    reading = Reading(index, x, (grad_y, *after.read), out)
    _write(reading, form, after, reading.read[0])
    return reading.result()


def _write(reading: Reading, form: Array, after: Epilogue, grad: Array | None) -> None:
    """Run the elementwise step."""
    view, x, y = reading.view, reading.source, reading.target
    residual = None if after.residual is None else reading.read[-1]
    plan = _plan_to_write(reading)
    kind = after.kind
    wanted = Variant(
        kernel_dtype(x.dtype), False, len(kind), residual is not None, grad is not None
    )
    _run(
        runs.infer_runs if view.runs else columns.infer_columns,
        wanted,
        plan.parallel,
        view.of(x),
        view.of(y),
        None if residual is None else view.of(residual),
        None if grad is None else view.of(grad),
        form,
        kind,
        after.slope,
        plan.streaming,
    )


def _plan_to_write(reading: Reading, passes: int = 1) -> Plan:
    x, y = reading.source, reading.target
    read = x.nbytes + sum(array.nbytes for array in reading.read)
    in_place = y is x or any(same_memory(y, a) for a in (x, *reading.read))
    return make_plan(reading.view, read, y.nbytes, in_place, passes)


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
        root = np.sqrt(var.astype(np.float64) + eps)
        return np.where(root == 0.0, 0.0, value / root)


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
    _look(view, source, of_weights, table, count - correction, eps)
    return count


def _look(
    view: View, x: Array, weights: Array | None, table: Table, freedom: float, eps: float
) -> None:
    plan = make_plan(view, x.nbytes)
    kind = None if weights is None else weights.dtype.type
    wanted = Variant(kernel_dtype(x.dtype), weights=kind)
    arguments = view.of(x), weights, table, freedom, eps
    if view.runs:
        _run(runs.moments_of_runs, wanted, plan.parallel, *arguments, plan.group)
    else:
        _run(columns.moments_of_columns, wanted, plan.parallel, *arguments, plan.ahead)


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
    plan = _plan_to_write(reading, 2)
    if not plan.by_group:
        _look(view, source, of_weights, table, count - correction, eps)
        _write(reading, coefficients(table, eps, computed_dtype(x)), after, None)
        return reading.result()
    wanted = Variant(
        kernel_dtype(x.dtype),
        activation=len(after.kind),
        residual=after.residual is not None,
        weights=None if of_weights is None else of_weights.dtype.type,
    )
    _run(
        runs.train_groups,
        wanted,
        plan.parallel,
        view.of(source),
        view.of(reading.target),
        None if after.residual is None else view.of(reading.read[0]),
        of_weights,
        table,
        after.kind,
        after.slope,
        count - correction,
        eps,
        plan.streaming,
        plan.group,
    )
    return reading.result()


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
    wanted = Variant(parameters=parameters.dtype.type)
    layers.move_averages.variant(wanted)(parameters, table, divisor, momentum, counter)


def sum_gradients(
    grad_y: Array, x: Array, index: int, table: Table, sums: Table, mask: Weights | None = None
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``sums``."""
    view, (source, grad) = read_in_place(index, mask is not None, x, grad_y)
    of_mask = None if mask is None else mask.in_order(source, index)
    plan = make_plan(view, source.nbytes + grad.nbytes)
    wanted = Variant(kernel_dtype(x.dtype), weights=None if of_mask is None else of_mask.dtype.type)
    arguments = view.of(grad), view.of(source), of_mask, table, sums
    if view.runs:
        _run(runs.gradient_sums_of_runs, wanted, plan.parallel, *arguments, plan.group)
    else:
        _run(columns.gradient_sums_of_columns, wanted, plan.parallel, *arguments, plan.ahead)


def write_gradient(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table,
    sums: Table,
    count: float,
    correction: float,
    out: Array | None = None,
    mask: Weights | None = None,
) -> Array:
    """Return grad_x, in ``out`` or a new array, from the sums of ``count`` values a channel."""
    reading = Reading(index, x, (grad_y,), out, None, mask is not None)
    form = np.empty((6, table.shape[1]), computed_dtype(x))
    freedom = count - correction
    layers.gradient_coefficients.variant(Variant(form.dtype.type))(
        table, sums, count, freedom, form
    )
    view, plan = reading.view, _plan_to_write(reading)
    of_mask = None if mask is None else mask.in_order(reading.source, index)
    wanted = Variant(kernel_dtype(x.dtype), weights=None if of_mask is None else of_mask.dtype.type)
    _run(
        runs.gradient_of_runs if view.runs else columns.gradient_of_columns,
        wanted,
        plan.parallel,
        view.of(reading.read[0]),
        view.of(reading.source),
        view.of(reading.target),
        of_mask,
        form,
        plan.streaming,
    )
    return reading.result()


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
    view, plan = reading.view, _plan_to_write(reading, 2)
    count = view.size / view.channels if mask is None else mask.total
    if not plan.by_group:
        sum_gradients(grad_y, x, index, table, sums, mask)
        return write_gradient(grad_y, x, index, table, sums, count, correction, out, mask), sums
    of_mask = None if mask is None else mask.in_order(reading.source, index)
    wanted = Variant(kernel_dtype(x.dtype), weights=None if of_mask is None else of_mask.dtype.type)
    _run(
        runs.differentiate_groups,
        wanted,
        plan.parallel,
        view.of(reading.read[0]),
        view.of(reading.source),
        view.of(reading.target),
        of_mask,
        table,
        sums,
        count,
        count - correction,
        plan.streaming,
        plan.group,
    )
    return reading.result(), sums


def parameter_gradients(table: Table, sums: Table, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return grad_gamma and grad_beta from the two sums a channel."""
    with np.errstate(all="ignore"):
        products = sums[rows.SUM_PRODUCT] * table[rows.INV_STD]
        return products.astype(dtype), sums[rows.SUM_GRAD].astype(dtype)
