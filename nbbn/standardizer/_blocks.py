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
    each = max(1, most * shape[axis] // max(1, math.prod(shape)))
    for start in range(0, shape[axis], each):
        yield (slice(None),) * axis + (slice(start, start + each),)


def samples_axis(index: int) -> int:
    """Return the first axis that is not that of the features."""
    return 0 if index else 1


def for_each(blocks: Iterable[T], work: Callable[[T], Any], use: Callable[[T, Any], None]) -> None:
    """Call ``work`` for all blocks in several threads, and ``use`` with its results in order."""
    number = min(threads.get_num_threads(), _MOST_THREADS)
    if number == 1:
        for block in blocks:
            use(block, work(block))
        return

    def alone(block: T) -> Any:
        with threads.num_threads(1):
            return work(block)

    waiting: deque[tuple[T, Future[Any]]] = deque()

    def use_until(most: int) -> None:
        while len(waiting) > most:
            done, result = waiting.popleft()
            use(done, result.result())

    with ThreadPoolExecutor(number) as pool:
        try:
            for block in blocks:
                try:
                    waiting.append((block, pool.submit(alone, block)))
                except RuntimeError as error:  # no memory for the stack of a thread, or a limit on threads
                    raise MemoryError(str(error)) from error
                use_until(2 * number)
            use_until(0)
        finally:  # also after Ctrl-C: nobody may write when this returns
            for _, result in waiting:
                result.cancel()
