"""The steps that layer and functions share: arguments already checked -> views -> kernels.

A step reads and writes in place where the memory layouts allow it and goes through one copy where
they do not (see `nbbn._layout`), or where ``out`` overlaps an input without being the same view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _dispatch, _plain
from nbbn._epilogue import Epilogue
from nbbn._layout import Layout, describe, overlap
from nbbn._layout import flat as flat_of
from nbbn._pool import empty_like
from nbbn._weights import Weights
from nbbn.kernels import table as rows

Array = NDArray[Any]
Table64 = NDArray[np.float64]
Vector64 = NDArray[np.float64]

_MOST_LAYOUTS = 1024
_layouts: dict[Any, Layout | None] = {}


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Statistics of one batch, per channel, float64: the rows of ``table``."""

    count: float  # number of values a channel, or the sum of their weights
    table: Table64

    def _row(self, row: int) -> Vector64:
        values: Vector64 = self.table[row]
        return values

    @property
    def mean(self) -> Vector64:
        """The mean, rounded to float64."""
        return self._row(rows.MEAN)

    @property
    def mean_low(self) -> Vector64:
        """What that rounding leaves."""
        return self._row(rows.MEAN_LOW)

    @property
    def m2(self) -> Vector64:
        """Sum of squared deviations from the mean."""
        return self._row(rows.M2)

    @property
    def var(self) -> Vector64:
        """``m2 / (count - correction)`` with the correction of the step that made it."""
        return self._row(rows.VAR)

    @property
    def inv_std(self) -> Vector64:
        """``1 / sqrt(var + eps)``."""
        return self._row(rows.INV_STD)


def over_std(value: Any, var: Array, eps: float) -> Vector64:
    """Return ``value / sqrt(var + eps)``, and 0 where ``var + eps`` is 0: as `nbbn.kernels.welford.over_std`."""
    with np.errstate(all="ignore"):  # infinite or NaN, no warning
        root = np.sqrt(var.astype(np.float64) + eps)
        return np.where(root == 0.0, 0.0, value / root)


_BITS = {np.dtype(np.float16): np.uint16}  # what kernels see of it; see `nbbn._formats`


def flat(array: Array) -> Array:
    """Return the contiguous memory of ``array`` in the form that kernels take."""
    memory = flat_of(array)
    kind = array.dtype
    if kind.itemsize == 2:  # float16, or bfloat16: not a type of numpy's own
        return memory.view(_BITS.get(kind, np.int16))
    return memory


def _layout(index: int, *arrays: Array) -> Layout | None:
    """`describe`, remembered by shape and strides; None also for misaligned arrays."""
    first = arrays[0]
    key: tuple[Any, ...] = first.shape, index, first.itemsize
    key = (*key, *[array.strides for array in arrays])
    for array in arrays:
        if not array.flags.aligned:
            return None
        if array.itemsize != first.itemsize:
            key = (*key, array.itemsize)
    try:
        return _layouts[key]
    except KeyError:
        pass
    if len(_layouts) >= _MOST_LAYOUTS:
        _layouts.clear()
    found = _layouts[key] = _layout_in_items(index, arrays)
    return found


