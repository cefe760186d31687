"""Masks and weights: in moments, training, inference and backward; NaN under the mask; what a mask may look like."""

import itertools

import cases
import numpy as np
import pytest
import reference
from compare import (
    assert_forward,
    assert_gradients,
    assert_same_bits,
    assert_within,
    eps_of,
    float32_first,
    snapshot,
    var_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn

# every way through the kernels: rows, columns, long runs, short runs, several pieces, one channel
SHAPES = (
    ((1, 7), 0),
    ((40, 1), 1),
    ((33, 3), 1),
    ((300, 20), -1),
    ((9000, 5), 1),
    ((5, 6, 9), 1),
    ((5, 9, 6), -1),
    ((4, 3, 7, 7), 1),
    ((3, 4, 5, 6), 0),
    ((6, 3, 40), 1),
    ((40, 3, 1000), 1),
    ((3, 2, 20000), 1),
)
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=map(cases.case_id, SHAPES))
by_dtype = float32_first


def others(shape, axis):
    axis %= len(shape)
    return shape[:axis] + shape[axis + 1 :]


def some_mask(shape, axis, seed=1, share=0.6):
    """At least two True."""
    mask = np.random.default_rng(seed).random(others(shape, axis)) < share
    mask.reshape(-1)[-2:] = True
    return mask


def under(x, mask, axis, value):
    """A copy of x with ``value`` where the mask is False."""
    moved = np.moveaxis(x.copy(), axis, -1)
    moved[~np.asarray(mask)] = value
    return np.ascontiguousarray(np.moveaxis(moved, -1, axis))


def check_weighted(moments, x, weights, axis):
    count, mean, m2 = reference.weighted_moments(x, weights, axis)
    assert moments.count == pytest.approx(count, rel=4 * eps_of(np.float64))
    kept = reference.channels(x, axis)[:, np.asarray(weights).reshape(-1) > 0]
    largest = np.abs(kept).max(axis=1)
    assert_within(moments.mean, mean, 16 * eps_of(np.float64) * largest)
    assert_within(moments.m2, m2, var_error(x, m2) + 1e-300)


@by_dtype
@by_shape
def test_moments_of_what_a_mask_lets_in(shape, axis, dtype):
    mask = some_mask(shape, axis)
    x = under(cases.values(shape, dtype, loc=30.0), mask, axis, np.nan)
    moments = nbbn.batch_moments(x, axis=axis, mask=mask)
    assert moments.count == np.count_nonzero(mask)
    check_weighted(moments, x, mask, axis)


@by_dtype
@by_shape
def test_weighted_moments(shape, axis, dtype):
    rng = np.random.default_rng(2)
    weights = rng.random(others(shape, axis)) * some_mask(shape, axis) * 10.0
    x = under(cases.values(shape, dtype, loc=-3.0), weights > 0, axis, np.inf)
    check_weighted(nbbn.batch_moments(x, axis=axis, weights=weights), x, weights, axis)
    mask = some_mask(shape, axis, seed=5)
    both = nbbn.batch_moments(x, axis=axis, mask=mask, weights=weights)
    check_weighted(both, x, np.where(mask, weights, 0.0), axis)


