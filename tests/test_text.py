"""Text: what `scripts/train_chars.py` writes with a model, and with the trained run of a folder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_chars
from flax import nnx
from scipy import stats
from support import drawn_like

from jaxrnn import training

SYMBOLS = 11
TINY = "--characters 4000 --embed-size 4 --hidden-size 9 --batch-size 6 --stretch 7 --steps 80 --learning-rate 3e-2 --sample 30"


@pytest.fixture(autouse=True)
def promotion():
    """Optax mixes dtypes, so what trains does without strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def model_of(words, symbols=SYMBOLS):
    """A model with random weights, biases included, large enough that what it expects depends on what it read."""
    words = f"--embed-size 3 --hidden-size 7 --num-layers 2 {words}"
    config = training.parse(train_chars.Config, words.split(), description="Test.")
    model = train_chars.CharModel(config, symbols, rngs=nnx.Rngs(0))
    nnx.update(model, drawn_like(nnx.state(model, nnx.Param), scale=0.8))
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["--cell LSTM", "--cell GRU", "--cell RNN", "--cell LSTM --blocks", "--cell LRU", "--cell RGLRU", "--cell ParaLSTM", "--cell MinGRU"],
)
def test_each_character_is_the_likeliest_after_all_before_it(words):
    """At temperature 0, and with the same noise above it: the whole of what was read and written is read again for each."""
    model, prompt, count, key = model_of(words), np.array([3, 1, 4, 1, 5]), 20, jax.random.key(0)
    noise = [np.asarray(jax.random.gumbel(k, (SYMBOLS,))) for k in jax.random.split(key, count)]
    whole = jax.jit(lambda model, tokens: model(tokens)[0])
    for temperature in (0.0, 4.0):
        written = train_chars.generate(model, prompt, key, count, temperature)
        tokens = np.concatenate([prompt, np.zeros(count, int)])
        for place in range(count):
            logits = np.asarray(whole(model, tokens))[len(prompt) + place - 1]  # which what comes later does not change
            tokens[len(prompt) + place] = (logits + temperature * noise[place]).argmax()
        np.testing.assert_array_equal(written, tokens[len(prompt) :])
    assert len(set(written.tolist())) > 4


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_characters_are_drawn_with_their_probabilities_at_a_temperature(temperature):
    """The first two, 30,000 times: each pair as often as softmax(logits / temperature) of the one and, after it, the other says."""
    symbols, draws, prompt = 4, 30_000, jnp.array([2, 0, 1])
    model = model_of("--cell GRU", symbols)
    keys = jax.random.split(jax.random.key(1), draws)
    first, second = jax.vmap(lambda key: train_chars.generate(model, prompt, key, 2, temperature))(keys).T
    counts = np.zeros((symbols, symbols))
    np.add.at(counts, (np.asarray(first), np.asarray(second)), 1)
    after = jnp.concatenate([jnp.tile(prompt, (symbols, 1)), jnp.arange(symbols)[:, None]], axis=1)
    expected = jax.nn.softmax(model(prompt)[0][-1] / temperature)[:, None] * jax.nn.softmax(model(after)[0][:, -1] / temperature)
    expected = np.asarray(expected, np.float64)
    expected *= draws / expected.sum()
    assert expected.min() > 5
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-3


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--cell LSTM", "--cell GRU --blocks", "--cell LRU"])
def test_a_trained_run_writes_on(words, tmp_path, capsys):
    """By its folder alone: what it wrote when it had been trained, then something else for another seed or prompt."""
    out = tmp_path / "run"
    train_chars.main([*TINY.split(), *words.split(), "--temperature", "0.6", "--out", str(out)])
    sample, kept = (out / "sample.txt").read_text(), files(out)

    def written(*words):
        capsys.readouterr()
        train_chars.main(["--generate", "30", "--temperature", "0.6", *words, "--out", str(out)])
        return capsys.readouterr().out.split(": going on after step 80\n")[-1].removesuffix("\n")

    assert len(sample) == 30
    assert written() == "\n" + sample
    assert written("--seed", "1") != "\n" + sample
    prompted = written("--prompt", "def ")
    assert prompted.startswith("def ")
    assert len(prompted) == 34
    assert prompted[4:] != sample
    assert written("--temperature", "0", "--seed", "1") == written("--temperature", "0")
    assert files(out) == kept


@pytest.mark.slow
def test_what_cannot_be_written_is_refused_in_a_line(tmp_path):
    out = tmp_path / "run"
    train_chars.main([*TINY.split(), "--out", str(out)])

    def refused(*words, folder=out):
        with pytest.raises(training.Failure) as failure:
            train_chars.main([*words, "--out", str(folder)])
        assert failure.value.code == 2
        assert "\n" not in str(failure.value)
        return str(failure.value)

    said = r"--prompt should hold the \d\d characters that the model knows, got 'é'"
    assert re.fullmatch(said, refused("--generate", "9", "--prompt", "café"))
    assert "got nothing" in refused("--generate", "9", "--prompt", "")
    assert "--prompt should come with --generate" in refused("--prompt", "a")
    said = "--generate takes the run as it was trained: leave out --blocks, --cell"
    assert said in refused("--generate", "9", "--cell", "GRU", "--blocks")
    nowhere = tmp_path / "nowhere"
    assert f"{nowhere} holds no trained run: train one with --out {nowhere}" in refused("--generate", "9", folder=nowhere)
    assert not nowhere.exists()


@pytest.mark.parametrize("words", ["--temperature -0.1", "--temperature hot", "--generate 0"])
def test_a_temperature_below_0_and_no_characters_are_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_chars.main([*words.split(), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert words.split()[0] in err
    assert f"got '{words.split()[1]}'" in err
