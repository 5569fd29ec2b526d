"""Pronounce English words with a trained GRU encoder and decoder: g2p_en's, from the installed package.

    pip install -e . && pip install --no-deps g2p_en==2.1.0
    python scripts/pronounce.py                             # a few words
    python scripts/pronounce.py recurrent network jaxrnn
    python scripts/pronounce.py --check 2000                # the package's own code says the same of all

The words of a batch differ in length: the encoder takes them padded, with `lengths`. The decoder steps
from phoneme to phoneme, greedily, until each word has ended. The weights are PyTorch's, with a bias
within the reset product, which `flax.nnx.GRUCell` could not hold: without it some words come out
otherwise. `--check` compares with the package's own NumPy code, word by word, and fails on a difference.
"""

import argparse
import re
import sys
import time
from importlib import import_module, util
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import GRU
from jaxrnn.interop import from_torch

WORDS = ["recurrent", "network", "pronounce", "phoneme", "jabberwocky", "brillig", "slithy", "toves"]
LONGEST = 20  # phonemes, as in the package
START, END = 2, 3  # phonemes that stand for no sound
UNKNOWN, END_OF_WORD = 1, 2  # letters that are none


class Network(NamedTuple):
    """A pytree of all weights; encoder and decoder are modules."""

    letters: jax.Array
    encoder: GRU
    phonemes: jax.Array
    decoder: GRU
    head_w: jax.Array
    head_b: jax.Array


def package() -> Any:
    """The package's own object, for its tables, weights and NumPy code.

    Importing it asks for NLTK and would fetch corpora; none of that has to do with the network, so it gets stand-ins.
    """
    if util.find_spec("g2p_en") is None:
        sys.exit("This needs the weights of g2p_en: pip install --no-deps g2p_en==2.1.0")
    stubs = {name: ModuleType(name) for name in ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")}
    stubs["nltk"].pos_tag = stubs["nltk"].data = mock.MagicMock()
    stubs["nltk.corpus"].cmudict = mock.MagicMock()
    stubs["nltk.tokenize"].TweetTokenizer = stubs["inflect"].engine = mock.MagicMock()
    with mock.patch.dict(sys.modules, stubs):
        return import_module("g2p_en.g2p").G2p()


def load(weights) -> Network:
    """The network from the arrays of the package's checkpoint."""

    def gru(prefix):
        names = {"weight_ih_l0": "w_ih", "weight_hh_l0": "w_hh", "bias_ih_l0": "b_ih", "bias_hh_l0": "b_hh"}
        return from_torch({key: weights[f"{prefix}_{name}"] for key, name in names.items()})

    return Network(
        jnp.asarray(weights["enc_emb"]), gru("enc"), jnp.asarray(weights["dec_emb"]), gru("dec"),
        jnp.asarray(weights["fc_w"].T), jnp.asarray(weights["fc_b"]),
    )  # fmt: skip


def spell(words: list[str], letters: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Words as letter numbers (words, longest), padded with 0, each with its end; and their lengths."""
    lengths = np.array([len(word) + 1 for word in words], np.int32)
    spelled = np.zeros((len(words), lengths.max()), np.int32)
    for row, word in zip(spelled, words, strict=True):
        row[: len(word) + 1] = [*(letters.get(letter, UNKNOWN) for letter in word), END_OF_WORD]
    return spelled, lengths


@jax.jit
def say(network: Network, spelled, lengths):
    """Phoneme numbers (words, LONGEST); what stands after an END means nothing."""
    _, h_n = network.encoder(network.letters[spelled], lengths=lengths)

    def step(carry, _):
        phoneme, state = carry
        y, state = network.decoder.step(network.phonemes[phoneme], state)
        scores = y @ network.head_w + network.head_b[None]
        phoneme = jnp.argmax(scores, axis=-1)
        return (phoneme, state), phoneme

    first = jnp.full_like(lengths, START)
    _, phonemes = jax.lax.scan(step, (first, h_n), length=LONGEST)
    return phonemes.T


def pronounce(words: list[str], network: Network, letters: dict[str, int], names: dict[int, str]) -> list[list[str]]:
    """The phonemes of every word, all in one batch."""
    found = []
    for row in np.asarray(say(network, *spell(words, letters))):
        length = list(row).index(END) if END in row else len(row)
        found.append([names[int(phoneme)] for phoneme in row[:length]])
    return found


def some_words(count: int) -> list[str]:
    """Different English words, from the documentation that comes with Python."""
    from pydoc_data import topics

    text = " ".join(topics.topics.values()).lower()
    return sorted(set(re.findall(r"\b[a-z]{2,}\b", text)))[:count]


def check(count: int, network: Network, reference) -> int:
    """Compare with the package's own code; the number of words that differ."""
    words = some_words(count)
    pronounce(words, network, reference.g2idx, reference.idx2p)  # compiles
    start = time.perf_counter()
    ours = pronounce(words, network, reference.g2idx, reference.idx2p)
    middle = time.perf_counter()
    theirs = [reference.predict(word) for word in words]
    end = time.perf_counter()
    different = [(w, a, b) for w, a, b in zip(words, ours, theirs, strict=True) if a != b]
    for word, a, b in different[:10]:
        print(f"{word}: {' '.join(a)}; the package says {' '.join(b)}")
    print(f"{len(words) - len(different)} of {len(words)} words as the package says them")
    print(f"{middle - start:.2f} s in one batch, {end - middle:.2f} s in the package, word by word")
    return len(different)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", default=WORDS, help="what to pronounce")
    parser.add_argument("--check", type=int, default=0, metavar="COUNT", help="compare this many words with the package")
    options = parser.parse_args(arguments)

    reference = package()
    network = load(reference.variables)
    words = [word.lower() for word in options.words]
    for word, phonemes in zip(words, pronounce(words, network, reference.g2idx, reference.idx2p), strict=True):
        print(f"{word:15} {' '.join(phonemes)}")
    return 1 if options.check and check(options.check, network, reference) else 0


if __name__ == "__main__":
    sys.exit(main())
