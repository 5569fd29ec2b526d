"""The libraries beside `jaxrnn` in the benchmark, each as its own documents would use it.

Every function returns the `Work` of one library for one problem, from zero states and in float32.
All read time-first arrays, except Keras and cuDNN, which know batch-first ones only and get those.
"""

import jax
import jax.numpy as jnp
from benchmark_work import Problem, Skip, Work, jax_work, normal, run_stack


def torch_work(problem: Problem) -> Work:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    module = getattr(torch.nn, problem.cell)(
        problem.input_size,
        problem.hidden_size,
        problem.num_layers,
        bidirectional=problem.bidirectional,
    ).to(device)
    params = list(module.parameters())
    x = torch.from_numpy(problem.xs()).to(device).requires_grad_()

    def run():
        outputs, states = module(x)
        return [outputs, *(states if isinstance(states, tuple) else (states,))]

    weights = [torch.from_numpy(normal(*a.shape, seed=i)).to(device) for i, a in enumerate(run(), 1)]

    def wait(results):
        if device == "cuda":
            torch.cuda.synchronize()
        return results

    def forward():
        with torch.inference_mode():
            return wait(run())

    def train():
        loss = sum(torch.dot(a.flatten(), w.flatten()) for a, w in zip(run(), weights, strict=True))
        *d_params, dx = torch.autograd.grad(loss, [*params, x])
        return wait((loss.detach(), d_params, dx))

    return Work(forward, (), train, ())


def nnx_work(problem: Problem) -> Work:
    from flax import nnx

    cell = {"RNN": nnx.SimpleCell, "LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell}[problem.cell]
    rngs, options = nnx.Rngs(0), {"time_major": True, "return_carry": True}

    def layer(size):
        cells = [cell(size, problem.hidden_size, rngs=rngs) for _ in range(problem.directions)]
        layers = [nnx.RNN(one, **options) for one in cells]
        return nnx.Bidirectional(*layers, **options) if layers[1:] else layers[0]

    graph, params, rest = nnx.split(nnx.List(map(layer, problem.input_sizes)), nnx.Param, ...)

    def apply(params, x):
        states = []
        for module in nnx.merge(graph, params, rest, copy=True):
            state, x = module(x)
            states.append(state)
        return x, states

    return jax_work(apply, params, problem.xs())


def linen_work(problem: Problem) -> Work:
    from flax import linen as nn

    cell = {"RNN": nn.SimpleCell, "LSTM": nn.OptimizedLSTMCell, "GRU": nn.GRUCell}[problem.cell]

    options = {"time_major": True, "return_carry": True}

    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x):
            states = []
            for _ in range(problem.num_layers):
                layer = [nn.RNN(cell(problem.hidden_size), **options) for _ in range(problem.directions)]
                state, x = (nn.Bidirectional(*layer, **options) if layer[1:] else layer[0])(x)
                states.append(state)
            return x, states

    x = problem.xs()
    return jax_work(Layers().apply, Layers().init(jax.random.key(0), x), x)


def haiku_work(problem: Problem) -> Work:
    import haiku as hk

    class TanhRNN(hk.RNNCore):
        """Haiku's own plain cell is a ReLU one."""

        def __call__(self, x, h):
            size = problem.hidden_size
            h = jnp.tanh(hk.Linear(size)(x) + hk.Linear(size, with_bias=False)(h))
            return h, h

        def initial_state(self, batch_size):
            return jnp.zeros((batch_size, problem.hidden_size))

    cell = {"RNN": TanhRNN, "LSTM": hk.LSTM, "GRU": hk.GRU}[problem.cell]

    def run(layer, direction, x):
        core = cell() if cell is TanhRNN else cell(problem.hidden_size)
        start = core.initial_state(problem.batch)
        ys, state = hk.dynamic_unroll(core, x, start, reverse=direction == 1)
        return state, ys

    layers = hk.without_apply_rng(hk.transform(lambda x: run_stack(problem, run, x)))
    x = problem.xs()
    return jax_work(layers.apply, layers.init(jax.random.key(0), x), x)


def equinox_work(problem: Problem) -> Work:
    import equinox as eqx

    class TanhCell(eqx.Module):
        """Equinox has no plain cell; this one is built as its others are."""

        weight_ih: jax.Array
        weight_hh: jax.Array
        bias: jax.Array

        def __init__(self, input_size, hidden_size, key):
            shapes = (hidden_size, input_size), (hidden_size, hidden_size), (hidden_size,)
            weights = (jnp.asarray(normal(*s, scale=hidden_size**-0.5)) for s in shapes)
            self.weight_ih, self.weight_hh, self.bias = weights

        def __call__(self, x, h):
            return jnp.tanh(self.weight_ih @ x + self.weight_hh @ h + self.bias)

    cell = {"RNN": TanhCell, "LSTM": eqx.nn.LSTMCell, "GRU": eqx.nn.GRUCell}[problem.cell]
    keys = iter(jax.random.split(jax.random.key(0), problem.num_layers * problem.directions))
    cells = [[cell(size, problem.hidden_size, key=next(keys)) for _ in range(problem.directions)] for size in problem.input_sizes]
    arrays, static = eqx.partition(cells, eqx.is_array)

    def apply(arrays, x):
        cells = eqx.combine(arrays, static)

        def run(layer, direction, x):
            def step(state, x):
                state = cells[layer][direction](x, state)
                return state, state[0] if problem.cell == "LSTM" else state

            def sequence(xs):
                zeros = jnp.zeros(problem.hidden_size)
                start = (zeros, zeros) if problem.cell == "LSTM" else zeros
                return jax.lax.scan(step, start, xs, reverse=direction == 1)

            return jax.vmap(sequence, in_axes=1, out_axes=(0, 1))(x)

        return run_stack(problem, run, x)

    return jax_work(apply, arrays, problem.xs())


def keras_work(problem: Problem) -> Work:
    import keras

    names = {"RNN": "SimpleRNN", "LSTM": "LSTM", "GRU": "GRU"}
    cell = getattr(keras.layers, names[problem.cell])
    xs = x = keras.Input((problem.time, problem.input_size), batch_size=problem.batch)
    states = []
    for _ in range(problem.num_layers):
        layer = cell(problem.hidden_size, return_sequences=True, return_state=True)
        x, *state = (keras.layers.Bidirectional(layer) if problem.bidirectional else layer)(x)
        states += state
    model = keras.Model(xs, [x, *states])
    fixed = [v.value for v in model.non_trainable_variables]

    def apply(params, x):
        return model.stateless_call(params, fixed, x)[0]

    params = [v.value for v in model.trainable_variables]
    return jax_work(apply, params, problem.xs().swapaxes(0, 1))


def cudnn_work(problem: Problem) -> Work:
    from jax.experimental import rnn

    if problem.cell != "LSTM":
        raise Skip("jax.experimental.rnn has the LSTM only")
    if jax.default_backend() != "gpu":
        raise Skip("jax.experimental.rnn needs an NVIDIA GPU")
    sizes = (*problem[3:6], problem.bidirectional)
    weights = rnn.init_lstm_weight(jax.random.key(0), *sizes)
    layers = problem.num_layers * problem.directions
    start = jnp.zeros((layers, problem.batch, problem.hidden_size))
    lengths = jnp.full(problem.batch, problem.time, jnp.int32)

    def apply(weights, x):
        return rnn.lstm(x, start, start, weights, lengths, *sizes[:3], 0.0, problem.bidirectional)

    return jax_work(apply, weights, problem.xs().swapaxes(0, 1))
