"""The engine's structure: what its loops hold, what it compiles, what it lowers to, and who may do what in the package."""

import ast
from collections import deque
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from support import as_on_a_gpu, close, count, equations, inner_jaxprs, optimised, quickly, small_segments

import jaxrnn
from jaxrnn import unroll
from jaxrnn.cells import CELLS, Cell, GatedCell, LinearCell, LSTMState

both_directions = pytest.mark.parametrize("reverse", [False, True])
GATED = [name for name, cell in CELLS.items() if issubclass(cell, GatedCell)]

# No two alike, nor like a number of gates.
TIME, BATCH, INPUT, HIDDEN = 13, 11, 6, 7


def abstract(cell, *, time=TIME, batch=BATCH, input_size=INPUT, hidden=HIDDEN, lengths=False):
    """Shapes of everything `unroll` reads: nothing is computed with them."""
    params = jax.eval_shape(lambda key: cell.init(key, input_size, hidden), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((time, batch, *(9, 8)[: cell.event_ndim - 1], input_size), jnp.float32)
    return params, xs, jax.ShapeDtypeStruct((batch,), jnp.int32) if lengths else None


def total(cell, params, xs, lengths, **options):
    """A loss on all outputs and on the final state."""
    state, ys = jaxrnn.unroll(cell, params, xs, lengths=lengths, **options)
    return sum(jnp.sum(jnp.sin(a)) for a in [ys, *state])


@cache
def gradient_of(cell, *shapes, **options):
    """The jaxpr of the gradient of `total` by parameters and inputs."""
    return jax.make_jaxpr(jax.grad(partial(total, cell, **options), (0, 1)))(*shapes).jaxpr


# Loops -------------------------------------------------------------------------------------------------------------------


def innermost_loops(jaxpr):
    """The scans that hold no scan: the loops over steps."""
    scans = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan"]
    return [eqn for eqn in scans if not any(count(inner, "scan") for inner in inner_jaxprs(eqn))]


def products(loop):
    return sum(count(inner, "dot_general") for inner in inner_jaxprs(loop))


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("lengths", [False, True])
@both_directions
def test_every_loop_over_steps_holds_one_product(name, lengths, reverse):
    """Forward and backward; and the two run against each other."""
    cell = CELLS[name]()
    loops = innermost_loops(gradient_of(cell, *abstract(cell, lengths=lengths), reverse=reverse))
    assert [products(loop) for loop in loops] == [1, 1]
    assert [loop.params["reverse"] for loop in loops] == [reverse, not reverse]
    assert {loop.params["length"] for loop in loops} == {TIME}


@pytest.mark.parametrize("name", GATED)
def test_no_loop_over_steps_gives_out_a_weight_gradient(name):
    """Neither in its carry nor stacked over steps, nor in a loop over segments; the weights themselves are only read."""
    cell = CELLS[name]()
    params, *rest = abstract(cell, lengths=True)
    a_gate = [(INPUT, HIDDEN), (HIDDEN, HIDDEN)]
    weights = [sorted(shape) for shape in [params.w_ih.shape, params.w_hh.shape, *a_gate]]
    for loop in innermost_loops(gradient_of(cell, params, *rest)):
        for shape in (v.aval.shape for v in loop.outvars):
            assert sorted(shape) not in weights
            assert sorted(shape[1:]) not in weights


def test_the_walker_sees_what_plain_autodiff_does():
    """The naive scan holds three products in its backward loop and a weight gradient in its carry."""
    cell = CELLS["LSTM"]()

    def naive(params, xs, lengths):
        state, ys = lax.scan(partial(cell.step, params), cell.initial_state(params, xs[0]), xs)
        return sum(jnp.sum(a) for a in [ys, *state])

    loops = innermost_loops(jax.make_jaxpr(jax.grad(naive))(*abstract(cell)).jaxpr)
    assert [products(loop) for loop in loops] == [2, 3]
    assert (INPUT, 4, HIDDEN) in [v.aval.shape for v in loops[1].outvars]


@pytest.mark.slow
@pytest.mark.newest
@both_directions
def test_segments_of_time_keep_one_product_per_step_and_form_weight_gradients_once_each(reverse):
    """Many segments and a rest: two pieces, each with a loop over steps forward and backward."""
    cell = CELLS["LSTM"]()
    shapes = abstract(cell, time=1001, batch=64, hidden=128, input_size=32, lengths=True)
    jaxpr = gradient_of(cell, *shapes, reverse=reverse)
    loops = innermost_loops(jaxpr)
    assert {products(loop) for loop in loops} == {1}
    assert sum(loop.params["length"] for loop in loops) < 1001  # segments, not the whole
    outer = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn not in loops]
    assert len(outer) == 2
    assert {products(loop) for loop in outer} <= {2, 3, 4, 5}  # projection, step; step, dw_ih, dw_hh, dx, and no more


