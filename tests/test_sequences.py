"""Sequences as they come: masks, resets, learned starts, every state, streams, truncation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from oracles import ORACLES
from support import arrays, close, drawn_like, equal, equations, jit, normal, plain, quickly, weighted

import jaxrnn
from jaxrnn import Stack
from jaxrnn.cells import CELLS

pytestmark = pytest.mark.usefixtures("x64")

TIME, BATCH, INPUT, HIDDEN = 9, 4, 3, 5
both_directions = pytest.mark.parametrize("reverse", [False, True])
two_kinds = pytest.mark.parametrize("name", ["LSTM", "ChungGRU"])  # with the engine's derivative rule and without

unroll = jax.jit(
    jaxrnn.unroll,
    static_argnums=0,
    static_argnames=("reverse", "remat", "return_states", "truncate", "dtype"),
    compiler_options=quickly,
)


def setting(cell, *, time=TIME, seed=0):
    """Parameters, inputs, a start and a state to return to; all random."""
    params = drawn_like(jax.eval_shape(lambda key: cell.init(key, INPUT, HIDDEN, dtype=jnp.float64), jax.random.key(0)), seed)
    xs = normal(time, BATCH, INPUT, seed=seed)
    like = jax.eval_shape(lambda xs: cell.initial_state(params, xs[0]), xs)
    return params, xs, drawn_like(like, seed + 1, 1.0), jax.tree.map(lambda a: a[0], drawn_like(like, seed + 2, 1.0))


def row(tree, n):
    return jax.tree.map(lambda a: a[n], tree)


def gaps():
    """A mask with a row of padding alone, a row without, one padded at the left, one with gaps."""
    mask = np.random.default_rng(1).random((TIME, BATCH)) < 0.6
    mask[:, 0], mask[:, 1], mask[:, 2] = False, True, np.arange(TIME) > 3
    return mask


def some_resets():
    """Resets inside and outside of what `gaps` holds valid, at the first and at the last step too."""
    reset = np.random.default_rng(2).random((TIME, BATCH)) < 0.3
    reset[0], reset[-1] = [True, True, False, False], [False, True, True, False]
    return reset


def stacked(cell=None, **options):
    """A stack of two layers with random parameters and a function that runs it."""
    stack = Stack(cell or jaxrnn.LSTMCell(), INPUT, HIDDEN, 2, param_dtype=jnp.float64, **options)
    return stack, drawn_like(jax.eval_shape(stack.init, jax.random.key(0)))


# Masks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_lengths_are_a_mask():
    stack, params = stacked(bidirectional=True)
    xs, lengths = normal(TIME, BATCH, INPUT), jnp.array([9, 0, 4, 1])
    run = jit(lambda given: stack.apply(params, xs, **given))
    mask = jnp.arange(TIME)[:, None] < lengths
    equal(run({"mask": mask}), run({"lengths": lengths}))


@pytest.mark.slow
@pytest.mark.newest
def test_a_stack_reads_masked_sequences_as_if_the_gaps_were_not_there():
    """Two layers, both directions: each row with its valid steps moved together gives the same outputs and states."""
    stack, params = stacked(bidirectional=True)
    xs, mask = normal(TIME, BATCH, INPUT), gaps()
    run = jit(lambda xs, given: stack.apply(params, xs, **given))
    output, states = run(xs, {"mask": jnp.asarray(mask)})
    assert (np.asarray(output)[~mask] == 0).all()
    together = np.zeros_like(xs)
    for n in range(BATCH):
        together[: mask[:, n].sum(), n] = xs[mask[:, n], n]
    want, want_states = run(jnp.asarray(together), {"lengths": jnp.asarray(mask.sum(0))})
    close(states, want_states)
    for n in range(BATCH):
        close(np.asarray(output)[mask[:, n], n], np.asarray(want)[: mask[:, n].sum(), n])


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("connection", [{}, {"residual": True}, {"skip_connections": True}], ids=str)
def test_nan_and_infinity_where_the_mask_is_false_reach_nothing(connection):
    """Through two layers and both directions, bit for bit: outputs, states, gradients of parameters and of inputs."""
    stack, params = stacked(bidirectional=True, **connection)
    xs, mask = normal(TIME, BATCH, INPUT), jnp.asarray(gaps())

    def run(params, xs):
        result = stack.apply(params, xs, mask=mask, key=None)
        return weighted(result), result

    compute = jit(jax.grad(run, (0, 1), has_aux=True))
    dirty = np.where(mask[..., None], xs, np.nan)
    dirty[0] = np.where(mask[0][:, None], xs[0], np.inf)
    clean = compute(params, xs)
    equal(compute(params, jnp.asarray(dirty)), clean)
    assert (np.asarray(clean[0][1])[~mask] == 0).all()


@pytest.mark.slow
@pytest.mark.newest
def test_nan_in_a_valid_step_shows_in_its_row_and_in_no_other():
    stack, params = stacked()
    xs = normal(TIME, BATCH, INPUT)
    run = jit(lambda xs: stack.apply(params, xs)[0])
    output, clean = run(xs.at[3, 2, 0].set(np.nan)), run(xs)
    assert np.isnan(output[3:, 2]).all()
    equal(output[:3], clean[:3])
    equal(jnp.delete(output, 2, axis=1), jnp.delete(clean, 2, axis=1))


# Resets ------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_a_reset_returns_to_zeros_unless_told_otherwise_and_never_to_the_start():
    cell = CELLS["GRU"]()
    params, xs, state, _ = setting(cell)
    reset = jnp.zeros((TIME, BATCH), bool).at[4].set(True)
    final, ys = unroll(cell, params, xs, state, reset=reset)
    close(unroll(cell, params, xs[4:]), (final, ys[4:]))
    close(unroll(cell, params, xs[:4], state)[1], ys[:4])


@pytest.mark.slow
@pytest.mark.newest
@two_kinds
def test_a_reset_clears_a_nan_state(name):
    """By selection, not by multiplication: in the state, and in every gradient."""
    cell = CELLS[name]()
    params, xs, state, initial = setting(cell)
    reset = jnp.zeros((TIME, BATCH), bool).at[0].set(True)
    ruined = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), state)

    def run(params, xs, state, initial):
        return weighted(jaxrnn.unroll(cell, params, xs, state, initial=initial, reset=reset))

    compute = jit(jax.value_and_grad(run, (0, 1, 2, 3)))
    equal(compute(params, xs, ruined, initial), compute(params, xs, state, initial))
    final, ys = unroll(cell, params, xs.at[2].set(jnp.nan), state, reset=reset.at[5].set(True))
    assert np.isnan(ys[2:5]).all()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((ys[5:], final)))


@pytest.mark.slow
@pytest.mark.newest
def test_a_bidirectional_stack_reads_packed_sequences_as_if_each_were_alone():
    """Three sequences in a row of nine steps: forward and backward, in both layers."""
    stack, params = stacked(bidirectional=True)
    xs = normal(TIME, BATCH, INPUT)
    run = jit(lambda xs, given: stack.apply(params, xs, **given))
    output, _ = run(xs, {"reset": jnp.zeros((TIME, BATCH), bool).at[jnp.array([0, 2, 6])].set(True)})
    for start, stop in [(0, 2), (2, 6), (6, 9)]:
        alone = jnp.zeros_like(xs).at[: stop - start].set(xs[start:stop])
        want, _ = run(alone, {"lengths": jnp.full(BATCH, stop - start)})
        close(output[start:stop], want[: stop - start])


# A learned start ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_a_learned_start_is_a_start_and_what_a_reset_returns_to():
    cell = CELLS["LSTM"]()
    params, xs, state, initial = setting(cell)
    given = jax.tree.map(lambda a: jnp.broadcast_to(a, (BATCH, HIDDEN)), initial)
    equal(unroll(cell, params, xs, initial=initial), unroll(cell, params, xs, given))
    equal(unroll(cell, params, xs, state, initial=initial), unroll(cell, params, xs, state))
    every_step = jnp.ones((TIME, BATCH), bool)
    _, ys = unroll(cell, params, xs, state, initial=initial, reset=every_step)
    close(ys[5], unroll(cell, params, xs[5:6], given)[1][0])


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_gradients_reach_a_learned_start(flavour):
    """What a start of its own for each sequence gets, summed; nothing when a start is given and nothing resets."""
    options = {"learn_initial_state": True, "param_dtype": jnp.float64, "bidirectional": True}
    module = jaxrnn.LSTM(INPUT, HIDDEN, 2, **options, rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, INPUT)
    layers, learned = arrays(module.params), drawn_like(arrays(module.learned))
    assert jax.tree.map(jnp.shape, learned) == ((jaxrnn.LSTMState((HIDDEN,), (HIDDEN,)),) * 2,) * 2
    assert all((a.get_value() == 0).all() for a in jax.tree.leaves(module.learned, is_leaf=lambda v: isinstance(v, nnx.Param)))

    def run(learned, h_0=None):
        if flavour == "linen":
            linen = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, **options)
            return weighted(linen.apply({"params": jaxrnn.trees.to_dict(layers, learned)}, x, h_0=h_0))
        copy = nnx.clone(module)
        jax.tree.map(lambda v, a: v.set_value(a), copy.learned, learned, is_leaf=lambda v: isinstance(v, nnx.Param))
        return weighted(copy(x, h_0=h_0))

    flat = [state for layer in learned for state in layer]
    h_0 = tuple(jnp.stack([jnp.broadcast_to(s[k], (BATCH, HIDDEN)) for s in flat]) for k in range(2))
    value, grads = jit(jax.value_and_grad(run))(learned)
    want, (d_h, d_c) = jit(jax.value_and_grad(run, argnums=1))(learned, h_0)
    close(value, want)
    got = [state for layer in grads for state in layer]
    close(jnp.stack([s.h for s in got]), d_h.sum(1))
    close(jnp.stack([s.c for s in got]), d_c.sum(1))
    assert np.abs(d_c).min() > 0


# Every state -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@two_kinds
@both_directions
def test_every_state_is_the_final_state_of_a_shorter_sequence(name, reverse):
    """`time + 1` of them, the start included; run backward they stand where the steps stand, the start last."""
    cell = CELLS[name]()
    params, xs, state, _ = setting(cell)
    mask = jnp.asarray(gaps())
    final, ys, states = unroll(cell, params, xs, state, mask=mask, reverse=reverse, return_states=True)
    t = jnp.arange(TIME + 1)[:, None]
    so_far = jnp.arange(TIME) >= t if reverse else jnp.arange(TIME) < t
    run = jit(jax.vmap(lambda valid: jaxrnn.unroll(cell, params, xs, state, mask=mask & valid[:, None], reverse=reverse)[0]))
    close(states, run(so_far))
    equal((row(states, -1), row(states, 0)) if reverse else (row(states, 0), row(states, -1)), (state, final))
    after = states.h[:-1] if reverse else states.h[1:]
    equal(ys, jnp.where(mask[..., None], after, 0))


# Streams -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"residual": True}),
        ("GRU", {"skip_connections": True, "hidden_size": (5, 4), "learn_initial_state": True}),
        ("LSTM", {"proj_size": 2, "batch_first": False, "zoneout": 0.3}),
    ],
)
def test_steps_of_a_stream_are_the_whole(name, options):
    """A stack of two layers step by step, and in pieces of unequal length."""
    options = {"hidden_size": HIDDEN, "num_layers": 2, "param_dtype": jnp.float64} | options
    module = getattr(jaxrnn, name)(INPUT, **options, rngs=nnx.Rngs(0))
    nnx.update(module, drawn_like(nnx.state(module, nnx.Param)))
    module.eval()
    time_axis = 1 if module.batch_first else 0
    x = normal(BATCH, TIME, INPUT) if module.batch_first else normal(TIME, BATCH, INPUT)
    step, run = jit(lambda x, state: module.step(x, state)), jit(lambda x, state: module(x, h_0=state))
    output, h_n = jit(lambda x: module(x))(x)
    state, ys = None, []
    for t in range(TIME):
        y, state = step(jnp.take(x, t, axis=time_axis), state)
        ys.append(y)
    close((jnp.stack(ys, axis=time_axis), state), (output, h_n))
    first, second = jnp.split(x, [4], axis=time_axis)
    y, state = run(first, None)
    z, state = run(second, state)
    close((jnp.concatenate([y, z], axis=time_axis), state), (output, h_n))


@pytest.mark.slow
@pytest.mark.newest
def test_a_stream_of_one_sequence_and_linens_step():
    options = {"num_layers": 2, "param_dtype": jnp.float64}
    module = jaxrnn.GRU(INPUT, HIDDEN, **options, rngs=nnx.Rngs(0))
    linen = jaxrnn.linen.GRU(INPUT, HIDDEN, **options)
    variables = {"params": jaxrnn.trees.to_dict(arrays(module.params))}
    x, h = normal(BATCH, INPUT), normal(2, BATCH, HIDDEN, seed=1)
    y, state = jit(lambda x, h: module.step(x, h))(x, h)
    equal(jit(lambda x, h: linen.apply(variables, x, h, method="step"))(x, h), (y, state))
    close(jit(lambda x, h: module.step(x, h))(x[1], h[:, 1]), (y[1], state[:, 1]))


# Truncation --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "reverse"), [("LSTM", False), pytest.param("ChungGRU", True, marks=pytest.mark.slow)])
def test_truncation_is_the_loop_written_by_hand(name, reverse):
    """Pieces of four steps from the first on, the gradient stopped between them; the values are those of the whole."""
    cell = CELLS[name]()
    params, xs, state, _ = setting(cell)

    def compute(run):
        return jit(jax.grad(lambda *args: (weighted(run(*args)), run(*args)), (0, 1, 2), has_aux=True))(params, xs, state)

    got = compute(lambda *args: jaxrnn.unroll(cell, *args, reverse=reverse, truncate=4))
    close(got, compute(lambda *args: reference.unroll(cell, *args, reverse=reverse, truncate=4)))
    if name == "LSTM":
        whole = compute(lambda *args: jaxrnn.unroll(cell, *args, reverse=reverse))
        close(got[1], whole[1])
        assert np.abs(got[0][0].w_hh - whole[0][0].w_hh).max() > 1e-3


@pytest.mark.slow
@pytest.mark.newest
def test_truncation_of_a_module_is_the_loop_written_by_hand():
    options = {"num_layers": 2, "param_dtype": jnp.float64}
    module = jaxrnn.GRU(INPUT, HIDDEN, truncate=4, **options, rngs=nnx.Rngs(0))
    plain = jaxrnn.GRU(INPUT, HIDDEN, **options, rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, INPUT)

    def by_hand(module):
        h, outputs = None, []
        for piece in (x[:, :4], x[:, 4:8], x[:, 8:]):
            output, h = module(piece, h_0=None if h is None else jax.lax.stop_gradient(h))
            outputs.append(output)
        return jnp.concatenate(outputs, axis=1), h

    leaves = lambda grads: jax.tree.leaves(nnx.state(grads))
    got = leaves(jit(jax.grad(lambda module: weighted(module(x))))(module))
    close(got, leaves(jit(jax.grad(lambda module: weighted(by_hand(module))))(plain)))


# Every cell --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_takes_masks_resets_and_a_learned_start_both_ways_in_a_module(name):
    """All at once; each direction is what the paper's equations give, step by step."""
    cell = CELLS[name](**({"proj_size": 2} if name == "ProjectedLSTM" else {}))
    options = {"bidirectional": True, "learn_initial_state": True, "batch_first": False, "param_dtype": jnp.float64}
    module = jaxrnn.Recurrent(cell, INPUT, HIDDEN, **options, rngs=nnx.Rngs(0))
    nnx.update(module, drawn_like(nnx.state(module, nnx.Param)))
    graph, variables = nnx.split(module)
    xs, mask, reset = normal(TIME, BATCH, *(4, 6)[: cell.event_ndim - 1], INPUT), gaps(), some_resets()

    @jit
    def compute(variables, xs):
        module = nnx.merge(graph, variables)
        own = cell.initial_state(arrays(module.params)[0][0], xs[0])  # for what is not learned
        return module(xs, mask=jnp.asarray(mask), reset=jnp.asarray(reset)), own

    (output, h_n), own = compute(variables, xs)
    finals, outputs = [], []
    for params, learned, reverse in zip(*(arrays(a)[0] for a in (module.params, module.learned)), (False, True), strict=True):
        initial = plain(own) | {field: a for field, a in plain(learned).items() if a is not None}
        start = {field: np.broadcast_to(a, plain(own)[field].shape) for field, a in initial.items()}
        given = {"initial": initial, "mask": mask, "reset": reset, "reverse": reverse}
        final, ys = reference.by_oracle(ORACLES[name], plain(params), np.asarray(xs), start, **given)
        finals.append(final)
        outputs.append(ys)
    close(np.asarray(output), np.concatenate(outputs, axis=-1))
    stacked = tuple(np.stack([final[field] for final in finals]) for field in finals[0])
    close(jax.tree.map(np.asarray, h_n), stacked if len(stacked) > 1 else stacked[0])


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["SLSTM", "ConvLSTM1D"])
def test_steps_of_a_stack_are_the_whole_whatever_the_state_and_the_axes_of_x(name):
    stack, params = stacked(CELLS[name](), learn_initial_state=True)
    initial = drawn_like(stack.init_state(params))
    xs = normal(TIME, BATCH, *(4,)[: stack.cell.event_ndim - 1], INPUT)

    @jit
    def compute(params, initial, xs):
        first, states = stack.step(params, xs[0], initial=initial)
        last, ys = jax.lax.scan(lambda states, x: stack.step(params, x, states)[::-1], states, xs[1:])
        return (jnp.concatenate([first[None], ys]), last), stack.apply(params, xs, initial=initial)

    close(*compute(params, initial, xs))


