"""The budgets that keep the house small; docs/architecture.md has its plan."""

import ast
import functools
from pathlib import Path

import pytest
from planted_mistakes import MISTAKES

import nbbn

PACKAGE = Path(nbbn.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((PACKAGE / "_kernels").glob("*.py"))
LOOPS = ("loops", "runs", "columns", "steps_of_runs", "steps_of_columns")


@functools.cache
def tree_of(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def lines_of(file):
    return len(file.read_text(encoding="utf-8").splitlines())


def entries():
    """The entries of the package's listing."""
    return {entry.stem for entry in PACKAGE.iterdir() if entry.name not in ("__pycache__", "py.typed")}


def imported(file):
    """The modules that a file imports, and the names it takes from each."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def floors_of(graph):
    """The longest way down from each room; a cycle has none."""
    found, above = {}, []

    def floors(room):
        assert room not in above, f"imports run in a circle: {[*above, room]}"
        if room not in found:
            above.append(room)
            found[room] = 1 + max(map(floors, graph[room]), default=0)
            above.pop()
        return found[room]

    for room in graph:
        floors(room)
    return found


def test_entries_and_lines():
    assert len(entries()) <= 18
    assert {file.name: lines_of(file) for file in FILES if lines_of(file) > 600} == {}
    assert sum(map(lines_of, FILES)) <= 15_450


def test_planted_mistakes_fit():
    """What each takes out stands in its file once, so that it can be planted."""
    counts = {(m.file, m.what): (PACKAGE / m.file).read_text("utf-8").count(m.right) for m in MISTAKES}
    assert {mistake: count for mistake, count in counts.items() if count != 1} == {}


def test_floors():
    graph = {room: set() for room in entries() - {"__init__", "__main__"}}
    for file in FILES:
        room = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for module, name in imported(file):
            below = f"{module}.{name}".split(".")
            if below[0] == "nbbn" and {room, below[1]} <= set(graph) and room != below[1]:
                graph[room].add(below[1])
    assert max(floors_of(graph).values()) <= 10
    assert sum(map(len, graph.values())) <= 60


def test_a_circle_has_no_floors():
    with pytest.raises(AssertionError, match="circle"):
        floors_of({"a": {"b"}, "b": {"c"}, "c": {"a"}})


@pytest.mark.parametrize("file", KERNELS, ids=lambda file: file.stem)
def test_kernels_have_few_parameters(file):
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef):
            is_step = any(getattr(name, "id", "") == "step" for name in node.decorator_list)
            given = node.args
            number = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
            assert is_step or number <= 8, f"{node.name} has {number} parameters"
            assert given.vararg is None and given.kwarg is None, node.name


@pytest.mark.parametrize("file", KERNELS, ids=lambda file: file.stem)
def test_kernels_import_numpy_math_prange_and_what_compiles(file):
    for module, name in imported(file):
        assert (
            module in ("__future__", "typing", "math", "numpy")
            or (module, name) == ("numba", "prange")
            or module.startswith(("nbbn._kernels", "nbbn._compiler"))
        ), (module, name)


def test_signatures_and_arguments_are_little_of_the_loops():
    number = spread = 0
    for name in LOOPS:
        file = PACKAGE / "_kernels" / f"{name}.py"
        number += lines_of(file)
        spread += len(lines_of_arguments(file))
    assert spread < 0.15 * number


def lines_of_arguments(file):
    """The lines of parameters of a def, and arguments of a call, that take more than one line."""
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef):
            is_step = any(getattr(name, "id", "") == "step" for name in node.decorator_list)
            given = [] if is_step else node.args.args
        elif isinstance(node, ast.Call):
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
        else:
            continue
        lines = {line for one in given for line in range(one.lineno, one.end_lineno + 1)}
        found |= lines if len(lines) > 1 else set()
    return found
