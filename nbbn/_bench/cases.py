"""What one race is about: an operation on a shape, float32, with a number of threads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

Shape = tuple[int, ...]

OPERATIONS = ("inference", "moments", "training", "backward")
FUSED = "inference+residual+relu"
"""The end of a residual block: a second array is added, then relu."""


@dataclass(frozen=True)
class Case:
    """One race: every implementation does this, and their times are compared."""

    operation: str
    shape: Shape
    threads: int

    @property
    def base(self) -> str:
        """The operation without what is fused with it."""
        return self.operation.partition("+")[0]

    @property
    def has_residual(self) -> bool:
        """Whether a second array is added."""
        return "residual" in self.operation

    @property
    def limit(self) -> str:
        """The name of the yardstick."""
        return "limit"

    @property
    def storage(self) -> str:
        """How the arrays are stored, where that is not the usual way."""
        return ""

    @property
    def label(self) -> str:
        """Operation, shape, threads and storage as text."""
        parts = (self.operation, format_shape(self.shape), format_threads(self.threads))
        return " ".join((*parts, self.storage)).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, fit for JSON."""
        return asdict(self) | {"shape": list(self.shape)}


def format_shape(shape: Shape) -> str:
    """Return ``(32, 64, 56, 56)`` as ``32x64x56x56``."""
    return "x".join(map(str, shape))


def format_threads(count: int) -> str:
    """Return ``1 thread``, ``2 threads``."""
    return f"{count} thread{'s' if count > 1 else ''}"
