"""Layers and directions of a stack, run: what each reads, what is drawn for it, what comes of its outputs. Arguments were checked
by a function of `stack` or a module; no loop over time may live here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxrnn import noise
from jaxrnn.cells import conform
from jaxrnn.engine.core import unrolled
from jaxrnn.engine.directions import unrolled_both
from jaxrnn.engine.strategies import BACKENDS
from jaxrnn.engine.wavefront import unrolled_layers


@partial(jax.jit, static_argnums=(0, 1))
def run_step(stack, outside: tuple, params, x, states, initial, reset, per_step, context):
    """`Stack.step` without its checks; one `jit`, so that a call outside of any compiles once for what the cell reads `outside`."""
    x, reset, per_step = jax.tree.map(lambda a: a[None], (x, reset, per_step))
    output, states = run(stack, params, x, states, initial=initial, reset=reset, per_step=per_step, context=context)
    return output[0], states


def start(stack, params, batch: tuple, initial):
    """The states that sequences with those batch axes start from: what comes out of one without steps."""
    return run(stack, params, jnp.zeros((0, *batch, stack.input_size), stack.param_dtype), initial=initial)[1]


def run(
    stack, params, xs, states=None, *, initial=None, key=None, return_states=False, per_step=None, time_axis=None, **given
) -> Any:
    """`Stack.apply` without its checks; `given` are the arguments of `unroll` that all layers share."""
    keys = noise.split(key, stack.num_layers)
    options = {
        "time_axis": time_axis,
        "return_states": return_states,
        "remat": stack.remat,
        "truncate": stack.truncate,
        "dtype": stack.dtype,
        "strategy": BACKENDS[stack.backend],
    }

    def own(layer, direction, key, shape):
        """The arguments of `unroll` that are of one layer and direction, but for `xs`, of which `shape` is the shape."""
        params_, start, origin = (None if t is None else t[layer][direction] for t in (params, states, initial))
        keys = noise.keys_of_their_own(per_step, layer * stack.num_directions + direction)
        given = {"state": start, "initial": origin, "per_step": keys}
        return given | _drawn(stack, params_, jax.ShapeDtypeStruct(shape, xs.dtype), key, time_axis)

    if _nothing_between(stack, key):
        shapes = [(*xs.shape[:-1], stack.cell.input_size(layer[0])) for layer in params]
        drawn_from = [noise.split(k, 2 + stack.num_directions)[2] for k in keys]
        runs = [own(layer, 0, *of_layer) for layer, of_layer in enumerate(zip(drawn_from, shapes, strict=True))]
        finals, output, every = unrolled_layers(stack.cell, xs, runs, **given, **options)
        finals, every = (tuple((state,) for state in states) for states in (finals, every))
        return (output, finals, every) if return_states else (output, finals)

    reads, ys, outputs, finals, every = (xs,), (xs,), [], [], []
    for layer, layer_key in enumerate(keys):
        k_input, k_output, *k_directions = noise.split(layer_key, 2 + stack.num_directions)
        reads = noise.dropout_of_each(k_input, reads, stack.input_dropout, over_time=True)
        runs = []
        for direction, k in enumerate(k_directions):
            read = reads[-1 if direction else 0]
            runs.append({"xs": read} | own(layer, direction, k, read.shape))
        solve = unrolled_both if stack.bidirectional else lambda cell, runs, **given: [unrolled(cell, **runs[0], **given)]
        final, outs, *all_states = zip(*solve(stack.cell, runs, **given, **options), strict=True)
        finals.append(final)
        every.extend(all_states)
        merged = _merge(stack, outs)
        if stack.residual and layer > 0:
            merged = tuple(y + x for y, x in zip(merged, ys, strict=True))
        ys = merged
        outputs.append(ys)
        reads = noise.dropout_of_each(noise.of_part(k_output, time_axis), ys, stack.dropout)
        if stack.skip_connections:
            reads = tuple(jnp.concatenate([xs.astype(y.dtype), y], axis=-1) for y in reads)
    if stack.skip_connections:
        ys = tuple(jnp.concatenate(layers, axis=-1) for layers in zip(*outputs, strict=True))
    output = ys if stack.merge == "none" and stack.bidirectional else ys[0]
    return (output, tuple(finals), tuple(every)) if return_states else (output, tuple(finals))


def _nothing_between(stack, key) -> bool:
    """Whether each layer reads the outputs of the one before, and those alone."""
    connected = stack.bidirectional or stack.residual or stack.skip_connections
    return not connected and (key is None or not (stack.dropout or stack.input_dropout))


def _drawn(stack, params, xs, key, time_axis) -> dict:
    """The parameters of one direction of one layer, with what is drawn for it, where it reads arrays like `xs`."""
    k_h, k_zoneout, k_w = noise.split(key, 3)
    drawn: dict[str, Any] = {"h_mask": None, "zoneout": None}
    if stack.zoneout or stack.recurrent_dropout:
        like = conform.state_like(stack.cell, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
        drawn["h_mask"] = noise.h_mask(k_h, like, stack.recurrent_dropout)
        drawn["zoneout"] = noise.zoneout(noise.of_part(k_zoneout, time_axis), stack.cell, like, stack.zoneout, xs.shape[0])
    if stack.weight_dropout:
        params = params._replace(w_hh=noise.dropout(k_w, params.w_hh, stack.weight_dropout))
    return drawn | {"params": params}


def _merge(stack, ys) -> tuple:
    """The outputs of the directions, as one; or as they are, if they never meet."""
    if len(ys) == 1 or stack.merge == "none":
        return ys
    if stack.merge == "concat":
        return (jnp.concatenate(ys, axis=-1),)
    return (ys[0] + ys[1] if stack.merge == "sum" else (ys[0] + ys[1]) / 2,)
