"""Signatures as they stand in the code: types as written, `Float[Array, "time *batch input"]`, since evaluated ones are long and
name private modules; defaults by name. Nothing about Sphinx may live here."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping
from functools import cache


class _Written(str):
    """Text that a signature shows without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def signature(value, names: Mapping[int, str]) -> str | None:
    """The arguments of a function or class; None if there is no telling.

    Args:
        value: a function or class.
        names: full names of types to link, by their identities.
    """
    try:  # the metaclass of a class may hide its arguments
        shown = inspect.signature(value.__init__ if inspect.isclass(value) and inspect.isfunction(value.__init__) else value)
    except (TypeError, ValueError):
        return None
    types = _types(value, names)
    parameters = [
        parameter.replace(
            annotation=_Written(types[parameter.name]) if parameter.name in types else parameter.empty,
            default=parameter.default if parameter.default is parameter.empty else _Written(_default(parameter.default)),
        )
        for parameter in shown.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    return str(shown.replace(parameters=parameters, return_annotation=shown.empty))


def returned(value, names: Mapping[int, str]) -> str | None:
    """The type of a function's result."""
    return _types(value, names).get("return")


def _types(value, names: Mapping[int, str]) -> dict[str, str]:
    """By argument, of a dataclass by field; "return" is that of the result."""
    if inspect.isclass(value):
        found = {}
        for base in reversed(inspect.getmro(value)):
            fields = [line for line in class_body(base) if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)]
            found |= {field.target.id: _linked(field.annotation, base, names) for field in fields}
        return found | (_types(value.__init__, names) if inspect.isfunction(value.__init__) else {})
    made = _parsed(inspect.unwrap(value))
    if not isinstance(made, ast.FunctionDef):
        return {}
    arguments = [*made.args.posonlyargs, *made.args.args, *made.args.kwonlyargs, made.args.vararg, made.args.kwarg]
    written = {a.arg: a.annotation for a in arguments if a is not None} | {"return": made.returns}
    return {name: _linked(written_, inspect.unwrap(value), names) for name, written_ in written.items() if written_ is not None}


def _linked(annotation: ast.expr, owner, names: Mapping[int, str]) -> str:
    """An annotation, with a full name behind `~` for each name that is to be a link."""
    namespace = vars(sys.modules[owner.__module__])

    class Link(ast.NodeTransformer):
        def visit_Name(self, node):
            full = names.get(id(namespace.get(node.id)))
            return ast.Name(f"~{full}") if full else node

    return ast.unparse(Link().visit(annotation))


def _default(value) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        return value.__name__
    return "..." if " at 0x" in repr(value) or repr(value).startswith("<") else repr(value)


def class_body(cls: type) -> list[ast.stmt]:
    made = _parsed(cls)
    return made.body if isinstance(made, ast.ClassDef) else []


@cache
def _source(value) -> str:
    try:
        return textwrap.dedent(inspect.getsource(value))
    except (OSError, TypeError):  # not written in Python
        return ""


def _parsed(value) -> ast.stmt | None:
    body = ast.parse(_source(value)).body
    return body[0] if len(body) == 1 else None
