"""A run's configuration: a frozen dataclass, its command-line flags and its JSON. Nothing of JAX may be imported here."""

import argparse
import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

C = TypeVar("C")


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    above: float | None = None,
    saved: bool = True,
    amount: bool = False,
    each: bool = False,
    metavar: str | None = None,
    variable: str | None = None,
):
    """A field of a configuration, with what its flag needs.

    Args:
        default: its value if the flag is not given; `None` if the help itself says what happens then.
        help: a sentence about it for `--help`, which adds the choices and the default.
        least: the smallest number allowed.
        above: the number that the value should be above.
        saved: whether it is part of what the run computes: saved with it, and not to be changed when it goes on.
        amount: whether it says how long to train: saved, but when the run goes on, there may be more of it.
        each: whether each of its values is a run of its own: saved, but others may be added later.
        metavar: what its value is called in `--help`.
        variable: an environment variable that is read if the flag is not given.
    """
    bounds = {"least": least, "above": above}
    kind = {"saved": saved, "amount": amount, "each": each}
    return dataclasses.field(default=default, metadata={"help": help, **bounds, **kind, "metavar": metavar, "variable": variable})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The flags of every script that keeps checkpoints; a script adds its own in a subclass.

    One word means one thing in all of them: `task`, what is trained on; `cell` and `seed`, which, like `task` and `length`, take
    several values, each a run of its own; `steps`, batches to train on, or `epochs`, times through the data, in which `save_every`
    and `validate_every` count too.
    """

    save_every: int = option(100, "Steps between checkpoints.", least=1, saved=False)
    devices: int = option(1, "Local devices to spread each batch over; a CPU is split into this many.", least=1)
    num_processes: int = option(1, "Processes that train together, one per host.", least=1, variable="JAX_NUM_PROCESSES")
    process_id: int = option(0, "Number of this process, from 0.", least=0, saved=False, variable="JAX_PROCESS_ID")
    coordinator: str | None = option(
        None, "Address of process 0, if there are several.", saved=False, metavar="HOST:PORT", variable="JAX_COORDINATOR_ADDRESS"
    )
    tensorboard: bool = option(False, "Write event files for TensorBoard too.", saved=False)
    out: str = option("runs/run", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


def parse(kind: type[C], arguments: Sequence[str] | None = None, *, description: str) -> C:
    """Read a configuration from the command line.

    Every field becomes a flag, `hidden_size` becoming `--hidden-size`, and `with_` `--with`. The type of a field may be `int`,
    `float`, `str`, `bool` (`--flag`, false by default), a `Literal` of strings (matched in any case), `tuple[T, ...]` of these
    (one value or more), or `T | None`.

    Args:
        kind: a frozen dataclass, its fields made by `option`.
        arguments: words to read in place of the command line's.
        description: what the script does; its first line is shown by `--help`.

    Returns:
        An instance of `kind`.

    Raises:
        SystemExit: a flag is wrong (code 2, with a message on stderr), or `--help` was asked for (code 0).

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     cell: Literal["LSTM", "GRU"] = option("LSTM", "Which cell.")
        ...     epochs: int = option(100, "Times through the data.", least=1)
        >>> parse(Config, ["--cell", "GRU"], description="Train.")
        Config(cell='GRU', epochs=100)
    """
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0], allow_abbrev=False)
    types_of = typing.get_type_hints(kind)
    of_every_run = {field.name for field in dataclasses.fields(RunConfig)}
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name in of_every_run):
        flag, variable = "--" + field.name.rstrip("_").replace("_", "-"), field.metadata["variable"]
        default = os.environ.get(variable, field.default) if variable else field.default
        shared = {"dest": field.name, "default": default, "help": _help(field, types_of[field.name])}
        parser.add_argument(flag, **shared, **_argument(types_of[field.name], field.metadata))
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(parser.parse_args(arguments)).items()}
    once = {field.name for field in dataclasses.fields(kind) if field.metadata["each"]}
    return kind(**{k: tuple(dict.fromkeys(v)) if k in once and isinstance(v, tuple) else v for k, v in values.items()})


def _help(field: dataclasses.Field, annotation: Any) -> str:
    """What `--help` says about a field: its own sentence, the choices where there may be several, the default."""
    words, default = [field.metadata["help"]], field.default
    if typing.get_origin(annotation) is tuple and typing.get_origin(typing.get_args(annotation)[0]) is Literal:
        choices = typing.get_args(typing.get_args(annotation)[0])
        words.append(f"Any of {', '.join(choices)}.")
        default = "all" if default == choices else default
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    variable = f"${field.metadata['variable']}" if field.metadata["variable"] else None
    defaults = [str(d) for d in (variable, default) if d is not None and d is not False and d != ""]
    if defaults:
        words.append(f"Default: {', or '.join(defaults)}.")
    return " ".join(words).replace("%", "%%")


def _argument(annotation: Any, metadata: Any) -> dict[str, Any]:
    """What argparse should be told about a field."""
    if typing.get_origin(annotation) is tuple:
        one = _argument(typing.get_args(annotation)[0], metadata)
        return {"nargs": "+", "metavar": "NAME", **one}
    if isinstance(annotation, types.UnionType):  # T | None
        return _argument(typing.get_args(annotation)[0], metadata)
    if typing.get_origin(annotation) is Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": lambda text: next((c for c in choices if c.lower() == text.lower()), text)}
    if annotation is bool:
        return {"action": "store_true"}
    if annotation in (int, float):
        return {"type": _number(annotation, metadata["least"], metadata["above"]), "metavar": metadata["metavar"] or "N"}
    return {"metavar": metadata["metavar"] or "TEXT"}


def _number(kind: type, least: float | None, above: float | None):
    """A reader of numbers that says what it expected."""
    rule = "should be a whole number" if kind is int else "should be a number"
    rule += "" if least is None else f" of at least {least}"
    rule += "" if above is None else f" above {above}"

    def read(text: str):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        too_low = (least is not None and value < least) or (above is not None and value <= above)
        if too_low or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
        return value

    return read


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as what JSON can hold, without the fields that do not change the result."""
    saved = {f.name for f in dataclasses.fields(config) if f.metadata["saved"]}
    values = {k: v for k, v in dataclasses.asdict(config).items() if k in saved}
    return json.loads(json.dumps(values, default=str))


def free_fields(config: Any) -> set[str]:
    """The names of the saved fields that may be others when the run goes on: how long it is, and which runs there are."""
    return {f.name for f in dataclasses.fields(config) if f.metadata["amount"] or f.metadata["each"]}


def differences(before: dict[str, Any], now: dict[str, Any], *, free: Iterable[str] = ()) -> list[str]:
    """The fields in which two saved configurations differ, a line each; those that are `free` to are left out."""
    missing = "(no such field)"
    return [
        f"{name}: {before.get(name, missing)} before, {now.get(name, missing)} now"
        for name in sorted((before.keys() | now.keys()) - set(free))
        if before.get(name, missing) != now.get(name, missing)
    ]
