"""silu and mish: how exact they are, and the same bits wherever a value stands."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of

import nbbn

by_name = pytest.mark.parametrize("name", ["silu", pytest.param("mish", marks=pytest.mark.long)])
by_dtype = pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.long)])
LOWEST = {np.float32: -120.0, np.float64: -800.0}


def apply(x, name):
    """The activation alone: center 0, scale 1, shift 0."""
    return nbbn.FrozenBatchNorm([0.0], [1.0], [0.0], activation=name)(x.reshape(-1, 1)).ravel()


def slope(x, name, grad_y=None):
    """What the activation's derivative makes of a gradient."""
    bn = nbbn.BatchNorm(1, eps=0.0, activation=name, dtype=x.dtype).eval()
    x = x.reshape(-1, 1)
    bn(x)
    return bn.backward(np.ones_like(x) if grad_y is None else grad_y.reshape(x.shape)).ravel()


def arguments(dtype):
    """All kinds of numbers: uniform where the function bends, and of every size."""
    rng = np.random.default_rng(3)
    info = np.finfo(dtype)
    powers = 2.0 ** rng.uniform(info.minexp, info.maxexp, 20_000)
    return np.concatenate(
        [
            rng.uniform(-3, 3, 60_000),
            rng.uniform(-25, 5, 40_000),
            rng.uniform(LOWEST[dtype], 60, 40_000),
            powers * rng.choice([-1.0, 1.0], powers.size),
            np.array([0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, info.max, info.min]),
        ]
    ).astype(dtype)


def exact(x, name):
    """With digits to spare: extended numbers for float64."""
    v = x.astype(np.float64 if x.dtype == np.float32 else np.longdouble)
    with np.errstate(all="ignore"):
        if name == "silu":
            return v / (1 + np.exp(-v))
        e = np.exp(v)
        n = e * (e + 2)
        return np.where(v > 30, v, v * (n / (n + 2)))


@by_name
@by_dtype
def test_within_four_units_in_the_last_place(name, dtype):
    if dtype is np.float64 and np.finfo(np.longdouble).eps > 1e-18:
        pytest.skip("longdouble has no more digits than float64 here")
    x = arguments(dtype)
    expected, found = exact(x, name), apply(x, name)
    with np.errstate(all="ignore"):
        unit = np.spacing(np.abs(expected.astype(dtype))).astype(expected.dtype)
    bound = np.maximum(4 * unit, 4 * expected.dtype.type(np.finfo(dtype).tiny))
    assert (np.abs(found - expected) <= bound).all()


@by_name
@by_dtype
def test_the_gradient_is_within_eight_eps(name, dtype):
    x = arguments(dtype)
    expected = reference.activation(x, name)[1]
    assert_within(slope(x, name), expected, 8 * eps_of(dtype))
    grad_y = np.random.default_rng(4).normal(size=x.size).astype(dtype)
    bound = 8 * eps_of(dtype) * np.abs(grad_y)
    assert_within(slope(x, name, grad_y), grad_y * expected, bound)


@by_name
@by_dtype
def test_the_ends(name, dtype):
    x = np.array([np.nan, np.inf, -np.inf, np.finfo(dtype).min, -0.0, 0.0], dtype)
    np.testing.assert_array_equal(apply(x, name), np.array([np.nan, np.inf, np.nan, 0, 0, 0]))
    found = slope(x, name)
    assert np.isnan(found[0])
    np.testing.assert_array_equal(found[[1, 3]], [1.0, 0.0])


@by_name
def test_the_same_bits_in_every_layout_and_batch(name):
    rng = np.random.default_rng(5)
    x = rng.normal(0.0, 4.0, (23, 19, 37)).astype(np.float32)
    form = rng.normal(size=(3, 19))
    frozen = nbbn.FrozenBatchNorm(*form, activation=name)
    expected = frozen(x)
    last = nbbn.FrozenBatchNorm(*form, axis=-1, activation=name)
    assert_same_bits(last(np.moveaxis(x, 1, -1)), np.moveaxis(expected, 1, -1))
    assert_same_bits(last(np.ascontiguousarray(np.moveaxis(x, 1, -1))[:, 3]), expected[:, :, 3])
    for k in (1, 5):
        assert_same_bits(frozen(x[k : k + 1]), expected[k : k + 1])
        assert_same_bits(frozen(x[..., k:]), expected[..., k:])
    large = np.broadcast_to(x, (9, *x.shape)).reshape(-1, 19, 37)
    for threads in (1, 2):
        with nbbn.num_threads(threads):
            assert_same_bits(frozen(large), np.broadcast_to(expected, (9, *x.shape)).reshape(-1, 19, 37))
    halves = x.astype(np.float16)
    assert_same_bits(frozen(halves), frozen(halves.astype(np.float32)).astype(np.float16))


BITS = """
import hashlib, itertools, numpy as np, nbbn
rng, digest = np.random.default_rng(0), hashlib.sha256()
for dtype, name in itertools.product((np.float32, np.float64), ("silu", "mish")):
    x = (rng.standard_normal((21, 3)) * 10).astype(dtype)
    x.flat[:6] = np.nan, np.inf, -np.inf, -90.5, -740.0, -0.0
    bn = nbbn.BatchNorm(3, activation=name, dtype=dtype).eval()
    for found in (bn(x), bn.backward(np.ones_like(x)) if dtype is np.float32 else x):
        digest.update(np.where(np.isnan(found), 0, found).tobytes())
print(digest.hexdigest())
"""


