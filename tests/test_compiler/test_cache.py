"""Compiled code on disk: reused, never stale, and whatever is wrong with it is only a miss."""

import ast
import compileall
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest
from processes import TESTS
from rooms import cache as of_disk
from rooms import sources

import nbbn

PACKAGE = Path(nbbn.__file__).parent

# Of all steps, the one that is compiled soonest.
WORK = """
import numpy as np, nbbn
import rooms
running, step = np.ones((4, 2), np.float32), rooms.steps_of_layers.move_averages
step.variant(rooms.Variant())(running, np.full((7, 2), 3.0), 1.0, 0.5, np.zeros(1, np.int64))
print(running[0].tolist(), rooms.loaded())
"""
RIGHT = "[2.0, 2.0]"


def start(cache, package=None, code=WORK, **environment):
    variables = {**os.environ, "NBBN_CACHE_DIR": str(cache), **environment}
    variables = {name: value for name, value in variables.items() if value is not None}
    package = package or Path(nbbn.__file__).parents[1]
    variables["PYTHONPATH"] = os.pathsep.join(map(str, (package, TESTS)))
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


NORMALIZE = """
import numpy as np, nbbn
y = nbbn.normalize(np.array([[3.0], [5.0]]), np.array([1.0]), np.array([4.0]), eps=0.0)
import rooms
print(y.tolist(), rooms.loaded())
"""


@pytest.mark.long
def test_an_edited_helper_in_another_module_is_never_stale(tmp_path):
    cache, package = tmp_path / "cache", tmp_path / "edited"
    shutil.copytree(Path(nbbn.__file__).parent, package / "nbbn")
    module = package / "nbbn" / "_kernels" / "elementwise.py"
    source = module.read_text()
    right = "fma(x - c.y.center, c.y.scale, c.y.shift)"
    edited = source.replace(right, "fma(c.y.center - x, c.y.scale, c.y.shift)")
    assert edited != source
    assert run(cache, code=NORMALIZE) == "[[1.0], [2.0]] 0"
    assert run(cache, package, NORMALIZE) == "[[1.0], [2.0]] 1"  # elsewhere, the same code
    module.write_text(edited)
    assert run(cache, package, NORMALIZE) == "[[-1.0], [-2.0]] 0"
    module.write_text(source)
    assert run(cache, package, NORMALIZE) == "[[1.0], [2.0]] 1"


# --- what names a file ---

# Prints the name of a file for each step and each function of nopython.
NAMES = """
import json
import numba.core.registry
import nbbn
import rooms

codegen = numba.core.registry.cpu_target.target_context.codegen()
names = {}
for step in rooms.all_steps().values():
    cache = rooms.cache.DiskCache(step.function, {})
    names[f"{step.function.__module__}:{step.name}"] = cache._path("()", codegen)
for function in (nbbn.nopython.normalize, nbbn.nopython.moments):
    names[f"nbbn.nopython:{function.__name__}"] = function._cache._path("()", codegen)
print(json.dumps({name: path and path.name for name, path in names.items()}))
"""


def names(cache, package=None, before="import nbbn\n"):
    return json.loads(run(cache, package, before + NAMES))


