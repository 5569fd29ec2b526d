"""The recurrent nodes of an ONNX graph: where they are, which constants they read, how they follow on one another. What a node
computes is not known here."""

import os
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop import _common as common

OPERATORS = ("RNN", "LSTM", "GRU")
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OLDEST = 7


class Scope:
    """The values that a graph sees: its own and, if it is the body of a node, those of the graph around it.

    Args:
        graph: a GraphProto. opset: its version. given: arrays of values that the graph does not hold. outer: the scope around.
    """

    def __init__(self, graph, opset: int, given: dict[str, Any], outer: "Scope | None" = None):
        self.graph, self.opset, self.given, self.outer = graph, opset, given, outer
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.sizes = dict(outer.sizes) if outer else {}
        for value in (*graph.input, *graph.value_info):
            if value.type.tensor_type.HasField("shape"):
                self.sizes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]

    def find(self, name: str) -> "Scope | None":
        """The scope that holds or computes the value."""
        if name in self.given or name in self.tensors or name in self.producers:
            return self
        return self.outer.find(name) if self.outer else None

    def constant(self, name: str, *, any_size: bool = False) -> np.ndarray | None:
        """The array of a value, or None if it depends on what the graph is fed.

        With `any_size`, it may depend on the sizes of what is fed, and those that the graph leaves open are 1.
        """
        import onnx
        from onnx.reference import ReferenceEvaluator

        nodes: list[Any] = []
        arrays: dict[str, np.ndarray] = {}
        if not self._collect(name, nodes, arrays, any_size):
            return None
        if name in arrays:
            return arrays[name]
        inputs = [onnx.ValueInfoProto(name=read) for read in arrays]
        graph = onnx.helper.make_graph(nodes, "constants", inputs, [onnx.ValueInfoProto(name=name)])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", self.opset)])
        return ReferenceEvaluator(model).run(None, arrays)[0]

    def _collect(self, name: str, nodes: list, arrays: dict[str, np.ndarray], any_size: bool) -> bool:
        """Gather the nodes, in order, and the arrays that a value is computed from; False if it needs more than those."""
        from onnx import numpy_helper

        scope = self.find(name)
        if scope is None:
            return False
        if name in scope.given:
            arrays[name] = np.asarray(scope.given[name])
            return True
        if name in scope.tensors:
            arrays[name] = numpy_helper.to_array(scope.tensors[name])
            return True
        node = scope.producers[name]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[name] = numpy_helper.to_array(node.attribute[0].t)
            return True
        if any_size and node.op_type == "Shape" and node.input[0] in scope.sizes:
            arrays[name] = np.array(scope.sizes[node.input[0]], np.int64)
            return not node.attribute  # `start` and `end` cut it
        if any(attribute.HasField("g") for attribute in node.attribute):
            return False
        if not all(scope._collect(read, nodes, arrays, any_size) for read in node.input if read):
            return False
        if node not in nodes:
            nodes.append(node)
        return True


class Found(NamedTuple):
    """A recurrent node and where it stands."""

    name: str
    node: Any
    scope: Scope

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes, with text as `str`."""
        from onnx import helper

        def plain(value):
            if isinstance(value, bytes):
                return value.decode()
            return [plain(v) for v in value] if isinstance(value, list) else value

        return {a.name: plain(helper.get_attribute_value(a)) for a in self.node.attribute}

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the values that are there, by their names in the operator's definition."""
        return {slot: name for slot, name in zip(INPUTS, self.node.input, strict=False) if name}


