"""BatchNorm: its options and members, its two modes, what a forward changes and what it does not."""

import cases
import numpy as np
import pytest
import reference
from compare import (
    assert_forward,
    assert_gradients,
    assert_running,
    assert_same_bits,
    layer,
    mean_error,
    snapshot,
    var_error,
)
from rooms import steps

import nbbn

X = cases.values((6, 3, 5))
by_options = pytest.mark.parametrize("options", cases.LAYER_OPTIONS, ids=cases.case_id)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)


def test_a_new_layer_starts_as_in_torch():
    bn = nbbn.BatchNorm(4)
    assert bn.training is True
    assert bn.num_batches_tracked == 0
    for name, value in (("gamma", 1), ("beta", 0), ("running_mean", 0), ("running_var", 1)):
        np.testing.assert_array_equal(getattr(bn, name), np.full(4, value, np.float32))
        assert getattr(bn, name).dtype == np.float32


@by_dtype
def test_dtype_is_that_of_parameters_and_running_statistics(dtype):
    bn = nbbn.BatchNorm(3, dtype=dtype)
    bn(X)
    for name in ("gamma", "beta", "running_mean", "running_var"):
        assert getattr(bn, name).dtype == dtype
        assert getattr(bn, name).shape == (3,)


def test_options_are_keyword_only():
    with pytest.raises(TypeError):
        nbbn.BatchNorm(3, 1)


@by_options
@by_dtype
def test_training_follows_the_equations_under_every_option(options, dtype):
    x = X.astype(dtype)
    bn = layer(3, **options)
    old = None if bn.running_mean is None else (bn.running_mean.copy(), bn.running_var.copy())
    y = bn(x)
    expected = reference.training(
        x, bn.gamma, bn.beta, eps=options.get("eps", 1e-5), correction=options.get("correction", 0)
    )
    assert_forward(y, x, expected, bn.gamma, bn.beta)
    if old is not None:
        count, mean, m2 = reference.moments(x)
        var = m2 / (count - options.get("running_correction", 1))
        momentum = options.get("momentum", 0.1)
        momentum = 1.0 if momentum is None else momentum
        assert_running(bn.running_mean, old[0], mean, momentum, batch_error=mean_error(x))
        assert_running(bn.running_var, old[1], var, momentum, batch_error=var_error(x, var))


@by_options
@by_dtype
def test_evaluation_follows_the_equations_under_every_option(options, dtype):
    x = X.astype(dtype)
    bn = layer(3, **options).eval()
    eps, y = options.get("eps", 1e-5), bn(x)
    if options.get("track_running_stats", True):
        expected = reference.inference(x, bn.running_mean, bn.running_var, bn.gamma, bn.beta, eps=eps)
    else:
        expected = reference.training(x, bn.gamma, bn.beta, eps=eps)
    assert_forward(y, x, expected, bn.gamma, bn.beta)


@pytest.mark.parametrize("training", [True, False])
@by_options
def test_backward_follows_the_equations_under_every_option(options, training):
    bn, grad_y = layer(3, **options).train(training), cases.values(X.shape, seed=4)
    statistics = None if bn.running_mean is None else (bn.running_mean.copy(), bn.running_var.copy())
    bn(X)
    eps, correction = options.get("eps", 1e-5), options.get("correction", 0)
    if training or statistics is None:
        forward = reference.training(X, eps=eps, correction=correction)
        expected = reference.backward(grad_y, X, bn.gamma, eps=eps, correction=correction)
    else:
        forward = reference.inference(X, *statistics, eps=eps)
        expected = reference.backward_inference(grad_y, X, forward.mean, forward.inv_std, bn.gamma)
    grad_x = bn.backward(grad_y)
    assert (bn.grad_gamma is None) == (bn.gamma is None)
    assert (bn.grad_beta is None) == (bn.beta is None)
    assert_gradients((grad_x, bn.grad_gamma, bn.grad_beta), expected, grad_y, forward, bn.gamma)