@pytest.mark.parametrize("cell", [*(CELLS[name]() for name in GATED), CELLS["RNN"](nonlinearity="relu")], ids=str)
def test_no_mask_no_select(cell):
    """But for those of the cell's own equations and of their derivatives, `relu`'s and `max`'s."""
    selects = lambda jaxpr: sum(count(inner, "select_n") for loop in innermost_loops(jaxpr) for inner in inner_jaxprs(loop))
    params, xs, _ = abstract(cell)
    state = jax.eval_shape(lambda p, x: cell.initial_state(p, x[0]), params, xs)
    gates = tuple(jax.ShapeDtypeStruct((BATCH, HIDDEN), jnp.float32) for _ in cell.gates)
    own = jax.make_jaxpr(lambda *args: jax.vjp(cell.update, *args)[1](args[0]))(state, gates, gates, *params[4:]).jaxpr
    without = selects(gradient_of(cell, params, xs, None))
    assert without <= 3 * count(own, "select_n")  # forward; and twice where the backward loop computes again
    assert selects(gradient_of(cell, *abstract(cell, lengths=True))) > without


STORED = {
    "RNN": (1, 0),
    "LSTM": (6, 0),
    "GRU": (5, 0),
    "PeepholeLSTM": (6, 0),
    "CoupledLSTM": (5, 0),
    "LayerNormLSTM": (10, 0),
    "LayerNormGRU": (7, 0),
    "LiGRU": (4, 1),
    "SLSTM": (12, 4),
}
"""For gated cells: how many floats and how many bits of every entry of a step the forward loop of training gives out,
outputs included."""


@pytest.mark.parametrize("name", GATED)
def test_what_the_backward_pass_stores(name):
    """The gates and the states, each once; nothing in the dtype of pre-activations on top, whatever JAX calls its primitives."""
    cell = CELLS[name]()
    loop = innermost_loops(gradient_of(cell, *abstract(cell)))[0]
    stacked = [v.aval for v in loop.outvars if v.aval.shape[:1] == (TIME,)]
    assert {a.shape for a in stacked} == {(TIME, BATCH, HIDDEN)}
    assert {str(a.dtype) for a in stacked} <= {"float32", "bool"}
    floats, bits = (sum(a.dtype == kind for a in stacked) for kind in (jnp.float32, jnp.bool_))
    if name in STORED:
        assert (floats, bits) == STORED[name]
    assert floats <= 2 * len(cell.gates) + len(cell.State._fields)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_the_count_of_what_is_stored_sees_a_primitive_renamed(name, monkeypatch):
    monkeypatch.setattr("jaxrnn.engine.residuals.COSTLY", {"nonsense"})
    forget = (jax.clear_caches, gradient_of.cache_clear)
    for cached in forget:
        cached()
    with pytest.raises(AssertionError):
        test_what_the_backward_pass_stores(name)
    for cached in forget:
        cached()


@pytest.mark.slow
@pytest.mark.newest
def test_remat_stores_one_state_per_segment():
    """The residuals of a segment are inside the loop over segments that computes them again."""
    cell = CELLS["LSTM"]()
    shapes = abstract(cell, time=400)

    def stored(remat):
        """Numbers that the outermost forward loop gives out: carry, outputs and what the backward loop reads."""
        forward = next(e for e in equations(gradient_of(cell, *shapes, remat=remat)) if e.primitive.name == "scan")
        return sum(v.aval.size for v in forward.outvars)

    state = BATCH * HIDDEN * 2
    assert stored(True) <= 400 * BATCH * HIDDEN + 30 * state  # the outputs, a state for each of 20 segments
    assert stored(False) > 4 * 400 * BATCH * HIDDEN


