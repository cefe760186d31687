"""Keras: layers and lists of weights."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from nbbn.interop import _layers
from nbbn.layer.batch_norm import BatchNorm

_OPTIONS = ("axis", "momentum", "epsilon", "scale", "center")
_NAMES = {  # Keras's name -> the layer's attribute, in the order of get_weights
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def from_keras(obj: Any, *, axis: int = -1) -> BatchNorm:
    """Return the layer that a Keras BatchNormalization, or the list of its weights, describes.

    Keras's momentum is the weight of the old statistics, nbbn's of the new ones: 0.99 becomes
    0.01. The variance enters the moving one without a correction (``running_correction=0``). The
    arrays are copies; float16 and bfloat16 widen to float32. Needs no Keras.

    Parameters
    ----------
    obj : keras.layers.BatchNormalization, or sequence of arrays of shape (C,)
        The layer, after it was built; or its weights ``[gamma, beta, moving_mean,
        moving_variance]`` (without the first two for ``scale=False, center=False``), which take
        Keras's defaults, epsilon 1e-3 and momentum 0.99.
    axis : int, default -1
        The channel axis for a list of weights. A Keras layer has its own, which is used.

    Returns
    -------
    BatchNorm
        A new layer, in inference mode, which is Keras's default for a call.

    Raises
    ------
    TypeError
        For another object, and for an array of another dtype.
    ValueError
        For a layer without weights, with more than one axis or with ``renorm=True``, a list of
        another length (of three arrays, the first may be gamma or beta), and arrays of different
        shapes.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> gamma, beta, mean, var = np.ones((4, 3), np.float32)
    >>> nbbn.interop.from_keras([gamma, beta, mean, var])
    BatchNorm(3, axis=-1, eps=0.001, momentum=0.01, running_correction=0.0, inference)
    """
    if isinstance(obj, list | tuple):
        return _from_weights(obj, axis)
    if not all(hasattr(obj, name) for name in _OPTIONS):
        raise TypeError(
            "obj: expected a Keras BatchNormalization layer or a list of its weights, "
            f"got {type(obj).__module__}.{type(obj).__qualname__}"
        )
    if getattr(obj, "renorm", False):
        raise ValueError(
            "obj: expected a layer without renorm (for inference alone, pass the list of its "
            "gamma, beta, moving_mean and moving_variance), got renorm=True"
        )
    wanted = [
        name for name in _NAMES if not (name == "gamma" and not obj.scale) and not (name == "beta" and not obj.center)
    ]
    values = {_NAMES[name]: (name, getattr(obj, name, None)) for name in wanted}
    for name, value in values.values():
        if value is None:
            raise ValueError(f"obj: expected a layer that was built, got one without {name}")
    return _layer(values, _one_axis(obj.axis), obj.epsilon, obj.momentum)


def _from_weights(weights: Sequence[Any], axis: int) -> BatchNorm:
    if len(weights) == 3:
        raise ValueError(
            "obj: expected [gamma, beta, moving_mean, moving_variance] or [moving_mean, "
            "moving_variance], got 3 arrays, of which the first may be gamma or beta: put ones for "
            "gamma or zeros for beta in its place"
        )
    if len(weights) not in (2, 4):
        raise ValueError(
            "obj: expected [gamma, beta, moving_mean, moving_variance] or [moving_mean, "
            f"moving_variance], got {len(weights)} arrays"
        )
    names = list(_NAMES)[-len(weights) :]
    values = {_NAMES[name]: (name, value) for name, value in zip(names, weights, strict=True)}
    return _layer(values, axis, 1e-3, 0.99)


def _layer(values: dict[str, tuple[str, Any]], axis: int, epsilon: Any, momentum: Any) -> BatchNorm:
    return _layers.make_layer(
        values, axis=axis, eps=epsilon, momentum=_layers.complement(float(momentum)), running_correction=0
    )


def _one_axis(axis: Any) -> Any:
    """Return the channel axis; Keras 2 keeps a list of them."""
    if hasattr(axis, "__index__"):
        return operator.index(axis)
    axes = list(axis)
    if len(axes) != 1:
        raise ValueError(f"obj: expected a layer with one axis, got {axes}")
    return axes[0]
