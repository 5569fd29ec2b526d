"""Both directions of a layer: one after the other, or on a GPU in one loop, a batch of two. What a step means is not said here."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import may_join_axes, same_varying_axes
from jaxrnn.cells.base import GatedCell
from jaxrnn.checks import is_symbolic
from jaxrnn.engine.core import unrolled
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.engine.transition import resets_in_loop_order, valid_steps
from jaxrnn.engine.tuning import GPUS, WORTHWHILE

OVER_TIME = ("xs", "zoneout", "per_step", "mask", "reset")
"""Arguments of `unroll` with time in front."""


def unrolled_both(cell, runs, *, lengths=None, mask=None, reset=None, context=None, **options):
    """`unrolled` in both directions.

    Args:
        cell: of both.
        runs: for each direction, the arguments that are its own, by name; `params`, `xs` and `zoneout` among them.
        lengths, mask, reset, context, options: what they share; the options can be hashed.

    Returns:
        For each direction, what `unrolled` gives.
    """
    shared = {"lengths": lengths, "mask": mask, "reset": reset, "context": context}
    rates = ()  # of zoneout: numbers, which are not to be traced
    if runs[0]["zoneout"] is not None:
        rates = tuple(z if isinstance(z, float) else None for z in runs[0]["zoneout"])
        masks = lambda zoneout: type(zoneout)(*(None if isinstance(z, float) else z for z in zoneout))
        runs = [run | {"zoneout": masks(run["zoneout"])} for run in runs]
    options = tuple(options.items())
    if not _may_join(cell, dict(options), runs):
        return _apart(cell, options, rates, runs, shared)
    return _by_platform(cell, options, rates, read_from_outside(cell), runs, shared)


def _may_join(cell, options, runs) -> bool:
    """Whether the two can be one batch: a gated cell, arrays of one kind, no mesh, and pieces that are cut alike from both ends."""
    xs, w_hh, truncate = runs[0]["xs"], runs[0]["params"].w_hh, options.get("truncate")
    kinds = [jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), run) for run in runs]
    return (
        options.get("strategy") is None
        and isinstance(cell, GatedCell)
        and type(cell).recur is GatedCell.recur
        and not is_symbolic(xs.shape[0])
        and xs.shape[0] >= WORTHWHILE
        and (truncate is None or xs.shape[0] % truncate == 0)
        and may_join_axes(xs)
        and may_join_axes(w_hh)
        and kinds[0] == kinds[1]
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _by_platform(cell, options, rates, outside, runs, shared):
    """One `jit`, as that of `unrolled`."""
    runs, shared = same_varying_axes(runs, shared)
    joined = partial(_joined, cell, options, rates)
    apart = partial(_apart, cell, (*options, ("on_gpus", False)), rates)
    return lax.platform_dependent(runs, shared, default=apart, **dict.fromkeys(GPUS, joined))


def _run(cell, options, rates, run, shared, reverse):
    if rates:
        both = zip(rates, run["zoneout"], strict=True)
        run = run | {"zoneout": type(run["zoneout"])(*(mask if rate is None else rate for rate, mask in both))}
    return unrolled(cell, **run, **shared, **dict(options), reverse=reverse)


def _apart(cell, options, rates, runs, shared):
    return tuple(_run(cell, options, rates, run, shared, reverse) for run, reverse in zip(runs, (False, True), strict=True))


def _joined(cell, options, rates, runs, shared):
    """The reverse direction is the other one of reversed arrays; the arrays of the two are stacked in front, or behind time."""
    valid = valid_steps(runs[0]["xs"].shape[0], shared["lengths"], shared["mask"])
    lanes = []
    for run, reverse in zip(runs, (False, True), strict=True):
        run = run | {"mask": valid, "reset": resets_in_loop_order(shared["reset"], valid, reverse)}
        lanes.append({name: _turned(a) if reverse and name in OVER_TIME else a for name, a in run.items()})
    axes = {name: int(name in OVER_TIME) for name in lanes[0]}
    stacked = {name: jax.tree.map(lambda *a, axis=axes[name]: jnp.stack(a, axis), *(lane[name] for lane in lanes)) for name in axes}

    options = (*options, ("on_gpus", True))
    one = lambda lane: _run(cell, options, rates, lane, {"context": shared["context"]}, reverse=False)
    final, *over_time = jax.vmap(one, in_axes=(axes,), out_axes=1)(stacked)
    pick = lambda tree, index: jax.tree.map(lambda a: a[:, index], tree)
    return tuple(
        (pick(final, index), *(_turned(pick(a, index)) if index else pick(a, index) for a in over_time)) for index in (0, 1)
    )


def _turned(tree):
    return jax.tree.map(lambda a: a[::-1], tree)
