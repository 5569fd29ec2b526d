"""A module as an ONNX model: one node for each layer, and the transpositions between them. What a node computes is not known
here."""

import json
from typing import Any

import jax
import numpy as np

from jaxrnn.interop import _checks, _modules, _onnx_around, _onnx_layer
from jaxrnn.interop._onnx_around import Parts
from jaxrnn.nnx import Recurrent

VERSIONS = {"float32": (17, 8), "float64": (17, 8), "float16": (17, 8), "bfloat16": (22, 10)}
"""The versions (opset, IR) to write for each dtype: old ones, that many runtimes read; bfloat16 came with opset 22."""


class Graph:
    """An ONNX graph in the making: nodes and constants, by name."""

    def __init__(self, onnx, elem_type: int):
        self.onnx, self.elem_type = onnx, elem_type
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []

    def constant(self, name: str, a) -> str:
        self.constants.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(a), name))
        return name

    def add(self, op: str, inputs: list[str], *outputs: str, **attributes) -> str:
        """Add a node, named after its first output, which is returned."""
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=f"{outputs[0]}_node", **attributes))
        return outputs[0]

    def value(self, name: str, shape: tuple, elem_type: int | None = None):
        return self.onnx.helper.make_tensor_value_info(name, elem_type or self.elem_type, shape)


def model(module: Any, *, lengths: bool, states: bool):
    """The ModelProto of a recurrent module, with what is around it: a model's head, or the members of a `Sequential`."""
    onnx = _checks.require("to_onnx", "onnx")
    parts = _onnx_around.parts("to_onnx", module)
    module, stack, params = parts.module, parts.module.stack, _modules.values(parts.module)
    _checks.refuse_options("to_onnx", stack, learn_initial_state=(True,))
    dtype = params[0][0].w_ih.dtype
    graph = Graph(onnx, onnx.helper.np_dtype_to_tensor_dtype(dtype))

    axes = ("batch", "time") if module.batch_first else ("time", "batch")
    graph.inputs.append(graph.value("x", (*axes, parts.input_size)))
    value = _onnx_around.add(graph, parts.before, "x")
    value = graph.add("Transpose", [value], "xs", perm=[1, 0, 2]) if module.batch_first else value
    length = ""
    if lengths:
        graph.inputs.append(graph.value("lengths", ("batch",), onnx.TensorProto.INT32))
        length = "lengths"
    starts = _starts(graph, module, value, states=states)
    empty = _empty(graph, length) if length and any(starts) else None

    finals = []
    for k, layer in enumerate(params):
        op, attributes, weights = _onnx_layer.write("to_onnx", stack.cell, layer)
        names = {slot: graph.constant(f"layer_{k}.{slot}", a) for slot, a in weights.items()}
        fields = stack.cell.State._fields
        final = [f"layer_{k}.Y_{field}" for field in fields]
        inputs = [value, names["W"], names["R"], names.get("B", ""), length, *starts[k]]
        if "P" in names:
            inputs += [""] * (7 - len(inputs)) + [names["P"]]
        graph.nodes.append(onnx.helper.make_node(op, inputs, [f"layer_{k}.Y", *final], name=f"layer_{k}", **attributes))
        if empty is not None:
            ends = zip(fields, starts[k], final, strict=True)
            final = [graph.add("Where", [empty, start, end], f"layer_{k}.final_{field}") for field, start, end in ends]
        finals.append(final)
        value = _merged(graph, k, stack.num_directions, stack.layer_output_sizes[k])
    if parts.head is None:
        _output(graph, parts, value)
    else:
        _head(graph, parts.head, finals[-1][0])
    if states or (parts.head is None and not module.output_only):
        _final_states(graph, module, finals)

    opset, ir = VERSIONS[str(dtype)]
    made = onnx.helper.make_model(
        onnx.helper.make_graph(graph.nodes, "jaxrnn", graph.inputs, graph.outputs, graph.constants),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
        ir_version=ir,
        producer_name="jaxrnn",
    )
    kept = {"batch_first": module.batch_first, "dropout": stack.dropout} | ({"output_only": True} if module.output_only else {})
    onnx.helper.set_model_props(made, {"jaxrnn": json.dumps(kept)})
    onnx.checker.check_model(made, full_check=True)
    return made


def _empty(graph: Graph, lengths: str) -> str:
    """Whether a sequence has no step, (batch, 1). It ends where it starts; onnxruntime's nodes give zeros."""
    is_zero = graph.add("Equal", [lengths, graph.constant("no_steps", np.array(0, np.int32))], "is_empty")
    return graph.add("Unsqueeze", [is_zero, graph.constant("last_axis", np.array([-1]))], "empty")


