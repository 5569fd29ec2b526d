"""Train the documents' RNN, LSTM and GRU on the documents' regression, and compare them.

    python scripts/train_regression.py
    python scripts/train_regression.py --cell LSTM GRU --num-layers 2 --epochs 500 --out runs/deep

Random data of the documents' shapes: 5 sequences of 3 steps of 10 features, 2 targets each; mean
squared error, Adam. Writes `loss.png` to the output folder.
"""

import sys
import time
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import training
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.training import option

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel}
BATCH, TIME, INPUT, OUTPUT = 5, 3, 10, 2


@dataclass(frozen=True)
class Config:
    cell: tuple[Literal["RNN", "LSTM", "GRU"], ...] = option(tuple(MODELS), "Models to train.")
    hidden_size: int = option(20, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    bidirectional: bool = option(False, "Read the sequences in both directions.")
    learning_rate: float = option(1e-3, "Step size of Adam.", above=0)
    epochs: int = option(100, "Times through the data, one step each.", least=1)
    seed: int = option(0, "Seed of the data and of the weights.", least=0)
    out: str = option("runs/regression", "Folder of the plot.", metavar="FOLDER")


@nnx.jit
def step(model, optimizer, x, y):
    def mse(model):
        return jnp.mean((model(x) - y) ** 2)

    loss, grads = nnx.value_and_grad(mse)(model)
    optimizer.update(model, grads)
    return loss


def train(name, model, x, y, *, learning_rate, epochs):
    """The loss of every epoch, and its time in seconds."""
    optimizer = nnx.Optimizer(model, optax.adam(learning_rate), wrt=nnx.Param)
    one_step = nnx.cached_partial(step, model, optimizer)
    losses, seconds = [], []
    for epoch in training.progress(range(1, epochs + 1), name):
        start = time.perf_counter()
        losses.append(float(one_step(x, y)))
        seconds.append(time.perf_counter() - start)
        if not np.isfinite(losses[-1]):
            raise training.Failure(f"the loss of {name} is {losses[-1]} in epoch {epoch}")
        if epoch % 10 == 0:
            training.say(f"{name} Epoch [{epoch}/{epochs}], Loss: {losses[-1]:.4f}")
    return losses, seconds


def plot(curves, path):
    with training.figure(path) as axes:
        for name, losses in curves.items():
            axes.plot(range(1, len(losses) + 1), losses, label=name)
        axes.set(xlabel="epoch", ylabel="mean squared error", title="Training on the documents' data")
        axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    out = training.make_folder(config.out)

    rng = np.random.default_rng(config.seed)
    x = jnp.asarray(rng.standard_normal((BATCH, TIME, INPUT)), jnp.float32)
    y = jnp.asarray(rng.standard_normal((BATCH, OUTPUT)), jnp.float32)

    curves, table = {}, []
    for name in dict.fromkeys(config.cell):
        rngs = nnx.Rngs(config.seed)
        layers = {"num_layers": config.num_layers, "bidirectional": config.bidirectional}
        model = MODELS[name](INPUT, config.hidden_size, OUTPUT, **layers, rngs=rngs)
        rates = {"learning_rate": config.learning_rate, "epochs": config.epochs}
        curves[name], seconds = train(name, model, x, y, **rates)
        count = sum(a.size for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
        usual = f"{1000 * np.median(seconds[1:]):.2f} ms" if config.epochs > 1 else "–"  # the first compiles
        table.append(f"{name:5}{count:12,}{curves[name][-1]:14.4f}{usual:>19}")

    training.say("\ncell   parameters    final loss      time per step")
    training.say("\n".join(table))
    plot(curves, out / "loss.png")
    training.say(f"\nplot: {out / 'loss.png'}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
