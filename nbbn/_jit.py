"""How nbbn compiles: the only place with numba options.

``helper`` is for functions that kernels call; ``kernel`` makes the serial and the parallel twin of
a function with ``prange`` loops. Nothing is compiled before it is needed: a kernel's variant for a
dtype is compiled, or loaded from the disk cache, when it is first asked for.

The signature of a kernel is read off its annotations: ``In``, ``Out`` (flat arrays of the dtype of
``x``; what is made of bytes is float32), ``PlainIn``, ``PlainOut`` (matrices as they come), ``Table``
(rows of numbers per channel, in the dtype of the parameters), ``Average`` (one such row, written to),
``OutTable``, ``In64``, ``Table64``, ``OutTable64`` (float64), ``Int``, ``Float``, ``Activation`` (a
tuple), and ``If...`` (an integer or an array, or None in half of the variants). Inputs are declared
read-only, so that one compiled variant serves writable and read-only arrays.
"""

from __future__ import annotations

import functools
import importlib
import operator
import os
import threading
import time
import types as python_types
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, get_type_hints

import llvmlite
import numba
import numpy as np
from llvmlite.binding import ffi
from numba import config, njit, types
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel as numba_parallel
from numpy.typing import NDArray

from nbbn import _sources
from nbbn._cache import DiskCache
from nbbn._locks import new_lock

# Division by zero gives inf or NaN as in NumPy; no fastmath: the vectors are explicit (see _simd),
# so nothing needs reassociation, and NaN and Inf must propagate.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

# What only other compiled code calls needs no entry from Python or C.
_INSIDE: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

In = Annotated[NDArray[Any], "x", 1, "read-only"]
Out = Annotated[NDArray[Any], "y", 1, "writable"]
PlainIn = Annotated[NDArray[Any], "x", 2, "read-only", "any strides"]
PlainOut = Annotated[NDArray[Any], "y", 2, "writable", "any strides"]
Counter = Annotated[NDArray[np.int64], "int64", 1, "writable"]
Average = Annotated[NDArray[Any], "params", 1, "writable"]
In64 = Annotated[NDArray[np.float64], "float64", 1, "read-only"]
Table = Annotated[NDArray[Any], "params", 2, "read-only"]
OutTable = Annotated[NDArray[Any], "params", 2, "writable"]
Table64 = Annotated[NDArray[np.float64], "float64", 2, "read-only"]
OutTable64 = Annotated[NDArray[np.float64], "float64", 2, "writable"]
Int = int
Float = float
# What only fused steps have: see `Fused`.
IfResidual = Annotated[NDArray[Any] | None, "y", 1, "read-only"]
IfGradient = Annotated[NDArray[Any] | None, "y", 1, "read-only", "gradient"]
IfWeights = Annotated[NDArray[Any] | None, "weights", 1, "read-only"]
IfPlainResidual = Annotated[NDArray[Any] | None, "y", 2, "read-only", "any strides"]
Activation = Annotated[tuple[float, ...], "activation"]
IfSerial = Annotated[int | None, "serial"]
IfParallel = Annotated[int | None, "parallel"]
IfRuns = Annotated[int | None, "runs"]
IfColumns = Annotated[int | None, "columns"]

_SCALARS: dict[Any, types.Type] = {
    int: types.intp,
    float: types.float64,
    **dict.fromkeys((IfSerial, IfParallel, IfRuns, IfColumns), types.intp),
}


# What compiling and loading a threading layer need for themselves: numba's two locks, then LLVM's.
_COMPILER_LOCKS: tuple[Any, ...] = tuple(
    lock
    for lock in (
        getattr(global_compiler_lock, "_lock", None),
        getattr(numba_parallel, "_backend_init_thread_lock", None),
        getattr(getattr(ffi.lib, "_lock", None), "_lock", None),
    )
    if hasattr(lock, "acquire")
)
_PATIENCE = 60.0  # seconds that a fork waits for another thread's compilation
_held = threading.local()


def _before_fork() -> None:
    """Wait until no other thread compiles, or loads what numba loads in the middle of the first call.

    The child has no such thread: it would wait for its locks for ever, on what that left half done.
    """
    importlib.import_module("numpy.ma")  # with nbbn, it would make that import a tenth slower
    until = time.monotonic() + _PATIENCE
    _held.locks = []
    for lock in _COMPILER_LOCKS:
        take = operator.methodcaller("acquire", timeout=max(0.0, until - time.monotonic()))
        # No bytecode runs between a lock and the list: a signal handler that raises would lose the lock.
        _held.locks.extend(filter(take, (lock,)))


def _after_fork() -> None:
    for lock in reversed(getattr(_held, "locks", ())):
        lock.release()
    _held.locks = []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork
    )


