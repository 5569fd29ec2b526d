"""How the recurrent nodes of an ONNX graph follow on one another, as layers. What a node computes is not known here."""

from jaxrnn.interop._onnx_graph import Found

MOVES = ("Identity", "Dropout", "Squeeze", "Transpose", "Reshape")


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
    between, name = [], found.inputs.get("X")
    producer = found.scope.producers.get(name)
    while producer is not None and producer.op_type in MOVES and producer not in between:
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
