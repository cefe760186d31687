"""What nbbn asks of numba beside compiling: its threads, and the private names that are used.

Each private name stands here once, with what happens where it is missing.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as numba_parallel

# What compiling and loading a threading layer need for themselves: numba's two locks, then LLVM's.
# One that is missing is not waited for before a fork.
_LOCKS = (
    getattr(global_compiler_lock, "_lock", None),
    getattr(numba_parallel, "_backend_init_thread_lock", None),
    getattr(getattr(ffi.lib, "_lock", None), "_lock", None),
)
COMPILER_LOCKS: tuple[Any, ...] = tuple(lock for lock in _LOCKS if hasattr(lock, "acquire"))

load_layer = numba_parallel._launch_threads  # if no code has yet; ValueError where none is to be had
threads_of_caller, set_threads_of_caller = numba.get_num_threads, numba.set_num_threads


def entry_of(compiled: Any) -> Any:
    """Return what runs the only variant of a dispatcher, without a look at the types of the arguments.

    That look takes 0.35 us of a call, some 1 us in all. The caller answers for the types; where numba has no such
    entry, the dispatcher itself does as well.
    """
    variants = list(getattr(compiled, "overloads", {}).values())
    return getattr(variants[0], "entry_point", compiled) if len(variants) == 1 else compiled


def most_threads() -> int:
    """Return numba's maximum (``NUMBA_NUM_THREADS``)."""
    return int(numba.config.NUMBA_NUM_THREADS)


def wanted_layer() -> str:
    """Return the threading layer that numba was told to load (``NUMBA_THREADING_LAYER``)."""
    return str(numba.config.THREADING_LAYER)


def loaded_layer() -> str | None:
    """Return the threading layer, or None as long as none is loaded."""
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def has_started_threads() -> bool:
    """Whether the threading layer is loaded: its threads do not survive a fork."""
    return bool(numba_parallel._is_initialized)
