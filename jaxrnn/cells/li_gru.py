"""The light GRU."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.nn import relu, sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array

from jaxrnn.cells.base import GatedCell, GateParams, Hidden, refuse_initializers


@dataclass(frozen=True)
class LiGRUCell(GatedCell):
    """Light gated recurrent unit (Ravanelli, Brakel, Omologo, Bengio, 2018, arXiv:1803.10225, section 3).

        zₜ = σ(W_iz xₜ + b_iz + W_hz hₜ₋₁)       update gate
        nₜ = relu(W_in xₜ + b_in + W_hn hₜ₋₁)    candidate
        hₜ = zₜ ⊙ hₜ₋₁ + (1 − zₜ) ⊙ nₜ

    Variant: without the paper's batch normalisation of W_i xₜ; as there, no reset gate and no second bias (`b_hh` is None). The
    paper draws `w_hh` orthogonal and drops out nₜ with one mask per sequence; unbounded, so keep an eye on its size.

    Args:
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    gates: ClassVar = ("z", "n")

    def __post_init__(self):
        super().__post_init__()
        refuse_initializers(self, "there is no second bias", "b_hh_init")

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> GateParams:
        return super().init(key, input_size, hidden_size, bias=bias, dtype=dtype)._replace(b_hh=None)

    def update(self, state, x_gates, h_gates):
        (x_z, x_n), (h_z, h_n) = x_gates, h_gates
        z = sigmoid(x_z + h_z)
        n = relu(x_n + h_n)
        return Hidden(z * state.h + (1 - z) * n)
