"""NaN and Inf in a batch: propagated, refused or skipped, and never half of it."""

import pickle

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer

import nbbn

POISON = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
# A contiguous input goes another way through the code than a strided one; one is past the cache-free size.
SHAPES = {"matrix": (40, 6), "images": (4, 6, 5, 5), "large": (16, 6, 60, 60)}
by_poison = pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
by_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
by_layout = pytest.mark.parametrize("layout", ["c", "channels_last_memory", "strided"])


def spoiled(shape, poison, layout="c", dtype=np.float32):
    x = cases.values(shape, dtype, loc=2.0)
    np.moveaxis(x, 1, 0)[4].flat[7] = poison
    return cases.LAYOUTS[layout](x)


def state(bn):
    parts = {**bn.state_dict(), "batch_mean": bn.batch_mean, "grad_gamma": bn.grad_gamma}
    return {name: None if value is None else np.array(value) for name, value in parts.items()}


def assert_unchanged(bn, before):
    after = state(bn)
    for name, value in before.items():
        assert (after[name] is None) == (value is None), name
        if value is not None:
            assert_same_bits(after[name], value)


def trained(shape, **options):
    """A layer that has seen a batch, and its backward."""
    bn = layer(shape[1], **options)
    x = cases.values(shape, loc=1.0, seed=3)
    bn(x)
    bn.backward(x)
    return bn, x


@by_shape
@by_layout
@by_poison
@pytest.mark.parametrize("into", ["fresh", "out", "in place"])
def test_raise_changes_nothing(shape, layout, poison, into):
    bn, first = trained(shape, on_nonfinite="raise")
    grad = cases.values(shape, seed=9)
    expected_gradient = bn.backward(grad)
    before, x = state(bn), spoiled(shape, poison, layout)
    kept = x.copy(order="K")
    out = {"fresh": None, "out": np.full_like(x, 777), "in place": x}[into]
    with pytest.raises(FloatingPointError, match=r"^x: expected finite .* in channel 4$"):
        bn(x, out=out)
    assert_unchanged(bn, before)
    assert_same_bits(x, kept)
    if into == "out":
        assert (out == 777).all()
    assert_same_bits(bn.backward(grad), expected_gradient)  # still that of the batch before
    assert np.isfinite(bn(first)).all()


@by_shape
@by_layout
@by_poison
def test_skip_normalizes_and_leaves_the_running_statistics(shape, layout, poison):
    bn, _ = trained(shape, on_nonfinite="skip")
    usual = pickle.loads(pickle.dumps(bn))
    usual.on_nonfinite = "propagate"
    before, x = bn.state_dict(), spoiled(shape, poison, layout)
    y, grad_x = bn(x), bn.backward(x)
    for name, value in before.items():
        assert_same_bits(np.asarray(bn.state_dict()[name]), np.asarray(value))
    assert_same_bits(y, usual(x))  # NaN in the one channel, right values in the others
    assert_same_bits(grad_x, usual.backward(x))
    assert_same_bits(bn.batch_mean, usual.batch_mean)
    assert np.isnan(usual.running_mean[4]) or np.isinf(usual.running_mean[4])
    assert np.isfinite(np.delete(usual.running_mean, 4)).all()


@pytest.mark.parametrize("mode", ["raise", "skip"])
@by_shape
def test_finite_batches_train_as_ever(mode, shape):
    bn, _ = trained(shape, on_nonfinite=mode)
    usual, _ = trained(shape)
    x = cases.values(shape, loc=5.0)
    out = np.empty_like(x)
    assert_same_bits(bn(x, out=out), usual(x))
    assert_same_bits(bn.running_var, usual.running_var)
    assert bn.num_batches_tracked == 2


@pytest.mark.parametrize("mode", ["raise", "skip"])
def test_statistics_that_overflow_the_running_ones_count_as_not_finite(mode):
    x = np.array([[1e30], [-1e30], [3e30]], np.float32)  # the variance is beyond float32
    bn = nbbn.BatchNorm(1, on_nonfinite=mode)
    if mode == "raise":
        with pytest.raises(FloatingPointError, match="variance inf in channel 0"):
            bn(x)
    else:
        assert np.isfinite(bn(x)).all()
    assert bn.running_var == 1 and bn.num_batches_tracked == 0
    wide = nbbn.BatchNorm(1, on_nonfinite=mode, dtype=np.float64)
    wide(x)
    assert np.isfinite(wide.running_var).all() and wide.num_batches_tracked == 1


@pytest.mark.parametrize("mode", ["propagate", "raise", "skip"])
def test_inference_with_running_statistics_only_propagates(mode):
    bn, _ = trained((40, 6), on_nonfinite=mode)
    y = bn.eval()(spoiled((40, 6), np.nan))
    assert np.isnan(y).sum() == 1


def test_without_running_statistics_raise_still_raises_in_both_modes():
    bn = nbbn.BatchNorm(6, track_running_stats=False, on_nonfinite="raise")
    for mode in (True, False):
        with pytest.raises(FloatingPointError, match="channel 4"):
            bn(spoiled((40, 6), np.nan), training=mode)


