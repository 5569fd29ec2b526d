"""What the formats share: gates in another order, modules made from arrays, checks of what came. No format may be known here."""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from jaxrnn.cells import Cell, GateParams, GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype("float64"), np.dtype("float32"), np.dtype("float16"), BFLOAT16)


class Unknown(NamedTuple):
    """What is known of an array whose dtype NumPy does not have."""

    dtype: str
    shape: tuple[int, ...]


Arrays = dict[str, np.ndarray | Unknown]


EXTRA = ("safetensors", "onnx")  # those that the extra `interop` of jaxrnn installs


def require(caller: str, package: str):
    """Import a framework, or say what to install."""
    name = package.split(".")[0]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == name:
            install = "jaxrnn[interop]" if name in EXTRA else name
            raise ImportError(f"{caller}: the package {name} is missing: pip install {install!r}") from error
        raise


# Gates -----------------------------------------------------------------------------------------------------------------


def split(a, order: str | tuple, gates: tuple):
    """(…, gates * hidden) with the gates in `order`, to (…, gates, hidden) in the order of `gates`."""
    blocks = a.reshape(*a.shape[:-1], len(order), -1)
    return blocks[..., [order.index(gate) for gate in gates], :]


def join(a, gates: tuple, order: str | tuple):
    """The inverse of `split`."""
    return a[..., [gates.index(gate) for gate in order], :].reshape(*a.shape[:-2], -1)


def turned(params: GateParams) -> GateParams:
    """A GRU with the other sign for z (gates r z n): there z keeps the old state where here it takes the candidate.

    For σ(−a) = 1 − σ(a), these are the weights of `ChungGRUCell` where another library keeps the old state, and back.
    """
    sign = np.array([1, -1, 1])[:, None]
    return jax.tree.map(lambda a: a * sign.astype(a.dtype), params)


# Files -----------------------------------------------------------------------------------------------------------------


