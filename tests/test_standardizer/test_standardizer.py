"""Standardizer: exact statistics of data in one piece or in chunks, applied and taken back."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
import reference
from compare import assert_forward, assert_same_bits, assert_within, eps_of, mean_error, var_error
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nbbn
from nbbn.standardizer import _dataset, _features

bounded = settings(max_examples=min(80, settings.default.max_examples))
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
SHAPES = [case for case in cases.SHAPES if len(case[0]) > 1]
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=map(cases.case_id, SHAPES))
ATTRIBUTES = ("mean_", "var_", "scale_")


def statistics(scaler):
    return [getattr(scaler, name) for name in (*ATTRIBUTES, "n_samples_seen_")]


def assert_same_statistics(one, other):
    for a, b in zip(statistics(one), statistics(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_standardized(y, x, axis=-1):
    """Within the bound of the exact values; 0 in features without variance."""
    varies = reference.moments(x, axis)[2] > 0
    np.testing.assert_array_equal(np.moveaxis(y, axis, 0)[~varies], 0)
    if varies.any():
        kept = np.compress(varies, x, axis=axis)
        expected = reference.training(kept, axis=axis, eps=0.0)
        assert_forward(np.compress(varies, y, axis=axis), kept, expected, axis=axis)


# What it computes


@by_dtype
@by_shape
def test_the_oracle(shape, axis, dtype):
    x = cases.values(shape, dtype, loc=3.0, seed=5)
    np.moveaxis(x, axis, 0)[0] = 0.1  # a constant feature
    count, mean, m2 = reference.moments(x, axis)
    scaler = nbbn.Standardizer(axis=axis).fit(x)
    assert (scaler.n_samples_seen_, scaler.n_features_in_) == (count, shape[axis])
    assert type(scaler.n_samples_seen_) is int
    assert_within(scaler.mean_, mean, mean_error(x, axis))
    assert_within(scaler.var_, m2 / count, var_error(x, m2 / count) + mean_error(x, axis) ** 2)
    np.testing.assert_array_equal(scaler.scale_, np.where(scaler.var_ == 0, 1, np.sqrt(scaler.var_)))
    assert [getattr(scaler, name).dtype for name in ATTRIBUTES] == [np.float64] * 3
    y = scaler.transform(x)
    assert_standardized(y, x, axis)
    assert_same_bits(nbbn.Standardizer(axis=axis).fit_transform(x), y)


@by_shape
@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_every_layout(shape, axis, layout):
    x = cases.LAYOUTS[layout](cases.values(shape))
    scaler = nbbn.Standardizer(axis=axis).fit(x)
    y = scaler.transform(x)
    assert_standardized(y, x, axis)
    assert_same_bits(scaler.transform(np.array(x, order="C")), y)
    for call in (scaler.transform, scaler.inverse_transform):
        out = np.full_like(x, 777)
        assert call(x, out=out) is out
        assert_same_bits(out, call(x))
    if layout in cases.WRITABLE:
        inside = x.copy(order="K")
        assert scaler.fit_transform(inside, out=inside) is inside
        assert_same_bits(inside, y)


@pytest.mark.parametrize("with_mean", [True, False])
@pytest.mark.parametrize("with_std", [True, False])
@pytest.mark.parametrize("shape", [(40, 5), (4, 3, 5)])
def test_the_mean_or_the_deviation_alone(with_mean, with_std, shape):
    x = cases.values(shape, np.float64, loc=4.0)
    scaler = nbbn.Standardizer(with_mean=with_mean, with_std=with_std).fit(x)
    assert (scaler.mean_ is None) == (not with_mean and not with_std)
    assert (scaler.var_ is None, scaler.scale_ is None) == (not with_std, not with_std)
    count, mean, m2 = reference.moments(x, -1)
    expected = (x - mean * with_mean) / (np.sqrt(m2 / count) if with_std else 1)
    y = scaler.transform(x)
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(scaler.inverse_transform(y), x, rtol=1e-13)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 2.0**15, 2.0**19, 1e6, -1e6])
@pytest.mark.parametrize("shape", [(200, 3), (3000, 17)])
def test_float32_with_a_large_mean(ratio, shape):
    x = cases.values(shape, loc=ratio, scale=1.0)
    scaler = nbbn.Standardizer()
    y = scaler.fit_transform(x)
    count, _, m2 = reference.moments(x)
    assert_within(scaler.var_, m2 / count, 1e-6 * m2 / count)
    assert_forward(y, x, reference.training(x, eps=0.0))
    back = scaler.inverse_transform(y)
    if abs(ratio) > 100:
        assert_same_bits(back, x)
    deviation = np.abs(x - scaler.mean_)
    assert_within(back, x, eps_of(np.float32) * (np.abs(x) / 2 + 10 * deviation))


def test_float64_knows_the_mean_better_than_float64_can_say():
    x = cases.values((500, 4), np.float64, loc=1e6, scale=1.0)
    expected = reference.training(x, eps=0.0)
    y = nbbn.Standardizer().fit_transform(x)
    # with the mean rounded to float64 it would be off by up to 6e-11
    assert_within(y, expected.y, 8 * eps_of(np.float64) * (np.abs(expected.y) + 1.0))


@pytest.mark.parametrize("exponent", [-140, -127, 110, 126])
@pytest.mark.parametrize("shape", [(64, 3), (4, 3, 8)])
def test_float32_far_from_one(exponent, shape):
    small = cases.values(shape, np.float64, scale=1.0, loc=0.0).round(1)
    x = np.ldexp(small, exponent).astype(np.float32)
    scaler = nbbn.Standardizer()
    y = scaler.fit_transform(x)
    assert_standardized(y, x)
    assert_within(scaler.inverse_transform(y), x, 8 * eps_of(np.float32) * np.abs(x).max())
    inside = x.copy()
    assert_same_bits(scaler.transform(inside, out=inside), y)


def test_what_float32_cannot_hold_comes_back_infinite():
    scaler = nbbn.Standardizer().fit(np.array([[1e100], [-1e100]]))
    found = scaler.inverse_transform(np.array([[2.0], [-2.0], [0.0]], np.float32))
    np.testing.assert_array_equal(found, np.array([[np.inf], [-np.inf], [0.0]], np.float32))


@example([(1, 2.0**101, 1e50)])
@example([(1, 0.0, 1e65)])
@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from([0.5, 1, 3, 1e4, 1e17]), st.floats(), st.floats(min_value=0)), min_size=1),
)
def test_features_that_need_a_closer_look_are_never_called_usual(features):
    counts, mean, m2 = np.array(features, dtype=np.float64).T
    zeros = np.zeros(mean.size)
    moments = _features.FeatureMoments(counts, mean, zeros, m2, zeros)
    usual = _dataset._usual_variances(moments)
    if usual is not None:
        np.testing.assert_array_equal(moments.variances_to_divide_by(), usual)
        assert not _dataset._is_wide(moments.means(), usual)


@by_dtype
@pytest.mark.parametrize("value", [0.1, -1 / 3, 0.0, 123456.789, 1e30])
@pytest.mark.parametrize("rows", [1, 2, 1000, 70001])
def test_a_constant_feature_becomes_0(value, rows, dtype):
    x = cases.values((rows, 3), dtype)
    x[:, 1] = value
    scaler = nbbn.Standardizer()
    for chunk in np.array_split(x, min(rows, 3)):
        scaler.partial_fit(chunk)
    assert (scaler.mean_[1], scaler.var_[1], scaler.scale_[1]) == (x[0, 1], 0.0, 1.0)
    y = scaler.transform(x)
    np.testing.assert_array_equal(y[:, 1], 0)
    np.testing.assert_array_equal(scaler.inverse_transform(y)[:, 1], x[:, 1])


# Chunks


@bounded
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=12).filter(any),
    st.sampled_from([0.0, 1.0, 1e3, 1e6]),
    st.sampled_from(cases.DTYPES),
    st.randoms(use_true_random=False),
)
def test_chunks_in_any_sizes_and_order_agree_with_the_whole(sizes, ratio, dtype, random):
    x = cases.values((sum(sizes), 3), dtype, loc=ratio, scale=1.0, seed=len(sizes))
    chunks = np.split(x, np.cumsum(sizes)[:-1])
    random.shuffle(chunks)
    scaler = nbbn.Standardizer()
    for chunk in chunks:
        scaler.partial_fit(chunk)
    count, mean, m2 = reference.moments(x)
    assert scaler.n_samples_seen_ == count
    ulp = eps_of(np.float64)
    assert_within(scaler.mean_, mean, 8 * ulp * np.maximum(np.abs(mean), 1.0))
    assert_within(scaler.var_, m2 / count, 16 * ulp * m2 / count)
    if dtype is np.float32 and count > 1:
        assert_standardized(scaler.transform(x), x)


@bounded
@given(
    st.integers(2, 50),
    st.integers(1, 20),
    st.sampled_from([0.0, 1e-3, 1.0, 30.0, 1e4]),
    st.sampled_from([1e-6, 1.0, 1e5]),
    st.sampled_from(cases.DTYPES),
    st.sampled_from(cases.KEEPING),
)
def test_the_inverse_takes_it_back(rows, features, ratio, scale, dtype, layout):
    x = cases.values((rows, features), dtype, loc=ratio * scale, scale=scale)
    x = cases.LAYOUTS[layout](x)
    scaler = nbbn.Standardizer().fit(x)
    back = scaler.inverse_transform(scaler.transform(x))
    assert back.dtype == dtype
    deviation = np.abs(x - scaler.mean_)
    assert_within(back, x, eps_of(dtype) * (np.abs(x) + 12 * deviation))


def test_fit_begins_anew_and_partial_fit_goes_on():
    x, more = cases.values((30, 3), loc=9.0), cases.values((20, 3), seed=3)
    scaler = nbbn.Standardizer().fit(more).fit(x)
    assert_same_statistics(scaler, nbbn.Standardizer().fit(x))
    scaler.partial_fit(more)
    assert scaler.n_samples_seen_ == 50
    first = nbbn.Standardizer().partial_fit(x)
    assert_same_statistics(first, nbbn.Standardizer().fit(x))
    assert nbbn.Standardizer().fit(cases.values((5, 7))).fit(x).n_features_in_ == 3


@pytest.mark.parametrize("options", [{}, {"with_mean": False}, {"with_std": False}, {"axis": 0}], ids=str)
@pytest.mark.parametrize("case", ["as it is", "a constant feature", "far from one", "a gap", "weights"])
@by_dtype
def test_coefficients_found_with_the_statistics_are_those_of_the_statistics(dtype, case, options):
    x = cases.values((7, 50) if "axis" in options else (50, 7), dtype, loc=3.0)
    weights = cases.values(50, np.float64, seed=2) ** 2 if case == "weights" else None
    feature = x if "axis" in options else x.T
    if case == "a constant feature":
        feature[2] = 0.1
    if case == "far from one":
        feature[2] *= 2.0**110
    if case == "a gap":
        feature[2, 5] = np.nan
    scaler = nbbn.Standardizer(**options)
    y = scaler.fit_transform(x, sample_weight=weights)
    assert_as_of_statistics_alone(scaler, x, y)
    scaler.partial_fit(2 * x + 1, sample_weight=weights)
    assert_as_of_statistics_alone(scaler, x, scaler.transform(x))


def assert_as_of_statistics_alone(scaler, x, y):
    """A pickle holds no coefficients."""
    again = pickle.loads(pickle.dumps(scaler))
    assert_same_bits(again.transform(x), y)
    assert_same_bits(again.inverse_transform(y), scaler.inverse_transform(y))
    half = x.astype(np.float16 if np.abs(x).max() < 1e4 else np.float64)  # computed with another type, perhaps
    assert_same_bits(again.transform(half), scaler.transform(half))


def test_what_is_known_of_a_shape_is_of_its_axis():
    x = cases.values((50, 50), np.float64)
    scaler = nbbn.Standardizer()
    for axis in (1, 0, 1):
        scaler.set_params(axis=axis).fit(x)
        scaler.transform(x)
        assert_standardized(scaler.transform(x), x, axis)


def test_an_empty_chunk_changes_nothing():
    x = cases.values((30, 3))
    scaler = nbbn.Standardizer().partial_fit(x[:0])
    assert not hasattr(scaler, "mean_")
    scaler.partial_fit(x)
    before = statistics(scaler)
    assert scaler.partial_fit(x[:0]) is scaler
    for a, b in zip(before, statistics(scaler), strict=True):
        np.testing.assert_array_equal(a, b)
    assert scaler.transform(x[:0]).shape == (0, 3)
    with pytest.raises(ValueError, match=r"^X: expected 3 features along axis 1, got shape \(0, 2\)"):
        scaler.partial_fit(x[:0, :2])


def in_small_chunks(x, rows=4):
    scaler = nbbn.Standardizer()
    for start in range(0, len(x), rows):
        scaler.partial_fit(x[start : start + rows])
    return scaler


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_small_chunks_wait_and_are_all_counted(dtype):
    x = cases.values((4001, 3), dtype, loc=1e3, scale=1.0)
    scaler = in_small_chunks(x)
    count, mean, m2 = reference.moments(x)
    for read in (
        lambda s: s.transform(x),
        lambda s: s.n_samples_seen_,
        lambda s: pickle.dumps(s),
        lambda s: s.partial_fit(x[:0]),
        lambda s: s.get_feature_names_out(),
    ):
        read(in_small_chunks(x[:100]))
    assert scaler.n_samples_seen_ == count
    assert_within(scaler.mean_, mean, 8 * eps_of(np.float64) * np.abs(mean))
    assert_within(scaler.var_, m2 / count, 16 * eps_of(np.float64) * m2 / count)
    again = pickle.loads(pickle.dumps(in_small_chunks(x)))
    assert_same_statistics(again, scaler)
    assert_same_statistics(copy.deepcopy(in_small_chunks(x)), scaler)
    assert in_small_chunks(x).fit(x[:7]).n_samples_seen_ == 7


@by_dtype
def test_looks_after_every_chunk_add_no_rounding(dtype):
    """Whoever looks gets what came so far, and what is looked at is not what later chunks are added to."""
    x = cases.values((6000, 5), dtype, loc=3.0)
    scaler = nbbn.Standardizer().fit(x[:8])
    for stop in range(16, len(x) + 1, 8):
        scaler.partial_fit(x[stop - 8 : stop])
        y = scaler.transform(x[:2])
        if stop in (16, 24, 1000, 2000, len(x)):
            count, mean, m2 = reference.moments(x[:stop])
            assert scaler.n_samples_seen_ == count == stop
            assert_within(scaler.mean_, mean, mean_error(x[:stop]))
            assert_within(scaler.var_, m2 / count, var_error(x[:stop], m2 / count) + mean_error(x[:stop]) ** 2)
            assert_same_bits(pickle.loads(pickle.dumps(scaler)).transform(x[:2]), y)
    assert_standardized(scaler.transform(x), x)


def test_what_is_refused_or_empty_changes_nothing_that_was_seen():
    x, bad = cases.values((80, 3)), np.full((2, 3), np.inf, np.float32)
    for rows in range(8, 72, 8):
        scaler = nbbn.Standardizer().fit(x[:5]).partial_fit(x[:rows])
        for dtype in cases.DTYPES:
            before = statistics(scaler)
            with pytest.raises(ValueError, match=r"^X: expected finite values"):
                scaler.partial_fit(bad.astype(dtype))
            scaler.partial_fit(x[:0].astype(dtype))
            for a, b in zip(statistics(scaler), before, strict=True):
                np.testing.assert_array_equal(a, b)


def test_what_was_seen_is_made_once():
    scaler = in_small_chunks(cases.values((40, 3)))
    assert scaler._known() is scaler._known()
    scaler.partial_fit(cases.values((4, 3)))
    assert scaler._known() is scaler._known()


def test_a_look_while_another_thread_keeps_a_chunk():
    """What was seen is gone from one moment to the next: it is read once."""
    scaler = in_small_chunks(cases.values((40, 3)))
    expected = scaler._known()
    left = iter([expected])
    scaler._chunks = type("Fading", (), {"seen": property(lambda chunks: next(left, None))})()
    assert scaler._known() is expected


def test_a_look_while_another_thread_takes_the_chunks():
    """It sees them, whoever merges them first."""
    x = cases.values((40, 3))
    scaler, others = in_small_chunks(x), iter([lambda scaler: scaler.partial_fit(np.ones((300, 300, 3))[0])])

    class Lock:
        def __init__(self, lock):
            self.lock = lock

        def __enter__(self):
            self.lock.__enter__()
            next(others, lambda scaler: None)(scaler)

        def __exit__(self, *error):
            return self.lock.__exit__(*error)

    scaler._lock = Lock(scaler._lock)
    assert scaler.n_samples_seen_ == 340


def test_chunks_that_wait_are_copies():
    x = cases.values((40, 3))
    chunk, scaler = np.empty((4, 3), np.float32), nbbn.Standardizer()
    for start in range(0, 40, 4):
        chunk[:] = x[start : start + 4]
        scaler.partial_fit(chunk)
    np.testing.assert_allclose(scaler.mean_, x.mean(axis=0, dtype=np.float64), rtol=1e-12)


def test_what_is_wrong_with_a_small_chunk_is_told_at_once():
    x = cases.values((40, 3))
    scaler = in_small_chunks(x)
    bad = x[:4].copy()
    bad[2, 1] = np.inf
    with pytest.raises(ValueError, match=r"^X: expected finite values"):
        scaler.partial_fit(bad)
    with pytest.raises(ValueError, match=r"^X: expected 3 features"):
        scaler.partial_fit(x[:4, :2])
    bad[2, 1] = np.nan
    scaler.partial_fit(bad).partial_fit(x[:4])
    assert scaler.n_samples_seen_.tolist() == [48, 47, 48]
    with np.errstate(all="raise"):
        scaler.partial_fit(np.full((4, 3), 1e200))
    assert scaler.n_samples_seen_.tolist() == [52, 51, 52]


def test_parameters_of_small_chunks_count_too():
    x = cases.values((40, 3))
    scaler = in_small_chunks(x).set_params(with_mean=False)
    scaler.partial_fit(x[:4])
    assert scaler.n_samples_seen_ == 44
    y = scaler.transform(x)
    np.testing.assert_allclose(y, x / scaler.scale_, rtol=1e-6)


# Types


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(60, 5), (4, 7, 5)])
def test_half_types_are_computed_as_float32_and_rounded_once(name, shape):
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="it has bfloat16")
    x = cases.values(shape).astype(name)
    wide = x.astype(np.float32)
    scaler = nbbn.Standardizer().fit(x)
    assert_same_statistics(scaler, nbbn.Standardizer().fit(wide))
    for call in (scaler.transform, scaler.inverse_transform):
        assert_same_bits(call(x), call(wide).astype(name))


@pytest.mark.parametrize("shape", [(60, 5), (4, 6, 6, 3)])
def test_bytes_become_float32(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    scaler = nbbn.Standardizer()
    y = scaler.fit_transform(x)
    assert_standardized(y, x.astype(np.float32))
    out = np.empty(shape, np.float32)
    assert scaler.transform(x, out=out) is out
    assert_same_bits(out, y)
    back = scaler.inverse_transform(x)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, x * scaler.scale_ + scaler.mean_, rtol=1e-6)


def test_statistics_of_one_type_serve_another():
    x = cases.values((60, 5), np.float64, loc=1e3)
    scaler = nbbn.Standardizer().fit(x)
    narrow = x.astype(np.float32)
    exact = (narrow.astype(np.float64) - scaler.mean_) / scaler.scale_
    assert_within(scaler.transform(narrow), exact, 8 * eps_of(np.float32) * np.abs(exact))
    y = scaler.transform(narrow)
    back = y.astype(np.float64) * scaler.scale_ + scaler.mean_
    half = eps_of(np.float32) / 2
    bound = half * (np.abs(back) + 4 * np.abs(back - scaler.mean_))
    assert_within(scaler.inverse_transform(y), back, bound)


def test_lists_of_floats_and_other_arrays_are_read():
    torch = pytest.importorskip("torch", reason="its tensors come without a copy")
    x = cases.values((9, 3))
    expected = nbbn.Standardizer().fit_transform(x)
    assert_same_bits(nbbn.Standardizer().fit_transform(torch.from_numpy(x)), expected)
    nested = nbbn.Standardizer().fit_transform(x.astype(np.float64).tolist())
    assert nested.dtype == np.float64


# Errors: one sentence, and nothing has changed

X = cases.values((8, 3))
BAD = {
    "complex": (X.astype(complex), TypeError, "X: expected dtype .*, got complex128"),
    "complex, a wrong value": (X.astype(complex), ValueError, "X: expected dtype .*, got complex128"),
    "dates": (X.astype("M8[s]"), TypeError, r"X: expected dtype float32, .*, got datetime64\[s\]"),
    "words": (np.array([["a", 1.0]], object), ValueError, "X: expected numbers, got .* 'a'"),
    "things": (np.array([[{}, 1.0]], object), TypeError, "X: expected numbers, got .* 'dict'"),
    "infinite": (np.where(X > 0, np.inf, X), ValueError, "X: expected finite values, or NaN"),
    "masked": (np.ma.masked_array(X), TypeError, "X: expected a plain array"),
    "no array": (None, TypeError, "X: expected dtype .*, got object"),
    "vector": (X[0], ValueError, r"X: expected two dimensions or more, got shape \(3,\)"),
    "number": (np.float32(3), ValueError, r"X: expected two dimensions or more, got shape \(\)"),
    "no feature": (X[:, :0], ValueError, r"X: expected at least one feature, got shape \(8, 0\)"),
}  # fmt: skip
METHODS = ("fit", "partial_fit", "transform", "inverse_transform", "fit_transform")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("x", "error", "sentence"), BAD.values(), ids=BAD)
def test_wrong_data(method, x, error, sentence):
    scaler = nbbn.Standardizer().fit(X)
    with pytest.raises(error, match=f"^{sentence}"):
        getattr(scaler, method)(x)
    assert_same_statistics(scaler, nbbn.Standardizer().fit(X))


@pytest.mark.parametrize("method", ["partial_fit", "transform", "inverse_transform"])
def test_another_number_of_features(method):
    scaler = nbbn.Standardizer().fit(X)
    sentence = r"^X: expected 3 features along axis 1, got shape \(8, 2\) \(X has 2 features"
    for layout in (np.ascontiguousarray, cases.strided):
        with pytest.raises(ValueError, match=sentence):
            getattr(scaler, method)(layout(X[:, :2]))
    assert_same_statistics(scaler, nbbn.Standardizer().fit(X))


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_a_number_of_features_that_was_right_before_the_last_fit(method):
    scaler = nbbn.Standardizer().fit(X)
    getattr(scaler, method)(X)
    for features in (1, 2):
        scaler.fit(X[:, :features])
        with pytest.raises(ValueError, match=f"^X: expected {features} features along axis 1, got shape "):
            getattr(scaler, method)(X)


@pytest.mark.parametrize("method", ["fit", "fit_transform"])
def test_no_samples(method):
    scaler = nbbn.Standardizer().fit(X)
    with pytest.raises(ValueError, match=r"^X: expected at least one sample, got shape \(0, 3\)"):
        getattr(scaler, method)(X[:0])
    assert scaler.n_samples_seen_ == 8


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"axis": 2}, ValueError, "axis: expected from -2 to 1"),
        ({"axis": 1.0}, TypeError, "axis: expected an integer"),
        ({"with_mean": 1}, TypeError, "with_mean: expected True or False"),
        ({"with_std": "no"}, TypeError, "with_std: expected True or False"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
def test_wrong_parameters_are_told_where_they_are_used(options, error, sentence, method):
    scaler = nbbn.Standardizer(**options)
    with pytest.raises(error, match=f"^{sentence}"):
        getattr(scaler, method)(X)
    assert not hasattr(scaler, "mean_")


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "fit_transform"])
@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (np.zeros((8, 3)), "out: expected dtype float32"),
        (np.zeros((8, 2), np.float32), "out: expected shape"),
        (cases.read_only(np.zeros((8, 3), np.float32)), "out: expected a writable array"),
        ([[0.0]], "out: expected an array to write to"),
    ],
)
def test_a_wrong_out_is_told_before_anything_is_fitted_or_written(method, out, sentence):
    scaler, before = nbbn.Standardizer().fit(X + 1), np.array(out)
    with pytest.raises(ValueError, match=f"^{sentence}"):
        getattr(scaler, method)(X, out=out)
    assert_same_statistics(scaler, nbbn.Standardizer().fit(X + 1))
    np.testing.assert_array_equal(out, before)


def test_an_overlapping_out_gets_the_right_values():
    buffer = cases.values((9, 3))
    x = buffer[:8].copy()
    scaler = nbbn.Standardizer().fit(x)
    expected = scaler.transform(x)
    assert_same_bits(scaler.transform(buffer[:8], out=buffer[1:]), expected)


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "get_feature_names_out"])
def test_before_fitting(method):
    sentence = "^Standardizer: expected fit or partial_fit first"
    scaler = nbbn.Standardizer()
    for kind in (ValueError, AttributeError):
        with pytest.raises(kind, match=sentence):
            getattr(scaler, method)(X)
    for name in (*ATTRIBUTES, "n_samples_seen_", "n_features_in_", "feature_names_in_"):
        with pytest.raises(AttributeError, match=sentence):
            getattr(scaler, name)


# State


def test_parameters_count_from_the_next_fit_on():
    scaler = nbbn.Standardizer().fit(X)
    expected = scaler.transform(X)
    scaler.set_params(with_mean=False, axis=0)
    for x in (X, cases.strided(X)):
        assert_same_bits(scaler.transform(x), expected)
    assert scaler.fit(X).n_features_in_ == 8


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_copies_and_pickles_go_on_where_they_were(clone):
    x = cases.values((30, 3), loc=1e6)
    scaler = nbbn.Standardizer(with_mean=False).partial_fit(x[:7])
    scaler.transform(x)
    other = clone(scaler)
    assert_same_statistics(other, scaler)
    assert repr(other) == "Standardizer(with_mean=False), fitted: 3 features, 7 samples"
    assert_same_bits(other.transform(x), scaler.transform(x))
    other.partial_fit(x[7:])
    assert scaler.n_samples_seen_ == 7
    assert_same_statistics(other, scaler.partial_fit(x[7:]))
    assert not hasattr(clone(nbbn.Standardizer()), "mean_")


def test_statistics_cannot_be_torn():
    scaler = nbbn.Standardizer().fit(X)
    with pytest.raises(ValueError, match="read-only"):
        scaler.mean_[0] = 9
    with pytest.raises(AttributeError):
        scaler.mean_ = np.zeros(3)
    scaler.var_[:], scaler.scale_[:] = 9, 9
    assert_same_statistics(scaler, nbbn.Standardizer().fit(X))


@pytest.mark.parametrize("shape", [(4, 3000), (2, 2, 3000)])
def test_a_transform_beside_a_fit_sees_statistics_of_one_moment(shape):
    """A mixture of the statistics of the two data sets would give values that neither gives."""
    near = cases.values(shape, np.float64, loc=0.0, scale=1.0)
    sets = {3.0: near, 1e9: near * 1024 + 2.0**30}
    scaler = nbbn.Standardizer().fit(near)
    low, high = (nbbn.Standardizer().fit(x) for x in sets.values())
    allowed = [s.transform(near).tobytes() for s in (low, high)]
    stop = threading.Event()

    def fit():
        while not stop.is_set():
            for x in sets.values():
                scaler.fit(x)

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(fit)
        try:
            found = {scaler.transform(near).tobytes() for _ in range(3000)}
        finally:
            stop.set()
        writer.result()
    assert found <= set(allowed)


def test_chunks_of_many_threads_are_all_counted():
    chunks = [cases.values((200, 3), seed=k) for k in range(64)]
    scaler = nbbn.Standardizer()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(scaler.partial_fit, chunks))
    count, mean, m2 = reference.moments(np.concatenate(chunks))
    assert scaler.n_samples_seen_ == count
    assert_within(scaler.mean_, mean, 8 * eps_of(np.float64))
    assert_within(scaler.var_, m2 / count, 16 * eps_of(np.float64) * m2 / count)


def test_chunks_are_not_lost_between_reading_and_writing(monkeypatch):
    """Every thread stands in the merge at once, unless they wait for each other."""
    merge = nbbn.Moments.merge
    scaler = nbbn.Standardizer().fit(X)
    start = threading.Barrier(4)

    def slow(moments, other):
        found = merge(moments, other)
        threading.Event().wait(0.02)
        return found

    monkeypatch.setattr(nbbn.Moments, "merge", slow)

    def learn(_):
        start.wait()
        scaler.partial_fit(X)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(learn, range(4)))
    assert scaler.n_samples_seen_ == 5 * 8


def test_repr_tells_whether_it_was_fitted():
    scaler = nbbn.Standardizer(with_mean=False)
    assert repr(scaler) == "Standardizer(with_mean=False)"
    x = cases.values((178, 13))
    assert repr(scaler.fit(x)) == "Standardizer(with_mean=False), fitted: 13 features, 178 samples"
    assert "186 samples" in repr(scaler.partial_fit(x[:8]))
    x[0, 0] = np.nan
    assert "364 samples" in repr(scaler.partial_fit(x))
    for _ in range(1000):  # more than are kept
        scaler.partial_fit(x[1:3])
    assert "2364 samples" in repr(scaler)
    huge = nbbn.Standardizer().fit(x[:3, 1:], sample_weight=4115226)
    assert "12345678 samples" in repr(huge)


@pytest.mark.parametrize("missing", [False, True])
def test_a_feature_that_is_constant_but_for_rounding_is_not_scaled(missing):
    x = np.ones((100, 2))
    x[::2] = np.nextafter(1.0, 2.0), 1.0001
    if missing:
        x[3] = np.nan
    scaler = nbbn.Standardizer().fit(x)
    assert scaler.scale_[0] == 1.0
    assert 4e-5 < scaler.scale_[1] < 6e-5


def test_small_chunks_after_a_fit_of_other_features():
    narrow, wide = cases.values((40, 3), np.float64), cases.values((60, 5), np.float64, seed=1)
    scaler = nbbn.Standardizer()
    for x in (narrow, wide):
        scaler.fit(x[:20])
        for k in range(20, len(x), 4):
            scaler.partial_fit(x[k : k + 4])
        expected = nbbn.Standardizer().fit(x)
        np.testing.assert_allclose(scaler.mean_, expected.mean_, rtol=1e-14)
        np.testing.assert_allclose(scaler.var_, expected.var_, rtol=1e-14)
        assert scaler.n_samples_seen_ == len(x)
