"""The engine: the only scan over time and the only derivative rule. It owns the loop, masks, resets, direction, segments of
time and dtype. It knows the base classes of cells, never a concrete cell, and nothing of layers or modules."""

from functools import partial, reduce
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import checks
from jaxrnn.cells.base import Cell, GatedCell, broadcast_like, contract, promote, split_gates

MIN_SEGMENT = 16
SEGMENT_BYTES = 2**20
"""How much of the projected input one segment of time should hold: about a core's share of the cache."""


class _Fixed(NamedTuple):
    """What every step reads."""

    w_hh: Any
    b_hh: Any
    extra: Any
    initial: Any
    h_scale: Any


class _Steps(NamedTuple):
    """What differs from step to step; every leaf has time in front, and what was not asked for is None."""

    x: Any
    valid: Any
    restart: Any
    hold: Any


class _Plan(NamedTuple):
    """What is known before tracing."""

    cell: Cell
    rates: tuple[float | None, ...]
    reverse: bool
    all_states: bool


def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Array | np.ndarray, "time ..."],
    state: Any = None,
    *,
    initial: Any = None,
    lengths: Int[Array | np.ndarray, "*batch"] | None = None,
    mask: Bool[Array | np.ndarray, "time *batch"] | None = None,
    reset: Bool[Array | np.ndarray, "time *batch"] | None = None,
    reverse: bool = False,
    return_states: bool = False,
    remat: bool = False,
    truncate: int | None = None,
    h_scale: Float[Array, "..."] | None = None,
    zoneout: Any = None,
    dtype: Any = None,
):
    """Run a cell over a sequence, time first, state first, as `jax.lax.scan` does.

    A step that is not valid leaves the state alone, gives the output zero, and neither its input nor its `reset` is read.
    Arrays are computed in `dtype`; states and sums are kept at least in float32.

    Args:
        cell: the description of one step.
        params: its parameters, from `cell.init`.
        xs: the inputs. No steps at all is allowed: the state comes back, the outputs are empty.
        state: where to start; `None` means `initial`.
        initial: the state that `reset` returns to, with or without batch axes; `None` means zeros.
        lengths: valid steps of each sequence, 0 … time, the rest being padding. Length 0 returns `state` untouched.
        mask: True where a step is valid, in any pattern. Not together with `lengths`.
        reset: where True, the state *before* the step is `initial`. With `reverse`, the same segments are respected.
        reverse: run from the last valid step to the first; outputs stay aligned with `xs`.
        return_states: also return every state, `time + 1` of them, the first one (with `reverse`, the last one) being `state`.
        remat: compute each segment of √time steps again in the backward pass: memory O(√time), exact gradients.
        truncate: stop the gradient, but not the state, after every so many steps.
        h_scale: multiplies what the recurrent products read of `h`, at every step: recurrent dropout. No gradient.
        zoneout: a state of rates in [0, 1] (the state moves by the expected share), or of boolean arrays
            (time, *batch, hidden), True where an entry keeps its value.
        dtype: to compute in. Default: what `xs` and `params` promote to.

    Returns:
        (state, ys), or (state, ys, states) with `return_states`: the state after the last valid step, and the outputs
        (time, *batch, output).

    Raises:
        ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LSTMCell, unroll
        >>> cell = LSTMCell()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jnp.ones((7, 2, 3))
        >>> state, ys = unroll(cell, params, xs, lengths=jnp.array([7, 4]))
        >>> ys.shape, state.c.shape, bool((state.h == ys[jnp.array([6, 3]), jnp.arange(2)]).all())
        ((7, 2, 5), (2, 5), True)
    """
    checks.cell_and_params("unroll", cell, Cell, params)
    checks.sequence("unroll", "xs", xs, event_ndim=cell.event_ndim)
    checks.input_size("unroll", "xs", xs, params.w_ih.shape[-3], "the third axis from the end of `params.w_ih`")
    time, batch = xs.shape[0], xs.shape[1 : xs.ndim - cell.event_ndim]
    checks.validity("unroll", lengths, mask, reset, time, batch)
    checks.unroll_options("unroll", truncate=truncate, dtype=dtype, time=time)

    xs = jnp.asarray(xs)
    compute = promote(xs.dtype, params.w_ih.dtype) if dtype is None else jnp.dtype(dtype)
    params, xs = jax.tree.map(lambda a: a.astype(compute), (params, xs))
    valid = mask if lengths is None else lax.broadcasted_iota(jnp.int32, (time, *batch), 0) < lengths.astype(jnp.int32)[None]
    params, xs, valid, reset, state, initial, h_scale = _same_manual_axes(params, xs, valid, reset, state, initial, h_scale)
    event = tuple(range(xs.ndim - cell.event_ndim, xs.ndim))
    nowhere = jnp.zeros_like(jnp.any(xs, event))  # (time, *batch), sharded as the data are
    valid, reset = (None if a is None else a | nowhere for a in (valid, reset))

    first = xs[0] if checks.is_symbolic(time) or time else jnp.zeros(xs.shape[1:], xs.dtype)
    zeros = cell.initial_state(params, first)
    checks.state("unroll", "initial", initial, zeros, broadcast=True)
    checks.state("unroll", "state", state, zeros)
    checks.per_step_noise("unroll", h_scale, zoneout, zeros, time)
    initial = zeros if initial is None else jax.tree.map(_broadcast_like, initial, zeros)
    state = initial if state is None else jax.tree.map(_broadcast_like, state, zeros)
    h_scale = None if h_scale is None else lax.stop_gradient(_broadcast_like(h_scale, zeros.h))

    zoneout = (None,) * len(zeros) if zoneout is None else zoneout
    rates = tuple(z if isinstance(z, float) else None for z in zoneout)
    hold = tuple(
        None if z is None or isinstance(z, float) else z | jnp.broadcast_to(jnp.zeros_like(like, dtype=bool), z.shape)
        for z, like in zip(zoneout, zeros, strict=True)
    )
    plan = _Plan(cell, rates, reverse, return_states)
    fixed = _Fixed(params.w_hh, params.b_hh, tuple(params[4:]), None if reset is None else initial, h_scale)
    steps = _Steps(xs, valid, _restarts(reset, valid, reverse), hold)
    segment = _segment(plan, params, fixed)

    if not checks.is_symbolic(time) and time == 0:
        ys = jnp.zeros((0, *zeros.h.shape), compute)
        return (state, ys, jax.tree.map(lambda s: s[None], state)) if return_states else (state, ys)
    length = _segment_length(plan, time, zeros, remat) if truncate is None else truncate
    if remat:
        segment = jax.checkpoint(segment)
    final, (ys, states) = _over_segments(segment, state, steps, length, reverse, cut=truncate is not None)
    ys = ys.astype(compute)
    if not return_states:
        return final, ys
    order = (lambda one, every: (every, one[None])) if reverse else (lambda one, every: (one[None], every))
    return final, ys, jax.tree.map(lambda one, every: jnp.concatenate(order(one, every)), state, states)


