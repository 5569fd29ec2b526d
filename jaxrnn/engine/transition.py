"""The only meaning of reset, variational dropout of h, zoneout and mask: what happens before and after a cell's equations. All of
it is linear in the states, so that a derivative calls the same functions with tangents for states (a None is a field without)."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn._arrays import select
from jaxrnn.cells.conform import check_new_state
from jaxrnn.engine.over_devices import greatest_after, steps_before
from jaxrnn.engine.problem import Semantics, Steps, Weights


def before(weights: Weights, state, step: Steps):
    """The state before the step, which is the initial one where the sequence starts again; and `h` as products read it."""
    if step.reset is not None:
        state = jax.tree.map(lambda start, old: select(step.reset, start, old), weights.initial, state)
    return state, state.h if weights.h_mask is None else state.h * weights.h_mask


def after(what: Semantics, old, new, step: Steps):
    """The state after the step: zoneout first, of the fields that it acts on; then the old one where the step is not valid."""
    check_new_state(what.cell, old, new)
    kept = []
    for was, now, rate, mask in zip(old, new, what.zoneout_rates, step.zoneout_mask, strict=True):
        if rate is not None:
            now = rate * was + (1 - rate) * now
        if mask is not None:
            now = jnp.where(mask, was, now)
        kept.append(now if step.valid is None else select(step.valid, now, was))
    return type(old)(*kept)


def output(what: Semantics, state, valid):
    """What a step gives out: `h`, zero where the step is not valid; and the state, if all are wanted."""
    y = state.h if valid is None else select(valid, state.h, jnp.zeros_like(state.h))
    return y, state if what.return_states else None


def valid_steps(time, lengths, mask, axis=None) -> Any:
    """Which steps (time, *batch) are valid: the first `lengths` of each sequence, or those of `mask`; None: all."""
    if lengths is None:
        return mask
    steps = jax.lax.broadcasted_iota(jnp.int32, (time, *lengths.shape), 0) + steps_before(axis, time)
    return steps < lengths.astype(jnp.int32)[None]


def zero_invalid(valid, x) -> Any:
    """The input, zero where the step is not valid: what stands there must not reach a gradient, not even as NaN."""
    return x if valid is None else select(valid, x, jnp.zeros_like(x))


def resets_in_loop_order(reset, valid, reverse: bool, axis=None):
    """Where the state starts again before the step, seen in the direction of the loop; only at valid steps.

    In reverse, a step starts again if the nearest valid step after it is flagged. With valid steps coded as 2 · (T − t) + flag,
    a running maximum from the right finds the nearest one, and its lowest bit is the flag.
    """
    if reset is None:
        return None
    if not reverse:
        return reset if valid is None else reset & valid
    time, parts = reset.shape[0], 1 if axis is None else jax.lax.axis_size(axis)
    distance = parts * time - steps_before(axis, time) - jax.lax.broadcasted_iota(jnp.int32, reset.shape, 0)
    code = 2 * distance + reset.astype(jnp.int32)
    nearest = jax.lax.cummax(code if valid is None else jnp.where(valid, code, 0), axis=0, reverse=True)
    later = jnp.concatenate([nearest[1:], jnp.zeros_like(nearest[:1])])
    if axis is not None:
        later = jnp.maximum(later, greatest_after(axis, nearest[0]))
    opens = later % 2 == 1
    return opens if valid is None else opens & valid
