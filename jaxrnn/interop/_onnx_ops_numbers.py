"""The operators of ONNX that compute entries anew: of constants, and of sizes, so far as those stay products of sizes."""

import operator
from collections.abc import Callable

import numpy as np

from jaxrnn.interop import _onnx_array as arrays
from jaxrnn.interop import _onnx_broadcast as broadcast
from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_call import Call, charged, known
from jaxrnn.interop._onnx_sizes import Length, Size, Unreadable, compare, divide, product


def _cast(call: Call) -> Array:
    from onnx import TensorProto, helper

    a, to = call[0], call.get("to")
    if to not in TensorProto.DataType.values() or to in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise Unreadable(f"there is no data type {to}")
    dtype = helper.tensor_dtype_to_np_dtype(to)
    if not a.constant:
        if a.dtype == dtype or (a.dtype is not None and a.dtype in (np.int32, np.int64) and dtype in (np.int32, np.int64)):
            return a
        raise Unreadable(f"it changes what it is fed to {dtype}")
    if a.base.dtype == object:
        if dtype not in (np.int32, np.int64):
            raise Unreadable("it depends on the sizes of what the graph is fed")
        return a
    call.charge(a.base.size * dtype.itemsize)
    with np.errstate(all="ignore"):
        base = a.base.astype(dtype)
    return Array(base, a.axes, None, base.dtype)


def _range(call: Call) -> Array:
    start, limit, delta = (call[k].numbers().reshape(-1)[0] for k in range(3))
    if delta == 0 or not all(np.isfinite((start, limit, delta))):
        raise Unreadable("its limits do not end")
    call.charge(max(int((float(limit) - float(start)) / float(delta)), 0) * 8)
    return arrays.of_numbers(np.arange(start, limit, delta, dtype=np.asarray(start).dtype))


def _where(call: Call) -> Array:
    return _combined(call, np.where)


def _binary(on_numbers, on_sizes) -> Callable:
    """A function of two numbers; for sizes by `on_sizes`, entry by entry."""

    def run(call: Call) -> Array:
        given = [a for a in call.inputs if a is not None]
        if len(given) != 2:
            raise Unreadable("it should have two inputs")
        sizes = any(a.base.dtype == object for a in given)
        return _combined(call, np.frompyfunc(on_sizes, 2, 1) if sizes else on_numbers)

    return run


def _combined(call: Call, function) -> Array:
    given = [call[k] for k in range(len(call.inputs))]
    for a in given:
        if not a.constant:
            raise Unreadable("it computes with what the graph is fed")
    rank = max(len(a.axes) for a in given)
    lengths = [[1] * (rank - len(a.axes)) + [1 if isinstance(n, Size) else n for n in a.shape] for a in given]
    call.charge(product(max(n, default=1) for n in zip(*lengths, strict=True)) * 8)
    with np.errstate(all="ignore"):
        a = broadcast.combine(function, given)
    if a.base.dtype == object:
        whole = not any(isinstance(n, Size) for n in a.base.flat)
        kind = bool if whole and all(isinstance(n, bool) for n in a.base.flat) and a.base.size else np.int64
        a = Array(a.base.astype(kind) if whole else a.base, a.axes, None, np.dtype(np.int64))
    return a


def _divided(a: Length, b: Length) -> Length:
    if not isinstance(a, Size) and not isinstance(b, Size):
        return int(a / b) if b else 0
    if (quotient := divide(a, b)) is None:
        raise Unreadable(f"it depends on {a} divided by {b}")
    return quotient


