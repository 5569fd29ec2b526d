"""How modules are described and called, as in `torch.nn`: cells by their options, `x` batch first or not, or unbatched, states
stacked over layers and directions. A call is checked here, once, in the module's name. Pure functions between that and the nested
tuples, time first, of `layers`; no module may live here."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import checks, layers
from jaxrnn.cells import Cell, LSTMCell, ProjectedLSTMCell, RNNCell, conform
from jaxrnn.cells.lstm_variants import check_proj_size
from jaxrnn.engine import over_devices
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.stack import Stack
from jaxrnn.stack_checks import check_arrays, check_nesting, check_one_direction, check_start
from jaxrnn.typing import Nonlinearity


class Caller(NamedTuple):
    """Who is called, how the axes of `x` lie, and whether a call gives the output alone."""

    name: str
    stack: Stack
    batch_first: bool
    output_only: bool = False


def rnn_cell(name: str, nonlinearity: Nonlinearity) -> Cell:
    """The cell of `torch.nn.RNN`."""
    checks.choice(name, "nonlinearity", nonlinearity, ("tanh", "relu"))
    return RNNCell(nonlinearity=nonlinearity)


def lstm_cell(name: str, hidden_size, proj_size: int) -> Cell:
    """The cell of `torch.nn.LSTM`."""
    checks.size(name, "proj_size", proj_size, least=0)
    if proj_size == 0:
        return LSTMCell()
    for hidden in hidden_size if isinstance(hidden_size, tuple) else (hidden_size,):
        checks.size(name, "hidden_size", hidden)
        check_proj_size(name, proj_size, hidden)
    return ProjectedLSTMCell(proj_size=proj_size)


def call(
    caller: Caller,
    params,
    x,
    h_0=None,
    *,
    initial=None,
    lengths=None,
    mask=None,
    reset=None,
    per_step=None,
    context=None,
    key=None,
    return_states=False,
    time_axis=None,
):
    """Run a stack as a module is called: (output, h_n), or (output, h_n, states) with `return_states`; without h_n if the caller
    is output-only."""
    name, stack = caller[:2]
    checks.flag(name, "return_states", return_states)
    axes = _check_input(name, x, stack, caller.batch_first)
    swap = caller.batch_first and axes > 0
    time_first = (lambda a: jnp.moveaxis(a, axes, 0)) if swap else jnp.asarray
    xs = time_first(x)
    batch = xs.shape[1 : 1 + axes]
    whole = {"return_states": return_states, "remat": stack.remat, "truncate": stack.truncate}
    over_devices.check(name, "x", stack.cell, xs, time_axis, **whole)
    parts = over_devices.parts(time_axis)
    where = (lengths, mask, reset)
    lengths, mask, reset = checks.validity(name, *where, xs.shape[0], batch, x="x", batch_first=swap, parts=parts)
    masked = any(a is not None for a in (lengths, mask, reset))
    check_arrays(name, stack, params, None, initial, xs, batch if masked else ())
    states = unstack(name, stack, params, h_0, xs)
    if isinstance(per_step, dict):
        laid = lambda field, a: _beside(f"{name}: `per_step[{field!r}]`", a, x, axes) if swap else a
        per_step = {field: jax.tree.map(partial(laid, field), tree) for field, tree in per_step.items()}
    conform.check_further_inputs(name, stack.cell, per_step, context, batch, xs.shape[0])
    mask, reset = (None if a is None else time_first(a) for a in (mask, reset))
    output, finals, *every = layers.run(
        stack, params, xs, states, initial=initial, lengths=lengths, mask=mask, reset=reset, per_step=per_step, context=context,
        key=key, return_states=return_states, time_axis=time_axis,
    )  # fmt: skip
    back = (lambda a: jnp.moveaxis(a, 0, axes)) if swap else (lambda a: a)
    output, every = jax.tree.map(back, (output, tuple(every)))
    if caller.output_only:
        return (output, *every) if every else output
    return output, restack(stack, finals), *every


def _beside(argument: str, a, x, axes: int):
    """An array laid out as `x`, batch first, with its time moved to the front. A key for each step has time alone, and stays."""
    if getattr(a, "ndim", 0) <= axes:
        return a
    if a.shape[axes] != x.shape[axes]:
        raise ValueError(f"{argument} should lie as `x` does, with {x.shape[axes]} steps on axis {axes}, got shape {a.shape}.")
    return jnp.moveaxis(a, axes, 0)


def initial_state(caller: Caller, params, batch_shape=(), *, initial=None):
    """Where sequences start that are given no other start, as `h_n` is returned: what was learned, or the cell's own."""
    batch = check_start(f"{caller.name}.initial_state", caller.stack, params, batch_shape, initial)
    return restack(caller.stack, layers.start(caller.stack, params, batch, initial))


