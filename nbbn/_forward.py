"""The last forward of a layer, as backward needs it, and how an overwritten input is noticed."""

from __future__ import annotations

from typing import Any, NamedTuple

from numpy.typing import NDArray

from nbbn import _plain
from nbbn._epilogue import Epilogue
from nbbn._layout import overlap
from nbbn._weights import Weights

Array = NDArray[Any]


class Forward(NamedTuple):
    """What backward needs of the last forward."""

    x: Array
    training: bool
    table: Array  # of the statistics, and gamma and beta, that it normalized with
    eps: float
    token: int | bytes  # of x, to notice an overwrite
    plan: _plain.Plan | None
    after: Epilogue | None = None
    residual_token: int | bytes = b""
    weights: Weights | None = None
    total: float = 0.0  # values a channel of all workers; see `nbbn.distributed`


def token_of(x: Array, out: Array | None) -> int | bytes:
    """Return some of the values of ``x``, to notice later whether it was overwritten.

    That is `nbbn._plain.OVERWRITTEN` where ``out`` is about to do so.
    """
    if out is not None and overlap(x, out):
        return _plain.OVERWRITTEN
    step = _plain.sample_step(x.size)
    if step == 1:
        return x.tobytes()
    flat = x.reshape(-1) if x.flags.c_contiguous else x.flat
    return b"".join((flat[::step].tobytes(), flat[-1:].tobytes()))


def is_unchanged(x: Array, token: int | bytes) -> bool:
    """Whether ``x`` still has the values that `token_of` saw."""
    if isinstance(token, int):
        return token != _plain.OVERWRITTEN and _plain.checksum(x) == token
    return token_of(x, None) == token