# The same for each of several packages, in forks of one process that has imported all but nbbn.
FORKED = """
import os, sys
import numba.core.registry, numpy, pytest
assert "nbbn" not in sys.modules
for package in PACKAGES:
    pid = os.fork()
    if pid == 0:
        sys.path.insert(0, package)
        exec(NAMES)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def names_of_each(cache, packages):
    given = f"PACKAGES, NAMES = {[*map(str, packages)]!r}, {NAMES!r}\n"
    return [json.loads(line) for line in run(cache, None, given + FORKED).splitlines()]


def copied(folder):
    shutil.copytree(PACKAGE, folder / "nbbn", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def modules_of(package):
    """The module that each source file of the package is."""
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def users_of(package):
    """For each module, the modules that read it: by their sources, all of them."""
    paths = dict(modules_of(package))
    read = {}
    for module, path in paths.items():
        read[module] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "nbbn":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                read[module] |= {name if name in paths else node.module for name in names}
    for module in paths:
        while new := set().union(*(read[name] for name in read[module])) - read[module]:
            read[module] |= new
    users = {name: {user for user in paths if name in read[user]} for name in paths}
    return {name: users[name] | {name} for name in paths}


def changed(before, after):
    assert before.keys() == after.keys()
    assert None not in after.values()
    return {name for name in before if before[name] != after[name]}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    found = names(tmp_path_factory.mktemp("cache"))
    assert len(found) > 12
    assert len(set(found.values())) == len(found)
    return found


def test_an_edit_of_any_file_names_anew_what_is_compiled_of_it_and_nothing_else(named, tmp_path):
    users = users_of(PACKAGE)
    of_kernels = {name.split(":")[0] for name in named}
    read = sorted(module for module in users if users[module] & of_kernels)
    assert {"nbbn._compiler.weights", "nbbn._compiler.jit", "nbbn._kernels.table"} <= set(read)
    assert "nbbn._engine.threads" not in read

    base = copied(tmp_path / "base")
    assert compileall.compile_dir(base, quiet=1)  # so that only what was edited is compiled again
    for module in read:
        package = Path(shutil.copytree(base, tmp_path / module))
        with dict(modules_of(package / "nbbn"))[module].open("a") as file:
            file.write("\nEDITED = 1\n")
    after = names_of_each(tmp_path, [tmp_path / module for module in read])
    found = {module: changed(named, now) for module, now in zip(read, after, strict=True)}
    for module in read:
        expected = {name for name in named if name.split(":")[0] in users[module]}
        assert found[module] == expected, module
    assert {name.split(":")[0] for name in found["nbbn._kernels.samples"]} == {"nbbn.nopython"}
    assert "nbbn._kernels.steps_of_columns:infer_columns" in found["nbbn._compiler.weights"]
    assert not any("of_columns" in name for name in found["nbbn._kernels.runs"])


def test_an_edit_of_other_files_and_of_comments_names_nothing_anew(named, tmp_path):
    package = copied(tmp_path)
    for module, path in modules_of(package / "nbbn"):
        source = "# A comment.\n\n" + path.read_text()
        if module in ("nbbn.layer.batch_norm", "nbbn._engine.threads"):
            source += "\nEDITED = 1\n"
        path.write_text(source)
    assert changed(named, names(tmp_path, package)) == set()


def test_a_constant_that_another_machine_has_otherwise_is_part_of_the_name(named, tmp_path):
    before = "import nbbn._kernels.samples as module\nmodule.FEW_ROWS += 1\n"
    found = changed(named, names(tmp_path, before=before))
    assert found == {"nbbn.nopython:normalize", "nbbn.nopython:moments"}


def test_the_names_are_those_of_the_code_that_runs_not_of_a_later_edit(named, tmp_path):
    package = copied(tmp_path)
    module = package / "nbbn" / "_kernels" / "elementwise.py"
    before = f"import nbbn\nwith open({str(module)!r}, 'a') as file: file.write('EDITED = 1\\n')\n"
    found = names(tmp_path, package, before)
    nameless = {name for name in found if found[name] is None}  # it could only be guessed
    assert "nbbn._kernels.steps_of_columns:infer_columns" in nameless
    assert "nbbn._kernels.steps_of_layers:move_averages" not in nameless
    assert all(found[name] == named[name] for name in found.keys() - nameless)


def test_every_way_to_import_is_seen():
    source = """
import nbbn._compiler.vectors
from nbbn import config
from nbbn._compiler import formats as _formats
from nbbn._kernels import table as rows
from . import columns
from .runs import PIECE
from .. import _checks
import numpy.linalg
def late(nbbn=None):
    def later():
        from nbbn._compiler.weights import all_count
"""
    spec = sys.modules["nbbn._kernels.samples"].__spec__
    assert set(sources._imports(compile(source, "", "exec"), spec)) == {
        "nbbn",
        "nbbn._checks",
        "nbbn._compiler.formats",
        "nbbn._compiler.vectors",
        "nbbn._compiler.weights",
        "nbbn._kernels.columns",
        "nbbn._kernels.runs",
        "nbbn._kernels.table",
    }


# --- packages without source files ---

# As programs do that put the code of all modules into one file: there is none of a module to be read.
FROZEN = """
import importlib.abc, importlib.machinery, marshal, pathlib, sys
root = pathlib.Path(FOLDER)

