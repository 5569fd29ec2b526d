"""The door to linear recurrences whose coefficients are at hand: `linear_scan`, whose arguments are checked here once."""

from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Real

from jaxrnn import checks
from jaxrnn._arrays import in_parts_of_time, is_real, promote, time_axis_of
from jaxrnn.cells.elementwise import matrix
from jaxrnn.engine import affine, over_devices
from jaxrnn.engine.tuning import skipped
from jaxrnn.synonyms import checked
from jaxrnn.typing import ArrayLike, Pair, TimeAxis

Form = Literal["associative", "loop"]
FORMS = {"associative": "associative", "loop": "scan_linear"}
"""Ways to compute the states, and the strategies that use them."""


# fmt: off
@overload
def linear_scan(
    a: ArrayLike, b: ArrayLike, h_0: ArrayLike | None = None, *, reset: ArrayLike | None = None, initial: ArrayLike | None = None,
    reverse: bool = False, form: Form | None = None, time_axis: TimeAxis | None = None,
) -> Array: ...


@overload
def linear_scan(
    a: Pair, b: Pair, h_0: Pair | None = None, *, reset: ArrayLike | None = None, initial: Pair | None = None,
    reverse: bool = False, form: Form | None = None, time_axis: TimeAxis | None = None,
) -> tuple[Array, Array]: ...


# fmt: on
@checked()
def linear_scan(
    a: Any,
    b: Any,
    h_0: Any = None,
    *,
    reset: Bool[ArrayLike, "time *batch"] | Real[ArrayLike, "time *batch"] | None = None,
    initial: Any = None,
    reverse: bool = False,
    form: Form | None = None,
    time_axis: TimeAxis | None = None,
) -> Any:
    """Run a linear recurrence over time:

        hₜ = aₜ ⊙ hₜ₋₁ + bₜ

    Its derivative, in both modes and of any order, is the same recurrence again: dhₜ = aₜ ⊙ dhₜ₋₁ + (daₜ ⊙ hₜ₋₁ + dbₜ); only
    the states, which are the output, are stored for it.

    Args:
        a: decay, (time, …), or (1, …) where it is the same at every step; or a pair (real, imaginary): a complex recurrence.
        b: input, (time, …), broadcast with `a` in the axes after time; a pair if `a` is one.
        h_0: the state before the first step, (…), in the shape of one step of `b`; None: zeros.
        reset: (time, *batch), the first axes of `b`: where True, the state is replaced by `initial` before the step. The
            old state is then ignored, even if it is NaN. With `reverse`, steps are counted in the direction of the loop.
        initial: the state that `reset` returns to, (…); None: zeros.
        reverse: from the last step to the first.
        form: "loop", step by step, or "associative", a parallel prefix in about 2 log₂ T steps. Default: what suits the platform
            that the program is lowered for: "loop" on a CPU, which is 3 to 20 times as fast there, else "associative".
        time_axis: inside of `jax.shard_map`, the axis of the mesh over which time is in parts: `a`, `b` and `reset` are this
            device's, `h_0` comes into the first part. On an explicit mesh, the sharding of `b` says it.

    Returns:
        Every state, (time, …), or a pair, at least in float32; the last of the loop is the state to go on from.

    Raises:
        ValueError: shapes do not fit. TypeError: an array is not of floating-point numbers, or not a pair where the other is.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import linear_scan
        >>> linear_scan(jnp.full((4, 1), 0.5), jnp.ones((4, 1)))[:, 0].tolist()
        [1.0, 1.5, 1.75, 1.875]
    """
    name, pairs = "linear_scan", isinstance(a, tuple | list)
    checks.flag(name, "reverse", reverse)
    if form is not None:
        checks.choice(name, "form", form, tuple(FORMS))
    a, b = (_parts(name, argument, value, pairs) for argument, value in (("a", a), ("b", b)))
    if not b[0].ndim or a[0].ndim != b[0].ndim or a[0].shape[0] not in (1, b[0].shape[0]):
        rule = f"have the axes of `b`, {b[0].shape}, or 1 in their place"
        raise ValueError(f"{name}: `a` should {rule}, time in front, got shape {a[0].shape}.")
    try:
        shape = jnp.broadcast_shapes(a[0].shape[1:], b[0].shape[1:])
    except ValueError:
        raise ValueError(f"{name}: `a` should broadcast with `b`, of shape {b[0].shape}, got {a[0].shape}.") from None
    over_devices.check_axis(name, "b", b[0], time_axis)
    states = [jnp.asarray(x) for s in (h_0, initial) if s is not None for x in (s if isinstance(s, tuple | list) else (s,))]
    dtype = promote(jnp.float32, *(x.dtype for x in (*a, *b, *states) if is_real(x)))
    a = tuple(x.astype(dtype) for x in a)
    b = tuple(jnp.broadcast_to(x, (x.shape[0], *shape)).astype(dtype) for x in b)
    start, origin = (_state(name, argument, s, pairs, b[0]) for argument, s in (("h_0", h_0), ("initial", initial)))
    resets = None if reset is None else jnp.asarray(checks.boolean(name, "reset", reset))
    if resets is not None and (resets.shape != b[0].shape[: resets.ndim] or not resets.ndim):
        raise ValueError(f"{name}: `reset` should have the first axes of `b`, {b[0].shape}, got shape {resets.shape}.")
    h = _scan(a, b, start, resets, origin, bool(reverse), form, time_axis)
    return h if pairs else h[0]