def test_weights_are_numbers_of_copies():
    x, counts = cases.values((20, 3)), np.arange(20) % 4
    copies = nbbn.batch_moments(np.repeat(x, counts, axis=0))
    for dtype in (np.int64, np.uint8, np.float32, np.float64):
        found = nbbn.batch_moments(x, weights=counts.astype(dtype))
        assert found.count == copies.count
        np.testing.assert_allclose(found.mean, copies.mean, rtol=1e-14)
        np.testing.assert_allclose(found.m2, copies.m2, rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_only_the_ratio_of_weights_matters_to_the_variance(scale):
    x, weights = cases.values((50, 4), loc=1e4), np.linspace(0.1, 1.0, 50)
    plain = nbbn.batch_moments(x, weights=weights)
    scaled = nbbn.batch_moments(x, weights=weights * scale)
    np.testing.assert_allclose(scaled.var(), plain.var(), rtol=1e-12)


@pytest.mark.parametrize("kept", [slice(None, 30000), slice(30000, None)])
def test_subnormal_weights_harm_nothing(kept):
    # As a Gaussian window fades out: 1 / (sum of such weights) overflows, in whole pieces of the data.
    weights = np.full(60000, 1e-320)
    weights[kept] = 1.0
    counted = np.where(weights == 1.0, 1.0, 0.0)
    for shape, axis in (((60000, 2), 1), ((2, 60000), 0), ((60000, 1), 1)):
        x = cases.values(shape)
        check_weighted(nbbn.batch_moments(x, axis=axis, weights=weights), x, counted, axis)
    nothing = nbbn.batch_moments(cases.values((6, 3)), weights=np.full(6, 1e-320))
    assert nothing == nbbn.Moments.empty(3)


def test_moments_far_from_zero_about_a_light_first_value():
    x = np.full((1000, 2), 1e6, np.float32) + cases.values((1000, 2))
    x[0] = -1e7
    weights = np.ones(1000)
    weights[0] = 1e-12
    check_weighted(nbbn.batch_moments(x, weights=weights), x, weights, 1)


@by_dtype
def test_gradients_where_rows_in_a_row_are_masked(dtype):
    lengths = np.array([0, 3, 8, 16, 17, 40])
    x, grad_y = cases.values((6, 40, 21), dtype), cases.values((6, 40, 21), dtype, seed=2)
    mask = np.arange(40) < lengths[:, None]
    for copies in (1, 40) if dtype is np.float32 else (1,):  # many run in parallel, one way is enough
        many = np.concatenate([x] * copies), np.concatenate([grad_y] * copies)
        masks = np.concatenate([mask] * copies)
        bn = nbbn.BatchNorm(21, axis=-1, dtype=dtype)
        bn(many[0], mask=masks)
        grads = bn.backward(many[1]), bn.grad_gamma, bn.grad_beta
        forward = reference.masked_training(many[0], masks, axis=-1)
        exact = reference.masked_backward(many[1], many[0], masks, axis=-1)
        assert_gradients(grads, exact, many[1], forward, axis=-1)


def test_a_mask_of_whole_pieces():
    for shape, axis in (((6, 2, 20000), 1), ((50000, 4), 1), ((40, 2, 3000), 1)):
        for kept in (slice(None, 2), slice(-2, None), slice(3, 4)):
            mask = np.zeros(others(shape, axis), bool)
            mask[kept] = True
            x = under(cases.values(shape, loc=1e4), mask, axis, np.nan)
            check_weighted(nbbn.batch_moments(x, axis=axis, mask=mask), x, mask, axis)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_every_layout_of_x(layout, axis):
    x = cases.LAYOUTS[layout](cases.values((5, 6, 7, 8), loc=2.0))
    mask = some_mask(x.shape, axis)
    check_weighted(nbbn.batch_moments(x, axis=axis, mask=mask), x, mask, axis)
    bn = nbbn.BatchNorm(x.shape[axis], axis=axis)
    expected = reference.masked_training(x, mask, axis=axis)
    assert_forward(bn(x, mask=mask), x, expected, axis=axis)
    grad_y = cases.values(x.shape, seed=8)
    grads = bn.backward(grad_y), bn.grad_gamma, bn.grad_beta
    exact = reference.masked_backward(grad_y, x, mask, axis=axis)
    assert_gradients(grads, exact, grad_y, expected, axis=axis)


@by_dtype
@by_shape
@pytest.mark.parametrize("correction", [0, 1])
def test_layer_and_functions_in_training(shape, axis, dtype, correction):
    x, mask = cases.values(shape, dtype, loc=2.0), some_mask(shape, axis)
    channels = shape[axis]
    gamma, beta = cases.values((2, channels), dtype, seed=4)
    bn = nbbn.BatchNorm(channels, axis=axis, correction=correction, dtype=dtype)
    bn.gamma[:], bn.beta[:] = gamma, beta
    y = bn(x, mask=mask)
    options = {"axis": axis, "correction": correction}
    expected = reference.masked_training(x, mask, gamma, beta, **options)
    assert_forward(y, x, expected, gamma, beta, axis)
    assert_within(bn.batch_var, expected.var, var_error(x, expected.var))
    count, mean, m2 = reference.weighted_moments(x, mask, axis)
    running = 0.1 * mean, 0.9 + 0.1 * m2 / (count - 1)
    for got, exact in zip((bn.running_mean, bn.running_var), running, strict=True):
        assert_within(got, exact, 8 * eps_of(dtype) * (np.abs(exact) + np.abs(mean)))

    mean, var = np.zeros(channels, dtype), np.ones(channels, dtype)
    rest = {"training": True, "mask": mask, **options}
    assert_same_bits(nbbn.batch_norm(x, mean, var, gamma, beta, **rest), y)
    assert_same_bits(mean, bn.running_mean)
    assert_same_bits(var, bn.running_var)

    grad_y = cases.values(shape, dtype, seed=9)
    grad_x = bn.backward(grad_y)
    exact = reference.masked_backward(grad_y, x, mask, gamma, **options)
    grads = grad_x, bn.grad_gamma, bn.grad_beta
    assert_gradients(grads, exact, grad_y, expected, gamma, axis)
    statistics = bn.batch_mean, bn.batch_inv_std
    again = nbbn.batch_norm_backward(grad_y, x, *statistics, gamma, mask=mask, **options)
    assert_gradients(again, exact, grad_y, expected, gamma, axis)
    if dtype == np.float32:  # of float64 the layer knows the mean to more bits than one number holds
        for got, same in zip(again, grads, strict=True):
            assert_same_bits(got, same)


@by_shape
@pytest.mark.long
def test_gradients_are_those_of_finite_differences(shape, axis):
    if np.prod(shape) > 5000:
        pytest.skip("too many values for differences of sums")
    x, mask = cases.values(shape, np.float64, loc=1.0), some_mask(shape, axis)
    grad_y = cases.values(shape, np.float64, seed=3)
    bn = nbbn.BatchNorm(shape[axis], axis=axis, dtype=np.float64)
    bn.gamma[:] = 1.5
    bn(x, mask=mask)
    grad_x = bn.backward(grad_y)

    def loss(value, place):
        changed = x.copy()
        changed[place] = value
        return (reference.masked_training(changed, mask, bn.gamma, axis=axis).y * grad_y).sum()

    rng = np.random.default_rng(0)
    for _ in range(8):
        place = tuple(int(rng.integers(size)) for size in shape)
        step = 1e-5
        slope = (loss(x[place] + step, place) - loss(x[place] - step, place)) / (2 * step)
        assert grad_x[place] == pytest.approx(slope, rel=1e-5, abs=1e-6)


@by_dtype
@by_shape
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_under_the_mask_harms_nothing(shape, axis, dtype, value):
    mask = some_mask(shape, axis)
    x, grad_y = cases.values(shape, dtype), cases.values(shape, dtype, seed=1)
    spoiled = under(x, mask, axis, value)
    expected = nbbn.BatchNorm(shape[axis], axis=axis, dtype=dtype)
    bn = nbbn.BatchNorm(shape[axis], axis=axis, dtype=dtype)
    y, clean = bn(spoiled, mask=mask), expected(under(x, mask, axis, 0), mask=mask)
    assert_same_bits(bn.running_mean, expected.running_mean)
    assert_same_bits(bn.running_var, expected.running_var)
    counts = np.moveaxis(y, axis, -1)[mask]
    assert_same_bits(counts, np.moveaxis(clean, axis, -1)[mask])
    assert not np.isfinite(np.moveaxis(y, axis, -1)[~mask]).any()
    grad_x = bn.backward(under(grad_y, mask, axis, np.nan))
    exact = reference.masked_backward(under(grad_y, mask, axis, 0), x, mask, axis=axis)
    kept = np.moveaxis(grad_x, axis, -1)[mask]
    bound = 64 * eps_of(dtype) * (1 + np.abs(exact.x).max()) * np.abs(bn.batch_inv_std).max()
    assert_within(kept, np.moveaxis(exact.x, axis, -1)[mask], bound * 4)
    assert np.isfinite(bn.grad_gamma).all()
    assert np.isfinite(bn.grad_beta).all()

    bn.eval()  # nor in inference
    bn(spoiled, mask=mask)
    bn.backward(grad_y)
    assert np.isfinite(bn.grad_gamma).all()


@by_dtype
def test_gradient_of_a_finite_masked_value_enters_the_sums(dtype):
    x, mask = cases.values((6, 3), dtype), np.array([True] * 5 + [False])
    bn = nbbn.BatchNorm(3, dtype=dtype)
    bn(x, mask=mask)
    grad_y = np.zeros_like(x)
    grad_y[-1] = 2.0
    grad_x = bn.backward(grad_y)
    assert_same_bits(bn.grad_beta, np.full(3, 2, dtype))
    assert (grad_x[:5] != 0).all()
    np.testing.assert_allclose(grad_x[-1], 2 * bn.batch_inv_std, rtol=4 * eps_of(dtype))


def test_all_true_is_no_mask():
    x = cases.values((8, 5, 6, 7))
    bn, masked = nbbn.BatchNorm(5), nbbn.BatchNorm(5)
    assert_same_bits(masked(x, mask=np.ones((8, 6, 7), bool)), bn(x))
    assert_same_bits(masked.running_var, bn.running_var)
    assert nbbn.batch_moments(x, mask=True) == nbbn.batch_moments(x)


@pytest.mark.parametrize("tracked", [True, False])
def test_all_masked_uses_running_statistics_and_changes_nothing(tracked):
    x = cases.values((6, 3), loc=4.0)
    bn = nbbn.BatchNorm(3, track_running_stats=tracked)
    bn(x)
    before, nothing = snapshot(bn), np.zeros(6, bool)
    y = bn(x, mask=nothing)
    assert snapshot(bn) == before
    mean, var = (bn.running_mean, bn.running_var) if tracked else (np.zeros(3), np.ones(3))
    assert_same_bits(y, nbbn.normalize(x, np.float32(mean), np.float32(var)))
    grad_y = cases.values((6, 3), seed=2)
    exact = reference.backward_inference(grad_y, x, mean, 1 / np.sqrt(np.float64(var) + 1e-5))
    np.testing.assert_allclose(bn.backward(grad_y), exact.x, rtol=1e-5)
    np.testing.assert_allclose(bn.grad_gamma, exact.gamma, rtol=1e-5, atol=1e-5)

    running = np.full(3, 2.0), np.full(3, 9.0)
    y = nbbn.batch_norm(x, *running, training=True, mask=nothing)
    assert_same_bits(y, nbbn.normalize(x, np.full(3, 2.0), np.full(3, 9.0)))
    assert running[0].tolist() == [2.0] * 3
    y = nbbn.batch_norm(x, None, None, training=True, mask=nothing)
    assert_same_bits(y, nbbn.normalize(x, np.zeros(3), np.ones(3)))
    assert nbbn.batch_moments(x, mask=nothing) == nbbn.Moments.empty(3)
    assert nbbn.batch_moments(x, weights=np.zeros(6)) == nbbn.Moments.empty(3)
    zeros = np.zeros(3), np.ones(3)
    grad_x, *_ = nbbn.batch_norm_backward(grad_y, x, *zeros, mask=nothing)
    assert_same_bits(grad_x, grad_y)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_too_few_values(count):
    x, mask = cases.values((6, 3)), np.arange(6) < count
    bn = nbbn.BatchNorm(3)
    before = snapshot(bn)
    if count == 1:
        with pytest.raises(ValueError, match="mask: expected at least 2 values per channel"):
            bn(x, mask=mask)
        assert snapshot(bn) == before
        with pytest.raises(ValueError, match="mask: expected at least 2 values per channel"):
            nbbn.batch_norm(x, None, None, training=True, mask=mask)
        exact = nbbn.BatchNorm(3, running_correction=0)
        exact(x, mask=mask)
        assert_same_bits(exact.batch_mean, x[0].astype(np.float64))
        assert exact.batch_var.tolist() == [0.0] * 3
    else:
        bn(x, mask=mask)
        assert bn.num_batches_tracked == (count > 1)


# mask of x (4, 5, 3) with the channels last, and the same one of x's own number of dimensions
FORMS = {
    "without the channel axis": ((4, 5), (4, 5, 1)),
    "one a sample": ((4, 1), (4, 1, 1)),
    "one a step": ((5,), (1, 5, 1)),
    "one a step, broadcast": ((1, 5), (1, 5, 1)),
    "for all axes": ((4, 5, 1), (4, 5, 1)),
    "for all axes, broadcast": ((1, 5, 1), (1, 5, 1)),
    "one": ((), (1, 1, 1)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_forms_of_a_mask(form, axis):
    given, full = FORMS[form]
    x = np.ascontiguousarray(np.moveaxis(cases.values((4, 5, 3)), -1, axis))
    if len(given) == 3:
        given = np.moveaxis(np.empty(given), -1, axis).shape
    rng = np.random.default_rng(3)
    mask = rng.random(given) < 0.6
    mask.reshape(-1)[-1] = True
    moved = np.moveaxis(mask, axis, -1) if len(given) == 3 else mask
    where = np.broadcast_to(moved.reshape(full), (4, 5, 1))[..., 0]
    check_weighted(nbbn.batch_moments(x, axis=axis, mask=mask), x, where, axis)
    assert nbbn.batch_moments(x, axis=axis, mask=mask.tolist()) == nbbn.batch_moments(x, axis=axis, mask=mask)
    check_weighted(nbbn.batch_moments(x, axis=axis, weights=mask * 2.0), x, where * 2.0, axis)


@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 40), (6,)])
def test_a_true_may_be_any_byte_but_0(shape):
    x, axis = cases.values(shape), min(1, len(shape) - 1)
    true = np.random.default_rng(1).random(others(shape, axis)) < 0.6
    true.reshape(-1)[-2:] = True
    mask = np.where(true, 255, 0).astype(np.uint8).view(bool)
    moments = nbbn.batch_moments(x, axis=axis, mask=mask)
    assert moments == nbbn.batch_moments(x, axis=axis, mask=true)
    weights = np.full(true.shape, 2.0)
    both = nbbn.batch_moments(x, axis=axis, mask=mask, weights=weights)
    assert both == nbbn.batch_moments(x, axis=axis, weights=np.where(true, weights, 0.0))
    outputs = []
    for form in (mask, true):
        bn = nbbn.BatchNorm(shape[axis], axis=axis, running_correction=0)
        outputs.append((bn(x, mask=form), bn.backward(cases.values(shape, seed=1)), bn.batch_var))
    for one, other in zip(*outputs, strict=True):
        assert_same_bits(one, other)


