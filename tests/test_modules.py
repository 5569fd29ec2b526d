"""The Flax modules: the same numbers as the pure functions, and good citizens of JAX and Flax."""

import copy
import pickle
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import support
from flax import linen as nn
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from support import RESIDUAL, SKIP, arrays, equal, jit

import jaxrnn

TIME, BATCH, INPUT, HIDDEN = 7, 4, 3, 5


def normal(*shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


X = normal(BATCH, TIME, INPUT)
LENGTHS = jnp.array([7, 0, 3, 6])
MASK = jnp.asarray(np.random.default_rng(1).random((BATCH, TIME)) < 0.6)
RESET = jnp.asarray(np.random.default_rng(2).random((BATCH, TIME)) < 0.3)


def make(name, *sizes, seed=0, randomize=True, **options):
    """An NNX module; its parameters (a learned initial state is zeros at first) drawn at random."""
    module = getattr(jaxrnn, name)(*sizes, **options, rngs=nnx.Rngs(seed))
    if randomize:
        rng = np.random.default_rng(seed)
        draw = lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype)
        nnx.update(module, jax.tree.map(draw, nnx.state(module, nnx.Param)))
    return module


def as_linen(name, module, *sizes, **options):
    """The Linen module of the same description, and the arrays of `module` as its variables."""
    params = jaxrnn.trees.to_dict(arrays(module.params), arrays(module.learned))
    return getattr(jaxrnn.linen, name)(*sizes, **options), {"params": params}


close = partial(support.close, tolerance=1e-5)


def loss(module, x, *args, **kwargs):
    return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(module(x, *args, **kwargs)))


# NNX, Linen, functions ---------------------------------------------------------------------------------------------------

BOTH = {"bidirectional": True}
CASES = {
    "two directions, lengths": ("LSTM", (INPUT, HIDDEN, 2), BOTH, {"lengths": LENGTHS}),
    "start of two layers and directions, mask, time first": (
        "RNN",
        (INPUT, HIDDEN, 2),
        {"batch_first": False} | BOTH,
        {"mask": MASK, "h_0": normal(4, BATCH, HIDDEN)},
    ),
    "relu, residual, sum, remat, reset": (
        "RNN",
        (INPUT, HIDDEN, 2),
        {"nonlinearity": "relu", **RESIDUAL, "merge": "sum", "remat": True} | BOTH,
        {"reset": RESET},
    ),
    "projection, no bias, truncation, bfloat16": (
        "LSTM",
        (INPUT, HIDDEN),
        {"proj_size": 2, "bias": False, "truncate": 3, "dtype": jnp.bfloat16},
        {"h_0": (normal(1, BATCH, 2), normal(1, BATCH, HIDDEN))},
    ),
    "any cell, hidden sizes, skip, learned start, every state": (
        "Recurrent",
        (jaxrnn.MGUCell(), INPUT, (HIDDEN, 4), 2),
        {**SKIP, "learn_initial_state": True, "merge": "none"} | BOTH,
        {"reset": RESET, "lengths": LENGTHS, "return_states": True},
    ),
}


def by_functions(stack, batch_first, params, initial, x, h_0=None, **given):
    """`Stack.apply`, called as the README shows: time first, states nested."""
    flip = (lambda a: jnp.swapaxes(a, 0, 1)) if batch_first else (lambda a: a)
    where = {k: flip(v) if k in ("mask", "reset") else v for k, v in given.items()}
    fields = h_0 if isinstance(h_0, tuple) else (h_0,)
    state_type = stack.cell.State
    at = lambda layer, d: state_type(*(f[layer * stack.num_directions + d] for f in fields))
    states = None if h_0 is None else tuple(tuple(at(k, d) for d in range(stack.num_directions)) for k in range(stack.num_layers))
    output, finals, *every = stack.apply(params, flip(x), states, initial=initial, **where)
    if len(set(stack.hidden_sizes)) == 1:
        flat = [state for layer in finals for state in layer]
        finals = tuple(jnp.stack(field) for field in zip(*flat, strict=True))
        finals = finals[0] if len(finals) == 1 else finals
    return jax.tree.map(flip, output), finals, *jax.tree.map(flip, every)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("case", CASES)
