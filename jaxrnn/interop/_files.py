"""Files: opened only if they are plain ones, written whole or not at all, and what they say beside weights. No format may be known
here."""

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(caller: str, argument: str, path: str | os.PathLike) -> BinaryIO:
    """Open a regular file, or a link to one, to read; anything else could block, or have no end.

    Raises:
        TypeError: `path` is none. ValueError: there is something else than a file. OSError: there is nothing, or it cannot be read.
    """
    check_path(caller, argument, path)
    _check_kind(caller, argument, path, os.stat(path).st_mode)
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_kind(caller, argument, path, os.fstat(descriptor).st_mode)  # it may be another by now
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_path(caller: str, argument: str, path: Any):
    """`path` is one."""
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{caller}: `{argument}` should be a str or an os.PathLike, got {type(path).__name__}.")


def _check_kind(caller: str, argument: str, path: str | os.PathLike, mode: int):
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "none")
        raise ValueError(f"{caller}: `{argument}` should be the path of a regular file, got {os.fspath(path)}, {kind}.")


def write_whole(caller: str, path: str | os.PathLike, data: bytes):
    """Write a file that appears whole or not at all.

    A file that is there is replaced, and its mode kept; through a symbolic link the file it names is replaced. A device is written
    to as it is.

    Raises:
        ValueError: a directory, a named pipe or a socket is there. OSError: it cannot be written.
    """
    check_path(caller, "path", path)
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    if there is not None and (stat.S_ISCHR(there.st_mode) or stat.S_ISBLK(there.st_mode)):
        with _naming(path), open(path, "wb") as device:
            device.write(data)
        return
    if there is not None:
        _check_kind(caller, "path", path, there.st_mode)
        if not os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(f"{caller}: `path` should be a file that may be written, got {os.fspath(path)}.")
    with _naming(path):
        _replace(os.path.realpath(path), there, data)


@contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Let what the system says be about this path, whatever file it could not write in its place."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the system's: it has no other text than its own
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def _replace(target: str, there: os.stat_result | None, data: bytes):
    """Put a new file in the place of `target`, which is `there`, or None."""
    part = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.part")
    # Until it has the mode of the file that it replaces, nobody else may read it; a new one has that of any new file.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666 if there is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if there is not None:
            _keep(part, there)
        os.replace(part, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(part)
        raise


def _keep(part: str, there: os.stat_result):
    """Give a file the owner, where that is allowed, and the mode of another."""
    new = os.stat(part)
    if hasattr(os, "chown") and (new.st_uid, new.st_gid) != (there.st_uid, there.st_gid):
        with suppress(PermissionError):  # the file is ours then
            os.chown(part, there.st_uid, there.st_gid)
    os.chmod(part, stat.S_IMODE(there.st_mode))


def cause(error: Exception) -> str:
    """What a library says of a file, as a part of a sentence."""
    return str(error).rstrip(". \n") or type(error).__name__


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object none of whose keys comes twice; the `object_pairs_hook` of `json.loads`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {_short(twice)} comes twice")
    return found


OPTIONS = {
    "batch_first": (lambda value: isinstance(value, bool), "true or false"),
    "dropout": (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    "output_only": (lambda value: isinstance(value, bool), "true or false"),
    "nonlinearity": (lambda value: value in ("tanh", "relu"), '"tanh" or "relu"'),
}


def stored_options(caller: str, metadata: dict[str, str], source: Any = "`source`") -> dict[str, Any]:
    """What a file that we wrote says of a module beyond its weights."""
    text = metadata.get("jaxrnn", "{}")
    try:
        options = json.loads(text, object_pairs_hook=unique) if len(text) < 1000 else None
    except (ValueError, RecursionError):
        options = None
    if not isinstance(options, dict) or not options.keys() <= OPTIONS.keys():
        wanted = f"the metadata `jaxrnn` of {source} should be a JSON object with {', '.join(OPTIONS)}"
        raise ValueError(f"{caller}: {wanted}, got {_short(text)}.\nWas the file written by a newer jaxrnn?")
    for name, value in options.items():
        allowed, wanted = OPTIONS[name]
        if not allowed(value):
            raise ValueError(f"{caller}: `{name}` in the metadata `jaxrnn` of {source} should be {wanted}, got {_short(value)}.")
    return options


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:80]}… of {len(text)} characters"
