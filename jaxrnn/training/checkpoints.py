"""Checkpoints, written by Orbax and sealed: a kill at any moment leaves either a whole checkpoint or none, and damage is seen
before it is read. Only the chief process may come here; nothing here knows what the arrays mean."""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from jaxrnn.training.config import differences
from jaxrnn.training.console import Failure
from jaxrnn.training.folder import write_whole

SEAL = "seal.json"
MARGIN = 2**20
"""Bytes of a checkpoint beside its arrays, generously."""


class Checkpoints:
    """The last few checkpoints of a run, in a folder with one sub-folder for each, named by its step.

    Orbax writes a sub-folder under another name and renames it when it is whole. Then the seal is put into it: the digest of
    every file, and the facts that belong to the step. A sub-folder without a seal was not finished.

    Args:
        path: the folder.
        keep: how many to keep.
    """

    def __init__(self, path: Path, *, keep: int = 3):
        import orbax.checkpoint as ocp

        for name in ("absl", "asyncio"):  # what goes wrong is raised, too
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.path = path
        self._clear_drafts()
        self._clear()
        one_process = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="chief")
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=False, enable_async_checkpointing=False, multiprocessing_options=one_process
        )
        path.mkdir(parents=True, exist_ok=True)
        self._manager, self._ocp = ocp.CheckpointManager(path, options=options), ocp

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._manager.close()

    @property
    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(int(p.name) for p in self.path.glob("*") if p.name.isdecimal())

    def restore(self, like: dict[str, np.ndarray]) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
        """The newest step, its arrays and its facts; step 0 with `like` and no facts if there is none.

        Raises:
            Failure: the arrays have other names or shapes than those of `like`.
        """
        if not self.steps:
            return 0, like, {}
        step = self.steps[-1]
        seal = json.loads((self.path / str(step) / SEAL).read_text())
        changed = differences(seal["shapes"], _shapes(like))
        if changed:
            lines = "\n    ".join(changed)
            raise Failure(f"the checkpoint of step {step} in {self.path} is of another model or other data:\n    {lines}", code=2)
        arrays = self._manager.restore(step, args=self._ocp.args.Composite(arrays=self._ocp.args.StandardRestore(like)))
        return step, arrays["arrays"], seal["facts"]

    def save(self, step: int, arrays: dict[str, np.ndarray], facts: dict[str, Any]):
        """Save a step for good.

        Raises:
            Failure: it could not be written; names the last step that was.
        """
        needed, free = MARGIN + sum(array.nbytes for array in arrays.values()), shutil.disk_usage(self.path).free
        if free < needed:
            sizes = f"{needed / 1e6:.1f} MB are needed, {free / 1e6:.1f} MB are free"
            raise Failure(f"cannot save step {step} in {self.path}: {sizes}\n{self.last_good}")
        try:
            self._manager.save(step, args=self._ocp.args.Composite(arrays=self._ocp.args.StandardSave(arrays)))
            folder = self.path / str(step)
            write_whole(folder / SEAL, json.dumps({"facts": facts, "shapes": _shapes(arrays), "files": _digests(folder)}))
        except Exception as reason:  # Orbax passes on whatever its writers raise
            shutil.rmtree(self.path / str(step), ignore_errors=True)
            self._clear_drafts()
            raise Failure(f"cannot save step {step} in {self.path}: {_in_short(reason)}\n{self.last_good}") from None

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
            shutil.rmtree(draft, ignore_errors=True)

    def _clear(self):
        """Take away what cannot be restored, naming what is newer than the newest good one."""
        aside = self.path.with_name(self.path.name + "-damaged")
        good = False
        for step in reversed(self.steps):
            folder = self.path / str(step)
            fault = _fault(folder)
            if fault is None:
                good = True
                continue
            if not good:
                print(f"the checkpoint of step {step} in {self.path} {fault}: using the one before", file=sys.stderr)
            if good or not (folder / SEAL).exists():
                shutil.rmtree(folder)
            else:
                shutil.rmtree(aside / folder.name, ignore_errors=True)
                aside.mkdir(exist_ok=True)
                folder.rename(aside / folder.name)


def _in_short(reason: Exception) -> str:
    """What the system said, if it is found in what Orbax's writers raised; else their first line."""
    known = [os.strerror(n) for n in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)]
    text = str(reason).strip() or type(reason).__name__
    return next((words for words in known if words in text), text.splitlines()[0])


def _shapes(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(SEAL))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _fault(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    if not (folder / SEAL).exists():
        return "was not finished"
    try:
        sealed = json.loads((folder / SEAL).read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return f"is damaged ({SEAL})"
    found = _digests(folder)
    wrong = sorted(name for name in sealed if found.get(name) != sealed[name])
    return f"is damaged ({wrong[0]})" if wrong else None
