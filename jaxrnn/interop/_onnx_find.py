"""The recurrent nodes of an ONNX graph, one by one: what each reads, and what is there instead where there is none. How they
follow on one another is `_onnx_chain`'s matter."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from jaxrnn.interop import _onnx_node
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_file import load
from jaxrnn.interop._onnx_graph import INPUTS, QUANTISED, Graph, Problem, Scope, Source, Value, attributes_of, is_recurrent
from jaxrnn.interop._onnx_sizes import Unreadable

WEIGHTS = ("W", "R", "B", "P", *QUANTISED)


@dataclass(frozen=True, eq=False)
class OnnxNodeInfo:
    """What a graph says of a recurrent node, before its weights are read; `onnx_nodes` makes them.

    Args:
        name: in the graph; without one, that of its first output.
        op: "RNN", "LSTM", "GRU" or "DynamicQuantizeLSTM".
        input_size, hidden_size: None where the graph does not hold the weights.
        direction: "forward", "reverse" or "bidirectional".
        inputs: the names of the values that it reads, by the operator's names for them: X, W, R, B, sequence_lens, initial_h, ….
        stack: the names of the nodes, in order, that can be read with it as the layers of one module.
        layer: its place among those.
    """

    name: str
    op: str
    input_size: int | None
    hidden_size: int | None
    direction: str
    inputs: dict[str, str]
    stack: tuple[str, ...] = ()
    layer: int = 0
    found: Any = field(repr=False, default=None)


class Found:
    """A recurrent node and where it stands."""

    def __init__(self, node, scope: Scope, graph: Graph):
        self.node, self.scope, self.graph = node, scope, graph
        self.name = node.name or next((name for name in node.output if name), "")
        self.op = node.op_type
        self.inputs = {slot: name for slot, name in zip(INPUTS[self.op], node.input, strict=False) if name}
        self.y = (scope, node.output[0]) if node.output else None

    @cached_property
    def attributes(self) -> dict[str, Any]:
        try:
            return attributes_of(self.node)
        except Unreadable as error:
            raise ValueError(f"node {self.name!r} should have attributes that can be read: {error}.") from error

    @property
    def direction(self) -> str:
        return self.attributes.get("direction", "forward")

    @property
    def layout(self) -> int:
        return self.attributes.get("layout", 0)

    def value(self, slot: str) -> Any:
        """What the node reads, a `Value`; None where it reads nothing."""
        return self.graph.value(self.scope, self.inputs[slot]) if slot in self.inputs else None

    def x_size(self, axis: int):
        """The size of an axis of X, if it is a number."""
        x = self.value("X")
        size = x.shape[axis] if isinstance(x, Array) and len(x.shape) == 3 else None
        return size if isinstance(size, int) else None

    def origin(self, value: Any) -> Source:
        """Where what is fed comes from."""
        return value if isinstance(value, Source) else self.graph.sources[value.source]

    def info(self, stack: tuple[str, ...], layer: int) -> OnnxNodeInfo:
        sizes: list[int | None] = []
        for slot, axis in (("W", 2), ("R", 2)):
            a = self.value(slot)
            size = a.shape[1 if self.op not in _onnx_node.ORDERS else axis] if isinstance(a, Array) and len(a.shape) == 3 else None
            sizes.append(size if isinstance(size, int) else None)
        return OnnxNodeInfo(self.name, self.op, sizes[0], sizes[1], self.direction, dict(self.inputs), stack, layer, self)


def find(caller: str, source: Any, weights: dict[str, Any] | None) -> list[Found]:
    """All recurrent nodes of a file, model, graph or node, the bodies of other nodes included; parsed here, or before."""
    infos = [source] if isinstance(source, OnnxNodeInfo) else source
    if isinstance(infos, list | tuple):
        if not infos or not all(isinstance(info, OnnxNodeInfo) for info in infos):
            got = ", ".join(type(info).__name__ for info in infos) or "none"
            raise TypeError(f"{caller}: `source` should hold nodes that `onnx_nodes` returned, got {got}.")
        graphs = {id(info.found.graph): info.found.graph for info in infos}
        if len(graphs) > 1:
            raise ValueError(f"{caller}: `source` should hold nodes of one graph, got those of {len(graphs)}.")
        (graph,) = graphs.values()
        if weights:
            graph = graph.with_given(weights)
            return [Found(info.found.node, info.found.scope, graph) for info in infos]
        return [info.found for info in infos]
    graph = Graph(load(caller, source), weights)
    return [Found(node, scope, graph) for node, scope in graph.nodes if is_recurrent(node)] or _none(caller, graph)


MICROSOFT = "com.microsoft"
LOOPS = ("Loop", "Scan", "If", "SequenceMap")
ROLLED_OUT = ("MatMul", "Gemm", "Tanh", "Sigmoid")


def _none(caller: str, graph: Graph):
    """Say what there is in the place of recurrent nodes."""
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node, _ in graph.nodes)
    held = ", ".join(f"{count} {op}" if count > 1 else op for op, count in counts.most_common(8)) or "no nodes at all"
    got = f"{caller}: `source` should hold a node RNN, LSTM or GRU, got none"
    inside = Counter(node.op_type for node, scope in graph.nodes if scope.outer is not None)
    loops = [op for op in LOOPS[:2] if counts[op]]
    if foreign := [op for op in counts if "::" in op]:
        raise ValueError(f"{got}; it holds {', '.join(foreign)}, which other runtimes define, and {held}.")
    if loops and (inside["Tanh"] or inside["Sigmoid"]):
        body = ", ".join(op for op, _ in inside.most_common(6))
        raise ValueError(
            f"{got}: its {' and '.join(loops)} computes the steps itself, from {body}.\nExport it with recurrent nodes, or "
            "load the weights from where the model was trained."
        )
    if counts["Tanh"] + counts["Sigmoid"] > 1 and counts["MatMul"] + counts["Gemm"] > 1:
        raise ValueError(
            f"{got}: no recurrent node, the exporter unrolled the loop into {', '.join(op for op in ROLLED_OUT if counts[op])} for "
            f"every step; it holds {held}.\nExport a layer that is not made of cells, or load the weights from where the model was "
            "trained."
        )
    raise ValueError(f"{got}; it holds {held}.")


def pick(caller: str, found: list[Found], name: str | OnnxNodeInfo) -> Found:
    """The node of the name."""
    wanted = name.name if isinstance(name, OnnxNodeInfo) else name
    if not isinstance(wanted, str):
        kinds = "the name of one recurrent node, or a list of names"
        raise TypeError(f"{caller}: `node` should be {kinds}, got {type(name).__name__}.")
    matching = [node for node in found if node.name == wanted]
    if len(matching) == 1:
        return matching[0]
    rule = "a recurrent node, and" if not matching else "the name of one recurrent node, and there are several of the name"
    names = ", ".join(f"{node.name!r} ({node.op})" for node in found)
    missing = "" if matching else " is none"
    raise ValueError(f"{caller}: `node` should be {rule} {wanted!r}{missing} of those in `source`, which are: {names}.")


def constants(caller: str, found: Found) -> dict[str, np.ndarray]:
    """The weights of a node."""
    slots = INPUTS[found.op]
    beyond = [name for name in found.node.input[len(slots) :] if name]
    if beyond:
        raise ValueError(f"{caller}: node {found.name!r} should have the inputs {', '.join(slots)}, got {beyond} beyond.")
    arrays = {}
    for slot, name in found.inputs.items():
        if slot not in WEIGHTS:
            continue
        rule, hint = f"{caller}: {slot} of node {found.name!r} should be constant", f"\nPass weights={{{name!r}: array}}."
        value = found.value(slot)
        if isinstance(value, Problem):
            raise ValueError(f"{rule}; {name!r} cannot be told: {value.why}.{hint}")
        try:
            arrays[slot] = value.numbers() if isinstance(value, Array) and value.constant else None
        except Unreadable as error:
            raise ValueError(f"{rule}; {name!r} cannot be told: {error}.{hint}") from error
        if arrays[slot] is None:
            raise ValueError(f"{rule}, got {name!r}, which {comes_from(found, value)}.{hint}")
    return arrays


def comes_from(found: Found, value: Value) -> str:
    """How what is fed gets to a node, in words."""
    origin = found.origin(value)
    if origin.node is not None:
        return f"is computed from what the graph is fed, by {origin.node.op_type}"
    return "comes from an input" if origin.fed else "comes from an input of the body that it stands in"


def start(caller: str, found: Found, slot: str, directions: int, hidden: int) -> np.ndarray | Value | None:
    """An initial state: (directions, batch or 1, hidden), in the layout of the node; None for none; or what is fed."""
    value = found.value(slot)
    if value is None:
        return None
    rule = f"{caller}: `{slot}` of node {found.name!r} should"
    name = found.inputs[slot]
    if isinstance(value, Problem):
        raise ValueError(f"{rule} be fed, or follow from constants and sizes; {name!r} cannot be told: {value.why}.")
    if not isinstance(value, Array):
        return value
    batch = found.x_size(0 if found.layout else 1)
    shape = (batch, directions, hidden) if found.layout else (directions, batch, hidden)
    words = tuple("batch" if n is None else n for n in shape)
    fits = [n is None or not isinstance(own, int) or n == own for n, own in zip(shape, value.shape, strict=False)]
    if len(value.shape) != 3 or not all(fits):
        raise ValueError(f"{rule} have shape ({', '.join(map(str, words))}), got ({', '.join(map(str, value.shape))}).")
    if not value.constant:
        return value
    try:
        base, opens = value.simple()
        repeated = [k for k, atoms in enumerate(opens) if atoms is not None]
        if base.dtype == object or repeated not in ([], [0 if found.layout else 1]):
            raise Unreadable("it depends on the sizes of what the graph is fed")
    except Unreadable as error:
        raise ValueError(f"{rule} be fed, or be the same row for each example; {name!r} cannot be told: {error}.") from error
    return base


def lengths(caller: str, found: Found) -> np.ndarray | Value | None:
    """The lengths: (batch or 1,); None for none, or if they are always the whole time; or what is fed."""
    value = found.value("sequence_lens")
    if value is None:
        return None
    rule = f"{caller}: `sequence_lens` of node {found.name!r} should"
    if isinstance(value, Problem):
        raise ValueError(
            f"{rule} be fed, or follow from constants and sizes; {found.inputs['sequence_lens']!r} cannot be told: {value.why}."
        )
    if not isinstance(value, Array):
        return value
    if len(value.shape) != 1 or (value.constant and value.base.dtype.kind not in "iuO"):
        raise ValueError(f"{rule} be a vector of whole numbers, got {value.base.dtype} {value.shape}.")
    batch = found.x_size(0 if found.layout else 1)
    if isinstance(value.shape[0], int) and batch not in (None, value.shape[0]):
        raise ValueError(f"{rule} have shape ({batch},), the batch of X, got {value.shape}.")
    if not value.constant:
        return value
    x = found.value("X")
    time = x.shape[1 if found.layout else 0] if isinstance(x, Array) and len(x.shape) == 3 else None
    if all(n == time for n in value.base.flat):
        return None
    if value.base.dtype == object or any(n < 0 or (isinstance(time, int) and n > time) for n in value.base.flat):
        raise ValueError(f"{rule} be from 0 to {time}, the number of steps, got {value.base.reshape(-1)[:8].tolist()}.")
    return value.base.reshape(-1)
