"""Time `jaxrnn` beside its peers: forward, training step, one step, compile time, temporary memory.

    python scripts/benchmark                    # everything: about an hour on two cores
    python scripts/benchmark --quick            # less than two minutes
    python scripts/benchmark --lines grid --cells GRU --sizes 100,32,64,128
    python scripts/benchmark --check            # are the contenders the layers they should be?

Every contender of a line runs in a process of its own, and they take turns: a round is one turn of each, in rotated order, and only
one of them runs at a time. A turn repeats the call for a while, waits for its results every time, and reports the minimum and the
median; the table shows the smallest minimum and the median of the medians. The training step is the value and the gradient of a
scalar that touches every output and every final state, with respect to all weights and the input, the same for all. Every library
keeps its default precision. Compile time includes tracing. Lines of one core keep each process to one.

Lines: `grid` (sizes), `stack` (two bidirectional layers), `compile` (four), `features` (options of ours), `linear` (cells that are
linear or diagonal in the state, beside the GRU), `core` (forward on one core), `step` (a stream, one step a call, on one core).

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

from contenders import CONTENDERS, FEATURES, PARALLEL, PEERS, STEPS
from report import line_table, plot, summarise, summary_table
from work import GATES, Problem
from worker import TUNED, Failed, Worker, cores

SIZES = [(3, 5, 10, 20), (100, 1, 32, 64), (100, 32, 64, 128), (128, 32, 128, 256), (1000, 16, 32, 64), (64, 64, 512, 512)]
TYPICAL = (100, 32, 64, 128)
FULL = {
    "lines": ["grid", "stack", "compile", "features", "linear", "core", "step"],
    "cells": list(GATES), "sizes": SIZES, "contenders": list(CONTENDERS), "rounds": 3, "seconds": 0.5,
}  # fmt: skip
QUICK = {
    "lines": ["grid", "compile", "features"], "cells": ["LSTM"], "sizes": [SIZES[0], TYPICAL], "rounds": 1, "seconds": 0.1,
    "contenders": ["jaxrnn", "jaxrnn-sharded", "torch", "linen", "naive", "floor", "jaxrnn+lengths"],
}  # fmt: skip
PACKAGES = ["jaxrnn", "jax", "jaxlib", "torch", "flax", "dm-haiku", "equinox", "keras", "onnxruntime", "numpy"]
FLAGS = ["XLA_FLAGS", "OMP_NUM_THREADS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"]


class Line(NamedTuple):
    """One problem, the contenders that meet on it, and in what."""

    kind: str
    problem: Problem
    contenders: list[str]
    modes: tuple[str, ...] = ("forward", "train")
    one_core: bool = False


def lines_to_run(options) -> list[Line]:
    plain = ["jaxrnn", "jaxrnn-sharded", *PEERS, "torch", "cudnn", "naive", "floor"]
    alone = [f"jaxrnn+{name}" for name in FEATURES if name != "dropout"]  # which acts between layers
    deep, deeper = ({"num_layers": layers, "bidirectional": True} for layers in (2, 4))
    runtimes = ["jaxrnn", "torch", "onnxruntime", "jax2onnx"]
    core = [("GRU", 541, 1, 400, 400, 2), ("LSTM", 160, 1, 256, 256, 3), ("LSTM", 160, 16, 256, 256, 3), ("LSTM", 100, 8, 128, 128)]
    long = [(1000, 16, 64, 64), (4096, 4, 256, 256), (100, 32, 128, 128), (16384, 1, 64, 64)]
    lines = [
        *[Line("grid", Problem(cell, *size), plain) for cell in options.cells for size in options.sizes],
        Line("stack", Problem("LSTM", *TYPICAL, **deep), plain),
        Line("compile", Problem("LSTM", *TYPICAL, **deeper), ["jaxrnn", "linen"]),
        *[Line("features", Problem(cell, *TYPICAL), ["jaxrnn", *alone]) for cell in ("LSTM", "GRU")],
        *[Line("features", Problem(cell, *TYPICAL, 2), ["jaxrnn", "jaxrnn+dropout"]) for cell in ("LSTM", "GRU")],
        *[Line("linear", Problem("GRU", *size), ["jaxrnn", *PARALLEL]) for size in long],
        *[Line("core", Problem(*sizes), runtimes, ("forward",), one_core=True) for sizes in core],
        Line("step", Problem("LSTM", 1, 1, 128, 128, 2), [*STEPS, "torch", "onnxruntime"], ("step",), one_core=True),
    ]
    kept = [line for line in lines if line.kind in options.lines and line.problem.cell in options.cells]
    kept = [line._replace(contenders=[name for name in line.contenders if name in options.contenders]) for line in kept]
    return [line for line in kept if len(line.contenders) >= (2 if line.kind in ("features", "linear") else 1)]


def run_line(line: Line, options) -> dict:
    """Measure one line; a contender that is missing or fails is left out with its reason."""
    result = {"kind": line.kind, **line.problem._asdict(), "contenders": {}, "skipped": {}, "failed": {}}
    workers: dict[str, Worker] = {}

    def turn(name, command):
        try:
            for mode, values in workers[name].ask(command).items():
                add(result["contenders"][name].setdefault(mode, {}), values)
        except Failed as reason:
            result["failed"][name] = str(reason)
            del result["contenders"][name]
            workers.pop(name).close()

    try:
        for name in line.contenders:
            try:
                workers[name] = worker = start(name, line, options)
            except Skipped as reason:
                result["skipped"][name] = str(reason)
            except Failed as reason:
                result["failed"][name] = str(reason)
            else:
                result["contenders"][name] = worker.hello
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


def start(name: str, line: Line, options) -> Worker:
    package = CONTENDERS[name].package
    if util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed")
    worker = Worker(name, line.problem, line.modes, options.seconds, options.allocator, line.one_core)
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
        least, median = min(t["min"] for t in turns), statistics.median(t["median"] for t in turns)
        record[what] |= {"min": least, "median": median, "calls": sum(t["calls"] for t in turns)}


def check(options) -> int:
    """Say for every cell and contender whether it is the layer it should be."""
    code = 0
    for cell in options.cells:
        for name in options.contenders:
            problem = Problem(cell, 5, 4, 3, 6, num_layers=2, bidirectional=not (name in STEPS or name in PARALLEL))
            try:
                with contextlib.closing(start(name, Line("check", problem, [], ("forward", "train", "step")), options)) as worker:
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
            raise argparse.ArgumentTypeError(f"should be four positive whole numbers: time,batch,input,hidden, got {text!r}")
        return tuple(map(int, numbers))

    def positive(kind, name):
        def number(text):
            with contextlib.suppress(ValueError):
                if 0 < kind(text) < math.inf:
                    return kind(text)
            raise argparse.ArgumentTypeError(f"should be a positive {name}, got {text!r}")

        return number

    parser = argparse.ArgumentParser("benchmark", "%(prog)s [options]", __doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="measure few lines, contenders and calls")
    parser.add_argument("--check", action="store_true", help="check that the contenders agree, and time nothing")
    parser.add_argument("--lines", nargs="+", choices=FULL["lines"], help="kinds of measurements to make")
    parser.add_argument("--cells", nargs="+", choices=FULL["cells"], help="cells to measure")
    parser.add_argument("--sizes", nargs="+", type=size, metavar="T,B,I,H", help="shapes of the grid")
    named = ", ".join(f"'{name}'" if " " in name else name for name in FULL["contenders"])
    parser.add_argument("--contenders", nargs="+", choices=FULL["contenders"], metavar="NAME", help=named)
    parser.add_argument("--rounds", type=positive(int, "whole number"), help="how often every contender has its turn")
    parser.add_argument("--seconds", type=positive(float, "number"), help="how long a contender is called in one turn")
    parser.add_argument("--allocator", choices=["default", "tuned"], default="default", help="settings of malloc")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"), metavar="FOLDER", help="folder for the results")
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
