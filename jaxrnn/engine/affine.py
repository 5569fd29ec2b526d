"""Affine recurrences, h ← A h + b over time, with one derivative rule for every way to compute them. No cell may be known here.

The state is a tuple of k parts, arrays of one shape, and A couples the parts of each unit alone: k × k arrays in nested tuples.
k = 1 is a diagonal recurrence; k = 2 a complex one in pairs of reals, or two coupled states of a unit. An array of A may have 1 in
place of time, where it is the same at every step.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from jaxrnn._arrays import broadcast_like, same_varying_axes, select, zeros_like
from jaxrnn.cells.elementwise import add, apply
from jaxrnn.checks import is_symbolic
from jaxrnn.engine import over_devices
from jaxrnn.engine.residuals import join

STATES = "states"
"""What a checkpoint's policy may store of a recurrence, so that it is not run again."""
STORED = jax.checkpoint_policies.save_only_these_names("x_gates", STATES)
"""For the backward pass; what follows from it is computed again."""


def solve(form: str, a, b, start, *, reset=None, initial=None, reverse: bool = False, axis=None):
    """Every state h, a tuple of arrays with time in front; the last one of the loop is the final state.

    Args:
        form: "loop" or "associative", see `FORMS`.
        a: k × k arrays (time or 1, …). b: k arrays (time, …).
        start: k arrays (…): the state before.
        reset: (time, *batch), where the state is `initial` before the step, in the direction of the loop. initial: k arrays (…).
        reverse: from the last step to the first.
        axis: the manual axis of a mesh that time is in parts over, of which `a` and `b` are this device's.
    """
    initial = start if initial is None else initial
    a, b, start, initial = same_varying_axes(*jax.tree.map(jnp.asarray, (a, b, start, initial)))
    form = "loop" if is_symbolic(b[0].shape[0]) else form  # how deep a prefix is has to be known
    product = None if axis is None else _product_of_all(form, a, b, reset, reverse)
    return _solve(form, reverse, axis, a, b, start, reset, initial, product)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _solve(form: str, reverse: bool, axis, a, b, start, reset, initial, product):
    """`product`, where time is in parts, is that of all A in this part. Its tangent is ignored: the rule below takes A's."""
    if axis is not None:
        part = product, _end(form, a, b, reset, initial, reverse), None if reset is None else jnp.any(reset, axis=0)
        start = over_devices.incoming(axis, reverse, part, start)
    return FORMS[form](a, b, start, reset, initial, reverse)


@_solve.defjvp
def _solve_jvp(form: str, reverse: bool, axis, primals, tangents):
    """With h′ = A h + b, dh′ = A dh + (dA h + db): the same recurrence, whichever way the states were found."""
    a, _, start, reset, initial, product = primals
    d_a, d_b, d_start, _, d_initial, _ = tangents
    h = checkpoint_name(_solve(form, reverse, axis, *primals), STATES)
    if axis is not None:
        start = over_devices.from_neighbour(axis, reverse, tuple(part[0 if reverse else -1] for part in h), start)
    read = states_before(h, start, reset, initial, reverse)
    d_a = jax.tree.map(lambda leaf: broadcast_like(leaf, h[0]), d_a)  # whose gradient is one sum over time and batch
    return h, _solve(form, reverse, axis, a, add(apply(d_a, read), d_b), d_start, reset, d_initial, product)


def shifted(a, first, reverse: bool):
    """One step later in the direction of the loop, `first` coming in."""
    a, first = lax.slice_in_dim(a, 1, None) if reverse else lax.slice_in_dim(a, 0, a.shape[0] - 1), first[None].astype(a.dtype)
    return jnp.concatenate([a, first] if reverse else [first, a])


def states_before(h, start, reset, initial, reverse: bool) -> tuple:
    """What each step reads: the state before it, or the initial one where it starts again."""
    return tuple(restarted(reset, i, shifted(one, s, reverse)) for one, s, i in zip(h, start, initial, strict=True))


def restarted(reset, initial, before):
    return before if reset is None else select(reset, broadcast_like(initial, before), before)


def _loop(a, b, start, reset, initial, reverse: bool) -> tuple:
    """A scan over steps."""
    return _scan(a, b, start, reset, initial, reverse, lambda h: h)[1]


def _scan(a, b, start, reset, initial, reverse: bool, out):
    """The state after all steps, and `out` of the state after each. If b is None, there is no input."""
    time = b[0].shape[0] if b is not None else max(leaf.shape[0] for leaf in jax.tree.leaves((a, reset)))
    moving = jax.tree.map(lambda leaf: None if leaf.shape[0] == 1 != time else leaf, a)
    fixed = jax.tree.map(lambda leaf: leaf[0], a)

    def step(h, now):
        b, reset, moving = now
        a = join(moving, fixed)
        if reset is not None:
            h = tuple(select(reset, one, old) for one, old in zip(initial, h, strict=True))
        h = apply(a, h) if b is None else add(apply(a, h), b)
        return h, out(h)

    return lax.scan(step, start, (b, reset, moving), reverse=reverse)


