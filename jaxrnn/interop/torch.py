"""PyTorch: modules, cells and state_dicts. The key names and shapes of `torch.nn` live here; safetensors files use them too."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxrnn.cells import GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.interop import _checks, _modules
from jaxrnn.nnx import Recurrent

__all__ = ["from_torch", "load_torch", "to_torch"]

NAMES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}


def from_torch(source: Any, prefix: str = "", **options) -> Recurrent:
    """Make the module that computes what a PyTorch module computes.

    Args:
        source: a `torch.nn.RNN`, `LSTM`, `GRU`, or a cell of theirs (it becomes one layer); a module that has one inside; or
            a state_dict, from whose shapes kind and sizes follow.
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored. It is also the name of the module inside.
        options: of `jaxrnn.Recurrent`, instead of those of `source`. A state_dict does not say `batch_first`, `dropout`
            and, for an RNN, `nonlinearity`: their defaults are jaxrnn's, so batch_first=True.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU` with copies of the weights in their dtype; in evaluation mode if `source` is.

    Raises:
        TypeError: `source` or a dtype is of another kind. ValueError: a key is missing, unexpected or of the wrong shape.

    Example:
        >>> from_torch({"rnn.weight_ih_l0": np.ones((20, 3), "float32"), "rnn.weight_hh_l0": np.ones((20, 5), "float32")}, "rnn.")
        LSTM(3, 5, bias=False)
    """
    if isinstance(source, Mapping):
        return from_arrays("from_torch", "`source`", to_numpy(source), prefix, options)
    torch = _checks.require("from_torch", "torch")
    if prefix and isinstance(source, torch.nn.Module):
        inside = dict(source.named_modules())
        if prefix.rstrip(".") not in inside:
            names = ", ".join(filter(None, inside)) or "none"
            raise ValueError(f"from_torch: `prefix` should be among the modules in `source`, {names}, got {prefix!r}.")
        source = inside[prefix.rstrip(".")]
    kinds = (torch.nn.RNNBase, torch.nn.RNN, torch.nn.LSTM, torch.nn.GRU, torch.nn.modules.rnn.RNNCellBase)
    if not isinstance(source, kinds):
        named = source.named_modules() if isinstance(source, torch.nn.Module) else ()
        inside = " or ".join(f"`.{name}`" for name, m in named if isinstance(m, kinds))
        raise TypeError(
            "from_torch: `source` should be a torch.nn.RNN, LSTM, GRU, one of their cells, or a state_dict, got "
            + type(source).__name__
            + (f".\nPass its {inside}?" if inside else ".")
        )
    given: dict[str, Any] = {}
    for option in ("nonlinearity", "batch_first", "dropout"):
        if hasattr(source, option):
            given[option] = getattr(source, option)
    found = to_numpy(source.state_dict())
    module = from_arrays("from_torch", "the state_dict of `source`", found, "", given | options)
    if not source.training:
        module.eval()
    return module


def load_torch(module: nnx.Module, state_dict: Mapping[str, Any], prefix: str = ""):
    """Set the parameters of a module from a PyTorch state_dict, all of them or, on any error, none.

    Args:
        module: a `jaxrnn.RNN`, `LSTM` or `GRU`, or a model of `jaxrnn.models`, whose keys begin with "rnn." and "fc.".
        state_dict: tensors or arrays; the keys of one layer may also be those of a cell, without "_l0".
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored.

    Raises:
        TypeError: a dtype is of another kind. ValueError: a key is missing, unexpected, or of the wrong shape or dtype.

    Example:
        >>> import jaxrnn
        >>> rnn = jaxrnn.RNN(3, 5, bias=False, rngs=nnx.Rngs(0))
        >>> load_torch(rnn, {"weight_ih_l0": np.ones((5, 3), "float32"), "weight_hh_l0": np.ones((5, 5), "float32")})
    """
    if not isinstance(state_dict, Mapping):
        hint = "\nPass its .state_dict()?" if hasattr(state_dict, "state_dict") else ""
        raise TypeError(f"load_torch: `state_dict` should be a dict of tensors or arrays, got {type(state_dict).__name__}.{hint}")
    load_arrays("load_torch", "`state_dict`", module, to_numpy(state_dict), prefix)


def to_torch(module: nnx.Module, prefix: str = "", *, cell: bool = False) -> dict:
    """The state_dict of the PyTorch module that computes what `module` computes.

    Args:
        module: a `jaxrnn.RNN`, `LSTM` or `GRU`, a `Recurrent` with one of their cells, or a model of `jaxrnn.models`.
        prefix: put before every key.
        cell: name the arrays of a single layer as `torch.nn.LSTMCell` does, without "_l0".

    Returns:
        Tensors by key, copies, for `load_state_dict(strict=True)`.

    Raises:
        ValueError: PyTorch has no such cell, or lacks an option of the module.

    Example:
        >>> import jaxrnn
        >>> ours = jaxrnn.LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> theirs = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True)  # doctest: +SKIP
        >>> theirs.load_state_dict(to_torch(ours))  # doctest: +SKIP
    """
    torch = _checks.require("to_torch", "torch")

    def tensor(a):
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == _checks.BFLOAT16 else torch.from_numpy(a)

    return {key: tensor(a) for key, a in to_arrays("to_torch", module, prefix, cell=cell).items()}


# With NumPy arrays: what safetensors needs too -------------------------------------------------------------------------


class Slot(NamedTuple):
    """Where the array of a key belongs: the parameter, and which of a cell's arrays it is."""

    variable: nnx.Variable
    field: str


