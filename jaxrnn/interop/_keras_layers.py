"""What a recurrent layer of Keras computes, by its configuration, and its weights as parameters of ours. No file is known here."""

import reprlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from jaxrnn import checks
from jaxrnn.cells import Cell, ChungGRUCell, GRUCell, LSTMCell, RNNCell
from jaxrnn.cells.activations import ACTIVATIONS
from jaxrnn.cells.base import GateParams
from jaxrnn.interop import _checks, _gates

ORDERS = {RNNCell: ("h",), LSTMCell: ("i", "f", "g", "o"), GRUCell: ("z", "r", "n"), ChungGRUCell: ("z", "r", "n")}
NAMES = ("kernel", "recurrent_kernel", "bias")
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", None: "none"}
CELLS = ("SimpleRNNCell", "LSTMCell", "GRUCell")
LAYERS = ("SimpleRNN", "LSTM", "GRU", "RNN", "Bidirectional")
CUDNN = ("CuDNNLSTM", "CuDNNGRU")
PACKAGES = ("keras", "tf_keras", "tensorflow")
SYMMETRIC = ("sigmoid", "hard_sigmoid", "hard_sigmoid_keras2")
"""The functions of which f(−a) = 1 − f(a), so that a gate can take the other sign."""

_CHOICES = tuple(name for name in ACTIVATIONS if name != "hard_sigmoid_keras2")
_MERGING = {
    "mul": "forward * backward",
    "sum": "forward + backward",
    "ave": "(forward + backward) / 2",
    "concat": "jnp.concatenate([forward, backward], axis=-1)",
}


def short(value: Any) -> str:
    """What came, however large it is."""
    return reprlib.repr(value)


class CellSpec(NamedTuple):
    """One cell of Keras."""

    cell: Cell
    units: int
    bias: bool
    kind: str
    name: str | None


class Spec(NamedTuple):
    """What a layer computes: its cells, `[direction][depth]`, the names of its directions, and how their outputs merge."""

    cells: list[list[CellSpec]]
    names: list[str | None]
    merge_mode: str | None
    time_major: bool


class Layer(NamedTuple):
    """A recurrent layer, live or saved.

    Args:
        path: its name, "outer/inner" in a model within the model.
        where: what messages call it.
        entry: class_name and config as Keras writes them, or None where only weights are there.
        version: of the Keras that wrote it, its first number, if known.
        read: from the spec, or None without an entry, to its weights, `[direction][depth][array]`.
        key: what tells it from others of that name.
        names: (outer, …, inner), its own and those of the models and layers that it stands in; none without a model.
        holder: the class of a layer, other than a model, that it is a part of.
        graph: of the model.
    """

    path: str
    where: str
    entry: dict[str, Any] | None
    version: int | None
    read: Callable[[Any], list[list[list[np.ndarray]]]]
    key: Any = None
    names: tuple[str, ...] = ()
    holder: str | None = None
    graph: Any = None


# What it computes ------------------------------------------------------------------------------------------------------


