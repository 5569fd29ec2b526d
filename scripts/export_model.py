"""Export a trained model for production, compare what was written with the model, and time a step of each.

    python scripts/export_model.py runs/forecast/co2
    python scripts/export_model.py runs/sales/csv --platforms cpu cuda --out exported/

It writes

    model.stablehlo   whole sequences, (x, lengths) -> prediction, for any batch and time; needs nothing but JAX
    step.stablehlo    one step of a stream, (x, *state) -> (prediction, *state), for any batch; needs nothing but JAX
    model.onnx        both of them for onnxruntime: x, lengths, h_0, … -> prediction, h_n, …
    start.npz         the state that a stream starts from, for a batch of one
    model.json        inputs and outputs of each file, the scaler and the configuration of the run

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
from jax import export

from jaxrnn.interop import to_onnx
from jaxrnn.runs import load_run
from jaxrnn.text import CharModel

BATCH, TIME = 3, 20
"""Of the random sequences that files and model are compared on."""
TOLERANCES = {"model.stablehlo": 1e-6, "step.stablehlo": 1e-6, "model.onnx": 1e-5}


# What is exported -------------------------------------------------------------------------------------------------------------


def export_sequences(model, features, platforms=None):
    """Whole sequences as one program, for any batch and time: (x, lengths) -> what a call of the model gives."""
    batch, time = export.symbolic_shape("batch, time")
    x, lengths = jax.ShapeDtypeStruct((batch, time, features), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)

    def call(x, lengths):
        found = jax.tree.leaves(model(x, lengths=lengths))
        return found[0] if len(found) == 1 else tuple(found)

    return export.export(jax.jit(call), platforms=platforms)(x, lengths)


def export_step(model, features, platforms=None):
    """One step of a stream as one program, for any batch: (x, *state) -> (y, *state), the state as plain arrays."""
    (batch,) = export.symbolic_shape("batch")
    one, two = (jax.eval_shape(lambda n=n: model.initial_state(n)) for n in (1, 2))
    structure = jax.tree.structure(one)

    def of_any_batch(one, two):
        return jax.ShapeDtypeStruct([a if a == b else batch for a, b in zip(one.shape, two.shape, strict=True)], one.dtype)

    def step(x, *state):
        y, state = model.step(x, jax.tree.unflatten(structure, state))
        return y, *jax.tree.leaves(state)

    state = jax.tree.leaves(jax.tree.map(of_any_batch, one, two))
    return export.export(jax.jit(step), platforms=platforms)(jax.ShapeDtypeStruct((batch, features), jnp.float32), *state)


def start_of(model, batch=1):
    """The state that a stream starts from, as `export_step` orders it: arrays by names, which are those in model.onnx too."""
    leaves = [np.asarray(a) for a in jax.tree.leaves(model.initial_state(batch))]
    stack = getattr(getattr(model, "rnn", model), "stack", None)
    fields = leaves if stack is None else stack.cell.State._fields
    if stack is None:
        return {f"state_{k}": a for k, a in enumerate(leaves)}
    if len(set(stack.hidden_sizes)) == 1:
        return {f"{field}_0": a for field, a in zip(fields, leaves, strict=True)}
    return {f"{fields[k % len(fields)]}_0_l{k // len(fields)}": a for k, a in enumerate(leaves)}  # sizes differ: of each layer


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
given = np.load(work / "given.npz")
whole = jax.tree.leaves(load("model.stablehlo")(given["x"], given["lengths"]))
found = {f"whole_{k}": a for k, a in enumerate(whole)}

if (folder / "step.stablehlo").exists():
    step, names = load("step.stablehlo"), np.load(folder / "start.npz").files
    state, ys = [given[name] for name in names], []
    for t in range(given["x"].shape[1]):
        y, *state = step(given["x"][:, t], *state)
        ys.append(y)
    found |= {"ys": np.stack(ys, axis=1)} | dict(zip(names, state))

    x, state, seconds = given["x"][:1, 0], list(np.load(folder / "start.npz").values()), []
    for _ in range(steps):
        began = time.perf_counter()
        y, *state = step(x, *state)
        np.asarray(y)
        seconds.append(time.perf_counter() - began)
    found["seconds"] = seconds
np.savez(work / "found.npz", **found)
"""


