"""Compiled code on disk: one file a compiled variant, named after everything that it depends on.

numba's own cache keys a function by its own source file and its signature. That misses the helpers
in other modules, the compiler options and the processes that race for one index file. Here the
name of a file is a hash of all of the kernels' sources, the options, the signature, the processor
and the versions; a file is written whole and then renamed; whatever is wrong with a file, or with
the folder, is a miss and never an error.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding as llvm
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

_SUFFIX = ".nbbn"


def _digest_of_sources() -> str:
    """Return the SHA-256 of all sources that compiled code depends on.

    Those are the kernels and what they may import; import-linter holds them to it.
    """
    digest = hashlib.sha256()
    package = Path(__file__).parent
    compiler = [
        package / f"{name}.py" for name in ("_cache", "_formats", "_jit", "_simd", "nopython")
    ]
    for path in [*compiler, *sorted((package / "kernels").rglob("*.py"))]:
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


# Taken at import: it must describe the code that this process runs, not what is edited later.
_SOURCES = _digest_of_sources()


def cache_directory() -> Path | None:
    """Return the folder for compiled code, or None where there is none to be trusted.

    ``NBBN_CACHE_DIR`` if it is set (an empty value turns the cache off), else ``NUMBA_CACHE_DIR``,
    else ``nbbn`` in the user's cache folder (``XDG_CACHE_HOME`` or ``~/.cache``).
    """
    found = _found_directory()
    return found if isinstance(found, Path) else None


def cache_problem() -> str | None:
    """Return why compiled code is not kept, or None."""
    found = _found_directory()
    return found if isinstance(found, str) else None


def _found_directory() -> Path | str:
    return _usable_directory(
        os.environ.get("NBBN_CACHE_DIR"),
        os.environ.get("NUMBA_CACHE_DIR"),
        os.environ.get("XDG_CACHE_HOME"),
    )


@functools.lru_cache(maxsize=8)
def _usable_directory(own: str | None, numbas: str | None, xdg: str | None) -> Path | str:
    """Return the folder, or why there is none."""
    if own == "":
        return "NBBN_CACHE_DIR is empty"
    try:
        if own or numbas:
            base = Path(own or numbas or "")
        else:
            base = Path(xdg) if xdg else Path.home() / ".cache"
        directory = base.absolute() / "nbbn"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = directory.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return f"{type(error).__name__}: {error}"
    # Code is loaded from here: only from a folder that no other user can put a file into.
    if hasattr(os, "getuid"):
        foreign = status.st_uid not in (0, os.getuid())
        if foreign or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"another user may write to {directory}"
    return directory


class DiskCache(_Cache):  # type: ignore[misc]
    """The cache of one dispatcher, in the form that numba's dispatchers call."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._name = function.__qualname__
        self._options = repr(sorted(options.items()))

    @property
    def cache_path(self) -> str | None:
        """The folder, or None."""
        directory = cache_directory()
        return None if directory is None else str(directory)

    def enable(self) -> None:
        """Do nothing: the cache is always on."""

    def disable(self) -> None:
        """Do nothing: ``NBBN_CACHE_DIR=`` turns the cache off."""

    def flush(self) -> None:
        """Do nothing: files of other sources are never read."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled variant for ``sig``, or None.

        numba would first load all that it can compile (`refresh`), 0.2 s in a new process. Compiled
        code needs none of that but the addresses of the functions that it calls, so `refresh` is
        left out where all of them are known.
        """
        path = self._path(sig, target_context.codegen())
        if path is None:
            return None
        try:
            content = path.read_bytes()
            digest, payload = content[:32], content[32:]
            if hashlib.sha256(payload).digest() != digest:
                return None
            rtsys.initialize(target_context)
            called, initializers, parts = pickle.loads(payload)
            for initialize in initializers:
                initialize()  # of a parallel variant: the threading layer, whose functions it calls
            if not _are_known(called):
                target_context.refresh()
                if not _are_known(called):  # LLVM would end the process
                    return None
            return CompileResult._rebuild(target_context, *parts)
        except Exception:  # whatever is wrong with the file: compile instead
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write the compiled variant; where that fails, do without."""
        path = self._path(sig, data.codegen)
        if path is None or data.library.has_dynamic_globals or data.lifted:
            return
        temporary = None
        try:
            called = _called_from_outside(data.library)
            payload = dumps((called, tuple(data.reload_init), data._reduce()))
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with os.fdopen(descriptor, "wb") as file:
                file.write(hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except Exception:  # a full disk, a read-only or removed folder, ...
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        directory = cache_directory()
        if directory is None:
            return None
        key = (
            _SOURCES,
            self._options,
            self._name,
            str(sig),
            str(codegen.magic_tuple()),
            (numba.__version__, llvmlite.__version__, sys.version, platform.machine()),
            (numba.config.BOUNDSCHECK, str(numba.config.OPT)),
        )
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        return directory / f"{self._name}-{digest[:32]}{_SUFFIX}"


def _called_from_outside(library: Any) -> list[str]:
    """Return the functions and variables that compiled code takes from the process."""
    module = library._final_module
    names = [*module.functions, *module.global_variables]
    return [v.name for v in names if v.is_declaration and not v.name.startswith("llvm.")]


def _are_known(symbols: list[str]) -> bool:
    return all(llvm.address_of_symbol(name) for name in symbols)