def spec(caller: str, layer: Layer, go_backwards: bool = False, first: bool = True) -> Spec:
    """What a layer computes; or an error, where we have no counterpart.

    Args:
        go_backwards: what the first layer of a module should say; the others read the output of one, and turn no time round.
    """
    kind, config = class_and_config(caller, layer, layer.entry)
    if kind in CUDNN:
        hint = f"\nWith Keras 2, load its weights into a keras.layers.{kind[5:]} (load_weights converts them), and save that."
        raise ValueError(f"{caller}: {layer.where} should be a layer that any machine can run, got a {kind}.{hint}")
    merge_mode, parts = None, [layer.entry]
    if kind == "Bidirectional":
        merge_mode = _field(caller, layer, config, "merge_mode", str, type(None))
        parts = [_field(caller, layer, config, "layer", dict), config.get("backward_layer")]
        if parts[1] is None:  # Keras 2 writes it only where it was given
            forward_kind, forward = class_and_config(caller, layer, parts[0])
            backwards = not _field(caller, layer, forward, "go_backwards", bool)
            parts[1] = {**parts[0], "class_name": forward_kind, "config": {**forward, "go_backwards": backwards, "name": None}}
    cells, names, time_major = [], [], []
    for d, part in enumerate(parts):
        part_kind, part_config = class_and_config(caller, layer, part)
        if part_kind not in ("RNN", "SimpleRNN", "LSTM", "GRU", *CELLS, "StackedRNNCells"):
            raise ValueError(f"{caller}: {layer.where} should be made of RNN, SimpleRNN, LSTM or GRU, got {short(part_kind)}.")
        if part_kind not in (*CELLS, "StackedRNNCells"):
            _check_direction(caller, layer, part_config, go_backwards, first, d)
        cells.append([_cell_spec(caller, layer, *found) for found in _cell_entries(caller, layer, part_kind, part_config)])
        names.append(part_config.get("name"))
        time_major.append(part_config.get("time_major") is True)
    if len({tuple((one.cell, one.units, one.bias) for one in direction) for direction in cells}) > 1:
        got = [[_named(one) for one in direction] for direction in cells]
        rule = f"both directions of {layer.where} should have the same options, got {got[0]} and {got[1]}"
        hint = "Of the live layer, load the forward_layer alone, and the backward_layer alone with go_backwards=True."
        raise ValueError(f"{caller}: {rule}.\n{hint}")
    if len({(one.cell, one.bias) for one in cells[0]}) > 1:
        got = ", ".join(_named(one) for one in cells[0])
        hint = "\nLoad keras.layers.RNN(cell) for each of them, and call one module after the other."
        raise ValueError(f"{caller}: all cells of {layer.where} should be the same but for their sizes, got {got}.{hint}")
    return Spec(cells, names, merge_mode, any(time_major))


def merge_of(caller: str, layer: Layer, spec: Spec, asked: str | None, alone: bool) -> str | None:
    """How our stack merges the directions of a layer; None where there is one.

    Args:
        asked: the `merge` that the user wants. alone: whether the layer is all there is of the module.
    """
    if len(spec.cells) == 1:
        return None
    if spec.merge_mode is None and not alone:
        rule = f"`merge_mode` of {layer.where} should be one that gives one array, for several layers that read one another"
        raise ValueError(f"{caller}: {rule}, got None.")
    if asked == "none" and alone:
        return "none"  # the pair of outputs, from which whoever asked makes what Keras does
    way = _MERGING.get(str(spec.merge_mode))
    made = "" if way is None else f'\nPass merge="none" for this layer alone: forward, backward = module(x)[0]; output = {way}'
    if spec.merge_mode not in MERGES:
        choices = ", ".join(map(repr, MERGES))
        got = short(spec.merge_mode)
        raise ValueError(f"{caller}: `merge_mode` of {layer.where} should be one of {choices}, got {got}.{made}")
    if len(spec.cells[0]) > 1 and (spec.merge_mode is not None or not alone):
        got = f"{len(spec.cells[0])} that merge at the end only, by {spec.merge_mode!r}"
        raise ValueError(f"{caller}: each direction of {layer.where} should have one cell, got {got}.{made}")
    if asked not in (None, MERGES[spec.merge_mode]):
        choices = f"{MERGES[spec.merge_mode]!r}, as the layer's {spec.merge_mode!r}"
        raise ValueError(f"{caller}: `merge` for {layer.where} should be {choices}, got {asked!r}.")
    return MERGES[spec.merge_mode]


def class_and_config(caller: str, layer: Layer, entry: Any) -> tuple[str, dict[str, Any]]:
    """The class of Keras that an entry names, and its configuration."""
    kind = entry.get("class_name") if isinstance(entry, dict) else None
    config = entry.get("config") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or not isinstance(config, dict):
        raise ValueError(f"{caller}: {layer.where} should have `class_name` and `config`, got {short(entry)}.")
    if not is_own(entry):
        raise ValueError(f"{caller}: {layer.where} should be made of classes of Keras itself, got another {short(kind)}.")
    return kind, config


