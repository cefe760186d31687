"""An independent oracle for batch normalization, written to be read rather than to be fast.

Nothing here comes from nbbn. Every function takes plain arrays, moves the channel axis to the front with
``np.moveaxis``, and works channel by channel in float64 with correctly rounded sums (``math.fsum``).

A float64 mean alone is not exact enough: at mean / std = 1e6 its own rounding is 1e-10 standard deviations, which
is far more than 8 units in the last place of a normalized value close to zero. So the mean is a pair
``high + low``, and deviations are formed as ``(x - high) - low``.
"""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Forward(NamedTuple):
    """What a forward computes, in float64; y and xhat have x's shape, the rest (C,)."""

    y: np.ndarray
    xhat: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    inv_std: np.ndarray


class Gradients(NamedTuple):
    """What a backward computes, in float64; x has the input's shape, gamma and beta (C,)."""

    x: np.ndarray
    gamma: np.ndarray
    beta: np.ndarray


def channels(x, axis=1):
    """The values of each channel as a float64 matrix (C, n)."""
    moved = np.moveaxis(np.asarray(x), axis, 0)
    return moved.astype(np.float64).reshape(moved.shape[0], math.prod(moved.shape[1:]))


def unchannels(rows, shape, axis=1):
    """The inverse of `channels`: (C, n) back to an array of the given shape."""
    axis = axis % len(shape)
    rest = tuple(size for k, size in enumerate(shape) if k != axis)
    return np.moveaxis(np.asarray(rows).reshape((shape[axis], *rest)), 0, axis)


def along(values, ndim, axis=1):
    """A (C,) vector shaped so that it broadcasts along the channel axis."""
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(values, dtype=np.float64).reshape(shape)


def total(values):
    """The correctly rounded sum; the IEEE sum where a value is not finite."""
    if np.isfinite(values).all():
        return math.fsum(values.tolist())
    with np.errstate(invalid="ignore"):
        return float(np.sum(values))


def split_mean(values):
    """mean = high + low: high is the mean in float64, low is the mean of what remains."""
    high = total(values) / values.size
    low = total(values - high) / values.size if math.isfinite(high) else 0.0
    return high, low


def deviations(x, axis=1):
    """x - mean for every value, as (C, n), and the mean (C,) rounded to float64."""
    rows = channels(x, axis)
    centred = np.empty_like(rows)
    mean = np.zeros(rows.shape[0])
    for c, values in enumerate(rows):
        if values.size:
            high, low = split_mean(values)
            with np.errstate(invalid="ignore"):
                centred[c] = (values - high) - low
            mean[c] = high + low
    return centred, mean


def moments(x, axis=1):
    """count = n, mean = sum(x) / n, m2 = sum((x - mean)^2), per channel."""
    centred, mean = deviations(x, axis)
    m2 = np.array([total(row * row) for row in centred])
    return centred.shape[1], mean, m2


def exact_moments(values):
    """count, mean, m2 of a 1-D float array as exact fractions: m2 = sum(x^2) - sum(x)^2 / n."""
    numbers = [Fraction(v) for v in np.asarray(values, dtype=np.float64).tolist()]
    count, summed = len(numbers), sum(numbers)
    return count, summed / count, sum(v * v for v in numbers) - summed * summed / count


def weighted_moments(x, weights, axis=1):
    """count = sum(w), mean = sum(w x) / count, m2 = sum(w (x - mean)^2), per channel.

    `weights` has the shape of x without the channel axis; values of weight 0 are left out.
    """
    w = np.asarray(weights, dtype=np.float64).reshape(-1)
    rows, w = channels(x, axis)[:, w > 0], w[w > 0]
    count = total(w)
    mean, m2 = np.zeros(len(rows)), np.zeros(len(rows))
    for c, values in enumerate(rows):
        high = total(w * values) / count
        low = total(w * (values - high)) / count
        mean[c] = high + low
        m2[c] = total(w * ((values - high) - low) ** 2)
    return count, mean, m2


