"""The scalar LSTM of xLSTM, with exponential gates."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import jax.numpy as jnp
from jax.nn import log_sigmoid, sigmoid
from jaxtyping import Array, Float

from jaxrnn.cells.base import GatedCell, checks

EMPTY = -1e30
"""The stabiliser of an empty memory: the first step then has f′ = 0 exactly, for pre-activations of any size."""


class SLSTMState(NamedTuple):
    """The output `h`; the memory c·eᵐ and its normaliser n·eᵐ, held as `c`, `n` and the stabiliser `m`."""

    h: Float[Array, "*batch hidden"]
    c: Float[Array, "*batch hidden"]
    n: Float[Array, "*batch hidden"]
    m: Float[Array, "*batch hidden"]


@dataclass(frozen=True)
class SLSTMCell(GatedCell):
    """sLSTM, the LSTM with exponential gates of xLSTM (Beck et al., 2024, arXiv:2405.04517, equations 8 to 17).

        ĩₜ = W_ii xₜ + b_ii + W_hi hₜ₋₁ + b_hi                input gate, exponential
        f̃ₜ = W_if xₜ + b_if + W_hf hₜ₋₁ + b_hf                forget gate, log fₜ = log σ(f̃ₜ), or f̃ₜ
        zₜ = tanh(W_iz xₜ + b_iz + W_hz hₜ₋₁ + b_hz)          candidate
        oₜ = σ(W_io xₜ + b_io + W_ho hₜ₋₁ + b_ho)             output gate
        mₜ = max(log fₜ + mₜ₋₁, ĩₜ)                           stabiliser
        i′ = exp(ĩₜ − mₜ),  f′ = exp(log fₜ + mₜ₋₁ − mₜ)
        cₜ = f′ ⊙ cₜ₋₁ + i′ ⊙ zₜ                              cell state
        nₜ = f′ ⊙ nₜ₋₁ + i′                                   normaliser
        hₜ = oₜ ⊙ cₜ / nₜ

    Variant: one head, so that `w_hh` is dense; the paper's has a block for each head. The state starts, and a reset returns to,
    h = c = n = 0 and m = −10³⁰: an empty memory, of which the first step reads nothing, with finite gradients (m = 0, the start
    of the authors' code, loses the first inputs where all pre-activations are very negative). Zoneout acts on `h` alone, and a
    start is learned for it alone: c and n have their scale in m. The authors begin with `w_hh` zero and large biases in f.

    Args:
        forget_gate: "sigmoid" or "exp", for f; the paper has both.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    forget_gate: Literal["sigmoid", "exp"] = "sigmoid"

    gates: ClassVar = ("i", "f", "z", "o")
    State: ClassVar = SLSTMState
    axes: ClassVar = GatedCell.axes | {"n": ("hidden",), "m": ("hidden",)}
    free_fields: ClassVar = ("h",)

    def __post_init__(self):
        super().__post_init__()
        checks.choice("SLSTMCell", "forget_gate", self.forget_gate, ("sigmoid", "exp"))

    def initial_state(self, params, x):
        zeros = super().initial_state(params, x)
        return zeros._replace(m=zeros.m + EMPTY)

    def update(self, state, x_gates, h_gates):
        (x_i, x_f, x_z, x_o), (h_i, h_f, h_z, h_o) = x_gates, h_gates
        i = x_i + h_i
        f = x_f + h_f
        z = jnp.tanh(x_z + h_z)
        o = sigmoid(x_o + h_o)
        log_f = log_sigmoid(f) if self.forget_gate == "sigmoid" else f
        m = jnp.maximum(log_f + state.m, i)
        i = jnp.exp(i - m)
        f = jnp.exp(log_f + state.m - m)
        c = f * state.c + i * z
        n = f * state.n + i
        return SLSTMState(o * c / n, c, n, m)