def step(caller: Caller, params, x, state=None, *, initial=None, reset=None, per_step=None, context=None):
    """Run one step (*batch, input) of a stack of one direction: (y, state), the state stacked as `h_n`."""
    reset = None if reset is None else checks.boolean(f"{caller.name}.step", "reset", reset)
    arrays = (params, x, state, initial, reset, per_step, context)
    leaves, structure = jax.tree.flatten(arrays)
    kinds = tuple((type(a), getattr(a, "shape", None), getattr(a, "dtype", None)) for a in leaves)
    seen = (caller, structure, kinds, checks.x64())
    if seen not in _CHECKED:  # which takes five times as long as the step
        _check_step(caller, *arrays)
        if len(_CHECKED) >= 1024:
            _CHECKED.clear()
        _CHECKED.add(seen)
    return _step(caller.stack, read_from_outside(caller.stack.cell), params, x, state, initial, reset, per_step, context)


_CHECKED: set = set()
"""What steps were called with and found right: the checks see shapes, dtypes and types of arrays, never their values."""


def _check_step(caller: Caller, params, x, state, initial, reset, per_step, context):
    name, stack = f"{caller.name}.step", caller.stack
    check_one_direction(name, stack)
    _refuse_pair(name, x, "state")
    batch_axes = (("*batch",),) if stack.cell.event_ndim == 1 else (("batch",), ())
    checks.inputs(name, "x", x, stack.cell.event_ndim, batch_axes, stack.input_size, "the module's `input_size`")
    xs, batch = jax.ShapeDtypeStruct((1, *x.shape), x.dtype), x.shape[: x.ndim - stack.cell.event_ndim]
    check_arrays(name, stack, params, None, initial, xs, batch if reset is not None else ())
    checks.at_one_step(name, reset, batch)
    conform.check_further_inputs(name, stack.cell, per_step, context, batch)
    check_states(name, stack, params, state, xs, argument="state")


@partial(jax.jit, static_argnums=(0, 1))
def _step(stack: Stack, outside: tuple, params, x, state, initial, reset, per_step, context):
    y, states = layers.run_step(stack, outside, params, x, _unstacked(stack, state), initial, reset, per_step, context)
    return y, restack(stack, states)


def restack(stack: Stack, states) -> Any:
    """`[layer][direction]` to one array per field, (layers * directions, …); nested still if hidden sizes differ."""
    if len(set(stack.hidden_sizes)) > 1:
        return states
    flat = [state for layer in states for state in layer]
    fields = jax.tree.map(lambda *leaves: jnp.stack(leaves), *flat)
    return fields[0] if len(fields) == 1 else tuple(fields)


def unstack(name: str, stack: Stack, params, h_0, xs) -> Any:
    """The inverse of `restack`, checked for inputs `xs`, time first."""
    check_states(name, stack, params, h_0, xs)
    return _unstacked(stack, h_0)


