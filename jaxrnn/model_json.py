"""Models of this package as JSON, their class and its arguments, and back. No array may live here."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import checks
from jaxrnn.cells import CELLS, Cell, ProjectedLSTMCell, RNNCell
from jaxrnn.models import GRUModel, LSTMModel, RNNModel, SequenceModel
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent
from jaxrnn.stack import Stack
from jaxrnn.text import CharModel

MODELS = {f"jaxrnn.{kind.__name__}": kind for kind in (RNN, LSTM, GRU, Recurrent)}
MODELS |= {f"jaxrnn.models.{kind.__name__}": kind for kind in (RNNModel, LSTMModel, GRUModel, SequenceModel)}
MODELS |= {"jaxrnn.text.CharModel": CharModel}
DTYPES = ("dtype", "param_dtype")


def describe(model: nnx.Module) -> dict[str, Any]:
    """The class of a model and the arguments that make it again, as JSON can hold them.

    Initialisers are left out: they say nothing of a model whose arrays are kept.

    Args:
        model: of a class of `jaxrnn`, `jaxrnn.models` or `jaxrnn.text`, with a cell of `jaxrnn.cells`.

    Raises:
        TypeError: the class of the model, or that of its cell, is none of these.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn.models import GRUModel
        >>> describe(GRUModel(3, 16, 2, num_layers=2, rngs=nnx.Rngs(0)))["arguments"]
        {'input_size': 3, 'hidden_size': 16, 'num_layers': 2, 'output_size': 2}
    """
    name = next((name for name, kind in MODELS.items() if kind is type(model)), None)
    if name is None:
        raise TypeError(f"describe: `model` should be of a class among {', '.join(MODELS)}, got a {type(model).__name__}.")
    return {"class": name, "arguments": _json("arguments", _arguments(model))}


def build(description: Mapping[str, Any]) -> nnx.Module:
    """The model that `describe` described, its arrays drawn from seed 0.

    Raises:
        ValueError: the description is not one of `describe`, or is one of another version.

    Example:
        >>> from flax import nnx
        >>> from jaxrnn.models import GRUModel
        >>> build(describe(GRUModel(3, 16, 2, num_layers=2, rngs=nnx.Rngs(0))))
        GRUModel(
          (rnn): GRU(3, 16, num_layers=2)
          (fc): Linear(16, 2)
        )
    """
    kind, arguments = _entry(description, "model", MODELS)
    if "cell" in arguments:
        arguments["cell"] = _made(*_entry(arguments["cell"], "cell", {cell.__name__: cell for cell in CELLS.values()}))
    return _made(kind, arguments, rngs=nnx.Rngs(0))


# From a model ---------------------------------------------------------------------------------------------------------------


def _arguments(model) -> dict[str, Any]:
    if isinstance(model, CharModel):
        recurrent = model.rnn
        layers = _of_sequence_model(recurrent) if isinstance(recurrent, SequenceModel) else _of_recurrent(recurrent)
        kept = {"cell": layers["cell"], "hidden_size": layers["hidden_size"], "num_layers": layers["num_layers"]}
        return {"symbols": model.symbols, "embed_size": model.embed.features, "blocks": model.blocks, **kept}
    if isinstance(model, SequenceModel):
        return _of_sequence_model(model)
    if isinstance(model, Recurrent):
        return _of_module(model)
    return _of_module(model.rnn) | {"output_size": model.fc.out_features}


def _of_sequence_model(model: SequenceModel) -> dict[str, Any]:
    block = model.blocks[0]
    arguments = _of_recurrent(block.rnn) | {"input_size": model.encoder.in_features, "output_size": model.head.out_features}
    return arguments | {"num_layers": len(model.blocks), "last": model.last, "dropout": float(block.dropout.rate)}


def _of_module(module: Recurrent) -> dict[str, Any]:
    """Of RNN, LSTM, GRU, whose cell follows from the class and an argument; or of `Recurrent`."""
    arguments, cell = _of_recurrent(module), module.stack.cell
    if type(module) is Recurrent:
        return arguments
    del arguments["cell"]
    of_cell = {RNNCell: ("nonlinearity",), ProjectedLSTMCell: ("proj_size",)}.get(type(cell), ())
    return arguments | {name: getattr(cell, name) for name in of_cell if getattr(cell, name) != "tanh"}


def _of_recurrent(module: Recurrent) -> dict[str, Any]:
    stack = module.stack
    options = {f.name: getattr(stack, f.name) for f in fields(Stack)[4:] if getattr(stack, f.name) != f.default}
    options |= {} if module.batch_first else {"batch_first": False}
    options |= {"output_only": True} if module.output_only else {}
    sizes = {"input_size": stack.input_size, "hidden_size": stack.hidden_size, "num_layers": stack.num_layers}
    return {"cell": _cell(stack.cell), **sizes, **options}


def _cell(cell: Cell) -> dict[str, Any]:
    if type(cell) not in CELLS.values():
        raise TypeError(f"describe: `model` should have a cell of jaxrnn.cells, got a {type(cell).__name__}.")
    values = {f.name: getattr(cell, f.name) for f in fields(cell) if not f.name.endswith("_init")}
    defaults = {f.name: f.default for f in fields(cell)}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return {"class": type(cell).__name__, "arguments": changed}


def _json(name: str, value: Any) -> Any:
    if name in DTYPES:
        return None if value is None else jnp.dtype(value).name
    if isinstance(value, dict):
        return {key: _json(key, entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return [_json(name, entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


# And back -------------------------------------------------------------------------------------------------------------------


def _entry(description, what: str, known: Mapping[str, type]) -> tuple[type, dict[str, Any]]:
    fits = isinstance(description, Mapping) and isinstance(description.get("arguments"), Mapping)
    if not fits or description.get("class") not in known:
        came = description.get("class") if fits else checks.called(description)
        raise ValueError(f"build: `description` should name a {what} among {', '.join(known)}, and its arguments, got {came!r}.")
    return known[description["class"]], dict(description["arguments"])


def _made(kind: type, arguments: dict[str, Any], **others) -> Any:
    try:
        return kind(**{name: _value(name, value) for name, value in arguments.items()}, **others)
    except (TypeError, ValueError) as error:
        raise ValueError(f"build: `description` should fit the constructor of {kind.__name__}, which says:\n{error}") from error


def _value(name: str, value: Any) -> Any:
    if name in DTYPES and isinstance(value, str):
        return jnp.dtype(value)
    return tuple(value) if isinstance(value, list) else value
