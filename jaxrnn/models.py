"""Models: recurrent modules between linear layers. No arithmetic may live here."""

import jax.numpy as jnp
from flax import nnx

from jaxrnn import checks
from jaxrnn.nnx import GRU, LSTM, RNN
from jaxrnn.predictor import Predictor
from jaxrnn.sequence_model import SequenceModel as SequenceModel
from jaxrnn.synonyms import checked
from jaxrnn.typing import Backend, DTypeLike, Nonlinearity, Sizes

__all__ = ["GRUModel", "LSTMModel", "RNNModel", "SequenceModel"]


class RNNModel(Predictor):
    """Simple recurrent layers, see `RNN`, and a linear head that reads the last layer's states after the last valid step.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1, or a tuple with one for each layer.
        output_size: width of the prediction, at least 1.
        num_layers: layers, at least 1, each reading the outputs of the one before; by name only, since other
            libraries differ on whether it comes before `output_size`.
        nonlinearity: "tanh" or "relu".
        bias: whether the gates have biases.
        batch_first: whether `x` is (batch, time, …), Flax's layout and the default here, or (time, batch, …), PyTorch's default.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time; the head reads both.
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
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Attributes:
        rnn: the recurrent module. fc: the head, an `nnx.Linear`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn.models import RNNModel
        >>> RNNModel(input_size=10, hidden_size=20, num_layers=2, output_size=1, rngs=nnx.Rngs(0))
        RNNModel(
          (rnn): RNN(10, 20, num_layers=2)
          (fc): Linear(20, 1)
        )
    """

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        output_size: int,
        *,
        num_layers: int = 1,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        checks.size(type(self).__name__, "output_size", output_size)
        rnn = RNN(
            input_size, hidden_size, num_layers, nonlinearity=nonlinearity, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout,
            weight_dropout=weight_dropout, learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype,
            param_dtype=param_dtype, backend=backend, rngs=rngs,
        )  # fmt: skip
        super().__init__(rnn, output_size, rngs)


class LSTMModel(Predictor):
    """LSTM layers, see `LSTM`, and a linear head that reads the last layer's states after the last valid step.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1, or a tuple with one for each layer.
        output_size: width of the prediction, at least 1.
        num_layers: layers, at least 1, each reading the outputs of the one before; by name only, since other
            libraries differ on whether it comes before `output_size`.
        proj_size: if positive, project the output to this size, which is below `hidden_size`, see `ProjectedLSTMCell`; 0: don't.
        bias: whether the gates have biases.
        batch_first: whether `x` is (batch, time, …), Flax's layout and the default here, or (time, batch, …), PyTorch's default.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time; the head reads both.
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
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Attributes:
        rnn: the recurrent module. fc: the head, an `nnx.Linear`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.models import LSTMModel
        >>> model = LSTMModel(input_size=10, hidden_size=20, output_size=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> model(jnp.ones((5, 3, 10)), lengths=jnp.array([3, 1, 2, 3, 3])).shape
        (5, 2)
    """

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        output_size: int,
        *,
        num_layers: int = 1,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        checks.size(type(self).__name__, "output_size", output_size)
        rnn = LSTM(
            input_size, hidden_size, num_layers, proj_size=proj_size, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout,
            weight_dropout=weight_dropout, learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype,
            param_dtype=param_dtype, backend=backend, rngs=rngs,
        )  # fmt: skip
        super().__init__(rnn, output_size, rngs)


class GRUModel(Predictor):
    """GRU layers, see `GRU`, and a linear head that reads the last layer's states after the last valid step.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1, or a tuple with one for each layer.
        output_size: width of the prediction, at least 1.
        num_layers: layers, at least 1, each reading the outputs of the one before; by name only, since other
            libraries differ on whether it comes before `output_size`.
        bias: whether the gates have biases.
        batch_first: whether `x` is (batch, time, …), Flax's layout and the default here, or (time, batch, …), PyTorch's default.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time; the head reads both.
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
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Attributes:
        rnn: the recurrent module. fc: the head, an `nnx.Linear`.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn.models import GRUModel
        >>> GRUModel(input_size=10, hidden_size=20, output_size=2, rngs=nnx.Rngs(0))(jnp.ones((5, 3, 10))).shape
        (5, 2)
    """

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        output_size: int,
        *,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        checks.size(type(self).__name__, "output_size", output_size)
        rnn = GRU(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout, bidirectional=bidirectional,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype, param_dtype=param_dtype,
            backend=backend, rngs=rngs,
        )  # fmt: skip
        super().__init__(rnn, output_size, rngs)
