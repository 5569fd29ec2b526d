"""One recurrent node of ONNX as the cells and parameters that it stands for. The gate orders of ONNX live here; graphs, names and
files do not."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrnn.cells import Cell, ChungGRUCell, CoupledLSTMCell, GRUCell, LSTMCell, PeepholeLSTMCell, RNNCell
from jaxrnn.cells.lstm_variants import PeepholeParams
from jaxrnn.engine import unroll
from jaxrnn.interop import _checks, _gates
from jaxrnn.interop._onnx_cells import FORMULAS, GIVEN, RELU, SIGMOID, TANH, Activation, OnnxGRUCell, OnnxLSTMCell, OnnxRNNCell

ORDERS = {"RNN": ("h",), "LSTM": ("i", "o", "f", "g"), "GRU": ("z", "r", "n")}
PEEPHOLES = ("i", "o", "f")
DEFAULTS = {"RNN": (TANH,), "LSTM": (SIGMOID, TANH, TANH), "GRU": (SIGMOID, TANH)}
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
CHOICES = {"direction": tuple(DIRECTIONS), "layout": (0, 1), "input_forget": (0, 1), "linear_before_reset": (0, 1)}
ATTRIBUTES = ("hidden_size", "activations", "activation_alpha", "activation_beta", "clip", "direction", "layout")
MORE_ATTRIBUTES = {"RNN": (), "LSTM": ("input_forget",), "GRU": ("linear_before_reset",)}
CELLS = (
    RNNCell, LSTMCell, PeepholeLSTMCell, CoupledLSTMCell, GRUCell, ChungGRUCell, OnnxRNNCell, OnnxLSTMCell, OnnxGRUCell,
)  # fmt: skip


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "initial", "sequence_lens"],
    meta_fields=["name", "cells", "reverse", "layout"],
)
@dataclass(frozen=True)
class OnnxNode:
    """A recurrent node of an ONNX graph, as a function of what it is fed; a pytree whose leaves are its weights.

    Args:
        name: in the graph.
        cells: the cell of each direction.
        reverse: for each direction, whether it runs backward.
        layout: 0: X is (time, batch, input); 1: (batch, time, input).
        params: the parameters of each direction.
        initial: the initial state of each direction, with batch axis, if the graph holds one; else None.
        sequence_lens: the lengths, if the graph holds them; else None.
    """

    name: str
    cells: tuple[Cell, ...]
    reverse: tuple[bool, ...]
    layout: int
    params: tuple[Any, ...]
    initial: tuple[Any, ...] | None = None
    sequence_lens: Any = None

    def __call__(self, x: Any, sequence_lens: Any = None, initial_h: Any = None, initial_c: Any = None) -> tuple[Array, ...]:
        """Compute Y, Y_h and, for an LSTM, Y_c, in ONNX's layout of them.

        What the graph itself holds of lengths and initial states is taken where none is given. Where a length is 0, Y_h is the
        initial state; the operator's definition leaves it open, and onnxruntime gives 0.

        Raises:
            ValueError: a shape does not fit.
        """
        self._check(x, initial_h, initial_c)
        if sequence_lens is None and self.sequence_lens is not None:
            sequence_lens = jnp.broadcast_to(self.sequence_lens, jnp.shape(x)[0 if self.layout else 1])
        swap = (lambda a: jnp.swapaxes(a, 0, 1)) if self.layout else (lambda a: a)
        xs, lengths = swap(x), None if sequence_lens is None else jnp.asarray(sequence_lens)
        given = [None if a is None else swap(a) for a in (initial_h, initial_c)]
        finals, outputs = [], []
        for d, (cell, params, reverse) in enumerate(zip(self.cells, self.params, self.reverse, strict=True)):
            state = None if self.initial is None else self.initial[d]
            if any(a is not None for a in given):
                zeros = jnp.zeros_like(next(a[d] for a in given if a is not None))
                start = cell.State(*(zeros for _ in cell.State._fields)) if state is None else state
                pairs = zip(start, given, strict=False)
                state = cell.State(*(old if new is None else new[d] for old, new in pairs))
            if state is not None:
                state = jax.tree.map(lambda s: jnp.broadcast_to(s, (xs.shape[1], s.shape[-1])), state)
            final, ys = unroll(cell, params, xs, state, lengths=lengths, reverse=reverse)
            finals.append([s.astype(ys.dtype) for s in final])
            outputs.append(ys)
        y = jnp.stack(outputs, axis=1)
        y = jnp.moveaxis(y, 2, 0) if self.layout else y
        return y, *(swap(jnp.stack(field)) for field in zip(*finals, strict=True))

    def _check(self, x, initial_h, initial_c):
        axes = "batch, time" if self.layout else "time, batch"
        if jnp.ndim(x) != 3:
            raise ValueError(f"OnnxNode: `x` should have the axes ({axes}, input), got shape {jnp.shape(x)}.")
        sizes = (len(self.cells), jnp.shape(x)[0 if self.layout else 1])
        wanted = (*(sizes[::-1] if self.layout else sizes), self.params[0].w_hh.shape[0])
        for name, a in zip(("initial_h", "initial_c"), (initial_h, initial_c), strict=True):
            if a is not None and name[-1] not in self.cells[0].State._fields:
                raise ValueError(f"OnnxNode: `{name}` should be None, since node {self.name!r} is no LSTM, got {jnp.shape(a)}.")
            if a is not None and jnp.shape(a) != wanted:
                raise ValueError(f"OnnxNode: `{name}` of node {self.name!r} should have shape {wanted}, got {jnp.shape(a)}.")


# Reading ---------------------------------------------------------------------------------------------------------------


def check(caller: str, name: str, op: str, attributes: dict[str, Any], arrays: dict[str, np.ndarray]):
    """The attributes are the operator's, and the weights have the shapes that follow from them."""
    _check_attributes(caller, name, op, attributes)
    _check_shapes(caller, name, op, attributes, _weights_of(arrays), len(DIRECTIONS[attributes.get("direction", "forward")]))


