"""Code that is optimized once: in the step that it ends up in.

numba optimizes each function that is compiled, and makes machine code of it, then does so again in whatever calls it,
and in what calls that; for a parallel loop three times more. Here only a whole step, with all that it is linked from,
is optimized: half the CPU time of a first call.

These are private names of numba. Where one is missing, it compiles as it always does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


class Ingredient(JITCodeLibrary):  # type: ignore[misc]
    """Code to be linked into other code, never run by itself."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()  # notes what cannot be kept on disk
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """There is no machine code: 0."""
        return 0


class _Ingredients:
    """numba's code generator, but what it makes are ingredients."""

    def __init__(self, codegen: Any) -> None:
        self._codegen = codegen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codegen, name)

    def create_library(self, name: str, **options: Any) -> Ingredient:
        return Ingredient(self, name, **options)

    def set_env(self, name: str, env: Any) -> None:
        """Nothing to tell code that does not run."""


class _Inside(Compiler):  # type: ignore[misc]
    """For what only compiled code calls."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        context = self.state.targetctx
        made = _Ingredients(context.codegen())
        self.state.targetctx = context.subtarget(_internal_codegen=made)
        return super().compile_extra(func)


class _Whole(_Inside):
    """For a step: what is made on the way, the bodies of parallel loops, are ingredients; it is not."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        library = self.state.targetctx.codegen().create_library(func.__qualname__)
        library.enable_object_caching()
        self.state.library = library
        return super().compile_extra(func)


_NEEDED = ("_optimize_final_module", "_finalize_final_module", "_finalize_dynamic_globals")
_is_possible = all(hasattr(JITCodeLibrary, name) for name in _NEEDED)

INSIDE: dict[str, Any] = {"pipeline_class": _Inside} if _is_possible else {}
WHOLE: dict[str, Any] = {"pipeline_class": _Whole} if _is_possible else {}
