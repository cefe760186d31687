"""The loops that nbbn's speed is compared with compute what they say, over the whole array."""

import importlib

import numpy as np
import processes
import pytest

from nbbn._bench import yardsticks
from nbbn._compiler.jit import Variant

pytestmark = pytest.mark.long

SIZES = (5, 16, 1000, yardsticks.STRIDE, yardsticks.STRIDE + 24, 5 * yardsticks.STRIDE + 7)
TOLERANCE = {np.float32: 1e-5, np.float64: 1e-13}


@pytest.fixture
def loops(monkeypatch):
    """All loops: a copy and a fused one are in benchmarks/."""
    monkeypatch.syspath_prepend(str(processes.ROOT))
    return importlib.import_module("benchmarks.harness.loops")


def run(loop, dtype, parallel, x, second, *others):
    """Call the variant for these arrays, each as a stack of one row."""
    stacks = [a.reshape(1, 1, -1) if isinstance(a, np.ndarray) else a for a in (x, second, *others)]
    loop.variant(Variant(dtype, parallel, residual=second is not None))(*stacks)


def aligned(size, dtype):
    buffer = np.full(size * np.dtype(dtype).itemsize + 64, 255, np.uint8)
    start = -buffer.ctypes.data % 64
    return buffer[start : start + size * np.dtype(dtype).itemsize].view(dtype)


def random(size, dtype, seed=0):
    array = aligned(size, dtype)
    array[...] = np.random.default_rng(seed).uniform(0.5, 1.5, size)
    return array


def piece_sums(*arrays):
    """The sum over each piece, without the values after the last sixteen."""
    used = arrays[0].size // 16 * 16
    total = np.sum([a[:used].astype(np.float64) for a in arrays], axis=0)
    pieces = range(0, arrays[0].size, yardsticks.STRIDE)
    return np.array([total[start : start + yardsticks.STRIDE].sum() for start in pieces])


def beside(sums, size):
    return np.repeat(sums, yardsticks.STRIDE)[:size]


@pytest.fixture(params=["serial", "parallel"])
def parallel(request):
    return request.param == "parallel"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
def test_reading(size, dtype, parallel):
    a, b = random(size, dtype), random(size, dtype, seed=1)
    sums = np.full(-(-size // yardsticks.STRIDE), np.nan, dtype)
    run(yardsticks.read, dtype, parallel, a, None, sums)
    np.testing.assert_allclose(sums, piece_sums(a), rtol=TOLERANCE[dtype])
    run(yardsticks.read, dtype, parallel, a, b, sums)
    np.testing.assert_allclose(sums, piece_sums(a, b), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("streaming", [0, 1], ids=["plain", "streaming"])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "inputs", "adds_sums"),
    [
        ("write", 1, False),
        ("write", 2, False),
        ("read_then_write", 1, True),
        ("read_then_write", 2, True),
    ],
)
def test_writing(loops, name, inputs, adds_sums, size, dtype, streaming, parallel):
    arrays = [random(size, dtype, seed) for seed in range(inputs)]
    y = aligned(size, dtype)
    y[...] = -7
    run(getattr(loops, name), dtype, parallel, *[*arrays, None][:2], y, streaming)
    shift = beside(piece_sums(*arrays), size) if adds_sums else 0.25
    expected = 0.75 * arrays[0].astype(np.float64) + sum(arrays[1:]) + shift
    used = size // 16 * 16
    np.testing.assert_allclose(y[:used], expected[:used], rtol=TOLERANCE[dtype])
    assert (y[used:] == -7).all()


@pytest.mark.parametrize("streaming", [0, 1], ids=["plain", "streaming"])
@pytest.mark.parametrize("size", SIZES)
def test_copying_keeps_every_bit(loops, size, streaming, parallel):
    x, y = aligned(size, np.float32), aligned(size, np.float32)
    # NaN with all sorts of bits, too: pairs of half types are copied like this
    bits = np.random.default_rng(0).integers(0, 2**32, size, dtype=np.uint32)
    x.view(np.uint32)[...] = bits
    y[...] = -7
    stacks = (array.reshape(1, 1, size) for array in (x, y))
    loops.copy.variant(Variant(np.float32, parallel))(*stacks, streaming)
    used = size // 16 * 16
    np.testing.assert_array_equal(y.view(np.uint32)[:used], bits[:used])
    assert (y[used:] == -7).all()


@pytest.mark.parametrize("streaming", [0, 1], ids=["plain", "streaming"])
@pytest.mark.parametrize("size", SIZES)
def test_bytes_become_float32(size, streaming, parallel):
    x, y = aligned(size, np.uint8), aligned(size, np.float32)
    x[...] = np.random.default_rng(0).integers(0, 256, size)
    y[...] = -7
    run(yardsticks.write, np.uint8, parallel, x, None, y, streaming)
    used = size // 16 * 16
    np.testing.assert_array_equal(y[:used], 0.75 * x[:used] + 0.25)
    assert (y[used:] == -7).all()


@pytest.mark.parametrize("size", SIZES)
def test_half_types_are_combined_as_float32(size, parallel):
    a, b = (random(size, np.float16, seed) for seed in range(2))
    y = aligned(size, np.float16)
    bits = [array.view(np.uint16) for array in (a, b, y)]
    run(yardsticks.write, np.uint16, parallel, *bits, 0)
    used = size // 16 * 16
    expected = 0.75 * a[:used].astype(np.float32) + (b[:used].astype(np.float32) + np.float32(0.25))
    np.testing.assert_allclose(y[:used], expected, rtol=2**-10)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_in_place(dtype, parallel):
    x = random(1000, dtype)
    expected = 0.75 * x + dtype(0.25)
    run(yardsticks.write, dtype, parallel, x, None, x, 0)
    np.testing.assert_allclose(x[:992], expected[:992], rtol=TOLERANCE[dtype])
