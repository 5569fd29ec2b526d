"""The engine: the only scan over time and the only derivative rule. It owns the loop, masks, resets, direction, segments of
time and dtype. It knows the base classes of cells, never a concrete cell, and nothing of layers or modules."""

from functools import partial, reduce
from math import isqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType
from jaxtyping import Array, Bool, Float, Int

from jaxrnn import checks
from jaxrnn.cells.base import Cell, GatedCell, broadcast_like, contract, promote, split_gates

MIN_SEGMENT = 16
UNROLLED = 4
"""Up to so many steps are compiled as such, without a loop."""
SMALL_BYTES = 2**18
FORWARD_BYTES = 2**22
BACKWARD_BYTES = 3 * 2**19
"""What counts as small, and about how much of the projected input, or of its cotangent, one segment of time holds. Forward,
only weights compete for the cache, and long products are fast ones; backward, the residuals do."""


class _Fixed(NamedTuple):
    """What every step reads."""

    params: Any
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
    dtype: Any
    truncate: int | None = None
    remat: int | None = None
    forward: int = 1
    backward: int = 1
    """Steps in a piece of `truncate` and of `remat`, and in a segment of either pass (a cell that is not gated has one such
    length, the second). These and what follows: see `_measured`."""
    usual: bool = False
    """Whether the projection is the product of `Cell.project`."""
    small: bool = False
    """Whether the projected inputs take less than SMALL_BYTES; those of one example, under `vmap`."""
    shared: tuple[bool, ...] = ()
    """See `_sums_only`."""


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
    Arrays are computed in `dtype`; states and sums are kept at least in float32, gradients of weights summed in their own dtype.

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
        remat: compute each segment of √time steps again in the backward pass: memory O(√time), exact gradients. With
            `truncate`, of each of its pieces.
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
    checks.unroll_options(
        "unroll", truncate=truncate, dtype=dtype, time=time, reverse=reverse, return_states=return_states, remat=remat
    )

    xs = jnp.asarray(xs)
    compute = promote(xs.dtype, params.w_ih.dtype) if dtype is None else jnp.dtype(dtype)
    xs = xs.astype(compute)
    valid = mask if lengths is None else lax.broadcasted_iota(jnp.int32, (time, *batch), 0) < lengths.astype(jnp.int32)[None]
    params, xs, valid, reset, state, initial, h_scale = _same_manual_axes(params, xs, valid, reset, state, initial, h_scale)
    event = tuple(range(xs.ndim - cell.event_ndim, xs.ndim))
    nowhere = jnp.zeros_like(jnp.any(xs, event))  # (time, *batch), sharded as the data are
    valid, reset = (None if a is None else a | nowhere for a in (valid, reset))

    first = xs[0] if checks.is_symbolic(time) or time else jnp.zeros(xs.shape[1:], xs.dtype)
    zeros = cell.initial_state(_cast(params, compute), first)
    checks.state("unroll", "initial", initial, zeros, broadcast=True)
    checks.state("unroll", "state", state, zeros)
    checks.per_step_noise("unroll", h_scale, zoneout, zeros, time)
    initial = zeros if initial is None else jax.tree.map(_broadcast_like, initial, zeros)
    state = initial if state is None else jax.tree.map(_broadcast_like, state, zeros)
    h_scale = None if h_scale is None else lax.stop_gradient(_broadcast_like(h_scale, zeros.h))

    zoneout = (None,) * len(zeros) if zoneout is None else zoneout
    rates = tuple(float(z) if isinstance(z, float) else None for z in zoneout)
    hold = tuple(
        None if z is None or isinstance(z, float) else z | jnp.broadcast_to(jnp.zeros_like(like, dtype=bool), z.shape)
        for z, like in zip(zoneout, zeros, strict=True)
    )
    plan = _Plan(cell, rates, bool(reverse), bool(return_states), compute, truncate)
    fixed = _Fixed(params, None if reset is None else initial, h_scale)
    steps = _Steps(xs, valid, _restarts(reset, valid, reverse), hold)

    if not checks.is_symbolic(time) and time == 0:
        ys = jnp.zeros((0, *zeros.h.shape), compute)
        return (state, ys, jax.tree.map(lambda s: s[None], state)) if return_states else (state, ys)
    final, (ys, states) = _run(_measured(plan, state, steps, remat), fixed, state, steps)
    ys = ys.astype(compute)
    if not return_states:
        return final, ys
    order = (lambda one, every: (every, one[None])) if reverse else (lambda one, every: (one[None], every))
    return final, ys, jax.tree.map(lambda one, every: jnp.concatenate(order(one, every)), state, states)


