"""Linear recurrent units: complex (LRU), and real with gates (RG-LRU)."""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import sigmoid, softplus
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells.base import (
    Hidden,
    Initializer,
    PerGate,
    apply_product,
    broadcast_like,
    checks,
    contract,
    draw,
    lay_beside,
    promote,
    refuse_initializers,
    split_gates,
    uniform,
    zeros_beside,
)
from jaxrnn.cells.elementwise import LinearCell


@dataclass(frozen=True)
class _HalfNormal:
    """Normal with standard deviation 1/√(2 input): half of the variance for each of two parts."""

    def __call__(self, key, shape, dtype=jnp.float32):
        return jax.random.normal(key, shape, dtype) * (2 * shape[0]) ** -0.5


class LRUParams(NamedTuple):
    """The weights of an LRU: B as its real and imaginary parts; no biases; logarithms of ν, θ, γ."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: None
    b_ih: None
    b_hh: None
    nu_log: Float[Array, "hidden"]
    theta_log: Float[Array, "hidden"]
    gamma_log: Float[Array, "hidden"]


class RGLRUParams(NamedTuple):
    """The weights of an RG-LRU: those of its gates, Λ, and the linear layer before it, if there is one."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: None
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: None
    decay: Float[Array, "hidden"]
    w_x: Float[Array, "input hidden"] | None


