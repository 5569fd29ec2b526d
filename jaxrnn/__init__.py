"""Recurrent networks for JAX and Flax: pure cell steps, scanned over time, in stacked and bidirectional modules.

Flax NNX: `RNN`, `LSTM`, `GRU`, and `Recurrent` for any cell. Linen: `jaxrnn.linen`. Pure functions: `Cell.step`, `unroll`, `Stack`,
`linear_scan`. Whole models: `jaxrnn.models`. Weights of other libraries: `jaxrnn.interop`. Trained runs: `jaxrnn.runs`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from jaxrnn import cells, initializers, linen, models, trees
from jaxrnn.cells import *  # noqa: F403
from jaxrnn.cells import CELLS as CELLS
from jaxrnn.engine import linear_scan, unroll
from jaxrnn.nnx import GRU, LSTM, RNN, Recurrent, params_of
from jaxrnn.stack import Stack

__version__ = "0.2.0"
__all__ = [
    "GRU", "LSTM", "RNN", "Recurrent", "Stack", "cells", "initializers", "linear_scan", "linen", "models", "params_of", "trees",
    "unroll",
]  # fmt: skip
__all__ += cells.__all__

if TYPE_CHECKING:
    from jaxrnn import data_parallel as data_parallel
    from jaxrnn import interop as interop
    from jaxrnn import model_json as model_json
    from jaxrnn import padding as padding
    from jaxrnn import runs as runs
    from jaxrnn import scaling as scaling
    from jaxrnn import text as text
else:

    def __getattr__(name: str):
        """Import what is not the core where it is first used."""
        if name in ("data_parallel", "interop", "model_json", "padding", "runs", "scaling", "text"):
            return import_module(f"jaxrnn.{name}")
        raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")