# Values ------------------------------------------------------------------------------------------------------------------


def random(cell, *, time, batch=3, input_size=2, hidden=4, dtype=jnp.float64):
    rng = np.random.default_rng(0)
    draw = lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), dtype)
    xs = jnp.asarray(rng.standard_normal((time, batch, input_size)), dtype)
    params = jax.tree.map(draw, jax.eval_shape(lambda key: cell.init(key, input_size, hidden), jax.random.key(0)))
    return params, xs, jax.tree.map(draw, jax.eval_shape(lambda xs: cell.initial_state(params, xs[0]), xs))


@pytest.mark.slow
@pytest.mark.parametrize("name", GATED)
def test_first_and_second_derivatives_are_finite_differences(name, x64):
    """In forward mode, reverse mode and every order of the two; ragged lengths, loss on outputs and final state."""
    cell = CELLS[name]()
    at, structure = ravel_pytree(random(cell, time=5))
    along = jnp.asarray(np.random.default_rng(1).standard_normal(at.shape))
    step = 1e-5

    def f(flat):
        params, xs, state = structure(flat)
        state, ys = jaxrnn.unroll(cell, params, xs, state, lengths=jnp.array([4, 0, 2]))
        return sum(jnp.sum(jnp.sin(a)) for a in [ys, *state])

    def directional(f):
        return lambda at: jax.jvp(f, (at,), (along,))[1]

    def difference(f, at):
        forward, backward = lax.map(f, jnp.stack([at + step * along, at - step * along]))
        return (forward - backward) / (2 * step)

    @partial(jax.jit, compiler_options=quickly)
    def compute(at):
        gradient = jax.grad(f)
        first = (directional(f)(at), gradient(at) @ along, difference(f, at))
        second = (directional(gradient)(at),)
        if name == "GRU":  # slow to compile; the rule is one, and so are these two
            second = (jax.grad(lambda at: gradient(at) @ along)(at), jax.grad(directional(f))(at), *second)
        return first, second, (directional(directional(f))(at), second[0] @ along, difference(directional(f), at))

    for same in compute(at):
        for value in same:
            size = np.abs(value).max()
            assert size > 1e-3
            np.testing.assert_allclose(value, same[-1], rtol=1e-6, atol=1e-6 * size)


@pytest.mark.slow
@pytest.mark.newest
def test_check_grads_of_order_two_passes(x64):
    cell = CELLS["RNN"]()
    at, structure = ravel_pytree(random(cell, time=3))

    @jax.jit
    def f(flat):
        return total(cell, *structure(flat)[:2], jnp.array([3, 0, 2]))

    check_grads(f, (at,), order=2, modes=("fwd", "rev"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reverse"), [("LSTM", False), ("GRU", True), ("LayerNormLSTM", True), ("ChungGRU", False)])
def test_segments_of_time_change_nothing(name, reverse, monkeypatch, x64):
    """37 steps in two segments of 16 and a rest of 5, with lengths, resets, zoneout and every state, forward and backward."""
    cell = CELLS[name]()
    params, xs, state = random(cell, time=37)
    rng = np.random.default_rng(1)
    reset = jnp.asarray(rng.random((37, 3)) < 0.1)
    zoneout = type(state)(*(jnp.asarray(rng.random((37, *s.shape)) < 0.2) for s in state))
    zoneout = type(state)(0.3, *zoneout[1:]) if len(zoneout) > 1 else zoneout

    def run(params, xs, state):
        result = jaxrnn.unroll(
            cell, params, xs, state, lengths=jnp.array([37, 9, 30]), reset=reset, zoneout=zoneout, reverse=reverse,
            return_states=True,
        )  # fmt: skip
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(result)), result

    def compute():
        gradient, result = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True), compiler_options=quickly)(params, xs, state)
        return gradient, result, jax.jit(run, compiler_options=quickly)(params, xs, state)[1]

    whole = compute()
    small_segments(monkeypatch)
    pieces = compute()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-11), pieces, whole)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("missing", ["b_ih", "b_hh"])
