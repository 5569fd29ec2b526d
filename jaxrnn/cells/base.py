"""What a cell is: `Cell` and `GatedCell`, their parameters and states. No concrete cell and no loop over time."""

from dataclasses import dataclass
from functools import cache
from inspect import get_annotations
from typing import Any, ClassVar, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn.checks import cell_init as check_init
from jaxrnn.checks import check_choice, check_proj_size
from jaxrnn.checks import positive as check_positive
from jaxrnn.checks import size as check_size
from jaxrnn.checks import state as check_state
from jaxrnn.initializers import Initializer, PerGate, draw, given, promote, uniform

__all__ = [
    "Cell", "GateParams", "GatedCell", "Hidden", "LSTMState", "axis_names", "broadcast_like", "check_choice", "check_init",
    "check_positive", "check_proj_size", "check_size", "contract", "draw", "given", "product_sharding", "promote", "split_gates",
    "uniform", "zeros_like",
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


def axis_names(params):
    """The name of each axis of each array of a cell's `params`, or of its state, as it is annotated: a tuple for every array.

    None for axes before the named ones: those of space or batch.

    Example:
        >>> import jax
        >>> from jaxrnn import LSTMCell
        >>> from jaxrnn.cells import axis_names
        >>> axis_names(LSTMCell().init(jax.random.key(0), 3, 5)).w_hh
        ('output', 'gates', 'hidden')
    """
    names = _annotated(type(params))
    return type(params)(*(_align(n, value) for n, value in zip(names, params, strict=True)))


def _align(names: tuple, value):
    if value is None or isinstance(value, tuple):
        return None if value is None else axis_names(value)
    return (None,) * (value.ndim - len(names)) + names[max(0, len(names) - value.ndim) :]


@cache
def _annotated(kind: type) -> list[tuple[str | None, ...]]:
    """The names in the annotation of each field of a NamedTuple; no name for `*axes` and numbers."""
    texts = []
    for annotation in get_annotations(kind).values():
        options = (annotation, *get_args(annotation))
        texts.append(next((o.dim_str for o in options if hasattr(o, "dim_str")), ""))
    return [tuple(a if a.isidentifier() else None for a in text.split() if not a.startswith("*")) for text in texts]


def contract(x, w, b=None):
    """`x @ w + b` for weights (input, gates, hidden): computed in the dtype of `w`, accumulated at least in float32."""
    wide = promote(w.dtype, jnp.float32)
    axes = (((x.ndim - 1,), (0,)), ((), ()))
    x, sharding = x.astype(w.dtype), product_sharding(x, w)
    if sharding is not None:  # the two meet on one mesh, in both the same part of the axis they share
        specs = jax.typeof(x).sharding.spec, jax.typeof(w).sharding.spec
        w = jax.reshard(w, sharding.update(spec=specs[1]))
        x = jax.reshard(x, sharding.update(spec=jax.P(*specs[0][:-1], specs[1][0])))
    product = lax.dot_general(x, w, axes, preferred_element_type=wide, out_sharding=sharding)
    return product if b is None else product + broadcast_like(b, product)


def broadcast_like(a, like):
    """`a` with new axes in front, in the shape, dtype and, on an explicit mesh, sharding of `like`."""
    sharding = jax.typeof(like).sharding
    sharded = any(axis is not None for axis in sharding.spec)
    axes = tuple(range(like.ndim - a.ndim, like.ndim))
    return lax.broadcast_in_dim(a.astype(like.dtype), like.shape, axes, out_sharding=sharding if sharded else None)


def zeros_like(a):
    """Zeros, on the mesh of `a`, which jax from 0.12 on forgets where it is not entered."""
    zeros, sharding = jnp.zeros_like(a), jax.typeof(a).sharding
    return zeros if jax.typeof(zeros).sharding == sharding else jax.reshard(zeros, sharding)


def product_sharding(x, w, axis: int = 0):
    """How the product of `x` with that axis of `w` should lie on an explicit mesh: as `x` before, as `w` behind. Else None."""
    of_x, of_w = jax.typeof(x).sharding, jax.typeof(w).sharding
    if not any(name is not None for name in (*of_x.spec, *of_w.spec)):
        return None
    meshed = of_w if of_x.mesh.empty else of_x
    return meshed.update(spec=jax.P(*of_x.spec[:-1], *of_w.spec[axis + 1 :]))


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

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Cell.__repr__  # `dataclass` writes none where there is one

    def __post_init__(self):
        checks.gates(self)
        for argument in ("w_ih_init", "w_hh_init", "b_ih_init", "b_hh_init"):
            checks.initializer(type(self).__name__, argument, getattr(self, argument), PerGate)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(given(self))})"

    def output_size(self, hidden_size: int) -> int:
        """The width of the output `h`."""
        return hidden_size

    def init(self, key, input_size: int, hidden_size: int, *, bias: bool = True, dtype=jnp.float32):
        """Draw the parameters of one cell.

        Args:
            key: from `jax.random.key`.
            input_size, hidden_size: the widths of `x` and of the state.
            bias: whether there are biases; without, `b_ih` and `b_hh` are None.
            dtype: to store the parameters in.

        Returns:
            A NamedTuple whose first fields are those of `GateParams`.

        Example:
            >>> import jax
            >>> from jaxrnn import GRUCell
            >>> jax.tree.map(jax.numpy.shape, GRUCell().init(jax.random.key(0), input_size=2, hidden_size=4))
            GateParams(w_ih=(2, 3, 4), w_hh=(4, 3, 4), b_ih=(3, 4), b_hh=(3, 4))
        """
        check_init(type(self).__name__, key, input_size, hidden_size, bias, dtype)
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
        zeros = zeros_like(self.project(params, x)[..., 0, :])
        return self.State(*(zeros for _ in self.State._fields))

    def project(self, params, x):
        """What the input contributes to the gates, for any number of leading axes: (…, gates, hidden)."""
        return contract(x, params.w_ih, params.b_ih)

    def recur(self, params, state, x_gates, h):
        """The next state, from the state, the projected input, and `h`: what the recurrent products read."""
        raise NotImplementedError(f"{type(self).__name__} should define `recur` (or, if it is gated, `update`)")

    def step(self, params, state, x):
        """One full step, a pure function: (params, state, x) -> (state, y).

        Args:
            params: from `init`.
            state: from `initial_state` or an earlier step.
            x: the input at one step, (*batch, input).

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from jaxrnn import GRUCell
            >>> cell = GRUCell()
            >>> params, x = cell.init(jax.random.key(0), 3, 5), jnp.ones((2, 3))
            >>> state, y = cell.step(params, cell.initial_state(params, x), x)
            >>> y.shape, bool((y == state.h).all())
            ((2, 5), True)
        """
        checks.cell_step(self, Cell, params, x)
        check_state(f"{type(self).__name__}.step", "state", state, jax.eval_shape(self.initial_state, params, x))
        state = self.recur(params, state, self.project(params, x), state.h)
        return state, state.h.astype(promote(x.dtype, params.w_ih.dtype))


@dataclass(frozen=True)
class GatedCell(Cell):
    """A cell whose only matmul inside the loop is `w_hh`: it gives `update`, and gets the engine's derivative rule.

        x_gates = x @ w_ih + b_ih
        h_gates = h @ w_hh + b_hh
        state   = update(state, x_gates, h_gates)        elementwise: this is the cell

    Parameters beyond `GateParams` reach `update` as further positional arguments, in their order. A value from outside that
    is being transformed is refused with a TypeError: the rule would take it for a constant.
    """

    def update(self, state, x_gates, h_gates, *extra):
        """The elementwise equations; `x_gates` and `h_gates` hold one array per gate, in the order of `gates`."""
        raise NotImplementedError(f"{type(self).__name__} should define `update`")

    def recur(self, params, state, x_gates, h):
        h_gates = contract(h, params.w_hh, params.b_hh)
        return self.update(state, split_gates(x_gates), split_gates(h_gates), *params[4:])
