"""state_dict, save and load, pickle, copies and repr: what is kept, and what hostile files can not do."""

import copy
import io
import itertools
import os
import pickle
import pickletools
import subprocess
import sys
import textwrap
import zipfile

import cases
import numpy as np
import processes
import pytest
from compare import assert_same_bits, layer, snapshot
from interrupts import interrupted
from rooms import state as _storage

import nbbn

X = cases.values((6, 3, 5))
F32 = np.float32
NAMES = ("gamma", "beta", "running_mean", "running_var")
by_options = pytest.mark.parametrize("options", cases.LAYER_OPTIONS, ids=cases.case_id)


def used(**options):
    """A layer that has seen batches and a backward."""
    bn = layer(3, **options)
    bn(X), bn(X * 2 + 1)
    bn.backward(X)
    return bn


def assert_same_layer(bn, other):
    """The same state, and the same behaviour from now on in both modes."""
    for name in NAMES:
        a, b = getattr(bn, name), getattr(other, name)
        assert (a is None) == (b is None)
        if a is not None:
            assert_same_bits(a, b)
            assert not np.shares_memory(a, b)
    assert other.num_batches_tracked == bn.num_batches_tracked
    for training in (True, True, False):
        assert_same_bits(bn(X + 1, training=training), other(X + 1, training=training))
    if bn.running_mean is not None:
        assert_same_bits(bn.running_mean, other.running_mean)
        assert_same_bits(bn.running_var, other.running_var)


@by_options
def test_a_state_dict_holds_copies_of_what_exists(options):
    bn = used(**options)
    state = bn.state_dict()
    assert set(NAMES) & set(state) == {name for name in NAMES if getattr(bn, name) is not None}
    assert set(state) <= {*NAMES, "num_batches_tracked"}
    if options.get("track_running_stats", True):
        assert state["num_batches_tracked"] == 2
    for name in set(NAMES) & set(state):
        assert_same_bits(state[name], getattr(bn, name))
        assert not np.shares_memory(state[name], getattr(bn, name))


@by_options
def test_a_state_dict_restores_another_layer(options):
    bn, other = used(**options), nbbn.BatchNorm(3, **options)
    other.load_state_dict(bn.state_dict())
    assert_same_layer(bn, other)


def test_loading_copies_the_values():
    bn, state = nbbn.BatchNorm(3), used().state_dict()
    bn.load_state_dict(state)
    state["gamma"][:] = -1
    state["running_mean"][:] = -1
    assert np.all(bn.gamma != -1)
    assert np.all(bn.running_mean != -1)


BAD_STATES = {
    "gamma missing": ({"gamma": ...}, ("gamma",)),
    "running_var missing": ({"running_var": ...}, ("running_var",)),
    "counter missing": ({"num_batches_tracked": ...}, ("num_batches_tracked",)),
    "unknown name": ({"weight": np.ones(3, F32)}, ("weight",)),
    "gamma too long": ({"gamma": np.ones(4, F32)}, ("gamma", r"\(3,\)", r"\(4,\)")),
    "beta that would broadcast": ({"beta": np.ones(1, F32)}, ("beta", r"\(3,\)", r"\(1,\)")),
    "two dimensions": ({"running_var": np.ones((3, 1), F32)}, ("running_var", r"\(3, 1\)")),
    "running_var None": ({"running_var": None}, ("running_var",)),
    "float64": ({"running_var": np.ones(3)}, ("running_var", "float32", "float64")),
    "integers": ({"beta": np.ones(3, int)}, ("beta", "float32", "int")),
    "objects": ({"beta": np.array([1, 2, 3], object)}, ("beta", "float32", "object")),
    "negative variance": ({"running_var": -np.ones(3, F32)}, ("running_var", "below 0, got -1")),
    "counter negative": ({"num_batches_tracked": -1}, ("num_batches_tracked", "-1")),
    "counter fraction": ({"num_batches_tracked": 1.5}, ("num_batches_tracked", "1.5")),
    "counter text": ({"num_batches_tracked": "many"}, ("num_batches_tracked", "many")),
    "counter array": ({"num_batches_tracked": np.ones(3)}, ("num_batches_tracked", r"\(3,\)")),
    "counter of none": ({"num_batches_tracked": np.ones(0)}, ("num_batches_tracked", r"\(0,\)")),
    "counter fraction of half precision": (
        {"num_batches_tracked": np.array([1.5], np.float16)}, ("num_batches_tracked", "1.5")),
    "counter NaN": ({"num_batches_tracked": np.array([np.nan])}, ("num_batches_tracked", "nan")),
    "counter infinite": ({"num_batches_tracked": np.float32(np.inf)}, ("num_batches_tracked", "inf")),
    "counter too large": ({"num_batches_tracked": 2.0**63}, ("num_batches_tracked", "9223372036854775808")),
    "counter below 0": ({"num_batches_tracked": np.array([-1.0])}, ("num_batches_tracked", "-1")),
    "counter bool": ({"num_batches_tracked": True}, ("num_batches_tracked", "True")),
    "counter complex": ({"num_batches_tracked": 1 + 0j}, ("num_batches_tracked", "1")),
    "counter masked": ({"num_batches_tracked": np.ma.masked}, ("num_batches_tracked", "masked")),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "words"), BAD_STATES.values(), ids=BAD_STATES)
