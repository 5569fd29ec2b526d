"""One training run in a folder: where it stands, what it measured, what it can go on from. It is told about each step by the
script's own loop, and never calls it."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxrnn import _checkpoints
from jaxrnn.model_json import describe
from jaxrnn.scaling import Scaler
from training import devices
from training.checkpoints import Checkpoints
from training.config import differences, to_json
from training.console import Failure, Progress, log, warn
from training.folder import CONFIG, Folder, check_own, own_folder

FLUSH = 50
"""How many logged steps may wait on the devices before they are fetched, checked and written."""
DRAFT = "checkpoints-draft"
"""Where a model is saved before it takes the place of another."""


class Run:
    """The metrics and checkpoints of one model in training.

        run = Run(folder, "LSTM-0", save_every=100, model=model)
        params, opt_state, sampler.state = run.restore(params=params, optimizer=opt_state, sampler=sampler.state)
        for step in run.steps(1000):
            …
            run.log(step, loss=loss)
            run.checkpoint(step, params=params, optimizer=opt_state, sampler=sampler.state)

    Killed at any moment and begun again, it ends as if it had not been: a checkpoint also says how long the metrics file was,
    and what was written after that is written again. The names in a checkpoint are those given here and the paths within:
    `params/rnn/layer_0/forward/w_ih`.

    Args:
        folder: from `open_folder`.
        name: of a sub-folder; the run's name in messages.
        save_every: steps between checkpoints; where several are taken at once, the first of those after.
        tensorboard: write TensorBoard's files too.
        model: what is trained; `jaxrnn.runs.load_run` makes it again from the checkpoint, if its class is one of `jaxrnn`.
        holds: under which name a checkpoint has the parameters that `load_run` should take.
        scaler: how the model's numbers become values, for `load_run`.

    Attributes:
        step: the last one that is done.
        config_before: the configuration that the checkpoint it goes on from was made with; empty if there is none.
    """

    def __init__(
        self,
        folder: Folder,
        name: str,
        *,
        save_every: int,
        tensorboard: bool = False,
        model: nnx.Module,
        holds: str = "params",
        scaler: Scaler | None = None,
    ):
        self.folder, self.name, self.save_every = folder, name, save_every
        self.path = folder.path / name
        self._metrics = self.path / "metrics.jsonl"
        self._about = _as_json({"model": _described(model), "params": holds, "scaler": scaler and asdict(scaler)})
        self.step = self.last = 0
        self._every = 1
        self.config_before: dict[str, Any] = {}
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._written = hashlib.sha256()
        self._progress: Progress | None = None
        self._tensorboard, self._writer = tensorboard, None
        if devices.is_main_process():
            own_folder(folder.path, name)
            self._checkpoints = folder.at_exit.enter_context(Checkpoints(self.path / _checkpoints.FOLDER, run=name))

    def restore(self, **trees: Any) -> tuple:
        """Go on from the newest checkpoint that fits: its arrays, placed as those of `trees`; `trees` itself if there is none.

        Returns:
            One tree for each that was given, in that order.

        Raises:
            Failure: the checkpoint is of another model or another configuration, or the metrics have lost lines.
        """
        leaves, structure = jax.tree.flatten(trees)
        names = _checkpoints.names(trees)
        host = dict(zip(names, devices.to_host(leaves), strict=True))
        step, metadata = 0, {}
        if devices.is_main_process():
            check_own(self._metrics)
            step, host, metadata = self._checkpoints.restore(host, self._unfit)
            self._check(step, metadata)
            self.config_before = metadata.get("config", {})
            if not step and self._metrics.exists() and self._metrics.stat().st_size:
                place = self._checkpoints.set_aside(self._metrics)
                warn(f"{self.name}: there is no checkpoint to go on from: beginning anew; the metrics from before are in {place}")
            self._cut_metrics(metadata.get("metrics_bytes", 0))
            if self._tensorboard:
                from tensorboardX import SummaryWriter

                self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
                self.folder.at_exit.callback(self._writer.close)
        self.step = int(devices.from_main_process(np.asarray(step)))
        host = devices.from_main_process(host)
        now = jax.tree.unflatten(structure, [_placed_as(a, host[name]) for a, name in zip(leaves, names, strict=True)])
        return tuple(now[name] for name in trees)

    def steps(self, last: int, *, every: int = 1) -> Iterator[int]:
        """The steps that are left, up to and with `last`: all, or every so many, where a compiled program takes that many at once.

        Raises:
            Failure: the run is further than that already.
        """
        if self.step > last:
            text = f"{self.name} in {self.folder.path} is at step {self.step} already, and {last} are asked for"
            raise Failure(f"{text}: ask for at least as many, or name another folder with --out", code=2)
        self.last, self._every = last, every
        left = range(self.step + every, last + 1, every)
        if self.step:
            log(f"{self.name}: going on after step {self.step}" if left else f"{self.name}: trained already, {self.step} of {last}")
        self._progress = Progress(left, self.name)
        self.folder.stepping = True
        try:
            yield from self._progress
        finally:
            self.folder.stepping = False
        if self.folder.stop_code is not None:  # asked to stop while its last step was saved
            raise KeyboardInterrupt

    def log(self, step: int, **metrics: Any):
        """Note numbers of a step, one line of JSON; they stay on the devices until some have come together.

        Raises:
            Failure: one of them is not finite; names the step and the last good checkpoint.
        """
        self._pending.append((step, metrics))
        if len(self._pending) >= FLUSH or step == self.last or (self._progress and self._progress.due):
            self._flush()

    def checkpoint(self, step: int, **trees: Any):
        """Save what the run can go on from, if it is time to, if this is the last step, or if it was asked to stop.

        Raises:
            Failure: it could not be saved; or it was asked to stop, and has saved (code 130 or 143).
        """
        due = step % self.save_every < self._every or step == self.last
        alone = jax.process_count() == 1
        stop = devices.any_process(self.folder.stop_code is not None) if alone or due or step % 10 == 0 else False
        if due or stop:
            self._flush()
            host = dict(zip(_checkpoints.names(trees), devices.to_host(jax.tree.leaves(trees)), strict=True))
            if devices.is_main_process():
                at = {"metrics_bytes": self._metrics.stat().st_size, "metrics_digest": self._written.hexdigest()}
                self._checkpoints.save(step, host, self._about | at | {"config": self.folder.config})
        if stop:
            raise Failure(f"stopped after step {step}: the same command goes on from there", self.folder.stop_code or 130)

    def _unfit(self, metadata: dict[str, Any]) -> str | None:
        """Why the metrics file is not the one that a checkpoint goes on from; None if it is.

        Raises:
            Failure: the checkpoint is of another version of jaxrnn.
        """
        if lacking := _checkpoints.lacks(metadata, (*_checkpoints.ABOUT, "metrics_bytes", "metrics_digest")):
            what = f"the checkpoints in {self.path} are of another version of jaxrnn (they have no {lacking!r})"
            raise Failure(f"{what}: go on with that version, or name another folder with --out", code=2)
        length = metadata["metrics_bytes"]
        if length == 0:
            return None
        if not self._metrics.exists():
            return f"{self._metrics} is not there"
        with self._metrics.open("rb") as file:
            lines = file.read(length)
        if len(lines) < length:
            return f"{self._metrics} is {len(lines)} bytes long, and was {length} at the checkpoint"
        return None if hashlib.sha256(lines).hexdigest() == metadata["metrics_digest"] else f"{self._metrics} has been changed"

    def _check(self, step: int, metadata: dict[str, Any]):
        """Whether the checkpoint is of this model and this configuration: folders may have been copied into each other."""
        if not step:
            return
        changed = differences({key: metadata[key] for key in self._about}, self._about)
        changed += differences(metadata["config"], self.folder.config, free=self.folder.free)
        if changed:
            lines = "\n    ".join(changed)
            text = f"the checkpoint of step {step} in {self.path} is of another run:\n    {lines}"
            raise Failure(f"{text}\nName another folder with --out.", code=2)

    def _cut_metrics(self, length: int):
        """Take away the lines that were written after the checkpoint."""
        with self._metrics.open("a+b") as file:
            file.truncate(length)
            file.seek(0)
            self._written = hashlib.sha256(file.read())

    def _flush(self):
        """Check what waits, and write it, up to the first number that is not finite."""
        pending, self._pending = jax.device_get(self._pending), []
        numbers = [(step, {name: float(value) for name, value in metrics.items()}) for step, metrics in pending]
        bad = next((k for k, (_, metrics) in enumerate(numbers) if not np.isfinite(list(metrics.values())).all()), None)
        if devices.is_main_process():
            self._write(numbers[:bad])
        if bad is not None:
            step, metrics = numbers[bad]
            name = next(name for name, value in metrics.items() if not np.isfinite(value))
            last = self._checkpoints.last_good if devices.is_main_process() else ""
            raise Failure(f"{self.name}: {name} is {metrics[name]} at step {step}. {last}")
        if numbers and self._progress:
            self._progress.show(numbers[-1][0], **numbers[-1][1])

    def _write(self, numbers: list[tuple[int, dict[str, float]]]):
        lines = "".join(json.dumps({"step": step} | metrics) + "\n" for step, metrics in numbers).encode()
        try:
            with self._metrics.open("ab") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as reason:
            raise Failure(f"cannot write {self._metrics}: {reason.strerror}\n{self._checkpoints.last_good}") from None
        self._written.update(lines)
        if self._writer:
            for step, metrics in numbers:
                for name, value in metrics.items():
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What was logged so far: for each name the steps and the values."""
        found: dict[str, list] = {}
        for line in self._metrics.read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)
            step = metrics.pop("step")
            for name, value in metrics.items():
                found.setdefault(name, []).append((step, value))
        return {name: tuple(np.asarray(column) for column in zip(*pairs, strict=True)) for name, pairs in found.items()}


