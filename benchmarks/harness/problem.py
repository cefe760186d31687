"""The arrays of a case, and the float64 NumPy formulas that every implementation is checked by."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.harness.cases import PIECES, STEP, Case

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]

EPS = 1e-5
MOMENTUM = 0.125  # exact in float32, which is what ONNX keeps it in
SLOPE = 0.25  # of prelu, in every channel

# Sums in float32 over 400,000 rows were seen to be off by 7e-5; a wrong formula is off by more.
# Half types may be rounded twice, by half a unit in the last place each: 2**-11 and 2**-8 at most.
TOLERANCE = {
    "float32": 2e-4,
    "float64": 1e-12,
    "float16": 1e-3,
    "bfloat16": 8e-3,
    "uint8": 2e-4,
}

# A prime number of random values is repeated: drawing 25 million anew takes longer than a race.
RANDOM_VALUES = 1_048_573
COUNTED = 0.6  # of what is masked, on average
BLOCK_VALUES = 1 << 20


class WrongResultError(Exception):
    """An implementation returned something else than the formula."""


@dataclass(frozen=True)
class Problem:
    """The input of a case. Arrays have the case's data types, and C order in its layout.

    ``mean`` and ``inv_std`` (float64) are the batch's own, given to the backward pass;
    ``grad_y`` is empty for the other operations, ``residual`` for those that add none, and ``weights``,
    of the shape of x without the channel axis, where every value counts once; they are a mask or real
    numbers. What writes over its input takes a copy of x.
    """

    case: Case
    x: Array
    grad_y: Array
    residual: Array
    weights: Array | Mask
    gamma: Array
    beta: Array
    running_mean: Array
    running_var: Array
    mean: Float64
    inv_std: Float64

    @property
    def second(self) -> Array:
        """The other array of the size of x, empty where the operation has none."""
        return self.grad_y if self.grad_y.size else self.residual

    @property
    def result_dtype(self) -> np.dtype[np.floating]:
        """The data type of y."""
        return np.dtype(self.case.computed) if self.case.dtype == "uint8" else self.x.dtype

    @property
    def count(self) -> float:
        """The number of values a channel that count, or the sum of their weights."""
        return float(self.weights.sum()) if self.weights.size else self.x.size / self.case.channels

    @property
    def pieces(self) -> list[Array]:
        """A table as batches of uneven sizes, none of them empty."""
        rows = self.x.shape[0]
        cuts = np.random.default_rng(rows).choice(rows - 1, PIECES - 1, replace=False) + 1
        return np.split(self.x, np.sort(cuts))


def dtype_of(name: str) -> np.dtype[np.floating]:
    """Return the data type; that of bfloat16 is in ml_dtypes."""
    if name == "bfloat16":
        importlib.import_module("ml_dtypes")
    return np.dtype(name)


def make_problem(case: Case) -> Problem:
    """Return the input of ``case``: the same values in every process."""
    rng = np.random.default_rng(20150211)
    dtype, params = np.dtype(case.computed), np.dtype(case.params)
    channels = case.channels
    offset = rng.uniform(-1.0, 1.0, channels)
    spread = rng.uniform(0.5, 2.0, channels)
    gamma, beta = rng.uniform(0.5, 1.5, channels), rng.uniform(-1.0, 1.0, channels)
    running_mean, running_var = rng.uniform(-1.0, 1.0, channels), rng.uniform(0.5, 2.0, channels)
    if case.variant == "inplace":
        # The result is the next call's input: y = 2 mean - x keeps its distribution for ever.
        gamma, beta = -np.sqrt(running_var + EPS), running_mean
    if case.dtype == "uint8":
        # Levels of brightness and their usual statistics; nothing but these is applied to images.
        offset, spread = 120.0 + 20.0 * offset, 40.0 * spread
        running_mean, running_var = offset, spread**2
        gamma, beta = np.ones(channels), np.zeros(channels)
    x = _tile(rng, case)
    x *= along_channels(spread.astype(dtype), x, case.axis)
    x += along_channels(offset.astype(dtype), x, case.axis)
    if case.dtype == "uint8":
        np.clip(x, 0, 255, out=x)
    x = x.astype(dtype_of(case.dtype), copy=False)
    mean, inv_std = np.zeros(channels), np.ones(channels)
    grad_y: Array = np.empty(0, dtype)
    residual = _tile(rng, case).astype(x.dtype, copy=False) if case.has_residual else grad_y
    if case.base in ("backward", STEP):
        grad_y = _tile(rng, case)
    weights = _weights(rng, case)
    if case.weighting == "mask":
        x *= np.expand_dims(weights, case.axis)  # padded with zeros
    if case.base in ("backward", STEP):
        for block, values in _channel_blocks(x, case.axis):
            mean[block], var = _moments(weights, values)
            inv_std[block] = 1.0 / np.sqrt(var + EPS)
    return Problem(
        case=case,
        x=x,
        grad_y=grad_y,
        residual=residual,
        weights=weights,
        gamma=gamma.astype(params),
        beta=beta.astype(params),
        running_mean=running_mean.astype(params),
        running_var=running_var.astype(params),
        mean=mean,
        inv_std=inv_std,
    )


def along_channels(vector: Array, x: Array, axis: int) -> Array:
    """Return ``vector`` with the dimensions that let it broadcast along ``axis`` of ``x``."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return vector.reshape(shape)


