"""Strategy: cuDNN's LSTM on an NVIDIA GPU, through `jax.experimental.rnn`; opt-in. One layer and direction at a time: any mask and
both directions are an order of the steps, so that the valid ones come first.

cuDNN knows values and gradients, of plain calls. Elsewhere (`vmap`, forward mode, derivatives of higher order, other platforms)
there is nothing to fall back on that would not pretend: `_refuse` says so.
"""

from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from jaxrnn._arrays import cast, may_join_axes, select
from jaxrnn.checks import is_symbolic
from jaxrnn.engine.primitives import Loop
from jaxrnn.engine.problem import Semantics, Steps, Weights
from jaxrnn.engine.transition import output, zero_invalid
from jaxrnn.engine.tuning import Tuning


class Sizes(NamedTuple):
    """Of one layer; hashable."""

    input_size: int
    hidden_size: int

    def options(self) -> tuple[int, int, int, float, bool, None]:
        """The last arguments of the functions of `jax.experimental.rnn`: one layer, no dropout, one direction, the precision that
        `jax_default_matmul_precision` says."""
        return self.input_size, self.hidden_size, 1, 0.0, False, None


def refuses(what: Semantics, weights: Weights, state, platform: str) -> str | None:
    """All but the equations, the dtype and the options that cuDNN has."""
    kind = type(what.cell)
    if "cudnn" not in vars(kind) or not getattr(what.cell, "cudnn", False):
        return f"cuDNN has an LSTM with tanh and sigmoid, and not the equations of {what.cell!r}"
    if what.dtype != jnp.float32 or any(field.dtype != jnp.float32 for field in state):
        return f"JAX reaches cuDNN in float32, not in {what.dtype}"
    if what.return_states:
        return "cuDNN returns `h` at every step, and no other state"
    if any(rate is not None for rate in what.zoneout_rates):
        return "cuDNN knows no `zoneout`"
    for argument, array in (("reset", weights.initial), ("h_mask", weights.h_mask)):
        if array is not None:
            return f"cuDNN knows no `{argument}`"
    if any(is_symbolic(size) for size in state.h.shape):
        return f"cuDNN needs sizes that are known, and those of the batch are {state.h.shape[:-1]}"
    if not may_join_axes(state.h):
        return "cuDNN runs on one device, and arrays here lie on a mesh; inside of `jax.shard_map` it can"
    return None


def run(what: Semantics, tuned: Tuning, weights: Weights, state, steps: Steps):
    """The state after all steps, and their outputs."""
    if any(mask is not None for mask in steps.zoneout_mask):
        raise ValueError("unroll: `zoneout` should be None where `backend` is 'cudnn', got masks.")
    if is_symbolic(steps.x.shape[0]):
        raise ValueError("unroll: `xs` should have a known number of steps where `backend` is 'cudnn', got a symbolic one.")
    params, (time, *batch) = cast(weights.params, what.dtype), steps.x.shape[:-1]
    sizes, rows = Sizes(*params.w_ih.shape[::2]), state.h.size // state.h.shape[-1]
    x = zero_invalid(steps.valid, steps.x).reshape(time, rows, -1)
    valid = None if steps.valid is None else steps.valid.reshape(time, rows)
    order, lengths = steps_in_order(valid, what.reverse, time, rows)
    at_least_one = jnp.maximum(lengths, 1)  # cuDNN knows no empty sequence
    start = [field.reshape(1, rows, -1) for field in state]
    y, *last = forward(sizes, jnp.swapaxes(take(x, order), 0, 1), *start, flat_weights(params), at_least_one)
    if order is not None:
        order = jnp.argsort(order, axis=0)
    ys = take(jnp.swapaxes(y, 0, 1), order).reshape(time, *batch, -1)
    final = [select(lengths > 0, new[0], old[0]).reshape(*batch, -1) for new, old in zip(last, start, strict=True)]
    return type(state)(*final), output(what, state._replace(h=ys), steps.valid)


