"""What an implementation is, and what they share."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np

from benchmarks.harness.cases import DTYPES, Case
from benchmarks.harness.problem import (
    EPS,
    Array,
    Problem,
    along_channels,
    check_outputs,
    make_problem,
)
from nbbn._bench import libraries
from nbbn._bench.libraries import Prepared

Outputs = dict[str, Array]


SMALL_CALL = 1 << 16  # values: beyond, the call itself is lost in the noise of the loop


class UnsupportedError(NotImplementedError):
    """The implementation cannot do this case; the message says why."""


class Implementation(libraries.Implementation, ABC):
    """Something that can be measured: a method ``prepare_OPERATION`` for each that it has.

    A fused operation is prepared by the method of its base, where ``has_fused`` says that it heeds
    the case's activation and residual; one with a mask or weights by ``prepare_weighted_OPERATION``.
    `Prepared.outputs` names the arrays, in the memory layout of the problem.
    """

    is_yardstick: ClassVar[bool] = False
    """Whether it shows what the machine allows, and is nothing to be ahead of."""
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    """The data types of x that it takes."""
    has_fused: ClassVar[bool] = False

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case, or None; asked before it is loaded."""
        if not hasattr(self, f"prepare_{case.method}") or (case.steps and not self.has_fused):
            return f"{self.name} has no {case.operation}"
        if case.dtype not in self.dtypes:
            return f"{self.name} is not measured on {case.dtype}"
        if case.dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
            return "ml_dtypes, which has bfloat16, is not installed"
        return None

    def ready(self, fields: dict[str, Any]) -> Prepared:
        """Return the call of the case whose fields these are, its first result checked."""
        problem = make_problem(Case.from_dict(fields))
        prepared = self.prepare(problem)
        self.verify(problem, prepared, prepared.call())
        return prepared

    def prepare(self, problem: Problem) -> Prepared:
        """Return the call for ``problem``, whose case it does not decline.

        Raises
        ------
        UnsupportedError
            If the library turns out to be unable.
        """
        prepared: Prepared = getattr(self, f"prepare_{problem.case.method}")(problem)
        return prepared

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Raise `WrongResultError` if ``result`` of the first call is not what it has to be."""
        check_outputs(problem, prepared.outputs(result))

    def declines_variant(self, case: Case, *variants: str) -> str | None:
        """Return a reason unless the case's variant is one of these."""
        if case.variant in variants:
            return None
        return f"{self.name} has no {case.variant} for {case.operation}"

    def declines_params(self, case: Case) -> str | None:
        """Return a reason unless the parameters have the data type that x is computed with."""
        if case.params == case.computed:
            return None
        return f"{self.name} takes parameters of the data type of x only"


class OfScaler(ABC):
    """The operations of an estimator that standardizes."""

    @abstractmethod
    def scaler(self, problem: Problem) -> Any:
        """Return one that knows no data yet."""

    def prepare_fit(self, problem: Problem) -> Prepared:
        """``scaler.fit(x)``, which starts anew."""
        call = partial(self.scaler(problem).fit, problem.x)
        return Prepared(call, lambda scaler: named_moments(scaler.mean_, scaler.var_))

    def prepare_partial_fit(self, problem: Problem) -> Prepared:
        """``scaler.partial_fit(x)`` after the same."""
        call = partial(self.scaler(problem).fit(problem.x).partial_fit, problem.x)
        return Prepared(call, lambda scaler: named_moments(scaler.mean_, scaler.var_))

    def prepare_transform(self, problem: Problem) -> Prepared:
        """``scaler.transform(x)`` after ``scaler.fit(x)``."""
        return Prepared(partial(self.scaler(problem).fit(problem.x).transform, problem.x), named_y)

    def prepare_inverse_transform(self, problem: Problem) -> Prepared:
        """``scaler.inverse_transform(x)`` after ``scaler.fit(x)``."""
        scaler = self.scaler(problem).fit(problem.x)
        return Prepared(partial(scaler.inverse_transform, problem.x), named_y)

    def prepare_fit_transform(self, problem: Problem) -> Prepared:
        """``scaler.fit_transform(x)``."""
        return Prepared(partial(self.scaler(problem).fit_transform, problem.x), named_y)


def input_and_out(problem: Problem) -> tuple[Array, Array | None]:
    """Return what the case reads, x or a copy to write over, and what it writes, if given."""
    x, variant = problem.x, problem.case.variant
    if variant == "inplace":
        x = x.copy()
        return x, x
    return x, np.empty(x.shape, problem.result_dtype) if variant == "out" else None


def with_out(function: Callable[..., Any], out: Array | None, *args: Any) -> Callable[[], Any]:
    """Bind ``args``, and ``out=`` in the variants that are given one."""
    return partial(function, *args) if out is None else partial(function, *args, out=out)


def reduced_axes(problem: Problem) -> tuple[int, ...]:
    """Return the axes that statistics are taken over."""
    channel_axis = problem.case.axis % problem.x.ndim
    return tuple(axis for axis in range(problem.x.ndim) if axis != channel_axis)


def scale_and_shift(problem: Problem) -> tuple[Array, Array]:
    """Return the two factors of inference, in what x is computed with, shaped to broadcast with it."""
    p = problem
    scale = p.gamma / np.sqrt(p.running_var.astype(np.float64) + EPS)
    shift = p.beta - p.running_mean * scale
    factors = (v.astype(p.case.computed) for v in (scale, shift))
    first, second = (along_channels(v, p.x, p.case.axis) for v in factors)
    return first, second


def named_y(y: Array) -> Outputs:
    """Name the result of inference."""
    return {"y": y}


def named_moments(mean: Array, var: Array) -> Outputs:
    """Name the results of moments."""
    return {"mean": mean, "var": var}


def named_training(y: Array, running_mean: Array, running_var: Array) -> Outputs:
    """Name the results of training."""
    return {"y": y, "running_mean": running_mean, "running_var": running_var}


def named_population(running_mean: Array, running_var: Array) -> Outputs:
    """Name the results of calibrate."""
    return {"running_mean": running_mean, "running_var": running_var}


def named_backward(grad_x: Array, grad_gamma: Array, grad_beta: Array) -> Outputs:
    """Name the results of backward."""
    return {"grad_x": grad_x, "grad_gamma": grad_gamma, "grad_beta": grad_beta}
