"""Layers in safetensors files: round trips, PyTorch's files, and what hostile files can not do."""

import json
import os
import sys

import cases
import numpy as np
import pytest
from compare import assert_same_bits, layer

import nbbn
from nbbn.interop import load_safetensors, save_safetensors

library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

F32 = np.float32
X = cases.values((6, 3, 5))
ARRAYS = ("gamma", "beta", "running_mean", "running_var")
TORCH_NAMES = ("weight", "bias", "running_mean", "running_var")
KEY = "nbbn.BatchNorm"  # of the metadata
NAMED = {"F64": np.float64, "F32": F32, "F16": np.float16, "I64": np.int64, "I32": np.int32}


def torch_arrays(prefix="", dtype=F32):
    values = dict(zip(TORCH_NAMES, cases.parameters(3, dtype), strict=True))
    return {prefix + k: v for k, v in {**values, "num_batches_tracked": np.array(7)}.items()}


def written(path, entries, metadata=None, data=None):
    """A file made by hand; an entry is (type, shape, bytes), or its header as a dict."""
    header, body = {} if metadata is None else {"__metadata__": metadata}, b""
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            kind, shape, content = entry
            offsets = [len(body), len(body) + len(content)]
            entry = {"dtype": kind, "shape": shape, "data_offsets": offsets}
            body += content
        header[name] = entry
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (body if data is None else data))
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


@pytest.mark.parametrize("options", cases.LAYER_OPTIONS, ids=cases.case_id)
def test_a_layer_comes_back_with_its_configuration(options, path):
    bn = layer(3, **options)
    bn(X)
    for mode in (True, False):
        save_safetensors(bn.train(mode), path)
        other = load_safetensors(path)
        assert other._options() == bn._options()
        assert other._options() == bn._options()
        assert other.training is mode
        assert other.state_dict().keys() == bn.state_dict().keys()
        for name, value in bn.state_dict().items():
            assert_same_bits(other.state_dict()[name], value)
        assert_same_bits(other(X), bn(X))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_large_layer_without_arrays_comes_back(path):
    bn = nbbn.BatchNorm(5000, scale=False, center=False, track_running_stats=False)
    save_safetensors(bn, path)
    assert load_safetensors(path).num_features == 5000


def test_the_library_reads_what_was_saved(path):
    bn = layer(3)
    save_safetensors(bn, str(path))
    found = library.load_file(path)
    assert found.keys() == bn.state_dict().keys()
    for name, value in found.items():
        assert_same_bits(value, np.asarray(bn.state_dict()[name]))


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("prefix", ["", "layer1.0.bn1", "layer1.0.bn1."])
def test_files_with_the_names_of_pytorch(prefix, dtype, path):
    start = f"{prefix.removesuffix('.')}." if prefix else ""
    arrays = torch_arrays(start, dtype)
    others = {"fc.weight": np.ones((2, 2)), **torch_arrays("layer1.0.bn10.")} if prefix else {}
    library.save_file({**arrays, **others}, path, metadata={"format": "pt"})
    bn = load_safetensors(path, prefix=prefix)
    for ours, theirs in zip(ARRAYS, TORCH_NAMES, strict=True):
        assert_same_bits(getattr(bn, ours), arrays[start + theirs])
    assert bn.num_batches_tracked == 7
    assert bn._options() == nbbn.BatchNorm(3, dtype=dtype)._options()


def test_a_file_of_a_whole_network(path):
    ours = {f"b.{name}": np.asarray(value) for name, value in layer(5).state_dict().items()}
    arrays = {**torch_arrays("a.0."), **ours, "fc.weight": np.ones((2, 2), np.int8)}
    library.save_file(arrays, path)
    layers = load_safetensors(path, eps=1e-3, momentum=None)
    assert {name: bn.num_features for name, bn in layers.items()} == {"a.0": 3, "b": 5}
    for name, bn in layers.items():
        assert (bn.eps, bn.momentum, bn.training) == (1e-3, None, False)
        one = load_safetensors(path, prefix=name, eps=1e-3)
        assert (one.momentum, one.training) == (0.1, False)
        assert_same_bits(one.gamma, bn.gamma)
    library.save_file({**arrays, "b.gamma": np.ones(4, F32)}, path)
    with pytest.raises(ValueError, match=r"b\.beta: expected shape"):
        load_safetensors(path)
    assert load_safetensors(path, prefix="a.0").num_features == 3


def test_files_with_our_names_and_no_configuration(path):
    bn = layer(3, scale=False)
    state = {name: np.asarray(value) for name, value in bn.state_dict().items()}
    library.save_file({f"a.{name}": value for name, value in state.items()}, path)
    other = load_safetensors(path, prefix="a")
    assert other.gamma is None
    assert_same_bits(other.beta, bn.beta)


