"""The forecast of a column of a CSV file: what is read and refused, that gaps are skipped, that nothing learns from the rows it is
tested on, that quantiles are quantiles, and that a file may grow."""

import collections
import contextlib
import csv
import io
import itertools
import json
import re
import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import forecast_baselines
import forecast_series
import forecast_windows
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_forecast
import training
from flax import nnx
from forecast_windows import Frame

from jaxrnn import _checkpoints
from jaxrnn.models import LSTMModel
from jaxrnn.runs import load_run
from jaxrnn.scaling import Scaler, last_known

PATTERN = np.array([0.0, 3.0, 1.0, -2.0])
TINY = "--column sold --time day --horizon 3 --season 4 --window 8 --hidden-size 8 --batch-size 32 --learning-rate 2e-2 --steps 500"


@pytest.fixture(autouse=True)
def promotion():
    """Optax mixes dtypes, so what trains does without strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def write(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run(path, out, words):
    train_forecast.main(["--csv", str(path), *words.split(), "--out", str(out)])


# Reading -----------------------------------------------------------------------------------------------------------------


def test_the_built_in_series_are_read_as_statsmodels_reads_them():
    from statsmodels.datasets import co2, sunspots

    table = co2.load_pandas().data["co2"]
    series = forecast_series.read(forecast_series.packaged("co2"), "co2", time="date")
    np.testing.assert_array_equal(series.values[:, 0], table.to_numpy())
    assert np.isnan(series.values).sum() == 59
    assert [series.clock.at(k) for k in range(len(table))] == list(table.index.to_pydatetime())
    assert series.clock.season == 52
    table = sunspots.load_pandas().data
    series = forecast_series.read(forecast_series.packaged("sunspots"), "SUNACTIVITY", time="YEAR")
    np.testing.assert_array_equal(series.values[:, 0], table["SUNACTIVITY"])
    assert [series.clock.at(k) for k in range(len(table))] == table["YEAR"].tolist()


@pytest.mark.parametrize(
    ("times", "places", "following", "season"),
    [
        ("2024-01-01 2024-01-02 2024-01-03 2024-01-06", (0, 1, 2, 5), "2024-01-07", 7),
        ("20240130 20240131 20240201", (0, 1, 2), "2024-02-02", 7),  # dates, not numbers with a leap
        ("2023-11-30 2023-12-31 2024-01-31 2024-03-31", (0, 1, 2, 4), "2024-04-30", 12),
        ("2023-11 2023-12 2024-01 2024-03", (0, 1, 2, 4), "2024-04", 12),
        ("2023-10-15 2024-01-15 2024-04-15", (0, 1, 2), "2024-07-15", 4),
        ("2023-02-28 2023-03-28 2023-04-28", (0, 1, 2), "2023-05-28", 12),
        ("2019-02-28 2020-02-29 2021-02-28", (0, 1, 2), "2022-02-28", 1),
        ("2024-02-28T23:00Z 2024-02-29T00:00Z 2024-02-29T02:00Z", (0, 1, 3), "2024-02-29T03:00:00+00:00", 24),
        ("1700 1701.0 1704 1705", (0, 1, 4, 5), "1706", 1),
        ("-0.5 0.0 0.5 1.5", (0, 1, 2, 4), "2", 1),
    ],
)
def test_times_that_are_left_out_are_gaps(times, places, following, season, tmp_path):
    path = write(tmp_path / "a.csv", ["t", "y"], [(time, k + 1) for k, time in enumerate(times.split())])
    series = forecast_series.read(str(path), "y", time="t")
    wanted = np.full(places[-1] + 1, np.nan)
    wanted[list(places)] = np.arange(len(places)) + 1
    np.testing.assert_array_equal(series.values[:, 0], wanted)
    assert series.clock.label(len(wanted)) == following
    assert series.clock.season == season


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_empty_cells_and_words_for_them_are_gaps_and_nothing_else_is(separator, tmp_path):
    path = tmp_path / "a.csv"
    rows = ["other,y", "1, 2.5", "2,", "3,NaN", '4,"NA"', "5,-1e3", ",", "6,n/a", "7,0", ""]
    path.write_text("\n".join(rows).replace(",", separator) + "\n\n", encoding="utf-8-sig")
    series = forecast_series.read(str(path), "y", others=("other",))
    nan = np.nan
    np.testing.assert_array_equal(series.values.T, [[2.5, nan, nan, nan, -1000, nan, nan, 0], [1, 2, 3, 4, 5, nan, 6, 7]])
    assert series.clock.label(len(series.values)) == "9"


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("x,y\r\r\n1,1\r\r\n2,2\r\r\n3,3\r\r\n", [1, 2, 3]),
        ("x,y\n\n1,1\n \n\n2,2\n,\n3,3\n\n", [1, 2, np.nan, 3]),
        ("y\n1\n\n3\n4\n\n", [1, np.nan, 3, 4]),
        ("y\n1\nNA\n3\nNA\n5\n", [1, np.nan, 3, np.nan, 5]),
    ],
)
def test_a_blank_line_is_no_row_but_in_a_single_column_a_gap(content, values, tmp_path):
    (tmp_path / "a.csv").write_bytes(content.encode())
    np.testing.assert_array_equal(forecast_series.read(str(tmp_path / "a.csv"), "y").values[:, 0], values)


DAYS = [f"{datetime(2024, 1, 1) + timedelta(days=k):%Y-%m-%d}" for k in range(60)]
GOOD = [(day, (3 * k) % 7) for k, day in enumerate(DAYS)]


def changed(line, *row):
    """The good file with one line changed; the header is line 1."""
    return [row if k + 2 == line else good for k, good in enumerate(GOOD)]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (GOOD, "--column price --horizon 3", r"a\.csv has no column 'price'; its first line names: day, sold"),
        (GOOD, "--column sold --time date --horizon 3", r"a\.csv has no column 'date'"),
        (GOOD, "--column sold --with rain --horizon 3", r"a\.csv has no column 'rain'"),
        (GOOD, "--column sold --with sold --horizon 3", "the column 'sold' is asked for twice"),
        (GOOD, "--column sold", "--csv needs --horizon too"),
        (GOOD, "--horizon 3", "--csv needs --column too"),
        (GOOD, "--column sold --horizon 3 --task co2", "--csv is for a file of your own, --task for series of statsmodels"),
        (GOOD, "--column sold --horizon 3 --quantiles 0.9 0.5 0.1", "--quantiles should ascend .* got 0.9 0.5 0.1"),
        (GOOD, "--column sold --horizon 3 --quantiles 0.1 0.9", "--quantiles should ascend .* 0.5 inside"),
        (GOOD, "--column sold --horizon 3 --quantiles 0.5 0.9 1", "--quantiles should ascend between 0 and 1"),
        (GOOD, "--column day --horizon 3", r"a\.csv, line 2, column 'day': should be a number or empty, got '2024-01-01'"),
        (
            GOOD,
            "--column sold --horizon 30",
            r"60 steps are too few for a window of 8 and a horizon of 30 steps, which need 19[0-9]: "
            r"the longest that fits is --horizon 9$",
        ),
        (changed(7, DAYS[5], "many"), "", r"a\.csv, line 7, column 'sold': should be a number or empty, got 'many'$"),
        (
            changed(7, DAYS[5], "1,5"),
            "",
            r"line 7, .* should be a number or empty, got '1,5': write decimals with a point",
        ),
        (changed(7, DAYS[5], "inf"), "", r"line 7, column 'sold': should be a number or empty, got 'inf'"),
        (changed(7, DAYS[5], "1_0"), "", r"line 7, column 'sold': should be a number or empty, got '1_0'"),
        (changed(7, DAYS[5]), "", r"a\.csv, line 7: 1 fields, where the header has 2"),
        (changed(7, DAYS[2], 1), "", r"a\.csv, line 7: the time '2024-01-03' is there already, in line 4"),
        (changed(7, DAYS[4], 1), "", r"a\.csv, line 7: the time '2024-01-05' is there already, in line 6"),
        (
            changed(7, "2024-01-05T12:00", 1),
            "",
            r"line 7: most times are 1 day.* apart, and '2024-01-05T12:00' is not a whole number",
        ),
        (changed(7, "2023-12-30", 1), "", r"line 7: the time '2023-12-30' is before that of the line above, '2024-01-05': sort"),
        (
            [(t, t) for t in ("0", "1", "1.005", "2", "3", "4")],
            "",
            r"line 4: the times '1' and '1.005' fall on one step, .* 1.0 apart",
        ),
        (
            changed(7, "05.01.24", 1),
            "",
            r"line 7, column 'day': a time should be a number or an ISO date .*, got '05.01.24': pandas .*dayfirst=True",
        ),
        (changed(7, "", 1), "", r"line 7, column 'day': a time should be .* got ''$"),
        (
            [(f"2024-01-{d:02}T{h:02}:00", h) for d, h in itertools.product(range(1, 20), (3, 5, 16))],
            "",
            "not a whole number of such",
        ),
        ([("202401", 1), ("202402", 2), ("202403", 1)], "", "write months as 2024-01, not as '202401'"),
        ([(10**k, k) for k in range(8)], "", r"not a whole number of such steps|only 8 are in the file"),
        ([(2024, 1), (2025, 2)], "", "2 rows are too few to know the step of 'day'"),
        (GOOD, "--column sold --horizon 9 --window 30", "the longest that fits is --horizon 3, or --window 24$"),
        (GOOD, "--column sold --horizon 3 --window 60", "steps, which need 1[0-9]+: the longest that fits is --window 30$"),
        (
            GOOD[:28],
            "",
            r"a\.csv: 28 steps are too few for a window of 8 and a horizon of 3 steps, which need 29: "
            r"the longest that fits is --horizon 2, or --window 7$",
        ),
        (
            GOOD[:25],
            "--column sold --horizon 1",
            r"25 steps .* a window of 8 .* which need 26: the longest that fits is --window 7$",
        ),
        (GOOD, "--column sold --window 60 --horizon 30", r"60 steps .* shorten both; a window and a horizon of 1 need 16$"),
        (GOOD[:15], "", r"15 steps .* which need 29: shorten both; a window and a horizon of 1 need 16$"),
        ([(day, "") for day in DAYS], "", "in the training rows of 'sold' there are too few values"),
        ([(day, 5) for day in DAYS], "", "the column 'sold' does not change in the first 70 %"),
        ([(day, 0.1) for day in DAYS], "", "the column 'sold' does not change in the first 70 %"),
        (
            [(day, (-1) ** k * 1e308) for k, day in enumerate(DAYS)],
            "",
            "the column 'sold' is too large to be scaled in the first 70 %",
        ),
        (
            [(day, k if k < 42 else "") for k, day in enumerate(DAYS)],
            "",
            "in the validation rows of 'sold' there are too few values",
        ),
        ([(day, k**2 if k < 49 else "") for k, day in enumerate(DAYS)], "", "in the test rows of 'sold' there are too few values"),
        (
            [(day, k**2 if k < 52 else "") for k, day in enumerate(DAYS)],
            "--window 4 --predict",
            "the last 4 steps of 'sold' have no",
        ),
        ([], "", r"a\.csv has no rows below its header"),
    ],
)
def test_a_file_that_cannot_be_forecast_is_refused_in_a_line(rows, words, message, tmp_path):
    path = write(tmp_path / "a.csv", ["day", "sold"], rows)
    if "--column" not in words and "--csv needs --column" not in message:
        words += " --column sold --horizon 3 --time day"
    with pytest.raises(training.Failure, match=message) as failure:
        run(path, tmp_path / "run", words)
    assert failure.value.code == 2
    assert "\n" not in str(failure.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*a\.csv: No such file"),
        ("folder", r"cannot read .*a\.csv: Is a directory"),
        (b"", r"a\.csv is empty"),
        (b"\n \n", r"a\.csv is empty"),
        ("day,sold\n1,2\n".encode("utf-16"), r"a\.csv: it is not UTF-8 text: save it as CSV, UTF-8"),
        (b"PK\x03\x04\xff\xfe", "it is not UTF-8 text"),
        (b'day,sold\n1,"2\n', r"a\.csv, line \d+: unexpected end of data"),
        (b"sold,sold\n1,2\n", r"a\.csv has 2 columns 'sold'"),
        (b"sold\r\r\n1\r\r\n2\r\r\n3\r\r\n", r"a\.csv, line \d: every second line is blank: take these lines out, or write NA"),
        (b"sold\n1\n\n2\n \n3\n", r"a\.csv, line 3: every second line is blank"),
        (b"1,2\n3,4\n", r"no column 'sold'; its first line names: 1, 2"),
        (b",price\n1,2\n", r"no column 'sold'; its first line names: '' \(no name\), price"),
    ],
)
def test_what_is_not_a_csv_file_is_refused_in_a_line(content, message, tmp_path):
    path = tmp_path / "a.csv"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(training.Failure, match=message) as failure:
        run(path, tmp_path / "run", "--column sold --horizon 3")
    assert failure.value.code == 2
    assert "\n" not in str(failure.value)
    assert not (tmp_path / "run").exists()


def test_a_column_without_a_file_is_refused(tmp_path):
    with pytest.raises(training.Failure, match="--time names a column of your own file: name the file with --csv"):
        train_forecast.main(["--time", "day", "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


# Windows -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def gappy():
    """100 steps of two columns, a sixth of either missing, and a stretch of the first."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((100, 2)) + np.array([5, -3])
    values[rng.random((100, 2)) < 1 / 6] = np.nan
    values[30:45, 0] = np.nan
    return values