def _quotient(a, b):
    if a.dtype.kind in "iu":
        return (np.sign(a) * np.sign(b) * (abs(a) // np.maximum(abs(b), 1))).astype(a.dtype)  # towards zero, as in C
    return a / b


def _unary(function) -> Callable:
    """A function of each entry, which keeps the dtype."""

    def run(call: Call) -> Array:
        a = call[0]
        if not a.constant or a.base.dtype == object:
            raise Unreadable("it computes with what the graph is fed")
        with np.errstate(all="ignore"):
            base = np.asarray(function(charged(call, a).base))
        return Array(base if base.dtype == bool else base.astype(a.base.dtype), a.axes, None, base.dtype)

    return run


def _negated(call: Call) -> Array:
    return _combined(call, np.frompyfunc(operator.neg, 1, 1) if call[0].base.dtype == object else np.negative)


def _matmul(call: Call) -> Array:
    a, b = (call[k].numbers() for k in range(2))
    if a.ndim < 1 or b.ndim < 1 or a.shape[-1] != b.shape[max(b.ndim - 2, 0)] or a.size * max(b.shape[-1], 1) > 1 << 30:
        raise Unreadable(f"{a.shape} times {b.shape} does not fit, or is too much")
    size = product(a.shape[:-1]) * product(b.shape)
    call.charge(size * a.itemsize)
    return arrays.of_numbers(np.asarray(np.matmul(a, b)))


def _reduced(function) -> Callable:
    """Of constants whose size is known; of a vector of sizes their product."""

    def run(call: Call) -> Array:
        a, keep = call[0], bool(call.get("keepdims", default=1))
        axes = call.listed("axes", 1)
        if a.constant and a.base.dtype == object and function is np.prod and len(a.axes) == 1:
            return arrays.of_sizes([product(a.sizes())], (1,) if keep else ())
        x = charged(call, a).numbers()
        if axes is not None and any(not -x.ndim <= k < x.ndim for k in known(axes)):
            raise Unreadable(f"there are no axes {axes}")
        if not axes and call.get("noop_with_empty_axes", default=0):
            return a
        with np.errstate(all="ignore"):
            result = function(x, axis=tuple(axes) if axes else None, keepdims=keep)
        return arrays.of_numbers(np.asarray(result).astype(x.dtype))

    return run


def _norm(x, axis, keepdims):
    return np.sqrt(np.sum(np.square(x), axis=axis, keepdims=keepdims))


def _dequantised(call: Call) -> Array:
    """(x − zero point) · scale; the scale is one number, one for each entry of an axis, or one for each block of it."""
    x, scale = call[0].numbers(), call[1].numbers()
    axis, block = call.get("axis", default=1), call.get("block_size", default=0)
    zero = call[2].numbers() if call.has(2) else np.zeros_like(scale, dtype=x.dtype)
    call.charge(x.size * 12)
    if zero.shape != scale.shape:
        raise Unreadable(f"its zero points {zero.shape} should be as many as its scales {scale.shape}")
    if scale.size > 1 or scale.ndim > 1:
        if not -x.ndim <= axis < x.ndim:
            raise Unreadable(f"there is no axis {axis}")
        axis %= x.ndim
        if block and scale.ndim == x.ndim:
            if list(scale.shape) != [-(-n // block) if k == axis else n for k, n in enumerate(x.shape)]:
                raise Unreadable(f"its scales {scale.shape} do not fit {x.shape} in blocks of {block}")
            index = np.arange(x.shape[axis]) // block
            scale, zero = scale.take(index, axis), zero.take(index, axis)
        elif scale.shape == (x.shape[axis],):
            scale, zero = (a.reshape([-1 if k == axis else 1 for k in range(x.ndim)]) for a in (scale, zero))
        else:
            raise Unreadable(f"its scales {scale.shape} do not fit {x.shape} along axis {axis}")
    else:
        scale, zero = scale.reshape(()), zero.reshape(())
    whole = x.dtype.kind in "iu"
    difference = x.astype(np.int32) - zero.astype(np.int32) if whole else x.astype(np.float32) - zero.astype(np.float32)
    return arrays.of_numbers((difference.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype))


NUMBERS: dict[str, Callable[[Call], Array | list[Array]]] = {
    "Cast": _cast,
    "Range": _range,
    "Where": _where,
    "Add": _binary(np.add, operator.add),
    "Sub": _binary(np.subtract, operator.sub),
    "Mul": _binary(np.multiply, operator.mul),
    "Div": _binary(_quotient, _divided),
    "Equal": _binary(np.equal, lambda a, b: compare(a, b) == 0),
    "Less": _binary(np.less, lambda a, b: compare(a, b) < 0),
    "Greater": _binary(np.greater, lambda a, b: compare(a, b) > 0),
    "Min": _binary(np.minimum, lambda a, b: a if compare(a, b) <= 0 else b),
    "Max": _binary(np.maximum, lambda a, b: a if compare(a, b) >= 0 else b),
    "Pow": _binary(np.power, lambda a, b: product([a] * b) if isinstance(b, int) and 0 <= b < 8 else _divided(a, b)),
    "Neg": _negated,
    "Abs": _unary(np.abs),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sqrt": _unary(np.sqrt),
    "Reciprocal": _unary(lambda x: 1 / x),
    "Tanh": _unary(np.tanh),
    "Sigmoid": _unary(lambda x: 1 / (1 + np.exp(-x))),
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Sign": _unary(np.sign),
    "Not": _unary(np.logical_not),
    "MatMul": _matmul,
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceL2": _reduced(_norm),
    "DequantizeLinear": _dequantised,
}
