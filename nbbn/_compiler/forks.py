"""Locks and forks: a forked process must not wait for a thread that it does not have."""

from __future__ import annotations

import importlib
import operator
import os
import threading
import time
import weakref
from typing import Any

from nbbn._compiler.internals import COMPILER_LOCKS

_PATIENCE = 60.0  # seconds that a fork waits for another thread's compilation
_held = threading.local()
_owners: dict[int, weakref.ref[Any]] = {}  # by identity: users' classes have their own equality


def new_lock(owner: Any) -> Any:
    """Return a lock for ``owner._lock``; forked processes put a new one there: who held it is gone.

    A thread that holds it may take it again: a signal handler may call nbbn in the middle of a call.
    """
    key = id(owner)
    _owners[key] = weakref.ref(owner, lambda _: _owners.pop(key, None))
    return threading.RLock()


def _before_fork() -> None:
    """Wait until no other thread compiles, or loads what numba loads in the middle of the first call.

    The child has no such thread: it would wait for its locks for ever, on what that left half done.
    """
    importlib.import_module("numpy.ma")  # with nbbn, it would make that import a tenth slower
    until = time.monotonic() + _PATIENCE
    _held.locks = []
    for lock in COMPILER_LOCKS:
        take = operator.methodcaller("acquire", timeout=max(0.0, until - time.monotonic()))
        # No bytecode runs between a lock and the list: a signal handler that raises would lose the lock.
        _held.locks.extend(filter(take, (lock,)))


def _after_fork() -> None:
    for lock in reversed(getattr(_held, "locks", ())):
        lock.release()
    _held.locks = []


def _after_fork_in_child() -> None:
    _after_fork()
    for reference in list(_owners.values()):
        owner = reference()
        if owner is not None:
            owner._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
