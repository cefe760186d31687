"""Moments of features, each of as many values as it has: NaN is a value that is missing.

A table without gaps is summed as it is, by `nbbn.batch_moments`. A piece whose sums come out NaN is summed again
without what is missing, and so are the pieces after it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from nbbn import _checks, moments
from nbbn._engine import masks
from nbbn._engine.gaps import parts_with_gaps
from nbbn.moments import Moments, batch_moments
from nbbn.standardizer import _blocks

Array = NDArray[Any]
Vector = NDArray[np.float64]

_EPS = float(np.finfo(np.float64).eps)
_TINY = float(np.finfo(np.float64).tiny)
# Values. Of a piece that is summed at once, by threads of the kernel's own; of a block with gaps, by one thread; of
# one that is widened first.
_PIECE, _WHOLE_BLOCK, BLOCK = 1 << 23, 1 << 20, 1 << 16
_SMALL = 1 << 17  # values that are summed sooner than they are looked at


class FeatureMoments(NamedTuple):
    """Count, mean and m2 of each feature; mean and m2 carried in two parts, as in `nbbn.Moments`."""

    counts: Vector
    mean: Vector
    mean_low: Vector
    m2: Vector
    m2_low: Vector

    @classmethod
    def of(cls, found: Moments | tuple[Any, ...]) -> Self:
        """Return moments, or the state of them, with a count a feature."""
        count, *vectors = found.__getstate__() if isinstance(found, Moments) else found
        counts = np.full(vectors[0].shape, count, np.float64) if np.ndim(count) == 0 else count
        for vector in (counts, *vectors):
            vector.flags.writeable = False
        return cls(counts, *vectors)

    @classmethod
    def joined(cls, groups: Sequence[FeatureMoments]) -> FeatureMoments:
        """Return the moments of all features from those of some each."""
        if len(groups) == 1:
            return groups[0]
        return cls.of(tuple(map(np.concatenate, zip(*groups, strict=True))))

    @classmethod
    def together(cls, found: Sequence[FeatureMoments]) -> FeatureMoments:
        """Return the moments of several data sets together: of neighbours, then of the results, all at once."""
        if len(found) == 1:
            return found[0]
        if len(found) == 2:
            return cls.of(moments.merged(found[0], found[1]))
        stacked = [np.stack(vectors) for vectors in zip(*found, strict=True)]
        while (number := len(stacked[0])) > 1:
            pairs = number // 2 * 2
            first, second = (cls(*(part[k:pairs:2] for part in stacked)) for k in (0, 1))
            both = moments.merged(first, second)
            stacked = [np.concatenate((a, b[pairs:])) for a, b in zip(both, stacked, strict=True)]
        return cls.of(tuple(part[0] for part in stacked))

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        """Return the moments of both data sets together."""
        return FeatureMoments.together((self, other))

    def means(self) -> Vector:
        """Return the means; NaN where there is no value."""
        return self.mean if self.counts.all() else np.where(self.counts > 0.0, self.mean, np.nan)

    def variances(self) -> Vector:
        """Return the population's variances; NaN where there is no value."""
        with np.errstate(all="ignore"):
            found: Vector = self.m2 / self.counts
        return found

    def divisors(self) -> Vector:
        """Return what squares to what each feature is divided by: 1 for a constant one.

        It counts as constant up to ``n eps var + (n eps mean)**2``: the bound of what rounding may leave of
        the variance of equal values (Chan, Golub and LeVeque 1983), and scikit-learn's.
        """
        var = self.variances()
        with np.errstate(all="ignore"):
            bound = self.counts * _EPS * var + (self.counts * _EPS * self.mean) ** 2
        return np.where(var <= bound, 1.0, var)

    def samples(self) -> Any:
        """Return the counts: a number where all features have the same, an int where it is one."""
        whole = bool((self.counts == np.floor(self.counts)).all())
        if (self.counts == self.counts[0]).all():
            return int(self.counts[0]) if whole else float(self.counts[0])
        return self.counts.astype(np.int64) if whole else self.counts.copy()


def moments_of(values: Array, index: int, weights: Vector | None = None) -> FeatureMoments:
    """Return the moments of each feature, whose axis is ``index``; ``weights`` are of the samples.

    Integers are widened block by block. An infinite value is a ValueError.
    """
    shape, axis = values.shape, _blocks.samples_axis(index)
    has_gaps, found = not is_read_as_it_is(values.dtype), []
    if not has_gaps and values.size > _SMALL:
        first = _blocks.cut(shape, index, 1 << 14)[0]
        has_gaps = values.dtype.kind == "f" and bool(np.isnan(values[first]).any())
    for place in _blocks.cut(shape, index, _PIECE):
        part, of_part = values[place], _at(weights, place[axis])
        one = None if has_gaps else _whole(part, index, of_part)
        if one is None:
            one = _in_blocks(part, index, of_part)
            has_gaps = True
        found.append(one)
    return FeatureMoments.together(found) if found else nothing(shape[index])


