"""Statistics and normalization of dask arrays, block by block.

Dask starts the threads: within a task nbbn uses one. Dask itself is not imported here before
somebody has handed in one of its arrays.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nbbn import _checks
from nbbn._engine.threads import num_threads
from nbbn.functional import normalize
from nbbn.moments import Moments, batch_moments

_AT_ONCE = 8  # blocks at most whose moments one task merges

Others = Mapping[str, tuple[Any, Any]]  # arrays in the same blocks, as arguments by name, each with its dimensions


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
        As of `nbbn.batch_moments` (which has the sources) of the whole array, to a few units in the last place.

    Raises
    ------
    TypeError
        Where ``x`` is not a dask array of such a dtype, or ``mask`` not of bool.
    ValueError
        For a wrong axis or shape of ``mask``, or where there are no channels.

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
    others = {} if mask is None else {"mask": (_aligned(mask, x, index), tuple(range(x.ndim)))}
    found = merged_blocks(x, index, batch_moments, others)
    if not found:
        raise ValueError(f"x: expected at least one channel, got shape {x.shape}")
    # Everything but the count, which each channel has, is a vector to be continued.
    vectors = zip(*[piece.__getstate__()[1:] for piece in found], strict=True)
    return Moments._restore(found[0].count, *map(np.concatenate, vectors))


def merged_blocks(x: Any, index: int, moments_of: Callable[..., Any], others: Others) -> list[Any]:
    """Return the moments of blocks of a dask array merged, one for each chunk of the channels.

    ``moments_of(block, axis=index, **others)`` returns what has a ``merge``.
    """
    import dask
    import dask.array as da

    merged = da.reduction(
        by_block("moments", _of_block, x, others, np.dtype(object), moments_of=moments_of, axis=index),
        _merge,
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
    name: str, function: Callable[..., Any], x: Any, others: Others, dtype: np.dtype[Any], /, **options: Any
) -> Any:
    """Return a dask array of what ``function(block, **others, **options)`` makes of each block of ``x``."""
    import dask.array as da
    from dask.base import tokenize

    dims = tuple(range(x.ndim))
    return da.blockwise(
        functools.partial(_task, function, tuple(others), options),
        dims,
        *(x, dims, *itertools.chain(*others.values())),
        name=f"nbbn-{name}-{tokenize(function, x, others, options)}",
        concatenate=True,
        align_arrays=False,
        dtype=dtype,
        meta=np.empty((0,) * x.ndim, dtype),
    )


def _task(function: Callable[..., Any], names: tuple[str, ...], options: dict[str, Any], x: Any, *others: Any) -> Any:
    with num_threads(1):
        return function(x, **dict(zip(names, others, strict=True)), **options)


def _of_block(x: Any, *, axis: int, moments_of: Callable[..., Any], **others: Any) -> Any:
    """Return the moments of a block, or None where it has no channels."""
    if not x.shape[axis]:
        return None
    if isinstance(x, np.ndarray) and not x.flags.forc:
        x = x.copy()  # sent to another process it loses its gaps, and is summed in another order
    return moments_of(x, axis=axis, **others)


def _merge(parts: Any, **_: Any) -> Any:
    """Return the moments of blocks of the same channels, in lists of lists, together."""
    if not isinstance(parts, list):
        return parts
    found = [moments for moments in map(_merge, parts) if moments is not None]
    return functools.reduce(lambda a, b: a.merge(b), found) if found else None


def dask_normalize(
    x: Any, mean: Any, var: Any, gamma: Any = None, beta: Any = None,
    *, eps: float = 1e-5, axis: int = 1, residual: Any = None,
    activation: str | None = None, negative_slope: float = 0.01, dtype: Any = None,
) -> Any:  # fmt: skip
    """Standardize a dask array with given statistics, then scale and shift, as `nbbn.normalize` does: lazily.

    Parameters
    ----------
    x : dask.array.Array of float32, float64, float16, bfloat16 or uint8
        Of any chunks; their sizes may be unknown, but along the channel axis.
    mean, var : array_like of real numbers, shape (C,), or a number
        Statistics per channel, such as those of `dask_moments`.
    gamma, beta, eps, axis, activation, negative_slope, dtype
        As of `nbbn.normalize`.
    residual : array_like or dask.array.Array, optional
        Added before the activation; of the shape and dtype of the result. Where chunk sizes are
        unknown, it must be a dask array with the blocks of ``x``.

    Returns
    -------
    dask.array.Array
        With the chunks of ``x``. A value has the bits that `nbbn.normalize` gives it, which has the source, too.

    Raises
    ------
    TypeError, ValueError
        As `nbbn.normalize`, before anything is computed; ``TypeError`` also where ``x`` is not a dask array.

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
    if np.isnan(x.shape[index]):
        raise ValueError(
            f"x: expected known chunk sizes along axis {index}, that of the channels, got "
            f"{x.chunks[index]} (compute_chunk_sizes finds them)"
        )
    options = {"eps": eps, "activation": activation, "negative_slope": negative_slope, "dtype": dtype}
    added = None if residual is None else _beside(residual, x)
    # What is wrong with the arguments, normalizing nothing finds as well.
    none = np.empty([x.shape[index] if k == index else 0 for k in range(x.ndim)], x.dtype)
    nothing = None if added is None else np.empty(none.shape, added.dtype)
    dtype = normalize(none, mean, var, gamma, beta, axis=index, residual=nothing, **options).dtype
    others: dict[str, Any] = {} if added is None else {"residual": (added, tuple(range(x.ndim)))}
    for name, vector in (("mean", mean), ("var", var), ("gamma", gamma), ("beta", beta)):
        if vector is not None:
            array = _checks.per_channel(name, vector, x.shape[index], scalar=True)
            others[name] = in_chunks(array, (x.chunks[index],)), (index,)
    return by_block("normalize", normalize, x, others, dtype, **{**options, "axis": index, "dtype": dtype})


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