class Fused(NamedTuple):
    """What a variant of a kernel is compiled with, of all that may be absent."""

    activation: int = 0  # how many numbers its tuple has: see `nbbn.kernels.epilogue`
    residual: bool = False
    gradient: bool = False
    weights: Any = None  # their dtype: uint8 (a mask) or float64


PLAIN = Fused()


def versions() -> dict[str, str]:
    """Return the versions of the compiler."""
    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__}


def is_enabled() -> bool:
    """Whether kernels are compiled (not under ``NUMBA_DISABLE_JIT``)."""
    return not config.DISABLE_JIT


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` for use inside kernels; never called from Python."""
    return _of_any_number(njit(**_INSIDE, **_OPTIONS)(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like ``helper``, and always inlined by LLVM: for a few operations on vectors."""
    return _of_any_number(njit(forceinline=True, **_INSIDE, **_OPTIONS)(function))


def _of_any_number(compiled: Any) -> Callable[..., Any]:
    """Let calls that spell out a number share the variant of those that do not.

    For ``f(x, 0)`` numba compiles another variant than for ``f(x, i)``.
    """
    if is_enabled():
        find = compiled.get_call_template
        compiled.get_call_template = lambda args, kws: find(
            tuple(map(types.unliteral, args)),
            {name: types.unliteral(kind) for name, kind in kws.items()},
        )
    found: Callable[..., Any] = compiled
    return found


# For functions that users' compiled code calls. What is not said here, numba takes from the function that
# calls first: fastmath, of all.
_ENTRY: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": False,
    "forceinline": False,
    "no_cfunc_wrapper": True,
}


def entry(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from users' compiled code, and from Python."""
    if not is_enabled():
        return np.errstate(all="ignore")(function)  # as compiled code: NaN and Inf, no warning
    _sources.remember(function.__module__)
    dispatcher = njit(**_ENTRY)(function)
    dispatcher._cache = DiskCache(function, _ENTRY)
    return dispatcher


class Kernel:
    """The serial and the parallel twin of one function, each compiled per dtype on demand."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.function = function
        _sources.remember(function.__module__)
        self._ready: dict[tuple[Any, Any, bool, Fused], Callable[..., Any]] = {}
        self._lock = new_lock(self)

    # What only a call needs is made then, and not when the package is imported.

    @functools.cached_property
    def _arguments(self) -> list[Any]:
        hints = get_type_hints(self.function, include_extras=True)
        return [hint for name, hint in hints.items() if name != "return"]

    def variants(
        self, dtype: Any, parallel: bool, fused: Sequence[Fused] = ()
    ) -> list[tuple[Any, Any, bool, Fused]]:
        """Return the arguments of `prepare` for all that calls with ``x`` of ``dtype`` may need.

        The parallel twin is among them only where ``parallel``, fused steps only those given.
        """
        depends_on = {hint.__metadata__[0] for hint in self._arguments if hint not in _SCALARS}
        of_x = dtype if "x" in depends_on else np.float64
        of_params = (np.float32, np.float64) if "params" in depends_on else (None,)
        has_loops = "prange" in self.function.__code__.co_names
        twins = (False, True) if parallel and has_loops else (False,)
        steps = [PLAIN, *(step for step in fused if self._can_be(step))]
        return [
            (of_x, params, twin, step) for params in of_params for twin in twins for step in steps
        ]

    def _can_be(self, fused: Fused) -> bool:
        wanted = {Activation, *([IfGradient] if fused.gradient else [])}
        return all(hint in self._arguments for hint in wanted)

    def prepare(self, dtype: Any, params: Any, parallel: bool, fused: Fused) -> None:
        """Compile the variant if it is not."""
        self.variant(dtype, params, parallel, fused)

    def variant(
        self, dtype: Any, params: Any, parallel: bool, fused: Fused = PLAIN
    ) -> Callable[..., Any]:
        """The twin for ``x`` of ``dtype`` and parameters of ``params``, compiled if it is not."""
        found = self._ready.get((dtype, params, parallel, fused))
        return found if found is not None else self._compile(dtype, params, parallel, fused)

    def signature(self, dtype: Any, params: Any, fused: Fused = PLAIN) -> tuple[types.Type, ...]:
        """The numba types of the arguments."""
        special: dict[Any, types.Type] = {Activation: _tag(fused)}
        if not fused.residual:
            special[IfResidual] = types.none
        if not fused.gradient:
            special[IfGradient] = types.none
        if fused.weights is None:
            special[IfWeights] = types.none
        return tuple(
            special[hint] if hint in special else _numba_type(hint, dtype, params, fused.weights)
            for hint in self._arguments
        )

    def _compile(self, dtype: Any, params: Any, parallel: bool, fused: Fused) -> Callable[..., Any]:
        key = dtype, params, parallel, fused
        with self._lock:
            if key not in self._ready:
                signature = self.signature(dtype, params, fused)
                self._ready[key] = _compiled(self.function, parallel, signature)
        return self._ready[key]


def _tag(fused: Fused) -> types.Type:
    """Return the type of the tuple that stands for an activation."""
    return types.Tuple((types.float64,) * fused.activation)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Make ``function``, annotated and with ``prange`` loops, a `Kernel`."""
    return Kernel(function)


def body(kernel: Kernel) -> Any:
    """Return the serial twin of ``kernel`` as a helper, for kernels that call it."""
    return helper(_renamed(kernel.function, "_inside"))


def parallel_body(kernel: Kernel) -> Any:
    """Return the parallel twin of ``kernel`` as a helper."""
    return njit(parallel=True, **_INSIDE, **_OPTIONS)(_renamed(kernel.function, "_inside_parallel"))


class PlainKernel:
    """A function whose arrays come as they are; what may be None makes it two variants.

    numba itself finds the variant by the types of the arguments, faster than Python could look at
    them, so that `call` may be called with anything: TypeError where there is no variant (yet).
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.function = function
        _sources.remember(function.__module__)
        self.call: Callable[..., Any] = _no_variant
        self._shared: Any = None  # the dispatcher of all variants
        self._ready: set[tuple[Any, ...]] = set()
        self._lock = new_lock(self)

    def variants(
        self, dtype: Any, parallel: bool, fused: Sequence[Fused] = ()
    ) -> list[tuple[Any, Any, bool, bool, Fused]]:
        """Return the arguments of `prepare` that calls with ``x`` of ``dtype`` may come with."""
        if dtype not in (np.float32, np.float64):
            return []
        hints = get_type_hints(self.function, include_extras=True).values()
        has_params = any("params" in getattr(hint, "__metadata__", ()) for hint in hints)
        steps = [PLAIN]
        if Activation in hints:
            steps += [step for step in fused if not step.gradient]
        return [
            (dtype, params, twin, columns, step)
            for params in ((np.float32, np.float64) if has_params else (np.float64,))
            for twin in ((False, True) if parallel else (False,))
            for columns in (False, True)
            for step in steps
        ]

    def prepare(
        self, dtype: Any, params: Any, parallel: bool, columns: bool, fused: Fused = PLAIN
    ) -> None:
        """Compile the variant if it is not."""
        key = dtype, params, parallel, columns, fused
        left_out = {
            IfParallel if not parallel else IfSerial,
            IfColumns if not columns else IfRuns,
        }
        hints = get_type_hints(self.function, include_extras=True)
        hints.pop("return")
        if not fused.residual:
            left_out.add(IfPlainResidual)
        special = dict.fromkeys(left_out, types.none) | {Activation: _tag(fused)}
        signature = tuple(
            special[hint] if hint in special else _numba_type(hint, dtype, params)
            for hint in hints.values()
        )
        with self._lock:
            if key not in self._ready:
                alone = _compiled(self.function, False, signature)
                if self._ready:
                    self._shared.add_overload(alone.overloads[signature])
                else:
                    self._shared = self.call = alone
                self._ready.add(key)


def _no_variant(*arguments: Any) -> Any:
    raise TypeError("no variant of this kernel has been compiled")


def plain_kernel(function: Callable[..., Any]) -> PlainKernel:
    """Make ``function``, annotated, a `PlainKernel`."""
    return PlainKernel(function)


def _compiled(
    function: Callable[..., Any], parallel: bool, signature: tuple[types.Type, ...]
) -> Any:
    """Return a dispatcher with this one variant, compiled or loaded, that compiles no other.

    Then numba converts a writable array to the declared read-only one instead of compiling another
    variant. Nobody knows it before: a call of one that is open to compile would do so, or fail when
    it is closed meanwhile.
    """
    dispatcher = _dispatcher(function, parallel)
    if is_enabled():
        _uninterrupted(lambda: dispatcher.compile(signature))
        dispatcher.disable_compile()
    return dispatcher


def _uninterrupted(work: Callable[[], Any]) -> None:
    """Do it where no signal handler can raise in its midst, which only the main thread's can.

    numba's registries, filled half-way, would fail every later compilation in the process.
    """
    if threading.current_thread() is not threading.main_thread():
        work()
        return
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="nbbn-compile")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _dispatcher(function: Callable[..., Any], parallel: bool) -> Any:
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)  # as compiled code: NaN and Inf, no warning
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


def _numba_type(hint: Any, dtype: Any, params: Any, weights: Any = None) -> types.Type:
    if hint in _SCALARS:
        return _SCALARS[hint]
    which, ndim, access, *rest = hint.__metadata__
    element = {
        "x": dtype,
        "y": np.float32 if dtype == np.uint8 else dtype,
        "params": params,
        "int64": np.int64,
        "weights": weights,
    }
    return types.Array(
        numba.from_dtype(np.dtype(element.get(which, np.float64))),
        ndim,
        "A" if "any strides" in rest else "C",
        readonly=access == "read-only",
    )
