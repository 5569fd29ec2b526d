"""Whether what the layers of a stack are fed can be handed to a module in one call: one `h_0`, one `c_0`, the lengths."""

from typing import Any

from jaxrnn.interop import _onnx_array
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_find import Found, comes_from
from jaxrnn.interop._onnx_graph import Value, is_fed
from jaxrnn.interop._onnx_sizes import Unreadable

MOST_ROWS = 256


def check_fed(caller: str, layers: list[Found], *, named: bool):
    """What is fed to all layers can be handed over as one `h_0`, one `c_0`, and the lengths.

    Args:
        named: whether the caller has named the nodes, and thereby knows what they read.
    """
    found, value = layers[0], layers[0].value("sequence_lens")  # the others read the same
    if not named and is_fed(value) and not (_is_input(found, value) or _is_sorted(found, value)):
        _refuse(caller, found, "sequence_lens", value, "lengths")
    slots = ("initial_h", "initial_c") if layers[0].op not in ("RNN", "GRU") else ("initial_h",)
    fed = [[is_fed(found.value(slot)) for slot in slots] for found in layers]
    if not any(map(any, fed)):
        return
    if not all(map(all, fed)):
        which = ", ".join(
            f"{slot} of {n.name!r}" for n, row in zip(layers, fed, strict=True) for slot, f in zip(slots, row, strict=True) if f
        )
        raise ValueError(
            f"{caller}: the initial states of all layers should be fed, or none of them; of those of "
            f"{', '.join(repr(n.name) for n in layers)}, only {which} is.\nCall onnx_node for each node instead."
        )
    for slot in slots:
        rows = []
        for found in layers:
            value = found.value(slot)
            if named and found.origin(value).node is not None:
                continue
            if not _is_fed_by_input(found, value):
                _refuse(caller, found, slot, value, f"{slot[-1]}_0")
            rows.append((value.source, *_rows(found, value)))
        sources, ends = {source for source, *_ in rows}, [start + count for _, start, count, _ in rows]
        one = len(sources) == 1 and all(row[1] == end for row, end in zip(rows[1:], ends[:-1], strict=True))
        if rows and not one and not (len(sources) == len(rows) and all(count == total for _, _, count, total in rows)):
            _misplaced(caller, layers, slot)


def _misplaced(caller: str, layers: list[Found], slot: str):
    names = ", ".join(f"{n.inputs[slot]!r} of {n.name!r}" for n in layers)
    raise ValueError(
        f"{caller}: `{slot}` should be the rows of one input of the graph, in the order of layers and directions, or an input for "
        f"each layer, got {names}, which are neither.\nCall onnx_node for each node instead."
    )


def _is_fed_by_input(found: Found, value: Any) -> bool:
    return isinstance(value, Array) and found.origin(value).fed


def _refuse(caller: str, found: Found, slot: str, value: Value, argument: str):
    raise ValueError(
        f"{caller}: `{slot}` of node {found.name!r} should be an input of the graph, to be the `{argument}` of a call; "
        f"{found.inputs[slot]!r} {comes_from(found, value)}.\nName the node, node={found.name!r}, to load it alone, and pass "
        f"`{argument}` in every call."
    )


def _is_input(found: Found, value: Any) -> bool:
    """Whether it is an input of the graph as it is."""
    return _is_fed_by_input(found, value) and value.same(found.graph.unmoved[value.source])


def _rows(found: Found, value: Array) -> tuple[int, int, int]:
    """Which rows of its source an initial state takes, in their order: the first, how many, of how many; or none."""
    origin = found.graph.unmoved[value.source]
    value = _onnx_array.transpose(value, (1, 0, 2)) if found.layout else value
    wholes = [origin] if len(origin.shape) == 3 else [_onnx_array.unsqueeze(origin, [0])] if len(origin.shape) == 2 else []
    wholes += [_onnx_array.transpose(whole, (1, 0, 2)) for whole in wholes]
    for whole in wholes:
        count, total = value.shape[0], whole.shape[0]
        if not isinstance(count, int) or not isinstance(total, int):
            continue
        for row in range(min(total - count + 1, MOST_ROWS)):
            try:
                if value.same(_onnx_array.take(whole, 0, slice(row, row + count))):
                    return row, count, total
            except Unreadable:
                break
    return -1, 0, 1


def _is_sorted(found: Found, value: Value) -> bool:
    """Whether the lengths are an input, sorted, and X has its examples in that same order: then rows go with their lengths."""
    lens, x = found.origin(value).node, found.value("X")
    if lens is None or lens.op_type != "TopK" or not isinstance(x, Array) or x.constant or not isinstance(value, Array):
        return False
    graph, scope = found.graph, value.source[0]
    gather = graph.sources[x.source].node
    given: list[Any] = [graph.value(scope, name) for name in lens.input[:2]]
    whole, k = given
    if (
        value.source[1] != lens.output[0]
        or not value.same(graph.unmoved[value.source])
        or gather is None
        or gather.op_type != "Gather"
    ):
        return False
    index = graph.value(x.source[0], gather.input[1])
    axis = next((a.i for a in gather.attribute if a.name == "axis"), 0)
    straight, swapped = (x.same(_onnx_array.transpose(graph.unmoved[x.source], perm)) for perm in ((0, 1, 2), (1, 0, 2)))
    return (
        _is_input(found, whole)
        and isinstance(k, Array)
        and k.constant
        and k.sizes() == [whole.shape[0]]
        and isinstance(index, Array)
        and index.source == (scope, lens.output[1])
        and index.same(graph.unmoved[index.source])
        and (straight or swapped)
        and axis == (swapped if found.layout else straight)
    )
