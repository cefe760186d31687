"""How nbbn compiles: the only place with numba options.

``helper`` is for functions that kernels call; ``kernel`` makes the serial and the parallel twin of
a function with ``prange`` loops. Nothing is compiled before it is needed: a kernel's variant for a
dtype is compiled, or loaded from the disk cache, when it is first asked for.

The signature of a kernel is read off its annotations: ``In``, ``Out`` (flat arrays of the dtype of
``x``), ``Table`` (rows of numbers per channel, in the dtype of the parameters), ``Average`` (one
such row, written to), ``OutTable``, ``In64``, ``Table64``, ``OutTable64`` (float64), ``Int``, ``Float``. Inputs
are declared read-only, so that one compiled variant serves writable and read-only arrays.
"""

from __future__ import annotations

import threading
import types as python_types
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import llvmlite
import numba
import numpy as np
from numba import config, njit, types
from numpy.typing import NDArray

from nbbn._cache import DiskCache
from nbbn._threads import renew_lock_after_fork

# Division by zero gives inf or NaN as in NumPy; no fastmath: the vectors are explicit (see _simd),
# so nothing needs reassociation, and NaN and Inf must propagate.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

In = Annotated[NDArray[Any], "x", 1, "read-only"]
Out = Annotated[NDArray[Any], "x", 1, "writable"]
Average = Annotated[NDArray[Any], "params", 1, "writable"]
In64 = Annotated[NDArray[np.float64], "float64", 1, "read-only"]
Table = Annotated[NDArray[Any], "params", 2, "read-only"]
OutTable = Annotated[NDArray[Any], "params", 2, "writable"]
Table64 = Annotated[NDArray[np.float64], "float64", 2, "read-only"]
OutTable64 = Annotated[NDArray[np.float64], "float64", 2, "writable"]
Int = int
Float = float

_SCALARS = {int: types.intp, float: types.float64}


def versions() -> dict[str, str]:
    """Return the versions of the compiler."""
    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__}


def is_enabled() -> bool:
    """Whether kernels are compiled (not under ``NUMBA_DISABLE_JIT``)."""
    return not config.DISABLE_JIT


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` for use inside kernels; never called from Python."""
    compiled: Callable[..., Any] = njit(**_OPTIONS)(function)
    return compiled


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``helper``, and always inlined by LLVM: for a few operations on vectors."""
    compiled: Callable[..., Any] = njit(forceinline=True, **_OPTIONS)(function)
    return compiled


class Kernel:
    """The serial and the parallel twin of one function, each compiled per dtype on demand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        hints = get_type_hints(function, include_extras=True)
        self._arguments = [hint for name, hint in hints.items() if name != "return"]
        self._serial = _dispatcher(function, parallel=False)
        self._parallel = _dispatcher(function, parallel=True)
        self._ready: dict[tuple[Any, Any, bool], Callable[..., Any]] = {}
        self._lock = threading.Lock()
        renew_lock_after_fork(self)

    def variant(self, dtype: Any, params: Any, parallel: bool) -> Callable[..., Any]:
        """The twin for ``x`` of ``dtype`` and parameters of ``params``, compiled if it is not."""
        found = self._ready.get((dtype, params, parallel))
        return found if found is not None else self._compile(dtype, params, parallel)

    def signature(self, dtype: Any, params: Any) -> tuple[types.Type, ...]:
        """The numba types of the arguments."""
        return tuple(_numba_type(hint, dtype, params) for hint in self._arguments)

    def _compile(self, dtype: Any, params: Any, parallel: bool) -> Callable[..., Any]:
        dispatcher = self._parallel if parallel else self._serial
        if not config.DISABLE_JIT:
            with self._lock:
                # Compilation is closed again afterwards: then numba converts a writable array to
                # the declared read-only one instead of compiling another variant.
                dispatcher.disable_compile(False)
                try:
                    dispatcher.compile(self.signature(dtype, params))
                finally:
                    dispatcher.disable_compile(True)
        self._ready[dtype, params, parallel] = dispatcher
        compiled: Callable[..., Any] = dispatcher
        return compiled


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make ``function``, annotated and with ``prange`` loops, a `Kernel`."""
    return Kernel(function)


def _dispatcher(function: Callable[..., Any], parallel: bool) -> Any:
    if config.DISABLE_JIT:
        return function
    # The twins must not share a qualified name: compiled symbols are named after it.
    twin = _renamed(function, "_parallel" if parallel else "_serial")
    dispatcher = njit(parallel=parallel, **_OPTIONS)(twin)
    dispatcher._cache = DiskCache(twin, {"parallel": parallel, **_OPTIONS})
    return dispatcher


def _renamed(function: Callable[..., Any], suffix: str) -> Any:
    name = function.__name__ + suffix
    twin = python_types.FunctionType(
        function.__code__.replace(co_name=name, co_qualname=name), function.__globals__, name
    )
    twin.__qualname__ = name
    twin.__module__ = function.__module__
    return twin


def _numba_type(hint: Any, dtype: Any, params: Any) -> types.Type:
    if hint in _SCALARS:
        return _SCALARS[hint]
    which, ndim, access = hint.__metadata__
    element = {"x": dtype, "params": params}.get(which, np.float64)
    return types.Array(
        types.float32 if element == np.float32 else types.float64,
        ndim,
        "C",
        readonly=access == "read-only",
    )
