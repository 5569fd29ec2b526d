"""Find speech in a WAV file with a trained LSTM: Silero VAD's, from the installed package, frame by frame.

    pip install -e '.[train,interop]' onnxruntime && pip install --no-deps silero-vad==6.2.3
    python scripts/speech_activity.py                       # a signal made up here: vowels between noise
    python scripts/speech_activity.py --wav talk.wav --out runs/talk

Every 32 ms of sound goes through a short-time Fourier transform, four convolutions and one step of the
LSTM, which is read from the package's ONNX file with `from_onnx` and streamed with `step`. Where
onnxruntime is installed, it runs the same file, and the probabilities must agree to 1e-5.

Writes `speech.json` and, with matplotlib, `speech.png` to the output folder.
"""

import argparse
import json
import sys
import time
import wave
from importlib import util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import LSTM
from jaxrnn.interop import from_onnx

RATE, FRAME, CONTEXT, WINDOW = 16000, 512, 64, 256  # samples: per second, new, from before, of the transform
TOLERANCE = 1e-5


# The network ---------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A pytree of all weights; the LSTM is a module, the rest are arrays by the file's names."""

    lstm: LSTM
    weights: dict[str, jax.Array]


def model_path() -> Path:
    """The package's ONNX file; the package itself, which needs torch, is not imported."""
    spec = util.find_spec("silero_vad")
    if spec is None:
        sys.exit("This needs the weights of Silero VAD: pip install --no-deps silero-vad==6.2.3")
    # Not the .safetensors file beside it: that is another checkpoint.
    return Path(spec.origin).parent / "data" / "silero_vad_16k_sequence.onnx"


