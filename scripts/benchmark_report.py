"""Tables, targets and the plot, from the lines that the benchmark measured."""

import math
from collections.abc import Callable
from typing import NamedTuple

from benchmark_contenders import FEATURE_NAMES, PEERS

MODES = {"forward": "forward", "train": "training step"}


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


class Row(NamedTuple):
    """A target: the best of `top` over the best of `bottom` on every line, put into one number."""

    text: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    reduce: Callable[[list[float]], float]
    forward: float | None  # the target; None where there is none
    train: float | None
    at_most: bool = False
    what: str = "time"
    kinds: tuple[str, ...] = ("grid", "stack")
    where: Callable[[dict], bool] = lambda line: True


def large(line: dict) -> bool:
    return line["batch"] * line["hidden_size"] >= 2048


def long(line: dict) -> bool:
    return line["time"] >= 100


ONE, CORES, PEER = ("jaxrnn",), ("jaxrnn-sharded",), tuple(PEERS)
FLOOR, FLOORS = ("floor",), ("floor", "floor-sharded")
FEATURE = {"at_most": True, "kinds": ("features",)}
COMPILE = {"at_most": True, "what": "compile", "kinds": ("compile",)}
ROWS = [
    Row("fastest JAX peer / one device", PEER, ONE, mean, 1.2, 1.3),
    Row("fastest JAX peer / one device per core", PEER, CORES, mean, 1.6, 1.8),
    Row("fastest JAX peer / better of both, worst line", PEER, ONE + CORES, min, 1.0, 1.0),
    Row("torch / better of both", ("torch",), ONE + CORES, mean, 1.0, 1.3),
    Row("torch / better of both, worst line", ("torch",), ONE + CORES, min, None, 0.9),
    Row("one device / floor, B·H ≥ 2048", ONE, FLOOR, mean, 1.5, 1.6, True, where=large),
    Row("better / better floor, B·H ≥ 2048", ONE + CORES, FLOORS, mean, 1.5, 1.6, True, where=large),
    Row(
        "memory / naive, T ≥ 100, worst line",
        ONE,
        ("naive",),
        max,
        None,
        1.0,
        True,
        "temp",
        where=long,
    ),
    Row("compile time, 4 layers, / linen", ONE, ("linen",), max, None, 1.0, **COMPILE),
    *[Row(f"{name} / jaxrnn, worst line", (name,), ONE, max, 1.25, 1.25, **FEATURE) for name in FEATURE_NAMES],
]


def best(line: dict, names: tuple[str, ...], mode: str, what: str, statistic: str) -> float | None:
    found = []
    for name in names:
        value = line["contenders"].get(name, {}).get(mode, {}).get(what)
        if value is not None:
            found.append(value[statistic] if isinstance(value, dict) else value)
    return min(found, default=None)


def summarise(lines: list[dict]) -> list[dict]:
    """Every target with what was reached, by minima and by medians; None where nothing was run."""
    result = []
    for row in ROWS:
        for mode in MODES:
            target = getattr(row, mode)
            if target is None:
                continue
            reached = {"row": row.text, "mode": mode, "target": target, "at_most": row.at_most}
            for statistic in ("min", "median"):
                ratios = []
                for line in lines:
                    if line["kind"] in row.kinds and row.where(line):
                        top = best(line, row.top, mode, row.what, statistic)
                        bottom = best(line, row.bottom, mode, row.what, statistic)
                        if top and bottom:
                            ratios.append(top / bottom)
                reached[statistic] = row.reduce(ratios) if ratios else None
                reached["lines"] = len(ratios)
            value = reached["min"]
            if value is not None:
                reached["met"] = value <= target if row.at_most else value >= target
            result.append(reached)
    return result


def summary_table(summary: list[dict]) -> str:
    text = [f"{'target':45} {'':13} {'lines':>5} {'goal':>7} {'by minima':>10} {'by medians':>10}"]
    measured = [row for row in summary if row["lines"]]
    for row in measured:
        goal = f"{'≤' if row['at_most'] else '≥'} {row['target']:.2f}"
        numbers = f"{row['lines']:5} {goal:>7} {row['min']:10.3f} {row['median']:10.3f}"
        text.append(f"{row['row']:45} {MODES[row['mode']]:13} {numbers}  {'met' if row['met'] else 'missed'}")
    if len(measured) < len(summary):
        text.append(f"{len(summary) - len(measured)} targets have no line in this run")
    return "\n".join(text)


def title(line: dict) -> str:
    sizes = (line[name] for name in ("time", "batch", "input_size", "hidden_size"))
    stack = f" {line['num_layers']} layers" if line["num_layers"] > 1 else ""
    stack += " bidirectional" if line["bidirectional"] else ""
    kind = "" if line["kind"] == "grid" else f" ({line['kind']})"
    return "{} T={} B={} I={} H={}".format(line["cell"], *sizes) + stack + kind


def line_table(line: dict) -> str:
    """One line: milliseconds, seconds of compiling, megabytes of temporary memory."""
    columns = "".join(f"{text:>12}" for text in ("min", "median", "compile s", "temp MB"))
    text = [title(line)]
    text.append(" " * 26 + "".join(f"{f'{name}, ms':>48}" for name in MODES.values()))
    text.append(" " * 26 + columns * 2)
    for name, record in line["contenders"].items():
        cells = []
        for mode in MODES:
            times, compiled = record[mode].get("time", {}), record[mode].get("compile", {})
            cells += [times.get("min"), times.get("median"), compiled.get("min")]
            cells.append(record[mode].get("temp"))
        scales = (1e3, 1e3, 1, 1e-6) * 2
        numbers = "".join(
            f"{'–':>12}" if value is None else f"{value * scale:12.4g}" for value, scale in zip(cells, scales, strict=True)
        )
        devices = f" ×{record['devices']}" if record["devices"] > 1 else ""
        text.append(f"{name + devices:26}{numbers}")
        if "note" in record:
            text.append(f"{'':26}{record['note']}")
    for state in ("skipped", "failed"):
        text += [f"{name:26}{state}: {reason}" for name, reason in line[state].items()]
    return "\n".join(text)


def plot(results: dict, path) -> bool:
    """Draw every contender's time over that of `jaxrnn` on one device; False without matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        return False
    lines = [line for line in results["lines"] if line["kind"] != "compile"]
    names = list(dict.fromkeys(name for line in lines for name in line["contenders"]))
    height = max(2 + 0.4 * len(lines), 1 + 0.3 * len(names))
    figure = Figure(figsize=(14, height), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), MODES, strict=True):
        for index, name in enumerate(names):
            points = []
            for row, line in enumerate(lines):
                base = best(line, ONE, mode, "time", "min")
                value = best(line, (name,), mode, "time", "min")
                if base and value:
                    points.append((value / base, -row))
            if points:
                marker = "os^vDPX*<>hd"[index % 12]
                color = colormaps["tab20"](index)
                axes.plot(*zip(*points, strict=True), marker, color=color, label=name)
        axes.axvline(1, color="gray", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
        axes.set_yticks([-row for row in range(len(lines))], list(map(title, lines)))
        axes.set_xlabel(f"{MODES[mode]}: time / time of jaxrnn on one device")
        axes.grid(axis="x", which="both", alpha=0.3)
    if axes.lines[1:]:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(f"{results['header']['processor']}, {results['header']['cores']} cores")
    figure.savefig(path, dpi=120)
    return True
