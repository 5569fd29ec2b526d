"""Cells of other frameworks, one by one, as layers of a module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.cells import Cell, GateParams
from jaxrnn.interop import _checks, _modules
from jaxrnn.nnx import Recurrent


class Codec(NamedTuple):
    """How a framework writes one cell's weights: as arrays by name.

    Args:
        describe: from what the framework has, to our cell, its (input_size, hidden_size, bias), and the arrays.
        encode, decode: between (cell, params) and the arrays.
    """

    describe: Callable[[Any], tuple[Cell, tuple[int, int, bool], dict[str, Any]]]
    encode: Callable[[Cell, Any], dict[str, np.ndarray]]
    decode: Callable[[Cell, dict[str, np.ndarray]], GateParams]


def layered(caller: str, argument: str, source: Any, is_cell: Callable[[Any], bool], kind: str) -> list[list]:
    """`[layer][direction]` from a cell, or a list of layers, each a cell or a pair (forward, backward)."""
    if is_cell(source):
        return [[source]]
    if isinstance(source, tuple) and len(source) == 2 and all(map(is_cell, source)):
        rule = "say what the two are, layers, [first, second], or directions, [(forward, backward)]"
        raise TypeError(f"{caller}: `{argument}` should {rule}, got a pair.")
    entries = source if isinstance(source, list | tuple) else ()
    layers = [[layer] if is_cell(layer) else list(layer) if isinstance(layer, list | tuple) else [] for layer in entries]
    if not layers or not all(len(layer) in (1, 2) and all(map(is_cell, layer)) for layer in layers):
        wanted = f"{kind}, or a list of layers, each {kind} or a pair (forward, backward) of them"
        raise TypeError(f"{caller}: `{argument}` should be {wanted}, got {_kinds(source)}.")
    return layers


def _kinds(source: Any) -> str:
    """What came in the place of cells: types, in lists of lists."""
    if isinstance(source, list | tuple):
        return f"[{', '.join(map(_kinds, source))}]"
    return type(source).__name__


def build_from_cells(caller: str, layers: list[list], codec: Codec, **options) -> Recurrent:
    """The module with the weights of other frameworks' cells, `[layer][direction]`."""
    cells, params = [], []
    for k, layer in enumerate(layers):
        params.append([])
        for d, theirs in enumerate(layer):
            cell, sizes, found = codec.describe(theirs)
            wanted = codec.encode(cell, _modules.zeros(cell, *sizes, dtype=next(iter(found.values())).dtype))
            _checks.match(caller, f"layer {k}, direction {d}", found, wanted)
            cells.append(cell)
            params[-1].append(codec.decode(cell, found))
    if len(set(cells)) > 1:
        names = sorted({type(cell).__name__ for cell in cells})
        raise ValueError(f"{caller}: all layers and directions should have the same cell, got {', '.join(names)}.")
    return _modules.build(caller, cells[0], params, **options)
