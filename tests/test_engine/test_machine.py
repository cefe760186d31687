"""What the process may use: CPU quotas of control groups, and what `config` says of it all."""

import os
import signal
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest
from processes import run
from rooms import forks as _locks
from rooms import jit as _jit
from rooms import machine as _machine
from rooms import threads as _threads

import nbbn


def groups(root, files, membership):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    path = root / "membership"
    path.write_text(membership)
    return _machine.cpu_quota(root, path)


V1 = "cpu/app/cpu.cfs_quota_us", "cpu/app/cpu.cfs_period_us"
QUOTAS = {
    "none": ({}, "0::/\n", None),
    "version 2, of the container": ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
    "version 2, no limit": ({"cpu.max": "max 100000\n"}, "0::/\n", None),
    "version 2, of a service": (
        {"cpu.max": "max 100000", "system.slice/app.service/cpu.max": "50000 100000"},
        "0::/system.slice/app.service\n",
        0.5,
    ),
    "version 2, of the group above": (
        {"a/cpu.max": "200000 100000", "a/b/cpu.max": "400000 100000"},
        "0::/a/b\n",
        2.0,
    ),
    "version 2, of another group": ({"other/cpu.max": "100000 100000"}, "0::/a\n", None),
    "the path of the host": ({"cpu.max": "300000 100000"}, "0::/../../host/x\n", 3.0),
    "version 1": (
        {V1[0]: "250000", V1[1]: "100000"},
        "5:memory:/app\n4:cpu,cpuacct:/app\n0::/\n",
        2.5,
    ),
    "version 1, no limit": ({V1[0]: "-1", V1[1]: "100000"}, "4:cpu,cpuacct:/app\n", None),
    "version 1, of the container": (
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"},
        "4:cpu,cpuacct:/docker/0123\n",
        2.0,
    ),
    "nonsense": ({"cpu.max": "many few"}, "what is this\n", None),
    "empty files": ({"cpu.max": ""}, "", None),
}


