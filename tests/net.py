"""The net: which results changed, to the last bit, between a revision and this tree.

    python -m tests.net REV                      every environment, every case
    python -m tests.net REV --only native        one environment: native, znver3, generic, interpreted
    python -m tests.net REV --keep inference     only differences in inference fail; repeat it for more kinds
    python -m tests.net REV --cases train        cases whose name matches a regular expression

Exit status: 0 nothing changed, 1 something did, 2 usage, 3 a tree could not be recorded. The revision is
checked out in a temporary git worktree; its results and this tree's are taken side by side on this machine, each in
processes of its own, and compared by SHA-256. It takes minutes, and many more where the compiled code of either is
not in the cache (``NBBN_CACHE_DIR``).

A case is an operation on a layout, a dtype, an option and a mode (`TABLE`); each array that it gives is one line of a
recording, named ``operation.array | dtype | layout | option | mode``, of one kind: inference, moments, training or
gradients. A digest is of shape, dtype, memory order and bytes, where all NaN count as one. A case that raises in this
tree only is a difference; one that raised before and works now is new; one that raises in both is told.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from llvmlite.binding import get_host_cpu_name

sys.path.insert(0, str(Path(__file__).parent))  # as pytest does
from net_cases import KINDS, RAISED, corpus

import nbbn

HERE = Path(__file__).resolve().parents[1]
ENVIRONMENTS = {
    "native": {},
    "znver3": {"NUMBA_CPU_NAME": "znver3"},
    "generic": {"NUMBA_CPU_NAME": "generic"},
    "interpreted": {"NUMBA_DISABLE_JIT": "1"},
}
DECIDING = ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_DISABLE_JIT")
FAILED = 3


def fail(text):
    print(f"net: {text}", file=sys.stderr)
    raise SystemExit(FAILED)


def digest(array):
    if isinstance(array, Exception):
        return f"{type(array).__name__}: {array}"
    array = np.array(array)
    if array.dtype.kind != "u":
        array[array != array] = np.nan
    order = [stride for stride, n in zip(array.strides, array.shape, strict=True) if n > 1]
    found = hashlib.sha256(f"{array.dtype.name} {array.shape} {order}".encode())
    found.update(array.tobytes())
    return found.hexdigest()


def record(pattern="", tiny=False, threads=2):
    """Digests of the corpus: {name: [kind, digest]}."""
    with warnings.catch_warnings(), nbbn.num_threads(threads):
        warnings.simplefilter("ignore")  # of NaN and Inf in NumPy's own steps
        return {name: [kind, digest(array)] for name, kind, array in corpus(pattern, tiny)}


@contextlib.contextmanager
def checkout(revision):
    """A folder with the revision; it goes with the block."""
    with tempfile.TemporaryDirectory(prefix="nbbn-net-") as folder:
        tree = Path(folder, "tree")
        git("worktree", "add", "--detach", str(tree), revision)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*arguments):
    done = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        fail(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


def start(tree, environment, *arguments):
    """A process that records the corpus with the nbbn in ``tree``."""
    variables = {"PYTHONPATH": str(tree), "NUMBA_NUM_THREADS": "4", **ENVIRONMENTS[environment]}
    inherited = {name: v for name, v in os.environ.items() if name not in DECIDING}
    tiny = ["--tiny"] if environment == "interpreted" else []
    command = [sys.executable, str(Path(__file__).resolve()), "--record", *tiny, *arguments]
    return subprocess.Popen(command, env={**inherited, **variables}, stdout=subprocess.PIPE, text=True)


def result(process, tree):
    """What it recorded."""
    out, _ = process.communicate()
    if process.returncode:
        fail(f"recording {tree} failed with exit status {process.returncode}")
    found = json.loads(out)
    if Path(found["package"]) != Path(tree, "nbbn").resolve():
        fail(f"recorded {found['package']} in place of {tree}")
    return found["digests"]


def compare(old, new):
    """What is to be told: {what happened: {kind: names}}."""
    told = defaultdict(lambda: defaultdict(list))
    for name in {**old, **new}:
        (kind, before), (now, after) = old.get(name, (None, "")), new.get(name, (None, ""))
        if kind == now == RAISED:
            told["raises in both"][RAISED].append(name)
        elif kind == RAISED or (kind is None and now != RAISED):
            told["new"][now or RAISED].append(name)
        elif now in (None, RAISED):
            told["lost"][kind or RAISED].append(name)
        elif before != after:
            told["changed"][kind].append(name)
    return told


def tell(told, total, keep, everything=False):
    """Print it, grouped; return whether it fails."""
    failed = False
    for what, kinds in told.items():
        for kind, names in kinds.items():
            fails = what in ("changed", "lost") and kind in (*keep, RAISED)
            failed |= fails
            allowed = "" if fails or what not in ("changed", "lost") else ", which may"
            print(f"  {what}: {len(names)} of {total[kind]} of {kind}{allowed}")
            grouped = defaultdict(list)
            for name in names:
                first, dtype, *rest = name.split(" | ")
                grouped[first, dtype].append(", ".join(rest))
            for (first, dtype), places in grouped.items():
                shown = places if everything else places[:6]
                more = f"; and {len(places) - len(shown)} more" if places != shown else ""
                print(f"    {first} {dtype} ({len(places)}): {'; '.join(shown)}{more}")
    return failed


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m tests.net", description=__doc__.split("\n")[0])
    parser.add_argument("revision", nargs="?", help="what to compare this tree with")
    parser.add_argument("--only", action="append", choices=ENVIRONMENTS, help="environments")
    parser.add_argument("--keep", action="append", choices=KINDS, help="kinds that must not change")
    parser.add_argument("--cases", default="", metavar="PATTERN", help="a regular expression")
    parser.add_argument("--all", action="store_true", help="print the name of every case")
    for hidden in ("--record", "--tiny"):  # what the processes are told
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.record:
        digests = record(given.cases, given.tiny, given.threads)
        json.dump({"package": str(Path(nbbn.__file__).parent), "digests": digests}, sys.stdout)
        return 0
    if given.revision is None:
        parser.error("the revision to compare with is missing")
    try:
        re.compile(given.cases)
        git("rev-parse", "--verify", "--quiet", f"{given.revision}^{{commit}}")
    except (re.error, SystemExit) as error:
        parser.error(f"{given.revision}, {given.cases!r}: {error or 'no such revision'}")
    failed, compared = False, 0
    with checkout(given.revision) as tree:
        for environment in given.only or ENVIRONMENTS:
            cpu = ENVIRONMENTS[environment].get("NUMBA_CPU_NAME")
            if cpu == get_host_cpu_name() and "native" in (given.only or ENVIRONMENTS):
                print(f"{environment}: the machine's own name, so it is native")
                continue
            both = [start(root, environment, "--cases", given.cases) for root in (tree, HERE)]
            try:
                old, new = map(result, both, (tree, HERE))
            finally:
                for process in both:
                    process.kill()  # the other one, where one failed
            compared += len(new)
            told = compare(old, new)
            total = Counter(kind for kind, _ in {**old, **new}.values())
            changed = sum(len(names) for names in told["changed"].values())
            print(f"{environment}: {changed} of {len(new)} arrays changed", flush=True)
            failed |= tell(told, total, given.keep or KINDS, given.all)
    if not compared:
        parser.error(f"--cases: expected a pattern of some case, got {given.cases!r}")
    return int(failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and no worktree is left behind
    sys.exit(main())