def _layout_in_items(index: int, arrays: tuple[Array, ...]) -> Layout | None:
    """`describe`, with strides in items, as those may differ in size."""
    strides = []
    for array in arrays:
        if any(stride % array.itemsize for stride in array.strides):
            return None
        strides.append(tuple(stride // array.itemsize for stride in array.strides))
    return describe(arrays[0].shape, index, 1, *strides)


def _certain(index: int, *arrays: Array) -> Layout:
    """The layout of arrays that nbbn has laid out itself."""
    found = _layout(index, *arrays)
    if found is None:
        raise AssertionError(f"no layout for {[(a.shape, a.strides) for a in arrays]}")
    return found


def _same_view(a: Array, b: Array) -> bool:
    return a is b or (
        a.strides == b.strides
        and a.itemsize == b.itemsize
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _readable(x: Array, index: int) -> Array:
    """Return ``x``, or a copy that can be read by the kernels."""
    return x if _layout(index, x) is not None else x.copy(order="K")


def _apart(out: Array, a: Array) -> bool:
    """Whether writing to ``out`` leaves ``a`` readable: no overlap, or value over value."""
    return out is a or not overlap(out, a) or _same_view(out, a)


def _copy_like(source: Array, array: Array) -> Array:
    """Return a copy of ``array`` in the memory order of ``source``."""
    copy = empty_like(source, array.dtype)
    copy[...] = array
    return copy


def _views(
    x: Array, index: int, out: Array | None, *others: Array, dtype: np.dtype[Any] | None = None
) -> tuple[Array, Array, tuple[Array, ...], Layout]:
    """Return what to read for ``x`` and others, what to write to, and the layout of all of them.

    That is ``out`` if possible, else a new array of ``dtype``, by default that of x. In the layout it
    comes second.
    """
    source = _readable(x, index)
    read = tuple(
        a if _layout(index, source, a) is not None else _copy_like(source, a) for a in others
    )
    if out is not None and all(_apart(out, a) for a in (source, *read)):
        layout = _layout(index, source, out, *read)
        if layout is not None:
            return source, out, read, layout
    target = empty_like(source, dtype)
    layout = _layout(index, source, target, *read)
    if layout is None:
        read = tuple(_copy_like(source, a) for a in others)
        layout = _certain(index, source, target, *read)
    return source, target, read, layout


def _flat_epilogue(after: Epilogue | None, read: tuple[Array, ...]) -> Epilogue | None:
    """Return ``after`` as kernels take it, with the residual as `_views` found it."""
    if after is None or after.residual is None:
        return after
    return replace(after, residual=flat(read[0]))


def _residual(after: Epilogue | None) -> tuple[Array, ...]:
    return () if after is None or after.residual is None else (after.residual,)


def _result(target: Array, out: Array | None) -> Array:
    if out is None or target is out:
        return target
    out[...] = target
    return out


def statistics_rows(mean: Array, var: Array, gamma: Array | None, beta: Array | None) -> Array:
    """Return the table for `inference_step`, in the widest of the dtypes."""
    present = [vector.dtype for vector in (mean, var, gamma, beta) if vector is not None]
    table = np.empty((rows.NORMALIZE_ROWS, mean.size), np.result_type(*present))
    table[rows.MEAN] = mean
    table[rows.MEAN_LOW] = 0.0
    table[rows.VAR] = var
    table[rows.GAMMA] = 1.0 if gamma is None else gamma
    table[rows.BETA] = 0.0 if beta is None else beta
    return table


def _plan(x: Array, index: int, after: Epilogue | None = None) -> _plain.Plan | None:
    """Return how to read a contiguous ``x``; None for others, which a kernel would refuse."""
    plain = after is None and x.itemsize >= 4 and x.flags.c_contiguous
    return _plain.make_plan(x.shape, index) if plain else None


def _in_order(weights: Weights | None, source: Array, index: int) -> Array | None:
    return None if weights is None else weights.in_order(source, index)


def moments_step(x: Array, index: int, weights: Weights | None = None) -> BatchStatistics:
    """Return the statistics of ``x``, which is not empty; nor is the sum of the weights 0."""
    plan = _plan(x, index) if weights is None else None
    if plan is not None:
        found = _plain.moments(x, plan)
        if found is not None:
            return BatchStatistics(plan.layout.count, found)
    source = _readable(x, index)
    layout = _certain(index, source)
    table = _dispatch.statistics_table(layout.channels)
    count = float(layout.count if weights is None else weights.total)
    flat_weights = _in_order(weights, source, index)
    _dispatch.collect_moments(flat(source), layout, count, 0.0, table, flat_weights)
    return BatchStatistics(count, table)


def update_running(
    running_mean: Array | None,
    running_var: Array | None,
    batch: BatchStatistics,
    momentum: float,
    running_correction: float,
) -> None:
    """Apply ``running = (1 - momentum) * running + momentum * batch`` in place."""
    if running_mean is not None:
        _dispatch.move_average(running_mean, batch.mean, 1.0, momentum)
    if running_var is not None:
        divisor = batch.count - running_correction
        _dispatch.move_average(running_var, batch.m2, divisor, momentum)


def update_running_rows(
    table: Array, batch: Table64, divisor: float, momentum: float, counter: Array
) -> None:
    """`update_running` of the rows of a layer's table; see `nbbn._dispatch.move_averages`."""
    _dispatch.move_averages(table, batch, divisor, momentum, counter)


def inference_step(
    x: Array,
    index: int,
    table: Array,
    eps: float,
    out: Array | None,
    after: Epilogue | None = None,
    dtype: np.dtype[Any] | None = None,
) -> Array:
    """Normalize with the statistics in ``table``; write to ``out`` or a new array, return it."""
    if x.size == 0:
        return np.empty_like(x, dtype) if out is None else out
    plan = _plan(x, index)
    if plan is not None:
        y = empty_like(x) if out is None else out
        rest = () if after is None else (after.residual, after.tag, after.slope)
        if _plain.infer(x, y, table, eps, plan, *rest) != _plain.REFUSED:
            return y
        del y  # its memory may serve the general way
    source, target, read, layout = _views(x, index, out, *_residual(after), dtype=dtype)
    fused = _flat_epilogue(after, read)
    _dispatch.normalize(flat(source), flat(target), layout, table, eps, fused)
    return _result(target, out)


def activation_gradient_step(
    grad_y: Array,
    x: Array,
    index: int,
    table: Array,
    eps: float,
    after: Epilogue,
    out: Array | None = None,
) -> Array:
    """Return the gradient before the activation, in ``out`` if it can be written to, or a new array."""
    if x.size == 0:
        return np.empty_like(x)
    source, target, read, layout = _views(x, index, out, *_residual(after), grad_y)
    fused = _flat_epilogue(after, read)
    memory = flat(source), flat(target)
    _dispatch.normalize(*memory, layout, table, eps, fused, flat(read[-1]))
    return target


def training_step(
    x: Array,
    index: int,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    correction: float,
    out: Array | None,
    after: Epilogue | None = None,
    weights: Weights | None = None,
) -> tuple[Array, BatchStatistics]:
    """Normalize with the statistics of ``x``, which is not empty; return y and the statistics."""
    channels = x.shape[index]
    count = x.size // channels if weights is None else weights.total
    params = np.empty((rows.NORMALIZE_ROWS, channels))
    params[rows.GAMMA] = 1.0 if gamma is None else gamma
    params[rows.BETA] = 0.0 if beta is None else beta
    plan = _plan(x, index, after) if weights is None else None
    if plan is not None:
        y = empty_like(x) if out is None else out
        token, table = _plain.train(x, y, params, count - correction, eps, plan)
        if token != _plain.REFUSED:
            return y, BatchStatistics(count, table)
        del y
    source, target, read, layout = _views(x, index, out, *_residual(after))
    table = _dispatch.statistics_table(channels)
    table[rows.GAMMA], table[rows.BETA] = params[rows.GAMMA], params[rows.BETA]
    rest = _flat_epilogue(after, read), _in_order(weights, source, index)
    _dispatch.train(flat(source), flat(target), layout, count - correction, eps, table, *rest)
    return _result(target, out), BatchStatistics(count, table)


def backward_step(
    grad_y: Array,
    x: Array,
    index: int,
    mean: Array,
    inv_std: Array,
    gamma: Array | None,
    correction: float,
    training: bool,
    out: Array | None,
    dtype: np.dtype[Any],
    mask: Weights | None = None,
) -> tuple[Array, Array, Array]:
    """Return grad_x, and grad_gamma and grad_beta in ``dtype``."""
    channels = x.shape[index]
    if x.size == 0:
        zeros = np.zeros(channels, dtype)
        return (np.empty_like(x) if out is None else out), zeros, zeros.copy()
    plan = _plan(x, index) if training and mask is None else None
    if plan is not None:
        statistics = np.empty((rows.STATISTICS_ROWS, channels))
        statistics[rows.MEAN], statistics[rows.INV_STD] = mean, inv_std
        statistics[rows.GAMMA] = 1.0 if gamma is None else gamma
        grad_x, sums = empty_like(x) if out is None else out, np.empty((2, channels), dtype)
        freedom = x.size // channels - correction
        arrays = grad_y, x, grad_x, statistics, sums
        if _plain.differentiate(*arrays, freedom, _plain.ANY, plan) != _plain.REFUSED:
            return grad_x, sums[0], sums[1]
        del grad_x, arrays
    table = np.empty((rows.GRADIENT_ROWS, channels))
    table[rows.GRAD_MEAN] = mean
    table[rows.GRAD_INV_STD] = inv_std
    table[rows.GRAD_GAMMA] = 1.0 if gamma is None else gamma
    source = _readable(x, index)
    grad = grad_y if _layout(index, source, grad_y) is not None else _copy_like(source, grad_y)
    target = out
    if target is None or not (_apart(target, source) and _apart(target, grad)):
        target = empty_like(source)
    layout = _layout(index, source, grad, target)
    if layout is None:
        target = empty_like(source)
        layout = _certain(index, source, grad, target)
    flat_grad, flat_target = flat(grad), flat(target)
    flat_mask = _in_order(mask, source, index)
    if training:
        count = float(layout.count if mask is None else mask.total)
        rest = layout, count, count - correction, table, flat_mask
        _dispatch.backward(flat_grad, flat(source), flat_target, *rest)
    else:
        _dispatch.gradient_sums(flat_grad, flat(source), layout, table, flat_mask)
        # With given statistics the step is affine: grad_x = grad_y * (gamma * inv_std).
        with np.errstate(all="ignore"):
            factors = table[rows.GRAD_GAMMA] * table[rows.GRAD_INV_STD]
        scale = statistics_rows(np.zeros(channels), np.ones(channels), factors, None)
        pair = replace(layout, strides=layout.strides[1:])
        _dispatch.normalize(flat_grad, flat_target, pair, scale, 0.0)
    return _result(target, out), *parameter_gradients(table, dtype)


def parameter_gradients(table: Table64, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """Return grad_gamma and grad_beta from the sums in ``table``."""
    with np.errstate(all="ignore"):
        products = table[rows.SUM_GRAD_DEVIATION] * table[rows.GRAD_INV_STD]
        return products.astype(dtype), table[rows.SUM_GRAD].astype(dtype)


def gradient_sums_step(
    grad_y: Array, x: Array, index: int, table: Table64, mask: Weights | None = None
) -> None:
    """Write the sums of a backward to ``table``, which holds the mean; ``x`` is not empty."""
    source = _readable(x, index)
    grad = grad_y if _layout(index, source, grad_y) is not None else _copy_like(source, grad_y)
    layout = _certain(index, source, grad)
    flat_mask = _in_order(mask, source, index)
    _dispatch.gradient_sums(flat(grad), flat(source), layout, table, flat_mask)


def input_gradient_step(
    grad_y: Array,
    x: Array,
    index: int,
    table: Table64,
    count: float,
    correction: float,
    out: Array,
    mask: Weights | None = None,
) -> Array:
    """Write grad_x to ``out`` from the sums in ``table``, which are of ``count`` values."""
    source, target, read, layout = _views(x, index, out, grad_y)
    first, second, third = layout.strides
    layout = replace(layout, strides=(first, third, second))
    flat_mask = _in_order(mask, source, index)
    rest = layout, count, count - correction, table, flat_mask
    _dispatch.input_gradient(flat(read[0]), flat(source), flat(target), *rest)
    return _result(target, out)
