"""Compile the kernels of backend="pallas" for an H100, on a machine without one, at every size that they accept, with registers
kept in memory forbidden. Compiled, never timed. What to install is said by `scripts/compiled.py`.

    python scripts/compiled_kernels.py --output scripts/results/compiled_kernels
"""

import argparse
import json
import os
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from compiled import MARK
from compiled_devices import NoCompiler, compile_for

from jaxrnn import unroll
from jaxrnn.cells import CELLS
from jaxrnn.engine.fused_kernels import TILE, largest_hidden

FITTING = ("RNN", "LSTM", "GRU", "PeepholeLSTM", "CoupledLSTM", "LiGRU", "SLSTM")
DTYPES = ("bfloat16", "float32")
TIME, BATCH, INPUT = 20, 32, 8


def sizes(name: str, dtype: str) -> list[int]:
    """Hidden sizes: a little less than each power of two, which is padded to it, up to the largest; and that as it is."""
    cell, hidden, found = CELLS[name], TILE, []
    own = jax.eval_shape(lambda: cell().init(jax.random.key(0), INPUT, 1))[4:]
    largest = largest_hidden(len(cell.gates), len(cell.State._fields) + sum(a.size for a in own), dtype)
    while hidden <= largest:
        found.append(hidden - 3)
        hidden *= 2
    return [*found, largest]


def row(name: str, hidden: int, dtype: str) -> dict:
    """What forward and training of one cell compile to."""
    cell = CELLS[name]()
    params = jax.eval_shape(lambda: cell.init(jax.random.key(0), INPUT, hidden))
    xs, lengths = jax.ShapeDtypeStruct((TIME, BATCH, INPUT), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)

    def run(params, xs, lengths):
        return unroll(cell, params, xs, lengths=lengths, dtype=dtype, backend="pallas")

    def loss(params, xs, lengths):
        final, ys = run(params, xs, lengths)
        return jnp.mean(jnp.square(ys.astype(jnp.float32))) + sum(jnp.sum(a) for a in final)

    def both(*args):
        return run(*args), jax.grad(loss, (0, 1))(*args)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The Pallas Triton backend is deprecated")
        compiled = compile_for("h100", both, params, xs, lengths)
    return {
        "cell": name, "hidden": hidden, "dtype": dtype, "spills": compiled.spills, "loops": len(compiled.program.loops),
        "launches": compiled.program.in_all, "shared_memory": compiled.program.shared_memory, "temp_bytes": compiled.temp_bytes,
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """The rows, as a table in Markdown."""
    heads = ("cell", "dtype", "hidden", "registers in memory", "launches, forward and training", "shared memory")
    lines = [f"| {' | '.join(heads)} |", "|" + " --- |" * len(heads)]
    for r in rows:
        spills, shared = "yes" if r["spills"] else "no", f"{r['shared_memory']:,} B"
        lines.append(f"| {r['cell']} | {r['dtype']} | {r['hidden']} | {spills} | {r['launches']} | {shared} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cells", nargs="+", default=FITTING, choices=FITTING)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--output", type=Path, help="write OUTPUT.json and OUTPUT.md")
    given = parser.parse_args()
    rows = kept(given.output)
    done = {(row["cell"], row["hidden"], row["dtype"]) for row in rows}
    wanted = [(name, hidden, dtype) for name in given.cells for dtype in given.dtypes for hidden in sizes(name, dtype)]
    for case in sorted(set(wanted) - done, key=lambda case: (-case[1], wanted.index(case))):  # the largest first
        try:
            rows.append(row(*case))
        except NoCompiler as missing:
            parser.exit(1, f"{missing}\n")
        print(table(rows[-1:]).splitlines()[-1], flush=True)
        if given.output:
            write(given.output, rows)
    spilling = [r for r in rows if r["spills"]]
    parser.exit(1 if spilling else 0, f"{len(rows)} compiled, {len(spilling)} of them with registers in memory\n")


def versions() -> dict:
    return {name: version(name) for name in ("jax", "jaxlib", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12")}


def kept(output: Path | None) -> list[dict]:
    """The rows that there are already, of the same versions; after a change of the kernels, remove the file."""
    path = output and output.with_suffix(".json")
    before = json.loads(path.read_text()) if path and path.exists() else None
    return before["rows"] if before and before["versions"] == versions() else []


def write(output: Path, rows: list[dict]):
    """Write the table, in the order of cells, dtypes and sizes."""
    place = [(name, dtype, hidden) for name in FITTING for dtype in DTYPES for hidden in sizes(name, dtype)]
    rows = sorted(rows, key=lambda r: place.index((r["cell"], r["dtype"], r["hidden"])))
    given = {"what": MARK, "versions": versions(), "size": {"time": TIME, "batch": BATCH, "input": INPUT}, "rows": rows}
    output.with_suffix(".json").write_text(json.dumps(given, indent=1) + "\n")
    head = f"# Every size that the kernels accept: {MARK}\n\n{', '.join(f'{k} {v}' for k, v in versions().items())}; an H100; "
    head += f"T={TIME}, B={BATCH}, I={INPUT}, with lengths\n\n"
    output.with_suffix(".md").write_text(head + table(rows) + "\n")


if __name__ == "__main__":
    main()