def test_nnx_linen_and_functions_give_the_same_bits(case):
    name, sizes, options, given = CASES[case]
    module = make(name, *sizes, **options)
    if module.batch_first:
        x = X
    else:
        x, given = X.swapaxes(0, 1), given | {"mask": MASK.swapaxes(0, 1)}
    linen, variables = as_linen(name, module, *sizes, **options)
    static = {"return_states": True} if given.get("return_states") else {}
    given = {k: v for k, v in given.items() if k not in static}
    want = jit(lambda m, given: m(x, **given, **static))(module, given)
    equal(jit(lambda v, given: linen.apply(v, x, **given, **static))(variables, given), want)
    params, initial = arrays(module.params), arrays(module.learned)
    stack, order = module.stack, module.batch_first
    equal(jit(lambda p, i, given: by_functions(stack, order, p, i, x, **given, **static))(params, initial, given), want)
    assert stack == linen.stack


RATES = {"dropout": 0.5, "input_dropout": 0.3, "recurrent_dropout": 0.4, "zoneout": 0.2, "weight_dropout": 0.1}


@pytest.mark.slow
@pytest.mark.newest
def test_nnx_linen_and_functions_draw_the_same_from_the_same_key():
    sizes, options = (INPUT, HIDDEN, 2), RATES | BOTH
    module = make("RNN", *sizes, **options)
    linen, variables = as_linen("RNN", module, *sizes, **options)
    run = jit(lambda params, key: by_functions(module.stack, True, params, None, X, key=key, lengths=LENGTHS))
    key = copy.deepcopy(module)._key()
    graph, state = nnx.split(module)
    equal(jit(lambda state: nnx.merge(graph, state)(X, lengths=LENGTHS))(state), run(arrays(module.params), key))
    rngs = {"dropout": jax.random.key(5)}
    key = linen.apply(variables, rngs=rngs, method=lambda m: m.make_rng("dropout"))
    apply = jit(lambda v, rngs: linen.apply(v, X, lengths=LENGTHS, deterministic=False, rngs=rngs))
    equal(apply(variables, rngs), run(arrays(module.params), key))


@pytest.mark.slow
@pytest.mark.newest
def test_linen_draws_what_it_initialises_with_the_stacks_own_init():
    module = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, bidirectional=True, learn_initial_state=True)
    variables = jit(module.init)(jax.random.key(0), X)
    stack = module.stack
    params, initial = jaxrnn.trees.from_dict(stack, variables["params"])
    shapes = jax.eval_shape(stack.init, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), shapes)
    assert jax.tree.map(jnp.shape, initial) == ((jaxrnn.LSTMState((HIDDEN,), (HIDDEN,)),) * 2,) * 2
    bound = HIDDEN**-0.5
    assert len({float(a.ravel()[0]) for a in jax.tree.leaves(params)}) == 16
    for a in jax.tree.leaves(params):
        assert 0.5 * bound < np.abs(a).max() <= bound


def test_linen_modules_nest_in_modules():
    class Tagger(nn.Module):
        @nn.compact
        def __call__(self, x):
            output, _ = jaxrnn.linen.GRU(INPUT, HIDDEN, name="reader")(x)
            return nn.Dense(2)(output)

    variables = jax.eval_shape(Tagger().init, jax.random.key(0), X)
    assert set(variables["params"]) == {"reader", "Dense_0"}
    assert jax.eval_shape(Tagger().apply, variables, X).shape == (BATCH, TIME, 2)


# Transformations ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gru():
    return make("GRU", INPUT, HIDDEN)


@pytest.fixture(scope="module")
def want(gru):
    """Output, final state and gradients, by functions alone."""
    params = arrays(gru.params)
    run = lambda params, x: by_functions(gru.stack, True, params, None, x)
    total = lambda params, x: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(run(params, x)))
    return jit(run)(params, X), jit(jax.grad(total, (0, 1)))(params, X)


