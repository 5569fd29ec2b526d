"""Backends: the kernels for an NVIDIA GPU, run without one by Pallas's interpreter, and cuDNN's LSTM, by JAX's reference of it.

Whether the kernels compile for a GPU is in test_compiled.py. That they are fast nothing here can say.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental import rnn
from support import close, count, drawn_like, equal, jit, normal, unannotated, weighted

import jaxrnn
from jaxrnn import GRUCell, LiGRUCell, LSTMCell, PeepholeLSTMCell, RNNCell, SLSTMCell, Stack, unroll
from jaxrnn.cells import CELLS, GatedCell, Hidden
from jaxrnn.engine import cudnn, fused, fused_kernels, fused_loops

TIME, INPUT, HIDDEN = 5, 3, 7
BATCH = fused_kernels.TILE + 3
LENGTHS = jnp.array([0, 1, 3, 5, *[k % 6 for k in range(BATCH - 4)]])
FITTING = ("RNN", "LSTM", "GRU", "PeepholeLSTM", "CoupledLSTM", "LiGRU", "SLSTM")
LOOPS = fused_loops.forward, fused_loops.stored, fused_loops.backward


@pytest.fixture(scope="module")
def kernels():
    """Programs for a CPU run the kernels, interpreted."""
    fused_kernels.lower("cpu", interpret=True)
    jax.clear_caches()
    yield
    for loop in LOOPS:
        loop.lower(loop.meaning, "cpu")
    jax.clear_caches()


def setting(cell, time=TIME, batch=BATCH, hidden=HIDDEN):
    params = drawn_like(jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUT, hidden)))
    xs = normal(time, *np.atleast_1d(batch), INPUT, dtype=jnp.float32)
    state = cell.initial_state(params, xs[0])
    own = type(cell).initial_state is jaxrnn.cells.Cell.initial_state
    return params, xs, drawn_like(state, 2) if own else state  # only zeros may be replaced by any numbers


def results(cell, backend, arrays, **options):
    """Outputs and final state, and the gradients of all of them by all arrays."""

    def loss(*arrays):
        result = unroll(cell, *arrays, backend=backend, **options)
        return weighted(jax.tree.map(lambda a: a.astype(jnp.float32), result)), result

    (_, result), gradient = jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*arrays)
    return result, gradient


def alike(got, want):
    close(got[0], want[0], 1e-6)
    close(got[1], want[1], 1e-5)


# The kernels -------------------------------------------------------------------------------------------------------------


def test_values_and_gradients_are_kernels_and_the_rest_is_not():
    cell = GRUCell()
    params, xs, _ = setting(cell)
    run = lambda params: unroll(cell, params, xs, backend="pallas")[1]
    gradient = jax.grad(lambda params: jnp.sum(run(params) ** 2))
    of = lambda function: jax.make_jaxpr(function)(params).jaxpr
    names = "rnn_forward", "rnn_forward_stored", "rnn_backward", "rnn_linear", "scan"
    assert [count(of(run), name) for name in names] == [1, 0, 0, 0, 0]
    assert [count(of(gradient), name) for name in names] == [0, 1, 1, 0, 0]
    assert [count(of(jax.checkpoint(gradient)), name) for name in names] == [0, 1, 1, 0, 0]
    side_by_side = jax.make_jaxpr(jax.vmap(lambda xs: unroll(cell, params, xs, backend="pallas")[1]))(xs[None]).jaxpr
    assert [count(side_by_side, name) for name in names] == [0, 0, 0, 0, 1]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_one_export_serves_all_platforms():
    """With the kernels for CUDA, and the scan for all others."""
    cell = LSTMCell()
    params, xs, _ = setting(cell)
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(unroll(cell, params, xs, lengths=LENGTHS, backend="pallas")[1] ** 2)))
    target = "__gpu$xla.gpu.triton"
    unstable = [export.DisabledSafetyCheck.custom_call(target)]
    exported = export.export(gradient, platforms=["cpu", "cuda", "tpu"], disabled_checks=unstable)(params)
    assert exported.mlir_module().count(f"custom_call @{target}") == 2
    close(exported.call(params), jax.grad(lambda p: jnp.sum(unroll(cell, p, xs, lengths=LENGTHS)[1] ** 2))(params), 1e-5)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_batches_in_parts_over_devices():
    """By hand, where gradients of weights are summed over devices; and as XLA divides them."""
    cell, mesh, P = RNNCell(), jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)), jax.P
    params, xs, _ = setting(cell, batch=4)

    def loss(params, xs, backend):
        return jnp.sum(jnp.sin(unroll(cell, params, xs, backend=backend)[1]))

    @jax.jit
    @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    def by_hand(params, xs):
        return jax.grad(lambda params: jax.lax.psum(loss(params, xs, "pallas"), "data"))(params)

    want = jax.grad(loss)(params, xs, "xla")
    close(by_hand(params, xs), want, 1e-5)
    if jax.__version_info__ < (0, 12):  # later, JAX asks the devices of the mesh which GPU they are, and these are CPUs
        assert by_hand.trace(params, xs).lower(lowering_platforms=("cuda",)).as_text().count("__gpu$xla.gpu.triton") == 2
    divided = jax.device_put(xs, jax.NamedSharding(mesh, P(None, "data")))
    close(jax.jit(jax.grad(loss), static_argnums=2)(params, divided, "pallas"), want, 1e-5)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", FITTING)
def test_the_kernels_give_the_values_and_gradients_of_the_loops(name, kernels):
    """Lengths, 0 among them, NaN in padding, a loss on the final state too; the batch fills no tile, the units no power of two."""
    cell = CELLS[name]()
    params, xs, state = setting(cell)
    xs = jnp.where((jnp.arange(TIME)[:, None] < LENGTHS)[..., None], xs, jnp.nan)
    options = {"lengths": LENGTHS, "reverse": FITTING.index(name) % 2 == 1}
    alike(results(cell, "pallas", (params, xs, state), **options), results(cell, "xla", (params, xs, state), **options))


@pytest.mark.slow
@pytest.mark.newest
def test_every_gated_cell_that_fits_is_tested():
    """Whatever else there is says why not."""
    for name, make in CELLS.items():
        cell = make()
        params, xs, _ = setting(cell) if cell.event_ndim == 1 else (None,) * 3
        if params is None or name in FITTING:
            continue
        with pytest.raises(ValueError, match=r"`backend` should be one that can run, got 'pallas': .*(not a GatedCell|`stack`)"):
            unroll(cell, params, xs, backend="pallas")


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("options", [{"bias": False}, {"return_states": True}, {"reverse": True, "zoneout": 0.3}], ids=str)
def test_the_kernels_run_without_biases_with_all_states_and_with_zoneout_rates(options, kernels):
    cell = GRUCell()
    params, xs, state = setting(cell, batch=3)
    options = dict(options)
    if options.pop("bias", True) is False:
        params = params._replace(b_ih=None, b_hh=None)
    if "zoneout" in options:
        options["zoneout"] = Hidden(options["zoneout"])
    alike(results(cell, "pallas", (params, xs, state), **options), results(cell, "xla", (params, xs, state), **options))


@pytest.mark.slow
@pytest.mark.newest
def test_the_kernels_compute_products_in_bfloat16_and_the_rest_in_float32(kernels):
    """As the scan that they stand for, which `vmap` is given: both round alike."""
    cell = LSTMCell()
    arrays = setting(cell, batch=(2, 3))
    got = results(cell, "pallas", arrays, dtype=jnp.bfloat16)
    one = jax.tree.map(lambda a: a[None], arrays)
    scan = jax.vmap(lambda *arrays: results(cell, "pallas", arrays, dtype=jnp.bfloat16))(*one)
    exact = results(cell, "pallas", arrays)
    assert got[0][1].dtype == jnp.bfloat16
    wide = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float32), tree)
    close(wide(got), jax.tree.map(lambda a: a[0], wide(scan)), 1e-2)
    assert 1e-3 < float(jnp.max(jnp.abs(got[0][0].h - exact[0][0].h))) < 1e-1


class _Scaled(NamedTuple):
    w_ih: Any
    w_hh: Any
    b_ih: Any
    b_hh: Any
    scale: Any


@dataclass(frozen=True)
class _DividesCell(GatedCell):
    """Of a sum that is zero it makes NaN: where a unit or a row is only there to fill a tile."""

    gates: ClassVar = ("n",)
    axes: ClassVar = GatedCell.axes | {"scale": ("hidden",)}

    def init(self, key, input_size, hidden_size, *, bias=True, dtype=jnp.float32):
        return _Scaled(*super().init(key, input_size, hidden_size, bias=bias, dtype=dtype), jnp.ones(hidden_size, dtype))

    def update(self, state, x_gates, h_gates, scale):
        sum_ = jaxrnn.cells.base.broadcast_like(scale, state.h) * (x_gates[0] + h_gates[0])
        return Hidden(jnp.sin(sum_) / sum_)


@pytest.mark.slow
@pytest.mark.newest
def test_units_and_rows_that_fill_a_tile_change_nothing(kernels):
    cell = _DividesCell()
    arrays = setting(cell)
    got, want = (results(cell, backend, arrays) for backend in ("pallas", "xla"))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(want))
    close(got[0], want[0], 1e-6)
    close(got[1], want[1], 1e-4)  # of large numbers: gradients by 1 / sum²


@dataclass(frozen=True)
class _SharesCell(_DividesCell):
    """What it makes of its parameters mixes units, and compares them: a unit that fills a tile must not be among them."""

    gates: ClassVar = ("n", "z")

    def update(self, state, x_gates, h_gates, scale):
        share = jaxrnn.cells.base.broadcast_like(jax.nn.softmax(scale) + scale / jnp.mean(scale), state.h)
        open_ = jaxrnn.cells.base.broadcast_like(scale, state.h) > 0
        return Hidden(share * jnp.tanh(x_gates[0] + h_gates[0]) * jnp.where(open_, 1.0, x_gates[1] * h_gates[1]))


def test_what_update_makes_of_its_parameters_is_made_of_the_units_that_there_are(kernels):
    cell = _SharesCell()
    params, xs, state = setting(cell, time=3, batch=3)
    arrays = params._replace(scale=jnp.array([0.3, -0.5, 0.9, 0.4, -0.2, 0.7, 0.6])), xs, state
    alike(*(results(cell, backend, arrays) for backend in ("pallas", "xla")))


@pytest.mark.slow
@pytest.mark.newest
def test_what_is_too_large_to_count_runs_in_pieces(kernels, monkeypatch):
    cell = RNNCell()
    arrays = setting(cell, batch=3)
    monkeypatch.setattr(fused, "MOST", 2 * (3 + fused_kernels.TILE) * 16)
    jax.clear_caches()
    program = jax.make_jaxpr(lambda *a: unroll(cell, *a, backend="pallas"))(*arrays).jaxpr
    assert (count(program, "rnn_forward"), count(program, "scan")) == (2, 1)  # two steps at a time, and the fifth
    got, want = (results(cell, backend, arrays, lengths=jnp.array([5, 0, 3])) for backend in ("pallas", "xla"))
    jax.clear_caches()
    alike(got, want)


def loss_of(cell, backend, arrays, **options):
    """A function of what the state is multiplied by; smooth, with derivatives of every order."""
    params, xs, state = arrays

    def loss(params, factor):
        scaled = jax.tree.map(lambda s: s * factor, state)
        return weighted(jax.tree.map(jnp.sin, unroll(cell, params, xs * factor, scaled, backend=backend, **options)))

    return loss, params


TRANSFORMATIONS = {
    "vmap of grad": lambda loss, params: jax.vmap(jax.grad(loss), (None, 0))(params, jnp.array([0.5, 2.0])),
    "jvp": lambda loss, params: jax.jvp(partial(loss, factor=1.0), (params,), (params,)),
    "hessian": lambda loss, params: jax.hessian(loss, 1)(params, 0.7),
    "reverse over reverse": lambda loss, params: jax.grad(lambda f: weighted(jax.grad(loss)(params, f)))(0.7),
    "forward over reverse": lambda loss, params: jax.jvp(jax.grad(partial(loss, factor=0.7)), (params,), (params,))[1],
    "checkpoint": lambda loss, params: jax.grad(jax.checkpoint(loss))(params, 0.7),
    "disable_jit": lambda loss, params: _without_jit(loss, params),
}


def _without_jit(loss, params):
    with jax.disable_jit():
        return loss(params, 0.7)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_every_transformation_is_that_of_the_scan(name, kernels):
    cell = GRUCell()
    arrays = setting(cell, time=3, batch=2)

    def transformed(backend):
        loss, params = loss_of(cell, backend, arrays, lengths=jnp.array([3, 1]))
        compiled = jit if name != "disable_jit" else lambda function: function
        return compiled(partial(TRANSFORMATIONS[name], loss))(params)

    close(transformed("pallas"), transformed("xla"), 2e-5)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("options", [{"remat": True}, {"truncate": 2}, {"remat": True, "truncate": 3}], ids=str)
def test_pieces_of_time_run_as_kernels(options, kernels):
    cell = LSTMCell()
    arrays = setting(cell, batch=3)
    alike(results(cell, "pallas", arrays, **options), results(cell, "xla", arrays, **options))


@pytest.mark.parametrize(("bidirectional", "loops"), [(False, 2), (True, 4)])
def test_layers_and_directions_are_not_joined_on_a_gpu(bidirectional, loops, monkeypatch):
    """Loops side by side would be a scan of a batch of them."""
    stack = Stack(LSTMCell(), INPUT, HIDDEN, num_layers=2, bidirectional=bidirectional, backend="pallas")
    monkeypatch.setattr("support.PLATFORM", "cuda")
    program = jax.make_jaxpr(lambda params: stack.apply(params, jnp.ones((40, 4, INPUT))))(stack.init(jax.random.key(0))).jaxpr
    assert (count(program, "rnn_forward"), count(program, "scan")) == (loops, 0)


@pytest.mark.slow
@pytest.mark.newest
def test_both_directions_and_all_layers_of_a_stack_run_as_kernels(kernels):
    stack = Stack(LSTMCell(), INPUT, HIDDEN, num_layers=2, bidirectional=True, backend="pallas")
    plain = Stack(LSTMCell(), INPUT, HIDDEN, num_layers=2, bidirectional=True)
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(7, 4, INPUT, dtype=jnp.float32)
    lengths = jnp.array([7, 0, 2, 5])
    of = lambda stack: jit(jax.value_and_grad(lambda params: weighted(stack.apply(params, xs, lengths=lengths))))(params)
    close(of(stack), of(plain), 2e-5)


def test_an_array_on_an_explicit_mesh_is_refused():
    cell, mesh = LSTMCell(), jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    params, xs, _ = setting(cell, batch=4)
    with jax.set_mesh(mesh):
        xs = jax.device_put(xs, jax.NamedSharding(mesh, jax.P(None, "data")))
        for backend in ("pallas", "cudnn"):
            with pytest.raises(ValueError, match="one device, and arrays here lie on a mesh"):
                unroll(cell, params, xs, backend=backend)


# Refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "dtype", "largest"),
    [
        (RNNCell(), "bfloat16", 256),
        (LSTMCell(), "bfloat16", 128),
        (RNNCell(), "float32", 64),
        (LSTMCell(), "float32", 64),
        (SLSTMCell(), "float32", 32),
        (PeepholeLSTMCell(), "float32", 32),
        (PeepholeLSTMCell(), "bfloat16", 128),
    ],
    ids=str,
)
def test_what_is_too_large_is_refused_with_how_large_it_may_be(cell, dtype, largest):
    def run(hidden):
        params = jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUT, hidden))
        xs = jax.ShapeDtypeStruct((TIME, BATCH, INPUT), jnp.float32)
        return jax.eval_shape(lambda *a: unroll(cell, *a, dtype=dtype, backend="pallas"), params, xs)

    assert run(largest)[1].shape == (TIME, BATCH, largest)
    kind = type(cell).__name__
    text = f"hidden_size={largest + 1} is too large to stay on one multiprocessor: a {kind} in {dtype} may have up to {largest}"
    with pytest.raises(ValueError, match=f"unroll: `backend` should be one that can run, got 'pallas': {text}"):
        run(largest + 1)


@dataclass(frozen=True)
class _RollsCell(GatedCell):
    gates: ClassVar = ("n",)

    def update(self, state, x_gates, h_gates):
        return Hidden(jnp.tanh(x_gates[0] + h_gates[0]) + jnp.flip(state.h, -1))


@dataclass(frozen=True)
class _ReadsCell(GatedCell):
    gates: ClassVar = ("n",)

    def update(self, state, x_gates, h_gates):
        return Hidden(jnp.tanh(x_gates[0] + h_gates[0]) * jnp.arange(HIDDEN, dtype=jnp.float32))


@dataclass(frozen=True)
class _SizesCell(GatedCell):
    gates: ClassVar = ("n",)
    axis: int = -1

    def update(self, state, x_gates, h_gates):
        return Hidden(jnp.tanh(x_gates[0] + h_gates[0]) / state.h.shape[self.axis] ** 0.5)


@dataclass(frozen=True)
class _OneNumberCell(_DividesCell):
    def update(self, state, x_gates, h_gates, scale):
        return Hidden(jnp.tanh(x_gates[0] + h_gates[0]) * jnp.sum(scale))


CASES = [
    (GRUCell(), {"reset": jnp.ones((TIME, BATCH), bool)}, "the kernels know no `reset`"),
    (GRUCell(), {"h_mask": jnp.ones((BATCH, HIDDEN))}, "the kernels know no `h_mask`"),
    (
        GRUCell(),
        {"zoneout": Hidden(jnp.ones((TIME, BATCH, HIDDEN), bool))},
        "`zoneout` should have rates where `backend` is 'pallas'",
    ),
    (GRUCell(), {"dtype": jnp.float16}, "the kernels compute in float32 or bfloat16, not in float16"),
    (_RollsCell(), {}, "`update` of the _RollsCell uses `rev`, which the kernels do not know as elementwise"),
    (_ReadsCell(), {}, "`update` of the _ReadsCell"),
    (_SizesCell(), {}, "`update` of the _SizesCell computes with the size of its arrays, and the kernels pad hidden_size=7 to 16"),
    (_SizesCell(axis=0), {}, "`update` of the _SizesCell computes with the size of the batch, which the kernels pad"),
    (_OneNumberCell(), {}, "makes a single number of its parameters, which should be broadcast to the units"),
    (GRUCell(), {"strategy": "scan_gated"}, "`backend` should be 'auto' where `strategy` says how it is computed, got 'pallas'"),
]


@pytest.mark.parametrize(("cell", "options", "text"), CASES, ids=[text for *_, text in CASES])
def test_what_the_kernels_do_not_know_is_refused(cell, options, text):
    params, xs, _ = setting(cell)
    with pytest.raises(ValueError, match=text):
        unroll(cell, params, xs, backend="pallas", **options)


def test_an_unknown_backend_is_refused_by_every_door():
    text = "`backend` should be one of 'auto', 'xla', 'pallas', 'cudnn', got 'triton'"
    params, xs, _ = setting(GRUCell())
    with unannotated(), pytest.raises(ValueError, match=f"unroll: {text}"):
        unroll(GRUCell(), params, xs, backend="triton")
    with unannotated(), pytest.raises(ValueError, match=f"GRU: {text}"):
        jaxrnn.linen.GRU(INPUT, HIDDEN, backend="triton")


def test_auto_is_the_loops_of_jax():
    """On every platform, until a device has shown otherwise."""
    params, xs, _ = setting(GRUCell())
    auto, xla = (str(jax.make_jaxpr(lambda xs, b=b: unroll(GRUCell(), params, xs, backend=b))(xs)) for b in ("auto", "xla"))
    assert auto == xla and "rnn_forward" not in auto


# cuDNN -------------------------------------------------------------------------------------------------------------------


def reference_lstm(sizes, x, h, c, weights, lengths):
    arrays = rnn.unpack_lstm_weights(weights, *sizes, 1, False)
    return rnn.lstm_ref(x, h, c, *arrays, lengths, *sizes, 1, 0.0, False)


def reference_gradient(sizes, known, cotangents):
    return jax.vjp(lambda *a: reference_lstm(sizes, *a, known[4]), *known[:4])[1](tuple(cotangents))


@pytest.fixture
def reference_for_cudnn(monkeypatch):
    """Programs for a CPU run JAX's reference implementation, which reads the same weights and lengths."""
    monkeypatch.setattr(cudnn, "reserve_size", lambda *_: 1)
    cudnn.forward.lower(reference_lstm, "cpu")
    cudnn.stored.lower(lambda sizes, *trees: (*reference_lstm(sizes, *trees), jnp.zeros(1)), "cpu")
    cudnn.backward.lower(reference_gradient, "cpu")
    jax.clear_caches()
    yield
    for loop in (cudnn.forward, cudnn.stored, cudnn.backward):
        loop.lower(loop.meaning, "cpu")
    jax.clear_caches()


