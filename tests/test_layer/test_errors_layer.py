"""Every error of the layer: its type, a message that says what was expected and what came, and nothing changed."""

import cases
import numpy as np
import pytest
from compare import TYPES, assert_names, layer, named, of_type, read_only, sentinel, snapshot

import nbbn

X = cases.values((6, 3, 5))


CONSTRUCTOR = {
    "num_features negative": (-1, {}, ValueError, ("num_features", "-1")),
    "num_features float": (2.5, {}, (TypeError, ValueError), ("num_features", "2.5|float")),
    "num_features text": ("3", {}, (TypeError, ValueError), ("num_features", "'3'|str")),
    "axis float": (3, {"axis": 1.5}, (TypeError, ValueError), ("axis", "1.5|float")),
    "axis tuple": (3, {"axis": (0, 1)}, (TypeError, ValueError), ("axis",)),
    "eps negative": (3, {"eps": -1e-3}, ValueError, ("eps", "0", "-0.001")),
    "eps nan": (3, {"eps": np.nan}, ValueError, ("eps", "nan")),
    "eps infinite": (3, {"eps": np.inf}, ValueError, ("eps", "inf")),
    "eps text": (3, {"eps": "small"}, (TypeError, ValueError), ("eps", "small|str")),
    "momentum nan": (3, {"momentum": np.nan}, ValueError, ("momentum", "finite", "nan")),
    "momentum infinite": (3, {"momentum": -np.inf}, ValueError, ("momentum", "finite", "inf")),
    "momentum text": (3, {"momentum": "fast"}, (TypeError, ValueError), ("momentum", "fast|str")),
    "correction nan": (3, {"correction": np.nan}, (TypeError, ValueError), ("correction", "nan")),
    "running_correction nan": (
        3,
        {"running_correction": np.nan},
        (TypeError, ValueError),
        ("running_correction", "nan"),
    ),
    "dtype float16": (
        3,
        {"dtype": np.float16},
        TypeError,
        ("dtype", "float16", "float32", "float64"),
    ),
    "dtype int32": (3, {"dtype": np.int32}, TypeError, ("dtype", "int32", "float32", "float64")),
    "dtype complex": (
        3,
        {"dtype": np.complex64},
        TypeError,
        ("dtype", "complex64", "float32", "float64"),
    ),
    "dtype longdouble": (
        3,
        {"dtype": np.longdouble},
        TypeError,
        ("dtype", str(np.dtype(np.longdouble)), "float64"),
    ),
    "dtype object": (3, {"dtype": object}, TypeError, ("dtype", "object", "float32")),
    "dtype nonsense": (3, {"dtype": "no such type"}, TypeError, ("no such type",)),
}


@pytest.mark.parametrize(("count", "options", "kind", "words"), CONSTRUCTOR.values(), ids=CONSTRUCTOR)
def test_the_constructor_refuses(count, options, kind, words):
    with pytest.raises(kind) as error:
        nbbn.BatchNorm(count, **options)
    assert_names(error, *words)


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="moment"):
        nbbn.BatchNorm(3, moment=0.1)


# What a forward of a layer of 3 channels along axis 1 refuses, in both modes.
FORWARD = {
    "other number of channels": (
        lambda: (cases.values((6, 4, 5)), {}),
        ValueError,
        ("x", r"\b3\b", r"\b4\b"),
    ),
    "no such axis": (lambda: (cases.values((3,)), {}), ValueError, ("axis", r"\b1\b")),
    "no dimensions": (lambda: (np.float32(1.0), {}), ValueError, ("x|axis", "0|dimension")),
    "out of another shape": (
        lambda: (X, {"out": sentinel((6, 3, 4))}),
        ValueError,
        ("out", r"\(6, 3, 5\)", r"\(6, 3, 4\)"),
    ),
    "out with more dimensions": (
        lambda: (X, {"out": sentinel((1, 6, 3, 5))}),
        ValueError,
        ("out", r"\(6, 3, 5\)"),
    ),
    "out of another dtype": (
        lambda: (X, {"out": sentinel(dtype=np.float64)}),
        ValueError,
        ("out", "float32", "float64"),
    ),
    "out of integers": (
        lambda: (X, {"out": sentinel(dtype=np.int32)}),
        ValueError,
        ("out", "float32", "int32"),
    ),
    "out read-only": (
        lambda: (X, {"out": read_only(X.shape)}),
        ValueError,
        ("out", "writ|read-only"),
    ),
    "out no array": (lambda: (X, {"out": [1.0, 2.0]}), (TypeError, ValueError), ("out", "list")),
    "masked array": (lambda: (np.ma.masked_greater(X, 1.0), {}), TypeError, ("x", "[Mm]asked")),
    "text": (lambda: ("a text", {}), TypeError, ("x",)),
    "nothing": (lambda: (None, {}), TypeError, ("x",)),
    **{
        f"dtype {name}": (
            lambda name=name: (of_type(name), {}),
            TypeError,
            ("x", named(name), "float32", "float64"),
        )
        for name in TYPES
    },
}
by_mode = pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])


