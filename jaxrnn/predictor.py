"""What the models of a recurrent module and a head share. No arithmetic may live here."""

from typing import Any

from flax import nnx
from jax import Array

from jaxrnn import calling
from jaxrnn.nnx_layers import Recurrent
from jaxrnn.synonyms import ClassSignature, checked
from jaxrnn.typing import ArrayLike, BatchShape, Lengths


class Predictor(nnx.Module):
    """A recurrent module, and a linear layer that reads its last layer's states after the last valid step."""

    __signature__ = ClassSignature()

    def __init__(self, rnn: Recurrent, output_size: int, rngs: nnx.Rngs):
        dtypes = {"dtype": rnn.stack.dtype, "param_dtype": rnn.stack.param_dtype}
        self.rnn = rnn
        self.fc = nnx.Linear(calling.summary_size(rnn.stack), output_size, **dtypes, rngs=rngs)

    @checked()
    def __call__(
        self,
        x: ArrayLike,
        *,
        h_0: Any = None,
        lengths: Lengths | None = None,
        mask: ArrayLike | None = None,
        reset: ArrayLike | None = None,
    ) -> Array:
        """Predict from sequences (batch, time, input): (batch, output).

        With two directions the head reads the forward state after the last valid step and the backward state after the
        first: what each direction knows once it has read all.

        Args:
            x, h_0, lengths, mask, reset: as of `jaxrnn.Recurrent`.
        """
        _, h_n = self.rnn(x, h_0=h_0, lengths=lengths, mask=mask, reset=reset)
        return self.fc(calling.summary(self.rnn.stack, h_n))

    @checked()
    def step(self, x: ArrayLike, state: Any = None, *, reset: ArrayLike | None = None) -> tuple[Array, Any]:
        """Predict after one more step of a stream: (batch, input) to (output, state); what a call gives for all steps so far.

        Args:
            x, state, reset: as of `jaxrnn.Recurrent.step`.

        Raises:
            ValueError: the model is bidirectional.
        """
        y, state = self.rnn.step(x, state, reset=reset)
        return self.fc(y), state

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """See `jaxrnn.Recurrent.initial_state`."""
        return self.rnn.initial_state(batch_shape)

    def __repr__(self):
        head = f"Linear({self.fc.in_features}, {self.fc.out_features})"
        return f"{type(self).__name__}(\n  (rnn): {self.rnn!r}\n  (fc): {head}\n)"

    __str__ = __repr__
