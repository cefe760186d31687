"""float16, bfloat16 and bytes: computed as float32 and rounded once."""

import subprocess
import sys

import cases
import numpy as np
import pytest
from compare import assert_same_bits
from processes import run

import nbbn

ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: no bfloat16")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
HALVES = {"float16": np.dtype(np.float16), "bfloat16": BFLOAT16}
by_half = pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
float16_first = pytest.mark.parametrize(
    "half", [HALVES["float16"], pytest.param(BFLOAT16, marks=pytest.mark.long)], ids=HALVES
)
SHAPES = {
    "matrix": ((37, 21), 1),
    "narrow": ((75, 3), 1),
    "images": ((3, 5, 7, 9), 1),
    "small images": ((6, 40, 7, 7), 1),
    "tiny images": ((6, 12, 2, 3), 1),
    "channels last": ((3, 6, 5, 18), 3),
    "large": ((4, 24, 40, 41), 1),
    "large matrix": ((2600, 70), 1),
}
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES.values(), ids=SHAPES)
LAYOUTS = ("c", "fortran", "strided", "channels_last_memory", "reversed_all")


def rounded(array, half):
    """The float32 result rounded once; NumPy's and ml_dtypes' conversions are independent of nbbn's."""
    with np.errstate(all="ignore"):
        return np.asarray(array).astype(half)


def data(shape, half, layout="c", seed=0):
    return cases.LAYOUTS[layout](rounded(cases.values(shape, seed=seed), half))


def layer(channels, axis=1, **options):
    bn = nbbn.BatchNorm(channels, axis=axis, **options)
    gamma, beta, mean, var = cases.parameters(channels)
    bn.gamma[:], bn.beta[:], bn.running_mean[:], bn.running_var[:] = gamma, beta, mean, var
    return bn


@by_half
def test_every_pattern_is_read_and_written_right(half):
    """With center 0, scale 1 and shift 0 the result is the input; times 1/3, the product rounded once."""
    patterns = np.arange(1 << 16, dtype=np.uint16).view(half)[:, None]
    zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
    same = nbbn.normalize(patterns, zero, one, eps=0.0)
    exact = patterns.astype(np.float32)
    numbers = ~np.isnan(exact)
    assert_same_bits(same.astype(np.float32)[numbers], exact[numbers] + np.float32(0))
    assert np.isnan(same.astype(np.float32)[~numbers]).all()
    for factor in (1 / 3, -0.7, 1e-3, 3e3, 1e-6, 1e6):
        gamma = np.array([factor], np.float32)
        found = nbbn.normalize(patterns, zero, one, gamma, eps=0.0)
        with np.errstate(all="ignore"):
            expected = rounded(exact * gamma[0], half)
        # 0 * factor + 0 is +0, as in every fused multiply-add with a shift of 0
        equal = found.astype(np.float32) == expected.astype(np.float32)
        assert (equal | ~numbers).all()


@by_half
@by_shape
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inference_is_the_float32_result_rounded_once(half, shape, axis, layout):
    x = data(shape, half, layout)
    bn = layer(shape[axis], axis).eval()
    assert_same_bits(bn(x), rounded(bn(x.astype(np.float32)), half))
    out = np.empty_like(x)
    assert bn(x, out=out) is out
    assert_same_bits(out, bn(x))


@float16_first
@pytest.mark.parametrize("layout", LAYOUTS[:3])
@pytest.mark.parametrize(
    ("activation", "shape", "axis"),
    [pytest.param(None, *given, id=f"None-{name}") for name, given in SHAPES.items()]
    + [  # of an activation no parallel twins
        pytest.param("leaky_relu", *given, id=f"leaky_relu-{name}", marks=pytest.mark.long)
        for name, given in SHAPES.items()
        if not name.startswith("large")
    ],
)
def test_training_and_gradients_are_the_float32_results_rounded_once(half, shape, axis, layout, activation):
    x, grad_y = data(shape, half, layout), data(shape, half, seed=2)
    residual = None if activation is None else data(shape, half, layout, seed=3)
    wide = [None if a is None else a.astype(np.float32) for a in (x, grad_y, residual)]
    bn, other = (layer(shape[axis], axis, activation=activation) for _ in range(2))
    y, expected = bn(x, residual=residual), other(wide[0], residual=wide[2])
    assert_same_bits(y, rounded(expected, half))
    for name in ("running_mean", "running_var", "batch_mean", "batch_var"):
        assert_same_bits(getattr(bn, name), getattr(other, name))
    grad_x, wide_grad_x = bn.backward(grad_y), other.backward(wide[1])
    assert grad_x.dtype == half
    if activation is None:
        assert_same_bits(grad_x, rounded(wide_grad_x, half))
        assert_same_bits(bn.grad_gamma, other.grad_gamma)
        assert_same_bits(bn.grad_beta, other.grad_beta)
    else:  # the gradient before the activation is kept as a half, too
        assert_same_bits(bn.grad_residual, rounded(other.grad_residual, half))


