"""What all Linen modules share: fields, parameters as nested dicts, the call. No arithmetic may live here."""

from dataclasses import fields
from typing import Any, Generic, Literal, overload

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxrnn import calling, checks, trees
from jaxrnn.cells import Cell
from jaxrnn.stack import Stack
from jaxrnn.synonyms import checked, checked_class
from jaxrnn.typing import Alone, ArrayLike, Backend, BatchShape, DTypeLike, Lengths, Merge, TimeAxis


class Checked(nn.Module):
    """A module whose constructor answers wrong arguments with the right ones."""

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        checked_class(cls)


def either(name: str, here: bool | None, there: bool | None) -> bool:
    """`deterministic` as a call says it, else as the module does; True if neither does."""
    if here is not None and there is not None:
        raise ValueError(f"{name}: `deterministic` should be said by the module or in the call, got both.")
    said = [value for value in (here, there) if value is not None]
    deterministic = said[0] if said else True
    checks.flag(name, "deterministic", deterministic)
    return deterministic


def check_bound(module: nn.Module, method: str, arguments: str):
    """`module` has variables: it is called within `apply`, `init` or a method of the net that holds it."""
    if module.scope is None:
        name, by_name = type(module).__name__, f', method="{method}"' if method else ""
        name += f".{method}" if method else ""
        raise ValueError(
            f"{name}: should be called within apply, which gives the module its variables, got none.\n"
            f"Write module.apply(variables, {arguments}{by_name}); for one within a net, let a method of the net call it."
        )