# One step --------------------------------------------------------------------------------------------------------------


def _restart(state, fixed: _Fixed, restart):
    """The state before the step: the initial one where the step is the first of its segment."""
    return state if restart is None else jax.tree.map(partial(_where, restart), fixed.initial, state)


def _settle(plan: _Plan, before, after, steps: _Steps):
    """The state after the step: zoneout first, then no change at all where the step is not valid."""
    settled = []
    for old, new, rate, hold in zip(before, after, plan.rates, steps.hold, strict=True):
        if rate is not None:
            new = rate * old + (1 - rate) * new
        if hold is not None:
            new = jnp.where(hold, old, new)
        settled.append(new if steps.valid is None else _where(steps.valid, new, old))
    return type(before)(*settled)


def _emit(plan: _Plan, state, valid):
    """What a step gives out: its output, zero where it is not valid, and its state if all are wanted."""
    y = state.h if valid is None else _where(valid, state.h, jnp.zeros_like(state.h))
    return y, state if plan.all_states else None


def _scaled(h, fixed: _Fixed):
    return h if fixed.h_scale is None else h * fixed.h_scale


# One segment of time ---------------------------------------------------------------------------------------------------


def _segment(plan: _Plan, params, fixed: _Fixed):
    """A function (state, steps) -> (state, outputs) that projects a segment's inputs at once, then runs the loop over it."""
    gated = isinstance(plan.cell, GatedCell)
    # XLA:CPU transposes w_hh again in every step of the backward loop unless it is handed the transposed weights.
    w_back = lax.optimization_barrier(jnp.moveaxis(params.w_hh, 0, -1)) if gated else None

    def run(state, steps):
        x = steps.x if steps.valid is None else _where(steps.valid, steps.x, jnp.zeros_like(steps.x))
        steps = steps._replace(x=plan.cell.project(params, x))
        if gated:
            return _run_gated(plan, fixed, w_back, state, steps)

        def step(state, now):
            before = _restart(state, fixed, now.restart)
            after = plan.cell.recur(params, before, now.x, _scaled(before.h, fixed))
            state = _settle(plan, before, after, now)
            return state, _emit(plan, state, now.valid)

        return lax.scan(step, state, steps, reverse=plan.reverse)

    return run


