"""What every Flax NNX module of layers is: the parameters of a `Stack`, and the call of pure functions. No arithmetic may live
here."""

from typing import Any, Generic, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxrnn import calling, checks, groups
from jaxrnn.cells import Cell
from jaxrnn.stack import Stack
from jaxrnn.synonyms import checked
from jaxrnn.typing import Alone, ArrayLike, Backend, BatchShape, DTypeLike, Lengths, Merge, Sizes, TimeAxis


class Recurrent(groups.Holder, Generic[Alone]):
    """Layers of any cell, with the signature of `torch.nn`.

    Args:
        cell: the description of one step, see `jaxrnn.cells.CELLS`.
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1; or a tuple with one for each layer: then states are nested,
            `[layer][direction]`.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
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
        output_only: a call gives the output alone, for `nnx.Sequential`, which would pass h_n on to the next layer.
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Attributes:
        stack: the description, a `Stack`.
        layer_0, layer_1, …: the parameters by path, `layer_0.forward.w_ih`, an `nnx.Param` for each array, with names of its axes
            for `nnx.get_partition_spec`. An array assigned to one becomes its value.
        initial: a learned initial state by path, `initial.layer_0.forward.h`.
        params: the same parameters as `params[layer][direction]`; see `jaxrnn.params_of` for their arrays.
        learned: a learned initial state, `[layer][direction]`, or None.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRUCell, Recurrent
        >>> gru = Recurrent(GRUCell(), 3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((4, 7, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> output.shape, h_n.shape
        ((4, 7, 10), (4, 4, 5))
    """

    @checked()
    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: Sizes,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: Merge = "concat",
        residual: bool = False,
        skip_connections: bool = False,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        learn_initial_state: bool = False,
        remat: bool = False,
        truncate: int | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        backend: Backend = "auto",
        output_only: Alone = False,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        checks.flag(name, "batch_first", batch_first)
        checks.flag(name, "output_only", output_only)
        stack = Stack._described(
            name, cell=cell, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers, bias=bias, dropout=dropout,
            bidirectional=bidirectional, merge=merge, residual=residual, skip_connections=skip_connections,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype, param_dtype=param_dtype,
            backend=backend,
        )  # fmt: skip
        groups.check_rngs(name, rngs, random=stack.random)
        self.batch_first, self.output_only = batch_first, output_only
        self._hold(stack, stack.init(rngs.params()))
        self.deterministic = False
        self.rngs = rngs.dropout.fork() if stack.random else None

    # fmt: off
    @overload
    def __call__(
        self: "Recurrent[Literal[False]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[False] = False, time_axis: TimeAxis | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self: "Recurrent[Literal[False]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[True], time_axis: TimeAxis | None = None,
    ) -> tuple[Array, Any, Any]: ...

    @overload
    def __call__(
        self: "Recurrent[Literal[True]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[False] = False, time_axis: TimeAxis | None = None,
    ) -> Array: ...

    @overload
    def __call__(
        self: "Recurrent[Literal[True]]", x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: Literal[True], time_axis: TimeAxis | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, h_0: Any = None, lengths: Lengths | None = None,
        mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
        context: dict[str, Any] | None = None, return_states: bool = False, time_axis: TimeAxis | None = None,
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
    ) -> Any:
        """Run the layers over a batch of sequences.

        Args:
            x: (batch, time, input), with batch_first=False (time, batch, input), or one sequence (time, input); there may be
                several batch axes, (agents, envs, time, input) or (time, agents, envs, input).
            h_0: by name only: where to start, (layers * directions, batch, hidden), for an LSTM the pair (h_0, c_0); `None` means
                the initial state: zeros, or what was learned.
            lengths: valid steps of each sequence (batch,), a list will do; the rest is padding, which changes nothing and gives
                zeros.
            mask: True, or 1, where a step is valid, (batch, time) as `x` lies, in any pattern. Not together with `lengths`.
            reset: True, or 1, where the state *before* the step is the initial state, (batch, time) as `x` lies.
            per_step, context: what the cell reads beside `x`, see `unroll`; arrays of `per_step` lie as `x` does, but for keys
                (time,), one for each step. Every layer and direction gets keys of its own, made from those given.
            return_states: also return every state, `[layer][direction]`, the initial one included: time + 1 of them.
            time_axis: inside of `jax.shard_map`, the axis of the mesh that time is in parts over, for linear cells; see `unroll`.

        Returns:
            (output, h_n), or (output, h_n, states): the last layer's output at every step, and the states after the last
            valid step, stacked layer by layer, forward before backward; for an LSTM, h_n is the pair (h_n, c_n). Without h_n
            if the module was made with `output_only`.

        Raises:
            ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.
        """
        params, initial = self._arrays()
        return calling.call(
            self._caller(), params, x, h_0, initial=initial,
            lengths=lengths, mask=mask, reset=reset, per_step=per_step, context=context, key=self._key(),
            return_states=return_states, time_axis=time_axis,
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
        """Run one step of a stream; (y, state). Step by step, the outputs are those of one call on the whole sequence.

        Nothing is drawn, whether the module is in training or not.

        Args:
            x: the input, (batch, input) or (input,), with any number of batch axes.
            state: as a call or a step before returned it; `None` means the initial state.
            reset: True, or 1, where the state before this step is the initial state, (batch,).
            per_step, context: as in a call, of this step.

        Raises:
            ValueError: the module is bidirectional.
        """
        params, initial = self._arrays()
        return calling.step(
            self._caller(), params, x, state, initial=initial, reset=reset, per_step=per_step, context=context,
        )  # fmt: skip

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """The state that a call or a step starts from where it is given none: zeros, or what was learned, as `h_n` is returned.

        Args:
            batch_shape: the batch axes, an integer if it is one: `x.shape[:-1]` for the x of one step. For convolutional cells
                with the axes of space behind.

        Example:
            >>> from flax import nnx
            >>> from jaxrnn import LSTM
            >>> h_0, c_0 = LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0)).initial_state(4)
            >>> h_0.shape, c_0.shape
            ((2, 4, 5), (2, 4, 5))
        """
        params, initial = self._arrays()
        return calling.initial_state(self._caller(), params, batch_shape, initial=initial)

    def set_view(self, deterministic: bool | None = None) -> None:
        """Class method used by `nnx.view`.

        Args:
            deterministic: if True, nothing is drawn.
        """
        if deterministic is not None:
            checks.flag(type(self).__name__, "deterministic", deterministic)
            self.deterministic = deterministic

    def _caller(self) -> calling.Caller:
        return calling.Caller(type(self).__name__, self.stack, self.batch_first, self.output_only)

    def _key(self):
        return None if self.rngs is None or self.deterministic else self.rngs()

    def __repr__(self):
        layout = ("" if self.batch_first else ", batch_first=False") + (", output_only=True" if self.output_only else "")
        return f"{type(self).__name__}({self._describe_cell()}{self.stack.describe()}{layout})"

    __str__ = __repr__

    def _describe_cell(self) -> str:
        return f"{type(self.stack.cell).__name__}, " if type(self) is Recurrent else ""


def params_of(module: Recurrent[Any]) -> Any:
    """The arrays of a module's parameters, `params[layer][direction]`, as functions take them: `module.stack.apply(params, …)`.

    Args:
        module: a `jaxrnn.RNN`, `LSTM`, `GRU` or `Recurrent`.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn import GRU, params_of
        >>> gru = GRU(3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> params_of(gru)[1][0].w_hh.shape
        (5, 3, 5)
    """
    checks.kind("params_of", "module", module, Recurrent)
    return module._arrays()[0]
