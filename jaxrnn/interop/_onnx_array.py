"""Arrays of a graph before it runs: how what it is fed is only moved, and constants whose sizes are open. Operators, names and
files are not known here.

An axis is a product of atoms, outermost first. Along a closed atom, `base` has every entry. Along an open one it has a single
entry: what is fed is then read in its own order there, and a constant is repeated. Axes of an array that is fed are in `base`
positions among the closed atoms of its source, so that any move of them can be told from the identity.
"""

from collections import deque
from dataclasses import dataclass
from math import gcd, prod
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop._onnx_sizes import Length, Size, Unreadable, divide, product, symbol


class Atom(NamedTuple):
    size: Length
    open: bool = False


@dataclass(frozen=True, eq=False)
class Array:
    """Constants, or what a source holds, moved.

    Args:
        base: the entries: numbers, sizes (dtype object), or positions in the source; an axis for each atom.
        axes: the atoms of each axis; atoms of size 1 are left out.
        source: what is fed or computed from it; None for constants.
        dtype: of the entries in a run; None where that is not known.
    """

    base: np.ndarray
    axes: tuple[tuple[Atom, ...], ...]
    source: Any = None
    dtype: Any = None

    @property
    def shape(self) -> tuple[Length, ...]:
        return tuple(product(atom.size for atom in axis) for axis in self.axes)

    @property
    def constant(self) -> bool:
        return self.source is None

    def same(self, other: "Array") -> bool:
        """Whether both are the same entries of one source, or the same constants, in every run."""
        return (
            self.source == other.source
            and self.axes == other.axes
            and self.base.dtype == other.base.dtype
            and np.array_equal(self.base, other.base)
        )

    def simple(self) -> tuple[np.ndarray, list[tuple[Atom, ...] | None]]:
        """`base` with one axis for each axis, and for each its atoms if they are open, or None."""
        opens: list[tuple[Atom, ...] | None] = []
        for axis in self.axes:
            if any(atom.open for atom in axis) and not all(atom.open for atom in axis):
                raise Unreadable("it joins axes")
            opens.append(axis if axis and axis[0].open else None)
        lengths = [1 if atoms else n for atoms, n in zip(opens, self.shape, strict=True)]
        return reshaped(self.base, lengths), opens

    def numbers(self) -> np.ndarray:
        """The array, if all of it is known."""
        if not self.constant:
            raise Unreadable("it depends on what the graph is fed")
        if any(atom.open for axis in self.axes for atom in axis) or self.base.dtype == object:
            raise Unreadable("it depends on the sizes of what the graph is fed")
        return reshaped(self.base, self.shape)

    def sizes(self) -> list[Length]:
        """The entries of a vector or scalar of whole numbers, which may be sizes."""
        if not self.constant:
            raise Unreadable("it depends on what the graph is fed")
        if any(atom.open for axis in self.axes for atom in axis) or len(self.axes) > 1 or self.base.dtype.kind not in "iuO":
            raise Unreadable("it should be a vector of whole numbers")
        return self.base.reshape(-1).tolist()


def reshaped(base: np.ndarray, lengths: Any) -> np.ndarray:
    """Of closed atoms, whose sizes are numbers."""
    return base.reshape(lengths)


def made(base: np.ndarray, axes, source=None, dtype=None) -> Array:
    """An array in its one form: no atoms of size 1, none closed beside another closed one."""
    lengths, kept = [], []
    for axis in axes:
        merged: list[Atom] = []
        for atom in axis:
            if atom.size == 1:
                continue
            if merged and not atom.open and not merged[-1].open:
                merged[-1] = Atom(merged[-1].size * atom.size)
            else:
                merged.append(atom)
        kept.append(tuple(merged))
        lengths += [1 if atom.open else atom.size for atom in merged]
    return Array(base.reshape(lengths), tuple(kept), source, dtype)


def of_numbers(a: np.ndarray) -> Array:
    return made(a, [(Atom(n),) for n in a.shape], dtype=a.dtype)


