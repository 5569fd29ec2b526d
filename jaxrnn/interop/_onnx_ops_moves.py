"""The operators of ONNX that move, repeat and join entries and leave them as they are, and those that tell a shape."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np

from jaxrnn.interop import _onnx_array as arrays
from jaxrnn.interop import _onnx_broadcast as broadcast
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_call import Call, charged, known
from jaxrnn.interop._onnx_sizes import Size, Unreadable, product

FAR = 2**31 - 1  # exporters write the largest int32 or int64 for "to the end"


def _slice(call: Call) -> Array:
    a, rank = call[0], len(call[0].axes)
    starts, ends = call.listed("starts", 1) or [], call.listed("ends", 2) or []
    axes = known(call.listed("axes", 3) or list(range(len(starts))))
    steps = known(call[4].sizes() if call.has(4) else [1] * len(starts))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=False):
        if not -rank <= axis < rank or step == 0 or not len(starts) == len(ends) == len(axes) == len(steps):
            raise Unreadable(f"its axes {axes} and steps {steps} do not fit {rank} axes")
        n = a.shape[axis]
        if start == 0 and step == 1 and (end == n or (isinstance(end, int) and end >= FAR)):
            continue
        bounds = known([start, end])
        if isinstance(n, Size):
            raise Unreadable(f"it cuts axis {axis % rank}" + (", from its end" if step < 0 else ""))
        low, high = (0, n) if step > 0 else (-1, n - 1)
        first, last = (min(max(k + n if k < 0 else k, low), high) for k in bounds)
        a = arrays.take(a, axis, slice(first, None if last < 0 else last, step))
    return a


def _split(call: Call) -> list[Array]:
    a, axis = call[0], call.get("axis", default=0)
    if not -len(a.axes) <= axis < len(a.axes):
        raise Unreadable(f"there is no axis {axis}")
    n = a.shape[axis]
    if (sizes := call.listed("split", 1)) is None:
        if isinstance(n, Size):
            raise Unreadable("it parts an axis whose size is open")
        each = -(-n // max(call.outputs, 1))
        sizes = [each] * (call.outputs - 1) + [n - each * (call.outputs - 1)]
    if len(sizes) != call.outputs or any(k < 0 for k in known(sizes)) or sum(sizes) != n:
        raise Unreadable(f"its parts {sizes} do not fit {n}")
    stops = np.cumsum([0, *sizes])
    return [arrays.take(a, axis, slice(int(start), int(stop))) for start, stop in pairwise(stops)]


def _gather(call: Call) -> Array:
    a, index = call[0], call[1].numbers()
    if index.dtype.kind not in "iu":
        raise Unreadable("its indices should be whole numbers")
    _check_size(call, a, [index.size])
    return arrays.take(a, call.get("axis", default=0), index)


def _check_size(call: Call, a: Array, factors: list[int]):
    """What is to be repeated fits; it has at least one byte for each entry."""
    closed = [n for n in (a.base.shape if a.base.size else ()) if n]
    call.charge(product([*closed, *(max(n, 1) for n in factors)]) * a.base.dtype.itemsize)


def _concat(call: Call) -> Array:
    given = [a for a in call.inputs if a is not None]
    if not given:
        raise Unreadable("it has no inputs")
    call.charge(sum(a.base.nbytes for a in given))
    return arrays.concatenate(given, call.get("axis", default=1))


def _expand(call: Call) -> Array:
    a, target = call[0], call[1].sizes()
    rank = max(len(target), len(a.axes))
    own = [1] * (rank - len(a.axes)) + list(a.shape)
    wanted = [1] * (rank - len(target)) + target
    if any(isinstance(n, int) and n < 0 for n in target):
        raise Unreadable(f"its shape {target} is negative")
    _check_size(call, a, [n for n, k in zip(wanted, own, strict=True) if isinstance(n, int) and k == 1])
    return broadcast.expand(a, target)


def _tile(call: Call) -> Array:
    a, repeats = call[0], call[1].sizes()
    if len(repeats) != len(a.axes) or any(isinstance(n, int) and n < 0 for n in repeats):
        raise Unreadable(f"its repeats {repeats} do not fit {len(a.axes)} axes")
    _check_size(call, a, [n for n in repeats if isinstance(n, int)])
    if all(n == 1 for n in repeats):
        return a
    shape = a.shape
    if all(n == 1 or own == 1 for n, own in zip(repeats, shape, strict=True)):
        return broadcast.expand(a, [own * n for n, own in zip(repeats, shape, strict=True)])
    return arrays.of_numbers(np.tile(a.numbers(), known(repeats)))


def _constant_of_shape(call: Call) -> Array:
    value = call.attributes.get("value", np.zeros(1, np.float32))
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise Unreadable("its `value` should be a single number")
    shape = call[0].sizes()
    one = arrays.of_numbers(value.reshape([1] * len(shape)))
    return _expand(replace(call, inputs=[one, call[0]]))


def _shape(call: Call) -> Array:
    shape, rank = call[0].shape, len(call[0].axes)
    start, end = call.get("start", default=0), call.get("end", default=rank)
    start, end = (min(max(k + rank if k < 0 else k, 0), rank) for k in (start, end))
    return arrays.of_sizes(shape[start:end])


def _flatten(call: Call) -> Array:
    a, axis = call[0], call.get("axis", default=1)
    if not -len(a.axes) <= axis <= len(a.axes):
        raise Unreadable(f"there is no axis {axis}")
    axis = axis + len(a.axes) if axis < 0 else axis
    return arrays.reshape(a, [product(a.shape[:axis]), product(a.shape[axis:])], allow_zero=True)


def _dropout(call: Call) -> list[Array]:
    training = bool(call[2].numbers().any()) if call.has(2) else False
    if training or call.outputs > 1:
        raise Unreadable("it draws at random" if training else "its mask is not evaluated")
    return [call[0]]


MOVES: dict[str, Callable[[Call], Array | list[Array]]] = {
    "Identity": lambda call: call[0],
    "Transpose": lambda call: arrays.transpose(charged(call, call[0]), call.get("perm", list, range(len(call[0].axes))[::-1])),
    "Reshape": lambda call: arrays.reshape(
        charged(call, call[0]), call[1].sizes(), allow_zero=bool(call.get("allowzero", default=0))
    ),
    "Flatten": _flatten,
    "Squeeze": lambda call: arrays.squeeze(call[0], call.listed("axes", 1)),
    "Unsqueeze": lambda call: arrays.unsqueeze(call[0], known(call.listed("axes", 1))),
    "Slice": _slice,
    "Split": _split,
    "Gather": _gather,
    "Concat": _concat,
    "Expand": _expand,
    "Tile": _tile,
    "ConstantOfShape": _constant_of_shape,
    "Shape": _shape,
    "Size": lambda call: arrays.of_sizes([product(call[0].shape)], ()),
    "Dropout": _dropout,
}
