"""What a cell is: `Cell` and `GatedCell`, their parameters and states. No concrete cell and no loop over time."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxrnn import checks
from jaxrnn._arrays import (
    apply_product,
    broadcast_like,
    cast,
    computing_dtype,
    contract,
    is_real,
    lay_beside,
    promote,
    zeros_beside,
    zeros_like,
)
from jaxrnn.cells import conform
from jaxrnn.cells.axes import axis_names
from jaxrnn.initializers import Initializer, PerGate, check_initializer, chrono, draw, non_default_fields, uniform, zeros
from jaxrnn.synonyms import ClassSignature, check_constructor, checked
from jaxrnn.typing import ArrayLike

__all__ = [
    "Cell", "GateParams", "GatedCell", "Hidden", "Initializer", "LSTMState", "PerGate", "apply_product", "axis_names",
    "broadcast_like", "cast", "checks", "chrono", "contract", "draw", "is_real", "lay_beside", "promote", "refuse_initializers",
    "split_gates", "uniform", "zeros", "zeros_beside", "zeros_like",
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


def refuse_initializers(cell, reason: str, *arguments: str):
    """Raise if an initialiser was given for what the cell lacks, and say why."""
    for argument in arguments:
        value = getattr(cell, argument)
        if value is not uniform:
            raise ValueError(f"{type(cell).__name__}: `{argument}` should be left out, since {reason}, got {value!r}.")


def split_gates(x_gates) -> tuple:
    """One array per gate, from an array with the gates on its last axis but one. The transposition lays them side by side; that of
    slices would pad each, and add them: training a ParaGRU then takes 1.3 to 1.4 × the time on a CPU."""
    axis = x_gates.ndim - 2
    return tuple(lax.squeeze(gate, (axis,)) for gate in lax.split(x_gates, (1,) * x_gates.shape[axis], axis=axis))


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One time step, as a description: frozen, hashable, holding no arrays.

    A cell names its `gates` and its `State`, draws its parameters (`init`), projects its input (`project`: no recurrence in
    it, so the engine runs it over many steps at once) and says how the state moves on (`recur`).

    What a cell may rely on: every field of its state begins with the batch axes. The state starts, and a reset returns to, what
    `initial_state` gives, zeros or not. Fields that are not floating-point numbers (a counter, a key) are carried as they are:
    zoneout and gradients leave them alone. Parameters that are real are cast to the dtype that is computed in; others are not.

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
    per_step: ClassVar[tuple[str, ...]] = ()
    """Names of further inputs of each step that are not projected: keyword arguments of `recur` and `update`."""
    recurrent_product: ClassVar[bool] = True
    """Whether weights act on the state, which recurrent and weight dropout can act on."""
    free_fields: ClassVar[tuple[str, ...] | None] = None
    """The fields of the state that mean something by themselves, so that zoneout may keep their values and a start be learned for
    them; None: all that are floating-point numbers."""
    context: ClassVar[tuple[str, ...]] = ()
    """Names of what every step of a sequence reads (a memory to attend to): keyword arguments of `recur` and `update`."""
    axes: ClassVar[dict[str, Any]] = {
        "w_ih": ("input", "gates", "hidden"),
        "w_hh": ("output", "gates", "hidden"),
        "b_ih": ("gates", "hidden"),
        "b_hh": ("gates", "hidden"),
        "h": ("hidden",),
        "c": ("hidden",),
    }
    """The names of the last axes of each array in parameters and states, for rules that send names to axes of a mesh."""

    __signature__: ClassVar = ClassSignature()

    def __new__(cls, *args: Any, **kwargs: Any):
        check_constructor(cls, args, kwargs)
        return super().__new__(cls)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "__repr__" not in vars(cls):
            cls.__repr__ = Cell.__repr__  # `dataclass` writes none where there is one
        if "init" in vars(cls):
            cls.init = checked()(vars(cls)["init"])

    def __post_init__(self):
        name, gates = type(self).__name__, getattr(self, "gates", None)
        if not isinstance(gates, tuple):
            raise TypeError(f"{name} should define `gates`, a tuple of names, got {gates!r}.")
        if "h" not in getattr(self.State, "_fields", ()):
            raise TypeError(f"{name} should define `State`, a NamedTuple with a field `h`, got {self.State!r}.")
        for named in ("per_step", "context", "free_fields"):
            names, known = getattr(self, named), self.State._fields
            if not isinstance(names, tuple) and (names is not None or named != "free_fields"):
                raise TypeError(f"{name} should define `{named}` as a tuple of names, got {names!r}.")
            if named == "free_fields" and not set(names or ()) <= set(known):
                raise ValueError(f"{name} should define `free_fields` among those of its state, {', '.join(known)}, got {names!r}.")
        for argument in ("w_ih_init", "w_hh_init", "b_ih_init", "b_hh_init"):
            check_initializer(name, argument, getattr(self, argument))

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(non_default_fields(self))})"

    def input_size(self, params: Any) -> int:
        """The width of the input `x`."""
        return params.w_ih.shape[-3]

    def output_size(self, hidden_size: int) -> int:
        """The width of the output `h`."""
        return hidden_size

    @checked()
    def init(self, key: Array, input_size: int, hidden_size: int, *, bias: bool = True, dtype: DTypeLike = jnp.float32) -> Any:
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
        self.check_init(key, input_size, hidden_size, bias, dtype)
        k_ih, k_hh, k_bih, k_bhh = jax.random.split(key, 4)
        shape = (self.output_size(hidden_size), hidden_size)
        return GateParams(
            w_ih=draw(self.w_ih_init, k_ih, self.gates, (input_size, hidden_size), dtype),
            w_hh=draw(self.w_hh_init, k_hh, self.gates, shape, dtype),
            b_ih=draw(self.b_ih_init, k_bih, self.gates, (hidden_size,), dtype) if bias else None,
            b_hh=draw(self.b_hh_init, k_bhh, self.gates, (hidden_size,), dtype) if bias else None,
        )

    def check_init(self, key: Array, input_size: int, hidden_size: int, bias: bool, dtype: DTypeLike) -> None:
        """Raise if an argument of `init` is wrong."""
        name = type(self).__name__
        checks.prng_key(f"{name}.init", key)
        checks.size(name, "input_size", input_size)
        checks.size(name, "hidden_size", hidden_size)
        checks.flag(f"{name}.init", "bias", bias)
        checks.floating_dtype(f"{name}.init", "dtype", dtype)

    def check_made(self, params: Any) -> None:
        """Raise if the parameters that `init` made do not go with the cell's equations."""

    def initial_state(self, params: Any, x: Any) -> Any:
        """The state before `x` (*batch, input): zeros, in the shapes that sizes say, laid as `x` and the weights are.

        A cell may start otherwise: what it returns here is where its sequences start and what a reset returns to. Each field
        begins with the batch axes. It may depend on the parameters, but not on the values of `x`, which may be padding.
        """
        zeros = zeros_beside(x, params.w_ih)
        return self.State(*(zeros for _ in self.State._fields))

    def computed_with(self, params: Any, dtype: Any) -> Any:
        """The parameters that `recur` computes with, of those it is given, where products are in `dtype`."""
        return cast(params, dtype)

    def project(self, params: Any, x: Any) -> Any:
        """What the input contributes to the gates, for any number of leading axes: (…, gates, hidden)."""
        return contract(x, params.w_ih, params.b_ih)

    def recur(self, params: Any, state: Any, x_gates: Any, h: Any, *extra: Any, **further: Any) -> Any:
        """The next state.

        Args:
            params, state: of this step.
            x_gates: the projected input, (*batch, gates, hidden): gate k is `x_gates[..., k, :]`.
            h: to be used, not `state.h`, in matrix products: variational dropout may have masked it.
            further: what `per_step` and `context` name, if they name anything.
        """
        raise NotImplementedError(f"{type(self).__name__} should define `recur` (or, if it is gated, `update`)")

    def step(self, params: Any, state: Any, x: ArrayLike, **further: Any) -> tuple[Any, Array]:
        """One full step, a pure function: (params, state, x) -> (state, y).

        Args:
            params: from `init`.
            state: from `initial_state` or an earlier step.
            x: the input at one step, (*batch, input).
            further: what `per_step` and `context` name, of this step.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from jaxrnn import GRUCell
            >>> cell = GRUCell()
            >>> params, x = cell.init(jax.random.key(0), 3, 5), jnp.ones((2, 3))
            >>> state, y = cell.step(params, cell.initial_state(params, x), x)
            >>> y.shape, bool((y == state.h).all())
            ((2, 5), True)
        """
        name = f"{type(self).__name__}.step"
        conform.check_cell(name, self, Cell, params)
        conform.check_params(name, self, params)
        source = conform.source_of_input_size(self, params)
        checks.inputs(name, "x", x, self.event_ndim, (("*batch",),), self.input_size(params), source)
        dtype = computing_dtype(x, params.w_ih)
        arrays = cast(params, dtype)
        like = conform.state_like(self, arrays, x)
        if state is None:
            raise TypeError(f"{name}: `state` should be a {type(like).__name__}, got None.\nWrite cell.initial_state(params, x).")
        conform.check_state(name, "state", state, like)
        state = type(like)(*(s.astype(one.dtype) if is_real(one) else s for s, one in zip(state, like, strict=True)))
        wanted = (*self.per_step, *self.context)
        if set(further) != set(wanted):
            raise TypeError(f"{name}: further inputs should be {', '.join(wanted) or 'none'}, got {', '.join(further) or 'none'}.")
        x, further = cast((x, further), dtype)
        with conform.equations_of(self, "recur"):
            new = self.recur(self.computed_with(params, dtype), state, self.project(arrays, x), state.h, **further)
        conform.check_new_state(self, state, new)
        return new, new.h.astype(dtype) if is_real(new.h) else new.h


