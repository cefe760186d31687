"""Words of other libraries are answered with nbbn's, misspelt ones are errors, and messages say what to do."""

import copy
import importlib
import pickle
import subprocess
import sys

import cases
import numpy as np
import pytest
import reference
from compare import assert_forward, assert_same_bits

import nbbn

X = cases.values((6, 3, 5))
F32 = np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"affine": False}, "affine: .*use scale= and center="),
        ({"epsilon": 1e-3}, "epsilon: .*use eps="),
        ({"num_channels": 3}, "num_channels: .*use num_features"),
        ({"momentun": 0.3}, "momentun: .*use momentum$"),
        ({"qwertz": 0.3}, "qwertz: there is no 'qwertz'$"),
    ],
)
def test_options_of_others(options, words):
    with pytest.raises(TypeError, match=words):
        nbbn.BatchNorm(3, **options)
    with pytest.raises(TypeError, match=words):
        nbbn.distributed.SyncBatchNorm(3, comm=Alone(), **options)


class Alone:
    def allgather(self, array):
        return [array]


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("weight", "bn.gamma"),
        ("bias", "bn.beta"),
        ("forward", r"bn\(x\)"),
        ("epsilon", "bn.eps"),
        ("moving_variance", "bn.running_var"),
        ("parameters", "state_dict"),
    ],
)
def test_attributes_of_others(word, ours):
    bn = nbbn.BatchNorm(3)
    with pytest.raises(AttributeError, match=f"BatchNorm: there is no '{word}': use .*{ours}"):
        getattr(bn, word)
    with pytest.raises(AttributeError, match=ours):
        setattr(bn, word, 1)
    assert not hasattr(bn, word) and word not in dir(bn)
    assert getattr(bn, word, None) is None


@pytest.mark.parametrize(
    ("word", "ours"),
    [
        ("BatchNorm2d", "nbbn.BatchNorm,"),
        ("BatchNormalization", "nbbn.BatchNorm"),
        ("SyncBatchNorm", "nbbn.distributed.SyncBatchNorm"),
        ("StandardScaler", "nbbn.Standardizer"),
        ("from_torch", "nbbn.interop.from_torch"),
        ("batchnorm", "batch_norm"),
    ],
)
def test_names_of_others(word, ours):
    with pytest.raises(AttributeError, match=f"there is no '{word}': use {ours}"):
        getattr(nbbn, word)
    with pytest.raises(ImportError):
        exec(f"from nbbn import {word}")  # noqa: S102


def test_every_answer_exists():
    words = importlib.import_module("nbbn.layer._words")
    bn = nbbn.BatchNorm(3)
    for answer in words.NAMES.values():
        eval(answer.partition(",")[0], {"nbbn": nbbn})  # noqa: S307
    for answer in words.ATTRIBUTES.values():
        eval(answer.split(" ")[0].rstrip(","), {"bn": bn, "x": X})  # noqa: S307
    assert set(words.ATTRIBUTES).isdisjoint(dir(bn))


def test_dir_shows_the_public_names_only():
    assert sorted(dir(nbbn)) == sorted(nbbn.__all__)
    for name in dir(nbbn):
        assert getattr(nbbn, name) is not None
    done = subprocess.run(
        [sys.executable, "-c", "import nbbn, nbbn.cli; print(sorted(dir(nbbn)) == sorted(nbbn.__all__))"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == "True\n"


@pytest.mark.parametrize("layer", [nbbn.BatchNorm(3), nbbn.BatchNorm(3).freeze()])
def test_attributes_say_what_they_are(layer):
    shown = [name for name in dir(layer) if isinstance(getattr(type(layer), name, None), property) and name[0] != "_"]
    texts = {getattr(type(layer), name).__doc__ for name in shown}
    assert len(texts) == len(shown) >= 7 and None not in texts


def test_a_misspelt_attribute_is_an_error():
    bn = nbbn.BatchNorm(3)
    for one, name in ((bn, "momentun"), (bn, "gama"), (bn.freeze(), "activasion")):
        with pytest.raises(AttributeError, match=name):
            setattr(one, name, 0.3)


class Mine(nbbn.BatchNorm):
    """A class of a user, with attributes of its own, also by words of others."""


@pytest.mark.parametrize("clone", [copy.copy, copy.deepcopy, lambda bn: pickle.loads(pickle.dumps(bn))])
def test_classes_of_users_add_their_own(clone):
    bn = Mine(3)
    bn.name, bn.weight = "first", 7
    other = clone(bn)
    assert (other.name, other.weight) == ("first", 7)
    with pytest.raises(AttributeError, match=r"Mine: .*bn.beta"):
        other.bias  # noqa: B018


def test_a_state_dict_of_pytorch_is_told_where_to_go():
    state = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), np.ones(3, F32))
    for given in (state, {f"bn1.{name}": value for name, value in state.items()}):
        with pytest.raises(ValueError, match=r"interop\.from_torch"):
            nbbn.BatchNorm(3).load_state_dict(given)


MESSAGES = {
    "one dimension": (lambda bn: bn(X[0, 0]), r"x\[None\] for one sample, x\[:, None\] for one channel"),
    "channels last": (lambda bn: bn(np.moveaxis(X, 1, -1)), r"axis=-1 has 3"),
    "channels first": (lambda bn: bn(X.reshape(3, 6, 5)), r"axis=0 has 3"),
    "one sample": (lambda bn: bn(X[:1, :, 0]), r"bn\.eval\(\) for one sample"),
    "integers": (lambda bn: bn(X.astype(int)), r"x\.astype\(np\.float32\)"),
    "integers in normalize": (lambda bn: nbbn.normalize(X.astype(int), 0, 1), r"x\.astype\(np\.float32\)"),
    "gradient": (lambda bn: bn.backward(X.astype(float)), r"grad_y\.astype\(x\.dtype\)"),
    "residual": (lambda bn: bn(X, residual=X.astype(float)), r"residual\.astype\(x\.dtype\)"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "words"), MESSAGES.values(), ids=MESSAGES)