@pytest.mark.parametrize(("shape", "axis"), cases.SHAPES, ids=map(cases.case_id, cases.SHAPES))
def test_every_axis_and_number_of_dimensions(shape, axis):
    if axis in (0, -len(shape)) and len(shape) == 1:
        shape = (1, *shape)
        options = {"axis": 1, "correction": 0, "running_correction": 0}
    else:
        options = {"axis": axis}
    x = cases.values(shape)
    bn = layer(shape[options["axis"]], **options)
    expected = reference.training(x, bn.gamma, bn.beta, axis=options["axis"])
    assert_forward(bn(x), x, expected, bn.gamma, bn.beta, options["axis"])
    grad_y = cases.values(shape, seed=4)
    got = bn.backward(grad_y), bn.grad_gamma, bn.grad_beta
    assert_gradients(
        got,
        reference.backward(grad_y, x, bn.gamma, axis=options["axis"]),
        grad_y,
        expected,
        bn.gamma,
        options["axis"],
    )


@pytest.mark.parametrize("axis", [0, -1])
def test_a_vector_takes_axis_zero_only(axis):
    x = np.array([1.0, -2.0, 5.0], np.float32)
    bn = layer(3, axis=axis).eval()
    assert_forward(
        bn(x),
        x,
        reference.inference(x, bn.running_mean, bn.running_var, bn.gamma, bn.beta, axis=0),
        bn.gamma,
        bn.beta,
        0,
    )


def test_train_and_eval_return_the_layer():
    bn = nbbn.BatchNorm(3)
    assert bn.eval() is bn
    assert bn.training is False
    assert bn.train() is bn
    assert bn.training is True
    assert bn.train(False) is bn
    assert bn.training is False


def test_the_training_argument_overrides_the_mode_for_one_call():
    training, evaluating = layer(3), layer(3).eval()
    expected = training(X)
    assert_same_bits(evaluating(X, training=True), expected)
    assert evaluating.training is False
    assert evaluating.num_batches_tracked == 1
    assert_same_bits(evaluating.running_mean, training.running_mean)
    assert_same_bits(training(X, training=False), evaluating(X))
    assert training.training is True
    assert training.num_batches_tracked == 1


def test_evaluation_changes_no_state():
    bn = layer(3)
    bn(X)
    bn.eval()
    before = snapshot(bn)
    bn(X + 1)
    assert snapshot(bn) == before


def test_arrays_are_updated_in_place_and_never_rebound():
    bn = nbbn.BatchNorm(3)
    names = ("gamma", "beta", "running_mean", "running_var")
    arrays = {name: getattr(bn, name) for name in names}
    for x in (X, X[:0], X + 1):
        bn(x)
        bn.backward(x)
    bn.eval()(X)
    for name in names:
        assert getattr(bn, name) is arrays[name]
    assert np.all(arrays["running_mean"] != 0)


def test_parameters_written_by_the_user_are_used():
    bn = nbbn.BatchNorm(3).eval()
    plain = bn(X)
    bn.gamma *= 2
    bn.beta += np.float32(0.25)
    assert_forward(
        bn(X),
        X,
        reference.inference(X, np.zeros(3), np.ones(3), [2] * 3, [0.25] * 3),
        [2] * 3,
        [0.25] * 3,
    )
    bn.running_mean[:] = 5
    bn.running_var[1] = 9
    expected = reference.inference(X, bn.running_mean, bn.running_var, bn.gamma, bn.beta)
    assert_forward(bn(X), X, expected, bn.gamma, bn.beta)
    assert not np.array_equal(plain, bn(X))


def test_a_step_of_gradient_descent_changes_the_output():
    bn = nbbn.BatchNorm(3)
    y = bn(X)
    bn.backward(y)
    bn.gamma -= np.float32(0.01) * bn.grad_gamma.astype(np.float32)
    bn.beta -= np.float32(0.01) * bn.grad_beta.astype(np.float32)
    assert np.sum(bn(X) ** 2) < np.sum(y**2)


def test_batches_are_counted_in_training_only():
    bn = nbbn.BatchNorm(3)
    for k in range(4):
        assert bn.num_batches_tracked == k
        bn(X)
    bn.eval()(X)
    assert bn.num_batches_tracked == 4
    assert isinstance(bn.num_batches_tracked, int)


def test_no_momentum_is_the_average_of_the_batch_statistics():
    bn = nbbn.BatchNorm(3, momentum=None, dtype=np.float64)
    batches = [cases.values((5 + k, 3), np.float64, loc=k, seed=k) for k in range(7)]
    for batch in batches:
        bn(batch)
    np.testing.assert_allclose(bn.running_mean, np.mean([b.mean(axis=0) for b in batches], axis=0), rtol=1e-13)
    np.testing.assert_allclose(bn.running_var, np.mean([b.var(axis=0, ddof=1) for b in batches], axis=0), rtol=1e-13)


