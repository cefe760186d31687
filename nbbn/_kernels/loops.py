"""The loops over rows of values, each written once: two that sum, three that write.

What they compute is an operation that they are given: a function of this package, known when a kernel is
compiled, so that it costs no call. Who takes one must be `inlined`: else its address would be part of the code, which
then cannot be kept on disk.
"""

from __future__ import annotations

from typing import Any

from nbbn._compiler.jit import inlined
from nbbn._compiler.memory import ZERO, Rows, put, store_first, to_line
from nbbn._compiler.vectors import LANES, first_of, smaller
from nbbn._kernels.elementwise import Forms, form_of

GROUP = 8  # rows side by side


@inlined
def sum_run(add: Any, read: Any, row: int, length: int, about: Any, sums: Any) -> Any:
    """Return ``sums``, each in sixteen lanes, with those of a row: ``sums = add(..., sums)``.

    Of a partial vector, what is added behind its end must be 0.
    """
    k = 0
    while k + LANES <= length:
        sums = add(read, row, k, LANES, about, sums)
        k += LANES
    if k < length:
        sums = add(read, row, k, length - k, about, sums)
    return sums


@inlined
def sum_strip(add: Any, read: Any, rows: Any, k: int, count: int, about: Any, sums: Any) -> Any:
    """Return ``sums`` of up to sixteen columns, from ``k`` on, with those of some rows, as `sum_runs`.

    ``rows`` are the first one and the one behind the last.
    """
    if count >= LANES:
        for row in range(rows[0], rows[1]):
            sums = add(read, row, k, LANES, about, sums)
    else:
        for row in range(rows[0], rows[1]):
            sums = add(read, row, k, count, about, sums)
    return sums


@inlined
def write_rows(
    operation: Any, pick: Any, y: Rows, read: Any, rows: int, columns: Any, form: Any, streaming: int
) -> None:
    """Write ``operation`` of some columns, the first and the one behind the last, past the cache if ``streaming``.

    ``pick(form, k, count)`` returns the coefficients of a place.
    """
    for row in range(rows):
        start = y.at + row * y.stride
        k, end = columns
        if streaming:
            n = smaller(to_line(y.values, start + k), end - k)
            if n > 0:
                store_first(y.values, start + k, n, operation(read, row, k, n, pick(form, k, n)))
                k += n
        while k + LANES <= end:
            value = operation(read, row, k, LANES, pick(form, k, LANES))
            put(y.values, start + k, value, streaming)
            k += LANES
        if k < end:
            n = end - k
            store_first(y.values, start + k, n, operation(read, row, k, n, pick(form, k, n)))


@inlined
def write_joined(operation: Any, y: Rows, read: Any, runs: Any, length: int, form: Forms, streaming: int) -> None:
    """Write ``operation`` of runs without gaps between them, those of channel after channel.

    ``runs`` are their number, the channel of the first one, and the number of channels. A vector that
    spans two runs is computed with the coefficients of both. So there are no partial vectors between them: of
    49 or 196 values, they would be every fourth or every thirteenth.
    """
    number, channel, channels = runs
    c = form_of(form, channel)
    left = length  # values left of the current run
    stop = number * length
    k = 0
    if streaming:
        k = smaller(to_line(y.values, y.at), length)
        if k > 0:
            store_first(y.values, y.at, k, operation(read, ZERO, ZERO, k, c))
            left -= k
    while k + LANES <= stop:
        while left >= LANES and k + LANES <= stop:
            put(y.values, y.at + k, operation(read, ZERO, k, LANES, c), streaming)
            k += LANES
            left -= LANES
        if k + LANES <= stop:
            before = operation(read, ZERO, k, LANES, c)
            channel = channel + 1 if channel + 1 < channels else 0
            c = form_of(form, channel)
            after = operation(read, ZERO, k, LANES, c)
            put(y.values, y.at + k, first_of(left, before, after), streaming)
            k += LANES
            left += length - LANES
    if k < stop:
        store_first(y.values, y.at + k, stop - k, operation(read, ZERO, k, stop - k, c))
