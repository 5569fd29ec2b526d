"""Files of weights, written without harm and read without trust: safetensors, and what PyTorch has loaded."""

import errno
import gc
import io
import json
import os
import resource
import signal
import stat
import struct
import subprocess
import sys
import time
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interop import (
    from_keras,
    from_onnx,
    from_safetensors,
    from_torch,
    load_keras,
    load_safetensors,
    load_torch,
    onnx_node,
    onnx_nodes,
    to_onnx,
    to_safetensors,
    to_torch,
)

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors")

WRITERS = {"to_safetensors": to_safetensors, "to_onnx": to_onnx}


def gru():
    return jaxrnn.GRU(2, 3, rngs=nnx.Rngs(0))


def bits(module):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(nnx.state(module, nnx.Param))]


# Writing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", WRITERS)
def test_a_new_file_has_the_mode_of_any_new_file(writer, tmp_path):
    before = os.umask(0o027)
    try:
        WRITERS[writer](gru(), tmp_path / "file")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o4750])
def test_a_file_keeps_its_mode_and_owner(writer, mode, tmp_path):
    (tmp_path / "file").write_text("before")
    if os.getuid() == 0:
        os.chown(tmp_path / "file", 1234, 2345)
    (tmp_path / "file").chmod(mode)
    there = (tmp_path / "file").stat()
    WRITERS[writer](gru(), tmp_path / "file")
    now = (tmp_path / "file").stat()
    assert (now.st_mode, now.st_uid, now.st_gid) == (there.st_mode, there.st_uid, there.st_gid)
    assert now.st_size > 100


