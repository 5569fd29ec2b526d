"""The dropout family: everything random, drawn once, outside of any loop. Without a key nothing is drawn."""

import jax
import jax.numpy as jnp

from jaxrnn.cells.conform import is_free


def split(key, count: int):
    """`count` keys, or as many times None."""
    return [None] * count if key is None else list(jax.random.split(key, count))


def of_part(key, time_axis):
    """The key for what is drawn at each step, where time is in parts over devices: no two parts draw alike."""
    return key if key is None or time_axis is None else jax.random.fold_in(key, jax.lax.axis_index(time_axis))


def bernoulli(key, rate: float, shape):
    """Draw True at a rate; in float32, so that 64-bit numbers being on changes no draw."""
    return jax.random.bernoulli(key, jnp.float32(rate), shape)


def dropout(key, x, rate: float, *, over_time: bool = False):
    """Inverted dropout; `over_time` draws one mask for all steps. Without a key, or at rate 0, `x` itself."""
    if key is None or rate == 0:
        return x
    if rate == 1:
        return jnp.zeros_like(x)
    keep = bernoulli(key, 1 - rate, (1, *x.shape[1:]) if over_time else x.shape)
    keep = jnp.zeros_like(x, dtype=bool) | jnp.broadcast_to(keep, x.shape)  # sharded as `x`, which a fresh draw is not
    return jnp.where(keep, x / float(1 - rate), jnp.zeros_like(x))


def dropout_of_each(key, xs: tuple, rate: float, *, over_time: bool = False) -> tuple:
    """`dropout` of sequences that never meet, each with draws of its own."""
    keys = [key] if len(xs) == 1 else split(key, len(xs))
    return tuple(dropout(k, x, rate, over_time=over_time) for k, x in zip(keys, xs, strict=True))


def h_mask(key, like, rate: float):
    """A mask for `h` that all steps share: variational dropout (Gal & Ghahramani, 2016, arXiv:1512.05287)."""
    return None if key is None or rate == 0 else dropout(key, jnp.ones(like.h.shape, jnp.float32), rate)


def zoneout(key, cell, like, rate: float, time):
    """For each field of a state, where its entries keep their value (Krueger et al., 2017, arXiv:1606.01305), drawn anew at each
    step; without a key, the rate. None for fields that it does not act on."""
    if rate == 0:
        return None

    def of_field(k, name, field):
        if not is_free(cell, name, field):
            return None
        return float(rate) if k is None else bernoulli(k, rate, (time, *field.shape))

    return type(like)(*map(of_field, split(key, len(like)), like._fields, like))


def keys_of_their_own(per_step, index: int):
    """Inputs per step for the run of this index in a stack: PRNG keys become other keys, so that no two runs draw alike."""
    fold = lambda keys: jax.vmap(lambda key: jax.random.fold_in(key, index))(keys.reshape(-1)).reshape(keys.shape)
    typed = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: fold(a) if index and typed(a) else a, per_step)
