"""Compiling before the first call: every variant of every kernel that calls may meet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from nbbn import _checks, _jit, _threads
from nbbn._epilogue import ACTIVATIONS
from nbbn._jit import PLAIN, Fused, Kernel, PlainKernel

_KERNELS = "nbbn.kernels."
_YARDSTICKS = "nbbn.kernels.yardsticks"  # for measuring only
_MOMENTS = "collect_moments"
_SEEN_AS = {"float16": np.uint16, "bfloat16": np.int16}  # by kernels: see nbbn._formats
_INFERENCE = ("normalize", "infer")  # verbs that the kernels of an inference call are named after

AnyKernel = Kernel | PlainKernel
Variant = tuple[AnyKernel, tuple[Any, ...]]


def warmup(dtypes: Any = ("float32",), training: bool = False, *, activations: Any = ()) -> None:
    """Compile what calls with these types need, or load it from the disk cache.

    Afterwards no inference call with such an ``x`` compiles anything, whatever its shape, its memory
    layout, the number of threads, and the dtype of the parameters; with an activation or a residual, if
    it is among ``activations``. After ``set_num_threads(1)``, only
    what one thread needs is provided.

    Parameters
    ----------
    dtypes : iterable of dtype, or one dtype, default ("float32",)
        Of ``x``: float32, float64, float16, bfloat16 or uint8. Parameters and running statistics of
        float32 and float64 are provided for.
    training : bool, default False
        Whether to provide for training, `batch_moments`, running averages and gradients as well.
    activations : iterable of str or None, default ()
        Which fused steps to provide for: each of these activations (None: no activation), with and
        without a residual.

    Raises
    ------
    TypeError
        Where ``dtypes`` or ``activations`` hold anything else, or ``training`` is not a bool.
    ValueError
        Where ``dtypes`` is empty, or an activation is not known.

    Notes
    -----
    Any thread may call it, and again: what is there already costs nothing. What it compiles is
    kept on disk (see `show_config` for the folder) for processes on the same type of processor.

    It loads numba's threading layer, unless nbbn was set to one thread. A process forked after that
    cannot use threads, and computes serially: where a server forks its workers, call it in each
    worker, or after ``set_num_threads(1)`` before the fork.

    Examples
    --------
    >>> import nbbn
    >>> nbbn.warmup(["float64"])
    """
    prepare(variants(dtypes, training, activations))


def variants(dtypes: Any, training: Any, activations: Any = ()) -> list[Variant]:
    """Return what `warmup` with these arguments provides."""
    wanted = dict.fromkeys(_checked(dtypes))
    steps = _fused_steps(activations, training)
    both = _checks.flag("training", training)
    if not _jit.is_enabled():
        return []
    # What is parallel is compiled against the threading layer; without one it never runs.
    parallel = not _threads.is_told_serial() and _threads.has_usable_layer()
    found: dict[Variant, None] = {}
    for kernel in kernels():
        for dtype in wanted:
            if kernel.name.startswith(_INFERENCE) or (both and _learns(kernel, dtype)):
                keys = kernel.variants(dtype, parallel, steps)
                found.update(dict.fromkeys((kernel, key) for key in keys))
    return list(found)


def _learns(kernel: AnyKernel, dtype: Any) -> bool:
    """Whether the kernel is for ``x`` of this dtype: of bytes there are only moments."""
    return dtype is not np.uint8 or kernel.name.startswith(_MOMENTS)


def _fused_steps(activations: Any, training: Any) -> list[Fused]:
    given = (activations,) if isinstance(activations, str) or activations is None else activations
    names = [_checks.activation(name) for name in given]
    codes = [0 if name is None else ACTIVATIONS[name] for name in names]
    modes = (False, True) if training is True else (False,)
    steps = [
        Fused(code, residual, mode)
        for code in codes
        for residual in (False, True)
        for mode in modes
    ]
    return [step for step in steps if step != PLAIN]


def prepare(wanted: list[Variant], done: Callable[[], None] = lambda: None) -> None:
    """Compile or load these variants, calling ``done`` after each."""
    for kernel, key in wanted:
        kernel.prepare(*key)
        done()


def kernels() -> list[AnyKernel]:
    """Return every kernel of the modules that the package has loaded for its steps."""
    found: dict[AnyKernel, None] = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith(_KERNELS) and name != _YARDSTICKS:
            objects = vars(module).values()
            found.update(dict.fromkeys(k for k in objects if isinstance(k, (Kernel, PlainKernel))))
    return list(found)


def _checked(dtypes: Any) -> list[Any]:
    if isinstance(dtypes, (str, type, np.dtype)) or not isinstance(dtypes, Iterable):
        dtypes = (dtypes,)
    found = [_checks.stored_dtype("dtypes", dtype) for dtype in dtypes]
    if not found:
        raise ValueError(f"dtypes: expected some of {_checks.STORED}, got none")
    return [_SEEN_AS.get(name) or np.dtype(name).type for name in found]