def test_a_state_that_does_not_fit_is_refused_whole(changes, words):
    bn = used()
    state = {name: value * 2 for name, value in used(momentum=0.5).state_dict().items()}
    state = {name: v for name, v in {**state, **changes}.items() if v is not ...}
    before = snapshot(bn)
    with pytest.raises((ValueError, TypeError, KeyError)) as error:
        bn.load_state_dict(state)
    for word in words:
        error.match(word)
    assert snapshot(bn) == before


COUNTERS = {
    "an integer": 7,
    "a float": 7.0,
    "a scalar of NumPy": np.uint8(7),
    "an array": np.array(7),
    "one dimension": np.array([7]),
    "two dimensions": np.array([[7]], np.uint64),
    "half precision": np.array(7, np.float16),
    "half precision of one dimension": np.array([7], np.float16),
    "double precision": np.array([7.0]),
}


@pytest.mark.parametrize("value", COUNTERS.values(), ids=COUNTERS)
def test_a_counter_is_one_integer_of_any_type_and_shape(value):
    bn, other = nbbn.BatchNorm(3), nbbn.BatchNorm(3)
    bn.load_state_dict({**bn.state_dict(), "num_batches_tracked": value})
    other.num_batches_tracked = value
    assert bn.num_batches_tracked == other.num_batches_tracked == 7
    assert type(bn.num_batches_tracked) is int


def test_a_counter_of_bfloat16():
    dtype = pytest.importorskip("ml_dtypes", reason="no bfloat16").bfloat16
    bn = nbbn.BatchNorm(3)
    bn.num_batches_tracked = np.array([7], dtype)
    assert bn.num_batches_tracked == 7
    with pytest.raises(TypeError, match=r"num_batches_tracked: expected an integer, got .*1.5"):
        bn.num_batches_tracked = np.array([1.5], dtype)


@pytest.mark.parametrize("value", [np.array([2]), np.array(2.0), np.array(2, np.float16)], ids=repr)
def test_a_counter_in_a_file_of_ours_is_as_we_write_it(value, saved):
    rewritten(saved, "num_batches_tracked.npy", npy(value))
    with pytest.raises(ValueError, match=r"layer\.npz.*num_batches_tracked: got dtype"):
        nbbn.BatchNorm.load(saved)


def test_parameters_that_the_layer_does_not_have_are_refused():
    bn = layer(3, scale=False)
    before = snapshot(bn)
    with pytest.raises((ValueError, KeyError), match="gamma"):
        bn.load_state_dict(layer(3).state_dict())
    assert snapshot(bn) == before


@by_options
def test_a_saved_layer_comes_back_with_its_configuration(options, tmp_path):
    bn, path = used(**options), tmp_path / "layer.npz"
    bn.save(path)
    assert_same_layer(bn, nbbn.BatchNorm.load(path))
    assert [p.name for p in tmp_path.iterdir()] == ["layer.npz"]


