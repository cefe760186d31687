"""What this process runs with."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from nbbn import _cache, _jit, _pool, _simd, _threads
from nbbn._version import __version__


def config() -> dict[str, Any]:
    """Return versions, threads, SIMD width and cache folder of this process as a dict.

    Returns
    -------
    dict
        ``nbbn, python, numpy, numba, llvmlite`` (versions), ``threading_layer`` (None as long as
        nothing has run in parallel), ``num_threads``, ``available_threads``, ``cpu``,
        ``simd_bits``, ``jit`` (False under ``NUMBA_DISABLE_JIT``), ``pool_bytes`` (limit of the
        memory kept for large results), ``cache_directory`` (None: no
        compiled code is kept).

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
        "threading_layer": _threads.loaded_threading_layer(),
        "num_threads": _threads.get_num_threads(),
        "available_threads": _threads.available_threads(),
        "cpu": _simd.cpu_name(),
        "simd_bits": _simd.simd_bits(),
        "jit": _jit.is_enabled(),
        "pool_bytes": _pool.pool_limit(),
        "cache_directory": None if directory is None else str(directory),
    }


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
