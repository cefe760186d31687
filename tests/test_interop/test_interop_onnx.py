"""ONNX models as layers: the same predictions and training as their runtimes, clear errors, hostile files."""

import os
import sys
import tracemalloc

import cases
import numpy as np
import pytest
import reference
from compare import assert_forward, assert_same_bits

import nbbn
from nbbn.interop import from_onnx

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

F32 = np.float32
ARRAYS = ("gamma", "beta", "running_mean", "running_var")
INPUTS = ("s", "b", "m", "v")
FLOAT = TensorProto.FLOAT


def tensors(count=5, dtype=F32, prefix="", **changes):
    """The initializers of one node; a change of None takes one away."""
    values = dict(zip(INPUTS, cases.parameters(count, dtype), strict=True))
    made = {k: numpy_helper.from_array(v, prefix + k) for k, v in values.items()}
    return [tensor for tensor in {**made, **changes}.values() if tensor is not None]


def node(name="bn", x="x", y=("y",), prefix="", **attributes):
    inputs = [x, *(prefix + k for k in INPUTS)]
    return helper.make_node("BatchNormalization", inputs, list(y), name=name, **attributes)


def model(nodes=None, initializers=None, opset=15, inputs=(), outputs=("y",), kind=FLOAT):
    def info(name):
        return helper.make_tensor_value_info(name, kind, None)

    graph = helper.make_graph(
        [node()] if nodes is None else nodes, "network",
        [info("x"), *map(info, inputs)], [info(name) for name in outputs],
        tensors() if initializers is None else initializers,
    )  # fmt: skip
    # 8 is the oldest version of the format that knows all of this and that every runtime reads
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(network, x, outputs=None):
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = runtime.InferenceSession(network.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, {"x": x})


def assert_close(ours, theirs, units=16):
    """Within a few units in the last place of the largest value."""
    assert ours.dtype == theirs.dtype
    bound = units * np.finfo(ours.dtype).eps * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("options", [{}, {"epsilon": 0.25, "momentum": 0.75}], ids=cases.case_id)
@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_a_node_predicts_as_onnxruntime_does(opset, options, dtype):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    network = model([node(**options)], tensors(dtype=dtype), opset, kind=kind)
    bn = from_onnx(network, name="bn")
    for name, value in zip(ARRAYS, cases.parameters(5, dtype), strict=True):
        assert_same_bits(getattr(bn, name), value)
    x = cases.values((4, 5, 3, 2), dtype)
    assert_close(bn(x), run(network, x)[0])
    gamma, beta, mean, var = cases.parameters(5, dtype)
    exact = reference.inference(x, mean, var, gamma, beta, eps=bn.eps)
    assert_forward(bn(x), x, exact, gamma, beta)
    assert bn.eps == float(F32(options.get("epsilon", 1e-5)))
    assert 1 - bn.momentum == float(F32(options.get("momentum", 0.9)))
    assert (bn.axis, bn.running_correction, bn.training) == (1, 0, False)
    assert bn.num_batches_tracked == 0


@pytest.mark.parametrize("options", [{}, {"momentum": 0.75}], ids=cases.case_id)
@pytest.mark.parametrize("opset", [14, 15])
def test_a_training_node_trains_as_the_reference_does(opset, options):
    evaluator = pytest.importorskip("onnx.reference", reason="onnx has no evaluator")
    outputs = ("y", "mean", "var")
    network = model([node(y=outputs, training_mode=1, **options)], opset=opset, outputs=outputs)
    bn, x = from_onnx(network, name="bn").train(), cases.values((8, 5, 3, 2))
    y, mean, var = evaluator.ReferenceEvaluator(network).run(None, {"x": x})
    assert_close(bn(x), y)
    assert_close(bn.running_mean, mean)
    assert_close(bn.running_var, var)


@pytest.mark.parametrize(
    ("opset", "outputs", "attributes"),
    [
        (15, ("y", "m2", "v2"), {"training_mode": 1}),
        (15, ("y",), {"training_mode": 0}),
        (9, ("y", "m2", "v2", "m3", "v3"), {}),
        (9, ("y", "", ""), {}),
        (6, ("y",), {}),
        (1, ("y",), {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}),
    ],
)
def test_layers_come_in_inference_mode(opset, outputs, attributes):
    network = model([node(y=outputs, **attributes)], opset=opset)
    assert from_onnx(network, name="bn").training is False


