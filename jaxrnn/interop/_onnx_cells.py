"""Cells for what ONNX's `RNN`, `LSTM` and `GRU` allow and the public cells do not have: other activations, `clip`, and
combinations. Gate orders and weights of ONNX are not known here."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jaxrnn.cells.base import Cell, GatedCell, Hidden, LSTMState, contract, draw, split_gates, uniform
from jaxrnn.cells.lstm_variants import PeepholeParams

GIVEN = float("nan")
"""The default of a value that has none on which the definition and runtimes agree: it has to be given."""

FORMULAS = {
    "Relu": (lambda x, α, β: jax.nn.relu(x), None, None),
    "Tanh": (lambda x, α, β: jnp.tanh(x), None, None),
    "Sigmoid": (lambda x, α, β: jax.nn.sigmoid(x), None, None),
    "Affine": (lambda x, α, β: α * x + β, GIVEN, GIVEN),
    "LeakyRelu": (lambda x, α, β: jnp.where(x >= 0, x, α * x), 0.01, None),
    "ThresholdedRelu": (lambda x, α, β: jnp.where(x >= α, x, jnp.zeros_like(x)), GIVEN, None),
    "ScaledTanh": (lambda x, α, β: α * jnp.tanh(β * x), GIVEN, GIVEN),
    "HardSigmoid": (lambda x, α, β: jnp.clip(α * x + β, 0, 1), 0.2, 0.5),
    "Elu": (lambda x, α, β: jnp.where(x >= 0, x, α * jnp.expm1(jnp.minimum(x, 0))), 1.0, None),
    "Softsign": (lambda x, α, β: x / (1 + jnp.abs(x)), None, None),
    "Softplus": (lambda x, α, β: jax.nn.softplus(x), None, None),
}
"""For each name: the function, and the defaults of alpha and beta, None where it has none."""


@dataclass(frozen=True)
class Activation:
    """An activation of ONNX, by its name, with its parameters."""

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __call__(self, x):
        return FORMULAS[self.name][0](x, self.alpha, self.beta)


SIGMOID, TANH, RELU = Activation("Sigmoid"), Activation("Tanh"), Activation("Relu")


def clipped(x, clip: float | None):
    """`x`, no further from zero than `clip`."""
    return x if clip is None else jnp.clip(x, -clip, clip)


@dataclass(frozen=True)
class OnnxRNNCell(GatedCell):
    """ONNX's `RNN`: hₜ = f(W_ih xₜ + b_ih + W_hh hₜ₋₁ + b_hh), with the argument of f clipped.

    Args:
        activations: (f,). clip: bound of the arguments of activations; None: unbounded.
    """

    activations: tuple[Activation, ...] = (TANH,)
    clip: float | None = None

    gates: ClassVar = ("h",)

    def update(self, state, x_gates, h_gates):
        (f,), (x_h,), (h_h,) = self.activations, x_gates, h_gates
        return Hidden(f(clipped(x_h + h_h, self.clip)))


@dataclass(frozen=True)
class OnnxLSTMCell(GatedCell):
    """ONNX's `LSTM`: `PeepholeLSTMCell` or `LSTMCell` with f, g, h in the place of σ, tanh, tanh.

    The arguments of f and g are clipped; that of h is not, as in onnxruntime.

    Args:
        activations: (f, g, h). clip: bound of the arguments of f and g; None: unbounded.
        coupled: the forget gate is 1 − iₜ, and its weights are not read. peepholes: whether there are any.
    """

    activations: tuple[Activation, ...] = (SIGMOID, TANH, TANH)
    clip: float | None = None
    coupled: bool = False
    peepholes: bool = False

    axes: ClassVar = GatedCell.axes | {"p": (None, "hidden")}
    gates: ClassVar = ("i", "f", "g", "o")
    State: ClassVar = LSTMState

    def init(self, key, input_size, hidden_size, *, bias=True, dtype=jnp.float32):
        k_gates, k_p = jax.random.split(key)
        params = super().init(k_gates, input_size, hidden_size, bias=bias, dtype=dtype)
        p = draw(uniform, k_p, ("i", "f", "o"), (hidden_size,), dtype)
        return PeepholeParams(*params, p=p) if self.peepholes else params

    def update(self, state, x_gates, h_gates, p=None):
        φ_gate, φ_in, φ_out = self.activations
        a_i, a_f, a_g, a_o = (x + h for x, h in zip(x_gates, h_gates, strict=True))
        p_i, p_f, p_o = [None] * 3 if p is None else [jnp.broadcast_to(q.astype(state.c.dtype), state.c.shape) for q in p]

        def gate(a, peephole, c):
            return φ_gate(clipped(a if peephole is None else a + peephole * c, self.clip))

        i = gate(a_i, p_i, state.c)
        f = 1 - i if self.coupled else gate(a_f, p_f, state.c)
        c = f * state.c + i * φ_in(clipped(a_g, self.clip))
        return LSTMState(gate(a_o, p_o, c) * φ_out(c), c)


@dataclass(frozen=True)
class OnnxGRUCell(Cell):
    """ONNX's `GRU`: z keeps the old state; f and g stand in the place of σ and tanh, with clipped arguments.

    Args:
        activations: (f, g). clip: bound of the arguments of activations; None: unbounded.
        reset_after: `linear_before_reset`, whether the reset gate acts after the hidden projection, as in `GRUCell`.
    """

    activations: tuple[Activation, ...] = (SIGMOID, TANH)
    clip: float | None = None
    reset_after: bool = False

    gates: ClassVar = ("r", "z", "n")

    def recur(self, params, state, x_gates, h):
        φ_gate, φ_in = self.activations
        x_r, x_z, x_n = split_gates(x_gates)
        b_rz, b_n = (None, None) if params.b_hh is None else (params.b_hh[:2], params.b_hh[2:])
        h_r, h_z = split_gates(contract(h, params.w_hh[:, :2], b_rz))
        r = φ_gate(clipped(x_r + h_r, self.clip))
        z = φ_gate(clipped(x_z + h_z, self.clip))
        (h_n,) = split_gates(contract(h if self.reset_after else r * h, params.w_hh[:, 2:], b_n))
        n = φ_in(clipped(x_n + (r * h_n if self.reset_after else h_n), self.clip))
        return Hidden((1 - z) * n + z * state.h)