def load(caller: str, source: Any, given: dict[str, Any] | None) -> tuple[list[Found], dict[str, str]]:
    """All recurrent nodes of a file, model, graph or node, the bodies of other nodes included; and the model's metadata."""
    onnx = common.require(caller, "onnx", "onnx")
    if isinstance(source, str | os.PathLike):
        try:
            source = onnx.load(source)
        except (onnx.checker.ValidationError, *_decode_errors()) as error:
            raise ValueError(f"{caller}: `source` should be a whole ONNX file, got {source}: {error}.") from error
    opset, metadata = onnx.defs.onnx_opset_version(), {}
    if isinstance(source, onnx.ModelProto):
        opset = next((o.version for o in source.opset_import if o.domain in ("", "ai.onnx")), opset)
        metadata = {entry.key: entry.value for entry in source.metadata_props}
        source = onnx.shape_inference.infer_shapes(source).graph
    if isinstance(source, onnx.NodeProto):
        source = onnx.helper.make_graph([source], "node", [], [])
    if not isinstance(source, onnx.GraphProto):
        kinds = "a path, or an onnx ModelProto, GraphProto or NodeProto"
        raise TypeError(f"{caller}: `source` should be {kinds}, got {type(source).__name__}.")
    if opset < OLDEST:
        raise ValueError(
            f"{caller}: `source` should have opset {OLDEST} or newer, got {opset}. Convert it with onnx.version_converter."
        )
    return list(_walk(Scope(source, opset, given or {}))), metadata


def _decode_errors() -> tuple:
    from google.protobuf.message import DecodeError

    return (DecodeError,)


def _walk(scope: Scope):
    for node in scope.graph.node:
        if node.op_type in OPERATORS and node.domain in ("", "ai.onnx"):
            yield Found(node.name or next(name for name in node.output if name), node, scope)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _walk(Scope(body, scope.opset, scope.given, scope))


# Chains ----------------------------------------------------------------------------------------------------------------


def chain(nodes: list[Found]) -> list[Found] | None:
    """The nodes in the order in which each reads the outputs of the one before, or None if they do not form one chain."""
    readers = {previous.name: node for node in nodes if (previous := _previous(node, nodes)) is not None}
    firsts = [node for node in nodes if _previous(node, nodes) is None]
    if len(firsts) != 1 or len({node.name for node in nodes}) < len(nodes):
        return None
    order = firsts
    while order[-1].name in readers:
        order.append(readers[order[-1].name])
    return order if len(order) == len(nodes) else None


def _previous(found: Found, nodes: list[Found]) -> Found | None:
    """The node whose outputs, directions side by side, are what this node reads as X; or None."""
    between, name = [], found.inputs["X"]
    producer = found.scope.producers.get(name)
    while producer is not None and producer.op_type in ("Identity", "Dropout", "Squeeze", "Transpose", "Reshape"):
        between.append(producer)
        name = producer.input[0]
        producer = found.scope.producers.get(name)
    before = next((other for other in nodes if other.node is producer or other.node == producer), None)
    if before is None or before.node.output[0] != name:
        return None
    axes = _layout(before)
    for node in reversed(between):
        axes = _moved(Found("", node, found.scope), axes, two_way=before.attributes.get("direction") == "bidirectional")
    expected = {0: ["time", "batch", "features"], 1: ["batch", "time", "features"]}[found.attributes.get("layout", 0)]
    return before if axes == expected or axes == [*expected[:2], "hidden"] else None


def _layout(found: Found) -> list[str]:
    """The axes of Y."""
    if found.attributes.get("layout", 0):
        return ["batch", "time", "direction", "hidden"]
    return ["time", "direction", "batch", "hidden"]


def _moved(found: Found, axes: list[str] | None, *, two_way: bool) -> list[str] | None:
    """The axes after a node that only moves, drops or joins them; None if they cannot be told."""
    if axes is None or found.node.op_type in ("Identity", "Dropout"):
        return axes
    if found.node.op_type == "Transpose":
        return [axes[k] for k in found.attributes.get("perm", range(len(axes))[::-1])]
    if found.node.op_type == "Squeeze":
        given = found.attributes.get("axes")
        if given is None and len(found.node.input) > 1:
            given = found.scope.constant(found.node.input[1])
        dropped = {int(k) % len(axes) for k in ([] if given is None else given)}
        return None if two_way else [axis for k, axis in enumerate(axes) if k not in dropped]
    if len(axes) != 4 or (two_way and axes[2:] != ["direction", "hidden"]):
        return None
    return [*(axis for axis in axes if axis not in ("direction", "hidden")), "features"]