@pytest.mark.parametrize("kind", [str, lambda p: p], ids=["str", "Path"])
@pytest.mark.parametrize("name", ["layer.npz", "no suffix"])
def test_the_file_has_the_name_that_was_given(kind, name, tmp_path):
    path = tmp_path / name
    used().save(kind(path))
    assert path.is_file()
    assert_same_layer(used(), nbbn.BatchNorm.load(kind(path)))


def test_the_axis_is_saved(tmp_path):
    bn = layer(5, axis=-1)
    bn.save(tmp_path / "layer.npz")
    assert_same_bits(nbbn.BatchNorm.load(tmp_path / "layer.npz").eval()(X), bn.eval()(X))


def test_saving_replaces_an_older_file(tmp_path):
    path = tmp_path / "layer.npz"
    used(eps=1.0).save(path)
    used().save(path)
    assert_same_layer(used(), nbbn.BatchNorm.load(path))


def test_saving_where_no_file_can_be_raises_and_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="missing"):
        used().save(tmp_path / "missing" / "layer.npz")
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        used().save(folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("step", ["replace", "fsync"])
def test_a_failing_step_of_a_save_leaves_the_old_file(step, tmp_path, monkeypatch):
    path = tmp_path / "layer.npz"
    used().save(path)
    old = path.read_bytes()

    def fail(*arguments, **keywords):
        raise OSError("no space left on the device")

    for name in {"replace": ("replace", "rename"), "fsync": ("fsync",)}[step]:
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(OSError, match="no space left"):
        used(eps=1.0).save(path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["layer.npz"]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path):
    """A real one: the process may write no file of more than 2,000 bytes."""
    path = tmp_path / "layer.npz"
    used().save(path)
    old = path.read_bytes()
    script = f"""
        import resource
        import numpy as np
        import nbbn
        bn = nbbn.BatchNorm(100_000)
        bn.gamma[:] = np.random.default_rng(0).random(100_000)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        try:
            bn.save({str(path)!r})
        except OSError as error:
            print("refused", error.errno is not None)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert done.stdout.strip() == "refused True"
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["layer.npz"]


@pytest.fixture
def umask():
    """The umask of the test: others may read what is new."""
    before = os.umask(0o022)
    yield 0o022
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX permissions")
@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o666, 0o444, 0o400])
def test_nobody_else_may_read_a_file_while_it_is_replaced(mode, umask, tmp_path):
    path = tmp_path / "layer.npz"
    if mode is not None:
        path.write_text("of old")
        path.chmod(mode)
    expected = 0o666 & ~umask if mode is None else mode
    with _storage.replacing(path) as file:
        meanwhile = [entry.stat().st_mode & 0o777 for entry in tmp_path.iterdir() if entry != path]
        file.write(b"new")
    assert len(meanwhile) == 1
    assert meanwhile[0] & ~(expected | 0o600) == 0
    assert path.stat().st_mode & 0o777 == expected
    assert path.read_text() == "new"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # a file that its `with` has not got yet
def test_a_signal_handler_that_raises_leaves_the_old_file_or_the_new_one_and_no_other(tmp_path):
    path = tmp_path / "layer.npz"

    def handler():
        raise KeyboardInterrupt

    def write():
        with _storage.replacing(path) as file:
            file.write(b"new")
        return True

    for step in itertools.count():
        path.write_bytes(b"of old")
        ended = interrupted(write, _storage.replacing.__wrapped__, step, handler)
        assert [entry.name for entry in tmp_path.iterdir()] == ["layer.npz"]
        assert path.read_bytes() in ((b"new",) if ended else (b"new", b"of old"))
        if ended:
            break
    assert step > 20


def rewritten(path, name, content):
    """The file at path with the entry of that name holding other bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    entries[name] = content
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in entries.items():
            if data is not None:
                archive.writestr(entry, data)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def header_only(shape):
    """An .npy entry that announces a shape and holds no data."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


class Payload:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "layer.npz"
    used().save(path)
    return path


def entries_of(path):
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_a_file_with_a_pickle_is_refused_and_runs_nothing(saved, tmp_path):
    original, sentinel = saved.read_bytes(), tmp_path / "executed"
    hostile = npy(np.array([Payload(sentinel)], dtype=object), allow_pickle=True)
    for name in entries_of(saved):
        saved.write_bytes(original)
        rewritten(saved, name, hostile)
        with pytest.raises(ValueError, match=r"layer\.npz"):
            nbbn.BatchNorm.load(saved)
        assert not sentinel.exists(), name


def test_a_pickle_instead_of_an_archive_is_refused_and_runs_nothing(tmp_path):
    path, sentinel = tmp_path / "layer.npz", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(sentinel)))
    with pytest.raises(ValueError, match=r"layer\.npz"):
        nbbn.BatchNorm.load(path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no array at all", npy(np.ones(4, np.float32)), npy(np.ones((2, 2))), npy(np.array("{}")),
     header_only((10**13,)), header_only((3,)), npy(np.array([1 + 2j]))],
    ids=["missing", "empty", "text", "too long", "two dimensions", "other text", "huge", "no data", "complex"],
)  # fmt: skip
def test_a_file_with_one_entry_spoiled_is_refused(saved, content):
    original = saved.read_bytes()
    for name in entries_of(saved):
        saved.write_bytes(original)
        rewritten(saved, name, content)
        with pytest.raises(ValueError, match=r"layer\.npz"):
            nbbn.BatchNorm.load(saved)


def test_a_truncated_file_is_refused(saved):
    whole = saved.read_bytes()
    for size in sorted({0, 1, 10, *range(50, len(whole), max(1, len(whole) // 20)), len(whole) - 1}):
        saved.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"layer\.npz"):
            nbbn.BatchNorm.load(saved)


@pytest.mark.parametrize(
    "content",
    [b"no archive", b"PK\x05\x06" + bytes(18), npy(np.ones(3))],
    ids=["text", "empty zip", "npy"],
)
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "layer.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"layer\.npz"):
        nbbn.BatchNorm.load(path)


def test_a_file_that_does_not_exist_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        nbbn.BatchNorm.load(tmp_path / "layer.npz")


def test_a_folder_that_does_not_exist_is_told_by_the_path_that_was_given(tmp_path):
    path = tmp_path / "none" / "layer.npz"
    with pytest.raises(FileNotFoundError) as caught:
        nbbn.BatchNorm(2).save(path)
    assert caught.value.filename == str(path)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@by_options
def test_a_pickled_layer_comes_back(options, protocol):
    bn = used(**options).eval()
    other = pickle.loads(pickle.dumps(bn, protocol))
    assert other.training is False
    assert_same_layer(bn, other)


class Alone:
    def allgather(self, array):
        return [array]


VALUES = cases.values((6, 3), np.float64, loc=1.0)
PICKLED = {
    "layer": (used, "nbbn.BatchNorm"),
    "fused layer": (lambda: used(activation="leaky_relu", negative_slope=0.5), "nbbn.BatchNorm"),
    "frozen": (lambda: used().freeze(), "nbbn.FrozenBatchNorm"),
    "fused, frozen": (lambda: used(activation="relu").freeze(), "nbbn.FrozenBatchNorm"),
    "moments": (lambda: nbbn.batch_moments(VALUES).update(VALUES), "nbbn.Moments"),
    "new standardizer": (lambda: nbbn.Standardizer(with_std=False), "nbbn.Standardizer"),
    "standardizer": (lambda: nbbn.Standardizer().fit(VALUES), "nbbn.Standardizer"),
    "synchronized": (
        lambda: nbbn.distributed.SyncBatchNorm(3, comm=Alone()),
        "nbbn.distributed.SyncBatchNorm",
    ),
}


def globals_of(data):
    """What a pickle names, as `module.name`."""
    named, strings = set(), []
    for code, argument, _ in pickletools.genops(data):
        if code.name == "GLOBAL":
            named.add(argument.replace(" ", "."))
        elif code.name == "STACK_GLOBAL":
            named.add(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)
    return named


@pytest.mark.parametrize("protocol", [0, 2, 3])  # which write a name whole wherever it stands
@pytest.mark.parametrize("name", PICKLED)
def test_a_pickle_names_public_paths_only(name, protocol):
    make, public = PICKLED[name]
    value = make()
    data = pickle.dumps(value, protocol)
    assert type(pickle.loads(data)) is type(value)
    named = globals_of(data)
    assert public in named
    others = {each for each in named if not each.startswith("numpy.")} - {public}
    assert others <= {
        "_codecs.encode",
        "builtins.object",
        "__builtin__.object",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
    }
    assert f"{type(value).__module__}.{type(value).__qualname__}" == public
    assert globals_of(pickle.dumps(value, 5)) >= {public}


DATA = processes.TESTS / "data"  # made before pickles named public paths only


def test_older_pickles_and_files_load():
    def old(name):
        return pickle.loads((DATA / f"{name}.pickle").read_bytes())

    expected = np.load(DATA / "expected.npz")
    x, wide = expected["x"], expected["x"].astype(np.float64)
    for bn in (old("batch_norm"), nbbn.BatchNorm.load(DATA / "batch_norm.npz")):
        assert_same_bits(bn(x), expected["batch_norm"])
        for name in ("running_mean", "running_var", "gamma", "beta"):
            assert_same_bits(getattr(bn, name), expected[name])
        assert (bn.eps, bn.momentum, bn.training) == (1e-3, 0.25, False)
        assert (bn.activation, bn.negative_slope, bn.num_batches_tracked) == (
            "leaky_relu",
            0.125,
            1,
        )
    assert_same_bits(old("batch_norm").grad_gamma, expected["grad_gamma"])
    assert_same_bits(old("batch_norm").batch_var, expected["batch_var"])
    assert_same_bits(pickle.loads(pickle.dumps(old("batch_norm"))).batch_var, expected["batch_var"])
    assert_same_bits(old("moments").mean, expected["mean"])
    assert_same_bits(old("moments").m2, expected["m2"])
    assert old("moments").count == 12
    assert_same_bits(old("standardizer").transform(wide), expected["standardizer"])


def test_a_negative_variance_is_refused_where_it_is_assigned_and_kept_where_it_was_written():
    bn = used()
    before = snapshot(bn)
    with pytest.raises(ValueError, match="running_var: expected no variance below 0, got -2"):
        bn.running_var = np.array([1, -2, 1], F32)
    assert snapshot(bn) == before
    bn.running_mean = bn.beta = -np.ones(3)
    bn.running_var[1] = -2  # nobody sees it
    assert np.isnan(bn.eval()(np.ones((2, 3), F32))[:, 1]).all()
    for other in (copy.deepcopy(bn), pickle.loads(pickle.dumps(bn))):
        assert_same_bits(other.running_var, bn.running_var)


def test_a_pickle_keeps_every_gradient():
    bn = nbbn.BatchNorm(3, activation="prelu")
    bn(X, residual=X), bn.backward(X)
    again = pickle.loads(pickle.dumps(bn))
    for name in ("grad_gamma", "grad_beta", "grad_slope", "grad_residual"):
        assert_same_bits(getattr(again, name), getattr(bn, name))


def test_a_pickle_holds_no_saved_batches():
    bn = nbbn.BatchNorm(3)
    bn(np.ones((100_000, 3), np.float32))
    assert len(pickle.dumps(bn)) < 100_000


@by_options
def test_a_deep_copy_is_independent(options):
    bn = used(**options)
    before = snapshot(bn)
    other = copy.deepcopy(bn)
    assert_same_layer(copy.deepcopy(bn), other)
    for name in NAMES:
        if getattr(other, name) is not None:
            getattr(other, name)[:] = 9
    assert snapshot(bn) == before


@by_options
def test_repr_shows_the_options(options):
    text = repr(nbbn.BatchNorm(17, **options))
    assert text.startswith("BatchNorm(17")
    for name in options:
        assert name in text
