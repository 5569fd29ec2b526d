"""Linear recurrences and cells whose units see only themselves: every way to compute them, derivatives, refusals, numerics."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads
from oracles import lru, min_gru, min_lstm, positive, rg_lru
from support import close, drawn_like, equations, jit, normal, residual_bytes, unannotated, weighted

import jaxrnn
from jaxrnn import Stack, linear_scan, unroll
from jaxrnn.cells import CELLS, DiagonalCell, Hidden, LinearCell
from jaxrnn.engine import newton, scan_diagonal
from jaxrnn.engine.linear_scan import FORMS

TIME, BATCH, INPUT, HIDDEN = 9, 4, 3, 5
forms = pytest.mark.parametrize("form", FORMS)
both_directions = pytest.mark.parametrize("reverse", [False, True])
LINEAR = [name for name, cell in CELLS.items() if issubclass(cell, LinearCell)]
DIAGONAL = [name for name, cell in CELLS.items() if issubclass(cell, DiagonalCell)]


def reference(a, b, h, reset, initial, reverse):
    """The recurrence in NumPy, in complex numbers where a pair is given."""
    join = lambda v: np.asarray(v[0]) + 1j * np.asarray(v[1]) if isinstance(v, tuple) else np.asarray(v)
    a, b, h, initial = map(join, (a, b, h, initial))
    a, out = np.broadcast_to(a, b.shape), np.zeros_like(b)
    for t in range(len(b) - 1, -1, -1) if reverse else range(len(b)):
        if reset is not None:
            h = np.where(reset[t].reshape(reset[t].shape + (1,) * (h.ndim - reset[t].ndim)), initial, h)
        h = a[t] * h + b[t]
        out[t] = h
    return out


def setting(pairs, constant):
    rng = np.random.default_rng(0)
    draw = lambda *shape: (
        tuple(map(jnp.asarray, rng.standard_normal((2, *shape)))) if pairs else jnp.asarray(rng.standard_normal(shape))
    )
    a = draw(1 if constant else TIME, BATCH, HIDDEN)
    reset = jnp.asarray(rng.random((TIME, BATCH)) < 0.3)
    return a, draw(TIME, BATCH, HIDDEN), draw(BATCH, HIDDEN), draw(BATCH, HIDDEN), reset


@forms
@both_directions
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_a_linear_scan_is_its_equation(form, reverse, pairs, constant, x64):
    a, b, h_0, initial, reset = setting(pairs, constant)
    run = jit(partial(linear_scan, reverse=reverse, form=form))
    for restarts in (None, reset):
        got = run(a, b, h_0, reset=restarts, initial=initial)
        got = np.asarray(got[0]) + 1j * np.asarray(got[1]) if pairs else got
        close(got, reference(a, b, h_0, restarts, initial, reverse))


@pytest.mark.slow
@pytest.mark.newest
@forms
@pytest.mark.parametrize("pairs", [False, True])
def test_the_derivatives_of_a_linear_scan(form, pairs, x64):
    """Both modes and second order against differences, `vmap` against one at a time, and against autodiff of the plain scan."""
    a, b, h_0, initial, reset = setting(pairs, constant=False)
    run = lambda a, b, h_0, initial: linear_scan(a, b, h_0, reset=reset, initial=initial, reverse=True, form=form)
    loss = lambda *args: weighted(jax.tree.map(jnp.sin, run(*args)))
    check_grads(jax.jit(loss), (a, b, h_0, initial), order=2)
    two = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), (a, b, h_0, initial))
    mapped = jit(jax.vmap(jax.grad(loss, (0, 1, 2, 3))))(*two)
    gradient = jit(jax.grad(loss, (0, 1, 2, 3)))
    one = [gradient(*jax.tree.map(lambda v, k=k: v[k], two)) for k in range(2)]
    close(mapped, jax.tree.map(lambda *v: jnp.stack(v), *one))


@pytest.mark.slow
@pytest.mark.newest
@forms
def test_a_linear_scan_on_an_explicit_mesh_and_beside_one(form):
    """Sharded over batch; and arrays without a place, where a mesh is entered."""
    a, b, reset = jax.nn.sigmoid(normal(6, 4, 3)), normal(6, 4, 3), jnp.zeros((6, 4), bool).at[2].set(True)
    loss = lambda a, b, reset: jnp.sum(linear_scan(a, b, reset=reset, form=form) ** 2)
    want = jax.grad(loss, (0, 1))(a, b, reset)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        place = lambda x: jax.device_put(x, jax.NamedSharding(mesh, jax.P(None, "data")))
        close(jax.jit(jax.grad(loss, (0, 1)))(place(a), place(b), place(reset)), want, 1e-6)
        close(jax.jit(jax.grad(loss, (0, 1)))(a, b, reset), want, 1e-6)
    one = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    loss = lambda a, b: jnp.sum(linear_scan(a, b, form=form) ** 2)
    want = jax.device_get(jax.grad(loss, (0, 1))(a[:1, :1], b[:, :1]))
    with jax.set_mesh(one):
        place = lambda x: jax.device_put(x, jax.NamedSharding(one, jax.P(None, "data", "model")))
        close(jax.device_get(jax.jit(jax.grad(loss, (0, 1)))(place(a[:1, :1]), place(b[:, :1]))), want, 1e-6)


@forms
@both_directions
def test_a_reset_keeps_nan_apart_in_both_directions_of_time(form, reverse, x64):
    """NaN before a reset reaches no state behind it; NaN in a cotangent behind it, no gradient before it."""
    a, b, h_0, initial, _ = setting(False, constant=False)
    at = 4
    reset = jnp.zeros((TIME, BATCH), bool).at[at].set(True)
    before, behind = (slice(at + 1, None), slice(None, at + 1)) if reverse else (slice(None, at), slice(at, None))
    run = lambda b, reset: linear_scan(a, b, h_0, reset=reset, initial=initial, reverse=reverse, form=form)
    assert np.isfinite(jit(run)(b.at[before].set(jnp.nan), reset)[behind]).all()
    cotangent = jnp.ones_like(b).at[behind].set(jnp.nan)
    gradient = jit(lambda b: jax.vjp(lambda b: run(b, reset), b)[1](cotangent)[0])(b)
    assert np.isfinite(gradient[before]).all()
    assert np.abs(gradient[before]).min() > 0


def test_the_decay_and_the_states_are_all_that_is_stored():
    a, b = jax.ShapeDtypeStruct((100, 4, 8), jnp.float32), jax.ShapeDtypeStruct((100, 4, 8), jnp.float32)
    row = 4 * 8 * 4
    assert residual_bytes(lambda a, b: linear_scan(jax.nn.sigmoid(a), b, form="loop"), a, b) <= (2 * 100 + 100 + 2) * row
    assert residual_bytes(lambda a, b: linear_scan(a, b, form="loop"), a, b) <= (2 * 100 + 2) * row


@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_cell_stores_its_projections_and_states(name):
    """What follows from them, gate by gate, is computed again."""
    cell, time, batch, hidden = CELLS[name](), 64, 2, 8
    params = jax.eval_shape(lambda key: cell.init(key, hidden, hidden), jax.random.key(0))
    xs = jax.ShapeDtypeStruct((time, batch, hidden), jnp.float32)
    weights = sum(a.size for a in jax.tree.leaves(params))
    rows = len(cell.gates) + cell.output_size(hidden) // hidden + 1 + (name == "RGLRU")  # and the input, which that reads twice
    most = 4 * (time * batch * hidden * rows + 4 * weights + 4 * batch * hidden)
    assert residual_bytes(lambda params, xs: unroll(cell, params, xs, strategy="scan_linear")[1], params, xs) <= most


def test_a_linear_scan_refuses_what_does_not_fit():
    a, b = jnp.ones((TIME, 2, 3)), jnp.ones((TIME, 2, 3))
    with pytest.raises(ValueError, match=r"linear_scan: `a` should have the axes of `b`, \(9, 2, 3\), .* got shape \(4, 2, 3\)"):
        linear_scan(a[:4], b)
    with pytest.raises(ValueError, match=r"`a` should broadcast with `b`, of shape \(9, 2, 3\), got \(9, 2, 2\)"):
        linear_scan(a[..., :2], b)
    with pytest.raises(TypeError, match=r"`b` should be a pair \(real, imaginary\), as `a` is, got"):
        linear_scan((a, a), b)
    with pytest.raises(TypeError, match=r"`a` should be .*floating.* got .*int32"):
        linear_scan(a.astype(jnp.int32), b)
    with pytest.raises(ValueError, match=r"`h_0` should have shape \(2, 3\), that of a step of `b`, got \(3,\)"):
        linear_scan(a, b, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`reset` should have the first axes of `b`, \(9, 2, 3\), got shape \(2, 9\)"):
        linear_scan(a, b, reset=jnp.ones((2, 9), bool))
    with unannotated(), pytest.raises(ValueError, match=r"`form` should be .*'fast'"):
        linear_scan(a, b, form="fast")
    assert linear_scan(a[:0], b[:0]).shape == (0, 2, 3)


# Cells -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "oracle"),
    [
        (CELLS["MinGRU"](candidate="positive"), partial(min_gru, candidate=positive)),
        (CELLS["MinGRU"](candidate="tanh"), partial(min_gru, candidate=np.tanh)),
        (CELLS["MinLSTM"](candidate="positive"), partial(min_lstm, candidate=positive)),
        (CELLS["RGLRU"](blocks=3), partial(rg_lru, blocks=3)),
        (CELLS["LRU"](), lru),
    ],
    ids=["minGRU positive", "minGRU tanh", "minLSTM positive", "RG-LRU blocks", "LRU"],
)
@pytest.mark.parametrize("input_size", [6, 4])
def test_an_option_of_a_linear_cell_follows_its_equations(cell, oracle, input_size, x64):
    params = drawn_like(cell.init(jax.random.key(0), input_size, 6, dtype=jnp.float64))
    x = normal(BATCH, input_size)
    state = drawn_like(cell.initial_state(params, x), 4)
    new, _ = jit(cell.step)(params, state, x)
    arrays = {name: None if a is None else np.asarray(a) for name, a in params._asdict().items()}
    close(np.asarray(new.h), oracle(np.asarray(x), {"h": np.asarray(state.h)}, arrays)["h"])


@pytest.mark.slow
@pytest.mark.newest
def test_cells_start_as_their_papers_say():
    key, n = jax.random.key(0), 20_000
    gru, lstm = (CELLS[name]().init(key, 2, n) for name in ("MinGRU", "MinLSTM"))
    kept = jax.nn.sigmoid(-gru.b_ih[0])  # where x contributes nothing
    assert 1 - 1 / kept.min() == pytest.approx(-1, abs=0.1)  # one step: a = 1/2
    assert 1 / (1 - kept.max()) == pytest.approx(100, rel=0.02)
    close(lstm.b_ih[0], -lstm.b_ih[1])
    assert np.abs(gru.b_ih[1]).max() == np.abs(lstm.b_ih[2]).max() == 0

    ring = CELLS["LRU"](r_min=0.4, r_max=0.8, phase=1.5).init(key, 50, n)
    size = np.exp(-np.exp(np.asarray(ring.nu_log, np.float64)))
    assert (size.min(), size.max()) == pytest.approx((0.4, 0.8), abs=1e-3)
    assert np.mean(size**2) == pytest.approx((0.4**2 + 0.8**2) / 2, abs=2e-3)  # uniform on the ring
    angle = np.exp(ring.theta_log)
    assert (angle.max(), angle.mean()) == pytest.approx((1.5, 0.75), abs=0.01)
    np.testing.assert_allclose(np.exp(ring.gamma_log), np.sqrt(1 - size**2), rtol=1e-4)
    assert np.asarray(ring.w_ih).std() == pytest.approx(1 / np.sqrt(2 * 50), rel=0.01)
    assert ring.b_ih is None

    gated = CELLS["RGLRU"]().init(key, 8, n // 100)
    least = 8 * jax.nn.log_sigmoid(gated.decay)
    assert np.exp(least).min() > 0.8999 and np.exp(least).max() < 0.9991
    assert np.exp(least).mean() == pytest.approx(0.9495, abs=0.01)

    para = CELLS["ParaGRU"]().init(key, 3, 4000)
    assert np.asarray(para.w_hh).std() == pytest.approx(2 / np.sqrt(5 * 4000), rel=0.05)
    np.testing.assert_allclose(para.b_ih[0], -np.linspace(0, 1, 4000), atol=1e-6)
    assert np.abs(para.b_ih[1:]).max() == 0
    np.testing.assert_allclose(CELLS["ParaLSTM"]().init(key, 3, 40).b_ih[0], -np.linspace(0, 1, 40), atol=1e-6)


@pytest.mark.parametrize("name", LINEAR)
def test_there_is_nothing_for_recurrent_dropout_to_act_on(name):
    cell = CELLS[name]()
    for option in ("recurrent_dropout", "weight_dropout"):
        with pytest.raises(
            ValueError, match=rf"Stack: `{option}` should be 0 for a {name}Cell, .* got 0.5.\nOptions that act here: "
        ):
            Stack(cell, 3, 4, **{option: 0.5})
    with pytest.raises(ValueError, match=rf"{name}Cell: `w_hh_init` should be left out"):
        CELLS[name](w_hh_init=jaxrnn.initializers.zeros)
    params, xs = cell.init(jax.random.key(0), 3, 4), jnp.ones((5, 2, 3))
    with pytest.raises(ValueError, match=rf"unroll: `h_mask` should be None for a {name}Cell"):
        unroll(cell, params, xs, h_mask=jnp.ones((2, 4)))


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", LINEAR)
def test_decay_and_state_stay_wide_in_bfloat16(name):
    """A decay of 1 − 2⁻¹⁰, which bfloat16 rounds to 1, still decays over 1000 steps."""
    cell = CELLS[name]()
    params = cell.init(jax.random.key(0), INPUT, INPUT)
    xs = normal(1000, 2, INPUT)
    start = jax.tree.map(jnp.ones_like, cell.initial_state(params, xs[0]))
    run = lambda dtype: jit(partial(unroll, cell, dtype=dtype))(params, xs, start)[0].h
    assert run(jnp.bfloat16).dtype == jnp.float32
    np.testing.assert_allclose(run(jnp.bfloat16), run(jnp.float32), atol=0.03 * np.abs(run(jnp.float32)).max())


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_single_steps_and_the_plain_scan_decay_as_wide(name, dtype):
    """Parameters stored in bfloat16, or products computed in it: a step is what a sequence makes of it."""
    cell = CELLS[name](**({"r_min": 0.999, "r_max": 0.9999} if name == "LRU" else {}))
    params = cell.init(jax.random.key(0), 4, 4, dtype=dtype)
    xs = jnp.broadcast_to(normal(1, 2, 4), (200, 2, 4)).astype(jnp.bfloat16)
    start = jax.tree.map(jnp.ones_like, cell.initial_state(params, xs[0]))
    want, _ = unroll(cell, params, xs, start, dtype=jnp.bfloat16)
    close(unroll(cell, params, xs, start, dtype=jnp.bfloat16, strategy="scan_plain")[0], want, 1e-5)
    if dtype == jnp.bfloat16:
        stepped = jax.lax.scan(lambda state, x: (cell.step(params, state, x)[0], None), start, xs)[0]
        close(stepped, want, 1e-5)


@pytest.mark.slow
@pytest.mark.newest
def test_a_linear_scan_of_small_floats_does_not_stall():
    a, b = jnp.full((1000, 1), 0.996, jnp.bfloat16), jnp.ones((1000, 1), jnp.bfloat16)
    got = linear_scan(a, b)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[-1], linear_scan(a.astype(jnp.float32), b.astype(jnp.float32))[-1])
    with jax.enable_x64(True):
        assert linear_scan(a, b, jnp.ones(1, jnp.float64)).dtype == jnp.float64


@dataclass(frozen=True)
class DrivenCell(LinearCell):
    """Reads noise at each step and a memory."""

    gates: ClassVar = ("a", "b")
    per_step: ClassVar = ("noise",)
    context: ClassVar = ("memory",)
    wrong: str = ""

    def coefficients(self, params, x_gates, *, noise, memory):
        a, b = jax.nn.sigmoid(x_gates[0]), x_gates[1] + noise + memory
        return {"": (a, b), "number": (0.5, b), "vector": (a, memory), "pairs": ((a, a), b)}[self.wrong]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("strategy", ["scan_linear", "associative"])
def test_further_inputs_reach_the_coefficients(strategy, x64):
    cell = DrivenCell()
    params, xs, noise, memory = (
        cell.init(jax.random.key(0), INPUT, HIDDEN),
        normal(6, 2, INPUT),
        normal(6, 2, HIDDEN),
        normal(HIDDEN),
    )
    lengths = jnp.array([6, 3])

    def gradient(strategy):
        def loss(params, noise, memory):
            given = {"per_step": {"noise": noise}, "context": {"memory": memory}, "lengths": lengths}
            return weighted(unroll(cell, params, xs, strategy=strategy, **given))

        return jit(jax.value_and_grad(loss, (0, 1, 2)))(params, noise, memory)

    close(gradient(strategy), gradient("scan_plain"), 1e-10)


def test_coefficients_of_another_form_are_refused_by_name():
    run = lambda wrong: unroll(
        DrivenCell(wrong=wrong), params, xs, per_step={"noise": jnp.ones((6, 2, HIDDEN))}, context={"memory": jnp.ones(HIDDEN)}
    )
    params, xs = DrivenCell().init(jax.random.key(0), INPUT, HIDDEN), normal(6, 2, INPUT)
    assert run("number")[1].shape == (6, 2, HIDDEN)
    with pytest.raises(
        ValueError, match=r"DrivenCell: `b` of `coefficients` should have the axes of `x_gates`, .* got shape \(5,\)"
    ):
        run("vector")
    with pytest.raises(ValueError, match=r"DrivenCell: `coefficients` should give two arrays, or two pairs of them, got 2 and 1"):
        run("pairs")


@dataclass(frozen=True)
class FormCell(LinearCell):
    """Coefficients of one form or another, from a projection in the dtype of `x`."""

    gates: ClassVar = ("b",)
    form: str = "turn"
    complex_state: bool = False

    def initial_state(self, params, x):
        zeros = super().initial_state(params, x).h
        return Hidden(zeros.astype(jnp.complex64) if self.complex_state else zeros)

    def project(self, params, x):
        return (x @ params.w_ih[:, 0].astype(x.dtype),)

    def coefficients(self, params, x_gates):
        (b,), a = x_gates, jnp.full(HIDDEN, 1 - 2**-10, jnp.float32)
        angle = jnp.linspace(0.5, 2.0, HIDDEN, dtype=jnp.float32)
        turn = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        narrow = b[..., :1]
        wide = jnp.concatenate([b, b], axis=-1)
        return {"turn": (turn, b), "decay": (a, b), "narrow": (a, narrow), "wide": (1.0, wide), "pair": ((a, a), (b, b))}[self.form]


def of_form(form, **options):
    cell = FormCell(form=form, **options)
    return cell, cell.init(jax.random.key(0), INPUT, HIDDEN), normal(6, 2, INPUT)


def stepped(cell, params, xs):
    state = cell.initial_state(params, xs[0])
    for x in xs:
        state, _ = cell.step(params, state, x)
    return state


@pytest.mark.slow
@pytest.mark.newest
def test_a_complex_coefficient_of_real_inputs_keeps_its_imaginary_part():
    cell, params, xs = of_form("turn", complex_state=True)
    got, h = unroll(cell, params, xs)[0], np.zeros((2, HIDDEN), np.complex64)
    for x in xs:
        h = np.exp(1j * np.linspace(0.5, 2.0, HIDDEN)) * h + np.asarray(x @ params.w_ih[:, 0])
    close((got.h, stepped(cell, params, xs).h), (h, h), 1e-5)


@pytest.mark.parametrize("strategy", ["scan_linear", "associative", "scan_plain"])
def test_coefficients_from_a_narrow_projection_are_wide_and_of_the_width_of_the_state(strategy):
    for form in ("decay", "narrow"):
        cell, params, xs = of_form(form)
        state, _ = unroll(cell, params, xs, dtype=jnp.bfloat16, strategy=strategy)
        bs, h = cell.project(params, xs.astype(jnp.bfloat16))[0].astype(np.float32), np.zeros((2, HIDDEN), np.float32)
        for b in bs:
            h = np.float32(1 - 2**-10) * h + np.asarray(b[:, :1] if form == "narrow" else b)
        assert state.h.dtype == jnp.float32
        close(state.h, h, 1e-5)


def test_coefficients_that_a_state_cannot_hold_are_refused_by_name():
    for form, kind, text in (
        ("turn", TypeError, "`coefficients` should be float32, as the state is, got complex64."),
        ("wide", ValueError, f"`coefficients` should broadcast with the state, of shape (2, {HIDDEN}), got (2, {2 * HIDDEN})."),
        ("pair", ValueError, "`coefficients` should give 1 parts, as `parts` makes of the state, got 2."),
    ):
        cell, params, xs = of_form(form)
        for call in (partial(unroll, cell, params, xs), partial(stepped, cell, params, xs)):
            with pytest.raises(kind) as caught:
                call()
            assert str(caught.value) == f"FormCell: {text}"

    @dataclass(frozen=True)
    class Two(FormCell):
        State: ClassVar = jaxrnn.LSTMState

    with pytest.raises(TypeError, match="Two: `State` should have one field, `h`, which `coefficients` act on, got h, c"):
        Two()


def test_a_mask_of_h_acts_on_a_linear_cell_that_asks_for_one():
    @dataclass(frozen=True)
    class Masked(FormCell):
        recurrent_product: ClassVar = True

    _, params, xs = of_form("decay")
    mask = jnp.zeros((2, HIDDEN)).at[1].set(2.0)
    state, _ = unroll(Masked(form="decay"), params, xs[:2], h_mask=mask)
    first, last = Masked().project(params, xs[:2])[0]
    close(state.h, mask * (1 - 2**-10) * first + last, 1e-6)


@pytest.mark.parametrize("name", [*LINEAR, *DIAGONAL])
def test_no_example_at_all_is_a_batch_too(name):
    cell = CELLS[name]()
    params = cell.init(jax.random.key(0), INPUT, 4)
    state, ys = unroll(cell, params, jnp.ones((5, 0, INPUT)), lengths=jnp.ones(0, int))
    assert ys.shape == (5, 0, cell.output_size(4))
    assert state.h.shape == ys.shape[1:]


@pytest.mark.slow
@pytest.mark.newest
def test_closed_gates_of_a_min_lstm_are_no_nan():
    cell = CELLS["MinLSTM"]()
    params = cell.init(jax.random.key(0), 2, 3)
    params = params._replace(b_ih=params.b_ih.at[:2].set(jnp.array([[-109.0], [-110.0]])))
    loss = lambda params: jnp.sum(unroll(cell, params, jnp.ones((4, 1, 2)))[1])
    gates = tuple(jnp.array([g]) for g in (-109.0, -110.0, 1.0))
    a, b = cell.coefficients(params, gates)
    np.testing.assert_allclose((a[0], b[0]), (np.e / (1 + np.e), 1 / (1 + np.e)), rtol=1e-6)  # e^109 / (e^109 + e^110), turned over
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.slow
@pytest.mark.newest
def test_an_rg_lru_that_keeps_everything_has_a_finite_gradient():
    cell = CELLS["RGLRU"]()
    params = cell.init(jax.random.key(0), 3, 3)
    params = params._replace(decay=jnp.full(3, 40.0))
    loss = lambda params: jnp.sum(unroll(cell, params, jnp.ones((4, 1, 3)))[1])
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(loss)(params)))


@pytest.mark.slow
@pytest.mark.newest
def test_one_program_with_symbolic_sizes_serves_a_loop_and_devices_that_are_wide():
    cell = CELLS["RGLRU"](blocks=2)
    params = cell.init(jax.random.key(0), 4, 4)
    leaves, structure = jax.tree.flatten(params)

    def gradient(leaves, xs, lengths):
        run = lambda leaves: unroll(cell, jax.tree.unflatten(structure, leaves), xs, lengths=lengths, reverse=True)[1]
        return jax.grad(lambda leaves: weighted(jnp.sum(run(leaves) ** 2)))(leaves)

    time, batch = export.symbolic_shape("t, b")
    shapes = leaves, jax.ShapeDtypeStruct((time, batch, 4), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    exported = export.export(jax.jit(gradient), platforms=["cpu", "cuda", "tpu"])(*shapes)
    given = leaves, normal(9, 3, 4), jnp.array([9, 0, 4])
    close(exported.call(*given), gradient(*given), 1e-5)


@dataclass(frozen=True)
class CoupledCell(DiagonalCell):
    """Not elementwise, in one way or another."""

    gates: ClassVar = ("h",)
    how: str = "mean"

    def recur(self, params, state, x_gates, h):
        others = {"mean": lambda h: h.mean(-1, keepdims=True), "order": lambda h: h[..., ::-1], "sum": lambda h: jnp.cumsum(h, -1),
                  "neighbour": lambda h: jnp.roll(h, 1, -1), "largest": jax.nn.softmax,
                  "best": lambda h: jax.lax.top_k(h, HIDDEN)[0],
                  "shift": lambda h: jax.lax.pad(h, jnp.zeros((), h.dtype), ((0, 0, 0), (1, -1, 0))),
                  "pool": lambda h: jax.lax.reduce_window(h, 0.0, jax.lax.add, (1, 3), (1, 1), "SAME"),
                  "loop": lambda h: jax.lax.scan(lambda c, _: (c[::-1], None), (h, x_gates[..., 0, :]), None, 1)[0][1]}  # fmt: skip
        return Hidden(jnp.tanh(x_gates[..., 0, :] + params.w_hh[0] * h + others[self.how](h)))


@pytest.mark.parametrize("how", ["mean", "order", "sum", "neighbour", "largest", "best", "shift", "pool", "loop"])
def test_a_diagonal_cell_whose_units_see_each_other_is_refused(how):
    cell = CoupledCell(how=how)
    params, xs = cell.init(jax.random.key(0), INPUT, HIDDEN), normal(6, 2, INPUT)
    with pytest.raises(ValueError, match=r"CoupledCell: `recur` should be elementwise in the state, .* got \w+ of it\.\nMake the"):
        unroll(cell, params, xs)


# Newton ------------------------------------------------------------------------------------------------------------------


def iterations(cell, params, xs):
    """How often Newton's method went over all of time, and whether it arrived; and its states against the loop's."""
    start = cell.initial_state(params, xs[0])
    now = scan_diagonal.Steps(cell.project(params, xs), None, None, (None,) * len(start), {})
    whole = lambda old, now: cell.recur(params, old, now.x, old.h)
    states, count, converged = jit(lambda now: newton.iterate(whole, now, start, start, False))(now)
    want = scan_diagonal.in_loop(whole, now, start, start, False)
    return int(count), bool(converged), max(float(np.abs(a - b).max()) for a, b in zip(states, want, strict=True))


@dataclass(frozen=True)
class StochasticCell(DiagonalCell):
    """Units whose own weight is scaled by a number drawn at every step, from one key for the whole batch."""

    gates: ClassVar = ("z",)
    per_step: ClassVar = ("key",)

    def recur(self, params, state, x_gates, h, key):
        noise = jax.random.normal(key, h.shape, h.dtype)
        return Hidden(jnp.tanh(x_gates[..., 0, :] + (0.5 + noise) * params.w_hh[0] * h))


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("strategy", "impl"), [("scan_diagonal", "threefry2x32"), ("newton", "threefry2x32"), ("newton", "rbg")])
def test_a_diagonal_cell_may_draw_at_every_step(strategy, impl, x64):
    """`recur` sees one step, also in the derivative of all of them; compared with the plain scan, first and second order. Keys of
    the kind rbg give other numbers under `vmap`."""
    cell = StochasticCell()
    params = drawn_like(cell.init(jax.random.key(0), 3, HIDDEN, dtype=jnp.float64))
    xs, keys = normal(TIME, BATCH, 3), jax.random.split(jax.random.key(1, impl=impl), TIME)

    def derivatives(strategy, params, xs):
        loss = lambda params, xs: weighted(jnp.sin(unroll(cell, params, xs, per_step={"key": keys}, strategy=strategy)[1]))
        return jax.jvp(jax.value_and_grad(loss, (0, 1)), (params, xs), (params, xs))

    run = jit(derivatives, static_argnums=0)
    close(run(strategy, params, xs), run("scan_plain", params, xs), 1e-10)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("batch", [(1,), (1, 1), ()], ids=str)
@pytest.mark.parametrize("name", [*LINEAR, *DIAGONAL])
def test_one_sequence_is_a_batch_as_any_other(name, batch, x64):
    """Every option. No loop and no sum over time has an axis of length 1 beside time, see `one_sequence`."""
    cell, rng = CELLS[name](), np.random.default_rng(0)
    params = drawn_like(cell.init(jax.random.key(0), INPUT, HIDDEN, dtype=jnp.float64))
    xs = normal(TIME, *batch, INPUT)
    start = drawn_like(cell.initial_state(params, xs[0]), 1)
    drawn = lambda rate, *shape: jnp.asarray(rng.random((TIME, *shape)) < rate)
    zoneout = type(start)(*(drawn(0.3, *field.shape) for field in start))
    h_mask = None if name in LINEAR else jnp.where(drawn(0.5)[0], 2.0, jnp.ones_like(start.h).at[..., 1].set(0.0))
    options = {"mask": drawn(0.7, *batch), "reset": drawn(0.3, *batch), "zoneout": zoneout, "h_mask": h_mask,
               "initial": drawn_like(start, 3)}  # fmt: skip

    for given in (options, {}):

        def loss(strategy, params, xs, start, given=given):
            final, ys = unroll(cell, params, xs, start, reverse=True, strategy=strategy, **given)
            return weighted(jax.tree.map(jnp.sin, (final, ys)))

        args = params, xs, start
        gradient = lambda strategy, *args, loss=loss: jax.jvp(jax.grad(partial(loss, strategy), (0, 1, 2)), args, args)
        got, want = (jit(gradient, static_argnums=0)(strategy, *args) for strategy in (None, "scan_plain"))
        close(got, want, 1e-10)
        program = jax.make_jaxpr(jax.grad(partial(loss, None), (0, 1)))(*args)
        named = lambda name, program=program: [eqn for eqn in equations(program) if eqn.primitive.name == name]
        sums = [eqn.invars[0].aval.shape for eqn in named("reduce_sum") if eqn.params["axes"] == (0,)]
        loops = [v.aval.shape for eqn in named("scan") for v in eqn.invars]
        assert (TIME, HIDDEN) in loops
        assert [shape for shape in (*sums, *loops) if shape[:1] == (TIME,) and shape[1:-1] == batch != ()] == []


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", [*LINEAR, *DIAGONAL])
def test_one_sequence_keeps_its_place_on_a_mesh_of_one_device(name):
    """An explicit mesh may have its batch, or its features, over an axis of length 1."""
    cell = CELLS[name]()
    params, xs = cell.init(jax.random.key(0), 4, 4), normal(TIME, 1, 4)
    start = drawn_like(cell.initial_state(params, xs[0]), 1)
    run = lambda params, xs, start: unroll(cell, params, xs, start)[1]
    gradient = lambda *args: jax.grad(lambda *args: jnp.sum(run(*args) ** 2), (0, 1, 2))(*args)
    want = gradient(params, xs, start)
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Explicit,) * 2)
    place = lambda tree, *spec: jax.device_put(tree, jax.NamedSharding(mesh, jax.P(*spec)))
    with jax.set_mesh(mesh):
        for spec, of_start in (((None, "data"), ("data",)), ((None, None, "model"), ())):
            args = place(params), place(xs, *spec), place(start, *of_start)
            close(jax.device_get(jit(gradient)(*args)), jax.device_get(want), 1e-5)
            assert jit(run)(*args).sharding.spec[1] == spec[1]


@dataclass(frozen=True)
class HalvesItsInput(jaxrnn.ParaGRUCell):
    def project(self, params, x):
        return super().project(params, x) / 2


@pytest.mark.parametrize(
    ("cell", "read"), [(CELLS["ParaGRU"](), [(4, 5)] * 3), (HalvesItsInput(), [(4, 3, 5)])], ids=("usual", "own")
)
def test_the_loop_of_a_diagonal_cell_reads_an_array_for_each_gate(cell, read):
    """XLA:CPU compiles the split of one array to scalar code. What a cell's own `project` gives is read as it is."""
    params, xs = drawn_like(cell.init(jax.random.key(0), 3, 5), 1), normal(40, 4, 3)
    run = partial(unroll, cell)
    (loop,) = [eqn for eqn in equations(jax.make_jaxpr(run)(params, xs)) if eqn.primitive.name == "scan"]
    assert [v.aval.shape[1:] for v in loop.invars if v.aval.shape[:1] == (40,)] == read
    close(run(params, xs), run(params, xs, strategy="scan_plain"), 1e-6)


