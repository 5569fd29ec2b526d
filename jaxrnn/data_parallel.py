"""Data-parallel training: every device has all parameters and its share of the rows of a batch. No model and no loss may be known
here."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import checks
from jaxrnn._arrays import varying_over


def value_and_grad(loss: Callable, mesh: Mesh, *, axis: str | None = None, carry: P | None = None) -> Callable:
    """`jax.value_and_grad` of a mean over rows: each device computes its own rows, then one mean is taken over the devices.

    A sharded `jax.jit` sums the gradient of each segment of time over the devices; here it is summed once, at the end.

    Args:
        loss: (params, *batch) -> the mean over the rows of the batch; with `carry`, (params, carried, *batch) -> (mean, carried).
            It has to be a mean in which rows weigh the same: a mean over valid steps is not the mean of the devices' means.
        mesh: the devices.
        axis: the axis of the mesh that the rows are spread over; `None` means its only one.
        carry: the sharding of what is carried from batch to batch, for instance `P(None, "rows")` if the rows are its second axis,
            as in the states of a module.

    Returns:
        A function of the same arguments, to be called under `jax.jit`: (value, gradient); with `carry`, ((value, carried),
        gradient). Value and gradient are the same on every device.

    Raises:
        ValueError: the mesh has no such axis. When called: the number of rows is not a multiple of the number of devices.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import NamedSharding, PartitionSpec as P
        >>> mesh = jax.make_mesh((1,), ("rows",))
        >>> loss = lambda w, x, y: jnp.mean((x @ w - y) ** 2)
        >>> w, x, y = jnp.ones(3), jnp.ones((4, 3)), jnp.zeros(4)
        >>> w = jax.device_put(w, NamedSharding(mesh, P()))
        >>> x, y = jax.device_put((x, y), NamedSharding(mesh, P("rows")))
        >>> value, gradient = jax.jit(value_and_grad(loss, mesh))(w, x, y)
        >>> float(value), gradient.tolist()
        (9.0, [6.0, 6.0, 6.0])
    """
    checks.kind("value_and_grad", "mesh", mesh, Mesh)
    if axis is None:
        if len(mesh.axis_names) != 1:
            raise ValueError(f"value_and_grad: `axis` should be one of {', '.join(map(repr, mesh.axis_names))}, got None.")
        (axis,) = mesh.axis_names
    checks.choice("value_and_grad", "axis", axis, mesh.axis_names)
    count = mesh.shape[axis]

    def local(params, *batch):
        value, gradient = jax.value_and_grad(loss, has_aux=carry is not None)(varying_over(params, axis), *batch)
        if carry is None:
            return jax.lax.pmean((value, gradient), axis)
        mean, gradient = jax.lax.pmean((value[0], gradient), axis)
        return (mean, value[1]), gradient

    def whole(params: Any, *batch: Any):
        rows = batch[carry is not None :]
        for array in jax.tree.leaves(rows):
            if jax.numpy.ndim(array) == 0 or array.shape[0] % count:
                rule = f"the first axis of each array should be a multiple of the {count} devices of axis {axis!r}"
                raise ValueError(f"value_and_grad: `batch`: {rule}, got shape {jax.numpy.shape(array)}.")
        specs = (P(), *(() if carry is None else (carry,)), *(P(axis) for _ in rows))
        out = (P() if carry is None else (P(), carry), P())
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)(params, *batch)

    return whole