# Defects found elsewhere -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_length_zero_returns_the_start_and_zero_outputs(flavour):
    module = jaxrnn.GRU(INPUT, HIDDEN, 2, bidirectional=True, rngs=nnx.Rngs(0))
    if flavour == "linen":
        params = arrays(module.params)
        linen = jaxrnn.linen.GRU(INPUT, HIDDEN, 2, bidirectional=True)
        module = lambda *args, **kwargs: linen.apply({"params": jaxrnn.trees.to_dict(params)}, *args, **kwargs)
    h_0 = normal(4, 3, HIDDEN, dtype=jnp.float32)
    x = normal(3, TIME, INPUT, dtype=jnp.float32)
    output, h_n = jit(lambda lengths: module(x, h_0=h_0, lengths=lengths))(jnp.array([9, 0, 4]))
    equal(h_n[:, 1], h_0[:, 1])
    assert (output[1] == 0).all()
    assert (output[2, 4:] == 0).all()
    assert np.abs(output[0]).min() > 0


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("batch", [(2, 2), (2, 3)])
def test_two_batch_axes_with_lengths(batch):
    stack, params = stacked(bidirectional=True)
    lengths = jnp.asarray(np.arange(np.prod(batch)).reshape(batch))
    xs = normal(TIME, *batch, INPUT)
    output, states = jit(lambda xs, lengths: stack.apply(params, xs, lengths=lengths))(xs, lengths)
    flat = jit(lambda xs, lengths: stack.apply(params, xs, lengths=lengths))(xs.reshape(TIME, -1, INPUT), lengths.reshape(-1))
    close((output.reshape(TIME, -1, 2 * HIDDEN), jax.tree.map(lambda a: a.reshape(-1, HIDDEN), states)), flat)


