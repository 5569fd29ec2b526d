"""Damaged and hostile files of Keras: refused with a reason, within limits of time and memory, or read; the module is untouched."""

import io
import itertools
import json
import os
import random
import subprocess
import sys
import time
import tracemalloc
import zipfile
from contextlib import contextmanager

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import pytest

from jaxrnn.interop import from_keras, load_keras, to_keras

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
layers = keras.layers

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning", "ignore:.*does not come along")

INPUT, HIDDEN = 3, 4
MUTATIONS = int(os.environ.get("JAXRNN_MUTATIONS", 200))  # of each format


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Good files of one model: a path for each format."""
    folder = tmp_path_factory.mktemp("good")
    model = keras.Sequential(
        [
            keras.Input((None, INPUT)),
            layers.Bidirectional(layers.LSTM(HIDDEN, return_sequences=True, activation="softsign"), name="both"),
            layers.RNN([layers.GRUCell(2), layers.GRUCell(HIDDEN)], return_sequences=True, name="stack"),
            layers.Dense(2),
        ]
    )
    rng = np.random.default_rng(0)
    model.set_weights([rng.standard_normal(a.shape).astype(a.dtype) for a in model.get_weights()])
    paths = {name: folder / name for name in ("m.keras", "m.h5", "m.weights.h5")}
    model.save(paths["m.keras"])
    model.save(paths["m.h5"])
    model.save_weights(paths["m.weights.h5"])
    return paths


@pytest.fixture(scope="module")
def module(good):
    return from_keras(good["m.keras"], "both")


# Mutations -------------------------------------------------------------------------------------------------------------

HUGE = [10**9, 2**31 - 1, 2**63, -1, 0, 1e308, "x" * 1000, None, True, [], {}, [[]] * 50, "../../etc/passwd", "tanh", "LSTM", "GRU"]


def flip(rng, data: bytes) -> bytes:
    """A few bits or bytes, most of them in the first kilobytes, where the structure is."""
    damaged = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(min(len(data), 10 ** rng.randrange(2, 6)))
        damaged[at] = rng.choice([damaged[at] ^ (1 << rng.randrange(8)), rng.randrange(256), 0, 255])
    return bytes(damaged)


def cut(rng, data: bytes) -> bytes:
    """Without its end, without a piece, or with one piece over another."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice([data[:a], data[:a] + data[b:], data[:a] + data[: b - a] + data[b:]])


def enlarge(rng, data: bytes) -> bytes:
    """A number of 1, 2, 4 or 8 bytes made huge."""
    size = rng.choice([1, 2, 4, 8])
    at = rng.randrange(min(len(data) - 8, 10 ** rng.randrange(2, 6)))
    return data[:at] + rng.choice([b"\xff", b"\x7f", b"\x00"]) * size + data[at + size :]


def places(tree):
    """Every entry of nested lists and dictionaries: (container, key)."""
    for key in tree if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], dict | list):
            yield from places(tree[key])


def reconfigure(rng, text: str) -> str:
    """An entry swapped with another, made huge, or left out."""
    tree = json.loads(text)
    for _ in range(rng.choice([1, 1, 2])):
        (a, i), (b, j) = (rng.choice(list(places(tree))) for _ in range(2))
        kind = rng.randrange(3)
        if kind == 0:
            a[i] = rng.choice(HUGE)
        elif kind == 1:
            del a[i]
        else:
            a[i], b[j] = json.loads(json.dumps((b[j], a[i])))
    return json.dumps(tree)


