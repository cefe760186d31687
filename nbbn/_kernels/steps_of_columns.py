"""The compiled steps on channels that lie side by side: those of `nbbn._kernels.steps_of_runs`, column by column.

Narrow rows may be read several to a row, of ``width`` values: see `nbbn._kernels.columns`. What is given a column
(coefficients, means, sums) says by its own width which.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbbn._compiler import jit
from nbbn._compiler.jit import step
from nbbn._compiler.memory import ZERO
from nbbn._kernels.coefficients import Channels, Counts, finish_moments, finish_sums
from nbbn._kernels.columns import (
    add_up_tile,
    are_whole,
    block_at,
    differentiate_tile,
    layout_of,
    look_at_tile,
    normalize_tile,
)
from nbbn._kernels.elementwise import Backward, Forms, Forward, Target
from nbbn._kernels.statistics import Samples


@step
def infer_columns(
    x: jit.Stack, y: jit.OutStack, residual: jit.IfResidual,
    form: jit.Form, kind: jit.Kind, streaming: jit.Int, noted: jit.IfNoted, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`infer_runs` of channels that lie side by side. Parallel over tiles of columns of some rows."""
    for task in prange(x.shape[0] * len(blocks)):
        given, to = Forward(x, residual, kind, noted), Target(y, form, streaming)
        normalize_tile(given, to, block_at(blocks, np.intp(task)))


@step
def moments_of_columns(
    x: jit.Stack, weights: jit.IfWeights, numbers: jit.Numbers,
    parts: jit.Parts, table: jit.OutTable, form: jit.OutForm,
    freedom: jit.Float, eps: jit.Float, ahead: jit.Int, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`moments_of_runs` of channels that lie side by side.

    ``numbers`` are how many values a column of each part has, or their ``weights``, one a row; ``parts``, (3, number of
    parts, width), is written over.

    ``ahead``, it asks for rows ahead of time. Parallel over tiles of columns of parts of the rows.
    """
    at_once = are_whole(parts, table)
    for task in prange(x.shape[0] * len(blocks)):
        block = block_at(blocks, np.intp(task))
        look_at_tile(Samples(x, weights), numbers, parts, block, ahead)
        if at_once:
            tile = Channels(block.first, block.first + block.columns)
            finish_moments(parts, numbers, layout_of(x, parts, table.shape[1]), tile, table, form, freedom, eps)
    if not at_once:
        layout, every = layout_of(x, parts, table.shape[1]), Channels(ZERO, table.shape[1])
        finish_moments(parts, numbers, layout, every, table, form, freedom, eps)


@step
def gradient_sums_of_columns(
    grad_y: jit.Stack, x: jit.Stack, mask: jit.IfWeights, residual: jit.IfFused, kept: jit.OutIfFused,
    of_y: jit.IfFusedForm, kind: jit.Kind, means: jit.Table,
    parts: jit.Parts, table: jit.Table, sums: jit.OutTable, form: jit.OutForm,
    count: jit.Float, freedom: jit.Float, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`gradient_sums_of_runs` of channels that lie side by side; ``form`` is for `gradient_of_columns`.

    ``means`` has one a column in its first row, ``of_y`` too; ``parts``, (2 or 3, number of parts, width), holds zeros,
    and is written over; ``mask`` has one number a row. Parallel over tiles of columns of parts of the rows.
    """
    at_once = are_whole(parts, table)
    for task in prange(x.shape[0] * len(blocks)):
        given, block = Backward(grad_y, x, mask, residual, kept, kind), block_at(blocks, np.intp(task))
        add_up_tile(given, means, of_y, parts, block)
        if at_once:
            tile = Channels(block.first, block.first + block.columns)
            finish_sums(parts, layout_of(x, parts, table.shape[1]), tile, table, sums, form, Counts(count, freedom))
    if not at_once:
        layout, every = layout_of(x, parts, table.shape[1]), Channels(ZERO, table.shape[1])
        finish_sums(parts, layout, every, table, sums, form, Counts(count, freedom))


@step
def gradient_of_columns(
    grad_y: jit.Stack, x: jit.Stack, grad_x: jit.OutStack, mask: jit.IfWeights,
    form: jit.Form, of_y: jit.IfFusedForm, kind: jit.Kind, streaming: jit.Int, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`gradient_of_runs` of channels that lie side by side. Parallel over tiles of columns of some rows."""
    for task in prange(x.shape[0] * len(blocks)):
        given, to = Backward(grad_y, x, mask, None, None, kind), Target(grad_x, Forms(form, of_y), streaming)
        differentiate_tile(given, to, block_at(blocks, np.intp(task)))