def test_the_option_is_kept_everywhere(tmp_path):
    bn = nbbn.BatchNorm(3, on_nonfinite="skip")
    assert repr(bn) == "BatchNorm(3, on_nonfinite='skip', training)"
    assert pickle.loads(pickle.dumps(bn)).on_nonfinite == "skip"
    bn.save(tmp_path / "bn.npz")
    assert nbbn.BatchNorm.load(tmp_path / "bn.npz").on_nonfinite == "skip"


@pytest.mark.parametrize(("value", "error"), [("stop", ValueError), (None, TypeError), (1, TypeError)])
def test_another_word_is_refused(value, error):
    sentence = f"on_nonfinite: expected 'propagate', 'raise' or 'skip', got {value!r}"
    with pytest.raises(error, match=f"^{sentence}$"):
        nbbn.BatchNorm(3, on_nonfinite=value)
    bn = nbbn.BatchNorm(3)
    with pytest.raises(error, match=f"^{sentence}$"):
        bn.on_nonfinite = value
    assert bn.on_nonfinite == "propagate"


def _spike(flat):
    flat[:, 0] = 3e6


FILLS = {
    "nan": lambda flat: flat.fill(np.nan),
    "inf": lambda flat: flat.fill(np.inf),
    "large": lambda flat: np.add(flat, 1e7, out=flat),
    "zeros": lambda flat: flat.fill(0.0),
    "spike": _spike,
}


@pytest.mark.parametrize(
    "shape",
    [(40, 6), (3000, 37), (70, 64), (4, 6, 5, 5), (2, 40, 3, 3), (3, 5, 14, 14), (2, 3, 150, 150)],
)
@pytest.mark.parametrize("layout", ["c", "channels_last_memory"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_a_channel_depends_on_its_own_values_alone(shape, layout, dtype, masked):
    count = shape[1]
    plain = cases.values(shape, dtype, loc=20.0)
    if count > 16:
        plain[0, count - 1] = 1e6  # a channel that takes a second look of its own, of the last strip
    kept = np.arange(count) % 3 == 0
    grad = cases.LAYOUTS[layout](cases.values(shape, dtype, seed=5))
    mask = None
    if masked:
        mask = np.random.default_rng(3).random((shape[0], *shape[2:])) < 0.8
        mask.flat[0] = True

    def results(x):
        x = cases.LAYOUTS[layout](x)
        moments = nbbn.batch_moments(x, mask=mask)
        bn = nbbn.BatchNorm(count)
        y = bn(x, mask=mask)
        grad_x = bn.backward(grad)
        vectors = moments.mean, moments._mean_low, moments.m2, bn.batch_mean, bn.batch_inv_std
        vectors = *vectors, bn.running_mean, bn.running_var, bn.grad_gamma, bn.grad_beta
        inferred = bn(x, training=False)
        arrays = [np.moveaxis(a, 1, 0)[kept] for a in (y, grad_x, inferred)]
        return [v[kept] for v in vectors] + arrays

    expected = results(plain)
    for fill in FILLS.values():
        x = plain.copy()
        others = np.moveaxis(x, 1, 0)[~kept].reshape(int((~kept).sum()), -1)
        fill(others)
        np.moveaxis(x, 1, 0)[~kept] = others.reshape(-1, shape[0], *shape[2:])
        with np.errstate(all="ignore"):
            found = results(x)
        for a, b in zip(found, expected, strict=True):
            assert_same_bits(a, b)


def test_channels_of_nopython_depend_on_their_own_values_alone():
    for shape in ((5, 20, 1), (300, 37, 1), (3, 5, 40), (200, 6, 4)):
        x = cases.values(shape, loc=20.0)
        spoiled_x = x.copy()
        spoiled_x[:, 1::2] = np.nan
        spoiled_x[0, 1::2] = 1e6
        spiked = x.copy()
        spiked[0, 1::2] = 1e7
        results = []
        for values in (x, spoiled_x, spiked):
            mean, m2 = np.empty(shape[1]), np.empty(shape[1])
            nbbn.nopython.moments(values, mean, m2)
            results.append((mean[::2].copy(), m2[::2].copy()))
        for found in results[1:]:
            assert_same_bits(found[0], results[0][0])
            assert_same_bits(found[1], results[0][1])


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_an_infinite_mean_makes_infinite_results_as_numpys(dtype):
    """Nothing of it is left over to add to the shift."""
    x, mean = cases.values((4, 3), dtype), np.array([np.inf, -np.inf, 1.0])
    y = nbbn.normalize(x, mean, np.ones(3), eps=0.0)
    np.testing.assert_array_equal(y[:, :2], x[:, :2] - mean[:2])
    np.testing.assert_array_equal(nbbn.FrozenBatchNorm(mean, np.ones(3), np.zeros(3))(x), y)
