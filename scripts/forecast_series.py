"""Read one column of a CSV file as a series of equal steps, for `train_forecast.py`. Nothing is filled in: a gap stays NaN.

Every fault of a file ends in one line that names the file, and the line in it. Nothing of JAX may be imported here.
"""

import bisect
import csv
import importlib.util
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from training.console import Failure
from training.folder import read_text

GAPS = {"", "na", "n/a", "nan", "null", "none"}
"""Cells that are read as a gap, in any case of their letters."""

SEASONS = {timedelta(hours=1): 24, timedelta(days=1): 7, timedelta(days=7): 52}
MONTHLY_SEASONS = {1: 12, 3: 4}


@dataclass(frozen=True)
class Clock:
    """Times of equal steps.

    Attributes:
        start: of the first step: a number, a date, or the row's number if the file has no times.
        step: a number, a timedelta, or a whole number of months.
        months: whether `step` counts months.
        month_ends: whether each time is the last day of its month.
        text: how a time is written: "number", "date", "month" or "moment".
    """

    start: Any
    step: Any
    months: bool = False
    month_ends: bool = False
    text: str = "number"

    def at(self, k: int) -> Any:
        """The time of step k, from 0; also beyond the end of the file."""
        if not self.months:
            return self.start + k * self.step
        month = self.start.year * 12 + self.start.month - 1 + k * self.step
        last = _days_in(month)
        day = last if self.month_ends else self.start.day
        return self.start.replace(year=month // 12, month=month % 12 + 1, day=min(day, last))

    def label(self, k: int) -> str:
        """The time of step k as text, as the file writes it."""
        time = self.at(k)
        if self.text == "number":
            return f"{time:.12g}"
        return {"date": f"{time:%Y-%m-%d}", "month": f"{time:%Y-%m}"}.get(self.text, time.isoformat())

    @property
    def season(self) -> int:
        """How many steps the season of the calendar has; 1 if there is none."""
        return (MONTHLY_SEASONS if self.months else SEASONS).get(self.step, 1)


class Series(NamedTuple):
    """Columns over time, the one to forecast first."""

    columns: tuple[str, ...]
    values: np.ndarray  # (time, columns), NaN where there is a gap
    clock: Clock
    time: str  # the name of its column
    source: str

    def first(self, rows: int) -> "Series":
        return self._replace(values=self.values[:rows])


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """The text of a CSV file."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return file.getvalue()


def packaged(name: str) -> str:
    """The path of a data file that comes with statsmodels, which need not be imported for it."""
    return str(Path(importlib.util.find_spec("statsmodels").submodule_search_locations[0]) / "datasets" / name / f"{name}.csv")


def read(path: str, column: str, *, time: str | None = None, others: tuple[str, ...] = ()) -> Series:
    """Read columns of a CSV file whose first line names them.

    Args:
        path: of the file, UTF-8; its separator may be a comma, a semicolon or a tab.
        column: the one to forecast.
        time: the one that holds the times, numbers or ISO dates, ascending. Steps that are left out become gaps. If it is
            not given, every row is one step.
        others: columns that are read beside it.

    Raises:
        Failure: what is wrong with the file, and in which line (code 2).
    """
    wanted = (column, *others)
    twice = [name for name, count in Counter([*wanted, *([time] if time else [])]).items() if count > 1]
    if twice:
        raise Failure(f"the column {twice[0]!r} is asked for twice by --column, --with and --time", code=2)
    header, rows = _rows(path)
    places = [_place(path, header, name) for name in (*wanted, *([time] if time else []))]
    if not rows:
        raise Failure(f"{path} has no rows below its header", code=2)
    numbers = np.array([[_value(path, line, header[k], row[k]) for k in places[: len(wanted)]] for line, row in rows])
    if time is None:
        return Series(wanted, numbers, Clock(1, 1), "row", path)
    lines = [line for line, _ in rows]
    clock, steps = _clock(path, time, lines, [row[places[-1]].strip() for _, row in rows])
    values = np.full((steps[-1] + 1, len(wanted)), np.nan)
    values[steps] = numbers
    return Series(wanted, values, clock, time, path)


def _rows(path: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and each row with the number of its line. A blank line is no row, but a gap within a single column."""
    text = read_text(path, "CSV, UTF-8")
    first = text.splitlines()[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as reason:
        raise Failure(f"{path}, line {reader.line_num}: {reason}", code=2) from None
    while rows and not any(cell.strip() for cell in rows[-1][1]):
        rows.pop()
    blank = [not "".join(row).strip() and len(row) < 2 for _, row in rows]
    if len(header) > 1:
        rows = [row for row, left_out in zip(rows, blank, strict=True) if not left_out]
    elif sum(blank) > 1 and (all(blank[::2]) or all(blank[1::2])):  # each line end doubled, such as \r\r\n
        text = "every second line is blank: take these lines out, or write NA where a value is missing"
        raise Failure(f"{path}, line {rows[blank.index(True)][0]}: {text}", code=2)
    rows = [(line, row or [""]) for line, row in rows]
    uneven = next(((line, len(row)) for line, row in rows if len(row) != len(header)), None)
    if uneven:
        raise Failure(f"{path}, line {uneven[0]}: {uneven[1]} fields, where the header has {len(header)}", code=2)
    return header, rows


def _place(path: str, header: list[str], name: str) -> int:
    if header.count(name) == 1:
        return header.index(name)
    if name in header:
        raise Failure(f"{path} has {header.count(name)} columns {name!r}: name them apart", code=2)
    shown = ", ".join(name or "'' (no name)" for name in header[:12]) + (", …" if len(header) > 12 else "")
    raise Failure(f"{path} has no column {name!r}; its first line names: {shown}", code=2)


def _value(path: str, line: int, column: str, cell: str) -> float:
    """A number, or NaN for a gap."""
    if cell.strip().lower() in GAPS:
        return math.nan
    value = _number(cell)
    if value is None:
        comma = re.fullmatch(r"\s*[-+]?[\d.,]*,[\d.,]*\s*", cell)
        hint = ": write decimals with a point, and thousands without a comma" if comma else ""
        raise Failure(f"{path}, line {line}, column {column!r}: should be a number or empty, got {cell[:40]!r}{hint}", code=2)
    return value


def _number(cell: str) -> float | None:
    """Plain decimal notation only: Python would also take `1_000`."""
    try:
        return float(cell) if "_" not in cell and math.isfinite(float(cell)) else None
    except ValueError:
        return None


def _clock(path: str, column: str, lines: list[int], cells: list[str]) -> tuple[Clock, list[int]]:
    """The steps of the times in a column, and the number of each row's step, from 0."""
    times, text = _times(path, column, lines, cells)
    for k in range(1, len(times)):
        if times[k] > times[k - 1]:
            continue
        earlier = bisect.bisect_left(times, times[k], hi=k)  # ascending up to k
        if times[earlier] == times[k]:
            text = f"the time {cells[k]!r} is there already, in line {lines[earlier]}: keep one of the two"
            raise Failure(f"{path}, line {lines[k]}: {text}", code=2)
        what = f"the time {cells[k]!r} is before that of the line above, {cells[k - 1]!r}"
        raise Failure(f"{path}, line {lines[k]}: {what}: sort the rows by {column!r}", code=2)
    if len(times) < 3:
        raise Failure(f"{path}: {len(times)} rows are too few to know the step of {column!r}", code=2)
    clock, counts = _steps(times, text)
    bad = next((k for k, count in enumerate(counts) if count is None), None)
    if bad is not None:
        apart = f"{clock.step} months" if clock.months else clock.step
        what = f"most times are {apart} apart, and {cells[bad]!r} is not a whole number of such steps after {cells[0]!r}"
        raise Failure(f"{path}, line {lines[bad]}: {what}: bring {column!r} to equal steps", code=2)
    twice = next((k for k in range(1, len(counts)) if counts[k] <= counts[k - 1]), None)
    if twice is not None:
        what = f"the times {cells[twice - 1]!r} and {cells[twice]!r} fall on one step, since most are {clock.step} apart"
        raise Failure(f"{path}, line {lines[twice]}: {what}: leave one of the rows out", code=2)
    if counts[-1] + 1 > 3 * len(times):
        raise Failure(f"{path}: of the {counts[-1] + 1} equal steps of {column!r}, only {len(times)} are in the file", code=2)
    return clock, counts


def _times(path: str, column: str, lines: list[int], cells: list[str]) -> tuple[list[Any], str]:
    """All times as numbers, or all as moments, and how they are written."""
    if all(re.fullmatch(r"(18|19|20)\d\d(0[1-9]|1[0-2])", cell) for cell in cells):
        raise Failure(f"{path}, line {lines[0]}, column {column!r}: write months as 2024-01, not as {cells[0]!r}", code=2)
    readers = {"number": _number, "month": _month, "date": _day, "moment": _moment}
    if all(_day(cell) for cell in cells):  # 20240131 is a date, not a number
        readers = {"date": _day}
    best, reach = "number", -1
    for text, reader in readers.items():
        times = [reader(cell) for cell in cells]
        if None not in times:
            if text == "moment" and len({time.utcoffset() is None for time in times}) == 2:
                raise Failure(f"{path}: some times of {column!r} have a time zone, and some have none", code=2)
            return times, text
        if times.index(None) > reach:
            best, reach = text, times.index(None)
    rule = "a number, as the others" if best == "number" and reach > 0 else "a number or an ISO date such as 2024-01-31"
    hint = f": pandas makes ISO dates of it, pd.to_datetime(table[{column!r}], dayfirst=True), or dayfirst=False for month/day"
    hint = hint if re.match(r"\d\d?[./-]\d\d?[./-]\d\d", cells[reach]) else ""
    came = f"{cells[reach][:40]!r}{hint}"
    raise Failure(f"{path}, line {lines[reach]}, column {column!r}: a time should be {rule}, got {came}", code=2)


def _month(cell: str) -> datetime | None:
    return _moment(f"{cell}-01") if re.fullmatch(r"\d{4}-\d\d", cell) else None


def _day(cell: str) -> datetime | None:
    try:
        return datetime.combine(date.fromisoformat(cell), datetime.min.time())
    except ValueError:
        return None


def _moment(cell: str) -> datetime | None:
    try:
        return datetime.fromisoformat(cell)
    except ValueError:
        return None


def _days_in(month: int) -> int:
    """Days of a month, counted from the year 0."""
    following = month + 1
    first, next_first = (date(m // 12, m % 12 + 1, 1) for m in (month, following))
    return (next_first - first).days


def _steps(times: list[Any], text: str) -> tuple[Clock, list[int | None]]:
    """The commonest difference as the step, and how many steps after the first each time is; None if it is not a whole number."""
    if text == "number":
        step = Counter(float(f"{b - a:.6g}") for a, b in itertools.pairwise(times)).most_common(1)[0][0]
        counts = [round((time - times[0]) / step) for time in times]
        close = [abs(times[0] + k * step - time) < 1e-2 * step for k, time in zip(counts, times, strict=True)]
        return Clock(times[0], step), [k if fits else None for k, fits in zip(counts, close, strict=True)]
    same_hour = len({time.time() for time in times}) == 1 and len({time.utcoffset() for time in times}) == 1
    months = [time.year * 12 + time.month - 1 for time in times]
    month_ends = all(time.day == _days_in(month) for time, month in zip(times, months, strict=True))
    if same_hour and (month_ends or len({time.day for time in times}) == 1):  # calendar months, however long
        step = Counter(b - a for a, b in itertools.pairwise(months)).most_common(1)[0][0]
        clock = Clock(times[0], step, months=True, month_ends=month_ends, text=text)
        counts = [(month - months[0]) / step for month in months]
    else:
        step = Counter(b - a for a, b in itertools.pairwise(times)).most_common(1)[0][0]
        clock = Clock(times[0], step, text=text)
        counts = [(time - times[0]) / step for time in times]
    return clock, [int(count) if count == int(count) else None for count in counts]
