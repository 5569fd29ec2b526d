"""PyTorch: modules, cells, whole models and state_dicts."""

import os
from collections.abc import Mapping
from typing import Any, Unpack

import numpy as np
from flax import nnx

from jaxrnn.interop import _checks, _modules, _torch_keys, _torch_live
from jaxrnn.interop._options import TorchOptions, takes_options
from jaxrnn.nnx import Recurrent

__all__ = ["from_torch", "load_torch", "to_torch"]


@takes_options
def from_torch(source: Any, prefix: str = "", **options: Unpack[TorchOptions]) -> Recurrent:
    """Make the module that computes what a PyTorch module computes.

    Args:
        source: a `torch.nn.RNN`, `LSTM`, `GRU` or a cell of theirs; a list, `ModuleList` or `Sequential` of them, which becomes
            the layers of one module; a module that has one inside; or a state_dict, from whose shapes kind and sizes follow.
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored. It is also the name of the module inside.
        options: arguments of `jaxrnn.Recurrent`, and `nonlinearity` of an RNN, instead of those of `source`; None: as there. A
            state_dict does not say `batch_first`, `dropout` and `nonlinearity`: their defaults are jaxrnn's, so batch_first=True.
            `param_dtype` converts.

    Returns:
        A `jaxrnn.RNN`, `LSTM` or `GRU` with copies of the weights in their dtype; in evaluation mode if `source` is. A weight that
        PyTorch computes (`weight_norm`, `spectral_norm`, `prune`, parametrizations) is there as computed in evaluation mode; a
        state_dict does not hold it. Forward hooks do not come along; a warning says so.

    Raises:
        TypeError: `source` or a dtype is of another kind. ValueError: a key is missing, unexpected or of the wrong shape.

    Example:
        >>> from_torch({"rnn.weight_ih_l0": np.ones((20, 3), "float32"), "rnn.weight_hh_l0": np.ones((20, 5), "float32")}, "rnn.")
        LSTM(3, 5, bias=False)
    """
    if isinstance(source, Mapping):
        found = _checked_state_dict("from_torch", source)
        return _torch_keys.from_arrays("from_torch", "`source`", found, prefix, dict(options))
    _refuse_path("from_torch", source)
    torch = _checks.require("from_torch", "torch")
    source = _inside("from_torch", torch, source, prefix)
    if isinstance(source, list | tuple | torch.nn.ModuleList | torch.nn.Sequential):
        if not isinstance(source, list | tuple):
            _torch_live.check_forward("from_torch", torch, prefix.rstrip("."), "source", source)
        return _from_layers(torch, list(source), dict(options))
    return _from_layer(torch, source, dict(options))


def load_torch(module: nnx.Module, source: Any, prefix: str = "") -> None:
    """Set the parameters of a module from PyTorch's, all of them or, on any error, none.

    Like `load_state_dict`, it changes nothing but parameters: the module stays in training or evaluation mode, whichever it is in.

    Args:
        module: a `jaxrnn.RNN`, `LSTM` or `GRU`, a model of `jaxrnn.models`, or any `nnx.Module` whose attributes have the names of
            those of the PyTorch module: recurrent modules, `nnx.Linear`, `nnx.Embed`, `nnx.LayerNorm`, and parameters of its own,
            which keep their shape. Lists count as `ModuleList`, `nnx.Sequential` as `Sequential`.
        source: a state_dict, of tensors or arrays; or the PyTorch module, of which then the options are compared too that arrays
            do not tell (the epsilon of a LayerNorm, the layout). The keys of one layer may also be those of a cell.
        prefix: of the keys, e.g. "encoder.lstm."; other keys are ignored.

    Raises:
        TypeError: a dtype or a layer is of another kind. ValueError: a key is missing, unexpected, or of the wrong shape or dtype;
        the message lists every difference, on both sides. Or an option is another.

    Example:
        >>> import jaxrnn
        >>> class Tagger(nnx.Module):
        ...     def __init__(self, rngs):
        ...         self.embed, self.rnn = nnx.Embed(7, 3, rngs=rngs), jaxrnn.RNN(3, 5, bias=False, rngs=rngs)
        >>> sizes = {"embed.weight": (7, 3), "rnn.weight_ih_l0": (5, 3), "rnn.weight_hh_l0": (5, 5)}
        >>> load_torch(Tagger(nnx.Rngs(0)), {key: np.ones(shape, "float32") for key, shape in sizes.items()})
    """
    if isinstance(source, Mapping):
        found = _checked_state_dict("load_torch", source)
        _torch_keys.load_arrays("load_torch", "`source`", module, found, prefix)
        return
    _refuse_path("load_torch", source)
    if not hasattr(source, "state_dict"):
        hint = "\nOurs comes first, PyTorch's second: load_torch(ours, theirs)." if isinstance(source, nnx.Module) else ""
        raise TypeError(f"load_torch: `source` should be a state_dict or a module of PyTorch, got {type(source).__name__}.{hint}")
    _torch_live.check_same("load_torch", module, source, "source", prefix)
    found = _torch_live.to_numpy(_torch_live.weights("load_torch", source, prefix))
    _torch_keys.load_arrays("load_torch", "`source`", module, found, prefix, epsilon_known=True)


