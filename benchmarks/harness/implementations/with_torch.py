"""PyTorch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import DTYPES, STEP, STORED, Case
from benchmarks.harness.implementations.base import (
    SMALL_CALL,
    Implementation,
    Prepared,
    named_backward,
    named_moments,
    named_population,
    named_training,
    named_y,
    scale_and_shift,
)
from benchmarks.harness.problem import EPS, MOMENTUM, SLOPE, Array, Problem
from nbbn._bench import libraries
from nbbn._bench.timer import fastest


class Torch(Implementation, libraries.Torch):
    """torch on the CPU, its memory shared with the NumPy arrays, gradients off."""

    dtypes = STORED
    has_fused = True

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        declined = super().declines(case) or self.declines_variant(case, "fresh", "out")
        return declined or self.declines_params(case)

    def _of(self, problem: Problem) -> tuple[Any, ...]:
        """Return x (a view whose axis 1 is the channels) and copies of the four vectors."""
        p = problem
        vectors = (p.gamma, p.beta, p.running_mean, p.running_var)
        copies = (self.library.from_numpy(v.copy()) for v in vectors)
        return self._view(p, p.x), *copies

    def _view(self, problem: Problem, array: Array) -> Any:
        moved = np.moveaxis(array, problem.case.axis, 1)
        if problem.case.dtype == "bfloat16":  # which NumPy's own types do not have
            return self.library.from_numpy(moved.view(np.int16)).view(self.library.bfloat16)
        return self.library.from_numpy(moved)

    def _array(self, problem: Problem, tensor: Any) -> Array:
        if tensor.dtype == self.library.bfloat16:
            array: Array = tensor.view(self.library.int16).numpy().view(problem.x.dtype)
        else:
            array = tensor.numpy()
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
            save_mean=torch.empty(saved, dtype=weight.dtype),
            save_invstd=torch.empty(saved, dtype=weight.dtype),
        )

    def _finished(self, problem: Problem, call: Callable[[], Any]) -> Callable[[], Any]:
        """Add the residual and apply the activation to what ``call`` returns, in place."""
        case, activation = problem.case, problem.case.activation
        if not case.steps:
            return call
        if activation == "prelu":  # which has none in place, but leaky_relu has
            activate = partial(self.library.nn.functional.leaky_relu_, negative_slope=SLOPE)
        else:
            name = str(activation).replace("_", "")
            activate = partial(getattr(self.library.nn.functional, name), inplace=True)
        if not case.has_residual:
            return lambda: activate(_first(call()))
        residual = self._view(problem, problem.residual)
        return lambda: activate(_first(call()).add_(residual))

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``torch.nn.functional.batch_norm``, or the ``.out`` overload beneath it."""
        if problem.case.dtype == "uint8":
            return self._of_bytes(problem)
        call = self._forward(problem, self._of(problem), training=False)
        finished = self._finished(problem, call)
        return Prepared(finished, lambda y: named_y(self._array(problem, _first(y))))

    def _of_bytes(self, problem: Problem) -> Prepared:
        """The quickest of two ways: which one it is depends on the layout."""
        torch, p = self.library, problem
        x = torch.from_numpy(p.x)
        scale, shift = (torch.from_numpy(v) for v in scale_and_shift(p))
        out = torch.empty(x.shape) if p.case.variant == "out" else None

        def wide() -> Any:
            return x.to(torch.float32) if out is None else out.copy_(x)

        ways = {
            "mul_, add_": lambda: wide().mul_(scale).add_(shift),
            "addcmul": lambda: torch.addcmul(shift, wide(), scale, out=out),
        }
        name = fastest(ways)
        return Prepared(ways[name], lambda y: named_y(y.numpy()), name)

    def prepare_moments(self, problem: Problem) -> Prepared:
        """``torch.var_mean``."""
        x = self._view(problem, problem.x)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)
        call = partial(self.library.var_mean, x, axes, correction=0)
        return Prepared(call, lambda pair: named_moments(pair[1].numpy(), pair[0].numpy()))

    def prepare_training(self, problem: Problem) -> Prepared:
        """The function of inference with ``training=True``."""
        tensors = self._of(problem)
        mean, var = tensors[3].numpy(), tensors[4].numpy()
        call = self._finished(problem, self._forward(problem, tensors, training=True))
        return Prepared(call, lambda y: named_training(self._array(problem, _first(y)), mean, var))

    def prepare_weighted_moments(self, problem: Problem) -> Prepared:
        """``torch.var_mean`` of ``x[mask]`` where features are last, else weighted sums."""
        moments = self._weighted_moments(problem, self._view(problem, problem.x))
        return Prepared(moments, lambda pair: named_moments(pair[1].numpy(), pair[0].numpy()))

    def _weighted_moments(self, problem: Problem, x: Any) -> Callable[[], Any]:
        """Return what computes variance and mean of what counts."""
        torch, p = self.library, problem
        weights = torch.from_numpy(p.weights)
        if p.case.weighting == "mask" and p.case.is_matrix:
            rows = x.movedim(1, -1)
            return lambda: torch.var_mean(rows[weights], 0, correction=0)
        axes = tuple(axis for axis in range(x.ndim) if axis != 1)

        def average() -> Any:
            each, total = weights.unsqueeze(1), weights.sum()
            mean = (x * each).sum(axes, keepdim=True) / total
            return ((x - mean).square() * each).sum(axes) / total, mean.flatten()

        return average

    def prepare_weighted_training(self, problem: Problem) -> Prepared:
        """The moments, ``addcmul``, and ``lerp_`` of the running statistics."""
        torch, p = self.library, problem
        x, weight, bias, running_mean, running_var = self._of(p)
        moments, unbias = self._weighted_moments(p, x), p.count / (p.count - 1)
        like_x = (-1, *[1] * (x.ndim - 2))

        def train() -> Any:
            var, mean = moments()
            scale = weight * torch.rsqrt(var + EPS)
            shift = bias - mean * scale
            running_mean.lerp_(mean, MOMENTUM)
            running_var.lerp_(var * unbias, MOMENTUM)
            return torch.addcmul(shift.view(like_x), x, scale.view(like_x))

        learned = running_mean.numpy(), running_var.numpy()
        return Prepared(train, lambda y: named_training(self._array(p, y), *learned))

    def prepare_calibrate(self, problem: Problem) -> Prepared:
        """``torch.optim.swa_utils.update_bn`` of a module, with x as the only batch."""
        nn, p = self.library.nn, problem
        x = self._view(p, p.x)
        kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        module = kinds[x.ndim](p.case.channels, eps=EPS, dtype=x.dtype)
        call = partial(importlib.import_module("torch.optim.swa_utils").update_bn, [x], module)
        learned = module.running_mean.numpy(), module.running_var.numpy()
        return Prepared(call, lambda _: named_population(*learned))

    def prepare_backward(self, problem: Problem) -> Prepared:
        """``native_batch_norm_backward``, which autograd calls, on the saved statistics."""
        torch, p = self.library, problem
        x, weight, _, mean, var = self._of(p)
        saved = [torch.from_numpy(v.astype(p.x.dtype)) for v in (p.mean, p.inv_std)]
        grad_y = self._view(p, p.grad_y)
        arguments = (x, weight, mean, var, *saved, True, EPS, [True, True, True])
        overloads = torch.ops.aten.native_batch_norm_backward
        if p.case.variant == "fresh":
            function = overloads.default
        else:
            out = (torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight))
            function = partial(overloads.out, out0=out[0], out1=out[1], out2=out[2])
        call: Callable[[], Any] = partial(function, grad_y, *arguments)
        if p.case.activation is not None:
            before = self._through_activation(p, grad_y, x)
            call = lambda: function(before(), *arguments)  # noqa: E731
        return Prepared(call, lambda grads: named_backward(*(self._array(p, g) for g in grads)))

    def _through_activation(self, problem: Problem, grad_y: Any, x: Any) -> Callable[[], Any]:
        """Return what computes the gradient before the activation, whose argument the forward kept."""
        torch, p = self.library, problem
        mean, inv_std, gamma, beta = (
            torch.from_numpy(v.astype(p.x.dtype)).view(-1, *[1] * (x.ndim - 2))
            for v in (p.mean, p.inv_std, p.gamma, p.beta)
        )
        kept, grad = (x - mean) * inv_std * gamma + beta, torch.empty_like(grad_y)
        backward = {
            "relu": partial(torch.ops.aten.threshold_backward.grad_input, threshold=0),
            "silu": torch.ops.aten.silu_backward.grad_input,
        }[p.case.activation]
        return partial(backward, grad_y, kept, grad_input=grad)


