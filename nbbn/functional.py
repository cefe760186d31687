"""Batch normalization as functions of arrays: check -> view -> run."""

from __future__ import annotations

from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from nbbn import _checks
from nbbn._checks import Activation, Array, Differentiated, DType, Normalized, Trained
from nbbn._engine import masks, steps
from nbbn._engine.steps import Call, Epilogue
from nbbn._kernels import table as rows

Numbers = ArrayLike | None  # one a channel


@overload
def normalize(
    x: NDArray[np.uint8], mean: ArrayLike, var: ArrayLike, gamma: Numbers = None, beta: Numbers = None,
    *, dtype: DTypeLike, **options: Unpack[Normalized],
) -> NDArray[np.float32]: ...  # fmt: skip
@overload
def normalize(
    x: NDArray[DType], mean: ArrayLike, var: ArrayLike, gamma: Numbers = None, beta: Numbers = None,
    *, dtype: DTypeLike | None = None, **options: Unpack[Normalized],
) -> NDArray[DType]: ...  # fmt: skip
@overload
def normalize(
    x: ArrayLike, mean: ArrayLike, var: ArrayLike, gamma: Numbers = None, beta: Numbers = None,
    *, dtype: DTypeLike | None = None, **options: Unpack[Normalized],
) -> Array: ...  # fmt: skip
def normalize(
    x: ArrayLike, mean: ArrayLike, var: ArrayLike, gamma: Numbers = None, beta: Numbers = None,
    *, eps: float = 1e-5, axis: int = 1, residual: ArrayLike | None = None, activation: Activation | None = None,
    negative_slope: ArrayLike = 0.01, dtype: DTypeLike | None = None, out: Array | None = None,
) -> Array:  # fmt: skip
    r"""Standardize with given statistics, then scale and shift: the inference step.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \varepsilon}}\,\gamma + \beta

    and, where they are given, ``activation(y + residual)``.

    Parameters
    ----------
    x : array_like of float32, float64, float16, bfloat16 or uint8
        Of any number of dimensions from 1 up and any memory layout; its size along ``axis`` is C.
    mean, var : array_like of real numbers, shape (C,), or a number
        Statistics per channel, or of all of them.
    gamma, beta : array_like of real numbers, shape (C,), or a number, optional
        Scale (default 1) and shift (default 0) per channel, or of all of them.
    eps : float, default 1e-5
        Added to ``var`` inside the square root; finite, >= 0. Where that sum is 0, ``y`` is ``beta``.
    axis : int, default 1
        The channel axis; may be negative.
    residual : array_like, optional
        Added before the activation, in the same pass; of the shape and dtype of the result.
    activation : {"relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu"}, optional
        Applied last, in the same pass; see `nbbn.BatchNorm`.
    negative_slope : float or, of "prelu", array_like of shape (C,), default 0.01
        Slope of "leaky_relu" and "prelu" below 0; a number is finite.
    dtype : dtype, optional
        Of the result: float32 for an ``x`` of uint8; else only that of ``x``, which is the default.
    out : ndarray, optional
        Where to write, of the shape and dtype of the result; may be ``x`` or ``residual`` itself.

    Returns
    -------
    ndarray
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError
        For any other dtype, and for masked arrays.
    ValueError
        For a wrong shape, axis, ``eps`` or ``out``, and a negative variance. Nothing has been written then.

    Notes
    -----
    ``x`` is read once and the result written once. A value has the same bits wherever it stands, for every memory
    layout, batch size and number of threads: ``y = fma(x - center, scale, shift)`` with ``center`` the mean rounded to
    the dtype of ``x``. In float32 the result is within 8 eps (\|gamma x_hat\| + \|beta\|) of exact arithmetic.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", ICML 2015: algorithm 2. Training is algorithm 1, and its gradients are in section 3.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> x = np.array([[2.0], [0.0], [2.0], [4.0]])
    >>> nbbn.normalize(x, np.array([2.0]), np.array([4.0]), eps=0.0).ravel()
    array([ 0., -1.,  0.,  1.])
    >>> nbbn.normalize(x, 2, 4, eps=0.0).ravel()
    array([ 0., -1.,  0.,  1.])
    """
    values = _checks.array("x", x, _checks.STORED)
    index = _checks.axis(axis, values.ndim)
    channels = values.shape[index]
    kind = _checks.result_dtype(dtype, values.dtype)
    after = _after(activation, negative_slope, residual, values, index, kind)
    means = _checks.per_channel("mean", mean, channels, scalar=True)
    variances = _checks.variances("var", var, channels, scalar=True)
    gammas, betas = _optional("gamma", gamma, channels, scalar=True), _optional("beta", beta, channels, scalar=True)
    table = steps.given_table(means, variances, gammas, betas, after.slope)
    epsilon = _checks.real("eps", eps, 0.0)
    target = None if out is None else _checks.out("out", out, values, kind)
    form = steps.coefficients(table, epsilon, steps.computed_dtype(values))
    y = steps.infer(Call(values, index, target, after), form, kind)
    return y if out is None else out


