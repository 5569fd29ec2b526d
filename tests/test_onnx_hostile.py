"""Damaged and hostile ONNX files: an error of the kinds announced, with the file's name and a reason, soon and in little memory.

By hand, as many as wanted: python tests/test_onnx_hostile.py 20000
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import jaxrnn
from jaxrnn.interop import from_onnx, onnx_node, onnx_nodes, to_onnx

onnx = pytest.importorskip("onnx")

from flax import nnx  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from test_onnx_random import Maker  # noqa: E402

HUGE = [2**31 - 1, 2**31, 2**62, -1, -(2**63), 2**63 - 1, 10**6, 0]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with bits flipped, a piece cut, copied or swapped, a number made huge, or a field of another value."""
    raw = bytearray(data)
    at = int(rng.integers(len(raw)))
    match int(rng.integers(7)):
        case 0:
            for k in rng.integers(len(raw), size=int(rng.integers(1, 9))):
                raw[k] ^= 1 << int(rng.integers(8))
        case 1:
            del raw[at:]
        case 2:
            del raw[at : at + int(rng.integers(1, 64))]
        case 3:
            a, b = sorted(int(k) for k in rng.integers(len(raw), size=2))
            n = int(rng.integers(1, 64))
            raw[a : a + n], raw[b : b + n] = raw[b : b + n], raw[a : a + n]
        case 4:
            raw[at:at] = raw[at : at + int(rng.integers(1, 200))]
        case 5:
            raw[at : at + 1] = b"\xff" * int(rng.integers(1, 10)) + bytes([int(rng.integers(128))])
        case _:
            return _fields_changed(data, rng)
    return bytes(raw)


def _fields_changed(data: bytes, rng: np.random.Generator) -> bytes:
    """A well-formed file that says something else: numbers made huge, names and operators exchanged, parts left out."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(int(rng.integers(1, 4))):
        messages = [m for m in _messages(model.graph) if any(field.message_type is None for field in m.DESCRIPTOR.fields)]
        message = messages[int(rng.integers(len(messages)))]
        fields = [field for field in message.DESCRIPTOR.fields if field.message_type is None]
        field = fields[int(rng.integers(len(fields)))]
        number = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_UINT64, field.CPPTYPE_ENUM)
        value = getattr(message, field.name)
        if field.is_repeated:
            if len(value):
                k, j = (int(n) for n in rng.integers(len(value), size=2))
                if rng.random() < 0.5 and number:
                    value[k] = _fitting(field, int(rng.choice(HUGE)))
                elif rng.random() < 0.5:
                    value[k], value[j] = value[j], value[k]
                else:
                    del value[k]
        elif number:
            setattr(message, field.name, _fitting(field, int(rng.choice(HUGE)) if rng.random() < 0.7 else int(rng.integers(40))))
        elif field.cpp_type == field.CPPTYPE_STRING:
            others = [m for m in messages if m.DESCRIPTOR is message.DESCRIPTOR]
            setattr(message, field.name, getattr(others[int(rng.integers(len(others)))], field.name))
    return model.SerializeToString()


def _fitting(field, value: int) -> int:
    if field.cpp_type == field.CPPTYPE_ENUM:
        return list(field.enum_type.values_by_number)[value % len(field.enum_type.values_by_number)]
    if field.cpp_type == field.CPPTYPE_INT32:
        return (value + 2**31) % 2**32 - 2**31
    return abs(value) if field.cpp_type == field.CPPTYPE_UINT64 else value


def _messages(message):
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if field.is_repeated else [value]:
                yield from _messages(part)


def good_files() -> list[bytes]:
    """Files of several makers: our own, and random graphs with moves, lengths and initial states."""
    module = jaxrnn.GRU(2, 3, 2, bidirectional=True, learn_initial_state=True, rngs=nnx.Rngs(0))
    files = [to_onnx(module, lengths=True).SerializeToString(), to_onnx(module, states=True).SerializeToString()]
    makers = [(maker, maker.model()) for maker in map(Maker, range(100))]
    return files + [model.SerializeToString() for maker, model in makers if maker.right]


def check(path: Path, *, call=from_onnx) -> str:
    """Read a file; "read", or "refused" by an error as announced, within the time."""
    begin = time.process_time()
    try:
        call(path)
        kind = "read"
    except (ValueError, TypeError, OSError) as error:
        assert type(error) in (ValueError, TypeError) or isinstance(error, OSError), type(error)
        assert str(path) in str(error)
        assert len(str(error)) < 20_000
        kind = "refused"
    assert time.process_time() - begin < 5
    return kind


def fuzz(folder: Path, count: int, seed: int = 0) -> dict[str, int]:
    """Mutate good files and read each; how many were read all the same, and how many refused."""
    files, kinds = good_files(), {"read": 0, "refused": 0}
    calls = (from_onnx, from_onnx, onnx_nodes, onnx_node)
    for case in range(count):
        rng = np.random.default_rng([seed, case])
        path = folder / "m.onnx"
        path.write_bytes(mutated(files[case % len(files)], rng))
        try:
            kinds[check(path, call=calls[case % 4])] += 1
        except BaseException:
            print("case", case, "seed", seed, "kept", folder / f"case_{seed}_{case}.onnx", file=sys.stderr)
            (folder / f"case_{seed}_{case}.onnx").write_bytes(path.read_bytes())
            raise
    return kinds


def test_a_mutated_file_is_read_or_refused_by_name_and_reason(tmp_path):
    kinds = fuzz(tmp_path, 800)
    assert kinds["refused"] > 300 and kinds["read"] > 100


if __name__ == "__main__":
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    print(fuzz(folder, int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
