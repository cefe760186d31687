"""PyTorch modules and state dicts as layers, and back: the same predictions, the same training, clear errors."""

import subprocess
import sys
import textwrap
from collections import OrderedDict

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer

import nbbn
from nbbn.interop import from_torch, to_torch_state_dict

F32 = np.float32
ARRAYS = ("gamma", "beta", "running_mean", "running_var")
NAMES = ("weight", "bias", "running_mean", "running_var")


def state(prefix="", count=3, dtype=F32, **changes):
    """A state dict of arrays; a change of ... takes a key away."""
    values = dict(zip(NAMES, cases.parameters(count, dtype), strict=True))
    values = {**values, "num_batches_tracked": np.array(7), **changes}
    return OrderedDict((prefix + name, v) for name, v in values.items() if v is not ...)


@pytest.mark.parametrize("dtype", cases.DTYPES)
def test_a_state_dict_of_arrays_needs_no_torch(dtype):
    source = state(dtype=dtype)
    bn = from_torch(source)
    for ours, theirs in zip(ARRAYS, NAMES, strict=True):
        assert_same_bits(getattr(bn, ours), source[theirs])
        assert not np.shares_memory(getattr(bn, ours), source[theirs])
    assert bn.num_batches_tracked == 7
    assert bn._options() == nbbn.BatchNorm(3, dtype=dtype)._options()  # PyTorch's defaults are ours
    assert not bn.training


