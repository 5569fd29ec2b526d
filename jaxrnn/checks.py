"""Checks of arguments: the only place that raises about them. Every message names the argument, the rule and what came.
No computation on arrays may live here, and nothing that other modules would call for its result."""

import warnings
from difflib import get_close_matches
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


def _number(name: str, argument: str, value):
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: `{argument}` should be a number, got {value!r}.")


def rate(name: str, argument: str, value):
    """`value` is a probability."""
    _number(name, argument, value)
    if not 0 <= value <= 1:  # also False for NaN
        raise ValueError(f"{name}: `{argument}` should be a probability, from 0 to 1, got {value}.")


def positive(name: str, argument: str, value):
    """`value` is a finite number above 0."""
    _number(name, argument, value)
    if not 0 < value < float("inf"):  # also False for NaN
        raise ValueError(f"{name}: `{argument}` should be above 0 and finite, got {value}.")


def floating_dtype(name: str, argument: str, value):
    """`value` is a dtype to compute or store floating-point numbers in."""
    try:
        fits = value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        raise TypeError(f"{name}: `{argument}` should be a floating-point dtype, got {value!r}.")


def check_choice(name: str, argument: str, value, choices: tuple):
    """`value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: `{argument}` should be one of {', '.join(map(repr, choices))}, got {value!r}.")


def check_proj_size(proj_size, hidden_size: int, name: str = "ProjectedLSTMCell"):
    """The projection is narrower than the cell state."""
    size(name, "proj_size", proj_size)
    if proj_size >= hidden_size:
        raise ValueError(f"{name}: `proj_size` should be below hidden_size={hidden_size}, got {proj_size}.")


def gate_names(named, gates: tuple):
    """What is named of a `PerGate` is among the gates of the cell."""
    for gate in named:
        if gate not in gates:
            raise ValueError(f"PerGate: `named` should name gates of the cell, {', '.join(map(repr, gates))}, got {gate!r}.")


def initializer(name: str, argument: str, value, per_gate: type):
    """`value` can be called to draw an array, or is a `PerGate`."""
    if isinstance(value, type):
        hint = f"Write {value.__name__}(…), with brackets."
        raise TypeError(f"{name}: `{argument}` should be a function of (key, shape, dtype), got the class {value.__name__}. {hint}")
    if not callable(value) and not isinstance(value, per_gate):
        raise TypeError(f"{name}: `{argument}` should be a function of (key, shape, dtype) or a PerGate, got {value!r}.")


def drawn(gate: str, array, shape: tuple):
    """What an initialiser gave is an array of the shape asked for."""
    if getattr(array, "shape", None) != shape:
        came = f"shape {array.shape}" if hasattr(array, "shape") else f"{type(array).__name__}"
        hint = "\nDoes the initialiser want brackets, as in jax.nn.initializers.orthogonal()?" if callable(array) else ""
        raise ValueError(f"init: the initialiser of gate {gate!r} should return an array of shape {shape}, got {came}.{hint}")


def prng_key(name: str, key):
    """`key` is one key."""
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{name}: `key` should be a key, got {type(key).__name__}. Write jax.random.key(0).")
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed and key.dtype != jnp.uint32:
        raise TypeError(f"{name}: `key` should be a key, got an array of dtype {key.dtype}. Write jax.random.key(0).")
    if key.ndim != (0 if typed else 1):
        raise ValueError(f"{name}: `key` should be one key, got an array of shape {key.shape}.")


def cell_init(name: str, key, input_size, hidden_size, bias, dtype):
    """The arguments of `cell.init`."""
    prng_key(f"{name}.init", key)
    size(name, "input_size", input_size)
    size(name, "hidden_size", hidden_size)
    flag(f"{name}.init", "bias", bias)
    floating_dtype(f"{name}.init", "dtype", dtype)


def new_state(cell, before, after):
    """A cell's equations make a state like the one before."""
    name, should = type(cell).__name__, type(before).__name__
    if type(after) is not type(before):
        got = "an array" if isinstance(after, jax.Array) else type(after).__name__
        raise TypeError(f"{name}: the new state should be a {should}({', '.join(before._fields)}), got {got}.")
    for field, old, new in zip(before._fields, before, after, strict=True):
        if jnp.shape(new) != old.shape:
            raise ValueError(f"{name}: `{field}` of the new state should have shape {old.shape}, got {jnp.shape(new)}.")
        if jnp.result_type(new) != old.dtype:
            raise TypeError(f"{name}: `{field}` of the new state should be {old.dtype}, as before, got {jnp.result_type(new)}.")


def nothing_traced_from_outside(cell, **consts):
    """A gated cell's equations read their arguments alone: of anything else, the engine's derivative knows nothing."""
    for method, values in consts.items():
        if any(isinstance(value, jax.core.Tracer) for value in values):
            raise TypeError(
                f"{type(cell).__name__}: `{method}` should compute with its arguments and constants alone, got a value from "
                "outside that is being transformed (by jax.grad, jax.jit, …). Make it one of the parameters."
            )


def gates(cell):
    """A cell says what its gates are called."""
    if not isinstance(getattr(cell, "gates", None), tuple):
        raise TypeError(f"{type(cell).__name__} should define `gates`, a tuple of names, got {getattr(cell, 'gates', None)!r}.")


def chrono(longest):
    """The longest dependency leaves room for a range of time constants."""
    size("chrono", "longest", longest, least=3)


def lonely_dropout(name: str, dropout: float, num_layers: int):
    """Warn of dropout between layers where there is one layer only."""
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            f"{name}: `dropout` acts between layers, so dropout={dropout} with num_layers=1 does nothing.",
            UserWarning,
            stacklevel=4,
        )


def one_direction(name: str, bidirectional: bool):
    """A stack that runs step by step has one direction."""
    if bidirectional:
        raise ValueError(
            f"{name}: `bidirectional` should be False to run step by step, got True.\n"
            "The backward direction starts at the end of the sequence: call the module on the whole of it."
        )


def kind(name: str, argument: str, value, wanted: type):
    """`value` is an object of the class `wanted`."""
    if not isinstance(value, wanted):
        made = isinstance(value, type) and issubclass(value, wanted)
        hint = f" Write {value.__name__}(), with brackets." if made else ""
        came = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: `{argument}` should be a {wanted.__name__}, got {came}.{hint}")


def arguments(name: str, given, known: tuple):
    """Every keyword that was given is known."""
    for argument in given:
        if argument not in known:
            near = get_close_matches(argument, known, n=1)
            hint = f"\nDid you mean `{near[0]}`?" if near else ""
            raise TypeError(f"{name}: arguments should be among {', '.join(known)}, got `{argument}`.{hint}")


def stack(s, name: str):
    """The options of a `Stack`, told to the caller `name`."""
    size(name, "input_size", s.input_size)
    size(name, "num_layers", s.num_layers)
    if isinstance(s.hidden_size, list):
        raise TypeError(f"{name}: `hidden_size` should be an integer or a tuple of them, got {s.hidden_size}.")
    for hidden in s.hidden_size if isinstance(s.hidden_size, tuple) else (s.hidden_size,):
        size(name, "hidden_size", hidden)
    if isinstance(s.hidden_size, tuple) and len(s.hidden_size) != s.num_layers:
        raise ValueError(f"{name}: `hidden_size` should have one entry for each of num_layers={s.num_layers}, got {s.hidden_size}.")
    for argument in ("bidirectional", "bias", "learn_initial_state", "remat"):
        flag(name, argument, getattr(s, argument))
    for argument in ("dropout", "input_dropout", "recurrent_dropout", "zoneout", "weight_dropout"):
        rate(name, argument, getattr(s, argument))
    lonely_dropout(name, s.dropout, s.num_layers)
    check_choice(name, "merge", s.merge, ("concat", "sum", "mean", "none"))
    check_choice(name, "connection", s.connection, ("none", "residual", "skip"))
    if s.truncate is not None:
        size(name, "truncate", s.truncate)
    if s.dtype is not None:
        floating_dtype(name, "dtype", s.dtype)
    floating_dtype(name, "param_dtype", s.param_dtype)
    if s.connection == "residual" and len(set(s.layer_output_sizes)) > 1:
        sizes = s.layer_output_sizes
        raise ValueError(f"{name}: `connection`='residual' should join layers of one output size, got output sizes {sizes}.")


def last_step_head(name: str, merge: str, connection: str):
    """The states after the last valid step are the output there, which a linear head can read."""
    for argument, value, plain in (("merge", merge, "concat"), ("connection", connection, "none")):
        if value != plain:
            raise ValueError(
                f"{name}: `{argument}` should be {plain!r}, since the head reads the last layer's states, got {value!r}.\n"
                f"Put an nnx.Linear on the output of a module with {argument}={value!r} instead."
            )


def cell_and_params(name: str, cell, wanted: type, params):
    """`cell` is a cell, and `params` are its parameters."""
    if isinstance(params, wanted):
        raise TypeError(f"{name}: `cell` should come first and `params` second, got {type(cell).__name__} and a cell.")
    kind(name, "cell", cell, wanted)
    try:
        hash(cell)
    except TypeError as error:
        raise TypeError(f"{name}: `cell` should be hashable, and each of its fields: {error}.") from None
    if not hasattr(params, "w_ih"):
        raise TypeError(f"{name}: `params` should come from `cell.init`, got {type(params).__name__}.")
    gates = params.w_ih.shape[-2]
    if gates != len(cell.gates):
        wanted = f"{len(cell.gates)} gates for a {type(cell).__name__} ({', '.join(cell.gates)})"
        raise ValueError(f"{name}: `params` should have {wanted}, got {gates}.")


def cell_step(cell, wanted: type, params, x):
    """The arguments of `cell.step`, but for its state."""
    name = f"{type(cell).__name__}.step"
    cell_and_params(name, cell, wanted, params)
    array(name, "x", x)
    if x.ndim < cell.event_ndim:
        raise ValueError(f"{name}: `x` should have shape (*batch, {_event(cell.event_ndim)}), got {x.shape}.")
    input_size(name, "x", x, params.w_ih.shape[-3], "the third axis from the end of `params.w_ih`")


def per_step_noise(name: str, h_scale, zoneout, zeros, time):
    """`h_scale` and `zoneout` of `unroll` fit the state `zeros`."""
    if h_scale is not None:
        array(name, "h_scale", h_scale)
        if h_scale.shape != zeros.h.shape:
            raise ValueError(f"{name}: `h_scale` should have shape {zeros.h.shape}, that of `h`, got {h_scale.shape}.")
    if zoneout is None:
        return
    kind(name, "zoneout", zoneout, type(zeros))
    for field, value, like in zip(zeros._fields, zoneout, zeros, strict=True):
        argument = f"zoneout.{field}"
        if isinstance(value, float):
            rate(name, argument, value)
        elif value is not None:
            array(name, argument, value, jnp.bool_)
            if value.shape != (time, *like.shape):
                raise ValueError(f"{name}: `{argument}` should have shape {(time, *like.shape)}, got {value.shape}.")


def unroll_options(name: str, *, truncate, dtype, time, **flags):
    """The options of `unroll` that are no arrays."""
    for argument, value in flags.items():
        flag(name, argument, value)
    if truncate is not None:
        size(name, "truncate", truncate)
        if is_symbolic(time):
            raise ValueError(f"{name}: `truncate` should come with a known number of steps, got time={time}.")
    if dtype is not None:
        floating_dtype(name, "dtype", dtype)


def _event(ndim: int) -> str:
    """The axes of one example at one step."""
    return {1: "input", 2: "width, channels", 3: "height, width, channels"}.get(ndim, "*space, channels")


# Arrays ----------------------------------------------------------------------------------------------------------------


def array(name: str, argument: str, value, kind: Any = jnp.floating):
    """`value` is a NumPy or JAX array of the kind."""
    if not isinstance(value, jax.Array | np.ndarray):
        hint = " One array is wanted." if isinstance(value, tuple) else " Pass it through jnp.asarray."
        raise TypeError(f"{name}: `{argument}` should be an array, got {type(value).__name__}.{hint}")
    if not jnp.issubdtype(value.dtype, kind):
        kinds = {jnp.floating: "a floating-point", jnp.integer: "an integer", jnp.bool_: "a boolean"}
        raise TypeError(f"{name}: `{argument}` should be {kinds[kind]} array, got dtype {value.dtype}.")


def sequence(name: str, argument: str, xs, *, event_ndim: int):
    """`xs` is a floating-point sequence (time, *batch, …)."""
    array(name, argument, xs)
    if xs.ndim < 1 + event_ndim:
        raise ValueError(f"{name}: `{argument}` should have shape (time, *batch, {_event(event_ndim)}), got {xs.shape}.")


def input_size(name: str, argument: str, xs, wanted: int, source: str):
    """The last axis of `xs` is what the weights expect."""
    if xs.shape[-1] != wanted:
        raise ValueError(f"{name}: `{argument}` should end in input_size={wanted} ({source}), got shape {xs.shape}.")


def validity(name: str, lengths, mask, reset, time, batch: tuple, *, x: str = "xs", batch_first: bool = False):
    """`lengths`, `mask` and `reset` fit the sequence, the argument called `x`."""
    if lengths is not None and mask is not None:
        raise ValueError(f"{name}: `lengths` and `mask` should not be given together: both say which steps are valid.")
    steps = (*batch, time) if batch_first else (time, *batch)
    for argument, value in (("mask", mask), ("reset", reset)):
        if value is not None:
            array(name, argument, value, jnp.bool_)
            if value.shape != steps:
                hint = f"\nIs it laid out as `{x}`?" if value.shape == steps[::-1] else ""
                shape = f"{steps}, the time and batch axes as `{x}` has them"
                raise ValueError(f"{name}: `{argument}` should have shape {shape}, got {value.shape}.{hint}")
    if lengths is None:
        return
    array(name, "lengths", lengths, jnp.integer)
    if lengths.shape != batch:
        order = "time first" if batch_first else "batch first"
        swapped = len(batch) == 1 and lengths.shape == (time,)
        there = f"Pass batch_first={not batch_first}." if x == "x" else f"{name} wants (time, batch, …): jnp.swapaxes({x}, 0, 1)."
        hint = f"\nIs `{x}` {order}? {there}" if swapped else ""
        raise ValueError(f"{name}: `lengths` should have shape {batch}, the batch axes of `{x}`, got {lengths.shape}.{hint}")
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


