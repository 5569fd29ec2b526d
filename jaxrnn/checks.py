"""Checks of arguments: the only place that raises about them. Every message names the argument, the rule and what came.
No computation on arrays may live here, and nothing that other modules would call for its result."""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_symbolic(size) -> bool:
    """Whether a dimension is a symbol of `jax.export`, of which no number is known."""
    return not isinstance(size, int | np.integer)


def concrete(a) -> bool:
    """Whether the values of `a` can be looked at: it is not being traced, nor spread over processes."""
    return not isinstance(a, jax.core.Tracer) and getattr(a, "is_fully_addressable", True)


# Sizes and options -----------------------------------------------------------------------------------------------------


def size(name: str, argument: str, value, *, least: int = 1):
    """`value` is a Python integer, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: `{argument}` should be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: `{argument}` should be at least {least}, got {value}.")


def flag(name: str, argument: str, value):
    """`value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: `{argument}` should be True or False, got {value!r}.")


def rate(name: str, argument: str, value):
    """`value` is a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise TypeError(f"{name}: `{argument}` should be a number, got {value!r}.")
    if not 0 <= value <= 1:  # also False for NaN
        raise ValueError(f"{name}: `{argument}` should be a probability, from 0 to 1, got {value}.")


def check_choice(name: str, argument: str, value, choices: tuple):
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: `{argument}` should be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_proj_size(proj_size, hidden_size: int, name: str = "ProjectedLSTMCell"):
    """The projection is narrower than the cell state."""
    size(name, "proj_size", proj_size)
    if proj_size >= hidden_size:
        raise ValueError(f"{name}: `proj_size` should be below hidden_size={hidden_size}, got {proj_size}.")


def lonely_dropout(name: str, dropout: float, num_layers: int):
    """Warn of dropout between layers where there is one layer only."""
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"{name}: `dropout` acts between layers, so dropout={dropout} with num_layers=1 does nothing.", UserWarning, stacklevel=4
        )


# Arrays ----------------------------------------------------------------------------------------------------------------


def array(name: str, argument: str, value, kind: Any = jnp.floating):
    """`value` is a NumPy or JAX array of the kind."""
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name}: `{argument}` should be an array, got {type(value).__name__}. Pass it through jnp.asarray.")
    if not jnp.issubdtype(value.dtype, kind):
        kinds = {jnp.floating: "a floating-point", jnp.integer: "an integer", jnp.bool_: "a boolean"}
        raise TypeError(f"{name}: `{argument}` should be {kinds[kind]} array, got dtype {value.dtype}.")


def sequence(name: str, argument: str, xs, *, event_ndim: int):
    """`xs` is a floating-point sequence (time, *batch, …)."""
    array(name, argument, xs)
    if xs.ndim < 1 + event_ndim:
        event = "input" if event_ndim == 1 else "*space, channels"
        raise ValueError(f"{name}: `{argument}` should have shape (time, *batch, {event}), got {xs.shape}.")


def input_size(name: str, argument: str, xs, wanted: int, source: str):
    """The last axis of `xs` is what the weights expect."""
    if xs.shape[-1] != wanted:
        raise ValueError(f"{name}: `{argument}` should end in input_size={wanted} ({source}), got shape {xs.shape}.")


def validity(name: str, lengths, mask, reset, time, batch: tuple, hint: str = ""):
    """`lengths`, `mask` and `reset` fit the sequence."""
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: `lengths` and `mask` should not be given together: both say which steps are valid.")
    for argument, value in (("mask", mask), ("reset", reset)):
        if value is not None:
            array(name, argument, value, jnp.bool_)
            if value.shape != (time, *batch):
                shape = f"{(time, *batch)}, the time and batch axes of the input"
                raise ValueError(f"{name}: `{argument}` should have shape {shape}, got {value.shape}.{hint}")
    if lengths is None:
        return
    array(name, "lengths", lengths, jnp.integer)
    if lengths.shape != batch:
        shape = f"{batch}, the batch axes of the input"
        raise ValueError(f"{name}: `lengths` should have shape {shape}, got {lengths.shape}.{hint}")
    if concrete(lengths) and not is_symbolic(time):
        values = np.asarray(lengths)
        wrong = np.argwhere((values < 0) | (values > time))
        if len(wrong):
            row = tuple(int(i) for i in wrong[0])
            where = f" in row {row[0] if len(row) == 1 else row}" if row else ""
            raise ValueError(f"{name}: `lengths` should be from 0 to {time}, the number of steps, got {values[row]}{where}.")


def state(name: str, argument: str, value, like, *, broadcast: bool = False):
    """`value` has the fields and shapes of the state `like`; with `broadcast`, batch axes may be missing."""
    if value is None:
        return
    kind = type(like)
    if not isinstance(value, kind):
        fields = ", ".join(kind._fields)
        raise TypeError(f"{name}: `{argument}` should be a {kind.__name__}({fields}), got {type(value).__name__}.")
    for field, given, wanted in zip(kind._fields, value, like, strict=True):
        array(name, f"{argument}.{field}", given)
        fits = wanted.shape[wanted.ndim - given.ndim :] == given.shape if broadcast else wanted.shape == given.shape
        if not fits:
            raise ValueError(f"{name}: `{argument}.{field}` should have shape {wanted.shape}, got {given.shape}.")
