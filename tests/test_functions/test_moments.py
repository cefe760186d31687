"""batch_moments and the Moments value: counts, means, sums of squared deviations, merging."""

import copy
import functools
import inspect
import pickle
from fractions import Fraction

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of, mean_error, var_error

import nbbn

by_shape = pytest.mark.parametrize(("shape", "axis"), cases.SHAPES, ids=map(cases.case_id, cases.SHAPES))
LARGEST = np.finfo(np.float64).max
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)


def check_moments(moments, x, axis=1):
    count, mean, m2 = reference.moments(x, axis)
    assert moments.count == count
    assert_within(moments.mean, mean, mean_error(x, axis))
    assert_within(moments.m2, m2, var_error(x, m2))


@by_dtype
@by_shape
def test_moments_of_every_shape_and_axis(shape, axis, dtype):
    x = cases.values(shape, dtype)
    check_moments(nbbn.batch_moments(x, axis=axis), x, axis)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("shape", [(5, 6, 7, 7), (70, 12), (4, 3, 40)])
def test_moments_of_every_layout(shape, layout):
    x = cases.LAYOUTS[layout](cases.values(shape, loc=30.0))
    check_moments(nbbn.batch_moments(x), x)


@pytest.mark.parametrize("inner", cases.INNER_SIZES)
def test_moments_of_every_inner_size_around_the_simd_width(inner):
    x = cases.values((5, 3, inner), loc=100.0)
    check_moments(nbbn.batch_moments(x), x)


def test_count_is_a_float_and_the_arrays_are_float64():
    moments = nbbn.batch_moments(cases.values((4, 3, 5)))
    assert type(moments.count) is float
    assert moments.count == 20.0
    assert (moments.mean.dtype, moments.m2.dtype) == (np.float64, np.float64)
    assert (moments.mean.shape, moments.m2.shape) == ((3,), (3,))


@pytest.mark.parametrize("correction", [0, 1, 2])
def test_var_and_std_take_off_the_correction(correction):
    x = cases.values((9, 3), np.float64)
    moments = nbbn.batch_moments(x)
    np.testing.assert_allclose(moments.var(correction), x.var(axis=0, ddof=correction), rtol=1e-13)
    np.testing.assert_allclose(moments.std(correction=correction), x.std(axis=0, ddof=correction), rtol=1e-13)


@pytest.mark.parametrize("correction", [4, 4.5])
def test_a_correction_leaves_some_of_the_values(correction):
    found = nbbn.Moments(4, [2.0], [8.0])
    for statistic in (found.var, found.std):
        with pytest.raises(ValueError, match=r"^correction: expected less than the count, 4, got"):
            statistic(correction=correction)


def test_var_takes_no_correction_by_default():
    moments = nbbn.Moments(4, np.array([1.0]), np.array([8.0]))
    assert moments.var() == [2.0]
    assert moments.std() == [np.sqrt(2.0)]


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0)])
def test_moments_of_no_values_are_the_empty_moments(shape):
    moments = nbbn.batch_moments(np.empty(shape, np.float32))
    empty = nbbn.Moments.empty(3)
    assert moments.count == empty.count == 0.0
    np.testing.assert_array_equal(empty.mean, np.zeros(3))
    np.testing.assert_array_equal(empty.m2, np.zeros(3))
    np.testing.assert_array_equal(moments.m2, np.zeros(3))


@pytest.mark.parametrize("side", ["left", "right"])
def test_merging_with_the_empty_moments_changes_nothing(side):
    moments = nbbn.batch_moments(cases.values((7, 3), loc=1e6))
    empty = nbbn.Moments.empty(3)
    merged = moments + empty if side == "left" else empty + moments
    assert merged.count == moments.count
    assert_same_bits(merged.mean, moments.mean)
    assert_same_bits(merged.m2, moments.m2)


def test_merging_two_empty_moments_is_empty():
    merged = nbbn.Moments.empty(2) + nbbn.Moments.empty(2)
    assert merged.count == 0.0
    np.testing.assert_array_equal(merged.mean, np.zeros(2))
    np.testing.assert_array_equal(merged.m2, np.zeros(2))


def test_plus_is_merge():
    a, b = (nbbn.batch_moments(cases.values((n, 3), seed=n)) for n in (5, 8))
    plus, merged = a + b, a.merge(b)
    assert plus.count == merged.count == 13.0
    assert_same_bits(plus.mean, merged.mean)
    assert_same_bits(plus.m2, merged.m2)


def test_merge_follows_chan():
    merged = nbbn.Moments(2, np.array([1.0]), np.array([2.0])) + nbbn.Moments(6, np.array([5.0]), np.array([3.0]))
    assert merged.count == 8.0
    np.testing.assert_array_equal(merged.mean, [4.0])
    np.testing.assert_array_equal(merged.m2, [2.0 + 3.0 + 4.0**2 * 2 * 6 / 8])