def _weights_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {slot: a for slot in ("W", "R", "B", "P") if (a := arrays.get(slot)) is not None}


def read(caller: str, name: str, op: str, attributes: dict[str, Any], arrays: dict[str, np.ndarray]) -> OnnxNode:
    """A node, from its attributes and the arrays of its constant inputs, which fit: `check` and its caller have said so."""
    reverse = DIRECTIONS[attributes.get("direction", "forward")]
    weights = _weights_of(arrays)
    activations = _activations(caller, name, op, attributes, len(reverse))
    clip = attributes.get("clip")
    if clip is not None and not (isinstance(clip, float) and clip > 0):
        raise ValueError(f"{caller}: the attribute `clip` of node {name!r} should be positive, got {clip!r}.")
    cells = tuple(_cell(op, a, clip, attributes, "P" in weights) for a in activations)
    params = tuple(_params(cell, op, {slot: a[d] for slot, a in weights.items()}) for d, cell in enumerate(cells))
    layout, lengths = attributes.get("layout", 0), arrays.get("sequence_lens")
    initial = [arrays.get(slot) for slot in ("initial_h", "initial_c")[: len(cells[0].State._fields)]]
    if not any(a is not None and a.any() for a in initial):
        return OnnxNode(name, cells, reverse, layout, params, sequence_lens=lengths)
    some = next(a for a in initial if a is not None)
    initial = [np.zeros_like(some) if a is None else a for a in initial]
    initial = [np.swapaxes(a, 0, 1) if layout else a for a in initial]
    states = tuple(cell.State(*(jnp.array(a[d]) for a in initial)) for d, cell in enumerate(cells))
    return OnnxNode(name, cells, reverse, layout, params, states, lengths)


def _check_attributes(caller, name, op, attributes):
    """Attributes are the operator's, and those with few values have one of them; the others are checked where they are used."""
    known = ATTRIBUTES + MORE_ATTRIBUTES[op]
    for attribute, value in attributes.items():
        if attribute not in known:
            raise ValueError(f"{caller}: node {name!r} ({op}) should have attributes among {', '.join(known)}, got {attribute!r}.")
        if attribute in CHOICES and value not in CHOICES[attribute]:
            choices = " or ".join(map(repr, CHOICES[attribute]))
            raise ValueError(f"{caller}: the attribute `{attribute}` of node {name!r} should be {choices}, got {value!r}.")


