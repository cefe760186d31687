"""The compiled steps on channels that are runs of values: what Python calls, with loops to share out."""

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
from nbbn._compiler.vectors import working_dtype
from nbbn._kernels.coefficients import gradient_form, inference_form, parameter_gradients
from nbbn._kernels.memory import ONE, ZERO, larger, smaller
from nbbn._kernels.runs import (
    PIECE,
    GradientTarget,
    Learned,
    Sums,
    Target,
    add_up_group,
    cut_of,
    differentiate_channel,
    differentiate_runs,
    look_at_group,
    normalize_channel,
    normalize_runs,
    numbers_of_parts,
)
from nbbn._kernels.statistics import add_parts, merge_parts, write_variances


@step
def infer_runs(
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
    inputs once, writes y once; y may be any of them. Parallel over the runs, long ones cut in segments.
    """
    outer, channels, inner = x.shape
    depth = larger(ONE, PIECE // inner)
    tasks = (outer * channels + depth - 1) // depth * ((inner + PIECE - 1) // PIECE)
    for task in prange(tasks):
        normalize_runs(x, Target(y, residual, grad, form, kind, slope, streaming), np.intp(task))


@step
def moments_of_runs(
    x: Stack,
    weights: IfWeights,
    table: OutTable,
    form: OutForm,
    freedom: Float,
    eps: Float,
    group: Int,
) -> None:
    """Write the statistics of each channel to ``table``, which holds gamma and beta, and its coefficients to ``form``.

    ``freedom`` is ``n - correction``.

    With ``weights``, (outer, inner) without gaps, n is their sum. Reads x once, in memory's order. Parallel
    over the parts of groups of channels.
    """
    outer, channels, inner = x.shape
    cut = cut_of(outer, inner)
    numbers = numbers_of_parts(weights, cut, outer, channels, inner)
    parts = np.empty((3, cut.parts, channels))
    number = cut.parts
    groups = (channels + group - 1) // group
    for task in prange(groups * number):
        part, first = np.intp(task // groups), np.intp(task % groups) * group
        stop = smaller(first + group, channels)
        look_at_group(x, Learned(weights, numbers, parts), first, stop, part)
    merge_parts(parts, numbers, ZERO, channels, channels, ONE, table)
    write_variances(table, ZERO, channels, freedom, eps)
    inference_form(table, ZERO, channels, eps, form)


@step
def train_channels(
    x: Stack,
    y: OutStack,
    residual: IfResidual,
    weights: IfWeights,
    table: OutTable,
    kind: Kind,
    slope: Float,
    freedom: Float,
    eps: Float,
    streaming: Int,
) -> None:
    """`moments_of_runs`, then `infer_runs`, of one channel after the other.

    For data past the cache: where a channel's values fit it, x is read from memory once and y written once.
    ``table`` holds gamma and beta; y may be x. Parallel over the channels.
    """
    outer, channels, inner = x.shape
    cut = cut_of(outer, inner)
    numbers = numbers_of_parts(weights, cut, outer, channels, inner)
    parts = np.empty((3, cut.parts, channels))
    form = np.empty((3, channels), working_dtype(x))
    number = cut.parts
    for task in prange(channels):
        c = np.intp(task)
        for part in range(number):
            look_at_group(x, Learned(weights, numbers, parts), c, c + 1, part)
        merge_parts(parts, numbers, c, c + 1, channels, ONE, table)
        write_variances(table, c, c + 1, freedom, eps)
        inference_form(table, c, c + 1, eps, form)
        normalize_channel(x, Target(y, residual, None, form, kind, slope, streaming), c)


@step
def gradient_sums_of_runs(
    grad_y: Stack,
    x: Stack,
    mask: IfWeights,
    table: Table,
    sums: OutTable,
    form: OutForm,
    gradients: OutForm,
    count: Float,
    freedom: Float,
    group: Int,
) -> None:
    """Write ``sum(grad_y)`` and ``sum(grad_y * (x - mean))`` of each channel to ``sums``.

    And to ``form`` the coefficients of `gradient_of_runs`, of ``count`` values a channel;
    and to ``gradients`` those with respect to gamma and beta.

    Where ``mask`` is 0, (outer, inner) without gaps, x may be NaN. Reads both arrays once. Parallel over the
    parts of groups of channels.
    """
    outer, channels, inner = x.shape
    cut = cut_of(outer, inner)
    parts = np.empty((2, cut.parts, channels))
    widths = np.full(cut.parts, channels)
    groups = (channels + group - 1) // group
    for task in prange(groups * cut.parts):
        part, first = np.intp(task // groups), np.intp(task % groups) * group
        stop = smaller(first + group, channels)
        add_up_group(grad_y, x, Sums(mask, table, parts), first, stop, part)
    add_parts(parts, widths, ZERO, channels, channels, ONE, sums)
    gradient_form(table, sums, ZERO, channels, count, freedom, form)
    parameter_gradients(table, sums, ZERO, channels, gradients)


@step
def gradient_of_runs(
    grad_y: Stack, x: Stack, grad_x: OutStack, mask: IfWeights, form: Form, streaming: Int
) -> None:
    """Write ``grad_x`` with the coefficients in ``form``; where ``mask`` is 0, ``grad_y * gamma * inv_std``.

    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over the runs.
    """
    outer, channels, inner = x.shape
    depth = larger(ONE, PIECE // inner)
    tasks = (outer * channels + depth - 1) // depth * ((inner + PIECE - 1) // PIECE)
    for task in prange(tasks):
        differentiate_runs(grad_y, x, GradientTarget(grad_x, mask, form, streaming), np.intp(task))


@step
def differentiate_channels(
    grad_y: Stack,
    x: Stack,
    grad_x: OutStack,
    mask: IfWeights,
    table: Table,
    sums: OutTable,
    gradients: OutForm,
    count: Float,
    freedom: Float,
    streaming: Int,
) -> None:
    """`gradient_sums_of_runs`, then `gradient_of_runs`, of one channel after the other.

    For data past the cache: see `train_channels`.
    """
    outer, channels, inner = x.shape
    cut = cut_of(outer, inner)
    form = np.empty((6, channels), working_dtype(x))
    parts = np.empty((2, cut.parts, channels))
    widths = np.full(cut.parts, channels)
    number = cut.parts
    for task in prange(channels):
        c = np.intp(task)
        for part in range(number):
            add_up_group(grad_y, x, Sums(mask, table, parts), c, c + 1, part)
        add_parts(parts, widths, c, c + 1, channels, ONE, sums)
        gradient_form(table, sums, c, c + 1, count, freedom, form)
        parameter_gradients(table, sums, c, c + 1, gradients)
        differentiate_channel(grad_y, x, GradientTarget(grad_x, mask, form, streaming), c)
