"""Standardizer on data as people have it: missing values, weights, integers, features that are nearly constant."""

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn
from nbbn.standardizer import _blocks, _features

bounded = settings(max_examples=min(80, settings.default.max_examples))
FLOATS = [
    *(pytest.param(name, marks=pytest.mark.long) for name in ("float16", "bfloat16")),
    "float32",
    "float64",
]


def table(shape, dtype, share=0.2, seed=0, loc=3.0):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="it has bfloat16")
    x = cases.values(shape, np.float64, loc=loc, scale=1.0, seed=seed)
    x[np.random.default_rng(seed).random(shape) < share] = np.nan
    return x.astype(dtype)


def assert_statistics(scaler, x, axis, weights=None, factor=16):
    """Of each feature by itself, from the values it has, in exact arithmetic."""
    columns = np.moveaxis(x.astype(np.float64), axis, 0)
    count = np.broadcast_to(scaler.n_samples_seen_, len(columns))
    for c, column in enumerate(columns):
        w = np.ones(column.shape)
        if weights is not None:
            w = w * weights.reshape(-1, *[1] * (column.ndim - 1))
        there = ~np.isnan(column)
        values, w = column[there], w[there]
        assert count[c] == pytest.approx(w.sum())
        if not w.sum():
            assert np.isnan([scaler.mean_[c], scaler.var_[c]]).all()
            continue
        mean = np.float64((values.astype(np.longdouble) * w).sum() / w.sum())
        var = np.float64((w * (values - np.longdouble(mean)) ** 2).sum() / w.sum())
        ulp = factor * eps_of(np.float64)
        assert abs(scaler.mean_[c] - mean) <= ulp * max(abs(mean), np.sqrt(var))
        assert abs(scaler.var_[c] - var) <= ulp * var


