"""NumPy: what one writes without a library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import numpy as np

from benchmarks.harness.cases import DTYPES, STORED
from benchmarks.harness.implementations.base import (
    Implementation,
    Outputs,
    Prepared,
    input_and_out,
    named_backward,
    named_moments,
    named_population,
    named_training,
    named_y,
    reduced_axes,
    scale_and_shift,
)
from benchmarks.harness.problem import (
    DERIVATIVES,
    EPS,
    MOMENTUM,
    SLOPE,
    Array,
    Problem,
    along_channels,
)

Known = tuple[int, Array, Array]
"""Count, mean and sum of squared deviations of the data so far."""


class NumPy(Implementation):
    """Whole-array expressions in the data type of ``x``; half types and bytes become float32 first."""

    name = "numpy"
    module = "numpy"
    dtypes = STORED
    has_fused = True

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``x * scale + shift``, with scale and shift computed beforehand."""
        scale, shift = scale_and_shift(problem)
        x, out = input_and_out(problem)
        if problem.case.dtype not in DTYPES:
            return self._converted(problem, x, out)
        if problem.case.steps:
            return Prepared(lambda: _finish(problem, _affine(x, scale, shift, out)), named_y)
        if out is None:
            return Prepared(lambda: x * scale + shift, named_y)
        return Prepared(lambda: _affine(x, scale, shift, out), named_y)

    @staticmethod
    def _converted(problem: Problem, x: Array, out: Array | None) -> Prepared:
        """Convert, compute in place, and convert back where y is of a half type."""
        scale, shift = scale_and_shift(problem)

        def finish(wide: Array) -> Array:
            wide *= scale
            wide += shift
            return _finish(problem, wide)

        def infer() -> Array:
            y = finish(x.astype(scale.dtype))
            return y.astype(problem.result_dtype, copy=False)

        if out is None:
            return Prepared(infer, named_y)
        kept = out if out.dtype == scale.dtype else np.empty(x.shape, scale.dtype)

        def infer_into() -> Array:
            np.copyto(kept, x)
            finish(kept)
            if kept is not out:
                np.copyto(out, kept, casting="same_kind")
            return out

        return Prepared(infer_into, named_y)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``mean`` and ``var``, with weights ``average``."""
        return Prepared(_moments(problem), lambda pair: named_moments(*(v.ravel() for v in pair)))

    def prepare_training(self, problem: Problem) -> Prepared:
        """``mean``, ``var``, then as in inference, and the moving averages."""
        train, mean, var = _training(problem, MOMENTUM)
        return Prepared(train, lambda y: named_training(y, mean.ravel(), var.ravel()))

    def prepare_calibrate(self, problem: Problem) -> Prepared:
        """Training that remembers nothing of earlier batches."""
        train, mean, var = _training(problem, 1.0)
        return Prepared(train, lambda _: named_population(mean.ravel(), var.ravel()))

    def prepare_backward(self, problem: Problem) -> Prepared:
        """The gradients as they stand in the formula."""
        p = problem
        axes, n = reduced_axes(p), p.count
        counts = np.expand_dims(p.weights, p.case.axis) if p.case.weighting else None
        mean, inv_std, gamma, beta = (
            along_channels(v.astype(p.x.dtype), p.x, p.case.axis) for v in (p.mean, p.inv_std, p.gamma, p.beta)
        )
        x, out = input_and_out(p)
        xhat_out = None if out is None else np.empty_like(x)

        def differentiate() -> tuple[Array, Array, Array]:
            xhat = np.subtract(x, mean, out=xhat_out)
            xhat *= inv_std
            grad_y = p.grad_y
            if p.case.activation is not None:
                grad_y = DERIVATIVES[p.case.activation](xhat * gamma + beta)
                grad_y *= p.grad_y
            grad_beta = grad_y.sum(axes, keepdims=True)
            grad_gamma = np.multiply(grad_y, xhat, out=out).sum(axes, keepdims=True)
            xhat *= grad_gamma / n
            xhat += grad_beta / n
            if counts is not None:
                xhat *= counts
            grad_x = np.subtract(grad_y, xhat, out=out)
            grad_x *= gamma * inv_std
            return grad_x, grad_gamma.ravel(), grad_beta.ravel()

        return Prepared(differentiate, lambda grads: named_backward(*grads))

    def prepare_step(self, problem: Problem) -> Prepared:
        """Both of them."""
        forward, back = self.prepare_training(problem), self.prepare_backward(problem)
        return Prepared(
            lambda: (forward.call(), back.call()),
            lambda both: forward.outputs(both[0]) | back.outputs(both[1]),
        )

    prepare_weighted_moments = prepare_moments
    prepare_weighted_training = prepare_training
    prepare_weighted_backward = prepare_backward

    def prepare_from_batches(self, problem: Problem) -> Prepared:
        """As `prepare_partial_fit`, from piece to piece."""
        return Prepared(partial(reduce, _merged, problem.pieces, None), _named_merged)

    def prepare_fit(self, problem: Problem) -> Prepared:
        """``mean`` and ``std``."""
        x = problem.x
        return Prepared(
            lambda: (x.mean(axis=0), x.std(axis=0)),
            lambda pair: named_moments(pair[0], pair[1] ** 2),
        )

    def prepare_partial_fit(self, problem: Problem) -> Prepared:
        """``mean`` and ``var``, merged with those of what came before (Chan's formula)."""
        x = problem.x
        known = _merged(None, x)

        def learn() -> Known:
            nonlocal known
            known = _merged(known, x)
            return known

        return Prepared(learn, _named_merged)

    def prepare_transform(self, problem: Problem) -> Prepared:
        """``(x - mean) / std``, both computed beforehand."""
        x = problem.x
        mean, std = _mean_and_std(x)
        return Prepared(lambda: (x - mean) / std, named_y)

    def prepare_inverse_transform(self, problem: Problem) -> Prepared:
        """``x * std + mean``, both computed beforehand."""
        x = problem.x
        mean, std = _mean_and_std(x)
        return Prepared(lambda: x * std + mean, named_y)

    def prepare_fit_transform(self, problem: Problem) -> Prepared:
        """``mean``, ``std``, then as in transform."""
        x = problem.x

        def standardize() -> Array:
            mean, std = _mean_and_std(x)
            y: Array = (x - mean) / std
            return y

        return Prepared(standardize, named_y)


def _moments(problem: Problem) -> Callable[[], tuple[Array, Array]]:
    """Return what computes mean and variance of what counts, fit to broadcast with x."""
    p = problem
    if p.case.weighting == "mask":
        return lambda: _packed_moments(p)
    if p.case.weighting:
        return _averages(p)
    x, axes = p.x, reduced_axes(p)
    return lambda: (x.mean(axes, keepdims=True), x.var(axes, keepdims=True))


def _packed_moments(p: Problem) -> tuple[Array, Array]:
    # mean(where=) and var(where=) were seen to take two to seven times as long.
    counted = np.moveaxis(p.x, p.case.axis, -1)[p.weights]
    mean, var = counted.mean(axis=0), counted.var(axis=0)
    return along_channels(mean, p.x, p.case.axis), along_channels(var, p.x, p.case.axis)


def _averages(p: Problem) -> Callable[[], tuple[Array, Array]]:
    x, axes = p.x, reduced_axes(p)
    weights: Any = np.broadcast_to(np.expand_dims(p.weights, p.case.axis), x.shape)
    if p.case.is_matrix:  # a weight a row: a third less time
        x, axes, weights = x.reshape(-1, p.case.channels), (0,), p.weights.ravel()

    def average() -> tuple[Array, Array]:
        mean = np.average(x, axes, weights, keepdims=True)
        return mean, np.average((x - mean) ** 2, axes, weights, keepdims=True)

    return average


def _training(problem: Problem, momentum: float) -> tuple[Callable[[], Array], Array, Array]:
    """Return a step of training, and the running statistics that it moves."""
    p = problem
    gamma, beta, mean_, var_ = (
        along_channels(v.copy(), p.x, p.case.axis) for v in (p.gamma, p.beta, p.running_mean, p.running_var)
    )
    moments, dtype = _moments(p), p.x.dtype
    unbias = p.count / (p.count - 1)
    x, out = input_and_out(p)

    def train() -> Array:
        mean, var = moments()
        scale = (gamma / np.sqrt(var + EPS)).astype(dtype, copy=False)
        shift = (beta - mean * scale).astype(dtype, copy=False)
        mean_[...] = (1 - momentum) * mean_ + momentum * mean
        var_[...] = (1 - momentum) * var_ + momentum * unbias * var
        y: Array = x * scale + shift if out is None else _affine(x, scale, shift, out)
        return _finish(p, y)

    return train, mean_, var_


def _merged(known: Known | None, x: Array) -> Known:
    count = x.shape[0]
    mean, m2 = x.mean(axis=0), x.var(axis=0) * count
    if known is None:
        return count, mean, m2
    total, delta = known[0] + count, mean - known[1]
    return (
        total,
        known[1] + delta * (count / total),
        known[2] + m2 + delta**2 * (known[0] * count / total),
    )


def _named_merged(known: Known) -> Outputs:
    count, mean, m2 = known
    return named_moments(mean, m2 / count)


def _mean_and_std(x: Array) -> tuple[Array, Array]:
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std == 0] = 1
    return mean, std


def _affine(x: Array, scale: Array, shift: Array, out: Array | None) -> Array:
    y: Array = np.multiply(x, scale, out=out)
    y += shift
    return y


def _finish(problem: Problem, y: Array) -> Array:
    """Add the residual and apply the activation, in place."""
    case = problem.case
    if case.has_residual:
        y += problem.residual
    if case.activation == "relu":
        np.maximum(y, 0, out=y)
    elif case.activation == "hard_swish":
        part = y + y.dtype.type(3.0)
        np.clip(part, 0, 6, out=part)
        part *= y.dtype.type(1 / 6)
        y *= part
    elif case.activation == "silu":
        part = np.exp(-y)
        part += 1
        y /= part
    elif case.activation == "mish":
        part = np.exp(y)
        np.tanh(np.log1p(part, out=part), out=part)
        y *= part
    elif case.activation == "prelu":
        part = np.minimum(y, 0)
        part *= y.dtype.type(1 - SLOPE)
        y -= part
    return y
