"""The door: `unroll`, whose arguments are checked here once."""

from collections.abc import Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from jaxrnn import checks
from jaxrnn.cells import conform
from jaxrnn.cells.base import Cell
from jaxrnn.engine import over_devices
from jaxrnn.engine.core import unrolled
from jaxrnn.engine.strategies import BACKENDS, STRATEGIES
from jaxrnn.synonyms import checked
from jaxrnn.typing import ArrayLike, Backend, DTypeLike, Lengths, TimeAxis


# fmt: off
@overload
def unroll(
    cell: Cell, params: Any, xs: ArrayLike, state: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
    mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None, reverse: bool = False, return_states: Literal[False] = False, remat: bool = False,
    truncate: int | None = None, h_mask: Array | None = None, zoneout: Any = None, dtype: DTypeLike | None = None,
    backend: Backend = "auto", strategy: str | None = None, time_axis: TimeAxis | None = None,
) -> tuple[Any, Array]: ...


@overload
def unroll(
    cell: Cell, params: Any, xs: ArrayLike, state: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
    mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None, reverse: bool = False, return_states: Literal[True], remat: bool = False,
    truncate: int | None = None, h_mask: Array | None = None, zoneout: Any = None, dtype: DTypeLike | None = None,
    backend: Backend = "auto", strategy: str | None = None, time_axis: TimeAxis | None = None,
) -> tuple[Any, Array, Any]: ...


@overload
def unroll(
    cell: Cell, params: Any, xs: ArrayLike, state: Any = None, *, initial: Any = None, lengths: Lengths | None = None,
    mask: ArrayLike | None = None, reset: ArrayLike | None = None, per_step: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None, reverse: bool = False, return_states: bool = False, remat: bool = False,
    truncate: int | None = None, h_mask: Array | None = None, zoneout: Any = None, dtype: DTypeLike | None = None,
    backend: Backend = "auto", strategy: str | None = None, time_axis: TimeAxis | None = None,
) -> Any: ...


