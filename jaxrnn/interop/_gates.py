"""Gates in the order of another library. Only arrays and cells' params may be known here."""

import jax
import numpy as np

from jaxrnn.cells import GateParams


def split(a, order: str | tuple, gates: tuple):
    """(…, gates * hidden) with the gates in `order`, to (…, gates, hidden) in the order of `gates`."""
    blocks = a.reshape(*a.shape[:-1], len(order), -1)
    return blocks[..., [order.index(gate) for gate in gates], :]


def join(a, gates: tuple, order: str | tuple):
    """The inverse of `split`."""
    return a[..., [gates.index(gate) for gate in order], :].reshape(*a.shape[:-2], -1)


def flip_update_gate(params: GateParams) -> GateParams:
    """A GRU with the other sign for z (gates r z n): there z keeps the old state where here it takes the candidate.

    For σ(−a) = 1 − σ(a), these are the weights of `ChungGRUCell` where another library keeps the old state, and back.
    """
    sign = np.array([1, -1, 1])[:, None]
    return jax.tree.map(lambda a: a * sign.astype(a.dtype), params)


def summed_bias(params: GateParams) -> np.ndarray:
    """The two biases as one, which is as good wherever they are added anyway; zeros if there are none."""
    if params.b_ih is None:
        return np.zeros_like(params.w_ih[0])
    return params.b_ih + params.b_hh