@pytest.mark.long
def test_the_same_bits_without_a_compiler():
    found = [
        subprocess.run(
            [sys.executable, "-W", "error", "-c", BITS],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        for more in ({}, {"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_CPU_NAME": "generic"})
    ]
    assert [one.stderr for one in found] == [""] * 3
    assert len({one.stdout for one in found}) == 1


SLOPES = np.array([0.5, -0.25, 0.0, 2.0, 0.125], np.float32)


def prelu_layer(axis=1, **options):
    bn = nbbn.BatchNorm(5, axis=axis, activation="prelu", **options)
    bn.slope[:] = SLOPES
    bn.gamma[:], bn.beta[:] = np.linspace(0.5, 2, 5), np.linspace(-1, 1, 5)
    bn.running_mean[:] = np.linspace(-0.5, 0.5, 5)
    return bn


def through_prelu(z, axis):
    """y, its derivative, and that with respect to the slope; of what one layer without activation gives."""
    slopes = reference.along(SLOPES, z.ndim, axis)
    return np.where(z < 0, slopes * z, z), np.where(z > 0, 1.0, slopes), np.where(z < 0, z, 0.0)


PLACES = [
    ((7, 5, 6, 6), 1),
    ((9, 5), 1),
    ((2, 3, 4, 5), -1),
    ((64, 5, 40, 40), 1),
    ((70_000, 5), 1),
]


@pytest.mark.parametrize(("shape", "axis"), PLACES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.long
def test_prelu_has_a_slope_a_channel(shape, axis, training, with_residual):
    rng = np.random.default_rng(7)
    x, residual, grad_y = rng.normal(size=(3, *shape)).astype(np.float32)
    bn, plain = prelu_layer(axis), prelu_layer(axis)
    plain.activation = None
    added = residual if with_residual else None
    z = plain(x, training=training, residual=added)
    y, slope, of_slope = through_prelu(z.astype(np.float64), axis)
    eps = eps_of(np.float32)
    assert_within(bn(x, training=training, residual=added), y, eps * np.abs(y))
    grad_x = bn.backward(grad_y)
    before = (grad_y * slope).astype(np.float32)
    if with_residual:
        assert_within(bn.grad_residual, before, eps * np.abs(before))
    assert_same_bits(grad_x, plain.backward(before))
    assert_same_bits(bn.grad_gamma, plain.grad_gamma)
    assert plain.grad_slope is None
    products = reference.channels(grad_y * of_slope, axis)
    bound = 4 * eps * np.abs(products).sum(axis=1)
    assert_within(bn.grad_slope, products.sum(axis=1), bound)
    with nbbn.num_threads(2):
        assert_same_bits(bn.backward(grad_y), grad_x)


def test_the_slope_is_a_parameter(tmp_path):
    x = np.random.default_rng(8).normal(size=(6, 5)).astype(np.float32)
    bn = prelu_layer()
    slope = bn.slope
    assert list(bn.state_dict())[:3] == ["gamma", "beta", "slope"]
    y = bn.eval()(x)
    bn.save(tmp_path / "bn.npz")
    other = nbbn.BatchNorm(5, activation="prelu")
    other.load_state_dict(bn.state_dict())
    copies = nbbn.BatchNorm.load(tmp_path / "bn.npz"), pickle.loads(pickle.dumps(bn)), other.eval()
    for copied in copies:
        assert_same_bits(copied.slope, SLOPES)
        assert_same_bits(copied(x), y)
    with pytest.raises(ValueError, match="slope"):
        nbbn.BatchNorm(5).load_state_dict(bn.state_dict())
    bn.reset_parameters()
    assert (slope == 0.25).all() and bn.slope is slope
    bn.slope = SLOPES
    assert_same_bits(slope, SLOPES)
    bn.eps = 1e-3
    assert bn.slope is slope
    bn.activation = "relu"
    assert bn.slope is None and "slope" not in bn.state_dict()
    with pytest.raises(ValueError, match=r"^slope: expected no value"):
        bn.slope = SLOPES
    bn.activation = "prelu"
    assert np.shares_memory(bn.slope, slope)


def test_the_slope_is_that_of_the_forward():
    x = np.random.default_rng(9).normal(size=(6, 5)).astype(np.float32)
    for training in (True, False):
        bn = prelu_layer()
        bn(x, training=training)
        expected = bn.backward(x)
        bn.slope[:] = 7.0
        assert_same_bits(bn.backward(x), expected)


@pytest.mark.parametrize("axis", [1, -1])
def test_functions_and_frozen_layers_take_a_slope_a_channel(axis):
    shape = (4, 5, 3, 5)
    x = np.random.default_rng(10).normal(size=shape).astype(np.float32)
    bn = prelu_layer(axis).eval()
    y, frozen = bn(x), bn.freeze()
    statistics = bn.running_mean, bn.running_var, bn.gamma, bn.beta
    given = {"axis": axis, "activation": "prelu", "negative_slope": SLOPES}
    assert_same_bits(frozen(x), y)
    assert_same_bits(frozen.negative_slope, SLOPES.astype(np.float64))
    assert_same_bits(pickle.loads(pickle.dumps(frozen))(x), y)
    assert_same_bits(nbbn.normalize(x, *statistics, **given), y)
    assert_same_bits(nbbn.batch_norm(x, *statistics, **given), y)
    bn.slope[:] = 0.5
    assert_same_bits(frozen(x), y)
    given["negative_slope"] = 0.5
    assert_same_bits(nbbn.normalize(x, *statistics, **given), bn(x))
    for wrong in (np.ones(4), np.ones((5, 1)), "steep"):
        given["negative_slope"] = wrong
        with pytest.raises((TypeError, ValueError), match=r"^negative_slope: expected"):
            nbbn.normalize(x, *statistics, **given)
    with pytest.raises(TypeError, match=r"^negative_slope: expected a finite number"):
        nbbn.FrozenBatchNorm(*SLOPES[:3, None], activation="leaky_relu", negative_slope=[0.1])
