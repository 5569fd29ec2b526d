"""The layers of a stack one after the other, or on a GPU as a wavefront: all in one loop, each a step behind the one below it.

In step s of the loop, layer l takes step s − l of the sequence: it reads what the layer below gave out in step s − 1. One batched
product does for all layers, of each layer's h with [w_hh of its own | w_ih of the layer above], and T + L − 1 steps do the work of
L × T. What a step means is not said here, nor how the loop is differentiated: the layers are lanes of a gated cell.
"""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import cast, computing_dtype, is_differentiable, is_real, may_join_axes, same_varying_axes, select
from jaxrnn.cells.base import Cell, GatedCell
from jaxrnn.cells.conform import equations_of, state_like
from jaxrnn.checks import is_symbolic
from jaxrnn.engine.core import as_given, unrolled
from jaxrnn.engine.lanes import Lane, LaneParams
from jaxrnn.engine.outside import read_from_outside
from jaxrnn.engine.problem import Semantics, Steps
from jaxrnn.engine.transition import after, valid_steps, zero_invalid
from jaxrnn.engine.tuning import AT_ONCE, GPUS, WAVEFRONT, WORTHWHILE


def unrolled_layers(cell, xs, runs, *, lengths=None, mask=None, context=None, dtype=None, return_states=False, **others):
    """`unrolled` layer upon layer, with nothing between them.

    Args:
        cell: of all layers.
        xs: what the first layer reads; every other one reads the outputs of the one before.
        runs: for each layer, the arguments of `unroll` that are its own, by name: `params`, `state`, `initial`, `zoneout`, `h_mask`
            and `per_step`.
        lengths, mask, context, dtype, return_states, others: what they share.

    Returns:
        The final state of each layer; the outputs of the last one; with `return_states`, every state of each, else nothing.
    """
    rates = ()  # of zoneout: numbers, which are not to be traced
    if runs[0]["zoneout"] is not None:
        rates = tuple(z if isinstance(z, float) else None for z in runs[0]["zoneout"])
        masks = lambda zoneout: type(zoneout)(*(None if isinstance(z, float) else z for z in zoneout))
        runs = [run | {"zoneout": masks(run["zoneout"])} for run in runs]
    shared = {"lengths": lengths, "mask": mask, "context": context}
    options = _Options(cell, rates, dtype, return_states)
    if any(value is not None and value is not False for value in others.values()) or not _may_join(cell, xs, runs):
        return _one_after_the_other(options, xs, runs, shared, others)
    return _by_platform(options, read_from_outside(cell), xs, runs, shared)


def _may_join(cell, xs, runs) -> bool:
    """Whether the layers can be lanes: gated cells that project by a product alone, alike, without a mesh. Nothing may act on `h`
    before its product, which is that of the layer above too."""
    first, *above = (run["params"] for run in runs)
    if not above or not isinstance(cell, GatedCell) or is_symbolic(xs.shape[0]) or xs.shape[0] < WORTHWHILE:
        return False
    kinds = [jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), run) for run in runs]
    kinds = [kind | {"params": kind["params"]._replace(w_ih=None)} for kind in kinds]
    cotangents = len(runs) * prod(xs.shape[:-1]) * prod(first.w_ih.shape[1:]) * 4
    return (
        (type(cell).recur, type(cell).project, type(cell).computed_with) == (GatedCell.recur, Cell.project, Cell.computed_with)
        and all(kind == kinds[0] for kind in kinds)
        and all(p.w_ih.shape == (first.w_hh.shape[0], *first.w_ih.shape[1:]) for p in above)
        and all(is_real(a) and a.dtype == first.w_hh.dtype for run in runs for a in jax.tree.leaves(run["params"][:4]))
        and is_real(state_like(cell, first, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype)).h)
        and not runs[0]["per_step"]
        and runs[0]["h_mask"] is None
        and may_join_axes(xs)
        and may_join_axes(first.w_hh)
        and (is_symbolic(cotangents) or cotangents <= WAVEFRONT)
    )


class _Options(NamedTuple):
    cell: Cell
    rates: tuple
    dtype: Any
    return_states: bool


@partial(jax.jit, static_argnums=(0, 1))
def _by_platform(options, outside, xs, runs, shared):
    """One `jit`, as that of `unrolled`."""
    xs, runs, shared = same_varying_axes(xs, runs, shared)
    apart = lambda xs, runs, shared: _one_after_the_other(options, xs, runs, shared, {"on_gpus": False})
    joined = partial(_joined, options, outside)
    return lax.platform_dependent(xs, runs, shared, default=apart, **dict.fromkeys(GPUS, joined))


def _one_after_the_other(options, xs, runs, shared, others):
    finals, every = [], []
    for run in runs:
        if options.rates:
            both = zip(options.rates, run["zoneout"], strict=True)
            run = run | {"zoneout": type(run["zoneout"])(*(mask if rate is None else rate for rate, mask in both))}
        of_all = {"dtype": options.dtype, "return_states": options.return_states}
        final, xs, *states = unrolled(options.cell, xs=xs, **run, **shared, **of_all, **others)
        finals.append(final)
        every.extend(states)
    return tuple(finals), xs, tuple(every)


