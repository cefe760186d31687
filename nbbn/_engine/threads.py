"""Threads: how many, and whether this call may start a parallel region now.

A region is started only by the one caller that gets the lock; who does not get it runs the serial
twin, which gives the same bits. In a process forked from one that had threads the OpenMP runtime is
not usable, and numba's workqueue layer must not be entered twice (by anyone in the process):
in both nothing parallel is started. An OpenMP runtime keeps a team of threads for each thread that
ever started a region, until that one ends (40 callers on 4 threads: 120 more): so only a few may.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from nbbn import _checks
from nbbn._compiler import announce, internals
from nbbn._compiler.internals import most_threads, wanted_layer
from nbbn._engine.machine import cpu_quota as cpu_quota

loaded_threading_layer = internals.loaded_layer

MOST_TEAMS = 8  # calling threads alive that may own a team of OpenMP threads

_region: dict[int, weakref.ref[Claim]] = {}  # 0: who may start parallel regions now
_here: ContextVar[int] = ContextVar("nbbn_num_threads", default=0)
_everywhere = 0  # set_num_threads; 0: not set
_usable = False
_layer_problem: str | None = None
_unusable_after_fork: str | None = None  # why a forked process starts no region
_mine = threading.local()  # .team: that of the calling thread; goes when the thread ends
_teams: weakref.WeakSet[_Team] = weakref.WeakSet()


class _Team:
    """Stands for the OpenMP threads that one calling thread owns."""


def affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_threads() -> int:
    """Return the smaller of the CPU affinity, the container's CPU quota and numba's maximum."""
    quota = cpu_quota() or math.inf
    return max(1, min(affinity(), math.ceil(min(quota, most_threads()))))


_default = functools.cache(available_threads)


def get_num_threads() -> int:
    """Return the largest number of threads that nbbn uses.

    Examples
    --------
    >>> import nbbn
    >>> with nbbn.num_threads(1):
    ...     nbbn.get_num_threads()
    1
    """
    return _here.get() or _everywhere or _default()


def set_num_threads(n: int) -> None:
    """Set the largest number of threads that nbbn uses, for the whole process.

    Results do not depend on it, to the last bit. numba's own setting is left alone.

    Parameters
    ----------
    n : int
        From 1 to numba's maximum (``NUMBA_NUM_THREADS``, by default the number of cores).

    Raises
    ------
    TypeError, ValueError
        Where ``n`` is not an integer, or out of range.

    Examples
    --------
    >>> import nbbn
    >>> before = nbbn.get_num_threads()
    >>> nbbn.set_num_threads(1)
    >>> nbbn.get_num_threads()
    1
    >>> nbbn.set_num_threads(before)
    """
    global _everywhere
    _everywhere = _checked(n)


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Use at most ``n`` threads inside the block, in this thread (or asynchronous task) only.

    Parameters
    ----------
    n : int
        From 1 to numba's maximum.

    Raises
    ------
    TypeError, ValueError
        As `set_num_threads`.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> x = np.ones((2, 3), np.float32)
    >>> with nbbn.num_threads(1):
    ...     moments = nbbn.batch_moments(x)
    >>> moments.mean
    array([1., 1., 1.])
    """
    token = _here.set(_checked(n))
    try:
        yield
    finally:
        _here.reset(token)


def _checked(n: Any) -> int:
    value, limit = _checks.integer("n", n), most_threads()
    if not 1 <= value <= limit:
        raise ValueError(f"n: expected 1 to {limit} (numba's maximum), got {value}")
    return value


class Claim:
    """The right to start parallel regions, as long as somebody holds it.

    A lock would stay locked where a signal handler raises between two lines (a timeout, Ctrl-C): of
    11,343 such interruptions 31 left it so. This one goes when nothing refers to it any more.
    """

    __slots__ = ("__weakref__", "before")

    before: int  # numba's number of threads for the calling thread


def _vanished(reference: weakref.ref[Claim]) -> None:
    if _region.get(0) is reference:
        _region.pop(0, None)


def enter_region() -> Claim | None:
    """Take the right to start parallel regions, and set numba's threads; `leave_region` ends it."""
    threads = get_num_threads()
    reason = why_serial(threads)
    if reason is not None:
        if threads > 1:
            announce.note_once(f"large calls run on one thread: {reason}")
        return None
    claim = Claim()
    reference = weakref.ref(claim, _vanished)
    # Atomic: the first one's reference stays until it is taken away.
    if _region.setdefault(0, reference) is not reference:
        announce.note("a large call runs on one thread: another one is in a parallel region")
        return None
    try:
        if has_usable_layer() and _has_team():
            claim.before = internals.threads_of_caller()
            if claim.before != threads:
                internals.set_threads_of_caller(threads)
            return claim
    except BaseException:
        _vanished(reference)
        raise
    _vanished(reference)
    reason = problem_of_layer() or f"{MOST_TEAMS} other threads have teams of their own"
    announce.note_once(f"large calls run on one thread: {reason}")
    return None


def leave_region(claim: Claim) -> None:
    try:
        if internals.threads_of_caller() != claim.before:
            internals.set_threads_of_caller(claim.before)
    finally:
        _region.pop(0, None)


def why_serial(threads: int) -> str | None:
    """Return why this process, told to use ``threads``, starts no parallel region, or None."""
    if threads < 2:
        return "only one thread is to be used"
    return _unusable_after_fork


def is_told_serial() -> bool:
    """Whether the user has asked for one thread, so that nothing parallel need be at hand."""
    return (_here.get() or _everywhere) == 1


def _has_team() -> bool:
    """Whether the calling thread may own a team of OpenMP threads; call it inside the lock."""
    if hasattr(_mine, "team"):
        return True
    if loaded_threading_layer() == "omp":  # the others have one pool for all callers
        if len(_teams) >= MOST_TEAMS:
            return False
        _mine.team = _Team()
        _teams.add(_mine.team)
    return True


def problem_of_layer() -> str | None:
    """Return why the threading layer that is loaded, or could not be, is not used; None: it is."""
    layer = loaded_threading_layer()
    if layer is None:
        return _layer_problem
    return None if layer != "workqueue" else "numba's threading layer is workqueue, which only one caller may enter"


def has_usable_layer() -> bool:
    """Whether parallel regions may run on numba's threading layer, which is loaded for that."""
    global _usable, _layer_problem
    if not _usable and _unusable_after_fork is None:  # once it is loaded, it stays
        try:
            internals.load_layer()
        except ValueError:
            _layer_problem = f"numba finds no threading layer for {wanted_layer()!r}"
        _usable = loaded_threading_layer() is not None and problem_of_layer() is None
    return _usable


def _after_fork_in_child() -> None:
    global _unusable_after_fork
    if _region and _unusable_after_fork is None:  # also: a thread that is setting threads up
        _unusable_after_fork = "the process was forked in the middle of a parallel call"
    _region.clear()
    _default.cache_clear()  # the child may be given other CPUs
    if internals.has_started_threads():
        _unusable_after_fork = "the process was forked from one that had threads"
    elif _unusable_after_fork is None and _has_openmp():
        _unusable_after_fork = "the process was forked from one that had loaded libgomp"


def _has_openmp(maps: Path = Path("/proc/self/maps")) -> bool:
    """Whether libgomp is loaded, by another library: after a fork, its threads would never come.

    numba loads it by this name. A copy that a wheel carries under a name of its own is not it.
    """
    try:
        return re.search(rb"/libgomp\.so\.1(\.|\s*$)", maps.read_bytes(), re.MULTILINE) is not None
    except OSError:  # not Linux
        return False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