class Loader(importlib.abc.InspectLoader):
    def get_source(self, fullname): return None
    def get_code(self, fullname): return marshal.loads(self.path(fullname).read_bytes()[16:])
    def is_package(self, fullname): return self.path(fullname).name == "__init__.pyc"
    def path(self, fullname):
        path = root.joinpath(*fullname.split("."))
        return path / "__init__.pyc" if path.is_dir() else path.with_suffix(".pyc")

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname.split(".")[0] == "nbbn" and Loader().path(fullname).exists():
            spec = importlib.machinery.ModuleSpec(fullname, Loader(), is_package=Loader().is_package(fullname))
            spec.origin = "/nowhere/" + fullname
            return spec

sys.meta_path.insert(0, Finder())
"""
FORMS = ["bytecode", "archive", "archive of bytecode", "frozen"]


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """For each form of the package, where to import it from and what to run first."""
    folder = tmp_path_factory.mktemp("forms")
    sources, bytecode, nowhere = folder / "sources", folder / "bytecode", folder / "nowhere"
    copied(sources), copied(bytecode), nowhere.mkdir()
    assert compileall.compile_dir(bytecode, quiet=1, legacy=True)
    for path in bytecode.rglob("*.py"):
        path.unlink()
    archives = [folder / "sources.zip", folder / "bytecode.zip"]
    for archive, tree in zip(archives, (sources, bytecode), strict=True):
        with zipfile.ZipFile(archive, "w") as file:
            for path in tree.rglob("*.py*"):
                file.write(path, path.relative_to(tree))
    frozen = FROZEN.replace("FOLDER", repr(str(bytecode)))
    places = [(bytecode, ""), (archives[0], ""), (archives[1], ""), (nowhere, frozen)]
    return dict(zip(FORMS, places, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_a_package_without_source_files_runs_what_was_compiled_of_them(warm, forms, form):
    package, before = forms[form]
    assert run(warm, package, before + WORK) == f"{RIGHT} 1"


def test_a_package_without_source_files_compiles_and_keeps_it(forms, tmp_path):
    """A step, its parallel twin, and what users call, from Python and from their own compiled code."""
    code = """
import numba, numpy as np, nbbn
assert not nbbn.__file__.endswith(".py")
x, found = np.arange(64.0 * 8192).reshape(64, 8192)[:, :4096], []
for n in (1, 2):
    with nbbn.num_threads(n):
        found.append(nbbn.normalize(x, np.ones(4096), np.ones(4096), eps=0.0))
assert np.array_equal(*found) and np.array_equal(found[0], x - 1.0)
try:
    nbbn.nopython.moments(np.ones(3), np.ones(3), np.ones(3))
except TypeError as error:
    print(str(error).partition(",")[0])
print(nbbn.nopython.moments(np.ones((2, 3, 4)), np.empty(3), np.empty(3)))
print(numba.njit(lambda *given: nbbn.nopython.moments(*given))(np.ones((2, 3, 4)), np.empty(3), np.empty(3)))
print(sum(nbbn.nopython.moments.stats.cache_hits.values()))
"""
    package, _ = forms["archive of bytecode"]
    expected = "x3: expected a C-contiguous array of float32 or float64 and of 3 dimensions\n8.0\n8.0\n"
    assert run(tmp_path, package, code) == expected + "0"
    kept = files(tmp_path)
    assert {path.name.rsplit("-", 1)[0] for path in kept} == {
        "infer_columns_serial",
        "infer_columns_parallel",
        "moments",
    }
    assert run(tmp_path, package, code) == expected + "1"
    assert files(tmp_path) == kept


# --- races, disks and folders ---


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


# --- other users ---

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
OTHER = 12345


@pytest.fixture
def of_another(monkeypatch):
    """Make a file another user's: where that can't be done, all files of this one's."""

    def give_away(path):
        if os.geteuid() == 0:
            os.chown(path, OTHER, -1, follow_symlinks=False)
        else:
            monkeypatch.setattr(os, "geteuid", lambda: OTHER)

    return give_away


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def folder(path, mode=0o700):
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(mode)
    return path


