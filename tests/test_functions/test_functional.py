"""batch_norm, normalize, batch_norm_backward: values, layouts, dtypes, what is written and what is not."""

import cases
import numpy as np
import pytest
import reference
from compare import (
    assert_forward,
    assert_gradients,
    assert_running,
    assert_same_bits,
    mean_error,
    var_error,
)

import nbbn

by_shape = pytest.mark.parametrize(("shape", "axis"), cases.SHAPES, ids=map(cases.case_id, cases.SHAPES))
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
by_layout = pytest.mark.parametrize("layout", cases.LAYOUTS)
by_parameter_dtype = pytest.mark.parametrize("parameter_dtype", cases.DTYPES, ids=cases.case_id)
LAYOUT_SHAPES = (
    ((5, 6, 7, 7), 1),
    ((9, 4, 40), 1),
    ((70, 12), 1),
    ((4, 7, 5, 16), -1),
    ((6, 3, 8, 4), 0),
    ((50,), 0),  # one value per channel
)
by_layout_shape = pytest.mark.parametrize(("shape", "axis"), LAYOUT_SHAPES, ids=map(cases.case_id, LAYOUT_SHAPES))


def one_each(x, axis):
    """Whether there is but one value per channel: then training allows no correction."""
    return x.size == x.shape[axis]


def check_training(x, axis, parameter_dtype=np.float32, **options):
    gamma, beta, mean, var = cases.parameters(x.shape[axis], parameter_dtype)
    running_correction = 0 if one_each(x, axis) else 1
    old_mean, old_var = mean.copy(), var.copy()
    options["axis"] = axis
    updated = {"momentum": 0.3, "running_correction": running_correction}
    y = nbbn.batch_norm(x, mean, var, gamma, beta, training=True, **updated, **options)
    expected = reference.training(x, gamma, beta, **options)
    assert_forward(y, x, expected, gamma, beta, axis)
    count, batch_mean, m2 = reference.moments(x, axis)
    batch_var = m2 / (count - running_correction)
    assert_running(mean, old_mean, batch_mean, 0.3, batch_error=mean_error(x, axis))
    assert_running(var, old_var, batch_var, 0.3, batch_error=var_error(x, batch_var))


def check_inference(x, axis, parameter_dtype=np.float32):
    gamma, beta, mean, var = cases.parameters(x.shape[axis], parameter_dtype)
    y = nbbn.batch_norm(x, mean, var, gamma, beta, axis=axis)
    assert_forward(y, x, reference.inference(x, mean, var, gamma, beta, axis=axis), gamma, beta, axis)


def check_backward(grad_y, x, axis, training=True, correction=0):
    gamma = cases.parameters(x.shape[axis])[0]
    forward = reference.training(x, gamma, axis=axis, correction=correction)
    got = nbbn.batch_norm_backward(
        grad_y,
        x,
        forward.mean,
        forward.inv_std,
        gamma,
        axis=axis,
        training=training,
        correction=correction,
    )
    if training:
        expected = reference.backward(grad_y, x, gamma, axis=axis, correction=correction)
    else:
        expected = reference.backward_inference(grad_y, x, forward.mean, forward.inv_std, gamma, axis=axis)
    assert got[0].dtype == x.dtype
    assert_gradients(got, expected, grad_y, forward, gamma, axis)


@by_dtype
@by_shape
def test_training_matches_the_equation_on_every_shape_and_axis(shape, axis, dtype):
    check_training(cases.values(shape, dtype), axis)


@by_dtype
@by_shape
def test_inference_matches_the_equation_on_every_shape_and_axis(shape, axis, dtype):
    check_inference(cases.values(shape, dtype), axis)


@pytest.mark.parametrize("training", [True, False])
@by_dtype
@by_shape
def test_backward_matches_the_equation_on_every_shape_and_axis(shape, axis, dtype, training):
    x = cases.values(shape, dtype)
    check_backward(cases.values(shape, dtype, seed=7), x, axis, training)


@by_layout
@by_layout_shape
def test_training_matches_the_equation_in_every_layout(shape, axis, layout):
    check_training(cases.LAYOUTS[layout](cases.values(shape, scale=20.0)), axis, eps=1e-3)


@by_layout
@by_layout_shape
def test_inference_matches_the_equation_in_every_layout(shape, axis, layout):
    check_inference(cases.LAYOUTS[layout](cases.values(shape)), axis)


@by_layout
@by_layout_shape
def test_backward_matches_the_equation_in_every_layout(shape, axis, layout):
    x, grad_y = cases.values(shape), cases.values(shape, seed=7)
    check_backward(cases.LAYOUTS[layout](grad_y), x, axis)
    check_backward(grad_y, cases.LAYOUTS[layout](x), axis)


