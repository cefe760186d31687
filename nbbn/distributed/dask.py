"""Statistics and normalization of dask arrays, block by block.

Dask starts the threads: within a task nbbn uses one. Dask itself is not imported here before
somebody has handed in one of its arrays.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._engine.threads import num_threads
from nbbn.functional import normalize
from nbbn.moments import Moments, batch_moments

_AT_ONCE = 8  # blocks at most whose moments one task merges


def dask_moments(x: Any, *, axis: int = 1, mask: Any = None) -> Moments:
    """Return count, mean and m2 of each channel of a dask array.

    Computes at once, with the scheduler that dask is set to: one task a block, then a tree of tasks
    that merge. Nothing larger than a few blocks is in memory at a time.

    Parameters
    ----------
    x : dask.array.Array of float32, float64, float16, bfloat16, integers or bool
        Of any chunks, along the channel axis too; chunk sizes may be unknown.
    axis : int, default 1
        The channel axis; may be negative.
    mask : array_like or dask.array.Array of bool, optional
        True where a value counts, in one of the forms of `nbbn.batch_moments`. The chunk sizes of
        ``x`` must be known then.

    Returns
    -------
    Moments
        As of `nbbn.batch_moments` of the whole array, to a few units in the last place.

    Raises
    ------
    TypeError
        Where ``x`` is not a dask array of such a dtype, or ``mask`` not of bool.
    ValueError
        For a wrong axis or shape of ``mask``, or where there are no channels.

    See Also
    --------
    nbbn.batch_moments : of arrays in memory, and the sources.

    Notes
    -----
    The same bits for every scheduler and number of workers, as the blocks alone say what is merged
    with what: groups of at most 8 neighbours in their order, then groups of the results.

    Examples
    --------
    >>> import nbbn
    >>> import dask.array as da
    >>> x = da.random.normal(3.0, 2.0, size=(100_000, 4), chunks=(10_000, 4))
    >>> nbbn.distributed.dask_moments(x).count
    100000.0
    """
    index = checked(x, axis)
    pairs = [] if mask is None else [_aligned(mask, x, index), tuple(range(x.ndim))]
    found = merged_blocks(x, index, _moments_of_block, *pairs)
    if not found:
        raise ValueError(f"x: expected at least one channel, got shape {x.shape}")
    # Everything but the count, which each channel has, is a vector to be continued.
    vectors = zip(*[piece.__getstate__()[1:] for piece in found], strict=True)
    return Moments._restore(found[0].count, *map(np.concatenate, vectors))


def merged_blocks(x: Any, index: int, of_block: Callable[..., Any], *pairs: Any) -> list[Any]:
    """Return the moments of blocks of a dask array merged, one for each chunk of the channels.

    ``of_block(block, *others, axis=index)`` returns what has a ``merge``, or None where there is no channel;
    ``pairs`` are the others, arrays in the same blocks, each with its dimensions.
    """
    import dask
    import dask.array as da

    merged = da.reduction(
        by_block("moments", of_block, x, pairs, np.dtype(object), axis=index),
        _unchanged,
        _merge,
        name="nbbn-merge",
        axis=tuple(k for k in range(x.ndim) if k != index),
        concatenate=False,  # blocks are no arrays any more
        split_every=_AT_ONCE,  # not dask's setting, which would be one more thing bits depend on
        dtype=object,
        meta=np.empty(0, object),
    )
    return [piece for piece in dask.compute(*merged.to_delayed()) if piece is not None]


def by_block(
    name: str, function: Callable[..., Any], x: Any, pairs: Sequence[Any], dtype: np.dtype[Any], /, **options: Any
) -> Any:
    """Return a dask array of what ``function`` makes of each block of ``x`` and of others: ``pairs``, as above."""
    import dask.array as da
    from dask.base import tokenize

    dims = tuple(range(x.ndim))
    return da.blockwise(
        functools.partial(function, **options),
        dims,
        *(x, dims, *pairs),
        name=f"nbbn-{name}-{tokenize(function, x, *pairs, options)}",
        concatenate=True,
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * x.ndim, dtype),
    )


def dask_normalize(
    x: Any,
    mean: Any,
    var: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    eps: float = 1e-5,
    axis: int = 1,
    residual: Any = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    dtype: Any = None,
) -> Any:
    r"""Standardize a dask array with given statistics, then scale and shift: lazily.

    .. math:: y = \frac{x - \mathrm{mean}}{\sqrt{\mathrm{var} + \varepsilon}}\,\gamma + \beta

    and, where they are given, ``activation(y + residual)``.

    Parameters
    ----------
    x : dask.array.Array of float32, float64, float16, bfloat16 or uint8
        Of any chunks; their sizes may be unknown, but along the channel axis.
    mean, var : array_like of real numbers, shape (C,), or a number
        Statistics per channel, such as those of `dask_moments`.
    gamma, beta, eps, axis
        As of `nbbn.normalize`.
    residual : array_like or dask.array.Array, optional
        Added before the activation; of the shape and dtype of the result. Where chunk sizes are
        unknown, it must be a dask array with the blocks of ``x``.
    activation, negative_slope, dtype
        As of `nbbn.normalize`.

    Returns
    -------
    dask.array.Array
        With the chunks of ``x``. A value has the bits that `nbbn.normalize` gives it.

    Raises
    ------
    TypeError, ValueError
        As `nbbn.normalize`, before anything is computed; ``TypeError`` also where ``x`` is not
        a dask array.

    See Also
    --------
    nbbn.normalize : the same for an array in memory, and the source.

    Examples
    --------
    >>> import nbbn
    >>> import dask.array as da
    >>> x = da.random.normal(3.0, 2.0, size=(100_000, 4), chunks=(10_000, 4))
    >>> found = nbbn.distributed.dask_moments(x)
    >>> y = nbbn.distributed.dask_normalize(x, found.mean, found.var())
    >>> y.chunks == x.chunks
    True
    """
    index = checked(x, axis)
    import dask.array as da

    if np.isnan(x.shape[index]):
        raise ValueError(
            f"x: expected known chunk sizes along axis {index}, that of the channels, got "
            f"{x.chunks[index]} (compute_chunk_sizes finds them)"
        )
    options = {"eps": eps, "activation": activation, "negative_slope": negative_slope, "dtype": dtype}
    added = None if residual is None else _beside("residual", residual, x)
    # What is wrong with the arguments, normalizing nothing finds as well.
    none = np.empty([x.shape[index] if k == index else 0 for k in range(x.ndim)], x.dtype)
    nothing = None if added is None else np.empty(none.shape, added.dtype)
    y = normalize(none, mean, var, gamma, beta, axis=index, residual=nothing, **options)
    options["dtype"] = y.dtype
    pairs: list[Any] = []
    for name, vector in (("mean", mean), ("var", var), ("gamma", gamma), ("beta", beta)):
        if vector is None:
            pairs += [None, None]
        else:
            array = _checks.per_channel(name, vector, x.shape[index], scalar=True)
            pairs += [da.from_array(array, chunks=(x.chunks[index],)), (index,)]
    pairs += [None, None] if added is None else [added, tuple(range(x.ndim))]
    return by_block("normalize", _normalized_block, x, pairs, y.dtype, axis=index, **options)


def _moments_of_block(x: Any, mask: Any = None, *, axis: int) -> Moments | None:
    """Return the moments of a block, or None where it has no channels."""
    if not x.shape[axis]:
        return None
    with num_threads(1):
        return batch_moments(in_one_order(x), axis=axis, mask=mask)


def in_one_order(block: Any) -> Any:
    """Return a block without gaps: sent to another process it becomes so, and is summed in another order."""
    return block.copy() if isinstance(block, np.ndarray) and not block.flags.forc else block


def _normalized_block(x: Any, mean: Any, var: Any, gamma: Any, beta: Any, residual: Any, **options: Any) -> Any:
    with num_threads(1):
        return normalize(x, mean, var, gamma, beta, residual=residual, **options)


def _unchanged(value: Any, **_: Any) -> Any:
    return value


def _merge(parts: Any, **_: Any) -> Any:
    """Return the moments of blocks of the same channels, in lists of lists, together."""
    if not isinstance(parts, list):
        return parts
    found = [moments for moments in map(_merge, parts) if moments is not None]
    return functools.reduce(lambda a, b: a.merge(b), found) if found else None


def is_dask(value: Any) -> bool:
    """Whether it is a dask array; where there is one, dask has been imported."""
    loaded = sys.modules.get("dask.array")
    return loaded is not None and isinstance(value, loaded.Array)


def checked(x: Any, axis: Any) -> int:
    """Return the channel axis of a dask array whose blocks nbbn can read."""
    if not is_dask(x):
        raise TypeError(f"x: expected a dask array, got {type(x).__name__}")
    _checks.counted("x", x._meta)  # integers are refused later, where they are to be normalized
    return _checks.axis(axis, x.ndim)


def _beside(name: str, value: Any, x: Any) -> Any:
    """Return ``value``, of the shape of ``x``, as a dask array in its blocks."""
    import dask.array as da

    unknown = np.isnan(x.shape).any()
    if not is_dask(value):
        value = np.asarray(value)
    if unknown and is_dask(value) and value.numblocks == x.numblocks:
        return value  # what does not fit is found block by block
    if unknown or value.shape != x.shape:
        raise ValueError(f"{name}: expected shape {x.shape}, that of x, got {value.shape}")
    return value.rechunk(x.chunks) if is_dask(value) else da.from_array(value, chunks=x.chunks)


def _aligned(mask: Any, x: Any, index: int) -> Any:
    """Return a mask with the dimensions of ``x``, 1 along the channel axis, in its blocks.

    A size of 1 stays, so what is broadcast takes no memory.
    """
    import dask.array as da

    for name, array in (("x", x), ("mask", mask)):
        if is_dask(array) and np.isnan(array.shape).any():
            raise ValueError(
                f"{name}: expected known chunk sizes, as there is a mask, got shape {array.shape} "
                "(compute_chunk_sizes finds them)"
            )
    like = mask
    if is_dask(mask):
        like = np.broadcast_to(np.empty((), mask.dtype), mask.shape)  # all that a check looks at
    known = _checks.mask(like, x.shape, index)
    given: Any = known
    if is_dask(mask):  # without its empty blocks, which a reshape of dask's loses
        given = mask.rechunk(tuple(tuple(filter(None, sizes)) or 0 for sizes in mask.chunks))
    found = given.reshape((*known.shape[:index], 1, *known.shape[index:]))
    chunks = tuple(
        of_x if size == wanted and k != index else (size,)
        for k, (size, wanted, of_x) in enumerate(zip(found.shape, x.shape, x.chunks, strict=True))
    )
    return found.rechunk(chunks) if is_dask(found) else da.from_array(found, chunks=chunks)