def to_torch(module: nnx.Module, prefix: str = "", *, cell: bool = False, target: Any = None) -> dict[str, Any]:
    """The state_dict of the PyTorch module that computes what `module` computes.

    Args:
        module: a `jaxrnn.RNN`, `LSTM` or `GRU`, a `Recurrent` with one of their cells, or a model of `jaxrnn.models`; with
            `target` any `nnx.Module` that `load_torch` takes.
        prefix: put before every key.
        cell: name the arrays of a single layer as `torch.nn.LSTMCell` does, without "_l0".
        target: the PyTorch module that is to have the weights, with attributes of the same names; it is left as it is. A
            state_dict does not say what a module of your own does with its layers, so somebody has to have written that there.

    Returns:
        Tensors by key, copies, for `load_state_dict(strict=True)`.

    Raises:
        ValueError: PyTorch has no such cell, or lacks an option of the module; or `target` has other keys, shapes, dtypes or
        options: the message lists every difference, on both sides. TypeError: `module` or a layer of `target` is of another kind.

    Example:
        >>> import jaxrnn
        >>> ours = jaxrnn.LSTM(3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> theirs = torch.nn.LSTM(3, 5, num_layers=2, batch_first=True)  # doctest: +SKIP
        >>> theirs.load_state_dict(to_torch(ours))  # doctest: +SKIP
    """
    torch = _checks.require("to_torch", "torch")
    if target is None:
        _check_own(module)
        arrays = _torch_keys.to_arrays(_torch_keys.slots_of("to_torch", module, prefix, cell=cell))
    else:
        arrays = _to_target(torch, module, prefix, target)

    def tensor(a):
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16) if a.dtype == _checks.BFLOAT16 else torch.from_numpy(a)

    return {key: tensor(a) for key, a in arrays.items()}


def _check_own(module: Any):
    try:
        _checks.check_exportable("to_torch", module)
    except TypeError as error:
        hint = "\nOr pass target=, the PyTorch module that is to have the weights, by the same names."
        raise TypeError(f"{error}{hint if isinstance(module, nnx.Module) else ''}") from None


def _to_target(torch, module: nnx.Module, prefix: str, target: Any) -> dict[str, np.ndarray]:
    if not isinstance(target, torch.nn.Module):
        raise TypeError(f"to_torch: `target` should be a module of PyTorch, got {type(target).__name__}.")
    _torch_live.check_same("to_torch", module, target, "target", prefix)
    state = target.state_dict()
    arrays = _torch_keys.to_arrays(_torch_keys.slots_of("to_torch", module, prefix, state))
    wanted = {key: a for key, a in _torch_live.to_numpy(state).items() if key.startswith(prefix)}
    hint = _torch_keys.computed(wanted, "").replace("Pass the module itself, or the state_dict after", "First call")
    _checks.match("to_torch", "`module`, for `target`,", arrays, wanted, hint)
    return {key: arrays[key] for key in wanted}


def _from_layer(torch, source: Any, options: dict) -> Recurrent:
    """The module of one layer, stack or cell."""
    if not isinstance(source, _torch_live.kinds(torch)) or _torch_live.is_quantized(source):
        raise TypeError(f"from_torch: {_wanted(torch, source)}")
    theirs = {option: getattr(source, option) for option in ("nonlinearity", "batch_first", "dropout") if hasattr(source, option)}
    found = _torch_live.to_numpy(_torch_live.weights("from_torch", source))
    module = _torch_keys.from_arrays("from_torch", "the state_dict of `source`", found, "", theirs | options)
    if not source.training:
        module.eval()
    return module


