"""Whether parameters, states and further inputs conform to a cell: what is checked once, where the user calls. Every message names
the argument, the rule and what came. Nothing is computed here but shapes."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import lru_cache, partial
from inspect import Parameter, signature
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import zeros

from jaxrnn import checks
from jaxrnn._arrays import is_differentiable, is_real

GATE_FIELDS = ("w_ih", "w_hh", "b_ih", "b_hh")
"""The first fields of all parameters."""


def check_cell(name: str, cell, wanted: type, params):
    """`cell` is a cell, and can be a static argument of `jax.jit`."""
    if isinstance(params, wanted):
        raise TypeError(f"{name}: `cell` should come first and `params` second, got {type(cell).__name__} and a cell.")
    checks.kind(name, "cell", cell, wanted)
    check_hashable(name, cell)


def check_hashable(name: str, cell):
    """`cell` can be a static argument: its fields are numbers, names and functions, its arrays are parameters."""
    try:
        hash(cell)
    except TypeError as error:
        hint = "\nArrays belong in the parameters that `init` makes."
        raise TypeError(f"{name}: `cell` should be hashable, and each of its fields: {error}.{hint}") from None


# Parameters --------------------------------------------------------------------------------------------------------------


def check_params(name: str, cell, params, argument: str = "params"):
    """`params` have the fields and shapes that `cell.init` gives them; either bias may be None."""
    w_ih = getattr(params, "w_ih", None)
    if w_ih is None or getattr(params, "_fields", ())[:4] != GATE_FIELDS:
        hint = f"\nA NamedTuple is wanted, whose first fields are {', '.join(GATE_FIELDS)}."
        raise TypeError(f"{name}: `{argument}` should come from `cell.init`, got {checks.called(params)}.{hint}")
    for path, leaf in _leaves(params, argument):
        checks.array(name, path, leaf, None)
    kind = type(cell).__name__
    if not is_differentiable(w_ih):
        raise TypeError(f"{name}: `{argument}.w_ih` should be of floating-point or complex numbers, got dtype {w_ih.dtype}.")
    if w_ih.ndim < 3:
        raise ValueError(f"{name}: `{argument}.w_ih` should have axes (input, gates, hidden), got shape {w_ih.shape}.")
    if w_ih.shape[-2] != len(cell.gates):
        wanted = f"{len(cell.gates)} gates for a {kind} ({', '.join(cell.gates)})"
        raise ValueError(f"{name}: `{argument}` should have {wanted}, got {w_ih.shape[-2]}.")
    shapes = tuple(sorted((path.removeprefix(argument), leaf.shape) for path, leaf in _leaves(params, argument)))
    input_size = cell.input_size(params)
    misfit = _misfit(cell, input_size, shapes, checks.x64())
    if misfit:
        sizes = f"for a {kind} of input_size={input_size} and hidden_size={w_ih.shape[-1]} (the axes of `{argument}.w_ih`)"
        path, wanted, came = misfit
        raise ValueError(
            f"{name}: `{argument}{path}` should {wanted} {sizes}, got {came}.\nAre they the parameters of another cell?"
        )


def source_of_input_size(cell, params) -> str:
    """Where the width of the input is to be seen, in words."""
    if cell.input_size(params) == params.w_ih.shape[-3]:
        return "the third axis from the end of `params.w_ih`"
    return f"what these `params` of a {type(cell).__name__} read"


def made_by_init(cell, params):
    """What a cell's `init` made, which should be parameters."""
    if getattr(params, "_fields", ())[:4] != GATE_FIELDS:
        rule = f"`init` should make a NamedTuple whose first fields are {', '.join(GATE_FIELDS)}"
        came = f"{type(params).__name__}({', '.join(params._fields)})" if hasattr(params, "_fields") else type(params).__name__
        raise TypeError(f"{type(cell).__name__}: {rule}, got {came}.")
    cell.check_made(params)
    return params


def check_order(cell, fields: tuple):
    """`update`, which gets the parameters of these names by position, names them in this order, if it names these."""
    by_position = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    names = [p.name for p in signature(cell.update).parameters.values() if p.kind in by_position][3 : 3 + len(fields)]
    if sorted(names) == sorted(fields) and tuple(names) != fields:
        rule = f"take {', '.join(fields)} behind the gates, in the order of the parameters that `init` makes"
        raise TypeError(f"{type(cell).__name__}: `update` should {rule}, got {', '.join(names)}.")


