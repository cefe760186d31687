"""Where a channel is a run of values: arrays of (outer, C, inner).

A channel is cut into parts (see `Cut`), by the shape only; parts are summed
one by one and merged in a fixed order, so no result depends on the number of threads, nor on which of the two
orders below is taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import (
    fence,
    lanes,
    load,
    load_upto,
    note_infinite,
    outer_stride,
    prefetch,
    put,
    room_for_largest,
    row_stride,
)
from nbbn._compiler.vectors import LANES, has, has_spare_digits, has_values, larger, smaller, splat, total
from nbbn._kernels.elementwise import (
    About,
    Backward,
    Forward,
    Fused,
    GradientTarget,
    Target,
    add_products,
    backward,
    coefficients_of,
    forward,
    gradient_coefficients_of,
    no_sums,
)
from nbbn._kernels.loops import sum_run, write_joined, write_rows
from nbbn._kernels.memory import ONE, ZERO, Rows, column_of, one_row, rows_of
from nbbn._kernels.statistics import PIECE, Samples, add_deviations, moments_from_sums, worst_condition
from nbbn._kernels.table import MEAN, REFERENCE, SQUARES, SUM, SUM_GRAD, SUM_PRODUCT, SUM_SLOPE

GROUP = 32  # channels that are summed side by side, at most: their lanes are 12 KB
MOST_SUMS = 3  # of a channel
ROOM = MOST_SUMS * GROUP
FAR = 1 << 23  # bytes, whose pages of 4 KB a core can list at a time
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
def near(x: Rows, length: int, weights: Any) -> float:
    """Return what the first look takes deviations from: see `nbbn._kernels.statistics`."""
    if has_spare_digits(x.values):
        return 0.0
    if has(weights):
        return 0.0  # the first values may have little weight, or none
    n = smaller(length, LANES)
    about = total(load_upto(x.values, x.at, n)) / n
    return about if np.isfinite(about) else 0.0


@inlined
def is_stack(array: Any, like: Any) -> bool:
    """Whether the runs of an array of the shape of ``like`` follow each other without gaps; None has none."""
    _, rows, row = like.shape
    right = row_stride(array) == row and outer_stride(array) == rows * row
    return not has(array) or right


class Learned(NamedTuple):
    """What is found out about the data."""

    weights: Any
    numbers: Any  # of values, or weight, of each part
    parts: Any


@inlined
def same(form: Any, k: int, count: int) -> Any:
    """Return the coefficients of a run, wherever in it."""
    return form


@helper
def normalize_runs(x: Any, to: Target, task: int) -> None:
    """Write y of some neighbouring runs, or of a segment of a long one."""
    (outer, channels, inner), largest = x.shape, room_for_largest(to.noted, x)
    segments, depth = (inner + PIECE - 1) // PIECE, larger(ONE, PIECE // inner)
    row, first = task // segments * depth, task % segments * PIECE
    rows = smaller(depth, outer * channels - row)
    joined = inner >= LANES and rows > 1 and is_stack(x, x) and is_stack(to.y, x)
    if joined and is_stack(to.residual, x):
        at = row * inner
        read = Forward(one_row(x, at), one_row(to.residual, at), to.kind, largest)
        runs = rows, row % channels, channels
        write_joined(forward, coefficients_of, one_row(to.y, at), read, runs, inner, to.form, to.streaming)
    else:
        for r in range(row, row + rows):
            o, c = r // channels, r % channels
            added = rows_of(to.residual, o, c, first)
            read = Forward(rows_of(x, o, c, first), added, to.kind, largest)
            y, length = rows_of(to.y, o, c, first), smaller(PIECE, inner - first)
            write_rows(forward, same, y, read, ONE, (ZERO, length), coefficients_of(to.form, c), to.streaming)
    if to.streaming:
        fence()  # once a task: it waits for all that was streamed, some 80 ns
    note_infinite(to.noted, largest)


@helper
def normalize_channel(x: Any, to: Target, c: int) -> None:
    outer, _, inner = x.shape
    added = column_of(to.residual, ZERO, c, ZERO)
    read = Forward(column_of(x, ZERO, c, ZERO), added, to.kind, None)
    y, numbers = column_of(to.y, ZERO, c, ZERO), coefficients_of(to.form, c)
    write_rows(forward, same, y, read, outer, (ZERO, inner), numbers, to.streaming)
    if to.streaming:
        fence()


@inlined
def room_of(channel: int) -> int:
    """Return where the sums of a channel of a group stand in its `lanes`."""
    return channel % GROUP * MOST_SUMS * LANES


@inlined
def sums_in(room: Any, channel: int, like: Any) -> Any:
    """Return the sums of a channel, as many as in ``like``."""
    at = room_of(channel)
    if len(like) == 3:
        return load(room, at), load(room, at + LANES), load(room, at + 2 * LANES)
    return load(room, at), load(room, at + LANES)


@inlined
def put_sums(room: Any, channel: int, sums: Any) -> None:
    at = room_of(channel)
    put(room, at, sums[0], 0)
    put(room, at + LANES, sums[1], 0)
    if len(sums) == 3:
        put(room, at + 2 * LANES, sums[2], 0)


@inlined
def is_far(x: Any) -> bool:
    """Whether neighbouring runs are best asked for ahead of time.

    0.6 of the time for 32 samples of 2,048 channels of 49 values; 1.1 where the processor finds the pages by itself.
    """
    return x.size * x.itemsize > FAR and x.shape[2] < LONG


@inlined
def ask_for(array: Any, p: Part, row: int, c: int) -> None:
    there = rows_of(array, row, c, p.first)
    for k in range(0, p.length, LANES):
        prefetch(array, there.at + k)


@inlined
def sum_group(add: Any, of_run: Any, given: Any, p: Part, channels: Any, none: Any, room: Any) -> None:
    """Write the sums of a part of neighbouring channels, in sixteen lanes each, to ``room``; ``none`` are zeros.

    In memory's order: the runs of one channel lie far apart, often at multiples of 4,096 bytes, which share a
    few places of the cache. ``of_run(given, p, row, channel)`` returns what ``add`` reads, and what deviations are
    taken from.
    """
    first, stop = channels
    for c in range(first, stop):
        put_sums(room, c, none)
    for row in range(p.row, p.row + p.rows):
        for c in range(first, stop):
            read, about = of_run(given, p, row, c)
            sums = sum_run(add, read, ZERO, p.length, about, sums_in(room, c, none))
            put_sums(room, c, sums)


class Look(NamedTuple):
    """What a look at a part reads: ``weights`` stand without gaps, one a value of a matrix."""

    x: Any
    weights: Any
    parts: Any
    part: int


@inlined
def samples_of_run(given: Look, p: Part, row: int, c: int) -> tuple[Samples, Any]:
    """Return a run of the values, and what the look takes deviations from."""
    weights = one_row(given.weights, row * given.x.shape[2] + p.first)
    if is_far(given.x) and row + 1 < p.row + p.rows:
        ask_for(given.x, p, row + 1, c)
    samples = Samples(rows_of(given.x, row, c, p.first), weights)
    return samples, splat(given.parts[REFERENCE, given.part, c])


@inlined
def values_of_run(given: Look, p: Part, row: int, c: int) -> tuple[Samples, Any]:
    """`samples_of_run` of a first look: about 0, known when it is compiled, it subtracts nothing."""
    samples, about = samples_of_run(given, p, row, c)
    return samples, splat(0.0) if has_spare_digits(given.x) else about


@helper
def look_at_group(x: Any, learned: Learned, first: int, stop: int, part: int) -> None:
    """Write reference, sum of deviations and m2 of one part of a group of neighbouring channels."""
    outer, _, inner = x.shape
    p, n = part_of(part, cut_of(outer, inner), outer, inner), learned.numbers[part]
    parts, room, worst = learned.parts, lanes(ROOM), worst_condition(x)
    given, none = Look(x, learned.weights, parts, part), (splat(0.0), splat(0.0))
    for c in range(first, stop):
        about = near(rows_of(x, p.row, c, p.first), p.length, learned.weights)
        parts[REFERENCE, part, c] = about
    sum_group(add_deviations, values_of_run, given, p, (first, stop), none, room)
    for c in range(first, stop):
        s, q = sums_in(room, c, none)
        sum_ = total(s)
        deviation, m2 = moments_from_sums(n, sum_, total(q))
        if n * deviation * deviation > (worst - 1.0) * m2:
            parts[REFERENCE, part, c] += deviation
            sum_group(add_deviations, samples_of_run, given, p, (c, c + 1), none, room)
            s, q = sums_in(room, c, none)
            sum_ = total(s)
            _, m2 = moments_from_sums(n, sum_, total(q))
        parts[SUM, part, c] = sum_
        parts[SQUARES, part, c] = m2


class Sums(NamedTuple):
    """What the sums of a backward are made with."""

    mask: Any
    table: Any
    parts: Any


class Products(NamedTuple):
    """What the sums of a backward read."""

    grad_y: Any
    x: Any
    to: Sums
    fused: Fused


@inlined
def products_of_run(given: Products, p: Part, row: int, c: int) -> tuple[Backward, About]:
    """Return a run of what is read, and what its sums are taken with."""
    mask, fused, first = given.to.mask, given.fused, p.first
    if is_far(given.x) and row + 1 < p.row + p.rows:
        ask_for(given.grad_y, p, row + 1, c)
        ask_for(given.x, p, row + 1, c)
    read = Backward(
        rows_of(given.grad_y, row, c, first),
        rows_of(given.x, row, c, first),
        one_row(mask, row * given.x.shape[2] + first),
        rows_of(fused.residual, row, c, first),
        rows_of(fused.kept, row, c, first),
        fused.kind,
    )
    return read, About(splat(given.to.table[MEAN, c]), coefficients_of(fused.form, c))


@inlined
def keep_totals(sums: Any, parts: Any, part: int, c: int) -> None:
    parts[SUM_GRAD, part, c], parts[SUM_PRODUCT, part, c] = total(sums[0]), total(sums[1])
    if len(sums) == 3:
        parts[SUM_SLOPE, part, c] = total(sums[2])


@helper
def add_up_group(grad_y: Any, x: Any, to: Sums, fused: Fused, first: int, stop: int, part: int) -> None:
    """Take the sums of one part of a group of neighbouring channels."""
    outer, _, inner = x.shape
    p, room = part_of(part, cut_of(outer, inner), outer, inner), lanes(ROOM)
    none, group, of_run = no_sums(fused.kind), (first, stop), products_of_run
    if has_values(fused.kept):
        given = Products(grad_y, x, to, fused)
        sum_group(add_products, of_run, given, p, group, none, room)
    else:
        alone = Products(grad_y, x, to, Fused(fused.kind, fused.form, None, None))
        sum_group(add_products, of_run, alone, p, group, none, room)
    for c in range(first, stop):
        keep_totals(sums_in(room, c, none), to.parts, part, c)


@helper
def differentiate_channel(grad_y: Any, x: Any, to: GradientTarget, c: int) -> None:
    outer, _, inner = x.shape
    of_mask, none = Rows(to.mask, ZERO, inner), one_row(None, ZERO)
    grads, values = column_of(grad_y, ZERO, c, ZERO), column_of(x, ZERO, c, ZERO)
    read = Backward(grads, values, of_mask, none, none, to.kind)
    y, numbers = column_of(to.grad_x, ZERO, c, ZERO), gradient_coefficients_of(to.forms, c)
    write_rows(backward, same, y, read, outer, (ZERO, inner), numbers, to.streaming)
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
    none = one_row(None, ZERO)
    if joined and is_stack(to.grad_x, x):
        at = row * inner
        read = Backward(one_row(grad_y, at), one_row(x, at), none, none, none, to.kind)
        runs, y = (rows, row % channels, channels), one_row(to.grad_x, at)
        pick = gradient_coefficients_of
        write_joined(backward, pick, y, read, runs, inner, to.forms, to.streaming)
    else:
        for r in range(row, row + rows):
            o, c = r // channels, r % channels
            of_mask = one_row(to.mask, o * inner + first)
            grads, values = rows_of(grad_y, o, c, first), rows_of(x, o, c, first)
            read = Backward(grads, values, of_mask, none, none, to.kind)
            y, length = rows_of(to.grad_x, o, c, first), smaller(PIECE, inner - first)
            numbers = gradient_coefficients_of(to.forms, c)
            write_rows(backward, same, y, read, ONE, (ZERO, length), numbers, to.streaming)
    if to.streaming:
        fence()