def from_arrays(caller: str, argument: str, found: _checks.Arrays, prefix: str, options: dict) -> Recurrent:
    """`from_torch` for NumPy arrays."""
    sizes = _sizes(caller, argument, found, prefix)
    cell = sizes.pop("cell")
    if isinstance(cell, RNNCell):
        cell = RNNCell(nonlinearity=options.get("nonlinearity", "tanh"))
    module = _modules.abstract_module(cell, **sizes | {name: o for name, o in options.items() if name != "nonlinearity"})
    load_arrays(caller, argument, module, found, prefix)
    return module


def load_arrays(caller: str, argument: str, module: nnx.Module, found: _checks.Arrays, prefix: str):
    """`load_torch` for NumPy arrays."""
    prefix = _dotted(prefix)
    slots = _slots(caller, module, prefix, cell=f"{prefix}weight_ih" in found)
    wanted = {key: _encode(slot.field, _modules.shape_of(slot.variable)) for key, slot in slots.items()}
    hint = "" if wanted.keys() & found.keys() else _other_prefixes(found, prefix, next(iter(wanted)).removeprefix(prefix))
    found = {key: a for key, a in found.items() if key.startswith(prefix)}
    _checks.match(caller, argument, found, wanted, hint)
    for key, slot in slots.items():
        _modules.assign_array(slot.variable, _decode(slot.field, found[key], slot.variable.get_value().shape))


def to_arrays(caller: str, module: nnx.Module, prefix: str = "", *, cell: bool = False) -> dict[str, np.ndarray]:
    """`to_torch` with NumPy arrays: copies, contiguous."""
    slots = _slots(caller, module, _dotted(prefix), cell=cell)
    return {key: _encode(slot.field, np.array(slot.variable.get_value())).copy() for key, slot in slots.items()}


def to_numpy(tensors: Mapping[str, Any]) -> _checks.Arrays:
    """Tensors or arrays as NumPy arrays of the same dtype."""

    def convert(a):
        if not hasattr(a, "detach"):
            return np.asarray(a)
        a, dtype = a.detach().cpu(), str(a.dtype).removeprefix("torch.")
        if dtype not in map(str, _checks.DTYPES):
            return _checks.Unknown(dtype, tuple(a.shape))
        if dtype != "bfloat16":  # which NumPy itself does not know
            return a.numpy()
        import torch

        return a.view(torch.int16).numpy().view(_checks.BFLOAT16)

    return {key: convert(a) for key, a in tensors.items()}