class Autograd(Torch):
    """torch as a training loop calls it: a module, whose forward is recorded for autograd. Of small tables."""

    name = "torch-autograd"
    is_yardstick = True  # the same library once more
    dtypes = DTYPES

    def load(self, threads: int) -> None:
        """Import torch."""
        Implementation.load(self, threads)

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if case.operation not in ("training", STEP) or len(case.shape) != 2 or math.prod(case.shape) > SMALL_CALL:
            return f"autograd is for training on (N, C) of up to {SMALL_CALL} values"
        return super().declines(case)

    def _module(self, problem: Problem) -> tuple[Any, Any]:
        """Return a module, and x, whose gradient is wanted as that of a layer before it."""
        torch, p = self.library, problem
        module = torch.nn.BatchNorm1d(p.case.channels, eps=EPS, momentum=MOMENTUM, dtype=torch.from_numpy(p.x).dtype)
        names = {"weight": p.gamma, "bias": p.beta, "running_mean": p.running_mean, "running_var": p.running_var}
        module.load_state_dict({name: torch.from_numpy(v) for name, v in names.items()}, strict=False)
        return module, torch.from_numpy(p.x).requires_grad_()

    def prepare_training(self, problem: Problem) -> Prepared:
        """``module(x)``."""
        module, x = self._module(problem)
        learned = module.running_mean.numpy(), module.running_var.numpy()
        return Prepared(partial(module, x), lambda y: named_training(y.detach().numpy(), *learned))

    def prepare_step(self, problem: Problem) -> Prepared:
        """``module(x)``, then ``torch.autograd.grad``."""
        torch = self.library
        module, x = self._module(problem)
        grad_y = torch.from_numpy(problem.grad_y)
        wanted, grad = (x, module.weight, module.bias), torch.autograd.grad
        learned = module.running_mean.numpy(), module.running_var.numpy()

        def call() -> tuple[Any, ...]:
            y = module(x)
            return (y, *grad(y, wanted, grad_y))

        def outputs(found: tuple[Any, ...]) -> dict[str, Array]:
            y, *grads = (tensor.detach().numpy() for tensor in found)
            return named_training(y, *learned) | named_backward(*grads)

        return Prepared(call, outputs)


def _first(result: Any) -> Any:
    """Return the normalized tensor: ``.out`` overloads return it with the statistics."""
    return result[0] if isinstance(result, tuple) else result
