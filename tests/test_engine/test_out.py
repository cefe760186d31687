"""out=: any layout, in place, overlapping its inputs, and empty batches."""

import cases
import numpy as np
import pytest
from compare import assert_same_bits, eps_of

import nbbn

SHAPES = (((5, 6, 7, 7), 1), ((9, 4, 40), 1), ((70, 12), 1), ((4, 7, 5, 16), -1), ((50,), 0))
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=map(cases.case_id, SHAPES))
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)


def train(x, axis, out=None):
    gamma, beta = cases.parameters(x.shape[axis])[:2]
    return nbbn.batch_norm(x, None, None, gamma, beta, training=True, axis=axis, running_correction=0, out=out)


def infer(x, axis, out=None):
    gamma, beta, mean, var = cases.parameters(x.shape[axis])
    return nbbn.normalize(x, mean, var, gamma, beta, axis=axis, out=out)


def infer_by_batch_norm(x, axis, out=None):
    gamma, beta, mean, var = cases.parameters(x.shape[axis])
    return nbbn.batch_norm(x, mean, var, gamma, beta, axis=axis, out=out)


def differentiate(x, axis, out=None, training=True):
    grad_y = cases.values(x.shape, x.dtype, seed=8)
    gamma, _, mean, var = cases.parameters(x.shape[axis])
    return nbbn.batch_norm_backward(grad_y, x, mean, var, gamma, axis=axis, training=training, out=out)[0]


def differentiate_inference(x, axis, out=None):
    return differentiate(x, axis, out, training=False)


OPERATIONS = (train, infer, infer_by_batch_norm, differentiate, differentiate_inference)


def assert_right(operation, got, expected):
    """Inference has the same bits whatever the layout of out; sums may be grouped differently."""
    if operation in (infer, infer_by_batch_norm, differentiate_inference):
        assert_same_bits(got, expected)
    else:
        eps = 16 * eps_of(expected.dtype)
        np.testing.assert_allclose(got, expected, rtol=eps, atol=eps * np.abs(expected).max())


by_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)


@by_operation
@by_dtype
@by_shape
@pytest.mark.parametrize("layout", cases.WRITABLE)
def test_out_of_any_layout_is_filled_and_returned(shape, axis, layout, dtype, operation):
    x = cases.values(shape, dtype)
    out = cases.LAYOUTS[layout](np.full(shape, 777, dtype))
    assert operation(x, axis, out) is out
    assert_right(operation, out, operation(x, axis))


@by_operation
@pytest.mark.parametrize("layout", ["strided", "strided_last", "channel_slice", "row_slice", "batch_step"])
def test_nothing_between_the_entries_of_out_is_written(layout, operation):
    x = cases.values((4, 6, 9))
    out = cases.LAYOUTS[layout](np.full(x.shape, 777, np.float32))
    buffer = out if out.base is None else out.base
    gaps = np.count_nonzero(buffer == np.float32(1e30))
    operation(x, 1, out)
    assert gaps > 0
    assert np.count_nonzero(buffer == np.float32(1e30)) == gaps


@pytest.mark.parametrize("operation", [train, infer, infer_by_batch_norm], ids=lambda f: f.__name__)
@by_dtype
@by_shape
@pytest.mark.parametrize("layout", cases.WRITABLE)
def test_in_place_gives_the_bits_of_a_fresh_output(shape, axis, layout, dtype, operation):
    values = cases.values(shape, dtype)
    x = cases.LAYOUTS[layout](values.copy())
    fresh = operation(x, axis)
    assert operation(x, axis, x) is x
    assert_same_bits(x, fresh)


