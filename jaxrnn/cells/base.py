"""What a cell is: `Cell` and `GatedCell`, their parameters and states. No concrete cell and no loop over time."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.checks import check_choice, check_proj_size
from jaxrnn.checks import size as check_size
from jaxrnn.checks import state as check_state
from jaxrnn.initializers import Initializer, PerGate, draw, promote, uniform

__all__ = [
    "Cell", "GateParams", "GatedCell", "Hidden", "LSTMState", "broadcast_like", "check_choice", "check_proj_size", "contract",
    "draw", "promote", "split_gates", "uniform",
]  # fmt: skip


class Hidden(NamedTuple):
    """The state of a cell that remembers its output only."""

    h: Float[Array, "*batch hidden"]


class LSTMState(NamedTuple):
    """The output `h` and the cell state `c`."""

    h: Float[Array, "*batch output"]
    c: Float[Array, "*batch hidden"]


class GateParams(NamedTuple):
    """The weights of one gated cell, in row-vector form `x @ w`, gates on an axis of their own."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "output gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: Float[Array, "gates hidden"] | None


def contract(x, w, b=None):
    """`x @ w + b` for weights (input, gates, hidden): computed in the dtype of `w`, accumulated at least in float32."""
    wide = promote(w.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    x = whole_last_axis(x.astype(w.dtype))
    product = lax.dot_general(x, w, axes, preferred_element_type=wide)
    return product if b is None else product + broadcast_like(b, product)


def broadcast_like(a, like):
    """`a` with new axes in front, in the shape, dtype and, on an explicit mesh, sharding of `like`."""
    sharding = jax.typeof(like).sharding
    sharded = any(axis is not None for axis in sharding.spec)
    axes = tuple(range(like.ndim - a.ndim, like.ndim))
    return lax.broadcast_in_dim(a.astype(like.dtype), like.shape, axes, out_sharding=sharding if sharded else None)


def whole_last_axis(x):
    """`x` with its last axis on every device of an explicit mesh: a product over a hidden axis that is sharded reads all of it."""
    sharding = jax.typeof(x).sharding
    if not sharding.spec or sharding.spec[-1] is None:
        return x
    return jax.reshard(x, sharding.update(spec=jax.P(*sharding.spec[:-1], None)))


def split_gates(x_gates) -> tuple:
    """One array per gate, from an array with the gates on its last axis but one."""
    return tuple(lax.index_in_dim(x_gates, k, axis=-2, keepdims=False) for k in range(x_gates.shape[-2]))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One time step, as a description: frozen, hashable, holding no arrays.

    A cell names its `gates` and its `State`, draws its parameters (`init`), projects its input (`project`: no recurrence in
    it, so the engine runs it over many steps at once) and says how the state moves on (`recur`).

    Args:
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers with the signature of `jax.nn.initializers`, called once per
            gate with shape (in, hidden) or (hidden,); or a `PerGate`. Default: U(−1/√hidden, 1/√hidden), PyTorch's.
    """

    w_ih_init: Initializer | PerGate = uniform
    w_hh_init: Initializer | PerGate = uniform
    b_ih_init: Initializer | PerGate = uniform
    b_hh_init: Initializer | PerGate = uniform

    gates: ClassVar[tuple[str, ...]]
    State: ClassVar[Any] = Hidden
    event_ndim: ClassVar[int] = 1
    """How many of the last axes of `x` belong to one example at one step."""

    def output_size(self, hidden_size: int) -> int:
        """The width of the output `h`."""
        return hidden_size

    def init(self, key, input_size: int, hidden_size: int, *, bias: bool = True, dtype=jnp.float32):
        """Draw the parameters of one cell."""
        check_size(type(self).__name__, "input_size", input_size)
        check_size(type(self).__name__, "hidden_size", hidden_size)
        k_ih, k_hh, k_bih, k_bhh = jax.random.split(key, 4)
        shape = (self.output_size(hidden_size), hidden_size)
        return GateParams(
            w_ih=draw(self.w_ih_init, k_ih, self.gates, (input_size, hidden_size), dtype),
            w_hh=draw(self.w_hh_init, k_hh, self.gates, shape, dtype),
            b_ih=draw(self.b_ih_init, k_bih, self.gates, (hidden_size,), dtype) if bias else None,
            b_hh=draw(self.b_hh_init, k_bhh, self.gates, (hidden_size,), dtype) if bias else None,
        )

    def initial_state(self, params, x):
        """The state of zeros before `x` (*batch, input), made from the projected `x` so that it follows its sharding."""
        zeros = jnp.zeros_like(self.project(params, x)[..., 0, :])
        return self.State(*(zeros for _ in self.State._fields))

    def project(self, params, x):
        """What the input contributes to the gates, for any number of leading axes: (…, gates, hidden)."""
        return contract(x, params.w_ih, params.b_ih)

    def recur(self, params, state, x_gates, h):
        """The next state, from the state, the projected input, and `h`: what the recurrent products read."""
        raise NotImplementedError(f"{type(self).__name__} should define `recur` (or, if it is gated, `update`)")

    def step(self, params, state, x):
        """One full step, a pure function: (params, state, x) -> (state, y)."""
        checks.input_size(
            f"{type(self).__name__}.step", "x", x, params.w_ih.shape[-3], "the third axis from the end of `params.w_ih`"
        )
        check_state(f"{type(self).__name__}.step", "state", state, jax.eval_shape(self.initial_state, params, x))
        state = self.recur(params, state, self.project(params, x), state.h)
        return state, state.h.astype(promote(x.dtype, params.w_ih.dtype))


@dataclass(frozen=True)
class GatedCell(Cell):
    """A cell whose only matmul inside the loop is `w_hh`: it gives `update`, and gets the engine's derivative rule.

        x_gates = x @ w_ih + b_ih
        h_gates = h @ w_hh + b_hh
        state   = update(state, x_gates, h_gates)        elementwise: this is the cell

    Parameters beyond `GateParams` reach `update` as further positional arguments, in their order.
    """

    def update(self, state, x_gates, h_gates, *extra):
        """The elementwise equations; `x_gates` and `h_gates` hold one array per gate, in the order of `gates`."""
        raise NotImplementedError(f"{type(self).__name__} should define `update`")

    def recur(self, params, state, x_gates, h):
        h_gates = contract(h, params.w_hh, params.b_hh)
        return self.update(state, split_gates(x_gates), split_gates(h_gates), *params[4:])
