"""The moving average of the running statistics."""

from __future__ import annotations

from nbbn._jit import Average, Float, In64, kernel


@kernel
def move_average(running: Average, batch: In64, divisor: Float, momentum: Float) -> None:
    """Update ``running = (1 - momentum) * running + momentum * batch / divisor``.

    In float64, rounded once to the dtype of ``running``.
    """
    for c in range(running.size):
        running[c] = (1.0 - momentum) * float(running[c]) + momentum * (batch[c] / divisor)
