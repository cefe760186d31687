"""The compiled steps on channels that lie side by side: what Python calls, with loops to share out.

Narrow rows may be read several to a row, of ``width`` values: see `nbbn._kernels.columns`. What is given a column
(coefficients, means, sums) says by its own width which.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from nbbn._compiler.jit import (
    Blocks,
    Float,
    Form,
    IfFused,
    IfFusedForm,
    IfNoted,
    IfResidual,
    IfWeights,
    Int,
    Kind,
    Numbers,
    OutForm,
    OutIfFused,
    OutStack,
    OutTable,
    Parts,
    Stack,
    Table,
    step,
)
from nbbn._kernels.coefficients import Channels, Counts, finish_moments, finish_sums
from nbbn._kernels.columns import (
    Learned,
    Sums,
    add_up_tile,
    block_at,
    differentiate_tile,
    layout_of,
    look_at_tile,
    normalize_tile,
)
from nbbn._kernels.elementwise import Forms, Fused, GradientTarget, Target
from nbbn._kernels.memory import ZERO


@step
def infer_columns(
    x: Stack,
    y: OutStack,
    residual: IfResidual,
    form: Form,
    kind: Kind,
    streaming: Int,
    noted: IfNoted,
    blocks: Blocks,
) -> None:
    """Write ``y = activation((x - center) * scale + shift + residual)``.

    ``noted[0]`` becomes 1 if x has an infinite value.
    Reads the inputs once, writes y once; y may be any of them. Parallel over tiles of columns of some rows.
    """
    for task in prange(x.shape[0] * len(blocks)):
        normalize_tile(x, Target(y, residual, form, kind, streaming, noted), block_at(blocks, np.intp(task)))


@step
def moments_of_columns(
    x: Stack,
    weights: IfWeights,
    numbers: Numbers,
    parts: Parts,
    table: OutTable,
    form: OutForm,
    freedom: Float,
    eps: Float,
    ahead: Int,
    blocks: Blocks,
) -> None:
    """Write the statistics of each channel to ``table``, which holds gamma and beta, and its coefficients to ``form``.

    ``freedom`` is ``n - correction``; ``numbers`` are how many values a column of each part has, or their
    ``weights``, one a row; ``parts``, (3, number of parts, width), is written over.

    Reads x once; ``ahead``, asks for rows ahead of time. Parallel over tiles of columns of parts of the rows.
    """
    for task in prange(x.shape[0] * len(blocks)):
        look_at_tile(x, Learned(weights, numbers, parts, ahead), block_at(blocks, np.intp(task)))
    layout, every = layout_of(x, parts, table.shape[1]), Channels(ZERO, table.shape[1])
    finish_moments(parts, numbers, layout, every, table, form, freedom, eps)


@step
def gradient_sums_of_columns(
    grad_y: Stack,
    x: Stack,
    mask: IfWeights,
    residual: IfFused,
    kept: OutIfFused,
    of_y: IfFusedForm,
    kind: Kind,
    means: Table,
    parts: Parts,
    table: Table,
    sums: OutTable,
    form: OutForm,
    count: Float,
    freedom: Float,
    blocks: Blocks,
) -> None:
    """Write ``sum(g)`` and ``sum(g * (x - mean))`` of each channel to ``sums``, and that of a learned slope.

    ``g`` is ``grad_y``, or what reaches the argument of an activation, which is written to ``kept`` unless that is
    empty; then ``of_y`` are the coefficients of the forward, and ``residual`` is empty where there was none.

    And to ``form`` the coefficients of `gradient_of_columns`, of ``count`` values a channel, and the gradients with
    respect to the parameters. ``means`` has one a column in its first row, ``of_y`` too; ``parts``, (2 or 3, number of
    parts, width), holds zeros, and is written over.

    Where ``mask`` is 0, one number a row, x may be NaN. Reads both arrays once. Parallel over tiles of
    columns of parts of the rows.
    """
    for task in prange(x.shape[0] * len(blocks)):
        fused = Fused(kind, of_y, residual, kept)
        add_up_tile(grad_y, x, Sums(mask, means, parts), fused, block_at(blocks, np.intp(task)))
    layout, every = layout_of(x, parts, table.shape[1]), Channels(ZERO, table.shape[1])
    finish_sums(parts, layout, every, table, sums, form, Counts(count, freedom))


@step
def gradient_of_columns(
    grad_y: Stack,
    x: Stack,
    grad_x: OutStack,
    mask: IfWeights,
    form: Form,
    of_y: IfFusedForm,
    kind: Kind,
    streaming: Int,
    blocks: Blocks,
) -> None:
    """Write ``grad_x`` with the coefficients in ``form``; where ``mask`` is 0, ``g * gamma * inv_std``.

    ``g`` is ``grad_y``, or what reaches the argument of an activation: ``of_y`` are the coefficients of the forward.
    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over tiles of columns
    of some rows.
    """
    for task in prange(x.shape[0] * len(blocks)):
        to = GradientTarget(grad_x, mask, Forms(form, of_y), kind, streaming)
        differentiate_tile(grad_y, x, to, block_at(blocks, np.intp(task)))
