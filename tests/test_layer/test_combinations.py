"""Every combination of the layer's options beside the oracle: a pair that none was written for has been wrong before.

Values do not depend on the layout, nor on where the result goes, so what the oracle says of them is kept. The default
run has the formulas alone, interpreted: each is compiled into all the kernels.
"""

import functools
import itertools
from pathlib import Path
from typing import NamedTuple

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within
from processes import run

import nbbn

try:
    from ml_dtypes import bfloat16
except ImportError:
    bfloat16 = None

SLOPE = 0.2
ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu")
SMOOTH = ("hard_swish", "silu", "mish")  # their slope depends on where it is taken
KINKS = np.array([-3.0, 0.0, 3.0, 6.0])
EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

# dtype of x and of the parameters; an activation is compiled into each kernel, and no code asks for both
DTYPES = {
    ("float32", "float32"): ACTIVATIONS,
    ("float64", "float64"): (None, "leaky_relu"),
    ("float16", "float32"): (None, "leaky_relu"),
    ("bfloat16", "float32"): (None, "leaky_relu"),
    ("float32", "float64"): (None, "leaky_relu"),
    ("float64", "float32"): (None, "leaky_relu"),
}
IMAGES, MATRIX = (4, 5, 3, 7), (7, 6)  # runs of 21 values, and columns


def gaps(axis):
    def laid_out(x):
        shape = [2 * n if k == axis else n for k, n in enumerate(x.shape)]
        every = tuple(slice(None, None, 2) if k == axis else slice(None) for k in range(x.ndim))
        found = np.zeros(shape, x.dtype)[every]
        found[...] = x
        return found

    return laid_out


LAYOUTS = {
    "c": np.ascontiguousarray,
    "fortran": np.asfortranarray,
    "gaps between samples": gaps(0),
    "gaps between channels": gaps(1),
    "gaps between pixels": gaps(-1),
    "channels last": cases.channels_last_memory,
}
OUTS = ("none", "own", "in place")
MODES = {  # the layer's own, and that of the call
    "train": (True, None),
    "eval": (False, None),
    "training=True": (False, True),
    "training=False": (True, False),
}


class Expected(NamedTuple):
    y: np.ndarray
    y_size: np.ndarray  # of the terms that it is summed from
    gradients: reference.Gradients
    residual: np.ndarray  # the gradient before the activation
    residual_size: np.ndarray
    sizes: reference.Gradients
    of_slope: np.ndarray
    of_slope_size: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    count: int


def dtype_of(name):
    return np.dtype(bfloat16 if name == "bfloat16" else name)


@functools.cache
def values(shape, dtype):
    """x, a residual and a gradient; what is divided and multiplied has digits to lose."""
    kind = dtype_of(dtype)
    x, residual, grad_y = (cases.values(shape, np.float64, seed=seed) for seed in (3, 4, 5))
    return x.astype(kind), (2.0 * residual).astype(kind), grad_y.astype(kind)


@functools.cache
def parameters(shape):
    gamma, beta, mean, var = cases.parameters(shape[1])
    return 2.0 * gamma, beta, mean, var


@functools.cache
def some_mask(shape):
    mask = np.random.default_rng(8).random((shape[0], *shape[2:])) < 0.6
    mask.reshape(-1)[-2:] = True
    return mask


@functools.cache
def expected(shape, dtype, of_batch, activation, with_residual, masked):
    x, residual, grad_y = values(shape, dtype)
    gamma, beta, running_mean, running_var = parameters(shape)
    mask = some_mask(shape)
    if not of_batch:
        found = reference.inference(x, running_mean, running_var, gamma, beta)
    elif masked:
        found = reference.masked_training(x, mask, gamma, beta)
    else:
        found = reference.training(x, gamma, beta)
    added = residual.astype(np.float64) if with_residual else np.zeros(shape)
    z = found.y + added
    y, slope = reference.activation(z, activation, SLOPE)
    dz = grad_y.astype(np.float64) * slope
    if activation is not None:
        # The values are so that none is near a kink, where rounding decides about the slope.
        assert np.abs(z[..., None] - KINKS).min() > 1e-5
    if not of_batch:
        gradients = reference.backward_inference(dz, x, found.mean, found.inv_std, gamma)
    elif masked:
        gradients = reference.masked_backward(dz, x, mask, gamma)
    else:
        gradients = reference.backward(dz, x, gamma)
    count = np.count_nonzero(mask) if masked else x.size // shape[1]
    wide = reference.along(gamma, x.ndim)
    size = np.abs(found.xhat * wide) + np.abs(reference.along(beta, x.ndim)) + np.abs(added)
    if dtype == "float64":  # a mean in float64 may be off by as much
        largest = np.abs(reference.channels(x)).max(axis=1)
        size = size + np.abs(wide) * reference.along(found.inv_std * largest, x.ndim)
    dz_size = np.abs(dz)
    if activation in SMOOTH:
        dz_size = np.abs(grad_y.astype(np.float64)) * (1.5 + size)
    factor = np.abs(wide * reference.along(found.inv_std, x.ndim))
    rows, xhat = (np.abs(reference.channels(a)) for a in (dz_size, found.xhat))
    sums = [reference.along(a.sum(axis=1), x.ndim) for a in (rows, rows * xhat)]
    sizes = reference.Gradients(
        factor * (dz_size + (sums[0] + np.abs(found.xhat) * sums[1]) / count),
        (rows * (1.0 + xhat)).sum(axis=1),
        rows.sum(axis=1),
    )
    below = np.where(z < 0, grad_y.astype(np.float64), 0.0)
    of_slope, of_slope_size = (reference.channels(a).sum(axis=1) for a in (below * z, np.abs(below) * size))
    of_backward = gradients, dz, dz_size, sizes, of_slope, of_slope_size
    return Expected(y, size, *of_backward, found.mean, found.var, count)


