"""Dask arrays: the moments of the whole for any chunks, the bits of normalize, lazily, on every scheduler."""

import pickle
import re

import cases
import numpy as np
import processes
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import threads as _threads

import nbbn
from nbbn.distributed import dask_moments, dask_normalize

dask = pytest.importorskip("dask", reason="dask is not installed")
da = pytest.importorskip("dask.array", reason="dask is not installed")

SHAPE = (20, 6, 5)
CHUNKINGS = (
    SHAPE,
    (3, 6, 5),
    (20, 2, 5),
    (3, 4, 2),
    (1, 1, 1),
    ((0, 5, 15), (2, 0, 4), 5),
    ((0, 0, 20), 6, (5, 0)),
)
by_chunks = pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
by_axis = pytest.mark.parametrize("axis", [0, 1, -1])


def values(dtype=np.float32, shape=SHAPE, seed=0):
    return cases.values(shape, np.float64, loc=90.0, scale=20.0, seed=seed).astype(dtype)


def never(shape=SHAPE, dtype=np.float32, chunks=(3, 4, 2), meta=None):
    """A dask array that fails the test where a block is asked for."""

    def fail(block):
        raise AssertionError("computed")

    meta = np.empty((0,) * len(shape), dtype) if meta is None else meta
    return da.map_blocks(fail, da.zeros(shape, chunks=chunks), dtype=dtype, meta=meta)


def unknown(a, chunks, keep):
    """The rows ``keep`` of an array as a dask array that does not know how many they are."""
    x = da.from_array(a, chunks=chunks)
    return x[da.from_array(keep, chunks=x.chunks[0])]


def assert_moments(found, x, axis=1):
    """As close to the exact ones as merged pieces may be."""
    count, mean, m2 = reference.moments(x, axis)
    ulp = eps_of(np.float64)
    assert isinstance(found, nbbn.Moments)
    assert found.count == count
    assert_within(found.mean, mean, 8 * ulp * np.abs(mean))
    assert_within(found.m2, m2, 16 * ulp * m2)


def assert_same_moments(a, b):
    assert a.count == b.count
    assert_same_bits(a.mean, b.mean)
    assert_same_bits(a.m2, b.m2)


@by_chunks
@by_axis
def test_moments_are_those_of_the_whole(chunks, axis):
    a = values()
    assert_moments(dask_moments(da.from_array(a, chunks=chunks), axis=axis), a, axis)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.uint8, "bfloat16"])
def test_moments_and_normalizing_of_every_type(dtype):
    if dtype == "bfloat16":
        pytest.importorskip("ml_dtypes")
    a = values(dtype)
    x = da.from_array(a, chunks=(3, 4, 2))
    found = dask_moments(x)
    assert_moments(found, a)
    wanted = np.float32 if dtype == np.uint8 else None
    y = dask_normalize(x, found.mean, found.var(), dtype=wanted)
    assert y.dtype == (wanted or a.dtype)
    assert_same_bits(y.compute(), nbbn.normalize(a, found.mean, found.var(), dtype=wanted))


@settings(max_examples=min(25, settings.default.max_examples))
@given(st.data())
def test_any_chunking_gives_the_moments_of_the_whole_and_the_bits_of_normalize(data):
    sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)
    chunks = data.draw(st.lists(sizes, min_size=1, max_size=3).map(tuple), label="chunks")
    axis = data.draw(st.integers(-len(chunks), len(chunks) - 1), label="axis")
    chunks = tuple(map(tuple, chunks))
    shape = tuple(map(sum, chunks))
    if not shape[axis]:
        return
    a = values(shape=shape)
    x = da.from_array(a, chunks=chunks)
    with dask.config.set(scheduler="synchronous"):
        found = dask_moments(x, axis=axis)
        assert_moments(found, a, axis)
        vectors = cases.parameters(shape[axis])
        y = dask_normalize(x, *vectors[2:], *vectors[:2], axis=axis)
        assert y.chunks == x.chunks
        assert_same_bits(y.compute(), nbbn.normalize(a, *vectors[2:], *vectors[:2], axis=axis))


@by_chunks
@pytest.mark.parametrize("added", ["dask", "numpy"])
def test_a_residual_and_an_activation(chunks, added):
    a, r = values(), values(seed=1)
    x = da.from_array(a, chunks=chunks)
    gamma, beta, mean, var = cases.parameters(6)
    residual = da.from_array(r, chunks=(7, 3, 5)) if added == "dask" else r
    y = dask_normalize(x, mean, var, gamma, beta, residual=residual, activation="leaky_relu", negative_slope=0.3)
    expected = nbbn.normalize(a, mean, var, gamma, beta, residual=r, activation="leaky_relu", negative_slope=0.3)
    assert y.chunks == x.chunks
    assert_same_bits(y.compute(), expected)


