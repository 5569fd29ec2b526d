"""What stands around the recurrent layers of a module that is written as ONNX: a model's head, or the members of a `Sequential`.
What a recurrent node computes is not known here."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.interop import _checks
from jaxrnn.nnx import Recurrent

ACTIVATIONS: tuple[tuple[Callable, str, dict[str, Any]], ...] = (
    (jax.nn.relu, "Relu", {}),
    (jnp.tanh, "Tanh", {}),
    (jax.nn.sigmoid, "Sigmoid", {}),
    (jax.nn.softplus, "Softplus", {}),
    (jax.nn.soft_sign, "Softsign", {}),
    (jax.nn.softmax, "Softmax", {"axis": -1}),
    (jax.nn.log_softmax, "LogSoftmax", {"axis": -1}),
)
"""Functions of one array, and what ONNX calls them, each as it is without further arguments."""


class Parts(NamedTuple):
    """A recurrent module and what is before and after it: the members of a `Sequential`, by their names.

    Attributes:
        head: the `fc` of a model, which reads the last layer's final state, in place of all else; or None.
        input_size: the width of what the first of them reads.
        output_size: the width of what the last of them gives.
    """

    module: Recurrent
    before: dict[str, Any]
    after: dict[str, Any]
    head: nnx.Linear | None
    input_size: int
    output_size: int


def parts(caller: str, module: Any) -> Parts:
    """Check `module`, and take it apart."""
    if type(module) is nnx.Sequential:
        return _of_sequential(caller, module)
    module, head = _checks.check_exportable(caller, module)
    if head is not None:
        _check_dtype(caller, "module.fc", head, module)
    return Parts(module, {}, {}, head, module.stack.input_size, module.stack.output_size)


def _of_sequential(caller: str, module: nnx.Sequential) -> Parts:
    members: dict[str, Any] = {f"layers.{k}": member for k, member in enumerate(module.layers)}
    recurrent = [name for name, member in members.items() if isinstance(member, Recurrent)]
    if len(recurrent) != 1:
        rule = "should have one recurrent module among its members, whose states go in and out"
        raise ValueError(f"{caller}: `module` {rule}, got {len(recurrent)}.\nSeveral layers are one module with num_layers.")
    names, (name,) = list(members), recurrent
    found, _ = _checks.check_exportable(caller, members[name], models=False)
    if not found.output_only and name != names[-1]:
        rule = "should be True, since a Sequential hands all that a layer gives to the next"
        raise ValueError(f"{caller}: `output_only` of `module.{name}` {rule}, got False.")
    widths = []
    for other, member in members.items():
        if other == name:
            widths.append((other, found.stack.input_size, found.stack.output_size))
        elif type(member) is nnx.Linear:
            _checks.check_dense(caller, f"module.{other}", member, nnx.Linear, *_checks.OF_LINEAR)
            _check_dtype(caller, f"module.{other}", member, found)
            widths.append((other, member.in_features, member.out_features))
        elif type(member) is not nnx.Dropout and _activation(member) is None:
            known = ", ".join(function.__name__ for function, *_ in ACTIVATIONS)
            came = getattr(member, "__name__", type(member).__name__)
            rule = f"should be an nnx.Linear, an nnx.Dropout, the recurrent module, or one of the functions {known} of jax.nn"
            raise ValueError(f"{caller}: `module.{other}` {rule}, got {came}.\nAn export with jax.export holds any module.")
    for (_, _, given), (other, takes, _) in pairwise(widths):
        if given != takes:
            raise ValueError(f"{caller}: `module.{other}` should take {given} features, as many as come to it, got {takes}.")
    at = names.index(name)
    before, after = ({n: members[n] for n in part if type(members[n]) is not nnx.Dropout} for part in (names[:at], names[at + 1 :]))
    return Parts(found, before, after, None, widths[0][1], widths[-1][2])


def _check_dtype(caller: str, name: str, layer: nnx.Linear, module: Recurrent):
    """The weights of a linear layer have the dtype of the recurrent ones, as ONNX wants it."""
    wanted, came = np.dtype(module.stack.param_dtype), layer.kernel.get_value().dtype
    if came != wanted:
        raise ValueError(f"{caller}: the kernel of `{name}` should be {wanted}, as the recurrent weights, got {came}.")


def _activation(member: Any) -> tuple[str, dict[str, Any]] | None:
    return next(((op, attributes) for function, op, attributes in ACTIVATIONS if member is function), None)


def add(graph, members: dict[str, Any], value: str, last: str | None = None) -> str:
    """Nodes for the members, one after the other on `value`; the name of what they give, `last` if that is given."""
    for k, (name, member) in enumerate(members.items()):
        output = last if last and k == len(members) - 1 else f"{name}.output"
        known = _activation(member)
        value = linear(graph, name, member, value, output) if known is None else graph.add(known[0], [value], output, **known[1])
    return value


def linear(graph, name: str, layer: nnx.Linear, value: str, output: str) -> str:
    """x W + b, on the last axis."""
    weight = graph.constant(f"{name}.weight", np.array(layer.kernel.get_value()))
    if layer.bias is None:
        return graph.add("MatMul", [value, weight], output)
    product = graph.add("MatMul", [value, weight], f"{name}.product")
    return graph.add("Add", [product, graph.constant(f"{name}.bias", np.array(layer.bias.get_value()))], output)
