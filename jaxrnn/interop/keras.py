"""Keras 3: layers, `.keras` and `.weights.h5` files, and weights in the order of `set_weights`. Keras itself is never imported:
layers describe themselves, and files are read with h5py."""

import io
import json
import os
import re
import warnings
import zipfile
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.cells import Cell, ChungGRUCell, GRUCell, LSTMCell, RNNCell
from jaxrnn.cells.base import GateParams
from jaxrnn.interop import _checks, _files, _gates, _modules
from jaxrnn.nnx import Recurrent

__all__ = ["from_keras", "load_keras", "to_keras"]

ORDERS = {RNNCell: ("h",), LSTMCell: ("i", "f", "g", "o"), GRUCell: ("z", "r", "n"), ChungGRUCell: ("z", "r", "n")}
NAMES = ("kernel", "recurrent_kernel", "bias")
MERGES = {"concat": "concat", "sum": "sum", "ave": "mean", None: "none"}


def from_keras(source: Any, layer: str | list[str] | None = None, **options) -> Recurrent:
    """Make a module from recurrent layers of Keras.

    Args:
        source: a built `SimpleRNN`, `LSTM`, `GRU` or `Bidirectional` of one of them, a list of such layers, a model, or the
            path of a `.keras` file.
        layer: for a model or a file, the name of the layer, or a list of names; may be left out if there is one only. In a
            model within the model it is the path, "outer/inner".
        options: of `jaxrnn.Recurrent`. Dropout does not come along: Keras's is another; a warning says so.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`; for a GRU with reset_after=False a `Recurrent` of `ChungGRUCell`. It gives the output at
        every step, whatever `return_sequences` says.

    Raises:
        ValueError: there is no such layer, or it has an option without a counterpart. TypeError: `source` or a dtype is of
        another kind.
    """
    if isinstance(source, str | os.PathLike):
        layers = _picked("from_keras", _saved_layers("from_keras", source), layer)
    elif isinstance(source, list):
        layers = [_described("from_keras", one) for one in source]
    elif hasattr(source, "layers"):
        layers = _picked("from_keras", {one.path: one for one in _model_layers(source)}, layer)
    else:
        layers = [_described("from_keras", source)]
    cells, params = zip(*(_read("from_keras", one) for one in layers), strict=True)
    for key, values in (("cell", cells), ("merge_mode", [one.merge_mode for one in layers])):
        if len(set(values)) > 1:
            raise ValueError(f"from_keras: all layers should have the same {key}, got {list(values)}.")
    merge = {"merge": MERGES[layers[0].merge_mode]} if len(params[0]) == 2 else {}
    return _modules.build("from_keras", cells[0], params, **merge | options)


def load_keras(module: Recurrent, source: Any, layer: str | list[str] | None = None):
    """Set the parameters of a module from Keras's, all of them or, on any error, none.

    Args:
        module: a `jaxrnn.RNN`, `LSTM`, `GRU`, or a `Recurrent` of `ChungGRUCell` for a GRU with reset_after=False.
        source: a list of arrays in the order of `get_weights`, or the path of a `.weights.h5` or `.keras` file.
        layer: for a file, the name, or a list of names, one for each layer of the module, that the file has for it: in a
            `.weights.h5` file, whose names follow the classes, "lstm", "lstm_1", "bidirectional", ….

    Raises:
        ValueError: an array is missing, unexpected, or of the wrong shape or dtype.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru, other = (jaxrnn.GRU(3, 5, rngs=nnx.Rngs(seed)) for seed in (0, 1))
        >>> load_keras(other, to_keras(gru))
    """
    if isinstance(source, str | os.PathLike):
        saved = _saved_layers("load_keras", source) if zipfile.is_zipfile(source) else _saved_weights(source)
        picked = _picked("load_keras", saved, layer)
        for one in picked:
            _check_same(one, _checked("load_keras", module))
        source = [a for one in picked for a in one.weights]
    if not isinstance(source, list | tuple):
        kinds = "a list of arrays, or the path of a .weights.h5 or .keras file"
        raise TypeError(f"load_keras: `source` should be {kinds}, got {type(source).__name__}.")
    found = {f"weights[{k}]": np.asarray(a) for k, a in enumerate(source)}
    stack = _checked("load_keras", module)
    wanted = {f"weights[{k}]": a for k, a in enumerate(_encode(stack.cell, _modules.shapes(module)))}
    _checks.match("load_keras", "`source`", found, wanted)
    arrays = iter(found.values())
    count = len(NAMES) if stack.bias else len(NAMES) - 1
    params = [[_decode(stack.cell, [next(arrays) for _ in range(count)]) for _ in directions] for directions in module.params]
    _modules.assign(module, params)


def to_keras(module: Recurrent) -> list[np.ndarray]:
    """The weights of a module in the order of `set_weights`, for one layer or a model of as many layers.

    Keras has one bias where the module has two, except for a GRU with reset_after=True, so the two are added.

    Raises:
        ValueError: Keras has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))
        >>> [a.shape for a in to_keras(gru)]
        [(3, 15), (5, 15), (2, 15)]
    """
    stack = _checked("to_keras", module)
    return [np.ascontiguousarray(a) for a in _encode(stack.cell, _modules.values(module))]


