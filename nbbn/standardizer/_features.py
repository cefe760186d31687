"""Moments of features, each of as many values as it has: NaN is a value that is missing.

A table without gaps is summed as it is, as by `nbbn.batch_moments`. A piece whose sums come out NaN is summed again
without what is missing, and so are the pieces after it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from nbbn import _checks, moments
from nbbn._checks import Array, Vector
from nbbn._engine import masks, steps
from nbbn._kernels import table as rows
from nbbn.moments import Moments
from nbbn.standardizer import _blocks

_EPS = float(np.finfo(np.float64).eps)
# Values. Of a piece that is summed at once; of a block that is looked at, or widened, and stays in the cache; of the
# first ones, which tell whether there are gaps: with one in a hundred, for certain.
_PIECE, BLOCK, _FIRST, _FEW = 1 << 23, 1 << 16, 1 << 10, 1 << 13


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
        stacked = np.concatenate([vector for one in found for vector in one]).reshape(len(found), len(cls._fields), -1)
        stacked = stacked.swapaxes(0, 1)
        while (number := stacked.shape[1]) > 1:
            pairs = number // 2 * 2
            both = moments.merged(cls(*stacked[:, :pairs:2]), cls(*stacked[:, 1:pairs:2]))
            stacked = np.concatenate((np.stack(both), stacked[:, pairs:]), axis=1)
        return cls.of(tuple(stacked[:, 0]))

    def merge(self, other: FeatureMoments) -> FeatureMoments:
        return FeatureMoments.together((self, other))

    def means(self) -> Vector:
        """Return the means; NaN where there is no value."""
        return self.mean if self.counts.all() else np.where(self.counts > 0.0, self.mean, np.nan)

    def variances(self) -> Vector:
        """Return the population's variances; NaN where there is no value."""
        with np.errstate(all="ignore"):
            found: Vector = self.m2 / self.counts
        return found

    def variances_to_divide_by(self) -> tuple[Vector, bool]:
        """Return the variances, 1 of a constant feature, and whether there is one.

        It counts as constant up to ``n eps var + (n eps mean)**2``: the bound of what rounding may leave of
        the variance of equal values (Chan, Golub and LeVeque 1983), and scikit-learn's.
        """
        with np.errstate(all="ignore"):
            var, each = self.m2 / self.counts, self.counts * _EPS
            constant = var <= each * var + (each * self.mean) ** 2
        return (np.where(constant, 1.0, var), True) if constant.any() else (var, False)

    def samples(self) -> Any:
        """Return the counts: a number where all features have the same, an int where it is one."""
        whole = bool((self.counts == np.floor(self.counts)).all())
        if (self.counts == self.counts[0]).all():
            return int(self.counts[0]) if whole else float(self.counts[0])
        return self.counts.astype(np.int64) if whole else self.counts.copy()


class Found(NamedTuple):
    """The moments of features, and the coefficients that they make, where all values were summed at once."""

    moments: FeatureMoments
    form: Array | None = None


def moments_of(values: Array, index: int, weights: Vector | None = None) -> FeatureMoments:
    """Return the moments of each feature, whose axis is ``index``; ``weights`` are of the samples."""
    return look(values, index, weights).moments


def look(values: Array, index: int, weights: Vector | None) -> Found:
    """Return what `moments_of` does, and coefficients.

    Integers are widened block by block. An infinite value is a ValueError.
    """
    shape, axis = values.shape, _blocks.samples_axis(index)
    as_it_is = is_read_as_it_is(values.dtype)
    has_gaps = as_it_is and _begins_with_gaps(values, index)
    if as_it_is and 0 < values.size <= _PIECE:
        one = None if has_gaps else _whole(values, index, weights)
        return Found(_with_gaps(values, index, weights)) if one is None else one
    found: list[FeatureMoments] = []
    if not as_it_is:

        def of_block(place: _blocks.Place) -> FeatureMoments:
            return moments_of(widened(values[place]), index, _at(weights, place[axis]))

        places = _blocks.cut(shape, index, BLOCK)
        _blocks.for_each(places, of_block, lambda _, one: found.append(one))
    for place in _blocks.cut(shape, index, _PIECE) if as_it_is else ():
        part, of_part = values[place], _at(weights, place[axis])
        one = None if has_gaps else _whole(part, index, of_part)
        has_gaps = one is None
        found.append(_with_gaps(part, index, of_part) if one is None else one.moments)
    return Found(FeatureMoments.together(found) if found else nothing(shape[index]))