def write_whole(path: str | os.PathLike, data: bytes):
    """Write a file that appears whole or not at all; what is there is replaced."""
    part = Path(f"{path}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cause(error: Exception) -> str:
    """What a library says of a file, as a part of a sentence."""
    return str(error).rstrip(". \n") or type(error).__name__


def stored_options(caller: str, metadata: dict[str, str]) -> dict[str, Any]:
    """What a file that we wrote says of a module beyond its weights."""
    text, known = metadata.get("jaxrnn", "{}"), ("batch_first", "dropout", "nonlinearity")
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not options.keys() <= set(known):
        wanted = f"the metadata `jaxrnn` should be a JSON object with {', '.join(known)}"
        raise ValueError(f"{caller}: {wanted}, got {text!r}.\nWas the file written by a newer jaxrnn?")
    return options


class Codec(NamedTuple):
    """How a framework writes one cell's weights: as arrays by name.

    Args:
        describe: from what the framework has, to our cell, its (input_size, hidden_size, bias), and the arrays.
        encode, decode: between (cell, params) and the arrays.
    """

    describe: Callable[[Any], tuple[Cell, tuple[int, int, bool], Arrays]]
    encode: Callable[[Cell, Any], dict[str, np.ndarray]]
    decode: Callable[[Cell, dict[str, np.ndarray]], GateParams]


def one_bias(params: GateParams) -> np.ndarray:
    """The two biases as one, which is as good wherever they are added anyway; zeros if there are none."""
    if params.b_ih is None:
        return np.zeros_like(params.w_ih[0])
    return params.b_ih + params.b_hh


# Modules ---------------------------------------------------------------------------------------------------------------


def build(caller: str, cell: Cell, params, *, rngs: nnx.Rngs | None = None, **options) -> Recurrent:
    """The module with the arrays of `params[layer][direction]`; the class is the one named after the cell, if there is one."""
    params = tuple(tuple(layer) for layer in params)
    first = params[0][0]
    if len({len(layer) for layer in params}) > 1:
        got = [len(layer) for layer in params]
        raise ValueError(f"{caller}: every layer should have as many directions as the first, got {got}.")
    hidden = tuple(layer[0].w_ih.shape[-1] for layer in params)
    options = {
        "input_size": first.w_ih.shape[0],
        "hidden_size": hidden[0] if len(set(hidden)) == 1 else hidden,
        "num_layers": len(params),
        "bias": first.b_ih is not None,
        "bidirectional": len(params[0]) == 2,
        "param_dtype": first.w_ih.dtype,
    } | options
    for name, a in named(params).items():
        check_dtype(caller, name, a)
    module = blank(cell, rngs=rngs, **options)
    match(caller, "the weights", named(params), named(shapes(module)))
    assign(module, params)
    return module


def layered(caller: str, argument: str, source: Any, is_cell: Callable[[Any], bool], kind: str) -> list[list]:
    """`[layer][direction]` from a cell, or a list of layers, each a cell or a pair (forward, backward)."""
    if is_cell(source):
        return [[source]]
    given = source if isinstance(source, list | tuple) else ()
    layers = [[layer] if is_cell(layer) else list(layer) if isinstance(layer, list | tuple) else [] for layer in given]
    if not layers or not all(len(layer) in (1, 2) and all(map(is_cell, layer)) for layer in layers):
        wanted = f"{kind}, or a list of layers, each {kind} or a pair (forward, backward) of them"
        raise TypeError(f"{caller}: `{argument}` should be {wanted}, got {_kinds(source)}.")
    return layers


def _kinds(source: Any) -> str:
    """What came in the place of cells: types, in lists of lists."""
    if isinstance(source, list | tuple):
        return f"[{', '.join(map(_kinds, source))}]"
    return type(source).__name__


def build_from_cells(caller: str, layers: list[list], codec: Codec, **options) -> Recurrent:
    """The module with the weights of other frameworks' cells, `[layer][direction]`."""
    cells, params = [], []
    for k, layer in enumerate(layers):
        params.append([])
        for d, theirs in enumerate(layer):
            cell, sizes, found = codec.describe(theirs)
            wanted = codec.encode(cell, zeros(cell, *sizes, dtype=next(iter(found.values())).dtype))
            match(caller, f"layer {k}, direction {d}", found, wanted)
            cells.append(cell)
            params[-1].append(codec.decode(cell, found))
    if len(set(cells)) > 1:
        names = sorted({type(cell).__name__ for cell in cells})
        raise ValueError(f"{caller}: all layers and directions should have the same cell, got {', '.join(names)}.")
    return build(caller, cells[0], params, **options)


def blank(cell: Cell, *, rngs: nnx.Rngs | None = None, **options) -> Recurrent:
    """A module whose parameters have shapes and dtypes, but no values yet; nothing is drawn for them."""

    def make():
        rngs = nnx.Rngs(0)
        match cell:
            case RNNCell(nonlinearity=φ) if cell == RNNCell(nonlinearity=φ):
                return RNN(nonlinearity=φ, rngs=rngs, **options)
            case ProjectedLSTMCell(proj_size=size) if cell == ProjectedLSTMCell(proj_size=size):
                return LSTM(proj_size=size, rngs=rngs, **options)
            case LSTMCell() | GRUCell() if cell == type(cell)():
                return (LSTM if isinstance(cell, LSTMCell) else GRU)(rngs=rngs, **options)
        return Recurrent(cell, rngs=rngs, **options)

    # `nnx.eval_shape` would look for the axis names of parameters in whatever mesh is set.
    module = nnx.merge(*jax.eval_shape(lambda: nnx.split(make())))
    if module.rngs is not None:
        module.rngs = (nnx.Rngs(0) if rngs is None else rngs).dropout.fork()
    return module


def values(module: Recurrent):
    """`params[layer][direction]` of a module, as NumPy arrays."""
    return jax.tree.map(lambda p: np.array(p.get_value()), module.params, is_leaf=is_variable)


def shapes(module: Recurrent):
    """`params[layer][direction]` of a module, as zeros of its shapes and dtypes, see `shape_of`."""

    return jax.tree.map(shape_of, module.params, is_leaf=is_variable)


def shape_of(variable: nnx.Variable) -> np.ndarray:
    """Zeros of the shape and dtype of a parameter, in the memory of one."""
    a = variable.get_value()
    return np.broadcast_to(np.zeros((), a.dtype), a.shape)


def is_variable(leaf) -> bool:
    return isinstance(leaf, nnx.Variable)


def named(params) -> dict[str, np.ndarray]:
    """The arrays of `params[layer][direction]` by names that say where they stand."""
    return {
        f"params[{k}][{d}].{field}": a
        for k, layer in enumerate(params)
        for d, cell_params in enumerate(layer)
        for field, a in cell_params._asdict().items()
        if a is not None
    }


def assign(module: Recurrent, params):
    """Set all parameters of a module; they fit, which `match` has said."""
    params = tuple(tuple(layer) for layer in params)
    jax.tree.map(assign_array, module.params, params, is_leaf=is_variable)


def assign_array(variable: nnx.Variable, a: np.ndarray):
    """Set one parameter to a copy of `a`, placed as the value it had."""
    old, new = variable.get_value(), jnp.array(a, copy=True)
    variable.set_value(jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new)


def zeros(cell: Cell, input_size: int, hidden_size: int, bias: bool, dtype):
    """Parameters of the sizes, as zeros in the memory of one."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, hidden_size, bias=bias))
    return jax.tree.map(lambda a: np.broadcast_to(np.zeros((), dtype), a.shape), shapes)


def refuse_options(caller: str, stack, **allowed: tuple):
    """Raise if a stack has an option that changes what it computes and that the format cannot hold.

    Args:
        allowed: for an option, the values that the format holds besides the default.
    """
    for option in ("merge", "residual", "skip_connections", "learn_initial_state", "zoneout"):
        value, default = getattr(stack, option), getattr(type(stack), option)
        if value != default and value not in allowed.get(option, ()):
            raise ValueError(f"{caller}: `{option}` should be {default!r}, the only one that the format holds, got {value!r}.")


# Checks ----------------------------------------------------------------------------------------------------------------


def check_module(caller: str, module: Any):
    """`module` is recurrent."""
    if not isinstance(module, Recurrent):
        raise TypeError(f"{caller}: `module` should be a jaxrnn.RNN, LSTM, GRU or Recurrent, got {type(module).__name__}.")


def check_cell(caller: str, cell: Cell, cells: tuple[type[Cell], ...], framework: str):
    """The cell is exactly one of those that the framework has."""
    if type(cell) not in cells:
        names = ", ".join(c.__name__ for c in cells)
        raise ValueError(f"{caller}: the cell should be one that {framework} has ({names}), got {cell}.")


def check_dtype(caller: str, name: str, a):
    """`a` has a dtype that is kept; return it."""
    if isinstance(a, Unknown) or a.dtype not in DTYPES:
        dtypes = ", ".join(map(str, DTYPES))
        raise TypeError(f"{caller}: `{name}` should have one of the dtypes {dtypes}, got {a.dtype}.")
    if a.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise TypeError(
            f"{caller}: `{name}` should not be float64 while JAX's 64-bit numbers are off, which would round it.\n"
            "Call jax.config.update('jax_enable_x64', True) first, or convert the weights to float32."
        )
    return a.dtype


def has(caller: str, argument: str, found: Arrays, *names: str):
    """`found` has matrices of these names, from which the sizes follow."""
    if any(name not in found or len(found[name].shape) != 2 for name in names):
        arrays = ", ".join(f"{name} {tuple(a.shape)}" for name, a in found.items()) or "nothing"
        raise ValueError(f"{caller}: {argument} should hold {' and '.join(names)}, of two axes, got {arrays}.")


def match(caller: str, argument: str, found: dict[str, Any], wanted: dict[str, Any], hint: str = ""):
    """`found` has the names, shapes and dtypes of `wanted`; the message lists every difference, then the hint."""
    for name in wanted:
        if name in found:
            check_dtype(caller, name, found[name])
    wrong = [f"{name} should be {describe(a)}, got none" for name, a in wanted.items() if name not in found]
    wrong += [f"{name} should not be there, got {describe(a)}" for name, a in found.items() if name not in wanted]
    both = [(name, describe(a), describe(found[name])) for name, a in wanted.items() if name in found]
    wrong += [f"{name} should be {want}, got {came}" for name, want, came in both if want != came]
    if wrong:
        raise ValueError(f"{caller}: {argument} should hold the arrays of the module.\n  " + "\n  ".join(wrong) + hint)


def describe(a) -> str:
    return f"{a.dtype} {tuple(a.shape)}"
