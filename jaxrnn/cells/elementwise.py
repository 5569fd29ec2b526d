"""What a cell is whose units see only themselves: `LinearCell`, `DiagonalCell`, their parameters. No concrete cell and no loop."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn.cells import conform
from jaxrnn.cells.base import Cell, cast, contract, draw, is_real, promote, refuse_initializers, split_gates


class InputParams(NamedTuple):
    """`GateParams` of a cell without weights on its state."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: None
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: None


class DiagonalParams(NamedTuple):
    """`GateParams` of units that see only themselves: `w_hh` has no axis to read from, and there is no second bias."""

    w_ih: Float[Array, "input gates hidden"]
    w_hh: Float[Array, "gates hidden"]
    b_ih: Float[Array, "gates hidden"] | None
    b_hh: None


def project_each(params: Any, x: Any) -> tuple:
    """What the input contributes to each gate, as arrays of their own: XLA:CPU compiles the split of an array that a loop reads to
    scalar code."""
    biases = (None,) * params.w_ih.shape[-2] if params.b_ih is None else split_gates(params.b_ih)
    return tuple(contract(x, w, b) for w, b in zip(split_gates(params.w_ih), biases, strict=True))


def matrix(parts: tuple) -> tuple:
    """The coefficient `a` of units as A: of one real number, or of a complex one, given as (real, imaginary)."""
    if len(parts) == 1:
        return (parts,)
    re, im = parts
    return (re, -im), (im, re)


def apply(a, h) -> tuple:
    """A h, unit by unit: `a` holds k × k arrays in nested tuples, `h` k arrays."""
    return tuple(sum((w * part for w, part in zip(row[1:], h[1:], strict=True)), row[0] * h[0]) for row in a)


def add(b, c) -> tuple:
    """b + c, part by part."""
    return tuple(x + y for x, y in zip(b, c, strict=True))