def nothing(features: int) -> FeatureMoments:
    return FeatureMoments(*[np.zeros(features)] * 5)


@functools.lru_cache(maxsize=64)
def is_read_as_it_is(dtype: np.dtype[Any]) -> bool:
    """Whether kernels read this dtype; others are widened first."""
    return dtype.isnative and dtype.name in _READ


_READ = frozenset(_checks.STORED.replace(",", "").split())


def widened(values: Array) -> Array:
    """Return values as kernels read them: floats keep their precision, integers become float64."""
    dtype = result_dtype(values.dtype)
    return values if is_read_as_it_is(values.dtype) else values.astype(dtype)


@functools.lru_cache(maxsize=64)
def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of what is made of values: their own if it is of floats, float32 of bytes, else float64."""
    if dtype == np.uint8:
        return np.dtype(np.float32)
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def check_not_infinite(values: Array, index: int) -> None:
    """Raise ValueError for an infinite value, in one pass over memory."""
    if values.dtype.kind in "biu":
        return
    for place in _blocks.cut(values.shape, index, BLOCK):
        if np.isinf(widened(values[place])).any():
            raise infinite(values.dtype)


def infinite(dtype: np.dtype[Any]) -> ValueError:
    return ValueError(
        f"X: expected finite values, or NaN where one is missing, got an infinite one (Input X contains "
        f"infinity or a value too large for {dtype!r}.)"
    )


def _at(weights: Vector | None, place: slice) -> Vector | None:
    return None if weights is None else weights[place]


def _begins_with_gaps(values: Array, index: int) -> bool:
    """Whether one of the first values is missing; of a few values it takes as long to sum them."""
    if values.size <= _FEW or values.dtype not in _checks.PLAIN_DTYPES:
        return False
    axis = _blocks.samples_axis(index)
    rows = max(1, _FIRST * values.shape[axis] // values.size)
    first = values[:rows] if axis == 0 else values[:, :rows]
    return math.isnan(np.maximum.reduce(first, axis=None))


def _whole(values: Array, index: int, weights: Vector | None) -> Found | None:
    """Return the moments of values that have no gaps; None where some have, or sums overflow."""
    of_values = None if weights is None else masks.make(None, _shaped(weights, values), values.shape, index)
    if not values.size or (of_values is not None and of_values.total == 0.0):
        return Found(nothing(values.shape[index]))
    count, table, form = moments.statistics_of(values, index, of_values)
    if not math.isfinite(np.maximum.reduce(table[rows.M2])):
        return None
    others = np.zeros((2, table.shape[1]))
    others[0] = count
    table.flags.writeable = others.flags.writeable = False  # and so are their rows
    found = FeatureMoments(others[0], table[rows.MEAN], table[rows.MEAN_LOW], table[rows.M2], others[1])
    return Found(found, form)


def _with_gaps(values: Array, index: int, weights: Vector | None) -> FeatureMoments:
    """Return the moments of values some of which may be missing, or infinite: then that is a ValueError."""
    given = None if weights is None else masks.make(None, _shaped(weights, values), values.shape, index)
    count, mean, low, m2 = steps.moments_with_gaps(values, index, given)
    if not np.isfinite(m2).all():  # or sums overflow
        check_not_infinite(values, index)
    return FeatureMoments.of((count, mean, low, m2, np.zeros(mean.size)))


def _shaped(weights: Vector, values: Array) -> Array:
    return weights.reshape(-1, *(1,) * (values.ndim - 2))
