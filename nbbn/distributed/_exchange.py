"""What workers tell each other: one message of a fixed size each, at the same point of the program.

A message is ``operation, failure, count`` and three numbers a channel. Both operations send as much,
so workers that are not at the same point find that out instead of waiting for bytes.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nbbn._checks import Vector
from nbbn.distributed._communicators import gather_of
from nbbn.moments import _two_sum

FORWARD, BACKWARD = 1, 2
_NAMES = {FORWARD: "forward", BACKWARD: "backward"}
_HEADER = 3
_ROWS = 3
_FAILURES = (
    *(TypeError, ValueError, FloatingPointError, RuntimeError, MemoryError, KeyboardInterrupt),
    BaseException,  # of any other kind
)


class Gathered(NamedTuple):
    """What the workers said, in rank order."""

    counts: Vector
    rows: NDArray[np.float64]  # (workers, 3, channels)


class Statistics(NamedTuple):
    """Moments of all workers together: the mean is ``mean + mean_low``."""

    number: float  # of values a channel
    mean: Vector
    mean_low: Vector
    m2: Vector


class Peers:
    """The workers of one layer, this one among them."""

    def __init__(self, comm: Any, channels: int) -> None:
        self.comm = comm
        self._gather = gather_of(comm)
        self._channels = channels
        self._here = threading.local()  # .silent: this thread owes the others a message

    @contextlib.contextmanager
    def call(self, operation: int) -> Iterator[None]:
        """Tell the others if the block raises before it has exchanged anything."""
        self._here.silent = True
        try:
            yield
        except BaseException as error:
            if self._here.silent:
                kinds = [isinstance(error, kind) for kind in _FAILURES]
                with contextlib.suppress(Exception):  # the error in hand says more
                    self._send(operation, kinds.index(True) + 1, 0.0, ())
            raise
        finally:
            self._here.silent = False

    def exchange(self, operation: int, count: float, *rows: Vector) -> Gathered:
        """Return what all workers gave to this call, unless one of them failed.

        Raises
        ------
        RuntimeError
            Where one of them raised, or is in another operation.
        """
        found = self._send(operation, 0, count, rows)
        for rank, (theirs, failure, _) in enumerate(found[:, :_HEADER].tolist()):
            if failure:
                kind = _FAILURES[int(failure) - 1]
                what = "an exception" if kind is BaseException else kind.__name__
            elif theirs != operation:
                what = f"a {_NAMES.get(int(theirs), 'message of another program')}"
            else:
                continue
            raise RuntimeError(
                f"workers: expected a {_NAMES[operation]} on each, got {what} on rank {rank}; the layer is unchanged"
            )
        return Gathered(found[:, 2], found[:, _HEADER:].reshape(len(found), _ROWS, -1))

    def _send(self, operation: int, failure: int, count: float, rows: tuple[Vector, ...]) -> Any:
        self._here.silent = False
        message = np.zeros(_HEADER + _ROWS * self._channels)
        message[:_HEADER] = operation, failure, count
        body = message[_HEADER:].reshape(_ROWS, -1)
        for to, row in zip(body, rows, strict=False):
            to[...] = row
        return self._gather(message)


def merged(gathered: Gathered) -> Statistics:
    r"""Return the moments of all workers together.

    .. math:: n = \sum n_i, \quad \bar x = \frac1n \sum n_i \bar x_i, \quad
              M_2 = \sum M_{2,i} + \sum n_i (\bar x_i - \bar x)^2

    The mean is found twice: roughly, then from the deviations of the workers' means from that,
    which are exact to their own last digits, however far from 0 the means are.
    """
    counts, rows = gathered
    present = counts > 0.0
    if not present.all():
        counts, rows = counts[present], rows[present]
    if not counts.size:
        return Statistics(0.0, *np.zeros(rows.shape[1:]))
    means, lows, squares = rows[:, 0], rows[:, 1], rows[:, 2]
    total = counts.sum()
    with np.errstate(all="ignore"):
        # Not as products of matrices: their bits would depend on the processor.
        counts = counts[:, None]
        share = counts / total
        rough = means[0] + (share * (means - means[0])).sum(axis=0)
        deviations, error = _two_sum(means, -rough)
        deviations += error + lows
        rest = (share * deviations).sum(axis=0)
        mean, low = _two_sum(rough, rest)
        deviations -= rest
        deviations *= deviations
        deviations *= counts
        m2 = squares.sum(axis=0) + deviations.sum(axis=0)
        finite = np.isfinite(mean)
        # Infinities have no deviations from each other, but a mean.
        mean = np.where(finite, mean, means.sum(axis=0))
    return Statistics(float(total), mean, np.where(finite & np.isfinite(low), low, 0.0), m2)
