"""Live modules of PyTorch: their weights as they compute with them, and whether they compute what a module here does."""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from jaxrnn import checks
from jaxrnn.cells import GRUCell, LSTMCell, ProjectedLSTMCell, RNNCell
from jaxrnn.interop import _checks, _torch_keys
from jaxrnn.nnx import Recurrent


def kinds(torch) -> tuple[type, ...]:
    """The recurrent layers and cells."""
    return (torch.nn.RNNBase, torch.nn.modules.rnn.RNNCellBase)


COMPUTING = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "permute_hidden")
"""What a subclass that computes something else has of its own."""


def is_quantized(module: Any) -> bool:
    """Whether PyTorch made it by quantization: its weights are integers, or observed, and not where a float layer has them."""
    return ".ao.nn." in type(module).__module__


def to_numpy(tensors: Mapping[str, Any]) -> _checks.Arrays:
    """Tensors or arrays as NumPy arrays of the same dtype; of anything else, what it is."""
    return {str(key): _array(a) for key, a in tensors.items()}


def _array(a: Any) -> np.ndarray | _checks.Unknown:
    if not hasattr(a, "detach"):
        is_array = hasattr(a, "shape") and hasattr(a, "dtype") and hasattr(a, "__array__")
        return np.asarray(a) if is_array else _checks.Unknown(type(a).__name__, ())
    torch = _checks.require("to_numpy", "torch")
    if torch.nn.parameter.is_lazy(a):
        return _checks.Unknown("uninitialized", ())
    a, dtype = a.detach(), str(a.dtype).removeprefix("torch.")
    if a.is_meta or a.layout != torch.strided or dtype not in map(str, _checks.DTYPES):
        where = "meta " if a.is_meta else f"{a.layout} ".removeprefix("torch.") if a.layout != torch.strided else ""
        return _checks.Unknown(f"{where}{dtype}", tuple(a.shape))
    a = a.cpu().resolve_neg()
    return a.view(torch.int16).numpy().view(_checks.BFLOAT16) if dtype == "bfloat16" else a.numpy()


def weights(caller: str, source: Any, prefix: str = "") -> dict[str, Any]:
    """The state_dict of a module, in which the weights of layers that we know stand as these compute with them.

    Args:
        prefix: what the names of those layers begin with.
    """
    torch = _checks.require(caller, "torch")
    found, computed_from = {}, set()
    state = source.state_dict()
    for path, layer in source.named_modules(remove_duplicate=False):
        names = _names(torch, layer)
        if not names or not f"{path}.".startswith(prefix):
            continue
        check_forward(caller, torch, path, "source", layer)
        _warn_of_hooks(caller, path, layer)
        start = f"{path}." if path else ""
        for name in names:
            found[f"{start}{name}"] = _weight(caller, torch, f"{start}{name}", layer, name)
            if f"{start}{name}" not in state:
                computed_from |= {f"{start}{name}_{end}" for end in ("g", "v", "u", "orig", "mask")}
                computed_from |= {key for key in state if key.startswith(f"{start}parametrizations.{name}.")}
    return {key: found.get(key, a) for key, a in state.items() if key not in computed_from} | found


def _names(torch, layer: Any) -> list[str]:
    """The names of a layer's weights."""
    nn = torch.nn
    if isinstance(layer, nn.RNNBase):
        ends = [f"_l{k}{way}" for k in range(layer.num_layers) for way in ("", "_reverse")[: 1 + layer.bidirectional]]
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] * layer.bias), *(["weight_hr"] * (layer.proj_size > 0))]
        return [f"{name}{end}" for end in ends for name in names]
    if isinstance(layer, nn.modules.rnn.RNNCellBase):
        return ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] * layer.bias)]
    if isinstance(layer, nn.Linear | nn.Embedding | nn.LayerNorm) and not is_quantized(layer):
        return [name for name in ("weight", "bias") if getattr(layer, name, None) is not None]
    return []


def _weight(caller: str, torch, path: str, layer: Any, name: str):
    """A weight as the layer computes with it after `eval()`, whatever it is computed from; the layer stays as it is."""
    with torch.no_grad():
        if torch.nn.utils.parametrize.is_parametrized(layer, name):
            parametrization = layer.parametrizations[name]
            training = {module: module.training for module in parametrization.modules()}
            parametrization.eval()  # spectral norm would go on with its power iteration
            try:
                return parametrization()
            finally:
                for module, mode in training.items():
                    module.training = mode
        hooks = [
            hook
            for hook in layer._forward_pre_hooks.values()
            if name in (getattr(hook, "name", None), getattr(hook, "_tensor_name", None))
        ]
        if len(hooks) == 1 and _is(hooks[0], "weight_norm", "WeightNorm"):
            return hooks[0].compute_weight(layer)
        if len(hooks) == 1 and _is(hooks[0], "spectral_norm", "SpectralNorm"):
            return hooks[0].compute_weight(layer, do_power_iteration=False)
        if len(hooks) == 1 and _is(hooks[0], "prune", "BasePruningMethod"):
            return hooks[0].apply_mask(layer)
    if name not in layer._parameters or hooks:
        wanted = "a parameter, parametrized, or computed by weight_norm, spectral_norm or prune"
        raise ValueError(f"{caller}: {path} should be {wanted}, got one computed by something else.")
    return layer._parameters[name]


