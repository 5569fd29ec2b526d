"""The simple recurrent cell."""

from dataclasses import dataclass
from typing import ClassVar

from jaxrnn.cells.activations import ACTIVATIONS, Activation
from jaxrnn.cells.base import GatedCell, Hidden, checks


@dataclass(frozen=True)
class RNNCell(GatedCell):
    """Simple recurrent network (Elman, 1990, Finding structure in time, Cognitive Science 14), with two biases.

        hₜ = φ(W_ih xₜ + b_ih + W_hh hₜ₋₁ + b_hh)

    Variant: `torch.nn.RNN` and `keras.layers.SimpleRNN` with tanh, Haiku's `VanillaRNN` with relu.

    Args:
        nonlinearity: φ, by a name of `jaxrnn.cells.activations.ACTIVATIONS`: "tanh", "relu", "sigmoid", ….
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    nonlinearity: Activation = "tanh"

    gates: ClassVar = ("h",)

    def __post_init__(self):
        super().__post_init__()
        checks.choice("RNNCell", "nonlinearity", self.nonlinearity, tuple(ACTIVATIONS))

    def update(self, state, x_gates, h_gates):
        (x_h,), (h_h,) = x_gates, h_gates
        φ = ACTIVATIONS[self.nonlinearity]
        return Hidden(φ(x_h + h_h))
