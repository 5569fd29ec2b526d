"""Cells with fewer parts than a GRU."""

from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.nn import relu, sigmoid

from jaxrnn.cells.base import Cell, Hidden, broadcast_like, contract, split_gates
from jaxrnn.cells.elementwise import DiagonalCell


@dataclass(frozen=True)
class MGUCell(Cell):
    """Minimal gated unit (Zhou et al., 2016, arXiv:1603.09420, equations 6).

        fₜ = σ(W_if xₜ + b_if + W_hf hₜ₋₁ + b_hf)               forget gate
        nₜ = tanh(W_in xₜ + b_in + W_hn (fₜ ⊙ hₜ₋₁) + b_hn)     candidate
        hₜ = (1 − fₜ) ⊙ hₜ₋₁ + fₜ ⊙ nₜ

    Variant: the paper's. Flax's `MGUCell` applies the gate after the product and lets f keep the old state.

    Args:
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    gates: ClassVar = ("f", "n")

    def recur(self, params, state, x_gates, h):
        x_f, x_n = split_gates(x_gates)
        b_f, b_n = (None, None) if params.b_hh is None else (params.b_hh[:1], params.b_hh[1:])
        (h_f,) = split_gates(contract(h, params.w_hh[:, :1], b_f))
        f = sigmoid(x_f + h_f)
        (h_n,) = split_gates(contract(f * h, params.w_hh[:, 1:], b_n))
        n = jnp.tanh(x_n + h_n)
        return Hidden((1 - f) * state.h + f * n)


@dataclass(frozen=True)
class IndRNNCell(DiagonalCell):
    """Independently recurrent network (Li et al., 2018, arXiv:1803.04831, equation 4).

        hₜ = relu(W_ih xₜ + b_ih + u ⊙ hₜ₋₁)

    Variant: `w_hh` holds u, of shape (1, hidden): each unit sees itself only. There is no second bias.

    Args:
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    gates: ClassVar = ("h",)

    def recur(self, params, state, x_gates, h):
        (x_h,), u = split_gates(x_gates), broadcast_like(params.w_hh[0], h)
        return Hidden(relu(x_h + u * h))
