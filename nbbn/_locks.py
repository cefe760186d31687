"""Locks that a forked process does not inherit from a thread that it does not have."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

_owners: dict[int, weakref.ref[Any]] = {}  # by identity: users' classes have their own equality


def new_lock(owner: Any) -> Any:
    """Return a lock for ``owner._lock``; forked processes put a new one there: who held it is gone.

    A thread that holds it may take it again: a signal handler may call nbbn in the middle of a call.
    """
    key = id(owner)
    _owners[key] = weakref.ref(owner, lambda _: _owners.pop(key, None))
    return threading.RLock()


def _after_fork_in_child() -> None:
    for reference in list(_owners.values()):
        owner = reference()
        if owner is not None:
            owner._lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
