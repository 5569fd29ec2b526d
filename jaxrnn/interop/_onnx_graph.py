"""The values of an ONNX graph, as far as they follow from constants and sizes, and where its recurrent nodes are. What the
operators do is `_onnx_ops`'s matter; what a recurrent node computes is not known here."""

from collections.abc import Hashable
from copy import copy
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop import _files, _onnx_array, _onnx_ops
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_file import SPARE, Loaded, bodies, tensor_array
from jaxrnn.interop._onnx_sizes import Unreadable

INPUTS = {
    "RNN": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
    "LSTM": ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"),
    "GRU": ("X", "W", "R", "B", "sequence_lens", "initial_h"),
}
QUANTISED = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
INPUTS["DynamicQuantizeLSTM"] = (*INPUTS["LSTM"], *QUANTISED)
DOMAINS = {"DynamicQuantizeLSTM": ("com.microsoft",)}


class Source(NamedTuple):
    """A value that the graph is fed, or computes from what it is fed.

    Args:
        fed: whether it is an input of the whole graph.
        node: what computes it, None for an input.
        why: what keeps it from being told from its inputs.
    """

    name: str
    fed: bool
    node: Any = None
    why: str = ""


class Problem(NamedTuple):
    """A value that follows from nothing that the graph is fed, and cannot be told all the same."""

    why: str


Value = Array | Source | Problem  # a source stands for itself where not even its rank is known
Key = tuple["Scope", str]


class Scope:
    """The values that a graph sees: its own and, if it is a body of a node `inside`, those of the graph around it."""

    def __init__(self, graph, inferred, outer: "Scope | None" = None, inside: str = ""):
        self.graph, self.outer, self.inside = graph, outer, inside
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.sparse = {tensor.values.name for tensor in graph.sparse_initializer}
        self.inputs = {value.name for value in graph.input}
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.types = {v.name: v.type.tensor_type for v in (*inferred.input, *inferred.output, *inferred.value_info)}
        self.inferred_bodies = {tuple(node.output): bodies(node) for node in inferred.node}

    def holds(self, name: str) -> bool:
        return name in self.tensors or name in self.producers or name in self.inputs or name in self.sparse


