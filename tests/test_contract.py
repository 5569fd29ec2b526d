"""The contract that a custom cell may rely on: start states, fields that are no floats, parameters of any kind, further inputs of
each step and of the whole sequence, values from outside, and parameters that are its own."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from jaxtyping import Array
from support import close, drawn_like, equal, jit, normal, optimised, quickly, unannotated, weighted

import jaxrnn
from jaxrnn import Stack, unroll
from jaxrnn.cells import CELLS, Cell, DiagonalCell, GatedCell, GateParams, Hidden, LinearCell
from jaxrnn.cells.base import contract, split_gates
from jaxrnn.engine.strategies import BACKENDS, STRATEGIES

TIME, BATCH, INPUT, HIDDEN = 9, 4, 3, 5
both_directions = pytest.mark.parametrize("reverse", [False, True])
LENGTHS = jnp.array([9, 0, 4, 1])


def setting(cell, *, seed=0, batch=(BATCH,)):
    xs = normal(TIME, *batch, INPUT, seed=seed + 1)
    params = jax.eval_shape(lambda key: cell.init(key, INPUT, HIDDEN, dtype=xs.dtype), jax.random.key(seed))
    return drawn_like(params, seed), xs


# Start states ------------------------------------------------------------------------------------------------------------


def starting_at(start):
    """A gated and a plain cell whose states start at `start`."""

    @dataclass(frozen=True)
    class Started(GatedCell):
        gates: ClassVar = ("n",)

        def initial_state(self, params, x):
            return jax.tree.map(lambda zeros: zeros + start, super().initial_state(params, x))

        def update(self, state, x_gates, h_gates):
            return Hidden(0.5 * state.h + jnp.tanh(x_gates[0] + h_gates[0]))

    @dataclass(frozen=True)
    class Plain(Cell):
        gates: ClassVar = ("n",)

        def initial_state(self, params, x):
            return jax.tree.map(lambda zeros: zeros + start, super().initial_state(params, x))

        def recur(self, params, state, x_gates, h):
            (x_n,), (h_n,) = split_gates(x_gates), split_gates(contract(h, params.w_hh, params.b_hh))
            return Hidden(0.5 * state.h + jnp.tanh(x_n + h_n))

    return Started(), Plain()


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("kind", "start", "reverse"), [(0, 1.0, False), (0, -2.5, True), (1, -2.5, False), (1, 1.0, True)])
def test_a_start_other_than_zero_is_taken_as_it_is(kind, start, reverse, x64):
    """Pieces are the whole, a given state is where it starts, and a reset returns to the cell's own start."""
    cell = starting_at(start)[kind]
    params, xs = setting(cell)
    run = jit(partial(unroll, cell, reverse=reverse))
    whole = run(params, xs)
    first, second = (xs[4:], xs[:4]) if reverse else (xs[:4], xs[4:])
    state, a = run(params, first)
    state, b = run(params, second, state)
    close((state, jnp.concatenate([b, a] if reverse else [a, b])), whole)
    own = Hidden(jnp.full((BATCH, HIDDEN), start))
    close(run(params, xs, own), whole)
    close(unroll(cell, params, xs, lengths=jnp.zeros(BATCH, int))[0], own)
    reset = jnp.zeros((TIME, BATCH), bool).at[4].set(True)
    given = Hidden(normal(BATCH, HIDDEN, seed=7))
    _, ys = run(params, xs, given, reset=reset)
    close(ys[:4] if reverse else ys[4:], run(params, xs[:4] if reverse else xs[4:])[1])
    assert np.abs(ys[4 if reverse else 3] - whole[1][4 if reverse else 3]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_modules_start_learn_and_step_from_the_cells_own_start(flavour):
    cell = starting_at(1.0)[0]
    x = normal(BATCH, TIME, INPUT)
    if flavour == "nnx":
        plain = jaxrnn.Recurrent(cell, INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))
        learned = jaxrnn.Recurrent(cell, INPUT, HIDDEN, 2, learn_initial_state=True, rngs=nnx.Rngs(0))
        assert all((p == 1).all() for layer in learned.learned for p in jax.tree.leaves(layer[0]))
        step, call, call_learned = plain.step, plain, learned
    else:
        plain = jaxrnn.linen.Recurrent(cell, INPUT, HIDDEN, 2)
        learned = jaxrnn.linen.Recurrent(cell, INPUT, HIDDEN, 2, learn_initial_state=True)
        variables, v_learned = (m.init(jax.random.key(0), x) for m in (plain, learned))
        step = partial(plain.apply, variables, method="step")
        call, call_learned = partial(plain.apply, variables), partial(learned.apply, v_learned)
    output, h_n = call(x)
    close(call_learned(x), (output, h_n), 1e-6)
    state = None
    for t in range(TIME):
        y, state = step(x[:, t], state)
        close(y, output[:, t], 1e-5)
    close(state, h_n, 1e-5)


# Fields that are no floats -----------------------------------------------------------------------------------------------


class Counted(NamedTuple):
    h: Array
    n: Array
    key: Array


@dataclass(frozen=True)
class CountingCell(GatedCell):
    """Counts its steps, and draws noise from a key that it carries."""

    noise: float = 0.0

    gates: ClassVar = ("n",)
    State: ClassVar = Counted
    axes: ClassVar = GatedCell.axes | {"n": (), "key": ()}

    def initial_state(self, params, x):
        zeros = Cell.initial_state(self, params, x)
        keys = jax.random.split(jax.random.key(3), x.shape[:-1])
        return zeros._replace(n=jnp.full(x.shape[:-1], 2, jnp.int32), key=keys)

    def update(self, state, x_gates, h_gates):
        split = lambda key: jax.random.split(key)[0]
        draw = lambda key: jax.random.normal(key, state.h.shape[-1:], state.h.dtype)
        keys, drawn = state.key, 0.0
        if self.noise:
            flat = keys.reshape(-1)
            drawn = jax.vmap(draw)(flat).reshape(state.h.shape)
            keys = jax.vmap(split)(flat).reshape(keys.shape)
        h = jnp.tanh(x_gates[0] + h_gates[0] + self.noise * drawn) / (1 + 0.1 * state.n.astype(state.h.dtype))[..., None]
        return Counted(h, state.n + 1, keys)


@dataclass(frozen=True)
class PlainCountingCell(Cell):
    noise: float = 0.0

    gates: ClassVar = ("n",)
    State: ClassVar = Counted
    axes: ClassVar = CountingCell.axes
    initial_state = CountingCell.initial_state
    update = CountingCell.update
    recur = CountingCell.recur


def words(tree):
    """Keys as the numbers that they are."""
    typed = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if typed(a) else a, tree)


def floats(state):
    return state._replace(n=None, key=None)