def _slots(caller: str, module: nnx.Module, prefix: str, *, cell: bool = False) -> dict[str, Slot]:
    """The keys of a module and the parameters they belong to, in PyTorch's order."""
    if hasattr(module, "rnn") and hasattr(module, "fc"):
        head = {f"{prefix}fc.weight": Slot(module.fc.kernel, "kernel"), f"{prefix}fc.bias": Slot(module.fc.bias, "b_ih")}
        return _slots(caller, module.rnn, f"{prefix}rnn.") | head
    if not isinstance(module, Recurrent):
        raise TypeError(f"{caller}: `module` should be a jaxrnn.RNN, LSTM, GRU or a model of theirs, got {type(module).__name__}.")
    stack = module.stack
    _checks.check_cell(caller, stack.cell, (RNNCell, LSTMCell, ProjectedLSTMCell, GRUCell), "PyTorch")
    _checks.refuse_options(caller, stack)
    if len(set(stack.hidden_sizes)) > 1:
        raise ValueError(f"{caller}: `hidden_size` should be one for all layers, as in PyTorch, got {stack.hidden_size}.")
    if cell and (stack.num_layers > 1 or stack.bidirectional):
        raise ValueError(f"{caller}: a PyTorch cell should have one layer and one direction, got {module}.")
    return {
        f"{prefix}{NAMES[field]}" + ("" if cell else f"_l{layer}" + "_reverse" * direction): Slot(variable, field)
        for layer, directions in enumerate(module.params)
        for direction, params in enumerate(directions)
        for field, variable in params._asdict().items()
        if variable is not None
    }


def _encode(field: str, a: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's shape: (gates * hidden, in), (gates * hidden,) or (out, in)."""
    if field in ("w_ih", "w_hh"):
        return a.transpose(1, 2, 0).reshape(-1, a.shape[0])
    return a.T if field in ("w_hr", "kernel") else a.reshape(-1)


def _decode(field: str, a: np.ndarray, shape: tuple) -> np.ndarray:
    """The inverse of `_encode`, onto `shape`."""
    return a.reshape(shape) if field in ("b_ih", "b_hh") else a.T.reshape(shape)


def _other_prefixes(found: _checks.Arrays, prefix: str, *names: str) -> str:
    """A question to end a message with: before what else the keys have one of the names."""
    others = {key.removesuffix(name) for key in found for name in names if f".{key}".endswith(f".{name}")} - {prefix}
    return f"\nIs the prefix {' or '.join(map(repr, sorted(others)))}?" if others else ""


def _sizes(caller: str, argument: str, found: _checks.Arrays, prefix: str) -> dict[str, Any]:
    """The cell and the sizes that a state_dict tells by its shapes."""
    prefix = _dotted(prefix)
    layers = [m for key in found if (m := re.fullmatch(re.escape(prefix) + r"weight_ih(?:_l(\d+)(_reverse)?)?", key))]
    suffix = "" if f"{prefix}weight_ih" in found else "_l0"
    arrays = [found.get(f"{prefix}{name}{suffix}") for name in ("weight_ih", "weight_hh")]
    if not layers or any(a is None or len(a.shape) != 2 for a in arrays):
        hint = _other_prefixes(found, prefix, "weight_ih", "weight_ih_l0")
        keys = ", ".join(f"{key} {tuple(a.shape)}" for key, a in found.items())
        needs = f"{prefix}weight_ih_l0 and {prefix}weight_hh_l0 (or, for a cell, without _l0), both of two axes"
        raise ValueError(f"{caller}: {argument} should hold {needs}, got {keys or 'nothing'}.{hint}")
    (rows, input_size), (_, output_size) = (a.shape for a in arrays)
    w_hr = found.get(f"{prefix}weight_hr{suffix}")
    hidden_size = output_size if w_hr is None else w_hr.shape[-1]
    cells = {hidden_size: RNNCell(), 3 * hidden_size: GRUCell(), 4 * hidden_size: LSTMCell()}
    if rows not in cells:
        times = f"1 (RNN), 3 (GRU) or 4 (LSTM) times {hidden_size}, the hidden size that {prefix}weight_hh{suffix} tells"
        raise ValueError(f"{caller}: {prefix}weight_ih{suffix} should have as many rows as {times}, got {rows}.")
    return {
        "cell": cells[rows] if w_hr is None else ProjectedLSTMCell(proj_size=output_size),
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": 1 + max(int(m[1] or 0) for m in layers),
        "bidirectional": any(m[2] for m in layers),
        "bias": f"{prefix}bias_ih{suffix}" in found,
        "param_dtype": _checks.check_dtype(caller, f"{prefix}weight_ih{suffix}", arrays[0]),
    }


def _dotted(prefix: str) -> str:
    return prefix if prefix.endswith(".") or not prefix else f"{prefix}."
