"""The operators of ONNX that are evaluated. Names, graphs and files are not known here.

An operator that is not in `OPERATORS` is not evaluated. Each function takes a `Call` and returns its outputs, or raises
`Unreadable`: then the result is another source if the call is fed, and an error if it is computed from constants alone.
"""

from collections.abc import Callable

from jaxrnn.interop._onnx_array import Array
from jaxrnn.interop._onnx_call import Call
from jaxrnn.interop._onnx_ops_moves import MOVES
from jaxrnn.interop._onnx_ops_numbers import NUMBERS

OPERATORS: dict[str, Callable[[Call], Array | list[Array]]] = MOVES | NUMBERS
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