def is_own(entry: dict[str, Any]) -> bool:
    """Whether an entry of a configuration is of a class of Keras's; old files do not say the module."""
    return "module" not in entry or str(entry["module"]).split(".")[0] in PACKAGES


def _cell_entries(caller, layer, kind, config) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind and configuration of each cell, in their order."""
    if kind in ("SimpleRNN", "LSTM", "GRU", *CELLS):
        yield f"{kind.removesuffix('Cell')}Cell", config
        return
    if kind == "RNN":
        kind, config = class_and_config(caller, layer, _field(caller, layer, config, "cell", dict))
    inner = [(kind, config)]
    if kind == "StackedRNNCells":
        inner = [class_and_config(caller, layer, one) for one in _field(caller, layer, config, "cells", list)]
    for one, _ in inner:
        if one not in CELLS:
            raise ValueError(f"{caller}: the cells of {layer.where} should be among {', '.join(CELLS)}, got {short(one)}.")
    if not inner:
        raise ValueError(f"{caller}: {layer.where} should have at least one cell, got none.")
    yield from inner


def _cell_spec(caller: str, layer: Layer, kind: str, config: dict[str, Any]) -> CellSpec:
    units = _field(caller, layer, config, "units", int)
    if not 1 <= units < 2**31:
        raise ValueError(f"{caller}: `units` of {layer.where} should be at least 1 and below 2**31, got {short(units)}.")
    for option in ("dropout", "recurrent_dropout"):
        if config.get(option):
            message = f"`{option}`={short(config[option])} of {layer.where} does not come along: it acts in training only."
            warnings.warn(f"{caller}: {message}", UserWarning, stacklevel=checks.frames_to_the_user())
    bias, name = _field(caller, layer, config, "use_bias", bool), config.get("name")
    activation = _activation(caller, layer, config, "activation")
    if kind == "SimpleRNNCell":
        return CellSpec(RNNCell(nonlinearity=activation), units, bias, kind, name)
    made: type[Cell] = LSTMCell
    recurrent = _activation(caller, layer, config, "recurrent_activation")
    if kind == "GRUCell":
        missing_means_before = layer.version is not None and layer.version < 3 and "reset_after" not in config
        after = False if missing_means_before else _field(caller, layer, config, "reset_after", bool)
        made = GRUCell if after else ChungGRUCell
        if not after and recurrent not in SYMMETRIC:
            choices = "'sigmoid' or 'hard_sigmoid' with reset_after=False"
            got = f"{recurrent!r}, for which no weights of ChungGRUCell turn the update gate round"
            raise ValueError(f"{caller}: `recurrent_activation` of {layer.where} should be {choices}, got {got}.")
    return CellSpec(made(activation=activation, recurrent_activation=recurrent), units, bias, kind, name)


def _activation(caller: str, layer: Layer, config: dict[str, Any], option: str) -> Any:
    """Our name of an activation. Keras 3 calls another function "hard_sigmoid" than Keras 2 does."""
    if option not in config:
        _field(caller, layer, config, option)
    name = "linear" if config[option] is None else "silu" if config[option] == "swish" else config[option]
    if not isinstance(name, str) or name not in _CHOICES:
        choices = ", ".join(map(repr, _CHOICES))
        raise ValueError(f"{caller}: `{option}` of {layer.where} should be one of {choices}, got {short(config[option])}.")
    if name != "hard_sigmoid":
        return name
    if layer.version is None:
        rule = "come with the version of Keras that wrote it, as Keras 2 calls another function 'hard_sigmoid' than Keras 3"
        raise ValueError(f"{caller}: `{option}` of {layer.where} should {rule}, got none.\nLoad it with Keras, and pass the layer.")
    return name if layer.version >= 3 else "hard_sigmoid_keras2"


def _check_direction(caller: str, layer: Layer, config: dict[str, Any], go_backwards: bool, first: bool, d: int):
    """`go_backwards` is as asked for; the backward direction of a layer has it the other way round."""
    wanted = (go_backwards and first) != (d == 1)
    if _field(caller, layer, config, "go_backwards", bool) != wanted:
        hint = "\nPass go_backwards=True, and call the module with its input flipped: module(jnp.flip(x, 1))." * (not go_backwards)
        hint = hint if first else "\nIt turns the output of the layer before round: load each alone, and flip what is between."
        which, hint = ("", hint) if d == 0 else ("the backward layer of ", "")
        raise ValueError(f"{caller}: `go_backwards` of {which}{layer.where} should be {wanted}, got {not wanted}.{hint}")
    if config.get("stateful"):
        message = f"`stateful` of {layer.where} does not come along: pass the h_n of one call as the h_0 of the next."
        warnings.warn(f"{caller}: {message}", UserWarning, stacklevel=checks.frames_to_the_user())


def _field(caller: str, layer: Layer, config: dict[str, Any], option: str, *kinds: type) -> Any:
    """An entry of a configuration that has to be there."""
    names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
    if option not in config:
        raise ValueError(f"{caller}: the configuration of {layer.where} should have {option!r}, got {short(sorted(config))}.")
    if type(config[option]) not in kinds:
        raise ValueError(f"{caller}: `{option}` of {layer.where} should be of type {names}, got {short(config[option])}.")
    return config[option]


def _named(one: CellSpec) -> str:
    return f"{one.cell} of {one.units}{'' if one.bias else ' without bias'}"


# Its weights -----------------------------------------------------------------------------------------------------------


def params(caller: str, layer: Layer, spec: Spec) -> list[list[GateParams]]:
    """`[depth][direction]`, checked against what the layer says of its sizes."""
    weights = layer.read(spec)
    found, wanted, several = {}, {}, len(spec.cells[0]) > 1
    first = next((a for direction in weights for cell in direction for a in cell), None)
    if first is None:
        hint = "\nBuild it first: call it, or the model, on data."
        raise ValueError(f"{caller}: {layer.where} should have weights, got none.{hint}")
    for d, direction in enumerate(spec.cells):
        width = first.shape[0] if first.ndim else 1
        for k, one in enumerate(direction):
            of = f" of direction {d}" + f", cell {k}" * several
            gates = len(one.cell.gates) * one.units
            bias = (2, gates) if isinstance(one.cell, GRUCell) else (gates,)
            shapes = [(width, gates), (one.units, gates), bias][: 3 if one.bias else 2]
            wanted |= {NAMES[j] + of: _checks.Unknown(str(first.dtype), shape) for j, shape in enumerate(shapes)}
            found |= {(NAMES[j] if j < 3 else f"array {j}") + of: a for j, a in enumerate(weights[d][k])}
            width = one.units
    _checks.match(caller, layer.where, found, wanted)
    return [[decode(direction[k].cell, weights[d][k]) for d, direction in enumerate(spec.cells)] for k in range(len(spec.cells[0]))]


def encode(cell: Cell, params: Any) -> list[np.ndarray]:
    """Kernel, recurrent kernel and bias."""
    order = ORDERS[type(cell)]
    p = _gates.flip_update_gate(params) if isinstance(cell, ChungGRUCell) else params
    found = [_gates.join(p.w_ih, cell.gates, order), _gates.join(p.w_hh, cell.gates, order)]
    if p.b_ih is not None:
        biases = [_gates.join(b, cell.gates, order) for b in (p.b_ih, p.b_hh)]
        found.append(np.stack(biases) if isinstance(cell, GRUCell) else biases[0] + biases[1])
    return found


def decode(cell: Cell, weights: list[np.ndarray]) -> GateParams:
    """The inverse of `encode`, with zeros for the second of two biases that Keras has summed."""
    order = ORDERS[type(cell)]
    kernel, recurrent, *bias = (_gates.split(a, order, cell.gates) for a in weights)
    b_ih, b_hh = (None, None) if not bias else bias[0] if isinstance(cell, GRUCell) else (bias[0], np.zeros_like(bias[0]))
    params = _gates.gate_params(kernel, recurrent, b_ih, b_hh)
    return _gates.flip_update_gate(params) if isinstance(cell, ChungGRUCell) else params
