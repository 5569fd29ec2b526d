"""What the benchmark measures: a problem, the two functions to time for it, how JAX runs them.

No library under test is imported here, and nothing here knows about clocks, tables or targets.
"""

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
        """Input size of every layer."""
        later = self.directions * self.hidden_size
        return [self.input_size] + [later] * (self.num_layers - 1)

    def xs(self) -> np.ndarray:
        return normal(self.time, self.batch, self.input_size)


class Work(NamedTuple):
    """Two functions and their arguments; the functions are jitted where the library is JAX.

    `forward` returns the outputs and the final states, `train` the loss, the gradients of all
    weights and the gradient of the input.
    """

    forward: Callable[..., Any]
    forward_args: tuple
    train: Callable[..., Any]
    train_args: tuple
    devices: int = 1


class Skip(Exception):
    """This contender cannot run this problem on this machine; the text says why."""


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng([seed, *shape])
    return scale * random.standard_normal(shape, np.float32)


def most_devices(batch: int) -> int:
    """The largest number of devices that divides the batch."""
    count = len(jax.devices())
    if count == 1:
        raise Skip("one device only: nothing to split the batch over")
    return max(n for n in range(1, count + 1) if batch % n == 0)


def batch_spec(array) -> P:
    """Sequences `(time, batch, …)` have three axes, states `(batch, hidden)` two."""
    return P(None, "batch") if array.ndim == 3 else P("batch")


def split(function, arguments: tuple, in_specs: tuple, out_specs, devices: int):
    """Jit `function` over slices on several devices; return it with its arguments in place."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("batch",))
    function = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    is_spec = {"is_leaf": lambda leaf: isinstance(leaf, P)}
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), in_specs, **is_spec)
    return jax.jit(function), jax.device_put(arguments, shardings)


def jax_work(apply, params, xs, extra: tuple = (), devices: int = 1) -> Work:
    """Time `apply(params, xs, *extra) -> (outputs, final states)` and its gradient.

    The loss is the sum of the products of every output and every final state with fixed random
    arrays: its cotangents are arrays, as in real training, and cost next to nothing to form. The
    weights travel as a flat tuple, so that no library pays for its containers at every call.
    """
    params, tree = jax.tree.flatten(params)
    params, xs = tuple(map(jnp.asarray, params)), jnp.asarray(xs)

    def forward(params, xs, *extra):
        return tuple(jax.tree.leaves(apply(jax.tree.unflatten(tree, params), xs, *extra)))

    def loss(params, xs, cotangents, *extra):
        return sum(map(jnp.vdot, forward(params, xs, *extra), cotangents))

    def train(params, xs, cotangents, *extra):
        grads = jax.value_and_grad(loss, (0, 1))
        value, (d_params, d_xs) = grads(params, xs, cotangents, *extra)
        return value, d_params, d_xs

    def train_slice(params, xs, cotangents):
        params = jax.lax.pcast(params, "batch", to="varying")
        value, d_params, d_xs = train(params, xs, cotangents)
        return *jax.lax.psum((value, d_params), "batch"), d_xs

    shapes = jax.eval_shape(forward, params, xs, *extra)
    cotangents = tuple(jnp.asarray(normal(*s.shape, seed=i)) for i, s in enumerate(shapes, 1))
    forward_args, train_args = (params, xs, *extra), (params, xs, cotangents, *extra)
    if devices == 1:
        return Work(jax.jit(forward), forward_args, jax.jit(train), train_args)

    x_spec, out_specs = batch_spec(xs), tuple(map(batch_spec, cotangents))
    w_specs = (P(),) * len(params)
    return Work(
        *split(forward, forward_args, (w_specs, x_spec), out_specs, devices),
        *split(
            train_slice,
            train_args,
            (w_specs, x_spec, out_specs),
            (P(), w_specs, x_spec),
            devices,
        ),
        devices,
    )


def run_stack(problem: Problem, run, x):
    """Layers and directions for libraries without a stack.

    `run(layer, direction, x)` returns the final state and the outputs of one of them.
    """
    states = []
    for layer in range(problem.num_layers):
        results = [run(layer, direction, x) for direction in range(problem.directions)]
        states += [state for state, _ in results]
        outputs = [ys for _, ys in results]
        x = jnp.concatenate(outputs, -1) if problem.bidirectional else outputs[0]
    return x, states