def rezipped(data: bytes, name: str, change) -> bytes:
    """An archive whose checksums are right, with another member."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, change(old.read(info)) if info.filename == name else old.read(info))
    return made.getvalue()


def mutated(rng, name: str, data: bytes) -> bytes:
    change = rng.choice([flip, flip, cut, enlarge, enlarge])
    kind = rng.randrange(3)
    if name == "m.keras" and kind == 0:
        return rezipped(data, "config.json", lambda text: reconfigure(rng, text.decode()).encode())
    if name == "m.keras" and kind == 1:
        return rezipped(data, "model.weights.h5", lambda weights: change(rng, weights))
    if name == "m.h5" and kind == 0:
        with io.BytesIO(data) as file:
            with h5py.File(file, "r+") as store:
                store.attrs["model_config"] = reconfigure(rng, store.attrs["model_config"])
            return file.getvalue()
    return change(rng, data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["m.keras", "m.h5", "m.weights.h5"])
def test_a_mutated_file_is_refused_or_read(name, good, module, tmp_path):
    """Bits flipped, pieces cut out, numbers made huge, fields swapped: never another exception, and nothing half done."""
    data, path, rng = good[name].read_bytes(), tmp_path / name, random.Random(int(os.environ.get("JAXRNN_SEED", 0)))
    before, layer = to_keras(module), "bidirectional" if name == "m.weights.h5" else "both"
    messages, slowest = [], 0.0
    for case in range(MUTATIONS):
        damaged = mutated(rng, name, data)
        path.write_bytes(damaged)
        start = time.process_time()
        try:
            if case % 4 == 3:
                from_keras(path, rng.choice(["both", "stack", None]))
            else:
                load_keras(module, path, layer)
        except (ValueError, TypeError) as error:
            messages.append(str(error))
            for a, b in zip(to_keras(module), before, strict=True):
                np.testing.assert_array_equal(a, b)
        else:
            load_keras(module, before)
        slowest = max(slowest, time.process_time() - start)
    assert not [message for message in messages if not message.startswith(("load_keras: ", "from_keras: "))]
    assert len(messages) > MUTATIONS // 4
    assert slowest < 5


# Hostile files ---------------------------------------------------------------------------------------------------------


@contextmanager
def within(path, seconds=5):
    """At most the time, and ten times the memory of the file and 100 MB, by what Python and NumPy allocate."""
    start, size = time.process_time(), path.stat().st_size
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.process_time() - start < seconds
    assert peak < 10 * size + 100e6


def refuses(message, path, layer="both"):
    with within(path), pytest.raises(ValueError, match=rf"(?s)from_keras: .*{path.name}.*{message}"):
        from_keras(path, layer)


@pytest.fixture
def archive(good, tmp_path):
    """A function that puts another member into a good archive."""

    def write(name, data, compression=zipfile.ZIP_STORED, twice=False):
        path = tmp_path / "m.keras"
        with zipfile.ZipFile(good["m.keras"]) as old, zipfile.ZipFile(path, "w", compression) as new:
            for info in old.infolist():
                if info.filename != name or twice:
                    new.writestr(info.filename, old.read(info))
            if callable(data):
                with new.open(name, "w", force_zip64=True) as member:
                    data(member)
            elif data is not None:
                new.writestr(name, data)
        return path

    return write


@pytest.fixture
def configured(good, archive):
    """A function that writes an archive with a change to the forward LSTM's configuration."""

    def write(**changes):
        tree = json.loads(zipfile.ZipFile(good["m.keras"]).read("config.json"))
        layer = next(one for one in tree["config"]["layers"] if one["class_name"] == "Bidirectional")
        for direction, (key, value) in itertools.product(("layer", "backward_layer"), changes.items()):
            config = layer["config"][direction]["config"]
            config[key] = value
            if value is Ellipsis:
                del config[key]
        return archive("config.json", json.dumps(tree))

    return write


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": 10**9}, "kernel of direction 0 should be float32 \\(3, 4000000000\\), got float32 \\(3, 16\\)"),
        ({"units": 10**4000}, "`units` of layer 'both' .* should be at least 1 and below 2\\*\\*31, got 1000"),
        ({"units": -4}, "`units` of .* should be at least 1"),
        ({"units": "4"}, "`units` of .* should be of type int, got '4'"),
        ({"units": True}, "`units` of .* should be of type int, got True"),
        ({"units": ...}, "the configuration of layer 'both' .* should have 'units', got \\['activation'"),
        ({"activation": ...}, "the configuration of .* should have 'activation'"),
        ({"activation": {"class_name": "function", "config": "tanh"}}, "`activation` of .* should be one of 'tanh'"),
        ({"activation": "x" * 10**6}, "`activation` of .* should be one of 'tanh'"),
        ({"use_bias": "no"}, "`use_bias` of .* should be of type bool, got 'no'"),
        ({"go_backwards": ...}, "should have 'go_backwards'"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_configuration_without_sense_is_refused_by_name(changes, message, configured):
    path = configured(**changes)
    with within(path), pytest.raises(ValueError, match=f"(?s)from_keras: .*{message}") as error:
        from_keras(path, "both")
    assert len(str(error.value)) < 2000


@pytest.mark.slow
def test_a_member_is_unpacked_within_limits(archive):
    """Zeros take a thousandth of their size."""

    def zeros(member):
        for _ in range(64):
            member.write(bytes(2**20))

    refuses("its model.weights.h5 should have at most .* bytes", archive("model.weights.h5", zeros, zipfile.ZIP_DEFLATED))
    refuses("its config.json should have at most .* bytes", archive("config.json", zeros, zipfile.ZIP_DEFLATED))
    refuses("its config.json should have at most .* bytes", archive("config.json", b"[" * 10**7, zipfile.ZIP_DEFLATED))
    path = archive("config.json", zeros, zipfile.ZIP_DEFLATED)
    data = path.read_bytes()
    claimed, honest = (64 * 2**20).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    path.write_bytes(data.replace(claimed, honest))  # the header tells less than there is
    refuses("", path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("config.json", "[" * 10**5, "recursion|nested"),
        ("config.json", "[" * 500 + "]" * 500, "its configuration should be an object, got list"),
        ("config.json", '{"config": ' * 400 + "1" + "}" * 400, "`layer` should be among .*"),
        (
            "config.json",
            '{"config": {"layers": [{"class_name": "A", ' * 100 + '"b": 1' + "}]}}" * 99,
            "`layer` should|deep|Expecting",
        ),
        ("config.json", None, "it should hold one config.json, got 0"),
        ("metadata.json", "[]", "its configuration should be an object"),
        ("model.weights.h5", b"", "its arrays should be an HDF5 file, got one that begins with b''"),
    ],
    ids=str,
)
def test_members_without_sense_are_refused(name, data, message, archive):
    path = archive(name, data)
    with within(path), pytest.raises(ValueError, match=f"(?s)from_keras: .*({message})"):
        from_keras(path, "both")


