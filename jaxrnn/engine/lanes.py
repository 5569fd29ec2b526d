"""What runs side by side under `jax.vmap`, a lane for each layer of a stack, hands on to the next lane. No cell may be known here."""

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

_handed_on = Primitive("handed_on")


def handed_on(first, value, index):
    """What the lane before has as `value`; in the first lane, `first`. To be called under the `jax.vmap` whose lanes `index` counts.

    A primitive, since JAX's own exchanges between lanes are gathers, and scatters backward: on a GPU kernels of their own. There is
    nothing here to lower or to transpose: `jax.vmap` makes of it what can be.
    """
    return _handed_on.bind(first, value, index)


@_handed_on.def_abstract_eval
def _shape(first, value, index):
    return value


def _derivative(primals, tangents):
    d_first, d_value, _ = tangents
    out = _handed_on.bind(*primals)
    if type(d_first) is type(d_value) is ad.Zero:
        return out, ad.Zero.from_primal_value(out)
    return out, _handed_on.bind(ad.instantiate_zeros(d_first), ad.instantiate_zeros(d_value), primals[2])


def _over_lanes(args, axes):
    first, value, index = args
    if axes[2] is None:
        raise NotImplementedError("handed_on: `index` should be what the lanes of this `jax.vmap` are counted by.")
    lanes = index.shape[axes[2]]
    alone = batching.moveaxis(first, axes[0], 0)[:1] if axes[0] is not None else first[None]
    all_of = batching.bdim_at_front(value, axes[1], lanes)
    return jnp.concatenate([alone, all_of[:-1]]), 0


ad.primitive_jvps[_handed_on] = _derivative
batching.primitive_batchers[_handed_on] = _over_lanes
