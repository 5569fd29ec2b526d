"""The process of one contender, from inside (`serve`) and from outside (`Worker`).

It builds one contender for one problem, says so, and then answers the commands on its standard
input, one line of JSON for each. Between two commands it sleeps.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import jax
from benchmark_contenders import CONTENDERS, faults
from benchmark_work import Problem, Skip, Work

MIN_CALLS = 10
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
}


class Failed(Exception):
    """A contender's process ended without an answer."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def serve(name: str, problem: list, seconds: float) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers

    def answer(result):
        print(json.dumps(result), file=answers, flush=True)

    jax.config.update("jax_num_cpu_devices", cores())
    try:
        answer_commands(name, Problem(*problem), seconds, answer)
    except Skip as reason:
        answer({"skip": str(reason)})
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


def answer_commands(name: str, problem: Problem, seconds: float, answer) -> None:
    work = CONTENDERS[name].build(problem)
    hello = {"devices": work.devices}
    if name.endswith("-sharded") and work.devices < len(jax.devices()):
        count = len(jax.devices())
        hello["note"] = f"{count} devices do not divide batch {problem.batch}: {work.devices} used"
    answer(hello)
    calls = modes(work)
    commands = {
        "compile": lambda: compile_calls(work, calls),
        "time": lambda: {mode: {"time": time_call(*calls[mode], seconds)} for mode in calls},
        "check": lambda: {"faults": faults(name, problem, work)},
    }
    for command in sys.stdin:
        answer(commands[command.strip()]())


def modes(work: Work) -> dict:
    return {"forward": (work.forward, work.forward_args), "train": (work.train, work.train_args)}


def compile_calls(work: Work, calls: dict) -> dict:
    """Trace and compile both functions from nothing; leave the executables in `calls`."""
    if not hasattr(work.train, "lower"):
        return {mode: {} for mode in calls}
    jax.jit(lambda x: x + 1)(0.0)  # the first compilation of a process pays for starting LLVM
    result = {}
    for mode, (function, arguments) in modes(work).items():
        jax.clear_caches()
        start = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        seconds = time.perf_counter() - start
        calls[mode] = compiled, arguments
        result[mode] = {
            "compile": {"min": seconds, "median": seconds, "calls": 1},
            "temp": compiled.memory_analysis().temp_size_in_bytes,
        }
    return result


def time_call(function, arguments: tuple, seconds: float) -> dict:
    """Minimum and median of at least MIN_CALLS calls and at least `seconds` of calling."""
    # the two functions of torch wait by themselves
    wait = jax.block_until_ready if isinstance(function, jax.stages.Compiled) else id
    for _ in range(2):
        wait(function(*arguments))
    times: list[float] = []
    while len(times) < MIN_CALLS or sum(times) < seconds:
        start = time.perf_counter()
        result = function(*arguments)
        wait(result)
        times.append(time.perf_counter() - start)
        del result
    return {"min": min(times), "median": statistics.median(times), "calls": len(times)}


class Worker:
    """Start a contender; `hello` is its first answer: its devices, or why it cannot run."""

    def __init__(self, name: str, problem: Problem, seconds: float, allocator: str):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([name, problem, seconds])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(allocator),
        )
        try:
            self.hello = self.read()
        except BaseException:
            self.close()
            raise

    def ask(self, command: str) -> dict:
        with contextlib.suppress(BrokenPipeError):  # read() says why
            print(command, file=self.process.stdin, flush=True)
        return self.read()

    def read(self) -> dict:
        text = self.process.stdout.readline()
        if text:
            result = json.loads(text)
            if "failed" in result:
                raise Failed(result["failed"])
            return result
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:]
        raise Failed(*last or [f"ended with code {self.process.wait()}"])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.process.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


def environment(allocator: str) -> dict[str, str]:
    """The same for every contender; compiled programs are never read from a disk."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    fixed = {
        "KERAS_BACKEND": "jax",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    return kept | fixed | (TUNED if allocator == "tuned" else {})


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
