"""Layers of PyTorch, Keras, ONNX models and safetensors files as `nbbn.BatchNorm`, and back.

Importing this imports none of those libraries: each is looked for by the functions that need it.
"""

from nbbn.interop.keras import from_keras
from nbbn.interop.onnx import from_onnx
from nbbn.interop.safetensors import load_safetensors, save_safetensors
from nbbn.interop.torch import from_torch, to_torch_state_dict

__all__ = ["from_keras", "from_onnx", "from_torch", "load_safetensors", "save_safetensors", "to_torch_state_dict"]
