"""Folding into linear layers and convolutions: what they then compute is what layer and normalization did."""

from types import SimpleNamespace

import cases
import ml_dtypes
import numpy as np
import pytest
from compare import assert_same_bits, assert_within, eps_of, layer
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn
from nbbn.layer.folding import fold_conv, fold_linear

FLOATS = ("float16", "bfloat16", "float32", "float64")
by_float = pytest.mark.parametrize("name", FLOATS)


def dtype_of(name):
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def spacing(name):
    return float(ml_dtypes.finfo(dtype_of(name)).eps)


def values(shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(0, 1, shape).astype(dtype)


def bn_of(count, seed=1, **options):
    """An inference layer whose gamma has both signs, and 0."""
    bn = layer(count, seed=seed, **{"dtype": np.float64, **options}).eval()
    if bn.gamma is not None:
        bn.gamma[::2] *= -1
        bn.gamma[count // 2] = 0
    return bn


def frozen(bn):
    """The same layer by its inference form, as a frozen one has it."""
    scale = 1 / np.sqrt(bn.running_var + bn.eps)
    scale = scale if bn.gamma is None else scale * bn.gamma
    shift = np.zeros(bn.num_features) if bn.beta is None else bn.beta.copy()
    return SimpleNamespace(center=bn.running_mean.copy(), scale=scale, shift=shift, activation=None)


def convolution(torch, weight, *, transposed, groups, bias=None):
    """The function of a batch that torch's convolution with this weight is."""
    name = f"conv{'_transpose' if transposed else ''}{weight.ndim - 2}d"
    function = getattr(torch.nn.functional, name)
    tensors = [None if v is None else torch.from_numpy(v) for v in (weight, bias)]
    return lambda x: function(torch.from_numpy(x), *tensors, groups=groups, padding=1).numpy()


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")


OPTIONS = ({}, {"scale": False}, {"center": False}, {"scale": False, "center": False}, {"eps": 0.1})


@pytest.mark.parametrize("form", [lambda bn: bn, frozen], ids=["BatchNorm", "frozen"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("options", OPTIONS, ids=cases.case_id)
def test_a_linear_layer_does_both(options, with_bias, form):
    bn, weight, x = bn_of(7, **options), values((7, 5)), values((40, 5), 2)
    bias = values(7, 3) if with_bias else None
    folded, offset = fold_linear(weight, bias, form(bn))
    expected = bn(x @ weight.T + (0 if bias is None else bias))
    np.testing.assert_allclose(x @ folded.T + offset, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_a_convolution_does_both(torch, spatial, transposed, groups, with_bias):
    inputs, outputs = 8, 12
    pair = (inputs, outputs // groups) if transposed else (outputs, inputs // groups)
    weight, bn = values((*pair, *(3, 2, 4)[:spatial])), bn_of(outputs)
    bias = values(outputs, 3) if with_bias else None
    how = {"transposed": transposed, "groups": groups}
    folded, offset = fold_conv(weight, bias, bn, **how)
    x = values((3, inputs, *(7, 6, 5)[:spatial]), 2)
    expected = bn(convolution(torch, weight, **how, bias=bias)(x))
    actual = convolution(torch, folded, **how, bias=offset)(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def modules(torch, bn, weight, bias):
    """The arguments of torch's own folding."""
    running = torch.from_numpy(bn.running_mean), torch.from_numpy(bn.running_var)
    first = torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)
    return *first, *running, bn.eps, torch.from_numpy(bn.gamma), torch.from_numpy(bn.beta)


@pytest.mark.parametrize("with_bias", [True, False])
def test_torch_folds_to_the_same_numbers(torch, with_bias):
    from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

    bn, bias = bn_of(6), values(6, 3) if with_bias else None
    square, kernel = values((6, 4)), values((6, 4, 3, 3))
    turned = np.ascontiguousarray(kernel.swapaxes(0, 1))
    for ours, theirs in (
        (fold_linear(square, bias, bn), fuse_linear_bn_weights(*modules(torch, bn, square, bias))),
        (fold_conv(kernel, bias, bn), fuse_conv_bn_weights(*modules(torch, bn, kernel, bias))),
        (
            fold_conv(turned, bias, bn, transposed=True),
            fuse_conv_bn_weights(*modules(torch, bn, turned, bias), transpose=True),
        ),
    ):
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine, other.detach().numpy(), rtol=1e-14, atol=1e-15)


bounded = settings(max_examples=min(150, settings.default.max_examples))


@bounded
@given(
    st.tuples(*[st.integers(1, 4)] * 3),
    st.lists(st.integers(1, 3), max_size=3),
    st.booleans(),
    st.booleans(),
    st.sampled_from(FLOATS),
    st.sampled_from(FLOATS),
    st.integers(0, 2**32 - 1),
)
def test_any_kernel(sizes, spatial, transposed, with_bias, name, bias_name, seed):
    """Within one rounding of the numbers that a loop over the channels gives in float64."""
    groups, inputs, outputs = sizes
    count = groups * outputs
    pair = (groups * inputs, outputs) if transposed else (count, inputs)
    weight = values((*pair, *spatial), seed).astype(dtype_of(name))
    bias = values(count, seed + 1).astype(dtype_of(bias_name)) if with_bias else None
    bn = bn_of(count, seed=seed)
    how = {"transposed": transposed, "groups": groups}
    folded, offset = fold_conv(weight, bias, bn, **how)
    scale, exact = frozen(bn).scale, weight.astype(np.float64)
    for channel in range(count):
        if transposed:
            group, own = divmod(channel, outputs)
            exact[group * inputs : (group + 1) * inputs, own] *= scale[channel]
        else:
            exact[channel] *= scale[channel]
    assert folded.dtype == offset.dtype == weight.dtype
    assert folded.flags.c_contiguous
    tiny = float(ml_dtypes.finfo(weight.dtype).smallest_normal)
    rounding = spacing(name) * np.abs(exact) + tiny
    assert_within(folded.astype(np.float64), exact, 0.5 * rounding + 1e-15 * np.abs(exact))
    before = -bn.running_mean if bias is None else bias.astype(np.float64) - bn.running_mean
    size = np.abs(before * scale) + np.abs(bn.beta)
    steps = 0.5 * spacing(name) + 4 * eps_of(np.float64)
    assert_within(offset.astype(np.float64), before * scale + bn.beta, steps * size + tiny)


@by_float
def test_the_results_are_new_and_the_arguments_as_they_were(name):
    bn, weight, bias = bn_of(3), values((3, 2)).astype(dtype_of(name)), values(3).astype(name)
    before = weight.copy(), bias.copy(), bn.state_dict()
    for folded, offset in (fold_linear(weight, bias, bn), fold_conv(weight, bias, bn)):
        assert not np.shares_memory(folded, weight)
        assert not np.shares_memory(offset, bias)
        folded[:], offset[:] = 7, 7
    assert_same_bits(weight, before[0])
    assert_same_bits(bias, before[1])
    for key, value in bn.state_dict().items():
        assert_same_bits(value, before[2][key])


def test_folding_with_nothing_to_do_still_copies():
    form = SimpleNamespace(center=np.zeros(3), scale=np.ones(3), shift=np.zeros(3))
    weight, bias = values((3, 2)), values(3)
    folded, offset = fold_linear(weight, bias, form)
    assert_same_bits(folded, weight)
    assert_same_bits(offset, bias)
    assert not np.shares_memory(folded, weight)
    assert not np.shares_memory(offset, bias)


@pytest.mark.parametrize("layout", sorted(cases.KEEPING))
def test_any_memory_order_gives_c_order(layout):
    weight = values((4, 3, 2, 5))
    expected = fold_conv(weight, None, bn_of(4))[0]
    turned = fold_conv(weight, None, bn_of(6), transposed=True, groups=2)[0]
    laid_out = cases.LAYOUTS[layout](weight)
    for actual, same in (
        (fold_conv(laid_out, None, bn_of(4))[0], expected),
        (fold_conv(laid_out, None, bn_of(6), transposed=True, groups=2)[0], turned),
    ):
        assert actual.flags.c_contiguous
        assert_same_bits(actual, same)


def test_rounded_once():
    """float32 steps in between would give other numbers."""
    bn = bn_of(64, dtype=np.float32)
    weight, bias = values((64, 50), dtype=np.float32), values(64, 3, np.float32)
    exact = frozen(SimpleNamespace(**vars_of(bn)))
    folded, offset = fold_linear(weight, bias, bn)
    np.testing.assert_array_equal(folded, (weight * exact.scale[:, None]).astype(np.float32))
    expected = (bias - exact.center) * exact.scale + exact.shift
    np.testing.assert_array_equal(offset, expected.astype(np.float32))


def vars_of(bn):
    """What the inference form is made of, in float64."""
    names = ("running_mean", "running_var", "gamma", "beta")
    arrays = {name: getattr(bn, name).astype(np.float64) for name in names}
    return {**arrays, "eps": bn.eps, "num_features": bn.num_features}


@by_float
def test_what_would_be_subnormal_is_zero(name):
    dtype = dtype_of(name)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    weight = np.array([[tiny, 2 * tiny, -tiny, -2 * tiny, 1.0]] * 2).astype(dtype)
    form = SimpleNamespace(center=np.zeros(2), scale=np.array([0.5, 1.0]), shift=np.array([tiny / 2, tiny]))
    folded, offset = fold_linear(weight, None, form)
    expected = np.array([[0, tiny, 0, -tiny, 0.5], [tiny, 2 * tiny, -tiny, -2 * tiny, 1]])
    np.testing.assert_array_equal(folded.astype(np.float64), expected)
    np.testing.assert_array_equal(offset.astype(np.float64), [0, tiny])


@by_float
def test_a_number_just_below_the_smallest_normal_one_rounds_to_it(name):
    dtype = dtype_of(name)
    tiny = float(ml_dtypes.finfo(dtype).smallest_normal)
    below = tiny * (1 - spacing(name) / 8)
    form = SimpleNamespace(center=np.zeros(1), scale=np.array([below]), shift=np.zeros(1))
    folded, _ = fold_linear(np.ones((1, 1)).astype(dtype), None, form)
    assert float(folded[0, 0]) == tiny


def test_the_fold_of_zero_gamma_is_beta():
    bn = bn_of(3)
    bn.gamma[:] = 0
    folded, offset = fold_linear(values((3, 4)), values(3), bn)
    np.testing.assert_array_equal(folded, 0)
    np.testing.assert_array_equal(offset, bn.beta)


def test_nan_and_infinity_stay_in_their_channel():
    bn, weight = bn_of(4, eps=0.0), values((4, 3))
    bn.gamma[:], bn.gamma[1], bn.running_mean[2] = 1, np.inf, np.nan
    weight[1, 0] = 0
    folded, offset = fold_linear(weight, np.ones(4), bn)
    assert np.isnan(folded[1, 0])
    assert np.isinf(folded[1, 1:]).all()
    assert np.isfinite(folded[[0, 2, 3]]).all()
    np.testing.assert_array_equal(np.isfinite(offset), [True, False, False, True])


@pytest.mark.parametrize(("name", "large"), [("float16", 60000.0), ("bfloat16", 3e38), ("float32", 3e38)])
def test_results_out_of_range_are_refused(name, large):
    form = SimpleNamespace(center=np.zeros(1), scale=np.array([2.0]), shift=np.zeros(1))
    big, one = np.array([[large]]).astype(dtype_of(name)), np.array([[1.0]]).astype(dtype_of(name))
    with pytest.raises(ValueError, match=f"weight: expected .* in the range of {name}, got"):
        fold_linear(big, None, form)
    with pytest.raises(ValueError, match=f"bias: expected .* in the range of {name}, got"):
        fold_linear(one, big[0], form)


@pytest.mark.parametrize("fold", [fold_linear, fold_conv])
def test_layers_that_no_linear_map_can_hold_are_refused(fold):
    weight = values((3, 2))
    with pytest.raises(ValueError, match=r"bn: .* running statistics, got track_running_stats="):
        fold(weight, None, nbbn.BatchNorm(3, track_running_stats=False))
    form = frozen(bn_of(3))
    form.activation = "relu"
    with pytest.raises(ValueError, match=r"bn: expected .* without an activation, .* got 'relu'"):
        fold(weight, None, form)
    for other in (None, 3, object(), {"gamma": np.ones(3)}):
        with pytest.raises(TypeError, match=r"bn: expected a BatchNorm or FrozenBatchNorm, got"):
            fold(weight, None, other)
    with pytest.raises(ValueError, match=r"bn: expected 3 channels, .* got 4"):
        fold(weight, None, bn_of(4))


@pytest.mark.parametrize("fold", [fold_linear, fold_conv])
def test_other_types_are_refused(fold):
    bn, weight = bn_of(3), values((3, 2))
    for wrong in (np.ones((3, 2), int), np.ones((3, 2), complex), weight.astype(">f4"), "abc"):
        with pytest.raises(TypeError, match=r"weight: expected dtype float16, bfloat16, .* got"):
            fold(wrong, None, bn)
        with pytest.raises(TypeError, match=r"bias: expected dtype float16, bfloat16, .* got"):
            fold(weight, wrong, bn)
    with pytest.raises(TypeError, match=r"weight: expected a plain array .* masked"):
        fold(np.ma.masked_array(weight), None, bn)
    with pytest.raises(TypeError, match=r"bias: expected an array of .* got builtins\.list"):
        fold(weight, [[1.0], [1.0, 2.0]], bn)


def test_other_shapes_are_refused():
    bn = bn_of(6)
    for shape in ((6,), (6, 2, 3), ()):
        with pytest.raises(ValueError, match=r"weight: expected shape \(out, in\), got"):
            fold_linear(np.ones(shape), None, bn)
    for transposed, pair in ((False, "out, in/groups"), (True, "in, out/groups")):
        with pytest.raises(ValueError, match=rf"weight: expected shape \({pair}, \.\.\.\), got"):
            fold_conv(np.ones(6), None, bn, transposed=transposed)
    for shape in ((5,), (1,), (6, 1), ()):
        with pytest.raises(ValueError, match=r"bias: expected shape \(6,\), .* got"):
            fold_conv(np.ones((6, 2, 3)), np.ones(shape), bn)
    with pytest.raises(ValueError, match=r"groups: expected a divisor of 6, the output .* got 4"):
        fold_conv(np.ones((6, 2, 3)), None, bn, groups=4)
    with pytest.raises(ValueError, match=r"groups: expected a divisor of 8, the input .* got 3"):
        fold_conv(np.ones((8, 2, 3)), None, bn, groups=3, transposed=True)
    with pytest.raises(ValueError, match=r"bn: expected 4 channels, .* got 6"):
        fold_conv(np.ones((8, 2, 3)), None, bn, groups=2, transposed=True)
    for wrong, error in ((0, ValueError), (1.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match="groups: expected an integer >= 1, got"):
            fold_conv(np.ones((6, 2, 3)), None, bn, groups=wrong)
    with pytest.raises(TypeError, match="transposed: expected True or False, got 1"):
        fold_conv(np.ones((6, 2, 3)), None, bn, transposed=1)


def test_what_was_folded_does_not_change_with_the_layer():
    bn, weight = bn_of(3), values((3, 2))
    folded, offset = fold_linear(weight, None, bn)
    before = folded.copy(), offset.copy()
    bn(values((10, 3)) * 5, training=True)
    assert_same_bits(folded, before[0])
    assert_same_bits(offset, before[1])
    assert eps_of(folded.dtype) < np.abs(folded - fold_linear(weight, None, bn)[0]).max()


def test_bfloat16_is_rounded_once():
    """Just above the middle of two values: by way of float32, which drops the rest, it would be a tie."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed: no bfloat16")
    rng = np.random.default_rng(0)
    middle = 1 + (2 * rng.integers(0, 127, 50) + 1) * 2.0**-8
    exact = middle + rng.choice([-1, 1], 50) * 2.0**-40
    frozen = nbbn.FrozenBatchNorm(np.zeros(50), exact, np.zeros(50))
    folded, _ = nbbn.fold_linear(np.ones((50, 1), ml_dtypes.bfloat16), None, frozen)
    nearest = np.round(exact * 2**7) / 2**7  # seven bits behind the point, and no tie
    np.testing.assert_array_equal(folded[:, 0].astype(np.float64), nearest)