@pytest.mark.parametrize("axis", [1, -1])
def test_eps_and_axis_are_passed_on(axis):
    a = values()
    _, _, mean, var = cases.parameters(a.shape[axis])
    y = dask_normalize(da.from_array(a, chunks=(3, 4, 2)), mean, var, eps=0.5, axis=axis)
    assert_same_bits(y.compute(), nbbn.normalize(a, mean, var, eps=0.5, axis=axis))


def test_normalizing_computes_nothing():
    x = never()
    y = dask_normalize(x, np.zeros(6), np.ones(6), np.ones(6), residual=never())
    assert (y.shape, y.chunks, y.dtype) == (x.shape, x.chunks, x.dtype)
    assert type(y._meta) is np.ndarray and y._meta.dtype == x.dtype and y._meta.ndim == 3
    bytes_ = dask_normalize(never(dtype=np.uint8), np.zeros(6), np.ones(6), dtype="float32")
    assert bytes_.dtype == np.float32


def test_the_same_arguments_have_the_same_name():
    x = da.from_array(values(), chunks=(3, 4, 2))
    one, two = np.ones(6), np.full(6, 2.0)
    first = dask_normalize(x, one, one).name
    assert dask_normalize(x, one, one.copy()).name == first
    others = [
        dask_normalize(x, one, two),
        dask_normalize(x, two, one),
        dask_normalize(x, one, one, one),
        dask_normalize(x, one, one, None, one),
        dask_normalize(x, one, one, eps=1.0),
        dask_normalize(x, one, one, activation="relu"),
        dask_normalize(x, one, one, residual=x),
        dask_normalize(x + 1, one, one),
    ]
    assert len({first, *[y.name for y in others]}) == 9


def test_blocks_of_unknown_size():
    a = values()
    keep = a[:, 0, 0] > 90
    assert 0 < keep.sum() < len(keep)
    x = unknown(a, (3, 4, 5), keep)
    found = dask_moments(x)
    assert_moments(found, a[keep])
    y = dask_normalize(x, found.mean, found.var(), residual=x)
    expected = nbbn.normalize(a[keep], found.mean, found.var(), residual=a[keep])
    assert_same_bits(y.compute(), expected)


def test_blocks_of_unknown_size_that_need_a_known_one():
    a = values()
    x = unknown(a, (3, 4, 5), a[:, 0, 0] > 90)
    with pytest.raises(ValueError, match=r"^x: expected known chunk sizes along axis 0, .*nan"):
        dask_normalize(x, np.zeros(20), np.ones(20), axis=0)
    with pytest.raises(ValueError, match=r"^residual: expected shape \(nan, 6, 5\)"):
        dask_normalize(x, np.zeros(6), np.ones(6), residual=a)
    with pytest.raises(ValueError, match=r"^x: expected known chunk sizes, as .*nan"):
        dask_moments(x, mask=np.ones((20, 1, 5), bool))
    with pytest.raises(ValueError, match=r"^mask: expected known chunk sizes, as .*nan"):
        dask_moments(da.from_array(a), mask=x[:, :1] > 0)
    # Unknown along the channel axis, moments have as many channels as there turn out to be.
    assert_moments(dask_moments(x, axis=0), a[a[:, 0, 0] > 90], 0)


@pytest.mark.parametrize("shape", [(0, 6, 5), (20, 6, 0)])
def test_moments_of_nothing(shape):
    found = dask_moments(da.zeros(shape, chunks=3))
    assert_same_moments(found, nbbn.Moments.empty(6))


def test_no_channels():
    message = re.escape("x: expected at least one channel, got shape (20, 0, 5)")
    with pytest.raises(ValueError, match=message):
        dask_moments(da.zeros((20, 0, 5)))


def test_nan_stays_in_its_channel():
    a = values()
    a[3, 2, 1] = np.nan
    found = dask_moments(da.from_array(a, chunks=(3, 4, 2)))
    assert np.isnan(found.mean[2]) and np.isnan(found.m2[2])
    others = [0, 1, 3, 4, 5]
    _, mean, m2 = reference.moments(a[:, others])
    assert_within(found.mean[others], mean, 1e-12)
    assert_within(found.m2[others], m2, 1e-12 * m2)