@pytest.mark.parametrize("inner", cases.INNER_SIZES)
def test_every_inner_size_around_the_simd_width(inner):
    for count in (1, 3, 16):
        x = cases.values((3, count, inner), seed=inner)
        check_training(x, 1)
        check_inference(x, 1)
        check_backward(cases.values(x.shape, seed=99), x, 1)


@pytest.mark.parametrize("count", cases.CHANNEL_COUNTS)
@pytest.mark.parametrize("rows", [2, 3, 16, 37, 200])
def test_every_channel_count_in_a_matrix(rows, count):
    x = cases.values((rows, count), seed=rows)
    check_training(x, 1)
    check_inference(x, 1)
    check_backward(cases.values(x.shape, seed=99), x, 1)


@by_parameter_dtype
@by_dtype
def test_values_and_parameters_may_have_different_types(dtype, parameter_dtype):
    for shape, axis in LAYOUT_SHAPES:
        x = cases.values(shape, dtype)
        check_training(x, axis, parameter_dtype)
        check_inference(x, axis, parameter_dtype)


@pytest.mark.parametrize("correction", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 5, 3), (12, 32)])  # rows that are joined, and rows of whole vectors
@by_dtype
def test_correction_enters_the_variance_that_normalizes(shape, correction, dtype):
    x = cases.values(shape, dtype)
    check_training(x, 1, correction=correction)
    check_backward(cases.values(x.shape, dtype, seed=3), x, 1, correction=correction)


@pytest.mark.parametrize("running_correction", [0, 1, 3])
def test_running_correction_enters_the_running_variance(running_correction):
    x = cases.values((6, 4))
    mean, var = np.zeros(4), np.ones(4)
    nbbn.batch_norm(x, mean, var, training=True, momentum=1.0, running_correction=running_correction)
    expected = reference.moments(x)[2] / (6 - running_correction)
    np.testing.assert_allclose(var, expected, rtol=1e-6)


@pytest.mark.parametrize("has_gamma", [True, False])
@pytest.mark.parametrize("has_beta", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 9), (40, 5)])
def test_gamma_and_beta_are_each_optional(shape, has_gamma, has_beta):
    x = cases.values(shape)
    gamma, beta, mean, var = cases.parameters(5)
    gamma, beta = gamma if has_gamma else None, beta if has_beta else None
    y = nbbn.batch_norm(x, None, None, gamma, beta, training=True)
    assert_forward(y, x, reference.training(x, gamma, beta), gamma, beta)
    y = nbbn.normalize(x, mean, var, gamma, beta)
    assert_forward(y, x, reference.inference(x, mean, var, gamma, beta), gamma, beta)


@pytest.mark.parametrize("training", [True, False])
def test_backward_without_gamma_takes_it_as_one(training):
    x, grad_y = cases.values((6, 5, 9)), cases.values((6, 5, 9), seed=4)
    forward = reference.training(x)
    without = nbbn.batch_norm_backward(grad_y, x, forward.mean, forward.inv_std, training=training)
    with_one = nbbn.batch_norm_backward(
        grad_y, x, forward.mean, forward.inv_std, np.ones(5, np.float32), training=training
    )
    assert_same_bits(without[0], with_one[0])


@pytest.mark.parametrize("given", ["mean", "var"])
def test_either_running_statistic_may_be_absent_in_training(given):
    x = cases.values((6, 4))
    both = [np.zeros(4, np.float32), np.ones(4, np.float32)]
    one = [v.copy() if given == name else None for name, v in zip(("mean", "var"), both, strict=True)]
    nbbn.batch_norm(x, *both, training=True)
    nbbn.batch_norm(x, *one, training=True)
    k = ("mean", "var").index(given)
    assert_same_bits(one[k], both[k])
    assert not np.allclose(one[k], [0.0, 1.0][k])


