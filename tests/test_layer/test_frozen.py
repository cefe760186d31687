"""Frozen layers: a snapshot with the bits of the layer in inference."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer

import nbbn

SHAPES = (((9, 5), 1), ((4, 5, 6, 7), 1), ((4, 6, 7, 5), -1), ((3, 5, 80, 90), 1), ((2, 5, 3), 1))
by_shape = pytest.mark.parametrize(("shape", "axis"), SHAPES)


@by_shape
@pytest.mark.parametrize("layout", ["c", "fortran", "strided", "reversed_all", "unaligned"])
@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("params", cases.DTYPES)
def test_the_bits_are_those_of_the_layer_in_inference(shape, axis, layout, dtype, params):
    x = cases.LAYOUTS[layout](cases.values(shape, dtype))
    bn = layer(5, axis=axis, dtype=params)
    bn(cases.values(shape, dtype, seed=4))
    frozen = bn.freeze()
    y = bn.eval()(x)
    assert_same_bits(frozen(x), y)
    out = np.full_like(x, 777)
    assert frozen(x, out=out) is out
    assert_same_bits(out, y)
    inside = x.copy(order="K")
    assert frozen(inside, out=inside) is inside
    assert_same_bits(inside, y)


@by_shape
@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish"])
def test_the_activation_is_frozen_too(shape, axis, activation):
    x, residual = cases.values(shape), cases.values(shape, seed=2)
    bn = layer(5, axis=axis, activation=activation, negative_slope=0.3).eval()
    frozen = bn.freeze()
    assert (frozen.activation, frozen.negative_slope, frozen.axis) == (activation, 0.3, axis)
    for added in (None, residual):
        assert_same_bits(frozen(x, residual=added), bn(x, residual=added))


def test_it_is_a_snapshot():
    bn, x = layer(5), cases.values((9, 5))
    frozen = bn.freeze()
    before = frozen(x)
    bn(x)
    bn.gamma[:] = 9
    bn.eps = 1.0
    assert_same_bits(frozen(x), before)
    for name in ("center", "scale", "shift"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(frozen, name)[0] = 1


def test_a_backward_of_the_layer_is_left_alone():
    bn, x = layer(5), cases.values((9, 5))
    bn(x)
    expected = bn.backward(x)
    bn.freeze()(cases.values((9, 5), seed=8))
    assert_same_bits(bn.backward(x), expected)


def test_the_three_numbers():
    gamma, beta, mean, var = cases.parameters(7)
    frozen = nbbn.FrozenBatchNorm.from_stats(mean, var, gamma, beta, 1e-3, axis=-1)
    np.testing.assert_array_equal(frozen.center, mean)
    np.testing.assert_array_equal(frozen.shift, beta)
    wide = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + 1e-3)
    np.testing.assert_array_equal(frozen.scale, wide)
    assert (frozen.axis, frozen.num_features) == (-1, 7)
    x = cases.values((6, 7))
    again = nbbn.FrozenBatchNorm(frozen.center, frozen.scale, frozen.shift, axis=-1)
    assert_same_bits(again(x), frozen(x))
    assert_same_bits(frozen(x), nbbn.normalize(x, mean, var, gamma, beta, eps=1e-3))
    plain = nbbn.FrozenBatchNorm.from_stats(mean, var)
    assert_same_bits(plain(x), nbbn.normalize(x, mean, var))


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_copies_and_pickles(clone):
    frozen, x = layer(5, activation="relu").freeze(), cases.values((9, 5))
    frozen(x)
    other = clone(frozen)
    assert_same_bits(other(x), frozen(x))
    assert repr(other) == repr(frozen) == "FrozenBatchNorm(5, axis=1, activation='relu')"
    with pytest.raises(ValueError, match="read-only"):
        other.scale[0] = 3


def test_many_threads():
    frozen = layer(12).freeze()
    inputs = [cases.values((40, 12, 40, 40), seed=k) for k in range(3)]
    expected = [frozen(x) for x in inputs]
    with ThreadPoolExecutor(8) as pool:
        for k, y in enumerate(pool.map(lambda k: frozen(inputs[k % 3]), range(24))):
            assert_same_bits(y, expected[k % 3])


def test_nothing_is_computed_of_nothing():
    frozen = layer(5).freeze()
    assert frozen(np.empty((0, 5), np.float32)).shape == (0, 5)


def test_without_running_statistics_there_is_nothing_to_freeze():
    with pytest.raises(ValueError, match=r"^freeze: expected a layer with running statistics"):
        nbbn.BatchNorm(3, track_running_stats=False).freeze()


ONE = np.ones(3, np.float32)
BAD = {
    "center of two dimensions": ((ONE[None], ONE, ONE), {}, ValueError, "center: expected one value a channel"),
    "no channel": ((ONE[:0], ONE, ONE), {}, ValueError, "center: expected one value a channel"),
    "shape of scale": ((ONE, ONE[:2], ONE), {}, ValueError, r"scale: expected shape \(3,\)"),
    "dtype of shift": ((ONE, ONE, ONE > 0), {}, TypeError, "shift: expected dtype float32, .* got bool"),
    "axis": ((ONE, ONE, ONE), {"axis": 1.5}, TypeError, "axis: expected an integer"),
    "activation": ((ONE, ONE, ONE), {"activation": "tanh"}, ValueError, "activation: expected 'relu'"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "error", "sentence"), BAD.values(), ids=BAD)
def test_wrong_arguments(arguments, options, error, sentence):
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.FrozenBatchNorm(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ((ONE[None], ONE), {}, ValueError, "mean: expected one value a channel"),
        ((ONE, ONE[:1]), {}, ValueError, r"var: expected shape \(3,\)"),
        ((ONE, ONE, ONE[:1]), {}, ValueError, r"gamma: expected shape \(3,\)"),
        ((ONE, -ONE), {}, ValueError, "var: expected no variance below 0, got -1"),
        ((ONE, ONE), {"eps": -1.0}, ValueError, "eps: expected a finite number >= 0"),
    ],
)
def test_wrong_statistics(arguments, options, error, sentence):
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.FrozenBatchNorm.from_stats(*arguments, **options)


@pytest.mark.parametrize(
    ("x", "keywords", "error", "sentence"),
    [
        (np.zeros((4, 2), np.float32), {}, ValueError, "x: expected 3 channels along axis 1"),
        (np.zeros(3, np.float32), {}, ValueError, "axis: expected from -1 to 0"),
        (np.zeros((4, 3), int), {}, TypeError, "x: expected dtype float32"),
        (np.zeros((4, 3), np.float32), {"out": np.zeros((4, 3))}, ValueError, "out: expected dtype"),
        (ONE[None], {"residual": np.zeros((4, 1), np.float32)}, ValueError, "residual: expected shape"),
    ],
)  # fmt: skip
def test_wrong_calls(x, keywords, error, sentence):
    frozen = nbbn.FrozenBatchNorm(ONE, ONE, ONE)
    with pytest.raises(error, match=f"^{sentence}"):
        frozen(x, **keywords)


def test_a_frozen_layer_folds_as_the_layer_does():
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(6, 4)), rng.normal(size=6)
    bn = layer(6, dtype=np.float64)
    for found, expected in zip(
        nbbn.fold_linear(weight, bias, bn.freeze()), nbbn.fold_linear(weight, bias, bn), strict=True
    ):
        assert_same_bits(found, expected)
    x = rng.normal(size=(5, 4))
    folded_weight, folded_bias = nbbn.fold_linear(weight, bias, bn.freeze())
    np.testing.assert_allclose(
        x @ folded_weight.T + folded_bias, bn.eval()(x @ weight.T + bias), rtol=1e-12, atol=1e-12
    )
