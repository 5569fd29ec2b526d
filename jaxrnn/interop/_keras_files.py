"""Files of Keras, opened: the archive `.keras` and HDF5. Everything is read into memory, within limits that follow from the size of
the file, and nothing outside of it is touched. What a layer is may not be known here."""

import json
import os
import re
import stat
import struct
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxrnn.interop import _checks, _files

HDF5 = b"\x89HDF\r\n\x1a\n"
TEXT_BYTES = 2**22  # of a configuration, which takes twenty times as much as objects of Python
SLACK_BYTES = 2**24  # of arrays, beside what the size of the file allows: compressed zeros are short
DEPTH = 64  # of groups in groups
FILTERS = (1, 2, 3)  # of HDF5 itself, which run nobody's code: deflate, shuffle, fletcher32
WRONG = (
    OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, EOFError, struct.error,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip
"""What zipfile, json and h5py raise on damage. What is not theirs, want of memory or time or an interrupt, goes on as it is."""


@contextmanager
def reading(caller: str, path: str | os.PathLike):
    """Whatever is wrong with a file is said in one way."""
    try:
        yield
    except (MemoryError, TimeoutError):
        raise
    except WRONG as error:
        kinds = "a whole .keras, .weights.h5 or .h5 file"
        raise ValueError(f"{caller}: `source` should be {kinds}, got {os.fspath(path)}: {_files.cause(error)}.") from error


class Saved(NamedTuple):
    """A file: what it says of the model, if anything, which Keras wrote it, as far as that is known, and its arrays."""

    config: dict[str, Any] | None
    version: int | None
    store: "Store"


def opened(caller: str, path: str | os.PathLike) -> Saved:
    """Read a file of Keras."""
    h5py = _checks.require(caller, "h5py")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        hint = "\nLoad that model with Keras, and save it as a .keras file?" if stat.S_ISDIR(mode) else ""
        raise ValueError(f"{caller}: `source` should be a file, got {os.fspath(path)}, which is none.{hint}")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(len(HDF5))
        file.seek(0)
        if start[:2] == b"PK":
            with reading(caller, path), zipfile.ZipFile(file) as archive:
                load = partial(_member, archive, size)
                config, version, data = load("config.json"), load("metadata.json"), load("model.weights.h5")
                config, version = _json(config), _json(version).get("keras_version")
            return Saved(config, _major(version), Store(caller, path, h5py, data, size))
        with reading(caller, path):
            if start != HDF5:
                raise ValueError(f"it begins with {start!r}, neither as a zip nor as an HDF5 file")
            store = Store(caller, path, h5py, file.read(), size)
    config = store.text("", "model_config")
    with reading(caller, path):
        config = None if config is None else _json(config)
    return Saved(config, _major(store.text("", "keras_version")), store)


def _major(version: Any) -> int | None:
    found = re.match(r"(\d{1,3})\.", version) if isinstance(version, str) else None
    return int(found[1]) if found else None


def _member(archive: zipfile.ZipFile, size: int, name: str) -> bytes:
    """A member of an archive, whose size may be anything that its header or its data like."""
    found = [info for info in archive.infolist() if info.filename == name]
    if len(found) != 1:
        there = sorted({info.filename[:60] for info in archive.infolist()})[:10]
        raise ValueError(f"it should hold one {name}, got {len(found)} beside {there}")
    limit = 2 * size + SLACK_BYTES if name.endswith(".h5") else TEXT_BYTES + size // 4
    if found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"its {name} should be stored or deflated, got compression {found[0].compress_type}")
    with archive.open(found[0]) as member:
        data = member.read(limit + 1) if found[0].file_size <= limit else b""
    if len(data) > limit or found[0].file_size > limit:
        raise ValueError(f"its {name} should have at most {limit} bytes, as the file has {size}, got more")
    return data


def _json(text: str | bytes) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError(f"its configuration should be an object, got {type(found).__name__}")
    return found