@pytest.mark.slow
@pytest.mark.newest
def test_a_module_is_an_argument_of_jit_and_grad_and_vmap(gru, want):
    close(jit(lambda module, x: module(x))(gru, X), want[0])
    d_module, d_x = jit(jax.grad(loss, (0, 1)))(gru, X)
    assert isinstance(d_module, jaxrnn.GRU)
    close((arrays(d_module.params), d_x), want[1])
    output, h_n = jit(jax.vmap(lambda module, x: module(x), in_axes=(None, 0), out_axes=(0, 1)))(gru, X)
    close((output, h_n), want[0])


def test_a_module_is_closed_over_by_jit_and_grad_and_vmap(gru, want):
    close(jit(lambda x: gru(x))(X), want[0])
    close(jit(jax.grad(lambda x: loss(gru, x)))(X), want[1][1])
    close(jit(jax.vmap(lambda x: gru(x), out_axes=(0, 1)))(X), want[0])


def test_nnx_jit_grad_split_and_merge(gru, want):
    close(nnx.jit(lambda module, x: module(x))(gru, X), want[0])
    graph, state = nnx.split(gru)
    grads = nnx.jit(nnx.grad(loss))(gru, X)
    close(arrays(nnx.merge(graph, grads).params), want[1][0])
    close(jit(lambda state: nnx.merge(graph, state)(X))(state), want[0])


@pytest.mark.slow
@pytest.mark.newest
def test_an_ensemble_is_a_vmap_over_modules():
    ensemble = nnx.vmap(lambda key: jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(key)))(jax.random.split(jax.random.key(0), 3))
    got = jit(jax.vmap(lambda module: module(X)[0]))(ensemble)
    member = jax.tree.map(lambda a: a[1], ensemble)
    close(got[1], jit(lambda module: module(X)[0])(member))
    assert np.abs(got[0] - got[1]).max() > 1e-3


def test_modules_are_made_abstractly():
    make_one = lambda: jaxrnn.LSTM(INPUT, HIDDEN, 2, dropout=0.5, learn_initial_state=True, rngs=nnx.Rngs(0))
    abstract = nnx.eval_shape(make_one)
    shapes = lambda module: jax.tree.map(lambda a: (a.shape, a.dtype), nnx.state(module, nnx.Param))
    assert shapes(abstract) == shapes(make_one())
    assert isinstance(abstract.params[0][0].w_ih.get_value(), jax.ShapeDtypeStruct)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, nnx.clone, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "clone", "pickle"]
)
def test_copies_are_equal_and_apart(copied):
    cell = jaxrnn.LSTMCell(b_ih_init=jaxrnn.initializers.forget_bias(), w_hh_init=jaxrnn.initializers.orthogonal())
    module = jaxrnn.Recurrent(cell, INPUT, HIDDEN, 2, dropout=0.5, rngs=nnx.Rngs(0))
    other = copied(module)
    assert (other.stack, other.batch_first, repr(other)) == (module.stack, module.batch_first, repr(module))
    equal(arrays(other.params), arrays(module.params))
    equal(jax.random.key_data(other._key()), jax.random.key_data(module._key()))
    other.params[0][0].w_ih.set_value(jnp.zeros((INPUT, 4, HIDDEN)))
    assert np.abs(module.params[0][0].w_ih.get_value()).max() > 0


@pytest.mark.slow
@pytest.mark.newest
def test_seeds_decide_everything_and_no_two_gates_start_alike():
    one, same, other = (arrays(make("LSTM", INPUT, HIDDEN, 2, seed=s, randomize=False, **BOTH).params) for s in (0, 0, 1))
    equal(one, same)
    firsts = [float(a[..., gate, 0].ravel()[0]) for a in jax.tree.leaves((one, other)) for gate in range(4)]
    assert len(set(firsts)) == len(firsts)


def test_only_parameters_live_in_a_module_that_draws_nothing():
    assert all(isinstance(v, nnx.Param) for _, v in nnx.iter_graph(make("GRU", INPUT, HIDDEN, 2)) if isinstance(v, nnx.Variable))


