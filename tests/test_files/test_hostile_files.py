"""Files that lie: loading gives the saved layer, or a ValueError, without much memory and without a warning."""

import io
import json
import os
import random
import struct
import tracemalloc
import warnings
import zipfile

import numpy as np
import pytest
from compare import layer, snapshot
from processes import run

import nbbn


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "folder" / "layer.npz"
    path.parent.mkdir()
    layer(3).save(path)
    return path


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, members, compression=zipfile.ZIP_STORED):
    """An archive of (name, bytes), of which several may have one name."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", compression) as archive:
        warnings.simplefilter("ignore", UserWarning)  # a duplicate name
        for name, data in members:
            archive.writestr(name, data)


def assert_refused(path):
    """A ValueError that names the file, and no warning; what is beside the file is as it was."""
    beside = contents(path.parents[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match=r"^path: expected .*layer\.npz"):
            nbbn.BatchNorm.load(path)
    assert [str(warning.message) for warning in caught] == []
    assert contents(path.parents[1]) == beside


def npy(header, data=b"", version=b"\1\0"):
    """An .npy file with this text as its header."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + data  # fmt: skip


def header(descr="<f4", order=False, shape=(3,)):
    return f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}"


TWELVE = np.ones(3, np.float32).tobytes()
HOSTILE_MEMBERS = {
    "a huge shape": npy(header(shape=(10**12,)), TWELVE),
    "a shape whose size overflows": npy(header(shape=(2**62, 2**62, 4)), TWELVE),
    "a negative shape": npy(header(shape=(-3,)), TWELVE),
    "a shape of text": npy(header(shape=("3",)), TWELVE),
    "no tuple": npy(header(shape=3), TWELVE),
    "a matrix in Fortran order": npy(header(order=True, shape=(3, 1)), TWELVE),
    "objects": npy(header("|O", shape=()), b"cos\nsystem\n(S'exit 1'\ntR."),
    "a structure": npy(header([("a", "<f4")]), TWELVE),
    "a structure with objects": npy(header([("a", "|O")]), TWELVE),
    "other byte order": npy(header(">f4"), TWELVE),
    "no dtype": npy(header("<q9"), TWELVE),
    "dates": npy(header("<M8[s]"), TWELVE * 2),
    "more than its shape": npy(header(), TWELVE + b"more"),
    "less than its shape": npy(header(), TWELVE[:-1]),
    "a header of 70 KB": npy(header() + " " * 70_000, TWELVE, b"\2\0"),
    "a header longer than the file": b"\x93NUMPY\2\0\xff\xff\xff\x7f" + header().encode(),
    "version 3": npy(header(), TWELVE, b"\3\0"),
    "version 9": npy(header(), TWELVE, b"\x09\0"),
    "an expression": npy("__import__('os').abort()", TWELVE),
    "a header of Python 2": npy(header().replace("(3,)", "(3L,)"), TWELVE),
    "an escape that Python warns of": npy(header().replace("<f4", r"<f4\d"), TWELVE),
    "a number that Python warns of": npy(header().replace("(3,)", "(3if 1 else 3,)"), TWELVE),
    "more keys": npy(header().replace("}", "'more': 1}"), TWELVE),
    "nested brackets": npy("(" * 5000, TWELVE),
    "a null byte": npy(header() + "\0", TWELVE),
}


@pytest.mark.parametrize("content", HOSTILE_MEMBERS.values(), ids=HOSTILE_MEMBERS)
def test_hostile_members_are_refused(content, saved):
    members = members_of(saved)
    write(saved, {**members, "gamma.npy": npy(header(), TWELVE)}.items())
    assert nbbn.BatchNorm.load(saved).gamma.tolist() == [1, 1, 1]  # as far as it goes, all is well
    for name in ("gamma.npy", "running_var.npy", "num_batches_tracked.npy", "options.npy"):
        write(saved, {**members, name: content}.items())
        assert_refused(saved)


NAMES = {
    "twice": lambda m: [*m.items(), ("gamma.npy", m["beta.npy"])],
    "twice the same": lambda m: [*m.items(), ("gamma.npy", m["gamma.npy"])],
    "configuration twice": lambda m: [("options.npy", m["gamma.npy"]), *m.items()],
    "a way out": lambda m: [*m.items(), ("../gamma.npy", m["gamma.npy"])],
    "a way out instead": lambda m: [(n.replace("gamma", "../gamma"), data) for n, data in m.items()],
    "an absolute path": lambda m: [*m.items(), ("/gamma.npy", m["gamma.npy"])],
    "a folder": lambda m: [*m.items(), ("folder/", b"")],
    "one more": lambda m: [*m.items(), ("more.npy", m["gamma.npy"])],
    "one less": lambda m: [(n, data) for n, data in m.items() if n != "beta.npy"],
    "no suffix": lambda m: [(n.removesuffix(".npy"), data) for n, data in m.items()],
    "large letters": lambda m: [(n.replace("gamma", "GAMMA"), data) for n, data in m.items()],
    "nothing": lambda m: [],
}