def onnx_session(path):
    """On one thread, which is the fastest for a step."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_runner(path):
    """model.onnx as a function (x, state, lengths) -> (prediction, state): x (batch, time, features) may be one step or many."""
    session = onnx_session(path)
    names = [output.name.replace("_n", "_0", 1) for output in session.get_outputs()]  # h_n is the next call's h_0

    def run(x, state, lengths=None):
        lengths = np.full(len(x), x.shape[1], np.int32) if lengths is None else lengths
        prediction, *ends = session.run(None, {"x": x, "lengths": lengths} | state)
        return prediction, dict(zip(names[1:], ends, strict=True))

    return run


# Writing, comparing, timing ---------------------------------------------------------------------------------------------------


def features_of(model):
    """The width of the input (batch, time, features)."""
    inner = getattr(model, "rnn", model)
    if isinstance(model, CharModel) or not getattr(inner, "batch_first", True):
        came = f"a {type(model).__name__}" if isinstance(model, CharModel) else "a model with batch_first=False"
        sys.exit(f"the model should take (batch, time, features), got {came}: say what it takes in a copy of this script")
    return inner.stack.input_size if hasattr(inner, "stack") else model.encoder.in_features


def write(model, out, platforms=None):
    """Write the files; what was left out, and why."""
    features, left_out = features_of(model), {}
    for name in (*TOLERANCES, "start.npz"):  # of another model, perhaps
        (out / name).unlink(missing_ok=True)
    (out / "model.stablehlo").write_bytes(export_sequences(model, features, platforms).serialize())
    try:
        (out / "step.stablehlo").write_bytes(export_step(model, features, platforms).serialize())
        np.savez(out / "start.npz", **start_of(model))
    except ValueError as reason:
        left_out["step.stablehlo"] = reason
    try:
        to_onnx(model, out / "model.onnx", lengths=True, states="step.stablehlo" not in left_out)
    except (ValueError, TypeError, ImportError) as reason:
        left_out["model.onnx"] = reason
    return left_out


def describe(out, run):
    """model.json: what goes in and out, and what of the run belongs to it."""

    def of_program(name, inputs, outputs):
        exported = export.deserialize(bytearray((out / name).read_bytes()))
        shown = lambda names, avals: dict(zip(names, (a.str_short() for a in avals), strict=True))
        both = {"inputs": shown(inputs, exported.in_avals), "outputs": shown(outputs, exported.out_avals)}
        return both | {"platforms": list(exported.platforms)}

    def of_onnx(path):
        session = onnx_session(path)
        shown = lambda values: {value.name: f"{value.type} {value.shape}" for value in values}
        return {"inputs": shown(session.get_inputs()), "outputs": shown(session.get_outputs())}

    state = start_of(run.model)
    given = ["prediction"] if hasattr(run.model, "fc") or hasattr(run.model, "head") else ["output", *state]
    files = {"model.stablehlo": of_program("model.stablehlo", ["x", "lengths"], given)}
    if (out / "step.stablehlo").exists():
        files["step.stablehlo"] = of_program("step.stablehlo", ["x", *state], [given[0], *state])
    if (out / "model.onnx").exists():
        files["model.onnx"] = of_onnx(out / "model.onnx")
    text = json.dumps({"files": files, "scaler": run.scaler, "config": run.config}, indent=1, default=plain)
    (out / "model.json").write_text(text + "\n", encoding="utf-8")


def plain(value):
    """What JSON does not know."""
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def compare(model, out, steps):
    """The largest difference of each file from the model, in units of the largest value; and the seconds of a step of each."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, TIME, features_of(model))).astype(np.float32)
    lengths = np.array([TIME, 7, 0], np.int32)
    whole = [np.asarray(a) for a in jax.tree.leaves(jax.jit(lambda x, lengths: model(x, lengths=lengths))(x, lengths))]
    streams = (out / "step.stablehlo").exists()
    given, seconds, differences = {"x": x, "lengths": lengths}, {}, {}

    if streams:
        names, step = list(start_of(model)), jax.jit(lambda x, state: model.step(x, state))
        by_name = lambda state: dict(zip(names, map(np.asarray, jax.tree.leaves(state)), strict=True))
        _, now = step(-x[:, -1], model.initial_state(BATCH))  # a stream that has begun
        state, ys = by_name(now), []
        for t in range(TIME):
            y, now = step(x[:, t], now)
            ys.append(y)
        ys, ends = np.stack(ys, axis=1), by_name(now)
        seconds["the module, jitted"] = timed(step, x[:1, 0], model.initial_state(1), steps)
        given |= state

    with tempfile.TemporaryDirectory() as work:
        np.savez(Path(work) / "given.npz", **given)
        subprocess.run([sys.executable, "-c", ALONE, str(out.absolute()), work, str(steps)], check=True)
        found = dict(np.load(Path(work) / "found.npz"))
    differences["model.stablehlo"] = np.max([apart(found[f"whole_{k}"], a) for k, a in enumerate(whole)])
    if streams:
        pairs = [(found["ys"], ys), *((found[name], end) for name, end in ends.items())]
        differences["step.stablehlo"] = np.max([apart(*pair) for pair in pairs])
        seconds["step.stablehlo"] = statistics.median(found["seconds"])

    if (out / "model.onnx").exists() and not streams:
        got, *_ = onnx_session(out / "model.onnx").run(None, {"x": x, "lengths": lengths})
        differences["model.onnx"] = apart(got, whole[0])
    elif (out / "model.onnx").exists():
        run = onnx_runner(out / "model.onnx")
        as_onnx = lambda state: {name: a if a.ndim == 3 else a[None] for name, a in state.items()}
        got, _ = run(x, as_onnx(start_of(model, BATCH)), lengths)
        pairs, now = [(got, whole[0])], as_onnx(state)
        for t in range(TIME):
            y, now = run(x[:, t : t + 1], now)
            pairs.append((y.reshape(ys[:, t].shape), ys[:, t]))
        pairs += [(now[name], end) for name, end in as_onnx(ends).items()]
        differences["model.onnx"] = np.max([apart(*pair) for pair in pairs])
        seconds["model.onnx"] = timed(run, x[:1, :1], as_onnx(start_of(model)), steps)
    return differences, seconds