MASK = jnp.asarray(np.random.default_rng(3).random((TIME, BATCH)) < 0.6).at[:, 2].set(False)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("options", [{}, {"lengths": LENGTHS}, {"mask": MASK}], ids=["all", "lengths", "mask"])
def test_cudnn_is_given_what_it_reads(options, reverse, reference_for_cudnn):
    """Weights, lengths, 0 among them, gaps, both directions; NaN in padding."""
    cell = LSTMCell()
    params, xs, state = setting(cell)
    valid = options.get("mask", jnp.arange(TIME)[:, None] < LENGTHS if "lengths" in options else jnp.ones((TIME, BATCH), bool))
    arrays = params, jnp.where(valid[..., None], xs, jnp.nan), state
    alike(*(results(cell, backend, arrays, reverse=reverse, **options) for backend in ("cudnn", "xla")))


@pytest.mark.slow
@pytest.mark.newest
def test_cudnn_runs_layers_and_directions_without_biases(reference_for_cudnn):
    make = partial(Stack, LSTMCell(), INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=False)
    stack, plain = make(backend="cudnn"), make()
    params, xs = drawn_like(stack.init(jax.random.key(0))), normal(TIME, BATCH, INPUT, dtype=jnp.float32)
    of = lambda stack: jit(jax.value_and_grad(lambda params: weighted(stack.apply(params, xs, lengths=LENGTHS))))(params)
    close(of(stack), of(plain), 1e-4)


