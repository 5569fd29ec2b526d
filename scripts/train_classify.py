"""Classify Japanese vowels by their speaker, and digits read row by row, with RNN, LSTM, GRU and a bidirectional LSTM.

    python scripts/train_classify.py
    python scripts/train_classify.py --data vowels --cell BiLSTM --seeds 0 1 2 3 4 --out runs/vowels

The vowels are 7 to 29 frames long: they are dealt into buckets of similar length, so that a run
compiles a handful of shapes. Every model is trained once for each seed. Killed and started again with
the same command, it goes on and ends the same.
"""

import importlib.util
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import training
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.training import option

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel, "BiLSTM": partial(LSTMModel, bidirectional=True)}
EPOCHS = {"vowels": 60, "digits": 25}


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    data: tuple[Literal["vowels", "digits"], ...] = option(tuple(EPOCHS), "Tasks.")
    cell: tuple[Literal["RNN", "LSTM", "GRU", "BiLSTM"], ...] = option(tuple(MODELS), "Models to train on each.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of the weights and of the order of the data, each a run of its own.", least=0)
    hidden_size: int = option(64, "Width of the hidden state.", least=1)
    batch_size: int = option(32, "Sequences in a batch.", least=1)
    buckets: int = option(4, "Different lengths to pad to, at most.", least=1)
    learning_rate: float = option(3e-3, "Step size of Adam.", above=0)
    epochs: int | None = option(
        None, f"Times through the data. Default: {EPOCHS['vowels']} for vowels, {EPOCHS['digits']} for digits.", least=1
    )
    save_every: int = option(500, "Steps between checkpoints.", least=1)
    out: str = option("runs/classify", "Folder of the run; a run that is there goes on.", saved=False, metavar="FOLDER")


def read_ts(path):
    """A `.ts` file: series (time, channels) and labels. A line is channels and label, apart by colons."""
    lines = path.read_text().splitlines()
    data = lines[[line.strip().lower() for line in lines].index("@data") + 1 :]
    rows = [line.split(":") for line in data if line.strip()]
    series = [np.array([channel.split(",") for channel in row[:-1]], np.float32).T for row in rows]
    return series, np.array([row[-1].strip() for row in rows])


def load(name):
    """Sequences and labels, to train on and to test on."""
    if name == "vowels":
        found = next((s for s in map(importlib.util.find_spec, ("sktime", "aeon")) if s), None)
        if found is None:
            install = "pip install 'jaxrnn[data]' or pip install --no-deps aeon==1.6.0"
            raise training.Failure(f"JapaneseVowels comes with the packages sktime and aeon: {install}", code=2)
        folder = Path(found.submodule_search_locations[0]) / "datasets/data/JapaneseVowels"
        (x, labels), (x_test, labels_test) = (read_ts(folder / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
        kinds = sorted(set(labels))
        y, y_test = (np.searchsorted(kinds, part) for part in (labels, labels_test))
    else:
        training.require("sklearn", "jaxrnn[data]")
        from sklearn.datasets import load_digits

        images, classes = load_digits(return_X_y=True)
        order = np.random.default_rng(0).permutation(len(images))
        images, classes = list(images.reshape(-1, 8, 8).astype(np.float32)[order]), classes[order]
        border = len(images) * 4 // 5
        x, x_test, y, y_test = images[:border], images[border:], classes[:border], classes[border:]
    frames = np.concatenate(x)
    mean, deviation = frames.mean(0), frames.std(0) + 1e-6
    x, x_test = ([(sequence - mean) / deviation for sequence in part] for part in (x, x_test))
    return (x, y.astype(np.int32)), (x_test, y_test.astype(np.int32))


def train(data, cell, config, mesh, folder):
    """The accuracy on the test set for each seed, and the metrics of each."""
    (sequences, labels), (sequences_test, labels_test) = load(data)
    lengths, lengths_test = (np.array([len(s) for s in part], np.int32) for part in (sequences, sequences_test))
    sizes = (sequences[0].shape[1], config.hidden_size, int(labels.max()) + 1)
    graph = nnx.graphdef(MODELS[cell](*sizes, rngs=nnx.Rngs(0)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    shapes = []  # noted while a step is traced: one entry for each compilation

    def cross_entropy(params, x, y, lengths):
        logits = nnx.merge(graph, params)(x, lengths=lengths)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def step(params, opt_state, x, y, lengths):
        shapes.append(x.shape)
        loss, grads = training.value_and_grad(cross_entropy, mesh)(params, x, y, lengths)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params, x, y, lengths):
        return jnp.mean(nnx.merge(graph, params)(x, lengths=lengths).argmax(-1) == y)

    test = (training.pad(sequences_test, int(lengths_test.max())), labels_test, lengths_test)
    accuracies, curves = [], []
    for seed in config.seeds:
        params = nnx.state(MODELS[cell](*sizes, rngs=nnx.Rngs(seed)))
        order = training.Order(lengths, config.batch_size, seed=seed, buckets=config.buckets)
        run = training.Run(folder, f"{data}/{cell}-{seed}", save_every=config.save_every, tensorboard=config.tensorboard)
        params, opt_state = training.place(mesh, (params, optimizer.init(params)))
        params, opt_state, order.state = run.restore((params, opt_state, order.state))
        for number in run.steps(order.batches * (config.epochs or EPOCHS[data])):
            rows, limit = order.next()
            x = training.pad([sequences[row] for row in rows], limit)
            params, opt_state, loss = step(params, opt_state, *training.deal(mesh, x, labels[rows], lengths[rows]))
            run.log(number, loss=loss)
            run.checkpoint(number, (params, opt_state, order.state))
        accuracies.append(float(accuracy(params, *training.place(mesh, test))))
        curves.append(run.metrics() if training.chief() else {})

    if len(shapes) > len(order.limits):
        raise AssertionError(f"{len(order.limits)} buckets, but these shapes were compiled: {shapes}")
    scores = "  ".join(f"{score:.3f}" for score in accuracies)
    training.say(f"{data:8}{cell:8}{scores}   padded to {order.limits}: {len(shapes)} shapes, {order.waste:.1%} padding")
    return accuracies, curves


def plot(results, folder):
    tasks = list(dict.fromkeys(data for data, _ in results))
    with training.figure(folder.path / "accuracy.png", len(tasks), width=5 * len(tasks)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), tasks, strict=True):
            cells = [cell for data, cell in results if data == task]
            for k, cell in enumerate(cells):
                scores = results[task, cell][0]
                axes.plot([k] * len(scores), scores, "o", alpha=0.6)
            axes.set(title=task, ylabel="accuracy on the test set", xticks=range(len(cells)), xticklabels=cells)
            axes.margins(x=0.2)
            axes.grid(axis="y", alpha=0.3)
    with training.figure(folder.path / "loss.png", len(tasks), width=5 * len(tasks)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), tasks, strict=True):
            for cell in [cell for data, cell in results if data == task]:
                steps, losses = results[task, cell][1][0]["loss"]
                axes.semilogy(steps, losses, lw=0.7, label=cell)
            axes.set(title=task, xlabel="step", ylabel="cross-entropy of the batch, nats")
            axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    tasks = [(data, cell) for data in dict.fromkeys(config.data) for cell in dict.fromkeys(config.cell)]
    for data in config.data:
        load(data)  # a missing package is said before anything is made
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        training.say(f"accuracy on the test set, seeds {config.seeds}")
        results = {(data, cell): train(data, cell, config, mesh, folder) for data, cell in tasks}
        if training.chief():
            plot(results, folder)
            training.say(f"plots and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
