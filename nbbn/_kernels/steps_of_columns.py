"""The compiled steps on channels that lie side by side: what Python calls, with loops to share out."""

from __future__ import annotations

import numpy as np
from numba import prange

from nbbn._compiler.jit import (
    Float,
    Form,
    IfGradient,
    IfResidual,
    IfWeights,
    Int,
    Kind,
    OutForm,
    OutStack,
    OutTable,
    Stack,
    Table,
    step,
)
from nbbn._compiler.vectors import has
from nbbn._kernels.coefficients import gradient_form, inference_form, parameter_gradients, spread
from nbbn._kernels.columns import (
    TILE,
    GradientTarget,
    Learned,
    Sums,
    Target,
    add_up_rest,
    add_up_tile,
    differentiate_tile,
    fold_to_sum,
    folded,
    has_gaps,
    look_at_rest,
    look_at_tile,
    matrix_to_write,
    normalize_tile,
    numbers_of_parts,
    parts_of,
    tiles_of,
    widths_of_parts,
    written_tasks,
)
from nbbn._kernels.memory import ZERO
from nbbn._kernels.statistics import add_parts, merge_parts, write_variances
from nbbn._kernels.table import MEAN


@step
def infer_columns(
    x: Stack,
    y: OutStack,
    residual: IfResidual,
    grad: IfGradient,
    form: Form,
    kind: Kind,
    slope: Float,
    streaming: Int,
) -> None:
    """Write ``y = activation((x - center) * scale + shift + residual)``.

    Or, with ``grad``, what reaches the activation's argument of the gradient with respect to y. Reads the
    inputs once, writes y once; y may be any of them. Parallel over tiles of columns of some rows.
    """
    outer, _, row = x.shape
    gaps = has_gaps(x, x) or has_gaps(y, x) or has_gaps(residual, x) or has_gaps(grad, x)
    matrix = matrix_to_write(x, gaps, streaming)
    numbers = spread(form, row // form.shape[1], matrix.width, x)
    fold = matrix.fold
    for task in prange(written_tasks(matrix, outer)):
        to = Target(y, residual, grad, numbers, kind, slope, streaming)
        normalize_tile(x, to, fold, np.intp(task))


@step
def moments_of_columns(
    x: Stack,
    weights: IfWeights,
    table: OutTable,
    form: OutForm,
    freedom: Float,
    eps: Float,
    ahead: Int,
) -> None:
    """Write the statistics of each channel to ``table``, which holds gamma and beta, and its coefficients to ``form``.

    ``freedom`` is ``n - correction``.

    With ``weights``, one a row, n is their sum. Reads x once; ``ahead``, asks for rows ahead of time. Parallel
    over tiles of columns of parts of the rows.
    """
    channels = table.shape[1]
    fold = fold_to_sum(x, has_gaps(x, x) or has(weights))
    matrix = folded(x.shape[1], x.shape[2], fold)
    numbers = numbers_of_parts(weights, x, matrix)
    parts = np.empty((3, numbers.shape[0], matrix.width))
    for task in prange(parts_of(x, matrix) * tiles_of(matrix.width, TILE)):
        look_at_tile(x, Learned(weights, numbers, parts, fold, ahead), np.intp(task))
    look_at_rest(x, Learned(weights, numbers, parts, fold, ahead))
    merge_parts(parts, numbers, ZERO, channels, channels, x.shape[2] // channels, table)
    write_variances(table, ZERO, channels, freedom, eps)
    inference_form(table, ZERO, channels, eps, form)


@step
def gradient_sums_of_columns(
    grad_y: Stack,
    x: Stack,
    mask: IfWeights,
    table: Table,
    sums: OutTable,
    form: OutForm,
    gradients: OutForm,
    count: Float,
    freedom: Float,
    ahead: Int,
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``sums``.

    And to ``form`` the coefficients of `gradient_of_columns`, of ``count`` values a channel;
    and to ``gradients`` those with respect to gamma and beta.

    Where ``mask`` is 0, one number a row, x may be NaN. Reads both arrays once. Parallel over tiles of
    columns of parts of the rows.
    """
    channels = table.shape[1]
    inner = x.shape[2] // channels
    fold = fold_to_sum(x, has_gaps(x, x) or has_gaps(grad_y, x) or has(mask))
    matrix = folded(x.shape[1], x.shape[2], fold)
    widths = widths_of_parts(x, matrix)
    parts = np.empty((2, widths.size, matrix.width))
    means = spread(table[MEAN : MEAN + 1], inner, matrix.width, table)
    for task in prange(parts_of(x, matrix) * tiles_of(matrix.width, TILE)):
        add_up_tile(grad_y, x, Sums(mask, means, parts, fold, ahead), np.intp(task))
    add_up_rest(grad_y, x, Sums(mask, means, parts, fold, ahead))
    add_parts(parts, widths, ZERO, channels, channels, inner, sums)
    gradient_form(table, sums, ZERO, channels, count, freedom, form)
    parameter_gradients(table, sums, ZERO, channels, gradients)


@step
def gradient_of_columns(
    grad_y: Stack, x: Stack, grad_x: OutStack, mask: IfWeights, form: Form, streaming: Int
) -> None:
    """Write ``grad_x`` with the coefficients in ``form``; where ``mask`` is 0, ``grad_y * gamma * inv_std``.

    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over tiles of columns
    of some rows.
    """
    outer, _, row = x.shape
    gaps = has_gaps(x, x) or has_gaps(grad_y, x) or has_gaps(grad_x, x) or has(mask)
    matrix = matrix_to_write(x, gaps, streaming)
    numbers = spread(form, row // form.shape[1], matrix.width, x)
    fold = matrix.fold
    for task in prange(written_tasks(matrix, outer)):
        to = GradientTarget(grad_x, mask, numbers, streaming)
        differentiate_tile(grad_y, x, to, fold, np.intp(task))
