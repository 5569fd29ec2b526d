"""Modules made from arrays, and the arrays of modules. No other framework may be known here."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import Cell, GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.interop import _checks
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent


def build(caller: str, cell: Cell, params, *, initial_state=None, rngs: nnx.Rngs | None = None, **options) -> Recurrent:
    """The module with the arrays of `params[layer][direction]`; the class is the one named after the cell, if there is one.

    Args:
        initial_state: states without batch axes, `[layer][direction]`, which the module then has as parameters.
    """
    params = tuple(tuple(layer) for layer in params)
    first = params[0][0]
    if len({len(layer) for layer in params}) > 1:
        got = [len(layer) for layer in params]
        raise ValueError(f"{caller}: every layer should have as many directions as the first, got {got}.")
    hidden = tuple(layer[0].w_ih.shape[-1] for layer in params)
    options = {
        "input_size": cell.input_size(first),
        "hidden_size": hidden[0] if len(set(hidden)) == 1 else hidden,
        "num_layers": len(params),
        "bias": first.b_ih is not None,
        "bidirectional": len(params[0]) == 2,
        "param_dtype": first.w_ih.dtype,
        "learn_initial_state": initial_state is not None,
    } | options
    for name, a in named(params).items():
        _checks.check_dtype(caller, name, a)
    module = abstract_module(cell, rngs=rngs, **options)
    variables, arrays = leaves(module.params), named(params)
    _checks.match(caller, "the weights", arrays, named(shapes(module)))
    if initial_state is not None:
        states = named(initial_state, "initial_state")
        of_module = jax.tree.map(shape_of, module.learned, is_leaf=is_variable)
        _checks.match(caller, "`initial_state`", states, named(of_module, "initial_state"))
        variables, arrays = variables + leaves(module.learned), arrays | states
    assign_all(zip(variables, arrays.values(), strict=True))
    return module


def abstract_module(cell: Cell, *, rngs: nnx.Rngs | None = None, **options) -> Recurrent:
    """A module whose parameters have shapes and dtypes, but no values yet; nothing is drawn for them."""

    def make():
        rngs = nnx.Rngs(0)
        match cell:
            case RNNCell(nonlinearity="tanh" | "relu" as φ) if cell == RNNCell(nonlinearity=φ):  # those that RNN takes
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


def leaves(variables) -> list[nnx.Variable]:
    """The parameters in `[layer][direction]`, in the order of `named`."""
    return jax.tree.leaves(variables, is_leaf=is_variable)


def named(params, name: str = "params") -> dict[str, np.ndarray]:
    """The arrays of `params[layer][direction]` by names that say where they stand."""
    paths, _ = jax.tree.flatten_with_path(tuple(tuple(layer) for layer in params))
    return {name + jax.tree_util.keystr(path): a for path, a in paths}


def assign(module: Recurrent, params):
    """Set all parameters of a module; they fit, which `match` has said."""
    assign_all(zip(leaves(module.params), jax.tree.leaves(tuple(tuple(layer) for layer in params)), strict=True))


def assign_all(pairs: Iterable[tuple[nnx.Variable, np.ndarray]]):
    """Set parameters to copies of arrays: all of them or, if memory ends, none."""
    for variable, value in [(variable, _placed(variable, a)) for variable, a in pairs]:
        variable.set_value(value)


def assign_array(variable: nnx.Variable, a: np.ndarray):
    """Set one parameter to a copy of `a`."""
    variable.set_value(_placed(variable, a))


def _placed(variable: nnx.Variable, a: np.ndarray):
    """A copy of `a`, placed as the value of the parameter."""
    old, new = variable.get_value(), jnp.array(a, copy=True)
    return jax.device_put(new, old.sharding) if isinstance(old, jax.Array) else new


def zeros(cell: Cell, input_size: int, hidden_size: int, bias: bool, dtype):
    """Parameters of the sizes, as zeros in the memory of one."""
    shapes = jax.eval_shape(lambda: cell.init(jax.random.key(0), input_size, hidden_size, bias=bias))
    return jax.tree.map(lambda a: np.broadcast_to(np.zeros((), dtype), a.shape), shapes)