@overload
def batch_norm(
    x: NDArray[DType], running_mean: Numbers, running_var: Numbers, gamma: Numbers = None, beta: Numbers = None,
    **options: Unpack[Trained],
) -> NDArray[DType]: ...  # fmt: skip
@overload
def batch_norm(
    x: ArrayLike, running_mean: Numbers, running_var: Numbers, gamma: Numbers = None, beta: Numbers = None,
    **options: Unpack[Trained],
) -> Array: ...  # fmt: skip
def batch_norm(
    x: ArrayLike, running_mean: Numbers, running_var: Numbers, gamma: Numbers = None, beta: Numbers = None,
    *, training: bool = False, momentum: float = 0.1, eps: float = 1e-5, axis: int = 1,
    correction: float = 0, running_correction: float = 1, mask: ArrayLike | None = None,
    residual: ArrayLike | None = None, activation: Activation | None = None, negative_slope: ArrayLike = 0.01,
    out: Array | None = None,
) -> Array:  # fmt: skip
    r"""Batch normalization, for training or for inference.

    In training, with the mean and variance of the batch itself (per channel, over all other axes):

    .. math:: y = \frac{x - \bar x}{\sqrt{v + \varepsilon}}\,\gamma + \beta, \qquad
              v = \frac{1}{n - \mathrm{correction}} \sum_i (x_i - \bar x)^2

    and ``running = (1 - momentum) * running + momentum * batch`` is applied to ``running_mean`` and
    ``running_var`` in place. In inference the running statistics take the place of the batch's.

    Parameters
    ----------
    x : array_like of float32, float64, float16 or bfloat16
        Of any number of dimensions from 1 up and any memory layout; its size along ``axis`` is C.
    running_mean, running_var : ndarray of float32 or float64, shape (C,), or None
        In training updated in place; either may be None there. Read in inference, when any real numbers are taken.
    gamma, beta : array_like of real numbers, shape (C,), optional
        Scale (default 1) and shift (default 0) per channel.
    training : bool, default False
        Whether to use the statistics of the batch.
    momentum : float, default 0.1
        Weight of the batch's statistics in the running ones; finite.
    correction : float, default 0
        Degrees of freedom taken off in the variance that normalizes: biased by default.
    running_correction : float, default 1
        Degrees of freedom taken off in the variance that enters ``running_var``: unbiased by
        default, as in PyTorch; 0 is Keras's and ONNX's convention.
    mask : array_like of bool, optional
        True where a value enters the batch's statistics, as in `batch_moments`. Every output is computed. Where all are
        masked, the running statistics are used (mean 0 and variance 1 in place of None) and nothing is updated.
    eps, axis, residual, activation, negative_slope, out
        As of `normalize`.

    Returns
    -------
    ndarray
        ``out``, or a new array in the memory order of ``x``.

    Raises
    ------
    TypeError, ValueError
        As `normalize`; ``ValueError`` in training also where there are too few values per channel for the
        corrections. Nothing has been written or updated then.

    Notes
    -----
    Statistics are taken in one pass over ``x``, in float64 (see `batch_moments`), and give the same
    bits for every number of threads. An empty ``x`` changes nothing.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> x = np.array([[2.0], [0.0], [2.0], [4.0]])
    >>> running_mean, running_var = np.zeros(1), np.ones(1)
    >>> y = nbbn.batch_norm(x, running_mean, running_var, training=True, eps=0.0)
    >>> y.ravel().round(6) + 0.0
    array([ 0.      , -1.414214,  0.      ,  1.414214])
    >>> running_mean, running_var.round(6)
    (array([0.2]), array([1.166667]))
    """
    values = _checks.array("x", x, _checks.HALVES)
    index = _checks.axis(axis, values.ndim)
    channels = values.shape[index]
    gammas, betas = _optional("gamma", gamma, channels), _optional("beta", beta, channels)
    weight = _checks.real("momentum", momentum)
    epsilon = _checks.real("eps", eps, 0.0)
    taken = _checks.real("correction", correction, 0.0)
    running_taken = _checks.real("running_correction", running_correction, 0.0)
    weights = masks.of_mask(mask, values.shape, index)
    after = _after(activation, negative_slope, residual, values, index)
    target = None if out is None else _checks.out("out", out, values)
    given = None  # statistics that stand in for the batch's
    if not _checks.flag("training", training):
        for name, value in (("running_mean", running_mean), ("running_var", running_var)):
            if value is None:
                raise ValueError(f"{name}: expected an array for inference, got None")
        mean = _checks.per_channel("running_mean", running_mean, channels)
        given = mean, _checks.variances("running_var", running_var, channels)
    else:
        means = _checks.running("running_mean", running_mean, channels)
        variances = _checks.running("running_var", running_var, channels)
        _checks.apart("running_mean", means, {"running_var": variances, "out": target})
        _checks.apart("running_var", variances, {"out": target})
        if variances is not None:
            _checks.not_negative("running_var", variances)
        if values.size == 0:
            return np.empty_like(values) if out is None else out
        if weights is not None and weights.total == 0.0:
            mean = np.zeros(channels) if means is None else means
            given = mean, np.ones(channels) if variances is None else variances
    call = Call(values, index, target, after, weights)
    if given is not None:
        table = steps.given_table(*given, gammas, betas, after.slope)
        y = steps.infer(call, steps.coefficients(table, epsilon, steps.computed_dtype(values)))
        return y if out is None else out
    count = call.checked_total(taken, running_taken)
    table = steps.new_table(channels, gammas, betas, after.slope)
    y = steps.train(call, table, count - taken, epsilon)
    for running, of_batch, freedom in ((means, rows.MEAN, 1.0), (variances, rows.M2, count - running_taken)):
        if running is not None:
            with np.errstate(all="ignore"):
                running[...] = (1.0 - weight) * running.astype(np.float64) + weight * (table[of_batch] / freedom)
    return y if out is None else out


