"""NumPy: what one writes without a library."""

from __future__ import annotations

import numpy as np

from nbbn._bench.cases import DTYPES, STORED
from nbbn._bench.implementations.base import (
    Implementation,
    Prepared,
    input_and_out,
    named_backward,
    named_moments,
    named_training,
    named_y,
    reduced_axes,
    scale_and_shift,
)
from nbbn._bench.problem import EPS, MOMENTUM, Array, Problem, along_channels


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
        """``mean`` and ``var``."""
        x, axes = problem.x, reduced_axes(problem)
        return Prepared(lambda: (x.mean(axes), x.var(axes)), lambda pair: named_moments(*pair))

    def prepare_training(self, problem: Problem) -> Prepared:
        """``mean``, ``var``, then as in inference, and the moving averages."""
        p = problem
        gamma, beta = (along_channels(v, p.x, p.case.axis) for v in (p.gamma, p.beta))
        mean_, var_ = (
            along_channels(v.copy(), p.x, p.case.axis) for v in (p.running_mean, p.running_var)
        )
        axes, dtype = reduced_axes(p), p.x.dtype
        unbias = p.x.size / p.case.channels / (p.x.size / p.case.channels - 1)
        x, out = input_and_out(p)

        def train() -> Array:
            mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
            scale = (gamma / np.sqrt(var + EPS)).astype(dtype, copy=False)
            shift = (beta - mean * scale).astype(dtype, copy=False)
            mean_[...] = (1 - MOMENTUM) * mean_ + MOMENTUM * mean
            var_[...] = (1 - MOMENTUM) * var_ + MOMENTUM * unbias * var
            y: Array = x * scale + shift if out is None else _affine(x, scale, shift, out)
            return _finish(p, y)

        return Prepared(train, lambda y: named_training(y, mean_.ravel(), var_.ravel()))

    def prepare_backward(self, problem: Problem) -> Prepared:
        """The gradients as they stand in the formula."""
        p = problem
        grad_y, axes, n = p.grad_y, reduced_axes(p), p.x.size // p.case.channels
        mean, inv_std, gamma = (
            along_channels(v.astype(p.x.dtype), p.x, p.case.axis)
            for v in (p.mean, p.inv_std, p.gamma)
        )
        x, out = input_and_out(p)
        xhat_out = None if out is None else np.empty_like(x)

        def differentiate() -> tuple[Array, Array, Array]:
            xhat = np.subtract(x, mean, out=xhat_out)
            xhat *= inv_std
            grad_beta = grad_y.sum(axes, keepdims=True)
            grad_gamma = np.multiply(grad_y, xhat, out=out).sum(axes, keepdims=True)
            xhat *= grad_gamma / n
            grad_x = np.subtract(grad_y, xhat, out=out)
            grad_x -= grad_beta / n
            grad_x *= gamma * inv_std
            return grad_x, grad_gamma.ravel(), grad_beta.ravel()

        return Prepared(differentiate, lambda grads: named_backward(*grads))

    def prepare_fit(self, problem: Problem) -> Prepared:
        """``mean`` and ``std``."""
        x = problem.x
        return Prepared(
            lambda: (x.mean(axis=0), x.std(axis=0)),
            lambda pair: named_moments(pair[0], pair[1] ** 2),
        )

    def prepare_partial_fit(self, problem: Problem) -> Prepared:
        """``mean`` and ``var``, merged with those of what came before (Chan's formula)."""
        x, count = problem.x, problem.x.shape[0]
        known = [count, x.mean(axis=0), x.var(axis=0) * count]

        def learn() -> None:
            mean, m2 = x.mean(axis=0), x.var(axis=0) * count
            total, delta = known[0] + count, mean - known[1]
            known[1] = known[1] + delta * (count / total)
            known[2] = known[2] + m2 + delta**2 * (known[0] * count / total)
            known[0] = total

        return Prepared(learn, lambda _: named_moments(known[1], known[2] / known[0]))

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
    return y
