"""Flax Linen modules: the same fields, call and bits as the NNX modules. No arithmetic may live here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrnn import blocks, calling, checks
from jaxrnn.cells import Cell, GRUCell
from jaxrnn.stack import Stack


class _Layers(nn.Module, kw_only=True):
    """What all modules share; the fields are those of `jaxrnn.Recurrent` and of `Stack`."""

    bias: bool = True
    batch_first: bool = True
    dropout: float = 0.0
    bidirectional: bool = False
    merge: str = "concat"
    residual: bool = False
    skip_connections: bool = False
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0
    learn_initial_state: bool = False
    remat: bool = False
    truncate: int | None = None
    dtype: Any = None
    param_dtype: Any = jnp.float32
    backend: str = "auto"

    def __post_init__(self):
        super().__post_init__()
        checks.flag(type(self).__name__, "batch_first", self.batch_first)
        self.stack  # noqa: B018  an option that is wrong should raise here, not when the module is first called

    def describe_cell(self) -> Cell:
        """The cell of the layers."""
        raise NotImplementedError

    @property
    def stack(self) -> Stack:
        """The description of the layers."""
        names = [f.name for f in fields(Stack) if f.name != "cell"]
        return Stack.described(type(self).__name__, cell=self.describe_cell(), **{name: getattr(self, name) for name in names})

    def setup(self):
        stack = self.stack
        self.layers = self.param("layers", lambda key: self._named(stack.init(key)))
        learned = stack.learn_initial_state
        self.initial_state = self.param("initial_state", lambda _: self._named(stack.init_state(self.layers))) if learned else None

    def _named(self, arrays):
        return jax.tree.map(nn.LogicallyPartitioned, arrays, self.stack.axis_names(arrays))

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
        deterministic: bool = True,
    ):
        """As `jaxrnn.Recurrent.__call__`; with deterministic=False, draws come from the stream "dropout"."""
        checks.flag(type(self).__name__, "deterministic", deterministic)
        stack = self.stack
        draws = stack.random and not deterministic
        if draws:
            self._check_dropout_rng()
        key = self.make_rng("dropout") if draws else None
        caller = calling.Caller(type(self).__name__, stack, self.batch_first)
        return calling.call(
            caller, self.layers, x, h_0, initial=self.initial_state,
            lengths=lengths, mask=mask, reset=reset, per_step=per_step, context=context, key=key, return_states=return_states,
            time_axis=time_axis,
        )  # fmt: skip

    def step(self, x, state=None, *, per_step=None, context=None):
        """As `jaxrnn.Recurrent.step`."""
        caller = calling.Caller(type(self).__name__, self.stack, self.batch_first)
        return calling.step(caller, self.layers, x, state, initial=self.initial_state, per_step=per_step, context=context)

    def _check_dropout_rng(self):
        if not self.has_rng("dropout"):
            raise ValueError(
                f"{type(self).__name__}: `rngs` should hold a key for 'dropout' when deterministic=False, got none.\n"
                "Write apply(variables, x, deterministic=False, rngs={'dropout': key})."
            )


class Recurrent(_Layers):
    """Layers of any cell; see `jaxrnn.Recurrent`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import GRUCell
        >>> from jaxrnn.linen import Recurrent
        >>> gru = Recurrent(GRUCell(), 3, 5, num_layers=2)
        >>> x = jnp.ones((4, 7, 3))
        >>> (output, h_n), variables = gru.init_with_output(jax.random.key(0), x)
        >>> output.shape, h_n.shape
        ((4, 7, 5), (2, 4, 5))
        >>> params = variables["params"]["layers"]              # boxes with names of axes; nn.unbox(variables) takes them off
        >>> params[0][0].w_ih.value.shape, params[0][0].w_ih.names
        ((3, 3, 5), ('input', 'gates', 'hidden'))
    """

    cell: Cell
    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1

    def describe_cell(self):
        return self.cell


class RNN(_Layers):
    """Layers of the simple recurrent cell; see `jaxrnn.RNN`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    nonlinearity: str = "tanh"

    def describe_cell(self):
        return calling.rnn_cell(type(self).__name__, self.nonlinearity)


class LSTM(_Layers):
    """Layers of long short-term memory; see `jaxrnn.LSTM`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    proj_size: int = 0

    def describe_cell(self):
        return calling.lstm_cell(type(self).__name__, self.hidden_size, self.proj_size)


class GRU(_Layers):
    """Layers of the gated recurrent unit; see `jaxrnn.GRU`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1

    def describe_cell(self):
        return GRUCell()


class SequenceModel(nn.Module, kw_only=True):
    """Residual blocks of a recurrence and a gated linear unit; see `jaxrnn.models.SequenceModel`.

    Args:
        options: of `jaxrnn.linen.Recurrent` in each block.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LRUCell
        >>> from jaxrnn.linen import SequenceModel
        >>> model = SequenceModel(LRUCell(r_min=0.9), 3, 16, 10, num_layers=2, last=True)
        >>> model.init_with_output(jax.random.key(0), jnp.ones((4, 50, 3)))[0].shape
        (4, 10)
    """

    cell: Cell = dataclasses.field(kw_only=False)
    input_size: int = dataclasses.field(kw_only=False)
    hidden_size: int = dataclasses.field(kw_only=False)
    output_size: int = dataclasses.field(kw_only=False)
    num_layers: int = 2
    last: bool = False
    dropout: float = 0.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def setup(self):
        name = type(self).__name__
        blocks.check_sizes(name, **{f: getattr(self, f) for f in ("input_size", "output_size", "num_layers", "last")})
        checks.rate(name, "dropout", self.dropout)
        rnns = [Recurrent(self.cell, self.hidden_size, self.hidden_size, **self.options) for _ in range(self.num_layers)]
        blocks.check_stack(name, rnns[0].stack)
        dtypes = {"dtype": rnns[0].dtype, "param_dtype": rnns[0].param_dtype}
        self.encoder, self.head = nn.Dense(self.hidden_size, **dtypes), nn.Dense(self.output_size, **dtypes)
        self.norm, self.rnns = nn.LayerNorm(**dtypes), rnns
        self.norms = [nn.LayerNorm(**dtypes) for _ in rnns]
        self.glus = [nn.Dense(2 * self.hidden_size, **dtypes) for _ in rnns]
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x, *, lengths=None, mask=None, reset=None, deterministic: bool = True):
        """As `jaxrnn.models.SequenceModel.__call__`; with deterministic=False, draws come from the stream "dropout"."""
        valid = blocks.valid_steps(type(self).__name__, x, self.input_size, lengths, mask)
        run = lambda rnn, x: rnn(x, mask=valid, reset=reset, deterministic=deterministic)[0]
        drop = partial(self.drop, deterministic=deterministic)
        x = self.encoder(blocks.zero_invalid(valid, x))
        for norm, rnn, glu in zip(self.norms, self.rnns, self.glus, strict=True):
            x = blocks.residual(x, run(rnn, norm(x)), glu, drop)
        if self.last:
            return self.head(self.norm(blocks.at_last_valid(valid, x)))
        return blocks.zero_invalid(valid, self.head(self.norm(x)))

    def step(self, x, state=None):
        """As `jaxrnn.models.SequenceModel.step`."""
        x, states = self.encoder(x), []
        starts = (None,) * self.num_layers if state is None else state
        for norm, rnn, glu, before in zip(self.norms, self.rnns, self.glus, starts, strict=True):
            y, after = rnn.step(norm(x), before)
            x = blocks.residual(x, y, glu, lambda y: y)  # nothing is drawn
            states.append(after)
        return self.head(self.norm(x)), tuple(states)
