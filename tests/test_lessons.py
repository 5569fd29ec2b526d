"""Recurrent layers as five lessons write them out by hand: 000 equations and a regression, 001 models, 002 layers with start
states, 003 variants, directions and stacks, 004 the signature of `torch.nn.GRU`."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.models import GRUModel, LSTMModel, RNNModel

quickly = {"xla_backend_optimization_level": 0}  # compiles in half the time
run = jax.jit(lambda module, *args, **kwargs: module(*args, **kwargs), compiler_options=quickly)


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def close(got, want, tolerance=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def randomize(module, seed=0):
    """Random weights of a size that matters, biases included."""
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), nnx.state(module, nnx.Param))
    nnx.update(module, state)
    return module


def weights(module, layer=0, direction=0):
    """The arrays of one cell, in NumPy."""
    return [np.asarray(p.get_value(), np.float64) for p in module.params[layer][direction]]


# 000: the gates read [h, x] through one matrix each ----------------------------------------------------------------------


@pytest.fixture
def joined(x64):
    """A function from a cell to its parameters and the form of the lesson: W (hidden, hidden + input), b (hidden,)."""

    def draw(cell):
        params = jax.tree.map(lambda a: jnp.asarray(0.5 * random(*a.shape)), cell.init(jax.random.key(0), 3, 5))
        w = {g: np.concatenate([params.w_hh[:, k], params.w_ih[:, k]]).T for k, g in enumerate(cell.gates)}
        b = {g: params.b_ih[k] + params.b_hh[k] for k, g in enumerate(cell.gates)}
        return params, w, b

    return draw


def test_000_lstm_equations(joined):
    cell = jaxrnn.LSTMCell()
    params, w, b = joined(cell)
    x, h, c = random(3, seed=1), random(5, seed=2), random(5, seed=3)
    hx = np.concatenate([h, x])
    f = sigmoid(w["f"] @ hx + b["f"])
    i = sigmoid(w["i"] @ hx + b["i"])
    candidate = np.tanh(w["g"] @ hx + b["g"])
    c_new = f * c + i * candidate
    o = sigmoid(w["o"] @ hx + b["o"])
    state, y = cell.step(params, jaxrnn.LSTMState(jnp.asarray(h), jnp.asarray(c)), jnp.asarray(x))
    close((state.h, state.c, y), (o * np.tanh(c_new), c_new, o * np.tanh(c_new)), 1e-12)


def test_000_gru_equations_reset_before_the_product_and_z_weighs_the_candidate(joined):
    cell = jaxrnn.ChungGRUCell()
    params, w, b = joined(cell)
    x, h = random(3, seed=1), random(5, seed=2)
    z = sigmoid(w["z"] @ np.concatenate([h, x]) + b["z"])
    r = sigmoid(w["r"] @ np.concatenate([h, x]) + b["r"])
    candidate = np.tanh(w["n"] @ np.concatenate([r * h, x]) + b["n"])
    _, y = cell.step(params, jaxrnn.Hidden(jnp.asarray(h)), jnp.asarray(x))
    close(y, (1 - z) * h + z * candidate, 1e-12)


@pytest.mark.parametrize("model_class", [LSTMModel, GRUModel, RNNModel])
def test_000_a_model_is_the_last_step_through_a_linear_layer(model_class):
    model = randomize(model_class(10, 20, 2, rngs=nnx.Rngs(0)))
    x = jnp.asarray(random(5, 3, 10), jnp.float32)
    out = run(model.rnn, x)[0]
    kernel, bias = model.fc.kernel.get_value(), model.fc.bias.get_value()
    close(run(model, x), out[:, -1, :] @ kernel + bias[None])


@pytest.mark.slow
def test_000_the_models_are_trained_by_adam_on_the_squared_error():
    """Batch 5, 3 steps, 10 features, hidden 20, output 2, Adam 1e-3, 100 epochs: the loss falls, mostly at every epoch."""
    model = LSTMModel(10, 20, 2, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    x, y = jnp.asarray(random(5, 3, 10), jnp.float32), jnp.asarray(random(5, 2, seed=1), jnp.float32)

    @nnx.jit
    def train_step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
        with jax.numpy_dtype_promotion("standard"):  # Adam's own arithmetic needs it
            optimizer.update(model, grads)
        return loss

    losses = np.array([train_step(model, optimizer) for _ in range(100)])
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.8 * losses[0]


# 001: two layers, printed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_class", "gates"), [(RNNModel, 1), (LSTMModel, 4), (GRUModel, 3)])
def test_001_models_by_keyword_are_printed_with_their_sizes(model_class, gates):
    model = model_class(input_size=10, hidden_size=20, num_layers=2, output_size=1, rngs=nnx.Rngs(0))
    name = model_class.__name__
    text = f"{name}(\n  (rnn): {name.removesuffix('Model')}(10, 20, num_layers=2)\n  (fc): Linear(20, 1)\n)"
    assert str(model) == repr(model) == text
    count = sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == gates * 20 * (10 + 20 + 2) + gates * 20 * (20 + 20 + 2) + 21
    assert run(model, jnp.ones((5, 3, 10))).shape == (5, 1)


# 002: an optional start ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("module_class", [jaxrnn.LSTM, jaxrnn.GRU])
def test_002_output_is_hidden_wide_with_and_without_a_start(module_class):
    """(2, 2, 10), as in torch."""
    module = randomize(module_class(1, 10, num_layers=2, rngs=nnx.Rngs(0)))
    x = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])
    output, h_n = run(module, x)
    assert output.shape == (2, 2, 10)
    close(run(module, x, h_0=jax.tree.map(jnp.zeros_like, h_n)), (output, h_n))
    started, _ = run(module, x, h_0=jax.tree.map(jnp.ones_like, h_n))
    assert started.shape == (2, 2, 10)
    assert np.abs(started - output).min() > 1e-6


# 003: simple networks and the GRU with the reset gate after the product; stacked, both directions ---------------------------


def elman(x, h, w_ih, w_hh, b_ih, b_hh, φ=np.tanh):
    return φ(x @ w_ih[:, 0] + b_ih[0] + h @ w_hh[:, 0] + b_hh[0])


def gru(x, h, w_ih, w_hh, b_ih, b_hh):
    i_r, i_z, i_n = (x @ w_ih[:, k] + b_ih[k] for k in range(3))
    h_r, h_z, h_n = (h @ w_hh[:, k] + b_hh[k] for k in range(3))
    z = sigmoid(i_z + h_z)
    r = sigmoid(i_r + h_r)
    candidate = np.tanh(i_n + r * h_n)
    return (1 - z) * candidate + z * h


def layer(step, xs, h, arrays, backward=False):
    """A loop over time: (batch, time, hidden) and the last state."""
    outs = {}
    for t in reversed(range(xs.shape[1])) if backward else range(xs.shape[1]):
        outs[t] = h = step(xs[:, t], h, *arrays)
    return np.stack([outs[t] for t in sorted(outs)], axis=1), h


def by_hand(step, module, x, h_0):
    """Layer upon layer, h_t = [forward, backward] at each."""
    directions, finals = module.stack.num_directions, []
    for k in range(module.stack.num_layers):
        outs, ends = zip(
            *(layer(step, x, h_0[directions * k + d], weights(module, k, d), backward=d == 1) for d in range(directions)),
            strict=True,
        )
        x = np.concatenate(outs, axis=-1)
        finals.extend(ends)
    return x, np.stack(finals)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_003_simple_network_with_two_biases(nonlinearity):
    module = randomize(jaxrnn.RNN(3, 5, nonlinearity=nonlinearity, rngs=nnx.Rngs(0)))
    x, h_0 = random(2, 4, 3), random(1, 2, 5, seed=1)

    def step(*args):
        return elman(*args, φ={"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0)}[nonlinearity])

    close(run(module, jnp.asarray(x, jnp.float32), h_0=jnp.asarray(h_0, jnp.float32)), by_hand(step, module, x, h_0), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("module_class", "step"), [(jaxrnn.RNN, elman), (jaxrnn.GRU, gru)])
def test_003_layers_and_both_directions(module_class, step):
    module = randomize(module_class(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0)))
    x, h_0 = random(2, 4, 3), random(4, 2, 5, seed=1)
    output, h_n = run(module, jnp.asarray(x, jnp.float32), h_0=jnp.asarray(h_0, jnp.float32))
    assert output.shape == (2, 4, 10)
    assert h_n.shape == (4, 2, 5)
    close((output, h_n), by_hand(step, module, x, h_0), 1e-5)


# 004: the signature of nn.GRU, its shapes, its three examples --------------------------------------------------------------


@pytest.mark.parametrize("module_class", [jaxrnn.RNN, jaxrnn.LSTM, jaxrnn.GRU])
def test_004_every_argument_of_the_signature_is_taken(module_class):
    """All but `batch_first` have PyTorch's default: ours is True, Flax's layout."""
    arguments = {"num_layers": 1, "bias": True, "batch_first": True, "dropout": 0.0, "bidirectional": False}
    module = module_class(5, 3, **arguments, rngs=nnx.Rngs(0))
    default = module_class(5, 3, rngs=nnx.Rngs(0))
    assert (module.stack, module.batch_first) == (default.stack, default.batch_first)
    assert list(inspect.signature(module_class.__init__).parameters)[1:4] == ["input_size", "hidden_size", "num_layers"]
    other = module_class(5, 3, 2, bias=False, batch_first=False, dropout=0.5, bidirectional=True, rngs=nnx.Rngs(0))
    assert (other.stack.num_layers, other.stack.dropout, other.stack.num_directions) == (2, 0.5, 2)
    assert other.params[0][0].b_ih is other.params[0][0].b_hh is None


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("num_layers", "bidirectional"), [(1, False), (2, False), (1, True), (3, True)])
@pytest.mark.parametrize("module_class", [jaxrnn.GRU, jaxrnn.LSTM])
def test_004_shapes_of_input_and_output_and_states(module_class, num_layers, bidirectional, batch_first):
    module = module_class(5, 3, num_layers, bidirectional=bidirectional, batch_first=batch_first, rngs=nnx.Rngs(0))
    directions = 2 if bidirectional else 1
    x = jax.ShapeDtypeStruct((2, 4, 5) if batch_first else (4, 2, 5), jnp.float32)
    state = jax.ShapeDtypeStruct((num_layers * directions, 2, 3), jnp.float32)
    h_0 = (state, state) if module_class is jaxrnn.LSTM else state
    output, h_n = jax.eval_shape(lambda x, h_0: module(x, h_0=h_0), x, h_0)
    assert output.shape == ((2, 4) if batch_first else (4, 2)) + (directions * 3,)
    assert h_n == h_0


@pytest.mark.parametrize(
    ("options", "output_shape", "state_shape"),
    [({}, (2, 4, 3), (1, 2, 3)), ({"num_layers": 2}, (2, 4, 3), (2, 2, 3)), ({"bidirectional": True}, (2, 4, 6), (2, 2, 3))],
    ids=["one layer", "two layers", "two directions"],
)
def test_004_the_three_examples(options, output_shape, state_shape):
    module = randomize(jaxrnn.GRU(input_size=5, hidden_size=3, batch_first=True, **options, rngs=nnx.Rngs(0)))
    x = random(2, 4, 5)
    output, h_n = run(module, jnp.asarray(x, jnp.float32))
    assert (output.shape, h_n.shape) == (output_shape, state_shape)
    close((output, h_n), by_hand(gru, module, x, np.zeros(state_shape)), 1e-5)


@pytest.mark.slow
def test_004_time_first_is_the_same_numbers_transposed():
    x, h_0 = jnp.asarray(random(2, 4, 5), jnp.float32), jnp.asarray(random(4, 2, 3, seed=1), jnp.float32)
    batch_first = randomize(jaxrnn.GRU(5, 3, 2, bidirectional=True, rngs=nnx.Rngs(0)))
    time_first = randomize(jaxrnn.GRU(5, 3, 2, bidirectional=True, batch_first=False, rngs=nnx.Rngs(0)))
    output, h_n = run(batch_first, x, h_0=h_0)
    transposed, same = run(time_first, x.swapaxes(0, 1), h_0=h_0)
    np.testing.assert_array_equal(transposed.swapaxes(0, 1), output)
    np.testing.assert_array_equal(same, h_n)
