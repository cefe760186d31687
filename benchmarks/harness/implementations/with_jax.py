"""JAX: one jitted function an operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import STORED
from benchmarks.harness.implementations.base import (
    Implementation,
    Prepared,
    named_backward,
    named_moments,
    named_training,
    named_y,
    reduced_axes,
    scale_and_shift,
)
from benchmarks.harness.problem import EPS, MOMENTUM, SLOPE, Array, Problem, along_channels


class Jax(Implementation):
    """Arrays that live on the device; a call waits until its results are there.

    A JAX array is never written to. With ``out`` the last results, with ``inplace`` x itself are
    donated instead: the new ones take their memory.
    """

    name = "jax"
    module = "jax"
    dtypes = STORED
    has_fused = True

    def load(self, threads: int) -> None:
        """Import jax, which makes as many threads as the process may use cores."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        os.environ["PJRT_NPROC"] = str(threads)
        super().load(threads)
        self.library.config.update("jax_enable_x64", True)
        self.library.config.update("jax_platforms", "cpu")

    def _on_device(self, *arrays: Any) -> tuple[Any, ...]:
        return tuple(self.library.device_put(array) for array in arrays)

    def _call(self, problem: Problem, function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        """Return the jitted call that waits for its result."""
        jax, variant = self.library, problem.case.variant
        wait = jax.block_until_ready
        if variant == "fresh":
            compiled = jax.jit(function)
            return lambda: wait(compiled(*arguments))
        if variant == "inplace":
            return self._over_input(function, *arguments)

        def reusing(_: Any, *arguments: Any) -> Any:
            return function(*arguments)

        compiled = jax.jit(reusing, donate_argnums=0, keep_unused=True)
        last = jax.jit(function)(*arguments)

        def call() -> Any:
            nonlocal last
            last = wait(compiled(last, *arguments))
            return last

        return call

    def _over_input(self, function: Callable[..., Any], x: Any, *others: Any) -> Callable[[], Any]:
        compiled = self.library.jit(function, donate_argnums=0)
        wait = self.library.block_until_ready
        last = self.library.numpy.array(x)  # a copy: device_put may share the NumPy memory

        def call() -> Any:
            nonlocal last
            last = wait(compiled(last, *others))
            return last

        return call

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``x * scale + shift``, with scale and shift computed beforehand."""
        p = problem

        def infer(x: Any, scale: Any, shift: Any, *residual: Any) -> Any:
            # Both are of the data type that is computed with.
            return self._finish(p, x.astype(scale.dtype) * scale + shift, *residual)

        call = self._call(p, infer, *self._on_device(p.x, *scale_and_shift(p), *_residual(p)))
        return Prepared(call, lambda y: named_y(np.asarray(y)))

    def _finish(self, problem: Problem, y: Any, *residual: Any) -> Any:
        """Add the residual, apply the activation, round to the data type of the result."""
        for array in residual:
            y = y + array.astype(y.dtype)
        return self._activated(problem, y).astype(problem.result_dtype)

    def _activated(self, problem: Problem, y: Any) -> Any:
        nn, activation = self.library.nn, problem.case.activation
        if activation == "prelu":
            return nn.leaky_relu(y, SLOPE)
        return y if activation is None else getattr(nn, activation)(y)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """The mean, and the mean of the squares less its square."""
        axes = reduced_axes(problem)
        call = self._call(problem, lambda x: _moments(x, axes), *self._on_device(problem.x))
        return Prepared(call, lambda pair: named_moments(*(np.asarray(v).ravel() for v in pair)))

    def prepare_training(self, problem: Problem) -> Prepared:
        """Return y and the new running statistics."""
        p, jnp = problem, self.library.numpy
        axes, dtype = reduced_axes(p), p.x.dtype
        n = p.x.size / p.case.channels
        unbias = n / (n - 1)

        def train(x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any) -> Any:
            mean, var = _moments(x, axes)
            scale = (gamma / jnp.sqrt(var + EPS)).astype(dtype)
            y = self._finish(p, (x - mean) * scale + beta.astype(dtype))
            new_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
            return y, new_mean, (1 - MOMENTUM) * running_var + MOMENTUM * unbias * var

        vectors = (p.gamma, p.beta, p.running_mean, p.running_var)
        columns = (along_channels(v, p.x, p.case.axis) for v in vectors)
        call = self._call(p, train, *self._on_device(p.x, *columns))
        return Prepared(
            call,
            lambda found: named_training(np.asarray(found[0]), *(np.asarray(v).ravel() for v in found[1:])),
        )

    def prepare_backward(self, problem: Problem) -> Prepared:
        """The closed formula."""
        p = problem
        axes, n = reduced_axes(p), p.x.size // p.case.channels

        def differentiate(x: Any, grad_y: Any, mean: Any, inv_std: Any, gamma: Any, beta: Any) -> Any:
            xhat = (x - mean) * inv_std
            through = self.library.vjp(partial(self._activated, p), xhat * gamma + beta)[1]
            (grad_y,) = through(grad_y)
            grad_beta = grad_y.sum(axes, keepdims=True)
            grad_gamma = (grad_y * xhat).sum(axes, keepdims=True)
            inner = grad_y - grad_beta / n - xhat * (grad_gamma / n)
            return gamma * inv_std * inner, grad_gamma, grad_beta

        vectors = (v.astype(p.x.dtype) for v in (p.mean, p.inv_std, p.gamma, p.beta))
        columns = (along_channels(v, p.x, p.case.axis) for v in vectors)
        call = self._call(p, differentiate, *self._on_device(p.x, p.grad_y, *columns))
        return Prepared(
            call,
            lambda grads: named_backward(np.asarray(grads[0]), *(np.asarray(v).ravel() for v in grads[1:])),
        )


def _residual(problem: Problem) -> tuple[Array, ...]:
    return (problem.residual,) if problem.case.has_residual else ()


def _moments(x: Any, axes: tuple[int, ...]) -> tuple[Any, Any]:
    """Both sums in one loop, as Flax computes them: faster here than ``var``, and less exact."""
    mean = x.mean(axes, keepdims=True)
    return mean, (x * x).mean(axes, keepdims=True) - mean * mean