class Graph:
    """The evaluator: each value once, without recursion, and no more bytes than are in proportion to the file.

    Args:
        given: arrays for values that the graph does not hold.
    """

    def __init__(self, loaded: Loaded, given: dict[str, Any] | None):
        self.opset, self.metadata = loaded.opset, loaded.metadata
        self.given = {name: np.asarray(a) for name, a in (given or {}).items()}
        self.room = 4 * loaded.size + SPARE
        self.values: dict[Key, Value] = {}
        self.sources: dict[Hashable, Source] = {}
        self.unmoved: dict[Hashable, Array] = {}  # of each source whose axes are known
        self.top = Scope(loaded.graph, loaded.inferred)
        self.nodes: list[tuple[Any, Scope]] = []  # all, those of bodies included
        todo = [self.top]
        while todo:
            scope = todo.pop()
            for node in scope.graph.node:
                self.nodes.append((node, scope))
                held = bodies(node)
                inferred = scope.inferred_bodies.get(tuple(node.output), [])
                inferred = inferred if len(inferred) == len(held) else [type(graph)() for graph in held]
                todo += [Scope(graph, types, scope, node.op_type) for graph, types in zip(held, inferred, strict=True)]

    def with_given(self, given: dict[str, Any]) -> "Graph":
        """The same graph, parsed once, with more arrays given."""
        other = copy(self)
        other.given = self.given | {name: np.asarray(a) for name, a in given.items()}
        other.values, other.sources, other.unmoved = {}, {}, {}
        return other

    def find(self, scope: Scope, name: str) -> Key:
        """The scope that holds the value; the outermost one, if none does."""
        while not scope.holds(name) and scope.outer is not None:
            scope = scope.outer
        return scope, name

    def producer(self, scope: Scope, name: str) -> Any:
        """The node that computes a value, if one does."""
        scope, name = self.find(scope, name)
        return None if name in scope.tensors or name in self.given else scope.producers.get(name)

    def value(self, scope: Scope, name: str) -> Value:
        todo = [self.find(scope, name)]
        open_: dict[Key, None] = {}
        while todo:
            key = todo[-1]
            if key in self.values:
                todo.pop()
                continue
            reads = self._reads(*key)
            waiting = [read for read in reads if read not in self.values]
            if any(read in open_ for read in waiting) or key in waiting:
                names = [n for _, n in open_]
                self.values[key] = Problem(f"it stands in a cycle of nodes: {' <- '.join(names[-4:] or [key[1]])} <- {key[1]}")
            elif waiting:
                open_[key] = None
                todo += waiting
                continue
            else:
                self._evaluate(key, reads)
            open_.pop(key, None)
            todo.pop()
        return self.values[self.find(scope, name)]

    def _reads(self, scope: Scope, name: str) -> list[Key]:
        """What a value is computed from; for a node with bodies, what those read of the graphs around them too."""
        node = self.producer(scope, name)
        if node is None:
            return []
        return [self.find(scope, read) for read in (*node.input, *_free(node)) if read]

    def _evaluate(self, key: Key, reads: list[Key]):
        scope, name = key
        node = self.producer(scope, name)
        if node is None:
            self.values[key] = self._leaf(scope, name)
            return
        values = {read: self.values[read] for read in reads}
        names = [n for n in node.output if n]
        given: list[Value | None] = [self.values[self.find(scope, n)] if n else None for n in node.input]
        fed = any(is_fed(value) for value in values.values())
        recurrent = is_recurrent(node)
        try:
            if recurrent:
                raise Unreadable("")
            results = self._run(node, given)
            self.values |= {(scope, n): a for n, a in zip(node.output, results, strict=False) if n}
        except Unreadable as error:
            why = f"{node.op_type}: {error}"
            if (fed or recurrent) and node.op_type not in (*_onnx_ops.RANDOM, "Shape", "Size"):
                for k, n in enumerate(node.output):
                    if n:
                        shape, first = self._recurrent_shape(node, scope, k) if recurrent else (None, ())
                        self.values[scope, n] = self._source(scope, n, Source(n, False, node, str(error)), shape, first)
            else:
                self.values |= {(scope, n): Problem(self._inner(given) or why) for n in names}
        for n in names:
            self.values.setdefault((scope, n), Problem(f"{node.op_type} has no output {n!r}"))

    @staticmethod
    def _inner(given: list[Value | None]) -> str:
        """The first cause among the inputs."""
        return next((value.why for value in given if isinstance(value, Problem)), "")

    def _run(self, node, given: list[Any]) -> list[Array]:
        if node.op_type in _onnx_ops.RANDOM:
            raise Unreadable("it draws at random")
        plain = node.domain in ("", "ai.onnx") or (node.domain, node.op_type) == ("com.microsoft", "DequantizeLinear")
        operator = {**_onnx_ops.OPERATORS, "Constant": _constant}.get(node.op_type) if plain else None
        if operator is None:
            domain = f"{node.domain}::" * bool(node.domain)
            raise Unreadable(f"{domain}{node.op_type} is not evaluated here")
        for value in given:
            if isinstance(value, Problem):
                raise Unreadable(value.why)
            if isinstance(value, Source):
                raise Unreadable("the number of axes of what it reads is not known")
        call = _onnx_ops.Call(node.op_type, attributes_of(node), given, len(node.output), self.opset, self._charge)
        try:
            results = operator(call)
        except (ValueError, TypeError, IndexError, ArithmeticError) as error:  # of NumPy, for what does not fit
            raise Unreadable(_files.cause(error)) from error
        return results if isinstance(results, list) else [results]

    def _charge(self, count: int):
        self.room -= count
        if self.room < 0:
            raise Unreadable("it takes more memory than 4 times the size of the graph")

    def _leaf(self, scope: Scope, name: str) -> Value:
        """A constant, an input, or nothing."""
        if name in self.given:
            return _onnx_array.of_numbers(self.given[name])
        if name in scope.tensors:
            try:
                return _onnx_array.of_numbers(tensor_array(scope.tensors[name]))
            except (Unreadable, ValueError, TypeError) as error:
                return Problem(f"{name!r} has no readable data: {_files.cause(error)}")
        if name in scope.inputs:
            return self._source(scope, name, Source(name, scope.outer is None))
        if name in scope.sparse:
            return Problem(f"{name!r} is sparse")
        return Problem(f"{name!r} is neither an input of the graph nor computed in it")

    def _source(self, scope: Scope, name: str, source: Source, shape=None, first=()) -> Value:
        """What is fed, as an array of what is known of its sizes."""
        self.sources[scope, name] = source
        known = scope.types.get(name)
        dtype = _dtype(known.elem_type) if known is not None and known.elem_type else None
        if shape is None and known is not None and known.HasField("shape"):
            symbols = _onnx_array.fresh_shape(name, len(known.shape.dim))
            named = [_onnx_array.symbol(d.dim_param) if d.dim_param else None for d in known.shape.dim]
            shape = [d.dim_value if d.dim_value > 0 else n or s for d, n, s in zip(known.shape.dim, named, symbols, strict=True)]
        if shape is None or len(shape) > 16:
            return source
        self.unmoved[scope, name] = _onnx_array.of_source((scope, name), shape, dtype, first)
        return self.unmoved[scope, name]

    def _recurrent_shape(self, node, scope: Scope, output: int):
        """Of Y, Y_h or Y_c: the time and batch of X, the node's directions and hidden size; and where the latter two are."""
        from jaxrnn.interop._onnx_node import DIRECTIONS

        attributes = attributes_of(node)
        directions = len(DIRECTIONS.get(attributes.get("direction", "forward"), ()))
        hidden, layout = attributes.get("hidden_size"), attributes.get("layout", 0)
        r = self.values.get(self.find(scope, node.input[2])) if len(node.input) > 2 else None
        if hidden is None and isinstance(r, Array) and len(r.shape) == 3:
            hidden = r.shape[1 if node.op_type in DOMAINS else 2]
        if not directions or not isinstance(hidden, int) or hidden < 1:
            return None, ()
        x = self.values.get(self.find(scope, node.input[0])) if node.input else None
        x_shape = x.shape if isinstance(x, Array) and len(x.shape) == 3 else _onnx_array.fresh_shape(f"{node.output[output]}.X", 3)
        time, batch = (x_shape[1], x_shape[0]) if layout else x_shape[:2]
        if output == 0:
            return ((batch, time, directions, hidden), (2, 3)) if layout else ((time, directions, batch, hidden), (1, 3))
        return ((batch, directions, hidden), (1, 2)) if layout else ((directions, batch, hidden), (0, 2))


