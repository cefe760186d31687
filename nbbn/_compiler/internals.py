"""The private names of numba and llvmlite that are used, each with what happens where it is missing."""

from __future__ import annotations

from typing import Any

from llvmlite.binding import ffi
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as numba_parallel

# What compiling and loading a threading layer need for themselves: numba's two locks, then LLVM's.
# One that is missing is not waited for before a fork.
COMPILER_LOCKS: tuple[Any, ...] = tuple(
    lock
    for lock in (
        getattr(global_compiler_lock, "_lock", None),
        getattr(numba_parallel, "_backend_init_thread_lock", None),
        getattr(getattr(ffi.lib, "_lock", None), "_lock", None),
    )
    if hasattr(lock, "acquire")
)
