"""Flax NNX modules: they hold the parameters of a `Stack` and call pure functions. No arithmetic may live here."""

from dataclasses import fields
from typing import Any

import jax
from flax import nnx

from jaxrnn import calling, checks, groups, trees
from jaxrnn.cells import Cell, GRUCell
from jaxrnn.stack import Stack
from jaxrnn.synonyms import checked

OPTIONS = (*(f.name for f in fields(Stack)[4:]), "batch_first", "output_only", "rngs")
"""What every module takes beside its sizes."""


class Recurrent(nnx.Module):
    """Layers of any cell, with the signature of `torch.nn`.

    Args:
        cell: the description of one step.
        input_size: width of the input.
        hidden_size: hidden size, or a tuple with one for each layer.
        num_layers: layers, each reading the outputs of the one before.
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate of dropout on the output of every layer but the last. Active after `train()` (where modules begin), off
            after `eval()`.
        bidirectional: run every layer in both directions of time.
        output_only: a call gives the output alone, for `nnx.Sequential`, which would pass h_n on to the next layer.
        rngs: the source of the parameters and, where something is random, of its draws. Not optional.
        options: `merge`, `residual`, `skip_connections`, `input_dropout`, `recurrent_dropout`, `zoneout`, `weight_dropout`,
            `learn_initial_state`, `remat`, `truncate`, `dtype`, `param_dtype`, `backend`: see `Stack`.

    Attributes:
        stack: the description, a `Stack`.
        layer_0, layer_1, …: the parameters by path, `layer_0.forward.w_ih`, an `nnx.Param` for each array, with names of its axes
            for `nnx.get_partition_spec`. An array assigned to one becomes its value.
        initial: a learned initial state by path, `initial.layer_0.forward.h`.
        params: the same parameters as `params[layer][direction]`; see `jaxrnn.params_of` for their arrays.
        learned: a learned initial state, `[layer][direction]`, or None.

    Raises:
        TypeError, ValueError: an option is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRUCell, Recurrent
        >>> gru = Recurrent(GRUCell(), 3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((4, 7, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> output.shape, h_n.shape
        ((4, 7, 10), (4, 4, 5))
    """

    @checked(also=OPTIONS)
    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        output_only: bool = False,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ):
        name = type(self).__name__
        checks.flag(name, "batch_first", batch_first)
        checks.flag(name, "output_only", output_only)
        described = {"bias": bias, "dropout": dropout, "bidirectional": bidirectional, **options}
        sizes = {"cell": cell, "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        self.stack = Stack.described(name, **sizes, **described)
        groups.check_rngs(name, rngs, random=self.stack.random)
        self.batch_first, self.output_only = batch_first, output_only
        params = self.stack.init(rngs.params())
        initial = self.stack.init_state(params)
        for path, members in trees.to_dict(self._variables(params), self._variables(initial)).items():
            setattr(self, path, groups.Group(members))
        self.deterministic = False
        self.rngs = rngs.dropout.fork() if self.stack.random else None

    @checked()
    def __call__(
        self,
        x,
        *,
        h_0=None,
        lengths=None,
        mask=None,
        reset=None,
        per_step=None,
        context=None,
        return_states: bool = False,
        time_axis: str | tuple[str, ...] | None = None,
    ):
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
    def step(self, x, state=None, *, reset=None, per_step=None, context=None):
        """Run one step of a stream: (batch, input) or (input,) to (y, state), in pieces what a call gives for the whole.

        Nothing is drawn, whether the module is in training or not.

        Args:
            x: the input, with any number of batch axes in front.
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
    def initial_state(self, batch_shape=()):
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

    @property
    def params(self):
        """The parameters, `params[layer][direction]`, an `nnx.Param` for each array."""
        for kind in jax.tree.leaves(trees.kinds(self.stack), is_leaf=lambda node: hasattr(node, "_fields")):
            groups.let_assign(type(kind))
        return trees.rebuilt(self.stack, self)[0]

    @property
    def learned(self):
        """The learned initial state, `[layer][direction]`, an `nnx.Param` for each array; or None."""
        return trees.rebuilt(self.stack, self)[1]

    def set_view(self, deterministic: bool | None = None):
        """Class method used by `nnx.view`.

        Args:
            deterministic: if True, nothing is drawn.
        """
        if deterministic is not None:
            checks.flag(type(self).__name__, "deterministic", deterministic)
            self.deterministic = deterministic

    def __setattr__(self, name: str, value):
        if name == "params":
            groups.assign_tree(self, value, name)
        elif name == "learned":
            groups.assign_tree(self.initial, value, name)
        else:
            super().__setattr__(name, value)

    def _caller(self) -> calling.Caller:
        return calling.Caller(type(self).__name__, self.stack, self.batch_first, self.output_only)

    def _variables(self, arrays):
        # With eager sharding, an axis that has a name would ask for a mesh that has it.
        named = lambda a, names: nnx.Param(a, out_sharding=names, eager_sharding=False)
        return jax.tree.map(named, arrays, self.stack.axis_names(arrays))

    def _arrays(self):
        return trees.rebuilt(self.stack, self, groups.value_of)

    def _key(self):
        return None if self.rngs is None or self.deterministic else self.rngs()

    def __repr__(self):
        layout = ("" if self.batch_first else ", batch_first=False") + (", output_only=True" if self.output_only else "")
        return f"{type(self).__name__}({self._describe_cell()}{self.stack.describe()}{layout})"

    __str__ = __repr__

    def _describe_cell(self) -> str:
        return f"{type(self.stack.cell).__name__}, " if type(self) is Recurrent else ""


class RNN(Recurrent):
    """Layers of the simple recurrent cell, `torch.nn.RNN`; see `RNNCell` for the equation, `Recurrent` for the arguments.

    Args:
        nonlinearity: "tanh" or "relu".

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import RNN
        >>> output, h_n = RNN(3, 5, num_layers=2, nonlinearity="relu", rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))
        >>> output.shape, h_n.shape
        ((4, 7, 5), (2, 4, 5))
    """

    @checked(also=OPTIONS)
    def __init__(self, input_size, hidden_size, num_layers=1, *, nonlinearity="tanh", **options):
        cell = calling.rnn_cell(type(self).__name__, nonlinearity)
        super().__init__(cell, input_size, hidden_size, num_layers, **options)


class LSTM(Recurrent):
    """Layers of long short-term memory, `torch.nn.LSTM`; see `LSTMCell` for the equations, `Recurrent` for the arguments.

    Args:
        proj_size: if positive, project the output to this size, see `ProjectedLSTMCell`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LSTM
        >>> output, (h_n, c_n) = LSTM(3, 5, proj_size=2, bidirectional=True, rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))
        >>> output.shape, h_n.shape, c_n.shape
        ((4, 7, 4), (2, 4, 2), (2, 4, 5))
    """

    @checked(also=OPTIONS)
    def __init__(self, input_size, hidden_size, num_layers=1, *, proj_size=0, **options):
        cell = calling.lstm_cell(type(self).__name__, hidden_size, proj_size)
        super().__init__(cell, input_size, hidden_size, num_layers, **options)


class GRU(Recurrent):
    """Layers of the gated recurrent unit, `torch.nn.GRU`; see `GRUCell` for the equations, `Recurrent` for the arguments.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import GRU
        >>> gru = GRU(3, 5, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((4, 7, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> bool((output[1, 2:] == 0).all()), bool((h_n[0, 1] == output[1, 1]).all())
        (True, True)
        >>> y, h = gru.step(jnp.ones((4, 3)), h_n)
        >>> y.shape
        (4, 5)
    """

    @checked(also=OPTIONS)
    def __init__(self, input_size, hidden_size, num_layers=1, **options):
        super().__init__(GRUCell(), input_size, hidden_size, num_layers, **options)


def params_of(module: Recurrent):
    """The arrays of a module's parameters, `params[layer][direction]`, as functions take them: `module.stack.apply(params, …)`.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn import GRU, params_of
        >>> gru = GRU(3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> params_of(gru)[1][0].w_hh.shape
        (5, 3, 5)
    """
    checks.kind("params_of", "module", module, Recurrent)
    return module._arrays()[0]
