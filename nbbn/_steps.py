"""The steps that layer and functions share: arguments already checked -> views -> kernels.

A step reads and writes in place where the memory layouts allow it and goes through one copy where
they do not (see `nbbn._layout`), or where ``out`` overlaps an input without being the same view.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _dispatch
from nbbn._dispatch import Affine, Gradient, Vector64
from nbbn._layout import Layout, describe, flat

Array = NDArray[Any]

_MOST_LAYOUTS = 1024
_layouts: dict[Any, Layout | None] = {}


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Statistics of one batch, per channel, float64; the mean is ``mean + mean_low``.

    ``var`` is ``m2 / (count - correction)`` with the correction of the step that made them.
    """

    count: int
    mean: Vector64
    mean_low: Vector64
    m2: Vector64
    var: Vector64
    inv_std: Vector64


def _layout(index: int, *arrays: Array) -> Layout | None:
    """`describe`, remembered by shape and strides; None also for misaligned arrays."""
    first = arrays[0]
    key = (first.shape, index, first.itemsize, *[array.strides for array in arrays])
    for array in arrays:
        if not array.flags.aligned:
            return None
    try:
        return _layouts[key]
    except KeyError:
        pass
    if len(_layouts) >= _MOST_LAYOUTS:
        _layouts.clear()
    found = describe(first.shape, index, first.itemsize, *[array.strides for array in arrays])
    _layouts[key] = found
    return found


def _certain(index: int, *arrays: Array) -> Layout:
    """The layout of arrays that nbbn has laid out itself."""
    found = _layout(index, *arrays)
    if found is None:
        raise AssertionError(f"no layout for {[(a.shape, a.strides) for a in arrays]}")
    return found


def _same_view(a: Array, b: Array) -> bool:
    return a is b or (
        a.strides == b.strides
        and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    )


def _readable(x: Array, index: int) -> Array:
    """Return ``x``, or a copy that can be read by the kernels."""
    return x if _layout(index, x) is not None else x.copy(order="K")


def _apart(out: Array, a: Array) -> bool:
    """Whether writing to ``out`` leaves ``a`` readable: no overlap, or value over value."""
    return out is a or not np.may_share_memory(out, a) or _same_view(out, a)


def _views(x: Array, index: int, out: Array | None) -> tuple[Array, Array, Layout]:
    """Return what to read for ``x``, what to write to (``out`` if possible), and their layout."""
    if out is not None:
        layout = _layout(index, x, out)
        if layout is not None and _apart(out, x):
            return x, out, layout
    source = _readable(x, index)
    if source is not x and out is not None:
        layout = _layout(index, source, out)
        if layout is not None:
            return source, out, layout
    target = np.empty_like(source)
    return source, target, _certain(index, source, target)


def _result(target: Array, out: Array | None) -> Array:
    if out is None or target is out:
        return target
    out[...] = target
    return out


@functools.lru_cache(maxsize=256)
def _constant(value: float, channels: int, dtype: Any) -> Array:
    vector = np.full(channels, value, dtype)
    vector.flags.writeable = False
    return vector


def _common(*vectors: Array | None) -> tuple[Array, ...]:
    """Return the vectors in one dtype, the absent ones as they were given."""
    present = {vector.dtype.type for vector in vectors if vector is not None}
    if len(present) == 1:
        return vectors  # type: ignore[return-value]
    return tuple(v if v is None else v.astype(np.float64) for v in vectors)  # type: ignore[misc]


def _gamma_beta(
    gamma: Array | None, beta: Array | None, channels: int, dtype: Any
) -> tuple[Array, Array]:
    return (
        _constant(1.0, channels, dtype) if gamma is None else gamma,
        _constant(0.0, channels, dtype) if beta is None else beta,
    )


def moments_step(x: Array, index: int) -> BatchStatistics:
    """Return the statistics of ``x``, which is not empty."""
    source = _readable(x, index)
    layout = _certain(index, source)
    found = _dispatch.collect_moments(flat(source), layout)
    return _batch_statistics(layout, found, 0.0, 0.0)


def _batch_statistics(
    layout: Layout, found: _dispatch.Statistics, correction: float, eps: float
) -> BatchStatistics:
    mean, low, var, inv_std = _dispatch.summarize(found, layout.count - correction, eps)
    return BatchStatistics(layout.count, mean, low, found.m2, var, inv_std)


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


def inference_step(
    x: Array,
    index: int,
    mean: Array,
    var: Array,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    out: Array | None,
) -> Array:
    """Normalize with given statistics; write to ``out`` or a new array and return it."""
    if x.size == 0:
        return np.empty_like(x) if out is None else out
    mean, var, gamma, beta = _common(mean, var, gamma, beta)
    gamma, beta = _gamma_beta(gamma, beta, mean.size, mean.dtype.type)
    source, target, layout = _views(x, index, out)
    form = _dispatch.form_from_statistics(layout, x.dtype, (mean, var, gamma, beta), eps)
    _dispatch.normalize(source, target, layout, form)
    return _result(target, out)


def training_step(
    x: Array,
    index: int,
    gamma: Array | None,
    beta: Array | None,
    eps: float,
    correction: float,
    out: Array | None,
) -> tuple[Array, BatchStatistics]:
    """Normalize with the statistics of ``x``, which is not empty; return y and the statistics."""
    channels = x.shape[index]
    gamma, beta = _common(gamma, beta) if not (gamma is None and beta is None) else (gamma, beta)
    present = gamma if gamma is not None else beta
    gamma, beta = _gamma_beta(
        gamma, beta, channels, np.float32 if present is None else present.dtype.type
    )
    source, target, layout = _views(x, index, out)
    affine = Affine(gamma, beta, eps, layout.count - correction)
    found = _dispatch.train(source, target, layout, affine)
    statistics = _batch_statistics(layout, found, correction, eps)
    return _result(target, out), statistics


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
) -> tuple[Array, Vector64, Vector64]:
    """Return grad_x, and grad_gamma and grad_beta in float64."""
    channels = x.shape[index]
    if x.size == 0:
        zeros = np.zeros(channels)
        return (np.empty_like(x) if out is None else out), zeros, zeros.copy()
    mean, inv_std = mean.astype(np.float64), inv_std.astype(np.float64)
    scale = _constant(1.0, channels, np.float64) if gamma is None else gamma.astype(np.float64)
    source = _readable(x, index)
    if _layout(index, source, grad_y) is None:
        grad = np.empty_like(source)
        grad[...] = grad_y
    else:
        grad = grad_y
    target = out
    if target is None or not (_apart(target, source) and _apart(target, grad)):
        target = np.empty_like(source)
    layout = _layout(index, source, grad, target)
    if layout is None:
        target = np.empty_like(source)
        layout = _certain(index, source, grad, target)
    gradient = Gradient(mean, inv_std, scale, layout.count - correction, training)
    sums, products = _dispatch.backward(grad, source, target, layout, gradient)
    return _result(target, out), products * inv_std, sums