@pytest.mark.slow
@pytest.mark.newest
@both_directions
def test_counters_and_keys_are_carried_masked_and_reset(reverse, x64):
    """Equal to the same cell without the engine's rule and to the reference, values and gradients; its own state is taken back."""
    noise = 0.3
    reset = jnp.asarray(np.random.default_rng(0).random((TIME, BATCH)) < 0.2)
    given = {"lengths": LENGTHS, "reset": reset, "reverse": reverse, "return_states": True}
    params, xs = setting(CountingCell())

    def compute(run, cell):
        def loss(params, xs):
            final, ys, states = run(cell, params, xs, **given)
            return weighted((ys, floats(final), floats(states))), (final, ys, states)

        gradient, result = jit(jax.grad(loss, (0, 1), has_aux=True))(params, xs)
        return gradient, words(result)

    got, want = compute(unroll, CountingCell(noise)), compute(reference.unroll, PlainCountingCell(noise))
    close(got, want, 1e-10)
    close(compute(unroll, PlainCountingCell(noise)), want, 1e-10)
    final = got[1][0]
    if not reverse:
        flagged = lambda b: max((t for t in range(int(LENGTHS[b])) if reset[t, b]), default=None)
        since = [int(LENGTHS[b]) if flagged(b) is None else int(LENGTHS[b]) - flagged(b) for b in range(BATCH)]
        assert final.n.tolist() == [2 + n for n in since]
    state, a = unroll(CountingCell(noise), params, xs[:4])
    whole = unroll(CountingCell(noise), params, xs)
    state, b = unroll(CountingCell(noise), params, xs[4:], state)
    close(words((state, jnp.concatenate([a, b]))), words(whole))


@pytest.mark.slow
@pytest.mark.newest
def test_zoneout_leaves_counters_and_keys_alone():
    stack = Stack(CountingCell(0.3), INPUT, HIDDEN, 2, zoneout=0.5)
    params = drawn_like(stack.init(jax.random.key(0)))
    xs = normal(TIME, BATCH, INPUT)
    free = Stack(CountingCell(0.3), INPUT, HIDDEN, 2)
    for key in (None, jax.random.key(1)):
        output, states = stack.apply(params, xs, key=key)
        without, same = free.apply(params, xs)
        assert np.abs(output - without).max() > 1e-2
        equal([words(s[0])._replace(h=None) for s in states], [words(s[0])._replace(h=None) for s in same])


@pytest.mark.slow
@pytest.mark.newest
def test_streaming_and_learned_starts_with_counters():
    module = jaxrnn.Recurrent(CountingCell(0.1), INPUT, HIDDEN, 2, learn_initial_state=True, rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, INPUT)
    output, last = module(x)
    state = None
    for t in range(TIME):
        y, state = module.step(x[:, t], state)
        close(y, output[:, t], 1e-5)
    assert (state[1] == 2 + TIME).all()
    assert (last[1] == 2 + TIME).all()


@pytest.mark.slow
@pytest.mark.newest
def test_truncation_and_remat_carry_counters():
    cell = CountingCell(0.2)
    params, xs = setting(cell)
    want = unroll(cell, params, xs)
    for options in ({"remat": True}, {"truncate": 4}, {"remat": True, "truncate": 4}):
        got = jax.jit(partial(unroll, cell, **options))(params, xs)
        close(words(got), words(want), 1e-6)
        gradient = jax.grad(lambda p, options=options: jnp.sum(unroll(cell, p, xs, **options)[1]))(params)
        assert all(np.isfinite(a).all() and np.abs(a).max() > 0 for a in jax.tree.leaves(gradient))


# Parameters of any kind --------------------------------------------------------------------------------------------------


class Mixed(NamedTuple):
    w_ih: Array
    w_hh: Array
    b_ih: Any
    b_hh: Any
    turn: Array
    order: Array


@dataclass(frozen=True)
class MixedCell(GatedCell):
    """Turns pairs of entries by complex parameters, and permutes them by integer ones."""

    gates: ClassVar = ("n",)
    axes: ClassVar = GatedCell.axes | {"turn": ("hidden",), "order": ("hidden",)}

    def init(self, key, input_size, hidden_size, *, bias=True, dtype=jnp.float32):
        params = Cell.init(self, key, input_size, hidden_size, bias=bias, dtype=dtype)
        angle = jnp.linspace(0.5, 2.0, hidden_size)
        wide = jnp.complex128 if jax.config.jax_enable_x64 else jnp.complex64
        return Mixed(*params, jnp.exp(1j * angle.astype(wide)), jnp.arange(hidden_size)[::-1])

    def update(self, state, x_gates, h_gates, turn, order):
        a = jnp.tanh(x_gates[0] + h_gates[0])
        turned = (turn * a.astype(turn.dtype)).imag.astype(a.dtype)
        return Hidden(turned[..., order])


@dataclass(frozen=True)
class PlainMixedCell(Cell):
    gates: ClassVar = ("n",)
    init = MixedCell.init
    update = MixedCell.update
    recur = MixedCell.recur


@pytest.mark.slow
@pytest.mark.newest
def test_complex_and_integer_parameters_keep_what_they_are(x64):
    cell = MixedCell()
    params = cell.init(jax.random.key(0), INPUT, HIDDEN)
    params, xs = jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, params), normal(TIME, BATCH, INPUT)
    close(unroll(cell, params, xs), jit(partial(reference.unroll, cell))(params, xs))

    def compute(run, cell):
        def loss(p, turn, xs):
            result = run(cell, params._replace(w_hh=p, turn=turn), xs, lengths=LENGTHS)
            return weighted(result), result

        return jit(jax.grad(loss, (0, 1, 2), has_aux=True))(params.w_hh, params.turn, xs)

    got, want = compute(unroll, cell), compute(reference.unroll, cell)
    assert np.abs(got[0][1].imag).max() > 1e-3
    close(got, want, 1e-10)
    close(compute(unroll, PlainMixedCell()), want, 1e-10)


# Further inputs ----------------------------------------------------------------------------------------------------------


class VariationalParams(NamedTuple):
    w_ih: Array
    w_hh: Array
    b_ih: Any
    b_hh: Any
    w_z: Array


@dataclass(frozen=True)
class VariationalCell(Cell):
    """A variational RNN (Chung et al., 2015, arXiv:1506.02216): draws its latent at every step, with that step's key."""

    gates: ClassVar = ("mean", "scale", "n")
    per_step: ClassVar = ("key",)
    axes: ClassVar = Cell.axes | {"w_z": (None, "hidden")}

    def init(self, key, input_size, hidden_size, *, bias=True, dtype=jnp.float32):
        params = super().init(key, input_size, hidden_size, bias=bias, dtype=dtype)
        return VariationalParams(*params, jnp.eye(hidden_size, dtype=dtype))

    def recur(self, params, state, x_gates, h, *, key):
        x_mean, x_scale, x_n = split_gates(x_gates)
        h_mean, h_scale, h_n = split_gates(contract(h, params.w_hh, params.b_hh))
        draw = jax.random.normal(key, x_mean.shape, x_mean.dtype)
        z = x_mean + h_mean + jax.nn.softplus(x_scale + h_scale) * draw
        return Hidden(jnp.tanh(x_n + h_n + z @ params.w_z))