@pytest.mark.parametrize("momentum", [0.0, 0.25, 1.0, -0.5, 1.5])
def test_momentum_is_the_weight_of_the_new_value(momentum):
    x = cases.values((50, 3), np.float64)
    mean, var = np.full(3, 4.0), np.full(3, 5.0)
    nbbn.batch_norm(x, mean, var, training=True, momentum=momentum)
    np.testing.assert_allclose(mean, (1 - momentum) * 4 + momentum * x.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(var, (1 - momentum) * 5 + momentum * x.var(axis=0, ddof=1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0, 100.0])
def test_eps_is_added_to_the_variance(eps):
    x = cases.values((50, 3))
    y = nbbn.batch_norm(x, None, None, training=True, eps=eps)
    assert_forward(y, x, reference.training(x, eps=eps))
    y = nbbn.normalize(x, np.zeros(3), np.full(3, 0.5), eps=eps)
    assert_forward(y, x, reference.inference(x, np.zeros(3), np.full(3, 0.5), eps=eps))


@by_layout
def test_normalize_is_the_inference_step_of_batch_norm(layout):
    x = cases.LAYOUTS[layout](cases.values((4, 5, 6)))
    gamma, beta, mean, var = cases.parameters(5)
    assert_same_bits(
        nbbn.normalize(x, mean, var, gamma, beta, eps=1e-3),
        nbbn.batch_norm(x, mean, var, gamma, beta, eps=1e-3),
    )


@pytest.mark.parametrize("layout", cases.KEEPING)
@by_layout_shape
@by_dtype
def test_inference_gives_the_same_bits_in_every_layout(shape, axis, layout, dtype):
    x = cases.values(shape, dtype)
    statistics = [v.astype(dtype) for v in cases.parameters(shape[axis])[2:]]
    plain = nbbn.normalize(x, *statistics, axis=axis)
    assert_same_bits(nbbn.normalize(cases.LAYOUTS[layout](x), *statistics, axis=axis), plain)


@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "reversed_all", "read_only", "unaligned"])
def test_parameters_of_any_layout_are_read(layout):
    x = cases.values((7, 5, 3))
    plain = cases.parameters(5)
    gamma, beta, mean, var = (cases.LAYOUTS[layout](v) for v in plain)
    assert_same_bits(nbbn.normalize(x, mean, var, gamma, beta), nbbn.normalize(x, *plain[2:], *plain[:2]))


@pytest.mark.parametrize("layout", ["strided", "reversed_all", "unaligned"])
def test_running_statistics_of_any_layout_are_updated_in_place(layout):
    x = cases.values((7, 5, 3))
    plain = cases.parameters(5)[2:]
    laid_out = [cases.LAYOUTS[layout](v) for v in plain]
    nbbn.batch_norm(x, *laid_out, training=True)
    nbbn.batch_norm(x, *plain, training=True)
    for got, expected in zip(laid_out, plain, strict=True):
        assert_same_bits(got, expected)
    assert not np.array_equal(plain[0], cases.parameters(5)[2])


def test_inference_leaves_the_running_statistics_alone():
    gamma, beta, mean, var = cases.parameters(4)
    before = mean.copy(), var.copy()
    nbbn.batch_norm(cases.values((6, 4)), mean, var, gamma, beta)
    assert_same_bits(mean, before[0])
    assert_same_bits(var, before[1])


@by_layout_shape
def test_no_input_is_written(shape, axis):
    x, grad_y = cases.values(shape), cases.values(shape, seed=3)
    gamma, beta, mean, var = cases.parameters(shape[axis])
    inputs = x, grad_y, gamma, beta, mean, var
    for array in inputs:
        array.flags.writeable = False
    copies = [a.copy() for a in inputs]
    nbbn.batch_norm(x, None, None, gamma, beta, training=True, axis=axis, running_correction=0)
    nbbn.normalize(x, mean, var, gamma, beta, axis=axis)
    nbbn.batch_norm_backward(grad_y, x, mean, var, gamma, axis=axis)
    nbbn.batch_moments(x, axis=axis)
    for array, copy in zip(inputs, copies, strict=True):
        assert_same_bits(array, copy)


@by_layout_shape
def test_the_result_is_a_new_writable_array(shape, axis):
    x = cases.values(shape)
    mean, var = cases.parameters(shape[axis])[2:]
    first = nbbn.normalize(x, mean, var, axis=axis)
    kept = first.copy()
    second = nbbn.normalize(x + 1, mean, var, axis=axis)
    assert not np.shares_memory(first, x) and not np.shares_memory(first, second)
    assert first.flags.writeable
    assert_same_bits(first, kept)


