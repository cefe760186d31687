"""explain says what then happens: compared with the kernels, twins and stores of real calls."""

import cases
import numpy as np
import pytest

import nbbn
from nbbn import _dispatch, _plain
from nbbn._compiler import jit as _jit
from nbbn._engine import machine as _machine
from nbbn._engine import memory as _pool
from nbbn._engine import threads as _threads
from nbbn.kernels.plain import REFUSED

# (shape, axis): runs and columns, few channels and many, below and above the size for threads
SHAPES = (
    ((4, 3), 1),
    ((300, 64), 1),
    ((4000, 64), 1),
    ((2, 3, 10, 10), 1),
    ((4, 2, 200, 200), 1),
    ((4, 64, 40, 40), 1),
    ((4, 40, 40, 64), -1),
)
LAYOUTS = {
    layout.__name__: layout
    for layout in (np.array, cases.channels_last_memory, cases.strided_last, cases.reversed_all)
}


OPS = "'inference', 'training', 'moments', 'backward'"


def lines_of(text):
    head, *rest = text.splitlines()
    pairs = [line.split(":", 1) for line in rest]
    assert all(len(pair) == 2 for pair in pairs), text
    return head, {name: value.strip() for name, value in pairs}


class Seen:
    """What a call did: whether it was one of a plain kernel, kernels, parallel or not, streaming or not."""

    def __init__(self):
        self.plain = False
        self.kernels = []
        self.parallel = False
        self.streaming = False


def spy(patch):
    seen = Seen()
    infer_plain, is_streamed = _plain.infer, _dispatch.is_streamed
    run, run_plain, enter_region = _dispatch._run, _plain._run, _threads.enter_region

    def _run(kernel, x, params, *arguments, **keywords):
        seen.kernels.append(kernel.name)
        run(kernel, x, params, *arguments, **keywords)

    def decide(*arguments, **keywords):
        seen.streaming = bool(is_streamed(*arguments, **keywords))
        return int(seen.streaming)

    def run_of_plain(kernel, plan, arrays, *rest):
        status = run_plain(kernel, plan, arrays, *rest)
        if status != REFUSED:
            seen.plain = True
            first = plan.layout.channels_first
            seen.kernels.append("channels_first" if first else "channels_last")
        return status

    def infer(x, y, table, eps, plan, *fused):
        status = infer_plain(x, y, table, eps, plan, *fused)
        if plan.direct and status != REFUSED:  # then it does without `_run`
            seen.plain = True
            first = plan.layout.channels_first
            seen.kernels.append("channels_first" if first else "channels_last")
        return status

    def enter():
        entered = enter_region()
        seen.parallel = seen.parallel or entered is not None
        return entered

    patch.setattr(_dispatch, "_run", _run)
    patch.setattr(_dispatch, "is_streamed", decide)
    patch.setattr(_plain, "_run", run_of_plain)
    patch.setattr(_plain, "infer", infer)
    patch.setattr(_threads, "enter_region", enter)
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