# What `NBBN_CACHE_DIR` is, made in the folder t with the function o that gives away; whether code is kept.
PLACES = {
    "ours": (lambda t, o: folder(t / "a" / "b"), True),
    "not there yet": (lambda t, o: t / "a" / "b", True),
    "relative steps": (lambda t, o: folder(t / "a") / ".." / "b", True),
    "as /tmp": (lambda t, o: folder(folder(t / "a", 0o1777) / "b"), True),
    "as /tmp, itself": (lambda t, o: folder(folder(t / "a") / "nbbn", 0o1777).parent, False),
    "as /tmp, another's in it": (lambda t, o: o(folder(folder(t / "a", 0o1777) / "b")), False),
    "another's": (lambda t, o: o(folder(t / "a")) / "b", False),
    "in another's": (lambda t, o: (folder(t / "a" / "b" / "nbbn").parent, o(t / "a"))[0], False),
    "in one for all": (lambda t, o: folder(folder(t / "a", 0o777) / "b"), False),
    "far in one for all": (lambda t, o: folder(folder(t / "a", 0o777) / "b" / "c" / "d"), False),
    "behind a link": (lambda t, o: link(t / "l", folder(t / "a" / "b")), True),
    "behind a relative link": (lambda t, o: link(t / "x" / "l", folder(t / "a") and "../a"), True),
    "behind another's link": (lambda t, o: o(link(folder(t / "s", 0o1777) / "l", t)), False),
    "linked from one for all": (
        lambda t, o: link(folder(t / "a", 0o777) / "l", folder(t / "b")),
        False,
    ),
    "linked into one for all": (
        lambda t, o: link(t / "l", folder(folder(t / "a", 0o777) / "b")),
        False,
    ),
    "two links, one in one for all": (
        lambda t, o: link(t / "l", link(folder(t / "a", 0o777) / "m", folder(t / "b"))),
        False,
    ),
    "links in a circle": (lambda t, o: link(t / "l", link(t / "m", t / "l")), False),
}


@posix
@pytest.mark.parametrize(("make", "is_kept"), PLACES.values(), ids=PLACES)
def test_a_place_that_others_may_exchange_is_not_trusted(make, is_kept, tmp_path, of_another):
    place = make(tmp_path, lambda path: (of_another(path), path)[1])
    found = of_disk._usable_directory(str(place), None, None)
    if is_kept:
        assert found == place / "nbbn"
    else:
        assert isinstance(found, str)
        assert found.startswith(("another user may write to", "FileExistsError"))


@posix
@pytest.mark.parametrize("is_private", [True, False])
def test_a_folder_that_a_group_may_write_to(is_private, tmp_path, monkeypatch):
    import grp
    import pwd
    from types import SimpleNamespace

    user = SimpleNamespace(pw_name="ours", pw_gid=7)
    members = [] if is_private else ["ours", "other"]
    group = SimpleNamespace(gr_name="ours", gr_gid=7, gr_mem=members)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: user)
    monkeypatch.setattr(grp, "getgrgid", lambda gid: group)
    folder(tmp_path / "a", 0o770)
    assert isinstance(of_disk._usable_directory(str(tmp_path / "a"), None, None), Path) == is_private


@posix
def test_folders_are_made_for_nobody_else(tmp_path):
    before = os.umask(0)
    try:
        of_disk._usable_directory(str(tmp_path / "a" / "b"), None, None)
    finally:
        os.umask(before)
    for made in ("a", "a/b", "a/b/nbbn"):
        assert (tmp_path / made).stat().st_mode & 0o777 == 0o700


def test_a_relative_cache_folder_of_the_desktop_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME" if os.name == "posix" else "USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert of_disk._usable_directory(None, None, "here") == tmp_path / ".cache" / "nbbn"
    assert of_disk._usable_directory(None, None, str(tmp_path / "x")) == tmp_path / "x" / "nbbn"


