"""The registry: what an implementation is; nbbn, the libraries beside it, and how each does an operation."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from nbbn._bench.problem import EPS, MOMENTUM, Array, Case, Problem, check_outputs, formula, make_problem, stack
from nbbn._bench.timer import fastest, ways


@dataclass(frozen=True)
class Prepared:
    """A case ready to be timed; of what ``call`` returns, ``outputs`` are the arrays that have to be right, if any."""

    call: Callable[[], Any]
    outputs: Callable[[Any], Any] | None = lambda result: result if isinstance(result, tuple | list) else (result,)
    note: str = ""  # which of several ways was chosen


class Implementation:
    """Something that can be measured: a method ``prepare_OPERATION`` for each that it has."""

    name: ClassVar[str]
    module: ClassVar[str]

    def missing(self) -> str | None:
        """Return why it cannot be measured here, or None."""
        return None if importlib.util.find_spec(self.module) else f"{self.module} is not installed"

    def load(self, threads: int) -> None:
        """Import the library, in a process of its own whose environment says the thread count; tell it, too."""
        self.library = importlib.import_module(self.module)
        if hasattr(self.library, "set_num_threads"):
            self.library.set_num_threads(threads)
            actual = self.library.get_num_threads()
            if actual != threads:
                raise RuntimeError(f"it uses {actual} threads where {threads} were asked for")

    def versions(self) -> dict[str, str]:
        """Return the versions of the library and of what its speed depends on."""
        return {self.name: str(self.library.__version__)}

    def declines(self, case: Any) -> str | None:
        """Return why it cannot do this case, or None; asked before it is loaded."""
        return None if hasattr(self, f"prepare_{case.base}") else f"{self.name} has no {case.operation}"

    def ready(self, fields: dict[str, Any]) -> Prepared:
        """Return the call of the case whose fields these are, or raise `WrongResultError`, or NotImplementedError."""
        problem = make_problem(Case(**fields))
        prepared: Prepared = getattr(self, f"prepare_{problem.case.base}")(problem)
        result = prepared.call()
        if prepared.outputs is not None:
            check_outputs(problem, prepared.outputs(result))
        return prepared


class Nbbn(Implementation):
    """The layer, and the functions for moments and backward."""

    name = "nbbn"
    module = "nbbn"

    def versions(self) -> dict[str, str]:
        config = self.library.config()
        return {name: config[name] for name in ("nbbn", "numba", "llvmlite")}

    def layer(self, p: Any, **options: Any) -> Any:
        layer = self.library.BatchNorm(len(p.gamma), eps=EPS, momentum=MOMENTUM, **options)
        layer.gamma[...], layer.beta[...] = p.gamma, p.beta
        layer.running_mean[...], layer.running_var[...] = p.running_mean, p.running_var
        return layer

    def prepare_inference(self, p: Problem) -> Prepared:
        layer = self.layer(p, activation="relu" if p.case.has_residual else None)
        return Prepared(partial(layer.eval(), p.x, **p.options))

    def prepare_moments(self, p: Problem) -> Prepared:
        return Prepared(partial(self.library.batch_moments, p.x), lambda moments: (moments.mean, moments.var()))

    def prepare_training(self, p: Problem) -> Prepared:
        bn = self.layer(p)
        return Prepared(partial(bn, p.x), lambda y: (y, bn.running_mean, bn.running_var))

    def prepare_backward(self, p: Problem) -> Prepared:
        return Prepared(partial(self.library.batch_norm_backward, p.second, p.x, p.mean, p.inv_std, p.gamma))


class NumPy(Implementation):
    """Whole-array expressions, as one writes without a library."""

    name = "numpy"
    module = "numpy"

    def prepare_inference(self, p: Problem) -> Prepared:
        """The formulas; of inference scale and shift are computed beforehand."""
        return Prepared(formula(p))

    prepare_moments = prepare_training = prepare_backward = prepare_inference


class Torch(Implementation):
    """torch on the CPU, its memory shared with the NumPy arrays, gradients off."""

    name = "torch"
    module = "torch"

    def load(self, threads: int) -> None:
        super().load(threads)
        # For the whole process: entering it once a call would cost a small call a third.
        self.library.inference_mode().__enter__()

    def _tensors(self, *arrays: Array) -> list[Any]:
        return [self.library.from_numpy(array) for array in arrays]

    def prepare_inference(self, p: Problem, training: bool = False) -> Prepared:
        """``torch.nn.functional.batch_norm``; the residual and relu in place."""
        vectors = [v.copy() for v in (p.running_mean, p.running_var, p.gamma, p.beta)]
        call = partial(self.library.nn.functional.batch_norm, *self._tensors(p.x, *vectors), training, MOMENTUM, EPS)
        if training:
            return Prepared(call, lambda y: (y, *vectors[:2]))
        (residual,), relu = self._tensors(p.second), self.library.relu_
        return Prepared((lambda: relu(call().add_(residual))) if p.case.has_residual else call)

    def prepare_moments(self, p: Problem) -> Prepared:
        call = partial(self.library.var_mean, *self._tensors(p.x), p.case.axes, correction=0)
        return Prepared(call, lambda pair: pair[::-1])

    def prepare_training(self, p: Problem) -> Prepared:
        return Torch.prepare_inference(self, p, training=True)

    def prepare_backward(self, p: Problem) -> Prepared:
        """``native_batch_norm_backward``, which autograd calls, on the saved statistics."""
        saved = (v.astype(np.float32) for v in (p.mean, p.inv_std))
        arrays = (p.second, p.x, p.gamma, p.running_mean, p.running_var, *saved)
        function = self.library.ops.aten.native_batch_norm_backward.default
        return Prepared(partial(function, *self._tensors(*arrays), True, EPS, [True, True, True]))


class OnnxRuntime(Implementation):
    """A session on the CPU, of a model of a BatchNormalization node and what follows it."""

    name = "onnxruntime"
    module = "onnxruntime"

    def missing(self) -> str | None:
        """Return what is not installed: onnx writes the model."""
        absent = [name for name in (self.module, "onnx") if importlib.util.find_spec(name) is None]
        return f"{' and '.join(absent)} not installed" if absent else None

    def load(self, threads: int) -> None:
        """Import both libraries; a session takes its threads from its options."""
        super().load(threads)
        self.onnx = importlib.import_module("onnx")
        self.options = self.library.SessionOptions()
        self.options.intra_op_num_threads, self.options.inter_op_num_threads = threads, 1

    def session(self, p: Any, inputs: Iterable[str], outputs: Sequence[str], then: str = "") -> Any:
        """Return one that makes ``outputs`` of ``inputs``; ``then``, nodes that follow, make y of what is v."""
        vectors = ("gamma", "beta", "running_mean", "running_var")
        shapes = [",".join(map(str, shape)) for shape in (p.x.shape, p.gamma.shape)]
        types = [f"{'double' if p.x.dtype == np.float64 else 'float'}[{shape}]" for shape in shapes]
        given = ", ".join(f"{types[0]} {name}" for name in inputs)
        found = ", ".join(f"{types[name != 'y']} {name}" for name in outputs)
        # the momentum of ONNX is the weight of the old value
        options = f"epsilon = {EPS:f}, momentum = {1 - MOMENTUM}, training_mode = {len(outputs) // 2}"
        results = ", ".join(["v" if then else "y", *outputs[1:]])
        # the last version of the operator, and the file format of its time
        model = self.onnx.parser.parse_model(
            f'<ir_version: 8, opset_import: ["": 15]> batch_norm ({given}) => ({found}) '
            f"{{ {results} = BatchNormalization <{options}> (x, {', '.join(vectors)}) {then} }}"
        )
        model.graph.initializer.extend(self.onnx.numpy_helper.from_array(getattr(p, name), name) for name in vectors)
        return self.library.InferenceSession(model.SerializeToString(), self.options, ["CPUExecutionProvider"])

    def prepare_inference(self, p: Problem) -> Prepared:
        given = {"x": p.x} | p.options
        then = "sum = Add(v, residual) y = Relu(sum)" if p.case.has_residual else ""
        return Prepared(partial(self.session(p, given, ["y"], then).run, None, given))

    def prepare_training(self, p: Problem) -> Prepared:
        """The same with ``training_mode=1``: y and the new running statistics are its outputs."""
        given = {"x": p.x}
        run = partial(self.session(p, given, ["y", "new_mean", "new_var"]).run, None, given)
        return Prepared(run, lambda found: (*found[:2], sample_var(p, found[2])))


class ScikitLearn(Implementation):
    """StandardScaler, for (N, C), without its checks for NaN and of its own parameters.

    It has no gamma and beta: they are folded into its mean and scale, as
    ``(x - mean) / std * gamma + beta = (x - (mean - beta * std / gamma)) / (std / gamma)``.
    """

    name = "sklearn"
    module = "sklearn"

    def load(self, threads: int) -> None:
        super().load(threads)
        self.library.set_config(assume_finite=True, skip_parameter_validation=True)
        self.new_scaler = importlib.import_module("sklearn.preprocessing").StandardScaler

    def declines(self, case: Any) -> str | None:
        if len(case.shape) != 2 or case.has_residual:
            return "StandardScaler takes (N, C) only, and adds no residual"
        return super().declines(case)

    def folded(self, p: Any, **options: Any) -> Any:
        """Return one whose ``transform`` is inference."""
        scaler = self.new_scaler(**options)
        scaler.scale_ = np.sqrt(p.running_var.astype(np.float64) + EPS) / p.gamma
        scaler.mean_ = p.running_mean - p.beta * scaler.scale_
        scaler.var_ = scaler.scale_**2
        scaler.n_features_in_, scaler.n_samples_seen_ = len(p.gamma), 2
        return scaler

    def prepare_inference(self, p: Problem) -> Prepared:
        return Prepared(partial(self.folded(p).transform, p.x))

    def prepare_moments(self, p: Problem) -> Prepared:
        return Prepared(partial(self.new_scaler().fit, p.x), lambda scaler: (scaler.mean_, scaler.var_))


class Limit(Implementation):
    """Loops that move as much memory as the operation has to, and compute next to nothing.

    Inference reads x and a residual once and writes y. Training and backward read all twice. Of plain and streaming
    stores, serial and parallel, the fastest is taken.
    """

    name = "limit"
    module = "nbbn"

    def prepare_inference(self, problem: Problem) -> Prepared:
        base, loops = problem.case.base, importlib.import_module("nbbn._bench.yardsticks")
        x, y = stack(problem.x), stack(problem.x)
        second = stack(problem.second) if base == "backward" or problem.case.has_residual else None
        sums = np.empty((1, 1, -(-x.size // loops.STRIDE)), x.dtype)

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            wanted = loops.Variant(x.dtype.type, parallel, residual=second is not None)
            read = partial(loops.read.variant(wanted), x, second, sums)
            write = partial(loops.write.variant(wanted), x, second, y, streaming)
            return {"moments": read, "inference": write}.get(base, lambda: (read(), write()))

        calls = ways(make, problem.case.threads)
        return Prepared(calls[name := fastest(calls)], None, note=name)

    prepare_moments = prepare_training = prepare_backward = prepare_inference


def sample_var(p: Any, var: Array) -> Any:
    """Return what the moving average of the population's variance, which ONNX keeps, is of the sample's."""
    n, kept = p.x.size / len(p.gamma), (1 - MOMENTUM) * p.running_var
    return kept + (var - kept) * (n / (n - 1))


IMPLEMENTATIONS: dict[str, Implementation] = {
    known.name: known for known in (Nbbn(), NumPy(), Torch(), OnnxRuntime(), ScikitLearn(), Limit())
}
