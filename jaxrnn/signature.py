"""The documents' (and PyTorch's) way to describe and call a stack: cells by their options, `x` batch first or not, or unbatched,
states stacked over layers and directions. Pure functions between that and the nested tuples, time first, of `layers.py`; no
module may live here."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrnn import checks
from jaxrnn.cells import Cell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.layers import Stack


class Caller(NamedTuple):
    """Who is called, and how the axes of `x` lie."""

    name: str
    stack: Stack
    batch_first: bool


def rnn_cell(name: str, nonlinearity: str) -> Cell:
    """The cell of `torch.nn.RNN`."""
    checks.check_choice(name, "nonlinearity", nonlinearity, ("tanh", "relu"))
    return RNNCell(nonlinearity=nonlinearity)


def lstm_cell(name: str, hidden_size, proj_size: int) -> Cell:
    """The cell of `torch.nn.LSTM`."""
    checks.size(name, "proj_size", proj_size, least=0)
    if proj_size == 0:
        return LSTMCell()
    for hidden in hidden_size if isinstance(hidden_size, tuple) else (hidden_size,):
        checks.size(name, "hidden_size", hidden)
        checks.check_proj_size(proj_size, hidden, name)
    return ProjectedLSTMCell(proj_size=proj_size)


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
    checks.flag(name, "return_states", return_states)
    batched = checks.module_input(name, x, stack, caller.batch_first)
    swap = caller.batch_first and batched
    x_first = (lambda a: jnp.swapaxes(a, 0, 1)) if swap else jnp.asarray
    xs = x_first(x)
    batch = xs.shape[1 : xs.ndim - stack.cell.event_ndim]
    checks.validity(name, lengths, mask, reset, xs.shape[0], batch, x="x", batch_first=swap)
    mask, reset = (None if a is None else x_first(a) for a in (mask, reset))
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
    """The last layer's `h` after each direction's last valid step: forward, then backward, side by side."""
    h = h_n[-1] if len(set(stack.hidden_sizes)) > 1 else (h_n[0] if isinstance(h_n, tuple) else h_n)[-stack.num_directions :]
    return jnp.concatenate([getattr(a, "h", a) for a in h], axis=-1)


def summary_size(stack: Stack) -> int:
    """The width of `summary`."""
    return stack.num_directions * stack.cell.output_size(stack.hidden_sizes[-1])
