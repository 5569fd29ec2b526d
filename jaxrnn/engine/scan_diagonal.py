"""Strategy: a diagonal cell in a loop, with the derivative of its whole sequence as one linear recurrence."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import jaxprs_in_params

from jaxrnn._arrays import cast, is_real, zeros_like
from jaxrnn.cells.base import Cell
from jaxrnn.cells.conform import equations_of
from jaxrnn.cells.elementwise import DiagonalCell, project_each
from jaxrnn.engine import affine, scan_plain
from jaxrnn.engine.one_sequence import without_batch
from jaxrnn.engine.outside import refuse_traced
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.residuals import join, partition
from jaxrnn.engine.segments import over_segments, scan
from jaxrnn.engine.transition import after, before, output, zero_invalid
from jaxrnn.engine.tuning import Tuning


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """Cells that are not diagonal, or have a `computed_with` of their own, or fields in their state that are not real."""
    kind = type(what.cell)
    if not isinstance(what.cell, DiagonalCell):
        return f"a {kind.__name__} is not a DiagonalCell"
    if kind.computed_with is not Cell.computed_with:
        return f"a {kind.__name__} has a `computed_with` of its own"
    if not all(is_real(a) and a.shape == state.h.shape for a in state):
        return f"the fields of a state should be real and of one shape, and those of the {kind.__name__} are not"
    return None


def in_loop(whole, now: Steps, start, initial, reverse: bool):
    """The states, one after the other."""

    def step(state, now):
        if now.reset is not None:
            state, _ = before(Weights(None, initial, None, {}), state, now)
        state = whole(state, now)
        return state, state

    return scan(step, start, now, reverse)[1]


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps, *, find=in_loop, form: str = "loop"):
    """The state after all steps, and their outputs.

    Args:
        find: how the states are found. form: how the linear recurrence of the derivative is computed, see `affine`.
    """
    if _drawn_otherwise_side_by_side(_checked_step(what, weights, state, steps)):
        return scan_plain.run(what, tuned, weights, state, steps)
    return without_batch(partial(_run, what, tuned, find, form), what, weights, state, steps)


def _run(what: Semantics, tuned: Tuning, find, form: str, weights: Weights, state, steps: Steps):
    segment = jax.checkpoint(partial(_segment, what, find, form, weights), policy=affine.STORED, prevent_cse=False)
    return over_segments(segment, state, steps, tuned.backward, what.reverse)


ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e", "bessel_i1e",
    "bitcast_convert_type", "broadcast_in_dim", "cbrt", "ceil", "clamp", "complex", "conj", "convert_element_type", "copy",
    "cos", "cosh", "digamma", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma",
    "igammac", "imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min", "mul",
    "name", "ne", "neg", "nextafter", "not", "optimization_barrier", "or", "pcast", "polygamma", "pow", "pvary", "real",
    "reduce_precision", "regularized_incomplete_beta", "rem", "reshape", "reshard", "round", "rsqrt", "select_n",
    "sharding_constraint", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan", "tanh", "xor", "zeta",
}  # fmt: skip
"""Primitives whose output, where it has the shape of an input, takes from that input in each place alone. One that is not here is
refused: many others (a pooling, a shift by `pad`, `top_k`) keep a shape and yet take from other units."""

CALLS = {"closed_call", "core_call", "checkpoint", "custom_jvp_call", "custom_vjp_call", "jit", "pjit", "remat", "remat2"}
"""Primitives that are the equations inside of them."""


def _checked_step(what: Semantics, weights: Weights, state, steps: Steps):
    """The equations of a step. What `recur` makes of the state stays in the place of its unit, or the rule would be wrong."""
    cell, params = what.cell, cast(weights.params, what.dtype)
    x, per_step = jax.tree.map(lambda a: a[0], (steps.x, steps.per_step))
    recur = lambda state, x, params, further: cell.recur(params, state, cell.project(params, x), state.h, **further)
    with equations_of(cell, "recur"):
        jaxpr = jax.make_jaxpr(recur)(state, x, params, per_step | weights.context)
    refuse_traced(cell, "recur", jaxpr)
    jaxpr = jaxpr.jaxpr
    mixing = _first_mixing(jaxpr, set(jaxpr.invars[: len(state)]))
    if mixing is not None:
        name = type(cell).__name__
        raise ValueError(
            f"{name}: `recur` should be elementwise in the state, as that of a DiagonalCell is, got {mixing} of it.\n"
            f"Make the {name} a Cell, or a GatedCell."
        )
    return jaxpr


def _drawn_otherwise_side_by_side(jaxpr) -> bool:
    """Whether a step draws from keys that give other numbers under `vmap`, as rbg's do: the derivative takes steps that way."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "random_bits" and str(eqn.invars[0].aval.dtype) != "key<fry>":
            return True
        if any(_drawn_otherwise_side_by_side(inner) for inner in jaxprs_in_params(eqn.params)):
            return True
    return False


