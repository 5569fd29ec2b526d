"""Sequences of different lengths as one array, in few shapes. Arrays here are NumPy's: data is made on the host."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxrnn import checks
from jaxrnn.synonyms import checked


class Padded(NamedTuple):
    """Sequences in one array, and how long each is: what modules take as `x` and `lengths`."""

    x: np.ndarray  # (batch, time, …)
    lengths: np.ndarray  # (batch,)


@checked()
def pad(sequences: Sequence[Any], to: int | Sequence[int] | None = None) -> Padded:
    """Put sequences of different lengths into one array, padded with zeros at the end.

    Args:
        sequences: arrays or lists (time, …) of numbers; all axes but the first are the same, and so are the dtypes. A sequence may
            be empty.
        to: the length to pad to; or several, of which the smallest one that is long enough is taken, see `bucket_limits`; `None`
            means the length of the longest sequence.

    Returns:
        `Padded(x, lengths)`: (batch, time, …) in the dtype of the sequences, and (batch,) of int32.

    Raises:
        ValueError: there is no sequence, one is longer than `to`, or their other axes differ. TypeError: one is of another kind.

    Example:
        >>> x, lengths = pad([[5, 6], [7], [8, 9, 10]])
        >>> x.tolist(), lengths.tolist()
        ([[5, 6, 0], [7, 0, 0], [8, 9, 10]], [2, 1, 3])
        >>> pad([np.ones((2, 4)), np.ones((5, 4))], to=(3, 6, 12)).x.shape
        (2, 6, 4)
    """
    arrays = [_sequence(k, sequence) for k, sequence in enumerate(_several("pad", "sequences", sequences))]
    if not arrays:
        raise ValueError("pad: `sequences` should hold at least one sequence, got none.")
    first = next((array for array in arrays if array is not None), np.zeros(0))
    arrays = [first[:0] if array is None else array for array in arrays]
    lengths = np.array([len(array) for array in arrays], np.int32)
    for k, array in enumerate(arrays):
        if array.shape[1:] != first.shape[1:]:
            others = "".join(f", {n}" for n in first.shape[1:])
            rule = f"`sequences[{k}]` should have shape (time{others}), as the first"
            raise ValueError(f"pad: {rule}, got {array.shape}.")
        if array.dtype != first.dtype:
            raise TypeError(f"pad: `sequences[{k}]` should have dtype {first.dtype}, as the first, got {array.dtype}.")
    limits = _limits("pad", "to", int(lengths.max()) if to is None else to)
    fitting = [limit for limit in limits if limit >= lengths.max()]
    if not fitting:
        k = int(lengths.argmax())
        raise ValueError(f"pad: `sequences[{k}]` should be at most {limits[-1]} steps long, by `to`, got {lengths[k]}.")
    x = np.zeros((len(arrays), fitting[0], *first.shape[1:]), first.dtype)
    for row, array in zip(x, arrays, strict=True):
        row[: len(array)] = array
    return Padded(x, lengths)


@checked()
def bucket_limits(lengths: Iterable[int], buckets: int) -> tuple[int, ...]:
    """The lengths to pad to, so that a compiled function sees few shapes and batches little padding.

    The limits are quantiles of the lengths: each bucket holds about as many sequences.

    Args:
        lengths: of all sequences.
        buckets: how many limits, at most; fewer where many lengths are the same.

    Returns:
        The limits, ascending; the last is the longest length.

    Raises:
        ValueError: there are no lengths, or a number is out of range. TypeError: one is of another kind.

    Example:
        >>> bucket_limits([3, 9, 4, 8, 3, 12], buckets=3)
        (4, 9, 12)
    """
    checks.size("bucket_limits", "buckets", buckets)
    lengths = np.asarray(lengths if isinstance(lengths, np.ndarray) else list(_several("bucket_limits", "lengths", lengths)))
    if lengths.size == 0:
        raise ValueError("bucket_limits: `lengths` should hold at least one length, got none.")
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
        raise TypeError(f"bucket_limits: `lengths` should be integers (n,), got dtype {lengths.dtype}, shape {lengths.shape}.")
    if lengths.min() < 0:
        raise ValueError(f"bucket_limits: `lengths` should be at least 0, got {lengths.min()}.")
    shares = np.arange(1, buckets + 1) / buckets
    return tuple(int(n) for n in np.unique(np.quantile(lengths, shares, method="higher")))


def _several(name: str, argument: str, value: Any) -> Iterable[Any]:
    try:
        return iter(value)
    except TypeError:
        raise TypeError(f"{name}: `{argument}` should be a list or an array, got {value!r}.") from None


def _limits(name: str, argument: str, value: Any) -> tuple[int, ...]:
    several = isinstance(value, tuple | list | np.ndarray)
    for limit in value if several else [value]:
        checks.size(name, argument, limit, least=0)
    if several and not len(value):
        raise ValueError(f"{name}: `{argument}` should hold at least one length, got none.")
    return tuple(sorted(int(limit) for limit in value)) if several else (int(value),)


def _sequence(k: int, sequence: Any) -> np.ndarray | None:
    """A sequence as an array; None for an empty list, which says neither its dtype nor its other axes."""
    if isinstance(sequence, list | tuple) and not sequence:
        return None
    try:
        array = np.asarray(sequence)
    except ValueError:  # rows of different lengths
        raise TypeError(f"pad: `sequences[{k}]` should be one array (time, …), got a ragged {checks.called(sequence)}.") from None
    if array.ndim == 0 or not (array.dtype == np.bool_ or jnp.issubdtype(array.dtype, jnp.number)):
        came = f"{array!r}" if array.ndim == 0 else f"dtype {array.dtype}"
        raise TypeError(f"pad: `sequences[{k}]` should be an array (time, …) of numbers, got {came}.")
    return array
