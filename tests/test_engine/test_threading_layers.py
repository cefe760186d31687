"""The same bits and no abort under every threading layer of numba, and without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import WORK, environment, expected_digest, run

pytestmark = pytest.mark.long

LAYERS = ("omp", "workqueue", "tbb")
by_layer = pytest.mark.parametrize("layer", LAYERS, indirect=True)
on_linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="other threads are seen in /proc/self/task")

PROBE = """
import numba
try:
    numba.get_num_threads()
    print(numba.threading_layer())
except ValueError:
    print("none")
"""


def told(layer):
    """What a process's environment needs to run with this layer."""
    # pip puts libtbb into a folder that the loader does not search.
    folders = [str(Path(sys.prefix, "lib")), os.environ.get("LD_LIBRARY_PATH", "")]
    found = {"NUMBA_THREADING_LAYER": layer}
    return found if layer != "tbb" else {**found, "LD_LIBRARY_PATH": ":".join(filter(None, folders))}


@pytest.fixture(scope="module")
def layer(request):
    if run(PROBE, env=told(request.param)) != [request.param]:
        pytest.skip(f"numba can not load its threading layer {request.param}")
    return request.param


@pytest.fixture(scope="module")
def expected():
    return expected_digest()


RESULTS = """
for threads in (1, 2, 4):
    with nbbn.num_threads(threads):
        print(digest())
print(nbbn.config()["threading_layer"])
"""


@by_layer
def test_results_are_those_of_one_thread(layer, expected):
    assert run(WORK + RESULTS, env=told(layer)) == [expected] * 3 + [layer]


MANY = """
from concurrent.futures import ThreadPoolExecutor

digest()
with ThreadPoolExecutor(16) as pool:
    print(*set(pool.map(digest, range(48))))
"""


@by_layer
def test_sixteen_callers_at_once_get_the_bits_of_one(layer, expected):
    assert run(WORK + MANY, env=told(layer)) == [expected]


SOMEBODY = """
import numba

@numba.njit(parallel=True)
def of_somebody_else(x):
    total = 0.0
    for k in numba.prange(x.size):
        total += x[k]
    return total

numbers = np.ones(1_000_000)
"""

BESIDE = """
from concurrent.futures import ThreadPoolExecutor

done = threading.Event()
of_somebody_else(numbers)

def keep_busy():
    while not done.is_set():
        assert of_somebody_else(numbers) == numbers.size

with ThreadPoolExecutor(7) as pool:
    busy = pool.submit(keep_busy)
    print(*set(pool.map(digest, range(12))))
    done.set()
    busy.result()
"""


@pytest.mark.parametrize("layer", ["omp", "tbb"], indirect=True)
def test_callers_beside_the_parallel_loops_of_another_library(layer, expected):
    """Under workqueue, see test_threads.py."""
    assert run(WORK + SOMEBODY + BESIDE, env=told(layer)) == [expected]


# Threads that Python does not know; how often each of them was put to sleep or off its core. Who
# waits for work does not run at all.
OTHERS = """
import time

def others():
    known = {str(thread.native_id) for thread in threading.enumerate()}
    switches = {}
    for task in set(os.listdir("/proc/self/task")) - known:
        try:
            lines = open(f"/proc/self/task/{task}/status").read().splitlines()
        except OSError:  # it has ended meanwhile
            continue
        switches[task] = [line for line in lines if "ctxt_switches" in line]
    return switches

def settled():
    last = None
    while last != others():
        last = others()
        time.sleep(0.1)
    return last
"""

TAKES_PART = """
digest()
before = settled()
for _ in range(5):
    digest()
print(settled() != before)
before = settled()
of_somebody_else(numbers)
for _ in range(5):
    of_somebody_else(numbers)
print(settled() != before)
"""


@on_linux
@pytest.mark.parametrize("layer", ["omp", "workqueue"], indirect=True)
def test_other_threads_take_part_where_two_callers_may_start_them(layer):
    script = WORK + SOMEBODY + OTHERS + TAKES_PART
    assert run(script, env=told(layer)) == [str(layer != "workqueue"), "True"]


BLOCKED = """
import sys
for name in {names}:
    sys.modules["numba.np.ufunc." + name] = None
"""


@pytest.mark.parametrize(("wanted", "pool"), [("tbb", "tbbpool"), ("omp", "omppool")])
def test_without_the_layer_that_was_asked_for_one_thread_does_it(wanted, pool, expected):
    script = (
        BLOCKED.format(names=[pool])
        + WORK
        + """
print(digest(), nbbn.config()["threading_layer"])
"""
    )
    assert run(script, env=told(wanted)) == [expected, "None"]


