"""How nbbn compiles: the only place with numba options.

``helper`` and ``inlined`` are for functions that compiled code calls; ``step`` makes the serial and the parallel
twin of a function that Python calls. Nothing is compiled before it is needed: a step's variant is compiled, or
loaded from the disk cache, when it is first asked for.

The signature of a step is read off its annotations, which are names of this module. Inputs are declared
read-only, so that one compiled variant serves writable and read-only arrays; stacks (see `nbbn._kernels`) may
have any strides between their rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from types import FunctionType
from typing import Annotated, Any, NamedTuple, get_type_hints

import llvmlite
import numba
import numpy as np
from numba import config, njit, types
from numba import prange as prange  # for the yardsticks of `nbbn._bench`
from numba.extending import overload
from numpy.typing import NDArray

from nbbn._compiler import internals, sources
from nbbn._compiler.cache import DiskCache
from nbbn._compiler.forks import new_lock
from nbbn._compiler.libraries import INSIDE, WHOLE

# Division by zero gives inf or NaN as in NumPy; no fastmath: the vectors are explicit,
# so nothing needs reassociation, and NaN and Inf must propagate.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}

# Arrays are the caller's for the whole of a call, so nobody counts references to them: 0.06 us an array that Python
# passes, and less to compile. numba's own runtime, NRT, is what allocates, too.
_BORROWED: dict[str, Any] = {"_nrt": False}

# What only other compiled code calls needs no entry from Python.
_ALLOCATING: dict[str, Any] = {"no_cpython_wrapper": True, **INSIDE, **_OPTIONS}
_HELPER: dict[str, Any] = {**_ALLOCATING, **_BORROWED}
_INLINED: dict[str, Any] = {**_HELPER, "forceinline": True}

# For functions that users' compiled code calls. What is not said here, numba takes from the function that
# calls first: fastmath, of all.
_ENTRY: dict[str, Any] = {"error_model": "numpy", "fastmath": False, "forceinline": False, "no_cfunc_wrapper": True}

Int = int
Float = float
Stack = Annotated[NDArray[Any], "x", 3, "read-only"]
OutStack = Annotated[NDArray[Any], "y", 3, "writable"]
Form = Annotated[NDArray[Any], "computed", 2, "read-only"]
OutForm = Annotated[NDArray[Any], "computed", 2, "writable"]
Table = Annotated[NDArray[np.float64], "float64", 2, "read-only"]
OutTable = Annotated[NDArray[np.float64], "float64", 2, "writable"]
Blocks = Annotated[NDArray[np.int64], "int64", 2, "read-only"]
Parts = Annotated[NDArray[np.float64], "float64", 3, "writable"]
Parameters = Annotated[NDArray[Any], "parameters", 2, "writable"]
Counter = Annotated[NDArray[np.int64], "int64", 1, "writable"]
# what may be absent: None, and then another variant
IfResidual = Annotated[NDArray[Any] | None, "y", 3, "read-only", "residual"]
IfWeights = Annotated[NDArray[Any] | None, "weights", 1, "read-only", "weights"]
IfNumbers = Annotated[NDArray[Any] | None, "float64", 1, "read-only", "weights"]
IfFused = Annotated[NDArray[Any] | None, "x", 3, "read-only", "activation"]
OutIfFused = Annotated[NDArray[Any] | None, "x", 3, "writable", "activation"]
IfFusedForm = Annotated[NDArray[Any] | None, "computed", 2, "read-only", "activation"]
IfNoted = Annotated[NDArray[Any] | None, "uint8", 1, "writable", "noted"]
Kind = Annotated[tuple[float, ...], "activation"]


class Variant(NamedTuple):
    """What a variant of a step is compiled for."""

    dtype: Any = np.float64  # of x
    parallel: bool = False
    activation: int = 0  # how many numbers its tuple has: see `nbbn._kernels.activations`
    residual: bool = False
    weights: Any = None  # their dtype: uint8 (a mask) or float64
    parameters: Any = np.float32  # the dtype of a layer's
    noted: bool = False  # whether infinite values are


def versions() -> dict[str, str]:
    """Return the versions of the compiler."""
    return {"numba": numba.__version__, "llvmlite": llvmlite.__version__}


def is_enabled() -> bool:
    """Whether kernels are compiled (not under ``NUMBA_DISABLE_JIT``)."""
    return not config.DISABLE_JIT


def _inside(options: dict[str, Any], function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile ``function`` for use inside kernels; never called from Python.

    Calls that spell out a number share the variant of those that do not. For ``f(x, 0)`` numba compiles another
    variant than for ``f(x, i)``, and for ``Rows(x, 0)`` than for ``Rows(x, i)``.
    """
    compiled: Any = njit(**options)(function)
    if is_enabled():
        find = compiled.get_call_template
        compiled.get_call_template = lambda args, kws: find(
            tuple(map(types.unliteral, args)), {name: types.unliteral(kind) for name, kind in kws.items()}
        )
    found: Callable[..., Any] = compiled
    return found


