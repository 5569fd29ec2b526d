"""A checkpoint on disk: arrays under readable names, as Orbax writes them, and a manifest by which damage is seen before an array
is read. Nothing of training may live here, and no model may be known."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import jax
import numpy as np
from flax import nnx

FOLDER = "checkpoints"
"""The folder of a run in which each checkpoint is a folder, named by its step."""
ARRAYS = "arrays"
MANIFEST = "manifest.json"
ENTRIES = ("run", "step", "shapes", "metadata", "files")
"""What a manifest says beside its own digest."""
ABOUT = ("model", "params", "scaler", "config")
"""What the metadata in it say of a run."""


class DamagedError(ValueError):
    """A checkpoint cannot be used. The message goes on from its name: "is damaged (arrays/d/…)"."""


class UnfinishedError(DamagedError):
    """A checkpoint has no manifest: it is being written, or its writer was killed."""


# Names of arrays ---------------------------------------------------------------------------------------------------------


def names(tree: Any) -> list[str]:
    """The path of each leaf, in the order of `jax.tree.leaves`: `params/rnn/layer_0/forward/w_ih`, `optimizer/count`.

    An `nnx.Variable` counts as its array. Places in tuples and lists are left out where names stay apart without them.

    Raises:
        ValueError: with all of its path, the name of one array is that of another, or of a folder of it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, nnx.Variable))
    parts = [[(_word(key), isinstance(key, jax.tree_util.SequenceKey)) for key in path] for path, _ in leaves]
    whole = [tuple(word for word, _ in path) for path in parts]
    short = [tuple(word for word, place in path if not place) for path in parts]
    taken = Counter(path[:n] for path in short for n in range(1, len(path) + 1))
    mixed = [brief if brief and taken[brief] == 1 else path for brief, path in zip(short, whole, strict=True)]
    for paths in (mixed, whole):
        found = ["/".join(path) for path in paths]
        clash = _clash(found)
        if clash is None:
            return found
    raise ValueError(f"names: `tree` should have paths that stay apart when they are joined by '/', got {clash!r} twice.")


def _clash(names: list[str]) -> str | None:
    """A name that is there twice, or is a folder of another."""
    taken = Counter(names)
    taken.update({name[:k] for name in names for k, letter in enumerate(name) if letter == "/"})
    return next((name for name in names if taken[name] > 1), None)


def _word(key) -> str:
    return jax.tree_util.keystr((key,), simple=True)


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts, one for each part of a name."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split("/")
        node = tree
        for part in folders:
            node = node.setdefault(part, {})
        node[last] = array
    return tree


def flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """The inverse of `nested`."""
    found = {}
    for name, node in tree.items():
        found |= flat(node, f"{path}{name}/") if isinstance(node, Mapping) else {f"{path}{name}": node}
    return found


def shapes(arrays: Mapping[str, Any]) -> dict[str, str]:
    """The dtype and the shape of each array, as text."""
    return {name: f"{array.dtype}{list(array.shape)}" for name, array in arrays.items()}


# The manifest -------------------------------------------------------------------------------------------------------------


def manifest(folder: Path, **entries: Any) -> dict[str, Any]:
    """What the manifest of a checkpoint says: `entries`, the digest of each of its files, and a digest of all this.

    Args:
        folder: the checkpoint.
        entries: what `ENTRIES` names, without the files; what JSON can hold.
    """
    content = json.loads(json.dumps({**entries, "files": dict(_digests(folder))}))
    return content | {"digest": _digest(content)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, every file of which is as it was written.

    Raises:
        UnfinishedError: there is no manifest. DamagedError: anything else is wrong.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise DamagedError("is a symbolic link" if folder.is_symlink() else "is not a folder")
    file = folder / MANIFEST
    if not file.exists():
        raise UnfinishedError("was not finished")
    content = read_json(file)
    if not isinstance(content, dict) or content.pop("digest", None) != _digest(content):
        raise DamagedError(f"is damaged ({MANIFEST})")
    if lacking := lacks(content, ENTRIES):
        raise DamagedError(f"is of another version of jaxrnn (it has no {lacking!r})")
    if str(content["step"]) != folder.name:
        raise DamagedError(f"is a copy of the one of step {content['step']}")
    wanted = content["files"]
    found = dict(_digests(folder, wanted))
    wrong = next((name for name in sorted(wanted) if found.get(name) != wanted[name]), None)
    if wrong:
        raise DamagedError(f"is damaged ({wrong})")
    return content


def lacks(content: Any, names: Iterable[str] = ABOUT) -> str | None:
    """The first of the entries that a manifest, or its metadata, should have and has not: another version of jaxrnn wrote it."""
    return next((name for name in names if not isinstance(content, dict) or name not in content), None)


def read_json(file: Path) -> Any:
    """What a file holds as JSON; None if it cannot be read, or holds something else."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(folder: Path, names: Iterable[str] | None = None) -> Iterable[tuple[str, str]]:
    """The name and the digest of each file of a checkpoint, or of those named; links, and what cannot be read, are left out."""
    if names is None:
        files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(MANIFEST)]
    else:
        files = [folder / PurePosixPath(name) for name in names]
    for file in files:
        try:
            if file.is_file() and not file.is_symlink():
                with file.open("rb") as opened:
                    yield file.relative_to(folder).as_posix(), hashlib.file_digest(opened, "sha256").hexdigest()
        except OSError:
            continue


# Steps and arrays ---------------------------------------------------------------------------------------------------------


def step_of(name: str) -> int | None:
    """The step that a folder's name means; None where it is no such name (`007`, `x`)."""
    return int(name) if name.isdecimal() and name.isascii() and str(int(name)) == name else None


def steps(folder: Path) -> list[int]:
    """The steps of a folder of checkpoints, whole or not, ascending."""
    found = [step_of(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(step for step in found if step is not None)


def read_arrays(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name."""
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        return {name: np.asarray(array) for name, array in flat(checkpointer.restore(folder.absolute() / ARRAYS)).items()}
