"""The same bits however it is compiled: of layers, strided arrays, moments and functions."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import run

pytestmark = pytest.mark.long

BITS = """
    import hashlib
    import numpy as np
    import nbbn

    nbbn.set_num_threads(2)
    rng, digest = np.random.default_rng(0), hashlib.sha256()

    def made(shape):
        values = (rng.standard_normal(shape) * 2 + 50).astype(np.float32)
        values[0, 0] *= 1000
        return values

    images, rows = made((7, 9, 5, 4)), made((6, 37))
    images = images[::2, 1:]
    arrays = [
        images,  # channels in runs of their own, read in place
        rows[::-1, ::2],  # columns, by way of a copy
    ]
    for x in arrays:
        channels = x.shape[1]
        moments = nbbn.batch_moments(x) + nbbn.batch_moments(x[:2])
        mean, var = np.zeros(channels), np.ones(channels)
        gamma, beta = rng.standard_normal((2, channels)).astype(np.float32)
        results = [moments.mean, moments.m2]
        results += [nbbn.batch_norm(x, mean, var, gamma, beta, training=True), mean, var]
        results += [nbbn.normalize(x, mean, var, gamma, beta)]
        for training in (True, False):
            results += nbbn.batch_norm_backward(x[::-1], x, mean, var, gamma, training=training)
        mask = rng.random((len(x), *x.shape[2:])) < 0.7
        bn = nbbn.BatchNorm(channels)
        if x is images:
            results += [bn(x, mask=mask), bn.backward(x[::-1]), bn.grad_gamma, bn.running_var]
        else:
            weighted = nbbn.batch_moments(x, weights=mask * rng.random(mask.shape))
            results += [weighted.mean, weighted.m2]
        constant = nbbn.batch_moments(np.ones_like(x))  # an inv_std without eps: 1 / 0
        results += [constant.mean, constant.m2, bn(np.ones_like(x))]
        for result in results:
            digest.update(np.ascontiguousarray(result).tobytes())
    print(digest.hexdigest())

    digest = hashlib.sha256()
    for dtype in (np.float32, np.float64):
        for shape in ((7, 5), (4, 3, 5, 5), (3, 2, 37), (40, 3)):
            x = (rng.standard_normal(shape) * 2 + 50).astype(dtype)
            x[0, 0] *= 1000
            bn = nbbn.BatchNorm(shape[1], dtype=dtype)
            bn.gamma[:], bn.beta[:] = rng.standard_normal((2, shape[1]))
            results = [bn(x), bn.backward(rng.standard_normal(shape).astype(dtype)), bn.grad_gamma]
            results += [bn.eval()(x), bn.backward(x), bn.running_mean, bn.batch_var]
            for result in results:
                digest.update(np.ascontiguousarray(result).tobytes())
    print(digest.hexdigest())
"""
WHAT = ("strided arrays and functions", "layers")
ENVIRONMENTS = {
    "default": {},
    # both at once: a minute of compiling is enough
    "generic and bounds checked": {"NUMBA_CPU_NAME": "generic", "NUMBA_BOUNDSCHECK": "1"},
    "interpreted": {"NUMBA_DISABLE_JIT": "1"},
}


@pytest.fixture(scope="module")
def bits():
    """All at once, two at a time: most of it is compiling."""
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda own: run(BITS, env=own, timeout=600), ENVIRONMENTS.values())
        return dict(zip(ENVIRONMENTS, found, strict=True))


@pytest.mark.parametrize("what", range(len(WHAT)), ids=WHAT)
@pytest.mark.parametrize("name", [name for name in ENVIRONMENTS if name != "default"])
def test_the_same_bits_however_it_is_compiled(name, what, bits):
    assert bits[name][what] == bits["default"][what]