def test_update_returns_a_new_value():
    first, second = cases.values((5, 3, 4)), cases.values((2, 3, 4), seed=1)
    before = nbbn.batch_moments(first)
    mean, m2 = before.mean.copy(), before.m2.copy()
    after = before.update(second)
    assert after is not before
    assert before.count == 20.0
    assert_same_bits(before.mean, mean)
    assert_same_bits(before.m2, m2)
    check_moments(after, np.concatenate([first, second]))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_update_and_from_batches_take_the_axis(axis):
    batches = [cases.values((4, 4, 4), seed=k) for k in range(5)]
    rows = np.concatenate([reference.channels(b, axis) for b in batches], axis=1).astype(np.float32)
    check_moments(nbbn.Moments.from_batches(batches, axis=axis), rows, 0)
    check_moments(
        functools.reduce(lambda m, b: m.update(b, axis=axis), batches, nbbn.Moments.empty(4)),
        rows,
        0,
    )


def test_from_batches_takes_any_iterable():
    check_moments(
        nbbn.Moments.from_batches(cases.values((n, 3), seed=n) for n in (3, 1, 9)),
        np.concatenate([cases.values((n, 3), seed=n) for n in (3, 1, 9)]),
    )


def test_one_value_has_no_deviation():
    moments = nbbn.batch_moments(np.array([[3.5, -2.0]], np.float32))
    assert moments.count == 1.0
    np.testing.assert_array_equal(moments.mean, [3.5, -2.0])
    np.testing.assert_array_equal(moments.m2, [0.0, 0.0])


@pytest.mark.parametrize("name", ["count", "mean", "m2", "something_else"])
def test_attributes_can_not_be_set(name):
    moments = nbbn.batch_moments(cases.values((7, 3)))
    with pytest.raises((AttributeError, TypeError)):
        setattr(moments, name, np.zeros(3))


@pytest.mark.parametrize("name", ["mean", "m2"])
@pytest.mark.parametrize("source", ["batch", "constructor", "merge", "empty"])
def test_arrays_can_not_be_written(source, name):
    batch = nbbn.batch_moments(cases.values((7, 3)))
    moments = {
        "batch": batch,
        "constructor": nbbn.Moments(3, np.zeros(3), np.ones(3)),
        "merge": batch + batch,
        "empty": nbbn.Moments.empty(3),
    }[source]
    with pytest.raises(ValueError, match="read-only"):
        getattr(moments, name)[0] = 5.0


def test_the_constructor_keeps_no_window_into_its_arguments():
    mean, m2 = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    moments = nbbn.Moments(5, mean, m2)
    mean[:], m2[:] = -1, -1
    np.testing.assert_array_equal(moments.mean, [1.0, 2.0])
    np.testing.assert_array_equal(moments.m2, [3.0, 4.0])


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_moments_can_be_copied_and_pickled(again):
    moments = nbbn.batch_moments(cases.values((7, 3)))
    other = again(moments)
    assert other.count == moments.count
    assert_same_bits(other.mean, moments.mean)
    assert_same_bits(other.m2, moments.m2)


def test_repr_names_the_class_and_the_count():
    assert "Moments" in repr(nbbn.Moments.empty(3))
    assert "7" in repr(nbbn.batch_moments(np.ones((7, 1), np.float32)))


def left_fold(parts):
    return functools.reduce(lambda a, b: a + b, parts)


def right_fold(parts):
    return functools.reduce(lambda a, b: b + a, reversed(parts))


def tree(parts):
    parts = list(parts)
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=False)] + parts[len(parts) & ~1 :]
    return parts[0]


def shuffled(parts):
    """Merges two parts picked at random until one is left."""
    rng, parts = np.random.default_rng(0), list(parts)
    while len(parts) > 1:
        a, b = parts.pop(rng.integers(len(parts))), parts.pop(rng.integers(len(parts)))
        parts.append(a + b)
    return parts[0]


GROUPINGS = (left_fold, right_fold, tree, shuffled)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("pieces", [2, 3, 1000])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 1e3, 1e6])
@by_dtype
def test_merging_in_any_grouping_agrees_with_the_whole(grouping, pieces, ratio, dtype):
    check_grouping(grouping, pieces, ratio, dtype)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=lambda f: f.__name__)
def test_merging_ten_thousand_uneven_pieces(grouping):
    check_grouping(grouping, 10_000, 1e6, np.float64)


def check_grouping(grouping, pieces, ratio, dtype):
    sizes = np.random.default_rng(pieces).integers(1, 40, pieces)
    x = cases.values((int(sizes.sum()), 2), dtype, loc=ratio, scale=1.0)
    parts = [nbbn.batch_moments(part) for part in np.split(x, np.cumsum(sizes)[:-1])]
    merged = grouping(parts)
    count, mean, m2 = reference.moments(x)
    assert merged.count == count
    ulp = eps_of(np.float64)
    assert_within(merged.mean, mean, 8 * ulp * np.maximum(np.abs(mean), 1.0))
    assert_within(merged.m2, m2, 16 * ulp * m2)