def new_layer(shape, dtype, tracked, activation, mode):
    bn = nbbn.BatchNorm(
        shape[1],
        track_running_stats=tracked,
        activation=activation,
        negative_slope=SLOPE,
        dtype=dtype,
    )
    gamma, beta, mean, var = parameters(shape)
    bn.gamma[:], bn.beta[:] = gamma, beta
    if activation == "prelu":
        bn.slope[:] = SLOPE
    if tracked:
        bn.running_mean[:], bn.running_var[:] = mean, var
    return bn.train(mode)


def check_forward(y, found, dtype):
    computed = EPS["float64" if dtype == "float64" else "float32"]
    assert y.dtype == dtype_of(dtype)
    bound = 12 * computed * found.y_size
    if computed != EPS[dtype]:
        bound = bound + EPS[dtype] * np.abs(found.y)
    assert_within(y.astype(np.float64), found.y, bound)


def check_statistics(bn, shape, found, of_batch, learns, params):
    """Batch statistics, running statistics and the counter."""
    if of_batch:
        assert_within(bn.batch_mean, found.mean, 1e-14 * (1.0 + np.abs(found.mean)))
        assert_within(bn.batch_var, found.var, 1e-6 * found.var)
    else:
        assert bn.batch_mean is None
    assert bn.num_batches_tracked == learns
    if not bn.track_running_stats:
        assert bn.running_mean is None and bn.running_var is None
        return
    _, _, mean, var = parameters(shape)
    if learns:
        n = found.count
        mean = reference.running(mean, found.mean, 0.1)
        var = reference.running(var, found.var * n / (n - 1), 0.1)
    assert_within(bn.running_mean, mean, 8 * EPS[params] * (1.0 + np.abs(mean)))
    assert_within(bn.running_var, var, 8 * EPS[params] * var + 1e-7 * learns)


def check_gradients(bn, grad_x, found, dtype, params, with_residual):
    eps = 32 * EPS[dtype]
    assert grad_x.dtype == dtype_of(dtype)
    assert_within(grad_x.astype(np.float64), found.gradients.x, eps * found.sizes.x)
    eps += EPS[params]
    assert_within(bn.grad_gamma, found.gradients.gamma, eps * found.sizes.gamma)
    assert_within(bn.grad_beta, found.gradients.beta, eps * found.sizes.beta)
    if bn.activation == "prelu":
        assert_within(bn.grad_slope, found.of_slope, eps * found.of_slope_size)
    if with_residual:
        bound = 4 * EPS[dtype] * found.residual_size
        assert_within(bn.grad_residual.astype(np.float64), found.residual, bound)
    else:
        assert bn.grad_residual is None