# One cell --------------------------------------------------------------------------------------------------------------


def _checked(caller: str, module: Recurrent):
    """The stack of a module that Keras can hold."""
    _checks.check_module(caller, module)
    _checks.check_cell(caller, module.stack.cell, tuple(ORDERS), "Keras")
    _checks.refuse_options(caller, module.stack, merge=("sum", "mean", "none"))
    return module.stack


def _encode(cell: Cell, params) -> list[np.ndarray]:
    """`params[layer][direction]` in the order of `set_weights`."""
    found, order = [], ORDERS[type(cell)]
    for p in (p for layer in params for p in layer):
        p = _gates.flip_update_gate(p) if isinstance(cell, ChungGRUCell) else p
        found += [_gates.join(p.w_ih, cell.gates, order), _gates.join(p.w_hh, cell.gates, order)]
        if p.b_ih is not None:
            biases = [_gates.join(b, cell.gates, order) for b in (p.b_ih, p.b_hh)]
            found.append(np.stack(biases) if isinstance(cell, GRUCell) else biases[0] + biases[1])
    return found


def _decode(cell: Cell, weights: list[np.ndarray]) -> GateParams:
    """The parameters of one direction from its kernel, recurrent kernel and bias."""
    order = ORDERS[type(cell)]
    kernel, recurrent, *bias = (_gates.split(a, order, cell.gates) for a in weights)
    b_ih, b_hh = (None, None) if not bias else bias[0] if isinstance(cell, GRUCell) else (bias[0], np.zeros_like(bias[0]))
    params = GateParams(kernel, recurrent, b_ih, b_hh)
    return _gates.flip_update_gate(params) if isinstance(cell, ChungGRUCell) else params


# Layers ----------------------------------------------------------------------------------------------------------------


class Layer(NamedTuple):
    """A recurrent layer as Keras describes it; `configs` and `weights` hold forward before backward."""

    path: str
    kind: str
    configs: list[dict[str, Any]]
    weights: list[np.ndarray]
    merge_mode: str | None = "concat"


def _described(caller: str, layer: Any) -> Layer:
    """What a live layer says of itself."""
    kind = type(layer).__name__
    if kind not in ("SimpleRNN", "LSTM", "GRU", "Bidirectional") or not hasattr(layer, "get_config"):
        kinds = "a Keras SimpleRNN, LSTM, GRU, Bidirectional, a list of them, a model, or the path of a .keras file"
        raise TypeError(f"{caller}: `source` should be {kinds}, got {kind}.")
    return _from_config(layer.name, kind, layer.get_config(), [np.asarray(a) for a in layer.get_weights()])


def _from_config(path: str, kind: str, config: dict[str, Any], weights: list[np.ndarray]) -> Layer:
    if kind != "Bidirectional":
        return Layer(path, kind, [config], weights)
    inner = [config["layer"], config["backward_layer"]]
    return Layer(path, inner[0]["class_name"], [one["config"] for one in inner], weights, config["merge_mode"])


def _model_layers(model: Any, outer: str = ""):
    for layer in model.layers:
        if hasattr(layer, "layers"):
            yield from _model_layers(layer, f"{outer}{layer.name}/")
        elif type(layer).__name__ in ("SimpleRNN", "LSTM", "GRU", "Bidirectional"):
            yield _described("from_keras", layer)._replace(path=f"{outer}{layer.name}")


def _picked(caller: str, layers: dict[str, Layer], names: str | list[str] | None) -> list[Layer]:
    names = list(layers) if names is None and len(layers) == 1 else names
    names = [names] if isinstance(names, str) else names
    if not names or any(name not in layers for name in names):
        there = ", ".join(map(repr, layers)) or "none"
        raise ValueError(f"{caller}: `layer` should be among the recurrent layers of `source`, {there}, got {names!r}.")
    return [layers[name] for name in names]


def _check_same(layer: Layer, stack):
    """What a file says of a layer, if it says anything, is what the module computes; weights would not tell."""
    if not layer.configs:
        return
    cell, params = _read("load_keras", layer)
    there = (type(cell).__name__, getattr(cell, "nonlinearity", None), MERGES[layer.merge_mode] if len(params) == 2 else None)
    here = (type(stack.cell).__name__, getattr(stack.cell, "nonlinearity", None), stack.merge if stack.bidirectional else None)
    if there != here:
        names = "(cell, nonlinearity, merge)"
        raise ValueError(f"load_keras: layer {layer.path!r} should be as `module`, {names} = {here}, got {there}.")


