"""Keras layers and lists of weights as layers: from stand-ins without Keras, and beside Keras itself."""

import os
from types import SimpleNamespace

import cases
import numpy as np
import pytest
import reference
from compare import assert_forward, assert_same_bits

import nbbn
from nbbn.interop import from_keras

F32 = np.float32
ARRAYS = ("gamma", "beta", "running_mean", "running_var")


class Variable:
    """What holds an array and has no `__array__`."""

    def __init__(self, value):
        self.value = value

    def numpy(self):
        return self.value


def stand_in(dtype=F32, count=3, **changes):
    """An object with the attributes that a built Keras layer has."""
    gamma, beta, mean, var = map(Variable, cases.parameters(count, dtype))
    found = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "scale": True, "center": True,
             "gamma": gamma, "beta": beta, "moving_mean": mean, "moving_variance": var}  # fmt: skip
    return SimpleNamespace(**{**found, **changes})


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_weights_takes_the_defaults_of_keras(kind, dtype):
    weights = cases.parameters(3, dtype)
    bn = from_keras(kind(weights))
    for name, value in zip(ARRAYS, weights, strict=True):
        assert_same_bits(getattr(bn, name), value)
        assert not np.shares_memory(getattr(bn, name), value)
    expected = {"axis": -1, "eps": 1e-3, "momentum": 0.01, "running_correction": 0}
    assert bn._options() == nbbn.BatchNorm(3, dtype=dtype, **expected)._options()
    assert bn.training is False
    x = cases.values((4, 5, 3), dtype)
    exact = reference.inference(x, *weights[2:], *weights[:2], axis=-1, eps=1e-3)
    assert_forward(bn(x), x, exact, *weights[:2], axis=-1)
    assert from_keras(list(weights), axis=1).axis == 1


def test_two_weights_are_the_statistics():
    mean, var = cases.parameters(3)[2:]
    bn = from_keras([mean, var])
    assert bn.gamma is None
    assert bn.beta is None
    assert_same_bits(bn.running_mean, mean)
    assert_same_bits(bn.running_var, var)


@pytest.mark.parametrize(("scale", "center"), [(True, False), (False, True), (False, False)])
def test_layers_without_gamma_or_beta(scale, center):
    gamma = cases.parameters(3)[0] if scale else None
    beta = cases.parameters(3)[1] if center else None
    bn = from_keras(stand_in(scale=scale, center=center, **({} if scale else {"gamma": None})))
    for ours, theirs in ((bn.gamma, gamma), (bn.beta, beta)):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert_same_bits(ours, theirs)


@pytest.mark.parametrize("axis", [1, -1, [3], (1,), np.int64(2)])
def test_the_layer_has_its_own_axis_and_options(axis):
    bn = from_keras(stand_in(axis=axis, momentum=0.75, epsilon=0.5), axis=2)
    assert bn.axis == (axis[0] if isinstance(axis, (list, tuple)) else axis)
    assert (bn.momentum, bn.eps, bn.running_correction) == (0.25, 0.5, 0)


@pytest.mark.parametrize("old", [0.99, 0.999, 0.9, 0.5, 1.0, 0.1 + 0.6, 2 / 3, float(F32(0.9))])
def test_the_weight_of_the_old_value_is_kept_to_the_last_bit(old):
    assert 1 - from_keras(stand_in(momentum=old)).momentum == old


def test_a_small_weight_of_the_old_value_is_kept_as_well_as_can_be():
    assert from_keras(stand_in(momentum=1 / 3)).momentum == 1 - 1 / 3
    assert from_keras(stand_in(momentum=0.3)).momentum == 0.7


