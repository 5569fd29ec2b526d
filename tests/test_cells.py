"""Every registered cell: its step against its oracle, and the engine against its step."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ACTIVATIONS, ORACLES, relu, rnn, slstm
from support import equations, small_segments

import jaxrnn
from jaxrnn.cells import CELLS

pytestmark = pytest.mark.usefixtures("x64")

LENGTHS = np.array([0, 1, 9, 5, 2, 9, 8, 3])
both_directions = pytest.mark.parametrize("reverse", [False, True])


def gaps(time=9, batch=8):
    """A mask with gaps, a row of padding alone, one without padding, and one padded at the left."""
    mask = np.random.default_rng(1).random((time, batch)) < 0.6
    mask[:, 0], mask[:, 1], mask[:, 2] = False, True, np.arange(time) > 3
    return mask


def padded(lengths, time=9):
    return np.arange(time)[:, None] < lengths


def plain(tree):
    """The same arrays as nested dictionaries of NumPy arrays."""
    if tree is None:
        return None
    if hasattr(tree, "_asdict"):
        return {name: plain(value) for name, value in tree._asdict().items()}
    return np.asarray(tree)


def assert_close(got, want, tolerance=1e-12):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), got, want)


def assert_same(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


QUICKLY = {"xla_backend_optimization_level": 0}  # compiles in half the time
unroll = jax.jit(jaxrnn.unroll, static_argnums=0, static_argnames=("reverse", "remat", "dtype"), compiler_options=QUICKLY)


@partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
def one_step(cell, params, state, x):
    return cell.step(params, state, x)


def loop(cell, params, state, xs, times):
    """A Python loop of `step` over the given times: the state after it, and the outputs by time."""
    ys = {}
    for t in times:
        state, ys[t] = one_step(cell, params, state, xs[t])
    return state, ys


def row(tree, n):
    return jax.tree.map(lambda a: a[n], tree)


def in_order(times, reverse):
    return list(reversed(times)) if reverse else list(times)


# The equations ------------------------------------------------------------------------------------


def test_every_cell_has_an_oracle():
    assert set(ORACLES) == set(CELLS)


def assert_follows(oracle, cell, params, state, x):
    new, y = one_step(cell, params, state, x)
    assert_close(plain(new), oracle(np.asarray(x), plain(state), plain(params)))
    assert_same(y, new.h)
    assert y.dtype == jnp.float64


@pytest.mark.parametrize("bias", [True, False])
def test_a_step_follows_the_equations_of_the_paper(cell, cell_name, bias, draw):
    params, state, xs = draw(cell, bias=bias)
    assert_follows(ORACLES[cell_name], cell, params, state, xs[0])


@pytest.mark.parametrize(
    ("variant", "oracle"),
    [
        (jaxrnn.RNNCell(nonlinearity="relu"), partial(rnn, activation=relu)),
        (CELLS["SLSTM"](forget_gate="exp"), partial(slstm, forget_gate="exp")),
        (CELLS["ConvLSTM1D"](kernel_size=4), ORACLES["ConvLSTM1D"]),
        (CELLS["ConvLSTM2D"](kernel_size=2), ORACLES["ConvLSTM2D"]),
        (CELLS["LayerNormLSTM"](epsilon=0.5), partial(ORACLES["LayerNormLSTM"], epsilon=0.5)),
        (CELLS["LayerNormGRU"](epsilon=0.5), partial(ORACLES["LayerNormGRU"], epsilon=0.5)),
    ],
    ids=["relu", "exp", "window 4", "window 2", "LSTM epsilon", "GRU epsilon"],
)
def test_an_option_of_a_cell_follows_the_equations_too(variant, oracle, draw):
    assert_follows(oracle, variant, *draw(variant)[:2], draw(variant)[2][0])


@pytest.mark.parametrize(
    ("kind", "name"), [("RNN", name) for name in ACTIVATIONS] + [(k, "hard_sigmoid_keras2") for k in ("LSTM", "GRU", "ChungGRU")]
)
def test_an_activation_stands_where_the_equations_have_one(kind, name, draw):
    """Each of the two alone, so that they cannot change places; every gate's argument falls on either side of every bend."""
    φ, options = ACTIVATIONS[name], ("nonlinearity",) if kind == "RNN" else ("activation", "recurrent_activation")
    for option, argument in zip(options, ("activation", "gate"), strict=False):
        variant = CELLS[kind](**{option: name})
        params, state, xs = draw(variant)
        assert_follows(partial(ORACLES[kind], **{argument: φ}), variant, params, state, 3 * xs[0])