FRAME = Frame(window=7, horizon=4, season=5, quantiles=(0.1, 0.5, 0.9))


def scaler_of(from_last):
    return Scaler(("y", "x"), FRAME.window, FRAME.horizon, FRAME.quantiles, from_last, 2.0, (5.0, -3.0), (1.5, 0.5))


def series_of(values):
    return forecast_series.Series(("y", "x")[: values.shape[1]], values, forecast_series.Clock(0, 1), "row", "a.csv")


def test_windows_are_parted_by_time_and_know_a_value_before_and_after(gappy):
    parts = [set(part.tolist()) for part in forecast_windows.split(series_of(gappy), FRAME)]
    for end in range(100):
        past, future = gappy[max(0, end - 6) : end + 1, 0], gappy[end + 1 : end + 5, 0]
        usable = end >= 6 and end + 4 < 100 and not np.isnan(past).all() and not np.isnan(future).all()
        wanted = [usable and end + 4 < 70, usable and end + 1 >= 70 and end + 4 < 85, usable and end + 1 >= 85]
        assert [end in part for part in parts] == wanted
    np.testing.assert_array_equal(forecast_windows.futures(gappy, np.array([9]), FRAME)[0], gappy[10:14, 0])


@pytest.mark.parametrize("rows", [26, 27, 41, 60, 119])
def test_the_longest_sizes_that_are_named_fit_and_no_longer_ones(rows):
    """The default window depends on the horizon."""
    series = series_of(np.random.default_rng(0).standard_normal((rows, 1)))

    def refused(horizon, window=None):
        frame = train_forecast.make_frame(series, train_forecast.Config(horizon=horizon, window=window, season=7), {})
        try:
            forecast_windows.check(series, frame)
        except training.Failure as failure:
            return str(failure)

    longest = int(re.search(r"that fits is --horizon (\d+)$", refused(100))[1])
    assert refused(longest) is None
    assert "are too few for" in refused(longest + 1)
    longest = int(re.search(r"that fits is --window (\d+)$", refused(1, 100))[1])
    assert refused(1, longest) is None
    assert "are too few for" in refused(1, longest + 1)


