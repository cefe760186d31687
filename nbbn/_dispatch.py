"""Which kernels do an operation: one ordered table, best first, the general one last.

An operation gets flat arrays and their `Layout`; an entry of the table declines a layout with
a reason (`explain` tells them) or does the work. Every entry gives the same bits as the others for
the same layout, so a choice may depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _threads
from nbbn._jit import Kernel
from nbbn._layout import Layout, flat
from nbbn.kernels import channels_first, channels_last, per_channel

Array = NDArray[Any]
Vector64 = NDArray[np.float64]

# A parallel region pays from here on (values of one array).
PARALLEL_FROM = 1 << 15


@dataclass(frozen=True, slots=True)
class Statistics:
    """Per channel: the mean as ``reference + deviation``, and ``m2``."""

    reference: Vector64
    deviation: Vector64
    m2: Vector64


@dataclass(frozen=True, slots=True)
class Affine:
    """What a forward in training needs beside x, and ``freedom``, ``n - correction``."""

    gamma: Array
    beta: Array
    eps: float
    freedom: float


@dataclass(frozen=True, slots=True)
class Gradient:
    """What a backward needs beside its arrays; all float64, per channel."""

    mean: Vector64
    inv_std: Vector64
    gamma: Vector64
    freedom: float
    training: bool


def _run(kernel: Kernel, like: Array, params: Any, *arguments: Any) -> None:
    """Run the twin of ``kernel`` that suits the size of ``like`` and the state of the process."""
    dtype = like.dtype.type
    if like.size < PARALLEL_FROM or not _threads.run_parallel(
        lambda: kernel.variant(dtype, params, True)(*arguments)
    ):
        kernel.variant(dtype, params, False)(*arguments)


def _few_channels(layout: Layout) -> str | None:
    declined = _not_channels_first(layout)
    if declined is not None:
        return declined
    threads = _threads.get_num_threads()
    if threads > 1 and layout.channels < 2 * threads:
        return f"{layout.channels} channels do not occupy {threads} threads"
    return None


def _not_channels_first(layout: Layout) -> str | None:
    return None if layout.channels_first else "channels are not in runs of their own"


def _not_channels_last(layout: Layout) -> str | None:
    return "channels are in runs of their own" if layout.channels_first else None


def _never(layout: Layout) -> str | None:
    return None


def _moments_channels_first(x: Array, layout: Layout) -> Statistics:
    found = Statistics(*(np.empty(layout.channels) for _ in range(3)))
    _run(
        channels_first.collect_moments_channels_first,
        x,
        None,
        x,
        layout.outer,
        layout.channels,
        layout.inner,
        *layout.strides[0],
        found.reference,
        found.deviation,
        found.m2,
    )
    return found


def _moments_channels_last(x: Array, layout: Layout) -> Statistics:
    found = Statistics(*(np.empty(layout.channels) for _ in range(3)))
    _run(
        channels_last.collect_moments_channels_last,
        x,
        None,
        x,
        layout.outer,
        layout.channels,
        layout.inner,
        layout.repeats,
        layout.tail,
        *layout.strides[0],
        found.reference,
        found.deviation,
        found.m2,
    )
    return found


def _normalize_channels_first(x: Array, y: Array, layout: Layout, form: tuple[Array, ...]) -> None:
    _run(
        channels_first.normalize_channels_first,
        x,
        None,
        x,
        layout.outer,
        layout.channels,
        layout.inner,
        *layout.strides[0],
        *form,
        y,
        *layout.strides[1],
    )


def _normalize_channels_last(x: Array, y: Array, layout: Layout, form: tuple[Array, ...]) -> None:
    _run(
        channels_last.normalize_channels_last,
        x,
        None,
        x,
        layout.outer,
        layout.width,
        layout.tail,
        *layout.strides[0],
        *form,
        y,
        *layout.strides[1],
    )


def _train_by_channel(x: Array, y: Array, layout: Layout, affine: Affine) -> Statistics:
    found = Statistics(*(np.empty(layout.channels) for _ in range(3)))
    _run(
        channels_first.train_channels_first,
        x,
        affine.gamma.dtype.type,
        x,
        layout.outer,
        layout.channels,
        layout.inner,
        *layout.strides[0],
        affine.gamma,
        affine.beta,
        affine.eps,
        affine.freedom,
        found.reference,
        found.deviation,
        found.m2,
        *np.empty((3, layout.channels), x.dtype),
        y,
        *layout.strides[1],
    )
    return found


def _train_in_two_passes(x: Array, y: Array, layout: Layout, affine: Affine) -> Statistics:
    found = collect_moments(x, layout)
    form = np.empty((3, layout.width), x.dtype)
    per_channel.form_from_moments.variant(x.dtype.type, affine.gamma.dtype.type, False)(
        found.reference,
        found.deviation,
        found.m2,
        affine.freedom,
        affine.gamma,
        affine.beta,
        affine.eps,
        layout.repeats,
        1 if layout.channels_first else layout.inner,
        *form,
    )
    _choose("normalize", layout).run(x, y, layout, tuple(form))
    return found


def _backward_by_channel(
    grad_y: Array, x: Array, grad_x: Array, layout: Layout, gradient: Gradient
) -> tuple[Vector64, Vector64]:
    sums, products = np.empty(layout.channels), np.empty(layout.channels)
    _run(
        channels_first.backward_channels_first,
        x,
        None,
        grad_y,
        *layout.strides[1],
        x,
        layout.outer,
        layout.channels,
        layout.inner,
        *layout.strides[0],
        gradient.mean,
        gradient.inv_std,
        gradient.gamma,
        float(layout.count),
        gradient.freedom,
        sums,
        products,
        *np.empty((5, layout.channels), x.dtype),
        grad_x,
        *layout.strides[2],
    )
    return sums, products


def _backward_in_two_passes(
    grad_y: Array, x: Array, grad_x: Array, layout: Layout, gradient: Gradient
) -> tuple[Vector64, Vector64]:
    sums, products = _gradient_sums(grad_y, x, layout, gradient.mean)
    form = np.empty((5, layout.width), x.dtype)
    per_channel.form_of_gradient.variant(x.dtype.type, None, False)(
        gradient.mean,
        gradient.inv_std,
        gradient.gamma,
        float(layout.count),
        gradient.freedom,
        sums,
        products,
        layout.repeats,
        1 if layout.channels_first else layout.inner,
        *form,
    )
    if layout.channels_first:
        _run(
            channels_first.backward_input_channels_first,
            x,
            None,
            grad_y,
            *layout.strides[1],
            x,
            layout.outer,
            layout.channels,
            layout.inner,
            *layout.strides[0],
            *form,
            grad_x,
            *layout.strides[2],
        )
    else:
        _run(
            channels_last.backward_input_channels_last,
            x,
            None,
            grad_y,
            *layout.strides[1],
            x,
            layout.outer,
            layout.width,
            layout.tail,
            *layout.strides[0],
            *form,
            grad_x,
            *layout.strides[2],
        )
    return sums, products


def _gradient_sums(
    grad_y: Array, x: Array, layout: Layout, mean: Vector64
) -> tuple[Vector64, Vector64]:
    sums, products = np.empty(layout.channels), np.empty(layout.channels)
    if layout.channels_first:
        _run(
            channels_first.backward_reduce_channels_first,
            x,
            None,
            grad_y,
            *layout.strides[1],
            x,
            layout.outer,
            layout.channels,
            layout.inner,
            *layout.strides[0],
            mean,
            sums,
            products,
        )
    else:
        _run(
            channels_last.backward_reduce_channels_last,
            x,
            None,
            grad_y,
            *layout.strides[1],
            x,
            layout.outer,
            layout.channels,
            layout.inner,
            layout.repeats,
            layout.tail,
            *layout.strides[0],
            _per_column(mean, layout),
            sums,
            products,
        )
    return sums, products


def _per_column(values: Array, layout: Layout) -> Array:
    """Return a value a column from a value a channel."""
    if layout.width == values.size:
        return values
    return np.tile(np.repeat(values, layout.inner), layout.repeats)


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to do an operation: ``declines`` returns why not, or None."""

    name: str
    declines: Callable[[Layout], str | None]
    run: Callable[..., Any]