@dataclass(frozen=True)
class GatedCell(Cell):
    """A cell whose only matmul inside the loop is `w_hh`: it gives `update`, and gets the engine's derivative rule.

        x_gates = x @ w_ih + b_ih
        h_gates = h @ w_hh + b_hh
        state   = update(state, x_gates, h_gates)        this is the cell; elementwise in most

    Parameters beyond `GateParams` reach `update` as further positional arguments, in their order; what `per_step` and `context`
    name, as keyword arguments. A value from outside that is being transformed is refused with a TypeError: the rule would take
    it for a constant.

    Args:
        w_ih_init, w_hh_init, b_ih_init, b_hh_init: initialisers, see `Cell`.
    """

    def update(self, state: Any, x_gates: Any, h_gates: Any, *extra: Any, **further: Any) -> Any:
        """The cell's equations; `x_gates` and `h_gates` hold one array per gate, in the order of `gates`."""
        raise NotImplementedError(f"{type(self).__name__} should define `update`")

    def check_made(self, params):
        if type(self).recur is GatedCell.recur:
            conform.check_order(self, params._fields[4:])

    def recur(self, params, state, x_gates, h, **further):
        if params.w_hh.shape[-2] != len(self.gates):
            rule = f"hold all {len(self.gates)} `gates` ({', '.join(self.gates)}), got {params.w_hh.shape[-2]}"
            hint = "A gate that does not read `h` wants a `Cell` with a `recur` of its own."
            raise ValueError(f"{type(self).__name__}: `w_hh` should {rule}.\n{hint}")
        h_gates = contract(h, params.w_hh, params.b_hh)
        with conform.equations_of(self, "update"):
            return self.update(state, split_gates(x_gates), split_gates(h_gates), *params[4:], **further)