@pytest.fixture(params=["whole", "in pieces"])
def pieces(request, monkeypatch):
    """Also with pieces and blocks so small that all ways are gone."""
    if request.param == "in pieces":
        for name, value in (("_PIECE", 300), ("_FIRST", 50), ("BLOCK", 60)):
            monkeypatch.setattr(_features, name, value)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("shape", "axis"), [((40, 5), 1), ((700, 3), -1), ((3, 90), 0), ((6, 4, 5), 2), ((7, 3, 40), 1)]
)
@pytest.mark.parametrize("order", "CF")
def test_missing_values_are_left_out(shape, axis, order, weighted, dtype, pieces):
    x = np.asarray(table(shape, dtype), order=order)
    weights = None
    if weighted:
        number = shape[0 if axis % len(shape) else 1]
        weights = np.random.default_rng(1).integers(0, 3, number) / 2
    scaler = nbbn.Standardizer(axis=axis).fit(x, sample_weight=weights)
    assert_statistics(scaler, x, axis, weights)
    y = scaler.transform(x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(np.isnan(y.astype(np.float32)), np.isnan(x.astype(np.float32)))
    wide, at = x.astype(np.float64), [1] * x.ndim
    at[axis] = -1
    exact = (wide - scaler.mean_.reshape(at)) / scaler.scale_.reshape(at)
    there = ~np.isnan(exact)
    unit, far = float(_finfo(x.dtype).eps), np.abs(scaler.mean_ / scaler.scale_).max()
    bound = 8 * unit * np.abs(exact) + 8 * eps_of(np.float64) * (1 + far)
    assert_within(y.astype(np.float64)[there], exact[there], bound[there])
    assert_same_bits(nbbn.Standardizer(axis=axis).fit_transform(x, sample_weight=weights), y)


def _finfo(dtype):
    if dtype.kind == "f":
        return np.finfo(dtype)
    import ml_dtypes

    return ml_dtypes.finfo(dtype)


@pytest.mark.parametrize("where", ["a column", "a row", "all", "the first half", "one", "none"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("loc", [0.0, 1e6, -1e6])
def test_gaps_anywhere(where, dtype, loc, pieces):
    x = cases.values((400, 6), dtype, loc=loc, scale=1.0)
    place = {"a column": np.s_[:, 2], "a row": np.s_[77], "all": np.s_[:], "none": np.s_[:0]}
    place |= {"the first half": np.s_[:200], "one": np.s_[399, 0]}
    x[place[where]] = np.nan
    assert_statistics(nbbn.Standardizer().fit(x), x, 1)
    chunks = nbbn.Standardizer()
    for part in np.array_split(x, 7):
        chunks.partial_fit(part)
    assert_statistics(chunks, x, 1)


def test_features_without_gaps_keep_their_bits():
    x = table((3000, 8), np.float32, share=0)
    whole = nbbn.Standardizer().fit(x)
    y = whole.transform(x)
    x[5, 3] = np.nan
    scaler = nbbn.Standardizer().fit(x)
    rest = [0, 1, 2, 4, 5, 6, 7]
    np.testing.assert_allclose(scaler.mean_[rest], whole.mean_[rest], rtol=1e-15)
    np.testing.assert_allclose(scaler.transform(x)[:, rest], y[:, rest], rtol=1e-6)
    assert type(whole.n_samples_seen_) is int
    assert scaler.n_samples_seen_.dtype == np.int64


@bounded
@given(
    st.integers(1, 60),
    st.integers(1, 9),
    st.floats(0, 1),
    st.integers(0, 99),
    st.sampled_from(cases.DTYPES),
)
def test_any_gaps(rows, features, share, seed, dtype):
    x = table((rows, features), dtype, share, seed)
    assert_statistics(nbbn.Standardizer().fit(x), x, 1)


def test_an_all_missing_feature_stays_missing_until_it_has_values():
    x = np.array([[1.0, np.nan], [3.0, np.nan]])
    scaler = nbbn.Standardizer().fit(x)
    assert scaler.n_samples_seen_.tolist() == [2, 0]
    assert np.isnan([scaler.mean_[1], scaler.var_[1], scaler.scale_[1]]).all()
    np.testing.assert_array_equal(scaler.transform([[1.0, 5.0]]), [[-1.0, np.nan]])
    scaler.partial_fit([[2.0, 5.0], [2.0, 7.0]])
    assert scaler.n_samples_seen_.tolist() == [4, 2]
    assert (scaler.mean_[1], scaler.var_[1]) == (6.0, 1.0)


# Infinite values


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "float32", ">f4", "float64", "O"])
def test_infinite_values_are_refused(bad, gaps, dtype):
    x = table((50, 4), np.float32, 0.2 * gaps)
    scaler = nbbn.Standardizer().fit(x)
    before = scaler.mean_
    x[7, 2] = bad
    x = x.astype(dtype)
    for method in ("fit", "partial_fit", "transform", "inverse_transform", "fit_transform"):
        with pytest.raises(ValueError, match=r"^X: expected finite values, or NaN where one is missing"):
            getattr(scaler, method)(x)
    assert_same_bits(scaler.mean_, before)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(500, 3), (40_000, 7), (300, 600)])
@pytest.mark.parametrize("order", "CF")
def test_the_pass_that_writes_finds_an_infinite_value_anywhere(shape, order, dtype):
    """Also in arrays like one that was met before, in several threads, and beside missing values."""
    x = np.asarray(table(shape, dtype), order=order)
    scaler = nbbn.Standardizer().fit(x)
    scaler.transform(x)
    rng = np.random.default_rng(0)
    places = [0, x.size - 1, *rng.integers(0, x.size, 3)]
    for place in places:
        bad = x.copy(order="K")
        bad.flat[place] = -np.inf
        for method in ("transform", "inverse_transform"):
            with pytest.raises(ValueError, match=r"^X: expected finite values"):
                getattr(scaler, method)(bad)
    largest = np.full(shape, np.finfo(dtype).max, dtype, order=order)
    assert scaler.transform(largest).shape == shape


