"""Cut Chinese sentences into words and tag them: a bidirectional GRU and a CRF, jieba's, from the installed package.

    pip install -e . && pip install --no-deps jieba==0.42.1
    python scripts/segment.py                               # a few sentences
    python scripts/segment.py 北京大学生前来应聘 --file text.txt
    python scripts/segment.py --check 500                   # the package's equations in NumPy say the same

Sentences of a batch differ in length: two layers in both directions take them padded, with `lengths`, and the Viterbi search of
the CRF ends where each ends. The cell is `ChungGRUCell`: reset before the product, z takes the candidate. jieba runs this model
in Paddle 1.6, which needs Python 3.7; the files are read here without it. `--check` compares with Paddle's equations in NumPy
(`segment_numpy.py`), in float64, and fails if a tag differs, or a score by more than 1e-5 of the largest.
"""

import argparse
import itertools
import random
import struct
import sys
import time
from importlib import util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import segment_numpy

from jaxrnn import ChungGRUCell, Recurrent
from jaxrnn.cells import GateParams
from jaxrnn.interop import from_params

SENTENCES = ["昨天下午李明和王芳在上海图书馆见面", "北京大学生前来应聘", "乒乓球拍卖完了", "他从马上下来"]
SIZE, TOLERANCE = 128, 1e-5  # of the state and of a character's vector; of the largest score
BATCH, STEP = 256, 16  # sentences at once; their padded length is a multiple, so that there are few shapes to compile


# The package's files -------------------------------------------------------------------------------


def package() -> Path:
    """The package's folder; the package itself is not imported."""
    spec = util.find_spec("jieba")
    if spec is None:
        sys.exit("This needs the weights of jieba: pip install --no-deps jieba==0.42.1")
    return Path(spec.origin).parent


def read_tensor(path: Path) -> np.ndarray:
    """An array from a file of Paddle's: versions, the size of a description, the description, the numbers."""
    try:
        data = path.read_bytes()
        *versions, size = struct.unpack_from("<IQIi", data)
        start = struct.calcsize("<IQIi") + size
        fields, value, shift = [], 0, 0
        for byte in data[start - size : start]:  # protobuf: keys and values, seven bits a byte, the last byte below 128
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                fields, value, shift = [*fields, value], 0, 0
        if any(versions) or fields[:2] != [8, 5]:
            raise ValueError(f"versions {versions} and the dtype {fields[1:2]}")
        return np.frombuffer(data, "<f4", offset=start).reshape(fields[3::2])
    except (OSError, ValueError, struct.error) as error:
        sys.exit(f"{path}: there should be an array of Paddle's in float32, got {error}.")


def read_package() -> tuple[dict[str, np.ndarray], dict[str, int], list[str]]:
    """Arrays by name, numbers of characters, names of tags."""
    folder = package() / "lac_small"
    arrays = {path.name: read_tensor(path) for path in sorted((folder / "model_baseline").iterdir())}
    files = [(folder / name).read_text(encoding="utf-8").split("\n") for name in ("word.dic", "tag.dic")]
    characters, tags = ([line.split("\t") for line in lines if line] for lines in files)
    return arrays, {character: int(number) for number, character in characters}, [name for _, name in tags]


# The network ---------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A pytree of all weights; the two layers are a module."""

    vectors: jax.Array
    gru: Recurrent
    head_w: jax.Array
    head_b: jax.Array
    crf: jax.Array  # scores of the first tag, of the last, and of each tag after each


def layers(arrays: dict[str, np.ndarray]) -> list[tuple[GateParams, GateParams]]:
    """The params of both layers, forward and backward: a direction has its input's weights in fc_k, the rest in gru_k."""

    def direction(k):
        # gru_k.w_0 has the shape (128, 384) and holds two blocks, one after the other: of z and r, and of the candidate.
        z_and_r, candidate = np.split(arrays[f"gru_{k}.w_0"].ravel(), [2 * SIZE * SIZE])
        w_hh = np.concatenate([z_and_r.reshape(SIZE, 2, SIZE), candidate.reshape(SIZE, 1, SIZE)], axis=1)
        b_ih, b_hh = (arrays[f"{name}_{k}.b_0"].reshape(3, SIZE) for name in ("fc", "gru"))
        params = GateParams(arrays[f"fc_{k}.w_0"].reshape(-1, 3, SIZE), w_hh, b_ih, b_hh)
        return jax.tree.map(lambda a: a[..., [1, 0, 2], :], params)  # z r n there, r z n here

    return [(direction(0), direction(1)), (direction(2), direction(3))]


def load(arrays: dict[str, np.ndarray]) -> Network:
    vectors, *others = (jnp.asarray(arrays[name]) for name in ("word_emb", "fc_4.w_0", "fc_4.b_0", "crfw"))
    return Network(vectors, from_params(ChungGRUCell(), layers(arrays)), *others)


@jax.jit
def tag(network: Network, sentences, lengths):
    """Padded numbers of characters (batch, time): the score of every tag (batch, time, tags), and the best path (batch, time)."""
    y, _ = network.gru(network.vectors[sentences], lengths=lengths)
    scores = y @ network.head_w + network.head_b[None, None]
    return scores, search(scores, lengths, network.crf)


