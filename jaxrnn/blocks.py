"""What the residual blocks of `models.SequenceModel` compute between their parameters. No module and no parameter may live here."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn import checks
from jaxrnn._arrays import may_be_dropped
from jaxrnn.engine import transition
from jaxrnn.engine.transition import zero_invalid as zero_invalid
from jaxrnn.stack import Stack
from jaxrnn.stack_checks import check_one_direction


def valid_steps(name: str, x, input_size: int, lengths, mask) -> Any:
    """Check the sequences (*batch, time, input) and what says which of their steps are valid; return that as one mask, or None."""
    checks.inputs(name, "x", x, 1, (("*batch", "time"),), input_size, "the model's `input_size`")
    lengths, mask, _ = checks.validity(name, lengths, mask, None, x.shape[-2], x.shape[:-2], x="x", batch_first=True)
    if lengths is None:
        return mask
    steps = transition.valid_steps(x.shape[-2], lengths, None)
    return jnp.moveaxis(steps, 0, -1)


def states(name: str, state, count: int):
    """The state of each of `count` blocks; of each None, if none is given."""
    if state is None:
        return (None,) * count
    if not isinstance(state, tuple | list) or len(state) != count:
        came = f"{len(state)} of them" if isinstance(state, tuple | list) else checks.called(state)
        raise TypeError(f"{name}: `state` should be a tuple, the state of each of {count} blocks, got {came}.")
    return state


def in_turn(runs, x, starts):
    """Blocks one after the other, each a function (x, start) -> (x, end): what the last one gives, and the end of each."""
    ends = []
    for run, start in zip(runs, starts, strict=True):
        x, end = run(x, start)
        ends.append(end)
    return x, tuple(ends)


def rowwise(layer, x):
    """`layer(x)`, for a layer that acts on the last axis. Batch axes of length 1 are left out, and put back after it: the gradient
    of a scale or bias is a sum over time, see `engine.one_sequence.without_batch`."""
    axes = tuple(range(x.ndim - 2))
    if not may_be_dropped(x, axes):
        return layer(x)
    return lax.expand_dims(layer(lax.squeeze(x, axes)), axes)


def residual(x, y, project, dropout):
    """What a block makes of its input `x` and its recurrence's output `y`: x + D(GLU(D(gelu(y)))), D being `dropout`.

    The gated linear unit (Dauphin et al., 2017, arXiv:1612.08083) is u ⊙ σ(v), of a projection to both.
    """
    u, v = jnp.split(rowwise(project, dropout(jax.nn.gelu(y))), 2, axis=-1)
    return x + dropout(u * jax.nn.sigmoid(v))


def at_last_valid(valid, x):
    """(*batch, time, features) at the last valid step of each sequence; zeros where there is none."""
    if valid is None and x.shape[-2]:
        return x[..., -1, :]
    valid = jnp.zeros(x.shape[:-1], bool) if valid is None else valid
    steps = jnp.arange(x.shape[-2])
    last = jnp.max(jnp.where(valid, steps, -1), axis=-1, initial=-1)
    return jnp.sum(jnp.where((steps == last[..., None])[..., None], x, jnp.zeros_like(x)), axis=-2)


def check_options(name: str, cell, *, input_size, hidden_size, output_size, num_layers, last, dropout, **of_layers):
    """The options of a model; `of_layers` are those of the one layer that each block runs."""
    sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size, "num_layers": num_layers}
    for argument, size in sizes.items():
        checks.size(name, argument, size)
    checks.flag(name, "last", last)
    checks.rate(name, "dropout", dropout)
    checks.choice(name, "merge", of_layers["merge"], ("concat", "sum", "mean"))
    Stack._described(name, cell=cell, input_size=hidden_size, hidden_size=hidden_size, **of_layers)


def check_step(name: str, x, stack: Stack, input_size: int, reset):
    """The input of one step (*batch, input)."""
    check_one_direction(name, stack)
    checks.inputs(name, "x", x, 1, (("*batch",),), input_size, "the model's `input_size`")
    checks.at_one_step(name, reset, x.shape[:-1])
