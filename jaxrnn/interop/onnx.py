"""ONNX: recurrent nodes of any graph as modules or as functions, and modules as graphs with recurrent nodes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.interop import _files, _modules, _onnx_find, _onnx_node, _onnx_quantised, _onnx_write
from jaxrnn.interop import _onnx_chain as _chain
from jaxrnn.interop import _onnx_fed as _fed
from jaxrnn.interop import _onnx_words as _words
from jaxrnn.interop._onnx_find import Found, OnnxNodeInfo
from jaxrnn.interop._onnx_node import OnnxNode
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["OnnxNode", "OnnxNodeInfo", "from_onnx", "onnx_node", "onnx_nodes", "to_onnx"]


def onnx_nodes(source: Any, *, weights: dict[str, Any] | None = None) -> tuple[OnnxNodeInfo, ...]:
    """List the recurrent nodes of a graph: RNN, LSTM, GRU and onnxruntime's DynamicQuantizeLSTM, those in bodies included.

    What it returns, whole, in part, or one of it, is a `source` of `from_onnx` and `onnx_node`, which then parse nothing.

    Args:
        source: a path, or an onnx ModelProto, GraphProto or NodeProto, of opset 7 or newer.
        weights: arrays by the names that the graph gives them, for what it does not hold itself.

    Returns:
        For each node an `OnnxNodeInfo`: its name, operator, sizes, direction, the names of what it reads, and the stack that it
        can be a layer of.

    Raises:
        ValueError: there is none, or the file is damaged. TypeError: `source` is of another kind.

    Example:
        >>> import jaxrnn
        >>> model = to_onnx(jaxrnn.LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0)), lengths=True)
        >>> for node in (nodes := onnx_nodes(model)):
        ...     print(node.name, node.op, node.input_size, node.hidden_size, node.inputs["sequence_lens"], node.stack, node.layer)
        layer_0 LSTM 3 5 lengths ('layer_0', 'layer_1') 0
        layer_1 LSTM 5 5 lengths ('layer_0', 'layer_1') 1
        >>> from_onnx(nodes[1])
        LSTM(5, 5, batch_first=False)
    """
    with _naming("onnx_nodes", source):
        stacks = _chain.stacks(found := _onnx_find.find("onnx_nodes", source, weights))
        places = {node: (tuple(n.name for n in stack), k) for stack in stacks for k, node in enumerate(stack)}
        return tuple(node.info(*places.get(node, ((node.name,), 0))) for node in found)


def onnx_node(source: Any, node: str | OnnxNodeInfo | None = None, *, weights: dict[str, Any] | None = None) -> OnnxNode:
    """Read a recurrent node as a function of its inputs, whatever ONNX allows it.

    Args:
        source: a path, an onnx ModelProto, GraphProto or NodeProto, of opset 7 or newer, or what `onnx_nodes` returned. Of a
            path, data in other files are not read: pass `onnx.load(path)`, which does.
        node: the name of the node (without a name: of its first output); may be left out if there is one only.
        weights: arrays by the names that the graph gives them, for what it does not hold itself.

    Returns:
        An `OnnxNode`: `node(x, sequence_lens=None, initial_h=None, initial_c=None)` gives Y, Y_h and, for an LSTM, Y_c. Lengths
        and initial states that the graph is fed, or computes from what it is fed, are left to the caller; those that follow from
        constants and sizes are kept. Quantised weights come as floats.

    Raises:
        ValueError: there is no such node; its weights are not constant, or of wrong shapes; an activation has no counterpart.
        TypeError: `source` or a dtype is of another kind.
    """
    with _naming("onnx_node", source):
        found = _onnx_find.find("onnx_node", source, weights)
        if node is None and len(found) > 1:
            raise _words.refusal("onnx_node", found, "None")
        return _read("onnx_node", found[0] if node is None else _onnx_find.pick("onnx_node", found, node))


@takes_options
def from_onnx(
    source: Any,
    node: str | OnnxNodeInfo | list[str] | None = None,
    *,
    weights: dict[str, Any] | None = None,
    **options: Unpack[RecurrentOptions],
) -> Recurrent:
    """Make a module from recurrent nodes, forward or bidirectional.

    Args:
        source: a path, an onnx ModelProto, GraphProto or NodeProto, of opset 7 or newer, or what `onnx_nodes` returned. Of a
            path, data in other files are not read: pass `onnx.load(path)`, which does.
        node: the name of a node (without a name: of its first output), or a list of names, one for each layer. May be left
            out if there is one node only, or if all are layers of one stack, and not in the body of another node, such as `If` or
            `Loop`, which does not come along. Nodes are that if all between them is known to be
            the identity on (time, batch, features), whatever the sizes, and they read the same `sequence_lens`.
        weights: arrays by the names that the graph gives them, for what it does not hold itself.
        batch_first: whether the module takes (batch, time, input). By default it is inferred from the graph: true if what the first
            node reads is transposed from (batch, time, …) just before, as in the export of a `torch.nn.LSTM(batch_first=True)`, and
            else false, the layout of ONNX. If the output of the graph then has the other layout, the call asks for it.
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`, or a `Recurrent` with the cell that computes what the nodes compute. An initial state
        that follows from constants and sizes becomes the module's, with `learn_initial_state`, and with learn_initial_state=False
        is left out; one that is an input of the graph is the `h_0` of a call, as `sequence_lens` are its `lengths`. One that the
        graph computes from its inputs is left to the caller if the node is named, and else refused. Quantised weights come as
        floats.

    Raises:
        ValueError: there is no such node, or it is no layer of a module: then `onnx_node` may read it; its weights are not
        constant, or of wrong shapes; an activation has no counterpart. TypeError: `source` or a dtype is of another kind.

    Example:
        >>> import jaxrnn
        >>> model = to_onnx(jaxrnn.LSTM(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0)))
        >>> [node.op_type for node in model.graph.node]
        ['Transpose', 'LSTM', 'Transpose', 'Reshape', 'LSTM', 'Transpose', 'Reshape', 'Transpose', 'Concat', 'Concat']
        >>> from_onnx(model), from_onnx(model).batch_first
        (LSTM(3, 5, num_layers=2, bidirectional=True), True)
    """
    with _naming("from_onnx", source):
        found = _onnx_find.find("from_onnx", source, weights)
        layers = _layers("from_onnx", found, node)
        read = [_read("from_onnx", layer) for layer in layers]
        for layer in read:
            _check_layer(layer, read[0])
        _fed.check_fed("from_onnx", layers, named=node is not None)
        kept = _files.stored_options("from_onnx", layers[0].graph.metadata)
        if "batch_first" not in options:
            kept["batch_first"] = _chain.batch_first("from_onnx", layers)
        if any(layer.initial is not None for layer in read):
            kept["learn_initial_state"] = True
        module = _modules.build("from_onnx", read[0].cells[0], [layer.params for layer in read], **{**kept, **options})
        _set_initial_states(module, read)
        return module


def to_onnx(module: nnx.Module, path: str | os.PathLike | None = None, *, lengths: bool = False, states: bool = False) -> Any:
    """Make a model with one `RNN`, `LSTM` or `GRU` node for each layer, for any batch and time; checked by `onnx.checker`.

    It computes what the module does after `eval()`. With `lengths` and `states` one file serves whole sequences and streams: feed
    a frame, or some, with the final states of the call before. (Not to a bidirectional one, whose backward direction starts at the
    last frame: the file takes its states as starts of whole sequences, and cannot know that it is fed a piece.)

    Args:
        module: a `jaxrnn.Recurrent` with a cell that ONNX has; a model of `jaxrnn.models`, with its head; or an `nnx.Sequential` of
            one recurrent module, made with `output_only=True`, and `nnx.Linear`, `nnx.Dropout` and `jax.nn`'s relu, tanh, sigmoid,
            softplus, soft_sign, softmax, log_softmax.
        path: where to write the model, if given.
        lengths: whether the model has an input `lengths` (batch,), int32: how many steps of a row are valid, 0 included.
        states: whether it has inputs `h_0` and, for an LSTM, `c_0`: (layers * directions, batch, hidden); and, whatever the module
            gives, the outputs `h_n` and `c_n`: the inputs of the next call, in the same order.

    Returns:
        An onnx ModelProto: `x`, as the module takes it, to what the module gives: `output`, `h_n` and, for an LSTM, `c_n`; `output`
        alone of a Sequential or with `output_only`; `prediction` of a model. If hidden sizes differ, states have one input and
        output for each layer, `h_0_l0`, `h_n_l0`, ….

    Raises:
        ValueError: ONNX has no such cell, or lacks an option of the module or a member of a Sequential. TypeError: the module is of
        another kind, or has a call of its own.

    Example:
        >>> import jaxrnn
        >>> model = to_onnx(jaxrnn.models.GRUModel(3, 5, 2, rngs=nnx.Rngs(0)), lengths=True, states=True)
        >>> [value.name for value in model.graph.input], [value.name for value in model.graph.output]
        (['x', 'lengths', 'h_0'], ['prediction', 'h_n'])
    """
    model = _onnx_write.model(module, lengths=lengths, states=states)
    if path is not None:
        _files.write_whole("to_onnx", path, model.SerializeToString())
    return model


@contextmanager
def _naming(caller: str, source: Any) -> Iterator[None]:
    """Say in every error which file it is about; `caller` where a part has not said whose it is."""
    try:
        yield
    except (ValueError, TypeError) as error:
        text = str(error) if str(error).startswith(caller) else f"{caller}: {_files.cause(error)}."
        kind = TypeError if isinstance(error, TypeError) else ValueError
        if isinstance(source, str | os.PathLike) and str(source) not in text:
            text += f"\nThe file is {source}."
        if text == str(error):
            raise
        raise kind(text) from error


def _layers(caller: str, found: list[Found], node: Any) -> list[Found]:
    """The nodes that are to be the layers of a module."""
    if node is None:
        stacks = [found] if len(found) == 1 else _chain.stacks(found)
        if len(stacks) != 1 or len(stacks[0]) != len(found):
            raise _words.refusal(caller, found, "None")
        if inside := next((layer.scope.inside for layer in found if layer.scope.outer is not None), None):
            names = repr(found[0].name if len(found) == 1 else [layer.name for layer in stacks[0]])
            rule = f"should be given as {names}, in the body of a node {inside}, which decides whether and how often it runs"
            raise ValueError(f"{caller}: `node` {rule}, got None.\nNothing else of the {inside} comes along.")
        return stacks[0]
    if not isinstance(node, list | tuple):
        return [_onnx_find.pick(caller, found, node)]
    layers = [_onnx_find.pick(caller, found, name) for name in node]
    if not layers:
        raise ValueError(f"{caller}: `node` should name one node at least, got {node}.")
    if any(_chain.apart(a, b) for a, b in pairwise(layers)):
        raise _words.refusal(caller, layers, repr([layer.name for layer in layers]))
    return layers


def _read(caller: str, found: Found) -> OnnxNode:
    """The node with its constants."""
    arrays = _onnx_find.constants(caller, found)
    arrays, op = _onnx_quantised.as_floats(caller, found.name, found.op, arrays)
    _onnx_node.check(caller, found.name, op, found.attributes, arrays)
    directions, hidden = arrays["R"].shape[0], arrays["R"].shape[2]
    for slot in ("initial_h", "initial_c"):
        start = _onnx_find.start(caller, found, slot, directions, hidden)
        arrays |= {slot: start} if isinstance(start, np.ndarray) else {}
    lengths = _onnx_find.lengths(caller, found)
    arrays |= {"sequence_lens": lengths} if isinstance(lengths, np.ndarray) else {}
    return _onnx_node.read(caller, found.name, op, found.attributes, arrays)


def _set_initial_states(module: Recurrent, read: list[OnnxNode]):
    for states, layer in zip(module.learned or (), read, strict=False):
        for d, state in enumerate(states):
            for variable, field in zip(state, state._fields, strict=True):
                old = variable.get_value()
                new = np.zeros(old.shape, old.dtype) if layer.initial is None else getattr(layer.initial[d], field)[0]
                _modules.assign_array(variable, new)


def _check_layer(layer: OnnxNode, first: OnnxNode):
    """The node can be a layer of a module whose first is `first`."""
    wanted, got = "", ""
    if layer.reverse[0]:
        wanted, got = "run forward, or in both directions", "reverse"
    elif len(set(layer.cells)) > 1:
        wanted, got = "have the same activations in both directions", f"{layer.cells[0]} and {layer.cells[1]}"
    elif layer.cells[0] != first.cells[0]:
        wanted, got = f"have the cell of the first layer, {first.cells[0]}", f"{layer.cells[0]}"
    elif layer.initial is not None and not all(bool(jnp.all(a == a[:1])) for state in layer.initial for a in state):
        wanted, got = "have the same initial state for every example of a batch", "one for each"
    elif layer.sequence_lens is not None:
        wanted, got = "be fed its `sequence_lens`", f"those of one batch, {layer.sequence_lens.tolist()[:8]}"
    if wanted:
        rule = f"should {wanted}, to be a layer of a module, got {got}"
        raise ValueError(f"from_onnx: node {layer.name!r} {rule}.\nCall onnx_node instead.")