@posix
def test_a_file_that_another_user_may_have_written_is_a_miss(copy, of_another):
    for path in files(copy):
        path.chmod(0o666)
    assert run(copy) == f"{RIGHT} 0"
    assert run(copy) == f"{RIGHT} 1"  # and it is replaced
    for path in files(copy):
        of_another(path)
        with pytest.raises(PermissionError, match="another user"):
            of_disk._read(path)


def test_the_file_of_another_variant_is_a_miss_under_this_name(tmp_path):
    code = """
import numpy as np
from rooms import Variant, steps_of_layers
for dtype in (np.float32, np.float64):
    step, running = steps_of_layers.move_averages, np.ones((4, 2), dtype)
    step.variant(Variant(parameters=dtype))(running, np.full((7, 2), 3.0), 1.0, 0.5, np.zeros(1, np.int64))
    print(running[0].tolist(), sum(step.made[-1]._cache_hits.values()))
"""
    right = "[2.0, 2.0] {0}\n[2.0, 2.0] {0}"
    assert run(tmp_path, code=code) == right.format(0)
    assert run(tmp_path, code=code) == right.format(1)
    one, other = files(tmp_path)
    one.rename(tmp_path / "kept"), other.rename(one), (tmp_path / "kept").rename(other)
    assert run(tmp_path, code=code) == right.format(0)
    assert run(tmp_path, code=code) == right.format(1)


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


def test_the_folder_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("NBBN_CACHE_DIR", str(tmp_path))
    assert nbbn.config()["cache_directory"] == str(tmp_path / "nbbn")
    monkeypatch.setenv("NBBN_CACHE_DIR", "")
    assert nbbn.config()["cache_directory"] is None
    monkeypatch.delenv("NBBN_CACHE_DIR")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert of_disk.cache_directory() == tmp_path / "numba" / "nbbn"


def test_import_compiles_nothing_and_starts_no_thread(tmp_path):
    code = (
        "import os\n"
        "import numpy\n"
        "import numba\n"
        "before = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 0\n"
        "import nbbn\n"
        "after = len(os.listdir('/proc/self/task')) if os.path.isdir('/proc/self/task') else 0\n"
        "import rooms\n"
        "steps = rooms.all_steps().values()\n"
        "compiled = sum(len(step._ready) for step in steps)\n"
        "print(after - before, compiled, len(steps) > 10, nbbn.config()['threading_layer'])\n"
    )
    assert run(tmp_path, code=code) == "0 0 True None"
    assert not files(tmp_path)


# --- what is said of it ---

SAID = """
import sys
import numpy as np, nbbn
import rooms

class Terminal:
    def isatty(self): return WATCHED
    def write(self, text): written.append(text)
    def flush(self): pass

written, sys.stderr = [], Terminal()
step = rooms.steps_of_layers.move_averages
for dtype in (np.float32, np.float64):
    running = np.ones((4, 2), dtype)
    step.variant(rooms.Variant(parameters=dtype))(running, np.ones((7, 2)), 1.0, 0.5, np.zeros(1, np.int64))
print(repr("".join(written)))
"""


def said(cache, watched=True, before="", **environment):
    return run(cache, code=before + SAID.replace("WATCHED", str(watched)), **environment)


def test_one_line_on_a_terminal_says_that_something_is_compiled(tmp_path):
    line = f"\\rnbbn: compiling for this machine, kept in {tmp_path / 'nbbn'}, a few seconds\\n"
    assert said(tmp_path / "none yet", watched=False) == "''"
    assert said(tmp_path) == f"'{line}'"
    assert said(tmp_path) == "''"  # nothing is compiled
    alone = line.replace(f"in {tmp_path / 'nbbn'}", "for this process alone")
    assert said("") == f"'{alone}'"


def test_it_is_a_record_of_the_logger_and_may_be_silenced_on_the_terminal(tmp_path):
    listen = "import logging\nlogging.basicConfig(level='INFO', stream=sys.stdout, format='%(name)s %(message)s')\n"
    found = said(tmp_path, before="import sys\n" + listen, NBBN_QUIET="1")
    kept = f"nbbn compiling for this machine, kept in {tmp_path / 'nbbn'}, a few seconds"
    assert found == f"{kept}\n''"