def search(scores, lengths, crf):
    """The path of tags with the highest sum of scores (batch, time), after Viterbi; what stands after its length means nothing."""
    first, last, move = crf[0], crf[1], crf[2:]
    valid = jnp.arange(scores.shape[1])[:, None, None] < lengths[None, :, None]

    def extend(best, now):  # best (batch, tags): the score of the best path to each tag
        score, valid = now
        paths = best[:, :, None] + move[None]
        came_from = jnp.where(valid, paths.argmax(axis=1), jnp.arange(best.shape[1])[None])
        return jnp.where(valid, paths.max(axis=1) + score, best), came_from

    def back(tag, came_from):
        return jnp.take_along_axis(came_from, tag[:, None], axis=1)[:, 0], tag

    by_time = scores.swapaxes(0, 1)
    best, came_from = jax.lax.scan(extend, first[None] + by_time[0], (by_time[1:], valid[1:]))
    begin, path = jax.lax.scan(back, jnp.argmax(best + last[None], axis=1), came_from, reverse=True)
    return jnp.concatenate([begin[None], path]).T


def spell(sentences: list[str], characters: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Sentences as numbers of characters, padded with 0, and their lengths."""
    lengths = np.array([len(sentence) for sentence in sentences], np.int32)
    spelled = np.zeros((len(sentences), -(-lengths.max() // STEP) * STEP), np.int32)
    for row, sentence in zip(spelled, sentences, strict=True):
        row[: len(sentence)] = [characters.get(character, characters["OOV"]) for character in sentence]
    return spelled, lengths


def words(sentence: str, tags: list[str]) -> list[tuple[str, str]]:
    """Words and their tags: a word begins at every tag with -B, and at an O after another tag."""
    found = []
    for k, (character, name) in enumerate(zip(sentence, tags, strict=True)):
        if k == 0 or name.endswith("-B") or (name == "O" != tags[k - 1]):
            found.append(("", name.split("-")[0]))
        found[-1] = (found[-1][0] + character, found[-1][1])
    return found


def segment(sentences: list[str], network: Network, characters: dict[str, int], tags: list[str]) -> list[list[tuple[str, str]]]:
    """Words and tags of every sentence."""
    found = []
    for k in range(0, len(sentences), BATCH):
        batch = sentences[k : k + BATCH]
        _, paths = tag(network, *spell(batch, characters))
        for sentence, path in zip(batch, np.asarray(paths), strict=True):
            found.append(words(sentence, [tags[number] for number in path[: len(sentence)]]))
    return found


# The program ---------------------------------------------------------------------------------------


def some_sentences(count: int) -> list[str]:
    """Strings of 1 to 20 words of the package's dictionary, the frequent ones more often, with signs that it does not know."""
    lines = (package() / "dict.txt").read_text(encoding="utf-8").split("\n")
    known, often, _ = zip(*(line.split(" ") for line in lines if line), strict=True)
    draw, often = random.Random(0), list(itertools.accumulate(map(int, often)))
    drawn = (draw.choices(known, cum_weights=often, k=draw.randint(1, 20)) for _ in range(count))
    return ["".join(word + draw.choice(["", "", "，", "𠮷"]) for word in some) for some in drawn]


def check(count: int, network: Network, arrays: dict[str, np.ndarray], characters: dict[str, int]) -> bool:
    """Whether NumPy finds the same tags and scores."""
    spelled, lengths = spell(some_sentences(count), characters)
    jax.block_until_ready(tag(network, spelled, lengths))  # compiles
    start = time.perf_counter()
    scores, paths = map(np.asarray, tag(network, spelled, lengths))
    middle = time.perf_counter()
    theirs = [segment_numpy.score(arrays, numbers[:length]) for numbers, length in zip(spelled, lengths, strict=True)]
    their_paths = [segment_numpy.decode(score, arrays["crfw"].astype(float)) for score in theirs]
    end = time.perf_counter()
    different = sum(list(path[: len(want)]) != want for path, want in zip(paths, their_paths, strict=True))
    difference = max(np.abs(score[: len(want)] - want).max() for score, want in zip(scores, theirs, strict=True))
    difference /= max(np.abs(want).max() for want in theirs)
    print(f"{count - different} of {count} sentences tagged as NumPy does; scores differ by {difference:.1e} of the largest")
    print(f"{middle - start:.2f} s in one batch, {end - middle:.2f} s in NumPy, sentence by sentence")
    return not different and difference < TOLERANCE


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentences", nargs="*", help="what to cut into words")
    parser.add_argument("--file", type=Path, help="a text file with more, one on each line")
    parser.add_argument("--check", type=int, default=0, metavar="COUNT", help="compare this many sentences with NumPy")
    options = parser.parse_args(arguments)

    lines = list(options.sentences or ([] if options.file else SENTENCES))
    try:
        lines += options.file.read_text(encoding="utf-8").splitlines() if options.file else []
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"{options.file}: there should be text in UTF-8, got {error}.")
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        sys.exit(f"{options.file or 'segment'}: there should be a sentence, got none.")
    arrays, characters, tags = read_package()
    network = load(arrays)
    for found in segment(sentences, network, characters, tags):
        print("  ".join(f"{word}/{name}" for word, name in found))
    return 0 if not options.check or check(options.check, network, arrays, characters) else 1


if __name__ == "__main__":
    sys.exit(main())
