"""Scripts in processes of their own: what a test of forks, signals and threading layers needs."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

import nbbn

TESTS = Path(__file__).parent  # scripts import `rooms` from there
ROOT = TESTS.parent

# What scripts begin with. `digest` is of the results of a large input that is contiguous, of one with
# channels last and gaps, and of a small one: every way to a parallel region, and few kernels to
# compile. What no kernel has written keeps its 777.
WORK = r"""
import hashlib, os, sys, threading, warnings
import numpy as np
import nbbn

warnings.filterwarnings("ignore", r"This process \(pid=\d+\) is multi-threaded, use of fork",
                        DeprecationWarning)
nbbn.set_num_threads(2)
wide = np.random.default_rng(0).normal(3, 2, (16, 27, 27, 24)).astype(np.float32)
gaps = wide[..., :12]  # 139968 values: parallel from 131072 on
large = np.ascontiguousarray(np.moveaxis(gaps, -1, 1))
small = large[:2, :, :5, :5].copy()

def digest(*_):
    found = hashlib.sha256()
    for x, axis in ((large, 1), (gaps, -1), (small, 1)):
        bn = nbbn.BatchNorm(12, axis=axis)
        y, grad, inferred = (np.full(x.shape, 777, x.dtype) for _ in range(3))
        bn(x, out=y), bn.backward(y * y, out=grad), bn.eval()(x, out=inferred)
        moments = nbbn.batch_moments(x, axis=axis)
        for array in (y, grad, inferred, bn.running_mean, bn.running_var, bn.grad_gamma,
                      bn.grad_beta, moments.mean, moments.m2):
            found.update(array.tobytes())
    return found.hexdigest()
"""


@functools.cache
def expected_digest():
    """What one thread finds, in a process that leaves all of it compiled for the others."""
    script = """
with nbbn.num_threads(1):
    print(digest())
digest()
"""
    return run(WORK + script, timeout=600)[0]


def environment(**changes):
    """The variables of such a process; None takes one away."""
    variables = {
        **os.environ,
        "NUMBA_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "1",  # threads that are counted are not NumPy's
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (Path(nbbn.__file__).parents[1], TESTS))),
        "PYTHONWARNINGS": "error",
        **changes,
    }
    return {name: value for name, value in variables.items() if value is not None}


def run(script, *arguments, env=None, timeout=300, launcher=(), fails=False):
    """The words that a script prints; what hangs or fails, fails the test with all its output.

    The script is a file, as processes that do not fork import it again; ``env`` changes variables
    of its environment, None takes one away. A ``launcher`` is the command that starts Python, and one
    that ``fails`` is expected to, without hanging.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "script.py")
        path.write_text(textwrap.dedent(script))
        process = subprocess.Popen(
            [*launcher, sys.executable, str(path), *arguments],
            cwd=folder,
            env=environment(**(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=timeout)
            what = f"exit status {process.returncode}"
        except subprocess.TimeoutExpired:
            # Every process that is left writes where its threads are.
            _end(process, "SIGABRT")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)
            _end(process, "SIGKILL")
            out, err = process.communicate()
            what = f"nothing for {timeout} s: it hangs"
        finally:
            _end(process, "SIGKILL")  # and whoever it left behind
    if bool(process.returncode) != fails or what.endswith("hangs"):
        pytest.fail(f"{what}\n--- stdout\n{out}\n--- stderr\n{err}")
    return out.split()


def _end(process, name):
    """Send a signal to the process and to all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, getattr(signal, name))
        else:
            process.kill()