def test_a_short_mask_stands_for_the_axes_other_than_the_channels():
    mask = np.array([[True], [False], [True], [False]])
    for length in (4, 5, 1):  # of the second axis: that it agrees with the mask changes nothing
        x = cases.values((4, length, 3))
        moments = nbbn.batch_moments(x, axis=-1, mask=mask)
        check_weighted(moments, x, np.broadcast_to(mask, (4, length)), -1)
        weighted = nbbn.batch_moments(x, axis=-1, weights=mask * 2.0)
        check_weighted(weighted, x, np.broadcast_to(mask * 2.0, (4, length)), -1)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 4), (1, 1)])
def test_a_short_mask_has_one_reading_whatever_sizes_agree(shape, axis):
    """That of numpy.broadcast_to the other axes, or none."""
    mask = np.arange(np.prod(shape)).reshape(shape) % 2 == 0
    for sizes in itertools.product((1, 4, 5), repeat=3):
        x = cases.values(sizes)
        try:
            where = np.broadcast_to(mask, others(sizes, axis))
        except ValueError:
            for given in ({"mask": mask}, {"weights": mask}):
                with pytest.raises(ValueError, match="expected a shape that broadcasts to"):
                    nbbn.batch_moments(x, axis=axis, **given)
            continue
        check_weighted(nbbn.batch_moments(x, axis=axis, mask=mask), x, where, axis)


