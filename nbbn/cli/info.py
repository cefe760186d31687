"""``nbbn info``: versions, threads and caches, for a look or a bug report."""

from __future__ import annotations

import argparse

import nbbn
from nbbn._compiler import jit
from nbbn._engine import threads

HELP = "print versions, threads and cache folder"
EXAMPLE = "nbbn info"


def run(arguments: argparse.Namespace) -> None:
    """Print versions, threading layer, threads, SIMD width and cache folder, for a bug report."""
    # the layer that a large call would load
    if nbbn.get_num_threads() > 1 and jit.is_enabled():
        threads.has_usable_layer()
    nbbn.show_config()
