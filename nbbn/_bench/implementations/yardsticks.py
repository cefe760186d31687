"""What memory allows, and what a call costs at least: nothing to be ahead of.

The loops of `nbbn.kernels.yardsticks` run on flat arrays of the size and data type of x, which begin
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

from nbbn._bench.cases import DTYPES, STORED, Case
from nbbn._bench.implementations.base import (
    Implementation,
    Outputs,
    Prepared,
    UnsupportedError,
    input_and_out,
    named_y,
)
from nbbn._bench.problem import EPS, TOLERANCE, Array, Problem, WrongResultError
from nbbn._bench.timer import fastest

_LINE = 64  # bytes
_LANES = 16  # what is left over of a size that is no multiple is not touched
_SEEN_AS = {"float16": np.uint16, "bfloat16": np.int16}  # by kernels: see nbbn._formats
_SMALL_CALL = 1 << 16  # values: beyond, the call itself is lost in the noise of the loop

# (whether parallel, whether past the cache) -> the call
Make = Callable[[bool, int], Callable[[], Any]]


def aligned(size: int, dtype: Any) -> Array:
    """Return an empty array that begins at a multiple of 64 bytes."""
    itemsize = np.dtype(dtype).itemsize
    buffer = np.empty(size * itemsize + _LINE, np.uint8)
    start = -buffer.ctypes.data % _LINE
    array: Array = buffer[start : start + size * itemsize].view(dtype)
    return array


class Yardstick(Implementation):
    """A loop over flat arrays that computes next to nothing."""

    module = "nbbn"
    is_yardstick = True
    has_fused = True

    def load(self, threads: int) -> None:
        """Import the kernels; numba takes its threads from the environment."""
        super().load(threads)
        self.library.set_num_threads(threads)  # raises where numba has fewer
        self.kernels = importlib.import_module("nbbn.kernels.yardsticks")

    def versions(self) -> dict[str, str]:
        """Return the version of nbbn, which the loops are part of."""
        return {"nbbn": str(self.library.__version__)}

    def verify(self, problem: Problem, prepared: Prepared, result: Any) -> None:
        """Compare with the same arithmetic in NumPy."""
        found = prepared.outputs(result)
        expected = getattr(self, f"expect_{problem.case.base}")(problem)
        for name, values in expected.items():
            error = float(np.max(np.abs(found[name][: values.size] - values), initial=0.0))
            scale = max(1.0, float(np.max(np.abs(values), initial=0.0)))
            if not error <= TOLERANCE[problem.case.dtype] * scale:
                raise WrongResultError(f"{name} is off by {error:.3g}")

    def _kernel(self, name: str, problem: Problem, parallel: bool) -> Callable[..., Any]:
        compiled: Callable[..., Any] = getattr(self.kernels, name).variant(
            _SEEN_AS.get(problem.case.dtype, problem.x.dtype.type), None, parallel
        )
        return compiled

    def _sums(self, problem: Problem) -> Array:
        pieces = -(-problem.x.size // self.kernels.STRIDE)
        return np.empty(pieces, problem.x.dtype)

    def _piece_sums(self, *arrays: Array) -> Array:
        """Return the sum of all arrays over each piece."""
        used = _used(arrays[0])
        starts = np.arange(0, used, self.kernels.STRIDE)
        return sum(
            (np.add.reduceat(a.ravel()[:used], starts, dtype=np.float64) for a in arrays),
            np.zeros(starts.size),
        )

    def _spread(self, sums: Array, x: Array) -> Array:
        """Return each piece's sum beside each of its values."""
        spread: Array = np.repeat(sums, self.kernels.STRIDE)[: _used(x)]
        return spread


def _used(x: Array) -> int:
    return x.size // _LANES * _LANES


def _copy(x: Array) -> Array:
    copy = aligned(x.size, x.dtype)
    copy[...] = x.ravel()
    return copy


def _affine(x: Array) -> Array:
    used = x.ravel()[: _used(x)]
    working = np.result_type(used, np.float32).type
    y: Array = used * working(0.75) + working(0.25)
    return y


