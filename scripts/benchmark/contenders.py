"""The contenders by name, `jaxrnn` and its features first, and what each has to be."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import peers
import yardsticks
from work import GATES, Problem, Skip, Work, jax_work, most_devices


class Contender(NamedTuple):
    """What has to be installed, and what it runs."""

    package: str
    build: Callable[[Problem], Work]


def jaxrnn_stack(problem: Problem, **options):
    import jaxrnn

    cell = jaxrnn.cells.CELLS[problem.cell]()
    return jaxrnn.Stack(cell, *problem[3:6], bidirectional=problem.bidirectional, **options)


def jaxrnn_work(problem: Problem, devices: Callable[[int], int] = lambda batch: 1) -> Work:
    stack = jaxrnn_stack(problem)
    return jax_work(stack.apply, stack.init(jax.random.key(0)), problem.xs(), devices=devices(problem.batch))


def cell_work(cell: str):
    """Another cell on the same sizes."""
    return lambda problem: jaxrnn_work(problem._replace(cell=cell))


def step_work(jit: str):
    """A stream of the module, one step a call, state in and out, as the README shows it."""

    def work(problem: Problem) -> Work:
        from flax import nnx

        import jaxrnn

        if problem.bidirectional:
            raise Skip("a stream has one direction")
        module = getattr(jaxrnn, problem.cell)(*problem[3:6], rngs=nnx.Rngs(0))
        run = lambda module, x, state: module.step(x, state)
        if jit == "closed over":
            step = jax.jit(lambda x, state: module.step(x, state))
        else:
            compiled = {"jax.jit": jax.jit, "nnx.jit": nnx.jit, "no jit": lambda run: run}[jit](run)
            step = lambda x, state: compiled(module, x, state)
        x = jnp.asarray(problem.xs()[0])
        state = module.step(x)[1]

        def call():
            nonlocal state
            y, state = step(x, state)
            return jax.block_until_ready(y)

        return Work({"step": (call, ())})

    return work


DRAWN = lambda p, random: {"key": jax.random.key(0)}
FEATURES = {
    "lengths": ({}, lambda p, random: {"lengths": random.integers(0, p.time + 1, p.batch)}),
    "mask": ({}, lambda p, random: {"mask": random.random((p.time, p.batch)) < 0.8}),
    "reset": ({}, lambda p, random: {"reset": random.random((p.time, p.batch)) < 0.05}),
    **{name: ({name: 0.2}, DRAWN) for name in ("dropout", "input_dropout", "recurrent_dropout", "zoneout", "weight_dropout")},
}
"""By name: options of the stack, and arguments of its call from a problem and a random generator."""


def feature_work(feature: str):
    def work(problem: Problem) -> Work:
        options, draw = FEATURES[feature]
        given = draw(problem, np.random.default_rng(0))
        stack = jaxrnn_stack(problem, **options)
        apply = lambda params, xs, *values: stack.apply(params, xs, **dict(zip(given, values, strict=True)))
        return jax_work(apply, stack.init(jax.random.key(0)), problem.xs(), tuple(map(jnp.asarray, given.values())))

    return work


PARALLEL = ["MinGRU", "MinLSTM", "LRU", "RGLRU", "ParaGRU", "ParaLSTM"]
STEPS = {f"jaxrnn, {jit}": step_work(jit) for jit in ("jax.jit", "closed over", "nnx.jit", "no jit")}
PEERS = {"nnx": "flax", "linen": "flax", "haiku": "haiku", "equinox": "equinox", "keras": "keras"}
CONTENDERS = {
    "jaxrnn": Contender("jaxrnn", jaxrnn_work),
    "jaxrnn-sharded": Contender("jaxrnn", lambda problem: jaxrnn_work(problem, most_devices)),
    **{name: Contender(package, getattr(peers, f"{name}_work")) for name, package in PEERS.items()},
    "torch": Contender("torch", peers.torch_work),
    "onnxruntime": Contender("onnxruntime", peers.onnxruntime_work),
    "jax2onnx": Contender("onnxruntime", peers.jax2onnx_work),
    "cudnn": Contender("jax", peers.cudnn_work),
    "naive": Contender("jax", yardsticks.naive_work),
    "floor": Contender("jax", yardsticks.floor_work),
    **{f"jaxrnn+{feature}": Contender("jaxrnn", feature_work(feature)) for feature in FEATURES},
    **{name: Contender("jaxrnn", cell_work(name)) for name in PARALLEL},
    **{name: Contender("jaxrnn", work) for name, work in STEPS.items()},
}


def faults(name: str, problem: Problem, work: Work) -> list[str]:
    """What is wrong with a contender: shapes, number of weights, gradients that are missing."""
    found = []

    def expect(true, text):
        if not true:
            found.append(text)

    def arrays(mode):
        function, arguments = work.calls[mode]
        return [np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in jax.tree.leaves(function(*arguments))]

    results = {mode: arrays(mode) for mode in work.calls}
    expect(all(np.isfinite(a).all() for a in jax.tree.leaves(results)), "something is not finite")
    time, batch, input_size, hidden = problem[1:5]
    steps = (batch, time) if name in ("keras", "cudnn") else (time, batch)
    if "step" in results:
        count, size = results["step"][0].size, batch * hidden * problem.directions
        expect(count == size, f"{count} numbers in a step, not {size}")
    if "forward" not in results or name == "floor":
        return found
    outputs, *states = results["forward"]
    shape = (*steps, outputs.shape[-1] if name in PARALLEL else problem.directions * hidden)  # of an LRU, pairs
    expect(outputs.shape == shape, f"outputs {outputs.shape}, not {shape}")
    if "train" not in results or name in PARALLEL:
        return found

    kept = problem.num_layers * problem.directions * batch * hidden * (2 if problem.cell == "LSTM" else 1)
    expect(sum(a.size for a in states) == kept, f"{sum(a.size for a in states)} numbers in the final states, not {kept}")
    _, *d_params, d_xs = results["train"]
    expect(d_xs.shape == (*steps, input_size), f"input gradient {d_xs.shape}, not {(*steps, input_size)}")
    gates = GATES[problem.cell] * hidden
    least = sum(size + hidden + 1 for size in problem.input_sizes) * problem.directions * gates
    most = least + problem.num_layers * problem.directions * gates  # with two biases
    count = sum(a.size for a in d_params)
    expect(least <= count <= most, f"{count} weights, not {least} to {most}")
    touched = all(np.any(a, axis=tuple(range(a.ndim - 1))).all() for a in (*d_params, d_xs))
    expect(touched, "a weight or an input has no gradient")
    if name == "naive":
        worst = naive_difference(problem)
        expect(worst < 1e-5, f"differs from jaxrnn by {worst:.1e}")
    return found


def naive_difference(problem: Problem) -> float:
    """Of the naive scan with the weights of `jaxrnn`: its results and gradients, relative to the largest of each array."""
    stack = jaxrnn_stack(problem)
    params = jax.tree.map(lambda a: a + 0.1, stack.init(jax.random.key(0)))  # biases are often zero at the start
    flat = [[[a.reshape(*a.shape[:-2], -1) for a in cell] for cell in layer] for layer in params]
    ours = jax_work(stack.apply, params, problem.xs())
    naive = jax_work(lambda params, xs: yardsticks.naive_apply(problem, params, xs), flat, problem.xs())
    results = [[function(*arguments) for function, arguments in work.calls.values()] for work in (ours, naive)]
    pairs = zip(*map(jax.tree.leaves, results), strict=True)
    return max(float(abs(a.ravel() - b.ravel()).max() / abs(b).max()) for a, b in pairs)