@pytest.mark.parametrize("change", NAMES.values(), ids=NAMES)
def test_other_names_are_refused(change, saved):
    write(saved, change(members_of(saved)))
    assert_refused(saved)


def text_member(text, dtype=None):
    stream = io.BytesIO()
    np.save(stream, np.array(text, dtype))
    return stream.getvalue()


def change_options(path, **changes):
    """Save the configuration with other values; ``...`` leaves one out."""
    members = members_of(path)
    options = json.loads(str(np.load(io.BytesIO(members["options.npy"]))))
    options = {name: value for name, value in {**options, **changes}.items() if value is not ...}
    write(path, {**members, "options.npy": text_member(json.dumps(options))}.items())


NOT = {
    "num_features": (0, -3, 2, 4, 10**12, 10**400, 3.0, "3", True, None, [3], {}, ...),
    "axis": (1.0, "1", None, True, [1]),
    "eps": (-1e-5, float("nan"), float("inf"), "0", None, [0], True, 10**400),
    "momentum": (float("nan"), float("-inf"), "0.1", [0.1], False, 10**400),
    "scale": (0, 1, "true", None, False, []),
    "center": (1, None, False),
    "track_running_stats": (1, None, False),
    "correction": (-1, float("nan"), "0", None, False),
    "running_correction": (-1, float("inf"), "1", None, True),
    "dtype": ("float64", "float16", "object", "", None, 1, ["float32"], "no type"),
    "training": (1, "yes", None, ...),
    "activation": ("relu; import os",),
    "self": (1,),
    "": (1,),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NOT.items() for value in values])
def test_other_configurations_are_refused(name, value, saved):
    change_options(saved, **{name: value})
    assert_refused(saved)


