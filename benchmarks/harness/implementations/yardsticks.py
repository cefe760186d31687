"""What memory allows, and what a call costs at least: nothing to be ahead of.

The loops of `benchmarks.harness.loops` run on one row of the size and data type of x, which begins
at a multiple of 64 bytes; what follows in a fused operation costs no bytes but those of a residual.
Of plain and streaming stores, serial and parallel, the fastest is taken.
"""

from __future__ import annotations

import importlib
import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness.cases import DTYPES, STORED, Case
from benchmarks.harness.implementations.base import (
    SMALL_CALL,
    Implementation,
    Outputs,
    Prepared,
    input_and_out,
    named_y,
)
from benchmarks.harness.problem import EPS, TOLERANCE, Array, Problem, WrongResultError
from nbbn._bench.problem import stack
from nbbn._bench.timer import fastest, ways

_LANES = 16  # what is left over of a size that is no multiple is not touched
_SEEN_AS = {"float16": np.uint16, "bfloat16": np.int16}  # by kernels: see nbbn._compiler.formats

# (whether parallel, whether past the cache) -> the call
Make = Callable[[bool, int], Callable[[], Any]]


class Yardstick(Implementation):
    """A loop that computes next to nothing."""

    module = "nbbn"
    is_yardstick = True
    has_fused = True

    def load(self, threads: int) -> None:
        """Import the loops; numba takes its threads from the environment."""
        super().load(threads)
        self.loops = importlib.import_module("benchmarks.harness.loops")

    def versions(self) -> dict[str, str]:
        """Return the version of nbbn, which the loops are part of."""
        return {"nbbn": str(self.library.__version__)}

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Compare with the same arithmetic in NumPy."""
        found = prepared.outputs(result)
        expected = getattr(self, f"expect_{problem.case.base}")(problem)
        for name, values in expected.items():
            error = float(np.max(np.abs(found[name].ravel()[: values.size] - values), initial=0.0))
            scale = max(1.0, float(np.max(np.abs(values), initial=0.0)))
            if not error <= TOLERANCE[problem.case.dtype] * scale:
                raise WrongResultError(f"{name} is off by {error:.3g}")

    def _loop(
        self, name: str, problem: Problem, parallel: bool, inputs: tuple[Array, ...], *others: Any
    ) -> Callable[[], Any]:
        """Bind one or two inputs, and what else the loop takes."""
        dtype = _SEEN_AS.get(problem.case.dtype, problem.x.dtype.type)
        x, second = (*inputs, None)[:2]
        wanted = self.loops.Variant(dtype, parallel, residual=second is not None)
        return partial(getattr(self.loops, name).variant(wanted), x, second, *others)

    def _sums(self, problem: Problem) -> Array:
        pieces = -(-problem.x.size // self.loops.STRIDE)
        return np.empty((1, 1, pieces), problem.x.dtype)

    def _piece_sums(self, *arrays: Array) -> Array:
        """Return the sum of all arrays over each piece."""
        used = _used(arrays[0])
        starts = np.arange(0, used, self.loops.STRIDE)
        return sum(
            (np.add.reduceat(a.ravel()[:used], starts, dtype=np.float64) for a in arrays),
            np.zeros(starts.size),
        )

    def _spread(self, sums: Array, x: Array) -> Array:
        """Return each piece's sum beside each of its values."""
        spread: Array = np.repeat(sums, self.loops.STRIDE)[: _used(x)]
        return spread


def _aligned(size: int, dtype: Any) -> Array:
    """Return a stack of one row, as `stack` does, to be written to."""
    return stack(np.empty(size, dtype))


def _used(x: Array) -> int:
    return x.size // _LANES * _LANES


def _affine(x: Array) -> Array:
    used = x.ravel()[: _used(x)]
    working = np.result_type(used, np.float32).type
    y: Array = used * working(0.75) + working(0.25)
    return y


def _choose(problem: Problem, make: Make, outputs: Outputs, reset: Callable[[], None], stores: bool = True) -> Prepared:
    """Return the fastest way; ``reset`` then takes back what the trials wrote."""
    calls = ways(make, problem.case.threads)
    if not stores:
        calls = {name.rpartition(" ")[2]: call for name, call in calls.items() if "plain" in name}
    name = fastest(calls)
    reset()
    return Prepared(calls[name], lambda _: outputs, name)