def _from_layers(torch, layers: list, options: dict) -> Recurrent:
    """The module whose layers are several modules or cells."""
    if not layers or not all(isinstance(layer, _torch_live.kinds(torch)) for layer in layers):
        wanted = "RNN, LSTM, GRU or cells of theirs, to be the layers of one module"
        quantized = [_torch_live.is_quantized(layer) for layer in layers]
        names = [f"{'a quantized ' * own}{_torch_live.name_of(layer)}" for own, layer in zip(quantized, layers, strict=True)]
        hint = "Pass the modules from before quantization." if any(quantized) else "Pass a list of the recurrent ones alone?"
        raise TypeError(f"from_torch: `source` should hold torch.nn.{wanted}, got {', '.join(names) or 'nothing'}.\n{hint}")
    own = {name: options.pop(name) for name in ("param_dtype", "nonlinearity") if name in options}
    modules = [_from_layer(torch, layer, own) for layer in layers]
    for option, found in (
        ("kind", [module.stack.cell for module in modules]),
        ("batch_first", [layer.batch_first for layer in layers if hasattr(layer, "batch_first")]),
    ):
        if any(one != found[0] for one in found):
            raise ValueError(f"from_torch: all layers of `source` should have the same {option}, got {found}.")
    rates = [getattr(layer, "dropout", 0) for layer in layers if getattr(layer, "num_layers", 1) > 1]
    if any(rates) and len(layers) > 1 and "dropout" not in options:
        raise ValueError(f"from_torch: `dropout` should be given, since it stands within, not between, the layers, got {rates}.")
    params = [layer for module in modules for layer in _modules.values(module)]
    theirs = {"batch_first": modules[0].batch_first, "dropout": rates[0] if rates else 0.0}
    module = _modules.build("from_torch", modules[0].stack.cell, params, **theirs | options)
    if not any(layer.training for layer in layers):
        module.eval()
    return module


# What came -------------------------------------------------------------------------------------------------------------


def _refuse_path(caller: str, source: Any):
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        call = f"torch.load({path!r}, weights_only=True)"
        call = f"{caller.replace('torch', 'safetensors')}, which reads the file" if str(path).endswith(".safetensors") else call
        raise TypeError(f"{caller}: `source` should be a module or a state_dict, got a path, {path!r}.\nPass {call}?")


def _checked_state_dict(caller: str, source: Mapping) -> _checks.Arrays:
    """The arrays of a state_dict; or of a checkpoint that has it inside, the way to it."""
    if nested := _nested(source):
        keys = _checks.listed([repr(key) for key in source])
        calls = " or ".join(f"source{way}" for way in nested)
        raise ValueError(f"{caller}: `source` should be a state_dict, got a dict of {keys}.\nPass {calls}?")
    return _torch_live.to_numpy(source)


def _nested(source: Mapping, way: str = "", depth: int = 3) -> list[str]:
    """The subscripts of the dicts within that hold arrays, or a module; not those of an optimizer."""
    found = []
    for key, value in source.items():
        if isinstance(value, Mapping) and depth and not str(key).endswith("_extra_state") and "param_groups" not in value:
            arrays = any(hasattr(a, "shape") for a in value.values())
            found += [f"{way}[{key!r}]"] if arrays else _nested(value, f"{way}[{key!r}]", depth - 1)
        elif hasattr(value, "state_dict") and not hasattr(value, "shape"):
            found.append(f"{way}[{key!r}].state_dict()")
    return found


def _inside(caller: str, torch, source: Any, prefix: str) -> Any:
    """The module of the name within `source`."""
    if not prefix or not isinstance(source, torch.nn.Module):
        return source
    inside = dict(source.named_modules())
    if prefix.rstrip(".") not in inside:
        names = _checks.listed([name for name in inside if name]) or "none"
        raise ValueError(f"{caller}: `prefix` should be among the modules in `source`, {names}, got {prefix!r}.")
    return inside[prefix.rstrip(".")]


def _wanted(torch, source: Any) -> str:
    """What `source` should be, what came, and what to pass in its place."""
    wanted = "`source` should be a torch.nn.RNN, LSTM, GRU, one of their cells, a list of them, or a state_dict, got "
    if _torch_live.is_quantized(source):
        return f"{wanted}a quantized {type(source).__name__}, whose weights are rounded.\nPass the module from before quantization."
    inside = dict(source.named_modules()) if isinstance(source, torch.nn.Module) else {}
    names = [f"`.{name}`" for name, one in inside.items() if isinstance(one, _torch_live.kinds(torch))]
    if isinstance(source, torch.jit.ScriptModule):
        return f"{wanted}a {type(source).__name__}.\nPass its .state_dict()?"
    if quantized := [f"`.{name}`" for name, one in inside.items() if _torch_live.is_quantized(one) and not names]:
        return f"{wanted}{type(source).__name__}, quantized at {', '.join(quantized)}.\nPass the module from before quantization."
    return wanted + _torch_live.name_of(source) + (f".\nPass its {' or '.join(names)}?" if names else ".")
