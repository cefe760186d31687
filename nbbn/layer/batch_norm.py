"""The layer: gamma, beta and running statistics, for training and inference."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._compiler.forks import new_lock
from nbbn._engine import masks, steps
from nbbn._engine.masks import Weights
from nbbn._engine.steps import Epilogue
from nbbn._files import state as state_files
from nbbn._kernels import table as rows
from nbbn.layer._forward import Forward, Token, is_unchanged, token_of
from nbbn.layer.frozen import FrozenBatchNorm
from nbbn.moments import Moments, of_table

Array = NDArray[Any]

_ON_NONFINITE = ("propagate", "raise", "skip")


class BatchNorm:
    r"""Batch normalization of the activations of a layer, with learned scale and shift.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \varepsilon}}\,\gamma + \beta

    A residual may be added and an activation applied in the same pass over memory:
    ``y = activation(batch_norm(x) + residual)``.

    In training mode mean and variance are those of the batch, per channel over all other axes, and
    the running statistics move towards them:
    ``running = (1 - momentum) * running + momentum * batch``.
    In inference mode (``bn.eval()``) the running statistics are used and nothing changes.

    Parameters
    ----------
    num_features : int
        C, the number of channels.
    axis : int, default 1
        The channel axis of the input; may be negative.
    eps : float, default 1e-5
        Added to the variance inside the square root; finite, >= 0. Where their sum is 0 (a constant
        channel with ``eps=0``), ``1 / sqrt(var + eps)`` counts as 0: ``y`` is ``beta``, and no gradient passes.
    momentum : float or None, default 0.1
        Weight of the batch's statistics in the running ones; finite. None: the cumulative average
        of all batches, weight ``1 / num_batches_tracked``.
    scale, center : bool, default True
        Whether ``gamma`` and ``beta`` exist; else the attribute is None.
    track_running_stats : bool, default True
        False: there are no running statistics, and those of the batch are used in both modes.
    correction : float, default 0
        Degrees of freedom taken off in the variance that normalizes.
    running_correction : float, default 1
        Degrees of freedom taken off in the variance that enters ``running_var`` (PyTorch 1; Keras
        and ONNX 0).
    activation : {"relu", "relu6", "leaky_relu", "hard_swish"}, optional
        Applied last. relu: ``max(v, 0)``; relu6: ``min(max(v, 0), 6)``; leaky_relu: ``v``, below 0
        ``v * negative_slope``; hard_swish: ``v * min(max(v + 3, 0), 6) / 6``. As in PyTorch.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; finite.
    on_nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        What a training forward does where mean or variance of a channel are not finite: because of
        NaN or Inf in the batch, or because they overflow the dtype of the running statistics.
        "propagate": as IEEE arithmetic does, into the channel's running statistics for good.
        "raise": FloatingPointError; the layer and ``out`` are unchanged. "skip": the batch is
        normalized, the running statistics of all channels and the counter stay as they are.
    dtype : dtype, default float32
        Of gamma, beta and the running statistics: float32 or float64.

    Attributes
    ----------
    gamma, beta : ndarray or None, shape (C,)
        Learned scale (initially 1) and shift (initially 0).
    running_mean, running_var : ndarray or None, shape (C,)
        Statistics for inference (initially 0 and 1). These four arrays are updated in place and
        never replaced; assigning to one copies the values into it. A negative variance is refused
        where it is assigned or loaded; written into the array, it makes NaN.
    num_batches_tracked : int
        Number of training batches that entered the running statistics.
    batch_mean, batch_var, batch_inv_std : ndarray of float64 or None, shape (C,)
        Of the last training forward; ``batch_var`` is the one that normalized.
    grad_gamma, grad_beta : ndarray or None, shape (C,)
        Set by `backward`.
    grad_residual : ndarray or None
        Set by `backward` where the forward had a residual: the gradient with respect to it.
    training : bool
        The mode; initially True.

    Raises
    ------
    TypeError, ValueError
        For an option of the wrong type or out of range; the message names it.

    Notes
    -----
    Statistics of float32 data are accumulated in float64, those of float64 data blocked and merged;
    the same bits for every number of threads. Inference gives the same bits for a value in every
    memory layout, position and batch size. Several threads may call one layer in inference while
    another one trains it: each call sees running statistics of one moment.

    The layer holds a reference to the last input (of each thread), for `backward`; pickles and copies
    leave it out.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015.

    Examples
    --------
    The activations 2, 0, 2, 4 of one unit become beta, beta - sqrt(2) gamma, beta,
    beta + sqrt(2) gamma; and the same when the weights before them change so that they are 200, 0,
    200, 400:

    >>> import numpy as np, nbbn
    >>> bn = nbbn.BatchNorm(1, eps=0.0, dtype=np.float64)
    >>> bn.gamma[:], bn.beta[:] = 3.0, 10.0
    >>> bn(np.array([[2.0], [0.0], [2.0], [4.0]])).ravel().round(4)
    array([10.    ,  5.7574, 10.    , 14.2426])
    >>> bn(np.array([[200.0], [0.0], [200.0], [400.0]])).ravel().round(4)
    array([10.    ,  5.7574, 10.    , 14.2426])
    """

    __module__ = "nbbn"  # where users find it, and pickles

    grad_gamma: Array | None
    grad_beta: Array | None
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
        self._num_features = _checks.positive_integer("num_features", num_features)
        self._axis = _checks.integer("axis", axis)
        self.eps = eps
        self.momentum = momentum
        self._correction = _checks.real("correction", correction, 0.0)
        self._running_correction = _checks.real("running_correction", running_correction, 0.0)
        self._negative_slope = _checks.real("negative_slope", negative_slope)
        self.activation = activation
        self.on_nonfinite = on_nonfinite
        self._dtype = _checks.dtype("dtype", dtype)
        # One table, so that inference takes a snapshot of all of it with one copy.
        self._table = np.zeros((rows.LAYER_ROWS, self._num_features), self._dtype)
        self._table[rows.VAR] = self._table[rows.GAMMA] = 1.0
        tracked = _checks.flag("track_running_stats", track_running_stats)
        self._gamma = self._table[rows.GAMMA] if _checks.flag("scale", scale) else None
        self._beta = self._table[rows.BETA] if _checks.flag("center", center) else None
        self._running_mean = self._table[rows.MEAN] if tracked else None
        self._running_var = self._table[rows.VAR] if tracked else None
        self._counter = np.zeros(1, np.int64)
        self.training = True
        self._batch: Array | None = None
        self.grad_gamma = self.grad_beta = self.grad_residual = None
        self._last: Forward | None = None
        self._here = threading.local()  # .last: the last forward of this thread
        self._lock = new_lock(self)
        self._collected: Moments | None = None  # inside `nbbn.calibrate`
        self._num_collected = 0  # batches

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
        self._eps = _checks.real("eps", value, 0.0)

    @property
    def momentum(self) -> float | None:
        """Weight of the batch's statistics in the running ones; None: cumulative average."""
        return self._momentum

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self._momentum = None if value is None else _checks.real("momentum", value)

    @property
    def activation(self) -> str | None:
        """What is applied last, or None."""
        return self._activation

    @activation.setter
    def activation(self, value: str | None) -> None:
        self._activation = _checks.activation(value)
        self._after = steps.epilogue(self._activation, self._negative_slope)

    @property
    def negative_slope(self) -> float:
        """Slope of "leaky_relu" below 0."""
        return self._negative_slope

    @negative_slope.setter
    def negative_slope(self, value: float) -> None:
        self._negative_slope = _checks.real("negative_slope", value)
        self._after = steps.epilogue(self._activation, self._negative_slope)

    @property
    def on_nonfinite(self) -> str:
        """What a training forward does where the batch's statistics are not finite."""
        return self._on_nonfinite

    @on_nonfinite.setter
    def on_nonfinite(self, value: str) -> None:
        self._on_nonfinite = _checks.choice("on_nonfinite", value, _ON_NONFINITE)

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
        self._assign("gamma", self._gamma, value)

    @property
    def beta(self) -> Array | None:
        """Learned shift."""
        return self._beta

    @beta.setter
    def beta(self, value: Any) -> None:
        self._assign("beta", self._beta, value)

    @property
    def running_mean(self) -> Array | None:
        """Mean per channel for inference."""
        return self._running_mean

    @running_mean.setter
    def running_mean(self, value: Any) -> None:
        self._assign("running_mean", self._running_mean, value)

    @property
    def running_var(self) -> Array | None:
        """Variance per channel for inference."""
        return self._running_var

    @running_var.setter
    def running_var(self, value: Any) -> None:
        self._assign("running_var", self._running_var, value)

    def _assign(self, name: str, array: Array | None, value: Any) -> None:
        if array is None:
            raise ValueError(f"{name}: expected no value, as this layer was made without it")
        check = _checks.variances if name == "running_var" else _checks.per_channel
        found = check(name, value, self._num_features)
        with self._lock, np.errstate(all="ignore"):
            self._table[_ROWS[name]] = found

    def __call__(
        self,
        x: Any,
        *,
        training: bool | None = None,
        mask: Any = None,
        residual: Any = None,
        out: Any = None,
    ) -> Array:
        """Normalize ``x``; in training also update the running statistics.

        Parameters
        ----------
        x : array_like of float32, float64, float16 or bfloat16
            With C entries along the channel axis; any memory layout.
        training : bool, optional
            The mode of this call; by default ``self.training``.
        mask : array_like of bool, optional
            True where a value enters the batch's statistics, in all channels: with as many dimensions as
            ``x``, of its shape with size 1 along the channel axis; with fewer, of its shape without the
            channel axis; either may be broadcast. What is masked may be NaN. Every output is computed.
            Where all are masked, the running statistics are used (or mean 0 and variance 1) and nothing
            changes.
        residual : array_like, optional
            Added before the activation, in the same pass; of the shape and dtype of ``x``.
        out : ndarray, optional
            Where to write, of the shape and dtype of ``x``; may be ``x`` or ``residual`` itself (then
            there is no `backward`).

        Returns
        -------
        ndarray
            ``out``, or a new array in the memory order of ``x``, in its dtype.

        Raises
        ------
        TypeError
            For any other dtype, and for masked arrays.
        ValueError
            For a wrong shape or ``out``, or too few values per channel to train with. The layer and
            ``out`` are unchanged then.
        FloatingPointError
            With ``on_nonfinite="raise"``, in training, where the batch's statistics are not finite.
            The layer and ``out`` are unchanged then, too; for that, a call with ``out`` reads ``x``
            once more.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> bn = nbbn.BatchNorm(3)
        >>> x = np.arange(12, dtype=np.float32).reshape(4, 3)
        >>> bn(x).mean(axis=0)
        array([0., 0., 0.], dtype=float32)
        >>> bn.num_batches_tracked
        1

        Of the second of two sequences, of three steps, only the first one counts:

        >>> steps = np.arange(18, dtype=np.float32).reshape(2, 3, 3)
        >>> bn = nbbn.BatchNorm(3, axis=-1)
        >>> y = bn(steps, mask=np.array([[True, True, True], [True, False, False]]))
        >>> bn.batch_mean
        array([4.5, 5.5, 6.5])
        """
        values = _checks.array("x", x, _checks.HALVES)
        index = _checks.axis(self._axis, values.ndim)
        _checks.channels(values, index, self._num_features)
        weights = masks.of_mask(mask, values.shape, index)
        mode = self._training if training is None else _checks.flag("training", training)
        after = self._after
        if residual is not None:
            added = _checks.gradient("residual", residual, values)
            after = after._replace(residual=added.view())
        target = None if out is None else _checks.out("out", out, values)
        if mode or self._running_mean is None:
            y = self._train(values, index, target, mode, after, weights)
        else:
            y = self._infer(values, index, target, after, weights)
        return y if out is None else out  # a subclass or a tensor too

    def _tokens(self, x: Array, out: Array | None, after: Epilogue) -> tuple[Token, Token]:
        """Return what tells later whether x and, where backward reads it again, the residual were changed."""
        if after.residual is None or not after.kind:
            return token_of(x, out), b""
        return token_of(x, out), token_of(after.residual, out)

    def _infer(
        self, x: Array, index: int, out: Array | None, after: Epilogue, weights: Weights | None
    ) -> Array:
        with self._lock:  # a snapshot: another thread may be training
            table = self._table.astype(np.float64)
        form = steps.coefficients(table, self._eps, steps.computed_dtype(x))
        token, of_residual = self._tokens(x, out, after)
        y = steps.infer(x, index, form, out, after)
        self._keep(
            Forward(x.view(), False, table, self._eps, token, after.again(), of_residual, weights)
        )
        return y

    def _train(
        self,
        x: Array,
        index: int,
        out: Array | None,
        mode: bool,
        after: Epilogue,
        weights: Weights | None,
    ) -> Array:
        if x.size == 0:
            nothing = np.zeros((rows.STATISTICS_ROWS, self._num_features))
            self._keep(Forward(x, True, nothing, self._eps, b"", after.again()))
            return np.empty_like(x) if out is None else out
        if weights is not None and weights.total == 0.0:
            return self._infer(x, index, out, after, weights)
        count = x.size // self._num_features if weights is None else weights.total
        name = "x" if weights is None else "mask"
        _checks.enough_values(count, self._correction, self._running_correction, name)
        table = steps.new_table(self._num_features, self._table)
        if out is not None and self._on_nonfinite == "raise":
            steps.moments(x, index, table, weights)
            self._accepts(table, count)
        token, of_residual = self._tokens(x, out, after)
        y = steps.train(x, index, table, self._eps, self._correction, out, after, weights)
        last = Forward(
            x.view(), True, table, self._eps, token, after.again(), of_residual, weights, count
        )
        self._learn(last, count, mode)
        return y

    def _keep(self, last: Forward) -> None:
        self._last = self._here.last = last

    def _learn(self, last: Forward, count: float, mode: bool) -> None:
        """Keep what a training forward of ``count`` values a channel found."""
        accepted = self._on_nonfinite == "propagate" or self._accepts(last.table, count)
        self._keep(last)
        with self._lock:
            self._batch = last.table
            if accepted and mode and self._running_mean is not None:
                if self._collected is None:
                    self._track(last.table, count)
                else:
                    self._collected = self._collected.merge(of_table(count, last.table))
                    self._num_collected += 1

    def _begin_collecting(self) -> None:
        """Collect moments from now on, and leave the running statistics alone; see `nbbn.calibrate`."""
        with self._lock:
            if self._collected is not None:
                raise ValueError(f"layers: expected none twice at a time, got {self!r} again")
            self._collected, self._num_collected = Moments.empty(self._num_features), 0

    def _end_collecting(self) -> tuple[Moments, int]:
        """Return the moments of all the data since `_begin_collecting`, and the number of batches."""
        with self._lock:
            found, number = self._collected, self._num_collected
            self._collected, self._num_collected = None, 0
        return found or Moments.empty(self._num_features), number

    def _set_population(self, moments: Moments, batches: int) -> None:
        """Make these the running statistics."""
        var = moments.var(self._running_correction)
        with self._lock, np.errstate(all="ignore"):
            self._table[rows.MEAN], self._table[rows.VAR] = moments.mean, var
            self._counter[0] = batches

    def _accepts(self, table: Array, count: float) -> bool:
        """Whether the statistics are finite, also as running ones; with "raise" they must be."""
        with np.errstate(all="ignore"):
            mean = table[rows.MEAN].astype(self._dtype)
            var = (table[rows.M2] / (count - self._running_correction)).astype(self._dtype)
        finite = np.isfinite(mean) & np.isfinite(var)
        if finite.all():
            return True
        if self._on_nonfinite == "raise":
            channel = int(finite.argmin())
            raise FloatingPointError(
                "x: expected finite statistics in every channel, as on_nonfinite is 'raise', "
                f"got mean {mean[channel]} and variance {var[channel]} in channel {channel}"
            )
        return False

    def _track(self, table: Array, count: float) -> None:
        number = self.num_batches_tracked + 1
        momentum = 1.0 / number if self._momentum is None else self._momentum
        divisor = count - self._running_correction
        steps.move_averages(self._table, table, divisor, momentum, self._counter)

    def backward(self, grad_y: Any, *, out: Any = None) -> Array:
        """Return the gradient of the last forward with respect to its input.

        That is the last one of the calling thread, or of any thread where this one made none.
        Sets ``grad_gamma`` and ``grad_beta`` (None where there is no gamma or beta), and
        ``grad_residual`` where the forward had a residual (``grad_y`` itself where there is no
        activation); does not accumulate. After a training forward the gradient goes through the batch's
        statistics, where a mask let a value into them; after an inference forward
        ``grad_x = grad_y * gamma * inv_std``.

        Parameters
        ----------
        grad_y : array_like
            Gradient with respect to y, of the shape and dtype of the input.
        out : ndarray, optional
            Where to write; may be ``grad_y``, or the input of the forward.

        Returns
        -------
        ndarray
            ``out``, or a new array.

        Raises
        ------
        RuntimeError
            Before any forward, and where the input of the last one was overwritten, by
            ``out=x`` or afterwards (of more than 4,096 values, a sample is compared).
        TypeError, ValueError
            As for `nbbn.batch_norm_backward`.

        See Also
        --------
        nbbn.batch_norm_backward : the equations.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> bn = nbbn.BatchNorm(1, dtype=np.float64)
        >>> y = bn(np.array([[2.0], [0.0], [2.0], [4.0]]))
        >>> grad_x = bn.backward(np.ones((4, 1)))
        >>> bn.grad_beta, np.abs(grad_x).max() < 1e-15
        (array([4.]), np.True_)
        """
        last = getattr(self._here, "last", self._last)
        if last is None:
            raise RuntimeError("backward: expected a forward before it, got none")
        x = last.x
        if not is_unchanged(x, last.token):
            raise RuntimeError(
                "backward: expected the input of the last forward unchanged, "
                "but it was overwritten in place"
            )
        gradient = _checks.gradient("grad_y", grad_y, x)
        target = None if out is None else _checks.out("out", out, x)
        if not last.training:
            last = last._replace(table=steps.completed(last.table, last.eps))
        before, grad_residual = self._before_activation(last, gradient, target)
        grad_x, sums = self._differentiate(last, before, target)
        grad_gamma, grad_beta = steps.parameter_gradients(last.table, sums, self._dtype)
        self.grad_gamma = None if self._gamma is None else grad_gamma
        self.grad_beta = None if self._beta is None else grad_beta
        self.grad_residual = grad_residual
        return grad_x if out is None else out

    def _before_activation(
        self, last: Forward, grad_y: Array, out: Array | None
    ) -> tuple[Array, Array | None]:
        """Return the gradient with respect to the activation's argument, and to the residual."""
        after, x = last.after, last.x
        if not after.kind:
            if not after.has_residual:
                return grad_y, None
            # Shared with the user's grad_y, unless grad_x is about to be written over it.
            shared = out is None or not _checks.overlap(out, grad_y)
            return grad_y, grad_y if shared else grad_y.copy()
        if after.residual is not None and not is_unchanged(after.residual, last.residual_token):
            raise RuntimeError(
                "backward: expected the residual of the last forward unchanged, "
                "but it was overwritten in place"
            )
        # Not into x, which is read again for the sums.
        direct = after.residual is None and out is not None and not _checks.overlap(out, x)
        form = steps.coefficients(last.table, last.eps, steps.computed_dtype(x))
        index, target = self._axis % x.ndim, out if direct else None
        found = steps.before_activation(grad_y, x, index, form, after, target)
        return found, None if after.residual is None else found

    def _differentiate(
        self, last: Forward, grad_y: Array, out: Array | None
    ) -> tuple[Array, Array]:
        """Return grad_x, and the two sums a channel; ``grad_y`` is that before the activation."""
        index = self._axis % last.x.ndim
        rest = last.table, self._correction, last.training, out, last.weights
        return steps.differentiate(grad_y, last.x, index, *rest)

    def train(self, mode: bool = True) -> BatchNorm:
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

    def eval(self) -> BatchNorm:
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

    def freeze(self) -> FrozenBatchNorm:
        """Return the inference form of the layer: a snapshot that does not change any more.

        Returns
        -------
        FrozenBatchNorm
            With the running statistics, parameters, axis and activation of this moment; its results
            have the bits of this layer's in inference.

        Raises
        ------
        ValueError
            Where the layer has no running statistics.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> bn = nbbn.BatchNorm(3)
        >>> frozen = bn.freeze()
        >>> y = bn(np.arange(12, dtype=np.float32).reshape(4, 3))  # trains, after the snapshot
        >>> frozen.center
        array([0., 0., 0.])
        """
        if self._running_mean is None:
            raise ValueError("freeze: expected a layer with running statistics, got one without")
        with self._lock:
            table = self._table.copy()
        return FrozenBatchNorm.from_stats(
            table[rows.MEAN],
            table[rows.VAR],
            table[rows.GAMMA],
            table[rows.BETA],
            self._eps,
            axis=self._axis,
            activation=self._activation,
            negative_slope=self._negative_slope,
        )

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
        """Reset the running statistics, and set gamma to 1 and beta to 0.

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

    def _arrays(self) -> dict[str, Array]:
        """Return the rows of the table that exist as attributes."""
        return {
            name: self._table[row]
            for name, row in _ROWS.items()
            if getattr(self, f"_{name}") is not None
        }

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the parameters and running statistics, and the counter.

        Returns
        -------
        dict
            ``gamma, beta, running_mean, running_var`` (those that exist) and
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

    def _options(self) -> dict[str, Any]:
        return {
            "num_features": self._num_features,
            "axis": self._axis,
            "eps": self._eps,
            "momentum": self._momentum,
            "scale": self._gamma is not None,
            "center": self._beta is not None,
            "track_running_stats": self.track_running_stats,
            "correction": self._correction,
            "running_correction": self._running_correction,
            "activation": self._activation,
            "negative_slope": self._negative_slope,
            "on_nonfinite": self._on_nonfinite,
            "dtype": self._dtype.name,
        }

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
    def load(cls, path: str | os.PathLike[str]) -> BatchNorm:
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
        return {"options": self._options(), "state": self.state_dict(), "attributes": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BatchNorm.__init__(self, **state["options"])
        self._put(*state_files.checked_state(state["state"], self._arrays()))
        own = state["attributes"].items()
        vars(self).update({name: value for name, value in own if name not in _PRIVATE})

    def __repr__(self) -> str:
        shown = [str(self._num_features)]
        for name, value in self._options().items():
            if name != "num_features" and value != _DEFAULTS[name]:
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


_ROWS = {
    "gamma": rows.GAMMA,
    "beta": rows.BETA,
    "running_mean": rows.MEAN,
    "running_var": rows.VAR,
}
# what a pickle holds as options and state, or leaves out
_PRIVATE = frozenset(
    (
        "_table",
        "_counter",
        "_gamma",
        "_beta",
        "_running_mean",
        "_running_var",
        "_lock",
        "_last",
        "_here",
        "_dtype",
        "_after",
        "_collected",
        "_num_collected",
    )
)
_DEFAULTS = BatchNorm(1)._options()
