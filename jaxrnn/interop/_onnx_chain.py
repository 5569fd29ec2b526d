"""How the recurrent nodes of an ONNX graph follow on one another, as layers of a stack, and how what is fed lies around them.
What a node computes is not known here.

Two nodes are layers of one stack only if all between them is the identity on (time, batch, features), whatever the sizes: what
the second reads is compared, entry by entry, with what a stack would hand to it.
"""

from collections.abc import Hashable

from jaxrnn.interop import _onnx_array
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_find import Found, comes_from
from jaxrnn.interop._onnx_graph import Problem, Source, Value, is_recurrent
from jaxrnn.interop._onnx_sizes import Unreadable

MOST_BETWEEN = 12
MOST_ROWS = 256


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


def _previous(node: Found, by_y: dict[Hashable, Found]) -> Found | None:
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


def _lengths_key(found: Found) -> Hashable:
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
            swapped = sum(node.op_type == "Transpose" for node in _between(first)[1]) % 2 == 1
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


# What the caller feeds -----------------------------------------------------------------------------------------------------


def check_fed(caller: str, layers: list[Found], *, named: bool):
    """What is fed to all layers can be handed over as one `h_0`, one `c_0`, and the lengths.

    Args:
        named: whether the caller has named the nodes, and thereby knows what they read.
    """
    found, value = layers[0], layers[0].value("sequence_lens")  # the others read the same
    if not named and _is_fed(value) and not (_is_input(found, value) or _is_sorted(found, value)):
        _refuse(caller, found, "sequence_lens", value, "lengths")
    slots = ("initial_h", "initial_c") if layers[0].op not in ("RNN", "GRU") else ("initial_h",)
    fed = [[_is_fed(found.value(slot)) for slot in slots] for found in layers]
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


def _is_fed(value: Value | None) -> bool:
    return isinstance(value, Source) or (isinstance(value, Array) and not value.constant)


def _is_fed_by_input(found: Found, value: Value) -> bool:
    return isinstance(value, Array) and found.origin(value).fed


def _refuse(caller: str, found: Found, slot: str, value: Value, argument: str):
    raise ValueError(
        f"{caller}: `{slot}` of node {found.name!r} should be an input of the graph, to be the `{argument}` of a call; "
        f"{found.inputs[slot]!r} {comes_from(found, value)}.\nName the node, node={found.name!r}, to load it alone, and pass "
        f"`{argument}` in every call."
    )


def _is_input(found: Found, value: Value) -> bool:
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
    whole, k = (graph.value(scope, name) for name in lens.input[:2])
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


# Words -----------------------------------------------------------------------------------------------------------------


def _between(found: Found) -> tuple[str, list]:
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


def _described(found: Found, node) -> str:
    if node.op_type == "Reshape" and len(node.input) > 1:
        target = found.graph.value(found.scope, node.input[1])
        if isinstance(target, Array) and target.constant and len(target.shape) == 1:
            return f"Reshape to ({', '.join(map(str, target.base.flat))})"
    if node.op_type == "Transpose":
        return f"Transpose {tuple(next((a.ints for a in node.attribute if a.name == 'perm'), ()))}"
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def reads(found: Found) -> str:
    """Where a node reads X from, in words."""
    root, way = _between(found)
    through = ", ".join(_described(found, node) for node in way)
    return f"{found.name!r} ({found.op}) reads {root}" + (f" through {through}" if way else "")


def refusal(caller: str, nodes: list[Found], got: str) -> ValueError:
    """The error that lists the nodes, what stands between them, and what to load."""
    by_y = {node.y: node for node in nodes}
    lines = []
    for node in nodes:
        x = node.value("X")
        previous = by_y.get(x.source) if isinstance(x, Array) else None
        why = apart(previous, node) if previous is not None and previous is not node else None
        lines.append(reads(node) + (f"; {why}" if why else ""))
        if isinstance(x, Problem):
            lines[-1] += f"; {x.why}"
        elif x is not None and _is_fed(x) and (origin := node.origin(x)).node is not None and not is_recurrent(origin.node):
            lines[-1] += f"; of {origin.node.op_type}, {origin.why}"
    found = stacks(nodes)
    roots: dict[str, list[Found]] = {}
    for stack in found:
        root, _ = _between(stack[0])
        roots.setdefault(root, []).append(stack[0])
    calls = " or ".join(f"node={[n.name for n in s]!r}" if len(s) > 1 else f"node={s[0].name!r}" for s in found[:8])
    twins = next((pair for root, pair in roots.items() if len(pair) == 2 and " of " not in root), None)
    hint = f"Load each apart: {calls}."
    if twins:
        names = " and ".join(repr(n.name) for n in twins)
        hint += f" Are {names} the two directions of a layer made by hand? Load those two, and join what they put out."
    listed = ", ".join(f"{node.name!r} ({node.op})" for node in nodes)
    return ValueError(
        f"{caller}: `node` should be the name of one recurrent node, or a list of those of one stack, of those in `source`, which "
        f"are: {listed}; together they are no stack, got {got}.\n  " + "\n  ".join(lines) + f"\n{hint}"
    )