@pytest.mark.parametrize("from_last", [True, False])
def test_inputs_and_targets_are_the_values_and_back(from_last, gappy):
    """One window, written out; the target's level is the last value that is known, or the mean."""
    scaler = scaler_of(from_last)
    ends = np.array([31, 60])
    x, mask = scaler.inputs(gappy, ends)
    y, known = scaler.targets(gappy, ends)
    for row, end in enumerate(ends):
        past = gappy[: end + 1, 0]
        level = past[~np.isnan(past)][-1] if from_last else 5.0
        for k in range(7):
            target, other = gappy[end - 6 + k]
            wanted = [(target - level) / 2, (other + 3) / 0.5, (k - 6) / 7, not np.isnan(target), not np.isnan(other)]
            valid = not np.isnan([target, other]).all()
            np.testing.assert_allclose(x[row, k], np.nan_to_num(wanted) if valid else np.full(5, np.nan), rtol=1e-6)
            assert mask[row, k] == valid
        future = gappy[end + 1 : end + 5, 0]
        np.testing.assert_array_equal(known[row], ~np.isnan(future))
        np.testing.assert_allclose(y[row], np.nan_to_num((future - level) / 2), rtol=1e-6)
    back = scaler.restored(y[..., None] + [0.5, 0, -1.5], gappy, ends)  # in any order
    truth = forecast_windows.futures(gappy, ends, FRAME)[..., None] + [-3, 0, 1]
    np.testing.assert_allclose(back[known == 1], truth[known == 1], rtol=1e-6, atol=1e-6)
    assert 0 < known.mean() < 1 and not mask.all()


