"""num_features=None: a layer that sees, or is told, how many channels there are."""

import copy
import pickle
import threading

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer, snapshot

import nbbn
from nbbn.distributed import SyncBatchNorm

X = cases.values((6, 3, 5))
ARRAYS = ("gamma", "beta", "running_mean", "running_var")
by_options = pytest.mark.parametrize("options", cases.LAYER_OPTIONS, ids=cases.case_id)
by_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


def is_unbuilt(bn):
    arrays = [getattr(bn, name) for name in ARRAYS]
    state = list(bn.state_dict())
    return bn.num_features is None and arrays == [None] * 4 and state == ["num_batches_tracked"]


@by_options
@by_mode
def test_the_first_forward_builds(options, training):
    bn, expected = nbbn.BatchNorm(**options), nbbn.BatchNorm(3, **options)
    assert is_unbuilt(bn)
    for one in (bn, expected):
        one.train(training)
    for batch in (X, 2 * X + 1):
        assert_same_bits(bn(batch), expected(batch))
        assert_same_bits(bn.backward(X), expected.backward(X))
    assert snapshot(bn) == snapshot(expected)
    assert (bn.num_features, repr(bn)) == (3, repr(expected))


@pytest.mark.parametrize(("shape", "axis"), [((4, 2, 3), -1), ((3, 5), 0), ((2, 4), 1)], ids=str)
def test_channels_are_those_of_the_axis(shape, axis):
    bn = nbbn.BatchNorm(axis=axis)
    bn(cases.values(shape))
    assert bn.num_features == shape[axis]


@by_mode
def test_an_empty_batch_builds(training):
    bn = nbbn.BatchNorm()
    assert bn(np.empty((0, 3, 5), np.float32), training=training).shape == (0, 3, 5)
    assert (bn.num_features, bn.num_batches_tracked) == (3, 0)


def test_what_the_first_forward_takes_besides():
    mask, residual, out = np.ones((6, 5), bool), X + 1, np.empty_like(X)
    mask[2:4] = False
    bn, expected = nbbn.BatchNorm(activation="relu"), nbbn.BatchNorm(3, activation="relu")
    assert bn(X, mask=mask, residual=residual, out=out) is out
    assert_same_bits(out, expected(X, mask=mask, residual=residual))
    assert_same_bits(bn.backward(X), expected.backward(X))
    assert_same_bits(bn.grad_residual, expected.grad_residual)


@pytest.mark.parametrize(
    ("x", "given", "error"),
    [
        (X.astype(int), {}, TypeError),
        (X[:1, :, :1], {}, ValueError),
        (X, {"out": np.empty((6, 3, 4), np.float32)}, ValueError),
        (X, {"mask": np.ones((6, 4), bool)}, ValueError),
        (X, {"residual": X[0]}, ValueError),
        (X, {"training": 1}, TypeError),
        (np.where(X > 1, np.nan, X), {}, FloatingPointError),
    ],
)
def test_a_forward_that_raises_does_not_build(x, given, error):
    bn = nbbn.BatchNorm(on_nonfinite="raise")
    with pytest.raises(error):
        bn(x, **given)
    assert is_unbuilt(bn)
    with pytest.raises(RuntimeError, match="forward"):
        bn.backward(X)
    bn(cases.values((4, 7)))
    assert bn.num_features == 7


def test_build():
    bn = nbbn.BatchNorm(dtype=np.float64)
    assert bn.build(3) is bn
    gamma = bn.gamma
    assert_same_bits(gamma, np.ones(3))
    assert bn.build(3).gamma is gamma
    with pytest.raises(ValueError, match=r"num_features: expected 3, .* got 4"):
        bn.build(4)
    with pytest.raises(ValueError, match=r"num_features: .* got 4"):
        nbbn.BatchNorm(3).build(4)
    for wrong, error in (
        (0, ValueError),
        (2.0, TypeError),
        (None, TypeError),
        (True, TypeError),
        (np.ones(3), TypeError),
    ):
        with pytest.raises(error, match="num_features: expected an integer >= 1"):
            nbbn.BatchNorm().build(wrong)


