"""What does not fit is refused by name, rule and what came; what fits is taken."""

import itertools
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from jax import export

import jaxrnn
from jaxrnn import initializers
from jaxrnn.cells import GatedCell, Hidden

quickly = {"xla_backend_optimization_level": 0}  # compiles in half the time


@pytest.fixture(autouse=True)
def as_users_run_it(monkeypatch):
    """Without the run-time check of annotations, which would speak first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refuses(error, text, call, *args, **kwargs):
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    assert str(caught.value) == text


# Construction ------------------------------------------------------------------------------------------------------------


def nnx_module(name, *args, **options):
    return getattr(jaxrnn, name)(*args, **({"rngs": nnx.Rngs(0)} | options))


def linen_module(name, *args, **options):
    return getattr(jaxrnn.linen, name)(*args, **options)


SIZES = [
    (("GRU", 3, 0), {}, ValueError, "GRU: `hidden_size` should be at least 1, got 0."),
    (("GRU", 3, -1), {}, ValueError, "GRU: `hidden_size` should be at least 1, got -1."),
    (("LSTM", 3, 3.0), {}, TypeError, "LSTM: `hidden_size` should be an integer, got 3.0."),
    (("RNN", 3, "8"), {}, TypeError, "RNN: `hidden_size` should be an integer, got '8'."),
    (("RNN", 3, True), {}, TypeError, "RNN: `hidden_size` should be an integer, got True."),
    (("GRU", 3, [4, 5], 2), {}, TypeError, "GRU: `hidden_size` should be an integer or a tuple of them, got [4, 5]."),
    (
        ("GRU", 3, (4, 5), 3),
        {},
        ValueError,
        "GRU: `hidden_size` should have one entry for each of num_layers=3, got (4, 5).",
    ),
    (("GRU", 0, 5), {}, ValueError, "GRU: `input_size` should be at least 1, got 0."),
    (("LSTM", 3, 5, 0), {}, ValueError, "LSTM: `num_layers` should be at least 1, got 0."),
    (("LSTM", 3, 5, 2.0), {}, TypeError, "LSTM: `num_layers` should be an integer, got 2.0."),
]
OPTIONS = [
    ({"dropout": -0.1, "num_layers": 2}, ValueError, "`dropout` should be a probability, from 0 to 1, got -0.1."),
    ({"dropout": 1.5, "num_layers": 2}, ValueError, "`dropout` should be a probability, from 0 to 1, got 1.5."),
    ({"dropout": float("nan"), "num_layers": 2}, ValueError, "`dropout` should be a probability, from 0 to 1, got nan."),
    ({"dropout": "0.5"}, TypeError, "`dropout` should be a number, got '0.5'."),
    ({"zoneout": True}, TypeError, "`zoneout` should be a number, got True."),
    ({"input_dropout": 2}, ValueError, "`input_dropout` should be a probability, from 0 to 1, got 2."),
    ({"recurrent_dropout": -1}, ValueError, "`recurrent_dropout` should be a probability, from 0 to 1, got -1."),
    ({"weight_dropout": 1.01}, ValueError, "`weight_dropout` should be a probability, from 0 to 1, got 1.01."),
    ({"bias": "True"}, TypeError, "`bias` should be True or False, got 'True'."),
    ({"bidirectional": 1}, TypeError, "`bidirectional` should be True or False, got 1."),
    ({"batch_first": None}, TypeError, "`batch_first` should be True or False, got None."),
    ({"learn_initial_state": "no"}, TypeError, "`learn_initial_state` should be True or False, got 'no'."),
    ({"remat": 4}, TypeError, "`remat` should be True or False, got 4."),
    (
        {"remat": jax.checkpoint_policies.dots_saveable},
        TypeError,
        f"`remat` should be True or False, got {jax.checkpoint_policies.dots_saveable!r}.\n"
        "For a policy, write jax.checkpoint(…, policy=…) around the call.",
    ),
    ({"truncate": 0}, ValueError, "`truncate` should be at least 1, got 0."),
    ({"truncate": 2.5}, TypeError, "`truncate` should be an integer, got 2.5."),
    ({"merge": "add"}, ValueError, "`merge` should be one of 'concat', 'sum', 'mean', 'none', got 'add'."),
    ({"residual": "yes"}, TypeError, "`residual` should be True or False, got 'yes'."),
    ({"skip_connections": 1}, TypeError, "`skip_connections` should be True or False, got 1."),
    (
        {"residual": True, "skip_connections": True, "num_layers": 2},
        ValueError,
        "`residual` and `skip_connections` should not both be True: a layer has one or the other.",
    ),
    (
        {"residual": True, "hidden_size": (4, 5), "num_layers": 2},
        ValueError,
        "`residual` should join layers of one output size, got output sizes (4, 5).",
    ),
    ({"dtype": jnp.int32}, TypeError, f"`dtype` should be a floating-point dtype, got {jnp.int32!r}."),
    ({"dtype": "float33"}, TypeError, "`dtype` should be a floating-point dtype, got 'float33'."),
    ({"param_dtype": None}, TypeError, "`param_dtype` should be a floating-point dtype, got None."),
    ({"param_dtype": complex}, TypeError, "`param_dtype` should be a floating-point dtype, got <class 'complex'>."),
]
flavours = pytest.mark.parametrize("module", [nnx_module, linen_module], ids=["nnx", "linen"])


@flavours
@pytest.mark.parametrize(("args", "options", "error", "text"), SIZES)
def test_a_bad_size_is_named_when_a_module_is_made(module, args, options, error, text):
    refuses(error, text, module, *args, **options)


@flavours
@pytest.mark.parametrize(("options", "error", "text"), OPTIONS)
def test_a_bad_option_is_named_when_a_module_is_made(module, options, error, text):
    options = {"input_size": 3, "hidden_size": 5} | options
    refuses(error, f"GRU: {text}", module, "GRU", **options)
    refuses(error, f"Recurrent: {text}", module, "Recurrent", cell=jaxrnn.MGUCell(), **options)


@flavours
def test_dropout_with_one_layer_warns_that_it_does_nothing(module):
    text = "LSTM: `dropout` acts between layers, so dropout=0.5 with num_layers=1 does nothing."
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$") as caught:
        module("LSTM", 3, 5, dropout=0.5)
    assert len(caught) == 1


@flavours
def test_options_of_one_cell_are_checked_under_the_name_of_the_module(module):
    text = "RNN: `nonlinearity` should be one of 'tanh', 'relu', got 'gelu'."
    refuses(ValueError, text, module, "RNN", 3, 5, nonlinearity="gelu")
    for size in (5, 7):
        text = f"LSTM: `proj_size` should be below hidden_size=5, got {size}."
        refuses(ValueError, text, module, "LSTM", 3, 5, proj_size=size)
    refuses(ValueError, "LSTM: `proj_size` should be below hidden_size=4, got 4.", module, "LSTM", 3, (5, 4), 2, proj_size=4)
    refuses(ValueError, "LSTM: `proj_size` should be at least 0, got -1.", module, "LSTM", 3, 5, proj_size=-1)
    refuses(TypeError, "LSTM: `proj_size` should be an integer, got 2.0.", module, "LSTM", 3, 5, proj_size=2.0)


@flavours
def test_a_cell_is_an_object(module):
    text = "Recurrent: `cell` should be a Cell, got the class LSTMCell. Write LSTMCell(), with brackets."
    refuses(TypeError, text, module, "Recurrent", jaxrnn.LSTMCell, 3, 5)
    refuses(TypeError, "Recurrent: `cell` should be a Cell, got str.", module, "Recurrent", "lstm", 3, 5)


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(TypeError, match=r"^GRU: arguments should be among .*`dropout`|proj_size") as caught:
        jaxrnn.GRU(3, 5, proj_size=2, rngs=nnx.Rngs(0))
    assert "got `proj_size`." in str(caught.value)
    with pytest.raises(TypeError, match=r"got `droput`\.\nDid you mean `dropout`\?$"):
        jaxrnn.LSTM(3, 5, droput=0.5, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="proj_size"):
        jaxrnn.linen.GRU(3, 5, proj_size=2)


def test_rngs_are_named_when_missing_or_a_key():
    for name in ("RNN", "LSTM", "GRU"):
        text = ": `rngs` should be an nnx.Rngs, got None. Write rngs=nnx.Rngs(0)."
        refuses(TypeError, f"{name}{text}", getattr(jaxrnn, name), 3, 5)
        refuses(TypeError, f"{name}{text}", getattr(jaxrnn.models, f"{name}Model"), 3, 5, 2)
    with pytest.raises(TypeError, match=r"^GRU: `rngs` should be an nnx.Rngs, got \w+\. Write rngs=nnx.Rngs\(0\)\.$"):
        jaxrnn.GRU(3, 5, rngs=jax.random.key(0))
    text = "GRU: `rngs` should have a stream 'dropout' or 'default', got streams ['params']."
    refuses(ValueError, text, jaxrnn.GRU, 3, 5, zoneout=0.1, rngs=nnx.Rngs(params=0))
    assert jaxrnn.GRU(3, 5, rngs=nnx.Rngs(params=0)).rngs is None


def test_models_name_what_their_head_cannot_take():
    refuses(ValueError, "GRUModel: `output_size` should be at least 1, got 0.", jaxrnn.models.GRUModel, 3, 5, 0)
    refuses(ValueError, "RNN: `hidden_size` should be at least 1, got 0.", jaxrnn.models.RNNModel, 3, 0, 2, rngs=nnx.Rngs(0))
    text = "RNN: `nonlinearity` should be one of 'tanh', 'relu', got 'gelu'."
    refuses(ValueError, text, jaxrnn.models.RNNModel, 3, 5, 2, nonlinearity="gelu", rngs=nnx.Rngs(0))
    text = "LSTM: `proj_size` should be below hidden_size=5, got 5."
    refuses(ValueError, text, jaxrnn.models.LSTMModel, 3, 5, 2, proj_size=5, rngs=nnx.Rngs(0))
    text = "all but input_size, hidden_size, output_size, got 4 by position"  # num_layers, or output_size? some have it so
    with pytest.raises(TypeError, match=text):
        jaxrnn.models.LSTMModel(3, 5, 2, 1, rngs=nnx.Rngs(0))
    text = "GRU: `x` should end in input_size=3 (the module's `input_size`), got shape (2, 6, 4)."
    refuses(ValueError, text, jaxrnn.models.GRUModel(3, 5, 2, rngs=nnx.Rngs(0)), jnp.ones((2, 6, 4)))
    for option, value in (("merge", "sum"), ("residual", True), ("skip_connections", True), ("output_only", True)):
        hint = f"Modules and `Stack` have it, models don't: put an nnx.Linear on the output of a module with {option}=… instead."
        with pytest.raises(TypeError, match=f"LSTMModel: arguments should be among .*, got `{option}`.\n{re.escape(hint)}"):
            jaxrnn.models.LSTMModel(3, 5, 2, **{option: value}, rngs=nnx.Rngs(0))


def test_stacks_and_cells_and_initialisers_speak_for_themselves():
    refuses(ValueError, "Stack: `num_layers` should be at least 1, got 0.", jaxrnn.Stack, jaxrnn.GRUCell(), 3, 5, 0)
    names = ", ".join(map(repr, jaxrnn.cells.activations.ACTIVATIONS))
    refuses(ValueError, f"RNNCell: `nonlinearity` should be one of {names}, got 'gelu'.", jaxrnn.RNNCell, nonlinearity="gelu")
    for cell, name in itertools.product(("LSTMCell", "GRUCell", "ChungGRUCell"), ("activation", "recurrent_activation")):
        text = f"{cell}: `{name}` should be one of {names}, got 'gelu'."
        refuses(ValueError, text, getattr(jaxrnn, cell), **{name: "gelu"})
        refuses(ValueError, f"{cell}: `{name}` should be one of {names}, got None.", getattr(jaxrnn, cell), **{name: None})
    text = "ProjectedLSTMCell: `proj_size` should be below hidden_size=5, got 6."
    refuses(ValueError, text, jaxrnn.ProjectedLSTMCell(proj_size=6).init, jax.random.key(0), 3, 5)
    refuses(ValueError, "chrono: `longest` should be at least 3, got 2.", initializers.chrono, 2)
    cell = jaxrnn.GRUCell(b_ih_init=initializers.chrono(9))
    text = "PerGate: `named` should name gates of the cell, 'r', 'z', 'n', got 'f'."
    refuses(ValueError, text, cell.init, jax.random.key(0), 3, 5)


@pytest.mark.parametrize("name", ["ConvLSTM1DCell", "ConvLSTM2DCell"])
def test_a_kernel_has_a_size(name):
    make = getattr(jaxrnn, name)
    refuses(ValueError, f"{name}: `kernel_size` should be at least 1, got 0.", make, kernel_size=0)
    refuses(TypeError, f"{name}: `kernel_size` should be an integer, got (3, 3).", make, kernel_size=(3, 3))
    refuses(TypeError, f"{name}: `kernel_size` should be an integer, got 3.0.", make, kernel_size=3.0)


@pytest.mark.parametrize("name", ["LayerNormLSTMCell", "LayerNormGRUCell"])
def test_an_epsilon_is_a_positive_number(name):
    make = getattr(jaxrnn, name)
    refuses(ValueError, f"{name}: `epsilon` should be above 0 and finite, got 0.", make, epsilon=0)
    refuses(ValueError, f"{name}: `epsilon` should be above 0 and finite, got nan.", make, epsilon=float("nan"))
    refuses(TypeError, f"{name}: `epsilon` should be a number, got '1e-5'.", make, epsilon="1e-5")


@pytest.mark.parametrize("name", jaxrnn.CELLS)
def test_initialisers_of_every_cell_are_functions(name):
    cell = jaxrnn.CELLS[name]
    text = f"{cell.__name__}: `w_hh_init` should be a function of (key, shape, dtype)"
    refuses(TypeError, f"{text} or a PerGate, got 'orthogonal'.", cell, w_hh_init="orthogonal")
    refuses(
        TypeError, f"{text}, got the class orthogonal. Write orthogonal(…), with brackets.", cell, w_hh_init=initializers.orthogonal
    )


def test_what_an_initialiser_gives_is_looked_at():
    text = "init: the initialiser of gate 'h' should return an array of shape (5, 5), got"
    hint = "\nDoes the initialiser want brackets, as in jax.nn.initializers.orthogonal()?"
    cell = jaxrnn.RNNCell(w_hh_init=jax.nn.initializers.orthogonal)
    refuses(ValueError, f"{text} function.{hint}", cell.init, jax.random.key(0), 3, 5)
    cell = jaxrnn.RNNCell(w_hh_init=lambda key, shape, dtype: jnp.ones((5, 4), dtype))
    refuses(ValueError, f"{text} shape (5, 4).", cell.init, jax.random.key(0), 3, 5)


@pytest.mark.parametrize("name", jaxrnn.CELLS)
def test_init_of_every_cell_names_what_does_not_fit(name):
    cell = jaxrnn.CELLS[name]()
    who, key = type(cell).__name__, jax.random.key(0)
    refuses(TypeError, f"{who}.init: `key` should be a key, got int. Write jax.random.key(0).", cell.init, 0, 3, 5)
    text = f"{who}.init: `key` should be a key, got an array of dtype float32. Write jax.random.key(0)."
    refuses(TypeError, text, cell.init, jnp.ones(2), 3, 5)
    text = f"{who}.init: `key` should be one key, got an array of shape (2,)."
    refuses(ValueError, text, cell.init, jax.random.split(key), 3, 5)
    refuses(ValueError, f"{who}: `input_size` should be at least 1, got 0.", cell.init, key, 0, 5)
    refuses(TypeError, f"{who}: `hidden_size` should be an integer, got 5.0.", cell.init, key, 3, 5.0)
    refuses(TypeError, f"{who}.init: `bias` should be True or False, got 'no'.", cell.init, key, 3, 5, bias="no")
    text = f"{who}.init: `dtype` should be a floating-point dtype, got {int!r}."
    refuses(TypeError, text, cell.init, key, 3, 5, dtype=int)


def test_old_keys_are_keys():
    refuses(TypeError, "Stack.init: `key` should be a key, got int. Write jax.random.key(0).", jaxrnn.Stack(CELL, 3, 5).init, 0)
    old = CELL.init(jax.random.PRNGKey(0), 3, 5)
    jax.tree.map(np.testing.assert_array_equal, old, CELL.init(jax.random.key(0), 3, 5))


# Calls -------------------------------------------------------------------------------------------------------------------


def both_flavours(name, *args, **options):
    """The same module twice: a function (x, …) -> … of NNX, and of Linen with the same arrays."""
    module = nnx_module(name, *args, **options)
    arrays = jax.tree.map(lambda v: v.get_value(), module.params, is_leaf=lambda v: isinstance(v, nnx.Variable))
    linen = linen_module(name, *args, **options)
    variables = {"params": jaxrnn.trees.to_dict(arrays)}
    return {"nnx": module, "linen": lambda *a, **k: linen.apply(variables, *a, **k)}


@pytest.fixture(scope="module")
def lstms():
    """Two layers, both directions, input 3, hidden 5."""
    return both_flavours("LSTM", 3, 5, 2, bidirectional=True)


@pytest.fixture(scope="module")
def grus():
    return both_flavours("GRU", 3, 5, batch_first=False)


@pytest.fixture(params=["nnx", "linen"])
def lstm(request, lstms):
    return lstms[request.param]


@pytest.fixture(params=["nnx", "linen"])
def gru(request, grus):
    return grus[request.param]


X = jnp.ones((2, 6, 3))
XS = jnp.ones((6, 2, 3))


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (
            jnp.ones((2, 6, 4)),
            ValueError,
            "`x` should end in input_size=3 (the module's `input_size`), got shape (2, 6, 4).",
        ),
        (
            jnp.ones(3),
            ValueError,
            "`x` should have shape (*batch, time, input) or, for one sequence, (time, input), got (3,).",
        ),
        ([[1.0, 2.0, 3.0]], TypeError, "`x` should be an array, got list. Pass it through jnp.asarray."),
        (
            [jnp.ones((6, 3)), jnp.ones((4, 3))],
            TypeError,
            "`x` should be an array, got list. Sequences of different lengths become one array by jaxrnn.padding.pad.",
        ),
        (1.0, TypeError, "`x` should be an array, got float. Pass it through jnp.asarray."),
        (None, TypeError, "`x` should be an array, got None."),
        (
            np.ma.masked_array(np.ones((2, 6, 3))),
            TypeError,
            "`x` should be an array without a mask of NumPy's own, got a MaskedArray.\n"
            "Write x.filled(0.0) for it, and mask=~np.ma.getmaskarray(x).any(-1) for its valid steps.",
        ),
        (jnp.ones((2, 6, 3), int), TypeError, "`x` should be a floating-point array, got dtype int32."),
        (jnp.ones((2, 6, 3), bool), TypeError, "`x` should be a floating-point array, got dtype bool."),
        (jnp.ones((2, 6, 3), complex), TypeError, "`x` should be a floating-point array, got dtype complex64."),
        (np.full((2, 6, 3), "a"), TypeError, "`x` should be a floating-point array, got dtype <U1."),
    ],
)
def test_an_input_that_does_not_fit(lstm, x, error, text):
    refuses(error, f"LSTM: {text}", lstm, x)


def test_one_feature_has_an_axis_of_its_own():
    module, cell = nnx_module("GRU", 1, 5), jaxrnn.GRUCell()
    text = "GRU: `x` should end in input_size=1 (the module's `input_size`), got shape"
    refuses(ValueError, f"{text} (2, 6).\nOne feature? Write x[..., None].", module, jnp.ones((2, 6)))
    refuses(ValueError, f"{text} (2, 6, 3).", module, X)
    assert module(jnp.ones((2, 6))[..., None])[0].shape == (2, 6, 5)
    text = "`xs` should end in input_size=1 (the third axis from the end of `params.w_ih`), got shape (6, 2)."
    params = cell.init(jax.random.key(0), 1, 5)
    refuses(ValueError, f"unroll: {text}\nOne feature? Write xs[..., None].", jaxrnn.unroll, cell, params, jnp.ones((6, 2)))


LAYOUT = "(num_layers * num_directions, *batch, hidden), whatever `batch_first` says"


@pytest.mark.slow
@pytest.mark.newest
def test_a_start_that_does_not_fit(lstm):
    fits = jnp.ones((4, 2, 5))
    for shape in [(4, 3, 5), (2, 2, 5), (4, 2, 6), (2, 4, 5), (4, 5)]:
        text = f"LSTM: `h_0` should have shape (4, 2, 5), {LAYOUT}, got {shape}."
        refuses(ValueError, text, lstm, X, h_0=(jnp.ones(shape), fits))
        refuses(ValueError, text.replace("`h_0`", "`c_0`"), lstm, X, h_0=(fits, jnp.ones(shape)))
    text = "LSTM: the initial state should be a tuple (h_0, c_0), got"
    refuses(TypeError, f"{text} one array (4, 2, 5).", lstm, X, h_0=fits)
    refuses(TypeError, f"{text} one array (2,). Lengths and masks go by name.", lstm, X, h_0=jnp.array([7, 3]))
    refuses(TypeError, f"{text} 1 of them.", lstm, X, h_0=(fits,))
    refuses(TypeError, f"{text} 3 of them.", lstm, X, h_0=(fits, fits, fits))
    text = "LSTM: `c_0` should be an array, got None."
    refuses(TypeError, text, lstm, X, h_0=(fits, None))
    refuses(ValueError, f"LSTM: `h_0` should have shape (4, 5), {LAYOUT}, got (4, 2, 5).", lstm, X[0], h_0=(fits, fits))


def test_a_start_in_the_wrong_order_shows_where_sizes_differ():
    lstm = nnx_module("LSTM", 3, 5, proj_size=2)
    h_0, c_0 = jnp.ones((1, 2, 2)), jnp.ones((1, 2, 5))
    refuses(ValueError, f"LSTM: `h_0` should have shape (1, 2, 2), {LAYOUT}, got (1, 2, 5).", lstm, X, h_0=(c_0, h_0))


def test_a_start_where_hidden_sizes_differ_is_nested():
    gru = nnx_module("GRU", 3, (5, 4), 2)
    nested = ((jaxrnn.Hidden(jnp.ones((2, 5))),), (jaxrnn.Hidden(jnp.ones((2, 4))),))
    text = "GRU: `h_0` should be nested [layer][direction], 2 x 1 of them, got"
    refuses(TypeError, f"{text} an array.", gru, X, h_0=jnp.ones((2, 2, 5)))
    refuses(ValueError, f"{text} 1 layers with 1 directions.", gru, X, h_0=nested[:1])
    text = "GRU: `h_0[1][0].h` should have shape (2, 4), got (2, 5)."
    refuses(ValueError, text, gru, X, h_0=(nested[0], nested[0]))
    text = "GRU: `h_0[0][0]` should be a Hidden(h), got LSTMState."
    refuses(TypeError, text, gru, X, h_0=((jaxrnn.LSTMState(jnp.ones((2, 5)), jnp.ones((2, 5))),), nested[1]))


def test_lengths_that_do_not_fit(lstm):
    text = "LSTM: `lengths` should be an integer array, got dtype float32."
    refuses(TypeError, text, lstm, X, lengths=jnp.array([6.0, 4.0]))
    refuses(TypeError, text.replace("float32", "bool"), lstm, X, lengths=jnp.array([True, False]))
    refuses(TypeError, text.replace("float32", "float64"), lstm, X, lengths=[6.0, 4.0])
    refuses(TypeError, text.replace("float32", "bool"), lstm, X, lengths=[True, False])
    refuses(TypeError, "LSTM: `lengths` should be an array or a list of integers, got [[6], 4].", lstm, X, lengths=[[6], 4])
    refuses(TypeError, "LSTM: `lengths` should be an array, got str. Pass it through jnp.asarray.", lstm, X, lengths="64")
    text = "LSTM: `lengths` should have shape (2,), the batch axes of `x`, got (3,)."
    refuses(ValueError, text, lstm, X, lengths=[6, 4, 4])
    refuses(ValueError, "LSTM: `lengths` should be from 0 to 6, the number of steps, got 7 in row 1.", lstm, X, lengths=[6, 7])
    for shape in [(3,), (2, 1), ()]:
        text = f"LSTM: `lengths` should have shape (2,), the batch axes of `x`, got {shape}."
        refuses(ValueError, text, lstm, X, lengths=jnp.ones(shape, int))
    text = "LSTM: `lengths` should have shape (2,), the batch axes of `x`, got (6,).\nIs `x` time first? Pass batch_first=False."
    refuses(ValueError, text, lstm, X, lengths=jnp.ones(6, int))
    text = "LSTM: `lengths` should be from 0 to 6, the number of steps, got 7 in row 1."
    refuses(ValueError, text, lstm, X, lengths=jnp.array([6, 7]))
    refuses(ValueError, text.replace("7 in row 1", "-1 in row 0"), lstm, X, lengths=np.array([-1, 7]))
    text = "LSTM: `lengths` should be from 0 to 6, the number of steps, got 7."
    refuses(ValueError, text, lstm, X[0], lengths=jnp.array(7))


def test_masks_and_resets_that_do_not_fit(lstm):
    for name in ("mask", "reset"):
        text = f"LSTM: `{name}` should be a boolean array, or 0 and 1, got"
        refuses(ValueError, f"{text} 0.5.", lstm, X, **{name: jnp.ones((2, 6)).at[1, 3].set(0.5)})
        refuses(ValueError, f"{text} 2.", lstm, X, **{name: np.full((2, 6), 2)})
        refuses(ValueError, f"{text} nan.", lstm, X, **{name: np.full((2, 6), np.nan, "float32")})
        refuses(TypeError, f"{text} dtype complex64.", lstm, X, **{name: jnp.ones((2, 6), complex)})
        text = f"LSTM: `{name}` should have shape (2, 6), the time and batch axes as `x` has them, got"
        refuses(ValueError, f"{text} (2, 5).", lstm, X, **{name: jnp.ones((2, 5), bool)})
        refuses(ValueError, f"{text} (6,).", lstm, X, **{name: jnp.ones(6, bool)})
        refuses(ValueError, f"{text} (2, 6, 3).", lstm, X, **{name: jnp.ones((2, 6, 3), bool)})
        refuses(ValueError, f"{text} (6, 2).\nIs it laid out as `x`?", lstm, X, **{name: jnp.ones((6, 2), bool)})
    text = "LSTM: `lengths` and `mask` should not be given together: both say which steps are valid."
    refuses(ValueError, text, lstm, X, lengths=jnp.array([6, 4]), mask=jnp.ones((2, 6), bool))


def test_time_first_is_told_from_batch_first(gru):
    """XS is (6, 2, 3) for a module that wants time first; the mirror of the case above."""
    text = "GRU: `x` should have shape (time, *batch, input) or, for one sequence, (time, input), got (3,)."
    refuses(ValueError, text, gru, jnp.ones(3))
    text = "GRU: `lengths` should have shape (2,), the batch axes of `x`, got (6,).\nIs `x` batch first? Pass batch_first=True."
    refuses(ValueError, text, gru, XS, lengths=jnp.ones(6, int))
    text = "GRU: `mask` should have shape (6, 2), the time and batch axes as `x` has them, got (2, 6).\nIs it laid out as `x`?"
    refuses(ValueError, text, gru, XS, mask=jnp.ones((2, 6), bool))
    text = f"GRU: `h_0` should have shape (1, 2, 5), {LAYOUT}, got (2, 1, 5)."
    refuses(ValueError, text, gru, XS, h_0=jnp.ones((2, 1, 5)))


def test_steps_that_do_not_fit(gru, lstms):
    text = (
        "LSTM.step: `bidirectional` should be False to run step by step, got True.\n"
        "The backward direction starts at the end of the sequence: call the module on the whole of it."
    )
    refuses(ValueError, text, lstms["nnx"].step, X[:, 0])
    step = nnx_module("GRU", 3, 5).step
    refuses(ValueError, "GRU.step: `x` should have shape (*batch, input), got ().", step, jnp.float32(1))
    text = "GRU.step: `x` should end in input_size=3 (the module's `input_size`), got shape (2, 4)."
    refuses(ValueError, text, step, jnp.ones((2, 4)))
    stack = jaxrnn.Stack(jaxrnn.GRUCell(), 3, 5)
    params = stack.init(jax.random.key(0))
    refuses(ValueError, "Stack.step: `x` should have shape (*batch, input), got ().", stack.step, params, jnp.float32(1))
    text = "Stack.step: `x` should end in input_size=3 (the stack's `input_size`), got shape (2, 4)."
    refuses(ValueError, text, stack.step, params, jnp.ones((2, 4)))
    refuses(ValueError, f"GRU.step: `state` should have shape (1, 2, 5), {LAYOUT}, got (2, 5).", step, X[:, 0], jnp.ones((2, 5)))


@pytest.mark.parametrize("name", ["GRU", "LSTM", "MinGRU", "LRU", "SLSTM"])
def test_a_step_without_a_state_says_where_to_get_one(name):
    cell = jaxrnn.CELLS[name]()
    params = cell.init(jax.random.key(0), 3, 5)
    kind = type(cell.initial_state(params, X[:, 0])).__name__
    text = f"{type(cell).__name__}.step: `state` should be a {kind}, got None.\nWrite cell.initial_state(params, x)."
    refuses(TypeError, text, cell.step, params, None, X[:, 0])


@pytest.mark.slow
@pytest.mark.newest
def test_messages_about_space_name_its_axes():
    conv = nnx_module("Recurrent", jaxrnn.ConvLSTM2DCell(), 3, 5)
    text = (
        "Recurrent.step: `x` should have shape (batch, height, width, channels) or, for one sequence, "
        "(height, width, channels), got (2, 3)."
    )
    refuses(ValueError, text, conv.step, jnp.ones((2, 3)))
    axes = "(batch, time, height, width, channels) or, for one sequence, (time, height, width, channels)"
    refuses(ValueError, f"Recurrent: `x` should have shape {axes}, got (2, 6, 3).", conv, X)
    cell = jaxrnn.ConvLSTM1DCell()
    params = cell.init(jax.random.key(0), 3, 5)
    text = "unroll: `xs` should have shape (time, *batch, width, channels), got (6, 3)."
    refuses(ValueError, text, jaxrnn.unroll, cell, params, jnp.ones((6, 3)))
    text = "ConvLSTM1DCell.step: `x` should have shape (*batch, width, channels), got (3,)."
    refuses(ValueError, text, cell.step, params, None, jnp.ones(3))
    stack = jaxrnn.Stack(cell, 3, 5)
    text = "Stack.step: `x` should have shape (*batch, width, channels), got (3,)."
    refuses(ValueError, text, stack.step, ((params,),), jnp.ones(3))
    text = "Stack.apply: `xs` should have shape (time, *batch, width, channels), got (6, 3)."
    refuses(ValueError, text, stack.apply, ((params,),), jnp.ones((6, 3)))


def test_linen_says_what_it_draws_from():
    module = jaxrnn.linen.LSTM(3, 5, num_layers=2, dropout=0.5)
    variables = jax.eval_shape(module.init, jax.random.key(0), X)
    text = (
        "LSTM: `rngs` should hold a key for 'dropout' when deterministic=False, got none.\n"
        "Write apply(variables, x, deterministic=False, rngs={'dropout': key})."
    )
    refuses(ValueError, text, jax.eval_shape, lambda v: module.apply(v, X, deterministic=False), variables)
    refuses(TypeError, "LSTM: `deterministic` should be True or False, got 1.", module.apply, variables, X, deterministic=1)


# The core ----------------------------------------------------------------------------------------------------------------

CELL = jaxrnn.LSTMCell()


@pytest.fixture(scope="module")
def params():
    return CELL.init(jax.random.key(0), 3, 5)


def test_unroll_names_what_does_not_fit(params):
    def bad(error, text, xs=XS, *args, **kwargs):
        refuses(error, f"unroll: {text}", jaxrnn.unroll, CELL, params, xs, *args, **kwargs)

    text = "`xs` should end in input_size=3 (the third axis from the end of `params.w_ih`), got shape (6, 2, 7)."
    bad(ValueError, text, jnp.ones((6, 2, 7)))
    cell = jaxrnn.RGLRUCell()  # whose first product is with another array
    text = "unroll: `xs` should end in input_size=3 (what these `params` of a RGLRUCell read), got shape (6, 2, 7)."
    refuses(ValueError, text, jaxrnn.unroll, cell, cell.init(jax.random.key(0), 3, 5), jnp.ones((6, 2, 7)))
    bad(ValueError, "`xs` should have shape (time, *batch, input), got (3,).", jnp.ones(3))
    bad(TypeError, "`xs` should be a floating-point array, got dtype int32.", jnp.ones((6, 2, 3), int))
    text = "`lengths` should have shape (2,), the batch axes of `xs`, got (3,)."
    bad(ValueError, text, lengths=jnp.ones(3, int))
    text = (
        "`lengths` should have shape (2,), the batch axes of `xs`, got (6,).\nIs `xs` batch first? unroll wants (time, batch, …): "
    )
    bad(ValueError, f"{text}jnp.swapaxes(xs, 0, 1).", lengths=jnp.ones(6, int))
    text = "`lengths` should be from 0 to 6, the number of steps, got 9 in row (1, 0)."
    bad(ValueError, text, jnp.ones((6, 2, 1, 3)), lengths=jnp.array([[6], [9]]))
    text = "`reset` should have shape (6, 2), the time and batch axes as `xs` has them, got (6, 3)."
    bad(ValueError, text, reset=jnp.ones((6, 3), bool))
    h, c = jnp.ones((2, 5)), jnp.ones((2, 5))
    bad(TypeError, "`state` should be a LSTMState(h, c), got tuple.", XS, (h, c))
    bad(ValueError, "`state.c` should have shape (2, 5), got (5,).", XS, jaxrnn.LSTMState(h, c[0]))
    text = "`initial.c` should have shape (2, 5), got (2, 4)."
    bad(ValueError, text, initial=jaxrnn.LSTMState(h[0], c[:, :4]))
    bad(TypeError, "`state.h` should be a floating-point array, got dtype int32.", XS, jaxrnn.LSTMState(h.astype(int), c))
    bad(ValueError, "`truncate` should be at least 1, got 0.", truncate=0)
    bad(TypeError, f"`dtype` should be a floating-point dtype, got {jnp.int32!r}.", dtype=jnp.int32)


def test_truncation_wants_a_known_number_of_steps(params):
    (time,) = export.symbolic_shape("t")
    run = export.export(jax.jit(lambda xs: jaxrnn.unroll(CELL, params, xs, truncate=4)))
    text = "unroll: `truncate` should come with a known number of steps, got time=t."
    refuses(ValueError, text, run, jax.ShapeDtypeStruct((time, 2, 3), jnp.float32))


@pytest.mark.parametrize("name", ["reverse", "return_states", "remat"])
def test_unroll_wants_true_or_false(params, name):
    refuses(TypeError, f"unroll: `{name}` should be True or False, got 4.", jaxrnn.unroll, CELL, params, XS, **{name: 4})
    jaxrnn.unroll(CELL, params, XS, **{name: np.True_})


def test_unroll_names_a_cell_and_parameters_and_noise_that_do_not_fit(params):
    text = "unroll: `cell` should be a Cell, got the class LSTMCell. Write LSTMCell(), with brackets."
    refuses(TypeError, text, jaxrnn.unroll, jaxrnn.LSTMCell, params, XS)
    hint = "\nA NamedTuple is wanted, whose first fields are w_ih, w_hh, b_ih, b_hh."
    text = f"unroll: `params` should come from `cell.init`, got tuple.{hint}"
    refuses(TypeError, text, jaxrnn.unroll, CELL, tuple(params), XS)
    text = "unroll: `cell` should come first and `params` second, got GateParams and a cell."
    refuses(TypeError, text, jaxrnn.unroll, params, CELL, XS)
    unhashable = jaxrnn.initializers.PerGate(jax.nn.initializers.zeros, [("f", jax.nn.initializers.ones)])
    text = (
        "unroll: `cell` should be hashable, and each of its fields: unhashable type: 'list'.\n"
        "Arrays belong in the parameters that `init` makes."
    )
    refuses(TypeError, text, jaxrnn.unroll, jaxrnn.LSTMCell(b_ih_init=unhashable), params, XS)
    text = "unroll: `params` should have 3 gates for a GRUCell (r, z, n), got 4."
    refuses(ValueError, text, jaxrnn.unroll, jaxrnn.GRUCell(), params, XS)

    def bad(error, text, **kwargs):
        refuses(error, f"unroll: {text}", jaxrnn.unroll, CELL, params, XS, **kwargs)

    bad(ValueError, "`h_mask` should have shape (2, 5), that of `h`, got (5,).", h_mask=jnp.ones(5))
    bad(TypeError, "`h_mask` should be a floating-point array, got dtype bool.", h_mask=jnp.ones((2, 5), bool))
    bad(TypeError, "`zoneout` should be a LSTMState, got float.", zoneout=0.1)
    bad(ValueError, "`zoneout.h` should be a probability, from 0 to 1, got 1.5.", zoneout=jaxrnn.LSTMState(1.5, None))
    text = "`zoneout.c` should have shape (6, 2, 5), got (2, 5)."
    bad(ValueError, text, zoneout=jaxrnn.LSTMState(None, jnp.ones((2, 5), bool)))
    text = "`zoneout.c` should be a boolean array, got dtype float32."
    bad(TypeError, text, zoneout=jaxrnn.LSTMState(None, jnp.ones((6, 2, 5))))


def test_a_step_names_what_does_not_fit(params):
    state = CELL.initial_state(params, jnp.ones((2, 3)))
    text = "LSTMCell.step: `x` should end in input_size=3 (the third axis from the end of `params.w_ih`), got shape (2, 4)."
    refuses(ValueError, text, CELL.step, params, state, jnp.ones((2, 4)))
    hint = "\nA NamedTuple is wanted, whose first fields are w_ih, w_hh, b_ih, b_hh."
    text = f"LSTMCell.step: `params` should come from `cell.init`, got LSTMState.{hint}"
    refuses(TypeError, text, CELL.step, state, params, jnp.ones((2, 3)))
    text = "LSTMCell.step: `state` should be a LSTMState(h, c), got an array."
    refuses(TypeError, text, CELL.step, params, jnp.ones((2, 3)), jnp.ones((2, 3)))
    text = "LSTMCell.step: `x` should be an array, got list. Pass it through jnp.asarray."
    refuses(TypeError, text, CELL.step, params, state, [1.0, 2.0, 3.0])
    refuses(
        TypeError,
        "LSTMCell.step: `x` should be a floating-point array, got dtype int32.",
        CELL.step,
        params,
        state,
        jnp.ones((2, 3), int),
    )


def test_a_stack_names_what_does_not_fit(params):
    stack = jaxrnn.Stack(CELL, 3, 5, bidirectional=True)
    text = "Stack.apply: `params` should be nested [layer][direction], 1 x 2 of them, got"
    refuses(ValueError, f"{text} 1 layers with 1 directions.", stack.apply, ((params,),), XS)
    refuses(TypeError, f"{text} LSTMState.", stack.apply, jaxrnn.LSTMState(X, X), XS)
    state = CELL.initial_state(params, XS[0])
    text = "Stack.apply: `states` should be nested [layer][direction], 1 x 2 of them, got 2 layers with 1 + 1 directions."
    refuses(ValueError, text, stack.apply, ((params, params),), XS, ((state,), (state,)))
    with pytest.raises(ValueError, match=r"^Stack.step: `bidirectional` should be False"):
        stack.step(((params, params),), XS[0])


# What fits ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(grus):
    run = jax.jit(lambda x, given: grus["nnx"](x, **given), compiler_options=quickly)
    return lambda x, **given: run(x, given)


def test_numpy_arrays_of_any_layout_and_float64_are_taken(run, grus):
    """Without x64 they are float32; nothing warns, nothing is changed in place."""
    x = np.random.default_rng(0).standard_normal((3, 2, 6)).T[::-1].transpose(0, 1, 2)
    kept = x.copy()
    lengths, mask = np.array([6, 2]), np.arange(6)[:, None] < np.array([6, 2])
    want = run(jnp.asarray(x, jnp.float32), lengths=jnp.asarray(lengths))
    for given in ({"lengths": lengths}, {"lengths": lengths.astype(np.uint8)}, {"mask": mask}):
        got = grus["nnx"](x, **given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), got, want)
        assert got[0].dtype == jnp.float32
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_are_taken_and_computed_with_the_weights_dtype(run, dtype):
    x = jax.random.normal(jax.random.key(0), (6, 2, 3)).astype(dtype)
    np.testing.assert_array_equal(run(x)[0], run(x.astype(jnp.float32))[0])


@pytest.mark.parametrize(("time", "batch"), [(0, 2), (1, 2), (6, 0), (6, 1), (0, 0)])
def test_no_steps_and_no_sequences_are_taken(lstms, time, batch):
    h_0 = (jnp.full((4, batch, 5), 2.0), jnp.full((4, batch, 5), 3.0))
    run = jax.jit(lambda x, h_0, lengths: lstms["nnx"](x, h_0=h_0, lengths=lengths), compiler_options=quickly)
    output, h_n = run(jnp.ones((batch, time, 3)), h_0, jnp.full(batch, time))
    assert output.shape == (batch, time, 10)
    assert [a.shape for a in h_n] == [(4, batch, 5)] * 2
    if time == 0:
        jax.tree.map(np.testing.assert_array_equal, h_n, h_0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "uint32", "int32"])
def test_lengths_of_every_integer_dtype_count_steps_beyond_its_range(params, dtype):
    lengths = np.array([100, 0, 3], dtype)
    valid = np.arange(300)[:, None] < lengths.astype(int)
    _, ys = jaxrnn.unroll(CELL, params, jnp.ones((300, 3, 3)), lengths=jnp.asarray(lengths))
    np.testing.assert_array_equal((np.asarray(ys) != 0).any(-1), valid)


def test_traced_lengths_out_of_range_are_cut_to_the_range(run):
    """Nothing can raise about them; longer than all steps is all of them, less than none is none."""
    x = jax.random.normal(jax.random.key(0), (6, 2, 3))
    jax.tree.map(
        np.testing.assert_array_equal,
        run(x, lengths=jnp.array([9, -3])),
        run(x, lengths=jnp.array([6, 0])),
    )


# A cell of one's own -----------------------------------------------------------------------------------------------------


def own_cell(update, gates=("z", "n")):
    names = {"update": update, "__annotations__": {}} | ({"gates": gates} if gates else {})
    return dataclass(frozen=True)(type("MyCell", (GatedCell,), names))


def test_a_cell_without_gates():
    with pytest.raises(TypeError, match=r"^MyCell should define `gates`, a tuple of names, got None\.$"):
        own_cell(lambda self, state, x_gates, h_gates: state, gates=None)()


@pytest.mark.parametrize(
    ("update", "error", "message"),
    [
        (lambda state: state.h, TypeError, r"the new state should be a Hidden\(h\), got an array\."),
        (lambda state: (state, 1.0), TypeError, r"the new state should be a Hidden\(h\), got tuple\."),
        (lambda state: Hidden(state.h[:, :2]), ValueError, r"`h` of the new state should have shape \(4, 5\), got \(4, 2\)\."),
        (lambda state: Hidden(state.h.astype("bfloat16")), TypeError, r"`h` of .* should be float32, as before, got bfloat16\."),
    ],
)
def test_a_cell_whose_new_state_is_none(update, error, message):
    cell = own_cell(lambda self, state, x_gates, h_gates: update(state))()
    with pytest.raises(error, match=f"^MyCell: {message}"):
        jaxrnn.Recurrent(cell, 3, 5, rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))


HAVE_C = "For (h, c) write `State: ClassVar = LSTMState` in the cell."


@pytest.mark.parametrize("method", ["update", "recur"])
def test_equations_that_read_another_state_than_the_cell_has(method):
    def bad(error, text, read, **given):
        kind = {"update": GatedCell, "recur": jaxrnn.Cell}[method]
        equations = lambda self, *args: Hidden(read(args[method == "recur"]))
        cell = type("MyCell", (kind,), {"gates": ("z", "n"), method: equations} | given)()
        params, xs = cell.init(jax.random.key(0), 3, 5), jnp.ones((7, 4, 3))
        for call in (
            lambda: jaxrnn.unroll(cell, params, xs),
            lambda: cell.step(params, cell.initial_state(params, xs[0]), xs[0]),
        ):
            with pytest.raises(error) as caught:
                call()
            assert str(caught.value).startswith(f"MyCell: `{method}` should read ")
            assert text in str(caught.value)

    bad(TypeError, f" should read the fields of its state, Hidden(h), got `c`.\n{HAVE_C}", lambda state: state.c)
    with_c = {"State": jaxrnn.LSTMState}
    bad(TypeError, " should read the fields of its state, LSTMState(h, c), got `n`.", lambda state: state.n, **with_c)
    bad(ValueError, f".\nOr is it the state? That of this cell is Hidden(h). {HAVE_C}", lambda state: [h for h, c in [state]])
    bad(ValueError, ".\nOr is it the state? That of this cell is LSTMState(h, c).", lambda state: [h for (h,) in [state]], **with_c)


def test_an_attribute_that_something_else_lacks_is_an_error_of_its_own():
    cell = own_cell(lambda self, state, x_gates, h_gates: Hidden(state.h.nothing))()
    with pytest.raises(AttributeError, match="nothing"):
        jaxrnn.Recurrent(cell, 3, 5, rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))


class TwoMore(NamedTuple):
    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    scale: Any
    shift: Any


def cell_with_two_more(update, base=GatedCell, **methods):
    def init(self, key, input_size, hidden_size, **options):
        params = super(cell, self).init(key, input_size, hidden_size, **options)
        return TwoMore(*params, jnp.ones(hidden_size), jnp.zeros(hidden_size))

    cell = type("MyCell", (base,), {"gates": ("n",), "init": init, "update": update} | methods)
    return cell()


def test_parameters_that_an_update_names_in_another_order_are_refused():
    """They reach it by position: scale would be taken for shift, without a word."""
    run = lambda x, h, scale, shift: Hidden(jnp.tanh(scale * (x[0] + h[0]) + shift))
    swapped = lambda self, state, x_gates, h_gates, shift, scale: run(x_gates, h_gates, scale, shift)
    text = "take scale, shift behind the gates, in the order of the parameters that `init` makes, got shift, scale."
    cell, x = cell_with_two_more(swapped), jnp.ones((4, 7, 3))
    params = cell.init(jax.random.key(0), 3, 5)
    for call in (
        lambda: jaxrnn.Recurrent(cell, 3, 5, rngs=nnx.Rngs(0)),
        lambda: jaxrnn.unroll(cell, params, x),
        lambda: cell.step(params, cell.initial_state(params, x[0]), x[0]),
    ):
        refuses(TypeError, f"MyCell: `update` should {text}", call)
    for update in (
        lambda self, state, x_gates, h_gates, scale, shift: run(x_gates, h_gates, scale, shift),
        lambda self, state, x_gates, h_gates, a, b: run(x_gates, h_gates, a, b),
        lambda self, state, x_gates, h_gates, *extra: run(x_gates, h_gates, *extra),
    ):
        jaxrnn.unroll(cell_with_two_more(update), params, x)
    beside = lambda self, state, x_gates, h_gates, shift, scale, side: run(x_gates, h_gates, scale, shift)
    with pytest.raises(TypeError, match="behind the gates"):
        jaxrnn.Recurrent(cell_with_two_more(beside, per_step=("side",)), 3, 5, rngs=nnx.Rngs(0))
    by_name = lambda self, params, state, x, h: self.update(state, (x[..., 0, :],), (h,), params.shift, params.scale)
    jaxrnn.unroll(cell_with_two_more(swapped, recur=by_name), params, x)


@pytest.mark.parametrize(
    ("module", "misspelt", "meant"),
    [("LSTM", "num_layer", "num_layers"), ("RNN", "nonlinearty", "nonlinearity"), ("GRU", "rng", "rngs")],
)
def test_every_argument_of_a_module_is_in_the_list_of_what_there_is(module, misspelt, meant):
    advice = "It is called `rngs` here." if misspelt == "rng" else f"Did you mean `{meant}`\\?"
    listed, got = rf"^{module}: arguments should be among .*\b{meant}\b.*", rf"got `{misspelt}`\.\n{advice}$"
    with pytest.raises(TypeError, match=f"{listed}, {got}"):
        getattr(jaxrnn, module)(3, 5, **{misspelt: 2})


def test_return_states_is_a_flag():
    with pytest.raises(TypeError, match=r"^GRU: `return_states` should be True or False, got 'yes'\.$"):
        jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)), return_states="yes")


@pytest.mark.parametrize("method", ["update", "project"])
def test_a_gated_cell_that_computes_with_a_traced_value_from_outside(method):
    """The derivative of the engine would take it for a constant."""

    def run(scale):
        cell = type(
            "MyCell", (jaxrnn.GRUCell,), {method: lambda self, *args: scaled(scale, getattr(jaxrnn.GRUCell, method)(self, *args))}
        )()
        return jnp.sum(jaxrnn.unroll(cell, cell.init(jax.random.key(0), 3, 5), jnp.ones((6, 4, 3)))[1])

    def scaled(scale, tree):
        return jax.tree.map(lambda a: scale * a, tree)

    text = rf"^MyCell: `{method}` should compute with its arguments and constants alone, got .* parameters or of `context`"
    assert jnp.isfinite(run(2.0))
    for transformed in (jax.grad(run), jax.jit(jax.grad(run)), jax.grad(jax.jit(run)), lambda a: jax.jvp(run, (a,), (a,))):
        with pytest.raises(TypeError, match=text):
            transformed(2.0)
