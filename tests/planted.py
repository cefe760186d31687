"""Planted mistakes: which test catches each of them, and how soon.

    python -m tests.planted                        every mistake that the record does not have
    python -m tests.planted loops tail             those whose file or description holds one of the words
    python -m tests.planted --again --jobs 2       also those that it has; two at a time
    python -m tests.planted --for 240              begin none after so many seconds
    python -m tests.planted --page                 write the table of docs/contributing.md from the record

A mistake is a piece of a file of nbbn/ and what stands there instead (`tests/planted_mistakes.py`). It is planted in a
copy of the tree; the tests that cover the file run until the first one fails, those of the default run before the long
ones. What survives meets the whole suite where ``--whole`` is given. Compiled code of files that are as they were comes
from the cache (``NBBN_CACHE_DIR``), which is left alone. The record is ``.planted.json``.

Exit status: 0 all were caught, 1 some survived, 2 usage.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE / "tests"))  # as pytest does
from planted_mistakes import MISTAKES  # noqa: E402

RECORD, PAGE = HERE / ".planted.json", HERE / "docs" / "contributing.md"
HEADING = "## Planted mistakes"
LIMIT = 900  # seconds, after which a mistake that makes a test hang counts as caught
RUNS = {"not long": "default", "long": "long"}


def copy_of(tree, mistake):
    """Copy the tree into a folder, with the mistake."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=HERE, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        if (HERE / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(HERE / name, tree / name)
    path = tree / "nbbn" / mistake.file
    path.write_text(planted(path.read_text(), mistake))


def planted(source, mistake):
    """The source with the mistake."""
    found = source.count(mistake.right)
    if found != 1:
        raise ValueError(f"{mistake.file}: {mistake.right!r} stands there {found} times")
    return source.replace(mistake.right, mistake.wrong)


def compiled_code(folder):
    """A cache of its own, which begins with what is in the one of this process."""
    import nbbn

    known = nbbn.config()["cache_directory"]
    own = folder / "cache" / "nbbn"
    own.mkdir(parents=True, mode=0o700)
    for path in Path(known).glob("*.nbbn") if known else ():
        try:
            os.link(path, own / path.name)
        except OSError:
            shutil.copyfile(path, own / path.name)
    return folder / "cache"


def run(tree, cache, marker, tests, seconds):
    """The test that failed first, or None; and what was said."""
    variables = {"NBBN_CACHE_DIR": str(cache), "PYTHONPATH": str(tree), "TMPDIR": str(tree.parent)}
    process = subprocess.Popen(
        [sys.executable, "-B", "-m", "pytest", "-xq", "-n0", "-pno:cacheprovider", "-m", marker, *tests],
        cwd=tree, env={**os.environ, **variables}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return "a test that waits for ever", ""
    finally:
        with contextlib.suppress(ProcessLookupError):  # and whoever it left behind
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode in (0, 5):  # all passed, or none was chosen
        return None, said
    failed = re.search(r"^(?:FAILED|ERROR) tests/(?:\w+/)?([^\s\[]+)", said, re.MULTILINE)
    return failed[1] if failed else "the import, or a crash", said


def meet(mistake, whole=False):
    """Plant it, and run what covers it."""
    begun, caught = time.monotonic(), None
    soon = [test for test in mistake.tests if "::" in test]  # alone: other files take long to import
    files = [test for test in mistake.tests if test not in soon]
    stages = [("not long", [test]) for test in soon] + [(m, files) for m in RUNS]
    stages += [(m, ["tests"]) for m in RUNS if whole]
    with tempfile.TemporaryDirectory(prefix="nbbn-planted-") as folder:
        tree = Path(folder, "tree")
        copy_of(tree, mistake)
        cache = compiled_code(Path(folder))
        while stages and not caught:
            marker, tests = stages.pop(0)
            caught, said = run(tree, cache, marker, tests, LIMIT - (time.monotonic() - begun))
    seconds = round(time.monotonic() - begun)
    return {"caught": caught, "run": RUNS[marker], "seconds": seconds, "said": said[-1500:]}


def key_of(mistake):
    return f"{mistake.file}: {mistake.what}"


def section(record):
    """The last section of the page, with the table, in Markdown."""
    rows = [(m, record[key_of(m)]) for m in MISTAKES if key_of(m) in record]
    late = sum(found["run"] == "long" for _, found in rows if found["caught"])
    lines = [
        HEADING,
        "",
        f"What the tests are worth: {len(rows)} mistakes, in each file that computes, checks, stores or locks, and",
        f"the test that caught each of them first. The default run catches all but {late}, the long run those.",
        "`python -m tests.planted` plants them, each in a copy of the tree; with `--page`, it writes",
        "this section. Seconds are those until the test failed, with what had to be compiled of the file, several",
        "at a time on two busy cores.",
        "",
        "| file | mistake | caught by | run | seconds |",
        "| --- | --- | --- | --- | ---: |",
    ]
    for mistake, found in rows:
        caught = f"`{found['caught']}`" if found["caught"] else "**none**"
        lines.append(f"| `{mistake.file}` | {mistake.what} | {caught} | {found['run']} | {found['seconds']} |")
    return "\n".join(lines) + "\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--for", type=float, default=float("inf"), dest="seconds")
    given = parser.parse_args(argv)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    if given.page:
        before = PAGE.read_text().partition(HEADING)[0]
        PAGE.write_text(before + section(record))
        return 0
    begun, wanted = time.monotonic(), []
    for mistake in MISTAKES:
        planted((HERE / "nbbn" / mistake.file).read_text(), mistake)  # all of them fit
        known = record.get(key_of(mistake))
        is_new = given.again or known is None or (given.whole and not known["caught"])
        if is_new and (not given.words or any(word in key_of(mistake) for word in given.words)):
            wanted.append(mistake)

    wanted.sort(key=lambda mistake: mistake.file.startswith(("_kernels", "_compiler")))  # they compile

    def one(mistake):
        if time.monotonic() - begun > given.seconds:
            return
        found = record[key_of(mistake)] = meet(mistake, given.whole)
        RECORD.write_text(json.dumps(record, indent=1))
        told = f"{found['caught'] or 'SURVIVED'} ({found['run']})"
        print(f"{found['seconds']:4d} s  {key_of(mistake)}: {told}", flush=True)

    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(one, wanted))
    survived = [key_of(m) for m in MISTAKES if not record.get(key_of(m), {"caught": "?"})["caught"]]
    print(
        f"{len(record)} of {len(MISTAKES)} were planted; {len(survived)} survived",
        *survived,
        sep="\n  ",
    )
    return 1 if survived else 0


if __name__ == "__main__":
    raise SystemExit(main())
