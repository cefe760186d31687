"""Activation and residual in the same pass: against the oracle, finite differences, torch; overlaps and errors."""

import warnings

import cases
import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, eps_of

import nbbn

ACTIVATIONS = (None, "relu", "relu6", "leaky_relu", "hard_swish", "silu", "mish", "prelu")
SLOPE = 0.2
SHAPES = {
    "matrix": ((37, 21), 1),
    "narrow": ((75, 3), 1),
    "images": ((3, 5, 7, 9), 1),
    "small images": ((6, 40, 7, 7), 1),
    "tiny images": ((6, 12, 2, 3), 1),
    "channels last": ((3, 6, 5, 18), 3),
    "one channel": ((2, 1, 6, 8), 1),
    "large": ((4, 24, 40, 41), 1),
    "large matrix": ((2600, 70), 1),
}
# Each activation makes variants of all kernels: of most of them only where there is time, of some only interpreted;
# test_combinations.py compiles these with masks.
INTERPRETED = ("relu6", "hard_swish", "mish")
LONG = dict.fromkeys(ACTIVATIONS[2:], pytest.mark.long)
LONG |= dict.fromkeys(INTERPRETED, pytest.mark.interpreted)
by_activation = pytest.mark.parametrize(
    "activation", [pytest.param(name, marks=LONG.get(name, ())) for name in ACTIVATIONS]
)
# What starts threads is numba's and knows nothing of a formula: so few have their parallel twins compiled, and
# few have other types, those that test_combinations.py compiles, too.
IN_PARALLEL = (None, "relu", "silu", "prelu")  # prelu sums its slope, too
OF_ANY_TYPE = (None, "leaky_relu")
HALF_INTERPRETED = [name for name in ACTIVATIONS if name not in OF_ANY_TYPE]
in_parallel = pytest.mark.parametrize(
    "activation", [pytest.param(name, marks=LONG.get(name, ())) for name in IN_PARALLEL]
)
LAYOUTS = (
    ("c", "c"),
    ("c", "fortran"),
    ("strided", "c"),
    ("channels_last_memory", "strided"),
    ("reversed_all", "c"),
    ("c", "unaligned"),
)


def activated(z, activation):
    return reference.activation(z, activation, SLOPE)


def layer(channels, axis, activation, dtype=np.float32, **options):
    bn = nbbn.BatchNorm(channels, axis=axis, activation=activation, negative_slope=SLOPE, dtype=dtype, **options)
    gamma, beta, mean, var = cases.parameters(channels, dtype)
    if activation == "prelu":
        bn.slope[:] = SLOPE
    bn.gamma[:], bn.beta[:] = 3 * gamma, beta
    bn.running_mean[:], bn.running_var[:] = mean, var
    return bn


def data(shape, dtype=np.float32, layout="c", seed=0, **keywords):
    return cases.LAYOUTS[layout](cases.values(shape, dtype, seed=seed, **keywords))


def exact(x, bn, axis, residual, training):
    """(affine(x) + residual) in float64 and the size of its terms, for an error bound."""
    if training:
        found = reference.training(x, bn.gamma, bn.beta, eps=bn.eps, axis=axis)
    else:
        statistics = bn.running_mean, bn.running_var, bn.gamma, bn.beta
        found = reference.inference(x, *statistics, eps=bn.eps, axis=axis)
    gamma, beta = (reference.along(v, x.ndim, axis) for v in (bn.gamma, bn.beta))
    size = np.abs(found.xhat * gamma) + np.abs(beta)
    if residual is None:
        return found.y, size
    return found.y + residual.astype(np.float64), size + np.abs(residual)


def combinations():
    """Every activation with every shape and with every layout, not all three with each other."""
    for k, activation in enumerate(ACTIVATIONS):
        for j, (name, (shape, axis)) in enumerate(SHAPES.items()):
            if name.startswith("large") and activation not in IN_PARALLEL:
                continue
            if name == "small images" and activation in INTERPRETED:  # not so small then
                continue
            of_x, of_residual = LAYOUTS[(j + k) % len(LAYOUTS)]
            yield pytest.param(
                activation,
                shape,
                axis,
                of_x,
                of_residual,
                id=f"{activation}-{name}-{of_x}-{of_residual}",
                marks=LONG.get(activation, ()),
            )