def _starts(graph: Graph, module: Recurrent, xs: str, *, states: bool) -> list[list[str]]:
    """For each layer, the names of its initial states, if any: from inputs, or learned."""
    stack, directions = module.stack, module.stack.num_directions
    fields, hidden = stack.cell.State._fields, stack.hidden_sizes
    if states:
        return _pieces(graph, fields, hidden, directions)
    if module.learned is None:
        return [[] for _ in hidden]
    learned = jax.tree.map(lambda v: np.array(v.get_value()), module.learned, is_leaf=_modules.is_variable)
    batch = graph.add("Gather", [graph.add("Shape", [xs], "shape"), graph.constant("one", np.array([1]))], "batch_size")
    found = []
    for k, layer in enumerate(learned):
        ends = [graph.constant(f"layer_{k}.{end}", np.array([n])) for end, n in (("directions", directions), ("hidden", hidden[k]))]
        shape = graph.add("Concat", [ends[0], batch, ends[1]], f"layer_{k}.shape", axis=0)
        rows = [graph.constant(f"layer_{k}.learned_{f}", np.stack([getattr(s, f) for s in layer])[:, None]) for f in fields]
        found.append([graph.add("Expand", [row, shape], f"layer_{k}.initial_{f}") for row, f in zip(rows, fields, strict=True)])
    return found


def _pieces(graph: Graph, fields: tuple, hidden: tuple, directions: int) -> list[list[str]]:
    """Inputs h_0 and c_0, cut into layers; or, if hidden sizes differ, one input for each layer."""
    count = len(hidden)
    if len(set(hidden)) > 1:
        named = [[f"{field}_0_l{k}" for field in fields] for k in range(count)]
        graph.inputs += [graph.value(name, (directions, "batch", hidden[k])) for k, names in enumerate(named) for name in names]
        return named
    graph.inputs += [graph.value(f"{field}_0", (count * directions, "batch", hidden[0])) for field in fields]
    if count == 1:
        return [[f"{field}_0" for field in fields]]
    sizes = graph.constant("rows", np.array([directions] * count))
    for field in fields:
        graph.add("Split", [f"{field}_0", sizes], *(f"layer_{k}.initial_{field}" for k in range(count)), axis=0)
    return [[f"layer_{k}.initial_{field}" for field in fields] for k in range(count)]


def _merged(graph: Graph, k: int, directions: int, width: int) -> str:
    """Y (time, directions, batch, hidden) as (time, batch, directions * hidden)."""
    if directions == 1:
        axis = graph.constant(f"layer_{k}.axis", np.array([1]))
        return graph.add("Squeeze", [f"layer_{k}.Y", axis], f"layer_{k}.output")
    swapped = graph.add("Transpose", [f"layer_{k}.Y"], f"layer_{k}.swapped", perm=[0, 2, 1, 3])
    shape = graph.constant(f"layer_{k}.sizes", np.array([0, 0, width]))
    return graph.add("Reshape", [swapped, shape], f"layer_{k}.output")


def _output(graph: Graph, parts: Parts, value: str):
    """`output`, of the last layer, or of what is after it."""
    module, last = parts.module, "rnn_output" if parts.after else "output"
    turned = {"perm": [1, 0, 2]} if module.batch_first else {}
    value = graph.add("Transpose" if module.batch_first else "Identity", [value], last, **turned)
    _onnx_around.add(graph, parts.after, value, "output")
    axes = ("batch", "time") if module.batch_first else ("time", "batch")
    graph.outputs.append(graph.value("output", (*axes, parts.output_size)))


def _final_states(graph: Graph, module: Recurrent, finals: list[list[str]]):
    """`h_n` and `c_n`: over layers and directions, or, if hidden sizes differ, for each layer."""
    stack, fields, directions = module.stack, module.stack.cell.State._fields, module.stack.num_directions
    if len(set(stack.hidden_sizes)) > 1:  # in the order of the inputs, as `_pieces` has them
        for k, (names, hidden) in enumerate(zip(finals, stack.hidden_sizes, strict=True)):
            for field, name in zip(fields, names, strict=True):
                graph.add("Identity", [name], f"{field}_n_l{k}")
                graph.outputs.append(graph.value(f"{field}_n_l{k}", (directions, "batch", hidden)))
        return
    for field, names in zip(fields, zip(*finals, strict=True), strict=True):
        graph.add("Concat", list(names), f"{field}_n", axis=0)
        graph.outputs.append(graph.value(f"{field}_n", (len(names) * directions, "batch", stack.hidden_sizes[0])))


def _head(graph: Graph, head: Any, final: str):
    """`prediction`: the linear head on the last layer's final state, directions side by side."""
    swapped = graph.add("Transpose", [final], "summary", perm=[1, 0, 2])
    shape = graph.constant("summary_sizes", np.array([0, head.in_features]))
    joined = graph.add("Reshape", [swapped, shape], "features")
    _onnx_around.linear(graph, "fc", head, joined, "prediction")
    graph.outputs.append(graph.value("prediction", ("batch", head.out_features)))
