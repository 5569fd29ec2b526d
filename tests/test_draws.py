"""What is drawn: each draw from a key of its own, over the axes that it should differ over and over no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import RESIDUAL, SKIP, drawn_like, equal, jit, keys_drawn_from, normal

import jaxrnn
from jaxrnn import Stack
from jaxrnn.cells import CELLS
from jaxrnn.initializers import uniform

INPUT, HIDDEN, WIDE = 3, 5, 40
RELU = jaxrnn.RNNCell(nonlinearity="relu")
FAMILY = {"dropout": 0.5, "input_dropout": 0.5, "recurrent_dropout": 0.5, "zoneout": 0.5, "weight_dropout": 0.5}


# Keys --------------------------------------------------------------------------------------------------------------------


def assert_all_differ(keys):
    assert keys
    assert len({key.tobytes() for key in keys}) == len(keys)


MERGES = [
    "concat",
    "sum",
    "mean",
    "none",
]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("merge", MERGES)
def test_every_draw_of_training_has_a_key_of_its_own(merge):
    """Layers, directions, fields of the state and purposes: 3 layers × 2 directions × (h, h's and c's zoneout, weights), and
    what is read, once for both directions where they read the same."""
    stack = Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, 3, bidirectional=True, merge=merge, **FAMILY)
    params, xs = stack.init(jax.random.key(0)), normal(2, 2, INPUT)
    keys = keys_drawn_from(lambda params, xs, key: stack.apply(params, xs, key=key), params, xs, jax.random.key(1))
    reads = 3 + 2 if merge != "none" else 1 + 2 * 2 + 2 * 2
    assert_all_differ(keys)
    assert len(keys) >= 3 * 2 * 4 + reads


@pytest.mark.parametrize("name", CELLS)
def test_every_first_value_has_a_key_of_its_own(name):
    cell = CELLS[name](
        **({"proj_size": 2} if name == "ProjectedLSTM" else {}), b_ih_init=uniform
    )  # none tied, as chrono biases are
    stack = Stack(cell, INPUT, HIDDEN, 2, bidirectional=True)
    keys = keys_drawn_from(stack.init, jax.random.key(0))
    assert_all_differ(keys)
    params = stack.init(jax.random.key(0))[0][0]
    assert len(keys) >= 2 * 2 * sum(a.shape[-2] for a in params[:3] if a is not None)


# Axes --------------------------------------------------------------------------------------------------------------------


def plain(w_ih, w_hh):
    """Parameters of `RELU` without biases."""
    return jaxrnn.GateParams(w_ih[:, None], w_hh[:, None], None, None)


def identity(size=WIDE):
    """A layer that passes on what it reads."""
    return plain(jnp.eye(size), jnp.zeros((size, size)))


def masks(option):
    """What one layer shows of its draws, 1 or 0 at each step of each sequence: (time, batch, unit)."""
    stack = Stack(RELU, WIDE, WIDE, 2 if option == "dropout" else 1, bias=False, **{option: 0.5})
    xs = jnp.ones((12, 30, WIDE))
    if option in ("dropout", "input_dropout"):
        params = ((identity(),),) * stack.num_layers
        return np.asarray(run(stack, params, xs)) > 0
    if option == "zoneout":  # counts the steps that are not held
        counts = np.asarray(run(stack, ((plain(jnp.eye(WIDE), jnp.eye(WIDE)),),), xs))
        return np.diff(counts, axis=0, prepend=0) > 0
    # Of what is read of `h`, the same at every step: started from ones each time, since the state is reset to ones.
    initial, reset = ((jaxrnn.Hidden(jnp.ones(WIDE)),),), jnp.ones(xs.shape[:2], bool)
    params = ((plain(jnp.zeros((WIDE, WIDE)), jnp.eye(WIDE)),),)
    return np.asarray(run(stack, params, xs, initial=initial, reset=reset)) > 0


def run(stack, params, xs, key=0, **given):
    return jit(lambda params, xs, key: stack.apply(params, xs, key=key, **given)[0])(params, xs, jax.random.key(key))


OVER = {  # the axes that draws differ over: steps, sequences, units
    "dropout": (True, True, True),
    "input_dropout": (False, True, True),
    "recurrent_dropout": (False, True, True),
    "zoneout": (True, True, True),
    "weight_dropout": (False, False, True),
}


@pytest.mark.parametrize("option", OVER)
def test_draws_are_independent_over_some_axes_and_the_same_over_the_others(option):
    """Any two neighbours along an axis agree in half of the entries, or in all."""
    mask = masks(option)
    one_draw = mask[tuple(slice(None) if over else slice(1) for over in OVER[option])]
    assert abs(one_draw.mean() - 0.5) < 5 * (0.25 / one_draw.size) ** 0.5
    for axis, over in enumerate(OVER[option]):
        first, second = (np.take(one_draw if over else mask, k, axis) for k in (0, 1))
        agree = first == second
        if over:
            assert abs(agree.mean() - 0.5) < 5 * (0.25 / agree.size) ** 0.5
        else:
            assert (mask == np.take(mask, [0], axis)).all()


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("merge", ["concat", "none"])
def test_zoneout_holds_other_entries_in_each_layer_and_direction(merge):
    """Each counts its steps that are not held; layers read ones only through the skip of the stack's input."""
    stack = Stack(RELU, WIDE, WIDE, 2, bias=False, zoneout=0.5, bidirectional=True, merge=merge, **SKIP)
    reads = stack.layer_input_sizes[1]
    second = plain(jnp.zeros((reads, WIDE)).at[:WIDE].set(jnp.eye(WIDE)), jnp.eye(WIDE))
    params = ((plain(jnp.eye(WIDE), jnp.eye(WIDE)),) * 2, (second,) * 2)
    apply = jit(lambda key: stack.apply(params, jnp.ones((6, 20, WIDE)), key=key, return_states=True)[2])
    held = []
    for layer in apply(jax.random.key(0)):
        held += [np.diff(np.asarray(layer[0].h), axis=0) == 0, np.diff(np.asarray(layer[1].h)[::-1], axis=0) == 0]
    for k, one in enumerate(held):
        for other in held[:k]:
            for which in (other, other[::-1]):
                assert abs((one == which).mean() - 0.5) < 5 * (0.25 / one.size) ** 0.5


