"""virtual_batch_size: a training batch as if its parts came one after the other, to the last bit."""

import math
import pickle

import cases
import numpy as np
import pytest
import reference
from arguments import laid_out, seeds
from compare import assert_forward, assert_same_bits, layer, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gradients import assert_slope, problem, slope

import nbbn
from nbbn.distributed import SyncBatchNorm

X, GRAD = cases.values((11, 3, 5)), cases.values((11, 3, 5), seed=2)
F32 = np.float32
GRADIENTS = ("grad_gamma", "grad_beta")


def places(shape, axis, size, count_of):
    """Where the parts lie: cut along the first axis but the channel's, the last joined if too small."""
    along = 0 if axis % len(shape) else 1
    before = (slice(None),) * along
    found = [(*before, slice(b, b + size)) for b in range(0, shape[along], size)]
    if len(found) > 1 and count_of(found[-1]) < 2:
        found[-2:] = [(*before, slice(found[-2][-1].start, None))]
    return found


def one_after_the_other(bn, parts, x, grad, **given):
    """What calls with each of the parts leave: y and grad_x, grad_residual, and the sums of gradients."""
    y, grad_x, grad_residual = (np.empty_like(x) for _ in range(3))
    sums = dict.fromkeys(GRADIENTS)
    for at in parts:
        y[at] = bn(x[at], **{name: value[at] for name, value in given.items()})
        grad_x[at] = bn.backward(grad[at])
        if bn.grad_residual is not None:
            grad_residual[at] = bn.grad_residual
        for name in GRADIENTS:
            value = getattr(bn, name)
            sums[name] = value if sums[name] is None else sums[name] + value
    return y, grad_x, grad_residual if bn.grad_residual is not None else None, sums


# dtype, activation, whether there is a mask; each is compiled into variants of its own
FEW = ((F32, None, False), (F32, None, True), (F32, "relu", False), (np.float64, None, False))
MANY = [
    (dtype, activation, masked)
    for dtype in (F32, np.float64, np.float16)
    for activation in (None, "relu", "leaky_relu")
    for masked in (False, True)
]


@st.composite
def problems(draw, kinds):
    dtype, activation, masked = draw(st.sampled_from(kinds))
    shape = draw(st.sampled_from([(9, 3, 4), (3, 10), (10, 2), (7, 3, 2, 2), (5, 17, 3)]))
    axis = draw(st.sampled_from([0, 1, -1]))
    x = draw(laid_out(shape, dtype))
    size = draw(st.integers(1, 6))
    options = draw(st.sampled_from(cases.LAYER_OPTIONS))
    added = draw(st.booleans()) and (len(kinds) > len(FEW) or activation is not None)
    return x, axis, size, {"activation": activation, **options}, masked, added, draw(seeds)


@settings(max_examples=150)
@given(problems(FEW))
def test_the_bits_are_those_of_calls_one_after_the_other(drawn):
    check_drawn(*drawn)


@pytest.mark.interpreted
@settings(max_examples=min(40, settings.default.max_examples))
@given(problems(MANY))
def test_the_bits_are_those_of_calls_one_after_the_other_of_every_kind(drawn):
    check_drawn(*drawn)


def check_drawn(x, axis, size, options, masked, added, seed):
    along, index = 0 if axis % x.ndim else 1, axis % x.ndim
    others = [n for k, n in enumerate(x.shape) if k != index]
    random, given_arrays = np.random.default_rng(seed), {}
    mask = np.ones(x.shape, bool)
    if masked:
        mask = np.expand_dims(random.uniform(size=others) < 0.8, index)
        given_arrays["mask"] = mask
    if added:
        given_arrays["residual"] = random.normal(size=x.shape).astype(x.dtype)
    grad = random.normal(size=x.shape).astype(x.dtype)
    needed = 2 if options.get("correction", 0) or options.get("running_correction", 1) else 1

    def count_of(at):
        part = np.broadcast_to(mask, x.shape)[at]
        return part.sum() // x.shape[index] + (needed == 1)

    parts = places(x.shape, axis, size, count_of)
    same = {"axis": axis, **options}
    bn = layer(x.shape[axis], virtual_batch_size=size, **same)
    other = layer(x.shape[axis], **same)
    try:
        expected = one_after_the_other(other, parts, x, grad, **given_arrays)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:40]):
            bn(x, **given_arrays)
        return
    assert x.shape[along]
    assert_same_bits(bn(x, **given_arrays), expected[0])
    assert bn.num_batches_tracked == other.num_batches_tracked
    state, of_other = snapshot(bn), snapshot(other)
    for name in ("running_mean", "running_var", "batch_mean", "batch_var", "batch_inv_std"):
        assert state[name] == of_other[name], name
    assert_same_bits(bn.backward(grad), expected[1])
    if expected[2] is not None:
        assert_same_bits(bn.grad_residual, expected[2])
    for name in GRADIENTS:
        value = getattr(bn, name)
        assert (value is None) == (expected[3][name] is None)
        if value is not None:
            assert_same_bits(value, expected[3][name])