def _leaves(params, path: str) -> Iterator[tuple[str, Any]]:
    """Pairs of a path and what stands there, for every field that is not None."""
    for field, value in params._asdict().items():
        if isinstance(value, tuple) and hasattr(value, "_asdict"):
            yield from _leaves(value, f"{path}.{field}")
        elif value is not None:
            yield f"{path}.{field}", value


@lru_cache(maxsize=1024)
def _misfit(cell, input_size, shapes: tuple, x64: bool) -> tuple[str, str, str] | None:
    """The first parameter that is not as `cell.init` would make it: where, what it should, what came. None if all are."""
    found = dict(shapes)
    w_ih = found[".w_ih"]
    if any(map(checks.is_symbolic, (input_size, *w_ih))):
        return None
    cell = copy(cell)
    for argument in ("w_ih_init", "w_hh_init", "b_ih_init", "b_hh_init"):  # the shapes are what counts, and are known without
        object.__setattr__(cell, argument, zeros)
    init = lambda bias: jax.eval_shape(
        partial(cell.init, input_size=input_size, hidden_size=w_ih[-1], bias=bias), jax.random.key(0)
    )
    wanted, least = ({path: leaf.shape for path, leaf in _leaves(made_by_init(cell, init(bias)), "")} for bias in (True, False))
    for path, shape in wanted.items():
        if path in found and found[path] != shape:
            return path, f"have shape {shape}", f"{found[path]}"
    for path, shape in least.items():
        if path not in found:
            return path, f"have shape {shape}", "none"
    for path in found:
        if path not in wanted:
            return path, "not be there", f"shape {found[path]}"
    return None


# States ------------------------------------------------------------------------------------------------------------------


def state_like(cell, params, x) -> Any:
    """The shapes and dtypes of the state before `x`, which may be abstract; nothing is computed."""
    leaves, structure = jax.tree.flatten(params)
    arrays = tuple((a.shape, a.dtype) for a in (*leaves, x))
    symbolic = any(checks.is_symbolic(n) for shape, _ in arrays for n in shape)
    return (_state_like.__wrapped__ if symbolic else _state_like)(cell, structure, arrays, checks.x64())


@lru_cache(maxsize=1024)
def _state_like(cell, structure, arrays: tuple, x64: bool) -> Any:
    *leaves, x = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in arrays)
    state = jax.eval_shape(cell.initial_state, jax.tree.unflatten(structure, leaves), x)
    if not isinstance(state, cell.State):
        name, should = type(cell).__name__, cell.State.__name__
        raise TypeError(f"{name}: `initial_state` should make a {should}, the cell's `State`, got {type(state).__name__}.")
    return state


def check_state(name: str, argument: str, value, like, *, broadcast: bool = False):
    """`value` has the fields, shapes and kinds of the state `like`; with `broadcast`, batch axes may be missing, and a field
    may be None."""
    if value is None:
        return
    kind = type(like)
    if not isinstance(value, kind):
        fields = ", ".join(kind._fields)
        raise TypeError(f"{name}: `{argument}` should be a {kind.__name__}({fields}), got {checks.called(value)}.")
    for field, came, wanted in zip(kind._fields, value, like, strict=True):
        if broadcast and came is None:
            continue
        check_kind(name, f"{argument}.{field}", came, wanted)
        fits = wanted.shape[len(wanted.shape) - came.ndim :] == came.shape if broadcast else wanted.shape == came.shape
        if not fits:
            raise ValueError(f"{name}: `{argument}.{field}` should have shape {wanted.shape}, got {came.shape}.")


def check_kind(name: str, argument: str, value, like):
    """`value` is an array of floating-point numbers if `like` is; else of its dtype."""
    checks.array(name, argument, value, jnp.floating if is_real(like) else None)
    if not is_real(like) and value.dtype != like.dtype:
        raise TypeError(f"{name}: `{argument}` should be {like.dtype}, as the cell starts it, got {value.dtype}.")


def is_free(cell, field: str, like) -> bool:
    """Whether a field of a cell's state means something by itself: no counter or key, nor what the cell leaves out."""
    return is_differentiable(like) and (cell.free_fields is None or field in cell.free_fields)


def check_batch_axes(name: str, like, batch: tuple):
    """Every field of the state begins with the batch axes, so that a mask or a reset can act on each example."""
    for field, wanted in zip(like._fields, like, strict=True):
        if wanted.shape[: len(batch)] != batch:
            rule = f"begin with the batch axes {batch}, so that `lengths`, `mask` and `reset` can act on each example"
            raise ValueError(f"{name}: `{field}` of the cell's initial state should {rule}, got shape {wanted.shape}.")


