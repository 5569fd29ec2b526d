"""Strategy: a linear cell in parallel over time. The choice for devices that are wide."""

from functools import partial

from jaxrnn.engine import scan_linear

refuses = scan_linear.refuses
run = partial(scan_linear.run, form="associative")
