"""Several devices: names of axes, and runs sharded over batch, over hidden and over both, which give the single-device result."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import jit, quickly, small_segments

import jaxrnn
from jaxrnn import CELLS, Stack
from jaxrnn.cells import Cell, DiagonalCell, GatedCell, Hidden, LinearCell, axis_names
from jaxrnn.cells.base import broadcast_like

TIME, BATCH, INPUT, HIDDEN, SPACE = 5, 4, 3, 12, (6, 7)
RULES = (("input", None), ("output", None), ("gates", None), ("hidden", "model"))

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit


def described(name):
    return CELLS[name](**({"proj_size": 8} if name == "ProjectedLSTM" else {}))


def setting(cell, **options):
    """A stack, its parameters, inputs and what says which steps are valid and which start again."""
    stack = Stack(cell, INPUT, HIDDEN, **options)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), stack.init(jax.random.key(0)))
    xs = jnp.asarray(rng.standard_normal((TIME, BATCH, *SPACE[: cell.event_ndim - 1], INPUT)), jnp.float32)
    given = {"lengths": jnp.array([5, 0, 3, 4]), "reset": jnp.asarray(rng.random((TIME, BATCH)) < 0.3)}
    return stack, params, xs, given


def gradient_of(stack):
    """A function to the gradients by parameters and inputs, and the output; the loss sees outputs and final states."""

    def loss(params, xs, given):
        output, states = stack.apply(params, xs, **given)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((output, states))), output

    return jax.jit(jax.grad(loss, (0, 1), has_aux=True), compiler_options=quickly)


def shardings(mesh, stack, params):
    """Where the rules put each parameter, by the names of its axes."""
    rules = dict(RULES)
    spec = lambda a, names: NamedSharding(mesh, P(*map(rules.get, names)))
    return jax.tree.map(spec, params, stack.axis_names(params))


def run_sharded(shape, axis_type, stack, params, xs, given):
    """The result, and the compiled program's text."""
    mesh = jax.make_mesh(shape, ("data", "model"), axis_types=(axis_type,) * 2)
    placed = jax.device_put(params, shardings(mesh, stack, params))
    xs = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))
    with jax.set_mesh(mesh):
        compiled = gradient_of(stack).lower(placed, xs, given).compile()
        return jax.device_get(compiled(placed, xs, given)), compiled.as_text()


def close(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    size = max(float(np.abs(a).max()) for a in jax.tree.leaves(want))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6 * size), got, want)


def gathered(text):
    """The number of entries of every array that devices collect the parts of; no other exchange may be but sums."""
    assert not re.search(r"(all-to-all|collective-permute|collective-broadcast)[-\w]*\(", text)
    shapes = re.findall(r"\w+\[([\d,]*)\]\S* all-gather(?:-start)?\(", text)
    return [int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes]


def assert_gathers_no_more_than_it_must(text, shape):
    """Batch alone: nothing. Hidden: `h` at each step, once in each of the four loops, and the sequence that the next layer reads,
    its gradient too. No weight, no weight gradient, no gate, no cell state over time."""
    sizes, rows = gathered(text), BATCH // shape[0]
    if shape[1] == 1:
        assert sizes == []
    else:
        assert set(sizes) <= {rows * HIDDEN, TIME * rows * HIDDEN}
        assert sizes.count(rows * HIDDEN) <= 4
        assert len(sizes) <= 4 + 3


# Results -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", CELLS)
def test_every_cell_is_sharded_over_hidden(name):
    """On an explicit mesh, which is what `jax.make_mesh` gives: outputs, states, all gradients."""
    parts = setting(described(name))
    want = jax.device_get(gradient_of(parts[0])(*parts[1:]))
    close(run_sharded((1, 2), EXPLICIT, *parts)[0], want)


def layers():
    return setting(jaxrnn.LSTMCell(), num_layers=2)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("shape", [(2, 1), (1, 2)], ids=["batch", "hidden"])
def test_two_devices_give_the_result_of_one_and_gather_what_they_must(shape):
    parts = layers()
    want = jax.device_get(gradient_of(parts[0])(*parts[1:]))
    for axis_type in (AUTO, EXPLICIT):
        got, text = run_sharded(shape, axis_type, *parts)
        close(got, want)
        assert_gathers_no_more_than_it_must(text, shape)


