"""How far back do RNN, LSTM and GRU remember? The adding problem and the copy task over ever longer sequences.

    python scripts/train_memory.py
    python scripts/train_memory.py --task copy --recall 10 --length 100 500 --steps 3000 --out runs/copy

Adding (Hochreiter & Schmidhuber, 1997): the sum of the two marked numbers in a sequence. Copy: a few
symbols, a long wait, the symbols again in order (Arjovsky, Shah, Bengio, 2016, arXiv:1511.06464, have
ten). The gated cells begin with biases for the length (chrono, arXiv:1804.11188), and to copy with large
input weights, by which a symbol moves the gates from the start. The result is a plot of the final error
over the length, beside what knowing nothing gives. Killed and started again with the same command, it
goes on and ends the same; with more `--steps` it goes on for longer.
"""

import sys
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from training import option

import jaxrnn
from jaxrnn.data_parallel import value_and_grad
from jaxrnn.initializers import chrono, zeros

SYMBOLS = 8
IGNORANT = {"adding": 1 / 6, "copy": float(np.log(SYMBOLS))}
"""The error of the best constant answer."""


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    task: tuple[Literal["adding", "copy"], ...] = option(("adding", "copy"), "What to remember.", each=True)
    cell: tuple[Literal["RNN", "LSTM", "GRU"], ...] = option(("RNN", "LSTM", "GRU"), "Cells to train on each.", each=True)
    length: tuple[int, ...] = option((100, 300, 1000), "Steps of the sequences (of the wait, when copying).", least=10, each=True)
    recall: int = option(3, "Symbols to copy.", least=1)
    hidden_size: int = option(64, "Width of the hidden state.", least=1)
    batch_size: int = option(32, "Sequences in a batch.", least=1)
    learning_rate: float = option(1e-2, "Step size of Adam.", above=0)
    steps: int = option(600, "Batches to train on.", least=1, amount=True)
    save_every: int = option(200, "Steps between checkpoints.", least=1, saved=False)
    seed: tuple[int, ...] = option((0,), "Seeds of everything random.", least=0, each=True)
    out: str = option("runs/memory", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


def adding(rng, rows, length, _recall):
    """(rows, length, 2): numbers and marks; and the sum of the two marked numbers, (rows, 1)."""
    numbers = rng.random((rows, length), np.float32)
    marks = np.zeros_like(numbers)
    half = length // 2
    marks[np.arange(rows), rng.integers(0, half, rows)] = 1
    marks[np.arange(rows), rng.integers(half, length, rows)] = 1
    return np.stack([numbers, marks], -1), (numbers * marks).sum(1, keepdims=True)


def copy(rng, rows, length, recall):
    """(rows, recall + length + recall, SYMBOLS + 1): symbols, one-hot; zeros; a signal to answer; and the symbols."""
    symbols = rng.integers(0, SYMBOLS, (rows, recall))
    steps = np.zeros((rows, length + 2 * recall, SYMBOLS + 1), np.float32)
    steps[:, :recall] = np.eye(SYMBOLS + 1)[symbols]
    steps[:, -recall, SYMBOLS] = 1
    return steps, symbols.astype(np.int32)


class Model(nnx.Module):
    """Recurrent layer and linear head, at the last `answers` steps."""

    def __init__(self, cell, sizes, answers, *, rngs):
        input_size, hidden_size, output_size = sizes
        self.rnn = jaxrnn.Recurrent(cell, input_size, hidden_size, rngs=rngs)
        self.fc = nnx.Linear(hidden_size, output_size, rngs=rngs)
        self.answers = answers

    def __call__(self, x):
        return self.fc(self.rnn(x)[0][:, -self.answers :])


def describe(task, name, length):
    """The cell, ready for the task and the length."""
    inputs = {"w_ih_init": jax.nn.initializers.normal(8.0)} if task == "copy" else {}
    if name == "LSTM":
        return jaxrnn.LSTMCell(b_ih_init=chrono(length), b_hh_init=zeros, **inputs)
    if name == "GRU":
        return jaxrnn.GRUCell(b_ih_init=chrono(length, forget="z", write=None), b_hh_init=zeros, **inputs)
    return jaxrnn.RNNCell(**inputs)


def train(task, name, length, seed, config, mesh, folder):
    """The error on fresh sequences at the end, the mean over the last tenth of the steps."""
    recall = config.recall
    make, (inputs, outputs, answers) = {"adding": (adding, (2, 1, 1)), "copy": (copy, (SYMBOLS + 1, SYMBOLS, recall))}[task]
    sizes = (inputs, config.hidden_size, outputs)
    model = Model(describe(task, name, length), sizes, answers, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def error(params, x, y):
        answer = nnx.merge(graph, params)(x)
        if task == "adding":
            return jnp.mean((answer[:, -1] - y) ** 2)
        return optax.softmax_cross_entropy_with_integer_labels(answer, y).mean()

    @jax.jit
    def step(params, opt_state, x, y):
        loss, grads = value_and_grad(error, mesh)(params, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    label, options = f"{task}-{length}/{name}-{seed}", {"tensorboard": config.tensorboard, "model": model}
    run = training.Run(folder, label, save_every=config.save_every, **options)
    params, opt_state = training.place(mesh, (params, optimizer.init(params)))
    params, opt_state = run.restore(params=params, optimizer=opt_state)
    for number in run.steps(config.steps):
        batch = make(np.random.default_rng([seed, number]), config.batch_size, length, recall)
        params, opt_state, loss = step(params, opt_state, *training.shard_batch(mesh, *batch))
        run.log(number, loss=loss)
        run.checkpoint(number, params=params, optimizer=opt_state)

    last = max(1, config.steps // 10)
    final = float(run.metrics()["loss"][1][-last:].mean()) if training.is_main_process() else 0.0
    training.log(f"{task:8}{name:6}{length:6}{seed:6}{final:10.4f}{IGNORANT[task]:10.4f}")
    return final


def plot(results, config, path):
    """The mean over the seeds, and their range."""
    with training.figure(path, len(config.task), width=5 * len(config.task)) as all_axes:
        for axes, task in zip(np.ravel(all_axes), config.task, strict=True):
            for name in config.cell:
                errors = np.array([results[task, name, length] for length in config.length])
                look = training.cell_style(name)
                axes.loglog(config.length, errors.mean(1), marker="o", label=name, **look)
                axes.fill_between(config.length, errors.min(1), errors.max(1), color=look["color"], alpha=0.2, lw=0)
            axes.axhline(IGNORANT[task], color="black", ls="--", label="knowing nothing")
            ylabel = {"adding": "mean squared error", "copy": "cross-entropy of a recalled symbol, nats"}[task]
            axes.set(title=f"{task}, after {config.steps} steps", xlabel="length, steps", ylabel=ylabel)
            axes.set_xticks(config.length, config.length)
            axes.minorticks_off()
            axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    training.require("matplotlib", "jaxrnn[train]")
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        training.log("task    cell  length  seed     error   knowing nothing")
        results = {
            (task, name, length): [train(task, name, length, seed, config, mesh, folder) for seed in config.seed]
            for task in config.task
            for length in config.length
            for name in config.cell
        }
        if training.is_main_process():
            plot(results, config, folder.path / "memory.png")
            training.log(f"plot and metrics: {config.out}")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
