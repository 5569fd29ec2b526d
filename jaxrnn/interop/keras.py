"""Keras 3 and Keras 2: layers, `.keras`, `.weights.h5` and `.h5` files, and weights in the order of `set_weights`. Keras itself is
never imported: layers describe themselves, and files are read with h5py."""

import itertools
import os
import warnings
from typing import Any, Unpack

import numpy as np

from jaxrnn import checks
from jaxrnn.cells import ChungGRUCell, RNNCell
from jaxrnn.interop import _checks, _keras_graph, _keras_layers, _keras_live, _keras_saved, _modules
from jaxrnn.interop._keras_layers import NAMES, ORDERS, SYMMETRIC, Layer
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_keras", "load_keras", "to_keras"]

MOST = 20  # names of layers in a message


@takes_options
def from_keras(
    source: Any, layer: str | list[str] | None = None, *, go_backwards: bool = False, **options: Unpack[RecurrentOptions]
) -> Recurrent:
    """Make a module from recurrent layers of Keras.

    Args:
        source: a built `SimpleRNN`, `LSTM`, `GRU`, `RNN` of one or several of their cells, or `Bidirectional` of one of them; a
            cell; a list of such layers; a model; or the path of a `.keras` file or of an `.h5` file of a whole model.
        layer: for a model or a file, the name of the layer, or a list of names of layers that follow one another; may be left out
            if there is one only. In a model within the model it is the path, "outer/inner", and so it is in a layer that holds
            layers, such as `TimeDistributed`: what that does itself does not come along.
        go_backwards: whether the layers have this option (a `Bidirectional`: its forward layer). If so, call the module with
            its input flipped, `module(jnp.flip(x, 1))`, and with `mask=` flipped too: outputs come in Keras's order.
        options: arguments of `jaxrnn.Recurrent`. With merge="none" a layer of any `merge_mode`, "mul" too, gives the pair of the
            outputs of its directions. Dropout does not come along: Keras's is another. A warning says so, and so it does of
            `stateful`, and of masks and states that the model feeds the layer: pass `mask=` or `lengths=`, and `h_0`.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`; with other activations, or for a GRU with reset_after=False, a `Recurrent`. It gives the
        output at every step, whatever `return_sequences` says, and zeros where the mask is False, where Keras repeats the last.

    Raises:
        ValueError: there is no such layer, something else stands between two, one has an option without a counterpart, or the file
        is damaged or reaches out of itself. TypeError: `source` or a dtype is of another kind.
    """
    if isinstance(source, str | os.PathLike):
        layers = _picked("from_keras", _keras_saved.layers_of("from_keras", source), layer)
    elif isinstance(source, list):
        layers = [_keras_live.described("from_keras", one) for one in source]
    elif not _keras_live.is_model(source):
        layers = [_keras_live.described("from_keras", source)]
    else:
        picked = _picked("from_keras", list(_keras_live.in_model(source)), layer)
        layers = [_keras_live.described("from_keras", one.key, one.path) for one in picked]
    if not layers:
        raise ValueError("from_keras: `source` should hold at least one layer, got an empty list.")
    for one in layers:
        _check_told(one)
    cells, params, merges, time_major = [], [], [], []
    for k, one in enumerate(layers):
        spec = _keras_layers.spec("from_keras", one, go_backwards, k == 0)
        time_major.append(spec.time_major)
        merges.append(_keras_layers.merge_of("from_keras", one, spec, options.get("merge"), len(layers) == 1))
        cells.append(spec.cells[0][0].cell)
        params += _keras_layers.params("from_keras", one, spec)
    biases = [layer[0].b_ih is not None for layer in params]
    for key, values in (("cell", cells), ("merge_mode", merges), ("use_bias", biases), ("time_major", time_major)):
        if len(set(values)) > 1:
            raise ValueError(f"from_keras: all layers should have the same {key}, got {values}.")
    _check_stack("from_keras", layers)
    made: dict[str, Any] = {"batch_first": not time_major[0], **options}
    if merges[0] is not None:
        made["merge"] = merges[0]
    return _modules.build("from_keras", cells[0], params, **made)