by_combination = pytest.mark.parametrize(("activation", "shape", "axis", "of_x", "of_residual"), list(combinations()))


@by_combination
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_forward_is_the_definition(activation, shape, axis, of_x, of_residual, with_residual, training):
    x = data(shape, layout=of_x)
    residual = data(shape, layout=of_residual, seed=5, scale=3.0) if with_residual else None
    bn = layer(shape[axis], axis, activation)
    z, size = exact(x, bn, axis, residual, training)
    y = bn(x, training=training, residual=residual)
    # hard swish grows with slope up to 1.5, so do errors
    assert_within(y, activated(z, activation)[0], 12 * eps_of(np.float32) * size)
    out = np.full_like(x, 777)
    bn2 = layer(shape[axis], axis, activation)
    assert bn2(x, training=training, residual=residual, out=out) is out
    assert_same_bits(out, y)


@pytest.mark.parametrize(
    ("activation", "dtype"),
    [
        *(pytest.param(name, np.float32, marks=LONG.get(name, ())) for name in ACTIVATIONS),
        *(pytest.param(name, np.float64, marks=pytest.mark.long) for name in OF_ANY_TYPE),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_functions_are_the_layer(activation, dtype, training):
    x, residual = data((5, 6, 4, 7), dtype), data((5, 6, 4, 7), dtype, seed=3)
    bn = layer(6, 1, activation, dtype)
    options = {"residual": residual, "activation": activation, "negative_slope": SLOPE}
    statistics = bn.running_mean.copy(), bn.running_var.copy()
    expected = bn(x, training=training, residual=residual)
    found = nbbn.batch_norm(x, *statistics, bn.gamma, bn.beta, training=training, **options)
    assert_same_bits(found, expected)
    if not training:
        assert_same_bits(nbbn.normalize(x, *statistics, bn.gamma, bn.beta, **options), expected)


def numeric_gradient(f, array, grad_y, step):
    """d sum(grad_y * f()) / d array by central differences."""
    found = np.zeros_like(array)
    for k in np.ndindex(array.shape):
        kept = array[k]
        array[k] = kept + step
        above = (grad_y * f()).sum()
        array[k] = kept - step
        below = (grad_y * f()).sum()
        array[k] = kept
        found[k] = (above - below) / (2 * step)
    return found


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_derivatives_of_the_oracle_are_those_of_finite_differences(activation):
    z = np.linspace(-9.0, 9.0, 301)[1:-1]  # no kink at any of them
    z = z[(np.abs(z[:, None] - [-3.0, 0.0, 3.0, 6.0]) > 1e-3).all(axis=1)]
    above, below = (activated(z + step, activation)[0] for step in (1e-5, -1e-5))
    assert_within(activated(z, activation)[1], (above - below) / 2e-5, 1e-8)


@pytest.mark.parametrize("activation", OF_ANY_TYPE)
@pytest.mark.parametrize("with_residual", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 4), 1), ((9, 4), 1), ((3, 2, 5, 2), 3)])
@pytest.mark.long
def test_gradients_are_those_of_finite_differences(activation, with_residual, training, shape, axis):
    x = data(shape, np.float64)
    residual = data(shape, np.float64, seed=7, scale=2.0) if with_residual else None
    grad_y = data(shape, np.float64, seed=8)
    bn = layer(shape[axis], axis, activation, np.float64, momentum=0.0)

    def forward():
        return bn(x, training=training, residual=residual)

    forward()
    grad_x = bn.backward(grad_y)
    gradients = {"gamma": bn.grad_gamma, "beta": bn.grad_beta}
    if activation == "prelu":
        gradients["slope"] = bn.grad_slope
    grad_residual = bn.grad_residual
    close = {"rtol": 1e-5, "atol": 1e-7}
    np.testing.assert_allclose(grad_x, numeric_gradient(forward, x, grad_y, 1e-6), **close)
    for name, gradient in gradients.items():
        array = getattr(bn, name)
        np.testing.assert_allclose(gradient, numeric_gradient(forward, array, grad_y, 1e-6), **close)
    if with_residual:
        expected = numeric_gradient(forward, residual, grad_y, 1e-6)
        np.testing.assert_allclose(grad_residual, expected, **close)
    else:
        assert grad_residual is None


