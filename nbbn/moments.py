"""Moments of data: count, mean and m2 per channel, and their exact merging."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from nbbn import _checks
from nbbn._checks import Vector
from nbbn._engine import masks, steps
from nbbn._engine.steps import Call
from nbbn._kernels import table as rows

Parts = tuple[Any, Vector, Vector, Vector, Vector]  # count, mean and m2, both in two parts each

_NAMES = "count", "mean", "_mean_low", "m2", "_m2_low"
_SMALLEST = 2.2250738585072014e-308  # of a count that is not 0


class Moments:
    r"""Count, mean and sum of squared deviations per channel: an immutable value.

    Two values merge to the moments of both data sets together (Chan, Golub and LeVeque 1983):
    with :math:`\delta = \bar x_b - \bar x_a` and :math:`n = n_a + n_b`,

    .. math:: \bar x = \bar x_a + \delta\, n_b / n, \qquad
              M_2 = M_{2,a} + M_{2,b} + \delta^2 n_a n_b / n .

    Mean and m2 are carried with about twice float64's digits inside, so merging in any order and grouping agrees with
    the whole to a few units in the last place. ``a + b`` merges two values, and ``sum`` a list of them (``sum([])`` is
    0, as in Python). Finite means merge to a finite one; an m2 beyond float64 is inf.

    Parameters
    ----------
    count : float
        Number of values per channel (or the sum of their weights), finite and >= 0.
    mean, m2 : array_like, shape (C,)
        Mean per channel, and the sum of squared deviations from it.

    Attributes
    ----------
    count, mean, m2 : float, and ndarrays of float64, shape (C,)
        Read-only.

    Raises
    ------
    TypeError
        Where an argument is not numeric.
    ValueError
        Where ``count`` is negative or not finite, or the shapes are not (C,).

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance: analysis
    and recommendations", The American Statistician 37 (1983) 242-247.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> a = nbbn.batch_moments(np.array([[2.0], [0.0]]))
    >>> b = nbbn.batch_moments(np.array([[2.0], [4.0]]))
    >>> both = a + b
    >>> both.count, both.mean, both.var()
    (4.0, array([2.]), array([2.]))
    >>> sum([a, b]) == both
    True
    """

    __module__ = "nbbn"  # where users find it, and pickles

    __slots__ = {  # what help() and the reference say of each
        "count": "Number of values per channel, or the sum of their weights.",
        "mean": "Mean per channel.",
        "m2": "Sum of squared deviations from the mean, per channel.",
        **dict.fromkeys(("_mean_low", "_m2_low")),
    }

    count: float
    mean: Vector
    m2: Vector
    _mean_low: Vector
    _m2_low: Vector

    def __init__(self, count: float, mean: ArrayLike, m2: ArrayLike) -> None:
        number = _checks.real("count", count, 0.0)
        means = _vector("mean", mean)
        squares = _vector("m2", m2)
        if means.shape != squares.shape:
            raise ValueError(f"m2: expected shape {means.shape}, that of mean, got {squares.shape}")
        self.__setstate__((number, means, np.zeros_like(means), squares, np.zeros_like(means)))

    @classmethod
    def _restore(cls, *parts: Any) -> Moments:
        value = object.__new__(cls)
        value.__setstate__(parts)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name}: Moments are immutable; update and merge return new ones")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: Moments are immutable")

    def __getstate__(self) -> tuple[Any, ...]:
        return self.count, self.mean, self._mean_low, self.m2, self._m2_low

    def __setstate__(self, parts: Parts) -> None:
        for vector in parts[1:]:
            vector.setflags(write=False)
        for name, part in zip(_NAMES, parts, strict=True):
            object.__setattr__(self, name, part)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        pairs = zip(self.__getstate__(), other.__getstate__(), strict=True)
        return all(np.array_equal(one, two, equal_nan=True) for one, two in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Moments(count={self.count:g}, mean={self.mean!r}, m2={self.m2!r})"

    @classmethod
    def empty(cls, num_features: int) -> Moments:
        """Return the moments of no data: merging them changes nothing.

        Parameters
        ----------
        num_features : int
            Number of channels, at least 1.

        Returns
        -------
        Moments
            With count 0, and mean and m2 of zeros.

        Raises
        ------
        TypeError, ValueError
            Where ``num_features`` is not an integer >= 1.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Moments.empty(2)
        Moments(count=0, mean=array([0., 0.]), m2=array([0., 0.]))
        """
        channels = _checks.positive_integer("num_features", num_features)
        return cls(0.0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def from_batches(cls, batches: Iterable[ArrayLike], axis: int = 1) -> Moments:
        """Return the moments of several batches together.

        Parameters
        ----------
        batches : iterable of array_like
            At least one; of any sizes, with the same number of channels.
        axis : int, default 1
            The channel axis of each.

        Returns
        -------
        Moments
            Those of all the values.

        Raises
        ------
        TypeError, ValueError
            As `batch_moments`; ``ValueError`` also where there is no batch, or where the numbers of channels differ.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.Moments.from_batches([np.array([[2.0], [0.0]]), np.array([[2.0], [4.0]])]).mean
        array([2.])
        """
        if not isinstance(batches, Iterable):
            raise TypeError(f"batches: expected an iterable, got {type(batches).__name__}")
        each = (batch_moments(batch, axis=axis) for batch in batches)
        first = next(each, None)
        if first is None:
            raise ValueError("batches: expected at least one batch, got none")
        return sum(each, first)

    def update(self, x: ArrayLike, axis: int = 1, mask: ArrayLike | None = None) -> Moments:
        """Return the moments of the data so far and ``x`` together, as a new value.

        Parameters
        ----------
        x, axis, mask
            As of `batch_moments`.

        Returns
        -------
        Moments
            The merged moments.

        Raises
        ------
        TypeError, ValueError
            As `batch_moments`; ``ValueError`` also where the number of channels differs.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.Moments.empty(1).update(np.array([[2.0], [4.0]])).mean
        array([3.])
        """
        return self.merge(batch_moments(x, axis=axis, mask=mask))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both data sets together; ``a + b`` is the same.

        Parameters
        ----------
        other : Moments
            With the same number of channels.

        Returns
        -------
        Moments
            A new value.

        Raises
        ------
        TypeError
            Where ``other`` is not `Moments`.
        ValueError
            Where the numbers of channels differ.

        Examples
        --------
        >>> import nbbn
        >>> a = nbbn.Moments(1, [2.0], [0.0])
        >>> a.merge(nbbn.Moments(1, [4.0], [0.0]))
        Moments(count=2, mean=array([3.]), m2=array([2.]))
        """
        if not isinstance(other, Moments):
            raise TypeError(f"other: expected Moments, got {type(other).__name__}")
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"other: expected {self.mean.size} channels, got {other.mean.size}")
        if not other.count:
            return self
        if not self.count:
            return other
        return Moments._restore(*merged(self.__getstate__(), other.__getstate__()))

    def __add__(self, other: object) -> Moments:
        return self.merge(other) if isinstance(other, Moments) else NotImplemented

    def __radd__(self, other: object) -> Moments:
        return self if type(other) is int and other == 0 else NotImplemented  # what sum begins with

    def var(self, correction: float = 0) -> Vector:
        """Return the variance per channel, ``m2 / (count - correction)``.

        Parameters
        ----------
        correction : float, default 0
            Degrees of freedom taken off: 0 for a population, 1 for the unbiased estimate.

        Returns
        -------
        ndarray of float64, shape (C,)
            A new array.

        Raises
        ------
        TypeError, ValueError
            Where ``correction`` is not a number, negative, or not less than ``count``.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Moments(4, [2.0], [8.0]).var(correction=1)
        array([2.66666667])
        """
        taken = _checks.real("correction", correction, 0.0)
        if taken >= self.count:
            raise ValueError(f"correction: expected less than the count, {self.count:g}, got {taken:g}")
        with np.errstate(all="ignore"):
            return self.m2 / (self.count - taken)

    def std(self, correction: float = 0) -> Vector:
        """Return the standard deviation per channel, the square root of `var`.

        Parameters
        ----------
        correction : float, default 0
            As in `var`.

        Returns
        -------
        ndarray of float64, shape (C,)
            A new array.

        Raises
        ------
        TypeError, ValueError
            As `var`.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Moments(4, [2.0], [16.0]).std()
        array([2.])
        """
        with np.errstate(all="ignore"):
            return np.sqrt(self.var(correction))


