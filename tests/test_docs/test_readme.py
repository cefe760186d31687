"""The documents keep their word: examples run, commands are CI's, links lead somewhere."""

import doctest
import importlib
import json
import os
import re
import subprocess
import tomllib

import pytest
from processes import ROOT

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
EXTRAS = {"demo": "demo", "test": "test"}  # README's command -> the extra that it installs


def code_blocks(text, language):
    """Return `text` with every line blanked that is not in a fenced block of `language`.

    The line numbers stay, so that a failing example is reported where it is written.
    """
    lines, inside = [], None
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line.strip("` \n") if inside is None else None
            lines.append("")
        else:
            lines.append(line if inside == language else "")
    return "\n".join(lines) + "\n"


def readme_command(name):
    pattern = rf"^<!-- ci: {name} -->\n```sh\n(.+?)\n```$"
    found = re.findall(pattern, README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README.md must have exactly one block of commands named {name}"
    return found[0]


def with_examples():
    return [path for path in DOCUMENTS if ">>>" in code_blocks(path.read_text("utf-8"), "python")]


@pytest.mark.parametrize("path", with_examples(), ids=lambda path: path.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some examples save files
    text = code_blocks(path.read_text("utf-8"), "python")
    parser = doctest.DocTestParser()
    examples = parser.get_doctest(text, {"__name__": "__main__"}, path.name, str(path), 0)
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(examples, out=report.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)


def test_readme_has_examples():
    text = code_blocks(README.read_text("utf-8"), "python")
    assert "[[2], [0], [2], [4]]" in text, "the worked example is the first one"
    assert README in with_examples()


def test_blocks_are_cut_out():
    text = "a\n```python\n>>> 1\n1\n```\n>>> no\n```sh\n>>> no\n```\n"
    assert code_blocks(text, "python") == "\n\n>>> 1\n1\n\n\n\n\n\n"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_ci_runs_the_commands_of_the_readme():
    listed = subprocess.run(
        ["bash", str(ROOT / ".ci" / "run"), "--list"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert listed.stdout == "".join(f"{readme_command(name)}\n" for name in ("demo", "test"))


@pytest.mark.parametrize("name", EXTRAS)
def test_commands_install_an_extra_that_exists(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (extra,) = re.findall(r'"\.\[(\w+)\]"', readme_command(name))
    assert extra == EXTRAS[name]
    assert extra in project["optional-dependencies"]


def test_the_command_nbbn_is_there():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    module, _, function = project["scripts"]["nbbn"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert readme_command("demo").endswith("/nbbn demo")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text("utf-8"))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    missing = [link for link in local if not (path.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_page_is_long(path):
    assert len(path.read_text("utf-8").splitlines()) <= 400, "split it by the reader's questions"


def test_package_tells_type_checkers_of_its_types():
    assert (ROOT / "nbbn" / "py.typed").is_file()


def test_the_table_of_times_is_that_of_the_recorded_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    table = importlib.import_module("benchmarks.table")
    record = json.loads(table.RECORDED.read_text("utf-8"))
    text = README.read_text("utf-8")
    assert table.with_table(text, record) == text
    assert "torch" in table.table(record)


def test_the_picture_of_speed_is_that_of_the_recorded_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    table, picture = (importlib.import_module(f"benchmarks.{name}") for name in ("table", "picture"))
    results = table.plain_results(json.loads(table.RECORDED.read_text("utf-8")))
    expected = sorted(
        f"{picture.mean_ratio(results, operation, peer, images):.1f} x"
        for operation in table.OPERATIONS
        for peer in ("torch", "numpy")
        for images in (True, False)
    )
    for path in picture.FILES.values():
        assert sorted(re.findall(r"\d+\.\d x", path.read_text("utf-8"))) == expected
        assert path.name in README.read_text("utf-8")