def _unstacked(stack: Stack, h_0) -> Any:
    if h_0 is None or len(set(stack.hidden_sizes)) > 1:
        return h_0
    kind = stack.cell.State
    fields = (h_0,) if len(kind._fields) == 1 else h_0
    index = lambda layer, direction: layer * stack.num_directions + direction
    pick = lambda k: kind(*(field[k] for field in fields))
    return tuple(tuple(pick(index(i, d)) for d in range(stack.num_directions)) for i in range(stack.num_layers))


def check_states(name: str, stack: Stack, params, h_0, xs, *, argument: str | None = None):
    """`h_0` is as a module returns states, for inputs `xs`, time first; errors call it `argument`, if it has another name."""
    if h_0 is None:
        return
    like = stack.states_like(params, xs.shape[1:-1], xs.dtype)
    if len(set(stack.hidden_sizes)) > 1:
        check_nesting(name, argument or "h_0", h_0, stack)
        for layer, (came, wanted) in enumerate(zip(h_0, like, strict=True)):
            for direction, pair in enumerate(zip(came, wanted, strict=True)):
                conform.check_state(name, f"{argument or 'h_0'}[{layer}][{direction}]", *pair)
        return
    kind, count = type(like[0][0]), stack.num_layers * stack.num_directions
    names = [f"{field}_0" for field in kind._fields]
    if argument:
        names = [argument] if len(names) == 1 else [f"{argument}[{k}]" for k in range(len(names))]
    if len(names) > 1 and not (isinstance(h_0, tuple | list) and len(h_0) == len(names)):
        came = f"{len(h_0)} of them" if isinstance(h_0, tuple | list) else checks.called(h_0)
        hint = ""
        if isinstance(h_0, jax.Array | np.ndarray):
            came = f"one array {h_0.shape}"
            hint = " Lengths and masks go by name." if not jnp.issubdtype(h_0.dtype, jnp.floating) else ""
        fields = ", ".join(f"{field}_0" for field in kind._fields)
        what = f"`{argument}`" if argument else "the initial state"
        raise TypeError(f"{name}: {what} should be a tuple ({fields}), got {came}.{hint}")
    given: Any = (h_0,) if len(names) == 1 else h_0
    for shown, value, wanted in zip(names, given, like[0][0], strict=True):
        conform.check_kind(name, shown, value, wanted)
        if value.shape != (count, *wanted.shape):
            layout = "(num_layers * num_directions, *batch, hidden), whatever `batch_first` says"
            raise ValueError(f"{name}: `{shown}` should have shape {(count, *wanted.shape)}, {layout}, got {value.shape}.")


def _refuse_pair(name: str, x, state: str):
    """`x` comes alone, not with the resets, as a scan by hand reads them."""
    if type(x) is tuple:
        raise TypeError(f"{name}: `x` should be one array, got tuple. Resets are passed as reset=…, a state as {state}=….")


def _check_input(name: str, x, stack: Stack, batch_first: bool) -> int:
    """`x` fits the module; how many batch axes it has. Any number, but one at most where each step has axes of space: one of those
    too many would be taken for one of the batch."""
    _refuse_pair(name, x, "h_0")
    event = stack.cell.event_ndim
    several = (("*batch", "time") if batch_first else ("time", "*batch")), ("time",)
    one = (("batch", "time") if batch_first else ("time", "batch")), ("time",)
    layouts = several if event == 1 else one
    checks.inputs(name, "x", x, event, layouts, stack.input_size, "the module's `input_size`")
    return x.ndim - event - 1


def summary(stack: Stack, h_n):
    """The last layer's `h` after each direction's last valid step: forward, then backward, side by side."""
    h = h_n[-1] if len(set(stack.hidden_sizes)) > 1 else (h_n[0] if isinstance(h_n, tuple) else h_n)[-stack.num_directions :]
    return jnp.concatenate([getattr(a, "h", a) for a in h], axis=-1)


def summary_size(stack: Stack) -> int:
    """The width of `summary`."""
    return stack.num_directions * stack.cell.output_size(stack.hidden_sizes[-1])