def test_a_mask_of_all_dimensions_has_size_1_along_the_channel_axis():
    x = cases.values((4, 3, 3))
    with pytest.raises(ValueError, match=r"with size 1 along axis 1, got \(4, 3, 3\)"):
        nbbn.batch_moments(x, mask=np.ones((4, 3, 3), bool))
    for shape in ((1, 1, 4, 3), (1, 1, 1, 1)):
        with pytest.raises(ValueError, match="expected a shape that broadcasts to"):
            nbbn.batch_moments(x, mask=np.ones(shape, bool))


def test_moments_update_takes_a_mask():
    x, mask = cases.values((9, 4)), np.arange(9) % 2 == 0
    found = nbbn.Moments.empty(4).update(x, mask=mask).update(x, mask=~mask)
    np.testing.assert_allclose(found.mean, nbbn.batch_moments(x).mean, rtol=1e-14)
    assert found.count == 9


def test_inference_ignores_the_mask():
    x, bn = cases.values((6, 3)), nbbn.BatchNorm(3)
    bn(x)
    bn.eval()
    assert_same_bits(bn(x, mask=np.arange(6) < 2), bn(x))
    arrays = bn.running_mean, bn.running_var
    assert_same_bits(nbbn.batch_norm(x, *arrays, mask=np.arange(6) < 2), bn(x))


