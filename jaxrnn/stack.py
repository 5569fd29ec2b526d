"""A stack: layers × directions of one cell, time first, as a pure description with `init`, `apply` and `step`, where a call is
checked once. No loop over time and no layout but time first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import Array

from jaxrnn import checks, layers
from jaxrnn.cells import conform
from jaxrnn.cells.base import axis_names
from jaxrnn.engine import over_devices
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.stack_checks import check_arrays, check_one_direction, check_start
from jaxrnn.stack_options import StackOptions
from jaxrnn.synonyms import checked, checked_class
from jaxrnn.typing import ArrayLike, BatchShape, DTypeLike, Lengths, TimeAxis


@checked_class
@dataclass(frozen=True, repr=False)
class Stack(StackOptions):
    """Layers and directions of a cell; frozen, hashable, holding no arrays.

    Args:
        cell: the description of one step, see `jaxrnn.cells.CELLS`.
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1, or a tuple with one for each layer.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        bidirectional: run every layer in both directions of time.
        bias: whether the gates have biases.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean"; "none" keeps the directions apart in
            every layer, and the output is (forward, backward).
        residual: add the input of each layer to its output, from the second layer on. Not together with `skip_connections`.
        skip_connections: every layer also reads the input of the first, and the output holds the outputs of all layers (Graves,
            2013, arXiv:1308.0850, section 2).
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act where `apply` gets a `key`.
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

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LSTMCell, Stack
        >>> stack = Stack(LSTMCell(), 3, 5, num_layers=2, bidirectional=True)
        >>> params = stack.init(jax.random.key(0))
        >>> output, states = stack.apply(params, jnp.ones((7, 4, 3)))
        >>> output.shape, len(states), states[1][0].c.shape
        ((7, 4, 10), 2, (4, 5))
    """

    @checked()
    def init(self, key: Array) -> Any:
        """Draw `params[layer][direction]`.

        Args:
            key: from `jax.random.key`.
        """
        checks.prng_key("Stack.init", key)
        keys = jax.random.split(key, self.num_layers * self.num_directions)
        return tuple(self.init_layer(k, keys[k * self.num_directions :][: self.num_directions]) for k in range(self.num_layers))

    def init_layer(self, layer: int, keys: Sequence[Array] | Array) -> Any:
        """Draw the parameters of one layer, from a key for each direction."""
        sizes, options = (self.layer_input_sizes[layer], self.hidden_sizes[layer]), {"bias": self.bias, "dtype": self.param_dtype}
        return tuple(conform.made_by_init(self.cell, self.cell.init(key, *sizes, **options)) for key in keys)

    def axis_names(self, arrays: Any) -> Any:
        """The name of each axis of each array of parameters, or of states: `[layer][direction]`, a tuple for every array.

        To be mapped to the axes of a mesh: "hidden" is the one to shard, "input", "output" (of `h`, where it is read) and
        "gates" stay whole.
        """
        return None if arrays is None else tuple(tuple(axis_names(self.cell, a) for a in layer) for layer in arrays)

    def init_state(self, params: Any) -> Any:
        """The learned initial state before training, which is the cell's own, without batch axes: `[layer][direction]`; or None.

        Fields that are not learned (counters, keys, and what the cell's `free_fields` leave out) are None.
        """
        if not self.learn_initial_state:
            return None

        def start(cell_params):
            space = (1,) * (self.cell.event_ndim - 1)
            own = self.cell.initial_state(cell_params, jnp.zeros((*space, self.cell.input_size(cell_params)), self.param_dtype))
            free = lambda name, field: conform.is_free(self.cell, name, field)
            before = lambda name, field: max(0, field.ndim - len(self.cell.axes.get(name, ("hidden",))))  # axes of space
            one = lambda name, field: field[(0,) * before(name, field)].astype(self.param_dtype) if free(name, field) else None
            return type(own)(*map(one, own._fields, own))

        return tuple(tuple(start(p) for p in layer) for layer in params)

    def states_like(self, params: Any, batch: tuple[Any, ...], dtype: DTypeLike) -> Any:
        """The shapes and dtypes of states, `[layer][direction]`, for inputs with the batch axes (and those of space) `batch`."""
        x = lambda p: jax.ShapeDtypeStruct((*batch, self.cell.input_size(p)), dtype)
        return tuple(tuple(conform.state_like(self.cell, p, x(p)) for p in layer) for layer in params)

    # fmt: off
    @overload
    def apply(
        self, params: Any, xs: ArrayLike, states: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, key: Array | None = None, return_states: Literal[False] = False,
        time_axis: TimeAxis | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def apply(
        self, params: Any, xs: ArrayLike, states: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, key: Array | None = None, return_states: Literal[True],
        time_axis: TimeAxis | None = None,
    ) -> tuple[Array, Any, Any]: ...

    @overload
    def apply(
        self, params: Any, xs: ArrayLike, states: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, key: Array | None = None, return_states: bool = False,
        time_axis: TimeAxis | None = None,
    ) -> Any: ...

    # fmt: on
    @checked()
    def apply(
        self,
        params: Any,
        xs: ArrayLike,
        states: Any = None,
        *,
        initial: Any = None,
        lengths: Lengths | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
        key: Array | None = None,
        return_states: bool = False,
        time_axis: TimeAxis | None = None,
    ) -> Any:
        """Run the stack over `xs` (time, *batch, input).

        Args:
            params: `[layer][direction]`, from `init`.
            xs: the inputs.
            states: where to start, `[layer][direction]`; `None` means `initial`.
            initial: what `reset` returns to, `[layer][direction]`; `None` means the cell's own.
            lengths, mask, reset: as in `unroll`.
            per_step, context: as in `unroll`, for all layers and directions; each of them gets PRNG keys of its own, made from
                those given in `per_step`.
            key: for the dropout family; `None` draws nothing: the deterministic form.
            return_states: also return every state, `[layer][direction]`.
            time_axis: inside of `jax.shard_map`, the axis that time is in parts over, as in `unroll`; every part draws for itself.

        Returns:
            (output, states), or (output, states, every_state): the output (time, *batch, output_size), the final states
            `[layer][direction]`.

        Raises:
            ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> from jaxrnn import GRUCell, Stack
            >>> stack = Stack(GRUCell(), 3, 5, num_layers=2)
            >>> params = stack.init(jax.random.key(0))
            >>> whole, _ = stack.apply(params, jnp.ones((7, 3)))
            >>> first, states = stack.apply(params, jnp.ones((4, 3)))
            >>> last, _ = stack.apply(params, jnp.ones((3, 3)), states)
            >>> bool(jnp.allclose(jnp.concatenate([first, last]), whole, atol=1e-6))
            True
        """
        name, cell = "Stack.apply", self.cell
        checks.inputs(name, "xs", xs, cell.event_ndim, (("time", "*batch"),), self.input_size, "the stack's `input_size`")
        batch = xs.shape[1 : xs.ndim - cell.event_ndim]
        whole = {"return_states": return_states, "remat": self.remat, "truncate": self.truncate}
        over_devices.check(name, "xs", cell, xs, time_axis, **whole)
        where = (lengths, mask, reset)
        lengths, mask, reset = checks.validity(name, *where, xs.shape[0], batch, parts=over_devices.parts(time_axis))
        checks.flag(name, "return_states", return_states)
        masked = any(a is not None for a in (lengths, mask, reset))
        check_arrays(name, self, params, states, initial, xs, batch if masked else ())
        conform.check_further_inputs(name, cell, per_step, context, batch, xs.shape[0])
        if key is not None:
            checks.prng_key(name, key)
        return layers.run(
            self, params, jnp.asarray(xs), states, initial=initial, lengths=lengths, mask=mask, reset=reset, per_step=per_step,
            context=context, key=key, return_states=return_states, time_axis=time_axis,
        )  # fmt: skip

    @checked()
    def initial_state(self, params: Any, batch_shape: BatchShape = (), *, initial: Any = None) -> Any:
        """The states that `apply` and `step` start from where they are given none, `[layer][direction]`.

        Args:
            params: `[layer][direction]`, from `init`.
            batch_shape: the axes of `x` at one step but the last: the batch axes, an integer if it is one; for convolutional cells
                also those of space.
            initial: what was learned, `[layer][direction]`; `None` means the cell's own.

        Example:
            >>> import jax
            >>> from jaxrnn import LSTMCell, Stack
            >>> stack = Stack(LSTMCell(), 3, 5, num_layers=2)
            >>> stack.initial_state(stack.init(jax.random.key(0)), 4)[1][0].c.shape
            (4, 5)
        """
        batch = check_start("Stack.initial_state", self, params, batch_shape, initial)
        return layers.start(self, params, batch, initial)

    @checked()
    def step(
        self,
        params: Any,
        x: ArrayLike,
        states: Any = None,
        *,
        initial: Any = None,
        reset: ArrayLike | None = None,
        per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None,
    ) -> tuple[Array, Any]:
        """Run one step through a stack of one direction: (output, states), equal to `apply` over a sequence in pieces.

        Args:
            params: `[layer][direction]`, from `init`.
            x: the input at one step (*batch, input).
            states: where the step starts, `[layer][direction]`; `None` means `initial`.
            initial, context: as in `apply`.
            reset, per_step: as in `apply`, of this step: without the axis of time.

        Raises:
            ValueError: the stack is bidirectional; its backward direction needs the end of the sequence first.
        """
        name = "Stack.step"
        check_one_direction(name, self)
        checks.inputs(name, "x", x, self.cell.event_ndim, (("*batch",),), self.input_size, "the stack's `input_size`")
        batch = x.shape[: x.ndim - self.cell.event_ndim]
        masked = () if reset is None else batch
        check_arrays(name, self, params, states, initial, jax.ShapeDtypeStruct((1, *x.shape), x.dtype), masked)
        reset = checks.at_one_step(name, reset, batch)
        conform.check_further_inputs(name, self.cell, per_step, context, batch)
        return layers.run_step(self, read_from_outside(self.cell), params, x, states, initial, reset, per_step, context)
