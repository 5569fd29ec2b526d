"""Every registered cell: its step against its oracle, and the engine against its step. What the engine does whatever the cell is
shown with one cell of each kind."""

from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from oracles import ACTIVATIONS, ORACLES, relu, rnn, slstm
from support import close, equal, equations, jit, plain, small_segments, weighted

import jaxrnn
from jaxrnn.cells import CELLS, GatedCell

pytestmark = pytest.mark.usefixtures("x64")

LENGTHS = np.array([0, 1, 9, 5, 2, 9, 8, 3])
both_directions = pytest.mark.parametrize("reverse", [False, True])
one_of_each_kind = pytest.mark.parametrize("name", ["LSTM", "GRU", "SLSTM", "ChungGRU", "ConvLSTM1D", "MinGRU", "LRU", "ParaLSTM"])
"""The engine's rule with gates that are all additive and with others, and with a start that is not zero; without the rule; with an
axis of space; linear, real and complex; diagonal."""

two_kinds = pytest.mark.parametrize("name", ["LSTM", "ChungGRU"])  # with the engine's derivative rule and without


def padded(lengths, time=9):
    return np.arange(time)[:, None] < lengths


unroll = jit(jaxrnn.unroll, static_argnums=0, static_argnames=("reverse", "remat", "dtype"))


@partial(jit, static_argnums=0)
def one_step(cell, params, state, x):
    return cell.step(params, state, x)


def row(tree, n):
    return jax.tree.map(lambda a: a[n], tree)


# The equations ------------------------------------------------------------------------------------


def test_every_cell_has_an_oracle():
    assert set(ORACLES) == set(CELLS)


def assert_follows(oracle, cell, params, state, x):
    new, y = one_step(cell, params, state, x)
    close(plain(new), oracle(np.asarray(x), plain(state), plain(params)))
    equal(y, new.h)
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


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(
    ("kind", "name"), [("LSTM", "relu"), ("LSTM", "softplus"), ("GRU", "hard_sigmoid"), ("RNN", "linear"), ("RNN", "silu")]
)
def test_the_gradient_through_an_activation_is_that_of_plain_autodiff(kind, name, draw):
    """The engine's rule stores the values of tanh and σ, and must compute all others again."""
    options = {"nonlinearity": name} if kind == "RNN" else {"activation": name, "recurrent_activation": name}
    variant = CELLS[kind](**options)
    params, state, xs = draw(variant, time=5, batch=(3,))

    gradient = lambda run: jit(jax.grad(lambda p, xs, state: weighted(run(variant, p, xs, state)), (0, 1, 2)))
    args = (jax.tree.map(lambda a: 0.5 * a, params), xs, state)
    close(gradient(jaxrnn.unroll)(*args), gradient(reference.unroll)(*args), 1e-10)


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
    equal(cell.initial_state(params, xs[0]), start)
    assert jax.tree.structure(jax.eval_shape(cell.step, params, state, xs[0])[0]) == jax.tree.structure(state)


# The engine against its steps ----------------------------------------------------------------------


def gradients(run, **options):
    """The gradients of a weighted sum of all outputs and final states, and both of these."""

    @partial(jit, static_argnums=0)
    def compute(cell, params, xs, state, *lengths):
        def loss(*args):
            result = run(cell, *args, **({"lengths": lengths[0]} if lengths else {}), **options)
            return weighted(result), result

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, xs, state)

    return compute


engine_gradients = {reverse: gradients(jaxrnn.unroll, reverse=reverse) for reverse in (False, True)}
plain_gradients = {reverse: gradients(reference.unroll, reverse=reverse, lengths=LENGTHS) for reverse in (False, True)}


def ragged(cell, params, xs, state, lengths=LENGTHS, *, reverse=False):
    return engine_gradients[reverse](cell, params, xs, state, jnp.asarray(lengths))


def test_unroll_is_a_loop_of_steps(cell, draw):
    params, state, xs = draw(cell)
    got, want = unroll(cell, params, xs, state), []
    for x in xs:
        state, y = one_step(cell, params, state, x)
        want.append(y)
    close(got, (state, jnp.stack(want)))