# fmt: on
@checked()
def unroll(
    cell: Cell,
    params: Any,
    xs: Float[Array | np.ndarray, "time ..."],
    state: Any = None,
    *,
    initial: Any = None,
    lengths: Int[Array | np.ndarray, "*batch"] | Sequence[Any] | int | None = None,
    mask: Real[Array | np.ndarray, "time *batch"] | Bool[Array | np.ndarray, "time *batch"] | None = None,
    reset: Real[Array | np.ndarray, "time *batch"] | Bool[Array | np.ndarray, "time *batch"] | None = None,
    per_step: dict[str, Any] | None = None,
    context: dict[str, Any] | None = None,
    reverse: bool = False,
    return_states: bool = False,
    remat: bool = False,
    truncate: int | None = None,
    h_mask: Float[Array, "..."] | None = None,
    zoneout: Any = None,
    dtype: DTypeLike | None = None,
    backend: Backend = "auto",
    strategy: str | None = None,
    time_axis: TimeAxis | None = None,
) -> Any:
    """Run a cell over a sequence, time first, state first, as `jax.lax.scan` does.

    Invalid steps are skipped: the state passes through, the output is zero, `x` and `reset` are ignored. Arrays are computed in
    `dtype`; states and sums are kept at least in float32, and gradients of weights are summed in the dtype of the weights.

    Args:
        cell: the description of one step.
        params: its parameters, from `cell.init`.
        xs: the inputs. No steps at all is allowed: the state comes back, the outputs are empty.
        state: where to start, used unchanged; `None` means `initial`.
        initial: the state that `reset` returns to, with or without batch axes; `None`, for a field as well, means the cell's own,
            zeros for most.
        lengths: valid steps of each sequence, 0 … time, the rest being padding; a list will do. Length 0 returns `state` untouched.
        mask: True, or 1 in any dtype of numbers, where a step is valid, in any pattern. Not together with `lengths`.
        reset: where True, or 1, the state is replaced by `initial` before the step. `reverse` uses the same episode boundaries.
        per_step: what the cell's `per_step` names, each a pytree of arrays with time in front: a key for each step, noise, a side
            input that is not projected. Floating-point arrays are (time, *batch, …), or have 1 in place of every batch axis for
            what all examples share; the former are zero at invalid steps. Keys are typed, from `jax.random.key`.
        context: what the cell's `context` names, each a pytree of arrays that every step reads: a memory to attend to.
        reverse: run from the last valid step to the first; outputs stay aligned with `xs`.
        return_states: also return every state, `time + 1` of them, the first one (with `reverse`, the last one) being `state`.
        remat: compute each segment of √time steps again in the backward pass: memory O(√time), exact gradients. With
            `truncate`, this is done within each stretch of `truncate` steps.
        truncate: stop the gradient, but not the state, after every so many steps.
        h_mask: variational dropout: a mask, shaped like `h`, that multiplies `h` before the recurrent matmul at every step. Not
            differentiated.
        zoneout: a state of rates in [0, 1] (the state moves by the expected share), or of boolean arrays
            (time, *batch, hidden), True where an entry keeps its value; None for fields that move freely.
        dtype: to compute in. Default: what `xs` and `params` promote to.
        backend: "xla" runs loops in JAX. "pallas" runs the whole sequence in one kernel on an NVIDIA GPU, and its first derivative
            too, for gated cells in float32 or bfloat16 (a hidden size that is too large is an error that names the limit); on
            other platforms, and under other transformations, it is a scan. "cudnn" is cuDNN's LSTM on an NVIDIA GPU, in float32,
            with first derivatives, and an error elsewhere. "auto" means "xla" everywhere today.
        strategy: how it is computed, for tests and benchmarks: "scan_gated" (one product per step, the library's derivative),
            "scan_linear" and "associative" (a `LinearCell`, step by step and in parallel over time), "scan_diagonal" and "newton"
            (a `DiagonalCell`, likewise) or "scan_plain" (JAX's derivative). Default: what suits the cell and the platform.
        time_axis: inside of `jax.shard_map`, the axis of the mesh, or axes, over which time is in parts of one size, for a
            `LinearCell`: `xs`, `mask`, `reset` and `per_step` are this device's part, `lengths` count from the very first step,
            `state` is where the first part starts; the state returned is that after the last part. One state of each device goes
            to all. On an explicit mesh, the sharding of `xs` says it. Not with `return_states`, `remat` or `truncate`.

    Returns:
        (state, ys), or (state, ys, states) with `return_states`: the state after the last valid step, and the outputs
        (time, *batch, output).

    Raises:
        ValueError: a shape or a concrete value does not fit. TypeError: something is of the wrong kind.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import LSTMCell, unroll
        >>> cell = LSTMCell()
        >>> params = cell.init(jax.random.key(0), input_size=3, hidden_size=5)
        >>> xs = jnp.ones((7, 2, 3))
        >>> state, ys = unroll(cell, params, xs, lengths=jnp.array([7, 4]))
        >>> ys.shape, state.c.shape, bool((state.h == ys[jnp.array([6, 3]), jnp.arange(2)]).all())
        ((7, 2, 5), (2, 5), True)
    """
    name = "unroll"
    conform.check_cell(name, cell, Cell, params)
    conform.check_params(name, cell, params)
    source = conform.source_of_input_size(cell, params)
    checks.inputs(name, "xs", xs, cell.event_ndim, (("time", "*batch"),), cell.input_size(params), source)
    time, batch = xs.shape[0], xs.shape[1 : xs.ndim - cell.event_ndim]
    over_devices.check(name, "xs", cell, xs, time_axis, return_states=return_states, remat=remat, truncate=truncate)
    lengths, mask, reset = checks.validity(name, lengths, mask, reset, time, batch, parts=over_devices.parts(time_axis))
    conform.check_further_inputs(name, cell, per_step, context, batch, time)
    for argument, value in (("reverse", reverse), ("return_states", return_states), ("remat", remat)):
        checks.flag(name, argument, value)
    if truncate is not None:
        checks.size(name, "truncate", truncate)
        if checks.is_symbolic(time):
            raise ValueError(f"{name}: `truncate` should come with a known number of steps, got time={time}.")
    if dtype is not None:
        checks.floating_dtype(name, "dtype", dtype)
    checks.choice(name, "backend", backend, tuple(BACKENDS))
    if strategy is not None:
        checks.choice(name, "strategy", strategy, tuple(STRATEGIES))
        if backend != "auto":
            raise ValueError(f"{name}: `backend` should be 'auto' where `strategy` says how it is computed, got {backend!r}.")

    xs = jnp.asarray(xs)
    like = conform.state_like(cell, params, jax.ShapeDtypeStruct(xs.shape[1:], xs.dtype))
    if lengths is not None or mask is not None or reset is not None:
        conform.check_batch_axes(name, like, batch)
    conform.check_state(name, "initial", initial, like, broadcast=True)
    conform.check_state(name, "state", state, like)
    _check_noise(name, cell, h_mask, zoneout, like, time)
    return unrolled(
        cell, params, xs, state, initial=initial, lengths=lengths, mask=mask, reset=reset, per_step=per_step, context=context,
        reverse=bool(reverse), return_states=bool(return_states), remat=bool(remat), truncate=truncate, h_mask=h_mask,
        zoneout=zoneout, dtype=dtype, strategy=strategy or BACKENDS[backend], time_axis=time_axis,
    )  # fmt: skip


def _check_noise(name: str, cell, h_mask, zoneout, like, time):
    """`h_mask` and `zoneout` fit the state `like`."""
    if h_mask is not None:
        if not cell.recurrent_product:
            raise ValueError(f"{name}: `h_mask` should be None for a {type(cell).__name__}, which has no product for it to act on.")
        checks.array(name, "h_mask", h_mask)
        if h_mask.shape != like.h.shape:
            raise ValueError(f"{name}: `h_mask` should have shape {like.h.shape}, that of `h`, got {h_mask.shape}.")
    if zoneout is None:
        return
    checks.kind(name, "zoneout", zoneout, type(like))
    for field, value, wanted in zip(like._fields, zoneout, like, strict=True):
        argument = f"zoneout.{field}"
        if value is not None and not conform.is_free(cell, field, wanted):
            kind = type(cell).__name__
            raise ValueError(f"{name}: `{argument}` should be None, since a {kind} lets zoneout not act on it, got {value!r}.")
        if isinstance(value, float):
            checks.rate(name, argument, value)
        elif value is not None:
            checks.array(name, argument, value, jnp.bool_)
            if value.shape != (time, *wanted.shape):
                raise ValueError(f"{name}: `{argument}` should have shape {(time, *wanted.shape)}, got {value.shape}.")