def _beside(residual: Any, x: Any) -> Any:
    """Return a residual, of the shape of ``x``, as a dask array in its blocks."""
    unknown = np.isnan(x.shape).any()
    added: Any = residual if is_dask(residual) else np.asarray(residual)
    if unknown and is_dask(added) and added.numblocks == x.numblocks:
        return added  # what does not fit is found block by block
    if unknown or added.shape != x.shape:
        raise ValueError(f"residual: expected shape {x.shape}, that of x, got {added.shape}")
    return in_chunks(added, x.chunks)


def _aligned(mask: Any, x: Any, index: int) -> Any:
    """Return a mask with the dimensions of ``x``, 1 along the channel axis, in its blocks.

    A size of 1 stays, so what is broadcast takes no memory.
    """
    for name, array in (("x", x), ("mask", mask)):
        if is_dask(array) and np.isnan(array.shape).any():
            raise ValueError(
                f"{name}: expected known chunk sizes, as there is a mask, got shape {array.shape} "
                "(compute_chunk_sizes finds them)"
            )
    if is_dask(mask):
        like = np.broadcast_to(np.empty((), mask.dtype), mask.shape)  # all that a check looks at
        known = _checks.mask(like, x.shape, index)
        # without its empty blocks, which a reshape of dask's loses
        given: Any = mask.rechunk(tuple(tuple(filter(None, sizes)) or 0 for sizes in mask.chunks))
    else:
        given = known = _checks.mask(mask, x.shape, index)
    found = given.reshape((*known.shape[:index], 1, *known.shape[index:]))
    chunks = tuple(
        of_x if size == wanted and k != index else (size,)
        for k, (size, wanted, of_x) in enumerate(zip(found.shape, x.shape, x.chunks, strict=True))
    )
    return in_chunks(found, chunks)


def in_chunks(array: Any, chunks: Any) -> Any:
    """Return an array, in memory or of dask, as one of dask in these chunks."""
    import dask.array as da

    return array.rechunk(chunks) if is_dask(array) else da.from_array(array, chunks=chunks)
