"""Weights of values: numbers (float64), or a mask (bytes: what is not 0 counts); None where all are 1."""

from __future__ import annotations

from typing import Any

from nbbn._compiler.jit import helper, inlined
from nbbn._compiler.vectors import LANES, splat, total, where_finite, widen
from nbbn._compiler.weights import (
    all_count,
    load_weights,
    load_weights_first,
    splat_weight,
    times_weight,
    where_counted,
)
from nbbn._kernels.memory import Rows, load_upto


@inlined
def weight_at(weights: Rows, row: int, k: int, count: int) -> Any:
    """Return the weights of up to sixteen values of a run; None without weights."""
    index = weights.at + row * weights.stride + k
    if count >= LANES:
        return load_weights(weights.values, index)
    return load_weights_first(weights.values, index, count)


@inlined
def weight_of_row(weights: Rows, row: int) -> Any:
    """Return the weight that the values of a row have in common; None without weights."""
    return splat_weight(weights.values, weights.at + row * weights.stride)


@inlined
def weighted(deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return weight times deviation, and the deviation; 0 where it has no weight (NaN, too)."""
    counted = where_counted(weight, deviation, splat(0.0))
    return times_weight(weight, counted), counted


@inlined
def harmless(grad_y: Any, deviation: Any, weight: Any) -> tuple[Any, Any]:
    """Return both, or zeros where a masked value is not finite: its output is no one's result."""
    zero = splat(0.0)
    if not all_count(weight):
        grad_y = where_counted(weight, grad_y, where_finite(deviation, grad_y, zero))
        deviation = where_counted(weight, deviation, where_finite(deviation, deviation, zero))
    return grad_y, deviation


@helper
def sum_of_weights(weights: Any, start: int, count: int) -> float:
    """Return the sum of some weights; without weights, ``count``."""
    if weights is None:
        return float(count)
    found = splat(0.0)
    for i in range(start, start + count, LANES):
        found = found + widen(load_upto(weights, i, start + count - i))
    sum_: float = total(found)
    return sum_
