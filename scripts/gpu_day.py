"""What to measure on the day when a GPU is at hand, in eight minutes: the backends of `jaxrnn` and the forms of its loops, each against
the values of the plain loop first, then timed. At the end it says, by the rule, what backend="auto" should be on this device.

    python scripts/gpu_day.py                  # results/gpu_day_<device>.json and .md, written after every measurement
    python scripts/gpu_day.py --smoke --output /tmp/smoke      # tiny sizes, anywhere; kernels interpreted

All times are minima, with the projection of x; training is the gradient of the mean square of the outputs, by parameters and inputs.
Without --smoke it stops where JAX has no GPU, and begins no new case after `--limit` seconds.
"""

import argparse
import importlib
import json
import re
import time
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
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


def ways(cell: str, dtype: str) -> list[str]:
    return ["xla", "pallas", *(["cudnn", "torch"] if cell == "LSTM" and dtype == "float32" else [])]


def forms() -> dict:
    """Forms of XLA's loops: what they change, as (module, name, value), and options of the stack and the compiler."""
    apart = [(name, "GPUS", ()) for name in ("directions", "wavefront") if find_spec(f"jaxrnn.engine.{name}")]
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


def clock(run, budget: float) -> tuple[float, float]:
    """Seconds of the fastest call, and of the first one."""
    start = time.perf_counter()
    run()
    first, best, end, count = time.perf_counter() - start, float("inf"), time.perf_counter() + budget, 0
    while count < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best, count = min(best, time.perf_counter() - start), count + 1
    return best, first


def measure(fns: dict, arrays, want: dict, dtype: str, steps: int, budget: float) -> list[dict]:
    """Values of forward and training, then their times; no time where the values are wrong."""
    found = []
    for mode, f in fns.items():
        run = lambda f=f: jax.block_until_ready(f(*arrays))
        apart = distance(run(), want[mode])
        row = {"mode": mode, "apart": apart}
        if not apart <= APART[dtype]:  # nor NaN
            found.append(row | {"error": f"values are {apart:.1e} apart: not timed"})
            continue
        best, first = clock(run, budget)
        found.append(row | {"ms": best * 1e3, "us_per_step": best / steps * 1e6, "first_s": first})
    return found


def by_torch(size, budget: float) -> list[dict]:
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

    timed = {mode: clock(run, budget) for mode, run in (("forward", forward), ("training", training))}
    return [
        {"mode": mode, "ms": best * 1e3, "us_per_step": best / steps * 1e6, "first_s": first, "on": device}
        for mode, (best, first) in timed.items()
    ]


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
    lines = [f"# {head['device']}{', a smoke test: says nothing of speed' if head['smoke'] else ''}\n"]
    lines += [f"jax {head['jax']}; minima, with the projection of x\n"]
    lines += ["| cell | T, B, I, H, dtype | way | mode | ms | µs per step | apart |", "| --- " * 7 + "|"]
    for r in rows:
        said = [f"{r['ms']:.3f}", f"{r['us_per_step']:.2f}"] if "ms" in r else [r["error"], ""]
        apart = f"{r['apart']:.0e}" if "apart" in r else ""
        lines.append(f"| {' | '.join([r['cell'], ', '.join(map(str, r['size'])), r['way'], r['mode'], *said, apart])} |")
    lines += [f'\nBy the rule (≥ {RULE} × forward and training), backend="auto" should be:\n']
    lines += [
        f"- {v['cell']} at {', '.join(map(str, v['size']))}: {v['auto']} (gains {v['gains'] or 'none'})" for v in verdict(rows)
    ]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on any device")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="a folder")
    parser.add_argument("--limit", type=float, default=400, help="seconds after which no new case begins")
    given = parser.parse_args()
    started, device = time.perf_counter(), jax.devices()[0]
    if not given.smoke and device.platform != "gpu":
        parser.exit(1, f"JAX has no GPU here, only {device.device_kind}; --smoke tries the script without one\n")
    if given.smoke:
        fused_kernels.lower("cpu", interpret=True)
    budget = 0.01 if given.smoke else 0.5
    head = {"device": device.device_kind, "jax": jax.__version__, "smoke": given.smoke, "rule": RULE}
    given.output.mkdir(parents=True, exist_ok=True)
    path, rows = given.output / f"gpu_day_{re.sub(r'[^a-z0-9]+', '_', device.device_kind.lower()).strip('_')}", []

    def note(case: dict, results):
        """Run, keep and write what came of it; an error is a result too, and a case that came too late."""
        try:
            late = time.perf_counter() - started > given.limit
            found = [{"mode": "both", "error": "not begun, time was up"}] if late else results()
        except Exception as error:
            found = [{"mode": "both", "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}]
        for result in found:
            rows.append(case | result)
            print(json.dumps(rows[-1]), flush=True)
        took = round(time.perf_counter() - started, 1)
        said = head | {"seconds": took, "rows": rows, "auto": verdict(rows)}
        path.with_suffix(".json").write_text(json.dumps(said, indent=1) + "\n")
        path.with_suffix(".md").write_text(table(head, rows))

    def prepared(cell, size, **options):
        steps, batch, inputs, hidden, _ = size
        stack = Stack(CELLS[cell], inputs, hidden, **options)
        arrays = stack.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (steps, batch, inputs))
        with jax.default_matmul_precision("highest"):
            want = {mode: jax.block_until_ready(f(*arrays)) for mode, f in functions(stack).items()}
        return stack, arrays, want

    for size in SMALL if given.smoke else SIZES:
        for cell in CELLS:
            steps, *sizes, dtype = size
            try:
                _, arrays, want = prepared(cell, size)
            except Exception as error:
                note(
                    {"what": "backend", "cell": cell, "size": size, "way": "xla"}, lambda error=error: (_ for _ in ()).throw(error)
                )
                continue
            for way in ways(cell, dtype):
                case = {"what": "backend", "cell": cell, "size": size, "way": way}
                if way == "torch":
                    note(case, lambda size=size: by_torch(size, budget))
                    continue
                stack = lambda way=way, sizes=sizes, cell=cell: Stack(
                    CELLS[cell], *sizes[1:], dtype=jnp.dtype(size[-1]), backend=way
                )
                note(case, lambda stack=stack, a=arrays, w=want: measure(functions(stack()), a, w, size[-1], size[0], budget))
    size = SMALL[0] if given.smoke else SIZES[3]
    for form, (changes, options, compiler) in forms().items():
        with changed(changes):
            run = lambda: measure(functions(stack, compiler), arrays, want, size[-1], size[0], budget)
            stack, arrays, want = prepared("LSTM", size, **options)
            note({"what": "form", "cell": "LSTM", "size": size, "way": form}, run)
    print(table(head, rows).split("\nBy the rule")[1])


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        main()
