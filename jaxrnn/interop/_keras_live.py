"""Layers of Keras that are there as objects. Keras is never imported: they describe themselves."""

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrnn.interop import _keras_graph
from jaxrnn.interop import _keras_layers as layers


def is_recurrent(source: Any) -> bool:
    """Whether it is one of Keras's own layers or cells that we could read."""
    kinds = (*layers.LAYERS, *layers.CELLS, "StackedRNNCells", *layers.CUDNN)
    return type(source).__name__ in kinds and _package(source) is not None


def described(caller: str, source: Any, path: str | None = None) -> layers.Layer:
    """What a layer, or a cell, says of itself."""
    if not is_recurrent(source):
        kinds = f"a Keras {', '.join(layers.LAYERS)}, a cell, a list of them, a model, or the path of a .keras or .h5 file"
        own = [kind.__name__ for kind in type(source).__mro__[1:] if kind.__name__ in layers.LAYERS and _package(source) is None]
        hint = f"\nIf it computes what keras.layers.{own[0]} does, make one of those with its weights." if own else ""
        raise TypeError(f"{caller}: `source` should be {kinds}, got {type(source).__name__}.{hint}")
    name: str = source.name if path is None else path
    entry = {"class_name": type(source).__name__, "config": source.get_config()}
    found = layers.Layer(name, f"layer {name!r}", entry, _version(source), lambda spec: _weights(source), id(source))
    for cell in [cell for direction in _cells(source) for cell in direction]:
        for option in ("activation", "recurrent_activation"):
            function = getattr(cell, option, None)
            if function is not None and str(getattr(function, "__module__", "")).split(".")[0] not in layers.PACKAGES:
                raise ValueError(f"{caller}: `{option}` of {found.where} should be a function of Keras, got {function!r}.")
    return found


def is_model(source: Any) -> bool:
    """Whether it is a model, somebody's own too; other layers may have layers in them."""
    return any(kind.__name__ == "Model" and kind.__module__.split(".")[0] in layers.PACKAGES for kind in type(source).__mro__)


def in_model(model: Any) -> Iterator[layers.Layer]:
    """The recurrent layers of a model, of models in it, and of layers that hold layers."""
    try:
        told = {"class_name": type(model).__name__, "config": model.get_config()}
    except Exception:  # whatever the configuration of somebody's own layer raises: it is the graph alone that is not told then
        told = None
    yield from _in(model, (), None, _keras_graph.Graph(told))


def _in(model: Any, outer: tuple[str, ...], holder: str | None, graph: _keras_graph.Graph) -> Iterator[layers.Layer]:
    for layer in _inside(model):
        names = (*outer, layer.name)
        if is_recurrent(layer):
            path = "/".join(names)
            entry = {"class_name": type(layer).__name__, "config": {}}  # until it is picked
            yield layers.Layer(path, f"layer {path!r}", entry, None, lambda spec: [], layer, names, holder, graph)
        else:
            inside = holder if holder is not None or is_model(layer) else type(layer).__name__
            yield from _in(layer, names, inside, graph)


def _inside(holder: Any) -> list[Any]:
    if hasattr(holder, "layers"):
        return list(holder.layers)
    flat = getattr(holder, "_flatten_layers", None)
    return [] if flat is None else list(flat(include_self=False, recursive=False))


def _package(source: Any) -> str | None:
    name = type(source).__module__.split(".")[0]
    return name if name in layers.PACKAGES else None


def _version(source: Any) -> int | None:
    """The first number of the version of the Keras that a layer is of; what is inside TensorFlow is 2."""
    package = _package(source)
    version = "2" if package == "tensorflow" else str(getattr(sys.modules[str(package)], "__version__", "2"))
    return int(version.split(".")[0])


def _cells(source: Any) -> list[list[Any]]:
    """`[direction][depth]`."""
    parts = [source.forward_layer, source.backward_layer] if hasattr(source, "forward_layer") else [source]
    cells = [getattr(part, "cell", part) for part in parts]
    return [list(cell.cells) if hasattr(cell, "cells") else [cell] for cell in cells]


def _weights(source: Any) -> list[list[list[np.ndarray]]]:
    return [[[np.asarray(a) for a in cell.get_weights()] for cell in direction] for direction in _cells(source)]
