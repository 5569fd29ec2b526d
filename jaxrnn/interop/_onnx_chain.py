"""How the recurrent nodes of an ONNX graph follow on one another, as layers of a stack, and in which layout.
What a node computes is not known here.

Two nodes are layers of one stack only if all between them is the identity on (time, batch, features), whatever the sizes: what
the second reads is compared, entry by entry, with what a stack would hand to it.
"""

from typing import Any

from jaxrnn.interop import _onnx_array
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_find import Found
from jaxrnn.interop._onnx_graph import is_recurrent
from jaxrnn.interop._onnx_sizes import Unreadable

MOST_BETWEEN = 12


def stacks(nodes: list[Found]) -> list[list[Found]]:
    """The nodes as stacks, as long as they can be; where two read the same one, none of them is in its stack."""
    by_y = {node.y: node for node in nodes if node.y is not None}
    before = {node: previous for node in nodes if (previous := _previous(node, by_y)) is not None}
    readers: dict[Found, list[Found]] = {}
    for node, previous in before.items():
        readers.setdefault(previous, []).append(node)
    found = []
    for node in nodes:
        if node in before and len(readers[before[node]]) == 1:
            continue
        stack = [node]
        while len(next_ := readers.get(stack[-1], [])) == 1 and next_[0] not in stack:
            stack += next_
        found.append(stack)
    return found


def _previous(node: Found, by_y: dict[Any, Found]) -> Found | None:
    x = node.value("X")
    previous = by_y.get(x.source) if isinstance(x, Array) else None
    return previous if previous is not None and apart(previous, node) is None else None


def apart(first: Found, second: Found) -> str | None:
    """Why two nodes are not two layers that follow on one another; None if they are."""
    x = second.value("X")
    if not isinstance(x, Array) or x.source != first.y:
        return f"{second.name!r} does not read the outputs of {first.name!r}"
    if not _handed_on(first, second.layout, x):
        return f"what stands between {first.name!r} and {second.name!r} is not known to be the identity on (time, batch, features)"
    if (first.op, first.direction) != (second.op, second.direction):
        return f"{first.name!r} is a {first.direction} {first.op}, {second.name!r} a {second.direction} {second.op}"
    if _lengths_key(first) != _lengths_key(second):
        return f"{second.name!r} has other `sequence_lens` than {first.name!r}"
    return None


def _handed_on(first: Found, batch_first: int, x: Array) -> bool:
    """Whether `x` is what the node puts out, its directions side by side."""
    y = first.graph.unmoved.get(first.y)
    if y is None:
        return False
    y = _onnx_array.transpose(y, (1, 0, 2, 3) if first.layout else (0, 2, 1, 3))
    time, batch, directions, hidden = y.shape
    joined = _onnx_array.reshape(y, [time, batch, directions * hidden], allow_zero=True)
    return x.same(_onnx_array.transpose(joined, (1, 0, 2)) if batch_first else joined)


def _lengths_key(found: Found) -> Any:
    """The same for the same lengths, whatever is fed; None if there are none."""
    value = found.value("sequence_lens")
    if value is None or not isinstance(value, Array):
        return value
    if value.constant:
        x = found.value("X")
        time = x.shape[1 if found.layout else 0] if isinstance(x, Array) and len(x.shape) == 3 else None
        if all(n == time for n in value.base.flat):
            return None
    base = tuple(value.base.flat) if value.base.dtype == object else (value.base.tobytes(), str(value.base.dtype))
    return value.source, base, value.axes


# The layout ----------------------------------------------------------------------------------------------------------------


def batch_first(caller: str, layers: list[Found]) -> bool:
    """Whether what the first node reads is (batch, time, features) before it is transposed for it.

    Raises:
        ValueError: the outputs of the graph are not in that layout, but in the other.
    """
    first, last = layers[0], layers[-1]
    x, found, inner = first.value("X"), bool(first.layout), False
    if isinstance(x, Array) and not x.constant and len(x.shape) == 3 and x.source in first.graph.unmoved:
        origin, node = first.graph.unmoved[x.source], first.graph.sources[x.source].node
        inner = node is not None and is_recurrent(node)  # in the midst of others, whose layout is ONNX's
        straight, swapped = (_is(x, origin, perm) for perm in ((0, 1, 2), (1, 0, 2)))
        if straight and swapped:
            swapped = sum(node.op_type == "Transpose" for node in between(first)[1]) % 2 == 1
        found = bool(first.layout) != swapped
    for value in () if inner else last.graph.top.graph.output:
        y = last.graph.value(last.graph.top, value.name)
        if isinstance(y, Array) and y.source == last.y and _handed_on(last, not found, y) and not _handed_on(last, found, y):
            layouts = ("(batch, time, …)", "(time, batch, …)")
            raise ValueError(
                f"{caller}: `batch_first` should be given, since what node {first.name!r} reads is {layouts[not found]} and the "
                f"output {value.name!r} is {layouts[found]}, got None."
            )
    return found


def _is(x: Array, origin: Array, perm) -> bool:
    """Whether `x`, transposed, is the source in its own order."""
    x = _onnx_array.transpose(x, perm)
    try:
        return x.same(_onnx_array.reshape(origin, list(x.shape), allow_zero=True))
    except Unreadable:
        return False


def between(found: Found) -> tuple[str, list]:
    """Where X comes from, and the nodes on the way, from there on."""
    scope, name, way = found.scope, found.inputs.get("X", ""), []
    while len(way) < MOST_BETWEEN:
        scope, name = found.graph.find(scope, name)
        node = found.graph.producer(scope, name)
        if node is None or is_recurrent(node) or not node.input or not node.input[0]:
            break
        way.append(node)
        name = node.input[0]
    node = found.graph.producer(scope, name)
    if node is not None and is_recurrent(node):
        output = ("Y", "Y_h", "Y_c")[list(node.output).index(name)] if name in list(node.output)[:3] else name
        other = node.name or next((n for n in node.output if n), "")
        return f"{output} of {other!r}", way[::-1]
    return f"{name!r}", way[::-1]
