"""The worked example: y = (x - mean) / sqrt(var + eps) * gamma + beta for the activations 2, 0, 2, 4 with eps = 0.

mean = 2, var = (0 + 4 + 0 + 4) / 4 = 2, so y = beta, beta - sqrt(2) gamma, beta, beta + sqrt(2) gamma. A hundred
times larger activations, 200, 0, 200, 400, have a hundred times the mean and the standard deviation: the same y.
"""

import math

import numpy as np
import pytest
from compare import eps_of

import nbbn

GAMMA, BETA = 3.0, 0.5
EXPECTED = [BETA, BETA - math.sqrt(2) * GAMMA, BETA, BETA + math.sqrt(2) * GAMMA]
by_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
by_activations = pytest.mark.parametrize("activations", [(2, 0, 2, 4), (200, 0, 200, 400)])


def check(y, dtype):
    assert y.dtype == dtype
    np.testing.assert_allclose(np.ravel(y), EXPECTED, rtol=4 * eps_of(dtype), atol=0)
    assert np.ravel(y)[[0, 2]].tolist() == [BETA, BETA]


@by_dtype
@by_activations
def test_the_layer(activations, dtype):
    bn = nbbn.BatchNorm(1, eps=0.0, dtype=dtype)
    bn.gamma[:], bn.beta[:] = GAMMA, BETA
    check(bn(np.array(activations, dtype).reshape(4, 1)), dtype)
    factor = max(activations) / 4
    np.testing.assert_array_equal(bn.batch_mean, [2.0 * factor])
    np.testing.assert_array_equal(bn.batch_var, [2.0 * factor**2])


@by_dtype
@by_activations
@pytest.mark.parametrize(("shape", "axis"), [((1, 4), 0), ((4, 1), 1), ((2, 1, 2), 1), ((2, 2, 1), -1)])
def test_the_function(activations, dtype, shape, axis):
    x = np.array(activations, dtype).reshape(shape)
    gamma, beta = np.array([GAMMA], dtype), np.array([BETA], dtype)
    check(nbbn.batch_norm(x, None, None, gamma, beta, training=True, eps=0.0, axis=axis), dtype)


@by_dtype
@by_activations
def test_inference_with_the_batch_statistics_as_running_statistics(activations, dtype):
    bn = nbbn.BatchNorm(1, eps=0.0, momentum=1.0, running_correction=0, dtype=dtype)
    bn.gamma[:], bn.beta[:] = GAMMA, BETA
    x = np.array(activations, dtype).reshape(4, 1)
    bn(x)
    check(bn.eval()(x), dtype)


@by_dtype
def test_scaling_the_activations_changes_no_output(dtype):
    small, large = (np.array(v, dtype).reshape(4, 1) for v in ((2, 0, 2, 4), (200, 0, 200, 400)))
    np.testing.assert_allclose(
        nbbn.batch_norm(small, None, None, training=True, eps=0.0),
        nbbn.batch_norm(large, None, None, training=True, eps=0.0),
        rtol=4 * eps_of(dtype),
        atol=0,
    )
