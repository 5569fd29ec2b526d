"""Flax Linen modules: the same fields, call and bits as the NNX modules. No arithmetic may live here."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from flax import linen as nn

from jaxrnn import blocks, calling, checks
from jaxrnn.cells import Cell, GRUCell
from jaxrnn.linen_layers import Checked, Layers, either
from jaxrnn.synonyms import checked


class Recurrent(Layers):
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
        >>> variables["params"]["layer_0"]["forward"]["w_ih"].shape, tuple(gru.axis_names()["layer_0"]["forward"]["w_ih"])
        ((3, 3, 5), ('input', 'gates', 'hidden'))
    """

    cell: Cell
    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1

    def describe_cell(self):
        return self.cell


class RNN(Layers):
    """Layers of the simple recurrent cell; see `jaxrnn.RNN`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    nonlinearity: str = "tanh"

    def describe_cell(self):
        return calling.rnn_cell(type(self).__name__, self.nonlinearity)


class LSTM(Layers):
    """Layers of long short-term memory; see `jaxrnn.LSTM`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1
    proj_size: int = 0

    def describe_cell(self):
        return calling.lstm_cell(type(self).__name__, self.hidden_size, self.proj_size)


class GRU(Layers):
    """Layers of the gated recurrent unit; see `jaxrnn.GRU`."""

    input_size: int
    hidden_size: int | tuple[int, ...]
    num_layers: int = 1

    def describe_cell(self):
        return GRUCell()


class SequenceModel(Checked, kw_only=True):
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
    deterministic: bool | None = None

    def setup(self):
        name = type(self).__name__
        blocks.check_sizes(name, **{f: getattr(self, f) for f in ("input_size", "output_size", "num_layers", "last")})
        checks.rate(name, "dropout", self.dropout)
        rnns = [Recurrent(self.cell, self.hidden_size, self.hidden_size, **self.options) for _ in range(self.num_layers)]
        blocks.check_stack(name, rnns[0])
        dtypes = {"dtype": rnns[0].dtype, "param_dtype": rnns[0].param_dtype}
        self.encoder, self.head = nn.Dense(self.hidden_size, **dtypes), nn.Dense(self.output_size, **dtypes)
        self.norm, self.rnns = nn.LayerNorm(**dtypes), rnns
        self.norms = [nn.LayerNorm(**dtypes) for _ in rnns]
        self.glus = [nn.Dense(2 * self.hidden_size, **dtypes) for _ in rnns]
        self.drop = nn.Dropout(self.dropout)

    @checked()
    def __call__(
        self,
        x,
        *,
        state=None,
        lengths=None,
        mask=None,
        reset=None,
        return_state: bool = False,
        deterministic: bool | None = None,
    ):
        """As `jaxrnn.models.SequenceModel.__call__`; with deterministic=False, draws come from the stream "dropout"."""
        name = type(self).__name__
        deterministic = either(name, self.deterministic, deterministic)
        valid = blocks.valid_steps(name, x, self.input_size, lengths, mask)
        starts = blocks.states(name, state, self.num_layers)
        checks.flag(name, "return_state", return_state)
        run = lambda rnn, x, start: rnn(x, h_0=start, mask=valid, reset=reset, deterministic=deterministic)
        drop = partial(self.drop, deterministic=deterministic)
        x, ends = blocks.in_turn(self._blocks(run, drop), self.encoder(blocks.zero_invalid(valid, x)), starts)
        if self.last:
            output = self.head(self.norm(blocks.at_last_valid(valid, x)))
        else:
            output = blocks.zero_invalid(valid, self.head(self.norm(x)))
        return (output, ends) if return_state else output

    def _blocks(self, run, drop):
        """Each block, its layer run by `run`, as a function (x, start) -> (x, end)."""

        def block(norm, rnn, glu, x, start):
            y, end = run(rnn, norm(x), start)
            return blocks.residual(x, y, glu, drop), end

        return [partial(block, *parts) for parts in zip(self.norms, self.rnns, self.glus, strict=True)]

    @checked()
    def step(self, x, state=None, *, reset=None):
        """As `jaxrnn.models.SequenceModel.step`."""
        starts = blocks.states(f"{type(self).__name__}.step", state, self.num_layers)
        one_step = lambda rnn, x, start: rnn.step(x, start, reset=reset)
        x, ends = blocks.in_turn(self._blocks(one_step, lambda y: y), self.encoder(x), starts)  # nothing is drawn
        return self.head(self.norm(x)), ends

    @checked()
    def initial_state(self, batch_shape=()):
        """As `jaxrnn.models.SequenceModel.initial_state`."""
        return tuple(rnn.initial_state(batch_shape) for rnn in self.rnns)
