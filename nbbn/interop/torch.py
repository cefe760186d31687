"""PyTorch: modules and state dicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from nbbn.interop import _layers
from nbbn.layer.batch_norm import BatchNorm


def from_torch(obj: Any, *, prefix: str = "", eps: float = 1e-5, momentum: float | None = 0.1) -> Any:
    """Return the layer, or the layers, that a PyTorch module or state dict describes.

    ``weight`` becomes gamma and ``bias`` beta; momentum and the correction of the running variance mean the same in
    both libraries. The arrays are copies; float16 and bfloat16 widen to float32. `to_torch_state_dict` is the way back.

    Parameters
    ----------
    obj : torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d, SyncBatchNorm, a module with such, or mapping
        The module, or a network; or a state dict of tensors or arrays: ``weight`` (absent for
        ``affine=False``), ``bias`` (also for ``bias=False``), ``running_mean`` and ``running_var``
        (absent for ``track_running_stats=False``), ``num_batches_tracked`` (0 where it is absent).
    prefix : str, optional
        Where a layer stands in a network, as ``"layer1.0.bn1"``: nothing else is looked at.
    eps, momentum : float or None
        Of the layers of a state dict, which holds neither. A module has its own.

    Returns
    -------
    BatchNorm, or dict of str to BatchNorm
        A new layer; of a network without ``prefix`` all, by their names: of a state dict those that have running
        statistics. It has the mode of its module; from a state dict, inference. float64 where one of the arrays is.

    Raises
    ------
    TypeError
        For another object (also a network without such layers, or with a subclass that has a
        ``forward`` of its own, as the quantized ones), and for an array of another dtype.
    ValueError
        Where nothing is under ``prefix``, for a missing, unknown or misshaped entry, and for a tensor that
        is not in the CPU's memory. The message names the key.

    Notes
    -----
    A module whose ``track_running_stats`` was set to False later uses the running statistics that it has in inference
    and never updates them: its momentum becomes 0. One that stands in several places is one layer under each name.

    Examples
    --------
    >>> import numpy as np, nbbn
    >>> state = {
    ...     "bn1.weight": np.full(3, 2, np.float32), "bn1.bias": np.ones(3, np.float32),
    ...     "bn1.running_mean": np.zeros(3, np.float32), "bn1.running_var": np.ones(3, np.float32),
    ...     "bn1.num_batches_tracked": np.array(7),
    ... }
    >>> nbbn.interop.from_torch(state, eps=1e-3)
    {'bn1': BatchNorm(3, eps=0.001, inference, 7 batches tracked)}
    >>> nbbn.interop.from_torch(state, prefix="bn1").gamma
    array([2., 2., 2.], dtype=float32)
    """
    if isinstance(obj, Mapping):
        keys, tables = dict.fromkeys(map(str, obj)), (_layers.TORCH_NAMES,)
        return _layers.from_arrays(keys, prefix, tables, obj.__getitem__, eps=eps, momentum=momentum)
    torch = sys.modules.get("torch")  # no one has a module of it unless it is imported
    if torch is None or not isinstance(obj, torch.nn.Module):
        raise _no_batch_norm("obj", obj)
    name = prefix.removesuffix(".")
    modules = dict(obj.named_modules(remove_duplicate=False))
    if name not in modules:
        raise ValueError(f"prefix: expected the name of a module, {_layers.shown([*modules][1:])}, got {prefix!r}")
    kind = torch.nn.modules.batchnorm._BatchNorm
    if name or isinstance(obj, kind):
        return _from_module(name or "obj", modules[name])
    found = {name: module for name, module in modules.items() if isinstance(module, kind)}
    if not found:
        raise _no_batch_norm("obj", obj)
    layers = {id(module): _from_module(name, module) for name, module in found.items()}
    return {name: layers[id(module)] for name, module in found.items()}


def _no_batch_norm(name: str, obj: Any) -> TypeError:
    return TypeError(
        f"{name}: expected a torch.nn.BatchNorm1d, BatchNorm2d, BatchNorm3d or SyncBatchNorm, a module "
        f"with such, or a state dict, got {type(obj).__module__}.{type(obj).__qualname__}"
    )


def _from_module(where: str, module: Any) -> BatchNorm:
    torch = sys.modules["torch"]
    forwards = torch.nn.modules.batchnorm._BatchNorm.forward, torch.nn.SyncBatchNorm.forward
    if getattr(type(module), "forward", None) not in forwards:
        raise _no_batch_norm(where, module)
    start = "" if where == "obj" else f"{where}."
    given = {attribute: (f"{start}{name}", getattr(module, name)) for name, attribute in _layers.TORCH_NAMES.items()}
    values = {attribute: (name, value) for attribute, (name, value) in given.items() if value is not None}
    if ("running_mean" in values) != ("running_var" in values):
        raise ValueError(f"{where}: expected running_mean and running_var, got one of them without the other")
    momentum = module.momentum if module.track_running_stats or "running_mean" not in values else 0.0
    options = {"num_features": module.num_features, "eps": module.eps, "momentum": momentum}
    return _layers.make_layer(values, **options).train(module.training)


def to_torch_state_dict(bn: BatchNorm) -> dict[str, Any]:
    """Return a state dict for ``load_state_dict`` of a PyTorch module; `from_torch` is the way back.

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
    ImportError, RuntimeError, TypeError
        Where torch is not installed, where the layer is not built yet, and where ``bn`` is not a BatchNorm.

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
    if not bn.track_running_stats:
        del state[_layers.COUNTER]
    return {name: torch.as_tensor(state[own]) for name, own in _layers.TORCH_NAMES.items() if own in state}
