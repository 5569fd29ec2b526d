"""The process of one contender, from inside (`serve`) and from outside (`Worker`).

It builds one contender for one problem, says so, and then answers the commands on its standard input, one line of JSON for each.
Between two commands it sleeps.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import jax
from contenders import CONTENDERS, faults
from work import Problem, Skip, Work

MIN_CALLS = 10


class Failed(Exception):
    """A contender's process ended without an answer."""


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def serve(name: str, problem: list, modes: list[str], seconds: float) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not stand between the answers

    def answer(result):
        print(json.dumps(result), file=answers, flush=True)

    jax.config.update("jax_num_cpu_devices", cores())
    if cores() == 1 and "torch" in name:
        import torch

        torch.set_num_threads(1)
    try:
        work = CONTENDERS[name].build(Problem(*problem))
        calls = {mode: work.calls[mode] for mode in modes if mode in work.calls}
        if not calls:
            raise Skip(f"it has no {' and no '.join(modes)}")
        hello = {"devices": work.devices}
        if name == "jaxrnn-sharded" and work.devices < len(jax.devices()):
            hello["note"] = f"{len(jax.devices())} devices do not divide the batch: {work.devices} used"
        answer(hello)
        commands = {
            "compile": lambda: compile_calls(work, calls),
            "time": lambda: {mode: {"time": time_call(*calls[mode], seconds)} for mode in calls},
            "check": lambda: {"faults": faults(name, Problem(*problem), work)},
        }
        for command in sys.stdin:
            answer(commands[command.strip()]())
    except Skip as reason:
        answer({"skip": str(reason)})
    except Exception as error:
        answer({"failed": f"{type(error).__name__}: {error}".splitlines()[0]})


def compile_calls(work: Work, calls: dict) -> dict:
    """Trace and compile what can be from nothing; leave the executables in `calls`."""
    jax.jit(lambda x: x + 1)(0.0)  # the first compilation of a process pays for starting LLVM
    result = {mode: {} for mode in calls}
    for mode in calls:
        function, arguments = work.calls[mode]
        if not hasattr(function, "lower"):
            continue
        jax.clear_caches()
        start = time.perf_counter()
        compiled = function.lower(*arguments).compile()
        seconds = time.perf_counter() - start
        calls[mode] = compiled, arguments
        memory = compiled.memory_analysis().temp_size_in_bytes
        result[mode] = {"compile": {"min": seconds, "median": seconds, "calls": 1}, "temp": memory}
    return result


def time_call(function, arguments: tuple, seconds: float) -> dict:
    """Minimum and median of at least MIN_CALLS calls and at least `seconds` of calling."""
    wait = jax.block_until_ready if isinstance(function, jax.stages.Compiled) else id  # others wait themselves
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
    """Start a contender; `hello` is its first answer: its devices, or why it cannot run. With `one_core` it is kept to one."""

    def __init__(self, name: str, problem: Problem, modes: tuple[str, ...], seconds: float, allocator: str, one_core: bool = False):
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors, "text": True}
        if one_core and hasattr(os, "sched_setaffinity"):
            pipes["preexec_fn"] = partial(os.sched_setaffinity, 0, {max(os.sched_getaffinity(0))})
        command = [sys.executable, __file__, json.dumps([name, problem, modes, seconds])]
        self.process = subprocess.Popen(command, env=environment(allocator, one_core), **pipes)
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


TUNED = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30), "MALLOC_TOP_PAD_": str(256 << 20)}


def environment(allocator: str, one_core: bool) -> dict[str, str]:
    """The same for every contender; compiled programs are never read from a disk."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    fixed = {"KERAS_BACKEND": "jax", "JAX_ENABLE_COMPILATION_CACHE": "false", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    return kept | fixed | (TUNED if allocator == "tuned" else {}) | ({"OMP_NUM_THREADS": "1"} if one_core else {})


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
