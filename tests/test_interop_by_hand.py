"""Modules from params made by hand: what they compute, and every refusal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells
from jaxrnn.cells import GateParams, Hidden, LSTMState
from jaxrnn.interop import flip_update_gate, from_params, to_torch

TIME, BATCH, INPUT, HIDDEN = 6, 3, 2, 4
CELLS = {
    "RNN": cells.RNNCell(nonlinearity="relu"),
    "LSTM": cells.LSTMCell(),
    "sigmoid LSTM": cells.LSTMCell(activation="sigmoid"),
    "GRU": cells.GRUCell(),
    "projected": cells.ProjectedLSTMCell(proj_size=3),
    "peephole": cells.PeepholeLSTMCell(),
    "layer norm": cells.LayerNormLSTMCell(),
    "IndRNN": cells.IndRNNCell(),
}


def draw(cell, input_size, hidden_size, seed=0, dtype="float32", bias=True):
    """Params of random numbers, none of them zero."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, hidden_size, bias=bias))
    return jax.tree.map(lambda a: (0.6 * rng.standard_normal(a.shape)).astype(dtype), shapes)


def make_state(cell, hidden_size, seed=5):
    rng = np.random.default_rng(seed)
    sizes = [cell.output_size(hidden_size), hidden_size][: len(cell.State._fields)]
    return cell.State(*(rng.standard_normal(size).astype("float32") for size in sizes))


@pytest.mark.parametrize("name", CELLS)
def test_a_module_of_given_params_unrolls_its_cell(name):
    cell = CELLS[name]
    params, state = draw(cell, INPUT, HIDDEN), make_state(cell, HIDDEN)
    xs = np.random.default_rng(1).standard_normal((TIME, BATCH, INPUT)).astype("float32")
    module = from_params(cell, params, initial_state=state, batch_first=False)
    start = cell.State(*(jnp.broadcast_to(a, (BATCH, *a.shape)) for a in state))
    want, ys = jax.jit(lambda: jaxrnn.unroll(cell, params, xs, start))()
    output, h_n = nnx.jit(lambda module: module(xs))(module)
    np.testing.assert_allclose(output, ys, rtol=1e-6, atol=1e-6)
    for got, a in zip(h_n if isinstance(h_n, tuple) else (h_n,), want, strict=True):
        np.testing.assert_allclose(got[0], a, rtol=1e-6, atol=1e-6)
    kinds = {"RNN": jaxrnn.RNN, "LSTM": jaxrnn.LSTM, "GRU": jaxrnn.GRU, "projected": jaxrnn.LSTM}
    assert type(module) is kinds.get(name, jaxrnn.Recurrent)


def test_layers_and_directions_stand_where_they_were_put():
    """Of hidden sizes of their own, and each its initial state."""
    cell = cells.GRUCell()
    params = [[draw(cell, 2, 4, 0), draw(cell, 2, 4, 1)], (draw(cell, 8, 5, 2), draw(cell, 8, 5, 3))]
    states = [[Hidden(np.full(4, 0.1, "f")), Hidden(np.full(4, 0.2, "f"))], (np.full(5, 0.3, "f"), np.full(5, 0.4, "f"))]
    module = from_params(cell, params, initial_state=states, dropout=0.5)
    assert module.stack.hidden_size == (4, 5)
    assert module.stack.dropout == 0.5
    for k in (0, 1):
        for d in (0, 1):
            for field in GateParams._fields:
                np.testing.assert_array_equal(getattr(module.params[k][d], field).get_value(), getattr(params[k][d], field))
            want = states[k][d].h if k == 0 else states[k][d]
            np.testing.assert_array_equal(module.learned[k][d].h.get_value(), want)


def test_the_arrays_are_copies_and_keep_their_dtype():
    params = draw(cells.LSTMCell(), 2, 3, dtype="float16", bias=False)
    module = from_params(cells.LSTMCell(), params)
    before = np.array(params.w_ih)
    params.w_ih[:] = 7
    assert module.params[0][0].w_ih.get_value().dtype == jnp.float16
    np.testing.assert_array_equal(module.params[0][0].w_ih.get_value(), before)
    assert not module.stack.bias