def test_one_bias_without_the_other(name, missing, monkeypatch, x64):
    """As if it were zero, with one product for all gates and with one for each."""
    cell = CELLS[name]()
    params, xs, state = random(cell, time=17)
    zero = params._replace(**{missing: jnp.zeros_like(getattr(params, missing))})

    def compute(params):
        run = lambda params, xs: sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(jaxrnn.unroll(cell, params, xs, state)))
        both = lambda *args: (jax.value_and_grad(run, (0, 1))(*args), run(*args))
        (value, (d_params, d_xs)), alone = jax.jit(both, compiler_options=quickly)(params, xs)
        return value, alone, d_params._replace(**{missing: None}), d_xs

    want = compute(zero)
    alike = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12))
    alike(compute(params._replace(**{missing: None})), want)
    small_segments(monkeypatch)
    alike(compute(params._replace(**{missing: None})), want)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("name", "reverse"), [("LSTM", False), ("GRU", True), ("ChungGRU", False)])
def test_the_form_for_gpus_changes_nothing(name, reverse, monkeypatch, x64):
    """14 steps, four at once and a rest of 2: lengths, 0 among them, NaN in the padding, resets, zoneout and every state."""
    cell = CELLS[name]()
    params, xs, state = random(cell, time=14, batch=4)
    lengths = jnp.array([14, 0, 9, 11])
    padded = jnp.where(jnp.arange(14)[:, None, None] < lengths[:, None], xs, jnp.nan)
    rng = np.random.default_rng(1)
    reset = jnp.asarray(rng.random((14, 4)) < 0.1)
    zoneout = type(state)(*(jnp.asarray(rng.random((14, *s.shape)) < 0.2) for s in state))
    zoneout = type(state)(0.3, *zoneout[1:]) if len(zoneout) > 1 else zoneout

    def run(params, xs, state):
        result = jaxrnn.unroll(
            cell, params, xs, state, lengths=lengths, reset=reset, zoneout=zoneout, reverse=reverse, return_states=True
        )
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(result)), result

    def compute(xs):
        gradient = jax.jit(jax.grad(run, (0, 1, 2), has_aux=True), compiler_options=quickly)
        return gradient(params, xs, state), jax.jit(run, compiler_options=quickly)(params, xs, state)[1]

    plain = compute(xs)
    as_on_a_gpu(monkeypatch)
    jaxpr = jax.make_jaxpr(lambda xs: run(params, xs, state)[1])(xs).jaxpr
    assert [loop.params["unroll"] for loop in innermost_loops(jaxpr)] == [4]
    close(compute(padded), plain)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("name", "options"), [("LSTM", {}), ("GRU", {"truncate": 8}), ("RNN", {"remat": True})])
def test_both_directions_in_one_loop_change_nothing(name, options, monkeypatch, x64):
    """Lengths, 0 among them, NaN in the padding, resets, starts, every state; what is drawn, and what stands in its place."""
    stack = jaxrnn.Stack(
        CELLS[name](), 2, 4, bidirectional=True, zoneout=0.3, recurrent_dropout=0.2, param_dtype=jnp.float64, **options
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape)), stack.init(jax.random.key(0)))
    xs, lengths = jnp.asarray(rng.standard_normal((16, 5, 2))), jnp.array([16, 0, 9, 14, 3])
    padded = jnp.where(jnp.arange(16)[:, None, None] < lengths[:, None], xs, jnp.nan)
    reset = jnp.asarray(rng.random((16, 5)) < 0.1)
    states = jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape)), stack.states_like(params, (5,), xs.dtype))

    def run(params, xs, states):
        call = partial(stack.apply, params, xs, states, lengths=lengths, reset=reset, return_states=True)
        results = [call(), call(key=jax.random.key(3))]
        return sum(jnp.sum(jnp.sin(a) * (1 + k)) for k, a in enumerate(jax.tree.leaves(results))), results

    def compute(xs):
        return jax.jit(jax.grad(run, (0, 1, 2), has_aux=True), compiler_options=quickly)(params, xs, states)

    def loops():
        return len(innermost_loops(jax.make_jaxpr(lambda xs: run(params, xs, states)[1])(xs).jaxpr))

    plain, apart = compute(xs), loops()
    as_on_a_gpu(monkeypatch)
    assert 2 * loops() == apart
    close(compute(padded), plain)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reverse", "form"), [("RNN", True, small_segments), ("RNN", True, as_on_a_gpu), ("GRU", False, small_segments)]
)
def test_forms_of_the_loop_change_no_second_derivative_and_no_batched_one(name, reverse, form, monkeypatch, x64):
    """33 steps in two segments of 16 and a rest of 1, or four at once and a rest of 1: a Hessian times a vector in both
    orders, and over a batch of parameters."""
    cell = CELLS[name]()
    params, xs, state = random(cell, time=33)
    along = random(cell, time=33)[0]

    def run(params):
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(jaxrnn.unroll(cell, params, xs, state, reverse=reverse)))

    def compute():
        forward = lambda params: jax.jvp(jax.grad(run), (params,), (along,))[1]
        reverse = lambda params: jax.grad(lambda p: jax.jvp(run, (p,), (along,))[1])(params)
        several = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
        together = lambda params: (forward(params), reverse(params), jax.vmap(jax.value_and_grad(run))(several))
        return jax.jit(together, compiler_options=quickly)(params)

    whole = compute()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), whole[0], whole[1])
    form(monkeypatch)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), compute(), whole)


