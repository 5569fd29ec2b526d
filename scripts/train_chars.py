"""A character language model of Python's own documentation (`pydoc_data.topics`), or of a text of yours.

    python scripts/train_chars.py
    python scripts/train_chars.py --compare          # and a PyTorch LSTM of the same size, trained the same way
    python scripts/train_chars.py --text one.txt two.txt --out runs/mine
    python scripts/train_chars.py --cell lstm gru lru --seed 0 1 2 --out runs/chars-cells
    python scripts/train_chars.py --generate 400 --temperature 0.5 --prompt class --out runs/chars-cells/LRU-0     # when trained

The training is truncated backpropagation: the text is cut into as many streams as a batch has rows; each step
reads the next `--length` characters of all of them and starts from the state in which the step before ended.
RNN, LSTM and GRU are plain layers; linear and diagonal cells, and with `--blocks` these three too, stand in the
residual blocks of `jaxrnn.models.SequenceModel`. Reported are bits per character on the last tenth of the text, the
CPU time of a training step (the median), and a sample. Killed and started again with the same command, it goes on
and ends the same; with more `--steps` it goes on for longer. The trained model is
`jaxrnn.runs.load_run("runs/chars/LSTM-0").model`, a `jaxrnn.text.CharModel`.

With `--generate` nothing is trained: the run in the folder reads `--prompt` and writes on, once for each `--seed`.
"""

import hashlib
import sys
import time
from dataclasses import dataclass, replace
from pydoc_data.topics import topics
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import training
from flax import nnx
from jax.sharding import PartitionSpec as P
from training import option

from jaxrnn.cells import CELLS, DiagonalCell, LinearCell
from jaxrnn.data_parallel import value_and_grad
from jaxrnn.runs import load_run
from jaxrnn.text import CharModel