@pytest.mark.parametrize(("files", "membership", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_the_least_quota_of_the_control_groups_counts(files, membership, cores, tmp_path):
    found = groups(tmp_path, files, membership)
    assert found == cores


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert _machine.cpu_quota(tmp_path / "none", tmp_path / "neither") is None


@pytest.mark.parametrize(("cores", "threads"), [(0.3, 1), (1.0, 1), (1.5, 2), (100.0, None)])
def test_the_default_number_of_threads_stays_within_the_quota(cores, threads, monkeypatch):
    monkeypatch.setattr(_threads, "cpu_quota", lambda: cores)
    monkeypatch.setattr(_threads, "affinity", lambda: 64)
    monkeypatch.setattr(_threads, "_default", _threads.available_threads)
    monkeypatch.setattr(_threads, "_everywhere", 0)
    most = numba.config.NUMBA_NUM_THREADS
    assert nbbn.get_num_threads() == (most if threads is None else min(threads, most))
    assert nbbn.config()["cpu_quota"] == cores


def config_of(code="", **environment):
    """The lines of `show_config` in a process of its own, as a dict."""
    script = f"{code}\nimport nbbn\nnbbn.show_config()"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "NUMBA_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


LARGE = "import numpy as np, nbbn\nnbbn.set_num_threads(2)\nnbbn.batch_moments(np.ones((400, 400)))\n"
REASONS = {
    "one thread": ("import nbbn; nbbn.set_num_threads(1)", {}, "no: only one thread"),
    "nothing yet": ("import nbbn; nbbn.set_num_threads(2)", {}, "not decided yet"),
    "used": (LARGE, {}, "yes"),
    "not compiled": (
        "import nbbn; nbbn.set_num_threads(2)",
        {"NUMBA_DISABLE_JIT": "1"},
        "no: compilation",
    ),
    "workqueue": (LARGE, {"NUMBA_THREADING_LAYER": "workqueue"}, "no: numba's threading layer"),
    "no libgomp": (
        "import sys\nfor name in ('omp', 'tbb'): sys.modules[f'numba.np.ufunc.{name}pool'] = None\n" + LARGE,
        {},
        "no: numba's threading layer is workqueue",
    ),
    "no such layer": (
        "import sys\nsys.modules['numba.np.ufunc.tbbpool'] = None\n" + LARGE,
        {"NUMBA_THREADING_LAYER": "tbb"},
        "no: numba finds no threading layer for 'tbb'",
    ),
}


@pytest.mark.parametrize(("code", "environment", "expected"), REASONS.values(), ids=REASONS)
def test_the_configuration_tells_whether_and_why_calls_run_in_parallel(code, environment, expected):
    assert config_of(code, **environment)["parallel"].startswith(expected)


def test_the_configuration_tells_why_nothing_compiled_is_kept(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "Error" in config_of(NBBN_CACHE_DIR=str(blocked))["cache_problem"]
    assert config_of(NBBN_CACHE_DIR="")["cache_problem"] == "NBBN_CACHE_DIR is empty"
    assert config_of(NBBN_CACHE_DIR=str(tmp_path))["cache_problem"] == "None"
    (tmp_path / "open" / "nbbn").mkdir(parents=True)
    (tmp_path / "open" / "nbbn").chmod(0o777)
    problem = config_of(NBBN_CACHE_DIR=str(tmp_path / "open"))["cache_problem"]
    assert problem.startswith("another user may write to")


def test_asking_for_the_configuration_loads_nothing():
    code = (
        "import os, nbbn\n"
        "linux = os.path.isdir('/proc/self/task')\n"
        "def threads(): return len(os.listdir('/proc/self/task')) if linux else 0\n"
        "before = threads()\n"
        "nbbn.config()\n"
        "assert not linux or 'omppool' not in open('/proc/self/maps').read()\n"
        "assert threads() == before\n"
    )
    assert config_of(code)["threading_layer"] == "None"


FOREIGN = """
import ctypes, os, signal, warnings
import numpy as np, nbbn

openmp, c = ctypes.CDLL("libgomp.so.1"), ctypes.CDLL(None)
nothing = ctypes.cast(c.free, ctypes.c_void_p)  # free(NULL) in every thread
openmp.GOMP_parallel(nothing, None, 2, 0)
nbbn.set_num_threads(2)
x = np.random.default_rng(0).normal(size=(500, 500))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    pid = os.fork()
if pid == 0:
    signal.alarm(240)
    m2 = nbbn.batch_moments(x).m2
    assert nbbn.config()["parallel"].startswith("no: the process was forked"), nbbn.config()["parallel"]
    os._exit(0 if np.array_equal(m2, nbbn.batch_moments(x).m2) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), nbbn.batch_moments(x).mean.shape)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is looked for on Linux")
def test_a_child_of_a_process_whose_openmp_another_library_used_does_not_hang():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FOREIGN],
        env={**os.environ, "NUMBA_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if "libgomp.so.1: cannot open" in done.stderr:
        pytest.skip("there is no libgomp")
    assert (done.returncode, done.stdout) == (0, "0 (500,)\n"), done.stderr


def test_a_signal_handler_may_call_the_layer_that_is_being_called():
    """The handler runs between two lines of the call, in the same thread: it must not wait for its lock."""
    bn, x, results = nbbn.BatchNorm(3), np.ones((5, 3), np.float32), []

    def calls():
        with bn._lock:  # as in the middle of a call
            results.extend((bn(x, training=False), bn(x)))

    caller = threading.Thread(target=calls, daemon=True)
    caller.start()
    caller.join(300)
    assert len(results) == 2


INTERRUPTED = """
import signal, threading, time
import numpy as np, nbbn
from rooms import threads as _threads

class TimeUp(Exception): pass

def stop(*_): raise TimeUp

signal.signal(signal.SIGALRM, stop)
nbbn.set_num_threads(2)
bn = nbbn.BatchNorm(6, momentum=None)
small, large = np.ones((8, 6), np.float32), np.ones((40000, 6), np.float32)
small[::2] = 3
rng, interrupted = np.random.default_rng(0), 0

def once(x):
    global interrupted
    before = bn.state_dict()
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 3e-5 if x is small else 3e-4))
        bn(x)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeUp:
        interrupted += 1
    number = bn.num_batches_tracked - before["num_batches_tracked"]
    changed = not np.array_equal(bn.running_mean, before["running_mean"])
    assert number in (0, 1)
    assert number == changed or before["num_batches_tracked"] > 0, (number, changed)

bn(small), bn(large)  # compiled
for k in range(3000):
    bn.reset_running_stats()
    once(small if k % 3 else large)
signal.setitimer(signal.ITIMER_REAL, 0)
assert _threads._region == {}, "the right to start regions was not given back"
print(interrupted > 100)
"""

FIRST = """
import signal, sys
import numpy as np, nbbn

class TimeUp(Exception): pass

def stop(*_): raise TimeUp

signal.signal(signal.SIGALRM, stop)
x = np.ones((8, 6), np.float32)
for delay in (0.2, 0.6, 1.0):
    signal.setitimer(signal.ITIMER_REAL, delay)
    try:
        nbbn.batch_moments(x) if delay < 0.5 else nbbn.BatchNorm(6)(x)
        signal.setitimer(signal.ITIMER_REAL, 0)
    except TimeUp:
        pass
nbbn.batch_moments(x)
print(nbbn.BatchNorm(6)(x).sum())
"""

needs_alarm = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers")


@needs_alarm
def test_a_handler_that_raises_leaves_the_layer_before_or_after_the_call():
    assert run(INTERRUPTED) == ["True"]


def test_what_is_compiled_is_out_of_reach_of_signal_handlers():
    """They run in the main thread, so it is compiled in another one; what is raised there arrives here."""
    threads_of = []
    for _ in range(2):
        _jit._uninterrupted(lambda: threads_of.append(threading.current_thread()))
    assert threading.main_thread() not in threads_of
    with pytest.raises(ZeroDivisionError):
        _jit._uninterrupted(lambda: 1 // 0)


@needs_alarm
@pytest.mark.long
def test_a_handler_that_raises_while_something_is_compiled_breaks_nothing():
    assert run(FIRST, env={"NBBN_CACHE_DIR": ""}) == ["0.0"]


LAUNCH = """
import os, signal, threading, time, warnings
import numpy as np, nbbn

nbbn.set_num_threads(2)
x = np.ones((500, 500))
thread = threading.Thread(target=lambda: nbbn.batch_moments(x))
thread.start()
time.sleep(float(__import__("sys").argv[1]))
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    pid = os.fork()
if pid == 0:
    signal.alarm(240)
    nbbn.batch_moments(x)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
@pytest.mark.parametrize("delay", ["0.0005", "0.001", "0.002", "0.004"])
def test_a_fork_while_the_threading_layer_is_loaded_does_not_hang_the_child(delay):
    assert run(LAUNCH, delay) == ["0"]


class Equal(nbbn.BatchNorm):
    """All are equal, and none can be hashed."""

    def __eq__(self, other):
        return isinstance(other, Equal)


def test_subclasses_may_define_equality():
    bn = Equal(3)
    assert bn(np.ones((4, 3), np.float32)).shape == (4, 3)
    assert sum(reference() is bn for reference in _locks._owners.values()) == 1