def _choose(
    problem: Problem, make: Make, outputs: Outputs, reset: Callable[[], None], stores: bool = True
) -> Prepared:
    """Return the fastest way; ``reset`` then takes back what the trials wrote."""
    calls = {}
    for parallel in (False, True) if problem.case.threads > 1 else (False,):
        for streaming in (0, 1) if stores else (0,):
            parts = ["streaming stores" if streaming else "plain stores"] if stores else []
            parts.append("parallel" if parallel else "serial")
            calls[", ".join(parts)] = make(parallel, streaming)
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
        x = _copy(p.x)
        y = x if p.case.variant == "inplace" else aligned(x.size, p.result_dtype)

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            if p.case.dtype in _SEEN_AS:  # two values as one, bit by bit
                pairs = (array[: x.size // 2 * 2].view(np.float32) for array in (x, y))
                return partial(
                    self.kernels.copy.variant(np.float32, None, parallel), *pairs, streaming
                )
            return partial(self._kernel("copy_affine", p, parallel), x, y, streaming)

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
        x, residual, y = _copy(p.x), _copy(p.residual), aligned(p.x.size, p.x.dtype)
        seen = _SEEN_AS.get(p.case.dtype, p.x.dtype)
        arrays = tuple(array.view(seen) for array in (x, residual, y))

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            return partial(self._kernel("combine", p, parallel), *arrays, streaming)

        return _choose(p, make, {"y": y}, lambda: y.fill(np.nan))

    def expect_inference(self, problem: Problem) -> Outputs:
        """``0.75 x + residual + 0.25``."""
        x, residual = (
            a.ravel()[: _used(a)].astype(np.float64) for a in (problem.x, problem.residual)
        )
        return {"y": 0.75 * x + residual + 0.25}


class Read(Yardstick):
    """Read x: the limit of moments."""

    name = "read"

    def prepare_moments(self, problem: Problem) -> Prepared:
        """The sum of each piece."""
        x, sums = _copy(problem.x), self._sums(problem)

        def make(parallel: bool, _: int) -> Callable[[], Any]:
            return partial(self._kernel("read", problem, parallel), x, sums)

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
        return self._prepare(problem, _copy(problem.x))

    prepare_fit_transform = prepare_training

    def prepare_backward(self, problem: Problem) -> Prepared:
        """Read x and grad_y, and again to write grad_x."""
        return self._prepare(problem, _copy(problem.x), _copy(problem.grad_y))

    def _prepare(self, problem: Problem, *inputs: Array) -> Prepared:
        y, sums = aligned(problem.x.size, problem.x.dtype), self._sums(problem)
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

    def _make(self, problem: Problem, inputs: tuple[Array, ...], y: Array, sums: Array) -> Make:
        names = ("read", "copy_affine") if len(inputs) == 1 else ("read_two", "combine")

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            first, second = (self._kernel(name, problem, parallel) for name in names)

            def call() -> None:
                first(*inputs, sums)
                second(*inputs, y, streaming)

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


class OneTrip(_Trips):
    """Both passes over a piece while it is in cache: training where a channel fits it."""

    name = "one-trip"

    def _make(self, problem: Problem, inputs: tuple[Array, ...], y: Array, sums: Array) -> Make:
        name = "read_then_affine" if len(inputs) == 1 else "read_two_then_combine"

        def make(parallel: bool, streaming: int) -> Callable[[], Any]:
            return partial(self._kernel(name, problem, parallel), *inputs, y, streaming)

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
        if not case.is_matrix or math.prod(case.shape) > _SMALL_CALL:
            return f"bare-kernel is for (N, C) of up to {_SMALL_CALL} values"
        return super().declines(case)

    def prepare_inference(self, problem: Problem) -> Prepared:
        """The serial kernel for (N, C)."""
        x, out = input_and_out(problem)
        y = np.empty_like(x) if out is None else out
        return Prepared(_bare_call(problem, x, y), lambda _: named_y(y))


def _bare_call(problem: Problem, x: Array, y: Array) -> Callable[[], Any]:
    """Bind what `nbbn._dispatch` hands to the kernel."""
    layout_of = importlib.import_module("nbbn._layout")
    steps = importlib.import_module("nbbn._steps")
    kernels = importlib.import_module("nbbn.kernels.channels_last")
    p = problem
    layout = layout_of.describe(x.shape, p.case.axis % x.ndim, x.itemsize, x.strides, y.strides)
    if layout.channels_first:  # a single channel
        raise UnsupportedError("bare-kernel is for channels side by side")
    table = steps.statistics_rows(p.running_mean, p.running_var, p.gamma, p.beta)
    kernel = kernels.normalize_channels_last.variant(x.dtype.type, table.dtype.type, False)
    of_x, of_y = layout.strides
    nothing_follows = (None, 0, (), 0.0, None, 0)
    return partial(
        kernel,
        *(layout_of.flat(x), *layout.view, *of_x, table, EPS, layout_of.flat(y), *of_y, 0),
        *nothing_follows,
    )
