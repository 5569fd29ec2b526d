"""Figures, drawn without a display and written whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.console import Failure, require


@contextlib.contextmanager
def figure(path: Path, columns: int = 1, *, width: float = 6, height: float = 4) -> Iterator[Any]:
    """Axes to draw on, or an array of them if there are several columns; saved at the end, small enough for a README.

    Raises:
        Failure: it could not be written; nothing is left of it.

    Example:
        >>> import tempfile
        >>> with figure(Path(tempfile.mkdtemp()) / "line.png") as axes:
        ...     _ = axes.plot([1, 2, 3])
    """
    require("matplotlib", "jaxrnn[train]")
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(width, height), layout="constrained")
    yield drawing.subplots(1, columns)
    draft = path.with_name("." + path.name)
    try:
        draft.unlink(missing_ok=True)  # it may be a link
        drawing.savefig(draft, dpi=80)
        os.replace(draft, path)
    except OSError as reason:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {reason.strerror}") from None
