"""Batch normalization for NumPy on a CPU: exact, fast, and safe inside a server."""

from typing import TYPE_CHECKING

from nbbn import distributed, interop, nopython
from nbbn._engine.config import config, show_config
from nbbn._engine.explain import explain
from nbbn._engine.threads import get_num_threads, num_threads, set_num_threads
from nbbn._engine.warmup import warmup
from nbbn._version import __version__
from nbbn.functional import batch_norm, batch_norm_backward, normalize
from nbbn.layer import BatchNorm, FrozenBatchNorm, calibrate, fold_conv, fold_linear
from nbbn.layer import _words as _words_of_others
from nbbn.moments import Moments, batch_moments
from nbbn.standardizer import Standardizer

__all__ = [
    "BatchNorm", "FrozenBatchNorm", "Moments", "Standardizer", "__version__", "batch_moments", "batch_norm",
    "batch_norm_backward", "calibrate", "config", "distributed", "explain", "fold_conv", "fold_linear",
    "get_num_threads", "interop", "nopython", "normalize", "num_threads", "set_num_threads", "show_config", "warmup",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__


if not TYPE_CHECKING:  # for type checkers, what is not here is an error

    def __getattr__(name: str) -> object:
        raise AttributeError(f"nbbn: {_words_of_others.unknown(name, _words_of_others.NAMES, __all__)}")
