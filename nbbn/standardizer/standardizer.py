"""Standardizer: mean 0 and standard deviation 1 for each feature of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from nbbn import _checks
from nbbn._checks import Array, Vector
from nbbn._compiler.forks import new_lock
from nbbn._engine.known import Memory
from nbbn.standardizer import _estimator
from nbbn.standardizer._dataset import Dense, Fitted, as_dataset
from nbbn.standardizer._features import Chunks, FeatureMoments


def _found(doc: str, of: Callable[[Fitted], Any]) -> Any:
    """Return a property: what this makes of what fitting found."""
    return property(lambda self: of(self._known()), doc=doc)


class Standardizer(_estimator.Estimator):
    r"""Standardize features: subtract the mean, divide by the standard deviation.

    .. math:: y = (x - \bar x) / s, \qquad s^2 = \frac1n \sum_i (x_i - \bar x)^2

    `fit` computes the statistics of a data set, `partial_fit` adds a chunk of data, and `transform` applies the
    statistics. Use it like scikit-learn's ``StandardScaler``, also in pipelines; scikit-learn is not needed.

    Parameters
    ----------
    axis : int, default -1
        The axis of the features; statistics are taken over all the others. May be negative.
    with_mean : bool, default True
        Whether to subtract the mean.
    with_std : bool, default True
        Whether to divide by the standard deviation.
    copy : bool, default True
        Whether `transform` and `inverse_transform` leave ``X`` unchanged. False: they write to it if it
        is an array of floats.

    Attributes
    ----------
    mean_ : ndarray of float64, shape (F,), or None
        Mean of each feature; NaN where it had no value; None where neither mean nor standard deviation is wanted.
    var_ : ndarray of float64, shape (F,), or None
        Variance of the population, ``m2 / n``; NaN and None as of ``mean_``, and None without ``with_std``.
    scale_ : ndarray of float64, shape (F,), or None
        Divisor: ``sqrt(var_)``, and 1 for a constant feature; None without ``with_std``.
    n_samples_seen_ : int, float or ndarray, shape (F,)
        Number of values of each feature so far: samples, times what further axes hold; the sum of their
        weights, where weights were given. An array where values were missing.
    n_features_in_ : int
        Number of features, F.
    feature_names_in_ : ndarray of str, shape (F,)
        Names of the columns, where the data came as a data frame whose names are all strings.

    Notes
    -----
    Statistics are as exact as those of `nbbn.batch_moments`: float64 for every ``X``, and chunks of any
    sizes agree with the whole to a few units in the last place. For float32 data with a mean of up to a
    million standard deviations, `transform` is within 8 eps \|y\| of exact arithmetic.

    NaN is a missing value: it is left out of the statistics of its feature, and stays in the result.
    An infinite value is an error. A feature is constant where its variance is at most
    ``n eps var + (n eps mean)**2``, which rounding may leave of equal values.

    Parameters that are changed after fitting count from the next `fit` or `partial_fit` on. Threads
    may call `transform` while another one calls `partial_fit`: each call uses statistics of one moment.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> X = np.array([[2.0, 10.0], [0.0, 10.0], [2.0, 10.0], [4.0, 10.0]], np.float32)
    >>> scaler = nbbn.Standardizer().fit(X)
    >>> scaler.mean_, scaler.var_, scaler.scale_.round(3)
    (array([ 2., 10.]), array([2., 0.]), array([1.414, 1.   ]))
    >>> y = scaler.transform(X)
    >>> y[1]
    array([-1.4142135,  0.       ], dtype=float32)
    >>> scaler.inverse_transform(y)[:2].round(6)
    array([[ 2., 10.],
           [ 0., 10.]], dtype=float32)
    """

    __module__ = "nbbn"  # where users find it, and pickles

    def __init__(self, *, axis: int = -1, with_mean: bool = True, with_std: bool = True, copy: bool = True) -> None:
        self.axis = axis
        self.with_mean = with_mean
        self.with_std = with_std
        self.copy = copy
        self._fitted: Fitted | None = None
        self._chunks: Chunks | None = None
        self._lock = new_lock(self)

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Compute the statistics of ``X``, and forget earlier ones.

        Parameters
        ----------
        X : array_like of real numbers
            Of two or more dimensions, in any memory layout; a data frame, too. A dask array is
            computed, block by block. Without ``with_mean`` also a sparse matrix, which needs scikit-learn.
        y : None
            Ignored.
        sample_weight : array_like of real numbers, shape (n_samples,), or a number, optional
            Finite and >= 0: a sample counts as so many.

        Returns
        -------
        Standardizer
            Itself.

        Raises
        ------
        TypeError
            For any other dtype, and for masked arrays.
        ValueError
            For a wrong shape, parameter or weight, an infinite value, a sparse matrix and ``with_mean``, and an
            empty ``X``. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.Standardizer().fit(np.array([[2.0], [4.0]])).mean_
        array([3.])
        """
        self._learn(as_dataset(X, self.axis), True, sample_weight)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Compute the statistics of ``X`` and all earlier data together.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`, with as many features as before. An empty ``X`` changes nothing.

        Returns
        -------
        Standardizer
            Itself.

        Raises
        ------
        TypeError, ValueError
            As `fit`, but for an empty ``X``; ``ValueError`` also where the number or the names of the
            features differ. Nothing has changed then.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> scaler = nbbn.Standardizer()
        >>> for chunk in np.array([[2.0], [0.0], [2.0], [4.0]]).reshape(2, 2, 1):
        ...     scaler = scaler.partial_fit(chunk)
        >>> scaler.var_, scaler.n_samples_seen_
        (array([2.]), 4)
        """
        if sample_weight is not None or not self._keep(X):
            self._learn(as_dataset(X, self.axis), False, sample_weight)
        return self

    def transform(self, X: Any, copy: bool | None = None, *, out: Any = None) -> Any:
        """Return ``(X - mean_) / scale_``.

        Parameters
        ----------
        X : array_like of real numbers
            With the number of features of `fit`; any memory layout.
        copy : bool, optional
            Instead of the parameter of that name: False writes to ``X`` if it is an array of floats.
        out : ndarray, optional
            Where to write, of the shape of ``X`` and the dtype of the result; may be ``X`` itself.

        Returns
        -------
        ndarray
            ``out``, or a new array in the memory order of ``X``; of its dtype if that is of floats, float32 for
            bytes, float64 for others. A data frame where `set_output` asked for one. Of a dask array a lazy
            one, in its chunks. Of a sparse matrix one in CSR form.

        Raises
        ------
        TypeError
            For any other dtype, and for masked arrays.
        ValueError
            For a wrong shape, names of features, an infinite value, or ``out``. Nothing has been written then.
        NotFittedError
            Before `fit`: scikit-learn's, where that is loaded; a ValueError and an AttributeError.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> X = np.array([[2.0], [4.0]])
        >>> nbbn.Standardizer().fit(X).transform(X, out=X) is X
        True
        >>> X.ravel()
        array([-1.,  1.])
        """
        return self._apply(X, copy, out, False)

    def inverse_transform(self, X: Any, copy: bool | None = None, *, out: Any = None) -> Any:
        """Undo `transform`: return ``X * scale_ + mean_``.

        Parameters
        ----------
        X, copy, out
            As for `transform`.

        Returns
        -------
        ndarray
            As from `transform`, but no data frame.

        Raises
        ------
        TypeError, ValueError, NotFittedError
            As `transform`.

        Notes
        -----
        Rounded once, but for three roundings of ``X * scale_``: where means are large beside standard
        deviations, float32 data comes back bit by bit.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> scaler = nbbn.Standardizer().fit(np.array([[2.0], [4.0]]))
        >>> scaler.inverse_transform(np.array([[0.0], [2.0]])).ravel()
        array([3., 5.])
        """
        return self._apply(X, copy, out, True)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None, *, out: Any = None) -> Any:
        """Return ``fit(X).transform(X)``.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        out : ndarray, optional
            As for `transform`; may be ``X`` itself.

        Returns
        -------
        ndarray
            As from `transform`.

        Raises
        ------
        TypeError, ValueError
            As `fit` and `transform`. Nothing has changed or been written then.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.Standardizer().fit_transform(np.array([[2.0], [4.0]])).ravel()
        array([-1.,  1.])
        """
        given = as_dataset(X, self.axis)
        library = self._frames()
        target = given.target(out, _checks.flag("copy", self.copy), library)
        fitted = self._learn(given, True, sample_weight)
        assert fitted is not None  # X is not empty
        found = given.mapped(fitted, False, target)
        return _estimator.as_frame(library, found if out is None else out, X, fitted.names)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Return the names of the features of the result, the same as in ``X``.

        Parameters
        ----------
        input_features : sequence of str, optional
            Names, where ``X`` had none; else they have to be those.

        Returns
        -------
        ndarray of str, shape (F,)
            By default ``feature_names_in_``, or "x0", "x1", ...

        Raises
        ------
        ValueError
            For other names, or another number of them.
        NotFittedError
            Before `fit`.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.Standardizer().fit(np.zeros((4, 2))).get_feature_names_out()
        array(['x0', 'x1'], dtype=object)
        """
        fitted = self._known()
        return _estimator.names_out(input_features, fitted.names, fitted.features)

    mean_: Vector | None = _found(
        "Mean of each feature.", lambda fitted: fitted.moments.means() if fitted.with_mean or fitted.with_std else None
    )
    var_: Vector | None = _found(
        "Variance of each feature.", lambda fitted: fitted.moments.variances() if fitted.with_std else None
    )
    scale_: Vector | None = _found(
        "What each feature is divided by.", lambda fitted: fitted.divisors() if fitted.with_std else None
    )
    n_samples_seen_: Any = _found("Number of values of each feature.", lambda fitted: fitted.moments.samples())
    n_features_in_: int = _found("Number of features.", lambda fitted: fitted.features)
    feature_names_in_: Array = _found("Names of the columns.", lambda fitted: _estimator.names_in(fitted.names))

    def __repr__(self) -> str:
        fitted = self._now()
        if fitted is None:
            return super().__repr__()
        samples = fitted.moments.counts.max()
        return f"{super().__repr__()}, fitted: {fitted.features} features, {samples:.15g} samples"

    def __sklearn_is_fitted__(self) -> bool:
        return self._fitted is not None

    def _known(self) -> Fitted:
        fitted = self._now()
        if fitted is None:
            raise _estimator.not_fitted(self)
        return fitted

    def _now(self) -> Fitted | None:
        """Return what was found, also with chunks that wait; if these are many, they are merged into it."""
        chunks = self._chunks
        if chunks is None:
            return self._fitted
        seen: Fitted | None = chunks.seen  # read once: a thread that keeps a chunk takes it away
        if seen is None:
            with self._lock:
                if chunks is not self._chunks or self._fitted is None:  # another thread was here
                    return self._fitted
                found = chunks.added_to(self._fitted.part())
                seen = chunks.seen = self._fitted.of(*found) if found else self._settled()
        return seen

    def _settled(self) -> Fitted | None:
        """Return what was found, once chunks that were kept are merged into it."""
        chunks = self._chunks
        if chunks is not None and (chunks.filled or chunks.found):
            with self._lock:
                # Another thread may have taken them, or begun anew.
                found = chunks.take() if chunks is self._chunks else None
                if found is not None and self._fitted is not None:
                    self._fitted = self._fitted.of(self._fitted.moments.merge(found))
        return self._fitted

    def _keep(self, X: Any) -> bool:
        """Keep a small chunk, to be summed with those after it; return whether nothing else is to do."""
        fitted, axis = self._fitted, self.axis
        if fitted is None or fitted.names is not None or axis not in (-1, 1) or axis != fitted.axis:
            return False
        as_before = self.with_mean is fitted.with_mean and self.with_std is fitted.with_std
        if not as_before or not Chunks.are_made_of(X, fitted.moments.mean.shape):
            return False
        with self._lock:
            if self._fitted is not fitted:  # another thread was here
                return False
            if self._chunks is None:
                self._chunks = Chunks(X)
            return self._chunks.keep(X)

    def _learn(self, given: Dense, fresh: bool, sample_weight: Any) -> Fitted | None:
        """Merge the statistics of ``given`` into the earlier ones, or begin anew; return all."""
        with_mean = _checks.flag("with_mean", self.with_mean)
        with_std = _checks.flag("with_std", self.with_std)
        given.check_mean(with_mean)
        if not fresh and self._fitted is not None:
            given.check_fits(self, self._fitted)
        moments, names = given.moments(given.weights(sample_weight)), given.names
        size = math.prod(given.values.shape)  # NaN of a dask array of unknown chunks
        if not (moments.counts.any() if math.isnan(size) else size):
            if fresh:
                raise ValueError(f"X: expected at least one sample, got shape {given.values.shape}")
            return self._fitted
        with self._lock:
            earlier = self._fitted if fresh else self._settled()
            form, like, self._chunks = given.form, (given.axis, moments.mean.size), None
            known = earlier.known if earlier and (earlier.axis, earlier.features) == like else Memory()
            if earlier is not None and not fresh:
                moments, names, form = earlier.moments.merge(moments), earlier.names or names, None
            fitted = Fitted(moments, given.axis, with_mean, with_std, names, known, form)
            self._fitted = fitted
        return fitted

    def _apply(self, X: Any, copy: Any, out: Any, inverse: bool) -> Any:
        """Apply the map of `transform`, or its inverse, with the statistics of this moment."""
        fitted = self._known()
        copy = self.copy if copy is None else copy
        known = fitted.known.of(X) if out is None and copy is True and fitted.names is None else None
        if known is not None and (inverse or self._frames() is None):
            form, y = fitted.form(inverse, X.dtype), known.target(X, None)
            if y is not None and form.dtype == X.dtype:
                noted = np.zeros(1, np.uint8)
                known.way.write(known.stack(X), known.stack(y), form, noted=noted)
                if not noted[0]:
                    return y
        given = as_dataset(X, fitted.axis)
        given.check_mean(fitted.with_mean)
        given.check_fits(self, fitted)
        library = None if inverse else self._frames()
        target = given.target(out, _checks.flag("copy", copy), library)
        found = given.mapped(fitted, inverse, target)
        if type(X) is np.ndarray:
            fitted.known.learn(X, given.index)
        return _estimator.as_frame(library, found if out is None else out, X, fitted.names)

    def __getstate__(self) -> dict[str, Any]:
        hidden = "_fitted", "_chunks", "_lock"
        own = {name: value for name, value in vars(self).items() if name not in hidden}
        fitted = self._now()
        # Numbers, arrays and strings alone.
        found = fitted and (tuple(fitted.moments), fitted.axis, fitted.with_mean, fitted.with_std, fitted.names)
        return {"attributes": own, "fitted": found}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Standardizer.__init__(self)  # older pickles hold fewer parameters
        vars(self).update(state["attributes"])
        fitted = state["fitted"]
        self._fitted = fitted and Fitted(FeatureMoments.of(fitted[0]), *fitted[1:])
