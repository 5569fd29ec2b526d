"""The documents' (and PyTorch's) way to call a stack: `x` batch first or not, or unbatched, states stacked over layers and
directions. Pure functions between that and the nested tuples, time first, of `layers.py`; no module may live here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.layers import Stack


class Caller(NamedTuple):
    """Who is called, and how the axes of `x` lie."""

    name: str
    stack: Stack
    batch_first: bool


def call(
    caller: Caller,
    params,
    x,
    h_0=None,
    *,
    initial=None,
    lengths=None,
    mask=None,
    reset=None,
    key=None,
    return_states=False,
):
    """Run a stack with the documents' signature: (output, h_n), or (output, h_n, states) with `return_states`."""
    name, stack, _ = caller
    batched = checks.module_input(name, x, stack, caller.batch_first)
    swap = caller.batch_first and batched
    xs, mask, reset = (jnp.swapaxes(a, 0, 1) if swap and getattr(a, "ndim", 0) > 1 else a for a in (x, mask, reset))
    hint = _layout_hint(caller, xs, lengths) if batched else ""
    checks.validity(name, lengths, mask, reset, xs.shape[0], xs.shape[1 : xs.ndim - stack.cell.event_ndim], hint)
    states = unstack(caller, params, h_0, xs)
    output, finals, *every = stack.apply(
        params,
        xs,
        states,
        initial=initial,
        lengths=lengths,
        mask=mask,
        reset=reset,
        key=key,
        return_states=return_states,
    )
    out_first = (lambda a: jnp.swapaxes(a, 0, 1)) if swap else (lambda a: a)
    return jax.tree.map(out_first, output), restack(stack, finals), *(jax.tree.map(out_first, e) for e in every)


def step(caller: Caller, params, x, state=None, *, initial=None):
    """Run one step (batch, input) or (input,) of a stack of one direction: (y, state), the state stacked as `h_n`."""
    name, stack, _ = caller
    checks.one_direction(f"{name}.step", stack.bidirectional)
    checks.step_input(f"{name}.step", x, stack)
    y, states = stack.step(params, x, unstack(caller, params, state, x[None]), initial=initial)
    return y, restack(stack, states)


def restack(stack: Stack, states) -> Any:
    """`[layer][direction]` to one array per field, (layers * directions, …); nested still if hidden sizes differ."""
    if len(set(stack.hidden_sizes)) > 1:
        return states
    flat = [state for layer in states for state in layer]
    fields = jax.tree.map(lambda *leaves: jnp.stack(leaves), *flat)
    return fields[0] if len(fields) == 1 else tuple(fields)


def unstack(caller: Caller, params, h_0, xs) -> Any:
    """The inverse of `restack`, checked."""
    name, stack, _ = caller
    if h_0 is None:
        return None
    like = tuple(
        tuple(
            jax.eval_shape(stack.cell.initial_state, p, jax.ShapeDtypeStruct((*xs.shape[1:-1], p.w_ih.shape[-3]), xs.dtype))
            for p in layer
        )
        for layer in params
    )
    kind = type(like[0][0])
    if len(set(stack.hidden_sizes)) > 1:
        return checks.nested_states(name, h_0, like)
    fields = checks.stacked_states(name, h_0, like)
    picks = iter(range(stack.num_layers * stack.num_directions))
    return tuple(tuple(kind(*(field[k] for field in fields)) for _, k in zip(layer, picks, strict=False)) for layer in like)


def summary(stack: Stack, h_n):
    """The last layer's output `h` after each direction's last valid step: forward, then backward, side by side."""
    h = h_n[-1][0].h if len(set(stack.hidden_sizes)) > 1 else (h_n[0] if isinstance(h_n, tuple) else h_n)
    return jnp.concatenate([h[k] for k in range(-stack.num_directions, 0)], axis=-1)


def _layout_hint(caller: Caller, xs, lengths) -> str:
    """What to try if the lengths fit the other layout of `x`."""
    if lengths is None or getattr(lengths, "shape", None) != (xs.shape[0],):
        return ""
    order = "time first" if caller.batch_first else "batch first"
    return f"\nIs `x` {order}? Pass batch_first={not caller.batch_first}."
