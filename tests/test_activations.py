"""silu and mish: how exact they are, and the same bits wherever a value stands."""

import os
import subprocess
import sys

import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of

import nbbn

by_name = pytest.mark.parametrize("name", ["silu", pytest.param("mish", marks=pytest.mark.long)])
by_dtype = pytest.mark.parametrize(
    "dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.long)]
)
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
            np.array(
                [0.0, -0.0, info.tiny, -info.tiny, info.smallest_subnormal, info.max, info.min]
            ),
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
            assert_same_bits(
                frozen(large), np.broadcast_to(expected, (9, *x.shape)).reshape(-1, 19, 37)
            )
    halves = x.astype(np.float16)
    assert_same_bits(frozen(halves), frozen(halves.astype(np.float32)).astype(np.float16))


BITS = """
import hashlib, numpy as np, nbbn
rng, digest = np.random.default_rng(0), hashlib.sha256()
for dtype in (np.float32, np.float64):
    for name in ("silu", "mish"):
        for shape in ((21, 3), (2, 3, 37)):
            x = (rng.standard_normal(shape) * 10).astype(dtype)
            x.flat[:6] = np.nan, np.inf, -np.inf, -90.5, -740.0, -0.0
            bn = nbbn.BatchNorm(3, activation=name, dtype=dtype).eval()
            for found in (bn(x), bn.backward(np.ones_like(x)), bn.freeze()(x, residual=x)):
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
