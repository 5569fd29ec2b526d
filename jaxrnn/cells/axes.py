"""The names of the axes of a cell's arrays. No concrete cell may be known here."""

from typing import Any


def axis_names(cell: Any, arrays: Any) -> Any:
    """The name of each axis of each array of a cell's parameters, or of its state, as the cell writes them down in `axes`.

    None for axes before the named ones: those of space or batch.

    Raises:
        TypeError: the cell does not name the axes of an array.

    Example:
        >>> import jax
        >>> from jaxrnn import LSTMCell
        >>> from jaxrnn.cells import axis_names
        >>> cell = LSTMCell()
        >>> axis_names(cell, cell.init(jax.random.key(0), 3, 5)).w_hh
        ('output', 'gates', 'hidden')
    """
    named = {}
    for field, value in arrays._asdict().items():
        if value is not None and field not in cell.axes:
            name, known = type(cell).__name__, ", ".join(cell.axes)
            raise TypeError(
                f"{name}: `axes` should name the axes of `{field}`, so that rules for meshes find them, got those of {known}.\n"
                f'Write axes: ClassVar = Cell.axes | {{"{field}": (…)}}, a name or None for each axis.'
            )
        named[field] = None if value is None else _align(cell.axes[field], value)
    return type(arrays)(**named)


def _align(names: tuple, value):
    if isinstance(value, tuple):
        return type(value)(*(_align(n, v) for n, v in zip(names, value, strict=True)))
    if len(names) > value.ndim:
        raise ValueError(
            f"axis_names: `axes` should name at most the {value.ndim} axes of an array of shape {value.shape}, got {names}."
        )
    return (None,) * (value.ndim - len(names)) + names
