"""The two yardsticks: the scan that everybody writes first, and the matmuls alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from benchmark_work import (
    GATES,
    Problem,
    Work,
    jax_work,
    most_devices,
    normal,
    run_stack,
    split,
)
from jax.lax import optimization_barrier
from jax.sharding import PartitionSpec as P


def naive_params(problem: Problem):
    """`[layer][direction]`: w_ih, w_hh, b_ih, b_hh, all gates side by side in the last axis."""
    hidden, gates = problem.hidden_size, GATES[problem.cell] * problem.hidden_size
    draw = partial(normal, scale=hidden**-0.5)
    return [
        [
            [draw(*shape, seed=seed) for shape in [(size, gates), (hidden, gates), (gates,), (gates,)]]
            for seed in range(problem.directions)
        ]
        for size in problem.input_sizes
    ]


def naive_apply(problem: Problem, params, xs):
    """A `lax.scan` with the projection inside the step, for plain autodiff."""
    sigmoid = jax.nn.sigmoid

    def rnn(h, x_gates, h_gates):
        h = jnp.tanh(x_gates + h_gates)
        return h, h

    def lstm(state, x_gates, h_gates):
        i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        h = sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def gru(h, x_gates, h_gates):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(a, 3, axis=-1) for a in (x_gates, h_gates))
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        h = (1 - z) * jnp.tanh(x_n + r * h_n) + z * h
        return h, h

    update = {"RNN": rnn, "LSTM": lstm, "GRU": gru}[problem.cell]

    def run(layer, direction, xs):
        w_ih, w_hh, b_ih, b_hh = params[layer][direction]

        def step(state, x):
            h = state[0] if problem.cell == "LSTM" else state
            return update(state, x @ w_ih + b_ih, h @ w_hh + b_hh)

        zeros = jnp.zeros((problem.batch, problem.hidden_size), xs.dtype)
        state = (zeros, zeros) if problem.cell == "LSTM" else zeros
        return jax.lax.scan(step, state, xs, reverse=direction == 1)

    return run_stack(problem, run, xs)


def naive_work(problem: Problem) -> Work:
    return jax_work(partial(naive_apply, problem), naive_params(problem), problem.xs())


def floor_work(problem: Problem, devices: int = 1) -> Work:
    """The matmuls of the stack in the shapes they need, one after the other, and no arithmetic.

    Forward, per layer and direction: the projection of all steps in one, then one
    `(batch, hidden) @ (hidden, gates)` per step. Training adds one `(batch, gates) @ (gates,
    hidden)` per step, both weight gradients and the input's gradient. Every operand lies in memory
    as its matmul likes it best. Between two steps the product is cut, or repeated, to the width
    that the next one needs. Every loop starts from the result of the part before it, and barriers
    keep XLA from narrowing a product to the piece of it that is used.
    """
    hidden, gates = problem.hidden_size, GATES[problem.cell] * problem.hidden_size
    rows = problem.time * problem.batch
    split_rows, split_columns = P("batch"), P(None, "batch")
    rotation, _ = np.linalg.qr(normal(hidden, hidden))  # keeps the state's size over all steps

    def operands(size):
        return {
            "x": (normal(rows, size), split_rows),
            "x_t": (normal(size, rows), split_columns),
            "h": (normal(problem.batch, hidden), split_rows),
            "h_t": (normal(hidden, rows), split_columns),
            "d_gates": (normal(rows, gates), split_rows),
            "w_ih": (normal(size, gates, scale=size**-0.5), P()),
            "w_ih_t": (normal(gates, size), P()),
            "w_hh": (np.tile(rotation, (1, gates // hidden)), P()),
            "w_hh_t": (np.tile(rotation, (gates // hidden, 1)) * hidden / gates, P()),
        }

    def forward_steps(h, w_hh):
        def step(h, _):
            return optimization_barrier(h @ w_hh)[:, :hidden], None

        return jax.lax.scan(step, h, length=problem.time)[0]

    def backward_steps(h, w_hh_t):
        def step(h, _):
            return optimization_barrier(jnp.tile(h, (1, gates // hidden))) @ w_hh_t, None

        return jax.lax.scan(step, h, length=problem.time)[0]

    def forward(layers):
        h = layers[0]["h"]
        for a in layers:
            x, h = optimization_barrier((a["x"], h))
            x_gates = optimization_barrier(x @ a["w_ih"])
            h = forward_steps(h + x_gates[: len(h), :hidden], a["w_hh"])
        return h

    def train(layers):
        h, results = forward(layers), []
        for a in layers:
            h = backward_steps(h, a["w_hh_t"])
            d_gates, h = optimization_barrier((a["d_gates"], h))
            weights = a["x_t"] @ d_gates, a["h_t"] @ d_gates
            if devices > 1:
                weights = jax.lax.psum(weights, "batch")
            results += [h, d_gates @ a["w_ih_t"], *weights]
        return results

    directions = [size for size in problem.input_sizes for _ in range(problem.directions)]
    pairs = [operands(size) for size in directions]
    layers = [{name: jnp.asarray(array) for name, (array, _) in a.items()} for a in pairs]
    if devices == 1:
        return Work(jax.jit(forward), (layers,), jax.jit(train), (layers,))
    specs = [{name: spec for name, (_, spec) in a.items()} for a in pairs]
    results = [split_rows, split_rows, P(), P()] * len(layers)
    return Work(
        *split(forward, (layers,), (specs,), split_rows, devices),
        *split(train, (layers,), (specs,), results, devices),
        devices,
    )


def floor_sharded(problem: Problem) -> Work:
    return floor_work(problem, most_devices(problem.batch))
