"""The inference form of a layer: three numbers a channel that do not change."""

from __future__ import annotations

from typing import Any, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nbbn import _checks
from nbbn._checks import Activation, Array, DType, Inferred
from nbbn._engine import steps
from nbbn._engine.known import Memory
from nbbn._kernels import table as rows
from nbbn.layer._forward import Call
from nbbn.layer._state import Fixed


class FrozenBatchNorm:
    r"""Batch normalization with fixed statistics and parameters, for inference.

    .. math:: y = \mathrm{activation}((x - \mathrm{center})\,\mathrm{scale} + \mathrm{shift}
              + \mathrm{residual})

    With ``center = mean``, ``scale = gamma / sqrt(var + eps)`` and ``shift = beta`` that is what a layer computes in
    inference, with the same bits. It is a snapshot: nothing that happens to a layer it was made from, by
    `nbbn.BatchNorm.freeze`, changes it, and any number of threads may call it. `nbbn.fold_linear` takes it, too.

    Parameters
    ----------
    center, scale, shift : array_like of real numbers, shape (C,)
        Copied.
    axis, activation, negative_slope
        As of `nbbn.normalize`.

    Attributes
    ----------
    center, scale, shift : ndarray of float64, shape (C,)
        Read-only.

    Raises
    ------
    TypeError, ValueError
        For an argument of the wrong type, shape or range; the message names it.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> frozen = nbbn.FrozenBatchNorm(np.array([2.0]), np.array([3.0]), np.array([10.0]))
    >>> frozen(np.array([[2.0], [0.0], [2.0], [4.0]])).ravel()
    array([10.,  4., 10., 16.])
    """

    __module__ = "nbbn"  # where users find it, and pickles
    __slots__ = (  # so that a misspelt attribute is an error
        *("__weakref__", "_activation", "_after", "_axis", "_center", "_forms", "_known"),
        *("_negative_slope", "_num_features", "_scale", "_shift", "_table"),
    )

    def __init__(
        self, center: ArrayLike, scale: ArrayLike, shift: ArrayLike,
        *, axis: int = 1, activation: Activation | None = None, negative_slope: ArrayLike = 0.01,
    ) -> None:  # fmt: skip
        centers = _vector("center", center)
        self._num_features = count = centers.size
        scales, shifts = _checks.per_channel("scale", scale, count), _checks.per_channel("shift", shift, count)
        self._axis = _checks.integer("axis", axis)
        self._activation = steps.activation(activation)
        slope = steps.slope(self._activation, negative_slope, count)
        self._after = steps.epilogue(self._activation)
        # As a table of statistics with variance 1: scale / sqrt(1 + 0) is scale.
        table = self._table = steps.given_table(centers, np.ones(count), scales, shifts, slope)
        table.flags.writeable = False
        self._center, self._scale, self._shift = table[rows.MEAN], table[rows.GAMMA], table[rows.BETA]
        self._negative_slope = table[rows.SLOPE] if np.ndim(slope) else slope
        # Coefficients by what is computed with: made when first asked for; two threads make the same.
        self._forms: dict[np.dtype[Any], Array] = {}
        self._known = Memory()

    @classmethod
    def from_stats(
        cls, mean: ArrayLike, var: ArrayLike, gamma: ArrayLike | None = None, beta: ArrayLike | None = None,
        eps: float = 1e-5,
        *, axis: int = 1, activation: Activation | None = None, negative_slope: ArrayLike = 0.01,
    ) -> FrozenBatchNorm:  # fmt: skip
        """Return a frozen layer with these statistics and parameters.

        Parameters
        ----------
        mean, var, gamma, beta, eps, axis, activation, negative_slope
            As of `nbbn.normalize`, but statistics and parameters are of shape (C,), never numbers.

        Returns
        -------
        FrozenBatchNorm
            With ``scale = gamma / sqrt(var + eps)``, in float64; 0 where the root is 0.

        Raises
        ------
        TypeError, ValueError
            For an argument of the wrong type, shape or range, such as a negative variance.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> nbbn.FrozenBatchNorm.from_stats(np.zeros(1), np.array([4.0]), eps=0.0).scale
        array([0.5])
        """
        means = _vector("mean", mean)
        count = means.size
        variances = _checks.variances("var", var, count).astype(np.float64)
        gammas = np.ones(count) if gamma is None else _checks.per_channel("gamma", gamma, count)
        betas = np.zeros(count) if beta is None else _checks.per_channel("beta", beta, count)
        epsilon = _checks.real("eps", eps, 0.0)
        scale = steps.over_std(gammas.astype(np.float64), variances, epsilon)
        return cls(means, scale, betas, axis=axis, activation=activation, negative_slope=negative_slope)

    center = Fixed[Array]("What is subtracted from each channel.")
    scale = Fixed[Array]("What each channel is then multiplied by.")
    shift = Fixed[Array]("What is then added to each channel.")
    num_features = Fixed[int]("Number of channels, C.")
    axis = Fixed[int]("The channel axis.")
    activation = Fixed[Activation | None]("The activation, applied last, or None.")
    negative_slope = Fixed[Any]('Slope of "leaky_relu" or "prelu" below 0: a number, or one a channel.')

    @overload
    def __call__(self, x: NDArray[DType], **given: Unpack[Inferred]) -> NDArray[DType]: ...
    @overload
    def __call__(self, x: ArrayLike, **given: Unpack[Inferred]) -> Array: ...
    def __call__(self, x: Any, *, residual: Any = None, out: Any = None) -> Array:
        """Return ``activation((x - center) * scale + shift + residual)``.

        Parameters
        ----------
        x, residual, out
            As of a call of `nbbn.BatchNorm`.

        Returns
        -------
        ndarray
            ``out``, or a new array in the memory order of ``x``, in its dtype.

        Raises
        ------
        TypeError, ValueError
            As `nbbn.BatchNorm`, for a wrong dtype, shape or ``out``. Nothing has been written then.

        Examples
        --------
        >>> import numpy as np, nbbn
        >>> frozen = nbbn.BatchNorm(3, eps=0.0, activation="relu").freeze()
        >>> x = np.array([[-1.0, 0.0, 2.0]], np.float32)
        >>> frozen(x)
        array([[0., 0., 2.]], dtype=float32)
        >>> frozen(x, residual=x, out=x) is x
        True
        """
        known = self._known.of(x) if residual is None else None
        if known is not None:
            y = known.target(x, out)
            if y is not None:
                known.way.write(known.stack(x), known.stack(y), self._form(x.dtype), self._after.kind)
                return y
        call = Call.checked(self, x, residual, out)
        found = steps.infer(call, self._form(steps.computed_dtype(call.x)))
        self._known.learn(x, call.axis)
        return found if out is None else out

    def _form(self, dtype: np.dtype[Any]) -> Array:
        form = self._forms.get(dtype)
        if form is None:
            form = self._forms[dtype] = steps.coefficients(self._table, 0.0, dtype)
        return form

    def __getstate__(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in ("axis", "activation", "negative_slope")}
        numbers = {name: getattr(self, name) for name in ("center", "scale", "shift")}
        return {"options": options, "numbers": numbers, "attributes": getattr(self, "__dict__", {})}  # of a subclass

    def __setstate__(self, state: dict[str, Any]) -> None:
        FrozenBatchNorm.__init__(self, **state["numbers"], **state["options"])
        for name, value in state["attributes"].items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        shown = [str(self._num_features), f"axis={self._axis}"]
        if self._activation is not None:
            shown.append(f"activation={self._activation!r}")
        if self._activation in ("leaky_relu", "prelu") and not np.ndim(self._negative_slope):
            shown.append(f"negative_slope={self._negative_slope!r}")
        return f"FrozenBatchNorm({', '.join(shown)})"


def _vector(name: str, value: Any) -> Array:
    """Return real numbers, one a channel: it says how many channels there are."""
    found = _checks.reals(name, value)
    if found.ndim != 1 or found.size == 0:
        raise ValueError(f"{name}: expected one value a channel, got shape {found.shape}")
    return found