def test_without_openmp_and_tbb_the_layer_is_workqueue_and_not_entered(expected):
    script = (
        BLOCKED.format(names=["omppool", "tbbpool"])
        + WORK
        + MANY
        + """
print(nbbn.config()["threading_layer"])
"""
    )
    assert run(script, env={"NUMBA_THREADING_LAYER": None}) == [expected, "workqueue"]


MASKS = """
import contextlib
import numba
from rooms import threads as _threads

def infer():
    nbbn.BatchNorm(12).eval()(large)

def fail_at_the_end():
    poisoned = large.copy()
    poisoned[0, 0, 0, 0] = np.nan
    nbbn.BatchNorm(12, on_nonfinite="raise")(poisoned)

def fail_before():
    nbbn.BatchNorm(11)(large)

def fail_inside():
    claim = _threads.enter_region()
    assert claim is not None or numba.threading_layer() == "workqueue"
    try:
        1 // 0
    finally:
        if claim is not None:
            _threads.leave_region(claim)

def masks(mask):
    numba.set_num_threads(mask)
    for call in (digest, infer, fail_at_the_end, fail_before, fail_inside):
        fails = call.__name__.startswith("fail")
        try:
            call()
        except (FloatingPointError, ValueError, ZeroDivisionError):
            assert fails
        else:
            assert not fails
        yield numba.get_num_threads()

def in_thread():
    print(*masks(3))

print(*masks(1))
thread = threading.Thread(target=in_thread)
thread.start()
thread.join()
print(numba.get_num_threads())
"""

MASKS_AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
import numba

def masks(mask):
    numba.set_num_threads(mask)
    found = set()
    for _ in range(50):
        nbbn.BatchNorm(12)(large)
        found.add(numba.get_num_threads())
    return found

with ThreadPoolExecutor(4) as pool:
    print(*pool.map(masks, (1, 2, 3, 4)))
"""


@by_layer
def test_callers_at_once_do_not_mix_up_their_thread_masks(layer):
    assert run(WORK + MASKS_AT_ONCE, env=told(layer)) == ["{1}", "{2}", "{3}", "{4}"]


@by_layer
def test_the_thread_mask_of_every_caller_stays_as_it_was(layer):
    assert run(WORK + MASKS, env=told(layer)) == ["1"] * 5 + ["3"] * 5 + ["1"]


# Prints when the work is done; then the process should end.
FIRST_IN_A_THREAD = """
import os, threading
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
import numba, numpy
{before}
@numba.njit(parallel=True)
def total(x):
    found = 0.0
    for k in numba.prange(x.size):
        found += x[k]
    return found

thread = threading.Thread(target=lambda: print(total(numpy.ones(10)), flush=True))
thread.start()
thread.join()
"""
IN_THE_MAIN_THREAD = """
import nbbn
nbbn.set_num_threads(2)
nbbn.warmup()
"""


@on_linux
@pytest.mark.parametrize("layer", ["tbb"], indirect=True)
@pytest.mark.parametrize("before", ["", IN_THE_MAIN_THREAD], ids=["numba alone", "after warmup"])
def test_on_one_cpu_tbb_has_to_be_loaded_by_the_main_thread(layer, before):
    """Else a process never ends, also without nbbn: docs/operators.md says so until it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", FIRST_IN_A_THREAD.format(before=before)],
        env=environment(**told(layer)),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout.readline() == b"10.0\n"
        if before:
            assert process.wait(300) == 0
        else:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(5)
    finally:
        process.kill()
        process.communicate()


# An OpenMP runtime keeps a team for every thread that has started a region, as long as that lives.
TEAMS = """
def call_and_stay(called, release):
    print(digest())
    called.set()
    release.wait()

def start(count):
    release, threads = threading.Event(), []
    for _ in range(count):
        called = threading.Event()
        threads.append(threading.Thread(target=call_and_stay, args=(called, release)))
        threads[-1].start()
        called.wait()
    return release, threads

def end(release, threads):
    release.set()
    for thread in threads:
        thread.join()

nbbn.set_num_threads(4)
before = len(others())
crowd = start(40)
print("teams", len(others()) - before)
end(*crowd)
while len(others()) > before:  # the system ends threads a little later
    time.sleep(0.05)
one = start(1)
print(len(others()) - before)
end(*one)
"""


@on_linux
@pytest.mark.parametrize("layer", ["omp"], indirect=True)
def test_callers_that_stay_alive_own_no_more_than_eight_teams(layer, expected):
    found = run(WORK + OTHERS + TEAMS, env=told(layer))
    assert set(found[:40]) == {expected}
    assert found[40] == "teams"
    assert 0 < int(found[41]) <= 8 * 3
    assert found[42:] == [expected, "3"]  # who has ended has given its place back
