"""Compiled code on disk: one file a compiled variant, named after everything that it depends on.

numba's own cache keys a function by its own source file and its signature. That misses the helpers
in other modules, the compiler options and the processes that race for one index file. Here the
name of a file is a hash of the code that goes into it (see `sources`), the options, the signature, the
processor and the versions; a file is written whole and then renamed; whatever is wrong with a file, or with
the folder, is a miss and never an error.

Machine code runs as the user who loads it, so nobody else may choose it. No other user can put a file
into the folder, or another folder into its place (`_problem_of`); what lies there from before is read only if
it belongs to this user or to root; and the digest in a file covers its name, so that a link to the file of
another variant is a miss.
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
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from nbbn._compiler import announce, sources


def cache_directory() -> Path | str:
    """Return the folder for compiled code, or why there is none to be trusted.

    ``NBBN_CACHE_DIR`` if it is set (an empty value turns the cache off), else ``NUMBA_CACHE_DIR``,
    else ``nbbn`` in the user's cache folder (``XDG_CACHE_HOME`` if it is absolute, or ``~/.cache``).
    """
    return _usable_directory(*map(os.environ.get, ("NBBN_CACHE_DIR", "NUMBA_CACHE_DIR", "XDG_CACHE_HOME")))


@functools.lru_cache(maxsize=8)
def _usable_directory(own: str | None, numbas: str | None, xdg: str | None) -> Path | str:
    if own == "":
        return "NBBN_CACHE_DIR is empty"
    try:
        # https://specifications.freedesktop.org/basedir: "must be absolute", else "ignore it"
        base = own or numbas or (xdg if xdg and Path(xdg).is_absolute() else Path.home() / ".cache")
        directory = Path(base).absolute() / "nbbn"
        _make(directory)
        return _problem_of(directory) or directory
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        return f"{type(error).__name__}: {error}"


def _make(directory: Path) -> None:
    if not directory.is_dir():
        _make(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def _problem_of(directory: Path) -> str | None:
    """Return where another user may change what is found at the absolute path ``directory``, or None.

    From the root down, each folder and each symbolic link on the way must belong to this user or to root, and
    nobody else may rename what is in the folder. So what has been looked at stays as it is.
    """
    if not hasattr(os, "geteuid"):
        return None
    ahead = list(reversed(directory.parts))
    here = Path(ahead.pop())
    while True:
        status = here.lstat()
        is_link = stat.S_ISLNK(status.st_mode)  # a link has no mode of its own
        # In a folder such as /tmp ("sticky") only the owner renames a file, but anybody may add one.
        is_safe = is_link or (ahead and status.st_mode & stat.S_ISVTX)
        if not _is_of_ours(status) or (not is_safe and _others_may_write(status)):
            return f"another user may write to {here}"
        if is_link:
            ahead.extend(reversed(here.readlink().parts))
            here = here.parent
        if not ahead:
            return None
        part = ahead.pop()
        here = here.parent if part == ".." else here / part


def _is_of_ours(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _others_may_write(status: os.stat_result) -> bool:
    mode = status.st_mode
    return bool(mode & stat.S_IWOTH) or (bool(mode & stat.S_IWGRP) and not _is_private(status.st_gid))


def _is_private(group: int) -> bool:
    """Whether it is the group that many systems give each user, with no other member (and umask 002)."""
    import grp
    import pwd

    try:
        user, members = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    private = (user.pw_gid, user.pw_name) == (members.gr_gid, members.gr_name)
    return private and {*members.gr_mem} <= {user.pw_name}


def _read(path: Path) -> bytes:
    """Return what an open file holds that only we or root can have written."""
    with path.open("rb") as file:
        if hasattr(os, "geteuid"):
            status = os.fstat(file.fileno())
            if not _is_of_ours(status) or _others_may_write(status):
                raise PermissionError(f"another user may write to {path}")
        return file.read()


class DiskCache(NullCache):  # type: ignore[misc]
    """The cache of one dispatcher, in the form that numba's dispatchers call."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._name = function.__qualname__
        self._module = function.__module__
        self._options = repr(sorted(options.items()))

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled variant for ``sig``, or None.

        numba would first load all that it can compile (`refresh`), 0.2 s in a new process. Compiled
        code needs none of that but the addresses of the functions that it calls, so `refresh` is
        left out where all of them are known.
        """
        path = self._path(sig, target_context.codegen())
        found = None if path is None else self._load(path, target_context)
        if found is None:
            announce.compiling(self._name, cache_directory())
        return found

    def _load(self, path: Path, target_context: Any) -> Any:
        try:
            content = _read(path)
            digest, payload = content[:32], content[32:]
            if _digest(path, payload) != digest:
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
                file.write(_digest(path, payload) + payload)
            os.replace(temporary, path)
        except Exception:  # a full disk, a read-only or removed folder, ...
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)

    def _path(self, sig: Any, codegen: Any) -> Path | None:
        directory = cache_directory()
        if isinstance(directory, str) or (code := sources.digest(self._module)) is None:
            return None
        key = (
            code,
            self._options,
            self._name,
            str(sig),
            str(codegen.magic_tuple()),
            (numba.__version__, llvmlite.__version__, sys.version, platform.machine()),
            (numba.config.BOUNDSCHECK, str(numba.config.OPT)),
        )
        digest = hashlib.sha256(repr(key).encode()).hexdigest()
        return directory / f"{self._name}-{digest[:32]}.nbbn"


def _digest(path: Path, payload: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + b"\0" + payload).digest()


def _called_from_outside(library: Any) -> list[str]:
    """Return the functions and variables that compiled code takes from the process."""
    module = library._final_module
    names = [*module.functions, *module.global_variables]
    return [v.name for v in names if v.is_declaration and not v.name.startswith("llvm.")]


def _are_known(symbols: list[str]) -> bool:
    return all(llvm.address_of_symbol(name) for name in symbols)
