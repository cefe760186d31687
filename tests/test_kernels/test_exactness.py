"""How exact: the bounds that nbbn promises, on data where formulas that look right lose every digit."""

import math
from fractions import Fraction

import cases
import numpy as np
import pytest
import reference
from compare import assert_forward, assert_same_bits, assert_within, eps_of

import nbbn
from nbbn.distributed import SyncBatchNorm

RATIOS = (1.0, 10.0, 1e2, 1e3, 1e4, 1e5, 1e6)
SIZE = 12_000


def _normal(rng):
    return rng.normal(0, 1, SIZE)


def _sorted(rng):
    return np.sort(rng.normal(0, 1, SIZE))


def _reversed(rng):
    return np.sort(rng.normal(0, 1, SIZE))[::-1]


def _spiky(rng):
    values = rng.normal(0, 1, SIZE)
    values[0] = 1e7
    return values


def _spike_at_the_end(rng):
    return _spiky(rng)[::-1]


def _stepped(rng):
    return np.repeat(rng.normal(0, 100, 12), SIZE // 12) + rng.normal(0, 1e-2, SIZE)


def _ramp(rng):
    return np.linspace(-2, 2, SIZE)


def _alternating(rng):
    return np.tile([-1.0, 1.0], SIZE // 2)


def _three_valued(rng):
    """The middle value is the mean itself: its xhat is 0."""
    return np.tile([-1.0, 0.0, 1.0], SIZE // 3)


def _sparse(rng):
    return np.where(rng.random(SIZE) < 0.01, rng.normal(3, 1, SIZE), 0.0)


DATA = {
    f.__name__.lstrip("_"): f
    for f in (
        _normal,
        _sorted,
        _reversed,
        _spiky,
        _spike_at_the_end,
        _stepped,
        _ramp,
        _alternating,
        _three_valued,
        _sparse,
    )
}
by_data = pytest.mark.parametrize("data", DATA)
by_ratio = pytest.mark.parametrize("ratio", RATIOS)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
BETAS = {"no_beta": None, "beta_zero": (0.0, 0.0), "beta": (0.75, -1e-3)}

# How a channel's SIZE values are spread over the other axes, and where the channel axis is.
FORMS = {
    "one_row": lambda rows: (rows[None], 1),
    "matrix": lambda rows: (np.ascontiguousarray(rows.T), 1),
    "images": lambda rows: (np.ascontiguousarray(rows.reshape(2, 30, 20, 20).swapaxes(0, 1)), 1),
    "small_images": lambda rows: (
        np.ascontiguousarray(rows.reshape(2, 480, 5, 5).swapaxes(0, 1)),
        1,
    ),
    "images_channels_last": lambda rows: (
        np.ascontiguousarray(np.moveaxis(rows.reshape(2, 30, 20, 20), 0, -1)),
        -1,
    ),
    "fortran": lambda rows: (np.asfortranarray(rows.reshape(2, 30, 400).swapaxes(0, 1)), 1),
    "strided": lambda rows: (cases.strided(rows.reshape(2, 30, 400)), 0),
}
by_form = pytest.mark.parametrize("form", FORMS)


def two_channels(data, ratio, dtype=np.float32, step=1.0):
    """(2, SIZE): the data, and minus three times the data, shifted by ratio of their unit."""
    first = DATA[data](np.random.default_rng(3))
    return (np.stack([first + ratio, -3 * (first + ratio)]) * step).astype(dtype)


def check(rows, form, beta=None):
    x, axis = FORMS[form](rows)
    gamma = np.array([1.7, -0.3], x.dtype)
    beta = None if beta is None else np.array(beta, x.dtype)
    moments, (_, _, m2) = nbbn.batch_moments(x, axis=axis), reference.moments(x, axis)
    assert_within(moments.var(), m2 / SIZE, 1e-6 * m2 / SIZE)
    y = nbbn.batch_norm(x, None, None, gamma, beta, training=True, axis=axis)
    assert_forward(y, x, reference.training(x, gamma, beta, axis=axis), gamma, beta, axis)


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@by_form
@by_ratio
def test_variance_and_output_up_to_a_mean_of_a_million_standard_deviations(ratio, form, beta):
    check(two_channels("normal", ratio), form, beta)


@pytest.mark.parametrize("beta", BETAS.values(), ids=BETAS)
@by_form
@by_data
def test_variance_and_output_in_any_order_of_the_data(data, form, beta):
    check(two_channels(data, 0.0), form, beta)


@pytest.mark.parametrize("ratio", [1e3, 1e6])
@pytest.mark.parametrize("form", ["one_row", "matrix", "images", "small_images"])
@by_data
def test_variance_and_output_in_any_order_far_from_zero(data, form, ratio):
    check(two_channels(data, ratio), form)


@pytest.mark.parametrize("step", [1e-12, 1e-3, 1e12])
@by_data
def test_the_variance_does_not_depend_on_the_unit_of_the_data(data, step):
    rows = two_channels(data, 10.0, step=step)
    m2 = reference.moments(rows, 0)[2]
    for form in ("one_row", "matrix", "small_images"):
        x, axis = FORMS[form](rows)
        assert_within(nbbn.batch_moments(x, axis=axis).m2, m2, 1e-6 * m2)


@by_ratio
@by_form
def test_inference_far_from_zero(ratio, form):
    x, axis = FORMS[form](two_channels("normal", ratio))
    for dtype in cases.DTYPES:
        mean, var = np.array([ratio, -3 * ratio], dtype), np.array([1.1, 8.7], dtype)
        gamma, beta = np.array([1.7, -0.3], dtype), np.array([0.75, -1e-3], dtype)
        for b in (None, beta):
            y = nbbn.normalize(x, mean + dtype(0.3), var, gamma, b, axis=axis)
            expected = reference.inference(x, mean + dtype(0.3), var, gamma, b, axis=axis)
            assert_forward(y, x, expected, gamma, b, axis)


@pytest.mark.parametrize("value", [1e7, 0.1, -3e5, 1e-30, 3.3e37, 0.0])
@pytest.mark.parametrize("shape", [(7, 3), (100_003, 3), (1, 3, 1000), (5, 3, 7, 7), (2, 3, 70, 70), (4096, 3, 3)])
def test_a_constant_channel_gives_exactly_beta(value, shape):
    x = np.full(shape, value, np.float32)
    gamma, beta = np.array([1e30, -3.3, 0.0], np.float32), np.array([0.3, -1e7, 1e-20], np.float32)
    expected = np.ascontiguousarray(np.broadcast_to(beta.reshape([-1 if k == 1 else 1 for k in range(x.ndim)]), shape))
    for layout in ("c", "channels_last_memory", "strided_last"):
        laid_out = cases.LAYOUTS[layout](x)
        y = nbbn.batch_norm(laid_out, None, None, gamma, beta, training=True)
        np.testing.assert_array_equal(y, expected)
        moments = nbbn.batch_moments(laid_out)
        np.testing.assert_array_equal(moments.m2, np.zeros(3))
        np.testing.assert_array_equal(moments.mean, np.full(3, np.float32(value), np.float64))


@pytest.mark.parametrize("value", [1e7, 0.1, -3e5])
def test_a_constant_channel_learned_in_training_gives_exactly_beta_in_inference(value):
    bn = nbbn.BatchNorm(2, momentum=1.0)
    bn.gamma[:], bn.beta[:] = (5.0, -1e6), (0.1, -7.0)
    x = np.full((1001, 2), value, np.float32)
    bn(x)
    np.testing.assert_array_equal(bn.eval()(x), np.tile(bn.beta, (1001, 1)))


NIST = {
    "NumAcc1": (np.array([10000001.0, 10000003.0, 10000002.0]), 10000002.0, 1.0),
    "NumAcc2": (np.array([1.2, *[1.1, 1.3] * 500]), 1.2, 0.1),
    "NumAcc3": (np.array([1000000.2, *[1000000.1, 1000000.3] * 500]), 1000000.2, 0.1),
    "NumAcc4": (np.array([10000000.2, *[10000000.1, 10000000.3] * 500]), 10000000.2, 0.1),
}
SPREADS = {
    "one_row": lambda v: v.reshape(1, 1, -1),
    "one_column": lambda v: v.reshape(-1, 1),
    "middle_column": lambda v: np.stack([v[::-1], v, v * 2], axis=1),
    "strided": lambda v: cases.strided_last(v.reshape(1, 1, -1)),
}


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("name", NIST)
def test_nist_sets_are_as_good_as_a_two_pass_algorithm(name, spread):
    """A corrected two-pass is off by at most n u + (n u mean / std)^2 of the variance, and n u mean of the mean."""
    values, certified_mean, certified_std = NIST[name]
    x = SPREADS[spread](values)
    k = x.shape[1] // 2
    moments = nbbn.batch_moments(x)
    n, mean, m2 = reference.exact_moments(values)
    u = Fraction(1, 2**53)
    condition = 1 + mean * mean * n / m2
    assert moments.count == n
    assert abs(Fraction(float(moments.mean[k])) - mean) <= 4 * u * mean
    assert abs(Fraction(float(moments.m2[k])) - m2) <= m2 * (n * u + n * n * u * u * condition)
    # The certified values are those of the decimal numbers; the data differ from these by half a unit each.
    assert moments.mean[k] == pytest.approx(certified_mean, rel=1e-15)
    assert moments.std(1)[k] == pytest.approx(certified_std, rel=4 * float(u) * certified_mean / certified_std + 1e-14)


@pytest.mark.parametrize("form", ["one_row", "matrix", "images"])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e6])
@by_data
def test_float64_moments_are_as_good_as_a_two_pass_algorithm(data, ratio, form):
    rows = two_channels(data, ratio, np.float64)
    x, axis = FORMS[form](rows)
    moments, (_, mean, m2) = nbbn.batch_moments(x, axis=axis), reference.moments(rows, 0)
    eps = eps_of(np.float64)
    size = np.abs(rows).max(axis=1)
    assert_within(moments.mean, mean, 4 * eps * size)
    assert_within(moments.m2, m2, 64 * eps * m2 + SIZE * (16 * eps * size) ** 2)


@by_form
@by_data
@by_dtype
def test_float64_output_is_as_good_as_a_two_pass_algorithm(data, form, dtype):
    x, axis = FORMS[form](two_channels(data, 1e3, np.float64))
    gamma, beta = np.array([1.7, -0.3], dtype), np.array([0.75, -1e-3], dtype)
    y = nbbn.batch_norm(x, None, None, gamma, beta, training=True, axis=axis)
    assert_forward(y, x, reference.training(x, gamma, beta, axis=axis), gamma, beta, axis)


@pytest.mark.parametrize("order", ["tiled", "sorted"])
@pytest.mark.parametrize("shape", [(1, 1, 2**25), (2**25, 1), (2**13, 1, 64, 64)])
@pytest.mark.long
def test_thirty_three_million_values_in_one_channel(shape, order):
    """The moments are those of one block of 2**12 values; the same value always gives the same y."""
    block = cases.values((2**12,), loc=100.0, scale=1.0)
    if order == "sorted":
        block.sort()
    repeats = 2**25 // block.size
    x = (np.tile(block, repeats) if order == "tiled" else np.repeat(block, repeats)).reshape(shape)
    expected = reference.training(block[:, None])
    moments = nbbn.batch_moments(x)
    assert moments.count == 2**25
    assert_within(moments.mean, expected.mean, 1e-12 * expected.mean)
    assert_within(moments.var(), expected.var, 1e-6 * expected.var)
    y = nbbn.batch_norm(x, None, None, training=True, out=x)
    y = y.reshape((repeats, -1) if order == "tiled" else (-1, repeats))
    y = y if order == "tiled" else y.T
    assert_forward(y[0][:, None], block[:, None], expected)
    assert (y == y[0]).all()


def test_a_float32_sum_would_have_lost_the_variance():
    """The data of the other tests do break the formula E[x^2] - E[x]^2: the bounds above are no formality."""
    x = two_channels("normal", 1e4)[0]
    naive = np.mean(x * x) - np.mean(x) ** 2
    assert abs(naive - x.astype(np.float64).var()) > 0.1
    assert_within(nbbn.batch_moments(x[:, None]).var()[0], x.astype(np.float64).var(), 1e-6)


POISON = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
POISONED_SHAPES = (
    ((4, 6, 7, 7), 1),
    ((6, 5, 16), -1),
    ((300, 6), 1),
    ((3, 6, 1000), 1),
    ((40, 6, 1), 1),
)


def poisoned(shape, axis, value, layout):
    clean = cases.values(shape)
    dirty = clean.copy()
    np.moveaxis(dirty, axis, 0)[1].flat[5] = value
    return cases.LAYOUTS[layout](clean), cases.LAYOUTS[layout](dirty)


@pytest.mark.parametrize("value", POISON.values(), ids=POISON)
@pytest.mark.parametrize("layout", ["c", "channels_last_memory", "shuffled_axes", "strided"])
@pytest.mark.parametrize(("shape", "axis"), POISONED_SHAPES, ids=map(cases.case_id, POISONED_SHAPES))
def test_nan_and_inf_stay_in_their_channel_in_training(shape, axis, layout, value):
    clean, dirty = poisoned(shape, axis, value, layout)
    others = np.arange(shape[axis]) != 1
    results = []
    for x in (clean, dirty):
        mean, var = np.zeros(shape[axis]), np.ones(shape[axis])
        y = np.moveaxis(nbbn.batch_norm(x, mean, var, training=True, axis=axis), axis, 0)
        grad_y = cases.values(shape, seed=9)
        grads = nbbn.batch_norm_backward(grad_y, x, mean, np.ones(shape[axis]), axis=axis)
        results.append((y, mean, var, np.moveaxis(grads[0], axis, 0), grads[1], grads[2]))
    for a, b in zip(*results, strict=True):
        assert_same_bits(a[others], b[others])
    y, mean, var, grad_x, grad_gamma, _ = results[1]
    assert np.isnan(y[1]).all() and np.isnan(grad_x[1]).all()
    assert not np.isfinite(mean[1]) and np.isnan(var[1]) and not np.isfinite(grad_gamma[1])


@pytest.mark.parametrize("value", POISON.values(), ids=POISON)
@pytest.mark.parametrize(("shape", "axis"), POISONED_SHAPES, ids=map(cases.case_id, POISONED_SHAPES))
def test_nan_and_inf_stay_in_their_place_in_inference(shape, axis, value):
    clean, dirty = poisoned(shape, axis, value, "c")
    gamma, beta, mean, var = cases.parameters(shape[axis])
    gamma[1] = -2.0
    expected = nbbn.normalize(clean, mean, var, gamma, beta, axis=axis)
    np.moveaxis(expected, axis, 0)[1].flat[5] = -2.0 * value
    np.testing.assert_array_equal(nbbn.normalize(dirty, mean, var, gamma, beta, axis=axis), expected)


@pytest.mark.parametrize("value", POISON.values(), ids=POISON)
@pytest.mark.parametrize(("shape", "axis"), POISONED_SHAPES, ids=map(cases.case_id, POISONED_SHAPES))
def test_nan_and_inf_in_a_gradient_stay_in_their_channel(shape, axis, value):
    clean, dirty = poisoned(shape, axis, value, "c")
    x, mean, inv_std = cases.values(shape, seed=9), np.zeros(shape[axis]), np.ones(shape[axis])
    others = np.arange(shape[axis]) != 1
    (a, *sums_a), (b, *sums_b) = (nbbn.batch_norm_backward(dy, x, mean, inv_std, axis=axis) for dy in (clean, dirty))
    assert_same_bits(np.moveaxis(a, axis, 0)[others], np.moveaxis(b, axis, 0)[others])
    for sum_a, sum_b in zip(sums_a, sums_b, strict=True):
        assert_same_bits(sum_a[others], sum_b[others])
        assert not np.isfinite(sum_b[1])
    assert not np.isfinite(np.moveaxis(b, axis, 0)[1]).any()


class Alone:
    """A communicator of one worker."""

    def allgather(self, array):
        return [array]


@pytest.mark.parametrize("layout", ["c", "channels_last_memory", "strided"])
@pytest.mark.parametrize("shape", [(8, 5), (33, 18), (4, 6, 5, 5), (1, 3, 40, 50)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_deviation_and_eps_0_gives_beta(dtype, shape, layout):
    """Where var + eps is 0, inv_std counts as 0: in every mode and function, forward and backward."""
    count = shape[1]
    x = cases.values(shape, dtype, loc=3.0)
    channels = np.moveaxis(x, 1, 0)
    channels[::2] = 1e7
    x = cases.LAYOUTS[layout](x)
    grad = cases.values(shape, dtype, seed=5)
    gamma, beta = np.linspace(1.0, 2.0, count), np.linspace(-1.0, 1.0, count)
    sums = np.moveaxis(grad, 1, 0).reshape(count, -1).sum(1, np.float64)
    mask = np.ones((shape[0], *shape[2:]), bool)
    mask[0] = shape[0] == 1

    def check(y):
        flat = np.moveaxis(np.asarray(y), 1, 0).reshape(count, -1)
        assert np.isfinite(flat).all()
        assert (flat[::2] == beta[::2, None].astype(dtype)).all()
        assert (flat[1::2].std(1) > 0.1).all()

    def check_gradients(grad_x, grad_gamma, grad_beta):
        flat = np.moveaxis(grad_x, 1, 0)
        assert np.isfinite(grad_x).all()
        assert (flat[::2] == 0).all()
        assert flat[1::2].any()
        assert (grad_gamma[::2] == 0).all()
        np.testing.assert_allclose(grad_beta, sums, rtol=1e-5, atol=1e-6)

    layers = [nbbn.BatchNorm(count, eps=0.0, dtype=np.float64)]
    layers.append(SyncBatchNorm(count, comm=Alone(), eps=0.0, dtype=np.float64))
    for bn in layers:
        bn.gamma, bn.beta = gamma, beta
        for options in ({}, {"mask": mask}, {"residual": np.zeros_like(x)}):
            check(bn(x, **options))
            assert (bn.batch_inv_std[::2] == 0).all()
            assert (bn.batch_inv_std[1::2] > 0).all()
            check_gradients(bn.backward(grad), bn.grad_gamma, bn.grad_beta)
        bn.running_var[::2] = 0.0
        mean, var = bn.running_mean, bn.running_var
        for options in ({}, {"residual": np.zeros_like(x)}):
            check(bn(x, training=False, **options))
            check_gradients(bn.backward(grad), bn.grad_gamma, bn.grad_beta)
    frozen = nbbn.FrozenBatchNorm.from_stats(mean, var, gamma, beta, 0.0)
    check(frozen(x))
    check(layers[0].freeze()(x))
    check(nbbn.normalize(x, mean, var, gamma, beta, eps=0.0))
    check(nbbn.batch_norm(x, mean, var, gamma, beta, eps=0.0))
    check(nbbn.batch_norm(x, None, None, gamma, beta, training=True, eps=0.0))
    weight, bias = nbbn.fold_linear(np.ones((count, 2)), None, layers[0])
    assert (weight[::2] == 0).all()
    assert (bias[::2] == beta[::2]).all()


@pytest.mark.parametrize("shape", [(1, 5), (1, 20, 1, 1)])
def test_one_value_a_channel_and_eps_0_gives_beta(shape):
    x = cases.values(shape, loc=3.0)
    bn = nbbn.BatchNorm(shape[1], eps=0.0, running_correction=0)
    bn.beta = np.arange(float(shape[1]))
    assert (bn(x).ravel() == bn.beta).all()
    assert not bn.backward(np.ones_like(x)).any()
    assert not bn.grad_gamma.any()
    assert (bn.grad_beta == 1).all()


def test_a_variance_below_0_stays_nan():
    """Which only an assignment into the array of a layer can bring about."""
    bn = nbbn.BatchNorm(2, eps=0.0)
    bn.running_var[0] = -1.0
    assert np.isnan(bn(np.ones((3, 2), np.float32), training=False)[:, 0]).all()


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((40, 5), 1), ((3000, 37), 1), ((4, 6, 5, 5), 1), ((2, 3, 200, 200), 1)],
)
def test_a_reference_counts(shape, axis):
    """The first value has next to no weight and is far from all others, alone or with its whole piece."""
    x = cases.values(shape, np.float64)
    others = [size for k, size in enumerate(shape) if k != axis]
    for first in (1, math.prod(others) // 2):
        weights = np.ones(others)
        weights.ravel()[:first] = 1e-300
        far = x.copy()
        flat = np.moveaxis(far, axis, -1).reshape(-1, shape[axis])
        flat[:first] = 1e160 if first == 1 else 1e120
        np.moveaxis(far, axis, -1)[...] = flat.reshape(*others, shape[axis])
        found = nbbn.batch_moments(far, axis=axis, weights=weights)
        rest = np.moveaxis(x, axis, -1).reshape(-1, shape[axis])[first:]
        mean = rest.mean(0)
        np.testing.assert_allclose(found.mean, mean, rtol=1e-12, atol=1e-13)
        if first == 1:  # which adds 1e-300 * 1e320 to m2
            np.testing.assert_allclose(found.m2, 1e20, rtol=1e-12)


@pytest.mark.parametrize("shape", [(40, 5), (3000, 37), (4, 6, 5, 5), (2, 3, 200, 200)])
def test_differences_that_overflow_give_no_number(shape):
    """Means or values that lie further apart than the greatest number: documented as not finite."""
    x = np.full(shape, 1.7e308)
    x[shape[0] // 2 :] *= -1
    found = nbbn.batch_moments(x)
    assert not np.isfinite(found.m2).any()
    found = nbbn.batch_moments(x / 2.0**600)  # nor does anything overflow
    np.testing.assert_allclose(found.var(), (1.7e308 / 2.0**600) ** 2, rtol=1e-12)


@pytest.mark.parametrize("mean", [1e3, 1e5])
@pytest.mark.parametrize("shape", [(50, 6), (3, 6, 40)])
def test_gradients_far_from_zero(shape, mean):
    """What rounding leaves of the mean, and of the mean of grad_y, is in the sum."""
    x, grad_y = cases.values(shape, loc=mean, scale=1.0), cases.values(shape, seed=2, loc=5.0)
    bn = nbbn.BatchNorm(6)
    bn.gamma[:] = np.linspace(-2, 2, 6)
    bn(x)
    exact = reference.backward(grad_y, x, bn.gamma)
    found = bn.backward(grad_y)
    bound = 4 * eps_of(np.float32) * np.abs(exact.x).max()
    np.testing.assert_allclose(found, exact.x, rtol=0, atol=bound)
