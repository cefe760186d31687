"""scikit-learn's protocol for estimators, without scikit-learn: it is imported where it asks."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray


class NotFittedError(ValueError, AttributeError):
    """What `not_fitted` returns in a process without scikit-learn."""


def not_fitted(owner: object) -> Exception:
    """Return the error of a call or an attribute that needs data first.

    Who catches scikit-learn's class has loaded it; others catch ValueError or AttributeError.
    """
    loaded = sys.modules.get("sklearn.exceptions")
    kind: type[Exception] = getattr(loaded, "NotFittedError", NotFittedError)
    return kind(f"{type(owner).__name__}: expected fit or partial_fit first, got no data yet")


class Estimator:
    """Parameters are the keyword arguments of ``__init__``, kept as they were given."""

    _sklearn_output_config: ClassVar[dict[str, str]] = {}  # scikit-learn's clone copies this name

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters by name.

        Parameters
        ----------
        deep : bool, default True
            Ignored: no parameter has parameters.

        Returns
        -------
        dict
            What the constructor was given, or `set_params`.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer(with_std=False).get_params()
        {'axis': -1, 'with_mean': True, 'with_std': False, 'copy': True}
        """
        return {name: getattr(self, name) for name in _parameters(type(self))}

    def set_params(self, **params: Any) -> Self:
        """Set parameters; they count from the next ``fit`` or ``partial_fit`` on.

        Parameters
        ----------
        **params
            By name.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ValueError
            Where there is no such parameter. None is set then.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer().set_params(axis=1)
        Standardizer(axis=1)
        """
        known = _parameters(type(self))
        for name in params:
            if name not in known:
                raise ValueError(f"params: expected some of {', '.join(known)}, got {name!r}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def set_output(self, *, transform: str | None = None) -> Self:
        """Choose what ``transform`` and ``fit_transform`` return.

        Parameters
        ----------
        transform : {"default", "pandas", "polars"}, optional
            "default": arrays. The others: data frames with the names of the features, of a
            two-dimensional ``X`` with the features last. None changes nothing.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ValueError
            For any other value.

        Notes
        -----
        Where nothing was chosen here, ``sklearn.set_config(transform_output=...)`` chooses.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer().set_output(transform="default")
        Standardizer()
        """
        if transform not in (None, "default", "pandas", "polars"):
            raise ValueError(f"transform: expected 'default', 'pandas', 'polars' or None, got {transform!r}")
        if transform is not None:
            vars(self)["_sklearn_output_config"] = {"transform": transform}
        return self

    def _frames(self) -> str | None:
        """Return the name of the library of the data frames that are wanted, or None."""
        chosen = self._sklearn_output_config.get("transform")
        if chosen is None and "sklearn" in sys.modules:
            chosen = sys.modules["sklearn"].get_config().get("transform_output")
        return None if chosen == "default" else chosen

    def set_fit_request(self, *, sample_weight: Any) -> Self:
        """Choose whether scikit-learn's metadata routing passes ``sample_weight`` to ``fit``.

        Parameters
        ----------
        sample_weight : bool, None or str
            True: it is passed if given. False: it is not. None: to give it is an error. A str: it is passed
            if given by that name.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ImportError
            Where scikit-learn is not installed.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer().set_fit_request(sample_weight=True)  # doctest: +SKIP
        Standardizer()
        """
        return self._request("fit", sample_weight)

    def set_partial_fit_request(self, *, sample_weight: Any) -> Self:
        """`set_fit_request` for ``partial_fit``.

        Parameters
        ----------
        sample_weight : bool, None or str
            As there.

        Returns
        -------
        Estimator
            Itself.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer().set_partial_fit_request(sample_weight=True)  # doctest: +SKIP
        Standardizer()
        """
        return self._request("partial_fit", sample_weight)

    def get_metadata_routing(self) -> Any:
        """Return scikit-learn's record of the metadata that ``fit`` and ``partial_fit`` ask for.

        Returns
        -------
        sklearn.utils.metadata_routing.MetadataRequest
            A copy.

        Examples
        --------
        >>> import nbbn
        >>> nbbn.Standardizer().get_metadata_routing()  # doctest: +SKIP
        {'fit': {'sample_weight': None}, 'partial_fit': {'sample_weight': None}}
        """
        chosen = vars(self).get("_metadata_request")
        if chosen is not None:
            return copy.deepcopy(chosen)
        request = import_module("sklearn.utils.metadata_routing").MetadataRequest(owner=self)
        for method in ("fit", "partial_fit"):
            getattr(request, method).add_request(param="sample_weight", alias=None)
        return request

    def _request(self, method: str, sample_weight: Any) -> Self:
        request = self.get_metadata_routing()
        getattr(request, method).add_request(param="sample_weight", alias=sample_weight)
        vars(self)["_metadata_request"] = request  # scikit-learn's clone copies this name
        return self

    def __sklearn_tags__(self) -> Any:
        tags = import_module("sklearn.utils")
        return tags.Tags(
            estimator_type="transformer",
            target_tags=tags.TargetTags(required=False),
            transformer_tags=tags.TransformerTags(preserves_dtype=["float64", "float32"]),
            input_tags=tags.InputTags(three_d_array=True, allow_nan=True, sparse=not getattr(self, "with_mean", True)),
        )

    def __repr__(self) -> str:
        defaults = _parameters(type(self))
        shown = (f"{k}={v!r}" for k, v in self.get_params().items() if v is not defaults[k])
        return f"{type(self).__name__}({', '.join(shown)})"


def _parameters(kind: type[Estimator]) -> dict[str, Any]:
    """Return the defaults of the parameters by name."""
    return {each.name: each.default for each in inspect.signature(kind).parameters.values()}


def feature_names(X: Any) -> tuple[str, ...] | None:
    """Return the names of the columns of a data frame; None where they are not all strings."""
    columns = getattr(X, "columns", None)
    names = () if columns is None else tuple(columns)
    return names if names and all(isinstance(name, str) for name in names) else None


def check_names(name: str, given: Any, known: tuple[str, ...] | None, owner: str) -> None:
    """Check names of features against those of `fit`; where only one of them exists, warn."""
    if given is not None and known is not None and tuple(given) != known:
        raise ValueError(f"{name}: {_mismatch(given, known)}")
    if (given is None) != (known is None):
        has, was = ("does not have valid", "with") if given is None else ("has", "without")
        warnings.warn(f"X {has} feature names, but {owner} was fitted {was} feature names", UserWarning, stacklevel=5)


def _mismatch(given: Any, known: tuple[str, ...]) -> str:
    """Return what is wrong with names, in scikit-learn's words, too: programs look for them."""
    text = (
        f"expected the names {_listed(known)}, got {_listed(given)} "
        "(The feature names should match those that were passed during fit.\n"
    )
    new, missing = sorted({*given} - {*known}), sorted({*known} - {*given})
    for words, names in (("unseen at fit time", new), ("seen at fit time, yet now missing", missing)):
        if names:
            lines = [f"- {name}\n" for name in names[:5]] + ["- ...\n"] * (len(names) > 5)
            text += f"Feature names {words}:\n{''.join(lines)}"
    if not new and not missing:
        text += "Feature names must be in the same order as they were in fit.\n"
    return text + ")"


def names_in(known: tuple[str, ...] | None) -> NDArray[Any]:
    """Return the names of the features that came, if they had some."""
    if known is None:
        raise AttributeError("feature_names_in_: expected a data frame in fit, got an array")
    return np.asarray(known, dtype=object)


def names_out(given: Sequence[str] | None, known: tuple[str, ...] | None, count: int) -> NDArray[Any]:
    """Return the names of the features that leave, which are those that came."""
    if given is not None and known is not None and tuple(given) != known:
        raise ValueError(
            f"input_features: expected the names {_listed(known)}, got {_listed(given)} "
            "(input_features is not equal to feature_names_in_)"
        )
    if given is not None and len(given) != count:
        raise ValueError(
            f"input_features: expected {count} names, got {len(given)} "
            f"(input_features should have length equal to number of features ({count}))"
        )
    numbered = [f"x{number}" for number in range(count)]
    return np.asarray(known or (numbered if given is None else list(given)), dtype=object)


def as_frame(library: str | None, y: Any, X: Any, known: tuple[str, ...] | None) -> Any:
    """Return ``y``, two-dimensional with the features last, as a data frame of pandas or polars if one is wanted."""
    if library is None:
        return y
    module, names = import_module(library), names_out(None, known, y.shape[1])
    if library == "polars":
        return module.DataFrame(y, schema=list(names), orient="row")
    index = getattr(X, "index", None) if hasattr(X, "columns") else None
    return module.DataFrame(y, index=index, columns=names, copy=False)


def _listed(names: Any) -> str:
    shown = ", ".join(map(repr, list(names)[:5]))
    return shown if len(names) <= 5 else f"{shown}, ... ({len(names)} in all)"
