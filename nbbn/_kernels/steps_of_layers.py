"""The compiled steps on numbers per channel: what a layer needs beside the loops over its data."""

from __future__ import annotations

import numpy as np

from nbbn._compiler.jit import Counter, Float, Parameters, Table, step
from nbbn._kernels.table import M2, MEAN, VAR

LARGEST = int(np.iinfo(np.int64).max)  # a number: numba compiles two functions for the question


@step
def move_averages(running: Parameters, batch: Table, divisor: Float, momentum: Float, counter: Counter) -> None:
    """Update running mean and variance, rows of one table, from the statistics of a batch; count it.

    ``running = (1 - momentum) * running + momentum * batch``, in float64, rounded once; the variance of the
    batch is its ``m2 / divisor``. The counter is raised here, as between two lines of Python a signal handler
    may raise.
    """
    for c in range(running.shape[1]):
        mean = (1.0 - momentum) * float(running[MEAN, c]) + momentum * batch[MEAN, c]
        var = (1.0 - momentum) * float(running[VAR, c]) + momentum * (batch[M2, c] / divisor)
        running[MEAN, c] = mean
        running[VAR, c] = var
    if counter[0] < LARGEST:
        counter[0] += 1
