"""The compiled steps on channels that are runs of values: what Python calls, with loops to share out."""

from __future__ import annotations

import numpy as np
from numba import prange

from nbbn._compiler import jit
from nbbn._compiler.jit import step
from nbbn._compiler.memory import ONE, ZERO
from nbbn._compiler.vectors import larger, smaller
from nbbn._kernels.coefficients import Counts, finish_moments, finish_sums
from nbbn._kernels.elementwise import Forms, Given, Target, backward, forward
from nbbn._kernels.runs import Products, add_up_group, look_at_group, write_channel, write_runs
from nbbn._kernels.statistics import PIECE, Layout, Samples


@step
def infer_runs(
    x: jit.Stack, y: jit.OutStack, residual: jit.IfResidual,
    form: jit.Form, kind: jit.Kind, streaming: jit.Int, noted: jit.IfNoted,
) -> None:  # fmt: skip
    """Write ``y = activation((x - center) * scale + shift + residual)``.

    ``noted[0]`` becomes 1 if x has an infinite value.
    Reads the inputs once, writes y once; y may be any of them. Parallel over the runs, long ones cut in segments.
    """
    outer, channels, inner = x.shape
    depth = larger(ONE, PIECE // inner)
    tasks = (outer * channels + depth - 1) // depth * ((inner + PIECE - 1) // PIECE)
    for task in prange(tasks):
        given, to = Given(None, x, None, residual, None, kind, noted), Target(y, Forms(None, form), streaming)
        write_runs(forward, given, to, np.intp(task))


@step
def moments_of_runs(
    x: jit.Stack, weights: jit.IfWeights, numbers: jit.IfNumbers,
    parts: jit.Parts, table: jit.OutTable, form: jit.OutForm,
    freedom: jit.Float, eps: jit.Float, group: jit.Int,
) -> None:  # fmt: skip
    """Write the statistics of each channel to ``table``, which holds gamma and beta, and its coefficients to ``form``.

    ``freedom`` is ``n - correction``; ``numbers`` are the sums of the ``weights`` of each part, (outer, inner) without
    gaps; ``parts``, (4, number of parts, C), is written over.

    Reads x once, in memory's order. Parallel over the parts of groups of channels.
    """
    channels = x.shape[1]
    groups = (channels + group - 1) // group
    for task in prange(groups * parts.shape[1]):
        part, first = np.intp(task // groups), np.intp(task % groups) * group
        stop = smaller(first + group, channels)
        look_at_group(Samples(x, weights), numbers, parts, first, stop, part)
    layout = Layout(parts.shape[1], ONE, ONE)
    finish_moments(parts, layout, ZERO, channels, table, form, freedom, eps)


@step
def train_channels(
    x: jit.Stack, y: jit.OutStack, residual: jit.IfResidual, weights: jit.IfWeights, numbers: jit.IfNumbers,
    parts: jit.Parts, table: jit.OutTable, form: jit.OutForm, kind: jit.Kind,
    freedom: jit.Float, eps: jit.Float, streaming: jit.Int,
) -> None:  # fmt: skip
    """`moments_of_runs`, then `infer_runs`, of one channel after the other.

    For data past the cache: where a channel's values fit it, x is read from memory once and y written once.
    ``table`` holds gamma and beta; y may be x. Parallel over the channels.
    """
    channels, number = x.shape[1], parts.shape[1]
    for task in prange(channels):
        c = np.intp(task)
        for part in range(number):
            look_at_group(Samples(x, weights), numbers, parts, c, c + 1, part)
        layout = Layout(number, ONE, ONE)
        finish_moments(parts, layout, c, c + 1, table, form, freedom, eps)
        given, to = Given(None, x, None, residual, None, kind, None), Target(y, Forms(None, form), streaming)
        write_channel(forward, given, to, c)


@step
def gradient_sums_of_runs(
    grad_y: jit.Stack, x: jit.Stack, mask: jit.IfWeights, residual: jit.IfFused, kept: jit.OutIfFused,
    of_y: jit.IfFusedForm, kind: jit.Kind,
    parts: jit.Parts, table: jit.Table, sums: jit.OutTable, form: jit.OutForm,
    count: jit.Float, freedom: jit.Float, group: jit.Int,
) -> None:  # fmt: skip
    """Write ``sum(g)`` and ``sum(g * (x - mean))`` of each channel to ``sums``, and that of a learned slope.

    ``g`` is ``grad_y``, or what reaches the argument of an activation, which is written to ``kept`` unless that is
    empty; then ``of_y`` are the coefficients of the forward, and ``residual`` is empty where there was none.

    And to ``form`` the coefficients of `gradient_of_runs`, of ``count`` values a channel, and the gradients with
    respect to the parameters.

    Where ``mask`` is 0, (outer, inner) without gaps, x may be NaN. Reads both arrays once. Parallel over the
    parts of groups of channels.
    """
    channels = x.shape[1]
    groups = (channels + group - 1) // group
    for task in prange(groups * parts.shape[1]):
        part, first = np.intp(task // groups), np.intp(task % groups) * group
        stop = smaller(first + group, channels)
        given = Products(Given(grad_y, x, mask, residual, kept, kind, None), table, of_y)
        add_up_group(given, parts, first, stop, part)
    layout = Layout(parts.shape[1], ONE, ONE)
    finish_sums(parts, layout, ZERO, channels, table, sums, form, Counts(count, freedom))


@step
def gradient_of_runs(
    grad_y: jit.Stack, x: jit.Stack, grad_x: jit.OutStack, mask: jit.IfWeights,
    form: jit.Form, of_y: jit.IfFusedForm, kind: jit.Kind, streaming: jit.Int,
) -> None:  # fmt: skip
    """Write ``grad_x`` with the coefficients in ``form``; where ``mask`` is 0, ``g * gamma * inv_std``.

    ``g`` is ``grad_y``, or what reaches the argument of an activation: ``of_y`` are the coefficients of the forward.
    Reads both arrays once, writes grad_x once; grad_x may be either of them. Parallel over the runs.
    """
    outer, channels, inner = x.shape
    depth = larger(ONE, PIECE // inner)
    tasks = (outer * channels + depth - 1) // depth * ((inner + PIECE - 1) // PIECE)
    for task in prange(tasks):
        given, to = Given(grad_y, x, mask, None, None, kind, None), Target(grad_x, Forms(form, of_y), streaming)
        write_runs(backward, given, to, np.intp(task))


@step
def differentiate_channels(
    grad_y: jit.Stack, x: jit.Stack, grad_x: jit.OutStack, mask: jit.IfWeights,
    of_y: jit.IfFusedForm, kind: jit.Kind,
    parts: jit.Parts, table: jit.Table, sums: jit.OutTable, form: jit.OutForm,
    count: jit.Float, freedom: jit.Float, streaming: jit.Int,
) -> None:  # fmt: skip
    """`gradient_sums_of_runs`, then `gradient_of_runs`, of one channel after the other.

    For data past the cache: see `train_channels`.
    """
    channels, number = x.shape[1], parts.shape[1]
    for task in prange(channels):
        c = np.intp(task)
        given = Given(grad_y, x, mask, None, None, kind, None)
        for part in range(number):
            add_up_group(Products(given, table, of_y), parts, c, c + 1, part)
        layout = Layout(number, ONE, ONE)
        finish_sums(parts, layout, c, c + 1, table, sums, form, Counts(count, freedom))
        write_channel(backward, given, Target(grad_x, Forms(form, of_y), streaming), c)
