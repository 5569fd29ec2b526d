"""The recurrent layers of a file of Keras: where each one's arrays stand, in the present layout and in the HDF5 of Keras 2."""

import os
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from jaxrnn.interop import _keras_files, _keras_graph, _keras_layers
from jaxrnn.interop._keras_layers import Layer, Spec, short

HOLDERS = ("layers/", "_layer_checkpoint_dependencies/")
DEPTH = 32  # of models within models
MOST = 8  # arrays of a cell that are looked at; it has three at the most


def layers_of(caller: str, path: str | os.PathLike) -> list[Layer]:
    """The recurrent layers, those that the configuration tells of before those of which there are weights alone."""
    saved = _keras_files.opened(caller, path)
    cells = _cells(saved.store.names)
    legacy = any(base is not None for _, base in cells.values())
    find = _find_legacy if legacy else _find
    known, used, holders, graph = [], set(), {}, _keras_graph.Graph(saved.config)
    for names, group, entry, holder in _entries(caller, saved.config):
        name = "/".join(names)
        where = f"layer {short(name)} of {os.fspath(path)}"
        if entry is None:
            holders[name if legacy else _without_holders(group)] = holder
            continue
        used.add(names[0] if legacy else _without_holders(group))

        def read(spec: Spec, names=names, group=group, where=where):
            found = find(caller, where, cells, names, group, spec)
            return [[_arrays(saved.store, one) for one in direction] for direction in found]

        known.append(Layer(name, where, entry, saved.version, read, group, names, holder, graph))
    for key, found in sorted(_alone(cells).items()):
        parts = key.split("/")
        starts = ["/".join(parts[:k]) for k in range(1, len(parts) + 1)]
        if not used.isdisjoint(starts):
            continue
        unnamed = "layer without a name" if used or holders else None  # in a model whose layers are told
        holder = next((holders[start] for start in starts if start in holders), unnamed)
        where = f"layer {short(key)} of {os.fspath(path)}"

        def read_alone(spec: None, found=found, where=where):
            return [[_arrays(saved.store, one) for one in direction] for direction in _in_order(caller, where, found)]

        known.append(Layer(key, where, None, saved.version, read_alone, key, holder=holder))
    return known


Entries = Iterator[tuple[tuple[str, ...], str, dict[str, Any] | None, str | None]]
MODELS = ("Sequential", "Functional", "Model")


def _entries(caller: str, model: Any, outer: tuple[str, ...] = (), group: str = "", holder: str | None = None) -> Entries:
    """The names (outer, …, inner), the group and the entry of each recurrent layer in a model's configuration, and its holder.

    Other layers, which may hold layers without a word of them, have None as their entry, and are themselves the holder.

    Groups of the present layout have the names of classes, counted within a model.
    """
    if len(outer) > DEPTH:
        raise ValueError(f"{caller}: `source` should have models within models {DEPTH} deep at the most, got more.")
    inner = model.get("config") if isinstance(model, dict) else None
    inner = inner.get("layers") if isinstance(inner, dict) else inner  # Keras 2.2 and before: a list
    counts: dict[str, int] = {}
    for layer in inner if isinstance(inner, list) else ():
        kind, own = (layer.get("class_name"), layer.get("config")) if isinstance(layer, dict) else (None, None)
        if not isinstance(kind, str):
            continue
        key = _counted(_snake(kind.split(">")[-1]), counts)
        given = (own.get("name") if isinstance(own, dict) else None, layer.get("name"))
        names = (*outer, next((name for name in given if isinstance(name, str)), key))
        if kind in (*_keras_layers.LAYERS, *_keras_layers.CUDNN) and _keras_layers.is_own(layer):
            yield names, f"{group}layers/{key}", layer, holder
        elif isinstance(own, list) or (isinstance(own, dict) and "layers" in own):
            own_model = kind in MODELS and _keras_layers.is_own(layer)
            inside = holder if holder is not None or own_model else kind
            yield from _entries(caller, layer, names, f"{group}layers/{key}/", inside)
        else:
            yield names, f"{group}layers/{key}", None, holder or kind


def _counted(name: str, counts: dict[str, int]) -> str:
    """A name that is new among its siblings."""
    counts[name] = counts.get(name, -1) + 1
    return f"{name}_{counts[name]}" if counts[name] else name


def _snake(name: str) -> str:
    return re.sub("(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", re.sub(r"\W+", "", name)).lower()


# Arrays ----------------------------------------------------------------------------------------------------------------


def _cells(names: dict[str, None]) -> dict[str, tuple[list[str], str | None]]:
    """The groups of a file that hold the arrays of a cell: the arrays, and for the layout of Keras 2 the group of all weights."""
    found: dict[str, tuple[list[str], str | None]] = {}
    base = "model_weights/" if "model_weights" in names else ""
    for name in names:
        if m := re.fullmatch(r"((?:.*/)?[^/]*cell(?:_\d+)?)/vars/1", name):
            keys = [f"{m[1]}/vars/{k}" for k in range(MOST)]
            found[m[1]] = [key for key in keys if key in names], None
        elif name.startswith(base) and (m := re.fullmatch(r"(.+)/recurrent_kernel(?::0)?", name)):
            found[m[1]] = [], base
    for name in names:  # in the layout of Keras 2 all that stands beside the recurrent kernel, in the order of `get_weights`
        group, _, _ = name.rpartition("/")
        if group in found and found[group][1] is not None and len(found[group][0]) < MOST:
            found[group][0].append(name)
    rank = {name: k for k, name in enumerate(_keras_layers.NAMES)}
    for keys, base in found.values():
        if base is not None:
            keys.sort(key=lambda key: rank.get(key.rpartition("/")[2].removesuffix(":0"), len(rank)))
    return found


