"""The package is typed for its users: a program of theirs passes mypy --strict, and what is wrong does not."""

import subprocess
import sys
from pathlib import Path

import processes
import pytest
import typed_program

SHORT = {
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.floating[numpy._typing._nbit_base._32Bit]]]": "NDArray[float32]",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.float64]]": "NDArray[float64]",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[Any]]": "NDArray[Any]",
}


def mypy(path):
    """What mypy --strict says, by line."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", path.name],
        cwd=path.parent, env={"MYPYPATH": str(processes.ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = {}
    for line in done.stdout.splitlines():
        if line.startswith(path.name):
            _, number, text = line.split(":", 2)
            said.setdefault(int(number), []).append(text.strip())
    return done.returncode, said


def test_a_program_of_a_user_is_well_typed():
    path = Path(typed_program.__file__)
    status, said = mypy(path)
    assert status == 0, said
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if "  # NDArray[" in line:
            (text,) = said[number]
            found = text.partition('"')[2].removesuffix('"')
            assert SHORT.get(found, found) == line.partition("  # ")[2], (number, found)


def test_the_program_runs():
    typed_program.main()


WRONG = """
import numpy as np
import nbbn
bn, x = nbbn.BatchNorm(3), np.ones((4, 3), np.float32)
bn(x, out=3)
bn(x, training="yes")
bn(object())
nbbn.BatchNorm(3, activation="gelu")
nbbn.BatchNorm(3, on_nonfinite="ignore")
nbbn.BatchNorm(3, affine=False)
nbbn.BatchNorm(3, momentun=0.1)
nbbn.normalize(x, 0, 1, activation="gelu")
nbbn.BatchNorm2d
bn.weight
bn.forward(x)
nbbn.explain(x, "forward")
nbbn.normalize(x, None, 1)
"""


def test_what_is_wrong_is_an_error_on_its_line(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(WRONG)
    _, said = mypy(path)
    wrong = [n for n, line in enumerate(WRONG.splitlines(), 1) if n > 4]
    errors = [n for n, texts in said.items() if any(text.startswith("error") for text in texts)]
    assert sorted(errors) == wrong
