"""The decisions of a call, each with its reason: how many threads, which order, which stores.

A decision is made here and nowhere else; `nbbn.explain` prints them. None of them changes a bit of a result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from nbbn._checks import Array
from nbbn._engine import machine, threads
from nbbn._engine.views import SMALL_INNER, View, same_memory
from nbbn._kernels.runs import GROUP

# A parallel region pays from here on (values of one array). Measured on 2 threads, us, serial and
# parallel: inference of (512, 64) 12 and 17, (2048, 64) 47 and 44; training of (8, 512, 8, 8) 162 and
# 106. Below, a region may also wait for a core that another process holds: milliseconds.
PARALLEL_FROM = 1 << 17

_SHORTEST_STREAM = 1 << 10  # bytes of a run

# Values of a run from which it pays to take one channel after the other. Measured, time of two passes over that of
# one channel after the other, one thread, training and backward: runs of 49 values 0.7 and 1.1, of 784 values 0.8
# and 0.8, of 3,136 and 12,544 values 1.2 and 1.25.
_LONG = 1 << 10

# Of a group of neighbouring channels (see `group_of`):
_RUN = 1 << 10  # values of neighbouring runs that make a stream
_GROUPS = 16  # at least


@dataclass(slots=True)  # whose fields are read faster than those of a tuple
class Plan:
    """How a step is run."""

    parallel: bool  # on several threads, if they are free
    by_channel: bool  # one channel after the other, and not one pass after the other
    streaming: int  # 1: stores go past the cache
    group: int  # neighbouring channels that are worked on together
    ahead: int  # 1: rows are asked for ahead of time, as they come from memory
    order: str  # why one channel or one pass after the other
    stores: str  # why through the cache, or past it


def make_plan(
    view: View, read: Sequence[Array], written: Array | None = None, passes: int = 1, joins: bool = True
) -> Plan:
    """Return how a step on arrays of this view is run, that reads some arrays ``passes`` times.

    ``joins`` is whether it writes runs, or rows, without gaps between them as one.
    """
    if view.size < PARALLEL_FROM:
        return _small(view)
    taken, size = 0, 0 if written is None else written.nbytes
    for array in read:
        taken += array.nbytes
    room = machine.last_level_cache() * 3 // 4
    in_place = few = False
    if taken + size > room:  # else neither is asked for
        few = passes > 1 and threads.get_num_threads() > max(1, view.channels // 2)
        in_place = written is not None and any(same_memory(written, array) for array in read)
    return _plan(view, size, in_place, passes, joins, (taken > room, taken + size > room), few)


@functools.lru_cache(maxsize=1024)
def _small(view: View) -> Plan:
    reason = f"{view.size} values are fewer than {PARALLEL_FROM}"
    return Plan(False, False, 0, group_of(view), 0, reason, reason)


@functools.lru_cache(maxsize=1024)
def _plan(
    view: View, written: int, in_place: bool, passes: int, joins: bool, large: tuple[bool, bool], few: bool
) -> Plan:
    """`make_plan`; ``large`` is whether what is read, and whether everything, goes past the cache."""
    order = _why_pass_by_pass(view, passes, large[0], few)
    joined = joins and view.joined and order is not None
    joined = joined and (not view.runs or view.inner >= SMALL_INNER)
    run, itemsize = view.size if joined else view.shape[2], written // view.size
    stores = _why_through_cache(written, itemsize * run, in_place, large[1])
    # Past the cache a line has to be filled at once. Where a run ended between the halves of one, (32, 1024, 14, 14) of
    # float16 took 8 times as long on an AVX-512 machine, (64, 2048, 7, 7) 24 times; long runs gain nothing.
    if stores is None and view.runs and itemsize < 4:
        stores = "vectors of half types are half a line"
    return Plan(
        True,
        order is None,
        int(stores is None),
        group_of(view),
        int(large[1] and not view.runs),
        order or "a channel's values come from memory once",
        stores or "it does not fit",
    )


def group_of(view: View) -> int:
    """Return how many neighbouring channels are worked on together.

    So many that their runs make a stream, if there are groups enough to share out.
    """
    if not view.runs:
        return 1
    _, channels, inner = view.shape
    return max(1, min(_RUN // inner, GROUP, channels // _GROUPS))


def _why_pass_by_pass(view: View, passes: int, large: bool, few: bool) -> str | None:
    if passes < 2:
        return "it reads its arrays once"
    if not view.runs:
        return "channels are not in runs of their own"
    if view.inner < _LONG:
        return f"runs of {view.inner} values are fewer than {_LONG}"
    if not large:
        return "what is read fits three quarters of the last-level cache"
    if few:
        return f"{view.channels} channels do not occupy the threads"
    return None


def _why_through_cache(written: int, run: int, in_place: bool, large: bool) -> str | None:
    """Return why stores do not go past the cache, or None; ``run`` is in bytes.

    An ordinary store first reads the line that it writes. Measured on one thread beside 32 MB of
    L3, past the cache is as fast for 13 MB in all, 1.3 times as fast for 26 MB and 1.6 times for 51.
    But a result that stays in the cache is the next step's gain: so only where that is unlikely,
    from three quarters of the cache on. Not in place, where the line is there already, and not for
    short runs: those of 784 bytes were slower, as each begins and ends with a partial line.
    """
    if not written:
        return "nothing is written"
    if not large:
        return "all of it fits three quarters of the last-level cache"
    if in_place:
        return "in place, the lines are in the cache already"
    if run < _SHORTEST_STREAM:
        return "short runs begin and end with partial lines"
    return None
