"""What the residual blocks of `models.SequenceModel` compute between their parameters. No module and no parameter may live here."""

import jax
import jax.numpy as jnp

from jaxrnn import checks


def valid_steps(name: str, x, input_size: int, lengths, mask):
    """Check the sequences (batch, time, input) and what says which of their steps are valid; return that as one mask, or None."""
    checks.inputs(name, "x", x, 1, (("batch", "time"),), input_size, "the model's `input_size`")
    checks.validity(name, lengths, mask, None, x.shape[1], x.shape[:1], x="x", batch_first=True)
    return mask if lengths is None else jnp.arange(x.shape[1]) < jnp.asarray(lengths)[:, None]


def zero_invalid(valid, x):
    """`x`, zero where a step is not valid: what stands there must not reach a gradient, not even as NaN."""
    return x if valid is None else jnp.where(valid[..., None], x, jnp.zeros_like(x))


def gated(x):
    """The gated linear unit u ⊙ σ(v) (Dauphin et al., 2017, arXiv:1612.08083), of a projection to both."""
    u, v = jnp.split(x, 2, axis=-1)
    return u * jax.nn.sigmoid(v)


def at_last_valid(valid, x):
    """(batch, time, features) at the last valid step of each sequence; zeros where there is none."""
    if valid is None and x.shape[1]:
        return x[:, -1]
    valid = jnp.zeros(x.shape[:2], bool) if valid is None else valid
    steps = jnp.arange(x.shape[1])
    last = jnp.max(jnp.where(valid, steps, -1), axis=1)
    return jnp.sum(jnp.where((steps == last[:, None])[..., None], x, jnp.zeros_like(x)), axis=1)


def check_sizes(name: str, *, last, **sizes):
    """The options that only the model has."""
    for argument, size in sizes.items():
        checks.size(name, argument, size)
    checks.flag(name, "last", last)


def check_stack(name: str, stack):
    """A block adds a linear unit of its own, so that one layer is what it runs."""
    for option, plain in (("merge", ("concat", "sum", "mean")), ("skip_connections", (False,)), ("residual", (False,))):
        if getattr(stack, option) not in plain:
            raise ValueError(f"{name}: `{option}` should be {' or '.join(map(repr, plain))}, got {getattr(stack, option)!r}.")
