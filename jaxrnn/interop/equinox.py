"""Equinox: `eqx.nn.LSTMCell` and `eqx.nn.GRUCell`."""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn.cells import Cell, GateParams, GRUCell, LSTMCell
from jaxrnn.interop import _cells, _checks, _gates, _modules
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_equinox", "to_equinox"]


@takes_options
def from_equinox(source: Any, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module from cells of Equinox.

    Args:
        source: an `eqx.nn.LSTMCell` or `eqx.nn.GRUCell`, or a list of layers, each a cell or a pair (forward, backward).
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        A `jaxrnn.LSTM` or `GRU`.

    Raises:
        TypeError: a cell or a dtype is of another kind. ValueError: sizes of layers do not fit.
    """
    eqx = _checks.require("from_equinox", "equinox")
    layers = _cells.layered("from_equinox", "source", source, lambda one: isinstance(one, eqx.Module), "a cell of Equinox")
    return _cells.build_from_cells("from_equinox", layers, _cells.Codec(partial(_describe, eqx), _encode, _decode), **options)


def to_equinox(module: Recurrent) -> tuple:
    """Cells of Equinox with a module's weights, `[layer][direction]`.

    Equinox has one bias where the module has two, except within the reset product of a GRU, so the two are added.

    Raises:
        ValueError: Equinox has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> from flax import nnx
        >>> ((cell,),) = to_equinox(jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0)))
        >>> h, c = cell(jnp.ones(3), (jnp.zeros(5), jnp.zeros(5)))
    """
    eqx = _checks.require("to_equinox", "equinox")
    _checks.check_exportable("to_equinox", module, models=False)
    cell = module.stack.cell
    _checks.check_cell("to_equinox", cell, (LSTMCell, GRUCell), "Equinox")
    _checks.refuse_options("to_equinox", module.stack, merge=("sum", "mean", "none"))
    kind = eqx.nn.LSTMCell if isinstance(cell, LSTMCell) else eqx.nn.GRUCell

    def make(params):
        width, _, hidden = params.w_ih.shape
        blank = eqx.filter_eval_shape(
            kind, width, hidden, use_bias=params.b_ih is not None, dtype=params.w_ih.dtype, key=jax.random.key(0)
        )
        arrays = {name: jnp.array(a) for name, a in _encode(cell, params).items()}
        return eqx.tree_at(lambda made: [getattr(made, name) for name in arrays], blank, list(arrays.values()))

    return tuple(tuple(make(params) for params in layer) for layer in _modules.values(module))


def _describe(eqx, theirs: Any) -> tuple[Cell, tuple[int, int, bool], dict[str, Any]]:
    cells = {eqx.nn.LSTMCell: LSTMCell(), eqx.nn.GRUCell: GRUCell()}
    if type(theirs) not in cells:
        raise TypeError(f"from_equinox: a cell should be an eqx.nn.LSTMCell or GRUCell, got {type(theirs).__name__}.")
    names = ("weight_ih", "weight_hh", "bias", "bias_n")
    found = {name: np.asarray(a) for name in names if (a := getattr(theirs, name, None)) is not None}
    return cells[type(theirs)], (theirs.input_size, theirs.hidden_size, theirs.use_bias), found


def _encode(cell: Cell, params: Any) -> dict[str, np.ndarray]:
    w_ih, w_hh = (w.reshape(w.shape[0], -1).T for w in params[:2])
    if params.b_ih is None:
        return {"weight_ih": w_ih, "weight_hh": w_hh}
    one = params.b_ih + params.b_hh
    if isinstance(cell, LSTMCell):
        return {"weight_ih": w_ih, "weight_hh": w_hh, "bias": one.reshape(-1)}
    outside = np.concatenate([one[:2], params.b_ih[2:]])
    return {"weight_ih": w_ih, "weight_hh": w_hh, "bias": outside.reshape(-1), "bias_n": params.b_hh[2]}


def _decode(cell: Cell, found: dict[str, np.ndarray]) -> GateParams:
    w_ih, w_hh = (_gates.split(found[name].T, cell.gates, cell.gates) for name in ("weight_ih", "weight_hh"))
    if "bias" not in found:
        return _gates.gate_params(w_ih, w_hh)
    b_ih = _gates.split(found["bias"], cell.gates, cell.gates)
    b_hh = np.zeros_like(b_ih)
    if isinstance(cell, GRUCell):
        b_hh[2] = found["bias_n"]
    return _gates.gate_params(w_ih, w_hh, b_ih, b_hh)
