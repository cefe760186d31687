"""The compiled steps on numbers per channel: what a layer needs beside the loops over its data."""

from __future__ import annotations

import numpy as np

from nbbn._compiler.jit import Counter, Float, Parameters, Table, step
from nbbn._compiler.memory import load_upto, store_upto
from nbbn._compiler.vectors import LANES, narrow, splat, widen
from nbbn._kernels.table import M2, MEAN, VAR


@step
def move_averages(
    running: Parameters, batch: Table, divisor: Float, momentum: Float, counter: Counter
) -> None:
    """Update running mean and variance, rows of one table, from the statistics of a batch; count it.

    ``running = (1 - momentum) * running + momentum * batch``, in float64, rounded once; the variance of the
    batch is its ``m2 / divisor``. The counter is raised here, as between two lines of Python a signal handler
    may raise.
    """
    channels = running.shape[1]
    old, new = splat(1.0 - momentum), splat(momentum)
    for c in range(0, channels, LANES):
        n = channels - c
        mean, var = (
            widen(load_upto(running, MEAN * channels + c, n)),
            widen(load_upto(running, VAR * channels + c, n)),
        )
        mean = old * mean + new * load_upto(batch, MEAN * channels + c, n)
        var = old * var + new * (load_upto(batch, M2 * channels + c, n) / splat(divisor))
        store_upto(running, MEAN * channels + c, n, narrow(running, mean))
        store_upto(running, VAR * channels + c, n, narrow(running, var))
    if counter[0] < np.iinfo(np.int64).max:
        counter[0] += 1