def test_every_activation_has_an_oracle_and_a_place_in_the_signature():
    table = jaxrnn.cells.activations
    assert list(table.ACTIVATIONS) == list(ACTIVATIONS) == list(get_args(table.Activation))


@pytest.mark.parametrize(
    ("kind", "name"), [("LSTM", "relu"), ("LSTM", "linear"), ("LSTM", "softplus"), ("GRU", "hard_sigmoid"), ("RNN", "silu")]
)
def test_the_gradient_through_an_activation_is_that_of_plain_autodiff(kind, name, draw):
    """The engine's rule stores the values of tanh and σ, and must compute all others again."""
    options = {"nonlinearity": name} if kind == "RNN" else {"activation": name, "recurrent_activation": name}
    variant = CELLS[kind](**options)
    params, state, xs = draw(variant, time=4, batch=(3,))

    def loss(run, params, state, xs):
        final, ys = run(params, state, xs)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((final, ys)))

    def by_rule(params, state, xs):
        return jaxrnn.unroll(variant, params, xs, state)

    def plainly(params, state, xs):
        return jax.lax.scan(lambda s, x: variant.step(params, s, x), state, xs)

    @partial(jax.jit, static_argnums=0, compiler_options=QUICKLY)
    def gradient(run, *args):
        return jax.grad(partial(loss, run), argnums=(0, 1, 2))(*args)

    args = (jax.tree.map(lambda a: 0.5 * a, params), state, xs)
    assert_close(gradient(by_rule, *args), gradient(plainly, *args), 1e-10)


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_the_usual_activations_add_no_operation(kind, draw):
    """The step is tanh and σ of jax themselves, and nothing beside the equations."""
    counted = {"RNN": {"add": 1, "tanh": 1}, "LSTM": {"add": 5, "logistic": 3, "tanh": 2, "mul": 3},
               "GRU": {"add": 4, "logistic": 2, "tanh": 1, "mul": 3, "sub": 1}}  # fmt: skip
    cell = CELLS[kind]()
    _, state, _ = draw(cell)
    gates = tuple(state.h for _ in cell.gates)
    names = [eqn.primitive.name for eqn in equations(jax.make_jaxpr(cell.update)(state, gates, gates).jaxpr)]
    assert {name: names.count(name) for name in names if name not in ("jit", "pjit")} == counted[kind]


def test_the_initial_state_is_zeros_or_what_the_cell_says(cell, draw):
    params, state, xs = draw(cell)
    start = jax.tree.map(jnp.zeros_like, state)
    if hasattr(start, "m"):  # the stabiliser of an empty memory
        start = start._replace(m=start.m - 1e30)
    assert_same(cell.initial_state(params, xs[0]), start)
    assert jax.tree.structure(cell.step(params, state, xs[0])[0]) == jax.tree.structure(state)


# The engine against a loop of steps ---------------------------------------------------------------


@both_directions
def test_unroll_is_a_loop_of_steps(cell, reverse, draw):
    params, state, xs = draw(cell)
    want, outputs = loop(cell, params, state, xs, in_order(range(len(xs)), reverse))
    assert_close(
        unroll(cell, params, xs, state, reverse=reverse),
        (want, np.stack([outputs[t] for t in range(len(xs))])),
    )


@both_directions
@pytest.mark.parametrize("kind", ["lengths", "mask"])
def test_padding_and_gaps_change_nothing(cell, kind, reverse, draw):
    """Each sequence of a batch ends where its valid steps alone end; other outputs are 0."""
    params, state, xs = draw(cell)
    valid = padded(LENGTHS) if kind == "lengths" else gaps()
    given = {"lengths": jnp.asarray(LENGTHS)} if kind == "lengths" else {"mask": jnp.asarray(valid)}
    final, ys = unroll(cell, params, xs, state, reverse=reverse, **given)
    assert_same(ys[~valid], np.zeros_like(ys[~valid]))
    assert_same(row(final, 0), row(state, 0))  # no valid step at all
    for n in range(xs.shape[1]):
        times = in_order(np.flatnonzero(valid[:, n]), reverse)
        want, outputs = loop(cell, params, row(state, n), xs[:, n], times)
        assert_close(row(final, n), want)
        assert_close([ys[t, n] for t in times], [outputs[t] for t in times])