def load_keras(module: Recurrent, source: Any, layer: str | list[str] | None = None, *, go_backwards: bool = False) -> None:
    """Set the parameters of a module from Keras's, all of them or, on any error, none.

    Args:
        module: a `jaxrnn.RNN`, `LSTM`, `GRU`, or a `Recurrent` of one of their cells or of `ChungGRUCell`, which is a GRU with
            reset_after=False.
        source: a list of arrays in the order of `get_weights`, or the path of a `.weights.h5`, `.h5` or `.keras` file.
        layer: for a file, the name, or a list of names, that the file has for the layers of the module: in a `.weights.h5`
            file, whose names follow the classes, "lstm", "lstm_1", "bidirectional", …; of a subclassed model, the attributes.
        go_backwards: as in `from_keras`.

    Raises:
        ValueError: an array is missing, unexpected, or of the wrong shape or dtype; the file is damaged, reaches out of itself,
        or says that the layer computes something else.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru, other = (jaxrnn.GRU(3, 5, rngs=nnx.Rngs(seed)) for seed in (0, 1))
        >>> load_keras(other, to_keras(gru))
    """
    stack = _checked("load_keras", module)
    if isinstance(source, str | os.PathLike):
        picked = _picked("load_keras", _keras_saved.layers_of("load_keras", source), layer)
        layers = [_weights(one, stack, go_backwards, k == 0, len(picked) == 1) for k, one in enumerate(picked)]
        _check_stack("load_keras", picked)
        source = _in_order([layer for found in layers for layer in found], stack)
    if not isinstance(source, list | tuple):
        kinds = "a list of arrays, or the path of a .weights.h5, .h5 or .keras file"
        raise TypeError(f"load_keras: `source` should be {kinds}, got {type(source).__name__}.")
    found = {f"weights[{k}]": np.asarray(a) for k, a in enumerate(source)}
    wanted = {f"weights[{k}]": a for k, a in enumerate(_encode(stack, _modules.shapes(module)))}
    _checks.match("load_keras", "`source`", found, wanted)
    arrays = iter(found.values())
    count = len(NAMES) if stack.bias else len(NAMES) - 1
    params = {where: _keras_layers.decode(stack.cell, [next(arrays) for _ in range(count)]) for where in _order(stack)}
    _modules.assign(module, [[params[k, d] for d in range(stack.num_directions)] for k in range(stack.num_layers)])


def to_keras(module: Recurrent) -> list[np.ndarray]:
    """The weights of a module in the order of `set_weights`, for one layer or a model of as many layers.

    Keras has one bias where the module has two, except for a GRU with reset_after=True, so the two are added. The layer should
    have the activations of the module's cell. With merge="none" and several layers it is `Bidirectional(RNN([cells]))`.

    Raises:
        ValueError: Keras has no such cell, or lacks an option of the module. TypeError: the module is of another class, or of
        one that computes something else.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))
        >>> [a.shape for a in to_keras(gru)]
        [(3, 15), (5, 15), (2, 15)]
    """
    _checks.check_exportable("to_keras", module, models=False)
    stack = _checked("to_keras", module)
    return [np.ascontiguousarray(a) for a in _encode(stack, _modules.values(module))]


def _checked(caller: str, module: Recurrent):
    """The stack of a module that Keras can hold."""
    _checks.check_module(caller, module)
    cell = module.stack.cell
    if type(cell) not in ORDERS:
        _checks.check_cell(caller, cell, tuple(ORDERS), "Keras")
    if isinstance(cell, ChungGRUCell) and cell.recurrent_activation not in SYMMETRIC:
        choices = ", ".join(map(repr, SYMMETRIC))
        rule = f"should be one of {choices} in a ChungGRUCell, whose update gate takes the other sign in Keras"
        raise ValueError(f"{caller}: `recurrent_activation` {rule}, got {cell.recurrent_activation!r}.")
    _checks.refuse_options(caller, module.stack, merge=("sum", "mean", "none"))
    return module.stack


def _order(stack) -> list[tuple[int, int]]:
    """(layer, direction) in the order in which Keras has them: directions that never meet are each a layer of several cells."""
    pairs = [(k, d) for k in range(stack.num_layers) for d in range(stack.num_directions)]
    return sorted(pairs, key=lambda pair: pair[::-1]) if stack.merge == "none" else pairs


def _encode(stack, params) -> list[np.ndarray]:
    """`params[layer][direction]` in the order of `set_weights`."""
    return [a for k, d in _order(stack) for a in _keras_layers.encode(stack.cell, params[k][d])]


def _in_order(weights: list[list[list[np.ndarray]]], stack) -> list[np.ndarray]:
    """`[layer][direction][array]` in the order of `set_weights`."""
    got = [len(layer) for layer in weights]
    if got != [stack.num_directions] * stack.num_layers:
        wanted = f"{stack.num_layers} layer(s) of {stack.num_directions} direction(s), as `module`"
        raise ValueError(f"load_keras: `source` should have {wanted}, got layers of {got} directions.")
    return [a for k, d in _order(stack) for a in weights[k][d]]


# Layers of models and files --------------------------------------------------------------------------------------------


def _picked(caller: str, layers: list[Layer], names: str | list[str] | None) -> list[Layer]:
    paths = list(dict.fromkeys(layer.path for layer in layers))
    if names is None and len(paths) == 1 and layers[0].holder is not None:
        name, holder = _keras_layers.short(paths[0]), _keras_layers.short(layers[0].holder)
        rule = f"should be given as {name}, a part of a {holder}, which may do anything with it"
        raise ValueError(f"{caller}: `layer` {rule}, got None.\nNothing else of the {holder} comes along.")
    names = paths if names is None and len(paths) == 1 else names
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not names or any(name not in paths for name in names):
        there = ", ".join(map(_keras_layers.short, paths[:MOST])) + f", … ({len(paths)} in all)" * (len(paths) > MOST)
        rule = f"should be among the recurrent layers of `source`, {there or 'none'}"
        raise ValueError(f"{caller}: `layer` {rule}, got {names!r}.")
    for name in names:
        if len({_key(layer) for layer in layers if layer.path == name}) > 1:
            raise ValueError(f"{caller}: `layer` should be the name of one layer, got {name!r}, the name of several.")
    picked = [next(layer for layer in layers if layer.path == name) for name in names]
    _warn_of_model(caller, picked)
    _check_chain(caller, picked)
    return picked


