"""Several devices and hosts: every process holds the same parameters, every device its share of the rows of a batch.
Nothing here knows a model or a loss."""

import contextlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn.training import console
from jaxrnn.training.config import RunConfig
from jaxrnn.training.console import Failure

ROWS = "rows"
"""The mesh axis that the rows of a batch are spread over."""


def start(config: RunConfig, *, batch_size: int) -> Mesh:
    """Wake JAX with the devices and hosts that a configuration asks for. To be called before anything else touches a device.

    Args:
        config: the flags.
        batch_size: rows of a batch, of all processes together.

    Returns:
        The mesh of all devices of all processes, its one axis named `ROWS`.

    Raises:
        Failure: there are not so many devices, the rows cannot be dealt out evenly, or the processes do not meet.
    """
    total = config.devices * config.num_processes
    if batch_size % total:
        raise Failure(f"the batch size should be a multiple of the {total} devices, got {batch_size}", code=2)
    if config.process_id >= config.num_processes:
        raise Failure(f"--process-id should be below --num-processes {config.num_processes}, got {config.process_id}", code=2)
    with contextlib.suppress(RuntimeError):  # if JAX is awake already, the devices it has must do
        jax.config.update("jax_num_cpu_devices", config.devices)
    if config.num_processes > 1:
        console.speaking = config.process_id == 0
        _meet(config)
    devices = [d for k in range(jax.process_count()) for d in jax.devices() if d.process_index == k]
    if jax.local_device_count() < config.devices:
        raise Failure(f"--devices {config.devices}: there are {jax.local_device_count()} ({devices[0].device_kind})", code=2)
    mine = [d for k in range(jax.process_count()) for d in [d for d in devices if d.process_index == k][: config.devices]]
    return jax.make_mesh((total,), (ROWS,), devices=mine, axis_types=(AxisType.Auto,))


def _meet(config: RunConfig):
    address = config.coordinator
    if not address:
        message = "several processes need --coordinator HOST:PORT, or JAX_COORDINATOR_ADDRESS: the address of process 0"
        raise Failure(message, code=2)
    if not address.rpartition(":")[2].isdecimal():
        raise Failure(f"argument --coordinator: should be HOST:PORT, got {address!r}", code=2)
    try:
        jax.distributed.initialize(
            address,
            config.num_processes,
            config.process_id,
            initialization_timeout=60,
            heartbeat_timeout_seconds=30,
            shutdown_timeout_seconds=30,
        )
    except RuntimeError as reason:
        raise Failure(f"the {config.num_processes} processes did not meet at {address}: {reason}") from None


def place(mesh: Mesh, tree: Any, spec: P = P()) -> Any:
    """The same arrays on the devices of the mesh: whole on each, or spread as `spec` says.

    Every process passes the same values.
    """
    sharding = NamedSharding(mesh, spec)

    def put(value):
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(put, tree)


def deal(mesh: Mesh, *batch: Any) -> tuple:
    """Arrays with their rows, the first axis, dealt out to the devices."""
    return tuple(place(mesh, array, P(ROWS)) for array in batch)


def value_and_grad(loss: Callable, mesh: Mesh, *, carry: P | None = None) -> Callable:
    """`jax.value_and_grad` of a mean over rows, each device computing its own rows, then one mean over the devices.

    A sharded `jax.jit` would do with the gradient of each segment of time what is done here once per step.

    Args:
        loss: (params, *batch) -> the mean over the rows of the batch; with `carry`, (params, carried, *batch) ->
            (mean, carried).
        mesh: from `start`.
        carry: how what is carried from batch to batch is spread, for instance `P(None, ROWS)` if its second axis is the rows.

    Returns:
        A function of the same arguments, (value, gradient); with `carry`, ((value, carried), gradient).
    """

    def local(params, *batch):
        own = jax.tree.map(lambda a: jax.lax.pcast(a, ROWS, to="varying"), params)
        value, gradient = jax.value_and_grad(loss, has_aux=carry is not None)(own, *batch)
        if carry is None:
            return jax.lax.pmean((value, gradient), ROWS)
        mean, gradient = jax.lax.pmean((value[0], gradient), ROWS)
        return (mean, value[1]), gradient

    def whole(params, *batch):
        specs = (P(), *(() if carry is None else (carry,)), *(P(ROWS) for _ in batch[carry is not None :]))
        out = (P() if carry is None else (P(), carry), P())
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)(params, *batch)

    return whole


# What the processes tell each other ------------------------------------------------------------------------------------


def chief() -> bool:
    """Whether this process is the one that owns the folder and speaks."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_chief(tree: Any) -> Any:
    """The arrays of the chief, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def to_host(tree: Any) -> Any:
    """The arrays as NumPy's, whole, in every process."""

    def fetch(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)
