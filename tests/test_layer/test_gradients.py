"""Every gradient against central finite differences of the forward, in float64."""

import cases
import numpy as np
import pytest
import reference
from compare import assert_gradients

import nbbn

STEP = 1e-5
SHAPES = (((4, 3, 2), 1), ((5, 3), 1), ((3, 2, 2, 2), 0), ((2, 3, 2, 3), -1), ((7, 1), 1))
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=map(cases.case_id, SHAPES))
by_correction = pytest.mark.parametrize("correction", [0, 1])
by_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
by_wanted = pytest.mark.parametrize("wanted", ["x", "gamma", "beta"])


def slope(loss, at):
    """d loss / d at by central differences; at is changed and restored entry by entry."""
    result = np.empty(at.shape)
    for k in np.ndindex(at.shape):
        kept = at[k]
        at[k] = kept + STEP
        above = loss()
        at[k] = kept - STEP
        below = loss()
        at[k] = kept
        result[k] = (above - below) / (2 * STEP)
    return result


def assert_slope(gradient, numeric):
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-7)
    assert np.abs(numeric).max() > 1e-3


def problem(shape, axis, options):
    """x and the weights of the loss sum(weights * y), and a layer with parameters unlike 0 and 1."""
    x = cases.values(shape, np.float64, seed=11)
    weights = cases.values(shape, np.float64, seed=12)
    bn = nbbn.BatchNorm(shape[axis], axis=axis, dtype=np.float64, eps=1e-3, **options)
    bn.gamma[:], bn.beta[:], bn.running_mean[:], bn.running_var[:] = cases.parameters(shape[axis], np.float64)
    return x, weights, bn


@by_wanted
@by_mode
@by_correction
@by_shape
def test_gradients_of_the_layer(shape, axis, correction, training, wanted):
    x, weights, bn = problem(shape, axis, {"correction": correction, "momentum": 0.0})
    bn.train(training)
    bn(x)
    gradients = {
        "x": bn.backward(weights),
        "gamma": bn.grad_gamma.copy(),
        "beta": bn.grad_beta.copy(),
    }
    at = {"x": x, "gamma": bn.gamma, "beta": bn.beta}[wanted]
    assert_slope(gradients[wanted], slope(lambda: float(np.sum(weights * bn(x))), at))


@by_wanted
@by_correction
@by_shape
def test_gradients_of_the_function_in_training(shape, axis, correction, wanted):
    x, weights, bn = problem(shape, axis, {})
    gamma, beta = bn.gamma, bn.beta

    def loss():
        y = nbbn.batch_norm(x, None, None, gamma, beta, training=True, eps=1e-3, axis=axis, correction=correction)
        return float(np.sum(weights * y))

    moments = nbbn.batch_moments(x, axis=axis)
    inv_std = 1 / np.sqrt(moments.var(correction) + 1e-3)
    got = nbbn.batch_norm_backward(weights, x, moments.mean, inv_std, gamma, axis=axis, correction=correction)
    k = ("x", "gamma", "beta").index(wanted)
    assert_slope(got[k], slope(loss, (x, gamma, beta)[k]))


@by_wanted
@by_shape
def test_gradients_of_the_function_in_inference(shape, axis, wanted):
    x, weights, bn = problem(shape, axis, {})
    mean, var, gamma, beta = bn.running_mean, bn.running_var, bn.gamma, bn.beta
    got = nbbn.batch_norm_backward(weights, x, mean, 1 / np.sqrt(var + 1e-3), gamma, axis=axis, training=False)
    k = ("x", "gamma", "beta").index(wanted)

    def loss():
        return float(np.sum(weights * nbbn.normalize(x, mean, var, gamma, beta, eps=1e-3, axis=axis)))

    assert_slope(got[k], slope(loss, (x, gamma, beta)[k]))


@by_mode
def test_gradient_of_the_layer_without_parameters(training):
    x, weights, _ = problem((4, 3, 2), 1, {})
    bn = nbbn.BatchNorm(3, scale=False, center=False, dtype=np.float64, momentum=0.0)
    bn.train(training)(x)
    assert_slope(bn.backward(weights), slope(lambda: float(np.sum(weights * bn(x))), x))


def test_gradient_of_a_layer_without_running_statistics_in_evaluation():
    x, weights, _ = problem((4, 3, 2), 1, {})
    bn = nbbn.BatchNorm(3, track_running_stats=False, dtype=np.float64).eval()
    bn(x)
    assert_slope(bn.backward(weights), slope(lambda: float(np.sum(weights * bn(x))), x))


@by_correction
def test_training_gradients_are_orthogonal_to_what_normalization_removes(correction):
    """y does not change when x is shifted, nor (with eps = 0) when its deviations are scaled."""
    x, grad_y = (
        cases.values((64, 5), np.float64, loc=100.0),
        cases.values((64, 5), np.float64, seed=3),
    )
    bn = nbbn.BatchNorm(5, eps=0.0, correction=correction, dtype=np.float64)
    bn(x)
    grad_x = bn.backward(grad_y)
    np.testing.assert_allclose(grad_x.sum(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((grad_x * (x - x.mean(axis=0))).sum(axis=0), 0, atol=1e-11)
    assert np.abs(grad_x).max() > 0.1


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("shape", [(500, 3), (5, 3, 100), (3, 3, 20, 20)])
def test_float32_gradients_hold_far_from_zero(shape, ratio):
    x, grad_y = cases.values(shape, loc=ratio, scale=1.0), cases.values(shape, seed=3)
    bn = nbbn.BatchNorm(3)
    bn.gamma[:] = (0.5, -2.0, 3.0)
    bn(x)
    grad_x = bn.backward(grad_y)
    expected = reference.backward(grad_y, x, bn.gamma)
    got = grad_x, bn.grad_gamma, bn.grad_beta
    assert_gradients(got, expected, grad_y, reference.training(x), bn.gamma)
