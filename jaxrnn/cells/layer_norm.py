"""Layer-normalised LSTM and GRU."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells.base import GatedCell, Hidden, LSTMState, broadcast_like, checks, contract, refuse_initializers, split_gates


class Norm(NamedTuple):
    """Gain and shift of one layer normalisation."""

    gain: Float[Array, "*gates hidden"]
    shift: Float[Array, "*gates hidden"]


class LayerNormParams(NamedTuple):
    """`GateParams` without the second bias, and the normalisations of the two products and of the cell state."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "output gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: None
    norm_x: Norm
    norm_h: Norm
    norm_c: Norm | None


def normalise(a, norm: Norm, axes: tuple[int, ...], ε: float):
    """LN(a) = gain ⊙ (a − mean) / √(variance + ε) + shift, with mean and variance over `axes`."""
    centred = a - broadcast_like(jnp.mean(a, axes, keepdims=True), a)
    scale = lax.rsqrt(jnp.mean(centred * centred, axes, keepdims=True) + ε)
    gain, shift = (broadcast_like(p, a) for p in norm)
    return gain * (centred * broadcast_like(scale, a)) + shift


@dataclass(frozen=True)
class _LayerNormCell(GatedCell):
    epsilon: float = 1e-5

    axes: ClassVar = GatedCell.axes | {
        "norm_x": (("gates", "hidden"), ("gates", "hidden")),
        "norm_h": (("gates", "hidden"), ("gates", "hidden")),
        "norm_c": (("hidden",), ("hidden",)),
    }
    together: ClassVar[tuple[int, ...]]
    """How many gates, in their order, share a mean and a variance."""
    normalises_c: ClassVar[bool]

    def __post_init__(self):
        super().__post_init__()
        refuse_initializers(self, "there is no second bias", "b_hh_init")
        checks.positive(type(self).__name__, "epsilon", self.epsilon)

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> LayerNormParams:
        params = super().init(key, input_size, hidden_size, bias=bias, dtype=dtype)
        shape = (len(self.gates), hidden_size)
        gates = Norm(jnp.ones(shape, dtype), jnp.zeros(shape, dtype))
        c = Norm(gates.gain[0], gates.shift[0]) if self.normalises_c else None
        return LayerNormParams(*params[:3], b_hh=None, norm_x=gates, norm_h=gates, norm_c=c)

    def project(self, params, x):
        x_gates = self.normalise_gates(contract(x, params.w_ih), params.norm_x)
        b = params.b_ih
        return x_gates if b is None else x_gates + broadcast_like(b, x_gates)

    def normalise_gates(self, a: Array, norm: Norm) -> Array:
        if len(self.together) == 1:
            return normalise(a, norm, (-2, -1), self.epsilon)
        bounds = [sum(self.together[:k]) for k in range(len(self.together) + 1)]
        groups = [slice(*pair) for pair in pairwise(bounds)]
        parts = [normalise(a[..., g, :], Norm(norm.gain[g], norm.shift[g]), (-2, -1), self.epsilon) for g in groups]
        return jnp.concatenate(parts, axis=-2)

    def normalise_h(self, h_gates: tuple, norm_h: Any) -> tuple:
        return split_gates(self.normalise_gates(jnp.stack(h_gates, axis=-2), norm_h))


@dataclass(frozen=True)
class LayerNormLSTMCell(_LayerNormCell):
    """LSTM with layer normalisation (Ba, Kiros, Hinton, 2016, arXiv:1607.06450, supplement, equations 20–22).

        (iₜ, fₜ, gₜ, oₜ) = (σ, σ, tanh, σ)(LN(W_h hₜ₋₁) + LN(W_i xₜ) + b)
        cₜ = fₜ ⊙ cₜ₋₁ + iₜ ⊙ gₜ
        hₜ = oₜ ⊙ tanh(LN(cₜ))

    Variant: mean and variance over all gates together, as the paper's 4·hidden vector; each LN has a gain and a shift.

    Args:
        epsilon: added to the variance.
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState
    together: ClassVar = (4,)
    normalises_c: ClassVar = True

    def update(self, state, x_gates, h_gates, norm_x, norm_h, norm_c):
        (x_i, x_f, x_g, x_o), (h_i, h_f, h_g, h_o) = x_gates, self.normalise_h(h_gates, norm_h)
        i = sigmoid(x_i + h_i)
        f = sigmoid(x_f + h_f)
        g = jnp.tanh(x_g + h_g)
        o = sigmoid(x_o + h_o)
        c = f * state.c + i * g
        return LSTMState(o * jnp.tanh(normalise(c, norm_c, (-1,), self.epsilon)), c)


@dataclass(frozen=True)
class LayerNormGRUCell(_LayerNormCell):
    """GRU with layer normalisation (Ba, Kiros, Hinton, 2016, arXiv:1607.06450, supplement, equations 23–25).

        rₜ = σ(LN(W_i xₜ)_r + b_r + LN(W_h hₜ₋₁)_r)
        zₜ = σ(LN(W_i xₜ)_z + b_z + LN(W_h hₜ₋₁)_z)
        nₜ = tanh(LN(W_i xₜ)_n + b_n + rₜ ⊙ LN(W_h hₜ₋₁)_n)
        hₜ = (1 − zₜ) ⊙ nₜ + zₜ ⊙ hₜ₋₁

    Variant: r and z share a mean and a variance, n has its own, as in the paper; z keeps the old state, as in `GRUCell` (the
    paper's takes the new).

    Args:
        epsilon: added to the variance.
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    gates: ClassVar = ("r", "z", "n")
    together: ClassVar = (2, 1)
    normalises_c: ClassVar = False

    def update(self, state, x_gates, h_gates, norm_x, norm_h, norm_c):
        (x_r, x_z, x_n), (h_r, h_z, h_n) = x_gates, self.normalise_h(h_gates, norm_h)
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        n = jnp.tanh(x_n + r * h_n)
        return Hidden((1 - z) * n + z * state.h)
