"""What the formats share: gates in another order, modules made from arrays, checks of what came. No format may be known here."""

import importlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx

from jaxrnn.cells import Cell, GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype("float64"), np.dtype("float32"), np.dtype("float16"), BFLOAT16)


def require(caller: str, package: str, install: str):
    """Import a framework, or say what to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == package.split(".")[0]:
            raise ImportError(f"{caller} needs {package}: pip install {install}") from error
        raise


# Gates -----------------------------------------------------------------------------------------------------------------


def split(a, order: str | tuple, gates: tuple):
    """(…, gates * hidden) with the gates in `order`, to (…, gates, hidden) in the order of `gates`."""
    blocks = a.reshape(*a.shape[:-1], len(order), -1)
    return blocks[..., [order.index(gate) for gate in gates], :]


def join(a, gates: tuple, order: str | tuple):
    """The inverse of `split`."""
    return a[..., [gates.index(gate) for gate in order], :].reshape(*a.shape[:-2], -1)


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

    module = nnx.eval_shape(make)
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
    jax.tree.map(assign_array, module.params, params, is_leaf=is_variable)


def assign_array(variable: nnx.Variable, a: np.ndarray):
    """Set one parameter to a copy of `a`, placed as the value it had."""
    old, new = variable.get_value(), jnp.array(a, copy=True)
    variable.set_value(jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new)


def refuse_options(caller: str, stack, **allowed: tuple):
    """Raise if a stack has an option that changes what it computes and that the format cannot hold.

    Args:
        allowed: for an option, the values that the format holds besides the default.
    """
    for option in ("merge", "connection", "learn_initial_state"):
        value, default = getattr(stack, option), getattr(type(stack), option)
        if value != default and value not in allowed.get(option, ()):
            raise ValueError(f"{caller}: `{option}` should be {default!r}, the only one that the format holds, got {value!r}.")


# Checks ----------------------------------------------------------------------------------------------------------------


class Unknown(NamedTuple):
    """What is known of an array whose dtype NumPy does not have."""

    dtype: str
    shape: tuple[int, ...]


Arrays = dict[str, np.ndarray | Unknown]


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


def match(caller: str, argument: str, found: dict[str, Any], wanted: dict[str, Any]):
    """`found` has the names, shapes and dtypes of `wanted`; the message lists every difference."""
    for name in wanted:
        if name in found:
            check_dtype(caller, name, found[name])
    wrong = [f"{name} should be {describe(a)}, got none" for name, a in wanted.items() if name not in found]
    wrong += [f"{name} should not be there, got {describe(a)}" for name, a in found.items() if name not in wanted]
    both = [(name, describe(a), describe(found[name])) for name, a in wanted.items() if name in found]
    wrong += [f"{name} should be {want}, got {came}" for name, want, came in both if want != came]
    if wrong:
        raise ValueError(f"{caller}: {argument} should hold the arrays of the module.\n  " + "\n  ".join(wrong))


def describe(a) -> str:
    return f"{a.dtype} {tuple(a.shape)}"
