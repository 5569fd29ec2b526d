"""Layers of a stack as a wavefront, the form that a GPU gets: equal to one layer after the other, in one loop, where it can be."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from support import as_on_a_gpu, close, count, drawn_like, equal, equations, inner_jaxprs, jit, normal, weighted

import jaxrnn
from jaxrnn import LSTMState, Stack
from jaxrnn.cells import CELLS, GatedCell, Hidden

LAYERS, TIME, BATCH, INPUT, HIDDEN = 3, 13, 5, 2, 6
LENGTHS = np.array([13, 0, 7, 12, 1])
OWN_PROJECTION = {"LayerNormLSTM", "LayerNormGRU"}
TAKERS = [name for name, cell in CELLS.items() if issubclass(cell, GatedCell) and name not in OWN_PROJECTION]
FAST = ("RNN", "LSTM", "GRU")


def problem(cell, time=TIME, **options):
    """A stack, its parameters, inputs and start states, all drawn."""
    stack = Stack(cell, INPUT, HIDDEN, LAYERS, param_dtype=jnp.zeros(()).dtype, **options)
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(time, BATCH, INPUT, seed=1)
    return stack, params, xs, drawn_like(stack.states_like(params, (BATCH,), xs.dtype), seed=2)


def loops(function, *args):
    """The loops over steps in the program of `function`."""
    scans = [eqn for eqn in equations(jax.make_jaxpr(function)(*args).jaxpr) if eqn.primitive.name == "scan"]
    return [eqn for eqn in scans if not any(count(inner, "scan") for inner in inner_jaxprs(eqn))]


def both_forms(monkeypatch, function, *args):
    """What `function` gives with one layer after the other and as on a GPU, and how many loops there are each time."""
    first = jit(function)(*args), len(loops(function, *args))
    as_on_a_gpu(monkeypatch)
    jax.clear_caches()
    return first, (jit(function)(*args), len(loops(function, *args)))


@pytest.mark.parametrize("on_a_gpu", [False, True])
def test_a_stack_is_its_layers_unrolled_by_hand(on_a_gpu, monkeypatch, x64):
    """Final states and every state, nested `[layer][direction]`."""
    stack, params, xs, states = problem(CELLS["GRU"]())
    lengths, ys, finals, every = jnp.asarray(LENGTHS), xs, [], []
    for layer, start in zip(params, states, strict=True):
        final, ys, of_layer = jaxrnn.unroll(stack.cell, layer[0], ys, start[0], lengths=lengths, return_states=True)
        finals.append((final,))
        every.append((of_layer,))
    if on_a_gpu:
        as_on_a_gpu(monkeypatch)
    for run in (stack.apply, jit(stack.apply, static_argnames="return_states")):
        close(run(params, xs, states, lengths=lengths, return_states=True), (ys, tuple(finals), tuple(every)))
        close(run(params, xs, states, lengths=lengths), (ys, tuple(finals)))


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in TAKERS])
def test_it_equals_one_layer_after_the_other(name, monkeypatch, x64):
    """Values and gradients, with lengths, 0 among them, NaN in the padding, starts and every state."""
    stack, params, xs, states = problem(CELLS[name]())
    padded = jnp.where(np.arange(TIME)[:, None, None] < LENGTHS[:, None], xs, jnp.nan)

    def run(params, xs, states):
        results = stack.apply(params, xs, states, lengths=jnp.asarray(LENGTHS), return_states=True)
        return weighted(jax.tree.map(jnp.sin, results)), results

    function = jax.grad(run, (0, 1, 2), has_aux=True)
    (apart, many), (together, few) = both_forms(monkeypatch, function, params, padded, states)
    assert (many, few) == (2 * LAYERS, 2)
    close(together, apart)
    gradients, (output, finals, _) = together
    padding = np.arange(TIME)[:, None] >= LENGTHS
    assert (np.asarray(output)[padding] == 0).all()
    assert (np.asarray(gradients[1])[padding] == 0).all()
    equal([final.h[1] for (final,) in finals], [start.h[1] for (start,) in states])  # of length 0


@pytest.mark.parametrize("bias", [True, False])
def test_noise_that_acts_on_state_and_weights_is_part_of_it(bias, monkeypatch, x64):
    """Zoneout, drawn and expected, and weights that are dropped; masks with gaps; a start that is learned."""
    stack, params, xs, states = problem(CELLS["GRU"](), bias=bias, zoneout=0.3, weight_dropout=0.2, dropout=0.4)
    mask = jnp.asarray(np.random.default_rng(3).random((TIME, BATCH)) < 0.7)
    learned = jax.tree.map(lambda a: a[0], states)
    quiet = Stack(**{**vars(stack), "dropout": 0.0})

    def run(params, xs, learned):
        results = stack.apply(params, xs, mask=mask), quiet.apply(params, xs, initial=learned, key=jax.random.key(5))
        return weighted(results), results

    (apart, many), (together, few) = both_forms(monkeypatch, jax.grad(run, (0, 1, 2), has_aux=True), params, xs, learned)
    assert (many, few) == (4 * LAYERS, 4)
    close(together, apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_second_derivatives_and_batches_of_it_are_the_same(name, monkeypatch, x64):
    """A Hessian times a vector in both orders; and gradients over a batch of parameters and of lengths."""
    stack, params, xs, _ = problem(CELLS[name](), time=9)
    along, lengths = drawn_like(params, seed=4), np.minimum(LENGTHS, 9)

    def run(params, lengths=None):
        output, finals = stack.apply(params, xs, lengths=lengths)
        return weighted(jax.tree.map(jnp.sin, (output, finals)))

    def several(params):
        forward = jax.jvp(jax.grad(run), (params,), (along,))[1]
        reverse = jax.grad(lambda p: jax.jvp(run, (p,), (along,))[1])(params)
        stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), params)
        return forward, reverse, jax.vmap(jax.value_and_grad(run))(stacked, np.stack([lengths, lengths[::-1]]))

    (apart, many), (together, few) = both_forms(monkeypatch, several, params)
    assert many > few
    close(apart[0], apart[1], 1e-10)
    close(together, apart, 1e-10)


class ScaledParams(NamedTuple):
    w_ih: jax.Array
    w_hh: jax.Array
    b_ih: jax.Array | None
    b_hh: jax.Array | None
    scale: jax.Array


@dataclass(frozen=True)
class _Scaled(GatedCell):
    """A gate of a sum, one that keeps x and h apart, a parameter of its own, a start that is not zero, something to attend to."""

    gates: ClassVar = ("n", "z")
    State: ClassVar = LSTMState
    context: ClassVar = ("memory",)

    def init(self, *args, **options):
        params = super().init(*args, **options)
        return ScaledParams(*params, jnp.ones(params.w_hh.shape[-1], params.w_hh.dtype))

    def initial_state(self, params, x):
        zeros = super().initial_state(params, x)
        return zeros._replace(c=zeros.c + jnp.sum(params.w_ih) + jnp.sum(params.scale))

    def update(self, state, x_gates, h_gates, scale, memory):
        n = jnp.tanh(x_gates[0] + h_gates[0])
        c = state.c * jnp.tanh(x_gates[1] * h_gates[1]) + scale * n + memory
        return LSTMState(jnp.sin(c), c)


def test_cells_of_ones_own_are_taken(monkeypatch, x64):
    stack, params, xs, _ = problem(_Scaled())
    params = jax.tree.map(lambda a: a / 2, params)  # or its gradients are large, and differ by their rounding
    memory = normal(BATCH, HIDDEN, seed=6)

    def run(params, xs, memory):
        results = stack.apply(params, xs, context={"memory": memory}, lengths=jnp.asarray(LENGTHS), return_states=True)
        return weighted(results), results

    (apart, many), (together, few) = both_forms(monkeypatch, jax.grad(run, (0, 1, 2), has_aux=True), params, xs, memory)
    assert (many, few) == (2 * LAYERS, 2)
    close(together, apart)


@dataclass(frozen=True)
class _Unit(GatedCell):
    """A state of length one. Of zeros it makes NaN: as a lane reads them that waits for the layers below it."""

    gates: ClassVar = ("n",)

    def init(self, *args, **options):
        params = super().init(*args, **options)
        return ScaledParams(*params, jnp.ones(params.w_hh.shape[-1], params.w_hh.dtype))

    def update(self, state, x_gates, h_gates, scale):
        sum_ = scale * (x_gates[0] + h_gates[0]) + state.h
        return Hidden(sum_ / jnp.sqrt(jnp.sum(sum_**2, -1, keepdims=True)))


def test_what_lanes_make_outside_of_the_sequence_reaches_no_gradient(monkeypatch, x64):
    stack, params, xs, _ = problem(_Unit(), bias=False)

    def run(params, xs):
        results = stack.apply(params, xs)
        return weighted(results), results

    (apart, _), (together, few) = both_forms(monkeypatch, jax.grad(run, (0, 1), has_aux=True), params, xs)
    assert few == 2 and all(np.isfinite(a).all() for a in jax.tree.leaves(apart))
    close(together, apart)


def test_an_error_names_the_cell_that_the_user_wrote(monkeypatch):
    @dataclass(frozen=True)
    class Outside(CELLS["GRU"]):
        def update(self, state, x_gates, h_gates):
            return super().update(state, x_gates, tuple(outside * h for h in h_gates))

    outside = 1.0
    stack, params, xs, _ = problem(Outside())
    as_on_a_gpu(monkeypatch)

    def run(value):
        nonlocal outside
        outside = value
        return weighted(stack.apply(params, xs))

    with pytest.raises(TypeError, match="Outside: `update` should compute with its arguments"):
        jax.grad(run)(2.0)


# Where it can't be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "given"),
    [
        ({"residual": True}, {}),
        ({"skip_connections": True}, {}),
        ({"dropout": 0.5}, {"key": jax.random.key(1)}),
        ({"input_dropout": 0.5}, {"key": jax.random.key(1)}),
        ({"recurrent_dropout": 0.5}, {"key": jax.random.key(1)}),
        ({"truncate": 5}, {}),
        ({"remat": True}, {}),
        ({}, {"reset": jnp.arange(TIME)[:, None] % 5 == jnp.arange(BATCH)}),
    ],
    ids=lambda v: next(iter(v), ""),
)
def test_other_stacks_run_layer_by_layer(options, given, monkeypatch, x64):
    """And give what they gave."""
    stack, params, xs, _ = problem(CELLS["RNN"](), **options)
    (apart, _), (together, few) = both_forms(monkeypatch, lambda params, xs: stack.apply(params, xs, **given), params, xs)
    assert few >= LAYERS
    close(together, apart)


@pytest.mark.parametrize(("cell", "sizes"), [("LayerNormLSTM", HIDDEN), ("LSTM", (HIDDEN, HIDDEN, 4)), ("MGU", HIDDEN)])
def test_layers_that_are_not_alike_or_do_more_than_a_product_run_one_after_the_other(cell, sizes, monkeypatch):
    stack = Stack(CELLS[cell](), INPUT, sizes, LAYERS)
    as_on_a_gpu(monkeypatch)
    params, xs = jax.eval_shape(stack.init, jax.random.key(0)), jax.ShapeDtypeStruct((TIME, BATCH, INPUT), jnp.float32)
    assert len(loops(stack.apply, params, xs)) == LAYERS


@dataclass(frozen=True)
class _Spikes(GatedCell):
    gates: ClassVar = ("n",)

    def initial_state(self, params, x):
        return Hidden(super().initial_state(params, x).h.astype(jnp.int32))

    def update(self, state, x_gates, h_gates):
        return Hidden((x_gates[0] + h_gates[0] > 0).astype(jnp.int32))


def test_cells_whose_output_is_of_integers_run_layer_by_layer(monkeypatch):
    stack, params, xs, _ = problem(_Spikes())
    (apart, many), (together, few) = both_forms(monkeypatch, lambda params, xs: stack.apply(params, xs), params, xs)
    assert many == few == LAYERS
    equal(together, apart)


# Its program -------------------------------------------------------------------------------------------------------------


def shapes(stack, time, batch=BATCH):
    params = jax.eval_shape(stack.init, jax.random.key(0))
    return params, jax.ShapeDtypeStruct((time, batch, stack.input_size), jnp.float32)


def total(stack, params, xs):
    return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(stack.apply(params, xs)))


@pytest.mark.parametrize(("platform", "loop", "trips"), [("cpu", 3, 40), ("cuda", 1, 44), ("rocm", 1, 44), ("tpu", 3, 40)])
def test_one_program_has_one_loop_on_a_gpu_and_one_for_each_layer_elsewhere(platform, loop, trips, monkeypatch):
    """Each with one product, forward and backward; on a GPU of time, what the layers lag behind, and a rest of an iteration."""
    stack = Stack(CELLS["GRU"](), INPUT, HIDDEN, LAYERS)
    monkeypatch.setattr("support.PLATFORM", platform)
    found = loops(jax.grad(partial(total, stack), (0, 1)), *shapes(stack, 40))
    assert [eqn.params["length"] for eqn in found] == [trips] * 2 * loop
    assert [eqn.params["reverse"] for eqn in found] == [False] * loop + [True] * loop
    assert {sum(count(inner, "dot_general") for inner in inner_jaxprs(eqn)) for eqn in found} == {1}


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_it_stores_no_more_for_the_backward_pass(name, monkeypatch):
    """Of a step of a layer: what one layer by itself stores. And no weight gradient leaves a loop over steps."""
    monkeypatch.setattr("support.PLATFORM", "cuda")
    floats = {}
    for layers in (1, LAYERS):
        stack = Stack(CELLS[name](), INPUT, HIDDEN, layers)
        forward, backward = loops(jax.grad(partial(total, stack), (0, 1)), *shapes(stack, 40))
        floats[layers] = [v.aval for v in forward.outvars if v.aval.shape[:1] == (forward.params["length"],)]
        assert not any(v.aval.shape[-3:-2] == (HIDDEN,) for v in backward.outvars)
    assert len(floats[LAYERS]) == len(floats[1])
    assert {a.shape for a in floats[LAYERS]} == {(44, LAYERS, BATCH, HIDDEN)}


def test_where_the_cotangents_of_all_layers_would_be_large_there_is_one_loop_for_each(monkeypatch):
    stack = Stack(CELLS["LSTM"](), INPUT, 256, LAYERS)
    monkeypatch.setattr("support.PLATFORM", "cuda")
    fits = 2**30 // (LAYERS * 40 * 4 * 256 * 4)
    assert len(loops(stack.apply, *shapes(stack, 40, fits))) == 1
    assert len(loops(stack.apply, *shapes(stack, 40, fits + 1))) == LAYERS


def test_one_export_serves_all_platforms():
    """Lowered for each it has its loops; the second and the third layer share theirs."""
    stack = Stack(CELLS["LSTM"](), INPUT, HIDDEN, LAYERS)
    run = jax.jit(jax.value_and_grad(partial(total, stack)))
    params, xs = shapes(stack, 40)
    loops = lambda platform: export.export(run, platforms=[platform])(params, xs).mlir_module().count("stablehlo.while")
    assert (loops("cuda"), loops("tpu")) == (2, 4)
    exported = export.export(run, platforms=["cpu", "cuda", "tpu"])(params, xs)
    arrays = drawn_like(params), normal(*xs.shape)
    close(exported.call(*arrays), run(*arrays), 1e-5)


@pytest.mark.parametrize("options", [{"num_layers": 2}, {"bidirectional": True}])
def test_what_is_for_one_platform_alone_holds_no_form_for_another(options):
    """Where layers or directions share a loop on a GPU, neither that nor what runs elsewhere asks for a GPU again."""
    stack = Stack(CELLS["GRU"](), 4, 4, **options)
    xs = jax.random.normal(jax.random.key(0), (40, 2, 4))
    loss = lambda params, xs: jnp.sum(stack.apply(params, xs)[0] ** 2)
    traced = jax.make_jaxpr(jax.grad(loss))(stack.init(jax.random.key(1)), xs).jaxpr
    asked = [len(found) for found in _asked_of_gpus(traced, ())]
    assert asked and set(asked) == {1}


def _asked_of_gpus(jaxpr, around):
    """For each choice between GPUs and others, those that stand around it, and itself."""
    for eqn in jaxpr.eqns:
        here = around
        if any("cuda" in (names or ()) for names in eqn.params.get("branches_platforms") or ()):
            here = (*around, eqn)
            yield here
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _asked_of_gpus(inner, here)