@dataclass(frozen=True)
class GatedVariationalCell(GatedCell):
    gates: ClassVar = ("mean", "scale", "n")
    per_step: ClassVar = ("key",)

    def update(self, state, x_gates, h_gates, *, key):
        (x_mean, x_scale, x_n), (h_mean, h_scale, h_n) = x_gates, h_gates
        draw = jax.random.normal(key, x_mean.shape, x_mean.dtype)
        z = x_mean + h_mean + jax.nn.softplus(x_scale + h_scale) * draw
        return Hidden(jnp.tanh(x_n + h_n + z))


@dataclass(frozen=True)
class AttendingCell(GatedCell):
    """Attends to a memory (*batch, slots, hidden) with its state, and adds a side input of each step."""

    gates: ClassVar = ("z", "n")
    per_step: ClassVar = ("side",)
    context: ClassVar = ("memory",)

    def update(self, state, x_gates, h_gates, *, side, memory):
        (x_z, x_n), (h_z, h_n) = x_gates, h_gates
        scores = jnp.einsum("...h,...sh->...s", state.h, memory.astype(state.h.dtype))
        read = jnp.einsum("...s,...sh->...h", jax.nn.softmax(scores), memory.astype(state.h.dtype))
        z = jax.nn.sigmoid(x_z + h_z)
        return Hidden(z * state.h + (1 - z) * jnp.tanh(x_n + h_n + read + side))


@dataclass(frozen=True)
class PlainAttendingCell(Cell):
    gates: ClassVar = ("z", "n")
    per_step: ClassVar = ("side",)
    context: ClassVar = ("memory",)
    update = AttendingCell.update
    recur = AttendingCell.recur


def memory_and_side():
    return {"memory": normal(BATCH, 6, HIDDEN, seed=4)}, {"side": normal(TIME, BATCH, HIDDEN, seed=5)}


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("reverse", "remat"), [(False, False), (True, False), (False, True)])
def test_a_memory_and_a_side_input_reach_every_step_with_all_gradients(reverse, remat, x64):
    context, per_step = memory_and_side()
    params, xs = setting(AttendingCell())
    padded = (np.arange(TIME)[:, None] >= np.asarray(LENGTHS))[..., None]

    def gradients(run, cell):
        def loss(params, xs, per_step, context):
            result = run(cell, params, xs, lengths=LENGTHS, per_step=per_step, context=context, reverse=reverse, remat=remat)
            return weighted(result), result

        return jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))

    compute = gradients(unroll, AttendingCell())
    got, want = compute(params, xs, per_step, context), gradients(reference.unroll, AttendingCell())(params, xs, per_step, context)
    assert all(np.abs(a).max() > 1e-3 for a in jax.tree.leaves(got))
    close(got, want, 1e-10)
    close(gradients(unroll, PlainAttendingCell())(params, xs, per_step, context), want, 1e-10)
    dirty = {"side": jnp.where(padded, jnp.nan, per_step["side"])}
    equal(compute(params, xs, dirty, context), got)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("cell", [VariationalCell(), GatedVariationalCell()], ids=["plain", "gated"])
@both_directions
def test_a_key_per_step_draws_anew_at_each(cell, reverse, x64):
    params, xs = setting(cell)
    keys = jax.random.split(jax.random.key(9), TIME)
    traced = lambda params, keys: unroll(cell, params, xs, lengths=LENGTHS, per_step={"key": keys}, reverse=reverse)
    run, given = jit(traced), {"lengths": LENGTHS, "per_step": {"key": keys}, "reverse": reverse}
    got = run(params, keys)
    close(got, jit(lambda params: reference.unroll(cell, params, xs, **given))(params))
    same = jnp.broadcast_to(keys[:1], keys.shape)
    assert np.abs(run(params, same)[1][2] - got[1][2]).max() > 1e-2
    gradient = jit(jax.grad(lambda params: weighted(traced(params, keys))))(params)
    step, along = 1e-6, drawn_like(params, 8)
    shifted = lambda sign: weighted(run(jax.tree.map(lambda a, b: a + sign * step * b, params, along), keys))
    directional = sum(jnp.sum(a * b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(along), strict=True))
    np.testing.assert_allclose(directional, (shifted(1) - shifted(-1)) / (2 * step), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("flavour", ["nnx", "linen"])
def test_modules_pass_further_inputs_on_and_stream(flavour):
    """As `x` lies, to every layer; step by step the same."""
    cell = AttendingCell()
    x, context = normal(BATCH, TIME, INPUT), memory_and_side()[0]
    side = jnp.swapaxes(memory_and_side()[1]["side"], 0, 1)
    if flavour == "nnx":
        module = jaxrnn.Recurrent(cell, INPUT, HIDDEN, 2, rngs=nnx.Rngs(0))
        call, step = module, module.step
    else:
        module = jaxrnn.linen.Recurrent(cell, INPUT, HIDDEN, 2)
        variables = module.init(jax.random.key(0), x, per_step={"side": side}, context=context)
        call, step = partial(module.apply, variables), partial(module.apply, variables, method="step")
    output, h_n = call(x, per_step={"side": side}, context=context)
    state = None
    for t in range(TIME):
        y, state = step(x[:, t], state, per_step={"side": side[:, t]}, context=context)
        close(y, output[:, t], 1e-5)
    close(state, h_n, 1e-5)
    changed = call(x, per_step={"side": side.at[:, 3].add(1.0)}, context=context)[0]
    assert np.abs(changed[:, :3] - output[:, :3]).max() == 0
    assert (np.abs(changed[:, 3:] - output[:, 3:]).max((0, 2)) > 1e-3).all()


@pytest.mark.slow
@pytest.mark.newest
def test_every_layer_and_direction_draws_with_keys_of_its_own():
    """Layers of zero weights but for the latent: outputs are what was drawn."""
    cell = GatedVariationalCell()
    module = jaxrnn.Recurrent(cell, 5, 5, 2, bidirectional=True, merge="none", rngs=nnx.Rngs(0))
    nnx.update(module, jax.tree.map(jnp.zeros_like, nnx.state(module)))
    keys = jax.random.split(jax.random.key(1), TIME)
    _, _, states = module(jnp.zeros((BATCH, TIME, 5)), per_step={"key": keys}, return_states=True)
    drawn = [states[0][0].h[:, 1:], states[0][1].h[:, :-1], states[1][0].h[:, 1:], states[1][1].h[:, :-1]]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert abs(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1]) < 0.2


