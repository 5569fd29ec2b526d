"""The pages of the reference, from what the modules make public: one row of `PAGES` each. Nothing about docstrings
or signatures may live here.

A name that a row puts into no group comes under the last heading, so that none is missing. What several modules have (a cell, in
`jaxrnn` and `jaxrnn.cells`) is described once, under its shortest name, on the last page that has it.
"""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any, NamedTuple

from _ext.signatures import class_body


class Page(NamedTuple):
    """A page of the reference."""

    module: str
    title: str
    text: str
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Headings and the names below them, in order."""
    only: tuple[str, ...] = ()
    """The public names, of a module whose functions are not all for users."""


PAGES = [
    Page(
        "jaxrnn",
        "Layers and functions",
        "Layers as Flax NNX modules, and the functions below them. Cells have :doc:`a page of their own <jaxrnn.cells>`.",
        (
            ("Layers", ("RNN", "LSTM", "GRU", "Recurrent", "params_of")),
            ("Functions", ("unroll", "Stack", "linear_scan")),
        ),
    ),
    Page(
        "jaxrnn.cells",
        "Cells",
        "One step of each recurrent network, by its equations. A cell holds no arrays: :py:meth:`jaxrnn.Cell.init` draws its "
        "parameters, :py:meth:`jaxrnn.Cell.step` runs one step, :py:func:`jaxrnn.unroll` all of them. Which to choose: "
        ":doc:`/guides/cells`; how to write one: :doc:`/guides/own_cell`.",
        (
            ("RNN and LSTM", ("RNNCell", "LSTMCell", "PeepholeLSTMCell", "CoupledLSTMCell", "ProjectedLSTMCell", "SLSTMCell")),
            ("GRU and kin", ("GRUCell", "ChungGRUCell", "MGUCell", "LiGRUCell")),
            ("With layer normalisation", ("LayerNormLSTMCell", "LayerNormGRUCell")),
            ("Linear, parallel over time", ("LRUCell", "RGLRUCell", "MinGRUCell", "MinLSTMCell")),
            ("Diagonal: units that see only themselves", ("IndRNNCell", "ParaGRUCell", "ParaLSTMCell")),
            ("Convolutional", ("ConvLSTM1DCell", "ConvLSTM2DCell", "ConvGRU1DCell", "ConvGRU2DCell")),
            ("Base classes", ("Cell", "GatedCell", "LinearCell", "DiagonalCell")),
            ("Parameters, states and the table of cells", ()),
        ),
    ),
    Page("jaxrnn.models", "Models", "Recurrent layers between linear ones, as Flax NNX modules."),
    Page(
        "jaxrnn.linen",
        "Flax Linen",
        "The same layers and models as Linen modules: the same fields, the same call and, given the same arrays, the same bits.",
    ),
    Page(
        "jaxrnn.initializers",
        "Initial values",
        "Arguments of cells: ``LSTMCell(b_ih_init=initializers.chrono(500))``. They are called once for each gate, so every "
        "function of ``jax.nn.initializers`` works as well.",
        (
            ("Initialisers", ("uniform", "zeros", "ones", "constant", "identity", "orthogonal")),
            ("Gate by gate", ("forget_bias", "chrono", "PerGate")),
            ("For cells of your own", ()),
        ),
    ),
    Page(
        "jaxrnn.interop",
        "Import and export",
        "Weights from other libraries and files, and back. ``from_…`` makes a module, ``load_…`` fills one that you have, ``to_…`` "
        "exports. What a format cannot hold is refused, never guessed.",
        (
            ("PyTorch", ("from_torch", "load_torch", "to_torch")),
            ("safetensors", ("from_safetensors", "load_safetensors", "to_safetensors")),
            ("ONNX", ("from_onnx", "onnx_node", "onnx_nodes", "to_onnx", "OnnxNode", "OnnxNodeInfo")),
            ("Keras", ("from_keras", "load_keras", "to_keras")),
            ("Flax", ("from_nnx", "to_nnx", "from_linen", "to_linen")),
            ("Haiku and Equinox", ("from_haiku", "to_haiku", "from_equinox", "to_equinox")),
            ("Linear recurrent units", ("from_minimal_lru", "to_minimal_lru", "from_recurrent_gemma", "to_recurrent_gemma")),
            ("Arrays of your own", ("from_params", "flip_update_gate")),
        ),
    ),
    Page("jaxrnn.trees", "Paths of parameters", "Nested dicts with readable paths, and back.", only=("to_dict", "from_dict")),
    Page("jaxrnn.padding", "Padding", "Sequences of different lengths as one array, in few shapes."),
    Page("jaxrnn.data_parallel", "Data parallelism", "The rows of a batch shared out among devices."),
    Page("jaxrnn.text", "Text", "Models of text, as Flax NNX modules."),
    Page("jaxrnn.scaling", "Scaling", "Numbers of a series to inputs of a forecasting model, and outputs of it to numbers."),
    Page("jaxrnn.runs", "Runs", "The trained model of a folder that a training script wrote."),
    Page("jaxrnn.model_json", "Models as JSON", "Their classes and arguments, not their weights."),
    Page("jaxrnn.typing", "Types", "Names that types in signatures have, for annotations of your own."),
]

NOTES = {
    "jaxrnn.CELLS": 'Every cell by its name, ``jaxrnn.CELLS["LSTM"]``: what ``--cell`` of the training scripts chooses from.',
    "jaxrnn.initializers.Initializer": "The type of an initialiser: a function of (key, shape, dtype) that returns an array.",
}
"""What to say of names that have no docstring."""


class Entry(NamedTuple):
    """Something public: its full name, its other names, and what it is ("class", "function", "data")."""

    name: str
    aliases: tuple[str, ...]
    kind: str
    value: Any


def pages() -> list[Page]:
    """Those whose modules are there."""
    return [page for page in PAGES if find_spec(page.module)]


def public_names(page: Page) -> list[str]:
    module = import_module(page.module)
    names = page.only or getattr(module, "__all__", None) or [n for n, v in vars(module).items() if _is_own(module, n, v)]
    return [name for name in names if not isinstance(getattr(module, name), ModuleType)]


def _is_own(module, name: str, value) -> bool:
    made_here = getattr(value, "__module__", None) == module.__name__
    return not name.startswith("_") and made_here and (inspect.isclass(value) or inspect.isfunction(value))


@cache
def entries() -> dict[str, list[Entry]]:
    """What is described on the page of each module, in order."""
    names: dict[tuple[str, int], list[str]] = {}
    values, home = {}, {}
    for page in pages():
        for name in public_names(page):
            value = getattr(import_module(page.module), name)
            names.setdefault((name, id(value)), []).append(page.module)
            values[name, id(value)], home[name, id(value)] = value, page.module
    found: dict[str, list[Entry]] = {page.module: [] for page in pages()}
    for key, value in values.items():
        modules = sorted(names[key], key=len)
        kind = "class" if inspect.isclass(value) else "function" if inspect.isfunction(value) else "data"
        found[home[key]].append(Entry(f"{modules[0]}.{key[0]}", tuple(f"{other}.{key[0]}" for other in modules[1:]), kind, value))
    return found


def types() -> dict[int, str]:
    """Full names of what a type in a signature may be, by their identities."""
    return {id(entry.value): entry.name for of_page in entries().values() for entry in of_page if entry.kind != "function"}


def links(name: str) -> dict[str, tuple[str, str]]:
    """For names that may stand in backticks, short or full, in the docstring of `name`: what they are and their full names."""
    home = max((page.module for page in pages() if name.startswith(f"{page.module}.")), key=len, default="jaxrnn")
    found: dict[str, tuple[str, str]] = {}
    for module in sorted(entries(), key=lambda module: module != home):  # a `Recurrent` of Linen means that of Linen
        for entry in entries()[module]:
            for name in (entry.name, *entry.aliases, entry.name.rpartition(".")[2]):
                found.setdefault(name, (entry.kind, entry.name))
            for member in members(entry.value) if entry.kind == "class" else ():
                found.setdefault(f"{entry.name}.{member}", ("method", f"{entry.name}.{member}"))
    return found


def write(page: Page) -> str:
    """A page in reStructuredText."""
    of_page = {entry.name.rpartition(".")[2]: entry for entry in entries()[page.module]}
    grouped = {name for _, names in page.groups for name in names}
    others = [name for name in of_page if name not in grouped]
    groups = list(page.groups) or [("", ())]
    groups[-1] = (groups[-1][0], (*groups[-1][1], *others))
    made = [page.title, "=" * len(page.title), "", page.text, "", f".. py:module:: {page.module}", ""]
    for heading, names in groups:
        listed = [of_page[name] for name in names if name in of_page]
        if listed and heading:
            made += [heading, "-" * len(heading), ""]
        for entry in listed:
            made += [*_entry(entry), ""]
    return "\n".join(made)


def _entry(entry: Entry) -> Iterator[str]:
    is_ours = str(getattr(entry.value, "__module__", "")).startswith("jaxrnn")
    if entry.kind == "data" or not is_ours:
        yield f".. py:{'function' if entry.kind == 'function' else 'data'}:: {entry.name}"
        yield ""
        theirs = f"The same as ``{entry.value.__module__}.{entry.value.__name__}``." if not is_ours and entry.kind != "data" else ""
        yield f"   {NOTES.get(entry.name, theirs)}"
    else:
        yield f".. auto{entry.kind}:: {entry.name}"
        if entry.kind == "class" and members(entry.value):
            yield f"   :members: {', '.join(members(entry.value))}"
        if entry.kind == "class" and bases(entry.value):
            yield "   :show-inheritance:"


def members(cls: type) -> list[str]:
    """What is described of a class: what it, or a private class below it, defines and describes; not the fields of states."""
    if hasattr(cls, "_fields"):
        return []
    found = {}
    for base in inspect.getmro(cls):
        if base is not cls and (not base.__module__.startswith("jaxrnn") or _is_documented(base)):
            continue
        described = {name for name, value in vars(base).items() if _is_member(name, value) and value.__doc__}
        for name in (*vars(base), *_described_fields(base)):
            if name in described or name in _described_fields(base):
                found.setdefault(name, None)
    return list(found)


def bases(cls: type) -> list[str]:
    """Full names of the nearest classes below that are described."""
    known = {entry.value: entry.name for module in entries().values() for entry in module if entry.kind == "class"}
    return [name for base in cls.__bases__ for name in ([known[base]] if base in known else bases(base))]


def _is_member(name: str, value) -> bool:
    kinds = (staticmethod, classmethod, property)
    return (not name.startswith("_") or name == "__call__") and (inspect.isfunction(value) or isinstance(value, kinds))


def _is_documented(cls: type) -> bool:
    public = cls.__name__ in getattr(import_module("jaxrnn"), "__all__", ())
    return public or any(getattr(import_module(page.module), cls.__name__, None) is cls for page in pages())


@cache
def _described_fields(cls: type) -> tuple[str, ...]:
    """Fields with a docstring below them."""
    body = class_body(cls)
    return tuple(
        line.target.id
        for line, below in pairwise(body)
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    )
