"""The programs of docs/distributed.md, as the page has them."""

import re

import processes
import pytest
from processes import ROOT
from test_sync_engines import mpiexec

PAGE = (ROOT / "docs" / "distributed.md").read_text("utf-8")


def block(kind, name, language):
    """The text of the block that is marked so."""
    pattern = rf"^<!-- {kind}: {re.escape(name)} -->\n```{language}\n(.+?)^```$"
    (found,) = re.findall(pattern, PAGE, re.MULTILINE | re.DOTALL)
    return found


def test_an_array_larger_than_the_memory_of_the_worker(tmp_path):
    pytest.importorskip("dask.array", reason="dask is not installed")
    pytest.importorskip("distributed", reason="dask's distributed is not installed")
    printed = processes.run(block("script", "standardize.py", "python"), str(tmp_path))
    assert printed == block("output", "standardize.py", "text").split()
    written = sum(path.stat().st_size for path in tmp_path.glob("*.npy"))
    assert written > 640e6


def test_training_on_two_workers_reaches_the_accuracy_of_one():
    launcher = mpiexec(2)
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    printed = processes.run(block("script", "train.py", "python"), launcher=launcher)
    expected = block("output", "train.py", "text").split()
    assert [word for word in printed if "%" not in word] == [word for word in expected if "%" not in word]
    together, alone = (float(word.strip("%,")) for word in printed if "%" in word)
    # One of the 500 test images is 0.2 %; float32 sums of shares are rounded in other places.
    assert abs(together - alone) <= 1.0
    assert min(together, alone) > 97.0
