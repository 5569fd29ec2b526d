"""Initial values of parameters. Each initialiser has the signature of `jax.nn.initializers` and is called once per gate, so
that every function found there works here too, per gate. No cell and no gate order may be known here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.nn import initializers as jax_initializers
from jax.nn.initializers import ones, zeros
from jax.typing import DTypeLike

from jaxrnn import checks
from jaxrnn._arrays import promote

__all__ = [
    "Initializer",
    "PerGate",
    "check_initializer",
    "chrono",
    "constant",
    "draw",
    "forget_bias",
    "identity",
    "non_default_fields",
    "ones",
    "orthogonal",
    "uniform",
    "zeros",
]

Initializer = Callable[..., jax.Array]


def uniform(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
    """Draw from U(−1/√hidden, 1/√hidden), where hidden is the last axis: PyTorch's default for every array."""
    bound = shape[-1] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def identity(key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
    """The identity matrix: recurrent weights of the IRNN (Le, Jaitly, Hinton, 2015, arXiv:1504.00941), used with `relu`."""
    del key
    return jnp.eye(*shape, dtype=dtype)


@dataclass(frozen=True)
class constant:
    """Every entry `value`. An object rather than a closure, so that equal cells compare equal and can be pickled."""

    value: float

    def __call__(self, key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        del key
        return jnp.full(shape, self.value, dtype)


@dataclass(frozen=True)
class orthogonal:
    """Orthonormal rows or columns, times `scale`: for recurrent weights, where each gate's matrix is drawn by itself."""

    scale: float = 1.0

    def __call__(self, key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return jax_initializers.orthogonal(self.scale)(key, shape, dtype)


@dataclass(frozen=True)
class PerGate:
    """Another initialiser for some gates.

    Args:
        default: for the gates that are not named.
        named: pairs (gate, initialiser).
        same_key: give every gate the same key, so that their draws are tied.
    """

    default: Initializer
    named: tuple[tuple[str, Initializer], ...]
    same_key: bool = False

    def __repr__(self):
        return f"PerGate({', '.join(non_default_fields(self))})"


def forget_bias(value: float = 1.0) -> PerGate:
    """Zeros, but `value` for the forget gate (Gers, Schmidhuber, Cummins, 2000; Jozefowicz et al., 2015).

    Example:
        >>> import jax
        >>> from jaxrnn import LSTMCell
        >>> from jaxrnn.initializers import forget_bias, zeros
        >>> cell = LSTMCell(b_ih_init=forget_bias(), b_hh_init=zeros)
        >>> cell.init(jax.random.key(0), 3, 2).b_ih.tolist()
        [[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    """
    return PerGate(zeros, (("f", constant(value)),))


@dataclass(frozen=True)
class _LogUniform:
    longest: int
    sign: int

    def __call__(self, key: Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> Array:
        return self.sign * jnp.log(jax.random.uniform(key, shape, dtype, 1.0, self.longest - 1.0))


def chrono(longest: int, *, forget: str | None = "f", write: str | None = "i") -> PerGate:
    """Chrono initialisation of biases (Tallec & Ollivier, 2018, arXiv:1804.11188, section 2).

        b_f ~ log U(1, longest − 1)      b_i = −b_f      other gates 0

    Args:
        longest: the longest dependency expected, in steps; at least 3.
        forget, write: names of the two gates, None for one that the cell lacks. For a GRU, whose update gate keeps:
            `chrono(longest, forget="z", write=None)`.

    Raises:
        ValueError: `longest` is below 3.

    Example:
        >>> import jax
        >>> from jaxrnn import LSTMCell
        >>> from jaxrnn.initializers import chrono, zeros
        >>> i, f, g, o = LSTMCell(b_ih_init=chrono(784), b_hh_init=zeros).init(jax.random.key(0), 3, 50).b_ih
        >>> bool((f >= 0).all()), bool((i == -f).all()), float(abs(g).max())
        (True, True, 0.0)
    """
    checks.size("chrono", "longest", longest, least=3)
    named = ((forget, _LogUniform(longest, 1)), (write, _LogUniform(longest, -1)))
    return PerGate(zeros, tuple((gate, draw) for gate, draw in named if gate is not None), same_key=True)


def check_initializer(name: str, argument: str, value: Any) -> None:
    """`value` can be called to draw an array, or is a `PerGate`."""
    if isinstance(value, type):
        hint = f"Write {value.__name__}(…), with brackets."
        raise TypeError(f"{name}: `{argument}` should be a function of (key, shape, dtype), got the class {value.__name__}. {hint}")
    if not callable(value) and not isinstance(value, PerGate):
        raise TypeError(f"{name}: `{argument}` should be a function of (key, shape, dtype) or a PerGate, got {value!r}.")


def draw(initializer: Initializer | PerGate, key: Array, gates: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draw one array with its gates on the last axis but one; at least in float32, then cast (a QR has no bfloat16)."""
    wide = promote(dtype, jnp.float32)
    per_gate = initializer if isinstance(initializer, PerGate) else PerGate(initializer, ())
    keys = [key] * len(gates) if per_gate.same_key else jax.random.split(key, len(gates))
    choose = dict(per_gate.named)
    for gate in choose:
        if gate not in gates:
            raise ValueError(f"PerGate: `named` should name gates of the cell, {', '.join(map(repr, gates))}, got {gate!r}.")
    arrays = [choose.get(gate, per_gate.default)(k, shape, wide) for gate, k in zip(gates, keys, strict=True)]
    for gate, array in zip(gates, arrays, strict=True):
        _check_drawn(gate, array, shape)
    return jnp.stack(arrays, axis=-2).astype(dtype)


def _check_drawn(gate: str, array, shape: tuple):
    """What an initialiser gave is an array of the shape asked for."""
    if getattr(array, "shape", None) != shape:
        came = f"shape {array.shape}" if hasattr(array, "shape") else f"{type(array).__name__}"
        hint = "\nDoes the initialiser want brackets, as in jax.nn.initializers.orthogonal()?" if callable(array) else ""
        raise ValueError(f"init: the initialiser of gate {gate!r} should return an array of shape {shape}, got {came}.{hint}")


def non_default_fields(described: Any, *skip: str) -> list[str]:
    """`name=value` for each field of a dataclass that is not its default, as in a call."""
    pairs = [(f, getattr(described, f.name)) for f in fields(described) if f.name not in skip]
    return [f"{f.name}={_written(f.name, value)}" for f, value in pairs if value != f.default]


def _written(name: str, value) -> str:
    if name.endswith("dtype"):
        return jnp.dtype(value).name
    if is_dataclass(value):
        return f"{type(value).__name__}({', '.join(non_default_fields(value))})"
    if isinstance(value, tuple):
        return f"({', '.join(_written('', v) for v in value)})"
    return getattr(value, "__name__", repr(value))
