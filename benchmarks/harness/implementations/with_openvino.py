"""OpenVINO: a compiled model of a multiplication, an addition and what follows them."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import STORED, Case
from benchmarks.harness.implementations.base import (
    Implementation,
    Prepared,
    UnsupportedError,
    named_y,
    scale_and_shift,
)
from benchmarks.harness.problem import SLOPE, Array, Problem


class OpenVino(Implementation):
    """A request on the CPU; with ``out``, its tensors are the NumPy memory.

    The model is what ``batch_norm_inference`` becomes when it is compiled, on any axis.
    """

    name = "openvino"
    module = "openvino"
    dtypes = STORED
    has_fused = True

    def load(self, threads: int) -> None:
        """Import the library; a compiled model takes its threads from its properties."""
        super().load(threads)
        self._threads = threads

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        declined = super().declines(case) or self.declines_variant(case, "fresh", "out")
        if declined is None and case.dtype not in ("float32", "uint8"):
            return "OpenVINO computes in float32 on a CPU"
        return declined

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``request.infer``."""
        request, p = self._request(problem), problem
        given = [p.x, p.residual] if p.case.has_residual else [p.x]
        if p.case.variant == "fresh":
            infer = partial(request.infer, dict(enumerate(given)), share_inputs=True)
            return Prepared(infer, lambda found: named_y(found[0]))
        y = np.empty(p.x.shape, p.result_dtype)
        kept = (given, y)  # the tensors may not keep what they share alive
        for number, array in enumerate(given):
            request.set_input_tensor(number, self.library.Tensor(array, shared_memory=True))
        request.set_output_tensor(0, self.library.Tensor(y, shared_memory=True))

        def call() -> Array:
            request.infer(share_outputs=True)  # else the results would be copied once more
            return kept[1]

        return Prepared(call, named_y)

    def _request(self, problem: Problem) -> Any:
        ov = self.library
        operators = importlib.import_module("openvino.opset13")
        case = problem.case
        inputs = [operators.parameter(problem.x.shape, problem.x.dtype)]
        scale, shift = (operators.constant(v) for v in scale_and_shift(problem))
        x = operators.convert(inputs[0], "f32") if case.dtype == "uint8" else inputs[0]
        y = operators.add(operators.multiply(x, scale), shift)
        if case.has_residual:
            inputs.append(operators.parameter(problem.x.shape, problem.x.dtype))
            y = operators.add(y, inputs[1])
        if case.activation is not None:
            slopes = np.full_like(scale_and_shift(problem)[0], SLOPE)
            activate = {
                "relu": operators.relu,
                "hard_swish": operators.hswish,
                "silu": operators.swish,
                "mish": operators.mish,
                "prelu": lambda y: operators.prelu(y, operators.constant(slopes)),
            }
            y = activate[case.activation](y)
        properties = {
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        compiled = ov.Core().compile_model(ov.Model([y], inputs, "affine"), "CPU", properties)
        actual = int(compiled.get_property("INFERENCE_NUM_THREADS"))
        if actual != self._threads:
            raise UnsupportedError(f"OpenVINO takes {actual} threads, not {self._threads}")
        return compiled.create_infer_request()
