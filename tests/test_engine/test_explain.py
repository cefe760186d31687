"""explain says what then happens: compared with the steps, twins and stores of real calls."""

import inspect

import cases
import numpy as np
import pytest
import rooms

import nbbn

# (shape, axis): runs and columns, few channels and many, below and above the size for threads
SHAPES = (
    ((4, 3), 1),
    ((300, 64), 1),
    ((4000, 64), 1),
    ((2, 3, 10, 10), 1),
    ((4, 2, 200, 200), 1),
    ((4, 64, 40, 40), 1),
    ((60, 64, 7, 7), 1),
    ((4, 40, 40, 64), -1),
)
LAYOUTS = {
    layout.__name__: layout for layout in (np.array, cases.channels_last_memory, cases.strided_last, cases.reversed_all)
}


OPS = "'inference', 'training', 'moments', 'backward'"


def lines_of(text):
    head, *rest = text.splitlines()
    pairs = [line.split(":", 1) for line in rest]
    assert all(len(pair) == 2 for pair in pairs), text
    return head, {name: value.strip() for name, value in pairs}


class Seen:
    """What a call did: its steps, in parallel or not, streaming or not."""

    def __init__(self):
        self.steps = []
        self.parallel = False
        self.streaming = False


def spy(patch):
    seen = Seen()
    find, enter_region = rooms.ways.Calls.__missing__, rooms.threads.enter_region

    def found(calls, key):
        call = find(calls, key)

        def seen_call(*arguments):
            seen.steps.append(calls.step.name)
            given = inspect.signature(calls.step.function).bind(*arguments).arguments
            seen.streaming = bool(given.get("streaming", False))
            call(*arguments)

        return seen_call

    def enter():
        entered = enter_region()
        seen.parallel = seen.parallel or entered is not None
        return entered

    rooms.know_nothing(patch)
    patch.setattr(rooms.ways.Calls, "__missing__", found)
    patch.setattr(rooms.threads, "enter_region", enter)
    return seen


def do(op, x, axis, patch):
    layer = nbbn.BatchNorm(x.shape[axis], axis=axis)
    if op == "backward":
        layer(x)
    seen = spy(patch)
    if op == "backward":
        layer.backward(x)
    elif op == "moments":
        nbbn.batch_moments(x, axis=axis)
    else:
        layer(x, training=op == "training")
    return seen


