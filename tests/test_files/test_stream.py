"""Files in blocks: blocks cover an array once, headers are read strictly, results are those in memory."""

import contextlib
import io
import os
import threading
import warnings
import zipfile

import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of, forward_bound, mean_error, var_error
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import npy as _npy
from rooms import state as _storage

import nbbn
from nbbn._files.paths import FileError
from nbbn.standardizer import _stream
from nbbn.standardizer._features import FeatureMoments

bounded = settings(max_examples=min(120, settings.default.max_examples))
DTYPES = ("float32", "float64", "float16", "uint8")
longer = pytest.mark.skipif(np.dtype("g").itemsize == 8, reason="longdouble is float64 here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("stream")


@contextlib.contextmanager
def blocks_of(size, per_channel=64):
    """Blocks of at most so many values, as hypothesis takes no monkeypatch for each example."""
    before = _stream.VALUES, _stream._PER_CHANNEL
    _stream.VALUES, _stream._PER_CHANNEL = size, per_channel
    try:
        yield
    finally:
        _stream.VALUES, _stream._PER_CHANNEL = before


def values(shape, dtype, seed=0):
    drawn = np.random.default_rng(seed).normal(100, 20, shape)
    return drawn.clip(0, 255).astype(dtype)


def nothing(size):
    """Nobody looks at the progress."""


def moments(path, axis, advance=nothing):
    with _npy.opened(path) as source:
        return _stream.moments(source, axis, advance)


def normalized(path, axis, statistics=None, advance=nothing):
    """What is written for the file, as NumPy reads it."""
    target = path.with_name("normalized.npy")
    with _npy.opened(path) as source, _storage.replacing(target) as file:
        written = _npy.NpyOutput(file, _stream.normalized(source.header))
        if statistics is None:
            statistics = _stream.moments(source, axis, nothing)
        _stream.normalize(source, axis, statistics, written, advance)
    return np.load(target)


def assert_moments(found, x, axis):
    """As good as sums in float64, whatever the type of the values."""
    count, mean, m2 = reference.moments(x, axis)
    assert (found.counts == count).all()
    assert_within(found.mean, mean, mean_error(x, axis))
    assert_within(found.variances(), m2 / count, var_error(np.empty(0), m2 / count))


def assert_normalized(y, x, axis):
    """The population's standardization; a constant channel is exactly 0."""
    computed = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = reference.training(computed, axis=axis, eps=0.0)
    constant = exact.var == 0
    hidden = reference.along(constant, x.ndim, axis) == 1
    expected = exact._replace(
        y=np.where(hidden, 0.0, exact.y),
        xhat=np.where(hidden, 0.0, exact.xhat),
        inv_std=np.where(constant, 1.0, exact.inv_std),
    )
    bound = forward_bound(computed, expected, axis=axis)
    if x.dtype == np.float16:
        bound = bound + eps_of(np.float16) / 2 * np.abs(expected.y) + 2.0**-25
    assert y.dtype == (np.float32 if x.dtype == np.uint8 else x.dtype)
    assert_within(y, expected.y, bound)


# --- cutting ---


@bounded
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 3),
    most=st.integers(1, 400),
    per_channel=st.sampled_from([1, 4, 64]),
)
def test_blocks_cover_every_value_once_in_the_channel_that_it_belongs_to(sizes, most, per_channel):
    outer, channels, inner = sizes
    channel_of = np.broadcast_to(np.arange(channels)[:, None], sizes).ravel()
    seen = np.zeros(outer * channels * inner, int)
    with blocks_of(most, per_channel):
        cut = list(_stream.blocks(*sizes))
    groups = {}
    for block in cut:
        assert block.size <= max(most, min(per_channel, outer * inner) + inner)
        run = block.size // block.runs
        places = block.first + block.step * np.arange(block.runs)[:, None] + np.arange(run)
        seen[places] += 1
        expected = block.channel + np.arange(block.shape[1])[:, None]
        assert np.array_equal(channel_of[places].reshape(block.shape), np.broadcast_to(expected, block.shape))
        groups.setdefault(block.channel, set()).add(block.shape[1])
    assert (seen == 1).all()
    assert max(block.size for block in cut) == cut[0].size  # buffers are of the first one's size
    assert all(len(widths) == 1 for widths in groups.values())  # so their moments can be merged
    assert sum(width for (width,) in groups.values()) == channels