class Store:
    """The groups and arrays of an HDF5 file, from its bytes."""

    def __init__(self, caller: str, path: str | os.PathLike, h5py, data: bytes, size: int):
        self.caller, self.path, self.h5py = caller, path, h5py
        self.text_left, self.left = TEXT_BYTES + size // 4, 2 * size + SLACK_BYTES
        with reading(caller, path):
            if data[: len(HDF5)] != HDF5:
                raise ValueError(f"its arrays should be an HDF5 file, got one that begins with {data[: len(HDF5)]!r}")
            access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
            access.set_fclose_degree(h5py.h5f.CLOSE_STRONG)
            access.set_fapl_core(backing_store=False)
            access.set_file_image(data)
            self.root = h5py.File(h5py.h5f.open(uuid.uuid4().hex.encode(), h5py.h5f.ACC_RDONLY, access))
            self.names = dict.fromkeys(self._walk())

    def _walk(self) -> Iterator[str]:
        """The names of all groups and arrays, each by the first way to it; a link out of the file is an error."""
        h5py, waiting, seen = self.h5py, [("", 0, self.root.id)], set()
        while waiting:
            start, depth, group = waiting.pop()
            links: list[tuple[bytes, int]] = []
            group.links.iterate(lambda name, info, links=links: links.append((name, info.type)), info=True)
            for name, kind in links:
                path = start + name.decode("utf-8", "replace")
                if kind != h5py.h5l.TYPE_HARD:
                    raise ValueError(f"its {path[:200]!r} is a link to somewhere else, which is not followed")
                found = h5py.h5o.get_info(group, name)
                if found.addr in seen:
                    continue
                seen.add(found.addr)
                yield path
                if found.type == h5py.h5o.TYPE_GROUP:
                    if depth == DEPTH:
                        raise ValueError(f"its groups should be {DEPTH} deep at the most, got {path[:200]!r}")
                    waiting.append((f"{path}/", depth + 1, h5py.h5o.open(group, name)))

    def text(self, name: str, attribute: str) -> str | None:
        """An attribute of a group or array, if it is there."""
        h5py = self.h5py
        with reading(self.caller, self.path):
            found = self.root[name] if name else self.root
            if attribute not in found.attrs:
                return None
            opened = h5py.h5a.open(found.id, attribute.encode())
            kind = opened.get_type()
            if not isinstance(kind, h5py.h5t.TypeStringID) or opened.shape != ():
                raise ValueError(f"its attribute {attribute!r} should be a text")
            self._spend("text_left", f"its attribute {attribute!r}", opened.get_storage_size())
            value = found.attrs[attribute]
            value = value.decode() if isinstance(value, bytes) else value
            if not isinstance(value, str):
                raise ValueError(f"its attribute {attribute!r} should be a text")
            self._spend("text_left", f"its attribute {attribute!r}", len(value))
            return value

    def array(self, name: str) -> np.ndarray:
        """An array that lies whole in the file."""
        h5py = self.h5py
        with reading(self.caller, self.path):
            opened = h5py.h5o.open(self.root.id, name.encode())
            if not isinstance(opened, h5py.h5d.DatasetID):
                raise ValueError(f"its {name!r} should be an array")
            how = opened.get_create_plist()
            if how.get_external_count() or how.get_layout() == h5py.h5d.VIRTUAL:
                raise ValueError(f"its array {name!r} lies in another file, which is not read")
            filters = [how.get_filter(k)[0] for k in range(how.get_nfilters())]
            if not set(filters) <= set(FILTERS):
                raise ValueError(f"its array {name!r} should have filters of HDF5 itself, {FILTERS}, got {filters}")
            dataset = h5py.Dataset(opened)
            dtype = dataset.dtype
            if dtype.kind not in "fiub" and dtype != np.dtype("V2"):
                raise ValueError(f"its array {name!r} should hold numbers, got {dtype}")
            if dataset.shape is None or dataset.ndim > 4:
                raise ValueError(f"its array {name!r} should have at most 4 axes, got shape {dataset.shape}")
            count = int(np.prod([int(n) for n in dataset.chunks], dtype=object)) if dataset.chunks else 0
            count = max(count, int(np.prod([int(n) for n in dataset.shape], dtype=object)))
            self._spend("left", f"its array {name!r}", count * dtype.itemsize)
            if not filters and opened.get_storage_size() < dataset.nbytes:
                raise ValueError(f"its array {name!r} of shape {dataset.shape} is not whole")
            found = np.asarray(dataset[()])
        if dtype == np.dtype("V2") and self.text(name, "dtype") == "bfloat16":
            return found.view(_checks.BFLOAT16)
        return found

    def _spend(self, account: str, what: str, count: int):
        """Within the limit for all that is read of a file."""
        left = getattr(self, account)
        if count > left:
            raise ValueError(f"{what} should have at most {left} bytes, which the size of the file allows, got {count}")
        setattr(self, account, left - count)