def test_further_inputs_are_asked_for_by_name():
    cell = AttendingCell()
    params, xs = setting(cell)
    context, per_step = memory_and_side()
    texts = {
        "unroll: `per_step` should hold side, which a AttendingCell reads, got none.": {"context": context},
        "unroll: `context` should hold memory, which a AttendingCell reads, got memry.": {
            "per_step": per_step,
            "context": {"memry": context["memory"]},
        },
        "unroll: `per_step['side']` should begin with the 9 steps of time, got shape (4, 9, 5).": {
            "per_step": {"side": jnp.swapaxes(per_step["side"], 0, 1)},
            "context": context,
        },
    }
    for text, given in texts.items():
        with pytest.raises(ValueError) as caught:
            unroll(cell, params, xs, **given)
        assert str(caught.value) == text
    module = jaxrnn.Recurrent(cell, INPUT, HIDDEN, rngs=nnx.Rngs(0))  # batch first, as its arrays
    text = rf"Recurrent: `per_step\['side'\]` should lie as `x` does, with 9 steps on axis 1, got shape \(9, {BATCH}, {HIDDEN}\)"
    with pytest.raises(ValueError, match=text):
        module(jnp.swapaxes(xs, 0, 1), per_step=per_step, context=context)
    gru = jaxrnn.GRUCell()
    with pytest.raises(ValueError, match="`context` should be None: a GRUCell reads none, got memory"):
        unroll(gru, gru.init(jax.random.key(0), INPUT, HIDDEN), xs, context=context)
    with pytest.raises(TypeError, match="further inputs should be side, memory, got none"):
        cell.step(params, cell.initial_state(params, xs[0]), xs[0])


# Values from outside -----------------------------------------------------------------------------------------------------

SCALE = 1.0


@dataclass(frozen=True)
class ScaledCell(GatedCell):
    gates: ClassVar = ("n",)

    def update(self, state, x_gates, h_gates):
        return Hidden(scaled(jnp.tanh(x_gates[0] + h_gates[0])))


def scaled(a):
    return SCALE * a


def test_a_changed_global_is_seen_by_a_second_call(monkeypatch):
    cell = ScaledCell()
    params, xs = setting(cell)
    for value in (1.0, 2.0, 1.0):
        monkeypatch.setitem(globals(), "SCALE", value)
        _, ys = unroll(cell, params, xs)
        close(ys[0], cell.step(params, cell.initial_state(params, xs[0]), xs[0])[1], 1e-6)


def multiplied_by(factor):
    namespace = {}
    exec(f"def act(x): return {factor} * x", namespace)
    return namespace["act"]


ACT, TABLE = multiplied_by(1.0), {"a": 1.0}


@dataclass(frozen=True)
class OutsideCell(GatedCell):
    """Reads a function, a table and an attribute of its class."""

    gates: ClassVar = ("n",)
    factor: ClassVar = 1.0

    def update(self, state, x_gates, h_gates):
        return Hidden(self.factor * TABLE["a"] * SCALE * ACT(x_gates[0] + h_gates[0]))


@pytest.mark.parametrize(
    ("what", "call"),
    [*((what, "unroll") for what in ("global", "function", "table", "attribute")), ("function", "Stack.step"),
     ("global", "module.step"), ("table", "module")],
)  # fmt: skip
def test_whatever_changes_outside_of_a_cell_is_seen_by_the_next_call(what, call, monkeypatch):
    cell = OutsideCell()
    params, xs = setting(cell)
    module, stack = jaxrnn.Recurrent(cell, INPUT, HIDDEN, rngs=nnx.Rngs(0)), Stack(cell, INPUT, HIDDEN)

    def change(value):
        if what == "global":
            monkeypatch.setitem(globals(), "SCALE", value)
        elif what == "function":
            monkeypatch.setitem(globals(), "ACT", multiplied_by(value))
        elif what == "table":
            monkeypatch.setitem(TABLE, "a", value)
        else:
            monkeypatch.setattr(OutsideCell, "factor", value)

    def run():
        calls = {
            "unroll": lambda: unroll(cell, params, xs[:1])[1],
            "Stack.step": lambda: stack.step(((params,),), xs[0])[0],
            "module.step": lambda: module.step(xs[0])[0],
            "module": lambda: module(jnp.swapaxes(xs[:1], 0, 1))[0],
        }
        return calls[call]()

    change(1.0)
    one = run()
    for value in (2.0, 3.0, 1.0):  # the second may lie in memory where the first lay
        change(value)
        close(run(), value * one, 1e-5)


INNER, OF_FIELD = 1.0, 1.0


def read_by_a_field(a):
    return OF_FIELD * a


HELD = {"arrays": [np.zeros(2000)]}


@dataclass(frozen=True)
class HoldingCell(GatedCell):
    gates: ClassVar = ("n",)

    def update(self, state, x_gates, h_gates):
        return Hidden(x_gates[0] + h_gates[0] + float(HELD["arrays"][0][1000]))


def test_an_array_in_a_container_is_another_where_its_text_is_the_same(monkeypatch):
    """NumPy writes eight digits, and of long arrays the ends alone."""
    cell = HoldingCell()
    params, xs = setting(cell)
    one = unroll(cell, params, xs[:1])[1]
    monkeypatch.setitem(HELD, "arrays", [np.full(2000, 0.0)])
    HELD["arrays"][0][1000] = 3.0
    close(unroll(cell, params, xs[:1])[1], one + 3.0, 1e-5)
    HELD["arrays"].append(HELD)  # a container within itself
    close(unroll(cell, params, xs[:1])[1], one + 3.0, 1e-5)


@pytest.mark.parametrize("what", ["INNER", "OF_FIELD", "enclosed"])
def test_what_inner_functions_functions_in_fields_and_enclosing_ones_hold_is_seen_too(what, monkeypatch):
    enclosed = 1.0

    @dataclass(frozen=True)
    class Deep(GatedCell):
        act: Any = None

        gates: ClassVar = ("n",)

        def update(self, state, x_gates, h_gates):
            inner = lambda a: INNER * a
            return Hidden(self.act(enclosed * inner(x_gates[0] + h_gates[0])))

    cell = Deep(read_by_a_field)
    params, xs = setting(cell)
    one = unroll(cell, params, xs[:1])[1]
    for value in (2.0, 3.0, 1.0):
        if what == "enclosed":
            enclosed = value
        else:
            monkeypatch.setitem(globals(), what, value)
        close(unroll(cell, params, xs[:1])[1], value * one, 1e-5)


