"""Arguments drawn at random, some of them spoiled: the right result, or one clear error and nothing written.

Every argument is drawn as one that the contract accepts, but for one that is spoiled on purpose, or none. With none
spoiled the call must succeed and agree with the oracle; else the error must begin with the name of the spoiled one.
"""

import re

import numpy as np
import pytest
import reference
from arguments import (
    NO_ARRAYS,
    NO_INTEGERS,
    NO_NUMBERS,
    OPTIONS,
    OTHER_SHAPES,
    Hostile,
    axes,
    dtypes,
    flags,
    inputs,
    laid_out,
    no_dtypes,
    options,
    outs,
    reals,
    running,
    shapes,
    vectors,
)
from compare import (
    assert_forward,
    assert_gradients,
    assert_running,
    assert_same_bits,
    assert_within,
    layer,
    mean_error,
    snapshot,
    var_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import nbbn

bounded = settings(max_examples=min(80, settings.default.max_examples))


def spoiling(*names):
    """Parametrizes a test with the arguments to spoil: none, and each of them."""
    return pytest.mark.parametrize("bad", [set(), *({name} for name in names)], ids=("none", *names))


STATE = ("x", "running_mean", "running_var")
CONSTRUCTOR = ("num_features", "axis", *OPTIONS, "scale", "center", "track_running_stats", "dtype")


def memory(values):
    """The bytes of all the memory that arrays among the values see."""
    found = {}
    for value in values:
        root = value
        while isinstance(root, np.ndarray) and isinstance(root.base, np.ndarray):
            root = root.base
        if isinstance(root, np.ndarray) and not root.dtype.hasobject:
            found[id(root)] = root.tobytes()
    return found


def fails(error, names, before, after):
    """Whether it is one sentence on one of the names, of a documented kind, and nothing was written."""
    message = str(error)
    kinds = (RuntimeError,) if message.startswith("backward") else (TypeError, ValueError)
    assert type(error) in kinds, repr(error)
    pattern = rf"({'|'.join(sorted(names))}): expected .*, (got|but) "
    assert re.match(pattern, message, re.S), (names, message)
    assert before == after


def attempt(call, arguments, bad):
    """The result of the call; None where it failed, as it must with arguments that are bad."""
    before = memory(arguments.values())
    try:
        result = call(**arguments)
    except Exception as error:
        assert bad, f"refused good arguments: {error!r}"
        fails(error, bad, before, memory(arguments.values()))
        return None
    assert not bad, f"took bad {bad}"
    return result


def counted(x, axis):
    x = np.asarray(x)
    return x.size // max(1, x.shape[axis])


def too_few(x, axis, *corrections):
    """Whether a training forward must refuse x for its number of values per channel."""
    most, count = max(corrections), counted(x, axis)
    return np.size(x) > 0 and (count <= most or (count == 1 and most > 0))


def names_of(bad, x="x"):
    """What an error may name: an axis is out of range for an x of too few dimensions, too."""
    return bad | {"axis"} if x in bad else bad


@spoiling("x", "axis")
@bounded
@given(data=st.data())
def test_batch_moments(data, bad):
    shape, axis = data.draw(shapes())
    x = data.draw(inputs(shape, "x" in bad, wrong=NO_NUMBERS))
    given_axis = data.draw(axes(axis, len(shape), "axis" in bad))
    names = names_of(bad) | ({"x"} if shape[axis] == 0 else set())
    result = attempt(nbbn.batch_moments, {"x": x, "axis": given_axis}, names)
    if result is not None:
        count, mean, m2 = reference.moments(x, axis)
        assert result.count == count
        assert_within(result.mean, mean, mean_error(x, axis))
        assert_within(result.m2, m2, var_error(x, m2) + count * mean_error(x, axis) ** 2)


@spoiling("x", "mean", "var", "gamma", "beta", "eps", "axis", "dtype", "out")
@bounded
@given(data=st.data())
def test_normalize(data, bad):
    (shape, axis), draw = data.draw(shapes()), data.draw
    count = shape[axis]
    x = draw(inputs(shape, "x" in bad))
    good = np.asarray(x) if "x" not in bad else np.zeros(shape)
    arguments = {
        "x": x,
        "mean": draw(vectors(count, "mean" in bad)),
        "var": draw(vectors(count, "var" in bad, positive=True)),
        "gamma": draw(vectors(count, "gamma" in bad, optional=True)),
        "beta": draw(vectors(count, "beta" in bad, optional=True)),
        "eps": draw(reals("eps" in bad, 0, 1e-5, 0.5, np.float32(0.25), np.array(1.0))),
        "axis": draw(axes(axis, len(shape), "axis" in bad)),
        "dtype": draw(st.sampled_from((np.int8, "no type", np.float16, 3) if "dtype" in bad else (None, good.dtype))),
        "out": draw(outs(good if "x" in bad else x, "out" in bad)),
    }  # fmt: skip
    kept = np.array(x) if "x" not in bad else None
    y = attempt(nbbn.normalize, arguments, names_of(bad))
    if y is None:
        return
    assert arguments["out"] is None or y is arguments["out"]
    vectors_given = (arguments[name] for name in ("mean", "var", "gamma", "beta"))
    expected = reference.inference(kept, *vectors_given, axis=axis, eps=float(arguments["eps"]))
    assert_forward(y, kept, expected, arguments["gamma"], arguments["beta"], axis)


@spoiling(*STATE, "gamma", "beta", "training", "axis", "out", *OPTIONS)
@bounded
@given(data=st.data())
def test_batch_norm(data, bad):
    (shape, axis), draw = data.draw(shapes()), data.draw
    count, training = shape[axis], draw(st.booleans())
    x = draw(inputs(shape, "x" in bad))
    vary = training and "training" not in bad
    arguments = {
        "x": x,
        "running_mean": draw(running(count, "running_mean" in bad, vary)),
        "running_var": draw(running(count, "running_var" in bad, vary, positive=True)),
        "gamma": draw(vectors(count, "gamma" in bad, optional=True)),
        "beta": draw(vectors(count, "beta" in bad, optional=True)),
        "training": draw(flags(True)) if "training" in bad else training,
        "axis": draw(axes(axis, len(shape), "axis" in bad)),
        **options(draw, bad),
        "out": draw(outs(np.zeros(shape) if "x" in bad else x, "out" in bad)),
    }
    expected_names = names_of(bad)
    if not bad and training:
        corrections = arguments["correction"], arguments["running_correction"]
        expected_names = {"x"} if too_few(x, axis, *corrections) else set()
    elif training and "x" not in bad:
        expected_names = expected_names | {"x"}
    old = {name: copied(arguments[name]) for name in STATE if name not in bad}
    y = attempt(nbbn.batch_norm, arguments, expected_names)
    if y is not None:
        check_batch_norm(y, old, arguments, training, axis)


def copied(value):
    return None if value is None else np.array(value)


def check_batch_norm(y, old, arguments, training, axis):
    x, eps = old["x"], float(arguments["eps"])
    gamma, beta = arguments["gamma"], arguments["beta"]
    assert arguments["out"] is None or y is arguments["out"]
    if x.size == 0:
        assert y.shape == x.shape
    elif training:
        given = {"axis": axis, "eps": eps, "correction": arguments["correction"]}
        assert_forward(y, x, reference.training(x, gamma, beta, **given), gamma, beta, axis)
    else:
        statistics = old["running_mean"], old["running_var"]
        expected = reference.inference(x, *statistics, gamma, beta, axis=axis, eps=eps)
        assert_forward(y, x, expected, gamma, beta, axis)
    if not training or x.size == 0:
        for name in ("running_mean", "running_var"):
            if old[name] is not None:
                assert_same_bits(arguments[name], old[name])
        return
    count, mean, m2 = reference.moments(x, axis)
    var, off = m2 / (count - arguments["running_correction"]), mean_error(x, axis)
    spread = var_error(x, var) + 4 * off**2
    for name, batch, error in (("running_mean", mean, off), ("running_var", var, spread)):
        if old[name] is not None:
            momentum = float(arguments["momentum"])
            assert_running(arguments[name], old[name], batch, momentum, batch_error=error)


@spoiling("grad_y", "x", "mean", "inv_std", "gamma", "axis", "training", "correction", "out")
@bounded
@given(data=st.data())
def test_batch_norm_backward(data, bad):
    (shape, axis), draw = data.draw(shapes()), data.draw
    count, training = shape[axis], draw(st.booleans())
    x = draw(inputs(shape, "x" in bad))
    good = np.zeros(shape) if "x" in bad else np.asarray(x)
    correction = draw(reals("correction" in bad, 0, 1, 0.5))
    taken = 0 if "correction" in bad else correction
    enough = 0 not in shape and "x" not in bad and counted(x, axis) > taken
    known = reference.training(good, axis=axis, correction=taken) if enough else None
    mean = known.mean if enough else np.zeros(count)
    inv_std = known.inv_std if enough else np.ones(count)
    grad_y = draw(laid_out(shape, good.dtype.type))
    arguments = {
        "grad_y": draw(st.sampled_from(NO_ARRAYS + OTHER_SHAPES))(grad_y) if "grad_y" in bad else grad_y,
        "x": x,
        "mean": draw(vectors(count, True)) if "mean" in bad else mean,
        "inv_std": draw(vectors(count, True)) if "inv_std" in bad else inv_std,
        "gamma": draw(vectors(count, "gamma" in bad, optional=True)),
        "axis": draw(axes(axis, len(shape), "axis" in bad)),
        "training": draw(flags(True)) if "training" in bad else training,
        "correction": correction,
        "out": draw(outs(good if "x" in bad else x, "out" in bad)),
    }  # fmt: skip
    expected_names = names_of(bad)
    if "x" not in bad and training and too_few(x, axis, taken):
        expected_names = expected_names | {"x"}
    kept = np.array(good)
    result = attempt(nbbn.batch_norm_backward, arguments, expected_names)
    if result is None:
        return
    assert arguments["out"] is None or result[0] is arguments["out"]
    if good.size == 0:
        assert result[0].shape == shape and not np.any(result[1:])
        return
    gamma = arguments["gamma"]
    if training:
        expected = reference.backward(grad_y, kept, gamma, axis=axis, correction=taken)
    else:
        known = known or reference.inference(kept, mean, 1 / inv_std**2, axis=axis, eps=0)
        expected = reference.backward_inference(grad_y, kept, mean, inv_std, gamma, axis=axis)
    assert_gradients(result, expected, grad_y, known, gamma, axis)


@st.composite
def constructions(draw, count, axis, bad):
    """Arguments of a layer."""
    no_counts = (0, -1, *(value for value in NO_INTEGERS if value is not None))
    drawn = options(draw, bad)
    if drawn["momentum"] is None:  # for a layer, a cumulative average
        drawn["momentum"] = "None"
    return {
        "num_features": draw(st.sampled_from(no_counts)) if "num_features" in bad else count,
        "axis": draw(st.sampled_from(NO_INTEGERS)) if "axis" in bad else axis,
        **drawn,
        "scale": draw(flags("scale" in bad)),
        "center": draw(flags("center" in bad)),
        "track_running_stats": draw(flags("track_running_stats" in bad)),
        "dtype": draw(no_dtypes if "dtype" in bad else dtypes),
    }


@spoiling(*CONSTRUCTOR)
@bounded
@given(data=st.data())
def test_the_constructor(data, bad):
    arguments = data.draw(constructions(data.draw(st.integers(1, 9)), -1, bad))
    bn = attempt(nbbn.BatchNorm, arguments, bad)
    if bn is not None:
        for name in ("num_features", "axis", *OPTIONS, "track_running_stats", "dtype"):
            assert getattr(bn, name) == arguments[name]
        assert (bn.gamma is not None, bn.beta is not None) == (
            arguments["scale"],
            arguments["center"],
        )


@spoiling("x", "training", "out", "grad_y", "out of backward")
@bounded
@given(data=st.data())
def test_a_layer_and_its_backward(data, bad):
    shape, axis = data.draw(shapes().filter(lambda drawn: drawn[0][drawn[1]] > 0))
    draw = data.draw
    bad_later, bad = bad & {"grad_y", "out of backward"}, bad & {"x", "training", "out"}
    chosen = draw(constructions(shape[axis], axis, ()))
    bn = layer(chosen.pop("num_features"), **chosen)
    bn.training = draw(st.booleans())
    others = (lambda a: np.ones([n + 1 for n in a.shape], a.dtype), lambda a: a.dtype.type(1))
    x = draw(inputs(shape, "x" in bad, others))
    mode = draw(st.none() | st.booleans())
    arguments = {
        "x": x,
        "training": draw(flags(True)) if "training" in bad else mode,
        "out": draw(outs(np.zeros(shape) if "x" in bad else x, "out" in bad)),
    }
    training = bn.training if mode is None else mode
    by_batch = training or bn.running_mean is None
    corrections = chosen["correction"], chosen["running_correction"]
    expected_names = names_of(bad)
    if "x" not in bad and by_batch and too_few(x, axis, *corrections):
        expected_names = expected_names | {"x"}
    kept, before, state = copied(x) if "x" not in bad else None, snapshot(bn), bn.state_dict()
    y = attempt(bn, arguments, expected_names)
    if y is None or not (by_batch and kept.size):
        assert snapshot(bn) == before
    if y is None:
        return
    assert arguments["out"] is None or y is arguments["out"]
    affine = {"gamma": bn.gamma, "beta": bn.beta, "axis": axis, "eps": float(chosen["eps"])}
    if by_batch and kept.size:
        known = reference.training(kept, **affine, correction=chosen["correction"])
    else:
        statistics = (state["running_mean"], state["running_var"]) if not by_batch else (np.zeros(shape[axis]),) * 2
        known = reference.inference(kept, *statistics, **affine)
    assert_forward(y, kept, known, bn.gamma, bn.beta, axis)
    check_backward(draw, bn, arguments, kept, known, by_batch, bad_later)


def check_backward(draw, bn, arguments, kept, known, by_batch, bad):
    x, axis, names = arguments["x"], bn.axis, {name.split()[0] for name in bad}
    overwritten = arguments["out"] is x
    if isinstance(x, np.ndarray) and x.flags.writeable and draw(st.booleans()):
        x[...] += 1
        overwritten = True
    grad_y = draw(laid_out(kept.shape, kept.dtype.type))
    given = {
        "grad_y": draw(st.sampled_from(NO_ARRAYS + OTHER_SHAPES))(grad_y) if "grad_y" in bad else grad_y,
        "out": draw(outs(grad_y, "out" in names)),
    }  # fmt: skip
    dy = grad_y.copy()
    before = snapshot(bn)
    if overwritten and kept.size:
        names.add("backward")
    grad_x = attempt(bn.backward, given, names)
    if grad_x is None:
        assert snapshot(bn) == before
        return
    if kept.size == 0:
        assert grad_x.shape == kept.shape
        return
    if by_batch:
        options = {"axis": axis, "eps": bn.eps, "correction": bn.correction}
        expected = reference.backward(dy, kept, bn.gamma, **options)
    else:
        expected = reference.backward_inference(dy, kept, known.mean, known.inv_std, bn.gamma, axis=axis)
    gradients = grad_x, bn.grad_gamma, bn.grad_beta
    assert_gradients(gradients, expected, dy, known, bn.gamma, axis)


@spoiling("count", "mean", "m2")
@bounded
@given(data=st.data())
def test_moments_of_given_numbers(data, bad):
    draw = data.draw
    size = draw(st.integers(1, 5))
    lists = st.lists(st.floats(-1e6, 1e6), min_size=size, max_size=size)
    kinds = st.sampled_from((list, tuple, np.array, lambda v: np.array(v, np.float32)))
    no_vectors = (
        None,
        "text",
        {},
        [[1.0]],
        [],
        1.0,
        [1j],
        [None],
        ["1"],
        [[1.0], [1.0, 2.0]],
        Hostile(),
    )

    def vector(name):
        return draw(st.sampled_from(no_vectors) if name in bad else lists.map(draw(kinds)))

    arguments = {
        "count": draw(reals("count" in bad, 0, 1, 4.5, np.float32(2))),
        "mean": vector("mean"),
        "m2": vector("m2"),
    }
    if "m2" in bad and "mean" not in bad and draw(st.booleans()):
        arguments["m2"] = np.ones(size + 1)
    moments = attempt(nbbn.Moments, arguments, bad)
    if moments is not None:
        assert moments.count == arguments["count"]
        assert_same_bits(moments.mean, np.array(arguments["mean"], np.float64))
        assert_same_bits(moments.m2, np.array(arguments["m2"], np.float64))