def test_each_part_follows_the_equations():
    bn = layer(3, virtual_batch_size=4)
    y = bn(X)
    for at in (slice(0, 4), slice(4, 8), slice(8, 11)):
        expected = reference.training(X[at], bn.gamma, bn.beta)
        assert_forward(y[at], X[at], expected, bn.gamma, bn.beta)
    assert bn.num_batches_tracked == 3
    np.testing.assert_allclose(bn.batch_mean, X[8:].mean(axis=(0, 2)), rtol=1e-5)


@pytest.mark.parametrize(("size", "parts"), [(4, 3), (10, 1), (11, 1), (5, 2), (1, 0), (100, 1)])
def test_a_last_part_too_small_to_train_with_joins_the_one_before(size, parts):
    bn, x = nbbn.BatchNorm(3, virtual_batch_size=size), cases.values((11, 3))
    if not parts:
        with pytest.raises(ValueError, match="values per channel"):
            bn(x)
    else:
        bn(x)
    assert bn.num_batches_tracked == parts


@pytest.mark.parametrize("wanted", ["x", "gamma", "beta"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3, 2), 1), ((3, 7), 0), ((2, 6, 3), -1)], ids=str)
@pytest.mark.long
def test_gradients_against_finite_differences(shape, axis, wanted):
    x, weights, bn = problem(shape, axis, {"virtual_batch_size": 2, "momentum": 0.0, "correction": 1})
    bn.activation = "leaky_relu"
    bn(x)
    gradients = {"x": bn.backward(weights), "gamma": bn.grad_gamma, "beta": bn.grad_beta}
    at = {"x": x, "gamma": bn.gamma, "beta": bn.beta}[wanted]
    assert_slope(gradients[wanted], slope(lambda: float(np.sum(weights * bn(x))), at))