@dataclass(frozen=True)
class LRUCell(LinearCell):
    """Linear recurrent unit (Orvieto et al., 2023, arXiv:2303.06349, equation 4 and appendix A).

        λ  = exp(−e^{nu_log} + i e^{theta_log})      |λ| < 1
        hₜ = λ ⊙ hₜ₋₁ + e^{gamma_log} ⊙ (B xₜ)        complex

    The state and output hold two numbers for each of the hidden_size complex units, real and imaginary part side by side.

    Variant: the state is the output; the paper's readout Re(C h) + D ⊙ x is a linear layer behind the cell. γ is √(1 − |λ|²) at
    first, then a parameter of its own, as in the paper. |λ| is drawn between r_min and r_max, uniform on the ring; its angle
    uniform from 0 to `phase`; B normal with variance 1/(2 input) for each part. No biases.

    Args:
        r_min, r_max: bounds of |λ| at first, 0 ≤ r_min < r_max ≤ 1. Long sequences want it near 1: 0.9 and 0.999.
        phase: largest angle of λ at first, in radians; for long sequences small, π/10 in the paper.
        w_ih_init: an initialiser, see `Cell`.
        w_hh_init, b_ih_init, b_hh_init: to be left out: there is no product with the state, and no bias.
    """

    r_min: float = 0.0
    r_max: float = 1.0
    phase: float = 6.28
    w_ih_init: Initializer | PerGate = field(default=_HalfNormal(), kw_only=True)

    gates: ClassVar = ("re", "im")
    axes: ClassVar = LinearCell.axes | dict.fromkeys(("nu_log", "theta_log", "gamma_log"), ("hidden",))

    def __post_init__(self):
        super().__post_init__()
        refuse_initializers(self, "there are no biases", "b_ih_init")
        for argument in ("r_min", "r_max"):
            checks.number("LRUCell", argument, getattr(self, argument))
        checks.positive("LRUCell", "phase", self.phase)
        if not 0 <= self.r_min < self.r_max <= 1:
            raise ValueError(f"LRUCell: `r_min` and `r_max` should satisfy 0 ≤ r_min < r_max ≤ 1, got {self.r_min}, {self.r_max}.")

    def output_size(self, hidden_size):
        return 2 * hidden_size

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> LRUParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_b, k_r, k_θ = jax.random.split(key, 3)
        draw_uniform = lambda key: jax.random.uniform(key, (hidden_size,), minval=jnp.finfo(jnp.float32).tiny)
        square = draw_uniform(k_r) * (self.r_max**2 - self.r_min**2) + self.r_min**2  # |λ|²
        square = jnp.clip(square, 1e-12, 1 - 1e-7)
        return LRUParams(
            w_ih=draw(self.w_ih_init, k_b, self.gates, (input_size, hidden_size), dtype),
            w_hh=None,
            b_ih=None,
            b_hh=None,
            nu_log=jnp.log(-0.5 * jnp.log(square)).astype(dtype),
            theta_log=jnp.log(self.phase * draw_uniform(k_θ)).astype(dtype),
            gamma_log=(0.5 * jnp.log1p(-square)).astype(dtype),
        )

    def initial_state(self, params, x):
        zeros = zeros_beside(x, params.w_ih)
        return Hidden(self.joined((zeros, zeros)))

    def parts(self, h):
        pairs = h.reshape(*h.shape[:-1], h.shape[-1] // 2, 2)
        return pairs[..., 0], pairs[..., 1]

    def joined(self, parts):
        pairs = jnp.stack(parts, axis=-1)
        return pairs.reshape(*pairs.shape[:-2], 2 * pairs.shape[-2])

    def coefficients(self, params, x_gates):
        x_re, x_im = x_gates
        size, angle = jnp.exp(-jnp.exp(params.nu_log)), jnp.exp(params.theta_log)
        γ = broadcast_like(jnp.exp(params.gamma_log), x_re)
        return (size * jnp.cos(angle), size * jnp.sin(angle)), (γ * x_re, γ * x_im)


@dataclass(frozen=True)
class _DecayLogit:
    """Λ for which σ(Λ)⁸, the least share that a step keeps, is uniform in [0.9, 0.999]."""

    def __call__(self, key, shape, dtype=jnp.float32):
        kept = jax.random.uniform(key, shape, dtype, 0.9, 0.999) ** (1 / 8)
        return jnp.log(kept) - jnp.log1p(-kept)


@dataclass(frozen=True)
class RGLRUCell(LinearCell):
    """Real-gated linear recurrent unit (De et al., 2024, Griffin, arXiv:2402.19427, section 2.4).

        uₜ = W_x xₜ                                 where input_size ≠ hidden_size, else xₜ
        rₜ = σ(W_ir uₜ + b_ir)                      recurrence gate
        iₜ = σ(W_ii uₜ + b_ii)                      input gate
        aₜ = σ(Λ)^{8 rₜ} = exp(−8 rₜ softplus(−Λ))
        hₜ = aₜ ⊙ hₜ₋₁ + √(1 − aₜ²) ⊙ (iₜ ⊙ uₜ)

    Variant: the paper's, with σ(Λ)⁸ drawn uniform in [0.9, 0.999]. (Its appendix A prints softplus(Λ), a slip.) There the input
    is never projected, a linear layer standing before; here that is part of the cell where the sizes ask for it. The authors' code
    stores −Λ as `a_param`, and multiplies the input of a sequence's first step by 1 instead of √(1 − a²), which is not done here.

    Args:
        blocks: the gates' weights are that many blocks on a diagonal: `w_ih` (hidden / blocks, 2, hidden) has the rows within the
            block that a unit belongs to.
        w_ih_init, b_ih_init: initialisers, see `Cell`.
        w_hh_init, b_hh_init: to be left out: there is no product with the state.
    """

    blocks: int = 1

    gates: ClassVar = ("r", "i")
    axes: ClassVar = LinearCell.axes | {"w_ih": (None, "gates", "hidden"), "decay": ("hidden",), "w_x": ("input", "hidden")}

    def __post_init__(self):
        super().__post_init__()
        checks.size("RGLRUCell", "blocks", self.blocks)

    def input_size(self, params):
        w_x = getattr(params, "w_x", None)  # which parameters of another cell have not
        return self.blocks * params.w_ih.shape[-3] if w_x is None else w_x.shape[0]

    def init(
        self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32
    ) -> RGLRUParams:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        if hidden_size % self.blocks:
            raise ValueError(f"RGLRUCell: `hidden_size` should be a multiple of blocks={self.blocks}, got {hidden_size}.")
        k_gates, k_decay, k_x = jax.random.split(key, 3)
        params = super().init(k_gates, hidden_size // self.blocks, hidden_size, bias=bias, dtype=dtype)
        (decay,) = draw(_DecayLogit(), k_decay, ("a",), (hidden_size,), dtype)
        w_x = None if input_size == hidden_size else draw(uniform, k_x, ("x",), (input_size, hidden_size), dtype)[:, 0]
        return RGLRUParams(*params, decay=decay, w_x=w_x)

    def project(self, params, x):
        """The gates, and the input that they are for."""
        u = x if params.w_x is None else contract(x, params.w_x)
        if self.blocks == 1:
            gates = super().project(params, u)
            return (*gates, lay_beside(u, gates[0], u.ndim))
        gates = split_gates(apply_product(self._block_by_block, u, params.w_ih))
        if params.b_ih is not None:
            gates = tuple(gate + broadcast_like(b, gate) for gate, b in zip(gates, params.b_ih, strict=True))
        return (*gates, lay_beside(u, gates[0], u.ndim))

    def _block_by_block(self, u, w):
        """The product with the whole matrix of which `w` has the blocks."""
        rows = u.reshape(*u.shape[:-1], self.blocks, u.shape[-1] // self.blocks).astype(w.dtype)
        blocks = w.reshape(*w.shape[:2], self.blocks, -1)
        product = jnp.einsum("...nj,jgnh->...gnh", rows, blocks, preferred_element_type=promote(w.dtype, jnp.float32))
        return product.reshape(*product.shape[:-2], w.shape[-1])

    def coefficients(self, params, x_gates):
        x_r, x_i, u = x_gates
        log_a = broadcast_like(-8 * softplus(-params.decay), x_r) * sigmoid(x_r)
        kept = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), 1e-12))  # √(1 − a²), exact near a = 1, its derivative finite
        return jnp.exp(log_a), kept * sigmoid(x_i) * u.astype(x_i.dtype)
