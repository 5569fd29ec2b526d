"""Time in parts, one on each device along axes of a mesh: what a part has to know of the others, of each of which one row crosses.

Inside of `jax.shard_map`, `axis` is the name of a manual axis, or names, in whose order the parts follow each other.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import select, time_axis_of, zeros_like
from jaxrnn.cells.elementwise import LinearCell, add, apply
from jaxrnn.checks import is_symbolic


def check(name: str, x: str, cell, xs, axis, **whole):
    """Time is in parts for a cell that can, and with options that can; `xs`, the argument `x`, has time in front.

    Args:
        axis: what the user says; on an explicit mesh, `xs` says it.
        whole: options, by name, that need all of time in one place.
    """
    at = check_axis(name, x, xs, axis)
    if at is None:
        return
    if not (isinstance(cell, LinearCell) and type(cell).recur is LinearCell.recur):
        kind = type(cell).__name__
        raise ValueError(
            f"{name}: `{x}` should have all of its time on every device for a {kind}, whose steps wait for each other, got time "
            f"in parts over {at!r}.\nShard the batch instead; or take a linear cell: LRUCell, RGLRUCell, MinGRUCell, MinLSTMCell."
        )
    if is_symbolic(xs.shape[0]):
        raise ValueError(f"{name}: `{x}` should have a known number of steps where time is in parts, got {xs.shape[0]}.")
    for option, value in whole.items():
        if value:
            raise ValueError(
                f"{name}: `{option}` should be left out where time is in parts over devices, here over {at!r}, got {value!r}."
            )


def check_axis(name: str, x: str, xs, axis):
    """The axis, or axes, of a mesh that the time of `xs` is in parts over: what the user or an explicit mesh says; or None."""
    found = time_axis_of(xs)
    if axis is None:
        return found
    names = axis if isinstance(axis, tuple) else (axis,)
    if not names or not all(isinstance(one, str) for one in names):
        raise TypeError(f"{name}: `time_axis` should be the name of an axis of a mesh, or a tuple of names, got {axis!r}.")
    if found is not None:
        raise ValueError(
            f"{name}: `time_axis` should be None where the mesh of `{x}` is explicit and says {found!r}, got {axis!r}."
        )
    try:
        lax.axis_size(axis)
    except NameError:
        raise ValueError(f"{name}: `time_axis` should be an axis of a `jax.shard_map` around the call, got {axis!r}.") from None
    return axis


def parts(axis) -> int:
    """How many parts there are."""
    return 1 if axis is None else lax.axis_size(axis)


def steps_before(axis, time):
    """How many steps stand in the parts before this one."""
    return 0 if axis is None else lax.axis_index(axis) * time


def _rows(tree, axis):
    """What each part has, one row for each, on every device.

    As a sum, to which each adds its own row. JAX 0.10 cannot transpose a gather where another axis of the mesh is explicit, and
    `ppermute` over several axes takes them in the order of the mesh, not in the one given.
    """
    here = lax.broadcasted_iota(jnp.int32, (lax.axis_size(axis), 1), 0)[:, 0] == lax.axis_index(axis)

    def rows(a):
        if a.dtype == bool:
            return rows(a.astype(jnp.int32)).astype(bool)
        spread = lax.broadcast(a, here.shape)
        return lax.psum(select(here, spread, zeros_like(spread)), axis)

    return jax.tree.map(rows, tree)


def _own(rows, axis):
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, lax.axis_index(axis), 0, keepdims=False), rows)


def incoming(axis, reverse: bool, part, start: tuple) -> tuple:
    """The state that comes into this part.

    Args:
        part: of all steps of this part, the product of their A, the state after them if none came in, and where a reset cut off
            what did (None: nowhere).
        start: what comes into the first part.
    """

    def step(h, part):
        product, out, cut = part
        through = add(apply(product, h), out)
        return (through if cut is None else tuple(select(cut, o, t) for o, t in zip(out, through, strict=True))), h

    return _own(lax.scan(step, start, _rows(part, axis), reverse=reverse)[1], axis)


def from_neighbour(axis, reverse: bool, last: tuple, start: tuple) -> tuple:
    """What `incoming` gave, from the state `last` after each part."""
    rows = _rows(last, axis)
    before = jax.tree.map(lambda h, s: jnp.concatenate([h[1:], s[None]] if reverse else [s[None], h[:-1]]), rows, start)
    return _own(before, axis)


def at_the_end(axis, reverse: bool, state):
    """The state after the last part, on every device."""
    is_last = lax.axis_index(axis) == (0 if reverse else lax.axis_size(axis) - 1)
    return jax.tree.map(lambda h: lax.psum(jnp.where(is_last, h, jnp.zeros_like(h)), axis), state)


def greatest_after(axis, a):
    """The greatest entry of `a`, not negative, in the parts after this one."""
    rows = _rows(a, axis)
    after = lax.broadcasted_iota(jnp.int32, (len(rows), 1), 0)[:, 0] > lax.axis_index(axis)
    return jnp.max(select(after, rows, zeros_like(rows)), axis=0)
