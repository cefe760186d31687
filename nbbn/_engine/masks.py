"""Masks and weights: which values enter the statistics, and how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array


@dataclass(frozen=True, slots=True)
class Weights:
    """A weight for each place of ``x``, the same in every channel."""

    values: Array  # bool or float64, with the axes of x but the channel's; sizes may be 1
    shape: tuple[int, ...]  # of x, without the channel axis
    total: float  # their sum: the number of values a channel, or what stands for it

    def in_order(self, x: Array, index: int) -> Array:
        """Return them as kernels take them: flat, in the order in which ``x`` has its axes in memory."""
        axes = [axis for axis in range(x.ndim) if axis != index]
        order = sorted(range(len(axes)), key=lambda i: -x.strides[axes[i]])
        everywhere = np.broadcast_to(self.values, self.shape).transpose(order)
        memory = np.ascontiguousarray(everywhere).reshape(-1)
        return memory.view(np.uint8) if memory.dtype == np.bool_ else memory

    def part(self, begin: int, end: int) -> Weights | None:
        """Return those of some places along the first of these axes; None where all of them count."""
        values = self.values if len(self.values) == 1 else self.values[begin:end]
        return _unless_all_count(_weights(values, (end - begin, *self.shape[1:])))


def of_mask(mask: Any, shape: tuple[int, ...], index: int) -> Weights | None:
    """Return the weights that ``mask`` stands for; None where every value counts."""
    if mask is None:
        return None
    given = _checks.mask(mask, shape, index)
    # A copy of zeros and ones: a bool of other code (bytes 0 and 255 viewed as such) may be any byte.
    others = shape[:index] + shape[index + 1 :]
    return _unless_all_count(_weights(np.asarray(given.view(np.uint8) != 0), others))


def make(mask: Any, weights: Any, shape: tuple[int, ...], index: int) -> Weights | None:
    """Return the weights of ``x``, 0 where ``mask`` is False; None where all are 1."""
    if weights is None:
        return of_mask(mask, shape, index)
    values = _checks.weights(weights, shape, index)
    if mask is not None:
        values = np.where(_checks.mask(mask, shape, index), values, 0.0)
    found = _weights(values, shape[:index] + shape[index + 1 :])
    if not math.isfinite(found.total):
        raise ValueError(f"weights: expected a finite sum, got {found.total}")
    return found


def _unless_all_count(found: Weights) -> Weights | None:
    return None if found.total == math.prod(found.shape) else found


def _weights(values: Array, others: tuple[int, ...]) -> Weights:
    times = math.prod(others) // values.size if values.size else 0
    with np.errstate(all="ignore"):
        total = np.count_nonzero(values) if values.dtype == np.bool_ else values.sum()
    return Weights(values, others, float(total) * times)
