"""Whatever workers talk through -> one function that gathers a small message of each, in rank order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn._checks import Vector

Matrix = NDArray[np.float64]
Gather = Callable[[Vector], Matrix]

_ACCEPTED = (
    "an mpi4py communicator, a torch.distributed process group, or an object with allgather(array) -> list of arrays"
)


def gather_of(comm: Any) -> Gather:
    """Return a function of a message of this worker that returns a row of each worker's.

    A library is known by the module of the object's class, and imported only then.
    """
    libraries = {base.__module__.partition(".")[0] for base in type(comm).__mro__}
    if "mpi4py" in libraries:
        return _of_mpi(comm)
    if "torch" in libraries:
        return _of_torch(comm)
    if callable(getattr(comm, "allgather", None)):
        return _of_lists(comm)
    raise _refused(comm)


def _refused(comm: Any) -> TypeError:
    return TypeError(f"comm: expected {_ACCEPTED}, got {type(comm).__qualname__}")


def _of_mpi(comm: Any) -> Gather:
    from mpi4py import MPI

    # An intercommunicator would gather what the other group says, without this one.
    if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
        raise _refused(comm)

    def gather(message: Vector) -> Matrix:
        found = np.empty((comm.Get_size(), message.size))
        comm.Allgather(message, found)
        return found

    return gather


def _of_torch(comm: Any) -> Gather:
    import torch
    from torch import distributed

    if not distributed.is_available() or not isinstance(comm, distributed.ProcessGroup):
        raise _refused(comm)

    def gather(message: Vector) -> Matrix:
        found = torch.empty((comm.size(), message.size), dtype=torch.float64, device="cpu")
        distributed.all_gather(list(found.unbind()), torch.from_numpy(message), group=comm)
        rows: Matrix = found.numpy()
        return rows

    return gather


def _of_lists(comm: Any) -> Gather:
    def gather(message: Vector) -> Matrix:
        rows = [np.asarray(row, np.float64) for row in comm.allgather(message)]
        if not rows or any(row.shape != message.shape for row in rows):
            raise RuntimeError(
                f"comm.allgather: expected a list of arrays of shape {message.shape}, one of each "
                f"worker, got shapes {[row.shape for row in rows]}"
            )
        return np.stack(rows)

    return gather
