"""Data-parallel training: every device has all parameters and its share of the rows of a batch. No model and no loss may be known
here."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxrnn import checks
from jaxrnn._arrays import is_differentiable, varying_over


def value_and_grad(loss: Callable, mesh: Mesh, *, axis: str | None = None, carry: P | None = None) -> Callable:
    """`jax.value_and_grad` of a mean over rows: each device computes its own rows, then one mean is taken over the devices.

    A sharded `jax.jit` sums the gradient of each segment of time over the devices; here it is summed once, at the end.

    Args:
        loss: (params, *batch) -> the mean over the rows of the batch; with `carry`, (params, carried, *batch) -> (mean, carried).
            The parameters are floating-point numbers: of an NNX model, `graph, params, rest = nnx.split(model, nnx.Param, ...)`,
            since the random state of dropout is none.
            It has to be a mean in which rows weigh the same: a mean over valid steps is not the mean of the devices' means.
            Rows are axis 0 of every array of the batch. For rollouts, time first, or any other loss, shard the arrays over axis 1,
            `P(None, "rows")`, and call `jax.jit(jax.value_and_grad(loss))`.
        mesh: the devices.
        axis: the axis of the mesh that the rows are spread over; `None` means its only one.
        carry: the sharding of what is carried from batch to batch, for instance `P(None, "rows")` if the rows are its second axis,
            as in the states of a module.

    Returns:
        A function of the same arguments, to be called under `jax.jit`: (value, gradient); with `carry`, ((value, carried),
        gradient). Value and gradient are the same on every device.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind, or the mesh has no such axis. When called: a parameter is no
            floating-point number; the rows of an array of
            the batch, or of what is carried, are no multiple of the devices; or an array is not spread over them so, on a mesh of
            which JAX keeps that in types, as `jax.make_mesh` makes it.

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
    if not callable(loss):
        raise TypeError(f"value_and_grad: `loss` should be a function, got {checks.called(loss)}.")
    checks.kind("value_and_grad", "mesh", mesh, Mesh)
    if carry is not None:
        checks.kind("value_and_grad", "carry", carry, P)
    for name in (name for names in _axes(carry or ()) for name in names):
        checks.choice("value_and_grad", "carry", name, mesh.axis_names)
    if axis is None:
        if len(mesh.axis_names) != 1:
            raise ValueError(f"value_and_grad: `axis` should be one of {', '.join(map(repr, mesh.axis_names))}, got None.")
        (axis,) = mesh.axis_names
    checks.choice("value_and_grad", "axis", axis, mesh.axis_names)

    def local(params, *batch):
        value, gradient = jax.value_and_grad(loss, has_aux=carry is not None)(varying_over(params, axis), *batch)
        if carry is None:
            return jax.lax.pmean((value, gradient), axis)
        mean, gradient = jax.lax.pmean((value[0], gradient), axis)
        return (mean, value[1]), gradient

    def whole(params: Any, *batch: Any):
        carried, rows = ((), batch) if carry is None else (batch[:1], batch[1:])
        if carry is not None and not carried:
            raise ValueError("value_and_grad: `carried` should be given behind the parameters, since `carry` is, got none.")
        for leaf in jax.tree.leaves(params):
            _check_differentiable(leaf)
        specs = (P(), *(() if carry is None else (carry,)), *(P(axis) for _ in rows))
        names = ("params", *("carried" for _ in carried), *("batch" for _ in rows))
        for name, tree, spec in zip(names, (params, *batch), specs, strict=True):
            for array in jax.tree.leaves(tree):
                _check_spread(name, array, mesh, spec)
        out = (P() if carry is None else (P(), carry), P())
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=out)(params, *batch)

    return whole


def _check_differentiable(parameter):
    kind = jax.typeof(parameter)
    if not is_differentiable(kind):
        hint = "Is it the random state of dropout? Split by nnx.Param: graph, params, rest = nnx.split(model, nnx.Param, ...)."
        raise TypeError(f"value_and_grad: `params` should be floating-point numbers, got dtype {kind.dtype}.\n{hint}")


def _axes(spec) -> list[tuple]:
    """The axes of the mesh that each axis of an array is spread over."""
    return [names if isinstance(names, tuple) else () if names is None else (names,) for names in spec]


def _check_spread(argument: str, array, mesh: Mesh, spec: P):
    """`array` can be spread over the mesh as `spec` says, and is, where its type says how."""
    shape = np.shape(array)
    for k, names in enumerate(_axes(spec)):
        count = math.prod(mesh.shape[name] for name in names)
        if len(shape) <= k or shape[k] % count:
            rule = f"axis {k} of each array should be a multiple of {count}, the devices of {_text(spec)}"
            hint = "" if shape else "\nIs it a list of numbers? Pass it through jnp.asarray."
            if argument == "batch" and len(shape) > 1:
                hint = f"\nRows are axis 0 of the batch. If they are axis 1: states go by carry={_text(P(None, *spec))}; "
                hint += "for a rollout, time first, plain jax.jit(jax.value_and_grad(loss)) will do."
            raise ValueError(f"value_and_grad: `{argument}`: {rule}, got shape {shape}.{hint}")
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    wanted = [tuple(name for name in names if name in explicit) for names in _axes(spec)]
    came = _axes(jax.typeof(array).sharding.spec)
    if came != wanted + [()] * (len(shape) - len(wanted)):
        place = f"Place it with jax.device_put({argument}, NamedSharding(mesh, {_text(spec)}))."
        rule = f"should be spread over the mesh as {_text(spec)}"
        raise ValueError(f"value_and_grad: `{argument}` {rule}, got {_text(jax.typeof(array).sharding.spec)}.\n{place}")


def _text(spec) -> str:
    return f"P({', '.join(map(repr, spec))})"
