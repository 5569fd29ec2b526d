"""Classify Japanese vowels by their speaker, and digits read row by row, with RNN, LSTM, GRU and a bidirectional LSTM.

    python scripts/train_classify.py
    python scripts/train_classify.py --task vowels --cell BiLSTM --seed 0 1 2 3 4 --out runs/vowels

The vowels are 7 to 29 frames long: they are put into buckets of similar length, so that a run
compiles a handful of shapes. Every model is trained once for each seed. Killed and started again with
the same command, it goes on and ends the same; with more `--epochs` it goes on for longer. A trained
model is `jaxrnn.runs.load_run("runs/classify/vowels/LSTM-0").model`.
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
import training
from flax import nnx
from training import option

from jaxrnn.data_parallel import value_and_grad
from jaxrnn.models import GRUModel, LSTMModel, RNNModel
from jaxrnn.padding import pad

MODELS = {"RNN": RNNModel, "LSTM": LSTMModel, "GRU": GRUModel, "BiLSTM": partial(LSTMModel, bidirectional=True)}
EPOCHS = {"vowels": 60, "digits": 25}


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    task: tuple[Literal["vowels", "digits"], ...] = option(tuple(EPOCHS), "What to classify.", each=True)
    cell: tuple[Literal["RNN", "LSTM", "GRU", "BiLSTM"], ...] = option(tuple(MODELS), "Models to train on each.", each=True)
    seed: tuple[int, ...] = option((0, 1, 2), "Seeds of the weights and of the order of the data.", least=0, each=True)
    hidden_size: int = option(64, "Width of the hidden state.", least=1)
    batch_size: int = option(32, "Sequences in a batch.", least=1)
    buckets: int = option(4, "Different lengths to pad to, at most.", least=1)
    learning_rate: float = option(3e-3, "Step size of Adam.", above=0)
    epochs: int | None = option(
        None,
        f"Times through the data. Default: {EPOCHS['vowels']} for vowels, {EPOCHS['digits']} for digits.",
        least=1,
        amount=True,
    )
    save_every: int = option(20, "Epochs between checkpoints.", least=1, saved=False)
    out: str = option("runs/classify", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


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


def train(task, cell, config, mesh, folder):
    """The accuracy on the test set for each seed, and the metrics of each."""
    (sequences, labels), (sequences_test, labels_test) = load(task)
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
        loss, grads = value_and_grad(cross_entropy, mesh)(params, x, y, lengths)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    @jax.jit
    def accuracy(params, x, y, lengths):
        return jnp.mean(nnx.merge(graph, params)(x, lengths=lengths).argmax(-1) == y)

    test = (pad(sequences_test).x, labels_test, lengths_test)
    accuracies, curves = [], []
    for seed in config.seed:
        model = MODELS[cell](*sizes, rngs=nnx.Rngs(seed))
        sampler = training.BatchSampler(lengths, config.batch_size, seed=seed, buckets=config.buckets)
        epoch, options = sampler.batches, {"tensorboard": config.tensorboard, "model": model}
        run = training.Run(folder, f"{task}/{cell}-{seed}", save_every=config.save_every * epoch, **options)
        params = nnx.state(model)
        params, opt_state = training.place(mesh, (params, optimizer.init(params)))
        params, opt_state, sampler.state = run.restore(params=params, optimizer=opt_state, sampler=sampler.state)
        for number in run.steps(epoch * (config.epochs or EPOCHS[task])):
            rows, limit = sampler.next()
            x, steps = pad([sequences[row] for row in rows], to=limit)
            params, opt_state, loss = step(params, opt_state, *training.shard_batch(mesh, x, labels[rows], steps))
            run.log(number, loss=loss)
            run.checkpoint(number, params=params, optimizer=opt_state, sampler=sampler.state)
        accuracies.append(float(accuracy(params, *training.place(mesh, test))))
        curves.append(run.metrics() if training.is_main_process() else {})

    if len(shapes) > len(sampler.limits):
        raise AssertionError(f"{len(sampler.limits)} buckets, but these shapes were compiled: {shapes}")
    scores, padding = "  ".join(f"{score:.3f}" for score in accuracies), f"{sampler.padding_fraction:.1%} padding"
    training.log(f"{task:8}{cell:8}{scores}   padded to {sampler.limits}: {len(shapes)} shapes, {padding}")
    return accuracies, curves


def plot(results, folder):
    tasks = list(dict.fromkeys(task for task, _ in results))
    with training.figure(folder.path / "accuracy.png", len(tasks), width=5 * len(tasks)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), tasks, strict=True):
            cells = [cell for name, cell in results if name == task]
            for k, cell in enumerate(cells):
                scores = results[task, cell][0]
                axes.plot([k] * len(scores), scores, "o", alpha=0.6, color=training.cell_style(cell)["color"])
            axes.set(title=task, ylabel="accuracy on the test set", xticks=range(len(cells)), xticklabels=cells)
            axes.margins(x=0.2)
            axes.grid(axis="y", alpha=0.3)
    with training.figure(folder.path / "loss.png", len(tasks), width=5 * len(tasks)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), tasks, strict=True):
            for cell in [cell for name, cell in results if name == task]:
                steps, losses = results[task, cell][1][0]["loss"]
                axes.semilogy(steps, losses, lw=0.7, label=cell, **training.cell_style(cell))
            axes.set(title=task, xlabel="step", ylabel="cross-entropy of the batch, nats")
            axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    for task in config.task:
        load(task)  # a missing package is said before anything is made
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        training.log(f"accuracy on the test set, seeds {' '.join(map(str, config.seed))}")
        results = {(task, cell): train(task, cell, config, mesh, folder) for task in config.task for cell in config.cell}
        if training.is_main_process():
            plot(results, folder)
            training.log(f"plots and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
