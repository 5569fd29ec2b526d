"""What to measure on the day when a GPU is at hand, in eight minutes: the backends of `jaxrnn` and the forms of its loops, each
against the values of the plain loop first, then timed. At the end it says, by the rule, what backend="auto" should be there.

    python scripts/gpu_day.py                  # results/gpu_day_<device>.json and .md, written after every measurement
    python scripts/gpu_day.py --smoke --output /tmp/smoke      # tiny sizes, anywhere; kernels interpreted

All times are minima, with the projection of x; training is the gradient of the mean square of the outputs, by parameters and
inputs. Without --smoke it stops where JAX has no GPU, and begins no new case after `--limit` seconds.
"""

import argparse
import importlib
import json
import re
import time
import warnings
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import GRUCell, LSTMCell, RNNCell, Stack
from jaxrnn.engine import fused_kernels, strategies, tuning

CELLS = {"RNN": RNNCell(), "LSTM": LSTMCell(), "GRU": GRUCell()}
RULE = 1.3
"""How many times as fast a backend has to be than the loops of JAX, forward and in training, to be the default on a device."""
APART = {"float32": 2e-2, "bfloat16": 1e-1}
"""How far from the values in float32, relative to the largest, a way may be: GPUs round float32 products to TF32 by default."""
SIZES = [
    *((1000, 16, 128, 64, "float32"), (1000, 16, 128, 128, "bfloat16"), (1000, 128, 128, 128, "bfloat16")),
    *((100, 32, 64, 64, "float32"), (100, 32, 64, 128, "bfloat16"), (1024, 16, 768, 768, "float32")),
]
"""Time, batch, input, hidden, dtype; the last is too large for the kernels."""
SMALL = [(34, 3, 4, 8, "float32")]
TRIED = ("2 directions, one after the other", "loops as command buffers")
"""What a smoke test runs: a small size, and these forms."""


def ways(cell: str, dtype: str) -> list[str]:
    return ["xla", "pallas", *(["cudnn", "torch"] if cell == "LSTM" and dtype == "float32" else [])]


def forms() -> dict:
    """Forms of XLA's loops: what they change, as (module, name, value), and options of the stack and the compiler."""
    apart = [(name, "WORTHWHILE", 2**62) for name in ("directions", "wavefront")]  # with as many steps at once
    cache = {"cpu": tuning.CACHES["cpu"], "cuda": tuning.CACHES["cpu"]}
    segments = [("tuning", "CACHES", cache), ("strategies", "PLATFORMS", ("cuda", *strategies.PLATFORMS))]
    return {
        "as it is": ([], {}, {}),
        **{f"{k} steps at once": ([("tuning", "AT_ONCE", (k,))], {}, {}) for k in (1, 4, 8)},
        "segments": (segments, {}, {}),
        "loops as command buffers": ([], {}, {"xla_gpu_enable_command_buffer": "+WHILE"}),
        "2 directions": ([], {"bidirectional": True}, {}),
        "2 directions, one after the other": (apart, {"bidirectional": True}, {}),
        "4 layers": ([], {"num_layers": 4}, {}),
        "4 layers, one after the other": (apart, {"num_layers": 4}, {}),
    }


PLAIN = [
    *((name, "GPUS", ()) for name in ("segments", "directions", "wavefront")),
    ("strategies", "PLATFORMS", strategies.PLATFORMS),
]
"""What makes of all forms the plain loop, one step at a time, one layer and direction after the other."""


@contextmanager
def changed(changes):
    """Names in modules of the engine with other values."""
    modules = [(importlib.import_module(f"jaxrnn.engine.{module}"), name, value) for module, name, value in changes]
    before = [(module, name, getattr(module, name)) for module, name, _ in modules]
    for module, name, value in modules:
        setattr(module, name, value)
    jax.clear_caches()
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        jax.clear_caches()


def functions(stack: Stack, options: dict | None = None) -> dict:
    """Forward and training of a stack, compiled when they are called."""
    forward = lambda params, xs: stack.apply(params, xs)[0].astype(jnp.float32)
    train = jax.value_and_grad(lambda params, xs: jnp.mean(jnp.square(forward(params, xs))), (0, 1))
    return {name: jax.jit(f, compiler_options=options or None) for name, f in (("forward", forward), ("training", train))}


