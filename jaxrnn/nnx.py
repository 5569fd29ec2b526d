"""The Flax NNX modules of `torch.nn`: RNN, LSTM, GRU. No arithmetic may live here."""

import jax.numpy as jnp
from flax import nnx

from jaxrnn import calling
from jaxrnn.cells import GRUCell
from jaxrnn.nnx_layers import Recurrent as Recurrent
from jaxrnn.nnx_layers import params_of as params_of
from jaxrnn.synonyms import checked
from jaxrnn.typing import Alone, Backend, DTypeLike, Merge, Nonlinearity, Sizes


class RNN(Recurrent[Alone]):
    """Layers of the simple recurrent cell, `torch.nn.RNN`; see `RNNCell` for the equation, `Recurrent` for the attributes.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1; or a tuple with one for each layer: then states are nested,
            `[layer][direction]`.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        nonlinearity: "tanh" or "relu".
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean"; "none" keeps the directions apart in
            every layer, and the output is (forward, backward).
        residual: add the input of each layer to its output, from the second layer on. Not together with `skip_connections`.
        skip_connections: every layer also reads the input of the first, and the output holds the outputs of all layers (Graves,
            2013, arXiv:1308.0850, section 2).
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
        output_only: a call gives the output alone, for `nnx.Sequential`, which would pass h_n on to the next layer.
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import RNN
        >>> output, h_n = RNN(3, 5, num_layers=2, nonlinearity="relu", rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))
        >>> output.shape, h_n.shape
        ((4, 7, 5), (2, 4, 5))
    """

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        num_layers: int = 1,
        *,
        nonlinearity: Nonlinearity = "tanh",
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: Merge = "concat",
        residual: bool = False,
        skip_connections: bool = False,
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
        output_only: Alone = False,
        rngs: nnx.Rngs,
    ):
        cell = calling.rnn_cell(type(self).__name__, nonlinearity)
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, merge=merge, residual=residual, skip_connections=skip_connections,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype, param_dtype=param_dtype,
            backend=backend, output_only=output_only, rngs=rngs,
        )  # fmt: skip


class LSTM(Recurrent[Alone]):
    """Layers of long short-term memory, `torch.nn.LSTM`; see `LSTMCell` for the equations, `Recurrent` for the attributes.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1; or a tuple with one for each layer: then states are nested,
            `[layer][direction]`.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        proj_size: if positive, project the output to this size, which is below `hidden_size`, see `ProjectedLSTMCell`; 0: don't.
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean"; "none" keeps the directions apart in
            every layer, and the output is (forward, backward).
        residual: add the input of each layer to its output, from the second layer on. Not together with `skip_connections`.
        skip_connections: every layer also reads the input of the first, and the output holds the outputs of all layers (Graves,
            2013, arXiv:1308.0850, section 2).
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
        output_only: a call gives the output alone, for `nnx.Sequential`, which would pass h_n on to the next layer.
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import LSTM
        >>> output, (h_n, c_n) = LSTM(3, 5, proj_size=2, bidirectional=True, rngs=nnx.Rngs(0))(jnp.ones((4, 7, 3)))
        >>> output.shape, h_n.shape, c_n.shape
        ((4, 7, 4), (2, 4, 2), (2, 4, 5))
    """

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        num_layers: int = 1,
        *,
        proj_size: int = 0,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: Merge = "concat",
        residual: bool = False,
        skip_connections: bool = False,
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
        output_only: Alone = False,
        rngs: nnx.Rngs,
    ):
        cell = calling.lstm_cell(type(self).__name__, hidden_size, proj_size)
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, merge=merge, residual=residual, skip_connections=skip_connections,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype, param_dtype=param_dtype,
            backend=backend, output_only=output_only, rngs=rngs,
        )  # fmt: skip


class GRU(Recurrent[Alone]):
    """Layers of the gated recurrent unit, `torch.nn.GRU`; see `GRUCell` for the equations, `Recurrent` for the attributes.

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1; or a tuple with one for each layer: then states are nested,
            `[layer][direction]`.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act in training mode, in
            which a module begins, and not after `eval()`.
        bidirectional: run every layer in both directions of time.
        merge: how the outputs of the two directions are combined: "concat", "sum" or "mean"; "none" keeps the directions apart in
            every layer, and the output is (forward, backward).
        residual: add the input of each layer to its output, from the second layer on. Not together with `skip_connections`.
        skip_connections: every layer also reads the input of the first, and the output holds the outputs of all layers (Graves,
            2013, arXiv:1308.0850, section 2).
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
        output_only: a call gives the output alone, for `nnx.Sequential`, which would pass h_n on to the next layer.
        rngs: the source of the parameters (stream "params") and, where a rate is above 0, of draws ("dropout"); a stream "default"
            will do for both.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range.

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

    @checked()
    def __init__(
        self,
        input_size: int,
        hidden_size: Sizes,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = True,
        dropout: float = 0.0,
        bidirectional: bool = False,
        merge: Merge = "concat",
        residual: bool = False,
        skip_connections: bool = False,
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
        output_only: Alone = False,
        rngs: nnx.Rngs,
    ):
        cell = GRUCell()
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, merge=merge, residual=residual, skip_connections=skip_connections,
            input_dropout=input_dropout, recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout,
            learn_initial_state=learn_initial_state, remat=remat, truncate=truncate, dtype=dtype, param_dtype=param_dtype,
            backend=backend, output_only=output_only, rngs=rngs,
        )  # fmt: skip