class OnlyDLPack:
    """An object that is no array and has no buffer: it can only be read through DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnlyArrayInterface:
    """An object that NumPy can read without a copy through its array interface."""

    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


@pytest.mark.parametrize("wrap", [OnlyDLPack, OnlyArrayInterface, memoryview], ids=lambda w: w.__name__)
def test_whatever_shares_its_memory_with_numpy_is_accepted(wrap):
    x, grad_y = cases.values((6, 4, 5)), cases.values((6, 4, 5), seed=2)
    mean, var = cases.parameters(4)[2:]
    assert_same_bits(nbbn.normalize(wrap(x), mean, var), nbbn.normalize(x, mean, var))
    assert_same_bits(
        nbbn.batch_norm(wrap(x), None, None, training=True),
        nbbn.batch_norm(x, None, None, training=True),
    )
    assert_same_bits(
        nbbn.batch_norm_backward(wrap(grad_y), wrap(x), mean, var)[0],
        nbbn.batch_norm_backward(grad_y, x, mean, var)[0],
    )
    assert_same_bits(nbbn.batch_moments(wrap(x)).m2, nbbn.batch_moments(x).m2)


@by_parameter_dtype
def test_running_statistics_may_be_columns_of_one_table(parameter_dtype):
    x = cases.values((40, 5), loc=2.0)
    table = np.zeros((5, 2), parameter_dtype)
    table[:, 1] = 1.0
    mean, var = np.zeros(5, parameter_dtype), np.ones(5, parameter_dtype)
    for _ in range(2):
        y = nbbn.batch_norm(x, table[:, 0], table[:, 1], training=True)
        assert_same_bits(y, nbbn.batch_norm(x, mean, var, training=True))
    assert_same_bits(table, np.stack([mean, var], axis=1))


def test_running_statistics_that_share_a_byte_are_refused():
    x, memory = cases.values((40, 5)), np.ones(11, np.float32)
    out = np.ones((40, 5), np.float32)
    pairs = (memory[:5], memory[:5]), (memory[:5], memory[4:9]), (memory[:9:2], memory[2::2])
    for mean, var in pairs:
        with pytest.raises(ValueError, match="running_mean: expected memory apart from running_var"):
            nbbn.batch_norm(x, mean, var, training=True)
    with pytest.raises(ValueError, match="running_var: expected memory apart from out"):
        nbbn.batch_norm(x, memory[:5], out[3], training=True, out=out)
    assert (memory == 1).all() and (out == 1).all()


NEGATIVE = {
    "normalize": lambda x, mean, var: nbbn.normalize(x, mean, var),
    "batch_norm": lambda x, mean, var: nbbn.batch_norm(x, mean, var),
    "all masked": lambda x, mean, var: nbbn.batch_norm(x, mean, var, training=True, mask=False),
}


def test_a_negative_running_variance_is_refused_in_training_too():
    mean, var = np.zeros(3), np.array([1.0, -2.0, 1.0])
    with pytest.raises(ValueError, match="running_var: expected no variance below 0, got -2"):
        nbbn.batch_norm(cases.values((6, 3)), mean, var, training=True)
    assert mean.tolist() == [0.0, 0.0, 0.0] and var.tolist() == [1.0, -2.0, 1.0]


@pytest.mark.parametrize("name", NEGATIVE)
def test_a_negative_variance_is_refused(name):
    x, mean = cases.values((6, 3)), np.zeros(3)
    for least in (-1e-300, -2.0, -np.inf):
        for var in ([1.0, least, 1.0], [np.nan, 1.0, least]):
            with pytest.raises(ValueError, match=f"var: expected no variance below 0, got {least:g}"):
                NEGATIVE[name](x, mean, np.array(var))
    for var in (np.zeros(3), -np.zeros(3), np.full(3, np.inf)):
        assert np.isfinite(NEGATIVE[name](x, mean, var)).all()
    y = NEGATIVE[name](x, mean, np.array([1.0, np.nan, 1.0]))
    assert np.isnan(y).any(axis=0).tolist() == [False, True, False]
    nothing = NEGATIVE[name](x[:, :0], mean[:0], mean[:0])
    assert nothing.shape == (6, 0)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
def test_arrays_of_one_shape_and_other_axes_have_nothing_in_common(dtype):
    x, grad_y = (cases.values((6, 6, 6), dtype, seed=seed) for seed in (1, 2))
    for axis in (0, 1, 2, 1, 0):
        _, mean, m2 = reference.moments(x, axis=axis)
        found, inv_std = nbbn.batch_moments(x, axis=axis), 1.0 / np.sqrt(m2 / 36 + 1e-5)
        assert np.allclose(found.mean, mean, rtol=0, atol=1e-12) and np.allclose(found.m2, m2, rtol=1e-12)
        moved = [np.ascontiguousarray(np.moveaxis(array, axis, 1)) for array in (grad_y, x)]
        expected = nbbn.batch_norm_backward(*moved, mean, inv_std)
        grad_x, *sums = nbbn.batch_norm_backward(grad_y, x, mean, inv_std, axis=axis)
        assert np.allclose(np.moveaxis(grad_x, axis, 1), expected[0], atol=1e-5)
        assert all(np.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in zip(sums, expected[1:], strict=True))