@both_directions
def test_more_padding_changes_no_bit(cell, reverse, draw):
    params, state, xs = draw(cell)
    longer = jnp.concatenate([xs, jnp.full_like(xs[:4], 7.0)])
    lengths = jnp.asarray(LENGTHS)
    final, ys = unroll(cell, params, xs, state, lengths=lengths, reverse=reverse)
    longer_final, longer_ys = unroll(cell, params, longer, state, lengths=lengths, reverse=reverse)
    assert_same(longer_final, final)
    assert_same(longer_ys, jnp.concatenate([ys, jnp.zeros_like(ys[:4])]))


def test_reversing_is_flipping_twice(cell, draw):
    params, state, xs = draw(cell)
    final, ys = unroll(cell, params, xs[::-1], state)
    assert_close(unroll(cell, params, xs, state, reverse=True), (final, ys[::-1]))


def test_pieces_make_the_whole(cell, draw):
    """A ragged batch in three pieces, the state handed on."""
    params, state, xs = draw(cell)
    whole = unroll(cell, params, xs, state, lengths=jnp.asarray(LENGTHS))
    pieces = []
    for start in (0, 3, 6):
        left = jnp.asarray(np.clip(LENGTHS - start, 0, 3))
        state, ys = unroll(cell, params, xs[start : start + 3], state, lengths=left)
        pieces.append(ys)
    assert_close((state, jnp.concatenate(pieces)), whole)


def test_no_state_is_the_cells_own_start(cell, draw):
    params, _, xs = draw(cell)
    assert_same(unroll(cell, params, xs), unroll(cell, params, xs, cell.initial_state(params, xs[0])))


def test_sequences_of_a_batch_do_not_mix(cell, draw):
    params, state, xs = draw(cell)
    order = np.random.default_rng(2).permutation(xs.shape[1])
    final, ys = unroll(cell, params, xs, state, lengths=jnp.asarray(LENGTHS))
    permuted = unroll(cell, params, xs[:, order], row(state, order), lengths=jnp.asarray(LENGTHS[order]))
    assert_close(permuted, (row(final, order), ys[:, order]))


def test_two_batch_axes_are_one_folded(cell, draw):
    params, state, xs = draw(cell)
    final, ys = unroll(cell, params, xs, state, lengths=jnp.asarray(LENGTHS))
    fold, fold_time = (
        (lambda a: a.reshape(2, 4, *a.shape[1:])),
        (lambda a: a.reshape(len(a), 2, 4, *a.shape[2:])),
    )
    folded = unroll(cell, params, fold_time(xs), jax.tree.map(fold, state), lengths=fold(jnp.asarray(LENGTHS)))
    assert_close(folded, (jax.tree.map(fold, final), fold_time(ys)))


def test_vmap_over_the_batch_is_the_batch(cell, draw):
    params, state, xs = draw(cell)
    lengths = jnp.asarray(LENGTHS)
    run = jax.vmap(partial(run_ragged, cell, params), in_axes=(1, 0, 0), out_axes=(0, 1))
    mapped = jax.jit(run, compiler_options=QUICKLY)
    assert_close(mapped(xs, state, lengths), unroll(cell, params, xs, state, lengths=lengths))


def run_ragged(cell, params, xs, state, lengths):
    return jaxrnn.unroll(cell, params, xs, state, lengths=lengths)


def test_other_lengths_trace_nothing_again(cell, draw):
    params, state, xs = draw(cell)
    traces = []

    @partial(jax.jit, compiler_options=QUICKLY)
    def run(lengths):
        traces.append(lengths)
        return jaxrnn.unroll(cell, params, xs, state, lengths=lengths)

    final, _ = run(jnp.asarray(LENGTHS))
    other, _ = run(jnp.asarray(LENGTHS[::-1].copy()))
    assert len(traces) == 1
    assert not np.allclose(final.h, other.h)


# Gradients ----------------------------------------------------------------------------------------


def scan_of_steps(cell, params, xs, state, lengths, reverse):
    """What the engine computes, as a `lax.scan` of `step` with the mask in the carry."""

    def hold(ok, new, old):
        return jnp.where(ok.reshape(ok.shape + (1,) * (new.ndim - ok.ndim)), new, old)

    def body(state, now):
        x, ok = now
        new, y = cell.step(params, state, hold(ok, x, jnp.zeros_like(x)))
        return jax.tree.map(partial(hold, ok), new, state), hold(ok, y, jnp.zeros_like(y))

    valid = jnp.arange(len(xs))[:, None] < lengths
    return jax.lax.scan(body, state, (xs, valid), reverse=reverse)


