"""Long short-term memory."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.nn import sigmoid

from jaxrnn.cells.base import GatedCell, LSTMState


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
    """

    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState

    def update(self, state, x_gates, h_gates):
        (x_i, x_f, x_g, x_o), (h_i, h_f, h_g, h_o) = x_gates, h_gates
        i = sigmoid(x_i + h_i)
        f = sigmoid(x_f + h_f)
        g = jnp.tanh(x_g + h_g)
        o = sigmoid(x_o + h_o)
        c = f * state.c + i * g
        return LSTMState(o * jnp.tanh(c), c)
