"""Models: recurrent modules between linear layers. No arithmetic may live here."""

from functools import partial
from typing import Any, ClassVar

from flax import nnx

from jaxrnn import blocks, calling, checks
from jaxrnn.cells import Cell
from jaxrnn.nnx import GRU, LSTM, OPTIONS, RNN, Recurrent
from jaxrnn.synonyms import checked


class _Model(nnx.Module):
    """The last layer's state after the last valid step -> linear.

    Args:
        input_size, hidden_size: of the recurrent module.
        output_size: width of the prediction.
        num_layers: of the recurrent module; by keyword, since some put it before `output_size` and some behind.
        rngs: the source of the parameters. Not optional.
        options: of the recurrent module: `bidirectional`, `dropout`, …, but not `merge`, `residual` or `skip_connections`.

    Attributes:
        rnn: the recurrent module. fc: the head, an `nnx.Linear`.
    """

    recurrent: ClassVar[type]

    @checked(also=(*OPTIONS, "nonlinearity", "proj_size"))
    def __init__(
        self,
        input_size: int,
        hidden_size: int | tuple[int, ...],
        output_size: int,
        *,
        num_layers: int = 1,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ):
        name = type(self).__name__
        checks.size(name, "output_size", output_size)
        self.rnn = self.recurrent(input_size, hidden_size, num_layers, rngs=rngs, **options)
        stack = self.rnn.stack
        for option, plain in (("merge", "concat"), ("residual", False), ("skip_connections", False), ("output_only", False)):
            value = self.rnn.output_only if option == "output_only" else getattr(stack, option)
            if value != plain:
                came = f"{option}={value!r}"
                raise ValueError(
                    f"{name}: `{option}` should be {plain!r}, since the head reads the last layer's states, got {came}.\n"
                    f"Put an nnx.Linear on the output of a module with {came} instead."
                )
        dtypes = {"dtype": stack.dtype, "param_dtype": stack.param_dtype}
        self.fc = nnx.Linear(calling.summary_size(stack), output_size, **dtypes, rngs=rngs)

    @checked()
    def __call__(self, x, *, h_0=None, lengths=None, mask=None, reset=None):
        """Predict from sequences (batch, time, input): (batch, output).

        With two directions the head reads the forward state after the last valid step and the backward state after the
        first: what each direction knows once it has read all.
        """
        _, h_n = self.rnn(x, h_0=h_0, lengths=lengths, mask=mask, reset=reset)
        return self.fc(calling.summary(self.rnn.stack, h_n))

    @checked()
    def step(self, x, state=None, *, reset=None):
        """Predict after one more step of a stream: (batch, input) to (output, state); what a call gives for all steps so far. See
        `jaxrnn.Recurrent.step`.

        Raises:
            ValueError: the model is bidirectional.
        """
        y, state = self.rnn.step(x, state, reset=reset)
        return self.fc(y), state

    @checked()
    def initial_state(self, batch_shape=()):
        """See `jaxrnn.Recurrent.initial_state`."""
        return self.rnn.initial_state(batch_shape)

    def __repr__(self):
        head = f"Linear({self.fc.in_features}, {self.fc.out_features})"
        return f"{type(self).__name__}(\n  (rnn): {self.rnn!r}\n  (fc): {head}\n)"

    __str__ = __repr__


class RNNModel(_Model):
    """Simple recurrent layers and a linear head.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn.models import RNNModel
        >>> RNNModel(input_size=10, hidden_size=20, num_layers=2, output_size=1, rngs=nnx.Rngs(0))
        RNNModel(
          (rnn): RNN(10, 20, num_layers=2)
          (fc): Linear(20, 1)
        )
    """

    recurrent = RNN


class LSTMModel(_Model):
    """LSTM layers and a linear head.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.models import LSTMModel
        >>> model = LSTMModel(input_size=10, hidden_size=20, output_size=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((5, 3, 10)), lengths=jnp.array([3, 1, 2, 3, 3])).shape
        (5, 2)
    """

    recurrent = LSTM


class GRUModel(_Model):
    """GRU layers and a linear head.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.models import GRUModel
        >>> GRUModel(input_size=10, hidden_size=20, output_size=2, rngs=nnx.Rngs(0))(jnp.ones((5, 3, 10))).shape
        (5, 2)
    """

    recurrent = GRU


class _Block(nnx.Module):
    """A residual block of `SequenceModel`."""

    def __init__(self, name: str, cell: Cell, hidden_size: int, dropout: float, rngs, options: dict):
        self.rnn = Recurrent(cell, hidden_size, hidden_size, rngs=rngs, **options)
        blocks.check_stack(name, self.rnn)
        dtypes = {"dtype": self.rnn.stack.dtype, "param_dtype": self.rnn.stack.param_dtype}
        self.norm = nnx.LayerNorm(hidden_size, **dtypes, rngs=rngs)
        self.glu = nnx.Linear(self.rnn.stack.output_size, 2 * hidden_size, **dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x, state, mask, reset):
        y, state = self.rnn(self.norm(x), h_0=state, mask=mask, reset=reset)
        return blocks.residual(x, y, self.glu, self.dropout), state

    def step(self, x, state, reset):
        y, state = self.rnn.step(self.norm(x), state, reset=reset)
        return blocks.residual(x, y, self.glu, lambda y: y), state  # nothing is drawn


