"""Moments of arrays in which NaN is a value that is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn._engine import parts, steps
from nbbn._engine.masks import Weights
from nbbn._engine.views import read_in_place
from nbbn._kernels import gaps, statistics

Array = NDArray[Any]


def parts_with_gaps(x: Array, index: int, weights: Weights | None) -> Array:
    """Return reference, sum of deviations, m2 and count of the channels, (4, number of parts, C), in one thread.

    ``x`` is not empty.
    """
    view, (source,) = read_in_place(index, weights is not None, x)
    stack = view.of(source)
    of_weights = None if weights is None else weights.in_order(source, index)
    variant = steps.variant_of(x, weights=of_weights)
    if view.runs:
        outer, channels, inner = view.shape
        found = np.zeros((4, outer * -(-inner // statistics.PIECE), channels))
        gaps.gaps_of_runs.variant(variant)(stack, of_weights, found)
        return found
    width, numbers = parts.cut_for_sums(view, of_weights, stack)
    found = np.zeros((4, numbers.size, width))
    gaps.gaps_of_columns.variant(variant)(stack, of_weights, found)
    inner = view.inner
    apart = found.reshape(4, -1, view.channels, inner)
    return apart.transpose(0, 1, 3, 2).reshape(4, -1, view.channels)
