"""What `train_forecast.py` compares a network with: the last value, the value a season ago, exponential smoothing."""

import itertools
import warnings
from functools import partial

import numpy as np
import training
from forecast_windows import futures

from jaxrnn.scaling import last_known


def last_value(values, ends, frame):
    return np.repeat(last_known(values[:, 0])[ends][:, None], frame.horizon, axis=1)


def seasonal_naive(values, ends, frame):
    """The value a season ago; where there is none, two seasons ago, and so on; else the last value."""
    at = lambda places: np.where(places < 0, np.nan, values[np.maximum(places, 0), 0])  # before the first row there is none
    ahead = np.arange(1, frame.horizon + 1)
    places = ends[:, None] + ahead - frame.season * -(-ahead // frame.season)
    while (missing := np.isnan(at(places)) & (places >= frame.season)).any():
        places = np.where(missing, places - frame.season, places)
    return np.where(np.isnan(at(places)), last_value(values, ends, frame), at(places))


def naive(guess, values, ends, train, frame):
    """A guess, and its quantiles by its errors in the training rows: (n, horizon), (n, horizon, quantiles)."""
    errors = futures(values, train, frame) - guess(values, train, frame)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # at a step of the horizon that is never known, NaN
        quantiles = np.nanquantile(errors, frame.quantiles, axis=0).T
    point = guess(values, ends, frame)
    return point, point[..., None] + quantiles


LAST_SEASONS = (5, 10, 20)
"""How many seasons ETS may be fitted to, in place of all rows, if they hold `ENOUGH` values."""

ENOUGH = 200


def exponential_smoothing(values, ends, second, frame):
    """ETS fitted to the rows before the test rows, then led up to each origin: to all of them or the last few seasons, whichever
    forecasts the validation rows best. Of all of them, a season that is not quite a whole number of steps is out of phase: after
    37 years of 52 weeks, by more than six weeks.

    It knows no gaps: for it alone, those before the last known value are drawn through in a straight line.
    """
    target, first = values[:, 0], int(second * 0.70 / 0.85)
    spans = [count * frame.season for count in LAST_SEASONS if frame.season > 1 and count * frame.season < first]
    spans = [second, *(span for span in spans if np.isfinite(target[first - span : first]).sum() >= ENOUGH)]
    validate = np.arange(first - 1, second - frame.horizon)
    validate = validate[:: -(-len(validate) // 20)] if len(spans) > 1 else validate[:0]
    if len(validate):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of validation rows without a value
            spans = sorted(spans, key=lambda span: ets_error(values, validate, first, span, frame))
    start = max(0, second - spans[0])
    return ets(target[start:], ends - start, second - start, frame)


def ets_error(values, ends, fitted, span, frame):
    """The mean absolute error from these ends of what is fitted to `span` rows before row `fitted`."""
    start = max(0, fitted - span)
    try:
        points, _ = ets(values[start:, 0], ends - start, fitted - start, frame)
    except (ValueError, np.linalg.LinAlgError):
        return np.inf
    return np.nan_to_num(np.nanmean(np.abs(points - futures(values, ends, frame))), nan=np.inf)


def ets(target, ends, fitted, frame):
    """What ETS with additive errors, its trend and season by AIC, fitted to the first rows, says from each end."""
    import pandas as pd
    from scipy.stats import norm
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    def known(end):
        steps = np.flatnonzero(~np.isnan(target[: end + 1]))
        return pd.Series(np.interp(np.arange(steps[0], steps[-1] + 1), steps, target[steps])), end - steps[-1]

    seasons = (False, True) if frame.season > 1 and fitted >= 3 * frame.season + 10 else (False,)
    trends = ({"trend": None}, {"trend": "add"}, {"trend": "add", "damped_trend": True})
    kinds, fits = list(itertools.product(trends, seasons)), []
    fitting = training.Progress(range(1, len(kinds) + 1), f"ETS of {fitted} steps, fits")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a fit that did not settle; its AIC speaks
        for number, (trend, seasonal) in zip(fitting, kinds, strict=True):
            more = {"seasonal": "add", "seasonal_periods": frame.season} if seasonal else {}
            make = partial(ETSModel, error="add", initialization_method="heuristic", **trend, **more)
            fit = make(known(fitted - 1)[0]).fit(disp=False)
            fitting.show(number)
            fits += [(fit.aic, make, fit.params)] if np.isfinite(fit.aic) else []
        if not fits:
            raise ValueError("no fit has a finite likelihood")
        _, make, params = min(fits, key=lambda fit: fit[0])
        points, quantiles = [], []
        forecasting = training.Progress(range(1, len(ends) + 1), f"ETS of {fitted} steps, forecasts")
        for number, end in zip(forecasting, ends, strict=True):
            past, since = known(end)
            ahead = make(past).smooth(params).get_prediction(start=len(past), end=len(past) + since + frame.horizon - 1)
            mean, spread = np.asarray(ahead.predicted_mean)[since:], np.sqrt(np.asarray(ahead.forecast_variance))[since:]
            forecasting.show(number)
            points.append(mean)
            quantiles.append(mean[:, None] + spread[:, None] * norm.ppf(frame.quantiles))
    return np.stack(points), np.stack(quantiles)


def baselines(values, ends, train, second, frame):
    """What each says from each origin: a point and its quantiles."""
    found = {"last value": naive(last_value, values, ends, train, frame)}
    if frame.season > 1:
        found["seasonal naive"] = naive(seasonal_naive, values, ends, train, frame)
    try:
        found["ETS"] = exponential_smoothing(values, ends, second, frame)
    except (ValueError, np.linalg.LinAlgError) as reason:
        training.log(f"no ETS: {str(reason).splitlines()[0]}")
    return found