@partial(jax.jit, static_argnums=(5, 6, 7))
def _scan(a, b, start, reset, initial, reverse: bool, form: str | None, axis):
    """Behind the checks."""
    if b[0].shape[0] == 0:
        return b
    over = time_axis_of(b[0])
    if over is not None:
        same = a[0].shape[0] == 1
        parts, whole = (None if same else a, b, reset), (a if same else None, start, initial)

        def part(parts, whole):
            a = whole[0] if same else parts[0]
            return (), _scan(a, parts[1], whole[1], parts[2], whole[2], reverse, form, over)

        return in_parts_of_time(part, over, parts, whole, b[0])[1]
    run = lambda form, a, *rest: affine.solve(
        form, matrix(a), *rest[:2], reset=rest[2], initial=rest[3], reverse=reverse, axis=axis
    )
    arrays = (a, b, start, reset, initial)
    if form is not None:
        return run(form, *arrays)
    here, elsewhere = (next(f for f in FORMS if FORMS[f] not in skipped(platform)) for platform in ("cpu", "default"))
    return lax.platform_dependent(*arrays, cpu=partial(run, here), default=partial(run, elsewhere))


def _parts(name: str, argument: str, value, pairs: bool) -> tuple:
    """One array, or a pair of one shape."""
    if isinstance(value, tuple | list) != pairs or (pairs and len(value) != 2):
        rule = "be a pair (real, imaginary), as `a` is" if pairs else "be an array, as `a` is"
        came = f"{len(value)} arrays" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(f"{name}: `{argument}` should {rule}, got {came}.")
    parts = tuple(value) if pairs else (value,)
    for part in parts:
        checks.array(name, argument, part)
        if part.shape != parts[0].shape:
            raise ValueError(f"{name}: `{argument}` should be two arrays of one shape, got {parts[0].shape} and {part.shape}.")
    return tuple(map(jnp.asarray, parts))


def _state(name: str, argument: str, value, pairs: bool, b) -> tuple:
    """A state in the shape of one step of `b`; zeros for None."""
    if b.shape[0] == 0:
        like = jnp.zeros(b.shape[1:], b.dtype)
    else:  # no step can be taken out of parts
        like = jnp.zeros_like(b[0] if time_axis_of(b) is None else jnp.max(b, axis=0))
    if value is None:
        return (like,) * (2 if pairs else 1)
    parts = _parts(name, argument, value, pairs)
    if parts[0].shape != like.shape:
        raise ValueError(f"{name}: `{argument}` should have shape {like.shape}, that of a step of `b`, got {parts[0].shape}.")
    return tuple(part.astype(b.dtype) for part in parts)
