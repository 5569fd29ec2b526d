"""One training run in a folder: where it stands, what it measured, what it can go on from. It is told about each step by the
script's own loop, and never calls it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrnn.training import devices
from jaxrnn.training.checkpoints import Checkpoints
from jaxrnn.training.console import Failure, progress, say
from jaxrnn.training.folder import Folder

FLUSH = 50
"""How many logged steps may wait on the devices before they are fetched, checked and written."""


class Run:
    """The metrics and checkpoints of one model in training.

        run = Run(folder, "LSTM", save_every=100)
        now = run.restore({"params": params, "opt_state": opt_state, "order": order.state})
        for step in run.steps(1000):
            …
            run.log(step, loss=loss)
            run.checkpoint(step, {"params": params, "opt_state": opt_state, "order": order.state})

    Killed at any moment and begun again, it ends as if it had not been: a checkpoint also says how long the metrics file was,
    and what was written after that is written again.

    Args:
        folder: from `open_folder`.
        name: of a sub-folder; the run's name in messages.
        save_every: steps between checkpoints.
        tensorboard: write TensorBoard's files too.
    """

    def __init__(self, folder: Folder, name: str, *, save_every: int, tensorboard: bool = False):
        self.folder, self.name, self.save_every = folder, name, save_every
        self.path = folder.path / name
        self._metrics = self.path / "metrics.jsonl"
        self.step = self.last = 0
        self._pending: list[tuple[int, dict[str, Any]]] = []
        self._tensorboard, self._writer = tensorboard, None
        if devices.chief():
            self.path.mkdir(parents=True, exist_ok=True)
            self._checkpoints = folder.at_exit.enter_context(Checkpoints(self.path / "checkpoints"))

    def restore(self, tree: Any) -> Any:
        """Go on from the newest good checkpoint: its arrays, placed as those of `tree`; `tree` itself if there is none."""
        leaves, structure = jax.tree.flatten(tree)
        names = _names(tree)
        host = dict(zip(names, devices.to_host(leaves), strict=True))
        step, facts = 0, {}
        if devices.chief():
            step, host, facts = self._checkpoints.restore(host)
            self._cut_metrics(facts.get("metrics_bytes", 0))
            if step:
                say(f"{self.name}: going on after step {step}")
            if self._tensorboard:
                from tensorboardX import SummaryWriter

                self._writer = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
                self.folder.at_exit.callback(self._writer.close)
        self.step = int(devices.from_chief(np.asarray(step)))
        host = devices.from_chief(host)
        return jax.tree.unflatten(structure, [_placed_as(a, host[name]) for a, name in zip(leaves, names, strict=True)])

    def steps(self, last: int) -> Iterator[int]:
        """The steps that are left, up to and with `last`."""
        self.last = last
        yield from progress(range(self.step + 1, last + 1), self.name)

    def log(self, step: int, **metrics: Any):
        """Note numbers of a step, one line of JSON; they stay on the devices until some have come together.

        Raises:
            Failure: one of them is not finite; names the step and the last good checkpoint.
        """
        self._pending.append((step, metrics))
        if len(self._pending) >= FLUSH or step == self.last:
            self._flush()

    def checkpoint(self, step: int, tree: Any):
        """Save what the run can go on from, if it is time to, if this is the last step, or if it was asked to stop.

        Raises:
            Failure: it could not be saved; or it was asked to stop, and has saved (code 130 or 143).
        """
        due = step % self.save_every == 0 or step == self.last
        alone = jax.process_count() == 1
        stop = devices.any_process(self.folder.stop_code is not None) if alone or due or step % 10 == 0 else False
        if due or stop:
            self._flush()
            host = dict(zip(_names(tree), devices.to_host(jax.tree.leaves(tree)), strict=True))
            if devices.chief():
                self._checkpoints.save(step, host, {"metrics_bytes": self._metrics.stat().st_size})
        if stop:
            raise Failure(f"stopped after step {step}: the same command goes on from there", self.folder.stop_code or 130)

    def _cut_metrics(self, length: int):
        """Take away the lines that were written after the checkpoint."""
        with self._metrics.open("ab") as file:
            if file.tell() < length:
                raise Failure(f"{self._metrics} was {length} bytes long at the checkpoint, and is {file.tell()} now", code=2)
            file.truncate(length)

    def _flush(self):
        """Check what waits, and write it, up to the first number that is not finite."""
        pending, self._pending = jax.device_get(self._pending), []
        numbers = [(step, {name: float(value) for name, value in metrics.items()}) for step, metrics in pending]
        bad = next((k for k, (_, metrics) in enumerate(numbers) if not np.isfinite(list(metrics.values())).all()), None)
        if devices.chief():
            self._write(numbers[:bad])
        if bad is not None:
            step, metrics = numbers[bad]
            name = next(name for name, value in metrics.items() if not np.isfinite(value))
            last = self._checkpoints.last_good if devices.chief() else ""
            raise Failure(f"{self.name}: {name} is {metrics[name]} at step {step}. {last}")

    def _write(self, numbers: list[tuple[int, dict[str, float]]]):
        try:
            with self._metrics.open("a") as file:
                file.writelines(json.dumps({"step": step} | metrics) + "\n" for step, metrics in numbers)
                file.flush()
                os.fsync(file.fileno())
        except OSError as reason:
            raise Failure(f"cannot write {self._metrics}: {reason.strerror}\n{self._checkpoints.last_good}") from None
        if self._writer:
            for step, metrics in numbers:
                for name, value in metrics.items():
                    self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def metrics(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What was logged so far: for each name the steps and the values."""
        return read_metrics(self._metrics)


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A metrics file: for each name the steps and the values."""
    found: dict[str, list] = {}
    for line in path.read_text().splitlines():
        metrics = json.loads(line)
        step = metrics.pop("step")
        for name, value in metrics.items():
            found.setdefault(name, []).append((step, value))
    return {name: tuple(np.asarray(column) for column in zip(*pairs, strict=True)) for name, pairs in found.items()}


def _names(tree: Any) -> list[str]:
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def _placed_as(like: Any, value: np.ndarray) -> Any:
    if not isinstance(like, jax.Array):
        return np.asarray(value)
    return jax.make_array_from_callback(value.shape, like.sharding, lambda index: value[index])