def _arrays(store, keys: list[str]) -> list[np.ndarray]:
    return [store.array(key) for key in keys]


def _find(caller, where, cells, names, group, spec: Spec) -> list[list[list[str]]]:
    """`[direction][depth]` lists of arrays, in the present layout."""
    starts = [f"{group}/forward_layer", f"{group}/backward_layer"] if len(spec.cells) == 2 else [group]
    found = []
    for start, direction in zip(starts, spec.cells, strict=True):
        counts: dict[str, int] = {}
        places = [f"{start}/cell/cells/{_counted(_snake(one.kind), counts)}" for one in direction]
        single = len(direction) == 1 and f"{start}/cell" in cells
        found.append([cells.get(place, ([], None))[0] for place in ([f"{start}/cell"] if single else places)])
    return found


def _find_legacy(caller, where, cells, names, group, spec: Spec) -> list[list[list[str]]]:
    """The same in the layout of Keras 2, where groups have the names that variables had."""
    inside = {}
    for place, (keys, base) in cells.items():
        if base is not None and place.startswith(f"{base}{names[0]}/"):
            parts = place.removeprefix(f"{base}{names[0]}/").split("/")
            if len(names) == 1 or names[-1] in parts:
                inside[place] = [part for part in parts if part not in names], keys
    both, found = len(spec.cells) == 2, []
    for mark, own in zip(("forward_", "backward_") if both else ("",), spec.names, strict=True):
        there = {p: keys for p, (parts, keys) in inside.items() if any(x.startswith(mark) or x == own for x in [*parts, ""])}
        found.append(_by_cell(caller, f"{where}, {mark}…" if both else where, there, [one.name for one in spec.cells[0]]))
    if sum(map(len, found)) != len(inside):
        raise ValueError(f"{caller}: the file should hold {sum(map(len, found))} cell(s) for {where}, got {short(sorted(inside))}.")
    return found


def _by_cell(caller, where, there: dict[str, list[str]], names: list) -> list[list[str]]:
    """The arrays of each cell of a direction, in the order of the names of the cells."""
    if len(there) != len(names):
        raise ValueError(f"{caller}: the file should hold {len(names)} cell(s) for {where}, got {short(sorted(there))}.")
    if len(names) == 1:
        return list(there.values())
    by_name = {place.rpartition("/")[2]: keys for place, keys in there.items()}
    if sorted(by_name) != sorted(map(str, names)):
        raise ValueError(f"{caller}: the file should hold the cells {short(names)} for {where}, got {short(sorted(by_name))}.")
    return [by_name[name] for name in names]


# Weights of which nothing else is said ---------------------------------------------------------------------------------


def _alone(cells: dict[str, tuple[list[str], str | None]]) -> dict[str, dict[int, dict[str, list[str]]]]:
    """The layers that groups of arrays belong to by their names: for each, direction, and cell, the arrays."""
    found: dict[str, dict[int, dict[str, list[str]]]] = {}
    for place, (keys, base) in cells.items():
        layer, direction, cell = _placed(place) if base is None else _placed_legacy(place.removeprefix(base))
        found.setdefault(layer, {}).setdefault(direction, {})[cell] = keys
    return found


def _placed(place: str) -> tuple[str, int, str]:
    m = re.fullmatch(r"(?:(.*?)/)?(?:(forward|backward)_layer/)?cell(?:/cells/([^/]+))?", place)
    layer, direction, cell = (place, None, "cell") if m is None or m[1] is None else (m[1], m[2], m[3] or "cell")
    return _without_holders(layer), int(direction == "backward"), cell


def _placed_legacy(place: str) -> tuple[str, int, str]:
    top, *parts = place.split("/")
    cell = parts.pop() if parts and re.search(r"cell(_\d+)?$", parts[-1]) else "cell"
    backward = any(part.startswith("backward_") for part in parts)
    kept = [part for part in parts if not re.match(r"(forward|backward)_|stacked_rnn_cells(_\d+)?$", part)]
    return f"{top}/{kept[-1]}" if kept and kept[-1] != top else top, int(backward), cell


def _without_holders(group: str) -> str:
    for holder in HOLDERS:
        group = re.sub(f"(^|(?<=/)){holder}", "", group)
    return group


def _in_order(caller, where, found: dict[int, dict[str, list[str]]]) -> list[list[list[str]]]:
    """`[direction][depth]` lists of arrays; cells are counted in their names, and nothing else tells their order."""
    if 0 not in found or len({tuple(sorted(cells)) for cells in found.values()}) > 1:
        raise ValueError(f"{caller}: {where} should have the same cells in its directions, got {short(found)}.")
    names = sorted(found[0], key=lambda name: int(name.rpartition("_")[2]) if re.search(r"_\d+$", name) else -1)
    if len({re.sub(r"_\d+$", "", name) for name in names}) > 1:
        raise ValueError(f"{caller}: the names of the cells of {where} should tell their order, got {short(names)}.")
    return [[found[d][name] for name in names] for d in sorted(found)]
