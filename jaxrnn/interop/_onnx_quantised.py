"""`DynamicQuantizeLSTM` of onnxruntime: an LSTM with weights in whole numbers. Graphs and files are not known here."""

from typing import Any

import numpy as np


def as_floats(caller: str, name: str, op: str, arrays: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The weights as an LSTM's, and that operator; those of other operators as they are.

    W is (directions, input, gates * hidden) there and R (directions, hidden, gates * hidden); each has one scale for a direction,
    or one for each of its columns, and as many zero points: the weight is (q − zero point) · scale.
    """
    if op != "DynamicQuantizeLSTM":
        return arrays, op
    arrays = dict(arrays)
    for slot in ("W", "R"):
        q, scale, zero = (arrays.pop(key, None) for key in (slot, f"{slot}_scale", f"{slot}_zero_point"))
        if q is None or q.ndim != 3 or q.dtype not in (np.int8, np.uint8):
            got = "none" if q is None else f"{q.dtype} {q.shape}"
            raise ValueError(f"{caller}: {slot} of node {name!r} should be int8 or uint8, with three axes, got {got}.")
        sizes = (q.shape[:1], (q.shape[0], q.shape[2]))
        for key, a in ((f"{slot}_scale", scale), (f"{slot}_zero_point", zero)):
            wanted = f"have shape {sizes[0]} or {sizes[1]}" if a is scale else f"be {q.dtype} of the shape of its scale"
            if a is None or a.shape not in sizes or (a is zero and (a.dtype, a.shape) != (q.dtype, scale.shape)):
                got = "none" if a is None else f"{a.dtype} {a.shape}"
                raise ValueError(f"{caller}: {key} of node {name!r} should {wanted}, got {got}.")
        scale, zero = (a.reshape(a.shape[0], 1, -1) for a in (scale, zero))
        weights = (q.astype(np.int32) - zero.astype(np.int32)).astype(scale.dtype) * scale
        arrays[slot] = np.swapaxes(weights, 1, 2)
    return arrays, "LSTM"
