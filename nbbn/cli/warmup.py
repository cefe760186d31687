"""``nbbn warmup``: compile before the first call, for instance while a container image is built."""

from __future__ import annotations

import argparse
import time

import nbbn
from nbbn._engine import warmup
from nbbn.cli._files import CommandError
from nbbn.cli._progress import Progress

HELP = "compile beforehand, and keep the result on disk"
EXAMPLE = "nbbn warmup --training --activation relu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    add = parser.add_argument
    add("--dtype", type=_words, action="extend", metavar="NAME",
        help="float32 (the default), float64, float16, bfloat16 or uint8; "
             "several with commas, or by repeating the option")  # fmt: skip
    add("--activation", type=_words, action="extend", default=[], metavar="NAME",
        help="compile for this activation, too (relu, silu, ...), with and without a residual "
             "(none: a residual alone); several as above")  # fmt: skip
    parser.add_argument("--training", action="store_true", help="compile for training, statistics and gradients, too")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",")]


def run(arguments: argparse.Namespace) -> None:
    """Compile the code for arrays of the given types and keep it on disk.

    Then later processes on the same type of processor need not compile.
    """
    names = arguments.dtype or ["float32"]
    activations = [None if name == "none" else name for name in arguments.activation]
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
    kernels = len({kernel for kernel, _ in wanted})
    purpose = "inference and training" if arguments.training else "inference"
    types = ", ".join(dict.fromkeys(names))
    print(f"{len(wanted)} variants of {kernels} kernels for {purpose}, {types}: {time.perf_counter() - started:.1f} s")
    folder = nbbn.config()["cache_directory"]
    print(f"kept in {folder}" if folder else "not kept: there is no folder for them (see NBBN_CACHE_DIR)")