def check_new_state(cell, old, new):
    """A cell's equations make a state like the one before."""
    name, should = type(cell).__name__, type(old).__name__
    if type(new) is not type(old):
        got = "an array" if isinstance(new, jax.Array) else type(new).__name__
        raise TypeError(f"{name}: the new state should be a {should}({', '.join(old._fields)}), got {got}.")
    for field, before, after in zip(old._fields, old, new, strict=True):
        if jnp.shape(after) != before.shape:
            raise ValueError(f"{name}: `{field}` of the new state should have shape {before.shape}, got {jnp.shape(after)}.")
        dtype = after.dtype if hasattr(after, "dtype") else jnp.result_type(after)
        if dtype != before.dtype:
            raise TypeError(f"{name}: `{field}` of the new state should be {before.dtype}, as before, got {dtype}.")


@contextmanager
def equations_of(cell, method: str):
    """Around a cell's own equations: that they read another number of gates than the cell names, or another state than it has, is
    said in its words."""
    try:
        yield
    except AttributeError as error:
        if not isinstance(error.obj, cell.State):
            raise
        state, hint = _described_state(cell)
        rule = f"read the fields of its state, {state}, got `{error.name}`"
        raise TypeError(f"{type(cell).__name__}: `{method}` should {rule}." + (f"\n{hint}" if hint else "")) from error
    except (ValueError, IndexError) as error:
        text = str(error)
        if error.__cause__ is not None or ("to unpack" not in text and text != "tuple index out of range"):
            raise
        name, gates, (state, hint) = type(cell).__name__, cell.gates, _described_state(cell)
        rule = f"read one array for each of the {len(gates)} `gates` ({', '.join(gates)}), from x as from h"
        got = f"got an error where it reads them: {text}.\nOr is it the state? That of this cell is {state}. {hint}".rstrip()
        raise ValueError(f"{name}: `{method}` should {rule}, {got}") from error


def _described_state(cell) -> tuple[str, str]:
    """A cell's state, with its fields; and how to have another, if it is the default."""
    kind = cell.State
    hint = "For (h, c) write `State: ClassVar = LSTMState` in the cell." if kind.__name__ == "Hidden" else ""
    return f"{kind.__name__}({', '.join(kind._fields)})", hint


# Further inputs ----------------------------------------------------------------------------------------------------------


def check_further_inputs(name: str, cell, per_step: dict[str, Any] | None, context: dict[str, Any] | None, batch: tuple, time=None):
    """`per_step` and `context` hold what the cell names, each a pytree of arrays; those of `per_step` have `time`, if it is given,
    and the batch axes in front."""
    for argument, value, names in (("per_step", per_step, cell.per_step), ("context", context, cell.context)):
        value, kind = {} if value is None else value, type(cell).__name__
        takes = f"hold {', '.join(names)}, which a {kind} reads" if names else f"be None: a {kind} reads none"
        if not isinstance(value, dict):
            raise TypeError(f"{name}: `{argument}` should be a dict, and {takes}, got {checks.called(value)}.")
        if set(value) != set(names):
            raise ValueError(f"{name}: `{argument}` should {takes}, got {', '.join(map(str, value)) or 'none'}.")
        for key, tree in value.items():
            for leaf in jax.tree.leaves(tree):
                checks.array(name, f"{argument}[{key!r}]", leaf, None)
                if argument == "per_step":
                    _check_per_step(name, f"per_step[{key!r}]", leaf, batch, () if time is None else (time,))


def _check_per_step(name: str, argument: str, a, batch: tuple, time: tuple):
    if a.dtype == jnp.uint32:
        hint = "Raw keys draw alike in every layer: write jax.random.key(0), and jax.random.split of it. Numbers go as int32."
        raise TypeError(f"{name}: `{argument}` should be no uint32 array, got shape {a.shape}.\n{hint}")
    if a.shape[: len(time)] != time:
        raise ValueError(f"{name}: `{argument}` should begin with the {time[0]} steps of time, got shape {a.shape}.")
    shared, axes = (1,) * len(batch), a.shape[len(time) : len(time) + len(batch)]
    if is_differentiable(a) and axes not in (batch, shared):
        rule = f"have the axes {(*time, *batch)} in front, or {(*time, *shared)} for what all examples share"
        raise ValueError(f"{name}: `{argument}` should {rule}, got shape {a.shape}.")
