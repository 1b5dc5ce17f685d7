"""`retell` and `python -m retell`: the command line, its exit codes and its one-line errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cyclopts import CycloptsError

from retell.cli import app
from retell.exits import FAILURE, INTERRUPTED, TERMINATED, USAGE, Failure, Terminated

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Parameters
    ----------
    argv : sequence of str, optional
        The words after ``retell``; those of the process by default.

    Returns
    -------
    int
        0; 1 failure; 2 usage; 3 bad data; 4 bad model; 130 interrupted; 143 terminated.

    Examples
    --------
    >>> from retell.__main__ import main
    >>> main(["--version"])
    0.1.0
    0
    """
    if argv is None:  # the process is ours
        # Threads that wait for each other should sleep: where other work is going on, spinning makes small
        # nets many times slower. OpenMP reads this when torch is imported.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        argv = sys.argv[1:]
    words = list(argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with _one_line_warnings(), _terminations():
        try:
            app(words, exit_on_error=False, print_error=False, result_action="return_value")
            sys.stdout.flush()
            return 0
        except BaseException as error:
            if debug:
                traceback.print_exc()
            return _tell(error)


def _tell(error: BaseException) -> int:
    """Say in a line what went wrong; the exit code."""
    code, message = FAILURE, str(error)
    match error:
        case Failure():
            code = error.code
        case CycloptsError():
            code, message = USAGE, message + " See retell --help."
        case SystemExit():
            return error.code if isinstance(error.code, int) else FAILURE
        case BrokenPipeError():  # the reader of our output has gone; Python would complain again when it exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILURE
        case KeyboardInterrupt():
            code, message = INTERRUPTED, message or "interrupted"
        case Terminated():
            code, message = TERMINATED, message or "terminated"
        case ImportError():
            pass
        case _:
            message = f"{type(error).__name__}: {message or 'no details'} (--debug shows where)"
    _print(message)
    return code


def _print(message: str) -> None:
    print("retell: " + " ".join(message.split()), file=sys.stderr)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings for users, without file names and lines of code."""

    def show(message: Warning | str, *_: Any) -> None:
        _print(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("default", category)
        warnings.showwarning = show  # type: ignore[assignment]  # the rest of what it is given goes unused
        yield


@contextmanager
def _terminations() -> Iterator[None]:
    """Let SIGTERM end a command as an interrupt does, so that a fit can write its checkpoint."""

    def end(*_: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
