"""Where a channel is a run of values: arrays of (outer, C, inner).

A channel is cut into parts (see `Cut`), by the shape only; parts are summed
one by one and merged in a fixed order, so no result depends on the number of threads, nor on which of the two
orders below is taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import fence, load_upto, outer_stride, prefetch, row_stride
from nbbn._compiler.vectors import LANES, has, has_spare_digits, larger, smaller, splat, total
from nbbn._kernels.elementwise import (
    Backward,
    Forward,
    backward,
    before_activation,
    coefficients_of,
    forward,
    gradient_coefficients_of,
)
from nbbn._kernels.loops import sum_runs, write_joined, write_rows
from nbbn._kernels.memory import ONE, ZERO, Rows, column_of, one_row, rows_of
from nbbn._kernels.statistics import (
    Samples,
    deviations,
    moments_from_sums,
    products,
    worst_condition,
)
from nbbn._kernels.table import MEAN, REFERENCE, SQUARES, SUM, SUM_GRAD, SUM_PRODUCT

PIECE = 1 << 14  # values: 64 KB of float32, so that a second look finds the part in cache
LONG = 1 << 9  # values of a run that is a part of its own: taken in memory's order


class Cut(NamedTuple):
    """How the channels of an array are cut into parts."""

    rows: int  # of a part
    segments: int  # of a row, of at most `PIECE` values


@helper
def cut_of(outer: int, inner: int) -> Cut:
    """Return how arrays of this shape are cut."""
    rows = ONE if inner >= LONG else smaller(outer, PIECE // inner)
    return Cut(rows, (inner + PIECE - 1) // PIECE)


def numbers_of_parts(outer: int, inner: int) -> Any:
    """Return how many values each part of `cut_of` has; for Python, and compiled for `nbbn.nopython`."""
    rows = 1 if inner >= LONG else min(outer, PIECE // inner)
    segments = (inner + PIECE - 1) // PIECE
    found = np.empty((outer + rows - 1) // rows * segments)
    for part in range(found.size):
        row, first = part // segments * rows, part % segments * PIECE
        found[part] = min(rows, outer - row) * min(PIECE, inner - first)
    return found


class Part(NamedTuple):
    """Rows of a channel, from a row and a value of it on."""

    row: int
    rows: int
    first: int
    length: int


@inlined
def part_of(part: int, cut: Cut, outer: int, inner: int) -> Part:
    """Return part ``part`` of each channel."""
    row, first = part // cut.segments * cut.rows, part % cut.segments * PIECE
    return Part(row, smaller(cut.rows, outer - row), first, smaller(PIECE, inner - first))


@inlined
def weights_of(weights: Any, part: Part, inner: int) -> Rows:
    """Return the weights of a part, which stand without gaps."""
    return Rows(weights, part.row * inner + part.first, inner)


@inlined
def near(x: Rows, length: int, weights: Any) -> float:
    """Return what the first look takes deviations from: see `nbbn._kernels.statistics`."""
    if has_spare_digits(x.values):
        return 0.0
    if has(weights):
        return 0.0  # the first values may have little weight, or none
    n = smaller(length, LANES)
    about = total(load_upto(x.values, x.at, n)) / n
    return about if np.isfinite(about) else 0.0


@helper
def sum_part(x: Any, weights: Any, channel: int, p: Part, n: float, parts: Any, part: int) -> None:
    """Write reference, sum of deviations and m2 of one part of a channel."""
    if n == 0.0:
        return
    read = Samples(column_of(x, p.row, channel, p.first), weights_of(weights, p, x.shape[2]))
    k = near(read.x, p.length, weights)
    s, q = sum_runs(deviations, read, p.rows, p.length, splat(k))
    sum_ = total(s)
    deviation, m2 = moments_from_sums(n, sum_, total(q))
    if n * deviation * deviation > (worst_condition(x) - 1.0) * m2:
        k = k + deviation
        s, q = sum_runs(deviations, read, p.rows, p.length, splat(k))
        sum_ = total(s)
        _, m2 = moments_from_sums(n, sum_, total(q))
    parts[REFERENCE, part, channel] = k
    parts[SUM, part, channel] = sum_
    parts[SQUARES, part, channel] = m2


@inlined
def ask_for_channel(array: Any, channel: int, p: Part) -> None:
    """Ask for the runs of a channel: short ones, which lie far apart, are no stream."""
    if channel < array.shape[1]:
        ahead = column_of(array, p.row, channel, p.first)
        for row in range(p.rows):
            for k in range(0, p.length, LANES):
                prefetch(array, ahead.at + row * ahead.stride + k)


@inlined
def is_stack(array: Any, like: Any) -> bool:
    """Whether the runs of an array of the shape of ``like`` follow each other without gaps; None has none."""
    _, rows, row = like.shape
    right = row_stride(array) == row and outer_stride(array) == rows * row
    return not has(array) or right


class Target(NamedTuple):
    """What is written, and with what."""

    y: Any
    residual: Any
    grad: Any
    form: Any  # coefficients, a column a channel
    kind: Any  # of the activation
    streaming: int


class Learned(NamedTuple):
    """What is found out about the data."""

    weights: Any
    numbers: Any  # of values, or weight, of each part
    parts: Any


@inlined
def same(form: Any, k: int, count: int) -> Any:
    """Return the coefficients of a run, wherever in it."""
    return form


@inlined
def write_runs(operation: Any, x: Any, to: Target, task: int) -> None:
    """Write ``operation`` of the values in some neighbouring runs, or in a segment of a long one."""
    outer, channels, inner = x.shape
    segments, depth = (inner + PIECE - 1) // PIECE, larger(ONE, PIECE // inner)
    row, first = task // segments * depth, task % segments * PIECE
    rows = smaller(depth, outer * channels - row)
    joined = inner >= LANES and rows > 1 and is_stack(x, x) and is_stack(to.y, x)
    if joined and is_stack(to.residual, x) and is_stack(to.grad, x):
        at = row * inner
        read = Forward(one_row(x, at), one_row(to.residual, at), one_row(to.grad, at), to.kind)
        runs = rows, row % channels, channels
        write_joined(
            operation, coefficients_of, one_row(to.y, at), read, runs, inner, to.form, to.streaming
        )
    else:
        for r in range(row, row + rows):
            o, c = r // channels, r % channels
            read = Forward(
                rows_of(x, o, c, first),
                rows_of(to.residual, o, c, first),
                rows_of(to.grad, o, c, first),
                to.kind,
            )
            y, length = rows_of(to.y, o, c, first), smaller(PIECE, inner - first)
            write_rows(
                operation, same, y, read, ONE, length, coefficients_of(to.form, c), to.streaming
            )
    if to.streaming:
        fence()  # once a task: it waits for all that was streamed, some 80 ns


@helper
def normalize_runs(x: Any, to: Target, task: int) -> None:
    """Write y for a task."""
    write_runs(forward, x, to, task)


@helper
def activation_gradient_runs(x: Any, to: Target, task: int) -> None:
    """Write for a task what reaches the activation's argument of the gradient."""
    write_runs(before_activation, x, to, task)


