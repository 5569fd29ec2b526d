"""Gates in the order of another library. Only arrays and cells' params may be known here."""

from typing import Any

import jax
import numpy as np

from jaxrnn.cells import GateParams


def split(a: Any, order: str | tuple, gates: tuple) -> Any:
    """(…, gates * hidden) with the gates in `order`, to (…, gates, hidden) in the order of `gates`."""
    blocks = a.reshape(*a.shape[:-1], len(order), -1)
    return blocks[..., [order.index(gate) for gate in gates], :]


def join(a: Any, gates: tuple, order: str | tuple) -> Any:
    """The inverse of `split`."""
    return a[..., [gates.index(gate) for gate in order], :].reshape(*a.shape[:-2], -1)


def gate_params(w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> GateParams:
    """`GateParams` of NumPy arrays, which stand there until a module takes them."""
    return GateParams(w_ih, w_hh, b_ih, b_hh)


def flip_update_gate(params: GateParams) -> GateParams:
    """The params of a GRU (gates r, z, n) whose update gate z is the other way round.

    In `GRUCell`, cuDNN and PyTorch z = 1 keeps the state, and takes the candidate in `ChungGRUCell`, in the paper of Chung et al.
    and in Haiku. For 1 − σ(a) = σ(−a), a network of the one kind is one of the other with z's weights and biases negated; this
    negates them, and so it is its own inverse.

    Args:
        params: of one layer and direction; its other fields stay as they are.

    Raises:
        TypeError: `params` is none of a cell. ValueError: it does not have three gates.

    Example:
        >>> from jaxrnn.cells import GateParams
        >>> params = GateParams(np.ones((2, 3, 1)), np.ones((1, 3, 1)), None, None)
        >>> flip_update_gate(params).w_hh[0, :, 0]
        array([ 1., -1.,  1.])
    """
    if not isinstance(params, GateParams):
        raise TypeError(f"flip_update_gate: `params` should be a GateParams, got {type(params).__name__}.")
    for field, a in params._asdict().items():
        if a is not None and (np.ndim(a) < 2 or np.shape(a)[-2] != 3):
            wanted = "three gates, r, z and n, on its last axis but one"
            raise ValueError(f"flip_update_gate: `params.{field}` should have {wanted}, got shape {np.shape(a)}.")
    sign = np.array([1, -1, 1])[:, None]
    return jax.tree.map(lambda a: a * sign.astype(a.dtype), params)


def summed_bias(params: Any) -> np.ndarray:
    """The two biases as one, which is as good wherever they are added anyway; zeros if there are none."""
    if params.b_ih is None:
        return np.zeros_like(params.w_ih[0])
    return params.b_ih + params.b_hh
