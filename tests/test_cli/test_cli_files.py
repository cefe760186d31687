"""`nbbn normalize` and `nbbn moments`: large files, errors, interrupts, full disks, terminals."""

import contextlib
import errno
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import reference
from compare import assert_same_bits, assert_within, forward_bound, mean_error, var_error
from interrupts import interrupted
from processes import environment, run
from test_cli import Terminal

import nbbn
from nbbn.cli import _files, main
from nbbn.standardizer import _stream

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.exists()}


def save(path, shape=(300, 5), dtype=np.float32, seed=0, order="C"):
    drawn = np.random.default_rng(seed).normal(100, 20, shape).clip(0, 255)
    np.save(path, np.asarray(drawn.astype(dtype), order=order))
    return np.load(path)


def succeed(*arguments):
    assert main([str(argument) for argument in arguments]) == 0


def fail(capsys, *arguments):
    """The one line on standard error, after exit status 2."""
    assert main([str(argument) for argument in arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"nbbn {arguments[0]}: error: ")
    return printed.err.strip().removeprefix(f"nbbn {arguments[0]}: error: ")


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(_stream, "VALUES", 100)


def standardized(x, axis=-1):
    """The oracle's, and how far float32 or float64 results may be from it."""
    computed = x.astype(np.float64 if x.dtype == np.float64 else np.float32)
    exact = reference.training(computed, axis=axis, eps=0.0)
    return exact.y, forward_bound(computed, exact, axis=axis)


# --- what they do ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("axis", [None, 0, 1, -2])
def test_normalize(tmp_path, capsys, small_blocks, dtype, order, axis):
    x = save(tmp_path / "in.npy", (20, 30, 4), dtype, order=order)
    options = () if axis is None else ("--axis", axis)
    succeed("normalize", tmp_path / "in.npy", tmp_path / "out.npy", *options)
    assert capsys.readouterr() == ("", "")
    y = np.load(tmp_path / "out.npy")
    assert_within(y, *standardized(x, -1 if axis is None else axis))
    assert y.dtype == (np.float32 if dtype == np.uint8 else dtype)
    assert y.flags.f_contiguous == (order == "F")
    assert sorted(contents(tmp_path)) == ["in.npy", "out.npy"]


def test_moments_are_printed_with_all_digits(tmp_path, capsys, small_blocks):
    x = save(tmp_path / "in.npy", (50, 12), np.float64)
    succeed("moments", tmp_path / "in.npy")
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert len({len(line) for line in lines}) == 1  # the columns line up
    names, *rows = [line.split() for line in lines]
    assert names == ["channel", "count", "mean", "var"]
    assert [row[:2] for row in rows] == [[str(channel), "50"] for channel in range(12)]
    _, mean, m2 = reference.moments(x, -1)
    assert_within([float(row[2]) for row in rows], mean, mean_error(x, -1))
    assert_within([float(row[3]) for row in rows], m2 / 50, var_error(x, m2 / 50))
    succeed("moments", tmp_path / "in.npy", "--axis", "0")
    assert len(capsys.readouterr().out.splitlines()) == 51


def test_saved_statistics_give_the_same_bits(tmp_path, capsys, small_blocks):
    """Of data so far from zero that the mean as one float64 would not do."""
    x = np.random.default_rng(0).normal(1e9, 1, (300, 5))
    np.save(tmp_path / "in.npy", x)
    succeed("moments", tmp_path / "in.npy", "--save-stats", tmp_path / "m.npz")
    succeed("normalize", tmp_path / "in.npy", tmp_path / "a.npy", "--save-stats", tmp_path / "s.npz")
    assert capsys.readouterr() == ("", "")
    made = contents(tmp_path)
    assert made["m.npz"] == made["s.npz"]
    succeed("normalize", tmp_path / "in.npy", tmp_path / "b.npy", "--stats", tmp_path / "s.npz")
    assert contents(tmp_path)["b.npy"] == made["a.npy"]
    assert_within(np.load(tmp_path / "b.npy"), *standardized(x))


def test_statistics_of_another_data_set(tmp_path, small_blocks):
    train, test = save(tmp_path / "train.npy"), save(tmp_path / "test.npy", (70, 5), seed=1)
    succeed("moments", tmp_path / "train.npy", "--save-stats", tmp_path / "s.npz")
    succeed("normalize", tmp_path / "test.npy", tmp_path / "y.npy", "--stats", tmp_path / "s.npz")
    _, mean, m2 = reference.moments(train, -1)
    exact = reference.inference(test, mean, m2 / 300, axis=-1, eps=0.0)
    assert_within(np.load(tmp_path / "y.npy"), exact.y, forward_bound(test, exact, axis=-1))


def test_constant_channels_are_centred_only(tmp_path, small_blocks):
    x = save(tmp_path / "in.npy")
    x[:, 2] = 7
    np.save(tmp_path / "in.npy", x)
    succeed("normalize", tmp_path / "in.npy", tmp_path / "a.npy", "--save-stats", tmp_path / "s.npz")
    assert not np.load(tmp_path / "a.npy")[:, 2].any()
    x[:, 2] = 10
    np.save(tmp_path / "in.npy", x)
    succeed("normalize", tmp_path / "in.npy", tmp_path / "b.npy", "--stats", tmp_path / "s.npz")
    assert (np.load(tmp_path / "b.npy")[:, 2] == 3).all()


def test_the_input_may_be_replaced(tmp_path, small_blocks):
    x = save(tmp_path / "x.npy")
    succeed("normalize", tmp_path / "x.npy", tmp_path / "y.npy")
    succeed("normalize", tmp_path / "x.npy", tmp_path / "x.npy")
    made = contents(tmp_path)
    assert sorted(made) == ["x.npy", "y.npy"]
    assert made["x.npy"] == made["y.npy"] != x.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.uint8])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 4)])
