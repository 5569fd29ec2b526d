"""Modules from params that somebody has made by hand, from whatever a trained network is kept in. No format may be known here."""

from typing import Any, Unpack

import jax
import numpy as np

from jaxrnn.cells import Cell
from jaxrnn.interop import _cells, _modules
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_params"]


@takes_options
def from_params(cell: Cell, params: Any, *, initial_state: Any = None, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module from the params of its layers and directions.

    Args:
        cell: what one step computes.
        params: of the cell, `GateParams(w_ih, w_hh, b_ih, b_hh)` for most: gates in the order of `cell.gates`, on an axis of their
            own, weights in the form `x @ w`. Or a list of layers, each params or a pair (forward, backward) of them.
        initial_state: where a sequence starts, in place of zeros: a state of the cell, without batch axes, nested as `params`. It
            becomes a parameter, as with learn_initial_state=True.
        options: arguments of `jaxrnn.Recurrent`. The arrays tell sizes, layers, directions, `bias` and `param_dtype`.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU` if the cell is theirs, else a `Recurrent`; with copies of the arrays.

    Raises:
        TypeError: something is of another kind. ValueError: a shape or dtype does not fit the others.

    Example:
        A GRU kept as one matrix for each gate, which are here called reset, update and candidate; its update gate takes the
        candidate where it is open, whereas that of `GRUCell` keeps the state.

        >>> import jaxrnn
        >>> from jaxrnn.cells import GateParams
        >>> from jaxrnn.interop import flip_update_gate
        >>> rng = np.random.default_rng(0)
        >>> kept = {f"{gate}.{name}": rng.normal(size=size).astype("float32") for gate in ("reset", "update", "candidate")
        ...         for name, size in (("input", (3, 5)), ("recurrent", (5, 5)), ("bias", 5))}
        >>> w_ih, w_hh, b_ih = (np.stack([kept[f"{gate}.{name}"] for gate in ("reset", "update", "candidate")], axis=-2)
        ...                     for name in ("input", "recurrent", "bias"))
        >>> params = flip_update_gate(GateParams(w_ih, w_hh, b_ih, np.zeros_like(b_ih)))
        >>> from_params(jaxrnn.GRUCell(), params)
        GRU(3, 5)
        >>> from_params(jaxrnn.GRUCell(), [(params, params)], initial_state=[(np.ones(5, "float32"),) * 2], batch_first=False)
        GRU(3, 5, bidirectional=True, learn_initial_state=True, batch_first=False)
    """
    if not isinstance(cell, Cell):
        raise TypeError(f"from_params: `cell` should be a jaxrnn cell, such as jaxrnn.GRUCell(), got {type(cell).__name__}.")
    least = (1 + getattr(cell, "proj_size", 0)) * getattr(cell, "blocks", 1)
    template = _modules.zeros(cell, 1, least, True, np.dtype("float32"))
    kind = type(template)
    layers = _cells.layered("from_params", "params", params, lambda one: isinstance(one, kind), f"a {kind.__name__} of {cell}")
    for name, a in _modules.named(layers).items():
        _check_array(name, a)
    for k, layer in enumerate(layers):
        for d, one in enumerate(layer):
            if one.w_ih is None or np.ndim(one.w_ih) != np.ndim(template.w_ih):
                got = "none" if one.w_ih is None else f"shape {tuple(one.w_ih.shape)}"
                wanted = f"{np.ndim(template.w_ih)} axes, the last of them (input, gates, hidden)"
                raise ValueError(f"from_params: `params[{k}][{d}].w_ih` should have {wanted}, got {got}.")
    states = None if initial_state is None else _states(cell, initial_state)
    return _modules.build("from_params", cell, _as_numpy(layers), initial_state=states, **options)


def _states(cell: Cell, initial_state: Any) -> list[list]:
    """States by `[layer][direction]`; where a state is `h` alone, an array will do."""
    alone = len(cell.State._fields) == 1
    wanted = f"a state {cell.State.__name__}({', '.join(cell.State._fields)})" + ", or an array," * alone
    is_state = lambda one: isinstance(one, cell.State) or (alone and hasattr(one, "shape"))
    layers = _cells.layered("from_params", "initial_state", initial_state, is_state, wanted)
    states = [[one if isinstance(one, cell.State) else cell.State(one) for one in layer] for layer in layers]
    for name, a in _modules.named(states, "initial_state").items():
        _check_array(name, a)
    return _as_numpy(states)


def _check_array(name: str, a: Any):
    if not hasattr(a, "shape") or not hasattr(a, "dtype"):
        raise TypeError(f"from_params: `{name}` should be an array, got {type(a).__name__}.")


def _as_numpy(tree: Any) -> Any:
    return jax.tree.map(np.asarray, tree)
