"""The same bits for any number of threads, for concurrent callers, and right results after a fork."""

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import cases
import numba
import numpy as np
import pytest
from compare import assert_same_bits, layer

import nbbn

# Far above any size at which work is handed to more than one thread.
LARGE = {
    "channels_first": ((8, 12, 72, 72), 1, "c"),
    "small_images": ((64, 150, 7, 7), 1, "c"),
    "channels_last": ((8, 72, 72, 12), -1, "c"),
    "channels_last_memory": ((8, 12, 72, 72), 1, "channels_last_memory"),
    "matrix": ((40_000, 12), 1, "c"),
    "wide_matrix": ((40, 12_000), 1, "c"),
    "one_channel": ((1, 1, 500_000), 1, "c"),
    "one_column": ((500_000, 1), 1, "c"),
    "two_channels": ((3, 2, 300, 301), 1, "c"),
    "five_channels": ((6, 5, 120, 121), 1, "c"),
    "five_columns": ((90_000, 5), 1, "c"),
    "fortran": ((8, 12, 72, 72), 1, "fortran"),
    "strided": ((8, 12, 72, 72), 1, "strided"),
    "first_axis": ((12, 40_000), 0, "c"),
}
by_size = pytest.mark.parametrize("name", LARGE)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)


def moments(x, axis):
    found = nbbn.batch_moments(x, axis=axis)
    return found.mean, found.m2


def train(x, axis):
    gamma, beta, mean, var = cases.parameters(x.shape[axis])
    y = nbbn.batch_norm(x, mean, var, gamma, beta, training=True, axis=axis)
    return y, mean, var


def infer(x, axis):
    gamma, beta, mean, var = cases.parameters(x.shape[axis])
    return (nbbn.normalize(x, mean, var, gamma, beta, axis=axis),)


def differentiate(x, axis, training=True):
    gamma, _, mean, var = cases.parameters(x.shape[axis])
    return nbbn.batch_norm_backward(x[::-1], x, mean, var, gamma, axis=axis, training=training)


def differentiate_inference(x, axis):
    return differentiate(x, axis, training=False)


def a_layer_step(x, axis):
    bn = layer(x.shape[axis], axis=axis)
    return (
        bn(x),
        bn.backward(x),
        bn.grad_gamma,
        bn.grad_beta,
        bn.running_mean,
        bn.running_var,
        bn.batch_inv_std,
    )


OPERATIONS = (moments, train, infer, differentiate, differentiate_inference, a_layer_step)
by_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)


def large(name, dtype=np.float32):
    shape, axis, layout = LARGE[name]
    return cases.LAYOUTS[layout](cases.values(shape, dtype, loc=100.0)), axis


def assert_same_results(a, b):
    assert len(a) == len(b)
    for first, second in zip(a, b, strict=True):
        assert_same_bits(first, second)


@by_operation
@by_size
@by_dtype
def test_any_number_of_threads_gives_the_same_bits(name, operation, dtype):
    x, axis = large(name, dtype)
    with nbbn.num_threads(1):
        alone = operation(x, axis)
    for threads in (2, 2, 3, 4):
        with nbbn.num_threads(threads):
            assert_same_results(operation(x, axis), alone)


@by_operation
def test_the_same_bits_at_every_size_around_the_parallel_threshold(operation):
    for rows in (50, 400, 1000, 1700, 2500, 4000, 6000, 8000):
        for shape, axis in (((rows, 17), 1), ((1, 17, rows), 1)):
            x = cases.values(shape)
            with nbbn.num_threads(1):
                alone = operation(x, axis)
            with nbbn.num_threads(2):
                assert_same_results(operation(x, axis), alone)


