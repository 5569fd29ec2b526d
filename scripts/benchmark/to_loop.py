"""Write an LSTM as JAX users write it, a `lax.scan` over a step, with jax2onnx.

python to_loop.py FILE TIME BATCH INPUT HIDDEN
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax2onnx import to_onnx

path, (time, batch, size, hidden) = sys.argv[1], map(int, sys.argv[2:])
random = np.random.default_rng(0)
w_ih, w_hh, b = (
    random.standard_normal(s, np.float32) / hidden**0.5 for s in ((size, 4 * hidden), (hidden, 4 * hidden), 4 * hidden)
)


def step(state, x_gates):
    h, c = state
    i, f, g, o = jnp.split(x_gates + h @ w_hh, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return (h, c), h


def run(x):
    zeros = jnp.zeros((batch, hidden), jnp.float32)
    return jax.lax.scan(step, (zeros, zeros), x @ w_ih + b)[1]


to_onnx(run, [(time, batch, size)], return_mode="file", output_path=path, opset=21)