def test_arguments_are_not_changed(gru):
    x, lengths = np.asarray(X).copy(), np.asarray(LENGTHS).copy()
    before = jax.tree.map(np.array, arrays(gru.params))
    gru(x, lengths=lengths)
    equal((x, lengths, arrays(gru.params)), (np.asarray(X), np.asarray(LENGTHS), before))


def test_a_warm_call_moves_nothing_between_devices_and_host(gru):
    run = jit(lambda module, x, lengths: module(x, lengths=lengths))
    run(gru, X, LENGTHS)
    with jax.transfer_guard("disallow"):
        run(gru, X, LENGTHS)


@pytest.mark.slow
@pytest.mark.newest
def test_optax_takes_the_parameters_as_they_are():
    stack = jaxrnn.Stack(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, bias=False)
    params = stack.init(jax.random.key(0))
    optimizer = optax.sgd(0.1)

    @jit
    def train_step(params, opt_state):
        total, grads = jax.value_and_grad(lambda p: jnp.sum(stack.apply(p, X.swapaxes(0, 1))[0] ** 2))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, total

    opt_state, totals = optimizer.init(params), []
    for _ in range(4):
        params, opt_state, total = train_step(params, opt_state)
        totals.append(float(total))
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.9 * totals[0]


# Layout -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_one_sequence_is_a_batch_of_one():
    module = make("LSTM", INPUT, HIDDEN, 2, **BOTH)
    one = {"x": X[0], "h_0": (normal(4, HIDDEN), normal(4, HIDDEN, seed=1)), "mask": MASK[0], "reset": RESET[0]}
    batch = {"x": X[:1], "h_0": tuple(a[:, None] for a in one["h_0"]), "mask": MASK[:1], "reset": RESET[:1]}
    run = jit(lambda module, given: module(**given))
    output, h_n = run(module, batch)
    close(run(module, one), (output[0], tuple(a[:, 0] for a in h_n)))
    lengths = jit(lambda length: module(X[0], lengths=length)[0])(jnp.array(4))
    assert ((np.asarray(lengths) != 0).any(-1) == (np.arange(TIME) < 4)).all()


@pytest.mark.slow
@pytest.mark.newest
def test_a_start_given_as_returned_goes_on():
    """h_n of one call is h_0 of the next, for one hidden size and for several."""
    for sizes in ((INPUT, HIDDEN, 2), (INPUT, (HIDDEN, 4), 2)):
        module = make("GRU", *sizes)
        whole = jit(lambda m: m(X))(module)
        run = jit(lambda m, x, h: m(x, h_0=h))
        first, h = run(module, X[:, :4], jax.tree.map(jnp.zeros_like, whole[1]))
        second, h = run(module, X[:, 4:], h)
        close((jnp.concatenate([first, second], axis=1), h), whole)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("hidden", [HIDDEN, (4, HIDDEN)])
def test_a_models_head_reads_the_last_layer_at_the_end_of_each_direction(hidden):
    """Forward after the last valid step, backward after the first."""
    options = {"num_layers": 2, "bidirectional": True, "dtype": jnp.float32}
    model = jaxrnn.models.LSTMModel(INPUT, hidden, 2, **options, rngs=nnx.Rngs(0))
    lengths = jnp.array([7, 1, 3, 6])
    got = jit(lambda m: m(X, lengths=lengths))(model)
    output = jit(lambda m: m.rnn(X, lengths=lengths)[0])(model)
    ends = jnp.concatenate([output[jnp.arange(BATCH), lengths - 1, :HIDDEN], output[:, 0, HIDDEN:]], axis=-1)
    close(got, ends @ model.fc.kernel.get_value() + model.fc.bias.get_value()[None])
    equal(jit(lambda m: m(X, mask=jnp.arange(TIME) < lengths[:, None]))(model), got)


def test_a_models_head_has_the_dtypes_of_its_layers():
    model = jaxrnn.models.GRUModel(INPUT, HIDDEN, 2, dtype=jnp.bfloat16, param_dtype=jnp.float16, rngs=nnx.Rngs(0))
    assert {a.dtype for a in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.float16)}
    assert jax.eval_shape(model, X).dtype == jnp.bfloat16