def of_sizes(entries, shape=None) -> Array:
    """A vector of sizes, or an array of the shape, as int64 where all are known."""
    entries = list(entries)
    base = np.empty(len(entries), object)
    base[:] = entries
    if not any(isinstance(n, Size) for n in entries):
        base = base.astype(np.int64)
    shape = (len(entries),) if shape is None else shape
    return made(base.reshape(shape), [(Atom(n),) for n in shape], dtype=np.dtype(np.int64))


MOST_POSITIONS = 1 << 20


def of_source(source: Any, shape, dtype=None, first=()) -> Array:
    """What a source holds, unmoved. Its axes of known size are closed, those of `first` before others, as far as there is room."""
    closed, room = set(), MOST_POSITIONS
    order = [*first, *sorted(set(range(len(shape))) - set(first), key=lambda k: shape[k] if isinstance(shape[k], int) else 0)]
    for k in order:
        if isinstance(shape[k], int) and 0 < shape[k] <= room:
            closed.add(k)
            room //= shape[k]
    lengths = [n if k in closed else 1 for k, n in enumerate(shape)]
    base = np.arange(prod(lengths)).reshape(lengths)
    return made(base, [(Atom(n, k not in closed),) for k, n in enumerate(shape)], source, dtype)


def fresh_shape(name: str, rank: int) -> tuple[Length, ...]:
    return tuple(symbol(f"{name}.{k}") for k in range(rank))


# Moves -------------------------------------------------------------------------------------------------------------------


def like(array: Array, base: np.ndarray, opens) -> Array:
    """From the simple form: the axes that are not open are closed."""
    axes = [(Atom(n),) if atoms is None else atoms for n, atoms in zip(base.shape, opens, strict=True)]
    return made(base, axes, array.source, array.dtype)


def transpose(array: Array, perm) -> Array:
    perm = [int(k) for k in perm]
    if sorted(perm) != list(range(len(array.axes))):
        raise Unreadable(f"its `perm` {perm} does not fit {len(array.axes)} axes")
    starts = np.cumsum([0, *(len(axis) for axis in array.axes)])
    order = [j for k in perm for j in range(starts[k], starts[k + 1])]
    return made(array.base.transpose(order), [array.axes[k] for k in perm], array.source, array.dtype)


def reshape(array: Array, target: list[Length], *, allow_zero: bool = False) -> Array:
    """To a shape that may have a -1, and a 0 for a size that stays."""
    shape, total = array.shape, product(array.shape)
    if not allow_zero:
        if any(n == 0 and k >= len(shape) for k, n in enumerate(target)):
            raise Unreadable(f"its shape {target} keeps an axis that there is not")
        target = [shape[k] if n == 0 else n for k, n in enumerate(target)]
    if -1 in target:
        rest = divide(total, product(n for n in target if n != -1))
        if rest is None or target.count(-1) > 1:
            raise Unreadable(f"{list(shape)} as {target} is not known to fit")
        target = [rest if n == -1 else n for n in target]
    if any(isinstance(n, int) and n < 0 for n in target) or product(target) != total:
        raise Unreadable(f"{list(shape)} as {target} is not known to fit")
    if total == 0:
        return made(reshaped(array.base, target), [(Atom(n),) for n in target], array.source, array.dtype)
    groups = _regrouped(array, target)
    lengths = [1 if atom.open else atom.size for group in groups for atom in group]
    return made(reshaped(array.base, lengths), groups, array.source, array.dtype)


def _regrouped(array: Array, target: list[Length]) -> list[list[Atom]]:
    """The atoms, in their order, in groups of the sizes of the target; closed ones are joined and parted for that."""
    atoms: deque[Atom] = deque()
    for atom in (atom for axis in array.axes for atom in axis):
        if atoms and not atom.open and not atoms[-1].open:
            atoms[-1] = Atom(atoms[-1].size * atom.size)
        else:
            atoms.append(atom)
    groups: list[list[Atom]] = []
    for size in target:
        group: list[Atom] = []
        while size != 1:
            atom = atoms.popleft()
            if (rest := divide(size, atom.size)) is not None:
                group.append(atom)
                size = rest
                continue
            part = _part(array, atom, size)
            group.append(Atom(part, atom.open))
            atoms.appendleft(Atom(_divided(atom.size, part), atom.open))
            size = _divided(size, part)
        groups.append(group)
    return groups


