"""Work in blocks that stay in the cache, each by one of several threads, with results in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from nbbn._engine import threads

T = TypeVar("T")
Place = tuple[slice, ...]
Advance = Callable[[int], None]  # moves a bar on by so many bytes

_MOST_THREADS = 8  # each has buffers; more than these wait for the memory anyway


def cut(shape: tuple[int, ...], index: int, most: int) -> Iterator[Place]:
    """Yield places, of about ``most`` values each, that follow each other along the axis of the samples."""
    axis = samples_axis(index)
    samples = max(1, most * shape[axis] // max(1, math.prod(shape)))
    for start in range(0, shape[axis], samples):
        yield (slice(None),) * axis + (slice(start, start + samples),)


def samples_axis(index: int) -> int:
    """Return the first axis that is not that of the features."""
    return 0 if index else 1


def each(blocks: Iterable[T], work: Callable[[T], Any]) -> Iterator[tuple[T, Any]]:
    """Yield all blocks in their order, each with what ``work`` made of it in one of several threads.

    Whoever leaves the loop over them early, with an error for one, leaves no thread behind that works.
    """
    number = min(threads.get_num_threads(), _MOST_THREADS)
    if number == 1:
        yield from ((block, work(block)) for block in blocks)
        return

    def alone(block: T) -> Any:
        with threads.num_threads(1):
            return work(block)

    waiting: deque[tuple[T, Future[Any]]] = deque()

    def done(but: int) -> Iterator[tuple[T, Any]]:
        while len(waiting) > but:
            block, result = waiting.popleft()
            yield block, result.result()

    with ThreadPoolExecutor(number) as pool:
        try:
            for block in blocks:
                try:
                    waiting.append((block, pool.submit(alone, block)))
                except RuntimeError as error:  # no memory for the stack of a thread, or a limit on threads
                    raise MemoryError(str(error)) from error
                yield from done(2 * number)
            yield from done(0)
        finally:  # also after Ctrl-C: nobody may write when this ends
            for _, result in waiting:
                result.cancel()
