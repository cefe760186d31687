"""What this process runs with."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from nbbn import _cache, _jit, _pool, _simd, _threads
from nbbn._version import __version__


def config() -> dict[str, Any]:
    """Return what this process runs with as a dict; it loads, compiles and starts nothing.

    Returns
    -------
    dict
        Versions: ``nbbn, python, numpy, numba, llvmlite``.

        Threads: ``num_threads`` (what nbbn uses at most), ``available_threads`` (its default: the
        least of the next three), ``affinity`` (CPUs that the process may run on), ``cpu_quota``
        (of its control groups, in cores; None: no quota), ``most_threads`` (numba's maximum,
        ``NUMBA_NUM_THREADS``), ``threading_layer`` (of numba; None as long as none is loaded),
        ``wanted_layer`` (``NUMBA_THREADING_LAYER``), ``parallel`` ("yes", "not decided yet: ..." or
        "no: ..." with the reason).

        Compiled code: ``cpu`` and ``simd_bits`` (what it is for), ``jit`` (False under
        ``NUMBA_DISABLE_JIT``), ``cache_directory`` and ``cache_problem`` (why there is none, and
        nothing compiled is kept).

        Memory: ``pool_bytes`` (limit of what is kept for large results).

    Examples
    --------
    >>> import nbbn
    >>> nbbn.config()["nbbn"] == nbbn.__version__
    True
    """
    directory = _cache.cache_directory()
    return {
        "nbbn": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        **_jit.versions(),
        "num_threads": _threads.get_num_threads(),
        "available_threads": _threads.available_threads(),
        "affinity": _threads.affinity(),
        "cpu_quota": _threads.quota(),
        "most_threads": _threads.most_threads(),
        "threading_layer": _threads.loaded_threading_layer(),
        "wanted_layer": _threads.wanted_layer(),
        "parallel": _parallel(),
        "cpu": _simd.cpu_name(),
        "simd_bits": _simd.simd_bits(),
        "jit": _jit.is_enabled(),
        "cache_directory": None if directory is None else str(directory),
        "cache_problem": _cache.cache_problem(),
        "pool_bytes": _pool.pool_limit(),
    }


def _parallel() -> str:
    reason = _threads.why_serial(_threads.get_num_threads())
    if reason is None and not _jit.is_enabled():
        reason = "compilation is turned off (NUMBA_DISABLE_JIT)"
    reason = reason or _threads.problem_of_layer()
    if reason is None and _threads.loaded_threading_layer() is None:
        return "not decided yet: the first large call or warmup() loads a threading layer"
    return "yes" if reason is None else f"no: {reason}"


def show_config() -> None:
    """Print `config`, a line an entry.

    Examples
    --------
    >>> import nbbn
    >>> nbbn.show_config()  # doctest: +ELLIPSIS
    nbbn               ...
    """
    for name, value in config().items():
        print(f"{name:<18} {value}")
