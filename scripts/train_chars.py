"""A character language model of Python's own documentation (`pydoc_data.topics`), by truncated backpropagation.

    python scripts/train_chars.py
    python scripts/train_chars.py --compare          # and a PyTorch LSTM of the same size, trained the same way
    python scripts/train_chars.py --cell lru --num-layers 2 --out runs/chars-lru
    python scripts/train_chars.py --generate 400 --temperature 0.5 --prompt class --out runs/chars-lru    # when it is trained

The text is cut into as many streams as a batch has rows; each step reads the next stretch of all of
them and starts from the state in which the step before ended. RNN, LSTM and GRU are plain layers;
linear and diagonal cells, and with `--blocks` these three too, stand in the residual blocks of
`jaxrnn.models.SequenceModel`. Reported are bits per character on the last tenth of the text, the CPU
time of a training step (the median), and a sample. Killed and started again with the same command, it
goes on and ends the same.

With `--generate` nothing is trained: the run in the folder reads the prompt and writes on.
"""

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec as P

import jaxrnn
from jaxrnn import training
from jaxrnn.cells import CELLS, DiagonalCell, LinearCell
from jaxrnn.models import SequenceModel
from jaxrnn.training import option

LAYERS = {"RNN": jaxrnn.RNN, "LSTM": jaxrnn.LSTM, "GRU": jaxrnn.GRU}
NAMES = (*LAYERS, *(name for name, cell in CELLS.items() if issubclass(cell, LinearCell | DiagonalCell)))


@dataclass(frozen=True, kw_only=True)
class Config(training.RunConfig):
    cell: Literal[NAMES] = option("LSTM", "Kind of the recurrent layers, in upper or lower case.")
    blocks: bool = option(False, "Put RNN, LSTM and GRU too into residual blocks, as linear and diagonal cells always are.")
    embed_size: int = option(32, "Width of a character's embedding.", least=1)
    hidden_size: int = option(128, "Width of the hidden state.", least=1)
    num_layers: int = option(1, "Recurrent layers.", least=1)
    batch_size: int = option(32, "Streams that are read at once.", least=1)
    stretch: int = option(64, "Characters to backpropagate through.", least=1)
    learning_rate: float = option(4e-3, "Step size of Adam.", above=0)
    steps: int = option(1600, "Batches to train on.", least=1)
    characters: int | None = option(None, "How many characters of the text to use, from its start. Default: all.", least=1000)
    sample: int = option(300, "Characters to write at the end.", least=1)
    temperature: float = option(0.7, "Temperature of what is written; at 0 always the likeliest character.", least=0, saved=False)
    generate: int | None = option(None, "Characters to write on from --prompt with the trained run in --out.", least=1, saved=False)
    prompt: str | None = option(None, "What --generate reads first. Default: a new line.", saved=False)
    report_every: int = option(200, "Steps between looks at the held-out text.", least=1)
    compare: bool = option(False, "Train PyTorch's layers too, in the same way.", saved=False)
    save_every: int = option(200, "Steps between checkpoints.", least=1)
    seed: int = option(0, "Seed of everything random.", least=0)
    out: str = option("runs/chars", "Folder of the run; a run that is there goes on.", saved=False, metavar="FOLDER")


class CharModel(nnx.Module):
    """Embedding, recurrent layers, linear: the logits of the next character. Blocks have their linear layer within."""

    def __init__(self, config, symbols, *, rngs):
        # as PyTorch's; Flax draws embeddings so much smaller that these few steps do not make up for it
        wide = jax.nn.initializers.normal(1.0)
        self.embed = nnx.Embed(symbols, config.embed_size, embedding_init=wide, rngs=rngs)
        sizes, layers = (config.embed_size, config.hidden_size), {"num_layers": config.num_layers, "rngs": rngs}
        if config.blocks or config.cell not in LAYERS:
            self.rnn, self.fc = SequenceModel(CELLS[config.cell](), *sizes, symbols, **layers), None
        else:
            self.rnn = LAYERS[config.cell](*sizes, **layers)
            self.fc = nnx.Linear(config.hidden_size, symbols, rngs=rngs)

    def __call__(self, tokens, state=None):
        if self.fc is None:
            return self.rnn(self.embed(tokens), state=state, return_state=True)
        output, state = self.rnn(self.embed(tokens), h_0=state)
        return self.fc(output), state

    def step(self, token, state=None):
        """One character further."""
        output, state = self.rnn.step(self.embed(token), state)
        return (output if self.fc is None else self.fc(output)), state