def _warn_of_model(caller: str, picked: list[Layer]):
    """What a model does with a layer that a module of ours does not know of."""
    for layer in picked:
        if layer.graph is None:
            continue
        found, fed, count = [], layer.graph.fed(layer.names), layer.graph.calls(layer.names)
        masks = [] if "mask" in fed else layer.graph.masks(layer.names)
        if masks:
            makers = _checks.listed(list(map(_keras_layers.short, masks)))
            found.append((f"the mask of layer {makers}, if it reaches {layer.where},", "pass mask= or lengths="))
        if "mask" in fed:
            found.append((f"the `mask` that the model feeds {layer.where}", "pass it as mask="))
        if "initial_state" in fed:
            found.append((f"the `initial_state` that the model feeds {layer.where}", "pass it as h_0"))
        if count > 1:
            found.append((f"that the model calls {layer.where} {count} times", "call the module as often"))
        for what, way in found:
            warnings.warn(f"{caller}: {what} does not come along: {way}.", UserWarning, stacklevel=checks.frames_to_the_user())


def _check_chain(caller: str, picked: list[Layer]):
    """Each layer of several reads what the one before puts out, as far as the model tells."""
    for first, second in itertools.pairwise(picked):
        if first.graph is None or second.graph is None or not first.graph.is_told:
            continue
        origin = second.graph.origin(second.names)
        if second.graph.calls(first.names) > 1:
            got = f"{first.path!r}, which the model calls more than once"
        elif origin != first.names:
            read = origin if isinstance(origin, str) else f"the output of {'/'.join(origin)!r}"
            got = f"{second.path!r}, which reads {read}"
        elif not _same_mask(first, second):
            got = f"{second.path!r}, which has another mask"
        else:
            continue
        rule = f"should name layers of which each reads what the one before puts out, {first.path!r} before {second.path!r}"
        raise ValueError(f"{caller}: `layer` {rule}, got {got}.\nLoad each alone, and call them as the model does.")


def _same_mask(first: Layer, second: Layer) -> bool:
    """Whether two layers have one mask, as far as it is written down; of a model within the model it is not."""
    (ours, theirs), within = (layer.graph.fed(layer.names).get("mask") for layer in (first, second)), first.names[:-1]
    return ours == theirs if within == second.names[:-1] else theirs is None


def _check_stack(caller: str, layers: list[Layer]):
    """A layer reads every step of the one before, in one array."""
    for layer in layers[:-1]:
        if _keras_graph.every_step(layer.entry) is False:
            rule = f"`return_sequences` of {layer.where} should be True, as another layer of the module reads it"
            raise ValueError(f"{caller}: {rule}, got False.\nLoad each alone, and call them as the model does.")


def _key(layer: Layer):
    return layer.key if isinstance(layer.key, str) else id(layer.key)


def _check_told(layer: Layer):
    """A file tells what the layer computes."""
    if layer.entry is None:
        rule = "should come with its configuration, for weights alone do not say what they are for"
        hint = f"Make the module that it is, and load them into it: load_keras(module, path, {layer.path!r})."
        raise ValueError(f"from_keras: {layer.where} {rule}, got weights alone.\n{hint}")


def _weights(layer: Layer, stack, go_backwards: bool, first: bool, alone: bool) -> list[list[list[np.ndarray]]]:
    """`[depth][direction][array]` of a layer of a file, which computes what the stack does, as far as the file says."""
    if layer.entry is None:
        weights = layer.read(None)
        return [list(directions) for directions in zip(*weights, strict=True)]
    spec = _keras_layers.spec("load_keras", layer, go_backwards, first)
    asked = "none" if stack.merge == "none" else None
    there = _computed(spec.cells[0][0].cell, _keras_layers.merge_of("load_keras", layer, spec, asked, alone))
    here = _computed(stack.cell, stack.merge if stack.bidirectional else None)
    if there != here:
        raise ValueError(f"load_keras: {layer.where} should be as `module`, {here}, got {there}.")
    params = _keras_layers.params("load_keras", layer, spec)
    return [[_keras_layers.encode(stack.cell, p) for p in directions] for directions in params]


def _computed(cell: Any, merge: str | None) -> str:
    """A cell and what becomes of directions, in words."""
    plain = type(cell)(nonlinearity=cell.nonlinearity) if isinstance(cell, RNNCell) else \
        type(cell)(activation=cell.activation, recurrent_activation=cell.recurrent_activation)  # fmt: skip
    return f"{plain} in " + ("one direction" if merge is None else f"both directions with merge={merge!r}")