def _read(caller: str, layer: Layer) -> tuple[Cell, list[GateParams]]:
    """The cell and parameters of a layer's directions."""
    cells = []
    for config, backward in zip(layer.configs, (False, True), strict=False):
        wanted = {"activation": ("tanh", "relu") if layer.kind == "SimpleRNN" else ("tanh",), "go_backwards": (backward,)}
        if layer.kind != "SimpleRNN":
            wanted["recurrent_activation"] = ("sigmoid",)
        for option, values in wanted.items():
            if config[option] not in values:
                choices = " or ".join(map(repr, values))
                raise ValueError(f"{caller}: `{option}` of layer {layer.path!r} should be {choices}, got {config[option]!r}.")
        for option in ("dropout", "recurrent_dropout"):
            if config[option]:
                message = f"`{option}`={config[option]} of layer {layer.path!r} does not come along: it acts in training only."
                warnings.warn(f"{caller}: {message}", UserWarning, stacklevel=4)
        if layer.kind == "GRU":
            cells.append(GRUCell() if config["reset_after"] else ChungGRUCell())
        else:
            cells.append(LSTMCell() if layer.kind == "LSTM" else RNNCell(nonlinearity=config["activation"]))
    if layer.merge_mode not in MERGES:
        choices = ", ".join(map(repr, MERGES))
        raise ValueError(f"{caller}: `merge_mode` of layer {layer.path!r} should be one of {choices}, got {layer.merge_mode!r}.")
    if len(set(cells)) > 1:
        raise ValueError(f"{caller}: both directions of layer {layer.path!r} should have the same options, got {layer.configs}.")

    bias, units = layer.configs[0]["use_bias"], layer.configs[0]["units"]
    count, directions = 3 if bias else 2, len(layer.configs)
    found = {f"{NAMES[k % count]} of direction {k // count}": a for k, a in enumerate(layer.weights)}
    width = layer.weights[0].shape[0] if layer.weights else 1
    dtype = layer.weights[0].dtype if layer.weights else np.dtype("float32")
    zeros = _modules.zeros(cells[0], width, units, bias, dtype)
    wanted = dict(zip((f"{NAMES[k % count]} of direction {k // count}" for k in range(count * directions)),
                      _encode(cells[0], [[zeros] * directions]), strict=True))  # fmt: skip
    _checks.match(caller, f"layer {layer.path!r}", found, wanted)
    return cells[0], [_decode(cells[0], layer.weights[d * count : (d + 1) * count]) for d in range(directions)]


# Files -----------------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(caller: str, kind: str, path: str | os.PathLike):
    """Whatever is wrong with a file is said in one way: zipfile, json and h5py have an exception for every kind of damage."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        hint = "\nLoad it into a module: load_keras(module, path)." if caller == "from_keras" and str(path).endswith(".h5") else ""
        raise ValueError(f"{caller}: `source` should be a whole {kind} file, got {path}: {_files.cause(error)}.{hint}") from error


def _saved_layers(caller: str, path: str | os.PathLike) -> dict[str, Layer]:
    """The recurrent layers of a `.keras` file, by their names in the model."""
    h5py = _checks.require(caller, "h5py")
    with _reading(caller, ".keras", path):
        with zipfile.ZipFile(path) as file:
            config, weights = json.loads(file.read("config.json")), io.BytesIO(file.read("model.weights.h5"))
        with h5py.File(weights) as store:
            return {layer.path: layer for layer in _config_layers(config, store, "", "")}


def _config_layers(config: dict[str, Any], store, group: str, outer: str):
    """The layers of a model's configuration, with the weights that `store` has for them: its names follow the classes."""
    used: dict[str, int] = {}
    for layer in config["config"].get("layers", ()):
        kind, name = layer["class_name"], layer["config"]["name"]
        snake = re.sub("(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", kind).lower()
        used[snake] = used.get(snake, -1) + 1
        key = f"{group}layers/{snake}" + (f"_{used[snake]}" if used[snake] else "")
        if "layers" in layer["config"]:
            yield from _config_layers(layer, store, f"{key}/", f"{outer}{name}/")
        elif kind in ("SimpleRNN", "LSTM", "GRU", "Bidirectional"):
            yield _from_config(f"{outer}{name}", kind, layer["config"], _stored(store, key))


def _saved_weights(path: str | os.PathLike) -> dict[str, Layer]:
    """The recurrent layers of a `.weights.h5` file, by the names that it has for them."""
    h5py = _checks.require("load_keras", "h5py")
    with _reading("load_keras", ".weights.h5 or .keras", path), h5py.File(path) as store:
        keys: list[str] = []
        store.visit(keys.append)
        found = [m[1] for key in keys if (m := re.fullmatch(r"(.*?)(/forward_layer|/backward_layer)?/cell/vars", key))]
        names = {re.sub("(^|(?<=/))layers/", "", name): name for name in found}
        return {short: Layer(short, "", [], _stored(store, name)) for short, name in names.items()}


def _stored(store, key: str) -> list[np.ndarray]:
    """The weights of a layer: kernel, recurrent kernel, bias, forward before backward."""
    groups = [f"{key}/{direction}/cell/vars" for direction in ("forward_layer", "backward_layer")]
    groups = groups if groups[0] in store else [f"{key}/cell/vars"]
    arrays = [store[group][str(k)] for group in groups if group in store for k in range(len(store[group]))]
    return [np.array(a, _checks.BFLOAT16 if a.attrs.get("dtype") == "bfloat16" else a.dtype) for a in arrays]