class CopyAffine(Yardstick):
    """Read x, write y: the limit of inference without a residual."""

    name = "copy-affine"
    dtypes = STORED

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if case.has_residual:
            return f"{self.name} reads one array"
        return super().declines(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``y = 0.75 x + 0.25``, over x where the case is in place; ``y = x`` for half types."""
        p = problem
        x = stack(p.x)
        y = x if p.case.variant == "inplace" else _aligned(x.size, p.result_dtype)

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            if p.case.dtype in _SEEN_AS:  # two values as one, bit by bit
                pairs = (array[..., : x.size // 2 * 2].view(np.float32) for array in (x, y))
                copy = self.loops.copy.variant(self.loops.Variant(np.float32, parallel))
                return partial(copy, *pairs, streaming)
            return self._loop("write", p, parallel, (x,), y, streaming)

        def reset() -> None:
            y.fill(np.nan)
            x[...] = p.x.ravel()

        return _choose(p, make, {"y": y}, reset)

    def expect_inference(self, problem: Problem) -> Outputs:
        """``0.75 x + 0.25``, or x."""
        if problem.case.dtype in _SEEN_AS:
            used = problem.x.size // (2 * _LANES) * 2 * _LANES
            return {"y": problem.x.ravel()[:used].astype(np.float64)}
        return {"y": _affine(problem.x)}

    prepare_transform = prepare_inverse_transform = prepare_inference
    expect_transform = expect_inverse_transform = expect_inference


class AddAffine(Yardstick):
    """Read x and the residual, write y: the limit of inference with a residual."""

    name = "add-affine"
    dtypes = (*DTYPES, *_SEEN_AS)

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if not case.has_residual:
            return f"{self.name} reads two arrays"
        return super().declines(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """``y = 0.75 x + residual + 0.25``."""
        p = problem
        seen = _SEEN_AS.get(p.case.dtype, p.x.dtype)
        result = _aligned(p.x.size, p.x.dtype)
        x, residual, y = (array.view(seen) for array in (stack(p.x), stack(p.residual), result))

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            return self._loop("write", p, parallel, (x, residual), y, streaming)

        return _choose(p, make, {"y": result}, lambda: result.fill(np.nan))

    def expect_inference(self, problem: Problem) -> Outputs:
        """``0.75 x + residual + 0.25``."""
        x, residual = (a.ravel()[: _used(a)].astype(np.float64) for a in (problem.x, problem.residual))
        return {"y": 0.75 * x + residual + 0.25}


class Read(Yardstick):
    """Read x: the limit of moments."""

    name = "read"

    def prepare_moments(self, problem: Problem) -> Prepared:
        """The sum of each piece."""
        x, sums = stack(problem.x), self._sums(problem)

        def make(parallel: bool, _: int) -> Callable[[], Any]:
            return self._loop("read", problem, parallel, (x,), sums)

        return _choose(problem, make, {"sums": sums}, lambda: sums.fill(np.nan), stores=False)

    def expect_moments(self, problem: Problem) -> Outputs:
        """The sums."""
        return {"sums": self._piece_sums(problem.x)}

    prepare_weighted_moments = prepare_from_batches = prepare_moments
    prepare_fit = prepare_partial_fit = prepare_moments
    expect_fit = expect_partial_fit = expect_from_batches = expect_moments


class _Trips(Yardstick):
    """What has inputs x, or x and grad_y, and writes an array of their size."""

    def prepare_training(self, problem: Problem) -> Prepared:
        """Read x, and again to write y."""
        return self._prepare(problem, stack(problem.x))

    prepare_fit_transform = prepare_training

    def prepare_backward(self, problem: Problem) -> Prepared:
        """Read x and grad_y, and again to write grad_x."""
        return self._prepare(problem, stack(problem.x), stack(problem.grad_y))

    def _prepare(self, problem: Problem, *inputs: Array) -> Prepared:
        y, sums = _aligned(problem.x.size, problem.x.dtype), self._sums(problem)
        sums.fill(0.0)

        def reset() -> None:
            y.fill(np.nan)

        make = self._make(problem, inputs, y, sums)
        return _choose(problem, make, {"y": y, "sums": sums}, reset)

    @abstractmethod
    def _make(self, problem: Problem, inputs: tuple[Array, ...], y: Array, sums: Array) -> Make:
        """Return what makes the calls that read ``inputs`` and write ``y`` and ``sums``."""


class TwoTrip(_Trips):
    """Read all, then read all again to write: training where a channel does not fit the cache."""

    name = "two-trip"
    prepare_weighted_training = prepare_calibrate = _Trips.prepare_training
    prepare_weighted_backward = _Trips.prepare_backward

    def prepare_step(self, problem: Problem) -> Prepared:
        """What training takes, then what backward does."""
        both = self.prepare_training(problem), self.prepare_backward(problem)

        def call() -> None:
            for each in both:
                each.call()

        return Prepared(call, both[1].outputs, ", then ".join(each.note for each in both))

    def _make(self, problem: Problem, inputs: tuple[Array, ...], y: Array, sums: Array) -> Make:
        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            read = self._loop("read", problem, parallel, inputs, sums)
            write = self._loop("write", problem, parallel, inputs, y, streaming)

            def call() -> None:
                read()
                write()

            return call

        return make

    def expect_training(self, problem: Problem) -> Outputs:
        """The sums, and ``0.75 x + 0.25``."""
        return {"sums": self._piece_sums(problem.x), "y": _affine(problem.x)}

    expect_calibrate = expect_fit_transform = expect_training

    def expect_backward(self, problem: Problem) -> Outputs:
        """The sums, and ``0.75 x + grad_y + 0.25``."""
        p = problem
        y = _affine(p.x) + p.grad_y.ravel()[: _used(p.x)]
        return {"sums": self._piece_sums(p.x, p.grad_y), "y": y}

    expect_step = expect_backward


class OneTrip(_Trips):
    """Both passes over a piece while it is in cache: training where a channel fits it."""

    name = "one-trip"

    def _make(self, problem: Problem, inputs: tuple[Array, ...], y: Array, sums: Array) -> Make:
        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            return self._loop("read_then_write", problem, parallel, inputs, y, streaming)

        return make

    def expect_training(self, problem: Problem) -> Outputs:
        """``0.75 x`` plus the sum of the piece."""
        x = problem.x
        return {"y": 0.75 * x.ravel()[: _used(x)] + self._spread(self._piece_sums(x), x)}

    expect_fit_transform = expect_training

    def expect_backward(self, problem: Problem) -> Outputs:
        """``0.75 x + grad_y`` plus the sums of the piece."""
        x, grad_y = problem.x, problem.grad_y
        y = 0.75 * x.ravel()[: _used(x)] + grad_y.ravel()[: _used(x)]
        return {"y": y + self._spread(self._piece_sums(x, grad_y), x)}


class BareKernel(Implementation):
    """nbbn's compiled inference kernel, its arguments prepared: what a small call costs at least."""

    name = "bare-kernel"
    module = "nbbn"
    is_yardstick = True

    def versions(self) -> dict[str, str]:
        """Return the version of nbbn."""
        return {"nbbn": str(self.library.__version__)}

    def declines(self, case: Case) -> str | None:
        """Return why it cannot do this case."""
        if not case.is_matrix or math.prod(case.shape) > SMALL_CALL:
            return f"bare-kernel is for (N, C) of up to {SMALL_CALL} values"
        return super().declines(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """The serial kernel for (N, C)."""
        x, out = input_and_out(problem)
        y = np.empty_like(x) if out is None else out
        return Prepared(_bare_call(problem, x, y), lambda _: named_y(y))


def _bare_call(problem: Problem, x: Array, y: Array) -> Callable[[], Any]:
    """Bind what `nbbn._engine.steps` hands to the kernel."""
    p, engine = problem, importlib.import_module("nbbn._engine.steps")
    variant = importlib.import_module("nbbn._compiler.jit").Variant
    kernels = importlib.import_module("nbbn._kernels.steps_of_columns")
    table = np.zeros((engine.rows.LAYER_ROWS, p.case.channels))
    names = {"MEAN": p.running_mean, "VAR": p.running_var, "GAMMA": p.gamma, "BETA": p.beta}
    for name, values in names.items():
        table[getattr(engine.rows, name)] = values
    form = engine.coefficients(table, EPS, x.dtype)
    matrices = (array.reshape(1, -1, p.case.channels) for array in (x, y))
    kernel = kernels.infer_columns.variant(variant(x.dtype.type))
    columns, channels = importlib.import_module("nbbn._kernels.columns"), p.case.channels
    blocks = columns.blocks_of(x.size // channels, channels, form.shape[1], columns.WIDE_TILE)
    return partial(kernel, *matrices, None, form, (), 0, None, blocks)
