"""Compiling before the first call: every variant of every step that calls may meet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._compiler import jit
from nbbn._compiler.jit import Step, Variant
from nbbn._engine import steps, threads
from nbbn._kernels import steps_of_columns as columns
from nbbn._kernels import steps_of_layers as layers
from nbbn._kernels import steps_of_runs as runs

_SEEN_AS = {"float16": np.uint16, "bfloat16": np.int16}  # by kernels: see `nbbn._compiler.formats`
_PARAMETERS = (np.float32, np.float64)

_INFER = (runs.infer_runs, columns.infer_columns)
_MOMENTS = (runs.moments_of_runs, columns.moments_of_columns)
_BACKWARD = (
    runs.gradient_sums_of_runs,
    columns.gradient_sums_of_columns,
    runs.gradient_of_runs,
    columns.gradient_of_columns,
    runs.differentiate_channels,
)

Wanted = tuple[Step, Variant]


def warmup(dtypes: Any = ("float32",), training: bool = False, *, activations: Any = ()) -> None:
    """Compile the code for these types beforehand, or load it from the disk cache.

    Afterwards no inference call with such an ``x`` compiles anything, whatever its shape, its memory layout, the number
    of threads, and the dtype of the parameters; with an activation or a residual, if it is among ``activations``. After
    ``set_num_threads(1)``, only what one thread needs is provided.

    Parameters
    ----------
    dtypes : iterable of dtype, or one dtype, default ("float32",)
        Of ``x``: float32, float64, float16, bfloat16 or uint8. Parameters and running statistics of
        float32 and float64 are provided for.
    training : bool, default False
        Whether to provide for training, `batch_moments`, running averages and gradients as well.
    activations : iterable of str or None, default ()
        Which fused steps to provide for: each of these activations (None: no activation), with and without a residual.

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

    Not provided for: data sets. The first `Standardizer.transform` compiles a step of its own, and the first data set
    with missing values its own statistics.

    It loads numba's threading layer, unless nbbn was set to one thread. A process forked after that
    cannot use threads, and computes serially: where a server forks its workers, call it in each
    worker, or after ``set_num_threads(1)`` before the fork.

    Examples
    --------
    >>> import nbbn
    >>> nbbn.warmup(["float64"])
    """
    prepare(variants(dtypes, training, activations))


def variants(dtypes: Any, training: Any, activations: Any = ()) -> list[Wanted]:
    """Return what `warmup` with these arguments provides."""
    wanted = dict.fromkeys(_checked(dtypes))
    names = (activations,) if isinstance(activations, str) or activations is None else activations
    kinds = [len(steps.epilogue(steps.activation(name)).kind) for name in names]
    both = _checks.flag("training", training)
    if not jit.is_enabled():
        return []
    # What is parallel is compiled against the threading layer; without one it never runs.
    twins = (False, True) if not threads.is_told_serial() and threads.has_usable_layer() else (False,)
    found: dict[Wanted, None] = {}
    for dtype in wanted:
        for step, variant in _serial_variants(dtype, both, kinds):
            for parallel in twins if step.is_parallel else (False,):
                found[step, variant._replace(parallel=parallel)] = None
    return list(found)


def _serial_variants(dtype: Any, training: bool, kinds: list[int]) -> Iterator[Wanted]:
    """Yield what calls with ``x`` of ``dtype`` need."""
    fused = [(0, False), *((kind, residual) for kind in kinds for residual in (False, True))]
    writes = [Variant(dtype, activation=kind, residual=residual) for kind, residual in fused]
    for variant in writes:
        yield from ((step, variant) for step in _INFER)
    if not training:
        return
    yield from ((step, Variant(dtype)) for step in _MOMENTS)
    if dtype is np.uint8:  # bytes have no gradients
        return
    for variant in writes:
        yield runs.train_channels, variant
        if not variant.residual:  # of a backward, it is no other variant
            yield from ((step, variant) for step in _BACKWARD)
    for parameters in _PARAMETERS:
        yield layers.move_averages, Variant(parameters=parameters)


def prepare(wanted: list[Wanted], done: Callable[[], None] = lambda: None) -> None:
    """Compile or load these variants, calling ``done`` after each."""
    for step, variant in wanted:
        step.variant(variant)
        done()


def _checked(dtypes: Any) -> list[Any]:
    if isinstance(dtypes, (str, type, np.dtype)) or not isinstance(dtypes, Iterable):
        dtypes = (dtypes,)
    found = [_checks.stored_dtype("dtypes", dtype) for dtype in dtypes]
    if not found:
        raise ValueError(f"dtypes: expected some of {_checks.STORED}, got none")
    return [_SEEN_AS.get(name) or np.dtype(name).type for name in found]
