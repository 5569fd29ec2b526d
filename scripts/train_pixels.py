"""Classify digits read pixel by pixel, with any cells in the same residual blocks, and compare accuracy and time.

    python scripts/train_pixels.py
    python scripts/train_pixels.py --permuted --cell lru gru --seed 0 --epochs 10 --out runs/permuted
    python scripts/train_pixels.py --score-on validation --learning-rate 1e-3 --out runs/slower

An image of 8 × 8 pixels (scikit-learn's `load_digits`) is a sequence of 64 steps of one number; the class is
asked for after the last. With `--permuted` the pixels come in another order, the same for every image, cell
and seed, so that neighbours are far apart in time. All cells stand in `jaxrnn.models.SequenceModel`.

360 images are the test set. What is reported is the accuracy after the last epoch, not the best one. To try
other options, use `--score-on validation`: a fifth of the training images is held out and the test set is not
read. Seconds are CPU time of the training epochs, without compilation and scoring. Killed and started again
with the same command, it goes on and ends with the same numbers, times aside. A trained model is
`jaxrnn.runs.load_run("runs/pixels/LRU-0").model`.
"""

import contextlib
import json
import os
import platform
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from jax.sharding import PartitionSpec as P
from training import option

from jaxrnn.cells import CELLS
from jaxrnn.data_parallel import value_and_grad
from jaxrnn.models import SequenceModel

# what reads vectors, and asks for no size of its own
NAMES = tuple(name for name, cell in CELLS.items() if cell.event_ndim == 1 and name != "ProjectedLSTM")
COMPARED = ("RNN", "LSTM", "GRU", "MinGRU", "LRU", "RGLRU", "ParaGRU")
OPTIONS = {"LRU": {"r_min": 0.9, "r_max": 0.999}}  # its defaults, 0 and 1, are for no length in particular
CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    cell: tuple[Literal[NAMES], ...] = option(COMPARED, "Cells to train.", each=True)
    seed: tuple[int, ...] = option((0, 1, 2), "Seeds of the weights and of the order of the data.", least=0, each=True)
    permuted: bool = option(False, "Read the pixels in another order, drawn once for all.")
    score_on: Literal["test", "validation"] = option("test", "Images to score on; for choices, validation.")
    hidden_size: int = option(64, "Width of the blocks and of the hidden state.", least=1)
    num_layers: int = option(2, "Residual blocks.", least=1)
    batch_size: int = option(32, "Images in a batch.", least=1)
    learning_rate: float = option(3e-3, "Step size of AdamW at first; it falls to zero along a cosine.", above=0)
    weight_decay: float = option(0.01, "Weight decay of AdamW.", least=0)
    epochs: int = option(25, "Times through the training images.", least=1, amount=True)
    save_every: int = option(5, "Epochs between checkpoints.", least=1, saved=False)
    out: str = option("runs/pixels", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


def load(score_on="test", permuted=False):
    """Images (rows, 64, 1) and their classes: to train on, and to score on."""
    training.require("sklearn", "jaxrnn[data]")
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, classes = images.astype(np.float32)[order, :, None], classes.astype(np.int32)[order]
    test = len(images) * 4 // 5
    if score_on == "validation":  # the test set is cut off, not looked at
        images, classes = images[:test], classes[:test]
    border = len(images) * 4 // 5
    if permuted:
        images = images[:, np.random.default_rng(1).permutation(images.shape[1])]
    mean, deviation = images[:border].mean(), images[:border].std()
    images = (images - mean) / deviation
    return (images[:border], classes[:border]), (images[border:], classes[border:])


def make(name, config, *, seed):
    """The model of a cell."""
    cell = CELLS[name](**OPTIONS.get(name, {}))
    sizes = (1, config.hidden_size, CLASSES)
    return SequenceModel(cell, *sizes, num_layers=config.num_layers, last=True, rngs=nnx.Rngs(seed))


def train(name, config, mesh, folder):
    """For each seed the accuracy and the seconds after each epoch; and the number of parameters."""
    (images, classes), scored = load(config.score_on, config.permuted)
    graph, params, rest = nnx.split(make(name, config, seed=0), nnx.Param, ...)
    lengths = np.full(len(images), images.shape[1])
    steps = training.BatchSampler(lengths, config.batch_size, seed=0).batches
    rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=config.weight_decay))

    def cross_entropy(params, x, y):
        logits = nnx.merge(graph, params, rest)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    @jax.jit
    def epoch(params, opt_state, x, y):
        def step(carry, batch):
            params, opt_state = carry
            loss, grads = value_and_grad(cross_entropy, mesh)(params, *batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), (x, y))
        return params, opt_state, losses.mean()

    @jax.jit
    def accuracy(params, x, y):
        return jnp.mean(nnx.merge(graph, params, rest)(x).argmax(-1) == y)

    def batches(sampler):
        """All of an epoch, the rows of each spread over the devices."""
        rows = np.stack([sampler.next()[0] for _ in range(sampler.batches)])
        return training.place(mesh, (images[rows], classes[rows]), P(None, training.ROWS))

    scored = training.place(mesh, scored)
    params, opt_state = training.place(mesh, (params, optimizer.init(params)))
    run_epoch = epoch.lower(params, opt_state, *batches(training.BatchSampler(lengths, config.batch_size, seed=0))).compile()

    curves = []
    for seed in config.seed:
        model = make(name, config, seed=seed)
        params = nnx.state(model, nnx.Param)
        sampler = training.BatchSampler(lengths, config.batch_size, seed=seed)
        options = {"save_every": config.save_every, "tensorboard": config.tensorboard}
        run = training.Run(folder, f"{name}-{seed}", model=model, **options)
        params, opt_state = training.place(mesh, (params, optimizer.init(params)))
        params, opt_state, sampler.state = run.restore(params=params, optimizer=opt_state, sampler=sampler.state)
        before = run.config_before.get("epochs", config.epochs)
        if run.step < config.epochs != before:
            training.log(
                f"{run.name}: the learning rate follows the cosine of {config.epochs} epochs from here on, not of {before}"
            )
        seconds = float(run.metrics()["seconds"][1][-1]) if run.step and training.is_main_process() else 0.0
        for number in run.steps(config.epochs):
            x, y = batches(sampler)
            start = time.process_time()
            params, opt_state, loss = jax.block_until_ready(run_epoch(params, opt_state, x, y))
            seconds += time.process_time() - start
            score = float(accuracy(params, *scored))
            training.log(
                f"{run.name} epoch {number}/{config.epochs}: loss {float(loss):.4f}, accuracy {score:.4f}, {seconds:.1f} s"
            )
            run.log(number, loss=loss, accuracy=score, seconds=seconds)
            run.checkpoint(number, params=params, optimizer=opt_state, sampler=sampler.state)
        if training.is_main_process():
            metrics = run.metrics()
            curves.append({key: metrics[key][1].tolist() for key in ("loss", "accuracy", "seconds")})
    return {"parameters": sum(a.size for a in jax.tree.leaves(params)), "seeds": curves}


