"""The state of a layer: options, parameters and running statistics, in memory, dictionaries, files and pickles."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._compiler.forks import new_lock
from nbbn._engine import steps
from nbbn._engine.known import Memory
from nbbn._engine.steps import Epilogue
from nbbn._files import state as state_files
from nbbn._kernels import table as rows
from nbbn.layer._forward import Forward, Snapshot
from nbbn.moments import Moments

Array = NDArray[Any]

# The options, in the order in which files and `repr` have them; their defaults stand in the signature alone.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "num_features": _checks.positive_integer,
    "axis": _checks.integer,
    "eps": functools.partial(_checks.real, least=0.0),
    "momentum": lambda name, value: None if value is None else _checks.real(name, value),
    "scale": _checks.flag,
    "center": _checks.flag,
    "track_running_stats": _checks.flag,
    "correction": functools.partial(_checks.real, least=0.0),
    "running_correction": functools.partial(_checks.real, least=0.0),
    "activation": lambda _, value: steps.activation(value),
    "negative_slope": _checks.real,
    "on_nonfinite": functools.partial(_checks.choice, accepted=("propagate", "raise", "skip")),
    "dtype": _checks.dtype,
}

# The arrays: where each stands in the layer's table, and which option says whether it exists.
_ARRAYS = {
    "gamma": (rows.GAMMA, "scale"),
    "beta": (rows.BETA, "center"),
    "slope": (rows.SLOPE, "learns_slope"),
    "running_mean": (rows.MEAN, "track_running_stats"),
    "running_var": (rows.VAR, "track_running_stats"),
}

_SLOPE = 0.25  # at first, as in PyTorch

_OF_BATCH = [rows.MEAN, rows.VAR, rows.INV_STD]  # what is shown of a training batch


class LayerState:
    """What a layer knows, and how it is set, kept and shown; `nbbn.BatchNorm` says what it does with it."""

    _num_features: int
    _axis: int
    _eps: float
    _momentum: float | None
    _correction: float
    _running_correction: float
    _activation: str | None
    _negative_slope: float
    _on_nonfinite: str
    _dtype: np.dtype[Any]
    _gamma: Array | None
    _beta: Array | None
    _slope: Array | None
    _running_mean: Array | None
    _running_var: Array | None
    _after: Epilogue
    grad_gamma: Array | None
    grad_beta: Array | None
    grad_slope: Array | None
    grad_residual: Array | None

    def __init__(
        self,
        num_features: int,
        *,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        scale: bool = True,
        center: bool = True,
        track_running_stats: bool = True,
        correction: float = 0,
        running_correction: float = 1,
        activation: str | None = None,
        negative_slope: float = 0.01,
        on_nonfinite: str = "propagate",
        dtype: Any = np.float32,
    ) -> None:
        given = locals()
        for name, check in _CHECKS.items():
            setattr(self, f"_{name}", check(name, given[name]))
        # One table, so that inference takes a snapshot of all of it with one copy.
        self._table = np.zeros((rows.LAYER_ROWS, self._num_features), self._dtype)
        self._table[rows.VAR] = self._table[rows.GAMMA] = 1.0
        self._table[rows.SLOPE] = _SLOPE
        for name, (row, option) in _ARRAYS.items():
            exists = getattr(self, f"_{option}")
            setattr(self, f"_{name}", self._table[row] if exists else None)
        self._after = self._epilogue()
        self._counter = np.zeros(1, np.int64)
        self.training = True
        self._batch: Array | None = None
        self.grad_gamma = self.grad_beta = self.grad_slope = self.grad_residual = None
        self._last: Forward | None = None
        self._here = threading.local()  # .last: the last forward of this thread
        self._last_snapshot: Snapshot | None = None
        self._known = Memory()
        most = max(self._correction, self._running_correction)
        self._too_few = max(1.0, most) if most > 0.0 else 0.0  # values a channel, to train with
        self._lock = new_lock(self)
        self._collected: Moments | None = None  # inside `nbbn.calibrate`
        self._num_collected = 0  # batches

    def _set(self, name: str, value: Any) -> None:
        setattr(self, f"_{name}", _CHECKS[name](name, value))
        if self._learns_slope != (self._slope is not None):
            self._slope = self._table[rows.SLOPE] if self._learns_slope else None
        self._after = self._epilogue()

    @property
    def _learns_slope(self) -> bool:
        return self._activation == "prelu"

    def _epilogue(self) -> Epilogue:
        """Return what follows the affine map; a learned slope stands in the table."""
        slope = None if self._learns_slope else self._negative_slope
        return steps.epilogue(self._activation, slope)

    @property
    def num_features(self) -> int:
        """Number of channels, C."""
        return self._num_features

    @property
    def axis(self) -> int:
        """The channel axis."""
        return self._axis

    @property
    def correction(self) -> float:
        """Degrees of freedom taken off in the variance that normalizes."""
        return self._correction

    @property
    def running_correction(self) -> float:
        """Degrees of freedom taken off in the variance that enters ``running_var``."""
        return self._running_correction

    @property
    def track_running_stats(self) -> bool:
        """Whether there are running statistics."""
        return self._running_mean is not None

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of gamma, beta and the running statistics."""
        return self._dtype

    @property
    def eps(self) -> float:
        """What is added to the variance inside the square root."""
        return self._eps

    @eps.setter
    def eps(self, value: float) -> None:
        self._set("eps", value)

    @property
    def momentum(self) -> float | None:
        """Weight of the batch's statistics in the running ones; None: cumulative average."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._set("momentum", value)

    @property
    def activation(self) -> str | None:
        """What is applied last, or None."""
        return self._activation

    @activation.setter
    def activation(self, value: str | None) -> None:
        self._set("activation", value)

    @property
    def negative_slope(self) -> float:
        """Slope of "leaky_relu" below 0."""
        return self._negative_slope

    @negative_slope.setter
    def negative_slope(self, value: float) -> None:
        self._set("negative_slope", value)

    @property
    def on_nonfinite(self) -> str:
        """What a training forward does where the batch's statistics are not finite."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: str) -> None:
        self._set("on_nonfinite", value)

    @property
    def training(self) -> bool:
        """The mode: True to train, False to infer."""
        return self._training

    @training.setter
    def training(self, value: bool) -> None:
        self._training = _checks.flag("training", value)

    @property
    def num_batches_tracked(self) -> int:
        """Number of training batches that entered the running statistics."""
        return int(self._counter[0])

    @num_batches_tracked.setter
    def num_batches_tracked(self, value: int) -> None:
        self._counter[0] = state_files.counter(value)

    def _of_batch(self, row: int) -> Array | None:
        return None if self._batch is None else self._batch[row].copy()

    @property
    def batch_mean(self) -> Array | None:
        """Mean per channel of the last training batch: a copy."""
        return self._of_batch(rows.MEAN)

    @property
    def batch_var(self) -> Array | None:
        """Variance per channel that normalized the last training batch: a copy."""
        return self._of_batch(rows.VAR)

    @property
    def batch_inv_std(self) -> Array | None:
        """``1 / sqrt(batch_var + eps)``, 0 where that sum is 0: a copy."""
        return self._of_batch(rows.INV_STD)

    @property
    def gamma(self) -> Array | None:
        """Learned scale."""
        return self._gamma

    @gamma.setter
    def gamma(self, value: Any) -> None:
        self._assign("gamma", value)

    @property
    def beta(self) -> Array | None:
        """Learned shift."""
        return self._beta

    @beta.setter
    def beta(self, value: Any) -> None:
        self._assign("beta", value)

    @property
    def slope(self) -> Array | None:
        """Learned slope of "prelu" below 0."""
        return self._slope

    @slope.setter
    def slope(self, value: Any) -> None:
        self._assign("slope", value)

    @property
    def running_mean(self) -> Array | None:
        """Mean per channel for inference."""
        return self._running_mean

    @running_mean.setter
    def running_mean(self, value: Any) -> None:
        self._assign("running_mean", value)

    @property
    def running_var(self) -> Array | None:
        """Variance per channel for inference."""
        return self._running_var

    @running_var.setter
    def running_var(self, value: Any) -> None:
        self._assign("running_var", value)

    def _assign(self, name: str, value: Any) -> None:
        if getattr(self, f"_{name}") is None:
            raise ValueError(f"{name}: expected no value, as this layer was made without it")
        check = _checks.variances if name == "running_var" else _checks.per_channel
        found = check(name, value, self._num_features)
        with self._lock, np.errstate(all="ignore"):
            self._table[_ARRAYS[name][0]] = found

    def train(self, mode: bool = True) -> Self:
        """Set training mode (or inference mode, with False) and return the layer.

        Parameters
        ----------
        mode : bool, default True
            Whether to train.

        Returns
        -------
        BatchNorm
            The layer itself.

        Raises
        ------
        TypeError
            Where ``mode`` is not a bool.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.BatchNorm(3).train(False).training
        False
        """
        self.training = _checks.flag("mode", mode)
        return self

    def eval(self) -> Self:
        """Set inference mode and return the layer.

        Returns
        -------
        BatchNorm
            The layer itself.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.BatchNorm(3).eval().training
        False
        """
        return self.train(False)

    def reset_running_stats(self) -> None:
        """Set running_mean to 0, running_var to 1 and num_batches_tracked to 0.

        Examples
        --------
        >>> import nbbn
        >>> bn = nbbn.BatchNorm(1)
        >>> bn.running_mean[:] = 5
        >>> bn.reset_running_stats()
        >>> bn.running_mean
        array([0.], dtype=float32)
        """
        with self._lock:
            self._table[rows.MEAN] = 0.0
            self._table[rows.VAR] = 1.0
            self._counter[0] = 0

    def reset_parameters(self) -> None:
        """Reset the running statistics, and set gamma to 1, beta to 0 and slope to 0.25.

        Examples
        --------
        >>> import nbbn
        >>> bn = nbbn.BatchNorm(1)
        >>> bn.gamma[:] = 5
        >>> bn.reset_parameters()
        >>> bn.gamma
        array([1.], dtype=float32)
        """
        self.reset_running_stats()
        self._table[rows.GAMMA] = 1.0
        self._table[rows.BETA] = 0.0
        self._table[rows.SLOPE] = _SLOPE

    def _arrays(self) -> dict[str, Array]:
        """Return the rows of the table that exist as attributes."""
        return {
            name: self._table[row]
            for name, (row, option) in _ARRAYS.items()
            if getattr(self, f"_{option}")
        }

    def _options(self) -> dict[str, Any]:
        """Return the options, as the constructor takes them and JSON can hold them."""
        found = {name: getattr(self, f"_{name}") for name in _CHECKS}
        return {**found, "dtype": self._dtype.name}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the parameters and running statistics, and the counter.

        Returns
        -------
        dict
            ``gamma, beta, slope, running_mean, running_var`` (those that exist) and
            ``num_batches_tracked``.

        Examples
        --------
        >>> import nbbn
        >>> sorted(nbbn.BatchNorm(3, center=False).state_dict())
        ['gamma', 'num_batches_tracked', 'running_mean', 'running_var']
        """
        with self._lock:
            state: dict[str, Any] = {name: a.copy() for name, a in self._arrays().items()}
            state["num_batches_tracked"] = self.num_batches_tracked
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set parameters, running statistics and counter from what `state_dict` returned.

        Parameters
        ----------
        state : mapping
            With exactly the names of `state_dict`, and arrays of this layer's shapes and dtype; the
            counter may be an array of one value, of any numeric dtype.

        Raises
        ------
        TypeError
            Where it is not a mapping, or the counter not an integer.
        ValueError
            For a wrong name, shape or dtype, and a negative variance. The layer is unchanged then.

        Examples
        --------
        >>> import nbbn
        >>> bn, other = nbbn.BatchNorm(3), nbbn.BatchNorm(3)
        >>> bn.load_state_dict(other.state_dict())
        """
        found, number = state_files.checked_state(state, self._arrays())
        if "running_var" in found:
            _checks.not_negative("running_var", found["running_var"])
        self._put(found, number)

    def _put(self, values: Mapping[str, Array], number: int) -> None:
        with self._lock:
            for name, array in self._arrays().items():
                array[...] = values[name]
            self._counter[0] = number

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write configuration, parameters and running statistics to an ``.npz`` file.

        The file is written under another name in the same folder and renamed when it is whole.

        Parameters
        ----------
        path : str or path-like
            The file's name, used as it is.

        Raises
        ------
        OSError
            Where it can't be written; a file that was there before is unchanged.
        ValueError
            Where ``path`` is a pipe or a device.

        Examples
        --------
        >>> import nbbn, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     nbbn.BatchNorm(3, axis=-1).save(path)
        ...     nbbn.BatchNorm.load(path)
        BatchNorm(3, axis=-1)
        """
        state_files.save(path, {**self._options(), "training": self.training}, self.state_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Return the layer that `save` wrote.

        Nothing in the file is executed, and sizes are checked before memory is taken.

        Parameters
        ----------
        path : str or path-like
            The file's name.

        Returns
        -------
        BatchNorm
            A new layer, in the mode that it was saved in.

        Raises
        ------
        OSError
            Where the file can't be read.
        ValueError
            Where it is not such a file.

        Examples
        --------
        See `save`.

        >>> import nbbn, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "bn.npz")
        ...     nbbn.BatchNorm(2).eval().save(path)
        ...     nbbn.BatchNorm.load(path).training
        False
        """
        with state_files.opened(path) as file:
            options = file.options()
            training = options.pop("training", None)
            try:
                layer = cls(**options)
                layer.train(training)
                layer.load_state_dict(file.state(layer._arrays()))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"path: expected what save writes, got {path!s}: {error}"
                ) from error
        return layer

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name not in _PRIVATE}
        batch = None if self._batch is None else self._batch[_OF_BATCH]
        options, state = self._options(), self.state_dict()
        return {"options": options, "state": state, "batch": batch, "attributes": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LayerState.__init__(self, **state["options"])
        self._put(*state_files.checked_state(state["state"], self._arrays()))
        own = state["attributes"]
        batch = state.get("batch")
        if own.get("_batch") is not None:  # a pickle with a table whose rows stood otherwise
            batch = own["_batch"][[0, 2, 6]]
        if batch is not None:
            self._batch = np.zeros((rows.STATISTICS_ROWS, self._num_features))
            self._batch[_OF_BATCH] = batch
        vars(self).update({name: value for name, value in own.items() if name not in _PRIVATE})

    def __repr__(self) -> str:
        shown = [str(self._num_features)]
        for name, value in self._options().items():
            if name != "num_features" and value != _DEFAULTS[name]:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


_DEFAULTS = LayerState(1)._options()
# What a pickle holds as options and state, or leaves out.
_PRIVATE = frozenset(vars(LayerState(1))) - {
    "_training",
    "grad_gamma",
    "grad_beta",
    "grad_slope",
    "grad_residual",
}
