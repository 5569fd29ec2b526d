"""Models: a recurrent module, its output at the last valid step, a linear head. Nothing else."""

from typing import Any, ClassVar

from flax import nnx

from jaxrnn import calling, checks
from jaxrnn.nnx import GRU, LSTM, RNN


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
        for option, plain in (("merge", "concat"), ("residual", False), ("skip_connections", False)):
            if getattr(stack, option) != plain:
                came = f"{option}={getattr(stack, option)!r}"
                raise ValueError(
                    f"{name}: `{option}` should be {plain!r}, since the head reads the last layer's states, got {came}.\n"
                    f"Put an nnx.Linear on the output of a module with {came} instead."
                )
        dtypes = {"dtype": stack.dtype, "param_dtype": stack.param_dtype}
        self.fc = nnx.Linear(calling.summary_size(stack), output_size, **dtypes, rngs=rngs)

    def __call__(self, x, h_0=None, *, lengths=None, mask=None, reset=None):
        """Predict from sequences (batch, time, input): (batch, output).

        With two directions the head reads the forward state after the last valid step and the backward state after the
        first: what each direction knows once it has read all.
        """
        _, h_n = self.rnn(x, h_0, lengths=lengths, mask=mask, reset=reset)
        return self.fc(calling.summary(self.rnn.stack, h_n))

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
