"""Behind the door: arguments that were checked to a problem, its solution to a result. No argument is checked here."""

from functools import partial
from types import CodeType, FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._arrays import broadcast_like, cast, computing_dtype, is_differentiable, is_real, lay_beside, same_varying_axes
from jaxrnn.checks import is_symbolic
from jaxrnn.engine import strategies
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.transition import resets_in_loop_order


def unrolled(cell, params, xs, state, *, zoneout=None, dtype=None, per_step=None, context=None, **options):
    """`unroll` without its checks; `options` are its other keyword arguments."""
    rates = masks = (None,) * len(cell.State._fields)
    if zoneout is not None:
        rates = tuple(float(z) if isinstance(z, float) else None for z in zoneout)
        masks = tuple(None if isinstance(z, float) else z for z in zoneout)
    dtype = computing_dtype(xs, params.w_ih) if dtype is None else jnp.dtype(dtype)
    return _unrolled(
        cell, params, xs, state, rates=rates, masks=masks, per_step=per_step or {}, context=context or {}, dtype=dtype,
        outside=values_read_from_outside(type(cell)), **options,
    )  # fmt: skip


@partial(jax.jit, static_argnames=("cell", "rates", "reverse", "return_states", "remat", "truncate", "dtype", "outside"))
def _unrolled(
    cell, params, xs, state, *, initial=None, lengths=None, mask=None, reset=None, reverse=False, return_states=False, remat=False,
    truncate=None, h_mask=None, rates, masks, per_step, context, dtype, outside,
):  # fmt: skip
    """One `jit`: layers of the same shapes are traced and lowered once, and a call outside of any `jit` compiles once."""
    time, batch = xs.shape[0], xs.shape[1 : xs.ndim - cell.event_ndim]
    xs, per_step, context = cast((xs, per_step, context), dtype)
    valid = mask if lengths is None else lax.broadcasted_iota(jnp.int32, (time, *batch), 0) < lengths.astype(jnp.int32)[None]
    arrays = (params, xs, valid, reset, state, initial, h_mask, per_step, context)
    params, xs, valid, reset, state, initial, h_mask, per_step, context = same_varying_axes(*arrays)
    valid, reset = (None if a is None else lay_beside(a, xs, 1 + len(batch)) for a in (valid, reset))

    first = xs[0] if is_symbolic(time) or time else jnp.zeros(xs.shape[1:], xs.dtype)
    own = cell.initial_state(cast(params, dtype), first)
    own = same_varying_axes(jax.tree.map(lambda s: lay_beside(s, first, min(len(batch), s.ndim)), own), xs)[0]
    initial = own if initial is None else _as_given(initial, own)
    state = initial if state is None else _as_given(state, own)
    h_mask = None if h_mask is None else lax.stop_gradient(broadcast_like(h_mask, own.h))
    masks = tuple(None if z is None else _beside_state(z, s) for z, s in zip(masks, own, strict=True))
    per_step = {name: jax.tree.map(partial(_readable, valid), tree) for name, tree in per_step.items()}

    if not is_symbolic(time) and time == 0:
        ys = jnp.zeros((0, *own.h.shape), dtype)
        return (state, ys, jax.tree.map(lambda s: s[None], state)) if return_states else (state, ys)
    what = Semantics(cell, rates, reverse, return_states, truncate, dtype)
    weights = Weights(params, None if reset is None else initial, h_mask, context)
    steps = Steps(xs, valid, resets_in_loop_order(reset, valid, reverse), masks, per_step)
    final, (ys, states) = strategies.run(what, remat, weights, state, steps)
    ys = ys.astype(dtype) if is_real(ys) else ys
    if not return_states:
        return final, ys
    order = (lambda one, every: (every, one[None])) if reverse else (lambda one, every: (one[None], every))
    return final, ys, jax.tree.map(lambda one, every: jnp.concatenate(order(one, every)), state, states)


def _as_given(state, own):
    """A state in the shapes, dtypes and places of the cell's own, its values as given; the cell's own where a field is None."""
    take = lambda given, like: like if given is None else broadcast_like(jnp.asarray(given), like)
    return type(own)(*same_varying_axes(*(take(given, like) for given, like in zip(state, own, strict=True)), own)[:-1])


def _beside_state(mask, field):
    """What is drawn for one field of the state at every step, laid as the field is."""
    laid = lay_beside(jnp.moveaxis(mask, 0, -1), field, field.ndim)
    return same_varying_axes(jnp.moveaxis(laid, -1, 0), field)[0]


def _readable(valid, a):
    """A further input, zero where the step is not valid; one without batch axes is what all examples read."""
    if valid is None or a.shape[: valid.ndim] != valid.shape or not is_differentiable(a):
        return a
    keep = lax.broadcast_in_dim(valid, a.shape, tuple(range(valid.ndim)))
    return jnp.where(keep, a, jnp.zeros_like(a))


def values_read_from_outside(kind: type) -> tuple:
    """What the methods of a cell's class read from its module and from enclosing functions: compiled programs hold these values,
    so that another value must be another program. The library's own classes read nothing that changes."""
    found: dict[str, Any] = {}
    for cls in kind.__mro__:
        if cls.__module__.split(".")[0] not in ("jaxrnn", "builtins"):
            for function in vars(cls).values():
                _read_by(function, found, set())
    return tuple(sorted(found.items()))


def _read_by(function, found: dict, seen: set):
    function = getattr(function, "__func__", getattr(function, "fget", function))
    if not isinstance(function, FunctionType) or id(function) in seen or function.__module__.split(".")[0] in ("jax", "jaxrnn"):
        return
    seen.add(id(function))
    names, codes = set(), [function.__code__]
    for code in codes:
        names.update(code.co_names)
        codes.extend(c for c in code.co_consts if isinstance(c, CodeType))
    values = {f"{function.__module__}.{name}": function.__globals__[name] for name in names if name in function.__globals__}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values[f"{function.__qualname__}.{name}"] = cell.cell_contents
        except ValueError:  # not bound yet
            continue
    for name, value in values.items():
        if isinstance(value, FunctionType):
            found[name] = id(value)
            _read_by(value, found, seen)
        elif isinstance(value, bool | int | float | complex | str | tuple | frozenset | np.generic):
            found[name] = repr(value)
        elif isinstance(value, np.ndarray):
            found[name] = value.tobytes()
        elif not isinstance(value, type):
            found[name] = id(value)
