"""What this process runs with."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from nbbn._compiler import cache, internals, jit, vectors
from nbbn._engine import memory, threads
from nbbn._version import __version__


def config() -> dict[str, Any]:
    """Return versions, threads and cache of this process as a dict; nothing is loaded, compiled or started.

    Returns
    -------
    dict
        Versions: ``nbbn, python, numpy, numba, llvmlite``.

        Threads: ``num_threads`` (what nbbn uses at most), ``available_threads`` (its default: the least of the next
        three), ``affinity`` (CPUs that the process may run on), ``cpu_quota`` (of its control groups, in cores; None:
        no quota), ``most_threads`` (numba's maximum, ``NUMBA_NUM_THREADS``), ``threading_layer`` (of numba; None as
        long as none is loaded), ``wanted_layer`` (``NUMBA_THREADING_LAYER``), ``parallel`` ("yes", "not decided yet:
        ..." or "no: ..." with the reason).

        Compiled code: ``cpu`` and ``simd_bits`` (what it is for), ``jit`` (False under ``NUMBA_DISABLE_JIT``),
        ``cache_directory`` and ``cache_problem`` (why there is none, and nothing compiled is kept).

        Memory: ``pool_bytes`` (limit of what is kept for large results).

    Examples
    --------
    >>> import nbbn
    >>> nbbn.config()["nbbn"] == nbbn.__version__
    True
    """
    directory = cache.cache_directory()  # or why there is none
    is_kept = isinstance(directory, Path)
    return {
        "nbbn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **jit.versions(),
        "num_threads": threads.get_num_threads(),
        "available_threads": threads.available_threads(),
        "affinity": threads.affinity(),
        "cpu_quota": threads.cpu_quota(),
        "most_threads": internals.most_threads(),
        "threading_layer": threads.loaded_threading_layer(),
        "wanted_layer": internals.wanted_layer(),
        "parallel": _parallel(),
        **vectors.processor(),
        "jit": jit.is_enabled(),
        "cache_directory": str(directory) if is_kept else None,
        "cache_problem": None if is_kept else directory,
        "pool_bytes": memory.pool_limit(),
    }


def _parallel() -> str:
    reason = threads.why_serial(threads.get_num_threads())
    if reason is None and not jit.is_enabled():
        reason = "compilation is turned off (NUMBA_DISABLE_JIT)"
    reason = reason or threads.problem_of_layer()
    if reason is None and threads.loaded_threading_layer() is None:
        return "not decided yet: the first large call or warmup() loads a threading layer"
    return "yes" if reason is None else f"no: {reason}"


def show_config() -> None:
    """Print `config`, one entry per line.

    Examples
    --------
    >>> import nbbn
    >>> nbbn.show_config()  # doctest: +ELLIPSIS
    nbbn               ...
    """
    for name, value in config().items():
        print(f"{name:<18} {value}")
