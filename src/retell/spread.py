"""Blocks of rows shared among threads.

A block is worked by one thread, and its products use no other thread: how several threads share a product is
up to the moment, and on a busy machine they wait for each other far longer than a small product takes. Which
thread works which block is up to the moment too, and changes nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from itertools import islice, pairwise
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["Crowd", "Work", "ahead", "at_once", "calm", "even", "power_of_two", "quiet", "spread", "threads"]

Work = Callable[[int, int], None]
T = TypeVar("T")

ENOUGH = 4  # blocks that repay the start of a thread
LONG = 2.0  # seconds after which the speed of a fit matters
PRESSURE = Path("/proc/pressure/cpu")  # of Linux: "some avg10=0.00 avg60=0.00 avg300=0.00 total=0", in microseconds
LITTLE = 2**25  # multiplications that one thread makes in the time in which another may wake
WIDE = 512  # columns from which on several threads repay NumPy's and SciPy's algebra


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for each product, for as long as the block of code lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet(work: int) -> AbstractContextManager[Any]:
    """One thread of torch's for products of so many multiplications, if these are few.

    Another takes milliseconds to wake where the system queues it behind the one that turns and waits for it.
    """
    return threads(1) if work <= LITTLE else nullcontext()


def calm(width: int) -> AbstractContextManager[Any]:
    """One thread for NumPy's and SciPy's algebra on so many columns, until the last who asked for it has done.

    After each product their other threads go on turning for some tens of milliseconds, on cores that torch needs.
    """
    return _HUSH if width < WIDE else nullcontext()


class _Hush:
    """Fits may take turns, or run in several threads: who comes first finds what who goes last puts back."""

    def __init__(self) -> None:
        self.lock, self.inside = Lock(), 0

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.held: Any = _pools().limit(limits=1, user_api="blas")
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                self.held.restore_original_limits()


_HUSH = _Hush()


@cache
def _pools() -> Any:
    return ThreadpoolController()


class Crowd:
    """Whether more threads want a core than there are, from now on."""

    def __init__(self) -> None:
        self.start, self.before, self.told = time.monotonic(), self._waited(), False

    def share(self) -> float:
        """The part of the time in which some thread of the machine waited for a core.

        Told once: zero in the first `LONG` seconds, afterwards, and where the system keeps no count.
        """
        taken = time.monotonic() - self.start
        if self.told or taken < LONG:
            return 0.0
        self.told = True
        return (self._waited() - self.before) / taken

    def _waited(self) -> float:
        """Seconds since the machine was started."""
        try:
            found = re.search(r"some .*total=(\d+)", PRESSURE.read_text("ascii"))
        except OSError:
            found = None
        return int(found[1]) / 1e6 if found else 0.0


def ahead(values: Iterator[T]) -> Iterator[T]:
    """The values, each computed by another thread while the one before it is in use.

    Examples
    --------
    >>> from retell.spread import ahead
    >>> list(ahead(iter("abc")))
    ['a', 'b', 'c']
    """
    with (
        threads(torch.get_num_threads()),  # what a helper sets holds for threads that are born later
        ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as helper,
    ):
        coming = helper.submit(lambda: list(islice(values, 1)))
        while value := coming.result():
            coming = helper.submit(lambda: list(islice(values, 1)))
            yield value[0]


def even(n_rows: int, most: int, n_threads: int) -> int:
    """Rows a block, at most so many, of which every thread gets as many as the others, within a block's last rows.

    Examples
    --------
    >>> from retell.spread import even
    >>> even(4096, 853, 2), even(4096, 1024, 2), even(100, 853, 2)
    (683, 1024, 50)
    """
    turns = max(1, -(-n_rows // (most * n_threads)))
    return max(1, -(-n_rows // (turns * n_threads)))


def power_of_two(n: int) -> int:
    """The largest one up to n, or 0 where there is none.

    Examples
    --------
    >>> from retell.spread import power_of_two
    >>> power_of_two(100), power_of_two(128), power_of_two(0)
    (64, 128, 0)
    """
    return 1 << n.bit_length() >> 1


def spread(
    start: Callable[[], Work], n_rows: int, size: int, *, most: int | None = None, enough: int = ENOUGH,
    staggered: bool = False,
) -> None:  # fmt: skip
    """Work all rows, `size` at a time, on several threads.

    Parameters
    ----------
    start : callable
        Called once by each thread; its answer is called with the first row of a block and the one after its
        last. What it holds in memory belongs to that thread.
    n_rows, size : int
    most : int, default=None
        Threads; None for as many as torch would use, 1 for block after block in order.
    enough : int, default=4
        Blocks that repay the start of a thread.
    staggered : bool, default=False
        Whether several threads begin with half a block, so that they are not all at the same part of their work.

    Raises
    ------
    Exception
        What the first of the blocks that failed has raised.
    """
    most = min(most or torch.get_num_threads(), -(-n_rows // size) // enough)
    inner = range(size // 2 if staggered and most > 1 else size, n_rows, size)
    blocks = iter(list(pairwise(sorted({0, *inner, n_rows}))))
    failed: list[tuple[int, BaseException]] = []

    def run() -> None:
        first = -1
        try:
            with torch.no_grad():
                work = start()
                for first, last in blocks:
                    if failed:
                        break
                    work(first, last)
        except BaseException as error:
            failed.append((first, error))

    at_once([run] * max(1, most))
    if failed:
        raise min(failed, key=lambda failure: failure[0])[1]


def at_once(calls: Sequence[Callable[[], T]]) -> list[T]:
    """What calls give, each made by a thread of its own, the first by this one; torch's products use no other.

    Examples
    --------
    >>> from retell.spread import at_once
    >>> at_once([lambda: 1, lambda: 2])
    [1, 2]
    """
    first, *others = calls
    # what a new helper sets holds for threads that are born later, and what is set now for its first call
    with threads(1):
        coming = [_helpers(os.getpid()).submit(call) for call in others]
        try:
            mine = first()
        finally:
            for one in coming:
                one.exception()  # waits for its end, in a tenth of the time of `wait`
    return [mine, *(one.result() for one in coming)]


@cache
def _helpers(process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - a process that is born of this one has none
    """Threads that stay: a new one takes a while to find a core of its own."""
    return ThreadPoolExecutor(initializer=torch.set_num_threads, initargs=(1,))
