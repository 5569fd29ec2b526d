"""One training step on a sequence of which every device has a part: what each device holds, and what passes between them.

    python scripts/split_time.py                                  # a million steps on four devices, which a CPU can stand in for
    python scripts/split_time.py --devices 1 --steps 100000

The sequence is random; the cell, any that is linear in its state. Each device runs its part from zero, learns from the others what
comes into it (one row of the state for each of them), and runs it again from there. Bytes are those of the compiled program.
"""

import argparse
import re
import time

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxrnn import CELLS, unroll
from jaxrnn.cells import LinearCell

LINEAR = [name for name, cell in CELLS.items() if issubclass(cell, LinearCell)]


def gradient(cell, params, xs):
    """The loss, which sees all outputs, and its gradient by the weights."""
    return jax.value_and_grad(lambda params: jnp.mean(jnp.square(unroll(cell, params, xs)[1])))(params)


def setting(cell, args):
    """The compiled step and its arguments, time in as many parts as there are devices."""
    keys = jax.random.split(jax.random.key(args.seed))
    mesh = jax.make_mesh((args.devices,), ("time",), axis_types=(AxisType.Explicit,))
    params = jax.device_put(cell.init(keys[0], args.hidden, args.hidden), NamedSharding(mesh, P()))
    xs = jax.random.normal(keys[1], (args.steps, args.batch, args.hidden))
    xs = jax.device_put(xs, NamedSharding(mesh, P("time")))
    with jax.set_mesh(mesh):
        return jax.jit(gradient, static_argnums=0).lower(cell, params, xs).compile(), (params, xs)


def exchanged(program: str) -> int:
    """The entries of the largest array that devices exchange."""
    shapes = re.findall(r"= (.*?) (?:all-|reduce-scatter|collective-)[\w-]*\(", program)
    entries = lambda shape: jnp.prod(jnp.array([int(n) for n in shape.split(",") if n] or [1])).item()
    return max((entries(shape) for line in shapes for shape in re.findall(r"\[([\d,]*)\]", line)), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cell", default="LRU", type=_cell, help=f"one of {', '.join(LINEAR)}")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--devices", type=int, default=4, help="on a machine with a CPU alone, it stands in for as many")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for name in ("steps", "batch", "hidden", "devices"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} should be at least 1, got {getattr(args, name)}")
    if args.steps % args.devices:
        parser.error(f"--steps should be a multiple of --devices, {args.devices}, got {args.steps}")
    jax.config.update("jax_num_cpu_devices", args.devices)
    if jax.device_count() < args.devices:
        parser.error(f"--devices should be at most {jax.device_count()}, as many as there are, got {args.devices}")

    compiled, arrays = setting(CELLS[args.cell](), args)
    memory = compiled.memory_analysis()
    begin = time.perf_counter()
    loss, _ = jax.block_until_ready(compiled(*arrays))
    seconds = time.perf_counter() - begin
    parts = f"{args.steps:,} steps in {args.devices} parts" if args.devices > 1 else f"{args.steps:,} steps in one part"
    print(f"{args.cell}, {parts}: loss {loss:.6f}, one step of training in {seconds:.1f} s")
    print(f"each device: {memory.argument_size_in_bytes / 2**20:.0f} MiB of input and weights,", end=" ")
    print(f"{memory.temp_size_in_bytes / 2**20:.0f} MiB while it runs;", end=" ")
    print(f"largest array exchanged: {exchanged(compiled.as_text()):,} numbers")


def _cell(name: str) -> str:
    found = {one.lower(): one for one in LINEAR}.get(name.lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"should be one of {', '.join(LINEAR)}, got {name!r}")
    return found


if __name__ == "__main__":
    main()
