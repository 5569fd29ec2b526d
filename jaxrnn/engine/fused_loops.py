"""What `fused` computes, as scans: the loop over time, its linear map, and the transposition of that. Each is a primitive whose
meaning is the scan here; `fused_kernels` puts kernels in the place of the first and the last. No kernel may live here."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._arrays import contract
from jaxrnn.cells.base import GatedCell, split_gates
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.engine.primitives import Loop
from jaxrnn.engine.problem import Semantics, Steps
from jaxrnn.engine.transition import after


class Form(NamedTuple):
    """What a loop does; hashable."""

    what: Semantics
    additive: tuple[bool, ...]
    """For each gate, whether `update` reads x and h only as their sum."""
    outside: tuple
    """What the cell's class reads beside its arguments: another value is another loop."""

    @property
    def cell(self):
        """The cell. Loops are lowered and transposed after their call, and its equations have to be those of the call."""
        cell = self.what.cell
        if read_from_outside(cell) != self.outside:
            rule = "`update` should read from outside what it read when it was called, got another value by the time it is compiled"
            raise ValueError(f"{type(cell).__name__}: {rule}.\nMake it a field of the cell, or take backend='xla'.")
        return cell


class Known(NamedTuple):
    """What the loop forward leaves for its derivative; all but the first two have time in front."""

    w_hh: Any
    extra: tuple
    """Parameters of `update`."""
    before: Any
    """The state before each step."""
    x: Any
    """What x contributes to the gates that are not additive; None if all are."""
    pre: Any
    """Pre-activations: of x and h together where a gate is additive, else of h."""
    valid: Any


def advance(form: Form, update, valid):
    """A step after the product, as a function of what it can be differentiated by."""
    masks = (None,) * len(form.what.cell.State._fields)
    step = Steps(None, valid, None, masks, {})
    return lambda state, x, h, extra: after(form.what, state, update(state, x, h, extra), step)


def _update(form: Form):
    cell = form.cell
    assert isinstance(cell, GatedCell)
    return lambda state, x, h, extra: cell.update(state, x, h, *extra)


def _forward(form: Form, weights, state, x, valid, store: bool = False):
    """The state after all steps, and at each; with `store`, also the pre-activations."""
    w_hh, b_hh, extra = weights

    def step(state, now):
        x_gates, valid = now
        x, h = split_gates(x_gates), split_gates(contract(state.h, w_hh, b_hh))
        pre = jnp.stack([a + b if add else b for a, b, add in zip(x, h, form.additive, strict=True)], -2) if store else None
        state = advance(form, _update(form), valid)(state, x, h, extra)
        return state, (state if store else wanted(form, state), pre)

    final, (states, pre) = lax.scan(step, state, (x, valid), reverse=form.what.reverse)
    return (final, states, pre) if store else (final, states)


def forward_shapes(form: Form, weights, state, x, valid, store: bool = False):
    over_time = lambda a: jax.ShapeDtypeStruct((x.shape[0], *a.shape), a.dtype)
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state)
    states = jax.tree.map(over_time, like if store else wanted(form, like))
    return (like, states, jax.ShapeDtypeStruct(x.shape, x.dtype)) if store else (like, states)


def _linear(form: Form, known: Known, d_state, d_h, d_x, d_extra):
    """The linear map of the loop, where the products of h and the tangents of weights are in `d_h` already, with those of x where
    a gate is additive; `d_x` holds the others."""

    def step(d_state, now):
        known_now, d_h, d_x = now
        known_now, move = _at_a_step(form, known, known_now)
        d_h = split_gates(d_h + contract(d_state.h, known.w_hh))
        d_state = jax.jvp(move, known_now, (d_state, _all_gates(form, d_x, d_h), d_h, d_extra))[1]
        return d_state, wanted(form, d_state)

    return lax.scan(step, d_state, (_over_time(known), d_h, d_x), reverse=form.what.reverse)


