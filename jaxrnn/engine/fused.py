"""Strategy: all of time in one kernel on an NVIDIA GPU, for gated cells that are small enough; opt-in. A scan elsewhere.

What is computed is written as scans, in `fused_loops`; `jvp`, `vmap` and derivatives of higher order are those of the scans, and
one traced program, one export, serves all platforms. The kernels are in `fused_kernels`, which says what they rest on: what JAX
deprecates. No loop may live here.
"""

import jax
import jax.numpy as jnp

from jaxrnn._arrays import cast, may_join_axes
from jaxrnn.checks import is_symbolic
from jaxrnn.engine import fused_kernels, scan_gated
from jaxrnn.engine.fused_loops import Form, forward
from jaxrnn.engine.fused_update import TILE, not_elementwise, power_of_two
from jaxrnn.engine.gates import additive_gates
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.segments import over_segments
from jaxrnn.engine.transition import output, zero_invalid
from jaxrnn.engine.tuning import Tuning

MOST = 2**31 - 1
"""Entries of an array that a kernel reads: its places are counted in 32 bits."""


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """Cells that are not gated, or whose `update` is not elementwise; options that come between two steps; what is too large."""
    cell, h = what.cell, state.h
    kind, gates, hidden = type(cell).__name__, len(cell.gates), h.shape[-1]
    reason = scan_gated.refuses(what, weights, state, platform)
    if reason is not None:
        return reason
    if what.dtype not in (jnp.float32, jnp.bfloat16):
        return f"the kernels compute in float32 or bfloat16, not in {what.dtype}"
    if cell.per_step or cell.context:
        return f"the kernels hand no further inputs to `update`, and a {kind} reads {', '.join((*cell.per_step, *cell.context))}"
    for argument, array in (("reset", weights.initial), ("h_mask", weights.h_mask)):
        if array is not None:
            return f"the kernels know no `{argument}`"
    if any(is_symbolic(size) for size in h.shape):
        return f"the kernels need sizes that are known, and those of the batch are {h.shape[:-1]}"
    if not may_join_axes(h):
        return "the kernels run on one device, and arrays here lie on a mesh; inside of `jax.shard_map` they can"
    if any(field.dtype != jnp.float32 or field.shape != h.shape for field in state) or weights.params.w_hh.shape[0] != hidden:
        return f"the fields of a state should be float32 and of one shape, and those of the {kind} are not"
    reason = not_elementwise(cell, hidden, weights.params[4:])
    if reason is not None:
        return f"`update` of the {kind} {reason}"
    most = fused_kernels.largest_hidden(gates, len(state) + sum(own.size // hidden for own in weights.params[4:]), what.dtype)
    if hidden > most:
        return f"hidden_size={hidden} is too large to stay on one multiprocessor: a {kind} in {what.dtype} may have up to {most}"
    return None


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps):
    """The state after all steps, and their outputs."""
    for argument, bad in (("zoneout", any(m is not None for m in steps.zoneout_mask)), ("xs", is_symbolic(steps.x.shape[0]))):
        if bad:
            got = "masks" if argument == "zoneout" else "a symbolic number of steps"
            should = "rates" if argument == "zoneout" else "a known number of steps"
            raise ValueError(f"unroll: `{argument}` should have {should} where `backend` is 'pallas', got {got}.")
    form = Form(what, additive_gates(what, weights, state, steps), read_from_outside(what.cell))
    _, w_hh, _, b_hh, *extra = cast(weights.params, what.dtype)
    extra, b_hh = cast((tuple(extra), b_hh), jnp.float32)
    batch, rows = state.h.shape[:-1], state.h.size // state.h.shape[-1]

    def piece(state, steps):
        x = what.cell.project(cast(weights.params, what.dtype), zero_invalid(steps.valid, steps.x)).astype(jnp.float32)
        in_all = all(form.additive) and b_hh is not None
        if in_all:  # both biases act as a sum
            x = x + b_hh
        flat = lambda a, axes: a.reshape(*a.shape[:axes], rows, *a.shape[axes + len(batch) :])
        valid = None if steps.valid is None else flat(steps.valid, 1)
        inputs = jax.tree.map(lambda a: flat(a, 0), state), flat(x, 1), valid
        final, states = forward(form, (w_hh, None if in_all else b_hh, extra), *inputs)
        final, states = jax.tree.map(lambda a: a.reshape(*a.shape[:-2], *batch, a.shape[-1]), (final, states))
        return final, output(what, states, steps.valid)

    per_step = (rows + TILE) * len(what.cell.gates) * power_of_two(state.h.shape[-1])
    return over_segments(piece, state, steps, max(1, MOST // per_step), what.reverse)
