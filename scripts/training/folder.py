"""The folder of a run: made, locked, and of one configuration only. What lies in it is the business of `run.py`."""

import contextlib
import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxrnn._checkpoints import read_json
from training.config import RunConfig, differences, free_fields, to_json
from training.console import Failure, require
from training.devices import any_process, is_main_process

CONFIG, LOCK, HOLDER = "config.json", ".lock", ".process"
ELSEWHERE = "or name another folder with --out"


def make_folder(path: str | Path) -> Path:
    """Make a folder, and see that it can be written to.

    Raises:
        Failure: it cannot be made or written to, with the reason of the system.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except FileExistsError:
        raise Failure(f"{path} is a file: name a folder with --out", code=2) from None
    except OSError as reason:
        raise Failure(f"cannot write to the folder {path}: {reason.strerror}", code=2) from None
    except ValueError as reason:  # NUL in its name
        raise Failure(f"cannot write to the folder {str(path)!r}: {reason}", code=2) from None


def check_own(path: Path, kind: str = "file"):
    """Refuse what lies in the place of a file or a folder of the run and is none: a link would lead out of the folder.

    Raises:
        Failure: names it, and what to do.
    """
    if path.is_symlink():
        raise Failure(f"{path} is a symbolic link, which a run does not follow: take it away, {ELSEWHERE}", code=2)
    if path.exists() and not (path.is_file() if kind == "file" else path.is_dir()):
        raise Failure(f"{path} should be a {kind} of the run, and is something else: take it away, {ELSEWHERE}", code=2)


def own_folder(folder: Path, name: str) -> Path:
    """Make a folder within one that is open, `vowels/LSTM-0`.

    Raises:
        Failure: something else lies there, or on the way.
    """
    path = folder
    for part in name.split("/"):
        path /= part
        check_own(path, "folder")
        path.mkdir(exist_ok=True)
    return path


def read_text(path: str, encoded: str = "UTF-8") -> str:
    """A file of the user's, line ends as they are; `encoded` is what an error asks it to be saved as.

    Raises:
        Failure: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as reason:
        raise Failure(f"cannot read {path}: {reason.strerror}", code=2) from None
    except ValueError as reason:  # not UTF-8; or NUL in the path
        reason = f"it is not UTF-8 text: save it as {encoded}" if isinstance(reason, UnicodeDecodeError) else reason
        raise Failure(f"cannot read {path}: {reason}", code=2) from None
    if not text.strip():
        raise Failure(f"{path} is empty", code=2)
    return text


def write_whole(path: Path, text: str):
    """Write a file so that it is never seen half-written. A link in its place is replaced, not followed."""
    draft = path.with_name(path.name + ".draft")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as reason:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {reason.strerror}") from None


class Folder:
    """An open folder, and whether someone asked the run to stop.

    Attributes:
        path: where it is.
        config: the configuration, as it is saved.
        free: the names of its fields that may differ from those of a run that goes on.
        stepping: whether a run is in its loop, which saves after a step when it is asked to stop.
        stop_code: None, or the exit code to stop with: 130 after SIGINT, 143 after SIGTERM.
        at_exit: what is to be closed with the folder.
    """

    def __init__(self, path: Path, config: dict[str, Any], free: set[str], at_exit: contextlib.ExitStack):
        self.path, self.config, self.free, self.at_exit = path, config, free, at_exit
        self.stepping = False
        self.stop_code: int | None = None

    def _on_signal(self, number, _frame):
        again, self.stop_code = self.stop_code is not None, 128 + number
        if again or not self.stepping:
            raise KeyboardInterrupt
        if is_main_process():  # not through Python's streams, which the signal may have interrupted
            os.write(2, b"stopping: saving after this step (once more to stop at once)\n")


@contextlib.contextmanager
def open_folder(config: RunConfig) -> Iterator[Folder]:
    """Open the folder `config.out` for one run, alone; the first time, its configuration is saved there.

    A package that is missing is named before anything is made. While the folder is open, SIGINT and SIGTERM ask a run to stop
    after its step; where there is none, they stop the script at once.

    Raises:
        Failure: a package is missing; the folder cannot be written to, another run is in it, it belongs to another
            configuration, or to something else; or, while it is open, something in it cannot be read or written, or a signal
            stopped the script at once (code 130 or 143).
    """
    for package in ("orbax", "filelock"):
        require(package, "jaxrnn[train]")
    if config.tensorboard:
        require("tensorboardX", "jaxrnn[tensorboard]")
    folder = None
    try:
        with contextlib.ExitStack() as stack:
            folder = Folder(Path(config.out).absolute(), to_json(config), free_fields(config), stack)
            problem = None
            if is_main_process():
                try:
                    stack.enter_context(_locked(make_folder(folder.path)))
                    _same_config(folder)
                except Failure as failure:
                    problem = failure
            if any_process(problem is not None):
                raise problem or Failure("process 0 cannot use its folder: see what it says", code=2)
            for number in (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, folder._on_signal))
            yield folder
    except KeyboardInterrupt:
        text = "stopped at once: the same command goes on from the last checkpoint, if there is one"
        raise Failure(text, (folder and folder.stop_code) or 130) from None
    except OSError as reason:
        if folder is None or not str(reason.filename or "").startswith(str(folder.path)):
            raise
        what = f"cannot use {reason.filename}: {reason.strerror}"
        raise Failure(f"{what}\nMend it and start the same command again, {ELSEWHERE}.") from reason


@contextlib.contextmanager
def _locked(path: Path):
    """Hold the lock of a folder; the system lets go of it however the process ends."""
    from filelock import FileLock, Timeout

    for name in (LOCK, HOLDER):
        check_own(path / name)
    try:
        lock = FileLock(path / LOCK, timeout=0).acquire()
    except Timeout:
        with contextlib.suppress(OSError, ValueError):
            holder = (path / HOLDER).read_text(encoding="utf-8")
            raise Failure(f"another run is in {path}: process {holder}", code=2) from None
        raise Failure(f"another run is in {path}", code=2) from None
    except OSError as reason:
        raise Failure(f"cannot lock {path / LOCK}: {reason.strerror}: take it away, {ELSEWHERE}", code=2) from None
    with lock:
        write_whole(path / HOLDER, f"{os.getpid()} on {socket.gethostname()}")
        yield


def _same_config(folder: Folder):
    """Save the configuration; refuse the folder of another one."""
    saved = folder.path / CONFIG
    check_own(saved)
    if not saved.exists():
        known = (LOCK, HOLDER)
        others = sorted(p.name for p in folder.path.iterdir() if p.name not in known and not p.name.endswith(".draft"))
        if others:
            text = f"{folder.path} holds something else ({', '.join(others[:3])}): name another folder with --out"
            raise Failure(text, code=2)
    else:
        before = read_json(saved)
        if not isinstance(before, dict):
            raise Failure(f"{saved} is damaged: put a copy of it back, {ELSEWHERE}", code=2)
        changed = differences(before, folder.config, free=folder.free)
        if changed:
            lines = "\n    ".join(changed)
            text = f"the run in {folder.path} has another configuration:\n    {lines}\nName another folder with --out."
            raise Failure(text, code=2)
    if read_json(saved) != folder.config:
        write_whole(saved, json.dumps(folder.config, indent=1) + "\n")
