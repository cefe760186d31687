"""docs/quickstart.md, followed to the letter in a fresh environment: its commands and its examples, in their order."""

import csv
import math
import os
import re
import shutil
import statistics
import subprocess
import sys

import pytest
from processes import ROOT
from test_readme import code_blocks

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt", reason="the page has commands for a POSIX shell"),
]

PAGE = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
CHECKOUT = ("nbbn", ".ci", "pyproject.toml", "README.md", "LICENSE")  # what pip needs


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy, as the page makes its environment and its files in it."""
    folder = tmp_path_factory.mktemp("quickstart") / "nbbn"
    folder.mkdir()
    for name in CHECKOUT:
        if (ROOT / name).is_dir():
            junk = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=junk)
        else:
            shutil.copy(ROOT / name, folder)
    return folder


def shell(commands, folder):
    """Run commands as somebody would who knows nothing of this suite; return what they print."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    # python3 of the page: an environment of this Python's version
    environment["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # noqa: PTH120
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{commands}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_followed_to_the_letter(checkout):
    install, standardize = blocks("sh")
    people, expected = blocks("text")

    shell(install, checkout)
    example = checkout / "examples.txt"
    example.write_text(code_blocks(PAGE, "python"), "utf-8")
    shell(f".venv/bin/python -W error -m doctest {example.name}", checkout)
    assert (checkout / "bn.npz").is_file(), "the layer was trained and saved"

    (checkout / "people.csv").write_text(people, "utf-8")
    assert shell(standardize, checkout) == expected
    assert (checkout / "people.npz").is_file()
    with (checkout / "standardized.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["Ada", "Emmy", "Kurt", "Alan"]
    for column, count in (("height", 4), ("weight", 3)):
        values = [float(row[column]) for row in rows if row[column]]
        assert len(values) == count
        assert math.isclose(statistics.fmean(values), 0, abs_tol=1e-12)
        assert math.isclose(statistics.pstdev(values), 1, rel_tol=1e-12)


def test_the_page_has_what_a_newcomer_comes_for():
    examples = code_blocks(PAGE, "python")
    for word in ("nbbn.BatchNorm(", ".backward(", "from_torch(", ".freeze()", "nbbn.Standardizer("):
        assert word in examples
    assert re.search(r"^\.venv/bin/nbbn normalize \S+\.csv \S+\.csv", "".join(blocks("sh")), re.M)


METADATA = """
from importlib.metadata import distribution
found = distribution("nbbn").metadata
print(found.get_all("Project-URL") or [])
print(found.get_payload())
"""


def test_links_are_made_of_one_address(checkout, tmp_path):
    """While there is none, the README goes into the package as it is."""
    for address in ("", "https://example.org/nbbn"):
        source = tmp_path / f"with{address[:5]}"
        shutil.copytree(checkout, source, ignore=shutil.ignore_patterns(".venv"))
        project = source / "pyproject.toml"
        text = project.read_text("utf-8")
        assert text.count('address = ""\n') == 1, "the address is set: give this test the empty one, too"
        project.write_text(text.replace('address = ""\n', f'address = "{address}"\n'), "utf-8")
        commands = f"{sys.executable} -m pip install -q --no-deps --target=installed ."
        shell(commands, source)
        printed = shell(f"PYTHONPATH=installed {sys.executable} -c '{METADATA}'", source)
        urls, _, readme = printed.partition("\n")
        if address:
            assert f"Source, {address}" in urls
            assert f"]({address}/blob/main/docs/quickstart.md)" in readme
            assert f'src="{address}/raw/main/docs/images/speed-light.svg"' in readme
            assert not re.search(r"\]\(docs/", readme)
        else:
            assert urls == "[]"
            assert readme.strip() == (ROOT / "README.md").read_text("utf-8").strip()
