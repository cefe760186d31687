"""Where a channel is a run of values: arrays of (outer, C, inner).

A channel is cut into parts (see `part_of`), by the shape only; parts are summed
one by one and merged in a fixed order, so no result depends on the number of threads, nor on which of the two
orders below is taken.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.memory import (
    ONE,
    ZERO,
    Rows,
    column_of,
    fence,
    lanes,
    load,
    load_rows,
    note_infinite,
    outer_stride,
    prefetch,
    room_for_largest,
    row_stride,
    splat_rows,
    store_rows,
)
from nbbn._compiler.vectors import LANES, has, has_spare_digits, has_values, larger, smaller, splat, total
from nbbn._kernels.elementwise import About, Coefficients, Given, Target, add_products, form_of, no_sums
from nbbn._kernels.loops import sum_run, write_joined, write_rows
from nbbn._kernels.statistics import PIECE, Samples, add_deviations, worst_condition
from nbbn._kernels.table import COUNT, MEAN, REFERENCE, SQUARES, SUM, SUM_GRAD, SUM_PRODUCT, SUM_SLOPE

GROUP = 32  # channels that are summed side by side, at most: their lanes are 12 KB
MOST_SUMS = 3  # of a channel
ROOM = MOST_SUMS * GROUP
FAR = 1 << 23  # bytes, whose pages of 4 KB a core can list at a time
LONG = 1 << 9  # values of a run that is a part of its own: taken in memory's order


def numbers_of_parts(outer: int, inner: int) -> Any:
    """Return how many values each part of `part_of` has; for Python, and compiled for `nbbn.nopython`."""
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
def part_of(part: int, outer: int, inner: int) -> Part:
    """Return part ``part`` of each channel: some whole rows, or at most `PIECE` values of a row."""
    rows, segments = ONE if inner >= LONG else smaller(outer, PIECE // inner), (inner + PIECE - 1) // PIECE
    row, first = part // segments * rows, part % segments * PIECE
    return Part(row, smaller(rows, outer - row), first, smaller(PIECE, inner - first))


@inlined
def near(x: Rows, length: int, weights: Any) -> float:
    """Return what the first look takes deviations from: see `nbbn._kernels.statistics`."""
    if has_spare_digits(x.values) or has(weights):
        return 0.0  # the first values may have little weight, or none
    n = smaller(length, LANES)
    about = total(load(x.values, x.at, n)) / n
    return about if np.isfinite(about) else 0.0


@inlined
def is_stack(array: Any, like: Any) -> bool:
    """Whether the runs of an array of the shape of ``like`` follow each other without gaps; None has none."""
    _, rows, row = like.shape
    right = row_stride(array) == row and outer_stride(array) == rows * row
    return not has(array) or right


@inlined
def runs_of(given: Given, largest: Any, outer: int, c: int, first: int) -> Given:
    """Return the runs of a channel, of each matrix from ``outer`` on; a mask has one number a value, without gaps."""
    inner = given.x.shape[2]
    return Given(
        column_of(given.grad_y, outer, c, first),
        column_of(given.x, outer, c, first),
        Rows(given.mask, outer * inner + first, inner),
        column_of(given.residual, outer, c, first),
        column_of(given.kept, outer, c, first),
        given.kind,
        largest,
    )


@inlined
def same(form: Any, k: int, count: int) -> Any:
    """Return the coefficients of a run, wherever in it."""
    return form


@inlined
def write_runs(operation: Any, given: Given, to: Target, task: int) -> None:
    """Write some neighbouring runs, or a segment of a long one."""
    x, y, largest = given.x, to.values, room_for_largest(given.noted, given.x)
    outer, channels, inner = x.shape
    segments, depth = (inner + PIECE - 1) // PIECE, larger(ONE, PIECE // inner)
    row, first = task // segments * depth, task % segments * PIECE
    rows = smaller(depth, outer * channels - row)
    joined = not has(given.mask) and is_stack(x, x) and is_stack(y, x)
    joined = joined and is_stack(given.grad_y, x) and is_stack(given.residual, x)
    if joined and inner >= LANES and rows > 1:
        o, c = row // channels, row % channels
        read, runs = runs_of(given, largest, o, c, first), (rows, c, channels)
        write_joined(operation, column_of(y, o, c, first), read, runs, inner, to.form, to.streaming)
    else:
        columns = ZERO, smaller(PIECE, inner - first)
        for r in range(row, row + rows):
            o, c = r // channels, r % channels
            read, form = runs_of(given, largest, o, c, first), form_of(to.form, c)
            write_rows(operation, same, column_of(y, o, c, first), read, ONE, columns, form, to.streaming)
    if to.streaming:
        fence()  # once a task: it waits for all that was streamed, some 80 ns
    note_infinite(given.noted, largest)


@inlined
def write_channel(operation: Any, given: Given, to: Target, c: int) -> None:
    outer, _, inner = given.x.shape
    read, y = runs_of(given, None, ZERO, c, ZERO), column_of(to.values, ZERO, c, ZERO)
    write_rows(operation, same, y, read, outer, (ZERO, inner), form_of(to.form, c), to.streaming)
    if to.streaming:
        fence()


@inlined
def room_of(channel: int) -> int:
    """Return where the sums of a channel of a group stand in its `lanes`."""
    return channel % GROUP * MOST_SUMS


@inlined
def is_far(x: Any) -> bool:
    """Whether neighbouring runs are best asked for ahead of time.

    0.6 of the time for 32 samples of 2,048 channels of 49 values; 1.1 where the processor finds the pages by itself.
    """
    return x.size * x.itemsize > FAR and x.shape[2] < LONG


@inlined
def ask_for(array: Any, p: Part, row: int, c: int) -> None:
    there = column_of(array, row, c, p.first)
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
        store_rows(room, room_of(c), ZERO, LANES, none)
    for row in range(p.row, p.row + p.rows):
        for c in range(first, stop):
            read, about = of_run(given, p, row, c)
            before = load_rows(none, room, room_of(c), ZERO, LANES)
            sums = sum_run(add, read, ZERO, p.length, about, before)
            store_rows(room, room_of(c), ZERO, LANES, sums)


class Look(NamedTuple):
    """What a look at a part reads: weights stand without gaps, one a value of a matrix."""

    samples: Samples
    parts: Any
    part: int


@inlined
def samples_of_run(given: Look, p: Part, row: int, c: int) -> tuple[Samples, Any]:
    """Return a run of the values, and what the look takes deviations from."""
    x, weights = given.samples
    if is_far(x) and row + 1 < p.row + p.rows:
        ask_for(x, p, row + 1, c)
    samples = Samples(column_of(x, row, c, p.first), Rows(weights, row * x.shape[2] + p.first, ZERO))
    return samples, splat(given.parts[REFERENCE, given.part, c])


@inlined
def values_of_run(given: Look, p: Part, row: int, c: int) -> tuple[Samples, Any]:
    """`samples_of_run` of a first look: about 0, known when it is compiled, it subtracts nothing."""
    samples, about = samples_of_run(given, p, row, c)
    return samples, splat(0.0) if has_spare_digits(given.samples.x) else about


@inlined
def moments_in(room: Any, c: int, n: float) -> tuple[float, float, float]:
    """Return the sum of deviations of a channel, their mean and m2; zeros of no values."""
    s, q = load_rows(2, room, room_of(c), ZERO, LANES)
    sum_ = total(s)
    mean = sum_ / n if n > 0.0 else 0.0
    return sum_, mean, total(q) - sum_ * mean


@helper
def look_at_group(samples: Samples, numbers: Any, parts: Any, first: int, stop: int, part: int) -> None:
    """Write reference, sum of deviations, m2 and count of one part of a group of neighbouring channels."""
    x, weights = samples
    p = part_of(part, x.shape[0], x.shape[2])
    n = float(p.rows * p.length) if numbers is None else numbers[part]
    room, worst = lanes(ROOM), worst_condition(x)
    given, none = Look(samples, parts, part), (splat(0.0), splat(0.0))
    for c in range(first, stop):
        parts[REFERENCE, part, c] = near(column_of(x, p.row, c, p.first), p.length, weights)
    sum_group(add_deviations, values_of_run, given, p, (first, stop), none, room)
    for c in range(first, stop):
        sum_, deviation, m2 = moments_in(room, c, n)
        if n * deviation * deviation > (worst - 1.0) * m2:
            parts[REFERENCE, part, c] += deviation
            sum_group(add_deviations, samples_of_run, given, p, (c, c + 1), none, room)
            sum_, _, m2 = moments_in(room, c, n)
        parts[SUM, part, c], parts[SQUARES, part, c], parts[COUNT, part, c] = sum_, m2, n


class Products(NamedTuple):
    """What the sums of a backward are taken of: arrays, and the tables of what they are taken with."""

    arrays: Given
    table: Any
    form: Any  # coefficients of the forward, as in `Forms`


@inlined
def products_of_run(given: Products, p: Part, row: int, c: int) -> tuple[Given, About]:
    """Return a run of what is read, and what its sums are taken with."""
    arrays = given.arrays
    if is_far(arrays.x) and row + 1 < p.row + p.rows:
        ask_for(arrays.grad_y, p, row + 1, c)
        ask_for(arrays.x, p, row + 1, c)
    about = About(splat(given.table[MEAN, c]), splat_rows(Coefficients, given.form, ZERO, c))
    return runs_of(arrays, None, row, c, p.first), about


@inlined
def keep_totals(sums: Any, parts: Any, part: int, c: int) -> None:
    parts[SUM_GRAD, part, c], parts[SUM_PRODUCT, part, c] = total(sums[0]), total(sums[1])
    if len(sums) == 3:
        parts[SUM_SLOPE, part, c] = total(sums[2])


@helper
def add_up_group(given: Products, parts: Any, first: int, stop: int, part: int) -> None:
    """Take the sums of one part of a group of neighbouring channels."""
    grad_y, x, mask, _, kept, kind, _ = given.arrays
    p, room = part_of(part, x.shape[0], x.shape[2]), lanes(ROOM)
    none, group = no_sums(kind), (first, stop)
    if has_values(kept):
        sum_group(add_products, products_of_run, given, p, group, none, room)
    else:
        alone = Products(Given(grad_y, x, mask, None, None, kind, None), given.table, given.form)
        sum_group(add_products, products_of_run, alone, p, group, none, room)
    for c in range(first, stop):
        keep_totals(load_rows(none, room, room_of(c), ZERO, LANES), parts, part, c)