# Printing -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "options", "text"),
    [
        ("LSTM", (3, 5), {}, "LSTM(3, 5)"),
        ("GRU", (3, 5), {"bidirectional": True, "batch_first": False}, "GRU(3, 5, bidirectional=True, batch_first=False)"),
        ("LSTM", (3, 5), {"proj_size": 2, "param_dtype": jnp.bfloat16}, "LSTM(3, 5, param_dtype=bfloat16, proj_size=2)"),
        ("RNN", (3, (5, 4), 2), {"nonlinearity": "relu"}, "RNN(3, (5, 4), num_layers=2, nonlinearity='relu')"),
        ("GRU", (3, 5), {"merge": "sum"}, "GRU(3, 5, merge='sum')"),
        ("Recurrent", (jaxrnn.MGUCell(), 3, 5), {"zoneout": 0.1}, "Recurrent(MGUCell, 3, 5, zoneout=0.1)"),
        (
            "Recurrent",
            (jaxrnn.LSTMCell(b_ih_init=jaxrnn.initializers.forget_bias(), w_hh_init=jaxrnn.initializers.identity), 3, 5),
            {},
            "Recurrent(LSTMCell, 3, 5, w_hh_init=identity, b_ih_init=PerGate(default=zeros, named=(('f', constant(value=1.0)))))",
        ),
    ],
)  # fmt: skip
def test_printing_shows_sizes_and_what_is_not_default(name, sizes, options, text):
    module = make(name, *sizes, randomize=False, **options)
    assert repr(module) == str(module) == text


@dataclass(frozen=True)
class UsersCell(jaxrnn.LSTMCell):
    sharpness: float = 1.0


def test_cells_and_stacks_print_what_is_not_default():
    assert repr(jaxrnn.LSTMCell()) == "LSTMCell()"
    assert (
        str(jaxrnn.RNNCell(nonlinearity="relu", b_ih_init=jaxrnn.initializers.zeros))
        == "RNNCell(b_ih_init=zeros, nonlinearity='relu')"
    )
    assert repr(UsersCell(sharpness=2.0)) == "UsersCell(sharpness=2.0)"
    assert repr(jaxrnn.initializers.forget_bias()) == "PerGate(default=zeros, named=(('f', constant(value=1.0))))"
    stack = jaxrnn.Stack(jaxrnn.ProjectedLSTMCell(proj_size=2), 3, 5, 2, dropout=0.5)
    assert repr(stack) == "Stack(ProjectedLSTMCell(proj_size=2), 3, 5, num_layers=2, dropout=0.5)"


# Dropout between layers: PyTorch's ----------------------------------------------------------------------------------------


@pytest.fixture
def see_through():
    """A function to a two-layer network whose first layer gives 1 at every step and whose second passes on what it reads."""

    def make_one(rate, seed=0, hidden=50):
        module = jaxrnn.RNN(1, hidden, 2, nonlinearity="relu", dropout=rate, bias=False, rngs=nnx.Rngs(seed))
        first, second = (layer[0] for layer in module.params)
        first.w_ih.set_value(jnp.ones((1, 1, hidden)))
        second.w_ih.set_value(jnp.eye(hidden)[:, None])
        for cell_params in (first, second):
            cell_params.w_hh.set_value(jnp.zeros((hidden, 1, hidden)))
        return module

    return make_one


draw_once = nnx.jit(lambda module: module(jnp.ones((20, 10, 1)))[0])


@pytest.mark.slow
@pytest.mark.newest
def test_dropout_zeroes_its_share_of_every_step_and_scales_the_rest(see_through):
    output = np.asarray(draw_once(see_through(0.3)))
    values, counts = np.unique(output.round(5), return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 0.7], rtol=1e-5)
    assert abs(counts[0] / output.size - 0.3) < 0.02
    assert (output != output[:, :1]).any(axis=(1, 2)).all()  # another mask at each step
    assert (output != output[:1]).any(axis=(1, 2))[1:].all()  # and for each sequence


