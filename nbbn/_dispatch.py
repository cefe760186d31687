"""Which kernels do an operation: one ordered table, best first, the general one last.

An operation gets flat arrays and their `Layout`; an entry of the table declines a layout with
a reason (`explain` tells them) or does the work. Every entry gives the same bits as the others for
the same layout, so a choice may depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _machine, _threads
from nbbn._epilogue import Epilogue
from nbbn._jit import PLAIN, Fused, Kernel
from nbbn._layout import Layout, unfolded
from nbbn.kernels import (
    channels_first,
    channels_first_backward,
    channels_last,
    channels_last_backward,
    running,
)
from nbbn.kernels import table as rows

Array = NDArray[Any]
Table64 = NDArray[np.float64]

# A parallel region pays from here on (values of one array). Measured on 2 threads, us, serial and
# parallel: inference of (512, 64) 12 and 17, (2048, 64) 47 and 44; training of (8, 512, 8, 8) 162 and
# 106. Below, a region may also wait for a core that another process holds: milliseconds.
PARALLEL_FROM = 1 << 17

_SHORTEST_STREAM = 1 << 10  # bytes of a run
_channels_of_group: Callable[[int, int, int], int] = getattr(
    channels_first.channels_of_group, "py_func", channels_first.channels_of_group
)  # as Python: the kernels' own decision


@dataclass(frozen=True, slots=True)
class Entry:
    """One way to do an operation: ``declines`` returns why not, or None."""

    name: str
    declines: Callable[[Layout], str | None]
    run: Callable[..., None]


def is_large(size: int) -> bool:
    """Whether a parallel region pays for ``size`` values."""
    return size >= PARALLEL_FROM


def _run(kernel: Kernel, x: Array, params: Any, *arguments: Any, step: Fused = PLAIN) -> None:
    """Run the twin of ``kernel`` that suits the size of ``x`` and the state of the process."""
    dtype = x.dtype.type
    if not is_large(x.size) or not _threads.run_parallel(
        lambda: kernel.variant(dtype, params, True, step)(*arguments)
    ):
        kernel.variant(dtype, params, False, step)(*arguments)


def is_streamed(operation: str, layout: Layout, target: Array, *inputs: Array) -> int:
    """Whether the kernels of ``operation`` are to write ``target`` past the cache: 1 or 0."""
    return int(why_through_cache(operation, layout, target, *inputs) is None)


def why_through_cache(operation: str, layout: Layout, target: Array, *inputs: Array) -> str | None:
    """Return why ``target`` is not best written past the cache, or None.

    An ordinary store first reads the line that it writes. Measured on one thread beside 32 MB of
    L3, past the cache is as fast for 13 MB in all, 1.3 times as fast for 26 MB and 1.6 times for 51.
    But a result that stays in the cache is the next step's gain: so only where that is unlikely,
    from three quarters of the cache on. Not in place, where the line is there already, and not for
    short runs: each begins and ends with a partial line. Measured on one thread, training and backward
    of 70 MB that lie in runs of so many bytes, the time of plain stores over that of stores past the
    cache (fastest of 9 rounds in turns): 100 bytes 0.9 and 0.7, 196 bytes 0.7 and 0.9, 256 bytes 0.6
    and 0.5, 384 bytes 0.8 and 1.1, 576 bytes 0.9 and 1.0, 784 bytes 1.2 and 1.2, 1024 bytes 1.0 and 1.4.
    Another processor was slower past the cache for runs of 784 bytes, too.
    """
    if target.nbytes * (1 + len(inputs)) <= _machine.last_level_cache() * 3 // 4:
        return "all of it fits three quarters of the last-level cache"
    if any(array.ctypes.data == target.ctypes.data for array in inputs):
        return "in place, the lines are in the cache already"
    if written_in_a_row(operation, layout) * target.itemsize < _SHORTEST_STREAM:
        return "short runs begin and end with partial lines"
    return None


def written_in_a_row(operation: str, layout: Layout) -> int:
    """Return how many neighbouring values the kernel of ``operation`` writes before it goes elsewhere.

    That is what the kernels themselves do: "normalize" joins all rows that follow each other without
    gaps, "train" and "backward" those of a group of channels, and "input gradient", which a masked
    backward is too, none.
    """
    inner, channels = layout.inner, layout.channels
    if not layout.channels_first:
        return channels * inner
    row = channels * inner
    if operation == "normalize":
        joined = all(pair == (row, inner) for pair in layout.strides)
        return row * layout.outer if joined else inner
    neighbours = all(pair[1] == inner for pair in layout.strides)
    if operation == "input gradient" or not neighbours:
        return inner
    return inner * _channels_of_group(layout.outer, channels, inner)


def _not_in_runs(layout: Layout) -> str | None:
    return None if layout.channels_first else "channels are not in runs of their own"


def _in_runs(layout: Layout) -> str | None:
    return "channels are in runs of their own" if layout.channels_first else None


def in_two_passes(layout: Layout) -> bool:
    """Whether training reads x twice though its channels come in runs: few, they occupy no threads."""
    return layout.channels_first and _few_channels(layout) is not None


def _few_channels(layout: Layout) -> str | None:
    if not layout.channels_first:
        return _not_in_runs(layout)
    threads = _threads.get_num_threads()
    if threads > 1 and layout.channels < 2 * threads:
        return f"{layout.channels} channels do not occupy {threads} threads"
    return None


def _any(layout: Layout) -> str | None:
    return None


def _moments(kernel: Kernel) -> Callable[..., None]:
    def run(
        x: Array,
        layout: Layout,
        freedom: float,
        eps: float,
        table: Table64,
        weights: Array | None = None,
    ) -> None:
        view, strides = layout.view, layout.strides
        step = _weighted(PLAIN, weights)
        _run(kernel, x, None, x, *view, *strides[0], freedom, eps, table, weights, step=step)

    return run


def _weighted(step: Fused, weights: Array | None) -> Fused:
    return step if weights is None else step._replace(weights=weights.dtype.type)


def _fused(
    layout: Layout, after: Epilogue | None, grad: Array | None = None
) -> tuple[Fused, tuple[Any, ...], tuple[Any, ...], tuple[Array, ...]]:
    """Return the variant for what follows the affine map, its arguments, and the arrays it reads.

    ``layout`` describes (x, y), then the residual and the gradient, of those that there are.
    """
    nothing = (0,) * len(layout.strides[0])
    if after is None:
        return PLAIN, (None, *nothing, (), 0.0), (None, *nothing), ()
    read = [array for array in (after.residual, grad) if array is not None]
    of_read = iter(layout.strides[2:])
    of_residual = nothing if after.residual is None else next(of_read)
    of_grad = nothing if grad is None else next(of_read)
    step = Fused(len(after.tag), after.residual is not None, grad is not None)
    return (
        step,
        (after.residual, *of_residual, after.tag, after.slope),
        (grad, *of_grad),
        tuple(read),
    )


def _normalize(kernel: Kernel) -> Callable[..., None]:
    def run(
        x: Array,
        y: Array,
        layout: Layout,
        table: Array,
        eps: float,
        after: Epilogue | None = None,
        grad: Array | None = None,
    ) -> None:
        view, strides = layout.view, layout.strides
        step, rest, of_grad, read = _fused(layout, after, grad)
        streaming = is_streamed("normalize", layout, y, x, *read)
        to = table, eps, y, *strides[1], streaming
        params = table.dtype.type
        _run(kernel, x, params, x, *view, *strides[0], *to, *rest, *of_grad, step=step)

    return run


def _train_by_channel(
    x: Array,
    y: Array,
    layout: Layout,
    freedom: float,
    eps: float,
    table: Table64,
    after: Epilogue | None = None,
    weights: Array | None = None,
) -> None:
    kernel, strides = channels_first.train_channels_first, layout.strides
    step, rest, _, read = _fused(layout, after)
    streaming = is_streamed("train", layout, y, x, *read)
    to = freedom, eps, table, y, *strides[1], streaming
    step = _weighted(step, weights)
    _run(kernel, x, None, x, *layout.view, *strides[0], *to, *rest, weights, step=step)


def _train_in_two_passes(
    x: Array,
    y: Array,
    layout: Layout,
    freedom: float,
    eps: float,
    table: Table64,
    after: Epilogue | None = None,
    weights: Array | None = None,
) -> None:
    collect_moments(x, layout, freedom, eps, table, weights)
    choose("normalize", layout).run(x, y, layout, table, eps, after)


def _write_gradient(
    kernel: Kernel,
    grad_y: Array,
    x: Array,
    grad_x: Array,
    layout: Layout,
    count: float,
    freedom: float,
    table: Table64,
    mask: Array | None,
    operation: str,
) -> None:
    of_x, of_grad, of_out = layout.strides
    _run(
        kernel,
        x,
        None,
        grad_y,
        *of_grad,
        x,
        *layout.view,
        *of_x,
        count,
        freedom,
        table,
        grad_x,
        *of_out,
        is_streamed(operation, layout, grad_x, x, grad_y),
        mask,
        step=_weighted(PLAIN, mask),
    )


def _backward_by_channel(
    grad_y: Array,
    x: Array,
    grad_x: Array,
    layout: Layout,
    count: float,
    freedom: float,
    table: Table64,
    mask: Array | None,
) -> None:
    kernel = channels_first_backward.backward_channels_first
    rest = layout, count, freedom, table, mask
    operation = "backward" if mask is None else "input gradient"
    _write_gradient(kernel, grad_y, x, grad_x, *rest, operation)


def _backward_in_two_passes(
    grad_y: Array,
    x: Array,
    grad_x: Array,
    layout: Layout,
    count: float,
    freedom: float,
    table: Table64,
    mask: Array | None,
) -> None:
    gradient_sums(grad_y, x, layout, table, mask)
    input_gradient(grad_y, x, grad_x, layout, count, freedom, table, mask)


def _gradient_sums(kernel: Kernel) -> Callable[..., None]:
    def run(
        grad_y: Array, x: Array, layout: Layout, table: Table64, mask: Array | None = None
    ) -> None:
        view, (of_x, of_grad, *_) = layout.view, layout.strides
        step = _weighted(PLAIN, mask)
        _run(kernel, x, None, grad_y, *of_grad, x, *view, *of_x, table, mask, step=step)

    return run


_INPUT_GRADIENT = {
    True: channels_first_backward.backward_input_channels_first,
    False: channels_last_backward.backward_input_channels_last,
}

_FIRST, _LAST = "channels first", "channels last"

TABLE: dict[str, tuple[Entry, ...]] = {
    "moments": (
        Entry(_FIRST, _not_in_runs, _moments(channels_first.collect_moments_channels_first)),
        Entry(_LAST, _in_runs, _moments(channels_last.collect_moments_channels_last)),
    ),
    "normalize": (
        Entry(_FIRST, _not_in_runs, _normalize(channels_first.normalize_channels_first)),
        Entry(_LAST, _in_runs, _normalize(channels_last.normalize_channels_last)),
    ),
    "train": (
        Entry("channel by channel", _few_channels, _train_by_channel),
        Entry("two passes", _any, _train_in_two_passes),
    ),
    "gradient sums": (
        Entry(
            _FIRST,
            _not_in_runs,
            _gradient_sums(channels_first_backward.backward_reduce_channels_first),
        ),
        Entry(
            _LAST, _in_runs, _gradient_sums(channels_last_backward.backward_reduce_channels_last)
        ),
    ),
    "backward": (
        Entry("channel by channel", _few_channels, _backward_by_channel),
        Entry("two passes", _any, _backward_in_two_passes),
    ),
}


def choose(operation: str, layout: Layout) -> Entry:
    """Return the first entry that does not decline ``layout``."""
    for entry in TABLE[operation]:
        if entry.declines(layout) is None:
            return entry
    raise AssertionError(f"no entry for {operation}")  # each operation has one for any layout


def explain(operation: str, layout: Layout) -> list[str]:
    """Return a line for each entry up to the one that is taken: its name, and why not."""
    lines = []
    for entry in TABLE[operation]:
        reason = entry.declines(layout)
        lines.append(entry.name if reason is None else f"not {entry.name}: {reason}")
        if reason is None:
            break
    return lines


def collect_moments(
    x: Array,
    layout: Layout,
    freedom: float,
    eps: float,
    table: Table64,
    weights: Array | None = None,
) -> None:
    """Write the statistics of flat ``x`` to ``table`` (rows: `nbbn.kernels.table`).

    ``weights`` (float64, or uint8 of 0 and 1) stand as the values of one channel do in ``layout``, without
    gaps; here and below.
    """
    if weights is not None:
        layout = unfolded(layout)
    choose("moments", layout).run(x, layout, freedom, eps, table, weights)


def normalize(
    x: Array,
    y: Array,
    layout: Layout,
    table: Array,
    eps: float,
    after: Epilogue | None = None,
    grad: Array | None = None,
) -> None:
    """Write y from x with the statistics in ``table``, and what comes ``after``.

    With ``grad``, the gradient with respect to y, y becomes the one before the activation.
    ``layout`` describes (x, y), then the residual and the gradient where they are given.
    """
    choose("normalize", layout).run(x, y, layout, table, eps, after, grad)


def train(
    x: Array,
    y: Array,
    layout: Layout,
    freedom: float,
    eps: float,
    table: Table64,
    after: Epilogue | None = None,
    weights: Array | None = None,
) -> None:
    """Write y, normalized with the statistics of x, and these to ``table``.

    ``table`` holds gamma and beta; ``layout`` is as for `normalize`.
    """
    choose("train", layout).run(x, y, layout, freedom, eps, table, after, weights)


def backward(
    grad_y: Array,
    x: Array,
    grad_x: Array,
    layout: Layout,
    count: float,
    freedom: float,
    table: Table64,
    mask: Array | None = None,
) -> None:
    """Write grad_x, differentiated through the batch's statistics, and the sums to ``table``.

    ``layout`` describes (x, grad_y, grad_x); ``table`` holds mean, inv_std and gamma; ``count`` is the
    number of values a channel whose statistics these are.
    """
    if mask is not None:
        layout = unfolded(layout)
    rest = layout, count, freedom, table, mask
    choose("backward", layout).run(grad_y, x, grad_x, *rest)


def gradient_sums(
    grad_y: Array, x: Array, layout: Layout, table: Table64, mask: Array | None = None
) -> None:
    """Write only the sums of `backward` to ``table``; ``layout`` may describe (x, grad_y)."""
    if mask is not None:
        layout = unfolded(layout)
    choose("gradient sums", layout).run(grad_y, x, layout, table, mask)


def input_gradient(
    grad_y: Array,
    x: Array,
    grad_x: Array,
    layout: Layout,
    count: float,
    freedom: float,
    table: Table64,
    mask: Array | None = None,
) -> None:
    """Write only grad_x of `backward`, from the sums in ``table``."""
    if mask is not None:
        layout = unfolded(layout)
    kernel = _INPUT_GRADIENT[layout.channels_first]
    rest = layout, count, freedom, table, mask
    _write_gradient(kernel, grad_y, x, grad_x, *rest, "input gradient")


def move_average(average: Array, batch: Array, divisor: float, momentum: float) -> None:
    """Update ``average`` in place; see the kernel."""
    direct = average.flags.c_contiguous and average.flags.aligned
    target = average if direct else average.copy()
    update = running.move_average.variant(np.float64, average.dtype.type, False)
    update(target, batch, divisor, momentum)
    if not direct:
        average[...] = target


def move_averages(
    table: Array, batch: Table64, divisor: float, momentum: float, counter: Array
) -> None:
    """Update the running mean and variance in ``table``, and the counter; see the kernel."""
    update = running.move_averages.variant(np.float64, table.dtype.type, False)
    update(table, batch, divisor, momentum, counter)


def statistics_table(channels: int) -> Table64:
    """Return an empty table for `collect_moments` and `train`."""
    return np.empty((rows.STATISTICS_ROWS, channels))
