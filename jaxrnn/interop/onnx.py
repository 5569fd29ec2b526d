"""ONNX: recurrent nodes of any graph as modules or as functions, and modules as graphs with recurrent nodes."""

import os
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.interop import _files, _modules, _onnx_chain, _onnx_graph, _onnx_node, _onnx_write
from jaxrnn.interop._onnx_node import OnnxNode
from jaxrnn.nnx import Recurrent

__all__ = ["OnnxNode", "from_onnx", "onnx_node", "to_onnx"]


def onnx_node(source: Any, node: str | None = None, *, weights: dict[str, Any] | None = None) -> OnnxNode:
    """Read a recurrent node as a function of its inputs, whatever ONNX allows it.

    Args:
        source: a path, or an onnx ModelProto, GraphProto or NodeProto, of opset 7 or newer.
        node: the name of the node (without a name: of its first output); may be left out if there is one only.
        weights: arrays by the names that the graph gives them, for what it does not hold itself.

    Returns:
        An `OnnxNode`: `node(x, sequence_lens=None, initial_h=None, initial_c=None)` gives Y, Y_h and, for an LSTM, Y_c. Lengths
        and initial states that the graph computes from what it is fed are left to the caller; constant ones are kept.

    Raises:
        ValueError: there is no such node; its weights are not constant, or of wrong shapes; an activation has no counterpart.
        TypeError: `source` or a dtype is of another kind.
    """
    nodes, _ = _onnx_graph.load("onnx_node", source, weights)
    return _read("onnx_node", _pick("onnx_node", nodes, node))


def from_onnx(source: Any, node: str | list[str] | None = None, *, weights: dict[str, Any] | None = None, **options) -> Recurrent:
    """Make a module from recurrent nodes, forward or bidirectional.

    Args:
        source: a path, or an onnx ModelProto, GraphProto or NodeProto, of opset 7 or newer.
        node: the name of a node (without a name: of its first output), or a list of names, one for each layer. May be left
            out if there is one node only, or if all form one chain of layers.
        weights: arrays by the names that the graph gives them, for what it does not hold itself.
        options: of `jaxrnn.Recurrent`. The default of `batch_first` is the layout of the nodes, for a graph that `to_onnx`
            wrote that of the module.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`, or a `Recurrent` with the cell that computes what the nodes compute. An initial state
        that the graph holds becomes the module's, with `learn_initial_state`; one that it computes from what it is fed is the
        `h_0` of a call, as `sequence_lens` are its `lengths`.

    Raises:
        ValueError: there is no such node, or it is no layer of a module: then `onnx_node` may read it; its weights are not
        constant, or of wrong shapes; an activation has no counterpart. TypeError: `source` or a dtype is of another kind.

    Example:
        >>> import jaxrnn
        >>> model = to_onnx(jaxrnn.LSTM(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0)))
        >>> [node.op_type for node in model.graph.node]
        ['Transpose', 'LSTM', 'Transpose', 'Reshape', 'LSTM', 'Transpose', 'Reshape', 'Transpose', 'Concat', 'Concat']
        >>> from_onnx(model)
        LSTM(3, 5, num_layers=2, bidirectional=True)
    """
    found, metadata = _onnx_graph.load("from_onnx", source, weights)
    if isinstance(node, list):
        layers = [_pick("from_onnx", found, name) for name in node]
    elif node is None and len(found) > 1:
        layers = _onnx_chain.chain(found) or [_pick("from_onnx", found, node)]
    else:
        layers = [_pick("from_onnx", found, node)]
    read = [_read("from_onnx", layer) for layer in layers]
    for layer in read:
        _check_layer(layer, read[0])
    kept = _files.stored_options("from_onnx", metadata)
    options = {"batch_first": bool(read[0].layout)} | kept | options
    initial = [layer.initial for layer in read]
    if any(state is not None for state in initial):
        options["learn_initial_state"] = True
    module = _modules.build("from_onnx", read[0].cells[0], [layer.params for layer in read], **options)
    for states, layer in zip(module.initial_state or (), read, strict=False):
        for d, state in enumerate(states):
            for variable, field in zip(state, state._fields, strict=True):
                old = variable.get_value()
                new = np.zeros(old.shape, old.dtype) if layer.initial is None else getattr(layer.initial[d], field)[0]
                _modules.assign_array(variable, new)
    return module