def masked_deviations(x, mask, axis=1):
    """x - mean for every value, as (C, n), and the mean (C,), which is that of the values that count."""
    rows, where = channels(x, axis), np.asarray(mask).reshape(-1)
    centred, mean = np.empty_like(rows), np.zeros(rows.shape[0])
    for c, values in enumerate(rows):
        high, low = split_mean(values[where])
        centred[c], mean[c] = (values - high) - low, high + low
    return centred, mean


def masked_training(x, mask, gamma=None, beta=None, *, axis=1, eps=1e-5, correction=0):
    """`training` with the mean and variance of the values where mask is True; y is computed everywhere."""
    where = np.asarray(mask).reshape(-1)
    centred, mean = masked_deviations(x, mask, axis)
    m2 = np.array([total(row * row) for row in centred[:, where]])
    var = m2 / (np.count_nonzero(where) - correction)
    return _affine(x, centred, mean, var, gamma, beta, axis, eps)


def masked_backward(grad_y, x, mask, gamma=None, *, axis=1, eps=1e-5, correction=0):
    """`backward`, where only the n values that count are in mean and var, but every output has a gradient.

    The sums over dy are over all outputs. What does not count has only the direct term, dy gamma s. The
    outputs of NaN or Inf that do not count are left out of the sums.
    """
    where = np.asarray(mask).reshape(-1)
    centred, mean = masked_deviations(x, mask, axis)
    dy = channels(grad_y, axis)
    n = np.count_nonzero(where)
    var = np.array([total(row * row) for row in centred[:, where]]) / (n - correction)
    s = 1.0 / np.sqrt(var + eps)
    g = ones_or(gamma, mean)
    left_out = ~where & ~np.isfinite(centred)
    counted_dy, centred = np.where(left_out, 0.0, dy), np.where(left_out, 0.0, centred)
    sum_dy = np.array([total(row) for row in counted_dy])
    sum_dy_d = np.array([total(row) for row in counted_dy * centred])
    direct = (g * s)[:, None] * dy
    through_mean = (g * s * sum_dy / n)[:, None]
    through_var = (g * s**3 * sum_dy_d / (n - correction))[:, None] * centred
    grad_x = direct - np.where(where, through_mean + through_var, 0.0)
    return Gradients(unchannels(grad_x, np.shape(x), axis), sum_dy_d * s, sum_dy)


def training(x, gamma=None, beta=None, *, axis=1, eps=1e-5, correction=0):
    """y = (x - mean) / sqrt(m2 / (n - correction) + eps) * gamma + beta."""
    centred, mean = deviations(x, axis)
    var = np.array([total(row * row) for row in centred]) / (centred.shape[1] - correction)
    return _affine(x, centred, mean, var, gamma, beta, axis, eps)


def inference(x, mean, var, gamma=None, beta=None, *, axis=1, eps=1e-5):
    """y = (x - mean) / sqrt(var + eps) * gamma + beta with the given mean and var."""
    mean, var = np.asarray(mean, dtype=np.float64), np.asarray(var, dtype=np.float64)
    return _affine(x, channels(x, axis) - mean[:, None], mean, var, gamma, beta, axis, eps)


def _affine(x, centred, mean, var, gamma, beta, axis, eps):
    shape = np.shape(x)
    inv_std = 1.0 / np.sqrt(var + eps)
    xhat = centred * inv_std[:, None]
    y = xhat * ones_or(gamma, mean)[:, None] + zeros_or(beta, mean)[:, None]
    return Forward(unchannels(y, shape, axis), unchannels(xhat, shape, axis), mean, var, inv_std)


