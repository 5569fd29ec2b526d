"""Time `jaxrnn` beside its peers: forward, training step, compile time, temporary memory.

    python scripts/benchmark.py                    # everything: about an hour on two cores
    python scripts/benchmark.py --quick            # less than two minutes
    python scripts/benchmark.py --lines grid --cells GRU --sizes 100,32,64,128
    python scripts/benchmark.py --check            # are the contenders the layers they should be?

Every contender of a line runs in a process of its own, and they take turns: a round is one turn of
each, in rotated order, and only one of them runs at a time. A turn repeats the call for a while,
waits for its results every time, and reports the minimum and the median; the table shows the
smallest minimum and the median of the medians. The training step is the value and the gradient of a
scalar that touches every output and every final state, with respect to all weights and the input,
the same for all. Every library keeps its default precision. Compile time includes tracing.

Writes `benchmark.json`, `benchmark.txt` and, with matplotlib, `benchmark.png` to the output folder.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

from benchmark_contenders import CONTENDERS, FEATURE_NAMES
from benchmark_report import line_table, plot, summarise, summary_table
from benchmark_work import GATES, Problem
from benchmark_worker import TUNED, Failed, Worker, cores

SIZES = [
    (3, 5, 10, 20),
    (100, 1, 32, 64),
    (100, 32, 64, 128),
    (128, 32, 128, 256),
    (1000, 16, 32, 64),
    (64, 64, 512, 512),
]
TYPICAL = (100, 32, 64, 128)
FULL = {
    "lines": ["grid", "stack", "compile", "features"],
    "cells": list(GATES),
    "sizes": SIZES,
    "contenders": list(CONTENDERS),
    "rounds": 3,
    "seconds": 0.5,
}
QUICK = {
    "lines": ["grid", "compile", "features"],
    "cells": ["LSTM"],
    "sizes": [(3, 5, 10, 20), TYPICAL],
    "contenders": ["jaxrnn", "jaxrnn-sharded", "torch", "linen", "naive", "floor", "jaxrnn+lengths"],
    "rounds": 1,
    "seconds": 0.1,
}
PACKAGES = ["jaxrnn", "jax", "jaxlib", "torch", "flax", "dm-haiku", "equinox", "keras", "numpy"]
FLAGS = ["XLA_FLAGS", "OMP_NUM_THREADS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"]


class Line(NamedTuple):
    """One problem and the contenders that meet on it."""

    kind: str
    problem: Problem
    contenders: list[str]


def lines_to_run(options) -> list[Line]:
    plain = [name for name in CONTENDERS if name not in FEATURE_NAMES]
    between = ["jaxrnn+dropout"]  # between layers: nothing to do in a single one
    alone = [name for name in FEATURE_NAMES if name not in between]
    deep, deeper = ({"num_layers": layers, "bidirectional": True} for layers in (2, 4))
    lines = [
        *[Line("grid", Problem(c, *s), plain) for c in options.cells for s in options.sizes],
        Line("stack", Problem("LSTM", *TYPICAL, **deep), plain),
        Line("compile", Problem("LSTM", *TYPICAL, **deeper), ["jaxrnn", "linen"]),
        *[Line("features", Problem(c, *TYPICAL), ["jaxrnn", *alone]) for c in ("LSTM", "GRU")],
        *[Line("features", Problem(c, *TYPICAL, 2), ["jaxrnn", *between]) for c in ("LSTM", "GRU")],
    ]
    kept = [
        line._replace(contenders=[name for name in line.contenders if name in options.contenders])
        for line in lines
        if line.kind in options.lines and line.problem.cell in options.cells
    ]
    least = {"features": 2}  # with the plain layer that they are compared with
    return [line for line in kept if len(line.contenders) >= least.get(line.kind, 1)]


def run_line(line: Line, options) -> dict:
    """Measure one line; a contender that is missing or fails is left out with its reason."""
    result = {"kind": line.kind, **line.problem._asdict()}
    result |= {"contenders": {}, "skipped": {}, "failed": {}}
    workers: dict[str, Worker] = {}

    def turn(name, command):
        try:
            for mode, values in workers[name].ask(command).items():
                add(result["contenders"][name][mode], values)
        except Failed as reason:
            result["failed"][name] = str(reason)
            del result["contenders"][name]
            workers.pop(name).close()

    try:
        for name in line.contenders:
            try:
                workers[name] = worker = start(name, line.problem, options)
            except Skipped as reason:
                result["skipped"][name] = str(reason)
            except Failed as reason:
                result["failed"][name] = str(reason)
            else:
                result["contenders"][name] = worker.hello | {"forward": {}, "train": {}}
                turn(name, "compile")
        for i in range(options.rounds):
            first = i % max(len(workers), 1)
            for name in [*workers][first:] + [*workers][:first]:
                turn(name, "compile" if line.kind == "compile" else "time")
    finally:
        for worker in workers.values():
            worker.close()
    return result


class Skipped(Exception):
    """A contender that is not installed, or cannot run this problem on this machine."""


def start(name: str, problem: Problem, options) -> Worker:
    package = CONTENDERS[name].package
    if util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")
    worker = Worker(name, problem, options.seconds, options.allocator)
    if "skip" in worker.hello:
        worker.close()
        raise Skipped(worker.hello["skip"])
    return worker


def add(record: dict, values: dict) -> None:
    """Merge one turn into what is known of one mode of one contender."""
    if "temp" in values:
        record["temp"] = values.pop("temp")
    for what, turn in values.items():
        turns = record.setdefault(what, {"turns": []})["turns"]
        turns.append(turn)
        record[what] |= {
            "min": min(t["min"] for t in turns),
            "median": statistics.median(t["median"] for t in turns),
            "calls": sum(t["calls"] for t in turns),
        }


def check(options) -> int:
    """Say for every cell and contender whether it is the layer it should be."""
    code = 0
    for cell in options.cells:
        for name in options.contenders:
            problem = Problem(cell, 5, 4, 3, 6, num_layers=2, bidirectional=True)
            try:
                with contextlib.closing(start(name, problem, options)) as worker:
                    found = worker.ask("check")["faults"]
            except Skipped as reason:
                text = f"skipped: {reason}"
            except Failed as reason:
                text, code = f"failed: {reason}", 1
            else:
                text, code = ("FAULT: " + "; ".join(found), 1) if found else ("ok", code)
            print(f"{cell:5} {name:25} {text}", flush=True)
    return code


def header(options) -> dict:
    def version(package):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)

    probe = "import jax; d = jax.devices(); print(len(d), d[0].platform, d[0].device_kind)"
    device = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    return {
        "command": shlex.join(["python", *sys.argv]),
        "cores": cores(),
        "processor": processor(),
        "device": device.stdout.strip(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
        "allocator": TUNED if options.allocator == "tuned" else "default",
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "load": os.getloadavg()[0],  # of what else runs here
        "rounds": options.rounds,
        "seconds": options.seconds,
    }


def processor() -> str:
    with contextlib.suppress(OSError):
        for text in Path("/proc/cpuinfo").read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor()


def parse(arguments: list[str] | None):
    def size(text):
        numbers = text.split(",")
        if len(numbers) != 4 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
            rule = "should be four positive whole numbers: time,batch,input,hidden"
            raise argparse.ArgumentTypeError(f"{rule}, got {text!r}")
        return tuple(map(int, numbers))

    def positive(kind, name):
        def number(text):
            with contextlib.suppress(ValueError):
                if 0 < kind(text) < math.inf:
                    return kind(text)
            raise argparse.ArgumentTypeError(f"should be a positive {name}, got {text!r}")

        return number

    parser = argparse.ArgumentParser(usage="%(prog)s [options]", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="few lines, contenders and calls")
    parser.add_argument("--check", action="store_true", help="check the contenders, time nothing")
    parser.add_argument("--lines", nargs="+", choices=FULL["lines"], help="kinds of lines")
    parser.add_argument("--cells", nargs="+", choices=FULL["cells"], help="of all lines")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="T,B,I,H", help="of the grid")
    parser.add_argument(
        "--contenders",
        nargs="+",
        choices=FULL["contenders"],
        metavar="NAME",
        help=", ".join(FULL["contenders"]),
    )
    parser.add_argument("--rounds", type=positive(int, "whole number"), help="turns of every contender")
    parser.add_argument("--seconds", type=positive(float, "number"), help="of calling in one turn")
    parser.add_argument("--allocator", choices=["default", "tuned"], default="default", help="of malloc")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, FULL[name] if options.check else value)
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"argument --output: {options.output} is not a folder")
    if not options.check and not lines_to_run(options):
        parser.error("no line is left: these --lines, --cells and --contenders never meet")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.check:
        return check(options)
    options.output.mkdir(parents=True, exist_ok=True)
    results = {"header": header(options), "lines": [], "summary": []}
    with (options.output / "benchmark.txt").open("w") as file:

        def show(text):
            print(text, flush=True)
            print(text, file=file, flush=True)

        show("\n".join(f"{name}: {value}" for name, value in results["header"].items()))
        for line in lines_to_run(options):
            results["lines"].append(run_line(line, options))
            results["summary"] = summarise(results["lines"])
            show("\n" + line_table(results["lines"][-1]))
            (options.output / "benchmark.json").write_text(json.dumps(results, indent=1))
        show("\n" + summary_table(results["summary"]))
    if not plot(results, options.output / "benchmark.png"):
        print("no plot: matplotlib is not installed")
    return int(any(line["failed"] for line in results["lines"]))


if __name__ == "__main__":
    sys.exit(main())