def test_the_configuration_is_of_the_layer_without_a_prefix(path):
    options = {KEY: json.dumps({**nbbn.BatchNorm(9)._options(), "training": True})}
    library.save_file(torch_arrays("a."), path, metadata=options)
    assert load_safetensors(path, prefix="a").num_features == 3


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_half_precision_widens_without_loss(kind, path):
    values = np.array([0.5, 1.5, 3.0], F32)
    half = values.astype(np.float16).tobytes()
    upper = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    content = half if kind == "F16" else upper
    written(path, {name: (kind, [3], content) for name in TORCH_NAMES})
    bn = load_safetensors(path)
    for name in ARRAYS:
        assert_same_bits(getattr(bn, name), values)


ONE = ("F32", [3], bytes(12))
MEANS = {"running_mean": ONE, "running_var": ONE}
COUNTERS = {
    "F16": np.float16(7).tobytes(), "BF16": b"\xe0\x40", "F32": F32(7).tobytes(), "F64": np.float64(7).tobytes(),
    **{f"{kind}{bits}": b"\7" + bytes(bits // 8 - 1) for kind in "IU" for bits in (8, 16, 32, 64)},
}  # fmt: skip


@pytest.mark.parametrize("shape", [[], [1], [1, 1]], ids=str)
@pytest.mark.parametrize("kind", COUNTERS)
def test_a_counter_of_any_type_and_shape(kind, shape, path):
    written(path, {**MEANS, "num_batches_tracked": (kind, shape, COUNTERS[kind])})
    bn = load_safetensors(path)
    assert (bn.num_batches_tracked, type(bn.num_batches_tracked)) == (7, int)


@pytest.mark.parametrize("dtype", cases.DTYPES)
@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_a_layer_of_ours_that_was_cast_to_half_precision(kind, dtype, path):
    bn = layer(3, dtype=dtype, momentum=0.25)
    for name in ARRAYS:
        getattr(bn, name)[:] = [0.5, 1.5, 3.0]
    save_safetensors(bn, path)
    with library.safe_open(path, framework="np") as file:
        metadata = file.metadata()
    values = np.array([0.5, 1.5, 3.0], F32)
    half = values.astype(np.float16) if kind == "F16" else (values.view(np.uint32) >> 16).astype("<u2")
    counter = ("F16", [], np.float16(0).tobytes())
    entries = {**dict.fromkeys(ARRAYS, (kind, [3], half.tobytes())), "num_batches_tracked": counter}
    other = load_safetensors(written(path, entries, metadata))
    assert other._options() == bn._options()
    for name in ARRAYS:
        assert_same_bits(getattr(other, name), getattr(bn, name))


def test_bfloat16_as_torch_writes_it(path):
    torch = pytest.importorskip("torch", reason="torch is not installed: nothing to compare with")
    files = pytest.importorskip("safetensors.torch", reason="safetensors has no torch side")
    module = torch.nn.BatchNorm1d(3).bfloat16()
    module.weight.data.copy_(torch.tensor([0.1, -2.3, 4.5]))
    files.save_file(module.state_dict(), path)
    bn = load_safetensors(path)
    assert_same_bits(bn.gamma, module.weight.detach().float().numpy())
    assert bn.num_batches_tracked == 0


def test_a_file_replaces_an_older_one_whole_or_not_at_all(path, monkeypatch):
    save_safetensors(layer(3, eps=1.0), path)
    save_safetensors(layer(3), path)
    old = path.read_bytes()
    assert load_safetensors(path).eps == 1e-5

    def fail(*arguments):
        raise OSError("no space left on the device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        save_safetensors(layer(3, eps=2.0), path)
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_files_that_are_not_there(path):
    with pytest.raises(FileNotFoundError):
        load_safetensors(path)
    with pytest.raises(IsADirectoryError):
        load_safetensors(path.parent)
    with pytest.raises(OSError, match="missing"):
        save_safetensors(layer(3), path.parent / "missing" / "layer.safetensors")
    with pytest.raises(TypeError, match="bn: expected a BatchNorm, got dict"):
        save_safetensors({}, path)


@pytest.mark.parametrize("call", [load_safetensors, lambda p: save_safetensors(layer(3), p)])
def test_without_the_library_the_error_names_the_extra(call, path, monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"safetensors: .* installed .*nbbn: .*\[safetensors\]"):
        call(path)
    assert not path.exists()


def entry(kind="F32", shape=(3,), offsets=(0, 12)):
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(offsets)}


MALFORMED = {
    "one missing": {"running_mean": ONE},
    "another name": {**MEANS, "scale": ONE},
    "both kinds of names": {**MEANS, "weight": ONE, "gamma": ONE},
    "shapes that differ": {"running_mean": ONE, "running_var": ("F32", [2], bytes(8))},
    "two dimensions": dict.fromkeys(MEANS, ("F32", [3, 1], bytes(12))),
    "no value": dict.fromkeys(MEANS, ("F32", [0], b"")),
    "a scalar": dict.fromkeys(MEANS, ("F32", [], bytes(4))),
    "integers": dict.fromkeys(MEANS, ("I32", [3], bytes(12))),
    "8 bits": dict.fromkeys(MEANS, ("F8_E4M3", [3], bytes(3))),
    "an unknown type": dict.fromkeys(MEANS, ("Q7", [3], bytes(12))),
    "a counter that is negative": {**MEANS, "num_batches_tracked": ("I64", [], b"\xff" * 8)},
    "a counter with a fraction": {
        **MEANS,
        "num_batches_tracked": ("F64", [], np.float64(0.5).tobytes()),
    },
    "a counter of two": {**MEANS, "num_batches_tracked": ("I64", [2], bytes(16))},
    "offsets past the end": dict.fromkeys(MEANS, entry(offsets=(2**62, 2**62 + 12))),
    "offsets turned round": {"running_mean": entry(offsets=(12, 0))},
    "a huge shape": {"running_mean": entry(shape=(2**62,))},
    "a huge shape of no value": {"running_mean": entry(shape=(0, 2**62, 9), offsets=(0, 0))},
    "a negative shape": {"running_mean": entry(shape=(-3,))},
    "no array": {},
}


@pytest.mark.parametrize("entries", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_file_is_a_value_error(entries, path):
    written(path, entries)
    with pytest.raises(ValueError, match=r"^path: expected a safetensors .*layer\.safetensors: "):
        load_safetensors(path)


@pytest.mark.parametrize(("second", "size"), [((0, 12), 12), ((12, 24), 25), ((13, 25), 25)])
def test_arrays_that_overlap_or_leave_gaps_are_a_value_error(second, size, path):
    entries = {"running_mean": entry(), "running_var": entry(offsets=second)}
    written(path, entries, data=bytes(size))
    with pytest.raises(ValueError, match=r"^path: expected a safetensors .*SafetensorError"):
        load_safetensors(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"abc", bytes(8), b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 9,
     (100_000).to_bytes(8, "little") + b"[" * 100_000, (2).to_bytes(8, "little") + b"[]",
     (4).to_bytes(8, "little") + b'{"a"', (2).to_bytes(8, "little") + b"{}" + bytes(100)],
    ids=["empty", "short", "no header", "huge header", "huger header", "zip", "deep", "list", "cut", "rest"],
)  # fmt: skip
def test_a_file_of_another_kind_is_a_value_error(content, path):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^path: expected a safetensors .*layer\.safetensors: "):
        load_safetensors(path)


@pytest.mark.parametrize(
    "changes",
    [{"num_features": 10**15}, {"num_features": 4}, {"num_features": "3"}, {"num_features": True},
     {"eps": -1}, {"unknown": 1}, {"training": 1}, {"training": ...}, {"dtype": "int8"},
     {"scale": False}, {"dtype": "float64"}, {"momentum": "fast"}],
    ids=repr,
)  # fmt: skip
def test_a_configuration_that_does_not_fit_is_a_value_error(changes, path):
    bn = layer(3)
    options = {**bn._options(), "training": True, **changes}
    text = json.dumps({name: value for name, value in options.items() if value is not ...})
    arrays = {name: np.asarray(value) for name, value in bn.state_dict().items()}
    library.save_file(arrays, path, metadata={KEY: text})
    reason = ".*: num_features: expected" if "num_features" in changes else ""
    with pytest.raises(ValueError, match=f"^path: expected a safetensors file{reason}"):
        load_safetensors(path)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", "[" * 100_000], ids=range(6))
def test_a_configuration_that_is_none_is_a_value_error(text, path):
    library.save_file({"num_batches_tracked": np.array(0)}, path, metadata={KEY: text})
    with pytest.raises(ValueError, match=r"^path: expected a safetensors file"):
        load_safetensors(path)


def test_a_layer_without_arrays_takes_no_memory_at_will(path):
    options = nbbn.BatchNorm(3, scale=False, center=False, track_running_stats=False)._options()
    text = json.dumps({**options, "training": True, "num_features": 10**15})
    library.save_file({"num_batches_tracked": np.array(0)}, path, metadata={KEY: text})
    with pytest.raises(ValueError, match="num_features: expected"):
        load_safetensors(path)


@pytest.mark.parametrize("prefix", ["", "a"])
def test_a_file_with_flipped_bytes_is_a_layer_or_a_value_error(prefix, path):
    if prefix:
        library.save_file(torch_arrays("a."), path)
    else:
        save_safetensors(layer(3), path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        spoiled = bytearray(whole)
        for place in random.integers(0, len(whole), random.integers(1, 4)):
            spoiled[place] ^= 1 << random.integers(0, 8)
        size = len(whole) if random.random() < 0.9 else int(random.integers(0, len(whole)))
        path.write_bytes(bytes(spoiled[:size]))
        try:
            assert load_safetensors(path, prefix=prefix).num_features == 3
        except ValueError as error:
            assert str(error).startswith("path: expected a safetensors file")
            refused += 1
    assert 0 < refused < 1500


def test_a_file_that_changes_after_its_check_is_a_value_error(path, monkeypatch):
    """What was checked and what is read may be two files; memory is still bounded by the second."""
    safetensors = pytest.importorskip("safetensors")
    entries = {name: entry(shape=(2**40,), offsets=(0, 2**42)) for name in MEANS}
    written(path, entries)

    class Unchecked:
        def __init__(self, *arguments, **options):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(safetensors, "safe_open", Unchecked)
    with pytest.raises(ValueError, match="within the file"):
        load_safetensors(path)