def test_a_model_from_before_operator_sets():
    network = model([node("train"), node("test", y=("z",), is_test=1)])
    del network.opset_import[:]
    assert list(from_onnx(network)) == ["train", "test"]


def chain(dtype=F32):
    """Conv -> BN -> Relu -> Conv -> BN -> Add, the second one without a name."""
    random = np.random.default_rng(3)
    kernel = random.normal(size=(5, 5, 1, 1)).astype(dtype)
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["c1"], name="conv1"),
        node("bn1", "c1", ("n1",), "a.", epsilon=1e-3),
        helper.make_node("Relu", ["n1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "k"], ["c2"], name="conv2"),
        node("", "c2", ("n2",), "b."),
        helper.make_node("Add", ["n2", "x"], ["y"], name="add"),
    ]
    second = [numpy_helper.from_array(v, "b." + k)
              for k, v in zip(INPUTS, cases.parameters(5, dtype, seed=8), strict=True)]  # fmt: skip
    initializers = [numpy_helper.from_array(kernel, "k"), *tensors(prefix="a."), *second]
    return model(nodes, initializers), kernel[:, :, 0, 0]


@pytest.mark.parametrize("kind", [str, os.PathLike, onnx.ModelProto])
def test_the_nodes_of_a_network(kind, tmp_path):
    network, kernel = chain()
    onnx.save(network, tmp_path / "network.onnx")
    source = tmp_path / "network.onnx"
    layers = from_onnx({str: str(source), os.PathLike: source, onnx.ModelProto: network}[kind])
    assert list(layers) == ["bn1", "n2"]
    x = cases.values((4, 5, 3, 2))
    hidden = np.maximum(layers["bn1"](np.einsum("oc,nchw->nohw", kernel, x)), 0)
    y = layers["n2"](np.einsum("oc,nchw->nohw", kernel, hidden)) + x
    assert_close(y, run(network, x)[0], units=64)
    assert_same_bits(from_onnx(source, name="n2").gamma, layers["n2"].gamma)


def test_nodes_of_the_same_name_go_by_their_outputs():
    nodes = [node("bn", "x", ("y1",)), node("bn", "y1", ("y",), epsilon=0.5)]
    layers = from_onnx(model(nodes))
    assert list(layers) == ["bn", "y"]
    assert layers["y"].eps == 0.5
    assert from_onnx(model([])) == {}


def test_nodes_within_branches_see_the_names_around_them():
    def branch(name, **attributes):
        inner = node(f"{name}_bn", y=(f"{name}_y",), **attributes)
        output = helper.make_tensor_value_info(f"{name}_y", FLOAT, None)
        own = [] if name == "then" else [numpy_helper.from_array(np.full(5, 9, F32), "s")]
        return helper.make_graph([inner], name, [], [output], own)

    condition = helper.make_tensor("c", TensorProto.BOOL, [], [True])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch("then"),
                              else_branch=branch("else", epsilon=0.5))  # fmt: skip
    layers = from_onnx(model([choice], [condition, *tensors()]))
    assert list(layers) == ["else_bn", "then_bn"] or list(layers) == ["then_bn", "else_bn"]
    assert_same_bits(layers["then_bn"].gamma, cases.parameters(5)[0])
    assert_same_bits(layers["else_bn"].gamma, np.full(5, 9, F32))


VALUES = np.array([0.5, 1.5, 3, -2, 0.25], F32)
BITS = VALUES.view(np.uint32) >> 16


def typed(kind, numbers, raw=False):
    return helper.make_tensor("s", kind, [5], numbers, raw=raw)


def with_numbers(kind, numbers):
    """float16 and bfloat16 kept as numbers: the bits, in int32_data."""
    tensor = TensorProto(name="s", data_type=kind, dims=[5])
    tensor.int32_data.extend(map(int, numbers))
    return tensor


