"""Text: what a character model writes, and what `scripts/train_chars.py` writes with the trained run of a folder."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train_chars
import train_regression
import training
from flax import nnx
from scipy import stats
from support import drawn_like

from jaxrnn.cells import CELLS
from jaxrnn.runs import load_run
from jaxrnn.text import CharModel, _write

SYMBOLS = "\nabcdefghij"
TINY = "--characters 4000 --embed-size 4 --hidden-size 9 --batch-size 6 --length 7 --steps 80 --learning-rate 3e-2 --sample 30"


def make(cell="GRU", symbols=SYMBOLS, blocks=False, scale=0.8):
    """A model with random weights, biases included, large enough that what it expects depends on what it read."""
    model = CharModel(symbols, CELLS[cell](), 3, 7, num_layers=2, blocks=blocks, rngs=nnx.Rngs(0))
    nnx.update(model, drawn_like(nnx.state(model, nnx.Param), scale=scale))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN", "LSTM blocks", "LRU blocks", "RGLRU blocks", "ParaLSTM blocks"])
def test_each_character_is_the_likeliest_after_all_before_it(cell):
    """At temperature 0, and with the same noise above it: all that was read and written is read again for each character."""
    model, prompt, count, key = make(cell.split()[0], blocks="blocks" in cell), "cadae", 20, jax.random.key(0)
    noise = [np.asarray(jax.random.gumbel(k, (len(SYMBOLS),))) for k in jax.random.split(key, count)]
    whole = jax.jit(lambda model, tokens: model(tokens)[0])
    for temperature in (0.0, 2.0):
        written = model.generate(prompt, count, temperature=temperature, key=key)
        tokens = np.concatenate([model.encode(prompt), np.zeros(count, int)])
        for place in range(count):
            logits = np.asarray(whole(model, tokens))[len(prompt) + place - 1]  # which what comes later does not change
            tokens[len(prompt) + place] = (logits + temperature * noise[place]).argmax()
        assert written == model.decode(tokens[len(prompt) :])
    assert len(set(written)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_characters_are_drawn_with_their_probabilities_at_a_temperature(temperature):
    """The first two, 30,000 times: each pair as often as softmax(logits / temperature) of the one and, after it, the other says."""
    model, draws, prompt = make(symbols="abcd"), 30_000, jnp.array([2, 0, 1])
    keys = jax.random.split(jax.random.key(1), draws)
    first, second = jax.vmap(lambda key: _write(model, prompt, key, 2, temperature)[0])(keys).T
    counts = np.zeros((4, 4))
    np.add.at(counts, (np.asarray(first), np.asarray(second)), 1)
    after = jnp.concatenate([jnp.tile(prompt, (4, 1)), jnp.arange(4)[:, None]], axis=1)
    expected = jax.nn.softmax(model(prompt)[0][-1] / temperature)[:, None] * jax.nn.softmax(model(after)[0][:, -1] / temperature)
    expected = np.asarray(expected, np.float64)
    expected *= draws / expected.sum()
    assert expected.min() > 5
    assert stats.chisquare(counts.ravel(), expected.ravel()).pvalue > 1e-3


def test_another_temperature_or_key_compiles_nothing():
    """Nor does another model of the same sizes."""
    before = _write._cache_size()
    texts = {make(scale=0.5 + seed).generate("cab", 9, temperature=0.7 * seed, key=jax.random.key(seed)) for seed in range(4)}
    assert len(texts) == 4
    assert _write._cache_size() == before + 1


@pytest.mark.parametrize(
    ("prompt", "count", "options", "error", "message"),
    [
        ("", 3, {}, ValueError, "`prompt` should hold at least one character, got none"),
        ("abba x", 3, {}, ValueError, "`prompt` should hold the 11 characters of the model only, got ' '"),
        (b"ab", 3, {}, TypeError, "`prompt` should be a text, got bytes"),
        ("ab", 0, {}, ValueError, "`count` should be at least 1, got 0"),
        ("ab", 3.0, {}, TypeError, "`count` should be an integer, got 3.0"),
        ("ab", 3, {"temperature": -0.1}, ValueError, "`temperature` should be at least 0 and finite, got -0.1"),
        ("ab", 3, {"temperature": float("nan")}, ValueError, "`temperature` should be at least 0 and finite, got nan"),
        ("ab", 3, {"temperature": "hot"}, TypeError, "`temperature` should be a number, got 'hot'"),
        ("ab", 3, {}, TypeError, r"`key` should be a key, got None. Write jax.random.key\(0\)"),
        ("ab", 3, {"key": 0}, TypeError, "`key` should be a key, got int"),
        ("ab", 3, {"seed": 0}, TypeError, "got `seed`.\nIt is called `key` here"),
        ("ab", 3, {"length": 0}, TypeError, "arguments should be among .* got `length`"),
    ],
)
def test_wrong_arguments_are_named(prompt, count, options, error, message):
    with pytest.raises(error, match=f"CharModel.generate: .*{message}"):
        make().generate(prompt, count, **options)


def test_a_model_that_has_diverged_writes_nothing():
    model = make()
    model.fc.bias.set_value(model.fc.bias.get_value().at[3].set(jnp.nan))
    with pytest.raises(ValueError, match=r"generate: the logits should be numbers, got NaN for character 0\. Has the training div"):
        model.generate("ab", 3, temperature=0)


# The script -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def train():
    """The script; it trains under Optax's promotion of dtypes, not under the tests' strict one."""
    with jax.numpy_dtype_promotion("standard"):
        yield train_chars.main


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--cell LSTM", "--cell LRU"])
def test_a_trained_run_writes_on(words, train, tmp_path, capsys):
    """By its folder alone: what it wrote when it had been trained, then something else for another seed or prompt."""
    out = tmp_path / "run"
    train([*TINY.split(), *words.split(), "--temperature", "0.6", "--out", str(out)])
    sample, kept = next(out.glob("*/sample.txt")).read_text(), files(out)

    def written(*words):
        capsys.readouterr()
        train(["--generate", "30", "--temperature", "0.6", *words, "--out", str(out)])
        return capsys.readouterr().out.removesuffix("\n")

    assert len(sample) == 30
    assert written() == "\n" + sample
    assert written("--seed", "1") != "\n" + sample
    assert written("--seed", "1", "0") == written("--seed", "1") + "\n\n" + sample
    prompted = written("--prompt", "def ", "--seed", "7")
    assert prompted == "def " + load_run(out).model.generate("def ", 30, temperature=0.6, key=jax.random.key(7))
    assert written("--temperature", "0", "--seed", "1") == written("--temperature", "0")
    assert files(out) == kept


@pytest.mark.slow
def test_what_cannot_be_written_is_refused_in_a_line(train, tmp_path):
    out = tmp_path / "run"
    train([*TINY.split(), "--cell", "gru", "rnn", "--out", str(out)])
    kept = files(out)

    def refused(*words, folder=out / "GRU-0"):
        with pytest.raises(training.Failure) as failure:
            train([*words, "--out", str(folder)])
        assert failure.value.code == 2
        assert "load_run" not in str(failure.value)
        return str(failure.value)

    said = r"--prompt should hold the \d\d characters of the model only, got 'é'\."
    assert re.fullmatch(said, refused("--generate", "9", "--prompt", "café"))
    assert "--prompt should hold at least one character, got none." in refused("--generate", "9", "--prompt", "")
    assert "--prompt should come with --generate" in refused("--prompt", "a")
    said = "--generate takes the run as it was trained: leave out --blocks, --cell"
    assert said in refused("--generate", "9", "--cell", "GRU", "--blocks")
    said = f"--out should hold one run, got {out}, which holds 2.\nName one: {out / 'GRU-0'}, {out / 'RNN-0'}."
    assert refused("--generate", "9", folder=out) == said
    nowhere = tmp_path / "nowhere"
    assert f"--out should be the folder of a run, got '{nowhere}', which is not there." in refused(
        "--generate", "9", folder=nowhere
    )
    assert not nowhere.exists()
    assert files(out) == kept

    train_regression.main(["--cell", "rnn", "--hidden-size", "3", "--epochs", "3", "--out", str(tmp_path / "other")])
    said = f"--out should be a run of this script, got {tmp_path / 'other'}, whose model is a RNNModel."
    assert refused("--generate", "9", folder=tmp_path / "other") == said


@pytest.mark.slow
def test_own_texts_are_trained_on_and_kept_with_the_run(train, tmp_path, capsys):
    """In UTF-8, joined; they may be moved, but not changed; a text without a line end has a sample too."""
    one, two, moved, out = (tmp_path / name for name in ("one.txt", "two.txt", "moved.txt", "run"))
    one.write_bytes("\ufeff".encode() + "Über allen Gipfeln".encode())
    two.write_bytes(b"ist Ruh,\r\n" * 20)
    words = "--cell gru --embed-size 2 --hidden-size 3 --batch-size 3 --length 7 --steps 2 --sample 11"
    tiny = [*words.split(), "--out"]
    train(["--text", str(one), str(two), *tiny, str(out)])
    model, kept = load_run(out).model, files(out)
    assert model.symbols == "".join(sorted(set("Über allen Gipfeln\nist Ruh,\n")))
    assert len(model.generate("Über", 5, temperature=0)) == 5
    one.rename(moved)
    train(["--text", str(moved), str(two), *tiny, str(out)])
    assert "trained already" in capsys.readouterr().out
    two.write_bytes(b"ist Ruh.\r\n" * 20)
    said = r"another configuration:\n    text: \['199 characters, SHA-256 \w+'\] before, \['199 characters, SHA-256 \w+'\] now"
    with pytest.raises(training.Failure, match=said):
        train(["--text", str(moved), str(two), *tiny, str(out)])
    assert {name: file for name, file in files(out).items() if "run" not in name.name} == kept
    two.write_text("no line end, " * 20)
    train(["--text", str(two), *tiny, str(tmp_path / "line")])
    assert len((tmp_path / "line/GRU-0/sample.txt").read_text(encoding="utf-8")) == 11


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read .*a\.txt: No such file"),
        (b" \n", r"a\.txt is empty"),
        ("Übergang".encode("latin-1"), r"cannot read .*a\.txt: it is not UTF-8 text: save it as UTF-8"),
        (b"a" * 2276, "the text has 2276 characters: --batch-size 32 and --length 64 need 2277"),
    ],
)
def test_a_text_that_cannot_be_used_is_refused_in_a_line(content, message, tmp_path):
    path, out = tmp_path / "a.txt", tmp_path / "run"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(training.Failure, match=message) as failure:
        train_chars.main(["--text", str(path), "--out", str(out)])
    assert failure.value.code == 2
    assert not out.exists()


@pytest.mark.parametrize("words", ["--temperature -0.1", "--temperature hot", "--generate 0"])
def test_a_temperature_below_0_and_no_characters_are_refused(words, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train_chars.main([*words.split(), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert words.split()[0] in err
    assert f"got '{words.split()[1]}'" in err