def distance(got, want) -> float:
    """The largest difference, relative to the largest number, of the worst array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(b))) for a, b in pairs)


def clock(run, budget: float) -> float:
    """Seconds of the fastest call."""
    best, end, count = float("inf"), time.perf_counter() + budget, 0
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best


def measure(fns: dict, arrays, want: dict, dtype: str, steps: int, budget: float) -> list[dict]:
    """Values of forward and training, then their times; no time where the values are wrong."""
    found = []
    for mode, f in fns.items():
        run = lambda f=f: jax.block_until_ready(f(*arrays))
        start = time.perf_counter()
        got = run()
        row = {"mode": mode, "first_s": time.perf_counter() - start, "apart": distance(got, want[mode])}
        if not row["apart"] <= APART[dtype]:  # nor NaN
            found.append(row | {"error": "values are too far apart: not timed"})
            continue
        best = clock(run, budget)
        found.append(row | {"ms": best * 1e3, "us_per_step": best / steps * 1e6})
    return found


def by_torch(size: tuple, budget: float) -> list[dict]:
    """PyTorch's LSTM, which is cuDNN's on a GPU; its own weights, so that values are not compared."""
    import torch

    steps, batch, inputs, hidden, _ = size
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lstm, x = torch.nn.LSTM(inputs, hidden, device=device), torch.randn(steps, batch, inputs, device=device, requires_grad=True)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward():
        with torch.no_grad():
            lstm(x)
        wait()

    def training():
        torch.autograd.grad(lstm(x)[0].square().mean(), [x, *lstm.parameters()])
        wait()

    for run in (forward, training):
        run()
    timed = {"forward": clock(forward, budget), "training": clock(training, budget)}
    return [{"mode": mode, "ms": best * 1e3, "us_per_step": best / steps * 1e6, "on": device} for mode, best in timed.items()]


def verdict(rows: list[dict]) -> list[dict]:
    """For each case, what "auto" should be: the fastest backend that beats the loops by the rule in both modes."""
    cases = {}
    for row in rows:
        if row["what"] == "backend" and "ms" in row:
            cases.setdefault((row["cell"], tuple(row["size"])), {}).setdefault(row["way"], {})[row["mode"]] = row["ms"]
    found = []
    for (cell, size), by_way in cases.items():
        plain = by_way.get("xla", {})
        gains = {
            way: min(plain[mode] / ms[mode] for mode in ms)
            for way, ms in by_way.items()
            if way in ("pallas", "cudnn") and set(ms) == set(plain) == {"forward", "training"}
        }
        best = max(gains, key=gains.get, default=None)
        auto = best if best and gains[best] >= RULE else "xla"
        found.append({"cell": cell, "size": size, "gains": {way: round(gain, 2) for way, gain in gains.items()}, "auto": auto})
    return found


def table(head: dict, rows: list[dict]) -> str:
    """What was measured, in Markdown."""
    lines = [f"# {head['device']}{', a smoke test: says nothing of speed' if head['smoke'] else ''}", ""]
    lines += [f"jax {head['jax']}; minima, with the projection of x", ""]
    lines += ["| cell | T, B, I, H, dtype | way | mode | ms | µs per step | apart |", "| --- " * 7 + "|"]
    for r in rows:
        said = [f"{r['ms']:.3f}", f"{r['us_per_step']:.2f}"] if "ms" in r else [r["error"], ""]
        apart = f"{r['apart']:.0e}" if "apart" in r else ""
        lines.append(f"| {' | '.join([r['cell'], ', '.join(map(str, r['size'])), r['way'], r['mode'], *said, apart])} |")
    lines += ["", f'By the rule (≥ {RULE} × forward and training), backend="auto" should be:', ""]
    for v in verdict(rows):
        lines.append(f"- {v['cell']} at {', '.join(map(str, v['size']))}: {v['auto']} (gains {v['gains'] or 'none'})")
    return "\n".join(lines) + "\n"


class Day:
    """What is measured, kept and written."""

    def __init__(self, folder: Path, limit: float, smoke: bool):
        self.started, self.limit, self.rows = time.perf_counter(), limit, []
        device = jax.devices()[0].device_kind
        self.head = {"device": device, "jax": jax.__version__, "smoke": smoke, "rule": RULE}
        self.path = folder / f"gpu_day_{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}"

    def note(self, what: str, cell: str, size: tuple, way: str, results):
        """Keep and write what comes of `results`; an error is a result too, and a case that came too late."""
        late = time.perf_counter() - self.started > self.limit
        try:
            found = [{"mode": "both", "error": "not begun, time was up"}] if late else results()
        except Exception as error:
            found = [{"mode": "both", "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}]
        for result in found:
            self.rows.append({"what": what, "cell": cell, "size": size, "way": way} | result)
            print(json.dumps(self.rows[-1]), flush=True)
        took = round(time.perf_counter() - self.started, 1)
        said = self.head | {"seconds": took, "rows": self.rows, "auto": verdict(self.rows)}
        self.path.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n")
        self.path.with_suffix(".md").write_text(table(self.head, self.rows))


def by_stack(cell: str, size: tuple, budget: float, compiler: dict | None = None, **options) -> list[dict]:
    """A stack of `jaxrnn`, against the plain loop in float32, not rounded to TF32."""
    steps, batch, inputs, hidden, name = size
    make = partial(Stack, CELLS[cell], inputs, hidden)
    plain = {k: v for k, v in options.items() if k != "backend"}
    arrays = make(**plain).init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (steps, batch, inputs))
    with changed(PLAIN), jax.default_matmul_precision("highest"):
        want = {mode: jax.block_until_ready(f(*arrays)) for mode, f in functions(make(**plain)).items()}
    return measure(functions(make(**options, dtype=jnp.dtype(name)), compiler), arrays, want, name, steps, budget)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="a folder")
    parser.add_argument("--limit", type=float, default=400, help="seconds after which no new case begins")
    given = parser.parse_args()
    device = jax.devices()[0]
    if not given.smoke and device.platform != "gpu":
        parser.exit(1, f"JAX has no GPU here, only {device.device_kind}; --smoke tries the script without one\n")
    if given.smoke:
        fused_kernels.lower("cpu", interpret=True)
        jax.clear_caches()
    given.output.mkdir(parents=True, exist_ok=True)
    day, budget = Day(given.output, given.limit, given.smoke), 0.01 if given.smoke else 0.5
    for size in SMALL if given.smoke else SIZES:
        for cell in ("LSTM",) if given.smoke else CELLS:
            for way in ways(cell, size[-1]):
                stack = partial(by_stack, cell, size, budget, backend=way)
                day.note("backend", cell, size, way, partial(by_torch, size, budget) if way == "torch" else stack)
    size = SMALL[0] if given.smoke else SIZES[3]
    for form, (changes, options, compiler) in forms().items():
        if not given.smoke or form in TRIED:
            with changed(changes):
                day.note("form", "LSTM", size, form, partial(by_stack, "LSTM", size, budget, compiler, **options))
    print(table(day.head, day.rows).split("\n\n")[-1])


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        main()
