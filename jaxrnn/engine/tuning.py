"""Sizes to lengths of segments, one table per platform; each number with the measurement that justifies it. No loop may live here.

Nothing here changes what is computed. A platform that has no row takes all of time at once: segments exist for a CPU's cache, and
on a GPU they only add launches. What is said of GPUs was seen in programs compiled for an H100, by `scripts/compiled.py`; nothing
was timed on one.
"""

from math import isqrt
from typing import NamedTuple

from jaxrnn.checks import is_symbolic


class Cache(NamedTuple):
    """How much one segment of time should hold, in bytes, and from when on arrays are large."""

    forward: int
    """Of the projected input, forward. Below four times as much there is one segment, which is less to compile, and up to 7 %
    faster than several (LSTM, GRU at T=100 B=32 H=128). An RNN at T=64 B=64 H=512, 8 MiB, takes 0.84 of the time of one segment."""
    backward: int
    """Of its cotangent, backward, where residuals compete too."""
    small: int
    """Of the projected input of all steps, up to which one product for all gates is started faster than one for each."""


CACHES = {"cpu": Cache(forward=2**21, backward=3 * 2**19, small=2**18)}
"""CPU: two cores with 1 MiB of second-level cache each; RNN, LSTM and GRU, six sizes from (3, 5, 10, 20) to (64, 64, 512, 512)."""

MIN_SEGMENT = 16
"""Steps; shorter segments are bound by starting products (T=128 B=32 H=256: segments of 8 steps take 1.19 × those of 16)."""

GPUS = ("cuda", "rocm")
"""Where a step is bound by starting its kernels, so that what counts is how many there are."""

AT_ONCE = (4, 5, 6)
"""Steps in one iteration of a GPU's loops: the first that leaves no rest, else 4 and a rest, which costs copies (training at T=101
needs 1.44 × the temporary memory of T=100). With 4, an iteration is one command buffer, and launches per step (forward, training's
forward loop, backward) fall from 4, 9, 6 to 2.5, 3.75, 3.75 for an LSTM and from 4, 8, 6 to 2.5, 3.5, 3 for a GRU, at T=100 B=32
I=64 H=128. With 5 they are 2.4, 3.4, 3.6 for an LSTM."""

WORTHWHILE = 32
"""Steps from which on a GPU gets a loop of its own: what a loop saves grows with its steps, and what two take to trace does not."""

WAVEFRONT = 2**30
"""Bytes of the cotangents of the gates of all layers of a stack, up to which the layers share a loop on a GPU. There they are all
stored at once: training four LSTM layers at T=100 B=32 I=64 H=128 takes 0.27 × the launches of one layer after the other, and 1.8 ×
the temporary memory. Where they are many, a step takes longer than starting it."""

UNROLLED = 4
"""Up to so many steps are compiled as such, without a loop: T=3 B=5 H=20 then takes 13 µs, of which 9 are JAX's dispatch."""


class Tuning(NamedTuple):
    """How the loop over time is cut."""

    forward: int
    """Steps in a segment, forward."""
    backward: int
    """The same backward; and in both passes of a cell that is not gated."""
    small_projection: bool
    """Whether the inputs of all steps are small enough for one product."""
    at_once: int = 1
    """Steps in one iteration of the loop, on a GPU; where there are segments, one."""
    on_gpus: bool = False
    """Whether this is for GPUs alone."""


def tune(platform: str, time, step_bytes, truncate: int | None, on_gpus: bool | None = None) -> Tuning:
    """The lengths for a platform.

    Args:
        platform: as JAX names it: "cpu", "cuda", "tpu", …; or "default".
        time: how many steps run between two states that are stored anyway; may be symbolic.
        step_bytes: of the projected input of one step; may be symbolic.
        truncate: steps after which the gradient stops.
        on_gpus: whether it is lowered for GPUs alone, or for none of them, so that no other form has to be traced; None: for any.
    """
    if truncate is not None and not is_symbolic(time):
        time = min(time, truncate)
    cache = CACHES.get(platform)
    if is_symbolic(time):
        return Tuning(1, 1, small_projection=False)  # loops over a symbolic number of steps have one segment
    at_once = 1 if on_gpus is False else _steps_at_once(time)
    if cache is None:
        small = not is_symbolic(step_bytes) and time * step_bytes < CACHES["cpu"].small
        return Tuning(time, time, small_projection=small, at_once=at_once, on_gpus=bool(on_gpus))
    if is_symbolic(step_bytes):
        length = largest_divisor(max(MIN_SEGMENT, isqrt(time)), time)
        return Tuning(length, length, small_projection=False)
    forward = backward = time
    if time * step_bytes >= 4 * cache.forward:
        forward = largest_divisor(max(MIN_SEGMENT, cache.forward // step_bytes), time)
    if time * step_bytes > (cache.backward if time < 4 * MIN_SEGMENT else cache.backward // 4):
        backward = largest_divisor(max(MIN_SEGMENT, min(time // 4, cache.backward // step_bytes)), time)
    at_once = at_once if forward == backward == time else 1
    return Tuning(forward, backward, small_projection=time * step_bytes < cache.small, at_once=at_once)


def _steps_at_once(time: int) -> int:
    if time < WORTHWHILE:
        return 1
    return next((steps for steps in AT_ONCE if time % steps == 0), AT_ONCE[0])


def skipped(platform: str) -> tuple[str, ...]:
    """The strategies that are not chosen on a platform unless asked for by name.

    "pallas" and "cudnn" on all of them, until they were measured on a device to be faster, forward and in training.

    On two CPU cores a parallel prefix takes 3 to 20 times as long as the loop, forward, from (100, 32, 128) to (16384, 1, 256).
    """
    return ("pallas", "cudnn", "newton", "associative") if platform == "cpu" else ("pallas", "cudnn", "newton")


def one_stream(tuned: Tuning, additive_gates: tuple[bool, ...]) -> bool:
    """Whether a step that stores its gates reads the projected input of all of them as one array.

    Training then takes 0.83 to 0.91 of the time for an LSTM at (T, B, I, H) = (100, 1, 32, 64) and (20, 8, 32, 50). For a GRU,
    which is not additive in all gates, it did not pay, and under `vmap` it cost 45 %.
    """
    return tuned.small_projection and all(additive_gates)


def remat_segment(time, truncate: int | None) -> int:
    """Steps in a segment that is computed again in the backward pass: about √time, so that memory is O(√time)."""
    if is_symbolic(time):
        return 1
    time = time if truncate is None else min(time, truncate)
    return largest_divisor(isqrt(time), time)


def largest_divisor(length: int, time: int) -> int:
    """The greatest number up to `length`, but above half of it, that leaves no rest; `length`, if there is none."""
    length = min(length, time)
    return next((k for k in range(length, length // 2, -1) if time % k == 0), length)
