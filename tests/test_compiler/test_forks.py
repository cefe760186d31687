"""Forked and spawned processes: right results and no hang, whatever the parent was doing."""

import itertools
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import pytest
from interrupts import interrupted
from processes import WORK, expected_digest, run
from rooms import forks, internals

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

START = (
    WORK
    + """
expected = os.environ["EXPECTED"]

def is_right():
    return digest() == expected

def use_in_parallel():
    assert is_right()
    assert nbbn.config()["threading_layer"] is not None

def child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        status = 0 if work() else 2
    finally:
        os._exit(status)

def status(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""
)


@pytest.fixture(scope="module")
def known():
    return {"EXPECTED": expected_digest()}


def start_methods(*wanted):
    return [name for name in wanted if name in multiprocessing.get_all_start_methods()]


# Where a worker does one task only, most are forked by a thread of the pool, not by the main one.
POOL = """
import multiprocessing

if __name__ == "__main__":
    use_in_parallel()
    context = multiprocessing.get_context(sys.argv[1])
    with context.Pool(2, maxtasksperchild=int(sys.argv[2]) or None) as pool:
        print({found == expected for found in pool.map(digest, range(4), chunksize=1)})
        pool.close()
        pool.join()
    print(is_right())
"""


@pytest.mark.parametrize("method", start_methods("fork", "spawn", "forkserver"))
def test_a_pool_of_processes_computes_the_right_results(method, known):
    tasks = "1" if method == "fork" else "0"
    assert run(START + POOL, method, tasks, env=known) == ["{True}", "True"]


EXECUTOR = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    use_in_parallel()
    context = multiprocessing.get_context(sys.argv[1])
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        print({found == expected for found in executor.map(digest, range(4))})
    print(is_right())
"""


@pytest.mark.parametrize("method", start_methods("fork", "forkserver"))
@pytest.mark.long
def test_an_executor_of_processes_computes_the_right_results(method, known):
    assert run(START + EXECUTOR, method, env=known) == ["{True}", "True"]


FROM_A_THREAD = """
use_in_parallel()

def fork():
    print(is_right())  # in parallel, in this thread as well
    print(status(child(is_right)))

for _ in range(2):
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
print(is_right())
"""


def test_a_thread_that_is_not_the_main_one_forks(known):
    assert run(START + FROM_A_THREAD, env=known) == ["True", "0", "True", "0", "True"]


TELLS_WHY = """
use_in_parallel()
why = "no: the process was forked from one that had threads"
print(status(child(lambda: nbbn.config()["parallel"] == why)))
"""


def test_a_child_of_a_process_with_threads_says_why_it_is_serial(known):
    """Also where the threads are none of libgomp's, which would be a reason of its own."""
    assert run(START + TELLS_WHY, env=known) == ["0"]


# The child uses the layer that the threads of its parent were in as well: one in short calls, so that
# it is often inside the layer's lock.
BESIDE_CALLS = """
use_in_parallel()
shared = nbbn.BatchNorm(12)
frozen = nbbn.BatchNorm(12).eval()
trained, inferred = shared(large).tobytes(), frozen(large).tobytes()
done, wrong = threading.Event(), []

def train():
    while not done.is_set():
        if shared(large, training=True).tobytes() != trained or not is_right():
            wrong.append("training")

def infer():
    while not done.is_set():
        shared(large, training=False)
        if frozen(large).tobytes() != inferred:
            wrong.append("inference")

def keep_a_copy():
    while not done.is_set():
        shared.state_dict()

def in_child():
    y, z = np.full_like(large, 777), np.full_like(large, 777)
    shared(large, training=True, out=y), frozen(large, out=z)
    shared.backward(large)
    return y.tobytes() == trained and z.tobytes() == inferred and is_right()

threads = [threading.Thread(target=target) for target in (train, infer, keep_a_copy)]
for thread in threads:
    thread.start()
print({status(child(in_child)) for _ in range(20)})
done.set()
for thread in threads:
    thread.join()
print(wrong)
"""


def test_forks_while_other_threads_are_in_calls(known):
    assert run(START + BESIDE_CALLS, env=known) == ["{0}", "[]"]


# Nothing is on disk, so the children need the compiler that the parent's thread was in. The second
# one comes when LLVM is at work, where the first did not have to wait until all was over.
BESIDE_THE_FIRST_COMPILE = """
from numba.core import event

x = np.array([[3.0], [5.0]])
python, llvm = threading.Event(), threading.Event()
children = []

class Signal(event.Listener):
    def __init__(self, flag):
        self.flag = flag
    def on_start(self, _):
        self.flag.set()
    def on_end(self, _):
        pass

def infer():
    return nbbn.normalize(x, np.array([1.0]), np.array([4.0]), eps=0.0).tolist() == [[1.0], [2.0]]

with event.install_listener("numba:run_pass", Signal(python)):
    with event.install_listener("numba:llvm_lock", Signal(llvm)):
        thread = threading.Thread(target=infer)
        thread.start()
        for moment in (python, llvm):
            moment.wait()
            children.append(child(infer))
thread.join()
print(*map(status, children), infer())
"""


@pytest.mark.long
def test_forks_while_another_thread_is_in_the_very_first_compile(known):
    env = {**known, "NBBN_CACHE_DIR": ""}
    assert run(START + BESIDE_THE_FIRST_COMPILE, env=env) == ["0", "0", "True"]


TERMINATED = """
import signal

def work():
    os.write(writing, digest().encode())
    while True:
        digest()

use_in_parallel()
for _ in range(3):
    reading, writing = os.pipe()
    pid = child(work)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        print(pipe.read(len(expected)) == expected)
    os.kill(pid, signal.SIGTERM)
    print(status(pid) == -signal.SIGTERM)
"""


@pytest.mark.long
def test_a_child_that_is_terminated_dies_of_that_and_not_before(known):
    assert run(START + TERMINATED, env=known) == ["True"] * 6


# Gunicorn's master imports the application, and with it uses nbbn in parallel; then it forks.
APPLICATION = """
use_in_parallel()
master = os.getpid()
bn = nbbn.BatchNorm(12)
y = bn(large)

def application(environ, start_response):
    out = np.full_like(large, 777)
    bn(large, training=True, out=out)
    same = out.tobytes() == y.tobytes() and os.getpid() != master
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{digest()} {same}".encode()]
"""

CONFIGURATION = """
preload_app = True
bind = "127.0.0.1:0"
workers = 3
worker_tmp_dir = "."
control_socket_disable = True
"""

SERVER = """
import os, re, signal, subprocess, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

application, configuration, *options = sys.argv[1:]
Path("application.py").write_text(application)
Path("gunicorn.conf.py").write_text(configuration)
server = subprocess.Popen(
    [sys.executable, "-m", "gunicorn", *options, "application:application"],
    env={**os.environ, "PYTHONWARNINGS": "default"},
    stderr=subprocess.PIPE,
    text=True,
)
address, known = [], threading.Event()

def listen():
    for line in server.stderr:
        sys.stderr.write(line)
        address.extend(re.findall(r"Listening at: (http://127.0.0.1:[0-9]+)", line))
        if address:
            known.set()
    known.set()

def get(_):
    with urlopen(address[0], timeout=300) as response:
        return response.read().decode()

reader = threading.Thread(target=listen)
reader.start()
known.wait()
try:
    with ThreadPoolExecutor(6) as clients:
        print(*set(clients.map(get, range(36))))
finally:
    server.send_signal(signal.SIGTERM)
    print(server.wait())
    reader.join()
"""


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="gunicorn is not installed")
@pytest.mark.parametrize(("kind", "threads"), [("sync", 1), ("gthread", 4)])
@pytest.mark.long
def test_a_server_that_forks_its_workers_after_use(kind, threads, known):
    options = f"--worker-class={kind}", f"--threads={threads}"
    found = run(SERVER, START + APPLICATION, CONFIGURATION, *options, env=known)
    assert found == [known["EXPECTED"], "True", "0"]


def test_a_signal_handler_that_raises_before_a_fork_leaves_no_lock_held():
    def handler():
        raise TimeoutError

    for step in itertools.count():
        ended = interrupted(lambda: forks._before_fork() or True, forks._before_fork, step, handler)
        forks._after_fork()
        with ThreadPoolExecutor(1) as pool:
            for lock in internals.COMPILER_LOCKS:
                assert pool.submit(lock.acquire, blocking=False).result(), step
                pool.submit(lock.release).result()
        if ended:
            break
    assert step > 20