def load(config):
    """The characters there are, and the text as their numbers: to train on, and held out."""
    text = "".join(topics[name] for name in sorted(topics))[: config.characters]
    symbols = sorted(set(text))
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


def optimizer_of(config):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))


def train(config, mesh, folder):
    symbols, learn, held_out = load(config)
    model = CharModel(config, len(symbols), rngs=nnx.Rngs(config.seed))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    optimizer = optimizer_of(config)

    def cross_entropy(params, state, x, y):
        logits, state = nnx.merge(graph, params, rest)(x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), state

    @jax.jit
    def step(params, opt_state, state, x, y):
        gradient = training.value_and_grad(cross_entropy, mesh, carry=P(None, training.ROWS))
        (loss, state), grads = gradient(params, state, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, state, loss

    @jax.jit
    def bits(params, x, y):
        return cross_entropy(params, None, x, y)[0] / jnp.log(2.0)

    texts, nexts = streams(learn, config.batch_size)
    stretches = texts.shape[1] // config.stretch
    if not stretches:
        raise training.Failure(f"--stretch should be at most {texts.shape[1]}, the length of a stream", code=2)
    x_held_out, y_held_out = training.place(mesh, streams(held_out, 8))
    start = jax.device_get(model.rnn.initial_state(config.batch_size))
    start = training.place(mesh, start, P(None, training.ROWS))
    params, opt_state = training.place(mesh, (params, optimizer.init(params)))

    run = training.Run(folder, config.cell, save_every=config.save_every, tensorboard=config.tensorboard)
    params, opt_state, state = run.restore((params, opt_state, start))
    seconds = []
    for number in run.steps(config.steps):
        place = (number - 1) % stretches * config.stretch
        if place == 0:
            state = start  # a new epoch
        x, y = training.deal(mesh, *(a[:, place : place + config.stretch] for a in (texts, nexts)))
        before = time.process_time()
        params, opt_state, state, loss = jax.block_until_ready(step(params, opt_state, state, x, y))
        seconds.append(time.process_time() - before)
        metrics = {"loss": loss}
        if number % config.report_every == 0 or number == config.steps:
            metrics["held_out_bits"] = score = float(bits(params, x_held_out, y_held_out))
            training.say(f"{config.cell} step {number}/{config.steps}: {score:.4f} bits per character on the held-out text")
        run.log(number, **metrics)
        run.checkpoint(number, (params, opt_state, state))

    score = float(bits(params, x_held_out, y_held_out))
    count = sum(a.size for a in jax.tree.leaves(params))
    label = f"{config.cell}{' in blocks' if isinstance(model.rnn, SequenceModel) else ''}, {count:,} parameters"
    training.say(f"\n{label}: {score:.4f} bits per character on the held-out text{per_step(seconds)}")
    return run, nnx.merge(graph, jax.device_get(params), rest), symbols


# Writing ------------------------------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="count")
def generate(model, prompt, key, count, temperature):
    """`count` tokens after those of the prompt (time,), each drawn from softmax(logits / temperature) and read by the next step.

    The Gumbel-max trick draws them: with Gumbel noise times the temperature added, the largest of the logits is such a draw. At
    temperature 0 it is the likeliest, greedy decoding.
    """

    def one(carry, key):
        logits, state = carry
        token = jnp.argmax(logits + temperature * jax.random.gumbel(key, logits.shape))
        return model.step(token, state), token

    logits, state = model(prompt)
    _, tokens = jax.lax.scan(one, (logits[-1], state), jax.random.split(key, count))
    return tokens


def write(model, symbols, config, count, prompt="\n"):
    """`count` characters after those of the prompt."""
    unknown = [character for character in prompt if character not in symbols]
    if unknown or not prompt:
        came = f"{unknown[0]!r}" if unknown else "nothing"
        raise training.Failure(f"--prompt should hold the {len(symbols)} characters that the model knows, got {came}", code=2)
    read = np.array([symbols.index(character) for character in prompt], np.int32)
    tokens = generate(model, read, jax.random.key(config.seed), count, config.temperature)
    return "".join(symbols[token] for token in np.asarray(tokens))


def trained(config):
    """The model of the run in the folder, and the characters that it knows."""
    nothing = training.Failure(f"{config.out} holds no trained run: train one with --out {config.out}", code=2)
    file = Path(config.out) / "config.json"
    try:
        before = Config(**json.loads(file.read_text(encoding="utf-8")), out=config.out)
    except OSError:
        raise nothing from None
    except (TypeError, ValueError):
        raise training.Failure(f"{file} is damaged, or of another script: name another folder with --out", code=2) from None
    symbols, _, _ = load(before)
    model = CharModel(before, len(symbols), rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    with training.open_folder(before) as folder:
        run = training.Run(folder, before.cell, save_every=before.save_every)
        start = model.rnn.initial_state(before.batch_size)
        params, _, _ = run.restore((params, optimizer_of(before).init(params), start))
        if not run.step:
            raise nothing
    return nnx.merge(graph, params, rest), symbols


def write_on(config, words):
    """What `--generate` does: the prompt, and what the trained run writes after it."""
    others = {word.split("=")[0] for word in words if word.startswith("--")}
    others -= {"--generate", "--prompt", "--temperature", "--seed", "--out"}
    if others:
        raise training.Failure(f"--generate takes the run as it was trained: leave out {', '.join(sorted(others))}", code=2)
    model, symbols = trained(config)
    prompt = "\n" if config.prompt is None else config.prompt
    training.say(prompt + write(model, symbols, config, config.generate, prompt))


def train_with_torch(config):
    """Bits per character of PyTorch's layers: the same sizes, text, order, optimiser, clipping and number of steps."""
    import torch

    symbols, learn, held_out = load(config)
    torch.set_num_threads(1)  # no slower at this size, and much faster where others work too
    torch.manual_seed(config.seed)
    embed = torch.nn.Embedding(len(symbols), config.embed_size)
    rnn = getattr(torch.nn, config.cell)(config.embed_size, config.hidden_size, config.num_layers, batch_first=True)
    fc = torch.nn.Linear(config.hidden_size, len(symbols))
    weights = [p for module in (embed, rnn, fc) for p in module.parameters()]
    optimizer = torch.optim.Adam(weights, lr=config.learning_rate)

    def cross_entropy(x, y, state):
        output, state = rnn(embed(torch.as_tensor(x, dtype=torch.long)), state)
        logits, y = fc(output).flatten(0, 1), torch.as_tensor(y, dtype=torch.long).flatten()
        return torch.nn.functional.cross_entropy(logits, y), state

    texts, nexts = streams(learn, config.batch_size)
    stretches, seconds = texts.shape[1] // config.stretch, []
    for number in training.progress(range(1, config.steps + 1), "torch"):
        place = (number - 1) % stretches * config.stretch
        if place == 0:
            state = None
        start = time.process_time()
        loss, state = cross_entropy(*(a[:, place : place + config.stretch] for a in (texts, nexts)), state)
        state = jax.tree.map(lambda s: s.detach(), state)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        seconds.append(time.process_time() - start)
    with torch.no_grad():
        score = cross_entropy(*streams(held_out, 8), None)[0].item() / np.log(2)
    count = sum(p.numel() for p in weights)
    training.say(f"torch.nn.{config.cell}, {count:,} parameters: {score:.4f} bits per character{per_step(seconds)}")
    return score


def plot(run, path):
    metrics = run.metrics()
    steps, losses = metrics["loss"]
    with training.figure(path) as axes:
        axes.plot(steps, losses / np.log(2), lw=0.5, label="training batch")
        axes.plot(*metrics["held_out_bits"], "o-", ms=4, label="held-out text")
        axes.set(xlabel="step", ylabel="bits per character", title=f"{run.name} on Python's documentation")
        axes.legend()


def main(arguments=None):
    config = training.parse(Config, arguments, description=__doc__)
    if config.generate is not None:
        return write_on(config, sys.argv[1:] if arguments is None else arguments)
    if config.prompt is not None:
        raise training.Failure("--prompt should come with --generate", code=2)
    training.require("matplotlib", "jaxrnn[train]")
    if config.compare:
        if config.blocks or config.cell not in LAYERS:
            came = f"{config.cell}{' --blocks' if config.blocks else ''}"
            raise training.Failure(f"--compare should come with --cell {', '.join(LAYERS)} in plain layers, got {came}", code=2)
        training.require("torch", "torch")
    mesh = training.start(config, batch_size=config.batch_size)
    with training.open_folder(config) as folder:
        run, model, symbols = train(config, mesh, folder)
        if training.chief():
            plot(run, folder.path / "loss.png")
            sample = write(model, symbols, config, config.sample)
            training.write_whole(folder.path / "sample.txt", sample)
            training.say(f"\n{sample}\n\nplot, sample and metrics: {config.out}")
    if config.compare and training.chief():
        train_with_torch(config)


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