def _first_mixing(jaxpr, reached: set) -> str | None:
    """The first primitive that changes the shape of what was `reached` from the state, or may mix its units; None if there is none.
    What is reached further is added."""
    for eqn in jaxpr.eqns:
        read = [k for k, v in enumerate(eqn.invars) if not hasattr(v, "val") and v in reached]
        if not read:
            continue
        inner = next((eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params), None)
        if inner is not None and eqn.primitive.name in CALLS:
            inner = getattr(inner, "jaxpr", inner)
            if len(inner.invars) != len(eqn.invars):
                return eqn.primitive.name
            found = _first_mixing(inner, {inner.invars[k] for k in read})
            if found is not None:
                return found
        elif eqn.primitive.name not in ELEMENTWISE or _shapes(eqn.outvars) != _shapes(eqn.invars[k] for k in read):
            return eqn.primitive.name
        reached.update(eqn.outvars)
    return None


def _shapes(variables) -> set:
    return {v.aval.shape for v in variables}


def _segment(what: Semantics, find, form: str, weights: Weights, state, steps: Steps):
    project = project_each if _projects_as_usual(what.cell) else what.cell.project
    x_gates = project(cast(weights.params, what.dtype), zero_invalid(steps.valid, steps.x))
    steps = steps._replace(x=checkpoint_name(x_gates, "x_gates"))
    initial = state if weights.initial is None else weights.initial
    moving, fixed = partition((weights._replace(initial=None), steps))
    states = _states(what, find, form, moving, fixed, state, initial)
    return jax.tree.map(lambda s: s[0 if what.reverse else -1], states), output(what, states, steps.valid)


def _projects_as_usual(cell) -> bool:
    return type(cell).project is Cell.project


def _whole(what: Semantics, weights: Weights, old, now: Steps):
    """A step from the state that it reads, whatever that was reset from."""
    old, h = before(weights, old, now._replace(reset=None))
    x_gates = jnp.stack(now.x, axis=-2) if _projects_as_usual(what.cell) else now.x
    new = what.cell.recur(cast(weights.params, what.dtype), old, x_gates, h, **now.per_step, **weights.context)
    return after(what, old, new, now)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _states(what: Semantics, find, form: str, moving, fixed, start, initial):
    """Every state, with time in front. `moving` and `fixed` are the arrays of weights and steps, as `partition` gives them."""
    weights, steps = join(moving, fixed)
    return find(lambda old, now: _whole(what, weights, old, now), steps, start, initial, what.reverse)


@_states.defjvp
def _states_jvp(what: Semantics, find, form: str, primals, tangents):
    """With h′ = f(θ, h), dh′ = ∂f/∂h dh + ∂f/∂θ dθ: a linear recurrence, whichever way the states were found."""
    moving, fixed, start, initial = primals
    d_moving, _, d_start, d_initial = tangents
    states = type(start)(*checkpoint_name(tuple(_states(what, find, form, *primals)), affine.STATES))
    reset, reverse = fixed[1].reset, what.reverse
    read = type(start)(*affine.states_before(states, start, reset, initial, reverse))

    def whole(moving, old):
        weights, steps = join(moving, fixed)
        return jax.vmap(partial(_whole, what, weights))(old, steps)

    _, jacobian = linearised(partial(whole, moving), read)
    _, direct = jax.jvp(lambda moving: whole(moving, read), (moving,), (d_moving,))
    d_states = affine.solve(
        form, jacobian, tuple(direct), tuple(d_start), reset=reset, initial=tuple(d_initial), reverse=reverse
    )  # fmt: skip
    return states, type(start)(*d_states)


def linearised(function, at):
    """The value of a function of states, unit by unit, and its Jacobian as k × k arrays: one derivative for each part."""
    values, columns = [], []
    for j in range(len(at)):
        unit = type(at)(*(zeros_like(a) + (1 if i == j else 0) for i, a in enumerate(at)))
        value, column = jax.jvp(function, (at,), (unit,))
        values.append(value)
        columns.append(tuple(column))
    return values[-1], tuple(zip(*columns, strict=True))
