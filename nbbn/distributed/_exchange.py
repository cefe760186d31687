"""What workers tell each other: one message of a fixed size each, at the same point of the program.

A message is ``operation, failure, count`` and three numbers a channel: of a forward mean, mean_low and m2, of a
backward the sums. Both are as long, so workers that are not at the same point find it out and wait for no bytes.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from nbbn._checks import Array, Vector
from nbbn.moments import _two_sum

FORWARD, BACKWARD = 1, 2
_NAMES = {FORWARD: "forward", BACKWARD: "backward"}
_HEADER = 3
_ROWS = 3
# The last is of any other kind.
_FAILURES = TypeError, ValueError, FloatingPointError, RuntimeError, MemoryError, KeyboardInterrupt, BaseException


class Peers:
    """The workers of one layer, this one among them."""

    def __init__(self, comm: Any, channels: int) -> None:
        self.comm, self._gather, self._channels = comm, _gather_of(comm), channels
        self._here = threading.local()  # .silent: this thread owes the others a message

    @contextlib.contextmanager
    def call(self, operation: int) -> Iterator[None]:
        """Tell the others if the block raises before it has exchanged anything."""
        self._here.silent = True
        try:
            yield
        except BaseException as error:
            if self._here.silent:
                with contextlib.suppress(Exception):  # the error in hand says more
                    self._send(operation, [isinstance(error, kind) for kind in _FAILURES].index(True) + 1)
            raise
        finally:
            self._here.silent = False

    def exchange(self, operation: int, count: float, rows: Array) -> tuple[Vector, Array]:
        """Return the counts of all workers, in rank order, and their rows, (workers, 3, channels).

        A RuntimeError where one of them raised, or is in another operation.
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
        return found[:, 2], found[:, _HEADER:].reshape(len(found), _ROWS, -1)

    def _send(self, operation: int, failure: int, count: float = 0.0, rows: Array | None = None) -> Array:
        self._here.silent = False
        message = np.zeros(_HEADER + _ROWS * self._channels)
        message[:_HEADER] = operation, failure, count
        if rows is not None:
            message[_HEADER : _HEADER + rows.size] = rows.ravel()
        return self._gather(message)


def _gather_of(comm: Any) -> Callable[[Vector], Array]:
    """Return a function of a message of this worker that returns a row of each worker's, in rank order.

    A library is known by the module of the object's class, and imported only then.
    """
    libraries = {base.__module__.partition(".")[0] for base in type(comm).__mro__}
    if "mpi4py" in libraries:
        from mpi4py import MPI

        # An intercommunicator would gather what the other group says, without this one.
        if isinstance(comm, MPI.Intracomm) and comm != MPI.COMM_NULL:
            return functools.partial(_gather_mpi, comm)
    elif "torch" in libraries:
        from torch import distributed

        if distributed.is_available() and isinstance(comm, distributed.ProcessGroup):
            return functools.partial(_gather_torch, comm)
    elif callable(getattr(comm, "allgather", None)):
        return functools.partial(_gather_lists, comm)
    raise TypeError(
        "comm: expected an mpi4py communicator, a torch.distributed process group, or an object with "
        f"allgather(array) -> list of arrays, got {type(comm).__qualname__}"
    )


def _gather_mpi(comm: Any, message: Vector) -> Array:
    found = np.empty((comm.Get_size(), message.size))
    comm.Allgather(message, found)
    return found


def _gather_torch(comm: Any, message: Vector) -> Array:
    import torch

    found = torch.empty((comm.size(), message.size), dtype=torch.float64, device="cpu")
    torch.distributed.all_gather(list(found.unbind()), torch.from_numpy(message), group=comm)
    return np.asarray(found)


def _gather_lists(comm: Any, message: Vector) -> Array:
    rows = [np.asarray(row, np.float64) for row in comm.allgather(message)]
    if not rows or any(row.shape != message.shape for row in rows):
        raise RuntimeError(
            f"comm.allgather: expected a list of arrays of shape {message.shape}, one of each "
            f"worker, got shapes {[row.shape for row in rows]}"
        )
    return np.stack(rows)


def merged(counts: Vector, rows: Array) -> tuple[float, Array]:
    """Return how many values a channel all workers have, and the rows of their moments, by the equations of the layer.

    The mean is found twice: roughly, then from the deviations of the workers' means from that,
    which are exact to their own last digits, however far from 0 the means are.
    """
    present = counts > 0.0
    counts, rows = counts[present], rows[present]
    if not counts.size:
        return 0.0, np.zeros(rows.shape[1:])
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
    return float(total), np.stack([mean, np.where(finite & np.isfinite(low), low, 0.0), m2])
