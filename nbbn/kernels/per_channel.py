"""Kernels over the channels alone: from statistics to the coefficients of the elementwise steps.

The outputs have ``repeats * channels * inner`` entries, each channel's coefficient at every column
that belongs to the channel (see channels_last; ``repeats == inner == 1`` gives one per channel).
"""

from __future__ import annotations

import math
from typing import Any

from nbbn._jit import Float, In64, Int, Out, Out64, OutParams, Params, helper, kernel
from nbbn.kernels.epilogue import inference_form, input_gradient_form
from nbbn.kernels.welford import finite_or


@helper
def spread(values: Any, repeats: int, channels: int, inner: int) -> None:
    """Copy the value at column ``channel * inner`` to all columns of the channel."""
    width = channels * inner
    for channel in range(channels):
        for i in range(1, inner):
            values[channel * inner + i] = values[channel * inner]
    for repeat in range(1, repeats):
        for column in range(width):
            values[repeat * width + column] = values[column]


@kernel
def form_from_statistics(
    mean: Params,
    var: Params,
    gamma: Params,
    beta: Params,
    eps: Float,
    repeats: Int,
    inner: Int,
    center: Out,
    scale: Out,
    shift: Out,
) -> None:
    """Write ``center, scale, shift`` from given statistics."""
    for c in range(mean.size):
        inference_form(
            c * inner,
            float(mean[c]),
            0.0,
            float(var[c]),
            eps,
            float(gamma[c]),
            float(beta[c]),
            center,
            scale,
            shift,
        )
    if repeats * inner > 1:
        spread(center, repeats, mean.size, inner)
        spread(scale, repeats, mean.size, inner)
        spread(shift, repeats, mean.size, inner)


@kernel
def form_from_moments(
    reference: In64,
    deviation: In64,
    m2: In64,
    freedom: Float,
    gamma: Params,
    beta: Params,
    eps: Float,
    repeats: Int,
    inner: Int,
    center: Out,
    scale: Out,
    shift: Out,
) -> None:
    """Write ``center, scale, shift`` from the moments of a batch; ``var = m2 / freedom``."""
    for c in range(reference.size):
        inference_form(
            c * inner,
            reference[c],
            deviation[c],
            m2[c] / freedom,
            eps,
            float(gamma[c]),
            float(beta[c]),
            center,
            scale,
            shift,
        )
    if repeats * inner > 1:
        spread(center, repeats, reference.size, inner)
        spread(scale, repeats, reference.size, inner)
        spread(shift, repeats, reference.size, inner)


@kernel
def summarize_batch(
    reference: In64,
    deviation: In64,
    m2: In64,
    freedom: Float,
    eps: Float,
    mean: Out64,
    mean_low: Out64,
    var: Out64,
    inv_std: Out64,
) -> None:
    """Write the mean as a float64 and what it leaves, ``var = m2 / freedom`` and ``inv_std``."""
    for c in range(reference.size):
        mean[c] = reference[c] + deviation[c]
        mean_low[c] = finite_or((reference[c] - mean[c]) + deviation[c], 0.0)
        var[c] = m2[c] / freedom
        inv_std[c] = 1.0 / math.sqrt(var[c] + eps)


@kernel
def move_average(running: OutParams, batch: In64, divisor: Float, momentum: Float) -> None:
    """Update ``running = (1 - momentum) * running + momentum * batch / divisor``."""
    for c in range(running.size):
        running[c] = (1.0 - momentum) * float(running[c]) + momentum * (batch[c] / divisor)


@kernel
def form_of_gradient(
    mean: In64,
    inv_std: In64,
    gamma: In64,
    count: Float,
    freedom: Float,
    sum_grad: In64,
    sum_grad_deviation: In64,
    repeats: Int,
    inner: Int,
    grad_center: Out,
    scale: Out,
    center: Out,
    slope: Out,
    shift: Out,
) -> None:
    """Write the coefficients of ``grad_x`` from the sums of backward."""
    for c in range(mean.size):
        input_gradient_form(
            c * inner,
            count,
            freedom,
            mean[c],
            inv_std[c],
            gamma[c],
            sum_grad[c],
            sum_grad_deviation[c],
            grad_center,
            scale,
            center,
            slope,
            shift,
        )
    if repeats * inner > 1:
        spread(grad_center, repeats, mean.size, inner)
        spread(scale, repeats, mean.size, inner)
        spread(center, repeats, mean.size, inner)
        spread(slope, repeats, mean.size, inner)
        spread(shift, repeats, mean.size, inner)