def test_a_version_without_sense_is_none(archive):
    for text in ('{"keras_version": 1e999}', '{"keras_version": "three"}', "{}"):
        assert from_keras(archive("metadata.json", text), "both").stack.cell.activation == "softsign"


def test_two_members_of_one_name_are_refused(archive):
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = archive("config.json", "{}", twice=True)
    refuses("it should hold one config.json, got 2", path)


def test_nothing_outside_of_the_file_is_read(good, tmp_path):
    """Neither by links, nor as storage of an array, nor through a virtual array."""
    secret = tmp_path / "secret.h5"
    key = "layers/bidirectional/forward_layer/cell/vars/0"
    with h5py.File(secret, "w") as store:
        store["a"] = np.ones((INPUT, 4 * HIDDEN), np.float32)
    (tmp_path / "secret.bin").write_bytes(np.ones((INPUT, 4 * HIDDEN), np.float32).tobytes())

    def damaged(change):
        path = tmp_path / "m.weights.h5"
        path.write_bytes(good["m.weights.h5"].read_bytes())
        with h5py.File(path, "r+") as store:
            del store[key]
            change(store)
        return path

    module = from_keras(good["m.keras"], "both")
    before, shape = to_keras(module), (INPUT, 4 * HIDDEN)
    virtual = h5py.VirtualLayout(shape, np.float32)
    virtual[...] = h5py.VirtualSource(str(secret), "a", shape)

    def external(store):
        store.create_dataset(key, shape, np.float32, external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)])

    def through_link(store):
        store[key] = h5py.ExternalLink(str(secret), "a")

    def through_soft_link(store):
        store[key] = h5py.SoftLink("/layers/bidirectional/backward_layer/cell/vars/0")

    def far(store):
        del store["layers"]
        store["layers"] = h5py.ExternalLink(str(secret), "/")

    for change, message in [
        (external, "its array .* lies in another file, which is not read"),
        (lambda store: store.create_virtual_dataset(key, virtual), "its array .* lies in another file, which is not read"),
        (through_link, "is a link to somewhere else, which is not followed"),
        (through_soft_link, "is a link to somewhere else, which is not followed"),
        (far, "its 'layers' is a link to somewhere else, which is not followed"),
    ]:
        path = damaged(change)
        with within(path), pytest.raises(ValueError, match=rf"(?s)load_keras: .*m.weights.h5.*{message}"):
            load_keras(module, path, "bidirectional")
        for a, b in zip(to_keras(module), before, strict=True):
            np.testing.assert_array_equal(a, b)


