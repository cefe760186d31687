"""Folders, disks and files that fail or lie: compiled code, and saved layers."""

import errno
import io
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from compare import layer
from processes import environment, run
from rooms import state as _storage

import nbbn

needs_limits = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE and /proc")

# --- compiled code on disk ---

# Prints the bits of what the step makes that is compiled soonest, and how many were loaded from files.
STEP = """
import os, shutil, sys
import numpy as np
import nbbn
import rooms

def work():
    rng = np.random.default_rng(0)
    running, batch = rng.normal(3, 2, (4, 5)).astype(np.float32), rng.normal(3, 2, (7, 5))
    step = rooms.steps_of_layers.move_averages.variant(rooms.Variant())
    step(running, batch, 3.0, 0.1, np.zeros(1, np.int64))
    print(running.tobytes().hex(), rooms.loaded())
"""


def work(cache, before="", **variables):
    """The bits and the number of loaded kernels, of a process whose cache is in the folder."""
    bits, loaded = run(STEP + before + "\nwork()\n", env={"NBBN_CACHE_DIR": cache, **variables})
    return bits, int(loaded)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """The bits that are right, and a folder in which they have been compiled."""
    folder = tmp_path_factory.mktemp("cache")
    bits, loaded = work(str(folder))
    assert loaded == 0
    return bits, folder


