"""Every step on every kind of view: right, and with the same bits in every way to run it."""

import ast
from pathlib import Path

import cases
import numpy as np
import processes
import pytest
import reference
import rooms
from numba import njit
from rooms import steps, table

import nbbn

# (shape, axis) of each kind of view: short runs, long ones, single ones, cut ones; columns, narrow, wide, with a
# rest and several a channel; one channel
VIEWS = (
    ((5, 7, 6, 6), 1),
    ((3, 2, 40, 50), 1),
    ((2, 9, 20000), 1),
    ((9, 33), 0),
    ((300, 150), 1),
    ((70, 3), 1),
    ((11, 5, 3), 1),
    ((4, 600), 1),
    ((3, 4, 1100), 2),
    ((9, 1, 33), 1),
)
by_view = pytest.mark.parametrize(("shape", "axis"), VIEWS, ids=str)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES)
EPS = 0.25


def in_every_way(call):
    """What ``call`` returns, a tuple of arrays: the same bits in every way."""
    results = {}
    for name in rooms.WAYS:
        with rooms.way(name):
            results[name] = call()
    first = results["serial"]
    for name, found in results.items():
        assert [a.tobytes() for a in found] == [a.tobytes() for a in first], name
    return first


def exactness(dtype, count, mean, m2):
    """The bound of m2: float32 data may lose the factor of its condition number, of docs/mathematics.md."""
    condition = 1 + (count * mean**2 / m2).max() if dtype is np.float32 else 1
    return 1e-14 * condition


def table_of(gamma, beta):
    found = steps.new_table(gamma.size)
    found[table.GAMMA], found[table.BETA] = gamma, beta
    return found


@by_dtype
@by_view
def test_moments(shape, axis, dtype):
    x = cases.values(shape, dtype, loc=3.0)
    count, mean, m2 = reference.moments(x, axis)

    def moments():
        found = steps.new_table(shape[axis])
        assert steps.moments(steps.Call(x, axis), found, 1.0, EPS)[0] == count
        return (found,)

    (found,) = in_every_way(moments)
    np.testing.assert_allclose(found[table.MEAN], mean, atol=2e-15, rtol=1e-15)
    rtol = exactness(dtype, count, mean, m2)
    np.testing.assert_allclose(found[table.M2], m2, rtol=rtol)
    np.testing.assert_allclose(found[table.VAR], m2 / (count - 1), rtol=rtol)
    inv_std = 1 / np.sqrt(m2 / (count - 1) + EPS)
    np.testing.assert_allclose(found[table.INV_STD], inv_std, rtol=rtol)


@by_dtype
@by_view
def test_inference(shape, axis, dtype):
    x = cases.values(shape, dtype, loc=3.0)
    gamma, beta, mean, var = cases.parameters(shape[axis], dtype)
    form = steps.coefficients(steps.given_table(mean, var, gamma, beta), EPS, x.dtype)
    (y,) = in_every_way(lambda: (steps.infer(steps.Call(x, axis), form),))
    expected = reference.inference(x, mean, var, gamma, beta, axis=axis, eps=EPS).y
    np.testing.assert_allclose(y, expected, rtol=0, atol=30 * np.finfo(dtype).eps)


@by_dtype
@by_view
def test_training(shape, axis, dtype):
    x = cases.values(shape, dtype, loc=3.0)
    gamma, beta = cases.parameters(shape[axis], dtype)[:2]

    def train():
        found = table_of(gamma, beta)
        return steps.train(steps.Call(x, axis), found, x.size / gamma.size, EPS), found

    y, found = in_every_way(train)
    expected = reference.training(x, gamma, beta, axis=axis, eps=EPS)
    np.testing.assert_allclose(y, expected.y, rtol=0, atol=30 * np.finfo(dtype).eps)
    rtol = exactness(dtype, *reference.moments(x, axis))
    np.testing.assert_allclose(found[table.VAR], expected.var, rtol=rtol)


