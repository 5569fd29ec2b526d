"""The modules and models against PyTorch's, given its weights: values, gradients, training."""

from functools import partial
from itertools import combinations, product
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
import jaxrnn.models

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # arrays this small only wait for a second thread

TIME, BATCH, INPUT, HIDDEN, PROJ = 7, 6, 3, 5, 2
LENGTHS = [7, 5, 1, 3, 7, 2]
QUICKLY = {"xla_backend_optimization_level": 0}  # these programs run once: compiling is what takes time

OPTIONS = {
    "kind": ["tanh", "relu", "LSTM", "projected", "GRU"],
    "layers": [1, 2, 3],
    "bidirectional": [False, True],
    "bias": [True, False],
    "layout": ["batch first", "time first", "unbatched"],
    "packed": [True, False],
    "h_0": [True, False],
}


def pairs(case):
    """Every two options with their values, and three where a mistake is likeliest to hide."""
    kind, layers, bidirectional, _, layout, packed, _ = case
    return {
        *combinations(enumerate(case), 2),
        (kind, layers, bidirectional),
        (kind, layout, packed),
    }


def covering():
    """Few cases in which every value of every option meets every other: greedily the best."""
    left = sorted(product(*OPTIONS.values()), key=str)
    Random(0).shuffle(left)
    wanted = set().union(*map(pairs, left))
    while wanted:
        best = max(left, key=lambda case: len(pairs(case) & wanted))
        wanted -= pairs(best)
        yield best


CASES = list(covering())


def label(case):
    kind, layers, bidirectional, bias, layout, packed, h_0 = case
    flags = {"bidirectional": bidirectional, "no bias": not bias, "packed": packed, "h_0": h_0}
    return ", ".join([kind, f"{layers} layers", layout, *(name for name, on in flags.items() if on)])


# From PyTorch -------------------------------------------------------------------------------------


def arrays(theirs, layer, direction, get):
    """PyTorch's arrays of one layer and direction, by our names and in our shapes."""
    found = {}
    for ours, name in [
        ("w_ih", "weight_ih"),
        ("w_hh", "weight_hh"),
        ("b_ih", "bias_ih"),
        ("b_hh", "bias_hh"),
        ("w_hr", "weight_hr"),
    ]:
        parameter = getattr(theirs, f"{name}_l{layer}{'_reverse' * direction}", None)
        if parameter is not None:
            a = get(parameter)
            gates = (-1, theirs.hidden_size)
            match ours:
                case "w_ih" | "w_hh":
                    a = a.reshape(*gates, a.shape[1]).transpose(2, 0, 1)
                case "w_hr":
                    a = a.T
                case _:
                    a = a.reshape(gates)
            found[ours] = np.array(a)
    return found


def value(parameter):
    return parameter.detach().numpy()


def gradient(parameter):
    return parameter.grad.numpy()


def take_weights(ours, theirs):
    """Give the module `ours` the weights of the PyTorch module `theirs`."""
    for layer, directions in enumerate(ours.params):
        for direction, params in enumerate(directions):
            found = arrays(theirs, layer, direction, value)
            assert set(found) == {name for name, a in params._asdict().items() if a is not None}
            for name, a in found.items():
                parameter = getattr(params, name)
                assert parameter[...].shape == a.shape
                parameter[...] = jnp.asarray(a, parameter[...].dtype)


def build(kind, layers, bidirectional, bias, batch_first):
    """The same network twice: ours, with PyTorch's initial weights, and PyTorch's; in float64."""
    shared = {
        "num_layers": layers,
        "bidirectional": bidirectional,
        "bias": bias,
        "batch_first": batch_first,
    }
    name = {"tanh": "RNN", "relu": "RNN", "projected": "LSTM"}.get(kind, kind)
    special = {
        "tanh": {"nonlinearity": "tanh"},
        "relu": {"nonlinearity": "relu"},
        "projected": {"proj_size": PROJ},
    }
    shared |= special.get(kind, {})
    theirs = getattr(torch.nn, name)(INPUT, HIDDEN, **shared, dtype=torch.float64)
    ours = getattr(jaxrnn, name)(INPUT, HIDDEN, **shared, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    take_weights(ours, theirs)
    return ours, theirs


def run_torch(theirs, x, h_0, lengths):
    """Output and final states; `lengths` goes through a packed sequence, which needs a batch."""
    if lengths is None:
        output, h_n = theirs(x, h_0)
        return output, h_n
    alone = x.ndim == 2
    if alone:
        x = x.unsqueeze(0 if theirs.batch_first else 1)
        h_0 = None if h_0 is None else jax.tree.map(lambda h: h.unsqueeze(1), h_0)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths.reshape(-1), batch_first=theirs.batch_first, enforce_sorted=False)
    output, h_n = theirs(packed, h_0)
    output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, batch_first=theirs.batch_first, total_length=TIME)
    if alone:
        return output.squeeze(0 if theirs.batch_first else 1), jax.tree.map(lambda h: h.squeeze(1), h_n)
    return output, h_n


def assert_close(got, want, tolerance):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


