"""Forecast a column of your own CSV file, or weekly CO2 and yearly sunspots, with a recurrent network beside three baselines.

    python scripts/train_forecast.py
    python scripts/train_forecast.py --task sunspots --cell lstm gru --seed 0 1 2 --out runs/sunspots
    python scripts/train_forecast.py --csv sales.csv --time day --column sold --with price --horizon 14 --predict --out runs/sales

A window of the past goes in; quantiles of every step of the horizon come out. Steps without a value are masked, not filled in.
The rows are split in order of time: 70 % to train, 15 % to validate (the best step is chosen on them), 15 % to test, with a
backtest from one origin after the other. Killed and started again with the same command, it goes on and ends the same; with more
`--steps` it goes on for longer. `jaxrnn.runs.load_run("runs/forecast/co2/LSTM-0")` gives the model of the best step and its scaler.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import forecast_series
import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from forecast_baselines import baselines
from forecast_pictures import BASELINES, plot, predict
from forecast_windows import Frame, borders, check, fit_scaler, futures, split
from training import option

from jaxrnn.data_parallel import value_and_grad
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.scaling import Scaler

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel}
BUILT_IN = {
    "co2": {"column": "co2", "time": "date", "horizon": 52, "window": 104, "season": 52},
    "sunspots": {"column": "SUNACTIVITY", "time": "YEAR", "horizon": 3, "window": 11, "season": 11},
}
"""Files of statsmodels, as they would be named on the command line. The sunspots' window is the one of 11, 22 and 33 whose loss on
the validation rows is the least, in the mean over three seeds."""

ORIGINS = 300
"""From how many origins, at most, a stretch is forecast to validate or to test: evenly spaced, if there are more."""
FEW = 10
"""With fewer origins, nothing is said of who is better."""


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    csv: str | None = option(None, "Your own file, its first line naming the columns.", saved=False, metavar="FILE")
    column: str | None = option(None, "The column of the file to forecast.", metavar="NAME")
    time: str | None = option(None, "The column of its times: numbers or ISO dates, ascending.", metavar="NAME")
    with_: tuple[str, ...] = option((), "More columns to read, of which only the past is known.", metavar="NAME")
    task: tuple[Literal["co2", "sunspots"], ...] | None = option(
        None, "Series that come with statsmodels, in place of a file: co2, sunspots. Default: both.", each=True
    )
    horizon: int | None = option(None, "Steps to forecast. Default: none for a file, 52 for co2, 3 for sunspots.", least=1)
    window: int | None = option(None, "Steps of the past to look at. Default: two seasons or two horizons.", least=1)
    season: int | None = option(None, "Steps of a season. Default: by the calendar, if the file has dates.", least=1)
    quantiles: tuple[float, ...] = option((0.1, 0.5, 0.9), "Quantiles to forecast, ascending, the median among them.", above=0)
    predict: bool = option(False, "Forecast what comes after the last row too: prediction.csv, prediction.png.", saved=False)
    cell: tuple[Literal["RNN", "LSTM", "GRU"], ...] = option(("LSTM",), "Models to train.", each=True)
    hidden_size: int = option(16, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    batch_size: int = option(64, "Windows in a batch.", least=1)
    learning_rate: float = option(3e-3, "Step size of Adam.", above=0)
    steps: int = option(1500, "Batches to train on.", least=1, amount=True)
    validate_every: int = option(50, "Steps between looks at the validation rows.", least=1)
    seed: tuple[int, ...] = option((0,), "Seeds of everything random.", least=0, each=True)
    out: str = option("runs/forecast", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


# Series ----------------------------------------------------------------------------------------------------------------


def spaced(ends):
    """`ORIGINS` of them at most."""
    return ends[:: -(-len(ends) // ORIGINS)]


def load(name, config):
    """A series and its frame; nothing has been written when a file is refused."""
    if name == "csv":
        series = forecast_series.read(config.csv, config.column, time=config.time, others=config.with_)
        known = {"horizon": config.horizon}
    else:
        known = BUILT_IN[name]
        series = forecast_series.read(forecast_series.packaged(name), known["column"], time=known["time"])
    return series, make_frame(series, config, known)


def make_frame(series, config, known):
    """The sizes that were asked for, or else fit the series."""
    rows, horizon = len(series.values), config.horizon or known["horizon"]
    season = config.season or known.get("season") or series.clock.season
    usual = max(8, min(2 * max(season, horizon), int(0.35 * rows) - horizon))
    window = config.window or known.get("window") or usual
    return Frame(window, horizon, season, config.quantiles)


# What is kept with the run -----------------------------------------------------------------------------------------------


def keep(path, series, frame, config):
    """The rows that the runs in a folder train on, their frame and their scaler. They are settled at its start, and kept: a file
    may have grown since.

    Raises:
        Failure: the rows are other ones, or what was kept cannot be read.
    """
    file = path / "scaler.json"
    if training.is_main_process():
        training.own_folder(path.parent, path.name)
        training.check_own(file)
    if not file.exists():
        check(series, frame)
        scaler = fit_scaler(series, frame)
        kept = {"rows": len(series.values), "digest": digest(series), "season": frame.season, "scaler": asdict(scaler)}
        if training.is_main_process():
            training.write_whole(file, json.dumps(kept, indent=1) + "\n")
        return series, frame, scaler
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows, before, season = int(kept["rows"]), kept["digest"], int(kept["season"])
        scaler = Scaler(**kept["scaler"])
        frame = Frame(scaler.window, scaler.horizon, season, scaler.quantiles)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = f"{file} is damaged: put a copy of it back, or name another folder with --out"
        raise training.Failure(text, code=2) from None
    if len(series.values) < rows or digest(series.first(rows)) != before:
        text = f"{series.source}: the first {rows} steps are not those that the run in {path} trains on"
        raise training.Failure(f"{text}: name another folder with --out", code=2)
    if len(series.values) > rows and config.num_processes > 1:  # where the folder is not shared, only one of them knows the rows
        raise training.Failure(f"{series.source} has grown: start several processes with another folder, --out", code=2)
    return series.first(rows), frame, scaler


def digest(series):
    """Of the values, their columns and their times."""
    times = [series.clock.label(k) for k in (0, 1, len(series.values) - 1)]
    return hashlib.sha256(json.dumps([series.columns, times, series.values.tolist()]).encode()).hexdigest()


# Scores ----------------------------------------------------------------------------------------------------------------


def scores(point, quantiles, truth, levels):
    """Root mean squared and mean absolute error, pinball loss, and the share of the known values between the outer quantiles."""
    known = ~np.isnan(truth)
    error = (point - truth)[known]
    inside = (quantiles[..., 0] <= truth) & (truth <= quantiles[..., -1])
    losses = pinball(quantiles, truth[..., None], levels)[known]
    return np.sqrt(np.mean(error**2)), np.mean(np.abs(error)), losses.mean(), inside[known].mean()


# The network ---------------------------------------------------------------------------------------------------------------


def pinball(forecast, truth, levels):
    """The loss whose minimum is the quantile."""
    error = truth - forecast
    return error * (np.asarray(levels, error.dtype) - (error < 0))


def quantiles_of(model, x, mask, frame):
    """In ascending order: (rows, horizon, quantiles). A step that is masked is skipped, whatever it holds."""
    return jnp.sort(model(x, mask=mask).reshape(len(x), frame.horizon, len(frame.quantiles)), axis=-1)


def loss(model, x, mask, y, known, frame):
    """The pinball loss of the steps that are known."""
    losses = pinball(quantiles_of(model, x, mask, frame), y[..., None], frame.quantiles).mean(-1)
    return jnp.mean(losses * known)


def train(task, cell, seed, data, config, mesh, folder):
    """Train a model on the rows of a series. The run, and a function from (values, ends) to the quantiles of its best step."""
    series, frame, scaler, (learn, validate, _) = data
    values, columns = series.values, len(series.columns)
    sizes = (1 + columns + (columns if columns > 1 else 0), config.hidden_size, frame.horizon * len(frame.quantiles))
    model = MODELS[cell](*sizes, num_layers=config.num_layers, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    params = training.place(mesh, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def loss_of(params, *batch):
        return loss(nnx.merge(graph, params), *batch, frame)

    @jax.jit
    def step(params, opt_state, *batch):
        value, grads = value_and_grad(loss_of, mesh)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def batch(ends):
        return *scaler.inputs(values, ends), *scaler.targets(values, ends)

    error = jax.jit(loss_of)
    sampler = training.BatchSampler(np.full(len(learn), frame.window), config.batch_size, seed=seed)
    validation = training.place(mesh, batch(validate))
    options = {"save_every": config.save_every, "tensorboard": config.tensorboard}
    run = training.Run(folder, f"{task}/{cell}-{seed}", model=model, holds="best_params", scaler=scaler, **options)
    opt_state = training.place(mesh, optimizer.init(params))
    best, best_params = np.float32(np.inf), params
    params, opt_state, sampler.state, best, best_params = run.restore(
        params=params, optimizer=opt_state, sampler=sampler.state, best=best, best_params=best_params
    )
    for number in run.steps(config.steps):
        rows, _ = sampler.next()
        params, opt_state, value = step(params, opt_state, *training.shard_batch(mesh, *batch(learn[rows])))
        metrics = {"loss": value}
        if number % config.validate_every == 0:
            metrics["validation"] = np.float32(error(params, *validation))
            if metrics["validation"] < best:
                best, best_params = metrics["validation"], params
        if best == np.inf:  # no look at the validation rows yet
            best_params = params
        run.log(number, **metrics)
        now = {"params": params, "optimizer": opt_state, "sampler": sampler.state, "best": best, "best_params": best_params}
        run.checkpoint(number, **now)

    steps, losses = run.metrics()["validation"] if training.is_main_process() else ([0], np.zeros(1))
    training.log(
        f"{run.name}: best step by the validation rows: {steps[losses.argmin()]} of {config.steps}, loss {losses.min():.4f}"
    )
    forecast = jax.jit(lambda params, x, mask: quantiles_of(nnx.merge(graph, params), x, mask, frame))

    def answers(values, ends):
        x, mask = training.place(mesh, scaler.inputs(values, ends))
        return scaler.restored(forecast(best_params, x, mask), values, ends)

    return run, answers


def compare(task, series, frame, config, mesh, folder):
    """Train every model on one series, and report beside the baselines; return what the plots need."""
    whole, path = series, folder.path / task
    gaps, rows = np.isnan(series.values[:, 0]).sum(), len(series.values)
    training.log(f"{task}: {rows} steps of {series.columns[0]!r}, {gaps} of them without a value")
    series, frame, scaler = keep(path, series, frame, config)
    values, clock, levels = series.values, series.clock, frame.quantiles
    learn, validate, test = split(series, frame)
    data = series, frame, scaler, (learn, spaced(validate), test := spaced(test))
    _, second = borders(len(values))

    both = [(cell, seed) for cell in config.cell for seed in config.seed]
    trained = {
        cell if len(config.seed) == 1 else f"{cell}-{seed}": train(task, cell, seed, data, config, mesh, folder)
        for cell, seed in both
    }
    training.log(f"\n{task}: fitting the baselines")
    ends = np.concatenate([test, last_end(whole, frame)]) if config.predict else test
    said = baselines(whole.values, ends, learn, second, frame)
    found = {who: (point[: len(test)], spread[: len(test)]) for who, (point, spread) in said.items()}
    for who, (_, answers) in trained.items():
        quantiles = answers(values, test)
        found[who] = quantiles[..., levels.index(0.5)], quantiles
    truth, share = futures(values, test, frame), levels[-1] - levels[0]
    origins = f"{len(test)} origin" + "s" * (len(test) > 1)
    training.log(
        f"\n{task}: {series.columns[0]}, {frame.horizon} steps ahead, from {origins} in the test rows, "
        f"{clock.label(second)} to {clock.label(len(values) - 1)}"
    )
    training.log(f"  {'':16}{'RMSE':>10}{'MAE':>10}{'pinball':>10}{f'inside {share:.0%}':>14}")
    rmse = {}
    for who, (point, spread) in found.items():
        rmse[who], *numbers, inside = scores(point, spread, truth, levels)
        training.log(f"  {who:16}" + "".join(f"{number:10.4g}" for number in (rmse[who], *numbers)) + f"{inside:14.0%}")
    if len(test) < FEW:
        training.log(f"too few origins to rank anything, {len(test)}: for {FEW}, take a shorter --horizon or a longer file")
    else:
        rank(rmse, config.cell)
    new = len(whole.values) - len(values)
    if config.predict:
        end, beside = ends[-1:], {who: (point[-1:], spread[-1:]) for who, (point, spread) in said.items()}
        for who, (run, answers) in trained.items():
            predict(run.path, who, whole, frame, end, answers(whole.values, end)[0], beside)
            training.log(f"prediction: {Path(config.out) / run.name / 'prediction.csv'}")
        training.log(f"the baselines' predictions: {Path(config.out) / task / 'baselines.csv'}")
    elif new:
        training.log(
            f"{new} steps have come since: --predict forecasts from them; to train on them, name another folder with --out"
        )
    metrics = {who: run.metrics() for who, (run, _) in trained.items()} if training.is_main_process() else {}
    return series, frame, test, found, metrics


def rank(rmse, cells):
    """Say it if the best baseline is better than the networks, or lies between the seeds of one."""
    best, network = (min((who for who in rmse if (who in BASELINES) == simple), key=rmse.get) for simple in (True, False))
    if rmse[best] < rmse[network]:
        training.log(f"{best} is better here: its RMSE is {rmse[best]:.4g}, and {rmse[network]:.4g} that of {network}")
    for cell in cells:
        seeds = [error for who, error in rmse.items() if who.partition("-")[0] == cell]
        if min(seeds) < rmse[best] <= max(seeds):
            reach = f"{min(seeds):.4g} to {max(seeds):.4g}"
            training.log(f"{best} lies within the range of {cell}'s seeds, {reach}: no winner")


# The command ----------------------------------------------------------------------------------------------------------------


def last_end(series, frame):
    """The end of the file as the only origin."""
    if np.isnan(series.values[-frame.window :, 0]).all():
        text = f"{series.source}: the last {frame.window} steps of {series.columns[0]!r} have no value to forecast from"
        raise training.Failure(text, code=2)
    return np.array([len(series.values) - 1])


def names(config):
    """The series to forecast.

    Raises:
        Failure: flags do not go together.
    """
    levels = config.quantiles
    if list(levels) != sorted(set(levels)) or levels[-1] >= 1 or 0.5 not in levels or len(levels) < 3:
        given = " ".join(map(str, levels))
        raise training.Failure(f"--quantiles should ascend between 0 and 1, with 0.5 inside, got {given}", code=2)
    if config.steps % config.validate_every:
        rule = f"--steps should be a multiple of --validate-every {config.validate_every}"
        raise training.Failure(f"{rule}, got {config.steps}", code=2)
    if config.csv is None:
        alone = [flag for flag, value in (("--column", config.column), ("--time", config.time), ("--with", config.with_)) if value]
        if alone:
            raise training.Failure(f"{alone[0]} names a column of your own file: name the file with --csv", code=2)
        return config.task or tuple(BUILT_IN)
    for flag, value in (("--column", config.column), ("--horizon", config.horizon)):
        if value is None:
            raise training.Failure(f"--csv needs {flag} too", code=2)
    if config.task:
        raise training.Failure("--csv is for a file of your own, --task for series of statsmodels: give one of them", code=2)
    return ("csv",)


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    training.require("statsmodels", "jaxrnn[data]")
    jobs = {name: load(name, config) for name in names(config)}
    for series, frame in jobs.values():
        check(series, frame)
        if config.predict:
            last_end(series, frame)
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        results = {task: compare(task, *job, config, mesh, folder) for task, job in jobs.items()}
        if training.is_main_process():
            plot(results, folder)
            training.log(f"\nplots and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