@pytest.mark.parametrize("writer", WRITERS)
def test_a_link_is_written_through(writer, tmp_path):
    """Relative and in chains; also one to nothing yet."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_text("before")
    (tmp_path / "link").symlink_to("folder/target")
    (tmp_path / "chain").symlink_to("link")
    (tmp_path / "new").symlink_to(tmp_path / "folder" / "not yet")
    for name, target in (("chain", "target"), ("new", "not yet")):
        WRITERS[writer](gru(), tmp_path / name)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "folder" / target).stat().st_size > 100
    assert sorted(path.name for path in (tmp_path / "folder").iterdir()) == ["not yet", "target"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        WRITERS[writer](gru(), tmp_path / "loop")


@pytest.mark.parametrize("writer", WRITERS)
def test_what_is_not_a_file_stays(writer, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pipelink").symlink_to("pipe")
    for name, kind in (("pipe", "a named pipe"), ("folder", "a directory"), ("pipelink", "a named pipe")):
        with pytest.raises(ValueError, match=rf"{writer}: `path` should be the path of a regular file, got .*{name}, {kind}\.$"):
            WRITERS[writer](gru(), tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    null, full = os.devnull, "/dev/full"
    if os.geteuid() == 0:  # who could replace the machine's own
        null, full = ((os.fspath(tmp_path / os.path.basename(device)), os.stat(device).st_rdev) for device in (null, full))
        for path, number in (null, full):
            os.mknod(path, stat.S_IFCHR | 0o666, number)
        null, full = null[0], full[0]
    WRITERS[writer](gru(), null)
    assert stat.S_ISCHR(os.stat(null).st_mode)
    with pytest.raises(OSError, match=f"No space left.*'{full}'"):
        WRITERS[writer](gru(), full)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/nowhere/file'$"):
        WRITERS[writer](gru(), tmp_path / "nowhere" / "file")
    with pytest.raises(TypeError, match=rf"{writer}: `path` should be a str or an os.PathLike, got int"):
        WRITERS[writer](gru(), 3)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"PK\x03\x04" + bytes(90), r"a file of torch.save, for from_torch\(torch.load\(path, weights_only=True\)\)"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a file of torch.save"),
        (b'{"weight_map": {"weight_ih_l0": "part-2"}}', "JSON, perhaps the index of a model in several files"),
        (b"version https://git-lfs.github.com/spec/v1", "what Git LFS keeps in the place of a file"),
    ],
    ids=["torch", "old torch", "index", "Git LFS"],
)
def test_what_is_taken_for_a_safetensors_file_is_named(start, words, tmp_path):
    (tmp_path / "file").write_bytes(start)
    with pytest.raises(ValueError, match=rf"a whole safetensors file, got .*file: its header .*; it begins like {words}"):
        from_safetensors(tmp_path / "file")


@pytest.mark.parametrize("writer", WRITERS)
def test_files_beside_it_stay(writer, tmp_path):
    for name in ("file.part", ".file.part", "file.tmp"):
        (tmp_path / name).write_text("somebody's own")
    WRITERS[writer](gru(), tmp_path / "file")
    assert all((tmp_path / name).read_text() == "somebody's own" for name in ("file.part", ".file.part", "file.tmp"))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_too_large_for_the_disk_leaves_what_was_there(writer, tmp_path):
    """The limit of the process on the size of files, which Python reports like a full disk."""
    (tmp_path / "file").write_text("before")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        with pytest.raises(OSError, match=r"too large: '.*/file'$"):
            WRITERS[writer](gru(), tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "before")]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_may_not_be_written_stays(writer, tmp_path):
    """Although the folder lets everybody replace it."""
    (tmp_path / "file").write_text("before")
    (tmp_path / "file").chmod(0o444)
    tmp_path.chmod(0o777)
    write, module = WRITERS[writer], gru()
    write(module, tmp_path / "other")  # what is imported late, is imported
    message = rf"{writer}: `path` should be a file that may be written, got .*file"
    with as_nobody(tmp_path), pytest.raises(PermissionError, match=message):
        write(module, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "before"


# Reading: what a file may not do ------------------------------------------------------------------


def entry(shape, begin, stop, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, stop]}


def write(path, header, data=b""):
    """A safetensors file by hand, of a header given as an object or as text."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def layered(numbers, width=1):
    """The header and data of a GRU whose layers have these numbers."""
    header, data = {}, b""
    for number in numbers:
        for name, rows, columns in (("weight_ih", 3 * width, width), ("weight_hh", 3 * width, width)):
            size = 4 * rows * columns
            header[f"{name}_l{number}"] = entry([rows, columns], len(data), len(data) + size)
            data += np.ones(size // 4, "float32").tobytes()
    return header, data


ONE = entry([1], 0, 4)
HOSTILE = {
    "layer 2000": (
        lambda: layered(["0", "2000"]),
        r"number its layers from 0 on without a gap, .* got 2 layers, among them weight_ih_l2000",
    ),
    "layer 10⁹": (lambda: layered(["0", "1000000000"]), r"among them weight_ih_l1000000000\.$"),
    "layer of 5,000 digits": (lambda: layered(["0", "7" * 5000]), r"weight_ih_l7+… \(5011 characters\)"),
    "layer 01": (lambda: layered(["0", "01"]), r"among them weight_ih_l01"),
    "layers from 1": (lambda: layered(["1", "2"]), r"should hold weight_ih_l0 and weight_hh_l0"),
    "layer in Arabic digits": (lambda: layered(["0", "١"]), r"weight_ih_l١ should not be there"),
    "a thousand layers": (lambda: layered(range(1000)), r"have 256 of them at most, got 1000 layers, among them .*… 9\d\d more"),
    "metadata of brackets": (
        lambda: ({"__metadata__": {"jaxrnn": "[" * 100_000}} | layered(["0"])[0], layered(["0"])[1]),
        r"metadata `jaxrnn` of .* should be a JSON object .*got '\[+… of 100002 characters",
    ),
    "a header of brackets": (lambda: (b'{"a":' + b"[" * 100_000, b""), r"should be a whole safetensors file, .*recursion"),
    "metadata of few brackets": (
        lambda: ({"__metadata__": {"jaxrnn": "[" * 900}} | layered(["0"])[0], layered(["0"])[1]),
        r"metadata `jaxrnn` of .* should be a JSON object",
    ),
    "metadata twice": (
        lambda: (
            {"__metadata__": {"jaxrnn": '{"batch_first": true, "batch_first": false}'}} | layered(["0"])[0],
            layered(["0"])[1],
        ),
        r"metadata `jaxrnn` of .* should be a JSON object",
    ),
    "a dropout of none": (
        lambda: ({"__metadata__": {"jaxrnn": '{"dropout": NaN}'}} | layered(["0"])[0], layered(["0"])[1]),
        r"`dropout` in the metadata `jaxrnn` of .*file should be a number from 0 to 1, got nan",
    ),
    "a batch_first of words": (
        lambda: ({"__metadata__": {"jaxrnn": '{"batch_first": "no"}'}} | layered(["0"])[0], layered(["0"])[1]),
        r"`batch_first` in the metadata .* should be true or false, got 'no'",
    ),
    "a nonlinearity for a GRU": (
        lambda: ({"__metadata__": {"jaxrnn": '{"nonlinearity": "relu"}'}} | layered(["0"])[0], layered(["0"])[1]),
        r"`nonlinearity` should be left out, since .*file holds a GRU",
    ),
    "a key twice": (
        lambda: (b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2), b"1234"),
        r"should be a whole safetensors file, .*the key 'a' comes twice",
    ),
    "a field twice": (
        lambda: (b'{"a":{"dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4]}}', b"1234"),
        r"the key 'dtype' comes twice",
    ),
    "numbers of 5,000 digits": (
        lambda: (b'{"a":{"dtype":"F32","shape":[1%s],"data_offsets":[0,4]}}' % (b"0" * 5000), b"1234"),
        r"digits",
    ),
    "numbers beyond all": (lambda: ({"a": entry([2**64], 0, 4)}, b"1234"), r"numbers from 0 to 2\*\*63 - 1"),
    "negative numbers": (lambda: ({"a": entry([-1], 0, 4)}, b"1234"), r"numbers from 0 to"),
    "numbers with a point": (lambda: ({"a": entry([1.0], 0, 4)}, b"1234"), r"numbers from 0 to"),
    "true as a number": (lambda: ({"a": entry([True], 0, 4)}, b"1234"), r"numbers from 0 to"),
    "a product beyond all": (lambda: ({"a": entry([2**62] * 64, 0, 4)}, b"1234"), r"a should lie in the file, from byte 0"),
    "more axes than NumPy has": (lambda: ({"a": entry([1] * 70, 0, 4)}, b"1234"), r"a should have 64 axes at most, it has 70"),
    "nothing, of many columns": (
        lambda: ({"weight_ih_l0": entry([0, 2**40], 0, 0), "weight_hh_l0": entry([3, 1], 0, 12)}, b"1" * 12),
        r"none empty",
    ),
    "two arrays in one place": (lambda: ({"a": ONE, "b": ONE}, b"1234"), r"b should lie in the file, from byte 4"),
    "a hole": (lambda: ({"a": ONE, "b": entry([1], 8, 12)}, b"1234" * 3), r"b should lie in the file, from byte 4"),
    "beyond the file": (lambda: ({"a": entry([2], 0, 8)}, b"1234"), r"a should lie in the file"),
    "offsets in the wrong order": (lambda: ({"a": entry([1], 4, 0)}, b"1234"), r"two data_offsets, in order"),
    "three offsets": (lambda: ({"a": ONE | {"data_offsets": [0, 4, 4]}}, b"1234"), r"two data_offsets, in order"),
    "data beyond the arrays": (
        lambda: ({"a": ONE}, b"12345"),
        r"arrays should end with the file, 5 bytes behind the header, they end after 4",
    ),
    "no shape": (
        lambda: ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234"),
        r"should be described by dtype, shape and data_offsets",
    ),
    "a dtype that nobody has": (lambda: ({"a": entry([1], 0, 4, "F99")}, b"1234"), r"a has the dtype F99, which is unknown"),
    "a dtype that is a list": (lambda: ({"a": entry([1], 0, 4, ["F32"])}, b"1234"), r"a should have a name as its dtype"),
    "metadata of numbers": (lambda: ({"__metadata__": {"a": 1}}, b""), r"`__metadata__` should hold strings"),
    "half a surrogate": (lambda: (b'{"\\ud800":%s}' % json.dumps(ONE).encode(), b"1234"), r"surrogates not allowed"),
    "no object": (lambda: (b"[]", b""), r"header should begin with a brace"),
    "no JSON": (lambda: (b"{nonsense}", b""), r"whole safetensors file"),
    "infinity": (
        lambda: (b'{"a":{"dtype":"F32","shape":[Infinity],"data_offsets":[0,4]}}', b"1234"),
        r"JSON, which has no Infinity",
    ),
    "no text": (lambda: (b'{"\xff":1}', b""), r"utf-8"),
    "float8": (
        lambda: ({"weight_ih_l0": entry([3, 1], 0, 3, "F8_E4M3"), "weight_hh_l0": entry([3, 1], 3, 15)}, b"1" * 15),
        r"`weight_ih_l0` of .*file should have one of the dtypes .*got F8_E4M3",
    ),
    "float64": (
        lambda: ({"weight_ih_l0": entry([3, 1], 0, 24, "F64"), "weight_hh_l0": entry([3, 1], 24, 36)}, b"1" * 36),
        r"`weight_ih_l0` of .*file should not be float64 while",
    ),
    "a projection of no size": (
        lambda: (
            {"weight_ih_l0": entry([4, 1], 0, 16), "weight_hh_l0": entry([4, 1], 16, 32), "weight_hr_l0": entry([1], 32, 36)},
            b"1" * 36,
        ),
        r"weight_hr_l0 of .*file should be \(1, hidden_size\), .*got shape \(1,\)",
    ),
    "twenty thousand arrays": (
        lambda: ({f"a{k}": entry([0], 0, 0) for k in range(20_000)}, b""),
        r"should hold weight_ih_l0 and weight_hh_l0 .*… 19950 more",
    ),
    "a header without end": (
        lambda: (b'{"a":"' + b" " * (3 * 2**20), b""),
        r"its header should have 2097152 bytes at most, it has 3145734",
    ),
    "a header of empty lists": (lambda: (b'{"a":[' + b"[]," * (2**19) + b"[]]}", b""), r"a should be described by dtype"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_refused_soon_and_by_name(case, tmp_path):
    make, message = HOSTILE[case]
    path = write(tmp_path / "file", *make())
    ours = gru()
    before, start = bits(ours), time.process_time()
    for call in (from_safetensors, lambda path: load_safetensors(ours, path)):
        with pytest.raises((ValueError, TypeError)) as error:
            call(path)
        assert "file" in str(error.value)
        assert len(str(error.value)) < 30_000
        if call is from_safetensors:
            assert error.match(rf"(?s)from_safetensors: .*{message}" if not message.startswith("`") else message)
    assert time.process_time() - start < 5
    assert bits(ours) == before


def test_a_header_longer_than_the_file_is_not_waited_for(tmp_path):
    for size in (0, 9, 2**40, 2**64 - 1):
        (tmp_path / "file").write_bytes(struct.pack("<Q", size) + b"{}")
        with pytest.raises(ValueError, match=r"from_safetensors: .*whole safetensors file, got .*file: its header should"):
            from_safetensors(tmp_path / "file")


@pytest.mark.parametrize("call", [from_safetensors, lambda path: load_safetensors(gru(), path)])
def test_what_is_not_a_file_is_not_read(call, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path / "link", "a named pipe"), (tmp_path, "a directory")):
        with pytest.raises(ValueError, match=rf"`path` should be the path of a regular file, got .*, {kind}\.$"):
            call(path)
    with pytest.raises(ValueError, match=r"got /dev/zero, a device\.$"):
        call("/dev/zero")
    with pytest.raises(TypeError, match=r"`path` should be a str or an os.PathLike, got int"):
        call(0)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        call(tmp_path / "nowhere")
    to_safetensors(gru(), tmp_path / "file")
    (tmp_path / "good link").symlink_to("file")  # as those of a cache of downloaded models
    call(tmp_path / "good link")


READERS = {
    "from_safetensors": from_safetensors,
    "load_safetensors": lambda path: load_safetensors(gru(), path),
    "from_keras": from_keras,
    "load_keras": lambda path: load_keras(gru(), path),
    "from_onnx": from_onnx,
    "onnx_node": onnx_node,
    "onnx_nodes": onnx_nodes,
}


@pytest.mark.parametrize("name", ["m", "m.safetensors", "m.keras", "m.weights.h5", "m.onnx", "folder/m.h5", "link", "file/m.keras"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_is_not_there_is_the_systems_error(reader, name, tmp_path):
    """With the number and the name; a link to nothing, and a file in the place of a folder, too."""
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    for path in (tmp_path / name, os.fspath(tmp_path / name)):
        with pytest.raises((FileNotFoundError, NotADirectoryError)) as error:
            READERS[reader](path)
        assert os.fspath(error.value.filename) == os.fspath(path)
        assert error.value.errno in (errno.ENOENT, errno.ENOTDIR)
        assert name in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read_is_the_systems_error(reader, tmp_path):
    (tmp_path / "m").write_text("something")
    (tmp_path / "m").chmod(0)
    tmp_path.chmod(0o755)
    with pytest.raises(ValueError):  # what is imported late, is imported
        READERS[reader](__file__)
    with as_nobody(tmp_path), pytest.raises(PermissionError, match=r"Permission denied: '.*/m'"):
        READERS[reader](tmp_path / "m")


@contextmanager
def as_nobody(folder):
    """Without the rights of root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        for above in folder.parents:
            if above.stat().st_mode & stat.S_ISVTX or above == above.parent:  # where all may write, as in /tmp
                break
            above.chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


MEASURE = """
import resource, sys, time
import jaxrnn.interop
def peak():  # of this process alone; ru_maxrss would hold that of the process it came from
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before, start = peak(), time.process_time()
try:
    jaxrnn.interop.from_safetensors(sys.argv[1])
except ValueError as error:
    print(peak() - before, time.process_time() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak of memory is read from Linux")
@pytest.mark.parametrize("case", ["a header of empty lists", "twenty thousand arrays"])
def test_memory_and_time_are_bounded_by_the_size_of_the_file(case, tmp_path):
    path = write(tmp_path / "file", *HOSTILE[case][0]())
    done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
    memory, seconds = map(float, done.stdout.split())
    assert memory <= 10 * path.stat().st_size + 100e6
    assert seconds < 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, TimeoutError])
def test_an_interrupt_or_the_end_of_memory_is_passed_on_as_it_is(error, tmp_path):
    path = write(tmp_path / "file", *HOSTILE["a header of empty lists"][0]())

    def end(*_):
        raise error("ended")

    before = signal.signal(signal.SIGALRM, end)
    gc.disable()  # or the signal may come while JAX cleans up, which prints errors and goes on
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        with pytest.raises(error, match=r"^ended$"):
            from_safetensors(path)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_module_is_filled_whole_or_not_at_all_if_memory_ends(error, tmp_path, monkeypatch):
    ours = gru()
    to_safetensors(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(1)), tmp_path / "file")
    before, placed, calls = bits(ours), jaxrnn.interop._modules._placed, []

    def end(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return placed(*arguments)

    monkeypatch.setattr(jaxrnn.interop._modules, "_placed", end)
    with pytest.raises(error):
        load_safetensors(ours, tmp_path / "file")
    assert bits(ours) == before
    load_safetensors(ours, tmp_path / "file")
    assert bits(ours) == bits(jaxrnn.GRU(2, 3, rngs=nnx.Rngs(1)))


# Reading: good files, and good files that were changed --------------------------------------------


def good_arrays(rng, cell):
    """The state_dict of a small network, of random kind, dtype and options, and a head beside it."""
    dtype = rng.choice(["float32", "float16", "bfloat16"])
    options = {"num_layers": int(rng.integers(1, 3)), "bidirectional": bool(rng.integers(2)), "bias": bool(rng.integers(2))}
    theirs = getattr(torch.nn, cell)(int(rng.integers(1, 4)), int(rng.integers(2, 4)), dtype=getattr(torch, dtype), **options)
    return {f"m.{key}": a.detach() for key, a in theirs.state_dict().items()} | {"head": torch.ones(2)}


def mutate(data, rng):
    """A few changes: bits, cuts, pieces put elsewhere, numbers made huge, words of the header exchanged."""
    data = bytearray(data)
    length = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.integers(1, 4)):
        if not data:
            break
        at = int(rng.integers(length if rng.random() < 0.8 else len(data)))
        at = min(at, max(len(data) - 1, 0))
        kind = rng.integers(8)
        if kind == 0 and data:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            other = int(rng.integers(len(data) or 1))
            data[at:at] = data[other : other + int(rng.integers(1, 33))]
        elif kind == 4:
            data[at : at + 1] = rng.choice([b"9" * 30, b"-1", b"1e9", b"0", b"[", b"}", b'"', b"\xff", b"null", b"4294967296"])
        elif kind == 5:
            words = [
                b"F32",
                b"F16",
                b"BF16",
                b"F64",
                b"I32",
                b"_l0",
                b"_l1",
                b"_reverse",
                b"weight",
                b"bias",
                b"_ih",
                b"_hh",
                b"m.",
            ]
            old, new = rng.choice(words, 2)
            data = data.replace(old, new, int(rng.integers(1, 3)))
        elif kind == 6:
            data[:8] = struct.pack("<Q", int(rng.choice([0, 1, len(data), 2**31, 2**63, rng.integers(2**16)])))
        else:
            header = bytes(data[8:length])
            data[8:length] = header.replace(b"[", b"[" + str(rng.integers(1, 100)).encode() + b",", 1)
            data[:8] = struct.pack("<Q", len(header))
    return bytes(data)


def structured(data, rng):
    """A change that keeps the file well-formed: fields of the header exchanged, renamed, or of other values."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    keys = [key for key in header if key != "__metadata__"]
    for _ in range(rng.integers(1, 3)):
        a, b = (keys[int(k)] for k in rng.integers(len(keys), size=2))
        field = str(rng.choice(["dtype", "shape", "data_offsets"]))
        kind = rng.integers(7)
        if kind == 0:
            header[a], header[b] = header[b], header[a]
        elif kind == 1 and field in header[a] and field in header[b]:
            header[a][field], header[b][field] = header[b][field], header[a][field]
        elif kind == 2:
            header[a][field] = json.loads(
                str(rng.choice(["0", "[]", '"F32"', "[1]", "[0, 0]", "[9007199254740993, 0]", "{}", "null", "[1e30]"]))
            )
        elif kind == 3:
            number = str(rng.choice(["1", "9", "300", "9" * 12, "9" * 5000]))
            header[a.replace("_l0", f"_l{number}")] = header.pop(a)
            keys = [key for key in header if key != "__metadata__"]
        elif kind == 4:
            header[a]["shape"] = header[a]["shape"][::-1] if isinstance(header[a].get("shape"), list) else []
        elif kind == 5:
            header["__metadata__"] = {
                "jaxrnn": str(rng.choice(['{"dropout": 1e999}', "[" * 5000, '{"batch_first": 1}', "{}", "nul"]))
            }
        else:
            header[a].pop(field, None)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def as_library(path):
    """What the safetensors library reads, by key; None if it refuses the file."""
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError:
        return None


def attempt(call, *arguments):
    """The result, or the error if it is one of those that a file may raise."""
    try:
        return call(*arguments), None
    except (ValueError, TypeError, OSError) as error:
        return None, error


def fuzz_safetensors(count, folder, seed):
    """Mutations of good files: read as the library reads them, or refused with the name of the file; (read, refused)."""
    import safetensors.torch

    rng, read, refused = np.random.default_rng(seed), 0, 0
    path, base = folder / "mutated.safetensors", None
    ours = gru()
    before = bits(ours)
    for k in range(count):
        if k % 40 == 0:
            base = safetensors.torch.save(
                good_arrays(rng, rng.choice(["LSTM", "GRU", "RNN"])), {"format": "pt", "jaxrnn": '{"dropout": 0.5}'}
            )
        path.write_bytes((mutate if rng.random() < 0.6 else structured)(base, rng))
        start = time.process_time()
        module, error = attempt(from_safetensors, path, "m.")
        if module is None:
            refused += 1
            assert "mutated.safetensors" in str(error), (k, error)
            _, error = attempt(load_safetensors, ours, path, "m.")
            if error is None:  # the metadata alone are wrong, and the arrays happen to fit
                theirs = as_library(path)
                assert all(a.numpy().tobytes() == theirs[key].tobytes() for key, a in to_torch(ours, "m.").items()), k
                before = bits(ours)
            else:
                assert "mutated.safetensors" in str(error), (k, error)
                assert bits(ours) == before, k
        else:
            read += 1
            theirs = as_library(path)
            assert theirs is not None, k
            got = to_torch(module, "m.")
            assert set(got) == {key for key in theirs if key.startswith("m.")}, k
            for key, a in got.items():
                assert a.view(torch.uint8).numpy().tobytes() == theirs[key].tobytes(), (k, key)
        assert time.process_time() - start < 5, k
    return read, refused


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_seven_hundred_changed_files_are_read_as_the_library_reads_them_or_refused(tmp_path):
    read, refused = fuzz_safetensors(700, tmp_path, seed=0)
    assert read >= 10
    assert refused >= 300


def fuzz_state_dicts(count, seed):
    """Saved state_dicts, changed: loaded by PyTorch, then read as they are, or refused; (read, refused, unloadable)."""
    rng, read, refused, unloadable = np.random.default_rng(seed), 0, 0, 0
    ours = gru()
    before = bits(ours)
    for k in range(count):
        if k % 20 == 0:
            saved = io.BytesIO()
            state = good_arrays(rng, rng.choice(["LSTM", "GRU", "RNN"]))
            torch.save(state, saved)
            base = saved.getvalue()
        if rng.random() < 0.4:
            data = bytearray(base)
            for at in rng.integers(len(data), size=rng.integers(1, 4)):
                data[at] ^= 1 << int(rng.integers(8))
            data = bytes(data[: int(rng.integers(1, len(data)))]) if rng.random() < 0.1 else bytes(data)
        else:
            changed = io.BytesIO()
            torch.save(change_state(dict(state), rng), changed)
            data = changed.getvalue()
        try:
            loaded = torch.load(io.BytesIO(data), weights_only=True)
        except Exception:  # of PyTorch's own, before anything of ours
            unloadable += 1
            continue
        module, error = attempt(from_torch, loaded, "m.")
        if module is None:
            refused += 1
            assert str(error).startswith("from_torch: "), (k, error)
            _, error = attempt(load_torch, ours, loaded, "m.")
            assert str(error).startswith("load_torch: "), (k, error)
            assert bits(ours) == before, k
        else:
            read += 1
            got = to_torch(module, "m.")
            assert set(got) == {key for key in loaded if str(key).startswith("m.")}, k
            for key, a in got.items():
                want = loaded[key].contiguous()  # but for the stride of an axis of one, which flatten() sets
                assert (a.dtype, a.shape) == (want.dtype, want.shape), (k, key)
                assert torch.equal(*(one.flatten().view(torch.uint8) for one in (a, want))), (k, key)
    return read, refused, unloadable


def change_state(state, rng):
    """A state_dict with a few things changed."""
    for _ in range(rng.integers(1, 3)):
        keys = [key for key in state if isinstance(key, str)]
        if not keys:
            return state
        a, b = (keys[int(k)] for k in rng.integers(len(keys), size=2))
        kind = rng.integers(9)
        if kind == 0:
            state[a], state[b] = state[b], state[a]
        elif kind == 1:
            del state[a]
        elif kind == 2:
            state[a.replace("_l0", "_l" + str(rng.choice(["1", "7", "999", "9" * 12, "9" * 5000, "01"])))] = state.pop(a)
        elif kind == 3:
            nested = {"m.weight_ih_l0": torch.ones(2, 2)}
            tensors = (torch.tensor(1.0), torch.ones(0, 3), torch.ones(2, 2).to_sparse())
            values = (3, None, "text", [1, 2], nested, *tensors)
            state[a] = values[int(rng.integers(len(values)))]
        elif kind == 4 and hasattr(state[a], "shape"):
            dtypes = (torch.int8, torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.bool)
            state[a] = state[a].to_dense().to(dtypes[int(rng.integers(len(dtypes)))]) if not state[a].is_sparse else 0
        elif kind == 5 and hasattr(state[a], "shape") and not state[a].is_sparse:
            state[a] = state[a].t() if state[a].ndim == 2 else state[a][None]
        elif kind == 6:
            state[a + str(rng.choice(["_g", "_orig", "_reverse", ".x", "é"]))] = state.pop(a)
        elif kind == 7:
            state["m.parametrizations.weight_ih_l0.original0"] = state.pop("m.weight_ih_l0", torch.ones(1))
        else:
            state[int(rng.integers(9))] = state.pop(a)
    return state


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_three_hundred_changed_state_dicts_are_read_as_they_are_or_refused():
    read, refused, unloadable = fuzz_state_dicts(420, seed=0)
    assert read + refused >= 300
    assert read >= 10
    assert unloadable < 120


@pytest.mark.slow
def test_every_dtype_of_a_file_is_read_as_the_library_reads_it(tmp_path, x64):
    import safetensors.torch

    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        theirs = torch.nn.LSTM(2, 3, num_layers=2, bidirectional=True, dtype=dtype)
        others = {"bytes": torch.ones(3, dtype=torch.uint8), "numbers": torch.ones(2, dtype=torch.int64), "none": torch.ones(0, 5)}
        safetensors.torch.save_file(theirs.state_dict() | others, tmp_path / "file")
        with pytest.raises(ValueError, match=r"bytes should not be there, got U8 \(3,\)"):
            from_safetensors(tmp_path / "file")
        nested = {f"m.{key}": a for key, a in theirs.state_dict().items()}
        safetensors.torch.save_file(nested | others, tmp_path / "file")
        got = to_torch(from_safetensors(tmp_path / "file", "m"))
        assert all(torch.equal(got[key], a) for key, a in theirs.state_dict().items())