# One step --------------------------------------------------------------------------------------------------------------


def _restart(state, initial, restart):
    """The state before the step: the initial one where the step is the first of its segment."""
    return state if restart is None else jax.tree.map(partial(_where, restart), initial, state)


def _settle(plan: _Plan, before, after, steps: _Steps):
    """The state after the step: zoneout first, then no change at all where the step is not valid."""
    checks.new_state(plan.cell, before, after)
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


# The loop --------------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=0)
def _run(plan: _Plan, fixed: _Fixed, state, steps: _Steps):
    """The loop over all of the steps: the state after them, and their outputs.

    Layers of the same shapes are traced and lowered once, and a call outside of any `jit` compiles once: `jit` has a cache.
    """
    run = _gated(plan, fixed, state, steps) if isinstance(plan.cell, GatedCell) else _plain(plan, fixed)
    if plan.remat is not None:  # of each piece, the state before it is stored
        run = partial(_over_segments, jax.checkpoint(run), length=plan.remat, reverse=plan.reverse)
    if plan.truncate is not None:
        run = partial(_truncated, run, length=plan.truncate, reverse=plan.reverse)
    return run(state, steps)


def _plain(plan: _Plan, fixed: _Fixed):
    """The loop, in segments of time, for a cell that is not gated; its derivative is JAX's."""

    def segment(state, steps):
        def step(state, now):
            before = _restart(state, fixed.initial, now.restart)
            after = plan.cell.recur(_cast(fixed.params, plan.dtype), before, now.x, _scaled(before.h, fixed))
            state = _settle(plan, before, after, now)
            return state, _emit(plan, state, now.valid)

        steps = steps._replace(x=_project(plan, steps.valid, fixed.params, steps.x))
        return _scan(step, state, steps, plan.reverse)

    return partial(_over_segments, segment, length=plan.backward, reverse=plan.reverse)


def _gated(plan: _Plan, fixed: _Fixed, state, steps: _Steps):
    """The same for a gated cell, with the derivative below."""
    # XLA:CPU transposes w_hh again in every step of the backward loop unless it is handed the transposed weights.
    w_back = lax.optimization_barrier(_joined(jnp.moveaxis(fixed.params.w_hh.astype(plan.dtype), 0, -1)))
    return partial(_run_gated, plan._replace(shared=_sums_only(plan, fixed.params, state, steps.x[0])), fixed, w_back)


def _project(plan: _Plan, valid, params, x):
    """What the inputs of a whole segment contribute to the gates; what is not valid is not read."""
    return plan.cell.project(_cast(params, plan.dtype), _readable(valid, x))


def _products(plan: _Plan, fixed: _Fixed, whole: bool):
    """Two functions: from steps to the same with what `x` contributes; and, in a step, from that and `h` to the gates of both.

    One stream per gate, because XLA:CPU compiles the split of a scanned slab to scalar code. Where the projection is the
    usual one, and large, it is one product per gate, and biases are added in the step, once for both where it is `shared`
    whether x or h brings it: nothing but a product passes over the streams. If it is small, one product takes less time to
    start than several; and if a step stores its gates, each a vector of its own then, the product may stay one stream,
    `whole`, and biases are added in the step as well.
    """
    w_ih, w_hh, b_ih, b_hh, *_ = _cast(fixed.params, plan.dtype)
    in_step = plan.usual and (whole or not plan.small)
    if not in_step or b_ih is None:
        b_ih = [None] * w_hh.shape[-2]
    else:
        moved = jnp.where(np.array(plan.shared)[:, None], b_ih, 0).astype(promote(plan.dtype, jnp.float32))
        b_hh = moved if b_hh is None else b_hh.astype(moved.dtype) + moved
        b_ih = [None if is_sum else b for is_sum, b in zip(plan.shared, split_gates(b_ih), strict=True)]

    def streams(steps):
        if not in_step:
            return steps._replace(x=split_gates(_project(plan, steps.valid, fixed.params, steps.x)))
        x = _readable(steps.valid, steps.x)
        return steps._replace(x=contract(x, w_ih) if plan.small else tuple(contract(x, w) for w in split_gates(w_ih)))

    def gates(x, h):
        x = x if isinstance(x, tuple) else split_gates(x)
        x_gates = tuple(a if b is None else a + broadcast_like(b, a) for a, b in zip(x, b_ih, strict=True))
        return x_gates, split_gates(contract(h, w_hh, b_hh))

    return streams, gates


