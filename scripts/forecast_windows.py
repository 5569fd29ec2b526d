"""Windows of a series for `train_forecast.py`: how its rows are split, what of them is scaled, and which series is too short."""

import itertools
from dataclasses import dataclass

import numpy as np

from jaxrnn import training

FEWEST = 10
"""Windows to train on, at least."""


@dataclass(frozen=True)
class Frame:
    """What is asked of a series: sizes in steps, and the quantiles."""

    window: int
    horizon: int
    season: int
    quantiles: tuple[float, ...]


@dataclass(frozen=True)
class Scaler:
    """How values become inputs of the model, and its outputs values again; from the training rows alone.

    Attributes:
        from_last: whether values count from the window's last known value, or from the mean of the training rows.
        scale: what one unit of the model's outputs is.
        mean, deviation: of each column.
    """

    from_last: bool
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def level(self, values, ends):
        """What the values count from, for each window: (n,)."""
        return last_known(values[:, 0])[ends] if self.from_last else np.full(len(ends), self.mean[0])

    def inputs(self, values, ends, frame):
        """Windows that end at `ends`: inputs (n, window, features), and which steps have a value at all (n, window).

        Beside the values a step holds how far it is from the window's end, since steps without a value are skipped; and, where
        there are several columns, which of them have a value.
        """
        past = values[ends[:, None] + np.arange(1 - frame.window, 1)]
        target = (past[..., 0] - self.level(values, ends)[:, None]) / self.scale
        others = (past[..., 1:] - self.mean[1:]) / self.deviation[1:]
        known = ~np.isnan(past)
        scaled = np.where(known, np.concatenate([target[..., None], others], axis=-1), 0)
        distance = np.broadcast_to(np.arange(1 - frame.window, 1)[:, None] / frame.window, (*past.shape[:2], 1))
        features = [scaled, distance] + ([known] if past.shape[-1] > 1 else [])
        return np.concatenate(features, axis=-1).astype(np.float32), known.any(-1)

    def targets(self, values, ends, frame):
        """What is to be forecast, (n, horizon), 0 where no value is known; and where one is known."""
        future = (futures(values, ends, frame) - self.level(values, ends)[:, None]) / self.scale
        return np.where(np.isnan(future), 0, future).astype(np.float32), (~np.isnan(future)).astype(np.float32)

    def restored(self, outputs, values, ends):
        """The model's outputs (n, horizon, quantiles) as values."""
        return np.asarray(outputs, np.float64) * self.scale + self.level(values, ends)[:, None, None]


def fit_scaler(series, frame):
    """From the windows whose futures lie in the training rows."""
    values, (train, _, _) = series.values, split(series, frame)
    past = values[: borders(len(values))[0]]
    mean, deviation = np.nanmean(past, 0), np.nanstd(past, 0)
    future = futures(past, train, frame)
    spreads = [np.nanstd(future - last_known(past[:, 0])[train][:, None]), np.nanstd(future - mean[0])]
    from_last = bool(spreads[0] < spreads[1])
    return Scaler(from_last, float(min(spreads)), tuple(mean.tolist()), tuple(deviation.tolist()))


def last_known(target):
    """At each step the last value so far; NaN before the first."""
    places = np.maximum.accumulate(np.where(np.isnan(target), -1, np.arange(len(target))))
    return np.where(places < 0, np.nan, target[places])


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
    if rows < (least := fewest_rows(frame)):
        text = f"{what}: {rows} steps are too few for {sizes}, which need {least}: choose a smaller --horizon or --window"
        raise training.Failure(text, code=2)
    for part, ends, needed in zip(("training", "validation", "test"), split(series, frame), (FEWEST, 1, 1), strict=True):
        if len(ends) < needed:
            text = f"{what}: in the {part} rows of {column!r} there are too few values for {sizes}: {len(ends)}, not {needed}"
            raise training.Failure(text, code=2)
    first, _ = borders(rows)
    for name, values in zip(series.columns, series.values[:first].T, strict=True):
        known = values[~np.isnan(values)]
        if not len(known) or np.ptp(known) == 0:
            how = "does not change" if len(known) else "has no value"
            text = f"{what}: the column {name!r} {how} in the first 70 % of the rows, which are trained on"
            raise training.Failure(text, code=2)
    if not 0 < fit_scaler(series, frame).scale < np.inf:
        raise training.Failure(f"{what}: {column!r} never changes within {sizes} of the first 70 % of the rows", code=2)


def fewest_rows(frame):
    """The smallest number of rows that can be split."""
    for rows in itertools.count(1):
        first, second = borders(rows)
        windows = first - frame.window - frame.horizon + 1
        if windows >= FEWEST and min(second - first, rows - second) >= frame.horizon:
            return rows
