"""Checks of a stack's options and of the nested arrays that it is called with, for the function or module that the user called."""

import warnings
from typing import Any

import jax
import numpy as np

from jaxrnn import checks
from jaxrnn.cells import conform
from jaxrnn.cells.base import Cell
from jaxrnn.engine.strategies import BACKENDS


def check_options(name: str, s):
    """The options of a `Stack`."""
    checks.kind(name, "cell", s.cell, Cell)
    conform.check_hashable(name, s.cell)
    checks.size(name, "input_size", s.input_size)
    checks.size(name, "num_layers", s.num_layers)
    if isinstance(s.hidden_size, list):
        raise TypeError(f"{name}: `hidden_size` should be an integer or a tuple of them, got {s.hidden_size}.")
    for hidden in s.hidden_size if isinstance(s.hidden_size, tuple) else (s.hidden_size,):
        checks.size(name, "hidden_size", hidden)
    if isinstance(s.hidden_size, tuple) and len(s.hidden_size) != s.num_layers:
        raise ValueError(f"{name}: `hidden_size` should have one entry for each of num_layers={s.num_layers}, got {s.hidden_size}.")
    for argument in ("bidirectional", "bias", "residual", "skip_connections", "learn_initial_state", "remat"):
        checks.flag(name, argument, getattr(s, argument))
    for argument in ("dropout", "input_dropout", "recurrent_dropout", "zoneout", "weight_dropout"):
        checks.rate(name, argument, getattr(s, argument))
    for argument in ("recurrent_dropout", "weight_dropout"):
        if getattr(s, argument) > 0 and not s.cell.recurrent_product:
            kind = type(s.cell).__name__
            raise ValueError(
                f"{name}: `{argument}` should be 0 for a {kind}, which has no product of state and weights for it to act on, got "
                f"{getattr(s, argument)}.\nOptions that act here: dropout, input_dropout, zoneout."
            )
    if s.dropout > 0 and s.num_layers == 1:
        warnings.warn(
            f"{name}: `dropout` acts between layers, so dropout={s.dropout} with num_layers=1 does nothing.",
            UserWarning,
            stacklevel=checks.frames_to_the_user(),
        )
    checks.choice(name, "merge", s.merge, ("concat", "sum", "mean", "none"))
    if s.truncate is not None:
        checks.size(name, "truncate", s.truncate)
    if s.dtype is not None:
        checks.floating_dtype(name, "dtype", s.dtype)
    checks.floating_dtype(name, "param_dtype", s.param_dtype)
    checks.choice(name, "backend", s.backend, tuple(BACKENDS))
    if s.residual and s.skip_connections:
        raise ValueError(f"{name}: `residual` and `skip_connections` should not both be True: a layer has one or the other.")
    if s.residual and len(set(s.layer_output_sizes)) > 1:
        sizes = s.layer_output_sizes
        raise ValueError(f"{name}: `residual` should join layers of one output size, got output sizes {sizes}.")


def check_one_direction(name: str, stack):
    """A stack that runs step by step has one direction."""
    if stack.bidirectional:
        raise ValueError(
            f"{name}: `bidirectional` should be False to run step by step, got True.\n"
            "The backward direction starts at the end of the sequence: call the module on the whole of it."
        )


def check_arrays(name: str, stack, params, states, initial, xs, batch: tuple = ()):
    """Parameters and states have the nesting `[layer][direction]` and fit the stack and `xs`, time first; and with `batch`, the
    batch axes that masks or resets act on, fields of the states begin with them."""
    for argument, value in (("params", params), ("states", states), ("initial", initial)):
        check_nesting(name, argument, value, stack)
    for layer, layer_params in enumerate(params):
        for direction, cell_params in enumerate(layer_params):
            where = f"[{layer}][{direction}]"
            conform.check_params(name, stack.cell, cell_params, f"params{where}")
            input_size = stack.layer_input_sizes[layer]
            if stack.cell.input_size(cell_params) != input_size:
                came = cell_params.w_ih.shape
                raise ValueError(
                    f"{name}: `params{where}.w_ih` should have input_size={input_size} third from the end, got {came}."
                )
            x = jax.ShapeDtypeStruct((*xs.shape[1:-1], input_size), xs.dtype)
            like = conform.state_like(stack.cell, cell_params, x)
            if batch:
                conform.check_batch_axes(name, like, batch)
            for argument, value, broadcast in (("states", states, False), ("initial", initial, True)):
                if value is not None:
                    conform.check_state(name, f"{argument}{where}", value[layer][direction], like, broadcast=broadcast)


def check_start(name: str, stack, params, batch_shape, initial) -> tuple[int, ...]:
    """The arguments of `initial_state`; the shape as a tuple."""
    batch: Any = (batch_shape,) if isinstance(batch_shape, int | np.integer) else batch_shape
    if not isinstance(batch, tuple | list):
        hint = "\nOf an input x at one step it is x.shape[:-1]."
        raise TypeError(f"{name}: `batch_shape` should be a tuple of integers, got {checks.called(batch_shape)}.{hint}")
    for size in batch:
        if not jax.export.is_symbolic_dim(size):
            checks.size(name, "batch_shape", size, least=0)
    space = stack.cell.event_ndim - 1
    if len(batch) < space:
        axes = checks.event_axes(space + 1).rsplit(", ", 1)[0]
        kind = type(stack.cell).__name__
        raise ValueError(f"{name}: `batch_shape` should end in the axes of space, {axes}, of a {kind}, got {tuple(batch)}.")
    check_arrays(name, stack, params, None, initial, jax.ShapeDtypeStruct((0, *batch, stack.input_size), stack.param_dtype))
    return tuple(batch)


def check_nesting(name: str, argument: str, value, stack):
    """`value` is nested `[layer][direction]`."""
    if value is None:
        return
    layers, directions = stack.num_layers, stack.num_directions
    wanted = f"nested [layer][direction], {layers} x {directions} of them"
    if not isinstance(value, tuple | list) or not all(isinstance(layer, tuple | list) for layer in value):
        raise TypeError(f"{name}: `{argument}` should be {wanted}, got {checks.called(value)}.")
    if [len(layer) for layer in value] != [directions] * layers:
        came = " + ".join(str(len(layer)) for layer in value)
        raise ValueError(f"{name}: `{argument}` should be {wanted}, got {len(value)} layers with {came} directions.")
