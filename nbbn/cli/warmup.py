"""``nbbn warmup``: compile before the first call, for instance while a container image is built."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

import nbbn
from nbbn._engine import warmup
from nbbn.cli._files import CommandError
from nbbn.cli._progress import Progress

HELP = "compile beforehand, and keep the result on disk"
DESCRIPTION = (
    "Compile the code for arrays of the given types and keep it on disk, so that later processes on the same type of "
    "processor need not compile."
)
EXAMPLE = "nbbn warmup --training --activation relu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--dtype",
        action="append",
        metavar="NAME",
        help=(
            "float32 (the default), float64, float16, bfloat16 or uint8; several with commas, or by "
            "repeating the option"
        ),
    )
    parser.add_argument(
        "--activation",
        action="append",
        metavar="NAME",
        help=(
            "compile for this activation, too (relu, silu, ...), with and without a residual (none: a "
            "residual alone); several as above"
        ),
    )
    parser.add_argument("--training", action="store_true", help="compile for training, statistics and gradients, too")


def _words(texts: Iterable[str]) -> list[str]:
    return [word.strip() for text in texts for word in text.split(",")]


def run(arguments: argparse.Namespace) -> None:
    """Compile, and print how much and where it is kept."""
    names = _words(arguments.dtype or ["float32"])
    activations = [None if name == "none" else name for name in _words(arguments.activation or ())]
    try:
        wanted = warmup.variants(names, arguments.training, activations)
    except (TypeError, ValueError) as error:
        text = str(error).replace("dtypes:", "--dtype:", 1)
        raise CommandError(text.replace("activation:", "--activation:", 1)) from None
    if not wanted:
        print("nothing to compile: NUMBA_DISABLE_JIT is set")
        return
    started = time.perf_counter()
    with Progress(len(wanted), "Compiling") as progress:
        warmup.prepare(wanted, progress.advance)
    seconds = time.perf_counter() - started
    kernels = len({kernel for kernel, _ in wanted})
    purpose = "inference and training" if arguments.training else "inference"
    types = ", ".join(dict.fromkeys(names))
    print(f"{len(wanted)} variants of {kernels} kernels for {purpose}, {types}: {seconds:.1f} s")
    folder = nbbn.config()["cache_directory"]
    if folder is None:
        print("not kept: there is no folder for them (see NBBN_CACHE_DIR)")
    else:
        print(f"kept in {folder}")
