"""The keys and shapes of `torch.nn`, for modules here: what state_dicts and safetensors files share. No PyTorch."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from jaxrnn.cells import GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.interop import _checks, _modules
from jaxrnn.nnx import Recurrent

NAMES = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh", "w_hr": "weight_hr"}
CELLS = (RNNCell, LSTMCell, ProjectedLSTMCell, GRUCell)
MOST_LAYERS = 256
"""More than anybody stacks; a module of so many is made in two seconds, and a file may claim any number."""

EPSILON = 1e-5  # of torch.nn.LayerNorm; that of nnx.LayerNorm is 1e-6

Layer = Recurrent | nnx.Linear | nnx.Embed | nnx.LayerNorm | nnx.Variable


class Slot(NamedTuple):
    """Where the array of a key belongs: the parameter, and which of a layer's arrays it is."""

    variable: Any
    field: str


def from_arrays(caller: str, argument: str, found: _checks.Arrays, prefix: str, options: dict) -> Recurrent:
    """`from_torch` for NumPy arrays."""
    prefix, options = _dotted(prefix), dict(options)
    if "param_dtype" in options:
        found = _converted(caller, argument, found, prefix, options.pop("param_dtype"))
    sizes = _sizes(caller, argument, found, prefix)
    cell = sizes.pop("cell")
    if isinstance(cell, RNNCell):
        cell = RNNCell(nonlinearity=options.pop("nonlinearity", "tanh"))
    elif "nonlinearity" in options:
        kind = type(cell).__name__.removesuffix("Cell")
        raise ValueError(f"{caller}: `nonlinearity` should be left out, since {argument} holds a {kind}, got one.")
    module = _modules.abstract_module(cell, **sizes | options)
    load_arrays(caller, argument, module, found, prefix)
    return module


def load_arrays(caller: str, argument: str, module: nnx.Module, found: _checks.Arrays, prefix: str, *, epsilon_known=False):
    """`load_torch` for NumPy arrays.

    Args:
        epsilon_known: whether somebody has compared the epsilons of layer normalisations, of which arrays say nothing.
    """
    prefix = _dotted(prefix)
    slots = slots_of(caller, module, prefix, found)
    if not epsilon_known:
        _check_epsilons(caller, module, argument)
    wanted: dict[str, Any] = {key: _encode(slot.field, _modules.shape_of(slot.variable)) for key, slot in slots.items()}
    hint = "" if wanted.keys() & found.keys() else _other_prefixes(found, prefix, next(iter(wanted)).removeprefix(prefix))
    hint += computed(found, prefix)
    arrays: dict[str, Any] = {key: a for key, a in found.items() if key.startswith(prefix)}
    hint += _tied(arrays, wanted)
    hint = hint or _checks.renamed(arrays, wanted, prefix)
    _checks.match(caller, argument, arrays, wanted, hint)
    owners: dict[int, str] = {}
    for key, slot in slots.items():
        first = owners.setdefault(id(slot.variable), key)
        if first != key and arrays[first].tobytes() != arrays[key].tobytes():
            raise ValueError(f"{caller}: {first} and {key} of {argument} should be equal, as one parameter of the module, got two.")
    _modules.assign_all([(s.variable, _decode(s.field, arrays[key], s.variable.get_value().shape)) for key, s in slots.items()])


def to_arrays(slots: dict[str, Slot]) -> dict[str, np.ndarray]:
    """`to_torch` with NumPy arrays: copies, contiguous."""
    return {key: _encode(slot.field, np.array(slot.variable.get_value())).copy() for key, slot in slots.items()}


# Our side --------------------------------------------------------------------------------------------------------------