def test_the_scaler_is_of_the_training_rows_and_takes_the_closer_level(gappy):
    scaler = forecast_windows.fit_scaler(series_of(gappy), FRAME)
    np.testing.assert_allclose(scaler.mean, np.nanmean(gappy[:70], 0))
    np.testing.assert_allclose(scaler.deviation, np.nanstd(gappy[:70], 0))
    assert not scaler.from_last  # noise about a mean
    walk = np.cumsum(np.random.default_rng(0).standard_normal((100, 1)), 0)
    assert forecast_windows.fit_scaler(series_of(walk), FRAME).from_last
    later = gappy.copy()
    later[70:] *= 9
    assert forecast_windows.fit_scaler(series_of(later), FRAME) == scaler


@pytest.mark.slow
@pytest.mark.newest
def test_a_gap_is_skipped_whatever_it_holds(gappy):
    scaler = scaler_of(True)
    x, mask = scaler.inputs(gappy, np.array([60, 61, 62, 63]))
    mask[:, 2] = False
    model = LSTMModel(5, 6, 12, rngs=nnx.Rngs(0))
    wanted = train_forecast.quantiles_of(model, x, mask, FRAME)
    other = np.where(mask[..., None], x, 7).astype(np.float32)
    np.testing.assert_array_equal(train_forecast.quantiles_of(model, other, mask, FRAME), wanted)
    alone = np.stack([row[valid] for row, valid in zip(x, mask, strict=True) if valid.sum() == mask[0].sum()])
    assert np.diff(wanted, axis=-1).min() >= 0
    np.testing.assert_allclose(np.sort(np.asarray(model(alone[:1])).reshape(1, 4, 3)), wanted[:1], atol=1e-6)