# One call -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=label)
def test_values_and_gradients_are_pytorchs(case, x64):
    """Outputs, final states, and gradients of every weight, the input and the start state."""
    kind, layers, bidirectional, bias, layout, packed, with_h_0 = case
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    ours, theirs = build(kind, layers, bidirectional, bias, layout != "time first")

    batch = () if layout == "unbatched" else (BATCH,)
    x = rng.standard_normal((BATCH, TIME, INPUT) if layout == "batch first" else (TIME, *batch, INPUT))
    rows = layers * (1 + bidirectional)
    widths = {"LSTM": (HIDDEN, HIDDEN), "projected": (PROJ, HIDDEN)}.get(kind, (HIDDEN,))
    h_0 = tuple(rng.standard_normal((rows, *batch, width)) for width in widths) if with_h_0 else None
    lengths = np.array(LENGTHS if batch else LENGTHS[1]) if packed else None

    def pack(h, convert):  # a lone h_0 stands by itself, a pair is a tuple
        return None if h is None else tuple(map(convert, h)) if len(h) > 1 else convert(h[0])

    def weigh(results, convert):
        weights = np.random.default_rng(1)
        return sum((a * convert(weights.standard_normal(a.shape))).sum() for a in results)

    their_x = torch.tensor(x, requires_grad=True)
    their_h_0 = pack(h_0, lambda h: torch.tensor(h, requires_grad=True))
    their_lengths = None if lengths is None else torch.tensor(lengths)
    want = jax.tree.leaves(run_torch(theirs, their_x, their_h_0, their_lengths))
    weigh(want, torch.tensor).backward()

    graph, weights, rest = nnx.split(ours, nnx.Param, ...)

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(weights, x, h_0, lengths):
        def loss(weights, x, h_0):
            got = jax.tree.leaves(nnx.merge(graph, weights, rest)(x, h_0=h_0, lengths=lengths))
            return weigh(got, jnp.asarray), got

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True, allow_int=True)(weights, x, h_0)

    (d_weights, d_x, d_h_0), got = run(weights, jnp.asarray(x), pack(h_0, jnp.asarray), lengths)

    assert [a.shape for a in got] == [tuple(a.shape) for a in want]
    for ours_now, theirs_now in zip(got, want, strict=True):
        assert_close(ours_now, theirs_now.detach(), 1e-10)
    assert_close(d_x, their_x.grad, 1e-10)
    for ours_now, theirs_now in zip(jax.tree.leaves(d_h_0), jax.tree.leaves(their_h_0), strict=True):
        assert_close(ours_now, theirs_now.grad, 1e-10)
    for layer, directions in enumerate(nnx.merge(graph, d_weights, rest).params):
        for direction, gradients in enumerate(directions):
            for name, theirs_now in arrays(theirs, layer, direction, gradient).items():
                assert_close(getattr(gradients, name)[...], theirs_now, 1e-10)


# A training run -----------------------------------------------------------------------------------


class TorchModel(torch.nn.Module):
    """A recurrent network, and a linear layer on its last output."""

    def __init__(self, kind, layers, dtype):
        super().__init__()
        self.rnn = getattr(torch.nn, kind)(10, 20, num_layers=layers, batch_first=True, dtype=dtype)
        self.fc = torch.nn.Linear(20, 2, dtype=dtype)

    def forward(self, x):
        output, _ = self.rnn(x)
        return self.fc(output[:, -1, :])


def torch_losses(model, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def our_losses(model, x, y):
    graph, weights, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.adam(1e-3)

    def loss(weights):
        return jnp.mean((nnx.merge(graph, weights, rest)(x) - y) ** 2)

    def epoch(carry, _):
        weights, memory = carry
        now, gradients = jax.value_and_grad(loss)(weights)
        with jax.numpy_dtype_promotion("standard"):  # optax does not know the strict one
            updates, memory = optimizer.update(gradients, memory, weights)
        return (optax.apply_updates(weights, updates), memory), now

    @partial(jax.jit, compiler_options=QUICKLY)
    def train(weights):
        return jax.lax.scan(epoch, (weights, optimizer.init(weights)), length=100)[1]

    return train(weights)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-9), ("float32", 5e-5)])
def test_every_loss_of_100_epochs_is_pytorchs(kind, layers, dtype, tolerance, x64):
    torch.manual_seed(1)
    theirs = TorchModel(kind, layers, getattr(torch, dtype))
    model_class = getattr(jaxrnn.models, f"{kind}Model")
    ours = model_class(10, 20, 2, num_layers=layers, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    take_weights(ours.rnn, theirs.rnn)
    ours.fc.kernel[...] = jnp.asarray(value(theirs.fc.weight).T)
    ours.fc.bias[...] = jnp.asarray(value(theirs.fc.bias))

    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((5, 3, 10)).astype(dtype), rng.standard_normal((5, 2)).astype(dtype)
    want = torch_losses(theirs, torch.tensor(x), torch.tensor(y))
    got = our_losses(ours, jnp.asarray(x), jnp.asarray(y))
    assert got.dtype == dtype
    assert want[-1] < 0.9 * want[0]
    assert_close(got, want, tolerance)