def test_what_a_diagonal_cell_reads_from_outside_cannot_be_differentiated():
    def value(factor):
        class Scaled(StochasticCell):
            per_step: ClassVar = ()

            def recur(self, params, state, x_gates, h):
                return Hidden(jnp.tanh(x_gates[..., 0, :] + factor * params.w_hh[0] * h))

        cell = Scaled()
        return jnp.sum(unroll(cell, cell.init(jax.random.key(0), 3, 4), jnp.ones((5, 2, 3)))[1])

    with pytest.raises(TypeError, match=r"Scaled: `recur` should compute with its arguments and constants alone, got a value from"):
        jax.grad(value)(2.0)
    assert np.isfinite(value(2.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: CELLS["LRU"](b_ih_init=jax.nn.initializers.ones),
            "LRUCell: `b_ih_init` should be left out, since there are no biases",
        ),
        (
            lambda: CELLS["MinGRU"](w_hh_init=jax.nn.initializers.ones),
            "MinGRUCell: `w_hh_init` should be left out, since there is no",
        ),
        (
            lambda: CELLS["ParaGRU"](b_hh_init=jax.nn.initializers.ones),
            "ParaGRUCell: `b_hh_init` should be left out, .* second bias",
        ),
        (lambda: CELLS["LRU"](r_max=1.5), r"LRUCell: `r_min` and `r_max` should satisfy 0 ≤ r_min < r_max ≤ 1, got 0.0, 1.5"),
        (lambda: CELLS["LRU"](r_min=0.5, r_max=0.5), r"should satisfy 0 ≤ r_min < r_max ≤ 1, got 0.5, 0.5"),
        (lambda: CELLS["LRU"](phase=0.0), r"LRUCell: `phase` should be above 0 and finite, got 0.0"),
    ],
)
def test_options_with_nothing_to_act_on_or_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["ParaGRU", "ParaLSTM"])
@pytest.mark.parametrize("time", [128, pytest.param(4096, marks=pytest.mark.slow)])
def test_newton_arrives_in_few_iterations(name, time):
    cell = CELLS[name]()
    params, xs = cell.init(jax.random.key(0), 8, 16), normal(time, 2, 8)
    count, converged, error = iterations(cell, params, xs)
    assert converged
    assert count <= 4
    assert error <= 1e-6