@pytest.mark.parametrize("kind", ["residual", "skip"])
def test_a_connection_carries_what_was_not_dropped(kind):
    """Layers that pass on ones: what goes around a layer, and what goes into the output, is 1 everywhere; what a layer reads of
    the layer before is not."""
    connection = RESIDUAL if kind == "residual" else SKIP
    stack = Stack(RELU, WIDE, WIDE, 3, bias=False, dropout=0.5, **connection)
    reads = stack.layer_input_sizes[1:]
    if kind == "residual":  # the later layers add nothing
        later = tuple((plain(jnp.zeros((size, WIDE)), jnp.zeros((WIDE, WIDE))),) for size in reads)
    else:  # the second passes on the stack's input, the third the output of the second
        first, behind = (jnp.zeros((size, WIDE)) for size in reads)
        later = tuple(
            (plain(w, jnp.zeros((WIDE, WIDE))),) for w in (first.at[:WIDE].set(jnp.eye(WIDE)), behind.at[WIDE:].set(jnp.eye(WIDE)))
        )
    output = np.asarray(run(stack, ((identity(),), *later), jnp.ones((4, 3, WIDE))))
    around = output if kind == "residual" else output[..., : 2 * WIDE]
    np.testing.assert_array_equal(around, 1)
    if kind == "skip":
        np.testing.assert_array_equal(np.unique(output[..., 2 * WIDE :]), [0, 2])


# Extremes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("option", [*FAMILY, "all"])
def test_a_rate_of_one_gives_finite_gradients(option):
    rates = dict.fromkeys(FAMILY, 1.0) if option == "all" else {option: 1.0}
    stack = Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, 2 if option in ("all", "dropout") else 1, **rates)
    params = drawn_like(jax.eval_shape(stack.init, jax.random.key(0)))
    loss = lambda params, xs, key: jnp.sum(stack.apply(params, xs, key=key)[0] ** 2)
    grads = jit(jax.value_and_grad(loss, (0, 1)))(params, normal(4, 2, INPUT), jax.random.key(1))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(grads))


# Modules -----------------------------------------------------------------------------------------------------------------


def module(rngs):
    return jaxrnn.GRU(INPUT, HIDDEN, 2, dropout=0.5, recurrent_dropout=0.5, rngs=rngs)


X = normal(2, 4, INPUT, dtype=jnp.float32)


def params_of(module):
    return nnx.state(module, nnx.Param)


@nnx.jit
def call(module):
    return module(X)[0]


@pytest.mark.slow
@pytest.mark.newest
def test_parameters_come_from_one_stream_and_draws_from_another():
    one, draws, other = (module(nnx.Rngs(params=p, dropout=d)) for p, d in ((0, 1), (0, 2), (3, 1)))
    equal(params_of(draws), params_of(one))
    assert np.abs(one.params[0][0].w_ih.get_value() - other.params[0][0].w_ih.get_value()).max() > 1e-3
    nnx.update(other, params_of(one))
    output = call(one)
    equal(call(other), output)
    assert np.abs(call(draws) - output).max() > 1e-3


def test_calling_one_module_changes_nothing_in_another_nor_in_the_stream_that_both_came_from():
    def pair(calls):
        rngs = nnx.Rngs(0)
        one, other = module(rngs), module(rngs)
        before = [call(one) for _ in range(calls)]
        return before, call(other), rngs.params(), rngs.dropout()

    _, second, *keys = pair(3)
    _, alone, *keys_alone = pair(0)
    equal(second, alone)
    equal([jax.random.key_data(k) for k in keys], [jax.random.key_data(k) for k in keys_alone])


def test_two_modules_of_one_stream_draw_apart():
    rngs = nnx.Rngs(0)
    one, other = module(rngs), module(rngs)
    nnx.update(other, params_of(one))
    assert np.abs(call(one) - call(other)).max() > 1e-3