def test_messages_say_what_to_do(call, words):
    bn = nbbn.BatchNorm(3)
    bn(X)
    with pytest.raises((TypeError, ValueError), match=words):
        call(bn)


def test_a_dask_array_is_not_computed_silently():
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x = da.from_array(X)
    calls = (
        nbbn.BatchNorm(3), nbbn.BatchNorm(3).freeze(), nbbn.batch_moments, nbbn.explain,
        lambda x: nbbn.normalize(x, 0, 1), lambda x: nbbn.batch_norm(x, None, None, training=True),
    )  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=r"x: .* dask .*dask_normalize"):
            call(x)


KINDS = ("int64", "uint8", "int8", "float16", ">f4", ">i2", "bfloat16")


def converted(values, kind):
    if kind == "bfloat16":
        kind = pytest.importorskip("ml_dtypes", reason="no bfloat16").bfloat16
    return np.asarray(values).astype(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_any_real_numbers(kind):
    values = {"mean": [1, 2, 0], "var": [1, 4, 2], "gamma": [2, 0, 1], "beta": [3, 1, 4]}
    exact = {name: np.array(value, np.float64) for name, value in values.items()}
    given = {name: converted(value, kind) for name, value in values.items()}
    expected = nbbn.normalize(X, **exact)
    assert_same_bits(nbbn.normalize(X, **given), expected)
    names = {"mean": "running_mean", "var": "running_var", "gamma": "gamma", "beta": "beta"}
    bn = nbbn.BatchNorm(3).eval()
    for name, value in given.items():
        setattr(bn, names[name], value)
    assert_same_bits(bn(X), expected)
    assert_same_bits(nbbn.FrozenBatchNorm.from_stats(**given)(X), expected)
    mean, var, gamma, beta = given.values()
    assert_same_bits(nbbn.batch_norm(X, mean, var, gamma, beta), expected)
    frozen = nbbn.FrozenBatchNorm(mean, gamma, beta)
    assert_same_bits(frozen.scale, exact["gamma"])
    for ours, theirs in zip(
        nbbn.batch_norm_backward(X, X, mean, var, gamma),
        nbbn.batch_norm_backward(X, X, exact["mean"], exact["var"], exact["gamma"]),
        strict=True,
    ):
        assert_same_bits(ours, theirs)


def test_lists_and_scalars():
    bn = nbbn.BatchNorm(3)
    bn.gamma, bn.running_var = [1, 2, 3], (1, 2, 3)
    assert bn.gamma.tolist() == bn.running_var.tolist() == [1, 2, 3]
    ones = np.ones(3)
    for mean, var, gamma, beta in ((2, 4.0, np.float32(3), np.array(1)), (0.5, 1, True + 1, -1)):
        y = nbbn.normalize(X, mean, var, gamma, beta, eps=0.25)
        vectors = [value * ones for value in (mean, var, gamma, beta)]
        expected = reference.inference(X, *vectors, eps=0.25)
        assert_forward(y, X, expected, vectors[2], vectors[3])
        assert_same_bits(y, nbbn.normalize(X, *vectors, eps=0.25))
    with pytest.raises(ValueError, match=r"gamma: expected shape \(3,\)"):
        bn.gamma = 2.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: nbbn.normalize(X, 0, -1),
        lambda: nbbn.normalize(X, np.zeros(3), [1, -1, 1]),
        lambda: nbbn.batch_norm(X, np.zeros(3), np.array([1, -1, 1])),
        lambda: nbbn.batch_norm(X, np.zeros(3), np.array([1.0, -1, 1]), training=True),
        lambda: nbbn.FrozenBatchNorm.from_stats(np.zeros(3), [1, -1, 1]),
        lambda: setattr(nbbn.BatchNorm(3), "running_var", [1, -1, 1]),
    ],
)
def test_a_negative_variance_is_refused(call):
    with pytest.raises(ValueError, match="var: expected no variance below 0, got -1"):
        call()


@pytest.mark.parametrize("kind", ["int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", ">i4"])
@pytest.mark.parametrize("layout", ["c", "fortran", "reversed_all"])
def test_moments_of_integers_are_those_of_float64(kind, layout):
    values = np.random.default_rng(3).integers(0, 2 if kind == "bool" else 100, (7, 3, 4))
    x = cases.LAYOUTS[layout](values.astype(kind))
    mask, weights = np.arange(7)[:, None] < 5, np.arange(7.0)[:, None]
    for given in ({}, {"mask": mask}, {"weights": weights}, {"axis": -1}):
        found = nbbn.batch_moments(x, **given)
        assert found == nbbn.batch_moments(x.astype(np.float64), **given)
    assert nbbn.Moments.empty(3).update(x) == nbbn.batch_moments(x)
    assert nbbn.Moments.from_batches([x.tolist(), x.tolist()]).count == 2 * 28
    count, mean, m2 = reference.moments(x)
    moments = nbbn.batch_moments(x)
    assert moments.count == count
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(moments.m2, m2, rtol=1e-13)


def test_the_mode_and_what_was_tracked_are_shown():
    bn = nbbn.BatchNorm(3, axis=-2)
    assert repr(bn) == "BatchNorm(3, axis=-2, training)"
    bn(X)
    assert repr(bn.eval()) == "BatchNorm(3, axis=-2, inference, 1 batches tracked)"
    assert repr(bn.freeze()) == "FrozenBatchNorm(3, axis=-2)"