def save_model(folder: Path, name: str, model: nnx.Module, *, step: int, config: Any):
    """Save a model that was trained without a `Run`, for `load_run`: in a sub-folder, in place of the model that was there.

    Raises:
        Failure: it could not be saved, and the model that was there is; or the folder is one of a `Run`.
    """
    if (folder / CONFIG).exists():
        raise Failure(f"{folder} holds a run of another script: name another folder with --out", code=2)
    path = own_folder(folder, name)
    state = {"params": nnx.state(model, nnx.Param)}
    arrays = dict(zip(_checkpoints.names(state), devices.to_host(jax.tree.leaves(state)), strict=True))
    about = {"model": _described(model), "params": "params", "scaler": None, "config": to_json(config)}
    draft = path / DRAFT
    check_own(draft, "folder")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        with Checkpoints(draft, run=name) as checkpoints:
            checkpoints.save(step, arrays, _as_json(about))
        with Checkpoints(path / _checkpoints.FOLDER, run=name) as checkpoints:
            checkpoints.replace_by(draft / str(step))
    except Failure as failure:
        raise Failure(f"{str(failure).splitlines()[0]}\nWhat was saved there before is kept.", failure.code) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _described(model: nnx.Module) -> dict[str, Any]:
    """The class and the arguments of a model; of one that lives in a script the class alone."""
    try:
        return describe(model)
    except TypeError:
        return {"class": f"{type(model).__qualname__} of a script"}


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _placed_as(like: Any, value: np.ndarray) -> Any:
    if not isinstance(like, jax.Array):
        return np.asarray(value)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