def steps_in_order(valid, reverse: bool, time: int, rows: int):
    """The step (time, rows) that cuDNN takes first, second, …, the valid ones first; None for that they stand in. And how many are
    valid in each row."""
    steps = jax.lax.broadcasted_iota(jnp.int32, (time, rows), 0)
    when = time - 1 - steps if reverse else steps
    if valid is None:
        return (when if reverse else None), jnp.full(rows, time, jnp.int32)
    return jnp.argsort(jnp.where(valid, when, time + when), axis=0), jnp.sum(valid, 0, dtype=jnp.int32)


def take(a, order):
    """The rows of `a` (time, rows, …) in that order."""
    return a if order is None else jnp.take_along_axis(a, order[..., None], axis=0)


def flat_weights(params):
    """The parameters of one layer as cuDNN's vector: w_ih and w_hh, each (gates · hidden, in), then both biases."""
    rows = lambda w: jnp.transpose(w, (1, 2, 0)).ravel()
    none = jnp.zeros(params.w_hh.shape[1:], params.w_hh.dtype)
    biases = [none if b is None else b for b in (params.b_ih, params.b_hh)]
    return jnp.concatenate([rows(params.w_ih), rows(params.w_hh), *(b.ravel() for b in biases)])


# cuDNN's functions as primitives -----------------------------------------------------------------------------------------


def _refuse(sizes: Sizes, *trees) -> NoReturn:
    raise ValueError(
        "unroll: `backend` should be 'cudnn' only where cuDNN can run: compiled for an NVIDIA GPU, and transformed by nothing but "
        "one reverse-mode derivative: no `jax.vmap`, no `jax.jvp`, no derivative of higher order.\nTake backend='xla' elsewhere."
    )


def _shapes(sizes: Sizes, x, h, c, weights, lengths):
    like = lambda a, *shape: jax.ShapeDtypeStruct(shape or a.shape, a.dtype)
    return like(x, *x.shape[:2], sizes.hidden_size), like(h), like(c)


def reserve_size(sizes: Sizes, shape: tuple) -> int:
    """Numbers that cuDNN keeps for the gradient, as it says itself."""
    from jax.experimental import rnn

    x, state = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (1, shape[0], sizes.hidden_size)))
    count = rnn.get_num_params_in_lstm(*sizes, 1, False)
    weights, lengths = jax.ShapeDtypeStruct((count,), jnp.float32), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    try:
        run = lambda x, h, c, weights, lengths: rnn.lstm_fwd(x, h, c, weights, lengths, *sizes.options())
        _, stored = jax.eval_shape(run, x, state, state, weights, lengths)
    except AttributeError:  # JAX has no plugin for CUDA to ask
        _refuse(sizes)
    return stored[-1].size


def _stored_shapes(sizes: Sizes, x, *rest):
    return *_shapes(sizes, x, *rest), jax.ShapeDtypeStruct((reserve_size(sizes, x.shape),), x.dtype)


def _known_shapes(sizes: Sizes, known, *_):
    return tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in known[:4])


forward = Loop("cudnn_forward", _refuse, _shapes)
stored = Loop("cudnn_forward_stored", _refuse, _stored_shapes)
linear = Loop("cudnn_linear", _refuse, lambda sizes, known, *_: _shapes(sizes, *known[:5]))
backward = Loop("cudnn_backward", _refuse, _known_shapes)


def _differentiate(sizes: Sizes, trees, tangents):
    *outs, reserve = stored(sizes, *trees)
    return tuple(outs), linear(sizes, (*trees, outs[0], reserve), *tangents[:4])


forward.differentiate(_differentiate)
linear.transpose(backward)


def _forward_on_gpu(sizes: Sizes, *trees):
    from jax.experimental import rnn

    return rnn.lstm(*trees, *sizes.options())


def _stored_on_gpu(sizes: Sizes, x, h, c, weights, lengths):
    from jax.experimental import rnn

    outs, known = rnn.lstm_fwd(x, h, c, weights, lengths, *sizes.options())
    return *outs, known[-1]


def _backward_on_gpu(sizes: Sizes, known, cotangents):
    from jax.experimental import rnn

    return rnn.lstm_bwd(*sizes.options(), known, cotangents)[:4]


for _loop, _on_gpu in ((forward, _forward_on_gpu), (stored, _stored_on_gpu), (backward, _backward_on_gpu)):
    _loop.lower(_on_gpu, "cuda")
