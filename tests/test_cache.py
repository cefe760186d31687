"""Compiled code on disk: reused, never stale, and whatever is wrong with it is only a miss."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import nbbn
from nbbn import _cache

WORK = """
import numpy as np, nbbn
y = nbbn.normalize(np.array([[3.0], [5.0]]), np.array([1.0]), np.array([4.0]), eps=0.0)
from nbbn import _warmup
made = {d for kernel in _warmup.kernels() for d in vars(kernel).values() if hasattr(d, "_cache_hits")}
hits = sum(sum(dispatcher._cache_hits.values()) for dispatcher in made)
print(y.tolist(), hits)
"""
RIGHT = "[[1.0], [2.0]]"


def start(cache, package=None, code=WORK, **environment):
    variables = {**os.environ, "NBBN_CACHE_DIR": str(cache), **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    variables["PYTHONPATH"] = str(package or Path(nbbn.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        env=variables,
        cwd=tempfile.gettempdir(),  # not the checkout: PYTHONPATH says which package
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err == ""
    return out.strip()


def run(cache, *arguments, **keywords):
    return finish(start(cache, *arguments, **keywords))


def files(cache):
    return sorted(Path(cache).rglob("*.nbbn"))


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    assert run(cache) == f"{RIGHT} 0"
    assert files(cache)
    return cache


@pytest.fixture
def copy(warm, tmp_path):
    return Path(shutil.copytree(warm, tmp_path / "cache"))


def test_a_second_process_compiles_nothing(warm):
    assert run(warm) == f"{RIGHT} 1"


@pytest.mark.parametrize("damage", [b"", b"\0" * 10, "half", "flip"], ids=str)
@pytest.mark.long
def test_damaged_files_are_a_miss(copy, damage):
    for path in files(copy):
        whole = path.read_bytes()
        if damage == "half":
            path.write_bytes(whole[: len(whole) // 2])
        elif damage == "flip":
            path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        else:
            path.write_bytes(damage)
    assert run(copy) == f"{RIGHT} 0"
    assert run(copy) == f"{RIGHT} 1"  # and they are replaced


def test_a_hostile_file_is_not_unpickled(copy):
    for path in files(copy):
        path.write_bytes(b"\0" * 32 + b"cos\nsystem\n(S'exit 1'\ntR.")
    assert run(copy) == f"{RIGHT} 0"


@pytest.mark.long
def test_an_edited_helper_in_another_module_is_never_stale(copy, tmp_path):
    package = tmp_path / "edited"
    shutil.copytree(Path(nbbn.__file__).parent, package / "nbbn")
    module = package / "nbbn" / "kernels" / "epilogue.py"
    source = module.read_text()
    edited = source.replace(
        "    return fma(x - center, scale, shift)", "    return fma(center - x, scale, shift)"
    )
    assert edited != source
    assert run(copy, package) == f"{RIGHT} 1"  # the same sources elsewhere: the same code
    module.write_text(edited)
    assert run(copy, package) == "[[-1.0], [-2.0]] 0"
    module.write_text(source)
    assert run(copy, package) == f"{RIGHT} 1"


@pytest.mark.long
def test_processes_racing_for_a_cold_cache_are_all_right(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    for process in processes:
        assert finish(process) == f"{RIGHT} 0"
    assert run(tmp_path) == f"{RIGHT} 1"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.long
def test_a_missing_home_is_no_error():
    unset = {"HOME": os.devnull + "/none", "XDG_CACHE_HOME": None, "NUMBA_CACHE_DIR": None}
    assert run("", **unset) == f"{RIGHT} 0"
    code = "import os; del os.environ['NBBN_CACHE_DIR']\n" + WORK
    assert run("", code=code, **unset) == f"{RIGHT} 0"


@pytest.mark.long
def test_an_unusable_folder_is_no_error(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(blocked) == f"{RIGHT} 0"


@pytest.mark.long
def test_a_folder_that_others_can_write_to_is_not_trusted(tmp_path):
    folder = tmp_path / "nbbn"
    folder.mkdir()
    folder.chmod(0o777)
    assert run(tmp_path) == f"{RIGHT} 0"
    assert not files(tmp_path)


@pytest.mark.long
def test_a_full_disk_is_no_error(warm, tmp_path, monkeypatch):
    code = WORK.replace(
        "import numpy as np, nbbn\n",
        "import numpy as np, nbbn, os\n"
        "def full(*arguments): raise OSError(28, 'No space left on device')\n"
        "os.replace = full\n",
    )
    assert run(tmp_path, code=code) == f"{RIGHT} 0"
    assert not list(tmp_path.rglob("*.nbbn"))
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.long
def test_the_serial_and_the_parallel_twin_have_files_of_their_own(monkeypatch, tmp_path):
    code = (
        "import numpy as np, nbbn\n"
        "x = np.ones((64, 8192))[:, :4096]\n"
        "for n in (1, 2):\n"
        "    with nbbn.num_threads(n): nbbn.batch_moments(x)\n"
    )
    run(tmp_path, code=code)
    names = [path.name.rsplit("-", 1)[0] for path in files(tmp_path)]
    assert "collect_moments_channels_last_serial" in names
    assert "collect_moments_channels_last_parallel" in names


def test_the_folder_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NBBN_CACHE_DIR", str(tmp_path))
    assert nbbn.config()["cache_directory"] == str(tmp_path / "nbbn")
    monkeypatch.setenv("NBBN_CACHE_DIR", "")
    assert nbbn.config()["cache_directory"] is None
    monkeypatch.delenv("NBBN_CACHE_DIR")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert _cache.cache_directory() == tmp_path / "numba" / "nbbn"


def test_import_compiles_nothing_and_starts_no_thread(tmp_path):
    code = (
        "import os\n"
        "import numpy\n"
        "import numba\n"
        "before = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 0\n"
        "import nbbn\n"
        "after = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 0\n"
        "from nbbn import _dispatch\n"
        "from nbbn._jit import Kernel\n"
        "kernels = [k for module in (_dispatch.channels_first, _dispatch.channels_last,\n"
        "           _dispatch.channels_first_backward, _dispatch.channels_last_backward,\n"
        "           _dispatch.running) for k in vars(module).values() if isinstance(k, Kernel)]\n"
        "compiled = sum(len(k._ready) for k in kernels)\n"
        "print(after - before, compiled, len(kernels) > 10, nbbn.config()['threading_layer'])\n"
    )
    assert run(tmp_path, code=code) == "0 0 True None"
    assert not files(tmp_path)