def _advance(plan: _Plan, now: _Steps, before, x_gates, h_gates, extra):
    """The part of a gated step after the product: `update`, zoneout, mask."""
    return _settle(plan, before, plan.cell.update(before, x_gates, h_gates, *extra), now)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run_gated(plan: _Plan, fixed: _Fixed, w_back, state, steps: _Steps):
    """The loop over the steps of one segment, for a gated cell.

    One stream per gate: XLA:CPU compiles the split of a scanned slab to scalar code. `w_back` is `w_hh` with its first axis
    last, for the derivative; the value does not depend on it.
    """

    def step(state, now):
        before = _restart(state, fixed, now.restart)
        h_gates = split_gates(contract(_scaled(before.h, fixed), fixed.w_hh, fixed.b_hh))
        state = _advance(plan, now, before, now.x, h_gates, fixed.extra)
        return state, _emit(plan, state, now.valid)

    return lax.scan(step, state, steps._replace(x=split_gates(steps.x)), reverse=plan.reverse)


@_run_gated.defjvp
def _run_gated_jvp(plan: _Plan, primals, tangents):
    """The derivative of the loop, as a loop over linear steps.

    With a = h @ w_hh + b_hh at each step, da = dh @ w_hh + (h @ dw_hh + db_hh), and the bracket is one product over all of
    the segment. Its transposition is the weight gradient, one product too, outside the loop; the transposition of the linear
    loop is backpropagation through time, with one product per step.

    What `update` contributes is linearised step by step in the forward loop. `_gate_values` says which of its values are
    stored for that; the rest is computed again from them.
    """
    fixed, w_back, state, steps = primals
    d_fixed, _, d_state, d_steps = tangents
    streams = steps._replace(x=split_gates(steps.x))
    recall = {}

    def step(state, now):
        before = _restart(state, fixed, now.restart)
        h = _scaled(before.h, fixed).astype(fixed.w_hh.dtype)
        h_gates = split_gates(contract(h, fixed.w_hh, fixed.b_hh))
        advance = jax.checkpoint(partial(_advance, plan, now), policy=_gate_values(len(now.x)), prevent_cse=False)
        state, linear = jax.linearize(advance, before, now.x, h_gates, fixed.extra)
        residuals, recall["linear"] = jax.tree.flatten(linear)
        recall["sources"], fresh = _store_once(residuals, [*jax.tree.leaves(now), h], jax.tree.leaves(fixed.extra))
        return state, (_emit(plan, state, now.valid), h, fresh)

    final, (out, h, fresh) = lax.scan(step, state, streams, reverse=plan.reverse)

    shared = _sums_only(plan.cell, state, jax.tree.map(lambda a: a[0], streams.x), fixed.extra)
    d_x = split_gates(d_steps.x)
    own = tuple(d for d, is_sum in zip(d_x, shared, strict=True) if not is_sum)
    d_gates = contract(h, d_fixed.w_hh, d_fixed.b_hh)
    if own:
        d_x = [d if is_sum else jnp.zeros_like(d) for d, is_sum in zip(d_x, shared, strict=True)]
        d_gates = d_gates + jnp.stack(d_x, axis=-2)
    else:
        d_gates = d_gates + d_steps.x

    known = [*jax.tree.leaves(streams), h]
    residuals = [known[i] if kind == "step" else fresh[i] for kind, i in recall["sources"] if kind != "fixed"]

    def linear_step(d_state, inputs):
        d_gates, own, residuals, now = inputs
        d_before = _restart(d_state, d_fixed, now.restart)
        d_h = _scaled(d_before.h, fixed).astype(w_back.dtype)
        axes = (((d_h.ndim - 1,), (2,)), ((), ()))
        d_h_gates = split_gates(d_gates + lax.dot_general(d_h, w_back, axes, preferred_element_type=d_gates.dtype))
        own, residuals, constants = iter(own), iter(residuals), jax.tree.leaves(fixed.extra)
        d_x = tuple(jnp.zeros_like(d) if is_sum else next(own) for d, is_sum in zip(d_h_gates, shared, strict=True))
        leaves = [constants[i] if kind == "fixed" else next(residuals) for kind, i in recall["sources"]]
        d_state = jax.tree.unflatten(recall["linear"], leaves)(d_before, d_x, d_h_gates, d_fixed.extra)
        return d_state, _emit(plan, d_state, now.valid)

    inputs = (d_gates, own, residuals, steps._replace(x=None))
    # Under `checkpoint`, what a step derives from its inputs alone (a mask, broadcast) is not stored for the transposition.
    d_final, d_out = lax.scan(jax.checkpoint(linear_step, prevent_cse=False), d_state, inputs, reverse=plan.reverse)
    return (final, out), (d_final, d_out)


