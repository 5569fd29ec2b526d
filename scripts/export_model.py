"""Export a trained model for production, compare what was written with the model, and time a step of each.

    python scripts/export_model.py runs/forecast/co2
    python scripts/export_model.py runs/sales/csv --platforms cpu cuda --out runs/exported

It writes

    model.stablehlo   whole sequences, (x, lengths) -> prediction, for any batch and time; needs nothing but JAX
    step.stablehlo    one step of a stream, (x, *state) -> (prediction, *state), for any batch; needs nothing but JAX
    model.onnx        both of them for onnxruntime: x, lengths, h_0, … -> prediction, h_n, …
    start.npz         the state that a stream starts from, for a batch of one: arrays in the order of the files above, named like
                      the inputs of model.onnx (h_0, …) if there is one
    model.json        the scaler and the configuration of the run

The model is one of `jaxrnn.models`: runs of train_forecast.py, train_classify.py, train_regression.py, train_pixels.py have those.
What a model does not have (a stream, if it reads both directions) or ONNX does not (most cells) is left out, and said.
"""

import argparse
import dataclasses
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import training
from jax import export

from jaxrnn.interop import to_onnx
from jaxrnn.runs import load_run
from jaxrnn.text import CharModel

BATCH, TIME = 3, 20
"""Of the random sequences that files and model are compared on."""
TOLERANCES = {"model.stablehlo": 1e-6, "step.stablehlo": 1e-6, "model.onnx": 1e-5}
BY_HAND = """
Of a run, export_model.py exports models of jaxrnn.models: those of train_forecast.py, train_classify.py, train_regression.py and
train_pixels.py. That of another script is exported by hand: .docs/guides/production.md, "A model of a script", shows how."""


# What is exported -------------------------------------------------------------------------------------------------------------


