"""The layer: forward in training and inference, and backward; `_state` holds what it knows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks
from nbbn._engine import masks, steps
from nbbn._engine.known import Known
from nbbn._engine.steps import Fused, Gradients
from nbbn._kernels import table as rows
from nbbn.layer._forward import Call, Forward, Snapshot, is_unchanged, token_of
from nbbn.layer._state import LayerState
from nbbn.layer.frozen import FrozenBatchNorm
from nbbn.moments import Moments, of_table

Array = NDArray[Any]


class BatchNorm(LayerState):
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
    activation : {"relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu"}, optional
        Applied last. relu: ``max(v, 0)``; relu6: ``min(max(v, 0), 6)``; leaky_relu: ``v``, below 0
        ``v * negative_slope``; hard_swish: ``v * min(max(v + 3, 0), 6) / 6``; silu: ``v * sigmoid(v)``; mish:
        ``v * tanh(log(1 + exp(v)))``; prelu: ``v``, below 0 ``v * slope``, learned for each channel. As in PyTorch.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; finite. "prelu" does not use it.
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
    slope : ndarray or None, shape (C,)
        Learned slope of "prelu" below 0 (initially 0.25); None with other activations.
    running_mean, running_var : ndarray or None, shape (C,)
        Statistics for inference (initially 0 and 1). These five arrays are updated in place and
        never replaced; assigning to one copies the values into it. A negative variance is refused
        where it is assigned or loaded; written into the array, it makes NaN.
    num_batches_tracked : int
        Number of training batches that entered the running statistics.
    batch_mean, batch_var, batch_inv_std : ndarray of float64 or None, shape (C,)
        Of the last training forward; ``batch_var`` is the one that normalized.
    grad_gamma, grad_beta, grad_slope : ndarray or None, shape (C,)
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
        known = self._known.of(x) if mask is None and residual is None else None
        if known is not None:
            found = self._call_known(known, x, training, out)
            if found is not None:
                return found
        values = _checks.array("x", x, _checks.HALVES)
        index = _checks.axis(self._axis, values.ndim)
        _checks.channels(values, index, self._num_features)
        weights = None if mask is None else masks.of_mask(mask, values.shape, index)
        mode = self._training if training is None else _checks.flag("training", training)
        after = self._after
        if residual is not None:
            added = _checks.gradient("residual", residual, values)
            after = after._replace(residual=added.view())
        target = None if out is None else _checks.out("out", out, values)
        call = Call(values, index, target, after, weights)
        if mode or self._running_mean is None:
            y = self._train(call, mode)
        else:
            y = self._infer(call)
        self._known.learn(x, index)
        return y if out is None else out  # a subclass or a tensor too

    def _call_known(self, known: Known, x: Array, training: Any, out: Any) -> Array | None:
        """Forward of an array like one before; None where that takes a closer look."""
        mode = self._training if training is None else training
        y = known.target(x, out)
        if y is None or not isinstance(mode, bool):
            return None
        token, after = None if out is x else token_of(x, None), self._after
        if not mode and self._running_mean is not None:
            now = self._snapshot(x.dtype)
            known.infer(x, y, now.form, after)
            self._keep(Forward(x.view(), False, now.table, now.eps, token, after))
            return y
        count, eps = x.size // self._num_features, self._eps
        if count <= self._too_few or self._on_nonfinite != "propagate":
            return None
        table = steps.new_table(self._num_features, self._table, self._after.slope)
        form = known.train(x, y, table, count - self._correction, eps, after)
        parts = table, eps, token, after, None, None, count, known, form
        self._learn(Forward(x.view(), True, *parts), count, mode)
        return y

    def _snapshot(self, dtype: np.dtype[Any]) -> Snapshot:
        """Return the layer's numbers of this moment, whatever other threads train meanwhile."""
        with self._lock:
            now = self._table.tobytes(), self._eps, self._after.slope, dtype
        last = self._last_snapshot
        if last is None or last.of != now:
            values, eps, slope, _ = now
            given = np.frombuffer(values, self._dtype).reshape(self._table.shape)
            table = given.astype(np.float64)
            if slope is not None:
                table[rows.SLOPE] = slope
            form = steps.coefficients(table, eps, dtype)
            last = self._last_snapshot = Snapshot(now, eps, table, form)
        return last

    def _infer(self, call: Call) -> Array:
        now = self._snapshot(steps.computed_dtype(call.x))
        last = call.forward(False, now.table, now.eps)
        y = steps.infer(call.x, call.axis, now.form, call.out, call.after)
        self._keep(last)
        return y

    def _train(self, call: Call, mode: bool) -> Array:
        x, weights = call.x, call.weights
        table = steps.new_table(self._num_features, self._table, self._after.slope)
        if x.size == 0:
            self._keep(call.forward(True, table, self._eps))
            return np.empty_like(x) if call.out is None else call.out
        if weights is not None and weights.total == 0.0:
            return self._infer(call)
        count = x.size // self._num_features if weights is None else weights.total
        name = "x" if weights is None else "mask"
        _checks.enough_values(count, self._correction, self._running_correction, name)
        if call.out is not None and self._on_nonfinite == "raise":
            steps.moments(x, call.axis, table, weights)
            self._accepts(table, count)
        eps = self._eps
        last = call.forward(True, table, eps, count)
        options = eps, self._correction, call.out, call.after, weights
        y = steps.train(x, call.axis, table, *options)
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
        momentum = self._momentum
        if momentum is None:
            momentum = 1.0 / (self.num_batches_tracked + 1)
        divisor = count - self._running_correction
        steps.move_averages(self._table, table, divisor, momentum, self._counter)

    def backward(self, grad_y: Any, *, out: Any = None) -> Array:
        """Return the gradient of the last forward with respect to its input.

        That is the last one of the calling thread, or of any thread where this one made none.
        Sets ``grad_gamma``, ``grad_beta`` and ``grad_slope`` (None where there is no such parameter), and
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
        if last.known is not None and x.dtype == self._dtype:
            found = self._backward_known(last.known, last, grad_y, out)
            if found is not None:
                return found
        gradient = _checks.gradient("grad_y", grad_y, x)
        target = None if out is None else _checks.out("out", out, x)
        if not last.training:
            last = last._replace(table=steps.completed(last.table, last.eps))
        of_residual = None
        if last.after.has_residual and not last.after.kind:
            # Shared with the user's grad_y, unless grad_x is about to be written over it.
            shared = target is None or not _checks.overlap(target, gradient)
            of_residual = gradient if shared else gradient.copy()
        grads = self._differentiate(last, gradient, target)
        self._set_gradients(*steps.parameter_gradients(last.table, grads.sums, self._dtype))
        self.grad_residual = grads.residual if of_residual is None else of_residual
        return grads.x if out is None else out

    def _set_gradients(self, gamma: Array, beta: Array, slope: Array | None = None) -> None:
        self.grad_gamma = None if self._gamma is None else gamma
        self.grad_beta = None if self._beta is None else beta
        self.grad_slope = slope

    def _backward_known(self, known: Known, last: Forward, grad_y: Any, out: Any) -> Array | None:
        """Backward of a small array; None where that takes a closer look."""
        if not known.is_like(grad_y, False):
            return None
        grad_x = known.target(grad_y, out)
        if grad_x is None or (out is not None and np.may_share_memory(out, last.x)):
            return None
        counts, fused = (last.total, last.total - self._correction), self._fused(last)
        self._set_gradients(
            *known.differentiate(grad_y, last.x, grad_x, last.table, *counts, fused)
        )
        self.grad_residual = None
        return grad_x

    def _fused(self, last: Forward) -> Fused:
        """Return what takes a gradient back through the activation."""
        after, x, form = last.after, last.x, last.form
        if not after.kind:
            return steps.PLAIN
        if after.residual is not None and not is_unchanged(after.residual, last.residual_token):
            raise RuntimeError(
                "backward: expected the residual of the last forward unchanged, "
                "but it was overwritten in place"
            )
        if form is None:
            form = steps.coefficients(last.table, last.eps, steps.computed_dtype(x))
        return Fused(after.kind, form, after.residual)

    def _differentiate(self, last: Forward, grad_y: Array, out: Array | None) -> Gradients:
        """Return the gradients of the last forward, that of x in ``out`` or a new array."""
        index = self._axis % last.x.ndim
        rest = last.table, self._correction, last.training, out, last.weights, self._fused(last)
        return steps.differentiate(grad_y, last.x, index, *rest)

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
            negative_slope=table[rows.SLOPE] if self._learns_slope else self._negative_slope,
        )
