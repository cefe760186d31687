"""What one race is about, its arrays, and the NumPy formulas: in float64 all are checked by them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Outputs = tuple[Array, ...]
Shape = tuple[int, ...]

OPERATIONS = ("inference", "moments", "training", "backward")
FUSED = "inference+residual+relu"  # the end of a residual block

EPS = 1e-5
MOMENTUM = 0.125  # exact in float32, which is what ONNX keeps it in
# Sums in float32 over 400,000 rows were seen to be off by 7e-5; a wrong formula is off by more.
TOLERANCE = 2e-4
# A prime number of random values is repeated: drawing 25 million anew takes longer than a race.
_RANDOM_VALUES = 1_048_573
_BLOCK_VALUES = 1 << 20  # checked at a time: whole arrays in float64 would not fit memory


class WrongResultError(Exception):
    """An implementation returned something else than the formula."""


@dataclass(frozen=True)
class Case:
    """One race: every implementation does this, and their times are compared."""

    operation: str
    shape: Shape
    threads: int
    limit: ClassVar[str] = "limit"  # the yardstick

    @property
    def base(self) -> str:
        """The operation without what is fused with it."""
        return self.operation.partition("+")[0]

    @property
    def has_residual(self) -> bool:
        return "residual" in self.operation

    @property
    def axes(self) -> tuple[int, ...]:
        return (0, *range(2, len(self.shape)))

    @property
    def label(self) -> str:
        return f"{self.operation} {format_shape(self.shape)} {format_threads(self.threads)}"


def format_shape(shape: Shape) -> str:
    """Return ``(32, 64, 56, 56)`` as ``32x64x56x56``."""
    return "x".join(map(str, shape))


def format_threads(count: int) -> str:
    """Return ``1 thread``, ``2 threads``."""
    return f"{count} thread{'s' if count > 1 else ''}"


@dataclass(frozen=True)
class Problem:
    """The input of a case: ``second`` is grad_y, the residual, or like x but unused.

    ``mean`` and ``inv_std`` (float64) are the batch's own, given to the backward pass.
    """

    case: Case
    x: Array
    second: Array
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    mean: Array
    inv_std: Array

    @property
    def options(self) -> dict[str, Array]:
        """What a layer is given by name."""
        return {"residual": self.second} if self.case.has_residual else {}

    def block(self, channels: slice) -> Problem:
        arrays = {k: v for k, v in vars(self).items() if k != "case"}
        parts = {k: v[:, channels] if v.ndim > 1 else v[channels] for k, v in arrays.items()}
        return Problem(self.case, **{k: v.astype(np.float64) for k, v in parts.items()})


def make_problem(case: Case) -> Problem:
    """Return the input of ``case``: the same values in every process."""
    rng = np.random.default_rng(20150211)
    channels = case.shape[1]
    spread = rng.uniform(0.5, 2.0, channels).astype(np.float32)
    offset, beta, running_mean = rng.uniform(-1.0, 1.0, (3, channels)).astype(np.float32)
    gamma, running_var = rng.uniform(0.5, 1.5, (2, channels)).astype(np.float32)
    random = (rng.standard_normal(_RANDOM_VALUES).astype(np.float32) for _ in range(2))
    x, second = (np.resize(values, case.shape) for values in random)
    x *= along_channels(spread, x)
    x += along_channels(offset, x)
    mean, var = offset.astype(np.float64), spread.astype(np.float64) ** 2
    if case.base == "backward":
        mean, var = x.mean(case.axes, dtype=np.float64), x.var(case.axes, dtype=np.float64)
    return Problem(case, x, second, gamma, beta, running_mean, running_var, mean, 1.0 / np.sqrt(var + EPS))


def along_channels(vector: Array, x: Array) -> Array:
    """Return ``vector`` with the dimensions that let it broadcast along axis 1 of ``x``."""
    return vector.reshape(-1, *[1] * (x.ndim - 2))


def stack(x: Array) -> Array:
    """Return a copy of the values of x, a stack of one row that begins at a multiple of 64 bytes."""
    buffer = np.empty(x.nbytes + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    copy: Array = buffer[start : start + x.nbytes].view(x.dtype).reshape(1, 1, x.size)
    copy[...] = x.ravel()
    return copy


def formula(p: Problem) -> Callable[[], Outputs]:
    """Return the call that computes the operation as one writes it without a library.

    It returns y; mean and variance; y and, one step later, the running statistics; or the three gradients.
    """
    x, second, axes, n = p.x, p.second, p.case.axes, p.x.size // p.x.shape[1]
    vectors = (p.gamma, p.beta, p.running_mean.copy(), p.running_var.copy())
    gamma, beta, running_mean, running_var = (along_channels(v, x) for v in vectors)
    mean, inv_std = (along_channels(v.astype(x.dtype), x) for v in (p.mean, p.inv_std))
    scale = gamma / np.sqrt(running_var + x.dtype.type(EPS))
    shift = beta - running_mean * scale

    def inference() -> Outputs:
        y = x * scale
        y += shift
        if p.case.has_residual:
            y += second
            np.maximum(y, 0, out=y)
        return (y,)

    def moments() -> Outputs:
        return x.mean(axes), x.var(axes)

    def training() -> Outputs:
        mean, var = (along_channels(v, x) for v in moments())
        scale = gamma / np.sqrt(var + x.dtype.type(EPS))
        running_mean[...] += MOMENTUM * (mean - running_mean)
        running_var[...] += MOMENTUM * (var * (n / (n - 1)) - running_var)
        return x * scale + (beta - mean * scale), running_mean.ravel(), running_var.ravel()

    def backward() -> Outputs:
        xhat = (x - mean) * inv_std
        grad_beta, grad_gamma = second.sum(axes), (second * xhat).sum(axes)
        xhat *= along_channels(grad_gamma / n, x)
        xhat += along_channels(grad_beta / n, x)
        grad_x = second - xhat
        grad_x *= gamma * inv_std
        return grad_x, grad_gamma, grad_beta

    return {"inference": inference, "moments": moments, "training": training, "backward": backward}[p.case.base]


def check_outputs(problem: Problem, outputs: Iterable[Any]) -> None:
    """Raise `WrongResultError` if the formula returns other ``outputs``, which are arrays or tensors."""
    arrays = [np.asarray(output) for output in outputs]
    channels = problem.case.shape[1]
    step = max(8, _BLOCK_VALUES * channels // problem.x.size)
    for first in range(0, channels, step):
        block = slice(first, first + step)
        expected = formula(problem.block(block))()
        for number, (found, values) in enumerate(zip(arrays, expected, strict=True), 1):
            whole = problem.x.shape if values.ndim > 1 else (channels,)
            if found.shape != whole:
                raise WrongResultError(f"result {number} has shape {found.shape}, not {whole}")
            part = found[:, block] if values.ndim > 1 else found[block]
            error, scale = np.max(np.abs(part - values)), max(1.0, np.max(np.abs(values)))
            if not error <= TOLERANCE * scale:  # so that a NaN fails
                raise WrongResultError(f"result {number} is off by {error:.3g} of {scale:.3g}")
