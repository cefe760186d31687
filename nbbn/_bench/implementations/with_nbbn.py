"""The package itself."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from nbbn._bench.cases import STORED
from nbbn._bench.implementations.base import (
    Implementation,
    OfScaler,
    Prepared,
    input_and_out,
    named_backward,
    named_moments,
    named_training,
    named_y,
    with_out,
)
from nbbn._bench.problem import EPS, MOMENTUM, Problem


class Nbbn(OfScaler, Implementation):
    """The layer, the functions for moments and backward, and `nbbn.Standardizer`."""

    name = "nbbn"
    module = "nbbn"
    dtypes = STORED
    has_fused = True

    def load(self, threads: int) -> None:
        """Import nbbn, and keep it from asking how many cores there are."""
        super().load(threads)
        self.library.set_num_threads(threads)

    def versions(self) -> dict[str, str]:
        """Return the versions of nbbn and its compiler."""
        compiler: dict[str, str] = importlib.import_module("nbbn._jit").versions()
        return super().versions() | compiler

    def threads(self) -> int | None:
        """Return the number that nbbn does not exceed."""
        return int(self.library.get_num_threads())

    def _layer(self, problem: Problem) -> Any:
        case = problem.case
        layer = self.library.BatchNorm(
            case.channels,
            axis=case.axis,
            eps=EPS,
            momentum=MOMENTUM,
            dtype=problem.gamma.dtype,
            activation=case.activation,
        )
        layer.gamma[...], layer.beta[...] = problem.gamma, problem.beta
        layer.running_mean[...] = problem.running_mean
        layer.running_var[...] = problem.running_var
        return layer

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``layer(x)`` after ``layer.eval()``; for bytes ``normalize``."""
        p = problem
        x, out = input_and_out(p)
        if p.case.dtype == "uint8":
            normalize = partial(
                self.library.normalize, eps=EPS, axis=p.case.axis, dtype=p.result_dtype
            )
            return Prepared(with_out(normalize, out, x, p.running_mean, p.running_var), named_y)
        return Prepared(with_out(self._with_residual(p, self._layer(p).eval()), out, x), named_y)

    @staticmethod
    def _with_residual(problem: Problem, layer: Any) -> Any:
        return partial(layer, residual=problem.residual) if problem.case.has_residual else layer

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``batch_moments``."""
        call = partial(self.library.batch_moments, problem.x, axis=problem.case.axis)
        return Prepared(call, lambda moments: named_moments(moments.mean, moments.var()))

    def prepare_training(self, problem: Problem) -> Prepared:
        """``layer(x)``."""
        layer = self._layer(problem).train()
        x, out = input_and_out(problem)
        return Prepared(
            with_out(self._with_residual(problem, layer), out, x),
            lambda y: named_training(y, layer.running_mean, layer.running_var),
        )

    def prepare_backward(self, problem: Problem) -> Prepared:
        """``batch_norm_backward`` on the batch's statistics."""
        p = problem
        x, out = input_and_out(p)
        function = partial(self.library.batch_norm_backward, axis=p.case.axis)
        call = with_out(function, out, p.grad_y, x, p.mean, p.inv_std, p.gamma)
        return Prepared(call, lambda grads: named_backward(*grads))

    def scaler(self, problem: Problem) -> Any:
        """A `Standardizer`."""
        return self.library.Standardizer(axis=problem.case.axis)
