"""Checkpoints, written by Orbax and sealed by a manifest: a kill at any moment leaves either a whole checkpoint or none, and damage
is seen before it is read. Only the main process may come here; nothing here knows what the arrays mean."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn import _checkpoints
from jaxrnn._checkpoints import ARRAYS, MANIFEST, DamagedError
from training.config import differences
from training.console import Failure, warn
from training.folder import check_own, write_whole

MARGIN = 2**20
"""Bytes of a checkpoint beside its arrays, generously."""
ASIDE = "checkpoints-set-aside"
"""Where what cannot be used goes, beside the folder of the checkpoints: nothing that a run did not write is deleted."""


class Checkpoints:
    """The last few checkpoints of a run, in a folder with one sub-folder for each, named by its step.

    Orbax writes a sub-folder under another name and renames it when it is whole. Then the manifest is put into it: the digest of
    every file, the run, the step, the names and shapes of the arrays, and the metadata that belong to the step. A sub-folder
    without a manifest was not finished.

    Args:
        path: the folder.
        run: the name of the run, which another run's checkpoints do not have.
        keep: how many to keep.
    """

    def __init__(self, path: Path, *, run: str, keep: int = 3):
        import orbax.checkpoint as ocp

        for name in ("absl", "asyncio"):  # what goes wrong is raised, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        path = path.absolute()  # Orbax wants it so
        check_own(path, "folder")
        path.mkdir(parents=True, exist_ok=True)
        self.path, self.run = path, run
        self._clear_drafts()
        self._manifests = self._usable()
        one_process = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="main")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=False, enable_async_checkpointing=False, multiprocessing_options=one_process
        )
        self._manager, self._ocp = ocp.CheckpointManager(path, options=options), ocp

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(self._manifests)

    def restore(
        self, like: dict[str, np.ndarray], unfit: Callable[[dict[str, Any]], str | None] = lambda metadata: None
    ) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
        """The newest step that fits, its arrays and its metadata; step 0 with `like` and no metadata if there is no checkpoint.

        Args:
            like: arrays of the names and shapes to restore.
            unfit: of the metadata of a step, why the run cannot go on from it; None if it can.

        Raises:
            Failure: the arrays have other names or shapes than those of `like`; or there are checkpoints, and none fits.
        """
        if not self.steps:
            return 0, like, {}
        reasons = {step: unfit(self._manifests[step]["metadata"]) for step in self.steps}
        fitting = [step for step, reason in reasons.items() if reason is None]
        if not fitting:
            text = (
                f"{reasons[self.steps[0]]}, so that no checkpoint fits it: put a copy of it back, or name another folder with --out"
            )
            raise Failure(text, code=2)
        step = fitting[-1]
        manifest = self._manifests[step]
        changed = differences(manifest["shapes"], _checkpoints.shapes(like))
        if changed:
            lines = "\n    ".join(changed)
            text = f"the checkpoint of step {step} in {self.path} is of another model or other data:\n    {lines}"
            raise Failure(f"{text}\nName another folder with --out.", code=2)
        for later in [later for later in self.steps if later > step]:
            warn(f"{reasons[later]}: step {later} is set aside, and the one of step {step} used")
            self.set_aside(self.path / str(later))
            del self._manifests[later]
        self._manager.reload()
        restored = self._manager.restore(step, args=self._ocp.args.Composite(**{ARRAYS: self._ocp.args.StandardRestore()}))
        arrays = {name: np.asarray(array) for name, array in _checkpoints.flat(restored[ARRAYS]).items()}
        return step, arrays, manifest["metadata"]

    def save(self, step: int, arrays: dict[str, np.ndarray], metadata: dict[str, Any]):
        """Save a step for good.

        Raises:
            Failure: it could not be written; names the last step that was.
        """
        needed, free = MARGIN + sum(array.nbytes for array in arrays.values()), shutil.disk_usage(self.path).free
        if free < needed:
            sizes = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            raise Failure(f"cannot save step {step} in {self.path}: {sizes}\n{self.last_good}")
        folder = self.path / str(step)
        try:
            kept = self._ocp.args.Composite(**{ARRAYS: self._ocp.args.StandardSave(_checkpoints.nested(arrays))})
            self._manager.save(step, args=kept)
            entries = {"run": self.run, "step": step, "shapes": _checkpoints.shapes(arrays), "metadata": metadata}
            manifest = _checkpoints.manifest(folder, **entries)
            write_whole(folder / MANIFEST, json.dumps(manifest))
        except Exception as reason:  # Orbax passes on whatever its writers raise
            shutil.rmtree(folder, ignore_errors=True)
            self._clear_drafts()
            raise Failure(f"cannot save step {step} in {self.path}: {_in_short(reason)}\n{self.last_good}") from None
        there = {*_checkpoints.steps(self.path)}
        self._manifests = {k: m for k, m in {**self._manifests, step: manifest}.items() if k in there}

    def replace_by(self, checkpoint: Path):
        """Put a whole checkpoint of another folder in the place of every step; these go into that folder."""
        for step in self.steps:
            (self.path / str(step)).rename(checkpoint.with_name(f"{step}-before"))
        checkpoint.rename(self.path / checkpoint.name)
        self._manifests = self._usable()
        self._manager.reload()

    @property
    def last_good(self) -> str:
        """The last checkpoint, in words."""
        steps = self.steps
        return (
            f"The last good checkpoint is of step {steps[-1]}, in {self.path / str(steps[-1])}."
            if steps
            else "There is no checkpoint."
        )

    def _clear_drafts(self):
        """Take away what Orbax had not finished."""
        for draft in self.path.glob("*.orbax-checkpoint-tmp*"):
            if not draft.is_symlink():
                shutil.rmtree(draft, ignore_errors=True)

    def _usable(self) -> dict[int, dict[str, Any]]:
        """The manifests of the checkpoints that can be used, by step. What cannot be is set aside and named."""
        found: dict[int, dict[str, Any]] = {}
        faults: list[tuple[bool, str]] = []
        entries = [p for p in self.path.iterdir() if not p.name.startswith(".")]
        for entry in sorted(entries, key=lambda p: _checkpoints.step_of(p.name) or 0, reverse=True):
            step = _checkpoints.step_of(entry.name)
            if step is None:
                warn(f"{entry} is no checkpoint: it is set aside")
                self.set_aside(entry)
                continue
            try:
                manifest = _checkpoints.read_manifest(entry)
                if manifest["run"] != self.run:
                    raise DamagedError(f"is of the run {manifest['run']}")
                found[step] = manifest
            except DamagedError as fault:
                newer = not found
                faults.append((newer, f"the checkpoint of step {step} in {self.path} {fault}: it is set aside"))
                self.set_aside(entry)
        for newer, text in faults:
            warn(text + (f", and the one of step {max(found)} used" if newer and found else ""))
        return found

    def set_aside(self, entry: Path) -> Path:
        """Move an entry of the run's folder out of the way, under a name that is free, and return its place."""
        aside = self.path.with_name(ASIDE)
        check_own(aside, "folder")
        aside.mkdir(exist_ok=True)
        number, place = 1, aside / entry.name
        while place.is_symlink() or place.exists():
            number, place = number + 1, aside / f"{entry.name}-{number + 1}"
        return entry.rename(place)


def _in_short(reason: Exception) -> str:
    """What the system said, if it is found in what Orbax's writers raised; else their first line."""
    known = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)]
    text = str(reason).strip() or type(reason).__name__
    return next((words for words in known if words in text), text.splitlines()[0])