@float16_first
@by_shape
def test_moments_are_those_of_the_same_values_in_float32(half, shape, axis):
    x = data(shape, half)
    found = nbbn.batch_moments(x, axis=axis)
    expected = nbbn.batch_moments(x.astype(np.float32), axis=axis)
    assert_same_bits(found.mean, expected.mean)
    assert_same_bits(found.m2, expected.m2)


@float16_first
def test_the_functions_take_them(half):
    x, grad_y = data((9, 5, 4), half), data((9, 5, 4), half, seed=1)
    gamma, beta, mean, var = cases.parameters(5)
    wide = x.astype(np.float32)
    found = nbbn.batch_norm(x, mean.copy(), var.copy(), gamma, beta, training=True)
    expected = nbbn.batch_norm(wide, mean.copy(), var.copy(), gamma, beta, training=True)
    assert_same_bits(found, rounded(expected, half))
    found = nbbn.batch_norm_backward(grad_y, x, mean, var)
    expected = nbbn.batch_norm_backward(grad_y.astype(np.float32), wide, mean, var)
    assert_same_bits(found[0], rounded(expected[0], half))
    assert found[1].dtype == found[2].dtype == np.float32
    assert_same_bits(found[1], expected[1])


@by_half
def test_results_too_large_become_infinite_and_small_ones_subnormal(half):
    x = np.array([[60000.0], [-60000.0], [1e-4]]).astype(half)
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    for gamma in (np.float32(3e38 / 6e4 * 2), np.float32(2.0), np.float32(1e-3)):
        found = nbbn.normalize(x, zero, one, np.array([gamma]), eps=0.0)
        with np.errstate(over="ignore"):
            assert_same_bits(found, rounded(x.astype(np.float32) * gamma, half))


@by_half
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.long
def test_any_number_of_threads_gives_the_same_bits(half, threads):
    x = data((4, 24, 60, 61), half)
    found = []
    for count in (1, threads):
        bn = layer(24)
        with nbbn.num_threads(count):
            found.append((bn(x), bn.backward(x), bn.eval()(x)))
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


@pytest.mark.long
def test_past_the_cache(monkeypatch):
    """Half a cache line at a time, from any position."""
    from rooms import machine as _machine

    monkeypatch.setattr(_machine, "last_level_cache", lambda: 1)
    for half in HALVES.values():
        for offset in range(0, 40, 3):
            memory = data((40 * 9 * 200 + offset,), half)
            x = memory[offset:].reshape(40, 9, 200)
            out = np.empty(memory.size, half)[offset:].reshape(x.shape)
            bn = layer(9).eval()
            bn(x, out=out)
            assert_same_bits(out, rounded(bn(x.astype(np.float32)), half))


@by_half
def test_overwritten_inputs_are_noticed(half):
    bn, x = layer(5), data((9, 5), half)
    bn(x)
    x[3, 2] = 7
    with pytest.raises(RuntimeError, match="overwritten"):
        bn.backward(x)


def test_halves_do_not_mix():
    x = data((9, 5), HALVES["float16"])
    bn = layer(5)
    with pytest.raises(ValueError, match=r"^out: expected dtype float16, got bfloat16"):
        bn(x, out=np.empty(x.shape, BFLOAT16))
    with pytest.raises(TypeError, match=r"^residual: expected dtype float16, that of x, got bfloat16"):
        bn(x, residual=np.zeros(x.shape, BFLOAT16))


def test_statistics_of_half_types_are_numbers_as_others():
    x = data((9, 5), HALVES["float16"])
    mean, var = x[0], np.abs(x[1])
    y = nbbn.normalize(x, mean, var)
    assert_same_bits(y, nbbn.normalize(x, mean.astype(np.float64), var.astype(np.float64)))


SCRIPT = """
    import numpy as np, nbbn, ml_dtypes, hashlib
    digest = hashlib.sha256()
    patterns = np.arange(0, 1 << 16, 7, dtype=np.uint16)
    for half in (np.float16, ml_dtypes.bfloat16):
        x = patterns[: 16 * 40].view(half).reshape(40, 4, 4)
        x = np.where(np.isfinite(x.astype(np.float32)), x, half(1))
        x[0] = 1
        bn = nbbn.BatchNorm(4, eps=0.0).eval()
        bn.gamma[:2] = 1 + 2.0**-11, 1 + 2.0**-8  # of 1, half way between two of either
        for result in (bn(x), bn.backward(x)):  # read as both, written, and kept as sums
            digest.update(result.view(np.uint16).tobytes())
    images = np.arange(2 * 3 * 5 * 7, dtype=np.uint8).reshape(2, 3, 5, 7)
    digest.update(nbbn.normalize(images, np.ones(3), np.ones(3), dtype=np.float32).tobytes())
    print(digest.hexdigest())
"""


