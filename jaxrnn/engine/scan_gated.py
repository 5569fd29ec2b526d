"""Strategy: a scan with one product per step, forward and backward, and the library's derivative rule. It runs every gated cell."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxrnn._arrays import cast, contract, is_real, may_join_axes
from jaxrnn.cells.base import Cell, GatedCell, split_gates
from jaxrnn.engine.gates import Layout, additive_gates, gate_inputs
from jaxrnn.engine.lanes import Lane, handed_on, own_and_next
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.residuals import Linear, gate_values, join, partition
from jaxrnn.engine.segments import over_segments, scan, scan_in_place
from jaxrnn.engine.transition import after, before, output, zero_invalid
from jaxrnn.engine.tuning import Tuning, one_stream


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """Cells that are not gated, or have a `recur` or `computed_with` of their own; and gates that are not real."""
    kind = type(what.cell)
    if not isinstance(what.cell, GatedCell):
        return f"a {kind.__name__} is not a GatedCell"
    if kind.recur is not GatedCell.recur:
        return f"a {kind.__name__} has a `recur` of its own"
    if kind.computed_with is not Cell.computed_with:
        return f"a {kind.__name__} has a `computed_with` of its own"
    if weights.params.w_hh.shape[-2] != len(what.cell.gates) * (1 + isinstance(what.cell, Lane)):
        return f"`w_hh` does not hold all gates of the {kind.__name__}"
    if not all(is_real(a) for a in jax.tree.leaves((weights.params[:4], state.h))):
        return f"weights, biases and `h` should be real, and those of the {kind.__name__} are not"
    return None


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps):
    """The state after all steps, and their outputs."""
    # XLA:CPU transposes w_hh again in every step of the backward loop unless it is handed the transposed weights.
    w_back = lax.optimization_barrier(_flatten_gates(jnp.moveaxis(weights.params.w_hh.astype(what.dtype), 0, -1)))
    return _run(what, tuned, additive_gates(what, weights, state, steps), weights, w_back, state, steps)


def _forward(what: Semantics, tuned: Tuning, layout: Layout, advance, weights: Weights, state, steps: Steps):
    """The loop: `advance` takes a step, after the product, and gives the new state and what is to be stored with its output."""
    project_segment, gates = gate_inputs(what, layout, weights)

    def step(state, now):
        old, h = before(weights, state, now)
        h = h.astype(what.dtype)
        new, store = advance(now, old, *gates(now.x, h))
        out = output(what, new, now.valid)
        return new, (out, store(h, out))

    return scan_in_place(project_segment, step, state, steps, tuned.forward, what.reverse, tuned)


def _update(what: Semantics, now: Steps, state, x_gates, h_gates, extra, context, per_step):
    """The part of a step after the product."""
    assert isinstance(what.cell, GatedCell)
    return after(what, state, what.cell.update(state, x_gates, h_gates, *extra, **per_step, **context), now)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _run(what: Semantics, tuned: Tuning, additive: tuple, weights: Weights, w_back, state, steps: Steps):
    """`run`. `w_back` is `w_hh` with its first axis last, the others flat; for the derivative, the value does not depend on it."""
    extra = cast(weights.params[4:], what.dtype)

    def advance(now, old, x_gates, h_gates):
        return _update(what, now, old, x_gates, h_gates, extra, weights.context, now.per_step), lambda h, out: None

    layout = Layout(additive, tuned.small_projection, one_stream=False)
    final, (out, _) = _forward(what, tuned, layout, advance, weights, state, steps)
    return final, out


@_run.defjvp
def _run_jvp(what: Semantics, tuned: Tuning, additive: tuple, primals, tangents):
    """The derivative of the loop, as a loop over linear steps.

    With a = h @ w_hh + b_hh at each step, da = dh @ w_hh + (h @ dw_hh + db_hh), and the bracket is one product over all of
    a segment. Its transposition is the weight gradient, one product too, outside the loop over steps; the transposition of
    the linear loop is backpropagation through time, with one product per step.

    What `update` contributes is linearised step by step in the forward loop; `residuals` says what is stored for that.
    """
    weights, w_back, state, steps = primals
    d_weights, _, d_state, d_steps = tangents
    extra = cast(weights.params[4:], what.dtype)
    shared = jax.tree.leaves((extra, weights.context))
    masks = steps._replace(x=None)
    # What the product reads is the output of the step before, unless something comes between.
    outputs_are_states = steps.valid is None and steps.reset is None and weights.h_mask is None

    def advance(now, old, x_gates, h_gates):
        moving, fixed = partition((old, x_gates, h_gates, extra, weights.context, now.per_step))
        update = lambda moving: partition(_update(what, now, *join(moving, fixed)))
        update = jax.checkpoint(update, policy=gate_values(len(additive)), prevent_cse=False)
        new, linear, others = jax.linearize(update, moving, has_aux=True)

        def store(h, out):
            known = jax.tree.leaves((now._replace(x=None), h, out))
            return None if outputs_are_states else h, Linear.of(linear, known, shared)

        return join(new, others), store

    layout = Layout(additive, tuned.small_projection, one_stream=one_stream(tuned, additive))
    final, (out, (h, linear)) = _forward(what, tuned, layout, advance, weights, state, steps)
    if outputs_are_states:
        first, others = state.h[None], (out[0][1:] if what.reverse else out[0][:-1])
        h = jnp.concatenate([others, first] if what.reverse else [first, others]).astype(what.dtype)
    stored = linear.stored(jax.tree.leaves((masks, h, out)))

    d_moving = _without_float0(d_weights)
    d_extra, d_context = cast((d_moving.params[4:], d_moving.context), what.dtype)

    def linear_segment(d_state, inputs):
        x, d_x, d_per_step, h, stored, masks = inputs
        # Under `checkpoint`, what follows from the inputs alone (a mask, broadcast) is not stored for the transposition.
        project = lambda params, x: what.cell.project(cast(params, what.dtype), zero_invalid(masks.valid, x))
        _, d_x_gates = jax.jvp(jax.checkpoint(project, prevent_cse=False), (weights.params, x), (d_weights.params, d_x))
        both = (own_and_next(what.cell, cast(d, what.dtype)) for d in (d_weights.params.w_hh, d_weights.params.b_hh))
        (d_w, d_w_next), (d_b, d_b_next) = both
        d_gates = contract(h, d_w, d_b)
        if d_w_next is not None:
            d_x_gates = handed_on(d_x_gates, contract(h, d_w_next, d_b_next), weights.params.index)
        if all(additive):
            d_gates, separate = d_gates + d_x_gates, ()
        else:
            # Slices, whose transposition pads and adds those that are read; that of `split_gates` fills the others with zeros.
            apart = [lax.index_in_dim(d_x_gates, k, axis=-2, keepdims=False) for k in range(len(additive))]
            together = [d if is_sum else jnp.zeros_like(d) for d, is_sum in zip(apart, additive, strict=True)]
            separate = tuple(d for d, is_sum in zip(apart, additive, strict=True) if not is_sum)
            d_gates = d_gates + jnp.stack(together, axis=-2)
        if w_back.ndim == 2:
            d_gates = d_gates.reshape(*d_gates.shape[:-2], d_gates.shape[-2] * d_gates.shape[-1])
        inputs = (d_gates, separate, d_per_step, stored, masks)
        return scan(jax.checkpoint(linear_step, prevent_cse=False), d_state, inputs, what.reverse, tuned)

    def linear_step(d_state, inputs):
        d_gates, separate, d_per_step, stored, masks = inputs
        d_old, d_h = before(d_moving._replace(h_mask=weights.h_mask), d_state, masks)
        d_h = d_h.astype(w_back.dtype)
        axes = (((d_h.ndim - 1,), (w_back.ndim - 1,)), ((), ()))
        product, d_next = lax.dot_general(d_h, w_back, axes, preferred_element_type=d_gates.dtype), None
        if isinstance(what.cell, Lane):
            product, d_next = jnp.split(product, 2, axis=-1)
        d_h_gates = split_gates(d_gates + product) if w_back.ndim == 3 else _split_flat(d_gates + product, len(additive))
        if d_next is not None:
            d_before = _split_flat(handed_on(jnp.zeros_like(d_next), d_next, weights.params.index), len(additive))
            d_h_gates = tuple(d + e if is_sum else d for d, e, is_sum in zip(d_h_gates, d_before, additive, strict=True))
            others = (e for e, is_sum in zip(d_before, additive, strict=True) if not is_sum)
            separate = tuple(d + e for d, e in zip(separate, others, strict=True))
        separate = iter(separate)
        d_x = tuple(jnp.zeros_like(d) if is_sum else next(separate) for d, is_sum in zip(d_h_gates, additive, strict=True))
        d_state = linear.apply(stored, shared, (d_old, d_x, d_h_gates, d_extra, d_context, d_per_step))
        return d_state, output(what, d_state, masks.valid)

    d_per_step = _without_float0(d_steps.per_step)
    inputs = (steps.x, d_steps.x, d_per_step, h, stored, masks)
    d_final, d_out = over_segments(linear_segment, _without_float0(d_state), inputs, tuned.backward, what.reverse)
    return (final, out), (_with_float0(final, d_final), _with_float0(out, d_out))


# Tangents of counters and keys are of JAX's dtype float0; the linear loop carries None in their place.


def _without_float0(tangents):
    return jax.tree.map(lambda d: None if d.dtype == jax.dtypes.float0 else d, tangents)


def _with_float0(values, tangents):
    zero = lambda a, d: np.zeros(a.shape, jax.dtypes.float0) if d is None else d
    return jax.tree.map(zero, values, tangents)


def _flatten_gates(w):
    """Gates and hidden units, the first two axes, as one; but two under a mesh, which may have the hidden units in parts."""
    return w.reshape(-1, w.shape[-1]) if may_join_axes(w) else w


def _split_flat(a, gates: int):
    """One array per gate, from an array with gates and hidden units on its last axis."""
    return tuple(lax.split(a, [a.shape[-1] // gates] * gates, axis=a.ndim - 1))
