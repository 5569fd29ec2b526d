"""Networks that others trained, from their installed packages: the scripts give what the packages give."""

import json
import wave
from importlib import util

import jax
import jax.numpy as jnp
import numpy as np
import pronounce
import pytest
import speech_activity

needs_silero = pytest.mark.skipif(util.find_spec("silero_vad") is None, reason="pip install --no-deps silero-vad")
needs_g2p = pytest.mark.skipif(util.find_spec("g2p_en") is None, reason="pip install --no-deps g2p_en")


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


@pytest.mark.parametrize(("script", "package"), [(speech_activity, "silero-vad"), (pronounce, "g2p_en")])
def test_a_missing_package_is_named(script, package, monkeypatch):
    monkeypatch.setattr(script.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=f"pip install --no-deps {package}"):
        script.main([])


@needs_silero
def test_the_stream_gives_what_the_whole_gives():
    """Frame by frame through `step`, and all frames at once through the module."""
    network = speech_activity.load(speech_activity.model_path())
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 1, 128)), jnp.float32)
    whole, _ = jax.jit(lambda lstm, x: lstm(x))(network.lstm, x)
    state, step = None, jax.jit(lambda lstm, x, state: lstm.step(x, state))
    for x_t, y in zip(x, whole, strict=True):
        got, state = step(network.lstm, x_t, state)
        np.testing.assert_allclose(got, y, atol=1e-6)