def test_the_loss_is_of_the_steps_that_are_known(gappy):
    scaler = scaler_of(False)
    x, mask, y, known = *scaler.inputs(gappy, ends := np.arange(50, 59)), *scaler.targets(gappy, ends)
    model = LSTMModel(5, 6, 12, rngs=nnx.Rngs(0))
    said = np.asarray(train_forecast.quantiles_of(model, x, mask, FRAME))
    errors = (y[..., None] - said)[known == 1]
    wanted = np.maximum(np.multiply(errors, FRAME.quantiles), np.multiply(errors, np.subtract(FRAME.quantiles, 1))).mean()
    assert 0 < known.mean() < 1
    np.testing.assert_allclose(train_forecast.loss(model, x, mask, y, known, FRAME), wanted * known.mean(), rtol=1e-5)


# Baselines and scores ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("season", [5, 60, 200])
def test_the_seasonal_naive_is_the_last_known_season(season, gappy):
    """Of the rows so far alone: from each of them, also where they are fewer than a season."""
    ends, frame = np.arange(100), replace(FRAME, season=season)
    guess = forecast_baselines.seasonal_naive(gappy, ends, frame)
    for row, end in enumerate(ends):
        known = [gappy[k, 0] for k in range(end + 1) if not np.isnan(gappy[k, 0])]
        for h in range(1, 5):
            earlier = [gappy[k, 0] for k in range((end + h) % season, end + 1, season) if not np.isnan(gappy[k, 0])]
            np.testing.assert_equal(guess[row, h - 1], (earlier or known or [np.nan])[-1])


def test_the_seasonal_naive_repeats_itself_after_a_season(gappy):
    ends = np.arange(10, 90)
    short = forecast_baselines.seasonal_naive(gappy, ends, Frame(7, 12, 5, (0.5,)))
    np.testing.assert_array_equal(short[:, 5:10], short[:, :5])


def test_the_quantiles_of_a_naive_forecast_are_of_its_errors_in_training(gappy):
    train, _, test = forecast_windows.split(series_of(gappy), FRAME)
    point, quantiles = forecast_baselines.naive(forecast_baselines.last_value, gappy, test, train, FRAME)
    errors = [gappy[end + 3, 0] - last_known(gappy[:, 0])[end] for end in train]
    wanted = np.nanquantile(errors, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles[:, 2] - point[:, 2, None], np.tile(wanted, (len(test), 1)))


@pytest.mark.slow
def test_ets_continues_season_and_trend_and_sees_nothing_after_an_origin():
    rng = np.random.default_rng(0)
    steps = np.arange(120)
    values = (10 + 0.5 * steps + np.tile(PATTERN, 30) + 0.05 * rng.standard_normal(120))[:, None]
    values[[20, 50, 51, 101], 0] = np.nan
    frame, ends = Frame(8, 6, 4, (0.1, 0.5, 0.9)), np.array([101, 104])
    point, quantiles = forecast_baselines.exponential_smoothing(values, ends, 100, frame)
    for row, end in enumerate(ends):
        future = np.arange(end + 1, end + 7)
        np.testing.assert_allclose(point[row], 10 + 0.5 * future + PATTERN[future % 4], atol=1)
    np.testing.assert_allclose(quantiles[..., 1], point)
    assert (np.diff(quantiles, axis=-1) > 0).all()
    later = values.copy()
    later[102:] = 1000
    again, _ = forecast_baselines.exponential_smoothing(later, ends[:1], 100, frame)
    np.testing.assert_array_equal(again[0], point[0])


@pytest.mark.slow
@pytest.mark.parametrize(("fitted", "fits"), [(20, 3), (40, 6)])
def test_what_ets_is_said_to_do_is_what_it_does(fitted, fits, monkeypatch):
    """A season needs 22 rows of four steps: without it there are half as many fits."""
    shown = collections.defaultdict(list)
    monkeypatch.setattr(training.Progress, "show", lambda self, step: shown[self.label, len(self.steps)].append(step))
    target = np.tile(PATTERN, 15) + 0.05 * np.random.default_rng(0).standard_normal(60)
    forecast_baselines.ets(target, np.arange(50, 55), fitted, Frame(8, 2, 4, (0.1, 0.5, 0.9)))
    label = f"ETS of {fitted} steps"
    assert shown == {(f"{label}, fits", fits): [*range(1, fits + 1)], (f"{label}, forecasts", 5): [1, 2, 3, 4, 5]}


