"""Checks of what came: packages, modules, arrays. Each raises an error that says what is wrong, or returns."""

import importlib
from collections.abc import Mapping
from dataclasses import fields
from inspect import signature
from types import FunctionType
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
from flax import nnx

from jaxrnn.cells import Cell
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype("float64"), np.dtype("float32"), np.dtype("float16"), BFLOAT16)


class Unknown(NamedTuple):
    """What is known of an array whose dtype NumPy does not have."""

    dtype: str
    shape: tuple[int, ...]


Arrays = dict[str, np.ndarray | Unknown]


EXTRA = ("safetensors", "onnx", "h5py")  # those that the extra `interop` of jaxrnn installs


def require(caller: str, package: str):
    """Import a framework, or say what to install."""
    name = package.split(".")[0]
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == name:
            install = "jaxrnn[interop]" if name in EXTRA else name
            raise ImportError(f"{caller}: the package {name} is missing: pip install {install!r}") from error
        raise


def check_module(caller: str, module: Any):
    """`module` is recurrent."""
    if not isinstance(module, Recurrent):
        raise TypeError(f"{caller}: `module` should be a jaxrnn.RNN, LSTM, GRU or Recurrent, got {_kind(module)}.")


def _kind(module: Any) -> str:
    """The name of a type; with its module's if it is that of another of ours."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__name__}" if kind.__name__ in {one.__name__ for one in MODULES + MODELS} else kind.__name__


MODULES, MODELS = (RNN, LSTM, GRU, Recurrent), (RNNModel, LSTMModel, GRUModel)
BESIDE_THE_CALL = ("__init__", "__repr__", "__str__", "_describe_cell", "step", "initial_state", "set_view")
READ_BY_THE_CALL = ("stack", "params", "learned", "initial", "batch_first", "rngs", "rnn", "fc", "__getattr__", "__getattribute__")


def check_exportable(caller: str, module: Any, *, models: bool = True) -> tuple[Recurrent, nnx.Linear | None]:
    """`module` computes what the library's own class computes: it is one, or derives from one and changes nothing that a call uses.

    A file holds weights, and what we know of our own classes; of another `__call__` it would hold nothing.

    Args:
        models: whether those of `jaxrnn.models` may come too.

    Returns:
        The recurrent module, and the head of a model.
    """
    kinds = MODULES + MODELS * models
    wanted = "a jaxrnn.RNN, LSTM, GRU or Recurrent" + ", or a model of jaxrnn.models" * models
    hint = _parts(module)
    if not isinstance(module, kinds):
        raise TypeError(f"{caller}: `module` should be {wanted}, got {_kind(module)}.{hint}")
    if changed := _changed(module, kinds):
        got = f"{type(module).__name__}, which has its own {', '.join(changed)}"
        raise TypeError(f"{caller}: `module` should be {wanted}, with their call, got {got}.{hint}")
    if isinstance(module, MODULES):
        return module, None
    recurrent, _ = check_exportable(caller, module.rnn, models=False)
    check_dense(caller, "module.fc", module.fc, nnx.Linear, *OF_LINEAR)
    if module.fc.bias is None:
        raise ValueError(
            f"{caller}: `module.fc` should have a bias, as that of a model in jaxrnn.models, got use_bias=False.{hint}"
        )
    return recurrent, module.fc


OF_LINEAR = ("promote_dtype", "dot_general", "preferred_element_type")
"""The functions that an `nnx.Linear` computes with, and one may choose."""


def check_dense(caller: str, name: str, layer: Any, kind: type[nnx.Module], *functions: str):
    """A layer of Flax is exactly of its kind, and computes with the functions that this has by default."""
    if type(layer) is not kind:
        raise TypeError(f"{caller}: `{name}` should be an nnx.{kind.__name__}, got {type(layer).__name__}.")
    known = signature(kind.__init__).parameters
    for function in functions:
        default = known[function].default if function in known else None  # of a Flax that does not let one choose it
        if getattr(layer, function, None) is not default:
            raise ValueError(f"{caller}: `{function}` of `{name}` should be the default of nnx.{kind.__name__}, got another.")


def _parts(module: Any) -> str:
    """A question to end a message with: which of the attributes of a module to pass in its place."""
    names = [f"`.{name}`" for name, value in getattr(module, "__dict__", {}).items() if isinstance(value, Recurrent)]
    return f"\nPass its {' or '.join(names)}, and write what is around it yourself?" if names else ""


def _changed(module: nnx.Module, kinds: tuple[type, ...]) -> list[str]:
    """The names that a call of the library's own class uses and that a class derived from it, or the object, defines anew."""
    classes = type(module).__mro__
    own = next(k for k, one in enumerate(classes) if one in kinds)
    methods = {name for one in classes[own:] for name, value in vars(one).items() if isinstance(value, FunctionType | property)}
    methods = {name for name in methods if name == "__call__" or not name.startswith("__")} - set(BESIDE_THE_CALL)
    anew = {name for one in classes[:own] for name in vars(one) if name in methods or name in READ_BY_THE_CALL}
    return sorted(anew | (methods & vars(module).keys()))


ACTIVATIONS = {"activation": ("tanh",), "recurrent_activation": ("sigmoid",), "nonlinearity": ("tanh", "relu")}


