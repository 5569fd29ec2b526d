"""Weights in and out of other frameworks and files, one format per module. Importing this imports none of them."""

from jaxrnn.interop.onnx import OnnxNode, from_onnx, onnx_node, to_onnx
from jaxrnn.interop.safetensors import from_safetensors, load_safetensors, to_safetensors
from jaxrnn.interop.torch import from_torch, load_torch, to_torch

__all__ = [
    "OnnxNode", "from_onnx", "from_safetensors", "from_torch", "load_safetensors", "load_torch", "onnx_node", "to_onnx",
    "to_safetensors", "to_torch",
]  # fmt: skip
