"""A process may be looked into: records of the logger, the last batch of a layer, the configuration."""

import json
import logging
import os
import subprocess
import sys
import threading

import cases
import numpy as np
import pytest
import reference
from rooms import announce, know_nothing, needs_jit, plan, threads

import nbbn

X = cases.values((6, 3, 5))


@pytest.fixture
def records(caplog, monkeypatch):
    """The records of the logger, all of them, as (level, text)."""
    monkeypatch.setattr(announce, "_noted", set())
    caplog.set_level(logging.DEBUG, "nbbn")

    def found(word):
        texts = [(record.levelname, record.getMessage()) for record in caplog.records]
        return [(level, text) for level, text in texts if word in text]

    return found


def test_copies_that_cost(records):
    bn, out = nbbn.BatchNorm(3), np.empty((5, 3, 6), np.float32).T
    bn(X)
    nbbn.batch_moments(cases.fortran(X))
    assert records("cop") == []
    bn(X[::-1, ::-1, ::-1])
    ((level, text),) = records("is copied")
    assert level == "DEBUG" and "(6, 3, 5)" in text and "explain" in text
    bn(X, residual=X[::-1], training=False)
    bn(X, out=out)
    assert len(records("lies otherwise than x")) == 1
    assert len(records("out of (6, 3, 5) is written by way of a copy")) == 1


def test_large_calls_on_one_thread(records, monkeypatch):
    know_nothing(monkeypatch)
    monkeypatch.setattr(plan, "PARALLEL_FROM", 1)
    monkeypatch.setattr(threads, "_unusable_after_fork", "of a reason")
    with nbbn.num_threads(2):
        nbbn.batch_moments(X), nbbn.batch_moments(X)
    assert records("one thread") == [("INFO", "large calls run on one thread: of a reason")]
    with nbbn.num_threads(1):  # as the user wants it
        monkeypatch.setattr(announce, "_noted", set())
        nbbn.batch_moments(X)
    assert len(records("one thread")) == 1


@needs_jit
def test_a_large_call_beside_another_one(records, monkeypatch):
    claim = threads.Claim()
    monkeypatch.setitem(threads._region, 0, lambda: claim)
    with nbbn.num_threads(2):
        assert threads.enter_region() is None
        assert threads.enter_region() is None
    text = "a large call runs on one thread: another one is in a parallel region"
    assert records("one thread") == [("DEBUG", text)] * 2


@needs_jit
def test_too_many_callers(records, monkeypatch):
    if not threads.has_usable_layer() or threads.loaded_threading_layer() != "omp":
        pytest.skip("only an OpenMP runtime has teams")
    monkeypatch.setattr(threads, "MOST_TEAMS", 0)

    def work():
        with nbbn.num_threads(2):
            found.append(threads.enter_region())

    found = []
    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == [None, None]
    assert [level for level, _ in records("teams of their own")] == ["INFO"]


QUIET = """
import {modules} nbbn, numpy as np, json
x = np.ones((6, 3), np.float32)
bn = nbbn.BatchNorm(3)
bn(x[::-1, ::-1], training=False)  # compiles, and copies
if not {first}: bn(x), bn.backward(x), nbbn.batch_moments(x), bn.eval()(x)
"""


@needs_jit
@pytest.mark.long
@pytest.mark.parametrize("modules", ["", "logging,"])
def test_nothing_is_printed(modules, tmp_path):
    for first, own in ((True, {"NBBN_CACHE_DIR": str(tmp_path)}), (False, {})):
        done = subprocess.run(
            [sys.executable, "-c", QUIET.format(modules=modules, first=first)],
            capture_output=True, text=True, check=True, env={**os.environ, **own}, timeout=600,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("", "")


LISTEN = """
import logging, sys
logging.basicConfig(level="DEBUG", stream=sys.stdout, format="%(name)s|%(levelname)s|%(message)s")
logging.getLogger("numba").setLevel("ERROR")
"""


@needs_jit
@pytest.mark.long
def test_each_compilation_is_a_record(tmp_path):
    code = LISTEN + QUIET.format(modules="", first=True)
    run = [sys.executable, "-c", code]
    environment = {**os.environ, "NBBN_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment, timeout=600)
    lines = [line for line in done.stdout.splitlines() if line.startswith("nbbn|")]
    assert "nbbn|DEBUG|compiling infer_columns_serial" in lines
    assert sum("|INFO|compiling for this machine" in line for line in lines) == 1
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=environment, timeout=600)
    assert "compiling" not in done.stdout  # it is loaded


def test_what_a_layer_saw_last():
    bn = nbbn.BatchNorm(3, correction=1)
    assert bn.batch_mean is None and bn.batch_var is None and bn.batch_inv_std is None
    bn(X)
    expected = reference.training(X, correction=1)
    for found, exact in (
        (bn.batch_mean, expected.mean), (bn.batch_var, expected.var), (bn.batch_inv_std, expected.inv_std),
    ):  # fmt: skip
        assert found.dtype == np.float64 and found.shape == (3,)
        np.testing.assert_allclose(found, exact, rtol=1e-10)
    bn.batch_mean[:] = 7  # a copy
    kept = bn.batch_mean
    bn(X + 1, training=False)
    np.testing.assert_array_equal(bn.batch_mean, kept)
    assert (kept != 7).all()


def test_the_configuration_is_plain_data():
    found = nbbn.config()
    assert json.loads(json.dumps(found)) == found
    assert found["nbbn"] == nbbn.__version__
    assert found["num_threads"] == nbbn.get_num_threads()