LAYERS = ("RNN", "LSTM", "GRU")
NAMES = (*LAYERS, *(name for name, cell in CELLS.items() if issubclass(cell, LinearCell | DiagonalCell)))


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    text: tuple[str, ...] = option(
        (), "Your own text to train on: UTF-8 files, joined by a line end. Default: Python's documentation.", metavar="FILE"
    )
    cell: tuple[Literal[NAMES], ...] = option(("LSTM",), "Cells of the recurrent layers.", each=True)
    blocks: bool = option(False, "Put RNN, LSTM and GRU too into residual blocks, as linear and diagonal cells always are.")
    embed_size: int = option(32, "Width of a character's embedding.", least=1)
    hidden_size: int = option(128, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    batch_size: int = option(32, "Streams that are read at once.", least=1)
    length: int = option(64, "Characters in a training step; the gradient goes no further back.", least=1)
    learning_rate: float = option(4e-3, "Step size of Adam.", above=0)
    steps: int = option(1600, "Batches to train on.", least=1, amount=True)
    characters: int | None = option(None, "How many characters of the text to use, from its start. Default: all.", least=1000)
    sample: int = option(300, "Characters to write at the end.", least=1, saved=False)
    temperature: float = option(0.7, "Temperature of what is written; at 0 always the likeliest character.", least=0, saved=False)
    generate: int | None = option(None, "Characters to write on from --prompt with the trained run in --out.", least=1, saved=False)
    prompt: str | None = option(None, "What --generate reads first. Default: a new line.", saved=False)
    validate_every: int = option(200, "Steps between looks at the held-out text.", least=1)
    compare: bool = option(False, "Train PyTorch's layers too, in the same way.", saved=False)
    save_every: int = option(200, "Steps between checkpoints.", least=1, saved=False)
    seed: tuple[int, ...] = option((0,), "Seeds of everything random.", least=0, each=True)
    out: str = option("runs/chars", "Folder of the run; a run already in it is resumed.", saved=False, metavar="FOLDER")


def make(symbols, cell, config, *, seed):
    """The model of a cell: RNN, LSTM and GRU in plain layers, unless blocks are asked for; all others in blocks."""
    sizes = {"embed_size": config.embed_size, "hidden_size": config.hidden_size, "num_layers": config.num_layers}
    blocks = config.blocks or cell not in LAYERS
    return CharModel("".join(symbols), CELLS[cell](), **sizes, blocks=blocks, rngs=nnx.Rngs(seed))


def read(config):
    """The text that is used.

    Raises:
        Failure: a file cannot be read, is empty, or is not UTF-8; the text is too short.
    """
    own = "\n".join(map(training.read_text, config.text)).replace("\r\n", "\n").replace("\r", "\n")
    text = (own or "".join(topics[name] for name in sorted(topics)))[: config.characters]
    least = max(90, -(-10 * (config.batch_size * config.length + 1) // 9))
    if len(text) < least:
        sizes = f"--batch-size {config.batch_size} and --length {config.length}"
        raise training.Failure(f"the text has {len(text)} characters: {sizes} need {least}", code=2)
    return text


def saved(config, text):
    """The configuration as it is kept: what files of one's own hold, not where they lie."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return replace(config, text=(f"{len(text)} characters, SHA-256 {digest}",)) if config.text else config


def encode(text):
    """The characters there are, and the text as their numbers: to train on, and held out."""
    symbols = sorted({*text, "\n"})  # with what a sample starts from
    tokens = np.searchsorted(symbols, list(text)).astype(np.int32)
    border = len(tokens) * 9 // 10
    return symbols, tokens[:border], tokens[border:]


def streams(tokens, rows):
    """What is read and what follows it, each (rows, length)."""
    length = (len(tokens) - 1) // rows
    return tokens[: rows * length].reshape(rows, length), tokens[1 : rows * length + 1].reshape(rows, length)


def per_step(seconds):
    """The usual CPU time of a step, in words; nothing if there were none but the first, which compiles."""
    return f", {1000 * np.median(seconds[1:]):.1f} ms of CPU time a step" if seconds[1:] else ""


def train(cell, seed, data, config, mesh, folder):
    symbols, learn, held_out = data
    model = make(symbols, cell, config, seed=seed)
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))

    def cross_entropy(params, state, x, y):
        logits, state = nnx.merge(graph, params, rest)(x, state=state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @jax.jit
    def step(params, opt_state, state, x, y):
        gradient = value_and_grad(cross_entropy, mesh, carry=P(None, training.ROWS))
        (loss, state), grads = gradient(params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss

    @jax.jit
    def bits(params, x, y):
        return cross_entropy(params, None, x, y)[0] / jnp.log(2.0)

    texts, nexts = streams(learn, config.batch_size)
    stretches = texts.shape[1] // config.length
    x_held_out, y_held_out = training.place(mesh, streams(held_out, 8))
    start = jax.device_get(model.initial_state(config.batch_size))
    start = training.place(mesh, start, P(None, training.ROWS))
    params, opt_state = training.place(mesh, (params, optimizer.init(params)))

    run = training.Run(folder, f"{cell}-{seed}", save_every=config.save_every, tensorboard=config.tensorboard, model=model)
    params, opt_state, state = run.restore(params=params, optimizer=opt_state, state=start)
    seconds = []
    for number in run.steps(config.steps):
        place = (number - 1) % stretches * config.length
        if place == 0:
            state = start  # a new epoch
        x, y = training.shard_batch(mesh, *(a[:, place : place + config.length] for a in (texts, nexts)))
        before = time.process_time()
        params, opt_state, state, loss = jax.block_until_ready(step(params, opt_state, state, x, y))
        seconds.append(time.process_time() - before)
        metrics = {"loss": loss}
        if number % config.validate_every == 0:
            metrics["held_out_bits"] = score = float(bits(params, x_held_out, y_held_out))
            training.log(f"{run.name} step {number}/{config.steps}: {score:.4f} bits per character on the held-out text")
        run.log(number, **metrics)
        run.checkpoint(number, params=params, optimizer=opt_state, state=state)

    score = float(bits(params, x_held_out, y_held_out))
    count = sum(a.size for a in jax.tree.leaves(params))
    label = f"{run.name}{' in blocks' if model.blocks else ''}, {count:,} parameters"
    training.log(f"\n{label}: {score:.4f} bits per character on the held-out text{per_step(seconds)}")
    return run, score, nnx.merge(graph, jax.device_get(params), rest)


def write(model, prompt, count, seed, config):
    """What the model writes after a prompt."""
    return model.generate(prompt, count, temperature=config.temperature, key=jax.random.key(seed))


def write_on(config, words):
    """What `--generate` does: the prompt, and what the trained run writes after it."""
    others = {word.split("=")[0] for word in words if word.startswith("--")}
    others -= {"--generate", "--prompt", "--temperature", "--seed", "--out"}
    if others:
        raise training.Failure(f"--generate takes the run as it was trained: leave out {', '.join(sorted(others))}", code=2)
    training.require("orbax", "jaxrnn[train]")
    prompt = "\n" if config.prompt is None else config.prompt
    try:
        model = load_run(config.out).model
        if not isinstance(model, CharModel):
            raise ValueError(f"--out should be a run of this script, got {config.out}, whose model is a {type(model).__name__}.")
        for seed in config.seed:
            training.log(prompt + write(model, prompt, config.generate, seed, config))
    except (FileNotFoundError, ValueError) as error:
        text = str(error).replace("load_run: `folder`", "--out").replace("CharModel.generate: `prompt`", "--prompt")
        raise training.Failure(text, code=2) from None


def train_with_torch(cell, seed, data, config):
    """Bits per character of PyTorch's layers: the same sizes, text, order, optimiser, clipping and number of steps."""
    import torch

    symbols, learn, held_out = data
    torch.set_num_threads(1)  # no slower at this size, and much faster where others work too
    torch.manual_seed(seed)
    embed = torch.nn.Embedding(len(symbols), config.embed_size)
    rnn = getattr(torch.nn, cell)(config.embed_size, config.hidden_size, config.num_layers, batch_first=True)
    fc = torch.nn.Linear(config.hidden_size, len(symbols))
    weights = [p for module in (embed, rnn, fc) for p in module.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)

    def cross_entropy(x, y, state):
        output, state = rnn(embed(torch.as_tensor(x, dtype=torch.long)), state)
        logits, y = fc(output).flatten(0, 1), torch.as_tensor(y, dtype=torch.long).flatten()
        return torch.nn.functional.cross_entropy(logits, y), state

    texts, nexts = streams(learn, config.batch_size)
    stretches, seconds = texts.shape[1] // config.length, []
    progress = training.Progress(range(1, config.steps + 1), f"torch {cell}-{seed}")
    for number in progress:
        place = (number - 1) % stretches * config.length
        if place == 0:
            state = None
        start = time.process_time()
        loss, state = cross_entropy(*(a[:, place : place + config.length] for a in (texts, nexts)), state)
        state = jax.tree.map(lambda s: s.detach(), state)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        seconds.append(time.process_time() - start)
        if progress.due:
            progress.show(number, loss=loss.item())
    with torch.no_grad():
        score = cross_entropy(*streams(held_out, 8), None)[0].item() / np.log(2)
    count = sum(p.numel() for p in weights)
    training.log(f"torch.nn.{cell}, seed {seed}, {count:,} parameters: {score:.4f} bits per character{per_step(seconds)}")
    return score


def plot(trained, path, title):
    with training.figure(path) as axes:
        for run, score in trained:
            metrics = run.metrics()
            steps, scores = metrics.get("held_out_bits", ((), ()))
            look = {"marker": "o", "ms": 4, **training.cell_style(run.name)}
            axes.plot([*steps, run.last], [*scores, score], label=f"{run.name}, held-out text", **look)
            if len(trained) == 1:
                steps, losses = metrics["loss"]
                axes.plot(steps, losses / np.log(2), lw=0.5, color="black", alpha=0.4, label="training batch")
        axes.set(xlabel="step", ylabel="bits per character", title=title)
        axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    if config.generate is not None:
        return write_on(config, sys.argv[1:] if arguments is None else arguments)
    if config.prompt is not None:
        raise training.Failure("--prompt should come with --generate", code=2)
    training.require("matplotlib", "jaxrnn[train]")
    if config.compare:
        others = [cell for cell in config.cell if config.blocks or cell not in LAYERS]
        if others:
            came = f"{others[0]}{' --blocks' if config.blocks else ''}"
            raise training.Failure(f"--compare should come with --cell {', '.join(LAYERS)} in plain layers, got {came}", code=2)
        training.require("torch", "torch")
    text = read(config)
    data = encode(text)
    mesh = training.start(config, batch_size=config.batch_size)
    both = [(cell, seed) for cell in config.cell for seed in config.seed]
    with training.open_folder(saved(config, text)) as folder:
        trained = []
        for cell, seed in both:
            run, score, model = train(cell, seed, data, config, mesh, folder)
            trained.append((run, score))
            if training.is_main_process():
                sample = write(model, "\n", config.sample, seed, config)
                training.write_whole(run.path / "sample.txt", sample)
                training.log(f"\n{sample}\n")
        if training.is_main_process():
            title = "your own text" if config.text else "Python's documentation"
            plot(trained, folder.path / "loss.png", title)
            training.log(f"plot, samples and metrics: {config.out}")
    if config.compare and training.is_main_process():
        for cell, seed in both:
            train_with_torch(cell, seed, data, config)


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
