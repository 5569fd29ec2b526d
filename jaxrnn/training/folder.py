"""The folder of a run."""

from pathlib import Path

from jaxrnn.training.console import Failure


def make_folder(path: str | Path) -> Path:
    """Make a folder, and see that it can be written to.

    Raises:
        Failure: it cannot be made or written to, with the reason of the system.
    """
    path = Path(path)
    probe = path / ".probe"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
        return path
    except OSError as reason:
        raise Failure(f"cannot write to the folder {path}: {reason.strerror}", code=2) from None
