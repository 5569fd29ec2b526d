"""Time an exported LSTM in onnxruntime: `jaxrnn.interop.to_onnx` beside jax2onnx, which makes a Loop.

    python scripts/benchmark_onnx.py --python other/bin/python      # a Python that has jax2onnx

jax2onnx patches JAX and pins old versions of other packages, so it converts in a process of its own. It
gets the loop as JAX users write it, a `lax.scan` over a step. Both files hold the same weights, run in
turns on one thread, and must agree. The table is that of `benchmark.py`; `onnx.json` is written to the output folder.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from benchmark import header
from benchmark_report import line_table
from flax import nnx

import jaxrnn
from jaxrnn.interop import to_onnx


def make(batch: int, time: int, size: int):
    """The module, and what it is given (batch, time, input)."""
    module = jaxrnn.LSTM(size, size, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).standard_normal((batch, time, size)).astype(np.float32)
    return module, x


def convert_with_jax2onnx(path: str, batch: int, time: int, size: int):
    from jax2onnx import to_onnx

    module, x = make(batch, time, size)
    params = module.params[0][0]
    w_ih, w_hh = (np.asarray(w.get_value()).reshape(size, 4 * size) for w in (params.w_ih, params.w_hh))
    b = np.asarray(params.b_ih.get_value() + params.b_hh.get_value()).reshape(-1)

    def step(carry, x_gates):
        h, c = carry
        i, f, g, o = jnp.split(x_gates + h @ w_hh, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def run(x):
        zeros = jnp.zeros((batch, size), jnp.float32)
        _, ys = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1) @ w_ih + b)
        return jnp.swapaxes(ys, 0, 1)

    to_onnx(run, [x.shape], return_mode="file", output_path=path, opset=21)


def session(path: Path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    made = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = made.get_inputs()[0].name
    return lambda x: made.run(None, {name: x})[0]


def convert(python: str, path: Path, sizes) -> str:
    """Have jax2onnx write its file, in a process of its own; its version."""
    child = [python, __file__, "--convert", str(path), "--size", *map(str, sizes)]
    paths = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run(child, capture_output=True, text=True, env=paths)
    if done.returncode:
        sys.exit(f"{done.stderr}\nThe conversion failed. Is jax2onnx there? pip install jax2onnx, and name its Python: --python.")
    return done.stdout.splitlines()[-1]


def one_turn(run, x, seconds: float) -> list[float]:
    """The time of each call, for a while."""
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        run(x)
        taken.append(time.perf_counter() - start)
    return taken


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that has jax2onnx; default: this one")
    parser.add_argument("--size", type=int, nargs=3, default=(8, 100, 128), metavar=("BATCH", "TIME", "HIDDEN"))
    parser.add_argument("--rounds", type=int, default=20, help="turns of each")
    parser.add_argument("--seconds", type=float, default=0.1, help="of calling in one turn")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), metavar="FOLDER")
    parser.set_defaults(allocator="default")
    parser.add_argument("--convert", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.convert:
        convert_with_jax2onnx(options.convert, *options.size)
        print(metadata.version("jax2onnx"))
        return 0
    import onnx

    batch, steps, size = options.size
    module, x = make(*options.size)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in ("jaxrnn", "jax2onnx")}
        to_onnx(module, files["jaxrnn"])
        version = convert(options.python, files["jax2onnx"], options.size)
        runs = {name: session(path) for name, path in files.items()}
        operators = {name: {node.op_type for node in onnx.load(path).graph.node} for name, path in files.items()}
    difference = float(np.abs(runs["jaxrnn"](x) - runs["jax2onnx"](x)).max())
    turns = {name: [] for name in runs}
    for turn in range(options.rounds):
        for name in sorted(runs, reverse=turn % 2 == 1):
            turns[name].append(one_turn(runs[name], x, options.seconds))

    problem = {"time": steps, "batch": batch, "input_size": size, "hidden_size": size, "num_layers": 1, "bidirectional": False}
    line = {"kind": "onnxruntime", "cell": "LSTM", **problem, "difference": difference, "skipped": {}, "failed": {}}
    line["contenders"] = {
        name: {
            "devices": 1,
            "note": "as " + ", ".join(sorted(operators[name] & {"LSTM", "Loop", "Scan"})),
            "train": {},
            "forward": {"time": {"min": min(map(min, found)), "median": statistics.median(map(statistics.median, found))}},
        }
        for name, found in turns.items()
    }
    results = {"header": header(options), "lines": [line]}
    packages = ("onnx", "onnxruntime")
    results["header"]["versions"] |= {name: metadata.version(name) for name in packages} | {"jax2onnx": version}
    print("\n".join(f"{name}: {value}" for name, value in results["header"].items()), line_table(line), sep="\n\n")
    print(f"\nlargest difference {difference:.1e}")
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "onnx.json").write_text(json.dumps(results, indent=1) + "\n")
    ours, theirs = (line["contenders"][name]["forward"]["time"]["min"] for name in runs)
    return 0 if difference < 1e-5 and ours <= theirs else 1


if __name__ == "__main__":
    sys.exit(main())
