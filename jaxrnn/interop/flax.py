"""Flax: the cells of Linen and of NNX. Linen's parameters are dicts; NNX's are the cells themselves."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Unpack

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.cells import Cell, GateParams, GRUCell, LSTMCell, RNNCell
from jaxrnn.interop import _cells, _checks, _gates, _modules
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.nnx import Recurrent
from jaxrnn.typing import Nonlinearity

__all__ = ["from_linen", "from_nnx", "to_linen", "to_nnx"]

CELLS = (RNNCell, LSTMCell, GRUCell)


@takes_options
def from_linen(source: Any, *, nonlinearity: Nonlinearity = "tanh", **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module from the parameters of Linen's `LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        source: the parameters of one cell, or a list of layers, each one cell's or a pair (forward, backward). What `nn.RNN` and
            `nn.Bidirectional` put around them may be there.
        nonlinearity: of a `SimpleCell`, "tanh" or "relu"; parameters do not say it.
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`. Flax's carry of an LSTM is (c, h); here states are (h, c).

    Raises:
        ValueError: an array is missing, unexpected or of the wrong shape. TypeError: a dtype is of another kind.
    """
    layers = [
        [one for theirs in layer for one in _unwrapped(theirs)]
        for layer in _cells.layered("from_linen", "source", source, lambda one: isinstance(one, Mapping), "a cell's parameters")
    ]
    codec = _cells.Codec(partial(_describe_linen, nonlinearity=nonlinearity), _encode_linen, _decode_linen)
    return _cells.build_from_cells("from_linen", layers, codec, **options)


def to_linen(module: Recurrent) -> tuple:
    """The parameters of Linen's cells, `[layer][direction]`: `LSTMCell` or `OptimizedLSTMCell`, `GRUCell`, `SimpleCell`.

    Raises:
        ValueError: Linen has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> from flax import linen as nn
        >>> ((params,),) = to_linen(jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0)))
        >>> h, y = nn.GRUCell(5).apply({"params": params}, jnp.zeros((2, 5)), jnp.ones((2, 3)))
    """
    return tuple(
        tuple(_nested(_encode_linen(cell, p)) for p in layer) for cell, layer in _exported("to_linen", module, "Flax Linen")
    )