SOURCES = {
    "float_data": typed(FLOAT, VALUES),
    "float raw": typed(FLOAT, VALUES.tobytes(), raw=True),
    "double_data": typed(TensorProto.DOUBLE, VALUES.astype(np.float64)),
    "double raw": typed(TensorProto.DOUBLE, VALUES.astype(np.float64).tobytes(), raw=True),
    "float16 numbers": with_numbers(TensorProto.FLOAT16, VALUES.astype(np.float16).view(np.uint16)),
    "float16 raw": typed(TensorProto.FLOAT16, VALUES.astype(np.float16).tobytes(), raw=True),
    "bfloat16 numbers": with_numbers(TensorProto.BFLOAT16, BITS),
    "bfloat16 raw": typed(TensorProto.BFLOAT16, BITS.astype("<u2").tobytes(), raw=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_every_way_to_keep_a_tensor(kind):
    expected = VALUES.astype(np.float64) if kind.startswith("double") else VALUES
    np.testing.assert_array_equal(numpy_helper.to_array(SOURCES[kind]).astype(F32), VALUES)
    bn = from_onnx(model(initializers=tensors(s=SOURCES[kind])), name="bn")
    assert_same_bits(bn.gamma, expected)
    constant = helper.make_node("Constant", [], ["s"], value=SOURCES[kind])
    bn = from_onnx(model([constant, node()], tensors(s=None)), name="bn")
    assert_same_bits(bn.gamma, expected)


def test_constants_by_other_names():
    floats = helper.make_node("Constant", [], ["f"], value_floats=VALUES.tolist())
    identity = helper.make_node("Identity", ["f"], ["s"])
    shared = helper.make_node("Identity", ["b"], ["m"])
    bn = from_onnx(model([floats, identity, shared, node()], tensors(s=None, m=None)), name="bn")
    assert_same_bits(bn.gamma, VALUES)
    assert_same_bits(bn.running_mean, bn.beta)
    # initializers that are inputs too (they had to be, once) hold what is used by default
    assert_same_bits(from_onnx(model(inputs=INPUTS), name="bn").gamma, cases.parameters(5)[0])


def tensor(kind=FLOAT, dims=(5,), raw=None, **fields):
    made = TensorProto(name="s", data_type=kind, dims=dims, **fields)
    if raw is not None:
        made.raw_data = raw
    return made


def producing(*nodes):
    return model([*nodes, node()], tensors(s=None))


REFUSED = {
    "no initializer": (model(initializers=tensors(s=None)), r"scale \('s'\): .*nothing has"),
    "an input": (model(initializers=tensors(s=None), inputs=["s"]), r"scale \('s'\): .* an input of"),
    "computed": (producing(helper.make_node("Relu", ["b"], ["s"])), r"scale \('s'\).* output of Relu"),
    "a circle": (producing(helper.make_node("Identity", ["s"], ["s"])), r"\('s'\): .* of Identity"),
    "Identity of nothing": (producing(helper.make_node("Identity", [], ["s"])), "of Identity"),
    "a number": (producing(helper.make_node("Constant", [], ["s"], value_float=1.0)), "value_float"),
    "spatial": (model([node(spatial=0)], tensors(s=TensorProto(name="s", data_type=FLOAT, dims=[5, 3, 2])),
                      opset=7), r"scale \('s', spatial=0\): expected shape \(C,\), .*got \(5, 3, 2\)$"),
    "3 inputs": (model([helper.make_node("BatchNormalization", ["x", "s", "b"], ["y"], "bn")]),
                 "expected 5 inputs, got 3"),
    "an empty input": (model([helper.make_node("BatchNormalization", ["x", "", "b", "m", "v"],
                                               ["y", ""], "bn")]), r"scale \(''\): .* nothing has"),
    "epsilon": (model([node(epsilon=-1.0)]), "eps: expected"),
    "momentum": (model([node(momentum=float("nan"))]), "momentum: expected"),
    "integers": (model(initializers=tensors(s=tensor(TensorProto.INT32))), "ONNX's type 6"),
    "another length": (model(initializers=tensors(s=tensor(dims=[4], raw=bytes(16)))), r"\(4,\)"),
    "no value": (model(initializers=tensors(s=tensor(dims=[0], raw=b""))), r"\(0,\)"),
    "a scalar": (model(initializers=tensors(s=tensor(dims=[], raw=bytes(4)))), r"\(\)"),
    "two dimensions": (model(initializers=tensors(s=tensor(dims=[5, 1], raw=bytes(20)))), r"\(5, 1\)"),
    "a negative size": (model(initializers=tensors(s=tensor(dims=[-5], raw=bytes(20)))), r"\(-5,\)"),
    "a huge size": (model(initializers=tensors(s=tensor(dims=[2**62], raw=bytes(20)))), "got 20$"),
    "a huge size of numbers": (model(initializers=tensors(s=tensor(dims=[2**62], float_data=[1]))),
                               "values in float_data, got 1$"),
    "no data": (model(initializers=tensors(s=tensor())), "5 values in float_data, got 0"),
    "too many numbers": (model(initializers=tensors(s=tensor(float_data=[1] * 6))), "got 6"),
    "more than 16 bits": (model(initializers=tensors(s=with_numbers(10, [70000] * 5))), "16 bits"),
    "less than 0": (model(initializers=tensors(s=with_numbers(16, [-1] * 5))), "16 bits"),
    "without a name": (model([node("", y=())]), "expected a name or an output"),
}  # fmt: skip


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize(("network", "words"), REFUSED.values(), ids=REFUSED)
def test_a_node_that_is_no_layer_is_a_value_error(network, words, as_file, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(network.SerializeToString())
    with pytest.raises(ValueError, match=f"node '.*: .*{words}") as error:
        from_onnx(path if as_file else network)
    start = r"^path_or_model: expected an ONNX model, got .*network\.onnx: node" if as_file else "^node"
    error.match(start)


def test_other_arguments():
    with pytest.raises(ValueError, match=r"^name: expected one of 'bn', got 'other'$"):
        from_onnx(model(), name="other")
    for other in (None, 3, b"", model().graph):
        with pytest.raises(TypeError, match="path_or_model: expected a file's name or an onnx"):
            from_onnx(other)
    with pytest.raises(ValueError, match="model: expected a graph, got none"):
        from_onnx(onnx.ModelProto())


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        from_onnx(tmp_path / "network.onnx")
    with pytest.raises(IsADirectoryError):
        from_onnx(tmp_path)


def test_without_onnx_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"onnx: expected it to be installed .*nbbn: .*\[onnx\]"):
        from_onnx("network.onnx")


@pytest.mark.parametrize("content", [b"", b"no model", b"\xff" * 99, b"PK\x03\x04" * 9], ids=range(4))
def test_a_file_of_another_kind_is_a_value_error(content, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^path_or_model: expected an ONNX .*network\.onnx: "):
        from_onnx(path)


def test_a_spoiled_file_is_layers_or_a_value_error(tmp_path):
    """Bytes flipped, and the end cut off."""
    path, whole = tmp_path / "network.onnx", chain()[0].SerializeToString()
    random, refused = np.random.default_rng(0), 0
    for _ in range(3000):
        spoiled = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            spoiled[place] ^= 1 << random.integers(0, 8)
        size = len(whole) if random.random() < 0.9 else int(random.integers(0, len(whole)))
        path.write_bytes(bytes(spoiled[:size]))
        try:
            assert all(isinstance(bn, nbbn.BatchNorm) for bn in from_onnx(path).values())
        except ValueError as error:
            assert str(error).startswith("path_or_model: expected an ONNX model, got ")
            refused += 1
    assert 0 < refused < 3000


@pytest.fixture
def folder(tmp_path):
    """A model's folder with a file of data in it, and another one outside."""
    folder = tmp_path / "model"
    (folder / "inner").mkdir(parents=True)
    for path in (folder / "data.bin", folder / "inner" / "data.bin", tmp_path / "secret.bin"):
        path.write_bytes(bytes(8) + VALUES.tobytes() + bytes(4))
    (folder / "link.bin").symlink_to(folder / "data.bin")
    (folder / "escape.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    return folder


def external(folder, location, **entries):
    """The name of a model whose scale is kept in another file."""
    made = tensor(data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": 8, "length": 20, **entries}.items():
        if value is not None:
            made.external_data.add(key=key, value=str(value))
    path = folder / "network.onnx"
    path.write_bytes(model(initializers=tensors(s=made)).SerializeToString())
    return path


@pytest.mark.parametrize("location", ["data.bin", "./data.bin", "inner/data.bin", "link.bin"])
def test_external_data_beside_the_model_is_read(location, folder, monkeypatch):
    assert_same_bits(from_onnx(external(folder, location), name="bn").gamma, VALUES)
    monkeypatch.chdir(folder)
    assert_same_bits(from_onnx("network.onnx", name="bn").gamma, VALUES)


def test_external_data_as_onnx_writes_it(folder):
    path, network = folder / "network.onnx", chain()[0]
    expected = from_onnx(network)
    options = {"all_tensors_to_one_file": True, "location": "weights", "size_threshold": 0}
    onnx.save(network, path, save_as_external_data=True, **options)
    found = from_onnx(path)
    for name in ("bn1", "n2"):
        for array in ARRAYS:
            assert_same_bits(getattr(found[name], array), getattr(expected[name], array))
    with pytest.raises(ValueError, match="external data, which is read only beside"):
        from_onnx(onnx.load(path, load_external_data=False))
    assert list(from_onnx(onnx.load(path))) == ["bn1", "n2"]


@pytest.mark.parametrize(
    "location",
    ["", ".", "..", "../secret.bin", "inner/../../secret.bin", "inner/../data.bin", "escape.bin",
     "up/secret.bin", "pipe", "inner", "missing.bin", "C:\\data.bin", "..\\secret.bin", "data.bin\0",
     "/etc/passwd", "ABSOLUTE", "x" * 5000],
)  # fmt: skip
def test_external_data_elsewhere_is_refused(location, folder):
    location = str(folder / "data.bin") if location == "ABSOLUTE" else location
    with pytest.raises(ValueError, match=r"scale \('s'\): .*a file of the model's folder|too long"):
        from_onnx(external(folder, location))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 13}, "expected 20 bytes from byte 13 of 'data.bin', which has 32"),
        ({"offset": 10**18}, "from byte 10"),
        ({"offset": -8}, "offset to be a number of bytes, got '-8'"),
        ({"offset": "9" * 5000}, "offset to be a number"),
        ({"offset": "eight"}, "offset to be a number"),
        ({"length": 24}, "expected 20 bytes of external data, got length 24"),
        ({"length": 10**18}, "expected 20 bytes of external data"),
        ({"length": ""}, "length to be a number"),
        ({"location": None}, "a file of the model's folder, got ''"),
    ],
    ids=range(9),
)
def test_external_data_of_another_size_is_refused(entries, words, folder):
    with pytest.raises(ValueError, match=words):
        from_onnx(external(folder, **{"location": "data.bin", **entries}))
    assert_same_bits(from_onnx(external(folder, "data.bin", length=None), name="bn").gamma, VALUES)


def test_a_huge_size_of_external_data_takes_no_memory(folder):
    made = tensor(dims=[2**40], data_location=TensorProto.EXTERNAL)
    made.external_data.add(key="location", value="data.bin")
    path = folder / "network.onnx"
    path.write_bytes(model(initializers=tensors(s=made)).SerializeToString())
    with pytest.raises(ValueError, match="which has 32"):
        from_onnx(path)


def test_nodes_that_share_their_name_and_output_are_numbered():
    assert list(from_onnx(model([node(""), node(""), node("")]))) == ["y", "y#2", "y#3"]
    named = [node("y#2"), node(""), node(""), node("y#4"), node(""), node("y#2"), node("")]
    names = ["y#2", "y", "y#3", "y#4", "y#5", "y#6", "y#7"]
    assert list(from_onnx(model(named))) == names


@pytest.mark.parametrize("opset", [7, 8])
def test_spatial_0_with_a_value_a_channel_is_per_channel(opset):
    """As MXNet exports ResNet and ArcFace."""
    network = model([node(spatial=0)], opset=opset)
    bn, x = from_onnx(network, name="bn"), cases.values((6, 5))
    assert_close(bn(x), run(network, x)[0])
    assert_same_bits(bn.gamma, cases.parameters(5)[0])


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("network", [network for network, _ in REFUSED.values()], ids=REFUSED)
def test_with_a_name_other_nodes_are_not_looked_at(network, as_file, tmp_path):
    both = onnx.ModelProto()
    both.CopyFrom(network)
    both.graph.node.append(node("right", "x", ("z",), "right."))
    both.graph.initializer.extend(tensors(prefix="right."))
    path = tmp_path / "network.onnx"
    path.write_bytes(both.SerializeToString())
    source = path if as_file else both
    assert_same_bits(from_onnx(source, name="right").gamma, cases.parameters(5)[0])
    with pytest.raises(ValueError, match="node '"):
        from_onnx(source)
    with pytest.raises(ValueError, match=r"^name: expected one of .*'right'.*, got 'other'$"):
        from_onnx(source, name="other")


def sharing(nodes, channels, kind="float32"):
    """A model whose nodes have the same parameters."""
    numbers = np.ones(channels, F32)
    made = [helper.make_tensor(k, FLOAT, [channels], numbers.tobytes(), raw=True) for k in INPUTS]
    if kind == "bfloat16":
        bits = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
        made[0] = helper.make_tensor("s", TensorProto.BFLOAT16, [channels], bits, raw=True)
    return model([node(f"bn{k}") for k in range(nodes)], made)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_nodes_that_share_large_parameters_take_no_memory_at_will(kind, tmp_path):
    path = tmp_path / "network.onnx"
    path.write_bytes(sharing(1500, 5000, kind).SerializeToString())
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"node 'bn.*at most 16777216 bytes of parameters that nodes"):
        from_onnx(path)
    assert tracemalloc.get_traced_memory()[1] < 60_000_000
    tracemalloc.stop()
    assert from_onnx(path, name="bn1499").num_features == 5000
    assert len(from_onnx(sharing(200, 5000))) == 200


