"""What the engine compiles to on an H100 and a TPU v5e, on a machine that has neither: launches per step, command buffers, shared
memory, spills, collectives, temporary memory. Compiled, never timed: nothing here says how fast a device is.

    pip install --no-deps jax-cuda12-pjrt==VERSION jax-cuda12-plugin==VERSION nvidia-cuda-nvcc-cu12    # the version of jax, ≥ 0.12
    pip install 'jax[tpu]==VERSION'
    python scripts/compiled.py --output scripts/results/compiled

Without a device there is no autotuning: which kernel XLA picks for a matrix product, and so whether it is one launch or two, may
differ on one. Training is the gradient of the mean square of the outputs, by parameters and inputs.
"""

import argparse
import json
import os
from importlib.metadata import version
from itertools import product
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from compiled_devices import NoCompiler, compile_for

from jaxrnn import GRUCell, LRUCell, LSTMCell, MinGRUCell, RNNCell, Stack

MARK = "compiled, never timed"
SIZES = {"short": (100, 32, 64, 128), "long": (1000, 16, 512, 512)}
"""Time, batch, input, hidden."""
CASES = {
    "RNN": (RNNCell(), {}),
    "LSTM": (LSTMCell(), {}),
    "GRU": (GRUCell(), {}),
    "LSTM, lengths": (LSTMCell(), {}),
    "LSTM, bidirectional": (LSTMCell(), {"bidirectional": True}),
    "LSTM, 4 layers": (LSTMCell(), {"num_layers": 4}),
    "LSTM, bfloat16": (LSTMCell(), {"dtype": jnp.bfloat16}),
    "minGRU": (MinGRUCell(), {}),
    "LRU": (LRUCell(), {}),
}
MODES = ("forward", "training")
DEVICES = ("h100", "v5e")


def case(name: str, size: str, mode: str):
    """The function of a row, and the shapes of its arguments."""
    time, batch, input_size, hidden = SIZES[size]
    cell, options = CASES[name]
    stack = Stack(cell, input_size, hidden, **options)
    params = jax.eval_shape(stack.init, jax.random.key(0))
    xs = jax.ShapeDtypeStruct((time, batch, input_size), jnp.float32)
    lengths = jax.ShapeDtypeStruct((batch,), jnp.int32) if "lengths" in name else None

    def forward(params, xs, lengths):
        return stack.apply(params, xs, lengths=lengths)

    def loss(params, xs, lengths):
        return jnp.mean(jnp.square(forward(params, xs, lengths)[0]))

    return forward if mode == "forward" else jax.value_and_grad(loss, (0, 1)), (params, xs, lengths)


def row(device: str, name: str, size: str, mode: str) -> dict:
    """What one case compiles to."""
    function, shapes = case(name, size, mode)
    compiled = compile_for(device, function, *shapes)
    time, program = SIZES[size][0], compiled.program
    of_loops = None if program.in_all is None else program.in_all - program.once
    return {
        "device": device,
        "case": name,
        "size": dict(zip(("time", "batch", "input", "hidden"), SIZES[size], strict=True)),
        "mode": mode,
        "launches_in_all": program.in_all,
        "launches_outside_loops": program.once,
        "launches_per_step": None if of_loops is None else round(of_loops / time, 2),
        "loops": [loop._asdict() for loop in program.loops],
        "shared_memory": program.shared_memory,
        "spills": compiled.spills,
        "collectives": compiled.collectives,
        "temp_bytes": compiled.temp_bytes,
    }


def table(rows: list[dict]) -> str:
    """The rows, as a table in Markdown."""
    heads = "device | case | T, B, I, H | mode | launches per step | of its loops | in all | command buffers, bare launches | "
    heads += "shared memory | spills | collectives | temporary memory"
    lines = [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]
    for r in rows:
        steps = r["size"]["time"]
        per = [f"{loop['launches'] * loop['trips'] / steps:.3g}" if loop["trips"] else "?" for loop in r["loops"]]
        buffers = [f"{loop['command_buffers']}, {loop['bare']}" for loop in r["loops"]]
        gpu = r["device"] == "h100"
        cells = [
            r["device"], r["case"], ", ".join(map(str, r["size"].values())), r["mode"], r["launches_per_step"] or "–",
            " + ".join(per), r["launches_in_all"] or "–", "; ".join(dict.fromkeys(buffers)) if gpu else "–",
            f"{r['shared_memory']:,} B" if gpu else "–", ("yes" if r["spills"] else "no") if gpu else "–", r["collectives"],
            f"{r['temp_bytes'] / 2**20:.1f} MiB",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--devices", nargs="+", default=DEVICES, choices=DEVICES)
    parser.add_argument("--cases", nargs="+", default=tuple(CASES), choices=tuple(CASES))
    parser.add_argument("--sizes", nargs="+", default=tuple(SIZES), choices=tuple(SIZES))
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    given = parser.parse_args()
    rows = []
    for device in given.devices:
        for size in given.sizes:
            for name in given.cases:
                for mode in given.modes:
                    try:
                        rows.append(row(device, name, size, mode))
                    except NoCompiler as missing:
                        parser.exit(1, f"{missing}\n")
                    print(table(rows[-1:]).splitlines()[-1], flush=True)
    versions = {name: version(name) for name in ("jax", "jaxlib", "jax-cuda12-pjrt", "libtpu") if _installed(name)}
    if given.output:
        write(given.output, versions, rows)


def write(output: Path, versions: dict, rows: list[dict]):
    """Write the table; rows that it has and that were not compiled again stay, if the versions are the same."""
    place = {(d, size, name, mode): k for k, (d, size, name, mode) in enumerate(product(DEVICES, SIZES.values(), CASES, MODES))}
    key = lambda row: (row["device"], tuple(row["size"].values()), row["case"], row["mode"])
    path = output.with_suffix(".json")
    before = json.loads(path.read_text()) if path.exists() else {"versions": versions, "rows": []}
    kept = before["rows"] if before["versions"] == versions else []
    rows = sorted(({key(row): row for row in kept} | {key(row): row for row in rows}).values(), key=lambda row: place[key(row)])
    output.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"what": MARK, "versions": versions, "rows": rows}, indent=1) + "\n")
    head = f"# What the engine compiles to: {MARK}\n\n{', '.join(f'{k} {v}' for k, v in versions.items())}\n\n"
    output.with_suffix(".md").write_text(head + table(rows) + "\n")


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


if __name__ == "__main__":
    main()
