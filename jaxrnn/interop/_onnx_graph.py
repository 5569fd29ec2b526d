"""The recurrent nodes of an ONNX graph: where they are, and which constants they read. How they follow on one another is
`_onnx_chain`'s matter; what a node computes is not known here."""

import os
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop import _checks, _files

INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
OLDEST = 7


class Unreadable(Exception):
    """A constant is there, but cannot be read; the message says why."""


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

        Raises:
            Unreadable: it is in a file that is not there, or no evaluator has what computes it.
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
        try:
            return ReferenceEvaluator(model).run(None, arrays)[0]
        except Exception as error:  # of the operators, each of which has its own
            computed = ", ".join(dict.fromkeys(node.op_type for node in nodes))
            raise Unreadable(f"{name!r} is computed by {computed}, which could not be evaluated: {_files.cause(error)}") from error

    def _collect(self, name: str, nodes: list, arrays: dict[str, np.ndarray], any_size: bool) -> bool:
        """Gather the nodes, in order, and the arrays that a value is computed from; False if it needs more than those."""
        scope = self.find(name)
        if scope is None:
            return False
        if name in scope.given:
            arrays[name] = np.asarray(scope.given[name])
            return True
        if name in scope.tensors:
            arrays[name] = _array(name, scope.tensors[name])
            return True
        node = scope.producers[name]
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            arrays[name] = _array(name, node.attribute[0].t)
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


def _array(name: str, tensor) -> np.ndarray:
    from onnx import checker, numpy_helper

    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError, checker.ValidationError) as error:  # too few bytes; those of another file are not here
        raise Unreadable(f"{name!r} has no readable data: {_files.cause(error)}") from error


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
                return value.decode(errors="replace")
            return [plain(v) for v in value] if isinstance(value, list) else value

        return {a.name: plain(helper.get_attribute_value(a)) for a in self.node.attribute}

    @property
    def inputs(self) -> dict[str, str]:
        """The names of the values that are there, by their names in the operator's definition."""
        slots = INPUTS.get(self.node.op_type, ())
        return {slot: name for slot, name in zip(slots, self.node.input, strict=False) if name}


def load(caller: str, source: Any, given: dict[str, Any] | None) -> tuple[list[Found], dict[str, str]]:
    """All recurrent nodes of a file, model, graph or node, the bodies of other nodes included; and the model's metadata."""
    onnx = _checks.require(caller, "onnx")
    if isinstance(source, str | os.PathLike):
        try:
            source = onnx.load(source)
        except (onnx.checker.ValidationError, ValueError, *_decode_errors()) as error:
            raise ValueError(f"{caller}: `source` should be a whole ONNX file, got {source}: {_files.cause(error)}.") from error
    opset, metadata = onnx.defs.onnx_opset_version(), {}
    if isinstance(source, onnx.ModelProto):
        opset = next((o.version for o in source.opset_import if o.domain in ("", "ai.onnx")), opset)
        metadata = {entry.key: entry.value for entry in source.metadata_props}
        source = _with_shapes(onnx, source).graph
    if isinstance(source, onnx.NodeProto):
        source = onnx.helper.make_graph([source], "node", [], [])
    if not isinstance(source, onnx.GraphProto):
        kinds = "a path, or an onnx ModelProto, GraphProto or NodeProto"
        raise TypeError(f"{caller}: `source` should be {kinds}, got {type(source).__name__}.")
    if opset < OLDEST:
        raise ValueError(
            f"{caller}: `source` should have opset {OLDEST} or newer, got {opset}. Convert it with onnx.version_converter."
        )
    try:
        return list(_walk(Scope(source, opset, given or {}))), metadata
    except UnicodeDecodeError as error:
        raise ValueError(f"{caller}: `source` should hold text as UTF-8, got {error}.") from error


def _with_shapes(onnx, model):
    """The model with the functions it defines written out, and with what can be inferred of sizes."""
    if model.functions:
        from onnx import inliner

        model = inliner.inline_local_functions(model)
    try:
        return onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):  # wrong types, or more than protobuf takes
        return model  # sizes serve initial states only


def _decode_errors() -> tuple:
    from google.protobuf.message import DecodeError

    return (DecodeError,)


def _walk(scope: Scope):
    for node in scope.graph.node:
        if node.op_type in INPUTS and node.domain in ("", "ai.onnx"):
            yield Found(node.name or next((name for name in node.output if name), ""), node, scope)
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _walk(Scope(body, scope.opset, scope.given, scope))
