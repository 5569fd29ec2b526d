"""Parameters and learned starts as nested dicts with readable paths, `layer_0/forward/w_ih`, and back to `[layer][direction]`: the
one place where the two meet. No module may be known here."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jax

DIRECTIONS = ("forward", "backward")
INITIAL = "initial"


def layer_name(layer: int) -> str:
    """What a layer is called in a path."""
    return f"layer_{layer}"


def to_dict(params: Any, initial: Any = None) -> dict[str, Any]:
    """Nested dicts with readable paths, as Linen's variables have them, of what functions read.

    Args:
        params: `params[layer][direction]`; dicts with the numbers as keys, which checkpoints make of it, will do as well.
        initial: the learned initial state, nested alike, or None.

    Returns:
        {"layer_0": {"forward": {"w_ih": …, …}, …}, …}, with biases left out that are None; a learned initial state is under
        "initial", which holds the same layers.

    Example:
        >>> import jax, jaxrnn
        >>> params = jaxrnn.Stack(jaxrnn.GRUCell(), 3, 5).init(jax.random.key(0))
        >>> jax.tree.map(jax.numpy.shape, jaxrnn.trees.to_dict(params))
        {'layer_0': {'forward': {'b_hh': (3, 5), 'b_ih': (3, 5), 'w_hh': (5, 3, 5), 'w_ih': (3, 3, 5)}}}
    """
    layers = {layer_name(k): layer_to_dict(layer) for k, layer in enumerate(_items(params))}
    return layers if initial is None else layers | {INITIAL: to_dict(initial)}


def layer_to_dict(layer: Any) -> dict[str, Any]:
    """`to_dict` of one layer."""
    return dict(zip(DIRECTIONS, map(_fields, _items(layer)), strict=False))


def from_dict(stack: Any, tree: Mapping[str, Any]) -> tuple[Any, Any]:
    """The inverse of `to_dict`: (params, initial), `[layer][direction]`, for a stack; initial is None if nothing is learned.

    Raises:
        ValueError: `tree` has other names than the stack gives its parameters.

    Example:
        >>> import jax, jaxrnn
        >>> stack = jaxrnn.Stack(jaxrnn.GRUCell(), 3, 5)
        >>> params, initial = jaxrnn.trees.from_dict(stack, jaxrnn.trees.to_dict(stack.init(jax.random.key(0))))
        >>> params[0][0].w_hh.shape, initial
        ((5, 3, 5), None)
    """
    params, initial = kinds(stack)
    wanted = _names(to_dict(params, initial))
    if not isinstance(tree, Mapping) or _names(tree, wanted) != wanted:
        came = sorted(_names(tree)) if isinstance(tree, Mapping) else type(tree).__name__
        hint = "\nPass variables['params']." if "params" in tree else ""
        hint = "\nParameters of 0.1.0? Write jaxrnn.trees.to_dict(tree['layers'])." if "layers" in tree else hint
        raise ValueError(f"from_dict: `tree` should have the paths {', '.join(sorted(wanted))}, got {came}.{hint}")
    return rebuilt(stack, tree)


def rebuilt(stack: Any, tree: Any, leaf: Callable[[Any], Any] = lambda value: value) -> tuple[Any, Any]:
    """`from_dict` without its check, of dicts or of objects that have the names as attributes; of every leaf, what `leaf` makes."""
    initial = kinds(stack)[1]
    return rebuilt_params(stack, tree, leaf), None if initial is None else _layers(initial, _children(tree)[INITIAL], leaf)


def rebuilt_params(stack: Any, tree: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """`rebuilt` of the parameters alone."""
    return _layers(kinds(stack)[0], tree, leaf)


@lru_cache(maxsize=1024)
def kinds(stack: Any) -> tuple[Any, Any]:
    """`[layer][direction]` of parameters and of a learned start as classes without arrays: fields that there are hold 0."""

    def made():
        params = stack.init(jax.random.key(0))
        return params, stack.init_state(params)

    return jax.tree.map(lambda _: 0, jax.eval_shape(made))


def _layers(like, tree, leaf):
    return tuple(
        tuple(_rebuilt(one, _children(_children(tree)[layer_name(k)])[DIRECTIONS[d]], leaf) for d, one in enumerate(layer))
        for k, layer in enumerate(like)
    )


def _rebuilt(like, node, leaf):
    children = _children(node)
    one = lambda field, kind: _rebuilt(kind, children[field], leaf) if isinstance(kind, tuple) else leaf(children[field])
    return type(like)(*(None if kind is None else one(field, kind) for field, kind in zip(like._fields, like, strict=True)))


def _children(node) -> Mapping[str, Any]:
    return node if isinstance(node, Mapping) else vars(node)


def _fields(value):
    """A NamedTuple as a dict of what it holds."""
    fields = value if isinstance(value, Mapping) else value._asdict() if hasattr(value, "_asdict") else None
    if fields is None:
        return value
    return {str(name): _fields(one) for name, one in fields.items() if one is not None}


def _items(value) -> list:
    """What a tuple or list holds; or a dict whose keys are numbers, from 0 on."""
    if not isinstance(value, Mapping):
        return list(value)
    return [value[key] for key in sorted(value, key=int)]


def _names(tree, stop=None, path: str = "") -> set[str]:
    """The paths of a nested dict's leaves; where one is in `stop`, it counts as a leaf."""
    found = set()
    for name, value in tree.items():
        here = f"{path}{name}"
        inner = isinstance(value, Mapping) and not (stop and here in stop)
        found |= _names(value, stop, f"{here}/") if inner else {here}
    return found