def _joined(options, outside, xs, runs, shared):
    """Arrays of the layers are stacked in front; or behind time, each as many steps later as there are layers below."""
    cell, time, layers = options.cell, xs.shape[0], len(runs)
    dtype = computing_dtype(xs, runs[0]["params"].w_ih) if options.dtype is None else jnp.dtype(options.dtype)
    steps = -(-(time + layers - 1) // AT_ONCE[0]) * AT_ONCE[0]

    def later(a, layer):
        around = lambda count: jnp.zeros((count, *a.shape[1:]), a.dtype)  # of masks, False: no layer takes a step there
        return jnp.concatenate([around(layer), a, around(steps - time - layer)])

    def stacked(trees, axis):
        return jax.tree.map(lambda *a: jnp.stack(a, axis), *trees)

    valid = valid_steps(time, shared["lengths"], shared["mask"])
    running = jnp.ones(time, bool) if valid is None else valid
    nothing = (None,) * len(cell.State._fields)
    masks = [run["zoneout"] or nothing for run in runs]
    per_step = {
        "within": stacked([later(jnp.ones(time, bool), layer) for layer in range(layers)], 1),
        "running": stacked([later(running, layer) for layer in range(layers)], 1),
        "zoneout_mask": stacked([jax.tree.map(partial(later, layer=k), mask) for k, mask in enumerate(masks)], 1),
    }
    params = _as_lanes([run["params"] for run in runs])
    start = stacked([_start(cell, cast(run["params"], dtype), run, xs.astype(dtype)) for run in runs], 0)
    xs = later(zero_invalid(valid, xs), 0)
    what = Semantics(cell, options.rates or nothing, False, False, None, dtype, None)

    def lane(params, state, per_step):
        given = {"context": shared["context"], "dtype": dtype, "return_states": options.return_states}
        given |= {"strategy": "scan_gated", "on_gpus": True}
        return unrolled(_Layer(cell, what, outside), params, xs, state, per_step=per_step, **given)

    axes = {"in_axes": (LaneParams(None, 0, None, 0, 0, 0), 0, 1), "out_axes": (0, 1, 1) if options.return_states else (0, 1)}
    final, ys, *states = jax.vmap(lane, **axes)(params, start, per_step)
    finals = tuple(jax.tree.map(lambda a, k=k: a[k], final) for k in range(layers))
    every = tuple(jax.tree.map(lambda a, k=k: a[k : k + time + 1, k], tree) for tree in states for k in range(layers))
    return finals, zero_invalid(valid, ys[layers - 1 : layers - 1 + time, layers - 1]), every


def _start(cell, params, run, xs):
    """The state before the first step of a layer."""
    own = cell.initial_state(params, jnp.zeros((*xs.shape[1:-1], params.w_ih.shape[0]), xs.dtype))
    initial = own if run["initial"] is None else as_given(run["initial"], own)
    return initial if run["state"] is None else as_given(run["state"], own)


def _as_lanes(params) -> LaneParams:
    """The parameters of all layers."""
    w_ih, w_hh, b_ih, b_hh = zip(*(p[:4] for p in params), strict=True)
    extra = [p._replace(w_ih=None, w_hh=None, b_ih=None, b_hh=None) for p in params]
    extra = jax.tree.map(lambda *a: jnp.stack(a), *extra)
    return LaneParams(w_ih[0], _on_h(w_hh, w_ih), b_ih[0], _on_h(b_hh, b_ih), jnp.arange(len(params)), extra)


def _on_h(own, of_input):
    """For each layer, its own, and that of the input of the layer above; zeros where there is none."""
    if own[0] is None and of_input[0] is None:
        return None
    zero = jnp.zeros_like(of_input[-1] if own[0] is None else own[0])
    pairs = zip(own, (*of_input[1:], None), strict=True)
    return jnp.stack([jnp.concatenate([zero if a is None else a for a in pair], axis=-2) for pair in pairs])


@dataclass(frozen=True)
class _Layer(Lane):
    """One layer of a stack as a lane."""

    what: Semantics
    outside: tuple

    per_step = ("within", "running", "zoneout_mask")

    def initial_state(self, params, x):
        own = lambda a: a if a is None else a[..., : len(self.gates), :]
        of_layer = params.extra._replace(w_ih=params.w_ih, w_hh=own(params.w_hh), b_ih=params.b_ih, b_hh=own(params.b_hh))
        return self.cell.initial_state(of_layer, x)

    def update(self, state, x_gates, h_gates, index, extra, *, within, running, zoneout_mask, **context):
        """A step, where it is within the sequence and valid; else the old state.

        Before and after the sequence of its layer, a lane computes with numbers that the sequence does not have. There, a
        derivative may be NaN, and it must not reach a gradient, not even times zero.
        """
        cut = lambda a: select(within, a, lax.stop_gradient(a)) if is_differentiable(a) else a
        given = jax.tree.map(cut, (state, x_gates, h_gates, extra, context))
        with equations_of(self.cell, "update"):
            new = self.cell.update(*given[:3], *given[3][4:], **given[4])
        return after(self.what, state, new, Steps(None, running, None, zoneout_mask, {}))


for _name in ("gates", "State", "context", "free_fields"):  # what the class of a cell says, a lane says of the cell that it holds
    setattr(_Layer, _name, property(lambda self, name=_name: getattr(self.cell, name)))