def _readable(valid, x):
    """The inputs, zero where they are not valid."""
    return x if valid is None else _where(valid, x, jnp.zeros_like(x))


def _advance(plan: _Plan, now: _Steps, before, x_gates, h_gates, extra):
    """The part of a gated step after the product: `update`, zoneout, mask."""
    return _settle(plan, before, plan.cell.update(before, x_gates, h_gates, *extra), now)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run_gated(plan: _Plan, fixed: _Fixed, w_back, state, steps: _Steps):
    """The loop over all of the steps, for a gated cell: over segments of time, and in each over its steps.

    `w_back` is `w_hh` with its first axis last and the others joined, for the derivative; the value does not depend on it.
    """
    extra = _cast(fixed.params[4:], plan.dtype)
    streams, gates = _products(plan, fixed, whole=False)

    def step(state, now):
        before = _restart(state, fixed.initial, now.restart)
        state = _advance(plan, now, before, *gates(now.x, _scaled(before.h, fixed)), extra)
        return state, _emit(plan, state, now.valid)

    return _scan_streams(streams, step, state, steps, plan.forward, plan.reverse)


@_run_gated.defjvp
def _run_gated_jvp(plan: _Plan, primals, tangents):
    """The derivative of the loop, as a loop over linear steps.

    With a = h @ w_hh + b_hh at each step, da = dh @ w_hh + (h @ dw_hh + db_hh), and the bracket is one product over all of
    a segment. Its transposition is the weight gradient, one product too, outside the loop over steps; the transposition of
    the linear loop is backpropagation through time, with one product per step.

    What `update` contributes is linearised step by step in the forward loop. `_gate_values` says which of its values are
    stored for that; the rest is computed again from them.
    """
    fixed, w_back, state, steps = primals
    d_fixed, _, d_state, d_steps = tangents
    extra = _cast(fixed.params[4:], plan.dtype)
    given = steps._replace(x=None)
    # What the product reads is the output of the step before, unless something comes between.
    outputs_are_states = steps.valid is None and steps.restart is None and fixed.h_scale is None
    recall = {}
    streams, gates = _products(plan, fixed, whole=plan.small and all(plan.shared))  # it pays for the LSTM, not for the GRU

    def step(state, now):
        before = _restart(state, fixed.initial, now.restart)
        h = _scaled(before.h, fixed).astype(plan.dtype)
        x_gates, h_gates = gates(now.x, h)
        advance = jax.checkpoint(partial(_advance, plan, now), policy=_gate_values(len(plan.shared)), prevent_cse=False)
        state, linear = jax.linearize(advance, before, x_gates, h_gates, extra)
        out = _emit(plan, state, now.valid)
        residuals, recall["linear"] = jax.tree.flatten(linear)
        known = jax.tree.leaves((now._replace(x=None), h, out))
        recall["sources"], fresh = _store_once(residuals, known, jax.tree.leaves(extra))
        return state, (out, None if outputs_are_states else h, fresh)

    final, (out, h, fresh) = _scan_streams(streams, step, state, steps, plan.forward, plan.reverse)
    if outputs_are_states:
        first, others = state.h[None], (out[0][1:] if plan.reverse else out[0][:-1])
        h = jnp.concatenate([others, first] if plan.reverse else [first, others]).astype(plan.dtype)
    known = jax.tree.leaves((given, h, out))
    residuals = [known[i] if kind == "step" else fresh[i] for kind, i in recall["sources"] if kind != "fixed"]

    def linear_segment(d_state, inputs):
        x, d_x, h, residuals, given = inputs
        # Under `checkpoint`, what follows from the inputs alone (a mask, broadcast) is not stored for the transposition.
        project = jax.checkpoint(partial(_project, plan, given.valid), prevent_cse=False)
        _, d_x_gates = jax.jvp(project, (fixed.params, x), (d_fixed.params, d_x))
        _, d_w_hh, _, d_b_hh, *_ = _cast(d_fixed.params, plan.dtype)
        d_gates = contract(h, d_w_hh, d_b_hh)
        apart = split_gates(d_x_gates)
        if all(plan.shared):
            d_gates, own = d_gates + d_x_gates, ()
        else:
            together = [d if is_sum else jnp.zeros_like(d) for d, is_sum in zip(apart, plan.shared, strict=True)]
            own = tuple(d for d, is_sum in zip(apart, plan.shared, strict=True) if not is_sum)
            d_gates = d_gates + jnp.stack(together, axis=-2)
        inputs = (d_gates.reshape(*d_gates.shape[:-2], *w_back.shape[:-1]), own, residuals, given)
        return _scan(jax.checkpoint(linear_step, prevent_cse=False), d_state, inputs, plan.reverse)

    def linear_step(d_state, inputs):
        d_gates, own, residuals, now = inputs
        d_before = _restart(d_state, d_fixed.initial, now.restart)
        d_h = _scaled(d_before.h, fixed).astype(w_back.dtype)
        axes = (((d_h.ndim - 1,), (w_back.ndim - 1,)), ((), ()))
        d_h_gates = d_gates + lax.dot_general(d_h, w_back, axes, preferred_element_type=d_gates.dtype)
        d_h_gates = _parted(d_h_gates, len(plan.shared)) if w_back.ndim == 2 else split_gates(d_h_gates)
        own, residuals, constants = iter(own), iter(residuals), jax.tree.leaves(extra)
        d_x = tuple(jnp.zeros_like(d) if is_sum else next(own) for d, is_sum in zip(d_h_gates, plan.shared, strict=True))
        leaves = [constants[i] if kind == "fixed" else next(residuals) for kind, i in recall["sources"]]
        d_extra = _cast(d_fixed.params[4:], plan.dtype)
        d_state = jax.tree.unflatten(recall["linear"], leaves)(d_before, d_x, d_h_gates, d_extra)
        return d_state, _emit(plan, d_state, now.valid)

    inputs = (steps.x, d_steps.x, h, residuals, given)
    d_final, d_out = _over_segments(linear_segment, d_state, inputs, plan.backward, plan.reverse)
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


