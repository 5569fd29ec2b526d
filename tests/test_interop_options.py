"""What a caller says of a module that is read, and what a file says of it: the options given are the options there."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import jaxrnn
from jaxrnn.cells import GateParams
from jaxrnn.interop import (
    from_equinox,
    from_haiku,
    from_linen,
    from_nnx,
    from_onnx,
    from_params,
    from_safetensors,
    from_torch,
    to_equinox,
    to_haiku,
    to_keras,
    to_linen,
    to_nnx,
    to_onnx,
    to_safetensors,
    to_torch,
)

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
eqx = pytest.importorskip("equinox")

INPUT, HIDDEN = 2, 3
SIZES = ((INPUT, HIDDEN), (HIDDEN, HIDDEN))  # two layers of every source


def ours(**options):
    return jaxrnn.LSTM(INPUT, HIDDEN, 2, rngs=nnx.Rngs(0), **options)


def abstract(**options):
    """With shapes, and no values."""
    return nnx.eval_shape(lambda: ours(**options))


def theirs(**options):
    return torch.nn.LSTM(INPUT, HIDDEN, 2, **options)


@cache
def linen_cell(width, hidden):
    shapes = jax.eval_shape(nn.LSTMCell(hidden).init, jax.random.key(0), (jnp.ones(hidden),) * 2, jnp.ones(width))
    return jax.tree.map(lambda a: np.full(a.shape, 0.1, np.float32), shapes)


@cache
def nnx_cell(width, hidden):
    return nnx.LSTMCell(width, hidden, rngs=nnx.Rngs(0))


@cache
def equinox_cell(width, hidden):
    return eqx.nn.LSTMCell(width, hidden, key=jax.random.key(0))


def haiku_params():
    return {f"l{k}/linear": {"w": np.ones((w + h, 4 * h), np.float32), "b": np.ones(4 * h, np.float32)} for k, (w, h) in
            enumerate(SIZES)}  # fmt: skip


def params(width, hidden):
    shapes = ((width, 4, hidden), (hidden, 4, hidden), (4, hidden), (4, hidden))
    return GateParams(*(np.full(shape, 0.1, np.float32) for shape in shapes))


def by_torch(told, path, **options):
    return from_torch(theirs(**told), **options)


def by_torch_layers(told, path, **options):
    return from_torch([theirs(**told)], **options)


def by_safetensors(told, path, **options):
    to_safetensors(ours(**told), path / "m")
    return from_safetensors(path / "m", **options)


def by_onnx(told, path, **options):
    return from_onnx(to_onnx(ours(**told)), **options)


TELLING = {"torch": by_torch, "torch, layers": by_torch_layers, "safetensors": by_safetensors, "onnx": by_onnx}
"""Readers of what says `batch_first` and `dropout` itself."""
SILENT = {
    "state_dict": lambda **options: from_torch(theirs().state_dict(), **options),
    "linen": lambda **options: from_linen([linen_cell(*sizes) for sizes in SIZES], **options),
    "nnx": lambda **options: from_nnx([nnx_cell(*sizes) for sizes in SIZES], **options),
    "haiku": lambda **options: from_haiku(haiku_params(), ["l0", "l1"], **options),
    "equinox": lambda **options: from_equinox([equinox_cell(*sizes) for sizes in SIZES], **options),
    "params": lambda **options: from_params(jaxrnn.LSTMCell(), [params(*sizes) for sizes in SIZES], **options),
}
"""Readers of what does not, so that our defaults hold."""
FLAT = {"batch_first": False, "dropout": 0.25}
TURNED = {"batch_first": True, "dropout": 0.0}


@pytest.mark.parametrize("told", [FLAT, TURNED], ids=["time first", "batch first"])
@pytest.mark.parametrize("reader", TELLING)
def test_what_a_source_says_holds_where_the_caller_says_nothing(reader, told, tmp_path):
    module = TELLING[reader](told, tmp_path)
    assert {"batch_first": module.batch_first, "dropout": module.stack.dropout} == told


@pytest.mark.parametrize("told", [FLAT, TURNED], ids=["time first", "batch first"])
@pytest.mark.parametrize("reader", TELLING)
def test_what_the_caller_says_holds_over_what_the_source_says(reader, told, tmp_path):
    """Each option alone, and both."""
    other = TURNED if told is FLAT else FLAT
    for given in ({"batch_first": other["batch_first"]}, {"dropout": other["dropout"]}, other):
        module = TELLING[reader](told, tmp_path, **given)
        assert {"batch_first": module.batch_first, "dropout": module.stack.dropout} == told | given


RANDOM = {"dropout": 0.5, "input_dropout": 0.25, "recurrent_dropout": 0.375, "weight_dropout": 0.125}
OPTIONS = [
    {"batch_first": False, "remat": True, **RANDOM},
    {"truncate": 2, "dtype": jnp.float32},
]
LACKED = [{"zoneout": 0.25, "residual": True}, {"learn_initial_state": True}]
"""What PyTorch does not have, so that its keys cannot be read into it."""


@pytest.mark.parametrize("reader", [*SILENT, *TELLING])
def test_an_option_given_is_the_option_there(reader, tmp_path):
    """And no other is changed by it; or it is refused by name."""
    if reader in SILENT:
        read = SILENT[reader]
    else:
        read = lambda **options: TELLING[reader](TURNED, tmp_path, **options)
    default = read()
    assert default.batch_first
    for given in OPTIONS + LACKED:
        if given in LACKED and reader in ("state_dict", "torch", "safetensors"):
            option, value = list(given.items())[-1]
            with pytest.raises(ValueError, match=rf"`{option}` should be .*, got {value}"):
                read(**given)
            continue
        module = read(**given)
        assert module.batch_first == given.get("batch_first", True)
        assert module.stack == replace(default.stack, **{option: given[option] for option in given.keys() - {"batch_first"}})
        assert (module.learned is not None) == ("learn_initial_state" in given)


def test_a_nonlinearity_given_is_the_one_there(tmp_path):
    """Over the one that a file says."""
    to_safetensors(jaxrnn.RNN(INPUT, HIDDEN, nonlinearity="relu", rngs=nnx.Rngs(0)), tmp_path / "m")
    relu = torch.nn.RNN(INPUT, HIDDEN, nonlinearity="relu")
    for read in (
        lambda **options: from_safetensors(tmp_path / "m", **options),
        lambda **options: from_torch(relu, **options),
        lambda **options: from_torch([relu], **options),
    ):
        assert read().stack.cell.nonlinearity == "relu"
        assert read(nonlinearity="tanh").stack.cell.nonlinearity == "tanh"


WRITERS = {
    "to_torch": to_torch,
    "to_safetensors": lambda module: to_safetensors(module, "nowhere"),
    "to_onnx": to_onnx,
    "to_linen": to_linen,
    "to_nnx": to_nnx,
    "to_haiku": lambda module: to_haiku(module, ["a", "b"]),
    "to_equinox": to_equinox,
    "to_keras": to_keras,
}
CHANGING = {"residual": True, "skip_connections": True, "zoneout": 0.25, "learn_initial_state": True}
"""Options that change what a module computes, and that only ONNX can say, and of these the last."""


@pytest.mark.parametrize("writer", WRITERS)
def test_an_option_that_a_format_cannot_hold_is_refused_by_name(writer):
    for option, value in CHANGING.items():
        module = abstract(**{option: value})
        if (writer, option) == ("to_onnx", "learn_initial_state"):
            continue
        with pytest.raises(
            ValueError, match=rf"^{writer}: `{option}` should be .*, the only one that the format holds, got {value}"
        ):
            WRITERS[writer](module)
    if writer in ("to_torch", "to_safetensors", "to_onnx"):
        with pytest.raises(ValueError, match=rf"^{writer}: `merge` should be 'concat', .* got 'sum'"):
            WRITERS[writer](abstract(bidirectional=True, merge="sum"))


@jax.jit
def run(module, x):
    return module(x)[0]


@pytest.mark.parametrize("reader", [*SILENT, *TELLING])
def test_dropout_draws_from_the_rngs_given(reader, tmp_path):
    """The same seed gives the same outputs, another gives others."""
    x = jnp.ones((3, 4, INPUT))

    def outputs(rngs):
        options = {"dropout": 0.5, "batch_first": True, "rngs": rngs}
        module = SILENT[reader](**options) if reader in SILENT else TELLING[reader](FLAT, tmp_path, **options)
        # PyTorch draws its weights anew each time.
        nnx.update(module, jax.tree.map(lambda a: jnp.full(a.shape, 0.1, a.dtype), nnx.state(module, nnx.Param)))
        module.train()
        return np.asarray(run(module, x))

    first, again, other = (outputs(nnx.Rngs(params=0, dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
