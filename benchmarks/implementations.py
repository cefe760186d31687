"""The registry: every implementation that is measured, and how it does each operation.

To add a peer, write a subclass of `Implementation` and put it into `IMPLEMENTATIONS`. Libraries
are imported in `Implementation.load` only, which runs in the implementation's own process after
the thread count is in the environment.
"""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from benchmarks.problem import EPS, MOMENTUM, Array, Problem, along_channels, check_outputs

Outputs = dict[str, Array]


class UnsupportedError(Exception):
    """The implementation cannot do this case; the message says why."""


@dataclass(frozen=True)
class Prepared:
    """A case ready to be timed.

    ``call`` is what is timed, once a repetition. ``outputs`` takes what ``call`` returned and
    names the arrays in it, in the memory layout of the problem; it is called after the first
    ``call``, so moving averages have made one step.
    """

    call: Callable[[], Any]
    outputs: Callable[[Any], Outputs]


class Implementation(ABC):
    """Something that can be measured."""

    name: ClassVar[str]
    module: ClassVar[str]

    def missing(self) -> str | None:
        """Return why it cannot be measured here, or None."""
        if importlib.util.find_spec(self.module) is None:
            return f"{self.module} is not installed"
        return None

    def load(self, threads: int) -> None:
        """Import the library; ``threads`` is for those that do not read the environment."""
        self.library = importlib.import_module(self.module)

    def versions(self) -> dict[str, str]:
        """Return the versions of the library and of what its speed depends on."""
        return {self.name: str(self.library.__version__)}

    def threads(self) -> int | None:
        """Return the threads the library says it uses, or None if it does not say."""
        return None

    def prepare(self, problem: Problem) -> Prepared:
        """Return the call for ``problem``.

        Raises
        ------
        UnsupportedError
            If the implementation cannot do this case.
        """
        prepare = getattr(self, f"prepare_{problem.case.operation}", None)
        if prepare is None:
            raise UnsupportedError(f"{self.name} has no {problem.case.operation}")
        prepared: Prepared = prepare(problem)
        return prepared

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Raise `WrongResultError` if ``result`` of the first call is not what it has to be."""
        check_outputs(problem, prepared.outputs(result))

    @abstractmethod
    def prepare_inference(self, problem: Problem) -> Prepared:
        """Return the call that normalizes with the running statistics."""


class Nbbn(Implementation):
    """The package itself: the layer, and the function for backward."""

    name = "nbbn"
    module = "nbbn"

    def versions(self) -> dict[str, str]:
        """Return the versions of nbbn and numba."""
        return super().versions() | {"numba": importlib.import_module("numba").__version__}

    def threads(self) -> int | None:
        """Return numba's maximum, which nbbn does not exceed."""
        return int(importlib.import_module("numba").config.NUMBA_NUM_THREADS)

    def _layer(self, problem: Problem) -> Any:
        case = problem.case
        layer = self.library.BatchNorm(
            case.channels, axis=case.axis, eps=EPS, momentum=MOMENTUM, dtype=problem.x.dtype
        )
        layer.gamma[...], layer.beta[...] = problem.gamma, problem.beta
        layer.running_mean[...] = problem.running_mean
        layer.running_var[...] = problem.running_var
        return layer

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``layer(x)`` after ``layer.eval()``."""
        call = _maybe_out(self._layer(problem).eval(), problem, problem.x)
        return Prepared(call, lambda y: {"y": y})

    def prepare_training(self, problem: Problem) -> Prepared:
        """``layer(x)``."""
        layer = self._layer(problem).train()
        call = _maybe_out(layer, problem, problem.x)
        return Prepared(call, lambda y: _training_outputs(y, layer.running_mean, layer.running_var))

    def prepare_backward(self, problem: Problem) -> Prepared:
        """``batch_norm_backward`` on the batch's statistics."""
        p = problem
        function = partial(self.library.batch_norm_backward, axis=p.case.axis)
        call = _maybe_out(function, p, p.grad_y, p.x, p.mean, p.inv_std, p.gamma)
        return Prepared(call, lambda grads: _backward_outputs(*grads))