def layers_of(caller: str, module: Any, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """The layers that PyTorch has too, and bare variables, by the dotted names of the attributes that hold them."""
    return _layers(caller, module, prefix.removesuffix("."), ())


def _layers(caller: str, node: Any, path: str, outer: tuple) -> Iterator[tuple[str, Layer]]:
    if isinstance(node, nnx.RngState) or any(node is one for one in outer):
        return
    if isinstance(node, Recurrent | nnx.Variable):
        yield path, node
    elif isinstance(node, nnx.Linear):
        _checks.check_dense(caller, path or "module", node, nnx.Linear, "promote_dtype", "dot_general", "preferred_element_type")
        yield path, node
    elif isinstance(node, nnx.Embed):
        _checks.check_dense(caller, path or "module", node, nnx.Embed, "promote_dtype")
        yield path, node
    elif isinstance(node, nnx.LayerNorm):
        functions = ("promote_dtype", "reduction_axes", "feature_axes", "axis_name", "axis_index_groups")
        _checks.check_dense(caller, path or "module", node, nnx.LayerNorm, *functions)
        yield path, node
    else:
        for name, inside in _children(node):
            yield from _layers(caller, inside, f"{path}.{name}" if path else str(name), (*outer, node))


def _children(node: Any):
    """The parts of a module or container, by PyTorch's names."""
    if isinstance(node, nnx.Sequential):
        return enumerate(node.layers)
    if isinstance(node, nnx.List | list | tuple):
        return enumerate(node)
    if isinstance(node, dict):
        return node.items()
    if isinstance(node, nnx.Module):
        return [(name, inside) for name, inside in vars(node).items() if not name.startswith("_pytree__")]
    return ()


def slots_of(caller: str, module: Any, prefix: str, keys=(), *, cell: bool = False) -> dict[str, Slot]:
    """The keys of a module and the parameters they belong to, in PyTorch's order.

    Args:
        keys: those that are there; if they name the arrays of a layer as those of a cell, without "_l0", so does the result.
        cell: name them like this anyway.
    """
    slots: dict[str, Slot] = {}
    for path, layer in layers_of(caller, module, prefix):
        start = f"{path}." if path else ""
        if isinstance(layer, Recurrent):
            slots |= _recurrent_slots(caller, layer, start, cell=cell or f"{start}weight_ih" in keys)
        elif isinstance(layer, nnx.Variable):
            slots[path] = Slot(layer, "as it is")
        elif isinstance(layer, nnx.Linear):
            slots |= {f"{start}weight": Slot(layer.kernel, "kernel"), f"{start}bias": Slot(layer.bias, "as it is")}
        elif isinstance(layer, nnx.Embed):
            slots[f"{start}weight"] = Slot(layer.embedding, "as it is")
        else:
            slots |= {f"{start}weight": Slot(layer.scale, "as it is"), f"{start}bias": Slot(layer.bias, "as it is")}
    slots = {key: slot for key, slot in slots.items() if slot.variable is not None}
    if not slots:
        wanted = "a jaxrnn.RNN, LSTM, GRU, a model of theirs, or an nnx.Module with layers that PyTorch has"
        raise TypeError(f"{caller}: `module` should be {wanted}, got {type(module).__name__}.")
    return slots


def _recurrent_slots(caller: str, module: Recurrent, prefix: str, *, cell: bool) -> dict[str, Slot]:
    stack = module.stack
    _checks.check_cell(caller, stack.cell, CELLS, "PyTorch")
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


def _check_epsilons(caller: str, module: Any, argument: str):
    for path, layer in layers_of(caller, module):
        if isinstance(layer, nnx.LayerNorm) and layer.epsilon != EPSILON:
            wanted = f"{EPSILON}, the default of torch.nn.LayerNorm, since {argument} does not hold it"
            hint = "Make the layer with epsilon=1e-5. Or pass the PyTorch module, which says its `eps`, in place of its arrays."
            raise ValueError(f"{caller}: `epsilon` of `{path}` should be {wanted}, got {layer.epsilon}.\n{hint}")


def _encode(field: str, a: np.ndarray) -> np.ndarray:
    """One of our arrays in PyTorch's shape: (gates * hidden, in), (gates * hidden,) or (out, in)."""
    if field in ("w_ih", "w_hh"):
        return a.transpose(1, 2, 0).reshape(-1, a.shape[0])
    if field in ("w_hr", "kernel"):
        return a.T
    return a if field == "as it is" else a.reshape(-1)


def _decode(field: str, a: np.ndarray, shape: tuple) -> np.ndarray:
    """The inverse of `_encode`, onto `shape`."""
    return a.T.reshape(shape) if field in ("w_ih", "w_hh", "w_hr", "kernel") else a.reshape(shape)


# What came -------------------------------------------------------------------------------------------------------------


def _sizes(caller: str, argument: str, found: _checks.Arrays, prefix: str) -> dict[str, Any]:
    """The cell and the sizes that a state_dict tells by its shapes."""
    pattern = re.compile(re.escape(prefix) + r"weight_ih(?:_l([0-9]+)(_reverse)?)?")
    layers = [m for key in found if (m := pattern.fullmatch(key))]
    suffix = "" if f"{prefix}weight_ih" in found else "_l0"
    w_ih, w_hh = (found.get(f"{prefix}{name}{suffix}") for name in ("weight_ih", "weight_hh"))
    if not layers or w_ih is None or w_hh is None or any(len(a.shape) != 2 or 0 in a.shape for a in (w_ih, w_hh)):
        hint = _other_prefixes(found, prefix, "weight_ih", "weight_ih_l0") + computed(found, prefix)
        keys = [f"{key} {tuple(a.shape)}" for key, a in found.items()]
        needs = f"{prefix}weight_ih_l0 and {prefix}weight_hh_l0 (or, for a cell, without _l0), of two axes, none empty"
        raise ValueError(f"{caller}: {argument} should hold {needs}, got {_checks.listed(keys) or 'nothing'}.{hint}")
    numbers = {m[1] or "0" for m in layers}
    if numbers != {str(k) for k in range(len(numbers))} or len(numbers) > MOST_LAYERS:
        keys = _checks.listed([m[0] for m in layers if m[1] not in {str(k) for k in range(len(numbers))}] or [m[0] for m in layers])
        wanted = f"number its layers from 0 on without a gap, and have {MOST_LAYERS} of them at most"
        raise ValueError(f"{caller}: {argument} should {wanted}, got {len(numbers)} layers, among them {keys}.")
    (rows, input_size), (_, output_size) = w_ih.shape, w_hh.shape
    w_hr = found.get(f"{prefix}weight_hr{suffix}")
    if w_hr is not None and (len(w_hr.shape) != 2 or not output_size < w_hr.shape[1]):
        wanted = f"be ({output_size}, hidden_size), with a hidden size above {output_size}, as {prefix}weight_hh{suffix} tells"
        raise ValueError(f"{caller}: {prefix}weight_hr{suffix} of {argument} should {wanted}, got shape {tuple(w_hr.shape)}.")
    hidden_size = output_size if w_hr is None else w_hr.shape[1]
    cells = {hidden_size: RNNCell(), 3 * hidden_size: GRUCell(), 4 * hidden_size: LSTMCell()}
    if rows not in cells:
        times = f"1 (RNN), 3 (GRU) or 4 (LSTM) times {hidden_size}, the hidden size that {prefix}weight_hh{suffix} tells"
        raise ValueError(f"{caller}: {prefix}weight_ih{suffix} of {argument} should have as many rows as {times}, got {rows}.")
    return {
        "cell": cells[rows] if w_hr is None else ProjectedLSTMCell(proj_size=output_size),
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": len(numbers),
        "bidirectional": any(m[2] for m in layers),
        "bias": f"{prefix}bias_ih{suffix}" in found,
        "param_dtype": _checks.check_dtype(caller, f"{prefix}weight_ih{suffix}", w_ih, of=argument),
    }


def _converted(caller: str, argument: str, found: _checks.Arrays, prefix: str, dtype: Any) -> _checks.Arrays:
    """The floating arrays in another dtype, as the caller asked for."""
    try:
        dtype = np.dtype(dtype)
    except TypeError:
        dtype = None
    if dtype not in _checks.DTYPES:
        raise TypeError(f"{caller}: `param_dtype` should be one of {', '.join(map(str, _checks.DTYPES))}, got {dtype}.")
    result = dict(found)
    for key, a in found.items():
        if key.startswith(prefix) and not isinstance(a, _checks.Unknown) and a.dtype in _checks.DTYPES:
            with np.errstate(over="ignore"):
                result[key] = a.astype(dtype)
            if np.isfinite(a).sum() != np.isfinite(result[key]).sum():
                largest = np.abs(a[np.isfinite(a)]).max()
                raise ValueError(f"{caller}: {key} of {argument} should fit {dtype}, got entries up to {largest:.3g}.")
    return result


def computed(found: _checks.Arrays, prefix: str) -> str:
    """A line to end a message with, if there are arrays that PyTorch computes weights from, in the place of the weights."""
    rules = (
        (r"(?:.*\.)?parametrizations\.(\w+)\.(?:original\d*|\d+\..*)", "torch.nn.utils.parametrize.remove_parametrizations"),
        (r"(?:.*\.)?(\w+)_mask", "torch.nn.utils.prune.remove"),
        (r"(?:.*\.)?(\w+)_g", "torch.nn.utils.remove_weight_norm"),
        (r"(?:.*\.)?(\w+)_u", "torch.nn.utils.remove_spectral_norm"),
    )
    for key in (key.removeprefix(prefix) for key in found if key.startswith(prefix)):
        for pattern, function in rules:
            m = re.fullmatch(pattern, key)
            if m and ("weight" in m[1] or "bias" in m[1] or "parametrizations" in key) and f"{prefix}{m[1]}" not in found:
                what = f"{m[1]} is parametrized: PyTorch computes it from {key} and others."
                return f"\n{what} Pass the module itself, or the state_dict after {function}(module, {m[1]!r})."
        if "_all_weight_values" in key or "_packed_" in key:
            return f"\n{key} belongs to a quantized layer, which holds integers. Pass the state_dict from before quantization."
    return ""


def _tied(found: _checks.Arrays, wanted: dict[str, np.ndarray]) -> str:
    """A line to end a message with, if a matrix that the module does not have is one that it has, under a second name."""
    matrices = {key: a for key, a in found.items() if isinstance(a, np.ndarray) and a.ndim > 1}
    for key in sorted(matrices.keys() - wanted.keys()):
        for first in sorted(matrices.keys() & wanted.keys()):
            a, b = matrices[key], matrices[first]
            if (a.shape, a.dtype) == (b.shape, b.dtype) and a.tobytes() == b.tobytes():
                return f"\n{key} holds the numbers of {first}. Does `module` tie the two? Then pass the state_dict without {key}."
    return ""


def _other_prefixes(found: _checks.Arrays, prefix: str, *names: str) -> str:
    """A question to end a message with: before what else the keys have one of the names."""
    others = {key.removesuffix(name) for key in found for name in names if f".{key}".endswith(f".{name}")} - {prefix}
    return f"\nIs the prefix {_checks.listed(sorted(map(repr, others)), ' or ')}?" if others else ""


def _dotted(prefix: str) -> str:
    return prefix if prefix.endswith(".") or not prefix else f"{prefix}."