def check_outputs(problem: Problem, outputs: dict[str, Array]) -> None:
    """Compare ``outputs`` with the formula.

    Raises
    ------
    WrongResultError
        If an output is missing, has another shape or data type, or other values.
    """
    case = problem.case
    expected_names: set[str] = set()
    for block, values in _channel_blocks(problem.x, case.axis):
        second = _take(problem.second, block, case.axis) if problem.second.size else None
        expected = _FORMULAS[case.base](problem, block, values, second)
        expected_names |= set(expected)
        for name, reference in expected.items():
            if name not in outputs:
                raise WrongResultError(f"{name} is missing")
            # Vectors are rounded to the data type of the parameters.
            limit = max(TOLERANCE[case.dtype], TOLERANCE[case.params] * (reference.ndim == 1))
            _compare(name, _take_like(outputs[name], problem, block, reference), reference, limit)
    if set(outputs) != expected_names:
        raise WrongResultError(f"outputs are {sorted(outputs)}, not {sorted(expected_names)}")


def _tile(rng: np.random.Generator, case: Case) -> Array:
    random = rng.standard_normal(RANDOM_VALUES).astype(case.computed)
    return np.resize(random, case.memory_shape)


def _weights(rng: np.random.Generator, case: Case) -> Array | Mask:
    """Return what counts: of each sequence a leading part, of images and tables any places."""
    shape = np.delete(case.memory_shape, case.axis)
    if not case.weighting:
        return np.empty(0)
    if case.weighting == "weights":
        weights: Array = rng.uniform(0.0, 1.0, shape).astype(case.computed)
        return weights
    if len(case.shape) == 3:
        lengths = shape[1] * rng.uniform(2 * COUNTED - 1, 1.0, (shape[0], 1))
        mask: Mask = np.arange(shape[1]) < lengths
    else:
        mask = rng.random(shape) < COUNTED
    mask.flat[:2] = True  # fewer have no variance to train with
    return mask


def _take(array: Array, block: slice, axis: int) -> Float64:
    """Return the channels ``block`` as float64 rows, one a channel."""
    part = np.moveaxis(array, axis, 0)[block]
    return part.reshape(part.shape[0], -1).astype(np.float64)