def load(path: Path) -> Network:
    if util.find_spec("onnx") is None:
        sys.exit("This reads an ONNX file: pip install 'jaxrnn[interop]'")
    import onnx

    graph = onnx.load(path).graph
    arrays = {tensor.name: jnp.asarray(onnx.numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    return Network(from_onnx(path), {name: a for name, a in arrays.items() if not name.startswith("onnx::")})


def convolve(x, kernel, bias=None, *, stride=1, padding=0):
    """x (batch, channels, time) with a kernel (out, in, width), as in the file."""
    y = jax.lax.conv_general_dilated(x, kernel, (stride,), [(padding, padding)], dimension_numbers=("NCH", "OIH", "NCH"))
    return y if bias is None else y + jnp.broadcast_to(bias[:, None], y.shape)


@jax.jit
def hear(network: Network, state, samples):
    """One frame with its context (batch, 576) through the network: the state after it, and the probability of speech."""
    w = network.weights
    spectrum = convolve(
        jnp.pad(samples, ((0, 0), (0, CONTEXT)), mode="reflect")[:, None], w["stft.forward_basis_buffer"], stride=WINDOW // 2
    )
    real, imaginary = jnp.split(spectrum, 2, axis=1)
    x = jnp.sqrt(real**2 + imaginary**2)
    for layer, stride in enumerate((1, 2, 2, 1)):
        weight, bias = (w[f"encoder.{layer}.{name}"] for name in ("weight", "bias"))
        x = jax.nn.relu(convolve(x, weight, bias, stride=stride, padding=1))
    y, state = network.lstm.step(x[:, :, 0], state)
    z = convolve(jax.nn.relu(y)[:, :, None], w["output.weight"], w["output.bias"])
    return state, jax.nn.sigmoid(z[:, 0, 0])


def frames(sound) -> np.ndarray:
    """The sound in frames, each after the end of the one before: (frames, 576)."""
    count = -(-len(sound) // FRAME)
    padded = np.pad(sound, (CONTEXT, count * FRAME - len(sound))).astype(np.float32)
    return np.stack([padded[k * FRAME : k * FRAME + CONTEXT + FRAME] for k in range(count)])


def listen(network: Network, sound) -> np.ndarray:
    """The probability of speech in every frame, as a stream: only the state goes from frame to frame."""
    state = (jnp.zeros((1, 1, 128)), jnp.zeros((1, 1, 128)))
    found = []
    for frame in frames(sound):
        state, probability = hear(network, state, frame[None])
        found.append(float(probability[0]))
    return np.array(found)


def listen_with_onnxruntime(path: Path, sound) -> np.ndarray:
    """The same from the file itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    zeros = np.zeros((1, 1, 128), np.float32)
    return session.run(["speech_probs"], {"input": frames(sound), "h": zeros, "c": zeros})[0]


# Sound ---------------------------------------------------------------------------------------------


def read_wav(path: Path) -> np.ndarray:
    """A WAV file as numbers from −1 to 1, one channel, 16,000 per second."""
    from scipy import signal

    try:
        with wave.open(str(path)) as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{path}: there should be a WAV file of plain samples, got {str(error) or 'its end'}.")
    if width not in (1, 2, 4):
        sys.exit(f"{path}: samples should have 8, 16 or 32 bits, got {8 * width}.")
    data = data[: len(data) - len(data) % (width * channels)]  # a file cut short ends within a sample
    sound = np.frombuffer(data, {1: np.uint8, 2: np.int16, 4: np.int32}[width]).reshape(-1, channels).mean(axis=1)
    sound = (sound - 128) / 128 if width == 1 else sound / 2.0 ** (8 * width - 1)
    divisor = np.gcd(rate, RATE)
    return signal.resample_poly(sound, RATE // divisor, rate // divisor) if rate != RATE else sound


def make_sound(seconds: float = 8.0, seed: int = 0) -> np.ndarray:
    """Noise, and in the second and fourth quarter vowels: a buzz of a voice's pitch through two resonances."""
    from scipy import signal

    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    buzz = np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)
    voice = np.zeros_like(time)
    for k, formants in enumerate([(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480)]):
        vowel = buzz
        for centre, width in zip(formants, (80, 100, 140), strict=True):
            pole = np.exp(-np.pi * width / RATE + 2j * np.pi * centre / RATE)
            vowel = signal.lfilter([1 - abs(pole)], [1, -2 * pole.real, abs(pole) ** 2], vowel)
        loudness = np.sin(np.pi * (4 * time % 1)) * (4 * time % 4 // 1 == k)  # four syllables a second
        voice += vowel / np.abs(vowel).max() * loudness
    speaking = (4 * time / seconds).astype(int) % 2
    return 0.5 * voice * speaking + 0.003 * rng.standard_normal(len(time))


def spans(probabilities: np.ndarray) -> list[tuple[float, float]]:
    """Where the probability is above one half, in seconds: (from, to)."""
    above = np.pad(probabilities > 0.5, 1).astype(int)
    edges = np.flatnonzero(np.diff(above)) * FRAME / RATE
    return [(float(a), float(b)) for a, b in edges.reshape(-1, 2)]


# The program ---------------------------------------------------------------------------------------


def plot(sound, probabilities, path: Path):
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        print("no picture: pip install 'jaxrnn[train]'")
        return
    figure, axes = plt.subplots(figsize=(10, 3), layout="constrained")
    axes.plot(np.arange(len(sound)) / RATE, sound / np.abs(sound).max(), color="0.7", linewidth=0.4)
    axes.plot((np.arange(len(probabilities)) + 0.5) * FRAME / RATE, probabilities, color="C3", label="probability of speech")
    axes.set(xlabel="seconds", ylim=(-1.05, 1.05))
    axes.legend(loc="center left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", type=Path, help="the file to listen to; default: a signal made up here")
    parser.add_argument("--out", type=Path, default=Path("runs/speech"), metavar="FOLDER", help="for the results")
    options = parser.parse_args(arguments)

    path = model_path()
    network = load(path)
    sound = make_sound() if options.wav is None else read_wav(options.wav)
    if not len(sound):
        sys.exit(f"{options.wav}: there should be samples in the file, got none.")
    listen(network, sound[: 2 * FRAME])  # compiles
    start = time.perf_counter()
    probabilities = listen(network, sound)
    taken = time.perf_counter() - start
    print(f"{len(sound) / RATE:.1f} s of sound, {len(probabilities)} frames, {1e3 * taken / len(probabilities):.2f} ms each")
    for begin, end in spans(probabilities):
        print(f"speech from {begin:6.2f} s to {end:6.2f} s")

    difference = None
    if util.find_spec("onnxruntime") is None:
        print("not compared: pip install onnxruntime")
    else:
        difference = float(np.abs(probabilities - listen_with_onnxruntime(path, sound)).max())
        print(f"largest difference from onnxruntime: {difference:.1e}")
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"spans": spans(probabilities), "difference": difference, "probabilities": probabilities.tolist()}
    (options.out / "speech.json").write_text(json.dumps(result))
    plot(sound, probabilities, options.out / "speech.png")
    print(f"written to {options.out}")
    return 0 if difference is None or difference < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