def _vector(name: str, value: Any) -> Vector:
    try:
        given = np.asarray(value)
        if given.dtype.kind not in "fiu":
            raise TypeError(f"dtype {given.dtype}")
        vector: Vector = np.array(given, dtype=np.float64)
    except Exception as error:  # also what an object raises when it is asked for an array
        raise TypeError(f"{name}: expected real numbers of shape (C,), got {error}") from error
    if vector.ndim != 1 or vector.size == 0:
        raise ValueError(f"{name}: expected shape (C,), C >= 1, got {vector.shape}")
    return vector


def _two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return ``a + b`` rounded and the rounding error (Knuth, TAOCP 2, 4.2.2)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _add_to_pair(high: Vector, low: Vector, value: Vector) -> tuple[Vector, Vector]:
    """Return ``high + low + value`` as a normalized pair."""
    total, error = _two_sum(high, value)
    return _two_sum(total, error + low)


def _merged_means(share: float, a: Vector, a_low: Vector, b: Vector, b_low: Vector) -> tuple[Vector, Vector, Vector]:
    """Return the difference of two means, pairs, and the mean of both as a pair; b has the ``share``."""
    difference, error = _two_sum(b, -a)
    delta = difference + (error + (b_low - a_low))
    return delta, *_add_to_pair(a, a_low, delta * share)