def _divided(a: Length, b: Length) -> Length:
    """a / b, where somebody has seen that it is a size."""
    quotient = divide(a, b)
    if quotient is None:
        raise Unreadable(f"it depends on {a} divided by {b}")
    return quotient


def _part(array: Array, atom: Atom, size: Length) -> Length:
    """What of the atom belongs to an axis that has `size` to go."""
    if atom.open:
        part = size if array.constant and divide(atom.size, size) is not None else 1
    elif isinstance(atom.size, Size):
        part = 1
    else:
        part = gcd(atom.size, *([size] if isinstance(size, int) else [n for _, n in size.terms]))
    if part == 1:
        raise Unreadable(f"its axes {list(array.shape)} are mixed")
    return part


def squeeze(array: Array, axes: list[int] | None) -> Array:
    rank, shape = len(array.axes), array.shape
    if axes is None and any(isinstance(n, Size) for n in shape):
        raise Unreadable("which axes it drops depends on sizes")
    dropped = {k for k in range(rank) if shape[k] == 1} if axes is None else {_axis(k, rank) for k in axes}
    if any(shape[k] != 1 for k in dropped):
        raise Unreadable(f"it drops axes of {list(shape)} that are not known to be 1")
    kept = [axis for k, axis in enumerate(array.axes) if k not in dropped]
    return Array(array.base, tuple(kept), array.source, array.dtype)


def unsqueeze(array: Array, axes: list[int]) -> Array:
    rank = len(array.axes) + len(axes)
    added, rest = {_axis(k, rank) for k in axes}, iter(array.axes)
    if len(added) < len(axes) or rank > 64:
        raise Unreadable(f"it adds the axes {axes}")
    return Array(array.base, tuple(() if k in added else next(rest) for k in range(rank)), array.source, array.dtype)


def _axis(k: Any, rank: int) -> int:
    if not isinstance(k, int) or not -rank <= k < rank:
        raise Unreadable(f"there is no axis {k} of {rank}")
    return k % rank


def take(array: Array, axis: int, index) -> Array:
    """Entries of an axis, by a slice or by an array of whole numbers, whose axes then stand in its place."""
    axis = _axis(axis, len(array.axes))
    base, opens = array.simple()
    if opens[axis] is not None:
        raise Unreadable(f"it takes entries of axis {axis}, whose size is open")
    if isinstance(index, slice):
        return like(array, base[(slice(None),) * axis + (index,)], opens)
    n = base.shape[axis]
    if index.size and not (-n <= index.min() and index.max() < n):
        raise Unreadable(f"it takes entries beyond the {n} of axis {axis}")
    entries = np.asarray(np.take(base, index % max(n, 1), axis))
    return like(array, entries, [*opens[:axis], *[None] * index.ndim, *opens[axis + 1 :]])


def concatenate(arrays: list[Array], axis: int) -> Array:
    """Of constants, or of pieces of one source."""
    first, axis = arrays[0], _axis(axis, len(arrays[0].axes))
    if len({a.source for a in arrays}) > 1 or len({len(a.axes) for a in arrays}) > 1:
        raise Unreadable("it joins arrays of several sources" if not all(a.constant for a in arrays) else "its ranks differ")
    forms = [a.simple() for a in arrays]
    beside = [(_without(a.shape, axis), _without(opens, axis)) for a, (_, opens) in zip(arrays, forms, strict=True)]
    if any(opens[axis] is not None for _, opens in forms) or any(pair != beside[0] for pair in beside):
        raise Unreadable("it joins arrays along, or beside, axes whose sizes are open")
    bases = [base for base, _ in forms]
    if any(base.dtype == object for base in bases):
        bases = [base.astype(object) for base in bases]
    elif len({base.dtype for base in bases}) > 1:
        raise Unreadable("it joins arrays of several dtypes")
    return like(first, np.concatenate(bases, axis), forms[0][1])


def _without(items, k: int) -> list:
    return [*items[:k], *items[k + 1 :]]
