"""SyncBatchNorm: a layer on several workers that trains as one on all their batches together."""

from __future__ import annotations

import copy
import functools
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from nbbn import _checks
from nbbn._checks import Array
from nbbn._engine import steps
from nbbn._engine.known import Known
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Gradients
from nbbn._kernels import table as rows
from nbbn.distributed._exchange import BACKWARD, FORWARD, Peers, merged
from nbbn.layer._forward import Call, Forward
from nbbn.layer.batch_norm import BatchNorm

_SENT = [rows.MEAN, rows.MEAN_LOW, rows.M2]


class SyncBatchNorm(BatchNorm):
    r"""Batch normalization with the statistics of the batches of all workers together.

    Each worker (a process of MPI or of ``torch.distributed``, or a thread) has a layer of its own and
    calls it with its share of the batch. In training the workers exchange counts, means and sums of
    squares, of :math:`3 C + 3` numbers each, and two sums a channel in `backward`; outputs, running
    statistics and gradients are those of `nbbn.BatchNorm` on the concatenated batch:

    .. math:: n = \sum n_i, \quad \bar x = \frac1n \sum n_i \bar x_i, \quad
              M_2 = \sum M_{2,i} + \sum n_i (\bar x_i - \bar x)^2 .

    In inference nothing is exchanged, in `backward` after it neither. Everything else is as in `nbbn.BatchNorm`.

    Parameters
    ----------
    num_features : int
        C, the number of channels; the same for all workers, as all options are.
    comm : communicator
        Of the workers: an mpi4py communicator, a ``torch.distributed`` process group whose backend
        takes tensors in the CPU's memory ("gloo"), or any object with ``allgather(array)`` that
        returns the arrays of all workers as a list, in the same order for each.
    **options
        Those of `nbbn.BatchNorm`, but no ``virtual_batch_size``.

    Attributes
    ----------
    grad_gamma, grad_beta : ndarray or None, shape (C,)
        Set by `backward`: after a training forward the sums over all workers, the same on each. Where
        workers add up the gradients of other layers, leave these as they are.

    Raises
    ------
    TypeError, ValueError
        For an option of the wrong type or out of range; the message names it.

    Notes
    -----
    Every worker merges the same numbers in the same order, so statistics have the same bits on each.
    They equal those of the concatenated batch to float64 rounding: a mean is sent as two float64,
    since with one alone data far from 0 would lose the digits that `nbbn.BatchNorm` keeps.

    Batches may be of different sizes, or empty, and a mask may leave a worker no value; there must be enough
    values in all of them together. What `backward` takes is the gradient of a loss of all workers together.

    Training forwards and backwards must be called by all workers, in the same order. Where one of them raises before it
    has exchanged its numbers, each raises, the others a ``RuntimeError`` that names its rank, and no statistics change
    anywhere. A worker that never calls is waited for, as long as the communicator waits.

    Pickles leave the communicator out; set `comm` before training goes on.

    References
    ----------
    C. Peng et al., "MegDet: A Large Mini-Batch Object Detector", CVPR 2018 (statistics across
    workers); Chan, Golub, LeVeque, The American Statistician 37 (1983) 242-247 (merging).

    Examples
    --------
    With one worker:

    >>> import numpy as np
    >>> from nbbn.distributed import SyncBatchNorm
    >>> class Alone:
    ...     def allgather(self, array):
    ...         return [array]
    >>> bn = SyncBatchNorm(1, comm=Alone(), eps=0.0, dtype=np.float64)
    >>> bn(np.array([[2.0], [0.0], [2.0], [4.0]])).ravel().round(4) + 0.0
    array([ 0.    , -1.4142,  0.    ,  1.4142])
    """

    __module__ = "nbbn.distributed"  # where users find it, and pickles
    __slots__ = ("_peers",)

    def __init__(self, num_features: int, *, comm: Any, **options: Any) -> None:
        if options.get("virtual_batch_size") is not None:
            raise ValueError(
                "virtual_batch_size: expected None, as statistics are those of all workers, "
                f"got {options['virtual_batch_size']!r}"
            )
        # Each worker must have them before the first exchange.
        super().__init__(_checks.positive_integer("num_features", num_features), **options)
        self.comm = comm

    @property
    def comm(self) -> Any:
        """The communicator of the workers; None in a copy made by pickle until one is set."""
        return None if self._peers is None else self._peers.comm

    @comm.setter
    def comm(self, value: Any) -> None:
        self._peers: Peers | None = Peers(value, self.num_features)

    def _connected(self) -> Peers:
        if self._peers is None:
            raise RuntimeError(
                "comm: expected a communicator to train with, got none, as pickles leave it out (set it: bn.comm = ...)"
            )
        return self._peers

    def _trains(self, training: Any = None) -> bool:
        """Whether a forward in this mode takes the statistics of the batch."""
        mode = training if isinstance(training, (bool, np.bool_)) else self._training
        return bool(mode) or self._running_mean is None

    if not TYPE_CHECKING:  # types and docstrings are those of the layer

        @functools.wraps(BatchNorm.__call__)
        def __call__(self, x, **given):  # noqa: D102
            if not self._trains(given.get("training")):
                return super().__call__(x, **given)
            with self._connected().call(FORWARD):
                return super().__call__(x, **given)

        @functools.wraps(BatchNorm.backward)
        def backward(self, grad_y, **given):  # noqa: D102
            last = getattr(self._here, "last", self._last)
            if not (self._trains() if last is None else last.training):
                return super().backward(grad_y, **given)
            with self._connected().call(BACKWARD):
                return super().backward(grad_y, **given)

    def _call_known(self, known: Known, x: Array, training: Any, out: Any) -> Array | None:
        """Only inference is as for one worker."""
        return None if self._trains(training) else super()._call_known(known, x, training, out)

    def _train(self, call: Call, mode: bool) -> Array:
        x, local, table = call.x, call.total(), self._new_table()
        last = call.forward(True, table, self._eps)
        y = empty_like(x) if call.out is None else call.out  # before the others count on this worker
        table[_SENT] = 0.0
        if local:
            steps.moments(call, table)
        total, table[_SENT] = merged(*self._connected().exchange(FORWARD, local, table[_SENT]))
        if not total:
            return self._infer(call)
        _checks.enough_values(total, self._correction, self._running_correction, "x of all workers")
        with np.errstate(all="ignore"):  # as the kernels: no warning
            table[rows.VAR] = table[rows.M2] / (total - self._correction)
        table[rows.INV_STD] = steps.over_std(1.0, table[rows.VAR], self._eps)
        if self._on_nonfinite == "raise":
            self._accepts(table, total)
        steps.infer(call._replace(out=y), steps.coefficients(table, self._eps, steps.computed_dtype(x)))
        self._learn(last._replace(total=total), total, mode)
        return y

    def _differentiate(self, last: Forward, grad_y: Array, out: Array | None) -> Gradients:
        if not last.training:
            return super()._differentiate(last, grad_y, out)
        x = last.x
        grad_x = empty_like(x) if out is None else out  # before the others count on this worker
        call = self._call_again(last, grad_x)
        # Not in out, which may be grad_y: another worker may yet fail.
        of_residual = None if call.after.residual is None else empty_like(x)
        sums = steps.new_sums(self._num_features, call.after)
        if x.size:
            steps.sum_gradients(grad_y, call, last.table, sums, 1.0, of_residual)
        _, theirs = self._connected().exchange(BACKWARD, last.total, sums)
        with np.errstate(all="ignore"):
            sums[...] = theirs[:, : len(sums)].sum(axis=0)
        if x.size:
            form = steps.gradient_coefficients(last.table, sums, last.total, self._correction, steps.computed_dtype(x))
            if of_residual is not None:
                grad_y, call = of_residual, call._replace(after=steps.NOTHING)
            steps.write_gradient(grad_y, call, form)
        return Gradients(grad_x, steps.parameter_gradients(last.table, sums, self._dtype), of_residual)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._peers = None
        super().__setstate__(state)

    def __copy__(self) -> SyncBatchNorm:
        return type(self).__new__(type(self))._become(self.__getstate__(), self._peers)

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """Return a copy with the same communicator, which is no part of the layer."""
        copied = memo[id(self)] = type(self).__new__(type(self))
        return copied._become(copy.deepcopy(self.__getstate__(), memo), self._peers)

    def _become(self, state: dict[str, Any], peers: Peers | None) -> SyncBatchNorm:
        self.__setstate__(state)
        self._peers = peers
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, comm: Any) -> SyncBatchNorm:  # type: ignore[override]
        """Return the layer in a file that `save` wrote, of this class or of `nbbn.BatchNorm`.

        In the guide, one worker loads, and broadcasts `state_dict`.

        Parameters
        ----------
        path, comm
            As of `nbbn.BatchNorm.load`, and of the class.

        Returns
        -------
        SyncBatchNorm
            A new layer, in the mode that it was saved in.

        Raises
        ------
        OSError, ValueError, TypeError
            As `nbbn.BatchNorm.load`, and for ``comm``.
        """
        saved = BatchNorm.load(path)
        layer = cls(comm=comm, **saved._options())
        layer.load_state_dict(saved.state_dict())
        return layer.train(saved.training)
