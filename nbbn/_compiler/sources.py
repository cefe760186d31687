"""What the machine code of a kernel is made of: its module, and all that this one imports of the package.

Python's own code objects say it, as the loaders of the modules give them: they are the same for sources,
for bytecode alone and for an archive, and they are what Python runs. File names and line numbers in
them are left out. No module is listed by hand: an import is what makes a module count.
"""

from __future__ import annotations

import dis
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from modulefinder import ModuleFinder
from types import CodeType
from typing import Any

import numpy as np

_PACKAGE = __name__.partition(".")[0]
_IMPORT = dis.opmap["IMPORT_NAME"]
# What a code object has to say beside its constants, except where it stands.
_LEFT_OUT = ("co_consts", "co_filename", "co_firstlineno", "co_linetable", "co_lnotab")
_ATTRIBUTES = [
    name
    for name in dir(CodeType)
    if name.startswith("co_") and name not in _LEFT_OUT and not callable(getattr(CodeType, name))
]
_SIMPLE = (bool, int, float, complex, str, bytes, type(None))

_files: dict[str, bytes | None] = {}  # of modules by name: the file's digest when it was loaded


def remember(module: str) -> None:
    """Note the files of the package's modules that are loaded, on behalf of a kernel in ``module``.

    A process reads code objects when it first compiles; what has been edited by then is not what it runs.
    """
    if module in _files:
        return
    for name in [name for name in sys.modules if _is_ours(name) and name not in _files]:
        _files[name] = _file(name)


@functools.cache
def digest(module: str) -> str | None:
    """Return what names the code of kernels in ``module``; None where it can't be told."""
    found: dict[str, str] = {}
    waiting = [module]
    try:
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name], imported = _examined(name)
                waiting.extend(imported)
    except Exception:  # no loader that gives code, or an edited file: nothing is kept on disk
        return None
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


@functools.cache
def _examined(name: str) -> tuple[str, frozenset[str]]:
    """Return the digest of one module, and what it imports of the package."""
    spec: Any = importlib.util.find_spec(name)
    code = spec.loader.get_code(name)
    file = _file(name)
    if _files.setdefault(name, file) != file:
        raise ImportError(f"{name} was edited after it had been loaded")
    content = repr((_content(code), _constants(name)))
    return hashlib.sha256(content.encode()).hexdigest(), frozenset(_imports(code, spec))


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == _PACKAGE


def _file(name: str) -> bytes | None:
    """Return the digest of a module's file, in an archive as well; None of code that is in no file."""
    try:
        spec: Any = importlib.util.find_spec(name)
        return hashlib.sha256(spec.loader.get_data(spec.origin)).digest()
    except (AttributeError, OSError, ValueError):  # frozen into the executable, or made by hand
        return None


def _content(value: Any) -> Any:
    """Return what ``repr`` shows in full, and alike in every process."""
    if isinstance(value, CodeType):
        return [getattr(value, name) for name in _ATTRIBUTES], _content(value.co_consts)
    if isinstance(value, tuple):  # constants
        return tuple(map(_content, value))
    if isinstance(value, frozenset):  # its order differs from process to process
        return sorted(map(repr, value))
    return value


def _constants(name: str) -> list[tuple[str, Any]]:
    """Return the plain values in a module: some may be computed, of what the machine has for one."""
    found = vars(sys.modules[name]) if name in sys.modules else {}
    return sorted((key, v) for key, v in found.items() if key[:2] != "__" and _is_simple(v))


def _is_simple(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_simple, value))
    return type(value) in _SIMPLE or isinstance(value, np.generic)


def _imports(code: CodeType, spec: ModuleSpec) -> Iterator[str]:
    """Yield the modules of the package that names come from: all that code in ``code`` imports, anywhere."""
    if _IMPORT in code.co_code[::2]:  # every instruction has two bytes
        for kind, what in ModuleFinder([]).scan_opcodes(code):
            if kind == "store":
                continue
            *level, names, base = what
            if level:
                base = importlib.util.resolve_name("." * level[0] + base, spec.parent)
            if _is_ours(base):
                for name in names or ("*",):
                    yield f"{base}.{name}" if _is_module(base, name) else base
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports(constant, spec)


def _is_module(base: str, name: str) -> bool:
    package = importlib.util.find_spec(base)
    is_package = package is not None and package.submodule_search_locations is not None
    return is_package and name != "*" and importlib.util.find_spec(f"{base}.{name}") is not None
