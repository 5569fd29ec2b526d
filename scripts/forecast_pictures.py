"""What `train_forecast.py` draws, and the file of what it predicts."""

from pathlib import Path

import forecast_series
import numpy as np
import training


def predict(path, who, series, frame, end, quantiles, found):
    """Write what comes after the last row, `end`: quantiles (horizon, quantiles), and draw them beside what the baselines found,
    which is written too, once for all networks."""
    if not training.is_main_process():
        return
    levels, clock = frame.quantiles, series.clock
    text = forecast_series.table(
        [series.time, *(f"q{level:g}" for level in levels)],
        ([clock.label(end[0] + 1 + k), *map(repr, row)] for k, row in enumerate(quantiles.tolist())),
    )
    training.write_whole(path / "prediction.csv", text)
    header = [name for who in found for name in (who, *(f"{who} q{level:g}" for level in levels))]
    numbers = np.concatenate([np.c_[point[0], spread[0]] for point, spread in found.values()], axis=1).tolist()
    rows = ([clock.label(end[0] + 1 + k), *map(repr, row)] for k, row in enumerate(numbers))
    training.write_whole(path.parent / "baselines.csv", forecast_series.table([series.time, *header], rows))
    with training.figure(path / "prediction.png", width=9, height=4) as axes:
        shown = np.arange(max(0, end[0] + 1 - max(frame.window, 3 * frame.horizon)), end[0] + 1)
        axes.plot([clock.at(k) for k in shown], series.values[shown, 0], "k", lw=1, label="measured")
        draw(axes, clock, end[0], found | {who: (quantiles[None, :, levels.index(0.5)], quantiles[None])}, 0, levels)
        axes.set(title=f"{called(series)}, {who}, {frame.horizon} steps after {clock.label(end[0])}")
        axes.set(ylabel=series.columns[0])
        axes.legend(loc="upper left", fontsize="small", ncols=3)
        axes.margins(y=0.3)


def called(series):
    """Column and file."""
    return f"{series.columns[0]} ({Path(series.source).name})"


BASELINES = {"last value": None, "seasonal naive": "tab:cyan", "ETS": "magenta"}
"""Their colours, which no cell has; what has none is not drawn."""


def draw(axes, clock, end, found, row, levels):
    """What each says from one origin; of the first network, its quantiles too. Labelled if it is the first origin."""
    times = [clock.at(end + 1 + k) for k in range(found["last value"][0].shape[1])]
    marker, networks = "." if len(times) < 3 else None, [who for who in found if who not in BASELINES]
    for who, (point, quantiles) in found.items():
        look = {"color": BASELINES[who], "lw": 0.8} if who in BASELINES else {"lw": 1.5, **training.cell_style(who)}
        if who == networks[0]:
            share = f"{levels[-1] - levels[0]:.0%} of what may come"
            low, high = quantiles[row, :, 0], quantiles[row, :, -1]
            axes.fill_between(times, low, high, color=look["color"], alpha=0.3, lw=0, label=label(share, row))
        if look["color"]:
            axes.plot(times, point[row], marker=marker, label=label(who, row), **look)


def label(text, row):
    return text if row == 0 else None


def plot(results, folder):
    with training.figure(folder.path / "forecast.png", len(results), width=11, height=4) as all_axes:
        for axes, (series, frame, ends, found, _) in zip(np.ravel(all_axes), results.values(), strict=True):
            shown = np.arange(max(0, ends[0] + 1 - frame.window), len(series.values))
            axes.plot([series.clock.at(k) for k in shown], series.values[shown, 0], "k", lw=1, label="measured")
            drawn = -1
            for row, end in enumerate(ends):
                if row == 0 or end >= drawn + frame.horizon:
                    draw(axes, series.clock, end, found, row, frame.quantiles)
                    axes.axvline(series.clock.at(end), color="gray", ls=":", lw=0.6, label=label("origins", row))
                    drawn = end
            axes.axvline(series.clock.at(ends[0] + 1), color="gray", ls="--", label="test rows begin")
            axes.set(title=f"{called(series)}, {frame.horizon} steps ahead", ylabel=series.columns[0])
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), fontsize="small", ncols=3, frameon=False)
    with training.figure(folder.path / "loss.png", len(results), width=11, height=4) as all_axes:
        for axes, (series, *_, metrics) in zip(np.ravel(all_axes), results.values(), strict=True):
            for who, of_run in metrics.items():
                for metric, (steps, losses) in of_run.items():
                    width = 1.5 if metric == "validation" else 0.7
                    axes.semilogy(steps, losses, label=f"{who}, {metric}", lw=width, **training.cell_style(who))
            axes.set(title=called(series), xlabel="step", ylabel="pinball loss, normalised")
            axes.legend()
