"""What one race is about: an operation on a shape, in a storage, with a number of threads."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from nbbn._bench.problem import OPERATIONS, Shape, format_shape, format_threads

FUSED = (
    "inference+relu",
    "inference+residual+relu",
    "inference+hard_swish",
    "inference+silu",
    "inference+mish",
    "inference+prelu",
    "training+relu",
    "backward+relu",
    "backward+silu",
)
"""Operations with what follows them in a network: a second array is added, an activation applied."""

STEP = "step"
"""Training and the gradients of it, as a training loop calls a layer: recorded by autograd, where a library has it."""

STANDARDIZER = ("fit", "partial_fit", "transform", "inverse_transform", "fit_transform")
"""Operations on a data set, (samples, features), with the statistics of x itself."""

STATISTICS = {
    "moments+mask": "moments",
    "moments+weights": "moments",
    "training+mask": "training",
    "backward+mask": "backward",
    "calibrate": "training",
    "from_batches": "moments",
}
"""Operations on a part of x, on weighted values, on all the data; and what each adds something to."""

ALL_OPERATIONS = (*OPERATIONS, STEP, *FUSED, *STANDARDIZER, *STATISTICS)

WEIGHTINGS = ("mask", "weights")
PIECES = 16
"""The number of batches of ``from_batches``."""

DTYPES = ("float32", "float64")
STORED = (*DTYPES, "float16", "bfloat16", "uint8")
"""Data types of x. Half types are computed with in float32; of bytes the result is float32."""

LAYOUTS = ("channels-first", "channels-last")
VARIANTS = ("fresh", "out", "inplace")

LIMITS = {
    "inference": "copy-affine",
    "moments": "read",
    "training": "two-trip",
    "backward": "two-trip",
    STEP: "two-trip",
    "fit": "read",
    "partial_fit": "read",
    "transform": "copy-affine",
    "inverse_transform": "copy-affine",
    "fit_transform": "two-trip",
}
LIMITS |= {operation: LIMITS[plain] for operation, plain in STATISTICS.items()}
LIMITS |= {operation: LIMITS[operation.partition("+")[0]] for operation in FUSED}
LIMITS["inference+residual+relu"] = "add-affine"
"""The yardstick of each operation, which every time is a multiple of."""


@dataclass(frozen=True)
class Case:
    """One race: every implementation does this, and their times are compared.

    ``shape`` is always (batch, channels, ...). In the layout ``channels-last`` the memory is that
    of (batch, ..., channels). The variant ``fresh`` returns new arrays, ``out`` writes into arrays
    that are kept, ``inplace`` writes over x. ``params`` is the data type of gamma, beta and the
    running statistics, by default that which x is computed with.
    """

    operation: str
    shape: Shape
    threads: int
    dtype: str = DTYPES[0]
    layout: str = LAYOUTS[0]
    variant: str = VARIANTS[0]
    params: str = ""

    def __post_init__(self) -> None:
        if not self.params:
            object.__setattr__(self, "params", self.computed)

    @property
    def computed(self) -> str:
        """The data type that x is computed with."""
        return self.dtype if self.dtype in DTYPES else DTYPES[0]

    @property
    def limit(self) -> str:
        """The name of the yardstick."""
        return LIMITS[self.operation]

    @property
    def base(self) -> str:
        """The operation without what is fused with it."""
        return self.operation.partition("+")[0]

    @property
    def steps(self) -> tuple[str, ...]:
        """What is fused with the operation."""
        return tuple(step for step in self.operation.split("+")[1:] if step not in WEIGHTINGS)

    @property
    def weighting(self) -> str:
        """What says how much each value counts, ``mask`` or ``weights``; else an empty string."""
        last = self.operation.rpartition("+")[2]
        return last if last in WEIGHTINGS else ""

    @property
    def method(self) -> str:
        """What the methods of implementations are named by: the base, ``weighted_`` before it or not."""
        return f"weighted_{self.base}" if self.weighting else self.base

    @property
    def has_residual(self) -> bool:
        """Whether a second array is added before the activation."""
        return "residual" in self.steps

    @property
    def activation(self) -> str | None:
        """What is applied last, if anything."""
        return next((step for step in self.steps if step != "residual"), None)

    @property
    def itemsize(self) -> int:
        """Bytes of a value of x."""
        return {"float64": 8, "float32": 4, "uint8": 1}.get(self.dtype, 2)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.shape[1]

    @property
    def axis(self) -> int:
        """The channel axis of the arrays in memory order."""
        return 1 if self.layout == "channels-first" else -1

    @property
    def memory_shape(self) -> Shape:
        """The shape of the C-contiguous arrays."""
        if self.layout == "channels-first":
            return self.shape
        return (self.shape[0], *self.shape[2:], self.shape[1])

    @property
    def is_matrix(self) -> bool:
        """Whether the memory is that of (N, C): the channels side by side."""
        return self.axis == -1 or len(self.shape) == 2

    @property
    def storage(self) -> str:
        """Data types, layout and variant where they are not the usual ones, else an empty string."""
        usual = Case(self.operation, self.shape, self.threads)
        names = ("dtype", "layout", "variant")
        parts = [getattr(self, n) for n in names if getattr(self, n) != getattr(usual, n)]
        if self.params != self.computed:
            parts.append(f"{self.params} parameters")
        return " ".join(parts)

    @property
    def label(self) -> str:
        """The name of the group in tables: operation, shape, threads, storage."""
        parts = (self.operation, format_shape(self.shape), format_threads(self.threads))
        return " ".join((*parts, self.storage)).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, fit for JSON."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Case:
        """Return the case whose `to_dict` is ``fields``."""
        return cls(**(fields | {"shape": tuple(fields["shape"])}))


def is_defined(case: Case) -> bool:
    """Tell whether the operation exists.

    One value a channel has no variance to train with, and only plain inference can write over its
    input again and again. Half types are measured in inference only; of bytes nothing but plain
    inference exists, and float32 does not fit in their place. Data sets are tables with new results.
    What is collected over data, and a step, have new results, too, and of a mask at least two values count.
    """
    if case.operation in (STEP, *STANDARDIZER, *STATISTICS):
        usual = case.variant == VARIANTS[0] and case.params == case.computed
        if not usual or case.dtype not in DTYPES:
            return False
        if case.operation in STANDARDIZER:
            return len(case.shape) == 2
        if case.operation == "from_batches":
            return len(case.shape) == 2 and case.shape[0] >= PIECES
        return math.prod(case.shape) > case.channels
    if case.variant == "inplace" and (case.operation != "inference" or case.dtype == "uint8"):
        return False
    if case.dtype not in DTYPES and case.base != "inference":
        return False
    if case.dtype == "uint8" and case.steps:
        return False
    return case.base in ("inference", "moments") or math.prod(case.shape) > case.channels


def list_cases(
    *,
    operations: Iterable[str],
    shapes: Iterable[Shape],
    threads: Iterable[int],
    dtypes: Iterable[str] = DTYPES[:1],
    layouts: Iterable[str] = LAYOUTS[:1],
    variants: Iterable[str] = VARIANTS[:1],
    params: Iterable[str] = ("",),
) -> tuple[Case, ...]:
    """Return every defined combination; threads vary slowest, so that workers are kept long."""
    cases = []
    for count, operation, dtype, parameters, layout, variant, shape in itertools.product(
        threads, operations, dtypes, params, layouts, variants, shapes
    ):
        # (batch, channels) has the same memory in both layouts: it is measured once.
        real_layout = layout if len(shape) > 2 else LAYOUTS[0]
        # Moments have neither a result to write into nor parameters.
        if operation == "moments":
            cases.append(Case(operation, shape, count, dtype, real_layout))
        else:
            cases.append(Case(operation, shape, count, dtype, real_layout, variant, parameters))
    return tuple(case for case in dict.fromkeys(cases) if is_defined(case))
