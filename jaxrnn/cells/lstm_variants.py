"""Relatives of the LSTM: peephole, coupled gates, projected."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells.base import (
    Cell,
    GatedCell,
    LSTMState,
    broadcast_like,
    checks,
    contract,
    draw,
    split_gates,
    uniform,
    zeros_beside,
)


class PeepholeParams(NamedTuple):
    """`GateParams` and the peephole weights of the gates i, f, o."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "output gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: Float[Array, "gates hidden"] | None
    p: Float[Array, "3 hidden"]


class ProjectedParams(NamedTuple):
    """`GateParams`, with an output narrower than the cell state, and the projection onto it."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "output gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: Float[Array, "gates hidden"] | None
    w_hr: Float[Array, "hidden output"]


@dataclass(frozen=True)
class PeepholeLSTMCell(GatedCell):
    """LSTM with peepholes (Gers & Schmidhuber, 2000; Gers, Schraudolph, Schmidhuber, 2002, section 3).

        iₜ = σ(W_ii xₜ + b_ii + W_hi hₜ₋₁ + b_hi + p_i ⊙ cₜ₋₁)    input gate
        fₜ = σ(W_if xₜ + b_if + W_hf hₜ₋₁ + b_hf + p_f ⊙ cₜ₋₁)    forget gate
        gₜ = tanh(W_ig xₜ + b_ig + W_hg hₜ₋₁ + b_hg)              candidate
        cₜ = fₜ ⊙ cₜ₋₁ + iₜ ⊙ gₜ
        oₜ = σ(W_io xₜ + b_io + W_ho hₜ₋₁ + b_ho + p_o ⊙ cₜ)      output gate, which sees the new cell state
        hₜ = oₜ ⊙ tanh(cₜ)

    Variant: diagonal peepholes, as in ONNX's `LSTM` with input `P` (which stores them in the order i, o, f; here i, f, o).

    Args:
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState
    axes: ClassVar = GatedCell.axes | {"p": (None, "hidden")}

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> PeepholeParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_gates, k_p = jax.random.split(key)
        params = super().init(k_gates, input_size, hidden_size, bias=bias, dtype=dtype)
        return PeepholeParams(*params, p=draw(uniform, k_p, ("i", "f", "o"), (hidden_size,), dtype))

    def update(self, state, x_gates, h_gates, p):
        (x_i, x_f, x_g, x_o), (h_i, h_f, h_g, h_o) = x_gates, h_gates
        p_i, p_f, p_o = (broadcast_like(row, state.c) for row in p)
        i = sigmoid(x_i + h_i + p_i * state.c)
        f = sigmoid(x_f + h_f + p_f * state.c)
        g = jnp.tanh(x_g + h_g)
        c = f * state.c + i * g
        o = sigmoid(x_o + h_o + p_o * c)
        return LSTMState(o * jnp.tanh(c), c)


@dataclass(frozen=True)
class CoupledLSTMCell(GatedCell):
    """LSTM with coupled input and forget gates (Greff et al., 2015, arXiv:1503.04069, variant CIFG).

        iₜ = σ(W_ii xₜ + b_ii + W_hi hₜ₋₁ + b_hi)       input gate; the forget gate is 1 − iₜ
        gₜ = tanh(W_ig xₜ + b_ig + W_hg hₜ₋₁ + b_hg)    candidate
        oₜ = σ(W_io xₜ + b_io + W_ho hₜ₋₁ + b_ho)       output gate
        cₜ = (1 − iₜ) ⊙ cₜ₋₁ + iₜ ⊙ gₜ
        hₜ = oₜ ⊙ tanh(cₜ)

    Variant: without peepholes; ONNX's `LSTM` with `input_forget=1`.

    Args:
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    gates: ClassVar = ("i", "g", "o")
    State: ClassVar = LSTMState

    def update(self, state, x_gates, h_gates):
        (x_i, x_g, x_o), (h_i, h_g, h_o) = x_gates, h_gates
        i = sigmoid(x_i + h_i)
        g = jnp.tanh(x_g + h_g)
        o = sigmoid(x_o + h_o)
        c = (1 - i) * state.c + i * g
        return LSTMState(o * jnp.tanh(c), c)


def check_proj_size(name: str, proj_size, hidden_size: int):
    """The projection is narrower than the cell state."""
    checks.size(name, "proj_size", proj_size)
    if proj_size >= hidden_size:
        raise ValueError(f"{name}: `proj_size` should be below hidden_size={hidden_size}, got {proj_size}.")


@dataclass(frozen=True)
class ProjectedLSTMCell(Cell):
    """LSTM with a recurrent projection (Sak, Senior, Beaufays, 2014, arXiv:1402.1128, section 2).

        iₜ, fₜ, gₜ, oₜ, cₜ      as in `LSTMCell`, with hₜ₋₁ of `proj_size` entries
        hₜ = W_hr (oₜ ⊙ tanh(cₜ))

    Variant: no peepholes, no second projection: `torch.nn.LSTM(proj_size=…)`. The product after the gates stands inside the
    loop, so it is not a `GatedCell`.

    Args:
        proj_size: the width of `h`; positive and below the hidden size.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    proj_size: int = 1

    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState
    axes: ClassVar = Cell.axes | {"w_hr": ("hidden", "output"), "h": ("output",)}

    def output_size(self, hidden_size):
        return self.proj_size

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> ProjectedParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        check_proj_size("ProjectedLSTMCell", self.proj_size, hidden_size)
        k_gates, k_hr = jax.random.split(key)
        params = super().init(k_gates, input_size, hidden_size, bias=bias, dtype=dtype)
        bound = hidden_size**-0.5
        w_hr = jax.random.uniform(k_hr, (hidden_size, self.proj_size), minval=-bound, maxval=bound).astype(dtype)
        return ProjectedParams(*params, w_hr=w_hr)

    def initial_state(self, params, x):
        return LSTMState(h=zeros_beside(x, params.w_hr), c=zeros_beside(x, params.w_ih))

    def recur(self, params, state, x_gates, h):
        a_i, a_f, a_g, a_o = split_gates(x_gates + contract(h, params.w_hh, params.b_hh))
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
        c = f * state.c + i * jnp.tanh(a_g)
        wide = o * jnp.tanh(c)
        return LSTMState(contract(wide, params.w_hr), c)
