"""What the input contributes to the gates of a gated cell: how it is projected, and which gates read it only as a part of a sum."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn._arrays import broadcast_like, cast, contract, promote
from jaxrnn.cells.base import Cell, GatedCell, split_gates
from jaxrnn.cells.conform import equations_of
from jaxrnn.engine.lanes import Lane, handed_on
from jaxrnn.engine.outside import refuse_traced
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.transition import zero_invalid


class Layout(NamedTuple):
    """How the projected input lies in the loop.

    Args:
        additive_gates: for each gate, whether it is additive: see `additive_gates`.
        small_projection: whether one product for all gates is started faster than one for each.
        one_stream: whether the projected input of all gates stays one array that the step splits.
    """

    additive_gates: tuple[bool, ...]
    small_projection: bool
    one_stream: bool


def additive_gates(what: Semantics, weights: Weights, state, steps: Steps) -> tuple[bool, ...]:
    """For each gate, whether `update` reads x and h only as their sum: then both have the same cotangent, stored once."""
    cell, params = what.cell, cast(weights.params, what.dtype)
    assert isinstance(cell, GatedCell)
    x, per_step = jax.tree.map(lambda a: a[0], (steps.x, steps.per_step))
    project, x_gates = jax.make_jaxpr(lambda p, x: split_gates(cell.project(p, x)), return_shape=True)(params, x)
    further = per_step | weights.context
    if isinstance(cell, Lane):
        cell, params, further = cell.cell, params.extra, weights.context
    update = lambda *args, further: cell.update(*args, **further)
    with equations_of(cell, "update"):
        update = jax.make_jaxpr(update)(state, x_gates, x_gates, *params[4:], further=further)
    for method, jaxpr in (("project", project), ("update", update)):
        refuse_traced(cell, method, jaxpr)
    jaxpr = update.jaxpr
    first, gates = len(jax.tree.leaves(state)), len(x_gates)
    inputs = jaxpr.invars[first : first + 2 * gates]
    readers: list[list[Any]] = [
        [eqn for eqn in jaxpr.eqns if v in eqn.invars] + [v for out in jaxpr.outvars if out is v] for v in inputs
    ]
    pairs = zip(readers[:gates], readers[gates:], strict=True)
    return tuple(len(x) == 1 and x == h and x[0].primitive.name == "add" for x, h in pairs)


def gate_inputs(what: Semantics, layout: Layout, weights: Weights):
    """Two functions: from a segment of steps to the same with what `x` contributes; and, in a step, from that and `h` to the
    gates of both.

    One projection per gate: XLA:CPU compiles the split of an array that a loop reads to scalar code. Biases are added in the
    step, once for both where a gate is additive, so that nothing but a product passes over the projections. Exceptions: a small
    input, whose single product starts faster than several; and `one_stream`, for steps that store each gate by itself anyway.
    """
    w_ih, w_hh, b_ih, b_hh, *others = cast(weights.params, what.dtype)
    lane = isinstance(what.cell, Lane)
    moves = (False,) * len(layout.additive_gates) if lane else layout.additive_gates  # the bias from x to h; other lanes have no x
    default_projection = type(what.cell).project is Cell.project
    biases_in_step = default_projection and (layout.one_stream or not layout.small_projection)
    if not biases_in_step or b_ih is None:
        b_ih = [None] * len(moves)
    else:
        if not lane:
            moved = jnp.where(np.array(moves)[:, None], b_ih, 0).astype(promote(what.dtype, jnp.float32))
            b_hh = moved if b_hh is None else b_hh.astype(moved.dtype) + moved
        b_ih = [None if move else b for move, b in zip(moves, split_gates(b_ih), strict=True)]

    def project_segment(steps: Steps) -> Steps:
        x = zero_invalid(steps.valid, steps.x)
        if not biases_in_step:
            return steps._replace(x=split_gates(what.cell.project(cast(weights.params, what.dtype), x)))
        if layout.small_projection:
            return steps._replace(x=contract(x, w_ih))
        return steps._replace(x=tuple(contract(x, w) for w in split_gates(w_ih)))

    def gates(x, h):
        x = x if isinstance(x, tuple) else split_gates(x)
        x_gates = tuple(a if b is None else a + broadcast_like(b, a) for a, b in zip(x, b_ih, strict=True))
        h_gates = split_gates(contract(h, w_hh, b_hh))
        if lane:
            h_gates, of_next = h_gates[: len(moves)], h_gates[len(moves) :]
            x_gates = tuple(handed_on(x, a, others[0]) for x, a in zip(x_gates, of_next, strict=True))
        return x_gates, h_gates

    return project_segment, gates