@pytest.mark.parametrize(
    ("sizes", "runs", "shape"),
    [
        ((1 << 24, 64, 1), 1, (1 << 14, 64, 1)),  # whole rows
        ((3, 1 << 30, 1), 3, (3, 349525, 1)),  # as many rows as there are
        ((1000, 1 << 24, 1), 64, (64, 1 << 14, 1)),  # merging is shared by the values of a channel
        ((1, 3, 1 << 30), 1, (1, 1, 1 << 20)),  # parts of a channel
        ((100, 3, 1 << 19), 1, (1, 2, 1 << 19)),  # whole channels
    ],
)
def test_blocks_are_large_where_that_saves_work(sizes, runs, shape):
    first = next(_stream.blocks(*sizes))
    assert (first.runs, first.shape) == (runs, shape)


# --- against the oracle ---


@st.composite
def arrays(draw):
    """(x, axis): an array of 1 to 5 dimensions in C or Fortran order, some channels constant."""
    ndim = draw(st.integers(1, 5))
    longest = {1: 300, 2: 60, 3: 20, 4: 8, 5: 5}[ndim]
    shape = tuple(draw(st.lists(st.integers(1, longest), min_size=ndim, max_size=ndim)))
    axis = draw(st.integers(-ndim, ndim - 1))
    x = values(shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        np.moveaxis(x, axis, 0)[0] = 7
    return np.asarray(x, order=draw(st.sampled_from("CF"))), axis


@bounded
@given(
    array=arrays(),
    most=st.sampled_from([1, 7, 100, 1000, 1 << 20]),
    threads=st.sampled_from([1, 3]),
)
def test_any_file_in_any_blocks(folder, array, most, threads):
    x, axis = array
    path = folder / "x.npy"
    np.save(path, x)
    with blocks_of(most, 4), nbbn.num_threads(threads):
        assert_moments(moments(path, axis), x, axis)
        y = normalized(path, axis)
    assert_normalized(y, x, axis)
    assert (y.flags.c_contiguous, y.flags.f_contiguous) == (x.flags.c_contiguous, x.flags.f_contiguous)  # fmt: skip


@pytest.mark.parametrize("offset", [0, 1e3, 1e6])
def test_as_exact_as_in_memory_far_from_zero(folder, offset):
    """float32 values a million standard deviations away from zero, merged from a thousand blocks."""
    x = (np.random.default_rng(1).normal(offset, 1, (16_000, 5))).astype(np.float32)
    path = folder / "far.npy"
    np.save(path, x)
    with blocks_of(80):
        found = moments(path, -1)
        y = normalized(path, -1)
    for c in range(5):
        _, mean, m2 = reference.exact_moments(x[:, c])
        assert abs(found.mean[c] - mean) <= eps_of(np.float64) * max(1, offset)
        assert abs(found.m2[c] - m2) <= 1e-12 * m2
    assert_normalized(y, x, -1)


@pytest.mark.parametrize("exponent", [-40, -30, 30, 38])
def test_float32_far_from_one(folder, exponent):
    """1 / std, or a difference of two values, may be more than float32 can hold."""
    x = (np.random.default_rng(2).uniform(-3, 3, (300, 4)) * 10.0**exponent).astype(np.float32)
    np.save(folder / "x.npy", x)
    with blocks_of(100):
        assert_normalized(normalized(folder / "x.npy", 1), x, 1)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_what_float32_cannot_hold_comes_out_infinite(folder, dtype):
    np.save(folder / "x.npy", np.ones((30, 3), dtype))
    mean, var = np.array([0.0, -1e308, 1e308]), np.array([1e-80, 1e308, 1e-80])
    found = FeatureMoments.of((0.1, mean, np.zeros(3), 0.1 * var, np.zeros(3)))
    y = normalized(folder / "x.npy", 1, found)
    assert_same_bits(y, np.broadcast_to(np.array([1, 1, -1], y.dtype) * y.dtype.type(np.inf), (30, 3)))


def test_the_same_bits_for_every_number_of_threads(folder):
    x = values((300, 37), "float32")
    path = folder / "x.npy"
    np.save(path, x)
    found = []
    with blocks_of(500):
        for threads in (1, 2, 4):
            with nbbn.num_threads(threads):
                found.append((moments(path, 1), normalized(path, 1)))
    for other in found[1:]:
        assert all(map(np.array_equal, other[0], found[0][0]))
        assert_same_bits(other[1], found[0][1])


def test_blocks_are_worked_on_by_several_threads_each_serially(folder, monkeypatch):
    seen, both = set(), threading.Barrier(2, timeout=300)

    def moments_of(values, axis):
        both.wait()
        seen.add((threading.get_ident(), nbbn.get_num_threads()))
        return FeatureMoments.of(nbbn.batch_moments(values, axis=axis).__getstate__())

    path = folder / "x.npy"
    np.save(path, values((40, 5), "float32"))
    monkeypatch.setattr(_stream, "moments_of", moments_of)
    with blocks_of(5, 1), nbbn.num_threads(2):
        moments(path, 1)
    assert len({thread for thread, _ in seen}) == 2
    assert {threads for _, threads in seen} == {1}


@pytest.mark.parametrize("dtype", ["float32", ">f8", "int16", "bool"])
def test_missing_values_and_any_numbers(folder, dtype):
    x = np.random.default_rng(0).integers(0, 9, (50, 4)).astype(dtype)
    if x.dtype.kind == "f":
        x[7, 1] = x[30:, 2] = np.nan
    path = folder / "x.npy"
    np.save(path, x)
    with blocks_of(12):
        found, y = moments(path, 1), normalized(path, 1)
    scaler = nbbn.Standardizer().fit(x)
    np.testing.assert_array_equal(found.counts, np.broadcast_to(scaler.n_samples_seen_, 4))
    np.testing.assert_allclose(found.variances(), scaler.var_, rtol=1e-14)
    assert y.dtype == (np.float32 if dtype == "float32" else np.float64)
    np.testing.assert_allclose(y, scaler.transform(x), rtol=1e-6, atol=1e-7)


def test_infinite_values_are_refused(folder):
    x = values((50, 4), "float32")
    path = folder / "x.npy"
    np.save(path, x)
    with blocks_of(12):
        found = moments(path, 1)
        x[30, 2] = np.inf
        np.save(path, x)
        for call in (lambda: moments(path, 1), lambda: normalized(path, 1, found)):
            with pytest.raises(ValueError, match=r"^X: expected finite values"):
                call()


def test_progress_is_told_of_every_byte_of_the_input(folder):
    path = folder / "x.npy"
    x = values((40, 5), "uint8")
    np.save(path, x)
    first, second = [], []
    with blocks_of(30, 1):
        found = moments(path, 1, first.append)
        normalized(path, 1, found, second.append)
    assert sum(first) == sum(second) == x.nbytes
    assert len(first) > 5


# --- statistics in files ---


def test_saved_statistics_are_those_that_were_used(folder):
    x = (np.random.default_rng(0).normal(1e6, 1, (1000, 3))).astype(np.float32)
    np.save(folder / "x.npy", x)
    with blocks_of(100):
        found = moments(folder / "x.npy", 1)
    _stream.save(folder / "s.npz", found)
    loaded, names = _stream.load(folder / "s.npz")
    assert all(map(np.array_equal, found, loaded)) and names == ()
    assert found.mean_low.any()
    with np.load(folder / "s.npz", allow_pickle=False) as saved:
        assert saved["count"] == 1000
        assert_same_bits(saved["m2"], found.m2)


def saved(path, **arrays):
    with path.open("wb") as file:
        np.savez(file, **arrays)
    return path


def test_statistics_of_others_need_mean_and_var_alone(folder):
    mean, var = np.array([1, 2]), np.array([4, 0.25], np.float32)
    found, _ = _stream.load(saved(folder / "s.npz", mean=mean, var=var))
    assert (found.mean.dtype, found.variances().dtype) == (np.float64, np.float64)
    assert (found.mean.tolist(), found.variances().tolist()) == ([1, 2], [4, 0.25])
    assert found.mean_low.tolist() == [0, 0]


def test_counts_and_names_of_features_are_kept(folder):
    found = FeatureMoments.of(tuple(np.arange(10.0).reshape(5, 2)))
    _stream.save(folder / "s.npz", found, ["a", "böse"])
    loaded, names = _stream.load(folder / "s.npz")
    assert all(map(np.array_equal, found, loaded)) and names == ("a", "böse")


GOOD = {"count": np.array(5.0), "mean": np.ones(3), "var": np.ones(3)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"var": None}, "the arrays mean and var"),
        ({"mean": None}, "the arrays mean and var"),
        ({"more": np.ones(3)}, "the arrays mean and var"),
        ({"var": np.ones(2)}, "var: expected shape"),
        ({"mean": np.ones(()), "var": np.ones(())}, "expected shape"),
        ({"mean": np.ones(0), "var": np.ones(0)}, "expected shape"),
        ({"mean": np.ones((3, 1))}, "mean: got dtype"),
        ({"mean_low": np.ones(4)}, "mean_low: expected shape"),
        ({"var": np.array([1, -1e-9, 1])}, "var: expected no values below 0"),
        ({"count": np.array(0.0)}, "count: expected a number > 0"),
        ({"count": np.array(np.nan)}, "count: expected a number > 0"),
        ({"count": np.zeros(3)}, "count: expected a number > 0"),
        ({"count": np.ones(2)}, "count: expected shape"),
        ({"names": np.array(["a", "b"])}, "names: expected 3, one a feature, got 2"),
        ({"names": np.ones(3)}, "names: got dtype float64"),
        ({"var": np.ones(3, complex)}, "var: got dtype"),
        ({"var": np.ones(3, bool)}, "var: got dtype"),
        ({"var": np.ones(3, ">f8")}, "var: got dtype"),
        pytest.param({"var": np.ones(3, np.longdouble)}, "var: got dtype", marks=longer),
        ({"mean": np.array(["a", "b", "c"])}, "mean: got dtype"),
    ],
)
def test_statistics_that_are_none_are_refused(folder, changes, expected):
    arrays = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    path = saved(folder / "s.npz", **arrays)
    _stream.load(saved(folder / "good.npz", **GOOD))  # as far as it goes, all is well
    with pytest.raises(ValueError, match=f"^path: expected .*s.npz.*{expected}"):
        _stream.load(path)