def test_an_array_without_values_stays_one(tmp_path, shape, dtype):
    np.save(tmp_path / "in.npy", np.empty(shape, dtype))
    channels = shape[-1] or 1
    np.savez(tmp_path / "s.npz", mean=np.zeros(channels), var=np.ones(channels))
    for options in ((), ("--stats", tmp_path / "s.npz"))[: 1 + (shape[-1] > 0)]:
        succeed("normalize", tmp_path / "in.npy", tmp_path / "out.npy", *options)
        y = np.load(tmp_path / "out.npy")
        assert y.shape == shape
        assert y.dtype == (np.float32 if dtype == np.uint8 else dtype)


def test_an_array_without_values_has_no_statistics(tmp_path, capsys):
    np.save(tmp_path / "in.npy", np.empty((0, 3), np.uint8))
    for command in (["moments"], ["normalize", tmp_path / "o.npy"]):
        name, *more = command
        line = fail(capsys, name, tmp_path / "in.npy", *more, "--save-stats", tmp_path / "s.npz")
        assert line.endswith("in.npy: expected at least one value, got shape (0, 3)")
    assert sorted(contents(tmp_path)) == ["in.npy"]


# --- bad input ---


def spoil_type(path):
    np.save(path, np.ones((3, 2), complex))


def spoil_objects(path):
    np.save(path, np.array([print, print], dtype=object))


def spoil_length(path):
    path.write_bytes(path.read_bytes()[:-1])


def spoil_text(path):
    path.write_text("1 2 3\n")


def spoil_scalar(path):
    np.save(path, np.float32(1))


def spoil_folder(path):
    path.unlink()
    path.mkdir()


BAD_INPUT = {
    spoil_type: "expected dtype float32, .* got complex128",
    spoil_objects: "expected numbers, got Python objects",
    spoil_length: r"expected a file of \d+ bytes for shape \(300, 5\), got \d+",
    spoil_text: "expected an .npy file",
    spoil_scalar: "--axis: expected a dimension",
    spoil_folder: "cannot read .*in.npy: Is a directory",
    Path.unlink: "cannot read .*in.npy: No such file",
}


