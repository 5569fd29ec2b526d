"""safetensors files, with the keys and shapes of PyTorch, so that both sides read them. Nothing here unpickles."""

import json
import math
import os
from typing import Any, BinaryIO, Unpack

import numpy as np
from flax import nnx

from jaxrnn.cells import RNNCell
from jaxrnn.interop import _checks, _files, _torch_keys
from jaxrnn.interop._options import TorchOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_safetensors", "load_safetensors", "to_safetensors"]

DTYPES: dict[str, np.dtype] = dict(zip(("F64", "F32", "F16", "BF16"), _checks.DTYPES, strict=True))
BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "BOOL": 8, "C64": 64} | {
    f"{kind}{bits}": bits for kind in "UI" for bits in (8, 16, 32, 64)
}
LONGEST_HEADER = 2 * 2**20
"""Enough for 20,000 tensors, and read in a second; Python needs 20 bytes for one of a header made to harm."""

MOST_AXES = 64  # as NumPy
_SAVED = "a file of torch.save, for from_torch(torch.load(path, weights_only=True))"
OTHERS = {
    b"PK": _SAVED,
    b"\x80": _SAVED,
    b"{": "JSON, perhaps the index of a model in several files: pass the one with the layer",
    b"version ": "what Git LFS keeps in the place of a file: fetch the file itself",
}
"""How files begin that are easily taken for one, and what to do with them."""


@takes_options
def from_safetensors(path: str | os.PathLike, prefix: str = "", **options: Unpack[TorchOptions]) -> Recurrent:
    """Make a module from the recurrent layers of a safetensors file with PyTorch's keys.

    Args:
        path: the file.
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored.
        options: arguments of `jaxrnn.Recurrent`, and `nonlinearity` of an RNN. A file that `to_safetensors` wrote holds
            `batch_first`, `dropout` and `nonlinearity`; for another, their defaults are jaxrnn's, so batch_first=True.
            `param_dtype` converts.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`.

    Raises:
        TypeError: a dtype is not float64, 32, 16 or bfloat16. ValueError: the file is not whole; a key is missing, unexpected
        or of the wrong shape. OSError: it cannot be read.
    """
    found, metadata = _read("from_safetensors", path, prefix)
    stored = _files.stored_options("from_safetensors", metadata, os.fspath(path))
    return _torch_keys.from_arrays("from_safetensors", os.fspath(path), found, prefix, stored | dict(options))


def load_safetensors(module: nnx.Module, path: str | os.PathLike, prefix: str = "") -> None:
    """Set the parameters of a module from a safetensors file, all of them or, on any error, none; see `load_torch`."""
    found, _ = _read("load_safetensors", path, prefix)
    _torch_keys.load_arrays("load_safetensors", os.fspath(path), module, found, prefix)


def to_safetensors(module: nnx.Module, path: str | os.PathLike, prefix: str = "") -> None:
    """Write the parameters of a module to a safetensors file that PyTorch reads too; the file appears whole or not at all.

    Args:
        module: what `to_torch` takes without a `target`.
        path: the file. One that is there is replaced and keeps its mode; a link is followed.
        prefix: put before every key.

    Raises:
        ValueError: PyTorch has no such cell, or lacks an option of the module. TypeError: the module has a call of its own.

    Example:
        >>> import jaxrnn, tempfile
        >>> gru = jaxrnn.GRU(3, 5, num_layers=2, batch_first=False, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_safetensors(gru, f"{folder}/gru.safetensors")
        ...     from_safetensors(f"{folder}/gru.safetensors").batch_first
        False
    """
    library = _checks.require("to_safetensors", "safetensors.numpy")
    _checks.check_exportable("to_safetensors", module)
    arrays = _torch_keys.to_arrays(_torch_keys.slots_of("to_safetensors", module, prefix))
    # The library writes what lies in memory: of a transposed view, other numbers than it has, and without an error.
    arrays = {key: np.ascontiguousarray(a) for key, a in arrays.items()}
    _files.write_whole("to_safetensors", path, library.save(arrays, metadata={"format": "pt"} | _options(module)))