# Cells that the library's rule does not fit ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
def test_a_gated_cell_with_complex_weights_runs_by_jaxs_own_derivative(x64):
    @dataclass(frozen=True)
    class Complex(GatedCell):
        gates: ClassVar = ("n",)

        def initial_state(self, params, x):
            return jax.tree.map(lambda a: a.astype(jnp.complex128), super().initial_state(params, x))

        def update(self, state, x_gates, h_gates):
            return Hidden(jnp.tanh(x_gates[0] + h_gates[0]))

    cell = Complex()
    params, xs = setting(cell)
    params = jax.tree.map(lambda a: jax.lax.complex(a, 0.3 * a[::-1]), params)
    assert cell.step(params, cell.initial_state(params, xs[0]), xs[0])[1].dtype == jnp.complex128
    final, ys = unroll(cell, params, xs)
    close((final, ys), jit(partial(reference.unroll, cell))(params, xs))
    assert np.abs(ys.imag).max() > 1e-2
    with pytest.raises(ValueError, match=r"unroll: `strategy` should be one that can run, got 'scan_gated': .*should be real"):
        unroll(cell, params, xs, strategy="scan_gated")


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("kind", [GatedCell, DiagonalCell])
def test_a_cell_with_a_computed_with_of_its_own_is_run_with_it(kind):
    """By `step`, by `unroll`, and in gradients: weights that are normalised where they are used."""

    @dataclass(frozen=True)
    class Normalised(kind):
        gates: ClassVar = ("n",)

        def computed_with(self, params, dtype):
            params = super().computed_with(params, dtype)
            return params._replace(w_hh=params.w_hh / jnp.linalg.norm(params.w_hh))

        def update(self, state, x_gates, h_gates):
            return Hidden(jnp.tanh(x_gates[0] + h_gates[0]))

        if kind is DiagonalCell:

            def recur(self, params, state, x_gates, h):
                return Hidden(jnp.tanh(x_gates[..., 0, :] + params.w_hh[0] * h))

    cell = Normalised()
    params, xs = setting(cell)
    given = params._replace(w_hh=params.w_hh / jnp.linalg.norm(params.w_hh))
    scaled_up = params._replace(w_hh=7.0 * params.w_hh)
    state = cell.initial_state(params, xs[0])
    for x in xs:
        state, _ = cell.step(scaled_up, state, x)
    final, ys = unroll(cell, scaled_up, xs)
    close(state.h, final.h, 1e-5)
    close(ys, unroll(cell, given, xs)[1], 1e-5)
    along_w = jax.grad(lambda p: weighted(unroll(cell, p, xs)))(params).w_hh
    assert abs(float(jnp.sum(along_w * params.w_hh))) < 1e-4 < float(jnp.abs(along_w).max())


@pytest.mark.parametrize(
    ("of_params", "of_x"), [(jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float64), (jnp.float32, jnp.bfloat16)]
)
@pytest.mark.parametrize("name", ["LSTM", "MGU", "MinGRU", "ParaGRU"])
def test_a_step_computes_in_the_dtype_that_a_sequence_is_computed_in(name, of_params, of_x, x64):
    cell = CELLS[name]()
    params, xs = setting(cell)
    params, xs = jax.tree.map(lambda a: a.astype(of_params), params), xs[:3].astype(of_x)
    final, ys = unroll(cell, params, xs)
    state, outputs = cell.initial_state(params, xs[0]), []
    for x in xs:
        state, y = cell.step(params, state, x)
        outputs.append(y)
    assert [a.dtype for a in (*state, outputs[0])] == [a.dtype for a in (*final, ys)]
    close((state, jnp.stack(outputs)), (final, ys), 1e-14 if of_x == jnp.float64 else 2e-7)


def test_a_gated_cell_with_a_recur_of_its_own_is_run_by_it():
    @dataclass(frozen=True)
    class Half(jaxrnn.RNNCell):
        def recur(self, params, state, x_gates, h):
            return Hidden(0.5 * super().recur(params, state, x_gates, h).h)

    cell = Half()
    params, xs = setting(cell)
    got = unroll(cell, params, xs)
    close(got, jit(partial(reference.unroll, cell))(params, xs), 1e-6)
    assert np.abs(got[1]).max() < 0.5 < np.abs(unroll(jaxrnn.RNNCell(), params, xs)[1]).max()


def test_what_all_examples_share_at_a_step_is_not_masked():
    """Also where its width is the number of examples; what has other axes is refused, and so are raw keys."""
    cell = AttendingCell()
    context, per_step = memory_and_side()
    params, xs = setting(cell)
    shared = per_step["side"][:, :1]
    run = lambda side, lengths: unroll(cell, params, xs, lengths=lengths, per_step={"side": side}, context=context)
    close(run(shared, LENGTHS)[1][:, 0], run(jnp.broadcast_to(shared, (TIME, BATCH, HIDDEN)), LENGTHS)[1][:, 0], 1e-6)
    with pytest.raises(ValueError, match=r"`per_step\['side'\]` should have the axes \(9, 4\) in front, or \(9, 1\)"):
        run(shared[:, 0], LENGTHS)
    noisy = GatedVariationalCell()
    with pytest.raises(TypeError, match=r"should be no uint32 array.*\nRaw keys draw alike in every layer"):
        unroll(noisy, setting(noisy)[0], xs, per_step={"key": jax.random.split(jax.random.PRNGKey(0), TIME)})


@pytest.mark.slow
@pytest.mark.newest
def test_a_start_is_learned_for_fields_that_mean_something_by_themselves():
    module = jaxrnn.Recurrent(jaxrnn.SLSTMCell(), INPUT, HIDDEN, learn_initial_state=True, rngs=nnx.Rngs(0))
    learned = module.learned[0][0]
    assert learned.h is not None
    assert (learned.c, learned.n, learned.m) == (None, None, None)
    gradient = jax.grad(lambda module: jnp.sum(module(normal(BATCH, TIME, INPUT))[0]))(module)
    assert np.abs(gradient.learned[0][0].h.get_value()).max() > 1e-4


@pytest.mark.slow
@pytest.mark.newest
def test_nothing_kept_from_32_bits_is_used_in_64_and_initialisers_may_compute_on_the_host():
    @dataclass(frozen=True)
    class Clocked(CountingCell):
        def initial_state(self, params, x):
            return super().initial_state(params, x)._replace(n=jnp.zeros(x.shape[:-1], int))

        def update(self, state, x_gates, h_gates):
            return state._replace(h=jnp.tanh(x_gates[0] + h_gates[0]))

    host = lambda key, shape, dtype: jnp.asarray(
        np.random.default_rng(int(np.asarray(jax.random.key_data(key))[0])).normal(size=shape)
    )
    for cell in (Clocked(), jaxrnn.RNNCell(w_hh_init=host)):
        for wide in (False, True):
            with jax.enable_x64(wide):
                params, xs = cell.init(jax.random.key(0), INPUT, HIDDEN), normal(TIME, BATCH, INPUT, dtype=jnp.float32)
                state, _ = unroll(cell, params, xs)
                unroll(cell, params, xs, state)


# Strategies --------------------------------------------------------------------------------------------------------------