@pytest.mark.parametrize("spoil", BAD_INPUT)
def test_bad_input_is_one_sentence(spoil, tmp_path, capsys):
    path = tmp_path / "in.npy"
    save(path)
    spoil(path)
    before = sorted(entry.name for entry in tmp_path.iterdir())
    for arguments in (
        ["moments", path],
        ["normalize", path, tmp_path / "o.npy", "--save-stats", tmp_path / "s.npz"],
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_stream, "moments_of", None)  # before anything is computed
            line = fail(capsys, *arguments)
        assert "in.npy" in line or line.startswith("--axis")
        assert re.search(BAD_INPUT[spoil], line), line
    assert sorted(entry.name for entry in tmp_path.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_no_input(tmp_path, capsys):
    os.mkfifo(tmp_path / "in.npy")
    line = fail(capsys, "moments", tmp_path / "in.npy")
    assert re.fullmatch(r"IN: expected an \.npy file, got .*in\.npy, a pipe", line)


def other_stats(tmp_path):
    save(tmp_path / "other.npy", (10, 3))
    succeed("moments", tmp_path / "other.npy", "--save-stats", tmp_path / "other.npz")
    (tmp_path / "other.npy").unlink()
    return "--stats", tmp_path / "other.npz"


def not_stats(tmp_path):
    (tmp_path / "not.npz").write_text("")
    return "--stats", tmp_path / "not.npz"


def output_stats(tmp_path):
    succeed("moments", tmp_path / "in.npy", "--save-stats", tmp_path / "out.npy")
    return "--stats", tmp_path / "out.npy"


def link_to_input(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "in.npy")
    return "--save-stats", tmp_path / "link"


def ring(tmp_path):
    """A link that leads to itself by another one."""
    (tmp_path / "ring").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "ring")
    return tmp_path / "ring"