def check_cell(caller: str, cell: Cell, cells: tuple[type[Cell], ...], framework: str, **activations: tuple[str, ...]):
    """The cell is exactly one of those that the framework has, with the activations that it has there.

    Args:
        activations: for a field of the cell, those of the framework, if they are others than `ACTIVATIONS`.
    """
    if type(cell) not in cells:
        names = ", ".join(c.__name__ for c in cells)
        raise ValueError(f"{caller}: the cell should be one that {framework} has ({names}), got {cell}.")
    for field, names in (ACTIVATIONS | activations).items():
        if (name := getattr(cell, field, names[0])) not in names:
            wanted = f"{' or '.join(map(repr, names))}, as in {framework}"
            raise ValueError(f"{caller}: `{field}` of the cell should be {wanted}, got {name!r}.")


def check_dtype(caller: str, name: str, a, of: str = ""):
    """`a`, an array `of` what came, has a dtype that is kept; return it."""
    name = f"`{name}` of {of}" if of else f"`{name}`"
    if isinstance(a, Unknown) or a.dtype not in DTYPES:
        dtypes = ", ".join(map(str, DTYPES))
        raise TypeError(f"{caller}: {name} should have one of the dtypes {dtypes}, got {a.dtype}.")
    if a.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        raise TypeError(
            f"{caller}: {name} should not be float64 while JAX's 64-bit numbers are off, which would round it.\n"
            "Call jax.config.update('jax_enable_x64', True) first, or convert the weights to float32."
        )
    return a.dtype


def has(caller: str, argument: str, found: Mapping[str, Any], *names: str):
    """`found` has matrices of these names, from which the sizes follow."""
    if any(name not in found or len(found[name].shape) != 2 for name in names):
        arrays = ", ".join(f"{name} {tuple(a.shape)}" for name, a in found.items()) or "nothing"
        raise ValueError(f"{caller}: {argument} should hold {' and '.join(names)}, of two axes, got {arrays}.")


def match(caller: str, argument: str, found: Mapping[str, Any], wanted: Mapping[str, Any], hint: str = ""):
    """`found` has the names, shapes and dtypes of `wanted`; the message says the hint, then every difference."""
    for name in wanted:
        if name in found:
            check_dtype(caller, name, found[name], of=argument)
    wrong = [f"{name} should be {describe(a)}, got none" for name, a in wanted.items() if name not in found]
    wrong += [f"{name} should not be there, got {describe(a)}" for name, a in found.items() if name not in wanted]
    both = [(name, describe(a), describe(found[name])) for name, a in wanted.items() if name in found]
    wrong += [f"{name} should be {want}, got {came}" for name, want, came in both if want != came]
    if wrong:
        lines = listed(wrong, "\n  ")
        raise ValueError(f"{caller}: {argument} should hold the arrays of the module.{hint}\n  {lines}")


def renamed(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> str:
    """A question to end a message with, if one renaming of attributes, or else of layers, makes all shapes fit, and no other."""
    for split in (str.partition, str.rpartition):
        came, want = _grouped(found, prefix, split), _grouped(wanted, prefix, split)
        same = {name for name in came.keys() & want.keys() if came[name] == want[name]}
        fits = {old: [new for new in want if new not in same and want[new] == came[old]] for old in came if old not in same}
        sure = {fit[0] for fit in fits.values() if len(fit) == 1}
        if fits and len(came) == len(want) and len(sure) == len(fits):
            names = listed([f"{prefix + old!r} -> {prefix + new!r}" for old, (new,) in fits.items()])
            return f"\nAre they the same arrays under other names, {names}? Then rename the keys of the state_dict."
    return ""


def _grouped(arrays: Mapping[str, Any], prefix: str, split) -> dict[str, dict[str, tuple]]:
    """The shapes of arrays by attribute or layer, and then by the rest of their keys; a cell has no "_l0"."""
    groups: dict[str, dict[str, tuple]] = {}
    for key, a in arrays.items():
        name, dot, rest = split(key.removeprefix(prefix), ".")
        groups.setdefault(name + dot, {})[rest.removesuffix("_l0")] = tuple(a.shape)
    return groups


MOST_LISTED = 50


def listed(names: list[str], between: str = ", ") -> str:
    """Names in a message, which stays readable if they are many or long."""
    short = [name if len(name) < 300 else f"{name[:100]}… ({len(name)} characters)" for name in names[:MOST_LISTED]]
    return between.join([*short, *([f"… {len(names) - MOST_LISTED} more"] if len(names) > MOST_LISTED else [])])


def describe(a) -> str:
    return f"{a.dtype} {tuple(a.shape)}"


SAME_FUNCTION = (
    *("cell", "input_size", "hidden_size", "num_layers", "bidirectional", "bias", "remat", "truncate", "dtype", "param_dtype"),
    *("backend", "dropout", "input_dropout", "recurrent_dropout", "weight_dropout"),
)
"""The options of a stack that weights tell, or that change nothing after `eval()`."""


def refuse_options(caller: str, stack, **allowed: tuple):
    """Raise if a stack has an option that changes what it computes and that the format cannot hold.

    Args:
        allowed: for an option, the values that the format holds besides the default.
    """
    for field in fields(stack):
        option, value = field.name, getattr(stack, field.name)
        if option not in SAME_FUNCTION and value != field.default and value not in allowed.get(option, ()):
            wanted = f"{field.default!r}, the only one that the format holds"
            raise ValueError(f"{caller}: `{option}` should be {wanted}, got {value!r}.")
