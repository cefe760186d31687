"""The options that both faces, pytest and the script, offer."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import shapes
from benchmarks.harness.cases import (
    ALL_OPERATIONS,
    DTYPES,
    LAYOUTS,
    OPERATIONS,
    STORED,
    VARIANTS,
    Case,
    list_cases,
)
from benchmarks.harness.implementations import IMPLEMENTATIONS, QUICK
from nbbn.cli.bench import usable_cores

DEST_PREFIX = "race_"

USUAL_FUSED = "inference+residual+relu"
"""Where no operations are named, the one of `FUSED` that is measured: the end of a residual block."""

# (rounds at most, seconds after which a race ends)
THOROUGH = (15, 1.5)
BRIEF = (7, 0.5)


@dataclass(frozen=True)
class Selection:
    """What to race, and how long."""

    cases: tuple[Case, ...]
    implementations: tuple[str, ...]
    rounds: int
    seconds: float


def add_options(add: Callable[..., Any]) -> None:
    """Call ``add`` (of argparse or pytest) with every option; unset ones are None."""

    def add_list(name: str, kind: Callable[[str], Any], text: str) -> None:
        add(f"--{name}", dest=DEST_PREFIX + name, metavar="A,B", type=kind, default=None, help=text)

    default_sets = ",".join(shapes.DEFAULT_SETS)
    known = ", ".join((*shapes.IMAGE_SETS, *shapes.SHAPE_SETS))
    add_list(
        "operations",
        _choices(ALL_OPERATIONS),
        f"of {', '.join(ALL_OPERATIONS)} (default: the first four and {USUAL_FUSED})",
    )
    add_list("shapes", _shapes, f"32x64x56x56,... or sets: {known} (default: {default_sets})")
    add_list("batch", _counts, "batch sizes of the resnet50 set (default: 32)")
    add_list("threads", _counts, "thread counts (default: 1,2, as far as there are cores)")
    add_list("dtypes", _choices(STORED), f"of {', '.join(STORED)} (default: float32)")
    add_list("layouts", _choices(LAYOUTS), f"of {', '.join(LAYOUTS)} (default: channels-first)")
    add_list("variants", _choices(VARIANTS), "fresh outputs, out=, inplace (default: fresh)")
    add_list("params", _choices(DTYPES), "data types of the parameters (default: as computed with)")
    names = tuple(IMPLEMENTATIONS)
    add_list("implementations", _choices(names), f"of {', '.join(names)} (default: all)")
    add(
        "--rounds",
        dest=DEST_PREFIX + "rounds",
        type=_count,
        default=None,
        metavar="N",
        help=f"rounds of a race at most (default: {THOROUGH[0]})",
    )
    add(
        "--seconds",
        dest=DEST_PREFIX + "seconds",
        type=_seconds,
        default=None,
        metavar="S",
        help=f"a race ends after five rounds and this time (default: {THOROUGH[1]})",
    )
    add(
        "--quick",
        dest=DEST_PREFIX + "quick",
        action="store_true",
        default=False,
        help="fewer shapes, implementations, rounds, one thread count, unless they are given",
    )


def make_selection(options: Any) -> Selection:
    """Return what ``options`` (a namespace filled by `add_options`) asks for."""

    def get(name: str, default: Any) -> Any:
        value = getattr(options, DEST_PREFIX + name)
        return default if value is None else value

    quick = get("quick", False)
    rounds, seconds = BRIEF if quick else THOROUGH
    sets = get("shapes", ("quick",) if quick else shapes.DEFAULT_SETS)
    usual_threads = tuple(count for count in (1, 2) if count <= usable_cores())
    if quick:  # the same libraries loaded again for another count would take half of the time
        usual_threads = usual_threads[-1:]
    expanded = shapes.expand_shapes(sets, get("batch", shapes.DEFAULT_BATCHES))
    # A fused operation on fewer shapes: the whole of --quick has a minute.
    fused_shapes = shapes.QUICK_FUSED if sets == ("quick",) else expanded
    groups = {OPERATIONS: expanded, (USUAL_FUSED,): fused_shapes}
    operations = get("operations", None)
    if operations is not None:
        groups = {operations: expanded}
    cases = tuple(
        case
        for count in get("threads", usual_threads)  # slowest, so that workers are kept long
        for names, chosen in groups.items()
        for case in list_cases(
            operations=names,
            shapes=chosen,
            threads=[count],
            dtypes=get("dtypes", DTYPES[:1]),
            layouts=get("layouts", LAYOUTS[:1]),
            variants=get("variants", VARIANTS[:1]),
            params=get("params", ("",)),
        )
    )
    names = get("implementations", QUICK if quick else tuple(IMPLEMENTATIONS))
    return Selection(cases, names, get("rounds", rounds), get("seconds", seconds))


def _split(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _choices(known: Iterable[str]) -> Callable[[str], tuple[str, ...]]:
    known = tuple(known)

    def parse(text: str) -> tuple[str, ...]:
        parts = _split(text)
        for part in parts:
            if part not in known:
                raise argparse.ArgumentTypeError(f"{part!r} is none of {', '.join(known)}")
        return parts

    return parse


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in _split(text))


def _shapes(text: str) -> tuple[str, ...]:
    parts = _split(text)
    try:
        shapes.expand_shapes(parts, shapes.DEFAULT_BATCHES)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return parts


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds
