"""Primitives for errors about arguments. Every message names the argument, the rule and what came. A check with one caller
stands beside its caller; no computation on arrays may live here."""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_symbolic(size) -> bool:
    """Whether a dimension is a symbol of `jax.export`, of which no number is known."""
    return not isinstance(size, int | np.integer)


def concrete(a) -> bool:
    """Whether the values of `a` can be looked at: it is not being traced, nor spread over processes."""
    return not isinstance(a, Tracer) and getattr(a, "is_fully_addressable", True)


def x64() -> bool:
    """Whether 64-bit numbers are on."""
    return jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]  JAX makes its attributes as it runs


def called(value) -> str:
    """What to call an object in a message: by the name that users know its kind by."""
    if value is None or isinstance(value, type):
        return "None" if value is None else f"the class {value.__name__}"
    return "an array" if isinstance(value, jax.Array) else type(value).__name__


def size(name: str, argument: str, value, *, least: int = 1):
    """`value` is a Python integer, at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: `{argument}` should be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"{name}: `{argument}` should be at least {least}, got {value}.")


def flag(name: str, argument: str, value):
    """`value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        hint = (
            "\nFor a policy, write jax.checkpoint(…, policy=…) around the call." if argument == "remat" and callable(value) else ""
        )
        raise TypeError(f"{name}: `{argument}` should be True or False, got {value!r}.{hint}")


def number(name: str, argument: str, value):
    """`value` is a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: `{argument}` should be a number, got {value!r}.")


def rate(name: str, argument: str, value):
    """`value` is a probability."""
    number(name, argument, value)
    if not 0 <= value <= 1:  # also False for NaN
        raise ValueError(f"{name}: `{argument}` should be a probability, from 0 to 1, got {value}.")


def positive(name: str, argument: str, value):
    """`value` is a finite number above 0."""
    number(name, argument, value)
    if not 0 < value < float("inf"):  # also False for NaN
        raise ValueError(f"{name}: `{argument}` should be above 0 and finite, got {value}.")


def choice(name: str, argument: str, value, choices: tuple):
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: `{argument}` should be one of {', '.join(map(repr, choices))}, got {value!r}.")


def floating_dtype(name: str, argument: str, value):
    """`value` is a dtype to compute or store floating-point numbers in."""
    try:
        fits = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        raise TypeError(f"{name}: `{argument}` should be a floating-point dtype, got {value!r}.")
    if jnp.dtype(value).itemsize == 8 and not x64():
        hint = 'Write jax.config.update("jax_enable_x64", True) before anything else, or JAX makes it float32.'
        raise ValueError(f"{name}: `{argument}` should be float32 or smaller while 64-bit numbers are off, got {value!r}.\n{hint}")


def kind(name: str, argument: str, value, wanted: type):
    """`value` is an object of the class `wanted`."""
    if not isinstance(value, wanted):
        made = isinstance(value, type) and issubclass(value, wanted)
        hint = f" Write {value.__name__}(), with brackets." if made else ""
        raise TypeError(f"{name}: `{argument}` should be a {wanted.__name__}, got {called(value)}.{hint}")


def array(name: str, argument: str, value, kind: Any = jnp.floating):
    """`value` is a NumPy or JAX array; of the kind, unless that is None."""
    if not isinstance(value, jax.Array | np.ndarray):
        hint = " One array is wanted." if isinstance(value, tuple) else " Pass it through jnp.asarray."
        hint = " Sequences of different lengths become one array by jaxrnn.padding.pad." if _ragged(value) else hint
        hint = "" if value is None or isinstance(value, type) else hint
        if type(value).__module__.partition(".")[0] == "torch":
            hint = f" Write {argument}.detach().numpy()."
        hint = " Pass its value, `.get_value()`." if hasattr(value, "get_value") else hint
        if type(value).__name__ == "PackedSequence":
            hint = " Unpack it: torch.nn.utils.rnn.pad_packed_sequence gives the padded array and its `lengths`."
        raise TypeError(f"{name}: `{argument}` should be an array, got {called(value)}.{hint}")
    if isinstance(value, np.ma.MaskedArray):
        hint = "\nWrite x.filled(0.0) for it, and mask=~np.ma.getmaskarray(x).any(-1) for its valid steps."
        raise TypeError(f"{name}: `{argument}` should be an array without a mask of NumPy's own, got a {called(value)}.{hint}")
    if kind is not None and not jnp.issubdtype(value.dtype, kind):
        kinds = {jnp.floating: "a floating-point", jnp.integer: "an integer", jnp.bool_: "a boolean"}
        raise TypeError(f"{name}: `{argument}` should be {kinds[kind]} array, got dtype {value.dtype}.")


def _ragged(value) -> bool:
    """Whether `value` is a list of sequences of different lengths."""
    several = value if isinstance(value, list) else []
    return len({len(one) for one in several if isinstance(one, list | tuple) or getattr(one, "ndim", 0)}) > 1


def prng_key(name: str, key):
    """`key` is one key."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{name}: `key` should be a key, got {called(key)}. Write jax.random.key(0).")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(f"{name}: `key` should be a key, got an array of dtype {key.dtype}. Write jax.random.key(0).")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"{name}: `key` should be one key, got an array of shape {key.shape}.")


def event_axes(ndim: int) -> str:
    """The names of the axes of one example at one step, of which there are `ndim`."""
    return {1: "input", 2: "width, channels", 3: "height, width, channels"}.get(ndim, "*space, channels")


def inputs(name: str, argument: str, x, event_ndim: int, layouts: tuple, input_size: int, source: str):
    """`x` has the axes of one example at one step behind those that one of `layouts` names, where "*batch" is any number of
    axes; and its last axis is what the weights expect."""
    array(name, argument, x)
    event, shapes = event_axes(event_ndim), []
    for axes in layouts:
        shapes.append(", ".join((*axes, event)) + ("," if not axes and event_ndim == 1 else ""))
        least = event_ndim + len(axes) - ("*batch" in axes)
        if x.ndim == least or (x.ndim > least and "*batch" in axes):
            break
    else:
        shape = " or, for one sequence, ".join(f"({shape})" for shape in shapes)
        raise ValueError(f"{name}: `{argument}` should have shape {shape}, got {x.shape}.")
    if x.shape[-1] != input_size:
        hint = f"\nOne feature? Write {argument}[..., None]." if input_size == event_ndim == 1 and x.ndim < 3 else ""
        raise ValueError(f"{name}: `{argument}` should end in input_size={input_size} ({source}), got shape {x.shape}.{hint}")


def boolean(name: str, argument: str, value) -> Any:
    """`value` as a boolean array: it is one, or one of 0 and 1 in any dtype of numbers."""
    array(name, argument, value, None)
    if value.dtype == jnp.bool_:
        return value
    if not jnp.issubdtype(value.dtype, jnp.integer) and not jnp.issubdtype(value.dtype, jnp.floating):
        raise TypeError(f"{name}: `{argument}` should be a boolean array, or 0 and 1, got dtype {value.dtype}.")
    if concrete(value):
        values = np.asarray(value)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(f"{name}: `{argument}` should be a boolean array, or 0 and 1, got {wrong[0]}.")
    return value != 0


def at_one_step(name: str, reset, batch: tuple) -> Any:
    """The `reset` of one step, as a boolean array, or None."""
    if reset is None:
        return None
    reset = boolean(name, "reset", reset)
    if reset.shape != batch:
        raise ValueError(f"{name}: `reset` should have shape {batch}, the batch axes of `x`, got {reset.shape}.")
    return reset


def integers(name: str, argument: str, value) -> Any:
    """`value` as an integer array: it is one, an integer, or a list of them."""
    if isinstance(value, list | tuple | int) and not isinstance(value, bool):
        traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))
        try:
            made = jnp.asarray(value) if traced else np.asarray(value)
        except (ValueError, TypeError) as error:
            raise TypeError(f"{name}: `{argument}` should be an array or a list of integers, got {value!r}.") from error
        value = made.astype(np.int32) if made.size == 0 else made
    array(name, argument, value, jnp.integer)
    return value


def validity(
    name: str, lengths, mask, reset, time, batch: tuple, *, x: str = "xs", batch_first: bool = False, parts: int = 1
) -> tuple[Any, Any, Any]:
    """`lengths`, `mask` and `reset` fit the sequence, the argument called `x`, one of as many `parts` of its time. Returned
    are arrays of integers and booleans."""
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: `lengths` and `mask` should not be given together: both say which steps are valid.")
    steps, others = ((*batch, time), (time, *batch))[:: 1 if batch_first else -1]
    flags = []
    for argument, value in (("mask", mask), ("reset", reset)):
        if value is not None:
            value = boolean(name, argument, value)
            if value.shape != steps:
                hint = f"\nIs it laid out as `{x}`?" if value.shape == others else ""
                shape = f"{steps}, the time and batch axes as `{x}` has them"
                raise ValueError(f"{name}: `{argument}` should have shape {shape}, got {value.shape}.{hint}")
        flags.append(value)
    if lengths is None:
        return lengths, *flags
    lengths = integers(name, "lengths", lengths)
    if lengths.shape != batch:
        order = "time first" if batch_first else "batch first"
        swapped = len(batch) == 1 and lengths.shape == (time,)
        there = f"Pass batch_first={not batch_first}." if x == "x" else f"{name} wants (time, batch, …): jnp.swapaxes({x}, 0, 1)."
        hint = f"\nIs `{x}` {order}? {there}" if swapped else ""
        raise ValueError(f"{name}: `lengths` should have shape {batch}, the batch axes of `{x}`, got {lengths.shape}.{hint}")
    if concrete(lengths) and not is_symbolic(time):
        values, time = np.asarray(lengths), parts * time
        wrong = np.argwhere((values < 0) | (values > time))
        if len(wrong):
            row = tuple(int(i) for i in wrong[0])
            where = f" in row {row[0] if len(row) == 1 else row}" if row else ""
            raise ValueError(f"{name}: `lengths` should be from 0 to {time}, the number of steps, got {values[row]}{where}.")
    return lengths, *flags


def frames_to_the_user() -> int:
    """The `stacklevel` of a warning that is to point at the user's line: beyond this package, Flax and generated code."""
    level, frame = 1, sys._getframe(1)
    package = lambda frame: frame.f_globals.get("__name__", "").partition(".")[0]
    while frame.f_back is not None and (package(frame) in PASSED_THROUGH or frame.f_code.co_filename == "<string>"):
        frame, level = frame.f_back, level + 1
    return level


PASSED_THROUGH = ("jaxrnn", "flax", "jaxtyping", "beartype", "contextlib")
"""Packages whose frames lie between a user's line and a check; generated constructors are in "<string>"."""
