"""Types that signatures name, for your own annotations too. No code may live here."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

import jax
import numpy as np
from jax.typing import DTypeLike as DTypeLike

ArrayLike: TypeAlias = jax.Array | np.ndarray
"""What a call takes as an array. Lists are refused, but for `lengths`."""


@runtime_checkable
class Table(Protocol):
    """Columns with names, such as a DataFrame."""

    @property
    def columns(self) -> Any: ...


Pair: TypeAlias = tuple[jax.Array | np.ndarray, jax.Array | np.ndarray] | list[Any]
"""A real and an imaginary part."""
Lengths: TypeAlias = jax.Array | np.ndarray | Sequence[Any] | int
"""Valid steps of each sequence: an array of integers or a list of them, nested where there are several batch axes."""
Tokens: TypeAlias = jax.Array | np.ndarray | np.integer[Any] | Sequence[Any] | int
"""Numbers of characters: an array of integers or a list of them, or one."""
Sizes: TypeAlias = int | tuple[int, ...]
"""One size for all layers, or one for each."""
BatchShape: TypeAlias = int | tuple[Any, ...] | list[Any]
"""Batch axes, or one: numbers, or symbolic sizes of `jax.export`."""
TimeAxis: TypeAlias = str | tuple[str, ...]
"""An axis of a mesh, or axes."""
Merge: TypeAlias = Literal["concat", "sum", "mean", "none"]
"""How the outputs of two directions become one."""
Nonlinearity: TypeAlias = Literal["tanh", "relu"]
"""φ of an `RNN`, as of `torch.nn.RNN`; an `RNNCell` takes more of them."""
Backend: TypeAlias = Literal["auto", "xla", "pallas", "cudnn"]
"""How a recurrence is computed, see `unroll`."""

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Alone = TypeVar("Alone", Literal[False], Literal[True], bool, default=Literal[False])
else:
    from typing import TypeVar

    Alone = TypeVar("Alone", Literal[False], Literal[True], bool)
"""Whether a module gives its output alone, `output_only`: what a call returns depends on it."""