def test_weights_lie_as_jax_reads_them():
    params = drawn_like(LSTMCell().init(jax.random.key(0), INPUT, HIDDEN))
    flat = cudnn.flat_weights(params)
    assert flat.size == rnn.get_num_params_in_lstm(INPUT, HIDDEN, 1, False)
    got = [array[0] for array in rnn.unpack_lstm_weights(flat, INPUT, HIDDEN, 1, False)]
    turned = lambda w: np.moveaxis(w, 0, -1).reshape(-1, w.shape[0])
    equal(got, [turned(params.w_ih), turned(params.w_hh), np.ravel(params.b_ih), np.ravel(params.b_hh)])


class _OtherLSTMCell(LSTMCell):
    def update(self, state, x_gates, h_gates):
        return super().update(state, x_gates, h_gates)._replace(c=state.c)


@pytest.mark.parametrize(
    ("cell", "options", "text"),
    [
        (GRUCell(), {}, r"not the equations of GRUCell\(\)"),
        (LSTMCell(activation="relu"), {}, r"not the equations of LSTMCell\(activation='relu'\)"),
        (_OtherLSTMCell(), {}, r"not the equations of _OtherLSTMCell\(\)"),
        (LSTMCell(), {"dtype": jnp.bfloat16}, "JAX reaches cuDNN in float32, not in bfloat16"),
        (LSTMCell(), {"return_states": True}, "no other state"),
        (LSTMCell(), {"reset": jnp.ones((TIME, BATCH), bool)}, "cuDNN knows no `reset`"),
        (LSTMCell(), {}, "compiled for an NVIDIA GPU"),
    ],
    ids=str,
)
def test_what_cudnn_does_not_know_is_refused(cell, options, text):
    params, xs, _ = setting(cell)
    with pytest.raises(ValueError, match=f"unroll: `backend` should be .*{text}"):
        unroll(cell, params, xs, backend="cudnn", **options)


