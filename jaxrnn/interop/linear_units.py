"""Weights of linear recurrent units in the layouts of their authors' code. No other format may be known here."""

from typing import Any, Unpack

import numpy as np

from jaxrnn.cells import LRUCell, RGLRUCell
from jaxrnn.cells.lru import LRUParams, RGLRUParams
from jaxrnn.interop import _checks
from jaxrnn.interop._options import RecurrentOptions, takes_options
from jaxrnn.interop.by_hand import from_params
from jaxrnn.nnx import Recurrent
from jaxrnn.typing import ArrayLike

__all__ = ["from_minimal_lru", "from_recurrent_gemma", "to_minimal_lru", "to_recurrent_gemma"]

MINIMAL_LRU = ("nu_log", "theta_log", "gamma_log", "B_re", "B_im", "C_re", "C_im", "D")


@takes_options
def from_recurrent_gemma(params: dict[str, Any], **options: Unpack[RecurrentOptions]) -> Recurrent:
    """Make a module of one layer from the params of an `RGLRU` of RecurrentGemma (De et al., 2024, arXiv:2402.19427).

    They are `a_param` (width,), and of `a_gate` and `input_gate` a `w` (blocks, width / blocks, width / blocks) and a `b` (blocks,
    width / blocks). What is Λ here is stored there as −Λ. At the first step of a sequence that code multiplies the input by 1
    instead of √(1 − a²), so that states agree from a given state on, not from the first step.

    Args:
        params: nested dicts of arrays.
        options: arguments of `jaxrnn.Recurrent`.

    Raises:
        TypeError, ValueError: an array is missing, or its shape does not fit the others.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> gate = lambda: {"w": rng.normal(size=(2, 3, 3)).astype("float32"), "b": np.zeros((2, 3), "float32")}
        >>> from_recurrent_gemma({"a_param": np.full(6, -4.0, "float32"), "a_gate": gate(), "input_gate": gate()})
        Recurrent(RGLRUCell, 6, 6, blocks=2)
    """
    name = "from_recurrent_gemma"
    shapes, (decay,) = None, _arrays(name, params, ("a_param",))
    weights, biases = [], []
    for label in ("a_gate", "input_gate"):
        w, b = _arrays(name, _field(name, params, label), ("w", "b"), label)
        shapes = shapes or w.shape
        if w.ndim != 3 or w.shape[1] != w.shape[2] or w.shape[0] * w.shape[1] != decay.size or w.shape != shapes:
            rule = (
                f"have shape (blocks, width / blocks, width / blocks) for `a_param` of width {decay.size}, the same for both gates"
            )
            raise ValueError(f"{name}: `{label}.w` should {rule}, got {w.shape}.")
        if b.shape != w.shape[:2]:
            raise ValueError(f"{name}: `{label}.b` should have shape {w.shape[:2]}, got {b.shape}.")
        weights.append(w.transpose(1, 0, 2).reshape(w.shape[1], -1))
        biases.append(b.reshape(-1))
    arrays: list[Any] = [np.stack(weights, axis=1), None, np.stack(biases), None, -decay, None]
    return from_params(RGLRUCell(blocks=shapes[0]), RGLRUParams(*arrays), **options)


