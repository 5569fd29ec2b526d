"""What is measured: a problem, the calls to time for it, and how a JAX library runs them. No library under test is named here."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


class Problem(NamedTuple):
    """A recurrent stack and the size of its input."""

    cell: str
    time: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def input_sizes(self) -> list[int]:
        """Of every layer."""
        return [self.input_size] + [self.directions * self.hidden_size] * (self.num_layers - 1)

    def xs(self) -> np.ndarray:
        return normal(self.time, self.batch, self.input_size)


class Work(NamedTuple):
    """One call for each mode, with its arguments: jitted functions, or such as wait for their results themselves.

    `forward` returns the outputs and the final states, `train` the loss and the gradients of all weights and of the input,
    `step` one more output of a stream that it holds the state of.
    """

    calls: dict[str, tuple[Callable[..., Any], tuple]]
    devices: int = 1


class Skip(Exception):
    """This contender cannot run this problem on this machine; the text says why."""


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def most_devices(batch: int) -> int:
    """The largest number of devices that divides the batch."""
    count = len(jax.devices())
    if count == 1:
        raise Skip("one device only: nothing to split the batch over")
    return max(n for n in range(1, count + 1) if batch % n == 0)


def on_devices(function, arguments: tuple, in_specs: tuple, out_specs, devices: int):
    """`function` over slices on several devices, jitted, and its arguments in place."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    in_place = jax.tree.map(lambda spec: NamedSharding(mesh, spec), in_specs, is_leaf=lambda leaf: isinstance(leaf, P))
    return jax.jit(function), jax.device_put(arguments, in_place)


def jax_work(apply, params, xs, extra: tuple = (), devices: int = 1) -> Work:
    """Time `apply(params, xs, *extra) -> (outputs, final states)` and its gradient.

    The loss is the sum of the products of every output and every final state with fixed random arrays: its cotangents are arrays,
    as in real training, and cost next to nothing to form. The weights travel as a flat tuple, so that no library pays for its
    containers at every call.
    """
    params, tree = jax.tree.flatten(params)
    params, xs = tuple(map(jnp.asarray, params)), jnp.asarray(xs)

    def forward(params, xs, *extra):
        return tuple(jax.tree.leaves(apply(jax.tree.unflatten(tree, params), xs, *extra)))

    def train(params, xs, cotangents, *extra):
        loss = lambda params, xs: sum(map(jnp.vdot, forward(params, xs, *extra), cotangents))
        value, (d_params, d_xs) = jax.value_and_grad(loss, (0, 1))(params, xs)
        return value, d_params, d_xs

    def train_slice(params, xs, cotangents):
        value, d_params, d_xs = train(jax.lax.pcast(params, "batch", to="varying"), xs, cotangents)
        return *jax.lax.psum((value, d_params), "batch"), d_xs

    shapes = jax.eval_shape(forward, params, xs, *extra)
    cotangents = tuple(jnp.asarray(normal(*s.shape, seed=i)) for i, s in enumerate(shapes, 1))
    if devices == 1:
        calls = {"forward": (jax.jit(forward), (params, xs, *extra)), "train": (jax.jit(train), (params, xs, cotangents, *extra))}
        return Work(calls)
    spec = lambda array: P(None, "batch") if array.ndim == 3 else P("batch")  # of sequences, and of states
    w_specs, x_spec, specs = (P(),) * len(params), spec(xs), tuple(map(spec, cotangents))
    train_specs = (w_specs, x_spec, specs), (P(), w_specs, x_spec)
    calls = {"forward": on_devices(forward, (params, xs), (w_specs, x_spec), specs, devices)}
    return Work(calls | {"train": on_devices(train_slice, (params, xs, cotangents), *train_specs, devices)}, devices)


def run_stack(problem: Problem, run, x):
    """Layers and directions for libraries without a stack: `run(layer, direction, x)` returns the final state and the outputs."""
    states = []
    for layer in range(problem.num_layers):
        results = [run(layer, direction, x) for direction in range(problem.directions)]
        states += [state for state, _ in results]
        x = jnp.concatenate([ys for _, ys in results], -1) if problem.bidirectional else results[0][1]
    return x, states