def _associative(a, b, start, reset, initial, reverse: bool) -> tuple:
    """A parallel prefix: about 2 log₂ T steps, each over all of time. Its adjoint is the same, the other way round.

    What a reset cuts off is selected away, not multiplied by zero, which would let NaN cross.
    """
    time = b[0].shape[0]
    a = jax.tree.map(lambda leaf: broadcast_like(leaf, b[0]), a)
    first = time - 1 if reverse else 0
    at = lambda tree: jax.tree.map(lambda leaf: leaf[first], tree)
    come_in = apply(at(a), start)
    if reset is None:
        b = tuple(x.at[first].add(c) for x, c in zip(b, come_in, strict=True))
    else:
        opens = reset.at[first].set(True)
        starts = tuple(broadcast_like(i, x) for i, x in zip(initial, b, strict=True))
        starts = tuple(s.at[first].set(restarted(reset[first], i, z)) for s, i, z in zip(starts, initial, start, strict=True))
        b = tuple(select(opens, x + c, x) for x, c in zip(b, apply(a, starts), strict=True))
        reset = opens
    return _open_system(a, b, reset, reverse)


def _open_system(a, b, reset, reverse: bool) -> tuple:
    """h with h_t − A_t h_{t−1} = b_t, nothing coming in: linear in b, its transpose by the system's transpose."""
    zero = tuple(zeros_like(x[0]) for x in b)

    def matvec(h):
        read = tuple(restarted(reset, zeros_like(one[0]), shifted(one, z, reverse)) for one, z in zip(h, zero, strict=True))
        return tuple(x - y for x, y in zip(h, apply(a, read), strict=True))

    def transposed(_, b):
        later = jax.tree.map(lambda leaf: shifted(leaf, zeros_like(leaf[0]), not reverse), tuple(zip(*a, strict=True)))
        ends = None if reset is None else shifted(reset, jnp.ones_like(reset[0]), not reverse)
        return _prefix(later, b, ends, not reverse)

    return lax.custom_linear_solve(matvec, b, lambda _, b: _prefix(a, b, reset, reverse), transposed)


def _prefix(a, b, reset, reverse: bool) -> tuple:
    return lax.associative_scan(_one_after_the_other, (a, b, reset), reverse=reverse)[1]


def _one_after_the_other(earlier, later):
    """Two stretches of time as one: its A, its b, and where a reset cuts off what came before."""
    (a_1, b_1, cut_1), (a_2, b_2, cut_2) = earlier, later
    columns = tuple(apply(a_2, column) for column in zip(*a_1, strict=True))
    a, b = tuple(zip(*columns, strict=True)), apply(a_2, b_1)
    if cut_2 is not None:
        a, b = jax.tree.map(lambda x: select(cut_2, zeros_like(x), x), (a, b))
        cut_1 = cut_1 | cut_2
    return a, add(b, b_2), cut_1


def _end(form: str, a, b, reset, initial, reverse: bool) -> tuple:
    """The state after all steps, if none comes in."""
    if form == "associative":
        return _as_one_step(a, b, reset, initial, reverse)[1]
    nothing = same_varying_axes(tuple(zeros_like(x[0]) for x in b), b)[0]
    return _scan(a, b, nothing, reset, initial, reverse, lambda h: None)[0]


def _product_of_all(form: str, a, b, reset, reverse: bool) -> tuple:
    """The product of all A, zero where a reset cuts off what comes in."""
    nothing = same_varying_axes(tuple(zeros_like(x[0]) for x in b), (a, b, reset))[0]
    if form == "associative" or (reset is None and all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(a))):
        return _as_one_step(a, b, reset, nothing, reverse)[0]
    unit = lambda j: tuple(x + 1 if i == j else x for i, x in enumerate(nothing))
    columns = [_scan(a, None, unit(j), reset, nothing, reverse, lambda h: None)[0] for j in range(len(b))]
    return tuple(zip(*columns, strict=True))


def _as_one_step(a, b, reset, initial, reverse: bool) -> tuple:
    """All of time as one step: the product of all A, the state after it if none came in, and where a reset has cut off what did.

    In about log₂ T steps. XLA:CPU fuses these, and so computes much again, unless A is the same at every step and b not asked for.
    A loop takes 0.6 of the time for a MinGRU, 0.08 for an LRU (T=8,192 H=256, jax 0.10).
    """
    time, rows = b[0].shape[0], lambda at: jax.tree.map(lambda x: x if x.shape[0] == 1 else x[at], steps)
    if reset is not None:
        a = jax.tree.map(lambda leaf: broadcast_like(leaf, b[0]), a)
        starts = apply(a, tuple(broadcast_like(i, x) for i, x in zip(initial, b, strict=True)))
        b = tuple(select(reset, x + c, x) for x, c in zip(b, starts, strict=True))
        a = jax.tree.map(lambda leaf: select(reset, zeros_like(leaf), leaf), a)
    steps, at_the_end = (a, b, reset), None
    join = lambda one, next: _one_after_the_other(*((next, one) if reverse else (one, next)))
    while time > 1:  # halved, by joining each two that stand side by side; one too many goes to those at the end
        if time % 2:
            one = rows(np.s_[time - 1 :])
            at_the_end = one if at_the_end is None else join(one, at_the_end)
        steps, time = join(rows(np.s_[: time - time % 2 : 2]), rows(np.s_[1 : time - time % 2 : 2])), time // 2
    return jax.tree.map(lambda x: x[0], steps if at_the_end is None else join(steps, at_the_end))


FORMS = {"loop": _loop, "associative": _associative}
"""Ways to compute the same states: a loop, whose steps wait for each other, and a parallel prefix for devices that are wide."""
