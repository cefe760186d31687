"""Every entry of the dispatch table, on every layout that it takes: right, and with the bits of the other entries."""

import ast
import inspect
from pathlib import Path

import cases
import numpy as np
import pytest
import reference
from numba import njit

import nbbn
from nbbn import _dispatch, _plain
from nbbn._compiler import jit as _jit
from nbbn._engine import machine as _machine
from nbbn._engine import threads as _threads
from nbbn._layout import Layout, describe, flat
from nbbn.kernels import channels_first, channels_first_backward
from nbbn.kernels import table as rows

# (shape, axis) of each kind of canonical view: runs, single runs, columns, folded columns with a tail, one channel
VIEWS = (
    ((5, 7, 6, 6), 1),
    ((3, 2, 40, 50), 1),
    ((2, 9, 20000), 1),
    ((9, 33), 0),
    ((300, 150), 1),
    ((70, 3), 1),
    ((11, 5, 3), 1),
    ((4, 600), 1),
    ((50000,), 0),
)
VIEWS = tuple(view for view in VIEWS if view[0][view[1]] < 1000)


def arrays(shape, axis, dtype, count):
    made = [cases.values(shape, dtype, loc=3.0 * k, seed=k) for k in range(count)]
    layout = describe(shape, axis % len(shape), made[0].itemsize, *[a.strides for a in made])
    assert layout is not None
    return made, layout


def entries(operation, layout):
    """All entries that could do it: whether threads suffice is not a question of being able to."""
    for entry in _dispatch.TABLE[operation]:
        with nbbn.num_threads(1):
            if entry.declines(layout) is None:
                yield entry


MODES = {"serial": (1, False), "parallel": (2, False), "streaming": (2, True)}


@pytest.fixture(params=MODES)
def mode(request, monkeypatch):
    """Serial, parallel, and parallel with results written past the cache."""
    threads, streaming = MODES[request.param]
    monkeypatch.setattr(_dispatch, "PARALLEL_FROM", 1)
    if streaming:
        monkeypatch.setattr(_machine, "last_level_cache", lambda: 0)
        monkeypatch.setattr(_dispatch, "_SHORTEST_STREAM", 0)
    with nbbn.num_threads(threads):
        yield request.param


def table_of(channels, **given):
    table = np.full((rows.STATISTICS_ROWS, channels), np.nan)
    for name, values in given.items():
        table[getattr(rows, name)] = values
    return table


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("shape", "axis"), VIEWS, ids=str)
def test_moments_of_every_entry(shape, axis, dtype, mode):
    (x,), layout = arrays(shape, axis, dtype, 1)
    count, mean, m2 = reference.moments(x, axis)
    for entry in entries("moments", layout):
        table = table_of(layout.channels)
        entry.run(flat(x), layout, count - 1.0, 0.25, table)
        assert layout.count == count
        np.testing.assert_allclose(table[rows.MEAN], mean, atol=2e-15, rtol=1e-15)
        np.testing.assert_allclose(table[rows.M2], m2, rtol=1e-14)
        np.testing.assert_allclose(table[rows.VAR], m2 / (count - 1), rtol=1e-14)
        inv_std = 1 / np.sqrt(m2 / (count - 1) + 0.25)
        np.testing.assert_allclose(table[rows.INV_STD], inv_std, rtol=1e-14)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("shape", "axis"), VIEWS, ids=str)
