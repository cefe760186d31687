"""How a call is timed: long ones once, short ones in a loop."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

Call = Callable[[], Any]

SHORT_CALL_SECONDS = 200e-6
LOOP_SECONDS = 2e-3
CALIBRATION_CALLS = 5
LONG_CALL_SECONDS = 50e-3
CHOICE_ROUNDS = 7


class Timer:
    """The call of the case at hand, and how often a measurement repeats it."""

    def __init__(self, call: Call) -> None:
        self.call, self.loops = call, 1
        seconds = self._run(1)
        # One call may have been held up by another process, all of them hardly.
        for _ in range(CALIBRATION_CALLS if seconds < LONG_CALL_SECONDS else 0):
            seconds = min(seconds, self._run(1))
        if seconds < SHORT_CALL_SECONDS:
            seconds = self._run(max(1, round(SHORT_CALL_SECONDS / seconds)))
            self.loops = max(1, round(LOOP_SECONDS / seconds))
        self._seconds = seconds  # about, of a call

    def measure(self) -> float:
        """Return the seconds of one call, the release of its result included."""
        # The first calls after a pause wake threads and find the caches full of others' data and code.
        if self._seconds < LONG_CALL_SECONDS:
            self._run(1 + self.loops // 2)
        return self._run(self.loops)

    def _run(self, loops: int) -> float:
        call, repetitions = self.call, itertools.repeat(None, loops)
        start = time.perf_counter_ns()
        for _ in repetitions:
            call()
        return (time.perf_counter_ns() - start) * 1e-9 / loops


def fastest(calls: dict[str, Call]) -> str:
    """Return the name of the call with the least time, timed in turn.

    The minimum, not the median: a call on two threads is held up more often than one on one.
    """
    timers = {name: Timer(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(CHOICE_ROUNDS if len(calls) > 1 else 0):
        for name, timer in timers.items():
            seconds[name].append(timer.measure())
    return min(calls, key=lambda name: min(seconds[name], default=0.0))


def ways(make: Callable[[bool, int], Call], threads: int) -> dict[str, Call]:
    """Return what ``make`` returns of (whether parallel, whether past the cache), by name."""
    stores, kinds = ("plain stores", "streaming stores"), ("serial", "parallel")[:threads]
    return {
        f"{store}, {kind}": make(kind == "parallel", streaming)
        for kind in kinds
        for streaming, store in enumerate(stores)
    }
