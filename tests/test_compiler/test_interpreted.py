"""What is marked `interpreted`: a grid of variants that are not worth compiling, as plain Python runs it."""

import os
import subprocess
import sys

import pytest
from processes import TESTS


@pytest.mark.long
def test_what_nothing_else_compiles(request):
    profile = request.config.getoption("--hypothesis-profile") or "few"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "interpreted",
         f"--hypothesis-profile={profile}", str(TESTS)],
        cwd=TESTS.parent, env={**os.environ, "NUMBA_DISABLE_JIT": "1", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout and "failed" not in done.stdout
