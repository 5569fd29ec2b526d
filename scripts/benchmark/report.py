"""Tables, goals and the picture, from the lines that the benchmark measured."""

import math
from collections.abc import Callable
from typing import NamedTuple

from contenders import FEATURES, PARALLEL, PEERS, STEPS

MODES = {"forward": "forward", "train": "training step", "step": "one step"}


def mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


class Goal(NamedTuple):
    """The best of `top` over the best of `bottom` on every line of these kinds, put into one number."""

    text: str
    top: tuple[str, ...]
    bottom: tuple[str, ...]
    reduce: Callable[[list[float]], float]
    goals: dict[str, float]
    at_most: bool = False
    what: str = "time"
    kinds: tuple[str, ...] = ("grid", "stack")
    where: Callable[[dict], bool] = lambda line: True


ONE, BOTH, PEER = ("jaxrnn",), ("jaxrnn", "jaxrnn-sharded"), tuple(PEERS)
LARGE = {"where": lambda line: line["batch"] * line["hidden_size"] >= 2048}
LONG = {"where": lambda line: line["time"] >= 100 and line["batch"] >= 16}
GOALS = [
    Goal("fastest JAX peer / one device", PEER, ONE, mean, {"forward": 1.2, "train": 1.3}),
    Goal("fastest JAX peer / one device per core", PEER, BOTH[1:], mean, {"forward": 1.6, "train": 1.8}),
    Goal("fastest JAX peer / better of both, worst line", PEER, BOTH, min, {"forward": 1, "train": 1}),
    Goal("torch / better of both", ("torch",), BOTH, mean, {"forward": 1, "train": 1.3}),
    Goal("one device / floor, B·H ≥ 2048", ONE, ("floor",), mean, {"forward": 1.5, "train": 1.6}, True, **LARGE),
    Goal("memory / naive, T ≥ 100, B ≥ 16, worst line", ONE, ("naive",), max, {"train": 1}, True, "temp", **LONG),
    Goal("compile time, 4 layers, / linen", ONE, ("linen",), max, {"train": 1}, True, "compile", ("compile",)),
    *[
        Goal(f"{name} / without, worst line", (f"jaxrnn+{name}",), ONE, max, dict.fromkeys(("forward", "train"), 1.25), True,
             kinds=("features",))
        for name in FEATURES
    ],
    *[
        Goal(f"{name} / GRU, worst line", (name,), ONE, max, {"train": goal}, True, kinds=("linear",))
        for name, goal in zip(PARALLEL, (0.5, 0.8, 1, 0.8, 1, 1), strict=True)
    ],
    Goal("one core: torch or onnxruntime / ours, worst", ("torch", "onnxruntime"), ONE, min, {"forward": 1}, kinds=("core",)),
    Goal("one step: torch or onnxruntime / ours", ("torch", "onnxruntime"), tuple(STEPS), min, {"step": 1}, kinds=("step",)),
]  # fmt: skip


def best(line: dict, names: tuple[str, ...], mode: str, what: str, statistic: str) -> float | None:
    found = [line["contenders"].get(name, {}).get(mode, {}).get(what) for name in names]
    return min((value[statistic] if isinstance(value, dict) else value for value in found if value is not None), default=None)


def summarise(lines: list[dict]) -> list[dict]:
    """Every goal with what was reached, by minima and by medians; None where nothing was run."""
    result = []
    for row in GOALS:
        for mode, goal in row.goals.items():
            reached = {"row": row.text, "mode": mode, "goal": goal, "at_most": row.at_most}
            for statistic in ("min", "median"):
                at = lambda line, names, s=statistic, mode=mode, row=row: best(line, names, mode, row.what, s)
                pairs = [
                    (at(line, row.top), at(line, row.bottom)) for line in lines if line["kind"] in row.kinds and row.where(line)
                ]
                ratios = [top / bottom for top, bottom in pairs if top and bottom]
                reached |= {statistic: row.reduce(ratios) if ratios else None, "lines": len(ratios)}
            value = reached["min"]
            if value is not None:
                reached["met"] = value <= goal if row.at_most else value >= goal
            result.append(reached)
    return result


def summary_table(summary: list[dict]) -> str:
    text = [f"{'goal':52} {'':13} {'lines':>5} {'':>6} {'by minima':>10} {'by medians':>10}"]
    for row in summary:
        if row["lines"]:
            goal = f"{'≤' if row['at_most'] else '≥'} {row['goal']:.2f}"
            numbers = f"{row['lines']:5} {goal:>6} {row['min']:10.3f} {row['median']:10.3f}"
            text.append(f"{row['row']:52} {MODES[row['mode']]:13} {numbers}  {'met' if row['met'] else 'missed'}")
    without = sum(not row["lines"] for row in summary)
    return "\n".join(text + [f"{without} goals have no line in this run"] * bool(without))


def title(line: dict) -> str:
    stack = f" {line['num_layers']} layers" if line["num_layers"] > 1 else ""
    stack += " bidirectional" if line["bidirectional"] else ""
    kind = "" if line["kind"] == "grid" else f" ({line['kind']})"
    return f"{line['cell']} T={line['time']} B={line['batch']} I={line['input_size']} H={line['hidden_size']}" + stack + kind


def line_table(line: dict) -> str:
    """One line: milliseconds, seconds of compiling, megabytes of temporary memory."""
    modes = [mode for mode in MODES if any(mode in record for record in line["contenders"].values())]
    text = [title(line), " " * 22 + "".join(f"{MODES[mode] + ', ms':>44}" for mode in modes)]
    text.append(" " * 22 + "".join(f"{name:>11}" for name in ("min", "median", "compile s", "temp MB")) * len(modes))
    for name, record in line["contenders"].items():
        cells = []
        for mode in modes:
            found = record.get(mode, {})
            times, compiled, temp = found.get("time", {}), found.get("compile", {}), found.get("temp")
            cells += [(times.get("min"), 1e3), (times.get("median"), 1e3), (compiled.get("min"), 1), (temp, 1e-6)]
        numbers = "".join(f"{'–':>11}" if value is None else f"{value * scale:11.4g}" for value, scale in cells)
        devices = f" ×{record['devices']}" if record["devices"] > 1 else ""
        text.append(f"{name + devices:22}{numbers}")
        text += [f"{'':22}{record['note']}"] if "note" in record else []
    text += [f"{name:22}{state}: {reason}" for state in ("skipped", "failed") for name, reason in line[state].items()]
    return "\n".join(text)


def plot(results: dict, path) -> bool:
    """Draw every contender's time over that of `jaxrnn` on one device; False without matplotlib."""
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator
    except ImportError:
        return False
    lines = [line for line in results["lines"] if line["kind"] in ("grid", "stack")]
    names = list(dict.fromkeys(name for line in lines for name in line["contenders"]))
    figure = Figure(figsize=(14, max(2 + 0.4 * len(lines), 1 + 0.3 * len(names))), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("forward", "train"), strict=True):
        for index, name in enumerate(names):
            pairs = [(best(line, (name,), mode, "time", "min"), best(line, ONE, mode, "time", "min")) for line in lines]
            points = [(value / base, -row) for row, (value, base) in enumerate(pairs) if value and base]
            if points:
                axes.plot(*zip(*points, strict=True), "os^vDPX*<>hd"[index % 12], color=colormaps["tab20"](index), label=name)
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
