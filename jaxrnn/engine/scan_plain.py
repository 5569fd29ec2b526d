"""Strategy: a scan over steps, in segments of time, with JAX's own derivative. It runs every cell."""

from jaxrnn._arrays import cast
from jaxrnn.cells.conform import equations_of
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.segments import over_segments, scan
from jaxrnn.engine.transition import after, before, output, zero_invalid
from jaxrnn.engine.tuning import Tuning


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """Nothing is refused."""
    return None


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps):
    """The state after all steps, and their outputs."""

    def segment(state, steps):
        def step(state, now):
            params = what.cell.computed_with(weights.params, what.dtype)
            old, h = before(weights, state, now)
            with equations_of(what.cell, "recur"):
                new = what.cell.recur(params, old, now.x, h, **now.per_step, **weights.context)
            state = after(what, old, new, now)
            return state, output(what, state, now.valid)

        x_gates = what.cell.project(cast(weights.params, what.dtype), zero_invalid(steps.valid, steps.x))
        return scan(step, state, steps._replace(x=x_gates), what.reverse, tuned)

    return over_segments(segment, state, steps, tuned.backward, what.reverse)
