"""How a command ends before its time: exit codes, and whose fault an error is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "BAD_DATA",
    "BAD_MODEL",
    "FAILURE",
    "INTERRUPTED",
    "TERMINATED",
    "USAGE",
    "Failure",
    "Terminated",
    "blame",
    "check_output",
]

FAILURE, USAGE, BAD_DATA, BAD_MODEL, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 130, 143


class Failure(Exception):
    """A command can't go on, and the message says why.

    Parameters
    ----------
    code : int
        The exit code.
    message : str
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Terminated(BaseException):
    """SIGTERM has come."""


@contextmanager
def blame(code: int) -> Iterator[None]:
    """What is wrong with values or files inside the block ends the command with this exit code.

    Examples
    --------
    >>> from retell.exits import USAGE, blame
    >>> with blame(USAGE):
    ...     int("many")
    Traceback (most recent call last):
    retell.exits.Failure: invalid literal for int() with base 10: 'many'
    """
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise Failure(code, f"{where}{error.strerror}" if error.strerror else str(error)) from error
    except (ValueError, TypeError) as error:
        raise Failure(code, str(error)) from error


def check_output(path: Path, *, force: bool) -> None:
    """Refuse, before any work, a path that can't be written or would replace something.

    Raises
    ------
    Failure
        With the exit code for usage.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise Failure(USAGE, f"{path} can't be written: there is no folder {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Failure(USAGE, f"{path} can't be written: no permission to write in {folder}")
    if path.exists() and not force:
        raise Failure(USAGE, f"{path} exists: --force replaces it")
