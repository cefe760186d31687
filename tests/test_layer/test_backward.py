"""BatchNorm.backward: which forward it belongs to, and when it refuses."""

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer, snapshot

import nbbn

X = cases.values((6, 3, 5))
GRAD_Y = cases.values((6, 3, 5), seed=2)
by_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


@by_mode
def test_backward_does_not_accumulate(training):
    bn = layer(3).train(training)
    bn(X)
    first = bn.backward(GRAD_Y), bn.grad_gamma.copy(), bn.grad_beta.copy()
    second = bn.backward(GRAD_Y), bn.grad_gamma, bn.grad_beta
    for a, b in zip(first, second, strict=True):
        assert_same_bits(a, b)


def test_backward_belongs_to_the_last_forward():
    bn, again = layer(3), layer(3)
    bn(X * 2 + 1)
    bn(X)
    again(X)
    assert_same_bits(bn.backward(GRAD_Y), again.backward(GRAD_Y))


@by_mode
def test_backward_takes_the_mode_of_the_forward_not_of_the_layer(training):
    bn, other = layer(3), layer(3).train(training)
    bn(X, training=training)
    other(X)
    bn.train(not training)
    assert_same_bits(bn.backward(GRAD_Y), other.backward(GRAD_Y))


def test_backward_changes_nothing_but_the_gradients():
    bn = layer(3)
    bn(X)
    before = snapshot(bn)
    bn.backward(GRAD_Y)
    after = snapshot(bn)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"grad_gamma", "grad_beta"}


def test_gradients_have_the_type_of_what_they_are_gradients_of():
    for dtype in cases.DTYPES:
        bn = nbbn.BatchNorm(3, dtype=dtype)
        for x in (X, X.astype(np.float64)):
            bn(x)
            assert bn.backward(GRAD_Y.astype(x.dtype)).dtype == x.dtype
            assert bn.grad_gamma.shape == bn.grad_beta.shape == (3,)
            assert bn.grad_gamma.dtype == bn.grad_beta.dtype == dtype


@by_mode
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "reversed_all", "channels_last_memory"])
def test_the_gradient_is_written_to_out(layout, training):
    bn = layer(3).train(training)
    bn(X)
    expected = bn.backward(GRAD_Y)
    out = cases.LAYOUTS[layout](np.full(X.shape, 777, np.float32))
    assert bn.backward(GRAD_Y, out=out) is out
    assert_same_bits(out, expected)


@by_mode
def test_a_gradient_written_over_grad_y_is_right(training):
    bn = layer(3).train(training)
    bn(X)
    expected, grad_y = bn.backward(GRAD_Y), GRAD_Y.copy()
    bn.backward(grad_y, out=grad_y)
    assert_same_bits(grad_y, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "silu", "mish", "prelu"])
@pytest.mark.parametrize("shape", [(6, 3, 50), (6, 3, 5), (40, 3)], ids=str)
def test_a_gradient_through_an_activation_is_the_same_wherever_it_is_written(shape, activation, dtype):
    bn = layer(3, activation=activation)

    def gradient(choose):
        x, grad_y = cases.values(shape, dtype), cases.values(shape, dtype, seed=2)
        bn(x)
        return bn.backward(grad_y, out=choose(x, grad_y)), bn.grad_gamma, bn.grad_beta

    expected = gradient(lambda x, grad_y: None)
    for choose in (lambda x, grad_y: np.empty_like(x), lambda x, grad_y: x, lambda x, grad_y: grad_y):
        for a, b in zip(gradient(choose), expected, strict=True):
            assert_same_bits(a, b)


def test_backward_before_a_forward_is_refused():
    bn = layer(3)
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(GRAD_Y)
    assert getattr(bn, "grad_gamma", None) is None


@by_mode
def test_backward_after_a_forward_in_place_is_refused(training):
    bn, x, out = layer(3).train(training), X.copy(), np.full(X.shape, 777, np.float32)
    bn(x, out=x)
    with pytest.raises(RuntimeError, match=r"overwritten|in place"):
        bn.backward(GRAD_Y, out=out)
    np.testing.assert_array_equal(out, 777)


@pytest.mark.parametrize("view", [lambda x: x[:], lambda x: x.reshape(-1).reshape(x.shape), np.asarray])
def test_a_forward_in_place_through_another_view_is_noticed(view):
    bn, x = layer(3), X.copy()
    bn(x, out=view(x))
    with pytest.raises(RuntimeError, match=r"overwritten|in place"):
        bn.backward(GRAD_Y)


