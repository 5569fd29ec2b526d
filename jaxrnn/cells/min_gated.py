"""The minimal GRU and LSTM, whose gates read the input alone."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid

from jaxrnn.cells.base import Initializer, PerGate, checks, chrono
from jaxrnn.cells.elementwise import LinearCell

Candidate = Literal["linear", "tanh", "positive"]
CANDIDATES = {
    "linear": lambda x: x,
    "tanh": jnp.tanh,
    "positive": lambda x: jnp.where(x >= 0, x + 0.5, sigmoid(x)),
}
"""φ of the candidate by name; "positive" is g of the paper's appendix B.3, which its form in log space asks for."""


@dataclass(frozen=True)
class MinGRUCell(LinearCell):
    """Minimal GRU (Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, 2024, arXiv:2410.01201, section 3.1).

        zₜ = σ(W_iz xₜ + b_iz)                  update gate
        nₜ = φ(W_in xₜ + b_in)                  candidate
        hₜ = (1 − zₜ) ⊙ hₜ₋₁ + zₜ ⊙ nₜ

    Variant: the paper's φ is the identity in its text and "positive" in its form in log space (appendix B.3), whose parallel mode
    also applies it to the state that it starts from, which is not done here: a sequence in pieces is the whole. The paper gives
    no initial values; here b_iz = −log U(1, 99), b_in = 0, so that units remember for 1 to 99 steps (Tallec & Ollivier, 2018).

    Args:
        candidate: φ, by name: "linear", "tanh" or "positive".
        w_ih_init, b_ih_init: initialisers, see `Cell`.
        w_hh_init, b_hh_init: to be left out: there is no product with the state.
    """

    candidate: Candidate = "linear"
    b_ih_init: Initializer | PerGate = field(default=chrono(100, forget=None, write="z"), kw_only=True)

    gates: ClassVar = ("z", "n")

    def __post_init__(self):
        super().__post_init__()
        checks.choice("MinGRUCell", "candidate", self.candidate, tuple(CANDIDATES))

    def coefficients(self, params, x_gates):
        x_z, x_n = x_gates
        return sigmoid(-x_z), sigmoid(x_z) * CANDIDATES[self.candidate](x_n)


@dataclass(frozen=True)
class MinLSTMCell(LinearCell):
    """Minimal LSTM (Feng, Tung, Ahmed, Bengio, Hajimirsadeghi, 2024, arXiv:2410.01201, section 3.2, appendix B.2.2).

        fₜ = σ(W_if xₜ + b_if)                  forget gate
        iₜ = σ(W_ii xₜ + b_ii)                  input gate
        nₜ = φ(W_in xₜ + b_in)                  candidate
        hₜ = (fₜ ⊙ hₜ₋₁ + iₜ ⊙ nₜ) / (fₜ + iₜ)

    Variant: the shares f / (f + i) and i / (f + i) are computed so that they stay numbers where both gates are closed. Candidates
    as in `MinGRUCell`. The paper gives no initial values; here b_if = −b_ii = log U(1, 99), so that units remember for 1 to 99
    steps (Tallec & Ollivier, 2018).

    Args:
        candidate: φ, by name: "linear", "tanh" or "positive".
        w_ih_init, b_ih_init: initialisers, see `Cell`.
        w_hh_init, b_hh_init: to be left out: there is no product with the state.
    """

    candidate: Candidate = "linear"
    b_ih_init: Initializer | PerGate = field(default=chrono(100), kw_only=True)

    gates: ClassVar = ("f", "i", "n")

    def __post_init__(self):
        super().__post_init__()
        checks.choice("MinLSTMCell", "candidate", self.candidate, tuple(CANDIDATES))

    def coefficients(self, params, x_gates):
        x_f, x_i, x_n = x_gates
        # f / (f + i) = (1 + e^{−x_i}) / (2 + e^{−x_i} + e^{−x_f}), all over the largest term, which the quotient does not depend on
        largest = lax.stop_gradient(jnp.maximum(0, -jnp.minimum(x_f, x_i)))
        one, of_f, of_i = jnp.exp(-largest), jnp.exp(-x_f - largest), jnp.exp(-x_i - largest)
        whole = 1 / (2 * one + of_f + of_i)
        return (one + of_i) * whole, (one + of_f) * whole * CANDIDATES[self.candidate](x_n)
