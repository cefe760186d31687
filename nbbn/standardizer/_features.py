"""Moments of features, each of as many values as it has: NaN is a value that is missing.

A table without gaps is summed as it is, as by `nbbn.batch_moments`. A piece whose sums come out NaN is summed again
without what is missing, and so are the pieces after it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from nbbn import _checks, moments
from nbbn._checks import Array, Vector
from nbbn._compiler.jit import Variant
from nbbn._engine import masks, steps
from nbbn._kernels import table as rows
from nbbn._kernels.steps_of_columns import infer_columns
from nbbn.standardizer import _blocks

EPS = float(np.finfo(np.float64).eps)
# Values. Of a piece that is summed at once; of a block that is looked at, or widened, and stays in the cache; of the
# first ones, which tell whether there are gaps: with one in a hundred, for certain.
_PIECE, BLOCK, _FIRST, _FEW = 1 << 23, 1 << 16, 1 << 10, 1 << 13
# Values of a chunk that is kept, of all that are (fewer than threads are started for), and their number: partial_fit
# of (8, 4) float64 takes 3 us instead of 105. And how many of their moments are merged at once.
_CHUNK, _KEPT, _CHUNKS, _TOGETHER = 1 << 12, (1 << 17) - 1, 128, 16
_AGAIN = 1 << 13  # values that are kept and summed again with every chunk, for who looks that often


class FeatureMoments(NamedTuple):
    """Count, mean and m2 of each feature; mean and m2 carried in two parts, as in `nbbn.Moments`."""

    counts: Vector
    mean: Vector
    mean_low: Vector
    m2: Vector
    m2_low: Vector

    @classmethod
    def of(cls, found: tuple[Any, ...]) -> Self:
        """Return moments that nobody may write to; a count that is a number is that of each feature."""
        count, *vectors = found
        counts = np.full(vectors[0].shape, count, np.float64) if np.ndim(count) == 0 else count
        for vector in (counts, *vectors):
            vector.flags.writeable = False
        return cls(counts, *vectors)

    @classmethod
    def nothing(cls, features: int) -> Self:
        return cls(*[np.zeros(features)] * 5)

    @classmethod
    def joined(cls, groups: Sequence[FeatureMoments]) -> FeatureMoments:
        """Return the moments of all features from those of some each."""
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

    def part(self) -> Array | None:
        """Return these as a part of the sums of columns; None of one feature, or where counts differ."""
        if self.counts.size == 1 or (self.counts != self.counts[0]).any():
            return None
        return np.stack((self.mean, self.counts * self.mean_low, self.m2 + self.m2_low, self.counts))

    def means(self) -> Vector:
        """Return the means; NaN where there is no value."""
        return self.mean if self.counts.all() else np.where(self.counts > 0.0, self.mean, np.nan)

    def variances(self) -> Vector:
        """Return the population's variances; NaN where there is no value."""
        with np.errstate(all="ignore"):
            return np.divide(self.m2, self.counts)

    def variances_to_divide_by(self) -> Vector:
        """Return the variances, 1 of a constant feature.

        It counts as constant up to ``n eps var + (n eps mean)**2``: the bound of what rounding may leave of
        the variance of equal values (Chan, Golub and LeVeque 1983), and scikit-learn's.
        """
        with np.errstate(all="ignore"):
            var, each = self.m2 / self.counts, self.counts * EPS
            constant = var <= each * var + (each * self.mean) ** 2
        return np.where(constant, 1.0, var) if constant.any() else var

    def samples(self) -> Any:
        """Return the counts: a number where all features have the same, an int where it is one."""
        whole = bool((self.counts == np.floor(self.counts)).all())
        if (self.counts == self.counts[0]).all():
            return int(self.counts[0]) if whole else float(self.counts[0])
        return self.counts.astype(np.int64) if whole else self.counts.copy()


def moments_of(values: Array, axis: int, weights: Vector | None = None) -> FeatureMoments:
    """Return the moments of each feature, whose axis this is; ``weights`` are of the samples."""
    return look(values, axis, weights)[0]


def look(values: Array, index: int, weights: Vector | None) -> tuple[FeatureMoments, Array | None]:
    """Return what `moments_of` does, and the coefficients that it makes where all values were summed at once.

    Integers are widened block by block. An infinite value is a ValueError.
    """
    if not is_read_as_it_is(values.dtype):
        blocks = _pieces(values, index, weights, BLOCK)
        summed = _blocks.each(blocks, lambda block: moments_of(widened(block[0]), index, block[1]))
        return FeatureMoments.together([one for _, one in summed]), None
    found: list[FeatureMoments] = []
    has_gaps = _begins_with_gaps(values, index)
    for piece, of_samples in _pieces(values, index, weights, _PIECE):
        of_values = None
        if of_samples is not None:
            shaped = of_samples.reshape(-1, *(1,) * (values.ndim - 2))
            of_values = masks.make(None, shaped, piece.shape, index)
        one, form = (None, None) if has_gaps else _whole(piece, index, of_values)
        if one is None:
            has_gaps, (one, form) = True, _with_gaps(piece, index, of_values)
        if piece is values:
            return one, form
        found.append(one)
    return FeatureMoments.together(found), None


def _pieces(values: Array, index: int, weights: Vector | None, most: int) -> Iterable[tuple[Array, Vector | None]]:
    """Return pieces of about ``most`` values, each with the weights of its samples."""
    if values.size <= most:
        return [(values, weights)]
    axis = _blocks.samples_axis(index)
    places = _blocks.cut(values.shape, index, most)
    return ((values[place], None if weights is None else weights[place[axis]]) for place in places)


@functools.lru_cache(maxsize=64)
def is_read_as_it_is(dtype: np.dtype[Any]) -> bool:
    """Whether kernels read this dtype; others are widened first."""
    return dtype.isnative and dtype.name in _READ


