"""The trained model of a run's folder, as the training scripts leave it. No training may live here, and no script is needed."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn import _checkpoints, checks, descriptions
from jaxrnn.scaling import Scaler
from jaxrnn.synonyms import checked

SHOWN = 6
"""How many runs or arrays a message names."""


class LoadedRun(NamedTuple):
    """What `load_run` returns."""

    model: Any
    scaler: Scaler | None
    config: dict[str, Any]


@checked()
def load_run(folder: str | os.PathLike[str], *, step: int | None = None, model: nnx.Module | None = None) -> LoadedRun:
    """Load the trained model of a run.

        model, scaler, config = load_run("runs/forecast/co2/LSTM-0")

    A run is a folder that holds `checkpoints`, written by a training script. The checkpoint says which class of `jaxrnn` the model
    is of and with which arguments it was made. Reading it needs Orbax: `pip install 'jaxrnn[train]'`.

    Args:
        folder: of a run; or one with a single run in it.
        step: of the checkpoint; `None` means the newest.
        model: a model to fill, where its class lives in a script: made with the sizes of the run. Everything of it but its
            parameters is left as it is.

    Returns:
        `LoadedRun(model, scaler, config)`: the model, in evaluation mode if it was made here; the `jaxrnn.scaling.Scaler` of a
        forecast, None elsewhere; the options of the run.

    Raises:
        FileNotFoundError: there is no run in the folder, or none at that step. ValueError: there are several; the checkpoint is
            damaged; the model's class lives in a script; or `model` has other arrays. ImportError: Orbax is not installed.
    """
    runs = _runs(_path(folder))
    if len(runs) > 1:
        raise ValueError(
            f"load_run: `folder` should hold one run, got {folder}, which holds {len(runs)}.\nName one: {_some(runs)}."
        )
    run = runs[0]
    checkpoint, manifest = _checkpoint(run, step)
    if importlib.util.find_spec("orbax") is None:
        raise ImportError("load_run: the package orbax-checkpoint is missing: pip install 'jaxrnn[train]'")
    kept = manifest["metadata"]
    model = _made(run, kept["model"]) if model is None else model
    checks.kind("load_run", "model", model, nnx.Module)
    try:
        arrays = _checkpoints.read_arrays(checkpoint)
    except Exception as error:  # whatever Orbax and its readers raise: the files are those that were written
        reason = str(error).strip().splitlines() or [type(error).__name__]
        hint = "Is it of a newer version of orbax-checkpoint? pip install --upgrade orbax-checkpoint"
        raise ValueError(f"load_run: Orbax cannot read {checkpoint}: {reason[0]}\n{hint}") from error
    prefix = f"{kept['params']}/"
    _fill(run, model, {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)})
    return LoadedRun(model, Scaler(**kept["scaler"]) if kept["scaler"] else None, kept["config"])


# The folder -----------------------------------------------------------------------------------------------------------------


def _path(folder) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"load_run: `folder` should be the path of a run, got {checks.called(folder)}.")
    path = Path(folder)
    if "\0" in str(path) or not path.is_dir():
        what = "is a file" if "\0" not in str(path) and path.is_file() else "is not there"
        raise FileNotFoundError(f"load_run: `folder` should be the folder of a run, got {str(folder)!r}, which {what}.")
    return path


def _runs(path: Path) -> list[Path]:
    """The runs in a folder, itself first; no deeper than scripts put them."""
    if (path / _checkpoints.FOLDER).is_dir():
        return [path]
    found = [place.parent for depth in ("*", "*/*") for place in path.glob(f"{depth}/{_checkpoints.FOLDER}") if place.is_dir()]
    if not found:
        hint = "Train one first, for instance with scripts/train_forecast.py, or name the folder that was its --out."
        raise FileNotFoundError(f"load_run: `folder` should hold a run, with a folder `checkpoints` in it, got {path}.\n{hint}")
    return sorted(found)


def _checkpoint(run: Path, step: int | None) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a step, or the newest that was finished, and its manifest."""
    place = run / _checkpoints.FOLDER
    if step is not None:
        checks.size("load_run", "step", step, least=0)
    wanted = _checkpoints.steps(place) if step is None else [step]
    faults: list[str] = []
    for number in reversed(wanted):
        folder = place / str(number)
        if not folder.exists():
            there = ", ".join(map(str, _checkpoints.steps(place))) or "none"
            raise FileNotFoundError(f"load_run: `step` should be one of {there}, the checkpoints in {place}, got {number}.")
        try:
            manifest = _checkpoints.read_manifest(folder)
        except _checkpoints.UnfinishedError as fault:
            if step is not None:
                raise ValueError(f"load_run: the checkpoint of step {step} in {place} {fault}.\n{_way_on(place, step)}") from None
            continue  # the run may be writing it
        except _checkpoints.DamagedError as fault:
            faults.append(f"load_run: the checkpoint of step {number} in {place} {fault}.\n{_way_on(place, number)}")
            break
        return folder, manifest
    if faults:
        raise ValueError(faults[0])
    raise FileNotFoundError(f"load_run: `folder` should hold a finished checkpoint, got none in {place}.\n{AGAIN}")


AGAIN = "Start the script that trains the run again, with the same command: it goes on, or begins anew, and saves one."


def _way_on(place: Path, damaged: int) -> str:
    """What to do about a damaged checkpoint."""
    for number in reversed(_checkpoints.steps(place)):
        try:
            if number != damaged:
                _checkpoints.read_manifest(place / str(number))
                return f"The one of step {number} is whole: pass step={number}, or train again from there with the same command."
        except _checkpoints.DamagedError:
            continue
    return AGAIN


# The model ------------------------------------------------------------------------------------------------------------------


def _made(run: Path, description: Any) -> nnx.Module:
    if description["class"] not in descriptions.MODELS:
        hint = "Make one with the sizes of the run, which its config.json has, and pass it: load_run(folder, model=…)."
        raise ValueError(f"load_run: the model of {run} is a {description['class']}, which is no class of jaxrnn.\n{hint}")
    model = descriptions.build(description)
    model.eval()
    return model


def _fill(run: Path, model: nnx.Module, arrays: dict[str, np.ndarray]):
    """Put arrays into the parameters of a model, all of them or none."""
    state = nnx.state(model, nnx.Param)
    leaves, structure = jax.tree.flatten(state)
    names = _checkpoints.names(state)
    wanted, came = _checkpoints.shapes(dict(zip(names, leaves, strict=True))), _checkpoints.shapes(arrays)
    wrong = [
        f"{name}: {came.get(name, 'nothing')} in the run, {wanted.get(name, 'nothing')} in the model"
        for name in sorted(wanted.keys() | came.keys())
        if wanted.get(name) != came.get(name)
    ]
    if wrong:
        lines = "\n    ".join(wrong[:SHOWN] + ["…"] * (len(wrong) > SHOWN))
        raise ValueError(f"load_run: `model` should have the parameters of the run in {run}, but differs:\n    {lines}")
    nnx.update(model, jax.tree.unflatten(structure, [jnp.asarray(arrays[name]) for name in names]))


def _some(runs: list[Path]) -> str:
    return ", ".join(map(str, runs[:SHOWN])) + (", …" if len(runs) > SHOWN else "")
