"""Words of other libraries, and the errors that answer them with nbbn's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

# options of their layers
OPTIONS = {
    "affine": "scale= and center=",
    "bias": "center=",
    "data_format": "axis=",
    "decay": "momentum=, the weight of the new value",
    "epsilon": "eps=",
    "num_channels": "num_features",
    "trainable": "bn.eval()",
    "use_bias": "center=",
    "use_running_average": "bn.eval(), or training=False",
    "use_scale": "scale=",
}
# attributes and methods of their layers
ATTRIBUTES = {
    "affine": "bn.gamma and bn.beta, which are None without",
    "bias": "bn.beta",
    "epsilon": "bn.eps",
    "forward": "bn(x)",
    "moving_mean": "bn.running_mean",
    "moving_variance": "bn.running_var",
    "num_channels": "bn.num_features",
    "parameters": "bn.gamma, bn.beta and bn.state_dict()",
    "weight": "bn.gamma",
    "zero_grad": "bn.backward, which sets gradients and adds nothing to them",
}
# their names for what this package has
NAMES = {
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"), "nbbn.BatchNorm, for any shape"),
    **dict.fromkeys(("LazyBatchNorm1d", "LazyBatchNorm2d", "LazyBatchNorm3d"), "nbbn.BatchNorm()"),
    "BatchNormalization": "nbbn.BatchNorm",
    "StandardScaler": "nbbn.Standardizer",
    "SyncBatchNorm": "nbbn.distributed.SyncBatchNorm",
    "from_keras": "nbbn.interop.from_keras",
    "from_onnx": "nbbn.interop.from_onnx",
    "from_torch": "nbbn.interop.from_torch",
}


def unknown(word: str, ours: dict[str, str], known: Collection[str]) -> str:
    """Return what to say about a word: nbbn's for it, or one that is spelt alike."""
    import difflib  # not before it is needed: an import of nbbn does without

    alike = difflib.get_close_matches(word, known, 1)
    found = ours.get(word) or (alike[0] if alike else None)
    return f"there is no {word!r}" + (f": use {found}" if found else "")


class Foreign:
    """An attribute that stands for another library's word: an error that says nbbn's.

    Unless somebody's own class has one of that name.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name, self.__doc__ = name, None

    def __get__(self, layer: Any, owner: type | None = None) -> Any:
        own = {self._name: self} if layer is None else getattr(layer, "__dict__", {})
        if self._name not in own:
            raise self._error(layer)
        return own[self._name]

    def __set__(self, layer: Any, value: Any) -> None:
        if not hasattr(layer, "__dict__"):
            raise self._error(layer)
        vars(layer)[self._name] = value

    def _error(self, layer: Any) -> AttributeError:
        return AttributeError(f"{type(layer).__name__}: {unknown(self._name, ATTRIBUTES, ())}")
