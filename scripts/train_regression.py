"""Train an RNN, an LSTM and a GRU on a small regression, and compare them; then on a series with something to learn.

    python scripts/train_regression.py
    python scripts/train_regression.py --cell LSTM GRU --num-layers 2 --epochs 500 --out runs/deep

First random data: 5 sequences of 3 steps of 10 features, 2 targets each; mean squared error, Adam. Then the sunspots of the next
year from the 22 years before (`sunspots.csv`, yearly means from 1700 to 2008): trained on the years before 1950, and compared with
the truth, and with the forecast "as last year", in the years since. Of the options, this second part uses `--cell`,
`--hidden-size` and the first `--seed`; it has one layer and takes 200 epochs. Writes `loss.png`, `sunspots.png` and the models of
the first part to the output folder: `jaxrnn.runs.load_run("runs/regression/LSTM-0")`.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from training import option

from jaxrnn.models import GRUModel, LSTMModel, RNNModel

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel}
BATCH, TIME, INPUT, OUTPUT = 5, 3, 10, 2
YEARS, HELD_OUT_FROM, EPOCHS = 22, 1950, 200  # of the sunspots
SERIES = Path(__file__).with_name("sunspots.csv")  # SILSO, Royal Observatory of Belgium


@dataclass(frozen=True)
class Config:
    cell: tuple[Literal["RNN", "LSTM", "GRU"], ...] = option(tuple(MODELS), "Models to train.", each=True)
    hidden_size: int = option(20, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    bidirectional: bool = option(False, "Read the sequences in both directions.")
    learning_rate: float = option(1e-3, "Step size of Adam.", above=0)
    epochs: int = option(100, "Times through the data, one step each.", least=1)
    seed: tuple[int, ...] = option((0,), "Seeds of the data and of the weights.", least=0, each=True)
    out: str = option("runs/regression", "Folder of the plot and the models.", saved=False, metavar="FOLDER")


@nnx.jit
def step(model, optimizer, x, y):
    def mse(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(mse)(model)
    optimizer.update(model, grads)
    return loss


def train(name, model, x, y, *, learning_rate, epochs, report=True):
    """The loss of every epoch, and its time in seconds; a line every ten epochs, if they are to be reported."""
    optimizer = nnx.Optimizer(model, optax.adam(learning_rate), wrt=nnx.Param)
    one_step = nnx.cached_partial(step, model, optimizer)
    losses, seconds = [], []
    progress = training.Progress(range(1, epochs + 1), name)
    for epoch in progress:
        start = time.perf_counter()
        losses.append(float(one_step(x, y)))
        seconds.append(time.perf_counter() - start)
        if not np.isfinite(losses[-1]):
            raise training.Failure(f"the loss of {name} is {losses[-1]} in epoch {epoch}: choose a smaller --learning-rate")
        progress.show(epoch, loss=losses[-1])
        if report and epoch % 10 == 0:
            training.log(f"{name} Epoch [{epoch}/{epochs}], Loss: {losses[-1]:.4f}")
    return losses, seconds


def plot(curves, path):
    with training.figure(path) as axes:
        for name, losses in curves.items():
            axes.plot(range(1, len(losses) + 1), losses, label=name, **training.cell_style(name))
        axes.set(xlabel="epoch", ylabel="mean squared error", title="Training on random data")
        axes.legend()


def sunspots():
    """Windows of `YEARS` years, the year after each, and its number of sunspots; numbers as √ / 10, between 0 and 1.4."""
    years, numbers = np.loadtxt(SERIES, delimiter=",", skiprows=1, unpack=True)
    scaled = (np.sqrt(numbers) / 10).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(scaled[:-1], YEARS)
    return jnp.asarray(windows[..., None]), years[YEARS:], numbers[YEARS:]


def forecast(config, path):
    """Train each cell on the early years; a table of its errors in the late ones, and a picture of what it predicts there."""
    x, years, numbers = sunspots()
    early = years < HELD_OUT_FROM
    predicted = {"as last year": np.square(10 * np.asarray(x[~early, -1, 0]))}
    for cell in config.cell:
        model = MODELS[cell](1, config.hidden_size, 1, rngs=nnx.Rngs(config.seed[0]))
        y = jnp.sqrt(jnp.asarray(numbers[early], jnp.float32))[:, None] / 10
        train(cell, model, x[early], y, learning_rate=0.01, epochs=EPOCHS, report=False)
        predicted[cell] = np.square(10 * np.maximum(np.asarray(nnx.jit(model)(x[~early]))[:, 0], 0))

    how = f"one layer, {EPOCHS} epochs, seed {config.seed[0]}"
    training.log(f"\nsunspots, the next year from {YEARS} years, {how}: root mean squared error since {HELD_OUT_FROM}")
    for name, numbers_of in predicted.items():
        training.log(f"{name:12}{np.sqrt(np.mean((numbers_of - numbers[~early]) ** 2)):7.1f}")
    with training.figure(path, width=8) as axes:
        axes.plot(years[~early], numbers[~early], "k.", label="truth")
        for name, numbers_of in predicted.items():
            look = {"color": "black", "linestyle": "--"} if name == "as last year" else training.cell_style(name)
            axes.plot(years[~early], numbers_of, label=name, lw=1, **look)
        axes.set(xlabel="year", ylabel="sunspots", title="Years that the networks have not seen")
        axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    for package in ("matplotlib", "orbax"):
        training.require(package, "jaxrnn[train]")
    out = training.make_folder(config.out)

    curves, table = {}, []
    for seed in config.seed:
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.standard_normal((BATCH, TIME, INPUT)), jnp.float32)
        y = jnp.asarray(rng.standard_normal((BATCH, OUTPUT)), jnp.float32)
        for cell in config.cell:
            layers = {"num_layers": config.num_layers, "bidirectional": config.bidirectional}
            model = MODELS[cell](INPUT, config.hidden_size, OUTPUT, **layers, rngs=nnx.Rngs(seed))
            name = cell if len(config.seed) == 1 else f"{cell}-{seed}"
            rates = {"learning_rate": config.learning_rate, "epochs": config.epochs}
            curves[name], seconds = train(name, model, x, y, **rates)
            training.save_model(out, f"{cell}-{seed}", model, step=config.epochs, config=config)
            count = sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
            fastest = f"{1000 * min(seconds[1:]):.2f} ms" if config.epochs > 1 else "–"  # the first compiles
            table.append(f"{name:7}{count:10,}{curves[name][-1]:14.4f}{fastest:>19}")

    training.log("\ncell   parameters    final loss       fastest step")
    training.log("\n".join(table))
    training.log("Random data hold nothing to learn: the loss is of what was memorised. One seed is no ranking: --seed 0 1 2.")
    plot(curves, out / "loss.png")
    forecast(config, out / "sunspots.png")
    training.log(f"\nplots and models: {out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
