"""The block of docs/inference.md, as the page has it, against torch and ONNX Runtime."""

import doctest

import numpy as np
import pytest
from processes import ROOT
from test_readme import code_blocks

import nbbn

NEXT = "\n## Freeze or fold\n"  # what comes after the block
FORMS = ("loaded", "fused", "frozen", "folded")
SHAPES = ((4, 8, 10, 10), (1, 8, 7, 3))
by_form = pytest.mark.parametrize("form", FORMS)
by_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(scope="module")
def page():
    """What the examples of the page up to the folded block have defined."""
    text = (ROOT / "docs" / "inference.md").read_text("utf-8")
    block, found, _ = text.partition(NEXT)
    assert found
    test = doctest.DocTestParser().get_doctest(code_blocks(block, "python"), {"__name__": "__main__"}, "block", None, 0)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    runner = doctest.DocTestRunner(optionflags=flags)
    runner.run(test, clear_globs=False)
    assert runner.tries > 0
    assert runner.failures == 0
    return test.globs


def images(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def assert_close(ours, theirs):
    """A convolution adds 72 products, in another order in each library."""
    assert ours.dtype == theirs.dtype
    bound = 32 * np.finfo(np.float32).eps * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def torch_block(state):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.bn1 = torch.nn.BatchNorm2d(8)
            self.conv2 = torch.nn.Conv2d(8, 8, 3, padding=1, bias=False)
            self.bn2 = torch.nn.BatchNorm2d(8)

        def forward(self, x):
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(y)) + x)

    module = Block()
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    counters = {f"bn{i}.num_batches_tracked": torch.tensor(0) for i in "12"}
    module.load_state_dict(tensors | counters)
    return torch, module.eval()


def onnx_block(state):
    """The block as a model, its nodes written by hand."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    helper = onnx.helper

    def conv(i, x):
        return helper.make_node("Conv", [x, f"conv{i}.weight"], [f"c{i}"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def norm(i):
        arrays = [f"bn{i}.{n}" for n in ("weight", "bias", "running_mean", "running_var")]
        return helper.make_node("BatchNormalization", [f"c{i}", *arrays], [f"n{i}"], name=f"bn{i}")

    nodes = [
        conv(1, "x"), norm(1), helper.make_node("Relu", ["n1"], ["r1"]),
        conv(2, "r1"), norm(2), helper.make_node("Add", ["n2", "x"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["y"]),
    ]  # fmt: skip
    x, y = (helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 8, "h", "w"]) for n in "xy")
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in state.items()]
    graph = helper.make_graph(nodes, "block", [x], [y], initializer=arrays)
    opset = helper.make_opsetid("", 15)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.checker.check_model(model)
    return model


@by_form
@by_shape
def test_each_form_of_the_block_computes_what_torch_does(page, form, shape):
    torch, module = torch_block(page["state"])
    x = images(shape)
    with torch.no_grad():
        expected = module(torch.from_numpy(x)).numpy()
    assert_close(page[form](x), expected)


@by_form
@by_shape
def test_each_form_of_the_block_computes_what_onnxruntime_does(page, form, shape):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = onnx_block(page["state"]).SerializeToString()
    session = runtime.InferenceSession(model, providers=["CPUExecutionProvider"])
    x = images(shape)
    assert_close(page[form](x), session.run(None, {"x": x})[0])


@by_shape
def test_loaded_fused_and_frozen_give_the_same_bits(page, shape):
    x = images(shape)
    expected = page["loaded"](x)
    assert (expected > 0).any()
    np.testing.assert_array_equal(page["fused"](x), expected)
    np.testing.assert_array_equal(page["frozen"](x), expected)


def sources(kind, state, folder):
    """The two layers of the block, out of a module, a model or a file that holds it."""
    if kind == "torch":
        _, module = torch_block(state)
        return [nbbn.interop.from_torch(getattr(module, f"bn{i}")) for i in "12"]
    if kind == "torch state dict":
        _, module = torch_block(state)
        tensors = module.state_dict()
        layers = nbbn.interop.from_torch(tensors)
        return [layers["bn1"], layers["bn2"]]
    if kind == "onnx":
        layers = nbbn.interop.from_onnx(onnx_block(state))
        return [layers["bn1"], layers["bn2"]]
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    path = folder / "network.safetensors"
    library.save_file(state, path)
    return [nbbn.interop.load_safetensors(path, prefix=f"bn{i}") for i in "12"]


@pytest.mark.parametrize("kind", ["torch", "torch state dict", "onnx", "safetensors"])
def test_every_source_gives_the_layers_of_the_page(page, kind, tmp_path):
    x = images(SHAPES[0])
    for name, found in zip(("bn1", "bn2"), sources(kind, page["state"], tmp_path), strict=True):
        assert not found.training
        np.testing.assert_allclose(found.eps, page[name].eps, rtol=1e-7)  # ONNX keeps a float32
        found.eps = page[name].eps
        np.testing.assert_array_equal(found(x), page[name](x))


def test_keras_weights_give_the_layers_of_the_page(page):
    state, x = page["state"], images(SHAPES[0])
    names = ("weight", "bias", "running_mean", "running_var")
    found = nbbn.interop.from_keras([state[f"bn1.{name}"] for name in names], axis=1)
    assert found.eps == 1e-3
    found.eps = page["bn1"].eps
    np.testing.assert_array_equal(found(x), page["bn1"](x))
