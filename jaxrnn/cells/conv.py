"""Convolutional LSTM and GRU."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.nn import sigmoid
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells.base import Cell, Hidden, LSTMState, apply_product, broadcast_like, checks, draw, promote, split_gates


class ConvParams(NamedTuple):
    """`GateParams` with a kernel over space in front: input and hidden are channels."""

    w_ih: Float[Array, "*kernel input gates hidden"]
    w_hh: Float[Array, "*kernel output gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: Float[Array, "gates hidden"] | None


@dataclass(frozen=True)
class _ConvCell(Cell):
    kernel_size: int = 3

    def __post_init__(self):
        super().__post_init__()
        checks.size(type(self).__name__, "kernel_size", self.kernel_size)

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> ConvParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        window = (self.kernel_size,) * (self.event_ndim - 1)
        points = self.kernel_size ** len(window)
        k_ih, k_hh, k_bih, k_bhh = jax.random.split(key, 4)

        def kernel(init, key, channels):
            w = draw(init, key, self.gates, (points * channels, hidden_size), dtype)
            return w.reshape(*window, channels, len(self.gates), hidden_size)

        return ConvParams(
            w_ih=kernel(self.w_ih_init, k_ih, input_size),
            w_hh=kernel(self.w_hh_init, k_hh, hidden_size),
            b_ih=draw(self.b_ih_init, k_bih, self.gates, (hidden_size,), dtype) if bias else None,
            b_hh=draw(self.b_hh_init, k_bhh, self.gates, (hidden_size,), dtype) if bias else None,
        )

    def convolve(self, x: Array, w: Array, b: Array | None) -> Array:
        """Convolve the last axes (*space, channels) of `x`, padded to keep the size: (…, *space, gates, hidden).

        Axes that may be sharded, batch and hidden, stand before time and gates when they become one: so they stay sharded.
        """
        *window, channels, gates, hidden = w.shape
        wide = promote(w.dtype, jnp.float32)
        letters = "DHW"[-len(window) :]
        leading = x.ndim - self.event_ndim

        def run(x, w):
            x = jnp.moveaxis(x, 0, max(leading - 1, 0))
            y = lax.conv_general_dilated(
                x.reshape(-1, *x.shape[leading:]).astype(wide),
                w.swapaxes(-2, -1).reshape(*window, channels, hidden * gates).astype(wide),
                window_strides=[1] * len(window),
                padding="SAME",
                dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
            ).reshape(*x.shape[:-1], hidden, gates)
            return jnp.moveaxis(y.swapaxes(-2, -1), max(leading - 1, 0), 0)

        y = apply_product(run, x, w)
        return y if b is None else y + broadcast_like(b, y)

    def project(self, params, x):
        return self.convolve(x, params.w_ih, params.b_ih)


@dataclass(frozen=True)
class _ConvLSTMCell(_ConvCell):
    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState

    def recur(self, params, state, x_gates, h):
        a_i, a_f, a_g, a_o = split_gates(x_gates + self.convolve(h, params.w_hh, params.b_hh))
        i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)
        c = f * state.c + i * jnp.tanh(a_g)
        return LSTMState(o * jnp.tanh(c), c)


@dataclass(frozen=True)
class _ConvGRUCell(_ConvCell):
    gates: ClassVar = ("r", "z", "n")

    def recur(self, params, state, x_gates, h):
        x_r, x_z, x_n = split_gates(x_gates)
        b_rz, b_n = (None, None) if params.b_hh is None else (params.b_hh[:2], params.b_hh[2:])
        h_r, h_z = split_gates(self.convolve(h, params.w_hh[..., :2, :], b_rz))
        r = sigmoid(x_r + h_r)
        z = sigmoid(x_z + h_z)
        (h_n,) = split_gates(self.convolve(r * h, params.w_hh[..., 2:, :], b_n))
        n = jnp.tanh(x_n + h_n)
        return Hidden((1 - z) * state.h + z * n)


@dataclass(frozen=True)
class ConvLSTM1DCell(_ConvLSTMCell):
    """Convolutional LSTM over one axis of space; see `ConvLSTM2DCell`. Inputs are (…, width, channels).

    Args:
        kernel_size: width of the window along the axis of space.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    event_ndim: ClassVar = 2


@dataclass(frozen=True)
class ConvLSTM2DCell(_ConvLSTMCell):
    """Convolutional LSTM (Shi et al., 2015, arXiv:1506.04214, equation 3, without peepholes).

        iₜ = σ(W_ii ∗ xₜ + b_ii + W_hi ∗ hₜ₋₁ + b_hi)       ∗ is a convolution
        fₜ = σ(W_if ∗ xₜ + b_if + W_hf ∗ hₜ₋₁ + b_hf)
        gₜ = tanh(W_ig ∗ xₜ + b_ig + W_hg ∗ hₜ₋₁ + b_hg)
        oₜ = σ(W_io ∗ xₜ + b_io + W_ho ∗ hₜ₋₁ + b_ho)
        cₜ = fₜ ⊙ cₜ₋₁ + iₜ ⊙ gₜ
        hₜ = oₜ ⊙ tanh(cₜ)

    Variant: stride 1, padded to keep the size, cross-correlation as in every framework. Inputs are (…, height, width, channels).

    Args:
        kernel_size: width of the window along each axis of space.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    event_ndim: ClassVar = 3


@dataclass(frozen=True)
class ConvGRU1DCell(_ConvGRUCell):
    """Convolutional GRU over one axis of space; see `ConvGRU2DCell`. Inputs are (…, width, channels).

    Args:
        kernel_size: width of the window along the axis of space.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    event_ndim: ClassVar = 2


@dataclass(frozen=True)
class ConvGRU2DCell(_ConvGRUCell):
    """Convolutional GRU (Ballas, Yao, Pal, Courville, 2016, arXiv:1511.06432, section 3.1).

        rₜ = σ(W_ir ∗ xₜ + b_ir + W_hr ∗ hₜ₋₁ + b_hr)              reset gate; ∗ is a convolution
        zₜ = σ(W_iz ∗ xₜ + b_iz + W_hz ∗ hₜ₋₁ + b_hz)              update gate
        nₜ = tanh(W_in ∗ xₜ + b_in + W_hn ∗ (rₜ ⊙ hₜ₋₁) + b_hn)    candidate
        hₜ = (1 − zₜ) ⊙ hₜ₋₁ + zₜ ⊙ nₜ

    Variant: the paper's: the reset gate acts before the convolution and z takes the candidate, as in `ChungGRUCell`. Stride 1,
    padded to keep the size. Inputs are (…, height, width, channels).

    Args:
        kernel_size: width of the window along each axis of space.
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    event_ndim: ClassVar = 3
