"""Every error of the functions: its type, a message that says what was expected and what came, and nothing changed."""

import re

import cases
import numpy as np
import pytest
from compare import TYPES, assert_names, named, of_type, read_only, sentinel

import nbbn

X = cases.values((6, 3, 5))
F32 = np.float32


def arguments():
    """Fresh arguments of batch_norm, normalize and batch_norm_backward that are all right."""
    gamma, beta, mean, var = cases.parameters(3)
    batch = {
        "x": X,
        "running_mean": mean,
        "running_var": var,
        "gamma": gamma,
        "beta": beta,
        "training": True,
    }
    step = {"x": X, "mean": mean, "var": var, "gamma": gamma, "beta": beta}
    back = {"grad_y": X, "x": X, "mean": mean, "inv_std": var, "gamma": gamma}
    return {
        "batch_norm": batch,
        "normalize": step,
        "batch_norm_backward": back,
        "batch_moments": {"x": X},
    }


VECTORS = (
    *(("batch_norm", name) for name in ("running_mean", "running_var", "gamma", "beta")),
    *(("normalize", name) for name in ("mean", "var", "gamma", "beta")),
    *(("batch_norm_backward", name) for name in ("mean", "inv_std", "gamma")),
)


def refused(function, changes, kind, *words):
    """The call with these arguments changed raises, names the words, and writes neither its arguments nor out."""
    given = {**arguments()[function], **changes}
    if function != "batch_moments":
        given.setdefault("out", sentinel())
    arrays = {name: (a, a.copy()) for name, a in given.items() if isinstance(a, np.ndarray)}
    with pytest.raises(kind) as error:
        getattr(nbbn, function)(**given)
    assert_names(error, *words)
    for name, (array, copy) in arrays.items():
        assert array.tobytes() == copy.tobytes(), f"{name} was written"


@pytest.mark.parametrize(("function", "name"), VECTORS)
@pytest.mark.parametrize("shape", [(4,), (1,), (3, 1), (1, 3), (0,), ()], ids=str)
def test_a_vector_of_another_shape_is_refused(function, name, shape):
    if function == "normalize" and shape == ():
        return
    refused(
        function,
        {name: np.ones(shape, F32)},
        ValueError,
        rf"\b{name}\b",
        r"\(3,\)",
        re.escape(str(shape)),
    )


@pytest.mark.parametrize(("function", "name"), VECTORS)
@pytest.mark.parametrize("dtype", ["complex64", "bool", "object", "longdouble", "U3"])
def test_a_vector_of_another_dtype_is_refused(function, name, dtype):
    refused(
        function,
        {name: np.ones(3, dtype)},
        TypeError,
        rf"\b{name}\b",
        named(dtype),
        "float32",
        "float64",
    )


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
@pytest.mark.parametrize("dtype", ["int64", "float16"])
def test_running_statistics_to_update_are_floats(name, dtype):
    refused("batch_norm", {name: np.ones(3, dtype)}, TypeError, name, dtype, "float32", "float64")


@pytest.mark.parametrize(("function", "name"), VECTORS)
def test_a_masked_vector_is_refused(function, name):
    refused(function, {name: np.ma.masked_equal(np.ones(3, F32), 2)}, TypeError, name, "[Mm]asked")


@pytest.mark.parametrize("function", arguments())
@pytest.mark.parametrize("dtype", TYPES)
def test_an_input_of_another_dtype_is_refused(function, dtype):
    if function == "batch_moments" and np.dtype(dtype).kind in "biu":
        return
    refused(
        function,
        {"x": of_type(dtype)},
        TypeError,
        r"\bx\b",
        named(dtype),
        "float32",
        "float64",
    )


@pytest.mark.parametrize("function", arguments())
def test_a_masked_input_is_refused(function):
    refused(function, {"x": np.ma.masked_greater(X, 1.0)}, TypeError, r"\bx\b", "[Mm]asked")


@pytest.mark.parametrize("function", arguments())
@pytest.mark.parametrize("axis", [3, -4, 100])
def test_an_axis_out_of_range_is_refused(function, axis):
    refused(function, {"axis": axis}, ValueError, "axis", str(axis), r"\b3\b")


@pytest.mark.parametrize("function", arguments())
@pytest.mark.parametrize("axis", [1.0, "1", (1,), None], ids=repr)
def test_an_axis_that_is_no_integer_is_refused(function, axis):
    refused(function, {"axis": axis}, (TypeError, ValueError), "axis", "int")


@pytest.mark.parametrize("function", ["batch_norm", "normalize", "batch_moments"])
@pytest.mark.parametrize("axis", [1, -2])
def test_a_vector_as_input_takes_no_axis_but_zero(function, axis):
    refused(function, {"x": np.ones(3, F32), "axis": axis, **({} if function == "batch_moments" else {"out": None})},
            ValueError, "axis", str(axis), r"\b1\b")  # fmt: skip


@pytest.mark.parametrize("function", ["batch_norm", "normalize", "batch_norm_backward"])
@pytest.mark.parametrize(
    ("out", "words"),
    [
        (sentinel((6, 3, 4)), (r"\(6, 3, 5\)", r"\(6, 3, 4\)")),
        (sentinel((5, 3, 6)).T[:, :, :4], (r"\(6, 3, 5\)", r"\(6, 3, 4\)")),
        (sentinel(dtype=np.float64), ("float32", "float64")),
        (sentinel(dtype=np.int64), ("float32", "int64")),
        (read_only(X.shape), ("writ|read-only",)),
        (np.broadcast_to(np.float32(777), X.shape), ("writ|read-only",)),
    ],
    ids=["shape", "shape of a view", "float64", "int64", "read-only", "broadcast"],
)
def test_an_out_that_does_not_fit_is_refused(function, out, words):
    refused(function, {"out": out}, ValueError, r"\bout\b", *words)


