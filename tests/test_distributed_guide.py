"""The programs of docs/distributed.md, as the page has them."""

import re

import processes
import pytest
from test_readme import ROOT

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