class Layers(Checked, Generic[Alone], kw_only=True):
    """The fields are options of `jaxrnn.Recurrent`, and `deterministic` and `named_axes`, which are Linen's.

    Parameters are nested dicts of arrays, `params["layer_0"]["forward"]["w_ih"]`; a learned initial state is under "initial".

    Args:
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act with deterministic=False.
        bidirectional: run every layer in both directions of time.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean"; "none" keeps the directions apart in
            every layer, and the output is (forward, backward).
        residual: add the input of each layer to its output, from the second layer on. Not together with `skip_connections`.
        skip_connections: every layer also reads the input of the first, and the output holds the outputs of all layers (Graves,
            2013, arXiv:1308.0850, section 2).
        input_dropout: rate of dropout on the input of every layer, one draw for the whole sequence (Gal & Ghahramani, 2016,
            arXiv:1512.05287).
        recurrent_dropout: rate of variational dropout, on `h` before the recurrent matmul, one draw for the whole sequence (ibid.).
        zoneout: rate at which entries of the state keep their value (Krueger et al., 2017, arXiv:1606.01305); where nothing is
            drawn, the state is rate · old + (1 − rate) · new.
        weight_dropout: rate of DropConnect, dropout on `w_hh`, one draw for the whole sequence (Merity et al., 2018,
            arXiv:1708.02182).
        learn_initial_state: whether to train the initial state, which begins as the cell's own, zeros for most. If not, it stays
            the cell's own.
        remat: recompute states in the backward pass, in segments of √time steps: less memory, the same gradients.
        truncate: stop the gradient, but not the state, after every so many steps, at least 1: truncated backpropagation through
            time; None: don't.
        dtype: floating-point dtype to compute in; None: what input and parameters promote to.
        param_dtype: floating-point dtype to store parameters in.
        backend: how it is computed: "auto", "xla", "pallas" or "cudnn", see `unroll`.
        output_only: a call gives the output alone, for `nn.Sequential`, which would pass h_n on to the next layer.
        deterministic: whether dropout and its kin are off where a call does not say: in `nn.Sequential`, under `nn.remat`. None
            means True: they are off.
        named_axes: whether each parameter is in a box with the names of its axes, `nn.LogicallyPartitioned`.
    """

    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    merge: Merge = "concat"
    residual: bool = False
    skip_connections: bool = False
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0
    learn_initial_state: bool = False
    remat: bool = False
    truncate: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    backend: Backend = "auto"
    output_only: Alone = False  # pyright: ignore[reportAssignmentType]  a default that decides the type
    deterministic: bool | None = None
    named_axes: bool = False

    def __init_subclass__(cls, **options):
        if "describe_cell" in vars(cls):
            nn.nowrap(vars(cls)["describe_cell"])  # it needs no variables, and Linen's transformations ask before there are any
        super().__init_subclass__(**options)

    def __post_init__(self):
        super().__post_init__()
        name = type(self).__name__
        for flag in ("batch_first", "output_only", "named_axes"):
            checks.flag(name, flag, getattr(self, flag))
        either(name, self.deterministic, None)
        self.stack  # noqa: B018  an option that is wrong should raise here, not when the module is first called

    def describe_cell(self) -> Cell:
        """The cell of the layers."""
        raise NotImplementedError

    @property
    def stack(self) -> Stack:
        """The description of the layers."""
        names = [f.name for f in fields(Stack) if f.name != "cell"]
        return Stack._described(type(self).__name__, cell=self.describe_cell(), **{name: getattr(self, name) for name in names})

    @nn.nowrap
    def axis_names(self) -> dict[str, Any]:
        """The names of the axes of each parameter, nested as `variables["params"]`: a `jax.P` each, for rules that send names to
        axes of a mesh, `nn.logical_to_mesh(module.axis_names(), rules)`."""
        stack = self.stack
        params = jax.eval_shape(stack.init, jax.random.key(0))
        names = trees.to_dict(*map(stack.axis_names, (params, jax.eval_shape(stack.init_state, params))))
        return jax.tree.map(lambda axes: jax.P(*axes), names, is_leaf=lambda node: isinstance(node, tuple))

    def setup(self) -> None:
        stack, tree = self.stack, {}
        if self.has_variable("params", "layers"):
            rule = 'hold "layer_0" and so on, as those of this release, got "layers", as those of 0.1.0'
            hint = '\nWrite jaxrnn.trees.to_dict(params["layers"], params.get("initial_state")).'
            raise ValueError(f"{type(self).__name__}: `params` should {rule}.{hint}")
        for k in range(stack.num_layers):
            draw = lambda key, k=k: stack.init_layer(k, jax.random.split(key, stack.num_directions))
            tree[trees.layer_name(k)] = self._declared(trees.layer_name(k), lambda key, draw=draw: trees.layer_to_dict(draw(key)))
        if stack.learn_initial_state:
            params = trees.rebuilt_params(stack, tree)
            tree[trees.INITIAL] = self._declared(trees.INITIAL, lambda _: trees.to_dict(stack.init_state(params)))
        self.arrays = trees.rebuilt(stack, tree)

    @nn.nowrap
    def _declared(self, name: str, draw):
        """The arrays of a parameter that is a nested dict of them."""
        if not self.named_axes:
            return self.param(name, draw)
        names, is_leaf = self.axis_names()[name], lambda node: isinstance(node, jax.P)
        box = lambda axes, a: nn.LogicallyPartitioned(a, tuple(axes))
        return self.param(name, lambda key: jax.tree.map(box, names, draw(key), is_leaf=is_leaf))

    # fmt: off
    @overload
    def __call__(
        self: "Layers[Literal[False]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[False] = False, time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self: "Layers[Literal[False]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[True], time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> tuple[Array, Any, Any]: ...

    @overload
    def __call__(
        self: "Layers[Literal[True]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[False] = False, time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> Array: ...

    @overload
    def __call__(
        self: "Layers[Literal[True]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[True], time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: bool = False, time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> Any: ...

    # fmt: on
    @checked()
    def __call__(
        self,
        x: ArrayLike,
        *,
        h_0: Any = None,
        lengths: Lengths | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        return_states: bool = False,
        time_axis: TimeAxis | None = None,
        deterministic: bool | None = None,
    ) -> Any:
        """As `jaxrnn.Recurrent.__call__`: `x` is (*batch, time, input), or (time, *batch, input) with batch_first=False, with any
        number of batch axes. With deterministic=False, draws come from the stream "dropout"."""
        check_bound(self, "", "x")
        draws = not either(type(self).__name__, self.deterministic, deterministic) and self.stack.random
        if draws:
            self._check_dropout_rng()
        params, initial = self.arrays
        return calling.call(
            self._caller(), params, x, h_0, initial=initial, lengths=lengths, mask=mask, reset=reset, per_step=per_step,
            context=context, key=self.make_rng("dropout") if draws else None, return_states=return_states, time_axis=time_axis,
        )  # fmt: skip

    @checked()
    def step(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        reset: ArrayLike | None = None,
        per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> tuple[Array, Any]:
        """As `jaxrnn.Recurrent.step`: `module.apply(variables, x, state, method="step")`."""
        check_bound(self, "step", "x, state")
        params, initial = self.arrays
        return calling.step(
            self._caller(), params, x, state, initial=initial, reset=reset, per_step=per_step, context=context,
        )  # fmt: skip

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """As `jaxrnn.Recurrent.initial_state`: `module.apply(variables, batch_shape, method="initial_state")`."""
        check_bound(self, "initial_state", "batch_shape")
        params, initial = self.arrays
        return calling.initial_state(self._caller(), params, batch_shape, initial=initial)

    @nn.nowrap
    def _caller(self) -> calling.Caller:
        return calling.Caller(type(self).__name__, self.stack, self.batch_first, self.output_only)

    @nn.nowrap
    def _check_dropout_rng(self):
        if not self.has_rng("dropout"):
            raise ValueError(
                f"{type(self).__name__}: `rngs` should hold a key for 'dropout' when deterministic=False, got none.\n"
                "Write apply(variables, x, deterministic=False, rngs={'dropout': key})."
            )