@pytest.mark.parametrize("name", [name for name in TRANSFORMATIONS if name not in ("checkpoint", "disable_jit")])
def test_a_transformation_that_cudnn_does_not_know_is_refused(name, reference_for_cudnn):
    with pytest.raises(ValueError, match=r"only where cuDNN can run: .* no `jax.vmap`, no `jax.jvp`, no derivative of higher"):
        TRANSFORMATIONS[name](*loss_of(LSTMCell(), "cudnn", setting(LSTMCell())))


def test_what_update_reads_from_outside_is_what_it_was_when_unroll_was_called():
    """Loops are lowered, and transposed, after their call; another value by then is refused, and in a new call seen."""
    scale = 0.3

    @dataclass(frozen=True)
    class Scaled(GatedCell):
        gates: ClassVar = ("n",)

        def update(self, state, x_gates, h_gates):
            return Hidden(jnp.tanh(scale * (x_gates[0] + h_gates[0])))

    cell, arrays = Scaled(), setting(LiGRUCell())
    params = jax.tree.map(lambda a: a[..., :1, :], arrays[0])
    gradient = lambda backend: jax.grad(lambda p: weighted(unroll(cell, p, *arrays[1:], backend=backend)))(params)
    first = gradient("xla")
    traced = jax.jit(gradient, static_argnums=0).trace("pallas")
    _, pull = jax.vjp(lambda p: weighted(unroll(cell, p, *arrays[1:], backend="pallas")), params)
    scale = 0.5
    for late in (traced.lower, lambda: pull(jnp.ones(()))):
        with pytest.raises(ValueError, match=r"Scaled: `update` should read from outside what it read when it was called, got an"):
            late()
    close(gradient("pallas"), gradient("xla"), 1e-5)
    assert not np.allclose(gradient("pallas").w_hh, first.w_hh)