@pytest.mark.parametrize("method", ["transform", "inverse_transform", "fit_transform"])
def test_nothing_is_written_over_for_an_infinite_value(method):
    x = table((50, 4), np.float32)
    scaler = nbbn.Standardizer().fit(x)
    x[49, 3] = np.inf
    given, own = x.copy(), nbbn.Standardizer(copy=False).fit(x[:49])
    for call in (
        lambda: getattr(scaler, method)(x, out=given),
        lambda: getattr(own, method)(given),
    ):
        with pytest.raises(ValueError, match=r"^X: expected finite values"):
            call()
        assert_same_bits(given, x)


def test_sums_that_overflow_are_no_infinite_values():
    x = np.array([[1e308, 1.0], [1e308, 2.0], [-1e308, np.nan]])
    scaler = nbbn.Standardizer().fit(x)
    assert scaler.mean_[1] == 1.5
    scaler.transform(x)
    near = np.array([[1e200, 1.0], [-1e200, 2.0]])
    assert np.isfinite(nbbn.Standardizer(with_mean=False, with_std=False).fit_transform(near)).all()


# Types


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "i8", "u8", "?", ">i4", ">f8", "<f8", "O"])
@pytest.mark.parametrize("shape", [(40, 5), (4, 3, 5)])
def test_other_numbers_become_float64(dtype, shape, pieces):
    x = np.random.default_rng(0).integers(0, 9, shape).astype(dtype)
    wide = x.astype(np.float64)
    scaler, expected = nbbn.Standardizer().fit(x), nbbn.Standardizer().fit(wide)
    np.testing.assert_allclose(scaler.mean_, expected.mean_, rtol=1e-15)
    np.testing.assert_allclose(scaler.var_, expected.var_, rtol=1e-14)
    for method in ("transform", "inverse_transform"):
        y = getattr(scaler, method)(x)
        assert y.dtype == np.float64
        np.testing.assert_allclose(y, getattr(expected, method)(wide), rtol=1e-12, atol=1e-14)
        out = np.empty(shape)
        assert getattr(scaler, method)(x, out=out) is out
        assert_same_bits(out, y)


def test_the_other_byte_order_keeps_its_precision():
    x = table((40, 5), np.float32)
    y = nbbn.Standardizer().fit_transform(x.astype(">f4"))
    assert y.dtype == np.float32 and y.dtype.isnative
    np.testing.assert_allclose(y, nbbn.Standardizer().fit_transform(x), rtol=1e-5, atol=1e-6)


def test_where_some_samples_weigh_nothing_they_may_not_be_infinite_either():
    x = np.array([[1.0], [3.0], [np.inf]], np.float32)
    with pytest.raises(ValueError, match=r"^X: expected finite values"):
        nbbn.Standardizer().fit_transform(x, sample_weight=[1, 1, 0])


def test_integers_are_widened_a_block_at_a_time(monkeypatch):
    sizes, widened = [], _features.widened
    monkeypatch.setattr(_features, "widened", lambda x: sizes.append(x.size) or widened(x))
    nbbn.Standardizer().fit(np.ones((100_000, 8), np.int8))
    assert sum(sizes) == 800_000 and max(sizes) <= _features.BLOCK


# Weights


def test_integer_weights_are_repetitions():
    x = table((30, 4), np.float64)
    weights = np.random.default_rng(0).integers(0, 4, 30)
    one = nbbn.Standardizer().fit(x, sample_weight=weights)
    other = nbbn.Standardizer().fit(np.repeat(x, weights, axis=0))
    np.testing.assert_allclose(one.mean_, other.mean_, rtol=1e-14)
    np.testing.assert_allclose(one.var_, other.var_, rtol=1e-13)
    np.testing.assert_array_equal(one.n_samples_seen_, other.n_samples_seen_)