@pytest.mark.slow
def test_a_module_taken_apart_and_put_together_is_the_same(x64):
    """Seen through the keys of PyTorch, which name every array."""
    theirs = jaxrnn.LSTM(2, 3, num_layers=2, bidirectional=True, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    params = jax.tree.map(lambda v: np.asarray(v.get_value()), theirs.params, is_leaf=lambda v: isinstance(v, nnx.Variable))
    ours = from_params(cells.LSTMCell(), [list(layer) for layer in params])
    torch = pytest.importorskip("torch")
    assert all(torch.equal(a, b) for a, b in zip(to_torch(ours).values(), to_torch(theirs).values(), strict=True))


def test_the_update_gate_flipped_is_the_same_network_of_the_other_kind(x64):
    """σ(−a) = 1 − σ(a): a loop in NumPy whose z takes the candidate, against `GRUCell`, whose z keeps the state."""
    params = draw(cells.GRUCell(), INPUT, HIDDEN, dtype="float64")
    xs = np.random.default_rng(1).standard_normal((TIME, INPUT))

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    h = np.zeros(HIDDEN)
    for x in xs:
        (x_r, x_z, x_n), (h_r, h_z, h_n) = (np.einsum("i,igh->gh", a, w) + b for a, w, b in ((x, *params[::2]), (h, *params[1::2])))
        z, n = sigmoid(x_z + h_z), np.tanh(x_n + sigmoid(x_r + h_r) * h_n)
        h = z * n + (1 - z) * h
    _, h_n = from_params(cells.GRUCell(), flip_update_gate(params))(xs)
    np.testing.assert_allclose(h_n[0], h, rtol=1e-12)
    _, wrong = from_params(cells.GRUCell(), params)(xs)
    assert np.abs(wrong[0] - h).max() > 0.01
    for a, b in zip(flip_update_gate(flip_update_gate(params)), params, strict=True):
        np.testing.assert_array_equal(a, b)


GRU, LSTM = cells.GRUCell(), cells.LSTMCell()
GOOD = draw(GRU, 2, 3)
REFUSED = {
    "no cell": (TypeError, r"`cell` should be a jaxrnn cell, .* got type", lambda: from_params(cells.GRUCell, GOOD)),
    "a dict": (
        TypeError,
        r"`params` should be a GateParams of GRUCell\(\), or a list of layers.*got dict",
        lambda: from_params(GRU, {}),
    ),
    "a tuple of arrays": (TypeError, r"`params` should be a GateParams", lambda: from_params(GRU, tuple(GOOD))),
    "params of another kind": (
        TypeError,
        r"`params` should be a PeepholeParams of PeepholeLSTMCell\(\)",
        lambda: from_params(cells.PeepholeLSTMCell(), draw(LSTM, 2, 3)),
    ),
    "no layer": (TypeError, r"or a list of layers", lambda: from_params(GRU, [])),
    "three directions": (TypeError, r"or a pair", lambda: from_params(GRU, [[GOOD] * 3])),
    "other directions": (
        ValueError,
        r"as many directions as the first, got \[1, 2\]",
        lambda: from_params(GRU, [GOOD, (GOOD, GOOD)]),
    ),
    "gates of another cell": (
        ValueError,
        r"w_ih should be float32 \(2, 4, 3\), got float32 \(2, 3, 3\)",
        lambda: from_params(LSTM, GOOD),
    ),
    "gates side by side": (
        ValueError,
        r"`params\[0\]\[0\].w_ih` should have 3 axes, the last of them \(input, gates, hidden\), got shape \(2, 9\)",
        lambda: from_params(GRU, GOOD._replace(w_ih=GOOD.w_ih.reshape(2, 9))),
    ),
    "transposed": (
        ValueError,
        r"params\[1\]\[0\].w_hh should be float32 \(3, 3, 3\), got float32 \(3, 3, 4\)",
        lambda: from_params(GRU, [GOOD, draw(GRU, 3, 3)._replace(w_hh=np.ones((3, 3, 4), "f"))]),
    ),
    "one bias": (ValueError, r"b_hh should be float32 \(3, 3\), got none", lambda: from_params(GRU, GOOD._replace(b_hh=None))),
    "no weights": (ValueError, r"w_ih` should have 3 axes.*got none", lambda: from_params(GRU, GOOD._replace(w_ih=None))),
    "a list as array": (TypeError, r"b_ih.*should be an array, got float", lambda: from_params(GRU, GOOD._replace(b_ih=1.5))),
    "integers": (
        TypeError,
        r"w_hh` should have one of the dtypes.*got int",
        lambda: from_params(GRU, GOOD._replace(w_hh=GOOD.w_hh.astype(int))),
    ),
    "float64": (TypeError, r"should not be float64 while", lambda: from_params(GRU, draw(GRU, 2, 3, dtype="float64"))),
    "mixed dtypes": (
        ValueError,
        r"b_ih should be float32 \(3, 3\), got float16",
        lambda: from_params(GRU, GOOD._replace(b_ih=GOOD.b_ih.astype("float16"))),
    ),
    "layers that do not meet": (
        ValueError,
        r"params\[1\]\[0\].w_ih should be float32 \(3, 3, 3\)",
        lambda: from_params(GRU, [GOOD, GOOD]),
    ),
    "a state of another cell": (
        TypeError,
        r"`initial_state` should be a state LSTMState\(h, c\), or a list of layers",
        lambda: from_params(LSTM, draw(LSTM, 2, 3), initial_state=Hidden(np.ones(3, "f"))),
    ),
    "a state with a batch": (
        ValueError,
        r"initial_state\[0\]\[0\].h should be float32 \(3,\), got float32 \(1, 3\)",
        lambda: from_params(GRU, GOOD, initial_state=np.ones((1, 3), "f")),
    ),
    "a state for one layer of two": (
        ValueError,
        r"initial_state\[1\]\[0\].h should be float32 \(3,\), got none",
        lambda: from_params(GRU, [GOOD, draw(GRU, 3, 3)], initial_state=[np.ones(3, "f")]),
    ),
    "a state without c": (
        TypeError,
        r"`initial_state\[0\]\[0\].c` should be an array, got str",
        lambda: from_params(LSTM, draw(LSTM, 2, 3), initial_state=LSTMState(np.ones(3, "f"), "c")),
    ),
    "four gates": (
        ValueError,
        r"flip_update_gate: `params.w_ih` should have three gates.*got shape \(2, 4, 3\)",
        lambda: flip_update_gate(draw(LSTM, 2, 3)),
    ),
    "no params": (TypeError, r"flip_update_gate: `params` should be a GateParams, got list", lambda: flip_update_gate([GOOD])),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_by_name(case):
    kind, message, call = REFUSED[case]
    with pytest.raises(kind, match=message):
        call()
