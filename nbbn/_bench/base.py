"""What an implementation is: something that can be measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from nbbn._bench.problem import Case, check_outputs, make_problem


@dataclass(frozen=True)
class Prepared:
    """A case ready to be timed: ``call`` is what is timed, once a repetition.

    ``outputs`` finds the arrays in what the first ``call`` returned. ``note`` says which of several ways was chosen.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], Any] = lambda result: (result,)
    note: str = ""


class Implementation:
    """Something that can be measured: a method ``prepare_OPERATION`` for each that it has.

    Libraries are imported in `load` only, which runs in a process of its own after the thread count is in the
    environment.
    """

    name: ClassVar[str]
    module: ClassVar[str]

    def missing(self) -> str | None:
        """Return why it cannot be measured here, or None."""
        found = importlib.util.find_spec(self.module)
        return None if found else f"{self.module} is not installed"

    def load(self, threads: int) -> None:
        """Import the library, and tell it its threads where it can be told."""
        self.library = importlib.import_module(self.module)
        if hasattr(self.library, "set_num_threads"):
            self.library.set_num_threads(threads)

    def versions(self) -> dict[str, str]:
        """Return the versions of the library and of what its speed depends on."""
        return {self.name: str(self.library.__version__)}

    def threads(self) -> int | None:
        """Return the threads the library says it uses, or None if it does not say."""
        tell = getattr(self.library, "get_num_threads", None)
        return None if tell is None else int(tell())

    def declines(self, case: Any) -> str | None:
        """Return why it cannot do this case, or None; asked before it is loaded."""
        has = hasattr(self, f"prepare_{case.base}")
        return None if has else f"{self.name} has no {case.operation}"

    def problem(self, fields: dict[str, Any]) -> Any:
        """Return the input of the case whose fields these are."""
        return make_problem(Case(**fields | {"shape": tuple(fields["shape"])}))

    def prepare(self, problem: Any) -> Prepared:
        """Return the call for ``problem``; NotImplementedError says why there is none."""
        prepared: Prepared = getattr(self, f"prepare_{problem.case.base}")(problem)
        return prepared

    def verify(self, problem: Any, prepared: Prepared, result: Any) -> None:
        """Raise `WrongResultError` if ``result`` of the first call is not what it has to be."""
        check_outputs(problem, prepared.outputs(result))