@pytest.fixture(scope="module")
def expected(warm):
    return warm[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def cut(path):
    path.write_bytes(path.read_bytes()[:32])  # its checksum alone


def replace_by_folder(path):
    path.unlink()
    path.mkdir()
    (path / "file").write_text("")


def replace_by_link_to_itself(path):
    path.unlink()
    path.symlink_to(path)


BEFORE = {
    "below a file": "",
    "folder removed after import": "shutil.rmtree(os.environ['NBBN_CACHE_DIR'])",
    "a file in its place after the first look": (
        "nbbn.config(); shutil.rmtree(os.environ['NBBN_CACHE_DIR'])\nopen(os.environ['NBBN_CACHE_DIR'], 'w').close()"
    ),
}


@pytest.mark.parametrize("what", BEFORE)
@pytest.mark.long
def test_a_folder_that_cannot_be_used_is_a_miss(what, expected, tmp_path):
    folder = tmp_path / "cache"
    if what == "below a file":
        folder.write_text("")
        folder = folder / "below"
    else:
        folder.mkdir()
    assert work(str(folder), BEFORE[what]) == (expected, 0)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.long
def test_a_file_system_that_takes_no_files_is_a_miss(expected):
    assert work("/proc/self") == (expected, 0)


@needs_limits
@pytest.mark.parametrize("size", [0, 4096])
@pytest.mark.long
def test_a_disk_that_is_full_in_the_middle_of_a_write(size, expected, tmp_path):
    """The system lets no file of the process grow beyond the size: the file is not kept."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, -1))"
    assert work(str(tmp_path), limit) == (expected, 0)
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("spoil", [cut, replace_by_folder, replace_by_link_to_itself])
@pytest.mark.long
def test_spoiled_files_are_a_miss_and_replaced_where_they_can_be(spoil, warm, tmp_path):
    expected, folder = warm
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    assert work(str(tmp_path)) == (expected, 1)
    paths = list((tmp_path / "nbbn").iterdir())
    for path in paths:
        spoil(path)
    assert work(str(tmp_path)) == (expected, 0)
    assert work(str(tmp_path)) == (expected, 0 if spoil is replace_by_folder else 1)
    assert set((tmp_path / "nbbn").iterdir()) == set(paths)  # nothing left over


OTHER_OPTIONS = (
    {},
    {"NUMBA_BOUNDSCHECK": "1"},
    {"NUMBA_OPT": "1"},
    {"NUMBA_CPU_NAME": "generic"},
)


@pytest.mark.long
def test_processes_with_other_options_never_run_each_others_code(expected, tmp_path):
    """numba's own cache names a file by its function alone: who comes second runs the first one's code."""
    with ThreadPoolExecutor(len(OTHER_OPTIONS)) as pool:

        def all_at_once():
            return list(pool.map(lambda own: work(str(tmp_path), **own), OTHER_OPTIONS))

        assert all_at_once() == [(expected, 0)] * len(OTHER_OPTIONS)
        made = contents(tmp_path)
        assert len(made) == len(OTHER_OPTIONS)
        assert len(set(made.values())) == len(made)
        assert all_at_once() == [(expected, 1)] * len(OTHER_OPTIONS)
    assert contents(tmp_path) == made


# --- saving ---

SAVE_FOR_EVER = """
import os, sys
import nbbn

os.fsync = lambda descriptor: None  # the system goes on: all the time is for writing
layers = [nbbn.BatchNorm(200_000) for _ in range(2)]
for k, bn in enumerate(layers):
    for array in (bn.gamma, bn.beta, bn.running_mean, bn.running_var):
        array[:] = k
    bn.num_batches_tracked = k
print(flush=True)
while True:
    for bn in layers:
        bn.save(sys.argv[1])
"""


@pytest.mark.long
def test_a_process_killed_while_it_saves_leaves_a_whole_file(tmp_path):
    script, path = tmp_path / "save.py", tmp_path / "saved" / "layer.npz"
    script.write_text(SAVE_FOR_EVER)
    path.parent.mkdir()
    layer(3).save(path)
    rng = random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, str(script), str(path)], stdout=subprocess.PIPE, env=environment())
        try:
            assert process.stdout.readline() == b"\n"
            time.sleep(rng.uniform(0.005, 0.03))
        finally:
            process.kill()
            process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        bn = nbbn.BatchNorm.load(path)
        if bn.num_features > 3:
            (value,) = {
                float(value)
                for array in (bn.gamma, bn.beta, bn.running_mean, bn.running_var)
                for value in np.unique(array)
            }
            assert bn.num_batches_tracked == value
    left = [entry.name for entry in path.parent.iterdir() if entry != path]
    assert all(name.startswith(".nbbn-") and name.endswith(".tmp") for name in left)
    layer(4).save(path)  # what is left over is in nobody's way
    assert nbbn.BatchNorm.load(path).num_features == 4


class FullDisk(io.FileIO):
    """A file on a disk that has room for no more than some bytes."""

    room = 1000

    def write(self, data):
        if self.tell() + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def test_a_disk_full_in_the_middle_of_a_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "layer.npz"
    layer(3).save(path)
    old = path.read_bytes()
    written = []

    def open_full(name, mode, opener):
        written.append(name)
        return FullDisk(name, mode, opener=opener)

    monkeypatch.setattr(_storage, "open", open_full, raising=False)
    for save in (layer(5000).save, nbbn.BatchNorm(3).save):
        with pytest.raises(OSError, match="No space left") as error:
            save(path)
        assert error.value.errno == errno.ENOSPC
        assert path.read_bytes() == old
        assert list(tmp_path.iterdir()) == [path]
    assert len(written) == 2


@needs_limits
def test_a_limit_on_the_size_of_files_at_any_place_leaves_the_old_file(tmp_path):
    """The members of the archive, its directory, its last bytes: wherever the write fails."""
    path = tmp_path / "layer.npz"
    layer(3).save(path)
    old = path.read_bytes()
    script = """
    import resource, sys
    import nbbn
    from pathlib import Path

    path, bn = Path(sys.argv[1]), nbbn.BatchNorm(300)
    bn.save(path.with_name("whole"))
    size = path.with_name("whole").stat().st_size
    path.with_name("whole").unlink()
    for limit in (0, 1, size // 4, size // 2, size - 500, size - 22, size - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
        try:
            bn.save(path)
        except OSError as error:
            print(error.errno)
    """
    assert run(script, str(path)) == [str(errno.EFBIG)] * 7
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_gets_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    """Else a crash of the system may leave an empty file under the name, or the old one."""
    path, steps = tmp_path / "layer.npz", []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(descriptor):
        status = os.fstat(descriptor)
        steps.append("folder" if stat.S_ISDIR(status.st_mode) else status.st_size)
        fsync(descriptor)

    def seen_replace(source, target, **keywords):
        steps.append("rename")
        replace(source, target, **keywords)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    layer(3).save(path)
    assert steps == [path.stat().st_size, "rename", "folder"]
