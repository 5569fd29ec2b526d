"""The usual frame of deep models of linear recurrences: residual blocks. No arithmetic may live here."""

from functools import partial
from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxrnn import blocks, checks
from jaxrnn.cells import Cell
from jaxrnn.nnx_layers import Recurrent
from jaxrnn.synonyms import ClassSignature, checked
from jaxrnn.typing import ArrayLike, Backend, BatchShape, DTypeLike, Lengths


class _Block(nnx.Module):
    """A residual block of `SequenceModel`."""

    def __init__(self, rnn: Recurrent, dropout: float, rngs: nnx.Rngs):
        self.rnn, hidden_size = rnn, rnn.stack.input_size
        dtypes = {"dtype": self.rnn.stack.dtype, "param_dtype": self.rnn.stack.param_dtype}
        self.norm = nnx.LayerNorm(hidden_size, **dtypes, rngs=rngs)
        self.glu = nnx.Linear(self.rnn.stack.output_size, 2 * hidden_size, **dtypes, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x, state, mask, reset):
        y, state = self.rnn(blocks.rowwise(self.norm, x), h_0=state, mask=mask, reset=reset)
        return blocks.residual(x, y, self.glu, self.dropout), state

    def step(self, x, state, reset):
        y, state = self.rnn.step(self.norm(x), state, reset=reset)
        return blocks.residual(x, y, self.glu, lambda y: y), state  # nothing is drawn


class SequenceModel(nnx.Module):
    """Residual blocks of a recurrence and a gated linear unit, as in deep models of linear recurrences (Orvieto et al., 2023,
    arXiv:2303.06349, figure 1).

        x ← W_in x + b_in
        x ← x + D(GLU(D(gelu(recurrence(norm(x))))))       in every block; D is dropout
        output = W_out norm(x) + b_out

    Linear cells stacked with nothing nonlinear between them are one linear map; the blocks put a nonlinearity there.

    Args:
        cell: the recurrence, one layer in each block, see `jaxrnn.cells.CELLS`.
        input_size: width of the input, at least 1.
        hidden_size: width of the blocks, and hidden size of the cell, at least 1.
        output_size: width of the prediction, at least 1.
        num_layers: blocks, at least 1.
        last: predict at the last valid step only (a class, a score), instead of at every step.
        dropout: rate, from 0 to 1, of both dropouts of a block. This rate and those below act in training mode, in which a
            module begins, and not after `eval()`.
        bias: whether the gates have biases.
        bidirectional: run the layer of every block in both directions of time.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean".
        input_dropout: rate of dropout on the input of the layer of every block, one draw for the whole sequence (Gal & Ghahramani,
            2016, arXiv:1512.05287).
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
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Attributes:
        encoder, blocks, norm, head: linear, the blocks (each with norm, rnn, glu, dropout), layer norm, linear.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LRUCell
        >>> from jaxrnn.models import SequenceModel
        >>> model = SequenceModel(LRUCell(r_min=0.9), 3, 16, 10, num_layers=2, last=True, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((4, 50, 3)), lengths=jnp.array([50, 20, 1, 7])).shape
        (4, 10)
    """

    __signature__ = ClassSignature()

    @checked()
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
        bias: bool = True,
        bidirectional: bool = False,
        merge: Literal["concat", "sum", "mean"] = "concat",
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
        rngs: nnx.Rngs,
    ):
        of_layers: dict[str, Any] = {
            "bias": bias, "bidirectional": bidirectional, "merge": merge, "input_dropout": input_dropout,
            "recurrent_dropout": recurrent_dropout, "zoneout": zoneout, "weight_dropout": weight_dropout,
            "learn_initial_state": learn_initial_state, "remat": remat, "truncate": truncate, "dtype": dtype,
            "param_dtype": param_dtype, "backend": backend,
        }  # fmt: skip
        blocks.check_options(
            type(self).__name__, cell, input_size=input_size, hidden_size=hidden_size, output_size=output_size,
            num_layers=num_layers, last=last, dropout=dropout, **of_layers,
        )  # fmt: skip
        make = partial(Recurrent, cell, hidden_size, hidden_size, **of_layers, rngs=rngs)
        self.blocks = nnx.data([_Block(make(), dropout, rngs) for _ in range(num_layers)])
        stack = self.blocks[0].rnn.stack
        dtypes = {"dtype": stack.dtype, "param_dtype": stack.param_dtype}
        self.encoder = nnx.Linear(input_size, hidden_size, **dtypes, rngs=rngs)
        self.norm = nnx.LayerNorm(hidden_size, **dtypes, rngs=rngs)
        self.head = nnx.Linear(hidden_size, output_size, **dtypes, rngs=rngs)
        self.last = last

    # fmt: off
    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: Literal[False] = False,
    ) -> Array: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: Literal[True],
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: bool = False,
    ) -> Any: ...

    # fmt: on
    @checked()
    def __call__(
        self,
        x: ArrayLike,
        *,
        state: Any = None,
        lengths: Lengths | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        return_state: bool = False,
    ) -> Any:
        """Predict from sequences (batch, time, input): (batch, time, output), zero where a step is not valid; or, with `last`,
        (batch, output).

        Args:
            x: the sequences; there may be several batch axes.
            state: where to start, as `return_state` or `step` gave it; `None` means the initial state.
            lengths, mask, reset: as of `jaxrnn.Recurrent`.
            return_state: return (output, state), the state being where the next chunk of the same sequences starts.
        """
        name = type(self).__name__
        valid = blocks.valid_steps(name, x, self.encoder.in_features, lengths, mask)
        starts = blocks.states(name, state, len(self.blocks))
        checks.flag(name, "return_state", return_state)
        runs = [partial(block, mask=valid, reset=reset) for block in self.blocks]
        x, ends = blocks.in_turn(runs, blocks.rowwise(self.encoder, blocks.zero_invalid(valid, x)), starts)
        if self.last:
            output = self.head(self.norm(blocks.at_last_valid(valid, x)))
        else:
            output = blocks.zero_invalid(valid, blocks.rowwise(lambda x: self.head(self.norm(x)), x))
        return (output, ends) if return_state else output

    @checked()
    def step(self, x: ArrayLike, state: Any = None, *, reset: ArrayLike | None = None) -> tuple[Array, Any]:
        """Run one step of a stream, (batch, input): (output, state). Step by step, outputs are those of a call on the whole.

        No dropout is drawn, not even in training mode.

        Args:
            x: the input, with any number of batch axes in front.
            state: the state of each block, as a step before or `return_state` gave it; `None` means the initial state.
            reset: True, or 1, where the state before this step is the initial state, (batch,).

        Raises:
            ValueError: the model is bidirectional.
        """
        name = f"{type(self).__name__}.step"
        blocks.check_step(name, x, self.blocks[0].rnn.stack, self.encoder.in_features, reset)
        starts = blocks.states(name, state, len(self.blocks))
        runs = [partial(block.step, reset=reset) for block in self.blocks]
        y, ends = blocks.in_turn(runs, self.encoder(jnp.asarray(x)), starts)
        return self.head(self.norm(y)), ends

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """The state that a call or a step starts from where it is given none; see `jaxrnn.Recurrent.initial_state`."""
        return tuple(block.rnn.initial_state(batch_shape) for block in self.blocks)
