"""Whole steps in one thread, for `nbbn.nopython`: those of runs and columns, as helpers.

Arrays are contiguous stacks, (outer, C, inner). Called for each sample, they take little memory: coefficients,
and what is kept for the parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn._compiler.jit import allocating, helper
from nbbn._compiler.memory import load
from nbbn._compiler.vectors import LANES, splat, widen, working_dtype
from nbbn._kernels import columns, runs
from nbbn._kernels.coefficients import write_coefficients
from nbbn._kernels.steps_of_columns import infer_columns, moments_of_columns
from nbbn._kernels.steps_of_runs import infer_runs, moments_of_runs
from nbbn._kernels.table import FORM_ROWS, M2, MEAN, STATISTICS_ROWS

SMALL_INNER = 16  # below, a run is only a partial vector; see `nbbn._engine.views`
FEW_ROWS = 8

_infer_runs = helper(infer_runs.function)
_infer_columns = helper(infer_columns.function)
_moments_of_runs = helper(moments_of_runs.function)
_moments_of_columns = helper(moments_of_columns.function)
_width_to_sum = helper(columns.width_to_sum)
_width_to_write = helper(columns.width_to_write)
_blocks_of = allocating(columns.blocks_of)
_numbers_of_runs = allocating(runs.numbers_of_parts)


@helper
def are_runs(outer: int, channels: int, inner: int) -> bool:
    """Whether channels are taken one by one: long runs, or few short ones."""
    return channels == 1 or inner >= SMALL_INNER or (inner > 1 and outer < FEW_ROWS)


@allocating
def normalize_sample(x3: Any, center: Any, scale: Any, shift: Any, out3: Any) -> None:
    """Write ``out3 = (x3 - center) * scale + shift``; there are values."""
    outer, channels, inner = x3.shape
    form = np.empty((FORM_ROWS, channels), working_dtype(x3))
    for c in range(0, channels, LANES):
        n = channels - c
        affine = widen(load(scale, c, n)), widen(load(shift, c, n)), splat(0.0)
        mean = widen(load(center, c, n))
        write_coefficients(form, c, n, mean, splat(0.0), splat(1.0), affine)
    if are_runs(outer, channels, inner):
        _infer_runs(x3, out3, None, form, (), 0, None)
        return
    row = channels * inner
    width = _width_to_write(outer, row, form.itemsize, 0)
    if width > channels:
        one = form
        form = np.empty((FORM_ROWS, width), working_dtype(x3))
        for which in range(FORM_ROWS):
            for j in range(width):
                form[which, j] = one[which, j // inner % channels]
    x, y = x3.reshape((1, outer, row)), out3.reshape((1, outer, row))
    _infer_columns(x, y, None, form, (), 0, None, _blocks_of(outer, row, width, columns.WIDE_TILE))


@allocating
def moments_of_sample(x3: Any, mean: Any, m2: Any) -> None:
    """Write the mean and m2 of each channel; there are values."""
    outer, channels, inner = x3.shape
    table, form = np.empty((STATISTICS_ROWS, channels)), np.empty((FORM_ROWS, channels), working_dtype(x3))
    if are_runs(outer, channels, inner):
        parts = np.empty((4, _numbers_of_runs(outer, inner).size, channels))
        _moments_of_runs(x3, None, None, parts, table, form, 1.0, 0.0, 1)
    else:
        row = channels * inner
        width = _width_to_sum(1, outer, row)
        blocks = _blocks_of(outer, row, width, columns.TILE)
        parts = np.empty((4, blocks[len(blocks) - 1, 0] + 1, width))
        x = x3.reshape((1, outer, row))
        _moments_of_columns(x, None, None, parts, table, form, 1.0, 0.0, 0, blocks)
    for c in range(channels):
        mean[c] = table[MEAN, c]
        m2[c] = table[M2, c]