def views(kind, shape, dtype=np.float32):
    """Two arrays of the given shape that share memory but are not the same array, and the memory."""
    size = int(np.prod(shape))
    buffer = cases.values((2 * size,), dtype)
    if kind == "shifted_forwards":
        return buffer[:size].reshape(shape), buffer[3 : size + 3].reshape(shape), buffer
    if kind == "shifted_backwards":
        return buffer[3 : size + 3].reshape(shape), buffer[:size].reshape(shape), buffer
    if kind == "shifted_by_half":
        return (
            buffer[:size].reshape(shape),
            buffer[size // 2 : size // 2 + size].reshape(shape),
            buffer,
        )
    x = buffer[:size].reshape(shape)
    if kind == "reversed":
        return x, x[::-1], buffer
    if kind == "transposed":
        return x, x.swapaxes(0, -1), buffer
    return x, buffer[: 2 * size : 2].reshape(shape), buffer


@by_operation
@pytest.mark.parametrize(("shape", "axis"), [((6, 5, 6), 1), ((40, 40), 1), ((40, 40), 0), ((4, 3, 64, 4), 1)])
@pytest.mark.parametrize(
    "kind",
    [
        "shifted_forwards",
        "shifted_backwards",
        "shifted_by_half",
        "reversed",
        "transposed",
        "twice_as_far",
    ],
)
def test_a_partly_overlapping_out_is_right_or_refused_untouched(kind, shape, axis, operation):
    x, out, buffer = views(kind, shape)
    assert np.shares_memory(x, out)
    expected, before = operation(x.copy(), axis), buffer.copy()
    try:
        got = operation(x, axis, out)
    except ValueError as error:
        assert "out" in str(error)
        assert_same_bits(buffer, before)
    else:
        assert got is out
        assert_right(operation, out, expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("which", ["grad_y", "x", "grad_y_reversed"])
@pytest.mark.parametrize("shape", [(6, 5, 49), (300, 5)])
def test_a_gradient_written_over_an_operand_is_right_or_refused_untouched(shape, which, training):
    x, grad_y = cases.values(shape), cases.values(shape, seed=5)
    gamma, _, mean, var = cases.parameters(5)
    expected = nbbn.batch_norm_backward(grad_y, x, mean, var, gamma, training=training)
    out = {"grad_y": grad_y, "x": x, "grad_y_reversed": grad_y[::-1]}[which]
    before = x.copy(), grad_y.copy()
    try:
        got = nbbn.batch_norm_backward(grad_y, x, mean, var, gamma, training=training, out=out)
    except ValueError as error:
        assert "out" in str(error)
        assert_same_bits(x, before[0])
        assert_same_bits(grad_y, before[1])
    else:
        assert got[0] is out
        for a, b in zip(got, expected, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize("name", ["gamma", "beta", "running_mean", "running_var"])
def test_an_out_that_overlaps_a_parameter_is_right_or_refused(name):
    x = cases.values((1, 8))
    named = dict(zip(("gamma", "beta", "running_mean", "running_var"), cases.parameters(8), strict=True))
    expected, before = nbbn.batch_norm(x, **named), named[name].copy()
    try:
        got = nbbn.batch_norm(x, **named, out=named[name].reshape(1, 8))
    except ValueError as error:
        assert "out" in str(error)
        assert_same_bits(named[name], before)
    else:
        assert_same_bits(got, expected)


EMPTY = (((0, 3), 1), ((0, 3, 4, 4), 1), ((2, 3, 0), 1), ((4, 0, 3), -1), ((3, 0), 0))
by_empty = pytest.mark.parametrize(("shape", "axis"), EMPTY, ids=map(cases.case_id, EMPTY))


@by_dtype
@by_empty
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_gives_an_empty_result_and_changes_nothing(shape, axis, training, dtype):
    gamma, beta, mean, var = cases.parameters(3)
    y = nbbn.batch_norm(np.empty(shape, dtype), mean, var, gamma, beta, training=training, axis=axis)
    assert (y.shape, y.dtype) == (shape, dtype)
    assert_same_bits(mean, cases.parameters(3)[2])
    assert_same_bits(var, cases.parameters(3)[3])


@by_empty
@pytest.mark.parametrize("training", [True, False])
def test_the_backward_of_an_empty_batch_is_empty_and_its_sums_are_zero(shape, axis, training):
    empty = np.empty(shape, np.float32)
    gamma, _, mean, var = cases.parameters(3)
    grad_x, grad_gamma, grad_beta = nbbn.batch_norm_backward(
        empty, empty, mean, var, gamma, axis=axis, training=training
    )
    assert grad_x.shape == shape
    np.testing.assert_array_equal(grad_gamma, np.zeros(3))
    np.testing.assert_array_equal(grad_beta, np.zeros(3))


def test_an_empty_out_is_returned():
    out = np.empty((0, 3), np.float32)
    assert nbbn.batch_norm(np.empty((0, 3), np.float32), None, None, training=True, out=out) is out


@pytest.mark.parametrize("size", [8, 600])  # small, and past where threads pay
def test_a_read_only_out_is_refused_on_every_call(size):
    """The first call of a shape is checked; later ones go by what was found then."""
    x = cases.values((size, 256), np.float32)
    training, inference = nbbn.BatchNorm(256), nbbn.BatchNorm(256).eval()
    calls = {
        "training": training,
        "inference": inference,
        "frozen": inference.freeze(),
        "backward": training.backward,
    }
    for call in calls.values():
        for _ in range(2):
            training(x), call(x)
        for given in (x.copy(), x):
            given.flags.writeable = False
            before = given.copy()
            with pytest.raises(ValueError, match="out: expected a writable array"):
                call(given, out=given)
            assert_same_bits(given, before)
        x.flags.writeable = True


MEAN, VAR = np.linspace(-1.0, 1.0, 8), np.linspace(0.5, 2.0, 8)
FUNCTIONS = {  # of x, and of grad_y beside an x of its own and beside itself
    "normalize": lambda x, out=None: nbbn.normalize(x, MEAN, VAR, out=out),
    "batch_norm": lambda x, out=None: nbbn.batch_norm(x, None, None, training=True, out=out),
    "of grad_y": lambda x, out=None: nbbn.batch_norm_backward(x, np.ones_like(x), MEAN, VAR, out=out)[0],
    "of x": lambda x, out=None: nbbn.batch_norm_backward(np.ones_like(x), x, MEAN, VAR, out=out)[0],
    "of both": lambda x, out=None: nbbn.batch_norm_backward(x, x, MEAN, VAR, out=out)[0],
}


@pytest.mark.parametrize("shape", [(40, 8), (4, 8, 6)])
@pytest.mark.parametrize("which", ["training", "inference", "frozen", "backward", *FUNCTIONS])
def test_an_out_of_another_layout_or_partly_over_an_input_of_a_shape_that_was_met(shape, which):
    x, training = cases.values(shape), nbbn.BatchNorm(8)
    training(x)
    inference = nbbn.BatchNorm(8).eval()
    layers = {
        "training": training,
        "inference": inference,
        "frozen": inference.freeze(),
        "backward": training.backward,
    }
    call = (layers | FUNCTIONS)[which]
    expected = call(x)
    for layout in cases.WRITABLE:
        out = cases.LAYOUTS[layout](np.full(shape, 777, np.float32))
        assert_same_bits(call(x, out=out), expected)
    for first, second in ((slice(None, -1), slice(1, None)), (slice(1, None), slice(None, -1))):
        memory = np.empty((shape[0] + 1, *shape[1:]), np.float32)
        given, out = memory[first], memory[second]
        given[...] = x
        assert_same_bits(call(given, out=out), expected)