def _gate_values(gates: int):
    """A policy that stores the values of the first transcendental functions, one for each gate, and the bits of comparisons.

    These are the gates themselves: to compute them again, their pre-activations would have to be stored instead. What
    `update` makes of them (the tanh of the new cell state, say) is computed again in the backward loop.
    """
    costly = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "sin", "cos", "pow"}
    left = iter(range(gates))

    def policy(primitive, *_, **__) -> bool:
        if primitive.name in {"gt", "ge", "lt", "le", "eq", "ne"}:
            return True
        return primitive.name in costly and next(left, None) is not None

    return policy


def _store_once(residuals, steps, constants):
    """Where each residual can be had from: an array that is there at each step anyway, a constant, or stored afresh."""
    sources, fresh = [], []
    for residual in residuals:
        step = next((i for i, a in enumerate(steps) if a is residual), None)
        constant = next((i for i, a in enumerate(constants) if a is residual), None)
        if step is not None:
            sources.append(("step", step))
        elif constant is not None:
            sources.append(("fixed", constant))
        else:
            sources.append(("fresh", len(fresh)))
            fresh.append(residual)
    return sources, fresh


def _sums_only(cell: GatedCell, state, x_gates, extra) -> list[bool]:
    """For each gate, whether `update` reads x and h only as their sum: then both have the same cotangent, stored once."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (state, x_gates, x_gates, *extra))
    jaxpr = jax.make_jaxpr(cell.update)(*shapes).jaxpr
    first, gates = len(jax.tree.leaves(state)), len(x_gates)
    inputs = jaxpr.invars[first : first + 2 * gates]
    readers = [[eqn for eqn in jaxpr.eqns if v in eqn.invars] + [v for out in jaxpr.outvars if out is v] for v in inputs]
    pairs = zip(readers[:gates], readers[gates:], strict=True)
    return [len(x) == 1 and x == h and x[0].primitive.name == "add" for x, h in pairs]


# Pieces ----------------------------------------------------------------------------------------------------------------


def _over_segments(segment, state, steps: _Steps, length: int, reverse: bool, cut: bool):
    """Run `segment` over pieces of `length` steps, counted from the first step, and over the rest of them."""
    time = steps.x.shape[0]
    pieces, rest = (1, 0) if checks.is_symbolic(time) else divmod(time, length)
    if pieces <= 1 and not rest:
        return segment(state, steps)

    def run(carry, steps):
        started, state = carry
        if cut:  # the first piece may send its gradient on to where the sequence started
            state = jax.tree.map(lambda s: jnp.where(started, lax.stop_gradient(s), s), state)
        state, out = segment(state, steps)
        return (jnp.ones_like(started), state), out

    carry, outs = (jnp.zeros((), bool), state), []
    whole = jax.tree.map(lambda a: a[: pieces * length].reshape(pieces, length, *a.shape[1:]), steps)
    tail = jax.tree.map(lambda a: a[pieces * length :], steps)
    for piece in ("tail", "whole") if reverse else ("whole", "tail"):
        if piece == "whole" and pieces:
            carry, out = lax.scan(run, carry, whole, reverse=reverse)
            outs.append(jax.tree.map(lambda a: a.reshape(pieces * length, *a.shape[2:]), out))
        if piece == "tail" and rest:
            carry, out = run(carry, tail)
            outs.append(out)
    outs = outs[::-1] if reverse else outs
    return carry[1], outs[0] if len(outs) == 1 else jax.tree.map(lambda *a: jnp.concatenate(a), *outs)


def _segment_length(plan: _Plan, time, zeros, remat: bool) -> int:
    """Steps in a segment: √time to rematerialise; else so many that a segment's projected input stays in the cache."""
    step = len(plan.cell.gates) * zeros[-1].size * zeros[-1].dtype.itemsize
    if checks.is_symbolic(time):
        return 1
    if remat or checks.is_symbolic(step):
        return max(1, isqrt(time))
    length = min(time, max(MIN_SEGMENT, SEGMENT_BYTES // max(step, 1)))
    divisors = (k for k in range(length, length // 2, -1) if time % k == 0)
    return max(1, next(divisors, length))


# Arrays ----------------------------------------------------------------------------------------------------------------


def _where(condition, a, b):
    """Select per example: `condition` has the leading axes of `a` and `b`."""
    condition = lax.broadcast_in_dim(condition, a.shape, tuple(range(condition.ndim)))
    if jax.typeof(condition).sharding != jax.typeof(a).sharding:  # an explicit mesh, hidden axis sharded
        condition = jax.reshard(condition, jax.typeof(a).sharding)
    return lax.select(condition, a, b)


def _broadcast_like(a, zeros):
    """`a` in the shape, dtype and sharding of `zeros`."""
    return zeros + broadcast_like(a, zeros)


def _restarts(reset, valid, reverse: bool):
    """Where the state starts again before the step, seen in the direction of the loop.

    Backward, a step starts again if the next valid step to its right opens a segment: the code of a step grows from right to
    left, so that the running maximum from the right is the code of the nearest valid step.
    """
    if reset is None:
        return None
    if not reverse:
        return reset if valid is None else reset & valid
    distance = lax.broadcasted_iota(jnp.int32, reset.shape, 0)
    code = 2 * (reset.shape[0] - distance) + reset.astype(jnp.int32)
    nearest = lax.cummax(code if valid is None else jnp.where(valid, code, 0), axis=0, reverse=True)
    later = jnp.concatenate([nearest[1:], jnp.zeros_like(nearest[:1])])
    opens = later % 2 == 1
    return opens if valid is None else opens & valid


def _same_manual_axes(*trees):
    """Make every array vary over the same manual axes of `jax.shard_map`, once, outside the loop: so do their gradients' sums."""
    varying = reduce(frozenset.union, (jax.typeof(a).mat.varying for a in jax.tree.leaves(trees)), frozenset())

    def cast(a):
        missing = tuple(varying - jax.typeof(a).mat.varying)
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, trees)