TABLE: dict[str, tuple[Entry, ...]] = {
    "moments": (
        Entry("channels first", _not_channels_first, _moments_channels_first),
        Entry("channels last", _not_channels_last, _moments_channels_last),
    ),
    "normalize": (
        Entry("channels first", _not_channels_first, _normalize_channels_first),
        Entry("channels last", _not_channels_last, _normalize_channels_last),
    ),
    "train": (
        Entry("channel by channel", _few_channels, _train_by_channel),
        Entry("two passes", _never, _train_in_two_passes),
    ),
    "backward": (
        Entry("channel by channel", _few_channels, _backward_by_channel),
        Entry("two passes", _never, _backward_in_two_passes),
    ),
}


def _choose(operation: str, layout: Layout) -> Entry:
    for entry in TABLE[operation]:
        if entry.declines(layout) is None:
            return entry
    raise AssertionError(f"no entry for {operation}")  # the last one never declines


def explain(operation: str, layout: Layout) -> list[str]:
    """Return a line for each entry up to the one that is taken: its name, and why not."""
    lines = []
    for entry in TABLE[operation]:
        reason = entry.declines(layout)
        lines.append(entry.name if reason is None else f"not {entry.name}: {reason}")
        if reason is None:
            break
    return lines


def collect_moments(x: Array, layout: Layout) -> Statistics:
    """Return the statistics of flat ``x``."""
    found: Statistics = _choose("moments", layout).run(x, layout)
    return found