def test_torch_trained_with_the_parts():
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    module, bn = torch.nn.BatchNorm1d(3), nbbn.BatchNorm(3, virtual_batch_size=4)
    x = torch.tensor(X, requires_grad=True)
    theirs = torch.cat([module(part) for part in x.split(4)])
    theirs.backward(torch.tensor(GRAD))
    np.testing.assert_allclose(bn(X), theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.backward(GRAD), x.grad.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.grad_gamma, module.weight.grad.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(bn.running_var, module.running_var.numpy(), rtol=1e-5)
    assert bn.num_batches_tracked == int(module.num_batches_tracked)


def test_only_training_is_cut():
    bn, whole = layer(3, virtual_batch_size=4), layer(3)
    assert_same_bits(bn(X, training=False), whole(X, training=False))
    assert_same_bits(bn.backward(GRAD), whole.backward(GRAD))
    options = {"track_running_stats": False}
    bn, whole = layer(3, virtual_batch_size=4, **options), layer(3, **options)
    assert_same_bits(bn(X, training=False), whole(X, training=False))
    for x in (X[:0], X[:3]):
        bn, whole = layer(3, virtual_batch_size=4), layer(3)
        assert_same_bits(bn(x), whole(x))
        assert bn.num_batches_tracked == whole.num_batches_tracked


SPOILED = X.copy()
SPOILED[9, 1, 0] = np.nan


@pytest.mark.parametrize("with_out", [False, True])
def test_raise_looks_at_all_parts_first(with_out):
    bn = layer(3, virtual_batch_size=4, on_nonfinite="raise")
    bn(X)
    before, out = snapshot(bn), np.full_like(X, 777) if with_out else None
    with pytest.raises(FloatingPointError, match="channel 1"):
        bn(SPOILED, out=out)
    assert snapshot(bn) == before
    assert out is None or (out == 777).all()


def test_skip_looks_at_all_parts_first():
    mask = np.ones((11, 5), bool)
    mask[4:8] = False  # the second part takes the running statistics, which stay
    bn, plain = layer(3, virtual_batch_size=4, on_nonfinite="skip"), layer(3)
    before = bn.state_dict()
    y = bn(SPOILED, mask=mask)
    for name, value in before.items():
        np.testing.assert_array_equal(bn.state_dict()[name], value)
    assert_same_bits(y[4:8], plain(X[4:8], training=False))
    assert_same_bits(y[:4], plain(X[:4]))
    bn(X, mask=mask)
    assert bn.num_batches_tracked == 2


def test_a_forward_that_raises_changes_nothing():
    bn = layer(3, virtual_batch_size=4)
    mask, out = np.ones((11, 5), bool), np.full_like(X, 777)
    mask[4:8] = False
    mask[5, 0] = True  # one value in the middle
    before = snapshot(bn)
    with pytest.raises(ValueError, match="mask: expected at least 2 values per channel"):
        bn(X, mask=mask, out=out)
    assert snapshot(bn) == before and (out == 777).all()


def test_a_last_part_that_is_masked_joins_the_one_before():
    mask = np.ones((11, 5), bool)
    mask[8:] = False
    bn, plain = layer(3, virtual_batch_size=4), layer(3)
    plain(X[:4])
    assert_same_bits(bn(X, mask=mask)[4:], plain(X[4:], mask=mask[4:]))
    assert bn.num_batches_tracked == 2


def test_calibrate_sees_all_values():
    bn, whole = (layer(3, virtual_batch_size=size) for size in (4, None))
    with nbbn.calibrate(bn, whole):
        bn(X), whole(X)
    np.testing.assert_allclose(bn.running_mean, whole.running_mean, rtol=1e-6)
    np.testing.assert_allclose(bn.running_var, whole.running_var, rtol=1e-6)
    assert bn.num_batches_tracked == 3


OUTS = {
    "x itself": lambda x: x,
    "another": np.empty_like,
    "one sample on": lambda x: x.base[1:],
    "one sample before": lambda x: x.base[:-1],
}


@pytest.mark.parametrize("make", OUTS.values(), ids=OUTS)
def test_out_that_overlaps(make):
    memory = np.zeros((13, 3, 5), F32)
    x = memory[1:-1] if make in (OUTS["x itself"], OUTS["another"]) else memory[1:]
    x = memory[:-1] if make is OUTS["one sample on"] else x
    x[...] = cases.values(x.shape)
    expected = layer(3, virtual_batch_size=4)(x.copy())
    out = make(x)
    assert layer(3, virtual_batch_size=4)(x, out=out) is out
    assert_same_bits(out, expected)
    grad, bn = np.zeros((13, 3, 5), F32), layer(3, virtual_batch_size=4, activation="relu")
    g = grad[: len(x)]
    g[...] = cases.values(g.shape, seed=5)
    x = cases.values(x.shape)
    bn(x)
    expected = bn.backward(g.copy())
    assert_same_bits(bn.backward(g, out=grad[-len(x) :]), expected)


def test_the_residual_must_be_unchanged():
    bn, residual = layer(3, virtual_batch_size=4, activation="relu"), X.copy()
    bn(X, residual=residual)
    residual += 1
    before = snapshot(bn)
    with pytest.raises(RuntimeError, match="residual of the last forward unchanged"):
        bn.backward(GRAD)
    assert snapshot(bn) == before


def test_the_option(tmp_path):
    bn = nbbn.BatchNorm(3, virtual_batch_size=np.int64(4))
    assert bn.virtual_batch_size == 4
    assert repr(bn) == "BatchNorm(3, virtual_batch_size=4, training)"
    bn.save(tmp_path / "bn.npz")
    for other in (nbbn.BatchNorm.load(tmp_path / "bn.npz"), pickle.loads(pickle.dumps(bn))):
        assert_same_bits(other(X), layer_of_ones()(X))
    for wrong, error in ((0, ValueError), (-1, ValueError), (2.5, TypeError), ("4", TypeError)):
        with pytest.raises(error, match="virtual_batch_size: expected an integer >= 1"):
            nbbn.BatchNorm(3, virtual_batch_size=wrong)


def layer_of_ones():
    return nbbn.BatchNorm(3, virtual_batch_size=4)


def test_synchronized_layers_refuse_it():
    class Alone:
        def allgather(self, array):
            return [array]

    with pytest.raises(ValueError, match=r"virtual_batch_size: expected None, .* got 4"):
        SyncBatchNorm(3, comm=Alone(), virtual_batch_size=4)
    assert SyncBatchNorm(3, comm=Alone(), virtual_batch_size=None).virtual_batch_size is None


def test_a_lazy_layer_is_cut_from_the_first_batch_on():
    bn, other = nbbn.BatchNorm(virtual_batch_size=4), layer_of_ones()
    assert_same_bits(bn(X), other(X))
    assert_same_bits(bn.backward(GRAD), other.backward(GRAD))
    assert bn.num_batches_tracked == math.ceil(11 / 4)
