"""Several devices and hosts: every process holds the same parameters, every device its share of the rows of a batch.
Nothing here knows a model or a loss."""

import contextlib
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from training import console
from training.config import RunConfig
from training.console import Failure

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
        Failure: there are not so many devices, the rows cannot be spread over them evenly, or the processes do not meet.
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


def shard_batch(mesh: Mesh, *batch: Any) -> tuple:
    """Arrays with their rows, the first axis, spread over the devices."""
    return tuple(place(mesh, array, P(ROWS)) for array in batch)


# What the processes tell each other ------------------------------------------------------------------------------------


def is_main_process() -> bool:
    """Whether this process is the one that owns the folder and speaks."""
    return jax.process_index() == 0


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process; all of them have to ask."""
    return flag if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_main_process(tree: Any) -> Any:
    """The arrays of the main process, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(tree)


def to_host(tree: Any) -> Any:
    """The arrays as NumPy's, whole, in every process."""

    def fetch(array):
        if isinstance(array, jax.Array) and not array.is_fully_addressable and not array.is_fully_replicated:
            return multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)