def nesting(name: str, argument: str, value, num_layers: int, num_directions: int):
    """`value` is nested `[layer][direction]`."""
    if value is None:
        return
    wanted = f"nested [layer][direction], {num_layers} x {num_directions} of them"
    if not isinstance(value, tuple | list) or not all(isinstance(layer, tuple | list) for layer in value):
        raise TypeError(f"{name}: `{argument}` should be {wanted}, got {type(value).__name__}.")
    if [len(layer) for layer in value] != [num_directions] * num_layers:
        came = " + ".join(str(len(layer)) for layer in value)
        raise ValueError(f"{name}: `{argument}` should be {wanted}, got {len(value)} layers with {came} directions.")


# Modules ---------------------------------------------------------------------------------------------------------------


def module_input(name: str, x, stack, batch_first: bool) -> bool:
    """`x` fits the module; whether it has a batch axis."""
    array(name, "x", x)
    rank, event = stack.cell.event_ndim + 1, _event(stack.cell.event_ndim)
    if x.ndim not in (rank, rank + 1):
        batched = f"(batch, time, {event})" if batch_first else f"(time, batch, {event})"
        raise ValueError(f"{name}: `x` should have shape {batched} or, for one sequence, (time, {event}), got {x.shape}.")
    input_size(name, "x", x, stack.input_size, "the module's `input_size`")
    return x.ndim == rank + 1


def step_input(name: str, x, stack):
    """`x` is the input of one step."""
    array(name, "x", x)
    event = _event(stack.cell.event_ndim)
    if x.ndim not in (stack.cell.event_ndim, stack.cell.event_ndim + 1):
        one = f"({event},)" if event == "input" else f"({event})"
        raise ValueError(f"{name}: `x` should have shape (batch, {event}) or {one}, one step, got {x.shape}.")
    input_size(name, "x", x, stack.input_size, "the module's `input_size`")


def stacked_states(name: str, h_0, like) -> tuple:
    """`h_0` is one array per field of the state, stacked over layers and directions; as a tuple of them."""
    kind, count = type(like[0][0]), len(like) * len(like[0])
    names = [f"{field}_0" for field in kind._fields]
    if len(names) == 1:
        fields = (h_0,)
    elif isinstance(h_0, tuple | list) and len(h_0) == len(names):
        fields = tuple(h_0)
    else:
        came = f"{len(h_0)} of them" if isinstance(h_0, tuple | list) else type(h_0).__name__
        hint = ""
        if isinstance(h_0, jax.Array | np.ndarray):
            came = f"one array {h_0.shape}"
            hint = " Lengths and masks go by name." if not jnp.issubdtype(h_0.dtype, jnp.floating) else ""
        raise TypeError(f"{name}: the initial state should be a tuple ({', '.join(names)}), got {came}.{hint}")
    for argument, value, wanted in zip(names, fields, like[0][0], strict=True):
        array(name, argument, value)
        if value.shape != (count, *wanted.shape):
            layout = "(num_layers * num_directions, *batch, hidden), whatever `batch_first` says"
            raise ValueError(f"{name}: `{argument}` should have shape {(count, *wanted.shape)}, {layout}, got {value.shape}.")
    return fields


def nested_states(name: str, h_0, like):
    """`h_0` has the nesting `[layer][direction]`, as it must where hidden sizes differ."""
    nesting(name, "h_0", h_0, len(like), len(like[0]))
    for layer, (given, wanted) in enumerate(zip(h_0, like, strict=True)):
        for direction, pair in enumerate(zip(given, wanted, strict=True)):
            state(name, f"h_0[{layer}][{direction}]", *pair)
    return h_0


def rngs(name: str, value, wanted: type, *, random: bool):
    """`value` is an `nnx.Rngs`, with the streams that are drawn from."""
    if not isinstance(value, wanted):
        came = None if value is None else type(value).__name__
        raise TypeError(f"{name}: `rngs` should be an nnx.Rngs, got {came}. Write rngs=nnx.Rngs(0).")
    for stream in ("params", "dropout") if random else ("params",):
        if not hasattr(value, stream):
            raise ValueError(f"{name}: `rngs` should have a stream {stream!r} or 'default', got streams {sorted(value)}.")


def dropout_rng(name: str, given: bool):
    """There is a key to draw from."""
    if not given:
        raise ValueError(
            f"{name}: `rngs` should hold a key for 'dropout' when deterministic=False, got none.\n"
            "Write apply(variables, x, deterministic=False, rngs={'dropout': key})."
        )