def to_recurrent_gemma(module: Recurrent) -> dict[str, Any]:
    """The params of an `RGLRU` of RecurrentGemma, from a module of one layer and direction; `from_recurrent_gemma` reads them."""
    params = _only(module, RGLRUCell, "to_recurrent_gemma")
    if params.w_x is not None:
        raise ValueError("to_recurrent_gemma: `module` should have input_size = hidden_size, since that layer projects no input.")
    block, _, width = params.w_ih.shape
    blocks = params.w_ih.reshape(block, 2, width // block, block).transpose(1, 2, 0, 3)
    biases = np.zeros((2, width), params.w_ih.dtype) if params.b_ih is None else params.b_ih
    gates = {name: {"w": w, "b": b.reshape(-1, block)} for name, w, b in zip(("a_gate", "input_gate"), blocks, biases, strict=True)}
    return {"a_param": -params.decay, **gates}


@takes_options
def from_minimal_lru(params: dict[str, Any], **options: Unpack[RecurrentOptions]) -> tuple[Recurrent, np.ndarray, np.ndarray]:
    """Make a module of one layer from the params of an `LRU` of minimal-LRU (Orvieto et al., 2023, arXiv:2303.06349).

    Args:
        params: a dict of `nu_log`, `theta_log`, `gamma_log` (N,), `B_re`, `B_im` (N, input), `C_re`, `C_im` (output, N) and `D`
            (output,).
        options: arguments of `jaxrnn.Recurrent`.

    Returns:
        (module, w_out, d): that layer's output Re(C h) + D ⊙ x is `module(x)[0] @ w_out + d * x`.

    Raises:
        TypeError, ValueError: an array is missing, or its shape does not fit the others.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draw = lambda *shape: rng.normal(size=shape).astype("float32")
        >>> shapes = {"B_re": (4, 3), "B_im": (4, 3), "C_re": (3, 4), "C_im": (3, 4), "D": (3,)}
        >>> params = {name: draw(*shapes.get(name, (4,))) for name in MINIMAL_LRU}
        >>> module, w_out, d = from_minimal_lru(params)
        >>> module, w_out.shape
        (Recurrent(LRUCell, 3, 4, bias=False), (8, 3))
    """
    name = "from_minimal_lru"
    nu, theta, gamma, b_re, b_im, c_re, c_im, d = _arrays(name, params, MINIMAL_LRU)
    n, width = nu.size, d.size
    wanted = {"nu_log": (n,), "theta_log": (n,), "gamma_log": (n,), "D": (width,), "B_re": (n, width), "B_im": (n, width)}
    wanted |= {"C_re": (width, n), "C_im": (width, n)}
    for field, shape in wanted.items():
        if params[field].shape != shape:
            rule = f"have shape {shape}, for `nu_log` of {n} units and `D` of {width} outputs"
            raise ValueError(f"{name}: `{field}` should {rule}, got {params[field].shape}.")
    arrays: list[Any] = [np.stack([b_re.T, b_im.T], axis=1), None, None, None, nu, theta, gamma]
    w_out = np.stack([c_re.T, -c_im.T], axis=1).reshape(2 * n, -1)
    return from_params(LRUCell(), LRUParams(*arrays), **options), w_out, d


def to_minimal_lru(module: Recurrent, w_out: ArrayLike, d: ArrayLike) -> dict[str, Any]:
    """The params of an `LRU` of minimal-LRU, from a module of one layer and direction, as `from_minimal_lru` reads them."""
    params, w_out = _only(module, LRUCell, "to_minimal_lru"), np.asarray(w_out)
    if w_out.ndim != 2 or len(w_out) != 2 * params.nu_log.size:
        rule = f"have {2 * params.nu_log.size} rows, two for each unit"
        raise ValueError(f"to_minimal_lru: `w_out` should {rule}, got shape {w_out.shape}.")
    c = w_out.reshape(-1, 2, w_out.shape[1])
    b_re, b_im = params.w_ih[:, 0].T, params.w_ih[:, 1].T
    if np.shape(d) != (c.shape[-1],):
        raise ValueError(f"to_minimal_lru: `d` should have shape {(c.shape[-1],)}, a weight for each output, got {np.shape(d)}.")
    arrays = (params.nu_log, params.theta_log, params.gamma_log, b_re, b_im, c[:, 0].T, -c[:, 1].T, np.asarray(d))
    return dict(zip(MINIMAL_LRU, arrays, strict=True))


def _field(name: str, params: Any, field: str, path: str = "params"):
    if not isinstance(params, dict) or field not in params:
        came = ", ".join(map(str, params)) if isinstance(params, dict) else type(params).__name__
        raise TypeError(f"{name}: `{path}` should be a dict that has {field!r}, got {came}.")
    return params[field]


def _arrays(name: str, params: Any, fields: tuple[str, ...], path: str = "params") -> list[np.ndarray]:
    found = [_field(name, params, field, path) for field in fields]
    for field, a in zip(fields, found, strict=True):
        if not hasattr(a, "shape") or not hasattr(a, "dtype"):
            raise TypeError(f"{name}: `{path}[{field!r}]` should be an array, got {type(a).__name__}.")
    return list(map(np.asarray, found))


def _only(module: Any, cell: type, name: str):
    """The params of the one layer and direction of a module, as arrays of NumPy."""
    stack = getattr(module, "stack", None)
    if stack is None or type(stack.cell) is not cell or (stack.num_layers, stack.num_directions) != (1, 1):
        wanted = f"be a jaxrnn.Recurrent of {cell.__name__}, one layer in one direction"
        raise TypeError(f"{name}: `module` should {wanted}, got {module!r}.")
    _checks.refuse_options(name, stack)
    (params,) = module.params[0]
    return type(params)(*(None if p is None else np.asarray(p.get_value()) for p in params))