@pytest.mark.parametrize("grouping", GROUPINGS, ids=lambda f: f.__name__)
def test_merging_pieces_with_far_apart_means_and_sizes(grouping):
    pieces = [
        cases.values((n, 2), np.float64, loc=loc, seed=n) for n, loc in ((1, 1e6), (5000, 0.0), (17, -1e3), (2, 5.0))
    ]
    merged = grouping([nbbn.batch_moments(p) for p in pieces])
    _, mean, m2 = reference.moments(np.concatenate(pieces))
    assert_within(merged.mean, mean, 16 * eps_of(np.float64) * 1e6)
    assert_within(merged.m2, m2, 16 * eps_of(np.float64) * m2)


def test_what_rounding_leaves_of_m2_is_merged_too():
    """Sums of sums are rounded once: to the nearest number."""
    m2 = np.random.default_rng(5).random((8, 50))
    pieces = [nbbn.Moments(2, np.zeros(50), row) for row in m2]
    while len(pieces) > 1:
        pairs = zip(pieces[::2], pieces[1::2], strict=True)
        pieces = [one.merge(other) for one, other in pairs]
    np.testing.assert_array_equal(pieces[0].m2, [float(sum(map(Fraction, c))) for c in m2.T])


def test_sum_merges_a_list():
    parts = [nbbn.batch_moments(cases.values((n, 3), seed=n)) for n in (5, 8, 2)]
    assert sum(parts) == functools.reduce(lambda a, b: a + b, parts)
    assert sum(parts[:1]) == parts[0]
    assert sum(parts[1:], parts[0]) == sum(parts)
    assert sum([]) == 0


@pytest.mark.parametrize("other", [1, 0.0, False, None, "0", 0j, [0]], ids=repr)
def test_nothing_but_moments_and_the_0_of_sum_is_added(other):
    moments = nbbn.Moments(2, [1.0], [2.0])
    for add in (lambda: other + moments, lambda: moments + other, lambda: moments + 0):
        with pytest.raises(TypeError):
            add()


def exactly_merged(parts):
    """Mean and m2 of some (count, mean), as fractions."""
    count = sum(Fraction(n) for n, _ in parts)
    mean = sum(Fraction(n) * Fraction(value) for n, value in parts) / count
    return mean, sum(Fraction(n) * (Fraction(value) - mean) ** 2 for n, value in parts)


FAR_APART = {
    "both signs near the largest": [(1, 1e308), (1, -1e308)],
    "the largest": [(1, LARGEST), (3, -LARGEST), (2, LARGEST)],
    "the same sign": [(5, LARGEST), (1, LARGEST), (2, 1.5e308)],
    "a square that overflows": [(2, 1e160), (3, -2e160)],
    "a light one far away": [(1e-300, 1e160), (1, 3.0)],
    "a light one far from a large one": [(1e-300, 1e160), (1, 1.7e150)],
    "a light one after a heavy one": [(1, 1.7e150), (1e-300, 1e160)],
    "light ones": [(1e-300, 1e160), (3e-300, -1e159), (1e-290, 7.0)],
}


@pytest.mark.parametrize("parts", FAR_APART.values(), ids=FAR_APART)
def test_means_that_are_far_apart(parts):
    merged = functools.reduce(lambda a, b: a + b, (nbbn.Moments(n, [value], [0.0]) for n, value in parts))
    mean, m2 = exactly_merged(parts)
    ulp = eps_of(np.float64)
    size = max(
        abs(mean),
        max(Fraction(n) * abs(Fraction(v)) for n, v in parts) / sum(Fraction(n) for n, _ in parts),
    )
    assert abs(Fraction(float(merged.mean[0])) - mean) <= 4 * Fraction(ulp) * size
    if m2 > LARGEST:
        assert merged.m2[0] == np.inf
    else:
        assert abs(Fraction(float(merged.m2[0])) - m2) <= 8 * Fraction(ulp) * m2


def test_updates_with_values_of_both_signs_near_the_largest():
    moments = nbbn.Moments.empty(2)
    for value in (1.7e308, -1.7e308, -1.7e308, -1.7e308):
        moments = moments.update(np.array([[value, 2.0]]))
    np.testing.assert_allclose(moments.mean, [-0.85e308, 2.0], rtol=1e-15)
    np.testing.assert_array_equal(moments.m2, [np.inf, 0.0])


@pytest.mark.parametrize(
    ("a", "b", "mean"),
    [
        (np.inf, np.inf, np.inf),
        (np.inf, -np.inf, np.nan),
        (-np.inf, 1e308, -np.inf),
        (3.0, np.nan, np.nan),
    ],
)
def test_means_that_are_not_finite(a, b, mean):
    merged = nbbn.Moments(2, [a, 1.0], [0.0, 0.0]) + nbbn.Moments(3, [b, 6.0], [0.0, 0.0])
    np.testing.assert_array_equal(merged.mean, [mean, 4.0])
    np.testing.assert_array_equal(merged.m2, [np.nan, 30.0])


def test_an_m2_that_is_infinite_stays_so():
    merged = nbbn.Moments(2, [1.0], [np.inf]) + nbbn.Moments(2, [1.0], [3.0])
    assert merged == nbbn.Moments(4, [1.0], [np.inf])


@pytest.mark.parametrize("name", ["count", "mean", "m2"])
def test_help_says_what_an_attribute_is(name):
    assert inspect.getdoc(getattr(nbbn.Moments, name))
