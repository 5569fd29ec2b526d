"""safetensors files, with the keys and shapes of PyTorch, so that both sides read them. Nothing here unpickles."""

import json
import os

import numpy as np
from flax import nnx

from jaxrnn.interop import _checks, _files
from jaxrnn.interop import torch as keys
from jaxrnn.nnx import Recurrent

__all__ = ["from_safetensors", "load_safetensors", "to_safetensors"]

DTYPES = ("F64", "F32", "F16", "BF16")


def from_safetensors(path: str | os.PathLike, prefix: str = "", **options) -> Recurrent:
    """Make a module from the recurrent layers of a safetensors file with PyTorch's keys.

    Args:
        path: the file.
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored.
        options: of `jaxrnn.Recurrent`. A file that `to_safetensors` wrote holds `batch_first`, `dropout` and `nonlinearity`;
            for another, their defaults are jaxrnn's, so batch_first=True.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`.

    Raises:
        TypeError: a dtype is not float64, 32, 16 or bfloat16. ValueError: the file is not whole; a key is missing, unexpected
        or of the wrong shape.
    """
    found, metadata = _read("from_safetensors", path, prefix)
    options = _files.stored_options("from_safetensors", metadata) | options
    return keys.from_arrays("from_safetensors", str(path), found, prefix, options)


def load_safetensors(module: nnx.Module, path: str | os.PathLike, prefix: str = ""):
    """Set the parameters of a module from a safetensors file, all of them or, on any error, none; see `load_torch`."""
    found, _ = _read("load_safetensors", path, prefix)
    keys.load_arrays("load_safetensors", str(path), module, found, prefix)


def to_safetensors(module: nnx.Module, path: str | os.PathLike, prefix: str = ""):
    """Write the parameters of a module to a safetensors file that PyTorch reads too; the file appears whole or not at all.

    Args:
        module: what `to_torch` takes.
        path: the file; what is there is replaced.
        prefix: put before every key.

    Raises:
        ValueError: PyTorch has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn, tempfile
        >>> gru = jaxrnn.GRU(3, 5, num_layers=2, batch_first=False, rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     to_safetensors(gru, f"{folder}/gru.safetensors")
        ...     from_safetensors(f"{folder}/gru.safetensors").batch_first
        False
    """
    library = _checks.require("to_safetensors", "safetensors.numpy")
    arrays = keys.to_arrays("to_safetensors", module, prefix)
    # The library writes what lies in memory: of a transposed view, other numbers than it has, and without an error.
    arrays = {key: np.ascontiguousarray(a) for key, a in arrays.items()}
    _files.write_whole("to_safetensors", path, library.save(arrays, metadata={"format": "pt"} | _options(module)))


def _options(module: nnx.Module) -> dict[str, str]:
    """What PyTorch's keys do not say about a module, as metadata."""
    if not isinstance(module, Recurrent):
        return {}
    options = {"batch_first": module.batch_first, "dropout": module.stack.dropout}
    if hasattr(module.stack.cell, "nonlinearity"):
        options["nonlinearity"] = module.stack.cell.nonlinearity
    return {"jaxrnn": json.dumps(options)}


def _read(caller: str, path: str | os.PathLike, prefix: str) -> tuple[_checks.Arrays, dict[str, str]]:
    """The arrays under the prefix, the shapes of the others, and the metadata."""
    library = _checks.require(caller, "safetensors")
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{caller}: `path` should be a str or an os.PathLike, got {type(path).__name__}.")
    try:
        with library.safe_open(path, framework="np") as file:
            found = {}
            for key in file.keys():  # noqa: SIM118
                header = file.get_slice(key)
                dtype, shape = header.get_dtype(), tuple(header.get_shape())
                wanted = key.startswith(prefix) and dtype in DTYPES
                found[key] = file.get_tensor(key) if wanted else _checks.Unknown(dtype, shape)
            return found, file.metadata() or {}
    except library.SafetensorError as error:
        raise ValueError(f"{caller}: `path` should be a whole safetensors file, got {path}: {_files.cause(error)}.") from error