def test_the_mask_may_be_overwritten_before_backward():
    x, mask, grad_y = cases.values((6, 3)), np.arange(6) < 4, cases.values((6, 3), seed=1)
    bn = nbbn.BatchNorm(3)
    bn(x, mask=mask)
    expected = bn.backward(grad_y)
    bn(x, mask=mask)
    mask[:] = False
    assert_same_bits(bn.backward(grad_y), expected)


@pytest.mark.parametrize("activation", ["relu", "hard_swish"])
@pytest.mark.long
def test_with_residual_activation_and_out(activation):
    x, residual = cases.values((6, 4, 20)), cases.values((6, 4, 20), seed=1)
    mask = some_mask(x.shape, 1)
    bn = nbbn.BatchNorm(4, activation=activation)
    out = np.empty_like(x)
    assert bn(x, mask=mask, residual=residual, out=out) is out
    before = reference.masked_training(x, mask).y + residual
    exact, slope = reference.activation(before, activation)
    assert_within(out, exact, 64 * eps_of(np.float32) * (1 + np.abs(before)))
    grad_y = cases.values(x.shape, seed=2)
    grad_x = bn.backward(grad_y)
    of_argument = (grad_y * slope).astype(np.float32)
    np.testing.assert_allclose(bn.grad_residual, of_argument, rtol=1e-5, atol=1e-6)
    exact_x = reference.masked_backward(of_argument, x, mask).x
    np.testing.assert_allclose(grad_x, exact_x, rtol=1e-4, atol=1e-5)
    assert bn(x, mask=mask, residual=residual, out=x) is x
    assert_same_bits(x, out)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
