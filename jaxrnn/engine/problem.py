"""What is computed: the static description of a recurrence and its arrays. Nothing of how may live here."""

from typing import Any, NamedTuple

from jaxrnn.cells.base import Cell


class Semantics(NamedTuple):
    """What is known before tracing and decides the result; hashable."""

    cell: Cell
    zoneout_rates: tuple[float | None, ...]
    """For each field of the state, the rate at which it keeps its value on average; None where it does not."""
    reverse: bool
    return_states: bool
    truncate: int | None
    """Steps after which the gradient is stopped."""
    dtype: Any
    """What products and gates are computed in."""
    time_axis: Any
    """The manual axis, or axes, of a mesh that time is in parts over; None: it is whole."""


class Weights(NamedTuple):
    """What every step reads. What was not asked for is None."""

    params: Any
    initial: Any
    """The state that a reset returns to."""
    h_mask: Any
    context: dict[str, Any]


class Steps(NamedTuple):
    """What differs from step to step: every leaf has time in front. What was not asked for is None."""

    x: Any
    """The input, or what a strategy has made of it."""
    valid: Any
    reset: Any
    """Where the state starts again before the step, seen in the direction of the loop, at valid steps only."""
    zoneout_mask: tuple
    """For each field of the state, where an entry keeps its value; None where none does."""
    per_step: dict[str, Any]