class SequenceModel(nnx.Module):
    """Residual blocks of a recurrence and a gated linear unit, the usual frame of deep models of linear layers (Orvieto et al.,
    2023, arXiv:2303.06349, figure 1).

        x ← W_in x + b_in
        x ← x + D(GLU(D(gelu(recurrence(norm(x))))))       in every block; D is dropout
        output = W_out norm(x) + b_out

    Stacked without anything that is not linear between them, linear cells are one linear map; here they are not.

    Args:
        cell: the recurrence, one layer in each block, see `jaxrnn.cells.CELLS`.
        input_size: width of the input.
        hidden_size: width of the blocks, and hidden size of the cell.
        output_size: width of the prediction.
        num_layers: blocks.
        last: predict at the last valid step only (a class, a score), instead of at every step.
        dropout: rate of both dropouts of a block, active after `train()`.
        rngs: the source of the parameters and of draws. Not optional.
        options: of `jaxrnn.Recurrent` in each block: `bidirectional`, `zoneout`, `remat`, `dtype`, ….

    Attributes:
        encoder, blocks, norm, head: linear, the blocks (each with norm, rnn, glu, dropout), layer norm, linear.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LRUCell
        >>> from jaxrnn.models import SequenceModel
        >>> model = SequenceModel(LRUCell(r_min=0.9), 3, 16, 10, num_layers=2, last=True, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((4, 50, 3)), lengths=jnp.array([50, 20, 1, 7])).shape
        (4, 10)
    """

    @checked(also=OPTIONS)
    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        num_layers: int = 2,
        last: bool = False,
        dropout: float = 0.0,
        rngs: nnx.Rngs | None = None,
        **options: Any,
    ):
        name = type(self).__name__
        blocks.check_sizes(name, input_size=input_size, output_size=output_size, num_layers=num_layers, last=last)
        checks.rate(name, "dropout", dropout)
        self.blocks = nnx.data([_Block(name, cell, hidden_size, dropout, rngs, options) for _ in range(num_layers)])
        stack = self.blocks[0].rnn.stack
        dtypes = {"dtype": stack.dtype, "param_dtype": stack.param_dtype}
        self.encoder = nnx.Linear(input_size, hidden_size, **dtypes, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden_size, **dtypes, rngs=rngs)
        self.head = nnx.Linear(hidden_size, output_size, **dtypes, rngs=rngs)
        self.last = last

    @checked()
    def __call__(self, x, *, state=None, lengths=None, mask=None, reset=None, return_state: bool = False):
        """Predict from sequences (batch, time, input): (batch, time, output), zero where a step is not valid; or, with `last`,
        (batch, output).

        Args:
            x: the sequences; there may be several batch axes.
            state: where to start, as `return_state` or `step` gave it; `None` means the initial state.
            lengths, mask, reset: as of `jaxrnn.Recurrent`.
            return_state: give (output, state): the next stretch of the same sequences starts from that.
        """
        name = type(self).__name__
        valid = blocks.valid_steps(name, x, self.encoder.in_features, lengths, mask)
        starts = blocks.states(name, state, len(self.blocks))
        checks.flag(name, "return_state", return_state)
        runs = [partial(block, mask=valid, reset=reset) for block in self.blocks]
        x, ends = blocks.in_turn(runs, self.encoder(blocks.zero_invalid(valid, x)), starts)
        if self.last:
            output = self.head(self.norm(blocks.at_last_valid(valid, x)))
        else:
            output = blocks.zero_invalid(valid, self.head(self.norm(x)))
        return (output, ends) if return_state else output

    @checked()
    def step(self, x, state=None, *, reset=None):
        """Run one step of a stream, (batch, input): (output, state), in pieces what a call gives for the whole at every step. The
        state has the state of each block; None: the initial one. Nothing is drawn.

        Raises:
            ValueError: the model is bidirectional.
        """
        starts = blocks.states(f"{type(self).__name__}.step", state, len(self.blocks))
        x, ends = blocks.in_turn([partial(block.step, reset=reset) for block in self.blocks], self.encoder(x), starts)
        return self.head(self.norm(x)), ends

    @checked()
    def initial_state(self, batch_shape=()):
        """The state that a call or a step starts from where it is given none; see `jaxrnn.Recurrent.initial_state`."""
        return tuple(block.rnn.initial_state(batch_shape) for block in self.blocks)