def activation(z, name, slope=0.01):
    """The activation of z, and its derivative (0 where it has none, the left one for leaky_relu)."""
    z = np.asarray(z, dtype=np.float64)
    one, zero = np.ones_like(z), np.zeros_like(z)
    if name == "relu":
        return np.maximum(z, 0), np.where(z > 0, one, zero)
    if name == "relu6":
        return np.clip(z, 0, 6), np.where((z > 0) & (z < 6), one, zero)
    if name in ("leaky_relu", "prelu"):
        return np.where(z < 0, slope * z, z), np.where(z > 0, one, slope)
    if name == "hard_swish":
        inner = np.where(z < 3, z / 3 + 0.5, one)
        return z * np.clip(z + 3, 0, 6) / 6, np.where(z <= -3, zero, inner)
    if name in ("silu", "mish"):
        near = np.clip(z, -750, 150)  # beyond, the slope is 0 or 1
        with np.errstate(invalid="ignore", under="ignore"):  # infinity times 0
            e = np.exp(near)
            if name == "silu":
                return z * (e / (1 + e)), e / (1 + e) * (1 + near / (1 + e))
            t = (e * e + 2 * e) / (e * e + 2 * e + 2)  # tanh(log(1 + e))
            return z * t, t + near * 4 * e * (1 + e) / (e * e + 2 * e + 2) ** 2
    return z, one


def ones_or(gamma, like):
    """gamma in float64, or 1 for every channel where there is none."""
    return np.ones(np.shape(like)) if gamma is None else np.asarray(gamma, dtype=np.float64)


def zeros_or(beta, like):
    """beta in float64, or 0 for every channel where there is none."""
    return np.zeros(np.shape(like)) if beta is None else np.asarray(beta, dtype=np.float64)


def running(old, batch, momentum):
    """new = (1 - momentum) * old + momentum * batch."""
    return (1.0 - momentum) * np.asarray(old, dtype=np.float64) + momentum * batch


def running_statistics(x, running_mean, running_var, *, axis=1, momentum=0.1, running_correction=1):
    """Both running statistics after one training forward; the variance is m2 / (n - running_correction)."""
    count, mean, m2 = moments(x, axis)
    return running(running_mean, mean, momentum), running(running_var, m2 / (count - running_correction), momentum)


def backward(grad_y, x, gamma=None, *, axis=1, eps=1e-5, correction=0):
    """The gradient through the batch statistics.

    With d = x - mean, var = sum(d^2) / (n - correction), s = (var + eps)^(-1/2), xhat = d s::

        d s / d x_i = -s^3 d_i / (n - correction)        d mean / d x_i = 1 / n
        grad_x_i = gamma s (dy_i - sum(dy) / n) - gamma s^3 d_i sum(dy d) / (n - correction)
        grad_gamma = sum(dy xhat)        grad_beta = sum(dy)
    """
    centred, mean = deviations(x, axis)
    dy = channels(grad_y, axis)
    n = centred.shape[1]
    var = np.array([total(row * row) for row in centred]) / (n - correction)
    s = 1.0 / np.sqrt(var + eps)
    g = ones_or(gamma, mean)
    sum_dy = np.array([total(row) for row in dy])
    sum_dy_d = np.array([total(row) for row in dy * centred])
    direct = (g * s)[:, None] * (dy - (sum_dy / n)[:, None])
    through_var = (g * s**3 * sum_dy_d / (n - correction))[:, None] * centred
    return Gradients(unchannels(direct - through_var, np.shape(x), axis), sum_dy_d * s, sum_dy)


def backward_inference(grad_y, x, mean, inv_std, gamma=None, *, axis=1):
    """The gradient with constant statistics.

    grad_x = dy gamma inv_std, grad_gamma = sum(dy xhat), grad_beta = sum(dy)
    """
    mean, inv_std = np.asarray(mean, dtype=np.float64), np.asarray(inv_std, dtype=np.float64)
    dy, xhat = channels(grad_y, axis), (channels(x, axis) - mean[:, None]) * inv_std[:, None]
    grad_x = dy * (ones_or(gamma, mean) * inv_std)[:, None]
    grad_gamma = np.array([total(row) for row in dy * xhat])
    return Gradients(unchannels(grad_x, np.shape(x), axis), grad_gamma, np.array([total(row) for row in dy]))
