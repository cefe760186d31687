"""ONNX Runtime: a model of a BatchNormalization node and what follows it, built in memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import Case
from benchmarks.harness.implementations.base import (
    Implementation,
    Prepared,
    named_training,
    named_y,
)
from benchmarks.harness.problem import SLOPE, Array, Problem
from nbbn._bench import libraries

_TRAINED = ("y", "new_mean", "new_var")

_STEPS: dict[tuple[str, ...], str] = {
    (): "",
    ("relu",): "y = Relu(v)",
    ("residual", "relu"): "sum = Add(v, residual) y = Relu(sum)",
    ("hard_swish",): "y = HardSwish(v)",
    ("silu",): "part = Sigmoid(v) y = Mul(v, part)",
    ("mish",): "soft = Softplus(v) part = Tanh(soft) y = Mul(v, part)",
    ("prelu",): f"number = Constant <value_float = {SLOPE}> () slope = CastLike(number, v) y = PRelu(v, slope)",
}
"""The nodes that follow, which make y of what is v."""


class OnnxRuntime(Implementation, libraries.OnnxRuntime):
    """A session on the CPU; with ``out``, input and output are bound to the NumPy memory."""

    has_fused = True

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        declined = super().declines(case) or self.declines_variant(case, "fresh", "out")
        if declined is None and case.axis != 1:
            return "BatchNormalization of ONNX has its channels on axis 1"
        return declined or self.declines_params(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``session.run``, or ``run_with_iobinding``."""
        call, result = self._calls(problem, ("y",))
        return Prepared(call, lambda found: named_y(*result(found)))

    def prepare_training(self, problem: Problem) -> Prepared:
        """The same with ``training_mode=1``: y and the new running statistics are its outputs."""
        p = problem
        call, result = self._calls(p, _TRAINED)

        def outputs(found: Any) -> dict[str, Array]:
            y, mean, var = result(found)
            return named_training(y, mean, libraries.sample_var(p, var))

        return Prepared(call, outputs)

    def _calls(self, problem: Problem, names: tuple[str, ...]) -> tuple[Any, Any]:
        """Return the call, and what makes the list of output arrays of its result."""
        x, given = problem.x, _inputs(problem)
        session = self.session(problem, given, names, _STEPS[problem.case.steps])
        if problem.case.variant == "fresh":
            return partial(session.run, None, given), list
        shapes = [x.shape, *[(problem.case.channels,)] * (len(names) - 1)]
        arrays = [np.empty(shape, x.dtype) for shape in shapes]
        binding, kept = session.io_binding(), (given, arrays)
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        for name, array in zip(names, arrays, strict=True):
            pointer = array.ctypes.data
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, pointer)

        def call() -> list[Array]:
            session.run_with_iobinding(binding)
            return kept[1]  # the binding itself keeps no array alive

        return call, list


def _inputs(problem: Problem) -> dict[str, Array]:
    """Return the inputs of the model."""
    found = {"x": problem.x}
    return found | {"residual": problem.residual} if problem.case.has_residual else found