@pytest.mark.parametrize("function", ["batch_norm", "normalize", "batch_norm_backward"])
def test_an_out_whose_entries_share_memory_is_refused(function):
    shared = np.lib.stride_tricks.as_strided(sentinel((3, 5)), X.shape, (0, 20, 4), writeable=True)
    refused(function, {"out": shared}, ValueError, r"\bout\b")


@pytest.mark.parametrize("function", ["batch_norm", "normalize"])
@pytest.mark.parametrize("eps", [-1e-5, np.nan, np.inf, -np.inf])
def test_an_eps_out_of_range_is_refused(function, eps):
    refused(function, {"eps": eps}, ValueError, "eps", "0", re.escape(str(eps)))


@pytest.mark.parametrize("momentum", [np.nan, np.inf])
def test_a_momentum_that_is_not_finite_is_refused(momentum):
    refused("batch_norm", {"momentum": momentum}, ValueError, "momentum", "finite", str(momentum))


@pytest.mark.parametrize("missing", ["running_mean", "running_var"])
def test_inference_without_running_statistics_is_refused(missing):
    refused("batch_norm", {missing: None, "training": False}, ValueError, missing, "None")


@pytest.mark.parametrize("name", ["running_mean", "running_var"])
def test_running_statistics_that_can_not_be_written_are_refused_in_training(name):
    frozen = np.ones(3, F32)
    frozen.flags.writeable = False
    refused("batch_norm", {name: frozen}, ValueError, name, "writ|read-only")
    assert nbbn.batch_norm(**{**arguments()["batch_norm"], name: frozen, "training": False}).shape == X.shape


@pytest.mark.parametrize("options", [{}, {"correction": 1}, {"correction": 1, "running_correction": 0}], ids=str)
def test_one_value_per_channel_is_refused_in_training(options):
    one = {"x": np.ones((1, 3), F32), "out": sentinel((1, 3))}
    refused("batch_norm", {**one, **options}, ValueError, r"\b1\b")


@pytest.mark.parametrize("shape", [(6, 3, 4), (6, 5, 3), (1, 3, 5), (90,)], ids=str)
def test_a_gradient_of_another_shape_than_the_input_is_refused(shape):
    refused(
        "batch_norm_backward",
        {"grad_y": cases.values(shape)},
        ValueError,
        "grad_y",
        r"\(6, 3, 5\)",
        re.escape(str(shape)),
    )


@pytest.mark.parametrize("dtype", ["int64", "complex64", "object", "longdouble"])
def test_a_gradient_of_another_dtype_is_refused(dtype):
    refused(
        "batch_norm_backward",
        {"grad_y": of_type(dtype)},
        TypeError,
        "grad_y",
        named(dtype),
        "float32",
    )


MOMENTS = {
    "shapes differ": ((3, np.zeros(2), np.zeros(3)), ValueError, ("m2|mean", r"\(2,\)", r"\(3,\)")),
    "mean of two dimensions": (
        (3, np.zeros((2, 2)), np.zeros((2, 2))),
        ValueError,
        ("mean", r"\(2, 2\)"),
    ),
    "count negative": ((-1, np.zeros(2), np.zeros(2)), ValueError, ("count", "-1")),
    "count nan": ((np.nan, np.zeros(2), np.zeros(2)), ValueError, ("count", "nan")),
    "count text": (
        ("many", np.zeros(2), np.zeros(2)),
        (TypeError, ValueError),
        ("count", "many|str"),
    ),
    "mean complex": ((3, np.zeros(2, complex), np.zeros(2)), TypeError, ("mean", "complex128")),
}


@pytest.mark.parametrize(("given", "kind", "words"), MOMENTS.values(), ids=MOMENTS)
def test_moments_refuse(given, kind, words):
    with pytest.raises(kind) as error:
        nbbn.Moments(*given)
    assert_names(error, *words)


def test_moments_of_different_numbers_of_channels_do_not_merge():
    two, three = nbbn.Moments.empty(2), nbbn.batch_moments(X)
    for left, right in ((two, three), (three, two)):
        with pytest.raises(ValueError, match=r"channel|shape") as error:
            left.merge(right)
        assert_names(error, r"\b2\b", r"\b3\b")
    with pytest.raises(ValueError, match=r"channel|shape") as error:
        three.update(cases.values((6, 2, 5)))
    assert_names(error, r"\b2\b", r"\b3\b")


@pytest.mark.parametrize("other", [1.0, None, np.zeros(3), "moments"], ids=str)
def test_moments_merge_with_nothing_else(other):
    with pytest.raises(TypeError):
        nbbn.Moments.empty(3) + other
    with pytest.raises(TypeError):
        nbbn.Moments.empty(3).merge(other)


@pytest.mark.parametrize("dtype", [">f4", ">f8"])
def test_the_other_byte_order_is_right_or_refused(dtype):
    if np.little_endian is False:
        dtype = dtype.replace(">", "<")
    x = X.astype(dtype)
    try:
        m2 = nbbn.batch_moments(x).m2
    except TypeError as error:
        assert str(x.dtype) in str(error) or x.dtype.name in str(error)
    else:
        np.testing.assert_array_equal(m2, nbbn.batch_moments(X.astype(x.dtype.newbyteorder("="))).m2)
