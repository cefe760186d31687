"""Threads: how many, and whether this call may start a parallel region now.

A region is started only by the one caller that gets the lock; who does not get it runs the serial
twin, which gives the same bits. In a process forked from one that had threads the OpenMP runtime is
not usable, and numba's workqueue layer must not be entered twice (by anyone in the process):
in both nothing parallel is started.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numba
from numba.np.ufunc import parallel as numba_parallel

_region = threading.Lock()
_here: ContextVar[int] = ContextVar("nbbn_num_threads", default=0)
_everywhere = 0  # set_num_threads; 0: not set
_default = 0
_usable = False
_before = 0  # numba's number of threads, while a region is entered
_had_threads_before_fork = False
_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def available_threads() -> int:
    """Return the smaller of the CPU affinity, the container's CPU quota and numba's maximum."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, _quota(), int(numba.config.NUMBA_NUM_THREADS)))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the CPU quota of the control group in cores, rounded up; a large number for none."""
    unlimited = 1 << 30
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = " ".join((root / name).read_text() for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # absent, or "max": no quota
            continue
        return max(1, math.ceil(quota / period)) if quota > 0 and period > 0 else unlimited
    return unlimited


def get_num_threads() -> int:
    """Return the number of threads that nbbn uses at most.

    Examples
    --------
    >>> import nbbn
    >>> with nbbn.num_threads(1):
    ...     nbbn.get_num_threads()
    1
    """
    global _default
    wanted = _here.get() or _everywhere
    if wanted:
        return wanted
    if not _default:
        _default = available_threads()
    return _default


def set_num_threads(n: int) -> None:
    """Set the number of threads that nbbn uses at most, for the whole process.

    Results do not depend on it, to the last bit. numba's own setting is left alone.

    Parameters
    ----------
    n : int
        From 1 to numba's maximum (``NUMBA_NUM_THREADS``, by default the number of cores).

    Raises
    ------
    TypeError
        Where ``n`` is not an integer.
    ValueError
        Where ``n`` is out of range.

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
    TypeError
        Where ``n`` is not an integer.
    ValueError
        Where ``n`` is out of range.

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
    if isinstance(n, bool) or not hasattr(n, "__index__"):
        raise TypeError(f"n: expected an integer, got {type(n).__name__}")
    value = n.__index__()
    limit = int(numba.config.NUMBA_NUM_THREADS)
    if not 1 <= value <= limit:
        raise ValueError(f"n: expected 1 to {limit} (numba's maximum), got {value}")
    return int(value)


def run_parallel(call: Callable[[], None]) -> bool:
    """Make a call that starts a parallel region, if one may start now; return whether it did."""
    if not enter_region():
        return False
    try:
        call()
    finally:
        leave_region()
    return True


def enter_region() -> bool:
    """Take the right to start parallel regions, and set numba's threads; `leave_region` ends it."""
    global _before
    threads = get_num_threads()
    if why_serial(threads) is not None or not _region.acquire(blocking=False):
        return False
    try:
        if has_usable_layer():
            _before = numba.get_num_threads()  # of the calling thread: put back afterwards
            if _before != threads:
                numba.set_num_threads(threads)
            return True
    except BaseException:
        _region.release()
        raise
    _region.release()
    return False


def leave_region() -> None:
    """Give back what `enter_region` took."""
    try:
        if numba.get_num_threads() != _before:
            numba.set_num_threads(_before)
    finally:
        _region.release()


def why_serial(threads: int) -> str | None:
    """Return why this process, told to use ``threads``, starts no parallel region, or None."""
    if threads < 2:
        return "only one thread is to be used"
    if _had_threads_before_fork:
        return "the process was forked from one that had threads"
    return None


def has_usable_layer() -> bool:
    """Whether parallel regions may run on numba's threading layer, which is loaded for that."""
    global _usable
    if not _usable:  # once it is loaded, it stays
        _usable = is_usable_layer(threading_layer())
    return _usable


def is_usable_layer(layer: str | None) -> bool:
    """Whether two callers may be in regions of this layer at once."""
    return layer not in ("workqueue", None)


def threading_layer() -> str | None:
    """Return numba's threading layer, loading it if no code has yet; None where none loads."""
    try:
        numba_parallel._launch_threads()
    except ValueError:  # the one that NUMBA_THREADING_LAYER asks for is not there
        return None
    return str(numba.threading_layer())


def loaded_threading_layer() -> str | None:
    """Return numba's threading layer, or None as long as none is loaded."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def renew_lock_after_fork(owner: Any) -> None:
    """Give ``owner`` a new ``_lock`` in forked processes: who held it may not be in them."""
    _owners.add(owner)


def _after_fork_in_child() -> None:
    global _region, _had_threads_before_fork
    _region = threading.Lock()
    for owner in _owners:
        owner._lock = threading.Lock()
    if numba_parallel._is_initialized:
        _had_threads_before_fork = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