def _options(module: nnx.Module) -> dict[str, str]:
    """What PyTorch's keys do not say about a module, as metadata."""
    if not isinstance(module, Recurrent):
        return {}
    options = {"batch_first": module.batch_first, "dropout": module.stack.dropout}
    if isinstance(module.stack.cell, RNNCell):
        options["nonlinearity"] = module.stack.cell.nonlinearity
    return {"jaxrnn": json.dumps(options)}


# Reading: eight bytes that say how long the header is, the header, a JSON object, and the arrays one after the other ----


def _read(caller: str, path: str | os.PathLike, prefix: str) -> tuple[_checks.Arrays, dict[str, str]]:
    """The arrays under the prefix, the shapes of the others, and the metadata."""
    with _files.open_file(caller, "path", path) as file:
        try:
            return _parsed(file, os.fstat(file.fileno()).st_size, prefix)
        except (ValueError, RecursionError) as error:
            wanted = f"{caller}: `path` should be a whole safetensors file, got {os.fspath(path)}"
            raise ValueError(f"{wanted}: {_files.cause(error)}.") from error


def _parsed(file: BinaryIO, size: int, prefix: str) -> tuple[_checks.Arrays, dict[str, str]]:
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if size < 8 or length > size - 8:
        like = next((f"; it begins like {words}" for start, words in OTHERS.items() if first.startswith(start)), "")
        raise ValueError(f"its header should have {length} bytes, the file has {size}{like}")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header should have {LONGEST_HEADER} bytes at most, it has {length}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("its header should begin with a brace")
    header = json.loads(text.decode("utf-8"), object_pairs_hook=_files.unique, parse_constant=_no_constant)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its `__metadata__` should hold strings")
    end, start = 0, 8 + length
    found: _checks.Arrays = {}
    for key, entry in sorted(header.items(), key=lambda item: _offsets(*item)):
        key.encode()  # half a surrogate is no text
        dtype, shape, (begin, stop) = _dtype(key, entry), _shape(key, entry), _offsets(key, entry)
        bits = 8 * dtype.itemsize if isinstance(dtype, np.dtype) else BITS.get(dtype)
        if bits is None:
            raise ValueError(f"{_checks.listed([key])} has the dtype {_checks.listed([str(dtype)])}, which is unknown")
        if begin != end or 8 * (stop - begin) != bits * math.prod(shape) or stop > size - start:
            wanted = f"in the file, from byte {end} of the arrays on, and take up {bits} bits for each entry"
            raise ValueError(f"{_checks.listed([key])} should lie {wanted}")
        end = stop
        if not key.startswith(prefix) or not isinstance(dtype, np.dtype):
            found[key] = _checks.Unknown(str(dtype), shape)
            continue
        file.seek(start + begin)
        found[key] = np.frombuffer(bytearray(file.read(stop - begin)), dtype).reshape(shape)
    if end != size - start:
        raise ValueError(f"its arrays should end with the file, {size - start} bytes behind the header, they end after {end}")
    return found, metadata


def _no_constant(name: str):
    raise ValueError(f"its header should be JSON, which has no {name}")


def _field(key: str, entry: Any, name: str):
    if not isinstance(entry, dict) or name not in entry:
        raise ValueError(f"{_checks.listed([key])} should be described by dtype, shape and data_offsets")
    return entry[name]


def _dtype(key: str, entry: Any) -> np.dtype | str:
    dtype = _field(key, entry, "dtype")
    if not isinstance(dtype, str):
        raise ValueError(f"{_checks.listed([key])} should have a name as its dtype")
    return DTYPES.get(dtype, dtype)


def _shape(key: str, entry: Any) -> tuple[int, ...]:
    shape = _sizes(key, _field(key, entry, "shape"))
    if len(shape) > MOST_AXES:
        raise ValueError(f"{_checks.listed([key])} should have {MOST_AXES} axes at most, it has {len(shape)}")
    return tuple(shape)


def _offsets(key: str, entry: Any) -> tuple[int, int]:
    offsets = _sizes(key, _field(key, entry, "data_offsets"))
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{_checks.listed([key])} should have two data_offsets, in order")
    return offsets[0], offsets[1]


def _sizes(key: str, values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < 2**63 for value in values):
        raise ValueError(f"{_checks.listed([key])} should have sizes and offsets that are numbers from 0 to 2**63 - 1")
    return values
