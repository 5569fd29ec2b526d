"""Running a cell over time, cut along its reasons to change: what is computed (`problem`), what one step means (`transition`), ways
to run the loop (`strategies` and their files), sizes for a machine (`tuning`). `unroll` is the door, `core` behind it."""

from jaxrnn.engine.linear_scan import linear_scan
from jaxrnn.engine.unroll import unroll

__all__ = ["linear_scan", "unroll"]
