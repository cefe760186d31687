"""The layer: forward in training and inference, and backward; `_state` holds its options and arrays."""

from __future__ import annotations

from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbbn import _checks
from nbbn._checks import Array, Called, DType, Written
from nbbn._engine import steps
from nbbn._engine.known import Known
from nbbn._engine.memory import empty_like
from nbbn._engine.steps import Epilogue, Gradients
from nbbn._kernels import table as rows
from nbbn.layer._forward import At, Call, Forward, Snapshot, is_unchanged, to_write, token_of, without_gaps
from nbbn.layer._state import LayerState
from nbbn.layer.frozen import FrozenBatchNorm


class BatchNorm(LayerState):
    r"""Batch normalization of the activations of a layer, with learned scale and shift.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \varepsilon}}\,\gamma + \beta

    A residual may be added and an activation applied in the same pass over memory:
    ``y = activation(batch_norm(x) + residual)``.

    Training mode uses the mean and variance of the batch, per channel over all other axes, and moves the running
    statistics towards them: ``running = (1 - momentum) * running + momentum * batch``. Inference mode (``bn.eval()``)
    uses the running statistics and changes nothing.

    Parameters
    ----------
    num_features : int, optional
        C, the number of channels. None: it is taken from the first input, `build` or `load_state_dict`;
        the arrays are None until then.
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
        False: there are no running statistics; both modes use the statistics of the batch.
    correction : float, default 0
        Degrees of freedom taken off in the variance that normalizes.
    running_correction : float, default 1
        Degrees of freedom taken off in the variance that enters ``running_var`` (PyTorch 1; Keras and ONNX 0).
    activation : {"relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu"}, optional
        Applied last. relu: ``max(v, 0)``; relu6: ``min(max(v, 0), 6)``; leaky_relu: ``v``, below 0
        ``v * negative_slope``; hard_swish: ``v * min(max(v + 3, 0), 6) / 6``; silu: ``v * sigmoid(v)``; mish:
        ``v * tanh(log(1 + exp(v)))``; prelu: ``v``, below 0 ``v * slope``, learned for each channel. As in PyTorch.
    negative_slope : float, default 0.01
        Slope of "leaky_relu" below 0; finite. "prelu" does not use it.
    virtual_batch_size : int, optional
        In training, cut each batch along the first axis that is not the channel's into parts of so many samples ("ghost
        batches"), and take each one's own statistics: with the bits of calls with one part after the other, also of the
        running statistics and of `backward`. A last part that is too small to train with joins the one before.
    on_nonfinite : {"propagate", "raise", "skip"}, default "propagate"
        What a training forward does where mean or variance of a channel are not finite: because of NaN or Inf in the
        batch, or because they overflow the dtype of the running statistics. "propagate": as IEEE arithmetic does, into
        the channel's running statistics for good. "raise": FloatingPointError; the layer and ``out`` are unchanged.
        "skip": the batch is normalized, the running statistics of all channels and the counter stay as they are. Of
        ghost batches, all are looked at before any is kept.
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
        Number of training batches, or ghost batches, that entered the running statistics.
    batch_mean, batch_var, batch_inv_std : ndarray of float64 or None, shape (C,)
        Of the last training forward (of its last ghost batch); ``batch_var`` is the one that normalized.
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

    The layer holds a reference to the last input (of each thread), for `backward`; pickles and copies leave it out.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing
    Internal Covariate Shift", ICML 2015; ghost batches: E. Hoffer, I. Hubara, D. Soudry, "Train longer,
    generalize better", NeurIPS 2017, arXiv:1705.08741.

    Examples
    --------
    The activations 2, 0, 2, 4 of one unit become beta, beta - sqrt(2) gamma, beta, beta + sqrt(2) gamma; and the same
    when the weights before them change so that they are 200, 0, 200, 400:

    >>> import numpy as np, nbbn
    >>> bn = nbbn.BatchNorm(1, eps=0.0, dtype=np.float64)
    >>> bn.gamma[:], bn.beta[:] = 3.0, 10.0
    >>> bn(np.array([[2.0], [0.0], [2.0], [4.0]])).ravel().round(4)
    array([10.    ,  5.7574, 10.    , 14.2426])
    >>> bn(np.array([[200.0], [0.0], [200.0], [400.0]])).ravel().round(4)
    array([10.    ,  5.7574, 10.    , 14.2426])
    """

    __module__ = "nbbn"  # where users find it, and pickles
    __slots__ = ()

    @overload
    def __call__(self, x: NDArray[DType], **given: Unpack[Called]) -> NDArray[DType]: ...
    @overload
    def __call__(self, x: ArrayLike, **given: Unpack[Called]) -> Array: ...
    def __call__(
        self, x: Any, *, training: bool | None = None, mask: Any = None, residual: Any = None, out: Any = None
    ) -> Array:
        """Normalize ``x``; in training also update the running statistics.

        Parameters
        ----------
        x : array_like of float32, float64, float16 or bfloat16
            With C entries along the channel axis; any memory layout.
        training : bool, optional
            The mode of this call; by default ``self.training``.
        mask : array_like of bool, optional
            True where a value enters the batch's statistics, in all channels, as in `nbbn.batch_moments`. What is
            masked may be NaN. Every output is computed. Where all are masked, the running statistics are used (or mean
            0 and variance 1) and nothing changes.
        residual : array_like, optional
            Added before the activation, in the same pass; of the shape and dtype of ``x``.
        out : ndarray, optional
            Where to write, of the shape and dtype of ``x``; may be ``x`` or ``residual`` itself (without a `backward`).

        Returns
        -------
        ndarray
            ``out``, or a new array in the memory order of ``x``, in its dtype.

        Raises
        ------
        TypeError
            For any other dtype, and for masked arrays.
        ValueError
            For a wrong shape or ``out``, or too few values per channel to train with.
        FloatingPointError
            With ``on_nonfinite="raise"``, in training, where the batch's statistics are not finite. As after any error,
            the layer and ``out`` are unchanged then; for that, a call with ``out`` reads ``x`` once more.

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
        if not self._num_features:
            return self._call_first(x, {"training": training, "mask": mask, "residual": residual, "out": out})
        call = Call.checked(self, x, residual, out, mask)
        mode = self._training if training is None else _checks.flag("training", training)
        y = self._train(call, mode) if mode or self._running_mean is None else self._infer(call)
        self._known.learn(x, call.axis)
        return y if out is None else out  # a subclass or a tensor too

    def _call_first(self, x: Any, given: dict[str, Any]) -> Array:
        """Forward of a layer that is built by it, if it does not raise."""
        values = _checks.array("x", x, _checks.HALVES)
        channels = values.shape[_checks.axis(self._axis, values.ndim)]
        with self._lock:
            if not self._num_features:  # no other thread was faster
                trial = BatchNorm(**{**self._options(), "num_features": channels})
                trial.training = self.training
                y = trial(values, **given)
                self._counter[0], self._batch = trial._counter[0], trial._batch
                self._set_table(channels, trial._table)
                self._keep(trial._here.last)
                return y
        return self(values, **given)

    def _call_known(self, known: Known, x: Array, training: Any, out: Any) -> Array | None:
        """Forward of an array like one before; None where that takes a closer look."""
        mode = self._training if training is None else training
        y = known.target(x, out)
        if y is None or not isinstance(mode, bool):
            return None
        token, after = None if out is x else token_of(x, None), self._after
        if not mode and self._running_mean is not None:
            now = self._snapshot(x.dtype)
            known.way.write(known.stack(x), known.stack(y), now.form, after.kind)
            self._keep(Forward(x.view(), False, now.table, now.eps, token, after))
            return y
        count, eps = x.size // self._num_features, self._eps
        if count <= self._too_few or self._on_nonfinite != "propagate" or self._virtual_batch_size is not None:
            return None
        table = self._new_table()
        form = known.way.train(known.stack(x), known.stack(y), (table, count - self._correction, eps), after.kind)
        parts = table, eps, token, after, None, None, count, known, (), form  # by position: 0.4 us sooner
        self._learn(Forward(x.view(), True, *parts), count, mode)
        return y

    def _new_table(self) -> Array:
        """Return a table for statistics, with gamma, beta and slope of this moment."""
        slope = self._after.slope
        return steps.new_table(self._num_features, self._gamma, self._beta, self._slope if slope is None else slope)

    def _snapshot(self, dtype: np.dtype[Any]) -> Snapshot:
        """Return the layer's numbers of this moment, whatever other threads train meanwhile."""
        with self._lock:
            last, now = self._last_snapshot, (self._eps, self._after.slope, dtype)
            # It compares bytes: without a copy of the table, which would be megabytes for 100,000 channels.
            if last is not None and last.of == now and last.values == self._table:
                return last
            values: Any = bytearray(self._table)
        eps, slope, _ = now
        table = np.frombuffer(values, self._dtype).reshape(self._table.shape).astype(np.float64)
        if slope is not None:
            table[rows.SLOPE] = slope
        last = self._last_snapshot = Snapshot(values, now, eps, table, steps.coefficients(table, eps, dtype))
        return last

    def _infer(self, call: Call) -> Array:
        now = self._snapshot(steps.computed_dtype(call.x))
        last = call.forward(False, now.table, now.eps)
        y = steps.infer(call, now.form)
        self._keep(last)
        return y

    def _train(self, call: Call, mode: bool) -> Array:
        table, eps = self._new_table(), self._eps
        if call.x.size == 0:
            table[...] = 0.0
            self._keep(call.forward(True, table, eps))
            return np.empty_like(call.x) if call.out is None else call.out
        if call.total() == 0.0:  # all of it is masked
            return self._infer(call)
        if mode and self._virtual_batch_size is not None:
            places = call.cut(self._virtual_batch_size, self._too_few)
            if len(places) > 1:
                return self._train_parts(call, places)
        count = call.checked_total(self._correction, self._running_correction)
        if call.out is not None:
            self._look_before(call, table, count)
        last = call.forward(True, table, eps, count)
        y = steps.train(call, table, count - self._correction, eps)
        self._learn(last, count, mode)
        return y

    def _look_before(self, call: Call, table: Array, count: float) -> None:
        """Raise, where the layer is to, before anything is written over ``out``."""
        if self._on_nonfinite == "raise":
            steps.moments(call, table)
            self._accepts(table, count)

    def _train_parts(self, call: Call, places: list[At]) -> Array:
        """Train with one ghost batch after the other: nothing is kept before all of them are right."""
        out, eps = call.out, self._eps
        y = to_write(out, call.x, *call.after.read)
        parts = [call._replace(out=y).part(at) for at in places]
        taken = self._correction, self._running_correction
        counts = [part.checked_total(*taken) if part.total() else 0.0 for part in parts]
        tables = [self._new_table() for _ in parts]
        every = list(zip(places, parts, tables, counts, strict=True))
        learned = [each for each in every if each[-1]]
        if out is not None:
            for _, part, table, count in learned:
                self._look_before(part, table, count)
        last = call.forward(True, tables[-1], eps)
        for at, part, table, count in learned:
            to = without_gaps(part.out, part.x, *part.after.read)
            found = steps.train(part._replace(out=to), table, count - self._correction, eps)
            if to is None:
                y[at] = found
        accepted = self._on_nonfinite == "propagate" or all(self._accepts(*each[-2:]) for each in learned)
        kept = []
        for at, part, table, count in every:
            if count:
                self._move(table, count, accepted)
                used = table, eps
            else:  # all of it is masked
                now = self._snapshot(steps.computed_dtype(part.x))
                steps.infer(part, now.form)
                used = now.table, now.eps
            after = part.after.again()
            kept.append((at, Forward(part.x, bool(count), *used, None, after, weights=part.weights, total=count)))
        self._keep(last._replace(parts=tuple(kept)))
        if out is not None and out is not y:
            out[...] = y
        return y

    def _keep(self, last: Forward) -> None:
        self._last = self._here.last = last

    def _learn(self, last: Forward, count: float, mode: bool) -> None:
        """Keep what a training forward of ``count`` values a channel found."""
        accepted = self._on_nonfinite == "propagate" or self._accepts(last.table, count)
        self._keep(last)
        self._move(last.table, count, accepted and mode)

    @overload
    def backward(self, grad_y: NDArray[DType], **given: Unpack[Written]) -> NDArray[DType]: ...
    @overload
    def backward(self, grad_y: ArrayLike, **given: Unpack[Written]) -> Array: ...
    def backward(self, grad_y: Any, *, out: Any = None) -> Array:
        """Return the gradient of the last forward with respect to its input.

        That is the last one of the calling thread, or of any thread where this one made none. Sets ``grad_gamma``,
        ``grad_beta`` and ``grad_slope`` (None where there is no such parameter), and ``grad_residual`` where the
        forward had a residual (``grad_y`` itself where there is no activation); does not accumulate. After a training
        forward the gradient goes through the batch's statistics, where a mask let a value into them; after an inference
        forward ``grad_x = grad_y * gamma * inv_std``. The equations are those of `nbbn.batch_norm_backward`.

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
        x, residual = last.x, last.after.residual
        for what, array, token in (("input", x, last.token), ("residual", residual, last.residual_token)):
            if array is not None and not is_unchanged(array, token):
                raise RuntimeError(
                    f"backward: expected the {what} of the last forward unchanged, but it was overwritten in place"
                )
        if last.known is not None and x.dtype == self._dtype:
            found = self._backward_known(last.known, last, grad_y, out)
            if found is not None:
                return found
        gradient = _checks.gradient("grad_y", grad_y, x)
        target = None if out is None else _checks.out("out", out, x)
        passed_on = None
        if last.after.passes_on:
            # Shared with the user's grad_y, unless grad_x is about to be written over it.
            shared = target is None or not _checks.overlap(target, gradient)
            passed_on = gradient if shared else gradient.copy()
        backward = self._backward_parts if last.parts else self._differentiate
        grad_x, parameters, of_residual = backward(last, gradient, target)
        self._set_gradients(*parameters, residual=of_residual if passed_on is None else passed_on)
        return grad_x if out is None else out

    def _backward_parts(self, last: Forward, gradient: Array, out: Array | None) -> Gradients:
        """Backward of one ghost batch after the other; gradients of parameters are added up."""
        x, residual = last.x, last.after.read
        grad_x = to_write(out, x, gradient, *residual)
        grad_residual = empty_like(x) if residual else None
        sums: list[Array] = []
        for at, part in last.parts:
            to = without_gaps(grad_x[at], gradient[at], part.x)
            found, parameters, of_residual = self._differentiate(part, gradient[at], to)
            if to is None:
                grad_x[at] = found
            if grad_residual is not None:
                grad_residual[at] = of_residual
            sums = [a + b for a, b in zip(sums, parameters, strict=True)] if sums else list(parameters)
        if out is not None and out is not grad_x:
            out[...] = grad_x
        return Gradients(grad_x, sums, grad_residual)

    def _backward_known(self, known: Known, last: Forward, grad_y: Any, out: Any) -> Array | None:
        """Backward of a small array; None where that takes a closer look."""
        grad_x = known.target(grad_y, out, (last.x,)) if known.is_like(grad_y, False) else None
        if grad_x is None:
            return None
        before, stack, count = self._before(last), known.stack, last.total
        of = last.table, steps.new_sums(self._num_features, before), count, count - self._correction
        self._set_gradients(*known.way.differentiate(stack(grad_y), stack(last.x), stack(grad_x), of, before))
        return grad_x

    def _before(self, last: Forward) -> Epilogue:
        """Return what takes a gradient back through the activation."""
        after, x, form = last.after, last.x, last.form
        if not after.kind:
            return steps.NOTHING
        if form is None:
            form = steps.coefficients(last.table, last.eps, steps.computed_dtype(x))
        return Epilogue(after.kind, None, after.residual, form=form)

    def _call_again(self, last: Forward, out: Array | None) -> Call:
        """Return the call of a forward as one that writes the gradient of x."""
        return Call(last.x, self._axis % last.x.ndim, out, self._before(last), last.weights)

    def _differentiate(self, last: Forward, grad_y: Array, out: Array | None) -> Gradients:
        """Return the gradients of a forward, that of x in ``out`` or a new array."""
        call = self._call_again(last, out)
        table = last.table if last.training else steps.completed(last.table, last.eps)
        return steps.differentiate(grad_y, call, table, self._correction, self._dtype, last.training)

    def freeze(self) -> FrozenBatchNorm:
        """Return a read-only snapshot of the layer, for inference.

        Returns
        -------
        FrozenBatchNorm
            With the running statistics, parameters, axis and activation of this moment; its results
            have the bits of this layer's in inference.

        Raises
        ------
        RuntimeError
            Where the layer is not built yet.
        ValueError
            Where it has no running statistics.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> bn = nbbn.BatchNorm(3)
        >>> frozen = bn.freeze()
        >>> y = bn(np.arange(12, dtype=np.float32).reshape(4, 3))  # trains, after the snapshot
        >>> frozen.center
        array([0., 0., 0.])
        """
        self._check_built("freeze")
        if self._running_mean is None:
            raise ValueError("freeze: expected a layer with running statistics, got one without")
        with self._lock:
            mean, var, gamma, beta, slope = self._table.copy()  # in the order of its rows
        below = slope if self._learns_slope else self._negative_slope
        options: Any = {"axis": self._axis, "activation": self._activation, "negative_slope": below}
        return FrozenBatchNorm.from_stats(mean, var, gamma, beta, self._eps, **options)
