"""The last forward of a layer, as backward needs it, and how an overwritten input is noticed."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, NamedTuple

from nbbn import _checks
from nbbn._checks import Array, overlap
from nbbn._engine import steps
from nbbn._engine.known import Known
from nbbn._engine.masks import Weights, of_mask
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Epilogue
from nbbn._engine.views import apart

At = tuple[slice, ...]  # where in an array a part of it lies
Token = bytes | None  # some of the values of an array; None where a result was written over them

_ALL = 4096  # values up to which all of them are kept
_SAMPLES = 256  # ... and how many of more, about


class Snapshot(NamedTuple):
    """The numbers of a layer of one moment, and the coefficients of inference made of them."""

    values: Any  # a bytearray: what stood in the layer's table
    of: tuple[Any, ...]  # eps, slope, and the dtype of the coefficients
    eps: float
    table: Array  # the values in float64
    form: Array


class Forward(NamedTuple):
    """What backward needs of the last forward."""

    x: Array
    training: bool
    table: Array  # of the statistics, and gamma and beta, that it normalized with
    eps: float
    token: Token  # of x
    after: Epilogue
    residual_token: Token = None
    weights: Weights | None = None
    total: float = 0.0  # values a channel, of all workers
    known: Known | None = None
    parts: tuple[tuple[At, Forward], ...] = ()  # ghost batches
    form: Array | None = None  # the coefficients, where they are at hand


class Call(steps.Call):
    """One forward of a layer, or a part of one."""

    __slots__ = ()

    @classmethod
    def checked(cls, layer: Any, x: Any, residual: Any, out: Any, mask: Any = None) -> Call:
        """Return what a layer, or a frozen one, was called with; an error says what does not fit."""
        values = _checks.array("x", x, _checks.HALVES)
        index = _checks.axis(layer._axis, values.ndim)
        _checks.channels(values, index, layer._num_features)
        weights, after = of_mask(mask, values.shape, index), layer._after
        if residual is not None:
            after = after._replace(residual=_checks.gradient("residual", residual, values).view())
        return cls(values, index, None if out is None else _checks.out("out", out, values), after, weights)

    def forward(self, training: bool, table: Array, eps: float, total: float = 0.0) -> Forward:
        """Return what backward will need; before anything is written."""
        x, after = self.x, self.after.again()
        of_residual = None if after.residual is None else token_of(after.residual, self.out)
        return Forward(x.view(), training, table, eps, token_of(x, self.out), after, of_residual, self.weights, total)

    def part(self, at: At) -> Call:
        """Return what was given for some of the samples."""
        after, out, weights = self.after, self.out, self.weights
        if after.residual is not None:
            after = after._replace(residual=after.residual[at])
        if weights is not None:
            weights = weights.part(at[-1].start, at[-1].stop)
        return Call(self.x[at], self.axis, None if out is None else out[at], after, weights)

    def cut(self, size: int, too_few: float) -> list[At]:
        """Return where its parts of ``size`` samples lie.

        Samples stand along the first axis but the channel's. A last part of ``too_few`` values to train with
        joins the one before.
        """
        before = () if self.axis else (slice(None),)
        number = 1 if self.x.ndim == 1 else self.x.shape[len(before)]
        begins = range(0, number, size)
        found = [(*before, slice(begin, min(begin + size, number))) for begin in begins]
        if len(found) > 1 and self.part(found[-1]).total() <= too_few:
            found[-2:] = [(*before, slice(begins[-2], number))]
        return found


def to_write(out: Array | None, x: Array, *read: Array) -> Array:
    """Return where parts are written one after the other: ``out``, or a new array where others are read there."""
    return out if out is not None and all(apart(out, array) for array in (x, *read)) else empty_like(x)


def without_gaps(out: Any, *read: Array) -> Array | None:
    """Return ``out`` if no array has gaps between its values: then they are summed as for a new result."""
    return out if all(array.flags.c_contiguous for array in (out, *read)) else None


def token_of(x: Array, out: Array | None) -> Token:
    """Return some of the values of ``x``, to notice later whether it was overwritten by others than ``out``."""
    if out is not None and (out is x or overlap(x, out)):
        return None
    step = _step(x.size)
    if step == 1:
        return x.tobytes()
    flat = x.reshape(-1) if x.flags.c_contiguous else x.flat
    return flat[(x.size - 1) % step :: step].tobytes()


def is_unchanged(x: Array, token: Token) -> bool:
    """Whether ``x`` still has the values that `token_of` saw."""
    return token is not None and token_of(x, None) == token


@functools.lru_cache(maxsize=1024)
def _step(size: int) -> int:
    """Return 1 for few values, else a step coprime to the size: it falls in step with no axis."""
    if size <= _ALL:
        return 1
    return next(step for step in itertools.count(size // _SAMPLES) if math.gcd(step, size) == 1)
