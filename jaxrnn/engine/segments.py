"""Loops over time in pieces: segments, outputs in their place, computing again, stopping gradients. No cell may be known here."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import jaxpr_as_fun

from jaxrnn._arrays import is_differentiable, stacked_buffer
from jaxrnn.checks import is_symbolic
from jaxrnn.engine.tuning import GPUS, UNROLLED, Tuning


def steps_in(steps):
    """How many steps there are; may be symbolic."""
    return jax.tree.leaves(steps)[0].shape[0]


def scan(step, state, steps, reverse: bool, tuned: Tuning | None = None):
    """`lax.scan`, on a GPU with `tuned.at_once` steps in one iteration of the loop; very few steps are all unrolled.

    The step is traced once: to trace the whole strategy for each platform would take twice as long, on a CPU too.
    """
    time = steps_in(steps)
    if is_symbolic(time) or time <= UNROLLED or tuned is None or tuned.at_once == 1:
        return lax.scan(step, state, steps, reverse=reverse, unroll=not is_symbolic(time) and time <= UNROLLED)
    if tuned.on_gpus:
        return lax.scan(step, state, steps, reverse=reverse, unroll=tuned.at_once)
    jaxpr, shapes = jax.make_jaxpr(step, return_shape=True)(state, jax.tree.map(lambda a: a[0], steps))
    flat, structure = jaxpr_as_fun(jaxpr), jax.tree.structure(shapes)

    def run(unroll, state, steps):
        again = lambda state, now: jax.tree.unflatten(structure, flat(*jax.tree.leaves((state, now))))
        return lax.scan(again, state, steps, reverse=reverse, unroll=unroll)

    on_gpu = partial(run, tuned.at_once)
    return lax.platform_dependent(state, steps, default=partial(run, 1), **dict.fromkeys(GPUS, on_gpu))


def over_segments(segment, carry, steps, length: int, reverse: bool):
    """`lax.scan`, with a function that takes `length` steps at a time, counted from step 0; the rest at the end is a piece too."""
    time = steps_in(steps)
    if is_symbolic(time) or time <= length:
        return segment(carry, steps)

    outs, (pieces, rest) = [], divmod(time, length)
    whole = jax.tree.map(lambda a: a[: pieces * length].reshape(pieces, length, *a.shape[1:]), steps)
    tail = jax.tree.map(lambda a: a[pieces * length :], steps)
    for piece in ("tail", "whole") if reverse else ("whole", "tail"):
        if piece == "whole":
            carry, out = lax.scan(segment, carry, whole, reverse=reverse)
            outs.append(jax.tree.map(lambda a: a.reshape(pieces * length, *a.shape[2:]), out))
        if piece == "tail" and rest:
            carry, out = segment(carry, tail)
            outs.append(out)
    outs = outs[::-1] if reverse else outs
    return carry, outs[0] if len(outs) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *outs)


def scan_in_place(prepare, step, state, steps, length: int, reverse: bool, tuned: Tuning):
    """`scan` over steps that `prepare` makes ready `length` at a time; each output is written where it belongs in all of time.

    A nested scan would fill a buffer for each segment with zeros, then with outputs, then copy it to its place. This one is
    slow to transpose (it writes zeros back), which only derivatives of second order do.
    """
    time = steps_in(steps)
    if is_symbolic(time) or time <= length:
        return scan(step, state, prepare(steps), reverse, tuned)

    def segment(carry, inputs):
        def write(carry, inputs):
            (state, written), (index, now) = carry, inputs
            state, out = step(state, now)
            return (state, jax.tree.map(partial(_set_row, index=index), written, out)), None

        indices, steps = inputs
        return lax.scan(write, carry, (indices, prepare(steps)), reverse=reverse)

    def outputs(state, first):
        return step(state, jax.tree.map(lambda a: a[0], prepare(first)))[1]

    jaxpr, shapes = jax.make_jaxpr(outputs, return_shape=True)(state, jax.tree.map(lambda a: a[:1], steps))
    rows = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.out_avals)
    carry = state, jax.tree.map(lambda row: stacked_buffer(row, time, state), rows)
    carry, _ = over_segments(segment, carry, (lax.iota(jnp.int32, time), steps), length, reverse)
    return carry


def _set_row(a, row, index):
    return lax.dynamic_update_index_in_dim(a, row, index, 0, allow_negative_indices=False)


def rematerialised(run, state, steps, length: int, reverse: bool):
    """Run pieces of `length` steps, of which only the state before each is stored for the backward pass."""
    return over_segments(jax.checkpoint(run), state, steps, length, reverse)


def truncated(run, state, steps, length: int, reverse: bool):
    """Run pieces of `length` steps and stop the gradient, but not the state, between them.

    The first piece keeps its gradient to the initial state; later ones are cut.
    """

    def piece(carry, steps):
        started, state = carry
        cut = lambda s: jnp.where(started, lax.stop_gradient(s), s) if is_differentiable(s) else s
        state, out = run(jax.tree.map(cut, state), steps)
        return (jnp.ones_like(started), state), out

    (_, state), out = over_segments(piece, (jnp.zeros((), bool), state), steps, length, reverse)
    return state, out