def assert_padding_changes_nothing(cell, draw, reverse):
    """Results and gradients are those of plain autodiff; padding gives zeros, and whatever stands in it, no bit changes. A row
    without a step keeps its state; and rows do not mix."""
    params, state, xs = draw(cell)
    (got, result), valid = ragged(cell, params, xs, state, reverse=reverse), padded(LENGTHS)
    assert jax.tree.structure(got) == jax.tree.structure((params, xs, state))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(got))
    want, plainly = plain_gradients[reverse](cell, params, xs, state)
    close(result, plainly)
    close(got, want, 1e-10)
    (final, ys), d_xs = result, got[1]
    equal((ys[~valid], d_xs[~valid]), (np.zeros_like(ys[~valid]), np.zeros_like(d_xs[~valid])))
    equal(row(final, 0), row(state, 0))
    dirty = jnp.asarray(np.where(valid.reshape(valid.shape + (1,) * cell.event_ndim), xs, np.nan))
    equal(ragged(cell, params, dirty, state, reverse=reverse), (got, result))
    order = np.random.default_rng(2).permutation(xs.shape[1])
    (_, permuted) = ragged(cell, params, xs[:, order], row(state, order), LENGTHS[order], reverse=reverse)
    close(permuted, (row(final, order), ys[:, order]))


GRADIENTS = [name for name, kind in CELLS.items() if not issubclass(kind, GatedCell) or name in ("LSTM", "GRU", "SLSTM")]
"""Gated cells have one rule, and all of them meet the reference where strategies do."""


