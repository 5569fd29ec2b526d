"""What a cell's class reads beside its arguments. Compiled programs hold these values, so that another value must be another
program. Nothing of the loop may live here."""

from dataclasses import fields, is_dataclass
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from jax.core import Tracer

CONTAINERS = (tuple, list, dict, set, frozenset)
PLAIN = (bool, int, float, complex, str, bytes, type(None), *CONTAINERS)


class _Same:
    """An object that equals itself alone, and is kept, so that no other takes its place in memory."""

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other):
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self):
        return id(self.value)


class _Read(NamedTuple):
    name: str
    value: Any


def read_from_outside(cell) -> tuple[_Read, ...]:
    """The methods of a cell's class, its other attributes, and what its methods and the functions in its fields read from their
    modules and from enclosing functions, through functions of the same kind; hashable.

    Plain values (numbers, texts, containers of them) count by what they are, all else by which object it is: what changes inside
    of a module, an object or an array that a cell reads is not seen. The library's own classes read nothing that changes.
    """
    found: list[_Read] = []
    seen: set[int] = set()
    for cls in type(cell).__mro__:
        if (cls.__module__ or "").split(".")[0] in ("jaxrnn", "builtins"):
            continue
        for name, value in vars(cls).items():
            if not name.startswith("__") or name == "__call__":
                _note(f"{cls.__qualname__}.{name}", value, found, seen)
    if found and is_dataclass(cell):
        for field in fields(cell):
            value = getattr(cell, field.name)
            if isinstance(value, FunctionType):
                _note(field.name, value, found, seen)
    return tuple(found)


def _note(name: str, value, found: list, seen: set):
    function = getattr(value, "__func__", getattr(value, "fget", getattr(value, "__wrapped__", value)))
    if isinstance(value, PLAIN):
        found.append(_Read(name, _held(value, ())))
        return
    found.append(_Read(name, _Same(value)))
    package = (getattr(function, "__module__", None) or "").split(".")[0]
    if not isinstance(function, FunctionType) or id(function) in seen or package in ("jax", "jaxrnn", "numpy", "flax"):
        return
    seen.add(id(function))
    names, codes = set(), [function.__code__]
    for code in codes:
        names.update(code.co_names)
        codes.extend(c for c in code.co_consts if isinstance(c, CodeType))
    for read in sorted(names & function.__globals__.keys()):
        _note(f"{name}: {read}", function.__globals__[read], found, seen)
    for read, holder in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            _note(f"{name}: {read}", holder.cell_contents, found, seen)
        except ValueError:  # not bound yet
            continue


def _held(value, within: tuple):
    """What a plain value is: of containers, what they hold, which may be objects; hashable."""
    if not isinstance(value, CONTAINERS):
        return repr(value) if isinstance(value, PLAIN) else _Same(value)
    if any(value is one for one in within):
        return "itself"
    inside = (*within, value)
    items = value.items() if isinstance(value, dict) else value
    held = tuple(_held(item, inside) for item in items)
    return type(value).__name__, frozenset(held) if isinstance(value, set | frozenset) else held


def refuse_traced(cell, method: str, jaxpr):
    """A derivative of the library's own knows what a method is given, and nothing else that is being differentiated."""
    if any(isinstance(value, Tracer) for value in jaxpr.consts):
        raise TypeError(
            f"{type(cell).__name__}: `{method}` should compute with its arguments and constants alone, got a value from "
            "outside that is being transformed (by jax.grad, jax.jit, …). Make it one of the parameters or of `context`."
        )
