"""Weights in and out of other frameworks and files, one format per module. Importing this imports none of them."""

from jaxrnn.interop.safetensors import from_safetensors, load_safetensors, to_safetensors
from jaxrnn.interop.torch import from_torch, load_torch, to_torch

__all__ = ["from_safetensors", "from_torch", "load_safetensors", "load_torch", "to_safetensors", "to_torch"]