def summarize(
    found: Statistics, freedom: float, eps: float
) -> tuple[Vector64, Vector64, Vector64, Vector64]:
    """Return mean, what its rounding leaves, ``m2 / freedom`` and ``inv_std``."""
    mean, low, var, inv_std = summary = tuple(np.empty((4, found.m2.size)))
    per_channel.summarize_batch.variant(np.float64, None, False)(
        found.reference, found.deviation, found.m2, freedom, eps, *summary
    )
    return mean, low, var, inv_std


def move_average(running: Array, batch: Vector64, divisor: float, momentum: float) -> None:
    """Update ``running`` in place; see the kernel."""
    direct = running.flags.c_contiguous and running.flags.aligned
    target = running if direct else running.copy()
    update = per_channel.move_average.variant(np.float64, running.dtype.type, False)
    update(target, batch, divisor, momentum)
    if not direct:
        running[...] = target


def form_from_statistics(
    layout: Layout, dtype: Any, statistics: tuple[Array, Array, Array, Array], eps: float
) -> tuple[Array, ...]:
    """Return ``center, scale, shift`` for `normalize` from mean, var, gamma and beta."""
    form = np.empty((3, layout.width), dtype)
    center, scale, shift = form[0], form[1], form[2]
    per_channel.form_from_statistics.variant(dtype.type, statistics[0].dtype.type, False)(
        *statistics,
        eps,
        layout.repeats,
        1 if layout.channels_first else layout.inner,
        center,
        scale,
        shift,
    )
    return center, scale, shift


def normalize(x: Array, y: Array, layout: Layout, form: tuple[Array, ...]) -> None:
    """Write y from x; ``layout`` describes (x, y)."""
    _choose("normalize", layout).run(flat(x), flat(y), layout, form)


def train(x: Array, y: Array, layout: Layout, affine: Affine) -> Statistics:
    """Write y, normalized with the statistics of x, and return these."""
    found: Statistics = _choose("train", layout).run(flat(x), flat(y), layout, affine)
    return found


def backward(
    grad_y: Array, x: Array, grad_x: Array, layout: Layout, gradient: Gradient
) -> tuple[Vector64, Vector64]:
    """Write grad_x; return ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` per channel.

    ``layout`` describes (x, grad_y, grad_x).
    """
    flat_grad, flat_x, flat_out = flat(grad_y), flat(x), flat(grad_x)
    if gradient.training:
        entry = _choose("backward", layout)
        found: tuple[Vector64, Vector64] = entry.run(flat_grad, flat_x, flat_out, layout, gradient)
        return found
    sums = _gradient_sums(flat_grad, flat_x, layout, gradient.mean)
    _normalize_gradient(flat_grad, flat_out, layout, gradient)
    return sums


def _normalize_gradient(grad_y: Array, grad_x: Array, layout: Layout, gradient: Gradient) -> None:
    """Write ``grad_x = grad_y * gamma * inv_std``: with given statistics, the step is affine."""
    scale = (gradient.gamma * gradient.inv_std).astype(grad_y.dtype)
    scale = _per_column(scale, layout)
    zeros = np.zeros_like(scale)
    without_x = replace(layout, strides=layout.strides[1:])
    _choose("normalize", layout).run(grad_y, grad_x, without_x, (zeros, scale, zeros))