def to_onnx(module: nnx.Module, path: str | os.PathLike | None = None, *, lengths: bool = False, states: bool = False):
    """Make a model with one `RNN`, `LSTM` or `GRU` node for each layer, for any batch and time; checked by `onnx.checker`.

    Args:
        module: a `jaxrnn.Recurrent` with a cell that ONNX has, or a model of `jaxrnn.models`, with its head.
        path: where to write the model, if given.
        lengths: whether the model has an input `lengths` (batch,), int32. For length 0, onnxruntime gives zeros as final states.
        states: whether it has inputs `h_0` and, for an LSTM, `c_0`: (layers * directions, batch, hidden).

    Returns:
        An onnx ModelProto: `x`, as the module takes it, to `output`, `h_n` and, for an LSTM, `c_n`; for a model, `prediction`.
        If hidden sizes differ, states have one input and output for each layer, `h_0_l0`, `h_n_l0`, ….

    Raises:
        ValueError: ONNX has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> model = to_onnx(jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0)), lengths=True)
        >>> [value.name for value in model.graph.input], [value.name for value in model.graph.output]
        (['x', 'lengths'], ['output', 'h_n'])
    """
    model = _onnx_write.model(module, lengths=lengths, states=states)
    if path is not None:
        _files.write_whole("to_onnx", path, model.SerializeToString())
    return model


def _pick(caller: str, found: list[_onnx_graph.Found], name: str | None) -> _onnx_graph.Found:
    """The node of the name, or the only one."""
    matching = [node for node in found if name is None or node.name == name]
    if len(matching) == 1:
        return matching[0]
    names = ", ".join(f"{node.name!r} ({node.node.op_type})" for node in found) or "none"
    wanted = "the name of one recurrent node" if name is None or matching else f"a recurrent node, and {name!r} is none"
    raise ValueError(f"{caller}: `node` should be {wanted} of those in `source`, which are: {names}.")


def _read(caller: str, found: _onnx_graph.Found) -> OnnxNode:
    """The node with its constants."""
    arrays = {}
    slots = _onnx_graph.INPUTS[found.node.op_type]
    beyond = [name for name in found.node.input[len(slots) :] if name]
    if beyond:
        raise ValueError(f"{caller}: node {found.name!r} should have the inputs {', '.join(slots)}, got {beyond} beyond.")
    for slot, name in found.inputs.items():
        if slot == "X":
            continue
        wanted = f"{caller}: {slot} of node {found.name!r} should be constant"
        try:
            arrays[slot] = found.scope.constant(name, any_size=slot.startswith("initial"))
        except _onnx_graph.Unreadable as error:
            raise ValueError(f"{wanted}; {error}.\nPass weights={{{name!r}: array}}.") from error
        if arrays[slot] is None and slot in ("W", "R", "B", "P"):
            raise ValueError(f"{wanted}, got {name!r}, which comes from an input.\nPass weights={{{name!r}: array}}.")
    return _onnx_node.read(caller, found.name, found.node.op_type, found.attributes, arrays)


def _check_layer(layer: OnnxNode, first: OnnxNode):
    """The node can be a layer of a module whose first is `first`."""
    problem = ""
    if layer.reverse[0]:
        problem = "run forward, or in both directions; it is reverse"
    elif len(set(layer.cells)) > 1:
        problem = "have the same activations in both directions"
    elif layer.cells[0] != first.cells[0]:
        problem = f"have the cell of the first layer, {first.cells[0]}; it has {layer.cells[0]}"
    elif layer.initial is not None and not all(bool(jnp.all(a == a[:1])) for state in layer.initial for a in state):
        problem = "have the same initial state for every example of a batch"
    elif layer.sequence_lens is not None:
        problem = "be fed its `sequence_lens`; it holds those of one batch"
    if problem:
        raise ValueError(f"from_onnx: node {layer.name!r} should {problem}, to be a layer of a module.\nCall onnx_node instead.")
