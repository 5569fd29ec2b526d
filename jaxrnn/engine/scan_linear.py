"""Strategy: a linear cell, its coefficients computed for many steps at once, its states by a loop or a parallel prefix."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxrnn._arrays import broadcast_like, cast, is_real, zeros_like
from jaxrnn.cells.elementwise import LinearCell
from jaxrnn.engine import affine
from jaxrnn.engine.one_sequence import without_batch
from jaxrnn.engine.over_devices import at_the_end
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.residuals import join
from jaxrnn.engine.segments import over_segments
from jaxrnn.engine.transition import after, output, zero_invalid
from jaxrnn.engine.tuning import Tuning


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """Cells that are not linear, or have a mask of `h`."""
    if not isinstance(what.cell, LinearCell):
        return f"a {type(what.cell).__name__} is not a LinearCell"
    if type(what.cell).recur is not LinearCell.recur:
        return f"a {type(what.cell).__name__} has a `recur` of its own"
    if weights.h_mask is not None:
        return f"coefficients of a {type(what.cell).__name__} act on `h`, and `h_mask` would be left out"
    if not is_real(state.h) or len(state) > 1:
        return f"the state should be one real `h`, and that of the {type(what.cell).__name__} is not"
    return None


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps, *, form: str = "loop"):
    """The state after all steps, and their outputs."""
    return without_batch(partial(_run, what, tuned, form), what, weights, state, steps)


def _run(what: Semantics, tuned: Tuning, form: str, weights: Weights, state, steps: Steps):
    if what.time_axis is not None:
        return _part(what, tuned.backward, form, weights, state, steps)
    segment = jax.checkpoint(partial(_segment, what, form, weights), policy=affine.STORED, prevent_cse=False)
    return over_segments(segment, state, steps, tuned.backward, what.reverse)


def _linear(what: Semantics) -> LinearCell:
    assert isinstance(what.cell, LinearCell)
    return what.cell


def _segment(what: Semantics, form: str, weights: Weights, state, steps: Steps):
    return _states(what, form, weights, state, steps, *_coefficients(what, weights, state, steps))


def _part(what: Semantics, length: int, form: str, weights: Weights, state, steps: Steps):
    """All steps of this device, whose states need those of others: the coefficients alone are computed in segments."""
    coefficients = jax.checkpoint(partial(_coefficients, what, weights, state), policy=affine.STORED, prevent_cse=False)
    a, _ = coefficients(jax.tree.map(lambda leaf: leaf[:1], steps))  # of which those are used that are the same at every step
    shapes, _ = jax.eval_shape(coefficients, jax.tree.map(lambda leaf: leaf[:2], steps))

    def segment(_, steps):
        a, b = coefficients(steps)
        return (), (jax.tree.map(lambda leaf, shape: leaf if shape.shape[0] == 2 else None, a, shapes), b)

    _, (moving, b) = over_segments(segment, (), steps, length, what.reverse)
    return _states(what, form, weights, state, steps, join(moving, a), b)


def _coefficients(what: Semantics, weights: Weights, state, steps: Steps):
    """A and b of whole steps, zoneout and mask included."""
    cell = _linear(what)
    x_gates = cell.project(cast(weights.params, what.dtype), zero_invalid(steps.valid, steps.x))
    x_gates = checkpoint_name(x_gates, "x_gates")
    a, b = cell.affine(weights.params, x_gates, **steps.per_step, **weights.context)
    return _with_transition(what, steps, *cell.fitting(a, b, cell.parts(state.h)))


def _states(what: Semantics, form: str, weights: Weights, state, steps: Steps, a, b):
    cell, axis, reverse = _linear(what), what.time_axis, what.reverse
    initial = None if steps.reset is None else cell.parts(weights.initial.h)
    parts = affine.solve(form, a, b, cell.parts(state.h), reset=steps.reset, initial=initial, reverse=reverse, axis=axis)
    states = cell.State(cell.joined(parts))
    last = jax.tree.map(lambda s: s[0 if reverse else -1], states)
    return last if axis is None else at_the_end(axis, reverse, last), output(what, states, steps.valid)


def _with_transition(what: Semantics, steps: Steps, a, b):
    """The coefficients of a whole step, zoneout and mask included: what comes after a cell's equations is linear in the old and
    the new state together, so that it is applied to each column of A, and to b."""
    like = b[0]
    if steps.valid is None and what.zoneout_rates[0] is None and steps.zoneout_mask[0] is None:
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, tuple(range(like.ndim - leaf.ndim))), a), b
    cell, spread = _linear(what), lambda leaf: broadcast_like(leaf, like)

    def whole(old, new):
        old, new = (cell.State(cell.joined(tuple(map(spread, parts)))) for parts in (old, new))
        return cell.parts(after(what, old, new, steps).h)

    unit = lambda j: tuple(zeros_like(like) + (1 if i == j else 0) for i in range(len(b)))
    columns = [whole(unit(j), column) for j, column in enumerate(zip(*a, strict=True))]
    return tuple(zip(*columns, strict=True)), whole(unit(-1), b)