REFUSED = {
    "no dask array": (TypeError, r"^x: expected a dask array, got ndarray", values(), {}),
    "complex": (TypeError, r"^x: expected dtype .*, got complex64", never(dtype=np.complex64), {}),
    "masked": (TypeError, "masked array", never(meta=np.ma.zeros((0, 0, 0), np.float32)), {}),
    "axis": (ValueError, r"^axis: expected from -3 to 2", never(), {"axis": 3}),
    "no integer": (TypeError, r"^axis: expected an integer", never(), {"axis": 1.0}),
}
OF_NORMALIZE = {
    "integers": (TypeError, r"^x: expected dtype .*, got int32", never(dtype=np.int32), {}),
    "mean": (ValueError, r"^mean: expected shape \(6,\)", never(), {"mean": np.zeros(5)}),
    "var": (TypeError, r"^var: expected dtype", never(), {"var": np.zeros(6, complex)}),
    "variance": (ValueError, r"^var: expected no variance below 0", never(), {"var": -np.ones(6)}),
    "gamma": (ValueError, r"^gamma: expected shape \(6,\)", never(), {"gamma": np.zeros(5)}),
    "eps": (ValueError, r"^eps: ", never(), {"eps": -1.0}),
    "activation": (ValueError, r"^activation: ", never(), {"activation": "tanh"}),
    "dtype": (ValueError, r"^dtype: ", never(), {"dtype": np.float64}),
    "no dtype": (TypeError, r"^dtype: ", never(), {"dtype": "text"}),
    "bytes": (ValueError, r"^dtype: ", never(dtype=np.uint8), {}),
    "residual": (ValueError, r"^residual: expected shape", never(), {"residual": np.ones(5)}),
    "residual's dtype": (
        TypeError,
        r"^residual: expected dtype float32",
        never(),
        {"residual": never(dtype=np.float64)},
    ),
}
OF_MOMENTS = {
    "mask's dtype": (TypeError, r"^mask: expected dtype bool", never(), {"mask": np.ones((20, 5))}),
    "mask's shape": (
        ValueError,
        r"^mask: expected a shape .* got \(20, 6, 5\)",
        never(),
        {"mask": np.ones(SHAPE, bool)},
    ),
    "dask mask": (
        ValueError,
        r"^mask: expected .* got \(4,\)",
        never(),
        {"mask": da.ones(4, dtype=bool)},
    ),
}


@pytest.mark.parametrize("name", [*REFUSED, *OF_NORMALIZE])
def test_what_normalizing_refuses_before_anything_is_computed(name):
    error, message, x, options = {**REFUSED, **OF_NORMALIZE}[name]
    vectors = {"mean": np.zeros(6), "var": np.ones(6)}
    with pytest.raises(error, match=message):
        dask_normalize(x, **{**vectors, **options})


@pytest.mark.parametrize("name", [*REFUSED, *OF_MOMENTS])
def test_what_moments_refuse_before_anything_is_computed(name):
    error, message, x, options = {**REFUSED, **OF_MOMENTS}[name]
    with pytest.raises(error, match=message):
        dask_moments(x, **options)


MASKS = {
    "full": (20, 1, 5),
    "one a sample": (20, 1, 1),
    "without the channel axis": (20, 5),
    "broadcast": (1, 5),
    "the last axis": (5,),
    "one for all": (1,),
    "none": (),
}