@pytest.mark.slow
def test_ets_is_fitted_to_the_last_seasons_where_a_season_is_not_a_whole_number_of_steps():
    """A year is not 52 weeks: fitted to all of 37 years, the season comes out of phase."""
    values = forecast_series.read(forecast_series.packaged("co2"), "co2", time="date").values
    frame, ends = Frame(104, 26, 52, (0.1, 0.5, 0.9)), np.arange(1945, 2250, 61)
    errors = [
        np.nanmean(np.abs(points - forecast_windows.futures(values, ends, frame)))
        for points, _ in (
            forecast_baselines.exponential_smoothing(values, ends, 1941, frame),
            forecast_baselines.ets(values[:, 0], ends, 1941, frame),
        )
    ]
    assert errors[0] < 0.5 * errors[1]


def test_the_pinball_losses_are_least_at_the_quantiles():
    """Of lopsided numbers, so that 0.1 and 0.9 cannot be mistaken for each other."""
    numbers = np.random.default_rng(0).exponential(size=(2001, 1))
    grid = np.linspace(0, 5, 1001)[None, :]
    for level in (0.1, 0.5, 0.9):
        losses = train_forecast.pinball(grid, numbers, level).mean(0)
        assert abs(grid[0, losses.argmin()] - np.quantile(numbers, level)) < 0.01
    at = train_forecast.pinball(jnp.array([[1.0, 1.0, 1.0]]), jnp.array([[3.0]]), (0.1, 0.5, 0.9))
    np.testing.assert_allclose(at, [[0.2, 1.0, 1.8]], rtol=1e-6)


def test_scores_leave_gaps_out():
    truth = np.array([[1.0, np.nan, 3.0], [np.nan, 5.0, 6.0]])
    point = np.array([[2.0, 9.0, 3.0], [9.0, 5.0, 3.0]])
    quantiles = point[..., None] + [-1.5, 0, 1.0]
    rmse, mae, loss, inside = train_forecast.scores(point, quantiles, truth, (0.1, 0.5, 0.9))
    errors = np.array([-1.0, 0, 0, 3])
    np.testing.assert_allclose([rmse, mae], [np.sqrt(10 / 4), 1.0])
    pairs = itertools.product(errors, zip((-1.5, 0, 1.0), (0.1, 0.5, 0.9), strict=True))
    wanted = [max(level * (error - shift), (level - 1) * (error - shift)) for error, (shift, level) in pairs]
    np.testing.assert_allclose(loss, np.mean(wanted))
    assert inside == 0.75


# Whole runs ----------------------------------------------------------------------------------------------------------------


