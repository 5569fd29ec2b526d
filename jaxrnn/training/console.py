"""What a run says: lines, a progress bar where there is a terminal, errors without a traceback. Nothing about training."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable


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
    if not sys.stderr.isatty() or importlib.util.find_spec("tqdm") is None:
        return steps
    from tqdm import tqdm

    return tqdm(steps, desc=label, leave=False)


def say(text: str):
    """Print a line at once, above the progress bar if there is one."""
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()
    else:
        print(text, flush=True)


def exit_code(main: Callable[[], None]) -> int:
    """Run a script's `main`: 0, or the code of what stopped it, said in one message on stderr.

    A reader that has gone away (`script | head`) and an interrupt end it quietly, with the codes of shells: 141 and 130.
    """
    try:
        main()
        sys.stdout.flush()
    except Failure as failure:
        print(f"{os.path.basename(sys.argv[0])}: error: {failure}", file=sys.stderr)
        return failure.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    return 0