TEXTS = {
    "empty": "",
    "no object": "[3]",
    "a number": "3",
    "half": '{"num_features": 3',
    "two": "{} {}",
    "a tag": "!!python/object/apply:os.abort []",
    "deep": "[" * 15_000,
    "a long number": '{"num_features": ' + "9" * 5000 + "}",
    "too long": '{"num_features": 3}' + " " * (1 << 16),
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_that_are_no_configuration_are_refused(text, saved):
    write(saved, {**members_of(saved), "options.npy": text_member(text)}.items())
    assert_refused(saved)


def test_code_points_that_do_not_exist_are_refused(saved):
    content = npy(header("<U3", shape=()), b"\xff" * 12)
    write(saved, {**members_of(saved), "options.npy": content}.items())
    assert_refused(saved)


BOMBS = {
    "gamma.npy": lambda: npy(header()),
    "num_batches_tracked.npy": lambda: npy(header("<i8", shape=())),
    "options.npy": lambda: text_member("{}"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_archives_that_grow_are_refused_before_memory_is_taken(name, saved):
    """300 MB of zeros in 300 KB; the last file claims that they are not compressed."""
    members = members_of(saved)
    bomb = BOMBS[name]() + bytes(300 << 20)
    write(saved, {**members, name: bomb}.items(), zipfile.ZIP_DEFLATED)
    del bomb
    assert saved.stat().st_size < 1 << 20
    whole = bytearray(saved.read_bytes())
    tracemalloc.start()
    assert_refused(saved)
    for at in places_of(whole, name):
        struct.pack_into("<H", whole, at, zipfile.ZIP_STORED)
    saved.write_bytes(whole)
    assert_refused(saved)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def places_of(whole, name, offset=0):
    """Where the archive says of a member how it is compressed: before it and in the directory."""
    first, last = whole.index(name.encode()), whole.rindex(name.encode())
    return first - 30 + 8 + offset, last - 46 + 10 + offset


def test_room_in_front_of_an_archive_is_no_room_for_features(saved):
    """An archive may follow other data: here a gap of 1 GB that takes no place on the disk."""
    count = 30_000_000
    change_options(saved, num_features=count)
    archive = saved.read_bytes()
    with saved.open("wb") as file:
        file.seek(1 << 30)
        file.write(archive)
    tracemalloc.start()
    assert_refused_here(saved)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def assert_refused_here(path):
    """`assert_refused` for a file that is too large to be compared."""
    with pytest.raises(ValueError, match=r"^path: expected .*layer\.npz"):
        nbbn.BatchNorm.load(path)


def test_a_layer_without_arrays_comes_back_however_many_features_it_has(tmp_path):
    """Its file holds none of them: its size says nothing about their number."""
    without = {"scale": False, "center": False, "track_running_stats": False}
    nbbn.BatchNorm(4096, **without).save(tmp_path / "layer.npz")
    assert nbbn.BatchNorm.load(tmp_path / "layer.npz").num_features == 4096


@pytest.mark.parametrize("method", [8, 12, 14, 93, 99, 65535])
def test_other_methods_of_compression_are_refused(method, saved):
    whole = bytearray(saved.read_bytes())
    for name in ("beta.npy", "options.npy"):
        for at in places_of(whole, name):
            struct.pack_into("<H", whole, at, method)
    saved.write_bytes(whole)
    assert_refused(saved)


@pytest.mark.parametrize("name", ["gamma.npy", "options.npy"])
def test_encrypted_members_are_refused(name, saved):
    whole = bytearray(saved.read_bytes())
    for at in places_of(whole, name, -2):
        struct.pack_into("<H", whole, at, 1)
    saved.write_bytes(whole)
    assert_refused(saved)


@pytest.mark.long
def test_a_file_cut_anywhere_in_its_directory_is_refused(saved):
    whole = saved.read_bytes()
    for size in range(whole.index(b"PK\1\2"), len(whole)):
        saved.write_bytes(whole[:size])
        assert_refused(saved)


@pytest.mark.long
def test_flipped_bits_give_the_saved_layer_or_a_value_error(saved):
    whole, before, refused = saved.read_bytes(), snapshot(nbbn.BatchNorm.load(saved)), 0
    rng = random.Random(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for flips in range(800):
            spoiled = bytearray(whole)
            for _ in range(1 + flips % 8):
                spoiled[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
            saved.write_bytes(spoiled)
            try:
                assert snapshot(nbbn.BatchNorm.load(saved)) == before
            except ValueError:
                refused += 1
    assert refused > 400
    assert [str(warning.message) for warning in caught] == []


SPECIAL = """
import contextlib, io, os, socket, stat, sys
import numpy as np
import nbbn
from nbbn.cli import main

np.save("in.npy", np.ones((3, 2), np.float32))
kinds = {"pipe.npy": "a pipe", "socket.npy": "a socket"}
os.mkfifo("pipe.npy")
listening = socket.socket(socket.AF_UNIX)
listening.bind("socket.npy")
with contextlib.suppress(OSError):  # that takes root
    os.mknod("device.npy", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    kinds["device.npy"] = "a device"

def state():
    return {name: os.stat(name).st_mode for name in os.listdir()}

def refuse(argument, call):
    for name, kind in kinds.items():
        before = state()
        try:
            call(name)
        except ValueError as error:
            text = str(error)
        assert text.startswith(f"{argument}: expected ") and text.endswith(f"{name}, {kind}"), text
        assert state() == before

def refuse_command(argument, *command):
    def call(name):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main([name if word == "PATH" else word for word in command]) == 2
        start = f"nbbn {command[0]}: error: "
        text = said.getvalue()
        assert text.startswith(start) and text.count("\\n") == 1, text
        raise ValueError(text.removeprefix(start).strip())
    refuse(argument, call)
"""
OWN = """
refuse("path", nbbn.BatchNorm.load)
refuse("path", nbbn.BatchNorm(3).save)
refuse_command("IN", "moments", "PATH")
refuse_command("--save-stats", "moments", "in.npy", "--save-stats", "PATH")
refuse_command("IN", "normalize", "PATH", "out.npy")
refuse_command("OUT", "normalize", "in.npy", "PATH")
refuse_command("--save-stats", "normalize", "in.npy", "out.npy", "--save-stats", "PATH")
refuse_command("--stats", "normalize", "in.npy", "out.npy", "--stats", "PATH")
refuse_command("--json", "bench", "--quick", "--json", "PATH")
"""
SAFETENSORS = """
refuse("path", nbbn.interop.load_safetensors)
refuse("path", lambda name: nbbn.interop.save_safetensors(nbbn.BatchNorm(3), name))
"""
ONNX = """
refuse("path_or_model", nbbn.interop.from_onnx)
"""
MATPLOTLIB = """
kinds = {f"{name}.png": kind for name, kind in kinds.items()}
for name in kinds:
    os.rename(name.removesuffix(".png"), name)
refuse_command("--plot", "bench", "--quick", "--plot", "PATH")
refuse_command("--plot", "demo", "--plot", "PATH")
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
@pytest.mark.parametrize(
    ("library", "script"),
    [("numpy", OWN), ("safetensors", SAFETENSORS), ("onnx", ONNX), ("matplotlib", MATPLOTLIB)],
    ids=["nbbn", "safetensors", "onnx", "matplotlib"],
)
def test_pipes_sockets_and_devices_are_neither_waited_for_nor_replaced(library, script):
    pytest.importorskip(library, reason=f"{library} is not installed")
    assert run(SPECIAL + script + "print('done')") == ["done"]


def test_a_layer_larger_than_its_file_takes_no_memory(saved):
    """Twenty million channels would take hundreds of megabytes; the members claim 20 MB."""
    members = members_of(saved)
    options = json.loads(str(np.load(io.BytesIO(members["options.npy"]))))
    text = io.BytesIO()
    np.save(text, np.array(json.dumps({**options, "num_features": 20_000_000})))
    write(saved, {**members, "options.npy": text.getvalue(), "gamma.npy": bytes(20_000_000)}.items())
    tracemalloc.start()
    assert_refused(saved)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000_000