def is_recurrent(node) -> bool:
    return node.op_type in INPUTS and node.domain in DOMAINS.get(node.op_type, ("", "ai.onnx"))


def is_fed(value: Value) -> bool:
    return isinstance(value, Source) or (isinstance(value, Array) and not value.constant)


def _free(node) -> list[str]:
    """The names that the bodies of a node read and do not hold."""
    found: list[str] = []
    for graph in bodies(node):
        held = {v.name for v in (*graph.input, *graph.initializer)} | {name for n in graph.node for name in n.output}
        inner = [name for n in graph.node for name in (*n.input, *_free(n))] + [v.name for v in graph.output]
        found += [name for name in inner if name and name not in held]
    return found


def _dtype(elem_type: int):
    from onnx import helper

    try:
        return helper.tensor_dtype_to_np_dtype(elem_type)
    except (KeyError, TypeError, ValueError):
        return None


def attributes_of(node) -> dict[str, Any]:
    """The attributes, with text as `str` and tensors as arrays; those that hold something else are left out."""
    found = {}
    for attribute in node.attribute:
        kind = attribute.AttributeType.Name(attribute.type) if attribute.type in attribute.AttributeType.values() else ""
        match kind:
            case "FLOAT" | "INT":
                found[attribute.name] = attribute.f if kind == "FLOAT" else attribute.i
            case "STRING":
                found[attribute.name] = attribute.s.decode(errors="replace")
            case "FLOATS" | "INTS":
                found[attribute.name] = list(attribute.floats if kind == "FLOATS" else attribute.ints)
            case "STRINGS":
                found[attribute.name] = [s.decode(errors="replace") for s in attribute.strings]
            case "TENSOR":
                found[attribute.name] = tensor_array(attribute.t)
    return found


def _constant(call: _onnx_ops.Call) -> Array:
    """A node that holds its own value, in one of the kinds that there are."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64, "value": None}
    for name, value in call.attributes.items():
        if name in kinds:
            return _onnx_array.of_numbers(np.asarray(value, kinds[name]))
    raise Unreadable("it holds no numbers")
