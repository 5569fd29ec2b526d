"""How numbers of a series become inputs of a forecasting model, and its outputs numbers again. NumPy only: no model and no file
may be known here."""

import bisect
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrnn import checks
from jaxrnn.typing import ArrayLike, Lengths, Table


@dataclass(frozen=True)
class Scaler:
    """Turns a series into inputs of a model that forecasts quantiles of its first column, and outputs into values; gaps are NaN.

    It is fitted to training rows by `scripts/train_forecast.py`, and comes back with the model from `jaxrnn.runs.load_run`.

    Args:
        columns: names of the columns, the one to forecast first.
        window: steps of the past that the model reads.
        horizon: steps that it forecasts.
        quantiles: which ones, ascending.
        from_last: whether the last known value of the window is subtracted, or else the mean of the training rows.
        scale: the values are then divided by it.
        mean, deviation: of each column, in the training rows.

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range, or there is not one mean and deviation a column.

    Example:
        >>> import numpy as np
        >>> scaler = Scaler(("sold",), 3, 2, (0.1, 0.5, 0.9), True, 2.0, (9.0,), (1.5,))
        >>> values = np.array([[8.0], [np.nan], [10.0], [12.0]])
        >>> x, mask = scaler.inputs(values)
        >>> x[0].tolist(), mask[0].tolist()
        ([[nan, nan], [-1.0, -0.3333333432674408], [0.0, 0.0]], [False, True, True])
        >>> scaler.restored(np.array([[-1.0, 0.0, 1.0, -2.0, 0.5, 2.0]]), values)[0].tolist()
        [[10.0, 12.0, 14.0], [8.0, 13.0, 16.0]]
    """

    columns: tuple[str, ...]
    window: int
    horizon: int
    quantiles: tuple[float, ...]
    from_last: bool
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def __post_init__(self):
        for name in ("columns", "quantiles", "mean", "deviation"):  # lists, if they were kept as JSON
            if not isinstance(getattr(self, name), tuple | list):
                raise TypeError(f"Scaler: `{name}` should be a tuple, got {getattr(self, name)!r}.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.columns or not all(isinstance(column, str) for column in self.columns):
            raise TypeError(f"Scaler: `columns` should be names, at least one, got {self.columns}.")
        checks.size("Scaler", "window", self.window)
        checks.size("Scaler", "horizon", self.horizon)
        for quantile in self.quantiles:
            checks.rate("Scaler", "quantiles", quantile)
        if not self.quantiles or list(self.quantiles) != sorted(set(self.quantiles)):
            raise ValueError(f"Scaler: `quantiles` should ascend, and be at least one, got {self.quantiles}.")
        checks.flag("Scaler", "from_last", self.from_last)
        checks.positive("Scaler", "scale", self.scale)
        for name in ("mean", "deviation"):
            came = getattr(self, name)
            if len(came) != len(self.columns):
                raise ValueError(f"Scaler: `{name}` should have a number for each of {len(self.columns)} `columns`, got {came}.")
        for mean, deviation in zip(self.mean, self.deviation, strict=True):
            checks.number("Scaler", "mean", mean)
            if not np.isfinite(mean):
                raise ValueError(f"Scaler: `mean` should be finite, got {mean}.")
            checks.positive("Scaler", "deviation", deviation)

    def inputs(self, values: ArrayLike | Table, ends: Lengths | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Windows as inputs of the model: x (n, window, features), and mask (n, window), true where a step has a value at all.

        Each step holds the scaled values, 0 in gaps of single columns; its distance from the window's end, since the model skips
        steps without a value; and, if there are several columns, which of them have a value. All of that is NaN at the steps that
        the mask leaves out: call model(x, mask=mask), since without a mask everything that it gives is NaN.

        Args:
            values: the series, (time, columns), NaN in gaps: an array, its columns in the order of `columns`, the one to forecast
                first; or a DataFrame, of which they are taken by name. Every step has a row.
            ends: the last row of each window, (n,), or of one; `None` means one window, at the end of the series.

        Raises:
            ValueError: the series is shorter than a window, has other columns, or no value to forecast in a window; the rows of
                a DataFrame are not in equal steps. TypeError: it holds other things than numbers.
        """
        values, ends, level = self._checked("Scaler.inputs", values, ends)
        past = values[ends[:, None] + np.arange(1 - self.window, 1)]
        target = (past[..., 0] - level[:, None]) / self.scale
        others = (past[..., 1:] - self.mean[1:]) / self.deviation[1:]
        known = ~np.isnan(past)
        scaled = np.where(known, np.concatenate([target[..., None], others], axis=-1), 0)
        distance = np.broadcast_to(np.arange(1 - self.window, 1)[:, None] / self.window, (*past.shape[:2], 1))
        features = [scaled, distance] + ([known] if past.shape[-1] > 1 else [])
        x, mask = np.concatenate(features, axis=-1).astype(np.float32), np.asarray(known.any(-1))
        return np.where(mask[..., None], x, np.float32(np.nan)), mask

    def targets(self, values: ArrayLike | Table, ends: Lengths) -> tuple[np.ndarray, np.ndarray]:
        """The scaled values after each end, (n, horizon), 0 where none is known; and weights, 1 where one is known, else 0."""
        values, ends, level = self._checked("Scaler.targets", values, ends, after=self.horizon)
        future = values[ends[:, None] + np.arange(1, self.horizon + 1), 0]
        future = (future - level[:, None]) / self.scale
        return np.where(np.isnan(future), 0, future).astype(np.float32), (~np.isnan(future)).astype(np.float32)

    def restored(self, outputs: ArrayLike, values: ArrayLike | Table, ends: Lengths | None = None) -> np.ndarray:
        """The model's outputs as values: (n, horizon, quantiles), the quantiles ascending.

        Args:
            outputs: of the model, (n, horizon * quantiles) or (n, horizon, quantiles), for the inputs of these `values` and `ends`.
            values, ends: as of `inputs`.

        Raises:
            ValueError: a shape does not fit.
        """
        values, ends, level = self._checked("Scaler.restored", values, ends)
        outputs, shape = np.asarray(outputs, np.float64), (len(ends), self.horizon, len(self.quantiles))
        if outputs.shape not in (shape, (shape[0], shape[1] * shape[2])):
            rule = f"have shape {shape}, the windows, `horizon` and `quantiles`"
            raise ValueError(f"Scaler.restored: `outputs` should {rule}, got {outputs.shape}.")
        return np.sort(outputs.reshape(shape), axis=-1) * self.scale + level[:, None, None]

    def level(self, values: ArrayLike | Table, ends: Lengths | None = None) -> np.ndarray:
        """What is subtracted from the values of each window: (n,). The arguments are those of `inputs`."""
        return self._checked("Scaler.level", values, ends)[2]

    def _checked(self, name: str, values: Any, ends: Any, *, after: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The values, the ends of the windows, and the level of each."""
        table = isinstance(values, Table)
        values = self._by_name(name, values) if table else values
        if hasattr(values, "to_frame"):  # of pandas or polars
            raise TypeError(f"{name}: `values` should be an array or a DataFrame, got a {checks.called(values)}.")
        checks.array(name, "values", values, None)
        values = np.asarray(values)
        if values.dtype.kind not in "fiu":
            hint = "\nWrite values.astype(float)." if table else ""
            raise TypeError(f"{name}: `values` should be an array of numbers, got dtype {values.dtype}.{hint}")
        if values.ndim != 2 or values.shape[1] != len(self.columns):
            shape = f"(time, {len(self.columns)}), the columns {', '.join(self.columns)}"
            hint = "\nWrite values[:, None] for one column." if values.ndim == 1 and len(self.columns) == 1 else ""
            raise ValueError(f"{name}: `values` should have shape {shape}, got {values.shape}.{hint}")
        if np.isinf(values).any():
            row = int(np.isinf(values).any(-1).argmax())
            raise ValueError(f"{name}: `values` should be numbers, NaN in gaps, got {values[row].tolist()} in row {row}.")
        ends = np.asarray(len(values) - 1 if ends is None else checks.integers(name, "ends", ends)).astype(np.int64)
        ends = ends[None] if ends.ndim == 0 else ends
        least, most = self.window - 1, len(values) - 1 - after
        if len(values) < self.window + after:
            parts = f"window={self.window}" + (f" and horizon={after}" if after else "")
            raise ValueError(f"{name}: `values` should have at least {self.window + after} rows, by {parts}, got {len(values)}.")
        if ends.ndim != 1 or (len(ends) and not (least <= ends.min() and ends.max() <= most)):
            came = f"{ends.min()} to {ends.max()}" if ends.ndim == 1 and len(ends) else f"shape {ends.shape}"
            raise ValueError(f"{name}: `ends` should be rows from {least} to {most}, got {came}.")
        known = np.concatenate([[0], np.cumsum(~np.isnan(values[:, 0]))])
        gaps = ends[known[ends + 1] == known[ends + 1 - self.window]]
        if len(gaps):
            rows = f"rows {gaps[0] + 1 - self.window} to {gaps[0]}"
            rule = f"have a value of {self.columns[0]!r} in each window of {self.window} rows"
            raise ValueError(f"{name}: `values` should {rule}, got gaps only in {rows}.")
        level = last_known(values[:, 0])[ends] if self.from_last else np.full(len(ends), self.mean[0])
        return values, ends, level

    def _by_name(self, name: str, table: Any) -> Any:
        """The columns of a DataFrame, in their order here."""
        there = list(table.columns)
        wrong = next((column for column in self.columns if there.count(column) != 1), None)
        if wrong is not None:
            shown = ", ".join(map(str, there[:12])) + (", …" if len(there) > 12 else "")
            rule = f"have one column {wrong!r}, of those to read ({', '.join(self.columns)})"
            raise ValueError(f"{name}: `values` should {rule}, got {shown or 'none'}.")
        index = getattr(table, "index", None)
        if index is not None and not _equal_steps(index):
            last = bisect.bisect_left(range(len(index)), True, key=lambda row: not _equal_steps(index[: row + 1]))
            came = ", ".join(str(label).removesuffix(" 00:00:00") for label in index[max(0, last - 2) : last + 1])
            rule = "have an index in equal steps, ascending: a row for each step, NaN where it has no value"
            hint = (
                'Rows that were left out come back by values.asfreq("D"), if the steps are days; where dates are text, write first '
                "values.index = pd.to_datetime(values.index), with dayfirst=True for dates such as 31.01.2024. "
                "If none were left out, write values.reset_index(drop=True)."
            )
            raise ValueError(f"{name}: `values` should {rule}, got {came}.\n{hint}")
        return table[list(self.columns)].to_numpy()


def _equal_steps(index: Any) -> bool:
    """Whether the index of a DataFrame says that its rows ascend in equal steps: numbers, times, or months of the calendar, all of
    them on the same day or as far from their ends."""
    if hasattr(index, "to_timestamp"):  # periods, which may leave out weekends
        index = index.to_timestamp()
    if getattr(index, "tz", None) is not None:  # in universal time; days and longer steps also by the clock on the wall
        wall = index.tz_localize(None)
        whole_days = (np.diff(np.asarray(wall)) >= np.timedelta64(1, "D")).all()
        return _equal_steps(index.tz_convert(None)) or (bool(whole_days) and _equal_steps(wall))
    labels = np.asarray(index)
    if labels.dtype.kind not in "iufmM":  # text, perhaps ISO dates
        try:
            with warnings.catch_warnings(action="error"):  # of a time zone, which NumPy's dates do not have
                labels = np.asarray(labels.astype(str), "datetime64")
        except (ValueError, Warning):
            return False
    ascends, same = bool((labels[1:] > labels[:-1]).all()), lambda a: bool((a == a[:1]).all())
    if labels.dtype.kind != "M":
        steps = np.diff(labels).astype(np.float64)
        return ascends and np.allclose(steps, steps[:1], rtol=1e-2, atol=0)
    months = labels.astype("datetime64[M]")
    monthly = same(np.diff(months)) and (same(labels - months) or same(months + np.timedelta64(1, "M") - labels))
    return ascends and (monthly or same(np.diff(labels)))


def last_known(target: np.ndarray) -> np.ndarray:
    """At each step of a series (time,) the last value so far; NaN before the first."""
    places = np.maximum.accumulate(np.where(np.isnan(target), -1, np.arange(len(target))))
    return np.where(places < 0, np.nan, target[places])