def export_sequences(model, features, platforms=None):
    """Whole sequences as one program, for any batch and time: (x, lengths) -> what a call of the model gives."""
    batch, time = export.symbolic_shape("batch, time")
    x, lengths = jax.ShapeDtypeStruct((batch, time, features), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    return export.export(jax.jit(plain_call(model)), platforms=platforms)(x, lengths)


def export_step(model, features, platforms=None):
    """One step of a stream as one program, for any batch: (x, *state) -> (y, *state)."""
    (batch,) = export.symbolic_shape("batch")
    of_any_batch = [
        jax.ShapeDtypeStruct([a if a == b else batch for a, b in zip(one.shape, two.shape, strict=True)], one.dtype)
        for one, two in zip(start_of(model, 1), start_of(model, 2), strict=True)
    ]
    x = jax.ShapeDtypeStruct((batch, features), jnp.float32)
    return export.export(jax.jit(plain_step(model)), platforms=platforms)(x, *of_any_batch)


def plain_call(model):
    """A call of the model that gives one array or a tuple of arrays, which is all that a file should know of."""

    def call(x, lengths):
        outputs = jax.tree.leaves(model(x, lengths=lengths))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    return call


def plain_step(model):
    """A step of the model whose state is arrays, one after the other."""
    structure = jax.tree.structure(model.initial_state(1))

    def step(x, *state):
        y, state = model.step(x, jax.tree.unflatten(structure, state))
        return y, *jax.tree.leaves(state)

    return step


def start_of(model, batch=1):
    """The state that a stream starts from, as `plain_step` orders it."""
    return [np.asarray(a) for a in jax.tree.leaves(model.initial_state(batch))]


def features_of(model):
    """The width of the input (batch, time, features)."""
    inner = getattr(model, "rnn", model)
    if isinstance(model, CharModel) or not getattr(inner, "batch_first", True):
        came = "a CharModel" if isinstance(model, CharModel) else "a model with batch_first=False"
        sys.exit(f"the model should take (batch, time, features), got {came}: say what it takes in a copy of this script")
    return inner.stack.input_size if hasattr(inner, "stack") else model.encoder.in_features


def write(model, out, platforms=None):
    """Write the files; what was left out, and why."""
    features, left_out = features_of(model), {}
    for name in (*TOLERANCES, "start.npz", "model.json"):  # they may be of another model
        (out / name).unlink(missing_ok=True)
    (out / "model.stablehlo").write_bytes(export_sequences(model, features, platforms).serialize())
    try:
        (out / "step.stablehlo").write_bytes(export_step(model, features, platforms).serialize())
    except ValueError as reason:
        left_out["step.stablehlo"] = reason
    streams, names = "step.stablehlo" not in left_out, []
    try:
        made = to_onnx(model, out / "model.onnx", lengths=True, states=streams)
        names = [value.name for value in made.graph.input][2:]  # after x and lengths
    except (ValueError, TypeError, ImportError) as reason:
        left_out["model.onnx"] = reason
    if streams:
        start = start_of(model)
        np.savez(out / "start.npz", **dict(zip(names or [f"state_{k}" for k in range(len(start))], start, strict=True)))
    return left_out


# How it is used where there is no jaxrnn: copy this -----------------------------------------------------------------------------

ALONE = """
import sys

sys.modules["jaxrnn"] = sys.modules["flax"] = None      # from here on, to import one of them would be an error

import time
from pathlib import Path

import jax
import numpy as np
from jax import export


def load(name):
    return jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)


folder, work, steps = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
x, lengths, *state = np.load(work / "given.npz").values()
np.savez(work / "whole.npz", *jax.tree.leaves(load("model.stablehlo")(x, lengths)))

if (folder / "step.stablehlo").exists():
    step, ys = load("step.stablehlo"), []
    for t in range(x.shape[1]):
        y, *state = step(x[:, t], *state)
        ys.append(y)
    np.savez(work / "stream.npz", np.stack(ys, axis=1), *state)

    state, seconds = list(np.load(folder / "start.npz").values()), []
    for _ in range(steps):
        began = time.perf_counter()
        y, *state = step(x[:1, 0], *state)
        np.asarray(y)
        seconds.append(time.perf_counter() - began)
    np.save(work / "seconds.npy", seconds)
"""


def onnx_runner(path):
    """model.onnx as a function (x, *state) -> (prediction, *state): x (batch, time, features) may be one step or many."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the fastest, for a step
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(x, *state, lengths=None):
        lengths = np.full(len(x), x.shape[1], np.int32) if lengths is None else lengths
        state = [a if np.ndim(a) == 3 else a[None] for a in state]  # layers of different sizes have states of their own
        return session.run(None, dict(zip(names, [x, lengths, *state], strict=True)))

    return run


# Comparing, timing --------------------------------------------------------------------------------------------------------------


def compare(model, out, steps):
    """The largest difference of each file from the model, as a share of the largest value; and the seconds of a step of each."""
    rng = np.random.default_rng(0)
    x, lengths = rng.standard_normal((BATCH, TIME, features_of(model))).astype(np.float32), np.array([TIME, 7, 0], np.int32)
    whole, state, seconds, differences = jax.tree.leaves(jax.jit(plain_call(model))(x, lengths)), [], {}, {}
    streams = (out / "step.stablehlo").exists()
    if streams:
        step = jax.jit(plain_step(model))
        _, *state = map(np.asarray, step(-x[:, -1], *start_of(model, BATCH)))  # a stream that has begun
        stream = streamed(step, x, state)
        seconds["the module, jitted"] = timed(step, x[:1, 0], start_of(model), steps)

    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        np.savez(work / "given.npz", x, lengths, *state)
        subprocess.run([sys.executable, "-c", ALONE, str(out.absolute()), str(work), str(steps)], check=True)
        differences["model.stablehlo"] = apart(np.load(work / "whole.npz").values(), whole)
        if streams:
            differences["step.stablehlo"] = apart(np.load(work / "stream.npz").values(), stream)
            seconds["step.stablehlo"] = statistics.median(np.load(work / "seconds.npy"))

    if (out / "model.onnx").exists():
        run = onnx_runner(out / "model.onnx")
        start = start_of(model, BATCH) if streams else []
        differences["model.onnx"] = apart(run(x, *start, lengths=lengths)[:1], whole[:1])
        if streams:
            of_frame = lambda x, *state: run(x[:, None], *state)
            differences["model.onnx"] = max(differences["model.onnx"], apart(streamed(of_frame, x, state), stream))
            seconds["model.onnx"] = timed(of_frame, x[:1, 0], start_of(model), steps)
    return differences, seconds


def streamed(step, x, state):
    """The outputs of a stream at every step, and its state at the end."""
    ys = []
    for t in range(x.shape[1]):
        y, *state = step(x[:, t], *state)
        ys.append(y)
    return [np.stack(ys, axis=1), *state]


def apart(got, want):
    """The largest difference of arrays, of values about one or smaller as it is, of larger ones as a share of the largest."""
    pairs = [(np.reshape(a, np.shape(b)), np.asarray(b)) for a, b in zip(got, want, strict=True)]
    return float(np.max([np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))) for a, b in pairs]))


def timed(step, x, state, steps):
    """Seconds of a step, the median: an array of NumPy goes in, and one comes out."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        y, *state = step(x, *state)
        np.asarray(y)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="Folder of a finished run.")
    parser.add_argument("--out", type=Path, default=Path("exported"), metavar="FOLDER", help="Where to write. Default: exported.")
    parser.add_argument(
        "--platforms", nargs="+", choices=("cpu", "cuda", "rocm", "tpu"), help="To export for. Default: this one's."
    )
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="Steps to time. Default: 1000.")
    options = parser.parse_args(arguments)
    for package in ("flatbuffers", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            sys.exit(f"the package {package} is missing: pip install 'jaxrnn[production]'")
    here = export.default_export_platform()
    if options.platforms and here not in options.platforms:
        parser.error(f"--platforms should have {here} among them, where the files are compared, got {' '.join(options.platforms)}")
    if options.steps < 1:
        parser.error(f"--steps should be at least 1, got {options.steps}")
    try:
        run = load_run(options.run)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(f"{error}{BY_HAND if 'is no class of jaxrnn' in str(error) else ''}")

    out = training.make_folder(options.out)
    left_out = write(run.model, out, options.platforms)
    kept = {"scaler": run.scaler and dataclasses.asdict(run.scaler), "config": run.config}
    (out / "model.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    differences, seconds = compare(run.model, out, options.steps)
    for name, tolerance in TOLERANCES.items():
        if name in left_out:
            print(f"{name:17} not written: {left_out[name]}")
        else:
            size = (out / name).stat().st_size / 1000
            print(f"{name:17}{size:8.1f} kB   largest difference from the model {differences[name]:.1e}")
            if not differences[name] <= tolerance:
                sys.exit(f"{name} should be within {tolerance} of the model: do not use it")
    for name, median in seconds.items():
        print(f"a step by {name:20}{1000 * median:7.3f} ms")


if __name__ == "__main__":
    sys.exit(training.exit_code(main))