@pytest.mark.slow
@pytest.mark.newest
def test_ten_thousand_steps_forward_and_backward_are_finite_and_need_memory_in_proportion():
    cell = CELLS["LSTM"]()
    gradient = jax.jit(jax.grad(partial(total, cell), (0, 1)), compiler_options=optimised)

    def memory(time):
        shapes = random(cell, time=time, batch=2, dtype=jnp.float32)[:2]
        compiled = gradient.lower(*shapes, None).compile()
        return compiled, shapes, compiled.memory_analysis().temp_size_in_bytes

    compiled, shapes, large = memory(10_000)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(compiled(*shapes, None)))
    assert large < 10_000 * 2 * 4 * 4 * 20  # batch, hidden, bytes: twenty streams at most


@pytest.mark.slow
@pytest.mark.newest
def test_a_second_call_compiles_nothing():
    """Neither other values nor other lengths nor another module of the same description."""
    traces = []

    @jax.jit
    def run(module, x, lengths):
        traces.append(x)
        return module(x, lengths=lengths)[0]

    for seed in range(3):
        module = jaxrnn.Recurrent(CELLS["MGU"](), 3, 5, rngs=nnx.Rngs(seed))
        run(module, jnp.full((2, 4, 3), 1.0 + seed), jnp.array([seed, 4]))
    assert len(traces) == run._cache_size() == 1


def counting_cell():
    """A cell, and a queue that grows when its `update` is traced; what a list holds would count as read by the cell."""
    traces = deque()

    class Counted(CELLS["GRU"]):
        def update(self, state, x_gates, h_gates):
            traces.append(self)
            return super().update(state, x_gates, h_gates)

    return Counted(), traces


@pytest.mark.slow
@pytest.mark.newest
def test_layers_of_one_shape_are_traced_once():
    """However many they are, and in however many calls outside of `jit`."""
    cell, traces = counting_cell()

    def traced(num_layers):
        traces.clear()
        stack = jaxrnn.Stack(cell, 5, 5, num_layers=num_layers)
        params, xs = stack.init(jax.random.key(0)), jnp.ones((4, 3, 5 + num_layers))[..., :5]
        run = lambda params: stack.apply(params, xs)[0].sum()
        jax.clear_caches()
        jax.grad(run)(params)
        jax.grad(run)(params)
        return len(traces)

    assert 0 < traced(1) == traced(3)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("options", [{}, {"remat": True}, {"truncate": 3}, {"remat": True, "truncate": 3}], ids=str)
def test_outside_of_jit_the_second_call_traces_nothing(options):
    cell, traces = counting_cell()
    params, xs = cell.init(jax.random.key(0), 3, 5), jnp.ones((7, 2, 3))
    gradient = jax.grad(lambda params: jaxrnn.unroll(cell, params, xs, **options)[1].sum())
    gradient(params)
    assert traces
    traces.clear()
    gradient(params)
    assert not traces


