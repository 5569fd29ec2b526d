"""Windows of a series for `train_forecast.py`: how its rows are split, what of them is scaled, and which series is too short."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import training

from jaxrnn.scaling import Scaler, last_known

FEWEST = 10
"""Windows to train on, at least."""


@dataclass(frozen=True)
class Frame:
    """What is asked of a series: sizes in steps, and the quantiles."""

    window: int
    horizon: int
    season: int
    quantiles: tuple[float, ...]


def fit_scaler(series, frame):
    """From the windows whose futures lie in the training rows."""
    values, (train, _, _) = series.values, split(series, frame)
    past = values[: borders(len(values))[0]]
    mean, deviation = np.nanmean(past, 0), np.nanstd(past, 0)
    future = futures(past, train, frame)
    spreads = [np.nanstd(future - last_known(past[:, 0])[train][:, None]), np.nanstd(future - mean[0])]
    from_last = bool(spreads[0] < spreads[1])
    sizes = {"window": frame.window, "horizon": frame.horizon, "quantiles": frame.quantiles}
    of_rows = {"scale": float(min(spreads)), "mean": tuple(mean.tolist()), "deviation": tuple(deviation.tolist())}
    return Scaler(tuple(series.columns), **sizes, from_last=from_last, **of_rows)


def futures(values, ends, frame):
    """What followed each window: (n, horizon)."""
    return values[ends[:, None] + np.arange(1, frame.horizon + 1), 0]


def borders(rows):
    """Where the validation rows begin, and where the test rows do."""
    return int(rows * 0.70), int(rows * 0.85)


def split(series, frame):
    """The last indices of the windows whose futures lie in the training, validation and test rows, where there are values."""
    values, rows = series.values, len(series.values)
    first, second = borders(rows)
    ends = np.arange(frame.window - 1, rows - frame.horizon)
    known = np.cumsum(np.concatenate([[0], ~np.isnan(values[:, 0])]))
    ends = ends[known[ends + 1] > known[ends + 1 - frame.window]]
    ends = ends[known[ends + 1 + frame.horizon] > known[ends + 1]]
    last = ends + frame.horizon
    return ends[last < first], ends[(ends + 1 >= first) & (last < second)], ends[ends + 1 >= second]


def check(series, frame):
    """Refuse what cannot be split, trained on or scaled.

    Raises:
        Failure: there are too few rows, or they hold too little.
    """
    what, rows, column = series.source, len(series.values), series.columns[0]
    sizes = f"a window of {frame.window} and a horizon of {frame.horizon} steps"
    if not fits(rows, frame):
        text = f"{what}: {rows} steps are too few for {sizes}, which need {fewest_rows(frame, rows)}: {smaller(rows, frame)}"
        raise training.Failure(text, code=2)
    for part, ends, needed in zip(("training", "validation", "test"), split(series, frame), (FEWEST, 1, 1), strict=True):
        if len(ends) < needed:
            text = f"{what}: in the {part} rows of {column!r} there are too few values for {sizes}: {len(ends)}, not {needed}"
            raise training.Failure(text, code=2)
    first, _ = borders(rows)
    for name, values in zip(series.columns, series.values[:first].T, strict=True):
        known = values[~np.isnan(values)]
        with np.errstate(over="ignore", invalid="ignore"):
            spread = np.std(known) if len(known) and np.ptp(known) else 0
        if not 0 < spread < np.inf:
            changes = "does not change" if spread == 0 else "is too large to be scaled"
            how = changes if len(known) else "has no value"
            text = f"{what}: the column {name!r} {how} in the first 70 % of the rows, which are trained on"
            raise training.Failure(text, code=2)
    try:
        fit_scaler(series, frame)
    except ValueError:
        text = f"{what}: {column!r} never changes within {sizes} of the first 70 % of the rows"
        raise training.Failure(text, code=2) from None


def fits(rows, frame):
    """Whether so many rows can be split."""
    first, second = borders(rows)
    return first - frame.window - frame.horizon + 1 >= FEWEST and min(second - first, rows - second) >= frame.horizon


def fewest_rows(frame, least=1):
    """The smallest number of rows, at least so many, that can be split."""
    return next(rows for rows in itertools.count(least) if fits(rows, frame))


def smaller(rows, frame):
    """What to choose where there are too few rows."""
    sizes = lambda name: (size for size in range(getattr(frame, name) - 1, 0, -1) if fits(rows, replace(frame, **{name: size})))
    longest = {name: next(sizes(name), None) for name in ("horizon", "window")}
    if found := [f"--{name} {size}" for name, size in longest.items() if size]:
        return f"the longest that fits is {', or '.join(found)}"
    return f"shorten both; a window and a horizon of 1 need {fewest_rows(replace(frame, window=1, horizon=1))}"