@pytest.mark.long
def test_processors_without_the_instructions_give_the_same_bits():
    native = run(SCRIPT)
    assert run(SCRIPT, env={"NUMBA_CPU_NAME": "generic"}) == native
    assert run(SCRIPT, env={"NUMBA_DISABLE_JIT": "1"}) == native


def test_ml_dtypes_is_not_needed_to_import():
    code = "import sys, nbbn; assert 'ml_dtypes' not in sys.modules; nbbn.BatchNorm(2)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=300)


# Bytes


IMAGES = {"CHW": ((2, 3, 20, 31), 1), "HWC": ((2, 20, 31, 3), 3), "one": ((20, 31, 3), -1), "grey": ((50, 1), 1),
          "large": ((3, 3, 200, 230), 1), "large HWC": ((3, 200, 230, 3), -1)}  # fmt: skip
by_image = pytest.mark.parametrize(("shape", "axis"), IMAGES.values(), ids=IMAGES)


def pixels(shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@by_image
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "reversed_all", "read_only"])
def test_bytes_are_normalized_as_float32(shape, axis, layout):
    x = cases.LAYOUTS[layout](pixels(shape))
    gamma, beta, mean, var = cases.parameters(shape[axis])
    mean, var = mean * 50 + 100, var * 900
    expected = nbbn.normalize(x.astype(np.float32), mean, var, gamma, beta, axis=axis)
    found = nbbn.normalize(x, mean, var, gamma, beta, axis=axis, dtype=np.float32)
    assert_same_bits(found, expected)
    out = np.full(shape, 777, np.float32)
    assert nbbn.normalize(x, mean, var, gamma, beta, axis=axis, dtype="float32", out=out) is out
    assert_same_bits(out, expected)


@by_image
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "reversed_all", "read_only"])
@pytest.mark.long
def test_bytes_with_a_residual_and_an_activation(shape, axis, layout):
    x = cases.LAYOUTS[layout](pixels(shape))
    _, _, mean, var = cases.parameters(shape[axis])
    mean, var = mean * 50 + 100, var * 900
    residual = np.asfortranarray(cases.values(shape))
    arguments = {"axis": axis, "residual": residual, "activation": "relu"}
    assert_same_bits(
        nbbn.normalize(x, mean, var, dtype=np.float32, **arguments),
        nbbn.normalize(x.astype(np.float32), mean, var, **arguments),
    )


@by_image
def test_moments_of_bytes_are_exact(shape, axis):
    x = pixels(shape)
    found = nbbn.batch_moments(x, axis=axis)
    values = np.moveaxis(x, axis, 0).reshape(shape[axis], -1).astype(np.int64)
    count, sums = values.shape[1], values.sum(axis=1)
    m2 = (count * (values**2).sum(axis=1) - sums**2) / count
    np.testing.assert_allclose(found.mean, sums / count, rtol=4e-16)
    np.testing.assert_allclose(found.m2, m2, rtol=1e-14)


def test_an_out_in_the_memory_of_the_bytes():
    memory = np.zeros(4 * 60, np.uint8)
    x = memory[:60].reshape(20, 3)
    x[...] = pixels((20, 3))
    mean, var = np.ones(3), np.ones(3)
    expected = nbbn.normalize(x.copy(), mean, var, dtype=np.float32)
    out = memory.view(np.float32).reshape(20, 3)
    nbbn.normalize(x, mean, var, dtype=np.float32, out=out)
    assert_same_bits(out, expected)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({}, ValueError, "dtype: expected float32 for an x of uint8, got None"),
        ({"dtype": np.float64}, ValueError, "dtype: expected float32 for an x of uint8, got float64"),
        ({"dtype": np.uint8}, TypeError, "dtype: expected float32 or float64, got uint8"),
        ({"dtype": np.float32, "out": np.empty((4, 3))}, ValueError, "out: expected dtype float32, got float64"),
        ({"dtype": "f4", "out": np.empty((4, 3), np.uint8)}, ValueError, "out: expected dtype float32, got uint8"),
        ({"dtype": np.float32, "residual": np.zeros((4, 3), np.uint8)}, TypeError, "residual: expected dtype"),
        ({"dtype": "f4", "residual": np.zeros((4, 3))}, TypeError, "residual: .* float32, that of the result"),
    ],
)  # fmt: skip
def test_what_bytes_can_not_become(arguments, error, sentence):
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.normalize(pixels((4, 3)), np.zeros(3), np.ones(3), **arguments)


def test_bytes_are_for_normalize_and_moments_only():
    x = pixels((4, 3))
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float64, float16 or bfloat16, got uint8"):
        nbbn.BatchNorm(3)(x)
    with pytest.raises(TypeError, match=r"^x: expected dtype float32, float64, float16 or bfloat16, got uint8"):
        nbbn.batch_norm(x, None, None, training=True)