@pytest.mark.long
def test_half_types_and_bytes(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    x = np.random.default_rng(0).integers(0, 255, (40, 6, 5)).astype(dtype)
    mask = some_mask(x.shape, 1)
    found = nbbn.batch_moments(x, mask=mask)
    check_weighted(found, x.astype(np.float32), mask, 1)
    if dtype != "uint8":
        wide = nbbn.BatchNorm(6)(x.astype(np.float32), mask=mask)
        assert_same_bits(nbbn.BatchNorm(6)(x, mask=mask), wide.astype(dtype))


@pytest.mark.parametrize("option", ["raise", "skip"])
def test_on_nonfinite_looks_at_what_counts(option):
    x, mask = cases.values((6, 3)), np.arange(6) < 5
    bn = nbbn.BatchNorm(3, on_nonfinite=option)
    bn(under(x, mask, 1, np.nan), mask=mask)
    assert bn.num_batches_tracked == 1
    before = snapshot(bn)
    x[0, 1] = np.nan
    if option == "raise":
        with pytest.raises(FloatingPointError, match="channel 1"):
            bn(x, mask=mask)
    else:
        bn(x, mask=mask)
    assert snapshot(bn)["running_mean"] == before["running_mean"]


@pytest.mark.parametrize("threads", [2, 4])
@pytest.mark.long
def test_the_same_bits_for_every_number_of_threads(threads):
    threads = min(threads, nbbn.get_num_threads())
    for shape, axis in (((8, 16, 40, 40), 1), ((40000, 8), 1), ((2, 3, 90000), 1)):
        x, mask, grad_y = cases.values(shape), some_mask(shape, axis), cases.values(shape, seed=1)
        results = []
        for number in (1, threads):
            with nbbn.num_threads(number):
                bn = nbbn.BatchNorm(shape[axis], axis=axis)
                y = bn(x, mask=mask)
                results.append((y, bn.backward(grad_y), bn.grad_gamma, bn.running_var))
        for one, many in zip(*results, strict=True):
            assert_same_bits(one, many)


@by_dtype
@settings(max_examples=min(60, settings.default.max_examples))
@given(data=st.data())
def test_any_mask_of_any_shape(dtype, data):
    ndim = data.draw(st.integers(1, 4))
    shape = tuple(data.draw(st.integers(1, 9)) for _ in range(ndim))
    axis = data.draw(st.integers(-ndim, ndim - 1))
    x = cases.values(shape, dtype, seed=data.draw(st.integers(0, 99)))
    mask = np.array(
        data.draw(
            st.lists(
                st.booleans(),
                min_size=int(np.prod(others(shape, axis))),
                max_size=int(np.prod(others(shape, axis))),
            )
        ),
        dtype=bool,
    ).reshape(others(shape, axis))
    found = nbbn.batch_moments(under(x, mask, axis, np.nan), axis=axis, mask=mask)
    rest = nbbn.batch_moments(under(x, ~mask, axis, np.nan), axis=axis, mask=~mask)
    assert found.count == np.count_nonzero(mask)
    whole = nbbn.batch_moments(x, axis=axis)
    both = found + rest
    assert both.count == whole.count
    np.testing.assert_allclose(both.mean, whole.mean, rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(both.m2, whole.m2, rtol=1e-13, atol=1e-14)


WRONG = {
    "too long": (np.ones(7, bool), ValueError, r"mask: expected a shape that broadcasts to \(6,\)"),
    "of x": (np.ones((6, 3), bool), ValueError, r"with size 1 along axis 1, got \(6, 3\)"),
    "too many": (np.ones((1, 6, 1), bool), ValueError, r"got \(1, 6, 1\)"),
    "integers": (np.ones(6, int), TypeError, "mask: expected dtype bool, got int64"),
    "floats": (np.ones(6), TypeError, "mask: expected dtype bool, got float64"),
    "masked": (np.ma.masked_array(np.ones(6, bool)), TypeError, "masked array"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks(name):
    mask, error, message = WRONG[name]
    x = cases.values((6, 3))
    bn = nbbn.BatchNorm(3)
    bn(x)
    before, running = snapshot(bn), (np.zeros(3), np.ones(3))
    calls = (
        lambda: bn(x, mask=mask),
        lambda: bn(x, mask=mask, training=False),
        lambda: nbbn.batch_moments(x, mask=mask),
        lambda: nbbn.Moments.empty(3).update(x, mask=mask),
        lambda: nbbn.batch_norm(x, *running, mask=mask),
        lambda: nbbn.batch_norm(x, *running, training=True, mask=mask),
        lambda: nbbn.batch_norm_backward(x, x, *running, mask=mask),
    )
    for call in calls:
        with pytest.raises(error, match=message):
            call()
    assert snapshot(bn) == before
    assert running[0].tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (
            np.array([1, 1, 1, 1, 1, -1.0]),
            ValueError,
            "weights: expected finite numbers >= 0, got -1",
        ),
        (np.array([1, 1, 1, 1, 1, np.nan]), ValueError, "expected finite numbers >= 0, got nan"),
        (np.full(6, np.inf), ValueError, "weights: expected finite numbers >= 0"),
        (np.full(6, 1e308), ValueError, "weights: expected a finite sum"),
        (np.ones(5), ValueError, r"weights: expected a shape that broadcasts to \(6,\)"),
        (np.ones(6, complex), TypeError, "weights: expected dtype .* got complex128"),
        (
            np.ma.ones(6),
            TypeError,
            "weights: expected a plain array of float64, .* got a masked array",
        ),
        (np.ones(6, object), TypeError, "weights: expected dtype .* got object"),
    ],
)
def test_wrong_weights(weights, error, message):
    with pytest.raises(error, match=message):
        nbbn.batch_moments(cases.values((6, 3)), weights=weights)