@pytest.mark.skipif(not _jit.is_enabled(), reason="there is one way only")
@pytest.mark.parametrize("cache", [1 << 40, 0], ids=["cached", "uncached"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", ["inference", "training", "moments", "backward"])
def test_it_says_what_happens(op, layout, threads, cache):
    for shape, axis in SHAPES:
        x = LAYOUTS[layout](cases.values(shape, np.float32, loc=1.0, seed=1))
        with nbbn.num_threads(threads), pytest.MonkeyPatch.context() as patch:
            patch.setattr(_machine, "last_level_cache", lambda: cache)
            _, said = lines_of(nbbn.explain(x, op, axis=axis))
            seen = do(op, x, axis, patch)
        assert said["plain"].startswith("yes") is seen.plain, (shape, said)
        assert said["threads"].startswith("2 ") is seen.parallel, (shape, said)
        first = said["layout"].startswith("channels first")
        name = "channels_first" if first else "channels_last"
        assert seen.kernels and all(name in kernel for kernel in seen.kernels), (shape, said)
        if op != "moments":
            assert said["stores"].startswith("past") is seen.streaming, (shape, said)
        if op in ("training", "backward") and not seen.plain:
            assert said["kernel"].startswith("two passes") is (len(seen.kernels) == 2)


def test_memory_of_the_result():
    large, small = np.zeros((600, 1000), np.float32), np.zeros((3, 4), np.float32)
    for x, pooled in ((large, _pool.is_pooled(large.nbytes)), (small, False)):
        assert ("from the pool" in nbbn.explain(x)) is pooled
    assert lines_of(nbbn.explain(small, out=small))[1]["result"] == "x itself"
    assert lines_of(nbbn.explain(small, out=np.empty_like(small)))[1]["result"] == "out"


def test_out_of_another_layout_or_overlapping():
    buffer = np.zeros((5, 4, 6, 6), np.float32)
    overlapping = lines_of(nbbn.explain(buffer[:4], out=buffer[1:]))[1]
    assert overlapping["plain"] == "no, as out overlaps x in part"
    assert "which overlaps x" in overlapping["write"]
    x = np.zeros((4, 5, 6, 7), np.float32)
    other = lines_of(nbbn.explain(x, out=np.asfortranarray(x)))[1]
    assert other["plain"] == "no, as out is not C-contiguous"
    assert "laid out otherwise" in other["write"]


def test_misaligned_x_is_copied():
    raw = np.zeros(4 * 3 * 4 + 1, np.uint8)
    x = raw[1:].view(np.float32).reshape(4, 3)
    said = lines_of(nbbn.explain(x))[1]
    assert said["plain"] == "no, as x is not aligned"
    assert said["read"] == "a copy, as x is not aligned"


def test_halves_take_the_general_way():
    said = lines_of(nbbn.explain(np.zeros((40, 30), np.float16)))[1]
    assert said["plain"] == "no, as x is of float16"
    assert said["layout"].startswith("columns, a matrix of 40 rows and 30 columns")


def test_why_serial(monkeypatch):
    x = np.zeros((600, 1000), np.float32)
    with nbbn.num_threads(1):
        assert "only one thread is to be used" in nbbn.explain(x)
    with nbbn.num_threads(2):
        monkeypatch.setattr(_threads, "loaded_threading_layer", lambda: "workqueue")
        assert "workqueue, which only one caller may enter" in nbbn.explain(x)
        monkeypatch.setattr(_threads, "loaded_threading_layer", lambda: None)
        assert "the threading layer that numba will load" in nbbn.explain(x)
        monkeypatch.setattr(_threads, "_unusable_after_fork", "the process was forked")
        assert "forked" in nbbn.explain(x)


def test_few_channels_take_two_passes_with_threads():
    x = np.zeros((4, 2, 200, 200), np.float32)
    with nbbn.num_threads(2):
        assert "2 channels do not occupy 2 threads" in nbbn.explain(x, "training")
    with nbbn.num_threads(1):
        assert "channel by channel" in lines_of(nbbn.explain(x, "training"))[1]["kernel"]


def test_empty_x():
    assert nbbn.explain(np.zeros((0, 3), np.float32)).endswith("nothing runs: there are no values")


def test_nothing_is_computed_or_compiled(monkeypatch):
    def forbidden(*arguments, **keywords):
        raise AssertionError("explain did something")

    monkeypatch.setattr(_jit.Kernel, "variant", forbidden)
    monkeypatch.setattr(_jit, "_compiled", forbidden)
    monkeypatch.setattr(_threads, "threading_layer", forbidden)
    monkeypatch.setattr(_pool.Pool, "take", forbidden)
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
    with pytest.raises(
        TypeError, match="x: expected dtype float32, float64, float16 or bfloat16, got int64"
    ):
        nbbn.explain(np.ones((4, 3), np.int64))
