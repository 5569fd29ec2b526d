"""Forecast weekly CO2 and yearly sunspots with a recurrent network, beside two baselines.

    python scripts/train_forecast.py
    python scripts/train_forecast.py --data sunspots --cell GRU --out runs/sunspots

A window of the past goes in, all of the horizon comes out; where the series has a trend, both as
differences from the window's last value. The years are split in order: 70 % to train, 15 % to choose
the best step, 15 % held out. Killed and started again with the same command, it goes on and ends the
same.
"""

import sys
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import training
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.training import option

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel}


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    data: tuple[Literal["co2", "sunspots"], ...] = option(("co2", "sunspots"), "Series to forecast.")
    cell: Literal["RNN", "LSTM", "GRU"] = option("LSTM", "Model to train.")
    hidden_size: int = option(16, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    batch_size: int = option(64, "Windows in a batch.", least=1)
    learning_rate: float = option(3e-3, "Step size of Adam.", above=0)
    steps: int = option(1500, "Batches to train on.", least=1)
    validate_every: int = option(50, "Steps between looks at the validation years.", least=1)
    seed: int = option(0, "Seed of everything random.", least=0)
    out: str = option("runs/forecast", "Folder of the run; a run that is there goes on.", saved=False, metavar="FOLDER")


class Series(NamedTuple):
    values: np.ndarray
    times: np.ndarray
    unit: str
    season: int  # this and what follows in steps
    window: int
    horizon: int
    trend: bool


def load(name):
    from statsmodels.datasets import co2, sunspots

    if name == "co2":
        table = co2.load_pandas().data["co2"].interpolate()
        years = table.index.year + table.index.day_of_year / 365.25
        return Series(table.to_numpy(np.float32), np.asarray(years), "CO2 in ppm", 52, 104, 52, trend=True)
    table = sunspots.load_pandas().data
    values = table["SUNACTIVITY"].to_numpy(np.float32)
    return Series(values, table["YEAR"].to_numpy(), "sunspots", 11, 22, 3, trend=False)


def windows(series):
    """Every window and what followed it: (n, window), (n, horizon); and each window's last index."""
    ends = np.arange(series.window - 1, len(series.values) - series.horizon)
    past = series.values[ends[:, None] + np.arange(1 - series.window, 1)]
    future = series.values[ends[:, None] + np.arange(1, series.horizon + 1)]
    return past, future, ends


def split(series, ends):
    """The windows whose futures lie in the first 70 %, the next 15 % and the last 15 % of the time."""
    first, second = (int(len(series.values) * share) for share in (0.70, 0.85))
    train = ends + series.horizon < first
    validation = (ends + 1 >= first) & (ends + series.horizon < second)
    return train, validation, ends + 1 >= second


def train(name, config, mesh, folder):
    """Train on one series; report, and return what the plot needs."""
    series = load(name)
    past, future, ends = windows(series)
    learn, validate, held_out = split(series, ends)
    level = past[:, -1:] if series.trend else past[learn].mean()
    scale = (future - level)[learn].std()
    x, y = ((past - level) / scale)[..., None], (future - level) / scale

    sizes = (1, config.hidden_size, series.horizon)
    model = MODELS[config.cell](*sizes, num_layers=config.num_layers, rngs=nnx.Rngs(config.seed))
    graph, params = nnx.split(model)
    params = training.place(mesh, params)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def mse(params, x, y):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    @jax.jit
    def step(params, opt_state, x, y):
        loss, grads = training.value_and_grad(mse, mesh)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    error, forecast = jax.jit(mse), jax.jit(lambda params, x: nnx.merge(graph, params)(x))
    order = training.Order(np.full(learn.sum(), series.window), config.batch_size, seed=config.seed)
    x_train, y_train = x[learn], y[learn]
    x_validation, y_validation = training.place(mesh, (x[validate], y[validate]))

    run = training.Run(folder, name, save_every=config.save_every, tensorboard=config.tensorboard)
    opt_state = training.place(mesh, optimizer.init(params))
    best, best_params = np.float32(np.inf), params
    params, opt_state, order.state, best, best_params = run.restore((params, opt_state, order.state, best, best_params))
    for number in run.steps(config.steps):
        rows, _ = order.next()
        batch = training.deal(mesh, x_train[rows], y_train[rows])
        params, opt_state, loss = step(params, opt_state, *batch)
        metrics = {"loss": loss}
        if number % config.validate_every == 0 or number == config.steps:
            metrics["validation"] = np.float32(error(params, x_validation, y_validation))
            if metrics["validation"] < best:
                best, best_params = metrics["validation"], params
        run.log(number, **metrics)
        run.checkpoint(number, (params, opt_state, order.state, best, best_params))

    answers = (np.asarray(forecast(best_params, training.place(mesh, x))) * scale + level)[held_out]
    past, future, ends = past[held_out], future[held_out], ends[held_out]
    season = series.values[ends[:, None] + 1 - series.season + np.arange(series.horizon) % series.season]
    rows = {"last value": past[:, -1:], "seasonal naive": season, config.cell: answers}
    errors = {who: float(np.sqrt(np.mean((guess - future) ** 2))) for who, guess in rows.items()}
    training.say(f"\n{name}: root mean squared error of {series.unit}, {series.horizon} steps ahead, held-out years")
    training.say("\n".join(f"  {who:16}{value:8.3f}" for who, value in errors.items()))
    return series, ends, answers, run.metrics()


def plot(results, config, folder):
    with training.figure(folder.path / "forecast.png", len(results), width=11, height=4) as all_axes:
        for axes, (name, (series, ends, answers, _)) in zip(np.ravel(all_axes), results.items(), strict=True):
            shown = slice(ends[0] - series.window, None)
            axes.plot(series.times[shown], series.values[shown], "k", lw=1, label="measured")
            for k in range(0, len(ends), series.horizon):
                future = slice(ends[k] + 1, ends[k] + 1 + series.horizon)
                axes.plot(series.times[future], answers[k], "C1", lw=1.5, label="forecast" if k == 0 else None)
            axes.axvline(series.times[ends[0]], color="gray", ls=":", label="held-out years begin")
            axes.set(title=f"{name}, {config.cell}, {series.horizon} steps ahead", xlabel="year", ylabel=series.unit)
            axes.margins(y=0.12)
            axes.legend(loc="upper left", fontsize="small", ncols=3)
    with training.figure(folder.path / "loss.png", len(results), width=11, height=4) as all_axes:
        for axes, (name, (*_, metrics)) in zip(np.ravel(all_axes), results.items(), strict=True):
            for metric, (steps, values) in metrics.items():
                axes.semilogy(steps, values, label=metric)
            axes.set(title=name, xlabel="step", ylabel="mean squared error, normalised")
            axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    training.require("statsmodels", "jaxrnn[data]")
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        results = {name: train(name, config, mesh, folder) for name in dict.fromkeys(config.data)}
        if training.chief():
            plot(results, config, folder)
            training.say(f"\nplots and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