ALL = ("mask", "reset", "reverse", "return_states", "remat", "h_mask", "zoneout", "initial")
OPTIONS = {
    "nothing": {},
    "everything, backward": dict.fromkeys(ALL, True),
    "reverse": {"reverse": True},
    "h_mask": {"h_mask": True},
    "zoneout": {"zoneout": 0.3},
    "reset": {"reset": True},
    "lengths, reset, reverse": {"lengths": LENGTHS, "reset": True, "reverse": True},
    "every state, zoneout": {"return_states": True, "zoneout": 0.3},
    "mask, start, truncation, h_mask": {"mask": True, "truncate": 4, "h_mask": True, "initial": True},
    "reset, truncation, remat, backward": {"reset": True, "truncate": 4, "remat": True, "reverse": True},
}
FIRST = list(OPTIONS)[:2]
"""For every cell. The others, each with one: where every step is valid, the rule takes outputs for states, but not where a reset or
a mask of `h` comes between."""
GATED = [name for name, cell in CELLS.items() if issubclass(cell, GatedCell)]
OTHERS = dict(zip(list(OPTIONS)[2:], ("GRU", "LSTM", "GRU", "LSTM", "GRU", "SLSTM", "LSTM", "GRU"), strict=True))
LINEAR = [name for name, cell in CELLS.items() if issubclass(cell, LinearCell)]
DIAGONAL = [name for name, cell in CELLS.items() if issubclass(cell, DiagonalCell)]
RUN_BY = {
    "scan_gated": GATED, "associative": LINEAR, "scan_linear": LINEAR, "newton": ("IndRNN", "ParaLSTM"),
    "scan_diagonal": DIAGONAL, "scan_plain": ("LSTM", "SLSTM", "ChungGRU", "LRU"),
}  # fmt: skip
"""The cells that each strategy runs here; kernels of a GPU, which know no float64, have tests of their own."""


def given_for(cell, like, options):
    """Arrays for the options that are True, and for the state that zoneout is."""
    rng, start = np.random.default_rng(2), drawn_like(like, 5)
    free = cell.free_fields or like._fields
    drawn = lambda field: jnp.asarray(rng.random((TIME, *getattr(like, field).shape)) < 0.3)
    rate = lambda field: 0.3 if options["zoneout"] is not True or field == "c" else drawn(field)
    make = {
        "reset": lambda: jnp.asarray(rng.random((TIME, BATCH)) < 0.3),
        "mask": lambda: jnp.asarray(rng.random((TIME, BATCH)) < 0.6),
        "h_mask": lambda: jnp.asarray(2.0 * (rng.random((BATCH, HIDDEN)) < 0.5)),
        "initial": lambda: jax.tree.map(lambda a: a[0], start),
        "zoneout": lambda: type(like)(*(rate(field) if field in free else None for field in like._fields)),
    }
    options = {name: value for name, value in options.items() if name != "h_mask" or cell.recurrent_product}
    return start, {name: make[name]() if name in make else value for name, value in options.items()}


RULED = [*GATED, *LINEAR, *DIAGONAL]  # cells that have a derivative rule
SINGLE = [(name, row) for row, name in OTHERS.items()]
CASES = [(name, row) for name in [*RULED, "ChungGRU"] for row in FIRST] + SINGLE
FULLY = ("LSTM", "LRU", "ParaLSTM")  # every strategy runs one of them; with every option, compiled as users compile
QUICK = [(name, "everything, backward") for name in FULLY] + [(name, "nothing") for name in RULED] + SINGLE


def with_marks(case):
    """A few for the edit loop; with the newest jax, those of each rule and each option."""
    marks = [] if case in QUICK[-2:] else [pytest.mark.slow, *([pytest.mark.newest] if case in QUICK else [])]
    return pytest.param(*case, marks=marks)


@pytest.mark.parametrize(("name", "options"), [with_marks(case) for case in CASES])
def test_every_strategy_gives_the_values_and_gradients_of_the_reference(name, options, x64):
    """The conformance run: strategies x cells x options; whatever refuses says so."""
    cell = CELLS[name]()
    params, xs = setting(cell)
    start, given = given_for(cell, jax.eval_shape(lambda xs: cell.initial_state(params, xs[0]), xs), OPTIONS[options])
    moving = {"initial": given.pop("initial")} if "initial" in given else {}

    def compute(run, compiler_options=quickly):
        def loss(params, xs, state, moving):
            result = run(cell, params, xs, state, **moving, **given)
            return weighted(result), result

        gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True), compiler_options=compiler_options)
        return gradient(params, xs, start, moving)

    want = compute(reference.unroll)
    compiled = optimised if name in FULLY and options == "everything, backward" else quickly
    assert {*RUN_BY, *filter(None, BACKENDS.values())} == {*STRATEGIES}
    for strategy, cells in RUN_BY.items():
        if name in cells:
            close(compute(partial(unroll, strategy=strategy), compiled), want, 1e-10)


def test_a_strategy_that_does_not_run_a_cell_says_why():
    cell = jaxrnn.MGUCell()
    params, xs = setting(cell)
    text = "unroll: `strategy` should be one that can run, got 'scan_gated': a MGUCell is not a GatedCell."
    with pytest.raises(ValueError) as caught:
        unroll(cell, params, xs, strategy="scan_gated")
    assert text in str(caught.value)
    with pytest.raises(ValueError, match=r"`strategy` should be one of .*'scan_gated', .*'scan_plain', got 'fast'"):
        unroll(cell, params, xs, strategy="fast")


# Parameters of the wrong cell --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", CELLS)
def test_parameters_of_another_cell_or_shape_are_refused_by_name(name):
    """Every array of every cell, with an axis one longer, one less, or not there; and every other cell's."""
    make = lambda name: CELLS[name](**({"proj_size": 2} if name == "ProjectedLSTM" else {}))
    cell = make(name)
    params = cell.init(jax.random.key(0), INPUT, HIDDEN)
    xs = jnp.ones((TIME, BATCH, *(6, 6)[: cell.event_ndim - 1], INPUT))
    call = lambda params: jax.eval_shape(partial(unroll, cell), params, xs)
    call(params)
    leaves, structure = jax.tree.flatten(params)
    for k, leaf in enumerate(leaves[1:], 1):
        for axis in range(leaf.ndim):
            longer = jnp.concatenate([leaf, jax.lax.index_in_dim(leaf, 0, axis)], axis)
            says = r"unroll: `params\.\w+.*` should have shape .*\nAre they"
            if name == "RGLRU" and leaf is params.w_x and axis == 0:  # which says what the input size is
                says = r"unroll: `xs` should end in input_size=4"
            with pytest.raises(ValueError, match=says):
                call(jax.tree.unflatten(structure, [*leaves[:k], longer, *leaves[k + 1 :]]))
        with pytest.raises(ValueError, match="should have shape"):
            call(jax.tree.unflatten(structure, [*leaves[:k], leaf[None], *leaves[k + 1 :]]))
    for field in params._fields[4:]:
        if getattr(params, field) is not None and field != "w_x":  # which there is not where sizes are equal
            with pytest.raises(ValueError, match=rf"`params\.{field}.*` should have shape .*got none"):
                call(params._replace(**{field: None}))
    for other in CELLS:
        theirs = make(other).init(jax.random.key(0), INPUT, HIDDEN)
        shapes = lambda p: [jnp.shape(a) for a in jax.tree.leaves(p._replace(b_ih=None, b_hh=None))]
        if shapes(theirs) != shapes(params):  # else they differ in biases alone, which may be missing
            with pytest.raises(ValueError, match=r"unroll: `params"):
                call(theirs)


