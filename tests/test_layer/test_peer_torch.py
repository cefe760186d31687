"""torch as a peer: the same statistics, outputs and gradients, and its CPU tensors as input."""

import cases
import numpy as np
import pytest
from compare import assert_same_bits

import nbbn

torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
pytestmark = pytest.mark.long

NETWORK = {"1d": ((12, 5), torch.nn.BatchNorm1d), "1d_sequence": ((6, 5, 9), torch.nn.BatchNorm1d),
           "2d": ((4, 5, 7, 6), torch.nn.BatchNorm2d), "3d": ((3, 5, 2, 4, 3), torch.nn.BatchNorm3d)}  # fmt: skip
OPTIONS = (
    {},
    {"momentum": 0.3, "eps": 1e-3},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False, "momentum": None},
)
by_network = pytest.mark.parametrize("name", NETWORK)
by_options = pytest.mark.parametrize("options", OPTIONS, ids=cases.case_id)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)
TOLERANCE = {np.float32: {"rtol": 3e-5, "atol": 3e-6}, np.float64: {"rtol": 1e-11, "atol": 1e-12}}


def pair(name, options, dtype=np.float32):
    """A torch module and an nbbn layer of the same options and parameters."""
    shape, module = NETWORK[name]
    theirs = module(shape[1], dtype=getattr(torch, np.dtype(dtype).name), **options)
    ours = dict(options)
    affine = ours.pop("affine", True)
    bn = nbbn.BatchNorm(shape[1], scale=affine, center=affine, dtype=dtype, **ours)
    if affine:
        bn.gamma[:], bn.beta[:] = cases.parameters(shape[1], dtype)[:2]
        with torch.no_grad():
            theirs.weight.copy_(torch.from_numpy(bn.gamma))
            theirs.bias.copy_(torch.from_numpy(bn.beta))
    return theirs, bn, shape


def assert_close(ours, theirs, dtype):
    np.testing.assert_allclose(ours, theirs.detach().numpy(), **TOLERANCE[dtype])


def assert_same_state(bn, module, dtype):
    if module.running_mean is None:
        assert bn.running_mean is None
        assert bn.running_var is None
    else:
        assert_close(bn.running_mean, module.running_mean, dtype)
        assert_close(bn.running_var, module.running_var, dtype)
        assert bn.num_batches_tracked == int(module.num_batches_tracked)


@by_dtype
@by_options
@by_network
def test_several_steps_of_training_then_evaluation(name, options, dtype):
    module, bn, shape = pair(name, options, dtype)
    for step in range(4):
        x = cases.values(shape, dtype, loc=step, seed=step)
        assert_close(bn(x), module(torch.from_numpy(x)), dtype)
        assert_same_state(bn, module, dtype)
    module.eval(), bn.eval()
    x = cases.values(shape, dtype, seed=20)
    assert_close(bn(x), module(torch.from_numpy(x)), dtype)
    assert_same_state(bn, module, dtype)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@by_dtype
@by_options
@by_network
def test_gradients(name, options, dtype, training):
    module, bn, shape = pair(name, options, dtype)
    warm = cases.values(shape, dtype, loc=0.5, seed=30)
    bn(warm), module(torch.from_numpy(warm))
    module.train(training), bn.train(training)
    x, grad_y = cases.values(shape, dtype, seed=1), cases.values(shape, dtype, seed=2)
    leaf = torch.from_numpy(x.copy()).requires_grad_()
    module(leaf).backward(torch.from_numpy(grad_y))
    bn(x)
    assert_close(bn.backward(grad_y), leaf.grad, dtype)
    if module.weight is None:
        assert bn.grad_gamma is None
        assert bn.grad_beta is None
    else:
        assert_close(bn.grad_gamma, module.weight.grad, dtype)
        assert_close(bn.grad_beta, module.bias.grad, dtype)


def test_resets_match():
    module, bn, shape = pair("2d", {})
    x = cases.values(shape)
    for reset in ("reset_running_stats", "reset_parameters"):
        bn(x), module(torch.from_numpy(x))
        getattr(module, reset)(), getattr(bn, reset)()
        assert_same_state(bn, module, np.float32)
        assert_close(bn.gamma, module.weight, np.float32)
        assert_close(bn.beta, module.bias, np.float32)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_the_functional_form(training):
    x, (gamma, beta, mean, var) = cases.values((4, 5, 6)), cases.parameters(5)
    theirs = [torch.from_numpy(v.copy()) for v in (mean, var, gamma, beta)]
    y = torch.nn.functional.batch_norm(torch.from_numpy(x), *theirs, training=training, momentum=0.2, eps=1e-4)
    got = nbbn.batch_norm(x, mean, var, gamma, beta, training=training, momentum=0.2, eps=1e-4)
    assert_close(got, y, np.float32)
    assert_close(mean, theirs[0], np.float32)
    assert_close(var, theirs[1], np.float32)


TENSORS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "slice": lambda t: torch.cat([t, t], dim=3)[..., ::2].contiguous()[..., : t.shape[3]],
    "expanded": lambda t: t[:1].expand(t.shape),
}


@by_dtype
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_a_tensor_is_read_without_conversion_by_the_caller(make, dtype):
    tensor = make(torch.from_numpy(cases.values((4, 5, 6, 6), dtype)))
    x = np.array(tensor.numpy())
    gamma, beta, mean, var = cases.parameters(5)
    tensors = [torch.from_numpy(v) for v in (mean, var, gamma, beta)]
    assert_same_bits(nbbn.normalize(tensor, *tensors), nbbn.normalize(x, mean, var, gamma, beta))
    ours, theirs = nbbn.BatchNorm(5), nbbn.BatchNorm(5)
    assert_same_bits(ours(tensor), theirs(x))
    assert_same_bits(ours.backward(tensor), theirs.backward(x))
    assert_same_bits(ours.running_var, theirs.running_var)
    assert_same_bits(nbbn.batch_moments(tensor).m2, nbbn.batch_moments(x).m2)


def test_running_statistics_given_as_tensors_are_updated_in_place():
    x = cases.values((6, 5))
    mean, var = torch.zeros(5), torch.ones(5)
    expected = np.zeros(5, np.float32), np.ones(5, np.float32)
    nbbn.batch_norm(torch.from_numpy(x), mean, var, training=True)
    nbbn.batch_norm(x, *expected, training=True)
    assert_same_bits(mean.numpy(), expected[0])
    assert_same_bits(var.numpy(), expected[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool], ids=str)
def test_a_tensor_of_another_type_is_refused(dtype):
    with pytest.raises(TypeError, match=str(dtype).removeprefix("torch.")):
        nbbn.BatchNorm(5)(torch.ones((4, 5), dtype=dtype))