@pytest.mark.parametrize("threads", [1, 2])
@by_size
def test_inference_gives_the_same_bits_for_any_batch_and_position(name, threads):
    x, axis = large(name)
    gamma, beta, mean, var = cases.parameters(x.shape[axis])
    with nbbn.num_threads(threads):
        whole = nbbn.normalize(x, mean, var, gamma, beta, axis=axis)
        plain = nbbn.normalize(np.ascontiguousarray(x), mean, var, gamma, beta, axis=axis)
        assert_same_bits(whole, plain)
        along = 0 if axis != 0 else 1
        size = x.shape[along]
        for start, stop in (
            (0, 1),
            (size // 2, size),
            (size - 1, size),
            (size // 3, size // 3 + 1),
        ):
            part = (slice(None),) * along + (slice(start, stop),)
            assert_same_bits(nbbn.normalize(x[part], mean, var, gamma, beta, axis=axis), whole[part])


def test_inference_gives_the_same_bits_in_every_layout_of_a_large_array():
    plain = cases.values((9, 10, 61, 67))
    gamma, beta, mean, var = cases.parameters(10)
    expected = nbbn.normalize(plain, mean, var, gamma, beta)
    for name in cases.KEEPING:
        got = nbbn.normalize(cases.LAYOUTS[name](plain), mean, var, gamma, beta)
        assert np.array_equal(got, expected), name
        out = np.moveaxis(np.empty((9, 61, 67, 10), np.float32), -1, 1)
        assert np.array_equal(nbbn.normalize(cases.LAYOUTS[name](plain), mean, var, gamma, beta, out=out), expected), (
            name
        )


def test_the_number_of_threads_is_set_read_and_restored():
    before = nbbn.get_num_threads()
    try:
        nbbn.set_num_threads(1)
        assert nbbn.get_num_threads() == 1
        with nbbn.num_threads(2):
            assert nbbn.get_num_threads() == 2
        assert nbbn.get_num_threads() == 1
        with pytest.raises(KeyError), nbbn.num_threads(2):
            raise KeyError
        assert nbbn.get_num_threads() == 1
    finally:
        nbbn.set_num_threads(before)


IMPOSSIBLE = {0: "0", -1: "-1", 1.5: "1.5|float", "two": "two|str", None: "None", 10**6: "1000000"}


@pytest.mark.parametrize(("count", "named"), IMPOSSIBLE.items())
def test_a_number_of_threads_that_can_not_be_is_refused(count, named):
    before = nbbn.get_num_threads()
    with pytest.raises((TypeError, ValueError), match=named):
        nbbn.set_num_threads(count)
    with pytest.raises((TypeError, ValueError), match=named), nbbn.num_threads(count):
        raise AssertionError("the block must not be entered")
    assert nbbn.get_num_threads() == before


@pytest.mark.parametrize("mask", [1, 2])
def test_the_thread_mask_of_the_caller_is_restored(mask):
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(mask)
        for threads in (1, 2):
            with nbbn.num_threads(threads):
                a_layer_step(*large("channels_first"))
                infer(*large("channels_last"))
            assert numba.get_num_threads() == mask
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("name", ["channels_first", "matrix", "one_channel"])
@by_operation
def test_concurrent_callers_get_the_bits_of_a_single_caller(operation, name):
    x, axis = large(name)
    inputs = [x, x * np.float32(2), x[:, :, : x.shape[2] // 3] if x.ndim > 2 else x[: len(x) // 3]]
    expected = [operation(array, axis) for array in inputs]
    with ThreadPoolExecutor(6) as pool:
        futures = [(k % 3, pool.submit(operation, inputs[k % 3], axis)) for k in range(18)]
        for k, future in futures:
            assert_same_results(future.result(), expected[k])


def test_concurrent_training_of_one_layer_loses_no_update():
    small = cases.values((8, 12, 5, 5), loc=100.0)
    together, alone = layer(12, momentum=0.25), layer(12, momentum=0.25)
    for _ in range(200):
        alone(small)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: together(small), range(200)))
    expected = alone(small, training=True)
    for y in results:
        assert_same_bits(y, expected)
    assert together.num_batches_tracked == 200
    together(small)
    assert_same_bits(together.running_mean, alone.running_mean)
    assert_same_bits(together.running_var, alone.running_var)


def test_inference_beside_training_sees_statistics_of_one_moment():
    """Two batches alternate with momentum 1: every y belongs to the mean and variance of the same batch."""
    x = cases.values((64, 200))
    batches = x * np.float32(3) + 5, x * np.float32(0.1) - 7
    bn = nbbn.BatchNorm(200, momentum=1.0)
    possible = set()
    for batch in batches:
        bn(batch)
        possible.add(bn(x, training=False).tobytes())
    with ThreadPoolExecutor(3) as pool:
        trained = pool.submit(lambda: [bn(batches[k % 2], training=True) is None for k in range(600)])
        seen = {y.tobytes() for y in pool.map(lambda _: bn(x, training=False), range(600))}
        assert not any(trained.result())
    assert len(possible) == 2
    assert seen <= possible


def run(script, *arguments):
    """The output of a script in a process of its own; a process that hangs fails the test."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.split()


FORK = """
    import os, signal, sys, warnings
    import numpy as np
    import nbbn

    signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM", flush=True))
    x = np.random.default_rng(0).normal(3, 2, (40, 12, 60, 60)).astype(np.float32)

    def results():
        bn = nbbn.BatchNorm(12)
        out, grad = np.full_like(x, 777), np.full_like(x, 777)
        bn(x, out=out), bn.backward(x[::-1], out=grad)
        arrays = out, grad, bn.running_var, bn.grad_gamma, bn.eval()(x), nbbn.batch_moments(x).m2
        return b"".join(a.tobytes() for a in arrays)

    def check_in_child(name, deeper):
        sys.stdout.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                same = results() == expected
                print(name, same, flush=True)
                status = 0 if same and (not deeper or check_in_child("grandchild", False) == 0) else 1
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    expected = results() if sys.argv[1] == "used" else None
    if expected is None:
        with nbbn.num_threads(1):
            expected = results()
    print("status", check_in_child("child", True))
    print("parent", results() == expected)
"""


@pytest.mark.parametrize("before", ["used", "serial only"])
def test_a_child_and_a_grandchild_of_a_fork_compute_the_right_result(before):
    assert run(FORK, before) == [
        "child",
        "True",
        "grandchild",
        "True",
        "status",
        "0",
        "parent",
        "True",
    ]


CONCURRENT = """
    import os, sys, threading
    from concurrent.futures import ThreadPoolExecutor

    os.environ["NUMBA_THREADING_LAYER"] = sys.argv[1]
    import numba
    import numpy as np
    import nbbn

    @numba.njit(parallel=True)
    def of_somebody_else(x):
        total = 0.0
        for k in numba.prange(x.size):
            total += x[k]
        return total

    def keep_busy():
        while not done.is_set():
            of_somebody_else(numbers)

    def results(_=None):
        bn = nbbn.BatchNorm(12)
        arrays = bn(x), bn.backward(x[::-1]), bn.running_var, bn.grad_gamma, bn.eval()(x)
        return b"".join(a.tobytes() for a in arrays)

    x = np.random.default_rng(0).normal(3, 2, (40, 12, 60, 60)).astype(np.float32)
    numbers, done = np.ones(3_000_000), threading.Event()
    with nbbn.num_threads(1):
        expected = results()
    of_somebody_else(numbers)
    with ThreadPoolExecutor(7) as pool:
        busy = pool.submit(keep_busy)
        print(all(same == expected for same in pool.map(results, range(12))))
        done.set()
        busy.result()
"""


@pytest.mark.parametrize("threading_layer", ["workqueue", "default"])
def test_concurrent_callers_abort_under_no_threading_layer(threading_layer):
    """Numba's workqueue ends the process where two threads are in a parallel region at once.

    One of them may be another library's, so nbbn must not start any under that layer.
    """
    assert run(CONCURRENT, threading_layer) == ["True"]


def test_import_compiles_nothing_and_starts_no_thread():
    script = """
        import os, threading
        import numpy, numba
        from numba.core import event

        def threads():
            return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()

        before = threads()
        with event.install_recorder("numba:compile") as recorder:
            import nbbn
        print(len(recorder.buffer), threads() - before)
    """
    assert run(script) == ["0", "0"]


def test_the_number_of_threads_does_not_exceed_what_the_process_may_use():
    script = """
        import os
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            import nbbn
            print(nbbn.get_num_threads())
        else:
            print(1)
    """
    assert run(script) == ["1"]