def test_training_of_every_entry(shape, axis, dtype, mode):
    (x, y), layout = arrays(shape, axis, dtype, 2)
    gamma, beta = cases.parameters(layout.channels, dtype)[:2]
    expected = reference.training(x, gamma, beta, axis=axis)
    results = []
    for entry in entries("train", layout):
        y[...] = np.nan
        table = table_of(layout.channels, GAMMA=gamma, BETA=beta)
        entry.run(flat(x), flat(y), layout, float(layout.count), 1e-5, table)
        np.testing.assert_allclose(y, expected.y, rtol=0, atol=30 * np.finfo(dtype).eps)
        results.append((y.tobytes(), table.tobytes()))
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize(("shape", "axis"), VIEWS, ids=str)
def test_backward_of_every_entry(shape, axis, dtype, mode):
    (x, grad_y, grad_x), layout = arrays(shape, axis, dtype, 3)
    gamma = cases.parameters(layout.channels, np.float64)[0]
    forward = reference.training(x, axis=axis)
    expected = reference.backward(grad_y, x, gamma, axis=axis)
    given = {"GRAD_MEAN": forward.mean, "GRAD_INV_STD": forward.inv_std, "GRAD_GAMMA": gamma}
    results = []
    for entry in entries("backward", layout):
        grad_x[...] = np.nan
        table = table_of(layout.channels, **given)
        count = float(layout.count)
        entry.run(flat(grad_y), flat(x), flat(grad_x), layout, count, count, table, None)
        scale = np.abs(expected.x).max()
        np.testing.assert_allclose(
            grad_x, expected.x, rtol=0, atol=scale * 50 * np.finfo(dtype).eps
        )
        np.testing.assert_allclose(table[rows.SUM_GRAD], expected.beta, rtol=1e-11, atol=1e-9)
        results.append((grad_x.tobytes(), table.tobytes()))
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize(("shape", "axis"), VIEWS, ids=str)
def test_streaming_changes_no_bit_and_writes_nothing_else(shape, axis, offset, dtype, monkeypatch):
    x = cases.values(shape, dtype)
    grad = cases.values(shape, dtype, seed=1)
    monkeypatch.setattr(_dispatch, "_SHORTEST_STREAM", 0)
    monkeypatch.setattr(_dispatch, "PARALLEL_FROM", 0)  # below, nothing is streamed
    monkeypatch.setattr(_plain, "make_plan", _plain.make_plan.__wrapped__)
    results = []
    for streaming in (False, True):
        cache = 0 if streaming else 1 << 40
        monkeypatch.setattr(_machine, "last_level_cache", lambda cache=cache: cache)
        bn = nbbn.BatchNorm(shape[axis], axis=axis, dtype=dtype)
        buffers = [np.full(x.size + 40, -7, dtype) for _ in range(3)]
        outs = [b[16 + offset : 16 + offset + x.size].reshape(shape) for b in buffers]
        with nbbn.num_threads(1):
            bn(x, out=outs[0])
            bn.backward(grad, out=outs[1])
            bn(x, training=False, out=outs[2])
        results.append(np.stack(buffers))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.all(results[1][:, : 16 + offset] == -7)
    assert np.all(results[1][:, 16 + offset + x.size :] == -7)


@pytest.mark.parametrize("operation", _dispatch.TABLE)
def test_every_layout_is_taken(operation):
    for shape, axis in VIEWS:
        _, layout = arrays(shape, axis, np.float32, 1)
        names = [entry.name for entry in _dispatch.TABLE[operation]]
        assert _dispatch.explain(operation, layout)[-1] in names


def test_explain_gives_the_reason(monkeypatch):
    monkeypatch.setattr(_threads, "get_num_threads", lambda: 4)
    _, layout = arrays((8, 3, 100, 100), 1, np.float32, 1)
    assert _dispatch.explain("train", layout) == [
        "not channel by channel: 3 channels do not occupy 4 threads",
        "two passes",
    ]


def test_streaming_is_for_what_exceeds_the_cache(monkeypatch):
    (x, y), layout = arrays((8, 4, 32, 32), 1, np.float32, 2)
    full = 2 * x.nbytes * 4 // 3  # of which both arrays take three quarters
    for size, expected in ((full + 4, 0), (full - 4, 1)):
        monkeypatch.setattr(_machine, "last_level_cache", lambda size=size: size)
        assert _dispatch.is_streamed("normalize", layout, y, x) == expected
        assert _dispatch.is_streamed("normalize", layout, x, x) == 0


