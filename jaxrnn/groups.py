"""What an NNX module holds: parameters by readable paths, `module.layer_0.forward.w_ih`, what it means to assign to them, and the
source of its draws. No arithmetic may live here."""

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import checks, trees
from jaxrnn.stack import Stack
from jaxrnn.synonyms import ClassSignature

LayerName = Literal[
    "layer_0", "layer_1", "layer_2", "layer_3", "layer_4", "layer_5", "layer_6", "layer_7", "layer_8", "layer_9", "layer_10",
    "layer_11", "layer_12", "layer_13", "layer_14", "layer_15", "layer_16", "layer_17", "layer_18", "layer_19", "layer_20",
    "layer_21", "layer_22", "layer_23", "layer_24", "layer_25", "layer_26", "layer_27", "layer_28", "layer_29", "layer_30",
    "layer_31",
]  # fmt: skip
"""The names that a type checker knows layers by. There may be more."""


class Group(nnx.Module):
    """Parameters, or further groups, by their names.

    An array assigned to a name becomes the value of the parameter there: `module.layer_0.forward.w_hh = array`.

    Args:
        members: nested dicts of variables.
    """

    def __init__(self, members: dict[str, Any]):
        for name, member in members.items():
            setattr(self, name, Group(member) if isinstance(member, dict) else member)

    def __setattr__(self, name: str, value):
        variable = vars(self).get(name)
        if isinstance(variable, nnx.Variable) and not isinstance(value, nnx.Variable):
            assign(name, variable, value)
        else:
            super().__setattr__(name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Holder(nnx.Module):
    """A module that holds the parameters of a stack by their paths: `layer_0.forward.w_ih`, `initial.layer_0.forward.h`."""

    __signature__ = ClassSignature()

    if TYPE_CHECKING:
        stack: Stack
        initial: Group

        def __getattr__(self, name: LayerName) -> Group: ...

    def _hold(self, stack: Stack, params):
        """Hold these parameters, and a learned start if the stack has one."""
        self.stack = stack

        def variables(arrays):
            # With eager sharding, an axis that has a name would ask for a mesh that has it.
            named = lambda a, names: nnx.Param(a, out_sharding=names, eager_sharding=False)
            return jax.tree.map(named, arrays, stack.axis_names(arrays))

        for path, members in trees.to_dict(variables(params), variables(stack.init_state(params))).items():
            setattr(self, path, Group(members))

    @property
    def params(self) -> Any:
        """The parameters, `params[layer][direction]`, an `nnx.Param` for each array."""
        for kind in jax.tree.leaves(trees.kinds(self.stack), is_leaf=lambda node: hasattr(node, "_fields")):
            let_assign(type(kind))
        return trees.rebuilt(self.stack, self)[0]

    @params.setter
    def params(self, value: Any):
        assign_tree(self, value, "params")

    @property
    def learned(self) -> Any:
        """The learned initial state, `[layer][direction]`, an `nnx.Param` for each array; or None."""
        return trees.rebuilt(self.stack, self)[1]

    @learned.setter
    def learned(self, value: Any):
        assign_tree(self.initial, value, "learned")

    def __setattr__(self, name: str, value: Any):
        if name in ("params", "learned"):
            object.__setattr__(self, name, value)  # no attribute: parameters get values
        else:
            super().__setattr__(name, value)

    def _arrays(self):
        return trees.rebuilt(self.stack, self, value_of)


def assign(name: str, variable: nnx.Variable, value):
    """Make an array the value of a parameter: in its shape, dtype and place.

    Raises:
        TypeError, ValueError: it is no array, or of another kind or shape.
    """
    old = variable.get_value()
    checks.array("assignment", name, value, None)
    if value.shape != old.shape:
        raise ValueError(f"assignment: `{name}` should have shape {old.shape}, that of the parameter, got {value.shape}.")
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_)
    if any(jnp.issubdtype(old.dtype, kind) != jnp.issubdtype(value.dtype, kind) for kind in kinds):
        raise TypeError(f"assignment: `{name}` should be of the kind of the parameter, {old.dtype}, got dtype {value.dtype}.")
    new = jnp.array(value, old.dtype) if value.dtype != old.dtype or isinstance(value, np.ndarray) else value
    sharded = isinstance(old, jax.Array) and checks.concrete(old) and len(old.sharding.device_set) > 1
    variable.set_value(jax.device_put(new, old.sharding) if sharded else new)


def assign_tree(nodes: Any, values: Any, where: str):
    """Assign, or put in the place of what is there, every leaf of `values`: `[layer][direction]`, as `nodes` of a module are."""
    for layer, of_layer in enumerate(values):
        for direction, fields in enumerate(of_layer):
            group = getattr(getattr(nodes, trees.layer_name(layer)), trees.DIRECTIONS[direction])
            _assign_fields(group, fields, f"{where}[{layer}][{direction}]")


def _assign_fields(group: Group, fields: Any, where: str):
    for name, value in fields._asdict().items():
        member = vars(group).get(name)
        if (member is None) != (value is None):
            should, got = ("not be there", "a value") if member is None else ("have a value", "None")
            raise ValueError(f"assignment: `{where}.{name}` should {should}, got {got}.")
        if isinstance(member, Group):
            _assign_fields(member, value, f"{where}.{name}")
        elif member is not None:
            setattr(group, name, value)


@lru_cache(maxsize=256)
def let_assign(kind: type):
    """Let `params[0][0].w_hh = array` set the parameter, where Python would only say "can't set attribute" of a NamedTuple."""
    if kind.__setattr__ is tuple.__setattr__:
        kind.__setattr__ = _set_field  # pyright: ignore[reportAttributeAccessIssue]


def _set_field(fields, name: str, value):
    member = getattr(fields, name, None)
    if isinstance(member, nnx.Variable) and not isinstance(value, nnx.Variable):
        return assign(name, member, value)
    kind = type(fields).__name__
    if isinstance(member, nnx.Variable):
        raise AttributeError(f"{kind}: `{name}` should be assigned an array, got a variable, which goes by path.")
    raise AttributeError(f"{kind}: `{name}` should be replaced in a copy, params._replace({name}=…), got an assignment.")


def value_of(variable):
    """The array of a variable. `get_value` copies a tree, which a variable may hold; that costs more than a step of a stream."""
    array, own = variable.get_raw_value(), type(variable).get_value is not nnx.Variable.get_value
    return variable.get_value() if own or variable.has_metadata("on_get_value") or not isinstance(array, jax.Array) else array


def check_rngs(name: str, value, *, random: bool):
    """`value` is an `nnx.Rngs`, with the streams that are drawn from."""
    if not isinstance(value, nnx.Rngs):
        came = None if value is None else type(value).__name__
        raise TypeError(f"{name}: `rngs` should be an nnx.Rngs, got {came}. Write rngs=nnx.Rngs(0).")
    for stream in ("params", "dropout") if random else ("params",):
        if not hasattr(value, stream):
            raise ValueError(f"{name}: `rngs` should have a stream {stream!r} or 'default', got streams {sorted(value)}.")
