"""The gated recurrent unit, in cuDNN's form and in the form of the paper's evaluation."""

from dataclasses import dataclass
from typing import ClassVar

from jaxrnn.cells.activations import ACTIVATIONS, Activation
from jaxrnn.cells.base import Cell, GatedCell, Hidden, checks, contract, split_gates


@dataclass(frozen=True)
class GRUCell(GatedCell):
    """Gated recurrent unit (Cho et al., 2014, arXiv:1406.1078), in cuDNN's form.

        rₜ = σ(W_ir xₜ + b_ir + W_hr hₜ₋₁ + b_hr)            reset gate
        zₜ = σ(W_iz xₜ + b_iz + W_hz hₜ₋₁ + b_hz)            update gate
        nₜ = tanh(W_in xₜ + b_in + rₜ ⊙ (W_hn hₜ₋₁ + b_hn))  candidate
        hₜ = (1 − zₜ) ⊙ nₜ + zₜ ⊙ hₜ₋₁

    Variant: the reset gate acts after the hidden projection and z keeps the old state, as in cuDNN, `torch.nn.GRU` and
    Keras. `ChungGRUCell` is the other form.

    Args:
        activation: φ in the place of tanh, by a name of `jaxrnn.cells.activations.ACTIVATIONS`. Default: "tanh".
        recurrent_activation: the same in the place of σ. Default: "sigmoid". The names of both arguments are Keras's.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"

    gates: ClassVar = ("r", "z", "n")

    def __post_init__(self):
        super().__post_init__()
        checks.choice("GRUCell", "activation", self.activation, tuple(ACTIVATIONS))
        checks.choice("GRUCell", "recurrent_activation", self.recurrent_activation, tuple(ACTIVATIONS))

    def update(self, state, x_gates, h_gates):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates, h_gates
        φ, σ = ACTIVATIONS[self.activation], ACTIVATIONS[self.recurrent_activation]
        r = σ(x_r + h_r)
        z = σ(x_z + h_z)
        n = φ(x_n + r * h_n)
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

    Args:
        activation: φ in the place of tanh, by a name of `jaxrnn.cells.activations.ACTIVATIONS`. Default: "tanh".
        recurrent_activation: the same in the place of σ. Default: "sigmoid". The names of both arguments are Keras's.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"

    gates: ClassVar = ("r", "z", "n")

    def __post_init__(self):
        super().__post_init__()
        checks.choice("ChungGRUCell", "activation", self.activation, tuple(ACTIVATIONS))
        checks.choice("ChungGRUCell", "recurrent_activation", self.recurrent_activation, tuple(ACTIVATIONS))

    def recur(self, params, state, x_gates, h):
        φ, σ = ACTIVATIONS[self.activation], ACTIVATIONS[self.recurrent_activation]
        x_r, x_z, x_n = split_gates(x_gates)
        b_rz, b_n = (None, None) if params.b_hh is None else (params.b_hh[:2], params.b_hh[2:])
        h_r, h_z = split_gates(contract(h, params.w_hh[:, :2], b_rz))
        r = σ(x_r + h_r)
        z = σ(x_z + h_z)
        (h_n,) = split_gates(contract(r * h, params.w_hh[:, 2:], b_n))
        n = φ(x_n + h_n)
        return Hidden((1 - z) * state.h + z * n)
