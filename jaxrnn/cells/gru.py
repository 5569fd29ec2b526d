"""The gated recurrent unit, in cuDNN's form and in the form of the paper's evaluation."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn.cells.base import Cell, GatedCell, Hidden, contract, split_gates


@dataclass(frozen=True)
class GRUCell(GatedCell):
    """Gated recurrent unit (Cho et al., 2014, arXiv:1406.1078), in cuDNN's form.

        rₜ = σ(W_ir xₜ + b_ir + W_hr hₜ₋₁ + b_hr)            reset gate
        zₜ = σ(W_iz xₜ + b_iz + W_hz hₜ₋₁ + b_hz)            update gate
        nₜ = tanh(W_in xₜ + b_in + rₜ ⊙ (W_hn hₜ₋₁ + b_hn))  candidate
        hₜ = (1 − zₜ) ⊙ nₜ + zₜ ⊙ hₜ₋₁

    Variant: the reset gate acts after the hidden projection and z keeps the old state, as in cuDNN, `torch.nn.GRU` and
    Keras. `ChungGRUCell` is the other form.
    """

    gates: ClassVar = ("r", "z", "n")

    def update(self, state, x_gates, h_gates):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates, h_gates
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
        return Hidden((1 - z) * n + z * state.h)


@dataclass(frozen=True)
class ChungGRUCell(Cell):
    """Gated recurrent unit as evaluated by Chung et al. (2014, arXiv:1412.3555, section 3.2).

        rₜ = σ(W_ir xₜ + b_ir + W_hr hₜ₋₁ + b_hr)              reset gate
        zₜ = σ(W_iz xₜ + b_iz + W_hz hₜ₋₁ + b_hz)              update gate
        nₜ = tanh(W_in xₜ + b_in + W_hn (rₜ ⊙ hₜ₋₁) + b_hn)    candidate
        hₜ = (1 − zₜ) ⊙ hₜ₋₁ + zₜ ⊙ nₜ

    Variant: the reset gate acts before the hidden projection and z takes the candidate, as in Haiku. It needs a second
    product inside the loop, so it is not a `GatedCell`. No weights of `GRUCell` express it.
    """

    gates: ClassVar = ("r", "z", "n")

    def recur(self, params, state, x_gates, h):
        x_r, x_z, x_n = split_gates(x_gates)
        b_rz, b_n = (None, None) if params.b_hh is None else (params.b_hh[:2], params.b_hh[2:])
        h_r, h_z = split_gates(contract(h, params.w_hh[:, :2], b_rz))
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        (h_n,) = split_gates(contract(r * h, params.w_hh[:, 2:], b_n))
        n = jnp.tanh(x_n + h_n)
        return Hidden((1 - z) * state.h + z * n)
