"""Haiku: parameters of `hk.LSTM`, `hk.GRU` and `hk.VanillaRNN`, as Haiku nests them. Haiku itself is never imported."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import Cell, ChungGRUCell, GateParams, LSTMCell, RNNCell
from jaxrnn.interop import _cells, _checks, _gates, _modules
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_haiku", "to_haiku"]

CELLS = (RNNCell, LSTMCell, ChungGRUCell)
ORDERS = {LSTMCell: ("i", "g", "f", "o"), ChungGRUCell: ("z", "r", "n"), RNNCell: ("h",)}


@takes_options
def from_haiku(params: Mapping[str, Any], name: Any, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module from Haiku's parameters.

    Args:
        params: what `hk.transform(…).init` returns.
        name: of the core in them, e.g. "lstm"; or a list of layers, each a name or a pair (forward, backward).
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        A `jaxrnn.LSTM` or `RNN` (relu); for `hk.GRU` a `Recurrent` of `ChungGRUCell`. Haiku adds 1 to the forget gate's
        pre-activation; here the 1 stands in `b_hh`.

    Raises:
        ValueError: an array is missing or of the wrong shape. TypeError: a dtype is of another kind.

    Example:
        >>> from_haiku({"lstm/linear": {"w": jnp.ones((8, 20)), "b": jnp.ones(20)}}, "lstm")
        LSTM(3, 5)
    """
    if not isinstance(params, Mapping):
        raise TypeError(f"from_haiku: `params` should be what `hk.transform(…).init` returns, got {type(params).__name__}.")
    layers = _cells.layered("from_haiku", "name", name, lambda one: isinstance(one, str), "a name")
    codec = _cells.Codec(partial(_describe, params), _encode, _decode)
    return _cells.build_from_cells("from_haiku", layers, codec, **options)


def to_haiku(module: Recurrent, name: Any) -> dict[str, dict]:
    """The parameters of Haiku's cores with a module's weights, for `apply`.

    Args:
        module: a `jaxrnn.LSTM`, an `RNN` with relu, or a `Recurrent` of `ChungGRUCell`.
        name: of the core, or a list of layers, each a name or a pair (forward, backward).

    Raises:
        ValueError: Haiku has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> sorted(to_haiku(jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0)), "lstm")["lstm/linear"])
        ['b', 'w']
    """
    _checks.check_exportable("to_haiku", module, models=False)
    cell = module.stack.cell
    _checks.check_cell("to_haiku", cell, CELLS, "Haiku")
    if cell == RNNCell():
        raise ValueError("to_haiku: `nonlinearity` should be 'relu', the only one of hk.VanillaRNN, got 'tanh'.")
    _checks.refuse_options("to_haiku", module.stack, merge=("sum", "mean", "none"))
    names = _cells.layered("to_haiku", "name", name, lambda one: isinstance(one, str), "a name")
    values = _modules.values(module)
    if [len(layer) for layer in names] != [len(layer) for layer in values]:
        wanted = f"{len(values)} layer(s) of {len(values[0])} direction(s)"
        raise ValueError(f"to_haiku: `name` should hold a name for each of {wanted}, got {name!r}.")
    nested: dict[str, dict] = {}
    for core, params in zip((one for layer in names for one in layer), (p for layer in values for p in layer), strict=True):
        for key, a in _encode(cell, params).items():
            inner, array = key.rsplit("/", 1)
            nested.setdefault(f"{core}{inner}", {})[array] = jnp.array(a)
    return nested


def _describe(params: Mapping[str, Any], name: str) -> tuple[Cell, tuple[int, int, bool], dict[str, Any]]:
    """Our cell, its sizes, and the arrays of the core `name`, by what follows the name."""
    found = {
        f"{module.removeprefix(name)}/{array}": np.asarray(a)
        for module, arrays in params.items()
        if module == name or module.startswith(f"{name}/")
        for array, a in arrays.items()
    }
    if "/w_i" in found:
        _checks.has("from_haiku", f"`params` of {name!r}", found, "/w_i", "/w_h")
        return ChungGRUCell(), (found["/w_i"].shape[0], found["/w_h"].shape[0], True), found
    if "/linear_1/w" in found:
        _checks.has("from_haiku", f"`params` of {name!r}", found, "/linear/w", "/linear_1/w")
        found.setdefault("/linear_1/b", np.zeros_like(found["/linear/w"][0]))
        return RNNCell(nonlinearity="relu"), (*found["/linear/w"].shape, True), found
    if not found:
        cores = sorted({module.removesuffix("/linear") for module in params})
        raise ValueError(f"from_haiku: `name` should be that of a core in `params`, which has {cores}, got {name!r}.")
    _checks.has("from_haiku", f"`params` of {name!r}", found, "/linear/w")
    rows, columns = found["/linear/w"].shape
    if rows <= columns // 4:
        wanted = "should hold /linear/w of shape (input + hidden, 4 * hidden)"
        raise ValueError(f"from_haiku: `params` of {name!r} {wanted}, got {(rows, columns)}.")
    return LSTMCell(), (rows - columns // 4, columns // 4, True), found


def _encode(cell: Cell, params: Any) -> dict[str, np.ndarray]:
    order = ORDERS[type(cell)]
    w_ih, w_hh = (_gates.join(w, cell.gates, order) for w in (params.w_ih, params.w_hh))
    if isinstance(cell, RNNCell):
        zeros = np.zeros_like(w_ih[0])
        b_ih, b_hh = (zeros if b is None else b[0] for b in (params.b_ih, params.b_hh))
        return {"/linear/w": w_ih, "/linear/b": b_ih, "/linear_1/w": w_hh, "/linear_1/b": b_hh}
    if isinstance(cell, ChungGRUCell):
        return {"/w_i": w_ih, "/w_h": w_hh, "/b": _gates.join(_gates.summed_bias(params), cell.gates, order)}
    b_ih, b_hh = (np.zeros_like(params.w_ih[0]) if b is None else b for b in (params.b_ih, params.b_hh))
    one = b_ih + (b_hh - _forget(b_hh))  # in this order, since an imported `b_hh` is the 1 alone
    return {"/linear/w": np.concatenate([w_ih, w_hh]), "/linear/b": _gates.join(one, cell.gates, order)}


def _decode(cell: Cell, found: dict[str, np.ndarray]) -> GateParams:
    def split(a):
        return _gates.split(a, ORDERS[type(cell)], cell.gates)

    if isinstance(cell, RNNCell):
        return _gates.gate_params(*(split(found[key]) for key in ("/linear/w", "/linear_1/w", "/linear/b", "/linear_1/b")))
    if isinstance(cell, ChungGRUCell):
        b = split(found["/b"])
        return _gates.gate_params(split(found["/w_i"]), split(found["/w_h"]), b, np.zeros_like(b))
    w, b = found["/linear/w"], split(found["/linear/b"])
    width = w.shape[0] - w.shape[1] // 4
    return _gates.gate_params(split(w[:width]), split(w[width:]), b, _forget(b))


def _forget(b: np.ndarray) -> np.ndarray:
    """What Haiku adds within its LSTM: 1 for the gate f of i f g o."""
    return np.broadcast_to(np.array([0, 1, 0, 0], b.dtype)[:, None], b.shape)
