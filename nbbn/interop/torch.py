"""PyTorch: modules and state dicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbbn.interop import _layers
from nbbn.layer.batch_norm import BatchNorm


def from_torch(obj: Any, *, prefix: str = "") -> BatchNorm:
    """Return the layer that a PyTorch module or state dict describes.

    ``weight`` becomes gamma and ``bias`` beta; momentum and the correction of the running variance
    mean the same in both libraries. The arrays are copies; float16 and bfloat16 widen to float32.

    Parameters
    ----------
    obj : torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, or mapping
        The module; or a state dict of tensors or arrays: ``weight`` (absent for ``affine=False``),
        ``bias`` (also for ``bias=False``), ``running_mean`` and ``running_var`` (absent for
        ``track_running_stats=False``), ``num_batches_tracked`` (0 where it is absent).
    prefix : str, optional
        Where the layer stands in the state dict of a network, as ``"layer1.0.bn1"``.

    Returns
    -------
    BatchNorm
        A new layer, in the module's mode. A state dict holds neither eps nor momentum nor mode:
        these are PyTorch's defaults, 1e-5, 0.1 and training. float64 where one of the arrays is.

    Raises
    ------
    TypeError
        For another object (also a subclass with a ``forward`` of its own, as the quantized ones),
        and for an array of another dtype.
    ValueError
        For a missing, unknown or misshaped entry under the prefix, and for a tensor that is not in the
        CPU's memory. The message names the key.

    See Also
    --------
    to_torch_state_dict : the way back.

    Notes
    -----
    A module that has running statistics but whose ``track_running_stats`` was set to False later
    uses them in inference and never updates them: its momentum becomes 0.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> state = {
    ...     "bn1.weight": np.full(3, 2, np.float32), "bn1.bias": np.ones(3, np.float32),
    ...     "bn1.running_mean": np.zeros(3, np.float32), "bn1.running_var": np.ones(3, np.float32),
    ...     "bn1.num_batches_tracked": np.array(7),
    ... }
    >>> bn = nbbn.interop.from_torch(state, prefix="bn1").eval()
    >>> bn.gamma, bn.num_batches_tracked
    (array([2., 2., 2.], dtype=float32), 7)
    """
    if isinstance(obj, Mapping):
        found, counter = _layers.select(list(map(str, obj)), prefix, (_layers.TORCH_NAMES,))
        number = 0 if counter is None else obj[counter]
        values = {attribute: (key, obj[key]) for attribute, key in found.items()}
        return _layers.make_layer(values, number=number)
    if not _is_batch_norm(obj):
        raise TypeError(
            "obj: expected a torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d or SyncBatchNorm, or a "
            f"state dict, got {type(obj).__module__}.{type(obj).__qualname__}"
        )
    if prefix:
        raise ValueError(f"prefix: expected none for a module, got {prefix!r}")
    return _from_module(obj)


def _is_batch_norm(obj: Any) -> bool:
    """Whether this is a module of that kind, which no one has unless torch is imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    base, synchronized = torch.nn.modules.batchnorm._BatchNorm, torch.nn.SyncBatchNorm
    forwards = (base.forward, synchronized.forward)
    return isinstance(obj, base) and type(obj).forward in forwards


def _from_module(module: Any) -> BatchNorm:
    values = {}
    for name, attribute in _layers.TORCH_NAMES.items():
        value = getattr(module, name)
        if value is not None:
            values[attribute] = (name, value)
    if ("running_mean" in values) != ("running_var" in values):
        raise ValueError(
            "obj: expected running_mean and running_var, got one of them without the other"
        )
    number = module.num_batches_tracked
    tracked = module.track_running_stats or "running_mean" not in values
    return _layers.make_layer(
        values,
        num_features=module.num_features,
        number=0 if number is None else number,
        training=module.training,
        eps=module.eps,
        momentum=module.momentum if tracked else 0.0,
    )


def to_torch_state_dict(bn: BatchNorm) -> dict[str, Any]:
    """Return what ``load_state_dict`` of a PyTorch module takes.

    The module needs the same number of features, ``affine=True`` where the layer has gamma or beta,
    ``bias=False`` where it has only gamma, and the same ``track_running_stats``. eps, momentum and
    the rest of the configuration are not part of a state dict. Needs torch.

    Parameters
    ----------
    bn : BatchNorm
        The layer.

    Returns
    -------
    dict of str to torch.Tensor
        ``weight, bias, running_mean, running_var`` (those that exist; ``weight`` is all ones for a
        layer with beta alone) in the layer's dtype, and ``num_batches_tracked`` (an int64): copies.

    Raises
    ------
    ImportError
        Where torch is not installed.
    RuntimeError
        Where the layer is not built yet.
    TypeError
        Where ``bn`` is not a BatchNorm.

    See Also
    --------
    from_torch : the way back.

    Examples
    --------
    >>> import nbbn
    >>> state = nbbn.interop.to_torch_state_dict(nbbn.BatchNorm(3))
    >>> sorted(state)
    ['bias', 'num_batches_tracked', 'running_mean', 'running_var', 'weight']
    """
    _layers.instance(bn)._check_built("bn")
    state = bn.state_dict()
    torch = _layers.required("torch")
    if "beta" in state:
        state.setdefault("gamma", np.ones(bn.num_features, bn.dtype))
    found = {
        name: torch.from_numpy(state[attribute])
        for name, attribute in _layers.TORCH_NAMES.items()
        if attribute in state
    }
    if bn.track_running_stats:
        found[_layers.COUNTER] = torch.tensor(state[_layers.COUNTER], dtype=torch.int64)
    return found