def _sums_only(plan: _Plan, params, state, x) -> tuple[bool, ...]:
    """For each gate, whether `update` reads x and h only as their sum: then both have the same cotangent, stored once."""
    cell, params = plan.cell, _cast(params, plan.dtype)
    project, x_gates = jax.make_jaxpr(lambda p, x: split_gates(cell.project(p, x)), return_shape=True)(params, x)
    update = jax.make_jaxpr(cell.update)(state, x_gates, x_gates, *params[4:])
    checks.nothing_traced_from_outside(cell, project=project.consts, update=update.consts)
    jaxpr = update.jaxpr
    first, gates = len(jax.tree.leaves(state)), len(x_gates)
    inputs = jaxpr.invars[first : first + 2 * gates]
    readers = [[eqn for eqn in jaxpr.eqns if v in eqn.invars] + [v for out in jaxpr.outvars if out is v] for v in inputs]
    pairs = zip(readers[:gates], readers[gates:], strict=True)
    return tuple(len(x) == 1 and x == h and x[0].primitive.name == "add" for x, h in pairs)


# Pieces ----------------------------------------------------------------------------------------------------------------


def _over_segments(segment, carry, steps, length: int, reverse: bool):
    """`lax.scan`, with a function that takes `length` steps at a time, counted from step 0; the rest at the end is a piece too."""
    time = jax.tree.leaves(steps)[0].shape[0]
    if checks.is_symbolic(time) or time <= length:
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


def _scan(step, state, steps, reverse: bool):
    """`lax.scan`; very few steps are unrolled."""
    time = jax.tree.leaves(steps)[0].shape[0]
    return lax.scan(step, state, steps, reverse=reverse, unroll=not checks.is_symbolic(time) and time <= UNROLLED)


def _scan_streams(streams, step, state, steps, length: int, reverse: bool):
    """`lax.scan` over steps that `streams` prepares `length` at a time; each output is written where it belongs in all of time.

    A nested scan would fill a buffer for each segment with zeros, then with outputs, then copy it to its place. This one is
    slow to transpose (it writes zeros back), which only derivatives of second order do.
    """
    time = steps.x.shape[0]
    if checks.is_symbolic(time) or time <= length:
        return _scan(step, state, streams(steps), reverse)

    def segment(carry, inputs):
        def write(carry, inputs):
            (state, written), (index, now) = carry, inputs
            state, out = step(state, now)
            return (state, jax.tree.map(partial(_written, index=index), written, out)), None

        indices, steps = inputs
        return lax.scan(write, carry, (indices, streams(steps)), reverse=reverse)

    def outputs(state, first):
        return step(state, jax.tree.map(lambda a: a[0], streams(first)))[1]

    jaxpr, shapes = jax.make_jaxpr(outputs, return_shape=True)(state, jax.tree.map(lambda a: a[:1], steps))
    out = jax.tree.unflatten(jax.tree.structure(shapes), jaxpr.out_avals)
    everywhere = tuple(jax.typeof(state.h).mat.varying)

    def empty(a):
        zeros = lax.broadcast(jnp.zeros((), a.dtype), (time, *a.shape))
        if AxisType.Explicit in a.sharding.mesh.axis_types:
            zeros = jax.reshard(zeros, a.sharding.update(spec=jax.P(None, *a.sharding.spec)))
        return lax.pcast(zeros, everywhere, to="varying") if everywhere else zeros

    carry = state, jax.tree.map(empty, out)
    carry, _ = _over_segments(segment, carry, (lax.iota(jnp.int32, time), steps), length, reverse)
    return carry


