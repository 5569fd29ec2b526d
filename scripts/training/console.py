"""What a run says: lines, how far it is, errors without a traceback. Nothing about training."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

LOST = ("Gloo", "NCCL", "coordination", "UNAVAILABLE", "Barrier", "closed by peer")
"""Words in the errors of JAX by which a lost process is known."""

BETWEEN_LINES, BETWEEN_FRAMES = 10.0, 0.5
"""Seconds between two lines that say how far a run is, where there is no terminal; and between two changes of the bar, where there
is one."""

speaking = True
"""Whether `log` prints: of several processes, one does."""

_last_line = -BETWEEN_LINES
"""When a line was printed last."""


class Failure(Exception):
    """A run cannot go on, for a reason that its user can mend: the message is all that is shown."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(message)
        self.code = code


def require(package: str, install: str):
    """Say now, not at the end of a run, what should be installed.

    Raises:
        Failure: there is no such package; names the `pip install`.
    """
    if importlib.util.find_spec(package) is None:
        raise Failure(f"the package {package} is missing: pip install {install!r}", code=2)


def log(text: str):
    """Print a line at once, above the progress bar if there is one."""
    global _last_line
    if not speaking:
        return
    _last_line = time.monotonic()
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()
    else:
        print(text, flush=True)


def warn(text: str):
    """Print a line to stderr: something is not as it should be, and the run goes on."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """Steps, and how far they are, on stderr: a bar if that is a terminal and tqdm is installed, else a line now and then.

    Args:
        steps: what to go through.
        label: what the bar and the lines begin with.
    """

    def __init__(self, steps: range, label: str):
        self.steps, self.label, self.bar = steps, label, None
        self.begun = self.shown = time.monotonic()
        self.first: tuple[int, float] | None = None
        if speaking and sys.stderr.isatty() and importlib.util.find_spec("tqdm"):
            from tqdm import tqdm

            self.bar = tqdm(desc=label, leave=False, dynamic_ncols=True, initial=steps.start - steps.step, total=steps.stop - 1)

    def __iter__(self) -> Iterator[int]:
        try:
            for step in self.steps:
                yield step
                if self.bar is not None:
                    self.bar.update(step - self.bar.n)
        finally:
            if self.bar is not None:
                self.bar.close()

    @property
    def due(self) -> bool:
        """Whether it is time to show something again: to ask costs nothing."""
        if self.bar is not None:
            return time.monotonic() - self.shown >= BETWEEN_FRAMES
        return speaking and time.monotonic() - max(self.shown, _last_line) >= BETWEEN_LINES

    def show(self, step: int, **numbers: Any):
        """Show numbers of a step, if it is time to."""
        self.first = self.first or (step, time.monotonic())  # what was compiled before is not counted
        if not self.due:
            return
        self.shown = time.monotonic()
        text = ", ".join(f"{name} {float(value):.4g}" for name, value in numbers.items())
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
            self.bar.set_postfix_str(text)
        else:
            seconds, last = self.shown - self.begun, self.steps.stop - 1
            step_0, then = self.first
            left = f", about {(self.shown - then) / (step - step_0) * (last - step):.0f} s left" if step_0 < step < last else ""
            where = ", ".join(filter(None, (f"{self.label}: {step} of {last}", text)))
            print(f"{where} ({seconds:.0f} s{left})", file=sys.stderr, flush=True)


def exit_code(main: Callable[[], None]) -> int:
    """Run a script's `main`: 0, or the code of what stopped it, said in one message on stderr.

    A reader that has gone away (`script | head`) and an interrupt before a run's folder is open end it quietly, with the codes of
    shells: 141 and 130.
    Where several processes train, one that fails leaves at once, and the others say that it did.
    """
    code = 0
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a pipe on Windows does not know every character
    try:
        main()
        sys.stdout.flush()
    except Failure as failure:
        code = failure.code
        error = "" if code > 128 else "error: "
        print(f"{os.path.basename(sys.argv[0])}: {error}{failure}", file=sys.stderr)
    except BrokenPipeError:
        code = 141
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        if not (jax.distributed.is_initialized() and any(word in str(error) for word in LOST)):
            raise
        code = 1
        print(
            f"{os.path.basename(sys.argv[0])}: error: another process of the run has died ({_first_line(error)}).", file=sys.stderr
        )
        print("Start all of them again with the same commands: they go on from the last checkpoint.", file=sys.stderr)
    if code and jax.distributed.is_initialized():  # do not wait for the others
        sys.stderr.flush()
        os._exit(code)
    return code


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