helper = partial(_inside, _HELPER)
inlined = partial(_inside, _INLINED)  # by LLVM, always: for what is called in a loop
allocating = partial(_inside, _ALLOCATING)  # for what makes arrays


def by_length(functions: Sequence[Callable[..., Any]]) -> Callable[..., Any]:
    """Return a helper, inlined, that is one of ``functions``: none of the others becomes part of the kernel.

    The last argument says which one: how long the tuple is that it holds first.
    """

    def chosen(*given: Any) -> Any:
        return functions[len(given[-1][0])](*given)

    if is_enabled():
        choose = overload(chosen, jit_options=_INLINED, strict=False)
        choose(lambda *given: functions[len(given[-1].types[0])])
    return chosen


def entry(function: Callable[..., Any]) -> Any:
    """Compile ``function`` for calls from users' compiled code, and from Python."""
    if not is_enabled():
        return np.errstate(all="ignore")(function)  # as compiled code: NaN and Inf, no warning
    sources.remember(function.__module__)
    dispatcher = njit(**_ENTRY)(function)
    dispatcher._cache = DiskCache(function, _ENTRY)
    return dispatcher


class Step:
    """A function that Python calls: its serial and its parallel twin, compiled a variant at a time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self.__doc__ = function.__doc__
        self.function = function
        sources.remember(function.__module__)
        self.made: list[Any] = []  # what the ready variants are entries of
        self._ready: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self._lock = new_lock(self)

    @property
    def is_parallel(self) -> bool:
        """Whether it has loops to share out."""
        return "prange" in self.function.__code__.co_names

    def variant(self, wanted: tuple[Any, ...]) -> Callable[..., Any]:
        """Return the variant, compiled if it is not; a plain tuple will do, which is made faster."""
        found = self._ready.get(wanted)
        return found if found is not None else self._compile(wanted)

    def _compile(self, wanted: tuple[Any, ...]) -> Callable[..., Any]:
        with self._lock:
            if wanted not in self._ready:
                named = Variant(*wanted)
                hints = get_type_hints(self.function, include_extras=True)
                signature = tuple(_numba_type(hint, named) for name, hint in hints.items() if name != "return")
                compiled = _compiled(self.function, named.parallel, signature)
                self.made.append(compiled)
                self._ready[named] = internals.entry_of(compiled)
        return self._ready[wanted]


step = Step  # the decorator


def _compiled(function: Callable[..., Any], parallel: bool, signature: tuple[types.Type, ...]) -> Any:
    """Return a dispatcher with this one variant, compiled or loaded, that compiles no other.

    Then numba converts a writable array to the declared read-only one instead of compiling another
    variant. Nobody knows it before: a call of one that is open to compile would do so, or fail when
    it is closed meanwhile.
    """
    if config.DISABLE_JIT:
        return np.errstate(all="ignore")(function)  # as compiled code: NaN and Inf, no warning
    # The twins must not share a qualified name: compiled symbols are named after it.
    name = function.__name__ + ("_parallel" if parallel else "_serial")
    twin = FunctionType(function.__code__.replace(co_name=name, co_qualname=name), function.__globals__, name)
    options = {"parallel": parallel, **_BORROWED, **_OPTIONS}
    dispatcher = njit(**options, **WHOLE)(twin)
    dispatcher._cache = DiskCache(twin, options)
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


def _numba_type(hint: Any, wanted: Variant) -> types.Type:
    if hint in (int, float):
        return types.intp if hint is int else types.float64
    if hint is Kind:
        return types.Tuple((types.float64,) * wanted.activation)
    which, ndim, access, *condition = hint.__metadata__
    if condition and not getattr(wanted, condition[0]):
        return types.none
    named = {
        "x": wanted.dtype,
        "y": np.float32 if wanted.dtype == np.uint8 else wanted.dtype,
        "computed": np.float64 if wanted.dtype == np.float64 else np.float32,
        "parameters": wanted.parameters,
        "weights": wanted.weights,
    }
    element = numba.from_dtype(np.dtype(named.get(which, which)))
    layout = "A" if which in ("x", "y") else "C"
    return types.Array(element, ndim, layout, readonly=access == "read-only")
