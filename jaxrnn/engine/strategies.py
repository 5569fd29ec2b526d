"""The ways to run a recurrence, and the choice among them. The choice depends on the platform that the program is lowered for, not
on the machine that traces it: one traced program, one export, serves all. No arithmetic may live here."""

from functools import partial
from math import prod
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import promote
from jaxrnn.engine import associative, cudnn, fused, newton, scan_diagonal, scan_gated, scan_linear, scan_plain
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.segments import rematerialised, steps_in, truncated
from jaxrnn.engine.tuning import CACHES, Tuning, remat_segment, skipped, tune


@runtime_checkable
class Strategy(Protocol):
    """A way to run the loop over time."""

    def refuses(self, what: Semantics, weights: Weights, state, platform: str) -> str | None:
        """None if it can run; else why not, in words that a user understands."""

    def run(self, what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps) -> Any:
        """The state after all steps, and (outputs, states or None): equal to every other strategy's, up to rounding."""


STRATEGIES: dict[str, Strategy] = {
    "pallas": fused, "cudnn": cudnn, "scan_gated": scan_gated, "associative": associative, "scan_linear": scan_linear,
    "newton": newton, "scan_diagonal": scan_diagonal, "scan_plain": scan_plain,
}  # fmt: skip
"""By name. Of those that a platform prefers (`tuning.skipped`), the first that does not refuse runs; the last refuses nothing."""

BACKENDS = {"auto": None, "xla": None, "pallas": "pallas", "cudnn": "cudnn"}
"""What a user may ask for, and the strategy that it is. Today "auto" is "xla" on every platform: the first strategy that suits the
cell and the platform, of those that are loops in JAX."""

OVER_DEVICES = ("associative", "scan_linear")
"""Those that can where time is in parts over devices."""

PLATFORMS = (*CACHES, "default")
"""Those that have a row in `tuning`, and all others."""


def run(what: Semantics, remat: bool, name: str | None, weights: Weights, state, steps: Steps, on_gpus: bool | None = None):
    """Run all steps, on whichever platform the program is lowered for: by the strategy of that name, or the first that can."""
    time = steps_in(steps)
    segment = remat_segment(time, what.truncate) if remat else None
    w_ih, x = weights.params.w_ih, steps.x
    step_bytes = prod(x.shape[1:-1]) * w_ih.shape[-2] * w_ih.shape[-1] * promote(what.dtype, jnp.float32).itemsize
    choices, platforms = {}, ("default",) if on_gpus else PLATFORMS
    for platform in platforms:
        strategy = _choose(what, name, weights, state, platform)
        of = "default" if name in BACKENDS else platform  # these choose in their own lowering
        choices[platform] = strategy, tune(of, time if segment is None else segment, step_bytes, what.truncate, on_gpus)

    def run_on(choice, state, steps):
        strategy, tuned = choice
        return strategy.run(what, tuned, weights, state, steps)

    def run_segment(state, steps):
        first = choices[platforms[0]]
        if all(choice == first for choice in choices.values()):
            return run_on(first, state, steps)
        return lax.platform_dependent(state, steps, **{p: partial(run_on, c) for p, c in choices.items()})

    if segment is not None:
        run_segment = partial(rematerialised, run_segment, length=segment, reverse=what.reverse)
    if what.truncate is not None:
        run_segment = partial(truncated, run_segment, length=what.truncate, reverse=what.reverse)
    return run_segment(state, steps)


def _choose(what: Semantics, name: str | None, weights: Weights, state, platform: str) -> Strategy:
    if name is None:
        names, argument = [n for n in STRATEGIES if n not in skipped(platform)], "cell"
    else:
        names, argument = [name], "backend" if name in BACKENDS else "strategy"
    reason = None
    for one in names:
        reason = _refusal(what, one, weights, state, platform)
        if reason is None:
            return STRATEGIES[one]
    raise ValueError(f"unroll: `{argument}` should be one that can run, got {name or what.cell!r}: {reason}.")


def _refusal(what: Semantics, name: str, weights: Weights, state, platform: str) -> str | None:
    if what.time_axis is not None and name not in OVER_DEVICES:
        return f"where time is in parts over devices, only {' and '.join(OVER_DEVICES)} can"
    return STRATEGIES[name].refuses(what, weights, state, platform)
