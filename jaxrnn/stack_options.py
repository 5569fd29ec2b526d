"""The options of a stack, and the sizes that follow from them. No array may live here."""

from dataclasses import dataclass, fields
from typing import Any

import jax.numpy as jnp

from jaxrnn.cells.base import Cell
from jaxrnn.initializers import non_default_fields
from jaxrnn.stack_checks import check_options
from jaxrnn.typing import Backend, DTypeLike, Merge, Sizes


@dataclass(frozen=True)
class StackOptions:
    """The options of a `Stack`, which says what they mean."""

    cell: Cell
    input_size: int
    hidden_size: Sizes
    num_layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    merge: Merge = "concat"
    residual: bool = False
    skip_connections: bool = False
    dropout: float = 0.0
    input_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: float = 0.0
    weight_dropout: float = 0.0
    learn_initial_state: bool = False
    remat: bool = False
    truncate: int | None = None
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    backend: Backend = "auto"

    def __post_init__(self):
        check_options("Stack", self)

    @classmethod
    def _described(cls, name: str, **options) -> Any:
        """The stack of the module `name`, whom errors then name."""
        stack = object.__new__(cls)
        for field in fields(cls):
            object.__setattr__(stack, field.name, options.get(field.name, field.default))
        check_options(name, stack)
        return stack

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def hidden_sizes(self) -> tuple[int, ...]:
        """The hidden size of each layer."""
        return self.hidden_size if isinstance(self.hidden_size, tuple) else (self.hidden_size,) * self.num_layers

    @property
    def layer_output_sizes(self) -> tuple[int, ...]:
        """The width of each layer's merged output (with merge="none", of one direction's)."""
        wide = self.num_directions if self.merge == "concat" else 1
        return tuple(self.cell.output_size(hidden) * wide for hidden in self.hidden_sizes)

    @property
    def layer_input_sizes(self) -> tuple[int, ...]:
        """The width of what each layer reads."""
        skipped = self.input_size if self.skip_connections else 0
        return (self.input_size, *(size + skipped for size in self.layer_output_sizes[:-1]))

    @property
    def output_size(self) -> int:
        """The width of the output."""
        return sum(self.layer_output_sizes) if self.skip_connections else self.layer_output_sizes[-1]

    @property
    def random(self) -> bool:
        """Whether anything is drawn in training."""
        rates = (self.dropout, self.input_dropout, self.recurrent_dropout, self.zoneout, self.weight_dropout)
        return any(rate > 0 for rate in rates)

    def describe(self) -> str:
        """The sizes, and whatever is not the default, as in a call."""
        sizes = [str(self.input_size), str(self.hidden_size)]
        return ", ".join(sizes + non_default_fields(self, "cell", "input_size", "hidden_size") + non_default_fields(self.cell))

    def __repr__(self):
        sizes = [repr(self.cell), str(self.input_size), str(self.hidden_size)]
        return f"Stack({', '.join(sizes + non_default_fields(self, 'cell', 'input_size', 'hidden_size'))})"
