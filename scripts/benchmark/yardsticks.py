"""Two yardsticks: the scan that everybody writes first, and the matrix products alone."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import optimization_barrier as barrier
from work import GATES, Problem, Work, jax_work, normal, run_stack


def naive_apply(problem: Problem, params, xs):
    """A `lax.scan` with the projection inside the step, for plain autodiff; `params[layer][direction]`, gates side by side."""
    sigmoid = jax.nn.sigmoid

    def rnn(state, x_gates, h_gates):
        return (jnp.tanh(x_gates + h_gates),)

    def lstm(state, x_gates, h_gates):
        i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
        c = sigmoid(f) * state[1] + sigmoid(i) * jnp.tanh(g)
        return sigmoid(o) * jnp.tanh(c), c

    def gru(state, x_gates, h_gates):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(a, 3, axis=-1) for a in (x_gates, h_gates))
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        return ((1 - z) * jnp.tanh(x_n + r * h_n) + z * state[0],)

    update = {"RNN": rnn, "LSTM": lstm, "GRU": gru}[problem.cell]

    def run(layer, direction, xs):
        w_ih, w_hh, b_ih, b_hh = params[layer][direction]

        def step(state, x):
            state = update(state, x @ w_ih + b_ih, state[0] @ w_hh + b_hh)
            return state, state[0]

        zeros = jnp.zeros((problem.batch, problem.hidden_size), xs.dtype)
        return jax.lax.scan(step, (zeros,) * (1 + (problem.cell == "LSTM")), xs, reverse=direction == 1)

    return run_stack(problem, run, xs)


def naive_work(problem: Problem) -> Work:
    hidden, gates = problem.hidden_size, GATES[problem.cell] * problem.hidden_size
    shapes = [[(size, gates), (hidden, gates), (gates,), (gates,)] for size in problem.input_sizes]
    draw = lambda shapes, seed: [normal(*shape, scale=hidden**-0.5, seed=seed) for shape in shapes]
    params = [[draw(layer, seed) for seed in range(problem.directions)] for layer in shapes]
    return jax_work(lambda params, xs: naive_apply(problem, params, xs), params, problem.xs())


def floor_work(problem: Problem) -> Work:
    """The products of the stack in the shapes they need, one after the other, and no arithmetic.

    Forward, per layer and direction: the projection of all steps in one, then one (batch, hidden) by (hidden, gates) per step.
    Training adds one (batch, gates) by (gates, hidden) per step, both weight gradients and the input's gradient. Every operand
    lies in memory as its product likes it best. Between two steps the product is cut, or repeated, to the width that the next one
    needs. Every loop starts from the result of the part before it, and barriers keep XLA from narrowing a product to what is used.
    """
    hidden, gates = problem.hidden_size, GATES[problem.cell] * problem.hidden_size
    rows, count = problem.time * problem.batch, gates // hidden
    rotation, _ = np.linalg.qr(normal(hidden, hidden))  # keeps the state's size over all steps

    def operands(size):
        made = {"x": normal(rows, size), "x_t": normal(size, rows), "h": normal(problem.batch, hidden), "h_t": normal(hidden, rows)}
        made |= {"d_gates": normal(rows, gates), "w_ih": normal(size, gates, scale=size**-0.5), "w_ih_t": normal(gates, size)}
        made |= {"w_hh": np.tile(rotation, (1, count)), "w_hh_t": np.tile(rotation, (count, 1)) / count}
        return {name: jnp.asarray(array) for name, array in made.items()}

    def steps(step, h):
        return jax.lax.scan(lambda h, _: (step(h), None), h, length=problem.time)[0]

    def forward(layers):
        h = layers[0]["h"]
        for a in layers:
            x, h = barrier((a["x"], h))
            x_gates = barrier(x @ a["w_ih"])
            h = steps(lambda h, w=a["w_hh"]: barrier(h @ w)[:, :hidden], h + x_gates[: len(h), :hidden])
        return h

    def train(layers):
        h, results = forward(layers), []
        for a in layers:
            h = steps(lambda h, w=a["w_hh_t"]: barrier(jnp.tile(h, (1, count))) @ w, h)
            d_gates, h = barrier((a["d_gates"], h))
            results += [h, d_gates @ a["w_ih_t"], a["x_t"] @ d_gates, a["h_t"] @ d_gates]
        return results

    layers = [operands(size) for size in problem.input_sizes for _ in range(problem.directions)]
    return Work({"forward": (jax.jit(forward), (layers,)), "train": (jax.jit(train), (layers,))})
