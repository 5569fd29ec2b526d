"""What the recurrent nodes of a graph read, and why they are no stack, in words."""

from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_chain import apart, between, stacks
from jaxrnn.interop._onnx_find import Found
from jaxrnn.interop._onnx_graph import Problem, is_fed, is_recurrent


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
    root, way = between(found)
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
        elif x is not None and is_fed(x) and (origin := node.origin(x)).node is not None and not is_recurrent(origin.node):
            lines[-1] += f"; of {origin.node.op_type}, {origin.why}"
    found = stacks(nodes)
    roots: dict[str, list[Found]] = {}
    for stack in found:
        root, _ = between(stack[0])
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