@pytest.mark.parametrize("size", [80_000, 80_001, 80_002])
def test_a_forward_into_one_value_of_its_input_is_noticed(size):
    """Of so many values a sample is compared, in two of the three without that one."""
    memory = cases.values((2 * size - 1, 1))
    bn, out, x = layer(1), memory[:size], memory[size - 1 :]
    bn(x, out=out)
    with pytest.raises(RuntimeError, match=r"overwritten|in place"):
        bn.backward(np.ones_like(x))


def set_all(x):
    x[...] = GRAD_Y[0, 0, 0]


def scale(x):
    x *= 2


def cut_negatives(x):
    np.maximum(x, 0, out=x)


def change_one_sample(x):
    x[len(x) // 3] += 1


def change_one_channel(x):
    x[:, 1] += 1


def change_one_value(x):
    x[len(x) // 2, 1] *= np.float32(1.01)


def change_the_last_value(x):
    x.reshape(-1)[-1] *= np.float32(1.01)


def swap_two_values(x):
    flat = x.reshape(-1)
    flat[[1, 2]] = flat[[2, 1]]


OVERWRITES = (
    set_all,
    scale,
    cut_negatives,
    change_one_sample,
    change_one_channel,
    change_one_value,
    change_the_last_value,
    swap_two_values,
)


# Of many values a sample is compared: there one or two changed values may go unnoticed, as documented.
FEW = (change_one_value, swap_two_values)
CASES = [
    *[(shape, overwrite) for shape in ((6, 3, 5), (40, 3)) for overwrite in OVERWRITES],
    *[((8, 3, 50, 50), overwrite) for overwrite in OVERWRITES if overwrite not in FEW],
]


@by_mode
@pytest.mark.parametrize(("shape", "overwrite"), CASES, ids=lambda v: getattr(v, "__name__", str(v)))
def test_backward_after_the_input_was_overwritten_is_refused(shape, overwrite, training):
    bn, x, grad_y = layer(3).train(training), cases.values(shape), cases.values(shape, seed=2)
    bn(x)
    overwrite(x)
    out = np.full(shape, 777, np.float32)
    with pytest.raises(RuntimeError, match=r"overwritten|changed|modified"):
        bn.backward(grad_y, out=out)
    np.testing.assert_array_equal(out, 777)


def test_a_forward_after_an_overwrite_makes_backward_possible_again():
    bn, x = layer(3), X.copy()
    bn(x, out=x)
    bn(X)
    fresh = layer(3)
    fresh(X)
    assert_same_bits(bn.backward(GRAD_Y), fresh.backward(GRAD_Y))


def test_a_forward_that_raises_keeps_the_previous_backward_or_refuses():
    bn, fresh = layer(3), layer(3)
    bn(X), fresh(X)
    with pytest.raises(ValueError, match="x"):
        bn(cases.values((4, 5)))
    assert_same_bits(bn.backward(GRAD_Y), fresh.backward(GRAD_Y))


@by_mode
def test_the_backward_of_an_empty_batch_is_empty(training):
    bn = layer(3).train(training)
    empty = np.empty((0, 3), np.float32)
    # What NumPy frees it gives out again: nothing may come of what stood there.
    freed = [np.full((rows, 3), np.nan) for rows in range(2, 16) for _ in range(6)]
    freed.clear()
    bn(empty)
    assert bn.backward(empty).shape == (0, 3)
    np.testing.assert_array_equal(bn.grad_gamma, np.zeros(3))
    np.testing.assert_array_equal(bn.grad_beta, np.zeros(3))


def test_one_value_per_channel_has_no_gradient():
    bn = layer(3, running_correction=0)
    bn(cases.values((1, 3)))
    np.testing.assert_array_equal(bn.backward(np.ones((1, 3), np.float32)), np.zeros((1, 3)))


@pytest.mark.parametrize("name", ["gamma", "x"])
def test_inference_gradients_use_the_statistics_of_that_forward(name):
    """Running statistics that move between forward and backward do not leak into the gradient."""
    bn, fresh = layer(3).eval(), layer(3).eval()
    bn(X), fresh(X)
    expected = {"x": fresh.backward(GRAD_Y), "gamma": fresh.grad_gamma}[name]
    bn.running_mean += 3
    bn.running_var *= 2
    got = {"x": bn.backward(GRAD_Y), "gamma": bn.grad_gamma}[name]
    assert_same_bits(got, expected)
