"""A worker's end of the line: a JSON line in, a JSON line out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from threadpoolctl import threadpool_limits

Answer = dict[str, Any]


def serve(begin: Callable[[], tuple[Answer, Callable[[Answer], Answer]]]) -> None:
    """Say hello and then answer every line; `begin` gives the hello and what answers. A failure is an answer too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is not an answer

    def say(answer: Answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        hello, answer_to = begin()
    except Exception as error:
        return say({"cannot": f"{type(error).__name__}: {error}"})
    say(hello)
    for line in sys.stdin:
        try:
            say(answer_to(json.loads(line)))
        except NotImplementedError as error:
            say({"cannot": str(error)})
        except Exception as error:
            say({"cannot": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"})
    return None


def set_threads(threads: int) -> None:
    """For BLAS, OpenMP and, where it is there, torch."""
    threadpool_limits(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
