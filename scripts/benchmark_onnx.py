"""Time an exported LSTM in onnxruntime: `jaxrnn.interop.to_onnx` beside jax2onnx, which makes a Loop.

    python scripts/benchmark_onnx.py --python other/bin/python      # a Python that has jax2onnx

jax2onnx patches JAX and pins old versions of other packages, so it converts in a process of its own. It
gets the loop as JAX users write it, a `lax.scan` over a step. Both files hold the same weights, run in
turns on one thread, and must agree.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the Python that has jax2onnx; default: this one")
    parser.add_argument("--size", type=int, nargs=3, default=(8, 100, 128), metavar=("BATCH", "TIME", "HIDDEN"))
    parser.add_argument("--rounds", type=int, default=20, help="turns of each, of 20 calls")
    parser.add_argument("--convert", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.convert:
        convert_with_jax2onnx(options.convert, *options.size)
        return 0

    module, x = make(*options.size)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "jaxrnn.onnx"), Path(folder, "jax2onnx.onnx")
        to_onnx(module, ours)
        sizes = map(str, options.size)
        child = [options.python, __file__, "--convert", str(theirs), "--size", *sizes]
        paths = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        done = subprocess.run(child, capture_output=True, text=True, env=paths)
        if done.returncode:
            sys.exit(f"{done.stderr}\nThe conversion failed. Is jax2onnx there? pip install jax2onnx, and name it with --python.")
        import onnx

        runs = {"jaxrnn": session(ours), "jax2onnx": session(theirs)}
        operators = {name: {n.op_type for n in onnx.load(p).graph.node} for name, p in (("jaxrnn", ours), ("jax2onnx", theirs))}
    difference = np.abs(runs["jaxrnn"](x) - runs["jax2onnx"](x)).max()
    taken = {name: [] for name in runs}
    for turn in range(options.rounds):
        for name in sorted(runs, reverse=turn % 2 == 1):
            for _ in range(20):
                start = time.perf_counter()
                runs[name](x)
                taken[name].append(1e3 * (time.perf_counter() - start))
    batch, steps, hidden = options.size
    print(f"LSTM, batch {batch}, time {steps}, hidden {hidden}, one thread; largest difference {difference:.1e}")
    for name, values in taken.items():
        kinds = ", ".join(sorted(operators[name] & {"LSTM", "Loop", "Scan"}))
        print(f"{name:10} {min(values):7.2f} ms least, {statistics.median(values):7.2f} ms median   ({kinds})")
    return 0 if difference < 1e-5 and min(taken["jaxrnn"]) <= min(taken["jax2onnx"]) else 1


if __name__ == "__main__":
    sys.exit(main())