def _channel_blocks(x: Array, axis: int) -> Iterator[tuple[slice, Float64]]:
    """Yield groups of channels as float64 rows: whole arrays in float64 would not fit memory."""
    channels = x.shape[axis]
    # Where channels are interleaved, a block takes at least half a cache line of neighbours; with a whole
    # one, a check of a million rows took three times as long, as its memory was new each time.
    fewest = 1 if x.ndim > 2 and axis == 1 else 8
    step = max(fewest, BLOCK_VALUES * channels // x.size)
    for start in range(0, channels, step):
        block = slice(start, min(start + step, channels))
        yield block, _take(x, block, axis)


def _take_like(output: Array, problem: Problem, block: slice, reference: Float64) -> Float64:
    if reference.ndim == 1:
        if output.shape != (problem.case.channels,):
            raise WrongResultError(f"a vector of shape {output.shape}")
        return output[block].astype(np.float64)
    dtype = problem.result_dtype
    if output.shape != problem.x.shape or output.dtype != dtype:
        raise WrongResultError(f"{output.dtype} {output.shape} for {dtype} {problem.x.shape}")
    return _take(output, block, problem.case.axis)


def _compare(name: str, actual: Float64, reference: Float64, limit: float) -> None:
    error = float(np.max(np.abs(actual - reference)))
    scale = max(1.0, float(np.max(np.abs(reference))))
    # Written so that a NaN fails.
    if not error <= limit * scale:
        raise WrongResultError(f"{name} is off by {error:.3g}, values are up to {scale:.3g}")


def _column(vector: Array, block: slice) -> Float64:
    return vector[block].astype(np.float64)[:, None]


def _finish(p: Problem, block: slice, xhat: Float64, residual: Float64 | None) -> Float64:
    """Return ``activation(xhat * gamma + beta + residual)``."""
    y = xhat * _column(p.gamma, block) + _column(p.beta, block)
    return _ACTIVATIONS[p.case.activation](y if residual is None else y + residual)


def _infer(p: Problem, block: slice, x: Float64, residual: Float64 | None) -> dict[str, Float64]:
    """Return y with ``xhat = (x - running_mean) / sqrt(running_var + eps)``."""
    inv_std = 1.0 / np.sqrt(_column(p.running_var, block) + EPS)
    xhat = (x - _column(p.running_mean, block)) * inv_std
    return {"y": _finish(p, block, xhat, residual)}


def _moments(weights: Array | Mask, x: Float64) -> tuple[Float64, Float64]:
    """Return mean and variance of what counts."""
    if not weights.size:
        return x.mean(axis=1), x.var(axis=1)
    share = weights.ravel().astype(np.float64)
    share /= share.sum()
    mean = x @ share
    return mean, (x - mean[:, None]) ** 2 @ share


def _train(p: Problem, block: slice, x: Float64, residual: Float64 | None) -> dict[str, Float64]:
    """Return y with ``xhat = (x - mean) / sqrt(var + eps)``, moving averages after a step."""
    mean, var = _moments(p.weights, x)
    xhat = (x - mean[:, None]) / np.sqrt(var + EPS)[:, None]
    sample_var = var * (p.count / (p.count - 1))
    return {
        "y": _finish(p, block, xhat, residual),
        "running_mean": (1 - MOMENTUM) * p.running_mean[block] + MOMENTUM * mean,
        "running_var": (1 - MOMENTUM) * p.running_var[block] + MOMENTUM * sample_var,
    }


def _calibrate(p: Problem, _: slice, x: Float64, __: None) -> dict[str, Float64]:
    """Return what x, as all the data, makes the running statistics."""
    mean, var = _moments(p.weights, x)
    return {"running_mean": mean, "running_var": var * (p.count / (p.count - 1))}


def _collect(p: Problem, _: slice, x: Float64, __: None) -> dict[str, Float64]:
    """Return mean and variance of the batch."""
    mean, var = _moments(p.weights, x)
    return {"mean": mean, "var": var}


def _differentiate(p: Problem, block: slice, x: Float64, grad_y: Float64) -> dict[str, Float64]:
    """Return ``grad_x = gamma inv_std (grad_y - grad_beta / n - xhat grad_gamma / n)``.

    A masked value was in no statistics: its ``grad_x`` is ``gamma inv_std grad_y``. The sums are over all. With an
    activation, ``grad_y`` is first multiplied by its derivative.
    """
    inv_std = p.inv_std[block, None]
    xhat = (x - p.mean[block, None]) * inv_std
    if p.case.activation is not None:
        z = xhat * _column(p.gamma, block) + _column(p.beta, block)
        grad_y = grad_y * DERIVATIVES[p.case.activation](z)
    grad_beta, grad_gamma = grad_y.sum(axis=1), (grad_y * xhat).sum(axis=1)
    through_statistics = (grad_beta[:, None] + xhat * grad_gamma[:, None]) / p.count
    if p.weights.size:
        through_statistics *= p.weights.ravel()
    grad_x = _column(p.gamma, block) * inv_std * (grad_y - through_statistics)
    return {"grad_x": grad_x, "grad_gamma": grad_gamma, "grad_beta": grad_beta}


def _step(p: Problem, block: slice, x: Float64, grad_y: Float64) -> dict[str, Float64]:
    """Return what training returns, and its gradients."""
    return _train(p, block, x, None) | _differentiate(p, block, x, grad_y)


def _scales(x: Float64) -> tuple[Float64, Float64]:
    """Return mean and standard deviation, 1 of a constant feature, as columns."""
    std = x.std(axis=1, keepdims=True)
    return x.mean(axis=1, keepdims=True), np.where(std == 0, 1.0, std)


def _standardize(_: Problem, __: slice, x: Float64, ___: None) -> dict[str, Float64]:
    """Return ``(x - mean) / std``."""
    mean, std = _scales(x)
    return {"y": (x - mean) / std}


def _restore(_: Problem, __: slice, x: Float64, ___: None) -> dict[str, Float64]:
    """Return ``x * std + mean``."""
    mean, std = _scales(x)
    return {"y": x * std + mean}


_ACTIVATIONS: dict[str | None, Callable[[Float64], Float64]] = {
    None: lambda v: v,
    "relu": lambda v: np.maximum(v, 0.0),
    "hard_swish": lambda v: v * np.clip(v + 3.0, 0.0, 6.0) / 6.0,
    "silu": lambda v: v / (1.0 + np.exp(-v)),
    "mish": lambda v: v * np.tanh(np.log1p(np.exp(v))),
    "prelu": lambda v: np.where(v < 0, SLOPE * v, v),
}

DERIVATIVES: dict[str, Callable[[Array], Array]] = {
    "relu": lambda v: (v > 0).astype(v.dtype),
    "silu": lambda v: (1.0 + v / (1.0 + np.exp(v))) / (1.0 + np.exp(-v)),
}
"""Of the activations that are measured backward."""

_FORMULAS: dict[str, Callable[..., dict[str, Float64]]] = {
    "inference": _infer,
    "moments": _collect,
    "training": _train,
    "backward": _differentiate,
    STEP: _step,
    "calibrate": _calibrate,
    "from_batches": _collect,
    "fit": _collect,
    "partial_fit": _collect,
    "transform": _standardize,
    "fit_transform": _standardize,
    "inverse_transform": _restore,
}
