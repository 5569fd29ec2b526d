"""The folder of a run: made, locked, and of one configuration only. What lies in it is the business of `run.py`."""

import contextlib
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

from jaxrnn.training.config import RunConfig, differences, to_json
from jaxrnn.training.console import Failure, require
from jaxrnn.training.devices import any_process, chief


def make_folder(path: str | Path) -> Path:
    """Make a folder, and see that it can be written to.

    Raises:
        Failure: it cannot be made or written to, with the reason of the system.
    """
    path = Path(path)
    probe = path / f".probe-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe")
        probe.unlink()
        return path
    except FileExistsError:
        raise Failure(f"{path} is a file: name a folder with --out", code=2) from None
    except OSError as reason:
        raise Failure(f"cannot write to the folder {path}: {reason.strerror}", code=2) from None


def write_whole(path: Path, text: str):
    """Write a file so that it is never seen half-written."""
    draft = path.with_name(path.name + ".draft")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as reason:
        draft.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {reason.strerror}") from None


class Folder:
    """An open folder, and whether someone asked the run to stop.

    Attributes:
        path: where it is.
        stop_code: None, or the exit code to stop with: 130 after SIGINT, 143 after SIGTERM.
        at_exit: what is to be closed with the folder.
    """

    def __init__(self, path: Path, at_exit: contextlib.ExitStack):
        self.path, self.at_exit = path, at_exit
        self.stop_code: int | None = None

    def _on_signal(self, number, _frame):
        if self.stop_code is not None:
            raise KeyboardInterrupt
        self.stop_code = 128 + number
        if chief():  # not through Python's streams, which the signal may have interrupted
            os.write(2, b"stopping: saving after this step (once more to stop at once)\n")


@contextlib.contextmanager
def open_folder(config: RunConfig) -> Iterator[Folder]:
    """Open the folder `config.out` for one run, alone; the first time, its configuration is saved there.

    A package that is missing is named before anything is made. While the folder is open, SIGINT and SIGTERM ask the run
    to stop after the step.

    Raises:
        Failure: a package is missing; the folder cannot be written to, another run is in it, it belongs to another
            configuration, or to something else.
    """
    require("orbax", "jaxrnn[train]")
    if config.tensorboard:
        require("tensorboardX", "jaxrnn[tensorboard]")
    with contextlib.ExitStack() as stack:
        folder = Folder(Path(config.out).absolute(), stack)
        problem = None
        if chief():
            try:
                stack.enter_context(_locked(make_folder(folder.path)))
                _same_config(folder.path, config)
            except Failure as failure:
                problem = failure
        if any_process(problem is not None):
            raise problem or Failure("process 0 cannot use its folder: see what it says", code=2)
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, folder._on_signal))
        yield folder


@contextlib.contextmanager
def _locked(path: Path):
    """Hold the lock of a folder; the system lets go of it however the process ends."""
    with (path / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise Failure(f"another run is in {path}: process {file.read() or 'unknown'}", code=2) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _same_config(path: Path, config: RunConfig):
    saved, now = path / "config.json", to_json(config)
    if saved.exists():
        try:
            changed = differences(json.loads(saved.read_text()), now)
        except (ValueError, AttributeError):
            raise Failure(f"{saved} is damaged: name another folder with --out", code=2) from None
        if changed:
            lines = "\n    ".join(changed)
            raise Failure(f"the run in {path} has another configuration:\n    {lines}\nName another folder with --out.", code=2)
        return
    others = sorted(p.name for p in path.iterdir() if p.name != ".lock" and not p.name.endswith(".draft"))
    if others:
        raise Failure(f"{path} holds something else ({', '.join(others[:3])}): name another folder with --out", code=2)
    write_whole(saved, json.dumps(now, indent=1) + "\n")