_READ = frozenset(_checks.STORED.replace(",", "").split())


def widened(values: Array) -> Array:
    """Return values as kernels read them: floats keep their precision, integers become float64."""
    return values if is_read_as_it_is(values.dtype) else values.astype(result_dtype(values.dtype))


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


def _begins_with_gaps(values: Array, index: int) -> bool:
    """Whether one of the first values is missing; of a few values it takes as long to sum them."""
    if values.size <= _FEW or values.dtype not in _checks.PLAIN_DTYPES:
        return False
    samples = max(1, _FIRST * values.shape[0 if index else 1] // values.size)
    return math.isnan(np.maximum.reduce(values[:samples] if index else values[:, :samples], axis=None))


def _whole(values: Array, index: int, weights: masks.Weights | None) -> tuple[FeatureMoments | None, Array | None]:
    """Return the moments of values that have no gaps, and coefficients; None where some have, or sums overflow."""
    if not values.size or (weights is not None and weights.total == 0.0):
        return FeatureMoments.nothing(values.shape[index]), None
    table = steps.new_table(values.shape[index], number=rows.FEATURES_ROWS)
    count, form = steps.moments(steps.Call(values, index, weights=weights), table)
    table[rows.COUNTS] = count
    return (_of_table(table), form) if _is_finite(table) else (None, None)


def _with_gaps(values: Array, index: int, weights: masks.Weights | None) -> tuple[FeatureMoments, Array]:
    """Return the moments of values some of which may be missing, or infinite: then that is a ValueError."""
    table = steps.new_table(values.shape[index], number=rows.FEATURES_ROWS)
    form = steps.moments_with_gaps(steps.Call(values, index, weights=weights), table)
    if not _is_finite(table):  # or sums overflow
        check_not_infinite(values, index)
    return _of_table(table), form


def _is_finite(table: Array) -> bool:
    return math.isfinite(np.maximum.reduce(table[rows.M2]))


def _of_table(table: Array) -> FeatureMoments:
    """Return the moments in a table with counts, to whose rows nobody may write any more."""
    table[rows.ZEROS] = 0.0
    table.flags.writeable = False
    return FeatureMoments(table[rows.COUNTS], table[rows.MEAN], table[rows.MEAN_LOW], table[rows.M2], table[rows.ZEROS])


class Chunks:
    """Small chunks of a stream of samples, kept until they are worth summing."""

    def __init__(self, like: Array) -> None:
        self._most = max(1, min(_CHUNKS, _KEPT // like.size)) * len(like)  # samples
        self._rows = np.empty((self._most, like.shape[1]), like.dtype)
        self.filled, self.found = 0, list[FeatureMoments]()
        self.seen: Any = None  # what was found with them, as long as there are no more
        # The step that writes (x - 0) * 1 + 0 copies, and notes whether x has an infinite value.
        self._copy = infer_columns.variant(Variant(like.dtype.type, noted=True))
        self._noted = np.zeros(1, np.uint8)
        self._form = np.zeros((rows.FORM_ROWS, like.shape[1]), like.dtype)
        self._form[rows.SCALE] = 1.0
        self._block = np.array([[0, 0, 0, 0, like.shape[1]]], np.int64)  # all of a chunk, whatever its length

    @staticmethod
    def are_made_of(X: Any, features: tuple[int, ...]) -> bool:
        """Whether ``X`` is such a chunk: floats of this number of features."""
        if type(X) is not np.ndarray or X.dtype not in _checks.PLAIN_DTYPES:
            return False
        flags, shape = X.flags, X.shape
        return flags.c_contiguous and flags.aligned and shape[1:] == features and 0 < X.size <= _CHUNK

    def keep(self, X: Array) -> bool:
        """Keep a chunk if it is of this dtype, there is room, and nothing in it is infinite."""
        begin, size = self.filled, len(X)
        if X.dtype != self._rows.dtype or size > self._most:
            return False
        if begin + size > self._most:
            self._sum()
            begin = 0
        self._block[0, 2] = size
        place = self._rows[None, begin : begin + size]
        self._copy(X[None], place, None, self._form, (), 0, self._noted, self._block)
        if self._noted[0]:
            self._noted[0] = 0
            return False
        self.filled, self.seen = begin + size, None
        return True

    def added_to(self, part: Array | None) -> tuple[FeatureMoments, Array] | None:
        """Return the moments of earlier data and of what is kept, in one step, and coefficients; None if it takes more.

        ``part`` is what `FeatureMoments.part` makes of the earlier data. For who looks after every chunk: the step
        takes 3 us where summing and merging take 40. The next look begins with it again, so that roundings do not add
        up; to merge what is kept may give other last bits.
        """
        if part is None or self.found or not 0 < self.filled * part.shape[1] <= _AGAIN:
            return None
        table = steps.new_table(part.shape[1], number=rows.FEATURES_ROWS)
        table[rows.COUNTS], form = steps.moments(steps.Call(self._as_float64(), 1), table, earlier=part)
        return (_of_table(table), form) if _is_finite(table) else None

    def _as_float64(self) -> Array:
        """Return what is kept: of float64, sums are taken near the mean, a digit more where that is large."""
        return self._rows[: self.filled].astype(np.float64, copy=False)

    def _sum(self) -> None:
        if self.filled:
            self.found.append(moments_of(self._as_float64(), 1))
            self.filled = 0
        if len(self.found) == _TOGETHER:
            self.found = [FeatureMoments.together(self.found)]

    def take(self) -> FeatureMoments | None:
        """Return the moments of what was kept, and forget it."""
        self._sum()
        found, self.found, self.seen = self.found, [], None
        return FeatureMoments.together(found) if found else None