def test_a_weight_for_all_and_weights_a_chunk():
    x = table((30, 4), np.float64, share=0)
    weights = np.linspace(0.5, 2, 30)
    scaler = nbbn.Standardizer()
    for part in (np.s_[:11], np.s_[11:]):
        scaler.partial_fit(x[part], sample_weight=weights[part])
    assert_statistics(scaler, x, 1, weights)
    assert type(scaler.n_samples_seen_) is float
    assert nbbn.Standardizer().fit(x, sample_weight=0.25).n_samples_seen_ == 7.5


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (
            np.ones((30, 1)),
            r"sample_weight: expected shape \(30,\), one a sample, or a number, got \(30, 1\)",
        ),
        (np.ones(29), r"sample_weight: expected shape \(30,\)"),
        (-np.ones(30), "sample_weight: expected finite numbers >= 0, got -1"),
        (np.full(30, np.nan), "sample_weight: expected finite numbers >= 0, got nan"),
        (np.zeros(30), "sample_weight: expected one above 0 at least"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "fit_transform"])
def test_wrong_weights(weights, sentence, method):
    scaler = nbbn.Standardizer()
    with pytest.raises(ValueError, match=f"^{sentence}"):
        getattr(scaler, method)(table((30, 4), np.float64), sample_weight=weights)
    assert not hasattr(scaler, "mean_")


# Features that are nearly constant


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_rounding_leaves_of_a_constant_feature_is_none(dtype):
    n, mean = 1000, 1e10
    x = np.full((n, 3), mean, np.float64)
    bound = (n * eps_of(np.float64) * mean) ** 2
    x[::2, 1] += np.sqrt(bound) / 1e9
    x[::2, 2] += 1e5
    scaler = nbbn.Standardizer().fit(x.astype(dtype))
    _, _, m2 = reference.moments(x.astype(dtype), 1)
    np.testing.assert_allclose(scaler.var_, m2 / n, rtol=1e-9)
    assert scaler.scale_.tolist() == [1.0, 1.0, np.sqrt(scaler.var_[2])]


def test_gaps_leave_a_constant_feature_constant():
    x = np.full((70_001, 2), 0.1)
    x[::3, 0] = x[5::7, 1] = np.nan
    scaler = nbbn.Standardizer().fit(x)
    assert scaler.mean_.tolist() == [0.1, 0.1]
    assert (scaler.var_.tolist(), scaler.scale_.tolist()) == ([0.0, 0.0], [1.0, 1.0])


# In place


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_in_place_where_asked_for(method):
    x = table((30, 4), np.float32)
    scaler = nbbn.Standardizer(copy=False).fit(x)
    expected = getattr(scaler, method)(x, copy=True)
    given = x.copy()
    assert getattr(scaler, method)(given) is given
    assert_same_bits(given, expected)
    given = x.copy()
    assert getattr(nbbn.Standardizer().fit(x), method)(given, False) is given
    for other in (cases.read_only(x), np.ones((3, 4), np.int8)):
        assert getattr(scaler, method)(other) is not other
    with pytest.raises(TypeError, match=r"^copy: expected True or False, got 'no'"):
        getattr(scaler, method)(x, copy="no")


def test_fit_transform_in_place():
    x = table((30, 4), np.float32)
    expected = nbbn.Standardizer().fit_transform(x)
    assert nbbn.Standardizer(copy=False).fit_transform(x) is x
    assert_same_bits(x, expected)


# Blocks


@pytest.mark.parametrize(("shape", "index"), [((10, 3), 1), ((3, 10), 0), ((7, 2, 5), 1), ((1, 9), 1)])
@pytest.mark.parametrize("most", [1, 7, 1000])
def test_places_cover_every_value_once(shape, index, most):
    seen = np.zeros(shape, int)
    for place in _blocks.cut(shape, index, most):
        assert seen[place].size
        seen[place] += 1
    assert (seen == 1).all()