@by_combination
def test_gradients_of_every_layout(activation, shape, axis, of_x, of_residual):
    """The gradient before the activation, put through the unfused backward, bit for bit."""
    x, residual = data(shape, layout=of_x), data(shape, layout=of_residual, seed=5, scale=3.0)
    grad_y = data(shape, seed=6)
    bn = layer(shape[axis], axis, activation, momentum=0.0)
    plain = layer(shape[axis], axis, None, momentum=0.0)
    for training in (True, False):
        bn(x, training=training, residual=residual)
        grad_x = bn.backward(grad_y)
        z = plain(x, training=training, residual=residual)
        before = (grad_y * activated(z.astype(np.float64), activation)[1]).astype(np.float32)
        assert_within(bn.grad_residual, before, 4 * eps_of(np.float32) * np.abs(grad_y))
        plain(x, training=training)
        assert_same_bits(grad_x, plain.backward(bn.grad_residual))
        assert_same_bits(bn.grad_gamma, plain.grad_gamma)
        assert_same_bits(bn.grad_beta, plain.grad_beta)


@in_parallel
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", ["large", "large matrix"])
def test_any_number_of_threads_gives_the_same_bits(activation, threads, name):
    shape, axis = SHAPES[name]
    x, residual, grad_y = data(shape), data(shape, seed=1), data(shape, seed=2)
    found = []
    for count in (1, threads):
        bn = layer(shape[axis], axis, activation)
        with nbbn.num_threads(count):
            y = bn(x, residual=residual)
            found.append((y, bn.backward(grad_y), bn.grad_residual, bn.eval()(x, residual=residual)))
    for one, other in zip(*found, strict=True):
        assert_same_bits(one, other)


@in_parallel
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(6, 5), (3, 5, 6, 7), (8, 5, 70, 70)])
def test_every_overlap_gives_the_result_of_separate_arrays(activation, training, shape):
    x, residual = data(shape), data(shape, seed=1)
    expected = layer(5, 1, activation)(x, training=training, residual=residual)
    same = layer(5, 1, activation)(x, training=training, residual=x)
    for array in ("x", "residual"):
        inputs = {"x": x.copy(), "residual": residual.copy()}
        bn = layer(5, 1, activation)
        out = inputs[array]
        bn(inputs["x"], training=training, residual=inputs["residual"], out=out)
        assert_same_bits(out, expected)
    alias = x.copy()
    layer(5, 1, activation)(alias, training=training, residual=alias, out=alias)
    assert_same_bits(alias, same)
    # out a few values behind x, and behind the residual, in one buffer
    for first, second in ((x, residual), (residual, x)):
        buffer = np.empty(x.size + 3, np.float32)
        early, late = buffer[: x.size].reshape(shape), buffer[3:].reshape(shape)
        early[...] = first
        arguments = (early, second) if first is x else (second, early)
        bn = layer(5, 1, activation)
        bn(arguments[0], training=training, residual=arguments[1], out=late)
        assert_same_bits(late, expected)


@by_activation
def test_backward_into_the_gradient_itself(activation):
    x, residual, grad_y = data((6, 5, 4)), data((6, 5, 4), seed=1), data((6, 5, 4), seed=2)
    bn = layer(5, 1, activation)
    bn(x, residual=residual)
    expected, of_residual = bn.backward(grad_y), bn.grad_residual.copy()
    for out in (grad_y.copy(), x.copy()):
        into = out
        given = into if out is not x else grad_y
        bn.backward(given if np.array_equal(given, grad_y) else grad_y, out=into)
        assert_same_bits(into, expected)
        assert_same_bits(bn.grad_residual, of_residual)
    bn(x)
    bn.backward(grad_y)
    assert bn.grad_residual is None