def test_dropout_is_fresh_at_each_call_and_the_same_for_the_same_seed(see_through):
    one, same, other = see_through(0.5), see_through(0.5), see_through(0.5, seed=1)
    first, second = draw_once(one), draw_once(one)
    assert (first != second).any()
    equal((draw_once(same), draw_once(same)), (first, second))
    assert (draw_once(other) != first).any()


def test_dropout_is_off_in_evaluation_and_on_again_in_training(see_through):
    module = see_through(0.5)
    assert np.unique(draw_once(module)).size == 2
    module.eval()
    np.testing.assert_array_equal(draw_once(module), 1.0)
    jit(lambda x: module(x))(jnp.ones((2, 3, 1)))  # nothing drawn: closing over it is allowed
    module.train()
    assert np.unique(draw_once(module)).size == 2


def test_evaluation_is_bitwise_a_module_without_dropout():
    sizes = (INPUT, HIDDEN, 2)
    module, plain = make("LSTM", *sizes, **{k: v for k, v in RATES.items() if k != "zoneout"}), make("LSTM", *sizes)
    module.eval()
    run = jit(lambda m: m(X, lengths=LENGTHS))
    equal(run(module), run(plain))


def test_dropout_of_everything_leaves_the_last_layer_its_biases():
    """p = 1: the second layer reads zeros, and its own output is not dropped."""
    module = make("GRU", INPUT, HIDDEN, 2, dropout=1.0)
    second = make("GRU", HIDDEN, HIDDEN)
    nnx.update(second, jax.tree.map(lambda a: a, nnx.state(second)))
    for to, of in zip(second.params[0][0], module.params[1][0], strict=True):
        to.set_value(of.get_value())
    output = nnx.jit(lambda m: m(X)[0])(module)
    close(output, jit(lambda m: m(jnp.zeros((BATCH, TIME, HIDDEN)))[0])(second))
    assert np.abs(output).min() > 1e-6


def test_dropout_of_a_single_layer_does_nothing():
    with pytest.warns(UserWarning, match="does nothing"):
        module = make("GRU", INPUT, HIDDEN, dropout=0.9)
    equal(nnx.jit(lambda m: m(X))(module), nnx.jit(lambda m: m(X))(make("GRU", INPUT, HIDDEN)))


@pytest.mark.slow
@pytest.mark.newest
def test_linen_draws_from_the_stream_dropout():
    module = jaxrnn.linen.GRU(INPUT, HIDDEN, 2, dropout=0.5)
    variables = {"params": jaxrnn.trees.to_dict(module.stack.init(jax.random.key(0)))}
    run = jit(lambda key: module.apply(variables, X, deterministic=False, rngs={"dropout": key})[0])
    one, other = jax.random.key(1), jax.random.key(2)
    equal(run(one), run(one))
    assert (run(one) != run(other)).any()
    off = jit(lambda: module.apply(variables, X)[0])()
    equal(off, jit(lambda: module.apply(variables, X, rngs={"dropout": one})[0])())
    assert (off != run(one)).any()


# Several devices ----------------------------------------------------------------------------------------------------------

EVERYTHING = RATES | BOTH | {"learn_initial_state": True, **SKIP}
SHARDED = {
    "LSTM, lengths": ("LSTM", BOTH, lambda shard: {"lengths": shard(LENGTHS)}),
    "GRU, unsharded lengths": ("GRU", {}, lambda shard: {"lengths": LENGTHS}),
    "everything": ("RNN", EVERYTHING, lambda shard: {"mask": shard(MASK), "reset": RESET}),
}


