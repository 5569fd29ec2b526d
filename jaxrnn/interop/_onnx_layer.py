"""The layers of a module as recurrent nodes of ONNX: operators, attributes and weights. Graphs, names and files are not known
here."""

from typing import Any

import numpy as np

from jaxrnn.cells import Cell, ChungGRUCell, CoupledLSTMCell, GRUCell, LSTMCell, RNNCell
from jaxrnn.cells.lstm_variants import PeepholeParams
from jaxrnn.interop import _checks, _gates
from jaxrnn.interop._onnx_cells import RELU, SIGMOID, TANH, Activation, OnnxGRUCell, OnnxLSTMCell, OnnxRNNCell
from jaxrnn.interop._onnx_node import CELLS, DEFAULTS, ORDERS, PEEPHOLES

ACTIVATIONS = {
    "tanh": TANH,
    "sigmoid": SIGMOID,
    "relu": RELU,
    "hard_sigmoid": Activation("HardSigmoid", 1 / 6, 0.5),
    "hard_sigmoid_keras2": Activation("HardSigmoid", 0.2, 0.5),
    "elu": Activation("Elu", 1.0),
    "softplus": Activation("Softplus"),
    "softsign": Activation("Softsign"),
    "linear": Activation("Affine", 1.0, 0.0),
}
"""Those of `jaxrnn.cells.activations` that ONNX has."""
ODD = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2")  # φ(−x) = 1 − φ(x)


def write(caller: str, cell: Cell, params: tuple) -> tuple[str, dict[str, Any], dict[str, np.ndarray]]:
    """The operator, attributes and weights of a layer, from the NumPy parameters of its directions."""
    names = dict.fromkeys(("nonlinearity", "activation", "recurrent_activation"), tuple(ACTIVATIONS))
    if isinstance(cell, ChungGRUCell):
        names["recurrent_activation"] = ODD  # z takes the candidate, and keeps the old state in ONNX
    _checks.check_cell(caller, cell, CELLS, "ONNX", **names)
    op, activations, attributes = _operator(cell)
    attributes["hidden_size"] = params[0].w_ih.shape[-1]
    if len(params) == 2:
        attributes["direction"] = "bidirectional"
    clip = getattr(cell, "clip", None)
    if clip is not None:
        attributes["clip"] = float(clip)
    if activations != DEFAULTS[op]:
        every = activations * len(params)
        attributes["activations"] = [a.name for a in every]
        for letter in ("alpha", "beta"):
            values = [float(v) for a in every if (v := getattr(a, letter)) is not None]
            attributes |= {f"activation_{letter}": values} if values else {}
    return op, attributes, {slot: np.stack(a) for slot, a in _weights(cell, op, params).items()}


def _operator(cell: Cell) -> tuple[str, tuple[Activation, ...], dict[str, Any]]:
    match cell:
        case RNNCell(nonlinearity=φ):
            return "RNN", _named(φ), {}
        case OnnxRNNCell():
            return "RNN", cell.activations, {}
        case GRUCell(activation=φ, recurrent_activation=σ):
            return "GRU", _named(σ, φ), {"linear_before_reset": 1}
        case ChungGRUCell(activation=φ, recurrent_activation=σ):
            return "GRU", _named(σ, φ), {}
        case OnnxGRUCell():
            return "GRU", cell.activations, {"linear_before_reset": 1} if cell.reset_after else {}
        case OnnxLSTMCell():
            return "LSTM", cell.activations, {"input_forget": 1} if cell.coupled else {}
        case LSTMCell(activation=φ, recurrent_activation=σ):
            return "LSTM", _named(σ, φ, φ), {}
        case _:
            return "LSTM", DEFAULTS["LSTM"], {"input_forget": 1} if isinstance(cell, CoupledLSTMCell) else {}


def _named(*names: str) -> tuple[Activation, ...]:
    return tuple(ACTIVATIONS[name] for name in names)


def _weights(cell: Cell, op: str, params: tuple) -> dict[str, list[Any]]:
    """For each input of the node, the arrays of its directions."""
    found: dict[str, list[Any]] = {}
    for p in params:
        p = _gates.flip_update_gate(p) if isinstance(cell, ChungGRUCell) else p

        def rows(a):  # gates that the cell does not have are there, and not read
            blocks = {gate: a[..., k, :] for k, gate in enumerate(cell.gates)}
            zeros = np.zeros_like(a[..., 0, :])
            return np.concatenate([blocks.get(gate, zeros) for gate in ORDERS[op]], axis=-1).T

        found.setdefault("W", []).append(rows(p.w_ih))
        found.setdefault("R", []).append(rows(p.w_hh))
        if p.b_ih is not None:
            found.setdefault("B", []).append(np.concatenate([rows(p.b_ih), rows(p.b_hh)]))
        if isinstance(p, PeepholeParams):
            found.setdefault("P", []).append(_gates.join(p.p, ("i", "f", "o"), PEEPHOLES))
    return found