@pytest.mark.parametrize(("platform", "segmented", "at_once"), [("cpu", True, 1), ("cuda", False, 4), ("tpu", False, 1)])
def test_time_runs_in_segments_on_a_cpu_and_several_steps_at_once_on_a_gpu(platform, segmented, at_once, monkeypatch):
    """One traced program, which is lowered otherwise for each platform."""
    cell = CELLS["GRU"]()
    jaxpr = gradient_of(cell, *abstract(cell, time=200, batch=32, hidden=64))
    monkeypatch.setattr("support.PLATFORM", platform)
    loops = innermost_loops(jaxpr)
    nested = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "scan" and eqn not in loops]
    assert bool(nested) == segmented
    assert {products(loop) for loop in loops} == {1}
    assert ({loop.params["length"] for loop in loops} == {200}) != segmented
    assert [loop.params["unroll"] for loop in loops] == [at_once] * 2


# Other devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_every_cell_lowers_for_cuda_and_tpu(name):
    """From CPU, forward and gradient."""
    cell = CELLS[name]()
    params, xs, lengths = abstract(cell, lengths=True)
    run = jax.jit(jax.value_and_grad(partial(total, cell), (0, 1)))
    exported = export.export(run, platforms=["cuda", "tpu"])(params, xs, lengths)
    assert exported.platforms == ("cuda", "tpu")
    assert ("while" in exported.mlir_module()) != issubclass(CELLS[name], LinearCell)  # which have no loop there