BAD_ARGUMENTS = {
    "an axis that is not there": (lambda t: ("--axis", 2), "--axis: expected from -2 to 1 for 2-d x, got 2"),
    "no number": (lambda t: ("--axis", "x"), "--axis: invalid int value: 'x'"),
    "statistics of others": (other_stats, "--stats: expected 5 channels, as along axis -1 of .*, got 3 in"),
    "no statistics": (not_stats, "--stats: expected an .npz file that --save-stats wrote, got .*not.npz"),
    "statistics that would be replaced": (output_stats, "OUT: expected a file of its own, got .*out.npy"),
    "no file": (lambda t: ("--stats", t / "none"), "--stats: cannot read .*none: No such file"),
    "both": (lambda t: ("--stats", "a", "--save-stats", "b"), "not allowed with"),
    "saved over the input": (lambda t: ("--save-stats", t / "in.npy"), "--save-stats: expected a file of its own"),
    "saved over the output": (lambda t: ("--save-stats", t / "out.npy"), "a file of its own"),
    "saved over it by a link": (link_to_input, "--save-stats: expected a file of its own"),
    "saved in a ring of links": (lambda t: ("--save-stats", ring(t)), "--save-stats: cannot write .*ring: "),
    "saved nowhere": (lambda t: ("--save-stats", t / "no" / "s"), "--save-stats: cannot write .*No such file"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_ARGUMENTS)
def test_bad_arguments_are_one_sentence(what, tmp_path, capsys, monkeypatch):
    save(tmp_path / "in.npy")
    make, expected = BAD_ARGUMENTS[what]
    arguments = [str(argument) for argument in make(tmp_path)]
    before = contents(tmp_path)
    monkeypatch.setattr(_stream, "moments_of", None)  # before anything is computed
    monkeypatch.setattr(_stream, "normalize", None)
    paths = str(tmp_path / "in.npy"), str(tmp_path / "out.npy")
    assert main(["normalize", *paths, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(expected, printed.err), printed.err
    assert contents(tmp_path) == before


BAD_OUTPUTS = "a folder", "below a file", "a pipe", "a ring", "a link to nowhere", "a long name"


@pytest.mark.parametrize("where", BAD_OUTPUTS)
def test_an_output_that_cannot_be_is_refused_before_the_work(where, tmp_path, capsys, monkeypatch):
    save(tmp_path / "in.npy")
    path = tmp_path / "out.npy"
    if where == "a folder":
        path.mkdir()
    elif where == "a pipe":
        os.mkfifo(path)
    elif where == "a ring":
        path = ring(tmp_path)
    elif where == "a link to nowhere":
        path.symlink_to(tmp_path / "none" / "out.npy")
    elif where == "a long name":
        path = tmp_path / ("x" * 300)
    else:
        path.write_text("")
        path = path / "out.npy"
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(_stream, "moments_of", None)
    assert fail(capsys, "normalize", tmp_path / "in.npy", path).startswith("OUT: ")
    assert sorted(tmp_path.iterdir()) == before


@linux
def test_a_name_as_long_as_the_system_takes(tmp_path):
    save(tmp_path / "in.npy")
    path = tmp_path / ("x" * 251 + ".npy")
    succeed("normalize", tmp_path / "in.npy", path)
    assert len(np.load(path)) == 300


def test_a_mistake_in_the_code_is_no_bad_input(tmp_path, monkeypatch):
    def moments_of(values, axis):
        raise ValueError("a mistake")

    save(tmp_path / "in.npy")
    monkeypatch.setattr(_stream, "moments_of", moments_of)
    with pytest.raises(ValueError, match="a mistake"):
        main(["moments", str(tmp_path / "in.npy")])


# --- disks ---


def test_room_is_looked_at_before_the_work(tmp_path, capsys, monkeypatch):
    save(tmp_path / "in.npy", (1000, 50))
    before = contents(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=190_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(_stream, "moments_of", None)
    line = fail(capsys, "normalize", tmp_path / "in.npy", tmp_path / "out.npy")
    assert line == f"OUT: {tmp_path}/out.npy needs 0.0002 GB, and 0.00019 GB are free"
    assert contents(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "pwritev"), reason="needs pwritev")
@pytest.mark.parametrize("kept", [True, False])
def test_a_disk_that_is_full_in_the_middle(kept, tmp_path, capsys, monkeypatch, small_blocks):
    save(tmp_path / "in.npy")
    if kept:
        (tmp_path / "out.npy").write_text("of old")
    before = contents(tmp_path)
    written, pwritev = [], os.pwritev

    def full(descriptor, buffers, place):
        written.append(place)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwritev(descriptor, buffers, place)

    monkeypatch.setattr(os, "pwritev", full)
    arguments = "--save-stats", tmp_path / "s.npz"
    line = fail(capsys, "normalize", tmp_path / "in.npy", tmp_path / "out.npy", *arguments)
    assert line == f"OUT: cannot write {tmp_path}/out.npy: No space left on device"
    assert len(written) > 5
    assert contents(tmp_path) == before


@linux
@pytest.mark.parametrize("limit", [0, 100, 3000, 6127])
def test_a_limit_on_the_size_of_files_is_one_sentence_before_the_work(limit, tmp_path):
    save(tmp_path / "in.npy")  # 6128 bytes
    before = contents(tmp_path)
    script = """
    import resource, sys
    from nbbn.standardizer import _stream
    from nbbn.cli import main
    _stream.moments_of = None
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), -1))
    print(main(["normalize", *sys.argv[2:]]))
    """
    paths = str(tmp_path / "in.npy"), str(tmp_path / "out.npy")
    assert run(script + "sys.stderr.close()", str(limit), *paths) == ["2"]
    assert contents(tmp_path) == before


def test_a_disk_that_cannot_be_read_is_one_sentence(tmp_path, capsys, monkeypatch):
    save(tmp_path / "in.npy")

    def broken(descriptor, buffers, place):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken, raising=False)
    line = fail(capsys, "moments", tmp_path / "in.npy")
    assert line == f"{tmp_path}/in.npy: cannot be read: Input/output error"


def test_no_room_for_threads_is_one_sentence(tmp_path, capsys, monkeypatch):
    def start(thread):
        raise RuntimeError("can't start new thread")

    save(tmp_path / "in.npy")
    monkeypatch.setattr(threading.Thread, "start", start)
    line = fail(capsys, "normalize", tmp_path / "in.npy", tmp_path / "out.npy")
    assert line.endswith("in.npy: not enough memory for its channels or for threads (can't start new thread)")
    assert list(contents(tmp_path)) == ["in.npy"]


@linux
def test_too_many_channels_for_the_memory_are_one_sentence(tmp_path):
    """A file with holes: a billion channels take no disk."""
    with (tmp_path / "in.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (1, 1 << 30)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + (1 << 30))
    script = """
    import contextlib, io, sys
    from nbbn.standardizer import _stream
    from nbbn.cli import main

    def moments_of(values, axis):  # as numpy where there is no memory left
        raise MemoryError("Unable to allocate 8 GiB")

    _stream.moments_of = moments_of
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        print(main(["moments", sys.argv[1]]))
    print(printed.getvalue())
    """
    status, *words = run(script, str(tmp_path / "in.npy"))
    assert status == "2"
    assert " ".join(words).endswith("not enough memory for its channels or for threads (Unable to allocate 8 GiB)")


# --- memory ---

LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
import nbbn
from nbbn.cli import main

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

source, target, axis, small = sys.argv[1:]
nbbn.set_num_threads(2)
assert main(["normalize", small, target, "--axis", axis]) == 0  # compiles, and starts threads
before = status("VmSize")
resource.setrlimit(resource.RLIMIT_AS, (before + (200 << 20),) * 2)
try:
    np.load(source)
except MemoryError:
    print("too-large")
try:
    np.load(source, mmap_mode="r")
except OSError:
    print("for-a-map-too")
Path("/proc/self/clear_refs").write_text("5")
resident = status("VmRSS")
print(main(["normalize", source, target, "--axis", axis]), status("VmHWM") - resident)
"""


@linux
@pytest.mark.parametrize(("shape", "axis"), [((2_400_000, 64), -1), ((3, 51_200_000), 0)])
def test_a_file_larger_than_the_memory_that_a_process_may_have(shape, axis, tmp_path):
    """614 MB, where a process may take 200 MB: not enough to map the file, either."""
    row = np.random.default_rng(0).normal(5, 3, (60_000, 64)).astype(np.float32)
    small = row if axis else row.reshape(3, -1)
    np.save(tmp_path / "small.npy", small)
    x = np.lib.format.open_memmap(tmp_path / "in.npy", "w+", np.float32, shape)
    for k in range(40):
        if axis:
            x[k * 60_000 : (k + 1) * 60_000] = row
        else:
            x[:, k * 1_280_000 : (k + 1) * 1_280_000] = small
    del x
    paths = str(tmp_path / "in.npy"), str(tmp_path / "out.npy")
    found = run(LIMITED, *paths, str(axis), str(tmp_path / "small.npy"), timeout=300)
    assert found[:3] == ["too-large", "for-a-map-too", "0"]
    assert int(found[3]) < 64 << 20
    y = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert y.shape == shape
    exact, bound = standardized(small, axis)
    first = y[:60_000] if axis else y[:, :1_280_000]
    last = y[-60_000:] if axis else y[:, -1_280_000:]
    assert_within(first, exact, bound)
    assert_same_bits(first, last)


# --- interrupts ---

SLOW = """
import os, signal, sys, time
from nbbn.standardizer import _stream
from nbbn.cli import main
import nbbn

def step(*arguments, plain=_stream.apply_form):
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return plain(*arguments)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs in the background
if hasattr(signal, "SIGHUP"):  # ignored under nohup
    signal.signal(signal.SIGHUP, signal.SIG_IGN if "NOHUP" in os.environ else signal.SIG_DFL)
_stream.VALUES = 64
_stream.apply_form = step
nbbn.set_num_threads(2)
sys.exit(main(["normalize", *sys.argv[1:]]))
"""


@contextlib.contextmanager
def working(tmp_path, *more, pause=0.0, **variables):
    """A process that writes, a few values at a time and with pauses, and so for a while."""
    script = tmp_path / "script.py"
    script.write_text(SLOW)
    folder = tmp_path / "folder"
    command = [sys.executable, str(script), str(folder / "in.npy"), str(folder / "out.npy"), *more]
    process = subprocess.Popen(
        command,
        env={**environment(), "PAUSE": str(pause), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=300)


def wait_for_temporary(folder, process):
    """Wait until the output is being written, under a name of its own."""
    end = time.monotonic() + 300
    while not any(name.name.startswith(".nbbn-") for name in folder.iterdir()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("names", "statuses", "said"),
    [
        (["SIGINT"], {130}, b"nbbn: interrupted\n"),
        (["SIGTERM"], {143}, b""),
        (["SIGHUP"], {129}, b""),
        (["SIGXCPU"], {152}, b""),
        (["SIGTERM", "SIGHUP", "SIGTERM"], {129, 143}, b""),
    ],
    ids=["ctrl-c", "terminated", "terminal closed", "time used up", "several at once"],
)
def test_an_interrupt_leaves_nothing_behind(names, statuses, said, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    save(folder / "in.npy", (20_000, 16))
    (folder / "out.npy").write_text("of old")
    before = contents(folder)
    with working(tmp_path, "--save-stats", str(folder / "s.npz"), pause=0.01) as process:
        wait_for_temporary(folder, process)
        for name in names:
            process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=300)
    assert (out, err) == (b"", said)
    assert process.returncode in statuses
    assert contents(folder) == before


def test_an_interrupt_before_the_work_leaves_nothing_behind(tmp_path, monkeypatch):
    real, opened = os.open, []

    def interrupted(*arguments):
        opened.append(arguments[0])
        os.close(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _files.check_file(tmp_path / "out.npy", "OUT")
    assert len(opened) == 1 and contents(tmp_path) == {}


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_signal_whose_exception_is_lost_is_not_the_last(tmp_path):
    code = """
import os, signal, sys, time
from nbbn import cli

class Lost:
    def __del__(self):  # what is raised here, Python tells and forgets
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

sys.unraisablehook = lambda _: print("lost", flush=True)
with cli._unwinding():
    Lost()
    os.kill(os.getpid(), signal.SIGTERM)  # at once: it stands for the same
    print("on", flush=True)
    time.sleep(1.5 * cli._AT_ONCE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["lost", "on"]
    assert (done.returncode, done.stderr) == (143, "")


def test_a_signal_handler_that_raises_while_a_name_is_tried_leaves_no_file(tmp_path):
    def handler():
        raise KeyboardInterrupt

    def work():
        return _files.check_file(tmp_path / "out.npy", "OUT") or True

    for step in itertools.count():
        ended = interrupted(work, _files.check_file, step, handler)
        assert list(tmp_path.iterdir()) == []
        if ended:
            break
    assert step > 20


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_command_under_nohup_goes_on(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    x = save(folder / "in.npy", (3_000, 16))
    with working(tmp_path, pause=0.001, NOHUP="1") as process:
        wait_for_temporary(folder, process)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (0, b"", b"")
    assert_within(np.load(folder / "out.npy"), *standardized(x))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_a_process_that_is_killed_leaves_the_old_file_or_the_whole_new_one(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    x = save(folder / "in.npy", (3_000, 16))
    old, rng = b"of old", random.Random(0)
    expected, bound = standardized(x)
    for _ in range(6):
        (folder / "out.npy").write_bytes(old)
        with working(tmp_path) as process:
            wait_for_temporary(folder, process)
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
            process.wait(300)
        if (folder / "out.npy").read_bytes() != old:
            assert_within(np.load(folder / "out.npy"), expected, bound)
        left = set(contents(folder)) - {"in.npy", "out.npy"}
        assert all(name.startswith(".nbbn-") and name.endswith(".tmp") for name in left)
        for name in left:
            (folder / name).unlink()


def test_ctrl_c_waits_for_those_who_write(tmp_path, monkeypatch, capsys, small_blocks):
    """Else a thread would write into a file that is closed, or into the next one with its number."""
    save(tmp_path / "in.npy")
    open_files, write = [], _stream.NpyOutput.write
    replacing = _stream.state_files.replacing

    @contextlib.contextmanager
    def watched(path):
        with replacing(path) as file:
            open_files.append(file)
            try:
                yield file
            finally:
                open_files.remove(file)

    late = []

    def slow(self, first, values):
        time.sleep(0.02)
        late.append(not open_files)
        write(self, first, values)

    def advance(self, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(_stream.state_files, "replacing", watched)
    monkeypatch.setattr(_stream.NpyOutput, "write", slow)
    np.savez(tmp_path / "s.npz", mean=np.zeros(5), var=np.ones(5))
    monkeypatch.setattr(nbbn.cli._progress.Progress, "advance", advance)
    arguments = [str(tmp_path / name) for name in ("in.npy", "out.npy", "s.npz")]
    with nbbn.num_threads(2):
        assert main(["normalize", *arguments[:2], "--stats", arguments[2]]) == 130
    time.sleep(0.1)
    assert late
    assert not any(late)
    assert sorted(contents(tmp_path)) == ["in.npy", "s.npz"]
    assert capsys.readouterr().err == "nbbn: interrupted\n"


# --- terminals ---


def test_two_bars_on_a_terminal(tmp_path, monkeypatch, small_blocks):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(nbbn.cli._progress, "_SECONDS_BETWEEN_DRAWINGS", 0)
    save(tmp_path / "in.npy")
    succeed("normalize", tmp_path / "in.npy", tmp_path / "out.npy")
    *drawings, last = terminal.drawings()
    assert last == f"{tmp_path}/out.npy: 300 x 5 float32, 0.006 MB"
    drawn = [line for line in drawings if line]
    assert {line.partition(" [")[0] for line in drawn} == {"1/2 statistics", "2/2 normalizing"}
    assert all("MB/s" in line for line in drawn if "100%" in line)
    assert all(" left" in line for line in drawn if " 50%" in line)
    assert sum("100%" in line for line in drawn) == 2
    terminal.truncate(0)
    np.savez(tmp_path / "s.npz", mean=np.zeros(5), var=np.ones(5))
    succeed("normalize", tmp_path / "in.npy", tmp_path / "out.npy", "--stats", tmp_path / "s.npz")
    drawn = [line.strip("\0") for line in terminal.drawings()[:-1]]
    assert {line.partition(" [")[0] for line in drawn} - {""} == {"1/1 normalizing"}


@linux
def test_a_bar_on_a_terminal_and_none_in_a_pipe(tmp_path):
    import pty

    save(tmp_path / "in.npy", (4_000, 16))
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SLOW))
    command = [sys.executable, str(script), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    done = subprocess.run(command, env=environment(), capture_output=True, timeout=300, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
    reader, writer = pty.openpty()
    process = subprocess.Popen(command, env=environment(COLUMNS="100"), stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    seen = b""
    with contextlib.suppress(OSError):  # what reading a terminal ends with
        while part := os.read(reader, 1 << 16):
            seen += part
    os.close(reader)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (0, b"")
    assert b"1/2 statistics [" in seen
    assert b"2/2 normalizing [#" in seen
    assert b" MB/s, " in seen
    assert b" s left" in seen


def test_a_reader_of_moments_that_has_gone_is_no_error(tmp_path):
    save(tmp_path / "in.npy", (2, 50_000))
    command = [sys.executable, "-m", "nbbn", "moments", str(tmp_path / "in.npy")]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().split() == ["channel", "count", "mean", "var"]
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(300) == 141
