"""The moving average of the running statistics."""

from __future__ import annotations

from nbbn._jit import Average, Counter, Float, In64, OutTable, Table64, kernel
from nbbn.kernels.table import M2, MEAN, VAR

_MOST = (1 << 63) - 1  # that a counter holds


@kernel
def move_average(running: Average, batch: In64, divisor: Float, momentum: Float) -> None:
    """Update ``running = (1 - momentum) * running + momentum * batch / divisor``.

    In float64, rounded once to the dtype of ``running``.
    """
    for c in range(running.size):
        running[c] = (1.0 - momentum) * float(running[c]) + momentum * (batch[c] / divisor)


@kernel
def move_averages(
    running: OutTable, batch: Table64, divisor: Float, momentum: Float, counter: Counter
) -> None:
    """Update running mean and variance, rows of one table, from the statistics of a batch; count it.

    The variance of the batch is its ``m2 / divisor``. The counter is raised here, as between two lines of
    Python a signal handler may raise.
    """
    for c in range(running.shape[1]):
        mean = (1.0 - momentum) * float(running[MEAN, c]) + momentum * batch[MEAN, c]
        var = (1.0 - momentum) * float(running[VAR, c]) + momentum * (batch[M2, c] / divisor)
        running[MEAN, c] = mean
        running[VAR, c] = var
    if counter[0] < _MOST:
        counter[0] += 1