def apart(got, want):
    """The largest difference, of values about one or smaller as it is, of larger ones as a share of the largest."""
    return float(np.max(np.abs(got - want)) / max(1.0, np.max(np.abs(want)))) if got.shape == want.shape else np.inf


def timed(step, x, state, steps):
    """Seconds of a step, the median: an array of NumPy goes in, and one comes out."""
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        y, state = step(x, state)
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
    try:
        run = load_run(options.run)
    except (OSError, ValueError, ImportError) as error:
        sys.exit(str(error))
    run.model.eval()
    options.out.mkdir(parents=True, exist_ok=True)
    left_out = write(run.model, options.out, options.platforms)
    describe(options.out, run)
    differences, seconds = compare(run.model, options.out, options.steps)

    for name, tolerance in TOLERANCES.items():
        if name in left_out:
            print(f"{name:17} not written: {left_out[name]}")
        else:
            size = (options.out / name).stat().st_size / 1000
            print(f"{name:17}{size:8.1f} kB   largest difference from the model {differences[name]:.1e}")
            if not differences[name] <= tolerance:
                sys.exit(f"{name} should be within {tolerance} of the model: do not use it")
    for name, time_ in seconds.items():
        print(f"a step by {name:20}{1000 * time_:7.3f} ms")
    print(f"what goes in and out: {options.out / 'model.json'}")


if __name__ == "__main__":
    main()