class NumPy(Implementation):
    """What one writes without a library: whole-array expressions in the data type of ``x``."""

    name = "numpy"
    module = "numpy"

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``x * scale + shift``, with scale and shift computed beforehand."""
        p = problem
        inv_std = 1 / np.sqrt(p.running_var + p.x.dtype.type(EPS))
        factor = p.gamma * inv_std
        scale = along_channels(factor, p.x, p.case.axis)
        shift = along_channels(p.beta - p.running_mean * factor, p.x, p.case.axis)
        x, out = p.x, _out(p)
        if out is None:
            return Prepared(lambda: x * scale + shift, lambda y: {"y": y})
        return Prepared(lambda: _affine(x, scale, shift, out), lambda y: {"y": y})

    def prepare_training(self, problem: Problem) -> Prepared:
        """``mean``, ``var``, then as in inference, and the moving averages."""
        p = problem
        gamma, beta, mean_, var_ = (
            along_channels(v.copy(), p.x, p.case.axis)
            for v in (p.gamma, p.beta, p.running_mean, p.running_var)
        )
        axes = _reduced_axes(p)
        unbias = p.x.size / p.case.channels / (p.x.size / p.case.channels - 1)
        x, out = p.x, _out(p)

        def train() -> Array:
            mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
            scale = gamma / np.sqrt(var + EPS)
            shift = beta - mean * scale
            mean_[...] = (1 - MOMENTUM) * mean_ + MOMENTUM * mean
            var_[...] = (1 - MOMENTUM) * var_ + MOMENTUM * unbias * var
            y: Array = x * scale + shift if out is None else _affine(x, scale, shift, out)
            return y

        return Prepared(train, lambda y: _training_outputs(y, mean_.ravel(), var_.ravel()))

    def prepare_backward(self, problem: Problem) -> Prepared:
        """The gradients as they stand in the formula."""
        p = problem
        x, grad_y, axes, n = p.x, p.grad_y, _reduced_axes(p), p.x.size // p.case.channels
        mean, inv_std, gamma = (
            along_channels(v.astype(p.x.dtype), p.x, p.case.axis)
            for v in (p.mean, p.inv_std, p.gamma)
        )
        out = _out(p)
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

        return Prepared(differentiate, lambda grads: _backward_outputs(*grads))


class Torch(Implementation):
    """torch on the CPU, its memory shared with the NumPy arrays, gradients off."""

    name = "torch"
    module = "torch"

    def load(self, threads: int) -> None:
        """Import torch, and leave its recording of gradients for good."""
        super().load(threads)
        self.library.set_num_threads(threads)
        # For the whole process: entering it once a call would cost a small call a third.
        self.library.inference_mode().__enter__()

    def threads(self) -> int | None:
        """Return the size of torch's pool."""
        return int(self.library.get_num_threads())

    def _tensors(self, problem: Problem) -> tuple[Any, ...]:
        """Return x (a view whose axis 1 is the channels) and copies of the four vectors."""
        p = problem
        vectors = (p.gamma, p.beta, p.running_mean, p.running_var)
        copies = (self.library.from_numpy(v.copy()) for v in vectors)
        return self._view(p, p.x), *copies

    def _view(self, problem: Problem, array: Array) -> Any:
        return self.library.from_numpy(np.moveaxis(array, problem.case.axis, 1))

    @staticmethod
    def _array(problem: Problem, tensor: Any) -> Array:
        array: Array = tensor.numpy()
        return np.moveaxis(array, 1, problem.case.axis) if array.ndim > 1 else array

    def _forward(self, problem: Problem, tensors: tuple[Any, ...], training: bool) -> Any:
        torch, case = self.library, problem.case
        x, weight, bias, mean, var = tensors
        if case.variant == "fresh":
            batch_norm = torch.nn.functional.batch_norm
            return lambda: batch_norm(x, mean, var, weight, bias, training, MOMENTUM, EPS)
        # Inference leaves the two statistics empty, and warns when it has to shrink them.
        saved = case.channels if training else 0
        return partial(
            torch.ops.aten.native_batch_norm.out,
            *(x, weight, bias, mean, var, training, MOMENTUM, EPS),
            out=torch.empty_like(x),
            save_mean=torch.empty(saved, dtype=x.dtype),
            save_invstd=torch.empty(saved, dtype=x.dtype),
        )

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``torch.nn.functional.batch_norm``, or the ``.out`` overload beneath it."""
        call = self._forward(problem, self._tensors(problem), training=False)
        return Prepared(call, lambda y: {"y": self._array(problem, _first(y))})

    def prepare_training(self, problem: Problem) -> Prepared:
        """The same with ``training=True``."""
        tensors = self._tensors(problem)
        mean, var = tensors[3].numpy(), tensors[4].numpy()
        call = self._forward(problem, tensors, training=True)
        return Prepared(
            call, lambda y: _training_outputs(self._array(problem, _first(y)), mean, var)
        )

    def prepare_backward(self, problem: Problem) -> Prepared:
        """``native_batch_norm_backward``, which autograd calls, on the saved statistics."""
        torch, p = self.library, problem
        x, weight, _, mean, var = self._tensors(p)
        saved = [torch.from_numpy(v.astype(p.x.dtype)) for v in (p.mean, p.inv_std)]
        grad_y = self._view(p, p.grad_y)
        arguments = (grad_y, x, weight, mean, var, *saved, True, EPS, [True, True, True])
        overloads = torch.ops.aten.native_batch_norm_backward
        if p.case.variant == "fresh":
            call = partial(overloads.default, *arguments)
        else:
            out = (torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight))
            call = partial(overloads.out, *arguments, out0=out[0], out1=out[1], out2=out[2])
        return Prepared(call, lambda grads: _backward_outputs(*(self._array(p, g) for g in grads)))


def _out(problem: Problem) -> Array | None:
    return np.empty_like(problem.x) if problem.case.variant == "out" else None


def _maybe_out(function: Callable[..., Any], problem: Problem, *args: Any) -> Callable[[], Any]:
    """Bind ``args``, and ``out=`` in the variant that keeps its outputs."""
    out = _out(problem)
    return partial(function, *args) if out is None else partial(function, *args, out=out)


def _affine(x: Array, scale: Array, shift: Array, out: Array) -> Array:
    np.multiply(x, scale, out=out)
    np.add(out, shift, out=out)
    return out


def _reduced_axes(problem: Problem) -> tuple[int, ...]:
    channel_axis = problem.case.axis % problem.x.ndim
    return tuple(axis for axis in range(problem.x.ndim) if axis != channel_axis)


def _first(result: Any) -> Any:
    """Return the normalized tensor: ``.out`` overloads return it with the statistics."""
    return result[0] if isinstance(result, tuple) else result


def _training_outputs(y: Array, running_mean: Array, running_var: Array) -> Outputs:
    return {"y": y, "running_mean": running_mean, "running_var": running_var}


def _backward_outputs(grad_x: Array, grad_gamma: Array, grad_beta: Array) -> Outputs:
    return {"grad_x": grad_x, "grad_gamma": grad_gamma, "grad_beta": grad_beta}


BASELINE = Nbbn.name
"""The implementation that every other one is compared with."""

IMPLEMENTATIONS: dict[str, Implementation] = {
    implementation.name: implementation for implementation in (Nbbn(), NumPy(), Torch())
}
