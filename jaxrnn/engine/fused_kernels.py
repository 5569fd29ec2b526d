"""The loops of `fused` as kernels for an NVIDIA GPU, in Pallas: all of time in one launch, forward and backward, from the cell's
`update` as it is. No other file may know Pallas.

**JAX deprecates the route that these take**, Pallas through Triton (0.12 warns). Its successor, Mosaic GPU, does not take them:
products there are `wgmma` instructions on tiles in shared memory, and the kernel names the layout of every array, also of what
`update` computes. Then `_call`, `_dot` and the two kernels have to be written anew; what they compute, and all else, stays.

Each program of the grid takes `TILE` rows of the batch through all steps. `w_hh` is read once and stays on the multiprocessor,
which bounds the hidden size. It is padded to a power of two, which Triton asks for, and the batch to whole tiles.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxrnn._arrays import gpu_at_hand_or_described, same_varying_axes, select, shape_like
from jaxrnn.engine.fused_loops import Form, Known, add_wanted, advance, backward, forward, forward_shapes, stored, wanted
from jaxrnn.engine.fused_update import TILE, in_two, power_of_two

LARGEST = {"float32": (64, 2**16, 448), "bfloat16": (256, 2**17, 1152)}
"""Hidden units, bytes of `w_hh`, and numbers of one example (gates, state, the cell's own parameters) that stay on one
multiprocessor of an H100, by dtype: what compiles for it, forward and backward, with no register in memory
(`scripts/compiled_kernels.py`). Products in float32 are IEEE's, not on tensor cores, and take more registers. Other GPUs may hold
less: there, XLA refuses what does not fit."""


def largest_hidden(gates: int, arrays: int, dtype) -> int:
    """The largest hidden size, a power of two, for so many gates, and other arrays that `update` reads: the fields of a state, and
    the cell's own parameters."""
    units, most_bytes, most_numbers = LARGEST[jnp.dtype(dtype).name]
    while gates * units**2 * jnp.dtype(dtype).itemsize > most_bytes or (gates + arrays) * units > most_numbers:
        units //= 2
    return units


class _Tiles(NamedTuple):
    """Sizes, and the places that pad them."""

    time: int
    rows: int
    gates: int
    hidden: int

    @property
    def programs(self) -> int:
        return max(1, -(-self.rows // TILE))

    @property
    def width(self) -> int:
        return power_of_two(self.hidden)

    def pad(self, tree, axis: int | None):
        """Arrays that end in hidden units, and have the batch at `axis`, in whole tiles."""

        def of(a):
            if a is None:
                return None
            extra = [(0, self.width - self.hidden if k == a.ndim - 1 else 0) for k in range(a.ndim)]
            if axis is not None:
                extra[axis] = (0, self.programs * TILE - self.rows)
            return jnp.pad(a, extra)

        return jax.tree.map(of, tree)

    def cut(self, tree, axis: int):
        return jax.tree.map(lambda a: lax.slice_in_dim(a[..., : self.hidden], 0, self.rows, axis=axis), tree)

    def valid(self, valid):
        """As numbers; rows that only fill a tile are not valid."""
        missing = self.programs * TILE - self.rows
        if valid is None and not missing:
            return None
        valid = jnp.ones((self.time, self.rows), jnp.int32) if valid is None else valid.astype(jnp.int32)
        return jnp.pad(valid, ((0, 0), (0, missing)))

    def units(self, a):
        """Zero in units that only fill the width: a product must not read what `update` makes there."""
        if self.width == self.hidden:
            return a
        return jnp.where(lax.broadcasted_iota(jnp.int32, a.shape, a.ndim - 1) < self.hidden, a, jnp.zeros_like(a))


def _call(kernel, name: str, tiles: _Tiles, inputs: dict, outputs: dict, interpret: bool):
    """Run a kernel over the tiles of the batch; inputs and outputs are (tree, axis of the batch or None) by name."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def spec(a, axis):
        shape = tuple(TILE if k == axis else size for k, size in enumerate(a.shape))
        return pl.BlockSpec(shape, lambda i: tuple(i if k == axis else 0 for k in range(len(shape))))

    params = triton.CompilerParams(num_warps=_warps(tiles, inputs["w"][0].dtype), num_stages=1)
    specs = lambda given: {name: jax.tree.map(lambda a, axis=axis: spec(a, axis), tree) for name, (tree, axis) in given.items()}
    trees = lambda given: {name: tree for name, (tree, _) in given.items()}
    (arrays,) = same_varying_axes(trees(inputs))
    shapes = jax.tree.map(lambda a: shape_like(a, arrays["w"]), trees(outputs))
    call = pl.pallas_call(
        lambda i, o: kernel(**i, **o), grid=(tiles.programs,), in_specs=[specs(inputs)], out_specs=specs(outputs), name=name,
        out_shape=shapes, interpret=interpret, compiler_params=params,
    )  # fmt: skip
    with gpu_at_hand_or_described():
        return call(arrays)


def _warps(tiles: _Tiles, dtype) -> int:
    """Of one program: with fewer, or for float32 more, registers go to memory."""
    return 16 if tiles.width >= 128 and dtype == jnp.bfloat16 else 8


def _dot(a, w):
    precision = lax.Precision.HIGHEST if w.dtype == jnp.float32 else None
    return lax.dot_general(a.astype(w.dtype), w, (((1,), (0,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _forward_kernel(interpret: bool, store: bool, form: Form, weights, state, x, valid):
    w_hh, b_hh, extra = weights
    time, rows, gates, hidden = x.shape
    tiles = _Tiles(time, rows, gates, hidden)
    make, update = in_two(form.cell, hidden, extra)
    w_hh = jnp.pad(w_hh, ((0, tiles.width - hidden),) + ((0, 0),) * 2)
    inputs = {
        "w": (jnp.moveaxis(tiles.pad(w_hh, None), 1, 0), None), "b": (tiles.pad(b_hh, None), None),
        "made": (tiles.pad(make(extra), None), None), "state": (tiles.pad(state, 0), 0), "x": (tiles.pad(x, 1), 1),
        "valid": (tiles.valid(valid), 1),
    }  # fmt: skip
    shapes = forward_shapes(form, weights, inputs["state"][0], inputs["x"][0], valid, store)
    outputs = {"final": (shapes[0], 0), "states": (shapes[1], 1), "pre": (shapes[-1] if store else None, 1)}

    def kernel(w, b, state, made, x, valid, final, states, pre):
        w = [w[g] for g in range(gates)]
        b = None if b is None else [b[g : g + 1, :] for g in range(gates)]
        made = [a[...] for a in made]

        def step(k, state):
            t = time - 1 - k if form.what.reverse else k
            h = [_dot(tiles.units(state.h), w[g]) for g in range(gates)]
            h = h if b is None else [a + bias for a, bias in zip(h, b, strict=True)]
            x_gates = [x[t, :, g, :] for g in range(gates)]
            if pre is not None:
                for g, add in enumerate(form.additive):
                    pre[t, :, g, :] = x_gates[g] + h[g] if add else h[g]
            moves = advance(form, update, None if valid is None else valid[t] != 0)
            state = moves(state, tuple(x_gates), tuple(h), made)
            jax.tree.map(lambda ref, a: ref.__setitem__(t, a), states, state if store else wanted(form, state))
            return state

        last = lax.fori_loop(0, time, step, jax.tree.map(lambda ref: ref[...], state))
        jax.tree.map(lambda ref, a: ref.__setitem__(..., a), final, last)

    out = _call(kernel, "rnn_forward", tiles, inputs, outputs, interpret)
    result = tiles.cut(out["final"], 0), tiles.cut(out["states"], 1)
    return (*result, tiles.cut(out["pre"], 1)) if store else result


def _backward_kernel(interpret: bool, form: Form, known: Known, cotangents):
    time, rows, gates, hidden = known.pre.shape
    tiles = _Tiles(time, rows, gates, hidden)
    make, update = in_two(form.cell, hidden, known.extra)
    made, from_made = jax.vjp(make, known.extra)
    made = tiles.pad(made, None)
    w = jnp.pad(jnp.moveaxis(known.w_hh, 0, -1), ((0, 0), (0, tiles.width - hidden), (0, 0)))
    d_final, d_states = cotangents
    over_time = tiles.pad((known.before, known.x, known.pre, d_states), 1)
    inputs = {
        "w": (tiles.pad(w, None), None), "made": (made, None), "before": (over_time[0], 1), "x": (over_time[1], 1),
        "pre": (over_time[2], 1), "valid": (tiles.valid(known.valid), 1), "d_states": (over_time[3], 1),
        "d_final": (tiles.pad(d_final, 0), 0),
    }  # fmt: skip
    shape = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    d_made = [jax.ShapeDtypeStruct((tiles.programs * a.shape[0], a.shape[1]), a.dtype) for a in made]
    outputs = {
        "d_state": (shape(inputs["d_final"][0]), 0), "d_h": (shape(over_time[2]), 1), "d_x": (shape(over_time[1]), 1),
        "d_made": (d_made, 0),
    }  # fmt: skip

    def kernel(w, made, before, x, pre, valid, d_states, d_final, d_state, d_h, d_x, d_made):
        w = [w[g] for g in range(gates)]
        made = [a[...] for a in made]
        own = [g for g, add in enumerate(form.additive) if not add]

        def step(k, carry):
            t = k if form.what.reverse else time - 1 - k
            state, d_made = carry
            h = tuple(pre[t, :, g, :] for g in range(gates))
            x_gates = [jnp.zeros_like(a) for a in h]
            for k_own, g in enumerate(own):
                x_gates[g] = x[t, :, k_own, :]
            now = None if valid is None else valid[t] != 0
            moves = advance(form, update, now)
            pull = jax.vjp(moves, jax.tree.map(lambda ref: ref[t], before), tuple(x_gates), h, made)[1]
            d_old, d_x_gates, d_h_gates, d_more = pull(add_wanted(state, jax.tree.map(lambda ref: ref[t], d_states)))
            d_h_gates = [tiles.units(a) for a in d_h_gates]
            for g in range(gates):
                d_h[t, :, g, :] = d_h_gates[g]
            for k_own, g in enumerate(own):
                d_x[t, :, k_own, :] = d_x_gates[g]
            product = sum(_dot(d, a) for d, a in zip(d_h_gates, w, strict=True))
            kept = d_more if now is None else [select(now, tiles.units(d), jnp.zeros_like(d)) for d in d_more]
            return d_old._replace(h=d_old.h + product), [a + d for a, d in zip(d_made, kept, strict=True)]

        none = [jnp.zeros_like(a) for a in made]
        first, d_all = lax.fori_loop(0, time, step, (jax.tree.map(lambda ref: ref[...], d_final), none))
        jax.tree.map(lambda ref, a: ref.__setitem__(..., a), (d_state, d_made), (first, d_all))

    out = _call(kernel, "rnn_backward", tiles, inputs, outputs, interpret)
    d_made = [d.reshape(tiles.programs, TILE, -1).sum(0)[:, :hidden] for d in out["d_made"]]
    (d_extra,) = from_made(d_made)
    return tiles.cut(out["d_state"], 0), tiles.cut(out["d_h"], 1), tiles.cut(out["d_x"], 1), d_extra


def lower(platform: str = "cuda", interpret: bool = False):
    """Let programs for a platform run the kernels; `interpret` runs them without a compiler, to test them."""
    forward.lower(partial(_forward_kernel, interpret, False), platform)
    stored.lower(partial(_forward_kernel, interpret, True), platform)
    backward.lower(partial(_backward_kernel, interpret), platform)


lower()