def test_no_steps_with_lengths_give_back_the_start_and_every_state():
    cell = CELLS["LSTM"]()
    params, xs, state, _ = setting(cell)
    final, ys, states = unroll(cell, params, xs[:0], state, lengths=jnp.zeros(BATCH, int), return_states=True)
    equal((final, row(states, 0)), (state, state))
    assert ys.shape == (0, BATCH, HIDDEN)
    assert states.c.shape == (1, BATCH, HIDDEN)


def test_lengths_stack_no_state_over_time():
    """Only the outputs are stacked; the final state is the carry."""
    cell = CELLS["LSTM"]()
    params, xs, state, _ = setting(cell)
    run = lambda *args: jaxrnn.unroll(cell, *args, lengths=jnp.array([9, 0, 4, 1]))
    (loop,) = (eqn for eqn in equations(jax.make_jaxpr(run)(params, xs, state).jaxpr) if eqn.primitive.name == "scan")
    assert [v.aval.shape for v in loop.outvars] == [(BATCH, HIDDEN), (BATCH, HIDDEN), (TIME, BATCH, HIDDEN)]


@pytest.mark.slow
@pytest.mark.newest
def test_the_backward_half_is_a_reversed_layer_in_the_order_of_the_input():
    """Also with dropout at work between the layers."""
    stack, params = stacked(bidirectional=True)
    xs, lengths = normal(TIME, BATCH, INPUT), jnp.array([9, 0, 4, 1])
    _, ys = unroll(stack.cell, params[0][1], xs, lengths=lengths, reverse=True)
    one_layer = Stack(stack.cell, INPUT, HIDDEN, bidirectional=True, param_dtype=jnp.float64)
    equal(jit(lambda: one_layer.apply(params[:1], xs, lengths=lengths)[0][..., HIDDEN:])(), ys)
    options = {"bidirectional": True, "skip_connections": True, "dropout": 0.5, "param_dtype": jnp.float64}
    two_layers = Stack(stack.cell, INPUT, HIDDEN, 2, **options)  # its output holds that of the first layer, before dropout
    params = (params[0], two_layers.init(jax.random.key(0))[1])
    both = jit(lambda key: two_layers.apply(params, xs, lengths=lengths, key=key)[0])(jax.random.key(1))
    close(both[..., HIDDEN : 2 * HIDDEN], ys)


def test_a_gru_has_a_bias_inside_the_reset_product():
    """Moving the candidate's bias from one side to the other changes the result: both are needed."""
    cell = CELLS["GRU"]()
    params, xs, state, _ = setting(cell)
    moved = params._replace(b_ih=params.b_ih.at[2].add(0.5), b_hh=params.b_hh.at[2].add(-0.5))
    assert np.abs(unroll(cell, params, xs, state)[1] - unroll(cell, moved, xs, state)[1]).max() > 1e-3
    alike = params._replace(b_ih=params.b_ih.at[:2].add(0.5), b_hh=params.b_hh.at[:2].add(-0.5))
    close(unroll(cell, alike, xs, state), unroll(cell, params, xs, state))
