"""Standardizer on dask arrays: the statistics and the bits of arrays in memory, lazily."""

import sys
import types

import cases
import numpy as np
import pytest
from compare import assert_same_bits, eps_of
from rooms import threads as _threads

import nbbn

pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

SHAPE = (40, 6, 5)
CHUNKINGS = (SHAPE, (3, 4, 2), (1, 6, 5), ((0, 15, 25), (2, 0, 4), 5))
by_chunks = pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
by_axis = pytest.mark.parametrize("axis", [0, 1, -1])


def values(dtype=np.float32, shape=SHAPE, seed=0):
    return cases.values(shape, np.float64, loc=90.0, scale=20.0, seed=seed).astype(dtype)


def assert_same_statistics(found, expected):
    assert found.n_samples_seen_ == expected.n_samples_seen_
    np.testing.assert_allclose(found.mean_, expected.mean_, rtol=4 * eps_of(np.float64))
    np.testing.assert_allclose(found.var_, expected.var_, rtol=16 * eps_of(np.float64))


@by_chunks
@by_axis
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "uint8"])
def test_fit_and_transform(chunks, axis, dtype):
    a = values(dtype)
    x = da.from_array(a, chunks=chunks)
    in_memory = nbbn.Standardizer(axis=axis).fit(a)
    found = nbbn.Standardizer(axis=axis).fit(x)
    assert_same_statistics(found, in_memory)
    y = in_memory.transform(x)  # with the same statistics, the same bits
    assert isinstance(y, da.Array)
    assert y.chunks == x.chunks
    assert y.dtype == in_memory.transform(a).dtype
    assert_same_bits(y.compute(), in_memory.transform(a))
    if dtype != "uint8":
        assert_same_bits(
            in_memory.inverse_transform(y).compute(),
            in_memory.inverse_transform(in_memory.transform(a)),
        )


def test_results_of_two_scalers_and_both_ways_are_computed_together():
    """dask computes what has the same name once."""
    import dask

    a = values(shape=(60, 4))
    x = da.from_array(a, chunks=(7, 3))
    one, other = (nbbn.Standardizer().fit(part) for part in (a[:30], a[30:]))
    ways = one.transform, other.transform, one.inverse_transform
    for found, way in zip(dask.compute(*(way(x) for way in ways)), ways, strict=True):
        assert_same_bits(found, way(a))


def test_fit_transform_and_chunks_in_turn():
    a = values(shape=(60, 4))
    x = da.from_array(a, chunks=(7, 3))
    scaler = nbbn.Standardizer()
    y = scaler.fit_transform(x)
    np.testing.assert_allclose(y.compute(), nbbn.Standardizer().fit_transform(a), rtol=1e-6, atol=1e-6)
    mixed = nbbn.Standardizer().partial_fit(x[:20]).partial_fit(a[20:30]).partial_fit(x[30:])
    assert_same_statistics(mixed, nbbn.Standardizer().fit(a))


@pytest.mark.parametrize("parameters", [{"with_mean": False}, {"with_std": False}])
def test_parameters_and_constant_features(parameters):
    a = values(shape=(60, 4))
    a[:, 2] = 7
    x = da.from_array(a, chunks=(7, 2))
    scaler = nbbn.Standardizer(**parameters).fit(x)
    assert_same_bits(scaler.transform(x).compute(), scaler.transform(a))


def test_what_float32_has_not_the_range_for():
    a = np.float32([[1e-35, 1.0], [3e-35, 2.0], [-1e-35, 4.0]])
    x = da.from_array(a, chunks=(2, 1))
    scaler = nbbn.Standardizer().fit(a)
    assert_same_bits(scaler.transform(x).compute(), scaler.transform(a))
    assert np.isfinite(scaler.transform(x).compute()).all()


def test_transform_computes_nothing():
    a = values(shape=(8, 4))
    scaler = nbbn.Standardizer().fit(a)

    def fail(block):
        raise AssertionError("computed")

    lazy = da.map_blocks(fail, da.zeros((8, 4), chunks=4), dtype=np.float32, meta=a[:0])
    assert scaler.transform(lazy).shape == (8, 4)