def test_a_slope_of_a_negative_size_does_not_lower_what_nodes_share():
    shared, slope = sharing(200, 50_000), TensorProto(name="slope", data_type=FLOAT, dims=[-200_000], raw_data=b"")
    shared.graph.initializer.append(slope)
    for k, bn in enumerate(list(shared.graph.node)):
        bn.output[0] = f"y{k}"
        shared.graph.node.append(helper.make_node("PRelu", [f"y{k}", "slope"], [f"z{k}"]))
    with pytest.raises(ValueError, match="at most 16777216 bytes of parameters that nodes share"):
        from_onnx(shared, activations=True)


def test_external_data_that_is_shared_takes_no_memory_at_will(folder):
    """Each node has initializers of its own, which all lie at one place of the other file."""
    (folder / "data.bin").write_bytes(np.ones(5000, F32).tobytes())
    nodes, made = [], []
    for k in range(1000):
        nodes.append(node(f"bn{k}", prefix=f"{k}."))
        for name in INPUTS:
            one = TensorProto(name=f"{k}.{name}", data_type=FLOAT, dims=[5000], data_location=1)
            one.external_data.add(key="location", value="data.bin")
            made.append(one)
    path = folder / "network.onnx"
    path.write_bytes(model(nodes, made).SerializeToString())
    with pytest.raises(ValueError, match="at most 16777216 bytes of parameters that nodes share"):
        from_onnx(path)
    assert from_onnx(path, name="bn999").num_features == 5000


def work(network):
    """How many lines run to read it."""
    lines, outer = 0, sys.gettrace()

    def count(frame, event, argument):
        nonlocal lines
        lines += 1
        return count

    sys.settrace(count)
    try:
        from_onnx(network)
    finally:
        sys.settrace(outer)
    return lines


def same_names(size):
    return model([node() for _ in range(size)])


def behind_a_chain(size):
    links = [helper.make_node("Identity", [f"s{k}"], [f"s{k + 1}"]) for k in range(size)]
    behind = [helper.make_node("BatchNormalization", ["x", f"s{size}", "b", "m", "v"], [f"y{k}"])
              for k in range(size)]  # fmt: skip
    return model([*links, *behind], tensors(s=numpy_helper.from_array(VALUES, "s0")))


@pytest.mark.parametrize("make", [same_names, behind_a_chain])
def test_twice_the_model_is_twice_the_work(make):
    few, many = work(make(100)), work(make(400))
    assert many < 4.5 * few
