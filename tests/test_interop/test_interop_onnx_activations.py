"""Activations after the BatchNormalization nodes of ONNX models: taken where they alone follow, as runtimes compute."""

import cases
import numpy as np
import pytest
from test_interop_onnx import assert_close, model, node, run, tensors

from nbbn.interop import from_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import helper, numpy_helper  # noqa: E402

SLOPES = np.array([0.5, -0.25, 0.0, 2.0, 0.125], np.float32)


def constant(name, value):
    return numpy_helper.from_array(np.asarray(value, np.float32), name)


def follow(kind, inputs=("y",), output="z", **attributes):
    return helper.make_node(kind, list(inputs), [output], name=kind, **attributes)


def network(nodes, *constants, opset=15, outputs=("z",)):
    return model([node(), *nodes], [*tensors(), *constants], opset, outputs=outputs)


ENDS = constant("low", 0.0), constant("high", 6.0)
SWISH = follow("Sigmoid", output="part"), follow("Mul", ("part", "y"))
TAKEN = {
    "Relu": (network([follow("Relu")]), "relu"),
    "Clip": (network([follow("Clip", ("y", "low", "high"))], *ENDS), "relu6"),
    "old Clip": (network([follow("Clip", min=0.0, max=6.0)], opset=9), "relu6"),
    "LeakyRelu": (network([follow("LeakyRelu", alpha=0.3)]), "leaky_relu"),
    "LeakyRelu as it is": (network([follow("LeakyRelu")]), "leaky_relu"),
    "HardSwish": (network([follow("HardSwish")]), "hard_swish"),
    "Mish": (network([follow("Mish")], opset=18), "mish"),
    "Sigmoid and Mul": (network(SWISH), "silu"),
    "PRelu": (
        network([follow("PRelu", ("y", "a"))], constant("a", SLOPES[:, None, None])),
        "prelu",
    ),
    "PRelu, one": (network([follow("PRelu", ("y", "a"))], constant("a", [[[0.3]]])), "prelu"),
}


@pytest.mark.parametrize(("model", "activation"), TAKEN.values(), ids=TAKEN)
def test_the_layer_does_what_both_nodes_do(model, activation):
    bn = from_onnx(model, name="bn", activations=True)
    assert bn.activation == activation
    x = 3 * cases.values((4, 5, 3, 2))
    (theirs,) = run(model, x)
    assert_close(bn(x), theirs)
    assert from_onnx(model)["bn"].activation is None


def test_the_slopes_are_those_of_the_model():
    bn = from_onnx(TAKEN["PRelu"][0], name="bn", activations=True)
    np.testing.assert_array_equal(bn.slope, SLOPES)
    one = from_onnx(TAKEN["PRelu, one"][0], name="bn", activations=True)
    np.testing.assert_array_equal(one.slope, np.full(5, 0.3, np.float32))
    assert from_onnx(TAKEN["LeakyRelu"][0], name="bn", activations=True).negative_slope == np.float32(0.3)


LEFT = {
    "Tanh": network([follow("Tanh")]),
    "two readers": network([follow("Relu"), follow("Tanh", output="t")], outputs=("z", "t")),
    "twice the same": network([follow("Add", ("y", "y"))]),
    "an output of the graph": network([follow("Relu")], outputs=("y", "z")),
    "nothing": model(),
    "another Clip": network([follow("Clip", ("y", "low", "high"))], constant("low", -1.0), constant("high", 6.0)),
    "Clip of inputs": model([node(), follow("Clip", ("y", "low", "high"))], inputs=("low", "high"), outputs=("z",)),
    "Sigmoid alone": network([follow("Sigmoid")]),
    "a Sigmoid that is read elsewhere": network(SWISH, outputs=("z", "part")),
    "a Mul of others": network([SWISH[0], follow("Mul", ("y", "x"))], outputs=("z", "part")),
    "a PRelu along another axis": network([follow("PRelu", ("y", "a"))], constant("a", np.ones((5, 2)))),
    "a Relu of another domain": network([helper.make_node("Relu", ["y"], ["z"], domain="mine")]),
}


@pytest.mark.parametrize("model", LEFT.values(), ids=LEFT)
def test_what_else_follows_is_left(model):
    assert from_onnx(model, name="bn", activations=True).activation is None


def test_a_branch_that_reads_the_output_counts():
    then = helper.make_graph([follow("Neg", output="a")], "then", [], [helper.make_tensor_value_info("a", 1, None)])
    other = helper.make_graph([follow("Abs", output="b")], "else", [], [helper.make_tensor_value_info("b", 1, None)])
    choose = helper.make_node("If", ["flag"], ["c"], then_branch=then, else_branch=other)
    flag = numpy_helper.from_array(np.array(True), "flag")
    both = network([follow("Relu"), choose], flag, outputs=("z", "c"))
    assert from_onnx(both, name="bn", activations=True).activation is None


def test_activations_is_a_flag():
    with pytest.raises(TypeError, match=r"^activations: expected True or False, got 'relu'"):
        from_onnx(model(), activations="relu")