def merged(one: Parts, other: Parts) -> Parts:
    """Return the moments of both data sets together; counts are numbers, or vectors where they differ."""
    # From the heavier one on: the lighter one's share makes the rounding of the difference small, too.
    a, b = (one, other) if np.all(one[0] >= other[0]) else (other, one)
    with np.errstate(all="ignore"):
        count = a[0] + b[0]
        total = np.maximum(count, _SMALLEST)
        share, weight = b[0] / total, b[0] * (a[0] / total)
        means = a[1], a[2], b[1], b[2]
        delta, mean, mean_low = _merged_means(share, *means)
        m2, m2_low = _add_to_pair(a[3], a[4] + b[4], b[3])
        m2, m2_low = _add_to_pair(m2, m2_low, delta * (delta * weight))
        if not np.isfinite(mean + m2).all():
            # The difference of means of both signs may overflow; that of their halves does not. Between
            # infinities there is no difference, but there is a mean.
            _, half, half_low = _merged_means(share, *(0.5 * vector for vector in means))
            usual, by_halves = np.isfinite(delta), np.isfinite(half)
            mean = np.where(usual, mean, np.where(by_halves, 2.0 * half, a[1] + b[1]))
            mean_low = np.where(usual, mean_low, np.where(by_halves, 2.0 * half_low, 0.0))
            # A pair cannot hold an infinity: its low part is NaN.
            far = b[1] - a[1]
            plain = np.where(np.isfinite(mean), a[3] + b[3] + far * (far * weight), np.nan)
            m2, m2_low = np.where(np.isfinite(m2), m2, plain), np.where(np.isfinite(m2), m2_low, 0.0)
    return count, mean, mean_low, m2, m2_low


def of_table(count: float, table: Vector) -> Moments:
    """Return the moments in a table of statistics: its rows, so nobody may write to it afterwards."""
    m2 = table[rows.M2]
    return Moments._restore(float(count), table[rows.MEAN], table[rows.MEAN_LOW], m2, np.zeros(m2.size))


def batch_moments(
    x: ArrayLike, *, axis: int = 1, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> Moments:
    r"""Return count, mean and m2 of each channel of ``x``, in one pass over its memory.

    .. math:: n = \sum_i w_i, \qquad \bar x_c = \frac1n \sum_i w_i x_{ic}, \qquad
              M_{2,c} = \sum_i w_i (x_{ic} - \bar x_c)^2

    with weights of 1, or 0 where masked, unless they are given.

    Parameters
    ----------
    x : array_like of float32, float64, float16, bfloat16, integers or bool
        Of any number of dimensions from 1 up and any memory layout. Integers other than uint8, and
        booleans, become float64.
    axis : int, default 1
        The channel axis; statistics are taken over all the others. May be negative.
    mask : array_like of bool, optional
        True where a value counts, in all channels: with as many dimensions as ``x``, of its shape with
        size 1 along the channel axis; with fewer, of its shape without the channel axis; either may be
        broadcast. What is masked may be NaN.
    weights : array_like of real numbers, optional
        Weight of each value, finite and >= 0, in shapes as ``mask``; where it is 0, the value may be NaN.
        Below 2.3e-308, the smallest normal number, it is taken for 0.

    Returns
    -------
    Moments
        float64, whatever the dtype of ``x``: as accurate as sums in float64 about a value of the
        data, blocked and merged. ``count`` is the number of values per channel that count, or the sum
        of their weights. An empty ``x``, and one that is masked everywhere, give count 0.

    Raises
    ------
    TypeError
        For any other dtype, also of ``mask`` or ``weights``, and for masked arrays.
    ValueError
        Where ``axis`` is out of range, there are no channels, a shape does not fit, or a weight is negative
        or not finite.

    Notes
    -----
    The same bits for every number of threads. NaN and Inf follow IEEE arithmetic and stay in their
    channel. Deviations beyond 1e154 overflow in m2, and those beyond 1.8e308 in the mean, too.

    References
    ----------
    B. P. Welford, "Note on a method for calculating corrected sums of squares and products",
    Technometrics 4 (1962) 419-420; Chan, Golub, LeVeque (1983), see `Moments`.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> x = np.array([[2.0, 10.0], [0.0, 10.0], [2.0, 10.0], [4.0, 10.0]])
    >>> nbbn.batch_moments(x)
    Moments(count=4, mean=array([ 2., 10.]), m2=array([8., 0.]))

    Two sequences of three steps and two channels, the second one padded:

    >>> steps = np.array([[[2.0, 1], [0, 1], [2, 1]], [[4, 1], [np.nan, 1], [0, 1]]])
    >>> mask = np.array([[True, True, True], [True, False, False]])
    >>> nbbn.batch_moments(steps, axis=-1, mask=mask)
    Moments(count=4, mean=array([2., 1.]), m2=array([8., 0.]))
    """
    values = _checks.counted("x", x)
    index = _checks.axis(axis, values.ndim)
    if values.shape[index] == 0:
        raise ValueError(f"x: expected at least one channel, got shape {values.shape}")
    found = masks.make(mask, weights, values.shape, index)
    if values.size == 0 or (found is not None and found.total == 0.0):
        return Moments.empty(values.shape[index])
    table = np.zeros((rows.STATISTICS_ROWS, values.shape[index]))  # no gamma: nobody wants coefficients
    count, _ = steps.moments(Call(values, index, weights=found), table)
    return of_table(count, table)