def _is(hook: Any, module: str, kind: str) -> bool:
    """Whether a hook is of this kind; functions hide some of the modules that have them."""
    return isinstance(hook, getattr(importlib.import_module(f"torch.nn.utils.{module}"), kind))


def check_forward(caller: str, torch, path: str, argument: str, layer: Any):
    """The layer computes what its kind does: no `forward` of its own, and no other call."""
    nn = torch.nn
    layers = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell, nn.Linear, nn.Embedding, nn.LayerNorm)
    kind = next((kind for kind in (*layers, nn.Sequential, nn.ModuleList) if isinstance(layer, kind)), None)
    own = [name for name in COMPUTING if name in vars(layer) or getattr(type(layer), name, None) is not getattr(kind, name, None)]
    if kind is None or own:
        base, name = (kind.__name__, own[0]) if kind else ("RNN, LSTM or GRU", "forward")
        way = "Pass its state_dict()" if kind is None or kind in layers else f"Pass list({argument})"
        got, where = f"{name_of(layer)} with its own", f"`{path}`" if path else f"`{argument}`"
        hint = f"\n{way} if the module here computes what it does." * (argument == "source")
        raise TypeError(f"{caller}: {where} should have the {name} of torch.nn.{base}, got {got}.{hint}")


def name_of(layer: Any) -> str:
    """The name of its class; in full if it is that of a layer of PyTorch, and it is none."""
    kind = type(layer)
    own = kind.__module__.split(".")[0] != "torch" and kind.__name__ in ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
    return f"{kind.__module__}.{kind.__qualname__}" if own else kind.__name__


def _warn_of_hooks(caller: str, path: str, layer: Any):
    """Hooks may change what goes in and comes out; those that compute a weight are known."""
    hooks = [hook for hook in layer._forward_pre_hooks.values() if not (hasattr(hook, "name") or hasattr(hook, "_tensor_name"))]
    if count := len(hooks) + len(layer._forward_hooks):
        where = f"`{path}`" if path else "`source`"
        warnings.warn(
            f"{caller}: {count} forward hook(s) of {where} do not come along.", UserWarning, stacklevel=checks.frames_to_the_user()
        )


def check_same(caller: str, module: nnx.Module, theirs: Any, argument: str, prefix: str):
    """The layers of `theirs` compute what those of `module` do: kinds and options, of which arrays do not speak."""
    torch = _checks.require(caller, "torch")
    nn, inside = torch.nn, dict(theirs.named_modules(remove_duplicate=False))
    cells = {
        RNNCell: (nn.RNN, nn.RNNCell),
        LSTMCell: (nn.LSTM, nn.LSTMCell),
        ProjectedLSTMCell: (nn.LSTM,),
        GRUCell: (nn.GRU, nn.GRUCell),
    }
    for path, ours in _torch_keys.layers_of(caller, module, prefix):
        layer, name = inside.get(path), f"`{path}`" if path else f"`{argument}`"
        if layer is None or isinstance(ours, nnx.Variable):
            continue
        if isinstance(ours, Recurrent):
            wanted = cells.get(type(ours.stack.cell), kinds(torch))
        else:
            wanted = {nnx.Linear: (nn.Linear,), nnx.Embed: (nn.Embedding,), nnx.LayerNorm: (nn.LayerNorm,)}[type(ours)]
        if not isinstance(layer, wanted) or is_quantized(layer):
            names = " or ".join(f"torch.nn.{kind.__name__}" for kind in wanted)
            quantized = "\nPass the module from before quantization." if is_quantized(layer) else ""
            got = f"{'a quantized ' * is_quantized(layer)}{name_of(layer)}"
            where = f"{name} of `{argument}`" if path else name
            raise TypeError(f"{caller}: {where} should be a {names}, as it is in `module`, got {got}.{quantized}")
        check_forward(caller, torch, path, argument, layer)
        for option, value, other in _options(ours, layer):
            if value != other:
                hint = ""
                if option == "batch_first":
                    hint = f"\nPass {argument}.state_dict() if your own call lays out what they read."
                raise ValueError(f"{caller}: `{option}` of {name} should be {other!r}, as in `{argument}`, got {value!r}.{hint}")


def _options(ours: Any, theirs: Any):
    """(name, ours, theirs) for each option that the arrays do not tell."""
    if isinstance(ours, Recurrent):
        if hasattr(theirs, "batch_first"):
            yield "batch_first", ours.batch_first, theirs.batch_first
        if hasattr(theirs, "nonlinearity"):
            yield "nonlinearity", getattr(ours.stack.cell, "nonlinearity", None), theirs.nonlinearity
    elif isinstance(ours, nnx.LayerNorm):
        yield "epsilon", ours.epsilon, theirs.eps
    elif isinstance(ours, nnx.Embed):
        yield "max_norm", None, theirs.max_norm