def sales(tmp_path, rows, *, name="sales.csv", test_rows=lambda numbers: numbers):
    """A pattern of four days with noise; every ninth row is left out, every eleventh cell is empty. Always the same noise."""
    noise = np.random.default_rng(0).standard_normal(500)
    values = 100 + 10 * (np.tile(PATTERN, 125) + 0.4 * noise)
    values[340:400] = test_rows(values[340:400])
    days = [f"{datetime(2024, 1, 1) + timedelta(days=k):%Y-%m-%d}" for k in range(500)]
    table = [(days[k], f"{values[k]:.4f}" if k % 11 else "", k % 3) for k in range(rows) if k % 9]
    return write(tmp_path / name, ["day", "sold", "price"], table)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on 400 days, and what it printed."""
    folder = tmp_path_factory.mktemp("forecast")
    said = io.StringIO()
    with jax.numpy_dtype_promotion("standard"), contextlib.redirect_stdout(said):
        run(sales(folder, 400), folder / "run", TINY + " --with price --predict")
    return folder, said.getvalue()


def prediction(folder):
    rows = list(csv.reader((folder / "run/csv/LSTM-0/prediction.csv").read_text(encoding="utf-8").splitlines()))
    return rows[0], [row[0] for row in rows[1:]], np.array([row[1:] for row in rows[1:]], float)


@pytest.mark.slow
def test_a_file_is_forecast_scored_and_continued(trained):
    """The pattern is found, eight in ten values lie inside, and the days after the file's end are those after its end."""
    folder, said = trained
    gaps = len([k for k in range(400) if k % 9 == 0 or k % 11 == 0]) - 1  # the first row is not in the file
    assert f"csv: 399 steps of 'sold', {gaps} of them without a value" in said
    lines = {line.split("  ")[1]: line.split() for line in said.splitlines() if line.startswith("  ")}
    rmse = {who: float(words[-4]) for who, words in lines.items() if who and who != "last value"}
    loss = {who: float(words[-2]) for who, words in lines.items() if who}
    assert set(rmse) == {"seasonal naive", "ETS", "LSTM"}
    assert max(rmse.values()) < 10  # the noise is 4, and the pattern's own deviation 18
    assert max(loss["LSTM"], loss["seasonal naive"]) < 0.35 * loss["last value"]
    inside = {who: int(words[-1].rstrip("%")) for who, words in lines.items() if who}
    assert all(50 <= share < 100 for share in inside.values()), inside
    header, times, quantiles = prediction(folder)
    assert header == ["day", "q0.1", "q0.5", "q0.9"]
    assert times == ["2025-02-04", "2025-02-05", "2025-02-06"]  # 400 days from 2024-01-01
    np.testing.assert_allclose(quantiles[:, 1], 100 + 10 * PATTERN[:3], atol=6)
    assert (quantiles[:, 2] - quantiles[:, 0] > 4).all()
    header, *rows = csv.reader((folder / "run/csv/baselines.csv").read_text(encoding="utf-8").splitlines())
    names = ("last value", "seasonal naive", "ETS")
    assert header == ["day", *(f"{name}{part}" for name in names for part in ("", " q0.1", " q0.5", " q0.9"))]
    assert [row[0] for row in rows] == times
    numbers = np.array([row[1:] for row in rows], float).reshape(3, 3, 4)
    np.testing.assert_allclose(numbers[:, 1:, 0], np.stack([100 + 10 * PATTERN[:3]] * 2, 1), atol=12)
    assert (np.diff(numbers[..., 1:], axis=-1) > 0).all()
    values = forecast_series.read(str(folder / "sales.csv"), "sold", time="day").values[:, 0]
    np.testing.assert_array_equal(numbers[:, 0, 0], values[~np.isnan(values)][-1])
    for picture in ("forecast.png", "loss.png", "csv/LSTM-0/prediction.png"):
        assert (folder / "run" / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_several_networks_share_rows_scaler_and_baselines(tmp_path, capsys, monkeypatch):
    """A row of the table and a prediction for each; the same as alone, whichever others there are; and seeds that a baseline lies
    between are no winner."""
    path, words = sales(tmp_path, 400), TINY.replace("--steps 500", "--steps 20 --validate-every 10") + " --predict"
    run(path, tmp_path / "run", words + " --cell gru rnn --seed 0 1")
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")][-4:] == ["GRU-0", "GRU-1", "RNN-0", "RNN-1"]
    run(path, tmp_path / "run", words + " --cell gru --seed 2")  # one more, in the same folder
    run(path, tmp_path / "alone", words + " --cell rnn --seed 1")
    files = [(tmp_path / name / "csv/RNN-1/prediction.csv").read_text() for name in ("run", "alone")]
    assert files[0] == files[1]
    assert len({(tmp_path / f"run/csv/{name}/prediction.csv").read_text() for name in ("GRU-0", "GRU-1", "GRU-2", "RNN-0")}) == 4

    errors = iter([9.0, 9.0, 5.0, 6.0, 4.0, 3.0, 4.0])  # last value, seasonal naive, ETS, GRU-0, GRU-1, RNN-0, RNN-1
    monkeypatch.setattr(train_forecast, "scores", lambda *_: (next(errors), 1.0, 1.0, 0.8))
    capsys.readouterr()
    run(path, tmp_path / "run", words + " --cell gru rnn --seed 0 1")
    said = [line for line in capsys.readouterr().out.splitlines() if "winner" in line or "better" in line]
    assert said == ["ETS lies within the range of GRU's seeds, 4 to 6: no winner"]


@pytest.mark.slow
def test_a_few_origins_rank_nothing(tmp_path, capsys):
    run(sales(tmp_path, 60), tmp_path / "run", TINY.replace("--steps 500", "--steps 10 --validate-every 10"))
    out = capsys.readouterr().out
    (count,) = re.findall(r"steps ahead, from (\d) origins in the test rows", out)
    assert f"\ntoo few origins to rank anything, {count}: for 10, take a shorter --horizon or a longer file\n" in out
    assert "better" not in out and "winner" not in out


@pytest.mark.slow
def test_a_finished_run_says_so_and_names_what_beats_the_network(tmp_path, capsys, monkeypatch):
    """Some steps are too few to learn anything; what is printed are paths as they were given."""
    monkeypatch.chdir(tmp_path)
    path = sales(tmp_path, 120)
    for state in (None, "trained already, 10 of 10"):
        run(path, "run", TINY.replace("--steps 500", "--steps 10 --validate-every 10") + " --predict")
        out = capsys.readouterr().out
        said = [line for line in out.splitlines() if "going on" in line or "already" in line]
        assert said == [f"csv/LSTM-0: {state}"] * bool(state)
        lines = [line for line in out.splitlines() if line.startswith("  ") and "RMSE" not in line]
        table = {line[2:18].strip(): float(line[18:28]) for line in lines}
        best = min(table, key=table.get)
        assert f"\n{best} is better here: its RMSE is {table[best]:.4g}, and {table['LSTM']:.4g} that of LSTM\n" in out
        assert f"prediction: {Path('run/csv/LSTM-0/prediction.csv')}\n" in out
        assert "plots and metrics: run\n" in out


@pytest.mark.slow
def test_a_run_stopped_before_it_looks_at_the_validation_rows_gives_what_is_trained(tmp_path, monkeypatch):
    """`load_run` takes the best parameters: until a first is known, those of the checkpoint's step."""
    save = training.Run.checkpoint

    def stop(run, step, **trees):
        save(run, step, **trees)
        if step == 3:
            raise training.Failure("stopped")

    monkeypatch.setattr(training.Run, "checkpoint", stop)
    words = TINY.replace("--steps 500", "--steps 10 --validate-every 10 --save-every 1")
    with pytest.raises(training.Failure, match="stopped"):
        run(sales(tmp_path, 120), tmp_path / "run", words)
    arrays = _checkpoints.read_arrays(tmp_path / "run/csv/LSTM-0/checkpoints/3")
    best = {name.removeprefix("best_"): array for name, array in arrays.items() if name.startswith("best_params/")}
    assert best
    for name, array in best.items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.slow
def test_nothing_learns_from_the_rows_it_is_tested_on(trained, tmp_path):
    """Another test stretch: every loss, and the scaler, stay the same to the bit."""
    folder, _ = trained
    run(sales(tmp_path, 400, test_rows=lambda numbers: 5 * numbers[::-1] + 1000), tmp_path / "run", TINY + " --with price")
    assert (tmp_path / "run/csv/LSTM-0/metrics.jsonl").read_bytes() == (folder / "run/csv/LSTM-0/metrics.jsonl").read_bytes()
    one, two = (json.loads((path / "run/csv/scaler.json").read_text()) for path in (folder, tmp_path))
    assert one["scaler"] == two["scaler"]
    assert one["digest"] != two["digest"]


@pytest.mark.slow
def test_a_file_may_grow_and_is_forecast_from_its_new_end_by_the_scaler_that_was_kept(trained, tmp_path, capsys):
    folder, _ = trained
    shutil.copytree(folder / "run", tmp_path / "run")
    _, _, before = prediction(tmp_path)
    words = TINY + " --with price"
    grown = sales(tmp_path, 422)
    run(grown, tmp_path / "run", words)
    assert "22 steps have come since: --predict forecasts from them" in capsys.readouterr().out
    run(grown, tmp_path / "run", words + " --predict")
    _, times, after = prediction(tmp_path)
    assert times == ["2025-02-26", "2025-02-27", "2025-02-28"]
    np.testing.assert_allclose(after[:, 1], 100 + 10 * PATTERN[[2, 3, 0]], atol=6)
    assert np.abs(after - before).min() > 0
    for kept in ("scaler.json", "LSTM-0/metrics.jsonl"):
        assert (tmp_path / "run/csv" / kept).read_bytes() == (folder / "run/csv" / kept).read_bytes()

    model, scaler, config = load_run(tmp_path / "run/csv/LSTM-0")  # without the script
    values = forecast_series.read(str(grown), "sold", time="day", others=("price",)).values
    x, mask = scaler.inputs(values)
    np.testing.assert_allclose(scaler.restored(model(x, mask=mask), values)[0], after, rtol=1e-5)
    assert (scaler.columns, config["horizon"]) == (("sold", "price"), 3)

    whole = (tmp_path / "run/csv/scaler.json").read_text()
    kept = json.loads(whole)
    kept["scaler"]["scale"] *= 3
    (tmp_path / "run/csv/scaler.json").write_text(json.dumps(kept))  # what is kept is what is used, if it is the model's
    with pytest.raises(training.Failure, match=r"(?s)LSTM-0 is of another run:\n    scaler: .*Name another folder with --out"):
        run(grown, tmp_path / "run", words + " --predict")
    (tmp_path / "run/csv/scaler.json").write_text(whole)

    for rows, change in ((399, lambda numbers: numbers), (422, lambda numbers: numbers + 1)):
        other = sales(tmp_path, rows, name="other.csv", test_rows=change)
        with pytest.raises(training.Failure, match=r"other\.csv: the first 399 steps are not those .*name another folder"):
            run(other, tmp_path / "run", words)
    (tmp_path / "run/csv/scaler.json").write_text('{"rows": 3')
    with pytest.raises(
        training.Failure, match=r"scaler\.json is damaged: put a copy of it back, or name another folder with --out"
    ) as failure:
        run(grown, tmp_path / "run", words)
    assert failure.value.code == 2
