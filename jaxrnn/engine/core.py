"""Behind the door: arguments that were checked to a problem, its solution to a result. No argument is checked here."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import (
    broadcast_like,
    cast,
    computing_dtype,
    in_parts_of_time,
    is_differentiable,
    is_real,
    lay_beside,
    same_varying_axes,
    select,
    time_axis_of,
    zeros_like,
)
from jaxrnn.checks import is_symbolic
from jaxrnn.engine import strategies
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.engine.over_devices import at_the_end
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.transition import resets_in_loop_order, valid_steps


def unrolled(cell, params, xs, state, *, zoneout=None, dtype=None, per_step=None, context=None, **options):
    """`unroll` without its checks; `options` are its other keyword arguments."""
    rates = masks = (None,) * len(cell.State._fields)
    if zoneout is not None:
        rates = tuple(float(z) if isinstance(z, float) else None for z in zoneout)
        masks = tuple(None if isinstance(z, float) else z for z in zoneout)
    dtype = computing_dtype(xs, params.w_ih) if dtype is None else jnp.dtype(dtype)
    return _unrolled(
        cell, params, xs, state, rates=rates, masks=masks, per_step=per_step or {}, context=context or {}, dtype=dtype,
        outside=read_from_outside(cell), **options,
    )  # fmt: skip


STATIC = (
    "cell", "rates", "reverse", "return_states", "remat", "truncate", "dtype", "strategy", "outside", "time_axis", "on_gpus",
)  # fmt: skip


@partial(jax.jit, static_argnames=STATIC)
def _unrolled(
    cell, params, xs, state, *, initial=None, lengths=None, mask=None, reset=None, reverse=False, return_states=False, remat=False,
    truncate=None, h_mask=None, strategy=None, time_axis=None, on_gpus=None, rates, masks, per_step, context,
    dtype, outside,
):  # fmt: skip
    """One `jit`: layers of the same shapes are traced and lowered once, and a call outside of any `jit` compiles once."""
    over = time_axis_of(xs)
    if over is not None:
        parts = {"xs": xs, "mask": mask, "reset": reset, "masks": masks, "per_step": per_step}
        whole = {"params": params, "state": state, "initial": initial, "lengths": lengths, "context": context, "h_mask": h_mask}
        static = {"rates": rates, "reverse": reverse, "dtype": dtype, "strategy": strategy, "outside": outside}
        run = lambda parts, whole: _unrolled(cell, **parts, **whole, **static, time_axis=over)
        return in_parts_of_time(run, over, parts, whole, xs)
    time, batch = xs.shape[0], xs.shape[1 : xs.ndim - cell.event_ndim]
    xs, per_step, context = cast((xs, per_step, context), dtype)
    valid = valid_steps(time, lengths, mask, time_axis)
    arrays = (params, xs, valid, reset, state, initial, h_mask, per_step, context)
    params, xs, valid, reset, state, initial, h_mask, per_step, context = same_varying_axes(*arrays)
    valid, reset = (None if a is None else lay_beside(a, xs, 1 + len(batch)) for a in (valid, reset))

    first = xs[0] if is_symbolic(time) or time else jnp.zeros(xs.shape[1:], xs.dtype)
    own = cell.initial_state(cast(params, dtype), first)
    own = same_varying_axes(jax.tree.map(lambda s: lay_beside(s, first, min(len(batch), s.ndim)), own), xs)[0]
    if time_axis is not None:  # all start where the first part does, also if a cell's start looks at `x`
        own = same_varying_axes(at_the_end(time_axis, True, own), xs)[0]
    initial = own if initial is None else as_given(initial, own)
    state = initial if state is None else as_given(state, own)
    h_mask = None if h_mask is None else lax.stop_gradient(broadcast_like(h_mask, own.h))
    masks = tuple(None if z is None else _beside_state(z, s) for z, s in zip(masks, own, strict=True))
    per_step = jax.tree.map(lambda a: _readable(a, xs, 1 + len(batch), valid), per_step)

    if not is_symbolic(time) and time == 0:
        ys = jnp.zeros((0, *own.h.shape), dtype if is_real(own.h) else own.h.dtype)
        return (state, ys, jax.tree.map(lambda s: s[None], state)) if return_states else (state, ys)
    what = Semantics(cell, rates, reverse, return_states, truncate, dtype, time_axis)
    weights = Weights(params, None if reset is None else initial, h_mask, context)
    steps = Steps(xs, valid, resets_in_loop_order(reset, valid, reverse, time_axis), masks, per_step)
    final, (ys, states) = strategies.run(what, remat, strategy, weights, state, steps, on_gpus)
    ys = ys.astype(dtype) if is_real(ys) else ys
    if not return_states:
        return final, ys
    order = (lambda one, every: (every, one[None])) if reverse else (lambda one, every: (one[None], every))
    return final, ys, jax.tree.map(lambda one, every: jnp.concatenate(order(one, every)), state, states)


def as_given(state, own):
    """A state in the shapes, dtypes and places of the cell's own, its values as given; the cell's own where a field is None."""
    take = lambda given, like: like if given is None else broadcast_like(jnp.asarray(given), like)
    return type(own)(*same_varying_axes(*(take(given, like) for given, like in zip(state, own, strict=True)), own)[:-1])


def _beside_state(mask, field):
    """What is drawn for one field of the state at every step, laid as the field is."""
    laid = lay_beside(jnp.moveaxis(mask, 0, -1), field, field.ndim)
    return same_varying_axes(jnp.moveaxis(laid, -1, 0), field)[0]


def _readable(a, xs, axes: int, valid):
    """A further input, with the first `axes` axes laid as those of `xs`, and zero where the step is not valid; but keys, counts,
    and what all examples share."""
    if not is_differentiable(a) or a.shape[:axes] != xs.shape[:axes]:
        return a
    a = lay_beside(a, xs, axes)
    return a if valid is None else select(valid, a, zeros_like(a))
