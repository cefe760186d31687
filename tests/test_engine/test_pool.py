"""Memory of large results: used again only when nobody can see it any more, and bounded."""

import errno
import gc
import itertools
import os
import subprocess
import sys
import threading

import cases
import numpy as np
import pytest
from interrupts import interrupted
from rooms import memory as _pool

import nbbn

SHAPE = (8, 16, 64, 64)  # 2 MB of float32


@pytest.fixture(autouse=True)
def pool(monkeypatch):
    fresh = _pool.Pool(64 << 20)
    monkeypatch.setattr(_pool, "_pool", fresh)
    gc.freeze()  # of what other tests left, a collection takes a second
    yield fresh
    gc.collect()
    gc.unfreeze()


def address(array):
    return array.ctypes.data


def test_a_dropped_result_makes_room_for_the_next():
    x, bn = cases.values(SHAPE), nbbn.BatchNorm(16).eval()
    y = bn(x)
    first, expected = address(y), y.copy()
    del y
    again = bn(x)
    assert address(again) == first
    assert first % 64 == 0
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize(
    "keep",
    [
        lambda y: y[1:, ::2],
        lambda y: y.reshape(-1)[5:9],
        lambda y: y.view(np.uint8),
        lambda y: y.transpose(3, 2, 1, 0),
        memoryview,
        lambda y: np.asarray(memoryview(y)),
        lambda y: np.from_dlpack(y),
        lambda y: y.flat,
        lambda y: y.view(np.matrix) if y.ndim == 2 else y[0, 0].view(np.matrix),
    ],
)
def test_memory_that_can_be_seen_is_never_used_again(keep, pool):
    x, bn = cases.values(SHAPE), nbbn.BatchNorm(16).eval()
    view = keep(bn(x))
    before = bytes(np.asarray(view).tobytes())
    gc.collect()
    others = [bn(x * k) for k in range(2, 6)]
    assert bytes(np.asarray(view).tobytes()) == before
    assert len({address(y) for y in others}) == 4
    del view
    gc.collect()
    assert pool.waiting() > 0


def test_what_waits_is_bounded(pool):
    results = [_pool.empty_like(np.empty(8 << 20, np.uint8)) for _ in range(12)]
    assert pool.waiting() == 0
    del results
    assert 0 < pool.waiting() <= pool.limit


@pytest.mark.parametrize("name", ["fortran", "channels_last_memory", "shuffled_axes"])
def test_the_memory_order_is_that_of_the_input(name):
    x = getattr(cases, name)(cases.values(SHAPE))
    y = _pool.empty_like(x)
    assert (y.shape, y.dtype, y.strides) == (x.shape, x.dtype, np.empty_like(x).strides)
    assert y.flags.writeable


def test_small_results_and_those_beyond_the_limit_are_ordinary(pool):
    for size in (1 << 10, pool.limit + 1):
        assert _pool.empty_like(np.empty(size, np.uint8)).base is None


def test_threads_never_get_the_same_memory():
    x, bn, failures = cases.values(SHAPE), nbbn.BatchNorm(16).eval(), []
    expected = [bn(x * k) for k in range(4)]

    def work(k):
        right = [np.array_equal(bn(x * k), expected[k]) for _ in range(30)]
        if not all(right):
            failures.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(("value", "limit"), [("0", 0), ("1000", 1000), ("much", 256 << 20)])
def test_the_limit_is_a_setting(value, limit):
    code = (
        "import numpy as np, nbbn\n"
        "y = nbbn.normalize(np.ones((1024, 1024)), np.zeros(1024), np.ones(1024))\n"
        "print(nbbn.config()['pool_bytes'], y.base is None)\n"
    )
    environment = {**os.environ, "NBBN_POOL_BYTES": value}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.split() == [str(limit), str(limit < 8 << 20)]
    assert done.stderr == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_write_into_its_parents_results():
    y = _pool.empty_like(np.empty(2 << 20, np.uint8))
    y[:] = 1
    child = os.fork()
    if child == 0:
        y[:] = 2
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert np.all(y == 1)


def test_a_signal_handler_in_the_middle_of_a_search(pool):
    """It may ask for memory, which is not that of the search; and it may raise, and costs no later result."""
    like = np.empty(2 << 20, np.uint8)
    for step in itertools.count():
        keep, _ = [_pool.empty_like(like), _pool.empty_like(like)], _pool.empty_like(like)
        del keep[:], _
        assert pool.waiting() >= 2 << 20
        inside = []

        def handler(inside=inside):
            inside.append(_pool.empty_like(like))
            raise TimeoutError

        found = interrupted(lambda: _pool.empty_like(like), _pool.Pool._find, step, handler)
        again = _pool.empty_like(like)
        used = [address(y) for y in (*inside, again, *([] if found is None else [found]))]
        assert len(set(used)) == len(used)
        first = address(again)
        del again
        assert address(_pool.empty_like(like)) == first  # the pool is on
        if not inside:
            break
    assert step > 20


def test_no_memory_for_a_result_is_a_memory_error(pool):
    with pytest.raises(MemoryError, match=r"^no memory for a result of 1125899906842624 bytes"):
        pool.take(1 << 50)


def test_what_waits_in_the_pool_is_given_back_before_a_result_fails(pool, monkeypatch):
    given, map_anew = _pool.empty_like(np.empty(2 << 20, np.uint8)), _pool._map

    def short_of_memory(size):
        if pool.waiting():
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return map_anew(size)

    monkeypatch.setattr(_pool, "_map", short_of_memory)
    del given
    assert pool.waiting() == 2 << 20
    made = _pool.empty_like(np.empty(4 << 20, np.uint8))
    assert (made.nbytes, pool.waiting()) == (4 << 20, 0)


@pytest.mark.parametrize("training", [True, False])
def test_a_layer_without_memory_for_its_result_is_unchanged(training, monkeypatch):
    def no_memory(size):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    x, bn = cases.values(SHAPE), nbbn.BatchNorm(16).train(training)
    expected = bn(x)
    before = bn.state_dict()
    monkeypatch.setattr(_pool, "_pool", _pool.Pool(64 << 20))
    with monkeypatch.context() as patch:
        patch.setattr(_pool, "_map", no_memory)
        with pytest.raises(MemoryError, match="no memory for a result"):
            bn(x)
    assert all(np.array_equal(value, before[name]) for name, value in bn.state_dict().items())
    np.testing.assert_array_equal(bn(x), expected)


def test_a_result_may_outlive_the_package():
    code = "import numpy as np, nbbn\nnp.keep = nbbn.normalize(np.ones((1024, 1024)), np.zeros(1024), np.ones(1024))\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stderr == ""