def test_parameters_that_are_no_arrays_are_named():
    cell = jaxrnn.GRUCell()
    params, xs = setting(cell)
    for wrong, text in (
        (nnx.Param(params.w_hh), r"`params\.w_hh` should be an array, got Param\. Pass its value, `\.get_value\(\)`\."),
        ([[0.0]], r"`params\.w_hh` should be an array, got list"),
    ):
        with pytest.raises(TypeError, match=text):
            unroll(cell, params._replace(w_hh=wrong), xs)
    with pytest.raises(TypeError, match=r"`params` should come from `cell\.init`, got dict"):
        unroll(cell, params._asdict(), xs)


def test_tensors_and_packed_sequences_of_torch_are_named():
    torch = pytest.importorskip("torch")
    cell = jaxrnn.GRUCell()
    params, xs = setting(cell)
    with pytest.raises(
        TypeError, match=r"`params\.w_hh` should be an array, got Tensor\. Write params\.w_hh\.detach\(\)\.numpy\(\)\."
    ):
        unroll(cell, params._replace(w_hh=torch.zeros(5, 3, 5)), xs)
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3, INPUT), torch.ones(2, INPUT)])
    with (
        unannotated(),
        pytest.raises(TypeError, match=r"`x` should be an array, got PackedSequence\. Unpack it: .*pad_packed_sequence"),
    ):
        jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(0))(packed)


def test_a_cell_names_the_axes_of_its_own_parameters():
    @dataclass(frozen=True)
    class Unnamed(VariationalCell):
        axes: ClassVar = Cell.axes

    with pytest.raises(TypeError, match=r"Unnamed: `axes` should name the axes of `w_z`.*\nWrite axes: ClassVar = Cell\.axes \| "):
        jaxrnn.Recurrent(Unnamed(), INPUT, HIDDEN, rngs=nnx.Rngs(0))
    module = jaxrnn.Recurrent(VariationalCell(), INPUT, HIDDEN, rngs=nnx.Rngs(0))
    assert module.stack.axis_names(module.params)[0][0].w_z == (None, "hidden")


def test_more_names_than_an_array_has_axes_are_refused():
    @dataclass(frozen=True)
    class Eager(VariationalCell):
        axes: ClassVar = VariationalCell.axes | {"w_z": (None, "hidden", "gates")}

    text = "axis_names: `axes` should name at most the 2 axes of an array of shape (5, 5), got (None, 'hidden', 'gates')."
    with pytest.raises(ValueError) as caught:
        jaxrnn.Recurrent(Eager(), INPUT, HIDDEN, rngs=nnx.Rngs(0))
    assert str(caught.value) == text


def test_fields_without_batch_axes_are_refused_where_a_mask_would_act_on_them():
    @dataclass(frozen=True)
    class Clock(CountingCell):
        def initial_state(self, params, x):
            return super().initial_state(params, x)._replace(n=jnp.int32(2))

    cell = Clock()
    params, xs = setting(cell)
    with pytest.raises(
        ValueError, match=r"`n` of the cell's initial state should begin with the batch axes \(4,\).*got shape \(\)"
    ):
        unroll(cell, params, xs, lengths=LENGTHS)


def test_gate_params_are_enough_for_any_gated_cell():
    """What the README says of a cell of one's own: plain `GateParams`, whichever way they were made."""
    cell = ScaledCell()
    params = GateParams(*(normal(*shape) for shape in ((INPUT, 1, HIDDEN), (HIDDEN, 1, HIDDEN), (1, HIDDEN), (1, HIDDEN))))
    assert np.isfinite(unroll(cell, params, normal(TIME, BATCH, INPUT))[1]).all()


def cell_of(gates, *, gated, method=None):
    """A cell with the equations of an RNN, which reads as many gates as it names unless `method` reads others."""

    @dataclass(frozen=True)
    class Gated(GatedCell):
        def update(self, state, x_gates, h_gates):
            return Hidden(method(x_gates, h_gates))

    @dataclass(frozen=True)
    class Plain(Cell):
        def recur(self, params, state, x_gates, h):
            return Hidden(method(split_gates(x_gates), split_gates(contract(h, params.w_hh, params.b_hh))))

    @dataclass(frozen=True)
    class Linear(LinearCell):
        def coefficients(self, params, x_gates):
            return 0.5, method(x_gates, x_gates)

    @dataclass(frozen=True)
    class Diagonal(DiagonalCell):
        def recur(self, params, state, x_gates, h):
            return Hidden(method(split_gates(x_gates), split_gates(x_gates)) + h)

    kind = {True: Gated, False: Plain, "linear": Linear, "diagonal": Diagonal}[gated]
    kind.gates = gates
    return kind()


def three(x_gates, h_gates):
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates, h_gates
    return jnp.tanh(x_r + h_r + x_z + h_z + x_n + h_n)


def the_fourth(x_gates, h_gates):
    return jnp.tanh(x_gates[3] + h_gates[3])


@pytest.mark.parametrize("gated", [True, False, "linear", "diagonal"])
@pytest.mark.parametrize(
    ("gates", "method", "reason"),
    [
        (("r", "z"), three, "not enough values to unpack (expected 3, got 2)"),
        (("r", "z", "n", "o"), three, "too many values to unpack (expected 3"),
        (("r", "z"), the_fourth, "tuple index out of range"),
    ],
)
def test_equations_that_read_another_number_of_gates_than_the_cell_names_say_so(gated, gates, method, reason):
    """Through every door, whichever strategy runs the cell."""
    cell = cell_of(gates, gated=gated, method=method)
    params, xs = setting(cell)
    name = type(cell).__name__
    rule = {"Gated": "update", "Linear": "coefficients"}.get(name, "recur")
    count = f"one array for each of the {len(gates)} `gates` ({', '.join(gates)}), from x as from h"
    text = f"{name}: `{rule}` should read {count}, got an error where it reads them: {reason}"
    stack = Stack(cell, INPUT, HIDDEN)
    for call in (
        lambda: unroll(cell, params, xs),
        lambda: unroll(cell, params, xs, strategy="scan_plain"),
        lambda: cell.step(params, cell.initial_state(params, xs[0]), xs[0]),
        lambda: stack.apply(((params,),), xs),
        lambda: stack.step(((params,),), xs[0]),
        lambda: jaxrnn.Recurrent(cell, INPUT, HIDDEN, rngs=nnx.Rngs(0))(jnp.swapaxes(xs, 0, 1)),
    ):
        with pytest.raises(ValueError) as caught:
            call()
        assert str(caught.value).startswith(text)
        assert caught.value.__cause__.__traceback__ is not None  # the line of the cell is there to be read


