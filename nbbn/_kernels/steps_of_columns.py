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
from nbbn._kernels.coefficients import Counts, finish_moments, finish_sums
from nbbn._kernels.columns import add_up_tile, are_whole, block_at, layout_of, look_at_tile, write_tile
from nbbn._kernels.elementwise import Forms, Given, Target, backward, forward
from nbbn._kernels.statistics import Samples


@step
def infer_columns(
    x: jit.Stack, y: jit.OutStack, residual: jit.IfResidual,
    form: jit.Form, kind: jit.Kind, streaming: jit.Int, noted: jit.IfNoted, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`infer_runs` of channels that lie side by side. Parallel over tiles of columns of some rows."""
    fold = form.shape[1] // x.shape[2]
    for task in prange(x.shape[0] * len(blocks)):
        given, to = Given(None, x, None, residual, None, kind, noted), Target(y, Forms(None, form), streaming)
        write_tile(forward, given, to, block_at(blocks, np.intp(task)), fold)


@step
def moments_of_columns(
    x: jit.Stack, weights: jit.IfWeights, numbers: jit.IfNumbers,
    parts: jit.Parts, table: jit.OutTable, form: jit.OutForm,
    freedom: jit.Float, eps: jit.Float, ahead: jit.Int, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`moments_of_runs` of channels that lie side by side.

    ``numbers`` are the sums of the ``weights`` of each part, one a row; ``parts``, (4, number of parts, width), is
    written over.

    ``ahead``, it asks for rows ahead of time. Parallel over tiles of columns of parts of the rows.
    """
    at_once = are_whole(parts, table)
    for task in prange(x.shape[0] * len(blocks)):
        block = block_at(blocks, np.intp(task))
        look_at_tile(Samples(x, weights), numbers, parts, block, ahead)
        if at_once:
            layout, stop = layout_of(x, parts, table.shape[1]), block.first + block.columns
            finish_moments(parts, layout, block.first, stop, table, form, freedom, eps)
    if not at_once:
        layout = layout_of(x, parts, table.shape[1])
        finish_moments(parts, layout, ZERO, table.shape[1], table, form, freedom, eps)


@step
def gradient_sums_of_columns(
    grad_y: jit.Stack, x: jit.Stack, mask: jit.IfWeights, residual: jit.IfFused, kept: jit.OutIfFused,
    of_y: jit.IfFusedForm, kind: jit.Kind, means: jit.Table,
    parts: jit.Parts, table: jit.Table, sums: jit.OutTable, form: jit.OutForm,
    count: jit.Float, freedom: jit.Float, ahead: jit.Int, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`gradient_sums_of_runs` of channels that lie side by side; ``form`` is for `gradient_of_columns`.

    ``means`` has one a column in its first row, ``of_y`` too; ``parts``, (2 or 3, number of parts, width), holds zeros,
    and is written over; ``mask`` has one number a row. ``ahead``, it asks for rows ahead of time. Parallel over tiles
    of columns of parts of the rows.
    """
    at_once = are_whole(parts, table)
    for task in prange(x.shape[0] * len(blocks)):
        given, block = Given(grad_y, x, mask, residual, kept, kind, None), block_at(blocks, np.intp(task))
        add_up_tile(given, means, of_y, parts, block, ahead)
        if at_once:
            layout, stop = layout_of(x, parts, table.shape[1]), block.first + block.columns
            finish_sums(parts, layout, block.first, stop, table, sums, form, Counts(count, freedom))
    if not at_once:
        layout = layout_of(x, parts, table.shape[1])
        finish_sums(parts, layout, ZERO, table.shape[1], table, sums, form, Counts(count, freedom))


@step
def gradient_of_columns(
    grad_y: jit.Stack, x: jit.Stack, grad_x: jit.OutStack, mask: jit.IfWeights,
    form: jit.Form, of_y: jit.IfFusedForm, kind: jit.Kind, streaming: jit.Int, blocks: jit.Blocks,
) -> None:  # fmt: skip
    """`gradient_of_runs` of channels that lie side by side. Parallel over tiles of columns of some rows."""
    fold = form.shape[1] // x.shape[2]
    for task in prange(x.shape[0] * len(blocks)):
        given, to = Given(grad_y, x, mask, None, None, kind, None), Target(grad_x, Forms(form, of_y), streaming)
        write_tile(backward, given, to, block_at(blocks, np.intp(task)), fold)