@pytest.mark.parametrize("kind", ["dask", "numpy"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
@by_chunks
def test_masked_moments(chunks, shape, kind):
    a = values()
    mask = np.asarray(np.random.default_rng(0).random(shape) < 0.7)
    expected = nbbn.batch_moments(a, mask=mask)
    given = da.from_array(mask, chunks=2) if kind == "dask" else mask
    found = dask_moments(da.from_array(a, chunks=chunks), mask=given)
    assert found.count == expected.count
    ulp = eps_of(np.float64)
    assert_within(found.mean, expected.mean, 8 * ulp * np.abs(expected.mean))
    assert_within(found.m2, expected.m2, 16 * ulp * expected.m2)


@pytest.mark.parametrize("shape", [(20, 1, 5), (20, 5), (1, 1), (1,)])
def test_a_mask_with_empty_blocks(shape):
    a = values()
    mask = np.random.default_rng(0).random(shape) < 0.7
    given = da.from_array(mask, chunks=tuple((0, size // 2, 0, size - size // 2) for size in shape))
    found = dask_moments(da.from_array(a, chunks=((3, 0, 17), 6, 5)), mask=given)
    assert found.count == nbbn.batch_moments(a, mask=mask).count


def large():
    """As many values a block as are worth threads."""
    return cases.values((8, 12, 150, 150), np.float32, loc=3.0)


def test_no_task_starts_a_parallel_region(monkeypatch):
    """In the caller's own thread too, and its setting stays."""
    entered = []
    monkeypatch.setattr(_threads, "Claim", lambda: entered.append(1) or object.__new__(claim))
    claim = type("Claim", (), {})
    a = large()
    x = da.from_array(a, chunks=(4, 12, 150, 150))
    with nbbn.num_threads(2):
        nbbn.batch_moments(a)
        assert entered, "this test would notice nothing"
        entered.clear()
        for scheduler in ("synchronous", "threads"):
            with dask.config.set(scheduler=scheduler):
                found = dask_moments(x)
                dask_normalize(x, found.mean, found.var()).compute()
        assert nbbn.get_num_threads() == 2
    assert not entered


def test_tasks_can_be_pickled():
    x = da.from_array(values(), chunks=(3, 4, 2))
    y = dask_normalize(x, np.zeros(6), np.ones(6), activation="relu")
    assert_same_bits(pickle.loads(pickle.dumps(y)).compute(), y.compute())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_blocks_that_have_been_sent_have_the_moments_of_views(order):
    """A block of an array in memory is a view of it; one that was pickled may be contiguous."""
    a = cases.values((40, 24, 25), np.float32, loc=3.0).transpose(order)
    mask = a[:, :1] > 3
    x = da.from_array(a, chunks=(20, 6, 10))
    sent = x.map_blocks(lambda block: pickle.loads(pickle.dumps(block)), meta=x._meta)
    for options in ({}, {"axis": 0}, {"mask": mask}):
        assert_same_moments(dask_moments(sent, **options), dask_moments(x, **options))


SCHEDULERS = """
import dask, dask.array as da, numpy as np
from dask.callbacks import Callback
import nbbn
from nbbn.distributed import dask_moments, dask_normalize

def block(block_info=None):
    first = block_info[None]["chunk-location"][0]
    rng = np.random.default_rng(first)
    return rng.normal(first, 2.0, block_info[None]["chunk-shape"]).astype(np.float32)

def run(name):
    x = da.map_blocks(block, dtype=np.float32, chunks=((12000,) * 8, (12, 8)), meta=np.empty((0, 0), np.float32))
    found = dask_moments(x)
    y = dask_normalize(x, found.mean, found.var(), activation="relu")
    sums = y.sum(axis=0).compute()
    print(found.count, *[float(v).hex() for v in (*found.mean, *found.m2, *sums)], sep=",")

if __name__ == "__main__":
    for name in ("synchronous", "threads"):
        with dask.config.set(scheduler=name, num_workers=2):
            run(name)
"""


def test_the_bits_are_the_same_on_every_scheduler():
    """On a threading layer, too, that aborts the process when two threads enter it."""
    script = (
        SCHEDULERS
        + """
    with dask.config.set(scheduler="processes", num_workers=2):
        run("processes")
    import distributed
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", host="127.0.0.1",
        dashboard_address=None,
    )
    with cluster, distributed.Client(cluster):
        run("distributed")
"""
    )
    lines = processes.run(script, env={"NUMBA_THREADING_LAYER": "workqueue"}, timeout=300)
    assert len(lines) == 4
    assert len(set(lines)) == 1


KILLED = """
import logging, os
from pathlib import Path
import dask, dask.array as da, numpy as np
import distributed
from nbbn.distributed import dask_moments

def deadly(block, always, block_info=None):
    if block_info[0]["chunk-location"] == (2, 0):
        try:
            Path("killed").touch(exist_ok=always)
        except FileExistsError:
            return block
        os._exit(1)
    return block

if __name__ == "__main__":
    dask.config.set({"distributed.scheduler.allowed-failures": 1})
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )
    with cluster, distributed.Client(cluster):
        x = da.arange(12.0, chunks=3)[:, None]
        print(dask_moments(x.map_blocks(deadly, False, dtype=float, meta=x._meta)).mean[0])
        try:
            dask_moments(x.map_blocks(deadly, True, dtype=float, meta=x._meta))
        except distributed.scheduler.KilledWorker as error:
            print(type(error).__name__)
"""


def test_a_killed_worker_costs_time_and_one_that_is_killed_again_and_again_is_an_error():
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    assert processes.run(KILLED, timeout=300) == ["5.5", "KilledWorker"]


def test_integers_and_scalars():
    values = np.random.default_rng(1).integers(0, 9, (40, 6))
    whole = nbbn.batch_moments(values)
    found = dask_moments(da.from_array(values, chunks=(7, 4)))
    np.testing.assert_allclose(found.m2, whole.m2, rtol=1e-13)
    floats = da.from_array(values.astype(np.float32), chunks=(7, 4))
    y = dask_normalize(floats, 2, 4.0, 1, 0.5).compute()
    np.testing.assert_array_equal(y, nbbn.normalize(values.astype(np.float32), 2, 4.0, 1, 0.5))
    with pytest.raises(TypeError, match=r"x\.astype\(np\.float32\)"):
        dask_normalize(da.from_array(values), 2, 4.0)
