"""Folding batch normalization into the layer before it, for inference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn.layer.batch_norm import BatchNorm
from nbbn.layer.frozen import FrozenBatchNorm

_SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126, "float64": 2.0**-1022}
_ACCEPTED = "float16, bfloat16, float32 or float64"


def fold_linear(weight: ArrayLike, bias: ArrayLike | None, bn: BatchNorm | FrozenBatchNorm) -> tuple[Array, Array]:
    r"""Return weight and bias of a linear layer that includes the batch normalization after it.

    For ``y = bn(x @ weight.T + bias)`` in inference, with the layer's inference form
    :math:`(z - \mathrm{center})\,\mathrm{scale} + \mathrm{shift}`:

    .. math:: W'_{oi} = \mathrm{scale}_o\,W_{oi}, \qquad
              b'_o = (b_o - \mathrm{center}_o)\,\mathrm{scale}_o + \mathrm{shift}_o

    and ``y = x @ weight'.T + bias'``.

    Parameters
    ----------
    weight : array_like of float16, bfloat16, float32 or float64, shape (out, in)
        Of the linear layer.
    bias : array_like of such a dtype, shape (out,), or None
        None: there is none, as if it were 0.
    bn : BatchNorm or FrozenBatchNorm
        Of ``out`` channels, with running statistics and without an activation.

    Returns
    -------
    weight, bias : ndarray, shape (out, in) and (out,)
        New arrays in the dtype of ``weight``.

    Raises
    ------
    TypeError
        For any other dtype or kind of layer.
    RuntimeError
        For a layer that is not built yet.
    ValueError
        For a wrong shape, a layer without running statistics or with an activation, and where a
        result is beyond the range of the dtype.

    Notes
    -----
    In float64, rounded once. A result so small that the dtype holds it with fewer digits (subnormal)
    becomes 0: processors take many times longer to multiply by such numbers.

    References
    ----------
    B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", CVPR 2018, arXiv:1712.05877, section 3.2.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> bn = nbbn.BatchNorm(1, eps=0.0).eval()
    >>> bn.running_mean[:], bn.running_var[:], bn.gamma[:], bn.beta[:] = 1.0, 4.0, 3.0, 0.5
    >>> nbbn.fold_linear(np.array([[2.0, 4.0]]), None, bn)
    (array([[3., 6.]]), array([-1.]))
    """
    weights = _checks.array("weight", weight, _ACCEPTED)
    if weights.ndim != 2:
        raise ValueError(f"weight: expected shape (out, in), got {weights.shape}")
    return _fold(weights, bias, bn, (weights.shape[0], 1))


def fold_conv(
    weight: ArrayLike, bias: ArrayLike | None, bn: BatchNorm | FrozenBatchNorm,
    *, transposed: bool = False, groups: int = 1,
) -> tuple[Array, Array]:  # fmt: skip
    r"""Return weight and bias of a convolution that includes the batch normalization after it.

    For ``y = bn(conv(x))`` in inference; the equations, the rounding and the source are those of `fold_linear`, with
    ``o`` the output channel that an entry of the kernel belongs to.

    Parameters
    ----------
    weight : array_like of float16, bfloat16, float32 or float64
        The kernel, of shape ``(out, in/groups, ...)``, or ``(in, out/groups, ...)`` where
        ``transposed``; of any number of spatial dimensions.
    bias, bn
        As of `fold_linear`.
    transposed : bool, default False
        Whether the convolution is a transposed one.
    groups : int, default 1
        The groups of channels that are convolved separately.

    Returns
    -------
    weight, bias
        As of `fold_linear`, the weight in the shape that was given.

    Raises
    ------
    TypeError, RuntimeError, ValueError
        As `fold_linear`; ``ValueError`` also where ``groups`` do not divide the channels.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> bn = nbbn.BatchNorm(2, eps=0.0).eval()
    >>> bn.gamma[:] = [10.0, 100.0]
    >>> kernel = np.arange(6.0).reshape(2, 1, 3)
    >>> nbbn.fold_conv(kernel, np.array([1.0, 2.0]), bn)
    (array([[[  0.,  10.,  20.]],
           [[300., 400., 500.]]]), array([ 10., 200.]))
    """
    weights = _checks.array("weight", weight, _ACCEPTED)
    separate = _checks.positive_integer("groups", groups)
    across = _checks.flag("transposed", transposed)
    if weights.ndim < 2:
        expected = "(in, out/groups, ...)" if across else "(out, in/groups, ...)"
        raise ValueError(f"weight: expected shape {expected}, got {weights.shape}")
    first, second, *spatial = weights.shape
    if first % separate:
        channels = "input" if across else "output"
        raise ValueError(f"groups: expected a divisor of {first}, the {channels} channels, got {separate}")
    ones = (1,) * len(spatial)
    if not across:
        return _fold(weights, bias, bn, (first, 1, *ones))
    by_group = weights.reshape(separate, first // separate, second, *spatial)
    folded, offset = _fold(by_group, bias, bn, (separate, 1, second, *ones))
    return folded.reshape(weights.shape), offset


def _fold(weight: Array, bias: Any, bn: Any, along: tuple[int, ...]) -> tuple[Array, Array]:
    """Fold; reshaped to ``along``, one number a channel broadcasts with ``weight``."""
    center, scale, shift = _inference_form(bn)
    channels = math.prod(along)
    if scale.shape != (channels,):
        raise ValueError(f"bn: expected {channels} channels, the outputs of weight, got {scale.size}")
    before = np.zeros(channels) if bias is None else _checks.array("bias", bias, _ACCEPTED).astype(np.float64)
    if before.shape != (channels,):
        raise ValueError(f"bias: expected shape {(channels,)}, one value an output channel, got {before.shape}")
    with np.errstate(all="ignore"):  # NaN and Inf, no warning
        folded = weight.astype(np.float64) * scale.reshape(along)
        offset = (before - center) * scale + shift
    return _rounded("weight", folded, weight.dtype), _rounded("bias", offset, weight.dtype)


def _inference_form(bn: Any) -> list[Vector]:
    """Return center, scale and shift of a layer, in float64."""
    if getattr(bn, "activation", None) is not None:
        raise ValueError(
            f"bn: expected a layer without an activation, as a linear layer has none, got {bn.activation!r}"
        )
    if isinstance(bn, BatchNorm):
        bn._check_built("bn")
        if not bn.track_running_stats:
            raise ValueError("bn: expected a layer with running statistics, got track_running_stats=False")
        bn = bn.freeze()
    if not all(hasattr(bn, name) for name in ("center", "scale", "shift")):
        raise TypeError(f"bn: expected a BatchNorm or FrozenBatchNorm, got {type(bn).__name__}")
    return [np.array(values, np.float64) for values in (bn.center, bn.scale, bn.shift)]


def _rounded(name: str, exact: Array, dtype: np.dtype[Any]) -> Array:
    """Return ``exact`` in ``dtype``, in C order, with 0 for what would be subnormal."""
    with np.errstate(all="ignore"):
        found: Array = (_to_odd(exact) if dtype.name == "bfloat16" else exact).astype(dtype, order="C")
        values = found.astype(np.float64)
        lost = np.isinf(values) & np.isfinite(exact)
    if lost.any():
        raise ValueError(
            f"{name}: expected folded values in the range of {dtype.name}, got {np.abs(exact[lost]).max():.3g}"
        )
    found[np.abs(values) < _SMALLEST_NORMAL[dtype.name]] = 0
    return found


def _to_odd(exact: Array) -> Array:
    """Return float64 as float32, where that is inexact with an odd last bit.

    ml_dtypes goes to bfloat16 by way of float32. What is rounded to odd first is then rounded as if it
    were once (S. Boldo, G. Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
    """
    near: Array = exact.astype(np.float32)
    inexact = np.isfinite(near) & (near != exact)
    even = near.view(np.uint32) & 1 == 0
    towards = np.where(exact > near, np.float32(np.inf), np.float32(-np.inf))
    return np.where(inexact & even, np.nextafter(near, towards), near)
