"""Time in parts over devices, for linear cells: what one device gives, with one row of each part crossing; others are refused."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import close, drawn_like, jit, normal, small_segments, unannotated, weighted

import jaxrnn
from jaxrnn import CELLS, Stack, linear_scan, unroll
from jaxrnn.cells import LinearCell

LINEAR = [name for name, cell in CELLS.items() if issubclass(cell, LinearCell)]
TIME, BATCH, HIDDEN = 14, 3, 4
"""Each of two devices has seven steps: an odd number, and more than one level of halves."""


def mesh_of(kind, size=2):
    return jax.make_mesh((size,), ("time",), axis_types=(kind,))


def everything(cell):
    """Parameters, inputs, both states; and two sets of options, which together have them all. The second part begins with a reset,
    or with one behind steps that are not valid."""
    params = drawn_like(cell.init(jax.random.key(0), HIDDEN, HIDDEN, dtype=jnp.float64))
    xs = normal(TIME, BATCH, HIDDEN, seed=1)
    state = drawn_like(cell.initial_state(params, xs[0]), seed=2)
    initial = drawn_like(state, seed=3)
    rng = np.random.default_rng(4)
    draw = lambda rate: jnp.asarray(rng.random((TIME, BATCH)) < rate)
    kept = type(state)(*(jnp.asarray(rng.random((TIME, *field.shape)) < 0.3) for field in state))
    ragged = {"lengths": jnp.array([TIME, 9, 0]), "reset": draw(0.2), "zoneout": kept}
    mask = draw(0.7).at[7:, 1].set(False).at[7:9, 2].set(False)  # one sequence has no valid step in the second part
    gaps = {"mask": mask.at[7, 0].set(True).at[9, 2].set(True), "reset": draw(0.3).at[7, 0].set(True).at[9, 2].set(True)}
    return (params, xs, state, initial), (ragged, gaps)


BY_TIME = ("mask", "reset", "zoneout")


def in_shard_map(run, mesh):
    """`run` with parts of what has time, and the whole of what has not."""

    def on_one(params, xs, state, initial, by_time, rest):
        return run(params, xs, state, initial, **by_time, **rest, time_axis="time")

    def call(params, xs, state, initial, **options):
        by_time = {name: value for name, value in options.items() if name in BY_TIME}
        rest = {name: value for name, value in options.items() if name not in BY_TIME}
        specs = P(), P("time"), P(), P(), P("time"), P()
        mapped = jax.shard_map(on_one, mesh=mesh, in_specs=specs, out_specs=(P(), P("time")))
        return mapped(params, xs, state, initial, by_time, rest)

    return call


def gradients(run, args, given):
    """Value and gradients of a loss that sees outputs and final states, for every set of options."""
    loss = lambda options, *args: weighted(jax.tree.map(jnp.sin, run(*args, **options)))
    return [jax.value_and_grad(partial(loss, options), (0, 1, 2, 3))(*args) for options in given]


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize(("strategy", "kind"), [("scan_linear", AxisType.Auto), ("associative", AxisType.Explicit)])
@pytest.mark.parametrize("name", LINEAR)
def test_two_devices_give_the_values_and_gradients_of_one(name, strategy, kind, x64):
    """Ragged, with gaps, resets, zoneout, other start and initial states; in both directions; said by the mesh or by the user."""
    cell, mesh = CELLS[name](), mesh_of(kind)
    args, given = everything(cell)
    for reverse in (False, True):

        def run(params, xs, state, initial, reverse=reverse, **options):
            return unroll(cell, params, xs, state, initial=initial, reverse=reverse, strategy=strategy, **options)

        want = jax.device_get(jit(partial(gradients, run))(args, given))
        if kind == AxisType.Auto:
            got = jit(partial(gradients, in_shard_map(run, mesh)))(args, given)
        else:
            split = args[0], jax.device_put(args[1], NamedSharding(mesh, P("time"))), *args[2:]
            with jax.set_mesh(mesh):
                got = jit(partial(gradients, run))(split, given)
            assert got[0][1][1].sharding.spec[0] == "time"
        close(jax.device_get(got), want)


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", ["LRU", "RGLRU"])
def test_the_segments_of_a_part_change_nothing(name, reverse, monkeypatch, x64):
    """Each of two parts has two segments of 16 steps and a rest of 5. An LRU has the same A at every step, an RG-LRU has not."""
    small_segments(monkeypatch)
    cell, mesh = CELLS[name](), mesh_of(AxisType.Auto)
    params, xs = drawn_like(cell.init(jax.random.key(0), HIDDEN, HIDDEN, dtype=jnp.float64)), normal(74, BATCH, HIDDEN)
    state = drawn_like(cell.initial_state(params, xs[0]), seed=2)
    run = lambda params, xs, state, initial, **options: unroll(cell, params, xs, state, reverse=reverse, **options)
    given = ({}, {"mask": jnp.arange(74)[:, None] % 5 < jnp.arange(3, 6)})
    args = params, xs, state, state
    want = jax.device_get(jit(partial(gradients, run))(args, given))
    close(jax.device_get(jit(partial(gradients, in_shard_map(run, mesh)))(args, given)), want)


def second_derivatives(loss, args):
    """A second derivative in the direction of the arguments themselves; and derivatives of each of two examples by `vmap`."""
    hessian = jax.jvp(jax.grad(loss, range(len(args))), args, args)[1]
    each = jax.vmap(jax.grad(loss, range(len(args))))(*jax.tree.map(lambda a: jnp.stack([a, 2 * a]), args))
    return hessian, each


@pytest.mark.slow
@pytest.mark.newest
@pytest.mark.parametrize("form", ["loop", "associative"])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_a_linear_scan_in_parts_has_all_derivatives(form, pairs, constant, x64):
    steps = 1 if constant else TIME
    a = tuple(0.4 * jnp.tanh(normal(steps, BATCH, HIDDEN, seed=seed)) for seed in (1, 2))
    b = normal(TIME, BATCH, HIDDEN, seed=3), normal(TIME, BATCH, HIDDEN, seed=4)
    h_0 = normal(BATCH, HIDDEN, seed=5), normal(BATCH, HIDDEN, seed=6)
    a, b, h_0 = (a, b, h_0) if pairs else (a[0], b[0], h_0[0])
    reset = jnp.zeros((TIME, BATCH), bool).at[9, 1].set(True)
    run = partial(linear_scan, reverse=True, form=form)
    loss = lambda a, b, h_0: weighted(jax.tree.map(jnp.sin, run(a, b, h_0, reset=reset)))
    want = jit(partial(second_derivatives, loss))((a, b, h_0))
    specs = P() if constant else P("time"), P("time"), P(), P("time")
    inside = jax.shard_map(
        lambda a, b, h_0, reset: run(a, b, h_0, reset=reset, time_axis="time"),
        mesh=mesh_of(AxisType.Auto), in_specs=specs, out_specs=P("time"),
    )  # fmt: skip
    parted = lambda a, b, h_0: weighted(jax.tree.map(jnp.sin, inside(a, b, h_0, reset)))
    close(jit(partial(second_derivatives, parted))((a, b, h_0)), want)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        split = jax.device_put(b, NamedSharding(mesh, P("time")))
        close(jax.device_get(jit(partial(second_derivatives, loss))((a, split, h_0))), jax.device_get(want))


def test_nan_behind_a_reset_and_in_padding_stays_in_its_part(x64):
    """NaN in the first part reaches nothing behind a reset in the second; in padding, nothing at all, not even a gradient."""
    cell = CELLS["MinGRU"]()
    (params, xs, state, initial), _ = everything(cell)
    run = in_shard_map(partial(lambda p, x, s, i, **given: unroll(cell, p, x, s, initial=i, **given)), mesh_of(AxisType.Auto))
    reset = jnp.zeros((TIME, BATCH), bool).at[10].set(True)
    loss = lambda xs: weighted(run(params, xs, state, initial, reset=reset)[1][10:])
    value, gradient = jit(jax.value_and_grad(loss))(xs.at[:10].set(jnp.nan))
    assert np.isfinite(value)
    assert np.isfinite(gradient[10:]).all()
    reset = jnp.zeros((TIME, BATCH), bool).at[3].set(True)  # in the first part, for a start that the second must not see
    loss = lambda xs, state: weighted(run(params, xs, state, initial, reset=reset)[1][3:])
    value, gradients = jit(jax.value_and_grad(loss, (0, 1)))(xs, jax.tree.map(lambda s: s * jnp.nan, state))
    assert np.isfinite(value)
    assert np.isfinite(gradients[0][3:]).all()
    lengths = jnp.array([9, 3, 0])
    padding = jnp.arange(TIME)[:, None, None] >= lengths[:, None]
    loss = lambda xs: weighted(run(params, xs, state, initial, lengths=lengths))
    clean, dirty = (jit(jax.value_and_grad(loss))(jnp.where(padding, fill, xs)) for fill in (0.0, jnp.nan))
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)


def test_a_start_that_looks_at_the_input_is_that_of_the_first_part(x64):
    class Looking(type(CELLS["MinGRU"]())):
        def initial_state(self, params, x):
            return super().initial_state(params, x)._replace(h=x + 1)

    cell = Looking()
    (params, xs, *_), _ = everything(CELLS["MinGRU"]())
    run = lambda params, xs: weighted(unroll(cell, params, xs, reset=jnp.zeros((TIME, BATCH), bool).at[9].set(True)))
    want = jit(jax.value_and_grad(run, (0, 1)))(params, xs)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        got = jit(jax.value_and_grad(run, (0, 1)))(params, jax.device_put(xs, NamedSharding(mesh, P("time"))))
    close(jax.device_get(got), jax.device_get(want))


def layers():
    """Two layers in both directions of a complex cell: a module, inputs, start states, lengths."""
    module = jaxrnn.Recurrent(CELLS["LRU"](), HIDDEN, HIDDEN, 2, bidirectional=True, residual=False, rngs=nnx.Rngs(0))
    x = normal(BATCH, TIME, HIDDEN, seed=1)
    h_0 = normal(4, BATCH, 2 * HIDDEN, seed=2)
    return module, x, h_0, jnp.array([TIME, 9, 0])


def test_modules_in_parts_of_time():
    module, x, h_0, lengths = layers()
    graph, weights = nnx.split(module)

    def value(run, weights, x, h_0):
        return weighted(jax.tree.map(jnp.sin, run(nnx.merge(graph, weights), x, h_0)))

    whole = lambda module, x, h_0: module(x, h_0=h_0, lengths=lengths)
    gradient = lambda run: jit(jax.value_and_grad(partial(value, run), (0, 1, 2)))
    want = jax.device_get(gradient(whole)(weights, x, h_0))

    def parted(module, x, h_0):
        one = lambda weights, x, h_0: nnx.merge(graph, weights)(x, h_0=h_0, lengths=lengths, time_axis="time")
        specs = {"in_specs": (P(), P(None, "time"), P()), "out_specs": (P(None, "time"), P())}
        return jax.shard_map(one, mesh=mesh_of(AxisType.Auto), **specs)(nnx.state(module), x, h_0)

    close(jax.device_get(gradient(parted)(weights, x, h_0)), want, 2e-5)
    mesh = mesh_of(AxisType.Explicit)
    with jax.set_mesh(mesh):
        split = jax.device_put(x, NamedSharding(mesh, P(None, "time")))
        close(jax.device_get(gradient(whole)(weights, split, h_0)), want, 2e-5)


def test_parts_draw_for_themselves_but_for_what_a_sequence_shares():
    """Dropout and zoneout at each step differ from part to part; dropout of a whole sequence is one draw for all."""
    xs = jnp.ones((TIME, BATCH, HIDDEN))
    for options, alike in (({"num_layers": 2, "dropout": 0.5}, False), ({"zoneout": 0.5}, False), ({"input_dropout": 0.5}, True)):
        stack = Stack(CELLS["MinGRU"](), HIDDEN, HIDDEN, **options)
        params = drawn_like(stack.init(jax.random.key(0)))
        reset = jnp.ones((TIME, BATCH), bool)  # each step by itself, so that parts can be compared

        def one(params, xs, reset, stack=stack):
            return stack.apply(params, xs, reset=reset, key=jax.random.key(1), time_axis="time")[0]

        specs = P(), P("time"), P("time")
        run = jax.shard_map(one, mesh=mesh_of(AxisType.Auto), in_specs=specs, out_specs=P("time"))
        first, second = np.split(np.asarray(jit(run)(params, xs, reset)), 2)
        assert (np.abs(first - second).max() < 1e-6) == alike
        assert np.abs(first[0] - first[1]).max() > 1e-3 or alike


EXCHANGE = r"= (.*?) (all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all)(?:-start)?\("


@pytest.mark.newest
@pytest.mark.parametrize("name", LINEAR)
def test_one_row_of_each_part_crosses(name):
    """In the compiled training step: nothing larger than a row of the state for each device, and the gradients of the weights."""
    time = 4096
    cell, mesh = CELLS[name](), mesh_of(AxisType.Explicit)
    params = cell.init(jax.random.key(0), HIDDEN, HIDDEN)
    xs = jax.ShapeDtypeStruct((time, BATCH, HIDDEN), jnp.float32, sharding=NamedSharding(mesh, P("time")))
    with jax.set_mesh(mesh):
        step = jax.jit(jax.grad(lambda params, xs: jnp.sum(jnp.sin(unroll(cell, params, xs)[1])), (0, 1)))
        text = step.lower(params, xs).compile().as_text()
    exchanges = [(kind, *re.findall(r"\[([\d,]*)\]", shapes)) for shapes, kind in re.findall(EXCHANGE, text)]
    assert {kind for kind, *_ in exchanges} == {"all-reduce"}
    entries = lambda shape: int(np.prod([int(size) for size in shape.split(",") if size]))
    weights = sum(a.size for a in jax.tree.leaves(params))
    for kind, *shapes in exchanges:
        assert sum(map(entries, shapes)) <= weights + 16 * BATCH * HIDDEN, (kind, shapes)


def test_what_cannot_be_computed_in_parts_of_time_is_refused():
    xs, mesh = normal(4, BATCH, HIDDEN), mesh_of(AxisType.Explicit)
    split = jax.device_put(xs, NamedSharding(mesh, P("time")))
    linear, dense, diagonal = (CELLS[name]() for name in ("LRU", "GRU", "ParaGRU"))
    params = {cell: cell.init(jax.random.key(0), HIDDEN, HIDDEN) for cell in (linear, dense, diagonal)}
    for cell in (dense, diagonal):
        kind = type(cell).__name__
        with pytest.raises(
            ValueError, match=rf"unroll: `xs` should have all of its time .* {kind}, .* in parts over 'time'.\nShard"
        ):
            unroll(cell, params[cell], split)
        with pytest.raises(ValueError, match=rf"unroll: `xs` should have all of its time on every device for a {kind}"):
            jax.shard_map(
                lambda xs, cell=cell: unroll(cell, params[cell], xs, time_axis="time")[1],
                mesh=mesh_of(AxisType.Auto), in_specs=P("time"), out_specs=P("time"),
            )(xs)  # fmt: skip
    gru = jaxrnn.GRU(HIDDEN, HIDDEN, batch_first=False, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"GRU: `x` should have all of its time on every device for a GRUCell"):
        gru(split)
    for options in ({"remat": True}, {"truncate": 2}, {"return_states": True}):
        with pytest.raises(ValueError, match=rf"unroll: `{next(iter(options))}` should be left out where time is in parts"):
            unroll(linear, params[linear], split, **options)
    with pytest.raises(
        ValueError, match=r"`time_axis` should be None where the mesh of `xs` is explicit and says 'time', got 'time'"
    ):
        unroll(linear, params[linear], split, time_axis="time")
    with pytest.raises(ValueError, match=r"`time_axis` should be an axis of a `jax.shard_map` around the call, got 'data'"):
        unroll(linear, params[linear], xs, time_axis="data")
    text = r"`time_axis` should be the name of an axis of a mesh, or a tuple of names, got 0"
    with unannotated(), pytest.raises(TypeError, match=text):
        Stack(linear, HIDDEN, HIDDEN).apply(((params[linear],),), xs, time_axis=0)
    with pytest.raises(ValueError, match=r"`strategy` should be one that can run, got 'scan_plain': where time is in parts"):
        unroll(linear, params[linear], split, strategy="scan_plain")
    inside = partial(jax.shard_map, mesh=mesh_of(AxisType.Auto), in_specs=P("time"), out_specs=P("time"))
    lengths = np.array([4, 0, 9])  # of the whole, of which a device sees half
    with pytest.raises(ValueError, match=r"`lengths` should be from 0 to 4, the number of steps, got 9 in row 2"):
        inside(lambda xs: unroll(linear, params[linear], xs, lengths=lengths, time_axis="time")[1])(xs)


def four_devices():
    """Time over two devices and the batch over two; and time over four, named by two axes."""
    cell = CELLS["RGLRU"]()
    params, xs = cell.init(jax.random.key(0), HIDDEN, HIDDEN), normal(TIME * 2, 2, HIDDEN)
    reset = jnp.zeros((TIME * 2, 2), bool).at[20, 1].set(True)
    loss = lambda params, xs: weighted(unroll(cell, params, xs, lengths=jnp.array([28, 17]), reset=reset, reverse=True))
    want = jax.device_get(jit(jax.value_and_grad(loss, (0, 1)))(params, xs))
    mesh = jax.make_mesh((2, 2), ("time", "data"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        for spec in (P("time", "data"), P(("time", "data")), P(("data", "time"))):
            got = jit(jax.value_and_grad(loss, (0, 1)))(params, jax.device_put(xs, NamedSharding(mesh, spec)))
            close(jax.device_get(got), want, 1e-5)
            assert got[1][1].sharding.spec[0] == spec[0]


def one_of_two_processes(port, index):
    """The gradient of a sequence of which each process has one half, against that of the whole."""
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
    cell, mesh = CELLS["LRU"](), mesh_of(AxisType.Explicit)
    params, xs = cell.init(jax.random.key(0), HIDDEN, HIDDEN), np.asarray(normal(TIME, BATCH, HIDDEN))
    lengths = np.array([TIME, 9, 0])
    loss = lambda params, xs: weighted(unroll(cell, params, xs, lengths=lengths)[0])
    want = jax.device_get(jit(jax.grad(loss, (0, 1)))(params, xs))
    with jax.set_mesh(mesh):
        split = jax.make_array_from_callback(xs.shape, NamedSharding(mesh, P("time")), lambda index: xs[index])
        weights, by_xs = jit(jax.grad(loss, (0, 1)))(jax.device_put(params, NamedSharding(mesh, P())), split)
    close(jax.device_get(weights), want[0], 1e-6)
    here = by_xs.addressable_shards[0]
    assert here.data.shape[0] == TIME // 2
    np.testing.assert_allclose(here.data, want[1][here.index], rtol=1e-6, atol=1e-6)
    print("equal")


def in_a_process(call, devices):
    lines = ["import jax", f"jax.config.update('jax_num_cpu_devices', {devices})", f"import {__name__}", f"{__name__}.{call}"]
    return subprocess.Popen([sys.executable, "-c", "\n".join(lines)], cwd=Path(__file__).parent, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
@pytest.mark.newest
def test_time_and_batch_over_four_devices():
    process = in_a_process("four_devices()", 4)
    error = process.communicate()[1]
    assert process.returncode == 0, error[-3000:]


@pytest.mark.slow
@pytest.mark.newest
def test_two_processes_do_what_one_does():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [in_a_process(f"one_of_two_processes({port}, {index})", 1) for index in range(2)]
    for process in processes:
        out, error = process.communicate()
        assert out.strip().endswith("equal"), error[-3000:]


SCRIPT = Path(__file__).parents[1] / "scripts" / "split_time.py"


def run_script(words):
    return subprocess.run([sys.executable, SCRIPT, *words.split()], capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.newest
def test_the_script_gives_one_loss_for_any_number_of_devices():
    """And each of two devices needs less memory than one that has all."""
    runs = [run_script(f"--cell rglru --steps 20000 --hidden 8 --devices {devices}") for devices in (1, 2)]
    assert [run.stderr for run in runs] == ["", ""]
    losses = [float(re.search(r"loss ([\d.]+),", run.stdout)[1]) for run in runs]
    assert abs(losses[0] - losses[1]) < 2e-6 < losses[0]
    inputs, whole = ([int(n) for n in re.findall(r"(\d+) MiB", run.stdout)] for run in reversed(runs))
    assert inputs[1] < whole[1]
    assert "20,000 steps in 2 parts" in runs[1].stdout


@pytest.mark.parametrize("words", ["--steps 7", "--cell GRU", "--hidden 0"])
def test_the_script_refuses_bad_options(words):
    run = run_script(f"--devices 2 {words}")
    assert run.returncode == 2
    assert f"argument {words.split()[0]}: should be one of" in run.stderr or f"{words.split()[0]} should be" in run.stderr
    assert words.split()[1] in run.stderr.splitlines()[-1]
