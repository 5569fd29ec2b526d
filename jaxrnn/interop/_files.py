"""Files: written whole or not at all, and what they say beside weights. No format may be known here."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: str | os.PathLike, data: bytes):
    """Write a file that appears whole or not at all; what is there is replaced."""
    part = Path(f"{path}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def cause(error: Exception) -> str:
    """What a library says of a file, as a part of a sentence."""
    return str(error).rstrip(". \n") or type(error).__name__


def stored_options(caller: str, metadata: dict[str, str]) -> dict[str, Any]:
    """What a file that we wrote says of a module beyond its weights."""
    text, known = metadata.get("jaxrnn", "{}"), ("batch_first", "dropout", "nonlinearity")
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not options.keys() <= set(known):
        wanted = f"the metadata `jaxrnn` should be a JSON object with {', '.join(known)}"
        raise ValueError(f"{caller}: {wanted}, got {text!r}.\nWas the file written by a newer jaxrnn?")
    return options
