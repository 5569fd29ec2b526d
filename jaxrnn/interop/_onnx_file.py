"""From a path, a model, a graph or a node to a graph that may be read: bounds come before work, and nothing beside the file is
opened. What the nodes of a graph mean is not known here."""

import os
import stat
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop import _checks, _files
from jaxrnn.interop._onnx_sizes import Unreadable

OLDEST = 7
SPARE = 64 << 20  # bytes beside those in proportion to the file
MESSAGE, TEXT, WHOLE = 160, 24, 16  # bytes in memory: of a message, of a text, for each byte of packed whole numbers
MOST_FIELDS = 500_000
SMALL = 1024  # bytes: constants from here on hold weights, not sizes


class Loaded(NamedTuple):
    """A graph, with what its model says of it.

    Args:
        inferred: the same graph without weights, with what is known of the types of its values.
        name: of the file, if it is one. size: in bytes.
    """

    graph: Any
    inferred: Any
    opset: int
    metadata: dict[str, str]
    size: int


def load(caller: str, source: Any) -> Loaded:
    onnx = _checks.require(caller, "onnx")
    if isinstance(source, str | os.PathLike):
        source = _parse(onnx, caller, source)
    opset, metadata, inferred = onnx.defs.onnx_opset_version(), {}, None
    size = source.ByteSize() if isinstance(source, onnx.ModelProto | onnx.GraphProto | onnx.NodeProto) else 0
    if isinstance(source, onnx.ModelProto):
        opset = next((o.version for o in source.opset_import if o.domain in ("", "ai.onnx")), opset)
        metadata = {entry.key: entry.value for entry in source.metadata_props}
        if source.functions:
            source = _inlined(onnx, caller, source)
        inferred = _inferred(onnx, source)
        source = source.graph
    if isinstance(source, onnx.NodeProto):
        inputs = [onnx.ValueInfoProto(name=name) for name in dict.fromkeys(source.input) if name]
        source = onnx.helper.make_graph([source], "node", inputs, [])
    if not isinstance(source, onnx.GraphProto):
        kinds = "a path, an onnx ModelProto, GraphProto or NodeProto, or what `onnx_nodes` returned"
        raise TypeError(f"{caller}: `source` should be {kinds}, got {type(source).__name__}.")
    if opset < OLDEST:
        raise ValueError(
            f"{caller}: `source` should have opset {OLDEST} or newer, got {opset}. Convert it with onnx.version_converter."
        )
    return Loaded(source, inferred or onnx.GraphProto(), opset, metadata, size)


def _parse(onnx, caller: str, path: Any):
    """The model of a file; a file whose text or lists would take far more memory than it has bytes is none."""
    from google.protobuf.message import DecodeError

    wanted = f"{caller}: `source` should be a whole ONNX file, got {path}"
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{wanted}: it is no regular file.")
    with open(path, "rb") as file:
        data = file.read()
    try:
        _scan(onnx, data)
        model = onnx.ModelProto.FromString(data)
    except (DecodeError, IndexError, Unreadable) as error:
        raise ValueError(f"{wanted}: {_files.cause(error)}.") from error
    if not model.HasField("graph"):
        raise ValueError(f"{wanted}: it holds no graph.")
    return model


@cache
def _fields(descriptor) -> dict[int, tuple[Any, int]]:
    """For each field of a message: the message that it holds, if it does, and the bytes in memory, each or for each byte."""
    kinds = {}
    for field in descriptor.fields:
        whole = field.type in (field.TYPE_INT64, field.TYPE_UINT64, field.TYPE_INT32)
        text = TEXT if field.type in (field.TYPE_STRING, field.TYPE_BYTES) else 0
        kinds[field.number] = (field.message_type, MESSAGE if field.message_type else WHOLE if whole else text)
    return kinds


def _scan(onnx, data: bytes):
    """Walk over the fields of the file, without a copy, and add up what they will take in memory."""
    room, count = 8 * len(data) + SPARE, 0
    todo = [(onnx.ModelProto.DESCRIPTOR, 0, len(data))]
    while todo:
        descriptor, at, end = todo.pop()
        kinds = _fields(descriptor)
        while at < end:
            key, at = _varint(data, at)
            inside, cost = kinds.get(key >> 3, (None, 0))
            wire = key & 7
            if key >> 3 == 0:
                raise Unreadable("a field has number 0")
            if wire == 0:
                _, at = _varint(data, at)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            elif wire == 2:
                length, at = _varint(data, at)
                if inside is not None:
                    todo.append((inside, at, at + length))
                room -= cost * length if cost == WHOLE else cost
                at += length
            else:
                raise Unreadable("a field has a type that ONNX does not have")
            count += 1
            if room < 0 or count > MOST_FIELDS:
                raise Unreadable("its lists would take more than 8 times its size, or have too many entries")
        if at != end:
            raise Unreadable("a field ends beyond its message")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = data[at]
    if value < 128:
        return value, at + 1
    value &= 127
    for shift in range(7, 70, 7):
        at += 1
        value |= (data[at] & 127) << shift
        if data[at] < 128:
            return value, at + 1
    raise Unreadable("a number has more than 64 bits")


