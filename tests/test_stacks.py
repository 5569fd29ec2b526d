"""What stacks are made of: layers of their own size, connections, merges; and the dropout family, what it draws and when."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx
from support import RESIDUAL, SKIP, close, count, drawn_like, equal, equations, inner_jaxprs, jit, normal

import jaxrnn
from jaxrnn import Hidden, LSTMState, Stack

TIME, BATCH, INPUT, HIDDEN = 6, 4, 3, 5

# Layers ------------------------------------------------------------------------------------------------------------------


def by_hand(stack, params, xs, lengths, *, residual, skip):
    """Layer by layer, direction by direction."""
    run = partial(jaxrnn.unroll, stack.cell, lengths=lengths)
    reads, ys, outputs, finals = [xs] * stack.num_directions, None, [], []
    for k, layer in enumerate(params):
        ends, outs = zip(*(run(p, x, reverse=d == 1) for d, (p, x) in enumerate(zip(layer, reads, strict=True))), strict=True)
        finals.append(ends)
        if not stack.bidirectional or stack.merge == "none":
            merged = outs
        elif stack.merge == "concat":
            merged = [jnp.concatenate(outs, axis=-1)] * 2
        else:
            merged = [(outs[0] + outs[1]) * (0.5 if stack.merge == "mean" else 1.0)] * 2
        if residual and k > 0:
            merged = [out + x for out, x in zip(merged, ys, strict=True)]
        reads = ys = merged
        outputs.append(ys)
        if skip:
            reads = [jnp.concatenate([xs, y], axis=-1) for y in ys]
    if skip:
        ys = [jnp.concatenate(layers, axis=-1) for layers in zip(*outputs, strict=True)]
    return tuple(ys) if stack.bidirectional and stack.merge == "none" else ys[0], tuple(finals)


UNEQUAL, EQUAL = (HIDDEN, 4, 6), (HIDDEN,) * 3
CONNECTIONS = [({}, UNEQUAL), (RESIDUAL, EQUAL), (SKIP, UNEQUAL)]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(
    ("merge", "connection", "hidden"),
    [
        *((merge, *connection) for merge in ("one direction", "concat", "none") for connection in CONNECTIONS),
        ("mean", RESIDUAL, EQUAL),
        ("sum", SKIP, UNEQUAL),
    ],
)
def test_a_stack_is_its_layers_put_together_by_hand(merge, connection, hidden, x64):
    """Ways to merge, with every connection, where each layer can be told from the others: three of them."""
    directions = {} if merge == "one direction" else {"bidirectional": True, "merge": merge}
    stack = Stack(jaxrnn.RNNCell(), INPUT, hidden, 3, **directions, **connection, param_dtype=jnp.float64)
    params, xs, lengths = drawn_like(stack.init(jax.random.key(0))), normal(3, BATCH, INPUT), jnp.array([3, 0, 2, 1])
    got = jit(lambda params, xs: stack.apply(params, xs, lengths=lengths))(params, xs)
    used = {"residual": connection == RESIDUAL, "skip": connection == SKIP}
    close(got, jit(lambda params, xs: by_hand(stack, params, xs, lengths, **used))(params, xs))
    assert {a.shape[-1] for a in jax.tree.leaves(got[0])} == {stack.output_size}
    padding = np.arange(3)[:, None] >= lengths
    assert all((np.asarray(a)[padding] == 0).all() for a in jax.tree.leaves(got[0]))


# Dropout -----------------------------------------------------------------------------------------------------------------

RELU = jaxrnn.RNNCell(nonlinearity="relu")
WIDE = 60


def plain(w_ih, w_hh):
    """Parameters of one layer of `RELU` without biases."""
    return ((jaxrnn.GateParams(w_ih[:, None], w_hh[:, None], None, None),),)


def run(stack, params, xs, states=None, key=0):
    """`apply`, with what it draws from `key`."""
    return jit(lambda params, xs, states, key: stack.apply(params, xs, states, key=key))(params, xs, states, jax.random.key(key))


def assert_share(dropped, rate):
    """As many as expected, to five standard deviations."""
    assert abs(np.mean(dropped) - rate) < 5 * (rate * (1 - rate) / np.size(dropped)) ** 0.5


def test_input_dropout_draws_one_mask_for_the_whole_sequence():
    """The layer passes its input on: what it reads is 0 or 1 / (1 − rate), the same at every step."""
    stack = Stack(RELU, WIDE, WIDE, bias=False, input_dropout=0.3)
    output, _ = run(stack, plain(jnp.eye(WIDE), jnp.zeros((WIDE, WIDE))), jnp.ones((TIME, 50, WIDE)))
    output = np.asarray(output)
    np.testing.assert_allclose(np.unique(output.round(5)), [0, 1 / 0.7], rtol=1e-5)
    assert (output == output[:1]).all()
    assert (output[0] != output[0, :1]).any(axis=1)[1:].all()
    assert_share(output[0] == 0, 0.3)


def test_recurrent_dropout_draws_one_mask_for_the_whole_sequence():
    """The layer reads only itself, through the identity: after t steps an entry is 0 or (1 / (1 − rate))ᵗ."""
    stack = Stack(RELU, 1, WIDE, bias=False, recurrent_dropout=0.2)
    start = ((Hidden(jnp.ones((50, WIDE))),),)
    params = plain(jnp.zeros((1, WIDE)), jnp.eye(WIDE))
    output, _ = run(stack, params, jnp.zeros((TIME, 50, 1)), start)
    kept = np.asarray(output[0]) > 0
    want = kept[None] * (1 / 0.8) ** np.arange(1, TIME + 1)[:, None, None]
    np.testing.assert_allclose(output, want, rtol=1e-5)
    assert_share(~kept, 0.2)


def test_each_direction_and_each_purpose_has_its_own_draw():
    """What the input loses is independent of what `h` loses, and that of what it loses in the other direction."""
    both = Stack(RELU, WIDE, WIDE, bias=False, recurrent_dropout=0.5, input_dropout=0.5, bidirectional=True, merge="none")
    (params,) = plain(jnp.eye(WIDE), jnp.eye(WIDE))
    outputs, _ = run(both, (params * 2,), jnp.ones((2, 50, WIDE)))
    first, last = (np.asarray(o) for o in ((outputs[0][0], outputs[1][1]), (outputs[0][1], outputs[1][0])))
    read = first > 0  # the first step of each direction shows the input's mask, the second what is added to it
    remembered = last - first > 1e-3
    assert (read[0] == read[1]).all()
    assert_share(remembered[0][read[0]], 0.5)
    assert_share((remembered[0] == remembered[1])[read[0]], 0.5)


def test_weight_dropout_draws_one_matrix_for_all_sequences_and_steps():
    """Started from each unit alone, the first step shows the rows of the matrix, the second its square."""
    w_hh = jnp.abs(normal(WIDE, WIDE)) + 0.1
    stack = Stack(RELU, 1, WIDE, bias=False, weight_dropout=0.25)
    start = ((Hidden(jnp.eye(WIDE)),),)
    output, _ = run(stack, plain(jnp.zeros((1, WIDE)), w_hh), jnp.zeros((2, WIDE, 1)), start)
    kept = np.asarray(output[0]) > 0
    close(output[0], np.where(kept, w_hh / 0.75, 0).astype(np.float32), 1e-5)
    close(output[1], output[0] @ output[0], 1e-4)
    assert_share(~kept, 0.25)


@pytest.mark.slow
@pytest.mark.newest
def test_zoneout_keeps_entries_of_every_field_of_the_state_by_themselves():
    """One step: each entry of h and of c is the old one or the new one, in independent draws; their mean is the expected step."""
    rate, rows = 0.3, 2000
    stack = Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, zoneout=rate)
    params = drawn_like(stack.init(jax.random.key(0)))
    x, start = normal(1, 1, INPUT), LSTMState(normal(1, HIDDEN, seed=1), normal(1, HIDDEN, seed=2))
    copies = lambda a: jnp.broadcast_to(a, (*a.shape[:-2], rows, a.shape[-1]))
    _, (((drawn),),) = run(stack, params, copies(x), ((jax.tree.map(copies, start),),))
    new, _ = stack.cell.step(params[0][0], start, x[0])
    kept = []
    for a, old, one in zip(drawn, start, new, strict=True):
        is_old, is_new = np.isclose(a, old, atol=1e-6), np.isclose(a, one, atol=1e-6)
        assert (is_old ^ is_new).all()
        assert_share(is_old, rate)
        kept.append(is_old)
    assert_share(kept[0] & kept[1], rate**2)
    _, (((expected),),) = jit(lambda: stack.apply(params, x, ((start,),)))()
    for a, mean, old, one in zip(drawn, expected, start, new, strict=True):
        close(mean, rate * old + (1 - rate) * one, 1e-6)
        np.testing.assert_allclose(jnp.mean(a, 0), mean[0], atol=5 * float(jnp.max(jnp.abs(old - one))) * (0.21 / rows) ** 0.5)


@pytest.mark.slow
@pytest.mark.newest
def test_zoneout_without_draws_is_the_loop_of_expected_steps(x64):
    stack = Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, zoneout=0.3, param_dtype=jnp.float64)
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(TIME, BATCH, INPUT)
    state = LSTMState(normal(BATCH, HIDDEN, seed=1), normal(BATCH, HIDDEN, seed=2))
    output, (((final),),) = jit(lambda: stack.apply(params, xs, ((state,),)))()
    for t in range(TIME):
        new, _ = jit(stack.cell.step)(params[0][0], state, xs[t])
        state = LSTMState(*(0.3 * old + 0.7 * one for old, one in zip(state, new, strict=True)))
        close(output[t], state.h)
    close(final, state)


FAMILY = {"dropout": 0.5, "input_dropout": 0.3, "recurrent_dropout": 0.4, "zoneout": 0.2, "weight_dropout": 0.1}


@pytest.mark.slow
@pytest.mark.newest
def test_the_same_key_draws_the_same_and_another_key_something_else():
    stack = Stack(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, **FAMILY)
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(TIME, BATCH, INPUT)
    once = run(stack, params, xs)
    equal(run(stack, params, xs), once)
    assert np.abs(run(stack, params, xs, key=1)[0] - once[0]).max() > 1e-3


@pytest.mark.parametrize("option", FAMILY)
def test_each_of_the_family_alone_changes_training_and_only_zoneout_changes_evaluation(option):
    stack, without = (Stack(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, **rates) for rates in ({option: FAMILY[option]}, {}))
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(TIME, BATCH, INPUT)
    plain_run = jit(lambda: without.apply(params, xs))()
    assert np.abs(run(stack, params, xs)[0] - plain_run[0]).max() > 1e-3
    evaluated = jit(lambda: stack.apply(params, xs))()
    if option == "zoneout":
        assert np.abs(evaluated[0] - plain_run[0]).max() > 1e-3
    else:
        equal(evaluated, plain_run)


@pytest.mark.slow
@pytest.mark.newest
def test_nothing_is_drawn_inside_a_loop():
    stack = Stack(jaxrnn.GRUCell(), INPUT, HIDDEN, 2, bidirectional=True, **FAMILY)
    shapes = jax.eval_shape(stack.init, jax.random.key(0)), jax.ShapeDtypeStruct((TIME, BATCH, INPUT), jnp.float32)
    total = lambda params, xs, key: jnp.sum(stack.apply(params, xs, key=key)[0])
    jaxpr = jax.make_jaxpr(jax.grad(total))(*shapes, jax.random.key(0)).jaxpr
    loops = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]
    assert count(jaxpr, "random_bits") >= 2 * (2 + 2 * 3)  # layers × (input, output; directions × (h, state, weights)), at most
    assert len(loops) == 8
    assert sum(count(inner, "random_bits") for loop in loops for inner in inner_jaxprs(loop)) == 0


def test_rates_may_be_numpy_numbers_and_one(monkeypatch):
    """A rate of 1 of everything: nothing is read, no state moves."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # an annotation `float` takes no integer
    ones = {"input_dropout": 1, "recurrent_dropout": np.float32(1), "weight_dropout": 1.0, "dropout": np.float64(1)}
    module = jaxrnn.GRU(INPUT, HIDDEN, 2, **ones, zoneout=1, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    h_0 = normal(2, BATCH, HIDDEN)
    output, h_n = nnx.jit(lambda m: m(normal(BATCH, TIME, INPUT), h_0=h_0))(module)
    equal(h_n, h_0)
    equal(output, jnp.broadcast_to(h_0[1][:, None], output.shape).astype(jnp.bfloat16))
    module.eval()
    equal(jit(lambda m: m(normal(BATCH, TIME, INPUT), h_0=h_0))(module)[1], h_0)
