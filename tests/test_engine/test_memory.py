"""Memory of a process: no copies of large arrays, nothing kept from call to call."""

import sys

import pytest
from processes import run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")

MEGABYTE = 1 << 20
SCRATCH = 64 * MEGABYTE  # beside arrays of 512 MB

# Sizes are in bytes; the peak is that since `forget_peak`.
MEASURES = """
import gc, sys, threading, tracemalloc
from pathlib import Path
import numpy as np
import nbbn

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

def resident():
    gc.collect()
    return status("VmRSS")

def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
    assert status("VmHWM") < resident() + (8 << 20)

def growth_of_peak(step):
    forget_peak()
    before = resident()
    step()
    return status("VmHWM") - before
"""

LARGE = """
shape, axis, layout = tuple(map(int, sys.argv[1].split("x"))), int(sys.argv[2]), sys.argv[3]
nbbn.set_num_threads(2)

def made(shape):
    if layout == "channels":  # of twice as many
        return np.empty([2 * n if k == axis else n for k, n in enumerate(shape)], np.float32)[
            (slice(None),) * axis + (slice(shape[axis]),)]
    return np.empty(shape, np.float32)

def filled(shape, seed):  # so every page is there
    array = made(shape)
    array[...] = np.float32(seed)
    array[..., ::3] = 2.0
    return array

small = tuple(n if k == axis else min(n, 40) for k, n in enumerate(shape))
small = (-(-(1 << 18) * small[0] // np.prod(small)), *small[1:])  # parallel, too

def steps(x, out):
    bn = nbbn.BatchNorm(x.shape[axis], axis=axis)
    mean, ones = np.zeros(x.shape[axis]), np.ones(x.shape[axis])
    yield lambda: bn(x, out=out)
    yield lambda: bn.backward(out, out=out)
    yield lambda: bn(x, training=False, out=out)
    yield lambda: nbbn.batch_moments(x, axis=axis)
    yield lambda: nbbn.normalize(x, mean, ones, axis=axis, out=out)
    yield lambda: nbbn.batch_norm(x, mean, ones, training=True, axis=axis, out=out)
    yield lambda: nbbn.batch_norm_backward(out, x, mean, ones, axis=axis, out=out)

for step in steps(filled(small, 0), filled(small, 1)):
    step()  # compiles
x, out = filled(shape, 0), filled(shape, 1)
assert x.nbytes > 480 << 20
print(*[growth_of_peak(step) for step in steps(x, out)])
"""


@pytest.mark.parametrize(
    ("shape", "axis", "layout"),
    [
        ("16x64x384x341", "1", "c"),
        ("2097152x64", "1", "c"),
        ("16x3x1664x1664", "1", "c"),  # channels too few to occupy the threads
        ("64x16x512x256", "1", "channels"),
    ],
)
@pytest.mark.long
def test_steps_on_large_arrays_make_no_copy(shape, axis, layout):
    """Training, backward and inference into ``out``: all that is read is read in place."""
    growth = [int(word) for word in run(MEASURES + LARGE, shape, axis, layout)]
    assert len(growth) == 7
    assert max(growth) <= SCRATCH, growth


STEADY = """
def measured():
    for _ in range(4):  # each lets go of one level of nested tuples
        gc.collect()
    size, count = resident(), len(gc.get_objects())
    return size, count, tracemalloc.get_traced_memory()[0]

def growth(work, warm_up, calls):
    work(0)  # compiles, for which tracing takes long
    tracemalloc.start()
    for k in range(warm_up):
        work(k)
    before = measured()
    for k in range(warm_up, warm_up + calls):
        work(k)
    print(*[now - then for now, then in zip(measured(), before)])
"""

CALLS = """
kept = nbbn.BatchNorm(4)
arrays = [np.ones((n, 4), dtype) for n in range(2, 22) for dtype in (np.float32, np.float64)]
arrays += [a[::-1] for a in arrays[:10]] + [a.reshape(2, 4, -1) for a in arrays[4:30:4]]

def work(k):
    x = arrays[k % len(arrays)]
    bn = nbbn.BatchNorm(4)
    for layer in (kept, bn):
        layer(x), layer.backward(x)
        layer(x, training=False), layer.backward(x, out=np.empty_like(x))
    bn.load_state_dict(kept.state_dict())
    mean, ones = np.zeros(4), np.ones(4)
    nbbn.normalize(x, mean, ones), nbbn.batch_norm(x, mean, ones, training=True)
    nbbn.batch_norm_backward(x, x, mean, ones, ones)
    (nbbn.batch_moments(x) + nbbn.Moments(1, mean, ones)).var()
    for wrong in (lambda: bn(x[:, :3]), lambda: nbbn.normalize(x, mean, ones, eps=-1)):
        try:
            wrong()
        except ValueError:
            pass

for k in range(len(arrays)):
    work(k)
growth(work, 500, 2000)
"""

NEW_SHAPES = """
layer = nbbn.BatchNorm(2)
column = np.ones((12_000, 2), np.float32)

def work(k):
    x = column[:k + 2]
    layer(x), layer(x, training=False), nbbn.batch_moments(x[::-1])

growth(work, 2 * 1024, 3 * 1024)
"""

THREADS = """
layer = nbbn.BatchNorm(8)

def call():
    x = np.ones((64, 8), np.float32)
    layer(x), layer.backward(x), layer(x, training=False)

def work(k):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()

growth(work, 300, 1000)
"""


@pytest.mark.parametrize("script", [CALLS, NEW_SHAPES, THREADS], ids=["calls", "shapes never seen before", "threads"])
@pytest.mark.long
def test_nothing_is_kept_from_call_to_call(script):
    """131 bytes a call would be noticed, and an object that the collector tracks every tenth call."""
    size, objects, traced = map(int, run(MEASURES + STEADY + script))
    assert objects < 100
    assert traced < MEGABYTE // 8
    assert size < 8 * MEGABYTE


POOL = """
x = np.ones((1 << 21, 1), np.float32)  # 8 MB
mean, ones = np.zeros(1), np.ones(1)
nbbn.normalize(x, mean, ones)
before = resident()
results = [nbbn.normalize(x, mean, ones) for _ in range(20)]
held = resident() - before
del results
dropped = resident() - before
for _ in range(20):
    y = nbbn.normalize(x, mean, ones)  # the last one is still there while the next is made
print(held, dropped, growth_of_peak(lambda: nbbn.normalize(x, mean, ones)))
"""


@pytest.mark.parametrize("limit", [0, 40 * MEGABYTE])
def test_memory_of_dropped_results_is_returned(limit):
    held, dropped, again = map(int, run(MEASURES + POOL, env={"NBBN_POOL_BYTES": str(limit)}))
    assert held > 140 * MEGABYTE
    assert dropped <= limit + 8 * MEGABYTE
    assert again <= 16 * MEGABYTE
