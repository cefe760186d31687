"""The package itself."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import STATISTICS, STORED, Case
from benchmarks.harness.implementations.base import (
    SMALL_CALL,
    Implementation,
    OfScaler,
    Prepared,
    input_and_out,
    named_backward,
    named_moments,
    named_population,
    named_training,
    named_y,
    with_out,
)
from benchmarks.harness.problem import EPS, Array, Mask, Problem
from nbbn._bench import libraries


class Nbbn(OfScaler, Implementation, libraries.Nbbn):
    """The layer, the functions for moments and backward, and `nbbn.Standardizer`."""

    dtypes = STORED
    has_fused = True

    def _layer(self, problem: Problem) -> Any:
        case, dtype = problem.case, problem.gamma.dtype
        return self.layer(problem, axis=case.axis, dtype=dtype, activation=case.activation)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``layer(x)`` after ``layer.eval()``; for bytes ``normalize``."""
        p = problem
        x, out = input_and_out(p)
        if p.case.dtype == "uint8":
            normalize = partial(self.library.normalize, eps=EPS, axis=p.case.axis, dtype=p.result_dtype)
            return Prepared(with_out(normalize, out, x, p.running_mean, p.running_var), named_y)
        infer = partial(self._layer(p).eval(), **_options(p))
        return Prepared(with_out(infer, out, x), named_y)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``batch_moments``."""
        p = problem
        call = partial(self.library.batch_moments, p.x, axis=p.case.axis, **_options(p))
        return Prepared(call, lambda moments: named_moments(moments.mean, moments.var()))

    def prepare_training(self, problem: Problem) -> Prepared:
        """``layer(x)``."""
        layer = self._layer(problem).train()
        x, out = input_and_out(problem)
        return Prepared(
            with_out(partial(layer, **_options(problem)), out, x),
            lambda y: named_training(y, layer.running_mean, layer.running_var),
        )

    def prepare_backward(self, problem: Problem) -> Prepared:
        """``batch_norm_backward`` on the batch's statistics; through an activation ``layer.backward``."""
        p = problem
        x, out = input_and_out(p)
        if p.case.activation is not None:
            layer = self._layer(p).train()
            layer(x)
            return Prepared(
                with_out(layer.backward, out, p.grad_y),
                lambda grad_x: named_backward(grad_x, layer.grad_gamma, layer.grad_beta),
            )
        function = partial(self.library.batch_norm_backward, axis=p.case.axis, **_options(p))
        call = with_out(function, out, p.grad_y, x, p.mean, p.inv_std, p.gamma)
        return Prepared(call, lambda grads: named_backward(*grads))

    def prepare_step(self, problem: Problem) -> Prepared:
        """``layer(x)``, then ``layer.backward(grad_y)``."""
        layer, x, grad_y = self._layer(problem).train(), problem.x, problem.grad_y

        def call() -> tuple[Array, Array]:
            return layer(x), layer.backward(grad_y)

        def outputs(both: tuple[Array, Array]) -> dict[str, Array]:
            gradients = named_backward(both[1], layer.grad_gamma, layer.grad_beta)
            return named_training(both[0], layer.running_mean, layer.running_var) | gradients

        return Prepared(call, outputs)

    prepare_weighted_moments = prepare_moments
    prepare_weighted_training = prepare_training
    prepare_weighted_backward = prepare_backward

    def prepare_calibrate(self, problem: Problem) -> Prepared:
        """``layer(x)`` inside ``calibrate(layer)``."""
        layer, x = self._layer(problem).train(), problem.x
        calibrate = self.library.calibrate

        def call() -> None:
            with calibrate(layer):
                layer(x)

        return Prepared(call, lambda _: named_population(layer.running_mean, layer.running_var))

    def prepare_from_batches(self, problem: Problem) -> Prepared:
        """``Moments.from_batches``."""
        call = partial(self.library.Moments.from_batches, problem.pieces)
        return Prepared(call, lambda moments: named_moments(moments.mean, moments.var()))

    def scaler(self, problem: Problem) -> Any:
        """A `Standardizer`."""
        return self.library.Standardizer(axis=problem.case.axis)


class Plain(Nbbn):
    """nbbn without mask or weights, calibration or pieces: what these cost is the rest."""

    name = "plain"
    is_yardstick = True

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if case.operation not in STATISTICS:
            return f"{case.operation} is plain"
        return super().declines(case)

    def prepare(self, problem: Problem) -> Prepared:
        """The operation that `STATISTICS` names, on the same x."""
        return super().prepare(_unadorned(problem))

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Compare with the formula of that operation."""
        super().verify(_unadorned(problem), prepared, result)


class Frozen(Nbbn):
    """The layer as a service calls it: `BatchNorm.freeze`, in small calls, where the way to the kernel counts."""

    name = "frozen"
    is_yardstick = True

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if case.operation != "inference" or not case.is_matrix or math.prod(case.shape) > SMALL_CALL:
            return f"frozen is for inference on (N, C) of up to {SMALL_CALL} values"
        return super().declines(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``layer.freeze()(x)``."""
        x, out = input_and_out(problem)
        return Prepared(with_out(self._layer(problem).freeze(), out, x), named_y)


def _unadorned(problem: Problem) -> Problem:
    case = replace(problem.case, operation=STATISTICS[problem.case.operation])
    return replace(problem, case=case, weights=np.empty(0))


def _options(problem: Problem) -> dict[str, Array | Mask]:
    """Return the arrays besides x that the operation is given by name."""
    case = problem.case
    named: dict[str, Array | Mask] = {case.weighting: problem.weights} if case.weighting else {}
    return named | ({"residual": problem.residual} if case.has_residual else {})
