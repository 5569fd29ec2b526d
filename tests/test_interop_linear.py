"""Linear recurrent units in their authors' layouts, against their equations in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import from_minimal_lru, from_recurrent_gemma, to_minimal_lru, to_recurrent_gemma

TIME, WIDTH, BLOCKS, UNITS, INPUT = 7, 6, 3, 5, 4


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def drawn(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def gemma(rng):
    gate = lambda: {"w": drawn(rng, BLOCKS, WIDTH // BLOCKS, WIDTH // BLOCKS), "b": drawn(rng, BLOCKS, WIDTH // BLOCKS)}
    return {"a_param": drawn(rng, WIDTH) - 3, "a_gate": gate(), "input_gate": gate()}


def minimal(rng):
    shapes = {"B_re": (UNITS, INPUT), "B_im": (UNITS, INPUT), "C_re": (INPUT, UNITS), "C_im": (INPUT, UNITS), "D": (INPUT,)}
    names = ("nu_log", "theta_log", "gamma_log", *shapes)
    return {name: drawn(rng, *shapes.get(name, (UNITS,))) for name in names}


def same(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        if isinstance(value, dict):
            same(got[name], value)
        else:
            np.testing.assert_array_equal(got[name], value)


def test_an_rg_lru_of_recurrent_gemma_goes_on_from_a_state_as_there():
    """In the middle of a sequence; at its first step that code multiplies the input by 1 instead of the root."""
    rng = np.random.default_rng(0)
    params, x, start = gemma(rng), drawn(rng, 2, TIME, WIDTH), drawn(rng, 2, WIDTH)
    blocks = x.reshape(2, TIME, BLOCKS, -1)
    gate = lambda p: sigmoid(np.einsum("bthi,hij->bthj", blocks, p["w"]) + p["b"]).reshape(x.shape)
    log_a = -8 * gate(params["a_gate"]) * np.log1p(np.exp(params["a_param"]))
    driven = np.sqrt(1 - np.exp(2 * log_a)) * gate(params["input_gate"]) * x
    h, want = start, []
    for t in range(TIME):
        h = np.exp(log_a[:, t]) * h + driven[:, t]
        want.append(h)
    module = from_recurrent_gemma(params)
    output, _ = module(jnp.asarray(x), h_0=jnp.asarray(start)[None])
    np.testing.assert_allclose(output, np.stack(want, 1), rtol=2e-5, atol=2e-6)
    same(to_recurrent_gemma(module), params)


def test_an_lru_of_minimal_lru_gives_what_it_gives_there():
    rng = np.random.default_rng(1)
    params, x = minimal(rng), drawn(rng, TIME, INPUT)
    eigenvalue = np.exp(-np.exp(params["nu_log"]) + 1j * np.exp(params["theta_log"]))
    b = (params["B_re"] + 1j * params["B_im"]) * np.exp(params["gamma_log"])[:, None]
    h, want = np.zeros(UNITS), []
    for x_t in x:
        h = eigenvalue * h + b @ x_t
        want.append(((params["C_re"] + 1j * params["C_im"]) @ h).real + params["D"] * x_t)
    module, w_out, d = from_minimal_lru(params)
    got = np.asarray(module(jnp.asarray(x))[0]) @ w_out + d * x
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    same(to_minimal_lru(module, w_out, d), params)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda p: p.pop("a_gate"), TypeError, r"`params` should be a dict that has 'a_gate', got a_param, input_gate"),
        (lambda p: p["a_gate"].pop("b"), TypeError, r"`a_gate` should be a dict that has 'b', got w"),
        (lambda p: p.update(a_param=[1.0]), TypeError, r"`params\['a_param'\]` should be an array, got list"),
        (
            lambda p: p.update(a_param=np.ones(5, "float32")),
            ValueError,
            r"`a_gate.w` should have shape .* width 5, .* got \(3, 2, 2\)",
        ),
        (lambda p: p["input_gate"].update(b=np.ones(6)), ValueError, r"`input_gate.b` should have shape \(3, 2\), got \(6,\)"),
        (lambda p: p["input_gate"].update(w=np.ones((1, 6, 6))), ValueError, r"`input_gate.w` should .* got \(1, 6, 6\)"),
    ],
)
def test_what_does_not_fit_an_rg_lru_is_named(change, error, text):
    params = gemma(np.random.default_rng(0))
    change(params)
    with pytest.raises(error, match=rf"from_recurrent_gemma: {text}"):
        from_recurrent_gemma(params)


def test_what_does_not_fit_an_lru_is_named():
    params = minimal(np.random.default_rng(0))
    with pytest.raises(TypeError, match=r"from_minimal_lru: `params` should be a dict that has 'D', got "):
        from_minimal_lru({name: a for name, a in params.items() if name != "D"})
    with pytest.raises(
        ValueError, match=r"`C_im` should have shape \(4, 5\), for `nu_log` of 5 units and `D` of 4 outputs, got \(5, 4\)"
    ):
        from_minimal_lru(params | {"C_im": params["C_im"].T})
    module, w_out, d = from_minimal_lru(params)
    with pytest.raises(ValueError, match=r"to_minimal_lru: `w_out` should have 10 rows, two for each unit, got shape \(4, 10\)"):
        to_minimal_lru(module, w_out.T, d)
    with pytest.raises(ValueError, match=r"to_minimal_lru: `d` should have shape \(4,\), a weight for each output, got \(7,\)"):
        to_minimal_lru(module, w_out, np.ones(7))
    for option in ({"learn_initial_state": True}, {"zoneout": 0.5}, {"skip_connections": True}):
        richer = jaxrnn.Recurrent(jaxrnn.LRUCell(), 4, 5, **option, rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match=rf"to_minimal_lru: `{next(iter(option))}` should be "):
            to_minimal_lru(richer, w_out, d)
    other = jaxrnn.Recurrent(jaxrnn.RGLRUCell(), 3, 4, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match=r"to_minimal_lru: `module` should be a jaxrnn.Recurrent of LRUCell, .* got Recurrent"):
        to_minimal_lru(other, w_out, d)
    with pytest.raises(ValueError, match=r"to_recurrent_gemma: `module` should have input_size = hidden_size"):
        to_recurrent_gemma(other)
