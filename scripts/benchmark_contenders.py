"""The contenders of the benchmark by name, `jaxrnn` and its features first, and their check."""

import math
from collections.abc import Callable
from importlib import util
from typing import NamedTuple

import benchmark_peers as peers
import benchmark_yardsticks as yardsticks
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_work import GATES, Problem, Work, jax_work, most_devices


class Contender(NamedTuple):
    """What has to be installed, and what it runs."""

    package: str
    build: Callable[[Problem], Work]


# ----------------------------------------------------------------------------------------------
# jaxrnn


def jaxrnn_stack(problem: Problem, **options):
    import jaxrnn

    return jaxrnn.Stack(
        jaxrnn.cells.CELLS[problem.cell](),
        problem.input_size,
        problem.hidden_size,
        problem.num_layers,
        bidirectional=problem.bidirectional,
        **options,
    )


def jaxrnn_work(problem: Problem) -> Work:
    stack = jaxrnn_stack(problem)
    return jax_work(stack.apply, stack.init(jax.random.key(0)), problem.xs())


def jaxrnn_sharded(problem: Problem) -> Work:
    """One device per core: the weights on each, a slice of the batch on each, gradients summed."""
    stack = jaxrnn_stack(problem)
    devices = most_devices(problem.batch)
    return jax_work(stack.apply, stack.init(jax.random.key(0)), problem.xs(), devices=devices)


def drawn(p: Problem, random) -> dict:
    return {"key": jax.random.key(0)}


# name: (options of the stack, arguments of the call from (problem, random generator))
FEATURES = {
    "lengths": ({}, lambda p, random: {"lengths": random.integers(0, p.time + 1, p.batch)}),
    "mask": ({}, lambda p, random: {"mask": random.random((p.time, p.batch)) < 0.8}),
    "reset": ({}, lambda p, random: {"reset": random.random((p.time, p.batch)) < 0.05}),
    "dropout": ({"dropout": 0.2}, drawn),  # between layers
    "input_dropout": ({"input_dropout": 0.2}, drawn),
    "recurrent_dropout": ({"recurrent_dropout": 0.2}, drawn),
    "zoneout": ({"zoneout": 0.2}, drawn),
    "weight_dropout": ({"weight_dropout": 0.2}, drawn),
}


def feature_work(feature: str):
    def work(problem: Problem) -> Work:
        options, draw = FEATURES[feature]
        arguments = draw(problem, np.random.default_rng(0))
        stack = jaxrnn_stack(problem, **options)

        def apply(params, xs, *values):
            return stack.apply(params, xs, **dict(zip(arguments, values, strict=True)))

        values = tuple(map(jnp.asarray, arguments.values()))
        return jax_work(apply, stack.init(jax.random.key(0)), problem.xs(), values)

    return work


FEATURE_NAMES = [f"jaxrnn+{feature}" for feature in FEATURES]
PEERS = ["nnx", "linen", "haiku", "equinox", "keras"]
CONTENDERS = {
    "jaxrnn": Contender("jaxrnn", jaxrnn_work),
    "jaxrnn-sharded": Contender("jaxrnn", jaxrnn_sharded),
    "torch": Contender("torch", peers.torch_work),
    "nnx": Contender("flax", peers.nnx_work),
    "linen": Contender("flax", peers.linen_work),
    "haiku": Contender("haiku", peers.haiku_work),
    "equinox": Contender("equinox", peers.equinox_work),
    "keras": Contender("keras", peers.keras_work),
    "cudnn": Contender("jax", peers.cudnn_work),
    "naive": Contender("jax", yardsticks.naive_work),
    "floor": Contender("jax", yardsticks.floor_work),
    "floor-sharded": Contender("jax", yardsticks.floor_sharded),
} | {f"jaxrnn+{feature}": Contender("jaxrnn", feature_work(feature)) for feature in FEATURES}


# ----------------------------------------------------------------------------------------------
# Is it the layer it should be?


def faults(name: str, problem: Problem, work: Work) -> list[str]:
    """What is wrong with a contender: shapes, number of weights, gradients that are missing."""

    def arrays(results):
        return [np.asarray(a.cpu() if hasattr(a, "cpu") else a) for a in jax.tree.leaves(results)]

    found = []

    def expect(true, text):
        if not true:
            found.append(text)

    loss, *grads = arrays(work.train(*work.train_args))
    expect(all(np.isfinite(a).all() for a in (loss, *grads)), "something is not finite")
    if name.startswith("floor"):
        return found

    *d_params, d_xs = grads
    outputs, *states = arrays(work.forward(*work.forward_args))
    time, batch, size, hidden = problem[1:5]
    steps = (batch, time) if name in ("keras", "cudnn") else (time, batch)
    shape = (*steps, problem.directions * hidden)
    expect(outputs.shape == shape, f"outputs {outputs.shape}, not {shape}")
    expect(d_xs.shape == (*steps, size), f"input gradient {d_xs.shape}, not {(*steps, size)}")

    kept = problem.num_layers * problem.directions * batch * hidden
    kept *= 2 if problem.cell == "LSTM" else 1
    count = sum(a.size for a in states)
    expect(count == kept, f"{count} numbers in the final states, not {kept}")

    rows = sum(size + hidden for size in problem.input_sizes) * problem.directions
    gates = GATES[problem.cell] * hidden
    biases = problem.num_layers * problem.directions * gates
    count = sum(a.size for a in d_params)
    least, most = rows * gates + biases, rows * gates + 2 * biases
    expect(least <= count <= most, f"{count} weights, not {least} to {most}")
    touched = all(np.any(a, axis=tuple(range(a.ndim - 1))).all() for a in (*d_params, d_xs))
    expect(touched, "a weight or an input has no gradient")
    if name == "naive" and util.find_spec("jaxrnn"):
        found += naive_faults(problem)
    return found


def naive_faults(problem: Problem) -> list[str]:
    """With the weights of `jaxrnn`, the naive scan has its loss and its gradients."""
    stack = jaxrnn_stack(problem)
    params = stack.init(jax.random.key(0))
    params = jax.tree.map(lambda a: a + 0.1, params)  # biases are often zero at the start
    flat = [[[a.reshape(*a.shape[:-2], -1) for a in cell] for cell in layer] for layer in params]

    def apply(params, xs):
        return yardsticks.naive_apply(problem, params, xs)

    ours = jax_work(stack.apply, params, problem.xs())
    naive = jax_work(apply, flat, problem.xs())
    pairs = zip(
        jax.tree.leaves((ours.forward(*ours.forward_args), ours.train(*ours.train_args))),
        jax.tree.leaves((naive.forward(*naive.forward_args), naive.train(*naive.train_args))),
        strict=True,
    )
    worst = max(float(abs(a.ravel() - b.ravel()).max() / abs(b).max()) for a, b in pairs)
    return [] if worst < 1e-5 and math.isfinite(worst) else [f"differs from jaxrnn by {worst:.1e}"]