@helper
def normalize_channel(x: Any, to: Target, c: int) -> None:
    """Write y for one channel."""
    outer, _, inner = x.shape
    read = Forward(
        column_of(x, ZERO, c, ZERO),
        column_of(to.residual, ZERO, c, ZERO),
        one_row(None, ZERO),
        to.kind,
    )
    y, numbers = column_of(to.y, ZERO, c, ZERO), coefficients_of(to.form, c)
    write_rows(forward, same, y, read, outer, inner, numbers, to.streaming)
    if to.streaming:
        fence()


@helper
def look_at_group(x: Any, learned: Learned, first: int, stop: int, part: int) -> None:
    """Take the moments of one part of a group of neighbouring channels."""
    outer, _, inner = x.shape
    p = part_of(part, cut_of(outer, inner), outer, inner)
    for channel in range(first, stop):
        if p.length < LONG:
            ask_for_channel(x, channel + 1, p)
        sum_part(x, learned.weights, channel, p, learned.numbers[part], learned.parts, part)


class Sums(NamedTuple):
    """What the sums of a backward are made with."""

    mask: Any
    table: Any
    parts: Any


class GradientTarget(NamedTuple):
    """What a backward writes, and with what."""

    grad_x: Any
    mask: Any
    form: Any  # coefficients, a column a channel
    streaming: int


@helper
def add_up_group(grad_y: Any, x: Any, to: Sums, first: int, stop: int, part: int) -> None:
    """Take the two sums of one part of a group of neighbouring channels."""
    outer, _, inner = x.shape
    p = part_of(part, cut_of(outer, inner), outer, inner)
    parts, mask, table = to.parts, to.mask, to.table
    of_mask = weights_of(mask, p, x.shape[2])
    for c in range(first, stop):
        if p.length < LONG:
            ask_for_channel(grad_y, c + 1, p)
            ask_for_channel(x, c + 1, p)
        read = Backward(
            column_of(grad_y, p.row, c, p.first), column_of(x, p.row, c, p.first), of_mask
        )
        s, h = sum_runs(products, read, p.rows, p.length, splat(table[MEAN, c]))
        parts[SUM_GRAD, part, c], parts[SUM_PRODUCT, part, c] = total(s), total(h)


@helper
def differentiate_channel(grad_y: Any, x: Any, to: GradientTarget, c: int) -> None:
    """Write grad_x for one channel."""
    outer, _, inner = x.shape
    of_mask = Rows(to.mask, ZERO, inner)
    read = Backward(column_of(grad_y, ZERO, c, ZERO), column_of(x, ZERO, c, ZERO), of_mask)
    y, numbers = column_of(to.grad_x, ZERO, c, ZERO), gradient_coefficients_of(to.form, c)
    write_rows(backward, same, y, read, outer, inner, numbers, to.streaming)
    if to.streaming:
        fence()


@helper
def differentiate_runs(grad_y: Any, x: Any, to: GradientTarget, task: int) -> None:
    """Write grad_x for a task: some neighbouring runs, or a segment of a long one."""
    outer, channels, inner = x.shape
    segments, depth = (inner + PIECE - 1) // PIECE, larger(ONE, PIECE // inner)
    row, first = task // segments * depth, task % segments * PIECE
    rows = smaller(depth, outer * channels - row)
    joined = inner >= LANES and rows > 1 and not has(to.mask)
    joined = joined and is_stack(x, x) and is_stack(grad_y, x)
    if joined and is_stack(to.grad_x, x):
        at = row * inner
        read = Backward(one_row(grad_y, at), one_row(x, at), one_row(None, ZERO))
        runs = rows, row % channels, channels
        write_joined(
            backward,
            gradient_coefficients_of,
            one_row(to.grad_x, at),
            read,
            runs,
            inner,
            to.form,
            to.streaming,
        )
    else:
        for r in range(row, row + rows):
            o, c = r // channels, r % channels
            of_mask = one_row(to.mask, o * inner + first)
            read = Backward(rows_of(grad_y, o, c, first), rows_of(x, o, c, first), of_mask)
            y, length = rows_of(to.grad_x, o, c, first), smaller(PIECE, inner - first)
            numbers = gradient_coefficients_of(to.form, c)
            write_rows(backward, same, y, read, ONE, length, numbers, to.streaming)
    if to.streaming:
        fence()