@pytest.mark.parametrize("cell_name", [n if n in ("LSTM", "MGU") else pytest.param(n, marks=pytest.mark.slow) for n in GRADIENTS])
def test_padding_changes_nothing_and_gradients_are_those_of_plain_autodiff(cell, draw):
    assert_padding_changes_nothing(cell, draw, reverse=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LSTM", "ConvLSTM1D"])
def test_backward_too_padding_changes_nothing_and_gradients_are_those_of_plain_autodiff(name, draw):
    assert_padding_changes_nothing(CELLS[name](), draw, reverse=True)


@two_kinds
@both_directions
def test_more_padding_changes_no_bit(name, reverse, draw):
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    longer, lengths = jnp.concatenate([xs, jnp.full_like(xs[:4], 7.0)]), jnp.asarray(LENGTHS)
    final, ys = unroll(cell, params, xs, state, lengths=lengths, reverse=reverse)
    longer_final, longer_ys = unroll(cell, params, longer, state, lengths=lengths, reverse=reverse)
    equal((longer_final, longer_ys), (final, jnp.concatenate([ys, jnp.zeros_like(ys[:4])])))


@one_of_each_kind
def test_pieces_make_the_whole(name, draw):
    """A ragged batch in three pieces, the state handed on."""
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    whole = unroll(cell, params, xs, state, lengths=jnp.asarray(LENGTHS))
    pieces = []
    for start in (0, 3, 6):
        left = jnp.asarray(np.clip(LENGTHS - start, 0, 3))
        state, ys = unroll(cell, params, xs[start : start + 3], state, lengths=left)
        pieces.append(ys)
    close((state, jnp.concatenate(pieces)), whole)


@one_of_each_kind
def test_no_state_is_the_cells_own_start(name, draw):
    cell = CELLS[name]()
    params, _, xs = draw(cell)
    equal(unroll(cell, params, xs), unroll(cell, params, xs, cell.initial_state(params, xs[0])))


def test_batch_axes_are_folded_mapped_over_or_left_out(cell, draw):
    """One step, and the projection of all of them: for two axes of batch, for none, and under `vmap`."""
    params, state, xs = draw(cell)
    fold = lambda a: a.reshape(2, 4, *a.shape[1:])
    (state, x), xs = jax.tree.map(fold, (state, xs[0])), jnp.stack([fold(a) for a in xs[:3]])
    flat = lambda a: a.reshape(8, *a.shape[2:])

    @partial(jit, static_argnums=0)
    def compute(cell, params, state, x, xs):
        step = lambda state, x: cell.step(params, state, x)
        want = jax.tree.map(fold, step(jax.tree.map(flat, state), flat(x)))
        one = step(*jax.tree.map(lambda a: a[1, 2], (state, x)))
        steps = step(state, x), jax.vmap(jax.vmap(step))(state, x)
        project = partial(cell.project, params)
        mapped = [jax.vmap(jax.vmap(project))(a) for a in xs]
        return want, steps, one, (project(xs), jax.tree.map(lambda *a: jnp.stack(a), *mapped))

    want, steps, one, projected = compute(cell, params, state, x, xs)
    for got in steps:
        close(got, want)
    close(one, jax.tree.map(lambda a: a[1, 2], want))
    close(*projected)


@pytest.mark.slow
@pytest.mark.newest
@one_of_each_kind
def test_two_batch_axes_are_one_folded_and_vmap_is_the_batch(name, draw):
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    lengths = jnp.asarray(LENGTHS)
    final, ys = unroll(cell, params, xs, state, lengths=lengths)
    fold = lambda a: a.reshape(2, 4, *a.shape[1:])
    fold_time = lambda a: a.reshape(len(a), 2, 4, *a.shape[2:])
    folded = unroll(cell, params, fold_time(xs), jax.tree.map(fold, state), lengths=fold(lengths))
    close(folded, (jax.tree.map(fold, final), fold_time(ys)))
    run = lambda xs, state, lengths: jaxrnn.unroll(cell, params, xs, state, lengths=lengths)
    close(jit(jax.vmap(run, in_axes=(1, 0, 0), out_axes=(0, 1)))(xs, state, lengths), (final, ys))


@two_kinds
def test_other_lengths_trace_nothing_again(name, draw):
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    traces = []

    @jit
    def run(lengths):
        traces.append(lengths)
        return jaxrnn.unroll(cell, params, xs, state, lengths=lengths)

    final, _ = run(jnp.asarray(LENGTHS))
    other, _ = run(jnp.asarray(LENGTHS[::-1].copy()))
    assert len(traces) == 1
    assert not np.allclose(final.h, other.h)


@pytest.mark.slow
@pytest.mark.newest
@two_kinds
def test_segments_of_time_change_no_gradient(name, draw):
    """`remat` cuts nine steps into segments of three; one cell with the engine's own derivative, one without."""
    cell = CELLS[name]()
    params, state, xs = draw(cell)
    got = gradients(jaxrnn.unroll, remat=True)(cell, params, xs, state, jnp.asarray(LENGTHS))
    close(got, ragged(cell, params, xs, state), 1e-10)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_nan_in_padding_reaches_nothing_in_segments_with_one_product_per_gate(name, draw, monkeypatch):
    """As large layers have them: nine steps in segments of three."""
    cell, lengths, valid = CELLS[name](), jnp.asarray(LENGTHS), padded(LENGTHS)
    params, state, xs = draw(cell)
    want = ragged(cell, params, xs, state)
    small_segments(monkeypatch)
    monkeypatch.setattr("jaxrnn.engine.tuning.MIN_SEGMENT", 4)
    compute = gradients(jaxrnn.unroll)
    clean = compute(cell, params, xs, state, lengths)
    equal(compute(cell, params, jnp.asarray(np.where(valid[..., None], xs, np.nan)), state, lengths), clean)
    close(clean, want, 1e-10)


# Precision ----------------------------------------------------------------------------------------


def assert_near(cell, oracle, draw, dtype):
    """States stay in float32, and everything stays near the float64 result of the paper's equations."""
    params, state, xs = draw(cell)
    given = {"initial": plain(state), "mask": padded(LENGTHS), "reset": np.zeros((9, 8), bool), "reverse": False}
    final, ys = reference.by_oracle(oracle, plain(params), np.asarray(xs), plain(state), **given)
    want = [*final.values(), ys]
    params, state, xs = jax.tree.map(lambda a: a.astype(jnp.float32), (params, state, xs))
    final, ys = unroll(cell, params, xs, state, lengths=jnp.asarray(LENGTHS), dtype=dtype)
    assert ys.dtype == dtype
    assert {a.dtype for a in final} == {jnp.dtype(jnp.float32)}
    got = [a.astype(jnp.float64) for a in [*final, ys]]
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(got, want, strict=True))
    size = max(float(jnp.abs(a).max()) for a in want)
    assert 0 < error < 4 * float(jnp.finfo(dtype).eps) * size


def test_bfloat16_gives_the_exact_result_to_its_rounding(cell, cell_name, draw):
    assert_near(cell, ORACLES[cell_name], draw, jnp.bfloat16)


@one_of_each_kind
def test_float16_gives_the_exact_result_to_its_rounding(name, draw):
    assert_near(CELLS[name](), ORACLES[name], draw, jnp.float16)