@by_mode
@pytest.mark.parametrize(("make", "kind", "words"), FORWARD.values(), ids=FORWARD)
def test_a_forward_refuses_and_changes_nothing(make, kind, words, training):
    bn = layer(3)
    bn(X)
    bn.train(training)
    before, (x, options) = snapshot(bn), make()
    with pytest.raises(kind) as error:
        bn(x, **options)
    assert_names(error, *words)
    assert snapshot(bn) == before
    if isinstance(options.get("out"), np.ndarray):
        np.testing.assert_array_equal(options["out"], 777)


@pytest.mark.parametrize("axis", [3, -4, 17])
def test_a_layer_refuses_an_input_without_its_axis(axis):
    bn = layer(3, axis=axis)
    with pytest.raises(ValueError, match="axis") as error:
        bn(X)
    assert_names(error, "axis", str(axis), r"\b3\b")


BACKWARD = {
    "grad_y of another shape": (
        lambda: (cases.values((6, 3, 4)), {}),
        ValueError,
        ("grad_y", r"\(6, 3, 5\)", r"\(6, 3, 4\)"),
    ),
    "grad_y that would broadcast": (
        lambda: (cases.values((1, 3, 5)), {}),
        ValueError,
        ("grad_y", r"\(6, 3, 5\)"),
    ),
    "grad_y of integers": (
        lambda: (of_type("int64"), {}),
        TypeError,
        ("grad_y", "int64", "float32"),
    ),
    "grad_y complex": (
        lambda: (of_type("complex64"), {}),
        TypeError,
        ("grad_y", "complex64", "float32"),
    ),
    "grad_y masked": (
        lambda: (np.ma.masked_greater(X, 1.0), {}),
        TypeError,
        ("grad_y", "[Mm]asked"),
    ),
    "out of another shape": (
        lambda: (X, {"out": sentinel((6, 5, 3))}),
        ValueError,
        ("out", r"\(6, 3, 5\)", r"\(6, 5, 3\)"),
    ),
    "out of another dtype": (
        lambda: (X, {"out": sentinel(dtype=np.float64)}),
        ValueError,
        ("out", "float32", "float64"),
    ),
    "out read-only": (
        lambda: (X, {"out": read_only(X.shape)}),
        ValueError,
        ("out", "writ|read-only"),
    ),
}


@by_mode
@pytest.mark.parametrize(("make", "kind", "words"), BACKWARD.values(), ids=BACKWARD)
def test_backward_refuses_and_changes_nothing(make, kind, words, training):
    bn = layer(3).train(training)
    bn(X)
    bn.backward(X)
    before, (grad_y, options) = snapshot(bn), make()
    with pytest.raises(kind) as error:
        bn.backward(grad_y, **options)
    assert_names(error, *words)
    assert snapshot(bn) == before
    if "out" in options:
        np.testing.assert_array_equal(options["out"], 777)


@pytest.mark.parametrize("options", [{"correction": 2}, {"running_correction": 2}])
def test_a_correction_leaves_some_of_the_values(options):
    x, bn = np.ones((2, 3), np.float32), nbbn.BatchNorm(3, **options)
    before = bn.state_dict()
    with pytest.raises(ValueError, match=r"^x: expected at least 3 values per channel .* got 2"):
        bn(x)
    for name, value in bn.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    with pytest.raises(ValueError, match=r"^x: expected at least 3 values per channel .* got 2"):
        nbbn.batch_norm(x, None, None, training=True, **options)