def test_statistics_are_never_unpickled(folder):
    path = folder / "s.npz"
    with path.open("wb") as file:
        np.savez(file, mean=np.array([print, print], dtype=object), var=np.ones(2))
    with pytest.raises(ValueError, match="mean: got dtype object"):
        _stream.load(path)


def test_statistics_that_are_there_twice_are_refused(folder):
    path = saved(folder / "s.npz", **GOOD)
    with zipfile.ZipFile(path) as archive:
        mean = archive.read("mean.npy")
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore", UserWarning)  # a duplicate name
        archive.writestr("mean.npy", mean)
    with pytest.raises(ValueError, match="the arrays mean and var"):
        _stream.load(path)


def test_compressed_statistics_are_refused(folder):
    np.savez_compressed(folder / "s.npz", mean=np.zeros(1 << 16), var=np.ones(1 << 16))
    with pytest.raises(ValueError, match="uncompressed"):
        _stream.load(folder / "s.npz")


# --- .npy files ---


def header_of(content):
    return _npy.read_header("x", io.BytesIO(content))


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", ">f4", "S3", "U5", "bool", "complex128"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (1, 2, 0, 4), (1,) * 32])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_headers_that_numpy_writes_are_read(dtype, shape, order, version):
    x = np.empty(shape, dtype, order=order)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # version 2 is rarely needed
        np.lib.format.write_array(stream, x, version)
    found = header_of(stream.getvalue())
    fortran = x.flags.f_contiguous and not x.flags.c_contiguous
    assert (found.shape, found.fortran_order, found.dtype) == (shape, fortran, x.dtype)
    assert (found.size, found.nbytes) == (x.size, x.nbytes)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr':'<f4','fortran_order':False,'shape':(2,3)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3,)}   \n",
        "{ 'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }",
    ],
)
def test_headers_that_others_write_are_read(text):
    content = b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()
    assert header_of(content) == _npy.Header((2, 3), False, np.dtype("<f4"))