def four_devices():
    """What the test below runs with four devices, in a process of its own."""
    parts = layers()
    want = jax.device_get(gradient_of(parts[0])(*parts[1:]))
    for shape in ((4, 1), (1, 4), (2, 2)):
        for axis_type in (AUTO, EXPLICIT):
            got, text = run_sharded(shape, axis_type, *parts)
            close(got, want)
            assert_gathers_no_more_than_it_must(text, shape)
    for name, options in (("GRU", {"bidirectional": True, "num_layers": 2}), ("ProjectedLSTM", {}), ("ConvLSTM1D", {})):
        parts = setting(described(name), **options)
        want = jax.device_get(gradient_of(parts[0])(*parts[1:]))
        close(run_sharded((2, 2), EXPLICIT, *parts)[0], want)
    got, text = run_sharded((4, 1), AUTO, *parts)  # convolutions fold time and batch into one axis
    close(got, want)
    assert gathered(text) == []


@pytest.mark.slow
@pytest.mark.newest
def test_four_devices_give_the_result_of_one_and_gather_what_they_must():
    """Over batch, hidden and both, automatic and explicit axes."""
    lines = [
        "import jax",
        "jax.config.update('jax_num_cpu_devices', 4)",
        "jax.config.update('jax_numpy_dtype_promotion', 'strict')",
        "import test_sharding",
        "test_sharding.four_devices()",
    ]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.newest
def test_pieces_of_time_with_a_batch_on_an_explicit_mesh():
    """A piece longer than the sequence, and pieces of pieces, in both of which there is a rest."""
    cell = CELLS["RNN"]()
    params, xs = cell.init(jax.random.key(0), INPUT, HIDDEN), jax.random.normal(jax.random.key(1), (7, BATCH, INPUT))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(EXPLICIT,))
    for options in ({"truncate": 9}, {"truncate": 5, "remat": True}):
        run = jit(jax.grad(lambda params, xs, options=options: jnp.sum(jnp.sin(jaxrnn.unroll(cell, params, xs, **options)[1]))))
        want = run(params, xs)
        with jax.set_mesh(mesh):
            close(run(params, jax.device_put(xs, NamedSharding(mesh, P(None, "data")))), want)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["LSTM", "GRU", "ChungGRU"])
def test_segments_of_time_with_a_batch_on_an_explicit_mesh_and_in_shard_map(name, monkeypatch):
    """37 steps in two segments and a rest, forward and backward."""
    cell = CELLS[name]()
    params, xs = cell.init(jax.random.key(0), INPUT, HIDDEN), jax.random.normal(jax.random.key(1), (37, BATCH, INPUT))
    total = lambda params, xs: jnp.sum(jnp.sin(jaxrnn.unroll(cell, params, xs)[1]))
    want = jit(jax.value_and_grad(total))(params, xs)
    small_segments(monkeypatch)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(EXPLICIT,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))
        close(jit(jax.value_and_grad(lambda params, xs: total(params, xs)))(params, sharded), want)
    close(jit(jax.value_and_grad(lambda params, xs: total(params, xs)))(params, sharded), want)  # not entered
    whole = jax.device_put(params, NamedSharding(mesh, P()))
    close(jit(jax.value_and_grad(lambda params, xs: total(params, xs)))(whole, xs), want)
    mesh = jax.make_mesh((2, 1), ("data", "model"), axis_types=(EXPLICIT, AUTO))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))
        close(jit(jax.value_and_grad(lambda params, xs: total(params, xs)))(params, sharded), want)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AUTO,))
    each = lambda params, xs: jax.lax.psum(total(params, xs), "data")
    mapped = jax.shard_map(each, mesh=mesh, in_specs=(P(), P(None, "data")), out_specs=P())
    close(jit(jax.value_and_grad(mapped))(params, xs), want)