def test_no_momentum_counts_from_a_reset():
    bn = nbbn.BatchNorm(3, momentum=None, dtype=np.float64)
    bn(X.astype(np.float64) + 100)
    bn.reset_running_stats()
    bn(X.astype(np.float64))
    np.testing.assert_allclose(bn.running_mean, X.astype(np.float64).mean(axis=(0, 2)), rtol=1e-13)


def test_momentum_zero_keeps_and_momentum_one_replaces():
    kept, replaced = layer(3, momentum=0.0), layer(3, momentum=1.0)
    before = kept.running_mean.copy(), kept.running_var.copy()
    kept(X), replaced(X)
    assert_same_bits(kept.running_mean, before[0])
    assert_same_bits(kept.running_var, before[1])
    np.testing.assert_array_equal(replaced.running_mean, replaced.batch_mean.astype(np.float32))
    assert kept.num_batches_tracked == 1


@pytest.mark.parametrize("name", ["gamma", "beta"])
def test_scale_and_center_say_which_parameters_exist(name):
    bn = nbbn.BatchNorm(3, **{{"gamma": "scale", "beta": "center"}[name]: False})
    assert getattr(bn, name) is None
    bn(X)
    bn.backward(X)
    assert getattr(bn, f"grad_{name}") is None
    other = {"gamma": "beta", "beta": "gamma"}[name]
    assert getattr(bn, other).shape == getattr(bn, f"grad_{other}").shape == (3,)


def test_without_running_statistics_both_modes_use_the_batch():
    bn = layer(3, track_running_stats=False)
    assert bn.running_mean is None
    assert bn.running_var is None
    assert_same_bits(bn.eval()(X), bn.train()(X))
    assert "running_mean" not in bn.state_dict()
    assert bn.running_mean is None


@by_options
@by_dtype
def test_batch_statistics_of_the_last_training_forward(options, dtype):
    x = X.astype(dtype)
    bn = layer(3, **options)
    bn(x)
    expected = reference.training(x, eps=options.get("eps", 1e-5), correction=options.get("correction", 0))
    got = bn.batch_mean.copy(), bn.batch_var.copy(), bn.batch_inv_std.copy()
    for actual, exact in zip(got, expected[2:], strict=True):
        assert (actual.dtype, actual.shape) == (np.float64, (3,))
        np.testing.assert_allclose(actual, exact, rtol=1e-6 if dtype is np.float32 else 1e-12)
    if bn.running_mean is not None:
        bn.eval()(x * 3 + 1)
        for actual, kept in zip((bn.batch_mean, bn.batch_var, bn.batch_inv_std), got, strict=True):
            assert_same_bits(actual, kept)


def test_reset_running_stats_leaves_the_parameters():
    bn = layer(3)
    bn(X)
    gamma, beta = bn.gamma.copy(), bn.beta.copy()
    bn.reset_running_stats()
    np.testing.assert_array_equal(bn.running_mean, np.zeros(3))
    np.testing.assert_array_equal(bn.running_var, np.ones(3))
    assert bn.num_batches_tracked == 0
    assert_same_bits(bn.gamma, gamma)
    assert_same_bits(bn.beta, beta)


def test_reset_parameters_resets_the_running_statistics_too():
    bn = layer(3)
    bn(X)
    bn.reset_parameters()
    for name, value in (("gamma", 1), ("beta", 0), ("running_mean", 0), ("running_var", 1)):
        np.testing.assert_array_equal(getattr(bn, name), np.full(3, value))
    assert bn.num_batches_tracked == 0


@by_options
def test_resets_work_under_every_option(options):
    bn = layer(3, **options)
    bn(X)
    bn.reset_running_stats()
    bn.reset_parameters()
    fresh = nbbn.BatchNorm(3, **options)
    assert_same_bits(bn(X), fresh(X))


EMPTY = ((0, 3), (0, 3, 4), (2, 3, 0), (0, 3, 0, 2))


