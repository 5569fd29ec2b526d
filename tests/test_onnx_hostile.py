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
from onnx import helper  # noqa: E402
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
        kind, text = "refused", str(error)
        assert str(path) in text and len(text) < 20_000, text
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


PEAK = Path("/proc/self/clear_refs")


def measured(path: Path, call=from_onnx) -> tuple[str, int]:
    """What becomes of a file, and by how many bytes the memory of the process grew meanwhile at the most."""

    def status(key):
        return 1024 * int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
        )

    PEAK.write_text("5")  # from here on the peak is counted anew
    before = status("VmRSS:")
    kind = check(path, call=call)
    return kind, status("VmHWM:") - before


def field(number: int, content: bytes) -> bytes:
    """A field of a message, as protobuf writes it."""
    size, digits = len(content), b""
    while size > 127:
        digits, size = digits + bytes([size & 127 | 128]), size >> 7
    return bytes([number << 3 | 2]) + digits + bytes([size]) + content


def flat_model(**parts):
    graph = helper.make_graph([helper.make_node("GRU", ["x", "W", "R"], ["y"], name="a", hidden_size=2)], "g", [], [])
    return helper.make_model(graph, **parts)


def bomb() -> bytes:
    """Functions of which each calls the one before twice: 2^60 nodes."""
    opsets, functions = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)], []
    for k in range(60):
        inner = "Identity" if k == 0 else f"F{k - 1}"
        domain = {} if k == 0 else {"domain": "own"}
        body = [helper.make_node(inner, ["a"], ["b"], **domain), helper.make_node(inner, ["b"], ["c"], **domain)]
        functions.append(helper.make_function("own", f"F{k}", ["a"], ["c"], body, opsets))
    model = flat_model(opset_imports=opsets, functions=functions)
    model.graph.node.append(helper.make_node("F59", ["x"], ["z"], domain="own"))
    return model.SerializeToString()


def circle() -> bytes:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [
        helper.make_function("own", f"F{k}", ["a"], ["c"], [helper.make_node(f"F{1 - k}", ["a"], ["c"], domain="own")], opsets)
        for k in range(2)
    ]
    return flat_model(opset_imports=opsets, functions=functions).SerializeToString()


def deep() -> bytes:
    """Graphs within graphs, as deep as protobuf reads them, and deeper."""
    graph = b""
    for _ in range(200):
        graph = field(1, field(5, field(6, graph)))
    return field(7, graph)


def claimed(op, *shape) -> bytes:
    model = flat_model()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(shape, np.int64), "s"))
    made = helper.make_node(op, ["s"], ["W"]) if op == "ConstantOfShape" else helper.make_node(op, ["R", "s"], ["W"])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 6, 2), np.float32), "R"))
    model.graph.node.insert(0, made)
    return model.SerializeToString()


def ranged() -> bytes:
    """A Range of 2^40 numbers, which the shape of the weights is said to come from."""
    model = flat_model()
    for name, number in {"from": 0, "to": 2**40, "by": 1}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(number), name))
    model.graph.node.insert(0, helper.make_node("Range", ["from", "to", "by"], ["r"]))
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["r"], ["W"]))
    return model.SerializeToString()


def grown(first=(1000,), dtype=np.float32) -> bytes:
    """Each node makes its value twice as long."""
    model = flat_model()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(first, dtype), "v0"))
    for k in range(40):
        model.graph.node.append(helper.make_node("Concat", [f"v{k}", f"v{k}"], [f"v{k + 1}"], axis=0))
    model.graph.node.append(helper.make_node("Identity", ["v40"], ["W"]))
    return model.SerializeToString()


ENTRIES = 3_000_000
HOSTILE = {
    "nothing": lambda: b"",
    "zeros": lambda: bytes(10_000_000),
    "text": lambda: b"{" * 1_000_000,
    "empty nodes": lambda: field(7, field(1, b"") * ENTRIES),
    "empty names": lambda: field(7, field(1, field(1, b"") * ENTRIES)),
    "empty properties": lambda: field(14, b"") * ENTRIES + field(7, b""),
    "sizes of a tensor": lambda: field(7, field(5, field(1, b"\x01" * 30_000_000))),
    "deep graphs": deep,
    "a function bomb": bomb,
    "functions in a circle": circle,
    "ConstantOfShape of 16 GiB": lambda: claimed("ConstantOfShape", 2**16, 2**16, 1),
    "Tile of 16 GiB": lambda: claimed("Tile", 2**16, 2**16, 1),
    "Expand of 2^60 entries": lambda: claimed("Expand", 2**30, 6, 2**30),
    "twice as long, 40 times": grown,
    "sizes twice as many, 40 times": lambda: grown((4,), np.int64),
    "Range of 2^40 numbers": ranged,
    "a size of 2^60": lambda: claimed("ConstantOfShape", 2**60),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_in_little_memory(case, tmp_path):
    """Within 5 s and 10 times the file and 100 MB."""
    path = tmp_path / "m.onnx"
    path.write_bytes(HOSTILE[case]())
    check(Path(tmp_path / "m.onnx"))  # what is imported on the way is not the file's
    for call in (from_onnx, onnx_nodes):
        kind, grown = measured(path, call)
        assert kind == "refused" or (call is onnx_nodes and path.stat().st_size < 10_000)
        assert grown < 10 * path.stat().st_size + 100e6


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        from_onnx(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=rf"should be a whole ONNX file, got {tmp_path}: it is no regular file"):
        from_onnx(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe: it is no regular file"):
        from_onnx(tmp_path / "pipe")


def test_nothing_beside_the_file_is_opened(tmp_path, monkeypatch):
    """Weights in another file are refused with what to pass; of a model in memory too, wherever the process runs."""
    monkeypatch.chdir(tmp_path)
    model = to_onnx(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0)))
    kept = onnx.ModelProto.FromString(model.SerializeToString())  # the model that is saved so loses its data
    onnx.save(kept, "m.onnx", save_as_external_data=True, location="data", size_threshold=0)
    with pytest.raises(
        ValueError, match=r"(?s)data are in another file, which is not opened here; onnx.load\(path\).*The file is m.onnx"
    ):
        from_onnx("m.onnx")
    with pytest.raises(ValueError, match=r"data are in another file, which is not opened here"):
        from_onnx(onnx.load("m.onnx", load_external_data=False))
    again = from_onnx(onnx.load("m.onnx"))
    assert again.stack == from_onnx(model).stack


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt, RecursionError])
def test_what_is_not_the_files_fault_is_not_said_to_be(kind):
    class Array:
        def __array__(self, *args, **kwargs):
            raise kind

    with pytest.raises(kind):
        from_onnx(flat_model(), weights={"W": Array()})


@pytest.mark.slow
def test_a_mutated_file_is_read_or_refused_by_name_and_reason(tmp_path):
    kinds = fuzz(tmp_path, 800)
    assert kinds["refused"] > 300 and kinds["read"] > 100


if __name__ == "__main__":
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    print(fuzz(folder, int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1))