def test_importing_and_loading_arrays_imports_no_framework():
    script = """
        import sys
        import numpy as np
        import nbbn.interop
        names = ("weight", "bias", "running_mean", "running_var")
        state = {name: np.ones(3, np.float32) for name in names}
        assert nbbn.interop.from_torch(state).num_features == 3
        assert nbbn.interop.from_keras(list(state.values())).num_features == 3
        print([name for name in ("torch", "keras", "onnx", "safetensors") if name in sys.modules])
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("prefix", ["layer1.0.bn1", "layer1.0.bn1."])
def test_a_prefix_finds_a_layer_of_a_network(prefix):
    network = {**state("layer1.0.bn1."), **state("layer1.0.bn10.", weight=np.zeros(3, F32)),
               "bn1.weight": np.zeros(5), "conv.weight": np.ones((3, 3, 1, 1))}  # fmt: skip
    assert_same_bits(from_torch(network, prefix=prefix).gamma, state()["weight"])


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_widens_without_loss(name):
    dtype = np.dtype(
        "float16" if name == "float16" else pytest.importorskip("ml_dtypes", reason="no bfloat16").bfloat16
    )
    source = state(running_var=np.array([0.5, 1.5, 3]).astype(dtype))
    bn = from_torch(source)
    assert bn.dtype == F32
    assert_same_bits(bn.running_var, np.array([0.5, 1.5, 3], F32))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
def test_a_counter_of_any_type_and_shape(name, shape):
    """As programs leave it that cast a whole checkpoint, or give all entries a dimension."""
    if name == "bfloat16":
        pytest.importorskip("ml_dtypes", reason="no bfloat16")
    cast = {key: value.astype(np.float16) for key, value in state().items()}
    bn = from_torch({**cast, "num_batches_tracked": np.full(shape, 7, np.dtype(name))})
    assert (bn.num_batches_tracked, bn.dtype) == (7, F32)


def test_one_array_of_float64_makes_a_layer_of_float64():
    bn = from_torch(state(running_mean=np.array([0.1, 0.2, 0.3])))
    assert bn.dtype == np.float64
    assert_same_bits(bn.running_mean, np.array([0.1, 0.2, 0.3]))
    assert_same_bits(bn.gamma, state()["weight"].astype(np.float64))


def test_what_a_state_dict_may_lack():
    without = {"num_batches_tracked": ..., "bias": ...}
    bn = from_torch(state(**without))  # from before PyTorch counted; bias=False
    assert bn.num_batches_tracked == 0
    assert bn.beta is None
    assert from_torch(state(weight=..., bias=...)).gamma is None
    assert from_torch(state(running_mean=..., running_var=...)).track_running_stats is False


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"running_var": ...}, ["running_var: expected", "running_mean"]),
        ({"running_mean": ...}, ["running_mean: expected"]),
        ({"weight": ...}, ["weight: expected", "got 'net.bn.bias'"]),
        ({"gamma": np.ones(3, F32)}, ["gamma: expected no key but", "weight"]),
        ({"weight": np.ones(4, F32)}, ["bias: expected shape", r"\(4,\)", r"\(3,\)"]),
        ({"running_var": np.ones((3, 1), F32)}, ["running_var: expected shape", r"\(3, 1\)"]),
        ({"running_var": np.float32(1)}, ["running_var: expected shape", r"\(\)"]),
        ({name: np.ones(0, F32) for name in NAMES}, ["weight: expected shape", r"\(0,\)"]),
        (dict.fromkeys(NAMES, ...), ["weight: expected", "got 'net.bn.num_batches_tracked'$"]),
        ({"num_batches_tracked": -1}, ["num_batches_tracked: expected", "-1"]),
    ],
)
def test_a_state_dict_that_is_no_layer_is_a_value_error(changes, words):
    prefix = "net.bn."
    with pytest.raises(ValueError) as error:  # noqa: PT011 the words are matched one by one
        from_torch({**state(prefix, **changes), "fc.weight": 0}, prefix="net.bn")
    for word in words:
        error.match(word)
    if "num_batches_tracked" not in changes:
        error.match(f"^{prefix}")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight": np.ones(3, int)}, "weight: expected dtype .* got int64"),
        ({"weight": None}, "weight: expected dtype .* got object"),
        ({"weight": np.ma.masked_array(np.ones(3, F32))}, "weight: .* masked"),
        ({"weight": [[1.0], [1.0, 2.0]]}, "weight: expected an array, got builtins.list"),
        ({"num_batches_tracked": 1.5}, "num_batches_tracked: expected an integer"),
    ],
)
def test_a_value_of_another_type_is_a_type_error(changes, words):
    with pytest.raises(TypeError, match=words):
        from_torch(state(**changes))


def test_a_forgotten_or_wrong_prefix_is_told():
    network = {**state("layer1.bn1."), "fc.weight": np.ones(3)}
    with pytest.raises(ValueError, match=r"prefixes of layers: 'layer1\.bn1'$"):
        from_torch(network, prefix="layer1")
    with pytest.raises(ValueError, match=r"prefix: expected keys under 'bn1', got .*'fc\.weight'"):
        from_torch(network, prefix="bn1")
    with pytest.raises(ValueError, match="got none"):
        from_torch({})
    with pytest.raises(ValueError, match="and 93 more"):
        from_torch({f"{k}.weight": 0 for k in range(101)}, prefix="x")
    with pytest.raises(TypeError, match="prefix: expected a string, got int"):
        from_torch(network, prefix=1)


@pytest.mark.parametrize("obj", [None, 3, np.ones(3), [np.ones(3)], nbbn.BatchNorm(3)], ids=repr)
def test_another_object_is_a_type_error(obj):
    with pytest.raises(TypeError, match=f"obj: expected a torch.nn.*got .*{type(obj).__name__}"):
        from_torch(obj)


def test_without_torch_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"torch: expected it to be installed \(pip install torch\)"):
        to_torch_state_dict(nbbn.BatchNorm(3))


def test_only_a_layer_becomes_a_state_dict():
    with pytest.raises(TypeError, match="bn: expected a BatchNorm, got dict"):
        to_torch_state_dict({})


@pytest.fixture
def torch():
    return pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")


SHAPES = {"BatchNorm1d": (12, 5), "BatchNorm2d": (4, 5, 7, 6), "BatchNorm3d": (3, 5, 2, 4, 3)}
OPTIONS = (
    {}, {"momentum": 0.3, "eps": 1e-3}, {"momentum": None}, {"affine": False}, {"bias": False},
    {"track_running_stats": False}, {"affine": False, "track_running_stats": False},
)  # fmt: skip
by_module = pytest.mark.parametrize("kind", SHAPES)
by_options = pytest.mark.parametrize("options", OPTIONS, ids=cases.case_id)
by_dtype = pytest.mark.parametrize("dtype", cases.DTYPES, ids=cases.case_id)


def used(torch, kind, dtype=F32, **options):
    """A module that has seen two batches."""
    module = getattr(torch.nn, kind)(5, dtype=getattr(torch, np.dtype(dtype).name), **options)
    with torch.no_grad():
        for name, value in zip(NAMES[:2], cases.parameters(5, dtype), strict=False):
            if getattr(module, name) is not None:
                getattr(module, name).copy_(torch.from_numpy(value))
    for seed in (1, 2):
        module(torch.from_numpy(cases.values(SHAPES[kind], dtype, seed=seed)))
    return module


def assert_close(ours, theirs, units=16):
    """Within a few units in the last place of the largest value."""
    theirs = theirs.detach().numpy()
    assert ours.dtype == theirs.dtype
    bound = units * np.finfo(ours.dtype).eps * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


def assert_same_training(torch, bn, module, shape, dtype):
    """The next two steps of training, and evaluation after them."""
    for seed in (3, 4):
        x = cases.values(shape, dtype, seed=seed)
        assert_close(bn(x, training=True), module.train()(torch.from_numpy(x)))
        if module.running_mean is not None:
            assert_close(bn.running_mean, module.running_mean)
            assert_close(bn.running_var, module.running_var)
            assert bn.num_batches_tracked == int(module.num_batches_tracked)
    assert_close(bn(x, training=False), module.eval()(torch.from_numpy(x)))


@by_dtype
@by_options
@by_module
def test_a_module_predicts_and_trains_as_before(torch, kind, options, dtype):
    module, x = used(torch, kind, dtype, **options), cases.values(SHAPES[kind], dtype)
    bn = from_torch(module.eval())
    assert bn.training is False
    assert (bn.eps, bn.momentum) == (module.eps, module.momentum)
    for ours, theirs in zip(ARRAYS, NAMES, strict=True):
        value = getattr(module, theirs)
        assert (getattr(bn, ours) is None) == (value is None)
        if value is not None:
            assert_same_bits(getattr(bn, ours), value.detach().numpy())
            assert not np.shares_memory(getattr(bn, ours), value.detach().numpy())
    assert_close(bn(x), module(torch.from_numpy(x)))
    assert from_torch(module.train()).training is True
    assert_same_training(torch, from_torch(module), module, SHAPES[kind], dtype)


@by_dtype
@by_options
def test_a_state_dict_goes_round_to_the_last_bit(torch, options, dtype):
    module = used(torch, "BatchNorm2d", dtype, **options)
    other = torch.nn.BatchNorm2d(5, dtype=getattr(torch, np.dtype(dtype).name), **options)
    bn = from_torch(module)
    other.load_state_dict(to_torch_state_dict(bn), strict=True)
    assert other.state_dict().keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    if options.get("track_running_stats", True):
        assert to_torch_state_dict(bn)["num_batches_tracked"].dtype == torch.int64
        assert from_torch(to_torch_state_dict(bn)).num_batches_tracked == 2
    for name, value in to_torch_state_dict(bn).items():
        if name in NAMES:
            value.fill_(9)
            assert not np.any(bn.state_dict()[ARRAYS[NAMES.index(name)]] == 9)


@by_module
def test_the_state_dict_of_a_network(torch, kind):
    module = used(torch, kind)
    network = torch.nn.ModuleDict({"stem": torch.nn.ModuleList([torch.nn.Linear(2, 2), module])})
    bn = from_torch(network.state_dict(), prefix="stem.1").eval()
    x = cases.values(SHAPES[kind])
    assert_close(bn(x), module.eval()(torch.from_numpy(x)))
    assert_same_training(torch, bn, module, SHAPES[kind], F32)


def test_beta_alone_becomes_a_module_with_a_weight_of_ones(torch):
    bn, module = layer(5, scale=False).eval(), torch.nn.BatchNorm1d(5).eval()
    module.load_state_dict(to_torch_state_dict(bn))
    x = cases.values((12, 5))
    assert_close(bn(x), module(torch.from_numpy(x)))


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_parameters_of_half_precision_widen(torch, name):
    module = used(torch, "BatchNorm2d").to(getattr(torch, name))
    bn = from_torch(module)
    assert bn.dtype == F32
    for ours, theirs in zip(ARRAYS, NAMES, strict=True):
        assert_same_bits(getattr(bn, ours), getattr(module, theirs).detach().float().numpy())
    assert_same_bits(from_torch(module.state_dict()).gamma, bn.gamma)


def test_other_modules_of_the_family(torch):
    x = cases.values((12, 5))
    synchronized = torch.nn.SyncBatchNorm(5, eps=0.5).eval()
    assert_close(from_torch(synchronized)(x), synchronized(torch.from_numpy(x)))
    lazy = torch.nn.LazyBatchNorm1d(eps=0.5)
    with pytest.raises(TypeError, match=r"weight: expected an array, got .*Uninitialized"):
        from_torch(lazy)
    lazy(torch.from_numpy(x))
    assert_close(from_torch(lazy.eval())(x), lazy(torch.from_numpy(x)))

    class Named(torch.nn.BatchNorm1d):
        pass

    assert from_torch(Named(5)).num_features == 5


def test_modules_that_compute_something_else_are_refused(torch):
    class Other(torch.nn.BatchNorm1d):
        def forward(self, x):
            return super().forward(x).relu()

    quantized = torch.ao.nn.quantized.BatchNorm2d
    others = [torch.nn.Linear(5, 5), torch.nn.InstanceNorm1d(5), torch.nn.LayerNorm(5), Other(5),
              torch.nn.Sequential(torch.nn.LayerNorm(5)), quantized(5)]  # fmt: skip
    for module in others:
        with pytest.raises(TypeError, match=f"obj: expected .*{type(module).__name__}$"):
            from_torch(module)
        network = torch.nn.Sequential(torch.nn.BatchNorm1d(5), module)
        with pytest.raises(TypeError, match=f"1: expected .*{type(module).__name__}$"):
            from_torch(network, prefix="1")
        assert from_torch(network, prefix="0").num_features == 5
    with pytest.raises(TypeError, match=r"^1: expected a torch\.nn\.BatchNorm1d, .*Other$"):
        from_torch(torch.nn.Sequential(torch.nn.BatchNorm1d(5), Other(5)))
    with pytest.raises(ValueError, match="prefix: expected the name of a module, none, got 'bn'"):
        from_torch(torch.nn.BatchNorm1d(5), prefix="bn")


def network_of(torch):
    """A network with layers of other options each, one of them in two places."""
    nn = torch.nn
    shared = nn.BatchNorm2d(4, eps=1e-2)
    block = nn.ModuleDict({"bn": nn.BatchNorm2d(4, momentum=None), "norm": nn.LayerNorm(4)})
    network = nn.ModuleDict({"first": shared, "block": block, "again": shared, "fc": nn.Linear(4, 4)})
    for seed, module in enumerate((shared, block["bn"])):
        module(torch.from_numpy(cases.values((3, 4, 2, 2), seed=seed)))
    return network


def test_a_whole_network(torch):
    network, x = network_of(torch), cases.values((3, 4, 2, 2), seed=9)
    network["block"].eval()
    layers = from_torch(network)
    assert list(layers) == ["first", "block.bn", "again"]
    assert layers["first"] is layers["again"]
    assert [bn.training for bn in layers.values()] == [True, False, True]
    assert (layers["first"].eps, layers["block.bn"].momentum) == (1e-2, None)
    for name, bn in layers.items():
        module = network.get_submodule(name).eval()
        assert_close(bn.eval()(x), module(torch.from_numpy(x)))
        assert_same_bits(from_torch(network, prefix=name)(x), bn(x))


def test_the_state_dict_of_a_whole_network(torch):
    network, x = network_of(torch), cases.values((3, 4, 2, 2), seed=9)
    layers = from_torch(network.state_dict(), eps=1e-2, momentum=None)
    assert list(layers) == ["first", "block.bn", "again"]
    for bn in layers.values():
        assert (bn.eps, bn.momentum, bn.training) == (1e-2, None, False)
    assert_close(layers["first"](x), network["first"].eval()(torch.from_numpy(x)))
    one = from_torch(network.state_dict(), prefix="block.bn", eps=0.5)
    assert (one.eps, one.momentum) == (0.5, 0.1)


def test_an_error_in_a_network_names_the_layer(torch):
    network = network_of(torch)
    network["block"]["bn"].running_var = None
    with pytest.raises(ValueError, match=r"^block\.bn: expected running_mean and running_var"):
        from_torch(network)
    assert from_torch(network, prefix="first").eps == 1e-2


def test_a_state_dict_of_arrays_of_a_network():
    network = {**state("a."), "fc.weight": np.ones((2, 3)), **state("b.c.", count=5), "scale": 1}
    layers = from_torch(network)
    assert {name: bn.num_features for name, bn in layers.items()} == {"a": 3, "b.c": 5}
    network["b.c.bias"] = np.ones(4, F32)
    with pytest.raises(ValueError, match=r"^b\.c\.bias: expected shape"):
        from_torch(network)
    assert_same_bits(from_torch(network, prefix="a").gamma, layers["a"].gamma)
    for wrong, error in ({"eps": -1.0}, ValueError), ({"momentum": "fast"}, TypeError):
        with pytest.raises(error, match=f"{next(iter(wrong))}: expected a finite number"):
            from_torch(network, prefix="a", **wrong)


def test_many_layers_take_time_in_proportion():
    network = {key: value for k in range(3000) for key, value in state(f"layer{k}.").items()}
    assert len(from_torch(network)) == 3000


def test_statistics_that_were_switched_off_later(torch):
    x = cases.values((12, 5))
    module = used(torch, "BatchNorm1d")
    module.track_running_stats = False
    bn = from_torch(module)
    before = bn.running_mean.copy()
    assert_close(bn(x), module(torch.from_numpy(x)))
    assert_same_bits(bn.running_mean, before)
    assert_close(bn.eval()(x), module.eval()(torch.from_numpy(x)))
    module.running_mean = module.running_var = None
    assert_close(from_torch(module)(x), module(torch.from_numpy(x)))
    module.running_mean = torch.zeros(5)
    with pytest.raises(ValueError, match="running_mean and running_var"):
        from_torch(module)


def test_a_tensor_elsewhere_is_refused(torch):
    with pytest.raises(ValueError, match=r"weight: .* CPU's memory, got one on meta"):
        from_torch(torch.nn.BatchNorm1d(5, device="meta"))
    entries = {**state(), "running_var": torch.ones(3, device="meta")}
    with pytest.raises(ValueError, match=r"running_var: .* CPU's memory, got one on meta"):
        from_torch(entries)


@pytest.mark.parametrize("name", ["int32", "complex64", "float8_e4m3fn"])
def test_a_tensor_of_another_type_is_refused(torch, name):
    with pytest.raises(TypeError, match="weight: expected"):
        from_torch({**state(), "weight": torch.ones(3).to(getattr(torch, name))})