@by_dtype
@by_view
def test_gradients(shape, axis, dtype):
    x, grad_y = cases.values(shape, dtype, loc=3.0), cases.values(shape, dtype, seed=1)
    gamma, beta = cases.parameters(shape[axis], np.float64)[:2]
    found = table_of(gamma, beta)
    call = steps.Call(x, axis)
    steps.moments(call, found, 0.0, EPS)

    def differentiate():
        grads = steps.differentiate(grad_y, call, found, 0.0, np.dtype(np.float64))
        return grads.x, *grads.parameters

    grad_x, of_gamma, of_beta = in_every_way(differentiate)
    expected = reference.backward(grad_y, x, gamma, axis=axis, eps=EPS)
    scale = np.abs(expected.x).max()
    np.testing.assert_allclose(grad_x, expected.x, rtol=0, atol=scale * 50 * np.finfo(dtype).eps)
    np.testing.assert_allclose(of_beta, expected.beta, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(of_gamma, expected.gamma, rtol=1e-11, atol=1e-9)

    def in_two_steps():
        added, count = np.empty((2, gamma.size)), float(x.size // shape[axis])
        form = steps.sum_gradients(grad_y, call, found, added, count)
        again = steps.gradient_coefficients(found, added, count, 0.0, form.dtype)
        np.testing.assert_array_equal(form[: table.OF_GAMMA], again)
        of_parameters = steps.parameter_gradients(found, added, added.dtype)
        return steps.write_gradient(grad_y, call, form), *of_parameters

    again = in_every_way(in_two_steps)
    for one, other in zip(again, (grad_x, of_gamma, of_beta), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("layout", ["channel_slice", "batch_step"])
@pytest.mark.parametrize("shape", [(1000, 3), (300, 5)])  # sums take several rows of these as one
def test_gaps_between_rows_are_no_values(shape, layout):
    x, grad_y = (cases.values(shape, seed=seed) for seed in (1, 2))
    found = nbbn.batch_moments(cases.LAYOUTS[layout](x))
    _, mean, m2 = reference.moments(x)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.m2, m2, rtol=1e-12)
    bn, plain = nbbn.BatchNorm(shape[1]), nbbn.BatchNorm(shape[1])
    np.testing.assert_allclose(bn(cases.LAYOUTS[layout](x)), plain(x), rtol=1e-6, atol=1e-6)
    grad_x = bn.backward(cases.LAYOUTS[layout](grad_y))
    np.testing.assert_allclose(grad_x, plain.backward(grad_y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_running_averages(dtype):
    running = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype)
    batch = steps.new_table(2)
    batch[table.MEAN], batch[table.M2] = [10, 20], [30, 40]
    counter = np.array([6])
    steps.move_averages(running, batch, 10.0, 0.5, counter)
    np.testing.assert_array_equal(running, [[5.5, 11], [3, 4], [5, 6], [7, 8]])
    assert counter == 7


@by_dtype
@pytest.mark.parametrize("offset", [0, 1, 5])
@by_view
def test_streaming_changes_no_bit_and_writes_nothing_else(shape, axis, offset, dtype):
    x, grad = cases.values(shape, dtype), cases.values(shape, dtype, seed=1)
    results = []
    for way in ("serial", "streamed", "by channel, streamed, parallel"):
        bn = nbbn.BatchNorm(shape[axis], axis=axis, dtype=dtype)
        buffers = [np.full(x.size + 40, -7, dtype) for _ in range(3)]
        outs = [b[16 + offset : 16 + offset + x.size].reshape(shape) for b in buffers]
        with rooms.way(way):
            bn(x, out=outs[0])
            bn.backward(grad, out=outs[1])
            bn(x, training=False, out=outs[2])
        results.append(np.stack(buffers))
    for found in results[1:]:
        np.testing.assert_array_equal(results[0], found)
    assert np.all(found[:, : 16 + offset] == -7)
    assert np.all(found[:, 16 + offset + x.size :] == -7)


# --- what is decided ---


def plan_of(x, passes=1, in_place=False):
    view = rooms.views.view_of(1, False, x)
    return rooms.plan.make_plan(view, [x], x if in_place else np.empty_like(x), passes)


def test_streaming_is_for_what_exceeds_the_cache(monkeypatch):
    x = np.empty((8, 16, 32, 32), np.float32)
    full = 2 * x.nbytes * 4 // 3  # of which both arrays take three quarters
    for size, expected in ((full + 4, 0), (full - 4, 1)):
        monkeypatch.setattr(rooms.machine, "last_level_cache", lambda size=size: size)
        assert plan_of(x).streaming == expected
        assert plan_of(x, in_place=True).streaming == 0


def test_the_largest_cache_is_read_from_the_system(tmp_path):
    for index, text in enumerate(("32K\n", "1024K\n", "32M\n", "?")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert rooms.machine.last_level_cache(tmp_path) == 32 << 20
    assert rooms.machine.last_level_cache(tmp_path / "none") == 32 << 20


@pytest.mark.parametrize(("shape", "axis"), VIEWS[:3], ids=str)
def test_training_with_a_residual_of_one_channel_after_the_other(shape, axis):
    x, residual = cases.values(shape, np.float32, loc=3.0), cases.values(shape, np.float32, seed=1)
    _, mean, m2 = reference.moments(x, axis)
    found = []
    for name in ("serial", "by channel"):
        with rooms.way(name):
            found.append(nbbn.BatchNorm(shape[axis], axis=axis, eps=EPS)(x, residual=residual))
    sizes = [1] * len(shape)
    sizes[axis] = -1
    mean, std = mean.reshape(sizes), np.sqrt(m2 / (x.size // shape[axis]) + EPS).reshape(sizes)
    np.testing.assert_allclose(found[0], (x - mean) / std + residual, rtol=1e-5, atol=1e-5)
    assert found[0].tobytes() == found[1].tobytes()


def test_short_runs_with_gaps_between_them_are_not_streamed(monkeypatch):
    monkeypatch.setattr(rooms.machine, "last_level_cache", lambda: 0)
    x = np.empty((2048, 512, 7, 7), np.float32)  # its pages are never touched
    for passes in (1, 2):
        assert plan_of(x, passes).streaming == 1
        assert plan_of(x, passes, in_place=True).streaming == 0
        assert plan_of(x[:, :256], passes, in_place=True).streaming == 0
        view = rooms.views.view_of(1, False, x[:, :256])
        assert rooms.plan.make_plan(view, [x], np.empty_like(x), passes).streaming == 0


def test_long_runs_are_trained_channel_by_channel_past_the_cache(monkeypatch):
    long, short = np.empty((8, 16, 32, 32), np.float32), np.empty((8, 16, 31, 31), np.float32)
    with nbbn.num_threads(1):
        for size, expected in ((0, True), (long.nbytes * 4 // 3 + 4, False)):
            monkeypatch.setattr(rooms.machine, "last_level_cache", lambda size=size: size)
            assert plan_of(long, passes=2).by_channel is expected
            assert not plan_of(long).by_channel
            assert not plan_of(short, passes=2).by_channel


@pytest.mark.parametrize("runs", [True, False], ids=["runs", "columns"])
def test_runs_of_half_types_are_not_streamed(monkeypatch, runs):
    monkeypatch.setattr(rooms.machine, "last_level_cache", lambda: 0)
    shape = (8, 64, 49 * 49) if runs else (20_000, 64)
    for dtype, streaming in ((np.float16, 0 if runs else 1), (np.float32, 1)):
        x = np.zeros(shape, dtype)
        view = rooms.views.view_of(1, False, x, x)
        assert rooms.plan.make_plan(view, (x,), x.copy()).streaming == streaming


# Prints, for each call: its name, how many values the steps, interpreted, write in a row, and whether past the cache.
WRITTEN = """
import numpy as np
import nbbn
from rooms import machine, masks, plan, steps, steps_of_runs, ways
from nbbn._kernels import columns, runs

machine.last_level_cache = lambda: 0
plan.PARALLEL_FROM = 0
nbbn.set_num_threads(1)
written, past = [], []

def write_rows(operation, pick, y, read, rows, columns, form, streaming):
    written.append(columns[1] - columns[0])
    past.append(streaming)

def write_joined(operation, y, read, of, length, form, streaming):
    written.append(of[0] * length)
    past.append(streaming)

for module in (columns, runs):
    module.write_rows, module.write_joined, module.fence = write_rows, write_joined, lambda: None
for name in ("look_at_group", "add_up_group", "finish_moments", "finish_sums"):
    setattr(steps_of_runs, name, lambda *_: None)
ways.Way.look = lambda way, *_: np.ones((4, way.view.channels), np.float32)
ways.Way.add_up = lambda way, *_: np.ones((6, way.view.channels), np.float32)

def row(outer, channels, inner):
    return np.empty((outer, channels, inner), np.float32)

arrays = [row(*shape) for shape in ((2, 64, 49), (3, 512, 49), (400, 64, 49), (5, 1, 30), (3, 40, 2000), (9, 70, 2),
                                    (900, 70, 1), (9, 1200, 1), (2, 4000, 8))]
arrays += [row(3, 520, 49)[:, :512], row(3, 512, 60)[:, :, :49], row(3, 48, 500)[:, :, :300], row(90, 70, 2)[:, :60],
           row(90, 600, 1)[:, :400]]
for x in arrays:
    outer, channels, inner = x.shape
    form, table = np.ones((6, channels), np.float32), steps.new_table(channels)
    whole = steps.Call(x, 1)
    masked = whole._replace(weights=masks.Weights(np.ones((outer, inner), bool), (outer, inner), 1.0))
    calls = {
        "infer": lambda: steps.infer(whole, form[:4]),
        "train": lambda: steps.train(whole, table, 1.0, 0.0),
        "train, masked": lambda: steps.train(masked, table, 1.0, 0.0),
        "differentiate": lambda: steps.differentiate(x, whole, table, 0.0, x.dtype),
        "differentiate, masked": lambda: steps.differentiate(x, masked, table, 0.0, x.dtype),
        "write_gradient": lambda: steps.write_gradient(x, whole, form),
        "write_gradient, masked": lambda: steps.write_gradient(x, masked, form),
    }
    for name, call in calls.items():
        written.clear(), past.clear()
        call()
        assert len(set(past)) == 1
        print(f"{name}_of_{x.shape}".replace(" ", ""), max(written), past[0])
"""


def test_past_the_cache_is_what_is_written_in_long_runs():
    found = processes.run(WRITTEN, env={"NUMBA_DISABLE_JIT": "1"}, timeout=300)
    calls = list(zip(found[::3], map(int, found[1::3]), map(int, found[2::3]), strict=True))
    assert len(calls) == 14 * 7
    wrong = [call for call in calls if (call[1] * 4 >= rooms.plan._SHORTEST_STREAM) != call[2]]
    assert wrong == []


def test_no_slice_is_assigned_to_in_compiled_code():
    """For ``a[:] = b`` numba compiles the text of its error, 37 functions: 3 s of the first training call."""
    package = Path(nbbn.__file__).parent
    files = [package / "_compiler" / f"{name}.py" for name in ("vectors", "weights", "formats")]
    found = [
        f"{path.name}:{node.lineno}"
        for path in [*files, package / "nopython.py", *(package / "_kernels").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
    ]
    assert found == []


@rooms.needs_jit
def test_a_number_that_is_spelt_out_makes_no_variant():
    twice = rooms.jit.helper(lambda x: x + x)

    @njit
    def both(x):
        return twice(3) + twice(x)

    assert both(4) == 14
    assert len(twice.signatures) == 1
