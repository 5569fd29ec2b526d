"""The ways to run a recurrence, and the choice among them. The choice depends on the platform that the program is lowered for, not
on the machine that traces it: one traced program, one export, serves all. No arithmetic may live here."""

from functools import partial
from math import prod
from typing import Protocol

import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import promote
from jaxrnn.engine import scan_gated, scan_plain
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.segments import rematerialised, steps_in, truncated
from jaxrnn.engine.tuning import CACHES, Tuning, remat_segment, tune


class Strategy(Protocol):
    """A way to run the loop over time."""

    def refuses(self, what: Semantics, platform: str) -> str | None:
        """None if it can run; else why not, in words that a user understands."""

    def run(self, what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps):
        """The state after all steps, and (outputs, states or None): equal to every other strategy's, up to rounding."""


STRATEGIES: tuple[Strategy, ...] = (scan_gated, scan_plain)
"""The first that does not refuse runs; the last refuses nothing."""

PLATFORMS = (*CACHES, "default")
"""Those that have a row in `tuning`, and all others."""


def run(what: Semantics, remat: bool, weights: Weights, state, steps: Steps):
    """Run all steps by the first strategy that can, on whatever platform the program is lowered for."""
    time = steps_in(steps)
    piece = remat_segment(time, what.truncate) if remat else None
    w_ih, x = weights.params.w_ih, steps.x
    step_bytes = prod(x.shape[1:-1]) * w_ih.shape[-2] * w_ih.shape[-1] * promote(what.dtype, jnp.float32).itemsize
    choices = {}
    for platform in PLATFORMS:
        strategy = next(s for s in STRATEGIES if s.refuses(what, platform) is None)
        choices[platform] = strategy, tune(platform, time if piece is None else piece, step_bytes, what.truncate)

    def run_on(choice, state, steps):
        strategy, tuned = choice
        return strategy.run(what, tuned, weights, state, steps)

    def run_piece(state, steps):
        first = choices[PLATFORMS[0]]
        if all(choice == first for choice in choices.values()):
            return run_on(first, state, steps)
        return lax.platform_dependent(state, steps, **{p: partial(run_on, c) for p, c in choices.items()})

    if remat:
        run_piece = partial(rematerialised, run_piece, length=piece, reverse=what.reverse)
    if what.truncate is not None:
        run_piece = partial(truncated, run_piece, length=what.truncate, reverse=what.reverse)
    return run_piece(state, steps)