def test_no_task_starts_a_parallel_region(monkeypatch):
    a = values(shape=(1 << 17, 4))
    x = da.from_array(a, chunks=(1 << 17, 4))
    entered = []
    claim = type("Claim", (), {})
    monkeypatch.setattr(_threads, "Claim", lambda: entered.append(1) or claim())
    with nbbn.num_threads(2):
        scaler = nbbn.Standardizer().fit(a)
        assert entered, "this test would notice nothing"
        entered.clear()
        nbbn.Standardizer().fit(x)
        scaler.transform(x).compute()
        assert not entered
        assert nbbn.get_num_threads() == 2


def test_unknown_numbers_of_samples():
    a = values(shape=(30, 3))
    keep = a[:, 0] > 85
    x = da.from_array(a, chunks=(7, 2))
    some = x[da.from_array(keep, chunks=7)]
    assert_same_statistics(nbbn.Standardizer().fit(some), nbbn.Standardizer().fit(a[keep]))
    scaler = nbbn.Standardizer().fit(a)
    assert_same_bits(scaler.transform(some).compute(), scaler.transform(a[keep]))
    none = x[da.from_array(np.zeros(30, bool), chunks=7)]
    with pytest.raises(ValueError, match="X: expected at least one sample"):
        scaler.fit(none)
    scaler.partial_fit(none)
    assert_same_statistics(scaler, nbbn.Standardizer().fit(a))


def test_errors_change_nothing():
    a = values(shape=(30, 3))
    x = da.from_array(a, chunks=(7, 2))
    scaler = nbbn.Standardizer().fit(a)
    before = scaler.mean_.copy()
    cases_of = (
        (lambda: scaler.fit(x.astype(complex)), TypeError, "X: expected dtype"),
        (lambda: scaler.fit(x[:, 0]), ValueError, "X: expected two dimensions or more"),
        (lambda: scaler.fit(x[:0]), ValueError, "X: expected at least one sample"),
        (lambda: scaler.partial_fit(x[:, :2]), ValueError, "X: expected 3 features along axis 1"),
        (lambda: scaler.transform(x[:, :2]), ValueError, "X: expected 3 features along axis 1"),
        (lambda: scaler.transform(x, out=a), ValueError, "out: expected None for a dask array"),
        (lambda: nbbn.Standardizer(axis=5).fit(x), ValueError, "axis: expected from -2 to 1"),
        (lambda: nbbn.Standardizer().transform(x), ValueError, "expected fit or partial_fit first"),
    )
    for call, error, message in cases_of:
        with pytest.raises(error, match=message):
            call()
    unknown = x.T[da.from_array(np.array([True, False, True]), chunks=2)].T
    with pytest.raises(ValueError, match="X: expected known chunk sizes along axis 1"):
        scaler.fit(unknown)
    assert_same_bits(scaler.mean_, before)


def test_a_data_frame_is_in_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", types.ModuleType("pandas"))
    a = values(shape=(30, 3))
    scaler = nbbn.Standardizer().fit(a).set_output(transform="pandas")
    with pytest.raises(ValueError, match="got a dask array"):
        scaler.transform(da.from_array(a, chunks=7))


@pytest.mark.parametrize("axis", [0, 1])
def test_gaps_weights_and_integers_as_in_memory(axis):
    a = values(shape=(30, 30), dtype=np.float64)
    a[3, 4] = a[17, :] = np.nan
    weights = np.linspace(0, 2, 30)
    for x in (a, np.arange(900).reshape(30, 30), a.astype(object)):
        scaler, lazy = nbbn.Standardizer(axis=axis), nbbn.Standardizer(axis=axis)
        y = scaler.fit(x, sample_weight=weights).transform(x)
        chunked = da.from_array(x, chunks=(7, 11))
        found = lazy.fit(chunked, sample_weight=weights).transform(chunked)
        assert found.dtype == y.dtype == np.float64
        np.testing.assert_allclose(found.compute(), y, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(lazy.n_samples_seen_, scaler.n_samples_seen_)


def test_infinite_values_of_a_block_are_told_when_it_is_computed():
    a = values(shape=(30, 3))
    scaler = nbbn.Standardizer().fit(a)
    a[29, 2] = np.inf
    x = da.from_array(a, chunks=(7, 2))
    with pytest.raises(ValueError, match=r"^X: expected finite values"):
        scaler.fit(x)
    y = scaler.transform(x)
    with pytest.raises(ValueError, match=r"^X: expected finite values"):
        y.compute(scheduler="synchronous")