def table(results, config):
    """Markdown: the accuracy of each seed after the last epoch, and the mean seconds of a run."""
    seeds = " ".join(map(str, config.seed))
    lines = [f"| cell | parameters | {config.score_on} accuracy, seeds {seeds} | seconds |", "|---|---|---|---|"]
    for name, result in results.items():
        scores = " ".join(f"{curve['accuracy'][-1]:.3f}" for curve in result["seeds"])
        seconds = np.mean([curve["seconds"][-1] for curve in result["seeds"]])
        lines.append(f"| {name} | {result['parameters']:,} | {scores} | {seconds:.1f} |")
    return "\n".join(lines)


def processor():
    """The name of the CPU, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def header(config):
    """What was run, and on what."""
    versions = {package: metadata.version(package) for package in ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")}
    return {
        "configuration": {key: value for key, value in asdict(config).items() if key != "out"},
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": processor(),
        "device": jax.devices()[0].device_kind,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "flags": {name: os.environ[name] for name in ("XLA_FLAGS",) if name in os.environ},
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # of what else runs here
    }


def plot(results, config, path):
    with training.figure(path, 2, width=11, height=4) as (over_epochs, over_seconds):
        for name, result in results.items():
            accuracy = np.array([curve["accuracy"] for curve in result["seeds"]])
            seconds = np.mean([curve["seconds"] for curve in result["seeds"]], axis=0)
            look = training.cell_style(name)
            for axes, x in ((over_epochs, np.arange(1, config.epochs + 1)), (over_seconds, seconds)):
                axes.plot(x, accuracy.mean(0), label=name, lw=1.5, **look)
                axes.fill_between(x, accuracy.min(0), accuracy.max(0), color=look["color"], alpha=0.2, lw=0)
        order = "pixels in another order" if config.permuted else "pixels row by row"
        over_epochs.set(xlabel="epoch", ylabel=f"{config.score_on} accuracy", title=f"Digits, {order}")
        over_seconds.set(xlabel="seconds of CPU time", title=f"mean and range of {len(config.seed)} seeds")
        over_epochs.legend(loc="lower right")
        for axes in (over_epochs, over_seconds):
            axes.grid(alpha=0.3)


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    load()  # a missing package is said before anything is made
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        trained = {name: train(name, config, mesh, folder) for name in config.cell}
        results = {name: trained[name] for name in NAMES if name in trained}
        if training.is_main_process():
            plot(results, config, folder.path / "accuracy.png")
            whole = {"header": header(config), "cells": results}
            training.write_whole(folder.path / "pixels.json", json.dumps(whole, indent=1) + "\n")
            training.log(f"\n{table(results, config)}\n\nplot, numbers and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