@takes_options
def from_nnx(source: Any, **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module from `nnx.LSTMCell`, `OptimizedLSTMCell`, `GRUCell` or `SimpleCell`.

    Args:
        source: a cell, or a list of layers, each a cell or a pair (forward, backward).
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU`. Flax's carry of an LSTM is (c, h); here states are (h, c).

    Raises:
        ValueError: a cell has an option without a counterpart. TypeError: `source` or a dtype is of another kind.

    Example:
        >>> from_nnx([nnx.LSTMCell(3, 5, rngs=nnx.Rngs(0)), nnx.LSTMCell(5, 5, rngs=nnx.Rngs(1))])
        LSTM(3, 5, num_layers=2)
    """
    layers = _cells.layered("from_nnx", "source", source, lambda one: isinstance(one, nnx.Module), "a cell")
    return _cells.build_from_cells("from_nnx", layers, _cells.Codec(_describe_nnx, _encode_linen, _decode_linen), **options)


def to_nnx(module: Recurrent) -> tuple:
    """Cells of Flax NNX with a module's weights, `[layer][direction]`: `nnx.LSTMCell`, `GRUCell`, `SimpleCell`.

    Raises:
        ValueError: NNX has no such cell, or lacks an option of the module; or a GRU has a bias within its reset product, which
        `nnx.GRUCell` cannot hold (`to_linen` can).

    Example:
        >>> import jaxrnn
        >>> ((cell,),) = to_nnx(jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0)))
        >>> (c, h), y = cell((jnp.zeros((2, 5)), jnp.zeros((2, 5))), jnp.ones((2, 3)))
    """
    return tuple(tuple(_nnx_cell(cell, p) for p in layer) for cell, layer in _exported("to_nnx", module, "Flax NNX"))


def _exported(caller: str, module: Recurrent, framework: str):
    _checks.check_exportable(caller, module, models=False)
    _checks.check_cell(caller, module.stack.cell, CELLS, framework)
    _checks.refuse_options(caller, module.stack, merge=("sum", "mean", "none"))
    return [(module.stack.cell, layer) for layer in _modules.values(module)]


# Linen: a dense layer for each gate, from the input (i…) and from the state (h…) ---------------------------------------


def _unwrapped(tree: Mapping) -> list[Mapping]:
    """The parameters of the cells in `tree`: one, or forward and backward."""
    while set(tree) in ({"params"}, {"cell"}):
        (tree,) = tree.values()
    if set(tree) == {"forward_rnn", "backward_rnn"}:
        return [*_unwrapped(tree["forward_rnn"]), *_unwrapped(tree["backward_rnn"])]
    return [tree]


def _describe_linen(tree: Mapping, nonlinearity: Nonlinearity) -> tuple[Cell, tuple[int, int, bool], dict[str, Any]]:
    found = {f"{dense}.{name}": np.asarray(a) for dense, arrays in tree.items() for name, a in arrays.items()}
    cells = {"hi": LSTMCell(), "hz": GRUCell(), "h": RNNCell(nonlinearity=nonlinearity)}
    key = next((key for key in cells if key in tree), None)
    if key is None:
        names = "LSTMCell, OptimizedLSTMCell, GRUCell or SimpleCell"
        inside = [name for name, one in tree.items() if any(key in one for key in cells)]
        hint = f"\nPass those of one cell, source[{inside[0]!r}]; of two directions, [(forward, backward)]." if inside else ""
        raise ValueError(f"from_linen: `source` should hold the parameters of Linen's {names}, got {sorted(found)}.{hint}")
    first = {"hi": "ii", "hz": "iz", "h": "i"}[key]
    _checks.has("from_linen", "`source`", found, f"{first}.kernel", f"{key}.kernel")
    width, hidden = found[f"{first}.kernel"].shape
    return cells[key], (width, hidden, True), found


def _encode_linen(cell: Cell, params) -> dict[str, np.ndarray]:
    one, names = _gates.summed_bias(params), ("",) if isinstance(cell, RNNCell) else cell.gates
    found = {f"i{name}.kernel": params.w_ih[:, k] for k, name in enumerate(names)}
    found |= {f"h{name}.kernel": params.w_hh[:, k] for k, name in enumerate(names)}
    if isinstance(cell, GRUCell):
        within = np.zeros_like(one[2]) if params.b_hh is None else params.b_hh[2]
        outside = one[2] if params.b_ih is None else params.b_ih[2]
        return found | {"ir.bias": one[0], "iz.bias": one[1], "in.bias": outside, "hn.bias": within}
    side = "i" if isinstance(cell, RNNCell) else "h"
    return found | {f"{side}{name}.bias": one[k] for k, name in enumerate(names)}


def _decode_linen(cell: Cell, found: dict[str, Any]) -> GateParams:
    names = ("",) if isinstance(cell, RNNCell) else cell.gates
    w_ih, w_hh = (np.stack([found[f"{side}{name}.kernel"] for name in names], axis=1) for side in "ih")
    zeros = np.zeros_like(w_ih[0, 0])
    biases = (np.stack([found.get(f"{side}{name}.bias", zeros) for name in names]) for side in "ih")
    return _gates.gate_params(w_ih, w_hh, *biases)


def _nested(found: dict[str, np.ndarray]) -> dict[str, dict]:
    nested: dict[str, dict] = {}
    for name, a in found.items():
        dense, array = name.split(".")
        nested.setdefault(dense, {})[array] = jnp.array(a)
    return nested


# NNX: the same for `LSTMCell`; one dense layer for all gates for the others --------------------------------------------


def _describe_nnx(theirs: Any) -> tuple[Cell, tuple[int, int, bool], dict[str, Any]]:
    kinds = {nnx.LSTMCell: LSTMCell(), nnx.OptimizedLSTMCell: LSTMCell(), nnx.GRUCell: GRUCell(), nnx.SimpleCell: RNNCell()}
    if type(theirs) not in kinds:
        names = ", ".join(f"nnx.{kind.__name__}" for kind in kinds)
        hint = "\nPass its `.cell`?" if hasattr(theirs, "cell") else ""
        if isinstance(theirs, nnx.Bidirectional):
            hint = "\nPass its cells, of each layer a pair: [(it.forward_rnn.cell, it.backward_rnn.cell)]."
        raise TypeError(f"from_nnx: a cell should be one of {names}, got {type(theirs).__name__}.{hint}")
    cell = kinds[type(theirs)]
    if isinstance(theirs, nnx.SimpleCell) and theirs.activation_fn is nnx.relu:
        cell = RNNCell(nonlinearity="relu")
    for option, value in (
        ("gate_fn", nnx.sigmoid),
        ("activation_fn", nnx.relu if cell == RNNCell(nonlinearity="relu") else nnx.tanh),
    ):
        if getattr(theirs, option, value) is not value:
            raise ValueError(f"from_nnx: `{option}` should be {value.__name__}, got {getattr(theirs, option)}.")
    if getattr(theirs, "residual", False):
        raise ValueError("from_nnx: `residual` of a SimpleCell should be False, got True.")
    state = nnx.to_pure_dict(nnx.state(theirs, nnx.Param))
    arrays = {f"{dense.rstrip('_')}.{name}": np.asarray(a) for dense, arrays in state.items() for name, a in arrays.items()}
    return cell, (theirs.in_features, theirs.hidden_features, True), _apart(cell, arrays)


def _apart(cell: Cell, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by Linen's names: "dense_i.kernel", of all gates, becomes "ii.kernel", "if.kernel", …."""
    found = {}
    for name, a in arrays.items():
        dense, array = name.split(".")
        side = dense.removeprefix("dense_")
        names = ("",) if isinstance(cell, RNNCell) else cell.gates
        parts = np.split(a, len(names), axis=-1) if dense != side else [a]
        found |= {f"{side}{gate}.{array}": part for gate, part in zip(names if dense != side else ("",), parts, strict=True)}
    if isinstance(cell, GRUCell):
        found["hn.bias"] = np.zeros_like(found["in.bias"])
    return found


def _nnx_cell(cell: Cell, params: GateParams) -> nnx.Module:
    found, (width, _, hidden) = _encode_linen(cell, params), params.w_ih.shape
    if isinstance(cell, GRUCell) and found["hn.bias"].any():
        largest = np.abs(found["hn.bias"]).max()
        raise ValueError(
            "to_nnx: `b_hh` of the gate n should be zero, since nnx.GRUCell has no bias within its reset product, "
            f"got entries up to {largest:.3g}.\nlinen.GRUCell has it: call to_linen."
        )
    kind = {LSTMCell: nnx.LSTMCell, GRUCell: nnx.GRUCell, RNNCell: nnx.SimpleCell}[type(cell)]
    options = {"activation_fn": nnx.relu} if cell == RNNCell(nonlinearity="relu") else {}
    dtype = params.w_ih.dtype
    made = nnx.eval_shape(lambda: kind(width, hidden, param_dtype=dtype, **options, rngs=nnx.Rngs(0)))
    for name in dict.fromkeys(name.split(".")[0] for name in found):
        for array in ("kernel", "bias"):
            if isinstance(cell, LSTMCell) and f"{name}.{array}" in found:
                _modules.assign_array(getattr(getattr(made, "if_" if name == "if" else name), array), found[f"{name}.{array}"])
    if not isinstance(cell, LSTMCell):
        names = ("",) if isinstance(cell, RNNCell) else cell.gates
        for dense, array, side in (("dense_i", "kernel", "i"), ("dense_i", "bias", "i"), ("dense_h", "kernel", "h")):
            whole = np.concatenate([found[f"{side}{gate}.{array}"] for gate in names], axis=-1)
            _modules.assign_array(getattr(getattr(made, dense), array), whole)
    return made
