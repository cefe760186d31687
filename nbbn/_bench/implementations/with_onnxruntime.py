"""ONNX Runtime: a model of a BatchNormalization node and what follows it, built in memory."""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from typing import Any

import numpy as np

from nbbn._bench.cases import Case
from nbbn._bench.implementations.base import (
    Implementation,
    Prepared,
    named_training,
    named_y,
)
from nbbn._bench.problem import EPS, MOMENTUM, Array, Problem

_OPSET, _IR = 15, 8  # the last version of the operator, and the file format of its time
_PARAMETERS = ("gamma", "beta", "running_mean", "running_var")
_TRAINED = ("y", "new_mean", "new_var")

_Nodes = tuple[tuple[str, tuple[str, ...]], ...]
_STEPS: dict[tuple[str, ...], _Nodes] = {
    (): (),
    ("relu",): (("Relu", ()),),
    ("residual", "relu"): (("Add", ("residual",)), ("Relu", ())),
    ("hard_swish",): (("HardSwish", ()),),
}
"""The nodes that follow: their operators, and their inputs besides what came before."""


class OnnxRuntime(Implementation):
    """A session on the CPU; with ``out``, input and output are bound to the NumPy memory."""

    name = "onnxruntime"
    module = "onnxruntime"
    has_fused = True

    def missing(self) -> str | None:
        """Return what is not installed: onnx writes the model."""
        absent = [name for name in (self.module, "onnx") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else None

    def load(self, threads: int) -> None:
        """Import both libraries; a session takes its threads from its options."""
        super().load(threads)
        self._onnx = importlib.import_module("onnx")
        self._threads = threads

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
        n = p.x.size / p.case.channels
        kept = (1 - MOMENTUM) * p.running_var

        def outputs(found: Any) -> dict[str, Array]:
            y, mean, var = result(found)
            # ONNX averages the population's variance, the oracle the sample's.
            return named_training(y, mean, kept + (var - kept) * (n / (n - 1)))

        return Prepared(call, outputs)

    def _calls(self, problem: Problem, names: tuple[str, ...]) -> tuple[Any, Any]:
        """Return the call, and what makes the list of output arrays of its result."""
        session = self._session(problem, names)
        x, given = problem.x, _inputs(problem)
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

    def _session(self, problem: Problem, names: tuple[str, ...]) -> Any:
        options = self.library.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        return self.library.InferenceSession(
            self._model(problem, names).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )

    def _model(self, problem: Problem, names: tuple[str, ...]) -> Any:
        helper = importlib.import_module("onnx.helper")
        to_tensor = importlib.import_module("onnx.numpy_helper").from_array
        p = problem
        element = helper.np_dtype_to_tensor_dtype(p.x.dtype)
        steps = _STEPS[p.case.steps]
        between = [f"after_{number}" for number in range(len(steps))]
        values = [*between, names[0]]
        node = helper.make_node(
            "BatchNormalization",
            ["x", *_PARAMETERS],
            [values[0], *names[1:]],
            epsilon=EPS,
            momentum=1 - MOMENTUM,  # ONNX's is the weight of the old value
            training_mode=int(len(names) > 1),
        )
        following = [
            helper.make_node(kind, [before, *more], [after])
            for (kind, more), before, after in zip(steps, between, values[1:], strict=True)
        ]
        shapes = [p.x.shape, *[(p.case.channels,)] * (len(names) - 1)]
        graph = helper.make_graph(
            [node, *following],
            "batch_norm",
            [helper.make_tensor_value_info(name, element, p.x.shape) for name in _inputs(p)],
            [
                helper.make_tensor_value_info(name, element, shape)
                for name, shape in zip(names, shapes, strict=True)
            ],
            [to_tensor(getattr(p, name), name) for name in _PARAMETERS],
        )
        opset = helper.make_opsetid("", _OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=_IR)


def _inputs(problem: Problem) -> dict[str, Array]:
    """Return the inputs of the model."""
    found = {"x": problem.x}
    return found | {"residual": problem.residual} if problem.case.has_residual else found
