"""Weights of values: numbers (float64), or a mask (bytes: what is not 0 counts); None where all are 1."""

from __future__ import annotations

from typing import Any

from nbbn._compiler.jit import inlined
from nbbn._compiler.vectors import splat, where_finite
from nbbn._compiler.weights import all_count, times_weight, where_counted


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