def _check_shapes(caller, name, op, attributes, weights, directions: int):
    for slot in ("W", "R"):
        if slot not in weights:
            raise ValueError(f"{caller}: node {name!r} should have weights {slot}, got none.")
    for slot, a in weights.items():
        _checks.check_dtype(caller, f"{name}.{slot}", a)
    got = {slot: a.shape for slot, a in weights.items()}
    if len(got["W"]) != 3 or len(got["R"]) != 3:
        raise ValueError(f"{caller}: the weights W and R of node {name!r} should have three axes, got {got}.")
    if len({a.dtype for a in weights.values()}) > 1:
        dtypes = {slot: str(a.dtype) for slot, a in weights.items()}
        raise TypeError(f"{caller}: the weights of node {name!r} should have one dtype, got {dtypes}.")
    hidden = attributes.get("hidden_size", weights["R"].shape[-1])
    if not isinstance(hidden, int):
        raise ValueError(f"{caller}: the attribute `hidden_size` of node {name!r} should be a whole number, got {hidden!r}.")
    gates, width = len(ORDERS[op]), weights["W"].shape[-1]
    shapes = {
        "W": (directions, gates * hidden, width),
        "R": (directions, gates * hidden, hidden),
        "B": (directions, 2 * gates * hidden),
        "P": (directions, 3 * hidden),
    }
    wanted = {slot: shapes[slot] for slot in weights}
    if got != wanted:
        sizes = f"{op} of {directions} direction(s), hidden size {hidden}"
        raise ValueError(f"{caller}: the weights of node {name!r} ({sizes}) should have shapes {wanted}, got {got}.")


def _activations(caller, name, op, attributes, directions: int) -> list[tuple[Activation, ...]]:
    """The activations of each direction. Alphas and betas belong, in order, to those activations that have one."""
    default = DEFAULTS[op]
    names = attributes.get("activations") or [a.name for a in default] * directions
    known = {known.lower(): known for known in FORMULAS}
    for wrong in (n for n in names if str(n).lower() not in known):
        raise ValueError(f"{caller}: the activations of node {name!r} should be among {', '.join(FORMULAS)}, got {wrong!r}.")
    if len(names) != len(default) * directions:
        wanted = f"{len(default)} for each of {directions} direction(s)"
        raise ValueError(f"{caller}: node {name!r} should have {wanted} activations, got {list(names)}.")
    values = {letter: list(attributes.get(f"activation_{letter}", ())) for letter in ("alpha", "beta")}

    def take(letter, spelled, default):
        value = default if default is None or not values[letter] else float(values[letter].pop(0))
        if value is GIVEN:
            raise ValueError(
                f"{caller}: node {name!r} should have an `activation_{letter}` for its {spelled}, which has no default, got none."
            )
        return value

    found = []
    for spelled in names:
        _, alpha, beta = FORMULAS[known[spelled.lower()]]
        found.append(Activation(known[spelled.lower()], take("alpha", spelled, alpha), take("beta", spelled, beta)))
    for letter, left in values.items():
        if left:
            having = sum(getattr(a, letter) is not None for a in found)
            message = f"should have at most {having} entries, one for each of its activations that has one"
            raise ValueError(f"{caller}: `activation_{letter}` of node {name!r} {message}, got {left} beyond.")
    return [tuple(found[d * len(default) : (d + 1) * len(default)]) for d in range(directions)]


def _cell(op, activations, clip, attributes, peepholes: bool) -> Cell:
    """The public cell that computes the node, or one made for it."""
    plain = activations == DEFAULTS[op] and clip is None
    if op == "RNN":
        if clip is None and activations in ((TANH,), (RELU,)):
            return RNNCell(nonlinearity="tanh" if activations == (TANH,) else "relu")
        return OnnxRNNCell(activations=activations, clip=clip)
    if op == "GRU":
        reset_after = bool(attributes.get("linear_before_reset", 0))
        if plain:
            return GRUCell() if reset_after else ChungGRUCell()
        return OnnxGRUCell(activations=activations, clip=clip, reset_after=reset_after)
    coupled = bool(attributes.get("input_forget", 0))
    if plain and not (coupled and peepholes):
        return PeepholeLSTMCell() if peepholes else CoupledLSTMCell() if coupled else LSTMCell()
    return OnnxLSTMCell(activations=activations, clip=clip, coupled=coupled, peepholes=peepholes)


def _params(cell: Cell, op: str, weights: dict[str, np.ndarray]):
    """The parameters of one direction, from W (gates * hidden, input), R, B (2 * gates * hidden) and P (3 * hidden)."""
    order, gates = ORDERS[op], cell.gates
    w_ih, w_hh = (_gates.split(weights[slot].T, order, gates) for slot in ("W", "R"))
    b_ih, b_hh = (_gates.split(b, order, gates) for b in np.split(weights["B"], 2)) if "B" in weights else (None, None)
    params = _gates.gate_params(w_ih, w_hh, b_ih, b_hh)
    if isinstance(cell, ChungGRUCell):
        params = _gates.flip_update_gate(params)
    if "P" in weights:
        params = PeepholeParams(*params, p=_gates.split(weights["P"], PEEPHOLES, ("i", "f", "o")))
    return jax.tree.map(jnp.array, params)
