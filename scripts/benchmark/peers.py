"""The libraries beside `jaxrnn`, each as its own documentation would use it.

Every function returns the `Work` of one library for one problem, from zero states and in float32. All read time-first arrays,
except Keras and cuDNN, which know batch-first ones only.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from work import Problem, Skip, Work, jax_work, normal, run_stack


def torch_work(problem: Problem) -> Work:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch.nn, problem.cell)
    module = kind(problem.input_size, problem.hidden_size, problem.num_layers, bidirectional=problem.bidirectional).to(device)
    params, x = list(module.parameters()), torch.from_numpy(problem.xs()).to(device).requires_grad_()
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run():
        outputs, states = module(x)
        return [outputs, *(states if isinstance(states, tuple) else (states,))]

    def forward():
        with torch.inference_mode():
            results = run()
        wait()
        return results

    weights = [torch.from_numpy(normal(*a.shape, seed=i)).to(device) for i, a in enumerate(run(), 1)]

    def train():
        loss = sum(torch.dot(a.flatten(), w.flatten()) for a, w in zip(run(), weights, strict=True))
        *d_params, dx = torch.autograd.grad(loss, [*params, x])
        wait()
        return loss.detach(), d_params, dx

    state = None

    def step():
        nonlocal state
        with torch.inference_mode():
            y, state = module(x[:1], state)
        wait()
        return y

    return Work({"forward": (forward, ()), "train": (train, ()), "step": (step, ())})


def nnx_work(problem: Problem) -> Work:
    from flax import nnx

    cell = {"RNN": nnx.SimpleCell, "LSTM": nnx.OptimizedLSTMCell, "GRU": nnx.GRUCell}[problem.cell]
    rngs, options = nnx.Rngs(0), {"time_major": True, "return_carry": True}

    def layer(size):
        layers = [nnx.RNN(cell(size, problem.hidden_size, rngs=rngs), **options) for _ in range(problem.directions)]
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

    class TanhRNN(hk.VanillaRNN):
        """Haiku's own plain cell is a ReLU one."""

        def __call__(self, x, h):
            h = jnp.tanh(hk.Linear(self.hidden_size)(x) + hk.Linear(self.hidden_size, with_bias=False)(h))
            return h, h

    cell = {"RNN": TanhRNN, "LSTM": hk.LSTM, "GRU": hk.GRU}[problem.cell]

    def run(layer, direction, x):
        core = cell(problem.hidden_size)
        ys, state = hk.dynamic_unroll(core, x, core.initial_state(problem.batch), reverse=direction == 1)
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
            self.weight_ih, self.weight_hh, self.bias = (jnp.asarray(normal(*s, scale=hidden_size**-0.5)) for s in shapes)

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

            zeros = jnp.zeros(problem.hidden_size)
            start = (zeros, zeros) if problem.cell == "LSTM" else zeros
            return jax.vmap(lambda xs: jax.lax.scan(step, start, xs, reverse=direction == 1), 1, (0, 1))(x)

        return run_stack(problem, run, x)

    return jax_work(apply, arrays, problem.xs())


def keras_work(problem: Problem) -> Work:
    import keras

    cell = getattr(keras.layers, {"RNN": "SimpleRNN"}.get(problem.cell, problem.cell))
    xs = x = keras.Input((problem.time, problem.input_size), batch_size=problem.batch)
    states = []
    for _ in range(problem.num_layers):
        layer = cell(problem.hidden_size, return_sequences=True, return_state=True)
        x, *state = (keras.layers.Bidirectional(layer) if problem.bidirectional else layer)(x)
        states += state
    model = keras.Model(xs, [x, *states])
    fixed = [v.value for v in model.non_trainable_variables]
    apply = lambda params, x: model.stateless_call(params, fixed, x)[0]
    return jax_work(apply, [v.value for v in model.trainable_variables], problem.xs().swapaxes(0, 1))


def cudnn_work(problem: Problem) -> Work:
    from jax.experimental import rnn

    if problem.cell != "LSTM" or jax.default_backend() != "gpu":
        raise Skip("jax.experimental.rnn has the LSTM only, and needs an NVIDIA GPU")
    sizes = (*problem[3:6], problem.bidirectional)
    start = jnp.zeros((problem.num_layers * problem.directions, problem.batch, problem.hidden_size))
    lengths = jnp.full(problem.batch, problem.time, jnp.int32)
    apply = lambda weights, x: rnn.lstm(x, start, start, weights, lengths, *sizes[:3], 0.0, problem.bidirectional)
    return jax_work(apply, rnn.init_lstm_weight(jax.random.key(0), *sizes), problem.xs().swapaxes(0, 1))


def onnxruntime_work(problem: Problem) -> Work:
    """The model that `jaxrnn.interop.to_onnx` makes, states in and out."""
    from flax import nnx

    import jaxrnn
    from jaxrnn.interop import to_onnx

    module = getattr(jaxrnn, problem.cell)(*problem[3:6], bidirectional=problem.bidirectional, batch_first=False, rngs=nnx.Rngs(0))
    run = session(to_onnx(module, states=True).SerializeToString())
    x, names = problem.xs(), [i.name for i in run.get_inputs()]
    zeros = np.zeros((problem.num_layers * problem.directions, problem.batch, problem.hidden_size), np.float32)
    whole = dict(zip(names, [x, *[zeros] * (len(names) - 1)], strict=True))
    stream = whole | {names[0]: x[:1]}

    def step():
        y, *states = run.run(None, stream)
        stream.update(zip(names[1:], states, strict=True))
        return y

    return Work({"forward": (lambda: run.run(None, whole), ()), "step": (step, ())})


def jax2onnx_work(problem: Problem) -> Work:
    """The Loop that jax2onnx makes of a scan, in onnxruntime. It pins old versions of other packages: the environment variable
    JAX2ONNX names a Python that has it."""
    if "JAX2ONNX" not in os.environ or problem[5:] != (1, False) or problem.cell != "LSTM":
        raise Skip("one layer of an LSTM only, and JAX2ONNX=path/to/a/python that has jax2onnx")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "loop.onnx")
        subprocess.run([os.environ["JAX2ONNX"], Path(__file__).with_name("to_loop.py"), path, *map(str, problem[1:5])], check=True)
        run = session(path.read_bytes())
    x = {run.get_inputs()[0].name: problem.xs()}
    return Work({"forward": (lambda: run.run(None, x), ())})


def session(model: bytes):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = len(os.sched_getaffinity(0)), 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