def test_half_precision_widens_without_loss():
    bn = from_keras(stand_in(moving_variance=Variable(np.array([0.5, 1.5, 3], np.float16))))
    assert_same_bits(bn.running_var, np.array([0.5, 1.5, 3], F32))


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ([np.ones(3)] * 3, "first may be gamma or beta"),
        ([], "got 0 arrays"),
        ([np.ones(3)] * 5, "got 5 arrays"),
        ([np.ones(3), np.ones(3), np.ones(3), np.ones(4)], r"moving_variance: .*\(3,\).*\(4,\)"),
        ([np.ones((3, 1))] * 2, r"moving_mean: expected shape \(C,\)"),
        (stand_in(moving_mean=None), "obj: expected a layer that was built, got .* moving_mean"),
        (stand_in(gamma=None), "obj: expected a layer that was built, got one without gamma"),
        (stand_in(renorm=True), "renorm=True"),
        (stand_in(axis=[1, 2]), r"one axis, got \[1, 2\]"),
        (stand_in(momentum=float("nan")), "momentum: expected a finite number"),
        (stand_in(epsilon=-1.0), "eps: expected"),
    ],
    ids=range(11),
)
def test_what_is_no_layer_is_a_value_error(obj, words):
    with pytest.raises(ValueError, match=words):
        from_keras(obj)


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        (None, "obj: expected a Keras BatchNormalization layer or a list .*NoneType"),
        (np.ones((4, 3)), "obj: .*ndarray"),
        (nbbn.BatchNorm(3), "obj: .*BatchNorm"),
        ([np.ones(3, int)] * 4, "gamma: expected dtype .* got int64"),
        (["text"] * 4, "gamma: expected dtype"),
    ],
    ids=range(5),
)
def test_another_object_is_a_type_error(obj, words):
    with pytest.raises(TypeError, match=words):
        from_keras(obj)


@pytest.fixture(scope="module")
def keras():
    os.environ.setdefault("KERAS_BACKEND", "torch")
    pytest.importorskip(os.environ["KERAS_BACKEND"], reason="Keras has nothing to compute with")
    return pytest.importorskip("keras", reason="keras is not installed: nothing to compare with")


# Keras 3 asks NumPy 2 for arrays in a way that is to go.
beside_keras = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
OPTIONS = ({}, {"axis": 1, "momentum": 0.5, "epsilon": 0.1}, {"scale": False}, {"center": False},
           {"scale": False, "center": False}, {"momentum": 0.9})  # fmt: skip


def close(ours, theirs):
    theirs = np.asarray(theirs.detach() if hasattr(theirs, "detach") else theirs)
    assert ours.dtype == theirs.dtype
    bound = 16 * np.finfo(F32).eps * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@beside_keras
@pytest.mark.parametrize("options", OPTIONS, ids=cases.case_id)
def test_a_keras_layer_predicts_and_trains_as_before(keras, options):
    theirs = keras.layers.BatchNormalization(**options)
    x = cases.values((6, 5, 4, 5))
    theirs.build(x.shape)
    for name, value in zip(("gamma", "beta"), cases.parameters(5), strict=False):
        if getattr(theirs, name) is not None:
            getattr(theirs, name).assign(value)
    for step in range(3):
        bn = from_keras(theirs)
        close(bn(x), theirs(x, training=False))
        batch = cases.values(x.shape, seed=step)
        close(bn(batch, training=True), theirs(batch, training=True))
        close(bn.running_mean, theirs.moving_mean)
        close(bn.running_var, theirs.moving_variance)
    if not {"scale", "center"} & {*options} and options.get("axis", -1) == -1:
        listed = from_keras(theirs.get_weights())
        for name in ARRAYS:
            assert_same_bits(getattr(listed, name), getattr(from_keras(theirs), name))


@beside_keras
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_keras_layers_of_half_precision(keras, dtype):
    theirs = keras.layers.BatchNormalization(dtype=dtype)
    theirs.build((None, 3))
    theirs.moving_mean.assign([0.5, 1.5, 3])
    assert_same_bits(from_keras(theirs).running_mean, np.array([0.5, 1.5, 3], F32))


@beside_keras
def test_keras_layers_that_are_no_source(keras):
    with pytest.raises(ValueError, match="was built"):
        from_keras(keras.layers.BatchNormalization())
    with pytest.raises(TypeError, match="LayerNormalization"):
        from_keras(keras.layers.LayerNormalization())
    renormalizing = keras.layers.BatchNormalization(renorm=True)
    renormalizing.build((None, 3))
    with pytest.raises(ValueError, match="renorm=True"):
        from_keras(renormalizing)