def test_a_gate_that_does_not_read_h_wants_a_recur_of_its_own():
    """`w_hh` may hold fewer gates, and unlike the elementwise rule, `recur` knows which."""

    class One:
        """One of two gates reads `h`: (Turkoglu et al., 2021, arXiv:1911.11033), h′ = tanh((1 − k) ⊙ h + k ⊙ tanh(x_z))."""

        gates = ("z", "k")

        def init(self, *args, **options):
            params = super().init(*args, **options)
            return params._replace(w_hh=params.w_hh[:, 1:], b_hh=None)

    @dataclass(frozen=True)
    class Star(One, Cell):
        def recur(self, params, state, x_gates, h):
            k = jax.nn.sigmoid(x_gates[..., 1, :] + h @ params.w_hh[:, 0])
            return Hidden(jnp.tanh((1 - k) * state.h + k * jnp.tanh(x_gates[..., 0, :])))

    @dataclass(frozen=True)
    class Lost(One, GatedCell):
        def update(self, state, x_gates, h_gates):
            return Hidden(jnp.tanh(x_gates[0] + h_gates[-1]))

    params, xs = setting(Star())
    h, ys = jnp.zeros((BATCH, HIDDEN)), []
    for x in xs:
        z, k = np.moveaxis(np.einsum("bi,igh->bgh", x, params.w_ih) + params.b_ih, 1, 0)
        k = 1 / (1 + np.exp(-(k + h @ params.w_hh[:, 0])))
        h = np.tanh((1 - k) * h + k * np.tanh(z))
        ys.append(h)
    close(unroll(Star(), params, xs)[1], np.stack(ys), 1e-5)
    for call in (
        lambda: unroll(Lost(), params, xs),
        lambda: Lost().step(params, Hidden(jnp.zeros((BATCH, HIDDEN))), xs[0]),
        lambda: Stack(Lost(), INPUT, HIDDEN).apply(((params,),), xs),
    ):
        with pytest.raises(
            ValueError, match=r"^Lost: `w_hh` should hold all 2 `gates` \(z, k\), got 1\.\nA gate that does not read"
        ):
            call()


def test_other_errors_of_a_cells_equations_pass_as_they_are():
    def wrong(x_gates, h_gates):
        raise ValueError("no such thing")

    cell = cell_of(("n",), gated=True, method=wrong)
    params, xs = setting(cell)
    with pytest.raises(ValueError, match=r"^no such thing"):
        unroll(cell, params, xs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DataclassParams:
    w_ih: Array
    w_hh: Array
    b_ih: Any
    b_hh: Any


class Shuffled(NamedTuple):
    w_hh: Array
    w_ih: Array
    b_ih: Any
    b_hh: Any


KINDS = {
    "dict": lambda p: p._asdict(),
    "DataclassParams": lambda p: DataclassParams(*p),
    "Shuffled": lambda p: Shuffled(**p._asdict()),
    "tuple": tuple,
}


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_that_are_no_named_tuples_are_refused_at_every_door(kind):
    """Those that a cell's own `init` makes as well as those that are given."""

    @dataclass(frozen=True)
    class Own(ScaledCell):
        def init(self, *args, **kwargs):
            return KINDS[kind](super().init(*args, **kwargs))

    came = "Shuffled(w_hh, w_ih, b_ih, b_hh)" if kind == "Shuffled" else kind
    text = f"Own: `init` should make a NamedTuple whose first fields are w_ih, w_hh, b_ih, b_hh, got {came}."
    xs = normal(TIME, BATCH, INPUT)
    for call in (
        lambda: Stack(Own(), INPUT, HIDDEN).init(jax.random.key(0)),
        lambda: jaxrnn.Recurrent(Own(), INPUT, HIDDEN, rngs=nnx.Rngs(0)),
        lambda: jaxrnn.linen.Recurrent(Own(), INPUT, HIDDEN).init(jax.random.key(0), xs),
        lambda: unroll(Own(), ScaledCell().init(jax.random.key(0), INPUT, HIDDEN), xs),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == text
    params = Own().init(jax.random.key(0), INPUT, HIDDEN)
    stack = Stack(Own(), INPUT, HIDDEN)
    for name, argument, call in (
        ("unroll", "params", lambda: unroll(Own(), params, xs)),
        ("Own.step", "params", lambda: Own().step(params, Hidden(jnp.zeros((BATCH, HIDDEN))), xs[0])),
        ("Stack.apply", "params[0][0]", lambda: stack.apply(((params,),), xs)),
        ("Stack.step", "params[0][0]", lambda: stack.step(((params,),), xs[0])),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        lines = str(caught.value).splitlines()
        assert lines[0] == f"{name}: `{argument}` should come from `cell.init`, got {kind}."
        assert lines[1:] == ["A NamedTuple is wanted, whose first fields are w_ih, w_hh, b_ih, b_hh."]


def test_names_of_further_inputs_and_free_fields_are_tuples_of_what_there_is():
    for named, value in (("per_step", "key"), ("context", None), ("free_fields", "h")):
        with pytest.raises(TypeError) as caught:
            type("Named", (ScaledCell,), {named: value})()
        assert str(caught.value) == f"Named should define `{named}` as a tuple of names, got {value!r}."
    with pytest.raises(ValueError, match=r"Named should define `free_fields` among those of its state, h, got \('hh',\)"):
        type("Named", (ScaledCell,), {"free_fields": ("hh",)})()


def test_integer_weights_of_the_input_are_refused_by_name():
    cell = jaxrnn.GRUCell()
    params, xs = setting(cell)
    text = r"unroll: `params\.w_ih` should be of floating-point or complex numbers, got dtype int8"
    with pytest.raises(TypeError, match=text):
        unroll(cell, params._replace(w_ih=params.w_ih.astype(jnp.int8)), xs)


def test_a_start_is_learned_where_a_state_has_no_axes_of_space():
    """Each step is a set of items, of which the state has one summary."""

    @dataclass(frozen=True)
    class Pooled(GatedCell):
        gates: ClassVar = ("n",)
        event_ndim: ClassVar = 2

        def initial_state(self, params, x):
            start = jnp.arange(1.0, 1 + HIDDEN, dtype=params.w_ih.dtype)
            return Hidden(jnp.broadcast_to(start, (*x.shape[:-2], HIDDEN)))

        def project(self, params, x):
            return contract(x, params.w_ih, params.b_ih).max(-3)

        def update(self, state, x_gates, h_gates):
            return Hidden(0.5 * state.h + jnp.tanh(x_gates[0] + h_gates[0]))

    stack = Stack(Pooled(), INPUT, HIDDEN, learn_initial_state=True)
    params, xs = stack.init(jax.random.key(0)), normal(TIME, BATCH, 6, INPUT, dtype=jnp.float32)
    learned = stack.init_state(params)
    assert learned[0][0].h.tolist() == [1, 2, 3, 4, 5]
    close(stack.apply(params, xs, initial=learned), stack.apply(params, xs), 1e-6)


def test_a_state_is_the_cells_own_and_has_a_field_h():
    @dataclass(frozen=True)
    class Headless(ScaledCell):
        State: ClassVar = dict

    with pytest.raises(TypeError, match="Headless should define `State`, a NamedTuple with a field `h`, got <class 'dict'>"):
        Headless()

    @dataclass(frozen=True)
    class Other(ScaledCell):
        def initial_state(self, params, x):
            return {"h": super().initial_state(params, x).h}

    cell = Other()
    params, xs = setting(cell)
    with pytest.raises(TypeError, match="Other: `initial_state` should make a Hidden, the cell's `State`, got dict"):
        unroll(cell, params, xs)
