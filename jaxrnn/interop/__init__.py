"""Weights in and out of other frameworks and files, one format per module. Importing this imports none of them."""

from jaxrnn.interop._gates import flip_update_gate
from jaxrnn.interop.by_hand import from_params
from jaxrnn.interop.equinox import from_equinox, to_equinox
from jaxrnn.interop.flax import from_linen, from_nnx, to_linen, to_nnx
from jaxrnn.interop.haiku import from_haiku, to_haiku
from jaxrnn.interop.keras import from_keras, load_keras, to_keras
from jaxrnn.interop.linear_units import from_minimal_lru, from_recurrent_gemma, to_minimal_lru, to_recurrent_gemma
from jaxrnn.interop.onnx import OnnxNode, OnnxNodeInfo, from_onnx, onnx_node, onnx_nodes, to_onnx
from jaxrnn.interop.safetensors import from_safetensors, load_safetensors, to_safetensors
from jaxrnn.interop.torch import from_torch, load_torch, to_torch

__all__ = [
    "OnnxNode",
    "OnnxNodeInfo",
    "flip_update_gate",
    "from_equinox",
    "from_haiku",
    "from_keras",
    "from_linen",
    "from_minimal_lru",
    "from_nnx",
    "from_onnx",
    "from_params",
    "from_recurrent_gemma",
    "from_safetensors",
    "from_torch",
    "load_keras",
    "load_safetensors",
    "load_torch",
    "onnx_node",
    "onnx_nodes",
    "to_equinox",
    "to_haiku",
    "to_keras",
    "to_linen",
    "to_minimal_lru",
    "to_nnx",
    "to_onnx",
    "to_recurrent_gemma",
    "to_safetensors",
    "to_torch",
]