@by_options
def test_a_state_dict_builds(options):
    source, bn = layer(3, **options), nbbn.BatchNorm(**options)
    source(X)
    bn.load_state_dict(source.state_dict())
    if bn.num_features is None:  # there was no array
        assert set(source.state_dict()) == {"num_batches_tracked"}
    else:
        assert_same_bits(bn(X, training=False), source(X, training=False))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta": np.ones(4, np.float32)}, "shape"),
        ({"gamma": np.ones((3, 1), np.float32)}, r"gamma: expected shape \(3,\), got \(3, 1\)"),
        ({"gamma": ...}, "gamma"),
        ({"gamma": np.ones(3)}, "gamma: expected dtype float32, got float64"),
        ({name: np.ones(0, np.float32) for name in ARRAYS}, r"\(0,\)"),
        ({"running_var": -np.ones(3, np.float32)}, "running_var: .* below 0"),
    ],
)
def test_a_state_that_is_refused_does_not_build(changes, words):
    state = {name: v for name, v in {**layer(3).state_dict(), **changes}.items() if v is not ...}
    bn = nbbn.BatchNorm()
    with pytest.raises(ValueError, match=words):
        bn.load_state_dict(state)
    assert is_unbuilt(bn)


def saved(bn, folder):
    bn.save(folder / "bn.npz")
    return nbbn.BatchNorm.load(folder / "bn.npz")


CLONES = {
    "file": saved,
    "pickle": lambda bn, _: pickle.loads(pickle.dumps(bn)),
    "copy": lambda bn, _: copy.copy(bn),
    "deepcopy": lambda bn, _: copy.deepcopy(bn),
    "state dict": lambda bn, _: load(nbbn.BatchNorm(eps=0.5, axis=-1), bn.state_dict()),
}


def load(bn, state):
    bn.load_state_dict(state)
    return bn


@pytest.mark.parametrize("clone", CLONES.values(), ids=CLONES)
def test_files_pickles_and_copies_before_and_after(clone, tmp_path):
    bn = nbbn.BatchNorm(eps=0.5, axis=-1)
    other = clone(bn, tmp_path)
    assert is_unbuilt(other)
    assert repr(other) == repr(bn) == "BatchNorm(not built, axis=-1, eps=0.5, training)"
    assert_same_bits(other(X), bn(X))
    assert_same_bits(clone(bn, tmp_path)(X), other(X))


def test_a_safetensors_file_before_and_after(tmp_path):
    pytest.importorskip("safetensors")
    bn, path = nbbn.BatchNorm(eps=0.5), tmp_path / "bn.safetensors"
    nbbn.interop.save_safetensors(bn, path)
    assert is_unbuilt(nbbn.interop.load_safetensors(path))
    bn(X)
    nbbn.interop.save_safetensors(bn, path)
    assert_same_bits(nbbn.interop.load_safetensors(path).running_mean, bn.running_mean)


def calibrated(bn):
    with nbbn.calibrate(bn):
        pass


@pytest.mark.parametrize(
    "use",
    [
        *(lambda bn, name=name: setattr(bn, name, np.ones(3)) for name in ARRAYS),
        lambda bn: bn.freeze(),
        lambda bn: nbbn.fold_linear(np.ones((3, 2)), None, bn),
        lambda bn: nbbn.fold_conv(np.ones((3, 2, 1)), None, bn),
        calibrated,
        lambda bn: pytest.importorskip("torch") and nbbn.interop.to_torch_state_dict(bn),
    ],
)
def test_what_needs_channels_says_so(use):
    bn = nbbn.BatchNorm()
    with pytest.raises(RuntimeError, match=r"channels.*bn\.build\(C\)"):
        use(bn)
    assert is_unbuilt(bn)


def test_two_threads_build_once():
    for _ in range(20):
        bn, start, found = nbbn.BatchNorm(), threading.Barrier(4), []

        def work(bn=bn, start=start, found=found):
            start.wait()
            bn(X)
            found.append(bn.gamma)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(gamma is bn.gamma for gamma in found) and len(found) == 4
        assert bn.num_batches_tracked == 4


def test_resetting_before_and_a_subclass():
    class Named(nbbn.BatchNorm):
        """Of a user, with an attribute of its own."""

    bn = Named()
    bn.name = "first"
    bn.reset_parameters()
    bn(X)
    assert (bn.num_features, bn.name) == (3, "first")


def test_workers_have_to_know():
    class Alone:
        def allgather(self, array):
            return [array]

    with pytest.raises(TypeError, match="num_features: expected an integer"):
        SyncBatchNorm(None, comm=Alone())
