"""Keras: layers and lists of weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from nbbn.interop import _layers
from nbbn.layer.batch_norm import BatchNorm

# Keras's name -> the layer's attribute, in the order of get_weights
_NAMES = {"gamma": "gamma", "beta": "beta", "moving_mean": "running_mean", "moving_variance": "running_var"}


def from_keras(obj: Any, *, axis: int = -1) -> BatchNorm:
    """Return the layer that a Keras BatchNormalization, or the list of its weights, describes.

    Keras's momentum is the weight of the old statistics, nbbn's of the new ones: 0.99 becomes 0.01. The variance enters
    the moving one without a correction (``running_correction=0``). The arrays are copies; float16 and bfloat16 widen to
    float32. Needs no Keras.

    Parameters
    ----------
    obj : keras.layers.BatchNormalization, or sequence of arrays of shape (C,)
        The layer, after it was built; or its weights ``[gamma, beta, moving_mean, moving_variance]`` (without the first
        two for ``scale=False, center=False``), which take Keras's defaults, epsilon 1e-3 and momentum 0.99.
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
        For a layer without weights, with more than one axis or with ``renorm=True``, a list of another length (of three
        arrays, the first may be gamma or beta), and arrays of different shapes.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> gamma, beta, mean, var = np.ones((4, 3), np.float32)
    >>> nbbn.interop.from_keras([gamma, beta, mean, var])
    BatchNorm(3, axis=-1, eps=0.001, momentum=0.01, running_correction=0.0, inference)
    """
    if isinstance(obj, list | tuple):
        if len(obj) not in (2, 4):
            more = ", of which the first may be gamma or beta: put ones for gamma or zeros for beta in its place"
            raise ValueError(
                "obj: expected [gamma, beta, moving_mean, moving_variance] or [moving_mean, moving_variance], "
                f"got {len(obj)} arrays{more if len(obj) == 3 else ''}"
            )
        weights, epsilon, momentum = dict(zip([*_NAMES][-len(obj) :], obj, strict=True)), 1e-3, 0.99
    else:
        if not all(hasattr(obj, name) for name in ("axis", "momentum", "epsilon", "scale", "center")):
            raise TypeError(
                "obj: expected a Keras BatchNormalization layer or a list of its weights, "
                f"got {type(obj).__module__}.{type(obj).__qualname__}"
            )
        if getattr(obj, "renorm", False):
            raise ValueError(
                "obj: expected a layer without renorm (for inference alone, pass the list of its "
                "gamma, beta, moving_mean and moving_variance), got renorm=True"
            )
        exists = {"gamma": obj.scale, "beta": obj.center}
        weights = {name: getattr(obj, name, None) for name in _NAMES if exists.get(name, True)}
        for name, value in weights.items():
            if value is None:
                raise ValueError(f"obj: expected a layer that was built, got one without {name}")
        epsilon, momentum = obj.epsilon, obj.momentum
        axes = np.ravel(obj.axis).tolist()  # Keras 2 keeps a list
        if len(axes) != 1:
            raise ValueError(f"obj: expected a layer with one axis, got {axes}")
        axis = axes[0]
    values = {_NAMES[name]: (name, value) for name, value in weights.items()}
    momentum = _layers.complement(float(momentum))
    return _layers.make_layer(values, axis=axis, eps=epsilon, momentum=momentum, running_correction=0)
