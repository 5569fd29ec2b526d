"""Gated cells whose units see only themselves, so that time can be solved for in parallel."""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells.base import Hidden, Initializer, LSTMState, PerGate, broadcast_like, draw, split_gates, zeros
from jaxrnn.cells.elementwise import DiagonalCell


@dataclass(frozen=True)
class _Normal:
    """Normal with standard deviation 2/√(5 hidden)."""

    def __call__(self, key, shape, dtype=jnp.float32):
        return 2 / (5 * shape[-1]) ** 0.5 * jax.random.normal(key, shape, dtype)


@dataclass(frozen=True)
class _Falling:
    """From 0 down to −1 over the units."""

    def __call__(self, key, shape, dtype=jnp.float32):
        del key
        return jnp.broadcast_to(-jnp.linspace(0, 1, shape[-1], dtype=dtype), shape)


class ParaLSTMParams(NamedTuple):
    """`DiagonalParams` and the peephole weights of the gates f and o."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: None
    p: Float[Array, "2 hidden"]


@dataclass(frozen=True)
class ParaGRUCell(DiagonalCell):
    """GRU with diagonal recurrent weights (Danieli et al., 2025, ParaRNN, arXiv:2510.21450, equations 3.1a and 3.3).

        zₜ = σ(a_z ⊙ hₜ₋₁ + W_iz xₜ + b_z)             update gate
        rₜ = σ(a_r ⊙ hₜ₋₁ + W_ir xₜ + b_r)             reset gate
        nₜ = tanh(a_n ⊙ (rₜ ⊙ hₜ₋₁) + W_in xₜ + b_n)   candidate
        hₜ = (1 − zₜ) ⊙ hₜ₋₁ + zₜ ⊙ nₜ

    Variant: `w_hh` holds a, of shape (3, hidden). Drawn as in the authors' code: a normal with standard deviation 2/√(5 hidden),
    b_z falling from 0 to −1 over the units, other biases 0; `w_ih` as everywhere here. Their code has two heads; here there is one.

    Args:
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    w_hh_init: Initializer | PerGate = field(default=_Normal(), kw_only=True)
    b_ih_init: Initializer | PerGate = field(default=PerGate(zeros, (("z", _Falling()),)), kw_only=True)

    gates: ClassVar = ("z", "r", "n")

    def recur(self, params, state, x_gates, h):
        (x_z, x_r, x_n), (a_z, a_r, a_n) = split_gates(x_gates), (broadcast_like(a, h) for a in params.w_hh)
        z = sigmoid(x_z + a_z * h)
        r = sigmoid(x_r + a_r * h)
        n = jnp.tanh(x_n + a_n * (r * h))
        return Hidden((1 - z) * state.h + z * n)


@dataclass(frozen=True)
class ParaLSTMCell(DiagonalCell):
    """LSTM with diagonal recurrent weights and coupled gates (Danieli et al., 2025, ParaRNN, arXiv:2510.21450, equation 3.1b).

        fₜ = σ(a_f ⊙ hₜ₋₁ + p_f ⊙ cₜ₋₁ + W_if xₜ + b_f)   forget gate
        gₜ = tanh(a_g ⊙ hₜ₋₁ + W_ig xₜ + b_g)             candidate
        cₜ = fₜ ⊙ cₜ₋₁ + (1 − fₜ) ⊙ gₜ
        oₜ = σ(a_o ⊙ hₜ₋₁ + p_o ⊙ cₜ + W_io xₜ + b_o)     output gate, which sees the new cell state
        hₜ = oₜ ⊙ tanh(cₜ)

    Variant: `w_hh` holds a, of shape (3, hidden), `p` the peepholes. Drawn as `ParaGRUCell`'s, with b_f falling from 0 to −1.

    Args:
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    w_hh_init: Initializer | PerGate = field(default=_Normal(), kw_only=True)
    b_ih_init: Initializer | PerGate = field(default=PerGate(zeros, (("f", _Falling()),)), kw_only=True)

    gates: ClassVar = ("f", "o", "g")
    State: ClassVar = LSTMState
    axes: ClassVar = DiagonalCell.axes | {"p": (None, "hidden")}

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> ParaLSTMParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_gates, k_p = jax.random.split(key)
        params = super().init(k_gates, input_size, hidden_size, bias=bias, dtype=dtype)
        return ParaLSTMParams(*params, p=draw(_Normal(), k_p, ("f", "o"), (hidden_size,), dtype))

    def recur(self, params, state, x_gates, h):
        (x_f, x_o, x_g), (a_f, a_o, a_g) = split_gates(x_gates), (broadcast_like(a, h) for a in params.w_hh)
        p_f, p_o = (broadcast_like(p, h) for p in params.p)
        f = sigmoid(x_f + a_f * h + p_f * state.c)
        g = jnp.tanh(x_g + a_g * h)
        c = f * state.c + (1 - f) * g
        o = sigmoid(x_o + a_o * h + p_o * c)
        return LSTMState(o * jnp.tanh(c), c)
