"""Figures, drawn without a display and written whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.console import Failure, require

COLOURS = {
    "RNN": "tab:gray",
    "LSTM": "tab:blue",
    "GRU": "tab:orange",
    "LRU": "tab:green",
    "RGLRU": "tab:purple",
    "MinGRU": "tab:red",
    "MinLSTM": "tab:pink",
    "ParaGRU": "tab:brown",
    "ParaLSTM": "tab:olive",
}
"""One colour per cell, in the notebooks too."""

VARIANTS = {
    "RNN": ("IndRNN",),
    "LSTM": ("BiLSTM", "PeepholeLSTM", "CoupledLSTM", "ProjectedLSTM", "LayerNormLSTM", "SLSTM"),
    "GRU": ("ChungGRU", "LayerNormGRU", "MGU", "LiGRU"),
}
"""They share the colour of their cell, with other line styles."""

LINES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)))


def cell_style(name: str) -> dict[str, Any]:
    """How a cell is plotted, the same in every picture; `LSTM-1`, a seed of it, in another line style. A cell that has no colour of
    its own, such as one of yours, is cyan.

    Example:
        >>> cell_style("LSTM"), cell_style("LSTM-1"), cell_style("BiLSTM")["color"]
        ({'color': 'tab:blue', 'linestyle': '-'}, {'color': 'tab:blue', 'linestyle': '--'}, 'tab:blue')
        >>> cell_style("Star")["color"]
        'tab:cyan'
    """
    cell, _, seed = name.partition("-")
    line = int(seed or 0)
    for base, variants in VARIANTS.items():
        if cell in variants:
            cell, line = base, line + 1 + variants.index(cell)
    return {"color": COLOURS.get(cell, "tab:cyan"), "linestyle": LINES[line % len(LINES)]}


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
        drawing.savefig(draft, dpi=100)
        os.replace(draft, path)
    except OSError as reason:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {reason.strerror}") from None