@rooms.needs_jit
@pytest.mark.parametrize("cache", [1 << 40, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["inference", "training", "moments", "backward"])
def test_it_says_what_happens(op, layout, threads, cache):
    for shape, axis in SHAPES:
        x = LAYOUTS[layout](cases.values(shape, np.float32, loc=1.0, seed=1))
        with nbbn.num_threads(threads), pytest.MonkeyPatch.context() as patch:
            patch.setattr(rooms.machine, "last_level_cache", lambda: cache)
            _, said = lines_of(nbbn.explain(x, op, axis=axis))
            seen = do(op, x, axis, patch)
        assert said["threads"].startswith("2 ") is seen.parallel, (shape, said)
        kind = "columns" if said["view"].startswith("a matrix") else ("runs", "channels")
        assert seen.steps and all(step.endswith(kind) for step in seen.steps), (shape, said)
        passes = 2 if said["order"].startswith("two passes") else 1
        assert len(seen.steps) == passes, (shape, said)
        assert said["order"].startswith("one channel after") is seen.steps[0].endswith("channels")
        if op != "moments":
            assert said["stores"].startswith("past") is seen.streaming, (shape, said)


def test_memory_of_the_result():
    large, small = np.zeros((600, 1000), np.float32), np.zeros((3, 4), np.float32)
    for x, pooled in ((large, rooms.memory.is_pooled(large.nbytes)), (small, False)):
        assert ("from the pool" in nbbn.explain(x)) is pooled
    assert lines_of(nbbn.explain(small, out=small))[1]["result"] == "x itself"
    assert lines_of(nbbn.explain(small, out=np.empty_like(small)))[1]["result"] == "out"


def test_out_of_another_layout_or_overlapping():
    buffer = np.zeros((5, 4, 6, 6), np.float32)
    overlapping = lines_of(nbbn.explain(buffer[:4], out=buffer[1:]))[1]
    assert "which overlaps x" in overlapping["write"]
    x = np.zeros((4, 5, 6, 7), np.float32)
    other = lines_of(nbbn.explain(x, out=np.asfortranarray(x)))[1]
    assert "laid out otherwise" in other["write"]


def test_misaligned_x_is_copied():
    raw = np.zeros(4 * 3 * 4 + 1, np.uint8)
    x = raw[1:].view(np.float32).reshape(4, 3)
    said = lines_of(nbbn.explain(x))[1]
    assert said["read"] == "a copy, as x is not aligned"


def test_halves_are_read_as_others():
    said = lines_of(nbbn.explain(np.zeros((40, 30), np.float16)))[1]
    assert said["read"] == "in place"
    assert said["view"] == "a matrix of 40 rows and 30 columns"


def test_why_serial(monkeypatch):
    x = np.zeros((600, 1000), np.float32)
    with nbbn.num_threads(1):
        assert "only one thread is to be used" in nbbn.explain(x)
    with nbbn.num_threads(2):
        monkeypatch.setattr(rooms.threads, "loaded_threading_layer", lambda: "workqueue")
        assert "workqueue, which only one caller may enter" in nbbn.explain(x)
        monkeypatch.setattr(rooms.threads, "loaded_threading_layer", lambda: None)
        assert "the threading layer that numba will load" in nbbn.explain(x)
        monkeypatch.setattr(rooms.threads, "_unusable_after_fork", "the process was forked")
        assert "forked" in nbbn.explain(x)


def test_few_channels_take_two_passes_with_threads(monkeypatch):
    monkeypatch.setattr(rooms.machine, "last_level_cache", lambda: 0)
    x = np.zeros((4, 2, 200, 200), np.float32)
    for op in ("training", "backward"):
        with nbbn.num_threads(2):
            order = lines_of(nbbn.explain(x, op))[1]["order"]
            assert order == "two passes: 2 channels do not occupy the threads"
        with nbbn.num_threads(1):
            order = lines_of(nbbn.explain(x, op))[1]["order"]
            assert order.startswith("one channel after the other")


def test_empty_x():
    assert nbbn.explain(np.zeros((0, 3), np.float32)).endswith("nothing runs: there are no values")


def test_nothing_is_computed_or_compiled(monkeypatch):
    def forbidden(*arguments, **keywords):
        raise AssertionError("explain did something")

    monkeypatch.setattr(rooms.Step, "variant", forbidden)
    monkeypatch.setattr(rooms.jit, "_compiled", forbidden)
    monkeypatch.setattr(rooms.internals, "load_layer", forbidden)
    monkeypatch.setattr(rooms.memory.Pool, "take", forbidden)
    for op in ("inference", "training", "moments", "backward"):
        for x in (np.ones((600, 1000)), np.ones((4, 5, 6))[:, ::-1]):
            before = x.copy()
            nbbn.explain(x, op)
            np.testing.assert_array_equal(x, before)
    x, out = np.ones((4, 3)), np.full((4, 3), 7.0)
    nbbn.explain(x, out=out)
    assert (out == 7.0).all()


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("forward",), {}, ValueError, f"op: expected one of {OPS}, got 'forward'"),
        ((None,), {}, ValueError, f"op: expected one of {OPS}, got None"),
        ((), {"axis": 2}, ValueError, "axis: expected from -2 to 1 for 2-d x, got 2"),
        ((), {"out": np.ones((2, 2))}, ValueError, "out: expected shape (4, 3), got (2, 2)"),
        (("moments",), {"out": np.ones((4, 3))}, ValueError, "out: expected None for op='moments', got an array"),
    ],
)  # fmt: skip
def test_errors(arguments, options, error, message):
    with pytest.raises(error) as caught:
        nbbn.explain(np.ones((4, 3)), *arguments, **options)
    assert str(caught.value) == message


def test_wrong_dtype():
    with pytest.raises(TypeError, match="x: expected dtype float32, float64, float16 or bfloat16, got int64"):
        nbbn.explain(np.ones((4, 3), np.int64))