def _backward(form: Form, known: Known, cotangents):
    """The transposition of `_linear`: cotangents of its inputs, from those of its results."""
    d_final, d_states = cotangents
    none = jax.tree.map(lambda a: jnp.zeros_like(a), known.extra)

    def step(carry, now):
        (d_state, d_extra), (known_now, d_wanted) = carry, now
        known_now, move = _at_a_step(form, known, known_now)
        d_old, d_x, d_h, d_more = jax.vjp(move, *known_now)[1](add_wanted(d_state, d_wanted))
        d_h = jnp.stack(d_h, -2)
        axes = (((1, 2), (1, 2)), ((), ()))
        product = lax.dot_general(d_h.astype(known.w_hh.dtype), known.w_hh, axes, preferred_element_type=jnp.float32)
        d_x = [d for d, add in zip(d_x, form.additive, strict=True) if not add]
        d_extra = jax.tree.map(jnp.add, d_extra, d_more)
        return (d_old._replace(h=d_old.h + product), d_extra), (d_h, jnp.stack(d_x, -2) if d_x else None)

    (d_state, d_extra), (d_h, d_x) = lax.scan(step, (d_final, none), (_over_time(known), d_states), reverse=not form.what.reverse)
    return d_state, d_h, d_x, d_extra


def _over_time(known: Known):
    return known.before, known.x, known.pre, known.valid


def _at_a_step(form: Form, known: Known, now):
    """What a step after the product is differentiated at, and the step."""
    before, x, pre, valid = now
    pre = split_gates(pre)
    return (before, _all_gates(form, x, pre), pre, known.extra), advance(form, _update(form), valid)


def _all_gates(form: Form, own, like) -> tuple:
    """For each gate, what x contributes by itself: zeros where it is additive."""
    own = iter(() if own is None else split_gates(own))
    return tuple(jnp.zeros_like(a) if add else next(own) for a, add in zip(like, form.additive, strict=True))


def wanted(form: Form, state):
    """What is asked for of the state at each step: `h` alone, or all."""
    return state if form.what.return_states else type(state)(**(dict.fromkeys(state._fields) | {"h": state.h}))


def add_wanted(state, wanted):
    return type(state)(*(a if b is None else a + b for a, b in zip(state, wanted, strict=True)))


forward = Loop("rnn_forward", _forward, forward_shapes)
stored = Loop("rnn_forward_stored", partial(_forward, store=True), partial(forward_shapes, store=True))
linear = Loop("rnn_linear", _linear, lambda form, known, d_state, *_: _linear_shapes(form, known, d_state))
backward = Loop("rnn_backward", _backward, lambda form, known, _: _backward_shapes(form, known))


def _linear_shapes(form: Form, known: Known, d_state):
    like = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype)
    return jax.tree.map(like, d_state), jax.tree.map(like, wanted(form, known.before))


def _backward_shapes(form: Form, known: Known):
    like = lambda a, *shape: jax.ShapeDtypeStruct(shape or a.shape, a.dtype)
    d_x = None if known.x is None else like(known.x)
    first = jax.tree.map(lambda a: like(a, *a.shape[1:]), known.before)
    return first, like(known.pre), d_x, jax.tree.map(like, known.extra)


def _differentiate(form: Form, trees, tangents):
    ((w_hh, _, extra), state, x, valid), ((d_w, d_b, d_extra), d_state, d_x, _) = trees, tangents
    final, states, pre = stored(form, *trees)
    order = (lambda first, every: (every[1:], first)) if form.what.reverse else (lambda first, every: (first, every[:-1]))
    before = jax.tree.map(lambda one, every: jnp.concatenate(order(one[None], every)), state, states)
    d_h = contract(before.h.astype(w_hh.dtype), d_w, d_b)
    d_h = jnp.where(np.array(form.additive)[:, None], d_h + d_x, d_h)
    own = [k for k, add in enumerate(form.additive) if not add]
    pick = lambda a: jnp.stack([a[..., k, :] for k in own], -2) if own else None
    known = Known(w_hh, extra, before, pick(x), pre, valid)
    d_final, d_states = linear(form, known, d_state, d_h, pick(d_x), d_extra)
    return (final, wanted(form, states)), (d_final, d_states)


forward.differentiate(_differentiate)
linear.transpose(backward)