@pytest.mark.parametrize("case", [*[*SHARDED][:2], pytest.param([*SHARDED][2], marks=[pytest.mark.slow, pytest.mark.newest])])
def test_a_batch_sharded_over_an_explicit_mesh_gives_the_single_device_result(case):
    """What `jax.make_mesh` gives; the draws are the same too, and the output stays sharded."""
    name, options, given = SHARDED[case]
    module = make(name, INPUT, HIDDEN, 2 if options is EVERYTHING else 1, **options)
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jit
    def run(params, x, given):
        def total(params):
            output, h_n = nnx.merge(graph, params, rest, copy=True)(x, **given)
            return jnp.sum(jnp.sin(output)) + sum(jnp.sum(a) for a in jax.tree.leaves(h_n)), output

        return jax.value_and_grad(total, has_aux=True)(params)

    want = run(params, X, given(lambda a: a))
    mesh = jax.make_mesh((2,), ("data",))
    with jax.set_mesh(mesh):
        shard = lambda a: jax.device_put(a, NamedSharding(mesh, P("data")))
        everywhere = jax.device_put(params, NamedSharding(mesh, P()))
        got = run(everywhere, shard(X), given(shard))
    close(jax.device_get(got), jax.device_get(want))
    assert got[0][1].sharding.spec[0] == "data"


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_shard_map_with_its_default_checks_gives_the_single_device_result(name):
    module = make(name, INPUT, HIDDEN, zoneout=0.2, learn_initial_state=True, **BOTH)
    module.eval()
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def run(params, x, lengths, reset):
        return loss(nnx.merge(graph, params, rest), x, lengths=lengths, reset=reset)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.shard_map(
        lambda params, *batch: jax.lax.psum(run(params, *batch), "data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P("data"), P("data")),
        out_specs=P(),
    )
    batch = (X, LENGTHS, RESET)
    close(jit(jax.value_and_grad(whole))(params, *batch), jit(jax.value_and_grad(run))(params, *batch))


@pytest.mark.slow
@pytest.mark.newest
def test_shard_map_draws_too():
    module = make("RNN", INPUT, HIDDEN, 2, **EVERYTHING)
    graph, state = nnx.split(module)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    run = jax.shard_map(lambda state, x: nnx.merge(graph, state)(x)[0], mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
    output = jit(run)(state, X)
    assert output.shape == (BATCH, TIME, 20)
    assert np.isfinite(output).all()


def test_a_step_is_checked_anew_for_other_shapes_kinds_and_dtypes(monkeypatch):
    """After a call that was right, and was remembered."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # or an annotation would speak first
    lstm = jaxrnn.LSTM(INPUT, HIDDEN, rngs=nnx.Rngs(0))
    x = jnp.ones((BATCH, INPUT))
    _, state = lstm.step(x)
    for _ in range(2):
        lstm.step(x, state)
        with pytest.raises(ValueError, match=r"LSTM\.step: `x` should end in"):
            lstm.step(jnp.ones((BATCH, INPUT + 1)), state)
        with pytest.raises(ValueError, match=r"LSTM\.step: `state\[0\]` should have shape"):
            lstm.step(x[:-1], state)
        with pytest.raises(TypeError, match=r"LSTM\.step: `x` should be an array"):
            lstm.step(jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        with pytest.raises(TypeError, match=r"LSTM\.step: `state` should be a tuple"):
            lstm.step(x, state[0])
        with pytest.raises(TypeError, match=r"LSTM\.step: `x` should be a floating-point array"):
            lstm.step(jnp.ones((BATCH, INPUT), jnp.int32), state)


def test_a_variable_that_gives_another_value_than_it_holds_is_asked():
    """By a class of its own, or by a hook, which Flax will do without some day."""

    class Twice(nnx.Param):
        def get_value(self, **options):
            return 2 * super().get_value(**options)

    def hooked(value):
        with pytest.warns(UserWarning, match="hooks are deprecated"):
            return nnx.Param(value, on_get_value=lambda variable, value: 2 * value)

    gru = jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(0))
    x, weights = normal(BATCH, TIME, INPUT), gru.params[0][0].w_ih.get_value()
    outputs = []
    for make_variable in (nnx.Param, lambda value: nnx.Param(2 * value), Twice, hooked):
        gru.layer_0.forward.w_ih = make_variable(weights)
        outputs.append(np.asarray(gru(x)[0]))
    plain, twice, by_class, by_hook = outputs
    assert np.abs(twice - plain).max() > 0.01
    np.testing.assert_array_equal(by_class, twice)
    np.testing.assert_array_equal(by_hook, twice)