@dataclass(frozen=True)
class LinearCell(Cell):
    """A cell whose state moves on by coefficients that its input alone decides, so that time can be computed in parallel.

        a, b = coefficients(params, project(params, x))        elementwise: this is the cell
        h′   = a ⊙ h + b

    There is no product with the state: recurrent dropout, weight dropout and initialisers of `w_hh` have nothing to act on, and
    are refused. Coefficients and states are float32 at least, whatever is computed in: 1 − 2⁻¹⁰ is 1 in bfloat16.

    Args:
        w_ih_init, b_ih_init: initialisers, see `Cell`.
        w_hh_init, b_hh_init: to be left out: there is no product with the state.
    """

    recurrent_product: ClassVar = False

    def __post_init__(self):
        super().__post_init__()
        if len(self.State._fields) > 1 and type(self).recur is LinearCell.recur:
            name, fields = type(self).__name__, ", ".join(self.State._fields)
            raise TypeError(f"{name}: `State` should have one field, `h`, which `coefficients` act on, got {fields}.")
        refuse_initializers(self, "there is no product with the state", "w_hh_init", "b_hh_init")

    def init(self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32) -> Any:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_ih, k_b = jax.random.split(key)
        return InputParams(
            w_ih=draw(self.w_ih_init, k_ih, self.gates, (input_size, hidden_size), dtype),
            w_hh=None,
            b_ih=draw(self.b_ih_init, k_b, self.gates, (hidden_size,), dtype) if bias else None,
            b_hh=None,
        )

    def project(self, params: Any, x: Any) -> Any:
        """One array for each gate, for any number of leading axes."""
        return project_each(params, x)

    def coefficients(self, params: Any, x_gates: Any, *extra: Any, **further: Any) -> Any:
        """a and b, for any number of leading axes, time the first of them in `unroll`, so that a key per step is then one of many;
        each an array, or a pair (real, imaginary). `a` may be the same at every step: then it has no leading axes.

        Args:
            params: float32 at least.
            x_gates: what `project` gives: a tuple, with an array (…, hidden) for each gate.
            further: what `per_step` and `context` name, if they name anything.
        """
        raise NotImplementedError(f"{type(self).__name__} should define `coefficients`")

    def parts(self, h: Any) -> tuple:
        """`h` as what `a` and `b` act on: itself; or, of complex units, the real and the imaginary parts."""
        return (h,)

    def joined(self, parts: tuple) -> Any:
        """The inverse of `parts`."""
        return parts[0]

    def affine(self, params: Any, x_gates: Any, **further: Any) -> tuple[tuple, tuple]:
        """The coefficients as k × k arrays A and k arrays b."""
        with conform.equations_of(self, "coefficients"):
            a, b = self.coefficients(self.computed_with(params, jnp.float32), x_gates, **further)
        a, b = (tuple(c) if isinstance(c, tuple | list) else (c,) for c in (a, b))
        name, rank = type(self).__name__, jnp.ndim(x_gates[0])
        if len(a) != len(b) or len(a) > 2:
            raise ValueError(
                f"{name}: `coefficients` should give two arrays, or two pairs of them, got {len(a)} and {len(b)} parts."
            )
        if any(jnp.ndim(part) != rank for part in b):
            shapes = ", ".join(str(jnp.shape(part)) for part in b)
            rule = f"have the axes of `x_gates`, {jnp.shape(x_gates[0])}"
            raise ValueError(f"{name}: `b` of `coefficients` should {rule}, got shape {shapes}.")
        wide = promote(jnp.float32, *(part.dtype for part in b), *(jnp.complex64 for part in a if jnp.iscomplexobj(part)))
        a, b = (tuple(jnp.asarray(part, wide) for part in parts) for parts in (a, b))
        shape = jnp.broadcast_shapes(*(part.shape for part in (*a, *b)))
        b = tuple(part if part.shape == shape else jnp.broadcast_to(part, shape) for part in b)
        return matrix(a), b

    def fitting(self, a: tuple, b: tuple, h: tuple) -> tuple:
        """A and b of `affine` as they act on the parts `h` of a state: in its dtype, b in its shape, which should hold them."""
        name = type(self).__name__
        if len(b) != len(h):
            raise ValueError(f"{name}: `coefficients` should give {len(h)} parts, as `parts` makes of the state, got {len(b)}.")
        for part, like in zip(b, h, strict=True):
            if promote(part.dtype, like.dtype) != like.dtype:
                raise TypeError(f"{name}: `coefficients` should be {like.dtype}, as the state is, got {part.dtype}.")
            axes = part.shape[part.ndim - like.ndim :]
            if any(n not in (1, wanted) for n, wanted in zip(axes, like.shape, strict=True)):
                raise ValueError(f"{name}: `coefficients` should broadcast with the state, of shape {like.shape}, got {axes}.")
        beside = lambda part, like: (*part.shape[: part.ndim - like.ndim], *like.shape)
        b = tuple(jnp.broadcast_to(p, beside(p, like)).astype(like.dtype) for p, like in zip(b, h, strict=True))
        return jax.tree.map(lambda leaf: leaf.astype(h[0].dtype), a), b

    def computed_with(self, params: Any, dtype: Any) -> Any:
        return cast(params, promote(dtype, jnp.float32, *(a.dtype for a in jax.tree.leaves(params) if is_real(a))))

    def recur(self, params, state, x_gates, h, **further):
        h = self.parts(h)
        a, b = self.fitting(*self.affine(params, x_gates, **further), h)
        return type(state)(self.joined(add(apply(a, h), b)))


@dataclass(frozen=True)
class DiagonalCell(Cell):
    """A nonlinear cell whose units see only themselves: `w_hh` has one weight for each gate of a unit.

    `recur` is elementwise along the last axis: in the states, in x, in parameters. Then the derivative of a whole sequence is one
    linear recurrence, and time can be solved for in parallel. A `recur` that takes from other units (a norm, a mean over them) is
    refused: such a cell is a `Cell`. One sequence alone may come without the axes of its batch.

    Args:
        w_ih_init, w_hh_init, b_ih_init: initialisers, see `Cell`.
        b_hh_init: to be left out: there is no second bias.
    """

    axes: ClassVar = Cell.axes | {"w_hh": ("gates", "hidden")}

    def __post_init__(self):
        super().__post_init__()
        refuse_initializers(self, "there is no second bias", "b_hh_init")

    def init(self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32) -> Any:
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_ih, k_hh, k_b = jax.random.split(key, 3)
        return DiagonalParams(
            w_ih=draw(self.w_ih_init, k_ih, self.gates, (input_size, hidden_size), dtype),
            w_hh=draw(self.w_hh_init, k_hh, self.gates, (hidden_size,), dtype),
            b_ih=draw(self.b_ih_init, k_b, self.gates, (hidden_size,), dtype) if bias else None,
            b_hh=None,
        )