@dataclass(frozen=True)
class ReadsMore(GatedCell):
    """Adds a side input of each step, noise from a key of each step, and the mean of a memory."""

    gates: ClassVar = ("n",)
    per_step: ClassVar = ("side", "key")
    context: ClassVar = ("memory",)

    def update(self, state, x_gates, h_gates, *, side, key, memory):
        noise = jax.random.normal(key, state.h.shape[-1:], state.h.dtype)
        return Hidden(jnp.tanh(x_gates[0] + h_gates[0] + side + 0.1 * broadcast_like(noise, state.h) + memory.mean(1)))


@dataclass(frozen=True)
class ReadsMorePlainly(Cell):
    gates, per_step, context = ReadsMore.gates, ReadsMore.per_step, ReadsMore.context
    update, recur = ReadsMore.update, ReadsMore.recur


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("cell", "placed"), [(ReadsMore(), False), (ReadsMorePlainly(), True)], ids=["gated", "plain, placed"])
def test_side_inputs_on_an_explicit_mesh(cell, placed):
    """With the batch in parts, as `xs` is; or given without a place. Two layers, masks, gradients by all that is given."""
    stack, params, xs, given = setting(cell, num_layers=2)
    rng = np.random.default_rng(4)
    side = jnp.asarray(rng.standard_normal((TIME, BATCH, HIDDEN)), jnp.float32)
    memory = jnp.asarray(rng.standard_normal((BATCH, 6, HIDDEN)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), TIME)

    def loss(params, xs, side, memory):
        further = {"per_step": {"side": side, "key": keys}, "context": {"memory": memory}}
        output, states = stack.apply(params, xs, **given, **further)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((output, states))), output

    compute = lambda: jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))
    want = jax.device_get(compute()(params, xs, side, memory))
    assert all(np.abs(a).max() > 1e-3 for a in jax.tree.leaves(want))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(EXPLICIT,))
    put = lambda a, spec: jax.device_put(a, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        if placed:
            side, memory = put(side, P(None, "data")), put(memory, P("data"))
        got = compute()(params, put(xs, P(None, "data")), side, memory)
    close(jax.device_get(got), want)
    assert got[1].sharding.spec[1] == "data"


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("name", ["LSTM", "MGU"])
def test_a_mesh_for_the_batch_alone_need_not_be_entered(name):
    """Inputs lie on it, parameters anywhere. (Hidden axes and convolutions do want `jax.set_mesh`, from jax 0.12 on.)"""
    stack, params, xs, given = setting(described(name))
    want = jax.device_get(gradient_of(stack)(params, xs, given))
    mesh = jax.make_mesh((2,), ("data",))
    xs = jax.device_put(xs, NamedSharding(mesh, P(None, "data")))
    got = gradient_of(stack)(params, xs, given)
    assert got[1].sharding.spec[1] == "data"
    close(jax.device_get(got), want)


# Names -------------------------------------------------------------------------------------------------------------------


def arrays_and_names(tree, names):
    return list(zip(jax.tree.leaves(tree), jax.tree.leaves(names, is_leaf=lambda n: type(n) is tuple), strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_every_array_of_every_cell_has_a_name_for_each_axis(name):
    """Right for its sizes, all of which differ: but for axes of space, and the rows of peepholes and norms."""
    cell = described(name)
    sizes = {"input": INPUT, "output": cell.output_size(HIDDEN), "hidden": HIDDEN, "gates": len(cell.gates)}
    params = cell.init(jax.random.key(0), INPUT, HIDDEN)
    for array, names in arrays_and_names(params, axis_names(cell, params)):
        assert len(names) == array.ndim
        assert "hidden" in names
        fewer = "gates" if array is params.w_hh else None  # some gates may not read `h`
        assert all(sizes[n] == size for n, size in zip(names, array.shape, strict=True) if n and n != fewer)
    named = axis_names(cell, params)
    assert named.w_ih[-3:] == (None if name == "RGLRU" else "input", "gates", "hidden")
    assert named.b_ih == (None if name == "LRU" else ("gates", "hidden"))
    if isinstance(cell, LinearCell):
        assert named.w_hh is None
    else:
        assert named.w_hh[-3:] == (() if isinstance(cell, DiagonalCell) else ("output",)) + ("gates", "hidden")


def lstm(**options):
    return jaxrnn.LSTM(INPUT, HIDDEN, 2, learn_initial_state=True, **options, rngs=nnx.Rngs(0))


def specs_of(stack, params, initial):
    """What the rules make of the names, written out by hand."""
    whole, row = P(None, None, "model"), P(None, "model")
    layers = tuple((jaxrnn.GateParams(whole, whole, row, row),) for _ in params)
    return layers, tuple((jaxrnn.LSTMState(P("model"), P("model")),) for _ in initial)


@pytest.mark.slow
@pytest.mark.newest
def test_rules_make_specs_of_the_names_for_nnx():
    module = lstm()
    want = specs_of(module.stack, module.params, module.learned)
    mesh = jax.make_mesh((1, 2), ("data", "model"))
    with nn.logical_axis_rules(RULES):
        got = nnx.get_partition_spec(nnx.state(module, nnx.Param))
        placed = jax.device_put(nnx.state(module, nnx.Param), nnx.get_named_sharding(nnx.state(module, nnx.Param), mesh))
    plain = lambda tree: jax.tree.map(lambda v: v.get_value(), tree, is_leaf=lambda v: isinstance(v, nnx.Variable))
    flat = lambda tree: {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert sorted(map(str, flat(plain(got)).values())) == sorted(map(str, jax.tree.leaves(want)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((BATCH, TIME, INPUT)), jnp.float32)
    alone = jax.device_get(jax.jit(lambda m: m(x))(module))
    nnx.update(module, placed)
    assert module.params[1][0].w_hh.get_value().sharding.spec == P(None, None, "model")
    assert module.params[1][0].w_hh.out_sharding == ("output", "gates", "hidden")
    with jax.set_mesh(mesh):
        close(jax.device_get(jax.jit(lambda m: m(x))(module)), alone)


@pytest.mark.slow
@pytest.mark.newest
def test_rules_make_specs_of_the_names_for_linen():
    module = jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, learn_initial_state=True, named_axes=True)
    x = jnp.ones((BATCH, TIME, INPUT))
    boxed = jax.eval_shape(module.init, jax.random.key(0), x)
    got = nn.logical_to_mesh(nn.get_partition_spec(boxed), [("hidden", "model")])["params"]
    layers, initial = specs_of(module.stack, range(2), range(2))
    assert got == jaxrnn.trees.to_dict(layers, initial)
    assert nn.logical_to_mesh(module.axis_names(), [("hidden", "model")]) == got
    assert jaxrnn.linen.LSTM(INPUT, HIDDEN, 2, learn_initial_state=True).axis_names() == module.axis_names()
    variables = module.init(jax.random.key(0), x)
    run = jax.jit(lambda v: module.apply(v, x)[0])
    np.testing.assert_array_equal(run(variables), run(nn.unbox(variables)))
    with jax.set_mesh(jax.make_mesh((2,), ("data",))):  # a mesh without these names is none of its business
        np.testing.assert_array_equal(run(variables), run(nn.unbox(variables)))


@pytest.mark.slow
@pytest.mark.newest
def test_names_stay_with_what_is_made_of_the_parameters():
    """Split and merged, copied, and the moments of an optimizer; in a mesh that has other names, too."""
    with jax.set_mesh(jax.make_mesh((2,), ("data",))):
        module = jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(0))
    names = ("output", "gates", "hidden")
    for copied in (nnx.clone(module), nnx.merge(*nnx.split(module)), jax.tree.map(jnp.ones_like, module)):
        assert copied.params[0][0].w_hh.out_sharding == names
    optimizer = nnx.Optimizer(module, optax.adam(1e-3), wrt=nnx.Param)
    of_moments = [v.out_sharding for path, v in nnx.to_flat_state(nnx.state(optimizer)) if "w_hh" in path or path[-1] == 1]
    assert names in of_moments
    members = nnx.vmap(lambda key: jaxrnn.GRU(INPUT, HIDDEN, rngs=nnx.Rngs(key)), transform_metadata={nnx.PARTITION_NAME: "member"})
    assert members(jax.random.split(jax.random.key(0), 3)).params[0][0].w_hh.out_sharding == ("member", *names)
