"""warmup: afterwards nothing is compiled; bad arguments; the command."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import cases
import numpy as np
import pytest
import rooms
from rooms import needs_jit

import nbbn
from nbbn.cli import main

# (shape, axis): runs and columns, one channel and many, small and larger, with tails
SHAPES = (
    ((4, 3), 1),
    ((300, 150), 1),
    ((70, 3), 1),
    ((2, 3, 40, 50), 1),
    ((5, 7, 6, 6), 1),
    ((3, 7, 7, 8), 3),
    ((9, 33), 0),
    ((5000, 1), 1),
)

LAYOUTS = (
    np.array,
    cases.channels_last_memory,
    cases.channel_slice,
    cases.reversed_all,
    cases.read_only,
)


class CompiledError(Exception):
    """A call compiled something."""


@pytest.fixture
def fresh(monkeypatch):
    """As in a new process with a warm cache."""
    for step in rooms.all_steps().values():
        monkeypatch.setattr(step, "_ready", {})
    rooms.know_nothing(monkeypatch)


@pytest.fixture
def no_compiler(monkeypatch):
    def forbid():
        def compile_nothing(function, parallel, signature):
            raise CompiledError(f"{function.__name__} {signature}")

        monkeypatch.setattr(rooms.jit, "_compiled", compile_nothing)

    return forbid


def ready():
    return {variant for step in rooms.all_steps().values() for variant in step._ready}


def infer(x, axis, params):
    channels = x.shape[axis]
    layer = nbbn.BatchNorm(channels, axis=axis, dtype=params).eval()
    layer(x)
    layer(x, out=np.empty_like(x))
    mean, var = np.zeros(channels, params), np.ones(channels, params)
    nbbn.normalize(x, mean, var, axis=axis)
    nbbn.batch_norm(x, mean, var, axis=axis)


def train(x, axis, params):
    channels = x.shape[axis]
    layer = nbbn.BatchNorm(channels, axis=axis, dtype=params)
    for mode in (True, False):
        layer.train(mode)
        layer(x)
        layer.backward(np.ones_like(x))
    mean, var = np.zeros(channels, params), np.ones(channels, params)
    nbbn.batch_norm(x, mean, var, axis=axis, training=True)
    nbbn.batch_moments(x, axis=axis)
    nbbn.batch_norm_backward(x, x, mean, var, axis=axis)


def every_way(call, dtype):
    """Call with layouts of every kind, serial below the gates of size and parallel above them."""
    every_layout(call, dtype)
    with rooms.everything_is_large():
        every_layout(call, dtype)


def every_layout(call, dtype):
    for shape, axis in SHAPES:
        x = cases.values(shape, dtype, loc=1.0, seed=1)
        for layout in LAYOUTS:
            for params in cases.DTYPES:
                call(layout(x), axis, params)


@needs_jit
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_inference_compiles_nothing_afterwards(dtype, fresh, no_compiler):
    nbbn.warmup([dtype])
    no_compiler()
    every_way(infer, dtype)


@needs_jit
@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_training_compiles_nothing_afterwards(dtype, fresh, no_compiler):
    nbbn.warmup([dtype], training=True)
    no_compiler()
    every_way(infer, dtype)
    every_way(train, dtype)


@needs_jit
def test_nothing_else_is_provided(fresh, no_compiler):
    nbbn.warmup()
    no_compiler()
    infer(np.ones((4, 3), np.float32), 1, np.float32)
    with pytest.raises(CompiledError, match=r"infer|normalize"):
        infer(np.ones((4, 3)), 1, np.float32)
    with pytest.raises(CompiledError):
        nbbn.batch_moments(np.ones((4, 3), np.float32))


@needs_jit
def test_a_second_call_compiles_nothing(fresh, no_compiler):
    nbbn.warmup()
    no_compiler()
    assert nbbn.warmup() is None


@needs_jit
@pytest.mark.parametrize("dtypes", ["float32", np.float32, np.dtype("float32"), iter(["f4"])])
def test_one_dtype_may_stand_alone(dtypes, fresh):
    nbbn.warmup(dtypes)
    assert {variant.dtype for variant in ready()} == {np.float32}


@needs_jit
@pytest.mark.parametrize("activation", ["relu", "prelu", None])
@pytest.mark.long
def test_fused_steps_that_were_asked_for_are_provided(activation, fresh, no_compiler, monkeypatch):
    if activation == "prelu":  # the parallel twins of one are enough
        monkeypatch.setattr(rooms.threads, "has_usable_layer", lambda: False)
    nbbn.warmup(training=True, activations=[activation])
    no_compiler()
    for shape in ((4, 3), (4, 3, 20)):
        x = np.ones(shape, np.float32)
        bn = nbbn.BatchNorm(3, activation=activation)
        for residual in (None, x) if activation else (x,):
            bn(x, training=False, residual=residual)
            bn(x, residual=residual)
            bn.backward(x)
            bn(x, training=False, residual=residual)
            bn.backward(x)


@needs_jit
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "uint8"])
def test_other_types_are_provided(dtype, fresh, no_compiler):
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    nbbn.warmup([dtype])
    no_compiler()
    one = np.ones(3, np.float32)
    wanted = np.float32 if dtype == "uint8" else None
    for shape in ((4, 3), (4, 3, 20)):
        nbbn.normalize(np.ones(shape, kind), one, one, dtype=wanted)


@pytest.mark.parametrize(
    ("activations", "error", "message"),
    [
        (["gelu"], ValueError, "activation: expected 'relu', 'relu6', .* got 'gelu'"),
        ([1], TypeError, "activation: expected 'relu', 'relu6', .* got 1"),
    ],
)
def test_bad_activations(activations, error, message):
    with pytest.raises(error, match=message):
        nbbn.warmup(activations=activations)


@needs_jit
def test_any_thread_may_call_it(fresh, no_compiler):
    errors = []

    def call():
        try:
            nbbn.warmup()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    no_compiler()
    infer(np.ones((4, 3), np.float32), 1, np.float32)


@needs_jit
def test_parallel_twins_are_left_out_where_they_never_run(fresh, monkeypatch):
    monkeypatch.setattr(rooms.threads, "has_usable_layer", lambda: False)
    nbbn.warmup()
    assert {variant.parallel for variant in ready()} == {False}


@needs_jit
def test_no_step_is_forgotten():
    provided = {step.name for step, _ in rooms.warmup.variants("float32", True)}
    missing_values = {
        "gaps_of_runs",
        "gaps_of_columns",
    }  # no call of a layer or a function has them
    assert provided | missing_values == set(rooms.all_steps())
    assert not provided & missing_values


@needs_jit
@pytest.mark.parametrize(
    ("training", "activations", "most"),
    [(False, (), 6), (True, (), 25), (False, "relu", 14), (True, "prelu", 45)],
)
def test_how_much_there_is_to_compile(training, activations, most, monkeypatch):
    monkeypatch.setattr(rooms.threads, "has_usable_layer", lambda: True)
    found = rooms.warmup.variants("float32", training, activations)
    assert 0 < len(found) <= most
    assert {variant.residual for _, variant in found} == {False, bool(activations)}


@pytest.mark.parametrize(
    ("dtypes", "error", "message"),
    [
        (
            "int64",
            TypeError,
            "dtypes: expected float32, float64, float16, bfloat16 or uint8, got int64",
        ),
        (
            ["nonsense"],
            TypeError,
            "dtypes: expected float32, float64, float16, bfloat16 or uint8, got 'nonsense'",
        ),
        (
            None,
            TypeError,
            "dtypes: expected float32, float64, float16, bfloat16 or uint8, got None",
        ),
        (3, TypeError, "dtypes: expected float32, float64, float16, bfloat16 or uint8, got 3"),
        (
            [],
            ValueError,
            "dtypes: expected some of float32, float64, float16, bfloat16 or uint8, got none",
        ),
    ],
)
def test_bad_dtypes(dtypes, error, message):
    with pytest.raises(error) as caught:
        nbbn.warmup(dtypes)
    assert str(caught.value) == message


def test_bad_training():
    with pytest.raises(TypeError) as caught:
        nbbn.warmup(training=1)
    assert str(caught.value) == "training: expected True or False, got 1"


@needs_jit
def test_the_command(capsys):
    assert main(["warmup"]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert "for inference, float32" in first
    assert str(nbbn.config()["cache_directory"]) in second or "not kept" in second
    assert printed.err == ""


@needs_jit
def test_options_of_the_command(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(rooms.warmup, "variants", lambda *given: asked.append(given) or [])
    assert main(["warmup", "--dtype", "float64, float32", "--dtype", "f4", "--training"]) == 0
    assert asked == [(["float64", "float32", "f4"], True, [])]
    assert main(["warmup", "--activation", "relu,none"]) == 0
    assert asked[1] == (["float32"], False, ["relu", None])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--dtype", "int8"],
            "nbbn warmup: error: --dtype: expected float32, float64, float16, bfloat16 or uint8, got int8\n",
        ),
        (
            ["--dtype", "float32,"],
            "nbbn warmup: error: --dtype: expected float32, float64, float16, bfloat16 or uint8, got ''\n",
        ),
        (["--activation", "gelu"], "nbbn warmup: error: --activation: expected 'relu', 'relu6'"),
        (["--dtype"], "expected one argument"),
        (["--train"], "--train"),
        (["float32"], "float32"),
    ],
)
def test_bad_use_of_the_command(arguments, expected, capsys):
    assert main(["warmup", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert expected in printed.err


def test_the_command_without_a_compiler():
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    environment["PYTHONPATH"] = str(Path(nbbn.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "nbbn", "warmup"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout == "nothing to compile: NUMBA_DISABLE_JIT is set\n"
