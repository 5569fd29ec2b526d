"""Constants broadcast to one another and to shapes, whose sizes may be open."""

import numpy as np

from jaxrnn.interop._onnx_array import Array, Atom, like, unsqueeze
from jaxrnn.interop._onnx_sizes import Length, Size, Unreadable


def combine(function, arrays: list[Array]) -> Array:
    """A function of the entries of constants, one by one, their axes broadcast."""
    rank = max(len(a.axes) for a in arrays)
    forms = [unsqueeze(a, list(range(rank - len(a.axes)))).simple() for a in arrays]
    opens: list[tuple[Atom, ...] | None] = []
    for k in range(rank):
        wide = [base.shape[k] for base, atoms in forms if atoms[k] is None and base.shape[k] != 1]
        given = [atoms[k] for _, atoms in forms if atoms[k] is not None]
        if not wide and any(atoms != given[0] for atoms in given):
            raise Unreadable("it broadcasts axes whose sizes are open")
        opens.append(given[0] if given and not wide else None)
    base = np.asarray(function(*(base for base, _ in forms)))
    return like(Array(base, (), None, base.dtype), base, opens)


def expand(array: Array, target: list[Length]) -> Array:
    """Broadcast to a shape and an array together; what is fed may only stay as it is."""
    rank = max(len(target), len(array.axes))
    array, target = unsqueeze(array, list(range(rank - len(array.axes)))), [1] * (rank - len(target)) + list(target)
    same = [n == 1 or n == own for n, own in zip(target, array.shape, strict=True)]
    if all(same):
        return array
    if not array.constant:
        raise Unreadable("it repeats what the graph is fed")
    base, opens = array.simple()
    lengths = list(base.shape)
    for k, (n, own) in enumerate(zip(target, array.shape, strict=True)):
        if own == 1:
            lengths[k], opens[k] = (1, (Atom(n, True),)) if isinstance(n, Size) else (n, None)
        elif not same[k] and (isinstance(own, Size) or isinstance(n, int)):
            raise Unreadable(f"{list(array.shape)} as {target} is not known to fit")
    return like(array, np.broadcast_to(base, lengths), opens)