@pytest.mark.slow
@pytest.mark.newest
def test_modules_lower_for_cuda_and_tpu():
    module = jaxrnn.LSTM(
        3, 5, 2, bidirectional=True, dropout=0.5, zoneout=0.1, recurrent_dropout=0.2, learn_initial_state=True, remat=True,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    def run(params, x, reset):
        return jnp.sum(nnx.merge(graph, params, rest, copy=True)(x, reset=reset)[0])

    shapes = (jax.ShapeDtypeStruct((2, 9, 3), jnp.float32), jax.ShapeDtypeStruct((2, 9), bool))
    leaves, structure = jax.tree.flatten(params)
    flat = jax.jit(lambda leaves, *rest: jax.tree.leaves(jax.grad(run)(jax.tree.unflatten(structure, leaves), *rest)))
    exported = export.export(flat, platforms=["cuda", "tpu"])(leaves, *shapes)
    assert exported.platforms == ("cuda", "tpu")


# Who may do what ---------------------------------------------------------------------------------------------------------

PACKAGE = Path(jaxrnn.__file__).parent
NO_CELLS = {f"cells.{name}" for name in ("__init__", "base", "conform", "activations", "elementwise")}
CELL_FILES = sorted({f"cells.{p.stem}" for p in (PACKAGE / "cells").glob("*.py")} - NO_CELLS)
BASE = {"_arrays", "checks", "cells.base", "cells.conform"}
PROBLEM = BASE | {"engine.problem", "engine.transition", "engine.tuning", "engine.segments"}
MAY_IMPORT = {
    "_arrays": set(),
    "checks": set(),
    "initializers": {"_arrays", "checks"},
    "cells.conform": {"_arrays", "checks"},
    "cells.axes": set(),
    "cells.base": {"_arrays", "checks", "cells", "cells.axes", "cells.conform", "initializers", "synonyms", "typing"},
    "cells.elementwise": {"cells", "cells.base"},
    **{name: {"cells.base", "cells.activations", "cells.elementwise"} for name in CELL_FILES},
    "cells.activations": set(),
    "cells.__init__": {"cells.base", "cells.elementwise", *CELL_FILES},
    "noise": {"cells.conform"},
    "engine.problem": BASE,
    "engine.over_devices": {"_arrays", "cells.elementwise", "checks"},
    "engine.transition": BASE | {"engine.over_devices", "engine.problem"},
    "engine.tuning": {"checks"},
    "engine.segments": {"_arrays", "checks", "engine.tuning"},
    "engine.lanes": BASE,
    "engine.gates": PROBLEM | {"engine.lanes", "engine.outside"},
    "engine.residuals": {"_arrays"},
    "engine.scan_plain": PROBLEM,
    "engine.scan_gated": PROBLEM | {"engine.gates", "engine.lanes", "engine.residuals"},
    "engine.one_sequence": {"_arrays", "engine.problem"},
    "engine.affine": {"_arrays", "cells.elementwise", "checks", "engine", "engine.residuals"},
    "engine.scan_linear": PROBLEM
    | {"engine", "engine.one_sequence", "engine.over_devices", "engine.residuals", "cells.elementwise"},
    "engine.associative": {"engine"},
    "engine.scan_diagonal": PROBLEM | {"engine", "engine.one_sequence", "engine.outside", "engine.residuals", "cells.elementwise"},
    "engine.newton": {"engine", "engine.problem", "engine.segments"},
    "engine.linear_scan": {"_arrays", "cells.elementwise", "checks", "engine", "engine.tuning", "synonyms", "typing"},
    "engine.primitives": {"_arrays"},
    "engine.fused_loops": PROBLEM | {"engine.outside", "engine.primitives"},
    "engine.fused_update": {"_arrays", "cells.conform", "engine"},
    "engine.fused_kernels": {"_arrays", "engine.fused_loops", "engine.fused_update"},
    "engine.fused": PROBLEM | {"engine", "engine.fused_loops", "engine.fused_update", "engine.gates", "engine.outside"},
    "engine.cudnn": PROBLEM | {"engine.primitives"},
    "engine.strategies": PROBLEM | {"engine", "engine.scan_plain", "engine.scan_gated"},
    "engine.outside": set(),
    "engine.core": PROBLEM | {"engine", "engine.outside", "engine.over_devices", "engine.strategies"},
    "engine.directions": PROBLEM | {"engine.core", "engine.outside"},
    "engine.wavefront": PROBLEM | {"engine.core", "engine.lanes", "engine.outside"},
    "engine.unroll": BASE | {"cells", "engine", "engine.core", "engine.strategies", "synonyms", "typing"},
    "engine.__init__": {"engine.linear_scan", "engine.unroll"},
    "layers": {"noise", "cells", "cells.conform", "engine.core", "engine.directions", "engine.strategies", "engine.wavefront"},
    "stack_checks": BASE | {"cells", "engine.strategies"},
    "stack_options": {"cells.base", "initializers", "stack_checks", "typing"},
    "stack": BASE | {"cells", "engine", "engine.outside", "layers", "stack_checks", "stack_options", "synonyms", "typing"},
    "calling": BASE | {"cells", "cells.lstm_variants", "engine", "engine.outside", "layers", "stack", "stack_checks", "typing"},
    "trees": set(),
    "synonyms": set(),
    "typing": set(),
    "groups": {"checks", "stack", "synonyms", "trees"},
    "nnx_layers": {"checks", "cells", "stack", "calling", "groups", "synonyms", "typing"},
    "nnx": {"cells", "calling", "nnx_layers", "synonyms", "typing"},
    "blocks": {"_arrays", "checks", "engine", "engine.transition", "stack", "stack_checks"},
    "linen_layers": {"checks", "cells", "stack", "calling", "synonyms", "trees", "typing"},
    "linen_recurrent": {"cells", "linen_layers", "typing"},
    "linen_model": {"blocks", "checks", "cells", "linen_layers", "linen_recurrent", "synonyms", "typing"},
    "linen": {"cells", "calling", "linen_layers", "linen_model", "linen_recurrent", "typing"},
    "predictor": {"calling", "nnx_layers", "synonyms", "typing"},
    "sequence_model": {"blocks", "checks", "cells", "nnx_layers", "synonyms", "typing"},
    "models": {"checks", "nnx", "predictor", "sequence_model", "synonyms", "typing"},
    "text": {"checks", "cells", "models", "nnx", "synonyms", "typing"},
    "data_parallel": {"_arrays", "checks"},
    "padding": {"checks", "synonyms"},
    "scaling": {"checks", "typing"},
    "model_json": {"checks", "cells", "models", "nnx", "stack", "text"},
    "_checkpoints": set(),
    "runs": {"_checkpoints", "checks", "model_json", "scaling", "synonyms"},
}
MESHES = {"typeof", "reshard", "pcast", "get_abstract_mesh", "auto_axes", "AxisType", "out_sharding"}


@cache
def tree(name):
    return ast.parse((PACKAGE / f"{name.replace('.', '/')}.py").read_text())


def imports(name):
    """The modules of the package that a module imports."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.ImportFrom) and node.module == "jaxrnn":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxrnn."):
            yield node.module.removeprefix("jaxrnn.")
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("jaxrnn.") for a in node.names if a.name.split(".")[0] == "jaxrnn")


def names(node):
    return {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", None) for n in ast.walk(node)}


def test_the_core_is_all_there():
    files = [*PACKAGE.glob("*.py"), *PACKAGE.glob("cells/*.py"), *PACKAGE.glob("engine/*.py")]
    found = {".".join(p.relative_to(PACKAGE).with_suffix("").parts) for p in files}
    assert found == {"__init__", *MAY_IMPORT}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_one_way(name):
    assert set(imports(name)) <= MAY_IMPORT[name]


def test_no_file_is_long():
    long = {str(p): n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 300}
    assert not long


WRITERS = {"text"}
"""What a model writes is its own next input: a loop of steps, not a sequence at hand."""


@pytest.mark.parametrize("name", sorted(name for name in MAY_IMPORT if not name.startswith("engine.") and name not in WRITERS))
def test_only_the_engine_loops_over_time_or_defines_a_derivative(name):
    loops = {"scan", "while_loop", "fori_loop", "associative_scan", "map"}
    rules = {"custom_jvp", "custom_vjp", "defjvp", "defvjp", "custom_gradient", "linearize", "vjp", "jvp"}
    trees = {id(n) for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute) and getattr(n.value, "attr", "") == "tree"}
    used = {n.attr for n in ast.walk(tree(name)) if isinstance(n, ast.Attribute) and id(n) not in trees}
    assert not used & (loops | rules)


@pytest.mark.parametrize("name", sorted(set(MAY_IMPORT) - {"_arrays", "groups", "data_parallel"}))
def test_only_arrays_knows_meshes(name):
    used = names(tree(name)) | {keyword.arg for n in ast.walk(tree(name)) if isinstance(n, ast.Call) for keyword in n.keywords}
    assert not used & MESHES


def test_the_engine_and_the_stack_know_no_concrete_cell():
    concrete = {cell.__name__ for cell in CELLS.values()}
    for name in (
        n
        for n in MAY_IMPORT
        if n.startswith("engine.") or n in ("layers", "stack", "stack_options", "checks", "initializers", "cells.base")
    ):
        assert not names(tree(name)) & concrete


@dataclass(frozen=True)
class _PassesItsInputOn(GatedCell):
    """A cell that adds x to h in its gate, and also keeps x itself."""

    gates: ClassVar = ("n",)
    State: ClassVar = LSTMState

    def update(self, state, x_gates, h_gates):
        return LSTMState(jnp.tanh(x_gates[0] + h_gates[0]) + state.c, x_gates[0])


@dataclass(frozen=True)
class _PassesItsInputOnPlainly(Cell):
    gates: ClassVar = ("n",)
    State: ClassVar = LSTMState
    update = _PassesItsInputOn.update
    recur = _PassesItsInputOn.recur


@pytest.mark.slow
@pytest.mark.newest
def test_an_input_that_update_also_hands_on_keeps_its_gradient():
    """The rule's short cut for gates that read x + h only must not be taken here."""
    params = _PassesItsInputOn().init(jax.random.key(0), 3, 4)
    xs = jax.random.normal(jax.random.key(1), (5, 2, 3))

    def gradient(cell):
        return jax.grad(lambda p, x: jnp.sum(jnp.sin(unroll(cell, p, x)[1])), argnums=(0, 1))(params, xs)

    jax.tree.map(
        partial(np.testing.assert_allclose, atol=1e-5), gradient(_PassesItsInputOn()), gradient(_PassesItsInputOnPlainly())
    )


def test_the_reference_of_the_tests_reads_nothing_of_the_engine():
    """Of the library it reads nothing: what it calls are the methods of the cell that it is given."""
    nodes = list(ast.walk(ast.parse((Path(__file__).parent / "reference.py").read_text())))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    assert modules == {"jax", "jax.numpy", "numpy"}
    assert not any(isinstance(node, ast.ImportFrom) for node in nodes)
