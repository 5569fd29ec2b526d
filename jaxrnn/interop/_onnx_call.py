"""A node of a graph as its operator sees it: attributes, and the values of its inputs. What an operator does is not known here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_sizes import Size, Unreadable


@dataclass(frozen=True)
class Call:
    """A node with the values of its inputs, None where one is left out.

    Args:
        charge: to be told the bytes that are about to be used; raises `Unreadable` where they are too many.
    """

    op: str
    attributes: dict[str, Any]
    inputs: list[Array | None]
    outputs: int
    opset: int
    charge: Callable[[Any], None]

    def has(self, k: int) -> bool:
        return k < len(self.inputs) and self.inputs[k] is not None

    def __getitem__(self, k: int) -> Array:
        a = self.inputs[k] if self.has(k) else None
        if a is None:
            raise Unreadable(f"its input {k} is missing")
        return a

    def get(self, name: str, kind: type = int, default: Any = None):
        value = self.attributes.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise Unreadable(f"its attribute `{name}` should be of type {kind.__name__}")
        return value

    def listed(self, name: str, k: int) -> Any:
        """The whole numbers, a `list[Length]`, that an attribute holds, or, in newer versions, an input; or None."""
        return self[k].sizes() if self.has(k) else self.get(name, list)


def known(sizes: Any) -> list[int]:
    """Sizes of which every one is a number."""
    if sizes is None or any(isinstance(n, Size) for n in sizes):
        raise Unreadable("it depends on the sizes of what the graph is fed")
    return sizes


def charged(call: Call, array: Array) -> Array:
    call.charge(array.base.nbytes)
    return array
