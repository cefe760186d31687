"""Comparisons against the oracle: how far a result may be from the exact one, and what counts as the same bits."""

import re

import numpy as np
import pytest
import reference

import nbbn

# Where a test compiles variants of its own, those of float64 wait for the long run.
float32_first = pytest.mark.parametrize(
    "dtype",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.long)],
    ids=lambda t: t.__name__,
)


def eps_of(dtype):
    """The spacing of 1.0 in the dtype."""
    return float(np.finfo(dtype).eps)


def assert_within(actual, exact, bound):
    """|actual - exact| <= bound everywhere; says where it is worst."""
    actual = np.asarray(actual)
    exact = np.asarray(exact, dtype=np.float64)
    assert actual.shape == exact.shape
    error = np.abs(actual.astype(np.float64) - exact)
    bound = np.broadcast_to(bound, error.shape)
    bad = ~(error <= bound)
    if bad.any():
        k = np.unravel_index(np.argmax(np.where(bad, error - bound, -np.inf)), error.shape)
        raise AssertionError(
            f"{bad.sum()} of {bad.size} outside the bound; at {tuple(map(int, k))} got {actual[k]!r}, "
            f"exact {exact[k]!r}, error {error[k]:.3g}, bound {bound[k]:.3g}"
        )


def forward_bound(x, expected, gamma=None, beta=None, axis=1):
    """float32: 8 eps (|gamma xhat| + |beta|). float64: the same with 16 eps, and what a two-pass mean may be off."""
    ndim = np.ndim(x)
    scale = np.abs(reference.along(reference.ones_or(gamma, expected.mean), ndim, axis))
    shift = np.abs(reference.along(reference.zeros_or(beta, expected.mean), ndim, axis))
    eps = eps_of(np.asarray(x).dtype)
    size = scale * np.abs(expected.xhat) + shift
    if np.asarray(x).dtype == np.float32:
        return 8 * eps * size
    largest = np.array([np.abs(row).max(initial=0.0) for row in reference.channels(x, axis)])
    return 16 * eps * size + 8 * eps * scale * reference.along(expected.inv_std * largest, ndim, axis)


def assert_forward(actual, x, expected, gamma=None, beta=None, axis=1):
    """y has x's shape and dtype and lies within `forward_bound` of the exact one."""
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == np.asarray(x).dtype
    assert_within(actual, expected.y, forward_bound(x, expected, gamma, beta, axis))


def assert_gradients(actual, expected, grad_y, forward, gamma=None, axis=1):
    """Each gradient within a few units in the last place of the terms it is summed from.

    A two-pass mean in float64 may be off by as much as in `forward_bound`, and every xhat with it.
    """
    grad_x, grad_gamma, grad_beta = actual
    eps = 32 * eps_of(grad_x.dtype)
    dy, xhat = reference.channels(grad_y, axis), reference.channels(forward.xhat, axis)
    n = dy.shape[1]
    largest = np.abs(forward.mean) * forward.inv_std + np.abs(xhat).max(axis=1, initial=0.0)
    off = 8 * eps_of(np.float64) * largest
    sum_dy = np.abs(dy).sum(axis=1)
    sum_dy_xhat = np.abs(dy * xhat).sum(axis=1)
    bound_gamma = eps * sum_dy_xhat + off * sum_dy
    factor = np.abs(reference.ones_or(gamma, forward.mean)) * forward.inv_std
    rows = eps * (np.abs(dy) + (sum_dy / n)[:, None] + np.abs(xhat) * (sum_dy_xhat / n)[:, None])
    rows += np.abs(xhat) * (off * sum_dy / n)[:, None] + (off * sum_dy_xhat / n)[:, None]
    bound_x = reference.unchannels(rows * factor[:, None], expected.x.shape, axis)
    assert_within(grad_x, expected.x, bound_x)
    for got, exact, bound in (
        (grad_gamma, expected.gamma, bound_gamma),
        (grad_beta, expected.beta, eps * sum_dy),
    ):
        if got is not None:
            assert_within(got, exact, bound + eps_of(got.dtype) * np.abs(exact))


def assert_running(actual, old, batch, momentum, *, batch_error):
    """actual = (1 - momentum) * old + momentum * batch, each batch value known to batch_error."""
    size = abs(1 - momentum) * np.abs(np.asarray(old, dtype=np.float64)) + abs(momentum) * np.abs(batch)
    bound = 4 * eps_of(actual.dtype) * size + abs(momentum) * batch_error
    assert_within(actual, reference.running(old, batch, momentum), bound)


def mean_error(x, axis=1):
    """How far a mean accumulated in float64 may be off, per channel."""
    largest = np.array([np.abs(row).max(initial=0.0) for row in reference.channels(x, axis)])
    return 8 * eps_of(np.float64) * largest


def var_error(x, var):
    """How far a variance may be off: 1e-6 of it for float32 values, 1e-12 for float64 ones."""
    return (1e-6 if np.asarray(x).dtype == np.float32 else 1e-12) * np.abs(var)


def same_bits(a, b):
    """The same dtype, shape and bits, NaN payloads and signs of zero included."""
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def assert_same_bits(a, b):
    """Fails with the number of differing values."""
    a, b = np.asarray(a), np.asarray(b)
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    different = np.count_nonzero(~((a == b) | (np.isnan(a) & np.isnan(b))))
    assert same_bits(a, b), f"{different} of {a.size} values differ (0: only signs of zero or NaN payloads do)"


STATE = ("gamma", "beta", "running_mean", "running_var", "batch_mean", "batch_var", "batch_inv_std")


def snapshot(bn):
    """Everything of a layer that a failing call must leave alone, as comparable values."""
    arrays = {name: getattr(bn, name, None) for name in (*STATE, "grad_gamma", "grad_beta")}
    frozen = {name: None if a is None else (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()}
    return {**frozen, "num_batches_tracked": bn.num_batches_tracked, "training": bn.training}


def layer(count=3, *, seed=1, **options):
    """A layer whose parameters and running statistics are all different from their initial values."""
    bn = nbbn.BatchNorm(count, **options)
    drawn = np.random.default_rng(seed)
    for name, low, high in (
        ("gamma", 0.5, 2),
        ("beta", -1, 1),
        ("running_mean", -1, 1),
        ("running_var", 0.5, 2),
    ):
        if getattr(bn, name) is not None:
            getattr(bn, name)[:] = drawn.uniform(low, high, count)
    return bn


SHAPE = (6, 3, 5)
TYPES = (
    "int8",
    "int32",
    "int64",
    "uint16",
    "complex64",
    "complex128",
    "bool",
    "object",
    "longdouble",
    "S3",
    "datetime64[s]",
)


def assert_names(error, *words):
    """Every word occurs in the message."""
    message = str(error.value)
    missing = [word for word in words if not re.search(word, message)]
    assert not missing, f"{message!r} says nothing of {missing}"


def of_type(name):
    """An array like X of another dtype."""
    if name == "datetime64[s]":
        return np.zeros(SHAPE, name)
    return np.ones(SHAPE, name)


def sentinel(shape=SHAPE, dtype=np.float32):
    return np.full(shape, 777, dtype)


def read_only(shape):
    out = sentinel(shape)
    out.flags.writeable = False
    return out


def named(dtype):
    """A pattern that finds the dtype's name in a message."""
    return re.escape(np.dtype(dtype).name)
