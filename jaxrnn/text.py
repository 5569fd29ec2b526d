"""Models of text, and how they write. No data and no training may live here."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxrnn import checks
from jaxrnn.cells import Cell
from jaxrnn.models import SequenceModel
from jaxrnn.nnx import Recurrent
from jaxrnn.synonyms import ClassSignature, checked
from jaxrnn.typing import ArrayLike, BatchShape, Tokens


class CharModel(nnx.Module):
    """A language model of characters: embedding, recurrent layers, linear head; the logits of the next character.

    Args:
        symbols: the characters that the model knows, each once; token k stands for `symbols[k]`.
        cell: the recurrence, see `jaxrnn.cells.CELLS`.
        embed_size: width of a character's embedding.
        hidden_size: width of the hidden state.
        num_layers: recurrent layers.
        blocks: put the layers into the residual blocks of `SequenceModel`, which stacks of linear cells need.
        rngs: the source of the parameters, such as `nnx.Rngs(0)`; required.

    Attributes:
        symbols: the characters.
        embed: an `nnx.Embed`. rnn: a `Recurrent`, or with `blocks` a `SequenceModel`, which has its head within.
        fc: the head, an `nnx.Linear`; None with `blocks`.

    Raises:
        ValueError: a character is twice among the symbols. TypeError: an argument is of the wrong kind.

    Example:
        >>> import jax
        >>> from flax import nnx
        >>> from jaxrnn import GRUCell
        >>> from jaxrnn.text import CharModel
        >>> model = CharModel("\\n abc", GRUCell(), embed_size=4, hidden_size=8, rngs=nnx.Rngs(0))
        >>> logits, state = model(model.encode("a cab")[None])
        >>> logits.shape
        (1, 5, 5)
        >>> logits, state = model.step(model.encode("a")[0], model.initial_state())
        >>> model.decode([2, 1, 4])
        'a c'
        >>> len(model.generate("cab", 10, temperature=0.5, key=jax.random.key(0)))
        10
    """

    __signature__ = ClassSignature()

    @checked()
    def __init__(
        self,
        symbols: str,
        cell: Cell,
        embed_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        blocks: bool = False,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        if not isinstance(symbols, str):
            raise TypeError(f"{name}: `symbols` should be a text, got {checks.called(symbols)}. Write ''.join(symbols).")
        twice = [symbol for symbol in symbols if symbols.count(symbol) > 1]
        if twice or not symbols:
            came = f"{twice[0]!r} {symbols.count(twice[0])} times" if twice else "none"
            raise ValueError(f"{name}: `symbols` should hold at least one character, and each once, got {came}.")
        checks.size(name, "embed_size", embed_size)
        checks.flag(name, "blocks", blocks)
        if not isinstance(rngs, nnx.Rngs):
            raise TypeError(f"{name}: `rngs` should be an nnx.Rngs, got {checks.called(rngs)}. Write rngs=nnx.Rngs(0).")
        self.symbols, self.blocks = symbols, blocks
        # As PyTorch's: Flax draws embeddings so much smaller that a short training does not make up for it.
        self.embed = nnx.Embed(len(symbols), embed_size, embedding_init=jax.nn.initializers.normal(1.0), rngs=rngs)
        layers = {"num_layers": num_layers, "rngs": rngs}
        self.rnn: Any
        self.fc: Any
        if blocks:
            self.rnn = SequenceModel(cell, embed_size, hidden_size, len(symbols), **layers)
            self.fc = None  # the blocks have a linear layer of their own behind them
        else:
            self.rnn = Recurrent(cell, embed_size, hidden_size, **layers)
            self.fc = nnx.Linear(self.rnn.stack.output_size, len(symbols), rngs=rngs)

    @checked()
    def __call__(self, tokens: Tokens, *, state: Any = None) -> tuple[Array, Any]:
        """Logits (batch, time, symbols) of what follows each of the tokens (batch, time), and the state to go on from.

        Args:
            tokens: numbers of characters, see `encode`.
            state: where to start, as a call or a step returned it; `None` means the initial state.

        Raises:
            ValueError: a token stands for no character of the model. TypeError: tokens are not integers.
        """
        x = self.embed(jnp.asarray(self._known(type(self).__name__, "tokens", tokens)))
        if self.blocks:
            return self.rnn(x, state=state, return_state=True)
        output, state = self.rnn(x, h_0=state)
        return self.fc(output), state

    @checked()
    def step(self, token: Tokens, state: Any = None) -> tuple[Array, Any]:
        """Read one character of each row: tokens (batch,), or a single one, give (logits, state)."""
        x = self.embed(jnp.asarray(self._known(f"{type(self).__name__}.step", "token", token)))
        output, state = self.rnn.step(x, state)
        return (output if self.blocks else self.fc(output)), state

    @checked()
    def initial_state(self, batch_shape: BatchShape = ()) -> Any:
        """See `jaxrnn.Recurrent.initial_state`."""
        return self.rnn.initial_state(batch_shape)

    @checked()
    def generate(self, prompt: str, count: int, *, temperature: float = 1.0, key: ArrayLike | None = None) -> str:
        """Continue a prompt, character by character, each drawn from softmax(logits / temperature).

        The prompt is read in one call; the state that it leaves is then carried through a `lax.scan` of `step`. The program is
        compiled once for each length of the prompt and each `count`.

        Args:
            prompt: the text to continue, at least one character.
            count: how many characters to write.
            temperature: 1 draws with the model's own probabilities, less keeps to what is likely, and 0 always takes the
                likeliest (greedy decoding).
            key: the source of the draws, from `jax.random.key`; not needed at temperature 0.

        Returns:
            What follows the prompt, `count` characters.

        Raises:
            ValueError: the prompt is empty or holds a character that the model does not know; `count` is below 1;
                `temperature` is below 0 or not finite; or the logits are NaN. TypeError: an argument is of the wrong kind.
        """
        name = f"{type(self).__name__}.generate"
        tokens = self._tokens(name, "prompt", prompt)
        if not prompt:
            raise ValueError(f"{name}: `prompt` should hold at least one character, got none.")
        checks.size(name, "count", count)
        checks.number(name, "temperature", temperature)
        if not 0 <= temperature < float("inf"):  # also False for NaN
            raise ValueError(f"{name}: `temperature` should be at least 0 and finite, got {temperature}.")
        if temperature > 0 or key is not None:
            checks.prng_key(name, key)
        key = jax.random.key(0) if key is None else key
        written, numbers = _write(self, tokens, key, int(count), float(temperature))
        if not numbers.all():
            place = int(np.argmin(numbers))
            raise ValueError(f"{name}: the logits should be numbers, got NaN for character {place}. Has the training diverged?")
        return self.decode(written)

    @checked()
    def encode(self, text: str) -> np.ndarray:
        """The tokens of a text, (time,).

        Raises:
            ValueError: the model does not know a character.
        """
        return self._tokens(f"{type(self).__name__}.encode", "text", text)

    @checked()
    def decode(self, tokens: Tokens) -> str:
        """The text of tokens (time,).

        Raises:
            ValueError: a token is none of the model's characters, or tokens have another shape. TypeError: they are no integers.
        """
        name = f"{type(self).__name__}.decode"
        numbers = self._known(name, "tokens", tokens)
        if numbers.ndim != 1:
            raise ValueError(f"{name}: `tokens` should have shape (time,), got {numbers.shape}.")
        return "".join(self.symbols[number] for number in np.asarray(numbers))

    def _tokens(self, name: str, argument: str, text) -> np.ndarray:
        if not isinstance(text, str):
            raise TypeError(f"{name}: `{argument}` should be a text, got {checks.called(text)}.")
        number = {symbol: k for k, symbol in enumerate(self.symbols)}
        unknown = next((symbol for symbol in text if symbol not in number), None)
        if unknown is not None:
            known = f"the {len(self.symbols)} characters of the model"
            raise ValueError(f"{name}: `{argument}` should hold {known} only, got {unknown!r}.")
        return np.array([number[symbol] for symbol in text], np.int32)

    def _known(self, name: str, argument: str, tokens) -> Any:
        """Tokens as an array; those that can be seen are characters of the model."""
        tokens = np.asarray(tokens) if isinstance(tokens, np.generic) else tokens
        tokens, count = checks.integers(name, argument, tokens), len(self.symbols)
        if checks.concrete(tokens):
            values = np.asarray(tokens)
            wrong = values[(values < 0) | (values >= count)]
            if wrong.size:
                raise ValueError(f"{name}: `{argument}` should be from 0 to {count - 1}, the model's characters, got {wrong[0]}.")
        return tokens


@partial(jax.jit, static_argnames="count")
def _write(model, prompt, key, count, temperature):
    """The tokens (count,) that follow those of the prompt (time,), and for each whether the logits were numbers.

    The Gumbel-max trick: the largest of the logits + temperature · Gumbel noise is a draw from softmax(logits / temperature). At
    temperature 0 it is the likeliest.
    """

    def one(carry, key):
        logits, state = carry
        noise = jax.random.gumbel(key, logits.shape, jnp.promote_types(logits.dtype, jnp.float32))
        token = jnp.argmax(logits.astype(noise.dtype) + temperature * noise)
        return model.step(token, state), (token, ~jnp.isnan(logits).any())

    logits, state = model(prompt)
    return jax.lax.scan(one, (logits[-1], state), jax.random.split(key, count))[1]
