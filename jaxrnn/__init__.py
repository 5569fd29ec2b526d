"""Recurrent networks for JAX and Flax: pure cell steps, scanned over time, in stacked and bidirectional modules."""

from jaxrnn.cells import *  # noqa: F403
from jaxrnn.unroll import unroll