def _inlined(onnx, caller: str, model):
    """The model with the functions that it defines written out, if that does not multiply it."""
    from onnx import inliner

    bodies = {(f.domain, f.name): list(_nodes(f.node)) for f in model.functions}
    bytes_of: dict[Any, int] = {}
    room = 4 * model.ByteSize() + SPARE
    todo = [[key] for key in bodies]
    while todo:
        path = todo.pop()
        calls = [(node.domain, node.op_type) for node in bodies[path[-1]]]
        for key in calls:
            if key in path and key not in bytes_of:
                names = " -> ".join(name for _, name in [*path[path.index(key) :], key])
                raise ValueError(f"{caller}: `source` should have functions that end, got {names}.")
        waiting = [key for key in dict.fromkeys(calls) if key in bodies and key not in bytes_of]
        if waiting:
            todo += [path, *([*path, key] for key in waiting)]
        elif path[-1] not in bytes_of:
            bytes_of[path[-1]] = sum(n.ByteSize() + bytes_of.get(key, 0) for n, key in zip(bodies[path[-1]], calls, strict=True))
    if sum(bytes_of.get((node.domain, node.op_type), 0) for node in _nodes(model.graph.node)) > room:
        raise ValueError(f"{caller}: `source` should not grow to more than 4 times its size when its functions are written out.")
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{caller}: `source` should have functions that can be written out, got {_files.cause(error)}.") from error


def _nodes(nodes):
    """All nodes, those of bodies included."""
    for node in nodes:
        yield node
        for graph in bodies(node):
            yield from _nodes(graph.node)


def bodies(node) -> list[Any]:
    """The graphs that a node holds."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def _inferred(onnx, model):
    """The graph without weights, nor what it claims of its own values, with the sizes that follow from those of its inputs."""
    bare = onnx.ModelProto(ir_version=model.ir_version or onnx.IR_VERSION)
    bare.opset_import.extend(model.opset_import)
    graph, constants = bare.graph, {tensor.name for tensor in model.graph.initializer}
    for value in model.graph.input:
        if value.name not in constants:
            kept = graph.input.add()
            kept.CopyFrom(value)
            for k, dim in enumerate(kept.type.tensor_type.shape.dim):
                if dim.dim_value <= 0:  # a name that two axes share is no proof that they are of one size
                    dim.Clear()
                    dim.dim_param = f"{value.name}.{k}"
    for tensor in model.graph.initializer:
        _keep(onnx, graph, tensor, tensor.name)
    for node in model.graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t") and node.output:
            _keep(onnx, graph, node.attribute[0].t, node.output[0])
        else:
            graph.node.add().CopyFrom(node)
    try:  # without values: onnx would write out each number of a Range, and of what is joined again and again
        return onnx.shape_inference.infer_shapes(bare, data_prop=False).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError):
        pass
    return graph


def _keep(onnx, graph, tensor, name: str):
    """Keep a small constant, and of a large one what it looks like."""
    if tensor.ByteSize() < SMALL:
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = name
    elif tensor.data_type in onnx.TensorProto.DataType.values() and all(n >= 0 for n in tensor.dims):
        graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))


def tensor_array(tensor) -> np.ndarray:
    """The array of a tensor, if all of its bytes are in it."""
    from onnx import TensorProto, helper, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        raise Unreadable("its data are in another file, which is not opened here; onnx.load(path) would open it, and may be passed")
    kinds = TensorProto.DataType
    if tensor.data_type not in kinds.values() or tensor.data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise Unreadable(f"its data type should be one of ONNX's numbers, got {tensor.data_type}")
    dims = list(tensor.dims)
    size = int(np.prod(dims, dtype=object)) if dims else 1
    if len(dims) > 64 or any(n < 0 for n in dims) or size > 1 << 40:
        raise Unreadable(f"its sizes should be from 0 on and not too many, got {dims[:8]}")
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    bits = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}.get(kinds.Name(tensor.data_type), 8 * dtype.itemsize)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != -(-size * bits // 8):
            raise Unreadable(f"its {dims} of {dtype} should have {-(-size * bits // 8)} bytes, got {len(tensor.raw_data)}")
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        entries = len(getattr(tensor, field))
        each = 2 if dtype.kind == "c" else 1
        if entries != (size * each if bits >= 8 else -(-size * bits // 8)):
            raise Unreadable(f"its {dims} of {dtype} should have {size} entries, got {entries}")
    return numpy_helper.to_array(tensor)