def _truncated(run, state, steps, length: int, reverse: bool):
    """Run pieces of `length` steps and stop the gradient, but not the state, between them."""

    def piece(carry, steps):
        started, state = carry  # the first piece may send its gradient on to where the sequence started
        state, out = run(jax.tree.map(lambda s: jnp.where(started, lax.stop_gradient(s), s), state), steps)
        return (jnp.ones_like(started), state), out

    (_, state), out = _over_segments(piece, (jnp.zeros((), bool), state), steps, length, reverse)
    return state, out


def _measured(plan: _Plan, state, steps: _Steps, remat: bool) -> _Plan:
    """The plan with what depends on sizes. A piece of `remat` has about √time steps. Forward, a segment has so many that its
    projected input fits into the cache; all, where two would do. Backward, so many that its cotangents stay there and, unless
    all is small, are a part of the whole.
    """
    time, step = steps.x.shape[0], len(plan.cell.gates) * state[-1].size * state[-1].dtype.itemsize
    if plan.truncate is not None:
        time = min(time, plan.truncate)
    if remat and checks.is_symbolic(time):
        plan = plan._replace(remat=1)
    elif remat:
        time = _fitting(isqrt(time), time)
        plan = plan._replace(remat=time)
    usual = type(plan.cell).project is Cell.project
    if checks.is_symbolic(time) or checks.is_symbolic(step):
        length = 1 if checks.is_symbolic(time) else _fitting(max(MIN_SEGMENT, isqrt(time)), time)
        return plan._replace(forward=length, backward=length, usual=usual)
    forward = backward = time
    if time * step > 2 * FORWARD_BYTES:
        forward = _fitting(max(MIN_SEGMENT, FORWARD_BYTES // step), time)
    if time * step > (BACKWARD_BYTES if time < 4 * MIN_SEGMENT else BACKWARD_BYTES // 4):
        backward = _fitting(max(MIN_SEGMENT, min(time // 4, BACKWARD_BYTES // step)), time)
    return plan._replace(forward=forward, backward=backward, usual=usual, small=time * step < SMALL_BYTES)


def _fitting(length: int, time: int) -> int:
    """The greatest number up to `length`, but above half of it, that leaves no rest; `length`, if there is none."""
    length = min(length, time)
    return next((k for k in range(length, length // 2, -1) if time % k == 0), length)


def _written(a, row, index):
    """`a` with `row` at `index`."""
    return lax.dynamic_update_index_in_dim(a, row, index, 0, allow_negative_indices=False)


# Arrays ----------------------------------------------------------------------------------------------------------------


def _joined(w):
    """Gates and hidden units, the first two axes, on one; apart under a mesh, which may have the hidden units in parts."""
    axes = {*jax.sharding.get_abstract_mesh().axis_types, *jax.typeof(w).sharding.mesh.axis_types}
    return w.reshape(-1, w.shape[-1]) if axes <= {AxisType.Manual} else w


def _parted(a, gates: int):
    """One array per gate, from an array with gates and hidden units on its last axis: XLA:CPU joins their cotangents by plain
    copies, where it would pad and add those of `split_gates`."""
    return tuple(lax.split(a, [a.shape[-1] // gates] * gates, axis=a.ndim - 1))


def _where(condition, a, b):
    """Select per example: `condition` has the leading axes of `a` and `b`."""
    condition = lax.broadcast_in_dim(condition, a.shape, tuple(range(condition.ndim)))
    if jax.typeof(condition).sharding != jax.typeof(a).sharding:  # an explicit mesh, hidden axis sharded
        condition = jax.reshard(condition, jax.typeof(a).sharding)
    return lax.select(condition, a, b)


def _cast(params, dtype):
    """Parameters to compute with. Cast where they are used, so that their gradients are summed in the dtype that they have."""
    return jax.tree.map(lambda a: a.astype(dtype), params)


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
