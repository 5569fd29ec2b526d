"""What a compiled program says of itself: launches and loops out of XLA's texts. Nothing is compiled here, and JAX not imported."""

import re
from typing import NamedTuple


class Loop(NamedTuple):
    """A loop of a compiled program; a loop inside of it is one of its own."""

    trips: int | None
    """How often its body runs in all, those of the loops around it multiplied; None where the program does not say."""
    launches: int
    """Kernels and copies of one iteration; on a TPU, operations."""
    command_buffers: int
    """Sequences of launches that are recorded once and started together."""
    bare: int
    """Launches outside of any command buffer: each is started from the host."""


class Program(NamedTuple):
    """What is outside of all loops, and the loops in the order in which they run."""

    once: int
    loops: tuple[Loop, ...]
    shared_memory: int
    """Bytes, of the kernel that asks for most."""

    @property
    def in_all(self) -> int | None:
        """Launches of one run."""
        if any(loop.trips is None for loop in self.loops):
            return None
        return self.once + sum(loop.trips * loop.launches for loop in self.loops)


CONTAINERS = {"kAsyncDone", "kAsyncStart", "kCommandBuffer", "kConditional", "kDynamicSliceFusion", "kSequential", "kWhile"}
"""Thunks that start nothing themselves: those inside of them do. The two halves of an asynchronous launch hold one."""

FREE = {"after-all", "bitcast", "constant", "get-tuple-element", "parameter", "partition-id", "tuple"}
"""Instructions that no device carries out."""

NO_WORK = ('"AllocateBuffer"', '"ConcatBitcast"')
"""Targets of custom calls that only name memory."""

HALVES = ("-done", "-update")
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


def gpu_program(thunks: str, hlo: str) -> Program:
    """From a thunk sequence (of a dump: `…thunk_sequence_after_thunk_passes.txt`) and the optimised HLO, for the trip counts."""
    trips = iter(_trips(hlo))
    top, loops, path, buffers, shared = [0, 0, 0], [], [], [], 0
    for line in thunks.splitlines():
        indent = len(line) - len(line.lstrip())
        part = line.strip()
        if part == "body:":  # until here it was the condition, which a device does not run where the number of trips is known
            path = [(at, loop, part if at == indent - 2 else was) for at, loop, was in path if at < indent]
            continue
        thunk = re.match(r"\d+: (k\w+)", part)
        if thunk is None:
            continue
        path = [entry for entry in path if entry[0] < indent]
        buffers = [at for at in buffers if at < indent]
        counts = path[-1][1] if path else top
        if path and path[-1][2] == "condition:":
            continue
        if thunk[1] == "kWhile":
            loop = [0, 0, 0, next(trips)]
            loops.append(loop)
            path.append((indent, loop, "condition:"))
        elif thunk[1] == "kCommandBuffer":
            counts[1] += 1
            buffers.append(indent)
        elif thunk[1] not in CONTAINERS:
            counts[0] += 1
            counts[2] += not buffers
        memory = re.search(r"shared_memory: (\d+)", part)
        shared = max(shared, int(memory[1])) if memory else shared
    return Program(top[0], tuple(Loop(n, *counts) for *counts, n in loops), shared)


def tpu_program(hlo: str) -> Program:
    """From the optimised HLO: what a TPU's core carries out one after another. Counters and other scalars are not counted."""
    bodies = _computations(hlo)
    loops = [Loop(n, _operations(bodies[name]), 0, 0) for name, n in _whiles(hlo, bodies)]
    return Program(_operations(bodies[_entry(hlo)]), tuple(loops), 0)


def collectives(hlo: str) -> int:
    """Exchanges between devices, wherever they stand; the two halves of an asynchronous one count once."""
    return len(re.findall(rf" (?:{'|'.join(COLLECTIVES)})(?:-start)?\(", hlo))


def _trips(hlo: str) -> list[int | None]:
    return [n for _, n in _whiles(hlo, _computations(hlo))]


def _whiles(hlo: str, bodies: dict[str, list[str]]) -> list[tuple[str, int | None]]:
    """The body of every loop, and how often it runs in all, in the order of the schedule, outer loops before inner ones."""
    found = []

    def visit(name, times):
        for line in bodies[name]:
            if _operation(line) == "while":
                body = re.search(r"body=%?([\w.\-]+)", line)[1]
                count = _trip_count(line, bodies)
                n = None if times is None or count is None else times * count
                found.append((body, n))
                visit(body, n)

    visit(_entry(hlo), 1)
    return found


def _trip_count(loop: str, bodies: dict[str, list[str]]) -> int | None:
    """As the loop says, or as its condition does: a counter from zero, compared with a constant."""
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop)
    if known:
        return int(known[1])
    condition = bodies[re.search(r"condition=%?([\w.\-]+)", loop)[1]]
    bound = re.match(r"ROOT .* compare\([^,]*, %?([\w.\-]+)\), direction=LT", condition[-1])
    values = [re.match(rf"%?{re.escape(bound[1])} = .* constant\((\d+)\)", line) for line in condition] if bound else []
    return next((int(value[1]) for value in values if value), None)


def _entry(hlo: str) -> str:
    return re.search(r"^ENTRY %?([\w.\-]+)", hlo, re.M)[1]


def _computations(hlo: str) -> dict[str, list[str]]:
    """The instructions of each computation, by name."""
    found, name = {}, None
    for line in hlo.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            name = head[1]
            found[name] = []
        elif name and line.startswith("  "):
            found[name].append(line.strip())
    return found


def _operation(line: str) -> str | None:
    """The kind of an instruction: the word before its operands, after the shape of its result."""
    line = re.sub(r"/\*.*?\*/", "", line)
    shape = r"(?:\((?:[^()]|\([^()]*\)|\((?:[^()]|\([^()]*\))*\))*\)|\S+)"
    found = re.match(rf"(?:ROOT )?%?[\w.\-]+ = {shape} ([\w\-]+)\(", line)
    return found[1] if found else None


def _operations(lines: list[str]) -> int:
    """How many of the instructions are work on arrays."""
    work = 0
    for line in lines:
        operation = _operation(line)
        scalar = re.match(r"(?:ROOT )?%?[\w.\-]+ = \w+\[\]", line)
        if operation and operation not in FREE | {"while"} and not operation.endswith(HALVES) and not scalar:
            work += not any(target in line for target in NO_WORK)
    return work