@pytest.mark.parametrize("cut", [0, 1, 5, 7, 9, 40, -1])
def test_files_that_end_early_are_refused(folder, cut):
    path = folder / "x.npy"
    np.save(path, values((4, 3), "float32"))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(FileError, match=r"x\.npy: expected"), _npy.opened(path):
        pass


@pytest.mark.parametrize("change", [b"more", None])
def test_a_file_that_is_not_as_long_as_its_header_says_is_refused(folder, change):
    path = folder / "x.npy"
    np.save(path, values((4, 3), "float32"))
    content = path.read_bytes()
    path.write_bytes(content + change if change else content.replace(b"(4, 3)", b"(9, 9)"))
    with pytest.raises(FileError, match=r"expected a file of \d+ bytes"), _npy.opened(path):
        pass


@pytest.mark.parametrize("change", ["shorter", "longer", "other values"])
@pytest.mark.parametrize("step", ["moments", "normalize"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, change, step):
    """Else half of the result would be of one array, and half of another."""
    path = tmp_path / "x.npy"
    np.save(path, values((1000, 3), "float32"))
    changed = []

    def advance(size):
        if changed:
            return
        changed.append(change)
        with path.open("r+b") as file:
            if change == "shorter":
                file.truncate(1000)
            else:
                file.seek(0 if change == "other values" else 12_200)
                file.write(b"\x93NUMPY")

    os.utime(path, ns=(0, 0))  # clocks of file systems are coarse
    work = (
        (lambda: moments(path, 1, advance))
        if step == "moments"
        else (lambda: normalized(path, 1, FeatureMoments.of((1.0, *np.ones((4, 3)))), advance))
    )
    with blocks_of(30), pytest.raises(FileError, match=r"while it was read"):
        work()
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.npy"]
    assert changed


def test_reading_and_writing_where_the_system_cannot_do_it_at_a_place(folder, monkeypatch):
    """As on Windows: one position a file, and several threads."""
    x = values((300, 7), "float32")
    path = folder / "x.npy"
    np.save(path, x)
    expected = normalized(path, 1)
    for name in ("preadv", "pwritev", "posix_fadvise"):
        monkeypatch.delattr("os." + name, raising=False)
    with blocks_of(70), nbbn.num_threads(4):
        y = normalized(path, 1)
    assert_normalized(y, x, 1)
    assert np.allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs reads and writes at a place")
def test_files_are_whole_where_the_system_takes_only_half_of_what_it_is_given(folder, monkeypatch):
    """A read or a write may be cut short, by a signal for one: the rest follows."""
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, b, at: preadv(fd, [b[0][: len(b[0]) // 2 + 1]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, b, at: pwritev(fd, [b[0][: len(b[0]) // 2 + 1]], at))
    x = values((300, 7), "float32")
    np.save(folder / "x.npy", x)
    assert_normalized(normalized(folder / "x.npy", 1), x, 1)
