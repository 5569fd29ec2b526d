"""Long short-term memory."""

from dataclasses import dataclass
from typing import ClassVar

from jaxrnn.cells.activations import ACTIVATIONS, Activation
from jaxrnn.cells.base import GatedCell, LSTMState, checks


@dataclass(frozen=True)
class LSTMCell(GatedCell):
    """Long short-term memory (Hochreiter & Schmidhuber, 1997; forget gate: Gers, Schmidhuber, Cummins, 2000).

        iₜ = σ(W_ii xₜ + b_ii + W_hi hₜ₋₁ + b_hi)       input gate
        fₜ = σ(W_if xₜ + b_if + W_hf hₜ₋₁ + b_hf)       forget gate
        gₜ = tanh(W_ig xₜ + b_ig + W_hg hₜ₋₁ + b_hg)    candidate
        oₜ = σ(W_io xₜ + b_io + W_ho hₜ₋₁ + b_ho)       output gate
        cₜ = fₜ ⊙ cₜ₋₁ + iₜ ⊙ gₜ
        hₜ = oₜ ⊙ tanh(cₜ)

    Variant: no peepholes, as in cuDNN, `torch.nn.LSTM`, Keras and Flax. The two biases of a gate act as their sum.

    Args:
        activation: φ in the place of both tanh, by a name of `jaxrnn.cells.activations.ACTIVATIONS`. Default: "tanh".
        recurrent_activation: the same in the place of σ. Default: "sigmoid". The names of both arguments are Keras's.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    activation: Activation = "tanh"
    recurrent_activation: Activation = "sigmoid"

    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState

    def __post_init__(self):
        super().__post_init__()
        checks.choice("LSTMCell", "activation", self.activation, tuple(ACTIVATIONS))
        checks.choice("LSTMCell", "recurrent_activation", self.recurrent_activation, tuple(ACTIVATIONS))

    @property
    def cudnn(self) -> bool:
        """Whether these are the equations of cuDNN's LSTM; a class with equations of its own has to say so itself."""
        return (self.activation, self.recurrent_activation) == ("tanh", "sigmoid")

    def update(self, state, x_gates, h_gates):
        (x_i, x_f, x_g, x_o), (h_i, h_f, h_g, h_o) = x_gates, h_gates
        φ, σ = ACTIVATIONS[self.activation], ACTIVATIONS[self.recurrent_activation]
        i = σ(x_i + h_i)
        f = σ(x_f + h_f)
        g = φ(x_g + h_g)
        o = σ(x_o + h_o)
        c = f * state.c + i * g
        return LSTMState(o * φ(c), c)