def nothing(features: int) -> FeatureMoments:
    """Return the moments of no values."""
    return FeatureMoments(*[np.zeros(features)] * 5)


def is_read_as_it_is(dtype: np.dtype[Any]) -> bool:
    """Whether kernels read this dtype; others are widened first."""
    return dtype.isnative and dtype.name in _READ


_READ = frozenset(_checks.STORED.replace(",", "").split())


def widened(values: Array) -> Array:
    """Return values as kernels read them: floats keep their precision, integers become float64."""
    dtype = result_dtype(values.dtype)
    return values if is_read_as_it_is(values.dtype) else values.astype(dtype)


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of what is made of values: their own if it is of floats, float32 of bytes, else float64."""
    if dtype == np.uint8:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def check_not_infinite(values: Array, index: int) -> None:
    """Raise ValueError for an infinite value, in one pass over memory."""
    if values.dtype.kind in "biu":
        return
    places = _blocks.cut(values.shape, index, _WHOLE_BLOCK)
    found: list[bool] = []
    if len(places) > 1:
        _blocks.for_each(
            places, lambda place: _has_infinite(values[place]), lambda _, one: found.append(one)
        )
    else:
        found.append(_has_infinite(values))
    if any(found):
        raise infinite(values.dtype)


def _has_infinite(block: Array) -> bool:
    """Whether there is an infinite value.

    Of most blocks the sum of squares tells that there is none, in a quarter of the time of looking. Not by BLAS,
    whose threads would wait for work.
    """
    if block.dtype in _checks.PLAIN_DTYPES and block.flags.forc:
        flat = block.ravel(order="K")
        with np.errstate(all="ignore"):
            if math.isfinite(np.einsum("i,i", flat, flat)):
                return False
    return bool(np.isinf(widened(block)).any())


def infinite(dtype: np.dtype[Any]) -> ValueError:
    """Return the error for an infinite value."""
    return ValueError(
        f"X: expected finite values, or NaN where one is missing, got an infinite one (Input X contains "
        f"infinity or a value too large for {dtype!r}.)"
    )


def _at(weights: Vector | None, place: slice) -> Vector | None:
    return None if weights is None else weights[place]


def _whole(values: Array, index: int, weights: Vector | None) -> FeatureMoments | None:
    """Return the moments of values that have no gaps; None where some have, or sums overflow."""
    others = (1,) * (values.ndim - 2)
    shaped = None if weights is None else weights.reshape(-1, *others)
    found = batch_moments(values, axis=index, weights=shaped)
    with np.errstate(all="ignore"):
        if not math.isfinite(np.add.reduce(found.mean) + np.add.reduce(found.m2)):
            return None
    return FeatureMoments.of(found)


def _in_blocks(values: Array, index: int, weights: Vector | None) -> FeatureMoments:
    """Return the moments of values, some of which may be missing, or be no floats."""
    axis, found = _blocks.samples_axis(index), []

    def work(place: _blocks.Place) -> Array:
        block, shaped = widened(values[place]), None
        if weights is not None:
            others = (1,) * (values.ndim - 2)
            shaped = masks.make(None, weights[place[axis]].reshape(-1, *others), block.shape, index)
        return parts_with_gaps(block, index, shaped)

    most = _WHOLE_BLOCK if is_read_as_it_is(values.dtype) else BLOCK
    places = _blocks.cut(values.shape, index, most)
    if len(places) > 1:
        _blocks.for_each(places, work, lambda _, one: found.append(one))
    else:
        found.append(work(places[0]))
    result = _of_parts(np.concatenate(found, axis=1) if len(found) > 1 else found[0])
    with np.errstate(all="ignore"):
        if not np.isfinite(result.mean + result.m2).all():  # infinite, or sums overflow
            check_not_infinite(values, index)
    return result


def _of_parts(parts: Array) -> FeatureMoments:
    """Return the moments of all parts together; the formula of `nbbn._kernels.statistics.merged`."""
    about, sum_, m2, n = parts
    columns = np.arange(n.shape[1])
    base = about[n.argmax(axis=0), columns]
    with np.errstate(all="ignore"):
        count, some = n.sum(axis=0), n > 0.0
        away = about - base
        deviation = (n * away + sum_).sum(axis=0) / np.maximum(count, _TINY)
        apart = np.where(some, away + sum_ / np.maximum(n, _TINY) - deviation, 0.0)
        squares = (m2 + n * apart * apart).sum(axis=0)
        mean = base + deviation
        low = (base - mean) + deviation
    low = np.where(np.isfinite(low), low, 0.0)
    return FeatureMoments.of((count, mean, low, np.maximum(squares, 0.0), np.zeros(columns.size)))
