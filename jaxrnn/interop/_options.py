"""What loaders take for the module that they make, beside what weights tell. No format may be known here."""

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, TypedDict, TypeVar, get_type_hints

from flax import nnx

from jaxrnn.synonyms import checked
from jaxrnn.typing import Backend, DTypeLike, Merge, Nonlinearity

F = TypeVar("F", bound=Callable[..., Any])


class RecurrentOptions(TypedDict, total=False):
    """Arguments of `jaxrnn.Recurrent`, beside its cell and what weights tell. None: as the source says, or else the default."""

    batch_first: bool | None
    dropout: float | None
    merge: Merge | None
    residual: bool | None
    skip_connections: bool | None
    input_dropout: float | None
    recurrent_dropout: float | None
    zoneout: float | None
    weight_dropout: float | None
    learn_initial_state: bool | None
    remat: bool | None
    truncate: int | None
    dtype: DTypeLike | None
    param_dtype: DTypeLike | None
    backend: Backend | None
    output_only: bool | None
    rngs: nnx.Rngs | None


class TorchOptions(RecurrentOptions, total=False):
    """`RecurrentOptions`, and what PyTorch's keys do not tell of an RNN."""

    nonlinearity: Nonlinearity | None


def takes_options(function: F) -> F:
    """Decorate a loader with `**options: Unpack[RecurrentOptions]`, or of another such class: `inspect.signature` has them one by
    one, those that are None are left out, and another argument is answered with the right ones."""
    own = signature(function)
    (described,) = own.parameters["options"].annotation.__args__
    hints = get_type_hints(described)
    named = [p for p in own.parameters.values() if p.kind is not Parameter.VAR_KEYWORD]
    there = {p.name for p in named}
    more = [Parameter(n, Parameter.KEYWORD_ONLY, default=None, annotation=hint) for n, hint in hints.items() if n not in there]

    @wraps(function)
    def loading(*args, **kwargs):
        return function(*args, **{name: value for name, value in kwargs.items() if value is not None or name not in hints})

    loading.__signature__ = own.replace(parameters=[*named, *more])  # pyright: ignore[reportAttributeAccessIssue]
    return checked()(loading)  # pyright: ignore[reportReturnType]  `wraps` makes it look like `function`