@overload
def batch_norm_backward(
    grad_y: ArrayLike, x: NDArray[DType], mean: ArrayLike, inv_std: ArrayLike, gamma: Numbers = None,
    **options: Unpack[Differentiated],
) -> tuple[NDArray[DType], Array, Array]: ...  # fmt: skip
@overload
def batch_norm_backward(
    grad_y: ArrayLike, x: ArrayLike, mean: ArrayLike, inv_std: ArrayLike, gamma: Numbers = None,
    **options: Unpack[Differentiated],
) -> tuple[Array, Array, Array]: ...  # fmt: skip
def batch_norm_backward(
    grad_y: ArrayLike, x: ArrayLike, mean: ArrayLike, inv_std: ArrayLike, gamma: Numbers = None,
    *, axis: int = 1, training: bool = True, mask: ArrayLike | None = None, correction: float = 0,
    out: Array | None = None,
) -> tuple[Array, Array, Array]:  # fmt: skip
    r"""Gradients of batch normalization with respect to x, gamma and beta.

    With :math:`\hat x = (x - \mathrm{mean})\,\mathrm{inv\_std}` and sums over the ``n`` values of a channel,
    :math:`g_\beta = \sum \mathrm{grad}_y`, :math:`g_\gamma = \sum \mathrm{grad}_y\,\hat x`, and in training

    .. math:: \mathrm{grad}_x = \gamma\,\mathrm{inv\_std}\left(\mathrm{grad}_y
              - \frac{g_\beta}{n} - \frac{\hat x\,g_\gamma}{n - \mathrm{correction}}\right),

    in inference, and for values that a mask kept out of the statistics,
    :math:`\mathrm{grad}_x = \mathrm{grad}_y\,\gamma\,\mathrm{inv\_std}`.

    Parameters
    ----------
    grad_y : array_like
        Gradient with respect to y, of the shape and dtype of ``x``.
    x : array_like of float32, float64, float16 or bfloat16
        The input of the forward.
    mean, inv_std : array_like of real numbers, shape (C,)
        What the forward normalized with; ``inv_std = 1 / sqrt(var + eps)``.
    gamma : array_like of real numbers, shape (C,), optional
        The scale of the forward, default 1.
    training : bool, default True
        Whether mean and inv_std are functions of ``x`` (batch statistics) or given (running ones).
    axis, mask, correction
        Those of the forward, as of `batch_norm`. ``n`` is the number of values that a mask counts, while
        :math:`g_\beta` and :math:`g_\gamma` are sums over all outputs, masked ones too. Only where a masked
        value is NaN or infinite, its ``grad_y`` enters no sum.
    out : ndarray, optional
        Where to write grad_x; may be ``grad_y`` or ``x``.

    Returns
    -------
    grad_x : ndarray
        Of the shape and dtype of ``x``: ``out``, or a new array.
    grad_gamma, grad_beta : ndarray, shape (C,)
        Accumulated in float64; float32 where ``gamma`` is, or ``x`` where there is none (or is of a half
        type), else float64.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm`. Nothing has been written then.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> x = np.array([[2.0], [0.0], [2.0], [4.0]])
    >>> grad_y = np.array([[1.0], [0.0], [0.0], [0.0]])
    >>> moments = nbbn.batch_moments(x)
    >>> inv_std = 1 / moments.std()
    >>> grad_x, grad_gamma, grad_beta = nbbn.batch_norm_backward(grad_y, x, moments.mean, inv_std)
    >>> grad_x.ravel().round(6)
    array([ 0.53033 , -0.176777, -0.176777, -0.176777])
    >>> grad_gamma, grad_beta
    (array([0.]), array([1.]))
    """
    values = _checks.array("x", x, _checks.HALVES)
    index = _checks.axis(axis, values.ndim)
    channels = values.shape[index]
    gradient = _checks.gradient("grad_y", grad_y, values)
    means = _checks.per_channel("mean", mean, channels)
    inverse = _checks.per_channel("inv_std", inv_std, channels)
    gammas = _optional("gamma", gamma, channels)
    through_statistics = _checks.flag("training", training)
    taken = _checks.real("correction", correction, 0.0)
    target = None if out is None else _checks.out("out", out, values)
    call = Call(values, index, target, steps.NOTHING, masks.of_mask(mask, values.shape, index))
    if call.weights is not None and call.weights.total == 0.0:
        through_statistics = False  # there were none
    if through_statistics and values.size:
        call.checked_total(taken, 0.0)
    dtype = steps.computed_dtype(values) if gammas is None else gammas.dtype
    table = steps.new_table(channels, gammas)
    table[rows.MEAN], table[rows.INV_STD], table[rows.MEAN_LOW] = means, inverse, 0.0
    grad_x, (grad_gamma, grad_beta), _ = steps.differentiate(gradient, call, table, taken, dtype, through_statistics)
    return (grad_x if out is None else out), grad_gamma, grad_beta


def _optional(name: str, value: Any, channels: int, scalar: bool = False) -> Array | None:
    return None if value is None else _checks.per_channel(name, value, channels, scalar)


def _after(
    activation: Any, negative_slope: Any, residual: Any, x: Array, index: int, dtype: np.dtype[Any] | None = None
) -> Epilogue:
    name = steps.activation(activation)
    slope = steps.slope(name, negative_slope, x.shape[index])
    added = None if residual is None else _checks.gradient("residual", residual, x, dtype)
    return steps.epilogue(name, slope, added)
