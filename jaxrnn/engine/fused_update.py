"""A cell's `update` as the kernels of `fused` run it: whether it is elementwise, and in two parts, what it makes of its parameters
alone and the rest. A kernel pads arrays, so that nothing that it runs may depend on their shapes. No kernel may live here."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxpr_as_fun

from jaxrnn._arrays import is_real
from jaxrnn.cells.conform import equations_of
from jaxrnn.engine import scan_diagonal

TILE = 16
"""Rows of the batch that one program takes: the fewest that a product on tensor cores has."""

LOWERED = {
    "abs", "add", "add_any", "and", "broadcast_in_dim", "convert_element_type", "copy", "cos", "div", "eq", "exp", "exp2",
    "expm1", "ge", "gt", "integer_pow", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "not", "or",
    "pow", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tanh", "xor",
}  # fmt: skip
"""Primitives that `update` may use: elementwise, and known to Triton."""


def power_of_two(hidden: int) -> int:
    return max(TILE, 1 << (hidden - 1).bit_length())


def in_two(cell, hidden: int, extra):
    """`update` in two: what it makes of its parameters alone, in their own shapes; and the rest, a function of (state, x, h, what
    was made) that are padded.

    A kernel cannot take parameters apart; and what all steps share is made once.
    """
    first, _, _ = _parts(cell, TILE, hidden, extra)
    _, rest, structure = _parts(cell, TILE, power_of_two(hidden), extra)
    update = lambda s, x, h, made: jax.tree.unflatten(structure, jaxpr_as_fun(rest)(*made, *jax.tree.leaves((s, x, h))))
    return lambda extra: jaxpr_as_fun(first)(*jax.tree.leaves(extra)), update


def _parts(cell, rows: int, hidden: int, extra):
    """The two programs for so many rows and units, and the structure of the new state."""
    wide = lambda a: jax.ShapeDtypeStruct((*a.shape[:-1], hidden), jnp.float32)
    like = jax.ShapeDtypeStruct((rows, hidden), jnp.float32)
    args = jax.tree.map(wide, tuple(extra)), cell.State(*(like for _ in cell.State._fields)), *((like,) * len(cell.gates),) * 2
    closed, out = jax.make_jaxpr(lambda extra, s, x, h: cell.update(s, x, h, *extra), return_shape=True)(*args)
    jaxpr, count = closed.jaxpr, len(jax.tree.leaves(extra))
    variables = lambda eqn: [v for v in eqn.invars if not hasattr(v, "val")]
    known, early, late = {*jaxpr.invars[:count]}, [], []
    for eqn in jaxpr.eqns:
        shared = variables(eqn) and all(v in known for v in variables(eqn)) and all(is_real(v.aval) for v in eqn.outvars)
        (early if shared else late).append(eqn)
        known.update(eqn.outvars if shared else ())
    read = [v for eqn in late for v in variables(eqn)] + [v for v in jaxpr.outvars if not hasattr(v, "val")]
    made = list(dict.fromkeys(v for v in read if v in known))
    part = lambda **parts: closed.replace(jaxpr=jaxpr.replace(debug_info=jaxpr.debug_info.with_unknown_names(), **parts))
    first = part(invars=jaxpr.invars[:count], outvars=made, eqns=early)
    return first, part(invars=[*made, *jaxpr.invars[count:]], eqns=late), jax.tree.structure(out)


def not_elementwise(cell, hidden: int, extra) -> str | None:
    """What `update` does that a kernel cannot, in words; None if there is nothing."""
    leaves = jax.tree.leaves(tuple(extra))
    if not all(is_real(a) for a in leaves):
        return "has parameters that are not real floating-point numbers"
    if any(a.shape[-1:] != (hidden,) or hidden in a.shape[:-1] for a in leaves):
        return f"has parameters that do not end in hidden_size={hidden}, and there alone"
    with equations_of(cell, "update"):
        rest, of_rows = (_parts(cell, rows, hidden, extra)[1] for rows in (TILE, TILE + 1))
    reason = _first_not_lowered(rest.jaxpr, (TILE, hidden))
    if reason is not None:
        return reason
    shapes = lambda variables: [v.aval.shape for v in variables]
    if () in shapes(rest.jaxpr.invars):
        return "makes a single number of its parameters, which should be broadcast to the units, as by `broadcast_like(…, state.h)`"
    if not _alike(rest.jaxpr, of_rows.jaxpr):
        return "computes with the size of the batch, which the kernels pad"
    width = power_of_two(hidden)
    if not _alike(rest.jaxpr, _parts(cell, TILE, width, extra)[1].jaxpr):
        return f"computes with the size of its arrays, and the kernels pad hidden_size={hidden} to {width}, which they could run"
    return None


def _first_not_lowered(jaxpr, shape) -> str | None:
    if jaxpr.constvars:
        return "reads arrays that are not its arguments"
    for eqn in jaxpr.eqns:
        inner = _inside(eqn)
        if inner is not None and eqn.primitive.name in scan_diagonal.CALLS:
            found = _first_not_lowered(inner, shape)
            if found is not None:
                return found
        elif eqn.primitive.name not in LOWERED:
            return f"uses `{eqn.primitive.name}`, which the kernels do not know as elementwise"
    if any(v.aval.shape not in ((), shape) for v in (*jaxpr.invars, *(v for eqn in jaxpr.eqns for v in eqn.outvars))):
        return "is not elementwise in the hidden units"
    return None


def _inside(eqn):
    inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
    return getattr(inner, "jaxpr", inner)


def _alike(one, other) -> bool:
    """Whether two programs do the same, but for the shapes of their arrays."""
    if len(one.eqns) != len(other.eqns) or len(one.invars) != len(other.invars):
        return False
    place = dict(zip(one.invars, other.invars, strict=True))

    def same(a, b):
        literals = hasattr(a, "val"), hasattr(b, "val")
        return np.array_equal(a.val, b.val, equal_nan=True) if all(literals) else not any(literals) and place.get(a) is b

    def number(value):
        return value if isinstance(value, bool | int | float | str) else None

    for a, b in zip(one.eqns, other.eqns, strict=True):
        inner = _inside(a), _inside(b)
        if a.primitive is not b.primitive or len(a.invars) != len(b.invars) or not all(map(same, a.invars, b.invars)):
            return False
        if any(number(a.params[key]) != number(b.params.get(key)) for key in a.params if key != "name"):
            return False
        if inner[0] is not None and not _alike(*inner):
            return False
        place.update(zip(a.outvars, b.outvars, strict=True))
    return all(map(same, one.outvars, other.outvars))