def test_the_largest_cache_is_read_from_the_system(tmp_path):
    for index, text in enumerate(("32K\n", "1024K\n", "32M\n", "?")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(text)
    assert _machine.last_level_cache(tmp_path) == 32 << 20
    assert _machine.last_level_cache(tmp_path / "none") == 32 << 20


def recorded(patch, module):
    """A list that will hold the length of each run that kernels of the module, called as Python, write."""
    runs, real = [], ("channels_of_group", "segments_and_rows", "joins")

    def recorder(name, signature):
        def record(*arguments):
            given = signature.bind(*arguments).arguments
            runs.append(given["length"] * (given["rows"] if "joined" in name else 1))

        return record

    for name, value in list(vars(module).items()):
        if not hasattr(value, "py_func"):
            continue
        if name in real:
            patch.setattr(module, name, value.py_func)
        elif name.endswith("_rows"):
            patch.setattr(module, name, recorder(name, inspect.signature(value.py_func)))
        else:
            patch.setattr(module, name, lambda *arguments: (0, 0, 0))
    patch.setattr(module, "working_dtype", lambda x: np.float32)
    patch.setattr(module, "fence", lambda: None)
    return runs


def call_in_python(kernel, layout, masked, patch):
    """The longest run of values that a kernel writes."""
    of_x, of_y, of_grad = layout.strides
    nothing = None, 0, 0
    mask = np.ones(1, np.uint8) if masked else None
    x, table = np.zeros(1, np.float32), np.zeros((10, layout.channels))
    y = x, *of_y, 1
    if kernel == "normalize_channels_first":
        module, arguments = channels_first, (table, 0.0, *y, *nothing, (), 0.0, *nothing)
    elif kernel == "train_channels_first":
        module, arguments = channels_first, (1.0, 0.0, table, *y, *nothing, (), 0.0, mask)
    else:
        module, arguments = channels_first_backward, (1.0, 1.0, table, *y, mask)
    runs = recorded(patch, module)
    before = () if module is channels_first else (x, *of_grad)
    getattr(module, kernel).function(*before, x, *layout.view, *of_x, *arguments)
    return max(runs)


@pytest.mark.skipif(not _jit.is_enabled(), reason="helpers are told by their compiled form")
@pytest.mark.parametrize(
    ("kernel", "masked", "operation"),
    [
        ("normalize_channels_first", False, "normalize"),
        ("train_channels_first", False, "train"),
        ("train_channels_first", True, "train"),
        ("backward_channels_first", False, "backward"),
        ("backward_channels_first", True, "input gradient"),
        ("backward_input_channels_first", False, "input gradient"),
        ("backward_input_channels_first", True, "input gradient"),
    ],
)
@pytest.mark.parametrize("gap", [(0, 0), (7, 0), (0, 7)])  # after a sample, after a channel
def test_how_much_is_written_in_a_row_is_what_kernels_do(kernel, masked, operation, gap):
    sizes = (2, 64, 49), (3, 512, 49), (2000, 64, 49), (700, 40, 49), (5, 1, 30), (3, 40, 5000)
    for outer, channels, inner in sizes:
        step = inner + gap[1]
        strides = channels * step + gap[0], step if channels > 1 else 0
        layout = Layout(True, channels, outer * inner, inner, outer, 1, 0, (strides,) * 3)
        with pytest.MonkeyPatch.context() as patch:
            found = call_in_python(kernel, layout, masked, patch)
        said = _dispatch.written_in_a_row(operation, layout)
        # Where that is long, it is only that it is: a kernel may begin a new task.
        assert min(found, 4096) == min(said, 4096), (outer, channels, inner)


def test_short_runs_of_many_samples_are_not_streamed(monkeypatch):
    monkeypatch.setattr(_machine, "last_level_cache", lambda: 0)
    x = np.empty((2048, 512, 7, 7), np.float32)  # its pages are never touched
    layout = _plain.make_plan(x.shape, 1).layout
    streamed = {
        op: _dispatch.is_streamed(op, layout, x, x[:]) for op in ("normalize", "train", "backward")
    }
    assert streamed == {"normalize": 0, "train": 0, "backward": 0}  # in place
    y = np.empty_like(x)
    streamed = {
        op: _dispatch.is_streamed(op, layout, y, x) for op in ("normalize", "train", "backward")
    }
    assert streamed == {"normalize": 1, "train": 0, "backward": 0}
    few = _plain.make_plan((32, 512, 7, 7), 1).layout  # whose channels are worked on in groups
    assert _dispatch.is_streamed("train", few, y, x) == 1


def test_no_slice_is_assigned_to_in_compiled_code():
    """For ``a[:] = b`` numba compiles the text of its error, 37 functions: 3 s of the first training call."""
    package = Path(nbbn.__file__).parent
    files = [package / f"{name}.py" for name in ("_simd", "_simd_weights", "_formats", "nopython")]
    found = [
        f"{path.name}:{node.lineno}"
        for path in [*files, *(package / "kernels").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Store)
        and any(isinstance(part, ast.Slice) for part in ast.walk(node.slice))
    ]
    assert found == []


@pytest.mark.skipif(not _jit.is_enabled(), reason="nothing is compiled")
def test_a_number_that_is_spelt_out_makes_no_variant():
    twice = _jit.helper(lambda x: x + x)

    @njit
    def both(x):
        return twice(3) + twice(x)

    assert both(4) == 14
    assert len(twice.signatures) == 1
