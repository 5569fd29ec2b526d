"""The character model: its equations, and its characters."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import unannotated

import jaxrnn
from jaxrnn.text import CharModel

SYMBOLS = "\n abc"


def make(**options):
    return CharModel(SYMBOLS, jaxrnn.GRUCell(), 3, 4, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("blocks", [False, True])
def test_it_is_an_embedding_layers_and_a_head(blocks):
    model = make(num_layers=2, blocks=blocks)
    tokens = np.array([[4, 1, 2], [0, 3, 3]])
    logits, state = model(tokens)
    embedded = model.embed.embedding.get_value()[tokens]
    if blocks:
        wanted, end = model.rnn(embedded, return_state=True)
        assert model.fc is None
    else:
        output, end = model.rnn(embedded)
        wanted = output @ model.fc.kernel.get_value() + model.fc.bias.get_value()
    np.testing.assert_allclose(logits, wanted, rtol=1e-6)
    np.testing.assert_array_equal(jnp.stack(state), jnp.stack(end))
    assert np.abs(np.asarray(logits)).min() > 0
    begun = model(tokens[:, :2])[1]
    np.testing.assert_allclose(model(tokens[:, 2:], state=begun)[0][:, 0], logits[:, 2], atol=1e-6)
    later, _ = model.step(tokens[:, 2], begun)
    np.testing.assert_allclose(later, logits[:, 2], atol=1e-6)
    first, _ = model.step(4, model.initial_state())
    np.testing.assert_allclose(first, logits[0, 0], atol=1e-6)


def test_text_becomes_tokens_and_text_again():
    model = make()
    tokens = model.encode("cab a\n")
    assert (tokens.tolist(), tokens.dtype) == ([4, 2, 3, 1, 2, 0], np.int32)
    assert model.decode(jnp.asarray(tokens)) == "cab a\n"
    assert (model.encode("").shape, model.decode([])) == ((0,), "")
    with pytest.raises(ValueError, match=r"CharModel.encode: `text` should hold the 5 characters of the model only, got 'x'\."):
        model.encode("ax")


def test_tokens_that_are_no_characters_are_refused():
    model = make()
    with pytest.raises(ValueError, match=r"CharModel: `tokens` should be from 0 to 4, the model's characters, got 5\."):
        model(np.array([[0, 5]]))
    with pytest.raises(ValueError, match=r"CharModel.step: `token` should be from 0 to 4, the model's characters, got -1\."):
        model.step(-1)
    with pytest.raises(TypeError, match="CharModel: `tokens` should be an integer array, got dtype float32"):
        model(np.ones((1, 2), np.float32))
    with pytest.raises(
        TypeError, match=r"CharModel: arguments should be given by name, all but tokens, got 2 by .*\nWrite state=…"
    ):
        model(np.array([[0, 1]]), model.initial_state(1))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([-1], ValueError, "should be from 0 to 4, the model's characters, got -1"),
        (np.array([0, 99]), ValueError, "should be from 0 to 4, the model's characters, got 99"),
        ([1.7], TypeError, "should be an integer array, got dtype float64"),
        ("ab", TypeError, "should be an array, got str"),
        ([[0, 1]], ValueError, r"should have shape \(time,\), got \(1, 2\)"),
        (3, ValueError, r"should have shape \(time,\), got \(\)"),
    ],
)
def test_tokens_that_are_no_characters_are_no_text(tokens, error, message):
    with unannotated(), pytest.raises(error, match=f"CharModel.decode: `tokens` {message}"):
        make().decode(tokens)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"symbols": "aba"}, ValueError, "`symbols` should hold at least one character, and each once, got 'a' 2 times"),
        ({"symbols": ""}, ValueError, "`symbols` should hold at least one character, and each once, got none"),
        ({"symbols": ["a", "b"]}, TypeError, r"`symbols` should be a text, got list. Write ''.join\(symbols\)"),
        ({"embed_size": 0}, ValueError, "`embed_size` should be at least 1, got 0"),
        ({"blocks": 1}, TypeError, "`blocks` should be True or False, got 1"),
        ({"rngs": None}, TypeError, r"`rngs` should be an nnx.Rngs, got None. Write rngs=nnx.Rngs\(0\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    usual = {"symbols": "ab", "cell": jaxrnn.GRUCell(), "embed_size": 2, "hidden_size": 3, "rngs": nnx.Rngs(0)}
    with pytest.raises(error, match=f"CharModel: {message}"):
        CharModel(**(usual | arguments))