def test_arrays_and_groups_larger_than_the_file_are_refused(good, tmp_path):
    key, path = "layers/bidirectional/forward_layer/cell/vars/0", tmp_path / "m.weights.h5"
    module = from_keras(good["m.keras"], "both")

    def nested(store):
        group = store["layers"]
        for _ in range(3000):
            group = group.create_group("a")

    def circle(store):
        store["layers/bidirectional/itself"] = store["layers"]
        store[key] = np.ones((INPUT, 4 * HIDDEN), np.float16)

    for change, message in [
        (lambda s: s.create_dataset(key, (10**6, 10**4), np.float32), "at most .* bytes, which the size of the file allows"),
        (
            lambda s: s.create_dataset(key, (10**6, 10**4), np.float32, chunks=(10**3, 10**4), compression="gzip"),
            "at most .* bytes",
        ),
        (lambda s: s.create_dataset(key, (INPUT, 16), np.float32), "is not whole"),
        (lambda s: s.create_dataset(key, data=np.array([b"abc"] * 3)), "should hold numbers"),
        (lambda s: s.create_dataset(key, data=np.ones((3, 16), [("a", "f4")])), "should hold numbers"),
        (lambda s: s.create_dataset(key, data=np.ones((3, 16)), compression="lzf"), "should have filters of HDF5 itself"),
        (lambda s: s.create_group(key), "should be an array"),
        (nested, "its groups should be 64 deep at the most"),
        (circle, "weights\\[0\\] should be float32 \\(3, 16\\), got float16"),
    ]:
        path.write_bytes(good["m.weights.h5"].read_bytes())
        with h5py.File(path, "r+") as store:
            del store[key]
            change(store)
        with within(path), pytest.raises(ValueError, match=rf"(?s)load_keras: .*{message}"):
            load_keras(module, path, "bidirectional")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """A pipe would block for ever."""
    os.mkfifo(tmp_path / "pipe.keras")
    for path in (tmp_path / "pipe.keras", tmp_path):
        with pytest.raises(ValueError, match=r"from_keras: `source` should be a file, got .*, which is none"):
            from_keras(path)
    (tmp_path / "m.h5").write_bytes(b"GIF89a and more")
    with pytest.raises(ValueError, match=r"m.h5: it begins with b'GIF89a a', neither as a zip nor as an HDF5 file"):
        from_keras(tmp_path / "m.h5")
    (tmp_path / "m.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"m.h5: it begins with b''"):
        from_keras(tmp_path / "m.h5")


@pytest.mark.parametrize("error", [MemoryError("full"), TimeoutError("late"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["m.keras", "m.h5"])
def test_what_is_not_the_fault_of_the_file_goes_on_as_it_is(name, error, good, monkeypatch):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(json, "loads", fails)
    with pytest.raises(type(error)) as caught:
        from_keras(good[name], "both")
    assert caught.value is error


@pytest.mark.slow
def test_reading_runs_no_code_of_keras(good):
    """The files are read where there is no Keras at all."""
    code = "import sys; sys.modules['keras'] = sys.modules['tensorflow'] = None\nfrom jaxrnn.interop import from_keras\n"
    code += f"for path in {[str(good[name]) for name in ('m.keras', 'm.h5')]}:\n    print(from_keras(path, 'both'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("Recurrent(LSTMCell, 3, 4, bidirectional=True, activation='softsign')") == 2
