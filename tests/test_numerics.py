"""First values, dtypes, extremes, and JAX's own transformations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export
from support import SKIP, close, drawn_like, equal, equations, jit, normal, small_segments, weighted

import jaxrnn
from jaxrnn import Stack, initializers
from jaxrnn.initializers import PerGate

TIME, BATCH, INPUT, HIDDEN = 7, 4, 3, 5

# Initialisers ------------------------------------------------------------------------------------------------------------


def first(cell, *, hidden=HIDDEN, dtype=jnp.float32, seed=0):
    return cell.init(jax.random.key(seed), INPUT, hidden, dtype=dtype)


@pytest.mark.slow
@pytest.mark.newest
def test_by_default_every_array_is_uniform_to_the_root_of_hidden():
    for a in jax.tree.leaves(first(jaxrnn.LSTMCell(), hidden=400)):
        assert 0.95 / 20 < np.abs(a).max() <= 1 / 20
        assert abs(a.mean()) < 0.01
        assert abs(a.std() - 1 / 20 / 3**0.5) < 0.002


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2), (jnp.float16, 3e-3)])
def test_each_gates_recurrent_matrix_is_orthogonal_by_itself(dtype, tolerance):
    cell = jaxrnn.GRUCell(w_hh_init=initializers.orthogonal(2.0))
    w_hh = first(cell, dtype=dtype).w_hh
    assert w_hh.dtype == dtype
    w = np.asarray(w_hh.astype(jnp.float32))
    for gate in range(3):
        close(w[:, gate].T @ w[:, gate], 4 * np.eye(HIDDEN, dtype=np.float32), 4 * tolerance)
    assert np.abs(w[:, 0] - w[:, 1]).max() > 0.1


def test_forget_bias_is_for_the_forget_gate_alone():
    params = first(jaxrnn.LSTMCell(b_ih_init=initializers.forget_bias(1.5), b_hh_init=initializers.zeros))
    equal(params.b_ih, jnp.zeros((4, HIDDEN)).at[1].set(1.5))
    equal(params.b_hh, jnp.zeros((4, HIDDEN)))


@pytest.mark.slow
@pytest.mark.newest
def test_chrono_biases_span_the_time_scales_and_write_as_they_forget():
    """b_f ~ log U(1, longest − 1), b_i = −b_f, all others 0."""
    cell = jaxrnn.LSTMCell(b_ih_init=initializers.chrono(100), b_hh_init=initializers.zeros)
    b = np.asarray(first(cell, hidden=2000).b_ih)
    equal(b[0], -b[1])
    equal(b[2:], np.zeros_like(b[2:]))
    scales = np.exp(b[1])
    assert 1 <= scales.min() < 1.5
    assert 98 < scales.max() <= 99.001
    assert abs(scales.mean() - 50) < 4
    gru = first(jaxrnn.GRUCell(b_ih_init=initializers.chrono(100, forget="z", write=None))).b_ih
    assert (gru[1] > 0).all()
    assert (gru[jnp.array([0, 2])] == 0).all()


def test_identity_and_jaxs_own_initialisers_are_called_gate_by_gate():
    irnn = first(jaxrnn.RNNCell(nonlinearity="relu", w_hh_init=initializers.identity, b_ih_init=initializers.zeros))
    equal(irnn.w_hh[:, 0], jnp.eye(HIDDEN))
    glorot = first(jaxrnn.LSTMCell(w_ih_init=jax.nn.initializers.glorot_uniform()), hidden=300).w_ih
    bound = (6 / (INPUT + 300)) ** 0.5
    assert all(0.97 * bound < np.abs(glorot[:, gate]).max() <= bound for gate in range(4))
    mixed = PerGate(initializers.constant(2.0), (("g", initializers.identity),))
    w_hh = first(jaxrnn.LSTMCell(w_hh_init=mixed)).w_hh
    equal(w_hh, jnp.full((HIDDEN, 4, HIDDEN), 2.0).at[:, 2].set(jnp.eye(HIDDEN)))


def test_cells_described_alike_are_equal():
    """So that they are one static argument, and nothing is compiled twice."""
    make = lambda: jaxrnn.LSTMCell(
        w_hh_init=initializers.orthogonal(), b_ih_init=initializers.forget_bias(), b_hh_init=initializers.chrono(9)
    )
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != jaxrnn.LSTMCell(w_hh_init=initializers.orthogonal(2.0))


# Dtypes ------------------------------------------------------------------------------------------------------------------

FAMILY = {"dropout": 0.5, "input_dropout": 0.3, "recurrent_dropout": 0.4, "zoneout": 0.2, "weight_dropout": 0.1}
EVERYTHING = FAMILY | {"bidirectional": True, "learn_initial_state": True, **SKIP}


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(
    ("name", "dtype"), [("RNN", jnp.bfloat16), ("LSTM", jnp.bfloat16), ("GRU", jnp.bfloat16), ("LSTM", jnp.float16)]
)
def test_small_floats_compute_near_float32_and_keep_states_and_gradients_in_float32(name, dtype):
    make = lambda **options: getattr(jaxrnn, name)(INPUT, HIDDEN, 2, **options, rngs=nnx.Rngs(0))
    x, lengths = normal(BATCH, TIME, INPUT), jnp.array([7, 0, 3, 5])

    def run(module):
        result = module(x, lengths=lengths)
        return weighted(result[1]), result

    compute = jit(jax.grad(run, has_aux=True))
    small, full = compute(make(dtype=dtype)), compute(make())
    output, h_n = small[1]
    assert output.dtype == dtype
    assert {a.dtype for a in jax.tree.leaves(h_n)} == {jnp.dtype(jnp.float32)}
    leaves = lambda result: [np.asarray(a, np.float32) for a in jax.tree.leaves((nnx.state(result[0]), result[1]))]
    assert {a.dtype for a in jax.tree.leaves(nnx.state(small[0]))} == {jnp.dtype(jnp.float32)}
    for a, b in zip(leaves(small), leaves(full), strict=True):
        assert np.abs(a - b).max() < 4 * float(jnp.finfo(dtype).eps) * max(1, np.abs(b).max())
    assert np.abs(leaves(small)[-1] - leaves(full)[-1]).max() > 0


def test_parameters_stored_in_bfloat16():
    module = jaxrnn.Recurrent(
        jaxrnn.LSTMCell(w_hh_init=initializers.orthogonal()), INPUT, HIDDEN, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    assert {a.dtype for a in jax.tree.leaves(nnx.state(module))} == {jnp.dtype(jnp.bfloat16)}
    run = lambda module, x: weighted(module(x)[1])
    grads = jit(jax.grad(run))(module, normal(BATCH, TIME, INPUT, dtype=jnp.bfloat16))
    assert {a.dtype for a in jax.tree.leaves(nnx.state(grads))} == {jnp.dtype(jnp.bfloat16)}
    outputs = {d: jax.eval_shape(module, jax.ShapeDtypeStruct((BATCH, TIME, INPUT), d)) for d in (jnp.bfloat16, jnp.float32)}
    assert {d: output.dtype for d, (output, _) in outputs.items()} == {d: jnp.dtype(d) for d in outputs}


def test_a_cell_state_adds_up_in_float32_where_bfloat16_would_stall():
    """Gates held open: c grows by 0.01 in each of 1000 steps."""
    cell = jaxrnn.LSTMCell()
    params = jax.tree.map(jnp.zeros_like, first(cell, dtype=jnp.bfloat16))
    b_ih = jnp.zeros((4, HIDDEN)).at[jnp.array([0, 1])].set(20.0).at[2].set(0.01)
    state, _ = jaxrnn.unroll(cell, params._replace(b_ih=b_ih.astype(jnp.bfloat16)), jnp.zeros((1000, INPUT), jnp.bfloat16))
    np.testing.assert_allclose(state.c, 10.0, rtol=1e-2)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_every_product_of_small_floats_adds_up_in_float32(dtype):
    """Of every cell, forward and in the gradient; in float16 of one cell of each kind."""
    names = jaxrnn.CELLS if dtype == jnp.bfloat16 else ("LSTM", "ChungGRU", "ConvLSTM1D")
    for name, kind in ((name, jaxrnn.CELLS[name]) for name in names):
        cell = kind(**({"proj_size": 2} if name == "ProjectedLSTM" else {}))
        params = jax.eval_shape(lambda key, cell=cell: cell.init(key, INPUT, HIDDEN), jax.random.key(0))
        xs = jax.ShapeDtypeStruct((TIME, BATCH, *(6, 8)[: cell.event_ndim - 1], INPUT), dtype)

        def total(params, xs, cell=cell):
            final, ys = jaxrnn.unroll(cell, params, xs, dtype=dtype)
            return sum(jnp.sum(a.astype(jnp.float32)) for a in [ys, *final])

        found = list(equations(jax.make_jaxpr(jax.grad(total, (0, 1)))(params, xs).jaxpr))
        products = [eqn for eqn in found if eqn.primitive.name in ("dot_general", "conv_general_dilated")]
        assert len(products) >= 3, name  # the input's, and the two of its gradient
        assert {v.aval.dtype for eqn in products for v in eqn.outvars} == {jnp.dtype(jnp.float32)}, name


@pytest.mark.slow
@pytest.mark.newest
def test_weight_gradients_are_summed_over_time_in_the_dtype_of_the_weights(monkeypatch):
    """512 steps in 32 segments: summed in bfloat16, the gradient of b_hh would be 1.4 % off."""
    small_segments(monkeypatch)
    cell = jaxrnn.GRUCell()
    params, xs = cell.init(jax.random.key(0), 4, 8), jax.random.normal(jax.random.key(1), (512, 2, 4))

    @partial(jit, static_argnums=1)
    def gradient(params, dtype):
        return jax.grad(lambda params: jnp.mean(jaxrnn.unroll(cell, params, xs, dtype=dtype)[1].astype(jnp.float32) ** 2))(params)

    for got, want in zip(gradient(params, jnp.bfloat16), gradient(params, jnp.float32), strict=True):
        assert got.dtype == jnp.float32
        assert np.abs(got - want).max() < 0.005 * np.abs(want).max()


@pytest.mark.slow
@pytest.mark.newest
def test_nothing_becomes_float64_because_it_could():
    """64-bit numbers on, everything given in float32: no float64 in the whole gradient, every option at work."""
    with jax.enable_x64(True):
        stack = Stack(jaxrnn.LSTMCell(), INPUT, HIDDEN, 2, **EVERYTHING)
        params = stack.init(jax.random.key(0))
        initial = stack.init_state(params)
        xs, reset = jnp.ones((TIME, BATCH, INPUT), jnp.float32), jnp.ones((TIME, BATCH), bool)

        def total(params, initial, xs, key, lengths):
            output, _ = stack.apply(params, xs, initial=initial, key=key, lengths=lengths, reset=reset)
            return jnp.sum(output)

        jaxpr = jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(params, initial, xs, jax.random.key(0), jnp.ones(BATCH, int))
        wide = [eqn.primitive.name for eqn in equations(jaxpr.jaxpr) for v in eqn.outvars if v.aval.dtype == jnp.float64]
        assert wide == []
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", ["LSTM", "MGU"])
def test_bfloat16_inputs_meet_float32_parameters(name):
    """Everything is computed in float32, as if the inputs had been cast before; only `dtype` makes it less."""
    cell = jaxrnn.CELLS[name]()
    params = drawn_like(jax.eval_shape(lambda key: cell.init(key, INPUT, HIDDEN), jax.random.key(0)))
    xs = normal(TIME, BATCH, INPUT, dtype=jnp.bfloat16)
    run = jit(lambda params, xs: jaxrnn.unroll(cell, params, xs))
    got = run(params, xs)
    assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    close(got, run(params, xs.astype(jnp.float32)), 1e-6)
    assert jax.eval_shape(cell.step, params, got[0], xs[0])[1].dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.newest
def test_float64_inputs_meet_float32_parameters(x64):
    """The result is float64; no cell objects."""
    for name, kind in jaxrnn.CELLS.items():
        stack = Stack(kind(), INPUT, HIDDEN)
        params = jax.eval_shape(stack.init, jax.random.key(0))
        xs = jax.ShapeDtypeStruct((TIME, BATCH, *(6, 8)[: stack.cell.event_ndim - 1], INPUT), jnp.float64)
        shapes = jax.eval_shape(stack.apply, params, xs)
        assert {a.dtype for a in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}, name
        assert {a.dtype for a in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float64)}, name
        total = lambda params, xs, stack=stack: jnp.sum(stack.apply(params, xs)[0])
        assert jax.eval_shape(jax.grad(total), params, xs) == params, name


@pytest.mark.slow
@pytest.mark.newest
def test_the_strictest_promotion_of_dtypes_and_ranks_is_enough():
    assert jax.config.jax_numpy_dtype_promotion == "strict"  # as for every test
    with jax.numpy_rank_promotion("raise"):
        for name, cell in jaxrnn.CELLS.items():
            nothing_to_act_on = {} if cell.recurrent_product else {"recurrent_dropout": 0.0, "weight_dropout": 0.0}
            stack = Stack(cell(), INPUT, HIDDEN, **EVERYTHING | {"dropout": 0.0, "bidirectional": False} | nothing_to_act_on)
            params = jax.eval_shape(stack.init, jax.random.key(0))
            xs = jax.ShapeDtypeStruct((TIME, BATCH, *(6, 8)[: stack.cell.event_ndim - 1], INPUT), jnp.bfloat16)
            total = lambda p, xs, key, n, stack=stack: jnp.sum(stack.apply(p, xs, key=key, lengths=n)[0].astype(jnp.float32))
            assert jax.eval_shape(jax.grad(total), params, xs, jax.random.key(0), jnp.ones(BATCH, int)) == params, name


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_saturated_gates_have_finite_gradients(name):
    module = getattr(jaxrnn, name)(INPUT, HIDDEN, rngs=nnx.Rngs(0))
    huge = jax.tree.map(lambda a: 1e5 * a, nnx.state(module))
    nnx.update(module, huge)
    grads = jit(jax.grad(lambda module: weighted(module(normal(BATCH, TIME, INPUT)))))(module)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(nnx.state(grads)))


# Transformations ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    """A stack, its parameters, inputs, lengths; a loss, and its gradient by parameters."""
    stack = Stack(jaxrnn.GRUCell(), INPUT, HIDDEN, bidirectional=True)
    params = drawn_like(jax.eval_shape(stack.init, jax.random.key(0)))
    xs, lengths = normal(TIME, BATCH, INPUT), jnp.array([7, 0, 3, 5])
    loss = lambda params, xs, lengths: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(stack.apply(params, xs, lengths=lengths)))
    gradient = jax.grad(loss)
    return stack, params, xs, lengths, loss, jit(gradient)(params, xs, lengths)


@pytest.mark.slow
@pytest.mark.newest
def test_vmap_over_examples_gives_each_its_gradient(setting):
    _, params, xs, lengths, loss, want = setting
    each = jit(jax.vmap(jax.grad(loss), in_axes=(None, 1, 0)))(params, xs, lengths)
    close(jax.tree.map(lambda a: a.sum(0), each), want, 1e-4)
    assert all((a[1] == 0).all() for a in jax.tree.leaves(each))  # no steps


def test_vmap_over_sets_of_parameters_gives_each_its_output(setting):
    stack, params, xs, lengths, *_ = setting
    sets = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a, -a]), params)
    run = lambda params: stack.apply(params, xs, lengths=lengths)
    got = jit(jax.vmap(run))(sets)
    close(jax.tree.map(lambda a: a[1], got), jit(run)(jax.tree.map(lambda a: 0.5 * a, params)), 1e-5)


def test_checkpoint_changes_no_gradient(setting):
    _, params, xs, lengths, loss, want = setting
    close(jit(jax.grad(jax.checkpoint(loss)))(params, xs, lengths), want, 1e-5)


def test_no_tracer_leaks_and_no_nan_is_made_on_the_way(setting):
    """Padding full of NaN goes in; `debug_nans` looks at everything that comes out."""
    _, params, xs, lengths, loss, want = setting
    padded = jnp.arange(TIME)[:, None, None] >= lengths[None, :, None]
    dirty = jnp.where(padded, jnp.nan, xs)
    with jax.checking_leaks(), jax.debug_nans(True):
        close(jit(jax.grad(loss))(params, dirty, lengths), want, 1e-5)


def test_donated_parameters_are_used_up(setting):
    _, params, xs, lengths, loss, want = setting
    mine = jax.tree.map(jnp.copy, params)
    train_step = jit(lambda p, *data: jax.tree.map(jnp.subtract, p, jax.grad(loss)(p, *data)), donate_argnums=0)
    close(train_step(mine, xs, lengths), jax.tree.map(jnp.subtract, params, want), 1e-5)
    assert all(a.is_deleted() for a in jax.tree.leaves(mine))


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("batch", "time"), [("b", "t"), ("b", TIME), (BATCH, "t")])
def test_export_with_symbolic_batch_and_time(setting, batch, time):
    """With lengths and resets, and once the gradient."""
    stack, params, xs, lengths, *_ = setting
    names = ", ".join(s for s in (batch, time) if isinstance(s, str))
    symbols = dict(zip(names.split(", "), export.symbolic_shape(names), strict=True))
    b, t = (symbols.get(s, s) for s in (batch, time))
    leaves, structure = jax.tree.flatten(params)

    def run(leaves, xs, lengths, reset):
        def total(leaves):
            output, _ = stack.apply(jax.tree.unflatten(structure, leaves), xs, lengths=lengths, reset=reset)
            return jnp.sum(jnp.sin(output)), output

        return (jax.grad(total, has_aux=True) if (batch, time) == ("b", "t") else total)(leaves)

    shapes = [((t, b, INPUT), jnp.float32), ((b,), jnp.int32), ((t, b), bool)]
    exported = export.export(jax.jit(run))(leaves, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    data = (xs, lengths, jnp.zeros((TIME, BATCH), bool).at[2].set(True))
    close(export.deserialize(exported.serialize()).call(leaves, *data), jit(run)(leaves, *data), 1e-5)


@pytest.mark.slow
@pytest.mark.newest
def test_a_module_is_scanned_by_hand():
    """`lax.scan` over `step`, the state the carry: the stream inside a larger loop."""
    module = jaxrnn.LSTM(INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, INPUT)

    @jit
    def by_hand(module, x):
        def body(state, x_t):
            y, state = module.step(x_t, state)
            return state, y

        zeros = (jnp.zeros((2, BATCH, HIDDEN)),) * 2
        state, ys = jax.lax.scan(body, zeros, x.swapaxes(0, 1))
        return ys.swapaxes(0, 1), state

    close(by_hand(module, x), jit(lambda m, x: m(x))(module, x), 1e-5)