def weighted(run, compiler_options=None):
    """The gradients of a weighted sum of all outputs and final states, and both of these."""

    @partial(
        jax.jit,
        static_argnums=0,
        static_argnames=("reverse", "remat"),
        compiler_options=compiler_options,
    )
    def gradients(cell, params, xs, state, lengths, **options):
        def loss(params, xs, state):
            result = run(cell, params, xs, state, lengths=lengths, **options)
            rng = np.random.default_rng(3)
            terms = [jnp.sum(a * jnp.asarray(rng.standard_normal(a.shape))) for a in jax.tree.leaves(result)]
            return sum(terms[1:], terms[0]), result

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(params, xs, state)

    return gradients


engine_gradients = weighted(jaxrnn.unroll, QUICKLY)
plain_gradients = weighted(scan_of_steps, QUICKLY)


@both_directions
def test_gradients_are_those_of_plain_autodiff(cell, reverse, draw):
    params, state, xs = draw(cell)
    got, _ = engine_gradients(cell, params, xs, state, jnp.asarray(LENGTHS), reverse=reverse)
    want, _ = plain_gradients(cell, params, xs, state, jnp.asarray(LENGTHS), reverse=reverse)
    assert jax.tree.structure(got) == jax.tree.structure((params, xs, state))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(got))
    assert_close(got, want, 1e-10)


@pytest.mark.parametrize("name", ["LSTM", "ChungGRU"])
def test_segments_of_time_change_no_gradient(name, draw):
    """`remat` cuts nine steps into segments of three; one cell with the engine's own derivative, one without."""
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    got = engine_gradients(cell, params, xs, state, jnp.asarray(LENGTHS), reverse=False, remat=True)
    assert_close(got, engine_gradients(cell, params, xs, state, jnp.asarray(LENGTHS), reverse=False), 1e-10)


@both_directions
def test_nan_in_padding_changes_no_bit_of_anything(cell, reverse, draw):
    params, state, xs = draw(cell)
    lengths, valid = jnp.asarray(LENGTHS), padded(LENGTHS)
    dirty = jnp.asarray(np.where(valid.reshape(valid.shape + (1,) * cell.event_ndim), xs, np.nan))
    clean = engine_gradients(cell, params, xs, state, lengths, reverse=reverse)
    assert_same(engine_gradients(cell, params, dirty, state, lengths, reverse=reverse), clean)
    (_, d_xs, _), _ = clean
    assert_same(d_xs[~valid], np.zeros_like(d_xs[~valid]))


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_nan_in_padding_reaches_nothing_in_segments_with_one_product_per_gate(name, draw, monkeypatch):
    """As large layers have them: nine steps in segments of three."""
    small_segments(monkeypatch)
    monkeypatch.setattr("jaxrnn.engine.tuning.MIN_SEGMENT", 4)
    cell, gradients = CELLS[name](), weighted(jaxrnn.unroll)
    params, state, xs = draw(cell)
    lengths, valid = jnp.asarray(LENGTHS), padded(LENGTHS)
    clean = gradients(cell, params, xs, state, lengths, reverse=False)
    assert_same(gradients(cell, params, jnp.asarray(np.where(valid[..., None], xs, np.nan)), state, lengths, reverse=False), clean)
    assert_close(clean, engine_gradients(cell, params, xs, state, lengths, reverse=False), 1e-10)


# Precision ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_floats_give_the_exact_result_to_their_rounding(cell, dtype, draw):
    """States stay in float32, and everything stays near the float64 result."""
    params, state, xs = draw(cell)
    lengths = jnp.asarray(LENGTHS)
    want = jax.tree.leaves(unroll(cell, params, xs, state, lengths=lengths))
    params, state, xs = jax.tree.map(lambda a: a.astype(jnp.float32), (params, state, xs))
    final, ys = unroll(cell, params, xs, state, lengths=lengths, dtype=dtype)
    assert ys.dtype == dtype
    assert {a.dtype for a in final} == {jnp.dtype(jnp.float32)}
    got = [a.astype(jnp.float64) for a in [*final, ys]]
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(got, want, strict=True))
    size = max(float(jnp.abs(a).max()) for a in want)
    assert 0 < error < 4 * float(jnp.finfo(dtype).eps) * size
