"""Moments of arrays in which NaN is a value that is missing."""

from __future__ import annotations

import numpy as np

from nbbn._checks import Array
from nbbn._engine import parts, steps
from nbbn._engine.masks import Weights
from nbbn._engine.plan import make_plan
from nbbn._engine.views import read_in_place
from nbbn._kernels import gaps, statistics


def moments_with_gaps(x: Array, index: int, weights: Weights | None) -> Array:
    """Return count, mean, what its rounding leaves, and m2 of the channels, (4, C); ``x`` is not empty."""
    view, (source,) = read_in_place(index, weights is not None, x)
    plan, stack = make_plan(view, (source,)), view.of(source)
    of_weights = None if weights is None else weights.in_order(source, index)
    blocks: tuple[Array, ...] = ()
    if view.runs:
        outer, width, inner = view.shape
        step, number = gaps.gaps_of_runs, outer * -(-inner // statistics.PIECE)
    else:
        width, numbers = parts.cut_for_sums(view, of_weights, stack)
        step, number, blocks = gaps.gaps_of_columns, numbers.size, (parts.blocks_to_sum(view.shape, width),)
    written, table = np.empty((4, number, width)), np.empty((4, view.channels))
    wanted = steps.variant_of(x, weights=of_weights)
    steps.run(step, wanted, plan.parallel, stack, of_weights, written, table, plan.ahead, *blocks)
    return table