def check(shape, layout, dtype, params, tracked, mode, activation, with_residual, masked, out):
    own_mode, of_call = MODES[mode]
    training = own_mode if of_call is None else of_call
    of_batch = training or not tracked
    lay = LAYOUTS[layout]
    plain = values(shape, dtype)
    x, residual, grad_y = (lay(array.copy()) for array in plain)
    if not with_residual:
        residual = None
    mask = some_mask(shape) if masked else None
    bn = new_layer(shape, params, tracked, activation, own_mode)
    target = {"none": None, "own": np.full(shape, 77, x.dtype), "in place": x}[out]
    y = bn(x, training=of_call, mask=mask, residual=residual, out=target)
    assert target is None or y is target
    found = expected(shape, dtype, of_batch, activation, with_residual, masked)
    check_forward(y, found, dtype)
    check_statistics(bn, shape, found, of_batch, training and tracked, params)
    if out == "in place":
        with pytest.raises(RuntimeError, match="overwritten in place"):
            bn.backward(grad_y)
        return
    if out == "own":
        grad_out = np.full(shape, 77, x.dtype)
        grad_x = bn.backward(grad_y, out=grad_out)
        assert grad_x is grad_out
    else:
        grad_x = bn.backward(grad_y)
    for array, before in zip((x, grad_y), (plain[0], plain[2]), strict=True):
        assert_same_bits(array, before)
    check_gradients(bn, grad_x, found, dtype, params, with_residual)
    statistics = (None, None) if of_batch and not tracked else parameters(shape)[2:]
    if out == "none":
        again = nbbn.batch_norm(
            x,
            *(None if v is None else v.astype(params) for v in statistics),
            bn.gamma,
            bn.beta,
            training=of_batch,
            mask=mask,
            residual=residual,
            activation=activation,
            negative_slope=SLOPE,
        )
        assert_same_bits(again, y)


def check_kinks(dtype, params, activation):
    """Where the slope jumps, it is that of one side."""
    bn = nbbn.BatchNorm(1, eps=0.0, activation=activation, negative_slope=SLOPE, dtype=params).eval()
    if activation == "prelu":
        bn.slope[:] = SLOPE
    x = KINKS.astype(dtype_of(dtype)).reshape(-1, 1)
    bn(x)
    slope = reference.activation(KINKS, activation, SLOPE)[1]
    found = bn.backward(np.ones_like(x)).astype(np.float64).ravel()
    np.testing.assert_allclose(found, slope, rtol=16 * EPS[dtype])


def check_all(shape, layout, dtype, params, activation, **some):
    """All options but those that are given; ``pairs`` are of a mask and a residual."""
    flags = (False, True)
    pairs = itertools.product(flags, flags)
    rest = {"pairs": pairs, "tracked": flags, "mode": MODES, "out": OUTS} | some
    for (masked, with_residual), *options in itertools.product(*rest.values()):
        given = dict(zip([*rest][1:], options, strict=True))
        given |= {"masked": masked, "with_residual": with_residual}
        try:
            check(shape, layout, dtype, params, activation=activation, **given)
        except Exception as error:
            raise AssertionError(f"{activation} {given}: {error}") from error


def combinations():
    """Of each type and activation: every layout and option for two of them, some of each for the others.

    A mask, a residual, a type and an activation make variants, 2 s each; none of them knows of the others. So each of
    the others has two pairs of mask and residual, and two layouts of a shape: those of its neighbours are different.
    Unmasked float32 stands in test_fused.py.
    """
    rows = [(*key, activation) for key, activations in DTYPES.items() for activation in activations]
    for k, (dtype, params, activation) in enumerate(rows):
        is_float32 = dtype == params == "float32"
        for j, (name, shape) in enumerate({"images": IMAGES, "matrix": MATRIX}.items()):
            layouts, some = list(LAYOUTS), {}
            if not (is_float32 and activation in (None, "leaky_relu")):
                layouts = [layouts[(k + j) % 6], layouts[(k + j + 3) % 6]]
                pairs = [(True, (k + j) % 2 == 0)]
                if not is_float32:
                    pairs = [(True, activation is not None), (False, activation is None)]
                some = {"pairs": pairs}
            for layout in layouts:
                given = shape, layout, dtype, params, activation, some
                yield pytest.param(*given, id=f"{dtype}-{params}-{activation}-{name}-{layout}")


@pytest.mark.parametrize(("shape", "layout", "dtype", "params", "activation", "some"), list(combinations()))
def test_every_combination(shape, layout, dtype, params, activation, some):
    if dtype == "bfloat16" and bfloat16 is None:
        pytest.skip("ml_dtypes is not installed: no bfloat16")
    check_all(shape, layout, dtype, params, activation, **some)


FORMULAS = """
import sys
sys.path.append(sys.argv.pop(1))
from test_combinations import DTYPES, check_all, check_kinks

dtype, params = sys.argv[1:]
for activation in DTYPES[dtype, params]:
    check_kinks(dtype, params, activation)
    for shape in ((7, 6), (2, 2, 17)):  # columns, and runs with a tail
        some = {"mode": ("train", "eval"), "tracked": (True,), "out": ("none",)}
        check_all(shape, "c", dtype, params, activation, **some)
"""


@pytest.mark.parametrize(("dtype", "params"), DTYPES, ids=map("-".join, DTYPES))
def test_every_formula_interpreted(dtype, params):
    if dtype == "bfloat16" and bfloat16 is None:
        pytest.skip("ml_dtypes is not installed: no bfloat16")
    run(FORMULAS, str(Path(__file__).parent), dtype, params, env={"NUMBA_DISABLE_JIT": "1"})
