"""The Linen twin of `models.SequenceModel`. No arithmetic may live here."""

from functools import partial
from typing import Any, Literal, overload

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxrnn import blocks, checks
from jaxrnn.cells import Cell
from jaxrnn.linen_layers import Checked, check_bound, either
from jaxrnn.linen_recurrent import Recurrent
from jaxrnn.synonyms import checked
from jaxrnn.typing import ArrayLike, Backend, BatchShape, DTypeLike, Lengths

OF_MODEL = ("input_size", "hidden_size", "output_size", "num_layers", "last", "dropout")
"""Fields that only the model has."""
OF_LAYERS = (
    "bias", "bidirectional", "merge", "input_dropout", "recurrent_dropout", "zoneout", "weight_dropout", "learn_initial_state",
    "remat", "truncate", "dtype", "param_dtype", "backend",
)  # fmt: skip
"""Fields that the layers of the blocks have too."""


class _Options(Checked, kw_only=True):
    """The fields of a `SequenceModel` that go by name."""

    num_layers: int = 2
    last: bool = False
    dropout: float = 0.0
    bias: bool = True
    bidirectional: bool = False
    merge: Literal["concat", "sum", "mean"] = "concat"
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
    deterministic: bool | None = None


class SequenceModel(_Options):
    """Residual blocks of a recurrence and a gated linear unit, as `jaxrnn.models.SequenceModel`, which has the equations.

    With a batch of one sequence, intermediates that Linen captures lack the batch axis.

    Args:
        cell: the recurrence, one layer in each block, see `jaxrnn.cells.CELLS`.
        input_size: width of the input, at least 1.
        hidden_size: width of the blocks, and hidden size of the cell, at least 1.
        output_size: width of the prediction, at least 1.
        num_layers: blocks, at least 1.
        last: predict at the last valid step only (a class, a score), instead of at every step.
        dropout: rate, from 0 to 1, of both dropouts of a block. This rate and those below act with deterministic=False.
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
        deterministic: whether nothing is drawn, where a call does not say so. Default: True.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LRUCell
        >>> from jaxrnn.linen import SequenceModel
        >>> model = SequenceModel(LRUCell(r_min=0.9), 3, 16, 10, num_layers=2, last=True)
        >>> model.init_with_output(jax.random.key(0), jnp.ones((4, 50, 3)))[0].shape
        (4, 10)
    """

    cell: Cell
    input_size: int
    hidden_size: int
    output_size: int

    def __post_init__(self):
        super().__post_init__()
        name, options = type(self).__name__, (*OF_MODEL, *OF_LAYERS)
        either(name, self.deterministic, None)
        blocks.check_options(name, self.cell, **{option: getattr(self, option) for option in options})

    def setup(self) -> None:
        options = {option: getattr(self, option) for option in OF_LAYERS}
        rnns = [Recurrent(self.cell, self.hidden_size, self.hidden_size, **options) for _ in range(self.num_layers)]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder, self.head = nn.Dense(self.hidden_size, **dtypes), nn.Dense(self.output_size, **dtypes)
        self.norm, self.rnns = nn.LayerNorm(**dtypes), rnns
        self.norms = [nn.LayerNorm(**dtypes) for _ in rnns]
        self.glus = [nn.Dense(2 * self.hidden_size, **dtypes) for _ in rnns]
        self.drop = nn.Dropout(self.dropout)

    # fmt: off
    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: Literal[False] = False, deterministic: bool | None = None,
    ) -> Array: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: Literal[True], deterministic: bool | None = None,
    ) -> tuple[Array, Any]: ...

    @overload
    def __call__(
        self, x: ArrayLike, *, state: Any = None, lengths: Lengths | None = None, mask: ArrayLike | None = None,
        reset: ArrayLike | None = None, return_state: bool = False, deterministic: bool | None = None,
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
        deterministic: bool | None = None,
    ) -> Any:
        """As `jaxrnn.models.SequenceModel.__call__`; with deterministic=False, draws come from the stream "dropout"."""
        check_bound(self, "", "x")
        name = type(self).__name__
        deterministic = either(name, self.deterministic, deterministic)
        valid = blocks.valid_steps(name, x, self.input_size, lengths, mask)
        starts = blocks.states(name, state, self.num_layers)
        checks.flag(name, "return_state", return_state)
        run = lambda rnn, x, start: rnn(x, h_0=start, mask=valid, reset=reset, deterministic=deterministic)
        drop = partial(self.drop, deterministic=deterministic)
        x, ends = blocks.in_turn(self._blocks(run, drop), blocks.rowwise(self.encoder, blocks.zero_invalid(valid, x)), starts)
        if self.last:
            output = self.head(self.norm(blocks.at_last_valid(valid, x)))
        else:
            output = blocks.zero_invalid(valid, blocks.rowwise(lambda x: self.head(self.norm(x)), x))
        return (output, ends) if return_state else output

    def _blocks(self, run, drop):
        """Each block, its layer run by `run`, as a function (x, start) -> (x, end)."""

        def block(norm, rnn, glu, x, start):
            y, end = run(rnn, blocks.rowwise(norm, x), start)
            return blocks.residual(x, y, glu, drop), end

        return [partial(block, *parts) for parts in zip(self.norms, self.rnns, self.glus, strict=True)]

    @checked()
    def step(self, x: ArrayLike, state: Any = None, *, reset: ArrayLike | None = None) -> tuple[Array, Any]:
        """As `jaxrnn.models.SequenceModel.step`."""
        check_bound(self, "step", "x, state")
        name = f"{type(self).__name__}.step"
        blocks.check_step(name, x, self.rnns[0].stack, self.input_size, reset)
        starts = blocks.states(name, state, self.num_layers)
        one_step = lambda rnn, x, start: rnn.step(x, start, reset=reset)
        x, ends = blocks.in_turn(self._blocks(one_step, lambda y: y), self.encoder(x), starts)  # nothing is drawn
        return self.head(self.norm(x)), ends

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """As `jaxrnn.models.SequenceModel.initial_state`."""
        check_bound(self, "initial_state", "batch_shape")
        return tuple(rnn.initial_state(batch_shape) for rnn in self.rnns)
