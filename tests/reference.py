"""What a cell computes over a sequence, written from the meaning of each option: the only such reference. No test lives here.

Nothing of `jaxrnn.engine` is read, and each option is spelt out where it acts: what shares code with what it judges, judges
nothing. `by_oracle` is a Python loop in NumPy over the papers' equations; `unroll`, with the arguments of `jaxrnn.unroll`, takes
its gradients from JAX, and is a `lax.scan` for no other reason than that it compiles sooner than a loop.
"""

import jax
import jax.numpy as jnp
import numpy as np


def order(time: int, reverse: bool):
    """The steps in the order in which they are taken."""
    return np.arange(time)[::-1] if reverse else np.arange(time)


def starts(valid, reset, reverse: bool):
    """Before which steps the state is the initial one, row by row of the batch.

    A reset flags the first step of a sequence, and counts where that is valid. Read forward, the flagged step itself starts anew.
    Read backward, a sequence begins with its last step: the nearest valid one before a flagged step.
    """
    again = np.zeros(valid.shape, bool)
    for row in np.ndindex(valid.shape[1:]):
        steps = np.flatnonzero(valid[(slice(None), *row)])
        for k, t in enumerate(steps):
            if reset[(t, *row)]:
                if not reverse:
                    again[(t, *row)] = True
                elif k > 0:
                    again[(steps[k - 1], *row)] = True
    return again


def one_step(xp, update, start, held, state: dict, now: dict):
    """The state and the output after one step. `xp` is NumPy or JAX's; `update` holds a cell's equations."""

    def pick(condition, a, b):
        if condition is None:
            return a
        return xp.where(condition.reshape(condition.shape + (1,) * (b.ndim - condition.ndim)), a, b)

    def clean(a):  # what is not valid may be anything, but for keys and counts, and for what all examples share
        valid = now["valid"]
        masked = valid is not None and jnp.issubdtype(a.dtype, jnp.inexact) and a.shape[: valid.ndim] == valid.shape
        return pick(valid, a, xp.zeros_like(a)) if masked else a

    if now["cut"] is not None:  # truncated backpropagation: the value goes on, the gradient does not
        stop = lambda a: xp.where(now["cut"], jax.lax.stop_gradient(a), a) if jnp.issubdtype(a.dtype, jnp.inexact) else a
        state = {field: stop(a) for field, a in state.items()}
    before = state
    if now["again"] is not None:
        before = {field: pick(now["again"], xp.broadcast_to(start[field], a.shape), a) for field, a in state.items()}
    after = update(clean(now["x"]), before, {name: jax.tree.map(clean, tree) for name, tree in now["per_step"].items()})
    for field, rate in held.items():
        if isinstance(rate, float):
            after[field] = rate * before[field] + (1 - rate) * after[field]
    for field, mask in now["held"].items():
        after[field] = xp.where(mask, before[field], after[field])
    state = {field: pick(now["valid"], after[field], a) for field, a in state.items()}
    return state, pick(now["valid"], state["h"], xp.zeros_like(state["h"]))


def steps_of(xs, valid, reset, reverse: bool, **rest):
    """What is read at each step."""
    again = None if reset is None else starts(np.ones(reset.shape, bool) if valid is None else valid, reset, reverse)
    return {"x": xs, "valid": valid, "again": again, **rest}


def by_oracle(oracle, params: dict, xs, state: dict, *, initial: dict, mask, reset, reverse: bool):
    """The state after all steps, and the outputs; of arrays of NumPy by name."""
    update = lambda x, state, _: dict(oracle(x, state, params))
    steps = steps_of(xs, mask, reset, reverse)
    ys = [None] * len(xs)
    for t in order(len(xs), reverse):
        now = {name: a[t] for name, a in steps.items()} | {"cut": None, "held": {}, "per_step": {}}
        state, ys[t] = one_step(np, update, initial, {}, state, now)
    return state, np.stack(ys)


def unroll(
    cell, params, xs, state=None, *, initial=None, lengths=None, mask=None, reset=None, reverse=False, return_states=False,
    remat=False, truncate=None, h_mask=None, zoneout=None, per_step=None, context=None,
):  # fmt: skip
    """What `jaxrnn.unroll` of these arguments should give. `lengths`, `mask` and `reset` are known numbers; `remat` is nothing."""
    time, own = len(xs), cell.initial_state(params, xs[0])
    names = own._fields
    initial = own if initial is None else type(own)(*(b if a is None else a for a, b in zip(initial, own, strict=True)))
    valid = None if mask is None else np.asarray(mask)
    if lengths is not None:
        valid = np.arange(time).reshape(-1, *(1,) * np.ndim(lengths)) < np.asarray(lengths)
    cut = None if truncate is None else cuts(time, truncate, reverse)
    zoneout = dict(zip(names, zoneout or (None,) * len(names), strict=True))
    drawn = {field: mask for field, mask in zoneout.items() if mask is not None and not isinstance(mask, float)}
    reset = None if reset is None else np.asarray(reset)
    steps = steps_of(xs, valid, reset, reverse, cut=cut, held=drawn, per_step=per_step or {})

    def update(x, state, per_step):
        read = state["h"] if h_mask is None else state["h"] * h_mask
        new = cell.recur(params, type(own)(**state), cell.project(params, x), read, **per_step, **(context or {}))
        return new._asdict()

    def body(state, now):
        state, y = one_step(jnp, update, initial._asdict(), zoneout, state, now)
        return state, (y, state if return_states else None)

    if state is None:
        state = type(own)(*(jnp.broadcast_to(a, b.shape) for a, b in zip(initial, own, strict=True)))
    taken = order(time, reverse)
    final, (ys, states) = jax.lax.scan(body, state._asdict(), jax.tree.map(lambda a: a[taken], steps))
    back = lambda a: a[np.argsort(taken)]
    final, ys = type(own)(**final), back(ys)
    if not return_states:
        return final, ys
    beside = (lambda one, every: [every, one]) if reverse else (lambda one, every: [one, every])
    every = {field: jnp.concatenate(beside(getattr(state, field)[None], back(a))) for field, a in states.items()}
    return final, ys, type(own)(**every)


def cuts(time: int, truncate: int, reverse: bool):
    """Before which steps the gradient stops: where a piece of so many steps, counted from step 0, begins; not the first taken."""
    pieces = np.arange(time) // truncate
    first = order(time, reverse)[0]
    begins = [pieces[t] != pieces[t + (1 if reverse else -1)] if t != first else False for t in range(time)]
    return np.array(begins)
