"""Flax NNX modules: they hold the parameters of a `Stack` and call pure functions. No arithmetic may live here."""

from dataclasses import fields
from difflib import get_close_matches
from inspect import signature as signature_of
from typing import Any

import jax
from flax import nnx

from jaxrnn import calling, checks
from jaxrnn.cells import Cell, GRUCell
from jaxrnn.stack import Stack

_OPTIONS = (*(f.name for f in fields(Stack)[1:]), "batch_first", "rngs")


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
        rngs: the source of the parameters and, where something is random, of its draws. Not optional.
        options: `merge`, `residual`, `skip_connections`, `input_dropout`, `recurrent_dropout`, `zoneout`, `weight_dropout`,
            `learn_initial_state`, `remat`, `truncate`, `dtype`, `param_dtype`, `backend`: see `Stack`.

    Attributes:
        stack: the description, a `Stack`.
        params: the parameters, `params[layer][direction]`, an `nnx.Param` for each array, with names of its axes for
            `nnx.get_partition_spec`.
        initial_state: the learned initial state, `[layer][direction]`, or None.

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
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ):
        name = type(self).__name__
        own = [p for p in signature_of(type(self).__init__).parameters if p not in ("self", "options")]
        _check_options(name, options, tuple(dict.fromkeys([*own, *_OPTIONS])))
        checks.flag(name, "batch_first", batch_first)
        described = {"bias": bias, "dropout": dropout, "bidirectional": bidirectional, **options}
        sizes = {"cell": cell, "input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        self.stack = Stack.described(name, **sizes, **described)
        _check_rngs(name, rngs, random=self.stack.random)
        self.batch_first = batch_first
        params = self.stack.init(rngs.params())
        self.params = nnx.data(self._variables(params))
        self.initial_state = nnx.data(self._variables(self.stack.init_state(params)))
        self.deterministic = False
        self.rngs = rngs.dropout.fork() if self.stack.random else None

    def __call__(
        self,
        x,
        h_0=None,
        *,
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
            x: (batch, time, input), with batch_first=False (time, batch, input), or one sequence (time, input).
            h_0: where to start, (layers * directions, batch, hidden), for an LSTM the pair (h_0, c_0); `None` means the
                initial state: zeros, or what was learned.
            lengths: valid steps of each sequence (batch,); the rest is padding, which changes nothing and gives zeros.
            mask: True where a step is valid, (batch, time) as `x` lies, in any pattern. Not together with `lengths`.
            reset: True where the state *before* the step is the initial state, (batch, time) as `x` lies.
            per_step, context: what the cell reads beside `x`, see `unroll`; arrays of `per_step` lie as `x` does, but for keys
                (time,), one for each step. Every layer and direction gets keys of its own, made from those given.
            return_states: also return every state, `[layer][direction]`, the initial one included: time + 1 of them.
            time_axis: inside of `jax.shard_map`, the axis of the mesh that time is in parts over, for linear cells; see `unroll`.

        Returns:
            (output, h_n), or (output, h_n, states): the last layer's output at every step, and the states after the last
            valid step, stacked layer by layer, forward before backward; for an LSTM, h_n is the pair (h_n, c_n).

        Raises:
            ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.
        """
        return calling.call(
            self._caller(), self._arrays(self.params), x, h_0, initial=self._arrays(self.initial_state),
            lengths=lengths, mask=mask, reset=reset, per_step=per_step, context=context, key=self._key(),
            return_states=return_states, time_axis=time_axis,
        )  # fmt: skip

    def step(self, x, state=None, *, per_step=None, context=None):
        """Run one step of a stream: (batch, input) or (input,) to (y, state), in pieces what a call gives for the whole.

        Nothing is drawn, whether the module is in training or not.

        Raises:
            ValueError: the module is bidirectional.
        """
        return calling.step(
            self._caller(), self._arrays(self.params), x, state, initial=self._arrays(self.initial_state), per_step=per_step,
            context=context,
        )  # fmt: skip

    def _caller(self) -> calling.Caller:
        return calling.Caller(type(self).__name__, self.stack, self.batch_first)

    def _variables(self, arrays):
        # With eager sharding, an axis that has a name would ask for a mesh that has it.
        named = lambda a, names: nnx.Param(a, out_sharding=names, eager_sharding=False)
        return jax.tree.map(named, arrays, self.stack.axis_names(arrays))

    def _arrays(self, variables):
        return jax.tree.map(_value, variables, is_leaf=lambda v: isinstance(v, nnx.Variable))

    def _key(self):
        return None if self.rngs is None or self.deterministic else self.rngs()

    def __repr__(self):
        layout = "" if self.batch_first else ", batch_first=False"
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

    def __init__(self, input_size, hidden_size, num_layers=1, **options):
        super().__init__(GRUCell(), input_size, hidden_size, num_layers, **options)


def _value(variable):
    """The array of a variable. `get_value` copies a tree, which a variable may hold; that costs more than a step of a stream."""
    array, own = variable.get_raw_value(), type(variable).get_value is not nnx.Variable.get_value
    return variable.get_value() if own or variable.has_metadata("on_get_value") or not isinstance(array, jax.Array) else array


def _check_options(name: str, options, known: tuple):
    """Every keyword that came is known."""
    for argument in options:
        if argument not in known:
            near = get_close_matches(argument, known, n=1)
            hint = f"\nDid you mean `{near[0]}`?" if near else ""
            raise TypeError(f"{name}: arguments should be among {', '.join(known)}, got `{argument}`.{hint}")


def _check_rngs(name: str, value, *, random: bool):
    """`value` is an `nnx.Rngs`, with the streams that are drawn from."""
    if not isinstance(value, nnx.Rngs):
        came = None if value is None else type(value).__name__
        raise TypeError(f"{name}: `rngs` should be an nnx.Rngs, got {came}. Write rngs=nnx.Rngs(0).")
    for stream in ("params", "dropout") if random else ("params",):
        if not hasattr(value, stream):
            raise ValueError(f"{name}: `rngs` should have a stream {stream!r} or 'default', got streams {sorted(value)}.")
