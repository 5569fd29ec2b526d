"""Flax Linen modules: the same fields, call and bits as the NNX modules. No arithmetic may live here."""

from jaxrnn import calling
from jaxrnn.cells import Cell, GRUCell
from jaxrnn.linen_layers import Layers
from jaxrnn.linen_model import SequenceModel as SequenceModel
from jaxrnn.linen_recurrent import Recurrent as Recurrent
from jaxrnn.typing import Alone, Nonlinearity, Sizes

__all__ = ["GRU", "LSTM", "RNN", "Recurrent", "SequenceModel"]


class RNN(Layers[Alone]):
    """Layers of the simple recurrent cell, as `jaxrnn.RNN`; see `RNNCell` for the equation.

    Parameters are nested dicts of arrays, `params["layer_0"]["forward"]["w_ih"]`; a learned initial state is under "initial".

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
            with one layer it does nothing, and a warning says so. This rate and those below act with deterministic=False.
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
        output_only: a call gives the output alone, for `nn.Sequential`, which would pass h_n on to the next layer.
        deterministic: whether dropout and its kin are off where a call does not say: in `nn.Sequential`, under `nn.remat`. None
            means True: they are off.
        named_axes: whether each parameter is in a box with the names of its axes, `nn.LogicallyPartitioned`.
    """

    input_size: int
    hidden_size: Sizes
    num_layers: int = 1
    nonlinearity: Nonlinearity = "tanh"

    def describe_cell(self) -> Cell:
        return calling.rnn_cell(type(self).__name__, self.nonlinearity)


class LSTM(Layers[Alone]):
    """Layers of long short-term memory, as `jaxrnn.LSTM`; see `LSTMCell` for the equations.

    Parameters are nested dicts of arrays, `params["layer_0"]["forward"]["w_ih"]`; a learned initial state is under "initial".

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
            with one layer it does nothing, and a warning says so. This rate and those below act with deterministic=False.
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
        output_only: a call gives the output alone, for `nn.Sequential`, which would pass h_n on to the next layer.
        deterministic: whether dropout and its kin are off where a call does not say: in `nn.Sequential`, under `nn.remat`. None
            means True: they are off.
        named_axes: whether each parameter is in a box with the names of its axes, `nn.LogicallyPartitioned`.
    """

    input_size: int
    hidden_size: Sizes
    num_layers: int = 1
    proj_size: int = 0

    def describe_cell(self) -> Cell:
        return calling.lstm_cell(type(self).__name__, self.hidden_size, self.proj_size)


class GRU(Layers[Alone]):
    """Layers of the gated recurrent unit, as `jaxrnn.GRU`; see `GRUCell` for the equations.

    Parameters are nested dicts of arrays, `params["layer_0"]["forward"]["w_ih"]`; a learned initial state is under "initial".

    Args:
        input_size: width of the input, at least 1.
        hidden_size: hidden size of every layer, at least 1; or a tuple with one for each layer: then states are nested,
            `[layer][direction]`.
        num_layers: layers, at least 1, each reading the outputs of the one before.
        bias: whether the gates have biases.
        batch_first: whether `x` and the output are (batch, time, …), Flax's layout and the default here, or (time, batch, …),
            PyTorch's default. States are (layers * directions, batch, hidden) either way.
        dropout: rate, from 0 to 1, of dropout on the output of every layer but the last, drawn afresh at each step, as PyTorch's;
            with one layer it does nothing, and a warning says so. This rate and those below act with deterministic=False.
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
        output_only: a call gives the output alone, for `nn.Sequential`, which would pass h_n on to the next layer.
        deterministic: whether dropout and its kin are off where a call does not say: in `nn.Sequential`, under `nn.remat`. None
            means True: they are off.
        named_axes: whether each parameter is in a box with the names of its axes, `nn.LogicallyPartitioned`.
    """

    input_size: int
    hidden_size: Sizes
    num_layers: int = 1

    def describe_cell(self) -> Cell:
        return GRUCell()
