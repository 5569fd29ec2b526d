"""Gated cells that run side by side, lanes under `jax.vmap`, each reading what the one before gives out. No concrete cell may be
known here, nor what a lane stands for."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxrnn.cells.base import GatedCell


class LaneParams(NamedTuple):
    """The parameters of a lane. `w_ih` and `b_ih` are the first one's, for all lanes."""

    w_ih: Any
    w_hh: Any
    """(output, 2 · gates, hidden): for its own gates, and for the input of the lane after."""
    b_ih: Any
    b_hh: Any
    index: Any
    extra: Any
    """Parameters of the cell beyond these, in the place that they have in its own."""


@dataclass(frozen=True)
class Lane(GatedCell):
    """A gated cell, run by `jax.vmap`: each lane reads what the lane before gave out a step ago, the first one its input."""

    cell: GatedCell
    """Whose equations these are."""


def own_and_next(cell, a) -> tuple:
    """An array with gates on its last axis but one: those of the cell, and in a lane those of the next one, else None."""
    if not isinstance(cell, Lane) or a is None:
        return (a, None)
    return tuple(jnp.split(a, 2, axis=-2))


_handed_on = Primitive("handed_on")


def handed_on(first, value, index):
    """What the lane before has as `value`; in the first lane, `first`. Called under the `jax.vmap` that `index` counts lanes of.

    A primitive, since JAX's own exchanges between lanes become gathers, and scatters backward, kernels of their own on a GPU. It is
    not lowered or transposed: `jax.vmap` has made something else of it by then.
    """
    return _handed_on.bind(first, value, index)


@_handed_on.def_abstract_eval
def _shape(first, value, index):
    return value


def _derivative(primals, tangents):
    d_first, d_value, _ = tangents
    out = _handed_on.bind(*primals)
    if type(d_first) is type(d_value) is ad.Zero:
        return out, ad.Zero.from_primal_value(out)  # pyright: ignore[reportAttributeAccessIssue]  set when JAX is imported
    return out, _handed_on.bind(ad.instantiate_zeros(d_first), ad.instantiate_zeros(d_value), primals[2])


def _over_lanes(args, axes):
    first, value, index = args
    if axes[2] is None:
        raise NotImplementedError("handed_on: `index` should be what the lanes of this `jax.vmap` are counted by.")
    lanes = index.shape[axes[2]]
    alone = jnp.moveaxis(first, axes[0], 0)[:1] if axes[0] is not None else first[None]
    all_of = batching.bdim_at_front(value, axes[1], lanes)
    return jnp.concatenate([alone, all_of[:-1]]), 0


ad.primitive_jvps[_handed_on] = _derivative
batching.primitive_batchers[_handed_on] = _over_lanes
