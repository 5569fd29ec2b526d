"""Names of other libraries are answered with ours: one table, for constructors, calls and functions."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from support import unannotated

import jaxrnn
from jaxrnn import synonyms
from jaxrnn.models import LSTMModel, SequenceModel
from jaxrnn.padding import bucket_limits, pad

X = jnp.ones((2, 4, 3))
DONE = "It is called `reset` here, and is true where an episode begins: it is `done` of the step before."
CELL = jaxrnn.LSTMCell()


def gru():
    return jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))


def params():
    return CELL.init(jax.random.key(0), 3, 5)


MADE = {
    "NNX": lambda **given: jaxrnn.LSTM(**given, rngs=nnx.Rngs(0)),
    "Linen": lambda **given: jaxrnn.linen.LSTM(**given),
    "Recurrent": lambda **given: jaxrnn.Recurrent(CELL, **given, rngs=nnx.Rngs(0)),
    "Stack": lambda **given: jaxrnn.Stack(CELL, **given),
    "model": lambda **given: LSTMModel(**given, rngs=nnx.Rngs(0)),
    "blocks": lambda **given: SequenceModel(CELL, **given, rngs=nnx.Rngs(0)),
    "init": lambda **given: CELL.init(jax.random.key(0), **given),
    "init of another": lambda **given: jaxrnn.LRUCell().init(jax.random.key(0), **given),
}
CALLED = {
    "NNX": lambda **given: gru()(X, **given),
    "Linen": lambda **given: jaxrnn.linen.GRU(3, 5).init(jax.random.key(0), X, **given),
    "model": lambda **given: LSTMModel(3, 5, 2, rngs=nnx.Rngs(0))(X, **given),
    "unroll": lambda **given: jaxrnn.unroll(CELL, params(), X, **given),
    "Stack.apply": lambda **given: jaxrnn.Stack(CELL, 3, 5).apply(((params(),),), X, **given),
}
CASES = [
    *((MADE, kind, {"units": 5}, "It is called `hidden_size` here.") for kind in MADE),
    *((MADE, kind, {"input_dim": 5}, "It is called `input_size` here.") for kind in MADE),
    *((MADE, kind, {"features": 5}, "It is called `hidden_size` here.") for kind in MADE),
    (MADE, "model", {"num_classes": 2}, "It is called `output_size` here."),
    (MADE, "model", {"out_features": 2}, "It is called `output_size` here."),
    (MADE, "NNX", {"out_features": 2}, "It is called `hidden_size` here."),
    (MADE, "Linen", {"time_major": True}, "Time first is batch_first=False"),
    (MADE, "NNX", {"return_sequences": True}, "A module gives (output, h_n)"),
    (MADE, "NNX", {"kernel_init": 1}, "It is `w_ih_init` of a cell: write Recurrent(LSTMCell(w_ih_init=…), …)."),
    (MADE, "Linen", {"unit_forget_bias": True}, "initializers.forget_bias()"),
    *((CALLED, kind, {"seq_lengths": [4, 1]}, "It is called `lengths` here.") for kind in CALLED),
    *((CALLED, kind, {"done": X[..., 0]}, DONE) for kind in CALLED),
    *((CALLED, kind, {"padding_mask": X[..., 0]}, "write mask=~padding_mask if") for kind in CALLED),
    *(
        (CALLED, kind, {name: X}, "It is called `h_0` here.")
        for kind in ("NNX", "Linen", "model")
        for name in ("hx", "h0", "carry")
    ),
    *((CALLED, kind, {"initial_state": X}, "It is called `h_0` here.") for kind in ("NNX", "Linen", "model")),
    *((CALLED, kind, {name: X}, "Pass both in one: h_0=(h_0, c_0).") for kind in CALLED for name in ("c_0", "c0")),
    *((MADE, kind, {"carry_init": 1}, "Give a start to a call, h_0=…") for kind in ("NNX", "Linen", "Recurrent")),
    (CALLED, "unroll", {"initial_carry": X}, "It is called `state` here."),
    (CALLED, "Stack.apply", {"initial_carry": X}, "It is called `states` here."),
    (CALLED, "Stack.apply", {"rngs": 1}, "It is called `key` here."),
    (CALLED, "unroll", {"go_backwards": True}, "It is called `reverse` here."),
    (CALLED, "NNX", {"go_backwards": True}, "a module has bidirectional=True"),
    (CALLED, "NNX", {"training": True}, "In NNX, `module.train()` and `module.eval()` say it"),
    (CALLED, "Linen", {"training": True}, "in Linen, deterministic=False or True."),
    (CALLED, "NNX", {"deterministic": True}, "In NNX, `module.train()`"),
    (CALLED, "NNX", {"length": [4, 1]}, "Did you mean `lengths`?"),
]


@pytest.mark.parametrize(("table", "kind", "given", "hint"), CASES, ids=[f"{c[1]}-{next(iter(c[2]))}" for c in CASES])
def test_a_foreign_name_is_answered_with_ours(table, kind, given, hint):
    """And before a missing argument is, which it stands for."""
    with pytest.raises(TypeError) as caught:
        table[kind](**given)
    first, _, advice = str(caught.value).partition("\n")
    assert "arguments should be among " in first
    assert first.endswith(f"got `{next(iter(given))}`.")
    assert hint in advice


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda: jaxrnn.LSTMCell(hidden_size=5),
            r"LSTMCell: arguments should be among activation, .*\nA cell has no sizes: they go to `cell.init\(key",
        ),
        (
            lambda: jaxrnn.GRUCell(units=5),
            r"GRUCell: arguments should be among .*\nA cell has no sizes: they go to `cell.init\(key",
        ),
        (
            lambda: jaxrnn.MGUCell(3, 5),
            r"MGUCell: arguments should be given by name, got 2 by position.\nA cell has no sizes: they go to",
        ),
        (lambda: jaxrnn.LSTMCell(recurrent_kernel_init=1), r"\nIt is called `w_hh_init` here."),
        (lambda: gru().step(X[:, 0], carry=1), r"GRU.step: arguments should be among x, state, .*\nIt is called `state` here."),
        (lambda: gru().step(X[:, 0], done=1), f"\n{DONE}"),
        (lambda: gru().initial_state(batch_size=1), r"GRU.initial_state: .*\nIt is called `batch_shape` here."),
        (lambda: jaxrnn.linear_scan(X, X, initial_state=1), r"linear_scan: .*\nIt is called `h_0` here."),
        (lambda: gru()(X, X, X), r"GRU: arguments should be given by name, all but x, got 3 by position"),
        (lambda: gru()(X, [4, 1]), r"got 2 by position.\nWrite h_0=… for a start state, lengths=… for lengths\."),
        (lambda: gru().step(X[:, 0], X[:1, 0], X), r"GRU.step: .* got 3 by position\.$"),
        *(
            (partial(make, 16, 24), rf"{make.__name__}: `\w+` should be a name, got 16.\nA cell has no sizes: they go to")
            for make in (jaxrnn.LSTMCell, jaxrnn.GRUCell)
        ),
        (lambda: jaxrnn.RNNCell(16), r"RNNCell: `nonlinearity` should be a name, got 16.\nA cell has no sizes"),
        (
            lambda: pad([[1]], batch_first=True),
            r"pad: arguments should be among sequences, to, got `batch_first`.\n.*`pad` are batch f",
        ),
        (lambda: pad([[1]], padding_value=0), r"pad: arguments .*got `padding_value`.\nPadding is zeros"),
        (lambda: pad([[1]], maxlen=3), r"pad: arguments .*\nIt is called `to` here."),
        (lambda: bucket_limits([3, 4], n_buckets=2), r"bucket_limits: arguments .*\nIt is called `buckets` here."),
        (lambda: bucket_limits([3, 4]), r"^bucket_limits: `buckets` should be given, got none\.$"),
    ],
)
def test_steps_cells_and_positions_are_answered_too(call, text):
    with pytest.raises(TypeError, match=f"(?s){text}"):
        call()


@pytest.mark.parametrize(
    ("made", "name", "missing"),
    [
        (lambda: jaxrnn.LSTM(16, rngs=nnx.Rngs(0)), "LSTM", "`hidden_size`"),
        (lambda: jaxrnn.linen.LSTM(16), "LSTM", "`hidden_size`"),
        (lambda: jaxrnn.linen.GRU(hidden_size=16), "GRU", "`input_size`"),
        (lambda: jaxrnn.Recurrent(CELL, rngs=nnx.Rngs(0)), "Recurrent", "`input_size`, `hidden_size`"),
        (lambda: jaxrnn.Stack(CELL, 16), "Stack", "`hidden_size`"),
        (lambda: CELL.init(jax.random.key(0), 16), "LSTMCell.init", "`hidden_size`"),
    ],
)
def test_no_size_is_inferred(made, name, missing):
    with pytest.raises(TypeError) as caught:
        made()
    hint = "input_size and hidden_size are both wanted: none is inferred from an input."
    assert str(caught.value) == f"{name}: {missing} should be given, got none.\n{hint}"


def test_a_call_without_an_input_says_so():
    for call, name in ((gru(), "GRU"), (gru().step, "GRU.step")):
        with pytest.raises(TypeError, match=rf"^{name}: `x` should be given, got none\.$"):
            call()


@pytest.mark.parametrize("given", [(None, "tanh"), (True,), (None,)])
def test_parent_and_name_of_a_linen_module_go_by_name(given):
    for made, sizes in ((partial(jaxrnn.linen.GRU, 3, 5, 2), 3), (partial(jaxrnn.linen.SequenceModel, CELL, 3, 5, 2), 4)):
        said = rf"should be given by name, all but .*_size.*, got {sizes + len(given)} by position\."
        with unannotated(), pytest.raises(TypeError, match=said):
            made(*given)
        assert made(parent=None, name="it").name == "it"


def test_a_method_of_the_class_alone_is_answered_too():
    with pytest.raises(TypeError, match=r"\.__call__: arguments should be among x, .*, got `foo`\."):
        jaxrnn.LSTM.__call__(foo=1)


def test_every_row_of_the_table_is_about_an_argument_that_there_is():
    functions = [
        jaxrnn.unroll, jaxrnn.Stack.__init__, jaxrnn.Stack.apply, jaxrnn.Stack.step, jaxrnn.Stack.initial_state,
        jaxrnn.Recurrent.__init__, jaxrnn.LSTM.__init__, jaxrnn.RNN.__init__, jaxrnn.Recurrent.__call__, LSTMModel.__init__,
        jaxrnn.LSTMCell.__init__, SequenceModel.__init__, pad, bucket_limits,
    ]  # fmt: skip
    known = {name for function in functions for name in inspect.signature(function).parameters}
    assert set(synonyms.SYNONYMS) <= known
    for ours, theirs in synonyms.SYNONYMS.items():
        assert len(set(theirs)) == len(theirs)
        assert ours not in theirs
    assert all(text.endswith((".", "!")) for text in synonyms.ADVICE.values())


def test_signatures_stay_as_they_are_written():
    assert list(inspect.signature(jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))).parameters)[:3] == ["x", "h_0", "lengths"]
    assert jaxrnn.unroll.__name__ == "unroll"
    assert "context" in inspect.signature(jaxrnn.linen.GRU.__call__).parameters
