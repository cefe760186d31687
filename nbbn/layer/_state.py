"""The state of a layer: options, parameters and running statistics, in memory, in files, pickles and copies."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Generic, Never, Self, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from nbbn import _checks
from nbbn._checks import Activation, Array, OnNonfinite
from nbbn._compiler.forks import new_lock
from nbbn._engine import steps
from nbbn._engine.known import Memory
from nbbn._engine.steps import Epilogue
from nbbn._files import state as state_files
from nbbn._kernels import table as rows
from nbbn.layer import _words
from nbbn.layer._forward import Forward, Snapshot
from nbbn.moments import Moments, of_table

Check = Callable[[str, Any], Any]


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)


class _Options:
    """The options and their checks, in the order of files and `repr`; the defaults stand in the signature alone."""

    __slots__ = ()
    _num_features: Annotated[int, _optional(_checks.positive_integer)]  # 0: not built yet
    _axis: Annotated[int, _checks.integer]
    _eps: Annotated[float, partial(_checks.real, least=0.0)]
    _momentum: Annotated[float | None, _optional(_checks.real)]
    _scale: Annotated[bool, _checks.flag]
    _center: Annotated[bool, _checks.flag]
    _track_running_stats: Annotated[bool, _checks.flag]
    _correction: Annotated[float, partial(_checks.real, least=0.0)]
    _running_correction: Annotated[float, partial(_checks.real, least=0.0)]
    _activation: Annotated[Activation | None, _optional(partial(_checks.choice, accepted=get_args(Activation)))]
    _negative_slope: Annotated[float, _checks.real]
    _virtual_batch_size: Annotated[int | None, _optional(_checks.positive_integer)]
    _on_nonfinite: Annotated[OnNonfinite, partial(_checks.choice, accepted=get_args(OnNonfinite))]
    _dtype: Annotated[np.dtype[Any], _checks.dtype]


_CHECKS: dict[str, Check] = {
    name.removeprefix("_"): option.__metadata__[0]
    for name, option in get_type_hints(_Options, include_extras=True).items()
}

# The arrays: where each stands in the layer's table, and which option says whether it exists.
_ARRAYS = {
    "gamma": (rows.GAMMA, "scale"),
    "beta": (rows.BETA, "center"),
    "slope": (rows.SLOPE, "learns_slope"),
    "running_mean": (rows.MEAN, "track_running_stats"),
    "running_var": (rows.VAR, "track_running_stats"),
}

# What stands in the table's rows at first: of mean, var, gamma, beta and, as in PyTorch, slope.
_INITIAL = np.array([[0.0], [1.0], [1.0], [0.0], [0.25]])

_OF_BATCH = [rows.MEAN, rows.VAR, rows.INV_STD]  # what is shown of a training batch
_KEPT = ("_training", "grad_gamma", "grad_beta", "grad_slope", "grad_residual")  # in pickles, besides the state

Got = TypeVar("Got")
Given = TypeVar("Given")


class Shown(property, Generic[Got, Given]):
    """What stands in the slot of its name, or what ``get`` returns; ``put`` checks what is assigned, and keeps it."""

    def __init__(self, doc: str, put: Callable[..., None] | None = None, get: Callable[..., Any] | None = None) -> None:
        self._doc, self._put, self._get = doc, put, get

    def __set_name__(self, owner: type, name: str) -> None:
        get, put = self._get or operator.attrgetter(f"_{name}"), self._put
        given = None if put is None else lambda layer, value: put(layer, name, value)
        super().__init__(get, given)
        self.__doc__ = self._doc
        super().__set_name__(owner, name)  # type: ignore[misc]

    if TYPE_CHECKING:

        def __get__(self, layer: Any, owner: Any = None) -> Got: ...  # type: ignore[override]
        def __set__(self, layer: Any, value: Given) -> None: ...


Fixed = Shown[Got, Never]  # nobody assigns it
Chosen = Shown[Got, Got]  # it takes what it gives


def _of_batch(row: int) -> Callable[[Any], Any]:
    return lambda layer: None if layer._batch is None else layer._batch[row].copy()


class LayerState(_Options):
    """Options and arrays of a layer: how they are set, saved and shown; `nbbn.BatchNorm` computes with them."""

    # So that a misspelt attribute is an error, at no cost to a call. Classes of users have a __dict__.
    __slots__ = (
        *(f"_{name}" for name in (*_CHECKS, *_ARRAYS)),
        *("_after", "_batch", "_collected", "_counter", "_here", "_known", "_last"),
        *("_last_snapshot", "_lock", "_table", "_too_few", "_training"),
        *("__weakref__", "grad_beta", "grad_gamma", "grad_residual", "grad_slope"),
    )

    _gamma: Array | None
    _beta: Array | None
    _slope: Array | None
    _running_mean: Array | None
    _after: Epilogue
    # As the properties below, declared as the arrays that they are where they are used; None where absent.
    grad_gamma: Array  #: Gradient of gamma, set by `backward`; None before, and without a gamma.
    grad_beta: Array  #: Gradient of beta, set by `backward`; None before, and without a beta.
    grad_slope: Array  #: Gradient of the slope of "prelu", set by `backward`; None otherwise.
    grad_residual: Array  #: Gradient of the residual, set by `backward`; None where there was none.

    if not TYPE_CHECKING:  # for whom they are not there
        locals().update({word: _words.Foreign() for word in _words.ATTRIBUTES})

        def __dir__(self) -> list[str]:
            return [name for name in super().__dir__() if name not in _words.ATTRIBUTES]

    def __init__(
        self, num_features: int | None = None, *, axis: int = 1, eps: float = 1e-5, momentum: float | None = 0.1,
        scale: bool = True, center: bool = True, track_running_stats: bool = True,
        correction: float = 0, running_correction: float = 1,
        activation: Activation | None = None, negative_slope: float = 0.01, virtual_batch_size: int | None = None,
        on_nonfinite: OnNonfinite = "propagate", dtype: DTypeLike = np.float32, **others: Never,
    ) -> None:  # fmt: skip
        given = locals()
        for name in others:
            raise TypeError(f"{name}: {_words.unknown(name, _words.OPTIONS, _CHECKS)}")
        for name, check in _CHECKS.items():
            setattr(self, f"_{name}", check(name, given[name]))
        self._after = self._epilogue()
        self._set_table(self._num_features or 0)
        self._counter = np.zeros(1, np.int64)
        self.training = True
        self._batch: Array | None = None
        self._set_gradients(None, None)
        self._last: Forward | None = None
        self._here = threading.local()  # .last: the last forward of this thread
        self._last_snapshot: Snapshot | None = None
        self._known = Memory()
        most = max(self._correction, self._running_correction)
        self._too_few = max(1.0, most) if most > 0.0 else 0.0  # values a channel, to train with
        self._lock = new_lock(self)
        self._collected: tuple[Moments, int] | None = None  # inside `nbbn.calibrate`: of so many batches

    def _set_table(self, channels: int, table: Array | None = None) -> None:
        # One table, so that inference takes a snapshot of all of it with one copy.
        if table is None:
            table = np.full((rows.LAYER_ROWS, channels), _INITIAL, self._dtype)
        self._table = table
        for name, (row, option) in _ARRAYS.items():
            exists = channels and getattr(self, f"_{option}")
            setattr(self, f"_{name}", table[row] if exists else None)
        self._num_features = channels  # last: other threads may look at it

    def build(self, num_features: int) -> Self:
        """Give a layer that was made with ``num_features=None`` its number of channels.

        The first forward does it, too, and so does `load_state_dict`.

        Parameters
        ----------
        num_features : int
            C, the number of channels, at least 1.

        Returns
        -------
        BatchNorm
            The layer itself, with its arrays. One that has this number already is unchanged.

        Raises
        ------
        TypeError, ValueError
            Where ``num_features`` is not an integer, below 1, or another one than the layer has.

        Examples
        --------
        >>> import nbbn
        >>> bn = nbbn.BatchNorm()
        >>> bn.gamma is None
        True
        >>> bn.build(3).gamma
        array([1., 1., 1.], dtype=float32)
        """
        channels = _checks.positive_integer("num_features", num_features)
        with self._lock:
            if not self._num_features:
                self._set_table(channels)
        if channels != self._num_features:
            raise ValueError(f"num_features: expected {self._num_features}, as the layer has them, got {channels}")
        return self

    def _check_built(self, what: str) -> None:
        if not self._num_features:
            raise RuntimeError(
                f"{what}: expected a layer with channels, got one made with num_features=None "
                "before its first input (call it, or bn.build(C))"
            )

    def _set_gradients(self, gamma: Any, beta: Any, slope: Any = None, *, residual: Any = None) -> None:
        """Keep the gradients of the parameters that there are, and of the residual."""
        self.grad_gamma = gamma if self._scale else None  # type: ignore[assignment]
        self.grad_beta = beta if self._center else None  # type: ignore[assignment]
        self.grad_slope, self.grad_residual = slope, residual

    def _assign(self, name: str, value: Any) -> None:
        self._check_built(name)
        if getattr(self, f"_{name}") is None:
            raise ValueError(f"{name}: expected no value, as this layer was made without it")
        check = _checks.variances if name == "running_var" else _checks.per_channel
        found = check(name, value, self._num_features)
        with self._lock, np.errstate(all="ignore"):
            self._table[_ARRAYS[name][0]] = found

    def _set(self, name: str, value: Any) -> None:
        setattr(self, f"_{name}", _CHECKS[name](name, value))
        if self._num_features and self._learns_slope != (self._slope is not None):
            self._slope = self._table[rows.SLOPE] if self._learns_slope else None
        self._after = self._epilogue()

    def _set_mode(self, name: str, value: Any) -> None:
        self._training = _checks.flag(name, value)

    def _count(self, name: str, value: Any) -> None:
        self._counter[0] = state_files.counter(value)

    @property
    def _learns_slope(self) -> bool:
        return self._activation == "prelu"

    def _epilogue(self) -> Epilogue:
        """Return what follows the affine map; a learned slope stands in the table."""
        return steps.epilogue(self._activation, None if self._learns_slope else self._negative_slope)

    axis = Fixed[int]("The channel axis.")
    correction = Fixed[float]("Degrees of freedom taken off in the variance that normalizes.")
    running_correction = Fixed[float]("Degrees of freedom taken off in the variance that enters ``running_var``.")
    track_running_stats = Fixed[bool]("Whether there are running statistics.")
    virtual_batch_size = Fixed[int | None](
        "Samples whose statistics are taken at a time in training; None: all of a batch."
    )
    dtype = Fixed[np.dtype[Any]]("The dtype of gamma, beta and the running statistics.")
    eps = Chosen[float]("What is added to the variance inside the square root.", _set)
    momentum = Chosen[float | None](
        "Weight of the batch's statistics in the running ones; None: cumulative average.", _set
    )
    activation = Chosen[Activation | None]("The activation, applied last, or None.", _set)
    negative_slope = Chosen[float]('Slope of "leaky_relu" below 0.', _set)
    on_nonfinite = Chosen[OnNonfinite](
        "What a training forward does where the batch's statistics are not finite.", _set
    )
    gamma = Shown[Array, ArrayLike]("Learned scale.", _assign)
    beta = Shown[Array, ArrayLike]("Learned shift.", _assign)
    slope = Shown[Array, ArrayLike]('Learned slope of "prelu" below 0.', _assign)
    running_mean = Shown[Array, ArrayLike]("Mean per channel for inference.", _assign)
    running_var = Shown[Array, ArrayLike]("Variance per channel for inference.", _assign)

    num_features = Fixed[int](
        "Number of channels, C; None as long as the layer is not built.", get=lambda layer: layer._num_features or None
    )
    training = Chosen[bool]("The mode: True to train, False to infer.", _set_mode)
    num_batches_tracked = Chosen[int](
        "Number of training batches that entered the running statistics.", _count, lambda layer: int(layer._counter[0])
    )
    batch_mean = Fixed[Array]("Mean per channel of the last training batch: a copy.", get=_of_batch(rows.MEAN))
    batch_var = Fixed[Array](
        "Variance per channel that normalized the last training batch: a copy.", get=_of_batch(rows.VAR)
    )
    batch_inv_std = Fixed[Array](
        "``1 / sqrt(batch_var + eps)``, 0 where that sum is 0: a copy.", get=_of_batch(rows.INV_STD)
    )

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
            self._table[: rows.GAMMA] = _INITIAL[: rows.GAMMA]
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
        self._table[rows.GAMMA :] = _INITIAL[rows.GAMMA :]

    def _move(self, table: Array, count: float, accepted: bool) -> None:
        """Keep the statistics of ``count`` values a channel; if ``accepted``, move the running ones, too."""
        with self._lock:
            self._batch = table
            if accepted and self._running_mean is not None:
                if self._collected is not None:
                    moments, batches = self._collected
                    self._collected = moments.merge(of_table(count, table)), batches + 1
                    return
                momentum = 1.0 / (self.num_batches_tracked + 1) if self._momentum is None else self._momentum
                divisor = count - self._running_correction
                steps.move_averages(self._table, table, divisor, momentum, self._counter)

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[None]:
        """Collect the moments of all the data seen inside, and make the running statistics of them at a clean end."""
        self._check_built("layers")
        with self._lock:
            if self._collected is not None:
                raise ValueError(f"layers: expected none twice at a time, got {self!r} again")
            self._collected = Moments.empty(self._num_features), 0
        is_clean = False
        try:
            yield
            is_clean = True
        finally:
            with self._lock, np.errstate(all="ignore"):
                (moments, batches), self._collected = self._collected, None
                if is_clean and moments.count:
                    self._table[rows.MEAN], self._table[rows.VAR] = moments.mean, moments.var(self._running_correction)
                    self._counter[0] = batches

    def _accepts(self, table: Array, count: float) -> bool:
        """Whether the statistics are finite, also as running ones; with "raise" they must be."""
        with np.errstate(all="ignore"):
            mean = table[rows.MEAN].astype(self._dtype)
            var = (table[rows.M2] / (count - self._running_correction)).astype(self._dtype)
        finite = np.isfinite(mean) & np.isfinite(var)
        accepted = bool(finite.all())
        if not accepted and self._on_nonfinite == "raise":
            channel = int(finite.argmin())
            raise FloatingPointError(
                "x: expected finite statistics in every channel, as on_nonfinite is 'raise', "
                f"got mean {mean[channel]} and variance {var[channel]} in channel {channel}"
            )
        return accepted

    def _arrays(self) -> dict[str, Array]:
        """Return the rows of the table that exist as attributes."""
        return {name: self._table[row] for name, (row, _) in _ARRAYS.items() if getattr(self, f"_{name}") is not None}

    def _options(self) -> dict[str, Any]:
        """Return the options, as the constructor takes them and JSON can hold them."""
        found = {name: getattr(self, f"_{name}") for name in _CHECKS}
        return {**found, "num_features": self.num_features, "dtype": self._dtype.name}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the parameters and running statistics, and the counter.

        Returns
        -------
        dict
            ``gamma, beta, running_mean, running_var`` (those that exist) and ``num_batches_tracked``.

        Examples
        --------
        >>> import nbbn
        >>> sorted(nbbn.BatchNorm(3, center=False).state_dict())
        ['gamma', 'num_batches_tracked', 'running_mean', 'running_var']
        """
        with self._lock:
            copies = {name: array.copy() for name, array in self._arrays().items()}
            return {**copies, "num_batches_tracked": self.num_batches_tracked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set parameters, running statistics and counter from what `state_dict` returned.

        Parameters
        ----------
        state : mapping
            With exactly the names of `state_dict`, and arrays of this layer's shapes and dtype; the
            counter may be an array of one value, of any numeric dtype. A layer that is not built yet
            takes its number of channels from them.

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
        names, channels = [*self._arrays()], self._num_features
        if not channels and isinstance(state, Mapping) and len(state) > 1:  # with 1, it is of a layer not built either
            names = [name for name, (_, option) in _ARRAYS.items() if getattr(self, f"_{option}")]
            channels = max((np.asarray(state[name]).size for name in names if name in state), default=1) or 1
        found, number = state_files.checked_state(state, names, channels, self._dtype)
        if "running_var" in found:
            _checks.not_negative("running_var", found["running_var"])
        if found:
            self.build(channels)
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
        ...     nbbn.BatchNorm(3, axis=-1).eval().save(path)
        ...     nbbn.BatchNorm.load(path)
        BatchNorm(3, axis=-1, inference)
        """
        options = json.dumps({**self._options(), "training": self.training})
        state_files.save_arrays(path, {**self.state_dict(), state_files.OPTIONS: options})

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
        OSError, ValueError
            Where the file can't be read, and where it is not such a file.

        Examples
        --------
        As of `save`.
        """
        with state_files.opened(path) as file:
            options = file.options()
            training = options.pop("training", None)
            layer = cls(**options)
            layer.train(training)
            layer.load_state_dict(file.state(layer._arrays()))
        return layer

    def __getstate__(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in _KEPT} | getattr(self, "__dict__", {})
        batch = None if self._batch is None else self._batch[_OF_BATCH]
        options, state = self._options(), self.state_dict()
        return {"options": options, "state": state, "batch": batch, "attributes": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        LayerState.__init__(self, **state["options"])
        self._put(*state_files.checked_state(state["state"], self._arrays(), self._num_features, self._dtype))
        own, batch = state["attributes"], state.get("batch")
        if own.get("_batch") is not None:  # a pickle with a table whose rows stood otherwise
            batch = own["_batch"][[0, 2, 6]]
        if batch is not None:
            self._batch = np.zeros((rows.STATISTICS_ROWS, self._num_features))
            self._batch[_OF_BATCH] = batch
        private = {*LayerState.__slots__} - {*_KEPT}
        for name, value in own.items():
            if name not in private:
                setattr(self, name, value)

    def __repr__(self) -> str:
        options = self._options()
        shown = [str(options.pop("num_features") or "not built")]
        shown += [f"{name}={value!r}" for name, value in options.items() if value != _DEFAULTS[name]]
        shown.append("training" if self._training else "inference")
        if self.num_batches_tracked:
            shown.append(f"{self.num_batches_tracked} batches tracked")
        return f"{type(self).__name__}({', '.join(shown)})"


_DEFAULTS = LayerState()._options()