@by_options
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_an_empty_batch_changes_nothing(shape, options):
    bn = layer(3, **options)
    bn(X)
    before = snapshot(bn)
    for mode in (True, False):
        y = bn(np.empty(shape, np.float32), training=mode)
        assert (y.shape, y.dtype) == (shape, np.float32)
    assert snapshot(bn) == before


@pytest.mark.parametrize("shape", [(1, 3), (1, 3, 1, 1)])
def test_one_value_per_channel_is_allowed_where_no_correction_divides_by_zero(shape):
    x = cases.values(shape)
    bn = layer(3, running_correction=0, momentum=1.0)
    beta = bn.beta.copy()
    np.testing.assert_array_equal(bn(x).reshape(3), beta)
    np.testing.assert_array_equal(bn.batch_var, np.zeros(3))
    np.testing.assert_array_equal(bn.running_var, np.zeros(3))
    np.testing.assert_array_equal(bn.running_mean, x.reshape(3))


@pytest.mark.parametrize("options", [{}, {"correction": 1}, {"correction": 1, "running_correction": 0}], ids=str)
def test_one_value_per_channel_is_refused_otherwise(options):
    bn = layer(3, **options)
    before = snapshot(bn)
    with pytest.raises(ValueError, match="1"):
        bn(cases.values((1, 3)))
    assert snapshot(bn) == before
    assert bn.eval()(cases.values((1, 3))).shape == (1, 3)


@pytest.mark.parametrize("training", [True, False])
def test_out_is_filled_and_returned(training):
    bn = layer(3, momentum=0.0).train(training)
    out = np.full(X.shape, 777, np.float32)
    assert bn(X, out=out) is out
    assert_same_bits(out, bn(X))


@pytest.mark.parametrize("training", [True, False])
@by_dtype
def test_in_place_gives_the_same_bits(training, dtype):
    x = X.astype(dtype)
    bn = layer(3, momentum=0.0).train(training)
    expected = bn(x)
    assert bn(x, out=x) is x
    assert_same_bits(x, expected)


def test_a_layer_uses_the_same_arithmetic_as_the_functions():
    bn = layer(3)
    mean, var = bn.running_mean.copy(), bn.running_var.copy()
    assert_same_bits(bn(X), nbbn.batch_norm(X, mean, var, bn.gamma, bn.beta, training=True))
    assert_same_bits(bn.running_mean, mean)
    assert_same_bits(bn.running_var, var)
    assert_same_bits(bn.eval()(X), nbbn.batch_norm(X, mean, var, bn.gamma, bn.beta))


@pytest.mark.parametrize("shape", [(2, 4), (5, 4, 1), ()])
def test_without_running_statistics_a_wrong_residual_is_refused(shape):
    bn = nbbn.BatchNorm(4, track_running_stats=False).eval()
    with pytest.raises(ValueError, match=r"residual: expected shape \(5, 4\)"):
        bn(cases.values((5, 4)), residual=np.ones(shape, np.float32))


def test_an_eps_that_another_thread_sets_while_coefficients_are_made_counts_from_the_next_call(
    monkeypatch,
):
    bn, x = nbbn.BatchNorm(3).eval(), np.ones((2, 3), np.float32)
    make = steps.coefficients

    def set_meanwhile(*arguments):
        made = make(*arguments)
        bn.eps = 1.0
        return made

    monkeypatch.setattr(steps, "coefficients", set_meanwhile)
    bn(x)
    monkeypatch.undo()
    assert bn.eps == 1.0
    np.testing.assert_allclose(bn(x), np.sqrt(0.5), rtol=1e-6)


def test_one_value_a_channel_is_refused_also_where_its_shape_was_met():
    bn, x = nbbn.BatchNorm(3), np.ones((1, 3), np.float32)
    bn(x, training=False)
    before = bn.state_dict()
    with pytest.raises(ValueError, match=r"^x: expected at least 2 values per channel"):
        bn(x)
    for name, value in bn.state_dict().items():
        assert_same_bits(value, before[name])


def test_a_counter_that_is_full_stays_so():
    bn, x = nbbn.BatchNorm(3), np.ones((4, 3), np.float32)
    bn.num_batches_tracked = np.iinfo(np.int64).max - 1
    for _ in range(2):
        bn(x)
        assert bn.num_batches_tracked == np.iinfo(np.int64).max