@pytest.mark.slow
@pytest.mark.newest
def test_newton_falls_back_to_the_loop_where_it_does_not_arrive():
    cell = CELLS["ParaGRU"]()
    params, xs = cell.init(jax.random.key(0), 8, 16), normal(256, 2, 8)
    params = params._replace(w_hh=30 * params.w_hh)
    assert not iterations(cell, params, xs)[1]
    run = lambda strategy: jit(jax.value_and_grad(lambda p: weighted(unroll(cell, p, xs, strategy=strategy)[1])))(params)
    close(run("newton"), run("scan_diagonal"), 1e-5)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", DIAGONAL)
def test_an_nan_of_the_data_is_the_same_nan_by_newton(name):
    cell = CELLS[name]()
    params, xs = cell.init(jax.random.key(0), 3, 4), normal(6, 2, 3).at[3, 1].set(jnp.nan)
    got, want = (unroll(cell, params, xs, strategy=strategy)[1] for strategy in ("newton", "scan_diagonal"))
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert np.isnan(want).any()


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", [*LINEAR, *DIAGONAL])
def test_a_module_of_these_cells_learns_starts_and_streams(name):
    from flax import nnx

    module = jaxrnn.Recurrent(CELLS[name](), INPUT, 4, 2, zoneout=0.1, learn_initial_state=True, rngs=nnx.Rngs(0))
    module.eval()
    x = normal(2, TIME, INPUT)
    output, h_n = module(x)
    state = None
    for t in range(TIME):
        y, state = module.step(x[:, t], state)
        close(y, output[:, t], 1e-5)
    close(state, h_n, 1e-5)