@pytest.mark.parametrize(
    ("activation", "half"),
    [
        *(pytest.param(name, False, marks=LONG.get(name, ())) for name in ACTIVATIONS),
        *(pytest.param(name, True, marks=pytest.mark.long) for name in OF_ANY_TYPE),
        *(pytest.param(name, True, marks=pytest.mark.interpreted) for name in HALF_INTERPRETED),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_backward_into_the_memory_of_the_input(activation, training, half):
    dtype = np.float16 if half else np.float32
    for shape in ((8, 5), (4, 5, 6, 6), (3, 5, 2)):
        grad_y = data(shape, dtype, seed=2)
        for view in (lambda a: a, lambda a: a[::-1]):
            for residual in (None, data(shape, dtype, seed=3)):
                memory = data(shape, dtype)
                bn = layer(5, 1, activation)
                bn(view(memory), training=training, residual=residual)
                expected = bn.backward(grad_y), bn.grad_gamma, bn.grad_beta, bn.grad_residual
                grad_x = bn.backward(grad_y, out=memory)
                found = grad_x, bn.grad_gamma, bn.grad_beta, bn.grad_residual
                for one, other in zip(found, expected, strict=True):
                    if other is not None:
                        assert_same_bits(one, other)


def test_a_residual_reshaped_after_the_forward_is_still_the_one_of_backward():
    x, residual, grad_y = data((8, 4)), data((8, 4), seed=1), data((8, 4), seed=2)
    bn = layer(4, 1, "relu")
    for training in (True, False):
        added = residual.copy()
        bn(x, training=training, residual=added)
        expected = bn.backward(grad_y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            added.shape = (4, 8)
        assert_same_bits(bn.backward(grad_y), expected)


@pytest.mark.parametrize("which", ["x", "residual"])
def test_an_overwritten_input_is_noticed(which):
    arrays = {"x": data((6, 5)), "residual": data((6, 5), seed=1)}
    bn = layer(5, 1, "relu")
    bn(arrays["x"], residual=arrays["residual"])
    arrays[which][2, 3] += 1
    with pytest.raises(RuntimeError, match=r"backward: expected the .* unchanged"):
        bn.backward(np.ones((6, 5), np.float32))
    bn(arrays["x"], residual=arrays["residual"], out=arrays[which])
    with pytest.raises(RuntimeError, match=r"backward: expected the .* unchanged"):
        bn.backward(np.ones((6, 5), np.float32))


@by_activation
def test_nan_and_infinities(activation):
    x = np.array([[np.nan], [np.inf], [-np.inf], [1.0], [-1.0]], np.float32)
    z = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        expected = activated(z, activation)[0]
    y = nbbn.normalize(x, np.zeros(1), np.ones(1), eps=0.0, activation=activation, negative_slope=SLOPE)
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    bn = layer(1, 1, activation)
    bn.running_mean[:], bn.running_var[:], bn.eps, bn.gamma[:], bn.beta[:] = 0, 1, 0, 1, 0
    bn(x, training=False)
    grad_x = bn.backward(np.ones_like(x))
    nan = np.nan
    through = {"relu6": 0.0, "leaky_relu": SLOPE, "prelu": SLOPE, "silu": nan, "mish": nan}
    through = through.get(activation, 1.0)
    np.testing.assert_allclose(grad_x[0, 0], through, rtol=1e-6)  # as in PyTorch
    np.testing.assert_allclose(grad_x[3:], reference.activation(x[3:], activation, SLOPE)[1], rtol=1e-6)


def test_nothing_is_computed_of_nothing():
    bn = layer(4, 1, "relu")
    empty = np.empty((0, 4), np.float32)
    assert bn(empty, residual=empty).shape == (0, 4)
    assert bn.backward(empty).shape == (0, 4)


BAD = {
    "shape": (
        {"residual": np.zeros((5, 4), np.float32)},
        ValueError,
        r"residual: expected shape \(6, 5\)",
    ),
    "dtype": ({"residual": np.zeros((6, 5))}, TypeError, "residual: expected dtype float32"),
    "kind": ({"residual": "text"}, TypeError, "residual: expected"),
    "masked": ({"residual": np.ma.ones((6, 5), np.float32)}, TypeError, "residual: .*masked array"),
}


@pytest.mark.parametrize(("arguments", "error", "sentence"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("training", [True, False])
def test_a_wrong_residual_is_refused_before_anything_is_written(arguments, error, sentence, training):
    bn, x, out = layer(5, 1, "relu"), data((6, 5)), np.full((6, 5), 777, np.float32)
    before = bn.state_dict()
    with pytest.raises(error, match=f"^{sentence}"):
        bn(x, training=training, out=out, **arguments)
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.normalize(x, bn.running_mean, bn.running_var, out=out, **arguments)
    assert (out == 777).all()
    for name, value in before.items():
        np.testing.assert_array_equal(value, bn.state_dict()[name])


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        (
            {"activation": "gelu"},
            ValueError,
            "activation: expected 'relu', 'relu6', .* or 'prelu', got 'gelu'",
        ),
        ({"activation": 3}, TypeError, "activation: expected"),
        ({"negative_slope": np.nan}, ValueError, "negative_slope: expected a finite number"),
        ({"negative_slope": "steep"}, TypeError, "negative_slope: expected a finite number"),
    ],
)
def test_wrong_options_are_refused(options, error, sentence):
    x = data((6, 5))
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.BatchNorm(5, **options)
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.normalize(x, np.zeros(5), np.ones(5), **options)
    with pytest.raises(error, match=f"^{sentence}"):
        nbbn.batch_norm(x, None, None, training=True, **options)


def test_the_activation_may_be_set_later():
    x, bn = data((6, 5)), layer(5, 1, None)
    bn.activation, bn.negative_slope = "leaky_relu", 0.5
    other = layer(5, 1, "leaky_relu")
    other.negative_slope = 0.5
    for residual in (None, x):
        for training in (False, True):
            assert_same_bits(
                bn(x, training=training, residual=residual),
                other(x, training=training, residual=residual),
            )
    bn.activation = None
    assert_same_bits(bn(x, training=False), bn.freeze()(x))


def test_the_options_are_kept(tmp_path):
    bn = nbbn.BatchNorm(3, activation="leaky_relu", negative_slope=0.3)
    assert repr(bn) == "BatchNorm(3, activation='leaky_relu', negative_slope=0.3, training)"
    bn.save(tmp_path / "bn.npz")
    loaded = nbbn.BatchNorm.load(tmp_path / "bn.npz")
    assert (loaded.activation, loaded.negative_slope) == ("leaky_relu", 0.3)


@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.long
def test_torch_agrees(activation, training):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    functions = {
        "relu": torch.nn.functional.relu,
        "relu6": torch.nn.functional.relu6,
        "leaky_relu": lambda z: torch.nn.functional.leaky_relu(z, SLOPE),
        "hard_swish": torch.nn.functional.hardswish,
        "silu": torch.nn.functional.silu,
        "mish": torch.nn.functional.mish,
        "prelu": lambda z: torch.nn.functional.prelu(z, slope),
    }
    slope = torch.full((6,), SLOPE, requires_grad=True)
    shape = (4, 6, 5, 7)
    x, residual, grad_y = (
        data(shape, scale=2.0),
        data(shape, seed=1, scale=3.0),
        data(shape, seed=2),
    )
    bn = layer(6, 1, activation)
    theirs = torch.nn.BatchNorm2d(6).train(training)
    state = {
        "weight": bn.gamma, "bias": bn.beta, "running_mean": bn.running_mean, "running_var": bn.running_var,
    }  # fmt: skip
    theirs.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()}, strict=False)
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, residual)]
    expected = functions[activation](theirs(tensors[0]) + tensors[1])
    expected.backward(torch.from_numpy(grad_y))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(bn(x, training=training, residual=residual), expected.detach(), **close)
    np.testing.assert_allclose(bn.backward(grad_y), tensors[0].grad, **close)
    np.testing.assert_allclose(bn.grad_residual, tensors[1].grad, **close)
    np.testing.assert_allclose(bn.grad_gamma, theirs.weight.grad, **close)
    np.testing.assert_allclose(bn.grad_beta, theirs.bias.grad, **close)
    if activation == "prelu":
        np.testing.assert_allclose(bn.grad_slope, slope.grad, **close)
