"""What a run says: lines, a progress bar where there is a terminal, errors without a traceback. Nothing about training."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable

import jax

LOST = ("Gloo", "NCCL", "coordination", "UNAVAILABLE", "Barrier", "closed by peer")
"""Words in the errors of JAX by which a lost process is known."""

speaking = True
"""Whether `say` prints: of several processes, one does."""


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


def progress(steps: Iterable, label: str) -> Iterable:
    """The same steps, with a bar on stderr if that is a terminal and tqdm is installed."""
    if not (speaking and sys.stderr.isatty()) or importlib.util.find_spec("tqdm") is None:
        return steps
    from tqdm import tqdm

    return tqdm(steps, desc=label, leave=False, dynamic_ncols=True)


def say(text: str):
    """Print a line at once, above the progress bar if there is one."""
    if not speaking:
        return
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()
    else:
        print(text, flush=True)


def exit_code(main: Callable[[], None]) -> int:
    """Run a script's `main`: 0, or the code of what stopped it, said in one message on stderr.

    A reader that has gone away (`script | head`) and an interrupt end it quietly, with the codes of shells: 141 and 130.
    Where several processes train, one that fails leaves at once, and the others say that it did.
    """
    code = 0
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
