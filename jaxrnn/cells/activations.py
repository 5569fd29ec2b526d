"""Activations by name, for the cells that let one choose. No cell and no argument check may live here."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

Activation = Literal[
    "tanh", "sigmoid", "hard_sigmoid", "hard_sigmoid_keras2", "relu", "elu", "selu", "softplus", "softsign", "silu", "linear"
]

ACTIVATIONS: dict[str, Callable] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "hard_sigmoid_keras2": lambda x: jnp.clip(0.2 * x + 0.5, 0, 1),
    "relu": jax.nn.relu,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "softplus": jax.nn.softplus,
    "softsign": jax.nn.soft_sign,
    "silu": jax.nn.silu,
    "linear": lambda x: x,
}
"""The functions of `jax.nn` of these names, of Keras 3 and `torch.nn` too. "hard_sigmoid" is x/6 + 0.5, cut to [0, 1], and
"hard_sigmoid_keras2" 0.2x + 0.5: what Keras 1 and 2 and Theano call so, and ONNX's default."""
